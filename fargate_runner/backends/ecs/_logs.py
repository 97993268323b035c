"""
CloudWatch's streams, read: a few one by one, many of them a hundred at a time.

A stream that is read alone is read with `GetLogEvents`, whose tokens say exactly where it stands. Where many are
followed, one sweep of `FilterLogEvents` serves a hundred of them; what it shows twice is told by its event ids. A sweep
makes no more calls than one for each hundred streams of a group: who does not fit into them waits for another sweep.
The last lines of many that are over at about the same time are read by one call, too.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

import anyio
import anyio.lowlevel
import attrs

from fargate_runner._errors import BackendError, LogsUnavailable
from fargate_runner._lifecycle import LogLine, LogLineDraft
from fargate_runner.backends.ecs._api import Api, ApiError, Trouble

__all__ = ["LogCadence", "LogReader"]

_STREAMS_PER_CALL: Final = 100
"""What FilterLogEvents takes (CloudWatch Logs API Reference)."""
_CUT: Final = 262_118
"""Bytes after which the awslogs driver begins another event (moby, awslogs driver): such a line goes on."""
_REREAD: Final = 300
"""Lines that may be read again for the sake of one call less."""
_REREAD_AT_MOST: Final = 600
"""The same where a sweep has no call to spare: beyond that, streams rather wait for the next one."""
_REREAD_BEHIND: Final = 10_000
"""The same for streams that have much to catch up: a page."""
_REMEMBERED: Final = 2_000
"""Lines of a stream that are known again when CloudWatch shows them twice, if the overlap is not over before."""
_LONGEST_ABSENCE: Final = 30.0
"""Seconds until a stream that was not there is asked for again."""
_LONG_OVER: Final = 120.0
"""Seconds after which the end of the containers says more than that of the task."""
_LAST_PAGES: Final = 10
_LAST_EVENTS: Final = 20_000
"""Pages and events that one look for the last lines of many may take: what is not told by then is read one by one."""
_LAST_ALONE: Final = 2
"""Streams whose last lines are rather read one by one."""
_SHORTEST_WINDOW: Final = 15.0
_LONGEST_WINDOW: Final = 900.0
"""How far back such a look goes, in seconds: half as far after one that saw too much, a little farther after others."""
_SKEW: Final = 60_000
"""By how many milliseconds a line may seem to be older than its task: a host has a clock of its own."""
_BATCH: Final = 200
"""Lines that are made at a time."""
_TURN: Final = 5
"""Batches after which others get their turn: a page has fifty."""
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_LATER: Final = tuple(timedelta(milliseconds=n) for n in range(1000))
"""What to add to a whole second, by milliseconds: a fifth of the time of asking the calendar for every line."""


@attrs.frozen(kw_only=True)
class LogCadence:
    """How often lines are asked for, in seconds. For tests."""

    period: float = 2.0
    """Between two looks."""
    drain: float = 15.0
    """From the end of a container until its last line is surely there: the driver flushes, CloudWatch takes it in."""
    settled: float = 11.0
    """The same, from when the whole task is known to be over: some lines are that late."""
    overlap: float = 10.0
    """How much later than the next event of its stream one may be taken in without being missed."""
    horizon: float = 120.0
    """How far a silent stream is looked back into."""
    few: int = 10
    """Streams that are read one by one."""
    gather: float = 1.0
    """How long the last lines of one may wait for those of others, if there are many."""
    buffered: int = 10_000
    """Lines kept for a slow reader, until its stream is left out; a twentieth of it if there are many of those."""

    @classmethod
    def quick(cls) -> Self:
        """Return one for a platform that takes no time: a fake one."""
        return cls(period=0.05, drain=0.3, settled=0.2, overlap=2.0)


class _Joined:
    """Makes lines of a stream's events, and puts together what the driver cut."""

    __slots__ = ("_attempt", "_container", "_part_at", "_parts")

    def __init__(self, container: str, attempt: int) -> None:
        self._container = container
        self._attempt = attempt
        self._parts: list[str] = []
        self._part_at = 0

    def batches(self, events: Sequence[Mapping[str, Any]]) -> Generator[list[LogLine]]:
        """
        Yield the lines that *events* complete, a few at a time.

        A page has ten thousand. If all of them were there at once, the garbage collector would look at them again and
        again, which costs as much as making them.
        """
        for start in range(0, len(events), _BATCH):
            yield self.lines(events[start : start + _BATCH])

    def lines(self, events: Iterable[Mapping[str, Any]]) -> list[LogLine]:
        """Return the lines that *events* complete."""
        # The innermost loop of all: whatever is done here is done for every line.
        made: list[Any] = []
        add, draft, done = made.append, LogLineDraft, LogLine
        parts, container, attempt, shortest_cut = self._parts, self._container, self._attempt, _SHORTEST_CUT
        later, second, began = _LATER, _EPOCH, 0
        for event in events:
            text: str = event["message"]
            at: int = event["timestamp"]
            if parts or len(text) >= shortest_cut:
                made += self._long(text, at)
                continue
            if not 0 <= at - began < 1000:
                began = at - at % 1000
                second = datetime.fromtimestamp(began / 1000, UTC)
            line: Any = draft()
            line.text = text.removesuffix("\n") if "\n" in text else text
            line.stream = "stdout"
            line.container = container
            line.at = second + later[at - began]
            line.attempt = attempt
            line.__class__ = done
            add(line)
        return made

    def rest(self) -> list[LogLine]:
        """Return what was cut and never went on."""
        if not self._parts:
            return []
        text = "".join(self._parts)
        self._parts.clear()
        at = datetime.fromtimestamp(self._part_at / 1000, UTC)
        return [LogLine(text=text.removesuffix("\n"), container=self._container, at=at, attempt=self._attempt)]

    def _long(self, text: str, at: int) -> list[LogLine]:
        # All parts of a line bear the same moment. The driver does not cut inside a character, so that a part may be
        # up to three bytes short; then the next one begins with what did not fit.
        before: list[LogLine] = []
        if self._parts:
            room = _CUT - len(self._parts[-1].encode())
            if at != self._part_at or len(text[:1].encode()) <= room:
                before = self.rest()
        self._parts.append(text)
        self._part_at = at
        return before if _CUT - 3 <= len(text.encode()) <= _CUT else before + self.rest()


