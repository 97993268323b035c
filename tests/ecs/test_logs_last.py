"""The last lines of many that are over at about the same time are read by one call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import anyio
import pytest

from fargate_runner import LogsUnavailable
from fargate_runner.backends.ecs._logs import LogReader
from fargate_runner.testing.aws import FakeAws, denied
from fargate_runner.testing.clock import VirtualClock
from tests.ecs.log_rig import GROUP, Writer, account, numbered, reading, texts
from tests.ecs.test_logs import CUT

TAIL = 5


@pytest.fixture
def aws(clock: VirtualClock) -> FakeAws:
    return account(clock, least=0.0, most=0.0)


def streams(writer: Writer) -> dict[str, str]:
    return {writer.stream: writer.container}


async def last(
    reader: LogReader, of: Mapping[str, str], created_at: datetime, *, over_for: float = 60.0, tail: int = TAIL
) -> list[str]:
    over_at = anyio.current_time() - over_for
    reading = reader.read(GROUP, of, tail=tail, attempt=1, over=(over_at, over_at), created_at=created_at)
    return await texts(reading)


async def last_of_all(
    aws: FakeAws, all_streams: list[dict[str, str]], created_at: datetime, **settings: Any
) -> list[list[str]]:
    found: list[list[str]] = [[] for _ in all_streams]

    async def read(number: int, reader: LogReader) -> None:
        found[number] = await last(reader, all_streams[number], created_at, **settings)

    async with reading(aws) as reader, anyio.create_task_group() as tasks:
        for number in range(len(all_streams)):
            tasks.start_soon(read, number, reader)
    return found


def calls(aws: FakeAws) -> Counter[str]:
    return Counter({name: count for name, count in aws.calls.operations.items() if name.startswith("logs.")})


def written(aws: FakeAws, count: int, *, lines: int = 8) -> list[Writer]:
    writers = [Writer(aws, f"s/main/{number}") for number in range(count)]
    for writer in writers:
        writer.write(*(f"{writer.stream}: {text}" for text in numbered(lines)))
    return writers


async def test_a_hundred_cost_one_call(aws: FakeAws) -> None:
    created_at = aws.clock.utcnow()
    writers = written(aws, 250)

    found = await last_of_all(aws, [streams(writer) for writer in writers], created_at)

    assert found == [writer.texts[-TAIL:] for writer in writers]
    assert calls(aws) == {"logs.FilterLogEvents": 3}


async def test_those_that_have_written_little_or_nothing_are_told_so(aws: FakeAws) -> None:
    created_at = aws.clock.utcnow()
    writers = [*written(aws, 20, lines=2), Writer(aws, "s/main/silent")]

    found = await last_of_all(aws, [streams(writer) for writer in writers], created_at)

    assert found == [writer.texts for writer in writers]
    assert calls(aws) == {"logs.FilterLogEvents": 1}


async def test_one_or_two_are_read_one_by_one(aws: FakeAws) -> None:
    created_at = aws.clock.utcnow()
    writers = written(aws, 2)

    found = await last_of_all(aws, [streams(writer) for writer in writers], created_at)

    assert found == [writer.texts[-TAIL:] for writer in writers]
    assert set(calls(aws)) == {"logs.GetLogEvents"}


async def test_many_wait_for_each_other_but_not_for_long(aws: FakeAws) -> None:
    created_at = aws.clock.utcnow()
    writers = written(aws, 40)
    told: list[float] = []

    async def read(number: int, reader: LogReader) -> None:
        over_at = began + number / 50
        lines = reader.read(
            GROUP, streams(writers[number]), tail=TAIL, attempt=1, over=(over_at, over_at), created_at=created_at
        )
        assert await texts(lines) == writers[number].texts[-TAIL:]
        told.append(anyio.current_time() - over_at)

    async with reading(aws, drain=15.0, gather=1.0) as reader, anyio.create_task_group() as tasks:
        began = anyio.current_time()
        for number in range(40):
            tasks.start_soon(read, number, reader)

    assert calls(aws) == {"logs.FilterLogEvents": 1}
    assert min(told) >= 15.0
    assert max(told) <= 16.1


async def test_what_is_older_than_the_look_goes_back_is_read_by_itself(aws: FakeAws) -> None:
    created_at = aws.clock.utcnow()
    early = written(aws, 3)
    await anyio.sleep(3600)
    late = [Writer(aws, f"s/late/{number}") for number in range(10)]
    for writer in late:
        writer.write(*numbered(8))

    found = await last_of_all(aws, [streams(writer) for writer in [*early, *late]], created_at)

    assert found == [writer.texts[-TAIL:] for writer in [*early, *late]]
    assert calls(aws)["logs.FilterLogEvents"] == 1
    assert calls(aws)["logs.GetLogEvents"] <= 2 * len(early)


async def test_a_few_old_lines_and_a_few_new_ones_are_put_together(aws: FakeAws) -> None:
    created_at = aws.clock.utcnow()
    writers = written(aws, 20, lines=3)
    await anyio.sleep(3600)
    for writer in writers:
        writer.write("late")

    found = await last_of_all(aws, [streams(writer) for writer in writers], created_at)

    assert found == [writer.texts[-TAIL:] for writer in writers]


async def test_what_writes_too_much_for_a_look_costs_no_more_than_before(aws: FakeAws) -> None:
    created_at = aws.clock.utcnow()
    writers = written(aws, 30, lines=2_000)

    found = await last_of_all(aws, [streams(writer) for writer in writers], created_at)

    assert found == [writer.texts[-TAIL:] for writer in writers]
    assert calls(aws)["logs.FilterLogEvents"] <= 3
    assert calls(aws)["logs.GetLogEvents"] == len(writers)


async def test_a_look_that_saw_too_much_goes_less_far_back_the_next_time(aws: FakeAws) -> None:
    created_at = aws.clock.utcnow()
    async with reading(aws) as reader:
        for life in range(10):
            writers = [Writer(aws, f"{life}/{number}") for number in range(15)]
            for writer in writers:
                writer.write(*numbered(2_000))
            await anyio.sleep(60)
            for writer in writers:
                writer.write(*numbered(20))
            async with anyio.create_task_group() as tasks:
                for writer in writers:
                    tasks.start_soon(last, reader, streams(writer), created_at)

    assert calls(aws)["logs.GetLogEvents"] <= 6 * 15


async def test_short_and_empty_pages_hide_nothing(clock: VirtualClock) -> None:
    aws = account(clock, least=0.0, most=0.0, short_pages=0.3, empty_pages=0.3)
    created_at = aws.clock.utcnow()
    writers = written(aws, 60, lines=20)

    found = await last_of_all(aws, [streams(writer) for writer in writers], created_at)

    assert found == [writer.texts[-TAIL:] for writer in writers]


async def test_the_last_lines_of_several_containers_are_in_order_of_time(aws: FakeAws) -> None:
    created_at = aws.clock.utcnow()
    pairs = [(Writer(aws, f"s/main/{number}"), Writer(aws, f"s/side/{number}", "side")) for number in range(60)]
    for moment in range(8):
        for pair in pairs:
            pair[moment % 2].write(f"{moment}")
        await anyio.sleep(1)

    found = await last_of_all(aws, [streams(main) | streams(side) for main, side in pairs], created_at)

    assert found == [["3", "4", "5", "6", "7"]] * 60
    assert calls(aws) == {"logs.FilterLogEvents": 2}


async def test_the_end_of_a_line_that_was_cut_is_no_line(aws: FakeAws) -> None:
    created_at = aws.clock.utcnow()
    writers = [Writer(aws, f"s/main/{number}") for number in range(4)]
    for writer in writers:
        writer.write("before", "x" * (2 * CUT + 5), "after")

    found = await last_of_all(aws, [streams(writer) for writer in writers], created_at, tail=2)

    assert [[len(text) for text in lines] for lines in found] == [[2 * CUT + 5, 5]] * 4


@pytest.mark.parametrize("absent", [1, 3, 20])
async def test_streams_that_are_not_there_hide_no_others(aws: FakeAws, absent: int) -> None:
    created_at = aws.clock.utcnow()
    writers = written(aws, 40)
    gone = [{f"s/gone/{number}": "main"} for number in range(absent)]
    asked = [streams(writer) for writer in writers]
    asked[10:10] = gone

    found = await last_of_all(aws, asked, created_at)

    assert found[10 : 10 + absent] == [[]] * absent
    assert found[:10] + found[10 + absent :] == [writer.texts[-TAIL:] for writer in writers]


async def test_an_error_reaches_each_that_waits(aws: FakeAws) -> None:
    created_at = aws.clock.utcnow()
    writers = written(aws, 12)
    aws.faults.add(denied("logs.FilterLogEvents"))
    errors: list[LogsUnavailable] = []

    async def read(writer: Writer) -> None:
        with pytest.raises(LogsUnavailable, match="may not be read") as caught:
            await last(reader, streams(writer), created_at)
        errors.append(caught.value)

    async with reading(aws) as reader, anyio.create_task_group() as tasks:
        for writer in writers:
            tasks.start_soon(read, writer)

    assert len(errors) == len(writers)


async def test_who_no_longer_waits_costs_nothing(aws: FakeAws) -> None:
    created_at = aws.clock.utcnow()
    writers = written(aws, 12)

    async with reading(aws) as reader:
        with anyio.move_on_after(5):
            async with anyio.create_task_group() as tasks:
                for writer in writers:
                    tasks.start_soon(lambda w: last(reader, streams(w), created_at, over_for=0.0), writer)
        await anyio.sleep(60)

        assert calls(aws) == {}
        assert reader._lasts == []
