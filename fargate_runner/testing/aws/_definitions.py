"""
What ECS accepts as a task definition: rules on values, none of them in botocore's model.

Pure: a request goes in, the registered definition comes out, or the refusal in AWS's words.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from fargate_runner.testing.aws._service import AwsError

__all__ = ["FARGATE_SIZES", "check_tags", "checked_definition", "container_total", "is_fargate_size", "size_in"]

# cpu units: MiB. Amazon ECS Developer Guide, "Fargate tasks", autumn 2026. The last row is no range.
FARGATE_SIZES: Final[Mapping[int, frozenset[int]]] = {
    256: frozenset({512, 1024, 2048}),
    512: frozenset(range(1024, 4096 + 1, 1024)),
    1024: frozenset(range(2048, 8192 + 1, 1024)),
    2048: frozenset(range(4096, 16384 + 1, 1024)),
    4096: frozenset(range(8192, 30720 + 1, 1024)),
    8192: frozenset(range(16384, 61440 + 1, 4096)),
    16384: frozenset(range(32768, 122880 + 1, 8192)),
    32768: frozenset({61440, 122880, 249856}),
}
_NO_SUCH_SIZE: Final = "No Fargate configuration exists for given values."

_LARGEST: Final = 64 * 1024
_MOST_CONTAINERS: Final = 10
_FAMILY: Final = re.compile(r"[a-zA-Z0-9_-]{1,255}")
_CONTAINER_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,255}")
_CPU: Final = re.compile(r"\s*(\d+)\s*")
_VCPU: Final = re.compile(r"\s*(\d*\.?\d+)\s*vcpu\s*", re.IGNORECASE)
_MIB: Final = re.compile(r"\s*(\d+)\s*(?:mb)?\s*", re.IGNORECASE)
_GIB: Final = re.compile(r"\s*(\d*\.?\d+)\s*gb\s*", re.IGNORECASE)
_ECR: Final = re.compile(r"\d{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/")
_TAG: Final = re.compile(r"[\w\s.:/=+\-@]*")

_FARGATE_DRIVERS: Final = frozenset({"awslogs", "splunk", "awsfirelens"})
_AWSLOGS_OPTIONS: Final = frozenset(
    {
        "awslogs-create-group",
        "awslogs-datetime-format",
        "awslogs-force-flush-interval-seconds",
        "awslogs-format",
        "awslogs-group",
        "awslogs-max-buffered-events",
        "awslogs-multiline-pattern",
        "awslogs-region",
        "awslogs-stream-prefix",
        "max-buffer-size",
        "mode",
    }
)

# What Fargate refuses in a container definition, and under linuxParameters.
_NOT_ON_FARGATE: Final = (
    *("credentialSpecs", "disableNetworking", "dnsSearchDomains", "dnsServers", "dockerSecurityOptions"),
    *("extraHosts", "links", "privileged"),
)
_NO_LINUX_ON_FARGATE: Final = ("devices", "maxSwap", "sharedMemorySize", "swappiness", "tmpfs")


def _refuse(message: str) -> AwsError:
    return AwsError("ClientException", message)


def size_in(text: str, kind: str) -> int:
    """
    Return cpu units or MiB of what people write: ``1024``, ``1 vCPU``, ``3072``, ``3GB``.

    :raises AwsError: it is no size
    """
    whole, large = (_CPU, _VCPU) if kind == "cpu" else (_MIB, _GIB)
    if found := whole.fullmatch(text):
        return int(found[1])
    if found := large.fullmatch(text):
        return round(float(found[1]) * 1024)
    raise _refuse(f"Invalid '{kind}' setting for task.")


def is_fargate_size(cpu: int, memory: int) -> bool:
    """Whether Fargate has the size."""
    return memory in FARGATE_SIZES.get(cpu, ())


def check_fargate_size(cpu: int, memory: int) -> None:
    """
    Refuse a size that Fargate does not have.

    :raises AwsError: so it is
    """
    if not is_fargate_size(cpu, memory):
        raise _refuse(_NO_SUCH_SIZE)


def check_storage(storage: Mapping[str, Any] | None) -> None:
    """
    Refuse an ephemeral storage that Fargate does not give.

    :raises AwsError: so it is
    """
    if storage is not None and not 21 <= storage["sizeInGiB"] <= 200:
        raise _refuse(
            f"Invalid ephemeral storage size {storage['sizeInGiB']} GiB: the value must be between 21 and 200."
        )


def check_tags(tags: list[Mapping[str, str]]) -> dict[str, str]:
    """
    Return tags by key.

    :raises AwsError: a key or value that AWS does not take
    """
    for tag in tags:
        key, value = tag.get("key", ""), tag.get("value", "")
        if key.lower().startswith("aws:"):
            raise AwsError("InvalidParameterException", f"Tag keys must not begin with 'aws:': {key}")
        if not 1 <= len(key) <= 128 or len(value) > 256 or not _TAG.fullmatch(key) or not _TAG.fullmatch(value):
            raise AwsError("InvalidParameterException", f"Invalid tag: {key!r}")
    found = {tag["key"]: tag.get("value", "") for tag in tags}
    if len(found) != len(tags):
        raise AwsError("InvalidParameterException", "Duplicate tag keys found.")
    if len(found) > 50:
        raise AwsError("InvalidParameterException", "The number of tags must not exceed 50.")
    return found


def container_total(containers: Sequence[Mapping[str, Any]], kind: str) -> int:
    """Return what the containers ask for together."""
    return sum(container.get(kind) or 0 for container in containers)


def checked_definition(request: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the task definition of a request, as ECS keeps it: without ARN, revision, status and dates.

    :raises AwsError: ECS would refuse it
    """
    definition = {name: value for name, value in copy.deepcopy(dict(request)).items() if name != "tags"}
    _check_size_of_text(definition)
    if not _FAMILY.fullmatch(definition["family"]):
        raise _refuse(
            "Invalid family: up to 255 letters (uppercase and lowercase), numbers, underscores, and hyphens are "
            "allowed."
        )
    wanted = definition.setdefault("requiresCompatibilities", [])
    definition.setdefault("volumes", [])
    definition.setdefault("placementConstraints", [])
    for kind in ("cpu", "memory"):
        if kind in definition:
            definition[kind] = str(size_in(definition[kind], kind))
        elif "FARGATE" in wanted:
            raise _refuse(f"Fargate requires that '{kind}' be defined at the task level.")
    containers: list[dict[str, Any]] = definition["containerDefinitions"]
    _check_containers(definition, containers)
    refusal = next(_against_fargate(definition, containers), None)
    if "FARGATE" in wanted:
        if refusal is not None:
            raise _refuse(refusal)
        check_storage(definition.get("ephemeralStorage"))
    if not wanted:
        definition.pop("requiresCompatibilities")
    definition["compatibilities"] = ["EC2"] if refusal is not None else ["EC2", "FARGATE"]
    if "MANAGED_INSTANCES" in wanted or definition.get("networkMode") in {"awsvpc", "host"}:
        definition["compatibilities"].append("MANAGED_INSTANCES")
    definition["requiresAttributes"] = [{"name": name} for name in sorted(_attributes(definition, containers))]
    return definition


