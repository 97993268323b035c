"""A session of aiobotocore's that somebody hands in: whatever its version, the backend works with it."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator

import pytest
from aiobotocore.session import get_session

from fargate_runner import EcsBackend, Job, Kind, Network, Roles, Runner
from fargate_runner.backends.ecs._logs import LogCadence
from fargate_runner.backends.ecs._watch import Cadence
from fargate_runner.testing.aws import ContainerRun, ContainerScript, FakeAws, Ingestion, Pace, Quotas


def script(container: ContainerRun) -> ContainerScript:
    return {
        "greets": ContainerScript(run_for=0.2, lines=("hello", "wörld")),
        "fails": ContainerScript(run_for=0.2, exit_code=3),
        "waits": ContainerScript(run_for=math.inf, lines=("ready",)),
    }[container.command[0]]


@pytest.fixture
def anyio_backend() -> object:
    return "asyncio"


@pytest.fixture
async def url() -> AsyncGenerator[str]:
    aws = FakeAws(
        script=script,
        pace=Pace.instant(),
        quotas=Quotas.unlimited(),
        visible_after=(0.0, 0.0),
        ingestion=Ingestion(least=0.0, most=0.0),
        clusters=("jobs",),
    )
    async with aws.serve(moto=False) as url:
        yield url


@pytest.fixture
async def runner(url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Runner]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    backend = EcsBackend(
        "jobs",
        network=Network(subnets=["subnet-0aaaaaaaa00000001"]),
        roles=Roles(execution="arn:aws:iam::123456789012:role/execution"),
        session=get_session(),
        region="us-east-1",
        endpoint_url=url,
        cadence=Cadence.quick(),
        log_cadence=LogCadence.quick(),
    )
    async with Runner(backend) as runner:
        yield runner


def job(word: str) -> Job:
    return Job(image="registry.example/job:1", command=[word])


async def test_a_job_runs_and_its_lines_are_read(runner: Runner) -> None:
    handle = await runner.submit(job("greets"))

    lines = [line.text async for line in handle.logs()]
    result = await handle.wait()

    assert lines == ["hello", "wörld"]
    assert result.succeeded


async def test_a_failure_has_its_exit_code(runner: Runner) -> None:
    handle = await runner.submit(job("fails"))

    result = await handle.wait()

    assert (result.outcome.kind, result.exit_code) == (Kind.FAILED, 3)


async def test_a_job_is_stopped(runner: Runner) -> None:
    handle = await runner.submit(job("waits"))
    async for line in handle.logs():
        assert line.text == "ready"
        break

    result = await handle.stop()

    assert not result.succeeded
    assert result.outcome.kind is Kind.CANCELLED


async def test_an_error_of_aws_is_ours(runner: Runner) -> None:
    backend = runner.backend
    assert isinstance(backend, EcsBackend)

    with pytest.raises(Exception, match="ClusterNotFoundException") as caught:
        await backend.api.call("ecs.ListTasks", cluster="nowhere")

    assert type(caught.value).__name__ == "ApiError"
    assert backend.api.parser == "stock"
