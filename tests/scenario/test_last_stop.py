"""What nobody can tell the end of is told to end once more, and leaving does not wait for who knows a key."""

from __future__ import annotations

from typing import Literal

import anyio
import pytest

from fargate_runner import BackendError, JobHandle, Kind, Retry, Rule
from fargate_runner.telemetry import PlatformUnanswered
from tests.scenario.faults import Fault
from tests.scenario.world import World, fixed, job, seconds, within


class TestWhoseEndIsUnknown:
    async def test_after_a_silence_it_is_told_to_end(self, world: World) -> None:
        backend = world.backend(Fault("refuses", "observe", since=5))

        async with world.runner(backend=backend) as runner:
            handle = await runner.submit(job("endless"))
            result = await handle.wait()

            assert world.platform.live() == 0
        assert result.outcome.kind is Kind.UNKNOWN
        assert backend.called("stop") == 1

    async def test_after_three_stops_that_were_refused_it_is_told_again(self, world: World) -> None:
        backend = world.backend(Fault("refuses_for_good", "stop", last=3))

        async with world.runner(backend=backend) as runner:
            handle = await runner.submit(job("endless"))
            await anyio.sleep(20)
            result = await handle.stop()

            assert world.platform.live() == 0
        assert result.outcome.kind is Kind.UNKNOWN
        assert backend.called("stop") == 4

    async def test_it_is_over_before_a_rule_runs_it_again(self, world: World) -> None:
        backend = world.backend(Fault("refuses", "observe", since=5, until=320))
        again = Retry(rules=[Rule(then="retry", kinds=[Kind.UNKNOWN])], wait=fixed(60))

        async with world.runner(backend=backend) as runner:
            result = await runner.run(job("endless", "quick", key="k", retry=again))

        assert [attempt.outcome.kind for attempt in result.attempts] == [Kind.UNKNOWN, Kind.SUCCEEDED]
        assert backend.most_live_of_a_key == 1

    @pytest.mark.parametrize("how", ["hangs", "refuses"])
    async def test_one_that_cannot_be_told_costs_seconds_and_is_heard_of(
        self, world: World, how: Literal["hangs", "refuses"]
    ) -> None:
        async with world.runner(Fault("refuses", "observe", since=5), Fault(how, "stop")) as runner:
            handle = await runner.submit(job("endless"))
            result = await handle.wait()

        assert result.outcome.kind is Kind.UNKNOWN
        assert world.now <= 10 + 300 + 10
        assert [event.operation for event in world.told(PlatformUnanswered)][-1] == "stop"

    async def test_one_that_is_only_watched_is_left_alone(self, world: World) -> None:
        async with world.runner(on_exit="detach") as runner:
            await runner.submit(job("endless", key="k"))
        async with world.runner(Fault("refuses", "observe", since=5)) as runner:
            handle = await runner.attach("k")
            result = await handle.wait()

        assert result.outcome.kind is Kind.UNKNOWN
        assert world.platform.live() == 1


class TestLeavingWhileAKeyIsAskedFor:
    async def test_a_platform_that_never_answers_holds_nobody_up(self, world: World) -> None:
        backend = world.backend(Fault("hangs", "find"))
        backend.answer_patience = 900.0

        async with world.runner(backend=backend) as runner:
            with anyio.move_on_after(20):
                await runner.run(job("quick", key="k"))

        assert world.now <= 20 + 30
        assert backend.called("submit") == 0
        assert world.unbalanced() == {}

    @pytest.mark.parametrize("on_exit", ["stop", "detach"])
    async def test_nor_who_leaves_the_runner(self, world: World, on_exit: Literal["stop", "detach"]) -> None:
        backend = world.backend(Fault("hangs", "find"))
        backend.answer_patience = 900.0
        errors: list[BackendError] = []

        async def submit() -> None:
            with pytest.raises(BackendError, match="did not answer to find within 30 s") as raised:
                await runner.submit(job("quick", key="k"))
            errors.append(raised.value)

        async with anyio.create_task_group() as tasks:
            async with world.runner(backend=backend, on_exit=on_exit) as runner:
                tasks.start_soon(submit)
                await anyio.sleep(20)

        assert world.now <= 20 + 30
        assert [error.operation for error in errors] == ["find"]
        assert backend.called("submit") == 0

    async def test_what_the_key_names_is_found_and_stopped_all_the_same(self, world: World) -> None:
        async with world.runner(on_exit="detach") as runner:
            await runner.submit(job("endless", key="k"))

        async with world.runner(Fault("is_slow", "find")) as runner:
            with anyio.move_on_after(5):
                await runner.run(job("endless", key="k", stop_timeout=seconds(30)))

            assert world.platform.live() == 0

    async def test_what_the_key_names_is_found_and_left_running_if_told_so(self, world: World) -> None:
        handles: list[JobHandle] = []

        async def submit() -> None:
            handles.append(await runner.submit(job("endless", key="k")))

        async with world.runner(on_exit="detach") as runner:
            await runner.submit(job("endless", key="k"))

        backend = world.backend(Fault("is_slow", "find"))
        async with anyio.create_task_group() as tasks:
            async with world.runner(backend=backend, on_exit="detach") as runner:
                tasks.start_soon(submit)
                await anyio.sleep(5)

        assert len(handles) == 1
        assert world.platform.live() == 1
        assert backend.called("submit") == 0

    async def test_a_stop_before_the_question_is_put_bounds_it_too(self, world: World) -> None:
        backend = world.backend(Fault("hangs", "find"))
        backend.answer_patience = 900.0

        async with world.runner(backend=backend) as runner:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await within(3600, runner.run, job("quick", key="k"))

        assert world.now <= 30
