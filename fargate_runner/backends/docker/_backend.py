"""
A backend that runs jobs as containers of a Docker engine, behaving as Fargate does.

What keeps the promises:

- A launch belongs to the backend, not to whoever called `submit`: a create or start that is cancelled half-way has an
  effect that nobody knows of. It is stopped between the calls only, and what it made is then removed.
- Names and labels are set with the create call itself. The name follows from the token, so that the engine refuses a
  second container for the same launch; the labels tell whose it is, what it runs and which process started it.
- The engine's inspection is the truth, its ``wait`` only the moment to look. A cut connection says nothing.
- When a backend opens, it removes what a process that is provably dead had created and not started.

One `_Record` per attempt holds what was last seen; one task per record sees it from launch to end.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, cast

import anyio
import anyio.to_thread
import attrs
from anyio import CancelScope
from anyio.abc import TaskGroup

from fargate_runner._backend import Backend, Identity, Launch, TaskRef, is_token_of, launch_token
from fargate_runner._errors import (
    BackendError,
    BackendUnavailable,
    InvalidJob,
    KeyConflict,
    LaunchRejected,
    LogsUnavailable,
    RunnerClosed,
)
from fargate_runner._job import DEADLINE_CONTAINER, Job, Secret
from fargate_runner._lifecycle import Cause, LogLine, Phase, Proof, Snapshot
from fargate_runner.backends.docker import _host, _pause, _spec
from fargate_runner.backends.docker._engine import Engine, Refused
from fargate_runner.backends.docker._spec import LABEL, End, Trouble

if TYPE_CHECKING:
    from fargate_runner.backends.docker._metadata import MetadataServer

__all__ = ["AwsCredentials", "DockerBackend"]

_T = TypeVar("_T")

_STARTS_AT_ONCE: Final = 8
"""More only make each other slower: the engine is saturated at 4 to 8 (measured)."""
_DOUBT_AFTER: Final = 10.0
"""Seconds that the engine may be away before whoever observes is told."""
_PAUSE_MIN, _PAUSE_MAX = 0.1, 2.0
_NAME_PAUSES: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_START_PAUSES: Final = (0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 3.0)
"""Seconds between looks at a container whose start was not answered: the engine may still be at it."""
_CLOSE_PATIENCE: Final = 60.0
_STOP_MARGIN: Final = 10.0
_REAP_PATIENCE: Final = 20.0
_REAP_AGAIN: Final = 3.0
"""Seconds after which a process that was just killed has no create or start under way any more."""
_REAP_EVERY: Final = 600.0
_LATE_START_PAUSES: Final = (0.2, 0.3, 0.5, 1.0, 1.0)
"""Seconds between looks at what a dead process has created: its last request may be under way, and the job be quick."""
_KEPT: Final = timedelta(hours=1)
"""How long an ended attempt of a dead process is kept, as ECS keeps stopped tasks."""
_OVER: Final = {"exited", "dead", "removing"}
"""What the engine calls a container that does not run and has no way back. What is being removed may never have run."""
_INIT_CODES: Final = {1, 126, 127}
_INIT_WITHIN: Final = timedelta(seconds=10)


@attrs.frozen(kw_only=True)
class AwsCredentials:
    """What a job gets to speak with AWS, if `DockerBackend` is asked to give it any. Use short sessions."""

    access_key_id: str
    secret_access_key: str = attrs.field(repr=False)
    session_token: str | None = attrs.field(default=None, repr=False)
    expires_at: datetime | None = None

    def as_file(self) -> str:
        """Return them as a shared credentials file."""
        lines = [
            "[default]",
            f"aws_access_key_id = {self.access_key_id}",
            f"aws_secret_access_key = {self.secret_access_key}",
        ]
        if self.session_token:
            lines.append(f"aws_session_token = {self.session_token}")
        if self.expires_at:
            lines.append(f"x_security_token_expires = {self.expires_at.isoformat()}")
        return "\n".join([*lines, ""])


class _Unstartable(Exception):
    """The attempt cannot start, and why."""

    def __init__(self, trouble: Trouble, evidence: str) -> None:
        super().__init__(trouble.reason)
        self.trouble = trouble
        self.evidence = evidence


class _Met(Exception):
    """The token has been used by another process: its containers are there, or about to be."""


@attrs.define(eq=False)
class _Member:
    """One container of an attempt."""

    name: str
    """The engine's name for it."""
    container: str
    """The job's name for it; empty for the one that holds the network."""
    role: str
    essential: bool
    id: str = ""
    started: anyio.Event = attrs.field(factory=anyio.Event)
    over: anyio.Event = attrs.field(factory=anyio.Event)
    exit_code: int | None = None

    @property
    def where(self) -> str:
        return self.id or self.name

    @property
    def is_watchdog(self) -> bool:
        return self.container == DEADLINE_CONTAINER


