"""
How far many jobs have come: counted from telemetry, and shown to people.

::

    async with Progress(total=len(jobs)) as progress, Runner(backend, observers=[progress]) as runner:
        async for result in runner.map(jobs):
            ...

`Tally` counts: it takes events, and says at any time how the jobs stand (`Standing`). `Progress` is an observer that
shows it: live on a terminal, as plain lines elsewhere, or not at all; and it tells an application that shows its own.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final, Literal, Protocol, Self, TextIO, cast, get_args

import anyio
import anyio.to_thread
import attrs
from anyio import AsyncContextManagerMixin, CancelScope

from fargate_runner._lifecycle import JobResult, Kind, Phase
from fargate_runner.cli._screen import Stream
from fargate_runner.cli._terminal import clean, fence
from fargate_runner.reports.cost import LIST_PRICES, Cost, Prices, cost, tariff_of
from fargate_runner.telemetry import (
    AttemptEnded,
    AttemptLaunched,
    AttemptSeen,
    Event,
    JobAccepted,
    JobDetached,
    JobEnded,
    JobQueued,
    JobRefused,
    JobRemembered,
    PhaseReached,
    RetryScheduled,
    StopRequested,
)

__all__ = ["Failure", "Mode", "Progress", "Standing", "Tally"]

Mode = Literal["auto", "live", "plain", "none"]

ENVIRONMENT: Final = "FARGATE_RUNNER_PROGRESS"

# ---- counting --------------------------------------------------------------------------------------------------------

_QUEUED, _STARTING, _RUNNING, _STOPPING = range(4)
_STAGE: Final = {
    Phase.PENDING: _STARTING,
    Phase.STARTING: _STARTING,
    Phase.RUNNING: _RUNNING,
    Phase.STOPPING: _STOPPING,
    Phase.ENDED: _STOPPING,
}
_FAILURES_KEPT: Final = 10
_TEXT_KEPT: Final = 1000
"""Characters of a reason or a line that a `Failure` keeps."""
_ENDS_KEPT: Final = 256
_LEAST_WINDOW: Final = 60.0


@attrs.frozen(kw_only=True)
class Failure:
    """A job that did not succeed. Its texts are somebody else's: clean them before a terminal or a page shows them."""

    key: str
    job: str
    """The job's name."""
    kind: Kind | None
    """None: it was refused, and nothing of it ran."""
    reason: str
    last_line: str = ""
    """Of its output."""


@attrs.frozen(kw_only=True)
class Standing:
    """How the jobs stand at one moment."""

    total: int | None
    """How many there will be, if anybody said so."""
    queued: int
    """Not launched: still to be taken (if the total is known), being launched, or waiting for a retry or for room."""
    starting: int
    running: int
    stopping: int
    """On their way out, their end not yet recorded."""
    done: int
    """Those with a final record, refused ones included."""
    outcomes: Mapping[Kind, int]
    """How many of them ended how; kinds that did not happen are left out."""
    remembered: int
    """How many of the done had their record from an earlier run, in a journal."""
    refused: int
    """How many of the done were never accepted."""
    detached: int
    """Let go while they ran: they go on without us."""
    retries: int
    elapsed: timedelta
    """Since the first event."""
    rate: float | None
    """Ends per minute, lately; None until there was one."""
    eta: timedelta | None
    """How long it will take from here, roughly; None while that cannot be told."""
    cost: Cost | None
    """What the attempts have cost so far at most, those under way included; None if nothing is billed."""
    failures: tuple[Failure, ...]
    """The last ten, the oldest first."""

    @property
    def succeeded(self) -> int:
        """How many have provably done their work."""
        return self.outcomes.get(Kind.SUCCEEDED, 0)

    @property
    def failed(self) -> int:
        """How many are done, and have not succeeded."""
        return self.done - self.succeeded


class _UnderWay:
    """A job that is not done."""

    __slots__ = ("billed", "hourly", "placed_at", "since", "spot", "stage", "unpriced")

    def __init__(self, since: float) -> None:
        self.since = since
        self.stage = _QUEUED
        self.hourly: float | None = None
        """Of its attempt under way; None while there is none that is billed."""
        self.placed_at = 0.0
        self.billed = 0.0
        """What its earlier attempts cost, about; the record will tell."""
        self.spot = 0
        self.unpriced = 0


