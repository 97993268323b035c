"""How fast the door to AWS lets calls through: below the quotas, in order, and slower when AWS says so."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from fargate_runner.backends.ecs._api import Api, ApiError, Budget, Trouble
from fargate_runner.testing.aws import ContainerScript, FakeAws, Fault, Quotas, throttled
from fargate_runner.testing.clock import VirtualClock

RUN_TASK: dict[str, Any] = {
    "cluster": "jobs",
    "taskDefinition": "job",
    "launchType": "FARGATE",
    "networkConfiguration": {
        "awsvpcConfiguration": {"subnets": ["subnet-0aaaaaaaa00000001"], "assignPublicIp": "ENABLED"}
    },
    "clientToken": "token",
}
DEFINITION: dict[str, Any] = {
    "family": "job",
    "requiresCompatibilities": ["FARGATE"],
    "networkMode": "awsvpc",
    "cpu": "256",
    "memory": "512",
    "containerDefinitions": [{"name": "main", "image": "registry.example/job:1"}],
}

SHARE = 0.85
LAUNCHES = 0.97  # of launches a batch takes more: its length hangs on them

# Bucket: (burst, calls a second), as AWS publishes them.
READ = (100, 20)
MODIFY = (100, 40)
RUN = (20, 20)
REGISTER = (20, 1)
DEFINITIONS = (50, 20)


def most_allowed(bucket: tuple[float, float], window: float, share: float = SHARE) -> float:
    """How many calls a bucket of AWS's lets through in a window, of which we take a share."""
    burst, rate = bucket
    return share * (burst + rate * window)


def busiest(times: Iterable[float], window: float) -> int:
    """The most calls within any *window* seconds."""
    moments = sorted(times)
    most = first = 0
    for last, at in enumerate(moments):
        while moments[first] < at - window:
            first += 1
        most = max(most, last - first + 1)
    return most


def times(aws: FakeAws, *operations: str) -> list[float]:
    return [call.at for call in aws.calls if call.called in operations]


@pytest.fixture
def anyio_backend(clock: VirtualClock) -> object:
    return "asyncio", {"loop_factory": clock.loop}


@pytest.fixture
def make_aws(clock: VirtualClock) -> Callable[..., FakeAws]:
    def make(**options: Any) -> FakeAws:
        return FakeAws(clock=clock, script=ContainerScript(run_for=math.inf), clusters=("jobs",), **options)

    return make


@pytest.fixture
def aws(make_aws: Callable[..., FakeAws]) -> FakeAws:
    return make_aws()


@pytest.fixture
async def api(aws: FakeAws) -> AsyncGenerator[Api]:
    async with open_api(aws) as api:
        yield api


@asynccontextmanager
async def open_api(aws: FakeAws, **options: Any) -> AsyncGenerator[Api]:
    api = Api(session=aws.session(), region=aws.region, **options)
    async with api.running():
        yield api


async def describe(api: Api, number: int = 0) -> None:
    await api.call("ecs.DescribeTasks", cluster="jobs", tasks=[f"{number:032x}"])


async def run_task(api: Api, number: int) -> None:
    await api.call("ecs.RunTask", **RUN_TASK | {"clientToken": f"token-{number}"})


async def many(api: Api, count: int, ask: Callable[[Api, int], Any] = describe) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(ask, api, number)


