"""What observers hear: each job accepted once and ended once, each phase once, whatever the observers do."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from fargate_runner import InvalidJob, Job, Kind, MemoryJournal, Phase, Retry, Runner, Snapshot, TaskRef
from fargate_runner.telemetry import (
    AttemptEnded,
    AttemptLaunched,
    AttemptSeen,
    Event,
    JobAccepted,
    JobEnded,
    JobQueued,
    JobRefused,
    JobRemembered,
    PhaseReached,
    RetryScheduled,
    StopRequested,
)
from tests.scenario.faults import FaultyBackend
from tests.scenario.world import World, fixed, job, seconds


async def test_the_life_of_a_job_is_told_in_order(world: World) -> None:
    async with world.runner() as runner:
        await runner.run(job("failing", "quick", retry=Retry(failures=1, wait=fixed(5))))

    assert [event.title for event in world.events] == [
        "job.queued",
        "job.accepted",
        "attempt.launched",
        "attempt.seen",
        *["attempt.phase_reached"] * 3,
        "attempt.ended",
        "retry.scheduled",
        "attempt.launched",
        "attempt.seen",
        *["attempt.phase_reached"] * 3,
        "attempt.ended",
        "job.ended",
    ]


async def test_each_phase_is_told_once_for_each_attempt(world: World) -> None:
    async with world.runner() as runner:
        await runner.run(job("failing", "quick", retry=Retry(failures=1)))

    assert [(event.attempt, event.phase) for event in world.told(PhaseReached)] == [
        (attempt, phase) for attempt in (1, 2) for phase in (Phase.PENDING, Phase.RUNNING, Phase.ENDED)
    ]


async def test_a_platform_that_goes_back_does_not_bring_a_phase_back(world: World) -> None:
    class Wavering(FaultyBackend):
        """Says PENDING and RUNNING in turn."""

        async def observe(self, ref: TaskRef, *, after: Snapshot | None = None) -> Snapshot:
            said = len(self.calls)
            self.calls.append("observe")
            await anyio.sleep(20)
            phases = [Phase.PENDING, Phase.RUNNING]
            return Snapshot(phase=phases[said % 2]) if said < 9 else await self.inner.observe(ref)

    async with world.runner(backend=Wavering(world.backend().inner)) as runner:
        result = await runner.run(job("quick", timeout=seconds(900)))

    assert result.outcome.kind is Kind.SUCCEEDED
    assert len(world.told(PhaseReached)) == 3


async def test_every_job_of_a_crowd_is_accepted_once_and_ended_once(world: World) -> None:
    async with world.runner() as runner:
        words = [["quick"], ["failing"], ["failing", "quick"], ["soon_failing"], ["runs:3"]]
        jobs = (job(*words[number % 5], retry=Retry(failures=number % 3, wait=fixed(2))) for number in range(200))
        async for _ in runner.map(jobs, concurrency=17, on_error="collect"):
            pass

    assert len(world.told(JobAccepted)) == len(world.told(JobEnded)) == 200
    assert world.unbalanced() == {}
    assert len(world.told(AttemptLaunched)) == len(world.told(AttemptEnded))
    assert len(world.told(AttemptEnded)) == 200 + len(world.told(RetryScheduled))


async def test_what_is_told_at_the_end_is_the_record(world: World) -> None:
    async with world.runner() as runner:
        result = await runner.run(job("quick"))

    assert [event.result for event in world.told(JobEnded)] == [result]


async def test_a_job_that_is_never_accepted_is_told_as_refused(world: World) -> None:
    def impossible(job: Job, identity: object) -> Any:
        raise InvalidJob("image", "x", "not for this platform", "choose another")

    async with world.runner(script=impossible) as runner:
        with pytest.raises(InvalidJob):
            await runner.run(job("quick", key="k"))

    assert [event.title for event in world.events] == ["job.queued", "job.refused"]
    assert "not for this platform" in world.told(JobRefused)[0].error


async def test_a_job_that_the_journal_knows_is_told_as_remembered(world: World) -> None:
    journal = MemoryJournal()
    async with world.runner(journal=journal) as runner:
        result = await runner.run(job("quick", key="k"))
    world.events.clear()

    async with world.runner(journal=journal) as runner:
        await runner.run(job("quick", key="k"))

    assert [event.title for event in world.events] == ["job.queued", "job.remembered"]
    assert [event.result for event in world.told(JobRemembered)] == [result]


async def test_every_job_that_is_handed_over_is_told_before_anything_else(world: World) -> None:
    async with world.runner() as runner:
        async for _ in runner.map((job("quick") for _ in range(50)), concurrency=7):
            pass

    first = {event.key: event for event in reversed(world.events)}
    assert {type(event) for event in first.values()} == {JobQueued}
    assert len(first) == 50


async def test_an_attempt_is_seen_once_with_what_it_takes(world: World) -> None:
    async with world.runner() as runner:
        await runner.run(job("failing", "quick", vcpu=1, memory_gib=4, retry=Retry(failures=1)))

    seen = [(event.attempt, event.vcpu, event.memory_gib) for event in world.told(AttemptSeen)]
    assert seen == [(1, 1, 4), (2, 1, 4)]


async def test_a_job_that_is_met_again_is_as_old_as_it_is(world: World) -> None:
    async with world.runner(on_exit="detach") as runner:
        await runner.submit(job("endless", key="k"))
    await anyio.sleep(100)
    world.events.clear()

    async with world.runner(on_exit="detach") as runner:
        await runner.attach("k")
        await anyio.sleep(1)

    assert [event.age for event in world.told(AttemptSeen)] == [100]


async def test_a_stop_is_told_once_however_often_it_is_asked(world: World) -> None:
    async with world.runner() as runner:
        handle = await runner.submit(job("stubborn"))
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(handle.stop)

    assert len(world.told(StopRequested)) == 1


@pytest.mark.filterwarnings("ignore:observer:RuntimeWarning")
async def test_an_observer_that_raises_breaks_no_job(world: World) -> None:
    def broken(event: Event) -> Any:
        raise ZeroDivisionError

    async with world.runner(observers=[broken]) as runner:
        result = await runner.run(job("failing", "quick", retry=Retry(failures=1)))

    assert result.succeeded
    assert world.unbalanced() == {}


async def test_nobody_has_to_listen(world: World) -> None:
    async with Runner(world.backend()) as runner:
        assert (await runner.run(job("failing", "quick", retry=Retry(failures=1)))).succeeded