class Tally:
    """
    Counts jobs from their events. An observer that only counts: no output, no clock but *clock*, the same work for
    each event however many jobs there are, and a few hundred bytes for each job under way.

    *total* is how many jobs there will be, if that is known; it may be set later. *prices* are for the cost.
    """

    def __init__(
        self,
        total: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        prices: Prices = LIST_PRICES,
        on_failure: Callable[[Failure], None] | None = None,
    ) -> None:
        if total is not None and (isinstance(total, bool) or not isinstance(total, int) or total < 0):
            raise ValueError(f"total={total!r}: use the number of jobs, or None if nobody knows")
        self.total = total
        self._clock = clock
        self._prices = prices
        self._on_failure = on_failure
        self._under_way: dict[str, _UnderWay] = {}
        self._stages = [0, 0, 0, 0]
        self._taken = 0
        self._outcomes: dict[Kind, int] = {}
        self._remembered = self._refused = self._detached = self._retries = 0
        self._failures: deque[Failure] = deque(maxlen=_FAILURES_KEPT)
        # Time: when it began, sums over jobs, and the last ends.
        self._began: float | None = None
        self._since_sum = 0.0
        self._ended = 0
        self._ended_sum = self._ended_squares = 0.0
        self._most = 0
        self._ends: deque[float] = deque(maxlen=_ENDS_KEPT)
        # Money: of what is done; what attempts under way cost an hour, and when they began, as sums.
        self._cost = Cost()
        self._is_billed = False
        self._hourly = 0.0
        self._hourly_since = 0.0
        self._live = 0
        self._live_billed = 0.0
        self._live_spot = 0
        self._live_unpriced = 0
        self._heed: dict[type[Event], Callable[[Any], None]] = {
            JobQueued: self._take,
            JobAccepted: self._take,
            JobRefused: self._refuse,
            JobRemembered: self._remember,
            JobDetached: self._detach,
            JobEnded: self._end,
            AttemptLaunched: self._launch,
            AttemptSeen: self._see,
            AttemptEnded: self._end_attempt,
            PhaseReached: self._reach,
            StopRequested: self._stop,
            RetryScheduled: self._retry,
        }

    def __call__(self, event: Event) -> None:
        """Take note of *event*."""
        heed = self._heed.get(type(event))
        if heed is not None:
            heed(event)

    def standing(self) -> Standing:
        """Say how the jobs stand now."""
        now = self._clock()
        queued, starting, running, stopping = self._stages
        total = max(self.total, self._taken) if self.total is not None else None
        return Standing(
            total=total,
            queued=queued + (total - self._taken if total is not None else 0),
            starting=starting,
            running=running,
            stopping=stopping,
            done=self._done,
            outcomes=dict(self._outcomes),
            remembered=self._remembered,
            refused=self._refused,
            detached=self._detached,
            retries=self._retries,
            elapsed=timedelta(seconds=now - self._began if self._began is not None else 0.0),
            rate=self._rate(now),
            eta=self._eta(now, total),
            cost=self._cost_so_far(now),
            failures=tuple(self._failures),
        )

    # ---- what the events do ----

    @property
    def _done(self) -> int:
        return self._ended + self._remembered + self._refused

    def _take(self, event: Event) -> None:
        if event.key in self._under_way:
            return
        now = self._clock()
        if self._began is None:
            self._began = now
        self._under_way[event.key] = _UnderWay(now)
        self._taken += 1
        self._stages[_QUEUED] += 1
        self._since_sum += now
        self._most = max(self._most, len(self._under_way))

    def _leave(self, event: Event) -> _UnderWay:
        """Take a job out of those under way."""
        if event.key not in self._under_way:
            self._take(event)
        job = self._under_way.pop(event.key)
        self._stages[job.stage] -= 1
        self._since_sum -= job.since
        return job

    def _move(self, job: _UnderWay, stage: int) -> None:
        self._stages[job.stage] -= 1
        self._stages[stage] += 1
        job.stage = stage

    def _launch(self, event: AttemptLaunched) -> None:
        if (job := self._under_way.get(event.key)) is not None:
            self._move(job, _STARTING)

    def _reach(self, event: PhaseReached) -> None:
        job, stage = self._under_way.get(event.key), _STAGE[event.phase]
        if job is not None and stage > job.stage:
            self._move(job, stage)

    def _stop(self, event: StopRequested) -> None:
        if (job := self._under_way.get(event.key)) is not None:
            self._move(job, _STOPPING)

    def _retry(self, event: RetryScheduled) -> None:
        self._retries += 1
        if (job := self._under_way.get(event.key)) is not None:
            self._move(job, _QUEUED)

    def _refuse(self, event: JobRefused) -> None:
        self._leave(event)
        self._refused += 1
        self._fail(Failure(key=event.key, job=event.job, kind=None, reason=event.error[:_TEXT_KEPT]))

    def _remember(self, event: JobRemembered) -> None:
        self._leave(event)
        self._remembered += 1
        self._count(event.result)

    def _detach(self, event: JobDetached) -> None:
        job = self._leave(event)
        self._detached += 1
        self._stop_billing(job)  # what it has cost up to here stays in the sums

    def _end(self, event: JobEnded) -> None:
        job, result = self._leave(event), event.result
        now = self._clock()
        self._ended += 1
        self._ended_sum += now - job.since
        self._ended_squares += (now - job.since) ** 2
        self._ends.append(now)
        self._count(result)
        self._stop_billing(job)
        self._live_billed -= job.billed
        self._live_spot -= job.spot
        self._live_unpriced -= job.unpriced
        if self._is_billed:
            self._cost += cost(result, prices=self._prices)
        outcome = result.outcome
        # Those that were cancelled are as somebody wished; they are counted, not announced.
        if outcome.kind not in {Kind.SUCCEEDED, Kind.CANCELLED}:
            last = result.last_lines[-1].text if result.last_lines else ""
            self._fail(
                Failure(
                    key=event.key,
                    job=event.job,
                    kind=outcome.kind,
                    reason=outcome.detail[:_TEXT_KEPT],
                    last_line=last[:_TEXT_KEPT],
                )
            )

    def _count(self, result: JobResult) -> None:
        kind = result.outcome.kind
        self._outcomes[kind] = self._outcomes.get(kind, 0) + 1

    def _fail(self, failure: Failure) -> None:
        self._failures.append(failure)
        if self._on_failure is not None:
            self._on_failure(failure)

    # ---- money ----

    def _see(self, event: AttemptSeen) -> None:
        job, tariff = self._under_way.get(event.key), tariff_of(event, self._prices)
        if job is None or tariff is None:
            return
        self._is_billed = True
        self._stop_billing(job)
        job.hourly, job.placed_at = tariff.hourly, self._clock() - event.age
        job.spot += tariff.is_spot
        job.unpriced += not tariff.is_whole
        self._hourly += tariff.hourly
        self._hourly_since += tariff.hourly * job.placed_at
        self._live += 1
        self._live_spot += tariff.is_spot
        self._live_unpriced += not tariff.is_whole

    def _end_attempt(self, event: AttemptEnded) -> None:
        if (job := self._under_way.get(event.key)) is not None:
            self._stop_billing(job)

    def _stop_billing(self, job: _UnderWay) -> None:
        if job.hourly is None:
            return
        # The least that is billed, and the rounding, come with the record.
        billed = job.hourly * (self._clock() - job.placed_at) / 3600
        job.billed += billed
        self._live_billed += billed
        self._live -= 1
        self._hourly = self._hourly - job.hourly if self._live else 0.0
        self._hourly_since = self._hourly_since - job.hourly * job.placed_at if self._live else 0.0
        job.hourly = None

    def _cost_so_far(self, now: float) -> Cost | None:
        if not self._is_billed:
            return None
        running = (self._hourly * now - self._hourly_since) / 3600
        live = Cost(
            usd=max(0.0, running + self._live_billed),
            attempts=self._live,
            spot=self._live_spot,
            unpriced=self._live_unpriced,
        )
        return self._cost + live

    # ---- time ----

    def _rate(self, now: float) -> float | None:
        """Ends per minute, over a few times as long as a job takes, and a minute at least."""
        if not self._ended or self._began is None or now <= self._began:
            return None
        window = min(max(_LEAST_WINDOW, 4 * self._ended_sum / self._ended), now - self._began)
        ends = sum(end > now - window for end in self._ends)
        if ends == _ENDS_KEPT:  # more of them than are kept: the kept ones span less
            window = now - self._ends[0]
        return 60 * ends / window if window > 0 else None

    def _eta(self, now: float, total: int | None) -> timedelta | None:
        """
        What is left, as the ended jobs tell: none before as many have ended as were ever under way at a time.

        Earlier, those that have ended are the short ones, and say nothing of the others.
        """
        if total is None or self._began is None:
            return None
        under_way = len(self._under_way)
        left = total - self._done - self._detached
        if left <= 0 or self._ended < max(3, min(self._most, total // 2)):
            return None
        elapsed = now - self._began
        usual = self._ended_sum / self._ended
        ages = under_way * now - self._since_sum
        at_a_time = (self._ended_sum + ages) / elapsed if elapsed > 0 else 0.0
        # Of the last ones under way it is known how old they are; that helps only if jobs are much alike.
        are_alike = self._ended_squares <= 1.1 * self._ended * usual**2
        if (left > under_way or are_alike) and ages <= under_way * usual and at_a_time > 0:
            return timedelta(seconds=(left * usual - ages) / at_a_time)
        return timedelta(seconds=left * elapsed / self._ended)


# ---- words -----------------------------------------------------------------------------------------------------------


def span(time: timedelta) -> str:
    """Say a time as people do: ``52s``, ``6m 52s``, ``1h 05m``, ``2d 03h``."""
    seconds = int(time.total_seconds())
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60:02d}s"
    if seconds < 86_400:
        return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"
    return f"{seconds // 86_400}d {seconds % 86_400 // 3600:02d}h"


def pace(rate: float) -> str:
    """Say ends per minute: ``145/min``, ``2.5/min``, ``12/h``."""
    if rate < 1:
        return f"{rate * 60:.0f}/h"
    return f"{rate:.1f}/min" if rate < 10 else f"{rate:.0f}/min"


def price(spent: Cost) -> str:
    """Say what was spent: cents with two digits, less with four."""
    return f"${spent.usd:.2f}" if spent.usd >= 1 else f"${spent.usd:.4f}"


def stages(standing: Standing) -> list[tuple[str, int]]:
    """Where the jobs are that are not done, in the order of their lives."""
    return [(name, getattr(standing, name)) for name in ("queued", "starting", "running", "stopping")]


def ends(standing: Standing) -> list[tuple[str, int]]:
    """How the jobs ended that are done."""
    told = [(kind.value.replace("_", " "), standing.outcomes[kind]) for kind in Kind if kind in standing.outcomes]
    return [*told, ("refused", standing.refused)] if standing.refused else told


def told(failure: Failure) -> str:
    """Say how a job failed in one line, with nothing in it that a terminal would obey."""
    kind = failure.kind.value.replace("_", " ") if failure.kind is not None else "refused"
    line = f"{_short(failure.job, 60)} {kind}: {_short(failure.reason, 240)}"
    return f"{line} | {_short(failure.last_line, 160)}" if failure.last_line.strip() else line


def _short(text: str, most: int) -> str:
    # Cut before it is cleaned as well: what is cut off costs nothing.
    shown = " ".join(clean(text[: 4 * most]).split())
    return shown if len(shown) <= most and len(text) <= 4 * most else f"{shown[: most - 1]}…"


def line(standing: Standing) -> str:
    """Say in one line how the jobs stand."""
    of = f"/{standing.total}" if standing.total is not None else ""
    amiss = [f"{number} {name}" for name, number in ends(standing) if name != "succeeded"]
    parts = [", ".join([f"{standing.done}{of} done", *amiss])]
    if where := ", ".join(f"{number} {name}" for name, number in stages(standing) if number):
        parts.append(where)
    speed = [pace(standing.rate)] if standing.rate else []
    if standing.eta is not None:
        speed.append(f"about {span(standing.eta)} left")
    if speed:
        parts.append(", ".join(speed))
    if standing.cost is not None:
        parts.append(f"cost at most {price(standing.cost)}")
    return "; ".join(parts)


def has_begun(standing: Standing) -> bool:
    """Whether there is anything to tell."""
    return bool(standing.total or standing.done or standing.detached or any(number for _, number in stages(standing)))


def summary(standing: Standing) -> str:
    """Say in one line how it went."""
    of = f" of {standing.total}" if standing.total is not None and standing.done < standing.total else ""
    noun = "job" if standing.done == 1 and not of else "jobs"
    parts = [f"{standing.done}{of} {noun} done in {span(standing.elapsed)}"]
    if how := ", ".join(f"{number} {name}" for name, number in ends(standing)):
        parts[0] += f": {how}"
    if standing.remembered:
        parts.append(f"{standing.remembered} of them in an earlier run")
    if standing.retries:
        parts.append(f"{standing.retries} {'retry' if standing.retries == 1 else 'retries'}")
    if standing.detached:
        parts.append(f"{standing.detached} left running")
    if standing.cost is not None:
        spent = f"cost at most {price(standing.cost)}"
        notes = [f"{standing.cost.spot} on Spot at the price on demand"] if standing.cost.spot else []
        notes += [f"{standing.cost.unpriced} without a known price"] if standing.cost.unpriced else []
        parts.append(spent + (f" ({', '.join(notes)})" if notes else ""))
    return "; ".join(parts)


# ---- showing ---------------------------------------------------------------------------------------------------------

_PREFIX: Final = "fargate-runner: "
_PLAIN_EVERY: Final = 10.0
_PLAIN_EVERY_AT_LAST: Final = 60.0
"""Seconds between plain lines: they grow with the run, so that a night of it can still be read."""
_LINES_PENDING: Final = 1000
_LAST_WORDS: Final = 1.0
"""Seconds that a terminal has to take the last of it."""


class Printed(str):
    """Whole lines that the program itself printed: shown as they are."""

    __slots__ = ()


class Display(Protocol):
    """Where a `Progress` shows itself. All but `draw` are called in the event loop, and never wait."""

    interval: float
    """Seconds that have to pass between two looks at the jobs."""

    def look(self, standing: Standing, failures: list[Failure], *, last: bool) -> list[str]:
        """Return the lines to show for good."""
        ...

    def patience(self, standing: Standing) -> float:
        """Return the seconds after which to look again although nothing has happened."""
        ...

    def draw(self, lines: list[str], standing: Standing | None, *, last: bool) -> None:
        """Show lines, and how the jobs stand. In a thread of its own: it may wait for the terminal."""


class Plain:
    """Lines, for whatever is no terminal: every so often, for each failure, and at the end."""

    interval = 0.25

    def __init__(self, write: Callable[[str], None], *, fenced: Callable[[str], str]) -> None:
        self._write = write
        self._fenced = fenced
        self._shown_at = 0.0
        self._shown = ""

    def look(self, standing: Standing, failures: list[Failure], *, last: bool) -> list[str]:
        """Return the lines to show for good."""
        lines = [told(failure) for failure in failures]
        now = standing.elapsed.total_seconds()
        if last:
            lines += [summary(standing)] if has_begun(standing) else []
        elif now >= self._due(now) and (shown := line(standing)) != self._shown:
            lines.append(shown)
            self._shown, self._shown_at = shown, now
        return lines

    def _due(self, now: float) -> float:
        return self._shown_at + min(max(_PLAIN_EVERY, now / 20), _PLAIN_EVERY_AT_LAST)

    def patience(self, standing: Standing) -> float:
        """Return the seconds after which to look again although nothing has happened."""
        now = standing.elapsed.total_seconds()
        # At rest there is nothing to say; a line that is due waits for the next thing that happens.
        return self._due(now) - now if line(standing) != self._shown and now < self._due(now) else float("inf")

    def draw(self, lines: list[str], standing: Standing | None, *, last: bool) -> None:
        """Show lines."""
        text = "".join(f"{_PREFIX}{shown}\n" for shown in lines)
        if text:
            self._write(self._fenced(text))


class _Artist:
    """
    Draws in a thread of its own: a terminal that takes nothing (Ctrl-S, a dead connection) holds up nobody.

    What comes while it draws is drawn next, in one piece; of the standings only the last.
    """

    def __init__(self, display: Display) -> None:
        self._display = display
        self._stirred = threading.Condition()
        self._lines: list[str] = []
        self._omitted = 0
        self._standing: Standing | None = None
        self._last = False
        # A daemon: the program ends even if the terminal never takes another byte.
        self._thread = threading.Thread(target=self._run, name="fargate-runner-progress", daemon=True)
        self._thread.start()

    def put(self, lines: Iterable[str], standing: Standing | None = None, *, last: bool = False) -> bool:
        """Hand over what is to be drawn. False: the last was drawn, or there is no terminal any more."""
        with self._stirred:
            if self._last or not self._thread.is_alive():
                return False
            for shown in lines:
                if len(self._lines) < _LINES_PENDING or isinstance(shown, Printed):
                    self._lines.append(shown)
                else:
                    self._omitted += 1
            self._standing = standing or self._standing
            self._last = self._last or last
            self._stirred.notify()
            return True

    async def finished(self) -> None:
        """Wait until all is drawn, but not for long."""
        with CancelScope(shield=True):
            limiter = anyio.CapacityLimiter(1)
            await anyio.to_thread.run_sync(self._thread.join, _LAST_WORDS, limiter=limiter)

    def _run(self) -> None:
        last = False
        while not last:
            with self._stirred:
                while not (self._lines or self._standing or self._last):
                    self._stirred.wait()
                lines, standing, last = self._lines, self._standing, self._last
                if self._omitted:
                    lines.append(f"… {self._omitted} more lines were not shown")
                self._lines, self._standing, self._omitted = [], None, 0
            try:
                self._display.draw(lines, standing, last=last)
            except (OSError, ValueError):  # the stream is gone, or closed: nobody looks any more
                return


class Progress(AsyncContextManagerMixin):
    """
    Shows how far the jobs have come. An observer, and an ``async with`` block around the runner's::

        async with Progress(total=len(jobs)) as progress, Runner(backend, observers=[progress]) as runner:

    *total* is how many jobs there will be; without it there is neither a bar nor an estimate of what is left. It can be
    set later.

    *mode* is ``"live"`` (a display that changes; needs a terminal and the extra ``cli``), ``"plain"`` (a line every so
    often, for each failure, and at the end), ``"none"``, or ``"auto"``: what the environment variable
    ``FARGATE_RUNNER_PROGRESS`` says, or else live on a terminal and plain elsewhere. It is shown on stderr, or *file*.
    While it is live, what the program prints appears above it. ``NO_COLOR`` or *colours* take its colours away.

    *listener* is called with a `Standing` when something has changed, a few times a second at most, and once at the
    end: for an application that shows its own. It runs in the event loop, and has to be quick.

    A stuck terminal never holds up a job. The terminal is never put into a state that has to be undone, whatever ends
    the program.
    """

    def __init__(
        self,
        total: int | None = None,
        *,
        mode: Mode = "auto",
        listener: Callable[[Standing], None] | None = None,
        file: TextIO | None = None,
        colours: bool = True,
        prices: Prices = LIST_PRICES,
    ) -> None:
        if mode == "auto" and (wished := os.environ.get(ENVIRONMENT)):
            _check_mode(ENVIRONMENT, wished)
            mode = cast("Mode", wished)
        _check_mode("mode", mode)
        self._mode = mode
        self._listener = listener
        self._file = file
        self._colours = colours
        self._fresh: list[Failure] = []
        self._tally = Tally(total, clock=anyio.current_time, prices=prices, on_failure=self._note_failure)
        self._has_news = False
        self._news = anyio.Event()
        self._artist: _Artist | None = None
        self._display: Display | None = None
        self._is_live = False
        self._stand_ins: dict[str, _StandIn] = {}
        self._final: Standing | None = None

    def __call__(self, event: Event) -> None:
        """Take note of *event*."""
        self._tally(event)
        if not self._has_news:
            self._has_news = True
            self._news.set()

    @property
    def total(self) -> int | None:
        """How many jobs there will be, if that is known."""
        return self._tally.total

    @total.setter
    def total(self, total: int | None) -> None:
        self._tally.total = total

    @property
    def standing(self) -> Standing:
        """How the jobs stand now; once the block is left, how they stood then."""
        return self._final or self._tally.standing()

    def _note_failure(self, failure: Failure) -> None:
        if self._mode != "none":
            self._fresh.append(failure)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        failure: BaseException | None = None
        self._open()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._follow)
                try:
                    yield self
                # Re-raised below, where no task group can wrap it in an ExceptionGroup.
                except BaseException as exc:  # noqa: BLE001
                    failure = exc
                finally:
                    tasks.cancel_scope.cancel()
        finally:
            self._final = self._look(last=True)
            if self._artist is not None:
                await self._artist.finished()
            self._close()
        if failure is not None:
            raise failure

    def above(self, text: str) -> bool:
        """Show whole lines of text as they are, above a live display; False if there is none to stand above."""
        if self._artist is None or not self._is_live:
            return False
        return self._artist.put([Printed(text)])

    # ---- opening and closing ----

    def _open(self) -> None:
        file = self._file if self._file is not None else sys.stderr
        if self._mode == "none" or file is None:
            return
        hints: list[str] = []
        stream = _stream(file)
        if self._mode != "plain" and stream is not None and stream.is_terminal and os.environ.get("TERM") != "dumb":
            if importlib.util.find_spec("rich") is None:
                hints = ['for a display that changes: pip install "fargate-runner[cli]"']
            else:
                from fargate_runner.cli._live import Live

                self._display, self._is_live = Live(stream, colours=self._colours), True
        if self._display is None:
            write = stream.write_trusted if stream is not None else _text_writer(file)
            self._display = Plain(write, fenced=stream.fenced if stream is not None else fence)
        self._artist = _Artist(self._display)
        self._artist.put(hints)
        if self._is_live:
            self._stand_in()

    def _stand_in(self) -> None:
        """What the program prints on the same terminal has to go through us, or it would be drawn over."""
        for name in ("stdout", "stderr"):
            original = getattr(sys, name)
            if original is not None and original.isatty():
                stand_in = _StandIn(original, self.above)
                setattr(sys, name, stand_in)
                self._stand_ins[name] = stand_in

    def _close(self) -> None:
        for name, stand_in in self._stand_ins.items():
            if getattr(sys, name) is stand_in:  # else somebody has put another one there meanwhile
                setattr(sys, name, stand_in.original)
        self._stand_ins.clear()
        self._is_live = False

    # ---- looking ----

    async def _follow(self) -> None:
        if self._display is None and self._listener is None:
            return
        interval = self._display.interval if self._display is not None else 0.25
        while True:
            standing = self._look()
            patience = self._display.patience(standing) if self._display is not None else float("inf")
            with anyio.move_on_after(patience):
                await self._news.wait()
                await anyio.sleep(interval)  # things seldom come alone
            self._has_news, self._news = False, anyio.Event()

    def _look(self, *, last: bool = False) -> Standing:
        standing = self._tally.standing()
        failures, self._fresh = self._fresh, []
        if self._display is not None and self._artist is not None:
            if last:
                for stand_in in self._stand_ins.values():
                    stand_in.finish()
            lines = self._display.look(standing, failures, last=last)
            self._artist.put(lines, standing, last=last)
        if self._listener is not None:
            try:
                self._listener(standing)
            except Exception as exc:  # noqa: BLE001 (the caller's code: whatever it raises must not reach a job)
                said = f"listener {self._listener!r} raised {exc!r} and was dropped"
                self._listener = None
                try:
                    warnings.warn(said, RuntimeWarning, stacklevel=2)
                except RuntimeWarning:  # python -W error: even then, no job ends for want of a listener
                    logging.getLogger(__name__).warning(said)
        return standing


