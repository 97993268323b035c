"""
How an attempt goes and how it ended, in words of no platform.

A backend reports `Snapshot`s; `classify` turns the last one into an `Outcome`; attempts add up to a `JobResult`.
Everything here is a value or a pure function: no clock, no await, no logging.
"""

from __future__ import annotations

import enum
from datetime import datetime, timedelta
from typing import Final, Literal

import attrs

from fargate_runner._errors import FargateRunnerError

__all__ = [
    "Attempt",
    "Cause",
    "JobFailed",
    "JobResult",
    "Kind",
    "LogLine",
    "Outcome",
    "Phase",
    "Proof",
    "Snapshot",
    "StopAsked",
    "classify",
]


class Phase(enum.IntEnum):
    """Where an attempt stands. It only ever grows; a backend may skip phases, never the last."""

    PENDING = 1
    """Accepted by the platform, waiting for room."""
    STARTING = 2
    """Getting its image, network and storage."""
    RUNNING = 3
    """The job's own container runs."""
    STOPPING = 4
    """On its way out; the exit code may be known already."""
    ENDED = 5
    """Over. The snapshot carries a cause and a proof."""


class Cause(enum.Enum):
    """Why an attempt is over. It outranks the exit code."""

    EXITED = "exited"
    """The job's own process ended by itself; only the exit code tells how."""
    OUT_OF_MEMORY = "out_of_memory"
    """The kernel killed a process of the job at its memory limit."""
    STOPPED_ON_REQUEST = "stopped_on_request"
    """Somebody asked the platform to stop it."""
    SIDECAR_ENDED = "sidecar_ended"
    """An essential sidecar ended first and took the job with it."""
    DEADLINE = "deadline"
    """Its watchdog (`Sidecar.watchdog`) ended first: the hard deadline passed, whether or not anybody looked on."""
    COULD_NOT_START = "could_not_start"
    """The job's own process never ran."""
    RECLAIMED = "reclaimed"
    """The platform took the capacity back (Spot)."""
    HOST_FAILED = "host_failed"
    """The machine below went away or was maintained."""
    VANISHED = "vanished"
    """It was there, and the platform no longer knows of it."""
    UNRECOGNISED = "unrecognised"
    """The platform gave a reason that this library has never seen."""


class Kind(enum.Enum):
    """How an attempt, and with its last attempt a job, ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    OUT_OF_MEMORY = "out_of_memory"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    NEVER_STARTED = "never_started"
    LOST = "lost"
    UNKNOWN = "unknown"


@attrs.frozen(kw_only=True)
class Proof:
    """What an outcome rests on: who said it, when, and in which words."""

    source: str
    """Where it was read: ``docker-inspect``, ``wait-status``, ``describe``, ``event``, ``script``, ``runner``, …"""
    seen_at: datetime
    evidence: str = ""
    """The platform's own words."""


@attrs.frozen(kw_only=True, weakref_slot=False)
class LogLine:
    """One whole line that a container of the job wrote, without its line end."""

    text: str
    stream: Literal["stdout", "stderr"] = "stdout"
    container: str = "main"
    at: datetime | None = None
    """When the platform recorded it, where it does so."""
    attempt: int = 1

    def __str__(self) -> str:
        return self.text


class LogLineDraft:
    """
    A `LogLine` in the making, where there are millions of them: it takes half the time.

    Set all of its fields, and then ``__class__`` to `LogLine`. From then on it is one like any other.
    """

    # The very slots of LogLine: otherwise the one could not become the other.
    __slots__ = ("at", "attempt", "container", "stream", "text")


@attrs.frozen(kw_only=True)
class Snapshot:
    """What was last seen of an attempt. An ended one carries its cause and a proof."""

    phase: Phase
    cause: Cause | None = None
    reason: str = ""
    """The platform's words, for people."""
    exit_code: int | None = None
    """Of the job's own container. None is not zero: it means that nobody knows."""
    created_at: datetime | None = None
    started_at: datetime | None = None
    """When the job's own container began to run."""
    ended_at: datetime | None = None
    capacity: str = ""
    """What it runs on, in the platform's word, where prices depend on it; empty: nothing is known."""
    platform: str = ""
    """The operating system and processor, such as ``linux/arm64``; empty: nothing is known."""
    transient: bool = False
    """The platform's fault and likely to pass: another launch may work."""
    advice: str = ""
    """What a person could try."""
    proof: Proof | None = None

    def __attrs_post_init__(self) -> None:
        if self.phase is Phase.ENDED and (self.cause is None or self.proof is None):
            raise ValueError("an ended snapshot needs a cause and a proof")

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.phase is Phase.ENDED