@attrs.define(eq=False)
class _Record:
    """One attempt, as we know it."""

    ref: TaskRef
    namespace: str
    job: _Member
    others: list[_Member]
    stop_timeout: int
    snapshot: Snapshot
    launch: Launch | None = None
    """None if it was launched by another process."""
    shared: bool = False
    changed: anyio.Event = attrs.field(factory=anyio.Event)
    placed: anyio.Event = attrs.field(factory=anyio.Event)
    """Set once its containers exist, or will never."""
    settled: anyio.Event = attrs.field(factory=anyio.Event)
    """Set once its own container has started, or will never."""
    starting: CancelScope = attrs.field(factory=CancelScope)
    """What may be given up before the job's own container has started."""
    life: CancelScope = attrs.field(factory=lambda: CancelScope(shield=True))
    stop_reason: str | None = None
    stopped: str | None = None
    """The reason, once the engine has said that our stop had an effect."""
    stops: int = 0
    leaving: bool = False
    """The job's own container is over, its sidecars are being stopped."""
    failure: _Unstartable | None = None
    signals: list[int] = attrs.field(factory=list)
    outage: bool = False
    trouble: BackendError | None = None
    readers: int = 0
    doomed: bool = False
    mute: bool = False
    """The only line of the job's own container is the init process's, and not the job's."""
    mount: bool = False
    cgroup: str | None = None

    @property
    def members(self) -> list[_Member]:
        return [*self.others, self.job]

    @property
    def ended(self) -> bool:
        return self.snapshot.ended

    def tell(self, snapshot: Snapshot) -> None:
        """Note what is seen now. It never goes back."""
        if self.ended or snapshot.phase < self.snapshot.phase:
            return
        self.snapshot = snapshot
        if snapshot.ended:
            self.placed.set()
            self.settled.set()
            self.job.over.set()
        self.wake()

    def reach(self, phase: Phase, **changes: Any) -> None:
        if phase > self.snapshot.phase:
            self.tell(attrs.evolve(self.snapshot, phase=phase, **changes))

    def doubt(self, trouble: BackendError) -> None:
        self.trouble = trouble
        self.wake()

    def wake(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()


class DockerBackend(Backend):
    """
    Runs each job as a container of a Docker engine, under Fargate's rules.

    Needs the extra ``docker``. The engine is *url*, or found as ``docker`` itself finds it: DOCKER_HOST, the current
    context, the usual sockets, those of Podman. *network* is the engine's network that jobs are put on.

    As on Fargate: the job's vCPUs as a quota, its memory as a hard limit without swap; SIGTERM, ``stop_timeout``,
    SIGKILL; an init process; sidecars on one network, where 127.0.0.1 is the same for all; and the task metadata
    endpoint (``ECS_CONTAINER_METADATA_URI_V4``), as long as the backend that launched the job is open. Different are:

    - A job that is larger than the machine gets all of its CPUs. Images are pulled only if the engine lacks them.
    - ``ephemeral_storage_gib`` is a file system of that size at *scratch_path*, where we are root on the engine's
      machine. Elsewhere it is a tmpfs, whose content counts as memory. Without it nothing is bounded.
    - The limits of a job with sidecars hold for all of its containers together where we are root on the engine's
      machine. Elsewhere each container may use that much.
    - The metadata endpoint is missing where containers cannot reach this machine (a remote engine, network "none").
    - No AWS credentials reach a job, unless *aws_credentials* returns some when it is called before each launch.
      They are put into the container as a file, where ``docker inspect`` does not show them, and are not renewed.
    - A watchdog (`Sidecar.watchdog`) holds the process namespace of all containers: the kernel ends them with it, even
      if this process is dead, at once, with SIGKILL. On Fargate they get SIGTERM and their ``stop_timeout``.
    - An ended attempt is kept until the runner forgets it, or for an hour if its process has died.

    Podman's socket is used as it is, best effort: a job killed for memory is told as exit code 137, a command that is
    not there as a refused start, log lines carry whole seconds.
    """

    name: ClassVar[str] = "docker"
    starts_later = True
    """A launch waits for its image, its turn and its sidecars; a container that was never started is removed."""

    def __init__(
        self,
        url: str | None = None,
        *,
        network: str = "bridge",
        aws_credentials: Callable[[], AwsCredentials | Awaitable[AwsCredentials]] | None = None,
        scratch_path: str = "/tmp",  # noqa: S108 (a path in the container)
    ) -> None:
        self._url = url
        self._network = network
        self._aws_credentials = aws_credentials
        self._scratch_path = scratch_path
        self._records: dict[str, _Record] = {}
        self._by_id: dict[str, _Record] = {}
        self._pulls: dict[str, anyio.Lock] = {}
        self._metadata: MetadataServer | None = None
        self._owner = self._nonce = ""
        self._engine_id = ""
        self._closing = False

    @property
    def place(self) -> str:
        return f"{self.name}/{self._engine_id}" if self._engine_id else self.name

    # ---- its own life ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[None]:
        self._records.clear()
        self._by_id.clear()
        self._pulls.clear()
        self._closing = False
        self._starts = anyio.CapacityLimiter(_STARTS_AT_ONCE)
        self._pause_lock = anyio.Lock()
        self._metadata_lock = anyio.Lock()
        self._metadata_tried = self._watches_kills = self._has_pause = False
        self._reaping, self._listening = CancelScope(shield=True), CancelScope(shield=True)
        self._nonce = os.urandom(8).hex()
        async with Engine.connected(self._url) as engine:
            self._engine = engine
            self._engine_id = engine.id
            self._owner = await anyio.to_thread.run_sync(_host.owner_label, self._nonce)
            self.default_concurrency = max(4, 4 * engine.ncpu)
            _host.opened(self._nonce)
            try:
                with anyio.move_on_after(_REAP_PATIENCE):
                    await self._reap()
                async with anyio.create_task_group() as tasks:
                    self._tasks: TaskGroup = tasks
                    tasks.start_soon(self._reap_now_and_then)
                    yield
                    await self._settle()
                    tasks.cancel_scope.cancel()
            finally:
                _host.closed(self._nonce)
                for record in self._records.values():
                    record.wake()  # whoever still waits is told that we are closed

    async def _settle(self) -> None:
        """Give up what has not started, see stops through, leave the rest alone. Bounded, and not to be cancelled."""
        self._closing = True
        with CancelScope(shield=True):
            records = list(self._records.values())
            for record in records:
                if not record.settled.is_set():
                    record.starting.cancel()
            longest = max((r.stop_timeout for r in records if r.stops or r.leaving), default=0)
            with anyio.move_on_after(_CLOSE_PATIENCE + longest + _STOP_MARGIN):
                for record in records:
                    await record.settled.wait()
                    while not record.ended and (record.stop_reason is not None or record.leaving):
                        await record.changed.wait()
                for record in records:
                    if record.doomed or (record.ended and not record.job.started.is_set() and record.launch):
                        try:
                            await self._remove(record)
                        except BackendError:
                            break  # the next one that opens finds it
            self._reaping.cancel()
            self._listening.cancel()
            for record in records:
                record.life.cancel()
            with anyio.move_on_after(_STOP_MARGIN):
                if self._metadata is not None:
                    await self._metadata.close()
                    self._metadata = None

    def _check_open(self) -> None:
        if not self.is_open:
            raise RunnerClosed("the docker backend is not open: use it inside 'async with'")

    # ---- reaping ---------------------------------------------------------------------------------------------------

    async def _reap_now_and_then(self) -> None:
        with self._reaping:
            pause = _REAP_AGAIN
            while True:
                await anyio.sleep(pause)
                pause = _REAP_EVERY
                await self._reap()

    async def _reap(self) -> None:
        """Remove what dead processes have left. What may belong to a live one is not touched."""
        try:
            left_over = await anyio.to_thread.run_sync(_host.left_over) if self._engine.is_here else set[str]()
            groups: dict[str, list[dict[str, Any]]] = {}
            for found in await self._engine.list(f"{LABEL}token"):
                groups.setdefault(found["Labels"][f"{LABEL}token"], []).append(found)
            async with anyio.create_task_group() as tasks:
                for token, group in groups.items():
                    tasks.start_soon(self._reap_group, token, group)
            for token in left_over - set(groups):
                await anyio.to_thread.run_sync(_host.sweep, token)
        except BackendError:
            return  # it is a favour, and comes again

    async def _reap_group(self, token: str, group: list[dict[str, Any]]) -> None:
        if not await _is_abandoned(group) or _spec.job_name(token) in self._records:
            return
        job = _of_role(group, "job")
        try:
            if job is None or job["State"] == "created":
                await self._remove_unstarted(token, group)
            elif job["State"] in _OVER:
                found = await self._engine.inspect(job["Id"])
                end = _spec.moment(found["State"]["FinishedAt"]) if found else None
                if end is None or datetime.now(UTC) - end > _KEPT:
                    await self._remove_group(token, group)
                else:
                    for other in sorted(group, key=_is_watchdog):
                        if other is not job and other["State"] == "running":
                            await self._engine.stop(other["Id"], int(other["Labels"].get(f"{LABEL}stop-timeout", "30")))
        except BackendError:
            return  # somebody else was quicker, or the engine is away

    async def _remove_unstarted(self, token: str, group: Iterable[Mapping[str, Any]]) -> bool:
        """Remove what a dead process has created, unless its last request has started it after all; say which."""
        members = list(group)
        job = _of_role(members, "job")
        if job is not None and not await self._stays_created(job["Id"]):
            return False
        await self._remove_group(token, members)
        return True

    async def _stays_created(self, container: str) -> bool:
        """
        Whether a container of a dead process was never started, and will not be.

        One that was started and is over by now would be removed as well, and its job run a second time.
        """
        for pause in (*_LATE_START_PAUSES, None):
            there = await self._engine.inspect(container)
            if there is not None and _was_started(there):
                return False
            if there is None or pause is None:
                break
            await anyio.sleep(pause)
        return True

    async def _remove_group(self, token: str, group: Iterable[Mapping[str, Any]]) -> None:
        """Remove the containers of an attempt whose own container does not run; nothing if it does after all."""
        members = list(group)
        job = _of_role(members, "job")
        # Without force: if a start was under way when its process died, it runs by now, and is left alone.
        if job is not None and not await self._engine.remove(job["Id"], force=False):
            return
        for member in members:
            if member is not job:
                await self._engine.remove(member["Id"], force=True)
        if self._engine.is_here:
            await anyio.to_thread.run_sync(_host.sweep, token)

    # ---- launching -------------------------------------------------------------------------------------------------

    async def prepare(self, job: Job, identity: Identity) -> Launch:
        self._check_open()
        _spec.check(job)
        if job.sidecars and self._engine.architecture not in _pause.IMAGES:
            problem = f"the engine's architecture {self._engine.architecture!r} is none that we can hold a network on"
            raise InvalidJob("sidecars", [s.name for s in job.sidecars], problem, "use an amd64 or arm64 engine")
        images: dict[str, tuple[str, str] | None] = {}
        for image in {str(job.image), *(sidecar.image for sidecar in job.sidecars)}:
            found = await self._engine.image(image)
            images[image] = (found["Id"], _spec.image_platform(found)) if found else None
        token = launch_token("docker", identity)
        return Launch(
            token=token,
            identity=identity,
            job_name=job.name,
            description=job.describe(),
            request=_spec.plan(
                job,
                identity,
                token,
                images=images,
                cpus=self._engine.ncpu,
                network=self._network,
                scratch_path=self._scratch_path,
            ),
            secrets=_secrets_of(job),
        )

    async def submit(self, launch: Launch) -> TaskRef:
        self._check_open()
        if (known := self._known(launch)) is not None:
            return known
        wanted = {name for container in launch.request["containers"] for name in _secret_names(container)}
        if missing := wanted - set(launch.secrets):
            names = ", ".join(sorted(missing))
            raise LaunchRejected(
                f"the launch of {launch.job_name!r} came without the values of its secrets ({names}); "
                "prepare it again from the job",
                operation="create",
            )
        await self._adopt(_spec.job_name(launch.token))
        # No await from here on: the record is in our table before anybody can ask for it again.
        self._check_open()
        if (known := self._known(launch)) is not None:
            return known
        record = self._new_record(launch)
        self._records[record.ref.address] = record
        self._tasks.start_soon(self._see_through, record)
        return record.ref

    def _known(self, launch: Launch) -> TaskRef | None:
        record = self._records.get(_spec.job_name(launch.token))
        if record is None:
            return None
        there, here = record.ref.description, launch.description
        if there is not None and there != here:
            different = {name for name in (*there, *here) if there.get(name) != here.get(name)}
            raise KeyConflict(launch.identity.key, tuple(sorted(different)))
        return record.ref

    def _new_record(self, launch: Launch) -> _Record:
        identity, request = launch.identity, launch.request
        now = datetime.now(UTC)
        members = [
            _Member(
                name=part["name"],
                container=part["container"],
                role=part["role"],
                essential=part["create"]["Labels"][f"{LABEL}essential"] == "yes",
            )
            for part in request["containers"]
        ]
        job = members[-1]
        others = members[:-1]
        if others:
            others.insert(0, _Member(_spec.pause_name(launch.token), "", "pause", essential=False))
        return _Record(
            ref=TaskRef(
                backend=self.name,
                address=job.name,
                key=identity.key,
                attempt=identity.attempt,
                token=launch.token,
                description=launch.description,
                created_at=now,
            ),
            namespace=identity.namespace,
            job=job,
            others=others,
            stop_timeout=request["stop_timeout"],
            snapshot=Snapshot(phase=Phase.PENDING, created_at=now),
            launch=launch,
            shared=bool(others),
        )

    async def _see_through(self, record: _Record, found: dict[str, Any] | None = None) -> None:
        """Bring an attempt up, or meet the one that was found, and watch it to its end."""
        with record.life:
            try:
                if found is not None:
                    await self._see_adopted(record, found)
                elif record.shared:
                    async with anyio.create_task_group() as watchers:
                        await self._launch(record, watchers)
                        if not record.ended and record.job.started.is_set():
                            await self._attend(record)
                        watchers.cancel_scope.cancel()
                else:
                    await self._launch(record, None)
                    if not record.ended and record.job.started.is_set():
                        await self._attend(record)
            except Refused as exc:
                # Nothing that we know how to meet: whoever observes is told, for as long as they ask.
                record.doubt(exc)
            except Exception as exc:
                # Whoever waits must hear of a bug as well; it goes on to the task group, so that it is not hidden.
                record.doubt(BackendError(f"the docker backend failed: {type(exc).__name__}: {exc}"))
                raise
            finally:
                record.settled.set()
                record.placed.set()

    async def _launch(self, record: _Record, watchers: TaskGroup | None) -> None:
        """Start the job's own container, or end the record."""
        try:
            with record.starting:
                await self._bring_up(record, watchers)
        except _Unstartable as exc:
            record.failure = record.failure or exc
        except _Met:
            await self._meet(record)
            return
        except Refused as exc:
            record.failure = record.failure or self._explained(record, self._job_part(record), exc)
        if record.job.started.is_set():
            if record.stop_reason is not None:
                self._tasks.start_soon(self._stop, record)
            return
        await self._give_up(record)

    async def _give_up(self, record: _Record) -> None:
        """End a record whose own container has not started."""
        launch = cast("Launch", record.launch)
        now = datetime.now(UTC)
        record.reach(Phase.STOPPING)
        if record.failure is None:
            record.leaving = True
            await self._insist(record, partial(self._clear, record))
            reason = record.stop_reason or "the backend was closed before it had started"
            proof = Proof(source="docker-create", seen_at=now, evidence="its container was never started")
            snapshot = Snapshot(phase=Phase.ENDED, cause=Cause.STOPPED_ON_REQUEST, reason=reason, proof=proof)
        else:
            record.leaving = record.shared
            if record.shared:
                await self._insist(record, partial(self._stop_others, record))
            trouble, evidence = record.failure.trouble, record.failure.evidence
            proof = Proof(source="docker-engine", seen_at=now, evidence=evidence)
            if first := _ended_first(record):
                over = first.is_watchdog and first.exit_code == 0
                said = f"the essential sidecar {first.container!r} ended with exit code {first.exit_code}"
                snapshot = Snapshot(
                    phase=Phase.ENDED,
                    cause=Cause.DEADLINE if over else Cause.SIDECAR_ENDED,
                    reason=f"{'the hard deadline passed' if over else said} before the job had started",
                    proof=proof,
                )
            else:
                snapshot = _spec.could_not_start(trouble, proof=proof, created_at=None, ended_at=now)
        created = record.snapshot.created_at
        record.tell(attrs.evolve(snapshot, created_at=created, ended_at=max(now, created or now)))
        self._forget_metadata(launch.token)

    async def _clear(self, record: _Record) -> None:
        """Remove every container of a record whose own one was never started."""
        for member in reversed(record.members):
            await self._engine.remove(member.where, force=True)
        await self._free(record)

    async def _stop_others(self, record: _Record) -> None:
        """Stop what runs beside the job's own container. All at once, as ECS does."""

        async def stop(member: _Member) -> None:
            await self._engine.stop(member.where, record.stop_timeout)

        running = [member for member in record.others if member.role == "sidecar" and member.id]
        trouble: list[BackendError] = []

        async def guarded(member: _Member) -> None:
            try:
                await stop(member)
            except BackendError as exc:
                trouble.append(exc)

        # A watchdog would take the others along, without the time that they have to end.
        for together in ([m for m in running if not m.is_watchdog], [m for m in running if m.is_watchdog]):
            async with anyio.create_task_group() as tasks:
                for member in together:
                    tasks.start_soon(guarded, member)
        unavailable = [exc for exc in trouble if isinstance(exc, BackendUnavailable)]
        if unavailable:
            raise unavailable[0]
        for member in record.others:
            if member.role == "pause" and member.id:
                await self._engine.stop(member.where, 0)

    async def _insist(self, record: _Record, call: Callable[[], Awaitable[_T]]) -> _T:
        """Make a call whose effect has to be known: not cancelled in the middle, repeated while the engine is away."""
        since: float | None = None
        pause = _PAUSE_MIN
        while True:
            await anyio.lowlevel.checkpoint_if_cancelled()  # a stop between two calls comes before the second
            try:
                with CancelScope(shield=True):
                    result = await call()
                    record.trouble = None
                    return result
            except BackendUnavailable as exc:
                now = anyio.current_time()
                since = since or now
                if now - since > _DOUBT_AFTER:
                    record.doubt(exc)
            if self._closing:
                pause = min(pause, 0.5)
            await anyio.sleep(pause)
            pause = min(2 * pause, _PAUSE_MAX)

    def _job_part(self, record: _Record) -> Mapping[str, Any]:
        return cast("Mapping[str, Any]", cast("Launch", record.launch).request["containers"][-1])

    async def _bring_up(self, record: _Record, watchers: TaskGroup | None) -> None:
        launch = cast("Launch", record.launch)
        parts: list[dict[str, Any]] = launch.request["containers"]
        record.reach(Phase.STARTING)
        self._watch_kills()
        for part in parts:
            if not part["create"]["Image"].startswith("sha256:"):
                await self._have_image(record, part)
        await self._serve_metadata()
        credentials = await self._credentials()
        async with self._starts:
            mount, tmpfs = await self._announce_scratch(record)
            if record.shared and self._engine.is_here:
                record.cgroup = _host.cgroup_parent(launch.token, driver=self._engine.cgroup_driver)
            # The job's own first: whoever has its name has the launch. Before it only a watchdog, that all others name.
            members = [*zip(parts, [*record.others[record.shared :], record.job], strict=True)]
            members.sort(key=lambda pair: pair[1].is_watchdog)
            for part, member in reversed(members):
                await self._create(record, part, member, credentials, mount=mount, tmpfs=tmpfs)
            if record.shared:
                await self._hold_network(record)
            record.placed.set()
            await self._mount_scratch(record)
            if watchers is None:
                await self._start(record, parts[-1], record.job)
                return
        async with anyio.create_task_group() as tasks:
            for part, member in zip(parts, [*record.others[1:], record.job], strict=True):
                tasks.start_soon(self._start_in_order, record, part, member, watchers)

    # ---- one container ---------------------------------------------------------------------------------------------

    async def _have_image(self, record: _Record, part: Mapping[str, Any]) -> None:
        """Pull the image of *part* if the engine lacks it. Many jobs of the same image wait for one pull."""
        image = part["image"]
        async with self._pulls.setdefault(image, anyio.Lock()):
            if await self._insist(record, partial(self._engine.image, image)) is not None:
                return
            since = anyio.current_time()
            while True:
                try:
                    await self._engine.pull(image, cast("Launch", record.launch).request["architecture"])
                    return
                except Refused as exc:
                    raise self._explained(record, part, exc) from exc
                except BackendUnavailable as exc:
                    if anyio.current_time() - since > _DOUBT_AFTER:
                        record.doubt(exc)
                    await anyio.sleep(_PAUSE_MAX)

    async def _create(
        self,
        record: _Record,
        part: Mapping[str, Any],
        member: _Member,
        credentials: str | None,
        *,
        mount: Mapping[str, Any] | None,
        tmpfs: Mapping[str, str] | None,
    ) -> None:
        launch = cast("Launch", record.launch)
        env = {name: _reveal(launch.secrets, part, name) for name in part["secrets"]}
        if credentials is not None:
            env["AWS_SHARED_CREDENTIALS_FILE"] = _spec.CREDENTIALS_FILE
        if self._metadata is not None and (address := self._metadata.add(launch.token, member.container)):
            env["ECS_CONTAINER_METADATA_URI_V4"] = address
        labels = {f"{LABEL}owner": self._owner, f"{LABEL}created": _written(record.ref.created_at)}
        if member is record.job:
            labels[f"{LABEL}job"] = json.dumps(launch.description, separators=(",", ":"))
        body = _spec.with_runtime(
            part["create"], labels=labels, env=env, mount=mount, tmpfs=tmpfs, cgroup_parent=record.cgroup
        )
        try:
            member.id = await self._insist(record, partial(self._create_once, part, member, body))
            if credentials is not None:
                archive = _spec.credentials_tar(credentials)
                await self._insist(record, partial(self._engine.put_archive, member.id, archive))
        except Refused as exc:
            if exc.status == 404 and "no such image" in exc.words.lower():
                # It was removed after the launch was prepared.
                await self._have_image(record, part)
                body["Image"] = part["image"]
                member.id = await self._insist(record, partial(self._create_once, part, member, body))
            else:
                raise self._explained(record, part, exc) from exc
        self._by_id[member.id] = record

    async def _create_once(self, part: Mapping[str, Any], member: _Member, body: Mapping[str, Any]) -> str:
        for pause in _NAME_PAUSES:
            try:
                return await self._engine.create(member.name, body, part["platform"])
            except Refused as exc:
                if exc.status != 409:
                    raise
            # The name is taken: by an answer of ours that was lost, by a process that is dead, or by one that lives.
            there = await self._engine.inspect(member.name)
            if there is not None:
                owner = there["Config"]["Labels"].get(f"{LABEL}owner")
                if owner == self._owner:
                    return str(there["Id"])
                if _was_started(there) or not await anyio.to_thread.run_sync(_host.is_dead, owner):
                    raise _Met
                if not await self._stays_created(there["Id"]):
                    raise _Met
                await self._engine.remove(there["Id"], force=False)
            # The engine takes a name some moments before it shows the container.
            await anyio.sleep(pause)
        return await self._engine.create(member.name, body, part["platform"])

    async def _start(self, record: _Record, part: Mapping[str, Any], member: _Member) -> None:
        asked = False

        async def start() -> None:
            nonlocal asked
            # Where an answer was lost the effect may not be: to start what is over by now would run it a second time.
            if not (asked and await self._has_left_created(member)):
                asked = True
                await self._engine.start(member.id)
            member.started.set()  # before anything can cancel us: it runs now

        try:
            await self._insist(record, start)
        except Refused as exc:
            raise self._explained(record, part, exc) from exc
        if member is record.job:
            record.reach(Phase.RUNNING, started_at=max(datetime.now(UTC), cast("datetime", record.snapshot.created_at)))
            record.settled.set()

    async def _has_left_created(self, member: _Member) -> bool:
        """Whether a start that was not answered has had its effect; a start under way gets time to show it."""
        for pause in _START_PAUSES:
            there = await self._engine.inspect(member.id)
            if there is None or there["State"]["Status"] != "created":
                return True
            await anyio.sleep(pause)
        return False

    def _explained(self, record: _Record, part: Mapping[str, Any], exc: Refused) -> _Unstartable:
        body = part["create"]
        words = [*(body.get("Entrypoint") or ()), *(body.get("Cmd") or ())]
        trouble = _spec.explain(
            exc.words, image=part["image"], command=words[0] if words else "", directory=body.get("WorkingDir", "")
        )
        if part["role"] != "job":
            trouble = attrs.evolve(trouble, reason=f"sidecar {part['container']!r}: {trouble.reason}", exit_code=None)
        return _Unstartable(trouble, f"{exc.words} (HTTP {exc.status})")

    async def _credentials(self) -> str | None:
        if self._aws_credentials is None:
            return None
        try:
            given = self._aws_credentials()
            found = await given if isinstance(given, Awaitable) else given
        except Exception as exc:
            trouble = Trouble(f"aws_credentials failed with {type(exc).__name__}", "look into that function", True)
            raise _Unstartable(trouble, type(exc).__name__) from exc
        return found.as_file()

    # ---- several containers ----------------------------------------------------------------------------------------

    async def _hold_network(self, record: _Record) -> None:
        """Start the container that holds the network, and bound what all containers may use together."""
        launch = cast("Launch", record.launch)
        request, pause = launch.request, record.others[0]
        await self._insist(record, self._have_pause)
        image = _pause.image_name(self._engine.architecture)
        body = _spec.pause_body(request["containers"], image=image, network=request["network"])
        labels = {f"{LABEL}owner": self._owner, f"{LABEL}created": _written(record.ref.created_at)}
        body = _spec.with_runtime(body, labels=labels, env={}, cgroup_parent=record.cgroup)
        part = {"create": body, "image": image, "platform": None, "role": "pause", "container": "network"}
        try:
            pause.id = await self._insist(record, partial(self._create_once, part, pause, body))
        except Refused as exc:
            raise self._explained(record, part, exc) from exc
        await self._start(record, part, pause)
        if record.cgroup is not None:
            limit = partial(
                _host.limit_cgroup,
                record.cgroup,
                version=self._engine.cgroup_version,
                memory=request["memory"],
                nano_cpus=request["nano_cpus"],
            )
            await anyio.to_thread.run_sync(limit)

    async def _have_pause(self) -> None:
        async with self._pause_lock:
            architecture = self._engine.architecture
            if not self._has_pause and await self._engine.image(_pause.image_name(architecture)) is None:
                await self._engine.load(_pause.image_tar(architecture))
            self._has_pause = True

    async def _start_in_order(
        self, record: _Record, part: Mapping[str, Any], member: _Member, watchers: TaskGroup
    ) -> None:
        """Start one container of several, once what it waits for has come true."""
        try:
            for name, condition in part["waits"].items():
                other = next(m for m in record.others if m.container == name)
                await self._comes_true(record, member, other, condition)
            async with self._starts:
                await self._start(record, part, member)
            if member is not record.job:
                watchers.start_soon(self._watch_sidecar, record, member)
        except _Unstartable as exc:
            record.failure = record.failure or exc
            record.starting.cancel()

    async def _comes_true(self, record: _Record, member: _Member, other: _Member, condition: str) -> None:
        """
        Return once *other* has come so far.

        :raises _Unstartable: it never will
        """
        await other.started.wait()
        if condition in {"COMPLETE", "SUCCESS"}:
            await other.over.wait()
            if condition == "SUCCESS" and other.exit_code != 0:
                raise _hopeless(member, other, f"ended with exit code {other.exit_code}")
        elif condition == "HEALTHY":
            pause = 0.1
            while True:
                found = await self._insist(record, partial(self._engine.inspect, other.id))
                health = (found or {"State": {}})["State"].get("Health", {}).get("Status")
                if health == "healthy":
                    return
                if found is None or not found["State"]["Running"] or health == "unhealthy":
                    raise _hopeless(member, other, "is not healthy")
                await anyio.sleep(pause)
                pause = min(1.5 * pause, 1.0)

    async def _watch_sidecar(self, record: _Record, member: _Member) -> None:
        found = await self._until_over(record, member)
        member.exit_code = found["State"]["ExitCode"] if found else None
        member.over.set()
        if not member.essential or record.leaving or record.job.over.is_set():
            return
        if record.job.started.is_set():
            record.reach(Phase.STOPPING)
            await self._insist(record, partial(self._engine.stop, record.job.id, record.stop_timeout))
        else:
            how = "is gone" if found is None else f"ended with exit code {member.exit_code}"
            record.failure = record.failure or _hopeless(record.job, member, how)
            record.starting.cancel()

    # ---- what only this machine can do -----------------------------------------------------------------------------

    async def _announce_scratch(self, record: _Record) -> tuple[dict[str, Any] | None, dict[str, str] | None]:
        request = cast("Launch", record.launch).request
        gib, path = request["scratch_gib"], request["scratch_path"]
        if gib is None:
            return None, None
        if self._engine.is_here:
            scratch = _host.Scratch(record.ref.token, gib)
            try:
                with CancelScope(shield=True):
                    await anyio.to_thread.run_sync(scratch.announce)
                    record.mount = True
                    await anyio.to_thread.run_sync(scratch.mount)
                return {"Type": "bind", "Source": str(scratch.directory), "Target": path}, None
            except OSError:
                with CancelScope(shield=True):
                    await anyio.to_thread.run_sync(scratch.remove)
                record.mount = False
        return None, {path: f"size={gib}g,mode=1777,exec"}

    async def _mount_scratch(self, record: _Record) -> None:
        return

    async def _free(self, record: _Record) -> None:
        """Give back what is not the engine's: control group, scratch space, metadata address."""
        self._forget_metadata(record.ref.token)
        for member in record.members:
            self._by_id.pop(member.id, None)
        if record.cgroup is not None:
            await anyio.to_thread.run_sync(_host.remove_cgroup, record.cgroup)
        if record.mount:
            await anyio.to_thread.run_sync(_host.Scratch(record.ref.token).remove)

    async def _serve_metadata(self) -> None:
        if self._metadata_tried or self._network == "none":
            return
        async with self._metadata_lock:
            if self._metadata_tried:
                return
            from fargate_runner.backends.docker._metadata import MetadataServer

            with CancelScope(shield=True):
                address = await self._engine.gateway(self._network)
                server = MetadataServer(self._inspect_group, self._figures)
                if address is not None and await server.open(address):
                    self._metadata = server
                self._metadata_tried = True

    async def _inspect_group(self, token: str) -> list[dict[str, Any]]:
        record = self._records.get(_spec.job_name(token))
        members = record.members if record is not None else []
        found = [await self._engine.inspect(member.id) for member in members if member.id]
        return [part for part in found if part is not None]

    async def _figures(self, container: str) -> Mapping[str, Any] | None:
        found = await self._engine.call("GET", f"/containers/{container}/stats", params={"stream": "0"})
        return cast("Mapping[str, Any] | None", found)

    def _forget_metadata(self, token: str) -> None:
        if self._metadata is not None:
            self._metadata.drop(token)

    # ---- watching --------------------------------------------------------------------------------------------------

    def _watch_kills(self) -> None:
        if not self._watches_kills:
            self._watches_kills = True
            self._tasks.start_soon(self._note_kills)

    async def _note_kills(self) -> None:
        """Note who sends our jobs signals through the engine: a job that was stopped by hand has not just exited."""
        with self._listening:
            while True:
                async with aclosing(self._engine.kills()) as kills:
                    async for container, number in kills:
                        if record := self._by_id.get(container):
                            record.signals.append(number)
                await anyio.sleep(1)

    async def _until_over(self, record: _Record, member: _Member) -> dict[str, Any] | None:
        """Return the inspection of a container once it is over; None if it is gone."""
        since: float | None = None
        pause = _PAUSE_MIN
        while True:
            try:
                await self._engine.wait(member.where)
                found = await self._engine.inspect(member.where)
                record.trouble, since = None, None
                # Not what is being removed: whoever removes it may have killed it for that, and then it is gone.
                if found is None or found["State"]["Status"] in {"exited", "dead"}:
                    return found
            except Refused as exc:
                if exc.status == 404:
                    return None
                raise
            except BackendUnavailable as exc:
                record.outage = True
                now = anyio.current_time()
                since = since or now
                if now - since > _DOUBT_AFTER:
                    record.doubt(exc)
            await anyio.sleep(pause)
            pause = min(2 * pause, _PAUSE_MAX)

    async def _attend(self, record: _Record) -> None:
        """Watch a started attempt to its end."""
        await self._finish(record, await self._until_over(record, record.job))

    async def _finish(self, record: _Record, found: dict[str, Any] | None) -> None:
        """Take down what is beside the job's own container, and say how it ended."""
        record.leaving = True
        record.job.over.set()
        while record.stops:
            await record.changed.wait()
        if found is None or not (_was_started(found) or found["State"].get("Error")):
            await self._insist(record, partial(self._clear, record))
            record.tell(_vanished(record.snapshot))
            return
        sidecars: list[dict[str, Any]] = []
        if record.shared:
            record.reach(Phase.STOPPING, exit_code=found["State"]["ExitCode"])
            await self._insist(record, partial(self._stop_others, record))
            for member in record.others:
                if member.role != "sidecar":
                    continue
                if part := await self._insist(record, partial(self._engine.inspect, member.where)):
                    sidecars.append(part)
        self._forget_metadata(record.ref.token)
        deadly = {signal.SIGKILL, signal.SIGTERM, _number(found["Config"].get("StopSignal"))}
        facts = End(
            seen_at=datetime.now(UTC),
            stopped=record.stopped,
            killed_by=next((number for number in record.signals if number in deadly), None),
            outage=record.outage,
            trouble=await self._init_trouble(record, found),
        )
        record.tell(_spec.ended(found, sidecars, facts))

    async def _init_trouble(self, record: _Record, found: Mapping[str, Any]) -> Trouble | None:
        """Return why the command never ran, where only the init process says so: in place of the job's output."""
        state = found["State"]
        started, finished = _spec.moment(state["StartedAt"]), _spec.moment(state["FinishedAt"])
        if state["ExitCode"] not in _INIT_CODES or started is None or finished is None:
            return None
        if finished - started > _INIT_WITHIN or not found["HostConfig"].get("Init"):
            return None
        from fargate_runner.backends.docker._logs import Frames

        try:
            frames = Frames().feed(await self._insist(record, partial(self._engine.tail, record.job.where, 3)))
        except ValueError:
            return None
        if not frames or any(stream != 2 for stream, _ in frames):
            return None
        line = b"".join(text for _, text in frames).decode(errors="replace").rstrip("\n")
        if not _spec.is_init_failure(line):
            return None
        record.mute = True
        trouble = _spec.explain_init(line, image=found["Config"]["Labels"][f"{LABEL}image"])
        return attrs.evolve(trouble, exit_code=state["ExitCode"])

    # ---- the other verbs -------------------------------------------------------------------------------------------

    async def observe(self, ref: TaskRef, *, after: Snapshot | None = None) -> Snapshot:
        self._check_open()
        record = await self._record(ref)
        if record is None:
            return _vanished(Snapshot(phase=Phase.PENDING, created_at=ref.created_at))
        while True:
            if record.doomed:
                return _vanished(record.snapshot)
            if record.snapshot != after or record.ended:
                return record.snapshot
            if record.trouble is not None:
                raise record.trouble
            await record.changed.wait()
            self._check_open()

    async def stop(self, ref: TaskRef, *, reason: str) -> None:
        self._check_open()
        record = await self._record(ref)
        if record is None or record.ended or record.stop_reason is not None:
            return
        if record.trouble is not None:
            raise record.trouble
        record.stop_reason = reason
        if record.settled.is_set():
            self._tasks.start_soon(self._stop, record)
            record.stops += 1
        else:
            record.starting.cancel()
        record.reach(Phase.STOPPING)

    async def _stop(self, record: _Record) -> None:
        """Have the engine stop the job's own container, and note whether that was what ended it."""
        with CancelScope(shield=True):
            if not record.stops:
                record.stops += 1
            try:
                while not record.ended:
                    try:
                        if await self._engine.stop(record.job.where, record.stop_timeout):
                            record.stopped = record.stop_reason
                        return
                    except BackendUnavailable:
                        if self._closing:
                            return
                    except Refused:
                        record.stop_reason = None  # it may be asked for again
                        return
                    await anyio.sleep(1)
            finally:
                record.stops = 0
                record.wake()

    async def logs(self, ref: TaskRef, *, follow: bool, tail: int | None = None) -> AsyncGenerator[LogLine]:
        from fargate_runner.backends.docker._logs import Merged, read_container

        self._check_open()
        record = await self._record(ref)
        if record is None or record.doomed:
            raise LogsUnavailable(f"the lines of attempt {ref.attempt} of {ref.key!r} are gone: it was forgotten")
        record.readers += 1
        try:
            if follow:
                await record.placed.wait()
                self._check_open()
            members = [member for member in record.members if member.role != "pause" and member.id]
            sources = [
                read_container(
                    self._engine.session,
                    self._engine.base,
                    member.id,
                    container=member.container,
                    attempt=ref.attempt,
                    follow=follow,
                    tail=tail,
                    ended=partial(self._over, record, member),
                )
                for member in members
            ]
            if len(sources) == 1:
                async with aclosing(sources[0]) as lines:
                    async for line in lines:
                        if not await self._is_init_line(record, line):
                            yield line
            elif tail is not None and not follow:
                found = [line for source in sources async for line in source]
                found.sort(key=lambda line: line.at or datetime.min.replace(tzinfo=UTC))
                for line in found[-tail:] if tail else []:
                    if not await self._is_init_line(record, line):
                        yield line
            elif sources:
                merged = Merged(sources)
                async with aclosing(merged) as lines:
                    async for line in lines:
                        if not await self._is_init_line(record, line):
                            yield line
        finally:
            record.readers -= 1
            if record.doomed and not record.readers and not self._closing and self.is_open:
                self._tasks.start_soon(self._remove_quietly, record)

    async def _over(self, record: _Record, member: _Member) -> None:
        """Return once a container is over."""
        if member is record.job:
            await member.over.wait()
        else:
            while not record.ended and not member.over.is_set():
                await record.changed.wait()
        self._check_open()

    async def _is_init_line(self, record: _Record, line: LogLine) -> bool:
        """Whether a line is the init process's, instead of all that the job would have written."""
        if line.stream != "stderr" or line.container != record.job.container or not _spec.is_init_failure(line.text):
            return False
        while not record.ended:
            await record.changed.wait()
            self._check_open()
        return record.mute

    async def find(self, namespace: str, key: str) -> list[TaskRef]:
        self._check_open()
        groups: dict[str, list[dict[str, Any]]] = {}
        for found in await self._engine.list(f"{LABEL}namespace={namespace}", f"{LABEL}key={key}"):
            groups.setdefault(found["Labels"].get(f"{LABEL}token", ""), []).append(found)
        refs: list[TaskRef] = []
        for token, group in groups.items():
            if _spec.job_name(token) in self._records:
                continue
            job = _of_role(group, "job")
            is_unstarted = (job is None or job["State"] == "created") and await _is_abandoned(group)
            if is_unstarted and await self._remove_unstarted(token, group):
                continue
            if job is not None:
                refs.append(_ref_of(job["Labels"]))
        refs.extend(
            record.ref
            for record in self._records.values()
            if (record.namespace, record.ref.key) == (namespace, key)
            and not record.doomed
            and record.snapshot.cause is not Cause.VANISHED
        )
        return sorted(refs, key=lambda ref: (ref.attempt, ref.created_at or datetime.min.replace(tzinfo=UTC)))

    async def living(self, namespace: str) -> list[TaskRef]:
        self._check_open()
        refs: list[TaskRef] = []
        for found in await self._engine.list(f"{LABEL}namespace={namespace}", f"{LABEL}role=job"):
            labels = found["Labels"]
            if (
                found["State"] not in _OVER
                and _is_launch(found)
                and _spec.job_name(labels[f"{LABEL}token"]) not in self._records
            ):
                refs.append(_ref_of(labels))
        refs.extend(
            record.ref for record in self._records.values() if record.namespace == namespace and not record.ended
        )
        return refs

    async def forget(self, ref: TaskRef) -> None:
        self._check_open()
        record = await self._record(ref)
        if record is None or not record.ended or record.doomed:
            return
        if record.readers:
            record.doomed = True  # the last reader that leaves turns off the light
            record.wake()
            return
        await self._remove(record)

    async def _remove(self, record: _Record) -> None:
        """Remove what an ended attempt holds. The job's own container last: by it the others are found."""
        others = [member.id for member in record.others if member.id]
        if record.shared and record.launch is None:
            # It was met while another process still made its containers: we may not have seen all of them.
            found = await self._engine.list(f"{LABEL}token={record.ref.token}")
            others = [part["Id"] for part in found if part["Labels"].get(f"{LABEL}role") != "job"]
        for other in others:
            await self._engine.remove(other, force=True)
        await self._free(record)
        # Without force: what should be over, but is not, stays and is found.
        if record.job.id and record.snapshot.cause is not Cause.VANISHED:
            await self._engine.remove(record.job.id, force=False)
        self._records.pop(record.ref.address, None)

    async def _remove_quietly(self, record: _Record) -> None:
        with CancelScope(shield=True):
            try:
                await self._remove(record)
            except BackendError:
                record.doomed = True

    # ---- what others have launched ---------------------------------------------------------------------------------

    async def _record(self, ref: TaskRef) -> _Record | None:
        known = self._records.get(ref.address)
        return known if known is not None else await self._adopt(ref.address)

    async def _adopt(self, address: str) -> _Record | None:
        """Find an attempt that this backend does not know on the engine, and begin to watch it."""
        found = await self._engine.inspect(address)
        if found is None or f"{LABEL}token" not in found["Config"]["Labels"]:
            return self._records.get(address)
        labels = found["Config"]["Labels"]
        token = labels[f"{LABEL}token"]
        shared = labels.get(f"{LABEL}shared") == "yes"
        group = await self._engine.list(f"{LABEL}token={token}") if shared else []
        status = found["State"]["Status"]
        if not _was_started(found) and not found["State"].get("Error"):
            owner = labels.get(f"{LABEL}owner")
            if await anyio.to_thread.run_sync(_host.is_dead, owner):
                unstarted = group or [{"Id": found["Id"], "Labels": labels}]
                return None if await self._remove_unstarted(token, unstarted) else await self._adopt(address)
        created = _spec.moment(found["Created"])
        signals = (
            await self._engine.signals_sent(found["Id"], created) if created is not None and status in _OVER else ()
        )
        if (known := self._records.get(address)) is not None:
            return known
        record = self._adopted(found, group, shared=shared)
        record.signals.extend(signals)
        self._records[address] = self._by_id[found["Id"]] = record
        self._watch_kills()
        self._tasks.start_soon(self._see_through, record, found)
        if status in _OVER or found["State"].get("Error"):
            # Those who ask whether it is over get the answer at once.
            while not record.ended and record.trouble is None:
                await record.changed.wait()
        return record

    def _adopted(self, found: Mapping[str, Any], group: Iterable[Mapping[str, Any]], *, shared: bool) -> _Record:
        labels, state = found["Config"]["Labels"], found["State"]
        job = _Member(found["Name"].lstrip("/"), labels[f"{LABEL}container"], "job", essential=True, id=found["Id"])
        others = [
            _Member(
                part["Names"][0].lstrip("/"),
                part["Labels"].get(f"{LABEL}container", ""),
                part["Labels"].get(f"{LABEL}role", "sidecar"),
                essential=part["Labels"].get(f"{LABEL}essential") == "yes",
                id=part["Id"],
            )
            for part in group
            if part["Labels"].get(f"{LABEL}role") != "job"
        ]
        started = _spec.moment(state["StartedAt"])
        record = _Record(
            ref=_ref_of(labels),
            namespace=labels[f"{LABEL}namespace"],
            job=job,
            others=sorted(others, key=lambda member: member.role != "pause"),
            stop_timeout=int(labels.get(f"{LABEL}stop-timeout", "30")),
            snapshot=Snapshot(
                phase=Phase.RUNNING if started else Phase.STARTING,
                created_at=_spec.moment(found["Created"]),
                started_at=started,
            ),
            shared=shared,
        )
        record.cgroup = found["HostConfig"].get("CgroupParent") or None if self._engine.is_here else None
        record.mount = self._engine.is_here and any(
            str(mount.get("Source", "")) == str(_host.Scratch(record.ref.token).directory)
            for mount in found.get("Mounts") or ()
        )
        record.placed.set()
        record.settled.set()
        if started:
            job.started.set()
        return record

    async def _see_adopted(self, record: _Record, found: dict[str, Any]) -> None:
        """Watch what another process has launched to its end."""
        last = await self._until_started(record, found)
        if last is not None and last["State"]["Status"] not in {*_OVER, "created"}:
            record.job.started.set()
            record.reach(Phase.RUNNING, started_at=_spec.moment(last["State"]["StartedAt"]))
            async with anyio.create_task_group() as watchers:
                for member in record.others:
                    if member.role == "sidecar":
                        member.started.set()
                        watchers.start_soon(self._watch_sidecar, record, member)
                last = await self._until_over(record, record.job)
                watchers.cancel_scope.cancel()
        await self._finish(record, last)

    async def _until_started(self, record: _Record, found: dict[str, Any] | None) -> dict[str, Any] | None:
        """Wait while another process brings the attempt up."""
        pause = _PAUSE_MIN
        while found is not None and found["State"]["Status"] == "created" and not found["State"].get("Error"):
            owner = found["Config"]["Labels"].get(f"{LABEL}owner")
            removing = partial(self._engine.remove, record.job.id, force=False)
            if await anyio.to_thread.run_sync(_host.is_dead, owner) and await self._insist(record, removing):
                return None
            await anyio.sleep(pause)
            pause = min(1.5 * pause, _PAUSE_MAX)
            found = await self._insist(record, partial(self._engine.inspect, record.job.id))
        return found

    async def _meet(self, record: _Record) -> None:
        """Go on with a record whose containers turned out to be another process's."""
        found = await self._insist(record, partial(self._engine.inspect, record.job.name))
        for pause in _NAME_PAUSES if any(member.is_watchdog for member in record.others) else ():
            if found is not None:
                break
            await anyio.sleep(pause)  # the other process has made the watchdog, and is about to make the job's own
            found = await self._insist(record, partial(self._engine.inspect, record.job.name))
        if found is None:
            record.failure = _Unstartable(
                Trouble("another process has used the same token meanwhile", "submit the job again", True),
                "409 and then 404",
            )
            await self._give_up(record)
            return
        shared = record.shared
        listing = partial(self._engine.list, f"{LABEL}token={record.ref.token}")
        group = await self._insist(record, listing) if shared else []
        theirs = self._adopted(found, group, shared=shared)
        if theirs.ref.description != record.ref.description:
            trouble = Trouble("the key names another job, which another process has just launched", "use another key")
            record.failure = _Unstartable(trouble, "409 name in use")
            record.job.id, record.others = "", []
            await self._give_up(record)
            return
        record.job, record.others, record.cgroup, record.mount = theirs.job, theirs.others, theirs.cgroup, theirs.mount
        record.launch = None
        self._by_id[found["Id"]] = record
        record.placed.set()
        record.settled.set()
        record.starting = CancelScope()
        if record.stop_reason is not None:
            record.stops += 1
            self._tasks.start_soon(self._stop, record)
        await self._see_adopted(record, found)


def _secrets_of(job: Job) -> dict[str, Any]:
    """The secrets of all containers, by container and name: two may give the same name different values."""
    return dict(job.secrets) | {
        f"{side.name}/{name}": secret for side in job.sidecars for name, secret in side.secrets.items()
    }


def _secret_names(part: Mapping[str, Any]) -> list[str]:
    return [_secret_name(part, name) for name in part["secrets"]]


def _secret_name(part: Mapping[str, Any], name: str) -> str:
    return name if part["role"] == "job" else f"{part['container']}/{name}"


def _reveal(secrets: Mapping[str, Any], part: Mapping[str, Any], name: str) -> str:
    secret = secrets[_secret_name(part, name)]
    return secret.reveal() if isinstance(secret, Secret) else ""


def _hopeless(member: _Member, other: _Member, how: str) -> _Unstartable:
    whose = "the job" if member.role == "job" else f"sidecar {member.container!r}"
    reason = f"sidecar {other.container!r} {how}, and {whose} waits for it"
    return _Unstartable(Trouble(reason, f"read the lines of {other.container!r}"), reason)


def _ended_first(record: _Record) -> _Member | None:
    return next((m for m in record.others if m.essential and m.over.is_set()), None)


def _of_role(group: Iterable[Mapping[str, Any]], role: str) -> Any:
    return next((part for part in group if part["Labels"].get(f"{LABEL}role") == role), None)


def _is_watchdog(found: Mapping[str, Any]) -> bool:
    return bool(found["Labels"].get(f"{LABEL}container") == DEADLINE_CONTAINER)


def _is_launch(found: Mapping[str, Any]) -> bool:
    """Whether the labels of a container are those of one launch of ours, and its name as well."""
    labels = found["Labels"]
    try:
        namespace, key, token = (labels[f"{LABEL}{name}"] for name in ("namespace", "key", "token"))
        attempt = int(labels[f"{LABEL}attempt"])
    except (KeyError, ValueError):
        return False
    named = f"/{_spec.job_name(token)}" in (found.get("Names") or ())
    return named and is_token_of(token, DockerBackend.name, namespace, key, attempt)


def _was_started(found: Mapping[str, Any]) -> bool:
    """Whether a container ever ran. Its status does not tell: one that is being removed is in neither state."""
    return _spec.moment(found["State"]["StartedAt"]) is not None


async def _is_abandoned(group: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the process that made these containers is provably dead."""
    owners = {part["Labels"].get(f"{LABEL}owner") for part in group}
    return await anyio.to_thread.run_sync(lambda: all(_host.is_dead(owner) for owner in owners))


def _ref_of(labels: Mapping[str, str]) -> TaskRef:
    token = labels[f"{LABEL}token"]
    try:
        description = json.loads(labels[f"{LABEL}job"])
    except (KeyError, ValueError):
        description = None
    return TaskRef(
        backend=DockerBackend.name,
        address=_spec.job_name(token),
        key=labels[f"{LABEL}key"],
        attempt=int(labels[f"{LABEL}attempt"]),
        token=token,
        description=description,
        created_at=_spec.moment(labels.get(f"{LABEL}created")),
    )


def _written(moment: datetime | None) -> str:
    return moment.isoformat() if moment is not None else ""


def _vanished(last: Snapshot) -> Snapshot:
    reason = "the engine knows of no such container; it was removed by hand, or forgotten"
    proof = Proof(source="docker-inspect", seen_at=datetime.now(UTC), evidence="404 No such container")
    return Snapshot(
        phase=Phase.ENDED,
        cause=Cause.VANISHED,
        reason=reason,
        created_at=last.created_at,
        started_at=last.started_at,
        proof=proof,
    )


def _number(name: str | None) -> int | None:
    """The number of a signal as images name it: ``SIGINT``, ``INT`` or ``2``."""
    if not name:
        return None
    if name.isdigit():
        return int(name)
    found = getattr(signal, name if name.startswith("SIG") else f"SIG{name}", None)
    return int(found) if found is not None else None
