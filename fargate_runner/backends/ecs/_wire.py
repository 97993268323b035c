"""
AWS's words, and what they mean: a job becomes requests, replies and events become snapshots and refusals.

Pure functions on plain data, and the only file of the backend that knows AWS's camelCase keys. What AWS says in words
only is looked up in the tables on top; a code comes before words wherever there is one. What is read may have any
shape: an event may be forged, a reply may lack what is documented, and none of it may end in a crash or in a success.
"""

from __future__ import annotations

import base64
import binascii
import enum
import functools
import hashlib
import json
import math
import re
import sys
import zlib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

import attrs

from fargate_runner._backend import Identity
from fargate_runner._errors import InvalidJob
from fargate_runner._job import DEADLINE_CONTAINER, HealthCheck, Job, SecretRef, Sidecar, Size
from fargate_runner._lifecycle import Cause, Phase, Proof, Snapshot
from fargate_runner.backends.ecs._config import Capacity, EbsVolume, EcsOptions, LogGroup, Network, Roles, Volume

__all__ = [
    "RECORD",
    "Home",
    "Packed",
    "Refusal",
    "Spill",
    "account_of",
    "base_size",
    "cluster_arn",
    "cluster_name",
    "console_url",
    "container_of",
    "created_at",
    "default_log_place",
    "definition",
    "definition_arn",
    "definition_hash",
    "difference",
    "env_file",
    "event_of",
    "event_task",
    "gist",
    "has_active_cluster",
    "has_failures",
    "has_log_group",
    "is_consistent",
    "is_inactive",
    "is_stopped",
    "is_task_arn",
    "launch_error",
    "launched",
    "log_place",
    "log_regions",
    "log_stream",
    "missing",
    "moment",
    "needs_definition",
    "overrides_by_field",
    "overrides_length",
    "own_container",
    "owner",
    "pack",
    "partition",
    "placement_failure",
    "refusal",
    "region_of",
    "registered_at",
    "request_id",
    "run_task",
    "rung",
    "snapshot",
    "started",
    "started_by",
    "started_by_prefix",
    "stop_reason",
    "stopping",
    "task_arn",
    "task_id",
    "unpack",
    "version",
]

Json = Mapping[str, Any]

RECORD: Final = "FARGATE_RUNNER_JOB"
"""The variable by which a task tells what job it is: StopTask deletes tags, overrides stay."""

_OWNER_PREFIX: Final = "fr/"
_TASK_EVENT: Final = ("aws.ecs", "ECS Task State Change")
_STOP_PREFIX: Final = "fargate-runner: "
_LONGEST_STOP_REASON: Final = 255
_LONGEST_RECORD: Final = 4 << 20
"""Bytes that a record may unpack to; one of a stranger might be a bomb."""
_INJECTED: Final = ("aws-guardduty-agent", "ecs-service-connect-")
"""How the names of containers begin that AWS puts into tasks itself (GuardDuty, Service Connect)."""
_SIGTERM, _SIGKILL = 143, 137


# ---- tables: how a task ended --------------------------------------------------------------------------------------

_PHASES: Final[Mapping[str, Phase]] = {
    "PROVISIONING": Phase.PENDING,
    "PENDING": Phase.PENDING,
    "ACTIVATING": Phase.STARTING,
    "RUNNING": Phase.RUNNING,
    "DEACTIVATING": Phase.STOPPING,
    "STOPPING": Phase.STOPPING,
    "DEPROVISIONING": Phase.STOPPING,
    "STOPPED": Phase.ENDED,
    "DELETED": Phase.ENDED,
}


class _Sort(enum.Enum):
    """What a text says about the task."""

    EXITED = "a container ended by itself"
    STOPPED = "somebody called StopTask"
    RECLAIMED = "the capacity was taken back"
    HOST = "the machine went away"
    START = "a container could not start"
    FAULT = "the container runtime failed; before the start, the job never ran"


# Amazon ECS API Reference, Task.stopCode. TaskFailedToStart and EssentialContainerExited are judged further down.
_BY_STOP_CODE: Final[Mapping[str, _Sort]] = {
    "UserInitiated": _Sort.STOPPED,
    "SpotInterruption": _Sort.RECLAIMED,
    "TerminationNotice": _Sort.RECLAIMED,
    "ServiceSchedulerInitiated": _Sort.HOST,
}

_OUT_OF_MEMORY: Final = ("outofmemoryerror", "killed due to memory usage")

_AGAIN: Final = "it is likely to pass: run it again"
_ONCE: Final = "run it again once; if it happens again,"
_ROUTE: Final = "check the route: a public IP or a NAT gateway, or endpoints for ecr.api, ecr.dkr, logs and S3"
_TIMEOUTS: Final = (
    "i/o timeout|net/http: request canceled|context canceled|context deadline exceeded|tls handshake timeout"
    "|client.timeout exceeded"
)
_PULL: Final = (
    "cannotpullcontainererror|cannotpullecrcontainererror|cannotpullcontainerautherror|cannotpullimagemanifesterror"
)
_RESOURCES: Final = "resourceinitializationerror"


def _texts(text: str | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text.split("|")) if isinstance(text, str) and text else ()


@attrs.frozen
class _Row:
    """Texts (lower case, between bars) that say the same; of those in ``also``, one must be there as well."""

    sort: _Sort
    texts: tuple[str, ...] = attrs.field(converter=_texts)
    also: tuple[str, ...] = attrs.field(default=(), converter=_texts, kw_only=True)
    passes: bool = attrs.field(default=False, kw_only=True)
    """Whether another launch may go better."""
    advice: str = attrs.field(default="", kw_only=True)

    def matches(self, text: str) -> bool:
        return any(part in text for part in self.texts) and (not self.also or any(part in text for part in self.also))


_START = functools.partial(_Row, _Sort.START)
_FAULT = functools.partial(_Row, _Sort.FAULT, passes=True)

# stoppedReason and containers[].reason (Amazon ECS Developer Guide, "Stopped task error messages", autumn 2026, and
# the ECS agent). The first row that matches counts: narrow ones stand above wide ones.
_REASONS: Final[tuple[_Row, ...]] = (
    _Row(_Sort.EXITED, "essential container in task exited|essential container exited"),
    _Row(_Sort.STOPPED, f"{_STOP_PREFIX.strip()}|task stopped by user"),
    _Row(_Sort.RECLAIMED, "spot task was interrupted", passes=True),
    _Row(_Sort.HOST, "performing maintenance on the underlying infrastructure", passes=True),
    _Row(_Sort.HOST, "host ec2 (instance|container instance deregistration forced", passes=True),
    _Row(_Sort.HOST, "container instance is in draining state", passes=True),
    # Of services only; a task of ours that says so belongs to somebody's scheduler.
    _Row(_Sort.HOST, "scaling activity initiated by (deployment|task failed elb health checks", passes=True),
    _Row(_Sort.HOST, "task failed container health checks", passes=True),
    # Images
    _START(_PULL, also="toomanyrequests|pull rate limit", passes=True, advice="log in to the registry, or use ECR"),
    _START(_PULL, also="no space left on device", advice="the image needs more disk: raise ephemeral_storage_gib"),
    _START(
        _PULL,
        also="descriptor matching platform|does not match the specified platform",
        advice="the image is for another architecture: set Job.architecture, or build it for both",
    ),
    _START(_PULL, also=_TIMEOUTS, passes=True, advice=f"{_ONCE} the registry cannot be reached: {_ROUTE}"),
    _START(
        _PULL,
        also="not found|manifest unknown|failed to resolve ref|pull access denied| 403|no basic auth",
        advice="check the name and tag of the image, and that the execution role may pull it",
    ),
    _START("cannotpullcontainerautherror", advice="let the execution role log in to the registry"),
    _START(_PULL, passes=True, advice=f"{_ONCE} check the image's name and the execution role, and {_ROUTE}"),
    _START("the task cannot pull", passes=True, advice=f"{_ONCE} {_ROUTE}"),
    # What a task needs before its containers
    _START(
        _RESOURCES,
        also="failed to initialize logging driver|failed to validate logger args",
        advice="check that the log group exists and that the execution role may write to it",
    ),
    _START(
        _RESOURCES,
        also="failed to invoke efs utils",
        advice="check the mount targets of the file system, its security groups and the task role",
    ),
    _START(
        _RESOURCES,
        also="env file|environment file",
        advice="check that the environment file exists and that the execution role may read it",
    ),
    _START(
        _RESOURCES,
        also="accessdenied|access denied|not authorized",
        advice="let the execution role read the secrets (secretsmanager:GetSecretValue, ssm:GetParameters) and files",
    ),
    _START(
        _RESOURCES,
        also="resourcenotfoundexception|parameternotfound|invalidparameters",
        advice="something that the task refers to does not exist: check the ARNs of its secrets and the log group",
    ),
    _START(
        _RESOURCES,
        also=f"{_TIMEOUTS}|dial tcp|signal: killed",
        passes=True,
        advice=f"{_ONCE} the secrets or the registry cannot be reached: {_ROUTE}",
    ),
    _START(_RESOURCES, advice="check the roles, secrets, log group and volumes of the task"),
    _START("timeout waiting for network interface provisioning", passes=True, advice=_AGAIN),
    _START("timeout waiting for ephemeralstorage provisioning", passes=True, advice=_AGAIN),
    _START("network interface provision complete error", passes=True, advice=_AGAIN),
    _START("rate limit exceeded while preparing network interface", passes=True, advice="launch fewer tasks at a time"),
    _START(
        "unexpected ec2 error while attempting to create network interface",
        passes=True,
        advice="the subnet may be out of addresses: name more subnets",
    ),
    _START("unable to attach network interface to unused device index", passes=True, advice=_AGAIN),
    _START("not compatible with the selected compute strategy", advice="check the task definition and the capacity"),
    # Containers
    _FAULT("dockertimeouterror|containerruntimetimeouterror|could not transition to", advice=_AGAIN),
    _FAULT("cannotinspectcontainererror|cannotstopcontainererror|containerruntimeerror", advice=_AGAIN),
    _START(
        "cannotstartcontainererror|cannotcreatecontainererror|cannotcreatevolumeerror",
        also="timeout|timed out",
        passes=True,
        advice=_AGAIN,
    ),
    _START(
        "cannotstartcontainererror",
        advice="the command could not be executed: check command and entry_point against the image",
    ),
    _START(
        "cannotcreatecontainererror|cannotcreatevolumeerror|invalidvolumeerror|hostconfigerror",
        advice="check the volumes, the user and the limits of the containers",
    ),
    _START(
        "taskdependencyerror",
        advice="a container waited for another that did not come so far: check depends_on and the sidecars",
    ),
    _FAULT("internalerror", advice=f"{_ONCE} ask AWS with the task's ARN"),
)


