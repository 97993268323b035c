"""
Lives of a client that end when they please: whatever one would have done after its end does not reach the world.

A life is every task of the event loop that was made on its behalf. When it dies, all of them are taken off the loop,
shields or not, as SIGKILL takes a process away. Its calls to AWS and to the journal go through a wire that is cut in
that moment. A request that is on its way then may arrive all the same.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from itertools import count
from random import Random
from typing import Any, Final

import anyio

from fargate_runner import Journal, JournalError
from fargate_runner._journal import Overtaken, Page
from fargate_runner.testing.aws import FakeAws

__all__ = ["Book", "Killed", "LifesJournal", "Mortal", "Wire", "undertaker"]

_OF: contextvars.ContextVar[Mortal | None] = contextvars.ContextVar(
    "the life on whose behalf a task runs", default=None
)
_NOTABLE: Final = frozenset({"RunTask", "StopTask", "ListTasks", "RegisterTaskDefinition", "CreateLogGroup"})
"""The calls that count as steps, besides all that goes to the journal: of looks there are too many."""
_LOOKS: Final = ("Describe", "List", "Get", "Filter")


class Killed(BaseException):
    """Not an error that anybody handles: the process is gone."""


class Mortal:
    """One life. ``step`` counts what it does; at the step that it was given, or when told so, it dies."""

    def __init__(
        self, name: str, random: Random, *, dies_at: float = float("inf"), dies_at_launch: float = float("inf")
    ) -> None:
        self.name = name
        self.random = random
        self.dies_at = dies_at
        self.dies_at_launch = dies_at_launch
        self.steps = 0
        self.launches = 0
        self.dead = False
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.died = asyncio.Event()

    def start(self, live: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin: whatever *live* starts is of this life."""
        context = contextvars.copy_context()
        context.run(_OF.set, self)
        return asyncio.get_running_loop().create_task(live, context=context)

    def step(self) -> None:
        """Count a step, which may be the last."""
        if self.dead:
            raise Killed
        self.steps += 1
        if self.steps >= self.dies_at:
            self.die()
            raise Killed

    def launched(self) -> None:
        """Count a launch that was answered: its answer may be the last that arrives."""
        self.launches += 1
        if self.launches >= self.dies_at_launch:
            self.die()
            raise Killed

    def die(self) -> None:
        """From now on nothing of it gets through."""
        self.dead = True
        self.died.set()

    async def bury(self) -> None:
        """Take every task of it off the loop. No time passes."""
        for _ in range(10_000):
            # What was just made has to begin before it is cancelled: asyncio complains about coroutines that never ran.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if not self.tasks:
                return
            for task in tuple(self.tasks):
                task.cancel()
        raise AssertionError(f"tasks of the life {self.name} cannot be cancelled: {[*self.tasks][:3]}")


class _Task(asyncio.Task[Any]):
    """A task that has its place in a set by its number, not by its address: anyio cancels in that order."""

    _numbers = count()

    def __init__(self, *args: Any, **options: Any) -> None:
        self._number = next(self._numbers)
        super().__init__(*args, **options)

    def __hash__(self) -> int:
        return self._number


