"""The program that is killed: a few jobs, a journal, and a file with every result that it was told."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import anyio
import attrs

from fargate_runner import (
    Backend,
    DockerBackend,
    EcsBackend,
    Job,
    JobResult,
    Kind,
    Launch,
    LogLine,
    LogsUnavailable,
    Retry,
    Runner,
    Secret,
    Snapshot,
    SqliteJournal,
    TaskRef,
)
from fargate_runner._backend import Identity
from fargate_runner._journal import Page
from fargate_runner.backends.ecs._logs import LogCadence
from fargate_runner.backends.ecs._watch import Cadence
from tests.contract.ecs_words import Words
from tests.contract.test_ecs import NETWORK, ROLES

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIAFAKE", "AWS_SECRET_ACCESS_KEY": "fake"}
"""For the environment of a process that speaks with the fake AWS."""
IMAGE = "fargate-runner-test/busybox:latest"

ENDS = {
    "quick": (Kind.SUCCEEDED, 1),
    "failed": (Kind.FAILED, 1),
    "retried": (Kind.SUCCEEDED, 2),
    "timed-out": (Kind.TIMED_OUT, 1),
    "cancelled": (Kind.CANCELLED, 1),
    "secret": (Kind.SUCCEEDED, 1),
}
"""How each job ends, after how many attempts, however often its runner was killed."""


@attrs.frozen(kw_only=True)
class Plan:
    """What one life is told to do."""

    place: Literal["docker", "ecs"]
    directory: Path
    """Where the journal is, and the file of results."""
    namespace: str
    batch: str
    """What the keys begin with."""
    url: str = ""
    kill_at: int = 0
    """The step at which it is killed, counted from 1; 0: at none."""
    recover: bool = False
    """Whether it takes over what the journal knows, before it submits its jobs again."""


def journal_of(directory: Path) -> SqliteJournal:
    return SqliteJournal(directory / "jobs.sqlite")


def told_in(directory: Path) -> list[dict[str, Any]]:
    """Every result that any life was told."""
    told = directory / "told.jsonl"
    return [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []


def as_plain(result: JobResult) -> dict[str, Any]:
    """The whole record, as JSON-able values."""
    page = Page(
        key=result.key,
        name=result.name,
        place="",
        description={},
        accepted_at=result.accepted_at,
        attempts=result.attempts,
        ended_at=result.ended_at,
    )
    plain: dict[str, Any] = json.loads(page.to_json())
    return plain


# ---- where it can be killed ----------------------------------------------------------------------------------------


class Steps:
    """Counts what one life does, tells it to whoever may kill it, and kills it itself at one of the steps."""

    def __init__(self, kill_at: int, tell: Callable[[str], None]) -> None:
        self._kill_at = kill_at
        self._tell = tell
        self._lock = threading.Lock()
        self._count = 0

    def __call__(self, step: str) -> None:
        with self._lock:  # the journal's thread takes steps, too
            self._count += 1
            self._tell(step)
            if self._count == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


def _name(key: str) -> str:
    return key.rpartition("/")[2]


class SteppingJournal(SqliteJournal):
    """Takes a step before and after each write, and before each statement to the file, COMMIT included."""

    def __init__(self, path: Path, step: Steps) -> None:
        super().__init__(path)
        self._step = step

    async def read(self, key: str) -> Page | None:
        self._step(f"before read {_name(key)}")
        return await super().read(key)

    async def write(self, page: Page) -> Page:
        state = "end" if page.ended_at else "stop" if page.stop else "ack" if page.ref else "intent"
        self._step(f"before write {state} {page.name}")
        written = await super().write(page)
        self._step(f"after write {state} {page.name}")
        return written

    def _connect(self) -> sqlite3.Connection:
        is_new = self._connection is None
        connection = super()._connect()
        if is_new:
            connection.set_trace_callback(lambda statement: self._step(f"sql {statement.split()[0]}"))
        return connection


class SteppingBackend(Backend):
    """Takes a step before and after each verb."""

    name = ""

    def __init__(self, inner: Backend, step: Steps) -> None:
        self.inner = inner
        self.name = inner.name  # type: ignore[misc]
        self.answer_patience = inner.answer_patience
        self.starts_later = inner.starts_later
        self._step = step

    @property
    def place(self) -> str:
        return self.inner.place

    def now(self) -> datetime:
        return self.inner.now()

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[None]:
        async with self.inner:
            yield

    @asynccontextmanager
    async def _stepping(self, verb: str, key: str) -> AsyncGenerator[None]:
        self._step(f"before {verb} {_name(key)}")
        yield
        self._step(f"after {verb} {_name(key)}")

    async def prepare(self, job: Job, identity: Identity) -> Launch:
        async with self._stepping("prepare", identity.key):
            return await self.inner.prepare(job, identity)

    async def submit(self, launch: Launch) -> TaskRef:
        async with self._stepping("submit", launch.identity.key):
            return await self.inner.submit(launch)

    async def observe(self, ref: TaskRef, *, after: Snapshot | None = None) -> Snapshot:
        async with self._stepping("observe", ref.key):
            return await self.inner.observe(ref, after=after)

    async def stop(self, ref: TaskRef, *, reason: str) -> None:
        async with self._stepping("stop", ref.key):
            await self.inner.stop(ref, reason=reason)

    async def logs(self, ref: TaskRef, *, follow: bool, tail: int | None = None) -> AsyncGenerator[LogLine]:
        self._step(f"before logs {_name(ref.key)}")
        lines = self.inner.logs(ref, follow=follow, tail=tail)
        async with aclosing(lines):  # type: ignore[type-var]
            async for line in lines:
                yield line
        self._step(f"after logs {_name(ref.key)}")

    async def find(self, namespace: str, key: str) -> list[TaskRef]:
        async with self._stepping("find", key):
            return await self.inner.find(namespace, key)

    async def forget(self, ref: TaskRef) -> None:
        async with self._stepping("forget", ref.key):
            await self.inner.forget(ref)


# ---- what it does --------------------------------------------------------------------------------------------------


def _in_containers() -> dict[str, Job]:
    def shell(script: str) -> Job:
        return Job(image=IMAGE, command=["sh", "-c", script])

    return {
        "quick": shell("echo done"),
        "failed": shell("echo no; exit 3"),
        "retried": shell('test "$FARGATE_RUNNER_ATTEMPT" = 2'),
        "timed-out": shell("echo ready; exec sleep 1000"),
        "cancelled": shell("echo ready; exec sleep 1000"),
        "secret": shell('test "$WORD" = canary'),
    }


def _on_the_fake() -> dict[str, Job]:
    words = Words()
    return {
        "quick": words.prints("done"),
        "failed": words.exits(3),
        "retried": words.says("exits_by_attempt", "1", "0"),
        "timed-out": words.waits(),
        "cancelled": words.waits(),
        "secret": words.prints_variable("WORD"),
    }


def jobs_of(plan: Plan) -> list[Job]:
    jobs = _in_containers() if plan.place == "docker" else _on_the_fake()
    jobs["retried"] = jobs["retried"].with_(retry=Retry(failures=1, wait=lambda _: 0.0))
    jobs["timed-out"] = jobs["timed-out"].with_(timeout=timedelta(seconds=0.3))
    jobs["secret"] = jobs["secret"].with_(secrets={"WORD": Secret("canary")})
    return [job.with_(key=f"{plan.batch}/{name}", name=name) for name, job in jobs.items()]


def backend_of(plan: Plan) -> Backend:
    if plan.place == "docker":
        return DockerBackend()
    return EcsBackend(
        "jobs",
        network=NETWORK,
        roles=ROLES,
        secret_prefix="/killed",
        region="us-east-1",
        endpoint_url=plan.url,
        cadence=Cadence.quick(),
        log_cadence=LogCadence.quick(),
    )


async def _see(runner: Runner, job: Job, told: Path, step: Steps) -> None:
    handle = await runner.submit(job)
    if job.name == "cancelled":
        with suppress(LogsUnavailable):  # stopped already, before it said anything
            async with aclosing(handle.logs()) as lines:
                async for _ in lines:
                    break
        await handle.stop("the batch wants it no more")
    result = await handle.wait()
    step(f"told {job.name}")
    with told.open("a") as file:
        file.write(json.dumps(as_plain(result)) + "\n")
        file.flush()
        os.fsync(file.fileno())


async def batch(plan: Plan, step: Steps) -> None:
    """Run the jobs, or go on with them."""
    journal = SteppingJournal(plan.directory / "jobs.sqlite", step)
    backend = SteppingBackend(backend_of(plan), step)
    async with Runner(backend, journal=journal, namespace=plan.namespace) as runner:
        if plan.recover:
            await runner.recover()
        async with anyio.create_task_group() as tasks:
            for job in jobs_of(plan):
                tasks.start_soon(_see, runner, job, plan.directory / "told.jsonl", step)
