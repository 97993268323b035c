"""
One thing goes wrong at one call: every call of a job's life, and every way in which a call goes wrong.

The calls are those of a run in which all is well. Whatever happens to one of them, the job ends once, in the same way.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import attrs
import pytest

from fargate_runner import EcsBackend, Job, JobResult, Kind, LogGroup, Retry, Runner, Secret
from fargate_runner.backends.ecs._watch import Cadence
from fargate_runner.testing.aws import (
    ContainerRun,
    ContainerScript,
    FakeAws,
    Fault,
    Pace,
    Quotas,
    server_error,
    throttled,
)
from fargate_runner.testing.clock import VirtualClock
from tests.contract.ecs_words import IMAGE
from tests.ecs import truths
from tests.ecs.conftest import NETWORK, ROLES

pytestmark = pytest.mark.sweep

LINES = ("one", "two", "three")


@attrs.frozen(kw_only=True)
class Account:
    """An AWS of its own for one run."""

    clock: VirtualClock = attrs.field(factory=VirtualClock)
    aws: FakeAws = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        aws = FakeAws(clock=self.clock, script=script, clusters=("jobs",), pace=Pace().scaled(0.5), quotas=Quotas())
        object.__setattr__(self, "aws", aws)

    def backend(self, **options: Any) -> EcsBackend:
        return EcsBackend(
            "jobs",
            network=NETWORK,
            roles=ROLES,
            session=self.aws.session("AKIAMINE"),
            region=self.aws.region,
            utcnow=self.clock.utcnow,
            cadence=Cadence(period=10.0),
            **options,
        )

    def run(self, scenario: Scenario) -> Ended:
        return anyio.run(scenario, self, backend_options={"loop_factory": self.clock.loop})


@attrs.frozen
class Ended:
    """What came of a scenario."""

    result: JobResult
    lines: tuple[str, ...] = ()


Scenario = Callable[[Account], Awaitable[Ended]]


def script(container: ContainerRun) -> ContainerScript:
    number = int(container.environment["FARGATE_RUNNER_ATTEMPT"])
    match container.command[0]:
        case "lines":
            return ContainerScript(lines=LINES, run_for=10.0)
        case "second":
            return ContainerScript(lines=LINES[number - 1 : number], exit_code=2 - number, run_for=10.0)
        case _:
            return ContainerScript(lines=LINES[:1], run_for=math.inf)


def job(word: str, **changes: Any) -> Job:
    return Job(image=IMAGE, command=[word], key="the-key").with_(**changes)


async def succeeds(account: Account) -> Ended:
    async with Runner(account.backend(), utcnow=account.clock.utcnow) as runner:
        handle = await runner.submit(job("lines"))
        lines = tuple([str(line) async for line in handle.logs()])
        return Ended(await handle.wait(), lines)


async def is_retried(account: Account) -> Ended:
    async with Runner(account.backend(), utcnow=account.clock.utcnow) as runner:
        handle = await runner.submit(job("second", retry=Retry(failures=1, wait=lambda _: 1.0)))
        lines = tuple([str(line) async for line in handle.logs()])
        return Ended(await handle.wait(), lines)


async def is_stopped(account: Account) -> Ended:
    async with Runner(account.backend(), utcnow=account.clock.utcnow) as runner:
        handle = await runner.submit(job("waits"))
        async for _ in handle.logs():
            break
        return Ended(await handle.stop())


async def is_found_again(account: Account) -> Ended:
    async with Runner(account.backend(), on_exit="detach", utcnow=account.clock.utcnow) as runner:
        await runner.submit(job("lines"))
    async with Runner(account.backend(), utcnow=account.clock.utcnow) as runner:
        handle = await runner.submit(job("lines"))
        lines = tuple([str(line) async for line in handle.logs()])
        return Ended(await handle.wait(), lines)


async def brings_much(account: Account) -> Ended:
    await account.aws.call("s3", "CreateBucket", {"Bucket": "payloads"})
    account.aws.calls.clear()
    options = {"secret_prefix": "/jobs", "spill_to": "s3://payloads", "log_group": LogGroup(retention_days=7)}
    async with Runner(account.backend(**options), utcnow=account.clock.utcnow) as runner:
        brings: dict[str, Any] = {"env": {"LARGE": "x" * 10_000}, "secrets": {"A": Secret("canary")}}
        result = await runner.run(job("lines", **brings))
    groups = await account.aws.logs.call("DescribeLogGroups", {})
    kept = await account.aws.ssm.call("GetParametersByPath", {"Path": "/jobs", "Recursive": True})
    return Ended(result, (f"{groups['logGroups'][0].get('retentionInDays')} days", *map(str, kept["Parameters"])))


EXPECTED: dict[Scenario, tuple[Kind, int, tuple[str, ...]]] = {
    succeeds: (Kind.SUCCEEDED, 1, LINES),
    is_retried: (Kind.SUCCEEDED, 2, LINES[:2]),
    is_stopped: (Kind.CANCELLED, 1, ()),
    is_found_again: (Kind.SUCCEEDED, 1, LINES),
    brings_much: (Kind.SUCCEEDED, 1, ("7 days",)),
}


EXPIRED = "The security token included in the request is expired"

KINDS: dict[str, Callable[..., Fault]] = {
    "throttle": throttled,
    "5xx": server_error,
    "5xx-done": partial(server_error, when="after"),
    "lost": partial(Fault, cut=True),
    "lost-done": partial(Fault, cut=True, when="after"),
    "reset-done": partial(Fault, cut="reset", when="after"),
    # Longer than the door's patience with one try, which is 30 s.
    "late": partial(Fault, delay=45.0),
    "late-done": partial(Fault, delay=45.0, when="after"),
    "expired": partial(Fault, code="ExpiredTokenException", message=EXPIRED),
}


def calls_of(scenario: Scenario) -> Counter[str]:
    account = Account()
    account.run(scenario)
    return account.aws.calls.operations


CASES = [
    pytest.param(scenario, called, index, how, id=f"{scenario.__name__}-{called}-{index}-{how}")
    for scenario in EXPECTED
    for called, times in sorted(calls_of(scenario).items())
    for index in range(times)
    for how in KINDS
]


@pytest.mark.parametrize(("scenario", "called", "index", "how"), CASES)
def test_any_fault_at_any_call_changes_nothing(scenario: Scenario, called: str, index: int, how: str) -> None:
    account = Account()
    account.aws.faults.add(KINDS[how](match=called, skip=index))

    ended = account.run(scenario)

    outcome, tasks, lines = EXPECTED[scenario]
    assert ended.result.outcome.kind is outcome, ended.result.outcome
    assert ended.lines == lines
    assert len(account.aws.world.truth()) == len(ended.result.attempts) == tasks
    assert truths.doubled_tokens(account.aws) == []
    assert truths.untrue(account.aws, [ended.result]) == []
    assert truths.alive(account.aws) == []


def test_the_sweep_covers_every_operation_of_a_job() -> None:
    swept = {case.values[1] for case in CASES}

    assert swept == {
        *("ecs.DescribeClusters", "logs.CreateLogGroup", "ecs.DescribeTaskDefinition", "ecs.RegisterTaskDefinition"),
        *("ecs.RunTask", "ecs.DescribeTasks", "ecs.StopTask", "ecs.ListTasks"),
        *("logs.GetLogEvents", "logs.PutRetentionPolicy", "ssm.PutParameter", "ssm.DeleteParameter", "s3.PutObject"),
    }
