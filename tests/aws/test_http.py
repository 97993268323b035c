"""The face over HTTP: real clients, unmodified, in real time; and what only a wire can do wrong."""

from __future__ import annotations

import errno
import gc
import json
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import aioboto3
import aiohttp
import anyio
import anyio.to_thread
import boto3
import pytest
from aiobotocore.config import AioConfig
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    HTTPClientError,
    ReadTimeoutError,
)

from fargate_runner.testing.aws import ContainerScript, FakeAws, Fault, Ingestion, Pace, Quotas
from fargate_runner.testing.aws._moto import is_installed
from fargate_runner.testing.aws._service import RealClock

JOB: dict[str, Any] = {
    "family": "job",
    "requiresCompatibilities": ["FARGATE"],
    "networkMode": "awsvpc",
    "cpu": "256",
    "memory": "512",
    "executionRoleArn": "arn:aws:iam::123456789012:role/execution",
    "containerDefinitions": [
        {
            "name": "main",
            "image": "busybox",
            "logConfiguration": {
                "logDriver": "awslogs",
                "options": {
                    "awslogs-group": "/jobs",
                    "awslogs-region": "us-east-1",
                    "awslogs-stream-prefix": "fr",
                },
            },
        }
    ],
}
LAUNCH: dict[str, Any] = {
    "taskDefinition": "job",
    "launchType": "FARGATE",
    "networkConfiguration": {"awsvpcConfiguration": {"subnets": ["subnet-1"], "assignPublicIp": "ENABLED"}},
}
ONCE = {"total_max_attempts": 1, "mode": "standard"}

needs_moto = pytest.mark.skipif(not is_installed(), reason="moto is not installed")

Client = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture
def aws() -> FakeAws:
    return FakeAws(
        script=ContainerScript(run_for=0.2, lines=("hello", "world"), exit_code=3),
        pace=Pace.instant(),
        quotas=Quotas.unlimited(),
        visible_after=(0.0, 0.0),
        ingestion=Ingestion(least=0.0, most=0.0),
        log_groups=("/jobs",),
    )


@pytest.fixture
async def url(aws: FakeAws) -> AsyncGenerator[str]:
    async with aws.serve(moto=False) as url:
        yield url


def session() -> Any:
    """aioboto3's, which has no types."""
    return aioboto3.Session()


def credentials(url: str) -> dict[str, Any]:
    return {
        "endpoint_url": url,
        "region_name": "us-east-1",
        "aws_access_key_id": "AKIATEST",
        "aws_secret_access_key": "secret",
    }


@pytest.fixture
def client(url: str) -> Client:
    """Makes aioboto3's clients."""
    config = AioConfig(retries=ONCE, read_timeout=5, inject_host_prefix=False)
    return partial(session().client, config=config, **credentials(url))


async def stopped(ecs: Any, arn: str) -> dict[str, Any]:
    while True:
        [task] = (await ecs.describe_tasks(tasks=[arn]))["tasks"]
        if task["lastStatus"] == "STOPPED":
            return dict(task)
        await anyio.sleep(0.02)


# Real clients.


async def test_aioboto3_runs_a_task_and_reads_its_lines(client: Client) -> None:
    async with client("ecs") as ecs, client("logs") as logs:
        await ecs.register_task_definition(**JOB)
        arn = (await ecs.run_task(**LAUNCH))["tasks"][0]["taskArn"]

        task = await stopped(ecs, arn)
        stream = f"fr/main/{arn.rpartition('/')[2]}"
        events = (await logs.get_log_events(logGroupName="/jobs", logStreamName=stream, startFromHead=True))["events"]

    assert (task["stopCode"], task["containers"][0]["exitCode"]) == ("EssentialContainerExited", 3)
    assert task["createdAt"] <= task["startedAt"] <= task["stoppedAt"]
    assert [event["message"] for event in events] == ["hello", "world"]


