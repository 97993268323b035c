"""
What happens to jobs, as values: frozen events, and who listens to them.

An observer is any callable that takes an event. `log_events` writes them with structlog. An observer runs inside the
runner: it must be quick and must not raise; one that raises is dropped, and says so once as a warning.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from typing import Any, Protocol

import attrs

from fargate_runner._lifecycle import JobResult, Kind, Outcome, Phase

__all__ = [
    "AttemptEnded",
    "AttemptLaunched",
    "AttemptSeen",
    "Event",
    "JobAccepted",
    "JobDetached",
    "JobEnded",
    "JobQueued",
    "JobRefused",
    "JobRemembered",
    "JournalUnanswered",
    "LaunchDelayed",
    "LogsIncomplete",
    "Observer",
    "PhaseReached",
    "PlatformUnanswered",
    "RetryScheduled",
    "StopRequested",
    "log_events",
]


@attrs.frozen(kw_only=True)
class Event:
    """Something that happened to a job. ``noun.past_verb`` is its name in logs."""

    key: str
    job: str
    """The job's name."""

    @property
    def title(self) -> str:
        """The event's name in logs."""
        return _TITLES[type(self)]

    def facts(self) -> dict[str, Any]:
        """Return the event's fields as flat values for a log."""
        return {field.name: _flat(getattr(self, field.name)) for field in attrs.fields(type(self))}


@attrs.frozen(kw_only=True)
class JobQueued(Event):
    """
    A runner was handed the job, and is about to look for it and to launch it.

    Exactly one `JobAccepted`, `JobRemembered` or `JobRefused` follows. A job that the runner has met by its key already
    is not told again.
    """


@attrs.frozen(kw_only=True)
class JobRefused(Event):
    """The job was never accepted: nothing of it runs, and whoever handed it over gets the error."""

    error: str


@attrs.frozen(kw_only=True)
class JobRemembered(Event):
    """The journal has the job's final record, from an earlier runner: it is not run again."""

    result: JobResult


@attrs.frozen(kw_only=True)
class JobAccepted(Event):
    """A runner took the job. Exactly one `JobEnded` or `JobDetached` follows."""

    adopted: bool = False
    """It was found on the platform, started by an earlier runner."""


@attrs.frozen(kw_only=True)
class AttemptLaunched(Event):
    """The platform took an attempt."""

    attempt: int
    address: str
    token: str


@attrs.frozen(kw_only=True)
class AttemptSeen(Event):
    """An attempt was seen for the first time, launched by this runner or met: where it is, and what it takes."""

    attempt: int
    address: str
    age: float
    """Seconds since the platform made it; 0 for one that this runner has just launched."""
    vcpu: float
    memory_gib: float
    ephemeral_storage_gib: int | None = None
    capacity: str = ""
    """What it runs on, in the platform's word; empty: nothing is known."""
    platform: str = ""
    """The operating system and processor, such as ``linux/arm64``; empty: nothing is known."""


@attrs.frozen(kw_only=True)
class PhaseReached(Event):
    """An attempt was seen in a later phase than before."""

    attempt: int
    phase: Phase


@attrs.frozen(kw_only=True)
class StopRequested(Event):
    """We asked the platform to stop an attempt."""

    attempt: int
    kind: Kind
    reason: str


@attrs.frozen(kw_only=True)
class PlatformUnanswered(Event):
    """A question about the job could not be put to the platform. It is asked again."""

    attempt: int
    operation: str
    error: str


@attrs.frozen(kw_only=True)
class JournalUnanswered(Event):
    """Something about the job could not be written down. It is tried again, or written with the next change."""

    error: str


@attrs.frozen(kw_only=True)
class LogsIncomplete(Event):
    """Lines of an attempt may be missing from its record. Its outcome is not touched."""

    attempt: int
    reason: str


@attrs.frozen(kw_only=True)
class AttemptEnded(Event):
    """An attempt is over."""

    attempt: int
    outcome: Outcome


@attrs.frozen(kw_only=True)
class LaunchDelayed(Event):
    """The platform had no room for an attempt; it will be asked again. Costs the job nothing but time."""

    attempt: int
    placement: int
    """The number of the placement that was refused."""
    wait: float
    """Seconds until the next one."""
    why: str


@attrs.frozen(kw_only=True)
class RetryScheduled(Event):
    """Another attempt will be made."""

    attempt: int
    """The number of the coming one."""
    wait: float
    """Seconds until then."""
    why: str


@attrs.frozen(kw_only=True)
class JobEnded(Event):
    """The job has its final record."""

    result: JobResult


@attrs.frozen(kw_only=True)
class JobDetached(Event):
    """The runner let go of a live job: it goes on, and can be attached by its key."""

    attempt: int


_TITLES: dict[type[Event], str] = {
    JobQueued: "job.queued",
    JobRefused: "job.refused",
    JobRemembered: "job.remembered",
    JobAccepted: "job.accepted",
    AttemptLaunched: "attempt.launched",
    AttemptSeen: "attempt.seen",
    PhaseReached: "attempt.phase_reached",
    StopRequested: "attempt.stop_requested",
    PlatformUnanswered: "platform.unanswered",
    JournalUnanswered: "journal.unanswered",
    LogsIncomplete: "logs.incomplete",
    AttemptEnded: "attempt.ended",
    LaunchDelayed: "launch.delayed",
    RetryScheduled: "retry.scheduled",
    JobEnded: "job.ended",
    JobDetached: "job.detached",
}


class Observer(Protocol):
    """Whoever wants to know."""

    def __call__(self, event: Event, /) -> None:
        """Take note of *event*, quickly."""


class Observers:
    """A set of observers; one that raises is dropped, so that telemetry never harms a job."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._observers = list(observers)

    def __bool__(self) -> bool:
        return bool(self._observers)

    def __call__(self, event: Event) -> None:
        for observer in tuple(self._observers):
            try:
                observer(event)
            except Exception as exc:  # noqa: BLE001 (the caller's code: whatever it raises must not reach a job)
                self._observers.remove(observer)
                said = f"observer {observer!r} raised {exc!r} and was dropped"
                try:
                    warnings.warn(said, RuntimeWarning, stacklevel=2)
                except RuntimeWarning:  # python -W error: even then, a job does not end for want of a listener
                    logging.getLogger(__name__).warning(said)


def log_events(event: Event) -> None:
    """Write *event* with structlog, configured as the application has it. An observer."""
    import structlog  # a third of a second on a small machine: only for those who log

    structlog.get_logger("fargate_runner").info(event.title, **event.facts())


def _flat(value: object) -> Any:
    if isinstance(value, Phase):
        return value.name.lower()
    if isinstance(value, Kind):
        return value.value
    if isinstance(value, Outcome):
        return value.kind.value
    if isinstance(value, JobResult):
        return value.outcome.kind.value
    return value
