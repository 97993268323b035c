"""
The reaper on ECS: what is provably ours and overdue is stopped, and nothing of anybody else ever is.

A mark alone proves nothing: ``startedBy`` and tags are free text, and a prefix of ours may be a word of others.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

import anyio
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fargate_runner import BackendError, EcsBackend, Identity, Job, Reaped, Runner
from fargate_runner.backends.ecs import _wire
from fargate_runner.testing.aws import ContainerScript, FakeAws, Pace, Quotas, denied
from fargate_runner.testing.clock import VirtualClock
from tests.contract.ecs_words import IMAGE
from tests.ecs.conftest import NETWORK, ROLES

pytestmark = pytest.mark.sweep

Make = Callable[..., EcsBackend]

NAMESPACE = "tests"
HOUR = timedelta(hours=1)
JOB = Job(image=IMAGE, command=["work"], timeout=HOUR)
TIMELESS = JOB.with_(timeout=None)


@pytest.fixture
def aws(clock: VirtualClock) -> FakeAws:
    return account(clock)


def account(clock: VirtualClock) -> FakeAws:
    return FakeAws(
        clock=clock,
        script=ContainerScript(run_for=math.inf),
        pace=Pace.instant(),
        quotas=Quotas.unlimited(),
        clusters=("jobs", "others"),
        validate=False,
    )


def backend(aws: FakeAws, cluster: str = "jobs", **options: Any) -> EcsBackend:
    known: dict[str, Any] = {"network": NETWORK, "roles": ROLES, "session": aws.session(), "region": aws.region}
    known["utcnow"] = aws.clock.utcnow
    return EcsBackend(cluster, **known | options)


async def left(aws: FakeAws, *jobs: Job, cluster: str = "jobs", namespace: str = NAMESPACE) -> None:
    """Leave jobs behind, named by their place in the list."""
    async with Runner(backend(aws, cluster), namespace=namespace, on_exit="detach") as runner:
        for number, job in enumerate(jobs):
            await runner.submit(job.with_(key=f"k{number}"))


async def reaped(aws: FakeAws, *, skew: timedelta = timedelta(), **options: Any) -> list[Reaped]:
    def utcnow() -> datetime:
        return aws.clock.utcnow() + skew

    async with Runner(backend(aws, utcnow=utcnow), namespace=NAMESPACE, utcnow=utcnow) as runner:
        return await runner.reap(**options)


# ---- other people's tasks --------------------------------------------------------------------------------------------


def record(key: str, *, namespace: str = NAMESPACE, job: Job = JOB) -> str:
    return _wire.pack(job, Identity(namespace=namespace, key=key, attempt=1))


def ours(key: str) -> str:
    return _wire.started_by(NAMESPACE, key)


TAGS = [{"key": "fargate-runner", "value": NAMESPACE}, {"key": "fr/tests", "value": "k1"}]


def foreign(kind: str, number: int) -> dict[str, Any]:
    """What somebody else asks RunTask for, in words that look more or less like ours."""
    key = f"k{number}"
    match kind:
        case "nobody's":
            return {}
        case "somebody's":
            return asks(f"airflow/{key}")
        case "somebody's, with our record":
            return asks(f"airflow/{key}", record(key))
        case "our prefix":
            return asks(f"fr/{NAMESPACE}/{key}", record(key))
        case "only our prefix":
            return asks(f"fr/{key}")
        case "another namespace that begins as ours":
            return asks(_wire.started_by(f"{NAMESPACE}-2", key), record(key, namespace=f"{NAMESPACE}-2"))
        case "a namespace that ours begins with":
            return asks(_wire.started_by("test", key), record(key, namespace="test"))
        case "ours without a record":
            return asks(ours(key))
        case "ours with a record that says nothing":
            return asks(ours(key), ("", "e30=", "not base64", "eJwDAAAAAAE=")[number % 4])
        case "ours with a record of another key":
            return asks(ours(key), record(f"{key}x"))
        case "ours with a record of another namespace":
            return asks(ours(key), record(key, namespace="theirs"))
        case "ours with a record of a namespace that begins as ours":
            return asks(ours(key), record(key, namespace=f"{NAMESPACE}-2"))
        case "ours with the record in another variable":
            return asks(ours(key), record(key), variable="FARGATE_RUNNER_KEY")
        case "our tags":
            return {"tags": TAGS}
        case "our tags and our prefix":
            return asks(f"fr/{NAMESPACE}/") | {"tags": TAGS}
        case "a service's":
            return asks(f"ecs-svc/{number:019d}", record(key)) | {"group": "service:web"}
        case "in another cluster":
            return asks(ours(key), record(key)) | {"cluster": "others"}
        case _:
            raise ValueError(kind)


KINDS = (
    *("nobody's", "somebody's", "somebody's, with our record", "our prefix", "only our prefix"),
    *("another namespace that begins as ours", "a namespace that ours begins with", "ours without a record"),
    *("ours with a record that says nothing", "ours with a record of another key"),
    *("ours with a record of another namespace", "ours with the record in another variable", "our tags"),
    "ours with a record of a namespace that begins as ours",
    *("our tags and our prefix", "a service's", "in another cluster"),
)


def asks(started_by: str, packed: str | None = None, *, variable: str = _wire.RECORD) -> dict[str, Any]:
    request: dict[str, Any] = {"startedBy": started_by}
    if packed is not None:
        container = {"name": "main", "environment": [{"name": variable, "value": packed}]}
        request["overrides"] = {"containerOverrides": [container]}
    return request


async def run_foreign(aws: FakeAws, kinds: Iterable[str], *, each: int = 1) -> set[str]:
    """Run tasks of others, *each* of a kind, and return their ARNs."""
    definition = {
        "family": "theirs",
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "256",
        "memory": "512",
        "containerDefinitions": [{"name": "main", "image": IMAGE}],
    }
    plug = {"awsvpcConfiguration": {"subnets": list(NETWORK.subnets)}}
    arns: set[str] = set()
    async with aws.session().client("ecs") as ecs:
        await ecs.register_task_definition(**definition)
        for number, kind in enumerate(kinds):
            request = {"cluster": "jobs", "taskDefinition": "theirs", "networkConfiguration": plug, "count": each}
            reply = await ecs.run_task(**request | {"launchType": "FARGATE"} | foreign(kind, number))
            arns |= {task["taskArn"] for task in reply["tasks"]}
    return arns


def touched(aws: FakeAws) -> set[str]:
    """The tasks that anybody asked to stop."""
    return {call.request["task"] for call in aws.calls.of("ecs.StopTask")}


# ---- R24 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_none_of_these_is_touched(aws: FakeAws, kind: str) -> None:
    theirs = await run_foreign(aws, [kind] * 4)
    await anyio.sleep(9 * 86_400)

    assert await reaped(aws, max_age=HOUR) == []
    assert touched(aws) & theirs == set()


async def test_of_ten_thousand_tasks_of_others_none_is_touched_and_all_of_ours_are(aws: FakeAws) -> None:
    dice = random.Random(24)
    await left(aws, *[JOB] * 100)
    await left(aws, *[JOB] * 20, namespace="theirs")
    theirs = await run_foreign(aws, [dice.choice(KINDS) for _ in range(1000)], each=10)
    await anyio.sleep(9 * 86_400)
    aws.calls.clear()

    found = await reaped(aws)

    assert len(theirs) == 10_000
    assert {one.key for one in found} == {f"k{number}" for number in range(100)}
    assert touched(aws) == {one.address for one in found}
    assert touched(aws) & theirs == set()
    # Pages of a hundred of what lives in the cluster, and again what is ours: no call for each task.
    assert aws.calls.count("ecs.ListTasks") <= 105
    assert aws.calls.count("ecs.DescribeTasks") <= 105 + 5
    assert aws.calls.count("ecs.DescribeClusters") == 1


HOME = _wire.Home(account="123456789012", region="us-east-1", cluster="jobs")
ARN = "arn:aws:ecs:us-east-1:123456789012:task/jobs/0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("arn", "is_ours"),
    [
        (ARN, True),
        (ARN.replace("123456789012", "210987654321"), False),
        (ARN.replace("us-east-1", "us-east-2"), False),
        (ARN.replace("/jobs/", "/jobs-2/"), False),
        (ARN.replace("/jobs/", "/"), False),
        (ARN.replace(":task/", ":service/"), False),
        ("", False),
        (None, False),
    ],
)
def test_a_launch_is_ours_in_the_account_region_and_cluster_that_were_asked_only(arn: Any, is_ours: bool) -> None:
    task = asks(ours("k"), record("k")) | {"taskArn": arn}

    assert (_wire.launched(task, NAMESPACE, home=HOME) is not None) == is_ours


def in_virtual_time(main: Callable[[FakeAws], Any]) -> None:
    clock = VirtualClock()
    anyio.run(main, account(clock), backend_options={"loop_factory": clock.loop})


# Not shrunk: each try is a whole account, and the kinds have names.
@settings(max_examples=60, deadline=None, phases=(Phase.reuse, Phase.generate))
@given(
    kinds=st.lists(st.sampled_from(KINDS), max_size=12),
    timeouts=st.lists(st.none() | st.integers(1, 48), max_size=6),
    hours=st.integers(0, 60),
    skew=st.integers(-24, 24),
)
def test_what_is_stopped_is_exactly_what_is_ours_and_overdue(
    kinds: list[str], timeouts: list[int | None], hours: int, skew: int
) -> None:
    async def main(aws: FakeAws) -> None:
        theirs = await run_foreign(aws, kinds)
        await left(aws, *(JOB.with_(timeout=hours_or_none and hours_or_none * HOUR) for hours_or_none in timeouts))
        await anyio.sleep(hours * 3600 + 600)

        found = await reaped(aws, skew=skew * HOUR)

        due = {f"k{number}" for number, limit in enumerate(timeouts) if limit is not None and hours >= limit}
        assert {one.key for one in found} == due
        assert touched(aws) == {one.address for one in found}
        assert touched(aws) & theirs == set()

    in_virtual_time(main)


# ---- R15 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [timedelta(), 24 * HOUR, -24 * HOUR], ids=str)
async def test_a_wrong_clock_here_changes_no_decision(aws: FakeAws, skew: timedelta) -> None:
    await left(aws, JOB, TIMELESS, JOB.with_(timeout=24 * HOUR), JOB.with_(timeout=26 * HOUR))
    await anyio.sleep(25 * 3600)

    found = await reaped(aws, skew=skew)

    assert [one.key for one in found] == ["k0", "k2"]
    # The header tells whole seconds.
    assert [round(one.overdue.total_seconds() / 60) for one in found] == [24 * 60 - 6, 60 - 6]


async def test_what_is_stuck_before_it_runs_is_stopped(aws: FakeAws) -> None:
    aws.world.pace = Pace(provisioning=(math.inf, math.inf))
    await left(aws, JOB)
    await anyio.sleep(1000)

    (one,) = await reaped(aws)

    assert one.reason.startswith("it has not run for ")
    assert touched(aws) == {one.address}


# ---- what it needs ---------------------------------------------------------------------------------------------------


async def test_a_task_that_was_told_to_stop_is_not_told_again(aws: FakeAws) -> None:
    aws.world.script = lambda container: ContainerScript(run_for=math.inf, ignores_sigterm=True)
    await left(aws, JOB.with_(stop_timeout=timedelta(seconds=120)))
    await anyio.sleep(9000)

    assert len(await reaped(aws)) == 1
    assert await reaped(aws) == []


async def test_a_job_whose_environment_went_to_s3_tells_its_deadline_all_the_same(aws: FakeAws) -> None:
    async with aws.session().client("s3") as s3:
        await s3.create_bucket(Bucket="spill")
    long = JOB.with_(env={"LONG": "x" * 9000}, key="k0")
    async with Runner(backend(aws, spill_to="s3://spill"), namespace=NAMESPACE, on_exit="detach") as runner:
        await runner.submit(long)
    await anyio.sleep(9000)

    assert [one.key for one in await reaped(aws)] == ["k0"]


async def test_the_account_is_asked_for_elsewhere_where_the_cluster_may_not_be_described(aws: FakeAws) -> None:
    await left(aws, JOB)
    await anyio.sleep(9000)
    aws.faults.add(denied("ecs.DescribeClusters"))

    assert len(await reaped(aws)) == 1


async def test_without_an_account_nothing_is_proven_and_nothing_stopped(aws: FakeAws) -> None:
    await left(aws, JOB)
    await anyio.sleep(9000)
    aws.faults.add(denied("ecs.DescribeClusters"))
    aws.faults.add(denied("sts.GetCallerIdentity"))

    with pytest.raises(BackendError, match="does not tell the account"):
        await reaped(aws)
    assert touched(aws) == set()


async def test_a_place_is_a_cluster_of_a_region(aws: FakeAws) -> None:
    arn = f"arn:aws:ecs:{aws.region}:{aws.account}:cluster/jobs"

    async with backend(aws) as one, backend(aws, arn) as same, backend(aws, "others") as other:
        assert (one.place, same.place, other.place) == (
            "ecs/us-east-1/jobs",
            "ecs/us-east-1/jobs",
            "ecs/us-east-1/others",
        )