@attrs.frozen(kw_only=True)
class StopAsked:
    """That we asked for the end, and as what it counts if that is what ended it."""

    kind: Literal[Kind.CANCELLED, Kind.TIMED_OUT, Kind.NEVER_STARTED]
    reason: str

    def __attrs_post_init__(self) -> None:
        if self.kind not in {Kind.CANCELLED, Kind.TIMED_OUT, Kind.NEVER_STARTED}:
            raise ValueError(f"an end that was asked for does not count as {self.kind!r}")


@attrs.frozen(kw_only=True)
class Outcome:
    """How an attempt ended. It cannot be built without a proof, and success needs exit code 0."""

    kind: Kind
    detail: str
    """One sentence for people: what happened."""
    proof: Proof
    exit_code: int | None = None
    transient: bool = False
    """Not the job's fault, and likely to pass."""
    advice: str = ""
    """One sentence for people: what to try."""

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.proof, Proof):
            raise TypeError(f"an outcome needs a proof, got {self.proof!r}")
        if self.kind is Kind.SUCCEEDED and self.exit_code != 0:
            raise ValueError(f"success needs exit code 0, got {self.exit_code!r}")

    @property
    def succeeded(self) -> bool:
        """Whether the job did its work, provably."""
        return self.kind is Kind.SUCCEEDED


@attrs.frozen(kw_only=True)
class Attempt:
    """One launch of a job, and how it ended."""

    number: int
    """Counted from 1."""
    token: str
    address: str | None
    """Where the backend keeps it (container id, task ARN, process id); None if it was never placed."""
    outcome: Outcome
    vcpu: float
    memory_gib: float
    ephemeral_storage_gib: int | None = None
    """Scratch space that was asked for; None is the platform's default."""
    capacity: str = ""
    """What it ran on, in the platform's word: ``FARGATE``, ``FARGATE_SPOT``, …; empty: nothing is known."""
    platform: str = ""
    """The operating system and processor, such as ``linux/arm64``; empty: nothing is known."""
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime
    last_lines: tuple[LogLine, ...] = ()
    logs_complete: bool = True
    """False if lines may be missing from what the platform kept."""

    @property
    def run_time(self) -> timedelta | None:
        """How long the job's own container ran, if it ever did."""
        if self.started_at is None:
            return None
        # Docker was seen to stamp the end 0.4 ms before the start; a duration is never negative.
        return max(self.ended_at - self.started_at, timedelta())


@attrs.frozen(kw_only=True)
class JobResult:
    """The final record of a job: every attempt, and the outcome of the last."""

    key: str
    name: str
    attempts: tuple[Attempt, ...] = attrs.field(validator=attrs.validators.min_len(1))
    accepted_at: datetime
    ended_at: datetime

    @property
    def outcome(self) -> Outcome:
        """How the last attempt, and with it the job, ended."""
        return self.attempts[-1].outcome

    @property
    def succeeded(self) -> bool:
        """Whether the job did its work, provably."""
        return self.outcome.succeeded

    @property
    def exit_code(self) -> int | None:
        """Of the job's own container in the last attempt; None if nobody knows."""
        return self.outcome.exit_code

    @property
    def last_lines(self) -> tuple[LogLine, ...]:
        """The end of the last attempt's output."""
        return self.attempts[-1].last_lines

    @property
    def started_at(self) -> datetime | None:
        """When the last attempt began to run, if it did."""
        return self.attempts[-1].started_at

    def raise_unless_succeeded(self) -> JobResult:
        """
        Return the result itself if the job succeeded.

        :raises JobFailed: it did not
        """
        if not self.succeeded:
            raise JobFailed(self)
        return self


class JobFailed(FargateRunnerError):
    """
    The job ended, and not well. ``result`` is its final record.

    The message says how it ended, what to try, and the last lines of its output.
    """

    LINES_SHOWN: Final = 10

    def __init__(self, result: JobResult) -> None:
        outcome = result.outcome
        parts = [f"job {result.name!r} (key {result.key!r}) {_SAID[outcome.kind]}: {_printable(outcome.detail)}"]
        if len(result.attempts) > 1:
            parts.append(f"attempts: {len(result.attempts)}")
        if outcome.advice:
            parts.append(f"try: {_printable(outcome.advice)}")
        if shown := result.last_lines[-self.LINES_SHOWN :]:
            parts.append("last lines:")
            parts.extend(f"  | {_printable(line.text)}" for line in shown)
        super().__init__("\n".join(parts))
        self.result = result

    def __reduce__(self) -> tuple[type[JobFailed], tuple[JobResult]]:
        return JobFailed, (self.result,)