async def test_boto3_runs_a_task_and_waits_for_it(url: str) -> None:
    def program() -> list[dict[str, Any]]:
        ecs: Any = boto3.client("ecs", **credentials(url))
        ecs.register_task_definition(**JOB)
        arn = ecs.run_task(**LAUNCH)["tasks"][0]["taskArn"]
        ecs.get_waiter("tasks_stopped").wait(tasks=[arn], WaiterConfig={"Delay": 0.05})
        found: list[dict[str, Any]] = ecs.describe_tasks(tasks=[arn])["tasks"]
        ecs.close()
        return found

    [task] = await anyio.to_thread.run_sync(program)

    assert task["containers"][0]["exitCode"] == 3


async def test_state_changes_arrive_in_a_queue(client: Client, url: str) -> None:
    seen: list[str] = []
    async with client("ecs") as ecs, client("sqs") as sqs, client("events") as events:
        queue = (await sqs.create_queue(QueueName="changes"))["QueueUrl"]
        attributes = await sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
        await events.put_rule(Name="changes", EventPattern='{"source": ["aws.ecs"]}')
        target = {"Id": "queue", "Arn": attributes["Attributes"]["QueueArn"]}
        await events.put_targets(Rule="changes", Targets=[target])
        await ecs.register_task_definition(**JOB)

        await ecs.run_task(**LAUNCH)
        while "STOPPED" not in seen:
            got = await sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=2)
            seen += [json.loads(message["Body"])["detail"]["lastStatus"] for message in got["Messages"]]

    assert queue == f"{url}/123456789012/changes"
    assert [status for status in dict.fromkeys(seen) if status in {"PROVISIONING", "RUNNING", "STOPPED"}] == [
        "PROVISIONING",
        "RUNNING",
        "STOPPED",
    ]


async def test_a_refusal_is_the_clients_own_exception(client: Client) -> None:
    async with client("ecs") as ecs:
        with pytest.raises(ecs.exceptions.ClusterNotFoundException) as refusal:
            await ecs.list_tasks(cluster="nowhere")

    assert refusal.value.response["ResponseMetadata"]["RequestId"]
    assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400


async def test_a_conflict_names_the_task_that_is_there(client: Client) -> None:
    async with client("ecs") as ecs:
        await ecs.register_task_definition(**JOB)
        arn = (await ecs.run_task(**LAUNCH, clientToken="once"))["tasks"][0]["taskArn"]
        with pytest.raises(ecs.exceptions.ConflictException) as refusal:
            await ecs.run_task(**LAUNCH, clientToken="once", startedBy="me")

    assert refusal.value.response["resourceIds"] == [arn]


async def test_the_access_key_of_the_signature_counts(client: Client, aws: FakeAws) -> None:
    aws.credentials.expire("AKIATEST")

    async with client("ecs") as ecs:
        with pytest.raises(ClientError) as refusal:
            await ecs.list_clusters()

    assert refusal.value.response["Error"]["Code"] == "ExpiredTokenException"
    assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


async def test_a_live_tail_streams(client: Client, aws: FakeAws) -> None:
    found: list[str] = []
    async with client("logs") as logs:
        reply = await logs.start_live_tail(logGroupIdentifiers=["arn:aws:logs:us-east-1:123456789012:log-group:/jobs"])
        aws.logs.put("/jobs", "s", [(round(aws.clock.utcnow().timestamp() * 1000), "hello")])
        async for event in reply["responseStream"]:
            found += [line["message"] for line in event.get("sessionUpdate", {}).get("sessionResults", [])]
            if found:
                break
        reply["responseStream"].close()

    assert found == ["hello"]


