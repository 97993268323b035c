"""EventBridge of the fake AWS: patterns, rules, and how events reach a queue. In virtual time."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import Any

import anyio
import pytest

from fargate_runner.testing.aws._events import Delivery, EventsService, SqsService, event_pattern
from fargate_runner.testing.aws._service import AwsError
from fargate_runner.testing.clock import VirtualClock
from tests.aws.asking import ask, refusal

QUEUE = "arn:aws:sqs:us-east-1:111122223333:events"
URL = "https://sqs.us-east-1.amazonaws.com/111122223333/events"
PATTERN = '{"source": ["aws.ecs"]}'


@pytest.fixture
def anyio_backend(clock: VirtualClock) -> object:
    return ("asyncio", {"loop_factory": clock.loop})


@pytest.fixture
def sqs(clock: VirtualClock) -> SqsService:
    return SqsService(clock)


@pytest.fixture
def events(clock: VirtualClock, sqs: SqsService) -> EventsService:
    return made(clock, sqs)


def made(clock: VirtualClock, sqs: SqsService, seed: int = 0, **delivery: Any) -> EventsService:
    how: dict[str, Any] = {"least": 0, "most": 0, **delivery}
    return EventsService(clock, sqs=sqs, seed=seed, delivery=Delivery(**how))


async def connect(events: EventsService, sqs: SqsService, pattern: str = PATTERN, **target: Any) -> None:
    """Make a queue, a rule, and the one a target of the other."""
    await ask(sqs, "CreateQueue", QueueName="events")
    await ask(events, "PutRule", Name="tasks", EventPattern=pattern)
    await ask(events, "PutTargets", Rule="tasks", Targets=[{"Id": "1", "Arn": QUEUE, **target}])


async def received(sqs: SqsService) -> list[Any]:
    """Receive and delete what is there now."""
    bodies: list[Any] = []
    while True:
        reply = await ask(sqs, "ReceiveMessage", QueueUrl=URL, MaxNumberOfMessages=10)
        for message in reply.get("Messages", ()):
            bodies.append(json.loads(message["Body"]))
            await ask(sqs, "DeleteMessage", QueueUrl=URL, ReceiptHandle=message["ReceiptHandle"])
        if not reply:
            return bodies


def task(version: int = 1, **detail: Any) -> dict[str, Any]:
    """Return an event of a task."""
    return {
        "detail-type": "ECS Task State Change",
        "source": "aws.ecs",
        "resources": ["arn:task/1"],
        "detail": {"clusterArn": "arn:cluster/jobs", "lastStatus": "RUNNING", "version": version, **detail},
    }


# Patterns.

EVENT = {
    "source": "aws.ecs",
    "detail-type": "ECS Task State Change",
    "resources": ["arn:a", "arn:b"],
    "detail": {
        "clusterArn": "arn:aws:ecs:us-east-1:1:cluster/jobs",
        "startedBy": "fr/ns/abc",
        "lastStatus": "STOPPED",
        "version": 6,
        "stoppedReason": None,
        "enableExecuteCommand": False,
        "containers": [{"name": "main", "exitCode": 137}, {"name": "log", "exitCode": 0}],
        "overrides": {},
    },
}


def detail(**tests: Any) -> dict[str, Any]:
    return {"detail": tests}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ({"source": ["aws.ecs"]}, True),
        ({"source": ["aws.ec2", "aws.ecs"]}, True),
        ({"source": ["aws.ec2"]}, False),
        ({"source": ["aws.ecs"], "detail-type": ["other"]}, False),
        ({"nothing": ["x"]}, False),
        ({"resources": ["arn:b"]}, True),
        ({"resources": [{"prefix": "arn:c"}]}, False),
        (detail(lastStatus=["RUNNING", "STOPPED"], clusterArn=[{"suffix": "/jobs"}]), True),
        (detail(startedBy=[{"prefix": "fr/"}]), True),
        (detail(startedBy=[{"prefix": "FR/"}]), False),
        (detail(startedBy=[{"prefix": {"equals-ignore-case": "FR/"}}]), True),
        (detail(startedBy=[{"suffix": {"equals-ignore-case": "ABC"}}]), True),
        (detail(lastStatus=[{"equals-ignore-case": "stopped"}]), True),
        (detail(lastStatus=[{"anything-but": "STOPPED"}]), False),
        (detail(lastStatus=[{"anything-but": ["RUNNING", "PENDING"]}]), True),
        (detail(lastStatus=[{"anything-but": {"prefix": "STOP"}}]), False),
        (detail(lastStatus=[{"anything-but": {"suffix": ["x", "y"]}}]), True),
        (detail(lastStatus=[{"anything-but": {"wildcard": "*PP*"}}]), False),
        (detail(missing=[{"anything-but": "x"}]), False),
        (detail(startedBy=[{"wildcard": "fr/*/ab*"}]), True),
        (detail(startedBy=[{"wildcard": "fr/*/b*"}]), False),
        (detail(stopCode=[{"exists": False}]), True),
        (detail(stopCode=[{"exists": True}]), False),
        (detail(lastStatus=[{"exists": True}]), True),
        (detail(version=[6]), True),
        (detail(version=["6"]), False),
        (detail(version=[{"numeric": [">", 5, "<=", 6]}]), True),
        (detail(version=[{"numeric": ["<", 6]}]), False),
        (detail(version=[{"numeric": ["=", 6]}]), True),
        (detail(lastStatus=[{"numeric": [">", 0]}]), False),
        (detail(stoppedReason=[None]), True),
        (detail(enableExecuteCommand=[False]), True),
        (detail(enableExecuteCommand=[0]), False),
        (detail(containers={"name": ["main"], "exitCode": [137]}), True),
        (detail(containers={"name": ["other"]}), False),
        (detail(overrides={"containerOverrides": [{"exists": False}]}), True),
        ({"$or": [{"source": ["x"]}, {"detail": {"version": [6]}}]}, True),
        ({"$or": [{"source": ["x"]}, {"detail": {"version": [7]}}]}, False),
        (detail(**{"$or": [{"version": [7]}, {"lastStatus": ["STOPPED"]}]}), True),
    ],
)
def test_a_pattern_matches_or_not(pattern: dict[str, Any], expected: bool) -> None:
    assert event_pattern(json.dumps(pattern))(EVENT) is expected


@pytest.mark.parametrize(
    "pattern",
    [
        "no json",
        "[]",
        "{}",
        '{"source": "aws.ecs"}',
        '{"source": []}',
        '{"detail": {}}',
        '{"source": [["x"]]}',
        '{"source": [{"cidr": "10.0.0.0/8"}]}',
        '{"source": [{"prefix": 1}]}',
        '{"source": [{"exists": "true"}]}',
        '{"source": [{"numeric": [">"]}]}',
        '{"source": [{"numeric": ["~", 1]}]}',
        '{"source": [{"anything-but": [null]}]}',
        '{"source": [{"anything-but": {"exists": true}}]}',
        '{"source": [{"wildcard": "a**"}]}',
        '{"source": [{"prefix": "a", "suffix": "b"}]}',
        '{"$or": [{"source": ["x"]}]}',
    ],
)
async def test_a_bad_pattern_is_refused(events: EventsService, pattern: str) -> None:
    error = await refusal(events, "PutRule", Name="r", EventPattern=pattern)

    assert error.code == "InvalidEventPatternException"
    assert error.message.startswith("Event pattern is not valid. Reason: ")
    with pytest.raises(AwsError):
        event_pattern(pattern)


async def test_a_pattern_can_be_tried(events: EventsService) -> None:
    reply = await ask(events, "TestEventPattern", EventPattern=PATTERN, Event=json.dumps(EVENT))

    assert reply == {"Result": True}


# Rules.


async def test_a_rule_is_put_described_and_listed(events: EventsService) -> None:
    reply = await ask(events, "PutRule", Name="tasks", EventPattern=PATTERN, Description="d", State="DISABLED")

    described = await ask(events, "DescribeRule", Name="tasks")
    listed = await ask(events, "ListRules", NamePrefix="ta")

    assert reply == {"RuleArn": "arn:aws:events:us-east-1:111122223333:rule/tasks"}
    assert described["EventPattern"] == PATTERN
    assert described["State"] == "DISABLED"
    assert [rule["Name"] for rule in listed["Rules"]] == ["tasks"]


async def test_rules_come_in_pages(events: EventsService) -> None:
    for number in range(5):
        await ask(events, "PutRule", Name=f"r{number}", EventPattern=PATTERN)

    first = await ask(events, "ListRules", Limit=3)
    second = await ask(events, "ListRules", Limit=3, NextToken=first["NextToken"])

    assert [rule["Name"] for rule in first["Rules"] + second["Rules"]] == [f"r{number}" for number in range(5)]
    assert "NextToken" not in second


@pytest.mark.parametrize(
    "request_",
    [
        {"ScheduleExpression": "rate(1 minute)"},
        {},
        {"EventPattern": json.dumps({"source": ["x" * 4096]})},
        {"Name": "a b", "EventPattern": PATTERN},
    ],
)
async def test_an_impossible_rule_is_refused(events: EventsService, request_: dict[str, str]) -> None:
    error = await refusal(events, "PutRule", **{"Name": "r", **request_})

    assert error.code == "ValidationException"


@pytest.mark.parametrize(
    ("operation", "request_"),
    [
        ("DescribeRule", {"Name": "none"}),
        ("EnableRule", {"Name": "none"}),
        ("DisableRule", {"Name": "none"}),
        ("PutTargets", {"Rule": "none", "Targets": [{"Id": "1", "Arn": QUEUE}]}),
        ("RemoveTargets", {"Rule": "none", "Ids": ["1"]}),
        ("ListTargetsByRule", {"Rule": "none"}),
        ("PutRule", {"Name": "x", "EventPattern": PATTERN, "EventBusName": "other"}),
    ],
)
async def test_a_missing_rule_or_bus_is_told(events: EventsService, operation: str, request_: dict[str, Any]) -> None:
    error = await refusal(events, operation, **request_)

    assert error.code == "ResourceNotFoundException"


async def test_a_rule_goes_only_after_its_targets(events: EventsService, sqs: SqsService) -> None:
    await connect(events, sqs)

    error = await refusal(events, "DeleteRule", Name="tasks")
    await ask(events, "RemoveTargets", Rule="tasks", Ids=["1"])
    await ask(events, "DeleteRule", Name="tasks")
    await ask(events, "DeleteRule", Name="tasks")

    assert error.message == "Rule can't be deleted since it has targets."
    assert await ask(events, "ListRules") == {"Rules": []}


async def test_a_rule_has_five_targets_at_most(events: EventsService, sqs: SqsService) -> None:
    await connect(events, sqs)
    more = [{"Id": f"{number}", "Arn": QUEUE} for number in range(2, 7)]

    error = await refusal(events, "PutTargets", Rule="tasks", Targets=more)
    reply = await ask(events, "PutTargets", Rule="tasks", Targets=more[:4])
    listed = await ask(events, "ListTargetsByRule", Rule="tasks")
    names = await ask(events, "ListRuleNamesByTarget", TargetArn=QUEUE)

    assert error.code == "LimitExceededException"
    assert reply == {"FailedEntryCount": 0, "FailedEntries": []}
    assert [target["Id"] for target in listed["Targets"]] == ["1", "2", "3", "4", "5"]
    assert names == {"RuleNames": ["tasks"]}


@pytest.mark.parametrize(
    "target",
    [
        {"Id": "1", "Arn": "queue"},
        {"Id": "a b", "Arn": QUEUE},
        {"Id": "1", "Arn": QUEUE, "Input": "{}", "InputPath": "$"},
        {"Id": "1", "Arn": f"{QUEUE}.fifo"},
    ],
)
async def test_an_impossible_target_is_refused(events: EventsService, target: dict[str, Any]) -> None:
    await ask(events, "PutRule", Name="r", EventPattern=PATTERN)

    error = await refusal(events, "PutTargets", Rule="r", Targets=[target])

    assert error.code == "ValidationException"


async def test_a_rule_has_tags(events: EventsService) -> None:
    arn = (await ask(events, "PutRule", Name="r", EventPattern=PATTERN, Tags=[{"Key": "a", "Value": "1"}]))["RuleArn"]
    await ask(events, "TagResource", ResourceARN=arn, Tags=[{"Key": "b", "Value": "2"}])
    await ask(events, "UntagResource", ResourceARN=arn, TagKeys=["a"])

    assert await ask(events, "ListTagsForResource", ResourceARN=arn) == {"Tags": [{"Key": "b", "Value": "2"}]}


async def test_there_is_one_bus(events: EventsService) -> None:
    assert (await ask(events, "DescribeEventBus"))["Name"] == "default"


# From the bus to the queue.


async def test_an_event_arrives_whole(events: EventsService, sqs: SqsService) -> None:
    await connect(events, sqs)

    sent = events.emit(task())

    assert await received(sqs) == [sent]
    assert sent.keys() == {
        "version",
        "id",
        "detail-type",
        "source",
        "account",
        "time",
        "region",
        "resources",
        "detail",
    }
    assert (sent["version"], sent["time"]) == ("0", "2026-01-01T00:00:00Z")
    assert list(events.emitted) == [sent]


async def test_the_sender_of_what_a_rule_sends_is_nobody_of_the_account(events: EventsService, sqs: SqsService) -> None:
    await connect(events, sqs)
    events.emit(task())
    await ask(sqs, "SendMessage", QueueUrl=URL, MessageBody="forged")

    reply = await ask(
        sqs, "ReceiveMessage", QueueUrl=URL, MaxNumberOfMessages=10, MessageSystemAttributeNames=["SenderId"]
    )
    of_the_rule, of_somebody = (message["Attributes"]["SenderId"] for message in reply["Messages"])

    assert of_somebody == sqs.account
    assert of_the_rule != of_somebody


async def test_only_the_last_ten_thousand_are_remembered(events: EventsService) -> None:
    for number in range(10_001):
        events.emit({"source": "me", "detail-type": "a number", "detail": {"number": number}})

    assert [events.emitted[0]["detail"], events.emitted[-1]["detail"]] == [{"number": 1}, {"number": 10_000}]


async def test_only_a_rule_that_matches_and_is_enabled_sends(events: EventsService, sqs: SqsService) -> None:
    await connect(events, sqs, '{"detail": {"lastStatus": ["STOPPED"]}}')

    events.emit(task(1))
    events.emit(task(2, lastStatus="STOPPED"))
    await ask(events, "DisableRule", Name="tasks")
    events.emit(task(3, lastStatus="STOPPED"))
    await ask(events, "EnableRule", Name="tasks")
    events.emit(task(4, lastStatus="STOPPED"))

    assert [event["detail"]["version"] for event in await received(sqs)] == [2, 4]


async def test_a_rule_that_is_put_again_keeps_its_targets(events: EventsService, sqs: SqsService) -> None:
    await connect(events, sqs)
    await ask(events, "PutRule", Name="tasks", EventPattern='{"source": ["other"]}')

    events.emit({"source": "other", "detail-type": "d", "detail": {}})

    assert len(await received(sqs)) == 1


async def test_a_rule_needs_a_while_if_asked(clock: VirtualClock, sqs: SqsService) -> None:
    events = made(clock, sqs, rule_delay=60)
    await connect(events, sqs)

    events.emit(task(1))
    await anyio.sleep(61)
    events.emit(task(2))

    assert [event["detail"]["version"] for event in await received(sqs)] == [2]


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ({"Input": '{"fixed": 1}'}, {"fixed": 1}),
        ({"InputPath": "$.detail.lastStatus"}, "RUNNING"),
        ({"InputPath": "$.resources[0]"}, "arn:task/1"),
        ({"InputPath": "$.detail.nothing"}, {}),
        (
            {
                "InputTransformer": {
                    "InputPathsMap": {"status": "$.detail.lastStatus", "version": "$.detail.version"},
                    "InputTemplate": '{"status": <status>, "version": <version>, "rule": <aws.events.rule-name>}',
                }
            },
            {"status": "RUNNING", "version": 1, "rule": "tasks"},
        ),
        (
            {
                "InputTransformer": {
                    "InputPathsMap": {"status": "$.detail.lastStatus", "none": "$.detail.none"},
                    "InputTemplate": '"it is \\"<status>\\" <none>at <aws.events.event.ingestion-time>"',
                }
            },
            'it is "RUNNING" at 2026-01-01T00:00:00Z',
        ),
    ],
)
async def test_a_target_may_change_the_event(
    events: EventsService, sqs: SqsService, target: dict[str, Any], body: Any
) -> None:
    await connect(events, sqs, **target)

    events.emit(task())

    assert await received(sqs) == [body]


async def test_a_fifo_queue_gets_events_in_a_group(events: EventsService, sqs: SqsService) -> None:
    attributes = {"FifoQueue": "true", "ContentBasedDeduplication": "true"}
    url = (await ask(sqs, "CreateQueue", QueueName="q.fifo", Attributes=attributes))["QueueUrl"]
    await ask(events, "PutRule", Name="tasks", EventPattern=PATTERN)
    target = {"Id": "1", "Arn": f"{QUEUE[:-6]}q.fifo", "SqsParameters": {"MessageGroupId": "g"}}
    await ask(events, "PutTargets", Rule="tasks", Targets=[target])

    events.emit(task())
    reply = await ask(sqs, "ReceiveMessage", QueueUrl=url, AttributeNames=["All"])

    assert reply["Messages"][0]["Attributes"]["MessageGroupId"] == "g"


async def test_an_event_whose_queue_is_gone_ends_among_the_dead_letters(events: EventsService, sqs: SqsService) -> None:
    dead = (await ask(sqs, "CreateQueue", QueueName="dead"))["QueueUrl"]
    await connect(events, sqs, DeadLetterConfig={"Arn": f"{QUEUE[:-6]}dead"})
    await ask(sqs, "DeleteQueue", QueueUrl=URL)

    events.emit(task())

    assert (await ask(sqs, "ReceiveMessage", QueueUrl=dead)).keys() == {"Messages"}


RULE = "arn:aws:events:us-east-1:111122223333:rule/tasks"
ALLOWS: dict[str, Any] = {
    "Effect": "Allow",
    "Principal": {"Service": "events.amazonaws.com"},
    "Action": "sqs:SendMessage",
    "Resource": QUEUE,
    "Condition": {"ArnEquals": {"aws:SourceArn": RULE}},
}


@pytest.mark.parametrize(
    ("statement", "arrives"),
    [
        (None, False),
        (ALLOWS, True),
        ({**ALLOWS, "Condition": {"ArnLike": {"aws:SourceArn": "arn:aws:events:*:*:rule/t*"}}}, True),
        ({**ALLOWS, "Condition": {"ArnEquals": {"aws:SourceArn": f"{RULE}2"}}}, False),
        ({**ALLOWS, "Principal": {"Service": "sns.amazonaws.com"}}, False),
        ({**ALLOWS, "Principal": "*", "Action": ["SQS:*"]}, True),
        ({**ALLOWS, "Action": "sqs:ReceiveMessage"}, False),
        ({**ALLOWS, "Resource": f"{QUEUE}2"}, False),
        ({**ALLOWS, "Effect": "Deny"}, False),
    ],
)
async def test_a_queue_without_a_policy_gets_nothing_if_policies_count(
    clock: VirtualClock, sqs: SqsService, statement: dict[str, Any] | None, arrives: bool
) -> None:
    events = made(clock, sqs, queue_policies=True)
    await connect(events, sqs)
    policy = {"Policy": json.dumps({"Version": "2012-10-17", "Statement": [statement]})} if statement else {}
    await ask(sqs, "SetQueueAttributes", QueueUrl=URL, Attributes=policy)

    events.emit(task())

    assert len(await received(sqs)) == int(arrives)


# PutEvents.


async def test_own_events_are_put_on_the_bus(events: EventsService, sqs: SqsService) -> None:
    await connect(events, sqs, '{"source": ["mine"]}')
    entry = {"Source": "mine", "DetailType": "d", "Detail": '{"a": 1}', "Resources": ["r"]}

    reply = await ask(events, "PutEvents", Entries=[entry])

    [event] = await received(sqs)
    assert reply == {"FailedEntryCount": 0, "Entries": [{"EventId": event["id"]}]}
    assert (event["detail"], event["resources"]) == ({"a": 1}, ["r"])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"Source": "aws.ecs"}, "NotAuthorizedForSourceException"),
        ({"Source": ""}, "InvalidArgument"),
        ({"Detail": "[]"}, "MalformedDetail"),
        ({"Detail": "{"}, "MalformedDetail"),
        ({"EventBusName": "other"}, "ResourceNotFoundException"),
    ],
)
async def test_a_bad_entry_fails_beside_the_good(events: EventsService, change: dict[str, str], code: str) -> None:
    good = {"Source": "mine", "DetailType": "d", "Detail": "{}"}

    reply = await ask(events, "PutEvents", Entries=[{**good, **change}, good])

    assert reply["FailedEntryCount"] == 1
    assert reply["Entries"][0]["ErrorCode"] == code
    assert reply["Entries"][1].keys() == {"EventId"}


async def test_ten_entries_are_the_most(events: EventsService) -> None:
    error = await refusal(events, "PutEvents", Entries=[{"Source": "m", "DetailType": "d", "Detail": "{}"}] * 11)

    assert error.code == "ValidationException"


# Misfortune.


async def arrivals(clock: VirtualClock, sqs: SqsService, count: int, **delivery: Any) -> list[tuple[int, float]]:
    """Send an event a second; return which arrive when."""
    events = made(clock, sqs, **delivery)
    await connect(events, sqs)
    seen: list[tuple[int, float]] = []
    for second in range(count + 400):
        if second < count:
            events.emit(task(second))
        seen += [(event["detail"]["version"], clock.time()) for event in await received(sqs)]
        await anyio.sleep(1)
    return seen


async def test_events_take_their_time_and_keep_their_order(clock: VirtualClock, sqs: SqsService) -> None:
    seen = await arrivals(clock, sqs, 100, least=3, most=20)

    assert [version for version, _ in seen] == list(range(100))
    assert min(at - version for version, at in seen) >= 3
    assert max(at - version for version, at in seen) <= 21


async def test_events_may_be_shuffled(clock: VirtualClock, sqs: SqsService) -> None:
    seen = await arrivals(clock, sqs, 100, least=0, most=20, in_order=False)

    versions = [version for version, _ in seen]
    assert sorted(versions) == list(range(100))
    assert sum(earlier > later for earlier, later in pairwise(versions)) > 10


async def test_events_may_be_lost(clock: VirtualClock, sqs: SqsService) -> None:
    seen = await arrivals(clock, sqs, 200, lost=0.5)

    assert 60 < len(seen) < 140


async def test_events_may_arrive_several_times(clock: VirtualClock, sqs: SqsService) -> None:
    seen = await arrivals(clock, sqs, 100, duplicated=0.5, copies=3)

    counts = Counter(version for version, _ in seen)
    assert set(counts.values()) == {1, 3}
    assert len(counts) == 100


async def test_events_may_be_late(clock: VirtualClock, sqs: SqsService) -> None:
    seen = await arrivals(clock, sqs, 100, late=0.2, late_by=200)

    late = [version for version, at in seen if at - version > 2]
    assert len(seen) == 100
    assert 5 < len(late) < 40
    assert max(at - version for version, at in seen) > 60


async def test_misfortune_repeats_by_seed() -> None:
    async def run(seed: int) -> list[Any]:
        clock = VirtualClock()
        sqs = SqsService(clock, seed=seed)
        events = made(clock, sqs, seed, lost=0.3, duplicated=0.3, late=0.3, in_order=False, most=5)
        await connect(events, sqs)
        for number in range(50):
            events.emit(task(number))
        messages = sqs._queues["events"].messages.values()
        return [(message.visible_at, message.id, message.body) for message in messages]

    assert await run(1) == await run(1)
    assert await run(1) != await run(2)


@pytest.mark.parametrize("bad", [{"least": 3, "most": 2}, {"lost": 1.1}, {"copies": 1}, {"late_by": -1}])
def test_an_impossible_delivery_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (some texts are attrs')
        Delivery(**bad)
