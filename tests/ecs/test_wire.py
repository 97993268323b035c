"""What is asked of ECS, and how it is read back: pure functions, no clock, no network."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import attrs
import botocore.session
import pytest
from botocore.serialize import create_serializer
from botocore.validate import ParamValidator

from fargate_runner import Cause, HealthCheck, Identity, InvalidJob, Job, Phase, Secret, SecretRef, Sidecar, Snapshot
from fargate_runner._backend import launch_token
from fargate_runner.backends.ecs import _wire
from fargate_runner.backends.ecs._config import (
    Capacity,
    EbsVolume,
    EcsOptions,
    EfsVolume,
    LogGroup,
    Network,
    Provider,
    Roles,
)
from fargate_runner.backends.ecs._wire import Spill

ME = Identity(namespace="billing", key="invoices/2026-05", attempt=1)
NOW = datetime(2026, 5, 6, 12, tzinfo=UTC)
ARN = "arn:aws:ecs:us-east-1:111122223333:task/jobs/0123456789abcdef0123456789abcdef"
ROLE = "arn:aws:iam::111122223333:role/fr-task"
SECRET = "arn:aws:secretsmanager:us-east-1:111122223333:secret:db-AbCdEf:password::"
PARAMETER = "arn:aws:ssm:us-east-1:111122223333:parameter/jobs/token"
MODEL: Any = botocore.session.get_session().get_service_model("ecs")
NETWORK = Network(subnets=["subnet-0000000a", "subnet-0000000b", "subnet-0000000c"])
JOB = Job(image="registry/job:1", command=["python", "-m", "job"], env={"DAY": "2026-05-06"})


def defined(job: Job = JOB, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "roles": Roles(execution=ROLE),
        "log_group": LogGroup(),
        "options": EcsOptions(),
        "region": "us-east-1",
    } | changes
    body = _wire.definition(job, **options)
    check("RegisterTaskDefinition", {"family": "f", **body})
    return body


def asked(job: Job = JOB, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "cluster": "jobs",
        "task_definition": "f:1",
        "body": changes.pop("body", None) or defined(job),
        "token": launch_token("jobs", ME),
        "capacity": Capacity.fargate(),
        "network": NETWORK,
        "options": EcsOptions(),
    } | changes
    request = _wire.run_task(job, options.pop("identity", ME), **options)
    check("RunTask", request)
    return request


def check(operation: str, request: dict[str, Any]) -> None:
    report = ParamValidator().validate(request, MODEL.operation_model(operation).input_shape)
    assert not report.has_errors(), report.generate_report()


def own(body: dict[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = body["containerDefinitions"][0]
    return part


def override(request: dict[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = request["overrides"]["containerOverrides"][0]
    return part


def variables(request: dict[str, Any]) -> dict[str, str]:
    return {pair["name"]: pair["value"] for pair in override(request)["environment"]}


# ---- task definitions ----------------------------------------------------------------------------------------------


def test_a_definition_holds_what_no_override_can_carry() -> None:
    job = JOB.with_(
        entry_point=["/init"],
        working_directory="/srv",
        stop_timeout=timedelta(seconds=90.5),
        architecture="ARM64",
        secrets={"DB": SecretRef(SECRET), "TOKEN": SecretRef(PARAMETER)},
    )

    body = defined(job, roles=Roles(execution=ROLE, task="reader"))

    assert own(body) == {
        "name": "main",
        "image": "registry/job:1",
        "essential": True,
        "stopTimeout": 91,
        "entryPoint": ["/init"],
        "workingDirectory": "/srv",
        "secrets": [{"name": "DB", "valueFrom": SECRET}, {"name": "TOKEN", "valueFrom": PARAMETER}],
        "linuxParameters": {"initProcessEnabled": True},
        "logConfiguration": {
            "logDriver": "awslogs",
            "options": {
                "awslogs-group": "/fargate-runner",
                "awslogs-region": "us-east-1",
                "awslogs-stream-prefix": "fr",
                "mode": "blocking",
            },
        },
    }
    assert body["runtimePlatform"] == {"cpuArchitecture": "ARM64", "operatingSystemFamily": "LINUX"}
    assert (body["executionRoleArn"], body["taskRoleArn"], body["networkMode"]) == (ROLE, "reader", "awsvpc")
    assert "ephemeralStorage" not in body


WATCHDOG = Sidecar.watchdog(timedelta(hours=2), image="registry.example/busybox:1")


def test_a_watchdog_is_essential_sleeps_and_hears_its_sigterm() -> None:
    body = defined(attrs.evolve(JOB, sidecars=[WATCHDOG]))

    (found,) = (part for part in body["containerDefinitions"] if part["name"] == WATCHDOG.name)
    assert (found["essential"], found["entryPoint"], found["command"]) == (True, ["sleep"], ["7200"])
    assert found["linuxParameters"] == {"initProcessEnabled": True}


@pytest.mark.parametrize("depends_on", [None, {}, {"proxy": "HEALTHY"}], ids=str)
def test_nothing_runs_before_its_deadline_does(depends_on: Any) -> None:
    proxy = Sidecar(name="proxy", image="p:1", health_check=HealthCheck(command=["true"]))
    body = defined(attrs.evolve(JOB, sidecars=[proxy, WATCHDOG], depends_on=depends_on))

    waits = {part["name"]: part.get("dependsOn", []) for part in body["containerDefinitions"]}
    armed = {"containerName": WATCHDOG.name, "condition": "START"}
    assert armed in waits["main"]
    assert waits[WATCHDOG.name] == []
    assert armed in waits["proxy"]


@pytest.mark.parametrize(
    "change",
    [
        {"command": ["other"]},
        {"env": {"DAY": "2026-05-07"}},
        {"vcpu": 4, "memory_gib": 16},
        {"ephemeral_storage_gib": 100},
        {"tags": {"team": "a"}},
        {"timeout": timedelta(hours=1)},
        {"name": "other", "key": "k"},
    ],
)
def test_jobs_that_differ_in_what_an_override_carries_share_a_definition(change: dict[str, Any]) -> None:
    assert defined(JOB.with_(**change)) == defined(JOB)


@pytest.mark.parametrize(
    "change",
    [
        {"image": "registry/job:2"},
        {"entry_point": ["sh"]},
        {"working_directory": "/srv"},
        {"architecture": "ARM64"},
        {"stop_timeout": timedelta(seconds=31)},
        {"secrets": {"DB": SecretRef(SECRET)}},
        {"sidecars": [Sidecar(name="s", image="s")]},
        {"container_name": "other"},
    ],
)
def test_jobs_that_differ_in_anything_else_do_not(change: dict[str, Any]) -> None:
    one, other = _wire.definition_hash(defined(JOB.with_(**change))), _wire.definition_hash(defined(JOB))

    assert one != other


def test_a_hash_does_not_depend_on_the_order_of_what_was_said() -> None:
    one = JOB.with_(secrets={"A": SecretRef(SECRET), "B": SecretRef(PARAMETER)})
    other = JOB.with_(secrets={"B": SecretRef(PARAMETER), "A": SecretRef(SECRET)})

    assert _wire.definition_hash(defined(one)) == _wire.definition_hash(defined(other))


def test_a_hash_is_the_same_on_every_machine() -> None:
    text = '{"a":[1],"b":"\\u00fc"}'

    assert _wire.definition_hash({"b": "ü", "a": [1]}) == hashlib.sha256(text.encode()).hexdigest()


def test_the_base_size_is_the_smallest_that_holds_the_sidecars() -> None:
    alone = defined(JOB)
    beside = defined(
        JOB.with_(vcpu=4, memory_gib=16, sidecars=[Sidecar(name="s", image="s", vcpu=0.5, memory_gib=1.5)])
    )

    assert (alone["cpu"], alone["memory"]) == ("256", "512")
    assert (beside["cpu"], beside["memory"]) == ("512", "2048")
    assert (beside["containerDefinitions"][1]["cpu"], beside["containerDefinitions"][1]["memory"]) == (512, 1536)


def test_sidecars_are_containers_beside_the_job() -> None:
    check_it = HealthCheck(command=["curl", "-f", "localhost"], start_period=timedelta(seconds=9))
    db = Sidecar(
        name="db", image="db:1", env={"B": "2", "A": "1"}, command=["run"], essential=True, health_check=check_it
    )
    setup = Sidecar(name="setup", image="s:1", secrets={"P": SecretRef(SECRET)}, depends_on={"db": "HEALTHY"})
    job = JOB.with_(sidecars=[db, setup], depends_on={"setup": "SUCCESS", "db": "HEALTHY"})

    main, first, second = defined(job)["containerDefinitions"]

    assert main["dependsOn"] == [
        {"containerName": "db", "condition": "HEALTHY"},
        {"containerName": "setup", "condition": "SUCCESS"},
    ]
    assert (first["essential"], second["essential"]) == (True, False)
    assert first["environment"] == [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]
    assert first["command"] == ["run"]
    assert first["healthCheck"] == {
        "command": ["CMD", "curl", "-f", "localhost"],
        "interval": 30,
        "timeout": 5,
        "retries": 3,
        "startPeriod": 9,
    }
    assert second["secrets"] == [{"name": "P", "valueFrom": SECRET}]
    assert second["dependsOn"] == [{"containerName": "db", "condition": "HEALTHY"}]
    assert "linuxParameters" not in first


def test_a_job_that_names_no_condition_waits_for_all_sidecars_to_start() -> None:
    body = defined(JOB.with_(sidecars=[Sidecar(name="b", image="x"), Sidecar(name="a", image="x")]))

    assert own(body)["dependsOn"] == [
        {"containerName": "a", "condition": "START"},
        {"containerName": "b", "condition": "START"},
    ]


def test_a_health_check_for_a_shell_stays_one() -> None:
    side = Sidecar(name="s", image="s", health_check=HealthCheck(command=["CMD-SHELL", "exit 0"]))

    assert defined(JOB.with_(sidecars=[side]))["containerDefinitions"][1]["healthCheck"]["command"][0] == "CMD-SHELL"


def test_a_secret_by_value_is_refused_unless_it_is_kept_somewhere() -> None:
    side = Sidecar(name="s", image="s", secrets={"PIN": Secret("canary")})
    job = JOB.with_(secrets={"TOKEN": Secret("canary")}, sidecars=[side])

    kept = defined(job, secret_names={"TOKEN": "/jobs/token", "s/PIN": "/jobs/pin"})
    with pytest.raises(InvalidJob) as refused:
        defined(job)

    assert own(kept)["secrets"] == [{"name": "TOKEN", "valueFrom": "/jobs/token"}]
    assert kept["containerDefinitions"][1]["secrets"] == [{"name": "PIN", "valueFrom": "/jobs/pin"}]
    assert refused.value.field == "secrets['TOKEN']"
    assert "canary" not in json.dumps(kept) + str(refused.value)


def test_a_job_without_an_image_has_no_definition() -> None:
    with pytest.raises(InvalidJob, match="image"):
        defined(Job(command=["ls"]))


def test_a_log_group_may_drop_lines_only_where_that_was_asked_for() -> None:
    group = LogGroup(name="/mine", mode="non-blocking", max_buffer="25m", stream_prefix="p", region="eu-west-1")

    options = own(defined(log_group=group))["logConfiguration"]["options"]

    assert options == {
        "awslogs-group": "/mine",
        "awslogs-region": "eu-west-1",
        "awslogs-stream-prefix": "p",
        "mode": "non-blocking",
        "max-buffer-size": "25m",
    }


def test_options_reach_the_jobs_own_container_only() -> None:
    options = EcsOptions(user="1000:1000", read_only_root=True, init_process=False)

    main, side = defined(JOB.with_(sidecars=[Sidecar(name="s", image="s")]), options=options)["containerDefinitions"]

    assert (main["user"], main["readonlyRootFilesystem"], "linuxParameters" in main) == ("1000:1000", True, False)
    assert {"user", "readonlyRootFilesystem"}.isdisjoint(side)


@pytest.mark.parametrize(
    ("capacity", "needed"),
    [
        ([Capacity.spot(), Capacity.fargate()], ["FARGATE"]),
        ([Capacity.ec2()], ["EC2"]),
        ([Capacity.fargate(), Capacity.providers({"asg": 1})], ["EC2", "FARGATE"]),
        ([Capacity.providers({"mi": 1}, managed_instances=True), Capacity.spot()], ["FARGATE", "MANAGED_INSTANCES"]),
    ],
)
def test_a_definition_is_fit_for_every_rung_of_the_ladder(capacity: list[Capacity], needed: list[str]) -> None:
    assert defined(capacity=capacity)["requiresCompatibilities"] == needed
    assert defined(options=EcsOptions(capacity=capacity))["requiresCompatibilities"] == needed


def test_on_instances_the_architecture_is_theirs_unless_said() -> None:
    assert "runtimePlatform" not in defined(capacity=[Capacity.ec2()])
    assert defined(JOB.with_(architecture="ARM64"), capacity=[Capacity.ec2()])["runtimePlatform"][
        "cpuArchitecture"
    ] == ("ARM64")


def test_volumes_are_mounted_in_the_job_and_where_they_are_shared() -> None:
    shared = EfsVolume(
        path="/data",
        file_system_id="fs-0a1b2c3d",
        access_point="fsap-0a1b2c3d",
        iam=True,
        read_only=True,
        shared_with=["s"],
    )
    plain = EfsVolume(path="/all", file_system_id="fs-0a1b2c3d", root_directory="/x", transit_encryption=False)
    disk = EbsVolume(path="/scratch", role=ROLE, size_gib=100, name="scratch")
    job = JOB.with_(sidecars=[Sidecar(name="s", image="s")])

    body = defined(job, options=EcsOptions(volumes=[shared, plain, disk]))

    assert body["volumes"] == [
        {
            "name": "volume-1",
            "efsVolumeConfiguration": {
                "fileSystemId": "fs-0a1b2c3d",
                "transitEncryption": "ENABLED",
                "authorizationConfig": {"iam": "ENABLED", "accessPointId": "fsap-0a1b2c3d"},
            },
        },
        {
            "name": "volume-2",
            "efsVolumeConfiguration": {
                "fileSystemId": "fs-0a1b2c3d",
                "transitEncryption": "DISABLED",
                "rootDirectory": "/x",
            },
        },
        {"name": "scratch", "configuredAtLaunch": True},
    ]
    main, side = body["containerDefinitions"]
    assert [mount["containerPath"] for mount in main["mountPoints"]] == ["/data", "/all", "/scratch"]
    assert side["mountPoints"] == [{"sourceVolume": "volume-1", "containerPath": "/data", "readOnly": True}]


def test_a_volume_is_shared_with_a_sidecar_that_exists() -> None:
    volume = EfsVolume(path="/data", file_system_id="fs-0a1b2c3d", shared_with=["nobody"])

    with pytest.raises(InvalidJob, match="no such sidecar"):
        defined(options=EcsOptions(volumes=[volume]))


# ---- launches ------------------------------------------------------------------------------------------------------


def test_a_launch_carries_command_environment_and_identity() -> None:
    request = asked()

    found = variables(request)
    record = found.pop(_wire.RECORD)
    assert override(request)["command"] == ["python", "-m", "job"]
    assert found == {
        "DAY": "2026-05-06",
        "FARGATE_RUNNER_NAMESPACE": "billing",
        "FARGATE_RUNNER_KEY": "invoices/2026-05",
        "FARGATE_RUNNER_ATTEMPT": "1",
    }
    assert len(record) > 20
    assert (request["count"], request["cluster"], request["taskDefinition"]) == (1, "jobs", "f:1")
    assert request["clientToken"] == launch_token("jobs", ME)
    assert request["launchType"] == "FARGATE"
    assert "capacityProviderStrategy" not in request
    assert {"tags", "platformVersion", "group", "propagateTags", "volumeConfigurations"}.isdisjoint(request)


def test_the_same_launch_is_the_same_request() -> None:
    one = JOB.with_(env={"A": "1", "B": "2"}, tags={"x": "1", "y": "2"})
    other = JOB.with_(env={"B": "2", "A": "1"}, tags={"y": "2", "x": "1"})

    assert json.dumps(asked(one)) == json.dumps(asked(other))


def test_started_by_is_what_a_listing_finds_every_attempt_by() -> None:
    name = _wire.started_by("n" * 64, "k" * 512)

    assert name.startswith(f"fr/{'n' * 64}/")
    assert len(name) == 120
    assert asked()["startedBy"] == asked(identity=attrs.evolve(ME, attempt=7))["startedBy"]
    assert _wire.started_by("n", "a") != _wire.started_by("n", "b")


@pytest.mark.parametrize(("public", "said"), [(True, "ENABLED"), (False, "DISABLED")])
def test_the_public_address_is_always_said(public: bool, said: str) -> None:
    network = attrs.evolve(NETWORK, public_ip=public, security_groups=["sg-0a1b2c3d"])

    plug = asked(network=network)["networkConfiguration"]["awsvpcConfiguration"]

    assert (plug["assignPublicIp"], plug["securityGroups"]) == (said, ["sg-0a1b2c3d"])


@pytest.mark.parametrize(("placement", "first"), [(1, "a"), (2, "b"), (3, "c"), (4, "a")])
def test_each_placement_begins_in_another_zone(placement: int, first: str) -> None:
    request = asked(identity=attrs.evolve(ME, placement=placement))

    subnets = request["networkConfiguration"]["awsvpcConfiguration"]["subnets"]

    assert subnets[0] == f"subnet-0000000{first}"
    assert sorted(subnets) == sorted(NETWORK.subnets)


def test_without_a_network_nothing_is_launched() -> None:
    with pytest.raises(InvalidJob, match="network"):
        asked(network=None)


def test_a_definition_without_a_network_of_its_own_gets_none() -> None:
    body = {"networkMode": "bridge", "containerDefinitions": [{"name": "main"}]}

    request = asked(
        Job(ecs=EcsOptions(task_definition="f")),
        body=body,
        network=None,
        capacity=Capacity.ec2(),
        options=EcsOptions(task_definition="f"),
    )

    assert "networkConfiguration" not in request
    assert request["launchType"] == "EC2"


@pytest.mark.parametrize(
    ("attempt", "placement", "expected"), [(1, 1, 0), (1, 2, 1), (2, 1, 1), (2, 2, 2), (3, 1, 2), (9, 9, 2)]
)
def test_each_launch_goes_one_rung_further_and_the_last_stays(attempt: int, placement: int, expected: int) -> None:
    ladder = (Capacity.spot(), Capacity.spot(platform_version="1.4.0"), Capacity.fargate())

    found = _wire.rung(ladder, attrs.evolve(ME, attempt=attempt, placement=placement))

    assert found is ladder[expected]


def test_a_strategy_replaces_the_launch_type() -> None:
    capacity = Capacity.providers([Provider(name="FARGATE", weight=0, base=1), Provider(name="FARGATE_SPOT", weight=3)])

    request = asked(capacity=capacity)

    assert request["capacityProviderStrategy"] == [
        {"capacityProvider": "FARGATE", "weight": 0, "base": 1},
        {"capacityProvider": "FARGATE_SPOT", "weight": 3, "base": 0},
    ]
    assert "launchType" not in request


def test_only_fargate_gets_a_platform_version() -> None:
    options = EcsOptions(platform_version="1.4.0")

    assert asked(options=options)["platformVersion"] == "1.4.0"
    assert asked(options=options, capacity=Capacity.fargate(platform_version="LATEST"))["platformVersion"] == "LATEST"
    assert "platformVersion" not in asked(options=options, capacity=Capacity.ec2())


def test_a_size_is_an_override_only_where_it_differs() -> None:
    base, larger = asked(JOB)["overrides"], asked(JOB.with_(vcpu=0.25, memory_gib=1))["overrides"]

    assert {"cpu", "memory"}.isdisjoint(base)
    assert (larger["cpu"], larger["memory"]) == ("256", "1024")


def test_scratch_space_is_an_override_on_fargate_and_nowhere_else() -> None:
    job = JOB.with_(ephemeral_storage_gib=100)

    with pytest.raises(InvalidJob) as refused:
        asked(job, capacity=Capacity.ec2())

    assert asked(job)["overrides"]["ephemeralStorage"] == {"sizeInGiB": 100}
    assert refused.value.field == "ephemeral_storage_gib"


def test_tags_of_the_job_come_before_those_of_the_backend() -> None:
    request = asked(JOB.with_(tags={"team": "a"}), tags={"team": "b", "env": "prod"})

    assert request["tags"] == [{"key": "env", "value": "prod"}, {"key": "team", "value": "a"}]


def test_fifty_one_tags_are_refused_before_aws_does() -> None:
    with pytest.raises(InvalidJob, match="at most 50"):
        asked(JOB.with_(tags={f"t{n}": "" for n in range(50)}), tags={"env": "prod"})


def test_options_become_members_of_the_request() -> None:
    options = EcsOptions(
        propagate_tags="TASK_DEFINITION", enable_managed_tags=True, enable_execute_command=False, group="nightly"
    )

    request = asked(options=options)

    assert {
        key: request[key] for key in ("propagateTags", "enableECSManagedTags", "enableExecuteCommand", "group")
    } == {
        "propagateTags": "TASK_DEFINITION",
        "enableECSManagedTags": True,
        "enableExecuteCommand": False,
        "group": "nightly",
    }


def test_a_disk_is_made_at_the_launch_and_deleted_at_the_end() -> None:
    efs = EfsVolume(path="/data", file_system_id="fs-0a1b2c3d")
    disk = EbsVolume(
        path="/scratch",
        role=ROLE,
        size_gib=9,
        iops=3000,
        throughput=125,
        file_system="ext4",
        encrypted=True,
        kms_key="k",
    )
    options = EcsOptions(volumes=[efs, disk])

    request = asked(options=options, body=defined(options=options))

    assert request["volumeConfigurations"] == [
        {
            "name": "volume-2",
            "managedEBSVolume": {
                "roleArn": ROLE,
                "volumeType": "gp3",
                "sizeInGiB": 9,
                "iops": 3000,
                "throughput": 125,
                "filesystemType": "ext4",
                "encrypted": True,
                "kmsKeyId": "k",
                "terminationPolicy": {"deleteOnTermination": True},
            },
        }
    ]
    assert defined(options=options)["volumes"][1]["name"] == "volume-2"


# ---- existing definitions ------------------------------------------------------------------------------------------

EXISTING = EcsOptions(task_definition="nightly:3")
FOREIGN = {
    "networkMode": "awsvpc",
    "cpu": "1024",
    "memory": "2048",
    "containerDefinitions": [{"name": "app", "essential": True}, {"name": "agent", "essential": False}],
}


def test_an_existing_definition_is_overridden_where_that_is_possible() -> None:
    job = Job(command=["report"], env={"A": "b"}, vcpu=2, memory_gib=4, ecs=EXISTING)

    request = asked(job, body=FOREIGN, options=EXISTING, roles=Roles(execution=ROLE, task=ROLE))

    assert override(request)["name"] == "app"
    assert override(request)["command"] == ["report"]
    assert {key: value for key, value in request["overrides"].items() if key != "containerOverrides"} == {
        "cpu": "2048",
        "memory": "4096",
        "executionRoleArn": ROLE,
        "taskRoleArn": ROLE,
    }


def test_an_existing_definition_keeps_its_size_and_roles_unless_said() -> None:
    request = asked(Job(ecs=EXISTING), body=FOREIGN, options=EXISTING)

    assert list(request["overrides"]) == ["containerOverrides"]
    assert "command" not in override(request)


@pytest.mark.parametrize(
    "change",
    [
        {"image": "x"},
        {"entry_point": ["x"]},
        {"working_directory": "x"},
        {"architecture": "ARM64"},
        {"secrets": {"A": SecretRef(SECRET)}},
    ],
)
def test_what_an_existing_definition_says_itself_is_refused(change: dict[str, Any]) -> None:
    job = Job(command=["x"], ecs=EXISTING, **change)

    with pytest.raises(InvalidJob) as refused:
        asked(job, body=FOREIGN, options=EXISTING)

    assert refused.value.field == next(iter(change))


def test_a_role_override_is_an_arn() -> None:
    with pytest.raises(InvalidJob, match="ARN"):
        asked(Job(ecs=EXISTING), body=FOREIGN, options=EXISTING, roles=Roles(task="reader"))


@pytest.mark.parametrize(
    ("parts", "wanted", "found"),
    [
        ([{"name": "main"}, {"name": "b"}], "main", "main"),
        ([{"name": "only"}], "main", "only"),
        ([{"name": "a", "essential": False}, {"name": "b"}], "main", "b"),
    ],
)
def test_the_jobs_own_container_is_the_named_or_the_only_one(parts: list[Any], wanted: str, found: str) -> None:
    assert _wire.container_of({"containerDefinitions": parts}, wanted) == found


def test_a_definition_with_several_containers_asks_for_a_name() -> None:
    with pytest.raises(InvalidJob, match="one of a, b"):
        _wire.container_of({"containerDefinitions": [{"name": "a"}, {"name": "b"}]}, "main")


# ---- what is too long ----------------------------------------------------------------------------------------------


def test_overrides_are_measured_as_botocore_sends_them() -> None:
    request = asked(JOB.with_(env={"A": "ü☃" * 50}))

    serialized: Any = create_serializer("json").serialize_to_request(request, MODEL.operation_model("RunTask"))
    sent = serialized["body"].decode()

    length = _wire.overrides_length(request)
    start = sent.index('"overrides": ') + len('"overrides": ')
    assert json.loads(sent[start : start + length]) == request["overrides"]


def test_the_parts_add_up_to_the_whole_and_the_longest_is_first() -> None:
    request = asked(JOB.with_(command=["x" * 3000], env={"A": "y" * 5000}))

    sizes = _wire.overrides_by_field(request)

    assert sum(sizes.values()) == _wire.overrides_length(request)
    assert list(sizes) == ["env", "command", "everything else"]
    assert sizes["env"] > 5000
    assert 3000 < sizes["command"] < 3010


def test_a_spilled_command_and_environment_are_in_the_definition() -> None:
    job = JOB.with_(env={"BIG": "x" * 9000, "SMALL": "y"})
    spill = Spill(command=True, env=frozenset({"BIG"}))

    body = defined(job, spill=spill)
    request = asked(job, body=body, spill=spill)

    assert own(body)["command"] == ["python", "-m", "job"]
    assert own(body)["environment"] == [{"name": "BIG", "value": "x" * 9000}]
    assert "command" not in override(request)
    assert (variables(request)["SMALL"], "BIG" in variables(request)) == ("y", False)
    assert _wire.overrides_length(request) < 2000


def test_a_file_in_s3_carries_the_environment_instead() -> None:
    job = JOB.with_(env={"BIG": "x" * 9000})
    spill = Spill(env=frozenset({"BIG"}), files=("arn:aws:s3:::bucket/a.env",))

    body = defined(job, spill=spill)
    request = asked(job, body=body, spill=spill)

    assert "environment" not in own(body)
    assert override(request)["environmentFiles"] == [{"type": "s3", "value": "arn:aws:s3:::bucket/a.env"}]
    assert "BIG" not in variables(request)


def test_an_environment_file_holds_a_line_for_each_variable() -> None:
    text, left = _wire.env_file({"B": "2 = two", "A": '"quoted" #1', "Ü": "☃"[:1]})

    assert text == 'A="quoted" #1\nB=2 = two\nÜ=☃\n'
    assert left == {}


@pytest.mark.parametrize(
    "value", ["", "two\nlines", "carriage\rreturn", " leading", "trailing ", "page\x0cbreak", "x" * 65_000, "\u2028x"]
)
def test_what_a_line_cannot_hold_stays_out_of_the_file(value: str) -> None:
    assert _wire.env_file({"A": value, "B": "b"}) == ("B=b\n", {"A": value})


# ---- the record of a launch ----------------------------------------------------------------------------------------


def test_a_task_tells_what_job_it_is() -> None:
    request = asked(identity=attrs.evolve(ME, attempt=3, placement=2))

    found = _wire.unpack(request)

    assert found is not None
    assert found.description == JOB.describe()
    assert found.identity == attrs.evolve(ME, attempt=3, placement=2)
    assert (found.container, found.essential, found.missing) == ("main", (), frozenset())
    assert _wire.own_container(request) == "main"


def test_a_record_holds_no_secret_value_and_not_what_stands_beside_it() -> None:
    job = JOB.with_(secrets={"TOKEN": Secret("canary")}, env={"A": "beside"})

    text = zlib.decompress(base64.b64decode(_wire.pack(job, ME))).decode()

    assert "TOKEN" in text
    assert "canary" not in text
    assert "beside" not in text


def test_a_jobs_own_variables_win_and_are_told_from_ours() -> None:
    job = JOB.with_(env={"FARGATE_RUNNER_KEY": "mine", _wire.RECORD: "mine too"})

    request = asked(job)
    found = _wire.unpack(request)

    assert found is not None
    assert found.description == job.describe()
    assert variables(request)["FARGATE_RUNNER_KEY"] == "mine"
    assert variables(request)[_wire.RECORD] != "mine too"


def test_what_was_spilled_into_the_definition_is_read_from_there() -> None:
    job = JOB.with_(env={"BIG": "x" * 9000, "SMALL": "y"})
    spill = Spill(command=True, env=frozenset({"BIG"}))
    body = defined(job, spill=spill)
    request = asked(job, body=body, spill=spill)

    without, complete = _wire.unpack(request), _wire.unpack(request, body)

    assert _wire.needs_definition(request)
    assert not _wire.needs_definition(asked())
    assert without is not None
    assert (without.description, without.missing) == (None, {"command", "env"})
    assert complete is not None
    assert complete.description == job.describe()


def test_what_is_in_s3_can_be_compared_but_not_rebuilt() -> None:
    job = JOB.with_(env={"BIG": "x" * 9000})
    spill = Spill(env=frozenset({"BIG"}), files=("arn:aws:s3:::bucket/a.env",))
    task = asked(job, body=defined(job, spill=spill), spill=spill)

    found = _wire.unpack(task)

    assert found is not None
    assert (found.description, found.missing) == (None, {"env"})
    assert not _wire.needs_definition(task)
    assert _wire.difference(job.describe(), task) == ()
    assert _wire.difference(job.with_(env={"BIG": "y"}).describe(), task) == ("env",)


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({}, ()),
        ({"command": ["other"]}, ("command",)),
        ({"env": {}}, ("env",)),
        ({"image": "other", "vcpu": 2}, ("image", "size")),
        ({"sidecars": [Sidecar(name="s", image="s")]}, ("sidecars",)),
    ],
)
def test_a_difference_names_the_fields(change: dict[str, Any], fields: tuple[str, ...]) -> None:
    assert _wire.difference(JOB.with_(**change).describe(), asked()) == fields


@pytest.mark.parametrize("record", ["", "!", "AAAA", base64.b64encode(zlib.compress(b"[1]")).decode(), None, 7])
def test_a_task_of_somebody_else_tells_nothing(record: Any) -> None:
    task = {"overrides": {"containerOverrides": [{"environment": [{"name": _wire.RECORD, "value": record}]}]}}

    assert _wire.unpack(task) is None
    assert _wire.difference(JOB.describe(), task) == ("job",)


def test_a_record_that_would_unpack_to_gigabytes_is_not_unpacked() -> None:
    def task(image: str) -> dict[str, Any]:
        content = {"v": 1, "i": ["n", "k", 1, 1], "d": {"image": image}}
        record = base64.b64encode(zlib.compress(json.dumps(content).encode())).decode()
        return {"overrides": {"containerOverrides": [{"environment": [{"name": _wire.RECORD, "value": record}]}]}}

    assert _wire.unpack(task("x")) is not None
    assert _wire.unpack(task("x" * (5 << 20))) is None


def test_the_record_says_which_other_containers_are_essential() -> None:
    sides = [Sidecar(name="b", image="x", essential=True), Sidecar(name="a", image="x")]

    found = _wire.unpack(asked(JOB.with_(sidecars=sides)))

    assert found is not None
    assert found.essential == ("b",)


# ---- names and replies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arn", "address"),
    [
        (
            ARN,
            "https://us-east-1.console.aws.amazon.com/ecs/v2/clusters/jobs/tasks/"
            "0123456789abcdef0123456789abcdef/configuration?region=us-east-1",
        ),
        (
            "arn:aws-cn:ecs:cn-north-1:111122223333:task/jobs/a",
            "https://cn-north-1.console.amazonaws.cn/ecs/v2/clusters/jobs/tasks/a/configuration?region=cn-north-1",
        ),
        (
            "arn:aws-us-gov:ecs:us-gov-west-1:111122223333:task/jobs/a",
            "https://us-gov-west-1.console.amazonaws-us-gov.com/ecs/v2/clusters/jobs/tasks/a/configuration"
            "?region=us-gov-west-1",
        ),
        ("not an arn", ""),
    ],
)
def test_a_task_has_an_address_for_people(arn: str, address: str) -> None:
    assert _wire.console_url(arn) == address


def test_parts_of_names() -> None:
    assert _wire.task_id(ARN) == "0123456789abcdef0123456789abcdef"
    assert _wire.cluster_name("arn:aws:ecs:us-east-1:111122223333:cluster/jobs") == "jobs"
    assert _wire.cluster_name("jobs") == "jobs"
    assert _wire.region_of("arn:aws:ecs:eu-west-1:111122223333:cluster/jobs") == "eu-west-1"
    assert (_wire.region_of("jobs"), _wire.region_of(None)) == (None, None)
    assert _wire.log_stream("fr", "main", ARN) == "fr/main/0123456789abcdef0123456789abcdef"
    assert (_wire.is_task_arn(ARN), _wire.is_task_arn("jobs"), _wire.is_task_arn(None)) == (True, False, False)
    assert [_wire.partition(region) for region in ("eu-west-1", "cn-north-1", "us-gov-west-1")] == [
        "aws",
        "aws-cn",
        "aws-us-gov",
    ]


def test_a_stop_reason_is_recognisable_and_short_enough() -> None:
    assert _wire.stop_reason("cancelled").endswith("cancelled")
    assert len(_wire.stop_reason("x" * 1000)) == 255


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (1778065333.5, datetime(2026, 5, 6, 11, 2, 13, 500000, UTC)),
        (1778065333, datetime(2026, 5, 6, 11, 2, 13, tzinfo=UTC)),
        ("2026-05-06T11:02:13.5Z", datetime(2026, 5, 6, 11, 2, 13, 500000, UTC)),
        ("2026-05-06T11:02:13.52Z", datetime(2026, 5, 6, 11, 2, 13, 520000, UTC)),
        ("2026-05-06T11:02:13.123456789Z", datetime(2026, 5, 6, 11, 2, 13, 123456, UTC)),
        ("2026-05-06T11:02:13Z", datetime(2026, 5, 6, 11, 2, 13, tzinfo=UTC)),
        (
            datetime(2026, 5, 6, 13, 2, 13, tzinfo=timezone(timedelta(hours=2))),
            datetime(2026, 5, 6, 11, 2, 13, tzinfo=UTC),
        ),
        ("yesterday", None),
        (float("nan"), None),
        (1e300, None),
        (True, None),
        (None, None),
        ([], None),
    ],
)
def test_a_moment_is_read_from_replies_and_events_alike(said: Any, meant: datetime | None) -> None:
    assert _wire.moment(said) == meant


def test_replies_are_read_with_care() -> None:
    task = {"taskArn": ARN, "version": 3, "startedBy": "fr/n/k", "createdAt": 0, "taskDefinitionArn": "d"}

    assert _wire.started({"tasks": [task], "failures": []}) == task
    assert _wire.started({"tasks": [], "failures": []}) is None
    assert _wire.stopping({"task": task}) == task
    assert _wire.stopping({}) == {}
    assert (_wire.version(task), _wire.version({"version": "3"}), _wire.version({})) == (3, 0, 0)
    assert (_wire.task_arn(task), _wire.owner(task), _wire.definition_arn(task)) == (ARN, "fr/n/k", "d")
    assert _wire.created_at(task) == datetime(1970, 1, 1, tzinfo=UTC)
    assert _wire.request_id({"ResponseMetadata": {"RequestId": "r"}}) == "r"
    assert _wire.request_id({}) == ""
    assert (_wire.is_stopped({"lastStatus": "STOPPED"}), _wire.is_stopped({"lastStatus": []})) == (True, False)
    assert _wire.has_active_cluster({"clusters": [{"status": "INACTIVE"}, {"status": "ACTIVE"}]})
    assert not _wire.has_active_cluster({"clusters": [], "failures": [{"reason": "MISSING"}]})
    assert _wire.has_log_group({"logGroups": [{"logGroupName": "/a/b"}, {"logGroupName": "/a"}]}, "/a")
    assert not _wire.has_log_group({"logGroups": [{"logGroupName": "/a/b"}]}, "/a")
    assert _wire.registered_at({"registeredAt": 0}) == datetime(1970, 1, 1, tzinfo=UTC)


def test_lines_are_where_the_definition_sends_them() -> None:
    job = JOB.with_(sidecars=[Sidecar(name="s", image="s")])

    assert _wire.log_place(defined(job), ARN) == (
        "/fargate-runner",
        {f"fr/main/{_wire.task_id(ARN)}": "main", f"fr/s/{_wire.task_id(ARN)}": "s"},
    )
    assert _wire.default_log_place(LogGroup(), "main", ARN) == (
        "/fargate-runner",
        {f"fr/main/{_wire.task_id(ARN)}": "main"},
    )
    assert (
        _wire.log_place({"containerDefinitions": [{"name": "a", "logConfiguration": {"logDriver": "splunk"}}]}, ARN)
        is None
    )


def test_a_task_that_ecs_forgot_is_lost_and_says_where_to_look() -> None:
    running = Snapshot(phase=Phase.RUNNING, created_at=NOW, started_at=NOW)

    lost = _wire.missing(ARN, seen_at=NOW, last=running)

    assert (lost.phase, lost.cause, lost.exit_code, lost.started_at) == (Phase.ENDED, Cause.VANISHED, None, NOW)
    assert "MISSING" in lost.reason
    assert "console.aws.amazon.com" in lost.advice
    assert _wire.missing(ARN, seen_at=NOW, last=lost) is lost


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("RESOURCE:CPU", "capacity"),
        ("RESOURCE:MEMORY", "capacity"),
        ("RESOURCE:ENI", "capacity"),
        ("RESOURCE:GPU", "capacity"),
        ("RESOURCE:PORTS", "capacity"),
        ("resource:fargate", "capacity"),
        (
            "Capacity is unavailable at this time. Please try again later or in a different availability zone",
            "capacity",
        ),
        ("You\u2019ve reached the limit on the number of vCPUs you can run concurrently", "quota"),
        ("You've reached the limit on the number of tasks you can run concurrently", "quota"),
        ("The requested CPU configuration is above your limit", "fatal"),
        ("The requested MEMORY configuration is above your limit", "fatal"),
        ("AGENT", "transient"),
        ("ATTRIBUTE", "fatal"),
        ("MemberOf placement constraint unsatisfied.", "fatal"),
        ("LOCATION", "fatal"),
        ("NO ACTIVE INSTANCES", "capacity"),
        ("EMPTY CAPACITY PROVIDER", "capacity"),
        ("No Container Instances were found in your cluster.", "capacity"),
        ("INACTIVE", "fatal"),
        ("MISSING", "fatal"),
        ("Internal error.", "transient"),
        ("Something that AWS never said", "transient"),
    ],
)
def test_a_failure_to_place_is_known_by_its_reason(reason: str, kind: str) -> None:
    refused = _wire.refusal({"tasks": [], "failures": [{"arn": None, "reason": reason, "detail": "more"}]})

    assert (refused.kind, refused.retryable, refused.nothing_started) == (kind, kind != "fatal", True)
    assert refused.reason == f"{reason}; more"
    assert refused.advice


@pytest.mark.parametrize("failures", [None, [], [None], [{}], [{"reason": None}], "RESOURCE:CPU", [{"reason": 7}]])
def test_a_failure_of_any_shape_is_a_refusal(failures: Any) -> None:
    assert _wire.placement_failure(failures).retryable


@pytest.mark.parametrize(
    ("code", "message", "kind", "advice"),
    [
        ("ThrottlingException", "Rate exceeded", "quota", "fewer calls"),
        (
            "InvalidParameterException",
            "Error retrieving subnet information for [subnet-0]: Rate exceeded (ErrorCode: Throttling)",
            "quota",
            "EC2 throttles",
        ),
        ("InvalidParameterException", "x (ErrorCode: RequestLimitExceeded)", "quota", "EC2 throttles"),
        ("ServerException", "Service Unavailable", "transient", "same token"),
        ("ConflictException", "x", "fatal", "meet it"),
        ("InvalidParameterException", "Container Overrides length must be at most 8192", "fatal", "spill_to"),
        (
            "InvalidParameterException",
            "Error retrieving subnet information for [subnet-0]: x (ErrorCode: InvalidSubnetID.NotFound)",
            "fatal",
            "subnets",
        ),
        (
            "InvalidParameterException",
            "Error retrieving security group information for [sg-0]: x (ErrorCode: InvalidGroup.NotFound)",
            "fatal",
            "security groups",
        ),
        (
            "InvalidParameterException",
            "Network Configuration must be provided when networkMode 'awsvpc' is specified.",
            "fatal",
            "Network(",
        ),
        (
            "InvalidParameterException",
            "Override for container named x is not a container in the TaskDefinition.",
            "fatal",
            "container_name",
        ),
        ("ClientException", "TaskDefinition is inactive", "fatal", "register it again"),
        (
            "ClientException",
            "ECS was unable to assume the role 'x' that was provided for this task.",
            "fatal",
            "assume",
        ),
        (
            "InvalidParameterException",
            "Unable to assume the service linked role. Please verify that the ECS service linked role exists.",
            "fatal",
            "AWSServiceRoleForECS",
        ),
        ("ClientException", "No Fargate configuration exists for given values.", "fatal", "sizes"),
        ("ClientException", "Too many tasks in PROVISIONING", "quota", "fewer"),
        (
            "ClientException",
            "Fargate requires task definition to have execution role ARN to support log driver awslogs.",
            "fatal",
            "Roles(execution",
        ),
        ("ClusterNotFoundException", "Cluster not found.", "fatal", "cluster"),
        ("PlatformUnknownException", "x", "fatal", "platform version"),
        ("UnsupportedFeatureException", "x", "fatal", "region"),
        ("BlockedException", "x", "fatal", "ask AWS"),
        ("UnrecognizedClientException", "x", "fatal", "credentials"),
        ("ExpiredTokenException", "x", "transient", "renewed"),
        ("SomethingNewException", "x", "fatal", "its words"),
    ],
)
def test_an_exception_of_a_launch_is_known_by_its_code_and_then_its_words(
    code: str, message: str, kind: str, advice: str
) -> None:
    refused = _wire.launch_error(code, message)

    assert (refused.kind, refused.retryable, refused.reason) == (kind, kind != "fatal", message)
    assert advice in refused.advice


@pytest.mark.parametrize(
    "code", ["ServerException", "ServiceUnavailable", "RequestTimeoutException", "ConflictException"]
)
def test_some_answers_do_not_tell_that_nothing_was_started(code: str) -> None:
    assert not _wire.launch_error(code, "x").nothing_started
    assert _wire.launch_error("ClientException", "x").nothing_started


def test_a_denied_launch_names_what_to_allow() -> None:
    said = (
        "User: arn:aws:sts::111122223333:assumed-role/dev/me is not authorized to perform: iam:PassRole on resource: "
        f"{ROLE} because no identity-based policy allows the iam:PassRole action"
    )

    assert _wire.launch_error("AccessDeniedException", said).advice == (
        f"allow iam:PassRole on {ROLE} for the credentials in use"
    )


def test_a_deregistered_definition_is_told_from_other_errors() -> None:
    assert _wire.is_inactive("TaskDefinition is inactive")
    assert not _wire.is_inactive("Cluster is not there")
