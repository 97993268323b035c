"""
A fake AWS that tells the truth: ECS on Fargate, CloudWatch Logs, EventBridge and SQS, without an account.

::

    aws = FakeAws(clock=clock, script=ContainerScript(run_for=30, lines=("hello",)))
    async with EcsBackend(cluster="default", session=aws.session(), …) as backend:
        ...

`FakeAws` is the whole account: ``session()`` is its face in process, under virtual time, ``serve()`` the one over HTTP.
`ContainerScript` and `TaskScript` say what happens to tasks, `Fault` and `Chaos` what goes wrong, ``aws.world.truth()``
what really happened. `DockerEngine` is an ``engine`` whose tasks are real containers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fargate_runner.testing.aws._engine import Engine, ScriptedEngine
from fargate_runner.testing.aws._events import Delivery
from fargate_runner.testing.aws._fake import Call, CallLog, ConnectionCut, FakeAws
from fargate_runner.testing.aws._faults import Chaos, Fault, denied, ec2_throttled, server_error, throttled
from fargate_runner.testing.aws._logs import Ingestion
from fargate_runner.testing.aws._quotas import Quotas, Rate
from fargate_runner.testing.aws._script import ContainerRun, ContainerScript, Pace, TaskRun, TaskScript
from fargate_runner.testing.aws._service import AwsError
from fargate_runner.testing.aws._task import ContainerTruth, TaskTruth
from fargate_runner.testing.aws._world import World

if TYPE_CHECKING:
    from fargate_runner.testing.aws._docker import DockerEngine

__all__ = [
    "AwsError",
    "Call",
    "CallLog",
    "Chaos",
    "ConnectionCut",
    "ContainerRun",
    "ContainerScript",
    "ContainerTruth",
    "Delivery",
    "DockerEngine",
    "Engine",
    "FakeAws",
    "Fault",
    "Ingestion",
    "Pace",
    "Quotas",
    "Rate",
    "ScriptedEngine",
    "TaskRun",
    "TaskScript",
    "TaskTruth",
    "World",
    "denied",
    "ec2_throttled",
    "server_error",
    "throttled",
]


def __getattr__(name: str) -> Any:
    # The Docker backend is not loaded for those who script their tasks.
    if name != "DockerEngine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fargate_runner.testing.aws._docker import DockerEngine

    globals()[name] = DockerEngine
    return DockerEngine
