"""
What a Lambda function was called for, and a key for it that is the same each time.

Pure: an event goes in, triggers come out. AWS delivers each event at least once, by some ways out of order; a job whose
key is made of what identifies the event is started once, however often it comes. Events that came inside of others (S3
in SNS in SQS) are taken by what is innermost: that is the same whichever message brought it.

Where the shapes are from, autumn 2026: AWS Lambda Developer Guide ("Using Lambda with Amazon SQS" and the pages of the
other services), Amazon S3 User Guide ("Event message structure", "EventBridge event message structure"), EventBridge
User Guide ("AWS service event metadata"), EventBridge Scheduler User Guide, API Gateway Developer Guide ("Working with
AWS Lambda proxy integrations"), AWS Step Functions Developer Guide ("Context object", "Wait for a callback").
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal
from urllib.parse import unquote_plus

import attrs

from fargate_runner._errors import InvalidJob

__all__ = ["S3Object", "Source", "Trigger", "make_key", "plain_event", "triggers_of"]

Source = Literal["sqs", "sns", "s3", "eventbridge", "schedule", "api", "step-functions"]

_LONGEST_KEY: Final = 512
"""Characters of a job's key."""
_LONGEST_IDEMPOTENCY_KEY: Final = 255
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@attrs.frozen(kw_only=True)
class S3Object:
    """The object of an S3 event. ``key`` is its name as S3 knows it: the encoding of notifications is undone."""

    bucket: str
    key: str
    version: str | None = None
    """Of a bucket with versions."""
    size: int | None = None
    """Bytes; S3 does not tell it of what was deleted."""
    etag: str | None = None
    event: str = ""
    """What happened to it, in S3's words: ``ObjectCreated:Put``, or from EventBridge ``Object Created``."""


@attrs.frozen(kw_only=True)
class Trigger:
    """One thing that a function was called for: a message, an object, a moment of a schedule, a request."""

    source: Source
    key: str
    """For `Job.key`: the same for each delivery of the same thing, and another for any other."""
    body: Any = attrs.field(repr=False)
    """What was sent: read as JSON where it is that, else the text. An EventBridge event's is its ``detail``."""
    at: datetime | None = None
    """When it happened, or of a schedule the moment that was due, as AWS tells it."""
    object: S3Object | None = None
    """Of an S3 event."""
    task_token: str | None = attrs.field(default=None, repr=False)
    """Of Step Functions, where a state waits for it to come back."""
    message_id: str | None = None
    """The SQS message that it came in, if it came in one."""
    group: str | None = None
    """Of a FIFO queue: the message group, whose order counts."""
    event: Mapping[str, Any] = attrs.field(repr=False)
    """The innermost event itself, as AWS sent it."""


def make_key(*parts: object) -> str:
    """
    Return a key for a job that is made of *parts*, the same for the same parts: ``make_key("report", day)``.

    It reads like a path. A slash in a part, and what cannot be in a key, is written with ``%``; of what is longer than
    512 characters, the end is replaced by a hash of all of it.

    :raises InvalidJob: there are no parts, or one is no text and no number
    """
    fix = "write it like make_key('report', '2026-11-22')"
    if not parts:
        raise InvalidJob("parts", parts, "there is nothing to make a key of", fix)
    for index, part in enumerate(parts):
        if isinstance(part, bool) or not isinstance(part, (str, int)) or part == "":
            problem = f"expected a str that is not empty, or an int, got {type(part).__name__}"
            raise InvalidJob(f"parts[{index}]", part, problem, fix)
    return _joined([_escaped(str(part)).replace("/", "%2F") for part in parts])


def _joined(parts: Sequence[str]) -> str:
    whole = "/".join(parts)
    if len(whole) <= _LONGEST_KEY:
        return whole
    return f"{whole[: _LONGEST_KEY - 33]}~{hashlib.sha256(whole.encode()).hexdigest()[:32]}"


def _escaped(part: str) -> str:
    return "".join(c if c.isprintable() and c != "%" else _quoted(c) for c in part)


