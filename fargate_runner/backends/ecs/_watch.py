"""
One table of all tasks that somebody waits for, and one poller that looks at them, a hundred at a time.

Nothing is polled that nobody waits for. What replies tell on the way is taken in by `saw`, what events tell by `told`,
and can only make it faster: polling decides. While events come in time it is done seldom; as soon as it finds an end
that no event has told, it is done as often as ever.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Self

import anyio
import attrs

from fargate_runner._backend import clock_of_loop
from fargate_runner._errors import BackendError
from fargate_runner._lifecycle import Cause, Phase, Proof, Snapshot
from fargate_runner.backends.ecs import _wire
from fargate_runner.backends.ecs._api import Api, ApiError, Trouble

__all__ = ["Cadence", "Watch"]

_BATCH: Final = 100
"""Tasks that one DescribeTasks call takes (Amazon ECS API Reference)."""
_KEPT: Final = 55 * 60.0
"""Seconds for which ECS surely still describes a task that has stopped; it promises an hour."""
_CLOCKS_DIFFER: Final = timedelta(seconds=60)
"""How far AWS's clock and ours may be apart."""
_UNHURRIED: Final = 5.0
"""How much less often a task that does not run yet is looked at, where events are expected and none has told yet."""
_LONG_AGO: Final = float("-inf")
_IN_TIME: Final = 3
"""Events in time, one after another, after which they are relied on to come; twice as many after each failure."""
_IN_TIME_AT_MOST: Final = 100
"""So many at most; and after so many, failures of before are forgotten."""


@attrs.frozen(kw_only=True)
class Cadence:
    """How often tasks are looked at, in seconds. For tests, and for accounts whose read quota was raised."""

    first: float = 4.0
    """From a launch to the first look: nothing on Fargate starts faster."""
    period: float = 2.0
    """Between two looks at a task, where there are few."""
    gather: float = 0.05
    """How long the first look at a task that was met waits for others; ten times as long if more and more come."""
    reads_per_second: float = 5.0
    """Looks, of a hundred tasks each, where there are many: a quarter of what AWS gives an account."""
    reconcile: float = 30.0
    """Between two looks at a task, while events tell of it: each might be the one that is lost."""
    confirm: float = 0.7
    """From one look to the next that an event asks for. The ends between them share it."""
    patience: float = 5.0
    """How long the event of an end may be behind a look; after that, events do not count as coming in time."""
    grace: float = 300.0
    """How long a new task may be missing: ECS is eventually consistent."""
    doubt: float = 30.0
    """How long a task that was there has to be missing, in three looks at least, until it counts as vanished."""
    stuck_with_exit_code: float = 600.0
    """How long a task may wind down after its own container has ended."""
    stuck: float = 900.0
    """How long a task that was told to end may tell nothing new; four times as long it may tell anything at all."""

    @classmethod
    def quick(cls) -> Self:
        """Return one for a platform that takes no time: a fake one."""
        return cls(first=0.02, period=0.05, gather=0.005, reads_per_second=100.0, reconcile=0.5, confirm=0.02)


@attrs.define
class _Hint:
    """What an event told of a task and no look has confirmed."""

    version: int
    gist: Hashable
    judge: Callable[[bool], None]
    looks: int = 0
    """How many looks showed less."""