# ---- tables: why a task was not even taken -------------------------------------------------------------------------

RefusalKind = Literal["capacity", "quota", "transient", "fatal"]


@attrs.frozen
class _Failure:
    """What stands in ``failures[].reason`` (lower case, between bars): at its beginning, or with a star anywhere."""

    kind: RefusalKind
    texts: tuple[str, ...] = attrs.field(converter=_texts)
    advice: str

    def matches(self, text: str) -> bool:
        return any(part[1:] in text if part.startswith("*") else text.startswith(part) for part in self.texts)


_NO_ROOM: Final = "no instance of the cluster has room now: add instances, or use a capacity provider that does"
_TOO_LARGE: Final = "ask AWS for a higher quota, or take a smaller size"

# Amazon ECS Developer Guide, "API failures messages". A text begins so; one with a star has it somewhere inside.
# Quota texts hold a typographic apostrophe, and are matched from behind it.
_FAILURES: Final[tuple[_Failure, ...]] = (
    _Failure("quota", "*reached the limit on the number of", "wait for tasks to end, or ask AWS for a higher quota"),
    _Failure("fatal", "*configuration is above your limit", _TOO_LARGE),
    _Failure(
        "capacity",
        "*capacity is unavailable at this time",
        "name subnets in more zones, or let the ladder end in Capacity.fargate()",
    ),
    _Failure("capacity", "resource:fargate", "let the ladder end in Capacity.fargate(), or try later"),
    _Failure("capacity", "resource:", _NO_ROOM),
    _Failure("capacity", "no active instances|empty capacity provider|no container instances were found", _NO_ROOM),
    _Failure(
        "fatal",
        "attribute|memberof placement constraint unsatisfied",
        "no instance has what the task asks for (architecture, subnet, log driver): check both",
    ),
    _Failure("fatal", "location", "the instances are in other zones than the subnets: name subnets of theirs"),
    _Failure("fatal", "inactive|missing", "the container instance is not registered any more: look at the cluster"),
    _Failure("transient", "agent", "the agent of a container instance is not connected: look at the instance"),
    _Failure(
        "transient",
        "internal error",
        "run it again; if it happens again, a subnet may be in a zone that Fargate does not serve",
    ),
)


@attrs.frozen
class _Error:
    """An exception of RunTask: its codes, and what stands in its text (lower case); empty is any."""

    kind: RefusalKind
    codes: tuple[str, ...] = attrs.field(converter=_texts)
    texts: tuple[str, ...] = attrs.field(converter=_texts)
    advice: str
    nothing_started: bool = True

    def matches(self, code: str, text: str) -> bool:
        return code in self.codes and (not self.texts or any(part in text for part in self.texts))


_REJECTED: Final = "InvalidParameterException|ClientException"
_SAME_TOKEN: Final = "the same launch is sent again, with the same token"

_ERRORS: Final[tuple[_Error, ...]] = (
    _Error(
        "quota",
        "ThrottlingException|Throttling|RequestLimitExceeded|TooManyRequestsException",
        "",
        "AWS asks for fewer calls: it is sent again more slowly",
    ),
    # EC2's throttling, wrapped as if the request were wrong.
    _Error(
        "quota",
        _REJECTED,
        "errorcode: throttling|errorcode: requestlimitexceeded|rate exceeded|request limit exceeded",
        "EC2 throttles ECS while it looks up the network: launch fewer tasks at a time",
    ),
    _Error("transient", "ServerException|InternalFailure|InternalServerError", "", _SAME_TOKEN, nothing_started=False),
    _Error("transient", "ServiceUnavailable|ServiceUnavailableException", "", _SAME_TOKEN, nothing_started=False),
    _Error("transient", "RequestTimeoutException|RequestTimeout", "", _SAME_TOKEN, nothing_started=False),
    _Error("transient", "ExpiredTokenException|ExpiredToken", "", "the credentials are renewed and it is sent again"),
    _Error("fatal", "ConflictException", "", "the token has started a task already: meet it", nothing_started=False),
    _Error("fatal", _REJECTED, "overrides length", "command and environment are too long: set spill_to on the backend"),
    _Error("fatal", _REJECTED, "is inactive", "the task definition was deregistered: register it again"),
    _Error(
        "fatal",
        _REJECTED,
        "invalidsubnet|subnet information",
        "check the ids of the subnets, and that they are in this region",
    ),
    _Error(
        "fatal",
        _REJECTED,
        "invalidgroup|invalidsecuritygroup|security group information",
        "check the ids of the security groups, and that they are in the VPC of the subnets",
    ),
    _Error("fatal", _REJECTED, "network configuration must be provided", "set Network(subnets=[…])"),
    _Error(
        "fatal",
        _REJECTED,
        "is not a container in the taskdefinition",
        "set Job.container_name to a container of the task definition",
    ),
    _Error(
        "fatal",
        _REJECTED,
        "no fargate configuration exists|invalid 'cpu' setting",
        "take one of Fargate's sizes: Size.of(vcpu, memory_gib) names the nearest",
    ),
    _Error(
        "fatal",
        _REJECTED,
        "assume the service linked role",
        "create the role AWSServiceRoleForECS; on a new account, try again in a minute",
    ),
    _Error(
        "fatal",
        _REJECTED,
        "unable to assume the role|role is not valid",
        "check its name and that ecs-tasks.amazonaws.com may assume it; a new role needs up to a minute",
    ),
    _Error(
        "fatal",
        _REJECTED,
        "execution role",
        "set Roles(execution=…): on Fargate it writes the logs, reads secrets and pulls from ECR",
    ),
    # The wording is not documented, only that a cluster has at most 500 tasks in PROVISIONING.
    _Error("quota", "ClientException", "provisioning", "too many tasks wait for instances: launch fewer at a time"),
    _Error("fatal", "ClusterNotFoundException", "", "check the name of the cluster and the region"),
    _Error(
        "fatal",
        "PlatformUnknownException|PlatformTaskDefinitionIncompatibilityException",
        "",
        "check the platform version; 'LATEST' is right for new task definitions",
    ),
    _Error("fatal", "AccessDeniedException|AccessDenied|UnauthorizedOperation", "", "allow it for these credentials"),
    _Error(
        "fatal",
        "UnrecognizedClientException|InvalidClientTokenId|InvalidSignatureException",
        "",
        "the credentials are not valid here: check them, the region and the clock",
    ),
    _Error("fatal", "BlockedException", "", "AWS has blocked the account: ask AWS"),
    _Error("fatal", "UnsupportedFeatureException", "", "this region or capacity does not offer what was asked for"),
)

_DENIED: Final = re.compile(r"not authorized to perform:? (?P<action>[\w*-]+:[\w*-]+)(?: on resource:? (?P<what>\S+))?")


# ---- names and addresses -------------------------------------------------------------------------------------------

_TASK_ARN: Final = re.compile(
    r"arn:(?P<partition>aws[a-z-]*):ecs:(?P<region>[a-z0-9-]+):(?P<account>\d{12}):task/(?:(?P<cluster>[^/]+)/)?(?P<id>[^/\s]+)\Z"
)
_PARTITIONS: Final = {"cn-": "aws-cn", "us-gov-": "aws-us-gov", "us-iso-": "aws-iso", "us-isob-": "aws-iso-b"}
_CONSOLES: Final = {"aws-cn": "console.amazonaws.cn", "aws-us-gov": "console.amazonaws-us-gov.com"}


def is_task_arn(text: object) -> bool:
    """Whether *text* is the ARN of a task."""
    return isinstance(text, str) and _TASK_ARN.match(text) is not None


def task_id(arn: str) -> str:
    """Return the last part of a task's ARN; an id stays as it is."""
    return arn.rpartition("/")[2]


def cluster_name(arn_or_name: str) -> str:
    """Return the short name of a cluster."""
    return arn_or_name.rpartition("/")[2]


def account_of(arn: str) -> str:
    """Return the account that an ARN names; empty if it is none."""
    parts = arn.split(":")
    return parts[4] if len(parts) >= 6 and parts[0] == "arn" else ""


def region_of(arn_or_name: str | None) -> str | None:
    """Return the region that an ARN names, if it is an ARN."""
    parts = (arn_or_name or "").split(":")
    return parts[3] if len(parts) >= 6 and parts[0] == "arn" and parts[3] else None


