"""Reading replies as plain JSON: the same answers as botocore reads, from a server that gives canned ones."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aioboto3
import botocore.loaders
import botocore.session
import pytest
from aiobotocore.parsers import AioResponseParserFactory
from aiohttp import web
from botocore.parsers import JSONParser, ResponseParserError, ResponseParserFactory

from fargate_runner.backends.ecs import _api, _lean, _wire
from fargate_runner.backends.ecs._api import Api, ApiError, Trouble
from fargate_runner.testing.aws import FakeAws

pytestmark = pytest.mark.sweep

NOW = datetime(2026, 5, 6, 12, tzinfo=UTC)
MOMENT = 1778065333.877
CORPUS = [json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "corpus").glob("*.json"))]
SHAPES = [shape for shape in CORPUS if shape["source"] != "event" and not shape.get("broken")]
DEFINITION = {
    "taskDefinitionArn": "arn:aws:ecs:us-east-1:111122223333:task-definition/fr-a:1",
    "family": "fr-a",
    "revision": 1,
    "status": "ACTIVE",
    "containerDefinitions": [{"name": "main", "image": "job:1", "environment": [{"name": "A", "value": "ä€😀"}]}],
    "registeredAt": MOMENT,
}
EVENTS = [
    {"eventId": str(n), "logStreamName": "fr/main/0", "timestamp": 1778065333877 + n, "message": f"{n} \u2028 ä"}
    for n in range(100)
]
REPLIES: dict[str, dict[str, Any]] = {
    "ecs.DescribeTasks": {
        "tasks": [shape["task"] for shape in SHAPES],
        "failures": [{"arn": "arn:aws:ecs:us-east-1:111122223333:task/jobs/1", "reason": "MISSING"}],
    },
    "ecs.RunTask": {"tasks": [SHAPES[0]["task"]], "failures": []},
    "ecs.StopTask": {"task": SHAPES[1]["task"]},
    "ecs.ListTasks": {"taskArns": ["arn:aws:ecs:us-east-1:111122223333:task/jobs/1"], "nextToken": "t"},
    "ecs.DescribeTaskDefinition": {"taskDefinition": DEFINITION, "tags": [{"key": "a", "value": "b"}]},
    "ecs.RegisterTaskDefinition": {"taskDefinition": DEFINITION, "tags": []},
    "ecs.DescribeClusters": {"clusters": [{"clusterName": "jobs", "status": "ACTIVE"}], "failures": []},
    "logs.GetLogEvents": {
        "events": [{key: event[key] for key in ("timestamp", "message")} for event in EVENTS],
        "nextForwardToken": "f/1/s",
        "nextBackwardToken": "b/1/s",
    },
    "logs.FilterLogEvents": {"events": EVENTS, "searchedLogStreams": []},
    "logs.DescribeLogGroups": {"logGroups": [{"logGroupName": "/fr", "creationTime": 1778065333877}]},
    "ssm.PutParameter": {"Version": 1, "Tier": "Standard"},
}
REQUESTS: dict[str, dict[str, Any]] = {
    "ecs.DescribeTasks": {"tasks": ["1"]},
    "ecs.RunTask": {"taskDefinition": "fr-a:1", "clientToken": "t"},
    "ecs.StopTask": {"task": "1"},
    "ecs.DescribeTaskDefinition": {"taskDefinition": "fr-a"},
    "ecs.RegisterTaskDefinition": {"family": "fr-a", "containerDefinitions": [{"name": "main"}]},
    "logs.GetLogEvents": {"logGroupName": "/fr", "logStreamName": "a"},
    "logs.FilterLogEvents": {"logGroupName": "/fr"},
    "ssm.PutParameter": {"Name": "/a", "Value": "b", "Type": "String"},
}
SERVICES = {"AmazonEC2ContainerServiceV20141113": "ecs", "Logs_20140328": "logs", "AmazonSSM": "ssm"}
HEADERS = {"Content-Type": "application/x-amz-json-1.1", "x-amzn-RequestId": "4f2a"}


@pytest.fixture
def anyio_backend() -> object:
    return "asyncio"  # real sockets take real time


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAFAKE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fake")


@asynccontextmanager
async def server(answer: Callable[[str], tuple[int, bytes]]) -> AsyncGenerator[str]:
    async def handle(request: web.Request) -> web.Response:
        version, _, operation = request.headers["X-Amz-Target"].partition(".")
        await request.read()
        status, body = answer(f"{SERVICES[version]}.{operation}")
        return web.Response(body=body, status=status, headers=HEADERS)

    app = web.Application()
    app.router.add_post("/", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture(params=["msgspec", "json"], autouse=True)
def reads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What reads JSON: msgspec is an extra."""
    if request.param == "json":
        monkeypatch.setitem(sys.modules, "msgspec", None)
    return request.param