async def test_a_bug_of_the_fake_is_an_answer_and_a_line_in_the_log(
    client: Client, aws: FakeAws, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(request: object) -> dict[str, Any]:
        raise ZeroDivisionError

    monkeypatch.setattr(aws.ecs, "list_clusters", broken)

    async with client("ecs") as ecs:
        with pytest.raises(ClientError, match="InternalFailure"):
            await ecs.list_clusters()

    assert "ecs.ListClusters" in caplog.text
    assert "ZeroDivisionError" in caplog.text


# Queues as older clients ask for them.


async def test_sqs_is_understood_in_the_query_protocol(url: str) -> None:
    async with aiohttp.ClientSession() as http:

        async def ask(where: str = url, /, **form: str) -> tuple[int, str]:
            async with http.post(where, data={"Version": "2012-11-05", **form}) as answer:
                return answer.status, await answer.text()

        _, made = await ask(Action="CreateQueue", QueueName="old")
        queue = made.partition("<QueueUrl>")[2].partition("</QueueUrl>")[0]
        await ask(queue, Action="SendMessage", MessageBody="a & b")
        _, got = await ask(Action="ReceiveMessage", QueueUrl=queue, **{"AttributeName.1": "All"})
        status, refused = await ask(Action="GetQueueUrl", QueueName="nope")

    assert queue == f"{url}/123456789012/old"
    assert "<Body>a &amp; b</Body>" in got
    assert "<Name>ApproximateReceiveCount</Name><Value>1</Value>" in got
    assert status == 400
    assert "<Code>AWS.SimpleQueueService.NonExistentQueue</Code>" in refused


# What is not an AWS call.


async def test_a_browser_is_told_what_this_is(url: str) -> None:
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        text = await answer.text()

    assert answer.status == 200
    assert "fake AWS" in text
    assert f"AWS_ENDPOINT_URL={url}" in text


@pytest.mark.parametrize("path", ["/favicon.ico", "/bucket/key", "//", "/%00"])
async def test_an_odd_path_is_told_what_is_missing(url: str, path: str) -> None:
    async with aiohttp.ClientSession() as http, http.get(url + path) as answer:
        text = await answer.text()

    assert answer.status == 501
    assert "moto[server]" in text


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff"])
async def test_bodies_that_are_no_requests_are_refused(url: str, body: bytes) -> None:
    headers = {"X-Amz-Target": "AmazonEC2ContainerServiceV20141113.RunTask"}

    async with aiohttp.ClientSession() as http, http.post(url, data=body, headers=headers) as answer:
        said = await answer.json(content_type=None)

    assert answer.status == 400
    assert said["__type"]


async def test_an_operation_that_nobody_knows_is_refused(url: str) -> None:
    headers = {"X-Amz-Target": "AmazonEC2ContainerServiceV20141113.MakeTea"}

    async with aiohttp.ClientSession() as http, http.post(url, data=b"{}", headers=headers) as answer:
        said = await answer.json(content_type=None)

    assert (answer.status, said["__type"]) == (400, "UnknownOperationException")


# Without moto.


async def test_the_address_of_a_task_is_found_by_its_network_interface(client: Client) -> None:
    async with client("ecs") as ecs, client("ec2") as ec2:
        await ecs.register_task_definition(**JOB)
        task = await stopped(ecs, (await ecs.run_task(**LAUNCH))["tasks"][0]["taskArn"])
        details = {each["name"]: each["value"] for each in task["attachments"][0]["details"]}
        asked = {"NetworkInterfaceIds": [details["networkInterfaceId"]]}
        [interface] = (await ec2.describe_network_interfaces(**asked))["NetworkInterfaces"]

    assert interface["PrivateIpAddresses"][0]["PrivateIpAddress"] == details["privateIPv4Address"]
    assert (interface["SubnetId"], interface["MacAddress"]) == ("subnet-1", details["macAddress"])


async def test_without_moto_there_is_somebody_to_be(client: Client) -> None:
    async with client("sts") as sts, client("ec2") as ec2:
        account = (await sts.get_caller_identity())["Account"]
        subnets = (await ec2.describe_subnets())["Subnets"]

    assert account == "123456789012"
    assert subnets


async def test_without_moto_secrets_reach_the_container(client: Client, aws: FakeAws) -> None:
    seen = await secrets_seen(client, aws)

    assert seen == {"PLAIN": "top", "KEYED": "pass", "PARAMETER": "value"}


async def test_without_moto_other_services_say_what_to_install(client: Client) -> None:
    async with client("dynamodb") as dynamodb:
        with pytest.raises(ClientError, match=r"moto\[server\]") as refusal:
            await dynamodb.list_tables()

    assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] == 501


