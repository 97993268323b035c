"""
Draw makespan and API calls against the number of jobs, from what ``python -m benchmarks … --json FILE`` wrote.

``python -m benchmarks.picture FILE [FILE …] --to docs/explanation/fanout.svg``
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

__all__ = ["Series", "draw", "series_of"]

_ROW: Final = re.compile(
    r"(?P<part>fanout|virtual), N=(?P<jobs>[\d,]+), (?P<way>[\w-]+): (?P<figure>makespan|ECS calls|jobs lost)\Z"
)
_INK: Final = "#1f2933"
_QUIET: Final = "#7b8794"
_STYLES: Final[Mapping[str, tuple[str, str, str]]] = {
    # way: (what it is called, colour, marker)
    "bound": ("the bound: AWS's quotas, the lives of the tasks", _QUIET, ""),
    "ours": ("fargate_runner", "#0b7285", "o"),
    "ours-events": ("fargate_runner, told by events", "#2b8a3e", "s"),
    "aioboto3": ("a waiter for each job", "#c92a2a", "X"),
}


@attrs.frozen
class Point:
    """A figure of so many jobs."""

    jobs: int
    makespan: float
    calls: float
    lost: float


Series = Mapping[str, list[Point]]


def series_of(rows: Iterable[Mapping[str, Any]]) -> Series:
    """Return the points of each way, and of the bound."""
    found: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    matched = [(told, row) for row in rows if (told := _ROW.match(row["name"])) is not None]
    # What was measured in real time comes later, and takes the place of the same in virtual time.
    for told, row in sorted(matched, key=lambda pair: pair[0]["part"], reverse=True):
        way, jobs, figure = told["way"], int(told["jobs"].replace(",", "")), told["figure"]
        # Rows of ours have the bound as their reference; those of other ways have ours in front, and theirs behind.
        if way.startswith("ours"):
            found[way, jobs][figure] = row["ours"]
            if way == "ours" and figure != "jobs lost":
                found["bound", jobs][figure] = row["reference"]
        else:
            found[way, jobs][figure] = row["reference"]
    series: dict[str, list[Point]] = defaultdict(list)
    for (way, jobs), figures in sorted(found.items()):
        if {"makespan", "ECS calls"} <= figures.keys():
            lost = figures.get("jobs lost", 0.0) / jobs
            series[way].append(Point(jobs, figures["makespan"], figures["ECS calls"], lost))
    return series


def draw(series: Series, file: Path) -> None:
    """Draw the picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams |= {"font.size": 9.5, "svg.fonttype": "path", "svg.hashsalt": "fargate_runner", "text.color": _INK}
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 4.4), layout="constrained")
    for way, (called, colour, marker) in _STYLES.items():
        points = series.get(way, [])
        if not points:
            continue
        jobs = [point.jobs for point in points]
        bound = way == "bound"
        style: dict[str, Any] = {
            "color": colour,
            "marker": marker,
            "linestyle": "--" if bound else "-",
            "linewidth": 1.4 if bound else 2.0,
            "markersize": 6,
            "label": called,
        }
        left.plot(jobs, [point.makespan for point in points], **style)
        right.plot(jobs, [point.calls for point in points], **style)
        for point in points:
            if point.lost >= 0.005:
                note: dict[str, Any] = {"textcoords": "offset points", "ha": "left", "fontsize": 8.5, "color": colour}
                where = point.jobs, point.makespan
                left.annotate(f"{point.lost * 100:.0f} % lost", where, xytext=(4, -15), **note)
    for axes, title, unit in (
        (left, "First launch to last end seen; jobs lost", "seconds"),
        (right, "Calls to ECS", "calls"),
    ):
        axes.set(xscale="log", yscale="log", xlabel="jobs", ylabel=unit)
        axes.set_title(title, fontsize=10.5, color=_INK, loc="left")
        axes.margins(0.09, 0.14)
        ticks = sorted({point.jobs for points in series.values() for point in points})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if axes is left else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.grid(visible=True, color="#e4e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_QUIET)
        axes.tick_params(colors=_INK)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    # Without a date, the same figures give the same file.
    metadata = {"Date": None} if file.suffix == ".svg" else None
    figure.savefig(file, metadata=metadata, dpi=150, facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help=".svg or .png")
    given = parser.parse_args()
    rows = [row for file in given.files for row in json.loads(file.read_text())["rows"]]
    draw(series_of(rows), given.to)


if __name__ == "__main__":
    main()
