"""
The ways to run many jobs on ECS, each in a process of its own: ``python -m benchmarks._clients WAY --url … --jobs N``.

Ours, and what people write without it. Every way launches all that it can as soon as it can, and says on one line of
JSON what it knows of each job, when it knew it, and what that took of this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import anyio
import attrs

from benchmarks._account import CLUSTER, REGION, SUBNET

if TYPE_CHECKING:
    from fargate_runner import Job

__all__ = [
    "KEY",
    "OURS",
    "WAYS",
    "Known",
    "Said",
    "definition",
    "jobs_of",
    "our_backend",
    "ours",
    "rss",
    "run_task_of",
    "say",
]

_MODULE: Final = "benchmarks._clients"
_ROLE: Final = "arn:aws:iam::123456789012:role/execution"
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
KEY: Final = {
    "AWS_ACCESS_KEY_ID": "AKIABENCH",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "AWS_REGION": REGION,
    "AWS_DEFAULT_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


@attrs.frozen
class Known:
    """What a client knows of one job in the end."""

    arn: str | None
    """Its task; None: it was not launched, or nobody knows."""
    exit_code: int | None = None
    seen_at: float | None = None
    """When the client learned that the task is over."""
    result_at: float | None = None
    """When whoever waits had the result."""
    error: str = ""
    """Why there is no result."""


@attrs.frozen(kw_only=True)
class Said:
    """What a client said in the end."""

    known: tuple[Known, ...]
    cpu: float
    """Seconds, imports and all."""
    peak_rss: int
    """Bytes."""
    took: float

    @classmethod
    def read(cls, line: str) -> Self:
        said = json.loads(line)
        return cls(**said | {"known": tuple(Known(*one) for one in said["known"])})


def rss() -> int:
    """Return how much memory this process has now, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


# ---- ours ----------------------------------------------------------------------------------------------------------


def our_backend(url: str | None = None, **options: Any) -> Any:
    """Return our backend for the account of the benchmarks."""
    from fargate_runner import EcsBackend, Network, Roles

    options.setdefault("region", REGION)
    network, roles = Network(subnets=[SUBNET]), Roles(execution=_ROLE)
    return EcsBackend(CLUSTER, network=network, roles=roles, endpoint_url=url, **options)


def jobs_of(count: int, *, distinct: bool) -> Iterator[Job]:
    """Return so many jobs: all the same, or each with a command of its own."""
    from fargate_runner import Job

    if not distinct:
        return repeat(Job(image="registry.example/job:1", command=["work"]), count)
    return (Job(image="registry.example/job:1", command=["work", str(number)]) for number in range(count))


async def ours(
    jobs: int,
    *,
    url: str | None = None,
    distinct: bool = False,
    share: float | None = None,
    events: str | None = None,
    **options: Any,
) -> list[Known]:
    """Run so many jobs with `Runner.map`, all at once, and return what is known of each."""
    from fargate_runner import Budget, Phase, Runner
    from fargate_runner.telemetry import PhaseReached

    known: list[Known] = []
    ended: dict[str, float] = {}

    def observe(event: object) -> None:
        if isinstance(event, PhaseReached) and event.phase is Phase.ENDED:
            ended[event.key] = anyio.current_time()

    if share is not None:
        options["budget"] = Budget(share=share)
    if events is not None:
        options["events"] = events
    backend = our_backend(url, **options)
    if events is not None:
        await backend.make_events()
    async with Runner(backend, observers=[observe]) as runner:
        asked = jobs_of(jobs, distinct=distinct)
        async for result in runner.map(asked, concurrency=jobs, as_completed=True, on_error="collect"):
            now = anyio.current_time()
            last, outcome = result.attempts[-1], result.outcome
            error = "" if outcome.exit_code is not None else f"{outcome.kind.value}: {outcome.detail}"
            known.append(Known(last.address, outcome.exit_code, ended.get(result.key), now, error))
    return known


# ---- what people write without it ----------------------------------------------------------------------------------


def definition(url: str) -> str:
    """Register the one definition that all jobs share, and return its ARN."""
    import boto3

    ecs = boto3.client("ecs", endpoint_url=url, region_name=REGION)
    made = ecs.register_task_definition(
        family="job",
        requiresCompatibilities=["FARGATE"],
        networkMode="awsvpc",
        cpu="256",
        memory="512",
        executionRoleArn=_ROLE,
        containerDefinitions=[{"name": "main", "image": "registry.example/job:1", "command": ["work"]}],
    )
    return str(made["taskDefinition"]["taskDefinitionArn"])


def run_task_of(definition: str, *, command: tuple[str, ...] = ("work",)) -> dict[str, Any]:
    """Return what a plain client asks for one job."""
    return {
        "cluster": CLUSTER,
        "taskDefinition": definition,
        "launchType": "FARGATE",
        "networkConfiguration": {"awsvpcConfiguration": {"subnets": [SUBNET]}},
        "overrides": {"containerOverrides": [{"name": "main", "command": list(command)}]},
    }


def _exit_code(reply: dict[str, Any]) -> int | None:
    (task,) = reply["tasks"]
    return next((container.get("exitCode") for container in task["containers"]), None)


async def _aio_one(ecs: Any, request: dict[str, Any]) -> Known:
    arn = None
    try:
        reply = await ecs.run_task(**request)
        if not reply["tasks"]:
            return Known(None, error=f"not placed: {reply['failures']}")
        arn = reply["tasks"][0]["taskArn"]
        await ecs.get_waiter("tasks_stopped").wait(cluster=CLUSTER, tasks=[arn])
        seen = time.monotonic()
        code = _exit_code(await ecs.describe_tasks(cluster=CLUSTER, tasks=[arn]))
    except Exception as exc:
        return Known(arn, error=f"{type(exc).__name__}: {exc}"[:200])
    return Known(arn, code, seen, time.monotonic())


