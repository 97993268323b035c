"""A thousand jobs, and a runner that died: the next one meets them all with few calls."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from fargate_runner import (
    EcsBackend,
    Job,
    JobHandle,
    Journal,
    Kind,
    MemoryBackend,
    MemoryJournal,
    Runner,
    SqliteJournal,
)
from fargate_runner.backends.memory import MemoryPlatform, Script
from fargate_runner.testing.aws import FakeAws
from fargate_runner.testing.clock import VirtualClock
from tests.contract.ecs_words import Words, script
from tests.ecs.conftest import NETWORK, ROLES

pytestmark = pytest.mark.sweep

MANY = 1000


@pytest.fixture
def anyio_backend(clock: VirtualClock) -> object:
    return "asyncio", {"loop_factory": clock.loop}


@pytest.fixture
def aws(clock: VirtualClock) -> FakeAws:
    return FakeAws(clock=clock, script=lambda run: script(run, run_for=600.0), clusters=("jobs",))


Runners = Callable[..., Runner]


@pytest.fixture
def runner_of(aws: FakeAws, clock: VirtualClock) -> Runners:
    def make(journal: Journal | None = None, **options: Any) -> Runner:
        backend = EcsBackend(
            "jobs",
            network=NETWORK,
            roles=ROLES,
            secret_prefix="/jobs",
            session=aws.session(),
            region=aws.region,
            utcnow=clock.utcnow,
        )
        return Runner(backend, journal=journal, utcnow=clock.utcnow, **options)

    return make


def jobs(**fields: Any) -> list[Job]:
    return [Words().exits(0).with_(key=f"job-{n}", **fields) for n in range(MANY)]


async def dies(runner: Runner, some: list[Job]) -> None:
    """
    Launch jobs, and then do nothing more.

    A runner that lets go of its jobs does not call the platform, and writes nothing: all that is left of it is what
    the journal says.
    """
    async with runner, anyio.create_task_group() as tasks:
        for one in some:
            tasks.start_soon(runner.submit, one)
        runner._on_exit = "detach"


@asynccontextmanager
async def counted(aws: FakeAws) -> AsyncGenerator[dict[str, int]]:
    """Count the calls that come in inside the block."""
    before = aws.calls.operations.copy()
    calls: dict[str, int] = {}
    yield calls
    calls.update(aws.calls.operations - before)


async def first_seen(handles: list[JobHandle]) -> None:
    """Wait until each handle has its first snapshot."""
    for handle in handles:
        while handle.snapshot is None:
            await handle._live.news()


async def test_recovering_a_thousand_jobs_takes_ten_looks(aws: FakeAws, runner_of: Runners) -> None:
    journal = MemoryJournal()
    await dies(runner_of(journal), jobs())

    async with runner_of(journal, on_exit="detach") as runner, counted(aws) as calls:
        handles = await runner.recover()
        await first_seen(handles)

    assert len(handles) == MANY
    assert calls == {"ecs.DescribeTasks": 10}


async def test_submitting_a_thousand_jobs_again_takes_ten_looks(aws: FakeAws, runner_of: Runners) -> None:
    journal = MemoryJournal()
    await dies(runner_of(journal), jobs())
    handles: list[JobHandle] = []

    async def submit(runner: Runner, one: Job) -> None:
        handles.append(await runner.submit(one))

    async with runner_of(journal, on_exit="detach") as runner, counted(aws) as calls:
        async with anyio.create_task_group() as tasks:
            for one in jobs():
                tasks.start_soon(submit, runner, one)
        await first_seen(handles)

    assert len(handles) == MANY
    assert calls == {"ecs.DescribeTasks": 10}
    assert len(aws.world.truth()) == MANY


async def test_watched_to_their_end_they_cost_no_look_of_their_own(aws: FakeAws, runner_of: Runners) -> None:
    journal = MemoryJournal()
    await dies(runner_of(journal), jobs()[:200])

    async with runner_of(journal) as runner, counted(aws) as calls:
        handles = await runner.recover()
        results = [await handle.wait() for handle in handles]

    looks = calls["ecs.DescribeTasks"]
    assert [result.outcome.kind for result in results] == [Kind.SUCCEEDED] * 200
    assert looks <= 2 * 700 / 2  # each hundred once in two seconds, for as long as they run
    assert calls.keys().isdisjoint({"ecs.ListTasks", "ecs.RunTask", "ecs.StopTask"})


async def test_without_a_journal_they_are_listed(aws: FakeAws, runner_of: Runners) -> None:
    some = jobs()[:100]
    await dies(runner_of(), some)

    async with runner_of(on_exit="detach") as runner, anyio.create_task_group() as tasks:
        for one in some:
            tasks.start_soon(runner.submit, one)

    assert len(aws.world.truth()) == 100


def test_a_thousand_pages_in_a_file_take_few_transactions(tmp_path: Path) -> None:
    """In real time, on a platform that outlives its runners."""

    class Counting(SqliteJournal):
        transactions = 0

        def _run(self, connection: Any, asked: Sequence[Any]) -> None:
            self.transactions += 1
            super()._run(connection, asked)

    platform = MemoryPlatform()

    def runner_of(journal: Journal) -> Runner:
        backend = MemoryBackend(lambda *_: Script(run_for=math.inf), platform=platform)
        return Runner(backend, journal=journal, on_exit="detach")

    async def first_life() -> int:
        journal = Counting(tmp_path / "jobs.sqlite")
        async with runner_of(journal) as runner, anyio.create_task_group() as tasks:
            for one in jobs():
                tasks.start_soon(runner.submit, one)
        return journal.transactions

    async def second_life() -> tuple[int, int]:
        journal = Counting(tmp_path / "jobs.sqlite")
        async with runner_of(journal) as runner:
            handles = await runner.recover()
            await first_seen(handles)
        return journal.transactions, len(handles)

    async def third_life() -> int:
        journal = Counting(tmp_path / "jobs.sqlite")
        async with runner_of(journal) as runner, anyio.create_task_group() as tasks:
            for one in jobs():
                tasks.start_soon(runner.submit, one)
        return journal.transactions

    async def lives() -> tuple[int, tuple[int, int], int]:
        return await first_life(), await second_life(), await third_life()

    launching, (recovering, met), submitting = anyio.run(lives)

    assert met == MANY
    assert launching <= 50  # of 3,000 readings and writings
    assert recovering <= 5
    assert submitting <= 5
    assert len(platform._runs) == MANY