def undertaker(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    """Make a task, and note whose it is. A task factory of asyncio."""
    context: contextvars.Context | None = options.get("context")
    task: asyncio.Task[Any] = _Task(coro, loop=loop, **options)
    life = _OF.get() if context is None else context.get(_OF)
    if life is not None:
        life.tasks[task] = None
        task.add_done_callback(lambda task, tasks=life.tasks: tasks.pop(task, None))
    return task


_NOBODY: Final = contextvars.Context()


class Wire:
    """
    The way to AWS of one life. What changes anything travels by itself: it arrives although its sender is gone.

    *sent_again* counts the launches that this life sends although it was told that ECS has no room for them: ECS
    repeats that for an hour.
    """

    def __init__(self, life: Mortal, aws: FakeAws, sent_again: Counter[str]) -> None:
        self._refused: set[str] = set()
        self._sent_again = sent_again
        self.region = aws.region
        self.new_id = aws.new_id
        self._life = life
        self._aws = aws

    async def call(
        self, service: str, operation: str, request: Mapping[str, Any], *, access_key: str | None = None
    ) -> dict[str, Any]:
        life = self._life
        notable = operation in _NOTABLE
        if life.dead:
            raise Killed
        if notable:
            life.step()
        if operation == "RunTask" and request["clientToken"] in self._refused:
            self._sent_again[request["clientToken"]] += 1
        asked = self._aws.call(service, operation, request, access_key=access_key)
        if operation.startswith(_LOOKS):
            reply = await asked
        else:
            reply = await self._sent(asked)
        if life.dead:
            raise Killed
        if operation == "RunTask":
            if not reply["tasks"]:
                self._refused.add(request["clientToken"])
            life.launched()
        if notable:
            life.step()
        return reply

    async def _sent(self, asked: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        life = self._life
        sent = asyncio.get_running_loop().create_task(asked, context=_NOBODY.copy())
        sent.add_done_callback(_heard)
        try:
            return await asyncio.shield(sent)
        except asyncio.CancelledError:
            if life.dead and life.random.random() < 0.5:
                sent.cancel()  # it never got out
            raise


def _heard(sent: asyncio.Task[Any]) -> None:
    """Take note of an error that nobody is there for."""
    if not sent.cancelled():
        sent.exception()


class Book:
    """What is written down, whoever lives: pages as text, and everything that was ever written."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[str, int]] = {}
        self.history: dict[str, list[Page | None]] = {}
        """Every page that was committed, in order; None where it was forgotten."""
        self.namespace: str | None = None

    def read(self, key: str) -> Page | None:
        found = self.pages.get(key)
        return None if found is None else Page.from_json(found[0], revision=found[1])

    def write(self, page: Page) -> Page:
        there = self.pages.get(page.key)
        if (there[1] if there is not None else 0) != page.revision:
            raise Overtaken(self.read(page.key))
        self.pages[page.key] = page.to_json(), page.revision + 1
        written = self.read(page.key)
        assert written is not None
        self.history.setdefault(page.key, []).append(written)
        return written

    def forget(self, key: str, revision: int | None) -> None:
        page = self.read(key)
        if page is not None and (page.ended_at is not None or page.revision == revision):
            del self.pages[key]
            self.history[key].append(None)


class LifesJournal(Journal):
    """
    The book as one life reads and writes it: it takes a moment, and some tries fail, before or after their effect.

    *troubles* is how often.
    """

    name = "the book"

    def __init__(self, book: Book, life: Mortal, *, slowest: float = 0.0, troubles: float = 0.0) -> None:
        self._book = book
        self._life = life
        self._slowest = slowest
        self._troubles = troubles

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[None]:
        yield

    async def bind(self, namespace: str) -> None:
        self._life.step()
        self._book.namespace = namespace

    async def read(self, key: str) -> Page | None:
        return await self._do(lambda: self._book.read(key))

    async def write(self, page: Page) -> Page:
        return await self._do(lambda: self._book.write(page))

    async def open_pages(self) -> AsyncGenerator[Page]:
        for key in list(self._book.pages):
            page = await self._do(lambda key=key: self._book.read(key), troubles=0.0)
            if page is not None and page.ended_at is None:
                yield page

    async def forget(self, key: str, *, revision: int | None = None) -> None:
        await self._do(lambda: self._book.forget(key, revision))

    async def prune(self, *, ended_before: datetime) -> int:
        raise NotImplementedError

    async def _do(self, act: Callable[[], Any], *, troubles: float | None = None) -> Any:
        life = self._life
        life.step()
        await self._moment()
        trouble = life.random.random() < (self._troubles if troubles is None else troubles)
        before = life.random.random() < 0.5
        if trouble and before:
            raise JournalError("the file is locked", journal=self.name, retryable=True)
        if life.dead:
            raise Killed
        done = act()
        life.step()
        await self._moment()
        if trouble:
            raise JournalError("nobody knows whether it was written", journal=self.name, retryable=True)
        if life.dead:
            raise Killed
        return done

    async def _moment(self) -> None:
        if self._slowest:
            await anyio.sleep(self._life.random.uniform(0.0, self._slowest))
        else:
            await anyio.lowlevel.checkpoint()
