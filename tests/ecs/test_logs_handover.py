"""From being read alone to being swept with many, and what waits for its turn there: in virtual time."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fargate_runner.testing.clock import VirtualClock
from tests.ecs.log_rig import GROUP, Writer, account, numbered, one_by_one, reading
from tests.ecs.test_logs_many import chatter


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("in_order", [True, False])
async def test_who_began_alone_goes_on_with_the_others_without_a_line_lost_or_doubled(
    clock: VirtualClock, seed: int, in_order: bool
) -> None:
    aws = account(clock, seed=seed, least=0.2, most=8.0, in_order=in_order, short_pages=0.2, empty_pages=0.2)
    writers = [Writer(aws, f"s/main/{number}") for number in range(40)]
    found: list[list[str]] = [[] for _ in writers]

    async def follow(number: int) -> None:
        found[number] = await writers[number].follow(reader)

    async with reading(aws) as reader, anyio.create_task_group() as tasks:
        for number, writer in enumerate(writers):
            tasks.start_soon(follow, number)
            random = Random(f"{seed}/{number}")
            tasks.start_soon(lambda w, r: chatter(w, r, lines=60, pause=1.0), writer, random)
            await anyio.sleep(1.5)

    assert aws.calls.operations["logs.GetLogEvents"] > 0
    assert aws.calls.operations["logs.FilterLogEvents"] > 0
    assert [sorted(texts) for texts in found] == [sorted(writer.texts) for writer in writers]
    assert not in_order or found == [writer.texts for writer in writers]


async def test_once_many_are_followed_nobody_is_read_alone(clock: VirtualClock) -> None:
    aws = account(clock)
    writers = [Writer(aws, f"s/main/{number}") for number in range(11)]
    for writer in writers:
        writer.write("hello")

    async with reading(aws) as reader, anyio.create_task_group() as tasks:
        for writer in writers[:10]:
            tasks.start_soon(writer.follow, reader)
        await anyio.sleep(60.5)
        assert aws.calls.operations["logs.FilterLogEvents"] == 0
        tasks.start_soon(writers[10].follow, reader)
        before = aws.calls.operations["logs.GetLogEvents"]
        await anyio.sleep(60)
        tasks.cancel_scope.cancel()

    assert aws.calls.operations["logs.GetLogEvents"] == before
    assert aws.calls.operations["logs.FilterLogEvents"] in {30, 31}


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
    crowded_at=st.floats(0, 60),
)
def test_the_same_words_in_the_same_moment_are_counted_across_the_handover(
    plan: list[tuple[float, int, str, int]], most: float, seed: int, crowded_at: float
) -> None:
    clock = VirtualClock()
    aws = account(clock, seed=seed, least=0.0, most=most, in_order=False, short_pages=0.2, empty_pages=0.2)
    writer, other = Writer(aws, "s/main/1"), Writer(aws, "s/main/2")
    written: Counter[tuple[int, str]] = Counter()
    found: Counter[tuple[int, str]] = Counter()

    async def work() -> None:
        for pause, back, text, times in plan:
            await anyio.sleep(pause)
            at = (round(clock.utcnow().timestamp() * 1000) - back) // 1000 * 1000
            written[at, text] += times
            aws.logs.put(GROUP, writer.stream, [(at, text)] * times)
        writer.end()

    async def main() -> None:
        async with reading(aws, few=1) as reader, anyio.create_task_group() as tasks:

            async def crowd() -> None:
                await anyio.sleep(crowded_at)
                await other.follow(reader)

            tasks.start_soon(work)
            tasks.start_soon(crowd)
            async for line in writer.lines(reader):
                assert line.at is not None
                found[round(line.at.timestamp() * 1000), line.text] += 1
            other.end()

    anyio.run(main, backend_options={"loop_factory": clock.loop})

    assert found == written


async def test_a_line_that_the_driver_cut_is_whole_across_the_handover(clock: VirtualClock) -> None:
    aws = account(clock, least=0.0, most=0.0)
    writer, other = Writer(aws, "s/main/1"), Writer(aws, "s/main/2")
    at = round(clock.utcnow().timestamp() * 1000)
    aws.logs.put(GROUP, writer.stream, [(at, "x" * 262_118)])
    found: list[str] = []

    async def follow() -> None:
        found.extend(await writer.follow(reader))

    async with reading(aws, few=1) as reader, anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        await anyio.sleep(5)
        tasks.start_soon(other.follow, reader)
        await anyio.sleep(5)
        aws.logs.put(GROUP, writer.stream, [(at, "the end")])
        writer.end()
        other.end()

    assert found == ["x" * 262_118 + "the end"]


@pytest.mark.parametrize("tail", [0, 1, 5, 50])
async def test_the_last_lines_and_all_that_come_also_where_many_are_followed(clock: VirtualClock, tail: int) -> None:
    aws = account(clock, least=0.0, most=1.0)
    writers = [Writer(aws, f"s/main/{number}") for number in range(3)]
    found: dict[str, list[str]] = {}

    async def follow(writer: Writer) -> None:
        found[writer.stream] = await writer.follow(reader, tail=tail)

    async def talk(writer: Writer) -> None:
        for number in range(20):
            await anyio.sleep(1)
            writer.write(*numbered(2, 20 + 2 * number))
        writer.end()

    for number in range(20):
        for writer in writers:
            writer.write(f"line {number}")
        await anyio.sleep(0.3)
    await anyio.sleep(5)
    async with reading(aws, few=0) as reader, anyio.create_task_group() as tasks:
        for writer in writers:
            tasks.start_soon(follow, writer)
            tasks.start_soon(talk, writer)

    assert found == {writer.stream: writer.texts[max(0, 20 - tail) :] for writer in writers}


async def test_streams_that_are_not_there_wait_their_turn_and_keep_nobody_from_theirs(clock: VirtualClock) -> None:
    aws = account(clock, least=0.2, most=2.0)
    writers = [Writer(aws, f"s/main/{number}") for number in range(90)]
    absent = [f"s/late/{number}" for number in range(10)]
    found: dict[str, list[tuple[str, str]]] = {}

    async def follow(number: int) -> None:
        writer = writers[number]
        streams = {writer.stream: "main"} | ({absent[number]: "late"} if number < 10 else {})
        lines = reader.follow(GROUP, streams, tail=None, attempt=1, started=writer.started, ended=writer.ended)
        found[writer.stream] = [(line.container, line.text) async for line in one_by_one(lines)]

    async with reading(aws, few=0) as reader, anyio.create_task_group() as tasks:
        for number, writer in enumerate(writers):
            tasks.start_soon(follow, number)
            tasks.start_soon(lambda w, r: chatter(w, r, lines=60, pause=3.0), writer, Random(number))
        await anyio.sleep(70)
        for stream in absent[:5]:
            Writer(aws, stream).write("here at last")

    looks = [call.at for call in aws.calls.of("logs.FilterLogEvents") if "nextToken" not in call.request]
    assert min(later - earlier for earlier, later in pairwise(looks)) > 1.9
    for number, writer in enumerate(writers):
        assert [text for container, text in found[writer.stream] if container == "main"] == writer.texts
        late = [text for container, text in found[writer.stream] if container == "late"]
        assert late == ["here at last"] * (number < 5)


async def test_slow_readers_of_many_streams_lose_nothing(clock: VirtualClock) -> None:
    aws = account(clock, least=0.2, most=4.0)
    writers = [Writer(aws, f"s/main/{number}") for number in range(30)]
    found: dict[str, list[str]] = {writer.stream: [] for writer in writers}

    async def follow(number: int) -> None:
        async for line in writers[number].lines(reader):
            texts = found[writers[number].stream]
            texts.append(line.text)
            if len(texts) % 20 == 0:
                await anyio.sleep(number % 3)

    async with reading(aws, few=0, buffered=100) as reader, anyio.create_task_group() as tasks:
        for number, writer in enumerate(writers):
            tasks.start_soon(follow, number)
            tasks.start_soon(lambda w, r: chatter(w, r, lines=600, pause=0.2), writer, Random(number))

    looks = [call.at for call in aws.calls.of("logs.FilterLogEvents") if "nextToken" not in call.request]
    assert found == {writer.stream: writer.texts for writer in writers}
    assert min(later - earlier for earlier, later in pairwise(looks)) > 1.9
