"""SQS of the fake AWS, in virtual time."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest

from fargate_runner.testing.aws._events import SqsService
from fargate_runner.testing.clock import VirtualClock
from tests.aws.asking import ask, refusal

URL = "https://sqs.us-east-1.amazonaws.com/111122223333/q"
ARN = "arn:aws:sqs:us-east-1:111122223333"


@pytest.fixture
def anyio_backend(clock: VirtualClock) -> object:
    return ("asyncio", {"loop_factory": clock.loop})


@pytest.fixture
async def sqs(clock: VirtualClock) -> SqsService:
    sqs = SqsService(clock)
    await ask(sqs, "CreateQueue", QueueName="q")
    return sqs


async def send(sqs: SqsService, *bodies: str, url: str = URL, **request: Any) -> None:
    for body in bodies:
        await ask(sqs, "SendMessage", QueueUrl=url, MessageBody=body, **request)


async def receive(sqs: SqsService, url: str = URL, **request: Any) -> list[dict[str, Any]]:
    reply = await ask(sqs, "ReceiveMessage", QueueUrl=url, **{"MaxNumberOfMessages": 10, **request})
    return reply.get("Messages", [])


def bodies(messages: list[dict[str, Any]]) -> list[str]:
    return [message["Body"] for message in messages]


# Queues.


async def test_a_queue_is_found_by_its_name(sqs: SqsService) -> None:
    assert await ask(sqs, "GetQueueUrl", QueueName="q") == {"QueueUrl": URL}
    assert await ask(sqs, "ListQueues", QueueNamePrefix="q") == {"QueueUrls": [URL]}
    assert await ask(sqs, "ListQueues", QueueNamePrefix="x") == {}


async def test_queues_come_in_pages(sqs: SqsService) -> None:
    for number in range(5):
        await ask(sqs, "CreateQueue", QueueName=f"p{number}")

    first = await ask(sqs, "ListQueues", QueueNamePrefix="p", MaxResults=3)
    second = await ask(sqs, "ListQueues", QueueNamePrefix="p", MaxResults=3, NextToken=first["NextToken"])

    urls = [url.rpartition("/")[2] for url in first["QueueUrls"] + second["QueueUrls"]]
    assert urls == ["p0", "p1", "p2", "p3", "p4"]


@pytest.mark.parametrize("url", [URL, "http://127.0.0.1:4566/111122223333/q", "http://localhost/queue/111122223333/q"])
async def test_any_url_with_account_and_name_is_understood(sqs: SqsService, url: str) -> None:
    await send(sqs, "x", url=url)

    assert bodies(await receive(sqs)) == ["x"]


async def test_urls_start_as_configured(sqs: SqsService) -> None:
    sqs.url_prefix = "http://127.0.0.1:1234"

    assert (await ask(sqs, "GetQueueUrl", QueueName="q"))["QueueUrl"] == "http://127.0.0.1:1234/111122223333/q"


@pytest.mark.parametrize(
    ("operation", "request_"),
    [
        ("GetQueueUrl", {"QueueName": "none"}),
        ("SendMessage", {"QueueUrl": f"{URL}2", "MessageBody": "x"}),
        ("ReceiveMessage", {"QueueUrl": "https://sqs.us-east-1.amazonaws.com/1/q"}),
        ("ReceiveMessage", {"QueueUrl": "q"}),
        ("DeleteQueue", {"QueueUrl": f"{URL}2"}),
    ],
)
async def test_a_missing_queue_is_told(sqs: SqsService, operation: str, request_: dict[str, Any]) -> None:
    error = await refusal(sqs, operation, **request_)

    assert (error.code, error.message) == ("QueueDoesNotExist", "The specified queue does not exist.")


async def test_a_queue_may_be_made_again_only_with_the_same_attributes(sqs: SqsService) -> None:
    again = await ask(sqs, "CreateQueue", QueueName="q", Attributes={"VisibilityTimeout": "30"})
    error = await refusal(sqs, "CreateQueue", QueueName="q", Attributes={"VisibilityTimeout": "31"})

    assert again == {"QueueUrl": URL}
    assert error.code == "QueueNameExists"


@pytest.mark.parametrize(
    ("name", "attributes", "code"),
    [
        ("a b", {}, "InvalidParameterValue"),
        ("x" * 81, {}, "InvalidParameterValue"),
        ("x.fifo", {}, "InvalidParameterValue"),
        ("x", {"FifoQueue": "true"}, "InvalidParameterValue"),
        ("x", {"Nothing": "1"}, "InvalidAttributeName"),
        ("x", {"VisibilityTimeout": "43201"}, "InvalidAttributeValue"),
        ("x", {"DelaySeconds": "soon"}, "InvalidAttributeValue"),
        ("x", {"Policy": "{"}, "InvalidAttributeValue"),
        ("x", {"RedrivePolicy": '{"deadLetterTargetArn": "none", "maxReceiveCount": 3}'}, "InvalidAttributeValue"),
    ],
)
async def test_an_impossible_queue_is_refused(
    sqs: SqsService, name: str, attributes: dict[str, str], code: str
) -> None:
    error = await refusal(sqs, "CreateQueue", QueueName=name, Attributes=attributes)

    assert error.code == code


async def test_the_attributes_of_a_queue_count_its_messages(sqs: SqsService) -> None:
    await send(sqs, "a", "b", "c")
    await send(sqs, "later", DelaySeconds=10)
    await receive(sqs, MaxNumberOfMessages=1)

    reply = await ask(sqs, "GetQueueAttributes", QueueUrl=URL, AttributeNames=["All"])

    attributes = reply["Attributes"]
    assert attributes["QueueArn"] == f"{ARN}:q"
    assert attributes["ApproximateNumberOfMessages"] == "2"
    assert attributes["ApproximateNumberOfMessagesNotVisible"] == "1"
    assert attributes["ApproximateNumberOfMessagesDelayed"] == "1"
    assert attributes["VisibilityTimeout"] == "30"
    assert await ask(sqs, "GetQueueAttributes", QueueUrl=URL) == {}


async def test_attributes_are_set_and_taken_back(sqs: SqsService) -> None:
    policy = '{"Statement": []}'
    await ask(sqs, "SetQueueAttributes", QueueUrl=URL, Attributes={"Policy": policy, "DelaySeconds": "5"})
    some = await ask(sqs, "GetQueueAttributes", QueueUrl=URL, AttributeNames=["Policy", "DelaySeconds"])
    await ask(sqs, "SetQueueAttributes", QueueUrl=URL, Attributes={"Policy": ""})

    assert some == {"Attributes": {"Policy": policy, "DelaySeconds": "5"}}
    assert await ask(sqs, "GetQueueAttributes", QueueUrl=URL, AttributeNames=["Policy"]) == {}
    assert (await refusal(sqs, "GetQueueAttributes", QueueUrl=URL, AttributeNames=["X"])).code == "InvalidAttributeName"


async def test_a_queue_has_tags(sqs: SqsService) -> None:
    await ask(sqs, "TagQueue", QueueUrl=URL, Tags={"a": "1", "b": "2"})
    await ask(sqs, "UntagQueue", QueueUrl=URL, TagKeys=["a"])

    assert await ask(sqs, "ListQueueTags", QueueUrl=URL) == {"Tags": {"b": "2"}}


async def test_a_purged_queue_is_empty(sqs: SqsService) -> None:
    await send(sqs, "a", "b")

    await ask(sqs, "PurgeQueue", QueueUrl=URL)
    error = await refusal(sqs, "PurgeQueue", QueueUrl=URL)

    assert await receive(sqs) == []
    assert error.code == "PurgeQueueInProgress"


# Messages.


async def test_a_message_is_received_as_it_was_sent(sqs: SqsService) -> None:
    attributes = {
        "a": {"DataType": "String", "StringValue": "x"},
        "b.c": {"DataType": "Binary", "BinaryValue": b"\x00\x01"},
    }

    sent = await ask(
        sqs,
        "SendMessage",
        QueueUrl=URL,
        MessageBody="h\N{LATIN SMALL LETTER E WITH ACUTE}",
        MessageAttributes=attributes,
    )
    [message] = await receive(sqs, MessageAttributeNames=["All"], AttributeNames=["All"])

    assert message["MessageId"] == sent["MessageId"]
    assert message["MD5OfBody"] == sent["MD5OfMessageBody"] == "33fcd01258e6ba07ef405dc9e721f3a7"
    assert message["MessageAttributes"] == attributes
    assert message["MD5OfMessageAttributes"] == sent["MD5OfMessageAttributes"]
    assert message["Attributes"] == {
        "SenderId": "111122223333",
        "SentTimestamp": "1767225600000",
        "ApproximateReceiveCount": "1",
        "ApproximateFirstReceiveTimestamp": "1767225600000",
    }


async def test_only_the_attributes_that_were_asked_for_come_along(sqs: SqsService) -> None:
    value = {"DataType": "Number", "StringValue": "1"}
    await send(sqs, "x", MessageAttributes={"a.b": value, "c": value})

    [message] = await receive(sqs, VisibilityTimeout=0)
    [some] = await receive(sqs, MessageAttributeNames=["a.*"], MessageSystemAttributeNames=["ApproximateReceiveCount"])

    assert not {"MessageAttributes", "Attributes"} & message.keys()
    assert some["MessageAttributes"] == {"a.b": value}
    assert some["Attributes"] == {"ApproximateReceiveCount": "2"}


async def test_a_message_hides_until_its_visibility_ends(sqs: SqsService) -> None:
    await send(sqs, "x")

    first = await receive(sqs)
    hidden = await receive(sqs)
    await anyio.sleep(30)
    second = await receive(sqs)

    assert (bodies(first), bodies(hidden), bodies(second)) == (["x"], [], ["x"])
    assert first[0]["ReceiptHandle"] != second[0]["ReceiptHandle"]


async def test_the_visibility_can_be_changed(sqs: SqsService) -> None:
    await send(sqs, "x", "y")
    x, y = await receive(sqs, VisibilityTimeout=100)

    await ask(sqs, "ChangeMessageVisibility", QueueUrl=URL, ReceiptHandle=x["ReceiptHandle"], VisibilityTimeout=0)
    await ask(sqs, "ChangeMessageVisibility", QueueUrl=URL, ReceiptHandle=y["ReceiptHandle"], VisibilityTimeout=500)
    at_once = await receive(sqs, VisibilityTimeout=1000)
    await anyio.sleep(499)
    still = await receive(sqs)
    await anyio.sleep(1)
    then = await receive(sqs)

    assert (bodies(at_once), bodies(still), bodies(then)) == (["x"], [], ["y"])


async def test_the_visibility_of_what_is_visible_cannot_be_changed(sqs: SqsService) -> None:
    await send(sqs, "x")
    [message] = await receive(sqs, VisibilityTimeout=5)
    handle = message["ReceiptHandle"]
    await anyio.sleep(6)

    error = await refusal(sqs, "ChangeMessageVisibility", QueueUrl=URL, ReceiptHandle=handle, VisibilityTimeout=10)

    assert error.code == "InvalidParameterValue"


async def test_a_deleted_message_is_gone(sqs: SqsService) -> None:
    await send(sqs, "x")
    [message] = await receive(sqs, VisibilityTimeout=1)

    for _ in range(2):
        await ask(sqs, "DeleteMessage", QueueUrl=URL, ReceiptHandle=message["ReceiptHandle"])
    await anyio.sleep(5)

    assert await receive(sqs) == []


async def test_an_old_handle_deletes_nothing(sqs: SqsService) -> None:
    await send(sqs, "x")
    [old] = await receive(sqs, VisibilityTimeout=0)
    [new] = await receive(sqs, VisibilityTimeout=0)

    await ask(sqs, "DeleteMessage", QueueUrl=URL, ReceiptHandle=old["ReceiptHandle"])
    kept = await receive(sqs, VisibilityTimeout=0)
    error = await refusal(sqs, "DeleteMessage", QueueUrl=URL, ReceiptHandle="nonsense")

    assert new["Body"] == kept[0]["Body"] == "x"
    assert error.code == "ReceiptHandleIsInvalid"


async def test_a_delayed_message_comes_later(sqs: SqsService) -> None:
    await send(sqs, "x", DelaySeconds=10)

    early = await receive(sqs)
    await anyio.sleep(10)

    assert (early, bodies(await receive(sqs))) == ([], ["x"])


async def test_no_more_than_asked_are_received(sqs: SqsService) -> None:
    await send(sqs, *(f"{number}" for number in range(15)))

    assert bodies(await receive(sqs, MaxNumberOfMessages=10)) == [f"{number}" for number in range(10)]
    assert bodies(await receive(sqs, MaxNumberOfMessages=1)) == ["10"]


async def test_old_messages_are_forgotten(sqs: SqsService) -> None:
    await send(sqs, "x")
    await anyio.sleep(345_601)

    assert await receive(sqs) == []


@pytest.mark.parametrize(
    ("operation", "request_", "code"),
    [
        ("ReceiveMessage", {"MaxNumberOfMessages": 11}, "InvalidParameterValue"),
        ("ReceiveMessage", {"MaxNumberOfMessages": 0}, "InvalidParameterValue"),
        ("ReceiveMessage", {"WaitTimeSeconds": 21}, "InvalidParameterValue"),
        ("ReceiveMessage", {"VisibilityTimeout": 43_201}, "InvalidParameterValue"),
        ("SendMessage", {"MessageBody": "x", "DelaySeconds": 901}, "InvalidParameterValue"),
        ("SendMessage", {"MessageBody": ""}, "MissingParameter"),
        ("SendMessage", {"MessageBody": "x" * 1_048_577}, "InvalidParameterValue"),
    ],
)
async def test_impossible_values_are_refused(
    sqs: SqsService, operation: str, request_: dict[str, Any], code: str
) -> None:
    error = await refusal(sqs, operation, QueueUrl=URL, **request_)

    assert error.code == code


# Waiting.


async def test_a_long_poll_ends_empty_after_its_time(sqs: SqsService, clock: VirtualClock) -> None:
    assert await receive(sqs, WaitTimeSeconds=20) == []
    assert clock.time() == pytest.approx(20)


async def test_a_long_poll_wakes_when_a_message_comes(sqs: SqsService, clock: VirtualClock) -> None:
    async with anyio.create_task_group() as tasks:

        async def later() -> None:
            await anyio.sleep(7)
            await send(sqs, "x")

        tasks.start_soon(later)
        messages = await receive(sqs, WaitTimeSeconds=20)

    assert bodies(messages) == ["x"]
    assert clock.time() == pytest.approx(7)


async def test_a_long_poll_wakes_when_a_hidden_message_is_visible_again(sqs: SqsService, clock: VirtualClock) -> None:
    await send(sqs, "x")
    await receive(sqs, VisibilityTimeout=12)

    messages = await receive(sqs, WaitTimeSeconds=20)

    assert bodies(messages) == ["x"]
    assert clock.time() == pytest.approx(12)


async def test_the_queue_may_say_how_long_to_wait(sqs: SqsService, clock: VirtualClock) -> None:
    await ask(sqs, "SetQueueAttributes", QueueUrl=URL, Attributes={"ReceiveMessageWaitTimeSeconds": "15"})

    await receive(sqs)

    assert clock.time() == pytest.approx(15)


async def test_each_message_goes_to_one_of_those_who_wait(sqs: SqsService) -> None:
    got: list[str] = []

    async def wait() -> None:
        got.extend(bodies(await receive(sqs, WaitTimeSeconds=20, MaxNumberOfMessages=1)))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(wait)
        await anyio.sleep(1)
        await send(sqs, *(f"{number}" for number in range(6)))

    assert sorted(got) == [f"{number}" for number in range(6)]


async def test_a_poll_that_is_cancelled_takes_nothing(sqs: SqsService) -> None:
    with anyio.move_on_after(5):
        await receive(sqs, WaitTimeSeconds=20)
    await send(sqs, "x")

    assert bodies(await receive(sqs)) == ["x"]


async def test_a_poll_of_a_queue_that_is_deleted_ends(sqs: SqsService, clock: VirtualClock) -> None:
    async with anyio.create_task_group() as tasks:

        async def later() -> None:
            await anyio.sleep(3)
            await ask(sqs, "DeleteQueue", QueueUrl=URL)

        tasks.start_soon(later)
        error = await refusal(sqs, "ReceiveMessage", QueueUrl=URL, WaitTimeSeconds=20)

    assert error.code == "QueueDoesNotExist"
    assert clock.time() == pytest.approx(3)


async def test_polls_late_in_a_long_life_do_not_spin(sqs: SqsService, clock: VirtualClock) -> None:
    await anyio.sleep(1e7 + 0.1)
    await send(sqs, "x", DelaySeconds=7)

    messages = await receive(sqs, WaitTimeSeconds=20)

    assert bodies(messages) == ["x"]
    assert clock.time() == pytest.approx(1e7 + 7.1)


# Batches.


async def test_messages_go_in_batches(sqs: SqsService) -> None:
    sent = await ask(
        sqs,
        "SendMessageBatch",
        QueueUrl=URL,
        Entries=[{"Id": "a", "MessageBody": "x"}, {"Id": "b", "MessageBody": "y", "DelaySeconds": 901}],
    )
    [message] = await receive(sqs)
    changed = await ask(
        sqs,
        "ChangeMessageVisibilityBatch",
        QueueUrl=URL,
        Entries=[{"Id": "a", "ReceiptHandle": message["ReceiptHandle"], "VisibilityTimeout": 60}],
    )
    deleted = await ask(
        sqs,
        "DeleteMessageBatch",
        QueueUrl=URL,
        Entries=[{"Id": "a", "ReceiptHandle": message["ReceiptHandle"]}, {"Id": "b", "ReceiptHandle": "nonsense"}],
    )

    assert [entry["Id"] for entry in sent["Successful"]] == ["a"]
    assert [(entry["Id"], entry["Code"]) for entry in sent["Failed"]] == [("b", "InvalidParameterValue")]
    assert changed["Successful"] == [{"Id": "a"}]
    assert deleted["Successful"] == [{"Id": "a"}]
    assert [(entry["Id"], entry["Code"]) for entry in deleted["Failed"]] == [("b", "ReceiptHandleIsInvalid")]


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ([], "EmptyBatchRequest"),
        ([{"Id": f"{number}", "MessageBody": "x"} for number in range(11)], "TooManyEntriesInBatchRequest"),
        ([{"Id": "a", "MessageBody": "x"}] * 2, "BatchEntryIdsNotDistinct"),
        ([{"Id": "a b", "MessageBody": "x"}], "InvalidBatchEntryId"),
        ([{"Id": f"{number}", "MessageBody": "x" * 600_000} for number in range(2)], "BatchRequestTooLong"),
    ],
)
async def test_an_impossible_batch_is_refused(sqs: SqsService, entries: list[dict[str, str]], code: str) -> None:
    error = await refusal(sqs, "SendMessageBatch", QueueUrl=URL, Entries=entries)

    assert error.code == code


# Dead letters, and order.


async def test_what_is_received_too_often_is_a_dead_letter(sqs: SqsService) -> None:
    dead = (await ask(sqs, "CreateQueue", QueueName="dead"))["QueueUrl"]
    policy = json.dumps({"deadLetterTargetArn": f"{ARN}:dead", "maxReceiveCount": "2"})
    await ask(sqs, "SetQueueAttributes", QueueUrl=URL, Attributes={"RedrivePolicy": policy})
    await send(sqs, "x")

    tries = [bodies(await receive(sqs, VisibilityTimeout=0)) for _ in range(3)]

    assert tries == [["x"], ["x"], []]
    assert bodies(await receive(sqs, dead)) == ["x"]


@pytest.fixture
async def fifo(sqs: SqsService) -> str:
    attributes = {"FifoQueue": "true", "ContentBasedDeduplication": "true"}
    return (await ask(sqs, "CreateQueue", QueueName="q.fifo", Attributes=attributes))["QueueUrl"]


async def test_a_fifo_queue_keeps_the_order_of_a_group(sqs: SqsService, fifo: str) -> None:
    await send(sqs, "a1", "a2", url=fifo, MessageGroupId="a")
    await send(sqs, "b1", url=fifo, MessageGroupId="b")

    [first] = await receive(sqs, fifo, MaxNumberOfMessages=1)
    others = await receive(sqs, fifo)
    await ask(sqs, "DeleteMessage", QueueUrl=fifo, ReceiptHandle=first["ReceiptHandle"])

    assert (first["Body"], bodies(others), bodies(await receive(sqs, fifo))) == ("a1", ["b1"], ["a2"])


async def test_a_fifo_queue_gives_a_group_in_one_reply(sqs: SqsService, fifo: str) -> None:
    await send(sqs, "a1", "a2", "a3", url=fifo, MessageGroupId="a")

    assert bodies(await receive(sqs, fifo)) == ["a1", "a2", "a3"]


async def test_a_blocked_group_is_waited_for(sqs: SqsService, fifo: str, clock: VirtualClock) -> None:
    await send(sqs, "a1", "a2", url=fifo, MessageGroupId="a")
    await receive(sqs, fifo, MaxNumberOfMessages=1, VisibilityTimeout=12)

    messages = await receive(sqs, fifo, WaitTimeSeconds=20)

    assert bodies(messages) == ["a1", "a2"]
    assert clock.time() == pytest.approx(12)


async def test_a_fifo_queue_takes_the_same_content_once_in_five_minutes(sqs: SqsService, fifo: str) -> None:
    await send(sqs, "x", "x", url=fifo, MessageGroupId="a")
    once = await receive(sqs, fifo)
    await ask(sqs, "DeleteMessage", QueueUrl=fifo, ReceiptHandle=once[0]["ReceiptHandle"])
    await anyio.sleep(301)
    await send(sqs, "x", url=fifo, MessageGroupId="a")

    assert bodies(once) == bodies(await receive(sqs, fifo)) == ["x"]


async def test_a_fifo_message_needs_its_group(sqs: SqsService, fifo: str) -> None:
    error = await refusal(sqs, "SendMessage", QueueUrl=fifo, MessageBody="x")

    assert error.code == "MissingParameter"


async def test_events_are_delivered_by_arn(sqs: SqsService) -> None:
    delivered = sqs.deliver(f"{ARN}:q", "x")
    lost = [sqs.deliver(arn, "x") for arn in (f"{ARN}:none", "arn:aws:sqs:eu-west-1:111122223333:q", "q")]

    assert (delivered, lost) == (True, [False, False, False])
    assert bodies(await receive(sqs)) == ["x"]
