"""AWS's own command line client, unmodified, against the fake AWS with real containers behind it."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, Any

import attrs
import pytest

from tests.e2e import clients
from tests.e2e.clients import AwsCli, Uninstallable

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]  # starting the client takes a second of computing

IMAGE = "fargate-runner-test/busybox:latest"
NETWORK = "awsvpcConfiguration={subnets=[subnet-0a1b2c3d],assignPublicIp=ENABLED}"
SOURCES: dict[str, Callable[[], AwsCli]] = {"v1": clients.from_pip, "v2": clients.from_system}


@attrs.frozen(kw_only=True)
class Account:
    """A cluster with a log group and a task definition, and the client that made them."""

    cli: AwsCli
    url: str
    name: str
    """Of the cluster, the task definition's family, and, after a slash, the log group."""

    @property
    def aws(self) -> Callable[..., Any]:
        return partial(self.cli.run, self.url)

    def launch(self, *command: str) -> str:
        """Run a task and return its ARN."""
        overrides = {"containerOverrides": [{"name": "main", "command": list(command)}]}
        where = ["--cluster", self.name, "--task-definition", self.name, "--launch-type", "FARGATE"]
        network = ["--network-configuration", NETWORK]
        reply = self.aws("ecs", "run-task", *where, *network, "--overrides", json.dumps(overrides))
        assert reply["failures"] == []
        return str(reply["tasks"][0]["taskArn"])

    def wait(self, waiter: str, arn: str) -> None:
        self.aws("ecs", "wait", waiter, "--cluster", self.name, "--tasks", arn)

    def described(self, arn: str) -> dict[str, Any]:
        [task] = self.aws("ecs", "describe-tasks", "--cluster", self.name, "--tasks", arn)["tasks"]
        return dict(task)


@pytest.fixture(scope="module", params=["v1", "v2"])
def cli(request: pytest.FixtureRequest, engine: None) -> AwsCli:
    try:
        return SOURCES[request.param]()
    except Uninstallable as exc:
        if os.environ.get("FARGATE_RUNNER_AWSCLI") == "required":
            raise
        pytest.skip(str(exc))


