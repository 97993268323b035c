"""
A backend with nothing behind it: every attempt goes as its script says. The reference reading of the contract.

What an attempt looks like is a pure function of its script and the clock, so an hour of it costs a millisecond under
`fargate_runner.testing.clock`.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import anyio
import attrs

from fargate_runner._backend import Backend, Identity, Launch, TaskRef, launch_token
from fargate_runner._errors import KeyConflict, LogsUnavailable, RunnerClosed
from fargate_runner._job import Job, Secret
from fargate_runner._lifecycle import Cause, LogLine, Phase, Proof, Snapshot

__all__ = ["MemoryBackend", "MemoryPlatform", "Script"]


@attrs.frozen(kw_only=True)
class Script:
    """How one attempt goes. Times are in seconds; ``run_for=math.inf`` runs until it is stopped."""

    start_after: float = 0.0
    run_for: float = 0.0
    lines: tuple[str, ...] = ()
    """
    Written while it runs, evenly spread. One that begins with ``!`` goes to stderr, without the mark; one that is
    ``$NAME`` becomes the value of that variable or secret of the job.
    """
    cause: Cause = Cause.EXITED
    exit_code: int | None = 0
    reason: str = ""
    transient: bool = False
    ignores_sigterm: bool = False
    """Then a stop takes the job's whole ``stop_timeout``."""


@attrs.define(eq=False)
class _Run:
    """One attempt on the platform."""

    launch: Launch
    script: Script = attrs.field(repr=False)  # its lines may show a secret
    container: str
    stop_timeout: float
    begun: float
    begun_at: datetime
    stopped: float = math.inf
    changed: anyio.Event = attrs.field(factory=anyio.Event)

    @property
    def starts(self) -> float:
        return self.begun + self.script.start_after

    @property
    def ends(self) -> float:
        if self.script.cause is Cause.COULD_NOT_START:
            by_itself = self.starts
        else:
            by_itself = self.starts + self.script.run_for
        if self.stopped >= by_itself:
            return by_itself
        grace = self.stop_timeout if self.script.ignores_sigterm and self.stopped >= self.starts else 0.0
        return self.stopped + grace

    @property
    def was_stopped(self) -> bool:
        return self.stopped < math.inf

    def at(self, moment: float) -> datetime:
        return self.begun_at + timedelta(seconds=moment - self.begun)

    def snapshot(self, now: float) -> Snapshot:
        started_at = self.at(self.starts) if now >= self.starts and self.starts <= self.stopped else None
        if now >= self.ends:
            return self._end(started_at)
        phase = Phase.STOPPING if self.was_stopped else Phase.RUNNING if now >= self.starts else Phase.PENDING
        return Snapshot(phase=phase, created_at=self.begun_at, started_at=started_at)

    def _end(self, started_at: datetime | None) -> Snapshot:
        script = self.script
        cause, exit_code, reason = script.cause, script.exit_code, script.reason
        if self.was_stopped:
            cause, reason = Cause.STOPPED_ON_REQUEST, "stopped on request"
            exit_code = None if started_at is None else 137 if script.ignores_sigterm else 143
        elif cause in {Cause.COULD_NOT_START, Cause.VANISHED}:
            exit_code = None
        return Snapshot(
            phase=Phase.ENDED,
            cause=cause,
            reason=reason,
            exit_code=exit_code,
            created_at=self.begun_at,
            started_at=None if cause is Cause.COULD_NOT_START else started_at,
            ended_at=self.at(self.ends),
            transient=script.transient,
            proof=Proof(source="script", seen_at=self.at(self.ends), evidence=f"exit code {exit_code}"),
        )

    def next_change(self, now: float) -> float:
        return min((moment for moment in (self.starts, self.ends) if moment > now), default=math.inf)

    def line_due(self, number: int) -> float:
        run_for = self.script.run_for if math.isfinite(self.script.run_for) else 0.0
        return self.starts + run_for * number / len(self.script.lines)

    def stop(self, now: float) -> None:
        if now < self.ends and not self.was_stopped:
            self.stopped = now
            self.changed.set()
            self.changed = anyio.Event()


@attrs.define
class MemoryPlatform:
    """What a crash of a backend leaves behind: hand it to the next backend to find the same attempts again."""

    _runs: dict[str, _Run] = attrs.field(factory=dict, init=False)

    def live(self) -> int:
        """Count the attempts that are not over."""
        now = anyio.current_time()
        return sum(now < run.ends for run in self._runs.values())


def _succeed(job: Job, identity: Identity) -> Script:
    return Script()


