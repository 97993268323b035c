"""
The runner: takes jobs, sees each to its one final record, and leaves nothing behind.

One coroutine supervises one job: launch, observe until it is over, classify, ask `Retry`, launch again or be done.
It is shielded from the caller's cancellation, so that no launch is ever cut half-way; stopping, timing out and letting
go are facts it is told (`_Live.ask_stop`, `_Live.let_go`), never exceptions thrown into it.
"""

from __future__ import annotations

import re
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import datetime, timedelta, timezone
from typing import Any, Final, Literal, Self, cast

import anyio
from anyio import AsyncContextManagerMixin, CancelScope, Event
from anyio.abc import TaskGroup

from fargate_runner._backend import Backend, Identity, TaskRef
from fargate_runner._errors import (
    BackendError,
    FargateRunnerError,
    InvalidJob,
    JobNotFound,
    KeyConflict,
    LaunchRejected,
    LogsUnavailable,
    RunnerClosed,
)
from fargate_runner._job import Job, check_key
from fargate_runner._lifecycle import (
    Attempt,
    Cause,
    JobFailed,
    JobResult,
    Kind,
    LogLine,
    Outcome,
    Phase,
    Proof,
    Snapshot,
    StopAsked,
    classify,
)
from fargate_runner._retry import Retry
from fargate_runner.telemetry import (
    AttemptEnded,
    AttemptLaunched,
    JobAccepted,
    JobDetached,
    JobEnded,
    LogsIncomplete,
    Observer,
    Observers,
    PhaseReached,
    PlatformUnanswered,
    RetryScheduled,
    StopRequested,
)

__all__ = ["JobHandle", "Results", "Runner"]

_LAST_LINES: Final = 50
_LAST_LINE_CHARACTERS: Final = 16_384
_LAST_LINES_PATIENCE: Final = 30.0
"""Seconds that reading the last lines may take: they never hold up a result for long."""
_LOGS_KEPT: Final = 100
"""Ended jobs whose logs a handle can still read; older ones are forgotten, and the runner's exit forgets all."""
_SUBMIT_PATIENCE: Final = 60.0
_SUBMIT_TRIES: Final = 5
_SILENCE_PATIENCE: Final = 300.0
"""Seconds without an answer from the platform after which the end of a job is unknown."""
_STOP_GRACE: Final = 30.0
"""Seconds on top of stop_timeout after which a stop is asked for again; after the third, the end is unknown."""
_STOP_ASKS: Final = 3
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")
_DEFAULT_RETRY: Final = Retry()


class _Live:
    """What the runner knows of one job. Written by its supervisor, read by handles and batches."""

    __slots__ = (
        "accepted_at",
        "attempts",
        "changed",
        "error",
        "finished",
        "forgotten",
        "job",
        "key",
        "letting_go",
        "name",
        "on_end",
        "owned",
        "readers",
        "refs",
        "result",
        "retired",
        "scope",
        "snapshot",
        "stop",
    )

    def __init__(self, job: Job | None, key: str, *, owned: bool, accepted_at: datetime) -> None:
        self.job = job
        self.key = key
        self.name = job.name if job is not None else key
        self.owned = owned
        self.accepted_at = accepted_at
        self.attempts: list[Attempt] = []
        self.refs: list[TaskRef] = []
        self.snapshot: Snapshot | None = None
        self.stop: StopAsked | None = None
        self.letting_go = False
        self.finished = False
        self.result: JobResult | None = None
        self.error: Exception | None = None
        self.scope: CancelScope | None = None
        self.changed: Event | None = None
        self.on_end: Callable[[_Live], None] | None = None
        self.readers = 0
        self.retired = False
        self.forgotten = False

    def ask_stop(self, stop: StopAsked) -> None:
        """Ask for the end of the job; the first reason given is the one that counts."""
        if self.stop is None:
            self.stop = stop
            self._interrupt()

    def let_go(self) -> None:
        """Ask the supervisor to leave the job alone, running."""
        self.letting_go = True
        self._interrupt()

    def _interrupt(self) -> None:
        if self.scope is not None:
            self.scope.cancel()

    def touch(self) -> None:
        """Wake whoever waits for news of this job."""
        if self.changed is not None:
            self.changed.set()
            self.changed = None

    async def news(self) -> None:
        """Wait for the next `touch`."""
        if self.changed is None:
            self.changed = Event()
        await self.changed.wait()

    def finish(self) -> None:
        """Nothing more will happen to this job here."""
        self.finished = True
        self.touch()
        if self.on_end is not None:
            self.on_end(self)