@asynccontextmanager
async def both(url: str) -> AsyncGenerator[tuple[Api, Api]]:
    """Open a door that reads plain JSON, and one that has botocore read it."""
    fast, stock = (Api(region="us-east-1", endpoint_url=url, fast=fast) for fast in (True, False))
    async with fast.running(), stock.running():
        yield fast, stock


def plain(value: Any) -> Any:
    """Return a reply with its moments as seconds, and without what changes from one to the next."""
    match value:
        case dict():
            skipped = {"date", "RetryAttempts", "MaxAttemptsReached"}
            return {key: plain(part) for key, part in value.items() if key not in skipped and part is not None}
        case list():
            return [plain(part) for part in value]
        case datetime():
            return pytest.approx(value.timestamp(), abs=1e-6)
        case _:
            return value


ODD = {
    "half a surrogate pair": rb'{"events": [{"message": "\ud83d", "timestamp": 1}]}',
    "a number above 64 bits": b'{"events": [{"message": "a", "timestamp": 18446744073709551615}]}',
    "a moment to the microsecond": b'{"events": [{"message": "a", "timestamp": 1778065333.877123}]}',
    "a name twice": b'{"events": [{"message": "a", "message": "b", "timestamp": 1}]}',
    "not a number": b'{"events": [{"message": "a", "timestamp": NaN}]}',
    "zeros and controls": rb'{"events": [{"message": "\u0000\u001b[31m", "timestamp": 0}]}',
}


@pytest.mark.parametrize("body", ODD.values(), ids=ODD.keys())
def test_what_reads_json_is_of_no_account(reads: str, body: bytes) -> None:
    loads, _ = _lean.json_loads()

    assert (loads is json.loads) == (reads == "json")
    assert repr(loads(body)) == repr(json.loads(body))


ODD_PAGES = {
    "as ever": b'{"tasks": [{"taskArn": "a", "version": 1, "cpu": "256"}, {"version": 2}], "failures": []}',
    "no failures": b'{"tasks": [{"taskArn": "a"}]}',
    "null failures": b'{"tasks": [{"taskArn": null}], "failures": null}',
    "more": b'{"tasks": [{"taskArn": "a", "containers": [{"name": "b"}]}], "failures": [{"arn": "c"}]}',
    "a name twice": b'{"tasks": [{"version": 1, "version": 2}], "tasks": [{"version": 3, "version": 4}]}',
    "half a surrogate pair": rb'{"tasks": [{"taskArn": "a", "cpu": "\ud83d"}], "failures": []}',
    "not a number": b'{"tasks": [{"version": NaN, "cpu": NaN}], "failures": []}',
}


@pytest.mark.parametrize("body", ODD_PAGES.values(), ids=ODD_PAGES.keys())
def test_a_page_that_is_read_at_a_glance_says_what_all_of_it_says(reads: str, body: bytes) -> None:
    _, sketched = _lean.json_loads()
    page, whole = sketched(body), json.loads(body)

    assert (page is None) == (reads == "json" or b"NaN" in body or rb"\ud83d" in body)
    if page is not None:
        assert page.keys() == whole.keys()
        assert page.get("failures") == whole.get("failures")
        for sketch, task in zip(page["tasks"], whole["tasks"], strict=True):
            assert {name: sketch.get(name, "none") for name in _wire.TOLD_AT_A_GLANCE} == {
                name: task.get(name, "none") for name in _wire.TOLD_AT_A_GLANCE
            }
            assert (sketch.get("cpu", "none"), len(sketch)) == (task.get("cpu", "none"), len(task))
            assert repr(dict(sketch)) == repr(task)


@pytest.mark.parametrize(
    "body",
    [
        b'{"tasks": [{"a": "\xff"}]}',
        b'{"tasks": null}',
        b'{"failures": []}',
        b'{"tasks": [null]}',
        b"[]",
        b'{"tasks": 1',
    ],
)
def test_a_page_that_is_none_is_left_to_who_reads_all_of_it(body: bytes) -> None:
    assert _lean.json_loads()[1](body) is None


