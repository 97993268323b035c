"""
Many jobs at once under AWS's published quotas: this library, what people write without it, and what is possible.

The fake AWS runs in a process of its own and in real time; each way is a process of its own, too. The fake is the
judge: what is counted are its tasks and the calls that came in, and a moment of knowing is held against the moment at
which it called the task STOPPED. Every way gets the same account: the same quotas, the same lives of tasks.
"""

from __future__ import annotations

import math
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final

import anyio
import attrs

from benchmarks import _clients, _memory
from benchmarks._account import Judged, Truth, account, dump, fake
from benchmarks._clients import Said
from benchmarks._report import Row
from benchmarks.bad_days import has_events, seldom_collected
from fargate_runner.testing.aws import Delivery
from fargate_runner.testing.clock import VirtualClock

__all__ = ["Measured", "measure", "run", "run_memory", "run_most", "run_virtual"]

_READS: Final = ("ecs.DescribeTasks", "ecs.ListTasks")
_PERIOD: Final = 2.0
"""Seconds between two looks, in the bound: what a client that polls and wants no worse latency has to do."""
_NAIVE: Final = ("aioboto3", "aioboto3-standard", "aioboto3-adaptive", "boto3-threads")
_CALLED: Final = {
    "aioboto3": "aioboto3, a waiter for each job",
    "aioboto3-standard": "the same, retry mode standard, 10 attempts",
    "aioboto3-adaptive": "the same, retry mode adaptive, 10 attempts",
    "boto3-threads": "boto3, a thread and a waiter for each job",
    "batching": "the same batching over stock describe_tasks",
}


def launch_span(jobs: int, *, distinct: bool) -> float:
    """Return the seconds that AWS's token buckets need at least: 20 launches a second, and 20 calls of RunTask."""
    return max(0.0, (jobs - (20 if distinct else 100)) / 20)


