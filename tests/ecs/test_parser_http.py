"""Replies read as plain JSON say the same as botocore's: over HTTP, through real aioboto3."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import botocore.parsers
import pytest

from fargate_runner.backends.ecs import _wire
from fargate_runner.backends.ecs._api import Api, ApiError
from fargate_runner.backends.ecs._lean import PLAIN_REPLIES
from fargate_runner.testing.aws import ContainerRun, ContainerScript, FakeAws, Fault, Ingestion, Pace, Quotas
from fargate_runner.testing.aws._moto import is_installed

pytestmark = pytest.mark.sweep

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DEFINITION: dict[str, Any] = {
    "family": "job",
    "requiresCompatibilities": ["FARGATE"],
    "networkMode": "awsvpc",
    "cpu": "256",
    "memory": "512",
    "executionRoleArn": "arn:aws:iam::123456789012:role/execution",
    "containerDefinitions": [
        {
            "name": "main",
            "image": "registry.example/job:1",
            "environment": [{"name": "A", "value": "ä\n\0"}],
            "logConfiguration": {
                "logDriver": "awslogs",
                "options": {
                    "awslogs-group": "/jobs",
                    "awslogs-region": "us-east-1",
                    "awslogs-stream-prefix": "fr",
                    "mode": "blocking",
                },
            },
        }
    ],
}
RUN_TASK: dict[str, Any] = {
    "cluster": "jobs",
    "taskDefinition": "job",
    "launchType": "FARGATE",
    "networkConfiguration": {
        "awsvpcConfiguration": {"subnets": ["subnet-0aaaaaaaa00000001"], "assignPublicIp": "ENABLED"}
    },
    "tags": [{"key": "team", "value": "blue"}],
    "clientToken": "token",
}
WAITS = {"containerOverrides": [{"name": "main", "command": ["waits"]}]}


def script(container: ContainerRun) -> ContainerScript:
    if container.command:
        return ContainerScript(run_for=math.inf)
    return ContainerScript(run_for=0.2, lines=("hello", "wörld", "☃" * 1000), exit_code=3)


@pytest.fixture
def anyio_backend() -> object:
    return "asyncio"


@pytest.fixture
def aws() -> FakeAws:
    return FakeAws(
        script=script,
        pace=Pace.instant(),
        quotas=Quotas.unlimited(),
        visible_after=(0.0, 0.0),
        ingestion=Ingestion(least=0.0, most=0.0),
        log_groups=("/jobs",),
        clusters=("jobs",),
    )


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.delenv("AWS_PROFILE", raising=False)


@pytest.fixture
async def url(aws: FakeAws) -> AsyncGenerator[str]:
    async with aws.serve(moto=False) as url:
        yield url


@asynccontextmanager
async def opened(url: str, *, fast: bool) -> AsyncGenerator[Api]:
    api = Api(region="us-east-1", endpoint_url=url, fast=fast)
    async with api.running():
        yield api


@pytest.fixture
async def fast(url: str) -> AsyncGenerator[Api]:
    async with opened(url, fast=True) as api:
        yield api


@pytest.fixture
async def stock(url: str) -> AsyncGenerator[Api]:
    async with opened(url, fast=False) as api:
        yield api


def alike(value: Any) -> Any:
    """*value* with its times as seconds, and without what differs from call to call."""
    if isinstance(value, datetime):
        return value.timestamp()
    if isinstance(value, Mapping):
        return {name: alike(part) for name, part in value.items() if name != "ResponseMetadata"}
    if isinstance(value, list):
        return [alike(part) for part in value]
    return value


async def finished(api: Api) -> dict[str, Any]:
    """Run a task to its end, and return how ECS describes it."""
    await api.call("ecs.RegisterTaskDefinition", **DEFINITION)
    reply = await api.call("ecs.RunTask", **RUN_TASK)
    arn = reply["tasks"][0]["taskArn"]
    with anyio.fail_after(30):
        while True:
            described = await api.call("ecs.DescribeTasks", cluster="jobs", tasks=[arn])
            task: dict[str, Any] = described["tasks"][0]
            if task["lastStatus"] == "STOPPED":
                return task
            await anyio.sleep(0.02)


async def both(fast: Api, stock: Api, operation: str, **request: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ask the same through both; the replies, alike as far as they are."""
    one, other = await fast.call(operation, **request), await stock.call(operation, **request)
    assert (fast.parser, stock.parser) == ("fast", "stock")
    tries = {"RetryAttempts", "MaxAttemptsReached"}  # of botocore's own, which is told to make none
    assert one["ResponseMetadata"].keys() - tries == other["ResponseMetadata"].keys() - tries
    return one, other