def partition(region: str) -> str:
    """Return the part of the AWS world that a region is in, as ARNs name it."""
    return next((name for prefix, name in _PARTITIONS.items() if region.startswith(prefix)), "aws")


def console_url(arn: str) -> str:
    """Return where a person finds a task in AWS's console; empty if *arn* is not a task's."""
    found = _TASK_ARN.match(arn)
    if found is None:
        return ""
    region, cluster = found["region"], found["cluster"] or "default"
    host = _CONSOLES.get(found["partition"], "console.aws.amazon.com")
    return f"https://{region}.{host}/ecs/v2/clusters/{cluster}/tasks/{found['id']}/configuration?region={region}"


def started_by(namespace: str, key: str) -> str:
    """Return what marks all tasks of a job as ours: ``startedBy``, at most 120 of its 128 characters."""
    digest = hashlib.sha256(key.encode()).digest()
    return f"{_OWNER_PREFIX}{namespace}/{base64.b32encode(digest).decode().rstrip('=').lower()}"


def started_by_prefix(namespace: str | None) -> str:
    """Return how `started_by` begins for the jobs of a namespace; None: for all of ours."""
    return _OWNER_PREFIX if namespace is None else f"{_OWNER_PREFIX}{namespace}/"


def log_stream(prefix: str, container: str, arn: str) -> str:
    """Return the name of the stream that a container writes to."""
    return f"{prefix}/{container}/{task_id(arn)}"


def stop_reason(reason: str) -> str:
    """Return *reason* as StopTask takes it, recognisable as ours."""
    return f"{_STOP_PREFIX}{reason}"[:_LONGEST_STOP_REASON]


# ---- a job becomes a task definition -------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Spill:
    """
    What of a job is too long for the overrides of a launch, and travels otherwise.

    Without ``files``, the job's task definition carries it; ``files`` are ARNs of environment files in S3.
    """

    command: bool = False
    env: frozenset[str] = frozenset()
    """Names of variables."""
    files: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.command or bool(self.env) or bool(self.files)


_NO_SPILL: Final = Spill()


def base_size(job: Job) -> Size:
    """Return the smallest size that holds the sidecars' own limits; the job's own size is an override."""
    cpu = sum(round((side.vcpu or 0) * 1024) for side in job.sidecars)
    memory = sum(round((side.memory_gib or 0) * 1024) for side in job.sidecars)
    return Size.nearest(cpu, memory)


def definition(
    job: Job,
    *,
    roles: Roles | None,
    log_group: LogGroup | None,
    options: EcsOptions,
    region: str,
    secret_names: Mapping[str, str] | None = None,
    capacity: Sequence[Capacity] | None = None,
    spill: Spill = _NO_SPILL,
) -> dict[str, Any]:
    """
    Return the body of RegisterTaskDefinition for *job*, without family and tags: what no override can carry.

    *secret_names* tells where the value of a `Secret` is kept, by the variable's name, or ``sidecar/name``.
    *capacity* is the whole ladder; each rung must be able to run it. Equal jobs give equal bodies.

    :raises InvalidJob: something that ECS cannot express; names field and fix
    """
    if job.image is None:
        fix = "give the image that the command is in, or name a task definition in EcsOptions"
        raise InvalidJob("image", None, "a task needs an image", fix)
    rungs = tuple(capacity or options.capacity or (Capacity.fargate(),))
    volumes = _named(options.volumes or ())
    size = base_size(job)
    parts: tuple[Job | Sidecar, ...] = (job, *job.sidecars)
    body: dict[str, Any] = {
        "requiresCompatibilities": sorted({part.compatibility for part in rungs}),
        "networkMode": "awsvpc",
        "cpu": str(size.cpu_units),
        "memory": str(size.memory_mib),
        "containerDefinitions": [
            _container(part, job, options, volumes, secret_names or {}, _log(log_group, region), spill)
            for part in parts
        ],
    }
    if job.architecture is not None or any(part.is_fargate for part in rungs):
        architecture = job.architecture or "X86_64"
        body["runtimePlatform"] = {"cpuArchitecture": architecture, "operatingSystemFamily": "LINUX"}
    if volumes:
        known = {side.name for side in job.sidecars}
        for volume in volumes.values():
            if strangers := set(volume.shared_with) - known:
                fix = f"name some of {', '.join(sorted(known))}" if known else "leave it out"
                raise InvalidJob("volume.shared_with", sorted(strangers), "the job has no such sidecar", fix)
        body["volumes"] = [_volume(name, volume) for name, volume in volumes.items()]
    if roles is not None and roles.execution is not None:
        body["executionRoleArn"] = roles.execution
    if roles is not None and roles.task is not None:
        body["taskRoleArn"] = roles.task
    return body


