"""
Many jobs at once: what starts them, how much room there is for them, and their results as they come.
"""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, Self, cast

import anyio
from anyio import CancelScope, Event

from fargate_runner._errors import FargateRunnerError, InvalidJob, JournalError, RunnerClosed
from fargate_runner._job import Job
from fargate_runner._lifecycle import Attempt, JobFailed, JobResult, Kind, Outcome, Proof

if TYPE_CHECKING:
    from fargate_runner._backend import Launch
    from fargate_runner._runner import Runner, _Live

__all__ = ["Batch", "Launching", "Pump", "Room"]

_PROBE_EVERY: Final = 30.0
"""Seconds after which somebody looks whether others have left room, although none of our own jobs has ended."""

_LAUNCHING: Final = 100
"""Jobs of a batch that are begun and not launched yet. More would only wait in memory for AWS's launch rate."""

_PATIENCE_WITH_EACH_OTHER: Final = 60.0
"""Seconds that jobs which could be launched by one call wait for each other to be ready."""


class Room:
    """
    Whose turn it is to launch where a quota of the platform is used up, shared by all jobs of a runner.

    AWS tells it by refusing launches, and each refusal costs a call. So one asks at a time: when a job of ours has
    ended, when the one before found room, or after a while, for others may have ended some of theirs.
    """

    def __init__(self) -> None:
        self._ours: set[object] = set()
        self._waiting: deque[Event] = deque()
        self.is_short = False
        self.ends = 0
        """How many attempts of ours have ended."""

    def taken(self, by: object) -> None:
        """A job of ours takes room: it runs, or the platform is asked to launch it."""
        self._ours.add(by)

    def granted(self) -> None:
        """The platform had room: there may be some for one more."""
        self._next()

    def not_taken(self, by: object) -> None:
        """The platform had none."""
        self._ours.discard(by)

    def left(self, by: object) -> None:
        """A job of ours takes none any more."""
        if by in self._ours:
            self._ours.discard(by)
            self.ends += 1
            self._next()

    @property
    def is_ours(self) -> bool:
        """Whether jobs of ours take room: their ends will give some."""
        return bool(self._ours)

    def refused(self, ends: int) -> bool:
        """
        The quota is used up. Say whether that is, at least in part, by attempts of ours.

        *ends* is how many of ours had ended when the platform was asked: what has ended since was still in the way.
        """
        self.is_short = True
        return self.is_ours or self.ends != ends

    async def turn(self, *, first: bool = False) -> None:
        """Wait for a turn; who had one and was refused is the *first* to get the next."""
        mine = Event()
        if first:
            self._waiting.appendleft(mine)
        else:
            self._waiting.append(mine)
        try:
            while not mine.is_set():
                with anyio.move_on_after(_PROBE_EVERY):
                    await mine.wait()
                if self._waiting and self._waiting[0] is mine:
                    break
        finally:
            if mine in self._waiting:
                self._waiting.remove(mine)
            elif mine.is_set() and not self._ours:  # nobody would wake the next
                self._next()

    def _next(self) -> None:
        if self._waiting:
            self._waiting.popleft().set()
        else:
            self.is_short = False


