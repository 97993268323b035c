"""Cancelled at any await, and left in any way: nothing that we own goes on."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from fargate_runner import JobFailed, JobHandle, Kind, MemoryJournal, Retry, Runner, RunnerClosed
from fargate_runner.telemetry import JobDetached, JobEnded
from tests.scenario.faults import Fault
from tests.scenario.world import World, fixed, job, seconds, virtually, within

Story = Callable[[Runner], Awaitable[Any]]


async def running(runner: Runner) -> None:
    await runner.run(job("failing", "talking", key="story", retry=Retry(failures=1, wait=fixed(5))))


async def submitting(runner: Runner) -> None:
    handle = await runner.submit(job("failing", "talking", key="story", retry=Retry(failures=1, wait=fixed(5))))
    async with aclosing(handle.logs()) as lines:
        assert [line.text async for line in lines] == ["one", "two", "three"]
    await handle.wait()


async def stopping(runner: Runner) -> None:
    handle = await runner.submit(job("stubborn", key="story", stop_timeout=seconds(30)))
    await anyio.sleep(20)
    await handle.stop()


async def timing_out(runner: Runner) -> None:
    with pytest.raises(JobFailed):
        await runner.run(job("stubborn", key="story", timeout=seconds(20)))


async def mapping(runner: Runner) -> None:
    jobs = (job("failing", "quick", retry=Retry(failures=1, wait=fixed(5))) for _ in range(4))
    async with runner.map(jobs, concurrency=2) as results:
        assert len([result async for result in results]) == 4


async def attaching(runner: Runner) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runner.run, job("quick", key="story"))
        await anyio.sleep(30)
        await (await runner.attach("story")).wait()


STORIES = [running, submitting, stopping, timing_out, mapping, attaching]


class Steps:
    """Counts the times that a coroutine gives up control, and cancels it at one of them."""

    def __init__(self, cancel_at: float = math.inf) -> None:
        self.cancel_at = cancel_at
        self.count = 0

    async def run(self, story: Story, runner: Runner) -> None:
        """Run *story*, cancelled at its chosen step."""
        with anyio.CancelScope() as scope:
            await self._stepwise(story(runner), scope)

    def _stepwise(self, awaitable: Awaitable[Any], scope: anyio.CancelScope) -> Awaitable[Any]:
        steps = self

        class Stepwise:
            def __await__(self) -> Any:
                inner = awaitable.__await__()
                send: Any = None
                throw: BaseException | None = None
                while True:
                    try:
                        what = inner.throw(throw) if throw is not None else inner.send(send)  # type: ignore[attr-defined]
                    except StopIteration as stop:
                        return stop.value
                    steps.count += 1
                    if steps.count == steps.cancel_at:
                        scope.cancel()
                    send, throw = None, None
                    try:
                        send = yield what
                    except BaseException as exc:
                        throw = exc

        return Stepwise()


def told(story: Story, cancel_at: float = math.inf) -> tuple[int, World]:
    """Run *story* in a runner, cancelled at a step; return how many steps it took."""
    steps = Steps(cancel_at)

    async def main(world: World) -> World:
        async with world.runner() as runner:
            await steps.run(story, runner)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert world.platform.live() == 0
        return world

    world = virtually(main)
    return steps.count, world


class TestAtEveryAwait:
    @pytest.mark.parametrize("story", STORIES)
    def test_of_the_caller(self, story: Story) -> None:
        """The caller's task is cancelled at its k-th await, for every k."""
        most, _ = told(story)

        worlds = [told(story, cancel_at)[1] for cancel_at in range(1, most + 1)]

        assert most >= 3
        assert [world.unbalanced() for world in worlds] == [{}] * most
        assert [world.platform._runs for world in worlds] == [{}] * most

    @pytest.mark.parametrize("story", STORIES)
    def test_around_every_call_of_the_backend(self, story: Story) -> None:
        """The whole runner is cancelled when its k-th call of the backend begins, or has just had its effect."""
        most, _ = virtually(lambda world: cut_at_call(world, story, math.inf))

        worlds = [virtually(lambda world, k=k: cut_at_call(world, story, k))[1] for k in range(1, most + 1)]

        assert most >= 12
        assert [world.platform._runs for world in worlds] == [{}] * most
        assert [world.unbalanced() for world in worlds] == [{}] * most

    @pytest.mark.parametrize("story", STORIES)
    def test_at_every_moment(self, story: Story) -> None:
        """The whole runner is cancelled after every few seconds, whatever any of its tasks is doing."""
        for moment in range(0, 160, 3):
            world = virtually(lambda world, moment=moment: cut(world, story, moment))

            assert world.platform._runs == {}
            assert world.unbalanced() == {}

    @pytest.mark.parametrize("story", STORIES)
    def test_after_every_turn_of_the_loop(self, story: Story) -> None:
        """The same by turns of the event loop, from the first to well into the launch."""
        for turns in range(40):
            world = virtually(lambda world, turns=turns: cut_after_turns(world, story, turns))

            assert world.platform._runs == {}
            assert world.unbalanced() == {}


