"""
What is said to the engine and what its words mean. Pure: jobs to JSON bodies, JSON to snapshots, error text to reasons.

Only here does anybody match on the text of an engine's error: its status codes do not tell a missing image from a
registry that is down.
"""

from __future__ import annotations

import io
import ipaddress
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import attrs

from fargate_runner._backend import Identity
from fargate_runner._errors import InvalidJob
from fargate_runner._job import DEADLINE_CONTAINER, HealthCheck, Job, SecretRef, Sidecar, start_order
from fargate_runner._lifecycle import Cause, Phase, Proof, Snapshot

__all__ = [
    "CREDENTIALS_FILE",
    "LABEL",
    "End",
    "Trouble",
    "check",
    "could_not_start",
    "credentials_tar",
    "ended",
    "explain",
    "explain_init",
    "finished_first",
    "gateway",
    "image_platform",
    "is_init_failure",
    "job_name",
    "moment",
    "name_of",
    "passed_deadline",
    "pause_body",
    "pause_name",
    "plan",
    "qualified",
    "registry_of",
    "with_runtime",
]

LABEL: Final = "fargate-runner."
_GIB: Final = 1 << 30
_MIB: Final = 1 << 20
_PLATFORMS: Final = {"X86_64": "linux/amd64", "ARM64": "linux/arm64"}

_TOGETHER: Final = timedelta(seconds=10)
"""How far apart a loaded engine may report ends that were one."""

CREDENTIALS_FILE: Final = "/.fargate-runner/aws-credentials"

# Without rotation: a follower loses lines whenever the engine changes files (moby #23913, #37646).
_LOG: Final = {"Type": "json-file", "Config": dict[str, str]()}


# ---- what we ask for -----------------------------------------------------------------------------------------------


def job_name(token: str) -> str:
    """Return the name of the container that is the job's own, and with it the address of the attempt."""
    return f"fr-{token}"


def name_of(token: str, sidecar: str) -> str:
    """Return the name of a sidecar's container."""
    return f"fr-{token}-{sidecar}"


def pause_name(token: str) -> str:
    """Return the name of the container that holds the network; no sidecar's name begins with a hyphen."""
    return f"fr-{token}--net"


def check(job: Job) -> None:
    """
    Refuse what no engine can run.

    :raises InvalidJob: names the field and the fix
    """
    if job.image is None:
        fix = "give the image that the command is in, or use ProcessBackend"
        raise InvalidJob("image", None, "a container needs an image", fix)
    parts: tuple[Job | Sidecar, ...] = (job, *job.sidecars)
    for part in parts:
        prefix = "" if part is job else "sidecar."
        for variable, secret in part.secrets.items():
            if isinstance(secret, SecretRef):
                problem = "an ARN is resolved by AWS, not by a Docker engine"
                fix = "give the value as Secret(…), for example from os.environ"
                raise InvalidJob(f"{prefix}secrets[{variable!r}]", secret.arn, problem, fix)
    for name in job.tags:
        if name.startswith(LABEL):
            raise InvalidJob("tags", {name: job.tags[name]}, f"the prefix {LABEL} is ours", "choose another key")


