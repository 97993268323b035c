"""
What a job costs on `ProcessBackend`, against `anyio.run_process(['true'])` in the same run.

``python -m benchmarks.process_jobs [--json FILE] [--jobs N] [--rounds N]``

CPU is that of this process and of all the children it has reaped, the jobs themselves included, per job. The ways take
turns, round by round, so that a busy machine disturbs all of them alike. Opening and closing the backend is part of it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from benchmarks._report import Row, show, write
from fargate_runner import Backend, Identity, Job, ProcessBackend, Runner

GOAL = 1.25
REFERENCE = "anyio.run_process"
JOB = Job(command=["true"])
_keys = itertools.count()


def cpu() -> float:
    """CPU seconds of this process and its reaped children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


async def at_most(concurrency: int, jobs: int, one: Callable[[], Awaitable[object]]) -> None:
    """Do *one* so many times, so many at a time."""
    left = iter(range(jobs))

    async def work() -> None:
        for _ in left:
            await one()

    async with anyio.create_task_group() as tasks:
        for _ in range(concurrency):
            tasks.start_soon(work)


async def run_process(jobs: int, concurrency: int) -> None:
    """The reference: its output is captured, as ours is."""
    await at_most(concurrency, jobs, lambda: anyio.run_process(["true"]))


async def verbs(jobs: int, concurrency: int) -> None:
    """The backend alone: prepare, submit, observe to the end, read the logs, forget."""

    async def one(backend: Backend) -> None:
        identity = Identity(namespace="bench", key=f"bench/{next(_keys)}", attempt=1)
        ref = await backend.submit(await backend.prepare(JOB, identity))
        snapshot = await backend.observe(ref)
        while not snapshot.ended:
            snapshot = await backend.observe(ref, after=snapshot)
        assert snapshot.exit_code == 0
        async for _ in backend.logs(ref, follow=False, tail=50):
            pass
        await backend.forget(ref)

    async with ProcessBackend() as backend:
        await at_most(concurrency, jobs, lambda: one(backend))


async def runner_run(jobs: int, concurrency: int) -> None:
    """`Runner.run`, the whole way."""
    async with Runner(ProcessBackend()) as runner:
        await at_most(concurrency, jobs, lambda: runner.run(JOB))


async def runner_map(jobs: int, concurrency: int) -> None:
    """`Runner.map`, the whole way."""
    async with (
        Runner(ProcessBackend()) as runner,
        runner.map((JOB for _ in range(jobs)), concurrency=concurrency) as results,
    ):
        assert len([result async for result in results]) == jobs


WAYS: dict[str, Callable[[int, int], Awaitable[None]]] = {
    REFERENCE: run_process,
    "backend verbs": verbs,
    "Runner.run": runner_run,
    "Runner.map": runner_map,
}


async def measure(jobs: int, rounds: int) -> list[Row]:
    """Let the ways take turns."""
    rows: list[Row] = []
    for concurrency in (1, 8):
        for way in WAYS.values():
            await way(20, concurrency)  # imports, worker threads
        cpu_ms: dict[str, list[float]] = {name: [] for name in WAYS}
        rates: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(rounds):
            for name, way in WAYS.items():
                cpu_before, before = cpu(), time.perf_counter()
                await way(jobs, concurrency)
                cpu_ms[name].append(1000 * (cpu() - cpu_before) / jobs)
                rates[name].append(jobs / (time.perf_counter() - before))
        theirs = statistics.median(cpu_ms[REFERENCE])
        for name in [name for name in WAYS if name != REFERENCE]:
            # The median of the ratios within a round: a busy minute weighs on both sides of it alike.
            ratio = statistics.median(a / b for a, b in zip(cpu_ms[name], cpu_ms[REFERENCE], strict=True))
            title = f"{name}, {concurrency} at a time"
            goal = GOAL if name.startswith("Runner") else None
            rows.append(Row(f"process: CPU, {title}", ratio * theirs, theirs, "ms/job", REFERENCE, goal))
            rate, reference = statistics.median(rates[name]), statistics.median(rates[REFERENCE])
            rows.append(Row(f"process: rate, {title}", rate, reference, "jobs/s", REFERENCE))
    return rows


def run(*, rounds: int = 5, jobs: int = 500) -> list[Row]:
    """Measure everything."""
    return anyio.run(measure, jobs, rounds)


def main() -> int:
    """Measure, print a table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description="What a job costs on ProcessBackend.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--jobs", type=int, default=500, help="jobs of each way in a round")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    rows = run(rounds=given.rounds, jobs=given.jobs)
    show(rows)
    if given.json is not None:
        write(rows, given.json)
    return int(any(row.verdict.startswith("MISSED") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
