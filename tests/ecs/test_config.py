"""What an ECS backend may be told, and what is refused before anything is sent."""

from __future__ import annotations

import inspect
import json
import pickle
import re
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from fargate_runner import EcsBackend, InvalidJob, Job
from fargate_runner.backends import ecs
from fargate_runner.backends.ecs._config import (
    Capacity,
    EbsVolume,
    EcsOptions,
    EfsVolume,
    LogGroup,
    Network,
    Provider,
    Roles,
    ladder,
)

SUBNET = "subnet-0a1b2c3d"
ROLE = "arn:aws:iam::111122223333:role/service/fr-task"
FS = "fs-0a1b2c3d"

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no subnets": (lambda: Network(subnets=[]), "network.subnets"),
    "a subnet alone": (lambda: Network(subnets=SUBNET), "network.subnets"),
    "seventeen subnets": (lambda: Network(subnets=[f"subnet-{n:08x}" for n in range(17)]), "network.subnets"),
    "a subnet twice": (lambda: Network(subnets=[SUBNET, SUBNET]), "network.subnets"),
    "a network range": (lambda: Network(subnets=["10.0.0.0/24"]), "network.subnets"),
    "no text in it": (lambda: Network(subnets=[7]), "network.subnets"),  # type: ignore[list-item]
    "six groups": (
        lambda: Network(subnets=[SUBNET], security_groups=[f"sg-{n:08x}" for n in range(6)]),
        "network.security_groups",
    ),
    "the name of a group": (lambda: Network(subnets=[SUBNET], security_groups=["web"]), "network.security_groups"),
    "a public ip by word": (lambda: Network(subnets=[SUBNET], public_ip="yes"), "network.public_ip"),  # type: ignore[arg-type]
    "an execution role by name": (lambda: Roles(execution="fr-execution"), "roles.execution"),
    "an arn of something else": (lambda: Roles(task="arn:aws:s3:::bucket"), "roles.task"),
    "a role with a space": (lambda: Roles(task="my role"), "roles.task"),
    "a launch type and a strategy": (
        lambda: Capacity(launch_type="FARGATE", strategy=[Provider(name="FARGATE_SPOT")]),
        "capacity",
    ),
    "neither of them": (lambda: Capacity(), "capacity"),
    "an unknown launch type": (lambda: Capacity(launch_type="EXTERNAL"), "capacity.launch_type"),  # type: ignore[arg-type]
    "a negative weight": (lambda: Provider(name="asg", weight=-1), "capacity.provider.weight"),
    "too heavy a weight": (lambda: Provider(name="asg", weight=1001), "capacity.provider.weight"),
    "a weight of true": (lambda: Provider(name="asg", weight=True), "capacity.provider.weight"),
    "too large a base": (lambda: Provider(name="asg", base=100_001), "capacity.provider.base"),
    "a provider without a name": (lambda: Provider(name=""), "capacity.provider.name"),
    "no weight at all": (lambda: Capacity.providers({"a": 0, "b": 0}), "capacity.strategy"),
    "Fargate and another": (lambda: Capacity.providers({"FARGATE": 1, "asg": 1}), "capacity.strategy"),
    "two bases": (
        lambda: Capacity.providers([Provider(name="a", base=1), Provider(name="b", base=1)]),
        "capacity.strategy",
    ),
    "a provider twice": (lambda: Capacity.providers([Provider(name="a"), Provider(name="a")]), "capacity.strategy"),
    "twenty-one providers": (lambda: Capacity.providers({f"p{n}": 1 for n in range(21)}), "capacity.strategy"),
    "no providers": (lambda: Capacity.providers({}), "capacity"),
    "a provider by its name": (lambda: Capacity.providers("FARGATE_SPOT"), "capacity.strategy"),  # type: ignore[arg-type]
    "managed Fargate": (
        lambda: Capacity.providers({"FARGATE": 1}, managed_instances=True),
        "capacity.managed_instances",
    ),
    "managed instances alone": (
        lambda: Capacity(launch_type="EC2", managed_instances=True),
        "capacity.managed_instances",
    ),
    "a platform of EC2": (lambda: Capacity(launch_type="EC2", platform_version="1.4.0"), "capacity.platform_version"),
    "no platform version": (lambda: Capacity.fargate(platform_version="newest"), "capacity.platform_version"),
    "an empty ladder": (lambda: ladder([]), "capacity"),
    "a ladder of names": (lambda: ladder(["FARGATE"]), "capacity"),  # type: ignore[list-item]
    "a group with a space": (lambda: LogGroup(name="my logs"), "log_group.name"),
    "a retention of four days": (lambda: LogGroup(retention_days=4), "log_group.retention_days"),
    "a retention of true": (lambda: LogGroup(retention_days=True), "log_group.retention_days"),
    "an unknown mode": (lambda: LogGroup(mode="fast"), "log_group.mode"),  # type: ignore[arg-type]
    "a buffer when blocking": (lambda: LogGroup(max_buffer="4m"), "log_group.max_buffer"),
    "a buffer that is no size": (lambda: LogGroup(mode="non-blocking", max_buffer="big"), "log_group.max_buffer"),
    "a prefix with a colon": (lambda: LogGroup(stream_prefix="a:b"), "log_group.stream_prefix"),
    "a region that is none": (lambda: LogGroup(region="Ireland"), "log_group.region"),
    "a volume at the root": (lambda: EfsVolume(path="/", file_system_id=FS), "volume.path"),
    "a relative volume": (lambda: EfsVolume(path="data", file_system_id=FS), "volume.path"),
    "a file system by name": (lambda: EfsVolume(path="/d", file_system_id="data"), "volume.file_system_id"),
    "a root beside an access point": (
        lambda: EfsVolume(path="/d", file_system_id=FS, access_point="fsap-0a1b2c3d", root_directory="/x"),
        "volume.root_directory",
    ),
    "an access point in the clear": (
        lambda: EfsVolume(path="/d", file_system_id=FS, access_point="fsap-0a1b2c3d", transit_encryption=False),
        "volume.transit_encryption",
    ),
    "iam in the clear": (
        lambda: EfsVolume(path="/d", file_system_id=FS, iam=True, transit_encryption=False),
        "volume.transit_encryption",
    ),
    "a relative root": (
        lambda: EfsVolume(path="/d", file_system_id=FS, root_directory="x"),
        "volume.root_directory",
    ),
    "a disk of no size": (lambda: EbsVolume(path="/d", role=ROLE), "volume.size_gib"),
    "a disk too small for its type": (
        lambda: EbsVolume(path="/d", role=ROLE, size_gib=100, volume_type="st1"),
        "volume.size_gib",
    ),
    "a disk of an unknown type": (
        lambda: EbsVolume(path="/d", role=ROLE, size_gib=10, volume_type="gp9"),
        "volume.volume_type",
    ),
    "io2 without iops": (lambda: EbsVolume(path="/d", role=ROLE, size_gib=10, volume_type="io2"), "volume.iops"),
    "iops of gp2": (lambda: EbsVolume(path="/d", role=ROLE, size_gib=10, volume_type="gp2", iops=100), "volume.iops"),
    "too few iops": (lambda: EbsVolume(path="/d", role=ROLE, size_gib=10, iops=100), "volume.iops"),
    "throughput of io1": (
        lambda: EbsVolume(path="/d", role=ROLE, size_gib=10, volume_type="io1", iops=100, throughput=200),
        "volume.throughput",
    ),
    "too much throughput": (lambda: EbsVolume(path="/d", role=ROLE, size_gib=10, throughput=1001), "volume.throughput"),
    "a disk's role by name": (lambda: EbsVolume(path="/d", role="fr-ebs", size_gib=10), "volume.role"),
    "a snapshot by name": (lambda: EbsVolume(path="/d", role=ROLE, snapshot_id="latest"), "volume.snapshot_id"),
    "a windows disk": (
        lambda: EbsVolume(path="/d", role=ROLE, size_gib=10, file_system="ntfs"),
        "volume.file_system",
    ),
    "a key without encryption": (
        lambda: EbsVolume(path="/d", role=ROLE, size_gib=10, kms_key="alias/x"),
        "volume.kms_key",
    ),
    "two disks": (
        lambda: EcsOptions(
            volumes=[EbsVolume(path="/a", role=ROLE, size_gib=1), EbsVolume(path="/b", role=ROLE, size_gib=1)]
        ),
        "ecs.volumes",
    ),
    "two volumes at one place": (
        lambda: EcsOptions(volumes=[EfsVolume(path="/a", file_system_id=FS), EfsVolume(path="/a", file_system_id=FS)]),
        "ecs.volumes",
    ),
    "a volume that is none": (lambda: EcsOptions(volumes=["/data"]), "volumes"),  # type: ignore[list-item]
    "a definition with a space": (lambda: EcsOptions(task_definition="my job"), "ecs.task_definition"),
    "a revision of zero": (lambda: EcsOptions(task_definition="job:0"), "ecs.task_definition"),
    "a task's arn": (
        lambda: EcsOptions(task_definition="arn:aws:ecs:us-east-1:111122223333:task/jobs/0123"),
        "ecs.task_definition",
    ),
    "an existing definition and a user": (lambda: EcsOptions(task_definition="job", user="app"), "ecs.user"),
    "an existing definition and init": (
        lambda: EcsOptions(task_definition="job", init_process=False),
        "ecs.init_process",
    ),
    "a network by its subnet": (lambda: EcsOptions(network=SUBNET), "ecs.network"),  # type: ignore[arg-type]
    "roles by one role": (lambda: EcsOptions(roles=ROLE), "ecs.roles"),  # type: ignore[arg-type]
    "tags of a service": (lambda: EcsOptions(propagate_tags="SERVICE"), "ecs.propagate_tags"),  # type: ignore[arg-type]
    "a group without a name": (lambda: EcsOptions(group=""), "ecs.group"),
    "a user with a space": (lambda: EcsOptions(user="root root"), "ecs.user"),
    "exec by word": (lambda: EcsOptions(enable_execute_command="yes"), "ecs.enable_execute_command"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused_with_its_field_and_a_fix(case: str) -> None:
    build, field = REFUSED[case]

    with pytest.raises(InvalidJob) as refused:
        build()

    assert refused.value.field == field
    assert refused.value.fix


def test_what_is_at_the_edge_is_taken() -> None:
    network = Network(
        subnets=[f"subnet-{n:08x}" for n in range(16)], security_groups=[f"sg-{n:017x}" for n in range(5)]
    )
    capacity = Capacity.providers([Provider(name=f"p{n}", weight=1000 if n else 0, base=0) for n in range(20)])
    roles = Roles(execution=ROLE, task="fr-task")
    group = LogGroup(retention_days=3653, mode="non-blocking", max_buffer="25m", region="us-gov-west-1")
    disk = EbsVolume(
        path="/scratch", role=ROLE, size_gib=16384, iops=16000, throughput=1000, encrypted=True, kms_key="k"
    )

    assert len(network.subnets) == 16
    assert len(capacity.strategy) == 20
    assert (roles.task, group.retention_days, disk.size_gib) == ("fr-task", 3653, 16384)


@pytest.mark.parametrize(
    ("capacity", "is_fargate", "compatibility"),
    [
        (Capacity.fargate(), True, "FARGATE"),
        (Capacity.spot(platform_version="1.4.0"), True, "FARGATE"),
        (Capacity.providers({"FARGATE_SPOT": 4, "FARGATE": 1}), True, "FARGATE"),
        (Capacity.ec2(), False, "EC2"),
        (Capacity.providers({"asg": 1}), False, "EC2"),
        (Capacity.providers({"mi": 1}, managed_instances=True), False, "MANAGED_INSTANCES"),
    ],
)
def test_a_capacity_says_what_a_definition_must_be_fit_for(
    capacity: Capacity, is_fargate: bool, compatibility: str
) -> None:
    assert (capacity.is_fargate, capacity.compatibility) == (is_fargate, compatibility)


def test_one_capacity_is_a_ladder_of_one() -> None:
    assert EcsOptions(capacity=Capacity.ec2()).capacity == (Capacity.ec2(),)


def test_options_of_a_job_come_before_those_of_the_backend() -> None:
    backend = EcsOptions(
        capacity=Capacity.spot(), group="nightly", roles=Roles(execution=ROLE, task="reader"), read_only_root=True
    )

    both = EcsOptions(capacity=Capacity.ec2(), roles=Roles(task="writer"), enable_managed_tags=False).over(backend)

    assert both.capacity == (Capacity.ec2(),)
    assert (both.group, both.read_only_root, both.enable_managed_tags) == ("nightly", True, False)
    assert both.roles == Roles(execution=ROLE, task="writer")


def test_an_existing_definition_leaves_out_what_the_backend_says_of_derived_ones() -> None:
    backend = EcsOptions(
        user="app", init_process=True, volumes=[EfsVolume(path="/d", file_system_id=FS)], group="nightly"
    )

    both = EcsOptions(task_definition="job:3").over(backend)

    assert (both.user, both.init_process, both.volumes, both.group) == (None, None, None, "nightly")


def test_options_are_part_of_what_a_job_is_and_json() -> None:
    options = EcsOptions(
        capacity=[Capacity.spot(), Capacity.fargate()],
        network=Network(subnets=[SUBNET]),
        roles=Roles(task="t"),
        volumes=[EfsVolume(path="/d", file_system_id=FS), EbsVolume(path="/e", role=ROLE, size_gib=1)],
    )

    said = Job(image="x", ecs=options).describe()["ecs"]

    assert json.loads(json.dumps(said)) == said
    assert said["capacity"][0]["strategy"] == [{"name": "FARGATE_SPOT", "weight": 1, "base": 0}]
    assert Job(image="x", ecs=options).fingerprint != Job(image="x", ecs=attrs.evolve(options, group="g")).fingerprint


def test_options_can_be_hashed_compared_and_pickled() -> None:
    options = EcsOptions(capacity=Capacity.spot(), volumes=[EfsVolume(path="/d", file_system_id=FS)])

    again = pickle.loads(pickle.dumps(options))

    assert (again, hash(again)) == (options, hash(options))


@pytest.mark.parametrize("cls", [Network, Roles, Provider, Capacity, LogGroup, EfsVolume, EbsVolume, EcsOptions])
def test_values_are_frozen_and_take_names_only(cls: Any) -> None:
    fields = attrs.fields(cls)

    assert all(field.kw_only for field in fields)
    assert cls.__setattr__ is not object.__setattr__


def test_whatever_a_backend_takes_can_be_imported_from_a_public_place() -> None:
    takes = " ".join(str(each.annotation) for each in inspect.signature(EcsBackend).parameters.values())
    ours = set(re.findall(r"[A-Z]\w+", takes)) - {"None", "Any", "Mapping", "Sequence", "Callable"}

    assert ours - set(ecs.__all__) == set()
    assert {"Cadence", "LogCadence"} <= ours
