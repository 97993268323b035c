"""The front of the fake AWS: in which order a call goes through it, and what it keeps of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

import anyio
import pytest

import fargate_runner.testing.aws
from fargate_runner.testing.aws import ConnectionCut, Fault, Quotas, Rate, throttled
from fargate_runner.testing.aws._fake import CallLog
from fargate_runner.testing.aws._model import Checked, WrongReply, check_reply, check_request, check_shape
from fargate_runner.testing.aws._quotas import Bucket
from fargate_runner.testing.aws._service import AwsError
from fargate_runner.testing.clock import VirtualClock
from tests.aws.account import Account, launch


@pytest.fixture
def anyio_backend(clock: VirtualClock) -> object:
    return "asyncio", {"loop_factory": clock.loop}


@pytest.fixture
def account(clock: VirtualClock) -> Callable[..., Account]:
    return lambda **options: Account(clock, **options)


@pytest.fixture
def jobs(clock: VirtualClock) -> Account:
    return Account(clock)


class TestRequests:
    @pytest.mark.parametrize(
        ("called", "request_", "code", "words"),
        [
            ("ecs.StopTask", {"cluster": "jobs"}, "InvalidParameterException", "must not be null at 'task'"),
            ("ecs.StopTask", {"task": "t", "because": "x"}, "InvalidParameterException", "Unknown member 'because'"),
            ("ecs.StopTask", {"task": 1}, "InvalidParameterException", "int where a string was expected at 'task'"),
            ("ecs.ListTasks", {"maxResults": True}, "InvalidParameterException", "an integer was expected"),
            ("ecs.ListTasks", {"desiredStatus": "DONE"}, "InvalidParameterException", "[PENDING, RUNNING, STOPPED]"),
            ("ecs.DescribeTasks", {"tasks": "t"}, "InvalidParameterException", "str where a list was expected"),
            (
                "ecs.RunTask",
                {"taskDefinition": "t", "overrides": {"containerOverrides": [{"environment": [{"Name": "A"}]}]}},
                "InvalidParameterException",
                "at 'overrides.containerOverrides[0].environment[0].Name'",
            ),
            ("logs.GetLogEvents", {}, "InvalidParameterException", "logStreamName"),
            ("events.PutRule", {}, "ValidationException", "Name"),
            ("logs.PutLogEvents", {"logGroupName": "g", "logStreamName": "s", "logEvents": []}, "InvalidP", "greater"),
        ],
    )
    async def test_what_the_model_does_not_know_is_refused(
        self, jobs: Account, called: str, request_: dict[str, Any], code: str, words: str
    ) -> None:
        error = await jobs.refusal(called, **request_)

        assert error.code.startswith(code)
        assert words in error.message

    @pytest.mark.parametrize("called", ["ecs.Nonsense", "ecs.CreateService", "iam.ListRoles"])
    async def test_what_is_not_faked_is_said_so(self, jobs: Account, called: str) -> None:
        error = await jobs.refusal(called)

        assert error.code in {"UnknownOperationException", "InvalidParameterException"}

    async def test_a_request_that_is_refused_does_not_cost_a_token(self, account: Callable[..., Account]) -> None:
        jobs = account(quotas=Quotas(rates={"ecs.cluster-resource-modify": Rate(1, 0)}))
        await jobs.refusal("StopTask", cluster="jobs")

        error = await jobs.refusal("StopTask", cluster="jobs", task="t")

        assert error.message == "The referenced task was not found."


class TestReplies:
    def test_a_member_that_aws_does_not_have_is_loud(self) -> None:
        with pytest.raises(WrongReply, match=r"Unknown member 'lastStatuss'.*at tasks\[0\].lastStatuss"):
            check_reply("ecs", "DescribeTasks", {"tasks": [{"lastStatuss": "RUNNING"}]})

    @pytest.mark.parametrize(
        "task",
        [
            {"version": "1"},
            {"lastStatus": None},
            {"createdAt": 1.5},
            {"createdAt": datetime(2026, 1, 1)},  # noqa: DTZ001 (the point)
            {"containers": {}},
            {"containers": [{"exitCode": "0"}]},
        ],
    )
    def test_a_member_of_the_wrong_type_is_loud(self, task: dict[str, Any]) -> None:
        with pytest.raises(WrongReply):
            check_reply("ecs", "DescribeTasks", {"tasks": [task]})

    def test_what_was_checked_once_is_not_walked_again(self) -> None:
        once = check_shape("ecs", "Task", {"lastStatus": "RUNNING"})
        once["nonsense"] = 1

        check_reply("ecs", "DescribeTasks", {"tasks": [once]})

        with pytest.raises(WrongReply):
            check_reply("ecs", "DescribeTasks", {"tasks": [Checked({"nonsense": 1}, "Container")]})

    def test_a_task_is_checked_when_it_is_made(self) -> None:
        with pytest.raises(WrongReply, match="exitcode"):
            check_shape("ecs", "Task", {"containers": [{"exitcode": 0}]})

    def test_shapes_that_contain_themselves_are_no_trouble(self) -> None:
        condition = {"Key": "a", "Values": ["b"]}

        check_request("ssm", "DescribeParameters", {"ParameterFilters": [condition]})

        with pytest.raises(AwsError, match="ValidationException"):
            check_request("ssm", "DescribeParameters", {"ParameterFilters": [{"Values": []}]})

    async def test_every_answer_is_checked(self, jobs: Account) -> None:
        async def wrong(request: object) -> dict[str, Any]:
            return {"clusters": []}

        jobs.aws.ecs.list_clusters = wrong  # type: ignore[method-assign]

        with pytest.raises(WrongReply, match=r"ecs\.ListClusters answered Unknown member 'clusters'"):
            await jobs.ask("ListClusters")

    async def test_what_a_caller_does_with_a_reply_changes_nothing(self, jobs: Account) -> None:
        arn = await jobs.start()
        task = await jobs.describe(arn)

        task["lastStatus"] = "STOPPED"
        task["containers"][0]["exitCode"] = 0
        task["attachments"].clear()

        again = await jobs.describe(arn)
        assert again["lastStatus"] == "PROVISIONING"
        assert "exitCode" not in again["containers"][0]
        assert len(again["attachments"]) == 1


class TestCredentials:
    async def test_an_expired_key_is_refused_before_anything_else(self, jobs: Account) -> None:
        jobs.aws.credentials.issue("AKIA1", lives=60)
        jobs.aws.faults.add(throttled())

        await anyio.sleep(60)
        with pytest.raises(AwsError) as caught:
            await jobs.aws.call("ecs", "ListClusters", {}, access_key="AKIA1")

        assert (caught.value.code, caught.value.status) == ("ExpiredTokenException", 403)
        assert jobs.aws.faults.rules[0].happened == 0

    async def test_a_key_works_until_then(self, jobs: Account) -> None:
        jobs.aws.credentials.issue("AKIA1", lives=60)

        await anyio.sleep(59)

        assert await jobs.aws.call("ecs", "ListClusters", {}, access_key="AKIA1")

    async def test_a_key_can_be_made_to_expire_and_issued_again(self, jobs: Account) -> None:
        jobs.aws.credentials.expire("AKIA1")
        with pytest.raises(AwsError):
            await jobs.aws.call("ecs", "ListClusters", {}, access_key="AKIA1")

        jobs.aws.credentials.issue("AKIA1", lives=10)

        assert await jobs.aws.call("ecs", "ListClusters", {}, access_key="AKIA1")

    async def test_a_key_that_nobody_mentioned_works(self, jobs: Account) -> None:
        assert await jobs.aws.call("ecs", "ListClusters", {}, access_key="test")


class TestTheCallLog:
    async def test_it_keeps_every_call_and_what_came_of_it(self, jobs: Account) -> None:
        jobs.aws.faults.add(throttled("ecs.ListClusters"), Fault(match="ecs.ListClusters", cut=True, when="after"))
        await jobs.refusal("ListClusters")
        with pytest.raises(ConnectionCut):
            await jobs.ask("ListClusters")
        await anyio.sleep(5)
        await jobs.ask("ListClusters", maxResults=7)

        assert [call.outcome for call in jobs.aws.calls] == ["ThrottlingException", "cut after", "ok"]
        assert [call.at for call in jobs.aws.calls] == [0, 0, 5]
        assert jobs.aws.calls.of("ecs.ListClusters")[-1].request == {"maxResults": 7}
        assert jobs.aws.calls.count("ecs.ListClusters") == 3
        assert jobs.aws.calls.count("ecs.ListClusters", "ok") == 1
        assert jobs.aws.calls.throttled == {"ecs.ListClusters": 1}

    async def test_it_counts_by_bucket(self, jobs: Account) -> None:
        await jobs.ask("ListTasks", cluster="jobs")
        await jobs.ask("DescribeTasks", cluster="jobs", tasks=["a"])
        await jobs.ask("logs.DescribeLogGroups")

        assert jobs.aws.calls.buckets == {"ecs.cluster-resource-read": 2, "logs.DescribeLogGroups": 1}

    async def test_it_keeps_a_call_that_was_given_up(self, jobs: Account) -> None:
        jobs.aws.faults.add(Fault(delay=100))

        with anyio.move_on_after(1):
            await jobs.ask("ListClusters")

        assert [call.outcome for call in jobs.aws.calls] == ["cancelled"]

    def test_its_peak_is_the_most_in_any_window(self) -> None:
        log = CallLog()
        for at in (0.0, 0.9, 1.8, 1.85, 2.7, 5.0):
            log.came_in("ecs.ListTasks", ("reads",), at)

        assert log.peak("reads") == 3
        assert log.peak("reads", 10) == 6
        assert log.peak("other") == 0

    async def test_it_can_be_cleared(self, jobs: Account) -> None:
        await jobs.ask("ListClusters")

        jobs.aws.calls.clear()

        assert len(jobs.aws.calls) == jobs.aws.calls.count("ecs.ListClusters") == 0


class TestBuckets:
    def test_a_burst_then_the_refill(self, clock: VirtualClock) -> None:
        bucket = Bucket(Rate(3, 2), clock)

        burst = [bucket.take() for _ in range(4)]
        clock.advance(0.5)
        one_more = [bucket.take() for _ in range(2)]
        clock.advance(100)
        full = [bucket.take() for _ in range(4)]

        assert burst == [True, True, True, False]
        assert one_more == [True, False]
        assert full == [True, True, True, False]

    def test_some_regions_give_fewer_log_calls(self) -> None:
        there, here = Quotas.published("eu-central-1"), Quotas.published("us-east-1")

        assert there.rates["logs.GetLogEvents"].refill == 10
        assert here.rates["logs.GetLogEvents"].refill == 25
        assert there.rates["logs.FilterLogEvents"].refill == 5
        assert here.rates["logs.FilterLogEvents"].refill == 25

    async def test_others_of_the_account_may_take_their_share(self, account: Callable[..., Account]) -> None:
        jobs = account(quotas=Quotas.published().scaled(0.1))
        for _ in range(10):
            await jobs.ask("ListTasks", cluster="jobs")

        assert (await jobs.refusal("ListTasks", cluster="jobs")).code == "ThrottlingException"

    async def test_they_can_be_switched_off(self, account: Callable[..., Account]) -> None:
        jobs = account(quotas=Quotas.unlimited())
        await jobs.register()

        for _ in range(150):
            await jobs.run()

        assert len(jobs.aws.world.tasks) == 150

    async def test_log_calls_have_their_own(self, account: Callable[..., Account]) -> None:
        jobs = account(quotas=Quotas.published())
        for _ in range(25):
            await jobs.ask("logs.FilterLogEvents", logGroupName="/jobs")

        assert (await jobs.refusal("logs.FilterLogEvents", logGroupName="/jobs")).code == "ThrottlingException"


class TestTheFace:
    async def test_a_session_makes_clients_of_the_same_account(self, jobs: Account) -> None:
        await jobs.register()

        async with jobs.aws.session().client("ecs") as ecs:
            reply = await ecs.run_task(**launch())

        assert reply["tasks"][0]["taskArn"] in jobs.aws.world.tasks

    async def test_latency_is_the_time_that_an_answer_takes(self, account: Callable[..., Account]) -> None:
        jobs = account(latency=(0.2, 0.2))

        await jobs.ask("ListClusters")

        assert jobs.clock.time() == pytest.approx(0.2)

    async def test_a_fake_that_broke_says_so_at_the_next_call(self, jobs: Account) -> None:
        def break_down() -> None:
            raise ZeroDivisionError

        jobs.aws.world.at(5.0, break_down)
        anyio_loop_errors: list[Any] = []
        _swallow_loop_errors(anyio_loop_errors)

        await anyio.sleep(10)

        with pytest.raises(RuntimeError, match="broke while time passed") as caught:
            await jobs.ask("ListClusters")
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert len(anyio_loop_errors) == 1


def _swallow_loop_errors(into: list[Any]) -> None:
    import asyncio

    asyncio.get_running_loop().set_exception_handler(lambda _, context: into.append(context))


class TestPublicNames:
    @pytest.mark.parametrize("name", fargate_runner.testing.aws.__all__)
    def test_each_can_be_imported(self, name: str) -> None:
        assert getattr(fargate_runner.testing.aws, name) is not None

    def test_an_unknown_one_is_an_attribute_error(self) -> None:
        name = "no_such_name"

        with pytest.raises(AttributeError, match=name):
            getattr(fargate_runner.testing.aws, name)

    def test_the_docker_engine_is_loaded_when_it_is_asked_for(self) -> None:
        code = "import sys, fargate_runner.testing.aws as aws; print([n for n in sys.modules if 'docker' in n])"

        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

        assert done.stdout.strip() == "[]"
