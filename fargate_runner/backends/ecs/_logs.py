"""
CloudWatch's streams, read: a few one by one, many of them a hundred at a time.

A stream that is read alone is read with `GetLogEvents`, whose tokens say exactly where it stands. Where many are
followed, one sweep of `FilterLogEvents` serves a hundred of them; what it shows twice is told by its event ids.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final, Self

import anyio
import attrs

from fargate_runner._errors import BackendError, LogsUnavailable
from fargate_runner._lifecycle import LogLine
from fargate_runner.backends.ecs._api import Api, ApiError, Trouble

__all__ = ["LogCadence", "LogReader"]

_STREAMS_PER_CALL: Final = 100
"""What FilterLogEvents takes (CloudWatch Logs API Reference)."""
_CUT: Final = 262_118
"""Bytes after which the awslogs driver begins another event (moby, awslogs driver): such a line goes on."""


@attrs.frozen(kw_only=True)
class LogCadence:
    """How often lines are asked for, in seconds. For tests."""

    period: float = 2.0
    """Between two looks."""
    drain: float = 15.0
    """From the end of a container until its last line is surely there: the driver flushes, CloudWatch takes it in."""
    overlap: float = 10.0
    """How much later than the next event of its stream one may be taken in without being missed."""
    horizon: float = 120.0
    """How far a silent stream is looked back into."""
    few: int = 10
    """Streams that are read one by one."""
    buffered: int = 20_000
    """Lines kept for a slow reader, until its stream is left out."""

    @classmethod
    def quick(cls) -> Self:
        """Return one for a platform that takes no time: a fake one."""
        return cls(period=0.05, drain=0.3, overlap=2.0)


class _Joined:
    """Puts lines together that the driver cut."""

    __slots__ = ("_attempt", "_container", "_parts")

    def __init__(self, container: str, attempt: int) -> None:
        self._container = container
        self._attempt = attempt
        self._parts: list[str] = []

    def line(self, event: Mapping[str, Any]) -> LogLine | None:
        """Return the line that *event* completes."""
        text: str = event["message"]
        if len(text) >= _CUT // 4 and len(text.encode()) == _CUT:
            self._parts.append(text)
            return None
        if self._parts:
            text = "".join([*self._parts, text])
            self._parts.clear()
        return LogLine(
            text=text.removesuffix("\n"),
            container=self._container,
            at=datetime.fromtimestamp(event["timestamp"] / 1000, UTC),
            attempt=self._attempt,
        )

    def rest(self) -> LogLine | None:
        """Return what was cut and never went on."""
        if not self._parts:
            return None
        text = "".join(self._parts)
        self._parts.clear()
        return LogLine(text=text, container=self._container, attempt=self._attempt)


class _Cursor:
    """Where a reader stands in a stream that is read alone."""

    __slots__ = ("joined", "stream", "token")

    def __init__(self, stream: str, joined: _Joined) -> None:
        self.stream = stream
        self.joined = joined
        self.token: str | None = None


class _Tail:
    """Where a reader stands in a stream that is read with others."""

    __slots__ = (
        "absent_until",
        "behind",
        "buffer",
        "cut",
        "error",
        "frontier",
        "group",
        "joined",
        "paused",
        "seen",
        "stream",
        "swept_from",
        "wake",
    )

    def __init__(self, group: str, stream: str, joined: _Joined) -> None:
        self.group = group
        self.stream = stream
        self.joined = joined
        self.buffer: deque[LogLine] = deque()
        self.seen: dict[str, int] = {}
        """Moment by event id, of what may be shown again."""
        self.cut = 0
        """What is older was dealt with, in milliseconds."""
        self.frontier = 0
        self.swept_from = float("-inf")
        """When the last sweep that took it along began."""
        self.absent_until = float("-inf")
        self.paused = False
        self.behind = False
        """It was left out of a sweep: what it has not been shown yet may be as old as it likes."""
        self.error: BackendError | LogsUnavailable | None = None
        self.wake: Callable[[], None] | None = None

    def tell(self) -> None:
        if self.wake is not None:
            self.wake()


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
        self._wake = anyio.Event()

    # ---- reading ---------------------------------------------------------------------------------------------------

    async def read(
        self, group: str, streams: Mapping[str, str], *, tail: int | None, attempt: int, over_at: float | None
    ) -> AsyncGenerator[LogLine]:
        """
        Yield what is there: *streams* are container names by stream.

        *over_at* is when the containers were first known to be over, in the loop's seconds. CloudWatch takes lines in
        with a delay, so a reading soon after that waits until the last one has had its time.

        :raises LogsUnavailable: the group is gone, or may not be read
        :raises BackendError: AWS could not be asked
        """
        if over_at is not None:
            await anyio.sleep_until(over_at + self._cadence.drain)
        if tail is not None:
            for line in await self._last(group, streams, tail, attempt):
                yield line
            return
        for stream, container in streams.items():
            cursor = _Cursor(stream, _Joined(container, attempt))
            more = True
            while more:
                lines, more = await self._page(group, cursor)
                for line in lines:
                    yield line
            if (rest := cursor.joined.rest()) is not None:
                yield rest

    async def follow(
        self,
        group: str,
        streams: Mapping[str, str],
        *,
        tail: int | None,
        attempt: int,
        started: Callable[[], Awaitable[None]],
        ended: Callable[[], Awaitable[float]],
    ) -> AsyncGenerator[LogLine]:
        """
        Yield what is there and what comes, until *ended* has returned and the last line has had time to come.

        *started* returns when the containers run: before, there is no stream. *ended* returns when they were first
        known to be over, in the loop's seconds; it may be cancelled and called again.

        :raises LogsUnavailable: the group is gone, or may not be read
        :raises BackendError: AWS could not be asked
        """
        self._followed += len(streams)
        try:
            await started()
            if self._followed <= self._cadence.few or tail is not None:
                reading = self._follow_alone(group, streams, tail, attempt, ended)
            else:
                reading = self._follow_together(group, streams, attempt, ended)
            async with aclosing(reading):
                async for line in reading:
                    yield line
        finally:
            self._followed -= len(streams)

    # ---- one by one ------------------------------------------------------------------------------------------------

    async def _follow_alone(
        self,
        group: str,
        streams: Mapping[str, str],
        tail: int | None,
        attempt: int,
        ended: Callable[[], Awaitable[float]],
    ) -> AsyncGenerator[LogLine]:
        cursors = [_Cursor(stream, _Joined(container, attempt)) for stream, container in streams.items()]
        if tail is not None:
            for line in await self._last(group, streams, tail, attempt, cursors):
                yield line
        over_at: float | None = None
        while True:
            asked_at = anyio.current_time()
            pending = list(cursors)
            while pending:
                cursor = pending.pop(0)
                lines, more = await self._page(group, cursor)
                for line in lines:
                    yield line
                if more:
                    pending.append(cursor)
            if over_at is not None and asked_at >= over_at + self._cadence.drain:
                break
            over_at = await self._pause(over_at, ended)
        for cursor in cursors:
            if (rest := cursor.joined.rest()) is not None:
                yield rest

    async def _pause(self, over_at: float | None, ended: Callable[[], Awaitable[float]]) -> float | None:
        """Wait until the next look, or until the end is known."""
        now = anyio.current_time()
        if over_at is not None:
            await anyio.sleep_until(max(now, min(now + self._cadence.period, over_at + self._cadence.drain)))
            return over_at
        with anyio.CancelScope(deadline=now + self._cadence.period):
            return await ended()
        return None

    async def _page(self, group: str, cursor: _Cursor) -> tuple[list[LogLine], bool]:
        """Return the next lines of a stream, and whether there may be more at once."""
        where: dict[str, Any] = {} if cursor.token is None else {"nextToken": cursor.token}
        try:
            reply = await self._api.call(
                "logs.GetLogEvents", logGroupName=group, logStreamName=cursor.stream, startFromHead=True, **where
            )
        except ApiError as exc:
            if _is_no_stream(exc):
                return [], False
            raise _unreadable(group, exc) from exc
        # Empty and short pages are not the end; the token that was sent is (CloudWatch Logs API Reference).
        token = reply.get("nextForwardToken")
        more = token != cursor.token and token is not None
        cursor.token = token or cursor.token
        return _lines(cursor.joined, reply.get("events", ())), more

    async def _last(
        self,
        group: str,
        streams: Mapping[str, str],
        tail: int,
        attempt: int,
        cursors: Sequence[_Cursor] = (),
    ) -> list[LogLine]:
        """Return the last lines of all streams in order of their time; leave *cursors* behind them."""
        if tail == 0 and not cursors:
            return []
        found: list[LogLine] = []
        by_stream = {cursor.stream: cursor for cursor in cursors}
        for stream, container in streams.items():
            events, forward = await self._last_events(group, stream, tail)
            if stream in by_stream:
                by_stream[stream].token = forward
            joined = _Joined(container, attempt)
            found += _lines(joined, events)
            if (rest := joined.rest()) is not None:
                found.append(rest)
        if len(streams) > 1:
            found.sort(key=_at)
        return found[len(found) - min(tail, len(found)) :]

    async def _last_events(self, group: str, stream: str, tail: int) -> tuple[list[Mapping[str, Any]], str | None]:
        events: list[Mapping[str, Any]] = []
        forward: str | None = None
        where: dict[str, Any] = {"limit": min(10_000, max(tail, 1))}
        while True:
            try:
                reply = await self._api.call(
                    "logs.GetLogEvents", logGroupName=group, logStreamName=stream, startFromHead=False, **where
                )
            except ApiError as exc:
                if _is_no_stream(exc):
                    return [], None
                raise _unreadable(group, exc) from exc
            forward = forward or reply.get("nextForwardToken")
            events[:0] = reply.get("events", ())
            token = reply.get("nextBackwardToken")
            if len(events) >= tail or token is None or token == where.get("nextToken"):
                return events, forward
            where["nextToken"] = token

    # ---- together --------------------------------------------------------------------------------------------------

    async def _follow_together(
        self, group: str, streams: Mapping[str, str], attempt: int, ended: Callable[[], Awaitable[float]]
    ) -> AsyncGenerator[LogLine]:
        tails = [_Tail(group, stream, _Joined(container, attempt)) for stream, container in streams.items()]
        self._tails += tails
        self._wake.set()
        over_at: float | None = None
        try:
            while True:
                for tail in tails:
                    while tail.buffer:
                        yield tail.buffer.popleft()
                    if tail.paused:
                        tail.paused = False
                        self._wake.set()
                for tail in tails:
                    if tail.error is not None:
                        raise tail.error
                if over_at is not None and all(tail.swept_from >= over_at + self._cadence.drain for tail in tails):
                    break
                over_at = await self._news(tails, over_at, ended)
            for tail in tails:
                if (rest := tail.joined.rest()) is not None:
                    yield rest
        finally:
            for tail in tails:
                self._tails.remove(tail)

    async def _news(
        self, tails: Sequence[_Tail], over_at: float | None, ended: Callable[[], Awaitable[float]]
    ) -> float | None:
        """Wait until one of *tails* has news, or the end is known."""
        if any(tail.buffer or tail.error for tail in tails):
            return over_at
        with anyio.CancelScope() as scope:
            for tail in tails:
                tail.wake = scope.cancel
            try:
                if over_at is None:
                    over_at = await ended()
                else:
                    await anyio.sleep_forever()
            finally:
                for tail in tails:
                    tail.wake = None
        return over_at

    async def run(self) -> None:
        """Sweep the streams that are followed together, for ever. Run by whoever owns the reader."""
        while True:
            if not any(not tail.paused for tail in self._tails):
                self._wake = anyio.Event()
                await self._wake.wait()
            begun = anyio.current_time()
            for group in {tail.group for tail in self._tails}:
                for chunk in self._chunks(group, begun):
                    await self._sweep(group, chunk, begun)
            await anyio.sleep_until(max(begun + self._cadence.period, anyio.current_time()))

    def _chunks(self, group: str, now: float) -> Iterable[list[_Tail]]:
        """Divide the streams of a group so that those of one call stand at about the same place."""
        horizon = int(self._cadence.horizon * 1000)
        open_tails: list[_Tail] = []
        for tail in self._tails:
            if tail.group != group or tail.paused:
                continue
            if tail.absent_until > now:
                tail.swept_from = now  # it had nothing to tell a moment ago
                tail.tell()
                continue
            # Of a stream that was silent for so long, nothing older is still to come.
            if tail.swept_from > float("-inf") and not tail.behind:
                tail.cut = max(tail.cut, self._newest.get(group, 0) - horizon)
            open_tails.append(tail)
        open_tails.sort(key=_cut)
        chunk: list[_Tail] = []
        for tail in open_tails:
            if len(chunk) == _STREAMS_PER_CALL or (chunk and tail.cut - chunk[0].cut > 2 * horizon and chunk[0].cut):
                yield chunk
                chunk = []
            chunk.append(tail)
        if chunk:
            yield chunk

    async def _sweep(self, group: str, chunk: Sequence[_Tail], begun: float) -> None:
        by_name: dict[str, list[_Tail]] = {}
        for tail in chunk:
            by_name.setdefault(tail.stream, []).append(tail)
        names = list(by_name)
        start = min(tail.cut for tail in chunk)
        for tail in chunk:
            tail.behind = False
        where: dict[str, Any] = {}
        before: str | None = None
        while True:
            try:
                reply = await self._api.call(
                    "logs.FilterLogEvents", logGroupName=group, logStreamNames=names, startTime=start, **where
                )
            except ApiError as exc:
                await self._not_swept(group, chunk, begun, exc)
                return
            except BackendError as exc:
                self._fail(chunk, exc)
                return
            events = reply.get("events", ())
            self._deliver(group, events, by_name)
            token = reply.get("nextToken")
            if not token or (token == before and not events):
                break
            where, before = {"nextToken": token}, token
        for tail in chunk:
            if not tail.behind:
                self._settle(tail)
                tail.swept_from = begun
            tail.tell()

    async def _not_swept(self, group: str, chunk: Sequence[_Tail], begun: float, exc: ApiError) -> None:
        if _is_no_stream(exc):
            if len(chunk) == 1:
                # The container has not started, or never will. It is asked for again, less often.
                (tail,) = chunk
                tail.absent_until = begun + 2.5 * self._cadence.period
                tail.swept_from = begun
                tail.tell()
                return
            # One unknown name refuses the whole call.
            await self._sweep(group, chunk[: len(chunk) // 2], begun)
            await self._sweep(group, chunk[len(chunk) // 2 :], begun)
            return
        self._fail(chunk, _unreadable(group, exc))

    def _fail(self, chunk: Sequence[_Tail], error: BackendError | LogsUnavailable) -> None:
        for tail in chunk:
            tail.error = error
            tail.tell()

    def _deliver(self, group: str, events: Iterable[Mapping[str, Any]], by_name: Mapping[str, Sequence[_Tail]]) -> None:
        newest = self._newest.get(group, 0)
        most = self._cadence.buffered
        for event in events:
            at: int = event["timestamp"]
            newest = max(newest, at)
            for tail in by_name.get(event["logStreamName"], ()):
                if tail.behind or at < tail.cut or event["eventId"] in tail.seen:
                    continue
                if len(tail.buffer) >= most:
                    tail.paused = tail.behind = True  # it goes on from here once its reader has caught up
                    self._settle(tail)
                    tail.tell()
                    continue
                tail.seen[event["eventId"]] = at
                tail.frontier = max(tail.frontier, at)
                if (line := tail.joined.line(event)) is not None:
                    tail.buffer.append(line)
        self._newest[group] = newest

    def _settle(self, tail: _Tail) -> None:
        """Forget what cannot come again."""
        cut = tail.frontier - int(self._cadence.overlap * 1000)
        if cut <= tail.cut:
            return
        tail.cut = cut
        tail.seen = {event: at for event, at in tail.seen.items() if at >= cut}


def _lines(joined: _Joined, events: Iterable[Mapping[str, Any]]) -> list[LogLine]:
    return [line for event in events if (line := joined.line(event)) is not None]


def _cut(tail: _Tail) -> int:
    return tail.cut


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