def definition_hash(body: Json) -> str:
    """Return what tells one content from another: 64 hexadecimal digits, the same on every machine."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _container(
    part: Job | Sidecar,
    job: Job,
    options: EcsOptions,
    volumes: Mapping[str, Volume],
    secret_names: Mapping[str, str],
    log: Json | None,
    spill: Spill,
) -> dict[str, Any]:
    own = part is job
    body: dict[str, Any] = {
        "name": job.container_name if isinstance(part, Job) else part.name,
        "image": part.image,
        "essential": True if isinstance(part, Job) else part.essential,
        "stopTimeout": math.ceil(job.stop_timeout.total_seconds()),
    }
    if part.entry_point is not None:
        body["entryPoint"] = list(part.entry_point)
    if part.working_directory is not None:
        body["workingDirectory"] = part.working_directory
    # The job's own command and environment are overrides, so that jobs which differ in them share a definition.
    if part.command is not None and (not own or spill.command):
        body["command"] = list(part.command)
    carried = {name: text for name, text in part.env.items() if not own or (name in spill.env and not spill.files)}
    if carried:
        body["environment"] = _pairs(carried)
    if part.secrets:
        body["secrets"] = _secrets(part, secret_names)
    # The first process of a container is deaf to a SIGTERM that it does not handle, and sleep handles none: without an
    # init, a watchdog would hold up each end for the whole stopTimeout, and its exit code would not tell who was first.
    if (own and options.init_process is not False) or (isinstance(part, Sidecar) and part.is_watchdog):
        body["linuxParameters"] = {"initProcessEnabled": True}
    if own and options.read_only_root:
        body["readonlyRootFilesystem"] = True
    if own and options.user is not None:
        body["user"] = options.user
    if waits := _waits(part, job):
        body["dependsOn"] = [{"containerName": name, "condition": waits[name]} for name in sorted(waits)]
    if isinstance(part, Sidecar):
        if part.health_check is not None:
            body["healthCheck"] = _health(part.health_check)
        if part.vcpu is not None:
            body["cpu"] = max(round(part.vcpu * 1024), 1)
        if part.memory_gib is not None:
            body["memory"] = max(round(part.memory_gib * 1024), 6)  # less than 6 MiB is refused
    mounts = [
        {"sourceVolume": name, "containerPath": volume.path, "readOnly": volume.read_only}
        for name, volume in volumes.items()
        if own or body["name"] in volume.shared_with
    ]
    if mounts:
        body["mountPoints"] = mounts
    if log is not None:
        body["logConfiguration"] = log
    return body


def _waits(part: Job | Sidecar, job: Job) -> Mapping[str, str]:
    if part is job and job.depends_on is None:
        return {side.name: "START" for side in job.sidecars}
    armed = {side.name: "START" for side in job.sidecars if side.is_watchdog and part is not side}
    return {**armed, **(part.depends_on or {})}  # nothing runs before its deadline does


def _pairs(env: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": env[name]} for name in sorted(env)]


def _secrets(part: Job | Sidecar, secret_names: Mapping[str, str]) -> list[dict[str, str]]:
    prefix = "" if isinstance(part, Job) else f"{part.name}/"
    found: list[dict[str, str]] = []
    for name in sorted(part.secrets):
        secret = part.secrets[name]
        place = secret.arn if isinstance(secret, SecretRef) else secret_names.get(f"{prefix}{name}")
        if place is None:
            # An override could carry it, in sight of everybody who may describe tasks.
            fix = "store it in Secrets Manager or SSM and give its ARN, or set secret_prefix on the backend"
            raise InvalidJob(f"secrets[{name!r}]", "(not shown)", "ECS takes references, not values", fix)
        found.append({"name": name, "valueFrom": place})
    return found


def _health(check: HealthCheck) -> dict[str, Any]:
    words = check.command if check.command[0] in {"CMD", "CMD-SHELL"} else ("CMD", *check.command)
    body: dict[str, Any] = {
        "command": list(words),
        "interval": math.ceil(check.interval.total_seconds()),
        "timeout": math.ceil(check.timeout.total_seconds()),
        "retries": check.retries,
    }
    if check.start_period:
        body["startPeriod"] = math.ceil(check.start_period.total_seconds())
    return body


def _log(group: LogGroup | None, region: str) -> dict[str, Any] | None:
    if group is None:
        return None
    options = {
        "awslogs-group": group.name,
        "awslogs-region": group.region or region,
        "awslogs-stream-prefix": group.stream_prefix,
        "mode": group.mode,
    }
    if group.max_buffer is not None:
        options["max-buffer-size"] = group.max_buffer
    return {"logDriver": "awslogs", "options": options}


def _named(volumes: Sequence[Volume]) -> dict[str, Volume]:
    taken = {volume.name for volume in volumes if volume.name is not None}
    free = (name for number in range(1, 1 << 16) if (name := f"volume-{number}") not in taken)
    return {volume.name or next(free): volume for volume in volumes}


def _volume(name: str, volume: Volume) -> dict[str, Any]:
    if isinstance(volume, EbsVolume):
        return {"name": name, "configuredAtLaunch": True}
    efs: dict[str, Any] = {
        "fileSystemId": volume.file_system_id,
        "transitEncryption": "ENABLED" if volume.transit_encryption else "DISABLED",
    }
    if volume.root_directory is not None:
        efs["rootDirectory"] = volume.root_directory
    if volume.access_point is not None or volume.iam:
        efs["authorizationConfig"] = {"iam": "ENABLED" if volume.iam else "DISABLED"}
        if volume.access_point is not None:
            efs["authorizationConfig"]["accessPointId"] = volume.access_point
    return {"name": name, "efsVolumeConfiguration": efs}


def _disk(volume: EbsVolume) -> dict[str, Any]:
    body: dict[str, Any] = {
        "roleArn": volume.role,
        "volumeType": volume.volume_type,
        "terminationPolicy": {"deleteOnTermination": True},
    }
    asked = {
        "sizeInGiB": volume.size_gib,
        "snapshotId": volume.snapshot_id,
        "iops": volume.iops,
        "throughput": volume.throughput,
        "filesystemType": volume.file_system,
        "encrypted": volume.encrypted,
        "kmsKeyId": volume.kms_key,
    }
    return body | _given(asked)


def _given(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in asked.items() if value is not None}


# ---- a launch becomes a request ------------------------------------------------------------------------------------


def rung(capacity: Sequence[Capacity], identity: Identity) -> Capacity:
    """Return what this launch runs on: each attempt and each placement goes one rung further, the last one stays."""
    return capacity[min(identity.attempt + identity.placement - 2, len(capacity) - 1)]


def container_of(body: Json, wanted: str) -> str:
    """
    Return the name of the job's own container in a definition: *wanted*, or the only one that there is.

    :raises InvalidJob: there are several, and none is *wanted*
    """
    names = [_text(part.get("name")) for part in _maps(body.get("containerDefinitions"))]
    if wanted in names:
        return wanted
    essential = [
        _text(part.get("name"))
        for part in _maps(body.get("containerDefinitions"))
        if part.get("essential") is not False
    ]
    for choice in (names, essential):
        if len(choice) == 1:
            return choice[0]
    fix = f"set it to one of {', '.join(names)}"
    raise InvalidJob("container_name", wanted, "the task definition has no such container", fix)


def run_task(
    job: Job,
    identity: Identity,
    *,
    cluster: str,
    task_definition: str,
    body: Json,
    token: str,
    capacity: Capacity,
    network: Network | None,
    options: EcsOptions,
    roles: Roles | None = None,
    tags: Mapping[str, str] | None = None,
    spill: Spill = _NO_SPILL,
    count: int = 1,
) -> dict[str, Any]:
    """
    Return the RunTask request of a launch: the same for the same arguments, so that it can be sent again.

    *task_definition* is pinned (``family:revision`` or an ARN), *body* is what it holds: what `definition` returned or
    DescribeTaskDefinition tells. *tags* are put below the job's own.

    :raises InvalidJob: something that this capacity or an existing definition cannot do; names field and fix
    """
    existing = options.task_definition is not None
    if existing:
        _check_overridable(job)
    request: dict[str, Any] = {
        "cluster": cluster,
        "taskDefinition": task_definition,
        "count": count,
        "clientToken": token,
        "startedBy": started_by(identity.namespace, identity.key),
        "overrides": _overrides(job, identity, body, options, roles, spill, fargate=capacity.is_fargate),
    }
    if capacity.launch_type is not None:
        request["launchType"] = capacity.launch_type
    else:
        request["capacityProviderStrategy"] = [
            {"capacityProvider": part.name, "weight": part.weight, "base": part.base} for part in capacity.strategy
        ]
    platform = capacity.platform_version or options.platform_version
    if platform is not None and capacity.is_fargate:
        request["platformVersion"] = platform
    if body.get("networkMode") == "awsvpc":
        request["networkConfiguration"] = _network(network, identity)
    all_tags = {**(tags or {}), **job.tags}
    if len(all_tags) > 50:
        fix = "keep 50, those of the backend included"
        raise InvalidJob("tags", f"{len(all_tags)} tags", "AWS takes at most 50", fix)
    if all_tags:  # with none, ecs:TagResource is not needed
        request["tags"] = [{"key": key, "value": all_tags[key]} for key in sorted(all_tags)]
    request |= _given(
        {
            "propagateTags": options.propagate_tags,
            "enableECSManagedTags": options.enable_managed_tags,
            "enableExecuteCommand": options.enable_execute_command,
            "group": options.group,
        }
    )
    disks = [
        {"name": name, "managedEBSVolume": _disk(volume)}
        for name, volume in _named(options.volumes or ()).items()
        if isinstance(volume, EbsVolume) and not existing
    ]
    if disks:
        request["volumeConfigurations"] = disks
    return request


def _check_overridable(job: Job) -> None:
    for field, value in (
        ("image", job.image),
        ("entry_point", job.entry_point),
        ("working_directory", job.working_directory),
        ("architecture", job.architecture),
        ("secrets", sorted(job.secrets)),
        ("sidecars", [side.name for side in job.sidecars]),
        ("depends_on", job.depends_on),
    ):
        if value:
            problem = "an existing task definition says this itself, and no override can change it"
            raise InvalidJob(field, value, problem, "leave it out, or leave out ecs.task_definition")


def _overrides(
    job: Job, identity: Identity, body: Json, options: EcsOptions, roles: Roles | None, spill: Spill, *, fargate: bool
) -> dict[str, Any]:
    existing = options.task_definition is not None
    own = container_of(body, job.container_name)
    essential = [
        _text(part.get("name"))
        for part in _maps(body.get("containerDefinitions"))
        if part.get("name") != own and part.get("essential") is not False
    ]
    record = pack(job, identity, container=own, essential=essential, spill=spill)
    # The job's own variables win over ours, as on the other backends; nobody's win over the record.
    env = {name: text for name, text in (identity.variables | dict(job.env)).items() if name not in spill.env}
    container: dict[str, Any] = {"name": own, "environment": _pairs(env | {RECORD: record})}
    if job.command is not None and not spill.command:
        container["command"] = list(job.command)
    if spill.files:
        container["environmentFiles"] = [{"type": "s3", "value": arn} for arn in spill.files]
    overrides: dict[str, Any] = {"containerOverrides": [container]}
    size = {"cpu": str(job.size.cpu_units), "memory": str(job.size.memory_mib)}
    asked = not existing or job.vcpu is not None or job.memory_gib is not None
    if asked and any(str(body.get(key)) != value for key, value in size.items()):
        overrides |= size
    if job.ephemeral_storage_gib is not None:
        if not fargate:
            problem = "only Fargate gives a task its own scratch space"
            fix = "leave it out, or use Capacity.fargate()"
            raise InvalidJob("ephemeral_storage_gib", job.ephemeral_storage_gib, problem, fix)
        overrides["ephemeralStorage"] = {"sizeInGiB": job.ephemeral_storage_gib}
    if existing and roles is not None:
        overrides |= _role_overrides(roles)
    return overrides


def _role_overrides(roles: Roles) -> dict[str, str]:
    if roles.task is not None and not roles.task.startswith("arn:"):
        problem = "to override a role of an existing task definition, ECS wants its ARN"
        raise InvalidJob("roles.task", roles.task, problem, "write it like 'arn:aws:iam::111122223333:role/name'")
    return _given({"executionRoleArn": roles.execution, "taskRoleArn": roles.task})


def _network(network: Network | None, identity: Identity) -> dict[str, Any]:
    if network is None:
        fix = "set Network(subnets=[…]) on the backend or in EcsOptions, or use EcsBackend.discover()"
        raise InvalidJob("network", None, "the task needs a network of its own", fix)
    # When capacity is short, the next placement begins with the next zone.
    turn = (identity.placement - 1) % len(network.subnets)
    plug: dict[str, Any] = {
        "subnets": [*network.subnets[turn:], *network.subnets[:turn]],
        "assignPublicIp": "ENABLED" if network.public_ip else "DISABLED",
    }
    if network.security_groups:
        plug["securityGroups"] = list(network.security_groups)
    return {"awsvpcConfiguration": plug}


# ---- how long it is, and what does not fit -------------------------------------------------------------------------


def overrides_length(request: Json) -> int:
    """Return the characters of the overrides as botocore sends them: ECS takes 8,192."""
    return _characters(request.get("overrides", {}))


def overrides_by_field(request: Json) -> dict[str, int]:
    """Return how much of `overrides_length` is due to which field of the job, the longest first, the rest last."""
    found = {"command": 0, "env": 0}
    overrides = request.get("overrides", {})
    for container in overrides.get("containerOverrides", ()):
        found["command"] += _characters(container.get("command", []))
        found["env"] += sum(_characters(p) + 2 for p in container.get("environment", ()) if not _is_ours(p["name"]))
    rest = overrides_length(request) - sum(found.values())
    return dict(sorted(found.items(), key=lambda item: -item[1])) | {"everything else": rest}


def _is_ours(variable: str) -> bool:
    return variable.startswith("FARGATE_RUNNER_")


def _characters(value: Any) -> int:
    # As botocore's JSON serializer does it: default separators, and six characters for each one that is not ASCII.
    return len(json.dumps(value))


_LONGEST_LINE: Final = 65_000
"""Bytes. The ECS agent reads a file line by line, each below 64 KiB (containers-roadmap #2049, 2023, still open)."""


def env_file(env: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """
    Return the text of an environment file, and what of *env* cannot travel in one.

    A line is a variable, so a value cannot hold a line break; the agent drops empty values, and a line that is too
    long keeps the task from starting. Values with spaces at an end stay out as well: nobody promises to keep those.
    """
    lines: list[str] = []
    left: dict[str, str] = {}
    for name in sorted(env):
        text, line = env[name], f"{name}={env[name]}\n"
        if not text or text != text.strip() or len(text.splitlines()) > 1 or len(line.encode()) > _LONGEST_LINE:
            left[name] = text
        else:
            lines.append(line)
    return "".join(lines), left


# ---- what a task tells of its job ----------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Packed:
    """What a task's record says. ``missing`` names fields of the description that only another place holds."""

    description: dict[str, Any] | None
    """As `Job.describe` gave it; None while something is missing."""
    identity: Identity
    container: str
    """The name of the job's own container."""
    essential: tuple[str, ...]
    """Other containers whose end ends the task."""
    missing: frozenset[str] = frozenset()
    parts: Mapping[str, Any] = attrs.field(factory=dict, repr=False)
    """The description without what is missing."""
    digests: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """Of what may be missing: enough to tell whether it differs."""


def pack(
    job: Job,
    identity: Identity,
    *,
    container: str | None = None,
    essential: Iterable[str] = (),
    spill: Spill = _NO_SPILL,
) -> str:
    """
    Return the record of a launch: with the overrides beside it, `unpack` makes `Job.describe` of it again.

    It holds no secret values, and neither command nor environment, which are in the overrides anyway.
    """
    said = job.describe()
    usual = _usual_description()
    content: dict[str, Any] = {
        "v": 1,
        "i": [identity.namespace, identity.key, identity.attempt, identity.placement],
        "d": {
            name: value
            for name, value in said.items()
            if name not in {"command", "env"} and (name not in usual or usual[name] != value)
        },
    }
    if (container or job.container_name) != job.container_name:
        content["c"] = container
    if others := sorted(essential):
        content["e"] = others
    if own := sorted(set(identity.variables) & set(job.env)):
        content["o"] = own  # otherwise, a variable of ours
    if RECORD in job.env:
        content["r"] = job.env[RECORD]
    if spill:
        content["s"] = {
            "command": spill.command,
            "env": sorted(spill.env),
            "files": bool(spill.files),
            "digests": {name: _digest(said[name]) for name in ("command", "env")},
        }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def unpack(task: Json, definition: Json | None = None) -> Packed | None:
    """
    Return what the record of *task* says, or None if it has none that can be read.

    *definition* is the body of its task definition, for what was too long for the overrides (`needs_definition`).
    """
    found = _record(task)
    if found is None:
        return None
    content, override = found
    try:
        return _unpacked(content, override, definition)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError):
        return None  # not written by us, or by a version that is not ours


def needs_definition(task: Json) -> bool:
    """Whether `unpack` needs the task definition as well."""
    found = _record(task)
    spilled = found[0].get("s") if found is not None else None
    return isinstance(spilled, Mapping) and bool(
        spilled.get("command") or (spilled.get("env") and not spilled.get("files"))
    )


def difference(description: Json, task: Json, definition: Json | None = None) -> tuple[str, ...]:
    """Name the fields in which the job of *task* differs from *description*; empty if it is the same."""
    there = unpack(task, definition)
    if there is None:
        return ("job",)
    digests = {name: _digest(description.get(name)) for name in there.missing}
    names = set(description) | set(there.parts) | there.missing
    return tuple(
        sorted(
            name
            for name in names
            if (
                digests[name] != there.digests.get(name)
                if name in there.missing
                else description.get(name) != there.parts.get(name)
            )
        )
    )


def _unpacked(content: Json, override: Json, definition: Json | None) -> Packed:
    namespace, key, attempt, placement = content["i"]
    if not (isinstance(namespace, str) and isinstance(key, str)):
        raise TypeError("not an identity")
    identity = Identity(namespace=namespace, key=key, attempt=int(attempt), placement=int(placement))
    parts = {**_usual_description(), **content["d"]}
    container = str(content.get("c") or parts["container_name"])
    env = {pair["name"]: pair["value"] for pair in override.get("environment") or ()}
    env.pop(RECORD, None)
    for name in set(identity.variables) - set(content.get("o", ())):
        env.pop(name, None)
    if "r" in content:
        env[RECORD] = content["r"]
    command = override.get("command")
    spilled = content.get("s") or {}
    missing: set[str] = set()
    if spilled:
        own = _named_container(definition, container)
        elsewhere = {pair["name"]: pair["value"] for pair in (own or {}).get("environment") or ()}
        if spilled["command"]:
            command = (own or {}).get("command")
            missing |= {"command"} if command is None else set()
        if spilled["files"] or not set(spilled["env"]) <= set(elsewhere):
            missing |= {"env"}
        env |= {name: text for name, text in elsewhere.items() if name in spilled["env"]}
    parts |= {"command": list(command) if command is not None else None, "env": env}
    parts = {name: value for name, value in parts.items() if name not in missing}
    return Packed(
        description=None if missing else dict(parts),
        identity=identity,
        container=container,
        essential=tuple(str(name) for name in content.get("e", ())),
        missing=frozenset(missing),
        parts=parts,
        digests=dict(spilled.get("digests", {})),
    )


def _record(task: Json) -> tuple[Json, Json] | None:
    """The content of a task's record, and the override that it stands in."""
    overrides = task.get("overrides")
    for override in _maps(overrides.get("containerOverrides") if isinstance(overrides, Mapping) else None):
        for pair in _maps(override.get("environment")):
            if pair.get("name") == RECORD:
                content = _decoded(_text(pair.get("value")))
                return None if content is None else (content, override)
    return None


@functools.lru_cache(maxsize=256)
def _decoded(text: str) -> Json | None:
    try:
        reader = zlib.decompressobj()
        raw = reader.decompress(base64.b64decode(text, validate=True), _LONGEST_RECORD)
        content = json.loads(raw) if reader.eof else None
    except (binascii.Error, zlib.error, ValueError, RecursionError):
        return None
    return content if isinstance(content, Mapping) and isinstance(content.get("d"), Mapping) else None


@functools.cache
def _usual_description() -> Json:
    return {**Job(image="x").describe(), "image": None}


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _named_container(definition: Json | None, name: str) -> Json | None:
    parts = _maps((definition or {}).get("containerDefinitions"))
    return next((part for part in parts if part.get("name") == name), None)


# ---- reading what AWS says -----------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _from_epoch(seconds: float) -> datetime:
    # What a reply tells is taken in by several, who keep it: one object for all of them.
    return datetime.fromtimestamp(seconds, UTC)


def moment(value: object) -> datetime | None:
    """Return the moment that a reply (datetime, or seconds) or an event (ISO text) tells; None if it tells none."""
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            return _from_epoch(value)
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _said(value: object) -> str:
    """The text of a field that says why; what is no text says something that we do not know."""
    return value.strip() if isinstance(value, str) else "" if value is None else repr(value)[:200]


def _maps(value: object) -> Iterator[Json]:
    return (part for part in value if isinstance(part, Mapping)) if isinstance(value, (list, tuple)) else iter(())


def _exit_code(container: Json) -> int | None:
    code = container.get("exitCode")
    return code if isinstance(code, int) and not isinstance(code, bool) else None


TOLD_AT_A_GLANCE: Final = ("taskArn", "version", "lastStatus", "desiredStatus")
"""What tells whether anything of a task has changed."""


def task_arn(task: Json) -> str:
    """Return the ARN of a task as it was described."""
    return _text(task.get("taskArn"))


def definition_arn(task: Json) -> str:
    """Return the ARN of its task definition, with the revision."""
    return _text(task.get("taskDefinitionArn"))


def owner(task: Json) -> str:
    """Return its ``startedBy``: of ours, what `started_by` returns."""
    return _text(task.get("startedBy"))


def created_at(task: Json) -> datetime | None:
    """Return when it was made."""
    return moment(task.get("createdAt"))


def statuses(task: Json) -> str:
    """Return where a task is and where it is going, in ECS's words."""
    return f"{task.get('lastStatus')}/{task.get('desiredStatus')}"


def version(task: Json) -> int:
    """Return which change of the task this shows: it only grows, so that late news can be told from new."""
    found = task.get("version")
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def is_stopped(task: Json) -> bool:
    """Whether it is over."""
    return _PHASES.get(_text(task.get("lastStatus"))) is Phase.ENDED


def own_container(task: Json) -> str:
    """Return the name of the job's own container, as far as the task itself tells; empty if it does not."""
    packed = unpack(task)
    if packed is not None:
        return packed.container
    names = [_text(part.get("name")) for part in _others(task, "")]
    return names[0] if len(names) == 1 else ""


@attrs.frozen(kw_only=True)
class Home:
    """Where the tasks of a backend are."""

    account: str
    region: str
    cluster: str
    """Its short name."""


def launched(task: Json, namespace: str, *, home: Home) -> Packed | None:
    """
    Return what the record of *task* says if it is provably a launch of *namespace* in *home*, else None.

    No mark alone is a proof: ``startedBy`` and tags are free text for whoever may call RunTask, and a prefix may be
    shared. Both marks of a launch have to be there and name the same key, in an ARN of the place that was asked.
    """
    found = _TASK_ARN.match(task_arn(task))
    # Short ARNs of before 2018 do not name their cluster; the record does, that ECS keeps.
    cluster = (found["cluster"] if found is not None else "") or cluster_name(_text(task.get("clusterArn")))
    if found is None or (found["account"], found["region"], cluster) != (home.account, home.region, home.cluster):
        return None
    packed = unpack(task)
    if packed is None or packed.identity.namespace != namespace:
        return None
    return packed if owner(task) == started_by(namespace, packed.identity.key) else None


def started(reply: Json) -> Json | None:
    """Return the task that a RunTask has started, if it has."""
    return next(_maps(reply.get("tasks")), None)


def all_started(reply: Json) -> list[Json]:
    """Return every task that a RunTask has started, in an order that is the same each time AWS tells of them."""
    return sorted(_maps(reply.get("tasks")), key=task_arn)


def is_on_fargate(request: Json) -> bool:
    """Whether Fargate counts a launch: its rate is of tasks, not of calls."""
    providers = {part.get("capacityProvider") for part in _maps(request.get("capacityProviderStrategy"))}
    return request.get("launchType") == "FARGATE" or bool(providers & {"FARGATE", "FARGATE_SPOT"})


def is_spot(request: Json) -> bool:
    """Whether Fargate Spot counts a launch."""
    return any(
        part.get("capacityProvider") == "FARGATE_SPOT" for part in _maps(request.get("capacityProviderStrategy"))
    )


def has_failures(reply: Json) -> bool:
    """Whether a RunTask reply tells why there is no task."""
    return next(_maps(reply.get("failures")), None) is not None


def stopping(reply: Json) -> Json:
    """Return the task that a StopTask tells to stop."""
    task = reply.get("task")
    return task if isinstance(task, Mapping) else {}


def request_id(reply: Json) -> str:
    """Return what AWS asks for when one asks AWS."""
    meta = reply.get("ResponseMetadata")
    return _text(meta.get("RequestId")) if isinstance(meta, Mapping) else ""


def has_active_cluster(reply: Json) -> bool:
    """Whether DescribeClusters knows a cluster that takes tasks."""
    return any(part.get("status") == "ACTIVE" for part in _maps(reply.get("clusters")))


def cluster_arn(reply: Json) -> str:
    """Return the ARN of the cluster that DescribeClusters tells of; empty if there is none."""
    return next((_text(part.get("clusterArn")) for part in _maps(reply.get("clusters"))), "")


def has_log_group(reply: Json, name: str) -> bool:
    """Whether DescribeLogGroups knows the group of exactly this name."""
    return any(part.get("logGroupName") == name for part in _maps(reply.get("logGroups")))


def registered_at(body: Json) -> datetime | None:
    """Return when a task definition was registered."""
    return moment(body.get("registeredAt"))


def log_place(body: Json, arn: str) -> tuple[str, dict[str, str]] | None:
    """Return the log group of a definition's containers and their streams for the task *arn*; None: not in awslogs."""
    groups: dict[str, dict[str, str]] = {}
    for part in _maps(body.get("containerDefinitions")):
        log = part.get("logConfiguration")
        options = log.get("options") if isinstance(log, Mapping) and log.get("logDriver") == "awslogs" else None
        if isinstance(options, Mapping) and options.get("awslogs-group") and options.get("awslogs-stream-prefix"):
            name = _text(part.get("name"))
            stream = log_stream(_text(options["awslogs-stream-prefix"]), name, arn)
            groups.setdefault(_text(options["awslogs-group"]), {})[stream] = name
    return max(groups.items(), key=lambda item: len(item[1]), default=None)


def log_regions(body: Json) -> frozenset[str]:
    """Return the regions that the lines of a definition's containers go to."""
    regions: set[str] = set()
    for part in _maps(body.get("containerDefinitions")):
        log = part.get("logConfiguration")
        options = log.get("options") if isinstance(log, Mapping) and log.get("logDriver") == "awslogs" else None
        if isinstance(options, Mapping) and options.get("awslogs-region"):
            regions.add(_text(options["awslogs-region"]))
    return frozenset(regions)


def default_log_place(group: LogGroup, container: str, arn: str) -> tuple[str, dict[str, str]]:
    """Return where a container's lines are if its definition was ours."""
    return group.name, {log_stream(group.stream_prefix, container, arn): container}


def _others(task: Json, own: str) -> list[Json]:
    """The containers beside the job's own that somebody defined: AWS injects some of its own."""
    return [
        part
        for part in _maps(task.get("containers"))
        if _text(part.get("name")) != own and not _text(part.get("name")).startswith(_INJECTED)
    ]


# ---- a task becomes a snapshot -------------------------------------------------------------------------------------


class _Verdict(NamedTuple):
    cause: Cause
    transient: bool = False
    advice: str = ""
    reason: str = ""
    """Ours, put before AWS's words."""


def snapshot(task: Json, container: str, *, source: str, seen_at: datetime, before: Snapshot | None = None) -> Snapshot:
    """
    Say what *task* shows, as DescribeTasks, RunTask, StopTask or an event describes it.

    *container* is the name of the job's own; empty, the only one that nobody injected counts. *before* is what was
    seen earlier: a phase never goes back, an end stays, and what was seen on the way may be all that tells which of
    two containers ended first.
    """
    if before is not None and before.ended:
        return before
    seen = _Seen.of(task, container)
    phase = max(seen.phase(source), before.phase if before is not None else Phase.PENDING)
    verdict = _verdict(seen, before) if phase is Phase.ENDED else _on_the_way(seen) if phase is Phase.STOPPING else None
    if phase is Phase.STOPPING and verdict is None and before is not None and before.cause is not None:
        verdict = _Verdict(before.cause, before.transient, before.advice)
    created, begun, over = seen.times()
    if before is not None and before.created_at == created:
        created = before.created_at  # one object for both: there may be ten thousand
    if verdict is not None and verdict.cause is Cause.COULD_NOT_START:
        begun = None
    reason = seen.reason(verdict)
    ended = phase is Phase.ENDED
    # Neither changes, and not every reply tells.
    capacity = (before.capacity if before is not None else "") or seen.capacity()
    platform = (before.platform if before is not None else "") or seen.platform()
    return Snapshot(
        phase=phase,
        cause=verdict.cause if verdict is not None else None,
        reason=reason,
        exit_code=seen.exit_code if phase >= Phase.STOPPING else None,
        created_at=created,
        started_at=begun if phase >= Phase.RUNNING else None,
        ended_at=over if ended else None,
        capacity=capacity,
        platform=platform,
        transient=verdict.transient if verdict is not None else False,
        advice=_advice(seen, verdict) if ended and verdict is not None else "",
        proof=Proof(source=source, seen_at=seen_at, evidence=seen.evidence()) if ended else None,
    )


def missing(
    arn: str, *, seen_at: datetime, last: Snapshot | None = None, source: str = "describe", unwatched: bool = False
) -> Snapshot:
    """
    Return the end of a task that ECS no longer knows, long after it should have shown up.

    *unwatched*: for so long nobody looked that it may have ended in any way, and been dropped.
    """
    if last is not None and last.ended:
        return last
    gone = "ECS no longer knows the task (MISSING); it keeps a stopped one for about an hour"
    url = console_url(arn)
    return Snapshot(
        phase=Phase.ENDED,
        cause=Cause.UNRECOGNISED if unwatched else Cause.VANISHED,
        reason=f"{gone}, and nobody has looked at it for as long" if unwatched else gone,
        exit_code=last.exit_code if last is not None else None,
        created_at=last.created_at if last is not None else None,
        started_at=last.started_at if last is not None else None,
        capacity=last.capacity if last is not None else "",
        platform=last.platform if last is not None else "",
        advice="run it again if its work may be done twice; nothing proves how it ended"
        + (f"; see {url}" if url else ""),
        proof=Proof(source=source, seen_at=seen_at, evidence=f"MISSING: {arn}"),
    )


@attrs.frozen
class _Seen:
    """A task, read with care: every field may be absent, null or of another type."""

    task: Json
    own: Json | None
    """The job's own container; None if it is not there, or there twice."""
    own_name: str
    others: list[Json]
    stop_code: str
    stopped_reason: str
    own_reason: str
    exit_code: int | None

    @classmethod
    def of(cls, task: Json, container: str) -> _Seen:
        if not container:
            candidates = _others(task, "")
            container = _text(candidates[0].get("name")) if len(candidates) == 1 else ""
        named = [part for part in _maps(task.get("containers")) if _text(part.get("name")) == container]
        own = named[0] if len(named) == 1 and container else None
        return cls(
            task=task,
            own=own,
            own_name=container,
            others=_others(task, container),
            stop_code=_said(task.get("stopCode")),
            stopped_reason=_said(task.get("stoppedReason")),
            own_reason=_said(own.get("reason")) if own is not None else "",
            exit_code=_exit_code(own) if own is not None else None,
        )

    @property
    def is_odd(self) -> bool:
        """Whether a container has no name: then which one is the job's own is no more than a guess."""
        return not all(_text(part.get("name")) for part in _maps(self.task.get("containers")))

    def phase(self, source: str) -> Phase:
        found = _PHASES.get(_text(self.task.get("lastStatus")))
        if found is Phase.ENDED:
            # A replayed RunTask tells of a stopped task no more than that it has stopped: that is for DescribeTasks.
            is_stub = source == "run-task" and not (self.stop_code or self.task.get("containers"))
            return Phase.STOPPING if is_stub else Phase.ENDED
        if found is Phase.STOPPING or self.task.get("desiredStatus") == "STOPPED":
            return Phase.STOPPING
        if found is None:  # a state newer than this library: not an end
            return Phase.RUNNING if moment(self.task.get("startedAt")) else Phase.PENDING
        if found is Phase.RUNNING and self.own is not None and _is_over(self.own):
            return Phase.STOPPING
        return found

    def capacity(self) -> str:
        """The capacity provider, or else the launch type: ``FARGATE_SPOT``, ``FARGATE``, ``EC2``, …"""
        # Cut: a name that is shown to people. Interned: thousands of tasks share one.
        return sys.intern((_text(self.task.get("capacityProviderName")) or _text(self.task.get("launchType")))[:255])

    def platform(self) -> str:
        """The operating system and processor, where ECS tells both."""
        family = _text(self.task.get("platformFamily")).partition(" ")[0].partition("_")[0].lower()
        processor = next(
            (
                _text(part.get("value")).lower()
                for part in _maps(self.task.get("attributes"))
                if part.get("name") == "ecs.cpu-architecture"
            ),
            "",
        )
        return sys.intern(f"{family}/{processor}") if family in {"linux", "windows"} and processor else ""

    def times(self) -> tuple[datetime | None, datetime | None, datetime | None]:
        """When it was made, began to run and ended; put in order, AWS's clocks are not one clock."""
        created = created_at(self.task)
        begun = moment(self.task.get("startedAt"))
        over = next(
            (at for key in ("executionStoppedAt", "stoppingAt", "stoppedAt") if (at := moment(self.task.get(key)))),
            None,
        )
        if begun is None:
            over = moment(self.task.get("stoppedAt")) or over
        if created is not None and begun is not None:
            begun = max(begun, created)
        if over is not None:
            over = max([over, *(at for at in (created, begun) if at is not None)])
        return created, begun, over

    @property
    def was_running(self) -> bool:
        """Whether anything tells that a container ever ran."""
        parts = ([self.own] if self.own is not None else []) + self.others
        return (
            any(moment(self.task.get(key)) for key in ("startedAt", "executionStoppedAt"))
            or any(_exit_code(part) is not None for part in parts)
            or (self.own is not None and bool(_text(self.own.get("runtimeId"))))
        )

    @property
    def texts(self) -> list[str]:
        """Everything that AWS gave as a reason, the widest first."""
        return [
            text
            for text in (
                self.stopped_reason,
                self.own_reason,
                *(_said(part.get("reason")) for part in self.others),
            )
            if text
        ]

    def essential(self) -> tuple[list[str], bool]:
        """The other containers whose end ends the task, and whether that is known; else all of them may be."""
        packed = unpack(self.task)
        if packed is not None:
            return list(packed.essential), True
        return [_text(part.get("name")) for part in self.others], False

    def other(self, name: str) -> Json | None:
        return next((part for part in self.others if _text(part.get("name")) == name), None)

    @property
    def deadline_passed(self) -> bool:
        """
        Whether the watchdog has slept its time. It cannot say 0 otherwise: told to end before that, it says 143.

        Whatever the job says then is no more than how it takes SIGTERM, and 0 is no success.
        """
        watchdog = self.other(DEADLINE_CONTAINER)
        return watchdog is not None and _exit_code(watchdog) == 0 and not _said(watchdog.get("reason"))

    def reason(self, verdict: _Verdict | None) -> str:
        """AWS's own words, with what was concluded from them where they do not say it."""
        own = (
            f"{self.own_name}: {self.own_reason}"
            if self.own_reason and self.own_reason not in self.stopped_reason
            else ""
        )
        others = [
            f"{_text(part.get('name'))}: {said}"
            for part in self.others
            if (said := _said(part.get("reason"))) and said not in self.stopped_reason
        ]
        stopped = (
            self.stopped_reason.removeprefix(_STOP_PREFIX) if self.stop_code == "UserInitiated" else self.stopped_reason
        )
        concluded = verdict.reason if verdict is not None else ""
        return "; ".join(text for text in (concluded, stopped, own, *others) if text)

    def evidence(self) -> str:
        said = {
            "lastStatus": _said(self.task.get("lastStatus")),
            "stopCode": self.stop_code,
            "stoppedReason": self.stopped_reason,
            f"{self.own_name}.exitCode": "" if self.exit_code is None else str(self.exit_code),
            f"{self.own_name}.reason": self.own_reason,
            "task": task_arn(self.task),
            "see": console_url(task_arn(self.task)),
        }
        return ", ".join(f"{key}={value}" for key, value in said.items() if value)


def _is_over(container: Json) -> bool:
    return _text(container.get("lastStatus")) == "STOPPED" or _exit_code(container) is not None


def _is_out_of_memory(container: Json) -> bool:
    said = _said(container.get("reason")).lower()
    return any(text in said for text in _OUT_OF_MEMORY)


def _row(*texts: str) -> _Row | None:
    """The row of the first text that is in the table."""
    found = (row for text in texts if (low := text.lower()) for row in _REASONS if row.matches(low))
    return next(found, None)


def _refused_later(text: str) -> _Row | None:
    """The row of a launch that was accepted first and refused later, as capacity providers do it."""
    row = _failure(text.lower().removeprefix("taskfailedtostart:").strip())
    return None if row is None else _Row(_Sort.START, "", passes=row.kind != "fatal", advice=row.advice)


def _on_the_way(seen: _Seen) -> _Verdict | None:
    """What is known of a task that has not stopped yet, or None."""
    if seen.stop_code in _BY_STOP_CODE:
        return _of_sort(_BY_STOP_CODE[seen.stop_code], seen)
    if seen.stop_code == "TaskFailedToStart":
        return _Verdict(Cause.COULD_NOT_START)
    if seen.own is None or seen.stop_code not in {"", "EssentialContainerExited"}:
        return None
    essential, known = seen.essential()
    gone = [name for name in essential if (part := seen.other(name)) is not None and _is_over(part)]
    if _is_over(seen.own):
        return _Verdict(Cause.EXITED) if not gone and seen.exit_code is not None and not seen.own_reason else None
    if seen.deadline_passed:
        return _deadline()
    # Of several, one that says 143 was told to end because of another.
    gone.sort(key=lambda name: _was_told_to_end(seen.other(name)))
    return _sidecar_first(seen, gone[0]) if gone and known else None


def _verdict(seen: _Seen, before: Snapshot | None) -> _Verdict:
    """Say why a stopped task is over: codes before words, words before exit codes, and nothing without proof."""
    if seen.stop_code in _BY_STOP_CODE:
        return _of_sort(_BY_STOP_CODE[seen.stop_code], seen)
    # The widest reason is about the task as a whole: an interruption has no code on some infrastructure.
    task_row = _row(seen.stopped_reason)
    if seen.stop_code == "TaskFailedToStart":
        return _could_not_start(seen)
    if task_row is not None and task_row.sort in {_Sort.RECLAIMED, _Sort.HOST}:
        return _of_sort(task_row.sort, seen)
    if task_row is not None and task_row.sort is _Sort.STOPPED and not seen.stop_code:
        return _of_sort(_Sort.STOPPED, seen)
    if seen.own is not None and _is_out_of_memory(seen.own):
        return _Verdict(Cause.OUT_OF_MEMORY, advice="give it more memory_gib, or let Retry(out_of_memory=…) do so")
    own_row = _row(seen.own_reason)
    if own_row is not None and own_row.sort is _Sort.START:
        return _Verdict(Cause.COULD_NOT_START, own_row.passes, own_row.advice)
    if own_row is not None and own_row.sort is _Sort.FAULT:
        return _fault(seen, own_row)
    if seen.stop_code == "EssentialContainerExited" or (
        not seen.stop_code and task_row is not None and task_row.sort is _Sort.EXITED
    ):
        return _exited(seen, before)
    if task_row is not None and task_row.sort is _Sort.START and not seen.was_running:
        return _Verdict(Cause.COULD_NOT_START, task_row.passes, task_row.advice)
    if task_row is not None and task_row.sort is _Sort.FAULT:
        return _fault(seen, task_row)
    if not seen.stop_code and not seen.texts:
        return _without_words(seen)
    return _unrecognised(seen)


def _of_sort(sort: _Sort, seen: _Seen) -> _Verdict:
    if sort is _Sort.STOPPED:
        return _Verdict(Cause.STOPPED_ON_REQUEST)
    again = "run it again; Retry(interruptions=…) does so by itself"
    if sort is _Sort.RECLAIMED:
        on_spot = "; a ladder that ends in Capacity.fargate() leaves Spot after some tries"
        return _Verdict(Cause.RECLAIMED, transient=True, advice=again + on_spot)
    return _Verdict(Cause.HOST_FAILED, transient=True, advice=again, reason="" if seen.texts else seen.stop_code)


def _fault(seen: _Seen, row: _Row) -> _Verdict:
    cause = Cause.HOST_FAILED if seen.was_running else Cause.COULD_NOT_START
    return _Verdict(cause, row.passes, row.advice)


def _could_not_start(seen: _Seen) -> _Verdict:
    texts = [text for text in seen.texts if (row := _row(text)) is None or row.sort is not _Sort.EXITED]
    row = _row(*texts) or _refused_later(seen.stopped_reason)
    if row is not None:
        return _Verdict(Cause.COULD_NOT_START, row.passes, row.advice)
    # Words that AWS never used before: one more try costs little, if nothing ran.
    fresh = not seen.was_running
    return _Verdict(Cause.COULD_NOT_START, fresh, f"{_ONCE} read AWS's reason: this library does not know it")


def _without_words(seen: _Seen) -> _Verdict:
    if not seen.was_running:
        return _Verdict(Cause.COULD_NOT_START, transient=True, advice=f"{_ONCE} ask AWS with the task's ARN")
    if seen.exit_code:
        return _Verdict(Cause.EXITED, advice=_READ)
    return _unrecognised(seen)  # exit code 0 and nothing else: a Spot task that ended politely would look the same


_READ: Final = "read the last lines of its output; Retry(failures=…) repeats a job that fails now and then"


def _exited(seen: _Seen, before: Snapshot | None) -> _Verdict:
    """Judge a task that ended because an essential container did: whether it was the job's own, and how."""
    essential, known = seen.essential()
    if seen.own is None:
        return _unrecognised(seen)
    doubtful = [name for name in essential if not _was_told_to_end(seen.other(name))]
    if before is not None and before.cause is Cause.SIDECAR_ENDED:
        return _sidecar_first(seen, (doubtful or essential or [""])[0])
    was_first = before is not None and before.cause is Cause.EXITED
    if seen.deadline_passed and not was_first:
        return _deadline()
    if seen.exit_code is None:
        return _no_exit_code(seen, essential, known=known)
    if seen.exit_code == 0 and (seen.own_reason or seen.is_odd):
        return _unrecognised(seen)  # words that AWS never used before explain this end, or the reply is no whole one
    if was_first or not doubtful:
        return _Verdict(Cause.EXITED, advice=_READ if seen.exit_code else "")
    if seen.exit_code in {0, _SIGTERM, _SIGKILL}:
        return _perhaps_sidecar(seen, doubtful, known=known)
    return _Verdict(Cause.EXITED, advice=_READ)


def _was_told_to_end(container: Json | None) -> bool:
    """Whether a sidecar's exit code proves that it was stopped after the job's own container, not before it."""
    # 137 does not: the kernel kills for memory, too, and does not always say so.
    return container is not None and _exit_code(container) == _SIGTERM


def _failed_by_itself(container: Json | None) -> bool:
    code = _exit_code(container) if container is not None else None
    return code not in {None, 0, _SIGTERM, _SIGKILL} or (container is not None and _is_out_of_memory(container))


def _perhaps_sidecar(seen: _Seen, doubtful: list[str], *, known: bool) -> _Verdict:
    """
    Judge an end that may be a sidecar's doing: ECS does not tell which container ended first.

    A job that is told to end because its sidecar failed may well say exit code 0, with its work undone.
    """
    failed = [name for name in doubtful if _failed_by_itself(seen.other(name))]
    well = [name for name in doubtful if (part := seen.other(name)) is not None and _exit_code(part) == 0]
    if known and failed:
        return _sidecar_first(seen, failed[0])
    if known and well and seen.exit_code != 0:  # the job was told to end, and the sidecar not
        return _sidecar_first(seen, well[0])
    if seen.exit_code != 0:
        return _Verdict(Cause.EXITED, advice=_READ)
    names = ", ".join(repr(name) for name in doubtful)
    return _Verdict(
        Cause.UNRECOGNISED,
        reason=f"exit code 0, but the essential container {names} may have ended first and taken the job with it",
        advice="look at the output; essential=False suits a sidecar that does not end with 143 when it is told to",
    )


def _deadline() -> _Verdict:
    return _Verdict(
        Cause.DEADLINE,
        reason=f"the hard deadline passed: {DEADLINE_CONTAINER!r} had slept its time before the job was over",
        advice="give it a longer timeout and a later watchdog, or a larger size",
    )


def _sidecar_first(seen: _Seen, name: str) -> _Verdict:
    part = seen.other(name)
    code = _exit_code(part) if part is not None else None
    if part is not None and _is_out_of_memory(part):
        how = "was killed at its memory limit"
    else:
        how = "ended" if code is None else f"ended with exit code {code}"
    return _Verdict(
        Cause.SIDECAR_ENDED,
        reason=f"the essential sidecar {name!r} {how}",
        advice=(
            "give the watchdog an image that has a program 'sleep': Sidecar.watchdog(…, image=…)"
            if name == DEADLINE_CONTAINER
            else f"read the output of {name!r}; set essential=False if the job can go on without it"
        ),
    )


def _no_exit_code(seen: _Seen, essential: list[str], *, known: bool) -> _Verdict:
    own_ran = seen.own is not None and bool(_text(seen.own.get("runtimeId")))
    started_at = moment(seen.task.get("startedAt"))
    row = _row(*(_said(part.get("reason")) for part in seen.others))
    if row is not None and row.sort in {_Sort.START, _Sort.FAULT} and not own_ran and started_at is None:
        return _Verdict(Cause.COULD_NOT_START, row.passes, row.advice)
    gone = [name for name in essential if (part := seen.other(name)) is not None and _exit_code(part) is not None]
    if known and gone and not own_ran:
        return _sidecar_first(seen, gone[0])
    return _Verdict(
        Cause.UNRECOGNISED,
        reason="ECS recorded no exit code",
        advice="look at the output and at the platform's own record: the job may have done its work",
    )


def _unrecognised(seen: _Seen) -> _Verdict:
    fresh = not seen.was_running
    return _Verdict(
        Cause.UNRECOGNISED,
        transient=fresh,
        reason=f"stopped for a reason that this library does not know (stop code: {seen.stop_code or 'none'})",
        advice=(
            f"{_ONCE} read AWS's reason: this library does not know it"
            if fresh
            else "look at the output and at AWS's reason before running it again: it may have done its work"
        ),
    )


def _advice(seen: _Seen, verdict: _Verdict) -> str:
    """What to try, and where to look. Of an end that was asked for, the one who asked knows more."""
    url = console_url(task_arn(seen.task))
    if not verdict.advice or not url:
        return verdict.advice
    return f"{verdict.advice}; see {url}"


# ---- events --------------------------------------------------------------------------------------------------------


def event_of(text: str) -> Json | None:
    """Return the event that a message holds, if it is EventBridge's about a task; a message may hold anything."""
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, Mapping) or (event.get("source"), event.get("detail-type")) != _TASK_EVENT:
        return None
    return event if is_task_arn(task_arn(event_task(event))) else None