async def secrets_seen(client: Client, aws: FakeAws) -> dict[str, str]:
    """What a container finds of secrets that were stored by clients."""
    seen: dict[str, str] = {}

    def script(run: Any) -> ContainerScript:
        seen.update(run.environment)
        return ContainerScript(run_for=0)

    aws.world.script = script
    async with client("secretsmanager") as manager, client("ssm") as ssm, client("ecs") as ecs:
        plain = (await manager.create_secret(Name="plain", SecretString="top"))["ARN"]
        keyed = (await manager.create_secret(Name="keyed", SecretString='{"word": "pass"}'))["ARN"]
        await ssm.put_parameter(Name="/a/b", Value="value", Type="String")
        secrets = [
            {"name": "PLAIN", "valueFrom": plain},
            {"name": "KEYED", "valueFrom": f"{keyed}:word::"},
            {"name": "PARAMETER", "valueFrom": "arn:aws:ssm:us-east-1:123456789012:parameter/a/b"},
        ]
        container = JOB["containerDefinitions"][0] | {"secrets": secrets}
        await ecs.register_task_definition(**JOB | {"containerDefinitions": [container]})
        await stopped(ecs, (await ecs.run_task(**LAUNCH))["tasks"][0]["taskArn"])
    return seen


# With moto.


@pytest.fixture
async def url_with_moto(aws: FakeAws) -> AsyncGenerator[str]:
    async with aws.serve(moto=True) as url:
        yield url


@pytest.fixture
def any_client(url_with_moto: str) -> Client:
    """Makes clients that find moto behind the same port."""
    return partial(session().client, config=AioConfig(retries=ONCE), **credentials(url_with_moto))


@needs_moto
async def test_everything_else_is_moto_s_on_the_same_port(any_client: Client) -> None:
    async with any_client("s3") as s3, any_client("dynamodb") as dynamodb, any_client("iam") as iam:
        await s3.create_bucket(Bucket="bucket")
        await s3.put_object(Bucket="bucket", Key="a b/ü+%?&.txt", Body=b"\x00\xff" * 100_000)
        body = await (await s3.get_object(Bucket="bucket", Key="a b/ü+%?&.txt"))["Body"].read()
        keys = [found["Key"] for found in (await s3.list_objects_v2(Bucket="bucket"))["Contents"]]
        tables = (await dynamodb.list_tables())["TableNames"]
        role = await iam.create_role(RoleName="r", AssumeRolePolicyDocument='{"Version":"2012-10-17","Statement":[]}')
        managed = "arn:aws:iam::aws:policy/service-role/AmazonECSTaskExecutionRolePolicy"
        await iam.attach_role_policy(RoleName="r", PolicyArn=managed)

    assert body == b"\x00\xff" * 100_000
    assert keys == ["a b/ü+%?&.txt"]
    assert tables == []
    assert role["Role"]["Arn"] == "arn:aws:iam::123456789012:role/r"


@needs_moto
async def test_a_presigned_url_works(any_client: Client) -> None:
    async with any_client("s3") as s3, aiohttp.ClientSession() as http:
        await s3.create_bucket(Bucket="bucket")
        await s3.put_object(Bucket="bucket", Key="key", Body=b"text")
        link = await s3.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "key"})
        async with http.get(link) as answer:
            found = await answer.read()

    assert found == b"text"


