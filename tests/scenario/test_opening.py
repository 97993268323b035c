"""Backends that are opened by somebody who is cancelled already: they open, do nothing, and close."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from fargate_runner import EcsBackend, Network, ProcessBackend, Runner
from fargate_runner._backend import sheltered_tasks
from fargate_runner.backends.memory import MemoryBackend
from fargate_runner.testing.aws import FakeAws
from fargate_runner.testing.clock import VirtualClock

pytestmark = pytest.mark.timeout(20)

Opened = Callable[[], AbstractAsyncContextManager[Any]]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary directory of the test's own, for the process backend."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def ecs() -> EcsBackend:
    aws = FakeAws(clock=VirtualClock(), clusters=("jobs",))
    network = Network(subnets=["subnet-0aaaaaaaa00000001"])
    return EcsBackend("jobs", network=network, session=aws.session(), region=aws.region)


async def opened_when_cancelled(make: Opened) -> list[str]:
    """Open what *make* returns inside a scope that is cancelled already, and say how far that came."""
    told: list[str] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with make():
            await anyio.lowlevel.checkpoint()
            told.append("the body went on")
        told.append("nobody was cancelled")
    assert scope.cancelled_caught
    await anyio.lowlevel.checkpoint()
    return told


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("make", [sheltered_tasks, ProcessBackend, MemoryBackend, lambda: Runner(ProcessBackend())])
def test_what_is_opened_when_cancelled_already_is_left_at_once(loop: str, make: Opened) -> None:
    assert anyio.run(opened_when_cancelled, make, backend=loop) == []


@pytest.mark.parametrize("make", [ecs, lambda: Runner(ecs())])
def test_so_is_one_on_aws(make: Opened) -> None:
    assert anyio.run(opened_when_cancelled, make) == []


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_what_a_shelter_was_given_is_over_when_it_is_left(loop: str) -> None:
    async def main() -> list[str]:
        told: list[str] = []

        async def guest() -> None:
            told.append("came")
            try:
                await anyio.sleep_forever()
            finally:
                told.append("left")

        with anyio.CancelScope() as scope:
            scope.cancel()
            async with sheltered_tasks() as tasks:
                tasks.start_soon(guest)
                with anyio.CancelScope(shield=True):
                    await anyio.wait_all_tasks_blocked()
                await anyio.lowlevel.checkpoint()
        return told

    assert anyio.run(main, backend=loop) == ["came", "left"]
