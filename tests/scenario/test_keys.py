"""A key names one job for ever: in one runner, across runners, across crashes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from fargate_runner import Cause, Job, JobFailed, JobHandle, JobNotFound, JobResult, KeyConflict, Kind, Retry, Runner
from fargate_runner.backends.memory import Script
from fargate_runner.telemetry import AttemptLaunched, JobAccepted
from tests.scenario.world import QUICK, World, fixed, job, seconds

OUT_OF_MEMORY = Script(start_after=10, run_for=20, cause=Cause.OUT_OF_MEMORY, exit_code=137)


async def crashed(world: World, one: Job, *, after: float, script: Callable[..., Script] | None = None) -> None:
    """Run *one* for a while in a runner that then goes away without a word."""
    options: dict[str, Any] = {} if script is None else {"script": script}
    async with world.runner(on_exit="detach", **options) as runner:
        await runner.submit(one)
        await anyio.sleep(after)
    world.events.clear()


class TestInOneRunner:
    async def test_submits_at_the_same_time_are_one_job(self, world: World) -> None:
        backend = world.backend()
        results: list[JobResult] = []

        async def submit(runner: Runner) -> None:
            results.append(await (await runner.submit(job("quick", key="k"))).wait())

        async with world.runner(backend=backend) as runner, anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(submit, runner)

        assert len(set(map(id, results))) == 1
        assert backend.called("submit") == 1

    @pytest.mark.parametrize("after", [0, 30, 500])
    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"command": ["failing"]}, "command"),
            ({"env": {"A": "1"}}, "env"),
            ({"vcpu": 2, "memory_gib": 4}, "size"),
            ({"image": "busybox"}, "image"),
            ({"timeout": seconds(30)}, "timeout"),
        ],
    )
    async def test_another_job_is_a_conflict_that_names_the_difference(
        self, world: World, after: float, change: dict[str, Any], field: str
    ) -> None:
        one = job("quick", key="k")

        async with world.runner() as runner:
            await runner.submit(one)
            await anyio.sleep(after)
            with pytest.raises(KeyConflict) as conflict:
                await runner.submit(one.with_(**change))

        assert conflict.value.difference == (field,)

    async def test_another_retry_is_no_other_job(self, world: World) -> None:
        async with world.runner() as runner:
            one = await runner.submit(job("quick", key="k"))
            other = await runner.submit(job("quick", key="k", retry=Retry(failures=3)))

            assert await one.wait() is await other.wait()

    async def test_after_the_end_it_is_still_the_same_job(self, world: World) -> None:
        backend = world.backend()
        async with world.runner(backend=backend) as runner:
            result = await runner.run(job("quick", key="k"))

            assert await runner.run(job("quick", key="k")) is result
            assert await (await runner.submit(job("quick", key="k"))).wait() is result
        assert backend.called("submit") == 1

    async def test_a_failed_job_is_raised_again(self, world: World) -> None:
        async with world.runner() as runner:
            for _ in range(2):
                with pytest.raises(JobFailed):
                    await runner.run(job("failing", key="k"))

        assert len(world.told(AttemptLaunched)) == 1

    async def test_attaching_to_a_job_of_this_runner_meets_it(self, world: World) -> None:
        async with world.runner() as runner:
            handle = await runner.submit(job("quick", key="k"))
            met = await runner.attach("k")

            assert await met.wait() is await handle.wait()
        assert len(world.told(JobAccepted)) == 1

    async def test_a_conflict_does_not_harm_the_job_that_is_there(self, world: World) -> None:
        async with world.runner() as runner:
            handle = await runner.submit(job("quick", key="k"))
            for _ in range(3):
                with pytest.raises(KeyConflict):
                    await runner.run(job("failing", key="k"))

            assert (await handle.wait()).succeeded


class TestAcrossRunners:
    async def test_a_live_job_is_adopted(self, world: World) -> None:
        await crashed(world, job("quick", key="k"), after=30)
        backend = world.backend()

        async with world.runner(backend=backend) as runner:
            result = await runner.run(job("quick", key="k"))

        assert result.succeeded
        assert world.now == 70
        assert backend.called("submit") == 0
        assert [event.adopted for event in world.told(JobAccepted)] == [True]

    async def test_one_that_ended_meanwhile_is_adopted_with_its_outcome(self, world: World) -> None:
        await crashed(world, job("quick", key="k"), after=30)
        await anyio.sleep(1000)
        backend = world.backend()

        async with world.runner(backend=backend) as runner:
            result = await runner.run(job("quick", key="k"))

        assert result.succeeded
        assert backend.called("submit") == 0
        assert result.attempts[0].run_time == seconds(60)

    async def test_one_that_failed_meanwhile_is_run_again_if_its_retry_says_so(self, world: World) -> None:
        one = job("failing", "quick", key="k", retry=Retry(failures=1))
        await crashed(world, one, after=30)
        await anyio.sleep(1000)

        async with world.runner() as runner:
            result = await runner.run(one)

        assert [a.number for a in result.attempts] == [1, 2]
        assert result.succeeded

    async def test_an_adopted_job_has_all_its_attempts_and_no_new_budget(self, world: World) -> None:
        one = job("failing", "failing", "failing", key="k", retry=Retry(failures=2, wait=fixed(1)))
        await crashed(world, one, after=100)

        async with world.runner() as runner:
            with pytest.raises(JobFailed) as failed:
                await runner.run(one)

        assert [a.number for a in failed.value.result.attempts] == [1, 2, 3]
        assert world.platform._runs == {}

    async def test_an_adopted_job_has_the_lines_of_all_its_attempts(self, world: World) -> None:
        def script(_: Any, identity: Any) -> Script:
            return Script(run_for=60, lines=(f"line of {identity.attempt}",), exit_code=identity.attempt % 2)

        one = job("?", key="k", retry=Retry(failures=1, wait=fixed(1)))
        await crashed(world, one, after=90, script=script)

        async with world.runner(script=script) as runner:
            handle = await runner.submit(one)

            assert [line.text async for line in handle.logs()] == ["line of 1", "line of 2"]

    async def test_another_job_is_a_conflict(self, world: World) -> None:
        await crashed(world, job("endless", key="k"), after=30)

        async with world.runner() as runner:
            for call in (runner.run, runner.submit):
                with pytest.raises(KeyConflict, match="command"):
                    await call(job("quick", key="k"))

            assert world.platform.live() == 1
        assert [event.title for event in world.events] == ["job.queued", "job.refused"] * 2

    async def test_two_runners_at_the_same_time_share_one_attempt(self, world: World) -> None:
        results: list[JobResult] = []

        async def run() -> None:
            async with world.runner() as runner:
                handle = await runner.submit(job("runs:60", key="k"))
                assert world.platform.live() == 1
                results.append(await handle.wait())

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(run)

        assert {result.outcome.kind for result in results} == {Kind.SUCCEEDED}
        assert len({result.attempts[0].token for result in results}) == 1

    async def test_namespaces_keep_keys_apart(self, world: World) -> None:
        async with world.runner(namespace="a") as one, world.runner(namespace="b") as other:
            await one.submit(job("endless", key="k"))
            await other.submit(job("quick", key="k"))

            assert world.platform.live() == 2
            with pytest.raises(JobNotFound):
                async with world.runner(namespace="c") as third:
                    await third.attach("k")

    async def test_a_forgotten_job_is_run_again(self, world: World) -> None:
        backend = world.backend()
        async with backend:
            for _ in range(2):
                async with world.runner(backend=backend) as runner:
                    await runner.run(job("quick", key="k"))

        assert backend.called("submit") == 2


class TestGrowth:
    @staticmethod
    def script(_: Any, identity: Any) -> Script:
        return OUT_OF_MEMORY if identity.attempt < 3 else QUICK

    async def test_memory_that_grew_is_no_conflict(self, world: World) -> None:
        one = job("?", key="k", vcpu=1, memory_gib=2, retry=Retry(out_of_memory=2, wait=fixed(1)))
        await crashed(world, one, after=40, script=self.script)

        async with world.runner(script=self.script) as runner:
            result = await runner.run(one)

        assert [(a.number, a.memory_gib) for a in result.attempts] == [(1, 2), (2, 3), (3, 4)]
        assert result.succeeded

    async def test_another_size_in_the_first_attempt_is_one(self, world: World) -> None:
        one = job("endless", key="k", vcpu=1, memory_gib=2)
        await crashed(world, one, after=40)

        async with world.runner() as runner:
            with pytest.raises(KeyConflict, match="size"):
                await runner.run(one.with_(memory_gib=3))


class TestAttaching:
    async def test_a_live_job_is_watched_to_its_end(self, world: World) -> None:
        await crashed(world, job("talking", key="k"), after=30)

        async with world.runner() as runner:
            handle = await runner.attach("k")
            lines = [line.text async for line in handle.logs()]
            result = await handle.wait()

        assert lines == ["one", "two", "three"]
        assert result.succeeded
        assert world.unbalanced() == {}

    async def test_one_that_ended_meanwhile_gives_its_record(self, world: World) -> None:
        await crashed(world, job("failing", key="k"), after=30)
        await anyio.sleep(1000)

        async with world.runner() as runner:
            result = await (await runner.attach("k")).wait()

        assert (result.outcome.kind, result.exit_code) == (Kind.FAILED, 3)

    async def test_it_can_be_stopped(self, world: World) -> None:
        await crashed(world, job("endless", key="k"), after=30)

        async with world.runner() as runner:
            result = await (await runner.attach("k")).stop("by hand")

        assert (result.outcome.kind, result.outcome.detail) == (Kind.CANCELLED, "by hand")
        assert world.platform.live() == 0

    async def test_attaching_twice_at_once_meets_the_same_job(self, world: World) -> None:
        await crashed(world, job("quick", key="k"), after=30)
        handles: list[JobHandle] = []

        async def attach(runner: Runner) -> None:
            handles.append(await runner.attach("k"))

        async with world.runner() as runner:
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(attach, runner)
            results = {id(await handle.wait()) for handle in handles}

        assert len(results) == 1
        assert len(world.told(JobAccepted)) == 1

    async def test_a_job_that_is_attached_cannot_be_submitted_too(self, world: World) -> None:
        await crashed(world, job("quick", key="k"), after=30)

        async with world.runner() as runner:
            await runner.attach("k")
            with pytest.raises(KeyConflict, match="attached"):
                await runner.submit(job("quick", key="k"))

    async def test_once_it_is_over_it_can(self, world: World) -> None:
        one = job("failing", "quick", key="k", retry=Retry(failures=1))
        await crashed(world, one, after=30)

        async with world.runner() as runner:
            failed = await (await runner.attach("k")).wait()
            result = await runner.run(one)

        assert failed.outcome.kind is Kind.FAILED
        assert [a.number for a in result.attempts] == [1, 2]

    async def test_it_is_not_forgotten_for_others(self, world: World) -> None:
        await crashed(world, job("quick", key="k"), after=30)
        async with world.runner() as runner:
            await (await runner.attach("k")).wait()

        assert len(world.platform._runs) == 1

    async def test_an_unknown_key_is_not_found(self, world: World) -> None:
        async with world.runner() as runner:
            with pytest.raises(JobNotFound, match="nobody"):
                await runner.attach("nobody")