class TestQuotas:
    @pytest.mark.parametrize("window", [0.5, 1.0, 5.0, 20.0])
    async def test_reads_stay_below_their_quota_in_any_window(self, aws: FakeAws, api: Api, window: float) -> None:
        await many(api, 600)

        assert busiest(times(aws, "ecs.DescribeTasks"), window) <= most_allowed(READ, window)
        assert not aws.calls.throttled

    @pytest.mark.parametrize("window", [0.5, 1.0, 5.0, 20.0])
    async def test_launches_stay_below_both_of_theirs(self, aws: FakeAws, api: Api, window: float) -> None:
        await api.call("ecs.RegisterTaskDefinition", **DEFINITION)

        await many(api, 400, run_task)

        assert busiest(times(aws, "ecs.RunTask"), window) <= min(
            most_allowed(RUN, window, LAUNCHES), most_allowed(MODIFY, window)
        )
        assert not aws.calls.throttled

    async def test_nearly_all_launches_that_aws_allows_are_used(self, aws: FakeAws, api: Api) -> None:
        await api.call("ecs.RegisterTaskDefinition", **DEFINITION)
        began = aws.clock.time()

        await many(api, 400, run_task)

        assert aws.clock.time() - began <= 1.04 * (400 - RUN[0]) / RUN[1]

    async def test_launches_and_stops_draw_on_one_bucket(self, aws: FakeAws, api: Api) -> None:
        await api.call("ecs.RegisterTaskDefinition", **DEFINITION)
        task = await api.call("ecs.RunTask", **RUN_TASK)
        arn = task["tasks"][0]["taskArn"]
        await anyio.sleep(60)
        aws.calls.clear()

        async with anyio.create_task_group() as tasks:
            for number in range(200):
                tasks.start_soon(run_task, api, number)
                tasks.start_soon(lambda: api.call("ecs.StopTask", cluster="jobs", task=arn))

        for window in (1.0, 10.0):
            assert busiest(times(aws, "ecs.RunTask", "ecs.StopTask"), window) <= most_allowed(MODIFY, window)
        assert not aws.calls.throttled

    async def test_listing_and_describing_draw_on_one_bucket(self, aws: FakeAws, api: Api) -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(200):
                tasks.start_soon(describe, api, number)
                tasks.start_soon(lambda: api.call("ecs.ListTasks", cluster="jobs"))

        assert busiest(times(aws, "ecs.DescribeTasks", "ecs.ListTasks"), 10.0) <= most_allowed(READ, 10.0)
        assert not aws.calls.throttled

    async def test_registering_is_slow(self, aws: FakeAws, api: Api, clock: VirtualClock) -> None:
        async def register(api: Api, number: int) -> None:
            await api.call("ecs.RegisterTaskDefinition", **DEFINITION | {"family": f"job-{number}"})

        await many(api, 60, register)

        assert busiest(times(aws, "ecs.RegisterTaskDefinition"), 30.0) <= most_allowed(REGISTER, 30.0)
        assert not aws.calls.throttled

    @pytest.mark.parametrize(
        ("region", "get", "filtered"),
        [
            ("us-east-1", 25, 25),
            ("us-west-2", 10, 10),
            ("eu-central-1", 10, 5),
            ("eu-west-3", 30, 10),
            ("sa-east-1", 25, 10),
        ],
    )
    async def test_logs_are_read_as_fast_as_the_region_lets_us(
        self, make_aws: Callable[..., FakeAws], region: str, get: float, filtered: float
    ) -> None:
        aws = make_aws(region=region, log_groups=("/jobs",))

        async def read(api: Api, number: int) -> None:
            await api.call("logs.GetLogEvents", logGroupName="/jobs", logStreamName="a")
            await api.call("logs.FilterLogEvents", logGroupName="/jobs", logStreamNames=["a"])

        async with open_api(aws) as api:
            await api.call("logs.CreateLogStream", logGroupName="/jobs", logStreamName="a")
            await many(api, 200, read)

        assert busiest(times(aws, "logs.GetLogEvents"), 1.0) <= get
        assert busiest(times(aws, "logs.FilterLogEvents"), 1.0) <= filtered
        assert busiest(times(aws, "logs.GetLogEvents"), 30.0) <= SHARE * get * 31
        assert busiest(times(aws, "logs.FilterLogEvents"), 30.0) <= SHARE * filtered * 31
        assert not aws.calls.throttled

    async def test_no_time_is_wasted_below_the_quota(self, aws: FakeAws, api: Api, clock: VirtualClock) -> None:
        began = clock.time()

        await many(api, 1000)

        ideal = (1000 - SHARE * READ[0]) / (SHARE * READ[1])
        assert clock.time() - began <= 1.02 * ideal

    async def test_a_smaller_share_is_slower(self, aws: FakeAws) -> None:
        async with open_api(aws, budget=Budget(share=0.25)) as api:
            await many(api, 200)

        assert busiest(times(aws, "ecs.DescribeTasks"), 5.0) <= most_allowed(READ, 5.0, 0.25)

    async def test_what_has_no_published_quota_is_paced_all_the_same(self, aws: FakeAws, api: Api) -> None:
        await many(api, 200, lambda api, number: api.call("sts.GetCallerIdentity"))

        assert busiest(times(aws, "sts.GetCallerIdentity"), 1.0) <= 40