class MemoryBackend(Backend):
    """
    Plays scripts. ``script`` is asked once for each attempt, with the job and the identity of the launch.

    Attempts live on a `MemoryPlatform`: this backend's own, or one that it shares with others.
    """

    name: ClassVar[str] = "memory"

    def __init__(
        self,
        script: Callable[[Job, Identity], Script] = _succeed,
        *,
        platform: MemoryPlatform | None = None,
        utcnow: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.platform = platform if platform is not None else MemoryPlatform()
        self._script = script
        self._utcnow = utcnow

    def now(self) -> datetime:
        return self._utcnow()

    async def prepare(self, job: Job, identity: Identity) -> Launch:
        self._check_open()
        script = self._script(job, identity)
        return Launch(
            token=launch_token("memory", identity),
            identity=identity,
            job_name=job.name,
            description=job.describe(),
            request=attrs.asdict(script)
            | {
                "cause": script.cause.value,
                "stop_timeout": job.stop_timeout.total_seconds(),
                "env": identity.variables | dict(job.env),
                "container": job.container_name,
            },
            secrets=job.secrets,
        )

    async def submit(self, launch: Launch) -> TaskRef:
        self._check_open()
        run = self.platform._runs.get(launch.token)
        if run is None:
            parts: dict[str, Any] = dict(launch.request)
            stop_timeout, env, container = parts.pop("stop_timeout"), parts.pop("env"), parts.pop("container")
            known = env | {name: s.reveal() for name, s in launch.secrets.items() if isinstance(s, Secret)}
            lines = tuple(known.get(line[1:], line) if line.startswith("$") else line for line in parts["lines"])
            parts |= {"cause": Cause(parts["cause"]), "lines": lines}
            script = Script(**parts)
            run = _Run(launch, script, container, stop_timeout, anyio.current_time(), self._utcnow())
            self.platform._runs[launch.token] = run
        elif run.launch.description != launch.description:
            there, here = run.launch.description, launch.description
            raise KeyConflict(launch.identity.key, tuple(sorted(k for k in here if here[k] != there.get(k))))
        await anyio.lowlevel.checkpoint()
        return _ref(run)

    async def observe(self, ref: TaskRef, *, after: Snapshot | None = None) -> Snapshot:
        self._check_open()
        while True:
            run = self.platform._runs.get(ref.address)
            if run is None:
                return self._vanished()
            now = anyio.current_time()
            snapshot = run.snapshot(now)
            if snapshot != after or snapshot.ended:
                await anyio.lowlevel.checkpoint()
                return snapshot
            await _until(run.next_change(now), run.changed)

    def _vanished(self) -> Snapshot:
        reason = "the platform knows of no such attempt"
        proof = Proof(source="script", seen_at=self._utcnow(), evidence=reason)
        return Snapshot(phase=Phase.ENDED, cause=Cause.VANISHED, reason=reason, proof=proof)

    async def stop(self, ref: TaskRef, *, reason: str) -> None:
        self._check_open()
        if run := self.platform._runs.get(ref.address):
            run.stop(anyio.current_time())
        await anyio.lowlevel.checkpoint()

    async def logs(self, ref: TaskRef, *, follow: bool, tail: int | None = None) -> AsyncGenerator[LogLine]:
        self._check_open()
        run = self.platform._runs.get(ref.address)
        if run is None:
            raise LogsUnavailable(f"the lines of attempt {ref.attempt} of {ref.key!r} are gone: it was forgotten")
        written = [n for n in range(len(run.script.lines)) if run.line_due(n) <= anyio.current_time() and _fits(run, n)]
        number = max(0, len(written) - tail) if tail is not None else 0
        while number < len(run.script.lines) and _fits(run, number):
            due = run.line_due(number)
            if due > anyio.current_time():
                if not follow:
                    return
                await _until(due, run.changed)
                continue
            yield _line(run, number)
            number += 1
        while follow and anyio.current_time() < run.ends:
            await _until(run.ends, run.changed)
        await anyio.lowlevel.checkpoint()

    async def find(self, namespace: str, key: str) -> list[TaskRef]:
        self._check_open()
        await anyio.lowlevel.checkpoint()
        found = [
            run
            for run in self.platform._runs.values()
            if (run.launch.identity.namespace, run.launch.identity.key) == (namespace, key)
        ]
        return [_ref(run) for run in sorted(found, key=lambda run: run.launch.identity.attempt)]

    async def living(self, namespace: str) -> list[TaskRef]:
        self._check_open()
        await anyio.lowlevel.checkpoint()
        now = anyio.current_time()
        runs = self.platform._runs.values()
        return [_ref(run) for run in runs if run.launch.identity.namespace == namespace and now < run.ends]

    async def forget(self, ref: TaskRef) -> None:
        self._check_open()
        run = self.platform._runs.get(ref.address)
        if run is not None and anyio.current_time() >= run.ends:
            del self.platform._runs[ref.address]
        await anyio.lowlevel.checkpoint()

    def _check_open(self) -> None:
        if not self.is_open:
            raise RunnerClosed("the memory backend is not open: use it inside 'async with'")


def _ref(run: _Run) -> TaskRef:
    identity = run.launch.identity
    return TaskRef(
        backend=MemoryBackend.name,
        address=run.launch.token,
        key=identity.key,
        attempt=identity.attempt,
        token=run.launch.token,
        description=run.launch.description,
        created_at=run.begun_at,
    )


def _fits(run: _Run, number: int) -> bool:
    """Whether a line is written before the attempt is stopped."""
    return run.script.cause is not Cause.COULD_NOT_START and run.line_due(number) <= run.ends


def _line(run: _Run, number: int) -> LogLine:
    text = run.script.lines[number]
    at: Any = run.at(run.line_due(number))
    whose: Any = {"container": run.container, "at": at, "attempt": run.launch.identity.attempt}
    if text.startswith("!"):
        return LogLine(text=text[1:], stream="stderr", **whose)
    return LogLine(text=text, **whose)


async def _until(moment: float, changed: anyio.Event) -> None:
    """Wait for a moment, or for a change before it."""
    with anyio.CancelScope(deadline=moment):
        await changed.wait()