def _check_size_of_text(definition: Mapping[str, Any]) -> None:
    length = len(json.dumps(definition, separators=(",", ":"), ensure_ascii=False).encode())
    if length > _LARGEST:
        raise _refuse(f"Actual length: '{length}'. Max allowed length is '{_LARGEST}' bytes.")


def _check_containers(definition: Mapping[str, Any], containers: list[dict[str, Any]]) -> None:
    if not containers:
        raise _refuse("Container list cannot be empty.")
    if len(containers) > _MOST_CONTAINERS:
        raise _refuse(f"A task definition holds at most {_MOST_CONTAINERS} containers, got {len(containers)}.")
    names: set[str] = set()
    for container in containers:
        if not container.get("name"):
            raise _refuse("Container.name should not be null or empty.")
        if not container.get("image"):
            raise _refuse("Container.image should not be null or empty.")
        name = container["name"]
        if not _CONTAINER_NAME.fullmatch(name):
            raise _refuse(
                f"Invalid container name '{name}': up to 255 letters (uppercase and lowercase), numbers, hyphens, "
                "and underscores are allowed."
            )
        if name in names:
            raise _refuse(f"Container name '{name}' is not unique in the task definition.")
        names.add(name)
        _fill_in(container)
        _check_container(definition, container)
    if not any(container["essential"] for container in containers):
        raise _refuse("Task definition does not have any essential container.")
    volumes = {volume.get("name") for volume in definition["volumes"]}
    for container in containers:
        for mount in container["mountPoints"]:
            if mount.get("sourceVolume") not in volumes:
                raise _refuse(f"Unknown volume '{mount.get('sourceVolume')}'.")
    _check_dependencies({container["name"]: container for container in containers})
    for kind, unit in (("cpu", "units"), ("memory", "MiB")):
        total = container_total(containers, kind)
        if kind in definition and total > int(definition[kind]):
            raise _refuse(
                f"Invalid '{kind}' setting for task: the containers ask for {total} {unit}, "
                f"the task has {definition[kind]}."
            )


