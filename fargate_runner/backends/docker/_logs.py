"""
Read what containers wrote, every line once and in order, from an engine that loses lines.

The engine ends a live follow silently when it rotates a log, or leaves the rest of the old file out (moby #23913,
#37646), and ``docker logs -f`` with it. So a container's log is read in *passes*, and what was seen of each stream is
kept as a place: the newest time stamp and how many frames bore it. Each pass may repeat what is before that place.

- A log that cannot rotate is followed. At the end of a follow we wait for the container's own end, then look at the
  tail of what the engine keeps: it has to overlap with what was followed, or everything since is read again.
- A log that may rotate, or whose follow is not to be trusted for another reason, is never followed. It is read in
  snapshots, which the engine takes under a lock, again and again until one that began after the container's end.
  Its lines come up to a second later, and none is lost that the engine still held.

`Frames` and `Lines` are pure: bytes in, lines out. Everything that waits is below them.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import struct
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, nullcontext
from datetime import UTC, datetime
from typing import Any, Final, Literal, Self
from urllib.parse import quote

import aiohttp
import anyio
import attrs

from fargate_runner._errors import BackendError, BackendUnavailable, LogsUnavailable
from fargate_runner._lifecycle import LogLine

__all__ = ["Frames", "Lines", "Merged", "read_container"]

_PATIENCE: Final = 60.0
"""Seconds that an engine may give no answer before reading ends with an error."""
_WORD_TRIES: Final = 3
"""How often the engine may say that it cannot read a log, with nothing new in between, before it is believed."""
_PAUSE_MIN: Final = 0.05
_PAUSE_MAX: Final = 1.0
_SNAPSHOT_PAUSE_MIN: Final = 0.25
_SNAPSHOT_PAUSE_MAX: Final = 10.0
_SNAPSHOT_SHARE: Final = 3.0
"""Pause between two snapshots, in durations of one: the engine reads a log from its start, which costs it work."""
_WINDOW_MIN: Final = 256
_WINDOW_MAX: Final = 100_000
"""Frames at the tail of a log that are asked for before everything since the last seen one is."""
_SKEW: Final = 5
"""Seconds by which frames of two streams may be stored in another order than they were stamped."""
_BUFFER: Final = 2**17
"""Bytes that are read ahead of a slow reader, at least; a transport may add its own 256 KiB."""
_MERGED_LINES: Final = 512
_MERGED_CHARACTERS: Final = 2**20
_STAMP_SIZE: Final = len("2026-11-22T21:40:58.511392666Z")
_Z: Final = ord("Z")
_PART_SIZE: Final = 16_384
"""Bytes of a long line in each of its parts but the last."""
_HEADER: Final = struct.Struct(">II")
_STREAMS: Final = frozenset({0x01000000, 0x02000000, 0x03000000})
"""stdout, stderr, and the engine's own errors."""
_NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=30)
_SHORT_TIMEOUT: Final = aiohttp.ClientTimeout(total=30)


# Building the value takes more time than all the rest that is done for a line, and half of that is what makes it
# frozen. Its slots are filled here as its own __init__ fills them; a test compares the two.
_new_line: Final = LogLine.__new__
_set_text, _set_stream, _set_container, _set_at, _set_attempt = (
    vars(LogLine)[name].__set__ for name in ("text", "stream", "container", "at", "attempt")
)


