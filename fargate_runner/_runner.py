"""
The runner: takes jobs, sees each to its one final record, and leaves nothing behind.

One coroutine supervises one job: launch, observe until it is over, classify, ask `Retry`, launch again or be done.
It is shielded from the caller's cancellation, so that no launch is ever cut half-way; stopping, timing out and letting
go are facts it is told (`_Live.ask_stop`, `_Live.let_go`), never exceptions thrown into it.
"""

from __future__ import annotations

import heapq
import re
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, Literal, Self, cast
from urllib.parse import quote, unquote

import anyio
import attrs
from anyio import AsyncContextManagerMixin, CancelScope, Event
from anyio.abc import TaskGroup

from fargate_runner._backend import TOO_LATE, Backend, Identity, Launch, TaskRef, Together, clock_of_loop
from fargate_runner._batch import Batch, Launching, Pump, Room
from fargate_runner._errors import (
    BackendError,
    FargateRunnerError,
    InvalidJob,
    JobNotFound,
    JournalError,
    KeyConflict,
    LaunchRejected,
    LogsUnavailable,
    PlacementRefused,
    RunnerClosed,
)
from fargate_runner._job import Job, check_key
from fargate_runner._journal import Callback, Journal, Overtaken, Page, job_of, retry_to_plain
from fargate_runner._lifecycle import (
    Attempt,
    Cause,
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
from fargate_runner._reaper import Limits, Reaped, judge, may_be_overdue
from fargate_runner._retry import Decision, Retry
from fargate_runner.telemetry import (
    AttemptEnded,
    AttemptLaunched,
    AttemptSeen,
    JobAccepted,
    JobDetached,
    JobEnded,
    JobQueued,
    JobRefused,
    JobRemembered,
    JournalUnanswered,
    LaunchDelayed,
    LogsIncomplete,
    Observer,
    Observers,
    PhaseReached,
    PlatformUnanswered,
    RetryScheduled,
    StopRequested,
)

__all__ = ["JobHandle", "Runner"]

_NEVER: Final = float("inf")
_LONG_AGO: Final = float("-inf")
_LAST_LINES: Final = 50
_LAST_LINE_CHARACTERS: Final = 16_384
_LAST_LINES_PATIENCE: Final = 30.0
"""Seconds that reading the last lines may take: they never hold up a result for long."""
_LOGS_KEPT: Final = 100
"""Ended jobs whose logs a handle can still read; older ones are forgotten, and the runner's exit forgets all."""
_LOOK_AGAIN: Final = 600.0
"""Seconds after which a platform that has no news is asked whether it is still there."""
_TRIES: Final = 5
_FORGET_PATIENCE: Final = 30.0
_SILENCE_PATIENCE: Final = 300.0
"""Seconds without an answer from the platform after which the end of a job is unknown."""
_STOP_GRACE: Final = 30.0
"""Seconds on top of stop_timeout after which a stop is asked for again; after the third, the end is unknown."""
_STOP_ASKS: Final = 3
_LOOKS_AT_AN_END: Final = 3
"""Times that the platform is asked again, a second more apart each, about an end that it does not know of."""
_STOOD_STILL: Final = 30.0
"""Seconds that we may be late before it is taken for a standstill: a closed lid, SIGSTOP, Lambda between requests."""
_LAST_STOP_PATIENCE: Final = 10.0
"""Seconds that telling an attempt of unknown end to stop may hold up its record."""
_REPLAY_WITHIN: Final = timedelta(minutes=55)
"""
How old a launch without an answer may be to be sent again. ECS forgets a token one hour after its task has ended
(Amazon ECS Developer Guide, "Ensuring idempotency"); from then on, the same launch would start a second task.
"""
_REAPED_AT_ONCE: Final = 100
"""Attempts that the reaper asks about at a time: what one DescribeTasks call takes."""
_LEAVING_PATIENCE: Final = 30.0
"""Seconds that the platform has to say what a key names, once nobody waits for that any more."""
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")
_DEFAULT_RETRY: Final = Retry()


class _Live:
    """What the runner knows of one job. Written by its supervisor, read by handles and batches."""

    __slots__ = (
        "accepted",
        "accepted_at",
        "attempts",
        "brought",
        "callback",
        "changed",
        "claims",
        "described",
        "due_again",
        "error",
        "finished",
        "forgotten",
        "job",
        "key",
        "lacks_secrets",
        "letting_go",
        "met_over",
        "name",
        "on_end",
        "owned",
        "page",
        "parked",
        "placement",
        "readers",
        "refs",
        "result",
        "retired",
        "scope",
        "sent_at",
        "snapshot",
        "stop",
        "together",
        "token",
        "told",
        "watch",
    )

    def __init__(self, job: Job | None, key: str, *, owned: bool, accepted_at: datetime) -> None:
        self.job = job
        self.key = key
        self.name = job.name if job is not None else key
        self.owned = owned
        self.accepted_at = accepted_at
        self.accepted = False
        self.claims = 0
        self.attempts: tuple[Attempt, ...] = ()
        self.page: Page | None = None
        self.lacks_secrets = False
        self.told = 0
        """The number of the last attempt whose end was told."""
        self.watch: _Watch | None = None
        """The attempt that is attended, while nothing is done but wait for it."""
        self.parked = False
        """It waits without a task: its supervisor goes on when the watch is woken."""
        self.token = ""
        self.together: Launching | None = None
        """With whom it is launched, until it is."""
        self.described: Mapping[str, Any] | None = None
        """What its page said of it, if it was taken over: nobody had submitted it here."""
        self.brought: Job | None = None
        self.callback: Callback | None = None
        """What its page says of that, if it has none yet."""
        self.due_again = _LONG_AGO
        """When its next attempt is to be launched, in our time, once that is known."""
        self.placement = 1
        self.sent_at = _NEVER
        """When its last launch was handed to the backend, in our time."""
        self.refs: tuple[TaskRef, ...] = ()
        self.snapshot: Snapshot | None = None
        self.stop: StopAsked | None = None
        self.letting_go = False
        self.met_over = False
        self.finished = False
        self.result: JobResult | None = None
        self.error: Exception | None = None
        self.scope: CancelScope | None = None
        self.changed: Event | None = None
        self.on_end: tuple[Pump | int, ...] = ()
        """See `seats`: flat, for there may be ten thousand."""
        self.readers = 0
        self.retired = False
        self.forgotten = False

    def ask_stop(self, stop: StopAsked) -> None:
        """Ask for the end of the job; the first reason given is the one that counts."""
        if self.stop is None:
            self.stop = stop
            self._interrupt()

    def leave(self, reason: str) -> None:
        """Take back a claim: a job that several callers share by its key is stopped when the last of them leaves."""
        self.claims -= 1
        if self.claims == 0 and not self.letting_go:  # a job that was let go of goes on, whoever leaves it then
            self.ask_stop(StopAsked(kind=Kind.CANCELLED, reason=reason))

    def bring(self, job: Job) -> None:
        """Take from a caller what no page keeps: the values of secrets, and the waits between attempts."""
        self.job = self.brought = job
        self.lacks_secrets = False

    def let_go(self) -> None:
        """Ask the supervisor to leave the job alone, running."""
        self.letting_go = True
        self._interrupt()

    def _interrupt(self) -> None:
        if self.scope is not None:
            self.scope.cancel()
        elif self.parked and self.watch is not None:
            self.watch.wake()

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
        for pump, index in self.seats():
            pump.ended(index, self)

    def seats(self) -> Iterator[tuple[Pump, int]]:
        """Return the batches that wait for it, and which of their jobs it is."""
        return cast("Iterator[tuple[Pump, int]]", zip(self.on_end[::2], self.on_end[1::2], strict=True))


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
    def text(self) -> str:
        """
        A short text for `Runner.attach`, in another process or a day later: the key, and where its last attempt is.

        It needs no search on the platform, and no journal as long as the platform remembers the attempt. It is no
        secret, and opens nothing to whoever has no access to the platform.
        """
        live, runner = self._live, self._runner
        last = live.refs[-1] if live.refs else None
        address, attempt, token = (last.address, last.attempt, last.token) if last is not None else ("", 0, "")
        parts = runner.backend.place, runner.namespace, live.key, str(attempt), token, address
        return ":".join(["fr1", *(quote(part, safe="/@=+,") for part in parts)])

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
        :raises JournalError: its record could not be written down
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

    *journal* is where it writes down what it is about to do, and how each job ended: a job survives the death of its
    runner, and one that has its final record is never run again. `SqliteJournal` for the processes of one machine,
    `DynamoDBJournal` for Lambda and fleets. One that is not open yet is opened and closed with the runner.

    *on_exit* says what leaving the block does with jobs that are not over: ``"stop"`` them and wait for their end, or
    ``"detach"``: leave them running, to be met again by their key. Jobs that were attached are never stopped by it.

    *on_unknown* says what follows an attempt of which nobody can tell how it ended (``Kind.UNKNOWN``): ``"raise"``
    makes that the job's outcome, ``"rerun"`` launches another one, from the budget of interruptions. Its work may then
    be done twice.

    *observers* are told what happens, see `fargate_runner.telemetry`. *utcnow* makes the stamps in records.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        *,
        namespace: str = "default",
        journal: Journal | None = None,
        on_exit: Literal["stop", "detach"] = "stop",
        on_unknown: Literal["raise", "rerun"] = "raise",
        observers: Iterable[Observer] = (),
        utcnow: Callable[[], datetime] = lambda: datetime.now(UTC),
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
        if on_unknown not in ("raise", "rerun"):
            raise ValueError(f"on_unknown={on_unknown!r}: use 'raise' or 'rerun'")
        if journal is not None and not isinstance(journal, Journal):
            raise TypeError(f"journal: expected a Journal such as SqliteJournal('jobs.sqlite'), got {journal!r}")
        self.backend = backend
        self.namespace = namespace
        self.journal = journal
        self._rerun_unknown = on_unknown == "rerun"
        self._on_exit = on_exit
        self._tell = Observers(observers)
        self._utcnow = utcnow
        self._now: Callable[[], float] = anyio.current_time
        self._tasks: TaskGroup | None = None
        self._closing = False
        self._lives: dict[_Live, None] = {}  # in their order: the same program does the same each time
        self._named: dict[str, _Live] = {}
        self._kept: deque[_Live] = deque()
        self._read_on: dict[_Live, None] = {}
        self._room = Room()
        self._alarms = _Alarms()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        if self._tasks is not None:
            raise RunnerClosed("this runner was used before; make a new one")
        failure: BaseException | None = None
        self._now = clock_of_loop()
        async with AsyncExitStack() as stack:
            if self.journal is not None:
                if not self.journal.is_open:
                    await stack.enter_async_context(self.journal)
                await self.journal.bind(self.namespace)
            if not self.backend.is_open:
                await stack.enter_async_context(self.backend)
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._alarms.run)
                try:
                    yield self
                # Re-raised below, where no task group can wrap it in an ExceptionGroup.
                except BaseException as exc:  # noqa: BLE001
                    failure = exc
                finally:
                    self._closing = True
                    # Shielded, and bounded by each supervisor's own patience: leaving always settles every job.
                    try:
                        with CancelScope(shield=True):
                            await self._settle()
                    finally:  # asyncio's own cancellation heeds no shield
                        self._stop_alarms()
                    self._tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def _anew(self) -> Runner:
        """Return a runner like this one that was not used yet, and that lets go of its jobs when it is left."""
        return Runner(
            self.backend,
            namespace=self.namespace,
            journal=self.journal,
            on_exit="detach",
            on_unknown="rerun" if self._rerun_unknown else "raise",
            observers=(self._tell,) if self._tell else (),
            utcnow=self._utcnow,
        )

    # ---- what callers do -------------------------------------------------------------------------------------------

    async def run(self, job: Job) -> JobResult:
        """
        Run *job* to its end and return its record. Cancelling this stops the job before it returns, unless others wait
        for the same job by its key: it is stopped when the last of them leaves.

        :raises JobFailed: it did not succeed; the message says why, what to try, and its last lines
        :raises InvalidJob: the backend can never run it
        :raises BackendError: the platform took no launch of it
        """
        live = self._start(job)
        try:
            result = await self._wait(live)
        except BaseException:
            live.leave("the caller was cancelled")
            if live.stop is not None:
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
        return await self._submit_with(job, None)

    async def _submit_with(self, job: Job, callback: Callback | None) -> JobHandle:
        """Submit a job whose page, if it is a new one, has a callback from its first line on."""
        live = self._start(job, keep_logs=True, callback=callback)
        try:
            while not live.refs and not live.finished:
                await live.news()
        except BaseException:
            live.leave("the submission was cancelled")
            raise
        if live.error is not None:
            raise live.error
        return JobHandle(self, live)

    async def attach(self, key: str) -> JobHandle:
        """
        Return a handle on a job that was submitted elsewhere or before: by another runner, or one that was killed.

        *key* is the job's key, or what `JobHandle.text` gave. The handle watches, reads and stops, and leaving the
        runner does not stop the job. With a journal that knows the job, it also goes on with its retries, and gives
        the final record of one that is over; without one, it does not retry: submit the same job again for that.

        :raises JobNotFound: neither the journal nor the platform knows a job of this key in this namespace
        :raises InvalidJob: the text is of another namespace or place
        :raises JournalError: the journal cannot be read
        :raises BackendError: the platform could not be asked
        """
        key, ref = self._addressed(key)
        check_key(key)
        self._check_open()
        known = self._named.get(key)
        if known is None:
            page = await self._read_page(key)
            refs = (
                [] if page is not None else [ref] if ref is not None else await self.backend.find(self.namespace, key)
            )
            known = self._named.get(key)
            if known is None:
                if page is None and not refs:
                    raise JobNotFound(key, self.backend.name, self.namespace)
                self._check_open()
                known = self._take_over(page, owned=False) if page is not None else self._watch(key, refs)
        return JobHandle(self, known)

    async def recover(self) -> list[JobHandle]:
        """
        Take over every job of the journal that has no final record, where it stands, and return their handles.

        It is what a program does first that may have been killed: launches without an answer are sent again, attempts
        are watched to their end, and retried by the policy that their job was submitted with (a `wait` of one's own
        is not written down). From now on they are this runner's: leaving it stops them, or not, as *on_exit* says.
        Jobs of other places than this runner's backend are left alone.

        :raises JournalError: there is no journal, or it cannot be read
        """
        self._check_open()
        if self.journal is None:
            raise JournalError("there is nothing to recover from: give the runner a journal, Runner(journal=…)")
        handles: list[JobHandle] = []
        async with aclosing(cast("AsyncGenerator[Page]", self.journal.open_pages())) as pages:
            async for page in pages:
                self._check_open()
                if page.place != self.backend.place:
                    continue
                known = self._named.get(page.key) or self._take_over(page, owned=True)
                handles.append(JobHandle(self, known))
        return handles

    async def reap(
        self,
        *,
        grace: timedelta = timedelta(minutes=5),
        max_age: timedelta | None = None,
        dry_run: bool = False,
    ) -> list[Reaped]:
        """
        Stop the attempts of this namespace that nobody looks after any more, and return what they were.

        That is what is provably ours, lives, and should not for longer than *grace*: it has run longer than its job's
        ``timeout`` and ``stop_timeout``, or has not run for longer than its ``start_timeout``; with a journal, also
        whatever belongs to a job that has its final record. A job without a timeout has no deadline once it runs, and
        is left alone, unless *max_age* gives such jobs one. What this runner supervises is its own business.

        All times are those of the place, so that a wrong clock here changes nothing. Repeatable, and safe for several
        to run at a time. With *dry_run* nothing is stopped.

        :raises BackendError: the platform could not be asked, about all or about some: the others were stopped
        :raises JournalError: the journal could not be read, likewise
        """
        self._check_open()
        limits = Limits(grace, max_age)
        refs = await self.backend.living(self.namespace)
        now, journalled = self.backend.now(), self.journal is not None
        reaped: list[Reaped] = []
        failures: list[Exception] = []
        room = anyio.CapacityLimiter(_REAPED_AT_ONCE)

        async def look(ref: TaskRef) -> None:
            async with room:
                try:
                    if (one := await self._reap(ref, now, limits, dry_run=dry_run)) is not None:
                        reaped.append(one)
                except (BackendError, JournalError, OSError) as exc:
                    failures.append(exc)

        async with anyio.create_task_group() as looks:
            for ref in refs:
                if may_be_overdue(ref, now, limits, journalled=journalled):
                    looks.start_soon(look, ref)
        if failures:
            raise failures[0]
        return sorted(reaped, key=lambda one: (one.key, one.attempt, one.address))

    async def _reap(self, ref: TaskRef, now: datetime, limits: Limits, *, dry_run: bool) -> Reaped | None:
        # The page first: what lives after its job was written down as over is an orphan, what ends just then is none.
        page = await self._read_page(ref.key)
        result = page.result if page is not None and page.place == self.backend.place else None
        seen: Snapshot = await self._answered("observe", self.backend.observe(ref))
        overdue = judge(ref, seen, now, limits, over=result.outcome if result is not None else None)
        if overdue is None or self._supervises(ref.key):
            return None
        if not dry_run:
            if self._tell:
                name = str((ref.description or {}).get("name", ref.key))
                kind, reason = overdue.stop.kind, overdue.stop.reason
                self._tell(StopRequested(key=ref.key, job=name, attempt=ref.attempt, kind=kind, reason=reason))
            await self._answered("stop", self.backend.stop(ref, reason=overdue.stop.reason))
        return Reaped(
            key=ref.key,
            attempt=ref.attempt,
            address=ref.address,
            reason=overdue.stop.reason,
            overdue=overdue.by,
            stopped=not dry_run,
        )

    async def _answered(self, operation: str, question: Awaitable[Any]) -> Any:
        """Await an answer with patience, once."""
        with anyio.move_on_after(self.backend.answer_patience):
            return await question
        raise _unanswered(operation, self.backend.answer_patience)

    def _supervises(self, key: str) -> bool:
        known = self._named.get(key)
        return known is not None and not known.finished

    def _addressed(self, key: str) -> tuple[str, TaskRef | None]:
        """Return the key, and the attempt that a handle's text names besides."""
        parts = key.split(":") if isinstance(key, str) else []
        if len(parts) != 7 or parts[0] != "fr1":
            return key, None
        place, namespace, named, attempt, token, address = (unquote(part) for part in parts[1:])
        if namespace != self.namespace:
            problem = f"it is a handle of the namespace {namespace!r}, and this runner's is {self.namespace!r}"
            raise InvalidJob("key", key, problem, f"write Runner(namespace={namespace!r})")
        if place != self.backend.place:
            problem = f"it is a handle of a job on {place!r}, and this runner's backend is {self.backend.place!r}"
            raise InvalidJob("key", key, problem, "attach it with the backend that it was submitted to")
        if not address:
            return named, None
        return named, TaskRef(backend=self.backend.name, address=address, key=named, attempt=int(attempt), token=token)

    def _take_over(self, page: Page, *, owned: bool) -> _Live:
        live = self._register(None, page.key, owned=owned)
        live.name, live.page, live.accepted_at = page.name, page, page.accepted_at
        live.described = page.description
        live.claims = 1 if owned else 0
        self._task_group.start_soon(self._supervise, live, [])
        return live

    async def _carry_on(self, page: Page, *, longest_wait: float, look_again: Callable[[], bool]) -> _Live:
        """
        See one job on from where its page stands, until there is nothing to do for it but wait, and let go of it there.

        It is over then (``result``), its next attempt is launched, or is due later than in *longest_wait* seconds
        (``due_again``), or the attempt that its page names is not over. Of that one, *look_again* has the platform
        asked once more, if it may know more than it has told: who calls this was told that it is over.

        :raises BackendError: the platform took no launch of it, or did not answer
        :raises JournalError: its record could not be written down
        """
        known = self._named.get(page.key)
        ours = known is None or known.finished
        live = self._take_over(page, owned=True) if known is None or known.finished else known
        first, doubts = _attempt_of(page), 0
        try:
            while not live.finished:
                if live.due_again - self._now() > longest_wait:
                    break
                if live.refs and live.refs[-1].attempt > first:
                    break
                if live.parked:
                    doubts += 1
                    if doubts > _LOOKS_AT_AN_END or not look_again():
                        break
                    with anyio.move_on_after(doubts):
                        await live.news()
                    continue
                await live.news()
        finally:
            if ours and not live.finished:
                live.let_go()  # whatever leaving this runner does with jobs
        if ours:
            await self._finished(live)
            if live.result is None and self._named.get(live.key) is live:
                del self._named[live.key]
        if live.error is not None:
            raise live.error
        return live

    async def _turn(self, page: Page) -> Page:
        """
        Write a page of a job that nobody here supervises.

        :raises Overtaken: another one was faster
        :raises JournalError: it cannot be written
        """
        assert self.journal is not None
        tries = 0
        while True:
            tries += 1
            try:
                return await self.journal.write(page)
            except Overtaken as exc:
                # A try that seemed to fail may have been written all the same: then what is there is ours.
                if tries == 1 or exc.page is None or exc.page.to_json() != page.to_json():
                    raise
                return exc.page
            except JournalError as exc:
                if not exc.retryable or tries == _TRIES:
                    raise
            await anyio.sleep(_pause(tries))

    def _watch(self, key: str, refs: list[TaskRef]) -> _Live:
        live = self._register(None, key, owned=False)
        self._task_group.start_soon(self._supervise, live, refs)
        return live

    def map(
        self,
        jobs: Iterable[Job] | AsyncIterable[Job],
        *,
        concurrency: int | None = None,
        max_vcpu: float | None = None,
        as_completed: bool = False,
        on_error: Literal["raise", "collect"] | None = None,
        max_failures: int | None = None,
    ) -> Batch:
        """
        Run *jobs*, taken lazily, and return them as a `Batch`: an async iterator of their results.

        Results come in the order of the jobs, or with *as_completed* in the order of their ends. At most *concurrency*
        jobs are under way at a time (what the backend's place can take if not given), and at most *max_vcpu* vCPUs.
        A quota of the platform that is used up by our own jobs costs them time and nothing else: each waits until
        another has ended.

        With ``on_error="raise"``, the default, the first job that does not succeed stops the others and raises
        `JobFailed`. With ``"collect"`` its result is yielded like any other, that of a job which could not be submitted
        too. *max_failures* collects as well, but when more jobs than that have not succeeded, no more are started and
        those under way are stopped; what there is of results is yielded, and `Batch.stopped` says why.

        With a journal and a key for each job, a batch goes on after a crash: submit the same jobs again. What has its
        record is not run again, what still runs is met.

        Leaving the loop early stops what is still under way; ``async with runner.map(…) as batch`` waits for it.
        """
        self._check_open()
        if concurrency is None:
            concurrency = self.backend.default_concurrency
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
            raise ValueError(f"concurrency={concurrency!r}: use a whole number from 1")
        wrong = isinstance(max_vcpu, bool) or not isinstance(max_vcpu, (int, float, type(None)))
        if wrong or (max_vcpu is not None and not max_vcpu > 0):
            raise ValueError(f"max_vcpu={max_vcpu!r}: use a number above zero")
        if max_failures is not None and (
            isinstance(max_failures, bool) or not isinstance(max_failures, int) or max_failures < 0
        ):
            raise ValueError(f"max_failures={max_failures!r}: use a whole number from 0, or leave it out")
        if on_error not in ("raise", "collect", None):
            raise ValueError(f"on_error={on_error!r}: use 'raise' or 'collect'")
        if on_error == "raise" and max_failures is not None:
            raise ValueError("on_error='raise' stops at the first failure: leave it out, or leave out max_failures")
        if isinstance(jobs, Job):
            raise TypeError("map takes several jobs; use run() for one")
        raising = on_error == "raise" or (on_error is None and max_failures is None)
        pump = Pump(
            self,
            jobs,
            concurrency=concurrency,
            max_vcpu=_NEVER if max_vcpu is None else max_vcpu,
            ordered=not as_completed,
            raising=raising,
            max_failures=_NEVER if max_failures is None else max_failures,
        )
        self._task_group.start_soon(pump.run)
        return Batch(pump)

    def detach(self) -> None:
        """
        Let go of every live job at once, whatever ``on_exit`` says: they go on, and are met again by their keys.

        Who waits for one of them gets `RunnerClosed`. For callers in a hurry, such as a second Ctrl-C.
        """
        self._on_exit = "detach"
        for live in tuple(self._lives):
            live.let_go()

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
        self._lives[live] = None
        self._named[key] = live
        return live

    def _start(
        self,
        job: Job,
        *,
        keep_logs: bool = False,
        together: Launching | None = None,
        index: int = 0,
        callback: Callback | None = None,
    ) -> _Live:
        """Begin to supervise *job*, or meet the one that its key already names."""
        if not isinstance(job, Job):
            raise TypeError(f"expected a Job, got {job!r}")
        self._check_open()
        if job.key is not None and (known := self._named.get(job.key)) is not None:
            there = known.described or (known.job and known.job.describe())
            if there is not None:
                if different := _differences(there, job.describe()):
                    raise KeyConflict(job.key, different)
                if known.described is not None and known.brought is None:
                    known.bring(job)
                known.claims += 1
                known.owned = True
                if keep_logs and not known.finished:
                    known.retired = False
                return known
            if not known.finished:
                raise KeyConflict(job.key, ("how it is held: it was attached by this runner",))
        key = job.key or secrets.token_hex(12)
        if together is not None:
            key = Together(group=together.group, index=index, size=together.size).key
        live = self._register(job, key, owned=True)
        live.claims = 1
        live.together = together
        live.callback = callback
        live.retired = not keep_logs
        if self._tell:
            self._tell(JobQueued(key=live.key, job=live.name))
        self._task_group.start_soon(self._supervise, live, [])
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

    async def _supervise(self, live: _Live, found: list[TaskRef]) -> None:
        """
        See one job to its end. Never cancelled from outside, never raises for what a platform does.

        While nothing is to be done but wait, there is no task: `_wake` begins another one.
        """
        with CancelScope(shield=True):
            try:
                await self._follow(live, found)
            except (FargateRunnerError, OSError) as exc:
                live.error = exc
            except Exception as exc:
                # Whoever waits must hear of a bug as well; it goes on to the task group, so that it is not hidden.
                live.error = exc
                raise
            finally:
                if not live.parked:
                    self._finish(live)
            if not live.parked:
                await self._retire(live)

    def _finish(self, live: _Live) -> None:
        if live.together is not None:
            live.together.call_off()
        if live.error is not None:
            self._no_longer_ours(live, live.error)
        # A key that the caller did not choose is of no use to others once the job is over.
        unnamed = live.job is not None and live.job.key is None
        if (unnamed or live.error is not None) and self._named.get(live.key) is live:
            del self._named[live.key]
        self._lives.pop(live, None)
        live.page = live.watch = None
        self._room.left(live)
        live.finish()
        self._stop_alarms()

    def _stop_alarms(self) -> None:
        if self._closing and not self._lives:
            self._alarms.stop()

    def _wake(self, live: _Live) -> None:
        """Let the supervisor of a job go on."""
        assert self._tasks is not None
        if live.parked and live.watch is not None:
            live.parked = False
            self.backend.unwatch(live.watch.ref, live.watch)
            self._tasks.start_soon(self._supervise, live, [])

    async def _follow(self, live: _Live, found: list[TaskRef]) -> None:
        """See a job through from where its page says that it stands, each time another runner has turned the page."""
        while True:
            try:
                await self._see_through(live, found)
                return
            except Overtaken as exc:
                if exc.page is None:
                    said = f"the page of {live.key!r} is gone from the journal: somebody forgot it meanwhile"
                    raise JournalError(said, journal=self.journal.name if self.journal else None) from exc
                live.page, live.snapshot, live.watch = exc.page, None, None

    async def _see_through(self, live: _Live, found: list[TaskRef]) -> None:
        watch, live.watch = live.watch, None
        if watch is not None:
            job, coming = watch.job, watch.coming
        else:
            page = await self._open_page(live)
            if page is not None and page.result is not None:
                live.met_over = not live.accepted
                self._bring_refs(live, page)
                self._end_as(live, page.result)
                return
            job, coming = await self._begin(live, page, found)
        while True:
            if watch is None:
                resumed = bool(coming)
                if not coming:
                    if live.attempts:
                        job = await self._again(live, job)
                    launched = await self._launch(live, job, _next_number(live)) if job is not None else None
                    if launched is None:
                        break
                    coming = (launched,)
                part, coming = coming[0], coming[1:]
                if isinstance(part, TaskRef):
                    watch = self._attention(live, job, part, coming, resumed=resumed)
            else:
                part = watch.ref
            if watch is not None:
                attempt = await self._attend(live, watch)
                if live.parked:
                    return
                watch = None
            else:
                attempt = cast("Attempt", part)
            self._room.left(live)
            if attempt is None:
                self._detached(live)
                return
            live.attempts += (attempt,)
            self._tell_end(live, attempt)
        if live.letting_go and self.journal is not None and self._decide(live, job or live.job).again:
            self._detached(live)
            return
        result = JobResult(
            key=live.key,
            name=live.name,
            attempts=live.attempts,
            accepted_at=live.accepted_at,
            ended_at=self._utcnow(),
        )
        await self._note_end(live, result)
        self._end_as(live, result)

    async def _begin(
        self, live: _Live, page: Page | None, found: Iterable[TaskRef]
    ) -> tuple[Job | None, tuple[TaskRef | Attempt, ...]]:
        """Return the job as it is to be launched next, and its attempts that are there already."""
        job = live.job
        if page is not None and page.revision > 0:
            job = _as_last(job, page)
            return job, tuple(await self._resume(live, job, page))
        if job is not None and job.key is not None:
            found = await self._meet(live, job, job.key)
        there = tuple(found)
        if there and page is not None and (written := await self._read_page(live.key)) is not None:
            raise Overtaken(written)  # since we looked: it knows of attempts that the platform may have forgotten
        if there:
            self._accept(live, adopted=True)
            job = _as_launched(job, there[-1])
        return job, there

    def _end_as(self, live: _Live, result: JobResult) -> None:
        live.attempts, live.result = result.attempts, result
        if self._tell:
            told = JobEnded if live.accepted else JobRemembered
            self._tell(told(key=live.key, job=live.name, result=result))

    def _tell_end(self, live: _Live, attempt: Attempt) -> None:
        if attempt.number <= live.told:
            return
        live.told = attempt.number
        if self._tell:
            self._tell(AttemptEnded(key=live.key, job=live.name, attempt=attempt.number, outcome=attempt.outcome))

    def _decide(self, live: _Live, job: Job | None) -> Decision:
        if job is None:
            return Decision(again=False, why="this runner was not given the job")
        policy = job.retry or _DEFAULT_RETRY
        decision: Decision = policy.decide(job, live.attempts)
        unknown = [attempt for attempt in live.attempts if attempt.outcome.kind is Kind.UNKNOWN]
        if decision.again or not self._rerun_unknown or live.attempts[-1].outcome.kind is not Kind.UNKNOWN:
            return decision
        budget = policy.interruptions if isinstance(policy, Retry) else _DEFAULT_RETRY.interruptions
        if len(unknown) > budget:
            return decision
        return Decision(again=True, why="nobody knows how it ended, and on_unknown='rerun'", wait=_pause(len(unknown)))

    async def _again(self, live: _Live, job: Job | None) -> Job | None:
        """Return what to launch next, once it is time; None if there shall be no other attempt."""
        if job is None or live.stop is not None or live.letting_go:
            return None
        job = _as_brought(live, job)
        decision = self._decide(live, job)
        if not decision.again:
            return None
        pause = decision.wait
        if live.page is not None and _stands_between(live.page, live.attempts):
            # Its page was written before, by whomever: the wait began then. To write it again would only have everybody
            # who waits for the same begin anew.
            waited = (self.backend.now() - live.attempts[-1].ended_at).total_seconds()
            pause = min(pause, max(0.0, pause - waited))
        else:
            await self._note(live, attempts=live.attempts, **_NOTHING_UNDER_WAY)
        if self._tell:
            why, number = decision.why, _next_number(live)
            self._tell(RetryScheduled(key=live.key, job=live.name, attempt=number, wait=pause, why=why))
        live.due_again = self._now() + pause
        live.touch()
        if await self._interruptible(live, anyio.sleep, pause) is _INTERRUPTED:
            return None
        return decision.job or job

    # ---- the page in the journal -----------------------------------------------------------------------------------

    async def _read_page(self, key: str) -> Page | None:
        if self.journal is None:
            return None
        tries = 0
        while True:
            tries += 1
            try:
                return await self.journal.read(key)
            except JournalError as exc:
                if not exc.retryable or tries == _TRIES:
                    raise
                await anyio.sleep(_pause(tries))

    async def _open_page(self, live: _Live) -> Page | None:
        """
        Return the page of a job as the journal has it, or a new one; None without a journal.

        :raises KeyConflict: it is of another job
        :raises JournalError: it is of another place
        """
        if self.journal is None:
            return None
        page = live.page or await self._read_page(live.key)
        if page is None:
            if live.job is None:
                return None  # attached by what the platform knows: another runner's, and not written down here
            live.page = Page(
                key=live.key,
                name=live.name,
                place=self.backend.place,
                description=live.job.describe(),
                retry=retry_to_plain(live.job.retry),
                accepted_at=live.accepted_at,
                callback=live.callback,
            )
            return live.page
        if page.place != self.backend.place:
            said = f"the journal {self.journal.name} says that {live.key!r} runs on {page.place!r}"
            fix = f"hand the runner that backend, or give the job on {self.backend.place!r} a key of its own"
            raise JournalError(f"{said}; {fix}", journal=self.journal.name)
        if live.job is None:
            live.job, live.lacks_secrets = job_of(page)
        elif different := _differences(page.description, live.job.describe()):
            raise KeyConflict(live.key, different)
        live.page, live.name, live.accepted_at = page, page.name, page.accepted_at
        live.attempts = page.attempts
        live.told = max([live.told, *(attempt.number for attempt in page.attempts)])
        return page

    async def _resume(self, live: _Live, job: Job | None, page: Page) -> list[TaskRef | Attempt]:
        """Return the attempt that the page says is under way, if there is one; a launch in doubt is cleared up."""
        self._accept(live, adopted=True)
        self._bring_refs(live, page)
        if page.stop is not None and page.stop.kind is Kind.CANCELLED:
            live.ask_stop(page.stop)
        if page.ref is not None:
            return [attrs.evolve(page.ref, description={**page.description, **(page.ref.description or {})})]
        if page.launch is None:
            if Identity(namespace=self.namespace, key=live.key, attempt=1).shared is not None:
                live.placement = 2  # the first placement is that of the call for several
            return []
        cleared = await self._sent_again(live, job, page, page.launch)
        return [cleared] if cleared is not None else []

    def _bring_refs(self, live: _Live, page: Page) -> None:
        """Know where the attempts were that are over, for the lines of a handle."""
        seen = {ref.token for ref in live.refs}
        for attempt in page.attempts:
            if attempt.address and attempt.token not in seen:
                live.refs += (_ref_of(attempt, page.key, self.backend.name),)

    async def _sent_again(self, live: _Live, job: Job | None, page: Page, launch: Launch) -> TaskRef | Attempt | None:
        """Clear up a launch that was written down, and of which nobody wrote what came of it."""
        identity, begun = launch.identity, page.launched_at or page.accepted_at
        live.placement = identity.placement
        if identity.shared is not None and not await self._was_sent(launch):
            live.placement += 1
            return None
        where = identity.namespace, identity.key
        while True:
            job = _as_brought(live, job) if job is not None else None
            age = await self._ask(live, identity.attempt, "ask_time", self.backend.ask_time, stubborn=True) - begun
            # A clock that went back makes it look younger than it is; a little of that is in the 55 minutes.
            is_young = -timedelta(minutes=2) <= age <= _REPLAY_WITHIN
            if job is not None and not live.lacks_secrets and is_young:
                if job.secrets or any(side.secrets for side in job.sidecars):
                    # Their values were not written down. To prepare it once more starts nothing, and brings them.
                    prepare = partial(self.backend.prepare, job, identity)
                    fresh = await self._ask(live, identity.attempt, "prepare", prepare, stubborn=True)
                    launch = attrs.evolve(launch, secrets=fresh.secrets)
                again = attrs.evolve(launch, send_until=begun + _REPLAY_WITHIN)
                return await self._launch(live, job, identity.attempt, again=again)
            find = partial(self.backend.find, *where)
            refs: list[TaskRef] = await self._ask(live, identity.attempt, "find", find, stubborn=True)
            for ref in refs:
                if ref.token == launch.token:
                    if not self.backend.starts_later:
                        await self._note_ref(live, ref)
                    return ref
            if not is_young or job is None:
                break
            # Whoever has its secrets may still send it, and may have brought them meanwhile.
            if live.lacks_secrets:
                raise _without_secrets()
        said = f"it was about to be launched {_span(age)} ago, the runner died, and nothing tells what came of it"
        return self._record(job, launch.token, None, self._unknown(said), identity.attempt, begun)

    async def _was_sent(self, launch: Launch) -> bool:
        """
        Whether a launch of several jobs may have been sent: only once all had it on their pages, the first one's last.

        If not, it is never sent: whoever still means to finds that the first one's page was turned meanwhile.
        """
        together = cast("Together", launch.identity.together)
        while True:
            first = await self._read_page(together.key_of(0))
            if first is None:
                return False
            known = first.launch or first.ref
            sent = [each for each in first.attempts if each.address is not None or each.outcome.kind is Kind.UNKNOWN]
            if launch.token in {known.token if known is not None else "", *(attempt.token for attempt in sent)}:
                return True
            if known is not None or first.attempts or first.ended_at is not None or await self._turned(first):
                return False

    async def _turned(self, page: Page) -> bool:
        """Write a page as it is, so that nobody writes it who has read it before. False: another one was faster."""
        try:
            await self._turn(page)
        except Overtaken:
            return False
        return True

    async def _intent(self, live: _Live, launch: Launch) -> Launch:
        """Write down what is about to be sent; return it as it can be read again, for the same bytes each time."""
        at = self.backend.now()
        if self.journal is not None:
            launch = Launch.from_json(launch.to_json(), secrets=launch.secrets)
            await self._note(live, attempts=live.attempts, launch=launch, launched_at=at, ref=None, stop=None)
        return attrs.evolve(launch, send_until=at + _REPLAY_WITHIN)

    async def _note(self, live: _Live, *, must: bool = True, **changes: Any) -> None:
        """
        Write down what changed. What need not be (*must*) and cannot be now is written with the next change.

        :raises Overtaken: another runner has written the page meanwhile
        :raises JournalError: it cannot be written
        """
        if self.journal is None or live.page is None:
            return
        live.page = attrs.evolve(live.page, **changes)
        tries = 0
        while True:
            tries += 1
            try:
                live.page = await self.journal.write(live.page)
                return
            except Overtaken as exc:
                # A try that seemed to fail may have been written all the same: then what is there is ours.
                if tries == 1 or exc.page is None or exc.page.to_json() != live.page.to_json():
                    raise
                live.page = exc.page
                return
            except JournalError as exc:
                if self._tell:
                    self._tell(JournalUnanswered(key=live.key, job=live.name, error=str(exc)))
                if not must and (not exc.retryable or tries == _TRIES):
                    return
                if not exc.retryable or tries == _TRIES:
                    raise
            await anyio.sleep(_pause(tries))

    async def _note_ref(self, live: _Live, ref: TaskRef) -> None:
        """Write down what came of a launch. From here on it is not sent again."""
        try:
            await self._note(live, ref=ref, must=False)
        except Overtaken as exc:
            await self._disown(live, ref, exc.page)
            raise

    async def _note_end(self, live: _Live, result: JobResult) -> None:
        """Write the final record, before anything is forgotten."""
        try:
            await self._note(live, attempts=result.attempts, ended_at=result.ended_at, **_NOTHING_UNDER_WAY)
        except JournalError as exc:
            outcome = result.outcome
            ended = f"the job {live.name!r} has ended ({outcome.kind.value}: {outcome.detail})"
            said = f"{ended}, and its record cannot be written"
            raise JournalError(f"{said}: {exc}", journal=exc.journal, retryable=exc.retryable) from exc

    async def _withdraw(self, live: _Live) -> None:
        """Take back the page of a job of which nothing was started: its caller is told, and may submit it anew."""
        page = live.page
        if self.journal is None or page is None or page.revision == 0:
            return
        try:
            await self.journal.forget(page.key, revision=page.revision)
        except JournalError as exc:
            if self._tell:
                self._tell(JournalUnanswered(key=live.key, job=live.name, error=str(exc)))

    async def _disown(self, live: _Live, ref: TaskRef, page: Page | None) -> None:
        """Stop what was launched for a page that another runner has turned meanwhile: nobody else knows of it."""
        if page is not None and (
            (page.launch is not None and page.launch.token == ref.token)
            or any(attempt.token == ref.token and attempt.address for attempt in page.attempts)
        ):
            return
        await self._stop_at_last(live, ref, "another runner has gone on without it")

    def _accept(self, live: _Live, *, adopted: bool = False) -> None:
        """From here on the job is ours to account for: exactly one end follows."""
        if live.accepted:
            return
        if self._tell:
            self._tell(JobAccepted(key=live.key, job=live.name, adopted=adopted))
        live.accepted = True
        for pump, index in live.seats():
            pump.launched(index)

    def _no_longer_ours(self, live: _Live, error: Exception) -> None:
        if live.accepted:
            self._detached(live)
        elif self._tell:
            self._tell(JobRefused(key=live.key, job=live.name, error=str(error) or type(error).__name__))

    def _detached(self, live: _Live) -> None:
        live.letting_go = True
        if self._tell:
            number = live.refs[-1].attempt if live.refs else 1
            self._tell(JobDetached(key=live.key, job=live.name, attempt=number))

    async def _meet(self, live: _Live, job: Job, key: str) -> list[TaskRef]:
        """Find the attempts that the platform already knows of, and make sure that they are of the same job."""
        question = partial(self._ask, live, 1, "find", self.backend.find, self.namespace, key)
        refs: Any = _INTERRUPTED
        if live.stop is None and not live.letting_go:
            refs = await self._interruptible(live, question)
        if refs is _INTERRUPTED:
            # What may run there is to be stopped, or let go of, too. So it is asked for all the same, but not for long.
            with anyio.move_on_after(_LEAVING_PATIENCE):
                refs = await question()
        if refs is _INTERRUPTED:
            raise _unanswered("find", _LEAVING_PATIENCE)
        if refs:
            there = refs[-1].description
            if there is not None and (different := _differences(there, job.describe(), grown=refs[-1].attempt > 1)):
                raise KeyConflict(key, different)
        return cast("list[TaskRef]", refs)

    async def _launch(
        self, live: _Live, job: Job, number: int, again: Launch | None = None
    ) -> TaskRef | Attempt | None:
        """
        Launch an attempt, or send the launch *again* that was written down.

        The record of one that was never placed, if the launch was refused or its answer lost.

        None if nothing was launched and there was an attempt before: then the outcome of that one stands.
        """
        if live.lacks_secrets:
            raise _without_secrets()
        begun = self._utcnow()
        live.token = ""
        try:
            if (ref := await self._place(live, job, number, again)) is not None:
                return ref
        except LaunchRejected as exc:
            outcome = Outcome(
                kind=Kind.NEVER_STARTED,
                detail=str(exc),
                proof=Proof(source="launch", seen_at=self._utcnow(), evidence=str(exc)),
                transient=exc.retryable,
            )
        except _LaunchUnanswered as exc:
            outcome = self._unknown(f"the launch was not answered, and may have happened: {exc}")
        except (FargateRunnerError, OSError) as exc:
            if not live.attempts:
                await self._withdraw(live)
            if not live.attempts or isinstance(exc, JournalError):
                raise
            self._unanswered(live, number, "launch", exc)
            return None
        else:
            if live.attempts:
                return None
            assert live.stop is not None
            outcome = Outcome(
                kind=Kind.CANCELLED,
                detail=live.stop.reason,
                proof=Proof(source="runner", seen_at=self._utcnow(), evidence="stopped before it was launched"),
            )
        self._accept(live)
        return self._record(job, live.token, None, outcome, number, begun)

    async def _place(self, live: _Live, job: Job, number: int, again: Launch | None) -> TaskRef | None:
        """
        Launch an attempt, as often as it takes to find room. None: it was told to stop before it was sent.

        :raises LaunchRejected: it was refused, or found no room within its ``start_timeout``
        """
        deadline = self._now() + job.start_timeout.total_seconds()
        while True:
            launch, again = again, None
            if launch is None:
                deadline += await self._for_a_turn(live)
                identity = Identity(namespace=self.namespace, key=live.key, attempt=number, placement=live.placement)
                prepared = await self._ask(live, number, "prepare", self.backend.prepare, job, identity, cut=True)
                if prepared is not _INTERRUPTED:
                    live.token = prepared.token
                if live.stop is not None:
                    if live.together is not None:
                        live.together.call_off()
                    return None
                # From here on it is sent, whatever happens: who reads the page may be sending it as well.
                launch = await self._written(live, prepared)
                if launch is None:
                    live.placement += 1
                    continue
            live.token = launch.token
            ends = self._room.ends
            self._room.taken(live)
            live.sent_at = self._now()
            try:
                ref = await self._submit(live, launch, number)
            except PlacementRefused as exc:
                self._room.not_taken(live)
                waits_for_ours = exc.quota and self._room.refused(ends)
                deadline += await self._before_next_placement(live, number, exc, deadline, waits_for_ours)
                continue
            self._room.granted()
            await self._launched(live, ref)
            return ref

    async def _written(self, live: _Live, prepared: Launch) -> Launch | None:
        """Write a launch down. None if it was to be launched with others, and they are not."""
        together, live.together = live.together, None
        if together is None:
            return await self._intent(live, prepared)
        index = cast("Together", prepared.identity.together).index
        write, was_written = partial(self._intent, live, prepared), partial(self._was_sent, prepared)
        return await together.ready(index, partial(self._note, live), write, was_written)

    async def _launched(self, live: _Live, ref: TaskRef) -> None:
        live.token = ref.token
        if not self.backend.starts_later:
            await self._note_ref(live, ref)
        self._accept(live)
        if self._tell:
            where, token = ref.address, ref.token
            self._tell(AttemptLaunched(key=live.key, job=live.name, attempt=ref.attempt, address=where, token=token))

    async def _before_next_placement(
        self, live: _Live, number: int, refused: PlacementRefused, deadline: float, waits_for_ours: bool
    ) -> float:
        """
        Wait until a platform without room may have some. Such a wait is part of the job's ``start_timeout``.

        Unless it *waits_for_ours*: a quota that jobs of our own use up. Then their ends give room, and the seconds that
        this took are returned, for they do not count.

        :raises PlacementRefused: it has lasted long enough, or nobody waits for it any more
        """
        tries, live.placement = live.placement, live.placement + 1
        wait = _pause(tries)
        if live.letting_go or (not waits_for_ours and self._now() + wait >= deadline):
            raise refused
        if self._tell:
            why = str(refused)
            self._tell(LaunchDelayed(key=live.key, job=live.name, attempt=number, placement=tries, wait=wait, why=why))
        if waits_for_ours:
            return await self._for_a_turn(live, first=True)
        await self._interruptible(live, anyio.sleep, wait)
        return 0.0

    async def _for_a_turn(self, live: _Live, *, first: bool = False) -> float:
        """Wait until our own jobs leave room for another, where a quota is used up; return how long that took."""
        since, ours = self._now(), self._room.is_ours
        if self._room.is_short and live.stop is None and not live.letting_go:
            await self._interruptible(live, partial(self._room.turn, first=first))
        return self._now() - since if ours else 0.0

    async def _submit(self, live: _Live, launch: Launch, number: int) -> TaskRef:
        # Not to be cancelled: a launch whose effect is unknown is the classic orphan. Sent again, the same token meets
        # what it already started.
        try:
            ref: TaskRef = await self._ask(live, number, "submit", self.backend.submit, launch, stubborn=True)
        except LaunchRejected:
            raise
        except (BackendError, OSError) as exc:
            where = launch.identity.namespace, launch.identity.key
            try:
                refs: list[TaskRef] = await self._ask(live, number, "find", self.backend.find, *where, stubborn=True)
            except (BackendError, OSError):
                raise _LaunchUnanswered(str(exc)) from exc
            started = next((ref for ref in refs if ref.token == launch.token), None)
            if started is not None:
                return started
            if (
                isinstance(exc, BackendError) and exc.code == TOO_LATE
            ):  # the platform may have forgotten what it started
                raise _LaunchUnanswered(str(exc)) from exc
            raise
        return ref

    async def _ask(
        self,
        live: _Live,
        attempt: int,
        operation: str,
        call: Callable[..., Awaitable[Any]],
        *args: Any,
        cut: bool = False,
        stubborn: bool = False,
    ) -> Any:
        """
        Put a question that may be put again, with patience; after a stop only if *stubborn*.

        With *cut*, a stop also cuts it short, and the answer is `_INTERRUPTED`.

        :raises BackendError: it was not answered
        """
        tries = 0
        while True:
            tries += 1
            if cut and live.stop is not None:
                return _INTERRUPTED
            until = self._now() + self.backend.answer_patience
            try:
                if cut:
                    answer = await self._interruptible(live, call, *args, deadline=until)
                    if answer is not _INTERRUPTED or live.stop is not None:
                        return answer
                    if self._now() < until:
                        tries -= 1  # told to let go: it has to be known first what of
                        continue
                else:
                    with CancelScope(deadline=until):
                        return await call(*args)
                error = _unanswered(operation, self.backend.answer_patience)
            except LaunchRejected:
                raise
            except BackendError as exc:
                error = exc
            if not error.retryable or tries == _TRIES or (live.stop is not None and not stubborn):
                raise error
            self._unanswered(live, attempt, operation, error)
            await anyio.sleep(_pause(tries))

    def _attention(
        self, live: _Live, job: Job | None, ref: TaskRef, coming: tuple[TaskRef | Attempt, ...], *, resumed: bool
    ) -> _Watch:
        """Begin to attend an attempt. One that is *resumed* began before we knew of it: its clocks are running."""
        self._room.taken(live)
        live.snapshot = None
        if all(known.token != ref.token for known in live.refs):
            live.refs += (ref,)
        live.touch()
        watch = _Watch(self, live, job, ref, coming, resumed=resumed)
        if resumed and live.page is not None:
            watch.asked = live.page.stop
        return watch

    async def _attend(self, live: _Live, watch: _Watch) -> Attempt | None:
        """
        Observe an attempt until it is over, stopping it when that is asked or due. None: it was let go, or is parked.
        """
        job, ref = watch.job, watch.ref
        begun = ref.created_at or live.accepted_at
        while True:
            now = self._now()
            if live.letting_go:
                return None
            snapshot = live.snapshot
            watch.awake(now)
            if watch.asked is None:
                watch.asked = live.stop or watch.overdue(now)
            if watch.asked is not None and now >= watch.ask_again_at:
                if watch.asks == _STOP_ASKS:
                    detail = f"asked to stop ({watch.asked.reason}), and nothing tells whether it did"
                    return await self._give_up(live, job, ref, detail, begun)
                await self._ask_stop(live, ref, watch, now)
                continue
            if now >= watch.silent_until:
                detail = f"the platform has not answered for {_SILENCE_PATIENCE:g} s"
                return await self._give_up(live, job, ref, detail, begun)
            if now >= watch.look_again_at:
                watch.in_doubt = True
            after = None if watch.in_doubt else snapshot
            if after is not None and not watch.has_news and self._park(live, watch, after, now):
                return None
            watch.has_news, watch.look_again_at = False, _NEVER
            watch.due_at = min(watch.deadline, now + _LOOK_AGAIN)
            due = now + (self.backend.answer_patience if after is None else _LOOK_AGAIN)
            try:
                look = partial(self.backend.observe, ref, after=after)
                newer = await self._interruptible(live, look, deadline=min(watch.deadline, due))
                if newer is _INTERRUPTED and self._now() >= due:
                    if after is None:
                        raise _unanswered("observe", self.backend.answer_patience)
                    watch.in_doubt = True
            except BackendError as exc:
                watch.failed(self._now())
                self._unanswered(live, ref.attempt, "observe", exc)
                await self._before_next_look(live, watch)
                continue
            if newer is _INTERRUPTED:
                continue
            assert isinstance(newer, Snapshot)
            watch.answered()
            # A place that does not know it yet says that it is pending, and nothing else.
            unseen = live.snapshot is None or live.snapshot.created_at is None
            self._see(live, ref, watch, newer)
            if live.page is not None and live.page.ref is None and newer.started_at is not None and not newer.ended:
                await self._note_ref(live, ref)
            if watch.resumed and unseen and newer.cause is Cause.VANISHED:
                # It may have done its work while nobody watched: that is not lost, it is not known.
                said = f"nobody watched its end, and the platform no longer knows of it: {newer.reason}"
                return await self._close(live, job, ref, self._unknown(said), begun)
            if newer.ended:
                return await self._close(live, job, ref, classify(newer, watch.asked), begun)

    def _park(self, live: _Live, watch: _Watch, after: Snapshot, now: float) -> bool:
        """Wait without a task, where the backend can. Whatever comes first wakes it: news, a stop, the clock."""
        if not self.backend.watch(watch.ref, after, watch):
            return False
        watch.look_again_at = now + _LOOK_AGAIN
        live.watch, live.parked = watch, True
        watch.due_at = min(watch.deadline, watch.look_again_at)
        self._alarms.set(watch, watch.due_at)
        live.touch()
        return True

    def _take_note(self, live: _Live, watch: _Watch, newer: Snapshot) -> bool:
        """Take in on the spot what leaves nothing to do but wait on. False: its supervisor has to see to it."""
        if not live.parked or live.watch is not watch or newer.ended or self._now() >= watch.due_at:
            return False
        to_be_noted = live.page is not None and live.page.ref is None and newer.started_at is not None
        if live.letting_go or live.stop is not None or watch.asked is not None or to_be_noted:
            return False
        watch.answered()
        self._see(live, watch.ref, watch, newer)
        return self._park(live, watch, newer, self._now())

    def _see(self, live: _Live, ref: TaskRef, watch: _Watch, newer: Snapshot) -> None:
        if live.snapshot is None and self._tell:
            self._tell(self._seen(live, ref, watch, newer))
        live.snapshot = newer
        if watch.reached(newer, self._now(), self.backend.now()):
            if self._tell:
                self._tell(PhaseReached(key=live.key, job=live.name, attempt=ref.attempt, phase=newer.phase))
            live.touch()

    def _seen(self, live: _Live, ref: TaskRef, watch: _Watch, seen: Snapshot) -> AttemptSeen:
        job = watch.job
        vcpu, memory_gib = _size(job, ref)
        # Launched by us, it is new, whatever the clocks of two places make of it.
        begun = (seen.created_at or ref.created_at) if watch.resumed else None
        return AttemptSeen(
            key=live.key,
            job=live.name,
            attempt=ref.attempt,
            address=ref.address,
            age=max(0.0, (self.backend.now() - begun).total_seconds()) if begun is not None else 0.0,
            vcpu=vcpu,
            memory_gib=memory_gib,
            ephemeral_storage_gib=_asked(job, ref, "ephemeral_storage_gib"),
            capacity=seen.capacity,
            platform=seen.platform or _platform(job, ref),
        )

    async def _ask_stop(self, live: _Live, ref: TaskRef, watch: _Watch, now: float) -> None:
        asked = cast("StopAsked", watch.asked)
        if not watch.asks and not watch.stop_refusals and self._tell:
            self._tell(
                StopRequested(key=live.key, job=live.name, attempt=ref.attempt, kind=asked.kind, reason=asked.reason)
            )
        if not watch.asks and not watch.stop_refusals:
            await self._note(live, stop=asked, must=False)
        watch.asks += 1
        watch.ask_again_at = now + watch.stop_timeout + _STOP_GRACE
        try:
            with anyio.move_on_after(_STOP_GRACE) as scope:
                await self.backend.stop(ref, reason=asked.reason)
                watch.stop_refusals = 0
            if scope.cancelled_caught:  # waiting for its turn, or for fresh credentials: it has not arrived
                raise _unanswered("stop", _STOP_GRACE)
        except BackendError as exc:
            self._unanswered(live, ref.attempt, "stop", exc)
            watch.stop_refusals += 1
            if watch.stop_refusals == 1:
                watch.no_stop_from = now + max(_SILENCE_PATIENCE, self.backend.answer_patience)
            watch.ask_again_at = self._now() + _pause(watch.stop_refusals)
            # One that did not arrive is none of the three, unless it is hopeless or was tried for long enough.
            if exc.retryable:
                watch.asks = _STOP_ASKS if now >= watch.no_stop_from else watch.asks - 1

    async def _before_next_look(self, live: _Live, watch: _Watch) -> None:
        """Wait before the platform is asked again; a stop that was not asked for yet comes first."""
        if live.letting_go or (live.stop is not None and watch.asked is None):
            return
        pause = _pause(watch.failures)
        watch.due_at = self._now() + pause
        await self._interruptible(live, anyio.sleep, pause, deadline=watch.deadline)

    async def _give_up(
        self, live: _Live, job: Job | None, ref: TaskRef, detail: str, begun: datetime
    ) -> Attempt | None:
        """Close an attempt whose end nobody knows. It may live on, so it is told to end once more."""
        if live.owned:
            await self._stop_at_last(live, ref, detail)
        return await self._close(live, job, ref, self._unknown(detail), begun)

    async def _stop_at_last(self, live: _Live, ref: TaskRef, reason: str) -> None:
        with anyio.move_on_after(_LAST_STOP_PATIENCE, shield=True) as scope:
            try:
                await self.backend.stop(ref, reason=reason)
            except BackendError as exc:
                self._unanswered(live, ref.attempt, "stop", exc)
        if scope.cancelled_caught:
            self._unanswered(live, ref.attempt, "stop", _unanswered("stop", _LAST_STOP_PATIENCE))

    async def _close(
        self, live: _Live, job: Job | None, ref: TaskRef, outcome: Outcome, begun: datetime
    ) -> Attempt | None:
        """Return the record of an attempt. None: it was let go of before its last lines were read."""
        read: Any = _INTERRUPTED
        while read is _INTERRUPTED:  # a stop comes too late to matter
            if live.letting_go:
                return None
            read = await self._interruptible(live, self._last_lines, live, ref)
        lines, complete = read
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
        except (FargateRunnerError, OSError) as exc:  # the lines of an attempt never cost its record
            reason = str(exc) or type(exc).__name__
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
            ephemeral_storage_gib=_asked(job, ref, "ephemeral_storage_gib"),
            capacity=seen.capacity,
            platform=seen.platform or _platform(job, ref),
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
        deadline: float = _NEVER,
    ) -> Any:
        """Await *call*; `_INTERRUPTED` if a stop or a deadline cut it short. Only for calls that may be cut."""
        with CancelScope(deadline=deadline) as scope:
            live.scope = scope
            try:
                return await call(*args)
            finally:
                live.scope = None
        assert scope.cancelled_caught
        return _INTERRUPTED

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
        async with anyio.create_task_group() as tasks:
            for live in (*self._kept, *self._read_on):
                tasks.start_soon(self._forget, live)

    async def _retire(self, live: _Live) -> None:
        """Let the platform forget an ended job: at once, or when its logs are no longer kept for a handle."""
        # Of a job that was over when we met it, whoever saw its end has freed what it held.
        if live.result is None or not live.owned or live.met_over:
            return
        if not live.retired and not self._closing:
            self._kept.append(live)
            if len(self._kept) <= _LOGS_KEPT:
                return
            live = self._kept.popleft()
            live.retired = True
        await self._forget(live)

    def _reader_left(self, live: _Live) -> None:
        if live in self._read_on and not live.readers and not self._closing:
            self._read_on.pop(live, None)
            self._task_group.start_soon(self._forget, live)

    async def _forget(self, live: _Live) -> None:
        if live.forgotten:
            return
        if live.readers and not self._closing:
            self._read_on[live] = None
            return
        live.forgotten = True
        for ref in live.refs:
            error: Exception = TimeoutError(f"not done within {_FORGET_PATIENCE:g} s")
            # Shielded and bounded: half-way, it would leave containers behind; for ever, it would keep the runner open.
            with anyio.move_on_after(_FORGET_PATIENCE, shield=True):
                try:
                    await self.backend.forget(ref)
                    continue
                except (FargateRunnerError, OSError) as exc:
                    error = exc
            self._unanswered(live, ref.attempt, "forget", error)


