"""A few streams, read one by one, in virtual time."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fargate_runner import LogLine, LogsUnavailable
from fargate_runner.backends.ecs._logs import _Joined
from fargate_runner.testing.aws import FakeAws, denied, throttled
from fargate_runner.testing.clock import VirtualClock
from tests.ecs.log_rig import GROUP, Writer, account, numbered, one_by_one, reading, texts

CUT = 262_118


@pytest.fixture
def aws(clock: VirtualClock) -> FakeAws:
    return account(clock, least=0.2, most=2.0)


async def test_a_few_are_read_with_get_log_events(aws: FakeAws) -> None:
    writer = Writer(aws, "s/main/1")
    writer.write(*numbered(5))
    writer.end()

    async with reading(aws) as reader:
        found = await writer.follow(reader)

    assert found == writer.texts
    assert aws.calls.operations["logs.GetLogEvents"] > 0
    assert aws.calls.operations["logs.FilterLogEvents"] == 0


@pytest.mark.parametrize("few", [10, 0])
@pytest.mark.parametrize("late", [0.0, 5.0, 9.9])
async def test_a_line_long_after_the_end_of_the_task_is_read(aws: FakeAws, few: int, late: float) -> None:
    writer = Writer(aws, "s/main/1")
    aws.logs.ingestion = type(aws.logs.ingestion)(least=0.0, most=0.0)

    async def work() -> None:
        await anyio.sleep(20)
        writer.end()
        await anyio.sleep(late)
        writer.write("the last one")

    async with reading(aws, few=few) as reader, anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        found = await writer.follow(reader)

    assert found == ["the last one"]


@pytest.mark.parametrize("few", [10, 0])
async def test_the_task_may_stop_long_after_its_container(aws: FakeAws, clock: VirtualClock, few: int) -> None:
    writer = Writer(aws, "s/main/1")

    async def stopped() -> float:
        await anyio.sleep_until(40)
        return 10.0  # its own container was over then; STOPPED is only known now

    async def work() -> None:
        await anyio.sleep_until(47)
        writer.write("a sidecar's last words")

    async with reading(aws, few=few) as reader, anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        found = await texts(
            reader.follow(GROUP, {writer.stream: "main"}, tail=None, attempt=1, started=writer.started, ended=stopped)
        )

    assert found == ["a sidecar's last words"]


@pytest.mark.parametrize("few", [10, 0])
@pytest.mark.parametrize("appears", [0.5, 8.0, 31.0])
async def test_a_stream_may_appear_late(aws: FakeAws, few: int, appears: float) -> None:
    early = Writer(aws, "s/main/1")
    early.write("early")

    async def work() -> None:
        await anyio.sleep(appears)
        Writer(aws, "s/side/1").write("late")
        await anyio.sleep(1)
        early.end()

    async with reading(aws, few=few) as reader, anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        streams = {"s/main/1": "main", "s/side/1": "side"}
        lines = reader.follow(GROUP, streams, tail=None, attempt=2, started=early.started, ended=early.ended)
        found = [(line.container, line.text, line.attempt) async for line in one_by_one(lines)]

    assert found == [("main", "early", 2), ("side", "late", 2)]


@pytest.mark.parametrize("few", [10, 0])
async def test_a_stream_that_never_appears_is_no_error(aws: FakeAws, clock: VirtualClock, few: int) -> None:
    main = Writer(aws, "s/main/1")
    main.write("here")
    main.end()

    async with reading(aws, few=few) as reader:
        streams = {"s/main/1": "main", "s/never/1": "never"}
        found = await texts(reader.follow(GROUP, streams, tail=None, attempt=1, started=main.started, ended=main.ended))

    assert found == ["here"]
    assert clock.time() < 25


@pytest.mark.parametrize("few", [10, 0])
async def test_a_group_that_is_deleted_is_unavailable(aws: FakeAws, few: int) -> None:
    writer = Writer(aws, "s/main/1")

    async def work() -> None:
        await anyio.sleep(10)
        await aws.call("logs", "DeleteLogGroup", {"logGroupName": GROUP})

    async with reading(aws, few=few) as reader, anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        with pytest.raises(LogsUnavailable, match="does not exist"):
            await writer.follow(reader)


@pytest.mark.parametrize("few", [10, 0])
async def test_a_group_that_may_not_be_read_is_unavailable(aws: FakeAws, few: int) -> None:
    writer = Writer(aws, "s/main/1")
    aws.faults.add(denied("logs.GetLogEvents"), denied("logs.FilterLogEvents"))

    async with reading(aws, few=few) as reader:
        with pytest.raises(LogsUnavailable, match="may not be read"):
            await writer.follow(reader)


@pytest.mark.parametrize("few", [10, 0])
async def test_throttles_only_slow(aws: FakeAws, few: int) -> None:
    writer = Writer(aws, "s/main/1")
    writer.write(*numbered(100))
    writer.end()
    aws.faults.add(throttled("logs.*", times=8))

    async with reading(aws, few=few) as reader:
        found = await writer.follow(reader)

    assert found == writer.texts


@pytest.mark.parametrize("few", [10, 0])
async def test_an_error_about_the_task_reaches_its_reader_only(aws: FakeAws, few: int) -> None:
    one, other = Writer(aws, "s/main/1"), Writer(aws, "s/main/2")
    other.write("unharmed")
    other.end()

    async def broken() -> float:
        await anyio.sleep(5)
        raise OSError("nobody can say")

    async with reading(aws, few=few) as reader:
        with pytest.raises(OSError, match="nobody can say"):
            await texts(
                reader.follow(GROUP, {one.stream: "main"}, tail=None, attempt=1, started=one.started, ended=broken)
            )
        found = await other.follow(reader)

    assert found == ["unharmed"]


class TestTail:
    @pytest.mark.parametrize("tail", [0, 1, 7, 50])
    async def test_without_following_it_is_the_last_lines(self, aws: FakeAws, tail: int) -> None:
        writer = Writer(aws, "s/main/1")
        writer.write(*numbered(20))
        await anyio.sleep(5)

        async with reading(aws) as reader:
            found = await texts(
                reader.read(
                    GROUP,
                    {writer.stream: "main"},
                    tail=tail,
                    attempt=1,
                    over=(anyio.current_time(), anyio.current_time()),
                )
            )

        assert found == writer.texts[len(writer.texts) - min(tail, 20) :]

    @pytest.mark.parametrize("tail", [0, 1, 7, 50])
    async def test_with_following_it_is_the_last_lines_and_all_that_come(self, aws: FakeAws, tail: int) -> None:
        writer = Writer(aws, "s/main/1")
        writer.write(*numbered(20))
        await anyio.sleep(5)

        async def work() -> None:
            await anyio.sleep(3)
            writer.write("new")
            writer.end()

        async with reading(aws) as reader, anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            found = await writer.follow(reader, tail=tail)

        assert found == [*writer.texts[20 - min(tail, 20) : 20], "new"]

    async def test_short_and_empty_pages_hide_nothing(self, clock: VirtualClock) -> None:
        aws = account(clock, least=0.0, most=0.0, short_pages=0.5, empty_pages=0.4)
        writer = Writer(aws, "s/main/1")
        writer.write(*numbered(300))

        async with reading(aws) as reader:
            found = await texts(reader.read(GROUP, {writer.stream: "main"}, tail=120, attempt=1))

        assert found == writer.texts[-120:]

    async def test_the_last_lines_of_several_containers_are_in_order_of_time(self, aws: FakeAws) -> None:
        main, side = Writer(aws, "s/main/1"), Writer(aws, "s/side/1")
        for number in range(6):
            (main, side)[number % 2].write(f"{number}")
            await anyio.sleep(1)
        await anyio.sleep(5)

        async with reading(aws) as reader:
            streams = {main.stream: "main", side.stream: "side"}
            found = await texts(reader.read(GROUP, streams, tail=4, attempt=1))

        assert found == ["2", "3", "4", "5"]

    async def test_the_end_of_a_line_that_was_cut_is_no_line(self, aws: FakeAws) -> None:
        writer = Writer(aws, "s/main/1")
        writer.write("before", "x" * (2 * CUT + 5))
        await anyio.sleep(5)

        async with reading(aws) as reader:
            found = await texts(reader.read(GROUP, {writer.stream: "main"}, tail=1, attempt=1))

        assert [len(text) for text in found] == [2 * CUT + 5]


async def test_a_reader_that_comes_right_after_the_end_gets_all(clock: VirtualClock) -> None:
    aws = account(clock, least=7.0, most=8.0)
    writer = Writer(aws, "s/main/1")
    writer.write(*numbered(50))

    async with reading(aws) as reader:
        found = await texts(
            reader.read(
                GROUP, {writer.stream: "main"}, tail=None, attempt=1, over=(anyio.current_time(), anyio.current_time())
            )
        )

    assert found == writer.texts


async def test_a_token_that_became_too_old_costs_nothing(aws: FakeAws) -> None:
    writer = Writer(aws, "s/main/1")
    writer.write("a", "b", "b")
    found: list[str] = []

    async with reading(aws) as reader:
        async for line in writer.lines(reader):
            found.append(line.text)
            if len(found) == 3:
                await anyio.sleep(25 * 3600)
                writer.write("c", "c")
                writer.end()

    assert found == ["a", "b", "b", "c", "c"]


async def test_leaving_early_stops_the_asking(aws: FakeAws) -> None:
    writer = Writer(aws, "s/main/1")
    writer.write("one", "two")

    async with reading(aws) as reader:
        lines = writer.lines(reader)
        await anext(lines)
        await lines.aclose()
        before = len(aws.calls)
        await anyio.sleep(100)

    assert len(aws.calls) == before


async def test_blank_line_ends_are_taken_off_once(aws: FakeAws) -> None:
    joined = _Joined("main", 1)

    lines = joined.lines([{"message": "a\n", "timestamp": 0}, {"message": "b\n\n", "timestamp": 0}])

    assert [line.text for line in lines] == ["a", "b\n"]


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 10, CUT // 4, CUT - 3, CUT - 1, CUT + 1, 2 * CUT + 7]), min_size=1, max_size=5),
    letters=st.sampled_from(["x", "é", "€", "𝄞", "xé€𝄞"]),
)
def test_lines_that_the_driver_cut_are_whole_again(sizes: list[int], letters: str) -> None:
    written = [(letters * (size // len(letters.encode()) + 1)) for size in sizes]
    clock = VirtualClock()
    aws = account(clock, least=0.0, most=0.0)

    async def main() -> list[LogLine]:
        for number, text in enumerate(written):
            at = round(clock.utcnow().timestamp() * 1000) + number
            aws.logs.put(GROUP, "s/main/1", [(at, text)])
        await anyio.sleep(1)
        async with reading(aws) as reader:
            batches = reader.read(GROUP, {"s/main/1": "main"}, tail=None, attempt=1)
            return [line async for line in one_by_one(batches)]

    lines = anyio.run(main, backend_options={"loop_factory": clock.loop})

    assert [line.text for line in lines] == written