class TestReplies:
    async def test_a_task_that_ended(self, fast: Api, stock: Api) -> None:
        arn = (await finished(fast))["taskArn"]

        one, other = await both(fast, stock, "ecs.DescribeTasks", cluster="jobs", tasks=[arn, arn[:-1] + "x"])

        assert alike(one) == alike(other)
        assert isinstance(one["tasks"][0]["createdAt"], float)
        assert isinstance(other["tasks"][0]["createdAt"], datetime)
        assert one["failures"][0]["reason"] == "MISSING"

    async def test_a_task_that_ended_makes_the_same_snapshot(self, fast: Api, stock: Api) -> None:
        arn = (await finished(fast))["taskArn"]

        one, other = await both(fast, stock, "ecs.DescribeTasks", cluster="jobs", tasks=[arn])

        seen, seen_by_stock = (
            _wire.snapshot(reply["tasks"][0], "main", source="describe", seen_at=NOW) for reply in (one, other)
        )
        assert seen.ended
        assert seen.exit_code == 3
        assert seen.started_at is not None
        for name in seen.__attrs_attrs__:  # type: ignore[attr-defined]
            assert close(getattr(seen, name.name), getattr(seen_by_stock, name.name)), name.name

    async def test_a_launch_and_its_replay(self, fast: Api, stock: Api) -> None:
        await fast.call("ecs.RegisterTaskDefinition", **DEFINITION)

        one, other = await both(fast, stock, "ecs.RunTask", **RUN_TASK)

        assert one["tasks"][0]["taskArn"] == other["tasks"][0]["taskArn"]
        assert one["failures"] == other["failures"] == []

    async def test_a_list_and_its_pages(self, fast: Api, stock: Api) -> None:
        await fast.call("ecs.RegisterTaskDefinition", **DEFINITION)
        for number in range(3):
            await fast.call("ecs.RunTask", **RUN_TASK | {"clientToken": f"{number}", "overrides": WAITS})

        one, other = await both(fast, stock, "ecs.ListTasks", cluster="jobs", desiredStatus="RUNNING", maxResults=2)

        assert len(one["taskArns"]) == len(other["taskArns"]) == 2
        assert one.keys() == other.keys()

    async def test_a_definition(self, fast: Api, stock: Api) -> None:
        await fast.call("ecs.RegisterTaskDefinition", **DEFINITION)

        one, other = await both(fast, stock, "ecs.DescribeTaskDefinition", taskDefinition="job", include=["TAGS"])

        assert alike(one) == alike(other)
        assert close(_wire.registered_at(one["taskDefinition"]), _wire.registered_at(other["taskDefinition"]))
        assert one["taskDefinition"]["containerDefinitions"][0]["environment"] == [{"name": "A", "value": "ä\n\0"}]

    async def test_lines_of_one_stream(self, fast: Api, stock: Api) -> None:
        arn = (await finished(fast))["taskArn"]
        where = {"logGroupName": "/jobs", "logStreamName": _wire.log_stream("fr", "main", arn)}

        one, other = await both(fast, stock, "logs.GetLogEvents", **where, startFromHead=True)

        assert [event["message"] for event in one["events"]] == ["hello", "wörld", "☃" * 1000]
        assert one["events"] == other["events"]

    async def test_lines_of_many_streams(self, fast: Api, stock: Api) -> None:
        await finished(fast)

        one, other = await both(fast, stock, "logs.FilterLogEvents", logGroupName="/jobs")

        assert len(one["events"]) == 3
        assert one["events"] == other["events"]


class TestErrors:
    @pytest.mark.parametrize(
        ("operation", "request_"),
        [
            ("ecs.ListTasks", {"cluster": "nowhere"}),
            ("ecs.RunTask", RUN_TASK | {"taskDefinition": "nothing"}),
            ("logs.GetLogEvents", {"logGroupName": "/jobs", "logStreamName": "nothing"}),
            ("ecs.DescribeTasks", {"cluster": "jobs", "tasks": 5}),
        ],
        ids=["cluster", "definition", "stream", "parameter"],
    )
    async def test_a_refusal(self, fast: Api, stock: Api, operation: str, request_: dict[str, Any]) -> None:
        one, other = [await refusal(api, operation, **request_) for api in (fast, stock)]

        assert words(one) == words(other)
        assert bool(one.request_id) == bool(other.request_id) == (one.code != "ParamValidation")

    async def test_a_conflict_names_the_task(self, fast: Api, stock: Api) -> None:
        await fast.call("ecs.RegisterTaskDefinition", **DEFINITION)
        reply = await fast.call("ecs.RunTask", **RUN_TASK)

        one, other = [await refusal(api, "ecs.RunTask", **RUN_TASK | {"startedBy": "me"}) for api in (fast, stock)]

        assert words(one) == words(other)
        assert one.resource_ids == (reply["tasks"][0]["taskArn"],)

    @pytest.mark.parametrize("parser", ["fast", "stock"])
    @pytest.mark.parametrize(
        "fault",
        [
            {"code": "ThrottlingException", "message": "Rate exceeded"},
            {"code": "ServerException", "status": 500},
            {"cut": True},
            {"cut": True, "when": "after"},
            {"cut": "reset"},
            {"cut": "half"},
        ],
        ids=lambda fault: "-".join(map(str, fault.values())),
    )
    async def test_what_passes_is_waited_out(self, aws: FakeAws, url: str, parser: str, fault: dict[str, Any]) -> None:
        async with opened(url, fast=parser == "fast") as api:
            await api.call("ecs.RegisterTaskDefinition", **DEFINITION)
            aws.faults.add(Fault(match="ecs.RunTask", **fault))

            reply = await api.call("ecs.RunTask", **RUN_TASK)

        assert api.parser == parser
        assert len(reply["tasks"]) == 1
        assert aws.calls.count("ecs.RunTask") == 2
        assert len(aws.world.tasks) == 1


