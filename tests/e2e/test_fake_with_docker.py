"""Real containers behind the fake AWS: what they do is what ECS says of them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import aioboto3
import anyio
import attrs
import pytest
from aiobotocore.config import AioConfig

from fargate_runner.testing.aws import FakeAws, Pace
from fargate_runner.testing.aws._docker import DockerEngine

pytestmark = pytest.mark.docker

IMAGE = "fargate-runner-test/busybox:latest"
LOGS = {
    "logDriver": "awslogs",
    "options": {"awslogs-group": "/jobs", "awslogs-region": "us-east-1", "awslogs-stream-prefix": "fr"},
}
NETWORK = {"awsvpcConfiguration": {"subnets": ["subnet-1"], "assignPublicIp": "ENABLED"}}
LOOP = "while :; do sleep 0.1; done"


def container(script: str, name: str = "main", **fields: Any) -> dict[str, Any]:
    return {"name": name, "image": IMAGE, "command": ["sh", "-c", script], "logConfiguration": LOGS, **fields}


@attrs.frozen
class Account:
    aws: FakeAws
    ecs: Any
    logs: Any

    async def launch(self, *containers: dict[str, Any], run: dict[str, Any] | None = None, **definition: Any) -> str:
        registered = await self.ecs.register_task_definition(
            **{
                "family": "job",
                "requiresCompatibilities": ["FARGATE"],
                "networkMode": "awsvpc",
                "cpu": "256",
                "memory": "512",
                "executionRoleArn": "arn:aws:iam::123456789012:role/execution",
                "containerDefinitions": list(containers),
            }
            | definition
        )
        how: dict[str, Any] = {"launchType": "FARGATE", "networkConfiguration": NETWORK}
        arn = registered["taskDefinition"]["taskDefinitionArn"]
        reply = await self.ecs.run_task(taskDefinition=arn, **{**how, **(run or {})})
        assert reply["failures"] == []
        return str(reply["tasks"][0]["taskArn"])

    async def described(self, arn: str) -> dict[str, Any]:
        [task] = (await self.ecs.describe_tasks(tasks=[arn]))["tasks"]
        return dict(task)

    async def until(self, arn: str, status: str) -> dict[str, Any]:
        while True:
            task = await self.described(arn)
            if task["lastStatus"] == status:
                return task
            assert task["lastStatus"] != "STOPPED", task
            await anyio.sleep(0.05)

    async def lines(self, arn: str, name: str = "main") -> list[str]:
        stream = f"fr/{name}/{arn.rpartition('/')[2]}"
        found = await self.logs.get_log_events(logGroupName="/jobs", logStreamName=stream, startFromHead=True)
        return [event["message"] for event in found["events"]]

    async def run(self, *containers: dict[str, Any], **how: Any) -> tuple[dict[str, Any], str]:
        arn = await self.launch(*containers, **how)
        return await self.until(arn, "STOPPED"), arn


@pytest.fixture
async def account(real: FakeAws) -> AsyncGenerator[Account]:
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(real.serve(moto=False))
        made: dict[str, Any] = {
            "endpoint_url": url,
            "region_name": "us-east-1",
            "aws_access_key_id": "test",
            "aws_secret_access_key": "test",
            "config": AioConfig(max_pool_connections=100),
        }
        session: Any = aioboto3.Session()
        ecs = await stack.enter_async_context(session.client("ecs", **made))
        logs = await stack.enter_async_context(session.client("logs", **made))
        yield Account(real, ecs, logs)


def exits(task: dict[str, Any]) -> dict[str, int | None]:
    return {each["name"]: each.get("exitCode") for each in task["containers"]}


def reasons(task: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("reason", "") for each in task["containers"]}


def left_over() -> list[str]:
    asked = ["docker", "ps", "--all", "--filter", "label=fargate-runner.fake-aws", "--format", "{{.Names}}"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()


# How a task ends.


async def test_an_exit_code_is_the_process_s(account: Account) -> None:
    task, arn = await account.run(container("echo out; echo err >&2; exit 3"))

    assert (task["stopCode"], task["stoppedReason"]) == (
        "EssentialContainerExited",
        "Essential container in task exited",
    )
    assert exits(task) == {"main": 3}
    assert sorted(await account.lines(arn)) == ["err", "out"]
    order = [task[name] for name in ("createdAt", "pullStartedAt", "startedAt", "executionStoppedAt", "stoppedAt")]
    assert order == sorted(order)


async def test_memory_that_runs_out_is_said_in_ecs_s_words(account: Account) -> None:
    task, _ = await account.run(container("x=a; while :; do x=$x$x; done"))

    assert exits(task) == {"main": 137}
    assert reasons(task)["main"].startswith("OutOfMemoryError: Container killed due to memory usage")
    assert task["stopCode"] == "EssentialContainerExited"


async def test_a_container_s_own_memory_limit_holds(account: Account) -> None:
    task, _ = await account.run(container("x=a; while :; do x=$x$x; done", memory=32), memory="2048")

    assert reasons(task)["main"].startswith("OutOfMemoryError")


async def test_a_command_that_is_not_there_did_not_start(account: Account) -> None:
    task, _ = await account.run({**container(""), "command": ["nope"]})

    assert task["stopCode"] == "TaskFailedToStart"
    assert task["stoppedReason"].startswith("CannotStartContainerError: Error response from daemon: ")
    assert '"nope": executable file not found' in task["stoppedReason"]
    assert exits(task) == {"main": 127}
    assert "startedAt" not in task


async def test_an_image_that_is_not_there_is_the_engine_s_complaint(account: Account) -> None:
    task, _ = await account.run(container("true", image="127.0.0.1:1/nothing:1"))

    assert task["stopCode"] == "TaskFailedToStart"
    assert task["stoppedReason"].startswith("CannotPullContainerError: ")
    assert "connection refused" in task["stoppedReason"]
    assert exits(task) == {"main": None}


async def test_a_log_group_that_is_not_there_starts_nothing(account: Account) -> None:
    options = {**LOGS["options"], "awslogs-group": "/nope"}  # type: ignore[dict-item]
    elsewhere = {"logDriver": "awslogs", "options": options}

    task, _ = await account.run(container("true", logConfiguration=elsewhere))

    assert task["stopCode"] == "TaskFailedToStart"
    assert task["stoppedReason"].startswith("ResourceInitializationError")


# Stopping.


async def test_who_ends_at_sigterm_has_his_own_exit_code(account: Account) -> None:
    arn = await account.launch(container(f"trap 'echo bye; exit 5' TERM; echo up; {LOOP}", stopTimeout=20))
    await account.until(arn, "RUNNING")
    while await account.lines(arn) != ["up"]:
        await anyio.sleep(0.05)

    await account.ecs.stop_task(task=arn, reason="enough")
    task = await account.until(arn, "STOPPED")

    assert (task["stopCode"], task["stoppedReason"]) == ("UserInitiated", "enough")
    assert exits(task) == {"main": 5}
    assert await account.lines(arn) == ["up", "bye"]


async def test_who_ignores_sigterm_is_killed_after_the_stop_timeout(account: Account) -> None:
    arn = await account.launch(container("sleep 1000", command=["sleep", "1000"], stopTimeout=2))
    await account.until(arn, "RUNNING")
    before = time.monotonic()

    await account.ecs.stop_task(task=arn)
    task = await account.until(arn, "STOPPED")

    assert exits(task) == {"main": 137}
    assert time.monotonic() - before >= 2


async def test_with_an_init_process_sigterm_ends_it(account: Account) -> None:
    words = container("", command=["sleep", "1000"], linuxParameters={"initProcessEnabled": True})
    arn = await account.launch(words)
    await account.until(arn, "RUNNING")

    await account.ecs.stop_task(task=arn)
    task = await account.until(arn, "STOPPED")

    assert exits(task) == {"main": 143}


async def test_each_container_has_its_own_stop_timeout(account: Account) -> None:
    slow = container(f"trap 'sleep 4; exit 6' TERM; echo up; {LOOP}", name="slow", essential=False, stopTimeout=60)
    arn = await account.launch(container(f"trap '' TERM; {LOOP}", stopTimeout=2), slow)
    await account.until(arn, "RUNNING")
    while await account.lines(arn, "slow") != ["up"]:
        await anyio.sleep(0.05)

    await account.ecs.stop_task(task=arn)
    task = await account.until(arn, "STOPPED")
    [truth] = account.aws.world.truth()

    assert exits(task) == {"main": 137, "slow": 6}
    assert (truth.containers["main"].ended_at or 0) < (truth.containers["slow"].ended_at or 0)


async def test_a_stop_may_come_at_any_moment_of_the_start(account: Account) -> None:
    main = container(f"trap 'exit 7' TERM; {LOOP}", linuxParameters={"initProcessEnabled": True}, stopTimeout=2)
    side = container(LOOP, name="side", essential=False, stopTimeout=2)
    found: list[dict[str, Any]] = []

    async def start_and_stop(number: int) -> None:
        arn = await account.launch(main, side, family=f"stopped-{number}")
        await anyio.sleep(number * 0.05)
        await account.ecs.stop_task(task=arn, reason="never mind")
        found.append(await account.until(arn, "STOPPED"))

    async with anyio.create_task_group() as tasks:
        for number in range(16):
            tasks.start_soon(start_and_stop, number)

    assert {(task["stopCode"], task["stoppedReason"]) for task in found} == {("UserInitiated", "never mind")}
    # Never started, or told in time; told before the shell had set its trap; or before it had an init process.
    assert {exits(task)["main"] for task in found} <= {None, 7, 137, 143}


# Several containers.


async def test_containers_share_a_network_and_wait_for_each_other(account: Account) -> None:
    server = container(
        "echo content > /tmp/page; while :; do nc -l -p 8080 < /tmp/page; done",
        name="server",
        essential=False,
        stopTimeout=2,
    )
    waits = [{"containerName": "first", "condition": "SUCCESS"}, {"containerName": "server", "condition": "START"}]
    client = container("sleep 0.5; nc 127.0.0.1 8080 < /dev/null", dependsOn=waits)

    task, arn = await account.run(container("echo done", name="first", essential=False), server, client)

    assert await account.lines(arn) == ["content"]
    assert await account.lines(arn, "first") == ["done"]
    assert exits(task) == {"first": 0, "server": 137, "main": 0}


async def test_a_sidecar_may_wait_for_the_main_container(account: Account) -> None:
    check = {"command": ["CMD-SHELL", "test -e /tmp/ready"], "interval": 5, "timeout": 2, "retries": 1}
    main = container(f"touch /tmp/ready; {LOOP}", stopTimeout=2, healthCheck=check | {"startPeriod": 5})
    waits = [{"containerName": "main", "condition": "HEALTHY"}]
    arn = await account.launch(main, container("echo side", name="side", essential=False, dependsOn=waits))

    while exits(await account.described(arn))["side"] is None:
        await anyio.sleep(0.1)
    await account.ecs.stop_task(task=arn)
    task = await account.until(arn, "STOPPED")
    [truth] = account.aws.world.truth()
    started = {name: each.started_at or 0 for name, each in truth.containers.items()}

    assert exits(task) == {"main": 137, "side": 0}
    assert await account.lines(arn, "side") == ["side"]
    assert started["side"] - started["main"] > 3  # the first look at its health comes after 5 s


async def test_a_dependency_that_fails_is_a_task_that_did_not_start(account: Account) -> None:
    waits = [{"containerName": "first", "condition": "SUCCESS"}]

    task, _ = await account.run(container("exit 4", name="first", essential=False), container("true", dependsOn=waits))

    assert task["stopCode"] == "TaskFailedToStart"
    assert "'first' ended with exit code 4" in task["stoppedReason"]
    assert exits(task) == {"first": 4, "main": None}


async def test_an_essential_sidecar_takes_the_task_with_it(account: Account) -> None:
    task, _ = await account.run(
        container(LOOP, stopTimeout=2), container("sleep 0.5; exit 9", name="proxy", essential=True)
    )

    assert task["stopCode"] == "EssentialContainerExited"
    assert exits(task) == {"main": 137, "proxy": 9}


async def test_health_is_told(account: Account) -> None:
    check = {"command": ["CMD-SHELL", "true"], "interval": 5, "timeout": 2, "retries": 1}
    arn = await account.launch(container("sleep 1000", healthCheck=check, stopTimeout=2))

    while (await account.described(arn))["healthStatus"] != "HEALTHY":
        await anyio.sleep(0.1)

    await account.ecs.stop_task(task=arn)
    assert exits(await account.until(arn, "STOPPED")) == {"main": 137}


# What a definition may say.


async def test_a_container_gets_what_its_definition_says(account: Account) -> None:
    script = (
        'echo "$A $B $C"; pwd; id -u; echo "$AWS_EXECUTION_ENV $AWS_REGION"; '
        "touch /x 2>/dev/null || echo read-only; grep open /proc/self/limits | tr -s ' '; cat /proc/1/comm; exit 0"
    )
    fields: dict[str, Any] = {
        "environment": [{"name": "A", "value": "a b"}, {"name": "B", "value": "defined"}],
        "workingDirectory": "/tmp",
        "user": "1000",
        "readonlyRootFilesystem": True,
        "ulimits": [{"name": "nofile", "softLimit": 100, "hardLimit": 200}],
        "entryPoint": ["sh", "-c"],
        "command": [script],
    }
    change = {"name": "main", "environment": [{"name": "B", "value": "overridden"}, {"name": "C", "value": "new"}]}

    _, arn = await account.run(container("", **fields), run={"overrides": {"containerOverrides": [change]}})

    assert await account.lines(arn) == [
        "a b overridden new",
        "/tmp",
        "1000",
        "AWS_ECS_FARGATE us-east-1",
        "read-only",
        "Max open files 100 200 files ",
        "sh",
    ]


async def test_nothing_of_ours_is_in_the_environment(account: Account) -> None:
    _, arn = await account.run(container("env | grep -i fargate_runner; true"))

    assert await account.lines(arn) == []


async def test_secrets_reach_the_container_and_no_label(account: Account) -> None:
    made = await account.aws.call("secretsmanager", "CreateSecret", {"Name": "word", "SecretString": "xyzzy-123"})
    secrets = [{"name": "WORD", "valueFrom": made["ARN"]}]

    arn = await account.launch(container("echo ${#WORD} $WORD; sleep 1000", secrets=secrets, stopTimeout=2))
    while not (task := await account.described(arn))["containers"][0].get("runtimeId"):
        await anyio.sleep(0.05)
    inspect = ["docker", "inspect", "--format", "{{json .Config.Labels}}", task["containers"][0]["runtimeId"]]
    labels = (await anyio.run_process(inspect)).stdout.decode()
    await account.ecs.stop_task(task=arn)
    await account.until(arn, "STOPPED")

    assert await account.lines(arn) == ["9 xyzzy-123"]
    assert "xyzzy" not in labels
    assert "xyzzy" not in json.dumps(task, default=str)


async def test_volumes_are_shared_and_end_with_their_task(account: Account) -> None:
    mount = [{"sourceVolume": "data", "containerPath": "/data"}]
    waits = [{"containerName": "writer", "condition": "SUCCESS"}]
    writer = container("echo hello > /data/file", name="writer", essential=False, mountPoints=mount)
    reader = container(
        "cat /data/file; touch /data/x 2>/dev/null || echo read-only",
        mountPoints=[mount[0] | {"readOnly": True}],
        dependsOn=waits,
    )

    _, first = await account.run(writer, reader, volumes=[{"name": "data"}])
    _, second = await account.run(container("ls /data | wc -l", mountPoints=mount), volumes=[{"name": "data"}])

    assert await account.lines(first) == ["hello", "read-only"]
    assert await account.lines(second) == ["0"]


async def test_efs_is_there_for_the_next_task(account: Account) -> None:
    volume = {"name": "home", "efsVolumeConfiguration": {"fileSystemId": "fs-12345678"}}
    mount = [{"sourceVolume": "home", "containerPath": "/home/x"}]

    await account.run(container("echo kept > /home/x/file", mountPoints=mount), volumes=[volume])
    _, arn = await account.run(container("cat /home/x/file", mountPoints=mount), volumes=[volume])

    assert await account.lines(arn) == ["kept"]


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"pseudoTerminal": True}, "pseudo-terminal"),
        ({"logConfiguration": {"logDriver": "awsfirelens"}}, "awsfirelens"),
        ({"restartPolicy": {"enabled": True}}, "restart policy"),
    ],
)
async def test_what_cannot_be_had_here_is_refused_by_name(account: Account, fields: dict[str, Any], word: str) -> None:
    task, _ = await account.run(container("true", **fields))

    assert task["stopCode"] == "TaskFailedToStart"
    assert task["stoppedReason"].startswith("CannotCreateContainerError: container 'main'")
    assert word in task["stoppedReason"]


async def test_a_task_of_ec2_needs_no_size(account: Account) -> None:
    definition: dict[str, Any] = {"requiresCompatibilities": ["EC2"], "networkMode": "bridge"}
    main = container("echo $AWS_EXECUTION_ENV", memory=64)
    registered = await account.ecs.register_task_definition(
        family="machine",
        containerDefinitions=[main],
        executionRoleArn="arn:aws:iam::123456789012:role/execution",
        **definition,
    )

    reply = await account.ecs.run_task(
        taskDefinition=registered["taskDefinition"]["taskDefinitionArn"], launchType="EC2"
    )
    arn = reply["tasks"][0]["taskArn"]
    task = await account.until(arn, "STOPPED")

    assert exits(task) == {"main": 0}
    assert await account.lines(arn) == ["AWS_ECS_EC2"]


# Lines, numbers, and what is left.


async def test_lines_arrive_while_the_task_runs(account: Account) -> None:
    arn = await account.launch(container("echo one; sleep 1000", stopTimeout=2))

    await account.until(arn, "RUNNING")
    with anyio.fail_after(5):
        while await account.lines(arn) != ["one"]:
            await anyio.sleep(0.05)

    await account.ecs.stop_task(task=arn)
    await account.until(arn, "STOPPED")


async def test_many_lines_all_arrive_in_their_order(account: Account) -> None:
    _, arn = await account.run(container("seq 100123"))
    written = [text for truth in account.aws.world.truth() for text in truth.containers["main"].lines]

    assert written == [str(number) for number in range(1, 100_124)]
    assert account.aws.logs.messages("/jobs", f"fr/main/{arn.rpartition('/')[2]}") == written


async def test_fifty_tasks_at_once(account: Account) -> None:
    found: list[dict[str, int | None]] = []

    async def run(number: int) -> None:
        task, _ = await account.run(container(f"exit {number}"), family=f"job-{number}")
        found.append(exits(task))

    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(run, number)

    assert sorted(each["main"] or 0 for each in found) == list(range(50))


async def test_an_ended_task_leaves_no_container(account: Account) -> None:
    await account.run(container("true"), container("true", name="side", essential=False))

    with anyio.fail_after(10):
        while left_over():
            await anyio.sleep(0.1)


async def test_leaving_removes_what_runs(engine: None) -> None:
    docker = DockerEngine()
    aws = FakeAws(engine=docker, pace=Pace.instant(), visible_after=(0.0, 0.0))
    main = {"name": "main", "image": IMAGE, "command": ["sleep", "1000"], "memory": 64}

    async with docker.running(), aws.session().client("ecs") as ecs:
        await ecs.register_task_definition(family="job", containerDefinitions=[main])
        for _ in range(3):
            await ecs.run_task(taskDefinition="job", launchType="EC2")
        with anyio.fail_after(20):
            while len(left_over()) < 3:
                await anyio.sleep(0.05)
        await ecs.run_task(taskDefinition="job", launchType="EC2")  # under way when we leave

    assert left_over() == []
