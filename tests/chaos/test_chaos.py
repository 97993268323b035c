"""
A few seeds of the chaos, to prove that it works; ``nox -s chaos -- --seeds N`` runs many.

A seed that fails is run again alone with ``nox -s chaos -- --seed S``.
"""

from __future__ import annotations

from collections import Counter

import pytest

from fargate_runner import Kind
from tests.chaos.checker import violations
from tests.chaos.harness import History, live_through

pytestmark = pytest.mark.sweep

SEEDS = range(32)


@pytest.fixture(scope="module")
def histories() -> dict[int, History]:
    return {seed: live_through(seed) for seed in SEEDS}


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_the_seven_points_hold(histories: dict[int, History], seed: int) -> None:
    assert violations(histories[seed]) == []


def test_a_seed_lives_the_same_history_each_time(histories: dict[int, History]) -> None:
    seeds = [0, 1, 5, 7, 11]

    again = [live_through(seed).digest for seed in seeds]

    assert again == [histories[seed].digest for seed in seeds]


def test_enough_goes_wrong(histories: dict[int, History]) -> None:
    counts = sum((history.counts for history in histories.values()), Counter[str]())
    faults = sum((history.faults for history in histories.values()), Counter[str]())

    assert counts["kills"] > len(SEEDS)
    assert counts["replays"] > 0
    assert counts["messages"] > 0
    assert any(name.startswith("function") for history in histories.values() for name in history.killed)
    assert {"ThrottlingException", "ServerException", "cut before", "cut after", "ExpiredTokenException"} <= set(faults)


def test_jobs_end_in_every_way(histories: dict[int, History]) -> None:
    kinds = {
        attempt.outcome.kind
        for history in histories.values()
        for pages in history.pages.values()
        for attempt in pages[-1].attempts  # type: ignore[union-attr]
    }

    assert kinds == set(Kind) - {Kind.LOST}