def plan(
    job: Job,
    identity: Identity,
    token: str,
    *,
    images: Mapping[str, tuple[str, str] | None],
    cpus: int,
    network: str,
    scratch_path: str,
) -> dict[str, Any]:
    """
    Return the containers of *job* as the engine is asked for them, JSON-able and free of secret values.

    *images* tells the id and the platform of each image that is there already; *cpus* is how many the engine has.
    """
    shared = bool(job.sidecars)
    watchdog = next((side for side in job.sidecars if side.is_watchdog), None)
    parts: dict[str, Job | Sidecar] = {side.name: side for side in job.sidecars} | {job.container_name: job}
    asked = _PLATFORMS.get(job.architecture or "")
    nano = _nano(job.size.vcpu, cpus)
    memory = job.size.memory_mib * _MIB
    containers: list[dict[str, Any]] = []
    for name in sorted(start_order(job), key=lambda name: name != DEADLINE_CONTAINER):
        part = parts[name]
        image = str(part.image)
        found = images.get(image)
        own = part is job
        body = _body(part, identity, found[0] if found else image)
        body["StopTimeout"] = _seconds(job.stop_timeout)
        body["Labels"] = {
            **(dict(job.tags) if own else {}),
            f"{LABEL}namespace": identity.namespace,
            f"{LABEL}key": identity.key,
            f"{LABEL}attempt": str(identity.attempt),
            f"{LABEL}token": token,
            f"{LABEL}role": "job" if own else "sidecar",
            f"{LABEL}container": name,
            f"{LABEL}essential": "yes" if own or (isinstance(part, Sidecar) and part.essential) else "no",
            f"{LABEL}image": image,
            f"{LABEL}stop-timeout": str(_seconds(job.stop_timeout)),
            f"{LABEL}shared": "yes" if shared else "no",
        }
        limits = (nano, memory)
        if isinstance(part, Sidecar):
            limits = (
                _nano(part.vcpu, cpus) if part.vcpu else nano,
                int(part.memory_gib * _GIB) if part.memory_gib else memory,
            )
        body["HostConfig"] = _host(limits, f"container:{pause_name(token)}" if shared else network)
        waits = job.depends_on if own else part.depends_on
        if own and waits is None:
            waits = {side.name: "START" for side in job.sidecars}
        if watchdog is not None and part is not watchdog:
            # The first process of a process namespace takes all others in it along, and the kernel sees to that: an
            # engine ends no container because of another, and we may be dead by then. Its init is theirs as well.
            body["HostConfig"] |= {"PidMode": f"container:{name_of(token, watchdog.name)}", "Init": False}
            waits = {watchdog.name: "START", **(waits or {})}
        containers.append(
            {
                "name": job_name(token) if own else name_of(token, name),
                "container": name,
                "role": "job" if own else "sidecar",
                "image": image,
                "platform": asked or (found[1] if found else None),
                "waits": dict(waits or {}),
                "secrets": sorted(part.secrets),
                "create": body,
            }
        )
    return {
        "containers": containers,
        "architecture": asked,
        "network": network,
        "stop_timeout": _seconds(job.stop_timeout),
        "memory": memory,
        "nano_cpus": nano,
        "scratch_gib": job.ephemeral_storage_gib,
        "scratch_path": scratch_path,
    }


def _body(part: Job | Sidecar, identity: Identity, image: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "Image": image,
        "Env": [f"{name}={value}" for name, value in (identity.variables | dict(part.env)).items()],
    }
    if part.command is not None:
        body["Cmd"] = list(part.command)
    if part.entry_point is not None:
        body["Entrypoint"] = list(part.entry_point)
    if part.working_directory is not None:
        body["WorkingDir"] = part.working_directory
    if isinstance(part, Sidecar) and part.health_check is not None:
        body["Healthcheck"] = _health(part.health_check)
    return body


def _host(limits: tuple[int, int], network: str) -> dict[str, Any]:
    nano, memory = limits
    return {
        "NanoCpus": nano,
        "Memory": memory,
        "MemorySwap": memory,  # the same: no swap, as on Fargate; the engine would allow twice as much
        "NetworkMode": network,
        "Init": True,
        "LogConfig": _LOG,
        "SecurityOpt": ["no-new-privileges"],
        "RestartPolicy": {"Name": "no"},
    }


def _health(check: HealthCheck) -> dict[str, Any]:
    first = check.command[0]
    words = list(check.command) if first in {"CMD", "CMD-SHELL"} else ["CMD", *check.command]
    return {
        "Test": words,
        "Interval": _nanoseconds(check.interval),
        "Timeout": _nanoseconds(check.timeout),
        "Retries": check.retries,
        "StartPeriod": _nanoseconds(check.start_period),
    }


