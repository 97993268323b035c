"""
Virtual time: an hour of waiting costs a millisecond.

An event loop whose clock stands still while anything can run, and jumps to the next timer when nothing can. Only for
code without real waiting: a process, a socket or a worker thread takes real time, of which this loop knows nothing.

::

    anyio.run(main, backend_options={"loop_factory": VirtualClock().loop})
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

__all__ = ["VirtualClock"]

_START = datetime(2026, 1, 1, tzinfo=UTC)


class VirtualClock:
    """A clock that moves only when everybody waits: ``loop`` is a loop factory, ``utcnow`` tells the virtual time."""

    def __init__(self, start: datetime = _START) -> None:
        self._start = start
        self._now = 0.0

    def time(self) -> float:
        """Return the seconds since the clock was made."""
        return self._now

    def utcnow(self) -> datetime:
        """Return the virtual moment, with its time zone."""
        return self._start + timedelta(seconds=self._now)

    def loop(self) -> asyncio.AbstractEventLoop:
        """Make an event loop that lives by this clock."""
        return _VirtualLoop(self)

    def advance(self, seconds: float) -> None:
        """Move on. For the loop; tests wait instead."""
        self._now += seconds


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        super().__init__(_JumpingSelector(clock))
        # asyncio runs what is due within its clock's resolution. Beyond half a virtual year a float has no nanoseconds,
        # and a timer that is due would never be run.
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._clock.time()


class _JumpingSelector(selectors.DefaultSelector):
    """Instead of sleeping until the next timer, moves the clock there."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return _select(super(), timeout)
        ready = _select(super(), 0)
        if not ready:
            self._clock.advance(timeout)
        return ready

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return super().get_map()


def _select(selector: Any, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
    return selector.select(timeout)  # type: ignore[no-any-return]