class Countdown:
    """Cancels a scope at its n-th call."""

    def __init__(self, number: float, scope: anyio.CancelScope) -> None:
        self.number = number
        self.scope = scope
        self.count = 0

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.number:
            self.scope.cancel()


async def cut_at_call(world: World, story: Story, number: float) -> tuple[int, World]:
    backend = world.backend()
    with anyio.CancelScope() as scope:
        backend.at_step = countdown = Countdown(number, scope)
        async with world.runner(backend=backend) as runner:
            await story(runner)
    assert world.platform.live() == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}
    return countdown.count, world


async def cut(world: World, story: Story, moment: float) -> World:
    with anyio.move_on_after(moment):
        async with world.runner() as runner:
            await story(runner)
    assert world.platform.live() == 0
    return world


async def cut_after_turns(world: World, story: Story, turns: int) -> World:
    async def in_a_runner() -> None:
        async with world.runner() as runner:
            await story(runner)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_a_runner)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert world.platform.live() == 0
    return world


class TestCancelling:
    async def test_a_run_stops_its_job_before_it_returns(self, world: World) -> None:
        async with world.runner() as runner:
            with anyio.move_on_after(20):
                await runner.run(job("stubborn", stop_timeout=seconds(30)))

            assert world.platform.live() == 0
            assert world.now == 50

    async def test_a_wait_leaves_the_job_running(self, world: World) -> None:
        async with world.runner() as runner:
            handle = await runner.submit(job("quick"))
            with anyio.move_on_after(20):
                await handle.wait()

            assert world.platform.live() == 1
            assert (await handle.wait()).succeeded

    async def test_a_stop_is_asked_all_the_same(self, world: World) -> None:
        async with world.runner() as runner:
            handle = await runner.submit(job("stubborn"))
            with anyio.move_on_after(20):
                await handle.stop()
            result = await handle.wait()

        assert result.outcome.kind is Kind.CANCELLED

    async def test_a_cancelled_submit_takes_its_job_back(self, world: World) -> None:
        async with world.runner(Fault("is_slow", "submit")) as runner:
            with anyio.move_on_after(10):
                await runner.submit(job("endless"))
            await anyio.sleep(60)

            assert world.platform.live() == 0
            assert world.now == 70

    async def test_inner_and_outer_deadlines_end_where_they_should(self, world: World) -> None:
        reached = []
        async with world.runner() as runner:
            with anyio.move_on_after(50) as outer:
                with anyio.move_on_after(20) as inner:
                    await runner.run(job("endless"))
                reached.append(world.now)
                await runner.run(job("endless"))

        assert reached == [20]
        assert inner.cancelled_caught
        assert outer.cancelled_caught
        assert world.now == 50

    async def test_an_outer_deadline_that_passes_while_a_job_stops_ends_the_outer_block(self, world: World) -> None:
        reached = []
        async with world.runner() as runner:
            with anyio.move_on_after(30):
                with anyio.move_on_after(20):
                    await runner.run(job("stubborn", stop_timeout=seconds(60)))
                await anyio.lowlevel.checkpoint()
                reached.append("the line after")

        assert reached == []
        assert world.platform.live() == 0

    async def test_asyncio_timeouts_work_too(self, world: World) -> None:
        async with world.runner() as runner:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(20):
                    await runner.run(job("stubborn"))

            assert world.platform.live() == 0

        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    async def test_a_cancelled_asyncio_task_leaves_nothing_live(self, world: World) -> None:
        async def main() -> None:
            async with world.runner() as runner:
                await runner.run(job("stubborn", stop_timeout=seconds(30)))

        task = asyncio.create_task(main())
        await asyncio.sleep(20)
        task.cancel()
        await asyncio.wait([task])

        assert task.cancelled()
        assert world.platform.live() == 0

    async def test_a_second_cancel_of_an_asyncio_task_leaves_nothing_live_either(self, world: World) -> None:
        async def main() -> None:
            async with world.runner() as runner:
                await runner.run(job("stubborn", stop_timeout=seconds(30)))

        task = asyncio.create_task(main())
        for _ in range(3):
            await asyncio.sleep(10)
            task.cancel()
        await asyncio.wait([task])

        assert world.platform.live() == 0
        assert world.unbalanced() == {}

    async def test_nobody_is_cancelled_who_shares_the_job_by_its_key(self, world: World) -> None:
        kinds = []

        async def other(runner: Runner) -> None:
            kinds.append((await runner.run(job("quick", key="shared"))).outcome.kind)

        async with world.runner() as runner, anyio.create_task_group() as tasks:
            with anyio.move_on_after(20):
                tasks.start_soon(other, runner)
                await runner.run(job("quick", key="shared"))

            assert world.now == 20
        assert kinds == [Kind.SUCCEEDED]

    async def test_the_last_who_leaves_stops_it(self, world: World) -> None:
        async with world.runner() as runner:
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(runner.run, job("endless", key="shared"))
                await anyio.sleep(20)
                tasks.cancel_scope.cancel()

            assert world.platform.live() == 0

    async def test_a_cancelled_second_submit_leaves_the_first_alone(self, world: World) -> None:
        async with world.runner(Fault("is_slow", "submit")) as runner:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(runner.submit, job("quick", key="shared"))
                with anyio.move_on_after(10):
                    await runner.submit(job("quick", key="shared"))
            result = await (await runner.attach("shared")).wait()

        assert result.outcome.kind is Kind.SUCCEEDED


