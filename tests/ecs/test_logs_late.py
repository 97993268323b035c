"""Events that come late, tokens that grow old, streams with more than anybody wants to hold: in virtual time."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from random import Random
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fargate_runner.testing.aws import FakeAws, Fault
from fargate_runner.testing.clock import VirtualClock
from tests.ecs.log_rig import GROUP, Writer, account, numbered, reading
from tests.ecs.test_logs_many import chatter


@pytest.mark.parametrize("seed", range(8))
async def test_events_that_come_out_of_order_are_not_lost_where_few_are_read(clock: VirtualClock, seed: int) -> None:
    aws = account(clock, seed=seed, least=0.2, most=9.0, in_order=False, short_pages=0.2, empty_pages=0.2)
    writers = [Writer(aws, f"s/main/{number}") for number in range(5)]
    found: list[list[str]] = [[] for _ in writers]

    async def follow(number: int) -> None:
        found[number] = await writers[number].follow(reader)

    async with reading(aws) as reader, anyio.create_task_group() as tasks:
        for number, writer in enumerate(writers):
            tasks.start_soon(follow, number)
            random = Random(f"{seed}/{number}")
            tasks.start_soon(lambda w, r: chatter(w, r, lines=60, pause=1.0), writer, random)

    assert aws.calls.operations["logs.FilterLogEvents"] == 0
    assert [sorted(texts) for texts in found] == [sorted(writer.texts) for writer in writers]


@pytest.mark.parametrize("page", range(4, 24))
async def test_a_page_that_hangs_makes_nothing_too_late(clock: VirtualClock, page: int) -> None:
    aws = account(clock, seed=page, least=0.2, most=9.0, in_order=False)
    aws.faults.add(Fault(match="logs.GetLogEvents", skip=page, delay=25.0))
    writer = Writer(aws, "s/main/1")

    async with reading(aws) as reader, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: chatter(writer, Random(page), lines=300, pause=0.5))
        found = await writer.follow(reader)

    assert sorted(found) == sorted(writer.texts)


@pytest.mark.parametrize("few", [0, 10])
async def test_one_late_event_in_a_long_silence_is_found(clock: VirtualClock, few: int) -> None:
    aws = account(clock, least=0.0, most=0.0)
    writer = Writer(aws, "s/main/1")

    async def talk() -> None:
        await anyio.sleep(20)
        writer.write("on time")
        stamp = round(clock.utcnow().timestamp() * 1000) - 500
        await anyio.sleep(9)
        aws.logs.put(GROUP, writer.stream, [(stamp, "late")])
        await anyio.sleep(60)
        writer.end()

    async with reading(aws, few=few) as reader, anyio.create_task_group() as tasks:
        tasks.start_soon(talk)
        found = await writer.follow(reader)

    assert found == ["on time", "late"]


@settings(max_examples=60, deadline=None)
@given(
    plan=st.lists(
        st.tuples(
            st.floats(0, 6),  # seconds until it is written
            st.integers(0, 4000),  # milliseconds that its stamp lies back
            st.sampled_from("ab"),
            st.integers(1, 3),
        ),
        max_size=25,
    ),
    most=st.floats(0, 5),
    seed=st.integers(0, 99),
    few=st.sampled_from([0, 10]),
)
def test_the_same_words_in_the_same_moment_are_counted_whenever_they_come(
    plan: list[tuple[float, int, str, int]], most: float, seed: int, few: int
) -> None:
    clock = VirtualClock()
    aws = account(clock, seed=seed, least=0.0, most=most, in_order=False, short_pages=0.2, empty_pages=0.2)
    writer = Writer(aws, "s/main/1")
    written: Counter[tuple[int, str]] = Counter()

    async def work() -> None:
        for pause, back, text, times in plan:
            await anyio.sleep(pause)
            at = (round(clock.utcnow().timestamp() * 1000) - back) // 1000 * 1000
            written[at, text] += times
            aws.logs.put(GROUP, writer.stream, [(at, text)] * times)
        writer.end()

    found: Counter[tuple[int, str]] = Counter()

    async def main() -> None:
        async with reading(aws, few=few) as reader, anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            async for line in writer.lines(reader):
                assert line.at is not None
                found[round(line.at.timestamp() * 1000), line.text] += 1

    anyio.run(main, backend_options={"loop_factory": clock.loop})

    assert found == written


async def test_a_token_that_became_too_old_after_the_last_lines_shows_nothing_again(clock: VirtualClock) -> None:
    aws = account(clock, least=0.0, most=0.0)
    writer = Writer(aws, "s/main/1")
    writer.write(*numbered(20))
    found: list[str] = []

    async with reading(aws) as reader:
        async for line in writer.lines(reader, tail=3):
            found.append(line.text)
            if len(found) == 3:
                await anyio.sleep(25 * 3600)
                writer.write("new", "new")
                writer.end()

    assert found == ["line 17", "line 18", "line 19", "new", "new"]


async def test_looking_back_costs_a_few_times_the_lines_at_most(clock: VirtualClock) -> None:
    aws = account(clock, least=0.0, most=0.0)
    writer = Writer(aws, "s/main/1")
    shown = 0
    original = aws.logs.get_log_events

    async def counting(request: Any) -> dict[str, Any]:
        nonlocal shown
        reply = await original(request)
        shown += len(reply["events"])
        return reply

    aws.logs.get_log_events = counting  # type: ignore[method-assign]

    async def talk() -> None:
        for number in range(400):
            writer.write(*numbered(20, 20 * number))
            await anyio.sleep(1)
        writer.end()

    async with reading(aws) as reader, anyio.create_task_group() as tasks:
        tasks.start_soon(talk)
        found = await writer.follow(reader)

    assert found == writer.texts
    assert shown <= 4 * len(found)
    assert aws.calls.operations["logs.GetLogEvents"] < 450


async def test_a_silent_stream_is_asked_once_in_a_period(clock: VirtualClock) -> None:
    aws = account(clock, least=0.0, most=0.0)
    writer = Writer(aws, "s/main/1")
    writer.write("a word")

    async with reading(aws) as reader, anyio.create_task_group() as tasks:
        tasks.start_soon(writer.follow, reader)
        await anyio.sleep(61)
        before = aws.calls.operations["logs.GetLogEvents"]
        await anyio.sleep(60)
        made = aws.calls.operations["logs.GetLogEvents"] - before
        tasks.cancel_scope.cancel()

    assert made == 30


def burst(aws: FakeAws, clock: VirtualClock, stream: str, *, thousands: int, per_ms: int) -> None:
    at = round(clock.utcnow().timestamp() * 1000)
    for number in range(thousands):
        aws.logs.put(GROUP, stream, [(at + number // per_ms, text) for text in numbered(1000, 1000 * number)])


@pytest.mark.sweep
@pytest.mark.parametrize(("few", "mib"), [(0, 15), (10, 8)])  # a reader that keeps all lines takes 3 to 5 more
@pytest.mark.parametrize("per_ms", [1, 40])
async def test_a_burst_is_read_in_order_within_little_memory(
    clock: VirtualClock, few: int, mib: int, per_ms: int
) -> None:
    aws = account(clock, least=0.0, most=0.0)
    first, writer = Writer(aws, "s/main/0"), Writer(aws, "s/main/1")
    first.write("a word")
    burst(aws, clock, writer.stream, thousands=60, per_ms=per_ms)
    await anyio.sleep(10)
    first.end()
    writer.end()
    wrong = count = 0

    async with reading(aws, few=few) as reader:
        await first.follow(reader)  # what is loaded once is loaded now
        gc.collect()
        tracemalloc.start()
        async for line in writer.lines(reader):
            wrong += line.text != f"line {count}"
            count += 1
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert (wrong, count) == (0, 60_000)
    assert peak < mib * 2**20


@pytest.mark.sweep
async def test_who_has_much_to_catch_up_does_not_make_the_others_read_it(clock: VirtualClock) -> None:
    aws = account(clock, least=0.0, most=0.0)
    loud = Writer(aws, "s/main/0")
    others = [Writer(aws, f"s/main/{number}") for number in range(1, 60)]
    burst(aws, clock, loud.stream, thousands=150, per_ms=1)
    await anyio.sleep(3600)
    others[0].write("a word")
    loud.end()

    async with reading(aws, few=0) as reader, anyio.create_task_group() as tasks:
        for writer in others:
            tasks.start_soon(writer.follow, reader)
        began = clock.time()
        found = sum([1 async for _ in loud.lines(reader)])
        took = clock.time() - began
        tasks.cancel_scope.cancel()

    sweeps = took / 2
    assert found == 150_000
    # One call for the others each time, and a few pages for the loud one; the pages to its end would be 17 each time.
    assert aws.calls.operations["logs.FilterLogEvents"] < 4 * sweeps + 20


async def test_a_page_that_is_not_in_order_of_time_is_shown_once(clock: VirtualClock) -> None:
    aws = account(clock, least=0.0, most=0.0)
    writer = Writer(aws, "s/main/1")
    original = aws.logs.get_log_events

    async def by_arrival(request: Any) -> dict[str, Any]:
        # Some emulators do this, and do not know of startTime.
        reply = await original({key: value for key, value in request.items() if key != "startTime"})
        return {**reply, "events": reply["events"][::-1]}

    aws.logs.get_log_events = by_arrival  # type: ignore[method-assign]

    async def talk() -> None:
        for number in range(30):
            writer.write(*numbered(3, 3 * number))
            await anyio.sleep(1)
        writer.end()

    async with reading(aws) as reader, anyio.create_task_group() as tasks:
        tasks.start_soon(talk)
        found = await writer.follow(reader)

    assert sorted(found) == sorted(writer.texts)
