"""
A Lambda environment of its own: a process that calls a handler for each line of JSON that it reads.

With the ARN of a topic as a third argument, that handler supervises jobs by the events of their tasks.

A line is ``{"event": …}``, with ``"skew"``, by how many seconds the wall clock has gone ahead since the start, and with
``"fork"`` if a child process is to take the call. An answer is what the handler returned, how many tasks are pending
then, and how many calls found no way to AWS.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fargate_runner import EcsBackend, Runner, SqliteJournal
from fargate_runner.aws_lambda import Handler, for_each, lambda_handler, on_task_event
from fargate_runner.backends.ecs._api import Trouble
from fargate_runner.backends.ecs._logs import LogCadence
from fargate_runner.backends.ecs._watch import Cadence
from tests.contract.ecs_words import Words
from tests.ecs.conftest import NETWORK, ROLES
from tests.killed.batch import SESSION

_skew = timedelta()


def utcnow() -> datetime:
    return datetime.now(UTC) + _skew


def make_handler(url: str, journal: Path | None, **options: Any) -> Handler:
    """A handler that starts a job for each trigger, on an account over HTTP."""

    @lambda_handler(runner=runner_maker(url, journal), **options)
    async def handler(event: Any, context: Any, runner: Runner) -> Any:
        async def submit(trigger: Any) -> str:
            return (await runner.submit(Words().waits().with_(key=trigger.key))).key

        return await for_each(event, submit)

    return handler


def make_supervisor(url: str, journal: Path, topic: str, **options: Any) -> Handler:
    """A handler that goes on with the jobs of the events that it gets."""

    @lambda_handler(runner=runner_maker(url, journal), **options)
    async def handler(event: Any, context: Any, runner: Runner) -> Any:
        return await on_task_event(event, runner, notify=topic)

    return handler


def runner_maker(url: str, journal: Path | None) -> Callable[[], Runner]:
    def make_runner() -> Runner:
        backend = EcsBackend(
            "jobs",
            network=NETWORK,
            roles=ROLES,
            region="us-east-1",
            session=SESSION,
            endpoint_url=url,
            cadence=Cadence.quick(),
            log_cadence=LogCadence.quick(),
        )
        return Runner(backend, namespace="lambda", journal=SqliteJournal(journal) if journal else None)

    return make_runner


def pending(handler: Handler) -> int:
    """How many tasks are left on the loops that it keeps."""
    return sum(len(asyncio.all_tasks(warm.loop)) for warm in handler._idle)


def troubles(handler: Handler) -> int:
    """How many calls to AWS found no way there, or none back."""
    backends: list[Any] = [warm._pattern.backend for warm in handler._idle if warm._pattern is not None]
    return sum(backend.api.stats.troubles[Trouble.TRANSIENT.value] for backend in backends)


def answer(handler: Handler, event: Any) -> str:
    try:
        said: dict[str, Any] = {"answer": handler(event, None)}
    except Exception as exc:
        said = {"error": f"{type(exc).__name__}: {exc}"}
    return json.dumps(said | {"pending": pending(handler), "troubles": troubles(handler)})


def main() -> None:
    global _skew
    url, journal = sys.argv[1], Path(sys.argv[2]) if sys.argv[2] else None
    if len(sys.argv) > 3:
        assert journal is not None
        handler = make_supervisor(url, journal, sys.argv[3], utcnow=utcnow)
    else:
        handler = make_handler(url, journal, utcnow=utcnow)
    for line in sys.stdin:
        asked = json.loads(line)
        _skew = timedelta(seconds=asked.get("skew", 0))
        child = os.fork() if asked.get("fork") else 0
        if child:
            os.waitpid(child, 0)
            continue
        print(answer(handler, asked["event"]), flush=True)
        if asked.get("fork"):
            handler.close()
            os._exit(0)


if __name__ == "__main__":
    main()
