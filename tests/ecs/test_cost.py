"""What jobs on AWS cost: what the records say, and what a tally made of it on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fargate_runner import Capacity, EcsBackend, Job, JobResult, Runner
from fargate_runner.progress import Standing, Tally
from fargate_runner.reports.cost import Cost, cost
from fargate_runner.testing.aws import ContainerScript, FakeAws
from fargate_runner.testing.clock import VirtualClock
from tests.contract.ecs_words import IMAGE

Make = Callable[..., EcsBackend]


@pytest.fixture
def aws(clock: VirtualClock) -> FakeAws:
    return FakeAws(clock=clock, script=lambda container: ContainerScript(run_for=3600), clusters=("jobs",))


async def run(backend: EcsBackend, clock: VirtualClock, **fields: Any) -> tuple[JobResult, Standing, list[float]]:
    tally = Tally(1, clock=clock.time)
    spent: list[float] = []

    def watch(event: object) -> None:
        so_far = tally.standing().cost
        spent.append(so_far.usd if so_far is not None else 0.0)

    job = Job(image=IMAGE, vcpu=1, memory_gib=2, **fields)
    async with Runner(backend, observers=[tally, watch], utcnow=clock.utcnow) as runner:
        result = await runner.run(job)
    return result, tally.standing(), spent


@pytest.mark.parametrize(
    ("capacity", "fields", "usd", "spot"),
    [
        (Capacity.fargate(), {}, 0.04937, 0),
        (Capacity.fargate(), {"architecture": "ARM64"}, 0.0395, 0),
        (Capacity.fargate(), {"ephemeral_storage_gib": 100}, 0.04937 + 0.00888, 0),
        (Capacity.spot(), {}, 0.04937, 1),
    ],
    ids=str,
)
async def test_an_hour_costs_an_hour_and_the_start(
    make_backend: Make, clock: VirtualClock, capacity: Capacity, fields: dict[str, Any], usd: float, spot: int
) -> None:
    result, standing, spent = await run(make_backend(capacity=capacity), clock, **fields)

    counted = cost(result)
    assert usd <= counted.usd <= 1.05 * usd
    assert (counted.attempts, counted.spot, counted.unpriced) == (1, spot, 0)
    assert standing.cost == counted
    # On the way it is counted up to when we hear of the end, which is a little later.
    assert spent[:-1] == sorted(spent[:-1])
    assert spent[-2] == pytest.approx(counted.usd, rel=0.02)


async def test_what_runs_on_instances_of_its_own_has_no_price(make_backend: Make, clock: VirtualClock) -> None:
    result, standing, _ = await run(make_backend(capacity=Capacity.ec2()), clock)

    assert cost(result) == standing.cost == Cost(attempts=1, unpriced=1)