_SHORTEST_CUT: Final = (_CUT - 3) // 4
"""Characters of the shortest part of a line that was cut."""


class _Cursor:
    """
    Where a reader stands in a stream that is read alone.

    A token stands behind the newest event that it has shown. What CloudWatch takes in later and puts before that is
    never shown behind the token: for that, the newest part is read again now and then. These events have no ids, so
    they are told by how many of the same moment and text there are.
    """

    __slots__ = (
        "_again",
        "_boundary",
        "_first",
        "_floor",
        "_last",
        "_looks_back",
        "_owed",
        "_recent",
        "_settled",
        "joined",
        "look_back_at",
        "new_at",
        "stream",
        "token",
    )

    def __init__(self, stream: str, joined: _Joined) -> None:
        self.stream = stream
        self.joined = joined
        self.token: str | None = None
        self.new_at = float("-inf")
        """When it was last told anything new, in the loop's seconds."""
        self.look_back_at = float("inf")
        self._last = 0
        """The moment of the newest event, in milliseconds."""
        self._floor = 0
        """All that was shown of this moment and later is in the next one."""
        self._recent: dict[tuple[int, int], int] = {}
        """How often an event was shown, by its moment and the hash of its text."""
        self._again: dict[tuple[int, int], int] | None = None
        """The same of what is shown again."""
        self._boundary = 0
        """What is shown again ends there."""
        self._owed: Sequence[Mapping[str, Any]] = ()
        """The last page, until it is in `_recent`."""
        self._looks_back = self._first = False
        self._settled = 0
        """The newest event that the first page of a look back has shown, or one before it: what a later page shows may
        have come long after that, and what belongs before it with it."""

    @property
    def start(self) -> int:
        """Where to begin without a token, in milliseconds."""
        return self._floor

    def begin_behind(self, events: Sequence[Mapping[str, Any]], token: str | None) -> None:
        """Go on behind *events*, before which there may be more of the same moment as the first."""
        self.token = token
        self._last = events[-1]["timestamp"]
        self._floor = events[0]["timestamp"] + 1
        self._owed = events

    def shown(self) -> tuple[int, int, dict[tuple[int, int], int]] | None:
        """
        Return what another reader must know to go on from here, or None if that is not known for sure.

        It is the newest moment, and how often what was shown, of which moment and later.
        """
        self._remember()
        return None if self._floor > self._last else (self._last, self._floor, self._recent)

    def look_back(self) -> None:
        """Read the newest part again. The token is given up, as it is when CloudWatch has: they live for a day."""
        self._remember()
        self.token = None
        self._looks_back = self._first = True
        self._again = {}
        self._boundary = self._settled = self._last

    def has_caught_up(self, overlap: float) -> None:
        """Say that there is no more for now. After a look back, what can still come is younger by the *overlap*."""
        self._remember()
        if self._looks_back:
            self._looks_back, self._again = False, None
            self._forget(self._settled - int(overlap * 1000))

    def new(self, events: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Return what is new of a page."""
        is_first, self._first = self._first, False
        if not events:
            return events
        if is_first:
            self._settled = max(self._settled, events[-1]["timestamp"])
        if self._again is not None and min(event["timestamp"] for event in events) > self._boundary:
            self._again = None  # from here on, everything is new
        if self._again is None:
            self._remember_later(events)
        self._last = max(self._last, events[-1]["timestamp"])
        if self._again is not None:
            events = self._unknown(events, self._again)
        if events:
            self.new_at = anyio.current_time()
        return events

    def _remember_later(self, events: Sequence[Mapping[str, Any]]) -> None:
        # Of a long stream that is read page by page, nobody will ask what was shown before the last page.
        if not (
            len(events) > _REMEMBERED and self._last <= events[-1 - _REMEMBERED]["timestamp"] < events[-1]["timestamp"]
        ):
            self._remember()
        self._owed = events

    def _remember(self) -> None:
        events, self._owed = self._owed, ()
        if not events:
            return
        newest: int = events[-1]["timestamp"]
        recent = self._recent
        for number, event in enumerate(reversed(events)):
            at: int = event["timestamp"]
            if at < self._floor:
                continue
            if number >= _REMEMBERED and at < newest:
                self._forget(at + 1)
                break
            key = at, hash(event["message"])
            recent[key] = recent.get(key, 0) + 1
        if len(recent) > 2 * _REMEMBERED:
            # More than that of a single moment are not worth their memory.
            kept = sorted(at for at, _ in recent)[-_REMEMBERED]
            self._forget(kept if len(recent) < 10 * _REMEMBERED or kept < newest else newest + 1)

    def _unknown(
        self, events: Sequence[Mapping[str, Any]], again: dict[tuple[int, int], int]
    ) -> list[Mapping[str, Any]]:
        recent, unknown = self._recent, []
        for event in events:
            key = event["timestamp"], hash(event["message"])
            if key[0] < self._floor:
                continue
            again[key] = times = again.get(key, 0) + 1
            if times > recent.get(key, 0):
                recent[key] = times
                unknown.append(event)
        return unknown

    def _forget(self, oldest: int) -> None:
        if oldest > self._floor:
            self._floor = oldest
            self._recent = {key: times for key, times in self._recent.items() if key[0] >= oldest}


class _End:
    """What is known of the end of what is followed; `LogReader.run` waits for it."""

    __slots__ = ("_changed", "ask", "at", "error", "returned_at", "scope")

    def __init__(self, ask: Callable[[], Awaitable[float]]) -> None:
        self.ask = ask
        self.at: float | None = None
        """When the containers were first known to be over, in the loop's seconds."""
        self.returned_at = 0.0
        self.error: Exception | None = None
        self.scope = anyio.CancelScope()
        self._changed = anyio.Event()

    async def wait(self) -> None:
        """Wait for it. What goes wrong is for the reader, not for whoever runs this."""
        with self.scope:
            try:
                self.at = await self.ask()
                self.returned_at = anyio.current_time()
            except Exception as exc:  # noqa: BLE001 (raised where the lines are read)
                self.error = exc
            self.tell()

    def tell(self) -> None:
        """Wake the reader."""
        self._changed.set()

    async def news(self, deadline: float) -> None:
        """Wait until there is any, or until *deadline*."""
        with anyio.CancelScope(deadline=deadline):
            await self._changed.wait()
        self._changed = anyio.Event()

    def check(self) -> None:
        """Raise what went wrong."""
        if self.error is not None:
            raise self.error

    def read_until(self, cadence: LogCadence) -> float:
        """Return when the last line has had time to come."""
        return float("inf") if self.at is None else _read_until(cadence, self.at, self.returned_at)


class _Last:
    """The last lines of what is over, as somebody waits for them."""

    __slots__ = ("answer", "attempt", "due", "events", "left", "since", "streams", "tail", "told")

    def __init__(self, streams: Mapping[str, str], tail: int, attempt: int, since: int, due: float) -> None:
        self.streams = streams
        self.tail = tail
        self.attempt = attempt
        self.since = since
        """No line is older, in milliseconds."""
        self.due = due
        self.answer: list[LogLine] | Exception | None = None
        self.told = anyio.Event()
        self.left = False
        self.events: dict[str, deque[Mapping[str, Any]]] = {}

    def __lt__(self, other: _Last) -> bool:
        return self.due < other.due

    def tell(self, answer: list[LogLine] | Exception) -> None:
        self.answer = answer
        self.told.set()

    def look(self) -> None:
        # One more: the first of them may be the end of a line that was cut.
        self.events = {stream: deque(maxlen=self.tail + 1) for stream in self.streams}

    def shown(self, *, since: int) -> list[LogLine] | None:
        """Return the last lines, if they are among what was shown of the time *since* then."""
        found: list[LogLine] = []
        for stream, events in self.events.items():
            joined = _Joined(self.streams[stream], self.attempt)
            lines = joined.lines(events) + joined.rest()
            if len(lines) <= self.tail and not (since <= self.since and len(events) <= self.tail):
                return None
            found += lines[max(0, len(lines) - self.tail) :]
        if len(self.streams) > 1:
            found.sort(key=_at)
        return found[max(0, len(found) - self.tail) :]


class _Tail:
    """Where a reader stands in a stream that is read with others."""

    __slots__ = (
        "absences",
        "absent_until",
        "asked_at",
        "asking",
        "at_most",
        "behind",
        "buffer",
        "cut",
        "end",
        "error",
        "fresh",
        "frontier",
        "group",
        "handed_over",
        "joined",
        "known",
        "left",
        "paused",
        "seen",
        "staged",
        "stream",
        "swept_from",
    )

    def __init__(self, group: str, stream: str, joined: _Joined, end: _End) -> None:
        self.group = group
        self.stream = stream
        self.joined = joined
        self.end = end
        self.buffer: deque[LogLine] = deque()
        self.seen: dict[str, int] = {}
        """Moment by event id, of what may be shown again."""
        self.fresh: dict[str, Mapping[str, Any]] = {}
        """What this sweep has shown first, by event id, as far as it may have come behind something unseen."""
        self.staged: dict[str, Mapping[str, Any]] = {}
        """The same of the sweep before."""
        self.cut = 0
        """What is older was dealt with, in milliseconds."""
        self.frontier = 0
        self.handed_over: dict[tuple[int, int], int] = {}
        """What was shown while it was read alone: how often, by its moment and the hash of its text."""
        self.swept_from = float("-inf")
        """When the last sweep that took it along began."""
        self.known = False
        """The stream was there when it was asked for."""
        self.at_most = _STREAMS_PER_CALL
        """With how many it may be asked for, as one of those that it was asked for with is not there."""
        self.absences = 0
        self.absent_until = float("-inf")
        self.asked_at = float("-inf")
        """When it was asked for last."""
        self.asking = False
        """A sweep that takes it along is under way."""
        self.paused = False
        self.behind = False
        """It was left out of a sweep: what it has not been shown yet may be as old as it likes."""
        self.left = False
        """Its reader has gone."""
        self.error: BackendError | LogsUnavailable | None = None

    @property
    def is_special(self) -> bool:
        """It would cost those that it is asked for with: much to catch up, or perhaps not there."""
        return self.behind or self.at_most < _STREAMS_PER_CALL

    def take_over(self, last: int, floor: int, shown: dict[tuple[int, int], int]) -> None:
        """Go on where somebody else stands."""
        self.frontier, self.cut, self.handed_over = last, floor, shown

    def not_handed_over(self, events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return what was not shown before it was taken over."""
        fresh: list[Mapping[str, Any]] = []
        for event in events:
            key = event["timestamp"], hash(event["message"])
            times = self.handed_over.get(key, 0)
            if not times:
                fresh.append(event)
                continue
            self.seen[event["eventId"]] = event["timestamp"]
            if times > 1:
                self.handed_over[key] = times - 1
            else:
                del self.handed_over[key]
        return fresh


class LogReader:
    """Reads streams for whoever asks; `run` sweeps those that are followed together."""

    def __init__(self, api: Api, *, utcnow: Callable[[], datetime], cadence: LogCadence) -> None:
        self._api = api
        self._utcnow = utcnow
        self._cadence = cadence
        self._followed = 0
        self._tails: list[_Tail] = []
        self._newest: dict[str, int] = {}
        """The newest event that was seen of a log group, in milliseconds: how far CloudWatch has come."""
        self._buffered = 0
        self._wake = anyio.Event()
        self._waited: set[str] = set()
        """The log groups in whose last sweep what costs the others had to wait."""
        self._ends: list[_End] = []
        """Those that nobody waits for yet."""
        self._lasts: list[tuple[float, str, _Last]] = []
        """Whose last lines are still to be read, by when that may be: a heap."""
        self._windows: dict[str, float] = {}
        """How far back their log group is looked at."""

    # ---- reading ---------------------------------------------------------------------------------------------------

    async def read(
        self,
        group: str,
        streams: Mapping[str, str],
        *,
        tail: int | None,
        attempt: int,
        over: tuple[float, float] | None = None,
        created_at: datetime | None = None,
    ) -> AsyncGenerator[list[LogLine]]:
        """
        Yield what is there, a few lines at a time: *streams* are container names by stream.

        *over* is when the containers, and when the whole task, were first known to be over, in the loop's seconds.
        CloudWatch takes lines in with a delay, so a reading soon after that waits until the last one has had its time.
        *created_at* is when the task was created, by AWS's clock.

        :raises LogsUnavailable: the group is gone, or may not be read
        :raises BackendError: AWS could not be asked
        """
        if tail == 0:
            return
        due = float("-inf") if over is None else _read_until(self._cadence, *over)
        if tail is not None and over is not None and created_at is not None:
            since = round(created_at.timestamp() * 1000) - _SKEW
            yield await self._last_in_turn(group, _Last(streams, tail, attempt, since, due))
            return
        await anyio.sleep_until(due)
        if tail is not None:
            yield await self._last(group, streams, tail, attempt)
            return
        for stream, container in streams.items():
            cursor = _Cursor(stream, _Joined(container, attempt))
            more = True
            while more:
                events, more = await self._page(group, cursor)
                for number, lines in enumerate(cursor.joined.batches(events)):
                    if number % _TURN == _TURN - 1:
                        await anyio.lowlevel.checkpoint()
                    yield lines
            yield cursor.joined.rest()

    async def follow(
        self,
        group: str,
        streams: Mapping[str, str],
        *,
        tail: int | None,
        attempt: int,
        started: Callable[[], Awaitable[None]],
        ended: Callable[[], Awaitable[float]],
    ) -> AsyncGenerator[list[LogLine]]:
        """
        Yield what is there and what comes, until *ended* has returned and the last line has had time to come; a few
        lines at a time.

        *started* returns when the containers run: before, there is no stream. *ended* returns when they were first
        known to be over, in the loop's seconds.

        :raises LogsUnavailable: the group is gone, or may not be read
        :raises BackendError: AWS could not be asked
        """
        self._followed += len(streams)
        end = _End(ended)
        try:
            await started()
            self._ends.append(end)
            self._wake.set()
            if self._followed <= self._cadence.few or tail is not None:
                reading = self._follow_alone(group, streams, tail, attempt, end)
            else:
                reading = self._follow_together(group, streams, attempt, end)
            async with aclosing(reading):
                async for lines in reading:
                    yield lines
        finally:
            end.scope.cancel()
            self._followed -= len(streams)

    # ---- one by one ------------------------------------------------------------------------------------------------

    async def _follow_alone(
        self, group: str, streams: Mapping[str, str], tail: int | None, attempt: int, end: _End
    ) -> AsyncGenerator[list[LogLine]]:
        cursors = [_Cursor(stream, _Joined(container, attempt)) for stream, container in streams.items()]
        if tail is not None:
            yield await self._last(group, streams, tail, attempt, cursors)
        while True:
            tails = self._handed_over(group, cursors, end)
            if tails is not None:
                async with aclosing(self._share(tails, end)) as lines_of_all:
                    async for lines in lines_of_all:
                        yield lines
                return
            asked_at = anyio.current_time()
            for cursor in cursors:
                if cursor.look_back_at <= asked_at:
                    cursor.look_back()
                    cursor.look_back_at = float("inf")
            pending = list(cursors)
            while pending:
                cursor = pending.pop(0)
                events, more = await self._page(group, cursor)
                for number, lines in enumerate(cursor.joined.batches(events)):
                    if number % _TURN == _TURN - 1:
                        await anyio.lowlevel.checkpoint()
                    yield lines
                if more:
                    pending.append(cursor)
                elif asked_at - cursor.new_at <= self._cadence.overlap * 1.5:
                    cursor.look_back_at = min(cursor.look_back_at, asked_at + self._cadence.overlap / 2)
            end.check()
            until = end.read_until(self._cadence)
            if asked_at >= until:
                break
            now = anyio.current_time()
            await end.news(max(now, min(now + self._cadence.period, until)))
        for cursor in cursors:
            yield cursor.joined.rest()

    async def _page(self, group: str, cursor: _Cursor) -> tuple[Sequence[Mapping[str, Any]], bool]:
        """Return the next events of a stream, and whether there may be more at once."""
        where: dict[str, Any] = {} if cursor.token is None else {"nextToken": cursor.token}
        if cursor.token is None and cursor.start:
            where["startTime"] = cursor.start
        try:
            reply = await self._api.call(
                "logs.GetLogEvents", logGroupName=group, logStreamName=cursor.stream, startFromHead=True, **where
            )
        except ApiError as exc:
            if _is_no_stream(exc):
                return (), False
            if exc.trouble is Trouble.INVALID and cursor.token is not None:
                cursor.look_back()
                return (), True
            raise _unreadable(group, exc) from exc
        # Empty and short pages are not the end; the token that was sent is (CloudWatch Logs API Reference).
        token = reply.get("nextForwardToken")
        more = token != cursor.token and token is not None
        cursor.token = token or cursor.token
        events = cursor.new(reply.get("events") or ())
        if not more:
            cursor.has_caught_up(self._cadence.overlap)
        return events, more

    async def _last(
        self,
        group: str,
        streams: Mapping[str, str],
        tail: int,
        attempt: int,
        cursors: Sequence[_Cursor] = (),
    ) -> list[LogLine]:
        """Return the last lines of all streams in order of their time; leave *cursors* behind them."""
        found: list[LogLine] = []
        by_stream = {cursor.stream: cursor for cursor in cursors}
        for stream, container in streams.items():
            events, forward = await self._last_of(group, stream, tail, _Joined(container, attempt), found)
            if events and stream in by_stream:
                by_stream[stream].begin_behind(events, forward)
        if len(streams) > 1:
            found.sort(key=_at)
        return found[max(0, len(found) - tail) :]

    async def _last_of(
        self, group: str, stream: str, tail: int, joined: _Joined, found: list[LogLine]
    ) -> tuple[Sequence[Mapping[str, Any]], str | None]:
        """Add the last *tail* lines of a stream to *found*; return the events, and the token of what comes after."""
        events: list[Mapping[str, Any]] = []
        forward: str | None = None
        # One more: the first of them may be the end of a line that was cut.
        where: dict[str, Any] = {"limit": min(10_000, tail + 1)}
        while True:
            try:
                reply = await self._api.call(
                    "logs.GetLogEvents", logGroupName=group, logStreamName=stream, startFromHead=False, **where
                )
            except ApiError as exc:
                if _is_no_stream(exc):
                    return (), None
                raise _unreadable(group, exc) from exc
            forward = forward or reply.get("nextForwardToken")
            events[:0] = reply.get("events") or ()
            token = reply.get("nextBackwardToken")
            done = token is None or token == where.get("nextToken") or tail == 0
            if done or len(events) > tail:
                lines = joined.lines(events) + joined.rest()
                if done or len(lines) > tail:
                    found += lines[max(0, len(lines) - tail) :]
                    return events, forward
            where["nextToken"] = token

    async def _last_in_turn(self, group: str, last: _Last) -> list[LogLine]:
        """Return the last lines of what is over, once they may be read; with those of others if there are many."""
        heapq.heappush(self._lasts, (last.due, group, last))
        self._wake.set()
        try:
            await last.told.wait()
        finally:
            last.left = True
        if isinstance(last.answer, Exception):
            raise last.answer.with_traceback(None)  # others raise it too
        assert last.answer is not None
        return last.answer

    @property
    def _last_due(self) -> float:
        if not self._lasts:
            return float("inf")
        return self._lasts[0][0] + (self._cadence.gather if len(self._lasts) > self._cadence.few else 0.0)

    def _due_lasts(self, now: float) -> list[tuple[str, list[_Last]]]:
        """Return whose last lines may be read by now, by their log group, a call's worth at a time."""
        chunks: list[tuple[str, list[_Last]]] = []
        sizes: dict[str, int] = {}
        open_chunks: dict[str, list[_Last]] = {}
        while self._lasts and self._lasts[0][0] <= now:
            _, group, last = heapq.heappop(self._lasts)
            if last.left:
                continue
            if group not in open_chunks or sizes[group] + len(last.streams) > _STREAMS_PER_CALL:
                open_chunks[group], sizes[group] = [], 0
                chunks.append((group, open_chunks[group]))
            open_chunks[group].append(last)
            sizes[group] += len(last.streams)
        return chunks

    async def _read_last(self, group: str, chunk: Sequence[_Last]) -> None:
        try:
            rest = chunk if len(chunk) <= _LAST_ALONE else await self._last_of_many(group, chunk)
        except Exception as exc:  # noqa: BLE001 (raised where the lines are read)
            if isinstance(exc, ApiError) and _is_no_stream(exc):  # one unknown name refuses the whole call
                async with anyio.create_task_group() as tasks:
                    half = len(chunk) // 2
                    tasks.start_soon(self._read_last, group, chunk[:half])
                    tasks.start_soon(self._read_last, group, chunk[half:])
                return
            rest = ()
            for last in chunk:
                last.tell(_unreadable(group, exc) if isinstance(exc, ApiError) else exc)
        async with anyio.create_task_group() as tasks:
            for last in rest:
                tasks.start_soon(self._last_alone, group, last)

    async def _last_alone(self, group: str, last: _Last) -> None:
        if last.left:
            return
        try:
            last.tell(await self._last(group, last.streams, last.tail, last.attempt))
        except Exception as exc:  # noqa: BLE001 (raised where the lines are read)
            last.tell(exc)

    async def _last_of_many(self, group: str, chunk: Sequence[_Last]) -> Sequence[_Last]:
        """Tell the last lines of those that one look shows; return the others."""
        window = self._windows.get(group, _LONGEST_WINDOW)
        now = round(self._utcnow().timestamp() * 1000)
        since = max(min(last.since for last in chunk), now - round(window * 1000))
        by_stream: dict[str, list[_Last]] = {}
        for last in chunk:
            last.look()
            for stream in last.streams:
                by_stream.setdefault(stream, []).append(last)
        request: dict[str, Any] = {
            "logGroupName": group,
            "logStreamNames": list(by_stream),
            "startTime": max(0, since),
            "limit": 10_000,
        }
        seen, token = 0, None
        for _ in range(_LAST_PAGES):
            reply = await self._api.call("logs.FilterLogEvents", **request)
            events = reply.get("events") or ()
            seen += len(events)
            for event in events:
                name = event["logStreamName"]
                for last in by_stream.get(name, ()):
                    last.events[name].append(event)
            token = reply.get("nextToken")
            if not token or token == request.get("nextToken") or seen >= _LAST_EVENTS:
                break
            request["nextToken"] = token
        if token:  # they are told from the oldest on: what was shown are not the last
            self._windows[group] = max(window / 2, _SHORTEST_WINDOW)
            return chunk
        if seen < _LAST_EVENTS / 4:
            self._windows[group] = min(window * 1.1, _LONGEST_WINDOW)
        rest: list[_Last] = []
        for last in chunk:
            lines = last.shown(since=since)
            if lines is None:
                rest.append(last)
            else:
                last.tell(lines)
        return rest

    # ---- together --------------------------------------------------------------------------------------------------

    def _follow_together(
        self, group: str, streams: Mapping[str, str], attempt: int, end: _End
    ) -> AsyncGenerator[list[LogLine]]:
        return self._share(
            [_Tail(group, stream, _Joined(container, attempt), end) for stream, container in streams.items()], end
        )

    def _handed_over(self, group: str, cursors: Sequence[_Cursor], end: _End) -> list[_Tail] | None:
        """Return those who go on where *cursors* stand, if they are too many by now to be read one by one."""
        if self._followed <= self._cadence.few:
            return None
        tails: list[_Tail] = []
        for cursor in cursors:
            shown = cursor.shown()
            if shown is None:
                return None  # of its newest moment there may be what it never saw: only its token tells that
            tail = _Tail(group, cursor.stream, cursor.joined, end)
            tail.take_over(*shown)
            tails.append(tail)
        return tails

    async def _share(self, tails: Sequence[_Tail], end: _End) -> AsyncGenerator[list[LogLine]]:
        self._tails += tails
        self._wake.set()
        try:
            while True:
                for tail in tails:
                    while tail.buffer:
                        lines = [tail.buffer.popleft() for _ in range(min(_BATCH, len(tail.buffer)))]
                        self._buffered -= len(lines)
                        yield lines
                    if tail.paused:
                        tail.paused = False
                        self._wake.set()
                for tail in tails:
                    if tail.error is not None:
                        raise tail.error.with_traceback(None)  # others who share the sweep raise it too
                end.check()
                until = end.read_until(self._cadence)
                if all(tail.swept_from >= until and not (tail.buffer or tail.staged) for tail in tails):
                    break
                if not any(tail.buffer for tail in tails):
                    await end.news(float("inf"))
            for tail in tails:
                yield tail.joined.rest()
        finally:
            for tail in tails:
                self._buffered -= len(tail.buffer)
                tail.buffer.clear()
                tail.left = True
                self._tails.remove(tail)

    async def run(self) -> None:
        """Sweep what is followed together, wait for ends, read last lines. Run by whoever owns the reader."""
        async with anyio.create_task_group() as tasks:
            due = float("-inf")
            while True:
                self._wake = anyio.Event()
                while self._ends:
                    tasks.start_soon(self._ends.pop().wait)
                now = anyio.current_time()
                if now >= self._last_due:
                    for group, last in self._due_lasts(now):
                        tasks.start_soon(self._read_last, group, last)
                if self._tails and now >= due:
                    due = now + self._cadence.period
                    # A sweep that hangs, or has a long way to go, must not keep the others from theirs.
                    for group in {tail.group for tail in self._tails}:
                        for chunk in self._chunks(group, now):
                            for tail in chunk:
                                tail.asking, tail.asked_at = True, now
                            tasks.start_soon(self._sweep_once, group, chunk, now)
                with anyio.CancelScope(deadline=min(self._last_due, due if self._tails else float("inf"))):
                    await self._wake.wait()

    def _chunks(self, group: str, now: float) -> list[list[_Tail]]:
        """Divide the streams of a group that are asked for now: at most a call for each hundred that are followed."""
        followed = {tail.stream for tail in self._tails if tail.group == group}
        calls = _calls(len(followed)) if self._followed > self._cadence.few else len(followed)
        ready: dict[str, list[_Tail]] = {}
        for tail in self._tails:
            if tail.group == group and not tail.paused and not tail.asking and self._is_due(tail, now):
                ready.setdefault(tail.stream, []).append(tail)
        special = [tails for tails in ready.values() if any(tail.is_special for tail in tails)]
        others = [tails for tails in ready.values() if not any(tail.is_special for tail in tails)]
        apart = self._packed(special, calls=0)
        # Where there are not calls enough, the special ones get one every other time: nobody keeps anybody from theirs.
        spare = calls - _calls(len(others))
        shares = min(len(apart), max(spare, int(group in self._waited)))
        together = self._packed(others, calls=calls - shares)
        if shares < len(apart) and spare <= 0 and not shares:
            self._waited.add(group)
        else:
            self._waited.discard(group)
        return [*_longest_waiting(apart, shares), *_longest_waiting(together, calls - shares)]

    def _packed(self, streams: list[list[_Tail]], *, calls: int) -> list[list[_Tail]]:
        """Divide streams so that few lines are read again, if possible with so many *calls*."""
        # One unknown name refuses a whole call: those that were never there rather do not share one with those that
        # were. Nor does one with much to catch up, of which a sweep takes only a part, with those that want all pages.
        streams.sort(key=_place)
        span = self._cadence.overlap * 1000
        chunks: list[list[_Tail]] = []
        first = (0, False)
        known, oldest, size, again = False, 0, 0, 0.0
        for number, tails in enumerate(streams):
            at_most, behind, was_there, cut = _place(tails)
            kind = at_most, behind
            again += sum(len(tail.seen) for tail in tails) * (cut - oldest) / span
            full = size == at_most or again > (_REREAD_BEHIND if behind else _REREAD_AT_MOST) or kind != first
            better = again > _REREAD or was_there != known
            if full or (better and len(chunks) + _calls(len(streams) - number) <= calls):
                chunks.append([])
                first, known, oldest, size, again = kind, was_there, cut, 0, 0.0
            chunks[-1] += tails
            size += 1
        return chunks

    def _is_due(self, tail: _Tail, now: float) -> bool:
        return tail.absent_until <= now or tail.end.read_until(self._cadence) <= now

    async def _sweep_once(self, group: str, chunk: Sequence[_Tail], begun: float) -> None:
        try:
            await self._sweep(group, chunk, begun)
        finally:
            for tail in chunk:
                tail.asking = False

    async def _sweep(self, group: str, chunk: Sequence[_Tail], begun: float) -> None:
        by_name: dict[str, list[_Tail]] = {}
        for tail in chunk:
            by_name.setdefault(tail.stream, []).append(tail)
            tail.behind = False
            tail.fresh = {}
        # Of a stream that is silent now, nothing older than that is still to come: how far others have come tells.
        floor = self._newest.get(group, 0) - int(self._cadence.horizon * 1000)
        request = {
            "logGroupName": group,
            "logStreamNames": list(by_name),
            "startTime": min(tail.cut for tail in chunk),
        }
        while True:
            try:
                reply = await self._api.call("logs.FilterLogEvents", **request)
            except ApiError as exc:
                if exc.trouble is Trouble.INVALID and "nextToken" in request:
                    return  # it has become too old; the next sweep begins again
                await self._not_swept(group, chunk, begun, exc)
                return
            except BackendError as exc:
                self._fail(chunk, exc)
                return
            self._deliver(group, reply.get("events") or (), by_name, first="nextToken" not in request)
            token = reply.get("nextToken")
            if not token or token == request.get("nextToken") or all(tail.behind or tail.left for tail in chunk):
                break
            request["nextToken"] = token
        for tail in chunk:
            tail.known, tail.absences, tail.at_most = True, 0, _STREAMS_PER_CALL
            self._release(tail, whole="nextToken" not in request and not token)
            self._settle(tail, 0 if tail.behind else floor)
            if not tail.behind:
                tail.swept_from = begun
            tail.end.tell()

    async def _not_swept(self, group: str, chunk: Sequence[_Tail], begun: float, exc: ApiError) -> None:
        if not _is_no_stream(exc):
            self._fail(chunk, _unreadable(group, exc))
            return
        # One unknown name refuses the whole call. It is one of those that were never seen, if there are any.
        doubtful = [tail for tail in chunk if not tail.known] or chunk
        streams = len({tail.stream for tail in doubtful})
        for tail in doubtful:
            tail.known = False
            tail.at_most = max(1, streams // 2)
            if streams == 1:
                # The container has not started, or never will. It is asked for again, ever less often.
                tail.absences += 1
                tail.absent_until = begun + min(self._cadence.period * 2.0 ** min(tail.absences, 16), _LONGEST_ABSENCE)
                tail.swept_from = begun
                tail.end.tell()

    def _fail(self, chunk: Sequence[_Tail], error: BackendError | LogsUnavailable) -> None:
        for tail in chunk:
            tail.error = error
            tail.end.tell()

    def _deliver(
        self, group: str, events: Iterable[Mapping[str, Any]], by_name: Mapping[str, Sequence[_Tail]], *, first: bool
    ) -> None:
        """Hand out a page of a sweep."""
        by_stream: dict[str, list[Mapping[str, Any]]] = {}
        for event in events:
            name = event["logStreamName"]
            if name in by_stream:
                by_stream[name].append(event)
            else:
                by_stream[name] = [event]
        newest = self._newest.get(group, 0)
        for name, shown in by_stream.items():
            newest = max(newest, shown[-1]["timestamp"])
            for tail in by_name.get(name, ()):
                if tail.behind or tail.left:
                    continue
                seen, staged, cut = tail.seen, tail.staged, tail.cut
                fresh = [event for event in shown if event["eventId"] not in seen and event["timestamp"] >= cut]
                if tail.handed_over:
                    fresh = tail.not_handed_over(fresh)
                if first and not staged:
                    self._take(tail, fresh)
                    continue
                # Of what a first page shows, everything older is shown there as well. Until the next one was asked for,
                # more may have come, and some of it belongs where this sweep has passed already: such events wait for
                # the sweep after this one.
                tail.fresh.update((event["eventId"], event) for event in fresh if event["eventId"] not in staged)
                tail.behind = len(tail.fresh) >= self._most()
        self._newest[group] = newest

    def _release(self, tail: _Tail, *, whole: bool) -> None:
        """Hand out what waited for another sweep, with what belongs before it."""
        if not (tail.fresh or tail.staged):
            return
        waiting = sorted([*tail.staged.values(), *tail.fresh.values()], key=_order)
        last = max(map(_order, tail.staged.values()), default=(0, 0, ""))
        ready = len(waiting) if whole else sum(_order(event) <= last for event in waiting)
        tail.staged = {event["eventId"]: event for event in waiting[ready:]}
        tail.fresh = {}
        self._take(tail, waiting[:ready])

    def _take(self, tail: _Tail, fresh: list[Mapping[str, Any]]) -> None:
        if not fresh:
            return
        room = max(0, self._most() - len(tail.buffer))
        if len(fresh) > room:
            del fresh[room:]
            tail.paused = tail.behind = True  # it goes on from here once its reader has caught up
            tail.staged, tail.fresh = {}, {}
        tail.seen.update((event["eventId"], event["timestamp"]) for event in fresh)
        if fresh:
            tail.frontier = max(tail.frontier, fresh[-1]["timestamp"])
        lines = tail.joined.lines(fresh)
        tail.buffer.extend(lines)
        self._buffered += len(lines)
        tail.end.tell()

    def _most(self) -> int:
        most = self._cadence.buffered
        return most if self._buffered < 20 * most else most // 20

    def _settle(self, tail: _Tail, floor: int) -> None:
        """Forget what cannot come again."""
        cut = max(tail.frontier - int(self._cadence.overlap * 1000), floor)
        if len(tail.seen) > 2 * _REMEMBERED:
            cut = max(cut, sorted(tail.seen.values())[-_REMEMBERED])
        if cut > tail.cut:
            tail.cut = cut
            tail.seen = {event: at for event, at in tail.seen.items() if at >= cut}
            tail.handed_over = {key: times for key, times in tail.handed_over.items() if key[0] >= cut}


def _read_until(cadence: LogCadence, over_at: float, ended_at: float) -> float:
    """Return when the last line has had time to come, after the containers' end and after that of the task."""
    return max(over_at + cadence.drain, min(ended_at, over_at + _LONG_OVER) + cadence.settled)


def _order(event: Mapping[str, Any]) -> tuple[int, int, str]:
    return event["timestamp"], event.get("ingestionTime", 0), event["eventId"]


def _calls(streams: int) -> int:
    return -(-streams // _STREAMS_PER_CALL)


def _longest_waiting(chunks: list[list[_Tail]], count: int) -> list[list[_Tail]]:
    if len(chunks) <= count:
        return chunks
    return sorted(chunks, key=lambda chunk: min(tail.asked_at for tail in chunk))[:count]


def _place(tails: Sequence[_Tail]) -> tuple[int, bool, bool, int]:
    return (
        min(tail.at_most for tail in tails),
        any(tail.behind for tail in tails),
        all(tail.known for tail in tails),
        min(tail.cut for tail in tails),
    )


def _at(line: LogLine) -> datetime:
    return line.at or datetime.min.replace(tzinfo=UTC)


def _is_no_stream(exc: ApiError) -> bool:
    # One code for both: "The specified log stream does not exist." and "The specified log group does not exist."
    return exc.code == "ResourceNotFoundException" and "stream" in exc.aws_message


def _unreadable(group: str, exc: ApiError) -> BackendError | LogsUnavailable:
    if exc.code == "ResourceNotFoundException":
        return LogsUnavailable(f"the log group {group!r} does not exist (any more): {exc}")
    if exc.trouble is Trouble.DENIED:
        return LogsUnavailable(f"the log group {group!r} may not be read: {exc}")
    return exc
