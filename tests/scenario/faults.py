"""A backend that goes wrong when it is told to, and counts who lives there."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, ClassVar, Literal

import anyio
import attrs

from fargate_runner import (
    Backend,
    BackendError,
    Identity,
    Job,
    Launch,
    LaunchRejected,
    LogLine,
    LogsUnavailable,
    PlacementRefused,
    Snapshot,
    TaskRef,
)
from fargate_runner.backends.memory import MemoryBackend

How = Literal[
    "refuses",
    "refuses_for_good",
    "loses_answer",
    "loses_answer_for_good",
    "hangs",
    "hangs_after",
    "is_slow",
    "rejects",
    "rejects_for_good",
    "has_no_room",
]

HOWS: tuple[How, ...] = (
    "refuses",
    "refuses_for_good",
    "loses_answer",
    "loses_answer_for_good",
    "hangs",
    "hangs_after",
    "is_slow",
)


@attrs.frozen
class Fault:
    """What goes wrong: the calls from *first* to *last* (counted from 1), of *operation* or of any."""

    how: How
    operation: str | None = None
    first: float = 1
    last: float = math.inf
    since: float = -math.inf
    until: float = math.inf
    """In virtual seconds."""

    def strikes(self, call: float, now: float) -> bool:
        """Whether it hits this call."""
        return self.first <= call <= self.last and self.since <= now < self.until


def once(how: How, call: int, operation: str | None = None) -> Fault:
    """Make one call go wrong."""
    return Fault(how, operation, first=call, last=call)


class FaultyBackend(Backend):
    """Delegates to a `MemoryBackend`, apart from its faults."""

    name: ClassVar[str] = "memory"

    def __init__(
        self, inner: MemoryBackend, faults: Iterable[Fault] = (), *, started: list[Identity] | None = None
    ) -> None:
        self.inner = inner
        self.started = [] if started is None else started
        """What was really started, in order."""
        self.faults = tuple(faults)
        self.calls: list[str] = []
        self.quota = math.inf
        """How many attempts the platform lets live at once."""
        self.at_step: Callable[[], None] = lambda: None
        """Told at the beginning and at the end of each call."""
        self.most_live_of_a_key = 0
        self.most_live = 0

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[None]:
        async with self.inner:
            yield

    def now(self) -> datetime:
        return self.inner.now()

    def called(self, operation: str) -> int:
        """Count the calls of *operation*."""
        return self.calls.count(operation)

    async def prepare(self, job: Job, identity: Identity) -> Launch:
        return await self._call("prepare", self.inner.prepare, job, identity)

    async def submit(self, launch: Launch) -> TaskRef:
        return await self._call("submit", self._submit, launch)

    async def _submit(self, launch: Launch) -> TaskRef:
        known = launch.token in self.inner.platform._runs
        if not known and self.inner.platform.live() >= self.quota:
            raise PlacementRefused("the quota is used up", operation="submit", retryable=True, quota=True)
        ref = await self.inner.submit(launch)
        if not known:
            self.started.append(launch.identity)
        now = anyio.current_time()
        live = [run.launch.identity.key for run in self.inner.platform._runs.values() if now < run.ends]
        self.most_live = max(self.most_live, len(live))
        self.most_live_of_a_key = max(self.most_live_of_a_key, live.count(launch.identity.key))
        return ref

    async def observe(self, ref: TaskRef, *, after: Snapshot | None = None) -> Snapshot:
        return await self._call("observe", self.inner.observe, ref, after=after)

    async def stop(self, ref: TaskRef, *, reason: str) -> None:
        await self._call("stop", self.inner.stop, ref, reason=reason)

    async def logs(self, ref: TaskRef, *, follow: bool, tail: int | None = None) -> AsyncGenerator[LogLine]:
        await self._call("logs", anyio.lowlevel.checkpoint)
        async for line in self.inner.logs(ref, follow=follow, tail=tail):
            yield line

    async def find(self, namespace: str, key: str) -> list[TaskRef]:
        return await self._call("find", self.inner.find, namespace, key)

    async def living(self, namespace: str) -> list[TaskRef]:
        return await self._call("living", self.inner.living, namespace)

    async def forget(self, ref: TaskRef) -> None:
        await self._call("forget", self.inner.forget, ref)

    async def _call(self, operation: str, call: Callable[..., Any], *args: Any, **named: Any) -> Any:
        self.calls.append(operation)
        self.at_step()
        try:
            return await self._answer(operation, call, *args, **named)
        finally:
            self.at_step()

    async def _answer(self, operation: str, call: Callable[..., Any], *args: Any, **named: Any) -> Any:
        match self._fault(operation):
            case None:
                return await call(*args, **named)
            case "rejects":
                raise LaunchRejected("no capacity", operation=operation, retryable=True)
            case "has_no_room":
                if args[0].token in self.inner.platform._runs:  # a token that has started something is answered with it
                    return await call(*args, **named)
                raise PlacementRefused("no room", operation=operation, retryable=True)
            case "rejects_for_good":
                raise LaunchRejected("no such subnet", operation=operation)
            case "refuses":
                raise _error(operation, retryable=True)
            case "refuses_for_good":
                raise _error(operation, retryable=False)
            case "hangs":
                await anyio.sleep_forever()
            case "is_slow":
                await anyio.sleep(20)
                return await call(*args, **named)
            case "loses_answer":
                await call(*args, **named)
                raise _error(operation, retryable=True)
            case "loses_answer_for_good":
                await call(*args, **named)
                raise _error(operation, retryable=False)
            case "hangs_after":
                await call(*args, **named)
                await anyio.sleep_forever()
        return None

    def _fault(self, operation: str) -> How | None:
        now = anyio.current_time()
        for fault in self.faults:
            whose = [call for call in self.calls if call == operation] if fault.operation else self.calls
            if fault.operation in (None, operation) and fault.strikes(len(whose), now):
                return fault.how
        return None


def _error(operation: str, *, retryable: bool) -> Exception:
    if operation == "logs":
        return LogsUnavailable("the fault plan says so")
    return BackendError("the fault plan says so", operation=operation, retryable=retryable)
