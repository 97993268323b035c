"""
The suite, held against mistakes: each patch in this directory breaks one promise, and some test has to see it.

A copy of the tree gets one patch at a time; then the commands named in the patch's header are run, in their order,
until one fails. A patch that does not apply is an error, one that nothing fails for has survived.

::

    # M6: a task that is not described counts as gone at once
    # killed by: chaos --seeds 60
    # killed by: pytest tests/ecs/test_watch.py
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".nox", "__pycache__", ".*_cache", "*.egg-info", "dist", "build")
_PATIENCE = 900.0


@attrs.frozen
class Mutation:
    """A patch, and what has to see it."""

    path: Path
    name: str
    title: str
    commands: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Mutation:
        header = [line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#")]
        title = re.fullmatch(r"(M\d+): (.+)", header[0])
        commands = tuple(line.removeprefix("killed by: ") for line in header if line.startswith("killed by: "))
        if title is None or not commands:
            raise SystemExit(f"{path}: begin with '# M1: what is broken' and '# killed by: chaos --seeds 40'")
        return cls(path, title[1], title[2], commands)


@attrs.frozen
class Verdict:
    """What came of a mutation."""

    mutation: Mutation
    killed_by: str
    """Empty if nothing saw it."""
    seconds: float


def mutations() -> list[Mutation]:
    """Return all of them, in the order of their numbers."""
    found = [Mutation.read(path) for path in HERE.glob("*.patch")]
    return sorted(found, key=lambda mutation: int(mutation.name[1:]))


def judge(mutation: Mutation, directory: Path) -> Verdict:
    """Apply a mutation to a copy of the tree, and run what has to see it."""
    begun = time.perf_counter()
    tree = directory / mutation.name
    shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
    applied = _git(tree, "apply", "--recount", str(mutation.path))
    if applied.returncode != 0:
        raise SystemExit(f"{mutation.name} does not apply: {mutation.path}\n{applied.stderr}")
    killed_by = next((seen for command in mutation.commands if (seen := _run(tree, command))), "")
    shutil.rmtree(tree)
    return Verdict(mutation, killed_by, time.perf_counter() - begun)


def _git(tree: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], cwd=tree, capture_output=True, text=True, check=False)


def _run(tree: Path, command: str) -> str:
    """Return by what a mutation was seen; nothing if it was not."""
    words = command.split()
    if words[0] == "chaos":
        argv = ["-m", "tests.chaos", "--stop", "--jobs", "1", *words[1:]]
    else:
        argv = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", *words[1:]]
    environ = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, *argv],
            cwd=tree,
            env=environ,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{command}: it never ended"
    if done.returncode == 0:
        return ""
    if words[0] == "chaos":
        return _seen_by_chaos(command, done.stdout, done.stderr)
    if done.returncode != 1:  # no test failed: they could not even be collected
        raise SystemExit(f"{command} broke: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    # The name of a case may have spaces in it; what pytest says of the error follows after a dash.
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return failed[1] if failed else command


def _seen_by_chaos(command: str, stdout: str, stderr: str) -> str:
    seed = re.search(r"--seed (\d+)   # (point \d+)", stdout)
    if seed is None:
        raise SystemExit(f"{command} broke: {stdout[-2000:]}{stderr[-2000:]}")
    after = re.search(r"^([\d,]+) seeds,", stdout, re.MULTILINE)
    return f"chaos, {seed[2]}, at seed {seed[1]} (after {after[1] if after else '?'} seeds)"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nox -s mutations --", description=__doc__)
    parser.add_argument("names", nargs="*", help="M3 M7: these alone")
    parser.add_argument("--table", action="store_true", help="the verdicts as a table for docs/explanation/chaos.md")
    options = parser.parse_args(argv)
    chosen = [mutation for mutation in mutations() if not options.names or mutation.name in options.names]
    if unknown := set(options.names) - {mutation.name for mutation in chosen}:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    survived = 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as directory:
        for mutation in chosen:
            verdict = judge(mutation, Path(directory))
            survived += not verdict.killed_by
            print(_row(verdict) if options.table else _line(verdict), flush=True)
    print(f"{len(chosen)} mutations, {survived} survived")
    return 1 if survived else 0


def _line(verdict: Verdict) -> str:
    said = f"killed by {verdict.killed_by}" if verdict.killed_by else "SURVIVED"
    return f"{verdict.mutation.name} ({verdict.mutation.title}): {said}, {verdict.seconds:.0f} s"


def _row(verdict: Verdict) -> str:
    seen_by = f"`{verdict.killed_by}`" if verdict.killed_by.startswith("tests/") else verdict.killed_by
    return f"| {verdict.mutation.name} | {verdict.mutation.title} | {seen_by or '**survived**'} |"


if __name__ == "__main__":
    sys.exit(main())