class Pump:
    """Starts the jobs of one `Runner.map` as there is room, and keeps the results that nobody has taken yet."""

    def __init__(
        self,
        runner: Runner,
        jobs: Iterable[Job] | AsyncIterable[Job],
        *,
        concurrency: int,
        max_vcpu: float,
        ordered: bool,
        raising: bool,
        max_failures: float,
    ) -> None:
        self._runner = runner
        self._jobs = jobs
        self._concurrency = concurrency
        self._max_vcpu = max_vcpu
        # A reader that is slower than the jobs must not make the batch grow without bound; an ordered batch needs room
        # behind a slow first job.
        self._most_untaken = max(1000, 10 * concurrency)
        self._ordered = ordered
        self._raising = raising
        self._max_failures = max_failures
        self._under_way: dict[int, _Live] = {}
        self._launching: set[int] = set()
        self._vcpu = 0.0
        self._ended: dict[int, JobResult] = {}
        self._skipped: set[int] = set()
        self._taken = 0
        self.started = 0
        self.counts: Counter[Kind] = Counter()
        self.stopped = ""
        self._exhausted = False
        self._closed = False
        self._failure: Exception | None = None
        self._pumping = CancelScope()
        self._changed: Event | None = None

    @property
    def is_done(self) -> bool:
        """Whether no job is under way, and none will be."""
        return self._exhausted and not self._under_way

    @property
    def under_way(self) -> int:
        """How many jobs are."""
        return len(self._under_way)

    async def run(self) -> None:
        """Start jobs as long as there are any, and room."""
        try:
            with self._pumping:
                await self._pump()
        except Exception as exc:  # noqa: BLE001 (the caller's iterable, a job that cannot be: for the caller, at the next result)
            self._fail(exc)
        finally:
            self._exhausted = True
            self._touch()

    async def _pump(self) -> None:
        async with aclosing(_Source(self._jobs)) as source:
            while await self._has_room(0.0):
                job = await source.next()
                if job is _END:
                    return
                vcpu = job.size.vcpu if isinstance(job, Job) else 0.0
                if not await self._has_room(vcpu):
                    return
                self._start(job, vcpu, await self._alike(job, vcpu, source))

    async def _alike(self, job: Job, vcpu: float, source: _Source) -> int:
        """Count the identical jobs that can go out with *job*, itself included. None is taken that has no room."""
        count = 1
        if not source.is_ready or not isinstance(job, Job) or job.key is not None:
            return count
        most = min(self._runner.backend.launches_together, self._concurrency - len(self._under_way))
        while count < most and self._vcpu + vcpu * (count + 1) <= self._max_vcpu:
            following = await source.next()
            if following is _END:
                break
            if following != job:
                source.put_back(following)
                break
            count += 1
        return count

    def _start(self, job: Job, vcpu: float, count: int) -> None:
        if vcpu > self._max_vcpu:
            problem = f"the batch was given max_vcpu={self._max_vcpu:g}"
            error = InvalidJob("vcpu", job.size.vcpu, problem, "give the batch more, or the job less")
            self._refused(job, error)
            return
        together = Launching(count) if count > 1 else None
        for index in range(count):
            try:
                live = self._runner._start(job, together=together, index=index)
            except FargateRunnerError as exc:
                self._refused(job, exc)
                continue
            self._follow(live)

    def _refused(self, job: Job, error: FargateRunnerError) -> None:
        if self._raising or not _is_the_jobs_own(error):
            raise error
        index = self.started
        self.started += 1
        self._keep(index, _never_started(self._runner, job, job.key or "", error))

    def _vcpu_of(self, live: _Live) -> float:
        # A job that was met by its key is the one that was given, whatever it has grown to.
        return live.job.size.vcpu if live.job is not None else 0.0

    def _follow(self, live: _Live) -> None:
        index = self.started
        self.started += 1
        self._under_way[index] = live
        self._vcpu += self._vcpu_of(live)
        if live.finished:
            self.ended(index, live)
            return
        live.on_end += (self, index)
        if not live.accepted:
            self._launching.add(index)

    def launched(self, index: int) -> None:
        """Take note that a job has been launched, or met: it waits for nothing but its end."""
        self._launching.discard(index)
        self._touch()

    def ended(self, index: int, live: _Live) -> None:
        """Take note of a job's end."""
        self._launching.discard(index)
        if self._under_way.pop(index, None) is None:
            return  # the batch left it to others who gave the same key
        self._vcpu -= self._vcpu_of(live)
        error = live.error
        if live.result is not None:
            self._keep(index, live.result)
        elif error is None:
            self._fail(RunnerClosed("the runner was closed before the batch was done"))
        elif self._raising or live.job is None or not _is_the_jobs_own(error):
            self._fail(error)
        else:
            self._keep(index, _never_started(self._runner, live.job, live.key, error))
        self._touch()

    def _keep(self, index: int, result: JobResult) -> None:
        self._ended[index] = result
        self.counts[result.outcome.kind] += 1
        if self._raising and not result.succeeded:
            self._fail(JobFailed(result))
        failures = self.counts.total() - self.counts[Kind.SUCCEEDED]
        if failures > self._max_failures and not self.stopped:
            self.stopped = f"more than max_failures={self._max_failures:g} jobs did not succeed: {failures} of "
            self.stopped += f"{self.counts.total()} that have ended"
            self._leave(self.stopped)
        self._touch()

    async def _has_room(self, vcpu: float) -> bool:
        while not self._closed and not self.stopped:
            fits = self._vcpu + vcpu <= self._max_vcpu or not self._under_way
            free = len(self._under_way) < self._concurrency and len(self._launching) < _LAUNCHING
            if fits and free and len(self._ended) < self._most_untaken:
                return True
            await self._news()
        return False

    def _fail(self, exc: Exception) -> None:
        if self._failure is None and not self._closed:
            self._failure = exc
        self.close("another job of the batch did not succeed")

    def close(self, reason: str) -> None:
        """Start no more jobs, ask those under way to stop, and give out no more results."""
        if not self._closed:
            self._closed = True
            self._leave(reason)

    def _leave(self, reason: str) -> None:
        for index, live in tuple(self._under_way.items()):
            live.leave(reason)
            if live.stop is None:  # others wait for it, too
                del self._under_way[index]
                self._skipped.add(index)
        self._pumping.cancel()
        self._touch()

    def _touch(self) -> None:
        """Wake whoever waits for news of the batch."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def _news(self) -> None:
        if self._changed is None:
            self._changed = Event()
        await self._changed.wait()

    async def settled(self) -> None:
        """Wait until none of the batch's jobs is live. Shielded; each is bounded by its own supervisor."""
        with CancelScope(shield=True):
            while self._under_way:
                await self._news()

    async def next(self) -> JobResult:
        """Take the next result."""
        while True:
            if self._failure is not None:
                await self.settled()
                raise self._failure
            if self._closed:
                raise StopAsyncIteration
            while self._taken in self._skipped:
                self._skipped.discard(self._taken)
                self._taken += 1
            index = self._taken if self._ordered else next(iter(self._ended), -1)
            if index in self._ended:
                result = self._ended.pop(index)
                self._taken += self._ordered
                self._touch()
                return result
            if self.is_done:
                raise StopAsyncIteration
            await self._news()


