"""What ECS, events and clocks may say that is not so, or is no answer: the watch, in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import anyio
import pytest

from fargate_runner import BackendError, Cause
from fargate_runner._lifecycle import Phase, Snapshot
from fargate_runner.backends.ecs._watch import Watch
from fargate_runner.testing.aws import ContainerScript, FakeAws, Quotas, TaskScript
from fargate_runner.testing.clock import VirtualClock
from tests.ecs.test_watch import arns_of, launch, looks, never, until_end, watching

Reply = dict[str, Any]
HOUR = 3600.0


@pytest.fixture
def aws(clock: VirtualClock) -> FakeAws:
    script = ContainerScript(run_for=50)
    return FakeAws(clock=clock, script=script, clusters=("jobs",), quotas=Quotas.unlimited(), visible_after=(0.0, 0.0))


def bend(aws: FakeAws, how: Callable[[Reply], None]) -> None:
    """Change what DescribeTasks answers."""
    original = aws.ecs.describe_tasks

    async def describe_tasks(request: Any) -> Reply:
        reply = await original(request)
        how(reply)
        return reply

    aws.ecs.describe_tasks = describe_tasks  # type: ignore[method-assign]


async def keep_asking(watch: Watch, arn: str) -> None:
    while True:
        with pytest.raises(BackendError):
            await watch.observe(arn, "main", after=None)


class TestFailuresThatAreNotMissing:
    @pytest.mark.parametrize("named", [True, False])
    async def test_a_task_that_ecs_cannot_describe_has_not_vanished(
        self, aws: FakeAws, clock: VirtualClock, named: bool
    ) -> None:
        aws.world.script = lambda run: ContainerScript(run_for=3000)
        (arn,) = await arns_of(aws)
        await anyio.sleep(1000)

        def fail(reply: Reply) -> None:
            bad = clock.time() < 2000
            reply["failures"] = [{"reason": "Internal error."} | ({"arn": arn} if named else {})] * bad
            reply["tasks"] = reply["tasks"][: 1 - bad]

        bend(aws, fail)

        async with watching(aws) as watch:
            with pytest.raises(BackendError, match=r"Internal error\.") as told:
                await watch.observe(arn, "main", after=None)
            await anyio.sleep_until(2001)
            end = await until_end(watch, arn)

        assert told.value.retryable
        assert (end.cause, end.exit_code) == (Cause.EXITED, 0)

    async def test_it_is_told_to_those_who_wait_for_that_task_only(self, aws: FakeAws) -> None:
        first, second = await arns_of(aws, 2)

        def fail(reply: Reply) -> None:
            reply["tasks"] = [task for task in reply["tasks"] if task["taskArn"] != first]
            reply["failures"] = [{"arn": first, "reason": "Internal error."}]

        bend(aws, fail)
        told: list[str] = []

        async def one() -> None:
            with pytest.raises(BackendError) as error:
                await until_end(watch, first)
            told.append(str(error.value))

        async with watching(aws) as watch, anyio.create_task_group() as tasks:
            tasks.start_soon(one)
            end = await until_end(watch, second)

        assert end.exit_code == 0
        assert len(told) == 1

    async def test_the_fault_of_one_task_keeps_no_other_from_being_missing(self, aws: FakeAws) -> None:
        first, second = await arns_of(aws, 2)
        await anyio.sleep(1000)

        def fail(reply: Reply) -> None:
            failures = {first: "Internal error.", second: "MISSING"}
            reply.update(tasks=[], failures=[{"arn": arn, "reason": reason} for arn, reason in failures.items()])

        bend(aws, fail)

        async with watching(aws) as watch:
            with pytest.raises(BackendError):
                await watch.observe(first, "main", after=None)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(keep_asking, watch, first)
                end = await until_end(watch, second)
                tasks.cancel_scope.cancel()

        assert end.cause is Cause.VANISHED

    async def test_the_word_missing_counts_in_any_case(self, aws: FakeAws) -> None:
        (arn,) = await arns_of(aws)
        await anyio.sleep(1000)

        def fail(reply: Reply) -> None:
            reply.update(tasks=[], failures=[{"arn": arn, "reason": "Missing"}])

        bend(aws, fail)

        async with watching(aws) as watch:
            end = await until_end(watch, arn)

        assert end.cause is Cause.VANISHED

    async def test_errors_keep_nobody_alive_who_was_told(self, aws: FakeAws) -> None:
        (arn,) = await arns_of(aws)
        bend(aws, lambda reply: reply.update(tasks=[], failures=[{"arn": arn, "reason": "Internal error."}]))
        depths: list[int] = []

        async def one() -> None:
            with pytest.raises(BackendError) as error:
                await watch.observe(arn, "main", after=None)
            depths.append(len(error.traceback))

        async with watching(aws) as watch, anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(one)

        assert len(depths) == 50
        assert max(depths) < 10
        assert looks(aws) == 1


class TestVersions:
    async def test_an_event_from_nowhere_cannot_make_the_truth_wait_for_ever(
        self, aws: FakeAws, clock: VirtualClock
    ) -> None:
        (task,) = await launch(aws)

        async with watching(aws) as watch:
            watch.saw(task, "run-task")
            watch.told({**task, "version": 10**9}, believed=True, judge=never)
            end = await until_end(watch, task["taskArn"])

        assert (end.cause, end.exit_code) == (Cause.EXITED, 0)
        assert clock.time() < 300

    async def test_an_old_answer_between_new_ones_is_not_taken(self, aws: FakeAws) -> None:
        (arn,) = await arns_of(aws)
        old: list[Reply] = []
        bend(aws, old.append)
        seen: list[Snapshot] = []

        async with watching(aws) as watch:
            await watch.observe(arn, "main", after=None)
            await anyio.sleep(40)
            running = await watch.observe(arn, "main", after=None)
            stale = old[0]["tasks"]
            numbers = iter(range(1000))

            def lag(reply: Reply) -> None:
                reply["tasks"] = stale if next(numbers) % 2 else reply["tasks"]

            bend(aws, lag)
            seen.append(running)
            while not seen[-1].ended:
                seen.append(await watch.observe(arn, "main", after=seen[-1]))

        assert running.phase is Phase.RUNNING
        assert [snapshot.phase for snapshot in seen] == sorted(snapshot.phase for snapshot in seen)
        assert all(snapshot.started_at == running.started_at for snapshot in seen)

    async def test_what_is_known_from_elsewhere_outranks_an_older_reply(self, aws: FakeAws) -> None:
        (task,) = await launch(aws)
        running = Snapshot(phase=Phase.RUNNING, reason="from a record")

        async with watching(aws) as watch:
            watch.saw(task, "run-task")
            seen = await watch.observe(task["taskArn"], "main", after=running)

        assert seen.phase >= Phase.RUNNING


class TestDeadlines:
    async def test_one_that_always_tells_something_new_ends_after_an_hour(
        self, aws: FakeAws, clock: VirtualClock
    ) -> None:
        aws.world.script = lambda run: ContainerScript(run_for=5, exit_unnoticed=True)
        aws.world.fates.add(TaskScript(stuck_in="RUNNING"))
        (arn,) = await arns_of(aws)

        def fidget(reply: Reply) -> None:
            for task in reply["tasks"]:
                task.update(version=1000 + int(clock.time()), desiredStatus="STOPPED")

        bend(aws, fidget)

        async with watching(aws) as watch:
            end = await until_end(watch, arn)

        assert end.cause is Cause.UNRECOGNISED
        assert HOUR <= clock.time() < HOUR + 60

    @pytest.mark.parametrize("status", ["DELETED", "A_STATE_OF_2031", ""])
    async def test_a_state_that_nobody_knows_is_waited_for_no_longer_than_any_other(
        self, aws: FakeAws, clock: VirtualClock, status: str
    ) -> None:
        (arn,) = await arns_of(aws)

        def rename(reply: Reply) -> None:
            for task in reply["tasks"]:
                task.update(lastStatus=status, desiredStatus="STOPPED", version=1000, containers=[])

        bend(aws, rename)

        async with watching(aws) as watch:
            end = await until_end(watch, arn)

        assert end.cause is not Cause.EXITED
        assert end.proof is not None
        assert clock.time() < HOUR


class TestClocks:
    @pytest.mark.parametrize("hours", [-24, 24])
    async def test_an_end_that_was_waited_for_was_just_now_whatever_our_clock_says(
        self, aws: FakeAws, clock: VirtualClock, hours: int
    ) -> None:
        (arn,) = await arns_of(aws)

        def skip_to_the_end(reply: Reply) -> None:
            for task in reply["tasks"]:
                if task["lastStatus"] != "STOPPED" and task["desiredStatus"] == "STOPPED":
                    task.update(lastStatus="RUNNING", desiredStatus="RUNNING")
                    task["containers"][0].pop("exitCode", None)
                    task["containers"][0]["lastStatus"] = "RUNNING"

        bend(aws, skip_to_the_end)

        async with watching(aws) as watch:
            watch._utcnow = lambda: clock.utcnow() + timedelta(hours=hours)
            end = await until_end(watch, arn)
            exited_at = watch.exited_at(arn)

        assert end.exit_code == 0
        assert exited_at is not None
        assert clock.time() - exited_at <= 2.0
