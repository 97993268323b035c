"""
The boundary: what a place where jobs run has to answer, and nothing else.

A backend holds no policy. It does not retry jobs, knows no deadline and decides on no outcome: it launches, looks,
stops, reads and finds. `fargate_runner.testing.contract` holds the behaviours that every backend must show.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Self, cast

import attrs
from anyio import AsyncContextManagerMixin, CancelScope, Event, create_task_group, current_time
from anyio.abc import TaskGroup, TaskStatus

from fargate_runner._errors import BackendError, RunnerClosed
from fargate_runner._job import _TOGETHER, Job, Secret, SecretRef
from fargate_runner._lifecycle import LogLine, Snapshot

__all__ = ["Backend", "Identity", "Launch", "TaskRef", "Together", "is_token_of", "launch_token"]

_PLACEMENTS: Final = 64
"""No attempt has more: each costs a pause that doubles, and all of them are part of its ``start_timeout``."""


TOO_LATE: Final = "TooLate"
"""The code of the `BackendError` of a launch that was not sent (again), for it was after its ``send_until``."""


@attrs.frozen(kw_only=True)
class Together:
    """One of several identical jobs without a key of their own, which one call launches."""

    group: str
    """What they share in place of a key."""
    index: int
    """Counted from 0."""
    size: int

    @property
    def key(self) -> str:
        """The key of this one, made from what it is."""
        return self.key_of(self.index)

    def key_of(self, index: int) -> str:
        """Return the key of another of them."""
        return f"{self.group}.{index}of{self.size}"


@attrs.frozen(kw_only=True)
class Identity:
    """Which launch of which job this is."""

    namespace: str
    key: str
    attempt: int
    """Counted from 1: a new one after each outcome."""
    placement: int = 1
    """Counted from 1: a new one each time the platform refused to place the same attempt."""

    @property
    def together(self) -> Together | None:
        """Which of several identical jobs this is, if one call launches them; None for all others."""
        found = _TOGETHER.match(self.key)
        if found is None:
            return None
        return Together(group=found["group"], index=int(found["index"]), size=int(found["size"]))

    @property
    def shared(self) -> Identity | None:
        """Whose name the launch carries, if it is that of several jobs: only their first one can be."""
        together = self.together
        if together is None or self.attempt > 1 or self.placement > 1:
            return None
        return Identity(namespace=self.namespace, key=together.group, attempt=1)

    @property
    def variables(self) -> dict[str, str]:
        """
        What every job finds in its environment, so that it can fence its results and knows a repetition.

        Identical jobs without a key of their own that were launched together share a key there, in every attempt.
        """
        together = self.together
        return {
            "FARGATE_RUNNER_NAMESPACE": self.namespace,
            "FARGATE_RUNNER_KEY": self.key if together is None else together.group,
            "FARGATE_RUNNER_ATTEMPT": str(self.attempt),
        }


def launch_token(scope: str, identity: Identity) -> str:
    """
    Return what makes one launch idempotent: 52 characters of ``[a-z2-7]``, the same for the same arguments.

    *scope* is the place whose memory of tokens counts: an ECS cluster, a Docker engine. ECS takes 64 characters and
    remembers a token per account, region and cluster (Amazon ECS Developer Guide, "Ensuring idempotency").
    """
    parts = ("fr1", scope, identity.namespace, identity.key, str(identity.attempt), str(identity.placement))
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return base64.b32encode(digest).decode().rstrip("=").lower()


def is_token_of(token: str, scope: str, namespace: str, key: str, attempt: int) -> bool:
    """
    Whether *token* is what `launch_token` gives a launch of that attempt, by whichever placement.

    A platform that keeps the token keeps a proof that its other marks are of the same launch.
    """
    return any(
        token == launch_token(scope, Identity(namespace=namespace, key=key, attempt=attempt, placement=placement))
        for placement in range(1, _PLACEMENTS + 1)
    )


@attrs.frozen(kw_only=True)
class Launch:
    """
    A launch with everything pinned that may move, so that the same one can be sent again.

    ``request`` is the backend's own, JSON-able and free of secret values; those travel beside it and are never stored.
    """

    token: str
    identity: Identity
    job_name: str
    description: Mapping[str, Any]
    """`Job.describe` of what is launched: tells one job from another of the same key."""
    request: Mapping[str, Any]
    secrets: Mapping[str, Secret | SecretRef] = attrs.field(factory=dict, repr=False, eq=False)
    send_until: datetime | None = attrs.field(default=None, eq=False)
    """
    When it is too late to send it (again), in the time of the place; never stored. A platform forgets tokens, and this
    process may stand still between two tries: a closed lid, SIGSTOP, Lambda.
    """

    def to_json(self) -> str:
        """Return the launch as text, the same for equal launches; secret values are left out."""
        parts = {
            "token": self.token,
            "identity": attrs.asdict(self.identity),
            "job_name": self.job_name,
            "description": self.description,
            "request": self.request,
        }
        return json.dumps(parts, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, *, secrets: Mapping[str, Secret | SecretRef] | None = None) -> Self:
        """Return the launch that `to_json` wrote, with the secret values that it left out."""
        parts = json.loads(text)
        return cls(**parts | {"identity": Identity(**parts["identity"])}, secrets=secrets or {})


@attrs.frozen(kw_only=True)
class TaskRef:
    """A backend's address of one attempt: plain values, valid in other processes."""

    backend: str
    address: str
    key: str
    attempt: int
    token: str
    description: Mapping[str, Any] | None = attrs.field(default=None, repr=False, eq=False)
    """`Job.describe` of what runs there, where the platform keeps it."""
    created_at: datetime | None = attrs.field(default=None, eq=False)