class JobHandle:
    """A live job, or one that has ended. Made by `Runner.submit` and `Runner.attach`."""

    __slots__ = ("_live", "_runner")

    def __init__(self, runner: Runner, live: _Live) -> None:
        self._runner = runner
        self._live = live

    def __repr__(self) -> str:
        snapshot = self._live.snapshot
        state = snapshot.phase.name.lower() if snapshot is not None else "new"
        return f"<JobHandle {self._live.name!r} key={self._live.key!r} {state}>"

    @property
    def key(self) -> str:
        """What names the job; `Runner.attach` takes it, in this process or another."""
        return self._live.key

    @property
    def snapshot(self) -> Snapshot | None:
        """What was last seen of the current attempt; None before anything was."""
        return self._live.snapshot

    @property
    def result(self) -> JobResult | None:
        """The final record, or None while the job is not over."""
        return self._live.result

    async def wait(self) -> JobResult:
        """
        Wait for the final record. A job that failed is a result too. Cancelling this leaves the job running.

        :raises RunnerClosed: the runner let go of the job before it was over
        :raises BackendError: the platform took no launch of it
        """
        return await self._runner._wait(self._live)

    async def stop(self, reason: str = "stopped by the caller") -> JobResult:
        """
        Ask for the end (SIGTERM, the job's ``stop_timeout``, SIGKILL), wait for it, and return the final record.

        No error if it is over. A job that ended by itself before the signal keeps its own outcome.
        """
        self._live.ask_stop(StopAsked(kind=Kind.CANCELLED, reason=reason))
        return await self.wait()

    async def logs(self, *, follow: bool = True) -> AsyncGenerator[LogLine]:
        """
        Yield the job's lines from its first attempt on, as they come, until the last line of its last attempt.

        Without *follow*, only what is there now. Nothing is lost or doubled, whenever it is called; a slow reader
        costs no memory.

        :raises LogsUnavailable: they are gone: a runner keeps them for the last 100 jobs that ended
        """
        live = self._live
        live.readers += 1
        try:
            read = 0
            while True:
                while read < len(live.refs):
                    if live.forgotten:
                        raise LogsUnavailable(
                            f"the lines of {live.name!r} are gone: a runner keeps them for the last {_LOGS_KEPT} jobs "
                            "that ended; read them while the job runs, or use result.last_lines"
                        )
                    lines = self._runner.backend.logs(live.refs[read], follow=follow)
                    async with aclosing(cast("AsyncGenerator[LogLine]", lines)):
                        async for line in lines:
                            yield line
                    read += 1
                if live.finished or not follow:
                    return
                await live.news()
        finally:
            live.readers -= 1
            self._runner._reader_left(live)


