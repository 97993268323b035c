"""
What it costs to watch 10,000 jobs: the processor time of a run that is counted and shown, beside one that nobody hears.

In virtual time, on a backend with nothing behind it: what is measured is the runner, and then the observer on top.
"""

from __future__ import annotations

import io
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack

import anyio

from benchmarks._report import Row
from fargate_runner import Identity, Job, MemoryBackend, Runner
from fargate_runner.backends.memory import Script
from fargate_runner.progress import Progress, Tally
from fargate_runner.telemetry import Event, JobAccepted, JobQueued
from fargate_runner.testing.clock import VirtualClock

_AT_ONCE = 1000


def _script(job: Job, identity: Identity) -> Script:
    number = int(job.name.removeprefix("job-"))
    return Script(start_after=number % 7, run_for=30 + number % 90, exit_code=int(number % 50 == 0), lines=("the end",))


def _jobs(number: int) -> Iterator[Job]:
    return (Job(name=f"job-{n}", command=["x"]) for n in range(number))


def _nobody(event: Event) -> None:
    """Hear, and do nothing."""


async def _run(jobs: int, way: str) -> float:
    began = time.process_time()
    async with AsyncExitStack() as stack:
        observers: list[Callable[[Event], None]] = []
        if way == "an observer that does nothing":
            observers = [_nobody]
        elif way in {"counted", "shown"}:
            progress = Progress(jobs, mode="plain" if way == "shown" else "none", file=io.StringIO())
            observers = [await stack.enter_async_context(progress)]
        runner = await stack.enter_async_context(Runner(MemoryBackend(_script), observers=observers))
        async for _ in runner.map(_jobs(jobs), concurrency=_AT_ONCE, as_completed=True, on_error="collect"):
            pass
    return time.process_time() - began


def _seconds(jobs: int, way: str) -> float:
    return anyio.run(_run, jobs, way, backend_options={"loop_factory": VirtualClock().loop})


def _bytes_under_way(jobs: int) -> float:
    tally = Tally(jobs, clock=lambda: 0.0)
    events = [(JobQueued(key=f"{n:024x}", job="j"), JobAccepted(key=f"{n:024x}", job="j")) for n in range(jobs)]
    tracemalloc.start()
    for queued, accepted in events:
        tally(queued)
        tally(accepted)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return taken / jobs


def run(*, jobs: int = 10_000, rounds: int = 5) -> list[Row]:
    """Return the rows of this part."""
    ways = "nobody hears", "an observer that does nothing", "counted", "shown"
    # In turn, and the best of each: the machine is not ours alone.
    times = [{way: _seconds(jobs, way) for way in ways} for _ in range(rounds)]
    best = {way: min(one[way] for one in times) for way in ways}
    each = {way: 1e6 * seconds / jobs for way, seconds in best.items()}
    return [
        Row("a job, counted", each["counted"], each["nobody hears"], "µs CPU", "no observer", 1.15),
        Row(
            "a job, counted", each["counted"], each["an observer that does nothing"], "µs CPU", "an idle observer", 1.1
        ),
        # Four looks for each virtual second, which is a millisecond here: far more than on a real clock. No goal.
        Row("a job, counted and shown in lines", each["shown"], each["nobody hears"], "µs CPU", "no observer"),
        Row("memory of the tally for each job under way", _bytes_under_way(jobs), 2500, "B", "a job in flight", 0.15),
    ]
