"""Deadlines to the second, and platforms that do not stop what they are asked to stop."""

from __future__ import annotations

import math

import anyio
import attrs
import pytest

from fargate_runner import JobFailed, JobResult, Kind, Phase, Retry, Snapshot, TaskRef
from fargate_runner.backends.memory import Script
from fargate_runner.telemetry import RetryScheduled, StopRequested
from tests.scenario.faults import Fault, FaultyBackend, How
from tests.scenario.world import World, fixed, job, seconds, within


def lasted(result: JobResult) -> list[float]:
    return [(attempt.ended_at - attempt.created_at).total_seconds() for attempt in result.attempts]


class TestStartTimeout:
    async def test_an_attempt_that_does_not_start_is_stopped_and_tried_again(self, world: World) -> None:
        one = job("slow_to_start", "quick", start_timeout=seconds(120), retry=Retry(wait=fixed(5)))

        async with world.runner() as runner:
            result = await runner.run(one)

        assert [a.outcome.kind for a in result.attempts] == [Kind.NEVER_STARTED, Kind.SUCCEEDED]
        assert lasted(result) == [120, 70]
        assert world.now == 120 + 5 + 70
        assert "start_timeout" in result.attempts[0].outcome.detail

    async def test_it_is_tried_as_often_as_the_budget_says(self, world: World) -> None:
        async with world.runner() as runner:
            with pytest.raises(JobFailed) as failed:
                await runner.run(job("slow_to_start", start_timeout=seconds(60), retry=Retry(never_started=2)))

        assert lasted(failed.value.result) == [60, 60, 60]

    async def test_a_start_just_in_time_is_one(self, world: World) -> None:
        async with world.runner(script=lambda *_: Script(start_after=119.9, run_for=1000)) as runner:
            result = await runner.run(job("?", start_timeout=seconds(120)))

        assert len(result.attempts) == 1


class TestTimeout:
    async def test_it_counts_from_the_start_of_the_job_itself(self, world: World) -> None:
        async with world.runner(script=lambda *_: Script(start_after=500, run_for=math.inf)) as runner:
            with pytest.raises(JobFailed) as failed:
                await runner.run(job("?", timeout=seconds(60)))

        result = failed.value.result
        assert result.outcome.kind is Kind.TIMED_OUT
        assert result.attempts[0].run_time == seconds(60)
        assert world.now == 560

    async def test_a_job_that_ends_in_time_is_not_touched(self, world: World) -> None:
        async with world.runner() as runner:
            result = await runner.run(job("quick", timeout=seconds(60.5)))

        assert result.succeeded
        assert world.told(StopRequested) == []

    async def test_each_attempt_has_its_own(self, world: World) -> None:
        one = job("endless", "runs:50", timeout=seconds(55), retry=Retry(failures=1, wait=fixed(0)))

        async with world.runner() as runner:
            result = await runner.run(one)

        assert [a.outcome.kind for a in result.attempts] == [Kind.TIMED_OUT, Kind.SUCCEEDED]
        assert lasted(result) == [65, 60]

    async def test_a_job_that_ignores_the_signal_is_killed_after_its_stop_timeout(self, world: World) -> None:
        async with world.runner() as runner:
            with pytest.raises(JobFailed) as failed:
                await runner.run(job("stubborn", timeout=seconds(60), stop_timeout=seconds(30)))

        result = failed.value.result
        assert (result.outcome.kind, result.exit_code) == (Kind.TIMED_OUT, 137)
        assert world.now == 100
        assert len(world.told(StopRequested)) == 1

    async def test_a_phase_that_was_not_seen_starts_the_clock_all_the_same(self, world: World) -> None:
        """A platform may go from PENDING to STOPPING: the start timeout has no more to say then."""
        backend = SkipsRunning(world.backend().inner)

        async with world.runner(backend=backend) as runner:
            result = await runner.run(job("runs:1000", start_timeout=seconds(60)))

        assert result.succeeded

    async def test_a_stop_that_came_first_keeps_its_kind(self, world: World) -> None:
        async with world.runner() as runner:
            handle = await runner.submit(job("stubborn", timeout=seconds(60), stop_timeout=seconds(30)))
            await anyio.sleep(60)
            result = await handle.stop("enough")

        assert result.outcome.kind is Kind.CANCELLED
        assert result.outcome.detail == "enough"
        assert world.now == 90

    async def test_it_does_so_although_it_is_heard_only_after_the_timeout(self, world: World) -> None:
        async with world.runner(Fault("refuses", "stop", until=200)) as runner:
            handle = await runner.submit(job("endless", timeout=seconds(60)))
            await anyio.sleep(60)
            result = await handle.stop("enough")

        assert result.outcome.kind is Kind.CANCELLED
        assert len(world.told(StopRequested)) == 1

    async def test_a_timeout_that_came_first_keeps_its_kind(self, world: World) -> None:
        async with world.runner() as runner:
            handle = await runner.submit(
                job("stubborn", timeout=seconds(60), stop_timeout=seconds(30), retry=Retry(failures=3))
            )
            await anyio.sleep(80)
            result = await handle.stop("enough")

        assert [a.outcome.kind for a in result.attempts] == [Kind.TIMED_OUT]
        assert world.told(RetryScheduled) == []

    async def test_the_first_reason_for_a_stop_counts(self, world: World) -> None:
        async with world.runner() as runner:
            handle = await runner.submit(job("stubborn"))
            await anyio.sleep(60)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(handle.stop, "first")
                await anyio.sleep(1)
                tasks.start_soon(handle.stop, "second")

        assert handle.result is not None
        assert handle.result.outcome.detail == "first"

    async def test_a_job_that_ended_by_itself_before_the_signal_keeps_its_outcome(self, world: World) -> None:
        async with world.runner(Fault("is_slow", "stop")) as runner:
            handle = await runner.submit(job("quick"))
            await anyio.sleep(60)
            result = await handle.stop()

        assert result.succeeded

    async def test_a_stopped_job_is_not_run_again(self, world: World) -> None:
        async with world.runner() as runner:
            handle = await runner.submit(job("endless", retry=Retry(failures=3, interruptions=3)))
            await anyio.sleep(60)
            result = await handle.stop()

        assert len(result.attempts) == 1


