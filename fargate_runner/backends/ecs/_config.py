"""
What an ECS backend, and one job on it, may be told beyond the neutral fields of `Job`.

Frozen values, valid once built: what AWS would refuse whatever the account looks like is refused here, by an
`InvalidJob` that names field, value and fix. Ranges are those of the Amazon ECS API Reference (autumn 2026).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, Self, TypeAlias, TypeVar, get_args

import attrs

from fargate_runner._errors import InvalidJob

__all__ = ["Capacity", "EbsVolume", "EcsOptions", "EfsVolume", "LogGroup", "Network", "Provider", "Roles", "Volume"]

Compatibility = Literal["FARGATE", "EC2", "MANAGED_INSTANCES"]
LogMode = Literal["blocking", "non-blocking"]
PropagateTags = Literal["TASK_DEFINITION", "NONE"]

_T = TypeVar("_T")

_FARGATE_PROVIDERS: Final = frozenset({"FARGATE", "FARGATE_SPOT"})
# Amazon CloudWatch Logs API Reference, PutRetentionPolicy.
_RETENTIONS: Final = (
    *(1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731),
    *(1096, 1827, 2192, 2557, 2922, 3288, 3653),
)
# Amazon ECS API Reference, TaskManagedEBSVolumeConfiguration; "standard" is not supported on Fargate.
_EBS_SIZES: Final[Mapping[str, tuple[int, int]]] = {
    "gp2": (1, 16384),
    "gp3": (1, 16384),
    "io1": (4, 16384),
    "io2": (4, 16384),
    "st1": (125, 16384),
    "sc1": (125, 16384),
    "standard": (1, 1024),
}
_EBS_IOPS: Final[Mapping[str, tuple[int, int]]] = {"gp3": (3000, 16000), "io1": (100, 64000), "io2": (100, 256000)}
_IOPS_REQUIRED: Final = frozenset({"io1", "io2"})
_FILE_SYSTEMS: Final = ("ext3", "ext4", "xfs")

_SUBNET: Final = re.compile(r"subnet-[0-9a-f]{8,40}\Z")
_SECURITY_GROUP: Final = re.compile(r"sg-[0-9a-f]{8,40}\Z")
_FILE_SYSTEM: Final = re.compile(r"(fs-[0-9a-f]{8,40}|arn:aws[a-z-]*:elasticfilesystem:[^\s]+)\Z")
_ACCESS_POINT: Final = re.compile(r"(fsap-[0-9a-f]{8,40}|arn:aws[a-z-]*:elasticfilesystem:[^\s]+)\Z")
_SNAPSHOT: Final = re.compile(r"snap-[0-9a-f]{8,40}\Z")
_ROLE_ARN: Final = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]{1,512}\Z", re.ASCII)
_ROLE_NAME: Final = re.compile(r"[\w+=,.@-]{1,64}\Z", re.ASCII)
_PROVIDER: Final = re.compile(r"[A-Za-z0-9_-]{1,255}\Z")
_PLATFORM: Final = re.compile(r"(LATEST|\d{1,3}\.\d{1,3}\.\d{1,3})\Z", re.ASCII)
_GROUP: Final = re.compile(r"[.\-_/#A-Za-z0-9]{1,512}\Z")
_PREFIX: Final = re.compile(r"[^:*\s]{1,200}\Z")
_BUFFER: Final = re.compile(r"[1-9]\d{0,9}[kKmMgG]?\Z", re.ASCII)
_VOLUME: Final = re.compile(r"[A-Za-z0-9_-]{1,255}\Z")
_REGION: Final = re.compile(r"[a-z]{2,}(-[a-z]+)+-\d+\Z", re.ASCII)
_FAMILY: Final = re.compile(r"[A-Za-z0-9_-]{1,255}(:[1-9]\d{0,9})?\Z", re.ASCII)
_FAMILY_ARN: Final = re.compile(
    r"arn:aws[a-z-]*:ecs:[a-z0-9-]+:\d{12}:task-definition/[A-Za-z0-9_-]{1,255}(:[1-9]\d{0,9})?\Z", re.ASCII
)
_USER: Final = re.compile(r"[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+)?\Z")


# ---- checks --------------------------------------------------------------------------------------------------------


def _several(field: str, value: Iterable[_T], kind: type[_T], example: str) -> tuple[_T, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise InvalidJob(field, value, f"expected a list, got {type(value).__name__}", f"write {example}")
    parts = tuple(value)
    for part in parts:
        if not isinstance(part, kind):
            problem = f"expected a list of {kind.__name__}, got a {type(part).__name__} in it"
            raise InvalidJob(field, part, problem, f"write {example}")
    return parts


def _check_shape(field: str, value: object, shape: re.Pattern[str], problem: str, fix: str) -> None:
    if not isinstance(value, str) or not shape.match(value):
        raise InvalidJob(field, value, problem, fix)


def _check_bool(field: str, value: object, *, none: bool = False) -> None:
    if not isinstance(value, bool) and not (none and value is None):
        raise InvalidJob(field, value, f"expected a bool, got {type(value).__name__}", "write True or False")


def _check_number(field: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidJob(field, value, "expected a whole number in range", f"choose {low} to {high}")


def _check_choice(field: str, value: object, choices: Iterable[object]) -> None:
    choices = tuple(choices)
    if value not in choices:
        raise InvalidJob(field, value, "no such choice", f"use one of {', '.join(map(str, choices))}")


def _check_kind(field: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        problem = f"expected {kind.__name__}, got {type(value).__name__}"
        raise InvalidJob(field, value, problem, f"write {kind.__name__}(…)")


def _check_platform(field: str, value: object) -> None:
    if value is not None:
        _check_shape(field, value, _PLATFORM, "not a platform version", "write 'LATEST', or one like '1.4.0'")


def _check_path(field: str, value: object) -> None:
    bad = not isinstance(value, str) or not value.startswith("/") or "\0" in value or ":" in value
    if bad or value == "/":
        raise InvalidJob(field, value, "expected an absolute path below the root", "write it like '/mnt/data'")


# ---- where a task is plugged in ------------------------------------------------------------------------------------


def _subnets(value: Iterable[str]) -> tuple[str, ...]:
    return _several("network.subnets", value, str, '["subnet-…", …]')


def _security_groups(value: Iterable[str]) -> tuple[str, ...]:
    return _several("network.security_groups", value, str, '["sg-…", …]')


@attrs.frozen(kw_only=True)
class Network:
    """
    Where a task is plugged in.

    Name a subnet in each zone that may be used: when capacity is short in one, the next launch begins with another.
    Without ``public_ip``, the subnets need a NAT gateway or endpoints, or no image can be pulled. No security groups
    means the default one of the VPC.
    """

    subnets: tuple[str, ...] = attrs.field(converter=_subnets)
    security_groups: tuple[str, ...] = attrs.field(default=(), converter=_security_groups)
    public_ip: bool = False

    def __attrs_post_init__(self) -> None:
        for field, ids, low, high, shape, example in (
            ("network.subnets", self.subnets, 1, 16, _SUBNET, "subnet-0a1b2c3d4e5f67890"),
            ("network.security_groups", self.security_groups, 0, 5, _SECURITY_GROUP, "sg-0a1b2c3d4e5f67890"),
        ):
            if not low <= len(ids) <= high:
                raise InvalidJob(field, ids, f"{len(ids)} of them", f"give {low} to {high}")
            if len(set(ids)) < len(ids):
                raise InvalidJob(field, ids, "the same one twice", "name each once")
            for one in ids:
                _check_shape(field, one, shape, "not an id of this kind", f"write it like {example!r}")
        _check_bool("network.public_ip", self.public_ip)


@attrs.frozen(kw_only=True)
class Roles:
    """
    Who acts. ``execution`` pulls the image, reads secrets and writes logs; ``task`` is what the job itself may do.

    ``task`` may be the plain name of a role, as in RegisterTaskDefinition; ``execution`` is an ARN.
    """

    execution: str | None = None
    task: str | None = None

    def __attrs_post_init__(self) -> None:
        fix = "write it like 'arn:aws:iam::111122223333:role/name'"
        if self.execution is not None:
            _check_shape("roles.execution", self.execution, _ROLE_ARN, "not the ARN of a role", fix)
        if self.task is not None and not (isinstance(self.task, str) and _ROLE_NAME.match(self.task)):
            problem = "neither the ARN of a role nor the name of one"
            _check_shape("roles.task", self.task, _ROLE_ARN, problem, fix)

    def over(self, default: Roles | None) -> Roles:
        """Return these roles, each that is missing taken from *default*."""
        if default is None:
            return self
        return Roles(execution=self.execution or default.execution, task=self.task or default.task)


# ---- what it runs on -----------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Provider:
    """One capacity provider of a strategy: its share (``weight``), and how many tasks it gets before shares count."""

    name: str
    weight: int = 1
    base: int = 0

    def __attrs_post_init__(self) -> None:
        fix = "use the provider's name, such as 'FARGATE_SPOT'"
        _check_shape("capacity.provider.name", self.name, _PROVIDER, "not the name of a capacity provider", fix)
        _check_number("capacity.provider.weight", self.weight, 0, 1000)
        _check_number("capacity.provider.base", self.base, 0, 100000)


def _strategy(value: Iterable[Provider]) -> tuple[Provider, ...]:
    return _several("capacity.strategy", value, Provider, "[Provider(name=…), …]")


@attrs.frozen(kw_only=True)
class Capacity:
    """
    What a task runs on: a launch type, or a strategy of capacity providers. Build one with a class method.

    Where a ladder of several is taken, each launch uses the next rung and the last one stays: two tries on Spot, then
    on demand, is ``[Capacity.spot(), Capacity.spot(), Capacity.fargate()]``.
    """

    launch_type: Literal["FARGATE", "EC2"] | None = None
    strategy: tuple[Provider, ...] = attrs.field(default=(), converter=_strategy)
    managed_instances: bool = False
    """Whether the providers of the strategy are of ECS Managed Instances."""
    platform_version: str | None = None

    def __attrs_post_init__(self) -> None:
        if (self.launch_type is None) == (not self.strategy):
            # ECS refuses both; with neither, what runs depends on a default of the cluster.
            fix = "use Capacity.fargate(), spot(), ec2() or providers(…)"
            raise InvalidJob("capacity", self, "it is a launch type or a strategy, one of the two", fix)
        if self.launch_type is not None:
            _check_choice("capacity.launch_type", self.launch_type, ("FARGATE", "EC2"))
        _check_bool("capacity.managed_instances", self.managed_instances)
        _check_platform("capacity.platform_version", self.platform_version)
        self._check_strategy()
        if self.platform_version is not None and not self.is_fargate:
            raise InvalidJob(
                "capacity.platform_version", self.platform_version, "only Fargate has platform versions", "leave it out"
            )

    def _check_strategy(self) -> None:
        names = [provider.name for provider in self.strategy]
        if len(names) > 20:
            raise InvalidJob("capacity.strategy", names, f"{len(names)} providers", "give 20 at most")
        if len(set(names)) < len(names):
            raise InvalidJob("capacity.strategy", names, "the same provider twice", "name each once")
        ours = _FARGATE_PROVIDERS.intersection(names)
        if ours and len(ours) < len(names):
            problem = "Fargate and other providers cannot be in one strategy"
            raise InvalidJob("capacity.strategy", names, problem, "make them two rungs of a ladder")
        if ours and self.managed_instances:
            raise InvalidJob("capacity.managed_instances", True, f"{min(ours)} is Fargate", "leave it out")
        if self.managed_instances and not names:
            fix = "use Capacity.providers(…, managed_instances=True)"
            raise InvalidJob("capacity.managed_instances", True, "they are reached through a provider only", fix)
        if names and not any(provider.weight for provider in self.strategy):
            problem = "no provider has a weight, so none would be used"
            raise InvalidJob("capacity.strategy", names, problem, "give one a weight of 1")
        if sum(provider.base > 0 for provider in self.strategy) > 1:
            raise InvalidJob("capacity.strategy", names, "only one provider may have a base", "keep one of them")

    @classmethod
    def fargate(cls, *, platform_version: str | None = None) -> Self:
        """Fargate on demand."""
        return cls(launch_type="FARGATE", platform_version=platform_version)

    @classmethod
    def spot(cls, *, platform_version: str | None = None) -> Self:
        """Fargate Spot: cheaper, and taken back with two minutes of notice. The cluster must be associated with it."""
        return cls(strategy=(Provider(name="FARGATE_SPOT"),), platform_version=platform_version)

    @classmethod
    def ec2(cls) -> Self:
        """The EC2 instances registered with the cluster; no instance is started for the task."""
        return cls(launch_type="EC2")

    @classmethod
    def providers(
        cls,
        strategy: Mapping[str, int] | Sequence[Provider],
        *,
        managed_instances: bool = False,
        platform_version: str | None = None,
    ) -> Self:
        """Capacity providers, as ``{name: weight}`` or a list of `Provider`; Managed Instances are reached so only."""
        parts: Iterable[Provider]
        if isinstance(strategy, Mapping):
            parts = [Provider(name=name, weight=weight) for name, weight in strategy.items()]
        else:
            parts = strategy
        return cls(strategy=_strategy(parts), managed_instances=managed_instances, platform_version=platform_version)

    @property
    def is_fargate(self) -> bool:
        """Whether tasks run on Fargate."""
        return self.launch_type == "FARGATE" or any(p.name in _FARGATE_PROVIDERS for p in self.strategy)

    @property
    def compatibility(self) -> Compatibility:
        """What a task definition has to be fit for."""
        if self.is_fargate:
            return "FARGATE"
        return "MANAGED_INSTANCES" if self.managed_instances else "EC2"


def ladder(value: Capacity | Iterable[Capacity] | None) -> tuple[Capacity, ...] | None:
    """Return *value* as rungs, one for each launch; the last stays."""
    if value is None:
        return None
    if isinstance(value, Capacity):
        return (value,)
    rungs = _several("capacity", value, Capacity, "Capacity.fargate(), or a list of several")
    if not rungs:
        raise InvalidJob("capacity", rungs, "an empty ladder", "write Capacity.fargate(), or leave it out")
    return rungs


# ---- logs ----------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class LogGroup:
    """
    Where the output goes in CloudWatch Logs. Streams are named ``<stream_prefix>/<container>/<task id>``.

    ``mode`` is always said explicitly: since June 2025 AWS's default is ``non-blocking``, which drops lines when a job
    writes faster than they are sent. ``retention_days`` None leaves the group as it is, and keeps a new one for ever.
    """

    name: str = "/fargate-runner"
    create: bool = True
    """Make the group if it is not there."""
    retention_days: int | None = None
    mode: LogMode = "blocking"
    max_buffer: str | None = None
    """How much may wait in ``non-blocking`` mode, such as ``"25m"``."""
    stream_prefix: str = "fr"
    region: str | None = None
    """Another region than the backend's."""

    def __attrs_post_init__(self) -> None:
        fix = "use letters, digits and . - _ / #, 512 at most"
        _check_shape("log_group.name", self.name, _GROUP, "not the name of a log group", fix)
        _check_bool("log_group.create", self.create)
        if self.retention_days is not None:
            days = self.retention_days
            if isinstance(days, bool) or days not in _RETENTIONS:
                fix = f"use one of {', '.join(map(str, _RETENTIONS))}, or None"
                raise InvalidJob("log_group.retention_days", days, "CloudWatch Logs keeps no such time", fix)
        _check_choice("log_group.mode", self.mode, get_args(LogMode))
        if self.max_buffer is not None:
            if self.mode == "blocking":
                problem = "a blocking log driver has no such buffer"
                raise InvalidJob(
                    "log_group.max_buffer", self.max_buffer, problem, 'leave it out, or mode="non-blocking"'
                )
            _check_shape("log_group.max_buffer", self.max_buffer, _BUFFER, "not a size", "write it like '25m'")
        prefix_fix = "use letters, digits and -, without : or *"
        _check_shape("log_group.stream_prefix", self.stream_prefix, _PREFIX, "not a prefix of log streams", prefix_fix)
        if self.region is not None:
            _check_shape("log_group.region", self.region, _REGION, "not a region", "write it like 'eu-west-1'")


