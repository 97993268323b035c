"""
One cold start, in a process of its own: ``python -m benchmarks._cold WAY URL DEFINITION``.

Each way ends the moment that AWS has answered its first RunTask, and says what that took of this machine: CPU seconds
and peak memory in KiB, from the start of the process, imports and all, and how many modules it has loaded. So no way
pays for its own end. Nothing is imported here that a way would not import anyway: what it needs, it imports itself.

- ``boto3``: a client of ECS and one of CloudWatch Logs, and RunTask
- ``aioboto3``: the same, in an event loop
- ``ours``: `Runner` and `EcsBackend`, a job of the same task definition. Beside RunTask that asks whether the cluster
  is there, and reads the definition to check the job by it: three calls instead of one. Its client of Logs is made when
  lines are read, so it is not made here
- ``handler``: the same in a handler of `fargate_runner.aws_lambda`; it ends when the handler has returned
- ``aioboto3-stall``, ``ours-stall``: how long the first use keeps a running event loop from anything else at most, in
  seconds. aioboto3 is imported and its clients are made in the loop; ours is imported before there is one, as it is
  written at the top of a module, and sees to the rest itself
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CLUSTER, REGION, SUBNET = "jobs", "us-east-1", "subnet-0aaaaaaaa00000001"  # those of benchmarks._account


def _end() -> NoReturn:
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    # Not ru_maxrss: that of a process that was forked begins with its parent's.
    with Path("/proc/self/status").open("rb") as file:
        peak = next((int(line.split()[1]) for line in file if line.startswith(b"VmHWM:")), 0)
    os.write(1, f"{used.ru_utime + used.ru_stime} {peak} {len(sys.modules)}\n".encode())
    os._exit(0)


def _request(definition: str) -> dict[str, Any]:
    return {
        "cluster": CLUSTER,
        "taskDefinition": definition,
        "launchType": "FARGATE",
        "networkConfiguration": {"awsvpcConfiguration": {"subnets": [SUBNET]}},
        "overrides": {"containerOverrides": [{"name": "main", "command": ["work"]}]},
    }


def _boto3(url: str, definition: str) -> None:
    import boto3

    ecs = boto3.client("ecs", region_name=REGION, endpoint_url=url)
    boto3.client("logs", region_name=REGION, endpoint_url=url)
    assert ecs.run_task(**_request(definition))["tasks"]
    _end()


async def _use_aioboto3(url: str, definition: str, end: Callable[[], object]) -> None:
    import aioboto3

    session: Any = aioboto3.Session(region_name=REGION)
    async with session.client("ecs", endpoint_url=url) as ecs, session.client("logs", endpoint_url=url):
        assert (await ecs.run_task(**_request(definition)))["tasks"]
        end()


def _aioboto3(url: str, definition: str) -> None:
    import asyncio

    import aioboto3  # noqa: F401 (where it is written)

    asyncio.run(_use_aioboto3(url, definition, _end))


def _aioboto3_stall(url: str, definition: str) -> None:
    _stall(lambda end: _use_aioboto3(url, definition, end))


def _make_backend(url: str) -> Any:
    from fargate_runner import EcsBackend, Network

    return EcsBackend(CLUSTER, network=Network(subnets=[SUBNET]), region=REGION, endpoint_url=url)


def _make_job(definition: str) -> Any:
    from fargate_runner import EcsOptions, Job

    return Job(command=["work"], ecs=EcsOptions(task_definition=definition))


async def _use_ours(url: str, definition: str, end: Callable[[], object]) -> None:
    from fargate_runner import Runner
    from fargate_runner.telemetry import AttemptLaunched

    def observe(event: object) -> None:
        if isinstance(event, AttemptLaunched):
            end()

    async with Runner(_make_backend(url), observers=[observe]) as runner:
        await (await runner.submit(_make_job(definition))).wait()


def _ours(url: str, definition: str) -> None:
    import asyncio

    from fargate_runner import EcsBackend, Runner  # noqa: F401 (where it is written)

    asyncio.run(_use_ours(url, definition, _end))


def _ours_stall(url: str, definition: str) -> None:
    from fargate_runner import EcsBackend, EcsOptions, Job, Network, Runner, telemetry  # noqa: F401 (the same)

    _stall(lambda end: _use_ours(url, definition, end))


def _stall(use: Callable[[Callable[[], object]], Awaitable[object]]) -> None:
    """Say the longest time between two beats of the loop, up to the answer."""
    import asyncio
    import time

    longest, last = 0.0, 0.0

    async def beat() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(0.0005)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    def end() -> None:
        os.write(1, f"{max(longest, time.perf_counter() - last)}\n".encode())
        os._exit(0)

    async def main() -> None:
        nonlocal longest, last
        last = time.perf_counter()
        beating = asyncio.create_task(beat())
        await asyncio.sleep(0.01)
        longest = 0.0
        await use(end)
        beating.cancel()

    asyncio.run(main())


def _handler(url: str, definition: str) -> None:
    from fargate_runner import Runner
    from fargate_runner.aws_lambda import lambda_handler

    @lambda_handler(runner=lambda: Runner(_make_backend(url)))
    async def handler(event: Any, context: Any, runner: Runner) -> str:
        return (await runner.submit(_make_job(definition))).key

    assert handler({}, None)
    _end()


WAYS = {
    "boto3": _boto3,
    "aioboto3": _aioboto3,
    "ours": _ours,
    "handler": _handler,
    "aioboto3-stall": _aioboto3_stall,
    "ours-stall": _ours_stall,
}


if __name__ == "__main__":
    WAYS[sys.argv[1]](*sys.argv[2:])
