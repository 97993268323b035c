"""
Killed with SIGKILL on the ECS backend: a real aioboto3, over the fake AWS's HTTP face, which is not killed.

FARGATE_RUNNER_KILLED_POINTS and FARGATE_RUNNER_KILLED_MOMENTS say how often, in steps of five.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from random import Random

import pytest

from fargate_runner.testing.aws import ContainerRun, ContainerScript, FakeAws, Ingestion, Pace, Quotas
from tests.contract.ecs_words import script
from tests.ecs import truths
from tests.killed import account
from tests.killed.batch import ENDS, Plan
from tests.killed.lives import how_many

pytestmark = [pytest.mark.sweep, pytest.mark.timeout(600)]

PARTS = 5
POINTS = how_many("FARGATE_RUNNER_KILLED_POINTS", 40)
MOMENTS = how_many("FARGATE_RUNNER_KILLED_MOMENTS", 50)


def plays(run: ContainerRun) -> ContainerScript:
    """The words of the contract, and one whose exit code each attempt has its own."""
    verb, *codes = run.command
    if verb == "exits_by_attempt":
        return ContainerScript(run_for=0.05, exit_code=int(codes[int(run.environment["FARGATE_RUNNER_ATTEMPT"]) - 1]))
    return script(run, run_for=0.05)


@pytest.fixture
def aws() -> FakeAws:
    return FakeAws(
        script=plays,
        clusters=("jobs",),
        quotas=Quotas.unlimited(),
        pace=Pace.instant(),
        visible_after=(0.0, 0.0),
        ingestion=Ingestion(least=0.0, most=0.05),
    )


@pytest.fixture
async def plan(aws: FakeAws, tmp_path: Path) -> AsyncGenerator[Plan]:
    async with aws.serve(moto=False) as url:
        yield Plan(place="ecs", directory=tmp_path, namespace="killed", batch="batch", url=url)


def doubles(aws: FakeAws) -> list[tuple[str, int]]:
    """The attempts of which more than one task was ever started."""
    times = Counter(truths.attempt_of(aws, truth.arn) for truth in aws.world.truth())
    return [whose for whose, count in times.items() if count > 1]


async def kept_secrets(aws: FakeAws) -> list[str]:
    reply = await aws.ssm.call("GetParametersByPath", {"Path": "/killed", "Recursive": True})
    return [parameter["Name"] for parameter in reply["Parameters"]]


@pytest.mark.parametrize("part", range(PARTS))
async def test_killed_wherever_every_job_ends_once(aws: FakeAws, plan: Plan, part: int) -> None:
    points = account.points_of(part, PARTS, POINTS)

    toll = await account.take(plan, points=points, moments=MOMENTS // PARTS, chance=Random(part))

    print(f"part {part}: {toll}", *toll.at_points, sep="; ")
    assert not toll.faults, "\n".join(toll.faults)
    assert doubles(aws) == []
    assert len(aws.world.truth()) == toll.batches * sum(attempts for _, attempts in ENDS.values())
    assert truths.alive(aws) == []
    # Whoever is killed between the record of a job and forgetting it leaves what was kept for it.
    assert len(await kept_secrets(aws)) <= toll.unforgotten
    assert len(toll.at_points) == len(points)
