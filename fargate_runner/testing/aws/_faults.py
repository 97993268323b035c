"""
What goes wrong between a client and AWS: single faults by rule, and a plan of many by seed.

A fault before the effect is a request that never arrived, or was refused; one after the effect is the dangerous kind:
the task runs, and nobody was told.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fnmatch import fnmatchcase
from random import Random
from typing import Any, Final, Literal, TypeAlias

import attrs
from attrs import field, validators

from fargate_runner.testing.aws._script import ENI_TIMEOUT, NO_CAPACITY, TaskScript
from fargate_runner.testing.aws._service import AwsError
from fargate_runner.testing.aws._task import Task
from fargate_runner.testing.aws._world import World

__all__ = ["Chaos", "Fault", "Faults", "denied", "ec2_throttled", "server_error", "throttled"]

When: TypeAlias = Literal["before", "after"]
Cut: TypeAlias = bool | Literal["reset", "half"]


@attrs.define(kw_only=True)
class Fault:
    """
    One thing that goes wrong with calls that fit, so many times, after so many that go well.

    With a *code* the answer is that error; with *cut* there is none: the connection ends. With neither, the call is
    only late by *delay* seconds.
    """

    match: str = "*"
    """``ecs.RunTask``, ``ecs.*``, ``*``; several are separated by ``|``."""
    times: float = field(default=1, validator=validators.ge(0))
    skip: int = field(default=0, validator=validators.ge(0))
    """How many calls that fit go well before."""
    code: str = ""
    message: str = ""
    status: int = 400
    members: dict[str, Any] = field(factory=dict)
    """Of the error's shape, such as ``resourceIds``."""
    delay: float = field(default=0.0, validator=validators.ge(0.0))
    """Seconds before the answer."""
    when: When = field(default="before", validator=validators.in_(("before", "after")))
    cut: Cut = False
    """
    True: the connection is closed without an answer. ``reset``: it is reset. ``half``: it ends in the middle of the
    answer (over HTTP; *when* is ``after`` then).
    """
    happened: int = 0
    """How often it did."""

    def __attrs_post_init__(self) -> None:
        if self.code and self.cut:
            raise ValueError("a fault answers with a code or cuts the connection, not both")
        if self.cut == "half":
            self.when = "after"

    def fits(self, called: str) -> bool:
        """Whether it concerns an operation, and has not happened often enough."""
        return self.times > self.happened and any(fnmatchcase(called, part) for part in self.match.split("|"))

    def error(self) -> AwsError | None:
        """Return the error that it answers with."""
        if not self.code:
            return None
        return AwsError(self.code, self.message or self.code, status=self.status, **self.members)


def throttled(match: str = "*", *, times: float = 1, skip: int = 0) -> Fault:
    """Return a throttle, which AWS gives before any effect."""
    return Fault(match=match, times=times, skip=skip, code="ThrottlingException", message="Rate exceeded")


def ec2_throttled(subnet: str = "subnet-0a1b2c3d", *, times: float = 1, skip: int = 0) -> Fault:
    """Return EC2's throttle as RunTask passes it on: dressed up as a client's mistake."""
    return Fault(
        match="ecs.RunTask",
        times=times,
        skip=skip,
        code="InvalidParameterException",
        message=f"Error retrieving subnet information for [{subnet}]: Rate exceeded (ErrorCode: Throttling)",
    )


def server_error(match: str = "*", *, times: float = 1, skip: int = 0, when: When = "before") -> Fault:
    """Return AWS's own failure; *after*: it did what was asked and says that it failed."""
    return Fault(
        match=match,
        times=times,
        skip=skip,
        code="ServerException",
        message="Service Unavailable. Please try again later.",
        status=500,
        when=when,
    )


def denied(operation: str, *, resource: str = "*", who: str = "user/fake", account: str = "123456789012") -> Fault:
    """Return a missing permission, for ever: ``denied("ecs.RunTask", resource="arn:…")``."""
    service, _, name = operation.partition(".")
    return Fault(
        match=operation,
        times=math.inf,
        code="AccessDeniedException",
        message=(
            f"User: arn:aws:iam::{account}:{who} is not authorized to perform: {service}:{name} on resource: "
            f"{resource} because no identity-based policy allows the {service}:{name} action"
        ),
    )


_rate = validators.and_(validators.ge(0.0), validators.le(1.0))