def _retries(mode: str) -> dict[str, Any]:
    return {} if mode == "stock" else {"retries": {"mode": mode, "total_max_attempts": 10}}


async def _aio(given: argparse.Namespace, *, mode: str) -> list[Known]:
    import aioboto3
    from aiobotocore.config import AioConfig

    arn = definition(given.url)
    session, config = aioboto3.Session(region_name=REGION), AioConfig(**_retries(mode))
    async with session.client("ecs", endpoint_url=given.url, config=config) as ecs:
        return await asyncio.gather(*(_aio_one(ecs, run_task_of(arn)) for _ in range(given.jobs)))


def _threads(given: argparse.Namespace, *, mode: str = "stock") -> list[Known]:
    import boto3
    from botocore.config import Config

    config = Config(max_pool_connections=given.jobs, **_retries(mode))
    ecs = boto3.client("ecs", endpoint_url=given.url, region_name=REGION, config=config)
    request = run_task_of(definition(given.url))
    known: list[Known] = []

    def one() -> None:
        arn = None
        try:
            reply = ecs.run_task(**request)
            if not reply["tasks"]:
                known.append(Known(None, error=f"not placed: {reply['failures']}"))
                return
            arn = reply["tasks"][0]["taskArn"]
            ecs.get_waiter("tasks_stopped").wait(cluster=CLUSTER, tasks=[arn])
            seen = time.monotonic()
            code = _exit_code(ecs.describe_tasks(cluster=CLUSTER, tasks=[arn]))
            known.append(Known(arn, code, seen, time.monotonic()))
        except Exception as exc:
            known.append(Known(arn, error=f"{type(exc).__name__}: {exc}"[:200]))

    threads = [threading.Thread(target=one) for _ in range(given.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return known


# ---- the same batching over stock calls ----------------------------------------------------------------------------


async def _batching(given: argparse.Namespace) -> list[Known]:
    """
    Watch all tasks together, a hundred in each stock ``describe_tasks``, every two seconds.

    What a careful engineer writes in an afternoon: the launches one after another at AWS's rate, one table, one loop.
    """
    import aioboto3
    from aiobotocore.config import AioConfig

    arn = definition(given.url)
    session, config = aioboto3.Session(region_name=REGION), AioConfig(**_retries("standard"))
    known: dict[str, Known] = {}
    running: set[str] = set()
    launched = asyncio.Event()

    async def launch(ecs: Any) -> None:
        due = time.monotonic()
        left = given.jobs
        while left:
            count = min(10, left)
            reply = await ecs.run_task(**run_task_of(arn), count=count)
            running.update(task["taskArn"] for task in reply["tasks"])
            left -= len(reply["tasks"])
            due += count / given.launches
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        launched.set()

    async def look(ecs: Any, arns: list[str]) -> None:
        reply = await ecs.describe_tasks(cluster=CLUSTER, tasks=arns)
        for task in reply["tasks"]:
            if task["lastStatus"] == "STOPPED":
                running.discard(task["taskArn"])
                now = time.monotonic()
                known[task["taskArn"]] = Known(task["taskArn"], _exit_code({"tasks": [task]}), now, now)

    async with session.client("ecs", endpoint_url=given.url, config=config) as ecs:
        launching = asyncio.create_task(launch(ecs))
        while running or not launched.is_set():
            began = time.monotonic()
            arns = sorted(running)
            for first in range(0, len(arns), 100):
                await look(ecs, arns[first : first + 100])
                await asyncio.sleep(0.1)  # ten reads a second at most: half of what AWS gives
            await asyncio.sleep(max(0.0, began + 2.0 - time.monotonic()))
        await launching
    return list(known.values())


# ---- the process ---------------------------------------------------------------------------------------------------

OURS: Final[dict[str, dict[str, Any]]] = {
    "ours": {},
    "ours-distinct": {"distinct": True},
    "ours-events": {"events": "benchmarks"},
}
"""Our ways, by what they ask for."""


def _our_way(given: argparse.Namespace, **options: Any) -> list[Known]:
    return asyncio.run(ours(given.jobs, url=given.url, share=given.share, **options))


Way = Callable[[argparse.Namespace], list[Known]]

WAYS: Final[dict[str, Way]] = {
    **{way: partial(_our_way, **options) for way, options in OURS.items()},
    "aioboto3": lambda given: asyncio.run(_aio(given, mode="stock")),
    "aioboto3-standard": lambda given: asyncio.run(_aio(given, mode="standard")),
    "aioboto3-adaptive": lambda given: asyncio.run(_aio(given, mode="adaptive")),
    "boto3-threads": _threads,
    "batching": lambda given: asyncio.run(_batching(given)),
}


def say(way: str, url: str, jobs: int, *, patience: float, **options: Any) -> Said:
    """Run a way in a process of its own, and return what it said."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value)) if value is not None]
    command = [sys.executable, "-m", _MODULE, way, "--url", url, "--jobs", str(jobs), *words]
    env = os.environ | KEY
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True, timeout=patience)
    return Said.read(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}")
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--url", required=True)
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--share", type=float, help="of AWS's quotas; ours only")
    parser.add_argument("--launches", type=float, default=18.0, help="a second; batching only")
    given = parser.parse_args()
    began = time.monotonic()
    known = WAYS[given.way](given)
    used = resource.getrusage(resource.RUSAGE_SELF)
    said = {
        "known": [attrs.astuple(one) for one in known],
        "cpu": used.ru_utime + used.ru_stime,
        "peak_rss": used.ru_maxrss * 1024,
        "took": time.monotonic() - began,
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