class _StandIn:
    """Stands in for a standard stream on the terminal of a live display: whole lines go above it."""

    def __init__(self, original: TextIO, above: Callable[[str], bool]) -> None:
        self.original = original
        self._above = above
        self._lock = threading.Lock()
        self._rest = ""

    def write(self, text: str) -> int:
        with self._lock:
            whole, newline, self._rest = (self._rest + text).rpartition("\n")
            if newline:
                self._show(whole + newline)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for text in lines:
            self.write(text)

    def flush(self) -> None:
        """Half a line has no place above the display: it waits for its end."""

    def finish(self) -> None:
        with self._lock:
            rest, self._rest = self._rest, ""
            if rest:
                self._show(f"{rest}\n")

    def _show(self, text: str) -> None:
        if not self._above(text):
            self.original.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


def _stream(file: TextIO) -> Stream | None:
    """Our own way to a real stream, past Python's buffers; None for one that is somebody's own invention."""
    if not isinstance(file, io.TextIOWrapper):
        return None
    try:
        file.fileno()
    except (OSError, ValueError):
        return None
    return Stream(file, colours=False)


def _text_writer(file: TextIO) -> Callable[[str], None]:
    def write(text: str) -> None:
        file.write(text)
        file.flush()

    return write


def _check_mode(name: str, mode: str) -> None:
    if mode not in get_args(Mode):
        raise ValueError(f"{name}={mode!r}: use one of {', '.join(get_args(Mode))}")