class _LaunchUnanswered(Exception):
    """Nobody can tell whether a launch had effect."""


_INTERRUPTED: Final = object()


class _Watch:
    """
    The attention for one attempt: when it is overdue, when to ask for its end again, when to stop hoping.

    While nothing but that is left of its supervisor, it is what wakes it: `wake`, or a call by the backend for news.
    """

    __slots__ = (
        "_phase",
        "alarm_at",
        "answered_at",
        "ask_again_at",
        "asked",
        "asks",
        "coming",
        "deadline_of_phase",
        "due_at",
        "failures",
        "has_news",
        "in_doubt",
        "job",
        "launched",
        "live",
        "look_again_at",
        "looks_first",
        "no_stop_from",
        "ref",
        "resumed",
        "runner",
        "silent_until",
        "stop_refusals",
        "wake_at",
    )

    def __init__(
        self,
        runner: Runner,
        live: _Live,
        job: Job | None,
        ref: TaskRef,
        coming: tuple[TaskRef | Attempt, ...],
        *,
        resumed: bool,
    ) -> None:
        self.runner = runner
        self.live = live
        self.job = job
        self.ref = ref
        self.coming = coming
        """What is to be attended next."""
        self.launched = runner._now()
        """In our time; of one that is *resumed*, when it was met."""
        self.resumed = resumed
        """It began before we knew of it. Until the first look, nobody knows which of its clocks runs."""
        self.deadline_of_phase = _NEVER
        if not resumed and ref.created_at is not None:
            # We may have stood still over the answer. However wrong the place's time is, it began after it was sent.
            age = (runner.backend.now() - ref.created_at).total_seconds()
            self.launched -= min(max(0.0, age), max(0.0, self.launched - live.sent_at))
        live.sent_at = _NEVER
        if job is not None and not resumed:
            self.deadline_of_phase = self.launched + job.start_timeout.total_seconds()
        self.asked: StopAsked | None = None
        self.asks = 0
        self.ask_again_at = _LONG_AGO
        self.failures = 0
        self.in_doubt = False
        self.silent_until = _NEVER
        self.stop_refusals = 0
        self.no_stop_from = _NEVER
        self.has_news = False
        self.look_again_at = _NEVER
        self.wake_at = self.alarm_at = _NEVER
        self.due_at = _NEVER
        """When we are to be awake again at the latest."""
        self.answered_at = _LONG_AGO
        self.looks_first = False
        """Nothing is overdue before the platform has told how it stands: we stood still, or it was silent."""
        self._phase = 0

    def __call__(self, newer: Snapshot | None) -> None:
        """There is news. *newer* is what the platform told, if it told all that there is to know."""
        if newer is None or not self.runner._take_note(self.live, self, newer):
            self.has_news = True
            self.wake()

    def wake(self) -> None:
        """Let the supervisor go on, if it waits."""
        self.runner._wake(self.live)

    @property
    def stop_timeout(self) -> float:
        """Seconds between SIGTERM and SIGKILL."""
        return self.job.stop_timeout.total_seconds() if self.job is not None else 120.0

    @property
    def deadline(self) -> float:
        """When observing must be interrupted, whatever the platform does."""
        due = self.ask_again_at if self.asked is not None else _NEVER if self.looks_first else self.deadline_of_phase
        return min(due, self.silent_until)

    def __lt__(self, other: _Watch) -> bool:
        return self.alarm_at < other.alarm_at  # of those whose alarms are set to the same moment, any may be first

    def awake(self, now: float) -> None:
        """Notice if we stood still for a while. What is due is due by what is so now, not by what we knew before."""
        if now - self.due_at < _STOOD_STILL:
            return
        self.looks_first = self.in_doubt = True
        self.failures = 0
        self.silent_until = self.due_at = _NEVER
        if self.asks:
            self.ask_again_at = max(self.ask_again_at, now + _STOP_GRACE)

    def reached(self, newer: Snapshot, now: float, place_now: datetime) -> bool:
        """Say whether *newer* is in a later phase than any before. A backend may skip RUNNING; its clock starts too."""
        before, self._phase = self._phase, max(newer.phase, self._phase)
        first, runs = before == 0 and self.resumed, before < Phase.RUNNING <= newer.phase
        if self.job is not None and (first or runs):
            limit = self.job.timeout if runs else self.job.start_timeout
            begun = self._begun(newer, now, place_now, runs=runs)
            self.deadline_of_phase = begun + limit.total_seconds() if limit is not None else _NEVER
        return newer.phase > before

    def _begun(self, newer: Snapshot, now: float, place_now: datetime, *, runs: bool) -> float:
        """Say when the phase of *newer* began, in our time: it may be seen late, and the place's time is another."""
        if self.resumed:
            at = newer.started_at if runs else newer.created_at or self.ref.created_at
            return now - max(0.0, (place_now - at).total_seconds()) if at is not None else now
        if runs and newer.started_at is not None and newer.created_at is not None:
            return min(now, self.launched + max(0.0, (newer.started_at - newer.created_at).total_seconds()))
        return now

    def failed(self, now: float) -> None:
        """The platform did not answer. Next it is asked for what it knows, not for news: that may take hours."""
        self.failures += 1
        self.in_doubt = True
        if self._phase < Phase.RUNNING:
            self.looks_first = True  # it may have started long ago
        if self.failures == 1:
            self.silent_until = now + _SILENCE_PATIENCE

    def answered(self) -> None:
        """The platform spoke: its silence is over."""
        self.failures = 0
        self.in_doubt = self.looks_first = False
        self.silent_until = _NEVER
        self.answered_at = self.runner._now()

    def overdue(self, now: float) -> StopAsked | None:
        """Say what to stop the attempt for, if its phase has lasted too long."""
        if now < self.deadline_of_phase or self.job is None or self.looks_first:
            return None
        if self._phase < Phase.RUNNING and self.answered_at < self.deadline_of_phase:
            # It may have started since we last heard of it: a look may be under way for long.
            self.looks_first = self.in_doubt = True
            return None
        if self._phase < Phase.RUNNING:
            reason = f"it did not start within {_span(self.job.start_timeout)} (start_timeout)"
            return StopAsked(kind=Kind.NEVER_STARTED, reason=reason)
        limit = self.job.timeout or timedelta()
        return StopAsked(kind=Kind.TIMED_OUT, reason=f"it ran longer than {_span(limit)} (timeout)")


