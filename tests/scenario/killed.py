"""A runner that dies at a step, as by SIGKILL: whatever it would have done next, it does not reach the world."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime

import attrs

from fargate_runner import Journal
from fargate_runner._journal import Page


class Killed(BaseException):
    """Not an error that anybody handles: the process is gone."""


@attrs.define
class Plug:
    """Counts the steps of one life, and pulls itself at one of them. From then on nothing gets through."""

    at: float = float("inf")
    steps: int = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps >= self.at:
            raise Killed


class PluggedJournal(Journal):
    """The journal as one life sees it: it may die before or after each write."""

    def __init__(self, inner: Journal, plug: Plug) -> None:
        self.inner = inner
        self.name = inner.name
        self._plug = plug

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[None]:
        async with self.inner:
            yield

    async def bind(self, namespace: str) -> None:
        await self.inner.bind(namespace)

    async def read(self, key: str) -> Page | None:
        self._plug.step()
        return await self.inner.read(key)

    async def write(self, page: Page) -> Page:
        self._plug.step()
        written = await self.inner.write(page)
        self._plug.step()
        return written

    async def open_pages(self) -> AsyncGenerator[Page]:
        self._plug.step()
        async for page in self.inner.open_pages():
            yield page

    async def forget(self, key: str, *, revision: int | None = None) -> None:
        self._plug.step()
        await self.inner.forget(key, revision=revision)

    async def prune(self, *, ended_before: datetime) -> int:
        return await self.inner.prune(ended_before=ended_before)
