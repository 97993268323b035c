"""
The Docker log reader: on a fake engine that breaks off wherever it hurts, and on a real one.

The fake speaks just enough HTTP to be cut at any byte. Tests that need the real engine wear the `docker` mark.
"""

from __future__ import annotations

import asyncio
import json
import struct
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import anyio
import attrs
import pytest

from fargate_runner._errors import BackendError, BackendUnavailable, LogsUnavailable
from fargate_runner._lifecycle import LogLine
from fargate_runner.backends.docker import _logs
from fargate_runner.backends.docker._logs import Merged, read_container

pytestmark = pytest.mark.anyio

OUT, ERR, ENGINE = 1, 2, 3
EPOCH = int(datetime(2026, 11, 22, 21, tzinfo=UTC).timestamp())

Ended = Callable[[], Awaitable[None]]


def texts(lines: Sequence[LogLine], stream: str | None = None) -> list[str]:
    return [line.text for line in lines if stream in {None, line.stream}]


async def forever() -> None:
    await anyio.sleep_forever()


async def at_once() -> None:
    """It is over already."""


# A fake engine.


@attrs.frozen
class Entry:
    """One frame that the fake engine keeps."""

    nanoseconds: int
    text: bytes
    stream: int = OUT
    fraction: bool = True

    @property
    def packed(self) -> bytes:
        seconds, rest = divmod(self.nanoseconds, 10**9)
        stamp = b"2026-11-22T21:%02d:%02d" % divmod(seconds, 60)
        payload = stamp + (b".%09dZ " % rest if self.fraction else b"Z ") + self.text
        return struct.pack(">B3xI", self.stream, len(payload)) + payload


@attrs.frozen
class Step:
    """How the fake engine answers one request for logs."""

    shown: slice = slice(None)
    """What of the log there is at that time."""
    cut_after: int | None = None
    """The connection ends after so many bytes of the body."""
    status: int = 200
    say: bytes = b""
    """Appended to the body."""


@attrs.define
class FakeEngine:
    """Answers requests for logs step by step; after the last step, all of the log is there, and the container over."""

    log: list[Entry]
    steps: list[Step] = attrs.field(factory=list)
    driver: str = "json-file"
    options: dict[str, str] = attrs.field(factory=dict)
    server: str = "Docker/20.10.24 (linux)"
    asked: list[dict[str, str]] = attrs.field(factory=list)
    left: asyncio.Event = attrs.field(factory=asyncio.Event)
    """Set when a client goes away in the middle of an answer that has no end."""

    async def ended(self) -> None:
        if self.steps:
            await anyio.sleep_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                target, version = request.split(b" ", 2)[1].decode(), request.split(b"\r\n")[0][-3:]
                await self._answer(urlsplit(target), version, reader, writer)
                if version == b"1.0":
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def _answer(
        self, target: Any, version: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if target.path.endswith("/json"):
            log_config = {"Type": self.driver, "Config": self.options}
            state = {"State": {"Running": bool(self.steps)}, "HostConfig": {"LogConfig": log_config}}
            self._whole(writer, 200, json.dumps(state).encode())
            return
        query = {name: values[0] for name, values in parse_qs(target.query).items()}
        self.asked.append(query)
        step = self.steps.pop(0) if self.steps else Step()
        if step.status != 200:
            self._whole(writer, step.status, b'{"message": "so says the fake engine"}')
            return
        body = (b"".join(entry.packed for entry in self._found(query, self.log[step.shown])) + step.say)[
            : step.cut_after
        ]
        writer.write(b"HTTP/%s 200 OK\r\nServer: %s\r\n" % (version, self.server.encode()))
        if version == b"1.0":
            writer.write(b"Connection: close\r\n\r\n" + body)
        else:
            writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
            writer.writelines(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:100], body[100:]) if part)
            if step.cut_after is not None:
                raise ConnectionResetError
            writer.write(b"0\r\n\r\n")
        await writer.drain()

    @staticmethod
    def _found(query: dict[str, str], shown: list[Entry]) -> list[Entry]:
        seconds, _, nanoseconds = query.get("since", "0").partition(".")
        since = (int(seconds) - EPOCH) * 10**9 + int(nanoseconds or 0)
        found = shown[-int(query["tail"]) :] if "tail" in query else shown
        return [entry for entry in found if entry.nanoseconds >= since]

    def _whole(self, writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
        head = f"HTTP/1.1 {status} -\r\nServer: {self.server}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    @asynccontextmanager
    async def serving(self, place: Path) -> AsyncGenerator[aiohttp.ClientSession]:
        socket = str(place / "engine.sock")
        async with (
            await asyncio.start_unix_server(self._serve, socket),
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket)) as session,
        ):
            yield session

    async def read(
        self, place: Path, *, follow: bool = True, tail: int | None = None, ended: Ended | None = None
    ) -> list[LogLine]:
        lines: list[LogLine] = []
        await self.read_into(lines, place, follow=follow, tail=tail, ended=ended)
        return lines

    async def read_into(
        self,
        lines: list[LogLine],
        place: Path,
        *,
        follow: bool = True,
        tail: int | None = None,
        ended: Ended | None = None,
    ) -> None:
        async with self.serving(place) as session:
            found = read_container(
                session,
                "http://localhost/v1.41",
                "c0ffee",
                container="main",
                attempt=1,
                follow=follow,
                tail=tail,
                ended=ended or self.ended,
            )
            async with aclosing(found):
                async for line in found:
                    lines.append(line)  # noqa: PERF401 (kept when it raises)


