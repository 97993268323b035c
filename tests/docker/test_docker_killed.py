"""A runner that is killed with SIGKILL, at random moments, on a real engine: the next one accounts for everything."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest

from fargate_runner import DockerBackend, Job, Phase, Runner

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine"), pytest.mark.timeout(300)]

IMAGE = "fargate-runner-test/busybox:latest"

# Submits keyed jobs and tells of each step on stdout, so that the test can kill it at a step and not at a time.
VICTIM = """
import sys, anyio
from fargate_runner import DockerBackend, Job, Phase, Runner

def say(event):
    print(type(event).__name__, getattr(event, "phase", ""), event.key, flush=True)

async def one(runner, number):
    script = f"echo {number}; sleep 1; exit {number}"
    job = Job(image=sys.argv[2], command=["sh", "-c", script], key=f"{sys.argv[1]}/{number}")
    await (await runner.submit(job)).wait()

async def main():
    async with Runner(DockerBackend(), namespace="killed", observers=[say]) as runner:
        print("open", flush=True)
        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(one, runner, number)

anyio.run(main)
"""


def job(key: str, number: int) -> Job:
    return Job(image=IMAGE, command=["sh", "-c", f"echo {number}; sleep 1; exit {number}"], key=f"{key}/{number}")


def killed_after(lines: int, key: str, *, delay: Iterator[float], saying: str = "") -> set[int]:
    """
    Run the victim and kill it some moments after it has said so many lines with *saying* in them.

    Returns the jobs of which it has told the end itself, and may have begun to remove what is left of them.
    """
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, key, IMAGE], stdout=subprocess.PIPE, text=True)
    with victim:
        assert victim.stdout is not None
        said = list(itertools.islice((line for line in victim.stdout if saying in line), lines))
        try:
            victim.wait(next(delay))
        except subprocess.TimeoutExpired:
            victim.send_signal(signal.SIGKILL)
        said.extend(victim.stdout)
    assert victim.returncode in {-signal.SIGKILL, 0}
    return {int(line.rpartition("/")[2]) for line in said if line.startswith("JobEnded")}


@pytest.mark.parametrize("seed", range(20))
async def test_after_a_kill_every_job_ends_once_and_nothing_is_left(seed: int) -> None:
    chance, key = random.Random(seed), uuid.uuid4().hex
    moments = iter(lambda: chance.random() * 0.2, None)
    told = killed_after(chance.randrange(1, 20), key, delay=moments)

    async with Runner(DockerBackend(), namespace="killed") as runner:
        before = {n: await runner.backend.find("killed", f"{key}/{n}") for n in range(6)}
        handles = [await runner.submit(job(key, n)) for n in range(6)]
        results = [await handle.wait() for handle in handles]

    async with DockerBackend() as backend:
        left = [ref for n in range(6) for ref in await backend.find("killed", f"{key}/{n}")]
    assert all(len(refs) <= 1 for refs in before.values())
    # What the victim was just removing has an end that was told; here it is lost, or without its lines.
    ends = {n: (result.outcome, result.last_lines) for n, result in enumerate(results) if n not in told}
    assert {n: outcome.exit_code for n, (outcome, _) in ends.items()} == {n: n for n in ends}, ends
    assert {n: [line.text for line in lines] for n, (_, lines) in ends.items()} == {n: [str(n)] for n in ends}
    assert {results[n].outcome.exit_code for n in told} <= {*told, None}, results
    assert [len(result.attempts) for result in results] == [1] * 6
    assert left == []


async def test_a_killed_runners_job_is_met_running() -> None:
    key = uuid.uuid4().hex
    killed_after(2, key, delay=iter([0.0]), saying=f"PhaseReached {Phase.RUNNING}")

    async with Runner(DockerBackend(), namespace="killed") as runner:
        found = {n: await runner.backend.find("killed", f"{key}/{n}") for n in range(6)}
        alive = [n for n, refs in found.items() if refs]
        results = [await (await runner.submit(job(key, n))).wait() for n in alive]

    assert alive
    assert [result.exit_code for result in results] == alive