@attrs.frozen(kw_only=True)
class Measured:
    """A way, what it said, and what really happened."""

    way: str
    jobs: int
    said: Said
    truth: Truth

    @property
    def distinct(self) -> bool:
        return self.way == "ours-distinct"

    def _right(self) -> Iterator[tuple[Judged, _clients.Known]]:
        tasks = {task.arn: task for task in self.truth.tasks}
        for known in self.said.known:
            task = tasks.get(known.arn or "")
            if task is not None and task.stopped_at is not None and known.exit_code == task.exit_code:
                yield task, known

    @property
    def lost(self) -> int:
        """Jobs without a result, or with one that is not theirs."""
        return self.jobs - len({task.arn for task, _ in self._right()})

    @property
    def unowned(self) -> int:
        """Tasks whose end nobody knows: they ran on, and cost, when their client had given up on them."""
        right = {task.arn for task, _ in self._right()}
        return sum(task.arn not in right for task in self.truth.tasks)

    @property
    def calls(self) -> float:
        """ECS calls for each job that has its result."""
        return self.truth.count("ecs.") / max(1, self.jobs - self.lost)

    @property
    def throttled(self) -> float:
        """Of ECS calls, in per cent."""
        return self.truth.count("ecs.", "ThrottlingException") / max(1, self.truth.count("ecs.")) * 100

    def latency(self, share: float, *, result: bool = False) -> float:
        """Return how long after the true stop the end was seen, or its result at hand."""
        found = sorted(
            (known.result_at if result else known.seen_at) - task.stopped_at  # type: ignore[operator]
            for task, known in self._right()
        )
        return found[min(len(found) - 1, math.ceil(share * len(found)) - 1)] if found else math.nan

    @property
    def reads(self) -> int:
        return sum(self.truth.count(called) for called in _READS)

    @property
    def in_flight(self) -> float:
        """Seconds that tasks were in flight, all together."""
        return sum(task.stopped_at - task.accepted_at for task in self.truth.tasks if task.stopped_at is not None)

    @property
    def efficiency(self) -> float:
        """E: 1 is what even polling with full batches costs, whatever its period."""
        return self.reads * self.latency(0.99) / (self.in_flight / 100)

    @property
    def launch_span(self) -> float:
        accepted = [task.accepted_at for task in self.truth.tasks]
        return max(accepted) - min(accepted)

    @property
    def makespan(self) -> float:
        """From the first launch until the last end that this way saw."""
        seen = [known.seen_at for _, known in self._right() if known.seen_at is not None]
        return max(seen) - min(task.accepted_at for task in self.truth.tasks) if seen else math.nan

    def behind(self, *, result: bool = False) -> float:
        """Return how long after the last true stop everything was known."""
        seen = [known.result_at if result else known.seen_at for _, known in self._right()]
        stops = [task.stopped_at for task in self.truth.tasks if task.stopped_at is not None]
        return max((at for at in seen if at is not None), default=math.nan) - max(stops)

    @property
    def cpu(self) -> float:
        """Milliseconds of the client for each job."""
        return self.said.cpu / self.jobs * 1e3

    # What is possible, with the lives that its tasks had.

    @property
    def least_makespan(self) -> float:
        """As if tasks were launched at AWS's rate, and every end seen at once."""
        lives = [task.stopped_at - task.accepted_at for task in self._in_order() if task.stopped_at is not None]
        at_once = 20 if self.distinct else 100
        return max((max(0.0, (number - at_once + 1) / 20) + life for number, life in enumerate(lives)), default=0.0)

    def _in_order(self) -> list[Judged]:
        return sorted(self.truth.tasks, key=lambda task: task.accepted_at)

    @property
    def least_calls(self) -> float:
        """As if ten identical jobs went out with each call, and a hundred were looked at with each, every 2 s."""
        return self.jobs / (1 if self.distinct else 10) + self.in_flight / (100 * _PERIOD)

    def tell(self) -> None:
        """Write all of it to the standard error stream."""
        by_operation = ", ".join(
            f"{called.removeprefix('ecs.')} {self.truth.count(called) / self.jobs:.3f}"
            for called in sorted({called for called, _ in self.truth.calls})
        )
        errors = [known.error for known in self.said.known if known.error]
        span, bound = self.launch_span, launch_span(self.jobs, distinct=self.distinct)
        said = [
            f"N={self.jobs:,} {self.way}: lost {self.lost}, unowned {self.unowned}, ECS calls/job {self.calls:.3f}, "
            f"throttled {self.throttled:.2f} %, E {self.efficiency:.2f}",
            f"  end seen p50 {self.latency(0.5):.2f} p99 {self.latency(0.99):.2f} s, "
            f"result p99 {self.latency(0.99, result=True):.2f} s, all seen {self.behind():.2f} s after the last stop",
            f"  launches {span:.1f} s (bound {bound:.1f}), "
            f"makespan {self.makespan:.1f} s (bound {self.least_makespan:.1f})",
            f"  CPU {self.cpu:.2f} ms/job, peak RSS {self.said.peak_rss / 1e6:.0f} MB; "
            f"the fake's CPU {self.truth.cpu:.1f} s; took {self.said.took:.0f} s",
            f"  calls/job: {by_operation}",
            *([f"  {len(errors)} errors, such as {errors[0]}"] if errors else []),
        ]
        print(
            *said,
            sep="\n  ",
            file=sys.stderr,
            flush=True,
        )


def measure(way: str, jobs: int, *, scale: float = 1.0, seed: int = 1, share: float | None = None) -> Measured:
    """Run so many jobs in a way of `_clients.WAYS`, and wait until none of their tasks runs any more."""
    with account(scale=scale, seed=seed) as aws:
        # Naive ones wait ten minutes for a task, and launch as their retries please.
        patience = 900.0 + 2 * launch_span(jobs, distinct=True)
        said = _clients.say(way, aws.url, jobs, patience=patience, share=share)
        truth, calls = aws.truth(), None
        while any(task.stopped_at is None for task in truth.tasks):
            # What nobody waits for any more still runs. How long is of interest, what is asked meanwhile is not.
            calls = calls or truth.calls
            time.sleep(5)
            truth = aws.truth()
    measured = Measured(way=way, jobs=jobs, said=said, truth=attrs.evolve(truth, calls=calls or truth.calls))
    measured.tell()
    return measured