def _is_the_jobs_own(error: Exception) -> bool:
    """Whether an error says something of one job, and nothing of all the others."""
    return isinstance(error, FargateRunnerError) and not isinstance(error, (JournalError, RunnerClosed))


def _never_started(runner: Runner, job: Job, key: str, error: Exception) -> JobResult:
    """Return the record of a job that no platform ever took."""
    now = runner._utcnow()
    outcome = Outcome(
        kind=Kind.NEVER_STARTED,
        detail=str(error),
        proof=Proof(source="runner", seen_at=now, evidence=type(error).__name__),
        advice=error.fix if isinstance(error, InvalidJob) else "",
    )
    attempt = Attempt(
        number=1,
        token="",
        address=None,
        outcome=outcome,
        vcpu=job.size.vcpu,
        memory_gib=job.size.memory_gib,
        created_at=now,
        ended_at=now,
    )
    return JobResult(key=key, name=job.name, attempts=(attempt,), accepted_at=now, ended_at=now)


class Batch(AsyncIterator[JobResult]):
    """
    The jobs of one `Runner.map`, and their results for ``async for``. One reader.

    Dropping it stops the jobs that are still under way; ``async with`` also waits for their end.
    """

    def __init__(self, pump: Pump) -> None:
        self._pump = pump

    @property
    def started(self) -> int:
        """How many jobs were taken from the iterable and started."""
        return self._pump.started

    @property
    def under_way(self) -> int:
        """How many jobs are started and not over."""
        return self._pump.under_way

    @property
    def counts(self) -> Mapping[Kind, int]:
        """How many jobs have ended, by how they did."""
        return dict(self._pump.counts)

    @property
    def stopped(self) -> str:
        """Why the batch was stopped early (``max_failures``); empty if it was not."""
        return self._pump.stopped

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> JobResult:
        return await self._pump.next()

    async def aclose(self) -> None:
        """Start no more jobs, stop those under way, and wait for their end."""
        self._pump.close("the caller left the loop")
        await self._pump.settled()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if not self._pump.is_done:
            self._pump.close("the caller left the loop")