class _Entry:
    """What is known of one task."""

    __slots__ = (
        "alive_at",
        "alone",
        "arn",
        "asking",
        "changed",
        "container",
        "due",
        "error",
        "errors",
        "exited_at",
        "hint",
        "known_from",
        "leaving_since",
        "looked_at",
        "met",
        "missing",
        "missing_since",
        "moved_at",
        "older",
        "older_since",
        "over_since",
        "queued",
        "snapshot",
        "statuses",
        "version",
        "waiting",
        "watched_after",
        "watched_errors",
        "watcher",
    )

    def __init__(self, arn: str, container: str, known_from: float, due: float, *, met: bool) -> None:
        self.arn = arn
        self.met = met
        """It was launched before this process knew of it."""
        self.container = container
        self.known_from = known_from
        """When it was launched, in the loop's seconds; it may be missing for a while from then on."""
        self.due = due
        self.queued: float | None = None
        """For when it is queued to be looked at."""
        self.snapshot: Snapshot | None = None
        self.version = 0
        self.statuses = ""
        self.looked_at = _LONG_AGO
        self.waiting = 0
        self.missing = 0
        self.missing_since = _LONG_AGO
        self.asking = False
        """A look at it is under way."""
        self.alone = False
        """ECS took offence at its address: it is asked for by itself, and seldom."""
        self.moved_at = known_from
        """When ECS last told anything new of it."""
        self.older = 0
        """How often ECS has told less than was known, one look after another."""
        self.older_since = _LONG_AGO
        self.alive_at = _LONG_AGO
        """When it was last seen before its end."""
        self.leaving_since: float | None = None
        """Since when it is known to be on its way out."""
        self.over_since: float | None = None
        """Since when its own container is known to be over."""
        self.exited_at: float | None = None
        self.error: BackendError | None = None
        self.errors = 0
        self.hint: _Hint | None = None
        self.changed: anyio.Event | None = None
        self.watcher: Callable[[Snapshot | None], None] | None = None
        """Who is called once more is known than `watched_after`, or there are more errors than `watched_errors`."""
        self.watched_after: Snapshot | None = None
        self.watched_errors = 0

    @property
    def is_open(self) -> bool:
        return self.waiting > 0 and not self.asking and (self.snapshot is None or not self.snapshot.ended)

    def tell(self) -> None:
        if self.changed is not None:
            self.changed.set()
            self.changed = None
        if self.watcher is not None and self.has_news(self.watched_after, self.watched_errors):
            call, self.watcher, self.watched_after = self.watcher, None, None
            self.waiting -= 1
            known = self.snapshot
            # An end is for `observe`, which sees to more than telling it.
            call(None if self.errors != self.watched_errors or known is None or known.ended else known)

    def has_news(self, after: Snapshot | None, errors: int) -> bool:
        """Whether more is known than *after*, or something went wrong since."""
        known = self.snapshot
        if known is None:
            return False
        return known.ended or (known is not after and known != after) or self.errors != errors

    async def news(self) -> None:
        if self.changed is None:
            self.changed = anyio.Event()
        await self.changed.wait()