# ---- volumes -------------------------------------------------------------------------------------------------------


def _sharing(value: Iterable[str]) -> tuple[str, ...]:
    return _several("volume.shared_with", value, str, '["sidecar", …]')


@attrs.frozen(kw_only=True)
class EfsVolume:
    """
    A directory of an EFS file system, mounted at ``path``; a job and its next attempts see the same files.

    ``iam`` uses the task role to mount; it and an ``access_point`` need ``transit_encryption``.
    """

    path: str
    file_system_id: str
    root_directory: str | None = None
    access_point: str | None = None
    iam: bool = False
    transit_encryption: bool = True
    read_only: bool = False
    name: str | None = None
    shared_with: tuple[str, ...] = attrs.field(default=(), converter=_sharing)
    """Sidecars that see it, too, at the same path."""

    def __attrs_post_init__(self) -> None:
        _check_volume(self)
        fix = "write it like 'fs-0a1b2c3d4e5f67890'"
        _check_shape("volume.file_system_id", self.file_system_id, _FILE_SYSTEM, "not the id of a file system", fix)
        for field in ("iam", "transit_encryption", "read_only"):
            _check_bool(f"volume.{field}", getattr(self, field))
        root = self.root_directory
        if root is not None and (not isinstance(root, str) or not root.startswith("/")):
            raise InvalidJob("volume.root_directory", root, "expected an absolute path", "write it like '/jobs'")
        if self.access_point is not None:
            fix = "write it like 'fsap-0a1b2c3d4e5f67890'"
            _check_shape("volume.access_point", self.access_point, _ACCESS_POINT, "not the id of an access point", fix)
            if root not in {None, "/"}:
                problem = "an access point has a root of its own"
                raise InvalidJob("volume.root_directory", root, problem, "leave it out")
        if (self.iam or self.access_point is not None) and not self.transit_encryption:
            problem = "iam and access points need encryption in transit"
            raise InvalidJob("volume.transit_encryption", False, problem, "leave it out")


