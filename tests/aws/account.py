"""An account of the fake AWS, and the short ways of asking it that its tests share."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from fargate_runner.testing.aws import AwsError, FakeAws, Quotas
from fargate_runner.testing.clock import VirtualClock

SUBNETS = ("subnet-0aaaaaaaa00000001", "subnet-0bbbbbbbb00000001")
NETWORK: dict[str, Any] = {"awsvpcConfiguration": {"subnets": list(SUBNETS), "assignPublicIp": "ENABLED"}}
ROLE = "arn:aws:iam::123456789012:role/execution"
AWSLOGS: dict[str, Any] = {
    "logDriver": "awslogs",
    "options": {"awslogs-group": "/jobs", "awslogs-region": "us-east-1", "awslogs-stream-prefix": "fr"},
}


def container(name: str | None = "main", **changes: Any) -> dict[str, Any]:
    """Return a container definition; what is None is left out."""
    return _without_none({"name": name, "image": "busybox:1"} | changes)


def definition(family: str = "job", **changes: Any) -> dict[str, Any]:
    """Return a RegisterTaskDefinition for Fargate; what is None is left out."""
    usual: dict[str, Any] = {
        "family": family,
        "requiresCompatibilities": ["FARGATE"],
        "networkMode": "awsvpc",
        "cpu": "256",
        "memory": "512",
        "executionRoleArn": ROLE,
        "containerDefinitions": [container()],
    }
    return _without_none(usual | changes)


def launch(**changes: Any) -> dict[str, Any]:
    """Return a RunTask; what is None is left out."""
    usual: dict[str, Any] = {
        "cluster": "jobs",
        "taskDefinition": "job",
        "launchType": "FARGATE",
        "networkConfiguration": NETWORK,
    }
    return _without_none(usual | changes)


def _without_none(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


class Account:
    """A fake AWS with a cluster ``jobs``, and questions to it."""

    def __init__(self, clock: VirtualClock, **options: Any) -> None:
        usual: dict[str, Any] = {
            "clock": clock,
            "clusters": ("jobs",),
            "log_groups": ("/jobs",),
            "visible_after": (0.0, 0.0),
            "quotas": Quotas.unlimited(),
        }
        self.aws = FakeAws(**usual | options)
        self.clock = clock

    async def ask(self, called: str, **request: Any) -> dict[str, Any]:
        """Return the answer to ``ecs.RunTask`` or the like; without a service it is ECS."""
        service, _, operation = called.rpartition(".")
        return await self.aws.call(service or "ecs", operation, request)

    async def refusal(self, called: str, **request: Any) -> AwsError:
        """Return what the answer is instead of a reply."""
        with pytest.raises(AwsError) as caught:
            await self.ask(called, **request)

        return caught.value

    async def register(self, **changes: Any) -> dict[str, Any]:
        """Register a definition, and return it."""
        reply = await self.ask("RegisterTaskDefinition", **definition(**changes))
        registered: dict[str, Any] = reply["taskDefinition"]
        return registered

    async def run(self, **changes: Any) -> dict[str, Any]:
        """Run one task and return it as RunTask shows it."""
        reply = await self.ask("RunTask", **launch(**changes))
        task: dict[str, Any] = reply["tasks"][0]
        return task

    async def start(self, *containers: dict[str, Any], definition: dict[str, Any] | None = None, **changes: Any) -> str:
        """Register a definition with these containers, run it, and return the task's ARN."""
        await self.register(containerDefinitions=list(containers or (container(),)), **(definition or {}))
        arn: str = (await self.run(**changes))["taskArn"]
        return arn

    async def describe(self, arn: str, **more: Any) -> dict[str, Any]:
        """Return a task as DescribeTasks shows it."""
        reply = await self.ask("DescribeTasks", cluster="jobs", tasks=[arn], **more)
        task: dict[str, Any] = reply["tasks"][0]
        return task

    async def until(self, arn: str, status: str, *, within: float = 4000.0) -> dict[str, Any]:
        """Wait until a task has a status, and return it."""
        with anyio.fail_after(within):
            while (task := await self.describe(arn))["lastStatus"] != status:
                await anyio.sleep(0.1)
        return task

    async def over(self, arn: str) -> dict[str, Any]:
        """Wait until a task is STOPPED, and return it."""
        return await self.until(arn, "STOPPED")

    async def history(self, arn: str) -> list[str]:
        """Wait until a task is over, and return the statuses that it went through."""
        seen: list[str] = []
        while not seen or seen[-1] != "STOPPED":
            status = (await self.describe(arn))["lastStatus"]
            seen += [] if seen and seen[-1] == status else [status]
            await anyio.sleep(0.05)
        return seen

    def events(self, arn: str) -> list[dict[str, Any]]:
        """Return the events that told of a task."""
        return [event for event in self.aws.events.emitted if event["resources"] == [arn]]


def main_of(task: dict[str, Any], name: str = "main") -> dict[str, Any]:
    """Return a container of a task by its name."""
    return next(each for each in task["containers"] if each["name"] == name)