class _Alarms:
    """Wakes those that wait without a task when their time has come: one timer for all of them."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, _Watch]] = []
        self._asleep_until = _NEVER
        self._changed: Event | None = None
        self._scope = CancelScope(shield=True)

    def set(self, watch: _Watch, moment: float) -> None:
        """Wake *watch* at a moment, and not before."""
        watch.wake_at = moment
        if moment < watch.alarm_at:  # an earlier alarm looks again when it rings
            self._push(watch, moment)

    def _push(self, watch: _Watch, moment: float) -> None:
        watch.alarm_at = moment
        heapq.heappush(self._heap, (moment, watch))
        if moment < self._asleep_until and self._changed is not None:
            self._changed.set()

    async def run(self) -> None:
        """Ring, until `stop`. Shielded, as supervisors are: a cancelled caller's jobs are seen to their ends, too."""
        with self._scope:
            clock = clock_of_loop()
            while True:
                now = clock()
                while self._heap and self._heap[0][0] <= now:
                    moment, watch = heapq.heappop(self._heap)
                    if watch.alarm_at == moment:
                        watch.alarm_at = _NEVER
                    if not watch.live.parked or watch.live.watch is not watch:
                        continue
                    if watch.wake_at > now:
                        if watch.wake_at < watch.alarm_at:
                            self._push(watch, watch.wake_at)
                        continue
                    watch.wake()
                self._asleep_until = self._heap[0][0] if self._heap else _NEVER
                self._changed = Event()
                with CancelScope(deadline=self._asleep_until):
                    await self._changed.wait()

    def stop(self) -> None:
        """Ring no more."""
        self._scope.cancel()


