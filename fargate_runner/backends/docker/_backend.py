"""
Real containers, under Fargate's rules.

One coroutine of the backend's own task group launches and watches each attempt (`_Run`), so that no caller's
cancellation can cut a create or a start in the middle: aiodocker leaves an orphan then, nearly every time. Everything
is named and labelled before it is made; what a killed process left is told apart by those labels alone.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import anyio
import attrs
from anyio import CancelScope, Event
from anyio.abc import TaskGroup

from fargate_runner._backend import Backend, Identity, Launch, TaskRef, launch_token
from fargate_runner._errors import BackendError, InvalidJob, KeyConflict, LogsUnavailable, RunnerClosed
from fargate_runner._job import Job, Secret, SecretRef, start_order
from fargate_runner._lifecycle import Cause, LogLine, Phase, Proof, Snapshot
from fargate_runner.backends.docker import _spec as spec
from fargate_runner.backends.docker._engine import Engine, EngineError, container_path
from fargate_runner.backends.docker._pause import archive
from fargate_runner.backends.docker._spec import LABEL

if TYPE_CHECKING:
    from fargate_runner.backends.docker._metadata import MetadataServer

__all__ = ["DockerBackend"]

_STARTS_AT_ONCE: Final = 8
_KEEP_ENDED: Final = 3600.0
"""Seconds that an ended attempt of a dead owner is kept, as ECS keeps a stopped task."""
_CLOSE_PATIENCE: Final = 60.0
_SILENCE: Final = 10.0
"""Seconds without an answer after which observing says so."""


class _CouldNotStart(Exception):
    def __init__(self, said: spec.Said) -> None:
        super().__init__(said.reason)
        self.said = said


@attrs.define(eq=False)
class _Run:
    """What this process knows of one attempt."""

    ref: TaskRef
    namespace: str
    request: Mapping[str, Any]
    launch: Launch | None
    snapshot: Snapshot
    changed: Event = attrs.field(factory=Event)
    stop_reason: str | None = None
    stop_effective: bool = False
    stopping: bool = False
    made: Event = attrs.field(factory=Event)
    """The job's container exists, or never will."""
    exists: bool = False
    containers: dict[str, str] = attrs.field(factory=dict)
    """Names of containers by role name, in start order; the job's own last."""
    sidecar_end: str | None = None
    silent_since: float | None = None
    trouble: BackendError | None = None
    readers: int = 0
    init_failed: str | None = None

    def see(self, snapshot: Snapshot) -> None:
        if self.snapshot.ended or snapshot == self.snapshot or snapshot.phase < self.snapshot.phase:
            return
        self.snapshot = snapshot
        self.touch()

    def touch(self) -> None:
        self.changed.set()
        self.changed = Event()