class TestOrder:
    async def test_calls_go_out_as_they_came_in(self, aws: FakeAws, api: Api) -> None:
        await many(api, 300)

        sent = [int(call.request["tasks"][0], 16) for call in aws.calls.of("ecs.DescribeTasks")]
        assert sent == list(range(300))

    async def test_launches_do_not_wait_for_reads(self, aws: FakeAws, api: Api, clock: VirtualClock) -> None:
        await api.call("ecs.RegisterTaskDefinition", **DEFINITION)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(many, api, 500)
            await anyio.sleep(1)
            began = clock.time()
            await run_task(api, 1)
            took = clock.time() - began

        assert took < 0.1

    @pytest.mark.parametrize("ask", [describe, run_task])
    async def test_who_leaves_the_queue_takes_nothing_along(
        self, aws: FakeAws, api: Api, clock: VirtualClock, ask: Callable[[Api, int], Any]
    ) -> None:
        await api.call("ecs.RegisterTaskDefinition", **DEFINITION)
        (burst, rate), share = (READ, SHARE) if ask is describe else (RUN, LAUNCHES)
        await many(api, int(share * burst), ask)  # from here on each call waits
        aws.calls.clear()
        began = clock.time()

        async with anyio.create_task_group() as tasks:
            for number in range(1000, 1050):
                tasks.start_soon(leave_soon, api, ask, number)
                tasks.start_soon(ask, api, number + 1000)

        assert len(aws.calls) == 50
        assert clock.time() - began <= 51 / (share * rate) + 0.1

    async def test_who_leaves_the_second_of_two_queues_gives_back_the_turn_of_the_first(
        self, aws: FakeAws, api: Api, clock: VirtualClock
    ) -> None:
        await api.call("ecs.RegisterTaskDefinition", **DEFINITION)
        task = await api.call("ecs.RunTask", **RUN_TASK)
        stop = {"cluster": "jobs", "task": task["tasks"][0]["taskArn"]}
        async with anyio.create_task_group() as tasks:
            for _ in range(200):
                tasks.start_soon(lambda: api.call("ecs.StopTask", **stop))
            await anyio.sleep(1)
            for number in range(20):
                tasks.start_soon(leave_soon, api, run_task, number)
        await anyio.sleep(60)
        began = clock.time()

        await many(api, 15, run_task)

        assert clock.time() - began < 0.1

    async def test_a_call_cancelled_under_way_leaves_the_queue_in_order(self, aws: FakeAws, api: Api) -> None:
        aws.faults.add(Fault(match="ecs.DescribeTasks", delay=5.0))

        with anyio.move_on_after(1):
            await describe(api, 1)
        await many(api, 150)

        assert aws.calls.count("ecs.DescribeTasks", "ok") == 150

    async def test_a_stop_while_many_wait_ends_at_once(self, aws: FakeAws, api: Api, clock: VirtualClock) -> None:
        with anyio.move_on_after(2):
            await many(api, 1000)
        began = clock.time()
        await describe(api, 1)

        assert clock.time() - began <= 0.2


class TestReserve:
    async def test_a_turn_that_was_kept_is_there_at_once(self, aws: FakeAws, api: Api, clock: VirtualClock) -> None:
        await api.reserve("ecs.DescribeTasks")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(many, api, 500)
            await anyio.sleep(5)
            await api.reserve("ecs.DescribeTasks")
            began = clock.time()
            await describe(api, 1000)
            took = clock.time() - began
            tasks.cancel_scope.cancel()

        assert took < 0.01

    async def test_turns_that_were_kept_count_when_they_are_used(self, aws: FakeAws, api: Api) -> None:
        await api.call("ecs.RegisterTaskDefinition", **DEFINITION)
        for _ in range(10):
            await api.reserve("ecs.RunTask")
        await anyio.sleep(60)

        await many(api, 100, run_task)

        assert busiest(times(aws, "ecs.RunTask"), 1.0) <= most_allowed(RUN, 1.0, LAUNCHES)
        assert not aws.calls.throttled

    async def test_who_gives_up_a_turn_takes_nothing_along(self, aws: FakeAws, api: Api, clock: VirtualClock) -> None:
        await many(api, int(SHARE * READ[0]))
        for _ in range(20):
            with anyio.move_on_after(0.001):
                await api.reserve("ecs.DescribeTasks")
        began = clock.time()

        await many(api, 17)

        assert clock.time() - began <= 1.1


