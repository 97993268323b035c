"""Many streams, swept together, in virtual time."""

from __future__ import annotations

import math
from random import Random

import anyio
import pytest

from benchmarks import ecs_jobs
from fargate_runner.testing.aws import FakeAws
from fargate_runner.testing.clock import VirtualClock
from tests.ecs.log_rig import GROUP, Writer, account, numbered, reading

pytestmark = pytest.mark.sweep


async def chatter(writer: Writer, random: Random, *, lines: int, pause: float) -> None:
    """Write in batches, as the driver does."""
    while len(writer.texts) < lines:
        count = min(lines - len(writer.texts), random.randint(1, 6))
        writer.write(*numbered(count, len(writer.texts)))
        await anyio.sleep(random.uniform(0, 2 * pause))
    writer.end()


async def follow_all(aws: FakeAws, writers: list[Writer], *, seed: int, lines: int, pause: float) -> list[list[str]]:
    found: list[list[str]] = [[] for _ in writers]

    async def follow(number: int) -> None:
        found[number] = await writers[number].follow(reader)

    async with reading(aws, few=0) as reader, anyio.create_task_group() as tasks:
        for number, writer in enumerate(writers):
            tasks.start_soon(follow, number)
            random = Random(f"{seed}/{number}")
            tasks.start_soon(lambda w, r: chatter(w, r, lines=lines, pause=pause), writer, random)
    return found


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(2))
async def test_nothing_is_lost_doubled_or_moved_for_a_thousand_streams(clock: VirtualClock, seed: int) -> None:
    aws = account(clock, seed=seed, least=0.2, most=8.0, short_pages=0.2, empty_pages=0.2)
    writers = [Writer(aws, f"s/main/{number}") for number in range(1000)]

    found = await follow_all(aws, writers, seed=seed, lines=20, pause=3.0)

    assert [writer.stream for writer, texts in zip(writers, found, strict=True) if texts != writer.texts] == []


@pytest.mark.parametrize("seed", range(5))
async def test_events_that_come_out_of_order_are_not_lost_within_the_overlap(clock: VirtualClock, seed: int) -> None:
    aws = account(clock, seed=seed, least=0.2, most=9.0, in_order=False, short_pages=0.2, empty_pages=0.2)
    writers = [Writer(aws, f"s/main/{number}") for number in range(120)]

    found = await follow_all(aws, writers, seed=seed, lines=60, pause=1.0)

    assert [sorted(texts) for texts in found] == [sorted(writer.texts) for writer in writers]


@pytest.mark.parametrize("count", [100, 101, 1000])
async def test_a_sweep_takes_a_call_for_each_hundred_streams(clock: VirtualClock, count: int) -> None:
    aws = account(clock)
    writers = [Writer(aws, f"s/main/{number}") for number in range(count)]

    async with reading(aws, few=0) as reader, anyio.create_task_group() as tasks:
        for writer in writers:
            tasks.start_soon(writer.follow, reader)
            writer.write("hello")
        await anyio.sleep(21)
        before = aws.calls.operations["logs.FilterLogEvents"]
        await anyio.sleep(20)
        made = aws.calls.operations["logs.FilterLogEvents"] - before
        tasks.cancel_scope.cancel()

    assert made == 10 * math.ceil(count / 100)


async def test_ten_thousand_lines_in_a_millisecond(clock: VirtualClock) -> None:
    aws = account(clock, least=0.0, most=0.0)
    loud, quiet = Writer(aws, "s/main/1"), Writer(aws, "s/main/2")
    quiet.write("a word")
    loud.write(*numbered(25_000))
    found: dict[str, list[str]] = {}

    async def follow(writer: Writer) -> None:
        found[writer.stream] = await writer.follow(reader)

    async with reading(aws, few=0) as reader, anyio.create_task_group() as tasks:
        for writer in (loud, quiet):
            writer.end()
            tasks.start_soon(follow, writer)

    assert found == {loud.stream: loud.texts, quiet.stream: quiet.texts}


