"""The last line may come late: ten seconds after ECS has called its task STOPPED."""

from __future__ import annotations

import anyio
import pytest

from fargate_runner import Runner
from fargate_runner.testing.aws import FakeAws, Ingestion
from fargate_runner.testing.clock import VirtualClock
from tests.contract.ecs_words import Words, script
from tests.ecs.test_backend import Make

GROUP = "/fargate-runner"


@pytest.fixture
def aws(clock: VirtualClock) -> FakeAws:
    return FakeAws(clock=clock, script=script, clusters=("jobs",), ingestion=Ingestion(least=0.0, most=0.0))


async def write_late(aws: FakeAws) -> None:
    """Write a line into the stream of the only task, ten seconds after its STOPPED."""
    while not (truths := aws.world.truth()) or truths[0].stopped_at is None:
        await anyio.sleep(0.1)
    await anyio.sleep(10)
    stamp = round(aws.clock.utcnow().timestamp() * 1000) - 30_000
    aws.logs.put(GROUP, f"fr/main/{truths[0].arn[-32:]}", [(stamp, "late")])


async def test_who_follows_gets_it(make_backend: Make, aws: FakeAws) -> None:
    async with Runner(make_backend()) as runner, anyio.create_task_group() as tasks:
        tasks.start_soon(write_late, aws)
        handle = await runner.submit(Words().exits())
        lines = [line.text async for line in handle.logs()]

    assert lines[-1] == "late"


async def test_so_does_the_record(make_backend: Make, aws: FakeAws) -> None:
    async with Runner(make_backend()) as runner, anyio.create_task_group() as tasks:
        tasks.start_soon(write_late, aws)
        result = await runner.run(Words().exits())

    assert result.attempts[-1].logs_complete
    assert [line.text for line in result.last_lines] == ["late"]