class Runner(AsyncContextManagerMixin):
    """
    Runs jobs on a backend. Used as ``async with Runner() as runner``; belongs to the event loop it was entered on.

    *backend* is where they run: this machine's processes if not given. One that is not open yet is opened and closed
    with the runner. *namespace* keeps the keys of one application apart from those of another on the same platform.

    *on_exit* says what leaving the block does with jobs that are not over: ``"stop"`` them and wait for their end, or
    ``"detach"``: leave them running, to be met again by their key. Jobs that were attached are never stopped by it.

    *observers* are told what happens, see `fargate_runner.telemetry`. *utcnow* makes the stamps in records.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        *,
        namespace: str = "default",
        on_exit: Literal["stop", "detach"] = "stop",
        observers: Iterable[Observer] = (),
        utcnow: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        if backend is None:
            from fargate_runner.backends.process import ProcessBackend

            backend = ProcessBackend()
        if not isinstance(backend, Backend):
            raise TypeError(f"backend: expected a Backend such as DockerBackend(), got {backend!r}")
        if not _NAMESPACE.match(namespace):
            raise ValueError(f"namespace={namespace!r}: use 1 to 64 letters, digits, _ and -, a letter or digit first")
        if on_exit not in ("stop", "detach"):
            raise ValueError(f"on_exit={on_exit!r}: use 'stop' or 'detach'")
        self.backend = backend
        self.namespace = namespace
        self._on_exit = on_exit
        self._tell = Observers(observers)
        self._utcnow = utcnow
        self._tasks: TaskGroup | None = None
        self._closing = False
        self._lives: set[_Live] = set()
        self._named: dict[str, _Live] = {}
        self._kept: deque[_Live] = deque()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        if self._closing:
            raise RunnerClosed("this runner was used before; make a new one")
        failure: BaseException | None = None
        async with AsyncExitStack() as stack:
            if not self.backend.is_open:
                await stack.enter_async_context(self.backend)
            async with anyio.create_task_group() as self._tasks:
                try:
                    yield self
                except BaseException as exc:  # re-raised below, where no task group can wrap it in an ExceptionGroup
                    failure = exc
                finally:
                    self._closing = True
                    # Shielded, and bounded by each supervisor's own patience: leaving always settles every job.
                    with CancelScope(shield=True):
                        await self._settle()
                    self._tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    # ---- what callers do -------------------------------------------------------------------------------------------

    async def run(self, job: Job) -> JobResult:
        """
        Run *job* to its end and return its record. Cancelling this stops the job before it returns.

        :raises JobFailed: it did not succeed; the message says why, what to try, and its last lines
        :raises InvalidJob: the backend can never run it
        :raises BackendError: the platform took no launch of it
        """
        live = self._start(job)
        try:
            result = await self._wait(live)
        except BaseException:
            if not live.finished:
                live.ask_stop(StopAsked(kind=Kind.CANCELLED, reason="the caller was cancelled"))
                with CancelScope(shield=True):
                    await self._finished(live)
            raise
        return result.raise_unless_succeeded()

    async def submit(self, job: Job) -> JobHandle:
        """
        Hand over *job* and return as soon as the platform has taken it.

        A job with the key of one that this runner or the platform already knows is that job: it is met, not run again.

        :raises InvalidJob: the backend can never run it
        :raises KeyConflict: its key names another job
        :raises BackendError: the platform took no launch of it
        """
        live = self._start(job, keep_logs=True)
        try:
            while not live.refs and not live.finished:
                await live.news()
        except BaseException:
            live.ask_stop(StopAsked(kind=Kind.CANCELLED, reason="the submission was cancelled"))
            raise
        if live.error is not None:
            raise live.error
        return JobHandle(self, live)

    async def attach(self, key: str) -> JobHandle:
        """
        Return a handle on a job that was submitted elsewhere or before: by another runner, or one that was killed.

        The handle watches, reads and stops; it does not retry (submit the same job again for that), and leaving the
        runner does not stop the job.

        :raises JobNotFound: the platform knows no job of this key in this namespace
        :raises BackendError: the platform could not be asked
        """
        check_key(key)
        self._check_open()
        known = self._named.get(key)
        if known is None:
            refs = await self.backend.find(self.namespace, key)
            known = self._named.get(key)
            if known is None:
                if not refs:
                    raise JobNotFound(key, self.backend.name, self.namespace)
                known = self._register(None, key, owned=False)
                self._task_group.start_soon(self._supervise, known, refs[-1])
        return JobHandle(self, known)

    def map(
        self,
        jobs: Iterable[Job] | AsyncIterable[Job],
        *,
        concurrency: int | None = None,
        as_completed: bool = False,
        on_error: Literal["raise", "collect"] = "raise",
    ) -> Results:
        """
        Run *jobs*, taken lazily, at most *concurrency* at a time, and return an async iterator of their results.

        Results come in the order of the jobs, or with *as_completed* in the order of their ends. *concurrency* is what
        the backend's place can take if not given. With ``on_error="raise"`` the first job that does not succeed stops
        the others and raises `JobFailed`; with ``"collect"`` its result is yielded like any other.

        Leaving the loop early stops what is still under way; ``async with runner.map(…) as results`` waits for it.
        """
        self._check_open()
        if concurrency is None:
            concurrency = self.backend.default_concurrency
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
            raise ValueError(f"concurrency={concurrency!r}: use a whole number from 1")
        if on_error not in ("raise", "collect"):
            raise ValueError(f"on_error={on_error!r}: use 'raise' or 'collect'")
        if isinstance(jobs, Job):
            raise TypeError("map takes several jobs; use run() for one")
        batch = _Batch(self, jobs, concurrency=concurrency, ordered=not as_completed, raising=on_error == "raise")
        self._task_group.start_soon(batch.pump)
        return Results(batch)

    # ---- the life of a job -----------------------------------------------------------------------------------------

    @property
    def _task_group(self) -> TaskGroup:
        self._check_open()
        return cast("TaskGroup", self._tasks)

    def _check_open(self) -> None:
        if self._tasks is None:
            raise RunnerClosed("the runner is not open: use it inside 'async with Runner() as runner:'")
        if self._closing:
            raise RunnerClosed("the runner is closed, or closing: it takes no more jobs")

    def _register(self, job: Job | None, key: str, *, owned: bool) -> _Live:
        live = _Live(job, key, owned=owned, accepted_at=self._utcnow())
        self._lives.add(live)
        if job is None or job.key is not None:
            self._named[key] = live
        return live

    def _start(self, job: Job, *, keep_logs: bool = False) -> _Live:
        """Begin to supervise *job*, or meet the one that its key already names."""
        if not isinstance(job, Job):
            raise TypeError(f"expected a Job, got {job!r}")
        self._check_open()
        if job.key is not None and (known := self._named.get(job.key)) is not None:
            if known.job is None:
                raise KeyConflict(job.key, ("how it is held: it was attached by this runner",))
            if different := _differences(known.job.describe(), job.describe()):
                raise KeyConflict(job.key, different)
            return known
        live = self._register(job, job.key or secrets.token_hex(12), owned=True)
        live.retired = not keep_logs
        self._task_group.start_soon(self._supervise, live, None)
        return live

    async def _wait(self, live: _Live) -> JobResult:
        await self._finished(live)
        if live.error is not None:
            raise live.error
        if live.result is None:
            raise RunnerClosed(f"the runner let go of {live.name!r}; attach({live.key!r}) meets it again")
        return live.result

    async def _finished(self, live: _Live) -> None:
        while not live.finished:
            await live.news()

    async def _supervise(self, live: _Live, found: TaskRef | None) -> None:
        """See one job to its end. Never cancelled from outside, never raises for what a platform does."""
        with CancelScope(shield=True):
            try:
                await self._see_through(live, found)
            except (FargateRunnerError, OSError) as exc:
                live.error = exc
            except Exception as exc:
                # Whoever waits must hear of a bug as well; it goes on to the task group, so that it is not hidden.
                live.error = exc
                raise
            finally:
                if live.error is not None and self._named.get(live.key) is live:
                    del self._named[live.key]
                self._lives.discard(live)
                live.finish()
            await self._retire(live)

    async def _see_through(self, live: _Live, found: TaskRef | None) -> None:
        job = live.job
        if found is None and job is not None and job.key is not None:
            found = await self._meet(job, job.key)
        if self._tell:
            self._tell(JobAccepted(key=live.key, job=live.name, adopted=found is not None))
        number = found.attempt if found is not None else 1
        ref = found
        while True:
            if ref is None:
                assert job is not None
                ref = await self._launch(live, job, number)
            if ref is not None:
                attempt = await self._attend(live, job, ref)
                if attempt is None:
                    live.letting_go = True
                    if self._tell:
                        self._tell(JobDetached(key=live.key, job=live.name, attempt=number))
                    return
                live.attempts.append(attempt)
            last = live.attempts[-1]
            if self._tell:
                self._tell(AttemptEnded(key=live.key, job=live.name, attempt=number, outcome=last.outcome))
            if job is None or live.stop is not None or live.letting_go:
                break
            decision = (job.retry or _DEFAULT_RETRY).decide(job, live.attempts)
            if not decision.again:
                break
            number += 1
            if self._tell:
                pause, why = decision.wait, decision.why
                self._tell(RetryScheduled(key=live.key, job=live.name, attempt=number, wait=pause, why=why))
            if await self._interruptible(live, anyio.sleep, decision.wait) is _INTERRUPTED:
                break
            job, ref, live.snapshot = decision.job or job, None, None
        live.result = JobResult(
            key=live.key,
            name=live.name,
            attempts=tuple(live.attempts),
            accepted_at=live.accepted_at,
            ended_at=self._utcnow(),
        )
        if self._tell:
            self._tell(JobEnded(key=live.key, job=live.name, result=live.result))

    async def _meet(self, job: Job, key: str) -> TaskRef | None:
        """Find the latest attempt that the platform already knows of, and make sure that it is of the same job."""
        refs = await self.backend.find(self.namespace, key)
        if not refs:
            return None
        there = refs[-1].description
        if there is not None and (different := _differences(there, job.describe(), grown=refs[-1].attempt > 1)):
            raise KeyConflict(key, different)
        return refs[-1]

    async def _launch(self, live: _Live, job: Job, number: int) -> TaskRef | None:
        """Launch an attempt. None if it was refused: the attempt is then recorded as never started."""
        begun = self._utcnow()
        launch = await self.backend.prepare(
            job, Identity(namespace=self.namespace, key=live.key, attempt=number, placement=1)
        )
        tries = 0
        while True:
            tries += 1
            try:
                # Not to be cancelled: a launch whose effect is unknown is the classic orphan. Sent again, the same
                # token meets what it already started.
                with anyio.fail_after(_SUBMIT_PATIENCE):
                    ref = await self.backend.submit(launch)
            except LaunchRejected as exc:
                proof = Proof(source="launch", seen_at=self._utcnow(), evidence=str(exc))
                outcome = Outcome(kind=Kind.NEVER_STARTED, detail=str(exc), proof=proof, transient=exc.retryable)
                live.attempts.append(self._record(job, launch.token, None, outcome, number, begun))
                return None
            except (BackendError, TimeoutError) as exc:
                if tries >= _SUBMIT_TRIES or (isinstance(exc, BackendError) and not exc.retryable):
                    if number == 1:
                        raise
                    outcome = self._unknown(f"the launch was not answered: {exc}")
                    live.attempts.append(self._record(job, launch.token, None, outcome, number, begun))
                    return None
                self._unanswered(live, number, "submit", exc)
                await anyio.sleep(_pause(tries))
            else:
                if self._tell:
                    address = ref.address
                    self._tell(
                        AttemptLaunched(
                            key=live.key, job=live.name, attempt=number, address=address, token=ref.token
                        )
                    )
                return ref

    async def _attend(self, live: _Live, job: Job | None, ref: TaskRef) -> Attempt | None:
        """Observe an attempt until it is over, stopping it when that is asked or due. None: it was let go."""
        live.refs.append(ref)
        live.touch()
        watch = _Watch(job, anyio.current_time())
        begun = self._utcnow()
        while True:
            now = anyio.current_time()
            if live.letting_go:
                return None
            snapshot = live.snapshot
            if watch.asked is None:
                watch.asked = live.stop or watch.overdue(snapshot, now)
            if watch.asked is not None and now >= watch.ask_again_at:
                if watch.asks == _STOP_ASKS:
                    detail = f"asked to stop ({watch.asked.reason}), and nothing tells whether it did"
                    return await self._close(live, job, ref, self._unknown(detail), begun)
                await self._ask_stop(live, ref, watch, now)
                continue
            if now >= watch.silent_until:
                detail = f"the platform has not answered for {_SILENCE_PATIENCE:g} s"
                return await self._close(live, job, ref, self._unknown(detail), begun)
            try:
                newer = await self._interruptible(
                    live, lambda: self.backend.observe(ref, after=snapshot), deadline=watch.deadline
                )
            except BackendError as exc:
                watch.failures += 1
                if watch.failures == 1:
                    watch.silent_until = now + _SILENCE_PATIENCE
                self._unanswered(live, ref.attempt, "observe", exc)
                await self._interruptible(live, anyio.sleep, _pause(watch.failures), deadline=watch.deadline)
                continue
            if newer is _INTERRUPTED:
                continue
            assert isinstance(newer, Snapshot)
            watch.answered()
            self._see(live, ref, watch, newer)
            if newer.ended:
                return await self._close(live, job, ref, classify(newer, watch.asked), begun)

    def _see(self, live: _Live, ref: TaskRef, watch: _Watch, newer: Snapshot) -> None:
        before = live.snapshot.phase if live.snapshot is not None else None
        live.snapshot = newer
        if before != newer.phase:
            watch.reached(newer.phase, anyio.current_time())
            if self._tell:
                self._tell(PhaseReached(key=live.key, job=live.name, attempt=ref.attempt, phase=newer.phase))
            live.touch()

    async def _ask_stop(self, live: _Live, ref: TaskRef, watch: _Watch, now: float) -> None:
        asked = cast("StopAsked", watch.asked)
        if watch.asks == 0 and self._tell:
            self._tell(
                StopRequested(
                    key=live.key, job=live.name, attempt=ref.attempt, kind=asked.kind, reason=asked.reason
                )
            )
        watch.asks += 1
        watch.ask_again_at = now + watch.stop_timeout + _STOP_GRACE
        try:
            with anyio.move_on_after(_STOP_GRACE):
                await self.backend.stop(ref, reason=asked.reason)
        except BackendError as exc:
            self._unanswered(live, ref.attempt, "stop", exc)
            watch.ask_again_at = now + _pause(watch.asks)

    async def _close(
        self, live: _Live, job: Job | None, ref: TaskRef, outcome: Outcome, begun: datetime
    ) -> Attempt:
        lines, complete = await self._last_lines(live, ref)
        return self._record(job, ref.token, ref, outcome, ref.attempt, begun, live.snapshot, lines, complete=complete)

    async def _last_lines(self, live: _Live, ref: TaskRef) -> tuple[tuple[LogLine, ...], bool]:
        lines: deque[LogLine] = deque(maxlen=_LAST_LINES)
        reason = f"they were not read within {_LAST_LINES_PATIENCE:g} s"
        try:
            with anyio.move_on_after(_LAST_LINES_PATIENCE) as scope:
                found = self.backend.logs(ref, follow=False, tail=_LAST_LINES)
                async with aclosing(cast("AsyncGenerator[LogLine]", found)):
                    async for line in found:
                        lines.append(_shortened(line))
            if not scope.cancelled_caught:
                return tuple(lines), True
        except (LogsUnavailable, BackendError) as exc:
            reason = str(exc)
        if self._tell:
            self._tell(LogsIncomplete(key=live.key, job=live.name, attempt=ref.attempt, reason=reason))
        return tuple(lines), False

    def _record(
        self,
        job: Job | None,
        token: str,
        ref: TaskRef | None,
        outcome: Outcome,
        number: int,
        begun: datetime,
        snapshot: Snapshot | None = None,
        lines: tuple[LogLine, ...] = (),
        *,
        complete: bool = True,
    ) -> Attempt:
        vcpu, memory_gib = _size(job, ref)
        seen = snapshot or Snapshot(phase=Phase.PENDING)
        return Attempt(
            number=number,
            token=token,
            address=ref.address if ref is not None else None,
            outcome=outcome,
            vcpu=vcpu,
            memory_gib=memory_gib,
            created_at=seen.created_at or begun,
            started_at=seen.started_at,
            ended_at=seen.ended_at or self._utcnow(),
            last_lines=lines,
            logs_complete=complete,
        )

    def _unknown(self, detail: str) -> Outcome:
        proof = Proof(source="runner", seen_at=self._utcnow(), evidence=detail)
        unknown = Snapshot(phase=Phase.ENDED, cause=Cause.UNRECOGNISED, reason=detail, proof=proof)
        return classify(unknown)

    def _unanswered(self, live: _Live, attempt: int, operation: str, exc: Exception) -> None:
        if self._tell:
            error = str(exc) or type(exc).__name__
            self._tell(
                PlatformUnanswered(key=live.key, job=live.name, attempt=attempt, operation=operation, error=error)
            )

    async def _interruptible(
        self,
        live: _Live,
        call: Callable[..., Awaitable[Any]],
        *args: Any,
        deadline: float = float("inf"),
    ) -> Any:
        """Await *call*; `_INTERRUPTED` if a stop or a deadline cut it short. Only for calls that may be cut."""
        if live.stop is not None and args:
            return _INTERRUPTED
        with CancelScope(deadline=deadline) as live.scope:
            value = await call(*args)
        scope, live.scope = live.scope, None
        return _INTERRUPTED if scope is not None and scope.cancelled_caught else value

    # ---- the end ---------------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Bring every job to its end, or let go of it, as the runner was told."""
        for live in tuple(self._lives):
            if self._on_exit == "detach" or not live.owned:
                live.let_go()
            else:
                live.ask_stop(StopAsked(kind=Kind.CANCELLED, reason="the runner was closed"))
        for live in tuple(self._lives):
            await self._finished(live)
        for live in tuple(self._kept):
            live.retired = True
            await self._forget(live)

    async def _retire(self, live: _Live) -> None:
        """Let the platform forget an ended job: at once, or when its logs are no longer kept for a handle."""
        if live.result is None or not live.owned:
            return
        if live.retired or self._closing:
            live.retired = True
            await self._forget(live)
            return
        self._kept.append(live)
        if len(self._kept) > _LOGS_KEPT:
            oldest = self._kept.popleft()
            oldest.retired = True
            await self._forget(oldest)

    def _reader_left(self, live: _Live) -> None:
        if live.retired and live.finished and not live.readers and self._tasks is not None and not self._closing:
            self._tasks.start_soon(self._forget, live)

    async def _forget(self, live: _Live) -> None:
        if live.forgotten or live.readers:
            return
        live.forgotten = True
        for ref in live.refs:
            try:
                await self.backend.forget(ref)
            except BackendError as exc:
                self._unanswered(live, ref.attempt, "forget", exc)