def _fill_in(container: dict[str, Any]) -> None:
    container.setdefault("essential", True)
    container.setdefault("cpu", 0)
    for name in ("environment", "mountPoints", "volumesFrom", "portMappings", "systemControls"):
        container.setdefault(name, [])


def _check_container(definition: Mapping[str, Any], container: Mapping[str, Any]) -> None:
    name = container["name"]
    if "memory" not in definition and not container.get("memory") and not container.get("memoryReservation"):
        raise _refuse(
            f"Invalid setting for container '{name}'. At least one of 'memory' or 'memoryReservation' must be "
            "specified."
        )
    if container.get("memory", 1 << 40) < container.get("memoryReservation", 0):
        raise _refuse(f"Invalid setting for container '{name}'. 'memory' must be larger than 'memoryReservation'.")
    for kind in ("startTimeout", "stopTimeout"):
        if kind in container and not 2 <= container[kind] <= 120:
            raise _refuse(f"Invalid '{kind}' setting for container '{name}': the value must be between 2 and 120.")
    plain = {variable.get("name") for variable in container["environment"]}
    secret = [each["name"] for each in container.get("secrets", ())]
    for each in secret:
        if each in plain or secret.count(each) > 1:
            raise _refuse(
                "The secret name must be unique and not shared with any new or existing environment variables set on "
                f"the container, such as '{each}'."
            )
    if len(container.get("environmentFiles", ())) > 10:
        raise _refuse(f"Container '{name}' has more than 10 environment files.")
    _check_log_options(definition, container)


def _check_log_options(definition: Mapping[str, Any], container: Mapping[str, Any]) -> None:
    log = container.get("logConfiguration")
    if not log or log["logDriver"] != "awslogs":
        return
    options = log.get("options") or {}
    fargate = "FARGATE" in definition["requiresCompatibilities"]
    needed = ["awslogs-group", "awslogs-region", *(["awslogs-stream-prefix"] if fargate else [])]
    if missing := [option for option in needed if not options.get(option)]:
        raise _refuse(f"Log driver awslogs requires options: {', '.join(missing)}")
    if unknown := sorted(set(options) - _AWSLOGS_OPTIONS):
        raise _refuse(f"Log driver awslogs disallows options: {', '.join(unknown)}")
    if "awslogs-datetime-format" in options and "awslogs-multiline-pattern" in options:
        raise _refuse(
            "Log driver awslogs disallows awslogs-datetime-format and awslogs-multiline-pattern at the same time"
        )
    if options.get("mode", "blocking") not in {"blocking", "non-blocking"}:
        raise _refuse(f"Log driver awslogs: invalid mode '{options['mode']}'")


def _check_dependencies(containers: Mapping[str, Mapping[str, Any]]) -> None:
    edges: dict[str, set[str]] = {name: set() for name in containers}
    for name, container in containers.items():
        for wanted in container.get("dependsOn", ()):
            other = wanted["containerName"]
            if other not in containers:
                raise _refuse(f"Container '{name}' depends on '{other}', which is not in the task definition.")
            if wanted["condition"] == "HEALTHY" and not containers[other].get("healthCheck"):
                raise _refuse(f"Container '{name}' waits for '{other}' to be HEALTHY, which has no health check.")
            if wanted["condition"] in {"COMPLETE", "SUCCESS"} and containers[other]["essential"]:
                raise _refuse(
                    f"Container '{name}' waits for the end of the essential container '{other}': "
                    "a container with the condition COMPLETE or SUCCESS must not be essential."
                )
            edges[name].add(other)
    while edges:
        free = {name for name, wanted in edges.items() if not wanted & set(edges)}
        if not free:
            raise _refuse(f"The dependencies of the containers form a cycle: {', '.join(sorted(edges))}")
        for name in free:
            del edges[name]


