"""What goes over the wire: our codec against botocore's own, and against what older clients send."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
from botocore.eventstream import EventStreamBuffer
from botocore.parsers import create_parser
from botocore.serialize import create_serializer
from multidict import CIMultiDict

from fargate_runner.testing.aws._protocol import (
    Asked,
    access_key_of,
    asked,
    error_frame,
    event_frame,
    initial_frame,
    service_model,
    service_of,
    write_error,
    write_reply,
)
from fargate_runner.testing.aws._service import AwsError

OURS = ("ecs", "logs", "sqs", "events")
ALL = (*OURS, "sts", "ssm", "secretsmanager", "ec2", "iam")
FORM = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
SIGNED = "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20260101/us-east-1/{}/aws4_request, SignedHeaders=host, Signature=0"


def operations(service: str) -> Iterator[tuple[str, Any]]:
    """Every operation of botocore's model, but those whose body or reply is a stream."""
    for name in service_model(service).operation_names:
        model = service_model(service).operation_model(name)
        if not model.has_streaming_output and not model.has_event_stream_output:
            yield name, model


def sample(shape: Any, depth: int = 9) -> Any:
    """Some value of a shape, with every member."""
    match shape.type_name:
        case "structure" if shape.is_document_type:
            return {"any": "thing"}
        case "structure":
            members = list(shape.members.items())[: 1 if getattr(shape, "is_tagged_union", False) else None]
            return {name: sample(member, depth - 1) for name, member in members if depth > 0 or is_plain(member)}
        case "list":
            return [sample(shape.member, depth - 1), sample(shape.member, depth - 1)]
        case "map":
            return {"k<1>": sample(shape.value, depth - 1), "k&2": sample(shape.value, depth - 1)}
        case "timestamp":
            return datetime(2026, 5, 6, 11, 5, 10, tzinfo=UTC)
        case "boolean":
            return True
        case "integer" | "long":
            return 7
        case "float" | "double":
            return 1.5
        case "blob":
            return b"\x00\xff bytes"
        case _:
            return 'text <&> "ü" \N{SNOWMAN}'


def is_plain(shape: Any) -> bool:
    return shape.type_name not in {"structure", "list", "map"}


def sent(service: str, operation: str, request: Mapping[str, Any]) -> tuple[CIMultiDict[str], bytes]:
    """A request as botocore serialises it."""
    model = service_model(service)
    serializer = create_serializer(model.metadata["protocol"], include_validation=False)
    found: Any = serializer.serialize_to_request(dict(request), model.operation_model(operation))
    body = found["body"]
    return CIMultiDict(found["headers"]), urlencode(body).encode() if isinstance(body, dict) else body


def framed(request: tuple[CIMultiDict[str], bytes]) -> tuple[CIMultiDict[str], str, dict[str, str], bytes]:
    headers, body = request
    return headers, "/", {}, body


def parsed(service: str, shape: Any, written: Any) -> Any:
    """An answer as botocore reads it."""
    response = {"status_code": written.status, "headers": CIMultiDict(written.headers), "body": written.body}
    return create_parser(service_model(service).metadata["protocol"]).parse(response, shape)


# Requests.


@pytest.mark.parametrize("service", ALL)
def test_every_request_that_botocore_writes_is_read_as_it_was_meant(service: str) -> None:
    for operation, model in operations(service):
        request = sample(model.input_shape) if model.input_shape is not None else {}

        question = asked(*framed(sent(service, operation, request)), ours=ALL)

        assert question is not None
        assert (question.service, question.operation, question.request) == (service, operation, request)


@pytest.mark.parametrize("service", ALL)
def test_every_answer_is_read_by_botocore_as_it_was_meant(service: str) -> None:
    protocol = service_model(service).metadata["protocol"]
    for operation, model in operations(service):
        question = Asked(service=service, operation=operation, protocol=protocol)
        reply = sample(model.output_shape) if model.output_shape is not None else {}

        got = parsed(service, model.output_shape, write_reply(question, reply, "request-1"))

        assert got.pop("ResponseMetadata")["RequestId"] == "request-1"
        assert (operation, got) == (operation, reply)


