"""The watch over all tasks, in virtual time, through a real door to the fake AWS."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fargate_runner import BackendError, Cause
from fargate_runner._lifecycle import Phase, Snapshot
from fargate_runner.backends.ecs._api import Api
from fargate_runner.backends.ecs._watch import Cadence, Watch
from fargate_runner.testing.aws import ContainerScript, FakeAws, Fault, Pace, Quotas, TaskScript, denied
from fargate_runner.testing.clock import VirtualClock

LONG = ContainerScript(run_for=100_000)


@pytest.fixture
def aws(clock: VirtualClock) -> FakeAws:
    return FakeAws(clock=clock, script=LONG, clusters=("jobs",), quotas=Quotas.unlimited(), visible_after=(0.0, 0.0))


@asynccontextmanager
async def watching(aws: FakeAws, **cadence: float) -> AsyncGenerator[Watch]:
    api = Api(session=aws.session(), region=aws.region)
    async with api.running(), anyio.create_task_group() as tasks:
        watch = Watch(api, "jobs", utcnow=aws.clock.utcnow, cadence=Cadence(**cadence))
        tasks.start_soon(watch.run)
        yield watch
        tasks.cancel_scope.cancel()


async def launch(aws: FakeAws, count: int = 1, **more: Any) -> list[dict[str, Any]]:
    container = {"name": "main", "image": "i", "essential": True}
    family = {"family": "f", "networkMode": "awsvpc", "cpu": "256", "memory": "512"}
    await aws.call("ecs", "RegisterTaskDefinition", family | {"containerDefinitions": [container]})
    network = {"awsvpcConfiguration": {"subnets": ["subnet-0aaaaaaaa00000001"]}}
    request = {"cluster": "jobs", "taskDefinition": "f", "launchType": "FARGATE", "networkConfiguration": network}
    tasks: list[dict[str, Any]] = []
    while len(tasks) < count:
        reply = await aws.call("ecs", "RunTask", request | {"count": min(10, count - len(tasks))} | more)
        tasks += reply["tasks"]
    return tasks


async def arns_of(aws: FakeAws, count: int = 1) -> list[str]:
    return [task["taskArn"] for task in await launch(aws, count)]


async def until_end(watch: Watch, arn: str, **known: Any) -> Snapshot:
    seen = await watch.observe(arn, "main", after=None, **known)
    while not seen.ended:
        seen = await watch.observe(arn, "main", after=seen)
    return seen


def never(true: bool) -> None:
    """Judge an event that is not to be judged."""
    pytest.fail(f"judged: {true}")


def looks(aws: FakeAws) -> int:
    return aws.calls.operations["ecs.DescribeTasks"]


class TestHowOftenItLooks:
    @pytest.mark.sweep
    async def test_a_sweep_over_a_thousand_tasks_takes_ten_calls(self, aws: FakeAws) -> None:
        aws.validate = False
        arns = await arns_of(aws, 1000)

        async with watching(aws) as watch, anyio.create_task_group() as tasks:
            for arn in arns:
                tasks.start_soon(until_end, watch, arn)
            await anyio.sleep(201)
            before = looks(aws)
            await anyio.sleep(20)
            made = looks(aws) - before
            tasks.cancel_scope.cancel()

        assert made == 100

    @pytest.mark.parametrize(
        ("count", "calls_in_a_minute"),
        [(1, 30), (100, 30), (150, 60), pytest.param(2000, 300, marks=pytest.mark.sweep)],
    )
    async def test_the_period_grows_with_the_number(self, aws: FakeAws, count: int, calls_in_a_minute: int) -> None:
        aws.validate = False
        arns = await arns_of(aws, count)

        async with watching(aws) as watch, anyio.create_task_group() as tasks:
            for arn in arns:
                tasks.start_soon(until_end, watch, arn)
            await anyio.sleep(101)
            before = looks(aws)
            await anyio.sleep(60)
            made = looks(aws) - before
            tasks.cancel_scope.cancel()

        assert made == pytest.approx(calls_in_a_minute, abs=calls_in_a_minute // 30 + 1)

    async def test_nobody_waits_and_nothing_is_asked(self, aws: FakeAws) -> None:
        (task,) = await launch(aws)

        async with watching(aws) as watch:
            watch.saw(task, "run-task")
            await anyio.sleep(1000)

        assert looks(aws) == 0

    async def test_after_the_end_nothing_is_asked(self, aws: FakeAws) -> None:
        aws.world.script = lambda run: ContainerScript(run_for=5)
        (arn,) = await arns_of(aws)

        async with watching(aws) as watch:
            end = await until_end(watch, arn)
            before = looks(aws)
            again = await watch.observe(arn, "main", after=end)
            fresh = await watch.observe(arn, "main", after=None)
            await anyio.sleep(100)

        assert end.exit_code == 0
        assert again is fresh is end
        assert looks(aws) == before

    async def test_what_is_fresh_is_returned_at_once(self, aws: FakeAws, clock: VirtualClock) -> None:
        (task,) = await launch(aws)

        async with watching(aws) as watch:
            watch.saw(task, "run-task")
            began = clock.time()
            seen = await watch.observe(task["taskArn"], "main", after=None)

        assert seen.phase is Phase.PENDING
        assert clock.time() == began
        assert looks(aws) == 0

    async def test_many_observers_share_a_look(self, aws: FakeAws) -> None:
        arns = await arns_of(aws, 100)

        async with watching(aws) as watch, anyio.create_task_group() as tasks:
            for arn in arns * 10:
                tasks.start_soon(partial(watch.observe, arn, "main", after=None))

        assert looks(aws) == 1

    async def test_a_look_that_hangs_does_not_hold_up_the_others(self, aws: FakeAws, clock: VirtualClock) -> None:
        aws.world.script = lambda run: ContainerScript(run_for=5)
        first, second = await arns_of(aws, 2)
        aws.faults.add(Fault(match="ecs.DescribeTasks", delay=50))

        async with watching(aws) as watch, anyio.create_task_group() as tasks:
            tasks.start_soon(partial(watch.observe, first, "main", after=None))
            await anyio.sleep(1)
            began = clock.time()
            await watch.observe(second, "main", after=None)
            took = clock.time() - began

        assert took < 1

    async def test_ten_thousand_awaited_tasks_take_little_memory(self, aws: FakeAws) -> None:
        arns = [f"arn:aws:ecs:us-east-1:123456789012:task/jobs/{number:032x}" for number in range(10_000)]
        task = (await launch(aws))[0]

        async with watching(aws) as watch:
            gc.collect()
            tracemalloc.start()
            for arn in arns:
                watch.saw({**task, "taskArn": arn}, "describe")
            gc.collect()
            used, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()

        assert used / len(arns) < 1024


class TestWhoWaits:
    @pytest.mark.parametrize("after", [0.0, 0.5, 4.0, 7.3, 30.0])
    async def test_leaving_at_any_point_harms_nobody(self, aws: FakeAws, after: float) -> None:
        aws.world.script = lambda run: ContainerScript(run_for=20)
        (arn,) = await arns_of(aws)

        async with watching(aws) as watch, anyio.create_task_group() as tasks:
            tasks.start_soon(until_end, watch, arn)
            with anyio.move_on_after(after):
                await until_end(watch, arn)
            end = await until_end(watch, arn)

        assert end.exit_code == 0

    async def test_what_was_known_elsewhere_does_not_go_back(self, aws: FakeAws) -> None:
        (arn,) = await arns_of(aws)
        aws.world.hide(arn, 60)
        running = Snapshot(phase=Phase.RUNNING, reason="from a record")

        async with watching(aws) as watch:
            seen = await watch.observe(arn, "main", after=running, created_at=aws.clock.utcnow())

        assert seen.phase is Phase.RUNNING
        assert seen != running

    async def test_a_look_that_fails_is_told_and_looking_goes_on(self, aws: FakeAws) -> None:
        (arn,) = await arns_of(aws)
        fault = denied("ecs.DescribeTasks")

        async with watching(aws) as watch:
            seen = await watch.observe(arn, "main", after=None)
            aws.faults.add(fault)
            with pytest.raises(BackendError):
                await watch.observe(arn, "main", after=seen)
            aws.faults.clear()
            later = await watch.observe(arn, "main", after=seen)

        assert later.phase >= seen.phase

    @pytest.mark.parametrize(
        "address",
        ["", "nonsense", "f" * 32, f"arn:aws:ecs:us-east-1:123456789012:task/other/{'f' * 32}"],
    )
    async def test_an_address_that_is_not_ours_costs_no_call(self, aws: FakeAws, address: str) -> None:
        async with watching(aws) as watch:
            seen = await watch.observe(address, "main", after=None)

        assert seen.cause is Cause.VANISHED
        assert looks(aws) == 0

    async def test_one_poisoned_address_does_not_blind_the_others(self, aws: FakeAws, clock: VirtualClock) -> None:
        aws.world.script = lambda run: ContainerScript(run_for=5)
        arns = await arns_of(aws, 99)
        poisoned = arns[40]
        ends: list[Snapshot] = []
        told: list[BackendError] = []
        original = aws.ecs.describe_tasks

        async def refusing(request: Any) -> dict[str, Any]:
            if poisoned in request["tasks"]:
                await aws.call("ecs", "DescribeTasks", {"cluster": "jobs", "tasks": [f"x/{n}" for n in range(101)]})
            return await original(request)

        aws.ecs.describe_tasks = refusing  # type: ignore[method-assign]

        async def one(arn: str) -> None:
            while len(ends) < 98:
                try:
                    ends.append(await until_end(watch, arn))
                except BackendError as exc:
                    told.append(exc)
                else:
                    return

        async with watching(aws) as watch, anyio.create_task_group() as tasks:
            for arn in arns:
                tasks.start_soon(one, arn)

        assert [end.exit_code for end in ends] == [0] * 98
        assert told
        assert looks(aws) < 100


class TestWhatIsMissing:
    async def test_which_count_from_when_ecs_took_it_in(self, aws: FakeAws, clock: VirtualClock) -> None:
        asked_at = clock.time()
        await anyio.sleep(40)  # the request was on its way for so long
        (task,) = await launch(aws)
        aws.world.hide(task["taskArn"], 295)

        async with watching(aws) as watch:
            watch.saw(task, "run-task", asked_at=asked_at)
            end = await until_end(watch, task["taskArn"])

        assert end.cause is Cause.EXITED

    @pytest.mark.parametrize("hidden", [0.5, 5, 59, 250, 299])
    async def test_a_new_task_may_be_missing_for_five_minutes(
        self, aws: FakeAws, clock: VirtualClock, hidden: float
    ) -> None:
        aws.world.script = lambda run: ContainerScript(run_for=400)
        (arn,) = await arns_of(aws)
        aws.world.hide(arn, hidden)

        async with watching(aws) as watch:
            first = await watch.observe(arn, "main", after=None, submitted_at=clock.time())
            end = await until_end(watch, arn)

        assert first.phase is Phase.PENDING
        assert (end.cause, end.exit_code) == (Cause.EXITED, 0)

    async def test_what_ecs_has_dropped_has_vanished_by_a_proof(self, aws: FakeAws, clock: VirtualClock) -> None:
        aws.world.script = lambda run: ContainerScript(run_for=5)
        (arn,) = await arns_of(aws)
        await anyio.sleep(2 * 3600)

        async with watching(aws) as watch:
            began = clock.time()
            end = await watch.observe(arn, "main", after=None)
            took = clock.time() - began

        assert end.cause is Cause.VANISHED
        assert end.proof is not None
        assert "MISSING" in end.proof.evidence
        assert took >= 30
        assert looks(aws) >= 3

    async def test_two_looks_without_an_answer_are_no_proof(self, aws: FakeAws) -> None:
        aws.world.script = lambda run: ContainerScript(run_for=600)
        (arn,) = await arns_of(aws)

        async with watching(aws) as watch:
            await anyio.sleep(400)
            seen = await watch.observe(arn, "main", after=None)
            aws.world.hide(arn, 25)
            end = await until_end(watch, arn)

        assert seen.phase is Phase.RUNNING
        assert end.cause is Cause.EXITED


class TestWhatNeverEnds:
    @pytest.mark.parametrize("status", ["RUNNING", "DEACTIVATING", "STOPPING", "DEPROVISIONING"])
    async def test_an_exit_code_counts_after_ten_minutes(self, aws: FakeAws, clock: VirtualClock, status: str) -> None:
        aws.world.script = lambda run: ContainerScript(run_for=5, exit_code=3)
        aws.world.fates.add(TaskScript(stuck_in=status))
        (arn,) = await arns_of(aws)

        async with watching(aws) as watch:
            end = await until_end(watch, arn)

        assert (end.cause, end.exit_code) == (Cause.EXITED, 3)
        assert 600 < clock.time() < 720

    async def test_a_stop_that_never_ends_is_no_success_for_its_exit_code(self, aws: FakeAws) -> None:
        polite = ContainerScript(run_for=100_000, exit_code_on_sigterm=0)
        aws.world.script = lambda run: polite
        aws.world.fates.add(TaskScript(stuck_in="STOPPING"))
        (arn,) = await arns_of(aws)

        async with watching(aws) as watch:
            await anyio.sleep(100)
            task = aws.world.tasks[arn]
            aws.world._want_stopped(task, "SomethingNew", "words that AWS never used before")
            end = await until_end(watch, arn)

        assert end.cause is not Cause.EXITED

    async def test_one_that_tells_nothing_new_is_unrecognised_after_a_quarter_of_an_hour(
        self, aws: FakeAws, clock: VirtualClock
    ) -> None:
        aws.world.script = lambda run: ContainerScript(run_for=5, exit_unnoticed=True)
        aws.world.fates.add(TaskScript(stuck_in="RUNNING"))
        (arn,) = await arns_of(aws)

        async with watching(aws) as watch:
            await anyio.sleep(100)
            task = aws.world.tasks[arn]
            task.desired_status = "STOPPED"
            aws.world._changed(task)
            end = await until_end(watch, arn)

        assert end.cause is Cause.UNRECOGNISED
        assert 1000 <= clock.time() < 1010

    async def test_a_replay_for_an_old_token_is_not_taken_for_an_end(self, aws: FakeAws) -> None:
        aws.world.script = lambda run: ContainerScript(run_for=5, exit_code=4)
        (task,) = await launch(aws, clientToken="once")
        await anyio.sleep(300)
        (replay,) = await launch(aws, clientToken="once")

        async with watching(aws) as watch:
            watch.saw(replay, "run-task")
            ended = watch.has_ended(task["taskArn"])
            end = await until_end(watch, task["taskArn"])

        assert "containers" not in replay
        assert not ended
        assert (end.cause, end.exit_code) == (Cause.EXITED, 4)

    @pytest.mark.parametrize(("ago", "waits"), [(5.0, True), (3000.0, False)])
    async def test_an_end_of_long_ago_is_known_to_be_one(
        self, aws: FakeAws, clock: VirtualClock, ago: float, waits: bool
    ) -> None:
        aws.world.script = lambda run: ContainerScript(run_for=5)
        (arn,) = await arns_of(aws)
        await anyio.sleep(120 + ago)

        async with watching(aws) as watch:
            await watch.observe(arn, "main", after=None)
            exited_at = watch.exited_at(arn)

        assert exited_at is not None
        assert (clock.time() - exited_at < 120) == waits


async def _history(aws: FakeAws, exit_code: int) -> list[dict[str, Any]]:
    """Return all that ECS ever said of a task, each change once."""
    aws.world.script = lambda run: ContainerScript(run_for=5, exit_code=exit_code)
    said: dict[int, dict[str, Any]] = {}
    (arn,) = await arns_of(aws)
    while aws.world.tasks[arn].status != "STOPPED":
        task = aws.world.wire(aws.world.tasks[arn])
        said.setdefault(task["version"], task)
        await anyio.sleep(0.05)
    final = aws.world.wire(aws.world.tasks[arn])
    return [*said.values(), final]


@settings(max_examples=40, deadline=None)
@given(order=st.lists(st.integers(0, 15), max_size=40), exit_code=st.sampled_from([0, 1, 137]), seed=st.integers(0, 99))
def test_a_state_never_goes_back_whatever_the_order_of_the_news(order: list[int], exit_code: int, seed: int) -> None:
    clock = VirtualClock()
    aws = FakeAws(clock=clock, clusters=("jobs",), quotas=Quotas.unlimited(), seed=seed)

    async def main() -> None:
        history = await _history(aws, exit_code)
        arn = history[0]["taskArn"]
        seen: list[Snapshot] = []

        async with watching(aws) as watch:
            watch.saw(history[0], "run-task")
            for number in order:
                watch.told(history[number % len(history)], believed=True, judge=never)
                seen.append(watch._entries[arn].snapshot)  # type: ignore[arg-type]
            end = await until_end(watch, arn)

        phases, codes_known = [s.phase for s in seen], [s.exit_code is not None for s in seen]
        assert phases == sorted(phases)
        assert codes_known == sorted(codes_known)
        assert (end.cause, end.exit_code) == (Cause.EXITED, exit_code)

    anyio.run(main, backend_options={"loop_factory": clock.loop})


def test_the_cadence_of_a_fake_platform_is_quick() -> None:
    quick = Cadence.quick()

    assert timedelta(seconds=quick.period) < timedelta(seconds=1)
    assert isinstance(quick, Cadence)


class TestEvents:
    @pytest.mark.parametrize(("expected", "failed", "most"), [(False, False, 25), (True, False, 6), (True, True, 25)])
    async def test_that_are_expected_make_it_unhurried_until_a_task_runs(
        self, clock: VirtualClock, expected: bool, failed: bool, most: int
    ) -> None:
        slow = Pace(provisioning=(50.0, 50.0))
        aws = FakeAws(clock=clock, script=LONG, clusters=("jobs",), pace=slow, visible_after=(0.0, 0.0))
        (task,) = await launch(aws)

        async with watching(aws) as watch, anyio.create_task_group() as tasks:
            watch.expects_events = expected
            if failed:
                watch.events_fail()
            watch.saw(task, "run-task")
            tasks.start_soon(until_end, watch, task["taskArn"])
            await anyio.sleep(49)
            found = looks(aws)
            tasks.cancel_scope.cancel()

        assert most * 0.75 <= found <= most

    @pytest.mark.parametrize("code", [0, 3])
    async def test_what_is_not_believed_is_looked_at_and_judged(
        self, aws: FakeAws, clock: VirtualClock, code: int
    ) -> None:
        aws.world.script = lambda run: ContainerScript(run_for=20, exit_code=3)
        (task,) = await launch(aws)
        await anyio.sleep(200)
        end = aws.world.event(aws.world.tasks[task["taskArn"]])["detail"]
        end["containers"][0]["exitCode"] = code
        judged: list[bool] = []

        async with watching(aws, first=1000.0) as watch, anyio.create_task_group() as tasks:
            watch.saw(task, "run-task")
            tasks.start_soon(until_end, watch, task["taskArn"])
            await anyio.sleep(1)
            watch.told(end, believed=False, judge=judged.append)
            await anyio.sleep(1)
            seen = await watch.observe(task["taskArn"], "main", after=None)

        assert (seen.exit_code, clock.time()) == (3, 202)
        assert judged == [code == 3]

    async def test_one_that_comes_after_newer_ones_changes_nothing(self, aws: FakeAws) -> None:
        first, *_, last, _ = await _history(aws, 0)

        async with watching(aws, first=1000.0) as watch:
            watch.saw(first, "run-task")
            watch.told(last, believed=True, judge=never)
            before = watch._entries[first["taskArn"]].snapshot
            watch.told(first, believed=True, judge=never)
            after = watch._entries[first["taskArn"]].snapshot

        assert before is not None
        assert before.phase > Phase.PENDING
        assert after == before

    async def test_one_that_is_ahead_of_ecs_is_looked_at_until_ecs_has_caught_up(
        self, aws: FakeAws, clock: VirtualClock
    ) -> None:
        aws.world.script = lambda run: ContainerScript(run_for=20)
        (task,) = await launch(aws)
        arn = task["taskArn"]
        judged: list[bool] = []

        async with watching(aws, reconcile=1000.0) as watch, anyio.create_task_group() as tasks:
            watch.relies_on_events = True
            watch.saw(task, "run-task")
            tasks.start_soon(until_end, watch, arn)
            await anyio.sleep(200)
            event = aws.world.event(aws.world.tasks[arn])["detail"]
            old: Any = {**task, "startedBy": ""}
            original = aws.ecs.describe_tasks

            async def lagging(request: Any) -> dict[str, Any]:
                return {"tasks": [old], "failures": []} if looks(aws) <= 1 else await original(request)

            aws.ecs.describe_tasks = lagging  # type: ignore[method-assign]
            watch.told(event, believed=False, judge=judged.append)

        assert judged == [True]
        assert looks(aws) == 2
        assert clock.time() == 202

    async def test_one_that_overtakes_a_look_is_not_waited_for_again(self, aws: FakeAws) -> None:
        aws.world.script = lambda run: ContainerScript(run_for=20)
        started = await launch(aws, 4)
        arns = [task["taskArn"] for task in started]

        async with watching(aws, first=190.0) as watch, anyio.create_task_group() as tasks:
            for task in started:
                watch.saw(task, "run-task")
                tasks.start_soon(until_end, watch, task["taskArn"])
            await anyio.sleep(189)
            aws.faults.add(Fault(match="ecs.DescribeTasks", delay=2, when="after"))
            await anyio.sleep(2)
            for arn in arns:
                watch.told(aws.world.event(aws.world.tasks[arn])["detail"], believed=True, judge=never)
            await anyio.sleep(10)

            assert looks(aws) == 1
            assert watch.relies_on_events

    async def test_an_end_that_only_a_look_has_told_means_that_they_fail(self, aws: FakeAws) -> None:
        aws.world.script = lambda run: ContainerScript(run_for=20)
        started = await launch(aws, 4)

        async with watching(aws, first=190.0) as watch, anyio.create_task_group() as tasks:
            for task in started:
                watch.saw(task, "run-task")
                tasks.start_soon(until_end, watch, task["taskArn"])
            await anyio.sleep(180)
            for task in started[1:]:
                watch.told(aws.world.event(aws.world.tasks[task["taskArn"]])["detail"], believed=True, judge=never)
            before = watch.relies_on_events
            await anyio.sleep(20)
            after = watch.relies_on_events

        assert (before, after) == (True, False)

    async def test_those_of_tasks_that_nobody_knows_leave_nothing_behind(self, aws: FakeAws) -> None:
        (task,) = await launch(aws)

        async with watching(aws) as watch:
            watch.told(task, believed=True, judge=never)

            assert not watch.knows(task["taskArn"])
