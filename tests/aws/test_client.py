"""The face in process: clients that answer, refuse and break as aioboto3's do, in virtual time."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable
from typing import Any

import anyio
import pytest
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    ParamValidationError,
    ReadTimeoutError,
    UnknownServiceError,
    WaiterError,
)

from fargate_runner.testing.aws import ContainerScript, FakeAws, Fault
from fargate_runner.testing.aws._client import FakeSession
from fargate_runner.testing.clock import VirtualClock

JOB = {
    "family": "job",
    "requiresCompatibilities": ["FARGATE"],
    "networkMode": "awsvpc",
    "cpu": "256",
    "memory": "512",
    "containerDefinitions": [{"name": "main", "image": "busybox"}],
}
NETWORK = {"awsvpcConfiguration": {"subnets": ["subnet-1"], "assignPublicIp": "ENABLED"}}


@pytest.fixture
def anyio_backend(clock: VirtualClock) -> object:
    return "asyncio", {"loop_factory": clock.loop}


@pytest.fixture
def aws(clock: VirtualClock) -> FakeAws:
    return FakeAws(clock=clock, visible_after=(0.0, 0.0), script=ContainerScript(run_for=60))


@pytest.fixture
def session(aws: FakeAws) -> FakeSession:
    return FakeSession(aws)


@pytest.fixture
async def ecs(session: FakeSession) -> AsyncGenerator[Any]:
    async with session.client("ecs") as client:
        await client.register_task_definition(**JOB)
        yield client


@pytest.fixture
def run_task(ecs: Any) -> Callable[..., Any]:
    return functools.partial(ecs.run_task, taskDefinition="job", launchType="FARGATE", networkConfiguration=NETWORK)


# What it looks like.


async def test_a_client_says_what_it_is_a_client_of(session: FakeSession) -> None:
    async with session.client("logs", region_name="eu-west-1") as client:
        assert client.meta.region_name == "eu-west-1"
        assert client.meta.service_model.service_name == "logs"
        assert client.meta.endpoint_url == "https://logs.eu-west-1.amazonaws.com/"
        assert client.meta.method_to_api_mapping["get_log_events"] == "GetLogEvents"


async def test_both_kinds_of_sessions_are_understood(session: FakeSession) -> None:
    async with session.client("ecs") as one, session.create_client("ecs", config=Config()) as two:
        assert (await one.list_clusters())["clusterArns"] == (await two.list_clusters())["clusterArns"]


async def test_clients_are_counted(session: FakeSession) -> None:
    async with session.client("ecs"), session.client("logs"):
        inside = session.open_clients

    assert inside == 2
    assert session.open_clients == 0
    assert session.opened == ["ecs", "logs"]


async def test_a_service_that_does_not_exist_is_told_at_once(session: FakeSession) -> None:
    with pytest.raises(UnknownServiceError):
        session.client("ecz")


async def test_an_operation_that_does_not_exist_is_no_method(ecs: Any) -> None:
    with pytest.raises(AttributeError, match="make_tea"):
        await ecs.make_tea()


async def test_every_operation_of_the_model_is_a_method(ecs: Any) -> None:
    with pytest.raises(ClientError, match=r"UnknownOperationException.*CreateService"):
        await ecs.create_service(serviceName="web")


async def test_a_client_is_not_used_after_its_block(session: FakeSession) -> None:
    async with session.client("ecs") as client:
        pass

    with pytest.raises(RuntimeError, match="closed"):
        await client.list_clusters()


async def test_positional_arguments_are_refused_as_by_botocore(ecs: Any) -> None:
    with pytest.raises(TypeError, match="only accepts keyword arguments"):
        await ecs.describe_tasks("default")


# Answers.


async def test_an_answer_carries_its_metadata(ecs: Any) -> None:
    first, second = await ecs.list_clusters(), await ecs.list_clusters()

    assert first["clusterArns"] == ["arn:aws:ecs:us-east-1:123456789012:cluster/default"]
    assert first["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert first["ResponseMetadata"]["RetryAttempts"] == 0
    assert first["ResponseMetadata"]["RequestId"] != second["ResponseMetadata"]["RequestId"]


async def test_a_client_token_is_made_up_for_each_call(run_task: Any, aws: FakeAws) -> None:
    for _ in range(2):
        await run_task()
    await run_task(clientToken="mine")

    tokens = [call.request["clientToken"] for call in aws.calls.of("ecs.RunTask")]
    assert len(set(tokens)) == 3
    assert tokens[2] == "mine"


async def test_a_refusal_is_a_client_error_of_the_model(ecs: Any) -> None:
    with pytest.raises(ecs.exceptions.ClusterNotFoundException) as refusal:
        await ecs.list_tasks(cluster="nowhere")

    response: Any = refusal.value.response
    assert isinstance(refusal.value, ClientError)
    assert refusal.value.operation_name == "ListTasks"
    assert response["Error"]["Code"] == "ClusterNotFoundException"
    assert response["Error"]["Message"]
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert response["ResponseMetadata"]["RequestId"]


async def test_a_refusal_carries_the_members_of_its_shape(run_task: Any) -> None:
    first = await run_task(clientToken="token")

    with pytest.raises(ClientError) as refusal:
        await run_task(clientToken="token", startedBy="somebody else")

    assert refusal.value.response["Error"]["Code"] == "ConflictException"
    assert refusal.value.response["resourceIds"] == [first["tasks"][0]["taskArn"]]


async def test_a_message_is_told_twice_where_the_shape_has_one(ecs: Any) -> None:
    with pytest.raises(ecs.exceptions.ClientException) as refusal:
        await ecs.describe_task_definition(taskDefinition="nothing")

    assert refusal.value.response["message"] == refusal.value.response["Error"]["Message"]


async def test_a_queue_that_is_not_there_has_the_name_that_clients_know(session: FakeSession) -> None:
    async with session.client("sqs") as sqs:
        with pytest.raises(sqs.exceptions.QueueDoesNotExist) as refusal:
            await sqs.get_queue_url(QueueName="nope")

    assert refusal.value.response["Error"]["Code"] == "AWS.SimpleQueueService.NonExistentQueue"


async def test_what_botocore_would_not_send_is_not_sent(ecs: Any, aws: FakeAws) -> None:
    before = len(aws.calls)

    with pytest.raises(ParamValidationError, match="tasks"):
        await ecs.describe_tasks(cluster="default")

    assert len(aws.calls) == before


async def test_the_access_key_is_passed_on(aws: FakeAws) -> None:
    async with FakeSession(aws, "AKIAMINE").client("ecs") as ecs:
        aws.credentials.expire("AKIAMINE")
        with pytest.raises(ClientError) as refusal:
            await ecs.list_clusters()

    assert refusal.value.response["Error"]["Code"] == "ExpiredTokenException"
    assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


# Broken connections.


@pytest.mark.parametrize(
    ("cut", "error"),
    [(True, ConnectionClosedError), ("half", ConnectionClosedError), ("reset", EndpointConnectionError)],
)
async def test_a_cut_connection_is_botocore_s_error(ecs: Any, aws: FakeAws, cut: Any, error: type[Exception]) -> None:
    aws.faults.add(Fault(match="ecs.ListClusters", cut=cut))

    with pytest.raises(error):
        await ecs.list_clusters()


@pytest.mark.parametrize(("when", "tasks"), [("before", 0), ("after", 1)])
async def test_a_cut_comes_before_or_after_the_effect(
    ecs: Any, run_task: Any, aws: FakeAws, when: Any, tasks: int
) -> None:
    aws.faults.add(Fault(match="ecs.RunTask", cut=True, when=when))

    with pytest.raises(ConnectionClosedError):
        await run_task()

    assert len((await ecs.list_tasks())["taskArns"]) == tasks


async def test_an_answer_that_takes_too_long_is_a_read_timeout(session: FakeSession, aws: FakeAws) -> None:
    aws.faults.add(Fault(match="ecs.ListClusters", delay=30))

    async with session.client("ecs", config=Config(read_timeout=20)) as ecs:
        before = anyio.current_time()
        with pytest.raises(ReadTimeoutError):
            await ecs.list_clusters()
        waited = anyio.current_time() - before

    assert waited == pytest.approx(20)


# What botocore makes of it: waiters, pages, streams.


async def test_waiters_wait_in_virtual_time(ecs: Any, run_task: Any) -> None:
    arn = (await run_task())["tasks"][0]["taskArn"]

    await ecs.get_waiter("tasks_running").wait(tasks=[arn])
    await ecs.get_waiter("tasks_stopped").wait(tasks=[arn])

    [task] = (await ecs.describe_tasks(tasks=[arn]))["tasks"]
    assert (task["lastStatus"], task["containers"][0]["exitCode"]) == ("STOPPED", 0)


async def test_a_waiter_fails_where_botocore_s_does(ecs: Any) -> None:
    with pytest.raises(WaiterError, match="MISSING"):
        await ecs.get_waiter("tasks_running").wait(tasks=["0" * 32])


async def test_pages_are_turned(ecs: Any, run_task: Any) -> None:
    started = {(await run_task())["tasks"][0]["taskArn"] for _ in range(5)}

    pages = [
        page["taskArns"] async for page in ecs.get_paginator("list_tasks").paginate(PaginationConfig={"PageSize": 2})
    ]

    assert [len(page) for page in pages] == [2, 2, 1]
    assert {arn for page in pages for arn in page} == started


async def test_a_live_tail_is_a_stream_of_events(session: FakeSession, aws: FakeAws) -> None:
    aws.logs.create_group("/jobs")
    events: list[Any] = []

    async with session.client("logs") as logs:
        tail = await logs.start_live_tail(logGroupIdentifiers=["arn:aws:logs:us-east-1:123456789012:log-group:/jobs"])
        aws.logs.put("/jobs", "s", [(round(aws.clock.utcnow().timestamp() * 1000), "hello")])
        async for event in tail["responseStream"]:
            events.append(event)
            if event.get("sessionUpdate", {}).get("sessionResults"):
                break

    assert "sessionStart" in events[0]
    assert events[-1]["sessionUpdate"]["sessionResults"][0]["message"] == "hello"


async def test_leaving_a_client_ends_its_streams(session: FakeSession, aws: FakeAws) -> None:
    aws.logs.create_group("/jobs")
    held: list[Any] = []

    for _ in range(20):  # more than the 15 that may be open at a time
        async with session.client("logs") as logs:
            tail = await logs.start_live_tail(
                logGroupIdentifiers=["arn:aws:logs:us-east-1:123456789012:log-group:/jobs"]
            )
            held.append(tail["responseStream"])
            await anext(aiter(held[-1]))
            await anyio.sleep(1)

    assert len(held) == 20