_INTERRUPTED: Final = object()


class _Watch:
    """The clocks of one attempt: when it is overdue, when to ask for its end again, when to stop hoping."""

    __slots__ = (
        "_run_limit",
        "_start_limit",
        "ask_again_at",
        "asked",
        "asks",
        "deadline_of_phase",
        "failures",
        "job",
        "silent_until",
        "stop_timeout",
    )

    def __init__(self, job: Job | None, now: float) -> None:
        self.job = job
        self.stop_timeout = job.stop_timeout.total_seconds() if job is not None else 120.0
        self.deadline_of_phase = now + job.start_timeout.total_seconds() if job is not None else float("inf")
        self.asked: StopAsked | None = None
        self.asks = 0
        self.ask_again_at = float("-inf")
        self.failures = 0
        self.silent_until = float("inf")

    @property
    def deadline(self) -> float:
        """When observing must be interrupted, whatever the platform does."""
        due = self.ask_again_at if self.asked is not None else self.deadline_of_phase
        return min(due, self.silent_until)

    def reached(self, phase: Phase, now: float) -> None:
        """Start the clock of *phase*."""
        if phase is Phase.RUNNING:
            timeout = self.job.timeout if self.job is not None else None
            self.deadline_of_phase = now + timeout.total_seconds() if timeout is not None else float("inf")

    def answered(self) -> None:
        """The platform spoke: its silence is over."""
        self.failures = 0
        self.silent_until = float("inf")

    def overdue(self, snapshot: Snapshot | None, now: float) -> StopAsked | None:
        """Say what to stop the attempt for, if its phase has lasted too long."""
        if now < self.deadline_of_phase or self.job is None:
            return None
        if snapshot is None or snapshot.phase < Phase.RUNNING:
            reason = f"it did not start within {_span(self.job.start_timeout)} (start_timeout)"
            return StopAsked(kind=Kind.NEVER_STARTED, reason=reason)
        limit = self.job.timeout or timedelta()
        return StopAsked(kind=Kind.TIMED_OUT, reason=f"it ran longer than {_span(limit)} (timeout)")


