"""
The two streams of this program: the job's lines, and our own talk.

A thread writes, so that a slow reader (a paused terminal, a full pipe) never holds up the job's supervision. What
comes while it writes is written next, in one piece: a single line goes out at once, a million cost little each.
"""

from __future__ import annotations

import io
import itertools
import os
import select
import stat
import sys
from collections.abc import Callable
from operator import itemgetter
from typing import Any, Final, Literal, TextIO

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus

from fargate_runner.cli._terminal import clean, fence

__all__ = ["Screen", "Stream"]

Channel = Literal["stdout", "stderr", "talk"]

_MOST_PENDING: Final = 262_144
"""Characters that may wait for the writer before `Screen.is_full`."""
_PREFIX: Final = "fargate-runner: "
_READ_BY_CI: Final = ("GITHUB_ACTIONS", "TF_BUILD")


class Screen:
    """
    Where lines are shown. `put` and `say` never wait; who has many lines waits for `room` when it `is_full`.

    A terminal gets clean text. Anything else gets the job's lines as they are: they are data, and whoever reads them
    from a pipe or a file wants them unchanged. Only where a CI system reads the pipe, its marks are broken.
    """

    def __init__(self, *, quiet: bool = False, colours: bool = True) -> None:
        self._quiet = quiet
        colours = colours and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._out = Stream(sys.stdout, colours=colours)
        self._err = Stream(sys.stderr, colours=colours)
        self._styled = colours and self._err.is_terminal
        self._pending: list[tuple[Channel, str, str]] = []
        self._size = 0
        self._busy = False
        self._wake = anyio.Event()
        self._idle = anyio.Event()
        self._room = anyio.Event()
        self._limiter = anyio.CapacityLimiter(1)

    def put(self, text: str, channel: Literal["stdout", "stderr"]) -> None:
        """Show a line of the job."""
        self._pending.append((channel, text, ""))
        self._size += len(text) + 1
        if len(self._pending) == 1:
            self._wake.set()

    @property
    def is_full(self) -> bool:
        """Whether so much waits to be written that the reader should pause."""
        return self._size > _MOST_PENDING

    async def room(self) -> None:
        """Wait until the writer has taken what is pending."""
        await self._room.wait()

    def say(self, text: str, *, style: str = "dim", always: bool = False) -> None:
        """Say something of our own on stderr; *always* if ``--quiet`` should not silence it."""
        if always or not self._quiet:
            for line in clean(text).split("\n"):
                self._pending.append(("talk", line, style))
            self._wake.set()

    def go_above(self, above: Callable[[str], bool]) -> None:
        """Hand what is for a terminal to *above*, as long as a live display is there."""
        self._out.above = self._err.above = above

    def drop(self) -> None:
        """Forget what is pending: somebody is in a hurry."""
        self._pending.clear()
        self._size = 0

    async def pump(self, on_failure: Callable[[OSError], None], *, task_status: TaskStatus[None]) -> None:
        """Write until cancelled. *on_failure* is told, once, that stdout takes no more."""
        task_status.started()
        told = False
        while True:
            if not self._pending:
                self._idle.set()
                self._wake = anyio.Event()
                await self._wake.wait()
                continue
            batch, self._pending, self._size = self._pending, [], 0
            self._room.set()
            self._room = anyio.Event()
            self._busy = True
            await anyio.to_thread.run_sync(self._write, batch, abandon_on_cancel=True, limiter=self._limiter)
            self._busy = False
            if self._out.failure is not None and not told:
                told = True
                on_failure(self._out.failure)

    async def drained(self) -> None:
        """Wait until everything is written."""
        while self._pending or self._busy:
            self._idle = anyio.Event()
            await self._idle.wait()

    @property
    def is_stuck(self) -> bool:
        """Whether the writer was left in the middle of a write that may never end."""
        return self._busy

    def _write(self, batch: list[tuple[Channel, str, str]]) -> None:
        for channel, lines in itertools.groupby(batch, key=itemgetter(0)):
            if channel == "talk":
                self._err.write_trusted("".join(self._talk(text, style) for _, text, style in lines))
            else:
                (self._out if channel == "stdout" else self._err).write_lines([text for _, text, _ in lines])

    def _talk(self, line: str, style: str) -> str:
        text = _PREFIX + line
        if not self._styled:
            return self._err.fenced(text) + "\n"
        from rich.console import Console  # a tenth of a second: only for people, and not in the event loop
        from rich.text import Text

        console = Console(stderr=True, highlight=False, soft_wrap=True)
        with console.capture() as captured:
            console.print(Text(text, style=style))
        return captured.get()


class Stream:
    """One of our own standard streams. Writes bytes past Python's buffers, which a stuck thread would keep locked."""

    def __init__(self, file: TextIO | None, *, colours: bool) -> None:
        self.failure: OSError | None = None
        self.is_terminal = False
        self._colours = colours
        self._fd: int | None = None
        self._buffer: Any = None
        self.encoding = "utf-8"
        self.above: Callable[[str], bool] | None = None
        """Takes text for the terminal in our place, if a live display is there."""
        self._is_ci = any(os.environ.get(name) for name in _READ_BY_CI)
        if file is None:  # closed before we began: nobody wants to see anything
            return
        file.flush()
        try:
            self._fd = file.fileno()
        except (io.UnsupportedOperation, ValueError):
            self._buffer = file.buffer
            return
        self.is_terminal = file.isatty()
        if self.is_terminal:
            # A terminal that does not speak UTF-8 may read one of its bytes as a control character.
            self.encoding = file.encoding
        # A file is never read as commands, and stays as it is.
        self._is_ci = self._is_ci and not stat.S_ISREG(os.fstat(self._fd).st_mode)

    def write_lines(self, lines: list[str]) -> None:
        """Write whole lines of a job."""
        text = "\n".join(lines)
        if self.is_terminal:
            text = clean(text, colours=self._colours)
        self.write_trusted(self.fenced(text) + "\n")

    def fenced(self, text: str) -> str:
        """Return *text* with no command in it for the CI system that may read this stream."""
        return fence(text) if self._is_ci else text

    def write_trusted(self, text: str) -> None:
        """Write text that may be shown as it is; nothing once the stream has failed."""
        if self.failure is not None or (self.is_terminal and self.above is not None and self.above(text)):
            return
        try:
            self._write(_encoded(text, self.encoding))
        except OSError as exc:
            self.failure = exc

    def size(self) -> tuple[int, int]:
        """Return the columns and lines of the terminal, now."""
        try:
            columns, lines = os.get_terminal_size(self._fd if self._fd is not None else -1)
        except OSError:
            columns, lines = 0, 0
        return columns or 80, lines or 24  # one that was told nothing says 0

    def _write(self, content: bytes) -> None:
        if self._fd is None:
            if self._buffer is not None:
                self._buffer.write(content)
                self._buffer.flush()
            return
        rest = memoryview(content)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # somebody who shares the stream made it non-blocking
                select.select([], [self._fd], [])


def _encoded(text: str, encoding: str) -> bytes:
    if encoding != "utf-8":
        return text.encode(encoding, "replace")
    try:
        return text.encode()
    except UnicodeEncodeError:
        pass
    try:
        return text.encode(errors="surrogateescape")  # bytes that were no text, as they were
    except UnicodeEncodeError:
        return text.encode(errors="replace")