def story() -> list[Entry]:
    """Both streams, equal stamps, a long line over three frames, an empty line, a last one without end."""
    return [
        Entry(10**9, b"one\n"),
        Entry(10**9, b"one again\n"),
        Entry(10**9 + 1, b"oops\n", ERR),
        Entry(10**9 + 2, b"long "),
        Entry(10**9 + 3, b"\n", ERR),
        Entry(10**9 + 2, b"and "),
        Entry(10**9 + 2, b"whole\n"),
        Entry(2 * 10**9, b"same\n"),
        Entry(2 * 10**9, b"same\n"),
        Entry(2 * 10**9, b"same\n"),
        Entry(3 * 10**9, b"no end"),
    ]


STORY_OUT = ["one", "one again", "long and whole", "same", "same", "same", "no end"]
STORY_ERR = ["oops", ""]
SIZES = [len(entry.packed) for entry in story()]
STARTS = [sum(SIZES[:number]) for number in range(len(SIZES))]
BYTES = [0, *(start + inside for start in STARTS for inside in (1, 4, 8, 20, 38, 39)), sum(SIZES) - 1, sum(SIZES)]


def check_story(lines: Sequence[LogLine]) -> None:
    assert texts(lines, "stdout") == STORY_OUT
    assert texts(lines, "stderr") == STORY_ERR


@pytest.mark.parametrize("cut_after", BYTES)
async def test_a_follow_that_ends_at_any_byte_loses_and_doubles_nothing(tmp_path: Path, cut_after: int) -> None:
    engine = FakeEngine(story(), [Step(cut_after=cut_after)])

    lines = await engine.read(tmp_path)

    check_story(lines)


@pytest.mark.parametrize("cut_after", BYTES[::3])
async def test_a_snapshot_that_is_cut_at_any_byte_is_taken_again(tmp_path: Path, cut_after: int) -> None:
    cut = Step(cut_after=cut_after)
    engine = FakeEngine(story(), [Step(slice(3)), cut, cut])

    lines = await engine.read(tmp_path)

    check_story(lines)


async def test_an_answer_that_ends_inside_of_a_frame_is_not_the_whole_log(tmp_path: Path) -> None:
    begun = Entry(10**9 + 2, b"and ").packed[:30]
    engine = FakeEngine(story(), [Step(slice(5), say=begun), Step(slice(5), say=begun), Step()])

    lines = await engine.read(tmp_path, follow=False)

    check_story(lines)


async def test_a_connection_that_breaks_at_every_byte_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_logs, "_PAUSE_MIN", 0.001)
    monkeypatch.setattr(_logs, "_PAUSE_MAX", 0.001)
    engine = FakeEngine(story(), [Step(cut_after=number) for number in range(sum(SIZES))])

    lines = await engine.read(tmp_path)

    check_story(lines)


