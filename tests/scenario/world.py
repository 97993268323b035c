"""What scenarios share: a platform, runners on it, and what they tell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import anyio
import attrs
from tenacity import wait_fixed
from tenacity.wait import wait_base

from fargate_runner import Identity, Job, MemoryBackend, Runner
from fargate_runner.backends.memory import MemoryPlatform, Script
from fargate_runner.telemetry import Event, JobAccepted, JobDetached, JobEnded, JobQueued, JobRefused, JobRemembered
from fargate_runner.testing.clock import VirtualClock
from tests.scenario.faults import Fault, FaultyBackend

T = TypeVar("T")

QUICK = Script(start_after=10, run_for=60)
ENDLESS = Script(start_after=10, run_for=math.inf)
FAILING = Script(start_after=10, run_for=60, exit_code=3)

PLAYS: dict[str, Script] = {
    "quick": QUICK,
    "endless": ENDLESS,
    "failing": FAILING,
    "soon_failing": Script(run_for=5, exit_code=3),
    "talking": Script(start_after=10, run_for=60, lines=("one", "two", "three")),
    "stubborn": attrs.evolve(ENDLESS, ignores_sigterm=True),
    "slow_to_start": Script(start_after=math.inf),
}


def played(job: Job, identity: Any) -> Script:
    """Each word of a job's command says how one of its attempts goes; the last word counts for all that follow."""
    assert job.command is not None
    word = job.command[min(identity.attempt, len(job.command)) - 1]
    if word.startswith("runs:"):
        return attrs.evolve(QUICK, run_for=float(word.removeprefix("runs:")))
    return PLAYS[word]


def job(*words: str, **fields: Any) -> Job:
    """A job whose attempts go as *words* say."""
    return Job(command=words, **fields)


def fixed(seconds: float) -> wait_base:
    """A wait between attempts."""
    return wait_fixed(seconds)


@attrs.define
class World:
    """One platform in virtual time."""

    clock: VirtualClock
    platform: MemoryPlatform = attrs.field(factory=MemoryPlatform)
    events: list[Event] = attrs.field(factory=list)
    started: list[Identity] = attrs.field(factory=list)
    """What was really started, by all runners of this world."""

    @property
    def now(self) -> float:
        return self.clock.time()

    def backend(self, *faults: Fault, script: Callable[..., Script] = played) -> FaultyBackend:
        inner = MemoryBackend(script, platform=self.platform, utcnow=self.clock.utcnow)
        return FaultyBackend(inner, faults, started=self.started)

    def runner(self, *faults: Fault, script: Callable[..., Script] = played, **options: Any) -> Runner:
        backend = options.pop("backend", None) or self.backend(*faults, script=script)
        observers = [self.events.append, *options.pop("observers", ())]
        return Runner(backend, observers=observers, utcnow=self.clock.utcnow, **options)

    def told(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if type(event) is kind]

    def unbalanced(self) -> dict[str, tuple[int, int]]:
        """
        Keys that were not accepted and ended once each, or (a launch that failed) neither; and those that were queued
        and of which nothing more was heard.
        """
        begun = Counter(event.key for event in self.told(JobAccepted))
        ended = Counter(event.key for event in [*self.told(JobEnded), *self.told(JobDetached)])
        counts = {event.key: (begun[event.key], ended[event.key]) for event in self.events}
        silent = Counter(event.key for event in self.told(JobQueued))
        silent -= Counter(event.key for kind in (JobAccepted, JobRemembered, JobRefused) for event in self.told(kind))
        return {key: count for key, count in counts.items() if count not in ((0, 0), (1, 1)) or silent[key]}


async def within(seconds: float, call: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Await *call*, which has to end in that much virtual time: a hang becomes an error at once."""
    with anyio.fail_after(seconds):
        return await call(*args)


def virtually(main: Callable[[World], Awaitable[T]]) -> T:
    """Run *main* on a world and a loop of its own."""
    world = World(clock=VirtualClock())

    async def bounded() -> T:
        return await within(timedelta(days=30).total_seconds(), main, world)

    return anyio.run(bounded, backend_options={"loop_factory": world.clock.loop})


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def keys(results: Iterable[Any]) -> list[str]:
    return [result.key for result in results]
