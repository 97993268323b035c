"""The contract on the memory backend, in virtual time."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta

import pytest

from fargate_runner import Backend, Cause, Identity, Job, MemoryBackend
from fargate_runner.backends.memory import MemoryPlatform, Script
from fargate_runner.testing.clock import VirtualClock
from fargate_runner.testing.contract import BackendContract, Vocabulary


class Words(Vocabulary):
    """The first word of a command says how it goes."""

    def exits(self, code: int = 0) -> Job:
        return Job(command=["exits", str(code)])

    def prints(self, *lines: str, stderr: tuple[str, ...] = ()) -> Job:
        return Job(command=["prints", *lines, *(f"!{line}" for line in stderr)])

    def waits(self) -> Job:
        return Job(command=["waits"])

    def ignores_sigterm(self) -> Job:
        return Job(command=["ignores_sigterm"], stop_timeout=timedelta(seconds=2))

    def prints_variable(self, name: str) -> Job:
        return Job(command=["prints_variable", name])

    def unstartable(self) -> Job:
        return Job(command=["unstartable"])

    def counts(self, lines: int) -> Job:
        return Job(command=["counts", str(lines)])


def script(job: Job, identity: Identity) -> Script:
    assert job.command is not None
    verb, *words = job.command
    match verb:
        case "exits":
            return Script(start_after=30, run_for=60, exit_code=int(words[0]))
        case "prints":
            return Script(start_after=30, run_for=60, lines=tuple(words))
        case "waits":
            return Script(start_after=30, run_for=math.inf, lines=("ready",))
        case "ignores_sigterm":
            return Script(start_after=30, run_for=math.inf, lines=("ready",), ignores_sigterm=True)
        case "prints_variable":
            return Script(run_for=1, lines=(f"${words[0]}",))
        case "unstartable":
            return Script(start_after=30, cause=Cause.COULD_NOT_START, reason="no such program")
        case "counts":
            return Script(start_after=30, run_for=600, lines=tuple(str(n) for n in range(1, int(words[0]) + 1)))
        case _:
            raise ValueError(verb)


class TestMemoryBackend(BackendContract):
    @pytest.fixture
    def anyio_backend(self, clock: VirtualClock) -> object:
        return "asyncio", {"loop_factory": clock.loop}

    @pytest.fixture
    def jobs(self) -> Vocabulary:
        return Words()

    @pytest.fixture
    def make_backend(self, clock: VirtualClock) -> Callable[[], Backend]:
        platform = MemoryPlatform()
        return lambda: MemoryBackend(script, platform=platform, utcnow=clock.utcnow)