async def test_a_silent_stream_is_not_read_again_nor_a_chatty_one_more_than_the_overlap(clock: VirtualClock) -> None:
    aws = account(clock, least=0.0, most=0.0)
    loud, silent = Writer(aws, "s/main/1"), Writer(aws, "s/main/2")
    silent.write(*numbered(2000))
    shown: dict[str, int] = {}
    original = aws.logs.filter_log_events

    async def counting(request: object) -> dict[str, object]:
        reply = await original(request)  # type: ignore[arg-type]
        for event in reply["events"]:
            shown[event["logStreamName"]] = shown.get(event["logStreamName"], 0) + 1
        return reply

    aws.logs.filter_log_events = counting  # type: ignore[method-assign]

    async def talk() -> None:
        for number in range(400):
            loud.write(*numbered(20, 20 * number))
            await anyio.sleep(1)
        loud.end()
        silent.end()

    async with reading(aws, few=0) as reader, anyio.create_task_group() as tasks:
        tasks.start_soon(talk)
        tasks.start_soon(loud.follow, reader)
        tasks.start_soon(silent.follow, reader)

    # A sweep each 2 s shows what is new and 10 s of what is not: six times all in all, and a little for less calls.
    assert shown[loud.stream] <= 7 * len(loud.texts)
    # Until others have shown that nothing older is still to come: two minutes, and those of the first sweep.
    assert shown[silent.stream] <= 70 * len(silent.texts)


async def test_a_stream_that_is_not_there_does_not_cost_the_others(clock: VirtualClock) -> None:
    aws = account(clock)
    writers = [Writer(aws, f"s/main/{number}") for number in range(99)]

    async with reading(aws, few=0) as reader, anyio.create_task_group() as tasks:
        for writer in writers:
            tasks.start_soon(writer.follow, reader)
        writer = writers[0]
        never = reader.follow(
            GROUP, {"s/never/1": "never"}, tail=None, attempt=1, started=writer.started, ended=writer.ended
        )
        tasks.start_soon(anext, never, None)
        await anyio.sleep(61)
        before = aws.calls.operations["logs.FilterLogEvents"]
        await anyio.sleep(60)
        made = aws.calls.operations["logs.FilterLogEvents"] - before
        tasks.cancel_scope.cancel()

    assert 30 <= made <= 33


async def test_a_slow_reader_loses_nothing_and_harms_nobody(clock: VirtualClock) -> None:
    aws = account(clock, least=0.0, most=1.0)
    slow, quick = Writer(aws, "s/main/1"), Writer(aws, "s/main/2")
    held: list[int] = []
    found: list[str] = []
    quick_until = 0.0

    async def talk(writer: Writer) -> None:
        for number in range(100):
            writer.write(*numbered(100, 100 * number))
            await anyio.sleep(0.5)
        writer.end()

    async def follow_slowly() -> None:
        async for line in slow.lines(reader):
            found.append(line.text)
            if len(found) % 10 == 0:
                await anyio.sleep(5)
            held.append(reader._buffered)

    async def follow_quickly() -> None:
        nonlocal quick_until
        assert await quick.follow(reader) == quick.texts
        quick_until = clock.time()

    async with reading(aws, few=0, buffered=1000) as reader, anyio.create_task_group() as tasks:
        tasks.start_soon(talk, slow)
        tasks.start_soon(talk, quick)
        tasks.start_soon(follow_slowly)
        tasks.start_soon(follow_quickly)

    assert found == slow.texts
    assert max(held) <= 2000
    assert quick_until < 80
    assert clock.time() > 4000


async def test_who_leaves_early_harms_nobody(clock: VirtualClock) -> None:
    aws = account(clock)
    writers = [Writer(aws, f"s/main/{number}") for number in range(20)]
    found: dict[str, list[str]] = {}

    async def follow(number: int) -> None:
        with anyio.move_on_after(3.0 * number if number % 2 else math.inf):
            found[writers[number].stream] = await writers[number].follow(reader)

    async with reading(aws, few=0) as reader, anyio.create_task_group() as tasks:
        for number, writer in enumerate(writers):
            tasks.start_soon(follow, number)
            tasks.start_soon(lambda w: chatter(w, Random(w.stream), lines=80, pause=1.0), writer)

    assert all(found[writer.stream] == writer.texts for writer in writers[::2])
    assert reader._buffered == 0
    assert reader._tails == []


@pytest.mark.sweep
@pytest.mark.parametrize("apart", [0.0, 0.4])
def test_three_hundred_jobs_stay_below_the_quotas_and_lose_nothing(apart: float) -> None:
    measured = ecs_jobs.measure(jobs=300, apart=apart)

    sweeps = measured.sweeps()

    # How long it took is a matter of the machine, and of the benchmark.
    missed = [row.name for row in ecs_jobs.rows(measured) if row.verdict.startswith("MISSED")]
    assert [name for name in missed if name != "wall time"] == []
    assert [sweep for sweep in sweeps if sweep.calls > sweep.allowed] == []
    assert max(sweep.streams for sweep in sweeps) > 100
