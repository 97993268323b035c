"""
Bad days at AWS, in virtual time and in this process: a throttling storm, and ten thousand jobs of which many go wrong.

The fake AWS knows what really happened to every task. A result is right if it says that, attempt by attempt.
"""

from __future__ import annotations

import cProfile
import gc
import inspect
import math
import pstats
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import anyio
import attrs

from benchmarks._account import CLUSTER, REGION, pace_of
from benchmarks._clients import our_backend
from benchmarks._report import Row
from fargate_runner import Capacity, EcsBackend, Job, JobResult, Kind, Runner
from fargate_runner.testing.aws import (
    ContainerRun,
    ContainerScript,
    Delivery,
    FakeAws,
    Fault,
    Quotas,
    TaskRun,
    TaskScript,
    TaskTruth,
)
from fargate_runner.testing.clock import VirtualClock

__all__ = ["has_events", "run_storm", "run_trouble", "seldom_collected"]

_STORM: Final = 60.0
_START_FAILURES: Final = 0.02
_INTERRUPTIONS: Final = 0.05
_FAILURES: Final = 0.01
_EVENTS_LOST: Final = 0.1
_NOT_STARTED: Final = "Timeout waiting for network interface provisioning to complete."
_QUEUE: Final = "benchmarks"
_READS: Final = ("ecs.DescribeTasks", "ecs.ListTasks")


def has_events() -> bool:
    """Whether our backend listens to a queue of events."""
    return "events" in inspect.signature(EcsBackend).parameters


# ---- many jobs, of which some go wrong -----------------------------------------------------------------------------


def _work(run: ContainerRun, *, seed: int) -> ContainerScript:
    number = int(run.command[1])
    failed = Random(f"{seed}/job/{number}").random() < _FAILURES
    return ContainerScript(run_for=Random(f"{seed}/{run.number}").uniform(10, 120), exit_code=3 if failed else 0)


def _trouble(run: TaskRun, *, seed: int) -> TaskScript:
    chance = Random(f"{seed}/trouble/{run.number}")
    dice, after = chance.random(), chance.uniform(0, 60)
    if dice < _START_FAILURES:
        return TaskScript(fails_to_start=_NOT_STARTED)
    if dice < _START_FAILURES + _INTERRUPTIONS:
        return TaskScript(interrupted_after=after)
    return TaskScript()


@attrs.define
class _Seen:
    results: dict[str, JobResult] = attrs.field(factory=dict)
    after: dict[str, float] = attrs.field(factory=dict)
    """When each result was there."""


async def _map(aws: FakeAws, clock: VirtualClock, jobs: Iterator[Job], count: int) -> _Seen:
    more: dict[str, Any] = {"events": _QUEUE} if has_events() else {}
    backend = our_backend(session=aws.session(), utcnow=clock.utcnow, capacity=Capacity.spot(), **more)
    if more:
        await backend.make_events()
    seen = _Seen()
    async with Runner(backend, utcnow=clock.utcnow) as runner:
        async for result in runner.map(jobs, concurrency=count, as_completed=True, on_error="collect"):
            seen.results[result.key] = result
            seen.after[result.key] = clock.time()
    return seen


def wrong(results: dict[str, JobResult], truth: list[TaskTruth], jobs: int) -> list[str]:
    """Return what is wrong with the results, beside what really happened; nothing if all is right."""
    tasks = {task.arn: task for task in truth}
    said: list[str] = []
    told = Counter(attempt.address for result in results.values() for attempt in result.attempts if attempt.address)
    if len(results) != jobs:
        said.append(f"{jobs} jobs and {len(results)} results")
    said += [f"{arn}: {times} attempts" for arn, times in told.items() if times != 1]
    said += [f"{arn}: nobody's" for arn in tasks if arn not in told]
    for result in results.values():
        for attempt in result.attempts:
            task = tasks.get(attempt.address or "")
            if task is None or attempt.outcome.kind is not _kind_of(task):
                was = None if task is None else (task.stop_code, task.stopped_reason, _exit_code(task))
                said.append(f"{result.key}: {attempt.outcome.kind} for {was}")
        if result.outcome.kind not in {Kind.SUCCEEDED, Kind.FAILED}:
            said.append(f"{result.key}: {result.outcome}")
    return said