class Frames:
    """Cut the engine's byte stream into frames: 8 bytes of header (stream, 3 zeros, size), then the payload."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = bytearray()

    @property
    def pending(self) -> int:
        """How many bytes of an unfinished frame there are: not zero at the end of a stream that was cut."""
        return len(self._rest)

    def feed(self, received: bytes) -> list[tuple[int, bytes]]:
        """
        Return the frames that are complete now, as (stream, payload).

        :raises ValueError: these bytes are no frames, as those of a container with a terminal
        """
        if self._rest:
            self._rest += received
            # A frame of many megabytes comes in many pieces: look again only once it is whole.
            if len(self._rest) < 8 or len(self._rest) < 8 + int.from_bytes(self._rest[4:8]):
                return []
            received = bytes(self._rest)
            self._rest.clear()
        frames: list[tuple[int, bytes]] = []
        append = frames.append
        unpack = _HEADER.unpack_from
        start, size = 0, len(received)
        while (body := start + 8) <= size:
            stream, length = unpack(received, start)
            if stream not in _STREAMS:
                raise ValueError(f"{received[start:body]!r} is not the header of a frame")
            end = body + length
            if end > size:
                break
            append((stream >> 24, received[body:end]))
            start = end
        if start < size:
            self._rest += received[start:]
        return frames


class EngineWord(Exception):
    """The engine says, in the stream of frames or instead of one, that it cannot read the log."""


class _Cut(Exception):
    """The connection ended before the answer did."""


class Uncovered(Exception):
    """The tail of a log does not reach back to what was seen."""


class _WholeSeconds(Exception):
    """Frames are stamped with whole seconds, as Podman does; its follow drops lines under load."""


@attrs.define(eq=False)
class _Stream:
    """What was seen of one stream of a container."""

    name: Literal["stdout", "stderr"]
    stamp: bytes = b""
    """Of its newest frame."""
    count: float = 0
    """How many of its frames bear that stamp."""
    total: int = 0
    """How many frames were taken in all."""
    began: bytes = b""
    """The stamp of the first part of an unfinished line."""
    parts: list[bytes] = attrs.field(factory=list)
    repeats: bool = False
    """Whether the pass under way may still send what was seen."""
    older: bool = False
    """Whether the pass has sent a frame from before ``stamp``."""
    met: int = 0
    """Frames of the pass that were seen before: those at ``stamp``, or all if the pass counts."""


@attrs.define(eq=False)
class Lines:
    """
    Put frames together to whole lines, and leave out those that were taken before.

    A frame is a time stamp, a space and what was written. The engine cuts a line every 16 KiB and repeats the stamp
    on each part; a part that does not end in a newline is not the last.
    """

    container: str = "main"
    attempt: int = 1
    taken: int = 0
    """How many frames were taken."""
    ordered: bool = True
    """Whether stamps never ran backwards within a stream. They do when the clock of the machine is set."""
    precise: bool = True
    """Whether stamps have a fraction of a second."""
    lost: bool = False
    """Whether the engine threw frames away before they were read."""
    unmarked: bool = False
    """Whether the last part of a line has no newline either, as those of the engine's ``local`` driver."""
    trouble: Exception | None = attrs.field(default=None, init=False)
    """Why the pass under way cannot go on. What was taken before it is returned first."""
    _out: _Stream = attrs.field(factory=lambda: _Stream("stdout"), init=False)
    _err: _Stream = attrs.field(factory=lambda: _Stream("stderr"), init=False)
    _newest: _Stream | None = attrs.field(default=None, init=False)
    """The stream of the newest frame."""
    _kind: Literal["since", "tail", "whole"] = attrs.field(default="since", init=False)
    _first: bool = attrs.field(default=False, init=False)

    def begin(self, kind: Literal["since", "tail", "whole"]) -> None:
        """
        Say that a pass begins, which may send again what was taken.

        A "since" pass begins at the time that `since` gave. A "tail" begins anywhere, and has to show that this is
        before the end of what was taken. In a "whole" pass frames are known by their number, not by their stamp.
        """
        self._kind, self._first, self.trouble = kind, True, None
        for stream in (self._out, self._err):
            stream.repeats, stream.older, stream.met = self._newest is not None, False, 0

    def end(self) -> None:
        """Say that a pass is through: what it did not send, the engine does not have."""
        newest = self._newest
        if newest is not None and newest.repeats:
            seen = newest.total if self._kind == "whole" else newest.count
            if self._kind == "tail" and not newest.met:
                raise Uncovered
            self.lost = self.lost or (newest.met < seen and self.ordered)

    def since(self) -> str:
        """Return from when on the engine has to be asked, as seconds.nanoseconds; "" is from the beginning."""
        if self._newest is None:
            return ""
        seconds, nanoseconds = _epoch(self._newest.stamp)
        floor = (seconds - _SKEW, nanoseconds)
        seconds, nanoseconds = max(
            floor, min(_epoch(stream.stamp) if stream.stamp else floor for stream in (self._out, self._err))
        )
        return f"{seconds}.{nanoseconds:09d}"

    def start_here(self) -> bool:
        """
        Make what was taken, the tail of a log, the beginning of all reading, if it can be.

        It cannot where it began inside of an unfinished line, or among the frames that bear the newest stamp.
        """
        for stream in (self._out, self._err):
            if stream.total and (stream.count == stream.total or len(stream.parts) == stream.total):
                return False
        for stream in (self._out, self._err):
            if not stream.total and self._newest is not None:
                # What it wrote is before this tail; frames stored later have a later stamp.
                stream.stamp, stream.count = self._newest.stamp, math.inf
        return True

    def take(self, frames: Iterable[tuple[int, bytes]]) -> list[LogLine]:
        """
        Return the lines that these frames complete.

        Stops at ``trouble``: an error that the engine reports in between, a tail that does not reach back far enough.
        """
        try:
            return self._take(frames)
        finally:
            self.taken = self._out.total + self._err.total

    def _take(self, frames: Iterable[tuple[int, bytes]]) -> list[LogLine]:
        lines: list[LogLine] = []
        append = lines.append
        container, attempt = self.container, self.attempt
        streams = {1: self._out, 2: self._err}
        parse = datetime.fromisoformat
        at_stamp, at = b"", None
        for fd, payload in frames:
            stream = streams.get(fd)
            if stream is None:
                self.trouble = EngineWord(payload.decode("utf-8", "replace").strip())
                break
            stamp, _, text = payload.partition(b" ")
            if len(stamp) != _STAMP_SIZE or stamp[-1] != _Z:
                self.precise = self.precise and b"." in stamp
                stamp = _normal(stamp)
            if stream.repeats:
                if self._seen(stream, stamp):
                    continue
                if self.trouble:
                    break
            if stamp == stream.stamp:
                stream.count += 1
            else:
                if stamp < stream.stamp:
                    self.ordered = False
                stream.stamp = stamp
                stream.count = 1
            stream.total += 1
            self._newest = stream
            if self.unmarked and stream.parts and stamp != stream.began:
                # All parts of a line bear one stamp: this frame is of another.
                append(self._line(stream))
            if text[-1:] != b"\n":
                stream.began = stream.began if stream.parts else stamp
                stream.parts.append(text)
                if self.unmarked and len(text) < _PART_SIZE:
                    append(self._line(stream))
                continue
            if stream.parts:
                stamp = stream.began
                text = b"".join((*stream.parts, text))
                stream.parts.clear()
            if stamp != at_stamp:
                at_stamp, at = stamp, parse(stamp.decode())
            line = _new_line(LogLine)
            _set_text(line, (text[:-2] if text[-2:] == b"\r\n" else text[:-1]).decode("utf-8", "replace"))
            _set_stream(line, stream.name)
            _set_container(line, container)
            _set_at(line, at)
            _set_attempt(line, attempt)
            append(line)
        return lines

    def finish(self) -> list[LogLine]:
        """Return the last line of each stream, if it had no line end."""
        return [self._line(stream) for stream in (self._out, self._err) if stream.parts]

    def _line(self, stream: _Stream) -> LogLine:
        """Make a line of the parts that there are."""
        text, stream.parts = b"".join(stream.parts), []
        return LogLine(
            text=text.decode("utf-8", "replace"),
            stream=stream.name,
            container=self.container,
            at=datetime.fromisoformat(stream.began.decode()),
            attempt=self.attempt,
        )

    @property
    def unfinished(self) -> bool:
        """Whether a line was begun whose end has not come."""
        return bool(self._out.parts or self._err.parts)

    def _seen(self, stream: _Stream, stamp: bytes) -> bool:
        """Say whether a frame was taken before, in a pass that may send it again."""
        if self._kind == "whole":
            stream.repeats = stream.met < stream.total
            stream.met += stream.repeats
            return stream.repeats
        if self._first and self._kind == "tail" and stamp >= stream.stamp:
            self.trouble = Uncovered()
            return False
        self._first = False
        if stamp < stream.stamp:
            stream.older = True
            return True
        if stamp == stream.stamp:
            if self._kind == "tail" and not stream.older:
                # The tail may begin among the frames of this stamp: they cannot be counted.
                self.trouble = Uncovered()
                return False
            if stream.met < stream.count:
                stream.met += 1
                return True
        elif stream is self._newest and stream.met < stream.count:
            self.lost = self.lost or self.ordered
        stream.repeats = False
        return False


