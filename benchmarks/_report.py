"""What all benchmarks share: a row with its reference and its goal, a table of them, a JSON file."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

import attrs


@attrs.frozen
class Row:
    """One figure beside its reference. ``goal`` is on the ratio: at most it, or at least it if ``higher`` is better."""

    name: str
    ours: float
    reference: float
    unit: str
    against: str
    goal: float | None = None
    higher: bool = False

    @property
    def ratio(self) -> float:
        return self.ours / self.reference if self.reference else float("nan")

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        met = self.ratio >= self.goal if self.higher else self.ratio <= self.goal
        return f"{'ok' if met else 'MISSED'} ({'>=' if self.higher else '<='} {self.goal:g})"


def show(rows: Iterable[Row]) -> None:
    """Print the rows as a table."""
    print(f"{'what':<58} {'ours':>12} {'reference':>12} {'ratio':>7}  {'goal':<18} against")
    for row in rows:
        ours, reference = f"{row.ours:,.6g}", f"{row.reference:,.6g}"
        what = f"{row.name} [{row.unit}]"
        print(f"{what:<58} {ours:>12} {reference:>12} {row.ratio:>7.3f}  {row.verdict:<18} {row.against}")
    sys.stdout.flush()


def write(rows: Iterable[Row], file: Path) -> None:
    """Write the rows as JSON, with what they were measured on."""
    machine = {"python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count()}
    figures = [attrs.asdict(row) | {"ratio": row.ratio, "verdict": row.verdict} for row in rows]
    file.write_text(json.dumps({"machine": machine, "rows": figures}, indent=1) + "\n")
