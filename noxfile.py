"""
Everything that is checked before a change is merged. ``nox`` alone runs lint, floors, types and tests.

Words after ``--`` go to the tool: ``nox -s tests -- tests/thinking -k retry``, ``nox -s bench -- docker``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import nox
from nox.command import CommandFailed

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
THINKING = ",".join(f"fargate_runner/{floor}.py" for floor in ("_errors", "_job", "_lifecycle", "_retry"))
FLOORS = ("tests/thinking", "tests/scenario")  # what holds the thinking floors
# What depends on the AWS client: a job's whole way, and that its answers are read as it would read them itself.
NEWER = tuple(f"tests/ecs/test_{what}.py" for what in ("newer_session", "parser", "parser_http", "api_session", "lean"))
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# One more than there are cores: a few tests wait for real processes, and leave theirs to others.
SPREAD = ("-n", str(CORES + 1), "--dist", "worksteal")
# Most of a container's test is waiting. A file's tests stay together: they share what they made.
IN_CONTAINERS = ("-n", "3", "--dist", "loadfile", "-m", "docker")
# What only computes can wait for them.
POLITELY = ("nice",) if shutil.which("nice") else ()
DOCKER_REQUIRED = os.environ.get("FARGATE_RUNNER_DOCKER") == "required"

# Whatever interpreter runs nox is one of them, so that there is always something to test with.
PYTHONS = list(dict.fromkeys(["3.11", "3.12", "3.13", f"{sys.version_info.major}.{sys.version_info.minor}"]))

nox.needs_version = ">=2025.10.14"
nox.options.sessions = ["lint", "floors", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False  # skipped and said to be, in CI too
nox.options.download_python = "never"

# pyenv keeps interpreters beside the PATH; its shims answer for the selected version only.
if pyenv := os.environ.get("PYENV_ROOT"):
    kept = [path for v in PYTHONS for path in sorted(Path(pyenv, "versions").glob(f"{v}.*/bin"))]
    os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *map(str, kept)])


@nox.session
def lint(session: nox.Session) -> None:
    """Style, likely mistakes, formatting."""
    _install(session, "lint", package=False)
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check", *session.posargs)


@nox.session
def floors(session: nox.Session) -> None:
    """Imports go down only."""
    _install(session, "lint", package=False)
    session.run("lint-imports", *session.posargs)


@nox.session
def types(session: nox.Session) -> None:
    """mypy (strict) and pyright, over the package and what its users write."""
    _install(session, "types", "test")
    session.run("mypy", *session.posargs)
    session.run("pyright", *session.posargs)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """
    The tests, on every interpreter of this machine.

    The first one runs them all, real containers included, and holds the floors that only think to 95 % of
    their lines and branches. The newest leaves out the engine and the sweeps, which do not depend on the version of
    Python; those between run the floors. As the tests with containers mostly wait, they run beside all others.
    """
    _install(session, "test")
    if session.posargs:
        session.run("pytest", *session.posargs)
    elif _is_first(session):
        _make_docker_ready(session)
        with _beside(session, "pytest", *IN_CONTAINERS):
            session.run(*POLITELY, "coverage", "run", "-m", "pytest", *FLOORS, external=True)
            session.run("coverage", "report", f"--include={THINKING}", "--fail-under=95")
            others = (f"--ignore={part}" for part in FLOORS)
            session.run(*POLITELY, "pytest", *SPREAD, "-m", "not docker", *others, external=True)
    else:
        # Between the oldest and the newest, what only thinks is enough to see that nothing is amiss.
        parts = () if session.python == PYTHONS[-1] else FLOORS
        session.run("pytest", *SPREAD, "-m", "not docker and not sweep", *parts)


@nox.session
def newer(session: nox.Session) -> None:
    """The ECS backend with a session of the newest aiobotocore handed in: aioboto3 pins an older one."""
    _install(session, "test")
    session.install("--upgrade", "aiobotocore[boto3]")  # past aioboto3's pin, which only its own session needs
    session.run("pytest", *SPREAD, *(session.posargs or NEWER))


@nox.session
def docs(session: nox.Session) -> None:
    """Every code block of the README and of docs/."""
    _install(session, "test")
    session.run("pytest", "tests/docs", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Every example as a local process, and on Docker if an engine answers. That of Lambda is among the tests."""
    _install(session)
    found = sorted(path for path in Path("examples").glob("*.py") if not path.name.startswith("_"))
    if not found:
        session.error("examples/ holds no example")
    backends = ["process", "docker"] if DOCKER_REQUIRED or _docker_is_ready() else ["process"]
    for path in found:
        for backend in backends:
            session.run("python", str(path), "--backend", backend, *session.posargs)
    if "docker" not in backends:
        session.warn("no Docker engine answers: the examples ran as local processes only")


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks, each beside its reference."""
    _install(session, "bench")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """Clients that are killed on a bad day of AWS, by seed: ``nox -s chaos -- --seeds 200``, ``--seed 4711``."""
    _install(session, "test")
    session.run("python", "-m", "tests.chaos", *session.posargs)


@nox.session
def mutations(session: nox.Session) -> None:
    """Promises broken one by one in a copy of the tree: some test has to see each. ``nox -s mutations -- M3 M7``."""
    _install(session, "test")
    session.run("python", "-m", "tests.mutations", *session.posargs)


def _install(session: nox.Session, *groups: str, package: bool = True) -> None:
    """Install the package with all extras and these dependency groups, once per state of pyproject.toml."""
    wanted = [*(("-e", ".[all]") if package else ()), *nox.project.dependency_groups(PROJECT, *groups)]
    stamp = Path(session.virtualenv.location, "installed")
    state = hashlib.sha256(repr(wanted).encode() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == state:
        return
    session.install(*wanted)
    stamp.write_text(state)


@contextmanager
def _beside(session: nox.Session, *command: str) -> Iterator[None]:
    """Run a command beside what happens in the block; what it says is shown afterwards, in one piece."""
    with tempfile.TemporaryFile("w+", errors="replace") as said, ThreadPoolExecutor(1) as pool:
        result = pool.submit(session.run, *command, stdout=said, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            failure = result.exception()
            said.seek(0)
            shutil.copyfileobj(said, sys.stdout)
            sys.stdout.flush()
        if failure is not None:
            raise failure


_first: list[str] = []


def _is_first(session: nox.Session) -> bool:
    """Is this the first interpreter that this run of nox found? Missing ones never get this far."""
    _first.append(str(session.python))
    return session.python == _first[0]


def _make_docker_ready(session: nox.Session) -> None:
    try:
        session.run("python3", "scripts/docker_ready.py")
    except CommandFailed:
        if DOCKER_REQUIRED:
            session.error("FARGATE_RUNNER_DOCKER=required, and no Docker engine could be made ready")
        session.warn("no Docker engine could be made ready: the Docker tests will be skipped")


def _docker_is_ready() -> bool:
    check = [sys.executable, "scripts/docker_ready.py", "--check"]
    return subprocess.run(check, cwd=ROOT, capture_output=True, check=False).returncode == 0