@asynccontextmanager
async def sheltered_tasks() -> AsyncGenerator[TaskGroup]:
    """
    Open a task group for what a backend does behind its verbs; leaving the block cancels it, nothing else does.

    A cancelled caller still has to stop its jobs and see them end. So the cancellation of the block itself must not
    reach the tasks that start, watch and stop them.
    """
    left = Event()
    tasks = create_task_group()

    async def shelter(*, task_status: TaskStatus[None]) -> None:
        with CancelScope(shield=True):
            async with tasks:
                task_status.started()
                await left.wait()
                tasks.cancel_scope.cancel()

    async with create_task_group() as outer:
        try:
            # Cancelled half-way, there would be a shelter that nobody leaves. The block hears of it soon enough.
            with CancelScope(shield=True):
                await outer.start(shelter)
            yield tasks
        finally:
            left.set()


def clock_of_loop() -> Callable[[], float]:
    """
    Return what tells the time of the event loop that runs now, for as long as it runs.

    anyio looks for the loop each time that it is asked, with two system calls; a job asks forty times.
    """
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None:
        try:
            return cast("Callable[[], float]", asyncio.get_running_loop().time)
        except RuntimeError:
            pass  # it is trio's
    return current_time


class Backend(AsyncContextManagerMixin, ABC):
    """
    A place where jobs run. Used as ``async with backend``; belongs to the event loop it was entered on.

    Every method may be called concurrently for any number of attempts. Apart from `submit`, each may be cancelled at
    any point and called again. None raises for a job that failed: that is a snapshot.
    """

    name: ClassVar[str]
    """The backend's name in telemetry and in `TaskRef.backend`."""

    answer_patience: float = 60.0
    """Seconds that an answer may take, where it is not asked to wait for news. After that it counts as none."""

    default_concurrency: int = 100
    """How many jobs `Runner.map` keeps under way where nobody says; bounded by what the place can take."""

    launches_together: int = 1
    """
    How many identical jobs one call can launch. Above 1, the backend heeds `Identity.shared`: the launches of a group
    carry the same token and request, and each `submit` returns the attempt of its own `Together.index`.
    """

    starts_later: bool = False
    """
    Whether what `submit` has taken may be lost with this process, until the attempt is seen to have started.

    A journal counts such a launch as answered only from then on: before, it can be sent again.
    """

    stays_warm: bool = False
    """
    Whether closing it keeps what takes time to make (clients, what was looked up) for its next opening on the same
    event loop. For who opens it again and again, as a Lambda handler does; `cool_down` gives it up.
    """

    _open: bool = False

    @property
    def place(self) -> str:
        """Where its jobs run, for a journal: addresses of one place mean nothing in another."""
        return self.name

    def now(self) -> datetime:
        """
        Return the time of the place: what its own stamps are compared with. By default, that of this machine.

        Durations across the death of a runner are measured with it. Asks nobody.
        """
        return datetime.now(UTC)

    async def ask_time(self) -> datetime:
        """
        Return the time of the place, for certain: the place is asked, if it has told nothing yet.

        :raises BackendError: it could not be asked
        """
        return self.now()

    @property
    def is_open(self) -> bool:
        """Whether it is inside its ``async with`` block."""
        return self._open

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        if self._open:
            raise RunnerClosed(f"the {self.name} backend is open already; enter it once and share it between runners")
        failure: BaseException | None = None
        async with self._running():
            self._open = True
            try:
                yield self
            except BaseException as exc:  # noqa: BLE001 (re-raised below, where no task group can wrap it in a group)
                failure = exc
            finally:
                self._open = False
        if failure is not None:
            raise failure

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[None]:
        """What lives as long as the backend is open: clients, watchers. For subclasses."""
        yield

    async def cool_down(self) -> None:
        """Give up what `stays_warm` has kept, on the event loop that it was kept on. Does nothing while it is open."""

    @abstractmethod
    async def prepare(self, job: Job, identity: Identity) -> Launch:
        """
        Resolve and pin everything that may move, and check what only the platform knows. Starts nothing.

        :raises InvalidJob: this platform can never run the job; names the field and the fix
        :raises BackendError: the platform could not be asked
        """

    @abstractmethod
    async def submit(self, launch: Launch) -> TaskRef:
        """
        Start the launch, once: sent again with the same token, it returns what the token already started.

        Returns as soon as the platform has taken it; what goes wrong afterwards (no image, no capacity) is told by
        `observe`. The caller does not cancel this: it shields it, and a cancelled one may or may not have had effect.

        :raises PlacementRefused: no room now, and nothing was started; another `Identity.placement` may find some
        :raises LaunchRejected: refused, and nothing was started
        :raises KeyConflict: the token already started something else
        :raises BackendError: the platform could not be asked, or not any more (`TOO_LATE`); whether it was started is
            for `find` to tell
        """

    @abstractmethod
    async def observe(self, ref: TaskRef, *, after: Snapshot | None = None) -> Snapshot:
        """
        Return as soon as more is known of *ref* than *after*; at once if *after* is None.

        Level-triggered: phases between may be skipped, the end never is. An ended attempt stays so, and observing it
        returns at once. What the platform no longer knows is ``Cause.VANISHED``, not an error. Safe to cancel and to
        call again.

        :raises BackendError: the platform could not be asked; nothing is known about the job
        """

    def watch(self, ref: TaskRef, after: Snapshot, tell: Callable[[Snapshot | None], None]) -> bool:
        """
        Have *tell* called, once, as soon as `observe` would return or raise: thousands wait so without a task each.

        It is given what `observe` would return, or None if that has to be asked, and may call `watch` again. False, and
        *tell* is not called: there is news already, or this backend waits in `observe` only (the default).
        """
        return False

    def unwatch(self, ref: TaskRef, tell: Callable[[Snapshot | None], None]) -> None:
        """Call off what `watch` was asked for. No error if *tell* was called already."""

    @abstractmethod
    async def stop(self, ref: TaskRef, *, reason: str) -> None:
        """
        Ask for the end: SIGTERM, the job's ``stop_timeout``, SIGKILL. Returns without waiting for it.

        No error if it is over, unknown, or asked for before.

        :raises BackendError: the platform could not be asked
        """

    @abstractmethod
    def logs(self, ref: TaskRef, *, follow: bool, tail: int | None = None) -> AsyncIterator[LogLine]:
        """
        Yield what the containers of *ref* wrote, whole lines, from the beginning or the last *tail* lines.

        Each stream of each container is in its own order, nothing lost and nothing twice. With *follow*, goes on until
        the attempt has ended and its last line is out; without, stops at what is there now. Pull-based: a slow
        reader costs no memory.

        :raises LogsUnavailable: they are gone, or the platform does not give them out
        :raises BackendError: the platform could not be asked
        """

    @abstractmethod
    async def find(self, namespace: str, key: str) -> list[TaskRef]:
        """
        Return the attempts of a job that the platform knows of, live or ended, the oldest first.

        Asks the platform, not the memory of this process: it is how a job is found again after a crash.

        :raises BackendError: the platform could not be asked
        """

    async def living(self, namespace: str) -> list[TaskRef]:
        """
        Return every attempt of *namespace* that has not ended, whoever launched it, as the platform lists them.

        Only what is provably an attempt of that namespace, by marks that its launch left on it: others may use the
        same names. Each has its ``created_at`` and as much of its ``description`` as the platform keeps. One that was
        told to stop may be left out, one that ends meanwhile may still be there.

        :raises BackendError: the platform could not be asked, or this backend cannot list attempts
        """
        said = f"the {self.name} backend cannot list the attempts of a namespace: it does not implement living()"
        raise BackendError(said, operation="living")

    async def forget(self, ref: TaskRef) -> None:
        """
        Free what an *ended* attempt still holds (its container, its log files). Its logs are gone afterwards.

        Does nothing for one that is unknown or still runs.

        :raises BackendError: the platform could not be asked
        """
