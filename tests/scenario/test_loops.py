"""Several event loops, several runners, and trio."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.abc import TaskStatus

from fargate_runner import JobFailed, Kind, MemoryBackend, Retry, Runner, RunnerClosed
from fargate_runner.backends.memory import MemoryPlatform
from tests.scenario.world import World, fixed, job, played, seconds, virtually

Story = Callable[[Runner], Awaitable[Any]]


def test_one_process_may_run_many_loops() -> None:
    async def main(world: World) -> Kind:
        async with world.runner() as runner:
            return (await runner.run(job("quick"))).outcome.kind

    assert [virtually(main) for _ in range(5)] == [Kind.SUCCEEDED] * 5


def test_a_backend_may_be_opened_again_on_another_loop() -> None:
    backend = MemoryBackend(played)

    async def main(_: World) -> bool:
        async with Runner(backend) as runner:
            return (await runner.run(job("quick"))).succeeded

    assert [virtually(main) for _ in range(3)] == [True] * 3


async def test_two_runners_may_share_an_open_backend(world: World) -> None:
    async with world.backend() as backend:
        async with world.runner(backend=backend) as one:
            async with world.runner(backend=backend) as other:
                await other.run(job("quick"))
            result = await one.run(job("quick"))

        assert result.succeeded
        assert backend.is_open


async def test_a_runner_closes_the_backend_that_it_opened(world: World) -> None:
    async with world.runner() as runner:
        assert runner.backend.is_open

    assert not runner.backend.is_open


async def test_a_backend_that_is_closed_under_a_runner_is_heard_of(world: World) -> None:
    """The runner that opened it left first: an error of the caller's, which must not hang nor lose the account."""
    left = anyio.Event()
    backend = world.backend()

    async def own(*, task_status: TaskStatus[None]) -> None:
        async with world.runner(backend=backend):
            task_status.started()
            await left.wait()

    async with anyio.create_task_group() as tasks:
        await tasks.start(own)
        async with world.runner(backend=backend) as guest:
            handle = await guest.submit(job("quick"))
            left.set()
            with pytest.raises(RunnerClosed, match="backend is not open"):
                await handle.wait()

    assert world.unbalanced() == {}


# ---- trio ----------------------------------------------------------------------------------------------------------


async def running(runner: Runner) -> None:
    result = await runner.run(job("failing", "talking", retry=Retry(failures=1, wait=fixed(5))))
    assert result.succeeded


async def timing_out(runner: Runner) -> None:
    with pytest.raises(JobFailed, match="timed out"):
        await runner.run(job("stubborn", timeout=seconds(60)))


async def reading(runner: Runner) -> None:
    handle = await runner.submit(job("talking"))
    assert [line.text async for line in handle.logs()] == ["one", "two", "three"]


async def mapping(runner: Runner) -> None:
    results = [r async for r in runner.map((job("quick") for _ in range(50)), concurrency=7)]
    assert len(results) == 50


async def leaving_a_map(runner: Runner) -> None:
    async with runner.map((job("quick") for _ in range(50)), concurrency=7) as results:
        await anext(results)


async def failing_a_map(runner: Runner) -> None:
    with pytest.raises(JobFailed):
        async for _ in runner.map([job("stubborn"), job("failing")]):
            pass


async def cancelled(runner: Runner) -> None:
    with anyio.move_on_after(30) as scope:
        await runner.run(job("stubborn"))
    assert scope.cancelled_caught


async def leaving(runner: Runner) -> None:
    await runner.submit(job("stubborn"))
    await anyio.sleep(60)


async def raising(runner: Runner) -> None:
    await runner.submit(job("stubborn"))
    raise ZeroDivisionError


STORIES = [running, timing_out, reading, mapping, leaving_a_map, failing_a_map, cancelled, leaving]


def in_trio(story: Story, cancel_after: float = math.inf) -> None:
    trio_testing = pytest.importorskip("trio.testing")
    platform = MemoryPlatform()

    async def main() -> None:
        with anyio.move_on_after(cancel_after):
            async with Runner(MemoryBackend(played, platform=platform)) as runner:
                await story(runner)
        assert platform.live() == 0
        assert platform._runs == {}

    anyio.run(main, backend="trio", backend_options={"clock": trio_testing.MockClock(autojump_threshold=0)})


@pytest.mark.parametrize("story", STORIES)
def test_it_all_works_on_trio(story: Story) -> None:
    in_trio(story)


@pytest.mark.parametrize("moment", [0, 1, 15, 65, 80])
@pytest.mark.parametrize("story", STORIES)
def test_a_runner_is_cancelled_on_trio_at_any_moment(story: Story, moment: float) -> None:
    in_trio(story, cancel_after=moment)


def test_what_the_block_raises_on_trio_comes_out_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        in_trio(raising)
