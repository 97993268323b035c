"""The checker of histories: of a good one it says nothing, and each of its points can turn red."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

from fargate_runner import Attempt, Job, JobResult, Kind, LogLine, Outcome, Proof, Retry
from fargate_runner._journal import Callback, Page
from fargate_runner.testing.aws import ContainerTruth, TaskTruth
from tests.chaos.checker import POINTS, violations
from tests.chaos.harness import History, Orphan, Placed, Read, Span, Told
from tests.contract.ecs_words import IMAGE

ZERO = datetime(2026, 1, 1, tzinfo=UTC)
JOB = Job(image=IMAGE, command=["fails-first", "k", "20", "2", "1"], key="k", retry=Retry(failures=1))
LINES = ("one", "two")


def moment(seconds: float) -> datetime:
    return ZERO + timedelta(seconds=seconds)


def task(number: int, begun: float, exit_code: int | None, *, ended: float | None = None, **changes: Any) -> Placed:
    ended = begun + 30 if ended is None else ended
    main = ContainerTruth(name="main", started_at=begun + 10, ended_at=ended, exit_code=exit_code, lines=LINES)
    truth = TaskTruth(
        arn=f"arn-{number}",
        started_by="fr/default/k",
        token=f"token-{number}",
        family="f",
        provider="FARGATE",
        accepted_at=begun,
        started_at=begun + 10,
        ended_at=ended,
        stopped_at=ended + 10,
        status="STOPPED",
        stop_code="EssentialContainerExited",
        stopped_reason="Essential container in task exited",
        containers={"main": main},
    )
    truth = attrs.evolve(truth, **changes)
    return Placed(key="k", attempt=number, memory_mib=512, hidden_until=begun, truth=truth)


def attempt(number: int, kind: Kind, exit_code: int | None, **changes: Any) -> Attempt:
    proof = Proof(source="describe", seen_at=ZERO)
    made = Attempt(
        number=number,
        token=f"token-{number}",
        address=f"arn-{number}",
        outcome=Outcome(kind=kind, detail="", proof=proof, exit_code=exit_code),
        vcpu=0.25,
        memory_gib=0.5,
        created_at=ZERO,
        ended_at=ZERO,
        last_lines=tuple(LogLine(text=text) for text in LINES),
    )
    return attrs.evolve(made, **changes)


GOOD = (attempt(1, Kind.FAILED, 3), attempt(2, Kind.SUCCEEDED, 0))


def page(*attempts: Attempt, ended: float | None = 100.0) -> Page:
    return Page(
        key="k",
        name="job",
        place="ecs",
        description={},
        accepted_at=ZERO,
        attempts=attempts,
        ended_at=None if ended is None else moment(ended),
    )


def result(*attempts: Attempt) -> JobResult:
    found = page(*attempts).result
    assert found is not None
    return found


def history(*attempts: Attempt, **changes: Any) -> History:
    """A job that failed once and then succeeded, seen through by one life that read its lines; or something else."""
    attempts = attempts or GOOD
    known: dict[str, Any] = {
        "seed": 0,
        "jobs": {"k": JOB},
        "tasks": [task(1, 0, 3), task(2, 50, 0)],
        "pages": {"k": [page(ended=None), page(*attempts)]},
        "spans": [Span(life="0", key="k", begun=0.0, ended=200.0, owned=True)],
        "told": [Told(life="0", key="k", at=100.0, result=result(*attempts))],
        "readings": [Read(life="0", key="k", lines=(*LINES, *LINES))],
        "cancelled": {},
        "left": [],
        "silences": [],
        "wrong": [],
        "zero": ZERO,
        "in_order": True,
        "ended": 200.0,
    }
    return History(**known | changes)


def stopped(number: int, begun: float, code: str | None, exit_code: int | None = 0) -> Placed:
    return task(number, begun, exit_code, stop_code=code)


TOLD = Told(life="f", key="k", at=101.0, result=result(*GOOD))
CLAIMED = attrs.evolve(page(*GOOD), callback=Callback(claimed_until=moment(160)))
NOTED = attrs.evolve(page(*GOOD), callback=Callback(told_at=moment(102)))


def messages(*sent: Told, **changes: Any) -> History:
    """The same, and a function tells of the end."""
    pages = {"k": [page(ended=None), page(*GOOD), CLAIMED, NOTED]}
    known: dict[str, Any] = {"pages": pages, "sent": [*sent], "noted": {"k": "f"}, "taken": {"arn-2"}}
    return history(**known | changes)


WATCHED = [Span(life="0", key="k", begun=0.0, ended=300.0, owned=True)]
DOCTORED: dict[str, tuple[int, History]] = {
    "a life was told nonsense": (0, history(wrong=["a KeyConflict that is none"])),
    "a token started two tasks": (1, history(tasks=[task(1, 0, 3), task(2, 50, 0), task(2, 91, 0, arn="arn-3")])),
    "an attempt was started under two tokens": (
        1,
        history(tasks=[task(1, 0, 3), task(2, 50, 0), task(2, 91, 0, arn="arn-3", token="token-3")]),
    ),
    "a task had no token": (1, history(tasks=[task(1, 0, 3, token=None), task(2, 50, 0)])),
    "an attempt began before the one before had stopped": (2, history(tasks=[task(1, 0, 3), task(2, 39, 0)])),
    "an attempt never stopped and another began": (
        2,
        history(tasks=[task(1, 0, 3, stopped_at=None), task(2, 50, 0)]),
    ),
    "a job has no final record": (3, history(pages={"k": [page(ended=None)]})),
    "a job has no page at all": (3, history(pages={})),
    "a job has two final records": (3, history(pages={"k": [page(*GOOD), page(*GOOD)]})),
    "a final record was changed": (3, history(pages={"k": [page(*GOOD), page(ended=None)]})),
    "a final record was forgotten": (3, history(pages={"k": [page(*GOOD), None]})),
    "a final record was written again, with a note": (
        3,
        messages(TOLD, pages={"k": [page(*GOOD), attrs.evolve(page(*GOOD, ended=101.0), callback=Callback())]}),
    ),
    "an end was told twice": (8, messages(TOLD, attrs.evolve(TOLD, life="g"))),
    "an end was told twice by one": (8, messages(TOLD, TOLD)),
    "an end was told that is none": (8, messages(TOLD, pages={"k": [page(ended=None)]})),
    "another end was told": (8, messages(attrs.evolve(TOLD, result=result(GOOD[0])))),
    "an end was told and nobody wrote that down": (8, messages(TOLD, noted={})),
    "an event was taken and nobody was told": (8, messages()),
    "two lives were told different ends": (
        3,
        history(
            told=[
                Told(life="0", key="k", at=100.0, result=result(*GOOD)),
                Told(life="1", key="k", at=100.0, result=result(GOOD[0])),
            ]
        ),
    ),
    "nobody was told": (3, history(told=[])),
    "a failure is called a success": (4, history(tasks=[task(1, 0, 3), task(2, 50, 1)])),
    "a stopped task is called a success": (4, history(tasks=[task(1, 0, 3), stopped(2, 50, "UserInitiated")])),
    "an interrupted task is called a success": (4, history(tasks=[task(1, 0, 3), stopped(2, 50, "SpotInterruption")])),
    "no exit code is called a success": (4, history(tasks=[task(1, 0, 3), task(2, 50, None)])),
    "an exit code is another": (4, history(attempt(1, Kind.FAILED, 4), GOOD[1])),
    "an end that was seen is called unknown": (4, history(GOOD[0], attempt(2, Kind.UNKNOWN, None), spans=WATCHED)),
    "an end that was seen before a silence of AWS is called unknown": (
        4,
        history(GOOD[0], attempt(2, Kind.UNKNOWN, None), spans=WATCHED, silences=[(215.0, 300.0)]),
    ),
    "an end that was seen after a silence of AWS is called unknown": (
        4,
        history(
            GOOD[0],
            attempt(2, Kind.UNKNOWN, None),
            spans=[attrs.evolve(WATCHED[0], begun=250, ended=500)],
            silences=[(250.0, 330.0)],
        ),
    ),
    "a launch that was answered is called unknown": (4, history(GOOD[0], attempt(2, Kind.UNKNOWN, None, address=None))),
    "a task that ECS knew is called lost": (4, history(GOOD[0], attempt(2, Kind.LOST, None))),
    "a task that ran is called never started": (4, history(GOOD[0], attempt(2, Kind.NEVER_STARTED, None))),
    "one that was started is called never placed": (
        4,
        history(GOOD[0], attempt(2, Kind.NEVER_STARTED, None, address=None)),
    ),
    "one is called cancelled that nobody cancelled": (
        4,
        history(
            GOOD[0],
            attempt(2, Kind.CANCELLED, 143),
            tasks=[task(1, 0, 3), stopped(2, 50, "UserInitiated", 143)],
        ),
    ),
    "one is called timed out that has no timeout": (
        4,
        history(
            GOOD[0],
            attempt(2, Kind.TIMED_OUT, 143),
            tasks=[task(1, 0, 3), stopped(2, 50, "UserInitiated", 143)],
        ),
    ),
    "one ran on although its time was up": (
        4,
        history(jobs={"k": JOB.with_(timeout=timedelta(seconds=5))}, tasks=[task(1, 0, 3, ended=250), task(2, 300, 0)]),
    ),
    "a task is in no record": (4, history(tasks=[task(1, 0, 3), task(2, 50, 0), task(3, 91, 0)])),
    "a record is of another attempt": (
        4,
        history(attempt(1, Kind.FAILED, 3, address="arn-2"), attempt(2, Kind.SUCCEEDED, 0, address="arn-1")),
    ),
    "a record is of no task": (4, history(attempt(1, Kind.FAILED, 3, address="arn-9"), GOOD[1])),
    "a size is not true": (4, history(attempt(1, Kind.FAILED, 3, memory_gib=1.0), GOOD[1])),
    "a job was run again although it succeeded": (
        4,
        history(attempt(1, Kind.SUCCEEDED, 0), attempt(2, Kind.SUCCEEDED, 0), tasks=[task(1, 0, 0), task(2, 50, 0)]),
    ),
    "a job was given up although it had another try": (
        4,
        history(GOOD[0], tasks=[task(1, 0, 3)], readings=[]),
    ),
    "attempts are not numbered in order": (
        4,
        history(GOOD[0], attempt(3, Kind.SUCCEEDED, 0), tasks=[task(1, 0, 3), task(3, 50, 0)]),
    ),
    "a task runs at the end of all lives": (5, history(tasks=[task(1, 0, 3), task(2, 50, 0, status="RUNNING")])),
    "a runner left a task behind": (5, history(left=[Orphan(life="0", key="k", arn="arn-2")])),
    "a line is missing": (6, history(readings=[Read(life="0", key="k", lines=(*LINES, "one"))])),
    "a line came twice": (6, history(readings=[Read(life="0", key="k", lines=(*LINES, *LINES, "two"))])),
    "lines are in another order": (6, history(readings=[Read(life="0", key="k", lines=("two", "one", *LINES))])),
    "the last lines are not the last": (6, history(GOOD[0], attempt(2, Kind.SUCCEEDED, 0, last_lines=()))),
    "AWS turned calls away": (7, history(refused=Counter({"ecs.cluster-resource-read": 1}))),
    "more was asked than is published": (7, history(peaks={"logs.GetLogEvents": (51, 50.0)})),
    "a refused token was sent again": (7, history(sent_again=Counter({"token-1": 1}))),
}


def test_of_a_good_history_nothing_is_said() -> None:
    assert violations(history()) == []


@pytest.mark.parametrize("name", DOCTORED)
def test_a_doctored_history_turns_its_point_red(name: str) -> None:
    point, doctored = DOCTORED[name]

    assert point in {violation.point for violation in violations(doctored)}


def test_every_point_can_turn_red() -> None:
    assert {point for point, _ in DOCTORED.values()} == set(POINTS)


UNWATCHED = [Span(life="0", key="k", begun=0.0, ended=60.0, owned=True)]
STOPPED_BY_US = [task(1, 0, 3), stopped(2, 50, "UserInitiated", 143)]

EXCUSED: dict[str, History] = {
    "an end that nobody watched is unknown": history(GOOD[0], attempt(2, Kind.UNKNOWN, None), spans=UNWATCHED),
    "an end in a silence of AWS is unknown": history(GOOD[0], attempt(2, Kind.UNKNOWN, None), silences=[(40.0, 400.0)]),
    "an end is unknown if who looked for it had no answers": history(
        GOOD[0],
        attempt(2, Kind.UNKNOWN, None),
        spans=[*UNWATCHED, Span(life="1", key="k", begun=400.0, ended=900.0, owned=True)],
        silences=[(410.0, 950.0)],
    ),
    "an end without an exit code is unknown": history(
        GOOD[0], attempt(2, Kind.UNKNOWN, None), tasks=[task(1, 0, 3), task(2, 50, None)]
    ),
    "one that somebody cancelled is cancelled": history(
        GOOD[0], attempt(2, Kind.CANCELLED, 143), tasks=STOPPED_BY_US, cancelled={"k": 70.0}
    ),
    "one that somebody cancelled is not run again": history(
        GOOD[0], tasks=[task(1, 0, 3)], readings=[], cancelled={"k": 45.0}
    ),
    "an end is told once": messages(TOLD),
    "an end is told again if who told it was killed": messages(attrs.evolve(TOLD, life="g"), TOLD, killed={"g"}),
    "an end of which no event came is not told": messages(noted={}, taken={"arn-1"}),
    "lines that came late are read late": history(
        readings=[Read(life="0", key="k", lines=("two", "one", *LINES))], in_order=False
    ),
}


@pytest.mark.parametrize("name", EXCUSED)
def test_what_has_a_good_reason_is_no_violation(name: str) -> None:
    assert violations(EXCUSED[name]) == []