def event_task(event: Json) -> Json:
    """Return the task as an event shows it: nearly as DescribeTasks does."""
    task = event.get("detail")
    return task if isinstance(task, Mapping) else {}


def is_consistent(event: Json, owner_of_task: str = "") -> bool:
    """Whether account, region, cluster and owner are those of the task named; an owner unknown is any of ours."""
    task = event_task(event)
    arn = _TASK_ARN.match(task_arn(task))
    if arn is None or version(task) < 1:
        return False
    place = f"arn:{arn['partition']}:ecs:{arn['region']}:{arn['account']}:cluster/"
    cluster = _text(task.get("clusterArn"))
    return (
        event.get("account") == arn["account"]
        and event.get("region") == arn["region"]
        and cluster.startswith(place)
        and cluster_name(cluster) == (arn["cluster"] or cluster_name(cluster))
        and (owner(task) == owner_of_task if owner_of_task else owner(task).startswith(_OWNER_PREFIX))
    )


def gist(task: Json) -> Hashable:
    """Return what an event and a look at the same version of a task agree on, if both are true."""
    codes = sorted((_text(part.get("name")), _exit_code(part)) for part in _others(task, "") if _is_over(part))
    return _text(task.get("lastStatus")), _text(task.get("stopCode")), tuple(map(str, codes))