class TestLeavingTheRunner:
    @pytest.mark.parametrize(
        "error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3), GeneratorExit(), StopAsyncIteration()], ids=repr
    )
    async def test_what_the_block_raises_comes_out_as_it_is(self, world: World, error: BaseException) -> None:
        with pytest.raises(type(error)) as raised:  # noqa: PT012
            async with world.runner() as runner:
                await runner.submit(job("stubborn"))
                raise error

        assert raised.value is error
        assert world.platform.live() == 0

    async def test_a_failed_job_comes_out_as_it_is(self, world: World) -> None:
        with pytest.raises(JobFailed):
            async with world.runner() as runner:
                await runner.run(job("failing"))

    async def test_cancellation_comes_out_as_it_is(self, world: World) -> None:
        with anyio.CancelScope() as scope:
            async with world.runner() as runner:
                await runner.submit(job("stubborn"))
                scope.cancel()
                await anyio.sleep(1)

        assert scope.cancelled_caught
        assert world.platform.live() == 0
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    async def test_a_cancelled_runner_forgets_what_ended_before(self, world: World) -> None:
        with anyio.move_on_after(1000):
            async with world.runner() as runner:
                for _ in range(3):
                    await runner.submit(job("quick"))
                await runner.submit(job("stubborn"))
                await anyio.sleep_forever()

        assert world.platform._runs == {}

    async def test_a_group_of_errors_stays_the_same_group(self, world: World) -> None:
        group = ExceptionGroup("two", [ValueError(), TypeError()])

        with pytest.raises(ExceptionGroup) as raised:
            async with world.runner():
                raise group

        assert raised.value is group

    async def test_a_runner_in_a_generator_that_is_closed_stops_its_jobs(self, world: World) -> None:
        async def generator() -> AsyncIterator[int]:
            async with world.runner() as runner:
                await runner.submit(job("stubborn"))
                yield 1

        running = generator()
        await anext(running)
        await running.aclose()  # type: ignore[attr-defined]

        assert world.platform.live() == 0

    async def test_all_jobs_are_stopped_at_once(self, world: World) -> None:
        async with world.runner() as runner:
            handles = [await runner.submit(job("stubborn", stop_timeout=seconds(30))) for _ in range(50)]
            await anyio.sleep(60)

        assert world.now == 90
        assert {kind(handle) for handle in handles} == {Kind.CANCELLED}

    async def test_a_detached_job_goes_on(self, world: World) -> None:
        async with world.runner(on_exit="detach") as runner:
            handle = await runner.submit(job("quick", key="k"))
            await anyio.sleep(20)

        assert world.now == 20
        assert world.platform.live() == 1
        assert handle.result is None
        with pytest.raises(RunnerClosed, match="attach"):
            await handle.wait()
        assert len(world.told(JobDetached)) == 1

    async def test_a_cancelled_run_stops_its_job_even_in_a_runner_that_detaches(self, world: World) -> None:
        async with world.runner(on_exit="detach") as runner:
            with anyio.move_on_after(20):
                await runner.run(job("endless"))

        assert world.platform.live() == 0

    async def test_attached_jobs_are_left_alone(self, world: World) -> None:
        async with world.runner(on_exit="detach") as runner:
            await runner.submit(job("quick", key="k"))
        async with world.runner() as runner:
            await runner.attach("k")
            await anyio.sleep(20)

        assert world.platform.live() == 1
        assert world.told(JobEnded) == []

    async def test_a_submit_under_way_is_stopped(self, world: World) -> None:
        async with anyio.create_task_group() as tasks:
            async with world.runner(Fault("is_slow", "submit")) as runner:
                tasks.start_soon(runner.submit, job("endless"))
                await anyio.sleep(10)

            assert world.platform.live() == 0
            assert world.unbalanced() == {}

    async def test_a_submit_under_way_is_detached_after_the_launch(self, world: World) -> None:
        handles: list[JobHandle] = []

        async def submit(runner: Runner) -> None:
            handles.append(await runner.submit(job("endless")))

        faulty = world.runner(Fault("is_slow", "submit"), on_exit="detach")
        async with anyio.create_task_group() as tasks, faulty as runner:
            tasks.start_soon(submit, runner)
            await anyio.sleep(10)

        assert len(handles) == 1
        assert world.platform.live() == 1
        assert world.unbalanced() == {}

    async def test_a_prepare_under_way_is_detached_after_the_launch(self, world: World) -> None:
        faulty = world.runner(Fault("is_slow", "prepare"), on_exit="detach")
        async with anyio.create_task_group() as tasks, faulty as runner:
            tasks.start_soon(runner.submit, job("endless"))
            await anyio.sleep(10)

        assert world.platform.live() == 1
        assert world.unbalanced() == {}

    @pytest.mark.parametrize("verb", ["prepare", "submit"])
    async def test_a_submit_under_way_that_was_let_go_of_and_then_is_cancelled_goes_on(
        self, world: World, verb: str
    ) -> None:
        async with world.runner(Fault("is_slow", verb)) as runner:
            with anyio.move_on_after(10) as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(runner.submit, job("endless", key="k"))
                    await anyio.sleep(5)
                    runner.detach()
                    await anyio.sleep(10)

        assert scope.cancelled_caught
        assert world.platform.live() == 1
        assert world.unbalanced() == {}

    async def test_a_job_whose_last_lines_are_being_read_is_let_go_of_at_once(self, world: World) -> None:
        async with world.runner(
            Fault("hangs", "logs"), on_exit="detach", journal=(journal := MemoryJournal())
        ) as runner:
            await runner.submit(job("talking", key="k"))
            await anyio.sleep(75)
            left_at = world.now
        assert (world.now, journal._pages["k"].result) == (left_at, None)

        async with world.runner(journal=journal) as runner:
            result = await (await runner.attach("k")).wait()

        assert [line.text for line in result.last_lines] == ["one", "two", "three"]

    async def test_a_stop_does_not_cost_a_job_that_has_ended_its_last_lines(self, world: World) -> None:
        async with world.runner(Fault("is_slow", "logs")) as runner:
            handle = await runner.submit(job("talking", key="k"))
            await anyio.sleep(71)
            result = await handle.stop()

        assert (result.succeeded, result.attempts[0].logs_complete) == (True, True)

    async def test_an_attach_under_way_hears_that_it_is_too_late(self, world: World) -> None:
        async def attach(runner: Runner) -> None:
            with pytest.raises(RunnerClosed):
                await runner.attach("k")

        async with world.runner(on_exit="detach") as runner:
            await runner.submit(job("endless", key="k"))
        async with world.backend(Fault("is_slow", "find")) as backend, anyio.create_task_group() as tasks:
            async with world.runner(backend=backend) as runner:
                tasks.start_soon(attach, runner)
                await anyio.sleep(10)

            assert not runner._lives

    async def test_a_closed_runner_takes_nothing(self, world: World) -> None:
        async with world.runner() as runner:
            pass

        for call in (runner.run, runner.submit):
            with pytest.raises(RunnerClosed):
                await call(job("quick"))
        with pytest.raises(RunnerClosed):
            await runner.attach("k")

    async def test_a_runner_that_was_never_entered_takes_nothing(self, world: World) -> None:
        with pytest.raises(RunnerClosed, match="async with"):
            await world.runner().run(job("quick"))

    async def test_a_runner_is_used_once(self, world: World) -> None:
        async with world.runner() as runner:
            pass

        with pytest.raises(RunnerClosed, match="make a new one"):
            async with runner:
                pass

    async def test_no_task_is_left(self, world: World) -> None:
        before = asyncio.all_tasks()
        async with world.runner() as runner:
            handle = await runner.submit(job("talking"))
            await runner.run(job("quick"))
            await anext(handle.logs())
            async for _ in runner.map([job("quick"), job("endless")]):
                break

        assert asyncio.all_tasks() == before

    async def test_a_bug_in_a_backend_is_heard_of_and_stops_everything(self, world: World) -> None:
        def broken(*_: Any) -> Any:
            raise ZeroDivisionError("a bug")

        with pytest.raises(ExceptionGroup) as raised:
            async with world.runner(script=broken) as runner:
                await within(100, runner.run, job("?"))

        assert raised.group_contains(ZeroDivisionError)


def kind(handle: JobHandle) -> Kind:
    assert handle.result is not None
    return handle.result.outcome.kind