def _quoted(character: str) -> str:
    # JSON may hold half of a surrogate pair, which is no character and has no UTF-8.
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def triggers_of(event: object) -> list[Trigger]:
    """
    Return what *event* holds, in its order: that of a batch of messages has many, most others one.

    *event* is what Lambda hands to a handler, a single one of its records, or an event object of Powertools for AWS
    Lambda. What identifies each, and so makes its key:

    - SQS: queue and message id. A message that somebody redrives from a dead-letter queue is a new one to SQS
    - SNS: topic and message id
    - S3: bucket, key, version and sequencer, by whichever way the event came
    - EventBridge: source and event id; with the name of the replay, if it comes from an archive
    - a schedule (EventBridge's rules or Scheduler): its ARN and the moment that was due
    - API Gateway, function URLs, load balancers: the header ``Idempotency-Key``, for this API, method, path and caller;
      without one the request's id, so that each request is a job of its own
    - Step Functions: execution, state, and when it was entered, if the payload holds the context object
      (``"context.$": "$$"``): then a retry of the state meets the job of the one before. Else the task token

    What S3 sends to test a notification is nothing: an empty list.

    :raises InvalidJob: it is of no source that is known here, or lacks what identifies it; the message names the field
    """
    plain = plain_event(event)
    if isinstance(plain, list):  # EventBridge Pipes hands over the records themselves
        return [trigger for at, record in enumerate(plain) for trigger in _of_record(record, f"event[{at}]")]
    return list(_of(plain, "event"))


def plain_event(event: object) -> Mapping[str, Any] | list[Any]:
    """Return an event as JSON has it. Powertools' objects keep theirs."""
    raw = getattr(event, "raw_event", event)
    if isinstance(raw, Mapping):
        return raw
    if isinstance(raw, Sequence) and not isinstance(raw, (str, bytes)):
        return [getattr(record, "raw_event", record) for record in raw]
    problem = f"expected what Lambda hands to a handler, got {type(event).__name__}"
    raise InvalidJob("event", "(not shown)", problem, "pass the handler's event on as it is")


def _of(event: Mapping[str, Any], where: str) -> Iterator[Trigger]:
    records = event.get("Records")
    if isinstance(records, list):
        for index, record in enumerate(records):
            yield from _of_record(record, f"{where}.Records[{index}]")
    elif _is_s3_test(event):
        return
    elif "eventSource" in event or "EventSource" in event:
        yield from _of_record(event, where)
    elif _is_eventbridge(event):
        yield _of_eventbridge(event, where)
    elif isinstance(event.get("requestContext"), Mapping):
        yield _of_api(event, where)
    elif _is_step(event):
        yield _of_step(event)
    else:
        raise _unknown(where, f"it has {', '.join(map(repr, sorted(map(str, event)))) or 'no fields'}")


def _of_record(record: object, where: str) -> Iterator[Trigger]:
    if not isinstance(record, Mapping):
        raise _unknown(where, f"expected an object, got {type(record).__name__}")
    source = record.get("eventSource", record.get("EventSource"))
    read = _READERS.get(source) if isinstance(source, str) else None
    if read is None:
        raise _unknown(f"{where}.eventSource", f"it is {source!r}")
    yield from read(record, where)


def _unknown(where: str, what: str) -> InvalidJob:
    known = "SQS, SNS, S3, EventBridge, a schedule, API Gateway, a function URL or Step Functions"
    fix = "give its job a key of your own, make_key('report', …) makes one"
    return InvalidJob(where, "(not shown)", f"not an event of {known}: {what}", fix)


# ---- SQS and SNS ---------------------------------------------------------------------------------------------------


