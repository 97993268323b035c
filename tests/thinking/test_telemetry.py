"""What is told to observers: named events with flat facts, and no harm from whoever listens."""

from __future__ import annotations

import json
import logging
import warnings
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
import structlog

from fargate_runner import Attempt, JobResult, Kind, LogLine, Outcome, Phase, Proof, telemetry
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
    JournalUnanswered,
    LaunchDelayed,
    LogsIncomplete,
    Observers,
    PhaseReached,
    PlatformUnanswered,
    RetryScheduled,
    StopRequested,
    log_events,
)

NOW = datetime(2026, 11, 22, tzinfo=UTC)
PROOF = Proof(source="script", seen_at=NOW)
OUTCOME = Outcome(kind=Kind.FAILED, detail="hunter2", proof=PROOF, exit_code=1)
RESULT = JobResult(
    key="k",
    name="nightly",
    accepted_at=NOW,
    ended_at=NOW,
    attempts=(
        Attempt(
            number=1,
            token="t",
            address=None,
            outcome=OUTCOME,
            vcpu=1,
            memory_gib=2,
            created_at=NOW,
            ended_at=NOW,
            last_lines=(LogLine(text="hunter2"),),
        ),
    ),
)
WHO: dict[str, Any] = {"key": "k", "job": "nightly"}
EVENTS: list[tuple[Event, str, dict[str, Any]]] = [
    (JobQueued(**WHO), "job.queued", {}),
    (JobRefused(**WHO, error="e"), "job.refused", {"error": "e"}),
    (JobRemembered(**WHO, result=RESULT), "job.remembered", {"result": "failed"}),
    (JobAccepted(**WHO), "job.accepted", {"adopted": False}),
    (
        AttemptLaunched(**WHO, attempt=1, address="a", token="t"),
        "attempt.launched",
        {"attempt": 1, "address": "a", "token": "t"},
    ),
    (
        AttemptSeen(**WHO, attempt=1, address="a", age=2.5, vcpu=1, memory_gib=2, capacity="FARGATE_SPOT"),
        "attempt.seen",
        {
            "attempt": 1,
            "address": "a",
            "age": 2.5,
            "vcpu": 1,
            "memory_gib": 2,
            "ephemeral_storage_gib": None,
            "capacity": "FARGATE_SPOT",
            "platform": "",
        },
    ),
    (PhaseReached(**WHO, attempt=1, phase=Phase.RUNNING), "attempt.phase_reached", {"attempt": 1, "phase": "running"}),
    (
        StopRequested(**WHO, attempt=1, kind=Kind.TIMED_OUT, reason="r"),
        "attempt.stop_requested",
        {"attempt": 1, "kind": "timed_out", "reason": "r"},
    ),
    (
        PlatformUnanswered(**WHO, attempt=1, operation="observe", error="e"),
        "platform.unanswered",
        {"attempt": 1, "operation": "observe", "error": "e"},
    ),
    (
        LaunchDelayed(**WHO, attempt=1, placement=2, wait=1.5, why="w"),
        "launch.delayed",
        {"attempt": 1, "placement": 2, "wait": 1.5, "why": "w"},
    ),
    (JournalUnanswered(**WHO, error="e"), "journal.unanswered", {"error": "e"}),
    (LogsIncomplete(**WHO, attempt=1, reason="r"), "logs.incomplete", {"attempt": 1, "reason": "r"}),
    (AttemptEnded(**WHO, attempt=1, outcome=OUTCOME), "attempt.ended", {"attempt": 1, "outcome": "failed"}),
    (
        RetryScheduled(**WHO, attempt=2, wait=1.5, why="w"),
        "retry.scheduled",
        {"attempt": 2, "wait": 1.5, "why": "w"},
    ),
    (JobEnded(**WHO, result=RESULT), "job.ended", {"result": "failed"}),
    (JobDetached(**WHO, attempt=1), "job.detached", {"attempt": 1}),
]


