"""
Many jobs on a bad day, by seed: throttles, lost answers, hidden tasks, Spot, no capacity, late lines.

A seed that fails is run again with ``pytest "tests/ecs/test_chaos.py::test_…[seed]"``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from random import Random
from typing import Any

import anyio
import attrs
import pytest

from fargate_runner import Capacity, EcsBackend, Job, JobResult, Kind, Retry, Runner
from fargate_runner.backends.ecs._watch import Cadence
from fargate_runner.testing.aws import (
    Chaos,
    ContainerRun,
    ContainerScript,
    FakeAws,
    Ingestion,
)
from fargate_runner.testing.clock import VirtualClock
from tests.contract.ecs_words import IMAGE
from tests.ecs import truths
from tests.ecs.conftest import NETWORK, ROLES

pytestmark = pytest.mark.sweep

JOBS = 40
LADDER = [Capacity.spot(), Capacity.spot(), Capacity.fargate()]


def script(container: ContainerRun) -> ContainerScript:
    number = int(container.environment["FARGATE_RUNNER_ATTEMPT"])
    verb, name = container.command
    lines = tuple(f"{name}/{number}/{n}" for n in range(5))
    match verb:
        case "fails-once":
            return ContainerScript(lines=lines, run_for=20.0, exit_code=0 if number > 1 else 3)
        case "fails":
            return ContainerScript(lines=lines, run_for=20.0, exit_code=3)
        case "waits":
            return ContainerScript(lines=lines, run_for=math.inf)
        case _:
            return ContainerScript(lines=lines, run_for=20.0)


VERBS = ("succeeds", "succeeds", "succeeds", "fails-once", "fails", "waits")


def make_jobs(seed: int) -> list[Job]:
    random = Random(seed)
    retry = Retry(failures=1, never_started=5, interruptions=10)
    return [
        Job(
            image=IMAGE,
            command=[random.choice(VERBS), f"job-{n}"],
            key=f"job-{n}",
            retry=retry,
            timeout=timedelta(minutes=2),
        )
        for n in range(JOBS)
    ]


@attrs.define
class Day:
    """What came of it."""

    aws: FakeAws
    results: list[JobResult]
    lines: dict[str, list[str]]
    errors: list[Exception]


async def live(aws: FakeAws, clock: VirtualClock, jobs: Sequence[Job]) -> Day:
    day = Day(aws, [], {}, [])
    backend = EcsBackend(
        "jobs",
        network=NETWORK,
        roles=ROLES,
        capacity=LADDER,
        session=aws.session(),
        region=aws.region,
        utcnow=clock.utcnow,
        cadence=Cadence(period=5.0),
    )

    async def see(runner: Runner, job: Job) -> None:
        try:
            handle = await runner.submit(job)
            day.lines[handle.key] = [str(line) async for line in handle.logs()]
            day.results.append(await handle.wait())
        except Exception as exc:
            day.errors.append(exc)

    async with Runner(backend, utcnow=clock.utcnow) as runner, anyio.create_task_group() as tasks:
        for job in jobs:
            tasks.start_soon(see, runner, job)
    return day


def a_bad_day(seed: int, jobs: Sequence[Job], **changes: Any) -> Day:
    clock = VirtualClock()
    aws = FakeAws(
        clock=clock,
        seed=seed,
        script=script,
        clusters=("jobs",),
        visible_after=(0.0, 20.0),
        chaos=Chaos.moderate(seed, **changes),
        ingestion=Ingestion(most=8.0, empty_pages=0.1, short_pages=0.1),
    )
    outages = Random(seed)
    aws.world.capacity.out("FARGATE_SPOT", seconds=outages.uniform(0, 120))
    aws.world.capacity.out(zone=f"{aws.region}a", seconds=outages.uniform(0, 120))
    return anyio.run(live, aws, clock, jobs, backend_options={"loop_factory": clock.loop})


def untold(day: Day) -> list[str]:
    """The jobs whose lines are not those that their containers wrote."""
    truth = {truth.arn: truth for truth in day.aws.world.truth()}
    return [
        result.key
        for result in day.results
        if day.lines[result.key]
        != [
            line
            for attempt in result.attempts
            if attempt.address is not None
            for line in truth[attempt.address].containers["main"].lines
        ]
    ]


EXPECTED = {
    "succeeds": {Kind.SUCCEEDED},
    "fails-once": {Kind.SUCCEEDED},
    "fails": {Kind.FAILED},
    "waits": {Kind.TIMED_OUT},
}


def unexpected(day: Day, jobs: Sequence[Job]) -> list[str]:
    """The jobs that ended in a way that is neither theirs nor said to be unknown."""
    verbs = {job.key: job.command[0] for job in jobs if job.command}
    return [
        f"{result.key} {verbs[result.key]}: {result.outcome}"
        for result in day.results
        if result.outcome.kind not in {*EXPECTED[verbs[result.key]], Kind.UNKNOWN, Kind.LOST}
    ]


@pytest.mark.parametrize("seed", range(30))
def test_a_bad_day_ends_well(seed: int) -> None:
    jobs = make_jobs(seed)

    day = a_bad_day(seed, jobs)

    assert day.errors == []
    assert sorted(result.key for result in day.results) == sorted(f"job-{n}" for n in range(JOBS))
    assert unexpected(day, jobs) == []
    assert truths.doubled_tokens(day.aws) == []
    assert truths.doubled_attempts(day.aws) == []
    assert truths.untrue(day.aws, day.results) == []
    assert truths.alive(day.aws) == []
    assert untold(day) == []
