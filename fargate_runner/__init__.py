"""
Run one-off jobs as AWS Fargate tasks, Docker containers or local processes, and know truthfully how they ended.

::

    async with Runner() as runner:
        result = await runner.run(Job(command=["python3", "-c", "print(6 * 7)"]))

Importing this package loads none of its parts: each name is fetched at its first use, so that a cold start pays for
what it uses and no more.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fargate_runner._gc import no_gc

if TYPE_CHECKING:
    from fargate_runner._backend import Backend, Identity, Launch, TaskRef
    from fargate_runner._batch import Batch
    from fargate_runner._dynamodb import DynamoDBJournal
    from fargate_runner._errors import (
        BackendError,
        BackendUnavailable,
        FargateRunnerError,
        InvalidJob,
        JobNotFound,
        JournalError,
        KeyConflict,
        LaunchRejected,
        LogsUnavailable,
        PlacementRefused,
        RunnerClosed,
    )
    from fargate_runner._job import HealthCheck, Job, Secret, SecretRef, Sidecar, Size
    from fargate_runner._journal import Journal, MemoryJournal, SqliteJournal
    from fargate_runner._lifecycle import (
        Attempt,
        Cause,
        JobFailed,
        JobResult,
        Kind,
        LogLine,
        Outcome,
        Phase,
        Proof,
        Snapshot,
    )
    from fargate_runner._reaper import Reaped
    from fargate_runner._retry import Retry, Rule
    from fargate_runner._runner import JobHandle, Runner
    from fargate_runner.backends.docker import DockerBackend
    from fargate_runner.backends.ecs import (
        Budget,
        Capacity,
        EbsVolume,
        EcsBackend,
        EcsOptions,
        EfsVolume,
        LogGroup,
        Network,
        Provider,
        Roles,
    )
    from fargate_runner.backends.memory import MemoryBackend
    from fargate_runner.backends.process import ProcessBackend

__all__ = [
    "Attempt",
    "Backend",
    "BackendError",
    "BackendUnavailable",
    "Batch",
    "Budget",
    "Capacity",
    "Cause",
    "DockerBackend",
    "DynamoDBJournal",
    "EbsVolume",
    "EcsBackend",
    "EcsOptions",
    "EfsVolume",
    "FargateRunnerError",
    "HealthCheck",
    "Identity",
    "InvalidJob",
    "Job",
    "JobFailed",
    "JobHandle",
    "JobNotFound",
    "JobResult",
    "Journal",
    "JournalError",
    "KeyConflict",
    "Kind",
    "Launch",
    "LaunchRejected",
    "LogGroup",
    "LogLine",
    "LogsUnavailable",
    "MemoryBackend",
    "MemoryJournal",
    "Network",
    "Outcome",
    "Phase",
    "PlacementRefused",
    "ProcessBackend",
    "Proof",
    "Provider",
    "Reaped",
    "Retry",
    "Roles",
    "Rule",
    "Runner",
    "RunnerClosed",
    "Secret",
    "SecretRef",
    "Sidecar",
    "Size",
    "Snapshot",
    "SqliteJournal",
    "TaskRef",
]

_HOMES = {
    "_backend": ("Backend", "Identity", "Launch", "TaskRef"),
    "_errors": (
        "BackendError",
        "BackendUnavailable",
        "FargateRunnerError",
        "InvalidJob",
        "JobNotFound",
        "JournalError",
        "KeyConflict",
        "LaunchRejected",
        "LogsUnavailable",
        "PlacementRefused",
        "RunnerClosed",
    ),
    "_batch": ("Batch",),
    "_dynamodb": ("DynamoDBJournal",),
    "_job": ("HealthCheck", "Job", "Secret", "SecretRef", "Sidecar", "Size"),
    "_journal": ("Journal", "MemoryJournal", "SqliteJournal"),
    "_lifecycle": (
        "Attempt",
        "Cause",
        "JobFailed",
        "JobResult",
        "Kind",
        "LogLine",
        "Outcome",
        "Phase",
        "Proof",
        "Snapshot",
    ),
    "_reaper": ("Reaped",),
    "_retry": ("Retry", "Rule"),
    "_runner": ("JobHandle", "Runner"),
    "backends.docker": ("DockerBackend",),
    "backends.ecs": (
        "Budget",
        "Capacity",
        "EbsVolume",
        "EcsBackend",
        "EcsOptions",
        "EfsVolume",
        "LogGroup",
        "Network",
        "Provider",
        "Roles",
    ),
    "backends.memory": ("MemoryBackend",),
    "backends.process": ("ProcessBackend",),
}
_HOME = {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    with no_gc():
        value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