async def test_a_follow_that_ends_before_the_container_is_taken_up_where_it_ended(tmp_path: Path) -> None:
    engine = FakeEngine(story(), [Step(slice(2)), Step(slice(2)), Step(slice(6)), Step(slice(9))])

    lines = await engine.read(tmp_path)

    check_story(lines)
    assert [query["follow"] for query in engine.asked] == ["1", "1", "1", "1", "0"]
    assert engine.asked[-1]["tail"]


async def test_a_container_that_has_not_started_is_waited_for(tmp_path: Path) -> None:
    engine = FakeEngine(story(), [Step(slice(0)), Step(slice(0))])

    lines = await engine.read(tmp_path)

    check_story(lines)


async def test_many_lines_that_a_follow_missed_are_read_again_from_the_last_one(tmp_path: Path) -> None:
    log = [Entry(number * 1000, b"%d\n" % number) for number in range(1000)]
    engine = FakeEngine(log, [Step(slice(100))])

    lines = await engine.read(tmp_path)

    assert texts(lines) == [str(number) for number in range(1000)]
    assert [query.get("tail", "since" in query) for query in engine.asked] == [False, "256", True]


async def test_a_follow_that_missed_many_lines_is_taken_up_from_the_last_one(tmp_path: Path) -> None:
    log = [Entry(number * 1000, b"%d\n" % number) for number in range(1000)]
    engine = FakeEngine(log, [Step(slice(100)), Step(slice(600)), Step(slice(600)), Step(slice(700))])

    lines = await engine.read(tmp_path)

    assert texts(lines) == [str(number) for number in range(1000)]
    assert [query["follow"] for query in engine.asked[:4]] == ["1", "1", "1", "1"]
    assert [query.get("tail", "since" in query) for query in engine.asked[:4]] == [False, "256", True, "256"]


@pytest.mark.parametrize(
    ("driver", "options"),
    [
        ("json-file", {"max-size": "1m"}),
        ("json-file", {"max-size": "10m", "max-file": "3"}),
        ("journald", {}),
    ],
)
async def test_a_log_that_may_rotate_is_never_followed(tmp_path: Path, driver: str, options: dict[str, str]) -> None:
    shown = [Step(slice(4)), Step(slice(4)), Step(slice(9))]
    engine = FakeEngine(story(), shown, driver=driver, options=options)

    lines = await engine.read(tmp_path)

    check_story(lines)
    assert {query["follow"] for query in engine.asked} == {"0"}


async def test_rotation_between_two_looks_costs_nothing_the_engine_still_has(tmp_path: Path) -> None:
    log = [Entry(number * 1000, b"%d\n" % number) for number in range(2000)]
    looks = [Step(slice(0, 500)), Step(slice(100, 600)), Step(slice(300, 1500)), Step(slice(300, 1500))]
    engine = FakeEngine(log, looks, driver="local")

    lines = await engine.read(tmp_path)

    assert texts(lines) == [str(number) for number in range(2000)]


async def test_lines_that_the_engine_dropped_unread_are_told_after_the_last_line(tmp_path: Path) -> None:
    log = [Entry(number * 1000, b"%d\n" % number) for number in range(100)]
    dropped = Step(slice(50, 80))
    engine = FakeEngine(log, [Step(slice(0, 20)), dropped, dropped], options={"max-size": "1k"})
    lines: list[LogLine] = []

    with pytest.raises(LogsUnavailable, match=r"dropped lines of container 'main' .* without log rotation"):
        await engine.read_into(lines, tmp_path)

    assert texts(lines) == [str(number) for number in (*range(20), *range(50, 100))]


