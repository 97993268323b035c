"""
MiniStack, an emulator of AWS that we did not write and that starts real containers, as a second opinion.

It pins a botocore of its own, so it lives in an environment of its own: made once per version under the user's cache,
by pip, and used again afterwards. It listens on loopback only and keeps nothing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
import venv
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs

__all__ = ["REQUIREMENTS", "MiniStack", "MiniStackUnavailable", "environment", "running"]

REQUIREMENTS: Final = ("ministack==1.5.33", "docker>=7.1,<8")
"""What the environment holds. Without the Docker client MiniStack only pretends to run tasks."""

_SERVICES: Final = "ec2,ecs,events,iam,logs,s3,secretsmanager,sqs,ssm,sts"
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 15.0

# It ends when we do, however we end: our side of its stdin is closed then.
_RUN: Final = """
import os, runpy, signal, sys, threading

def end_with_the_tests():
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)

remove_containers = sys.argv.pop()
label = sys.argv.pop()
threading.Thread(target=end_with_the_tests, daemon=True).start()
try:
    runpy.run_module("ministack", run_name="__main__")
finally:
    sys.argv.append(label)
    exec(remove_containers)
"""
_REMOVE_CONTAINERS: Final = """
import sys, docker
for container in docker.from_env().containers.list(all=True, ignore_removed=True, filters={"label": sys.argv[1]}):
    container.remove(force=True, v=True)
"""


class MiniStackUnavailable(Exception):
    """It could not be installed or started: says why."""


@attrs.frozen(kw_only=True)
class MiniStack:
    """One that runs."""

    url: str
    label: str
    """The Docker label that all of its containers carry, and no others."""
    process: subprocess.Popen[bytes] = attrs.field(repr=False)


def environment() -> Path:
    """
    Return the interpreter of MiniStack's environment; the first call for a version makes it, which takes seconds.

    :raises MiniStackUnavailable: pip could not install it
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fargate-runner"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    home = cache / f"{REQUIREMENTS[0].replace('==', '-')}-py{version}"
    python = home / "bin" / "python"
    complete = home / "complete"
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(home.with_suffix(".lock")):
        if complete.exists() and complete.read_text() == repr(REQUIREMENTS) and _runs(python):
            return python
        shutil.rmtree(home, ignore_errors=True)  # what an interrupted run, or another interpreter, left
        venv.create(home, with_pip=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise MiniStackUnavailable(f"pip could not install {' and '.join(REQUIREMENTS)}:\n{done.stderr.strip()}")
        complete.write_text(repr(REQUIREMENTS))
    return python


@contextmanager
def running(directory: Path) -> Generator[MiniStack]:
    """
    Start one on a free port of loopback, with its log in *directory*; afterwards it and its containers are gone.

    :raises MiniStackUnavailable: it could not be installed, or does not answer
    """
    python = environment()
    port = _free_port()
    # It labels its containers with host and port. A host's name that nobody else has makes them ours beyond doubt.
    host = f"fargate-runner-test-{uuid.uuid4().hex[:12]}"
    label = f"ministack.instance={host}:{port}"
    log = directory / "ministack.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [python, "-c", _RUN, label, _REMOVE_CONTAINERS],
            cwd=directory,
            env=_variables(directory, host, port),
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    stack = MiniStack(url=f"http://127.0.0.1:{port}", label=label, process=process)
    try:
        _wait_until_it_answers(stack, log)
        yield stack
    finally:
        _stop(process)
        subprocess.run([python, "-c", _REMOVE_CONTAINERS, label], check=True, timeout=60)


def _variables(directory: Path, host: str, port: int) -> dict[str, str]:
    """Return its environment: nothing of AWS's, of proxies' or of Python's that may be set here."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    engine = {name: value for name, value in os.environ.items() if name.startswith("DOCKER_")}
    own = {
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "MINISTACK_HOSTNAME": host,
        "MINISTACK_ACCOUNT_ID": "111122223333",
        "SERVICES": _SERVICES,
        "IOT_MTLS_ENABLED": "0",  # a listener on a fixed port
        "SFTP_ENABLED": "0",
        "MINISTACK_DOCKER_TIMEOUT": "60",  # 10 s are short for an engine that other tests keep busy
        "TMPDIR": str(directory),
        "PYTHONUNBUFFERED": "1",
    }
    return kept | engine | own


def _wait_until_it_answers(stack: MiniStack, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while stack.process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{stack.url}/_ministack/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    said = log.read_text(errors="replace")[-2000:]
    ended = stack.process.poll()
    how = f"ended with {ended}" if ended is not None else f"does not answer after {_START_SECONDS:.0f} s"
    raise MiniStackUnavailable(f"MiniStack {how}:\n{said}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    with process:  # closes its stdin
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _runs(python: Path) -> bool:
    """Whether the interpreter that the environment was made from is still there."""
    try:
        return subprocess.run([python, "-c", "import ministack, docker"], check=False, timeout=60).returncode == 0
    except OSError:
        return False


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Let one process at a time in; the others wait."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