@attrs.frozen(kw_only=True)
class Chaos:
    """
    Many faults, by seed: the same seed and the same calls go wrong in the same way. Every rate is a probability.

    It answers twice: of each call (`call`), and of each launch (`launch`).
    """

    seed: int
    throttle: float = field(default=0.0, validator=_rate)
    server_error: float = field(default=0.0, validator=_rate)
    """A 5xx before the effect."""
    server_error_after: float = field(default=0.0, validator=_rate)
    """A 5xx although it was done."""
    lost_request: float = field(default=0.0, validator=_rate)
    """The connection ends before the effect."""
    lost_answer: float = field(default=0.0, validator=_rate)
    """The connection ends after the effect."""
    slow: float = field(default=0.0, validator=_rate)
    slow_for: tuple[float, float] = (0.1, 5.0)
    """(least, most) seconds of a slow answer."""
    ec2_throttle: float = field(default=0.0, validator=_rate)
    """RunTask refused by EC2's throttle."""
    no_capacity: float = field(default=0.0, validator=_rate)
    """RunTask answered with ``failures[]``."""
    hidden: float = field(default=0.0, validator=_rate)
    """A task that DescribeTasks does not find for a while."""
    hidden_for: tuple[float, float] = (1.0, 30.0)
    spot: float = field(default=0.0, validator=_rate)
    """A task on FARGATE_SPOT is interrupted."""
    host: float = field(default=0.0, validator=_rate)
    """A task's host fails."""
    trouble_after: tuple[float, float] = (0.0, 60.0)
    """(least, most) seconds after RUNNING for the two above."""
    start_failure: float = field(default=0.0, validator=_rate)
    """A task does not start, for a reason that will pass."""
    match: str = "*"
    """The operations that calls of may fail."""
    until: float = math.inf
    """The moment of the clock after which all is well, so that runs come to an end."""

    @classmethod
    def moderate(cls, seed: int, **changes: Any) -> Chaos:
        """Return a bad day: something of everything, and most of it works."""
        usual: dict[str, Any] = {
            "throttle": 0.03,
            "server_error": 0.02,
            "server_error_after": 0.01,
            "lost_request": 0.02,
            "lost_answer": 0.03,
            "slow": 0.05,
            "ec2_throttle": 0.02,
            "no_capacity": 0.05,
            "hidden": 0.1,
            "spot": 0.1,
            "host": 0.02,
            "start_failure": 0.05,
        }
        return cls(seed=seed, **(usual | changes))

    def call(self, called: str, number: int, now: float) -> Iterator[Fault]:
        """Yield what goes wrong with the *number*-th call of an operation."""
        if now >= self.until or not Fault(match=self.match).fits(called):
            return
        random = Random(f"{self.seed}/{called}/{number}")  # noqa: S311 (repeatable, not secret)
        # All dice are thrown, whatever they say: one rate does not change what another does.
        slow, wait, dice = random.random(), random.uniform(*self.slow_for), random.random()
        if slow < self.slow:
            yield Fault(delay=wait, when="after" if random.random() < 0.5 else "before")
        for rate, fault in self._of_calls(called):
            if dice < rate:
                yield fault
                return
            dice -= rate

    def _of_calls(self, called: str) -> Iterator[tuple[float, Fault]]:
        yield self.throttle, throttled()
        yield self.server_error, server_error()
        yield self.server_error_after, server_error(when="after")
        yield self.lost_request, Fault(cut=True)
        yield self.lost_answer, Fault(cut=True, when="after")
        if called == "ecs.RunTask":
            yield self.ec2_throttle, ec2_throttled()

    def capacity(self, number: int, now: float) -> str | None:
        """Return why there is no room for the *number*-th launch, if there is none."""
        random = Random(f"{self.seed}/capacity/{number}")  # noqa: S311 (repeatable, not secret)
        return NO_CAPACITY if now < self.until and random.random() < self.no_capacity else None

    def launch(self, world: World, task: Task) -> None:
        """Plan what goes wrong with a task that was accepted, unless a script said so already."""
        now = world.now()
        if now >= self.until:
            return
        random = Random(f"{self.seed}/launch/{task.number}")  # noqa: S311 (repeatable, not secret)
        hidden, hidden_for = random.random(), random.uniform(*self.hidden_for)
        host, spot, start = random.random(), random.random(), random.random()
        after = random.uniform(*self.trouble_after)
        why = random.choice(_PASSING)
        if hidden < self.hidden:
            world.hide(task, hidden_for)
        if task.script != TaskScript(pace=task.script.pace):
            return
        if start < self.start_failure:
            task.script = attrs.evolve(task.script, **why)
        elif task.provider == "FARGATE_SPOT" and spot < self.spot:
            task.script = attrs.evolve(task.script, interrupted_after=after)
        elif host < self.host:
            task.script = attrs.evolve(task.script, host_fails_after=after)


_PASSING: Final[tuple[dict[str, Any], ...]] = (
    {"fails_to_start": ENI_TIMEOUT},
    {"fails_to_start": ENI_TIMEOUT, "without_containers": True},
    {
        "fails_to_start": "CannotPullContainerError: pull image manifest has been retried 5 time(s): i/o timeout",
        "fails_in": "ACTIVATING",
    },
    {"fails_to_start": "InternalError: unable to start the task", "fails_in": "PENDING"},
)


class Faults:
    """The faults of a fake: rules in their order, then the chaos."""

    def __init__(self) -> None:
        self.rules: list[Fault] = []
        self.chaos: Chaos | None = None
        self._numbers: dict[str, int] = {}

    def add(self, *faults: Fault | Chaos) -> None:
        """Let these happen from now on. A `Chaos` takes the place of the one before."""
        for fault in faults:
            if isinstance(fault, Chaos):
                self.chaos = fault
            else:
                self.rules.append(fault)

    def clear(self) -> None:
        """Let all be well from now on."""
        self.rules.clear()
        self.chaos = None

    def draw(self, called: str, now: float) -> list[Fault]:
        """Return what happens to a call: all delays, and at most one fault that ends it."""
        number = self._numbers[called] = self._numbers.get(called, 0) + 1
        drawn: list[Fault] = []
        for fault in self._candidates(called, number, now):
            fault.happened += 1
            drawn.append(fault)
            if fault.code or fault.cut:
                break
        return drawn

    def _candidates(self, called: str, number: int, now: float) -> Iterator[Fault]:
        for fault in self.rules:
            if not fault.fits(called):
                continue
            if fault.skip > 0:
                fault.skip -= 1
                continue
            yield fault
        if self.chaos is not None:
            yield from self.chaos.call(called, number, now)