def measure_virtual(way: str, jobs: int, *, seed: int = 1, share: float | None = None) -> Measured:
    """
    Run one of our ways in virtual time and in this process.

    What it asks of AWS and when it knows is the same, whatever else runs on this machine; its CPU time is that of the
    fake as well.
    """
    clock = VirtualClock()
    aws = fake(clock=clock, seed=seed)
    used, began = time.process_time(), time.perf_counter()
    session: dict[str, Any] = {"session": aws.session(), "utcnow": clock.utcnow}
    run = partial(_clients.ours, jobs, share=share, **_clients.OURS[way], **session)
    with seldom_collected():
        known = anyio.run(run, backend_options={"loop_factory": clock.loop})
    used, took = time.process_time() - used, time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    said = Said(known=tuple(known), cpu=used, peak_rss=peak, took=took)
    measured = Measured(way=way, jobs=jobs, said=said, truth=Truth.of(dump(aws) | {"cpu": 0.0}))
    measured.tell()
    return measured


# ---- rows ----------------------------------------------------------------------------------------------------------


def _ours(it: Measured) -> list[Row]:
    """Return the figures that have a goal, and what else there is to say of a run of ours."""
    jobs, bound = it.jobs, launch_span(it.jobs, distinct=it.distinct)
    name = f"fanout, N={jobs:,}, {it.way}"
    # The goals of the launches are those of ten thousand: a thousand are through before a steady state is reached.
    many, most = jobs >= 1000, jobs >= 10_000
    thousand = many and not most
    calls = 1.8 if it.distinct else 0.2 if it.way == "ours-events" else 0.9
    # A second from when the event is there, which the fake EventBridge brings within another one.
    seen = 1.0 + Delivery().most if it.way == "ours-events" else 2.5
    p99, p50 = it.latency(0.99), it.latency(0.5)
    return [
        Row(f"{name}: jobs lost", it.lost, 1, "jobs", f"of {jobs:,}", 0.0),
        Row(f"{name}: tasks that nobody owns", it.unowned, 1, "tasks", f"of {len(it.truth.tasks):,}", 0.0),
        Row(f"{name}: ECS calls for each job", it.calls, 1, "calls", "a call a job", calls if thousand else None),
        Row(
            f"{name}: ECS calls", it.truth.count("ecs."), it.least_calls, "calls", "bound by polling: full batches, 2 s"
        ),
        Row(f"{name}: throttled ECS calls", it.throttled, 1, "%", "1 %", 1.0 if many else None),
        Row(f"{name}: end seen, p50", p50, 1, "s", "1 s after the true stop"),
        Row(f"{name}: end seen, p99", p99, 1, "s", "1 s after the true stop", seen if thousand else None),
        Row(f"{name}: result in hand, p99", it.latency(0.99, result=True), p99, "s", "its end seen, p99"),
        Row(f"{name}: polling efficiency E", it.efficiency, 1, "", "even polling, full batches", 1.3 if many else None),
        Row(f"{name}: launch span", it.launch_span, bound, "s", "bound by quotas", 1.05 if most else None),
        Row(f"{name}: makespan", it.makespan, it.least_makespan, "s", "bound by quotas and lives"),
        Row(f"{name}: all seen after the last true stop", it.behind(), 1, "s", "1 s", 3.0 if most else None),
        Row(f"{name}: all results after the last true stop", it.behind(result=True), 1, "s", "1 s"),
        Row(f"{name}: CPU for each job", it.cpu, 1, "ms", "1 ms"),
        Row(f"{name}: peak RSS", it.said.peak_rss / 1e6, 1, "MB", "1 MB"),
    ]


