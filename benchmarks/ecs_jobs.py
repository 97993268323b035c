"""
A thousand jobs at once on the fake AWS, under the quotas that AWS publishes, in virtual time.

Counts what AWS would count: calls for each job, calls a second in each of its buckets, calls in each sweep of the
watcher and of the log reader, and every line.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from typing import Any

import anyio

from benchmarks._report import Row
from fargate_runner import EcsBackend, Job, JobResult, Network, Roles, Runner
from fargate_runner.testing.aws import ContainerRun, ContainerScript, FakeAws, Ingestion, Quotas
from fargate_runner.testing.clock import VirtualClock

_LINES = 40


def _talking(container: ContainerRun) -> ContainerScript:
    number = int(container.command[1])
    lines = tuple(f"{number}/{n}" for n in range(_LINES))
    return ContainerScript(run_for=30 + number % 90, exit_code=0, lines=lines)


async def _thousand(aws: FakeAws, clock: VirtualClock, jobs: int) -> tuple[list[JobResult], Counter[str], Counter[str]]:
    backend = EcsBackend(
        "jobs",
        network=Network(subnets=["subnet-0aaaaaaaa00000001"]),
        roles=Roles(execution="arn:aws:iam::123456789012:role/execution"),
        session=aws.session(),
        region=aws.region,
        utcnow=clock.utcnow,
    )
    results: list[JobResult] = []
    lines: Counter[str] = Counter()

    async def one(number: int) -> None:
        job = Job(image="registry.example/talking:1", command=["talk", str(number)])
        handle = await runner.submit(job)
        async for line in handle.logs():
            lines[line.text] += 1
        results.append(await handle.wait())

    async with Runner(backend) as runner, anyio.create_task_group() as tasks:
        for number in range(jobs):
            tasks.start_soon(one, number)
    return results, lines, Counter(backend.api.stats.calls)


def run(*, jobs: int = 1000) -> list[Row]:
    """Measure."""
    clock = VirtualClock()
    quotas = Quotas.published(vcpus=None, spot_vcpus=None)
    ingestion = Ingestion(delay=(0.5, 8.0))
    aws = FakeAws(clock=clock, script=_talking, clusters=("jobs",), quotas=quotas, ingestion=ingestion, seed=1)
    results, lines, calls = anyio.run(_thousand, aws, clock, jobs, backend_options={"loop_factory": clock.loop})

    seconds = clock.time()
    print(f"{jobs} jobs in {seconds:,.0f} virtual seconds; calls: {dict(calls)}", file=sys.stderr)
    wanted = Counter(f"{number}/{n}" for number in range(jobs) for n in range(_LINES))
    wrong = sum((wanted - lines).values()) + sum((lines - wanted).values())
    rows = [
        Row("ECS calls for each job", _of(calls, "ecs.") / jobs, 2.0, "calls", "RunTask + 1", 0.9),
        Row("jobs that did not end as they should", sum(not r.succeeded for r in results), 1, "jobs", "", 0.0),
        Row("lines lost or doubled, random ingestion delay", wrong, 1, "lines", f"of {jobs * _LINES:,}", 0.0),
        Row("throttled calls", aws.calls.throttled, 1, "calls", f"of {sum(calls.values()):,}", 0.0),
    ]
    for bucket, (peak, allowed) in sorted(_peaks(aws, quotas).items()):
        rows.append(Row(f"busiest 10 s of {bucket}", peak, allowed, "calls", "the published quota", 1.0))
    for operation, sweep in (("DescribeTasks", 2.0), ("FilterLogEvents", 2.0)):
        most = _busiest(aws, operation, 1.0)
        rows.append(Row(f"{operation} in the busiest second", most, math.ceil(jobs / 100), "calls", "ceil(n/100)", sweep))
    return rows


def _of(calls: Counter[str], service: str) -> int:
    return sum(count for name, count in calls.items() if name.startswith(service))


def _peaks(aws: FakeAws, quotas: Any, window: float = 10.0) -> dict[str, tuple[int, float]]:
    """Return the most calls in any *window* of each bucket, and what its token bucket would allow there."""
    moments: dict[str, list[float]] = {}
    for call in aws.calls.log:
        for bucket in call.buckets:
            moments.setdefault(bucket, []).append(call.at)
    return {
        bucket: (_most(times, window), quotas.rates[bucket].burst + window * quotas.rates[bucket].refill)
        for bucket, times in moments.items()
        if bucket in quotas.rates
    }


def _busiest(aws: FakeAws, operation: str, window: float) -> int:
    return _most([call.at for call in aws.calls.log if call.operation == operation], window)


def _most(times: list[float], window: float) -> int:
    most = start = 0
    for end, moment in enumerate(times):
        while times[start] < moment - window:
            start += 1
        most = max(most, end - start + 1)
    return most
