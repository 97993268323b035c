"""
Lives of a client that end when they please: whatever one would have done after its end does not reach the world.

A life is every task of the event loop that was made on its behalf. When it dies, all of them are taken off the loop,
shields or not, as SIGKILL takes a process away. Its calls to AWS and to the journal go through a wire that is cut in
that moment. A request that is on its way then may arrive all the same.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from itertools import count
from random import Random
from typing import Any, Final

import anyio

from fargate_runner import Journal, JournalError, MemoryJournal
from fargate_runner._journal import Page
from fargate_runner.testing.aws import AwsError, ConnectionCut, FakeAws
from fargate_runner.testing.clock import _VirtualLoop

__all__ = ["Book", "FreezingLoop", "Killed", "LifesJournal", "Mortal", "Wire", "undertaker"]

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
        self,
        name: str,
        random: Random,
        *,
        dies_at: float = float("inf"),
        dies_after: tuple[str, float] = ("", 0.0),
        every_call: bool = False,
    ) -> None:
        self.name = name
        self.random = random
        self.dies_at = dies_at
        self.dies_after = dies_after
        self.every_call = every_call
        """Whether every call is a step, or only those that matter most."""
        self.steps = 0
        self.calls: Counter[str] = Counter()
        self.dead = False
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.died = asyncio.Event()
        self.frozen = False
        self.freezes_at = float("inf")
        """At which step it is frozen."""
        self.stood_still = asyncio.Event()
        self._put_off: list[tuple[Callable[[], object], contextvars.Context]] = []

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
        if self.steps == self.freezes_at:
            self.freeze()
        if self.steps >= self.dies_at:
            self.die()
            raise Killed

    def called(self, called: str) -> None:
        """Count a call that came back, with an answer or without one; it may be the last."""
        self.calls[called] += 1
        if self.dies_after[0] == called and self.calls[called] >= self.dies_after[1]:
            self.die()
            raise Killed

    def die(self) -> None:
        """From now on nothing of it gets through."""
        self.dead = True
        self.died.set()

    def freeze(self) -> None:
        """Stand still, as by SIGSTOP or a closed lid, or as Lambda between two requests. What was sent arrives."""
        self.frozen = True
        self.stood_still.set()

    def thaw(self) -> None:
        """Go on, as if no time had passed; only the clocks know."""
        self.frozen = False
        put_off, self._put_off = self._put_off, []
        for act, context in put_off:
            asyncio.get_running_loop().call_soon(act, context=context)

    def put_off(self, act: Callable[[], object], context: contextvars.Context) -> None:
        """Do something once it goes on."""
        self._put_off.append((act, context))

    async def bury(self) -> None:
        """Take every task of it off the loop. No time passes."""
        if self.frozen:
            self.thaw()
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
        # anyio wraps what a group is to do. Cancelled before its first step, that never begins, and Python complains.
        whose = inspect.getcoroutinelocals(coro).get("self") if inspect.iscoroutine(coro) else None
        if inspect.iscoroutine(inner := getattr(whose, "_coro", None)):
            task.add_done_callback(lambda _: inner.close())
    return task


class FreezingLoop(_VirtualLoop):
    """An event loop that leaves out what is due for a life that stands still."""

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        context = contextvars.copy_context() if context is None else context
        return super().call_soon(_unless_frozen(callback, args, context), context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        context = contextvars.copy_context() if context is None else context
        return super().call_at(when, _unless_frozen(callback, args, context), context=context)


def _unless_frozen(
    callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context
) -> Callable[[], object]:
    life = context.get(_OF)
    if life is None:
        return lambda: callback(*args)

    def act() -> None:
        if life.frozen:
            life.put_off(act, context)
        else:
            callback(*args)

    return act


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
        self.new_id, self.date = aws.new_id, aws.date
        self._life = life
        self._aws = aws

    async def call(
        self, service: str, operation: str, request: Mapping[str, Any], *, access_key: str | None = None
    ) -> dict[str, Any]:
        life, called = self._life, f"{service}.{operation}"
        is_step = life.every_call or operation in _NOTABLE
        if life.dead:
            raise Killed
        if is_step:
            life.step()
        if operation == "RunTask" and request["clientToken"] in self._refused:
            self._sent_again[request["clientToken"]] += 1
        asked = self._aws.call(service, operation, request, access_key=access_key)
        try:
            reply = await (asked if operation.startswith(_LOOKS) else self._sent(asked))
        except (AwsError, ConnectionCut):
            life.called(called)
            raise
        if life.dead:
            raise Killed
        life.called(called)
        if operation == "RunTask" and not reply["tasks"]:
            self._refused.add(request["clientToken"])
        if is_step:
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
    """What is written down, whoever lives: pages that have been text, and everything that was ever written."""

    def __init__(self) -> None:
        self._journal = MemoryJournal()
        self.history: dict[str, list[Page | None]] = {}
        """Every page that was committed, in order; None where it was forgotten."""
        self.noted: dict[str, str] = {}
        """By key, the life that first wrote down that somebody was told of its end."""

    @property
    def keys(self) -> list[str]:
        """Those that have a page, the oldest first."""
        return [key for key, pages in self.history.items() if pages[-1] is not None]

    async def bind(self, namespace: str) -> None:
        await self._journal.bind(namespace)

    async def read(self, key: str) -> Page | None:
        return await self._journal.read(key)

    async def write(self, page: Page) -> Page:
        written = await self._journal.write(Page.from_json(page.to_json(), revision=page.revision))
        self.history.setdefault(page.key, []).append(written)
        return written

    async def forget(self, key: str, revision: int | None) -> None:
        before = await self._journal.read(key)
        await self._journal.forget(key, revision=revision)
        if before is not None and await self._journal.read(key) is None:
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
        await self._do(lambda: self._book.bind(namespace), troubles=0.0)

    async def read(self, key: str) -> Page | None:
        return await self._do(lambda: self._book.read(key))

    async def write(self, page: Page) -> Page:
        async def write() -> Page:
            written = await self._book.write(page)
            if page.callback is not None and page.callback.told_at is not None:
                self._book.noted.setdefault(page.key, self._life.name)
            return written

        return await self._do(write)  # type: ignore[no-any-return]

    async def open_pages(self) -> AsyncGenerator[Page]:
        for key in self._book.keys:
            page = await self._do(lambda key=key: self._book.read(key), troubles=0.0)
            if page is not None and page.ended_at is None:
                yield page

    async def forget(self, key: str, *, revision: int | None = None) -> None:
        await self._do(lambda: self._book.forget(key, revision))

    async def prune(self, *, ended_before: datetime) -> int:
        raise NotImplementedError

    async def _do(self, act: Callable[[], Awaitable[Any]], *, troubles: float | None = None) -> Any:
        life = self._life
        life.step()
        await self._moment()
        trouble = life.random.random() < (self._troubles if troubles is None else troubles)
        before = life.random.random() < 0.5
        if trouble and before:
            raise JournalError("the file is locked", journal=self.name, retryable=True)
        if life.dead:
            raise Killed
        done = await act()
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
