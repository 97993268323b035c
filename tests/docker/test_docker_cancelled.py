"""A caller that is cancelled, at every step of a real container's life: nothing of ours stays."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any

import anyio
import pytest

from fargate_runner import DockerBackend, Job, Runner
from fargate_runner.telemetry import Event

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine")]

IMAGE = "fargate-runner-test/busybox:latest"
SCRIPT = "trap 'exit 143' TERM; echo ready; sleep 60 & wait"


class CancelledAt:
    """Awaits a coroutine and cancels *scope* when it is suspended for the given time, counted from 1."""

    def __init__(self, step: int, scope: anyio.CancelScope, call: Coroutine[Any, Any, Any]) -> None:
        self.step = step
        self.scope = scope
        self.call = call

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self.call.__await__()
        advance: Callable[[], Any] = partial(next, steps)
        while True:
            try:
                asked = advance()
            except StopIteration as end:
                return end.value
            self.step -= 1
            if self.step == 0:
                self.scope.cancel()
            try:
                advance = partial(steps.send, (yield asked))
            except BaseException as exc:  # the cancellation itself goes to the call, which may have to clean up
                advance = partial(steps.throw, exc)


def waiting(key: str) -> Job:
    return Job(image=IMAGE, command=["sh", "-c", SCRIPT], key=key)


async def left(key: str) -> list[object]:
    async with DockerBackend() as backend:
        return list(await backend.find("cancelled", key))


@pytest.mark.parametrize("step", range(1, 9))
@pytest.mark.parametrize("verb", ["run", "submit"])
async def test_a_caller_cancelled_at_any_await_leaves_nothing(step: int, verb: str) -> None:
    key = uuid.uuid4().hex

    async with Runner(DockerBackend(), namespace="cancelled") as runner:
        with anyio.move_on_after(1) as scope:
            await CancelledAt(step, scope, getattr(runner, verb)(waiting(key)))

    assert await left(key) == []


@pytest.mark.parametrize("told", range(1, 6))
async def test_a_runner_cancelled_at_any_step_of_a_job_leaves_nothing(told: int) -> None:
    key, seen = uuid.uuid4().hex, []
    scope = anyio.CancelScope()

    def watch(event: Event) -> None:
        seen.append(event)
        if len(seen) == told:
            scope.cancel()

    with scope:
        async with Runner(DockerBackend(), namespace="cancelled", observers=[watch]) as runner:
            handle = await runner.submit(waiting(key))
            async for _ in handle.logs():
                scope.cancel()

    assert scope.cancelled_caught
    assert await left(key) == []


async def test_many_callers_cancelled_in_the_middle_leave_nothing() -> None:
    keys = [uuid.uuid4().hex for _ in range(12)]

    async with Runner(DockerBackend(), namespace="cancelled") as runner, anyio.create_task_group() as tasks:
        for key in keys:
            tasks.start_soon(runner.run, waiting(key))
        handle = await runner.submit(waiting("cancelled/first"))
        async for _ in handle.logs():
            break
        tasks.cancel_scope.cancel()

    assert [ref for key in keys for ref in await left(key)] == []