@needs_moto
async def test_of_writes_at_the_same_time_on_one_condition_one_is_done(any_client: Client) -> None:
    """moto takes long to read a long condition: time enough for another write, if there may be one."""
    key = {"AttributeName": "key", "AttributeType": "S"}, {"AttributeName": "key", "KeyType": "HASH"}
    condition = " AND ".join(["attribute_not_exists(page)"] * 60)
    written: list[str] = []
    async with any_client("dynamodb") as dynamodb:
        await dynamodb.create_table(
            TableName="jobs", BillingMode="PAY_PER_REQUEST", AttributeDefinitions=[key[0]], KeySchema=[key[1]]
        )

        async def write(name: str, writer: str) -> None:
            item = {"key": {"S": name}, "page": {"S": writer}}
            try:
                await dynamodb.put_item(TableName="jobs", Item=item, ConditionExpression=condition)
                written.append(name)
            except dynamodb.exceptions.ConditionalCheckFailedException:
                pass

        for number in range(8):
            async with anyio.create_task_group() as tasks:
                for writer in "abcdefgh":
                    tasks.start_soon(write, str(number), writer)

    assert sorted(written) == [str(number) for number in range(8)]


@needs_moto
async def test_what_not_even_moto_knows_is_said_once_and_for_all(any_client: Client) -> None:
    async with any_client("pricing") as pricing:
        with pytest.raises(ClientError, match="pricing") as caught:
            await pricing.get_products(ServiceCode="AmazonECS")

    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 501


async def test_a_protocol_that_is_not_spoken_is_refused(url: str) -> None:
    where = f"{url}/service/AmazonEC2ContainerServiceV20141113/operation/ListClusters"
    async with aiohttp.ClientSession() as http, http.post(where, headers={"Smithy-Protocol": "rpc-v2-cbor"}) as answer:
        said = await answer.text()

    assert (answer.status, "rpc-v2-cbor" in said) == (400, True)


@needs_moto
async def test_ours_stays_ours_beside_moto(any_client: Client) -> None:
    async with any_client("ecs") as ecs, any_client("sqs") as sqs, any_client("sts") as sts:
        clusters = (await ecs.list_clusters())["clusterArns"]
        queue = (await sqs.create_queue(QueueName="q"))["QueueUrl"]
        account = (await sts.get_caller_identity())["Account"]

    assert clusters == ["arn:aws:ecs:us-east-1:123456789012:cluster/default"]
    assert queue.endswith("/123456789012/q")
    assert account == "123456789012"


@needs_moto
async def test_secrets_are_resolved_where_clients_put_them(any_client: Client, aws: FakeAws) -> None:
    seen = await secrets_seen(any_client, aws)

    assert seen == {"PLAIN": "top", "KEYED": "pass", "PARAMETER": "value"}


@needs_moto
async def test_environment_files_are_read_from_moto_s_s3(any_client: Client, aws: FakeAws) -> None:
    seen: dict[str, str] = {}

    def script(run: Any) -> ContainerScript:
        seen.update(run.environment)
        return ContainerScript(run_for=0)

    aws.world.script = script
    async with any_client("s3") as s3, any_client("ecs") as ecs:
        await s3.create_bucket(Bucket="bucket")
        await s3.put_object(Bucket="bucket", Key="dir/some.env", Body=b"# comment\nFROM_FILE=yes\n")
        files = [{"type": "s3", "value": "arn:aws:s3:::bucket/dir/some.env"}]
        container = JOB["containerDefinitions"][0] | {"environmentFiles": files}
        await ecs.register_task_definition(**JOB | {"containerDefinitions": [container]})
        await stopped(ecs, (await ecs.run_task(**LAUNCH))["tasks"][0]["taskArn"])

    assert seen == {"FROM_FILE": "yes"}


