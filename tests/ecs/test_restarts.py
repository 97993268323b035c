"""What chaos found on ECS, one by one: most of it when a runner takes over what another one began."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta

import anyio
import pytest

from fargate_runner import EcsBackend, Job, Kind, MemoryJournal, Runner
from fargate_runner.testing.aws import FakeAws, Fault
from fargate_runner.testing.clock import VirtualClock
from tests.contract.ecs_words import Words

Make = Callable[..., EcsBackend]


def waits(**changes: object) -> Job:
    return Words().waits().with_(key="k", **changes)


async def begun(backend: EcsBackend, clock: VirtualClock, journal: MemoryJournal, job: Job) -> None:
    """Submit a job, and leave it running."""
    async with Runner(backend, journal=journal, on_exit="detach", utcnow=clock.utcnow) as runner:
        await runner.submit(job)


class TestATaskThatIsTakenOver:
    @pytest.mark.parametrize("hidden", [0.0, 100.0, 250.0])
    async def test_times_out_when_it_is_due_although_ecs_does_not_show_it_at_first(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock, hidden: float
    ) -> None:
        """Chaos, seed 98."""
        journal, job = MemoryJournal(), waits(timeout=timedelta(seconds=300))
        await begun(make_backend(), clock, journal, job)
        (arn,) = aws.world.tasks
        aws.world.hide(arn, hidden)

        async with Runner(make_backend(), journal=journal, utcnow=clock.utcnow) as runner:
            result = await (await runner.submit(job)).wait()

        (truth,) = aws.world.truth()
        assert result.outcome.kind is Kind.TIMED_OUT
        assert truth.ended_at is not None
        assert truth.started_at is not None
        assert truth.ended_at - truth.started_at == pytest.approx(300, abs=10)

    async def test_does_not_start_in_time_although_ecs_does_not_show_it_at_first(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock
    ) -> None:
        journal, job = MemoryJournal(), waits(start_timeout=timedelta(seconds=200))
        aws.world.pace = aws.world.pace.scaled(100)
        await begun(make_backend(), clock, journal, job)
        (arn,) = aws.world.tasks
        aws.world.hide(arn, 150.0)
        await anyio.sleep(100)

        async with Runner(make_backend(), journal=journal, utcnow=clock.utcnow) as runner:
            handle = await runner.submit(job)
            while aws.world.tasks[arn].desired_status == "RUNNING":
                await anyio.sleep(1)
            asked_at = clock.time()
            await handle.stop()

        assert asked_at == pytest.approx(200, abs=10)


class TestATaskThatIsNew:
    async def test_times_out_when_it_is_due_although_ecs_shows_it_late(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock
    ) -> None:
        """Chaos, seed 22."""
        aws.world.visible_after = (200.0, 200.0)

        async with Runner(make_backend(), utcnow=clock.utcnow) as runner:
            result = await (await runner.submit(waits(timeout=timedelta(seconds=300)))).wait()

        (truth,) = aws.world.truth()
        assert result.outcome.kind is Kind.TIMED_OUT
        assert truth.ended_at is not None
        assert truth.started_at is not None
        assert truth.ended_at - truth.started_at == pytest.approx(300, abs=2)


class TestCredentialsThatExpire:
    @pytest.mark.parametrize("seconds", [60.0, 240.0, 800.0])
    async def test_do_not_make_a_stop_one_in_vain(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock, seconds: float
    ) -> None:
        """Chaos, seed 83."""
        job = waits()
        async with Runner(make_backend(), utcnow=clock.utcnow) as runner:
            handle = await runner.submit(job)
            await anyio.sleep(100)
            expired = Fault(times=math.inf, code="ExpiredTokenException", message="it is expired", status=403)
            aws.faults.add(expired)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(handle.stop)
                await anyio.sleep(seconds)
                aws.faults.clear()

        assert handle.result is not None
        assert handle.result.outcome.kind is Kind.CANCELLED
        assert [truth.status for truth in aws.world.truth()] == ["STOPPED"]