def _normal(stamp: bytes) -> bytes:
    """Return a time stamp of any length and zone in the engine's own form, whose order is that of time."""
    try:
        utc = datetime.fromisoformat(stamp.decode()).astimezone(UTC)
    except ValueError:
        raise ValueError(f"{stamp[:60]!r} is not a time stamp") from None
    fraction = re.search(rb"\.([0-9]{1,9})", stamp)
    digits = fraction[1].ljust(9, b"0") if fraction else b"000000000"
    return utc.strftime("%Y-%m-%dT%H:%M:%S.").encode() + digits + b"Z"


def _epoch(stamp: bytes) -> tuple[int, int]:
    seconds = datetime.fromisoformat(stamp[:19].decode() + "+00:00")
    return int(seconds.timestamp()), int(stamp[20:29])


async def read_container(
    session: aiohttp.ClientSession,
    base_url: str,
    container_id: str,
    *,
    container: str,
    attempt: int,
    follow: bool,
    tail: int | None,
    ended: Callable[[], Awaitable[None]],
) -> AsyncGenerator[LogLine]:
    """
    Yield the lines of one container, from its first or the last *tail* ones on, until its end if *follow*.

    *session* speaks to the engine at *base_url* (``http://localhost`` or ``http://localhost/v1.41``). *ended* returns
    once the container is over, and at once if it is; it is called again and again, and cancelled. Close the generator
    when leaving it early.

    :raises LogsUnavailable: the engine no longer has them, or never kept them; after all lines that there were
    :raises BackendUnavailable: the engine stopped answering
    :raises BackendError: the engine answered with nonsense
    """
    if tail is not None and tail < 0:
        raise ValueError(f"tail={tail}: expected 0 or more")
    reader = _Reader(session, base_url, container_id, ended, Lines(container=container, attempt=attempt))
    async with aclosing(reader.read(follow=follow, tail=tail)) as batches:
        async for batch in batches:
            for line in batch:
                yield line