@needs_moto
async def test_a_secret_that_is_not_there_is_a_task_that_did_not_start(any_client: Client) -> None:
    missing = "arn:aws:secretsmanager:us-east-1:123456789012:secret:nope-abcdef"
    container = JOB["containerDefinitions"][0] | {"secrets": [{"name": "S", "valueFrom": missing}]}

    async with any_client("ecs") as ecs:
        await ecs.register_task_definition(**JOB | {"containerDefinitions": [container]})
        task = await stopped(ecs, (await ecs.run_task(**LAUNCH))["tasks"][0]["taskArn"])

    assert task["stopCode"] == "TaskFailedToStart"
    assert task["stoppedReason"].startswith("ResourceInitializationError")


@needs_moto
@pytest.mark.parametrize("round_", [1, 2])
async def test_each_fake_finds_moto_empty(any_client: Client, round_: int) -> None:
    async with any_client("s3") as s3:
        before = (await s3.list_buckets())["Buckets"]
        await s3.create_bucket(Bucket=f"bucket-{round_}")

    assert before == []


@needs_moto
async def test_another_account_is_moto_s_account_too(aws: FakeAws) -> None:
    other = FakeAws(account="111122223333")

    async with other.serve(moto=True) as url, session().client("sts", **credentials(url)) as sts:
        account = (await sts.get_caller_identity())["Account"]

    assert account == "111122223333"


async def test_asking_for_moto_where_it_is_not_is_told(aws: FakeAws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fargate_runner.testing.aws._moto.is_installed", lambda: False)

    with pytest.raises(ModuleNotFoundError, match=r"moto\[server\]"):
        async with aws.serve(moto=True):
            pass


# Faults.


@pytest.mark.parametrize(("when", "tasks"), [("before", 0), ("after", 1)])
async def test_a_connection_is_closed_before_or_after_the_effect(
    client: Client, aws: FakeAws, when: Any, tasks: int
) -> None:
    aws.faults.add(Fault(match="ecs.RunTask", cut=True, when=when))

    async with client("ecs") as ecs:
        await ecs.register_task_definition(**JOB)
        with pytest.raises(ConnectionClosedError):
            await ecs.run_task(**LAUNCH)

    assert len(aws.world.truth()) == tasks


async def test_an_answer_may_end_in_its_middle(client: Client, aws: FakeAws) -> None:
    aws.faults.add(Fault(match="ecs.RunTask", cut="half"))

    async with client("ecs") as ecs:
        await ecs.register_task_definition(**JOB)
        with pytest.raises(HTTPClientError):
            await ecs.run_task(**LAUNCH)

    assert len(aws.world.truth()) == 1


async def test_what_came_of_a_halved_answer_is_an_answer(url: str, aws: FakeAws) -> None:
    aws.faults.add(Fault(match="ecs.ListClusters", cut="half"))
    headers = {"X-Amz-Target": "AmazonEC2ContainerServiceV20141113.ListClusters"}

    async with aiohttp.ClientSession() as http, http.post(url, data=b"{}", headers=headers) as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()

    assert answer.status == 200


async def test_a_connection_may_be_reset(client: Client, aws: FakeAws) -> None:
    aws.faults.add(Fault(match="ecs.ListClusters", cut="reset"))

    async with client("ecs") as ecs:
        with pytest.raises(EndpointConnectionError, match="Could not connect"):
            await ecs.list_clusters()
        again = await ecs.list_clusters()

    assert again["clusterArns"]


async def test_a_client_s_own_retries_launch_once(aws: FakeAws, url: str) -> None:
    aws.faults.add(Fault(match="ecs.RunTask", cut=True, when="after"))
    config = AioConfig(retries={"total_max_attempts": 3, "mode": "standard"})

    async with session().client("ecs", config=config, **credentials(url)) as ecs:
        await ecs.register_task_definition(**JOB)
        reply = await ecs.run_task(**LAUNCH)

    assert reply["ResponseMetadata"]["RetryAttempts"] == 1
    assert [truth.arn for truth in aws.world.truth()] == [task["taskArn"] for task in reply["tasks"]]


async def test_an_answer_may_be_late(aws: FakeAws, url: str) -> None:
    aws.faults.add(Fault(match="ecs.ListClusters", delay=30))
    config = AioConfig(retries=ONCE, read_timeout=0.2)

    async with session().client("ecs", config=config, **credentials(url)) as ecs:
        with pytest.raises(ReadTimeoutError):
            await ecs.list_clusters()


async def test_a_throttle_is_the_client_s_to_retry(aws: FakeAws, url: str) -> None:
    aws.faults.add(Fault(match="ecs.ListClusters", code="ThrottlingException", message="Rate exceeded"))
    config = AioConfig(retries={"total_max_attempts": 2, "mode": "standard"})

    async with session().client("ecs", config=config, **credentials(url)) as ecs:
        reply = await ecs.list_clusters()

    assert reply["ResponseMetadata"]["RetryAttempts"] == 1


# Its own life.


async def test_leaving_ends_what_is_under_way(aws: FakeAws) -> None:
    refused: list[type[Exception]] = []

    async def wait_for_a_message(url: str) -> None:
        config = AioConfig(retries=ONCE)
        async with session().client("sqs", config=config, **credentials(url)) as sqs:
            queue = (await sqs.create_queue(QueueName="empty"))["QueueUrl"]
            under_way.set()
            try:
                await sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=20)
            except HTTPClientError as exc:
                refused.append(type(exc))

    under_way = anyio.Event()
    async with anyio.create_task_group() as tasks:
        async with aws.serve(moto=False) as url:
            tasks.start_soon(wait_for_a_message, url)
            await under_way.wait()
            while not aws.calls.count("sqs.ReceiveMessage"):
                await anyio.sleep(0.01)
        with anyio.fail_after(5):
            while not refused:
                await anyio.sleep(0.01)

    assert refused == [ConnectionClosedError]


