"""A hard deadline on ECS: an essential container sleeps, and its end makes ECS itself end the task."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import anyio
import pytest

from fargate_runner import EcsBackend, Job, JobResult, Kind, Retry, Runner, Sidecar
from fargate_runner.testing.aws import ContainerScript, FakeAws
from tests.contract.ecs_words import IMAGE

Make = Callable[..., EcsBackend]

HOUR = timedelta(hours=1)
WATCHED = Job(image=IMAGE, command=["work"], stop_timeout=timedelta(seconds=30), sidecars=[Sidecar.watchdog(HOUR)])
ENDLESS = ContainerScript(run_for=math.inf)


@pytest.fixture
def aws(aws: FakeAws) -> FakeAws:
    aws.world.script = lambda container: ENDLESS
    return aws


async def left(backend: EcsBackend, job: Job = WATCHED) -> None:
    """Leave a job behind."""
    async with Runner(backend, namespace="tests", on_exit="detach") as runner:
        await runner.submit(job.with_(key="k"))


async def met(backend: EcsBackend) -> JobResult:
    """Meet it again, and see it to its end."""
    async with Runner(backend, namespace="tests") as runner:
        return await (await runner.attach("k")).wait()


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (ENDLESS, 143),
        (ContainerScript(run_for=math.inf, exit_code_on_sigterm=0), 0),
        (ContainerScript(run_for=math.inf, exit_code_on_sigterm=7), 7),
        (ContainerScript(run_for=math.inf, ignores_sigterm=True), 137),
    ],
    ids=["dies", "is polite", "has a code of its own", "is deaf"],
)
async def test_it_holds_with_nobody_there(make_backend: Make, aws: FakeAws, script: ContainerScript, code: int) -> None:
    aws.world.script = lambda container: script
    await left(make_backend())
    await anyio.sleep(3600 + 300)
    (task,) = aws.world.tasks.values()
    stopped = task.stopped

    result = await met(make_backend())

    assert stopped
    assert aws.calls.count("ecs.StopTask") == 0
    assert (result.outcome.kind, result.exit_code) == (Kind.TIMED_OUT, code)
    assert "hard deadline" in result.outcome.detail


async def test_a_runner_that_looks_on_is_told_the_same(make_backend: Make, aws: FakeAws) -> None:
    async with Runner(make_backend()) as runner:
        result = await (await runner.submit(WATCHED)).wait()

    assert result.outcome.kind is Kind.TIMED_OUT
    assert aws.calls.count("ecs.StopTask") == 0


@pytest.mark.parametrize(("code", "kind"), [(0, Kind.SUCCEEDED), (3, Kind.FAILED), (137, Kind.FAILED)])
async def test_a_job_that_ends_in_time_takes_the_watchdog_along(
    make_backend: Make, aws: FakeAws, code: int, kind: Kind
) -> None:
    aws.world.script = lambda container: ContainerScript(run_for=600, exit_code=code)
    async with Runner(make_backend()) as runner:
        result = await (await runner.submit(WATCHED)).wait()
    (task,) = aws.world.tasks.values()

    assert (result.outcome.kind, result.exit_code) == (kind, code)
    assert task.container("fargate-runner-deadline").exit_code == 143


async def test_the_timeout_of_a_runner_that_lives_comes_first(make_backend: Make, aws: FakeAws) -> None:
    async with Runner(make_backend()) as runner:
        result = await (await runner.submit(WATCHED.with_(timeout=HOUR / 2))).wait()

    assert result.outcome.kind is Kind.TIMED_OUT
    assert result.outcome.detail.endswith("(timeout)")


async def test_each_attempt_has_its_own(make_backend: Make, aws: FakeAws) -> None:
    async with Runner(make_backend()) as runner:
        result = await (await runner.submit(WATCHED.with_(retry=Retry(failures=2)))).wait()

    assert [attempt.outcome.kind for attempt in result.attempts] == [Kind.TIMED_OUT] * 3
    assert all(attempt.run_time is not None and attempt.run_time >= HOUR for attempt in result.attempts)


async def test_the_same_watchdog_is_the_same_definition(make_backend: Make, aws: FakeAws) -> None:
    async with Runner(make_backend()) as runner:
        jobs: list[Any] = [WATCHED.with_(command=["work", str(number)]) for number in range(3)]
        _ = [result async for result in runner.map(jobs, on_error="collect")]

    assert aws.calls.count("ecs.RegisterTaskDefinition") == 1
