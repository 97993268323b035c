"""What the metadata endpoint tells of a container, from what the engine tells of it."""

from __future__ import annotations

from typing import Any

from fargate_runner.backends.docker._metadata import container_document, task_document
from fargate_runner.backends.docker._spec import LABEL


def container(**labels: str) -> dict[str, Any]:
    """What an engine says of a container that bears these labels of ours."""
    known = {"role": "job", "namespace": "fake-aws-1234", "token": "t" * 52, "image": "busybox:1"}
    return {
        "Id": "c" * 64,
        "Name": "/main",
        "Image": "sha256:0",
        "Created": "2026-01-01T00:00:00Z",
        "State": {"Status": "running", "StartedAt": "2026-01-01T00:00:01Z"},
        "HostConfig": {},
        "Config": {"Labels": {f"{LABEL}{name}": value for name, value in (known | labels).items()}},
    }


def names(part: dict[str, Any]) -> list[str]:
    """The family and the revision of a task definition, as the task and as its container hear of it."""
    task, labels = task_document([part]), container_document(part, [part])["Labels"]
    start = "com.amazonaws.ecs.task-definition-"
    return [task["Family"], task["Revision"], labels[f"{start}family"], labels[f"{start}version"]]


def test_a_task_of_the_fake_aws_hears_the_name_of_its_own_definition() -> None:
    part = container(family="nightly", revision="7")

    assert names(part) == ["nightly", "7", "nightly", "7"]


def test_a_job_of_the_docker_backend_has_none_and_hears_its_namespace() -> None:
    assert names(container()) == ["fake-aws-1234", "1", "fake-aws-1234", "1"]