def _beside(ours: Measured, theirs: Measured) -> list[Row]:
    """Return ours beside another way of the same number of jobs."""
    name, against = f"fanout, N={ours.jobs:,}", _CALLED[theirs.way]
    goal = 0.45 if theirs.way == "batching" and ours.jobs >= 10_000 else None
    return [
        Row(f"{name}, {theirs.way}: jobs lost", ours.lost, theirs.lost, "jobs", against),
        Row(f"{name}, {theirs.way}: tasks that nobody owns", ours.unowned, theirs.unowned, "tasks", against),
        Row(f"{name}, {theirs.way}: ECS calls for each result", ours.calls, theirs.calls, "calls", against),
        Row(f"{name}, {theirs.way}: ECS calls", ours.truth.count("ecs."), theirs.truth.count("ecs."), "calls", against),
        Row(f"{name}, {theirs.way}: throttled ECS calls", ours.throttled, theirs.throttled, "%", against),
        Row(f"{name}, {theirs.way}: end seen, p50", ours.latency(0.5), theirs.latency(0.5), "s", against),
        Row(f"{name}, {theirs.way}: end seen, p99", ours.latency(0.99), theirs.latency(0.99), "s", against),
        Row(f"{name}, {theirs.way}: polling efficiency E", ours.efficiency, theirs.efficiency, "", against),
        Row(f"{name}, {theirs.way}: makespan", ours.makespan, theirs.makespan, "s", against),
        Row(f"{name}, {theirs.way}: CPU for each job", ours.cpu, theirs.cpu, "ms", against, goal),
        Row(f"{name}, {theirs.way}: peak RSS", ours.said.peak_rss / 1e6, theirs.said.peak_rss / 1e6, "MB", against),
    ]


def _together(jobs: int, others: Sequence[str], *, scale: float, share: float | None = None) -> list[Row]:
    ours = measure("ours", jobs, scale=scale, share=share)
    rows = _ours(ours)
    for way in others:
        try:
            theirs = measure(way, jobs, scale=scale)
        except subprocess.TimeoutExpired:
            print(f"  N={jobs:,} {way}: not done after all that patience, and left out", file=sys.stderr)
            continue
        rows += _ours(theirs) if way.startswith("ours") else _beside(ours, theirs)
    return rows


def run(*, quick: bool = False) -> list[Row]:
    """
    Measure up to a thousand jobs.

    A quick look has few jobs and tasks that live a tenth of the time: its figures are for a glance, none is a goal.
    """
    if quick:
        return _together(100, ["ours-distinct", *_events(), "aioboto3"], scale=0.1)
    rows = _together(50, ["aioboto3"], scale=1.0)
    rows += _together(200, _NAIVE, scale=1.0)
    return rows + _together(1000, ["ours-distinct", *_events(), "batching", "aioboto3"], scale=1.0)


def run_virtual(*, jobs: Sequence[int] = (1000, 10_000)) -> list[Row]:
    """Measure our ways in virtual time: all but what depends on the machine."""
    measured = [measure_virtual(way, count) for count in jobs for way in ("ours", "ours-distinct", *_events())]
    of_machine = ("CPU for each job", "peak RSS")
    return [
        attrs.evolve(row, name=row.name.replace("fanout", "virtual", 1))
        for it in measured
        for row in _ours(it)
        if not row.name.endswith(of_machine)
    ]


def run_most() -> list[Row]:
    """Measure ten thousand jobs: twelve minutes for each way. A naive one would need hours, and lose most."""
    return _together(10_000, [*_events(), "batching"], scale=1.0)


def _events() -> list[str]:
    return ["ours-events"] if has_events() else []


# ---- memory --------------------------------------------------------------------------------------------------------


def _for_each(way: str, jobs: int, few: int) -> float:
    """Return the bytes of RSS for each job in flight."""
    found: list[int] = []
    for count in (few, jobs):
        with account(quotas="none", life="forever") as aws:
            found.append(_memory.measure(way, aws.url, count)["rss"])
    return (found[1] - found[0]) / (jobs - few)


def run_memory(*, jobs: int = 10_000, few: int = 100) -> list[Row]:
    """Have all jobs in flight, none of which ends, and see what each of them takes."""
    name = f"memory, N={jobs:,}"
    ours, distinct, theirs = (_for_each(way, jobs, few) / 1000 for way in ("ours", "ours-distinct", "aioboto3"))
    return [
        Row(f"{name}: RSS for each job in flight", ours, 1, "KB", "1 KB", 2.5),
        Row(f"{name}: RSS for each job in flight", ours, theirs, "KB", "a coroutine with an aioboto3 waiter", 0.12),
        Row(f"{name}: RSS for each job, all distinct, the jobs included", distinct, 1, "KB", "1 KB"),
    ]
