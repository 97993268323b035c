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
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
import attrs

from benchmarks._report import Row
from fargate_runner import EcsBackend, Job, JobResult, Kind, Network, Roles, Runner
from fargate_runner.testing.aws import ContainerRun, ContainerScript, FakeAws, Ingestion, Quotas
from fargate_runner.testing.clock import VirtualClock

_LINES = 40
_PERIOD = 2.0
"""Seconds between two looks, and between two sweeps of the streams."""
_FEW = 10
"""So many streams may be read one by one."""


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


@attrs.frozen(kw_only=True)
class Sweep:
    """One look at all streams that are followed: what it asked CloudWatch, further pages left out."""

    at: float
    streams: int
    """Those that were asked for before or in it, and in it or later."""
    calls: int

    @property
    def allowed(self) -> int:
        """A call for each hundred streams; each its own if they are few."""
        return self.streams if self.streams <= _FEW else math.ceil(self.streams / 100)


@attrs.frozen(kw_only=True)
class Measured:
    """What was seen of some jobs, and the AWS that ran them."""

    aws: FakeAws
    seen: _Seen
    jobs: int
    virtual: float
    took: float

    def sweeps(self) -> list[Sweep]:
        """Return the sweeps over the streams that are followed, whichever operation reads them."""
        asked = sorted(
            (call.at, tuple(call.request.get("logStreamNames") or [call.request["logStreamName"]]))
            for operation in ("logs.FilterLogEvents", "logs.GetLogEvents")
            for call in self.aws.calls.of(operation)
            if _is_look(operation, call.request)
        )
        first: dict[str, float] = {}
        last: dict[str, float] = {}
        for at, names in asked:
            for name in names:
                first.setdefault(name, at)
                last[name] = at
        found: list[Sweep] = []
        while asked:
            at = asked[0][0]
            until = at + _PERIOD - 0.1  # a call may have waited for its turn a little
            calls = sum(1 for called_at, _ in asked if called_at < until)
            streams = sum(1 for name in first if first[name] < until and last[name] >= at)
            found.append(Sweep(at=at, streams=streams, calls=calls))
            del asked[:calls]
        return found

    def wrong_lines(self) -> int:
        """Return of how many jobs a line was lost, doubled or moved."""
        return sum(self.seen.lines[number] != _written(number) for number in range(self.jobs))

    def wrong_results(self) -> int:
        """Return how many jobs have no result, or not theirs."""
        wanted = {number: (Kind.FAILED if _exit_code(number) else Kind.SUCCEEDED) for number in range(self.jobs)}
        results = self.seen.results
        return sum(
            number not in results
            or (results[number].outcome.kind, results[number].outcome.exit_code) != (kind, _exit_code(number))
            for number, kind in wanted.items()
        )


def _is_look(operation: str, request: Mapping[str, Any]) -> bool:
    # The last lines of a job are read backwards, and once; those of many by a call that names its limit. Whoever reads
    # a stream alone is told by a token where it is.
    if operation == "logs.GetLogEvents":
        return bool(request.get("startFromHead", False))
    return "nextToken" not in request and "limit" not in request


async def _many(aws: FakeAws, clock: VirtualClock, jobs: int, apart: float) -> _Seen:
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
            await anyio.sleep(apart)
    return seen


def measure(*, jobs: int, seed: int = 1, apart: float = 0.0) -> Measured:
    """Run so many jobs, each submitted *apart* seconds after the one before."""
    clock = VirtualClock()
    quotas = Quotas.published()
    ingestion = Ingestion(least=0.5, most=8.0, short_pages=0.1, empty_pages=0.1)
    aws = FakeAws(clock=clock, script=_talking, clusters=("jobs",), quotas=quotas, ingestion=ingestion, seed=seed)
    began = time.perf_counter()
    seen = anyio.run(_many, aws, clock, jobs, apart, backend_options={"loop_factory": clock.loop})
    return Measured(aws=aws, seen=seen, jobs=jobs, virtual=clock.time(), took=time.perf_counter() - began)


def run(*, jobs: int = 1000, seed: int = 1) -> list[Row]:
    """Measure."""
    measured = measure(jobs=jobs, seed=seed)

    print(f"{jobs:,} jobs in {measured.virtual:,.0f} virtual seconds, {measured.took:.1f} real ones", file=sys.stderr)
    print(f"calls: {dict(measured.aws.calls.operations.most_common())}", file=sys.stderr)
    return rows(measured)


def rows(measured: Measured) -> list[Row]:
    """Return what was measured, each figure beside what it may be."""
    aws, jobs = measured.aws, measured.jobs
    sweep = math.ceil(jobs / 100)
    return [
        Row("jobs with a wrong result", measured.wrong_results(), 1, "jobs", f"{jobs:,} jobs", 0.0),
        Row("jobs with a line lost, doubled or moved", measured.wrong_lines(), 1, "jobs", f"{jobs:,} jobs", 0.0),
        Row("tasks launched", len(aws.world.tasks), jobs, "tasks", "one for each job", 1.0),
        Row("throttled calls", aws.calls.throttled.total(), 1, "calls", f"{len(aws.calls):,} calls", 0.0),
        # Of few jobs, fewer share a look.
        _for_each_job(aws, jobs, "ecs", 2.0 if jobs >= 1000 else 2.1, "RunTask, and the looks of all"),
        _for_each_job(aws, jobs, "logs", 2.0, "the sweeps of all, and last lines"),
        _in_a_sweep(aws, "ecs.DescribeTasks", sweep),
        *_log_sweeps(measured.sweeps()),
        *(_under_quota(aws, bucket, window) for bucket in sorted(aws.calls.buckets) for window in (1.0, 10.0)),
        Row("wall time", measured.took, 60, "s", "a minute", 1.0),
    ]


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
    # Tasks that have just begun are looked at twice as often, so that a period may hold two looks at some.
    return Row(f"{called} in its busiest sweep", most, sweep, "calls", "ceil(n / 100)", 2.0)


def _log_sweeps(sweeps: Sequence[Sweep]) -> list[Row]:
    busiest = max(sweeps, key=lambda sweep: sweep.calls)
    worst = max(sweeps, key=lambda sweep: sweep.calls / sweep.allowed)
    calls, allowed = sum(sweep.calls for sweep in sweeps), sum(sweep.allowed for sweep in sweeps)
    over = sum(sweep.calls > sweep.allowed for sweep in sweeps)
    against = "ceil(n / 100), n followed then"
    return [
        Row("logs: calls in the busiest sweep", busiest.calls, busiest.allowed, "calls", against, 1.0),
        Row("logs: calls in the sweep that is worst for its n", worst.calls, worst.allowed, "calls", against, 1.0),
        Row("logs: calls in all sweeps", calls, allowed, "calls", f"{against}, {len(sweeps)} sweeps", 1.0),
        Row("logs: sweeps with more than ceil(n / 100) calls", over, 1, "sweeps", f"{len(sweeps)} sweeps", 0.0),
    ]


def _under_quota(aws: FakeAws, bucket: str, window: float) -> Row:
    rate = aws.quotas.rates.get(bucket)
    allowed = math.inf if rate is None else rate.refill * window + (0 if bucket.startswith("logs.") else rate.burst)
    against = "the published quota" if rate is not None else "no published quota"
    return Row(f"{bucket}: busiest {window:.0f} s", aws.calls.peak(bucket, window), allowed, "calls", against, 1.0)