def test_members_of_a_newer_client_are_ignored() -> None:
    body = json.dumps({"cluster": "jobs", "brandNew": {"x": 1}, "family": None}).encode()
    headers = CIMultiDict({"X-Amz-Target": "AmazonEC2ContainerServiceV20141113.ListTasks"})

    question = asked(headers, "/", {}, body, ours=OURS)

    assert question is not None
    assert question.request == {"cluster": "jobs"}


def test_what_has_the_wrong_type_is_left_for_the_validator() -> None:
    body = json.dumps({"cluster": ["jobs"], "maxResults": "ten"}).encode()
    headers = CIMultiDict({"X-Amz-Target": "AmazonEC2ContainerServiceV20141113.ListTasks"})

    question = asked(headers, "/", {}, body, ours=OURS)

    assert question is not None
    assert question.request == {"cluster": ["jobs"], "maxResults": "ten"}


@pytest.mark.parametrize("body", [b"{", b"[1]", b'"text"', b"\xff"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    headers = CIMultiDict({"X-Amz-Target": "AmazonEC2ContainerServiceV20141113.ListTasks"})

    with pytest.raises(AwsError, match="SerializationException"):
        asked(headers, "/", {}, body, ours=OURS)


def test_an_operation_that_nobody_knows_keeps_its_name() -> None:
    headers = CIMultiDict({"X-Amz-Target": "AmazonEC2ContainerServiceV20141113.MakeTea"})

    question = asked(headers, "/", {}, b"{}", ours=OURS)

    assert question is not None
    assert (question.operation, question.model) == ("MakeTea", None)


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"X-Amz-Target": "DynamoDB_20120810.ListTables"}, {}),
        ({"Authorization": SIGNED.format("s3")}, {}),
        ({}, {}),
        ({}, {"Action": "GetCallerIdentity", "Version": "2011-06-15"}),
    ],
)
def test_what_is_for_somebody_else_is_not_ours(headers: dict[str, str], query: dict[str, str]) -> None:
    assert asked(CIMultiDict(headers), "/", query, b"", ours=OURS) is None


def test_the_signature_says_who_asks_and_whom() -> None:
    headers = CIMultiDict({"Authorization": SIGNED.format("ecs")})
    query = {"X-Amz-Credential": "AKIAOTHER/20260101/us-east-1/sts/aws4_request"}

    assert (access_key_of(headers, {}), service_of(headers, {})) == ("AKIAEXAMPLE", "ecs")
    assert (access_key_of({}, query), service_of({}, query)) == ("AKIAOTHER", "sts")
    assert (access_key_of({}, {}), service_of({}, {})) == (None, None)


# SQS as older clients speak it (Amazon SQS API Reference, query protocol, version 2012-11-05).

QUEUE = "http://127.0.0.1:4566/111122223333/events"

