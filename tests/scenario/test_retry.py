"""What is run again, seen from the runner: budgets, waits, growth, and leaving in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from fargate_runner import Cause, InvalidJob, Job, JobFailed, Kind, Retry, Rule, RunnerClosed
from fargate_runner.backends.memory import Script
from fargate_runner.telemetry import AttemptEnded, AttemptLaunched, JobDetached, RetryScheduled
from tests.scenario.faults import once
from tests.scenario.world import FAILING, QUICK, World, fixed, job, within


def in_turn(*scripts: Script) -> Callable[[Job, Any], Script]:
    """The attempts of a job go as *scripts* say, the last for all that follow."""
    return lambda _, identity: scripts[min(identity.attempt, len(scripts)) - 1]


RECLAIMED = Script(start_after=10, run_for=20, cause=Cause.RECLAIMED)
OUT_OF_MEMORY = Script(start_after=10, run_for=20, cause=Cause.OUT_OF_MEMORY, exit_code=137)
NO_CAPACITY = Script(start_after=10, cause=Cause.COULD_NOT_START, transient=True)
NO_IMAGE = Script(start_after=10, cause=Cause.COULD_NOT_START)
VANISHED = Script(start_after=10, run_for=20, cause=Cause.VANISHED)
UNHEARD_OF = Script(start_after=10, run_for=20, cause=Cause.UNRECOGNISED, exit_code=0)


class TestBudgets:
    @pytest.mark.parametrize(
        ("script", "retry", "attempts", "kind"),
        [
            (FAILING, {}, 1, Kind.FAILED),
            (FAILING, {"failures": 2}, 3, Kind.FAILED),
            (RECLAIMED, {"interruptions": 2}, 3, Kind.INTERRUPTED),
            (VANISHED, {"interruptions": 2}, 3, Kind.LOST),
            (NO_CAPACITY, {}, 4, Kind.NEVER_STARTED),
            (NO_IMAGE, {"never_started": 9}, 1, Kind.NEVER_STARTED),
            (OUT_OF_MEMORY, {}, 1, Kind.OUT_OF_MEMORY),
            (UNHEARD_OF, {"failures": 9}, 1, Kind.UNKNOWN),
            (UNHEARD_OF, {"rules": [Rule(then="retry", kinds=Kind.UNKNOWN, times=2)]}, 3, Kind.UNKNOWN),
            (FAILING, {"failures": 5, "rules": [Rule(then="give_up", exit_codes=3)]}, 1, Kind.FAILED),
        ],
    )
    async def test_each_kind_of_end_has_its_own(
        self, world: World, script: Script, retry: dict[str, Any], attempts: int, kind: Kind
    ) -> None:
        async with world.runner(script=in_turn(script)) as runner:
            with pytest.raises(JobFailed) as failed:
                await runner.run(job("?", retry=Retry(wait=fixed(1), **retry)))

        assert [attempt.number for attempt in failed.value.result.attempts] == list(range(1, attempts + 1))
        assert {attempt.outcome.kind for attempt in failed.value.result.attempts} == {kind}

    async def test_an_interruption_costs_no_failure(self, world: World) -> None:
        scripts = in_turn(FAILING, RECLAIMED, RECLAIMED, NO_CAPACITY, QUICK)

        async with world.runner(script=scripts) as runner:
            result = await runner.run(job("?", retry=Retry(failures=1, interruptions=2, never_started=1)))

        assert [attempt.outcome.kind.value for attempt in result.attempts] == [
            "failed",
            "interrupted",
            "interrupted",
            "never_started",
            "succeeded",
        ]

    async def test_every_attempt_has_a_token_of_its_own(self, world: World) -> None:
        async with world.runner() as runner:
            result = await runner.run(job("failing", "failing", "quick", retry=Retry(failures=2)))

        assert len({attempt.token for attempt in result.attempts}) == 3

    async def test_all_attempts_are_forgotten_at_the_end(self, world: World) -> None:
        async with world.runner() as runner:
            await runner.run(job("failing", "failing", "quick", retry=Retry(failures=2)))

        assert world.platform._runs == {}


class TestWaits:
    async def test_a_wait_takes_its_time(self, world: World) -> None:
        async with world.runner() as runner:
            result = await runner.run(job("failing", "failing", "quick", retry=Retry(failures=2, wait=fixed(300))))

        begins = [attempt.created_at.timestamp() for attempt in result.attempts]
        assert [begin - begins[0] for begin in begins] == [0, 370, 740]
        assert [event.wait for event in world.told(RetryScheduled)] == [300, 300]

    async def test_nothing_is_live_during_a_wait(self, world: World) -> None:
        async with world.runner() as runner:
            await runner.submit(job("failing", "quick", retry=Retry(failures=1, wait=fixed(300))))
            await anyio.sleep(200)

            assert world.platform.live() == 0

    async def test_a_stop_during_a_wait_ends_the_job_at_once(self, world: World) -> None:
        async with world.runner() as runner:
            handle = await runner.submit(job("failing", retry=Retry(failures=1, wait=fixed(3000))))
            await anyio.sleep(100)
            result = await handle.stop()

            assert (result.outcome.kind, len(result.attempts), world.now) == (Kind.FAILED, 1, 100)

    async def test_a_cancelled_run_during_a_wait_ends_at_once(self, world: World) -> None:
        async with world.runner() as runner:
            with anyio.move_on_after(100):
                await runner.run(job("failing", retry=Retry(failures=1, wait=fixed(3000))))

            assert world.now == 100
        assert len(world.told(AttemptLaunched)) == 1

    @pytest.mark.parametrize("on_exit", ["stop", "detach"])
    async def test_leaving_the_runner_during_a_wait_ends_the_job(self, world: World, on_exit: Any) -> None:
        async with world.runner(on_exit=on_exit) as runner:
            handle = await runner.submit(job("failing", retry=Retry(failures=1, wait=fixed(3000))))
            await anyio.sleep(100)

        assert world.now == 100
        assert handle.result is not None
        assert handle.result.outcome.kind is Kind.FAILED
        assert world.unbalanced() == {}

    async def test_detaching_in_the_second_attempt_leaves_it_alone(self, world: World) -> None:
        async with world.runner(on_exit="detach") as runner:
            handle = await runner.submit(job("failing", "endless", retry=Retry(failures=1, wait=fixed(10))))
            await anyio.sleep(100)

        assert world.platform.live() == 1
        assert [event.attempt for event in world.told(JobDetached)] == [2]
        with pytest.raises(RunnerClosed, match="let go"):
            await handle.wait()


class TestGrowth:
    async def test_memory_grows_after_an_out_of_memory_kill(self, world: World) -> None:
        scripts = in_turn(OUT_OF_MEMORY, OUT_OF_MEMORY, QUICK)

        async with world.runner(script=scripts) as runner:
            result = await runner.run(job("?", vcpu=1, memory_gib=2, retry=Retry(out_of_memory=2)))

        assert [attempt.memory_gib for attempt in result.attempts] == [2, 3, 4]

    async def test_the_platform_gets_what_the_record_says(self, world: World) -> None:
        asked = []

        def script(one: Job, identity: Any) -> Script:
            asked.append((identity.attempt, one.size.memory_gib))
            return OUT_OF_MEMORY

        async with world.runner(script=script) as runner:
            with pytest.raises(JobFailed):
                await runner.run(job("?", memory_gib=2, vcpu=1, retry=Retry(out_of_memory=9, max_memory_gib=4)))

        assert asked == [(1, 2), (2, 3), (3, 4)]

    async def test_a_size_that_the_backend_cannot_take_leaves_the_last_outcome(self, world: World) -> None:
        def script(one: Job, identity: Any) -> Script:
            if one.size.memory_gib > 2:
                raise InvalidJob("memory_gib", one.size.memory_gib, "the machine has less", "choose 2")
            return OUT_OF_MEMORY

        async with world.runner(script=script) as runner:
            with pytest.raises(JobFailed) as failed:
                await runner.run(job("?", memory_gib=2, vcpu=1, retry=Retry(out_of_memory=3)))

        assert [a.outcome.kind for a in failed.value.result.attempts] == [Kind.OUT_OF_MEMORY]
        assert world.unbalanced() == {}


class TestLaunchesThatFail:
    async def test_a_refused_launch_is_an_attempt_that_never_started(self, world: World) -> None:
        backend = world.backend(once("rejects", 1, "submit"))

        async with world.runner(backend=backend) as runner:
            result = await runner.run(job("quick", retry=Retry(wait=fixed(40))))

        assert [(a.outcome.kind, a.address is None) for a in result.attempts] == [
            (Kind.NEVER_STARTED, True),
            (Kind.SUCCEEDED, False),
        ]
        assert world.now == 110

    async def test_a_launch_refused_for_good_is_not_tried_again(self, world: World) -> None:
        async with world.runner(once("rejects_for_good", 1, "submit")) as runner:
            handle = await runner.submit(job("quick"))
            result = await handle.wait()

        assert [a.outcome.kind for a in result.attempts] == [Kind.NEVER_STARTED]
        assert world.unbalanced() == {}
        assert len(world.told(AttemptEnded)) == 1

    @pytest.mark.parametrize("operation", ["prepare", "submit"])
    async def test_a_second_attempt_that_cannot_be_launched_leaves_the_first_outcome(
        self, world: World, operation: str
    ) -> None:
        async with world.runner(once("refuses_for_good", 2, operation)) as runner:
            with pytest.raises(JobFailed) as failed:
                await within(1000, runner.run, job("failing", retry=Retry(failures=3, wait=fixed(1))))

        assert [a.outcome.kind for a in failed.value.result.attempts] == [Kind.FAILED]
        assert world.unbalanced() == {}
