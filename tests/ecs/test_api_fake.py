"""The door to AWS and the whole fake AWS behind it, in virtual time: lost answers, doubled effects, expired keys."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import anyio
import pytest

from fargate_runner.backends.ecs._api import Api, ApiError, Trouble, _Clock
from fargate_runner.testing.aws import ContainerScript, FakeAws, Fault, Quotas, denied, ec2_throttled, throttled
from fargate_runner.testing.clock import VirtualClock
from tests.ecs.doors import Session

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


class RotatingSession:
    """Makes clients with whatever key is the current one, as a session does whose credentials were renewed."""

    def __init__(self, aws: FakeAws, key: str) -> None:
        self.aws = aws
        self.key = key
        self.made: list[Any] = []
        self.region_name = aws.region

    def client(self, service: str, **options: Any) -> AbstractAsyncContextManager[Any]:
        session = self.aws.session(self.key)
        self.made.append(session)
        return session.client(service, **options)  # type: ignore[no-any-return]

    @property
    def open_clients(self) -> int:
        return sum(session.open_clients for session in self.made)


@pytest.fixture
def aws(clock: VirtualClock) -> FakeAws:
    script = ContainerScript(run_for=math.inf)
    return FakeAws(clock=clock, script=script, clusters=("jobs",), quotas=Quotas.unlimited())


@pytest.fixture
async def api(aws: FakeAws) -> AsyncGenerator[Api]:
    api = Api(session=aws.session(), region=aws.region)
    async with api.running():
        await api.call("ecs.RegisterTaskDefinition", **DEFINITION)
        aws.calls.clear()
        yield api


class TestLaunches:
    @pytest.mark.parametrize(
        "faults",
        [
            [throttled("ecs.RunTask")],
            [ec2_throttled()],
            [Fault(match="ecs.RunTask", code="ServerException", status=500)],
            [Fault(match="ecs.RunTask", code="ServerException", status=500, when="after")],
            [Fault(match="ecs.RunTask", code="ServiceUnavailable", status=503)],
            [Fault(match="ecs.RunTask", cut=True)],
            [Fault(match="ecs.RunTask", cut=True, when="after")],
            [Fault(match="ecs.RunTask", cut="reset")],
            [Fault(match="ecs.RunTask", cut="half")],
            [Fault(match="ecs.RunTask", delay=40.0)],
            [Fault(match="ecs.RunTask", delay=40.0, when="after")],
            [Fault(match="ecs.RunTask", cut=True, when="after"), throttled("ecs.RunTask")],
        ],
        ids=lambda faults: "+".join(f"{fault.code or fault.cut or 'slow'}-{fault.when}" for fault in faults),
    )
    async def test_one_launch_is_one_task_whatever_is_lost(self, aws: FakeAws, api: Api, faults: list[Fault]) -> None:
        aws.faults.add(*faults)

        reply = await api.call("ecs.RunTask", **RUN_TASK)

        assert len(reply["tasks"]) == 1
        assert len(aws.world.tasks) == 1
        assert [dict(call.request) for call in aws.calls.of("ecs.RunTask")] == [RUN_TASK] * (len(faults) + 1)

    async def test_a_conflict_names_what_is_there(self, aws: FakeAws, api: Api) -> None:
        first = await api.call("ecs.RunTask", **RUN_TASK)

        with pytest.raises(ApiError) as caught:
            await api.call("ecs.RunTask", **RUN_TASK | {"startedBy": "other"})

        assert caught.value.trouble is Trouble.CONFLICT
        assert caught.value.resource_ids == (first["tasks"][0]["taskArn"],)

    async def test_a_refusal_after_a_lost_answer_leaves_a_doubt(self, aws: FakeAws, api: Api) -> None:
        aws.faults.add(Fault(match="ecs.RunTask", cut=True, when="after"), denied("ecs.RunTask", resource="arn:x"))

        with pytest.raises(ApiError, match="allow ecs:RunTask on arn:x") as caught:
            await api.call("ecs.RunTask", **RUN_TASK)

        assert caught.value.in_doubt

    async def test_a_day_of_throttles_is_waited_out(self, aws: FakeAws, api: Api) -> None:
        aws.faults.add(throttled("ecs.RunTask", times=math.inf))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: api.call("ecs.RunTask", **RUN_TASK))
            await anyio.sleep(24 * 3600)
            aws.faults.clear()

        assert aws.calls.count("ecs.RunTask", "ok") == 1
        assert len(aws.world.tasks) == 1

    async def test_patience_begins_anew_after_a_storm_of_throttles(self, aws: FakeAws, api: Api) -> None:
        aws.faults.add(throttled("ecs.RunTask", times=math.inf))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: api.call("ecs.RunTask", **RUN_TASK))
            await anyio.sleep(600)
            aws.faults.clear()
            aws.faults.add(Fault(match="ecs.RunTask", times=2, code="ServerException", status=500))

        assert aws.calls.count("ecs.RunTask", "ok") == 1


class TestKeys:
    async def test_expired_ones_are_renewed_once_for_all(self, aws: FakeAws) -> None:
        session = RotatingSession(aws, "AKIAOLD")
        api = Api(session=session, region=aws.region)

        async with api.running():
            await api.call("ecs.ListClusters")
            aws.credentials.expire("AKIAOLD")
            session.key = "AKIANEW"
            async with anyio.create_task_group() as tasks:
                for _ in range(40):
                    tasks.start_soon(api.call, "ecs.ListClusters")

            assert session.open_clients == 1
            assert len(session.made) == 2
        assert session.open_clients == 0

    async def test_a_quarter_of_an_hour_is_given_for_fresh_ones(self, aws: FakeAws) -> None:
        session = RotatingSession(aws, "AKIAOLD")
        aws.credentials.expire("AKIAOLD")
        api = Api(session=session, region=aws.region)

        async with api.running(), anyio.create_task_group() as tasks:
            tasks.start_soon(api.call, "ecs.ListClusters")
            await anyio.sleep(840)
            session.key = "AKIANEW"

        assert aws.calls.count("ecs.ListClusters", "ok") == 1
        assert session.open_clients == 0

    async def test_a_call_under_way_keeps_its_client_when_others_renew(self, aws: FakeAws) -> None:
        session = RotatingSession(aws, "AKIAOLD")
        api = Api(session=session, region=aws.region)
        aws.faults.add(Fault(match="ecs.ListTasks", delay=20.0, when="after"))

        async with api.running(), anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: api.call("ecs.ListTasks", cluster="jobs"))
            await anyio.sleep(1)
            aws.credentials.expire("AKIAOLD")
            session.key = "AKIANEW"
            await api.call("ecs.ListClusters")

        assert aws.calls.count("ecs.ListTasks") == 1
        assert session.open_clients == 0


class TestTimeOfAws:
    """What time it is there, as replies tell it."""

    async def test_no_reply_no_time(self, aws: FakeAws) -> None:
        api = Api(session=aws.session(), region=aws.region)

        async with api.running():
            assert api.now() is None

    async def test_a_reply_tells_the_time_and_it_goes_on(self, aws: FakeAws, clock: VirtualClock) -> None:
        api = Api(session=aws.session(), region=aws.region)

        async with api.running():
            await api.call("ecs.ListTasks", cluster="jobs")
            await anyio.sleep(7200)

            assert api.now() == clock.utcnow()

    async def test_a_clock_that_is_set_is_followed_within_a_minute(self, clock: VirtualClock) -> None:
        theirs = SettableClock(clock)
        aws = FakeAws(clock=theirs, clusters=("jobs",), quotas=Quotas.unlimited())
        api = Api(session=aws.session(), region=aws.region)

        async with api.running():
            await api.call("ecs.ListTasks", cluster="jobs")
            theirs.ahead = timedelta(hours=24)
            await anyio.sleep(59)
            await api.call("ecs.ListTasks", cluster="jobs")
            before = api.now()
            await anyio.sleep(1)
            await api.call("ecs.ListTasks", cluster="jobs")

            assert before == clock.utcnow() - timedelta(seconds=1)
            assert api.now() == clock.utcnow() + timedelta(hours=24)

    async def test_a_reply_that_lay_about_tells_no_time(self, clock: VirtualClock) -> None:
        """We stood still over it: by its time, a launch of long ago would be young enough to be sent again."""

        def at_once(**_: object) -> dict[str, Any]:
            return headed(format_datetime(clock.utcnow(), usegmt=True))

        def lies_about(**_: object) -> dict[str, Any]:
            reply = at_once()
            clock.advance(3 * 3600)
            return reply

        api = Api(session=Session(at_once, lies_about))

        async with api.running():
            await api.call("ecs.ListClusters")
            await anyio.sleep(60)
            await api.call("ecs.ListClusters")

            assert api.now() == clock.utcnow()

    async def test_an_error_of_a_header_leaves_what_is_known(self, aws: FakeAws, clock: VirtualClock) -> None:
        ours = _Clock()
        ours.learn(headed("Thu, 01 Jan 2026 00:00:00 GMT"), 0.0)
        for said in ("", "yesterday", "Thu, 99 Jan 2026 99:00:00 GMT", None, 7):
            ours.learn(headed(said), 5.0)
        ours.learn({}, 5.0)
        ours.learn({"ResponseMetadata": {"HTTPHeaders": None}}, 5.0)

        assert ours.at(10.0) == datetime(2026, 1, 1, 0, 0, 10, tzinfo=UTC)


class SettableClock:
    """A clock that runs as another and tells another time."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.ahead = timedelta()

    def time(self) -> float:
        return self.clock.time()

    def utcnow(self) -> datetime:
        return self.clock.utcnow() + self.ahead


def headed(date: object) -> dict[str, Any]:
    return {"ResponseMetadata": {"HTTPHeaders": {"date": date}}}