def _nano(vcpu: float, cpus: int) -> int:
    # An engine refuses more than it has; a job that is larger than the machine gets the whole of it.
    return int(min(vcpu, cpus or vcpu) * 1_000_000_000)


def _seconds(duration: timedelta) -> int:
    return max(1, round(duration.total_seconds()))


def _nanoseconds(duration: timedelta) -> int:
    return int(duration / timedelta(microseconds=1)) * 1000


def pause_body(containers: Sequence[Mapping[str, Any]], *, image: str, network: str) -> dict[str, Any]:
    """Return the body for the container that holds the network of *containers*."""
    labels = dict(next(c["create"]["Labels"] for c in containers if c["role"] == "job"))
    labels |= {f"{LABEL}role": "pause", f"{LABEL}container": "", f"{LABEL}essential": "no", f"{LABEL}image": image}
    return {
        "Image": image,
        "StopSignal": "SIGKILL",
        "Labels": labels,
        "HostConfig": {"NetworkMode": network, "LogConfig": _LOG, "SecurityOpt": ["no-new-privileges"]},
    }


def with_runtime(
    body: Mapping[str, Any],
    *,
    labels: Mapping[str, str],
    env: Mapping[str, str],
    mount: Mapping[str, Any] | None = None,
    tmpfs: Mapping[str, str] | None = None,
    cgroup_parent: str | None = None,
) -> dict[str, Any]:
    """Return *body* with what is known only now: owner, secrets, metadata address, mounts."""
    host = dict(body["HostConfig"])
    if mount is not None:
        host["Mounts"] = [dict(mount)]
    if tmpfs is not None:
        host["Tmpfs"] = dict(tmpfs)
    if cgroup_parent is not None:
        host["CgroupParent"] = cgroup_parent
    return {
        **body,
        "Env": [*body.get("Env", ()), *(f"{name}={value}" for name, value in env.items())],
        "Labels": {**body["Labels"], **labels},
        "HostConfig": host,
    }


def credentials_tar(text: str) -> bytes:
    """Return the credentials file as an archive that is unpacked at the root of a container."""
    path = CREDENTIALS_FILE.lstrip("/")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        directory = tarfile.TarInfo(path.rpartition("/")[0])
        directory.type, directory.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(directory)
        member = tarfile.TarInfo(path)
        # Whatever user the image runs as: nobody else is in there.
        member.size, member.mode = len(text.encode()), 0o444
        tar.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def image_platform(inspected: Mapping[str, Any]) -> str:
    """Return an image's platform as the engine wants it in a request."""
    parts = [inspected.get("Os") or "linux", inspected.get("Architecture") or "", inspected.get("Variant") or ""]
    return "/".join(part for part in parts if part)


def qualified(image: str) -> str:
    """Return *image* with its registry, and the tag that is meant if none is named: without, all are pulled."""
    name, at, digest = image.partition("@")
    host, slash, _ = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif not ("." in host or ":" in host or host == "localhost"):
        name = f"docker.io/{name}"
    if not at and ":" not in name.rpartition("/")[2]:
        name += ":latest"
    return f"{name}{at}{digest}"


def registry_of(image: str) -> str:
    """Return the registry that *image* comes from, as ``docker login`` files it."""
    host = qualified(image).partition("/")[0]
    return "https://index.docker.io/v1/" if host == "docker.io" else host


# ---- what it answers -----------------------------------------------------------------------------------------------


def moment(text: str | None) -> datetime | None:
    """Return a time that the engine wrote; the year 1 is its word for never."""
    if not text or text.startswith("0001-"):
        return None
    return datetime.fromisoformat(text)


@attrs.frozen
class Trouble:
    """Why something could not start, in plain words."""

    reason: str
    advice: str
    transient: bool = False
    exit_code: int | None = None