@attrs.frozen(kw_only=True)
class EbsVolume:
    """
    A disk of the task's own, mounted at ``path``, made at the launch and deleted at the end.

    ``role`` is the infrastructure role by which ECS makes it. Either ``size_gib`` or ``snapshot_id`` is needed.
    """

    path: str
    role: str
    size_gib: int | None = None
    snapshot_id: str | None = None
    volume_type: str = "gp3"
    iops: int | None = None
    throughput: int | None = None
    """In MiB/s, gp3 only."""
    file_system: str | None = None
    encrypted: bool | None = None
    kms_key: str | None = None
    read_only: bool = False
    name: str | None = None
    shared_with: tuple[str, ...] = attrs.field(default=(), converter=_sharing)
    """Sidecars that see it, too, at the same path."""

    def __attrs_post_init__(self) -> None:
        _check_volume(self)
        fix = "give the ARN of a role with AmazonECSInfrastructureRolePolicyForVolumes"
        _check_shape("volume.role", self.role, _ROLE_ARN, "not the ARN of a role", fix)
        _check_choice("volume.volume_type", self.volume_type, _EBS_SIZES)
        if self.size_gib is None and self.snapshot_id is None:
            raise InvalidJob("volume.size_gib", None, "neither a size nor a snapshot", "give one of the two")
        if self.size_gib is not None:
            _check_number("volume.size_gib", self.size_gib, *_EBS_SIZES[self.volume_type])
        if self.snapshot_id is not None:
            fix = "write it like 'snap-0a1b2c3d4e5f67890'"
            _check_shape("volume.snapshot_id", self.snapshot_id, _SNAPSHOT, "not the id of a snapshot", fix)
        self._check_speed()
        if self.file_system is not None:
            _check_choice("volume.file_system", self.file_system, _FILE_SYSTEMS)
        _check_bool("volume.encrypted", self.encrypted, none=True)
        _check_bool("volume.read_only", self.read_only)
        if self.kms_key is not None:
            if not isinstance(self.kms_key, str) or not self.kms_key:
                raise InvalidJob("volume.kms_key", self.kms_key, "not a key", "give its ARN, id or alias")
            if self.encrypted is not True:
                raise InvalidJob("volume.kms_key", self.kms_key, "the disk is not encrypted", "write encrypted=True")

    def _check_speed(self) -> None:
        kind = self.volume_type
        if self.iops is None:
            if kind in _IOPS_REQUIRED:
                low, high = _EBS_IOPS[kind]
                raise InvalidJob("volume.iops", None, f"{kind} needs them", f"choose {low} to {high}")
        elif kind not in _EBS_IOPS:
            raise InvalidJob("volume.iops", self.iops, f"{kind} has a fixed speed", "leave it out, or use gp3")
        else:
            _check_number("volume.iops", self.iops, *_EBS_IOPS[kind])
        if self.throughput is not None:
            if kind != "gp3":
                raise InvalidJob("volume.throughput", self.throughput, "only gp3 takes it", "leave it out, or use gp3")
            _check_number("volume.throughput", self.throughput, 125, 1000)