class _Reader:
    """The passes over the log of one container, and what was seen so far."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        base_url: str,
        container_id: str,
        ended: Callable[[], Awaitable[None]],
        lines: Lines,
    ) -> None:
        self._session = session
        self._url = f"{base_url.rstrip('/')}/containers/{quote(container_id, safe='')}"
        self._id = container_id
        self._ended = ended
        self._lines = lines
        self._window = _WINDOW_MIN
        self._countable = False
        """Whether the whole log can be read again and frames left out by their number."""
        self._failing_since: float | None = None
        self._words = 0
        self._taken_at_word = -1

    async def read(self, *, follow: bool, tail: int | None) -> AsyncGenerator[list[LogLine]]:
        """Yield batches of lines."""
        state = await self._inspect()
        self._countable = state.may_follow and tail is None
        self._lines.unmarked = state.unmarked
        if tail is not None:
            yield await self._read_tail(tail, follow=follow)
        elif not follow:
            async with aclosing(self._until_through()) as batches:
                async for batch in batches:
                    yield batch
        if not follow:
            # What is unfinished in a live container may be the first 16 KiB of a line.
            if self._lines.unfinished and not (state.running and (await self._inspect()).running):
                yield self._lines.finish()
            return
        over = False
        if state.may_follow:
            async with aclosing(self._follow()) as batches:
                async for batch in batches:
                    yield batch
            over = self._lines.precise
        async with aclosing(self._snapshots(over=over)) as batches:
            async for batch in batches:
                yield batch
        yield self._lines.finish()
        if self._lines.lost:
            raise LogsUnavailable(
                f"the engine dropped lines of container {self._lines.container!r} ({self._id[:12]}) before they were "
                "read; create it without log rotation (LogConfig json-file with neither max-size nor max-file)"
            )

    async def _follow(self) -> AsyncGenerator[list[LogLine]]:
        """Follow a log that cannot rotate until the container is over, or the follow turns out not to be reliable."""
        pause = _PAUSE_MIN
        lines, tail = self._lines, None
        while True:
            taken = lines.taken
            try:
                if tail is None:
                    answer = self._pass(follow=True, since=self._begin())
                else:
                    lines.begin("tail")
                    answer = self._pass(follow=True, tail=tail)
                async with aclosing(answer) as batches:
                    async for batch in batches:
                        yield batch
            except _WholeSeconds:
                lines.precise = False
                return
            except Uncovered:
                tail = None
                continue
            except (_Cut, EngineWord) as exc:
                self._failed(exc)
            if lines.taken > taken:
                pause = _PAUSE_MIN
            # An engine also ends the follow of a container that has not started, and of all when it is restarted. One
            # that is over may have to wait for the rest of its job, so taking up a follow has to be cheap.
            # The end of a follow and that of the container come in either order, some milliseconds apart.
            tail = _WINDOW_MIN if lines.taken and lines.ordered else None
            if await self._over_within(pause):
                return
            pause = min(2 * pause, _PAUSE_MAX)

    async def _snapshots(self, *, over: bool) -> AsyncGenerator[list[LogLine]]:
        """Read what the engine keeps, again and again, for the last time after the container is over."""
        pause = 0.0
        while True:
            over = over or await self._over_within(pause)
            begun = anyio.current_time()
            async with aclosing(self._until_through()) as batches:
                async for batch in batches:
                    yield batch
            if over:
                return
            spent = anyio.current_time() - begun
            pause = min(max(_SNAPSHOT_SHARE * spent, _SNAPSHOT_PAUSE_MIN), _SNAPSHOT_PAUSE_MAX)

    async def _until_through(self) -> AsyncGenerator[list[LogLine]]:
        """Yield all that the engine has now and that was not taken before; try again where a pass is cut."""
        pause = _PAUSE_MIN
        while True:
            try:
                async with aclosing(self._snapshot()) as batches:
                    async for batch in batches:
                        yield batch
                return
            except (_Cut, EngineWord) as exc:
                self._failed(exc)
            await anyio.sleep(pause)
            pause = min(2 * pause, _PAUSE_MAX)

    async def _snapshot(self) -> AsyncGenerator[list[LogLine]]:
        lines = self._lines
        taken = lines.taken
        # The end of a log is cheap to read; for anything else the engine goes through all of it.
        if taken and lines.precise and lines.ordered and self._window <= _WINDOW_MAX:
            try:
                lines.begin("tail")
                async with aclosing(self._pass(tail=self._window)) as batches:
                    async for batch in batches:
                        yield batch
                lines.end()
                self._expect(lines.taken - taken)
                return
            except Uncovered:
                pass
        async with aclosing(self._pass(since=self._begin())) as batches:
            async for batch in batches:
                yield batch
        lines.end()
        self._expect(lines.taken - taken)

    def _begin(self) -> str:
        """Begin a pass over all that may be new, and return from when on to ask for it."""
        whole = self._countable and not self._lines.ordered
        self._lines.begin("whole" if whole else "since")
        return "" if whole or not self._lines.precise else self._lines.since()

    def _expect(self, taken: int) -> None:
        self._window = max(_WINDOW_MIN, 2 * taken)

    async def _read_tail(self, wanted: int, *, follow: bool) -> list[LogLine]:
        """Return the last *wanted* lines, and take up reading behind them."""
        if not wanted and not follow:
            return []
        frames = wanted + 2
        while True:
            lines = attrs.evolve(self._lines)
            self._lines, found = lines, _Tail(wanted)
            try:
                async with aclosing(self._pass(tail=frames)) as batches:
                    async for batch in batches:
                        found.add(batch)
            except (_Cut, EngineWord) as exc:
                self._failed(exc)
                await anyio.sleep(_PAUSE_MIN)
                continue
            whole = lines.taken < frames
            if not follow and lines.unfinished and not (await self._inspect()).running:
                found.add(lines.finish())
            if whole or (found.enough and (not follow or lines.start_here())):
                return list(found.lines)
            # Long lines are many frames, and the tail may have begun inside of one.
            frames *= 4

    async def _over_within(self, seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            try:
                await self._ended()
                return True
            except BackendError as exc:
                self._failed(_Cut(str(exc)))
            await anyio.sleep_forever()
        return False

    async def _pass(
        self, *, follow: bool = False, since: str = "", tail: int | None = None
    ) -> AsyncGenerator[list[LogLine]]:
        """
        Ask the engine once, and yield what is new.

        :raises _Cut: the answer is not whole, or there was none; never for a follow that just ends
        :raises EngineWord: the engine says that it cannot
        """
        lines, frames = self._lines, Frames()
        query = {"stdout": "1", "stderr": "1", "timestamps": "1", "follow": "1" if follow else "0"}
        if since:
            query["since"] = since
        if tail is not None:
            query["tail"] = str(tail)
        async with self._following() if follow else nullcontext(self._session) as session:
            try:
                async with session.get(
                    f"{self._url}/logs", params=query, timeout=_NO_TIMEOUT, read_bufsize=_BUFFER
                ) as answer:
                    await self._check(answer)
                    receive = answer.content.readany
                    while received := await receive():
                        cut = frames.feed(received)
                        if follow and cut and b"." not in cut[0][1][:_STAMP_SIZE]:
                            raise _WholeSeconds
                        if batch := lines.take(cut):
                            yield batch
                        if lines.trouble:
                            raise lines.trouble
            except (aiohttp.ClientError, OSError, TimeoutError) as exc:
                raise _Cut(f"{type(exc).__name__}: {exc}") from exc
            except ValueError as exc:
                raise self._nonsense(str(exc)) from exc
        if frames.pending and not follow:
            raise _Cut("the answer ended inside of a frame")
        self._failing_since = None

    def _following(self) -> aiohttp.ClientSession:
        """
        Return a session for one follow.

        It speaks HTTP/1.0: the engine sends each frame as an HTTP chunk of its own otherwise, which costs a client
        more than all the rest. On a local socket its connection is not from the pool of the session, where long
        follows could leave no connection for anything else.
        """
        connector = self._session.connector
        if isinstance(connector, aiohttp.UnixConnector):
            own = aiohttp.UnixConnector(connector.path, limit=1, force_close=True)
            return aiohttp.ClientSession(connector=own, version=aiohttp.HttpVersion10)
        return aiohttp.ClientSession(connector=connector, connector_owner=False, version=aiohttp.HttpVersion10)

    async def _inspect(self) -> _State:
        pause = _PAUSE_MIN
        while True:
            try:
                async with self._session.get(f"{self._url}/json", timeout=_SHORT_TIMEOUT) as answer:
                    await self._check(answer)
                    state = _State.read(await answer.json(), answer.headers.get("Server", ""))
                    self._failing_since = None
                    return state
            except (aiohttp.ContentTypeError, ValueError, KeyError, TypeError) as exc:
                raise self._nonsense(f"{type(exc).__name__}: {exc}") from exc
            except (aiohttp.ClientError, OSError, TimeoutError, EngineWord) as exc:
                self._failed(exc)
            await anyio.sleep(pause)
            pause = min(2 * pause, _PAUSE_MAX)

    async def _check(self, answer: aiohttp.ClientResponse) -> None:
        if answer.status == 200:
            return
        said = await answer.text(errors="replace")
        try:
            said = str(json.loads(said)["message"])
        except (ValueError, KeyError, TypeError):
            said = said.strip()[:500] or str(answer.reason)
        if answer.status in {404, 409}:
            read = f"after {self._lines.taken} pieces were read" if self._lines.taken else "before any was read"
            raise LogsUnavailable(
                f"the lines of container {self._lines.container!r} ({self._id[:12]}) are gone, {read}: {said}; "
                "read them before the container is removed"
            )
        if answer.status < 500 or "does not support reading" in said:
            raise LogsUnavailable(
                f"the engine does not give out the lines of container {self._lines.container!r} ({self._id[:12]}): "
                f"{said} (HTTP {answer.status}); create it with the json-file log driver"
            )
        raise EngineWord(f"{said} (HTTP {answer.status})")

    def _failed(self, exc: Exception) -> None:
        """
        Note that the engine could not be read.

        :raises BackendUnavailable: it has been so for too long, with nothing new in between
        :raises LogsUnavailable: it says again and again that it cannot
        """
        now = anyio.current_time()
        self._failing_since = self._failing_since or now
        if isinstance(exc, EngineWord):
            self._words = self._words + 1 if self._lines.taken == self._taken_at_word else 1
            self._taken_at_word = self._lines.taken
            if self._words >= _WORD_TRIES:
                raise LogsUnavailable(
                    f"the engine cannot read the lines of container {self._lines.container!r} ({self._id[:12]}) "
                    f"behind the first {self._lines.taken} pieces: {exc}; its log file may be damaged"
                ) from exc
        if now - self._failing_since >= _PATIENCE:
            raise BackendUnavailable(
                f"the engine does not answer while the lines of container {self._lines.container!r} "
                f"({self._id[:12]}) are read ({exc}); check that it runs and read them again",
                operation="logs",
                retryable=True,
            ) from exc

    def _nonsense(self, detail: str) -> BackendError:
        return BackendError(
            f"the engine's answer about the lines of container {self._lines.container!r} ({self._id[:12]}) could not "
            f"be understood: {detail}; only containers without a terminal (Tty false) can be read",
            operation="logs",
        )


@attrs.frozen
class _State:
    """What has to be known of a container to read its log."""

    running: bool
    may_follow: bool
    """Whether a follow shows every line: the log cannot rotate, and the engine is not known to drop any."""
    unmarked: bool
    """Whether the log is kept by the ``local`` driver."""

    @classmethod
    def read(cls, container: Any, server: str) -> Self:
        config = container["HostConfig"].get("LogConfig") or {}
        options = config.get("Config") or {}
        driver = config.get("Type")
        podman = server.startswith("Libpod")
        kept_whole = driver == "json-file" and options.get("max-size", "-1") in {"", "-1"}
        return cls(
            running=bool(container["State"].get("Running")),
            may_follow=kept_whole and not podman,
            # An engine reads the logs of drivers that cannot be read (awslogs, syslog, …) from a local copy.
            unmarked=driver not in {"json-file", "journald"} and not podman,
        )


class _Tail:
    """The last lines of a part of a log, and whether they are surely whole."""

    def __init__(self, wanted: int) -> None:
        self.lines: deque[LogLine] = deque(maxlen=wanted)
        self._wanted = wanted
        self._begun_at: datetime | None = None
        self._streams: set[str] = set()
        self._unsure = 0
        """How many lines from the beginning on may be the end of a longer one."""
        self._met = 0

    def add(self, lines: Iterable[LogLine]) -> None:
        for line in lines:
            self._met += 1
            if line.stream not in self._streams:
                self._streams.add(line.stream)
                # All parts of a line have the stamp of its first: one that is younger than this part of the log
                # has its first part in it.
                self._begun_at = self._begun_at or line.at
                if self._begun_at is None or line.at is None or line.at <= self._begun_at:
                    self._unsure = self._met
            self.lines.append(line)

    @property
    def enough(self) -> bool:
        return self._met - self._unsure >= self._wanted


class Merged:
    """
    Yield the lines of several sources as they come, each source in its own order.

    Reads ahead a bounded number of lines, and no more while nobody takes them. A source that fails does not cut off
    the others: the first error is raised once all are through. Close it when leaving it early; no task outlives that.
    """

    def __init__(self, sources: Sequence[AsyncGenerator[LogLine]]) -> None:
        self._sources = sources
        self._tasks: list[asyncio.Task[None]] | None = None
        self._lines: deque[LogLine] = deque()
        self._characters = 0
        self._left = len(sources)
        self._error: Exception | None = None
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    def __aiter__(self) -> AsyncIterator[LogLine]:
        return self

    async def __anext__(self) -> LogLine:
        if self._tasks is None:
            self._tasks = [asyncio.create_task(self._pump(source)) for source in self._sources]
        while not self._lines:
            if self._left <= 0:
                await self.aclose()
                if self._error is not None:
                    error, self._error = self._error, None
                    raise error
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        line = self._lines.popleft()
        self._characters -= len(line.text)
        if not self._lines:
            self._room.set()
        return line

    async def aclose(self) -> None:
        """Stop reading and close the sources."""
        tasks, self._tasks = self._tasks, []
        self._left = 0
        self._lines.clear()
        for task in tasks or ():
            task.cancel()
        with anyio.CancelScope(shield=True):
            if tasks:
                await asyncio.wait(tasks)
            elif tasks is None:
                for source in self._sources:
                    await source.aclose()

    async def _pump(self, source: AsyncGenerator[LogLine]) -> None:
        try:
            async with aclosing(source):
                async for line in source:
                    while len(self._lines) >= _MERGED_LINES or self._characters >= _MERGED_CHARACTERS:
                        self._room.clear()
                        await self._room.wait()
                    self._lines.append(line)
                    self._characters += len(line.text)
                    self._news.set()
        except Exception as exc:  # noqa: BLE001 (raised to whoever takes the lines)
            self._error = self._error or exc
        finally:
            self._left -= 1
            self._news.set()