def _span(span: timedelta) -> str:
    return f"{span.total_seconds():g} s"


def _pause(tries: int) -> float:
    """Seconds before a question to the platform is put again."""
    return float(min(2 ** (tries - 1), 30))


def _shortened(line: LogLine) -> LogLine:
    if len(line.text) <= _LAST_LINE_CHARACTERS:
        return line
    return LogLine(
        text=f"{line.text[:_LAST_LINE_CHARACTERS]}… ({len(line.text)} characters)",
        stream=line.stream,
        container=line.container,
        at=line.at,
        attempt=line.attempt,
    )


def _size(job: Job | None, ref: TaskRef | None) -> tuple[float, float]:
    if job is not None:
        return job.size.vcpu, job.size.memory_gib
    size = ref.description.get("size") if ref is not None and ref.description is not None else None
    return (size["cpu_units"] / 1024, size["memory_mib"] / 1024) if size else (0.0, 0.0)


def _differences(one: Any, other: Any, *, grown: bool = False) -> tuple[str, ...]:
    """Name the fields in which two job descriptions differ; a later attempt may have grown."""
    ignored = {"size"} if grown else set()
    names = (set(one) | set(other)) - ignored
    return tuple(sorted(name for name in names if one.get(name) != other.get(name)))


# ---- many jobs -----------------------------------------------------------------------------------------------------


