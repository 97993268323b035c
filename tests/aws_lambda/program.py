"""
A Lambda environment of its own: a process that calls a handler for each line of JSON that it reads.

The second argument is a journal: a file, or ``dynamodb:`` and the name of a table. With the ARN of a topic or a queue
as a third one, that handler supervises jobs by the events of their tasks.

With ``DIES`` in its environment it kills itself, as SIGKILL does, once a job has ended: after the final ``record``,
after the ``claim`` on telling, or once that is ``told``. ``DIES_ONCE`` is a directory that has those of other processes
know: for a job, one dies.

A line is ``{"event": …}``, with ``"skew"``, by how many seconds the wall clock has gone ahead since the start, with
``"limit"``, the seconds that the call has, and with ``"fork"`` if a child process is to take the call. An answer is
what the handler returned, how many tasks are pending then, and how many calls found no way to AWS.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fargate_runner import DynamoDBJournal, EcsBackend, Journal, Runner, SqliteJournal
from fargate_runner._journal import Page
from fargate_runner.aws_lambda import Handler, for_each, lambda_handler, on_task_event
from fargate_runner.backends.ecs._api import Trouble
from fargate_runner.backends.ecs._logs import LogCadence
from fargate_runner.backends.ecs._watch import Cadence
from tests.aws_lambda.samples import Context
from tests.contract.ecs_words import Words
from tests.ecs.conftest import NETWORK, ROLES
from tests.killed.batch import CREDENTIALS

_skew = timedelta()


def utcnow() -> datetime:
    return datetime.now(UTC) + _skew


def make_handler(url: str, journal: Path | str | None, **options: Any) -> Handler:
    """A handler that starts a job for each trigger, on an account over HTTP."""

    @lambda_handler(runner=runner_maker(url, journal), **options)
    async def handler(event: Any, context: Any, runner: Runner) -> Any:
        async def submit(trigger: Any) -> str:
            return (await runner.submit(Words().waits().with_(key=trigger.key))).key

        return await for_each(event, submit)

    return handler


def make_supervisor(url: str, journal: Path | str, topic: str, **options: Any) -> Handler:
    """A handler that goes on with the jobs of the events that it gets."""

    @lambda_handler(runner=runner_maker(url, journal), **options)
    async def handler(event: Any, context: Any, runner: Runner) -> Any:
        return await on_task_event(event, runner, notify=topic)

    return handler


class MortalJournal(DynamoDBJournal):
    """A table, and a process that dies beside it."""

    async def write(self, page: Page) -> Page:
        if _stage(page) == "told":
            _die(page)  # the message is sent, and nobody writes that down
        written = await super().write(page)
        _die(page)
        return written


def _stage(page: Page) -> str:
    """What the writing of a page means for those who are told of the end of its job."""
    callback = page.callback
    if page.ended_at is None:
        return ""
    if callback is not None and callback.told_at is not None:
        return "told"
    return "claim" if callback is not None and callback.claimed_until is not None else "record"


def _die(page: Page) -> None:
    if not _stage(page) or os.environ.get("DIES") != _stage(page):
        return
    with suppress(FileExistsError):
        Path(os.environ["DIES_ONCE"], page.key.replace("/", "-")).touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)


def journal_of(url: str, journal: Path | str | None) -> Journal | None:
    if not journal:
        return None
    kind, _, table = str(journal).partition(":")
    if kind != "dynamodb":
        return SqliteJournal(Path(journal))
    return MortalJournal(table, region="us-east-1", endpoint_url=url)


def runner_maker(url: str, journal: Path | str | None) -> Callable[[], Runner]:
    def make_runner() -> Runner:
        backend = EcsBackend(
            "jobs",
            network=NETWORK,
            roles=ROLES,
            region="us-east-1",
            endpoint_url=url,
            utcnow=utcnow,
            cadence=Cadence.quick(),
            log_cadence=LogCadence.quick(),
        )
        return Runner(backend, namespace="lambda", journal=journal_of(url, journal))

    return make_runner


def pending(handler: Handler) -> int:
    """How many tasks are left on the loops that it keeps."""
    return sum(len(asyncio.all_tasks(warm.loop)) for warm in handler._idle)


def troubles(handler: Handler) -> int:
    """How many calls to AWS found no way there, or none back."""
    backends: list[Any] = [warm._pattern.backend for warm in handler._idle if warm._pattern is not None]
    return sum(backend.api.stats.troubles[Trouble.TRANSIENT.value] for backend in backends)


def answer(handler: Handler, event: Any, limit: float | None = None) -> str:
    context = Context(1000 * limit) if limit is not None else None
    try:
        said: dict[str, Any] = {"answer": handler(event, context)}
    except Exception as exc:
        said = {"error": f"{type(exc).__name__}: {exc}"}
    return json.dumps(said | {"pending": pending(handler), "troubles": troubles(handler)})


def main() -> None:
    global _skew
    os.environ |= CREDENTIALS
    url, journal = sys.argv[1:3]
    if len(sys.argv) > 3:
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
        print(answer(handler, asked["event"], asked.get("limit")), flush=True)
        if asked.get("fork"):
            handler.close()
            os._exit(0)


if __name__ == "__main__":
    main()
