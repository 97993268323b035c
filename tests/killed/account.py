"""A batch from its first life to its last, and what must be true of it afterwards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from random import Random
from typing import Any, Final

import anyio
import attrs

from fargate_runner._journal import Page
from tests.killed.batch import ENDS, Plan, as_plain, journal_of, told_in
from tests.killed.lives import Life, Moment, live

STEPS: Final = 180
"""A first life takes somewhat more."""
_AT_ONCE: Final = 3
"""Lives wait more than they work."""


@attrs.define
class Toll:
    """What all the batches of a test went through, and what is wrong in their books."""

    batches: int = 0
    lives: int = 0
    at_points: list[str] = attrs.field(factory=list)
    """The last step of each life that ended at a step of its own."""
    at_moments: int = 0
    """How many were killed from outside."""
    unforgotten: int = 0
    """How many were killed about when the job with a secret got its record, and before that was forgotten."""
    faults: list[str] = attrs.field(factory=list)

    def __str__(self) -> str:
        kills = f"{len(self.at_points)} kills at steps, {self.at_moments} at moments"
        return f"{self.batches} batches, {self.batches * len(ENDS)} jobs, {self.lives} lives, {kills}"


def points_of(part: int, parts: int, points: int) -> list[int]:
    """The steps of one part of a test: all parts together are killed at so many, evenly over a life, each once."""
    return [1 + point * STEPS // points for point in range(part, points, parts)]


async def take(plan: Plan, *, points: Sequence[int], moments: int, chance: Random) -> Toll:
    """Kill a batch at each of the steps, and batches at so many moments, later in their lives or from the start."""
    toll = Toll()
    room = anyio.CapacityLimiter(_AT_ONCE)
    async with anyio.create_task_group() as tasks:
        for number, point in enumerate(points):
            later = moments // len(points) + (number < moments % len(points))
            tasks.start_soon(_one, toll, _own(plan, number), point, _at_random(chance, later), room)
    while toll.at_moments < moments:
        missing = moments - toll.at_moments
        await _one(toll, _own(plan, toll.batches), 0, _at_random(chance, missing), room)
    return toll


def _own(plan: Plan, number: int) -> Plan:
    """Return the plan of a batch of its own."""
    directory = plan.directory / str(number)
    directory.mkdir()
    return attrs.evolve(plan, batch=f"{plan.batch}-{number}", directory=directory)


def _at_random(chance: Random, times: int) -> list[Moment]:
    return [Moment.at_random(chance, 60) for _ in range(times)]


async def _one(toll: Toll, plan: Plan, point: int, moments: list[Moment], room: anyio.CapacityLimiter) -> None:
    async with room:
        toll.batches += 1
        if point:
            life = await _lived(toll, attrs.evolve(plan, kill_at=point))
            toll.at_points += life.steps[-1:] if life.killed else []
        for number, moment in enumerate(moments):
            life = await _lived(toll, attrs.evolve(plan, recover=number % 2 == 0), moment)
            toll.at_moments += life.killed
            if not life.killed:
                break
        await _lived(toll, attrs.evolve(plan, recover=len(moments) % 2 == 0))
        toll.faults += await faults_of(plan)


async def _lived(toll: Toll, plan: Plan, moment: Moment | None = None) -> Life:
    toll.lives += 1
    life = await live(plan, moment)
    done = {"before write end secret", "after forget secret"} & set(life.steps)
    toll.unforgotten += life.killed and done == {"before write end secret"}
    return life


async def faults_of(plan: Plan) -> list[str]:
    """What is wrong in the books: a job without an end, with another one than it should have, or with two."""
    pages: dict[str, Page | None] = {}
    async with journal_of(plan.directory) as journal:
        await journal.bind(plan.namespace)
        for name in ENDS:
            pages[name] = await journal.read(f"{plan.batch}/{name}")
    tales: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for tale in told_in(plan.directory):
        tales[tale["key"].rpartition("/")[2]].append(tale)
    found: list[str] = []
    for name, end in ENDS.items():
        page, whose = pages[name], f"{plan.batch}/{name}"
        if page is None or page.result is None:
            found.append(f"{whose} has no end: {page}")
            continue
        if (page.result.outcome.kind, len(page.result.attempts)) != end:
            found.append(f"{whose} ended otherwise: {[attempt.outcome for attempt in page.result.attempts]}")
        if not tales[name] or any(tale != as_plain(page.result) for tale in tales[name]):
            found.append(f"{whose}: told {tales[name]}, written {as_plain(page.result)}")
    return found