async def test_nothing_is_left_open(aws: FakeAws) -> None:
    async with aws.serve(moto=False) as url, aiohttp.ClientSession() as http:
        async with http.get(url) as answer:
            await answer.read()

    gc.collect()  # an open socket would warn, and warnings are errors
    with pytest.raises(aiohttp.ClientConnectorError):
        async with aiohttp.ClientSession() as http:
            await http.get(url)


async def test_queues_have_their_aws_addresses_again_afterwards(aws: FakeAws) -> None:
    async with aws.serve(moto=False):
        pass

    async with aws.session().client("sqs") as sqs:
        queue = (await sqs.create_queue(QueueName="q"))["QueueUrl"]

    assert queue == "https://sqs.us-east-1.amazonaws.com/123456789012/q"


async def test_a_port_that_is_taken_is_an_os_error(aws: FakeAws) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        with pytest.raises(OSError, match="address") as refusal:
            async with aws.serve(port=taken.getsockname()[1], moto=False):
                pass

    assert refusal.value.errno == errno.EADDRINUSE


async def test_many_clients_at_once(client: Client) -> None:
    async with client("ecs") as ecs:
        await ecs.register_task_definition(**JOB)

        async def run() -> None:
            found.append((await stopped(ecs, (await ecs.run_task(**LAUNCH))["tasks"][0]["taskArn"]))["stopCode"])

        found: list[str] = []
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(run)

    assert found == ["EssentialContainerExited"] * 20


async def test_an_answer_tells_the_time_of_the_fake_and_not_of_this_machine() -> None:
    aws = FakeAws(clock=Elsewhen(), clusters=("jobs",))
    session: Any = aioboto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name=aws.region)

    async with aws.serve(moto=False) as url, session.client("ecs", endpoint_url=url) as ecs:
        reply = await ecs.list_clusters()

    assert reply["ResponseMetadata"]["HTTPHeaders"]["date"] == "Fri, 13 Feb 2009 23:31:30 GMT"


class Elsewhen(RealClock):
    """A clock that stands."""

    def utcnow(self) -> datetime:
        return datetime(2009, 2, 13, 23, 31, 30, tzinfo=UTC)
