"""``python -m fargate_runner.testing.aws``, as a program."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest

from fargate_runner.testing.aws import ContainerRun
from fargate_runner.testing.aws.__main__ import _script

PROGRAM = [sys.executable, "-W", "error", "-m", "fargate_runner.testing.aws"]


@contextmanager
def program(*words: str, **environ: str) -> Generator[tuple[subprocess.Popen[str], list[str]]]:
    """The program, once it has said where it is, and what it said."""
    process = subprocess.Popen(
        [*PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environ}
    )
    assert process.stdout is not None
    try:
        yield process, [process.stdout.readline().strip(), process.stdout.readline().strip()]
    finally:
        process.kill()
        process.communicate()


def client(service: str, url: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


def test_it_says_where_it_is_and_runs_until_it_is_stopped() -> None:
    with program("--no-moto", "--region", "us-east-1") as (process, [where, export]):
        url = where.rpartition(" ")[2]
        clusters = client("ecs", url).list_clusters()["clusterArns"]
        still_there = process.poll() is None
        process.send_signal(signal.SIGTERM)
        code = process.wait(10)
        errors = process.stderr.read() if process.stderr else ""

    assert where.startswith("fake AWS at http://127.0.0.1:")
    assert export.startswith(f"export AWS_ENDPOINT_URL={url} ")
    assert "AWS_ACCESS_KEY_ID=" in export
    assert clusters == ["arn:aws:ecs:us-east-1:123456789012:cluster/default"]
    assert still_there
    assert (code, errors) == (0, "")


def test_ctrl_c_ends_it_cleanly_with_a_client_that_waits() -> None:
    with program("--no-moto") as (process, [where, _]), socket.socket() as idle:
        idle.connect(("127.0.0.1", int(where.rpartition(":")[2])))
        idle.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
        process.send_signal(signal.SIGINT)
        code = process.wait(10)
        errors = process.stderr.read() if process.stderr else ""

    assert (code, errors) == (0, "")


def test_a_task_goes_through_its_life() -> None:
    with program("--no-moto", "--pace", "0") as (_, [where, _]):
        ecs = client("ecs", where.rpartition(" ")[2])
        definition = {"name": "main", "image": "busybox", "command": ["sh", "-c", "echo hello; exit 3"]}
        ecs.register_task_definition(
            family="job",
            requiresCompatibilities=["FARGATE"],
            networkMode="awsvpc",
            cpu="256",
            memory="512",
            containerDefinitions=[definition],
        )
        network = {"awsvpcConfiguration": {"subnets": ["subnet-1"], "assignPublicIp": "ENABLED"}}
        reply = ecs.run_task(taskDefinition="job", launchType="FARGATE", networkConfiguration=network)
        arn = reply["tasks"][0]["taskArn"]
        ecs.get_waiter("tasks_stopped").wait(tasks=[arn], WaiterConfig={"Delay": 0.1})
        [task] = ecs.describe_tasks(tasks=[arn])["tasks"]

    assert task["containers"][0]["exitCode"] == 3


def test_a_port_that_is_taken_is_said_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])

        ended = subprocess.run([*PROGRAM, "--port", port], capture_output=True, text=True, check=False)

    assert ended.returncode == 1
    assert ended.stderr == f"fake AWS: port {port} of 127.0.0.1 is taken; choose another --port, or 0 for a free one\n"
    assert ended.stdout == ""


def test_a_number_that_is_no_port_is_said_without_a_traceback() -> None:
    ended = subprocess.run([*PROGRAM, "--port", "99999"], capture_output=True, text=True, check=False)

    assert ended.returncode == 2
    assert ended.stderr.endswith("99999 is no port: they go from 0 to 65535\n")


def test_an_address_that_is_not_ours_is_said_in_one_line() -> None:
    ended = subprocess.run([*PROGRAM, "--host", "192.0.2.1"], capture_output=True, text=True, check=False)

    assert ended.returncode == 1
    assert ended.stderr.startswith("fake AWS: cannot listen at port 0 of 192.0.2.1")
    assert len(ended.stderr.splitlines()) == 1


def test_without_an_engine_docker_is_refused_in_one_line() -> None:
    environ = {**os.environ, "DOCKER_HOST": "unix:///nowhere/docker.sock"}

    ended = subprocess.run([*PROGRAM, "--docker"], capture_output=True, text=True, check=False, env=environ)

    assert ended.returncode == 1
    assert ended.stderr.startswith("fake AWS: no Docker engine answers. Tried: unix:///nowhere/docker.sock")
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.docker
@pytest.mark.usefixtures("engine")
def test_stopping_it_removes_its_containers() -> None:
    with program("--docker", "--no-moto", "--pace", "0") as (process, [where, _]):
        ecs = client("ecs", where.rpartition(" ")[2])
        definition = {"name": "main", "image": "fargate-runner-test/busybox:latest", "command": ["sleep", "1000"]}
        ecs.register_task_definition(
            family="job",
            requiresCompatibilities=["FARGATE"],
            networkMode="awsvpc",
            cpu="256",
            memory="512",
            containerDefinitions=[definition],
        )
        network = {"awsvpcConfiguration": {"subnets": ["subnet-1"], "assignPublicIp": "ENABLED"}}
        reply = ecs.run_task(taskDefinition="job", launchType="FARGATE", networkConfiguration=network)
        arn = reply["tasks"][0]["taskArn"]
        ecs.get_waiter("tasks_running").wait(tasks=[arn], WaiterConfig={"Delay": 0.1})
        [task] = ecs.describe_tasks(tasks=[arn])["tasks"]
        container = task["containers"][0]["runtimeId"]
        was_there = exists(container)
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)

    assert was_there
    assert code == 0
    assert not exists(container)


def exists(container: str) -> bool:
    asked = ["docker", "ps", "--all", "--quiet", "--no-trunc", "--filter", f"id={container}"]
    return bool(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())


@pytest.mark.docker
@pytest.mark.usefixtures("engine")
def test_what_a_killed_one_left_is_removed_by_the_next() -> None:
    with program("--docker", "--no-moto", "--pace", "0") as (process, [where, _]):
        ecs = client("ecs", where.rpartition(" ")[2])
        definition = {"name": "main", "image": "fargate-runner-test/busybox:latest", "command": ["sleep", "1000"]}
        ecs.register_task_definition(family="job", containerDefinitions=[definition | {"memory": 64}])
        ecs.create_cluster(clusterName="machines")
        reply = ecs.run_task(taskDefinition="job", launchType="EC2")
        arn = reply["tasks"][0]["taskArn"]
        ecs.get_waiter("tasks_running").wait(tasks=[arn], WaiterConfig={"Delay": 0.1})
        [task] = ecs.describe_tasks(tasks=[arn])["tasks"]
        process.kill()
        process.wait()
    container = task["containers"][0]["runtimeId"]
    left = exists(container)

    with program("--docker", "--no-moto"):
        deadline = time.monotonic() + 20
        while exists(container) and time.monotonic() < deadline:
            time.sleep(0.2)
        still_left = exists(container)

    assert left
    assert not still_left


@pytest.mark.parametrize(
    ("command", "seconds", "code", "lines"),
    [
        ((), 2.0, 0, ()),
        (("python", "-m", "job"), 2.0, 0, ()),
        (("true",), 2.0, 0, ()),
        (("exit", "3"), 0.0, 3, ()),
        (("sleep", "1.5"), 1.5, 0, ()),
        (("echo", "hello world"), 0.0, 0, ("hello world",)),
        (("sh", "-c", "echo one; sleep 2 && echo 'two'; exit 4; echo three"), 2.0, 4, ("one", "two")),
        (("sh", "-c", "exit $CODE"), 2.0, 0, ()),
    ],
)
def test_simple_words_are_done(command: tuple[str, ...], seconds: float, code: int, lines: tuple[str, ...]) -> None:
    script = _script(ContainerRun(name="main", image="busybox", command=command))

    assert (script.run_for, script.exit_code, script.lines) == (seconds, code, lines)