def _exit_code(task: TaskTruth) -> int | None:
    return next(iter(task.containers.values())).exit_code


def _kind_of(task: TaskTruth) -> Kind:
    if task.stop_code == "TaskFailedToStart":
        return Kind.NEVER_STARTED
    if task.stop_code == "SpotInterruption":
        return Kind.INTERRUPTED
    return Kind.FAILED if _exit_code(task) else Kind.SUCCEEDED


@contextmanager
def _profiled(file: Path | None) -> Iterator[None]:
    if file is None:
        yield
        return
    profile = cProfile.Profile()
    profile.enable()
    try:
        yield
    finally:
        profile.disable()
        profile.dump_stats(file)


@contextmanager
def seldom_collected() -> Iterator[None]:
    """
    Have the garbage collector look at everything seldom.

    The fake remembers all that ever happened, so that it can be asked. To walk through that again and again takes a
    third of the time of ten thousand jobs, and is nothing that happens to who runs them on AWS.
    """
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def run_trouble(*, jobs: int = 10_000, seed: int = 1, profile: Path | None = None) -> list[Row]:
    """Run many jobs on Spot of which some do not start, some are interrupted and some fail."""
    clock = VirtualClock()
    aws = FakeAws(
        clock=clock,
        script=partial(_work, seed=seed),
        task_script=partial(_trouble, seed=seed),
        pace=pace_of(1.0),
        clusters=(CLUSTER,),
        quotas=Quotas.published(REGION),
        delivery=Delivery(lost=_EVENTS_LOST),
        seed=seed,
        region=REGION,
    )
    asked = (Job(image="registry.example/job:1", command=["work", str(number)]) for number in range(jobs))
    began, used = time.perf_counter(), time.process_time()
    with seldom_collected(), _profiled(profile):
        seen = anyio.run(_map, aws, clock, asked, jobs, backend_options={"loop_factory": clock.loop})
    took, used = time.perf_counter() - began, time.process_time() - used
    truth = aws.world.truth()
    mistakes = wrong(seen.results, truth, jobs)
    for mistake in mistakes[:10]:
        print(f"wrong: {mistake}", file=sys.stderr)
    unread = sum(not attempt.logs_complete for result in seen.results.values() for attempt in result.attempts)
    kinds = Counter(_kind_of(task).value for task in truth)
    print(f"{len(truth):,} tasks ({dict(kinds)}), calls: {dict(aws.calls.operations.most_common())}", file=sys.stderr)
    events = f"events 10 % lost; {clock.time():,.0f} virtual s" if has_events() else f"{clock.time():,.0f} virtual s"
    name = f"trouble, N={jobs:,}"
    return [
        Row(f"{name}: wrong results", len(mistakes), 1, "jobs", "what really happened", 0.0),
        Row(f"{name}: throttled calls", _throttled(aws), 1, "%", "of all ECS calls", 1.0),
        Row(f"{name}: attempts whose last lines were not read in time", unread, len(truth), "attempts", "all of them"),
        # CPU time is what it takes where nothing else runs; both run in one thread that never waits.
        Row(f"{name}: CPU time, client and fake", used, 60, "s", f"a minute; {events}", 1.0),
        Row(f"{name}: real time", took, used, "s", "its CPU time: the rest went to others on this machine"),
    ]


def _throttled(aws: FakeAws) -> float:
    calls = sum(count for called, count in aws.calls.operations.items() if called.startswith("ecs."))
    return sum(count for called, count in aws.calls.throttled.items() if called.startswith("ecs.")) / calls * 100


