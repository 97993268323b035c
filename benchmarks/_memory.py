"""
What a job in flight costs: ``python -m benchmarks._memory WAY --url … --jobs N``, in a process of its own.

All jobs are launched, none of them ever ends, and then the process says how much memory it has. With ``--census`` it
says what that memory consists of.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio

from benchmarks._account import CLUSTER, REGION
from benchmarks._clients import KEY, definition, jobs_of, our_backend, rss, run_task_of

__all__ = ["measure"]

_MODULE: Final = "benchmarks._memory"
_AT_ONCE: Final = 50
"""Launches under way, so that the bursts of all ways are the same."""

Then = Callable[[], Awaitable[None]]


async def _ours(given: argparse.Namespace, then: Then, *, distinct: bool) -> None:
    from fargate_runner import Budget, Runner
    from fargate_runner.telemetry import AttemptLaunched

    launched, all_of_them = 0, anyio.Event()

    def observe(event: object) -> None:
        nonlocal launched
        launched += isinstance(event, AttemptLaunched)
        if launched == given.jobs:
            all_of_them.set()

    plenty = Budget(share=1.0, run_task=1e6, modify=1e6)
    async with Runner(our_backend(given.url, budget=plenty), observers=[observe]) as runner:
        results = runner.map(jobs_of(given.jobs, distinct=distinct), concurrency=given.jobs)
        await all_of_them.wait()
        await then()
        del results


async def _waiters(given: argparse.Namespace, then: Then) -> None:
    """One coroutine with a waiter for each job. Its pause is so long that none polls while others are launched."""
    import aioboto3

    turns, launched, all_of_them = asyncio.Semaphore(_AT_ONCE), 0, asyncio.Event()
    arn = definition(given.url)

    async def one(ecs: Any) -> None:
        nonlocal launched
        async with turns:
            reply = await ecs.run_task(**run_task_of(arn))
        launched += 1
        if launched == given.jobs:
            all_of_them.set()
        waiter = ecs.get_waiter("tasks_stopped")
        tasks = [reply["tasks"][0]["taskArn"]]
        await waiter.wait(cluster=CLUSTER, tasks=tasks, WaiterConfig={"Delay": 3600, "MaxAttempts": 100})

    async with aioboto3.Session(region_name=REGION).client("ecs", endpoint_url=given.url) as ecs:
        tasks = [asyncio.create_task(one(ecs)) for _ in range(given.jobs)]
        await all_of_them.wait()
        await then()
        del tasks


_WAYS: Final[dict[str, Callable[[argparse.Namespace, Then], Awaitable[None]]]] = {
    "ours": lambda given, then: _ours(given, then, distinct=False),
    "ours-distinct": lambda given, then: _ours(given, then, distinct=True),
    "aioboto3": _waiters,
}


def _census() -> dict[str, tuple[int, int]]:
    """Return how many objects of each type there are, and their bytes: those that the garbage collector knows."""
    count, size = Counter[str](), Counter[str]()
    seen: set[int] = set()

    def take(thing: Any) -> None:
        if id(thing) in seen:
            return
        seen.add(id(thing))
        kind = type(thing)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name == "builtins.coroutine":
            name = f"coroutine {thing.__qualname__}"
        count[name] += 1
        size[name] += sys.getsizeof(thing)

    for thing in gc.get_objects():
        take(thing)
        for part in gc.get_referents(thing):
            if not gc.is_tracked(part):
                take(part)
    return {name: (count[name], size[name]) for name in count}


async def _alone(given: argparse.Namespace) -> None:
    async def then() -> None:
        await asyncio.sleep(given.settle)
        said: dict[str, Any] = {"rss": rss()}
        if given.census:
            gc.collect()
            said["rss_collected"] = rss()
            said["census"] = _census()
        if tracemalloc.is_tracing():
            found = tracemalloc.take_snapshot()
            said["traced"] = tracemalloc.get_traced_memory()[0]
            said["lines"] = [
                [str(stat.traceback[0]), stat.count, stat.size] for stat in found.statistics("lineno")[:400]
            ]
        print(json.dumps(said), flush=True)
        os._exit(0)  # the jobs never end, and nobody waits for that

    await _WAYS[given.way](given, then)


def measure(way: str, url: str, jobs: int, *, settle: float = 5.0, words: tuple[str, ...] = ()) -> dict[str, Any]:
    """Have so many jobs in flight, and return what the process said."""
    command = [sys.executable, "-m", _MODULE, way, "--url", url, "--jobs", str(jobs), "--settle", str(settle), *words]
    done = subprocess.run(command, env=os.environ | KEY, stdout=subprocess.PIPE, text=True, check=True)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}")
    parser.add_argument("way", choices=_WAYS)
    parser.add_argument("--url", required=True)
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--settle", type=float, default=5.0, help="seconds, so that all have been looked at")
    parser.add_argument("--census", action="store_true")
    given = parser.parse_args()
    asyncio.run(_alone(given))


if __name__ == "__main__":
    main()
