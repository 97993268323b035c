"""
From the start of a process to the answer to its first RunTask, beside plain boto3 and aioboto3 that do the same.

Every side is a process of its own, in turns (A B A B): see `benchmarks._cold` for what each does. The fake AWS answers
over HTTP, in yet another process. CPU seconds and memory are medians; instructions, where valgrind is installed, are
the same to 1 % whatever else the machine does. All sides have their byte code, as Lambda's should.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Final

import attrs

from benchmarks._account import account
from benchmarks._clients import KEY, definition
from benchmarks._report import Row

_GRIND: Final = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")
_WAYS: Final = ("boto3", "aioboto3", "ours", "handler")
_CPU_GOAL: Final = 0.75
_STALL_GOAL: Final = 0.25


@attrs.frozen
class _Place:
    """Where all sides launch, and what of the environment they get."""

    url: str
    definition: str
    env: Mapping[str, str]

    def run(self, way: str, *under: str) -> subprocess.CompletedProcess[str]:
        command = [*under, sys.executable, "-m", "benchmarks._cold", way, self.url, self.definition]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, check=True)

    def figures(self, way: str) -> tuple[float, ...]:
        """Return CPU seconds, peak KiB and modules; of a stall, its seconds."""
        return tuple(map(float, self.run(way).stdout.split()))

    def instructions(self, way: str) -> float:
        found = re.search(r"I\s+refs:\s+([\d,]+)", self.run(way, *_GRIND).stderr)
        assert found is not None
        return float(found[1].replace(",", "")) / 1e6


def _rows(name: str, unit: str, by_way: Mapping[str, float], goal: float | None = None) -> list[Row]:
    rows = []
    for way in ("ours", "handler"):
        if way in by_way:
            mine = f"cold start, {way}: {name}"
            rows.append(Row(mine, by_way[way], by_way["aioboto3"], unit, "aioboto3", goal if way == "ours" else None))
            rows.append(Row(mine, by_way[way], by_way["boto3"], unit, "boto3"))
    return rows


def run(*, rounds: int = 11, instructions: bool = True) -> list[Row]:
    """Measure."""
    with tempfile.TemporaryDirectory() as byte_code, account(quotas="none", life="forever") as aws:
        env = os.environ | KEY | {"PYTHONHASHSEED": "0", "PYTHONPYCACHEPREFIX": byte_code}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ.update(KEY)
        place = _Place(aws.url, definition(aws.url), env)
        for way in _WAYS:
            place.run(way)  # writes the byte code
        turns = [[place.figures(way) for way in _WAYS] for _ in range(rounds)]
        columns = list(zip(*turns, strict=True))
        middle = [[statistics.median(one) for one in zip(*column, strict=True)] for column in columns]
        cpu, peak, modules = (dict(zip(_WAYS, figure, strict=True)) for figure in zip(*middle, strict=True))
        rows = _rows("CPU", "ms", {way: seconds * 1e3 for way, seconds in cpu.items()}, _CPU_GOAL)
        if instructions and shutil.which("valgrind"):
            rows += _rows("instructions", "M", {way: place.instructions(way) for way in _WAYS}, _CPU_GOAL)
        rows += _rows("peak memory", "MiB", {way: kib / 1024 for way, kib in peak.items()})
        rows += _rows("modules loaded", "", modules)
        stalls = [(place.figures("ours-stall"), place.figures("aioboto3-stall")) for _ in range(rounds)]
        ours, theirs = (min(column)[0] * 1e3 for column in zip(*stalls, strict=True))
        against = "aioboto3 imported and used in the loop"
        rows.append(Row("cold start, longest stall of a running loop", ours, theirs, "ms", against, _STALL_GOAL))
    return rows
