"""
A thousand log streams of one group, followed: our calls beside one GetLogEvents loop for each of them.

In virtual time and in this process, so that the fake AWS counts the calls of both over the very same minute. How long a
page keeps the event loop from everything else is measured on its own, against canned pages from another process.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import anyio

from benchmarks import ecs_api
from benchmarks._account import REGION
from benchmarks._report import Row
from fargate_runner.backends.ecs._api import Api
from fargate_runner.backends.ecs._logs import LogCadence, LogReader
from fargate_runner.testing.aws import FakeAws, Ingestion, Quotas
from fargate_runner.testing.clock import VirtualClock

__all__ = ["run"]

_GROUP: Final = "/fargate-runner"
_EVERY: Final = 1.0
"""Seconds between two lines of a stream."""

Seen = dict[str, list[str]]


def _name(number: int) -> str:
    return f"fr/main/{number:032x}"


async def _write(aws: FakeAws, streams: int, seconds: float) -> None:
    """Have each stream get a line a second, at a moment of its own."""
    for line in range(int(seconds / _EVERY)):
        for number in range(streams):
            at = int(aws.clock.utcnow().timestamp() * 1000) + number % 1000
            aws.logs.put(_GROUP, _name(number), [(at, f"{number}/{line}")])
        await anyio.sleep(_EVERY)


@asynccontextmanager
async def _writing(aws: FakeAws, streams: int, seconds: float) -> AsyncIterator[None]:
    aws.logs.create_group(_GROUP)
    for number in range(streams):
        aws.logs.put(_GROUP, _name(number))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_write, aws, streams, seconds)
        yield


async def _ours(aws: FakeAws, clock: VirtualClock, streams: int, seconds: float) -> Seen:
    seen: Seen = defaultdict(list)
    api = Api(session=aws.session(), region=REGION)
    cadence = LogCadence()

    async def started() -> None:
        pass

    async def ended() -> float:
        await anyio.sleep_until(seconds)
        return anyio.current_time()

    async def follow(number: int) -> None:
        name = _name(number)
        following = reader.follow(_GROUP, {name: "main"}, tail=None, attempt=1, started=started, ended=ended)
        async for lines in following:
            seen[name] += [line.text for line in lines]

    async with api.running(), _writing(aws, streams, seconds):
        reader = LogReader(api, utcnow=clock.utcnow, cadence=cadence)
        async with anyio.create_task_group() as sweeping:
            sweeping.start_soon(reader.run)
            async with anyio.create_task_group() as following:
                for number in range(streams):
                    following.start_soon(follow, number)
            sweeping.cancel_scope.cancel()
    return seen


async def _loops(aws: FakeAws, clock: VirtualClock, streams: int, seconds: float) -> Seen:
    """One loop for each stream: a page, a pause, the next page, for as long as ours reads."""
    seen: Seen = defaultdict(list)
    cadence = LogCadence()
    until = seconds + cadence.drain

    async def follow(logs: Any, number: int) -> None:
        name, where = _name(number), dict[str, str]()
        while clock.time() < until:
            page = await logs.get_log_events(logGroupName=_GROUP, logStreamName=name, startFromHead=True, **where)
            where = {"nextToken": page["nextForwardToken"]}
            seen[name] += [event["message"] for event in page["events"]]
            await anyio.sleep(cadence.period)

    async with (
        aws.session().client("logs") as logs,
        _writing(aws, streams, seconds),
        anyio.create_task_group() as following,
    ):
        for number in range(streams):
            following.start_soon(follow, logs, number)
    return seen


def _calls(way: Callable[..., Any], streams: int, seconds: float, quotas: Quotas) -> tuple[int, int, int]:
    """Return the calls that read, those of them that were throttled, and of how many streams a line is not there."""
    clock = VirtualClock()
    ingestion = Ingestion(least=0.5, most=5.0)
    aws = FakeAws(clock=clock, quotas=quotas, ingestion=ingestion, region=REGION)
    seen: Seen = anyio.run(way, aws, clock, streams, seconds, backend_options={"loop_factory": clock.loop})
    lines = int(seconds / _EVERY)
    wanted = {_name(number): [f"{number}/{line}" for line in range(lines)] for number in range(streams)}
    calls = [aws.calls.operations[f"logs.{operation}"] for operation in ("GetLogEvents", "FilterLogEvents")]
    print(f"  {way.__name__}: GetLogEvents {calls[0]:,}, FilterLogEvents {calls[1]:,}", file=sys.stderr)
    return sum(calls), aws.calls.throttled.total(), sum(seen[name] != lines for name, lines in wanted.items())


# ---- a page --------------------------------------------------------------------------------------------------------


async def _stall(read: ecs_api.Read, pages: int) -> float:
    """Return the longest time, in CPU seconds, that one turn of the loop takes while so many pages are read."""
    longest, over = 0.0, False

    async def beat() -> None:
        nonlocal longest
        last = time.thread_time()
        while not over:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, last = max(longest, now - last), now

    beating = asyncio.create_task(beat())
    await asyncio.sleep(0)
    await read(pages)
    over = True
    await beating
    return longest


async def _stalls(url: str, rounds: int) -> tuple[float, float]:
    async with ecs_api._our_reader(url) as ours, ecs_api._stock_reader(url) as stock:
        await ours(1)
        await stock(1)
        found = [(await _stall(ours, 2), await _stall(stock, 2)) for _ in range(rounds)]
    mine, theirs = (statistics.median(column) for column in zip(*found, strict=True))
    return mine, theirs


def run(*, streams: int = 1000, seconds: float = 60.0, rounds: int = 15) -> list[Row]:
    """Measure."""
    ours, throttled, wrong = _calls(_ours, streams, seconds, Quotas.published(REGION))
    loops, _, theirs = _calls(_loops, streams, seconds, Quotas.unlimited())
    with ecs_api._somebody(), ecs_api._server() as url:
        mine, stock = asyncio.run(partial(_stalls, url, rounds)())
    name = f"logs, {streams:,} streams"
    against = "a GetLogEvents loop for each, unthrottled"
    return [
        Row(f"{name}: calls in {seconds:g} s and the drain", ours, loops, "calls", against, 0.02),
        Row(f"{name}: throttled calls", throttled, 1, "calls", f"of {ours:,}", 0.0),
        Row(f"{name}: streams with a line lost, doubled or moved", wrong, 1, "streams", f"{theirs} in the loops", 0.0),
        Row("logs, a page of 10,000 lines: stall of the loop", mine * 1e3, stock * 1e3, "ms", "aioboto3", 0.35),
    ]