@pytest.fixture(scope="module")
def account(cli: AwsCli, program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    account = Account(cli=cli, url=program, name=f"jobs-{uuid.uuid4().hex[:8]}")
    group = f"/{account.name}"
    options = {"awslogs-group": group, "awslogs-region": "us-east-1", "awslogs-stream-prefix": "fr"}
    definition = {
        "family": account.name,
        "requiresCompatibilities": ["FARGATE"],
        "networkMode": "awsvpc",
        "cpu": "256",
        "memory": "512",
        "executionRoleArn": "arn:aws:iam::123456789012:role/execution",
        "containerDefinitions": [
            {
                "name": "main",
                "image": IMAGE,
                "stopTimeout": 5,
                "linuxParameters": {"initProcessEnabled": True},
                "logConfiguration": {"logDriver": "awslogs", "options": options},
            }
        ],
    }
    file = tmp_path_factory.mktemp("definition") / "definition.json"
    file.write_text(json.dumps(definition))
    made = account.aws("ecs", "create-cluster", "--cluster-name", account.name)
    account.aws("logs", "create-log-group", "--log-group-name", group)
    registered = account.aws("ecs", "register-task-definition", "--cli-input-json", file.as_uri())
    assert made["cluster"]["status"] == "ACTIVE"
    assert registered["taskDefinition"]["revision"] == 1
    yield account
    account.aws("ecs", "deregister-task-definition", "--task-definition", f"{account.name}:1")
    account.aws("ecs", "delete-cluster", "--cluster", account.name)


def test_a_task_is_run_to_its_end_and_its_lines_are_read(account: Account) -> None:
    arn = account.launch("sh", "-c", "echo hello; echo 'ünï ☃'; exit 3")

    account.wait("tasks-stopped", arn)
    task = account.described(arn)
    stream = f"fr/main/{arn.rpartition('/')[2]}"
    where = ["--log-group-name", f"/{account.name}", "--log-stream-name", stream]
    events = account.aws("logs", "get-log-events", *where)["events"]
    listed = account.aws("ecs", "list-tasks", "--cluster", account.name, "--desired-status", "STOPPED")["taskArns"]

    assert task["lastStatus"] == "STOPPED"
    assert task["stopCode"] == "EssentialContainerExited"
    assert [(container["name"], container["exitCode"]) for container in task["containers"]] == [("main", 3)]
    assert [event["message"] for event in events] == ["hello", "ünï ☃"]
    assert arn in listed


def test_a_running_task_is_seen_and_stopped(account: Account) -> None:
    arn = account.launch("sleep", "1000")

    account.wait("tasks-running", arn)
    listed = account.aws("ecs", "list-tasks", "--cluster", account.name)["taskArns"]
    running = account.described(arn)
    asked = account.aws("ecs", "stop-task", "--cluster", account.name, "--task", arn, "--reason", "enough of it")
    account.wait("tasks-stopped", arn)
    task = account.described(arn)

    assert arn in listed
    assert running["lastStatus"] == "RUNNING"
    assert "exitCode" not in running["containers"][0]
    assert asked["task"]["desiredStatus"] == "STOPPED"
    assert (task["stopCode"], task["stoppedReason"]) == ("UserInitiated", "enough of it")
    assert task["containers"][0]["exitCode"] == 143


def test_state_changes_are_received_from_a_queue(account: Account) -> None:
    events: list[dict[str, Any]] = []
    pattern = {"source": ["aws.ecs"], "detail": {"clusterArn": [{"suffix": f"cluster/{account.name}"}]}}
    queue = account.aws("sqs", "create-queue", "--queue-name", account.name)["QueueUrl"]
    wanted = ["--queue-url", queue, "--attribute-names", "QueueArn"]
    target = account.aws("sqs", "get-queue-attributes", *wanted)["Attributes"]["QueueArn"]
    account.aws("events", "put-rule", "--name", account.name, "--event-pattern", json.dumps(pattern))
    account.aws("events", "put-targets", "--rule", account.name, "--targets", f"Id=queue,Arn={target}")

    arn = account.launch("true")
    while "STOPPED" not in [event["detail"]["lastStatus"] for event in events]:
        asked = ["--queue-url", queue, "--max-number-of-messages", "10", "--wait-time-seconds", "5"]
        for message in account.aws("sqs", "receive-message", *asked)["Messages"]:
            events.append(json.loads(message["Body"]))
            account.aws(*("sqs", "delete-message", "--queue-url", queue, "--receipt-handle", message["ReceiptHandle"]))

    assert {event["detail-type"] for event in events} == {"ECS Task State Change"}
    assert {event["detail"]["taskArn"] for event in events} == {arn}
    seen = {event["detail"]["lastStatus"] for event in events}
    assert {"PROVISIONING", "PENDING", "ACTIVATING", "RUNNING", "DEPROVISIONING", "STOPPED"} <= seen


def lines_until(text: str, output: IO[str]) -> list[str]:
    """The lines of a program's output up to the first one that ends so."""
    lines: list[str] = []
    for line in output:
        lines.append(line.rstrip("\n"))
        if lines[-1].endswith(text):
            break
    return lines


def test_a_log_is_tailed_while_it_grows(account: Account) -> None:
    if account.cli.version.startswith("aws-cli/1"):
        pytest.skip("version 1 has no 'logs tail'")
    tail = account.cli.command(account.url, "logs", "tail", f"/{account.name}", "--format", "short", "--since", "5m")
    variables = account.cli.variables
    arn = account.launch("sh", "-c", "echo one; sleep 2; echo two; sleep 1000")
    account.wait("tasks-running", arn)

    with subprocess.Popen([*tail, "--follow"], stdout=subprocess.PIPE, text=True, env=variables) as following:
        assert following.stdout is not None
        followed = lines_until(" two", following.stdout)  # while the task runs on
        following.terminate()
    status = account.described(arn)["lastStatus"]
    account.aws("ecs", "stop-task", "--cluster", account.name, "--task", arn)
    account.wait("tasks-stopped", arn)
    past = subprocess.run(tail, capture_output=True, text=True, check=True, env=variables).stdout.splitlines()

    assert status == "RUNNING"
    assert [line.split()[1:] for line in followed][-2:] == [["one"], ["two"]]
    assert past[: len(followed)] == followed