def _against_fargate(definition: Mapping[str, Any], containers: list[dict[str, Any]]) -> Iterator[str]:
    """Yield why the definition cannot run on Fargate."""
    if definition.get("networkMode") != "awsvpc":
        yield "Fargate only supports network mode \N{LEFT SINGLE QUOTATION MARK}awsvpc\N{RIGHT SINGLE QUOTATION MARK}."
    for kind in ("cpu", "memory"):
        if kind not in definition:
            yield f"Fargate requires that '{kind}' be defined at the task level."
            return
    if not is_fargate_size(int(definition["cpu"]), int(definition["memory"])):
        yield _NO_SUCH_SIZE
    for check in _FARGATE_CHECKS:
        yield from check(definition, containers)


def _windows(definition: Mapping[str, Any], containers: list[dict[str, Any]]) -> Iterator[str]:
    del containers
    platform = definition.get("runtimePlatform") or {}
    system = platform.get("operatingSystemFamily", "LINUX")
    if system != "LINUX":
        if int(definition["cpu"]) < 1024 or int(definition["cpu"]) > 4096:
            yield _NO_SUCH_SIZE
        if platform.get("cpuArchitecture") == "ARM64":
            yield "ARM64 is not supported for Windows tasks on Fargate."
        if "2019" not in system and "2022" not in system:
            yield f"Fargate does not support the operating system family {system}."


def _task_settings(definition: Mapping[str, Any], containers: list[dict[str, Any]]) -> Iterator[str]:
    del containers
    if definition.get("ipcMode"):
        yield "Fargate compatible task definitions do not support ipcMode"
    if definition.get("pidMode", "task") != "task":
        yield "Fargate compatible task definitions support only the pidMode 'task'"
    if definition["placementConstraints"]:
        yield "Fargate compatible task definitions do not support placementConstraints"
    if definition.get("inferenceAccelerators"):
        yield "Fargate compatible task definitions do not support inferenceAccelerators"
    for volume in definition["volumes"]:
        if volume.get("dockerVolumeConfiguration"):
            yield "Fargate compatible task definitions do not support dockerVolumeConfiguration"
        if (volume.get("host") or {}).get("sourcePath"):
            yield "host.sourcePath should not be set for volumes in Fargate."


def _container_settings(definition: Mapping[str, Any], containers: list[dict[str, Any]]) -> Iterator[str]:
    del definition
    for container in containers:
        for name in _NOT_ON_FARGATE:
            if container.get(name):
                yield f"Fargate compatible task definitions do not support {name}"
        linux = container.get("linuxParameters") or {}
        for name in _NO_LINUX_ON_FARGATE:
            if linux.get(name):
                yield f"Fargate compatible task definitions do not support {name}"
        if set((linux.get("capabilities") or {}).get("add") or ()) - {"SYS_PTRACE"}:
            yield "Fargate compatible task definitions only support SYS_PTRACE among the added capabilities"
        if any(each["type"] == "GPU" for each in container.get("resourceRequirements", ())):
            yield "Fargate compatible task definitions do not support GPU"
        for limit in container.get("ulimits", ()):
            if limit["name"] == "nofile" and max(limit["softLimit"], limit["hardLimit"]) > 1_048_576:
                yield "The nofile limit must not exceed 1048576 on Fargate"


def _roles_and_logs(definition: Mapping[str, Any], containers: list[dict[str, Any]]) -> Iterator[str]:
    role = "Fargate requires task definition to have execution role ARN to support"
    for container in containers:
        log = container.get("logConfiguration")
        if log and log["logDriver"] not in _FARGATE_DRIVERS:
            yield f"Fargate does not support the log driver {log['logDriver']}."
        if definition.get("executionRoleArn"):
            continue
        if log and log["logDriver"] == "awslogs":
            yield f"{role} log driver awslogs."
        if container.get("secrets"):
            yield f"{role} secrets."
        if _ECR.match(container["image"]):
            yield f"{role} ECR images."


_FARGATE_CHECKS: Final[tuple[Callable[[Mapping[str, Any], list[dict[str, Any]]], Iterator[str]], ...]] = (
    _windows,
    _task_settings,
    _container_settings,
    _roles_and_logs,
)


def _attributes(definition: Mapping[str, Any], containers: list[dict[str, Any]]) -> Iterator[str]:
    prefix = "com.amazonaws.ecs.capability"
    yield f"{prefix}.docker-remote-api.1.18"
    if definition.get("taskRoleArn"):
        yield f"{prefix}.task-iam-role"
    if definition.get("networkMode") == "awsvpc":
        yield "ecs.capability.task-eni"
    for driver in {(container.get("logConfiguration") or {}).get("logDriver") for container in containers} - {None}:
        yield f"{prefix}.logging-driver.{driver}"
