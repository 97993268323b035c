"""What the tests of the log reader share: an account with streams, writers, and readers of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import anyio

from fargate_runner import LogLine
from fargate_runner.backends.ecs._api import Api
from fargate_runner.backends.ecs._logs import LogCadence, LogReader
from fargate_runner.testing.aws import FakeAws, Ingestion, Quotas
from fargate_runner.testing.clock import VirtualClock

GROUP = "/jobs"


def account(clock: VirtualClock, *, seed: int = 0, quotas: Quotas | None = None, **ingestion: Any) -> FakeAws:
    return FakeAws(
        clock=clock,
        clusters=("jobs",),
        log_groups=(GROUP,),
        quotas=quotas or Quotas.unlimited(),
        ingestion=Ingestion(**ingestion),
        seed=seed,
        validate=False,
    )


@asynccontextmanager
async def reading(aws: FakeAws, **cadence: Any) -> AsyncGenerator[LogReader]:
    api = Api(session=aws.session(), region=aws.region)
    async with api.running(), anyio.create_task_group() as tasks:
        reader = LogReader(api, utcnow=aws.clock.utcnow, cadence=LogCadence(**cadence))
        tasks.start_soon(reader.run)
        yield reader
        tasks.cancel_scope.cancel()


class Writer:
    """A container: writes to its stream, and ends."""

    def __init__(self, aws: FakeAws, stream: str, container: str = "main") -> None:
        self.aws = aws
        self.stream = stream
        self.container = container
        self.texts: list[str] = []
        self._over = anyio.Event()
        self._over_at = 0.0
        aws.logs.put(GROUP, stream)

    def write(self, *texts: str) -> None:
        at = round(self.aws.clock.utcnow().timestamp() * 1000)
        self.texts += texts
        self.aws.logs.put(GROUP, self.stream, [(at, text) for text in texts])

    def end(self) -> None:
        self._over_at = anyio.current_time()
        self._over.set()

    async def started(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def ended(self) -> float:
        await self._over.wait()
        return self._over_at

    async def follow(self, reader: LogReader, *, tail: int | None = None) -> list[str]:
        return [line.text async for line in self.lines(reader, tail=tail)]

    def lines(self, reader: LogReader, *, tail: int | None = None) -> AsyncGenerator[LogLine]:
        return one_by_one(
            reader.follow(
                GROUP, {self.stream: self.container}, tail=tail, attempt=1, started=self.started, ended=self.ended
            )
        )


async def one_by_one(batches: AsyncGenerator[list[LogLine]]) -> AsyncGenerator[LogLine]:
    async with aclosing(batches):
        async for lines in batches:
            for line in lines:
                yield line


async def texts(batches: AsyncGenerator[list[LogLine]]) -> list[str]:
    return [line.text async for line in one_by_one(batches)]


def numbered(count: int, start: int = 0) -> Iterable[str]:
    return [f"line {number}" for number in range(start, start + count)]
