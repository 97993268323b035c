"""Letting go of everything at once."""

from __future__ import annotations

import math

import pytest

from fargate_runner import Job, MemoryBackend, Runner, RunnerClosed
from fargate_runner.backends.memory import MemoryPlatform, Script
from fargate_runner.testing.clock import VirtualClock


@pytest.fixture
def anyio_backend(clock: VirtualClock) -> object:
    return "asyncio", {"loop_factory": clock.loop}


async def test_detaching_leaves_every_live_job_running_and_tells_who_waits() -> None:
    platform = MemoryPlatform()
    backend = MemoryBackend(lambda job, identity: Script(run_for=math.inf), platform=platform)

    async with Runner(backend) as runner:
        handles = [await runner.submit(Job(command=["serve"], key=f"detach/{n}")) for n in range(3)]
        runner.detach()
        for handle in handles:
            with pytest.raises(RunnerClosed, match="attach"):
                await handle.wait()

    assert handles[0].result is None


async def test_detached_jobs_are_met_again_by_their_keys() -> None:
    platform = MemoryPlatform()
    jobs = [Job(command=["serve"], key=f"detach/{n}") for n in range(3)]

    async with Runner(MemoryBackend(lambda job, identity: Script(run_for=3600), platform=platform)) as runner:
        for job in jobs:
            await runner.submit(job)
        runner.detach()

    async with Runner(MemoryBackend(platform=platform)) as runner:
        results = [await (await runner.attach(f"detach/{n}")).wait() for n in range(3)]

    assert [result.exit_code for result in results] == [0, 0, 0]
    assert [len(result.attempts) for result in results] == [1, 1, 1]