def _of_sqs(record: Mapping[str, Any], where: str) -> Iterator[Trigger]:
    message_id, arn = _text(record, "messageId", where), _text(record, "eventSourceARN", where)
    attributes = _mapping(record.get("attributes"))
    queue = arn.rpartition(":")[2]
    # A standard queue may have groups too, which say nothing about order (fair queues, 2025).
    group = str(attributes.get("MessageGroupId", "")) if queue.endswith(".fifo") else None
    sent = attributes.get("SentTimestamp")
    yield from _unwrapped(
        Trigger(
            source="sqs",
            key=make_key("sqs", queue, message_id),
            body=_read(record.get("body")),
            at=_of_milliseconds(sent),
            message_id=message_id,
            group=group,
            event=record,
        )
    )


def _of_sns(record: Mapping[str, Any], where: str) -> Iterator[Trigger]:
    message = record.get("Sns")
    if not isinstance(message, Mapping):
        raise InvalidJob(f"{where}.Sns", "(not shown)", "expected an object", "pass the handler's event on as it is")
    yield from _unwrapped(_of_notification(message, f"{where}.Sns"))


def _of_notification(message: Mapping[str, Any], where: str) -> Trigger:
    topic = _text(message, "TopicArn", where).rpartition(":")[2]
    return Trigger(
        source="sns",
        key=make_key("sns", topic, _text(message, "MessageId", where)),
        body=_read(message.get("Message")),
        at=_moment(message.get("Timestamp")),
        event=message,
    )


def _unwrapped(outer: Trigger) -> Iterator[Trigger]:
    """Yield what a message brings, if that is an event itself; else the message."""
    try:
        inner = _inside(outer.body)
    except InvalidJob:
        inner = None  # it only looked like one: a message of the application's own
    if inner is None:
        yield outer
        return
    for trigger in inner:
        yield attrs.evolve(trigger, message_id=outer.message_id, group=outer.group)


def _inside(body: object) -> list[Trigger] | None:
    if not isinstance(body, Mapping):
        return None
    if body.get("Type") == "Notification" and "TopicArn" in body:  # SNS to SQS, unless raw delivery is on
        return list(_unwrapped(_of_notification(body, "body")))
    if _is_s3_test(body):
        return []
    records = body.get("Records")
    if isinstance(records, list) and records and all(_mapping(one).get("eventSource") == "aws:s3" for one in records):
        return list(_of(body, "body"))
    if _is_eventbridge(body):
        return [_of_eventbridge(body, "body")]
    if _is_step(body):
        return [_of_step(body)]
    return None


# ---- S3 ------------------------------------------------------------------------------------------------------------


def _is_s3_test(event: Mapping[str, Any]) -> bool:
    return event.get("Event") == "s3:TestEvent" and "Bucket" in event


def _of_s3(record: Mapping[str, Any], where: str) -> Iterator[Trigger]:
    s3 = _mapping(record.get("s3"))
    there = _mapping(s3.get("object"))
    found = S3Object(
        bucket=_text(_mapping(s3.get("bucket")), "name", f"{where}.s3.bucket"),
        key=unquote_plus(_text(there, "key", f"{where}.s3.object")),
        version=_or_none(there.get("versionId")),
        size=_whole(there.get("size")),
        etag=_or_none(there.get("eTag")),
        event=str(record.get("eventName", "")).removeprefix("s3:"),
    )
    request = str(_mapping(record.get("responseElements")).get("x-amz-request-id", ""))
    # Only what is put or deleted has a sequencer; the rest is told apart by the request that did it.
    otherwise = f"{found.event}.{record.get('eventTime', '')}.{request}"
    yield Trigger(
        source="s3",
        key=_key_of_object(found, there.get("sequencer"), otherwise),
        body=dict(s3),
        at=_moment(record.get("eventTime")),
        object=found,
        event=record,
    )


def _key_of_object(found: S3Object, sequencer: object, otherwise: str) -> str:
    occasion = str(sequencer) if sequencer else otherwise
    occasion = f"{found.version}.{occasion}" if found.version else occasion
    # An object's name may have slashes. The name of a bucket has none, and what comes last has none: no two are alike.
    return _joined(["s3", _escaped(found.bucket), _escaped(found.key), _escaped(occasion).replace("/", "%2F")])


# ---- EventBridge ---------------------------------------------------------------------------------------------------


