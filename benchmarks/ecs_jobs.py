"""
A thousand jobs at once on the fake AWS, under the quotas that AWS publishes, in virtual time.

Counts what AWS would count: calls for each job, calls a second in each of its buckets, calls in each sweep of the
watcher and of the log reader, and every line of every job.
"""

from __future__ import annotations

import math
import sys
import time
from collections import defaultdict

import anyio
import attrs

from benchmarks._report import Row
from fargate_runner import EcsBackend, Job, JobResult, Kind, Network, Roles, Runner
from fargate_runner.testing.aws import ContainerRun, ContainerScript, FakeAws, Ingestion, Quotas
from fargate_runner.testing.clock import VirtualClock

_LINES = 40
_PERIOD = 2.0
"""Seconds between two looks, and between two sweeps of the streams."""


@attrs.define
class _Seen:
    """What the callers of the SDK got."""

    results: dict[int, JobResult] = attrs.field(factory=dict)
    lines: dict[int, list[str]] = attrs.field(factory=lambda: defaultdict(list))


def _exit_code(number: int) -> int:
    return 3 if number % 10 == 7 else 0


def _written(number: int) -> list[str]:
    return [f"{number}/{line}" for line in range(_LINES)]


def _talking(container: ContainerRun) -> ContainerScript:
    number = int(container.command[1])
    return ContainerScript(run_for=30 + number % 90, exit_code=_exit_code(number), lines=tuple(_written(number)))


async def _many(aws: FakeAws, clock: VirtualClock, jobs: int) -> _Seen:
    backend = EcsBackend(
        "jobs",
        network=Network(subnets=["subnet-0aaaaaaaa00000001"]),
        roles=Roles(execution="arn:aws:iam::123456789012:role/execution"),
        session=aws.session(),
        region=aws.region,
        utcnow=clock.utcnow,
    )
    seen = _Seen()

    async def one(number: int) -> None:
        handle = await runner.submit(Job(image="registry.example/talking:1", command=["talk", str(number)]))
        async for line in handle.logs():
            seen.lines[number].append(line.text)
        seen.results[number] = await handle.wait()

    async with Runner(backend) as runner, anyio.create_task_group() as tasks:
        for number in range(jobs):
            tasks.start_soon(one, number)
    return seen


def run(*, jobs: int = 1000, seed: int = 1) -> list[Row]:
    """Measure."""
    clock = VirtualClock()
    quotas = Quotas.published()
    ingestion = Ingestion(least=0.5, most=8.0, short_pages=0.1, empty_pages=0.1)
    aws = FakeAws(clock=clock, script=_talking, clusters=("jobs",), quotas=quotas, ingestion=ingestion, seed=seed)
    began = time.perf_counter()
    seen = anyio.run(_many, aws, clock, jobs, backend_options={"loop_factory": clock.loop})
    took = time.perf_counter() - began

    print(f"{jobs:,} jobs in {clock.time():,.0f} virtual seconds, {took:.1f} real ones", file=sys.stderr)
    print(f"calls: {dict(aws.calls.operations.most_common())}", file=sys.stderr)
    sweep = math.ceil(jobs / 100)
    return [
        Row("jobs with a wrong result", _wrong_results(seen, jobs), 1, "jobs", f"{jobs:,} jobs", 0.0),
        Row("jobs with a line lost, doubled or moved", _wrong_lines(seen, jobs), 1, "jobs", f"{jobs:,} jobs", 0.0),
        Row("tasks launched", len(aws.world.tasks), jobs, "tasks", "one for each job", 1.0),
        Row("throttled calls", aws.calls.throttled.total(), 1, "calls", f"{len(aws.calls):,} calls", 0.0),
        _for_each_job(aws, jobs, "ecs", 2.0, "RunTask, and the looks of all"),
        _for_each_job(aws, jobs, "logs", 4.0, "two for its last lines, and the sweeps of all"),
        _in_a_sweep(aws, "ecs.DescribeTasks", sweep),
        _in_a_sweep(aws, "logs.FilterLogEvents", sweep),
        *(_under_quota(aws, bucket, window) for bucket in sorted(aws.calls.buckets) for window in (1.0, 10.0)),
        Row("wall time", took, 60, "s", "a minute", 1.0),
    ]


def _wrong_results(seen: _Seen, jobs: int) -> int:
    wanted = {number: (Kind.FAILED if _exit_code(number) else Kind.SUCCEEDED) for number in range(jobs)}
    return sum(
        number not in seen.results
        or (seen.results[number].outcome.kind, seen.results[number].outcome.exit_code) != (kind, _exit_code(number))
        for number, kind in wanted.items()
    )


def _wrong_lines(seen: _Seen, jobs: int) -> int:
    return sum(seen.lines[number] != _written(number) for number in range(jobs))


def _for_each_job(aws: FakeAws, jobs: int, service: str, goal: float, against: str) -> Row:
    calls = sum(count for called, count in aws.calls.operations.items() if called.startswith(f"{service}."))
    return Row(f"{service}: calls for each job", calls / jobs, 1, "calls", against, goal)


def _in_a_sweep(aws: FakeAws, called: str, sweep: int) -> Row:
    """Return the most calls within one period, beside what it takes to ask for everything once."""
    times = sorted(call.at for call in aws.calls.of(called) if "nextToken" not in call.request)
    most = first = 0
    for last, at in enumerate(times):
        while times[first] <= at - _PERIOD + 1e-6:
            first += 1
        most = max(most, last - first + 1)
    # Further pages are not counted. Streams that have just begun are asked for apart from those known to be there.
    return Row(f"{called} in its busiest sweep", most, sweep, "calls", "ceil(n / 100)", 2.0)


def _under_quota(aws: FakeAws, bucket: str, window: float) -> Row:
    rate = aws.quotas.rates.get(bucket)
    allowed = math.inf if rate is None else rate.refill * window + (0 if bucket.startswith("logs.") else rate.burst)
    against = "the published quota" if rate is not None else "no published quota"
    return Row(f"{bucket}: busiest {window:.0f} s", aws.calls.peak(bucket, window), allowed, "calls", against, 1.0)
