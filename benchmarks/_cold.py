"""
One cold start, in a process of its own: ``python -m benchmarks._cold WAY URL DEFINITION``.

Each way ends the moment that AWS has answered its first RunTask, and says what that took of this machine: CPU seconds and
peak memory, from the start of the process, imports and all. So no way pays for its own end. Nothing is imported here that
a way would not import anyway: what it needs, it imports itself.

- ``boto3``: a client of ECS and one of CloudWatch Logs, and RunTask
- ``aioboto3``: the same, in an event loop
- ``ours``: `Runner` and `EcsBackend`, a job of the same task definition. Beside RunTask that asks whether the cluster is
  there, and reads the definition to check the job by it: three calls instead of one. Its client of Logs is made when lines
  are read, so it is not made here
- ``handler``: the same in a handler of `fargate_runner.aws_lambda`; it ends when the handler has returned
- ``handler-journal``: with a `DynamoDBJournal`, which writes down the job before: DynamoDB's client and calls are its price
"""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

CLUSTER, REGION, SUBNET = "jobs", "us-east-1", "subnet-0aaaaaaaa00000001"  # those of benchmarks._account


def _end() -> NoReturn:
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    # Not ru_maxrss: that of a process that was forked begins with its parent's.
    with open("/proc/self/status", "rb") as file:
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


def _aioboto3(url: str, definition: str) -> None:
    import asyncio

    import aioboto3

    async def main() -> None:
        session = aioboto3.Session(region_name=REGION)
        async with session.client("ecs", endpoint_url=url) as ecs, session.client("logs", endpoint_url=url):
            assert (await ecs.run_task(**_request(definition)))["tasks"]
            _end()

    asyncio.run(main())


def _make_backend(url: str) -> Any:
    from fargate_runner import EcsBackend, Network

    return EcsBackend(CLUSTER, network=Network(subnets=[SUBNET]), region=REGION, endpoint_url=url)


def _make_job(definition: str) -> Any:
    from fargate_runner import EcsOptions, Job

    return Job(command=["work"], ecs=EcsOptions(task_definition=definition))


def _ours(url: str, definition: str) -> None:
    import asyncio

    from fargate_runner import Runner
    from fargate_runner.telemetry import AttemptLaunched

    def observe(event: object) -> None:
        if isinstance(event, AttemptLaunched):
            _end()

    async def main() -> None:
        async with Runner(_make_backend(url), observers=[observe]) as runner:
            await (await runner.submit(_make_job(definition))).result()

    asyncio.run(main())


def _handler(url: str, definition: str, *, table: str = "") -> None:
    from fargate_runner import DynamoDBJournal, Runner
    from fargate_runner.aws_lambda import lambda_handler

    def make_runner() -> Runner:
        journal = DynamoDBJournal(table, region=REGION, endpoint_url=url) if table else None
        return Runner(_make_backend(url), journal=journal)

    @lambda_handler(runner=make_runner)
    async def handler(event: Any, context: Any, runner: Any) -> Any:
        job = _make_job(definition).with_(key=f"cold/{os.getpid()}")
        return (await runner.submit(job)).key

    assert handler({}, None)
    _end()


def _handler_journal(url: str, definition: str) -> None:
    _handler(url, definition, table="cold")


WAYS = {
    "boto3": _boto3,
    "aioboto3": _aioboto3,
    "ours": _ours,
    "handler": _handler,
    "handler-journal": _handler_journal,
}


if __name__ == "__main__":
    WAYS[sys.argv[1]](*sys.argv[2:])