class TestEvents:
    def test_are_all_tried(self) -> None:
        classes = {cls for cls in vars(telemetry).values() if isinstance(cls, type) and issubclass(cls, Event)}

        assert {type(event) for event, _, _ in EVENTS} == classes - {Event}

    @pytest.mark.parametrize(("event", "title", "facts"), EVENTS, ids=[title for _, title, _ in EVENTS])
    def test_have_a_title_and_flat_facts(self, event: Event, title: str, facts: dict[str, Any]) -> None:
        assert event.title == title
        assert event.facts() == WHO | facts
        assert json.loads(json.dumps(event.facts())) == event.facts()

    @pytest.mark.parametrize("event", [event for event, _, _ in EVENTS], ids=lambda event: event.title)
    def test_are_frozen(self, event: Event) -> None:
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            event.key = "other"  # type: ignore[misc]

    def test_have_titles_of_their_own(self) -> None:
        assert len({title for _, title, _ in EVENTS}) == len(EVENTS)


class Listener:
    def __init__(self, error: Exception | None = None) -> None:
        self.heard: list[Event] = []
        self.error = error

    def __call__(self, event: Event) -> None:
        self.heard.append(event)
        if self.error is not None:
            raise self.error


ACCEPTED = JobAccepted(**WHO)


class TestObservers:
    def test_hear_every_event_in_order(self) -> None:
        one, other = Listener(), Listener()
        tell = Observers([one, other])

        tell(ACCEPTED)
        tell(EVENTS[1][0])

        assert one.heard == other.heard == [ACCEPTED, EVENTS[1][0]]

    def test_that_raise_are_dropped_with_one_warning_and_the_others_go_on(self) -> None:
        before, broken, after = Listener(), Listener(ZeroDivisionError("boom")), Listener()
        tell = Observers([before, broken, after])

        with pytest.warns(RuntimeWarning, match=r"ZeroDivisionError.*boom.*dropped") as warned:
            tell(ACCEPTED)
        tell(ACCEPTED)

        assert len(warned) == 1
        assert (len(before.heard), len(broken.heard), len(after.heard)) == (2, 1, 2)

    def test_that_all_raise_are_all_dropped(self) -> None:
        tell = Observers([Listener(ValueError()), Listener(ValueError())])

        with pytest.warns(RuntimeWarning) as warned:
            tell(ACCEPTED)

        assert len(warned) == 2
        assert not tell

    def test_that_raise_do_not_end_a_job_even_where_warnings_are_errors(self, caplog: pytest.LogCaptureFixture) -> None:
        after = Listener()
        tell = Observers([Listener(ValueError("boom")), after])

        with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
            warnings.simplefilter("error")
            tell(ACCEPTED)

        assert after.heard == [ACCEPTED]
        assert "boom" in caplog.text

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
    def test_do_not_hold_back_the_end_of_the_program(self, error: Any) -> None:
        tell = Observers([Listener(error())])

        with pytest.raises(error):
            tell(ACCEPTED)

    def test_are_true_if_there_are_any(self) -> None:
        assert Observers([Listener()])
        assert not Observers([])


class TestLogEvents:
    @pytest.mark.parametrize(("event", "title", "facts"), EVENTS, ids=[title for _, title, _ in EVENTS])
    def test_writes_the_title_and_the_facts(self, event: Event, title: str, facts: dict[str, Any]) -> None:
        with structlog.testing.capture_logs() as lines:
            log_events(event)

        assert lines == [{"event": title, "log_level": "info", **WHO, **facts}]

    def test_writes_no_output_of_a_job(self) -> None:
        with structlog.testing.capture_logs() as lines:
            log_events(JobEnded(**WHO, result=RESULT))
            log_events(AttemptEnded(**WHO, attempt=1, outcome=OUTCOME))

        assert "hunter2" not in str(lines)