class TestOthers:
    async def test_other_protocols_and_replies_are_botocores(self, aws: FakeAws, fast: Api, stock: Api) -> None:
        await fast.call("ssm.PutParameter", Name="/a", Value="secret", Type="SecureString")

        whoami = await both(fast, stock, "sts.GetCallerIdentity")
        parameter = await both(fast, stock, "ssm.GetParameter", Name="/a", WithDecryption=True)
        clusters = await both(fast, stock, "ecs.DescribeClusters", clusters=["jobs"])
        subnets = await both(fast, stock, "ec2.DescribeSubnets")

        for one, other in (whoami, parameter, clusters, subnets):
            assert alike(one) == alike(other)
        assert parameter[0]["Parameter"]["LastModifiedDate"] == parameter[1]["Parameter"]["LastModifiedDate"]

    @pytest.mark.skipif(not is_installed(), reason="moto is not installed")
    async def test_objects_are_botocores(self, aws: FakeAws) -> None:
        async with aws.serve(moto=True) as url, opened(url, fast=True) as api:
            await api.call("s3.CreateBucket", Bucket="bucket")
            await api.call("s3.PutObject", Bucket="bucket", Key="a/b", Body=b"\0content")
            reply = await api.call("s3.GetObject", Bucket="bucket", Key="a/b")
            content = await reply["Body"].read()

        assert content == b"\0content"
        assert isinstance(reply["LastModified"], datetime)

    def test_what_is_read_as_plain_json_loses_nothing_by_it(self) -> None:
        """No member of these replies is renamed, binary, in a header or a stream: only times are written otherwise."""
        from botocore.session import Session

        checked = set()
        for service in ("ecs", "logs"):
            model: Any = Session().get_service_model(service)
            assert model.metadata["protocol"] == "json"
            for name in model.operation_names:
                shape = model.operation_model(name).output_shape
                if shape is not None and shape.name in PLAIN_REPLIES:
                    checked.add(shape.name)
                    assert not list(unusual(shape))
        assert checked == PLAIN_REPLIES


class TestFallback:
    @pytest.mark.parametrize("missing", ["_handle_json_body", "create_parser"])
    async def test_a_botocore_of_another_shape_reads_its_own(
        self, url: str, monkeypatch: pytest.MonkeyPatch, missing: str
    ) -> None:
        async with opened(url, fast=True) as api:
            with monkeypatch.context() as patch:
                patch.setattr(botocore.parsers, "ResponseParserFactory", OTHER_FACTORIES[missing])
                await api._open_session()
            reply = await api.call("ecs.ListTasks", cluster="jobs")

        assert api.parser == "stock"
        assert reply["taskArns"] == []


class FactoryOfParsersWithoutOurHook:
    def create_parser(self, protocol_name: str) -> object:
        return object()


OTHER_FACTORIES = {"_handle_json_body": FactoryOfParsersWithoutOurHook, "create_parser": object}


def unusual(shape: Any, seen: frozenset[str] = frozenset()) -> Any:
    """Yield what botocore would read otherwise than JSON has it."""
    if shape.name in seen:
        return
    seen |= {shape.name}
    if shape.type_name == "blob" or shape.serialization.get("name") or shape.serialization.get("location"):
        yield shape.name
    members = {
        "structure": lambda: list(shape.members.values()),
        "list": lambda: [shape.member],
        "map": lambda: [shape.key, shape.value],
    }
    for member in members.get(shape.type_name, list)():
        yield from unusual(member, seen)


def close(one: Any, other: Any) -> bool:
    """Whether they are the same; botocore cuts times to microseconds in another way."""
    if isinstance(one, datetime) and isinstance(other, datetime):
        return abs(one - other) <= timedelta(microseconds=2)
    return bool(one == other)


async def refusal(api: Api, operation: str, **request: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await api.call(operation, **request)
    return caught.value


def words(error: ApiError) -> tuple[object, ...]:
    return error.code, error.aws_message, error.status, error.trouble, error.resource_ids, error.retryable
