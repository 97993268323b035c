"""
One job, one life that dies at one point, and another one that sees to the rest: every point, and every fault before it.

The chaos draws such histories by the thousand; here is each of the simplest ones, once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from typing import Any

import attrs
import pytest

from fargate_runner import Job, Kind, Retry
from fargate_runner.backends.ecs._logs import LogCadence
from fargate_runner.backends.ecs._watch import Cadence
from fargate_runner.testing.aws import Chaos, Delivery
from tests.chaos.checker import violations
from tests.chaos.harness import History, Years
from tests.chaos.plan import Freeze, Lifetime, Plan, Supervision
from tests.contract.ecs_words import IMAGE
from tests.ecs.test_faults import KINDS

pytestmark = pytest.mark.sweep


def job(verb: str, **changes: Any) -> Job:
    retry = Retry(failures=1, never_started=3, interruptions=3)
    return Job(image=IMAGE, command=[verb, "job", "20", "3", "1"], key="job", retry=retry).with_(**changes)


STORIES: dict[str, tuple[Job, tuple[tuple[str, float], ...], set[Kind]]] = {
    "succeeds": (job("succeeds"), (), {Kind.SUCCEEDED}),
    "is retried": (job("fails-first"), (), {Kind.SUCCEEDED}),
    "times out": (job("polite", timeout=timedelta(seconds=30), retry=Retry()), (), {Kind.TIMED_OUT}),
    # It may die before it has written down that the job is to end.
    "is stopped": (
        job("long", command=["long", "job", "100", "3", "1"]),
        (("job", 60.0),),
        {Kind.CANCELLED, Kind.SUCCEEDED},
    ),
}
SEES_IT_THROUGH = Lifetime(how="submit", leaves="sees it through", at=0.0)


def lived(story: str, first: Lifetime, *faults: Any) -> History:
    """Let one life begin a story, and another one end it."""
    one, stops, _ = STORIES[story]
    plan = Plan(
        seed=0,
        jobs=(one,),
        lives=(attrs.evolve(first, stops=stops), SEES_IT_THROUGH),
        chaos=Chaos(seed=0),
        cadence=Cadence(period=20.0),
        log_cadence=LogCadence(period=20.0),
        faults=faults,
        calm_after=1e9,
    )
    return Years(plan).run()


@cache
def undisturbed(story: str) -> tuple[int, dict[str, int]]:
    """How many steps a story takes, and how many calls of each operation."""
    years = lived(story, attrs.evolve(SEES_IT_THROUGH, leaves="killed at any step", at=math.inf))
    return years.steps, years.called


def steps() -> Iterator[Any]:
    for story in STORIES:
        for step in range(1, undisturbed(story)[0] + 1):
            yield pytest.param(story, step, id=f"{story}-{step}")


def calls() -> Iterator[Any]:
    for story in STORIES:
        for called, times in sorted(undisturbed(story)[1].items()):
            # A reader asks again and again, and nothing of it outlives a life: its first and last calls will do.
            several = range(1, times + 1) if called != "logs.GetLogEvents" else [1, 2, times - 1, times]
            for number in several:
                for how in KINDS:
                    yield pytest.param(story, called, number, how, id=f"{story}-{called}-{number}-{how}")


def check(history: History, story: str, *also: Kind) -> None:
    kinds = {page.result.outcome.kind for page in history.pages["job"][-1:] if page is not None and page.result}

    assert violations(history) == []
    assert kinds <= STORIES[story][2] | {*also}


@pytest.mark.parametrize("gap", [0.0, 56 * 60.0, 2 * 3600.0])
@pytest.mark.parametrize(("story", "step"), list(steps()))
def test_killed_at_any_step_it_ends_once(story: str, step: int, gap: float) -> None:
    history = lived(story, Lifetime(how="submit", leaves="killed at any step", at=step, gap=gap))

    check(history, story, *([Kind.UNKNOWN] if gap > 3000 else []))


@pytest.mark.parametrize("lasts", [100.0, 3 * 3600.0])
@pytest.mark.parametrize(("story", "step"), list(steps()))
def test_frozen_at_any_step_it_ends_once(story: str, step: int, lasts: float) -> None:
    """A life stands still, another one sees the job through, and the first one goes on where it stood."""
    freezes = Freeze(after=3600.0, step=step, lasts=lasts)
    history = lived(story, Lifetime(how="submit", leaves="killed at any step", at=math.inf, freezes=freezes))

    check(history, story, *([Kind.UNKNOWN] if lasts > 3000 else []))


def lived_together(first: Lifetime) -> History:
    """Let one life launch three identical jobs by one call, and another one see to whatever is written down."""
    plan = Plan(
        seed=0,
        jobs=(job("succeeds"),),
        crowd=job("succeeds", key=None, name="crowd"),
        lives=(attrs.evolve(first, crowd=3), attrs.evolve(SEES_IT_THROUGH, how="recover and submit")),
        chaos=Chaos(seed=0),
        cadence=Cadence(period=20.0),
        log_cadence=LogCadence(period=20.0),
        calm_after=1e9,
    )
    return Years(plan).run()


STEPS_TOGETHER = range(1, lived_together(attrs.evolve(SEES_IT_THROUGH, leaves="killed at any step", at=math.inf)).steps)


@pytest.mark.parametrize("step", STEPS_TOGETHER)
def test_killed_at_any_step_several_of_one_call_end_once(step: int) -> None:
    history = lived_together(Lifetime(how="submit", leaves="killed at any step", at=step, gap=2 * 3600.0))

    assert violations(history) == []


@pytest.mark.parametrize("lasts", [1.0, 3 * 3600.0])
@pytest.mark.parametrize("step", STEPS_TOGETHER)
def test_frozen_at_any_step_several_of_one_call_end_once(step: int, lasts: float) -> None:
    freezes = Freeze(after=3600.0, step=step, lasts=lasts)
    history = lived_together(Lifetime(how="submit", leaves="killed at any step", at=math.inf, freezes=freezes))

    assert violations(history) == []


@pytest.mark.parametrize(("story", "called", "number", "how"), list(calls()))
def test_killed_right_after_any_fault_at_any_call_it_ends_once(story: str, called: str, number: int, how: str) -> None:
    fault = KINDS[how](match=called, skip=number - 1)
    history = lived(
        story, Lifetime(how="submit", leaves="killed after a call", called=called, at=number, gap=5.0), fault
    )

    check(history, story)


def lived_by_functions(story: str, dies_at: float) -> History:
    """Let a life submit and leave, and functions see the story to its end; the first of them dies at a step."""
    plan = Plan(
        seed=0,
        jobs=(STORIES[story][0],),
        lives=(Lifetime(how="submit", leaves="leaves", at=10.0, gap=1800.0), SEES_IT_THROUGH),
        chaos=Chaos(seed=0),
        cadence=Cadence(period=20.0),
        log_cadence=LogCadence(period=20.0),
        calm_after=1e9,
        supervision=Supervision(
            functions=1,
            mortality=0.0,
            delivery=Delivery(duplicated=1.0, copies=3, in_order=False, most=60.0),
            journal_troubles=0.0,
            dies_at=dies_at,
        ),
    )
    return Years(plan).run()


def steps_of_functions() -> Iterator[Any]:
    for story in ("succeeds", "is retried"):
        for step in range(1, lived_by_functions(story, math.inf).function_steps["function 0.0"] + 1):
            yield pytest.param(story, step, id=f"{story}-{step}")


@pytest.mark.parametrize(("story", "step"), list(steps_of_functions()))
def test_killed_at_any_step_a_function_is_followed_by_one_that_tells_of_the_end(story: str, step: int) -> None:
    history = lived_by_functions(story, step)

    check(history, story)
    assert history.killed == {"function 0.0"}
    assert history.noted["job"] == history.sent[-1].life
    assert history.sent[-1].at < 1800  # nobody else had to look after it