_SAID: Final = {
    Kind.SUCCEEDED: "succeeded",
    Kind.FAILED: "failed",
    Kind.OUT_OF_MEMORY: "ran out of memory",
    Kind.TIMED_OUT: "timed out",
    Kind.CANCELLED: "was cancelled",
    Kind.INTERRUPTED: "was interrupted by the platform",
    Kind.NEVER_STARTED: "never started",
    Kind.LOST: "was lost",
    Kind.UNKNOWN: "ended in an unknown way",
}

_KIND_BY_CAUSE: Final = {
    Cause.OUT_OF_MEMORY: Kind.OUT_OF_MEMORY,
    Cause.SIDECAR_ENDED: Kind.FAILED,
    Cause.DEADLINE: Kind.TIMED_OUT,
    Cause.COULD_NOT_START: Kind.NEVER_STARTED,
    Cause.RECLAIMED: Kind.INTERRUPTED,
    Cause.HOST_FAILED: Kind.INTERRUPTED,
    Cause.VANISHED: Kind.LOST,
    Cause.UNRECOGNISED: Kind.UNKNOWN,
}

_MEANING_OF_EXIT_CODE: Final = {
    126: "the command was found but could not be executed",
    127: "the command was not found",
    134: "SIGABRT",
    137: "SIGKILL, and not for memory",
    139: "SIGSEGV, a crash in native code",
    143: "SIGTERM",
}


def classify(last: Snapshot, asked: StopAsked | None = None) -> Outcome:
    """
    Say how an attempt ended, from the last thing seen of it and from what we had asked for.

    :raises ValueError: the snapshot is not of an ended attempt
    """
    # A cause may be known while the attempt is still on its way out; only the end is judged.
    if not last.ended or last.cause is None or last.proof is None:
        raise ValueError(f"the attempt has not ended: {last.phase.name}")
    kind, detail = _kind(last, last.cause, asked)
    return Outcome(
        kind=kind,
        detail=detail,
        proof=last.proof,
        exit_code=last.exit_code,
        # A start that took too long is the platform's doing, and another may be quicker.
        transient=last.transient or (kind is Kind.NEVER_STARTED and last.cause is Cause.STOPPED_ON_REQUEST),
        advice=last.advice or _ADVICE.get(kind, ""),
    )


def _kind(last: Snapshot, cause: Cause, asked: StopAsked | None) -> tuple[Kind, str]:
    # Cause before exit code: a container that takes SIGTERM politely exits 0 with its work undone.
    if cause is Cause.STOPPED_ON_REQUEST:
        if asked is None:
            return Kind.CANCELLED, last.reason or "stopped by a request that was not ours"
        return asked.kind, asked.reason
    if cause in _KIND_BY_CAUSE:
        return _KIND_BY_CAUSE[cause], last.reason or cause.value.replace("_", " ")
    if last.exit_code is None:
        return Kind.UNKNOWN, last.reason or "it ended, but no exit code was recorded"
    if last.exit_code == 0:
        return Kind.SUCCEEDED, "exit code 0"
    return Kind.FAILED, f"exit code {last.exit_code}{_meaning(last.exit_code)}"


def _meaning(exit_code: int) -> str:
    said = _MEANING_OF_EXIT_CODE.get(exit_code)
    return f" ({said})" if said else ""


_ADVICE: Final = {
    Kind.FAILED: "read the last lines of its output; Retry(failures=…) repeats a job that fails now and then",
    Kind.OUT_OF_MEMORY: "give it more memory_gib, or let Retry(out_of_memory=…) move it along the valid sizes",
    Kind.TIMED_OUT: "give it a longer timeout, or a larger size",
    Kind.INTERRUPTED: "run it again; Retry(interruptions=…) does so by itself",
    Kind.LOST: "run it again if its work may be done twice; nothing proves how it ended",
    Kind.UNKNOWN: "look at the platform's own record before running it again: it may have done its work",
}


def _printable(text: str, limit: int = 500) -> str:
    """Make foreign text harmless in a message: an exception is often printed to a terminal."""
    shown = "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text[:limit])
    return shown if len(text) <= limit else f"{shown}…"
