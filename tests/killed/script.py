"""
A batch script as anybody would write it: ``python -m tests.killed.script URL JOURNAL JOBS``.

It says what happens, a line each, and has no way to be told to stop.
"""

from __future__ import annotations

import os
import sys

import anyio

from fargate_runner import EcsBackend, Job, Runner, SqliteJournal
from fargate_runner.backends.ecs._logs import LogCadence
from fargate_runner.backends.ecs._watch import Cadence
from tests.contract.test_ecs import NETWORK, ROLES
from tests.killed.batch import CREDENTIALS


async def main(url: str, journal: str, jobs: int) -> None:
    os.environ |= CREDENTIALS
    backend = EcsBackend(
        "jobs",
        network=NETWORK,
        roles=ROLES,
        region="us-east-1",
        endpoint_url=url,
        cadence=Cadence.quick(),
        log_cadence=LogCadence.quick(),
    )
    batch = (Job(image="work", command=["work", f"{number}"], key=f"part {number}") for number in range(jobs))
    async with Runner(backend, journal=SqliteJournal(journal), observers=[lambda event: say(event)]) as runner:
        async for result in runner.map(batch, concurrency=40):
            print(f"result {result.key} {result.outcome.kind.value}", flush=True)


def say(event: object) -> None:
    print(type(event).__name__, flush=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))