class TestThrottles:
    async def test_a_minute_of_nothing_but_throttles(
        self, make_aws: Callable[..., FakeAws], clock: VirtualClock
    ) -> None:
        aws = make_aws(quotas=Quotas.unlimited())
        aws.faults.add(throttled("ecs.DescribeTasks", times=math.inf))
        done: list[int] = []

        async def ask(api: Api, number: int) -> None:
            await describe(api, number)
            done.append(number)

        async with open_api(aws) as api, anyio.create_task_group() as tasks:
            for number in range(1000):
                tasks.start_soon(ask, api, number)
            await anyio.sleep(60)
            during = aws.calls.count("ecs.DescribeTasks")
            aws.faults.clear()

        assert during <= 1.1 * most_allowed(READ, 60)
        assert sorted(done) == list(range(1000))

    async def test_are_waited_out_for_as_long_as_the_caller_says(
        self, make_aws: Callable[..., FakeAws], clock: VirtualClock
    ) -> None:
        aws = make_aws(quotas=Quotas.unlimited())
        aws.faults.add(throttled("ecs.ListTasks", times=math.inf))

        async with open_api(aws) as api:
            with pytest.raises(ApiError, match="Rate exceeded") as raised:
                await api.call("ecs.ListTasks", 60.0, cluster="jobs")

        assert raised.value.trouble is Trouble.THROTTLED
        assert 60 <= clock.time() <= 75

    async def test_the_pace_shrinks_under_throttles(self, make_aws: Callable[..., FakeAws]) -> None:
        aws = make_aws(quotas=Quotas.unlimited())

        async with open_api(aws) as api:
            await many(api, 300)
            before = busiest(times(aws, "ecs.DescribeTasks"), 2.0)
            aws.calls.clear()
            aws.faults.add(throttled("ecs.DescribeTasks", times=math.inf))
            with anyio.move_on_after(20):
                await many(api, 100)
            late = [at for at in times(aws, "ecs.DescribeTasks") if at > 15]

        assert busiest(late, 2.0) < before / 3

    async def test_the_pace_grows_back(self, make_aws: Callable[..., FakeAws], clock: VirtualClock) -> None:
        aws = make_aws(quotas=Quotas.unlimited())

        async with open_api(aws) as api:
            aws.faults.add(throttled("ecs.DescribeTasks", times=math.inf))
            with anyio.move_on_after(30):
                await many(api, 100)
            aws.faults.clear()
            began = clock.time()
            await many(api, 2000)
            took = clock.time() - began

        assert took <= 2000 / (SHARE * READ[1]) * 1.4

    async def test_half_a_quota_is_found_and_used(self, make_aws: Callable[..., FakeAws], clock: VirtualClock) -> None:
        aws = make_aws(quotas=Quotas.published().scaled(0.4))

        async with open_api(aws) as api:
            await many(api, 2000)

        throttles = aws.calls.throttled["ecs.DescribeTasks"]
        ideal = 2000 / (0.4 * READ[1])
        assert clock.time() <= 1.5 * ideal
        assert throttles <= 0.25 * 2000

    async def test_a_throttle_of_one_bucket_leaves_the_others_alone(
        self, make_aws: Callable[..., FakeAws], clock: VirtualClock
    ) -> None:
        aws = make_aws(quotas=Quotas.unlimited())
        aws.faults.add(throttled("ecs.DescribeTasks", times=math.inf))

        async with open_api(aws) as api, anyio.create_task_group() as tasks:
            await api.call("ecs.RegisterTaskDefinition", **DEFINITION)
            tasks.start_soon(many, api, 200)
            await anyio.sleep(10)
            began = clock.time()
            await many(api, 100, run_task)
            took = clock.time() - began
            tasks.cancel_scope.cancel()

        assert took <= (100 / (LAUNCHES * RUN[1])) + 0.1

    async def test_statistics_count_what_was_sent(self, make_aws: Callable[..., FakeAws]) -> None:
        aws = make_aws(quotas=Quotas.unlimited())
        aws.faults.add(throttled("ecs.DescribeTasks", times=3))

        async with open_api(aws) as api:
            await many(api, 10)

        assert api.stats.calls["ecs.DescribeTasks"] == aws.calls.count("ecs.DescribeTasks") == 13
        assert api.stats.throttles["ecs.DescribeTasks"] == 3
        assert sum(api.stats.buckets.values()) == 13


async def leave_soon(api: Api, ask: Callable[[Api, int], Any], number: int) -> None:
    with anyio.move_on_after(0.001):
        await ask(api, number)