def _is_eventbridge(event: Mapping[str, Any]) -> bool:
    return "detail-type" in event and "source" in event


def _of_eventbridge(event: Mapping[str, Any], where: str) -> Trigger:
    source, detail = _text(event, "source", where), event.get("detail")
    if event.get("detail-type") == "Scheduled Event" and source in {"aws.events", "aws.scheduler"}:
        return _of_schedule(event, where)
    if source == "aws.s3" and _mapping(_mapping(detail).get("object")).get("key"):
        return _of_s3_detail(event, where)
    replay = event.get("replay-name")  # whoever replays an archive wants it done again
    return Trigger(
        source="eventbridge",
        key=make_key("eventbridge", source, _text(event, "id", where), *([str(replay)] if replay else [])),
        body=detail,
        at=_moment(event.get("time")),
        event=event,
    )


def _of_schedule(event: Mapping[str, Any], where: str) -> Trigger:
    resources = event.get("resources")
    if not isinstance(resources, list) or not resources or not isinstance(resources[0], str):
        problem = "expected the ARN of the rule or the schedule"
        raise InvalidJob(f"{where}.resources", resources, problem, "pass the handler's event on as it is")
    # Its id does not count: "a rule may be triggered more than once for a single scheduled time" (EventBridge).
    due = _text(event, "time", where)
    return Trigger(
        source="schedule",
        key=_joined(["schedule", _escaped(resources[0]), _escaped(due)]),
        body=_read(event.get("detail")),  # Scheduler's is text
        at=_moment(due),
        event=event,
    )


def _of_s3_detail(event: Mapping[str, Any], where: str) -> Trigger:
    detail = event["detail"]
    there = detail["object"]
    found = S3Object(
        bucket=_text(_mapping(detail.get("bucket")), "name", f"{where}.detail.bucket"),
        key=_text(there, "key", f"{where}.detail.object"),  # plain, other than that of a notification
        version=_or_none(there.get("version-id")),
        size=_whole(there.get("size")),
        etag=_or_none(there.get("etag")),
        event=str(event["detail-type"]),
    )
    return Trigger(
        source="s3",
        key=_key_of_object(found, there.get("sequencer"), f"{found.event}.{_text(event, 'id', where)}"),
        body=detail,
        at=_moment(event.get("time")),
        object=found,
        event=event,
    )


# ---- requests ------------------------------------------------------------------------------------------------------

_CALLERS: Final = (
    ("authorizer", "jwt", "claims", "sub"),
    ("authorizer", "claims", "sub"),
    ("authorizer", "iam", "userArn"),
    ("authorizer", "principalId"),
    ("identity", "userArn"),
    ("identity", "cognitoIdentityId"),
    ("identity", "apiKeyId"),
)
"""Where a request context names its caller: HTTP APIs and function URLs, REST APIs."""


