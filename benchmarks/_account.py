"""
An AWS account in a process of its own: the fake AWS over HTTP, in real time, and a judge of what clients did to it.

``python -m benchmarks._account`` says its URL on the first line, then answers words on its input: ``dump`` with a line
of JSON, ``clear`` by forgetting all calls. It ends with its input. Moments are those of the machine's monotonic clock,
which is also that of every event loop here, so that what a client saw can be held against what was.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from random import Random
from typing import Any, Final, Literal, Self

import attrs

from fargate_runner.testing.aws import ContainerRun, ContainerScript, FakeAws, Pace, Quotas

__all__ = ["CLUSTER", "REGION", "SUBNET", "Account", "Judged", "Truth", "account", "dump", "fake", "pace_of"]

CLUSTER: Final = "jobs"
REGION: Final = "us-east-1"
SUBNET: Final = "subnet-0aaaaaaaa00000001"
_MODULE: Final = "benchmarks._account"
_STARTING: Final = (30.0, 60.0)
_RUNNING: Final = (10.0, 120.0)
_STOPPING: Final = (1.0, 5.0)
_FAILS_OF_100: Final = 3


def pace_of(scale: float) -> Pace:
    """Return a platform that starts tasks within 30 to 60 s, and is done with them 1 to 5 s after their end."""
    slow = {"provisioning": _STARTING, "deprovisioning": _STOPPING}
    spans = {step: (least * scale, most * scale) for step, (least, most) in slow.items()}
    return attrs.evolve(Pace.instant(), **spans)


def _life_of(run: ContainerRun, *, seed: int, scale: float) -> ContainerScript:
    """Return what a container does: 10 to 120 s of work, which fails now and then."""
    chance = Random(f"{seed}/{run.number}")
    code = 3 if chance.random() * 100 < _FAILS_OF_100 else 0
    return ContainerScript(run_for=chance.uniform(*_RUNNING) * scale, exit_code=code)


def fake(
    *,
    quotas: Literal["published", "none"] = "published",
    life: Literal["fargate", "forever"] = "fargate",
    scale: float = 1.0,
    seed: int = 1,
    clock: Any = None,
) -> FakeAws:
    """Return the account, in this process."""

    def script(run: ContainerRun) -> ContainerScript:
        if life == "forever":
            return ContainerScript(run_for=math.inf)
        return _life_of(run, seed=seed, scale=scale)

    return FakeAws(
        clock=clock,
        script=script,
        seed=seed,
        quotas=Quotas.published(REGION) if quotas == "published" else Quotas.unlimited(),
        pace=pace_of(scale) if life == "fargate" else Pace.instant(),
        visible_after=(0.0, 1.5 * scale) if life == "fargate" else (0.0, 0.0),
        clusters=(CLUSTER,),
        region=REGION,
    )


def dump(aws: FakeAws) -> dict[str, Any]:
    """Return what happened, of tasks and of calls: what `Truth` is made of."""
    outcomes = Counter((call.called, call.outcome) for call in aws.calls)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "tasks": [
            {
                "arn": task.arn,
                "accepted_at": task.accepted_at,
                "ended_at": task.ended_at,
                "stopped_at": task.stopped_at,
                "exit_code": next((each.exit_code for each in task.containers.values()), None),
            }
            for task in aws.world.truth()
        ],
        "calls": [[called, outcome, count] for (called, outcome), count in outcomes.items()],
        "cpu": used.ru_utime + used.ru_stime,
    }


# ---- the process ---------------------------------------------------------------------------------------------------


async def _serve(given: argparse.Namespace) -> None:
    aws = fake(quotas=given.quotas, life=given.life, scale=given.scale, seed=given.seed)
    loop = asyncio.get_running_loop()
    async with aws.serve(moto=False) as url:
        print(url, flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            if line.strip() == "clear":
                aws.calls.clear()
            print(json.dumps(dump(aws)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}")
    parser.add_argument("--quotas", choices=("published", "none"), default="published")
    parser.add_argument("--life", choices=("fargate", "forever"), default="fargate")
    parser.add_argument("--scale", type=float, default=1.0, help="of all that tasks take; quotas stay")
    parser.add_argument("--seed", type=int, default=1)
    asyncio.run(_serve(parser.parse_args()))


# ---- whoever starts it ---------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Judged:
    """One task, as it really was."""

    arn: str
    accepted_at: float
    ended_at: float | None
    """When its process ended."""
    stopped_at: float | None
    """When ECS called it STOPPED."""
    exit_code: int | None


@attrs.frozen(kw_only=True)
class Truth:
    """What an account saw."""

    tasks: tuple[Judged, ...]
    calls: Counter[tuple[str, str]]
    """How many by operation and outcome."""
    cpu: float
    """Seconds that the fake itself has used."""

    def count(self, called: str, outcome: str | None = None) -> int:
        """Return how many calls there were of an operation, or of all that begin so."""
        return sum(
            count
            for (name, came), count in self.calls.items()
            if name.startswith(called) and (outcome is None or came == outcome)
        )

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Self:
        calls = Counter({(called, outcome): count for called, outcome, count in said["calls"]})
        return cls(tasks=tuple(Judged(**task) for task in said["tasks"]), calls=calls, cpu=said["cpu"])


class Account:
    """The account from outside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.url = self._line().strip()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the fake AWS ended before it said anything: see what it wrote above")
        return line

    def _say(self, word: str) -> Truth:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return Truth.of(json.loads(self._line()))

    def truth(self) -> Truth:
        """Ask what has happened."""
        return self._say("dump")

    def clear(self) -> None:
        """Have it forget all calls."""
        self._say("clear")


@contextmanager
def account(**options: Any) -> Generator[Account]:
    """Start an account and end it: ``account(quotas="none", life="forever")``."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-m", _MODULE, *words], stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield Account(process)
        finally:
            process.kill()


if __name__ == "__main__":
    main()