class _Batch:
    """The jobs of one `Runner.map`: a pump that starts them, and the results that nobody has taken yet."""

    def __init__(
        self,
        runner: Runner,
        jobs: Iterable[Job] | AsyncIterable[Job],
        *,
        concurrency: int,
        ordered: bool,
        raising: bool,
    ) -> None:
        self._runner = runner
        self._jobs = jobs
        self._concurrency = concurrency
        # A reader that is slower than the jobs must not make the batch grow without bound; an ordered batch needs room
        # behind a slow first job.
        self._most_untaken = max(1000, 10 * concurrency)
        self._ordered = ordered
        self._raising = raising
        self._under_way: dict[int, _Live] = {}
        self._ended: dict[int, _Live] = {}
        self._taken = 0
        self._exhausted = False
        self._closed = False
        self._failure: Exception | None = None
        self._room = Event()
        self._ready = Event()

    async def pump(self) -> None:
        """Start jobs as long as there are any, and room."""
        try:
            index = 0
            source = aiter(self._jobs) if isinstance(self._jobs, AsyncIterable) else _steps(self._jobs)
            while await self._has_room():
                try:
                    job = await anext(source)
                except StopAsyncIteration:
                    return
                if self._closed:
                    return
                self._start(index, job)
                index += 1
        except Exception as exc:  # the caller's iterable, or a job that cannot be: for the caller, at the next result
            self._fail(exc)
        finally:
            self._exhausted = True
            self._ready.set()

    def _start(self, index: int, job: Job) -> None:
        live = self._runner._start(job)
        self._under_way[index] = live
        if live.finished:
            self._end(index, live)
            return
        others = live.on_end

        def ended(live: _Live) -> None:
            if others is not None:
                others(live)
            self._end(index, live)

        live.on_end = ended

    def _end(self, index: int, live: _Live) -> None:
        del self._under_way[index]
        self._ended[index] = live
        if live.error is not None:
            self._fail(live.error)
        elif live.result is None:
            self._fail(RunnerClosed("the runner was closed before the batch was done"))
        elif self._raising and not live.result.succeeded:
            self._fail(JobFailed(live.result))
        self._room.set()
        self._ready.set()

    async def _has_room(self) -> bool:
        while not self._closed:
            if len(self._under_way) < self._concurrency and len(self._ended) < self._most_untaken:
                return True
            self._room = Event()
            await self._room.wait()
        return False

    def _fail(self, exc: Exception) -> None:
        if self._failure is None and not self._closed:
            self._failure = exc
        self.close("another job of the batch did not succeed")

    def close(self, reason: str) -> None:
        """Start no more jobs, and ask those under way to stop."""
        self._closed = True
        for live in tuple(self._under_way.values()):
            live.ask_stop(StopAsked(kind=Kind.CANCELLED, reason=reason))
        self._room.set()
        self._ready.set()

    async def settled(self) -> None:
        """Wait until none of the batch's jobs is live. Shielded; each is bounded by its own supervisor."""
        with CancelScope(shield=True):
            while self._under_way:
                self._ready = Event()
                await self._ready.wait()

    async def next(self) -> JobResult:
        """Take the next result."""
        while True:
            if self._failure is not None:
                await self.settled()
                raise self._failure
            index = self._taken if self._ordered else next(iter(self._ended), -1)
            if index in self._ended:
                live = self._ended.pop(index)
                self._taken += 1
                self._room.set()
                assert live.result is not None
                return live.result
            if self._closed or (self._exhausted and not self._under_way):
                raise StopAsyncIteration
            self._ready = Event()
            await self._ready.wait()


class Results(AsyncIterator[JobResult]):
    """
    The results of `Runner.map`, for ``async for``. One reader.

    Dropping it stops the jobs that are still under way; ``async with`` also waits for their end.
    """

    def __init__(self, batch: _Batch) -> None:
        self._batch = batch

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> JobResult:
        return await self._batch.next()

    async def aclose(self) -> None:
        """Start no more jobs, stop those under way, and wait for their end."""
        self._batch.close("the caller left the loop")
        await self._batch.settled()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._batch._under_way or not self._batch._exhausted:
            self._batch.close("the caller left the loop")


async def _steps(jobs: Iterable[Job]) -> AsyncGenerator[Job]:
    for job in jobs:
        yield job
