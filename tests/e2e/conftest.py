"""What the tests share that run real containers behind the fake AWS."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator

import pytest

from fargate_runner.testing.aws import FakeAws, Ingestion, Pace, Quotas
from fargate_runner.testing.aws._docker import DockerEngine


@pytest.fixture(scope="session")
def program(engine: None) -> Iterator[str]:
    """``python -m fargate_runner.testing.aws --docker`` in a process of its own; its value is the URL."""
    words = [sys.executable, "-m", "fargate_runner.testing.aws", "--docker", "--pace", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONWARNINGS": "error"})
    assert process.stdout is not None
    with process.stdout:
        where = process.stdout.readline()
        try:
            yield where.split()[-1]
        finally:
            process.terminate()
            code = process.wait(60)
    assert code == 0
    left = ["docker", "ps", "--all", "--quiet", "--filter", "label=fargate-runner.fake-aws"]
    assert subprocess.run(left, capture_output=True, text=True, check=True).stdout == ""


@pytest.fixture
async def real(engine: None) -> AsyncGenerator[FakeAws]:
    """A fake AWS in this process whose tasks are real containers."""
    docker = DockerEngine()
    async with docker.running():
        yield FakeAws(
            engine=docker,
            pace=Pace.instant(),
            visible_after=(0.0, 0.0),
            ingestion=Ingestion(least=0.0, most=0.0),
            quotas=Quotas.unlimited(),
            log_groups=("/jobs",),
        )
