"""Completion by events: from the queue to whoever waits, in virtual time."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import anyio
import attrs
import pytest

from fargate_runner import BackendUnavailable, EcsBackend, Identity, InvalidJob, Job, TaskRef
from fargate_runner._errors import BackendError
from fargate_runner._lifecycle import Phase, Snapshot
from fargate_runner.backends.ecs import _wire
from fargate_runner.backends.ecs._events import _Senders
from fargate_runner.testing.aws import ContainerRun, ContainerScript, Delivery, FakeAws, Fault, denied
from fargate_runner.testing.aws import throttled as throttle
from fargate_runner.testing.clock import VirtualClock
from tests.contract.ecs_words import IMAGE
from tests.ecs.conftest import NETWORK, ROLES

Make = Callable[..., EcsBackend]
QUEUE = "jobs-events"
URL = f"https://sqs.us-east-1.amazonaws.com/123456789012/{QUEUE}"


def script(container: ContainerRun) -> ContainerScript:
    seconds, code = container.command
    return ContainerScript(run_for=float(seconds), exit_code=int(code))


def runs(seconds: float, code: int = 0) -> Job:
    return Job(image=IMAGE, command=[str(seconds), str(code)])


@pytest.fixture
def delivery() -> Delivery:
    return Delivery(queue_policies=True)


@pytest.fixture
def aws(clock: VirtualClock, delivery: Delivery) -> FakeAws:
    return made_aws(clock, delivery)


def made_aws(clock: VirtualClock, delivery: Delivery, **more: Any) -> FakeAws:
    return FakeAws(clock=clock, script=script, clusters=("jobs",), delivery=delivery, validate=False, **more)


def made_backend(aws: FakeAws, clock: VirtualClock, **more: Any) -> EcsBackend:
    known: dict[str, Any] = {"network": NETWORK, "roles": ROLES, "session": aws.session(), "region": aws.region}
    return EcsBackend("jobs", **known | {"utcnow": clock.utcnow, "events": QUEUE} | more)


@attrs.define
class Seen:
    """What a waiter saw of a task, and when."""

    phases: list[Phase] = attrs.field(factory=list)
    end: Snapshot | None = None
    at: float = math.inf


@attrs.define
class Rig:
    """An open backend that listens, what was seen through it, and when the events of ends came into the queue."""

    aws: FakeAws
    backend: EcsBackend
    seen: dict[str, Seen] = attrs.field(factory=dict)
    arrived: dict[str, float] = attrs.field(factory=dict)

    async def launch(self, job: Job, key: str) -> TaskRef:
        identity = Identity(namespace="tests", key=key, attempt=1)
        return await self.backend.submit(await self.backend.prepare(job, identity))

    async def run(self, job: Job, key: str) -> Seen:
        return await self.wait(await self.launch(job, key))

    async def wait(self, ref: TaskRef) -> Seen:
        seen = self.seen[ref.address] = Seen()
        last = await self.backend.observe(ref)
        seen.phases.append(last.phase)
        while not last.ended:
            last = await self.backend.observe(ref, after=last)
            seen.phases.append(last.phase)
        seen.end, seen.at = last, anyio.current_time()
        return seen

    async def run_all(self, jobs: list[Job]) -> None:
        async with anyio.create_task_group() as tasks:
            for number, job in enumerate(jobs):
                tasks.start_soon(self.run, job, f"k{number}")

    @property
    def reads(self) -> int:
        return self.aws.calls.operations["ecs.DescribeTasks"]

    def delays(self) -> list[float]:
        """From a STOPPED event's arrival in the queue to the return of who waits, the shortest first."""
        return sorted(self.seen[arn].at - at for arn, at in self.arrived.items())

    def after_the_end(self) -> list[float]:
        """From the true end to the return of who waits, the shortest first."""
        truths = {truth.arn: truth.stopped_at for truth in self.aws.world.truth()}
        return sorted(seen.at - (truths[arn] or 0) for arn, seen in self.seen.items())

    def untrue(self) -> list[str]:
        """Where what was seen is not what DescribeTasks says, or went back."""
        tasks = {task.arn: task for task in self.aws.world.tasks.values()}
        return [arn for arn, seen in self.seen.items() if _is_untrue(seen, self.aws.world.wire(tasks[arn]))]


def _is_untrue(seen: Seen, task: dict[str, Any]) -> bool:
    assert seen.end is not None
    told = _wire.snapshot(task, "main", source="describe", seen_at=attrs.evolve(seen.end).proof.seen_at)  # type: ignore[union-attr]
    names = ("phase", "cause", "reason", "exit_code", "created_at", "started_at", "ended_at", "advice")
    return seen.phases != sorted(seen.phases) or any(getattr(seen.end, n) != getattr(told, n) for n in names)


@asynccontextmanager
async def listening(aws: FakeAws, clock: VirtualClock, **more: Any) -> AsyncGenerator[Rig]:
    backend = made_backend(aws, clock, **more)
    await backend.make_events()
    async with backend:
        rig = Rig(aws, backend)
        deliver = aws.sqs.deliver

        def noting(arn: str, body: str, *, delay: float = 0.0, **how: Any) -> bool:
            task = json.loads(body)["detail"]
            at = clock.time() + delay
            if task["lastStatus"] == "STOPPED":
                rig.arrived[task["taskArn"]] = min(at, rig.arrived.get(task["taskArn"], math.inf))
            return deliver(arn, body, delay=delay, **how)

        aws.sqs.deliver = noting  # type: ignore[method-assign]
        yield rig


def some_jobs(count: int, seed: int = 0) -> list[Job]:
    random = Random(seed)
    return [runs(random.uniform(10, 120), random.choice([0, 0, 0, 3, 137])) for _ in range(count)]


async def messages(aws: FakeAws) -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    reply = await aws.call("sqs", "GetQueueAttributes", {"QueueUrl": URL, "AttributeNames": names})
    return sum(int(value) for value in reply["Attributes"].values())


class TestWhenEventsCome:
    async def test_a_thousand_ends_are_seen_at_once_and_hardly_a_look_is_needed(
        self, aws: FakeAws, clock: VirtualClock
    ) -> None:
        async with listening(aws, clock) as rig:
            await rig.run_all(some_jobs(1000))
        delays = rig.delays()
        print("reads", rig.reads, "p50", delays[500], "p99", delays[990], "max", delays[-1], clock.time(), aws.calls.operations)

        assert rig.untrue() == []
        assert len(delays) == 1000
        assert delays[990] <= 1.0
        assert rig.reads <= 100
        assert aws.calls.throttled.total() == 0