class TestBothWays:
    @pytest.mark.parametrize("operation", REPLIES)
    async def test_read_the_same_answer_alike(self, operation: str) -> None:
        body = json.dumps(REPLIES[operation]).encode()

        async with server(lambda _: (200, body)) as url, both(url) as (fast, stock):
            ours = await fast.call(operation, **REQUESTS.get(operation, {}))
            theirs = await stock.call(operation, **REQUESTS.get(operation, {}))

        assert (fast.parser, stock.parser) == ("fast", "stock")
        assert plain(ours) == plain(theirs)
        assert ours["ResponseMetadata"]["RequestId"] == "4f2a"
        assert ours["ResponseMetadata"]["HTTPStatusCode"] == 200

    async def test_lead_to_the_same_snapshots(self) -> None:
        body = json.dumps(REPLIES["ecs.DescribeTasks"]).encode()

        async with server(lambda _: (200, body)) as url, both(url) as (fast, stock):
            ours = (await fast.call("ecs.DescribeTasks", tasks=["1"]))["tasks"]
            theirs = (await stock.call("ecs.DescribeTasks", tasks=["1"]))["tasks"]

        assert len(ours) == len(SHAPES) > 80
        for shape, one, other in zip(SHAPES, ours, theirs, strict=True):
            seen = [_wire.snapshot(t, shape["container"], source="describe", seen_at=NOW) for t in (one, other)]
            assert seen[0] == seen[1]

    @pytest.mark.parametrize(
        ("status", "body"),
        [
            (400, {"__type": "ClusterNotFoundException", "message": "Cluster not found."}),
            (400, {"__type": "com.amazonaws.ecs#AccessDeniedException", "Message": "No."}),
            (400, {"__type": "ConflictException", "message": "…", "resourceIds": ["arn:1", "arn:2"]}),
            (403, {"__type": "SomethingNewException"}),
            (400, {}),
        ],
        ids=lambda part: str(part.get("__type") if isinstance(part, dict) else part),
    )
    async def test_tell_the_same_errors(self, status: int, body: dict[str, Any]) -> None:
        async with server(lambda _: (status, json.dumps(body).encode())) as url, both(url) as doors:
            errors = []
            for door in doors:
                with pytest.raises(ApiError) as raised:
                    await door.call("ecs.RunTask", **REQUESTS["ecs.RunTask"])
                errors.append(raised.value)

        ours, theirs = errors
        assert str(ours) == str(theirs)
        assert (ours.code, ours.status, ours.trouble, ours.request_id) == (
            *(theirs.code, theirs.status, theirs.trouble, theirs.request_id),
        )
        assert ours.resource_ids == theirs.resource_ids == tuple(body.get("resourceIds", ()))

    async def test_a_reply_that_goes_on_is_for_a_session_that_was_handed_in(self) -> None:
        aws = FakeAws(log_groups=("/fr",))
        arn = f"arn:aws:logs:us-east-1:{aws.account}:log-group:/fr"
        first = []

        async with aws.serve(moto=False) as url, both(url) as (fast, stock):
            with pytest.raises(NotImplementedError, match=r"hand in aioboto3.Session\(\)"):
                await fast.call("logs.StartLiveTail", logGroupIdentifiers=[arn])
            reply = await stock.call("logs.StartLiveTail", logGroupIdentifiers=[arn])
            async for event in reply["responseStream"]:
                first.append(event)
                break
            reply["responseStream"].close()

        assert [set(event) for event in first] == [{"sessionStart"}]
        assert all(event["sessionStart"]["logGroupIdentifiers"] == [arn] for event in first)


BROKEN = {
    "cut off": b'{"tasks": [{"taskArn": "arn',
    "a page": b"<html><body>Please log in</body></html>",
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "not text": b'{"tasks": "\xff"}',
}