def _without_secrets() -> InvalidJob:
    problem = "the job brought a secret by value, and a journal keeps no such values"
    return InvalidJob("secrets", "***", problem, "submit the same job again, with its secrets")


def _unanswered(operation: str, patience: float) -> BackendError:
    said = f"the platform did not answer to {operation} within {patience:g} s"
    return BackendError(said, operation=operation, retryable=True)


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
    # What runs there comes first: an attempt that was met may be smaller or larger than the job that met it.
    size = ref.description.get("size") if ref is not None and ref.description is not None else None
    if size:
        return size["cpu_units"] / 1024, size["memory_mib"] / 1024
    return (job.size.vcpu, job.size.memory_gib) if job is not None else (0.0, 0.0)


def _asked(job: Job | None, ref: TaskRef | None, field: str) -> Any:
    """What an attempt was launched with: as the platform keeps it, or as the job says."""
    if ref is not None and ref.description is not None and field in ref.description:
        return ref.description[field]
    return getattr(job, field) if job is not None else None


def _platform(job: Job | None, ref: TaskRef | None) -> str:
    architecture = _asked(job, ref, "architecture")
    return f"linux/{architecture.lower()}" if architecture else ""


def _as_launched(job: Job | None, ref: TaskRef) -> Job | None:
    """Return *job* in the size that an attempt of it has: the next one may have to grow from there."""
    if job is None:
        return None
    vcpu, memory_gib = _size(job, ref)
    return job.with_(vcpu=vcpu, memory_gib=memory_gib) if job.size.memory_gib != memory_gib else job


