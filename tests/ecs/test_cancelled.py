"""Callers that are cancelled, at every step: nothing of theirs stays alive, and leaving never takes for ever."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any

import anyio
import pytest

from fargate_runner import EcsBackend, Retry, Runner, Secret
from fargate_runner.telemetry import Event
from fargate_runner.testing.aws import Chaos, FakeAws, Fault, server_error, throttled
from fargate_runner.testing.clock import VirtualClock
from tests.contract.ecs_words import Words
from tests.ecs import truths
from tests.ecs.test_backend import identity

pytestmark = pytest.mark.sweep

Make = Callable[..., EcsBackend]


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


async def cancel_after(turns: int, scope: anyio.CancelScope) -> None:
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()
    scope.cancel()


@pytest.mark.parametrize("turns", range(120))
@pytest.mark.parametrize("verb", ["run", "submit"])
async def test_a_caller_cancelled_in_any_turn_of_a_launch_leaves_nothing(
    make_backend: Make, aws: FakeAws, turns: int, verb: str
) -> None:
    async with Runner(make_backend(secret_prefix="/jobs")) as runner:
        with anyio.move_on_after(5) as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cancel_after, turns, scope)
                await getattr(runner, verb)(Words().waits().with_(key="k", secrets={"A": Secret("canary")}))

    assert truths.alive(aws) == []
    assert await kept_secrets(aws) == []


@pytest.mark.parametrize("turns", range(160))
async def test_a_runner_left_in_any_turn_of_a_launch_leaves_nothing(
    make_backend: Make, aws: FakeAws, turns: int
) -> None:
    with anyio.CancelScope() as scope:
        async with Runner(make_backend(secret_prefix="/jobs")) as runner, anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_after, turns, scope)
            tasks.start_soon(runner.run, Words().waits().with_(key="k", secrets={"A": Secret("canary")}))

    assert scope.cancelled_caught
    assert truths.alive(aws) == []
    assert await kept_secrets(aws) == []


@pytest.mark.parametrize("seconds", [0.5 * n for n in range(160)])
async def test_a_runner_left_at_any_moment_of_a_life_leaves_nothing(
    make_backend: Make, aws: FakeAws, seconds: float
) -> None:
    with anyio.move_on_after(seconds):
        async with Runner(make_backend()) as runner:
            handle = await runner.submit(Words().exits(1).with_(retry=Retry(failures=5, wait=lambda _: 1.0)))
            async for _ in handle.logs():
                pass
            await handle.wait()

    assert truths.alive(aws) == []


@pytest.mark.parametrize("told", range(1, 6))
async def test_a_runner_cancelled_at_any_event_of_a_job_leaves_nothing(
    make_backend: Make, aws: FakeAws, told: int
) -> None:
    seen: list[Event] = []
    scope = anyio.CancelScope()

    def watch(event: Event) -> None:
        seen.append(event)
        if len(seen) == told:
            scope.cancel()

    with scope:
        async with Runner(make_backend(), observers=[watch]) as runner:
            handle = await runner.submit(Words().waits())
            async for _ in handle.logs():
                scope.cancel()

    assert truths.alive(aws) == []


@pytest.mark.parametrize("seed", range(20))
async def test_a_runner_left_on_a_bad_day_leaves_nothing(make_backend: Make, aws: FakeAws, seed: int) -> None:
    aws.faults.add(Chaos.moderate(seed, throttle=0.1, lost_answer=0.1, server_error_after=0.1))

    with anyio.move_on_after(2.0 * seed):
        async with Runner(make_backend()) as runner, anyio.create_task_group() as tasks:
            for n in range(30):
                tasks.start_soon(runner.run, Words().waits().with_(key=f"job-{n}"))

    assert truths.alive(aws) == []
    assert truths.doubled_tokens(aws) == []


async def kept_secrets(aws: FakeAws) -> list[str]:
    reply = await aws.ssm.call("GetParametersByPath", {"Path": "/jobs", "Recursive": True})
    return [parameter["Name"] for parameter in reply["Parameters"]]


class TestLeavingInTime:
    async def test_two_thousand_jobs_cancelled_at_once_launch_nothing_more(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock
    ) -> None:
        async with Runner(make_backend()) as runner:
            with anyio.move_on_after(20):
                async with anyio.create_task_group() as tasks:
                    for n in range(2000):
                        tasks.start_soon(runner.run, Words().waits().with_(key=f"job-{n}"))
            left_at = clock.time()

        assert [truth.accepted_at for truth in aws.world.truth() if truth.accepted_at > 21] == []
        assert truths.alive(aws) == []
        assert left_at < 120

    @pytest.mark.parametrize(
        "fault",
        [
            throttled("ecs.RunTask", times=math.inf),
            throttled(times=math.inf),
            server_error("ecs.RunTask", times=math.inf),
            Fault(match="ecs.RunTask", times=math.inf, cut="reset"),
            Fault(match="ecs.RunTask", times=math.inf, delay=1000.0),
            Fault(match="ecs.RunTask", times=math.inf, code="ExpiredTokenException"),
            Fault(match="*", times=math.inf, code="ExpiredTokenException"),
            Fault(match="ssm.*", times=math.inf, code="ThrottlingException"),
            throttled("ecs.Describe*|ecs.List*|logs.*", times=math.inf),
        ],
        ids=lambda fault: f"{fault.match}-{fault.code or fault.cut or fault.delay}",
    )
    async def test_whatever_launches_wait_for_leaving_ends(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock, fault: Fault
    ) -> None:
        aws.faults.add(fault)

        with anyio.move_on_after(30):
            async with Runner(make_backend(secret_prefix="/jobs")) as runner, anyio.create_task_group() as tasks:
                for n in range(30):
                    tasks.start_soon(runner.run, Words().waits().with_(key=f"j{n}", secrets={"A": Secret("canary")}))

        assert clock.time() < 1000
        assert truths.alive(aws) == []

    async def test_listing_that_is_throttled_for_ever_holds_nobody_up(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock
    ) -> None:
        aws.faults.add(throttled("ecs.ListTasks", times=math.inf))

        with anyio.move_on_after(30):
            async with Runner(make_backend()) as runner, anyio.create_task_group() as tasks:
                for n in range(30):
                    tasks.start_soon(runner.run, Words().waits().with_(key=f"job-{n}"))

        assert clock.time() <= 65
        assert aws.world.truth() == []

    async def test_launches_that_wait_for_capacity_are_given_up_at_once(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock
    ) -> None:
        aws.world.capacity.out()

        with anyio.move_on_after(100):
            async with Runner(make_backend()) as runner, anyio.create_task_group() as tasks:
                for n in range(30):
                    tasks.start_soon(runner.run, Words().waits().with_(key=f"job-{n}"))

        assert clock.time() < 105
        assert aws.world.truth() == []

    async def test_turns_that_nobody_took_do_not_block_those_who_come_later(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock
    ) -> None:
        async with make_backend() as backend:
            for n in range(40):
                await backend.prepare(Words().exits(), identity(f"never-{n}"))
            begun = clock.time()
            for n in range(40):
                await backend.submit(await backend.prepare(Words().exits(), identity(f"k{n}")))

        assert clock.time() - begun < 20
