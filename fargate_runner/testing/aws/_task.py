"""A task and its containers as ECS knows them, and the truth about them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from random import Random
from typing import Any

import attrs
from attrs import field

from fargate_runner.testing.aws._script import ContainerRun, ContainerScript, TaskScript

__all__ = ["Container", "ContainerTruth", "Interface", "LogTarget", "Task", "TaskTruth", "truth_of"]


@attrs.frozen(kw_only=True)
class LogTarget:
    """Where the awslogs driver writes the output of a container."""

    group: str
    stream: str


class Container:
    """One container of a task, as ECS knows it."""

    __slots__ = (
        "arn",
        "defined",
        "definition",
        "digest",
        "ended_at",
        "essential",
        "exit_code",
        "health",
        "log",
        "name",
        "override",
        "reason",
        "run",
        "runtime_id",
        "script",
        "started_at",
        "status",
        "stop_timeout",
        "true_exit_code",
        "written",
    )

    def __init__(self, run: ContainerRun, definition: Mapping[str, Any], *, arn: str, defined: bool = True) -> None:
        self.name = run.name
        self.arn = arn
        self.run = run
        """What it runs: everything resolved."""
        self.definition = definition
        """Its ``containerDefinition`` as registered."""
        self.override: Mapping[str, Any] = {}
        self.defined = defined
        """False for one that the platform injected."""
        self.essential: bool = definition.get("essential", True) and defined
        self.stop_timeout = float(definition.get("stopTimeout") or 30)
        """Seconds between the stop signal and SIGKILL."""
        self.log: LogTarget | None = None
        """Where its output goes; None: nowhere that CloudWatch knows."""
        self.script = ContainerScript()
        self.status = "PENDING"
        self.exit_code: int | None = None
        self.reason = ""
        self.runtime_id = ""
        self.digest = ""
        self.health: str | None = "UNKNOWN" if definition.get("healthCheck") else None
        # The truth, for checkers: it may be more than ECS knows.
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.true_exit_code: int | None = None
        self.written: list[tuple[int, str]] = []

    @property
    def runs(self) -> bool:
        """Whether ECS takes it for running."""
        return self.status == "RUNNING"


@attrs.define(kw_only=True)
class Interface:
    """The network interface of a task."""

    id: str
    subnet: str
    eni: str
    mac: str
    address: str
    status: str = "PRECREATED"

    def details(self) -> list[dict[str, str]]:
        """Return what the attachment tells of it."""
        known = [{"name": "subnetId", "value": self.subnet}]
        if self.status == "PRECREATED":
            return known
        return [
            *known,
            {"name": "networkInterfaceId", "value": self.eni},
            {"name": "macAddress", "value": self.mac},
            {"name": "privateDnsName", "value": f"ip-{self.address.replace('.', '-')}.ec2.internal"},
            {"name": "privateIPv4Address", "value": self.address},
        ]


@attrs.define(kw_only=True, eq=False)
class Task:
    """One task, as ECS knows it. Engines read it; only the world changes it."""

    arn: str
    id: str
    cluster_arn: str
    number: int
    launch: int
    definition: Mapping[str, Any] = field(repr=False)
    """The registered task definition."""
    launch_type: str
    capacity_provider: str | None = None
    platform_version: str | None = None
    platform_family: str | None = None
    group: str = ""
    started_by: str | None = None
    token: str | None = None
    tags: dict[str, str] = field(factory=dict)
    overrides: Mapping[str, Any] = field(factory=dict, repr=False)
    cpu: str | None = None
    memory: str | None = None
    ephemeral_gib: int | None = None
    execute_command: bool = False
    instance_arn: str | None = None
    zone: str = ""
    interface: Interface | None = None
    containers: list[Container] = field(factory=list, repr=False)

    status: str = "PROVISIONING"
    desired_status: str = "RUNNING"
    version: int = 0
    stop_code: str | None = None
    stopped_reason: str | None = None
    connected: bool = False
    times: dict[str, float] = field(factory=dict)
    """``createdAt``, ``startedAt``, … in seconds of the clock."""
    moments: dict[str, datetime] = field(factory=dict)
    """The same as AWS writes them."""

    visible_at: float = 0.0
    listed_at: float = 0.0
    hidden_until: float = 0.0
    script: TaskScript = field(factory=TaskScript)
    unresolved: str = ""
    """Why its secrets or environment files cannot be had: it will not start."""
    shows_containers: bool = True
    handed_over: bool = False
    """Whether the engine was asked to start it."""
    finished: bool = False
    """Whether nothing of it runs any more."""
    noticed: bool = False
    """Whether it runs on after a Spot notice."""
    random: Random = field(factory=Random, repr=False)
    drawn: dict[str, Any] | None = field(default=None, repr=False)
    """What DescribeTasks shows of it, until something changes: thousands are polled again and again."""
    checked_version: int = 0
    """The version that was last found to fit AWS's model."""

    @property
    def family(self) -> str:
        """The family of its definition."""
        return str(self.definition["family"])

    @property
    def stopping(self) -> bool:
        """Whether it is to end: nothing more may be started."""
        return self.desired_status == "STOPPED"

    @property
    def stopped(self) -> bool:
        """Whether it is over."""
        return self.status == "STOPPED"

    @property
    def provider(self) -> str:
        """What it draws its capacity from."""
        return self.capacity_provider or self.launch_type

    def container(self, name: str) -> Container:
        """Return a container by its name."""
        return next(container for container in self.containers if container.name == name)


@attrs.frozen(kw_only=True)
class ContainerTruth:
    """What a container really did, in seconds of the clock. ECS may know less."""

    name: str
    started_at: float | None
    ended_at: float | None
    exit_code: int | None
    lines: tuple[str, ...]


@attrs.frozen(kw_only=True)
class TaskTruth:
    """What a task really did, in seconds of the clock."""

    arn: str
    started_by: str | None
    token: str | None
    family: str
    provider: str
    accepted_at: float
    """When RunTask had its effect."""
    started_at: float | None
    """When the first process ran."""
    ended_at: float | None
    """When the last process ended; None while one runs, or if none ever did."""
    stopped_at: float | None
    """When ECS called it STOPPED."""
    status: str
    stop_code: str | None
    stopped_reason: str | None
    containers: Mapping[str, ContainerTruth]

    @property
    def alive(self) -> tuple[float, float] | None:
        """The interval in which a process of it ran; None if none ever did."""
        if self.started_at is None:
            return None
        return self.started_at, math.inf if self.ended_at is None else self.ended_at


def truth_of(task: Task) -> TaskTruth:
    """Return what a task really did."""
    containers = {
        container.name: ContainerTruth(
            name=container.name,
            started_at=container.started_at,
            ended_at=container.ended_at,
            exit_code=container.true_exit_code,
            lines=tuple(line for _, line in container.written),
        )
        for container in task.containers
        if container.defined
    }
    started = [each.started_at for each in containers.values() if each.started_at is not None]
    ended = [each.ended_at for each in containers.values() if each.started_at is not None]
    return TaskTruth(
        arn=task.arn,
        started_by=task.started_by,
        token=task.token,
        family=task.family,
        provider=task.provider,
        accepted_at=task.times["createdAt"],
        started_at=min(started, default=None),
        ended_at=max((end for end in ended if end is not None), default=None) if None not in ended else None,
        stopped_at=task.times.get("stoppedAt"),
        status=task.status,
        stop_code=task.stop_code,
        stopped_reason=task.stopped_reason,
        containers=containers,
    )