# ---- a refusal becomes words ---------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Refusal:
    """Why a launch was not taken."""

    reason: str
    """AWS's words."""
    retryable: bool
    """Another launch may work."""
    kind: RefusalKind
    advice: str
    nothing_started: bool = True
    """False if AWS's answer does not tell whether a task was started."""


def placement_failure(failures: object) -> Refusal:
    """Say what ``failures[]`` of RunTask mean. The reply was an HTTP 200, and nothing was started."""
    found = list(_maps(failures))
    said = [_said(part.get("reason")) for part in found]
    details = [_said(part.get("detail")) for part in found]
    reason = "; ".join(text for text in dict.fromkeys([*said, *details]) if text) or "ECS gave no reason"
    rows = [_failure(text.lower()) for text in said]
    row = next((row for row in rows if row is not None), None)
    if row is None:
        advice = "this library does not know this reason; nothing was started, so it is tried again"
        return Refusal(reason=reason, retryable=True, kind="transient", advice=advice)
    return Refusal(reason=reason, retryable=row.kind != "fatal", kind=row.kind, advice=row.advice)


def launch_error(code: str, message: str) -> Refusal:
    """Say what an exception of RunTask or RegisterTaskDefinition means."""
    low = message.lower()
    row = next((row for row in _ERRORS if row.matches(code, low)), None)
    if row is None:
        advice = "AWS refuses the request itself: compare its words with the job and the backend's options"
        return Refusal(reason=message, retryable=False, kind="fatal", advice=advice)
    advice = row.advice
    if denied := _DENIED.search(message):
        what = f" on {denied['what']}" if denied["what"] else ""
        advice = f"allow {denied['action']}{what} for the credentials in use"
    return Refusal(
        reason=message,
        retryable=row.kind != "fatal",
        kind=row.kind,
        advice=advice,
        nothing_started=row.nothing_started,
    )


def refusal(reply: Json) -> Refusal:
    """Say why a RunTask reply holds no task."""
    return placement_failure(reply.get("failures"))


def is_inactive(message: str) -> bool:
    """Whether AWS says that a task definition was deregistered."""
    return "is inactive" in message.lower()


def _failure(low: str) -> _Failure | None:
    return next((row for row in _FAILURES if row.matches(low)), None) if low else None