class Watch:
    """Everything that is awaited in one cluster. `run` polls; `observe` waits for what it finds."""

    def __init__(
        self,
        api: Api,
        cluster: str,
        *,
        utcnow: Callable[[], datetime],
        cadence: Cadence,
        met: Callable[[Mapping[str, Any]], object] = lambda _: None,
    ) -> None:
        """*met* is told of each task that a look describes."""
        self._api = api
        self._cluster = cluster
        self._utcnow = utcnow
        self._now = clock_of_loop()
        self._cadence = cadence
        self._met = met
        self._entries: dict[str, _Entry] = {}
        self._queue: list[tuple[float, str, _Entry]] = []
        """Whom to look at, by when that is due: a heap. Who is put off, or not awaited any more, stays until then."""
        self._asking = 0
        """How many are being looked at."""
        self._wake = anyio.Event()
        self._asleep_until = self._looked_at = self._stood_still_at = float("-inf")
        self._offset = utcnow().timestamp() - self._now()
        """From the clock of the loop to the one on the wall."""
        self._failed = False
        """Whether events have ever failed to come in time."""
        self._in_time = 0
        """How many events came in time, one after another."""
        self._in_time_wanted = _IN_TIME
        self._untold: dict[str, float] = {}
        """The ends that a look has found and no event has told: until when one has to, the earliest first."""
        self.expects_events = False
        """Whether there is a queue that ought to tell them."""
        self.relies_on_events = False
        """Whether events come in time, so that looks may be seldom."""

    # ---- what others ask and tell ----------------------------------------------------------------------------------

    async def observe(
        self,
        arn: str,
        container: str,
        *,
        after: Snapshot | None,
        submitted_at: float | None = None,
        created_at: datetime | None = None,
    ) -> Snapshot:
        """
        Return as soon as more is known of the task than *after*; see `Backend.observe`.

        *submitted_at* is when this process launched it, *created_at* what a record says: a young task may be missing
        for a while. An address that is no task of this cluster has vanished, and costs no call.

        :raises BackendError: AWS could not be asked, for as long as its door has patience
        """
        if not self._is_ours(arn):
            return _wire.missing(arn, seen_at=self._utcnow())
        entry = self._entry(arn, container, submitted_at, created_at)
        if after is not None and (entry.snapshot is None or entry.snapshot.phase < after.phase):
            entry.snapshot = after  # known from elsewhere, and it does not go back
        errors = entry.errors
        entry.waiting += 1
        try:
            if after is None and not self._is_fresh(entry):
                if not entry.alone:
                    entry.due = min(entry.due, self._now() + self._cadence.gather)
                self._rouse(entry)
                looked_at = entry.looked_at
                while entry.looked_at == looked_at and not _ended(entry):
                    await entry.news()
                    _raise_new(entry, errors)
            while entry.snapshot is None or (entry.snapshot == after and not entry.snapshot.ended):
                self._rouse(entry)
                await entry.news()
                _raise_new(entry, errors)
            await anyio.lowlevel.checkpoint()
            return entry.snapshot
        finally:
            entry.waiting -= 1

    def watch(self, arn: str, after: Snapshot, tell: Callable[[Snapshot | None], None]) -> bool:
        """Have *tell* called once when there is news of a task that is known here; see `Backend.watch`."""
        entry = self._entries.get(arn)
        if entry is None or entry.watcher is not None or entry.snapshot is None:
            return False
        if entry.snapshot.phase < after.phase:
            entry.snapshot = after  # known from elsewhere, and it does not go back
        if entry.has_news(after, entry.errors):
            return False
        entry.watcher, entry.watched_after, entry.watched_errors = tell, after, entry.errors
        entry.waiting += 1
        self._rouse(entry)
        return True

    def unwatch(self, arn: str, tell: Callable[[Snapshot | None], None]) -> None:
        """Call off `watch`."""
        entry = self._entries.get(arn)
        if entry is not None and entry.watcher is tell:
            entry.watcher = entry.watched_after = None
            entry.waiting -= 1

    def saw(self, task: Mapping[str, Any], source: str, *, asked_at: float | None = None) -> None:
        """
        Take in what a reply tells of a task. Old news and mere outlines change nothing.

        The reply may have lain about, if this process stood still: it tells how things were when it was *asked_at*.
        """
        asked_at = self._now() if asked_at is None else asked_at
        arn = _wire.task_arn(task)
        if not self._is_ours(arn):
            return
        submitted_at = asked_at if source == "run-task" else None
        entry = self._entry(arn, _wire.own_container(task), submitted_at, _wire.created_at(task))
        if _wire.is_stopped(task) and "containers" not in task:
            entry.due = float("-inf")  # a replay for an old token: that it is over, and nothing else
        elif entry.snapshot is None or _wire.version(task) > entry.version:
            entry.missing = 0
            self._take(entry, task, source, asked_at)
        self._rouse(entry)

    def told(self, task: Mapping[str, Any], *, believed: bool, judge: Callable[[bool], None]) -> None:
        """
        Take in what an event tells of a task; of one that is not known here, nothing.

        What is not *believed*, or is an end that does not tell how, is news only once a look has confirmed it. *judge*
        is then told whether what the event said was so.
        """
        arn, version = _wire.task_arn(task), _wire.version(task)
        over = _wire.is_stopped(task)
        if over and self._untold.pop(arn, None) is not None:
            self._count_in_time()
        entry = self._entries.get(arn)
        if entry is None or _ended(entry) or version <= entry.version:
            return
        if believed and self._is_whole(entry, task):
            entry.missing, entry.hint = 0, None
            self._take(entry, task, "event", self._now())
            self._count_in_time()
            return
        entry.hint = _Hint(version, _wire.gist(task), judge)
        pause = self._cadence.confirm if over else self._cadence.period
        entry.due = min(entry.due, max(self._now(), self._looked_at + pause))
        self._rouse(entry)

    def is_news(self, task: Mapping[str, Any]) -> bool:
        """Whether what is told of a task is of a later version than what is known of it here."""
        entry = self._entries.get(_wire.task_arn(task))
        return entry is not None and not _ended(entry) and _wire.version(task) > entry.version

    def events_fail(self) -> None:
        """Rely on events no longer, until they have shown again that they come in time."""
        self._in_time, self._failed = 0, True
        if not self.relies_on_events:
            return
        self.relies_on_events = False
        self._in_time_wanted = min(2 * self._in_time_wanted, _IN_TIME_AT_MOST)
        now, awaited = self._now(), [entry for entry in self._entries.values() if entry.is_open]
        pause = self._period() / max(1, len(awaited))
        for number, entry in enumerate(entry for entry in awaited if not entry.alone):
            entry.due = min(entry.due, now + number * pause)  # one after another, not all at once
            self._rouse(entry)

    def knows(self, arn: str) -> bool:
        """Whether somebody here launched, found or awaited the task."""
        return arn in self._entries

    def _is_whole(self, entry: _Entry, task: Mapping[str, Any]) -> bool:
        """Whether an event leaves nothing to ask: one of an end has to tell the exit code."""
        if not _wire.is_stopped(task):
            return True
        end = _wire.snapshot(task, entry.container, source="event", seen_at=self._utcnow(), before=entry.snapshot)
        return end.exit_code is not None

    def _count_in_time(self) -> None:
        self._in_time += 1
        self.relies_on_events |= self._in_time >= self._in_time_wanted
        if self._in_time >= _IN_TIME_AT_MOST:
            self._in_time_wanted = _IN_TIME

    def has_ended(self, arn: str) -> bool:
        """Whether the end of a task has been seen."""
        entry = self._entries.get(arn)
        return entry is not None and _ended(entry)

    def exited_at(self, arn: str) -> float | None:
        """Return when the task's own container was first seen to be over, in the loop's seconds; None: not yet."""
        entry = self._entries.get(arn)
        return entry.exited_at if entry is not None else None

    def over(self, arn: str) -> tuple[float, float] | None:
        """Return when the task's own container, and when the task, was first seen to be over; None: not yet."""
        entry = self._entries.get(arn)
        if entry is None or entry.exited_at is None or not _ended(entry):
            return None
        return entry.exited_at, max(entry.exited_at, entry.moved_at)

    def forget(self, arn: str) -> None:
        """Drop what is known of a task."""
        self._entries.pop(arn, None)

    def _is_ours(self, arn: str) -> bool:
        # Short ARNs of before 2018 do not name their cluster.
        cluster = arn.partition(":task/")[2].rpartition("/")[0]
        return _wire.is_task_arn(arn) and cluster in {"", _wire.cluster_name(self._cluster)}

    def _entry(self, arn: str, container: str, submitted_at: float | None, created_at: datetime | None) -> _Entry:
        entry = self._entries.get(arn)
        if entry is None:
            now = self._now()
            age = None
            if created_at is not None:
                age = max(0.0, ((self._api.now() or self._utcnow()) - created_at).total_seconds())
            if submitted_at is not None:
                first = self._cadence.reconcile if self.relies_on_events else self._cadence.first
                # It may be missing from when AWS took the launch in, and that may have been on its way for long.
                taken_in = submitted_at if age is None else now - age
                known_from, due = max(submitted_at, taken_in), submitted_at + first
            elif age is not None:
                known_from, due = now - age, now + self._cadence.gather
            else:
                known_from, due = now - self._cadence.grace, now + self._cadence.gather
            entry = self._entries[arn] = _Entry(arn, container, known_from, due, met=submitted_at is None)
        elif submitted_at is not None:
            entry.known_from = max(entry.known_from, submitted_at)  # it was found before it was launched again
        if not entry.container:
            entry.container = container
        return entry

    def _is_fresh(self, entry: _Entry) -> bool:
        if entry.snapshot is None:
            return False
        return entry.snapshot.ended or self._now() - entry.looked_at <= self._cadence.period

    def _rouse(self, entry: _Entry) -> None:
        """Have it looked at when it is due. Called whenever that has changed, or somebody begins to wait for it."""
        if not entry.is_open:
            return
        if entry.queued != entry.due:
            entry.queued = entry.due
            heapq.heappush(self._queue, (entry.due, entry.arn, entry))
        if entry.due < self._asleep_until:
            self._wake.set()

    def _first(self) -> _Entry | None:
        """Return who is due first."""
        while self._queue:
            due, _, entry = self._queue[0]
            if entry.queued == due == entry.due and entry.is_open:
                return entry
            self._pop()
        return None

    def _pop(self) -> None:
        due, _, entry = heapq.heappop(self._queue)
        if entry.queued == due:
            entry.queued = None

    def _due_until(self, moment: float) -> list[_Entry]:
        """Take those of the queue that one call looks at."""
        batch: list[_Entry] = []
        apart: list[_Entry] = []
        while len(batch) < _BATCH and (entry := self._first()) is not None and entry.due <= moment:
            self._pop()
            (apart if entry.alone else batch).append(entry)
        for entry in apart:
            self._rouse(entry)
        return batch

    # ---- the poller ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look at what is awaited, for ever. Run by whoever owns the watch."""
        # A look that hangs, or that AWS answers late, must not keep the others from theirs.
        async with anyio.create_task_group() as looks:
            while True:
                now = self._now()
                untold = next(iter(self._untold.values()), float("inf"))
                if untold <= now:
                    self._untold.clear()
                    self.events_fail()
                    continue
                first = self._first()
                if first is None or first.due > now:
                    await self._until(min(untold, first.due if first is not None else float("inf")))
                    continue
                period = self._period()
                if first.alone:
                    self._pop()
                    batch = [first]
                else:
                    # A call that is made anyway takes along what is due soon.
                    batch = self._due_until(now + period / 2)
                    if pause := self._others_are_coming(batch, now):
                        for entry in batch:
                            self._rouse(entry)
                        await anyio.sleep(pause)
                        continue
                for entry in batch:
                    entry.asking = True
                self._looked_at = now
                self._asking += len(batch)
                looks.start_soon(self._look_at, batch, now, period)
                await anyio.lowlevel.checkpoint()

    def _others_are_coming(self, soon: Sequence[_Entry], now: float) -> float:
        """
        Return for how long a call that is not full should wait for more: tasks are being met, one after another.

        A runner that goes on with a thousand jobs asks for each of them at almost the same time.
        """
        if len(soon) >= _BATCH:
            return 0.0
        met = [entry.due for entry in soon if entry.looked_at == float("-inf") and entry.met]
        until = min(max(met, default=now), soon[0].due + 9 * self._cadence.gather)
        return max(0.0, until - now)

    def _period(self) -> float:
        calls = -(-(len(self._queue) + self._asking) // _BATCH)
        often = self._cadence.reconcile if self.relies_on_events else self._cadence.period
        return max(often, calls / self._cadence.reads_per_second)

    async def _until(self, moment: float) -> None:
        """Wait for a moment, or for somebody who cannot wait so long."""
        self._wake = anyio.Event()
        self._asleep_until = moment
        with anyio.CancelScope(deadline=moment):
            await self._wake.wait()
        self._asleep_until = float("-inf")

    async def _look_at(self, batch: Sequence[_Entry], now: float, period: float) -> None:
        may_wait = self.expects_events and not self.relies_on_events and not self._failed
        for entry in batch:
            entry.due = now + period
            if may_wait and entry.hint is None and entry.snapshot is not None and entry.snapshot.phase is Phase.PENDING:
                entry.due = now + period * _UNHURRIED
        try:
            await self._look(batch)
        finally:
            now = self._now()
            self._asking -= len(batch)
            for entry in batch:
                entry.asking = False
                entry.due = max(entry.due, now)
                self._rouse(entry)
            self._wake.set()

    async def _look(self, batch: Sequence[_Entry]) -> None:
        arns, asked_at = [entry.arn for entry in batch], self._now()
        try:
            reply = await self._api.call("ecs.DescribeTasks", cluster=self._cluster, tasks=arns)
            self._check_standing()
        except ApiError as exc:
            if exc.trouble is Trouble.INVALID and len(batch) > 1:
                # One address that ECS takes offence at must not blind us to the others.
                await self._look(batch[: len(batch) // 2])
                await self._look(batch[len(batch) // 2 :])
                return
            if exc.trouble is Trouble.INVALID:
                (entry,) = batch
                entry.alone = True
                entry.due += 9 * self._cadence.period
            self._fail(batch, exc)
            return
        except BackendError as exc:
            self._fail(batch, exc)
            return
        described = {_wire.task_arn(task): task for task in reply.get("tasks") or ()}
        faults = _faults(reply)
        for entry in batch:
            task = described.get(entry.arn)
            if task is None:
                fault = faults.get(entry.arn) or faults.get("")
                if fault is None:
                    self._miss(entry, asked_at)
                else:
                    # Nothing is known of the task: what is not described for another reason is not missing.
                    said = f"ECS did not describe the task {entry.arn}: {fault}"
                    self._fail([entry], BackendError(said, operation="DescribeTasks", code=fault, retryable=True))
                continue
            entry.missing = 0
            entry.alone = False
            entry.looked_at = asked_at
            if entry.hint is None and _is_the_same(entry, task):
                entry.older = 0
                entry.alive_at = asked_at
                if entry.changed is not None:  # somebody waits for a look, whatever it shows
                    entry.tell()
                continue
            if entry.arn in self._entries:  # it may have been forgotten meanwhile
                self._met(task)
            told = self._confirm(entry, task) or _ended(entry)
            if self._is_news(entry, _wire.version(task)):
                self._take(entry, task, "describe", asked_at)
                if self._in_time and _ended(entry) and not told:
                    self._untold[entry.arn] = self._now() + self._cadence.patience
            entry.tell()

    def _confirm(self, entry: _Entry, task: Mapping[str, Any]) -> bool:
        """Compare a look with what an event told before it; return whether one told as much."""
        hint, version = entry.hint, _wire.version(task)
        if hint is None:
            return False
        if version < hint.version:
            hint.looks += 1  # ECS is eventually consistent; but an event may be a lie, too, so each look has time
            entry.due = min(entry.due, self._now() + hint.looks * self._cadence.period)
            return False
        entry.hint = None
        if version > hint.version:
            return False
        told = hint.gist == _wire.gist(task)
        hint.judge(told)
        if told:
            self._count_in_time()
        return told

    def _is_news(self, entry: _Entry, version: int) -> bool:
        """Whether a look of this version counts: an older one does if it stays, for events may tell anything."""
        now = self._now()
        if version >= entry.version:
            entry.older = 0
            return True
        entry.older += 1
        if entry.older == 1:
            entry.older_since = now
        return entry.older >= 3 and now - entry.older_since >= self._cadence.doubt

    def _fail(self, batch: Sequence[_Entry], exc: BackendError) -> None:
        for entry in batch:
            entry.error = exc
            entry.errors += 1
            entry.tell()

    def _take(self, entry: _Entry, task: Mapping[str, Any], source: str, asked_at: float) -> None:
        seen_at, before = self._utcnow(), entry.snapshot
        if before is not None and before.ended:
            return
        if _is_the_same(entry, task):
            entry.alive_at = entry.looked_at = asked_at
            return
        snapshot = _wire.snapshot(task, entry.container, source=source, seen_at=seen_at, before=before)
        version = _wire.version(task)
        if version > entry.version or before is None or snapshot.phase is not before.phase:
            entry.moved_at = self._now()
        entry.version = version
        entry.statuses = sys.intern(_wire.statuses(task))
        self._put(entry, self._bounded(entry, snapshot, seen_at), asked_at)

    def _put(self, entry: _Entry, snapshot: Snapshot, asked_at: float) -> None:
        now = self._now()
        entry.looked_at = asked_at
        if entry.exited_at is None and (snapshot.ended or snapshot.exit_code is not None):
            # Long ago, if AWS's clock and ours agree on that with room to spare; else it is as if it were just now.
            over_at = snapshot.ended_at
            age = (self._utcnow() - over_at).total_seconds() if over_at is not None and snapshot.ended else 0.0
            entry.exited_at = max(now - max(0.0, age - _CLOCKS_DIFFER.total_seconds()), entry.alive_at)
        elif entry.exited_at is None:
            entry.alive_at = asked_at
        entry.snapshot = snapshot if snapshot != entry.snapshot else entry.snapshot
        entry.tell()

    def _bounded(self, entry: _Entry, snapshot: Snapshot, seen_at: datetime) -> Snapshot:
        """End what ECS leaves on its way out for too long: an answer that never comes must not be waited for."""
        if snapshot.phase is not Phase.STOPPING:
            return snapshot
        now = self._now()
        known = snapshot.exit_code is not None
        if entry.leaving_since is None:
            entry.leaving_since = now
        if known and entry.over_since is None:
            entry.over_since = now
        since = entry.over_since if entry.over_since is not None else entry.moved_at
        lasted = now - since
        if lasted < (self._cadence.stuck_with_exit_code if known else self._cadence.stuck):
            lasted = now - entry.leaving_since
            if lasted < 4 * self._cadence.stuck:
                return snapshot
        said = f"ECS has left it on its way out for {lasted:.0f} s"
        evidence = f"{said}; the job's own container has ended" if known else said
        return attrs.evolve(
            snapshot,
            phase=Phase.ENDED,
            # An exit code alone is no proof: a container that is told to stop may well say 0, with its work undone.
            cause=(snapshot.cause if known else None) or Cause.UNRECOGNISED,
            reason=snapshot.reason or said,
            ended_at=snapshot.ended_at or seen_at,
            proof=Proof(source="describe", seen_at=seen_at, evidence=evidence),
        )

    def _miss(self, entry: _Entry, now: float) -> None:
        """Take note that a task was not described, *now*: when ECS was asked, for the answer may have been late."""
        entry.missing += 1
        if entry.missing == 1:
            entry.missing_since = now
        young = now - entry.known_from < self._cadence.grace
        doubtful = entry.missing < 3 or now - entry.missing_since < self._cadence.doubt
        if young or doubtful:
            # Three looks are due within the time of doubt.
            pause = min(2.0**entry.missing, 30.0) if young else self._cadence.doubt / 2
            entry.due = self._now() + max(pause * min(1.0, self._cadence.period / 2), 0.0)
            if entry.snapshot is None and young:
                entry.snapshot = Snapshot(phase=Phase.PENDING)
            entry.looked_at = now
            entry.tell()
            return
        # One that we have never seen is for the caller to judge, who knows whether it was new.
        seen = entry.alive_at
        unwatched = seen != _LONG_AGO and (seen < self._stood_still_at or now - seen >= _KEPT)
        gone = _wire.missing(entry.arn, seen_at=self._utcnow(), last=entry.snapshot, unwatched=unwatched)
        self._put(entry, gone, now)

    def _check_standing(self) -> None:
        """Notice that this machine stood still: its clock of the loop may have stood still as well, the other not."""
        now = self._now()
        offset = self._utcnow().timestamp() - now
        if offset - self._offset >= _KEPT:
            self._stood_still_at = now
        self._offset = offset


def _faults(reply: Mapping[str, Any]) -> dict[str, str]:
    """Return why tasks were not described, by ARN, where it is not that they are missing; "" stands for all others."""
    told = {failure.get("arn") or "": failure.get("reason") or "" for failure in reply.get("failures") or ()}
    return {arn: reason for arn, reason in told.items() if reason and reason.upper() != "MISSING"}


def _is_the_same(entry: _Entry, task: Mapping[str, Any]) -> bool:
    """Whether ECS tells what it told before of a task that runs: each change of it has a version of its own."""
    if entry.snapshot is None or entry.snapshot.phase >= Phase.STOPPING:
        return False
    version = _wire.version(task)
    return 0 < version == entry.version and _wire.statuses(task) == entry.statuses


def _ended(entry: _Entry) -> bool:
    return entry.snapshot is not None and entry.snapshot.ended


def _raise_new(entry: _Entry, errors: int) -> None:
    if entry.errors != errors and entry.error is not None and not _ended(entry):
        raise entry.error.with_traceback(None)  # it is raised for all who wait, and keeps none of them alive
