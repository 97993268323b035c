"""A platform without room costs a job time, and nothing else."""

from __future__ import annotations

import anyio
import pytest

from fargate_runner import Identity, Job, Kind, Launch, Retry
from fargate_runner.telemetry import AttemptLaunched, LaunchDelayed, RetryScheduled
from tests.scenario.faults import Fault, FaultyBackend
from tests.scenario.world import World, job, seconds, within


def no_room(*, until: float) -> Fault:
    return Fault("has_no_room", "submit", until=until)


async def test_a_job_waits_until_there_is_room(world: World) -> None:
    async with world.runner(no_room(until=100)) as runner:
        result = await runner.run(job("quick"))

    assert [attempt.outcome.kind for attempt in result.attempts] == [Kind.SUCCEEDED]
    assert world.told(RetryScheduled) == []


async def test_it_is_launched_one_pause_after_there_is_room(world: World) -> None:
    async with world.runner(no_room(until=100)) as runner:
        await runner.run(job("quick"))

    (launched,) = world.told(AttemptLaunched)
    assert launched.attempt == 1
    assert sum(event.wait for event in world.told(LaunchDelayed)) <= 100 + 30


async def test_each_placement_has_a_token_of_its_own(world: World) -> None:
    backend = Tokens(world.backend(no_room(until=20)).inner, [no_room(until=20)])

    async with world.runner(backend=backend) as runner:
        await runner.run(job("quick"))

    assert len(set(backend.tokens)) == len(backend.tokens) > 2
    assert backend.placements == list(range(1, len(backend.placements) + 1))


async def test_the_next_attempt_goes_on_counting_placements(world: World) -> None:
    backend = Tokens(world.backend().inner, [no_room(until=2)])

    async with world.runner(backend=backend) as runner:
        await runner.run(job("failing", "quick", retry=Retry(failures=1)))

    first, *_, last = backend.placements
    assert (first, last) == (1, backend.placements[-2])


async def test_waiting_for_room_is_bounded_by_the_start_timeout(world: World) -> None:
    once = Retry(never_started=0)

    async with world.runner(no_room(until=float("inf"))) as runner:
        handle = await runner.submit(job("quick", start_timeout=seconds(300), retry=once))
        result = await within(301, handle.wait)

    assert (result.outcome.kind, result.outcome.transient) == (Kind.NEVER_STARTED, True)
    assert "no room" in result.outcome.detail


@pytest.mark.parametrize("after", [0.5, 3, 50, 290])
async def test_a_job_that_waits_for_room_can_be_stopped(world: World, after: float) -> None:
    async with world.runner(no_room(until=float("inf"))) as runner, anyio.create_task_group() as tasks:
        tasks.start_soon(runner.run, job("quick", key="k"))
        await anyio.sleep(after)
        await within(1, anyio.lowlevel.checkpoint)
        tasks.cancel_scope.cancel()

    assert world.platform.live() == 0
    assert world.told(AttemptLaunched) == []
    assert world.unbalanced() == {}


async def test_leaving_a_runner_lets_go_of_a_job_that_waits_for_room(world: World) -> None:
    with anyio.fail_after(120):
        async with world.runner(no_room(until=float("inf")), on_exit="detach") as runner:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(runner.submit, job("quick", key="k"))
                await anyio.sleep(20)
                tasks.cancel_scope.cancel()

    assert world.platform.live() == 0


class Tokens(FaultyBackend):
    """Remembers what it was asked to launch."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.tokens: list[str] = []
        self.placements: list[int] = []

    async def prepare(self, job: Job, identity: Identity) -> Launch:
        launch = await super().prepare(job, identity)
        self.tokens.append(launch.token)
        self.placements.append(identity.placement)
        return launch