# ---- a storm -------------------------------------------------------------------------------------------------------


async def _in_a_storm(aws: FakeAws, clock: VirtualClock, jobs: int, begins: float, *, storm: bool) -> list[JobResult]:
    backend = our_backend(session=aws.session(), utcnow=clock.utcnow)

    async def throttle() -> None:
        await anyio.sleep_until(begins)
        fault = Fault(match="ecs.*", times=math.inf, code="ThrottlingException", message="Rate exceeded")
        if storm:
            aws.faults.add(fault)
        await anyio.sleep(_STORM)
        aws.faults.clear()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(throttle)
        async with Runner(backend, utcnow=clock.utcnow) as runner:
            job = Job(image="registry.example/job:1", command=["work"])
            results = runner.map((job for _ in range(jobs)), concurrency=jobs, as_completed=True, on_error="collect")
            return [result async for result in results]


def _storm(jobs: int, *, storm: bool, seed: int) -> tuple[FakeAws, list[JobResult], float]:
    clock = VirtualClock()
    script = ContainerScript(run_for=jobs / 10)
    aws = FakeAws(clock=clock, script=script, pace=pace_of(1.0), clusters=(CLUSTER,), seed=seed, region=REGION)
    begins = 20 + jobs / 15  # by then all are launched, and none has ended
    run = partial(_in_a_storm, storm=storm)
    results = anyio.run(run, aws, clock, jobs, begins, backend_options={"loop_factory": clock.loop})
    return aws, results, begins


def run_storm(*, jobs: int = 1000, seed: int = 1) -> list[Row]:
    """Have AWS refuse every ECS call for a minute while many jobs are waited for."""
    aws, results, begins = _storm(jobs, storm=True, seed=seed)
    calm, _, _ = _storm(jobs, storm=False, seed=seed)

    def within(fake: FakeAws, first: float, last: float) -> int:
        return sum(first <= call.at < last and call.called.startswith("ecs.") for call in fake.calls)

    during, usual = within(aws, begins, begins + _STORM), within(calm, begins, begins + _STORM)
    budget = 0.85 * 20 * _STORM  # of reads, `Budget`
    failed = jobs - sum(result.succeeded for result in results)
    running = sum(task.accepted_at < begins for task in aws.world.truth())
    name = f"storm, N={jobs:,}"
    return [
        Row(f"{name}: failed jobs", failed, 1, "jobs", f"{running:,} tasks were running", 0.0),
        Row(f"{name}: tasks", len(aws.world.tasks), jobs, "tasks", "one for each job", 1.0),
        Row(f"{name}: calls during it", during, budget, "calls", "our share of the read quota", 1.1),
        Row(f"{name}: calls during it", during, usual, "calls", "the same minute without it", 1.1),
    ]


def _shares(file: Path) -> dict[str, float]:
    """Return which part of a profile's own time each place takes: the client, the fake, asyncio, …"""
    places: dict[str, float] = defaultdict(float)
    stats: Any = pstats.Stats(str(file))
    for (name, _, _), (_, _, own, _, _) in stats.stats.items():
        parts = Path(name).parts
        if "testing" in parts:
            place = "the fake"
        elif "fargate_runner" in parts:
            place = "the client"
        else:
            place = next((part for part in ("anyio", "asyncio", "attr", "botocore", "tenacity") if part in parts), "")
        places[place or "everything else"] += own
    whole = sum(places.values())
    return {place: own / whole for place, own in sorted(places.items(), key=lambda item: -item[1])}


if __name__ == "__main__":
    count, out = int(sys.argv[1]), Path(sys.argv[2])
    for row in run_trouble(jobs=count, profile=out):
        print(f"{row.name}: {row.ours:.6g} {row.unit}")
    print({place: round(share, 3) for place, share in _shares(out).items()})
    pstats.Stats(str(out)).sort_stats("tottime").print_stats(45)
