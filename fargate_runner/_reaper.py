"""
What outlived its deadline: which living attempts nobody can be looking after any more.

Pure: an attempt as the platform lists it, as it was last seen, what the journal says of its job, and the time of the
place; no clock, no await. `Runner.reap` asks for these and stops what is named here.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta

import attrs

from fargate_runner._backend import TaskRef
from fargate_runner._lifecycle import Kind, Outcome, Phase, Snapshot, StopAsked

__all__ = ["Limits", "Overdue", "Reaped", "judge", "may_be_overdue"]


@attrs.frozen(kw_only=True)
class Reaped:
    """An attempt that nobody looked after any more, as `Runner.reap` found it."""

    key: str
    attempt: int
    address: str
    """Where the backend keeps it (container id, task ARN, process id)."""
    reason: str
    overdue: timedelta
    """How long ago its deadline passed, grace included."""
    stopped: bool
    """Whether it was told to stop: not on a dry run."""


def _check_span(field: str, value: object) -> None:
    if not isinstance(value, timedelta):
        raise TypeError(f"{field}: expected a timedelta, got {value!r}")
    if value < timedelta():
        raise ValueError(f"{field}={value!r}: a time to wait is not below zero")


@attrs.frozen
class Limits:
    """What a caller of the reaper allows beyond what jobs say themselves."""

    grace: timedelta
    max_age: timedelta | None = None
    """The ``timeout`` of jobs that have none."""

    def __attrs_post_init__(self) -> None:
        _check_span("grace", self.grace)
        if self.max_age is not None:
            _check_span("max_age", self.max_age)


@attrs.frozen
class Overdue:
    """That an attempt is to be stopped, as what that counts, and how long ago it was due."""

    stop: StopAsked
    by: timedelta


def may_be_overdue(ref: TaskRef, now: datetime, limits: Limits, *, journalled: bool) -> bool:
    """Whether it is worth a look: nothing that is younger than its shortest deadline is."""
    if ref.created_at is None:
        return True
    shortest = [] if not journalled else [timedelta()]
    said = ref.description or {}
    if (start := _span(said.get("start_timeout"))) is not None:
        shortest.append(start)
    if (run := _span(said.get("timeout")) or limits.max_age) is not None:
        shortest.append(run)
    return bool(shortest) and now - ref.created_at > min(shortest) + limits.grace


def judge(
    ref: TaskRef, seen: Snapshot, now: datetime, limits: Limits, *, over: Outcome | None = None
) -> Overdue | None:
    """
    Say whether a living attempt is overdue; None if not, or if nothing proves it.

    *over* is the outcome of its job, if the job has its final record: then no attempt of it has any business. *now* is
    the time of the place, and compared with nothing but stamps of the place.
    """
    created = seen.created_at or ref.created_at
    if seen.phase >= Phase.STOPPING:
        return None  # over, or told so before
    if over is not None and created is not None and (by := now - created - limits.grace) > timedelta():
        reason = f"its job is over ({over.kind.value}), and this attempt lives"
        return Overdue(StopAsked(kind=Kind.CANCELLED, reason=reason), by)
    said = ref.description or {}
    start = _span(said.get("start_timeout"))
    if seen.phase < Phase.RUNNING:
        if created is None or start is None:
            return None
        lasted = now - created
        reason = f"it has not run for {_told(lasted)}, longer than its start_timeout of {_told(start)}"
        return _past(lasted, start + limits.grace, Kind.NEVER_STARTED, reason)
    timeout, stop = _span(said.get("timeout")), _span(said.get("stop_timeout"))
    name = "timeout" if timeout is not None else "max_age"
    timeout = timeout if timeout is not None else limits.max_age
    since = seen.started_at
    if timeout is None or stop is None:
        return None
    if since is None:  # it runs, and nobody tells since when: at the latest since its start was due
        if created is None or start is None:
            return None
        since = created + start
    lasted = now - since
    reason = f"it has run for {_told(lasted)}, longer than its {name} of {_told(timeout)}"
    return _past(lasted, timeout + stop + limits.grace, Kind.TIMED_OUT, reason)


def _past(lasted: timedelta, limit: timedelta, kind: Kind, reason: str) -> Overdue | None:
    if lasted <= limit:
        return None
    # The runner of the job would have stopped it by now, and after that asked again.
    stop = StopAsked(kind=kind, reason=f"{reason}, and nobody looks after it")  # type: ignore[arg-type]
    return Overdue(stop, lasted - limit)


def _span(seconds: object) -> timedelta | None:
    """Return a duration as a description tells it; None if it is none: descriptions come back from the platform."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        return None
    try:
        return timedelta(seconds=seconds) if math.isfinite(seconds) and seconds >= 0 else None
    except OverflowError:
        return None


def _told(span: timedelta) -> str:
    seconds = span.total_seconds()
    return f"{round(seconds, 1 if seconds < 10 else None):,} s"