class _Source:
    """The caller's jobs, one at a time; one that was taken too early is put back."""

    def __init__(self, jobs: Iterable[Job] | AsyncIterable[Job]) -> None:
        self.is_ready = not isinstance(jobs, AsyncIterable)
        """Whether the next job can be had at once."""
        self._steps = aiter(jobs) if isinstance(jobs, AsyncIterable) else _steps(jobs)
        self._back = _END

    async def next(self) -> Job:
        """Return the next job; `_END`: there are no more."""
        if self._back is not _END:
            job, self._back = self._back, _END
            return job
        return await anext(self._steps, _END)

    def put_back(self, job: Job) -> None:
        """Let *job* be the next one."""
        self._back = job

    async def aclose(self) -> None:
        """Take no more."""
        if isinstance(self._steps, AsyncGenerator):
            await self._steps.aclose()


_END: Final = cast("Job", object())


async def _steps(jobs: Iterable[Job]) -> AsyncGenerator[Job]:
    for job in jobs:
        yield job


class Launching:
    """
    Several identical jobs that one call launches: each waits here until all are ready to be launched.

    With a journal, the launch is written on every other's page before it is on the first one's. So the page of the
    first tells whether the call may have been made. It is there before all others: whoever finds no launch on it turns
    it before they launch one of the others by itself, and who comes later to write the launch finds it turned.
    """

    def __init__(self, size: int) -> None:
        self.group = f"~{secrets.token_hex(12)}"
        self.size = size
        self._ready = 0
        self._is_open = self._is_on = False
        self._is_begun = self._in_doubt = False
        self._changed = Event()
        self.is_off = False
        """It does not come about: each is launched by itself."""

    async def ready(
        self,
        index: int,
        begin: Callable[[], Awaitable[None]],
        write: Callable[[], Awaitable[Launch]],
        was_written: Callable[[], Awaitable[bool]],
    ) -> Launch | None:
        """
        Write down the launch of one of them when it is time, and return it when all may be sent. None: it is off.

        *begin* makes the first one's page. *was_written* tells whether that has the launch: whoever reads it after a
        crash goes by it, and so do we if the journal did not tell.
        """
        try:
            if index > 0:
                await self._until(lambda: self._is_open)
                if self.is_off:
                    return None
                launch = await write()
                self._ready += 1
                if self._ready == self.size - 1:
                    self._touch()
                await self._until(lambda: self._is_on or self._in_doubt)
                if self._in_doubt:
                    return launch if await was_written() else None
            else:
                await begin()
                self._is_open = True
                self._touch()
                with anyio.move_on_after(_PATIENCE_WITH_EACH_OTHER):
                    await self._until(lambda: self._ready == self.size - 1)
                if self._ready < self.size - 1:
                    self.call_off()
                if self.is_off:
                    return None
                self._is_begun = True
                launch = await write()
                self._is_on = True
                self._touch()
        except BaseException:
            if index == 0 and self._is_begun:
                self._in_doubt = True
            self.call_off()
            self._touch()
            raise
        return None if self.is_off else launch

    def call_off(self) -> None:
        """One of them is not launched, so that the others are launched each by itself; too late once all are ready."""
        if not self._is_begun:
            self.is_off = True
            self._touch()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition() and not self.is_off:
            await self._changed.wait()

    def _touch(self) -> None:
        self._changed.set()
        self._changed = Event()
