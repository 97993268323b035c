"""A thousand jobs, and a runner that died: the next one meets them all with few calls."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from fargate_runner import EcsBackend, Job, JobHandle, Journal, MemoryJournal, Runner
from fargate_runner.testing.aws import FakeAws
from fargate_runner.testing.clock import VirtualClock
from tests.contract.ecs_words import Words, script
from tests.ecs.conftest import NETWORK, ROLES

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