def _as_last(job: Job | None, page: Page) -> Job | None:
    """Return *job* in the size that its last launch had, as far as its page tells."""
    if job is None:
        return None
    size: Any = None
    if page.launch is not None:
        size = page.launch.description.get("size")
    elif page.attempts:
        size = {"cpu_units": page.attempts[-1].vcpu * 1024, "memory_mib": page.attempts[-1].memory_gib * 1024}
    if not size or size["memory_mib"] == job.size.memory_mib:
        return job
    return job.with_(vcpu=size["cpu_units"] / 1024, memory_gib=size["memory_mib"] / 1024)


def _as_brought(live: _Live, job: Job) -> Job:
    """Return *job*, in its size, as a caller has brought it since it was recovered."""
    if live.brought is None:
        return job
    return live.brought.with_(vcpu=job.size.vcpu, memory_gib=job.size.memory_gib)


def _ref_of(attempt: Attempt, key: str, backend: str) -> TaskRef:
    return TaskRef(
        backend=backend,
        address=attempt.address or "",
        key=key,
        attempt=attempt.number,
        token=attempt.token,
        created_at=attempt.created_at,
    )


def _next_number(live: _Live) -> int:
    return live.attempts[-1].number + 1 if live.attempts else 1


def _attempt_of(page: Page) -> int:
    """Return the number of the attempt that a page is about; 0 if there was none yet."""
    if page.ref is not None:
        return page.ref.attempt
    if page.launch is not None:
        return page.launch.identity.attempt
    return page.attempts[-1].number if page.attempts else 0


def _stands_between(page: Page, attempts: tuple[Attempt, ...]) -> bool:
    """Whether a page says what is so between the last of *attempts* and the next one."""
    nothing = page.launch is None and page.ref is None and page.stop is None and page.ended_at is None
    return nothing and len(page.attempts) == len(attempts) > 0 and page.attempts[-1].token == attempts[-1].token


_NOTHING_UNDER_WAY: Final[dict[str, Any]] = {"launch": None, "launched_at": None, "ref": None, "stop": None}


def _differences(one: Any, other: Any, *, grown: bool = False) -> tuple[str, ...]:
    """Name the fields in which two job descriptions differ; a later attempt may have grown."""
    ignored = {"size"} if grown else set()
    names = (set(one) | set(other)) - ignored
    return tuple(sorted(name for name in names if one.get(name) != other.get(name)))