# The first that matches tells. {image}, {command} and {directory} are filled in; [engine 20.10 and later].
_TROUBLES: Final[Sequence[tuple[str, Trouble]]] = [
    (
        r"does not match the specified platform|no matching manifest|wrong platform|exec format error",
        Trouble(
            "the image {image!r} is for another platform than was asked for or can be run here",
            "use an image that is built for this architecture, or set architecture to the image's",
        ),
    ),
    (
        r"toomanyrequests|too many requests|rate limit",
        Trouble("the registry of {image!r} refuses more pulls for now", "wait, or log in to the registry", True),
    ),
    (
        r"no basic auth credentials|unauthorized|authentication required|access (?:to the resource )?is denied|"
        r"error parsing HTTP 403|pull access denied|(?<!permission )denied: ",
        Trouble(
            "the registry refused to give out {image!r}: no access, or no such image",
            "check the name, and run 'docker login' for its registry",
        ),
    ),
    (
        r"manifest unknown|name unknown|manifest for .* not found|repository .* not found|not found: does not exist",
        Trouble("there is no image {image!r} in its registry", "check the image's name and tag"),
    ),
    (
        r"no such host|connection refused|i/o timeout|network is unreachable|no route to host|tls handshake|"
        r"server misbehaving|context deadline exceeded|client\.timeout|unexpected http status: 5|connection reset|"
        r"unexpected eof|: eof\b|temporary failure",
        Trouble(
            "the registry of {image!r} could not be reached",
            "check the registry's name and the network, or load the image into the engine",
            True,
        ),
    ),
    (
        r"no space left on device",
        Trouble("the engine's disk is full", "make room, for example with 'docker system prune'", True),
    ),
    (
        r"invalid reference format",
        Trouble("{image!r} is not the name of an image", "write it like 'registry/name:tag'"),
    ),
    (r"no such image", Trouble("there is no image {image!r}", "check the image's name and tag")),
    (
        # runc also says so of a working directory that it may not enter.
        r"chdir to cwd|cannot mkdir|mkdir .* not a directory|working directory",
        Trouble("the working directory {directory!r} cannot be used", "name a directory that is in the image"),
    ),
    (
        r"executable file not found|no such file or directory|not found in \$path",
        Trouble(
            "the command {command!r} was not found in the image {image!r}", "check the command and PATH", False, 127
        ),
    ),
    (
        r"permission denied|is a directory",
        Trouble("the command {command!r} in the image {image!r} cannot be executed", "make it executable", False, 126),
    ),
    (
        r"unable to find (?:user|group)|no matching entries in (?:passwd|group)",
        Trouble("the image {image!r} names a user or group that is not in it", "repair the image's USER"),
    ),
    (
        r"no command specified",
        Trouble("the image {image!r} says no command, and the job neither", "give the job a command"),
    ),
    (
        r"network .* not found",
        Trouble("the network that the backend was told to use does not exist", "create it, or name another one"),
    ),
    (
        r"cannot join (?:network|pid namespace) of a non running container|cannot allocate memory|"
        r"resource temporarily unavailable|no available .*ipv4|failed to create shim|timeout",
        Trouble("the engine could not start a container now", "try again, with fewer at a time", True),
    ),
]


def explain(words: str, *, image: str, command: str = "", directory: str = "") -> Trouble:
    """Return what the engine's *words* mean for a job that could not start."""
    for pattern, trouble in _TROUBLES:
        if re.search(pattern, words, re.IGNORECASE):
            reason = trouble.reason.format(image=image, command=command, directory=directory)
            return attrs.evolve(trouble, reason=reason)
    return Trouble(f"the engine refused to start it: {words}", "see the engine's words and its log")


# The init process says this instead of the engine, when the command of a container that has started is not there.
_INIT: Final = re.compile(r"\[FATAL tini \(\d+\)\] exec (?P<command>.*) failed: (?P<why>[^\n]*)\Z", re.DOTALL)


def is_init_failure(line: str) -> bool:
    """Whether *line* is what the init process says if it cannot run the command."""
    return _INIT.match(line) is not None