@pytest.mark.parametrize(("server", "follows"), [("Libpod/4.3.1 (linux)", 0), ("in disguise", 1)])
async def test_podman_is_read_in_whole_snapshots(tmp_path: Path, server: str, follows: int) -> None:
    log = [Entry(number // 7 * 10**9, b"%d\n" % number, fraction=False) for number in range(50)]
    dropping = Step(slice(3, 30, 2)) if server == "in disguise" else Step(slice(30))
    engine = FakeEngine(log, [dropping, Step(slice(33))], server=server)

    lines = await engine.read(tmp_path)

    assert texts(lines) == [str(number) for number in range(50)]
    assert all("since" not in query and "tail" not in query for query in engine.asked)
    assert sum(query["follow"] == "1" for query in engine.asked) == follows


async def test_a_clock_that_was_set_back_loses_and_doubles_nothing(tmp_path: Path) -> None:
    stamps = [1000, *range(100, 400), 50, 51, 51, 1001]
    log = [Entry(stamp * 10**9, b"%d\n" % number) for number, stamp in enumerate(stamps)]
    engine = FakeEngine(log, [Step(slice(301)), Step(slice(305)), Step()])

    lines = await engine.read(tmp_path)

    assert texts(lines) == [str(number) for number in range(len(stamps))]


async def test_an_engine_that_stumbles_once_is_asked_again(tmp_path: Path) -> None:
    stumble = b"Error grabbing logs: unexpected EOF"
    engine = FakeEngine(story(), [Step(slice(5), say=Entry(0, stumble, ENGINE).packed), Step(status=500)])

    lines = await engine.read(tmp_path)

    check_story(lines)


async def test_a_damaged_log_is_an_error_after_the_lines_before_the_damage(tmp_path: Path) -> None:
    said = struct.pack(">B3xI", ENGINE, 14) + b"invalid char 0"
    engine = FakeEngine(story()[:3], [Step(say=said)] * 20)
    lines: list[LogLine] = []

    with pytest.raises(LogsUnavailable, match="invalid char 0; its log file may be damaged"):
        await engine.read_into(lines, tmp_path)

    assert texts(lines) == ["one", "one again", "oops"]


@pytest.mark.parametrize(
    "steps", [[Step(status=404)], [Step(slice(5)), Step(status=404)], [Step(slice(2)), Step(status=409)]]
)
async def test_a_container_that_was_removed_has_no_more_lines(tmp_path: Path, steps: list[Step]) -> None:
    engine = FakeEngine(story(), steps)

    with pytest.raises(LogsUnavailable, match=r"'main' \(c0ffee\) are gone.*so says the fake engine"):
        await engine.read(tmp_path)


async def test_bytes_of_a_terminal_are_an_error_that_says_so(tmp_path: Path) -> None:
    engine = FakeEngine([], [Step(say=b"2026-11-22T21:00:00.000000000Z hello\r\n")])

    with pytest.raises(BackendError, match="without a terminal"):
        await engine.read(tmp_path)


async def test_an_engine_that_is_gone_for_good_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_logs, "_PATIENCE", 0.02)
    connector = aiohttp.UnixConnector(str(tmp_path / "nobody.sock"))

    async with aiohttp.ClientSession(connector=connector) as session:
        lines = read_container(
            session, "http://localhost", "c0ffee", container="main", attempt=1, follow=True, tail=None, ended=forever
        )
        with pytest.raises(BackendUnavailable, match="does not answer") as raised:
            await anext(lines)

    assert raised.value.retryable


async def test_an_unfinished_line_of_a_live_container_is_kept_back_without_follow(tmp_path: Path) -> None:
    live = FakeEngine(story(), [Step(slice(4)), Step()])
    over = FakeEngine(story()[:4])

    assert texts(await live.read(tmp_path, follow=False), "stdout") == ["one", "one again"]
    assert texts(await over.read(tmp_path, follow=False), "stdout") == ["one", "one again", "long "]


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (0, []),
        (1, ["no end"]),
        (2, ["same", "no end"]),
        (5, ["long and whole", "same", "same", "same", "no end"]),
        (6, ["", "long and whole", "same", "same", "same", "no end"]),
        (100, ["one", "one again", "oops", "", "long and whole", "same", "same", "same", "no end"]),
    ],
)
async def test_a_tail_is_so_many_whole_lines(tmp_path: Path, tail: int, expected: list[str]) -> None:
    assert texts(await FakeEngine(story()).read(tmp_path, follow=False, tail=tail)) == expected