FORMS = [
    (
        {"Action": "CreateQueue", "QueueName": "events", "Attribute.1.Name": "DelaySeconds", "Attribute.1.Value": "5"}
        | {"Tag.1.Key": "team", "Tag.1.Value": "a&b"},
        {"QueueName": "events", "Attributes": {"DelaySeconds": "5"}, "tags": {"team": "a&b"}},
    ),
    (
        {"Action": "ReceiveMessage", "QueueUrl": QUEUE, "MaxNumberOfMessages": "10", "WaitTimeSeconds": "1"}
        | {"AttributeName.1": "All", "MessageAttributeName.1": "one", "MessageAttributeName.2": "two"},
        {"QueueUrl": QUEUE, "MaxNumberOfMessages": 10, "WaitTimeSeconds": 1}
        | {"AttributeNames": ["All"], "MessageAttributeNames": ["one", "two"]},
    ),
    (
        {"Action": "SendMessage", "QueueUrl": QUEUE, "MessageBody": "hello"}
        | {"MessageAttribute.1.Name": "n", "MessageAttribute.1.Value.DataType": "Binary"}
        | {"MessageAttribute.1.Value.BinaryValue": "AP8="},
        {"QueueUrl": QUEUE, "MessageBody": "hello"}
        | {"MessageAttributes": {"n": {"DataType": "Binary", "BinaryValue": b"\x00\xff"}}},
    ),
    (
        {"Action": "DeleteMessageBatch", "QueueUrl": QUEUE}
        | {f"DeleteMessageBatchRequestEntry.{n}.Id": f"id{n}" for n in range(1, 11)}
        | {f"DeleteMessageBatchRequestEntry.{n}.ReceiptHandle": f"r{n}" for n in range(1, 11)},
        {"QueueUrl": QUEUE, "Entries": [{"Id": f"id{n}", "ReceiptHandle": f"r{n}"} for n in range(1, 11)]},
    ),
    ({"Action": "UntagQueue", "QueueUrl": QUEUE, "TagKey.1": "a"}, {"QueueUrl": QUEUE, "TagKeys": ["a"]}),
    (
        {"Action": "AddPermission", "QueueUrl": QUEUE, "Label": "l", "AWSAccountId.1": "1", "ActionName.1": "*"},
        {"QueueUrl": QUEUE, "Label": "l", "AWSAccountIds": ["1"], "Actions": ["*"]},
    ),
    ({"Action": "ListQueues"}, {}),
]


@pytest.mark.parametrize(("form", "request_"), FORMS, ids=[form["Action"] for form, _ in FORMS])
@pytest.mark.parametrize("where", ["body", "address"])
def test_a_form_for_sqs_is_read(form: dict[str, str], request_: dict[str, Any], where: str) -> None:
    whole = {**form, "Version": "2012-11-05"}
    body, query = (urlencode(whole).encode(), {}) if where == "body" else (b"", whole)

    question = asked(CIMultiDict(FORM if where == "body" else {}), "/", query, body, ours=OURS)

    assert question == Asked(service="sqs", operation=form["Action"], protocol="query", request=request_)


def test_the_address_of_a_request_may_name_the_queue() -> None:
    body = urlencode({"Action": "ReceiveMessage", "Version": "2012-11-05"}).encode()

    question = asked(CIMultiDict(FORM), "/111122223333/events", {}, body, ours=OURS)

    assert question is not None
    assert question.request == {"QueueUrl": "/111122223333/events"}


def test_messages_are_written_as_older_clients_read_them() -> None:
    message: dict[str, Any] = {"MessageId": "m", "ReceiptHandle": "r", "MD5OfBody": "5", "Body": '{"a": "<\x00>"}'}
    message |= {"Attributes": {"SentTimestamp": "1", "SenderId": "s"}}
    question = Asked(service="sqs", operation="ReceiveMessage", protocol="query")

    written = write_reply(question, {"Messages": [message, {"Body": "two"}]}, "request-1")

    assert written.body.decode() == (
        '<?xml version="1.0"?>\n'
        '<ReceiveMessageResponse xmlns="http://queue.amazonaws.com/doc/2012-11-05/"><ReceiveMessageResult>'
        "<Message><MessageId>m</MessageId><ReceiptHandle>r</ReceiptHandle><MD5OfBody>5</MD5OfBody>"
        '<Body>{"a": "&lt;\N{REPLACEMENT CHARACTER}&gt;"}</Body>'
        "<Attribute><Name>SentTimestamp</Name><Value>1</Value></Attribute>"
        "<Attribute><Name>SenderId</Name><Value>s</Value></Attribute></Message>"
        "<Message><Body>two</Body></Message></ReceiveMessageResult>"
        "<ResponseMetadata><RequestId>request-1</RequestId></ResponseMetadata></ReceiveMessageResponse>"
    )


