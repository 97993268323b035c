"""
The display that changes: a bar and a few figures at the bottom of the terminal, and above it what stays.

The terminal is never put into a state: the cursor is not hidden, and between two frames it stands at the beginning of
the line below. Whatever ends this program, even SIGKILL, leaves a terminal that can be used.

A frame holds numbers and words of our own only. Texts of others are cleaned lines above it.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Sequence
from typing import Any, Final

from fargate_runner.cli._screen import Stream
from fargate_runner.progress import (
    Failure,
    Printed,
    Standing,
    ends,
    has_begun,
    pace,
    price,
    span,
    stages,
    summary,
    told,
)

__all__ = ["Live", "frame"]

Part = tuple[str, str]
"""Some text, and its style."""

_STYLES: Final = {
    "queued": "dim",
    "starting": "yellow",
    "running": "cyan",
    "stopping": "magenta",
    "succeeded": "green",
    "cancelled": "yellow",
}
_BAR_AT_MOST: Final = 40
_BAR_AT_LEAST: Final = 8
_SMALLEST: Final = 20
"""Columns below which there is no frame."""
_RESET: Final = "\x1b[0m"


class Live:
    """Draws on a terminal."""

    interval = 0.125

    def __init__(self, stream: Stream, *, colours: bool = True) -> None:
        self._stream = stream
        self._colours = colours and not os.environ.get("NO_COLOR")
        self._ascii = stream.encoding.lower().replace("-", "") != "utf8"
        self._parts: list[list[Part]] = []
        self._shown = ""
        self._widths: list[int] = []
        """The columns that each line of the frame on the screen takes."""

    def look(self, standing: Standing, failures: list[Failure], *, last: bool) -> list[str]:
        """Return the lines to show for good."""
        lines = [told(failure) for failure in failures]
        return [*lines, summary(standing)] if last and has_begun(standing) else lines

    def patience(self, standing: Standing) -> float:
        """Return the seconds after which to look again although nothing has happened: its clocks go on."""
        return 1.0

    def draw(self, lines: list[str], standing: Standing | None, *, last: bool) -> None:
        """Show lines above the frame, and the frame anew."""
        width, height = self._stream.size()
        if last or width < _SMALLEST:
            self._parts = []
        elif standing is not None:
            # The last column stays free: some terminals go on to the next line when it is written.
            self._parts = frame(standing, width - 1, ascii_only=self._ascii)[: max(1, height - 1)]
        shown = "".join(self._rendered(parts, width) for parts in self._parts)
        if shown == self._shown and not lines and not last:
            return
        above = [self._above(text, width, is_summary=last and text is lines[-1]) for text in lines]
        self._stream.write_trusted(self._erased(width, height) + "".join(above) + shown)
        self._shown, self._widths = shown, [sum(len(text) for text, _ in parts) for parts in self._parts]

    def _erased(self, width: int, height: int) -> str:
        """What takes the frame from the screen; one that has become narrower has broken its lines."""
        rows = sum(max(1, -(-columns // width)) for columns in self._widths)
        rows = min(rows, height - 1)
        return f"\r\x1b[{rows}A\x1b[J" if rows > 0 else ""

    def _above(self, text: str, width: int, *, is_summary: bool) -> str:
        if isinstance(text, Printed):
            return text + (_RESET if "\x1b" in text else "")
        if is_summary:
            return self._rendered([(text, "bold")], width, whole=True)
        return self._rendered([("x " if self._ascii else "✗ ", "bold red"), (text, "")], width, whole=True)

    def _rendered(self, parts: Sequence[Part], width: int, *, whole: bool = False) -> str:
        from rich.text import Text  # here and below: a tenth of a second, and not in the event loop

        console = _console(self._colours)
        console.width = width
        with console.capture() as captured:
            text = Text.assemble(*parts)  # never markup
            # What stays is left to the terminal to break; a frame must not be broken.
            console.print(text, soft_wrap=whole, no_wrap=True, overflow="ignore" if whole else "ellipsis")
        return str(captured.get())


@functools.cache
def _console(colours: bool) -> Any:
    from rich.console import Console

    return Console(
        file=io.StringIO(),
        force_terminal=True,
        color_system="auto" if colours else None,
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
    )


def frame(standing: Standing, width: int, *, ascii_only: bool = False) -> list[list[Part]]:
    """Return the lines of the display, none wider than *width*."""
    left = [(f"{number} {name}", _STYLES[name]) for name, number in stages(standing) if number]
    if standing.rate:
        left.append((pace(standing.rate), ""))
    over = [(f"{number} {name}", _STYLES.get(name, "red")) for name, number in ends(standing)]
    if standing.retries:
        over.append((f"{standing.retries} {'retry' if standing.retries == 1 else 'retries'}", "yellow"))
    if standing.detached:
        over.append((f"{standing.detached} left running", "yellow"))
    if standing.cost is not None:
        over.append((("up to " if ascii_only else "≤ ") + price(standing.cost), ""))
        if standing.cost.unpriced:
            over.append((f"{standing.cost.unpriced} unpriced", "dim"))
    dot = ", " if ascii_only else " · "
    return [_first(standing, width, ascii_only), *_packed(left, width, dot), *_packed(over, width, dot)]


def _first(standing: Standing, width: int, ascii_only: bool) -> list[Part]:
    """The bar, and how far it is; what has no room is left out, the least important first."""
    time = span(standing.elapsed)
    if not standing.total:
        return [(f"{standing.done} done", "bold"), (f"  {time}"[: width - 20], "dim")]
    share = standing.done / standing.total
    counted = (f"  {standing.done}/{standing.total}", "bold")
    eta = (f"  {'~' if ascii_only else '≈'}{span(standing.eta)} left", "") if standing.eta is not None else ("", "")
    percent, elapsed = (f"  {int(100 * share)}%", ""), (f"  {time}", "dim")
    choices = ([counted, percent, elapsed, eta], [counted, percent, eta], [counted, eta], [counted])
    for parts in choices:
        room = width - sum(len(text) for text, _ in parts)
        if room >= _BAR_AT_LEAST:
            return [*_bar(share, min(room, _BAR_AT_MOST), ascii_only), *parts]
    return [(counted[0].strip()[:width], "bold")]


def _bar(share: float, width: int, ascii_only: bool) -> list[Part]:
    full = int(share * width)  # whole only when all is done
    done, open_ = ("#", "-") if ascii_only else ("━", "─")
    return [(done * full, "green"), (open_ * (width - full), "dim")]


def _packed(parts: list[Part], width: int, dot: str) -> list[list[Part]]:
    """*parts* with dots between them, in as few lines as they need."""
    lines: list[list[Part]] = []
    room = 0
    for text, style in parts:
        if lines and len(dot) + len(text) <= room:
            lines[-1] += [(dot, "dim"), (text, style)]
            room -= len(dot) + len(text)
        else:
            lines.append([(text[:width], style)])
            room = width - len(text)
    return lines
