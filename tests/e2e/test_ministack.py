"""
The ECS backend on an AWS that we did not write: MiniStack, which runs each task as a real container.

A second opinion, not the truth. Where it differs from AWS (seen with version 1.5.33), nothing is asserted:

- RunTask ignores ``clientToken``: the same launch sent twice is two tasks, and there is no ConflictException.
- A SecureString of SSM reaches the container as MiniStack stores it, "ENCRYPTED:…". Secrets Manager is fine.
- RunTask takes a count of 11, overrides over 8,192 characters, containers and sizes that do not exist, and makes the
  cluster that it does not find. There are never ``failures``.
- StopTask answers with a task that is STOPPED already, with exit code 0, while the container has 5 s to end; it knows
  no ``stopTimeout``, and keeps the tags.
- DescribeTasks takes 101 tasks; of a cluster that does not exist they are MISSING. Tasks are kept for ever.
- A container that cannot start is ``ResourceInitializationError``, whatever the reason, and its text is the engine's
  complaint about a second try. An exit is "Essential container exited", without AWS's "in task".
- Only image, command, environment and secrets reach a container: no entry point, user, working directory, memory
  limit, init process or health check. Containers of a task share no network and wait for nobody.
- Log lines arrive up to seconds after STOPPED, in pieces of 16 KiB, stdout and stderr out of step. Blank lines stay.
- FilterLogEvents gives 10,000 events and no ``nextToken``. A log group that is missing stops no task.
- ``startedAt``, ``createdAt`` and the others are whole seconds. ECS sends no events to EventBridge.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import aioboto3
import anyio
import attrs
import boto3
import pytest

from fargate_runner import Backend, Identity, Job, Launch, Runner, SecretRef
from fargate_runner.backends.ecs import EcsBackend, LogGroup, Network, Roles
from fargate_runner.backends.ecs._logs import LogCadence
from fargate_runner.backends.ecs._watch import Cadence
from fargate_runner.testing.contract import BackendContract, ShellVocabulary, Vocabulary
from tests.e2e import ministack
from tests.e2e.ministack import MiniStack, MiniStackUnavailable

NOT_HERE: Final = {
    "test_a_secret_reaches_the_job": "MiniStack gives a SecureString to the container as it stores it",
    "test_submitting_again_starts_nothing_new": "MiniStack ignores clientToken",
    "test_submitting_at_the_same_time_starts_one": "MiniStack ignores clientToken",
    "test_an_ended_launch_is_met_and_not_run_again": "MiniStack ignores clientToken",
    "test_a_token_starts_no_other_job": "MiniStack ignores clientToken",
    "test_a_stopped_job_says_so": "MiniStack says exit code 0 of every task that it stops",
    "test_stopping_does_not_wait_for_the_end": "MiniStack says STOPPED before the container has ended",
    "test_a_job_that_ignores_sigterm_is_killed": "MiniStack says exit code 0 of every task that it stops",
    "test_a_line_comes_out_as_it_went_in[xxxxxxxxx]": "MiniStack cuts lines into pieces of 16 KiB",
}
"""Tests of the contract that fail for a defect of MiniStack."""


IMAGE: Final = "fargate-runner-test/busybox:latest"
CREDENTIALS: Final = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]  # the first run installs MiniStack


@pytest.fixture(scope="module")
def installed(engine: None) -> None:
    """Make sure of MiniStack; without it, skip, or fail where skipping is forbidden."""
    try:
        ministack.environment()
    except MiniStackUnavailable as exc:
        if os.environ.get("FARGATE_RUNNER_DOCKER") == "required":
            raise
        pytest.skip(str(exc))


@pytest.fixture(scope="module")
def stack(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniStack]:
    """MiniStack, running, with a cluster."""
    with ministack.running(tmp_path_factory.mktemp("ministack")) as stack:
        aws(stack, "ecs").create_cluster(clusterName="jobs")
        yield stack


def aws(stack: MiniStack, service: str) -> Any:
    """Ask past our own code."""
    return boto3.client(service, endpoint_url=stack.url, **CREDENTIALS)


def backend_on(stack: MiniStack, **options: Any) -> EcsBackend:
    return EcsBackend(
        "jobs",
        network=Network(subnets=["subnet-0a1b2c3d4e5f60001"], security_groups=["sg-0a1b2c3d4e5f60001"]),
        roles=Roles(execution="arn:aws:iam::111122223333:role/fargate-runner-execution"),
        secret_prefix="/fargate-runner",
        cadence=Cadence.quick(),
        # Its lines come when they come; those of a test that writes many take a second after the end.
        log_cadence=attrs.evolve(LogCadence.quick(), drain=1.5, settled=1.5),
        session=aioboto3.Session(**CREDENTIALS),
        endpoint_url=stack.url,
        **options,
    )


def shell(script: str, **fields: Any) -> Job:
    return Job(image=IMAGE, command=["sh", "-c", script], **fields)


class TestMiniStack(BackendContract):
    merges_streams = True

    @pytest.fixture(autouse=True)
    def _applies(self, request: pytest.FixtureRequest) -> None:
        for name in (request.node.name, request.node.originalname):
            if name in NOT_HERE:
                pytest.skip(NOT_HERE[name])

    @pytest.fixture
    def jobs(self) -> Vocabulary:
        return ShellVocabulary(image=IMAGE)

    @pytest.fixture
    def make_backend(self, stack: MiniStack) -> Callable[[], Backend]:
        return partial(backend_on, stack)


async def test_many_launches_at_once_register_one_definition(stack: MiniStack) -> None:
    job = shell("exit 0", name=f"many-{uuid.uuid4().hex[:8]}")
    launches: list[Launch] = []

    async def prepare(backend: Backend, number: int) -> None:
        launches.append(await backend.prepare(job, Identity(namespace="contract", key=f"many/{number}", attempt=1)))

    async with backend_on(stack) as backend, anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(prepare, backend, number)

    definitions = aws(stack, "ecs").list_task_definitions()["taskDefinitionArns"]
    assert len({launch.token for launch in launches}) == 50
    assert len([arn for arn in definitions if job.name in arn]) == 1


async def test_the_lines_of_many_jobs_are_not_mixed_up(stack: MiniStack) -> None:
    texts: dict[int, list[str]] = {}

    async def follow(runner: Runner, number: int) -> None:
        handle = await runner.submit(shell(f"for n in $(seq 1 20); do echo {number}:$n; done; sleep 1"))
        texts[number] = [line.text async for line in handle.logs()]

    async with Runner(backend_on(stack), namespace="contract") as runner, anyio.create_task_group() as tasks:
        for number in range(15):
            tasks.start_soon(follow, runner, number)

    assert texts == {number: [f"{number}:{n}" for n in range(1, 21)] for number in range(15)}


async def test_a_secret_of_secrets_manager_reaches_the_job(stack: MiniStack) -> None:
    arn = aws(stack, "secretsmanager").create_secret(Name="password", SecretString="canary-4711")["ARN"]
    job = shell("echo $PASSWORD", secrets={"PASSWORD": SecretRef(arn)})

    async with Runner(backend_on(stack), namespace="contract") as runner:
        result = await runner.run(job)

    assert [line.text for line in result.last_lines] == ["canary-4711"]


async def test_a_log_group_is_made_with_its_retention(stack: MiniStack) -> None:
    async with Runner(backend_on(stack, log_group=LogGroup(name="/made", retention_days=7))) as runner:
        result = await runner.run(shell("echo hello"))

    (group,) = aws(stack, "logs").describe_log_groups(logGroupNamePrefix="/made")["logGroups"]
    assert group["retentionInDays"] == 7
    assert [line.text for line in result.last_lines] == ["hello"]


async def test_the_tags_of_a_job_are_those_of_its_task(stack: MiniStack) -> None:
    async with backend_on(stack, tags={"team": "orders"}) as backend:
        job = shell("exit 0", tags={"day": "monday"})
        ref = await backend.submit(await backend.prepare(job, Identity(namespace="contract", key="tags", attempt=1)))

    (task,) = aws(stack, "ecs").describe_tasks(cluster="jobs", tasks=[ref.address], include=["TAGS"])["tasks"]
    assert {"key": "team", "value": "orders"} in task["tags"]
    assert {"key": "day", "value": "monday"} in task["tags"]


def test_nothing_is_left_of_it(installed: None, tmp_path: Path) -> None:
    with ministack.running(tmp_path) as stack:
        ecs = aws(stack, "ecs")
        definition = {"name": "main", "image": IMAGE, "command": ["sleep", "600"]}
        ecs.register_task_definition(family="left", containerDefinitions=[definition])
        arn = ecs.run_task(taskDefinition="left")["tasks"][0]["taskArn"]
        ecs.get_waiter("tasks_running").wait(tasks=[arn], WaiterConfig={"Delay": 1})
        assert _containers(stack) != []

    assert _containers(stack) == []
    assert stack.process.poll() is not None


def test_what_is_switched_off_exists() -> None:
    assert {name.partition("[")[0] for name in NOT_HERE} <= set(dir(BackendContract))


def _containers(stack: MiniStack) -> list[str]:
    asked = ["docker", "ps", "--all", "--quiet", "--filter", f"label={stack.label}"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