def explain_init(line: str, *, image: str) -> Trouble:
    """Return what such a line means."""
    said = _INIT.match(line)
    assert said is not None
    return explain(said["why"], image=image, command=said["command"])


@attrs.frozen(kw_only=True)
class End:
    """What is known of an end beside what the engine's inspection says."""

    seen_at: datetime
    stopped: str | None = None
    """Why we asked for it, if our asking had an effect."""
    killed_by: int | None = None
    """The signal that somebody else sent through the engine."""
    outage: bool = False
    """Whether the engine was away meanwhile."""
    trouble: Trouble | None = None
    """Why the command never ran, if the init process said so."""


def ended(job: Mapping[str, Any], sidecars: Iterable[Mapping[str, Any]], facts: End) -> Snapshot:
    """Return the snapshot of an attempt whose own container, as inspected, is over."""
    state = job["State"]
    code: int | None = state["ExitCode"]
    created, started, finished = (
        moment(job.get("Created")),
        moment(state.get("StartedAt")),
        moment(state.get("FinishedAt")),
    )
    if started is not None and finished is not None:
        finished = max(finished, started)  # it was seen 0.4 ms before
    if started is not None and created is not None:
        created = min(created, started)
    proof = _proof(state, facts.seen_at)
    trouble = facts.trouble
    if trouble is None and started is None and state.get("Error"):
        trouble = explain(
            state["Error"], image=_image(job), command=str(job.get("Path", "")), directory=_directory(job)
        )
    if trouble is not None:
        return could_not_start(
            trouble, proof=proof, created_at=created, ended_at=finished or facts.seen_at, exit_code=code or None
        )
    cause, reason = _cause(job, list(sidecars), facts)
    return Snapshot(
        phase=Phase.ENDED,
        cause=cause,
        reason=reason,
        exit_code=code,
        created_at=created,
        started_at=started,
        ended_at=finished or facts.seen_at,
        proof=proof,
    )


def _cause(job: Mapping[str, Any], sidecars: list[Mapping[str, Any]], facts: End) -> tuple[Cause, str]:
    state = job["State"]
    if facts.stopped is not None:
        return Cause.STOPPED_ON_REQUEST, facts.stopped
    if passed_deadline(job, sidecars):
        return Cause.DEADLINE, f"the hard deadline passed: {DEADLINE_CONTAINER!r} took the job with it"
    first = finished_first(job, sidecars)
    if first is not None:
        name, code = first["Config"]["Labels"][f"{LABEL}container"], first["State"]["ExitCode"]
        if first["State"].get("OOMKilled") and state.get("OOMKilled"):
            return Cause.OUT_OF_MEMORY, f"the kernel killed the sidecar {name!r} at the job's memory limit"
        how = "was killed at its memory limit" if first["State"].get("OOMKilled") else f"ended with exit code {code}"
        return Cause.SIDECAR_ENDED, f"the essential sidecar {name!r} {how}"
    if state.get("OOMKilled") and not _is_bystander(job, sidecars):
        return Cause.OUT_OF_MEMORY, f"the kernel killed a process at the memory limit of {_limit(job)}"
    if facts.killed_by is not None and facts.outage:
        return Cause.HOST_FAILED, "the engine was shut down and took the container with it"
    if facts.killed_by is not None:
        return Cause.STOPPED_ON_REQUEST, f"somebody else sent it signal {facts.killed_by} through the engine"
    if facts.outage and state["ExitCode"] == 137:
        return Cause.HOST_FAILED, "the engine went away and killed the container when it came back"
    return Cause.EXITED, f"exit code {state['ExitCode']}"