def _of_api(event: Mapping[str, Any], where: str) -> Trigger:
    context = event["requestContext"]
    http, headers = _mapping(context.get("http")), _headers(event)
    api = context.get("apiId") or _mapping(context.get("elb")).get("targetGroupArn") or "api"
    method = http.get("method") or event.get("httpMethod") or context.get("routeKey") or ""
    path = http.get("path") or event.get("path") or ""
    wanted = headers.get("idempotency-key")
    if wanted is not None:
        # The same header from somebody else, guessed or met by chance, or to another path, is another job.
        scope = "\0".join((str(method), str(path), *_caller(context)))
        scope = hashlib.sha256(scope.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        key = make_key("api", str(api), scope, _idempotency_key(wanted, where))
    else:
        # A load balancer gives no id, but a trace to each request.
        request = context.get("requestId") or headers.get("x-amzn-trace-id")
        if not isinstance(request, str) or not request:
            fix = "have callers send the header Idempotency-Key"
            raise InvalidJob(f"{where}.requestContext.requestId", request, "nothing identifies this request", fix)
        key = make_key("api", str(api), request)
    at = context.get("timeEpoch", context.get("requestTimeEpoch"))
    return Trigger(source="api", key=key, body=_request_body(event), at=_of_milliseconds(at), event=event)


def _headers(event: Mapping[str, Any]) -> dict[str, Any]:
    several = {
        name: values[-1]
        for name, values in _mapping(event.get("multiValueHeaders")).items()
        if isinstance(values, list) and values
    }
    return {str(name).lower(): value for name, value in {**several, **_mapping(event.get("headers"))}.items()}


def _idempotency_key(value: object, where: str) -> str:
    if isinstance(value, str) and 1 <= len(value) <= _LONGEST_IDEMPOTENCY_KEY and value.isprintable():
        return value
    problem = f"expected 1 to {_LONGEST_IDEMPOTENCY_KEY} printable characters"
    raise InvalidJob(f"{where}.headers['Idempotency-Key']", value, problem, "answer 400, the caller has to correct it")


def _caller(context: Mapping[str, Any]) -> tuple[str, ...]:
    for names in _CALLERS:
        found: Any = context
        for name in names:
            found = _mapping(found).get(name)
        if isinstance(found, str) and found:
            return (*names, found)
    return ()


def _request_body(event: Mapping[str, Any]) -> Any:
    body = event.get("body")
    if not event.get("isBase64Encoded") or not isinstance(body, str):
        return _read(body)
    sent = base64.b64decode(body)
    try:
        return _read(sent.decode())
    except UnicodeDecodeError:
        return sent


# ---- Step Functions ------------------------------------------------------------------------------------------------

_TOKENS: Final = ("taskToken", "TaskToken", "task_token", "MyTaskToken")
"""What AWS's own examples call ``$$.Task.Token``, and snake case."""


def _context_of(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the context object of Step Functions that a payload is or holds."""
    for candidate in (event, event.get("context"), event.get("Context")):
        context = _mapping(candidate)
        if _mapping(context.get("Execution")).get("Id") and _mapping(context.get("State")).get("Name"):
            return context
    return {}


def _token_of(event: Mapping[str, Any]) -> str | None:
    tokens = (*(event.get(name) for name in _TOKENS), _mapping(_context_of(event).get("Task")).get("Token"))
    return next((token for token in tokens if isinstance(token, str) and token), None)


def _is_step(event: Mapping[str, Any]) -> bool:
    return bool(_token_of(event) or _context_of(event))


def _of_step(event: Mapping[str, Any]) -> Trigger:
    context, token = _context_of(event), _token_of(event)
    entered = None
    if context:
        state = context["State"]
        entered = state.get("EnteredTime")
        item = _mapping(_mapping(context.get("Map")).get("Item")).get("Index")
        marks = [str(mark) for mark in (entered, item) if mark is not None]
        key = make_key("step-functions", str(context["Execution"]["Id"]), str(state["Name"]), *marks)
    else:
        # Whoever holds the token can answer for the state: it is no part of a key that anybody may read.
        key = make_key("step-functions", hashlib.sha256(str(token).encode()).hexdigest()[:32])
    body = next((event[name] for name in ("input", "Input") if name in event), dict(event))
    return Trigger(source="step-functions", key=key, body=body, at=_moment(entered), task_token=token, event=event)


_READERS: Final = {"aws:sqs": _of_sqs, "aws:sns": _of_sns, "aws:s3": _of_s3}


# ---- fields --------------------------------------------------------------------------------------------------------


def _text(fields: Mapping[str, Any], name: str, where: str) -> str:
    value = fields.get(name)
    if isinstance(value, str) and value:
        return value
    fix = "pass the handler's event on as it is; in a test, take one of AWS's examples"
    raise InvalidJob(f"{where}.{name}", value, "expected a text, it identifies the event", fix)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _read(text: object) -> Any:
    """Return what a text says in JSON, or the text."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _moment(text: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found is not None and found.tzinfo is None else found


def _of_milliseconds(value: object) -> datetime | None:
    try:
        return _EPOCH + timedelta(milliseconds=int(value)) if isinstance(value, (str, int)) else None
    except (ValueError, OverflowError):
        return None