class Shape:
    """A shape of botocore's, by its name alone."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.event_stream_name = None
        self.metadata: dict[str, Any] = {}
        self.serialization: dict[str, Any] = {}


class TestBrokenAnswers:
    @pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
    @pytest.mark.parametrize("factory", [ResponseParserFactory, AioResponseParserFactory])
    async def test_are_no_answers(self, body: bytes, factory: Any) -> None:
        parser = _lean.fast_parsers(factory).create_parser("json")
        response = {"status_code": 200, "headers": {}, "body": body, "context": {"operation_name": "DescribeTasks"}}

        async def parse() -> None:
            read = parser.parse(response, Shape("DescribeTasksResponse"))
            if inspect.isawaitable(read):
                await read

        with pytest.raises(ResponseParserError):
            await parse()

    @pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
    @pytest.mark.parametrize("fast", [True, False])
    async def test_are_asked_for_again(self, body: bytes, fast: bool) -> None:
        bodies: Iterator[bytes] = iter([body, b'{"tasks": [], "failures": []}'])

        async with server(lambda _: (200, next(bodies))) as url:
            api = Api(region="us-east-1", endpoint_url=url, fast=fast)
            async with api.running():
                reply = await api.call("ecs.DescribeTasks", tasks=["1"])

        assert reply["tasks"] == []
        assert api.stats.troubles == {Trouble.TRANSIENT.value: 1}


def members(shape: Any, seen: set[str]) -> Iterator[tuple[str, Any]]:
    """Walk through a shape of botocore's model: each member with the shape that it has."""
    if shape.name in seen:
        return
    seen.add(shape.name)
    match shape.type_name:
        case "structure":
            for name, member in shape.members.items():
                yield name, member
                yield from members(member, seen)
        case "list":
            yield "", shape.member
            yield from members(shape.member, seen)
        case "map":
            yield "", shape.value
            yield from members(shape.value, seen)
        case _:
            pass


MODELS: dict[str, Any] = {name: botocore.session.get_session().get_service_model(name) for name in ("ecs", "logs")}
PLAIN = [
    (service, operation)
    for service, model in MODELS.items()
    for operation in model.operation_names
    if f"{operation}Response" in _lean.PLAIN_REPLIES
]


class TestWhatIsReadAsPlainJson:
    def test_is_all_in_the_model(self) -> None:
        assert {f"{operation}Response" for _, operation in PLAIN} == _lean.PLAIN_REPLIES
        assert len(PLAIN) == len(_lean.PLAIN_REPLIES)

    @pytest.mark.parametrize(("service", "operation"), PLAIN)
    def test_needs_no_model_but_for_its_moments(self, service: str, operation: str) -> None:
        model = MODELS[service]
        shape = model.operation_model(operation).output_shape

        walked = list(members(shape, set()))

        assert shape.name == f"{operation}Response"
        assert shape.event_stream_name is None
        assert model.metadata["protocol"] == "json"
        assert {member.type_name for _, member in walked} <= {
            *("structure", "list", "map", "string", "integer", "long", "double", "float", "boolean", "timestamp"),
        }
        assert not [name for name, member in walked if member.serialization.get("name", name) not in {name, ""}]
        assert not [name for name, member in walked if member.serialization.get("jsonvalue")]


class TestAnotherBotocore:
    async def test_whose_parsers_are_other_ones_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(JSONParser, "_handle_json_body")

        made = _api._make_session(fast=True)

        assert (made.parser, made.lean) == ("stock", None)

    async def test_whose_loaders_are_other_ones_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def other(path: str | None, /, *, something: object) -> object:
            raise AssertionError

        body = json.dumps(REPLIES["ecs.RunTask"]).encode()
        create = botocore.loaders.create_loader
        monkeypatch.setattr(botocore.loaders, "create_loader", other)

        made = _api._make_session(fast=True)
        monkeypatch.setattr(botocore.loaders, "create_loader", create)

        assert made.parser == "stock"
        async with server(lambda _: (200, body)) as url:
            api = Api(session=made.session, region="us-east-1", endpoint_url=url)
            async with api.running():
                reply = await api.call("ecs.RunTask", **REQUESTS["ecs.RunTask"])
        assert isinstance(reply["tasks"][0]["createdAt"], datetime)

    async def test_a_session_handed_in_is_left_alone(self) -> None:
        body = json.dumps(REPLIES["ecs.RunTask"]).encode()

        async with server(lambda _: (200, body)) as url:
            api = Api(session=aioboto3.Session(region_name="us-east-1"), endpoint_url=url)
            async with api.running():
                reply = await api.call("ecs.RunTask", **REQUESTS["ecs.RunTask"])

        assert api.parser == "stock"
        assert isinstance(reply["tasks"][0]["createdAt"], datetime)
