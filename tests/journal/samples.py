"""Pages as runners write them, one for each state that a job can be left in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import attrs

from fargate_runner import Attempt, Identity, Job, Kind, Launch, LogLine, Outcome, Proof, Retry, Rule, TaskRef
from fargate_runner._journal import Page
from fargate_runner._lifecycle import StopAsked

START = datetime(2026, 11, 29, 8, 30, 0, 250_000, tzinfo=UTC)
PLACE = "ecs arn:aws:ecs:eu-west-1:123456789012:cluster/jobs"

JOB = Job(
    name="nightly",
    image="123456789012.dkr.ecr.eu-west-1.amazonaws.com/reports:7",
    command=["python3", "-m", "reports", "--für", "Zürich"],
    env={"LEVEL": "debug", "EMPTY": ""},
    vcpu=0.5,
    memory_gib=1,
    timeout=timedelta(hours=2),
    key="nightly/2026-11-29",
)
POLICY = Retry(
    failures=2, rules=[Rule(then="retry", exit_codes={75}, times=5), Rule(then="give_up", kinds={Kind.LOST})]
)

# As they were described by the version that wrote the pages of v1; a later one may say more of them.
DESCRIPTION: dict[str, Any] = {
    "image": "123456789012.dkr.ecr.eu-west-1.amazonaws.com/reports:7",
    "command": ["python3", "-m", "reports", "--für", "Zürich"],
    "entry_point": None,
    "name": "nightly",
    "env": {"LEVEL": "debug", "EMPTY": ""},
    "secrets": {},
    "working_directory": None,
    "ephemeral_storage_gib": None,
    "architecture": None,
    "timeout": 7200.0,
    "start_timeout": 600.0,
    "stop_timeout": 30.0,
    "tags": {},
    "container_name": "main",
    "sidecars": [],
    "depends_on": None,
    "ecs": None,
    "size": {"cpu_units": 512, "memory_mib": 1024},
}
RETRY: dict[str, Any] = {
    "failures": 2,
    "out_of_memory": 0,
    "never_started": 3,
    "interruptions": 10,
    "max_memory_gib": 244.0,
    "rules": [
        {"then": "retry", "kinds": None, "exit_codes": [75], "times": 5},
        {"then": "give_up", "kinds": ["lost"], "exit_codes": None, "times": 3},
    ],
}


def token(attempt: int) -> str:
    return f"{'abcdefghijklmnopqrstuvwxyz234567' * 2}"[:51] + str(attempt)


def address(attempt: int) -> str:
    return f"arn:aws:ecs:eu-west-1:123456789012:task/jobs/{attempt:032x}"


def launch(attempt: int = 1) -> Launch:
    return Launch(
        token=token(attempt),
        identity=Identity(namespace="default", key="nightly/2026-11-29", attempt=attempt),
        job_name="nightly",
        description=DESCRIPTION,
        request={"cluster": "jobs", "taskDefinition": "fr-nightly:3", "overrides": {"cpu": "512", "memory": "1024"}},
    )


def ref(attempt: int = 1) -> TaskRef:
    return TaskRef(
        backend="ecs",
        address=address(attempt),
        key="nightly/2026-11-29",
        attempt=attempt,
        token=token(attempt),
        description={"size": DESCRIPTION["size"]},
        created_at=START + timedelta(seconds=3 + 600 * attempt),
    )


def attempt(number: int, kind: Kind, exit_code: int | None, *lines: LogLine) -> Attempt:
    began = START + timedelta(minutes=10 * number)
    proof = Proof(source="describe", seen_at=began + timedelta(minutes=9), evidence="Essential container exited")
    return Attempt(
        number=number,
        token=token(number),
        address=address(number),
        outcome=Outcome(
            kind=kind, detail=f"exit code {exit_code}", proof=proof, exit_code=exit_code, advice="read its last lines"
        ),
        vcpu=0.5,
        memory_gib=1.0,
        created_at=began,
        started_at=began + timedelta(seconds=40),
        ended_at=began + timedelta(minutes=8, microseconds=1),
        last_lines=lines,
        logs_complete=number > 1,
    )


LINES = (
    LogLine(text="Zürich: 漢字 \N{PILE OF POO}", at=START + timedelta(minutes=11), attempt=1),
    LogLine(text="Traceback (most recent call last):", stream="stderr", container="sidecar", attempt=1),
)

INTENT = Page(
    key="nightly/2026-11-29",
    name="nightly",
    place=PLACE,
    description=DESCRIPTION,
    retry=RETRY,
    accepted_at=START,
    launch=launch(),
    launched_at=START + timedelta(seconds=1),
)
ACKNOWLEDGED = attrs.evolve(INTENT, ref=ref())
STOP_ASKED = attrs.evolve(ACKNOWLEDGED, stop=StopAsked(kind=Kind.TIMED_OUT, reason="it ran for more than 2:00:00"))
RETRIED = attrs.evolve(
    INTENT,
    attempts=(attempt(1, Kind.FAILED, 75, *LINES),),
    launch=launch(2),
    launched_at=START + timedelta(minutes=20),
    ref=ref(2),
)
TERMINAL = attrs.evolve(
    INTENT,
    attempts=(*RETRIED.attempts, attempt(2, Kind.SUCCEEDED, 0, LogLine(text="done", attempt=2))),
    launch=None,
    launched_at=None,
    ended_at=START + timedelta(minutes=30),
)

SAMPLES = {
    "intent": INTENT,
    "acknowledged": ACKNOWLEDGED,
    "stop-asked": STOP_ASKED,
    "retried": RETRIED,
    "terminal": TERMINAL,
}


def page(key: str = "job", **changes: Any) -> Page:
    """A small page."""
    small = Page(key=key, name="job", place=PLACE, description={"command": ["true"]}, accepted_at=START)
    return attrs.evolve(small, **changes)


def ended(page: Page, at: datetime = START + timedelta(minutes=30)) -> Page:
    """The page with a final record."""
    return attrs.evolve(page, attempts=TERMINAL.attempts, launch=None, launched_at=None, ref=None, ended_at=at)