Volume: TypeAlias = EfsVolume | EbsVolume


def _check_volume(volume: Volume) -> None:
    _check_path("volume.path", volume.path)
    if volume.name is not None:
        fix = "use letters, digits, _ and -"
        _check_shape("volume.name", volume.name, _VOLUME, "not the name of a volume", fix)


def _volumes(value: Iterable[Volume] | None) -> tuple[Volume, ...] | None:
    if value is None:
        return None
    if isinstance(value, (EfsVolume, EbsVolume)):
        return (value,)
    parts = _several("volumes", value, object, "[EfsVolume(…), …]")
    kept = tuple(part for part in parts if isinstance(part, (EfsVolume, EbsVolume)))
    if len(kept) < len(parts):
        wrong = next(part for part in parts if not isinstance(part, (EfsVolume, EbsVolume)))
        problem = f"expected an EfsVolume or an EbsVolume, got {type(wrong).__name__}"
        raise InvalidJob("volumes", wrong, problem, "write [EfsVolume(…), …]")
    return kept


# ---- one job -------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class EcsOptions:
    """
    What one job, or by default all jobs of a backend, may say to ECS. None means what the backend says.

    With ``task_definition``, an existing one is used as it is: ``"family"`` (its newest revision, pinned at the first
    launch), ``"family:revision"`` or an ARN. Command, environment, size, roles and storage of the job still apply;
    what an override cannot carry (image, secrets, sidecars, volumes, user) is the definition's own.
    """

    task_definition: str | None = None
    capacity: tuple[Capacity, ...] | None = attrs.field(default=None, converter=ladder)
    network: Network | None = None
    roles: Roles | None = None
    volumes: tuple[Volume, ...] | None = attrs.field(default=None, converter=_volumes)
    platform_version: str | None = None
    """Fargate's, for rungs of the ladder that say none."""
    enable_execute_command: bool | None = None
    """Let people look inside with ECS Exec; needs a task role that may open its channels."""
    propagate_tags: PropagateTags | None = None
    enable_managed_tags: bool | None = None
    """Have ECS tag the task with its cluster."""
    group: str | None = None
    init_process: bool | None = None
    """Run a small init as PID 1 that passes on SIGTERM and buries children; True unless said otherwise."""
    read_only_root: bool | None = None
    user: str | None = None
    """Who the job's process is: ``user``, ``uid``, ``user:group`` or ``uid:gid``."""

    def __attrs_post_init__(self) -> None:
        if self.task_definition is not None:
            given = self.task_definition
            if not isinstance(given, str) or not (_FAMILY.match(given) or _FAMILY_ARN.match(given)):
                fix = "write 'family', 'family:revision' or its ARN"
                raise InvalidJob("ecs.task_definition", given, "not the name of a task definition", fix)
        _check_kind("ecs.network", self.network, Network)
        _check_kind("ecs.roles", self.roles, Roles)
        _check_platform("ecs.platform_version", self.platform_version)
        if self.propagate_tags is not None:
            _check_choice("ecs.propagate_tags", self.propagate_tags, get_args(PropagateTags))
        for field in ("enable_execute_command", "enable_managed_tags", "init_process", "read_only_root"):
            _check_bool(f"ecs.{field}", getattr(self, field), none=True)
        if self.group is not None and (
            not isinstance(self.group, str) or not self.group or not self.group.isprintable() or len(self.group) > 255
        ):
            raise InvalidJob("ecs.group", self.group, "not the name of a group", "write 1 to 255 printable characters")
        if self.user is not None:
            _check_shape("ecs.user", self.user, _USER, "not a user", "write it like 'app', '1000' or '1000:1000'")
        if self.volumes:
            self._check_volumes(self.volumes)
        if self.task_definition is not None:
            for field in ("volumes", "init_process", "read_only_root", "user"):
                if getattr(self, field) not in {None, ()}:
                    problem = "an existing task definition says this itself, and no override can change it"
                    raise InvalidJob(f"ecs.{field}", getattr(self, field), problem, "leave one of the two out")

    @staticmethod
    def _check_volumes(volumes: tuple[Volume, ...]) -> None:
        if sum(isinstance(volume, EbsVolume) for volume in volumes) > 1:
            # Amazon ECS API Reference, Volume: one volume configured at launch for each task definition.
            raise InvalidJob(
                "ecs.volumes", len(volumes), "a task takes one EBS volume", "keep one, and use EFS beside it"
            )
        for field in ("path", "name"):
            values = [getattr(volume, field) for volume in volumes if getattr(volume, field) is not None]
            if len(set(values)) < len(values):
                raise InvalidJob("ecs.volumes", values, f"two volumes share a {field}", "give each its own")

    def over(self, default: EcsOptions | None) -> EcsOptions:
        """Return these options, everything that they leave open taken from *default*."""
        if default is None:
            return self
        given: dict[str, Any] = {
            field.name: getattr(self, field.name)
            for field in attrs.fields(EcsOptions)
            if getattr(self, field.name) is not None
        }
        if self.roles is not None:
            given["roles"] = self.roles.over(default.roles)
        if self.task_definition is not None and default.task_definition is None:
            # What the backend says of definitions that it derives does not apply to one that exists.
            default = attrs.evolve(default, volumes=None, init_process=None, read_only_root=None, user=None)
        return attrs.evolve(default, **given)