@pytest.mark.parametrize(("tail", "first"), [(0, 50), (1, 49), (20, 30), (1000, 0)])
async def test_a_tail_goes_over_into_a_follow(tmp_path: Path, tail: int, first: int) -> None:
    log = [Entry(number // 3, b"%d\n" % number, ERR if number == 4 else OUT) for number in range(90)]
    engine = FakeEngine(log, [Step(slice(50))] * 3 + [Step(slice(60)), Step(slice(70))])

    lines = await engine.read(tmp_path, tail=tail)

    assert texts(lines) == [str(number) for number in range(first, 90)]


# Several containers at once.


async def source(
    name: str, count: int, *, gate: asyncio.Event | None = None, seen: dict[str, int] | None = None
) -> AsyncGenerator[LogLine]:
    try:
        for number in range(count):
            if gate is not None:
                await gate.wait()
            if seen is not None:
                seen[name] = number + 1
            yield LogLine(text=str(number), container=name)
    finally:
        if seen is not None:
            seen[f"{name} closed"] = 1


async def failing() -> AsyncGenerator[LogLine]:
    yield LogLine(text="last words", container="bad")
    raise LogsUnavailable("gone")


async def test_merged_lines_keep_the_order_of_their_source() -> None:
    merged = Merged([source("a", 2000), source("b", 3000), source("c", 0)])

    lines = [line async for line in merged]

    assert [line.text for line in lines if line.container == "a"] == [str(number) for number in range(2000)]
    assert [line.text for line in lines if line.container == "b"] == [str(number) for number in range(3000)]


async def test_a_silent_source_does_not_hold_up_the_others() -> None:
    gate = asyncio.Event()
    merged = Merged([source("silent", 1, gate=gate), source("chatty", 3)])

    first = [(await anext(merged)).container for _ in range(3)]
    gate.set()
    rest = [line.container async for line in merged]

    assert (first, rest) == (["chatty"] * 3, ["silent"])


async def test_a_reader_that_takes_nothing_stops_the_sources() -> None:
    seen: dict[str, int] = {}
    merged = Merged([source("a", 10**6, seen=seen), source("b", 10**6, seen=seen)])

    await anext(merged)
    await asyncio.sleep(0)
    await merged.aclose()

    assert seen["a"] + seen.get("b", 0) <= 2 * _logs._MERGED_LINES


async def test_one_failed_source_is_told_after_the_lines_of_the_others() -> None:
    merged = Merged([failing(), source("good", 1500)])
    lines: list[LogLine] = []

    async def read() -> None:
        async for line in merged:
            lines.append(line)  # noqa: PERF401 (kept when it raises)

    with pytest.raises(LogsUnavailable, match="gone"):
        await read()

    assert len(lines) == 1501


async def test_leaving_merged_lines_closes_the_sources_and_leaves_no_task() -> None:
    seen: dict[str, int] = {}
    before = asyncio.all_tasks()
    merged = Merged([source("a", 10**6, seen=seen), source("b", 10**6, gate=asyncio.Event(), seen=seen)])

    async with aclosing(merged):
        await anext(merged)

    assert seen["a closed"]
    assert asyncio.all_tasks() == before
    with pytest.raises(StopAsyncIteration):
        await anext(merged)


async def test_a_cancelled_wait_for_merged_lines_takes_none_away() -> None:
    gate = asyncio.Event()
    merged = Merged([source("a", 3, gate=gate)])

    with anyio.move_on_after(0.01):
        await anext(merged)
    gate.set()

    assert [line.text async for line in merged] == ["0", "1", "2"]


# A real engine.

SOCKET = "/var/run/docker.sock"
URL = "http://localhost"
IMAGE = "fargate-runner-test/busybox:latest"
COUNT = """awk 'BEGIN { for (i = 1; i <= %d; i++) print "line", i, "padding padding padding padding padding" }'"""


def counted(count: int) -> list[str]:
    return [f"line {number} padding padding padding padding padding" for number in range(1, count + 1)]


@attrs.frozen
class Container:
    """A container of the real engine."""

    session: aiohttp.ClientSession
    id: str

    async def ask(self, verb: str, **query: str) -> Any:
        async with self.session.post(f"{URL}/containers/{self.id}/{verb}", params=query) as answer:
            assert answer.status < 300, await answer.text()
            return await answer.read()

    async def start(self) -> None:
        await self.ask("start")

    async def ended(self) -> None:
        async with self.session.post(f"{URL}/containers/{self.id}/wait") as answer:
            await answer.read()

    def lines(
        self, *, follow: bool = True, tail: int | None = None, ended: Ended | None = None
    ) -> AsyncGenerator[LogLine]:
        ended = ended or self.ended
        return read_container(
            self.session, URL, self.id, container="main", attempt=1, follow=follow, tail=tail, ended=ended
        )

    async def read(self, *, follow: bool = True, tail: int | None = None) -> list[LogLine]:
        return [line async for line in self.lines(follow=follow, tail=tail)]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(SOCKET), timeout=timeout) as session:
        yield session


@asynccontextmanager
async def created(
    session: aiohttp.ClientSession, script: str, driver: str = "json-file", **options: str
) -> AsyncGenerator[Container]:
    asked = {
        "Image": IMAGE,
        "Cmd": ["sh", "-c", script],
        "Labels": {"fargate-runner.test": "logs"},
        "HostConfig": {
            "NetworkMode": "none",
            "LogConfig": {"Type": driver, "Config": {name.replace("_", "-"): value for name, value in options.items()}},
        },
    }
    async with session.post(f"{URL}/containers/create", json=asked) as answer:
        assert answer.status == 201, await answer.text()
        container = Container(session, (await answer.json())["Id"])
    try:
        yield container
    finally:
        with anyio.CancelScope(shield=True):
            async with session.delete(f"{URL}/containers/{container.id}", params={"force": "1"}) as answer:
                assert answer.status in {204, 404}


@asynccontextmanager
async def started(
    session: aiohttp.ClientSession, script: str, driver: str = "json-file", **options: str
) -> AsyncGenerator[Container]:
    async with created(session, script, driver, **options) as container:
        await container.start()
        yield container


@pytest.mark.docker
async def test_stdout_and_stderr_are_kept_apart(session: aiohttp.ClientSession) -> None:
    async with started(session, "for i in 1 2 3; do echo out $i; echo err $i >&2; echo; done; printf end") as container:
        lines = await container.read()

    assert texts(lines, "stdout") == ["out 1", "", "out 2", "", "out 3", "", "end"]
    assert texts(lines, "stderr") == ["err 1", "err 2", "err 3"]
    assert all(line.at is not None and line.at.tzinfo is UTC for line in lines)


@pytest.mark.docker
@pytest.mark.parametrize("driver", ["json-file", "local"])
async def test_long_lines_are_whole(session: aiohttp.ClientSession, driver: str) -> None:
    sizes = [16_383, 16_384, 16_385, 102_400, 3_000_000, 1]
    long = 'awk \'BEGIN { split("%s", n, " "); for (i = 1; i in n; i++) printf "%%0" n[i] "d\\n", i }\''
    both = f"{long % ' '.join(map(str, sizes))} & {long % ' '.join(map(str, sizes))} >&2; wait"

    async with started(session, both, driver) as container:
        lines = await container.read()
        tail = await container.read(follow=False, tail=4)

    assert [len(text) for text in texts(lines, "stdout")] == sizes
    assert [len(text) for text in texts(lines, "stderr")] == sizes
    assert all(set(line.text) <= set("0123456") for line in lines)
    assert tail == [line for line in lines if line in tail]


@pytest.mark.docker
@pytest.mark.parametrize(
    ("driver", "options"),
    [
        pytest.param("json-file", {}, id="no rotation"),
        pytest.param("json-file", {"max_size": "1m", "max_file": "100"}, id="rotation every MB"),
        pytest.param("json-file", {"max_size": "1m", "max_file": "100", "compress": "true"}, id="and compressed"),
        pytest.param("local", {"max_size": "1m", "max_file": "100"}, id="local"),
    ],
)
async def test_a_live_follow_of_100_000_lines_has_every_line_in_order(
    session: aiohttp.ClientSession, driver: str, options: dict[str, str]
) -> None:
    async with started(session, COUNT % 100_000, driver, **options) as container:
        lines = await container.read()

    assert texts(lines) == counted(100_000)


@pytest.mark.docker
@pytest.mark.parametrize("driver", ["json-file", "local"])
async def test_a_reader_slower_than_the_whole_container_costs_little_memory(
    session: aiohttp.ClientSession, driver: str
) -> None:
    async with started(session, COUNT % 60_000, driver) as container, aclosing(container.lines()) as lines:
        first = await anext(lines)
        expected = iter(counted(60_000)[1:])
        tracemalloc.start()
        await container.ended()
        right = [line.text == next(expected) async for line in lines]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert first.text == counted(1)[0]
    assert right == [True] * 59_999
    assert peak < 8 * 2**20


@pytest.mark.docker
async def test_following_60_containers_at_once_leaves_connections_for_others(session: aiohttp.ClientSession) -> None:
    """The session has room for 100 connections; 60 follows and 60 waits for the end are more."""
    script = f"trap : USR1; echo ready; sleep 600 & wait $!; exec {COUNT % 50}"
    results: list[list[str]] = []

    async def follow(container: Container) -> None:
        results.append(texts(await container.read()))

    async with AsyncExitStack() as stack, anyio.create_task_group() as group:
        containers = [await stack.enter_async_context(started(session, script)) for _ in range(60)]
        for container in containers:
            group.start_soon(follow, container)
        async with session.get(f"{URL}/version", timeout=aiohttp.ClientTimeout(total=60)) as answer:
            assert answer.status == 200
        for container in containers:
            await container.ask("kill", signal="USR1")

    assert results == [["ready", *counted(50)]] * 60


@pytest.mark.docker
async def test_a_follow_may_begin_before_the_container(session: aiohttp.ClientSession) -> None:
    over = anyio.Event()
    got: list[LogLine] = []

    async def follow(container: Container) -> None:
        async with aclosing(container.lines(ended=over.wait)) as lines:
            got.extend([line async for line in lines])

    async with created(session, "echo hello") as container, anyio.create_task_group() as group:
        group.start_soon(follow, container)
        with anyio.move_on_after(0.3):  # long enough for the engine to end more than one follow
            await anyio.sleep_forever()
        await container.start()
        await container.ended()
        over.set()

    assert texts(got) == ["hello"]


@pytest.mark.docker
async def test_a_line_comes_while_the_container_lives(session: aiohttp.ClientSession) -> None:
    for driver in ("json-file", "local"):
        async with started(session, "echo early; sleep 600", driver) as container, aclosing(container.lines()) as lines:
            assert (await anext(lines)).text == "early"


@pytest.mark.docker
async def test_without_follow_reading_stops_at_what_is_there(session: aiohttp.ClientSession) -> None:
    async with started(session, "echo early; sleep 600") as container:
        async with aclosing(container.lines()) as lines:
            await anext(lines)

        assert texts(await container.read(follow=False)) == ["early"]


@pytest.mark.docker
@pytest.mark.parametrize("driver", ["json-file", "local"])
async def test_a_tail_is_the_last_lines(session: aiohttp.ClientSession, driver: str) -> None:
    async with started(session, COUNT % 1000, driver) as container:
        await container.ended()

        assert texts(await container.read(follow=False, tail=7)) == counted(1000)[-7:]
        assert texts(await container.read(follow=True, tail=7)) == counted(1000)[-7:]
        assert texts(await container.read(follow=False, tail=5000)) == counted(1000)
        assert await container.read(follow=True, tail=0) == []


@pytest.mark.docker
async def test_invalid_utf_8_is_replaced(session: aiohttp.ClientSession) -> None:
    async with started(session, r"printf 'a\377b\r\n'", "local") as container:
        assert texts(await container.read()) == ["a\ufffdb"]


@pytest.mark.docker
async def test_a_removed_container_is_an_error_of_ours(session: aiohttp.ClientSession) -> None:
    async with started(session, "echo early; sleep 600") as container, aclosing(container.lines()) as lines:
        await anext(lines)
        async with session.delete(f"{URL}/containers/{container.id}", params={"force": "1"}) as answer:
            assert answer.status == 204

        with pytest.raises(LogsUnavailable, match="are gone, after 1 pieces were read"):
            await anext(lines)
        with pytest.raises(LogsUnavailable, match="are gone, before any was read: No such container"):
            await container.read()


@pytest.mark.docker
async def test_a_container_without_logs_says_how_to_have_some(session: aiohttp.ClientSession) -> None:
    async with started(session, "echo lost", "none") as container:
        await container.ended()

        with pytest.raises(LogsUnavailable, match="json-file"):
            await container.read()