class TestStopsThatDoNotWork:
    async def test_after_three_in_vain_the_end_is_unknown(self, world: World) -> None:
        backend = DeafBackend(world.backend().inner)
        async with world.runner(backend=backend) as runner:
            handle = await runner.submit(job("endless", stop_timeout=seconds(30)))
            await anyio.sleep(60)
            result = await within(3600, handle.stop)

        assert result.outcome.kind is Kind.UNKNOWN
        assert backend.stops == 3 + 1  # once more, for it may live on
        assert len(world.told(StopRequested)) == 1
        assert world.now == 60 + 3 * 60

    async def test_a_platform_that_refuses_a_while_is_asked_until_it_does_not(self, world: World) -> None:
        async with world.runner(Fault("refuses", "stop", until=200)) as runner:
            handle = await runner.submit(job("endless"))
            await anyio.sleep(60)
            result = await within(3600, handle.stop)

        assert result.outcome.kind is Kind.CANCELLED
        assert world.platform.live() == 0

    async def test_one_that_does_not_answer_a_while_is_asked_until_it_does(self, world: World) -> None:
        async with world.runner(Fault("hangs", "stop", until=250)) as runner:
            handle = await runner.submit(job("endless"))
            await anyio.sleep(60)
            result = await within(3600, handle.stop)

        assert result.outcome.kind is Kind.CANCELLED
        assert world.platform.live() == 0

    @pytest.mark.parametrize("how", ["refuses", "refuses_for_good", "hangs"])
    async def test_one_that_refuses_for_ever_does_not_hang_us(self, world: World, how: How) -> None:
        async with world.runner(Fault(how, "stop")) as runner:
            handle = await runner.submit(job("endless"))
            await anyio.sleep(60)
            result = await within(3600, handle.stop)

        assert result.outcome.kind is Kind.UNKNOWN
        assert world.unbalanced() == {}

    async def test_leaving_the_runner_is_bounded_too(self, world: World) -> None:
        async with world.runner(Fault("hangs", "stop"), Fault("hangs", "logs"), Fault("hangs", "forget")) as runner:
            for _ in range(20):
                await runner.submit(job("endless", stop_timeout=seconds(30)))

        assert world.now <= 5 * 60 + 30 + 60 + 10 + 30 + 30
        assert world.unbalanced() == {}


class DeafBackend(FaultyBackend):
    """Takes every stop and does nothing about it."""

    stops = 0

    async def stop(self, ref: TaskRef, *, reason: str) -> None:
        self.stops += 1
        await anyio.lowlevel.checkpoint()


class SkipsRunning(FaultyBackend):
    """Shows a running attempt as one that is stopping."""

    async def observe(self, ref: TaskRef, *, after: Snapshot | None = None) -> Snapshot:
        before = attrs.evolve(after, phase=Phase.RUNNING) if after and after.phase is Phase.STOPPING else after
        seen = await self.inner.observe(ref, after=before)
        return attrs.evolve(seen, phase=Phase.STOPPING) if seen.phase is Phase.RUNNING else seen
