"""A batch script is killed at random moments, and run again until it is done: each job ran to its end, once."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Final

import anyio
import anyio.to_thread
import pytest

from fargate_runner.testing.aws import ContainerRun, ContainerScript, FakeAws, Ingestion, Pace, Quotas
from tests.ecs import truths
from tests.killed.lives import how_many

pytestmark = [pytest.mark.sweep, pytest.mark.timeout(600)]

ROOT: Final = Path(__file__).parents[2]
JOBS: Final = 150
KILLS: Final = how_many("FARGATE_RUNNER_KILLED_SCRIPTS", 12)


def plays(run: ContainerRun) -> ContainerScript:
    return ContainerScript(run_for=0.05 + int(run.command[1]) % 10 * 0.1)


def work_of(aws: FakeAws, arn: str) -> str:
    """The part that a task worked on."""
    (container,) = aws.world.tasks[arn].containers
    return container.run.command[1]


def live(url: str, journal: Path, lines: int) -> tuple[list[str], int]:
    """Run the script; kill it once it has said so many lines. Return what it said, and its exit code."""
    argv = [sys.executable, "-m", "tests.killed.script", url, str(journal), str(JOBS)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as script:
        assert script.stdout is not None
        said: list[str] = []
        for line in script.stdout:
            said.append(line.strip())
            if len(said) == lines:
                script.kill()
        return said, script.wait()


async def test_each_job_ran_to_its_end_once(tmp_path: Path) -> None:
    aws = FakeAws(
        script=plays,
        clusters=("jobs",),
        quotas=Quotas.unlimited(),
        pace=Pace.instant(),
        ingestion=Ingestion(least=0.0, most=0.05),
    )
    chance = Random(5)
    told: Counter[str] = Counter()
    killed = 0
    async with aws.serve(moto=False) as url:
        while True:
            lines = chance.randrange(1, 6 * JOBS // KILLS) if killed < KILLS else 0
            said, code = await anyio.to_thread.run_sync(live, url, tmp_path / "jobs.sqlite", lines)
            told.update(line for line in said if line.startswith("result "))
            killed += code == -9
            if code != -9:
                break

    truth = aws.world.truth()
    last = {line for line in said if line.startswith("result ")}
    assert code == 0
    assert killed == KILLS
    assert last == {f"result part {number} succeeded" for number in range(JOBS)}
    assert set(told) == last  # nobody was ever told anything else
    assert Counter(work_of(aws, task.arn) for task in truth) == {f"{number}": 1 for number in range(JOBS)}
    assert [task for task in truth if task.containers["main"].exit_code != 0] == []
    assert truths.alive(aws) == []