class DockerBackend(Backend):
    """Hedge."""

    name: ClassVar[str] = "docker"

    def __init__(self, url: str | None = None, *, network: str = "bridge", utcnow: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._url = url
        self._network = network
        self._utcnow = utcnow
        self._runs: dict[str, _Run] = {}
        self._closing = False

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[None]:
        self._runs.clear()
        self._closing = False
        self._starts = anyio.CapacityLimiter(_STARTS_AT_ONCE)
        self._engine = await Engine.connect(self._url)
        self._owner = _owner()
        self._pause: str | None = None
        self._pause_lock = anyio.Lock()
        self.default_concurrency = max(4, 4 * int(self._engine.host.get("NCPU") or 1))
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks: TaskGroup = tasks
                tasks.start_soon(self._reap)
                try:
                    yield
                finally:
                    self._closing = True
                    with CancelScope(shield=True), anyio.move_on_after(_CLOSE_PATIENCE):
                        for run in tuple(self._runs.values()):
                            await run.made.wait()
                    tasks.cancel_scope.cancel()
        finally:
            with CancelScope(shield=True):
                await self._engine.close()

    def _check_open(self) -> None:
        if not self.is_open:
            raise RunnerClosed("the docker backend is not open: use it inside 'async with'")

    # ---- launching -------------------------------------------------------------------------------------------------

    async def prepare(self, job: Job, identity: Identity) -> Launch:
        self._check_open()
        if job.image is None:
            raise InvalidJob("image", None, "a container needs an image", "give one, or use ProcessBackend")
        for part in (job, *job.sidecars):
            for name, secret in part.secrets.items():
                if isinstance(secret, SecretRef):
                    problem = "an ARN cannot be resolved on this machine"
                    raise InvalidJob(f"secrets[{name!r}]", secret.arn, problem, "give the value as Secret(…)")
        image, pinned = job.image, None
        try:
            found = await self._engine.get(f"images/{image}/json")
            pinned = found["Id"]
            platform = spec.platform_of(job) or f"{found['Os']}/{found['Architecture']}"
        except EngineError:
            platform = spec.platform_of(job)
        request = {
            "image": image,
            "pinned": pinned,
            "platform": platform,
            "job": spec.job_body(job, identity, pinned or image),
            "container": job.container_name,
            "order": start_order(job),
            "depends_on": {
                **{side.name: dict(side.depends_on or {}) for side in job.sidecars},
                job.container_name: dict(
                    job.depends_on if job.depends_on is not None else {side.name: "START" for side in job.sidecars}
                ),
            },
            "sidecars": {
                side.name: {
                    "image": side.image,
                    "essential": side.essential,
                    "secrets": sorted(side.secrets),
                    "body": spec.sidecar_body(side, job, identity),
                }
                for side in job.sidecars
            },
            "stop_timeout": job.stop_timeout.total_seconds(),
            "memory": job.size.memory_mib * 2**20,
            "cpus": job.size.cpu_units * 1_000_000_000 // 1024,
        }
        secrets = dict(job.secrets) | {
            f"{side.name}\0{name}": secret for side in job.sidecars for name, secret in side.secrets.items()
        }
        return Launch(
            token=launch_token(f"docker:{self._engine.host.get('ID')}", identity),
            identity=identity,
            job_name=job.name,
            description=job.describe(),
            request=request,
            secrets=secrets,
        )

    async def submit(self, launch: Launch) -> TaskRef:
        self._check_open()
        run = self._runs.get(launch.token)
        if run is None:
            there = await self._inspect(spec.container_name(launch.token))
            run = self._runs.get(launch.token)
            if run is None:
                run = self._adopt(there) if there is not None and there["State"]["Status"] != "created" else self._begin(launch)
        known = run.ref.description
        if known is not None and known != launch.description:
            here = launch.description
            different = {name for name in (*known, *here) if known.get(name) != here.get(name)}
            raise KeyConflict(launch.identity.key, tuple(sorted(different)))
        return run.ref

    def _begin(self, launch: Launch) -> _Run:
        now = self._utcnow()
        ref = TaskRef(
            backend=self.name,
            address=spec.container_name(launch.token),
            key=launch.identity.key,
            attempt=launch.identity.attempt,
            token=launch.token,
            description=launch.description,
            created_at=now,
        )
        run = _Run(ref, launch.identity.namespace, launch.request, launch, Snapshot(phase=Phase.PENDING, created_at=now))
        self._runs[launch.token] = run
        self._tasks.start_soon(self._see_through, run)
        return run

    async def _see_through(self, run: _Run) -> None:
        """Launch an attempt and see it to its end."""
        with CancelScope(shield=True):
            try:
                while True:
                    try:
                        started = await self._make(run)
                        break
                    except BackendError as exc:  # the engine went away in the middle: what was made is met by its name
                        self._say_trouble(run, exc)
                        if self._closing:
                            return
                        await anyio.sleep(1)
            except _CouldNotStart as exc:
                await self._discard(run)
                self._end(run, Cause.COULD_NOT_START, exc.said.reason, exc.said.advice, exc.said.exit_code, exc.said.transient)
                return
            finally:
                run.made.set()
                run.touch()
        if started:
            await self._watch(run)

    async def _make(self, run: _Run) -> bool:
        """Pull, create and start what the attempt consists of. False if a stop came first."""
        if run.stop_reason is not None:
            self._end(run, Cause.STOPPED_ON_REQUEST, run.stop_reason)
            return False
        run.see(attrs.evolve(run.snapshot, phase=Phase.STARTING))
        images = [(run.request["image"], run.request["pinned"])]
        images += [(side["image"], None) for side in run.request["sidecars"].values()]
        for image, pinned in images:
            await self._have_image(image, pinned, run.request["platform"])
        async with self._starts:
            network = await self._make_network(run) if run.request["sidecars"] else self._network
            for name in run.request["order"]:
                if name != run.request["container"]:
                    body = run.request["sidecars"][name]["body"]
                    await self._create(run, name, spec.container_name(run.ref.token, name), body, network)
            body = run.request["job"]
            await self._create(run, run.request["container"], run.ref.address, body, network)
            run.exists = True
            return await self._start_all(run)

    async def _have_image(self, image: str, pinned: str | None, platform: str | None) -> None:
        if pinned is not None:
            return
        try:
            await self._engine.get(f"images/{image}/json")
        except EngineError:
            try:
                await self._engine.pull(image, platform)
            except EngineError as exc:
                raise _CouldNotStart(spec.meaning(str(exc))) from None

    async def _create(self, run: _Run, role_name: str, name: str, body: dict[str, Any], network: str) -> None:
        launch = cast("Launch", run.launch)
        own = name == run.ref.address
        prefix = "" if own else f"{role_name}\0"
        revealed = [
            f"{key.removeprefix(prefix)}={secret.reveal()}"
            for key, secret in launch.secrets.items()
            if isinstance(secret, Secret) and ("\0" in key) is not own and key.startswith(prefix)
        ]
        body = dict(body)
        tags = body.pop("_tags", {})
        body["Env"] = [*body["Env"], *revealed]
        body["Labels"] = tags | spec.labels(
            launch.identity, launch.token, "job" if own else "sidecar", self._owner, self._utcnow().isoformat()
        )
        body["Labels"][f"{LABEL}container"] = role_name
        if own:
            body["Labels"][f"{LABEL}job"] = json.dumps(launch.description, sort_keys=True)
            body["Labels"][f"{LABEL}request"] = json.dumps(_supervision(run.request), sort_keys=True)
        body["HostConfig"] = body["HostConfig"] | {"NetworkMode": network} | run.request.get("cgroup", {})
        params = {"name": name}
        if run.request["platform"]:
            params["platform"] = run.request["platform"]
        try:
            await self._engine.post("containers/create", body, **params)
        except EngineError as exc:
            if exc.status == 409:
                there = await self._inspect(name)
                if there is not None and there["Config"]["Labels"].get(f"{LABEL}token") == launch.token:
                    return
            raise _CouldNotStart(spec.meaning(str(exc))) from None

    async def _make_network(self, run: _Run) -> str:
        launch = cast("Launch", run.launch)
        image = await self._pause_image()
        name = spec.pause_name(run.ref.token)
        limit = {"Memory": run.request["memory"], "MemorySwap": run.request["memory"], "NanoCpus": run.request["cpus"]}
        body = {
            "Image": image,
            "Labels": spec.labels(launch.identity, launch.token, "pause", self._owner, self._utcnow().isoformat()),
            "HostConfig": limit | {"NetworkMode": self._network, "SecurityOpt": ["no-new-privileges"]},
        }
        try:
            await self._engine.post("containers/create", body, name=name)
        except EngineError as exc:
            if exc.status != 409:
                raise _CouldNotStart(spec.meaning(str(exc))) from None
        try:
            await self._engine.post(container_path(name, "/start"))
        except EngineError as exc:
            raise _CouldNotStart(spec.meaning(str(exc))) from None
        found = await self._inspect(name)
        host = self._engine.host
        if found is not None and host.get("CgroupDriver") == "cgroupfs" and str(host.get("CgroupVersion", "1")) == "1":
            # The limits of the holder hold for all below it; removing it removes them.
            run.request = {**run.request, "cgroup": {"CgroupParent": f"/docker/{found['Id']}"}}
        return f"container:{name}"

    async def _pause_image(self) -> str:
        async with self._pause_lock:
            if self._pause is None:
                machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(str(self._engine.host.get("Architecture")), "amd64")
                name, content = archive(machine)
                try:
                    await self._engine.get(f"images/{name}/json")
                except EngineError:
                    await self._engine.load(content)
                self._pause = name
            return self._pause

    async def _start_all(self, run: _Run) -> bool:
        for name in run.request["order"]:
            for other, condition in run.request["depends_on"].get(name, {}).items():
                await self._until(run, name, other, condition)
                if run.stop_reason is not None:
                    break
            if run.stop_reason is not None:
                await self._discard(run)
                self._end(run, Cause.STOPPED_ON_REQUEST, run.stop_reason)
                return False
            container = run.ref.address if name == run.request["container"] else spec.container_name(run.ref.token, name)
            try:
                await self._engine.post(container_path(container, "/start"))
            except EngineError as exc:
                raise _CouldNotStart(spec.meaning(str(exc))) from None
        run.see(attrs.evolve(run.snapshot, phase=Phase.RUNNING, started_at=self._utcnow()))
        if run.stop_reason is not None:
            self._tasks.start_soon(self._terminate, run)
        return True

    async def _until(self, run: _Run, name: str, other: str, condition: str) -> None:
        """Wait until a sidecar has reached *condition*; START it has, the order sees to that."""
        container = spec.container_name(run.ref.token, other)
        while condition != "START" and run.stop_reason is None:
            found = await self._inspect(container)
            state = found["State"] if found is not None else {}
            if state.get("Status") == "exited":
                code = state["ExitCode"]
                if condition == "COMPLETE" or (condition == "SUCCESS" and code == 0):
                    return
                reason = f"{name!r} waits for {other!r} to be {condition}, but it ended with {code}"
                raise _CouldNotStart(spec.Said(reason, f"look at the output of {other!r}"))
            if condition == "HEALTHY":
                health = state.get("Health", {}).get("Status")
                if health == "healthy":
                    return
                if health == "unhealthy":
                    reason = f"{name!r} waits for {other!r} to be HEALTHY, but it is unhealthy"
                    raise _CouldNotStart(spec.Said(reason, f"look at the health check of {other!r}"))
            with anyio.move_on_after(0.2):
                await run.changed.wait()

    async def _discard(self, run: _Run) -> None:
        """Remove what was made of an attempt whose job never ran."""
        for found in await self._of_token(run.ref.token):
            with suppress(EngineError):
                await self._engine.delete(container_path(found["Id"]), force="1", v="1")
        run.exists = False

    def _end(self, run: _Run, cause: Cause, reason: str, advice: str = "", exit_code: int | None = None, transient: bool = False) -> None:
        now = self._utcnow()
        proof = Proof(source="docker-engine", seen_at=now, evidence=reason)
        run.see(
            Snapshot(
                phase=Phase.ENDED, cause=cause, reason=reason, advice=advice, exit_code=exit_code,
                created_at=run.snapshot.created_at, ended_at=now, transient=transient, proof=proof,
            )
        )

    # ---- watching --------------------------------------------------------------------------------------------------

    async def _watch(self, run: _Run) -> None:
        sidecars = run.request.get("sidecars", {})
        if not any(side["essential"] for side in sidecars.values()):
            await self._until_over(run)
            return
        async with anyio.create_task_group() as tasks:
            for name, side in sidecars.items():
                if side["essential"]:
                    tasks.start_soon(self._mind, run, name)
            await self._until_over(run)
            tasks.cancel_scope.cancel()

    async def _mind(self, run: _Run, name: str) -> None:
        """Stop the job when an essential sidecar ends first."""
        container = spec.container_name(run.ref.token, name)
        try:
            told = await self._engine.post(container_path(container, "/wait"), timeout=None)
        except (EngineError, BackendError):
            return
        if not run.snapshot.ended and run.stop_reason is None:
            run.sidecar_end = f"the essential sidecar {name!r} ended first, with exit code {told.get('StatusCode')}"
            await self._terminate(run)

    async def _until_over(self, run: _Run) -> None:
        while True:
            try:
                with suppress(EngineError):
                    await self._engine.post(container_path(run.ref.address, "/wait"), timeout=None)
                found = await self._inspect(run.ref.address)
                if found is None:
                    self._end(run, Cause.VANISHED, "its container was removed by somebody else")
                    return
                code = found["State"].get("ExitCode")
                if code in {126, 127} and not found["State"]["Running"]:
                    run.init_failed = await self._init_failure(run)
                run.trouble = run.silent_since = None
                snapshot = spec.own_snapshot(
                    found,
                    stopped=(run.stop_reason or run.sidecar_end) if run.stop_effective else None,
                    init_failed=run.init_failed,
                )
                if snapshot.ended:
                    if run.sidecar_end and snapshot.cause is Cause.STOPPED_ON_REQUEST:
                        snapshot = attrs.evolve(snapshot, cause=Cause.SIDECAR_ENDED)
                    await self._stop_sidecars(run)
                    run.see(snapshot)
                    return
                run.see(snapshot)
            except BackendError as exc:
                self._say_trouble(run, exc)
            await anyio.sleep(0.5)

    async def _init_failure(self, run: _Run) -> str | None:
        """The init process says on stderr that it could not execute the command; the engine does not."""
        async with aclosing(self._read(run, run.ref.address, run.request["container"], follow=False, tail=1)) as lines:
            async for line in lines:
                if line.stream == "stderr" and line.text.startswith("[FATAL tini "):
                    return line.text.partition("] ")[2].replace("Permission", "permission").replace("No such", "no such")
        return None

    async def _stop_sidecars(self, run: _Run) -> None:
        if not run.request.get("sidecars"):
            return
        with CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                for name in run.request["sidecars"]:
                    tasks.start_soon(self._stop_container, spec.container_name(run.ref.token, name), run.request["stop_timeout"])
            await self._kill(spec.pause_name(run.ref.token))

    async def _kill(self, name: str) -> None:
        with suppress(EngineError):
            await self._engine.post(container_path(name, "/kill"))

    async def _stop_container(self, name: str, grace: float) -> bool:
        try:
            return await self._engine.post(container_path(name, "/stop"), timeout=grace + 60, t=int(grace)) != 304
        except EngineError:
            return False

    def _say_trouble(self, run: _Run, exc: BackendError) -> None:
        run.trouble = exc
        if run.silent_since is None:
            run.silent_since = anyio.current_time()
        run.touch()

    async def observe(self, ref: TaskRef, *, after: Snapshot | None = None) -> Snapshot:
        run = await self._run(ref)
        if run is None:
            reason = "the engine knows of no such container"
            proof = Proof(source="docker-inspect", seen_at=self._utcnow(), evidence=f"no container {ref.address}")
            return Snapshot(phase=Phase.ENDED, cause=Cause.VANISHED, reason=reason, proof=proof)
        while after is not None and not run.snapshot.ended and run.snapshot.phase <= after.phase:
            if run.trouble is not None and run.silent_since is not None and anyio.current_time() - run.silent_since > _SILENCE:
                raise run.trouble
            await run.changed.wait()
            self._check_open()
        return run.snapshot

    async def stop(self, ref: TaskRef, *, reason: str) -> None:
        run = await self._run(ref)
        if run is None or run.snapshot.ended or run.stop_reason is not None:
            return
        run.stop_reason = reason
        run.touch()
        if run.snapshot.phase >= Phase.RUNNING:
            self._tasks.start_soon(self._terminate, run)

    async def _terminate(self, run: _Run) -> None:
        if run.stopping:
            return
        run.stopping = True
        run.stop_effective = True  # before the call: the end may be seen before its answer
        run.see(attrs.evolve(run.snapshot, phase=Phase.STOPPING))
        with CancelScope(shield=True):
            try:
                if not await self._stop_container(run.ref.address, run.request["stop_timeout"]):
                    run.stop_effective = False
            except BackendError as exc:
                self._say_trouble(run, exc)

    # ---- finding again ---------------------------------------------------------------------------------------------

    async def _inspect(self, name: str) -> dict[str, Any] | None:
        try:
            return cast("dict[str, Any]", await self._engine.get(container_path(name, "/json")))
        except EngineError as exc:
            if exc.status == 404:
                return None
            raise BackendError(f"the engine did not tell of {name}: {exc}", operation="inspect") from exc

    async def _of_token(self, token: str) -> list[dict[str, Any]]:
        return await self._list(f"{LABEL}token={token}")

    async def _list(self, *labels: str) -> list[dict[str, Any]]:
        filters = json.dumps({"label": list(labels)})
        return cast("list[dict[str, Any]]", await self._engine.get("containers/json", all="1", filters=filters))

    def _adopt(self, found: Mapping[str, Any]) -> _Run:
        """Take up an attempt that another process, or an earlier life of this one, had launched."""
        labels = found["Config"]["Labels"]
        ref = spec.ref_of(labels, found["Name"].lstrip("/"), spec.moment(found.get("Created")))
        request = json.loads(labels.get(f"{LABEL}request") or "{}")
        snapshot = Snapshot(phase=Phase.STARTING, created_at=ref.created_at)
        run = _Run(ref, labels[f"{LABEL}namespace"], request, None, snapshot, exists=True)
        run.made.set()
        state = spec.own_snapshot(found, stopped=None)
        if not state.ended:
            run.see(state)
        self._runs[ref.token] = run
        self._tasks.start_soon(self._watch, run)
        return run

    async def _run(self, ref: TaskRef) -> _Run | None:
        self._check_open()
        run = self._runs.get(ref.token)
        if run is None:
            found = await self._inspect(ref.address)
            run = self._runs.get(ref.token)
            if run is None and found is not None and found["Config"]["Labels"].get(f"{LABEL}token") == ref.token:
                run = self._adopt(found)
                while not run.snapshot.ended and run.snapshot.phase < Phase.RUNNING:
                    await run.changed.wait()
        return run

    async def find(self, namespace: str, key: str) -> list[TaskRef]:
        self._check_open()
        found = await self._list(f"{LABEL}namespace={namespace}", f"{LABEL}key={key}", f"{LABEL}role=job")
        refs = {
            item["Labels"][f"{LABEL}token"]: spec.ref_of(
                item["Labels"], item["Names"][0].lstrip("/"), datetime.fromtimestamp(item["Created"], UTC)
            )
            for item in found
        }
        for run in self._runs.values():  # being launched: the engine does not know it yet
            if (run.namespace, run.ref.key) == (namespace, key) and not run.snapshot.ended:
                refs.setdefault(run.ref.token, run.ref)
        return sorted(refs.values(), key=lambda ref: ref.attempt)

    async def forget(self, ref: TaskRef) -> None:
        run = await self._run(ref)
        if run is None or not run.snapshot.ended:
            return
        while run.readers:
            await run.changed.wait()
        self._runs.pop(ref.token, None)
        with CancelScope(shield=True):
            names = [run.ref.address]
            if run.request.get("sidecars"):
                names += [spec.container_name(ref.token, name) for name in run.request["sidecars"]]
                names.append(spec.pause_name(ref.token))
            for name in names:
                with suppress(EngineError):
                    await self._engine.delete(container_path(name), force="1", v="1")

    # ---- logs ------------------------------------------------------------------------------------------------------

    async def logs(self, ref: TaskRef, *, follow: bool, tail: int | None = None) -> AsyncIterator[LogLine]:
        run = await self._run(ref)
        if run is None:
            raise LogsUnavailable(f"the lines of attempt {ref.attempt} of {ref.key!r} are gone: its container was removed")
        while follow and not run.exists and not run.snapshot.ended:
            await run.changed.wait()
            self._check_open()
        if not run.exists:
            return
        run.readers += 1
        try:
            async with aclosing(self._read(run, run.ref.address, run.request["container"], follow=follow, tail=tail)) as lines:
                async for line in lines:
                    if line.stream == "stderr" and line.text.startswith("[FATAL tini "):
                        # Perhaps the init process's word that the job could not be executed: soon we shall know.
                        while not run.snapshot.ended:
                            await run.changed.wait()
                        if run.init_failed:
                            continue
                    yield line
        finally:
            run.readers -= 1
            run.touch()

    def _read(self, run: _Run, name: str, container: str, *, follow: bool, tail: int | None) -> AsyncGenerator[LogLine]:
        from fargate_runner.backends.docker._logs import read_container

        async def ended() -> None:
            while not run.snapshot.ended:
                await run.changed.wait()

        return cast("AsyncGenerator[LogLine]", read_container(
            self._engine.session, self._engine.base_url, name,
            container=container, attempt=run.ref.attempt, follow=follow, tail=tail, ended=ended,
        ))

    # ---- what others left ------------------------------------------------------------------------------------------

    async def _reap(self) -> None:
        with suppress(BackendError, EngineError):
            groups: dict[str, list[dict[str, Any]]] = {}
            for item in await self._list(f"{LABEL}owner"):
                groups.setdefault(item["Labels"][f"{LABEL}token"], []).append(item)
            for token, items in groups.items():
                if token in self._runs or not all(_is_dead(item["Labels"][f"{LABEL}owner"]) for item in items):
                    continue
                await self._reap_group(items)

    async def _reap_group(self, items: list[dict[str, Any]]) -> None:
        own = next((item for item in items if item["Labels"][f"{LABEL}role"] == "job"), None)
        if own is not None and own["State"] in {"running", "paused", "restarting"}:
            return
        if own is not None and own["State"] != "created":
            found = await self._inspect(own["Id"])
            over = spec.age(found["State"].get("FinishedAt"), self._utcnow()).total_seconds() if found else 0.0
            if over < _KEEP_ENDED:
                items = [item for item in items if item is not own]
        for item in items:
            with suppress(EngineError):
                await self._engine.delete(container_path(item["Id"]), force="1", v="1")


def _supervision(request: Mapping[str, Any]) -> dict[str, Any]:
    """What another process needs to see an attempt to its end."""
    sidecars = {name: {"essential": side["essential"]} for name, side in request["sidecars"].items()}
    return {"container": request["container"], "stop_timeout": request["stop_timeout"], "sidecars": sidecars}


@lru_cache(maxsize=1)
def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _birth(pid: int) -> str | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()[19]


def _pid_space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _owner() -> str:
    """Who makes a container: this process, told apart from every other that was and will be."""
    pid = os.getpid()
    return json.dumps([socket.gethostname(), _boot(), _pid_space(), pid, _birth(pid), time.time_ns()])


def _is_dead(owner: str) -> bool:
    """Whether the process that made a container is provably gone. Others' machines and containers are not ours to judge."""
    try:
        host, boot, space, pid, birth, _ = json.loads(owner)
    except ValueError:
        return False
    if host != socket.gethostname() or space != _pid_space():
        return False
    return bool(boot != _boot() or _birth(pid) != birth)