def finished_first(job: Mapping[str, Any], sidecars: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the essential sidecar that ended before the job's own container did, if one did."""
    end = moment(job["State"].get("FinishedAt"))
    over = [
        (at, number, side)
        for number, side in enumerate(sidecars)
        if side["Config"]["Labels"].get(f"{LABEL}essential") == "yes"
        and not side["State"].get("Running")
        and (at := moment(side["State"].get("FinishedAt"))) is not None
        and (end is None or at < end)
    ]
    return min(over)[2] if over else None


def passed_deadline(job: Mapping[str, Any], sidecars: Iterable[Mapping[str, Any]]) -> bool:
    """
    Whether the watchdog had slept its time, and the kernel killed the job with it.

    Told to end before that, it says 143. Where nobody was left to tell it so, it also sleeps on after a job that ended
    by itself; and of those that die together, the first process of the namespace is the last to be reported.
    """
    end = moment(job["State"].get("FinishedAt"))
    if job["State"]["ExitCode"] != 137 or job["State"].get("OOMKilled") or end is None:
        return False
    return any(
        side["State"]["ExitCode"] == 0
        and not side["State"].get("Running")
        and (at := moment(side["State"].get("FinishedAt"))) is not None
        and abs(at - end) <= _TOGETHER
        for side in sidecars
        if side["Config"]["Labels"].get(f"{LABEL}container") == DEADLINE_CONTAINER
    )


def _is_bystander(job: Mapping[str, Any], sidecars: list[Mapping[str, Any]]) -> bool:
    """
    Whether the memory kill that the engine notes for the job was a sidecar's.

    A kill at the limit of a parent control group is reported for every container below it.
    """
    if job["State"]["ExitCode"] != 0 or not job["HostConfig"].get("CgroupParent"):
        return False
    end = moment(job["State"].get("FinishedAt"))
    return any(
        side["State"].get("OOMKilled")
        and side["State"]["ExitCode"] == 137
        and (at := moment(side["State"].get("FinishedAt"))) is not None
        and (end is None or at < end)
        for side in sidecars
    )


def gateway(network: Mapping[str, Any]) -> str | None:
    """Return the address at which containers of a network see the engine's machine, or None if nobody can know it."""
    parts = (network.get("IPAM") or {}).get("Config") or ()
    for part in parts:
        if part.get("Gateway"):
            return str(part["Gateway"])
    if network.get("Driver") != "bridge":
        return None
    # The daemon that made docker0 does not tell its address, only the next one does (Docker 20.10; moby #26799).
    for part in parts:
        if part.get("Subnet"):
            subnet = ipaddress.ip_network(part["Subnet"], strict=False)
            return str(subnet.network_address + 1)
    return None


def could_not_start(
    trouble: Trouble,
    *,
    proof: Proof,
    created_at: datetime | None,
    ended_at: datetime,
    exit_code: int | None = None,
) -> Snapshot:
    """Return the snapshot of an attempt whose command never ran."""
    return Snapshot(
        phase=Phase.ENDED,
        cause=Cause.COULD_NOT_START,
        reason=trouble.reason,
        exit_code=trouble.exit_code or (exit_code if exit_code in {126, 127} else None),
        created_at=created_at,
        ended_at=ended_at,
        transient=trouble.transient,
        advice=trouble.advice,
        proof=proof,
    )


def _proof(state: Mapping[str, Any], seen_at: datetime) -> Proof:
    words = [f"ExitCode {state['ExitCode']}"]
    if state.get("OOMKilled"):
        words.append("OOMKilled")
    if state.get("Error"):
        words.append(f"Error {state['Error']!r}")
    return Proof(source="docker-inspect", seen_at=seen_at, evidence=", ".join(words))


def _image(job: Mapping[str, Any]) -> str:
    return str(job["Config"]["Labels"].get(f"{LABEL}image", job["Config"].get("Image", "")))


def _directory(job: Mapping[str, Any]) -> str:
    return str(job["Config"].get("WorkingDir", ""))


def _limit(job: Mapping[str, Any]) -> str:
    return f"{job['HostConfig'].get('Memory', 0) / _GIB:g} GiB"


Condition = Literal["START", "COMPLETE", "SUCCESS", "HEALTHY"]
