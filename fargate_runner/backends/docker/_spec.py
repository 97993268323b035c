"""Pure: a job as the engine's JSON, and the engine's JSON as a snapshot. No other file here reads a CamelCase key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import attrs

from fargate_runner._backend import Identity, TaskRef
from fargate_runner._job import Job, Sidecar
from fargate_runner._lifecycle import Cause, Phase, Proof, Snapshot

LABEL: Final = "fargate-runner."
_GIB: Final = 2**30
_PLATFORMS: Final = {"X86_64": "linux/amd64", "ARM64": "linux/arm64"}


def platform_of(job: Job) -> str | None:
    return _PLATFORMS[job.architecture] if job.architecture is not None else None


def container_name(token: str, sidecar: str | None = None) -> str:
    return f"fr-{token}" if sidecar is None else f"fr-{token}-{sidecar}"


def pause_name(token: str) -> str:
    return f"fr-{token}--net"


def labels(identity: Identity, token: str, role: str, owner: str, created: str) -> dict[str, str]:
    return {
        f"{LABEL}namespace": identity.namespace,
        f"{LABEL}key": identity.key,
        f"{LABEL}attempt": str(identity.attempt),
        f"{LABEL}token": token,
        f"{LABEL}role": role,
        f"{LABEL}owner": owner,
        f"{LABEL}created": created,
    }


def job_body(job: Job, identity: Identity, image: str) -> dict[str, Any]:
    """The create request of the job's own container, without secrets, labels and network."""
    return _body(job, image) | {
        "Env": _env(identity.variables | dict(job.env)),
        "HostConfig": _host(job.size.cpu_units * 1_000_000_000 // 1024, job.size.memory_mib * 2**20),
        "StopTimeout": int(job.stop_timeout.total_seconds()),
        "_tags": dict(job.tags),
    }


def sidecar_body(side: Sidecar, job: Job, identity: Identity) -> dict[str, Any]:
    cpu = int(side.vcpu * 1e9) if side.vcpu else job.size.cpu_units * 1_000_000_000 // 1024
    memory = int(side.memory_gib * _GIB) if side.memory_gib else job.size.memory_mib * 2**20
    body = _body(side, side.image) | {
        "Env": _env(identity.variables | dict(side.env)),
        "HostConfig": _host(cpu, memory),
        "StopTimeout": int(job.stop_timeout.total_seconds()),
    }
    if check := side.health_check:
        nano = 1_000_000_000
        words = list(check.command)
        body["Healthcheck"] = {
            "Test": words if words[0] in {"CMD", "CMD-SHELL", "NONE"} else ["CMD", *words],
            "Interval": int(check.interval.total_seconds() * nano),
            "Timeout": int(check.timeout.total_seconds() * nano),
            "Retries": check.retries,
            "StartPeriod": int(check.start_period.total_seconds() * nano),
        }
    return body


def _body(part: Job | Sidecar, image: str) -> dict[str, Any]:
    body: dict[str, Any] = {"Image": image, "AttachStdin": False, "Tty": False, "OpenStdin": False}
    if part.command is not None:
        body["Cmd"] = list(part.command)
    if part.entry_point is not None:
        body["Entrypoint"] = list(part.entry_point)
    if part.working_directory is not None:
        body["WorkingDir"] = part.working_directory
    return body


def _env(variables: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in variables.items()]


def _host(nano_cpus: int, memory: int) -> dict[str, Any]:
    return {
        "NanoCpus": nano_cpus,
        "Memory": memory,
        "MemorySwap": memory,  # no swap, as on Fargate; the engine's default would be twice the memory
        "Init": True,
        "LogConfig": {"Type": "json-file", "Config": {}},  # never rotated: a live follow ends at rotation
        "SecurityOpt": ["no-new-privileges"],
        "RestartPolicy": {"Name": ""},
    }


@attrs.frozen
class Said:
    """What an engine's refusal means for a job."""

    reason: str
    advice: str
    transient: bool = False
    exit_code: int | None = None


# Fragments of the engine's own words (Docker 20.10 to 28, Podman 4), the first that fits; measured, see facts.
_MEANINGS: Final = (
    ("executable file not found", "the command was not found in the image", "check the command and the image's PATH", False, 127),
    ("no such file or directory", "the command, or its interpreter, is not in the image", "check the command's path", False, 127),
    ("exec format error", "the command is for another architecture", "use an image of this platform", False, 126),
    ("permission denied", "the command is not executable", "make it executable in the image (chmod +x)", False, 126),
    ("does not match the specified platform", "the image is for another platform", "use another architecture or image", False, None),
    ("no matching manifest", "the image is not there for this platform", "use another architecture or image", False, None),
    ("pull access denied", "the registry refused the image, or does not know it", "check the name, and log in to the registry", False, None),
    ("unauthorized", "the registry refused the image: no or wrong credentials", "log in to the registry (docker login)", False, None),
    ("no basic auth credentials", "the registry asks for credentials", "log in to the registry (docker login)", False, None),
    ("denied", "the registry refused the image", "check your rights on the repository", False, None),
    ("manifest unknown", "the registry has no such image", "check the image's name and tag", False, None),
    ("name unknown", "the registry has no such repository", "check the image's name", False, None),
    ("not found: ", "the registry has no such image", "check the image's name and tag", False, None),
    ("No such image", "there is no such image", "check the image's name, or build it", False, None),
    ("invalid reference format", "the image's name is not one", "check the image's name", False, None),
    ("toomanyrequests", "the registry limits the rate of pulls", "wait, or log in", True, None),
    ("connection refused", "the registry does not answer", "check its address and the network", True, None),
    ("no such host", "the registry's name cannot be resolved", "check the image's name and the network", True, None),
    ("i/o timeout", "the registry does not answer in time", "check the network", True, None),
    ("TLS handshake", "the registry does not answer in time", "check the network", True, None),
    ("unexpected HTTP status: 5", "the registry is in trouble", "try again later", True, None),
    ("no space left on device", "the engine's disk is full", "make room (docker system prune)", False, None),
    ("unable to find user", "the image's user does not exist in it", "repair the image", False, None),
    ("is not a directory", "the working directory is a file in the image", "check working_directory", False, None),
)


def meaning(text: str) -> Said:
    """Say in plain words why the engine did not start a container."""
    for fragment, reason, advice, transient, code in _MEANINGS:
        if fragment in text:
            return Said(f"{reason} ({text})", advice, transient, code)
    return Said(f"the engine refused: {text}", "read the engine's own words", True)


def moment(text: str | None) -> datetime | None:
    """The engine's time stamp; its zero is the year 1."""
    if not text or text.startswith("0001-"):
        return None
    return datetime.fromisoformat(text[:26].rstrip("Z") + ("+00:00" if "+" not in text[:26] else ""))


def own_snapshot(inspected: Mapping[str, Any], *, stopped: str | None, init_failed: str | None = None) -> Snapshot:
    """Read the job's own container."""
    state = inspected["State"]
    created_at = moment(inspected.get("Created"))
    started_at, ended_at = moment(state.get("StartedAt")), moment(state.get("FinishedAt"))
    status = state.get("Status")
    if status == "created":
        return Snapshot(phase=Phase.STARTING, created_at=created_at)
    if state.get("Running") or status in {"running", "paused", "restarting"}:
        return Snapshot(phase=Phase.RUNNING, created_at=created_at, started_at=started_at)
    code, oom = state.get("ExitCode"), bool(state.get("OOMKilled"))
    evidence = f"ExitCode {code}, OOMKilled {oom}" + (f", Error {state['Error']}" if state.get("Error") else "")
    proof = Proof(source="docker-inspect", seen_at=datetime.now(UTC), evidence=evidence)
    cause, reason, advice = Cause.EXITED, "", ""
    if init_failed is not None:
        said = meaning(init_failed)
        return Snapshot(
            phase=Phase.ENDED, cause=Cause.COULD_NOT_START, reason=said.reason, advice=said.advice,
            exit_code=code, created_at=created_at, ended_at=ended_at, proof=proof,
        )
    if oom:
        cause, reason = Cause.OUT_OF_MEMORY, "the kernel killed a process of the job at its memory limit"
    elif stopped is not None:
        cause, reason = Cause.STOPPED_ON_REQUEST, stopped
    if started_at is not None and ended_at is not None and ended_at < started_at:
        ended_at = started_at  # Docker was seen to stamp the end 0.4 ms before the start
    if created_at is not None and started_at is not None and started_at < created_at:
        created_at = started_at
    return Snapshot(
        phase=Phase.ENDED, cause=cause, reason=reason, advice=advice, exit_code=code,
        created_at=created_at, started_at=started_at, ended_at=ended_at, proof=proof,
    )


def ref_of(found: Mapping[str, str], address: str, created: datetime | None = None) -> TaskRef:
    """The address of an attempt, from the labels of its job container."""
    description = found.get(f"{LABEL}job")
    return TaskRef(
        backend="docker",
        address=address,
        key=found[f"{LABEL}key"],
        attempt=int(found[f"{LABEL}attempt"]),
        token=found[f"{LABEL}token"],
        description=json.loads(description) if description else None,
        created_at=created,
    )


def age(text: str | None, now: datetime) -> timedelta:
    at = moment(text)
    return now - at if at is not None else timedelta()
