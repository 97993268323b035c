"""What goes wrong between a client and the fake: single faults, and a plan by seed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from fargate_runner.testing.aws import (
    AwsError,
    Chaos,
    ConnectionCut,
    ContainerScript,
    Fault,
    TaskScript,
    denied,
    ec2_throttled,
    server_error,
    throttled,
)
from fargate_runner.testing.clock import VirtualClock
from tests.aws.account import Account, launch

SPOT = {"capacityProvider": "FARGATE_SPOT", "weight": 1}


@pytest.fixture
def anyio_backend(clock: VirtualClock) -> object:
    return "asyncio", {"loop_factory": clock.loop}


@pytest.fixture
def account(clock: VirtualClock) -> Callable[..., Account]:
    return lambda **options: Account(clock, **options)


@pytest.fixture
def jobs(clock: VirtualClock) -> Account:
    return Account(clock)


async def outcomes(jobs: Account, called: str, times: int, **request: Any) -> list[str]:
    """Return what came of so many calls: ``ok``, or what went wrong."""
    seen: list[str] = []
    for _ in range(times):
        try:
            await jobs.ask(called, **request)
            seen.append("ok")
        except AwsError as exc:
            seen.append(exc.code)
        except ConnectionCut as exc:
            seen.append(f"cut {exc.when}")
    return seen


class TestSingleFaults:
    async def test_a_fault_happens_so_many_times_after_so_many_that_go_well(self, jobs: Account) -> None:
        jobs.aws.faults.add(throttled("ecs.ListTasks", times=2, skip=1))

        seen = await outcomes(jobs, "ListTasks", 5, cluster="jobs")

        assert seen == ["ok", "ThrottlingException", "ThrottlingException", "ok", "ok"]

    @pytest.mark.parametrize(
        ("match", "hits"),
        [
            ("ecs.ListTasks", ["ListTasks"]),
            ("ecs.List*", ["ListTasks", "ListClusters"]),
            ("ecs.*", ["ListTasks", "ListClusters"]),
            ("logs.*", ["logs.DescribeLogGroups"]),
            ("logs.*|ecs.ListClusters", ["ListClusters", "logs.DescribeLogGroups"]),
            ("*", ["ListTasks", "ListClusters", "logs.DescribeLogGroups"]),
        ],
    )
    async def test_it_concerns_what_it_matches(self, jobs: Account, match: str, hits: list[str]) -> None:
        jobs.aws.faults.add(throttled(match, times=math.inf))
        requests: dict[str, Any] = {"ListTasks": {"cluster": "jobs"}}

        seen = [
            called
            for called in ("ListTasks", "ListClusters", "logs.DescribeLogGroups")
            if await outcomes(jobs, called, 1, **requests.get(called, {})) != ["ok"]
        ]

        assert seen == hits

    async def test_it_answers_with_what_it_is_told(self, jobs: Account) -> None:
        arns = ["arn:aws:ecs:us-east-1:123456789012:task/jobs/1"]
        jobs.aws.faults.add(Fault(code="ConflictException", message="oh", status=409, members={"resourceIds": arns}))

        error = await jobs.refusal("ListClusters")

        assert (error.code, error.message, error.status) == ("ConflictException", "oh", 409)
        assert error.members == {"resourceIds": arns}

    async def test_before_the_effect_nothing_is_started(self, jobs: Account) -> None:
        await jobs.register()
        jobs.aws.faults.add(server_error("ecs.RunTask"), Fault(match="ecs.RunTask", cut=True))

        seen = await outcomes(jobs, "RunTask", 2, **launch())

        assert seen == ["ServerException", "cut before"]
        assert jobs.aws.world.truth() == []

    async def test_after_the_effect_the_task_runs_and_nobody_was_told(self, jobs: Account) -> None:
        await jobs.register()
        jobs.aws.faults.add(
            server_error("ecs.RunTask", when="after"), Fault(match="ecs.RunTask", cut=True, when="after")
        )

        seen = await outcomes(jobs, "RunTask", 2, **launch())

        assert seen == ["ServerException", "cut after"]
        assert len(jobs.aws.world.truth()) == 2

    async def test_a_lost_answer_is_told_again_under_the_same_token(self, jobs: Account) -> None:
        await jobs.register()
        jobs.aws.faults.add(Fault(match="ecs.RunTask", cut=True, when="after"))
        await outcomes(jobs, "RunTask", 1, **launch(clientToken="t"))

        task = await jobs.run(clientToken="t")

        assert [truth.arn for truth in jobs.aws.world.truth()] == [task["taskArn"]]

    async def test_a_connection_may_end_in_the_middle_of_the_answer(self, jobs: Account) -> None:
        jobs.aws.faults.add(Fault(cut="half"), Fault(cut="reset"))

        with pytest.raises(ConnectionCut) as half:
            await jobs.ask("ListClusters")
        with pytest.raises(ConnectionCut) as reset:
            await jobs.ask("ListClusters")

        assert (half.value.when, half.value.how) == ("after", "half")
        assert half.value.reply is not None
        assert "clusterArns" in half.value.reply
        assert (reset.value.when, reset.value.how) == ("before", "reset")

    async def test_a_delay_alone_only_takes_time(self, jobs: Account) -> None:
        jobs.aws.faults.add(Fault(delay=5.0), Fault(delay=2.0, when="after"))

        reply = await jobs.ask("ListClusters")

        assert jobs.clock.time() == 7
        assert len(reply["clusterArns"]) == 1

    async def test_time_passes_for_tasks_during_a_delay(self, jobs: Account) -> None:
        arn = await jobs.start()
        jobs.aws.faults.add(Fault(match="ecs.DescribeTasks", delay=1000.0))

        task = await jobs.describe(arn)

        assert task["lastStatus"] == "STOPPED"

    async def test_ec2_throttling_looks_like_a_mistake_of_the_client(self, jobs: Account) -> None:
        await jobs.register()
        jobs.aws.faults.add(ec2_throttled("subnet-1"))

        error = await jobs.refusal("RunTask", **launch())

        assert error.code == "InvalidParameterException"
        assert error.message == (
            "Error retrieving subnet information for [subnet-1]: Rate exceeded (ErrorCode: Throttling)"
        )

    async def test_a_missing_permission_names_action_and_resource(self, jobs: Account) -> None:
        jobs.aws.faults.add(denied("ecs.ListTasks", resource="arn:x"))

        error = await jobs.refusal("ListTasks", cluster="jobs")

        assert error.code == "AccessDeniedException"
        assert "ecs:ListTasks on resource: arn:x" in error.message
        assert await outcomes(jobs, "ListTasks", 3, cluster="jobs") == ["AccessDeniedException"] * 3

    async def test_faults_can_be_cleared(self, jobs: Account) -> None:
        jobs.aws.faults.add(throttled(times=math.inf), Chaos(seed=1, throttle=1.0))

        jobs.aws.faults.clear()

        assert await outcomes(jobs, "ListClusters", 2) == ["ok", "ok"]

    def test_a_fault_is_an_answer_or_none_not_both(self) -> None:
        with pytest.raises(ValueError, match="not both"):
            Fault(code="X", cut=True)


class TestChaos:
    async def test_the_same_seed_goes_wrong_in_the_same_way(self, clock: VirtualClock) -> None:
        runs = [Account(clock, chaos=Chaos.moderate(seed=3)) for _ in range(2)]

        seen = [await outcomes(jobs, "ListTasks", 300, cluster="jobs") for jobs in runs]

        assert seen[0] == seen[1]
        assert {"ok", "ThrottlingException", "ServerException", "cut before", "cut after"} == set(seen[0])

    async def test_another_seed_goes_wrong_in_another(self, clock: VirtualClock) -> None:
        runs = [Account(clock, chaos=Chaos.moderate(seed=seed)) for seed in (3, 4)]

        seen = [await outcomes(jobs, "ListTasks", 300, cluster="jobs") for jobs in runs]

        assert seen[0] != seen[1]

    async def test_its_rates_are_about_what_was_asked_for(self, account: Callable[..., Account]) -> None:
        jobs = account(chaos=Chaos(seed=1, throttle=0.2, lost_answer=0.1))

        seen = Counter(await outcomes(jobs, "ListClusters", 1000))

        assert 150 < seen["ThrottlingException"] < 250
        assert 60 < seen["cut after"] < 140
        assert seen["ok"] + seen["ThrottlingException"] + seen["cut after"] == 1000

    async def test_it_ends_when_it_is_told_to(self, account: Callable[..., Account]) -> None:
        jobs = account(chaos=Chaos(seed=1, throttle=1.0, until=100))
        before = await outcomes(jobs, "ListClusters", 3)

        await anyio.sleep(100)

        assert (before, await outcomes(jobs, "ListClusters", 3)) == (["ThrottlingException"] * 3, ["ok"] * 3)

    async def test_it_may_keep_to_some_operations(self, account: Callable[..., Account]) -> None:
        jobs = account(chaos=Chaos(seed=1, throttle=1.0, match="ecs.Describe*"))

        assert await outcomes(jobs, "ListClusters", 3) == ["ok"] * 3
        assert await outcomes(jobs, "DescribeClusters", 1) == ["ThrottlingException"]

    async def test_it_takes_capacity_away(self, account: Callable[..., Account]) -> None:
        jobs = account(chaos=Chaos(seed=1, no_capacity=0.5))
        await jobs.register()

        replies = [await jobs.ask("RunTask", **launch()) for _ in range(40)]

        assert 10 < sum(bool(reply["failures"]) for reply in replies) < 30

    async def test_it_hides_new_tasks(self, account: Callable[..., Account]) -> None:
        jobs = account(chaos=Chaos(seed=1, hidden=1.0, hidden_for=(20, 30)))
        arn = await jobs.start()

        reply = await jobs.ask("DescribeTasks", cluster="jobs", tasks=[arn])
        await anyio.sleep(30)

        assert reply["failures"][0]["reason"] == "MISSING"
        assert (await jobs.describe(arn))["taskArn"] == arn

    async def test_it_interrupts_spot_and_only_spot(self, account: Callable[..., Account]) -> None:
        jobs = account(chaos=Chaos(seed=1, spot=1.0), script=ContainerScript(run_for=200))
        spot = await jobs.start(launchType=None, capacityProviderStrategy=[SPOT])
        plain = await jobs.start()

        codes = (await jobs.over(spot))["stopCode"], (await jobs.over(plain))["stopCode"]

        assert codes == ("SpotInterruption", "EssentialContainerExited")

    async def test_it_loses_hosts_and_fails_starts(self, account: Callable[..., Account]) -> None:
        lost = account(chaos=Chaos(seed=1, host=1.0), script=ContainerScript(run_for=200))
        unborn = account(chaos=Chaos(seed=1, start_failure=1.0))

        one = await lost.over(await lost.start())
        two = await unborn.over(await unborn.start())

        assert "stopCode" not in one
        assert two["stopCode"] == "TaskFailedToStart"

    async def test_what_a_test_says_of_a_task_counts_more(self, account: Callable[..., Account]) -> None:
        jobs = account(chaos=Chaos(seed=1, start_failure=1.0), task_script=lambda _: TaskScript(host_fails_after=1.0))

        task = await jobs.over(await jobs.start())

        assert "startedAt" in task
