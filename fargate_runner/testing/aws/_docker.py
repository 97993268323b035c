"""
Tasks that are real containers: the fake AWS's world on our own Docker backend. One execution engine, two faces.

A task definition becomes a `Job` with sidecars, and the launch that the backend prepares for it is completed with what
a job cannot say: users, capabilities, volumes, health checks of the job's own container. What is then seen of the
containers becomes the world's statuses, exit codes and log lines. What no container here can honour is refused by
name, as a task that could not start; nothing is left out in silence.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import resource
import socket
import struct
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

import anyio
import anyio.to_thread
import attrs
from anyio import CancelScope
from anyio.abc import TaskGroup

from fargate_runner._backend import Identity, Launch, TaskRef, sheltered_tasks
from fargate_runner._errors import BackendError, InvalidJob, LogsUnavailable
from fargate_runner._job import Job, Sidecar
from fargate_runner.backends.docker import _backend as docker
from fargate_runner.backends.docker import _spec
from fargate_runner.backends.docker._spec import LABEL
from fargate_runner.testing.aws._engine import Engine
from fargate_runner.testing.aws._script import OUT_OF_MEMORY
from fargate_runner.testing.aws._task import Container, Task

__all__ = ["DockerEngine"]

_log = logging.getLogger(__name__)

_OURS: Final = "fake-aws"
"""The label of everything that an engine of ours makes, and how its namespaces begin."""
_FLUSH_EVERY: Final = 0.2
_BATCH: Final = 1000
_HEALTH_EVERY: Final = 1.0
_CLOSE_PATIENCE: Final = 60.0
_MIB: Final = 1 << 20
_UNBOUNDED: Final = 1 << 50
_SAID_BY_ENGINE: Final = re.compile(r"(?P<words>.*) \(HTTP \d+\)\Z", re.DOTALL)


class _Unsupported(Exception):
    """The task asks for what a container here cannot have."""


class DockerEngine(Engine):
    """
    Runs tasks as containers of a Docker engine, by way of `fargate_runner.DockerBackend`.

    *url* and *network* are those of the backend. Inside `running` tasks can be started; leaving it removes every
    container and volume that was made, and the next one removes what a killed process has left.

    Where the engine may not raise limits (a virtual machine without CAP_SYS_RESOURCE), ulimits above its own become
    its own, with a warning in the log.
    """

    shows_activating: ClassVar[bool] = False

    def __init__(self, url: str | None = None, *, network: str = "bridge", region: str = "us-east-1") -> None:
        self._url = url
        self._network = network
        self._region = region
        self._runs: dict[str, _Run] = {}
        self._volumes: set[str] = set()
        self._nonce = ""
        self._tasks: TaskGroup | None = None
        self._ceilings: Mapping[str, int] = {}

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """
        Be connected to the engine.

        :raises BackendUnavailable: none answers; says where we looked and what to do
        """
        self._nonce = os.urandom(6).hex()
        self._runs.clear()
        self._volumes.clear()
        async with _TaskBackend(self._url, network=self._network) as self._backend:
            self._backend.clearing = self._before_clearing
            self._ceilings = await anyio.to_thread.run_sync(_ceilings, self._backend.socket)
            await self._reap()
            try:
                async with sheltered_tasks() as self._tasks:
                    yield
            finally:
                self._tasks = None
                with CancelScope(shield=True), anyio.move_on_after(_CLOSE_PATIENCE):
                    await self._remove_everything()

    # ---- what the world asks for -----------------------------------------------------------------------------------

    def start(self, task: Task) -> None:
        if self._tasks is None:
            return  # closed while the task was on its way
        run = self._runs[task.arn] = _Run(task)
        self._tasks.start_soon(self._see_through, run)

    def stop(self, task: Task) -> None:
        run = self._runs.get(task.arn)
        if run is None or run.is_stopping or self._tasks is None:
            return
        run.is_stopping = True
        self._tasks.start_soon(self._stop, run)

    def kill(self, task: Task) -> None:
        run = self._runs.get(task.arn)
        if run is None or self._tasks is None:
            return
        run.is_stopping = run.is_killed = True
        self._tasks.start_soon(self._stop, run)

    # ---- one task --------------------------------------------------------------------------------------------------

    async def _see_through(self, run: _Run) -> None:
        task = run.task
        try:
            self.world.pulling(task)
            try:
                launch = await self._launch_of(run)
                if run.is_stopping:
                    return
                run.ref = ref = await self._insist(partial(self._backend.submit, launch))
            except (_Unsupported, InvalidJob, BackendError) as exc:
                reason = f"CannotCreateContainerError: {exc}"
                self.world.failed_to_start(task, reason, container=run.own, container_reason=reason)
                return
            run.record = self._backend.record(ref)
            if run.is_stopping and self._tasks is not None:
                self._tasks.start_soon(self._stop, run)
            await self._watch(run, launch)
        finally:
            with CancelScope(shield=True):
                self.world.finished(task)
                await self._free(run)

    async def _insist(self, call: Callable[[], Any]) -> Any:
        """Ask again for as long as the engine is away."""
        while True:
            try:
                return await call()
            except BackendError as exc:
                if not exc.retryable:
                    raise
            await anyio.sleep(0.5)

    async def _watch(self, run: _Run, launch: Launch) -> None:
        record = run.record
        assert record is not None
        async with anyio.create_task_group() as readers:
            if any(_writes_to_cloudwatch(container) for container in run.task.containers):
                readers.start_soon(self._read, run)
            async with anyio.create_task_group() as tellers:
                tellers.start_soon(self._tell_pulled, run)
                for member in record.members:
                    if member.role != "pause":
                        tellers.start_soon(self._tell, run, member)
                await self._until_ended(run)
                tellers.cancel_scope.cancel()
        if record.failure is not None and not record.job.started.is_set() and not run.essential_exited:
            await self._tell_failure(run, launch, record.failure)
        for member in record.members:
            if member.role != "pause":
                await self._tell_exit(run, member)

    async def _until_ended(self, run: _Run) -> None:
        record = run.record
        assert record is not None
        while not record.ended:
            await record.changed.wait()

    async def _tell_pulled(self, run: _Run) -> None:
        assert run.record is not None
        await run.record.placed.wait()
        if run.record.failure is None and not run.is_stopping:
            self.world.pulled(run.task)

    async def _tell(self, run: _Run, member: docker._Member) -> None:
        await member.started.wait()
        await self._tell_start(run, member)
        if member.container in run.with_health_check:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._tell_health, run, member)
                await member.over.wait()
                tasks.cancel_scope.cancel()
        await member.over.wait()
        await self._tell_exit(run, member)

    async def _tell_start(self, run: _Run, member: docker._Member) -> None:
        async with run.telling[member.container]:
            if member.container in run.started:
                return
            found = await self._inspected(member.id)
            image = await self._insist(partial(self._backend.image, found["Image"])) if found else None
            address = await self._address(run, found)
            run.started.add(member.container)
            self.world.container_started(
                run.task,
                member.container,
                runtime_id=member.id,
                image_digest=_digest(image) if image else "",
                address=address,
            )

    async def _tell_exit(self, run: _Run, member: docker._Member) -> None:
        """Tell how a container ended that is over; nothing if it never ran."""
        if not member.started.is_set():
            return
        await self._tell_start(run, member)
        async with run.telling[member.container]:
            if member.container in run.exited:
                return
            found = await self._inspected(member.id)
            if found is not None and found["State"]["Running"]:
                return
            if found is None:
                code, reason = None, "CannotInspectContainerError: No such container; it was removed by hand"
            else:
                # Of a host that is gone nobody hears how its containers ended.
                code = None if run.is_killed else found["State"]["ExitCode"]
                reason = OUT_OF_MEMORY if await self._ran_out_of_memory(run, member, found) else ""
            run.exited.add(member.container)
            run.essential_exited = run.essential_exited or member.essential
            self._flush(run)
            self.world.container_exited(run.task, member.container, exit_code=code, reason=reason)

    async def _ran_out_of_memory(self, run: _Run, member: docker._Member, found: Mapping[str, Any]) -> bool:
        # The agent of ECS goes by this flag alone, whatever the exit code. But where containers share a limit the
        # flag is also set for those that were only there when another one was killed.
        if not found["State"].get("OOMKilled"):
            return False
        record = run.record
        if member.role != "job" or record is None or not record.shared:
            return True
        sidecars: list[Mapping[str, Any]] = [
            part for m in record.others if m.role == "sidecar" and (part := await self._inspected(m.id))
        ]
        return not _spec._is_bystander(found, sidecars)

    async def _tell_health(self, run: _Run, member: docker._Member) -> None:
        last = None
        while True:
            found = await self._inspected(member.id)
            status = ((found or {"State": {}})["State"].get("Health") or {}).get("Status")
            if status in {"healthy", "unhealthy"} and status != last:
                last = status
                self.world.container_healthy(run.task, member.container, healthy=status == "healthy")
            await anyio.sleep(_HEALTH_EVERY)

    async def _tell_failure(self, run: _Run, launch: Launch, failure: docker._Unstartable) -> None:
        reason, container, code = await self._words_of(run, launch, failure)
        self.world.failed_to_start(run.task, reason, container=container, container_reason=reason, exit_code=code)

    async def _words_of(self, run: _Run, launch: Launch, failure: docker._Unstartable) -> tuple[str, str, int | None]:
        """Return what ECS says of a task that did not start, of which container, and its exit code."""
        record = run.record
        assert record is not None
        said = _SAID_BY_ENGINE.match(failure.evidence)
        if said is None:
            reason = failure.trouble.reason.replace("the job", f"container {run.own!r}").replace("sidecar", "container")
            return f"TaskDependencyError: {reason}", record.job.container, None
        words = f"Error response from daemon: {said['words']}"
        for member in record.members:
            found = await self._inspected(member.id) if member.id else None
            if found is not None and found["State"].get("Error"):
                code = found["State"]["ExitCode"] or None
                return f"CannotStartContainerError: {words}", member.container or record.job.container, code
        for part in launch.request["containers"]:
            if await self._backend.image(part["image"]) is None:
                return f"CannotPullContainerError: {words}", part["container"], None
        missing = next((m.container for m in record.members if not m.id and m.container), record.job.container)
        return f"CannotCreateContainerError: {words}", missing, None

    # ---- stopping --------------------------------------------------------------------------------------------------

    async def _stop(self, run: _Run) -> None:
        """SIGTERM to every container, each one's own ``stop_timeout``, SIGKILL."""
        if run.ref is None or run.record is None:
            return  # it is seen before anything is started
        with suppress(BackendError):
            await self._backend.stop(run.ref, reason="StopTask")
        running = [m for m in run.record.members if m.role != "pause" and m.started.is_set() and m.id]
        async with anyio.create_task_group() as tasks:
            for member in running:
                tasks.start_soon(self._stop_one, run, member)

    async def _stop_one(self, run: _Run, member: docker._Member) -> None:
        try:
            if run.is_killed:
                await self._backend.kill_container(member.id)
            else:
                await self._backend.stop_container(member.id, _stop_timeout(run.containers[member.container]))
        except BackendError:
            pass  # it is over, or the engine is away: then the backend's own stop insists

    async def _before_clearing(self, record: docker._Record) -> None:
        """Tell of sidecars that ran although the job's own container did not, before they are removed."""
        run = next((run for run in self._runs.values() if run.record is record), None)
        if run is not None and self._tasks is not None:
            await self._stop(run)
            for member in record.others:
                if member.role != "pause" and member.id:
                    await self._tell_exit(run, member)

    # ---- output ----------------------------------------------------------------------------------------------------

    async def _read(self, run: _Run) -> None:
        assert run.ref is not None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._flush_now_and_then, run)
            try:
                async with aclosing(self._backend.logs(run.ref, follow=True)) as lines:
                    async for line in lines:
                        at = line.at or datetime.now(UTC)
                        batch = run.output.setdefault(line.container, [])
                        batch.append((at, line.text))
                        if len(batch) >= _BATCH:
                            self._flush(run)
            except (BackendError, LogsUnavailable):
                pass  # what is there was told; a task without containers has no lines
            tasks.cancel_scope.cancel()
        self._flush(run)

    async def _flush_now_and_then(self, run: _Run) -> None:
        while True:
            await anyio.sleep(_FLUSH_EVERY)
            self._flush(run)

    def _flush(self, run: _Run) -> None:
        output, run.output = run.output, {}
        for name, lines in output.items():
            # The two streams of a container come apart; one log stream has them in the order they were written.
            lines.sort(key=lambda line: line[0])
            self.world.output(run.task, name, [(int(at.timestamp() * 1000), text) for at, text in lines])

    # ---- what is asked of the engine -------------------------------------------------------------------------------

    async def _launch_of(self, run: _Run) -> Launch:
        """
        Return the launch of a task.

        :raises _Unsupported: it asks for something that cannot be had here
        :raises InvalidJob: its names or images are none that the backend takes
        """
        task = run.task
        definition = task.definition
        own = run.containers[run.own]
        others = [container for name, container in run.containers.items() if name != run.own]
        platform = definition.get("runtimePlatform") or {}
        if not str(platform.get("operatingSystemFamily", "LINUX")).startswith("LINUX"):
            raise _Unsupported(f"{platform['operatingSystemFamily']} containers do not run on this engine")
        for field in ("proxyConfiguration", "inferenceAccelerators"):
            if definition.get(field):
                raise _Unsupported(f"{field} is not available with real containers")
        volumes = await self._volumes_of(task)
        job = Job(
            name="task",
            image=own.run.image,
            container_name=run.own,
            architecture=platform.get("cpuArchitecture"),
            sidecars=[Sidecar(name=c.name, image=c.run.image, essential=c.essential) for c in others],
            stop_timeout=timedelta(seconds=30),
        )
        identity = Identity(namespace=f"{_OURS}-{self._nonce}", key=task.arn, attempt=1)
        launch: Launch = await self._insist(partial(self._backend.prepare, job, identity))
        request: dict[str, Any] = dict(launch.request)
        cpu, memory = _size(task)
        ncpu = self._backend.ncpu
        request["nano_cpus"] = int(min(cpu / 1024, ncpu) * 1e9) if cpu else int(ncpu * 1e9)
        request["memory"] = memory * _MIB if memory else _UNBOUNDED
        # The longest of all: what ends sooner is stopped by ourselves, each container after its own time.
        request["stop_timeout"] = max(_stop_timeout(container) for container in run.containers.values())
        mode = definition.get("networkMode", "bridge")
        if mode in {"host", "none"}:
            request["network"] = mode
        request["pid_mode"] = _pid_mode(definition, launch.token, shared=bool(others))
        labels = {f"{LABEL}{_OURS}": self._nonce, f"{LABEL}stop-timeout": str(request["stop_timeout"])}
        labels |= _told_to_metadata(task)
        for part in request["containers"]:
            container = run.containers[part["container"]]
            _complete(
                part,
                container,
                request=request,
                labels=labels,
                volumes=volumes,
                shared=bool(others),
                environment=self._environment_of(task, container),
                ceilings=self._ceilings,
                own=run.own,
            )
            if part["create"].get("Healthcheck"):
                run.with_health_check.add(part["container"])
        return attrs.evolve(launch, request=request)

    def _environment_of(self, task: Task, container: Container) -> dict[str, str]:
        """Return a container's variables, and before them those that ECS gives to all."""
        given = {
            "AWS_EXECUTION_ENV": f"AWS_ECS_{'FARGATE' if task.launch_type == 'FARGATE' else 'EC2'}",
            "AWS_REGION": self._region,
            "AWS_DEFAULT_REGION": self._region,
        }
        return given | dict(container.run.environment)

    async def _volumes_of(self, task: Task) -> dict[str, str]:
        """Make the volumes of a task; return what the engine binds for each."""
        found: dict[str, str] = {}
        for volume in task.definition.get("volumes") or ():
            name, host = volume["name"], volume.get("host") or {}
            if host.get("sourcePath"):
                found[name] = host["sourcePath"]
                continue
            if volume.get("fsxWindowsFileServerVolumeConfiguration"):
                raise _Unsupported(f"volume {name!r}: FSx for Windows is not available with real containers")
            scope = task.arn
            if efs := volume.get("efsVolumeConfiguration"):
                # Whoever mounts the same file system sees the same files, for as long as the fake AWS lives.
                scope = f"efs/{efs['fileSystemId']}{efs.get('rootDirectory', '/')}"
                scope += str((efs.get("authorizationConfig") or {}).get("accessPointId", ""))
                name = "efs"
            elif (volume.get("dockerVolumeConfiguration") or {}).get("scope") == "shared":
                scope = "shared"
            digest = hashlib.sha256(f"{scope}\0{name}".encode()).hexdigest()[:24]
            made = f"fr-{_OURS}-{self._nonce}-{digest}"
            self._volumes.add(made)
            if scope == task.arn:
                self._runs[task.arn].volumes.append(made)
            await self._backend.make_volume(made, {f"{LABEL}{_OURS}": self._nonce})
            found[volume["name"]] = made
        return found

    async def _inspected(self, container: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = await self._insist(partial(self._backend.inspect, container))
        return found

    async def _address(self, run: _Run, found: Mapping[str, Any] | None) -> str:
        record = run.record
        if record is not None and record.shared:
            found = await self._inspected(record.others[0].id)
        for network in ((found or {}).get("NetworkSettings") or {}).get("Networks", {}).values():
            if network.get("IPAddress"):
                return str(network["IPAddress"])
        return ""

    # ---- leaving nothing behind ------------------------------------------------------------------------------------

    async def _free(self, run: _Run) -> None:
        """Remove what an ended task held; the world remembers the rest."""
        try:
            if run.ref is not None and self._tasks is not None:
                await self._backend.forget(run.ref)
                for volume in run.volumes:
                    await self._backend.remove_volume(volume)
                    self._volumes.discard(volume)
        except BackendError:
            pass  # it is found when we leave

    async def _remove_everything(self) -> None:
        """Remove all containers, whatever they are at, and then the volumes."""
        self._backend.clearing = None
        try:
            runs = tuple(self._runs.values())
            for run in runs:
                if run.ref is not None and run.record is not None and not run.record.settled.is_set():
                    await self._backend.stop(run.ref, reason="the fake AWS is closed")
            for run in runs:
                if run.record is not None:
                    await run.record.settled.wait()
            await self._backend.remove_labelled(f"{LABEL}{_OURS}={self._nonce}")
            for volume in self._volumes:
                await self._backend.remove_volume(volume)
        except BackendError:
            pass  # the engine is away; the next one that starts finds it

    async def _reap(self) -> None:
        """Remove what fake AWSes of dead processes have left."""
        with suppress(BackendError):
            await self._backend.remove_labelled(f"{LABEL}{_OURS}", only_abandoned=True)


@attrs.define(eq=False)
class _Run:
    """A task that was started, as we know it."""

    task: Task
    own: str = attrs.field(init=False)
    """The container that is the job's own; the others are its sidecars."""
    containers: dict[str, Container] = attrs.field(init=False)
    telling: dict[str, anyio.Lock] = attrs.field(init=False)
    ref: TaskRef | None = None
    record: docker._Record | None = None
    is_stopping: bool = False
    is_killed: bool = False
    started: set[str] = attrs.field(factory=set)
    exited: set[str] = attrs.field(factory=set)
    essential_exited: bool = False
    with_health_check: set[str] = attrs.field(factory=set)
    output: dict[str, list[tuple[datetime, str]]] = attrs.field(factory=dict)
    volumes: list[str] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.containers = {container.name: container for container in self.task.containers if container.defined}
        self.telling = {name: anyio.Lock() for name in self.containers}
        waits = [on for container in self.containers.values() for on in container.definition.get("dependsOn") or ()]
        waited_for = {on["containerName"] for on in waits}
        essential = [name for name, container in self.containers.items() if container.essential]
        self.own = next((name for name in essential if name not in waited_for), (essential or [*self.containers])[0])


class _TaskBackend(docker.DockerBackend):
    """The Docker backend, and what a task needs of it beyond a job."""

    clearing: Callable[[docker._Record], Any] | None = None

    @property
    def ncpu(self) -> int:
        return self._engine.ncpu

    @property
    def socket(self) -> str | None:
        """The path of the engine's socket, if it is on this machine."""
        url = self._engine.endpoint.url
        return url.removeprefix("unix://") if self._engine.is_here and url.startswith("unix://") else None

    def record(self, ref: TaskRef) -> docker._Record:
        return self._records[ref.address]

    async def inspect(self, container: str) -> dict[str, Any] | None:
        return await self._engine.inspect(container)

    async def image(self, name: str) -> dict[str, Any] | None:
        return await self._engine.image(name)

    async def stop_container(self, container: str, seconds: int) -> None:
        await self._engine.stop(container, seconds)

    async def kill_container(self, container: str) -> None:
        await self._engine.call("POST", f"/containers/{container}/kill", accept=(404, 409))

    async def make_volume(self, name: str, labels: Mapping[str, str]) -> None:
        await self._engine.call("POST", "/volumes/create", body={"Name": name, "Labels": dict(labels)})

    async def remove_volume(self, name: str) -> None:
        await self._engine.call("DELETE", f"/volumes/{name}", params={"force": "1"}, accept=(404, 409))

    async def remove_labelled(self, label: str, *, only_abandoned: bool = False) -> None:
        """Remove the containers that bear a label, and the volumes if they are of dead processes."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for found in await self._engine.list(label):
            groups.setdefault(found["Labels"][f"{LABEL}token"], []).append(found)
        nonces: set[str] = set()
        async with anyio.create_task_group() as tasks:
            for group in groups.values():
                if only_abandoned and not await docker._is_abandoned(group):
                    continue
                nonces |= {found["Labels"].get(f"{LABEL}{_OURS}", "") for found in group}
                for found in group:
                    tasks.start_soon(self._remove_one, found["Id"])
        if only_abandoned and nonces:
            params = {"filters": f'{{"label": ["{LABEL}{_OURS}"]}}'}
            for volume in (await self._engine.call("GET", "/volumes", params=params)).get("Volumes") or ():
                if (volume.get("Labels") or {}).get(f"{LABEL}{_OURS}") in nonces:
                    await self.remove_volume(volume["Name"])

    async def _remove_one(self, container: str) -> None:
        try:
            async with self._starts:
                await self._engine.remove(container, force=True)
        except BackendError:
            pass

    async def _clear(self, record: docker._Record) -> None:
        if self.clearing is not None:
            await self.clearing(record)
        await super()._clear(record)

    async def _start_in_order(
        self, record: docker._Record, part: Mapping[str, Any], member: docker._Member, watchers: TaskGroup
    ) -> None:
        # A job's sidecars never wait for the job; containers of a task may wait for any other.
        condition = part.get("waits_for_job")
        if condition is not None:
            try:
                await self._comes_true(record, member, record.job, condition)
            except docker._Unstartable as exc:
                record.failure = record.failure or exc
                record.starting.cancel()
                return
        await super()._start_in_order(record, part, member, watchers)


# ---- task definitions to container bodies --------------------------------------------------------------------------

# What would need more than containers: refused by name, where it is asked for.
_REFUSED: Final = {
    "links": "container links",
    "credentialSpecs": "credential specs",
    "pseudoTerminal": "a pseudo-terminal",
    "volumesFrom": "volumesFrom",
    "firelensConfiguration": "FireLens",
}
# On a network that several containers share, these belong to the one that holds it.
_OF_THE_NETWORK: Final = {
    "hostname": "Hostname",
    "dnsServers": "Dns",
    "dnsSearchDomains": "DnsSearch",
    "extraHosts": "ExtraHosts",
}


_CAP_SYS_RESOURCE: Final = 24
_ULIMITS: Final = {
    *("core", "cpu", "data", "fsize", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime"),
    *("sigpending", "stack"),
}
_LIMITS: Final = ("cpu", "memory", "memoryReservation")


def _complete(
    part: dict[str, Any],
    container: Container,
    *,
    request: Mapping[str, Any],
    labels: Mapping[str, str],
    volumes: Mapping[str, str],
    shared: bool,
    environment: Mapping[str, str],
    ceilings: Mapping[str, int],
    own: str,
) -> None:
    """
    Complete what the backend would ask the engine for with what the definition of a container says.

    :raises _Unsupported: it says something that cannot be had here
    """
    definition, run = container.definition, container.run
    name, body = run.name, part["create"]
    host = body["HostConfig"]
    for field, what in _REFUSED.items():
        if definition.get(field):
            raise _Unsupported(f"container {name!r} asks for {what}, which real containers do not get here")
    _log_driver(definition, name)
    if (definition.get("restartPolicy") or {}).get("enabled"):
        raise _Unsupported(f"container {name!r} asks for a restart policy, which real containers do not get here")
    if any(need.get("type") != "GPU" or need.get("value") for need in definition.get("resourceRequirements") or ()):
        raise _Unsupported(f"container {name!r} asks for a GPU or accelerator, which this engine is not asked for")

    body["Env"] = [f"{key}={value}" for key, value in environment.items()]
    body["Labels"] |= {**(definition.get("dockerLabels") or {}), **labels}
    body["StopTimeout"] = _stop_timeout(container)
    for key, words in (("Cmd", run.command), ("Entrypoint", run.entry_point)):
        if words:
            body[key] = list(words)
    for key, field in (("WorkingDir", "workingDirectory"), ("User", "user"), ("OpenStdin", "interactive")):
        if definition.get(field):
            body[key] = definition[field]
    if check := definition.get("healthCheck"):
        body["Healthcheck"] = _health(check)

    host |= _limits(container, request)
    host |= {
        "Init": False,
        "SecurityOpt": list(definition.get("dockerSecurityOptions") or ()),
        "ReadonlyRootfs": bool(definition.get("readonlyRootFilesystem")),
        "Privileged": bool(definition.get("privileged")),
        "Ulimits": [_ulimit(one, ceilings, name) for one in definition.get("ulimits") or ()],
        "Binds": _binds(definition, volumes, name),
    }
    host |= _linux(definition.get("linuxParameters") or {}, name)
    if pid := request["pid_mode"]:
        host["PidMode"] = pid
    _network(definition, body, host, shared=shared, network=request["network"], name=name)
    _waits(part, definition, own)


def _log_driver(definition: Mapping[str, Any], name: str) -> None:
    driver = (definition.get("logConfiguration") or {}).get("logDriver")
    if driver in {"awsfirelens", "splunk", "fluentd", "gelf", "syslog"}:
        raise _Unsupported(f"container {name!r} logs by {driver}, which leads nowhere here; use awslogs or json-file")


def _limits(container: Container, request: Mapping[str, Any]) -> dict[str, Any]:
    definition = {**container.definition, **{k: v for k, v in container.override.items() if k in _LIMITS}}
    memory = min(definition["memory"] * _MIB, request["memory"]) if definition.get("memory") else request["memory"]
    found: dict[str, Any] = {"NanoCpus": request["nano_cpus"]}
    found |= {"Memory": 0, "MemorySwap": 0} if memory == _UNBOUNDED else {"Memory": memory, "MemorySwap": memory}
    if definition.get("memoryReservation"):
        found["MemoryReservation"] = definition["memoryReservation"] * _MIB
    if definition.get("cpu"):
        found["CpuShares"] = max(2, definition["cpu"])
    return found


def _ulimit(asked: Mapping[str, Any], ceilings: Mapping[str, int], name: str) -> dict[str, Any]:
    limit, soft, hard = asked["name"], asked["softLimit"], asked["hardLimit"]
    ceiling = ceilings.get(limit)
    if ceiling is None or max(soft, hard) <= ceiling:
        return {"Name": limit, "Soft": soft, "Hard": hard}
    _log.warning("container %r: this engine gives %s up to %d, not %d", name, limit, ceiling, hard)
    return {"Name": limit, "Soft": min(soft, ceiling), "Hard": min(hard, ceiling)}


def _ceilings(path: str | None) -> dict[str, int]:
    """Return the limits that the engine behind a socket of this machine cannot raise."""
    if path is None:
        return {}
    try:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(path)
            pid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        status = Path(f"/proc/{pid}/status").read_text()
        capabilities = int(status.partition("CapEff:")[2].split()[0], 16)
        if capabilities >> _CAP_SYS_RESOURCE & 1:
            return {}
        named = {name.removeprefix("RLIMIT_").lower(): getattr(resource, name) for name in dir(resource)}
        hard = {name: resource.prlimit(pid, number)[1] for name, number in named.items() if name in _ULIMITS}
    except (OSError, ValueError, IndexError):
        return {}
    return {name: limit for name, limit in hard.items() if limit != resource.RLIM_INFINITY}


def _health(check: Mapping[str, Any]) -> dict[str, Any]:
    second = 1_000_000_000
    return {
        "Test": list(check["command"]),
        "Interval": check.get("interval", 30) * second,
        "Timeout": check.get("timeout", 5) * second,
        "Retries": check.get("retries", 3),
        "StartPeriod": check.get("startPeriod", 0) * second,
    }


def _binds(definition: Mapping[str, Any], volumes: Mapping[str, str], name: str) -> list[str]:
    found: list[str] = []
    for mount in definition.get("mountPoints") or ():
        source = volumes.get(mount.get("sourceVolume", ""))
        if source is None:
            raise _Unsupported(
                f"container {name!r} mounts {mount.get('sourceVolume')!r}, which is no volume of its task"
            )
        found.append(f"{source}:{mount['containerPath']}{':ro' if mount.get('readOnly') else ''}")
    return found


def _linux(parameters: Mapping[str, Any], name: str) -> dict[str, Any]:
    capabilities = parameters.get("capabilities") or {}
    found: dict[str, Any] = {"Init": bool(parameters.get("initProcessEnabled"))}
    if capabilities.get("add"):
        found["CapAdd"] = list(capabilities["add"])
    if capabilities.get("drop"):
        found["CapDrop"] = list(capabilities["drop"])
    if parameters.get("sharedMemorySize"):
        found["ShmSize"] = parameters["sharedMemorySize"] * _MIB
    if parameters.get("tmpfs"):
        found["Tmpfs"] = {
            one["containerPath"]: ",".join([f"size={one['size']}m", *(one.get("mountOptions") or ())])
            for one in parameters["tmpfs"]
        }
    if parameters.get("devices"):
        found["Devices"] = [
            {
                "PathOnHost": one["hostPath"],
                "PathInContainer": one.get("containerPath", one["hostPath"]),
                "CgroupPermissions": "".join(word[0] for word in one.get("permissions") or ("read", "write", "mknod")),
            }
            for one in parameters["devices"]
        ]
    if parameters.get("maxSwap") or parameters.get("swappiness"):
        raise _Unsupported(f"container {name!r} asks for swap, which real containers do not get here")
    return found


def _network(
    definition: Mapping[str, Any],
    body: dict[str, Any],
    host: dict[str, Any],
    *,
    shared: bool,
    network: str,
    name: str,
) -> None:
    if not shared:
        host["NetworkMode"] = "none" if definition.get("disableNetworking") else network
    elif definition.get("disableNetworking"):
        raise _Unsupported(f"container {name!r} asks for no network, which the containers of a task share here")
    asked = {field: key for field, key in _OF_THE_NETWORK.items() if definition.get(field)}
    ports = [port for port in definition.get("portMappings") or () if port.get("hostPort")]
    if definition.get("systemControls"):
        asked["systemControls"] = "Sysctls"
    if shared and asked:
        raise _Unsupported(
            f"container {name!r} sets {', '.join(asked)}, which its task's containers share here; "
            "a task of one container can have it"
        )
    for field, key in asked.items():
        value = definition[field]
        if field == "hostname":
            body[key] = value
        elif field == "extraHosts":
            host[key] = [f"{one['hostname']}:{one['ipAddress']}" for one in value]
        elif field == "systemControls":
            host[key] = {one["namespace"]: one["value"] for one in value}
        else:
            host[key] = list(value)
    if ports and network == "bridge" and not shared:
        keys = [(f"{port['containerPort']}/{port.get('protocol', 'tcp')}", str(port["hostPort"])) for port in ports]
        body["ExposedPorts"] = {key: dict[str, str]() for key, _ in keys}
        host["PortBindings"] = {key: [{"HostPort": port}] for key, port in keys}


def _waits(part: dict[str, Any], definition: Mapping[str, Any], own: str) -> None:
    waits = {one["containerName"]: one["condition"] for one in definition.get("dependsOn") or ()}
    part["waits_for_job"] = waits.pop(own, None)
    part["waits"] = waits


def _size(task: Task) -> tuple[int, int]:
    """Return CPU units and MiB of a task; 0 where it has none."""
    return int(task.cpu or 0), int(task.memory or 0)


def _pid_mode(definition: Mapping[str, Any], token: str, *, shared: bool) -> str:
    if definition.get("ipcMode"):
        raise _Unsupported(f"ipcMode {definition['ipcMode']!r} is not available with real containers")
    mode = definition.get("pidMode")
    if mode == "task":
        return f"container:{_spec.pause_name(token)}" if shared else ""
    return mode or ""


def _stop_timeout(container: Container) -> int:
    return max(1, round(container.stop_timeout))


def _writes_to_cloudwatch(container: Container) -> bool:
    return (container.definition.get("logConfiguration") or {}).get("logDriver") == "awslogs"


def _told_to_metadata(task: Task) -> dict[str, str]:
    """Return labels by which the metadata endpoint tells a task its own name."""
    family, _, revision = str(task.definition["taskDefinitionArn"]).rpartition("/")[2].rpartition(":")
    return {
        f"{LABEL}task-arn": task.arn,
        f"{LABEL}cluster-arn": task.cluster_arn,
        f"{LABEL}family": family,
        f"{LABEL}revision": revision,
    }


def _digest(image: Mapping[str, Any]) -> str:
    found: Sequence[str] = image.get("RepoDigests") or ()
    return found[0].partition("@")[2] if found else str(image.get("Id", ""))
