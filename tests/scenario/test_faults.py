"""Every single fault at every single call: one final record, one live attempt, nothing left, no hang."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from fargate_runner import BackendError, FargateRunnerError, JobFailed, JobHandle, JobResult, Kind, Retry, Runner
from fargate_runner.backends.memory import Script
from fargate_runner.telemetry import (
    AttemptEnded,
    AttemptLaunched,
    JobAccepted,
    JobEnded,
    LogsIncomplete,
    PlatformUnanswered,
)
from tests.scenario.faults import HOWS, Fault, FaultyBackend, How, once
from tests.scenario.world import World, fixed, job, seconds, virtually, within

Story = Callable[[Runner], Awaitable[Any]]


async def running(runner: Runner) -> None:
    await runner.run(job("failing", "quick", key="k", retry=Retry(failures=1, wait=fixed(5))))


async def stopping(runner: Runner) -> None:
    handle = await runner.submit(job("stubborn", key="k", stop_timeout=seconds(30)))
    await anyio.sleep(60)
    await handle.stop()


async def timing_out(runner: Runner) -> None:
    await runner.run(job("endless", key="k", timeout=seconds(60)))


async def starting_late(runner: Runner) -> None:
    await runner.run(job("slow_to_start", "quick", key="k", start_timeout=seconds(60)))


async def leaving(runner: Runner) -> None:
    await runner.submit(job("endless", key="k"))
    await anyio.sleep(60)


async def mapping(runner: Runner) -> None:
    async with runner.map([job("quick", key="k"), job("quick", key="l"), job("quick", key="k")]) as results:
        assert len([result async for result in results]) == 3


STORIES = [running, stopping, timing_out, starting_late, leaving, mapping]


async def told(world: World, story: Story, *faults: Fault) -> FaultyBackend:
    """Tell *story* on a backend with *faults*; what the library raises is an end like any other."""
    backend = world.backend(*faults)
    try:
        async with world.runner(backend=backend) as runner:
            await story(runner)
    except FargateRunnerError:
        pass
    assert world.platform.live() == 0
    return backend


def calls_of(story: Story) -> list[str]:
    return virtually(lambda world: told(world, story)).calls


class TestEverySingleFault:
    @pytest.mark.parametrize("how", HOWS)
    @pytest.mark.parametrize("story", STORIES)
    def test_at_every_single_call(self, story: Story, how: How) -> None:
        calls = calls_of(story)
        for number in range(1, len(calls) + 1):
            worlds: list[World] = []

            async def main(world: World, number: int = number, worlds: list[World] = worlds) -> FaultyBackend:
                worlds.append(world)
                return await told(world, story, once(how, number))

            backend = virtually(main)

            where = f"{how} at call {number}: {calls[number - 1]}"
            (world,) = worlds
            assert backend.most_live_of_a_key <= 1, where
            assert world.unbalanced() == {}, where
            assert world.now < 3600, where

    @pytest.mark.parametrize("how", ["refuses", "loses_answer", "hangs", "hangs_after", "is_slow"])
    @pytest.mark.parametrize("operation", ["prepare", "submit", "find", "logs", "forget"])
    def test_one_that_passes_harms_no_job(self, operation: str, how: How) -> None:
        async def main(world: World) -> JobResult:
            async with world.runner(once(how, 1, operation)) as runner:
                return await runner.run(job("quick", key="k"))

        assert virtually(main).succeeded

    @pytest.mark.parametrize("how", ["refuses", "loses_answer", "is_slow"])
    def test_nor_does_one_while_it_is_observed(self, how: How) -> None:
        async def main(world: World) -> None:
            for number in (1, 2, 3):
                async with world.runner(once(how, number, "observe")) as runner:
                    assert (await runner.run(job("quick"))).succeeded

        virtually(main)

    @pytest.mark.parametrize("how", HOWS)
    @pytest.mark.parametrize("operation", ["prepare", "submit", "observe", "logs", "forget", "find"])
    @pytest.mark.parametrize("story", STORIES)
    def test_for_ever(self, story: Story, operation: str, how: How) -> None:
        """An operation that never works again: everything still comes to an end, and is accounted for."""
        worlds: list[World] = []

        async def main(world: World) -> None:
            worlds.append(world)
            try:
                async with world.runner(Fault(how, operation, first=2)) as runner:
                    await within(7200, story, runner)
            except FargateRunnerError:
                pass

        virtually(main)

        assert worlds[0].unbalanced() == {}
        assert worlds[0].now < 7200


class TestLaunches:
    @pytest.mark.parametrize("how", ["loses_answer", "loses_answer_for_good", "hangs_after"])
    async def test_a_lost_answer_does_not_launch_twice(self, world: World, how: How) -> None:
        backend = world.backend(once(how, 1, "submit"))

        async with world.runner(backend=backend) as runner:
            result = await runner.run(job("quick"))

        assert result.succeeded
        assert len(result.attempts) == len(world.told(AttemptLaunched)) == 1
        assert backend.most_live == 1

    async def test_a_launch_that_never_answers_but_happened_is_found(self, world: World) -> None:
        async with world.runner(Fault("hangs_after", "submit")) as runner:
            result = await within(3600, runner.run, job("runs:1000"))

        assert result.succeeded

    async def test_a_launch_that_did_not_happen_is_an_error_and_no_record(self, world: World) -> None:
        async with world.runner(Fault("refuses", "submit")) as runner:
            with pytest.raises(BackendError, match="the fault plan says so"):
                await within(3600, runner.run, job("quick"))

        assert world.told(JobAccepted) == []

    async def test_a_launch_that_hangs_for_ever_is_an_error_that_says_so(self, world: World) -> None:
        async with world.runner(Fault("hangs", "submit")) as runner:
            with pytest.raises(BackendError, match="did not answer to submit within 60 s"):
                await within(3600, runner.run, job("quick"))

    async def test_a_launch_of_which_nobody_knows_is_unknown(self, world: World) -> None:
        faults = Fault("loses_answer", "submit"), Fault("refuses", "find")

        async with world.runner(*faults) as runner:
            handle = await within(3600, runner.submit, job("quick"))
            result = await handle.wait()

        assert result.outcome.kind is Kind.UNKNOWN
        assert "may have happened" in result.outcome.detail
        assert world.unbalanced() == {}

    async def test_a_platform_that_cannot_be_asked_before_a_launch_is_an_error(self, world: World) -> None:
        async with world.runner(Fault("refuses_for_good", "prepare")) as runner:
            with pytest.raises(BackendError):
                await runner.submit(job("quick"))

            assert world.now == 0
        assert [event.title for event in world.events] == ["job.queued", "job.refused"]

    async def test_a_prepare_that_hangs_can_be_cancelled(self, world: World) -> None:
        async with world.runner(Fault("hangs", "prepare")) as runner:
            with anyio.move_on_after(20):
                await runner.run(job("quick"))

            assert world.now == 20
        assert world.unbalanced() == {}

    async def test_the_key_of_a_job_that_could_not_be_launched_is_free_again(self, world: World) -> None:
        async with world.runner(once("refuses_for_good", 1, "prepare")) as runner:
            with pytest.raises(BackendError):
                await runner.run(job("quick", key="k"))

            assert (await runner.run(job("quick", key="k"))).succeeded


class TestSilence:
    async def test_five_minutes_without_an_answer_make_the_end_unknown(self, world: World) -> None:
        async with world.runner(Fault("refuses", "observe", since=5, until=605)) as runner:
            with pytest.raises(JobFailed) as failed:
                await runner.run(job("runs:60"))

        assert failed.value.result.outcome.kind is Kind.UNKNOWN
        assert world.now == 10 + 300
        assert world.unbalanced() == {}

    async def test_four_minutes_do_not(self, world: World) -> None:
        async with world.runner(Fault("refuses", "observe", since=5, until=245)) as runner:
            assert (await runner.run(job("runs:60"))).succeeded

    async def test_two_silences_do_not_add_up(self, world: World) -> None:
        faults = Fault("refuses", "observe", until=200), Fault("refuses", "observe", since=240, until=500)

        async with world.runner(*faults, script=lambda *_: Script(start_after=250, run_for=400)) as runner:
            assert (await runner.run(job("?"))).succeeded

    async def test_one_lost_question_does_not_make_a_long_job_unknown(self, world: World) -> None:
        async with world.runner(once("refuses", 3, "observe")) as runner:
            assert (await runner.run(job("runs:3600"))).succeeded

    async def test_a_question_that_is_lost_is_put_again(self, world: World) -> None:
        async with world.runner(once("hangs", 3, "observe")) as runner:
            assert (await within(3600, runner.run, job("quick"))).succeeded

    async def test_a_platform_that_hangs_is_as_good_as_silent(self, world: World) -> None:
        async with world.runner(Fault("hangs", "observe", since=5)) as runner:
            handle = await runner.submit(job("quick"))
            result = await within(3600, handle.wait)

        assert result.outcome.kind is Kind.UNKNOWN

    async def test_a_long_silence_of_a_job_that_runs_is_none_of_the_platform(self, world: World) -> None:
        async with world.runner() as runner:
            assert (await runner.run(job("runs:1000000"))).succeeded

        assert world.told(PlatformUnanswered) == []

    async def test_unknown_is_not_run_again(self, world: World) -> None:
        backend = world.backend(Fault("refuses", "observe"))

        async with world.runner(backend=backend) as runner:
            with pytest.raises(JobFailed):
                await runner.run(job("endless", retry=Retry(failures=9, interruptions=9)))

        assert backend.called("submit") == 1

    async def test_the_platform_is_not_asked_all_the_time(self, world: World) -> None:
        backend = world.backend(Fault("refuses", "observe"))

        async with world.runner(backend=backend) as runner:
            handle = await runner.submit(job("endless"))
            await handle.wait()

        assert backend.called("observe") <= 20
        assert len(world.told(PlatformUnanswered)) == backend.called("observe")

    async def test_nor_while_a_stop_waits_for_its_effect(self, world: World) -> None:
        backend = world.backend(Fault("refuses", "observe", since=20))

        async with world.runner(backend=backend) as runner:
            handle = await runner.submit(job("stubborn", stop_timeout=seconds(30)))
            await anyio.sleep(20)
            result = await within(1000, handle.stop)

        assert result.outcome.kind is Kind.UNKNOWN
        assert backend.called("observe") <= 30

    async def test_a_stop_is_asked_at_once_although_the_platform_is_silent(self, world: World) -> None:
        async with world.runner(Fault("refuses", "observe", since=20, until=100)) as runner:
            handle = await runner.submit(job("endless", timeout=seconds(3600)))
            await anyio.sleep(85)
            with anyio.move_on_after(1):
                await handle.stop()

            assert world.platform.live() == 0

    async def test_a_run_cancelled_during_a_silence_comes_back(self, world: World) -> None:
        async with world.runner(Fault("hangs", "observe")) as runner:
            with anyio.move_on_after(20):
                await runner.run(job("endless", stop_timeout=seconds(30)))

        assert world.platform.live() == 0
        assert world.now <= 20 + 3 * 60


class TestLogs:
    async def test_lines_that_are_gone_do_not_touch_the_outcome(self, world: World) -> None:
        async with world.runner(Fault("refuses", "logs")) as runner:
            result = await runner.run(job("talking"))

        assert result.succeeded
        assert [(a.last_lines, a.logs_complete) for a in result.attempts] == [((), False)]
        assert len(world.told(LogsIncomplete)) == 1

    async def test_lines_that_never_come_hold_the_result_up_for_half_a_minute(self, world: World) -> None:
        async with world.runner(Fault("hangs", "logs")) as runner:
            result = await runner.run(job("talking"))

        assert result.succeeded
        assert not result.attempts[0].logs_complete
        assert world.now == 70 + 30

    async def test_lines_that_are_there_are_in_the_record(self, world: World) -> None:
        async with world.runner() as runner:
            result = await runner.run(job("talking"))

        assert [line.text for line in result.last_lines] == ["one", "two", "three"]
        assert result.attempts[0].logs_complete


class TestForgetting:
    @pytest.mark.parametrize("how", ["refuses", "hangs"])
    async def test_a_platform_that_does_not_forget_harms_nobody(self, world: World, how: How) -> None:
        async with world.runner(Fault(how, "forget")) as runner:
            result = await runner.run(job("quick"))

        assert result.succeeded
        assert [event.operation for event in world.told(PlatformUnanswered)] == ["forget"]
        assert len(world.told(AttemptEnded)) == len(world.told(JobEnded)) == 1

    async def test_the_runner_waits_for_the_last_of_it(self, world: World) -> None:
        async with world.runner(Fault("is_slow", "forget")) as runner:
            for _ in range(10):
                handle: JobHandle = await runner.submit(job("quick"))
            await handle.wait()

        assert world.platform._runs == {}
        assert world.now == 70 + 20