@pytest.mark.parametrize(
    ("operation", "reply", "inside"),
    [
        ("ListQueues", {"QueueUrls": ["a", "b"]}, "<QueueUrl>a</QueueUrl><QueueUrl>b</QueueUrl>"),
        ("ListQueueTags", {"Tags": {"k": "v"}}, "<Tag><Key>k</Key><Value>v</Value></Tag>"),
        ("ListDeadLetterSourceQueues", {"queueUrls": ["a"]}, "<QueueUrl>a</QueueUrl>"),
        (
            "SendMessageBatch",
            {"Successful": [{"Id": "1"}], "Failed": [{"Id": "2", "SenderFault": True}]},
            "<SendMessageBatchResultEntry><Id>1</Id></SendMessageBatchResultEntry>"
            "<BatchResultErrorEntry><Id>2</Id><SenderFault>true</SenderFault></BatchResultErrorEntry>",
        ),
    ],
)
def test_lists_of_sqs_have_their_old_names(operation: str, reply: dict[str, Any], inside: str) -> None:
    written = write_reply(Asked(service="sqs", operation=operation, protocol="query"), reply, "request-1")

    assert f"<{operation}Result>{inside}</{operation}Result>" in written.body.decode()


# Errors.


def test_an_error_carries_its_members() -> None:
    error = AwsError("ConflictException", "another task", resourceIds=["arn:1"])
    question = Asked(service="ecs", operation="RunTask", protocol="json")
    shape = service_model("ecs").shape_for("ConflictException")

    written = write_error(question, error, "request-1")
    got = parsed("ecs", None, written)

    assert written.status == 400
    assert json.loads(written.body) == {
        "__type": "ConflictException",
        "message": "another task",
        "resourceIds": ["arn:1"],
    }
    assert written.headers["x-amzn-ErrorType"] == "ConflictException"
    assert got["Error"] == {"Code": "ConflictException", "Message": "another task"}
    assert parsed("ecs", shape, written)["resourceIds"] == ["arn:1"]
    assert got["ResponseMetadata"]["RequestId"] == "request-1"


@pytest.mark.parametrize("code", ["QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue"])
@pytest.mark.parametrize("protocol", ["json", "query"])
def test_a_queue_that_is_not_there_has_its_old_name_too(code: str, protocol: str) -> None:
    question = Asked(service="sqs", operation="ReceiveMessage", protocol=protocol, version="1.0")

    written = write_error(question, AwsError(code, "no such queue"), "request-1")
    got = create_parser(protocol).parse(
        {"status_code": written.status, "headers": CIMultiDict(written.headers), "body": written.body},
        None,
    )

    assert got["Error"]["Code"] == "AWS.SimpleQueueService.NonExistentQueue"
    assert got["Error"]["Message"] == "no such queue"


@pytest.mark.parametrize("service", ["sts", "ec2"])
def test_an_error_in_xml_is_read_by_botocore(service: str) -> None:
    protocol = service_model(service).metadata["protocol"]
    question = Asked(service=service, operation="Any", protocol=protocol)

    got = parsed(service, None, write_error(question, AwsError("AccessDenied", "a <b>", status=403), "request-1"))

    assert got["Error"]["Code"] == "AccessDenied"
    assert got["Error"]["Message"] == "a <b>"
    assert got["ResponseMetadata"]["RequestId"] == "request-1"
    assert got["ResponseMetadata"]["HTTPStatusCode"] == 403


# Event streams.


def test_the_frames_of_a_stream_are_botocore_s() -> None:
    buffer = EventStreamBuffer()

    buffer.add_data(initial_frame() + event_frame("sessionUpdate", {"sessionResults": []}))
    buffer.add_data(error_frame(AwsError("SessionTimeoutException", "3 hours")))
    first, second, third = [dict[str, Any](message.to_response_dict()) for message in buffer]

    assert first["headers"][":event-type"] == "initial-response"
    assert second["headers"] == {
        ":message-type": "event",
        ":event-type": "sessionUpdate",
        ":content-type": "application/json",
    }
    assert json.loads(second["body"]) == {"sessionResults": []}
    assert (third["status_code"], third["headers"][":exception-type"]) == (400, "SessionTimeoutException")


def test_a_form_keeps_what_urlencode_does_to_it() -> None:
    assert dict(parse_qsl(urlencode({"a": "b c&d=ü"}))) == {"a": "b c&d=ü"}
