"""
EventBridge and the queues that its rules feed: events come twice, late, in another order, or never.

Nothing runs in the background: an event that is under way is a message that nobody can receive yet.
"""

from __future__ import annotations

import fnmatch
import hashlib
import heapq
import json
import re
import struct
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import count
from random import Random
from typing import Any, ClassVar, Final, NoReturn, TypeAlias

import anyio
import attrs
from attrs import field, validators

from fargate_runner.testing.aws._logs import PageTokens
from fargate_runner.testing.aws._service import AwsError, Clock, Service

__all__ = ["Delivery", "EventsService", "SqsService", "event_pattern"]

_probability = validators.and_(validators.ge(0.0), validators.le(1.0))
_seconds = validators.ge(0.0)

# A timer may fire a rounding error too early; without this a waiting receiver would then spin in virtual time.
_ROUNDING: Final = 1e-6
_EVENTBRIDGE: Final = "AIDAFAKEEVENTBRIDGE00"
"""Who sent what a rule put into a queue: a principal of AWS's own, and nobody of the account."""
_REMEMBERED: Final = 10_000
"""Events that are kept to be looked at: a server may run for weeks."""


@attrs.frozen(kw_only=True)
class Delivery:
    """How EventBridge brings events to its targets: at least once, it says; a test may ask for worse."""

    least: float = field(default=0.1, validator=_seconds)
    """The shortest time in seconds that an event is under way."""

    most: float = field(default=1.0, validator=_seconds)
    """The longest, unless it is late."""

    in_order: bool = True
    """Whether events arrive in their order. If not, each takes the time that it takes."""

    lost: float = field(default=0.0, validator=_probability)
    """How often an event never arrives."""

    duplicated: float = field(default=0.0, validator=_probability)
    """How often an event arrives more than once."""

    copies: int = field(default=2, validator=validators.ge(2))
    """How many times such an event arrives."""

    late: float = field(default=0.0, validator=_probability)
    """How often an event is late, overtaken by others."""

    late_by: float = field(default=300.0, validator=_seconds)
    """By how many seconds at most."""

    rule_delay: float = field(default=0.0, validator=_seconds)
    """How many seconds a new rule needs before it matches; AWS says a short while."""

    queue_policies: bool = False
    """Whether a queue needs a policy that lets EventBridge send to it, as at AWS; without one, events vanish."""

    def __attrs_post_init__(self) -> None:
        if self.most < self.least:
            raise ValueError(f"most must not be below least, got least={self.least} and most={self.most}")


# Event patterns.

_MISSING: Final = object()
_Test: TypeAlias = Callable[[Any], bool]


def event_pattern(text: str) -> Callable[[Mapping[str, Any]], bool]:
    """
    Read an event pattern.

    :raises AwsError: no pattern, or one with a comparison that the fake does not read
    """
    try:
        pattern = json.loads(text)
    except ValueError as exc:
        raise _bad_pattern(f"Filter is not valid JSON: {exc}") from exc
    if not isinstance(pattern, dict):
        raise _bad_pattern("Filter is not an object")
    if not pattern:
        raise _bad_pattern("Empty objects are not allowed")
    return _object_test(pattern)


def _bad_pattern(reason: str) -> AwsError:
    return AwsError("InvalidEventPatternException", f"Event pattern is not valid. Reason: {reason}")


def _object_test(pattern: dict[str, Any]) -> _Test:
    tests: list[_Test] = []
    for key, wanted in pattern.items():
        if key == "$or" and isinstance(wanted, list):
            tests.append(_or_test(wanted))
        elif isinstance(wanted, dict):
            if not wanted:
                raise _bad_pattern(f"Empty objects are not allowed at {key!r}")
            tests.append(_member_test(key, _nested_test(_object_test(wanted))))
        elif isinstance(wanted, list):
            if not wanted:
                raise _bad_pattern(f"Empty arrays are not allowed at {key!r}")
            tests.append(_member_test(key, _any_test([_value_test(value) for value in wanted])))
        else:
            raise _bad_pattern(f"{key!r} must be an object or an array")
    return lambda event: all(holds(event) for holds in tests)


def _or_test(alternatives: list[Any]) -> _Test:
    if len(alternatives) < 2 or not all(isinstance(alternative, dict) and alternative for alternative in alternatives):
        raise _bad_pattern("'$or' must be an array of at least two objects")
    tests = [_object_test(alternative) for alternative in alternatives]
    return lambda event: any(holds(event) for holds in tests)


def _member_test(key: str, test: _Test) -> _Test:
    return lambda event: test(event.get(key, _MISSING) if isinstance(event, dict) else _MISSING)


def _nested_test(test: _Test) -> _Test:
    """Of a list of objects, one has to match."""
    return lambda value: any(test(item) for item in value) if isinstance(value, list) and value else test(value)


def _any_test(tests: list[_Test]) -> _Test:
    """Of a list of values, one has to match one of the tests."""

    def holds(value: Any) -> bool:
        values = value if isinstance(value, list) and value else [value]
        return any(test(item) for item in values for test in tests)

    return holds


def _value_test(wanted: Any) -> _Test:
    if isinstance(wanted, dict):
        if len(wanted) != 1:
            raise _bad_pattern("Only one key allowed in match expression")
        [(kind, operand)] = wanted.items()
        if kind not in _COMPARISONS:
            raise _bad_pattern(f"Unrecognized match type {kind} (the fake AWS reads {', '.join(sorted(_COMPARISONS))})")
        return _COMPARISONS[kind](operand)
    if isinstance(wanted, list):
        raise _bad_pattern("Match value must be String, number, true, false, or null")
    return lambda value: _same(value, wanted)


def _same(value: Any, wanted: Any) -> bool:
    return value == wanted and (type(value) is type(wanted) or (_is_number(value) and _is_number(wanted)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(operand: Any, kind: str) -> str:
    if not isinstance(operand, str):
        raise _bad_pattern(f"{kind} match pattern must be a string")
    return operand


def _prefix(operand: Any) -> _Test:
    if isinstance(operand, dict):
        start = _text(operand.get("equals-ignore-case"), "prefix").lower()
        return lambda value: isinstance(value, str) and value.lower().startswith(start)
    start = _text(operand, "prefix")
    return lambda value: isinstance(value, str) and value.startswith(start)


def _suffix(operand: Any) -> _Test:
    if isinstance(operand, dict):
        end = _text(operand.get("equals-ignore-case"), "suffix").lower()
        return lambda value: isinstance(value, str) and value.lower().endswith(end)
    end = _text(operand, "suffix")
    return lambda value: isinstance(value, str) and value.endswith(end)


def _ignore_case(operand: Any) -> _Test:
    wanted = _text(operand, "equals-ignore-case").lower()
    return lambda value: isinstance(value, str) and value.lower() == wanted


def _wildcard(operand: Any) -> _Test:
    text = _text(operand, "wildcard")
    if "**" in text:
        raise _bad_pattern("Consecutive wildcard characters are not allowed")
    shape = re.compile(".*".join(re.escape(part) for part in text.split("*")), re.DOTALL)
    return lambda value: isinstance(value, str) and shape.fullmatch(value) is not None


def _exists(operand: Any) -> _Test:
    if not isinstance(operand, bool):
        raise _bad_pattern("exists match pattern must be either true or false.")
    # Only leaves exist: of an object one cannot ask.
    if operand:
        return lambda value: value is not _MISSING and not isinstance(value, dict)
    return lambda value: value is _MISSING


def _numeric(operand: Any) -> _Test:
    if not isinstance(operand, list) or len(operand) not in {2, 4}:
        raise _bad_pattern("Value of numeric must be an array of one or two comparisons")
    pairs = [(operand[index], operand[index + 1]) for index in range(0, len(operand), 2)]
    if not all(sign in _NUMERIC and _is_number(number) for sign, number in pairs):
        raise _bad_pattern(f"Unrecognized numeric range operator in {operand}")
    return lambda value: _is_number(value) and all(_NUMERIC[sign](value, number) for sign, number in pairs)


def _anything_but(operand: Any) -> _Test:
    if isinstance(operand, dict):
        if len(operand) != 1 or next(iter(operand)) not in _BUT_NOT:
            raise _bad_pattern(f"Unsupported anything-but pattern: {operand}")
        [(kind, value)] = operand.items()
        tests = [_COMPARISONS[kind](item) for item in (value if isinstance(value, list) else [value])]
    else:
        items = operand if isinstance(operand, list) else [operand]
        if not items or not all(isinstance(item, str) or _is_number(item) for item in items):
            raise _bad_pattern("Inside anything but list, start|null|boolean is not supported.")
        tests = [_value_test(item) for item in items]
    return lambda value: (
        value is not _MISSING and not isinstance(value, dict) and not any(test(value) for test in tests)
    )


_COMPARISONS: Final[Mapping[str, Callable[[Any], _Test]]] = {
    "anything-but": _anything_but,
    "equals-ignore-case": _ignore_case,
    "exists": _exists,
    "numeric": _numeric,
    "prefix": _prefix,
    "suffix": _suffix,
    "wildcard": _wildcard,
}
_BUT_NOT: Final = frozenset({"equals-ignore-case", "prefix", "suffix", "wildcard"})
_NUMERIC: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "=": lambda value, number: value == number,
    ">": lambda value, number: value > number,
    "<": lambda value, number: value < number,
    ">=": lambda value, number: value >= number,
    "<=": lambda value, number: value <= number,
}


# Queues.


@attrs.define(kw_only=True, eq=False)
class _Message:
    number: int
    id: str
    body: str
    sent: float
    visible_at: float
    attributes: Mapping[str, Any]
    sender: str
    group: str | None = None
    deduplication: str | None = None
    received: int = 0
    first_received: float | None = None
    receipt: str = ""
    gone: bool = False


class _Queue:
    def __init__(self, name: str, attributes: Mapping[str, str], *, tags: Mapping[str, str], now: float) -> None:
        self.name = name
        self.attributes = dict(attributes)
        self.tags = dict(tags)
        self.created = self.modified = now
        self.purged = float("-inf")
        self.messages: dict[int, _Message] = {}
        self.by_receipt: dict[str, _Message] = {}
        self.soon: list[tuple[float, int]] = []  # an entry is stale if its message moved on
        self.recent: dict[str, tuple[float, str]] = {}  # deduplication id: when, message id
        self.changed = anyio.Event()

    @property
    def fifo(self) -> bool:
        return self.name.endswith(".fifo")

    def number(self, attribute: str) -> int:
        return int(self.attributes.get(attribute, _ATTRIBUTES[attribute][0]))

    def add(self, message: _Message) -> None:
        self.messages[message.number] = message
        self.show(message, message.visible_at)

    def show(self, message: _Message, at: float) -> None:
        message.visible_at = at
        heapq.heappush(self.soon, (at, message.number))
        changed, self.changed = self.changed, anyio.Event()
        changed.set()

    def remove(self, message: _Message) -> None:
        message.gone = True
        self.messages.pop(message.number, None)

    def next(self, now: float, taken: Collection[_Message]) -> _Message | None:
        """Return the message whose turn it is, when *taken* are the caller's already."""
        if self.fifo:
            return self._next_in_order(now, taken)
        while self.soon:
            at, number = self.soon[0]
            if not self._stale(at, number):
                return self.messages[number] if at <= now + _ROUNDING else None
            heapq.heappop(self.soon)
        return None

    def _next_in_order(self, now: float, taken: Collection[_Message]) -> _Message | None:
        blocked: set[str | None] = set()
        for message in self.messages.values():
            if message in taken or message.group in blocked:
                continue
            if message.visible_at <= now + _ROUNDING:
                return message
            blocked.add(message.group)
        return None

    def next_at(self, now: float) -> float:
        """Return when the next of the messages that are hidden now will be visible."""
        if self.fifo:
            later = (message.visible_at for message in self.messages.values() if message.visible_at > now + _ROUNDING)
            return min(later, default=float("inf"))
        while self.soon and self._stale(*self.soon[0]):
            heapq.heappop(self.soon)
        return self.soon[0][0] if self.soon else float("inf")

    def _stale(self, at: float, number: int) -> bool:
        message = self.messages.get(number)
        return message is None or message.visible_at != at


# The default, the least and the greatest value.
_ATTRIBUTES: Final[Mapping[str, tuple[int, int, int]]] = {
    "DelaySeconds": (0, 0, 900),
    "MaximumMessageSize": (1_048_576, 1024, 1_048_576),
    "MessageRetentionPeriod": (345_600, 60, 1_209_600),
    "ReceiveMessageWaitTimeSeconds": (0, 0, 20),
    "VisibilityTimeout": (30, 0, 43_200),
}
_OTHER_ATTRIBUTES: Final = frozenset({
    "ContentBasedDeduplication",
    "DeduplicationScope",
    "FifoQueue",
    "FifoThroughputLimit",
    "KmsDataKeyReusePeriodSeconds",
    "KmsMasterKeyId",
    "Policy",
    "RedriveAllowPolicy",
    "RedrivePolicy",
    "SqsManagedSseEnabled",
})  # fmt: skip
_READ_ONLY: Final = frozenset({
    "All",
    "ApproximateNumberOfMessages",
    "ApproximateNumberOfMessagesDelayed",
    "ApproximateNumberOfMessagesNotVisible",
    "CreatedTimestamp",
    "LastModifiedTimestamp",
    "QueueArn",
})  # fmt: skip


class SqsService(Service):
    """SQS. *url_prefix* is what queue URLs start with; any URL that ends in account and name is understood."""

    name: ClassVar[str] = "sqs"

    def __init__(
        self,
        clock: Clock,
        *,
        region: str = "us-east-1",
        account: str = "111122223333",
        seed: int = 0,
        url_prefix: str | None = None,
    ) -> None:
        self.region = region
        self.account = account
        self.url_prefix = url_prefix or f"https://sqs.{region}.amazonaws.com"
        self._clock = clock
        self._random = Random(f"{seed}/sqs")  # noqa: S311 (repeatable, not secret)
        self._queues: dict[str, _Queue] = {}
        self._numbers = count(1)
        self._tokens = PageTokens(
            clock, seed=f"{seed}/sqs", code="InvalidParameterValue", message="Invalid or expired next token."
        )

    # For EventBridge, and for tests.

    def deliver(
        self, arn: str, body: str, *, delay: float = 0.0, group: str | None = None, sender: str | None = None
    ) -> bool:
        """
        Put a message into the queue of an ARN after *delay* seconds; tell whether there is such a queue.

        :param sender: the ARN of the rule, if the queue's policy has to allow it
        """
        name = arn.rpartition(":")[2]
        queue = self._queues.get(name)
        if queue is None or arn != self._arn(queue):
            return False
        if sender is not None and not _allows(queue.attributes.get("Policy", ""), arn, sender):
            return False
        if queue.fifo and (group is None or queue.attributes.get("ContentBasedDeduplication") != "true"):
            return False
        deduplication = _sha(body) if queue.fifo else None
        self._send(queue, body, delay=delay, group=group, deduplication=deduplication, by=_EVENTBRIDGE)
        return True

    # Queues.

    async def create_queue(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name, attributes = request["QueueName"], dict(request.get("Attributes", {}))
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,75}\.fifo|[A-Za-z0-9_-]{1,80}", name):
            raise _wrong_value("Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length")
        if name.endswith(".fifo") != (attributes.get("FifoQueue") == "true"):
            raise _wrong_value("The name of a FIFO queue can only include alphanumeric characters, hyphens, or "
                               "underscores, must end with .fifo suffix and be 1 to 80 in length")  # fmt: skip
        self._check_attributes(attributes)
        old = self._queues.get(name)
        if old is None:
            tags = request.get("tags", {})
            self._queues[name] = _Queue(name, attributes, tags=tags, now=self._utc())
        else:
            for key, value in attributes.items():
                if self._attribute(old, key) != value:
                    raise AwsError(
                        "QueueNameExists",
                        f"A queue already exists with the same name and a different value for attribute {key}",
                    )
        return {"QueueUrl": self._url(name)}

    async def get_queue_url(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if request["QueueName"] not in self._queues:
            _no_queue()
        return {"QueueUrl": self._url(request["QueueName"])}

    async def list_queues(self, request: Mapping[str, Any]) -> dict[str, Any]:
        prefix = request.get("QueueNamePrefix", "")
        names = sorted(name for name in self._queues if name.startswith(prefix))
        page, token = self._tokens.page(
            ("queues", prefix), names, token=request.get("NextToken"), limit=request.get("MaxResults", 1000)
        )
        reply: dict[str, Any] = {"QueueUrls": [self._url(name) for name in page]} if page else {}
        # Without MaxResults there is no second page.
        return reply | ({"NextToken": token} if token and "MaxResults" in request else {})

    async def delete_queue(self, request: Mapping[str, Any]) -> dict[str, Any]:
        queue = self._queue(request)
        del self._queues[queue.name]
        queue.messages.clear()
        queue.changed.set()
        return {}

    async def purge_queue(self, request: Mapping[str, Any]) -> dict[str, Any]:
        queue = self._queue(request)
        if self._clock.time() - queue.purged < 60:
            raise AwsError(
                "PurgeQueueInProgress", f"Only one PurgeQueue operation on {queue.name} is allowed every 60 seconds."
            )
        queue.purged = self._clock.time()
        for message in list(queue.messages.values()):
            queue.remove(message)
        return {}

    async def get_queue_attributes(self, request: Mapping[str, Any]) -> dict[str, Any]:
        queue = self._queue(request)
        asked = set(request.get("AttributeNames", ()))
        known = {*_ATTRIBUTES, *_OTHER_ATTRIBUTES, *_READ_ONLY}
        if unknown := sorted(asked - known):
            raise AwsError("InvalidAttributeName", f"Unknown Attribute {unknown[0]}.")
        wanted = known if "All" in asked else asked
        values = {name: self._attribute(queue, name) for name in sorted(wanted)}
        found = {name: value for name, value in values.items() if value is not None}
        return {"Attributes": found} if found else {}

    async def set_queue_attributes(self, request: Mapping[str, Any]) -> dict[str, Any]:
        queue = self._queue(request)
        self._check_attributes(request["Attributes"])
        for name, value in request["Attributes"].items():
            if value == "" and name in {"Policy", "RedrivePolicy", "RedriveAllowPolicy", "KmsMasterKeyId"}:
                queue.attributes.pop(name, None)
            else:
                queue.attributes[name] = value
        queue.modified = self._utc()
        return {}

    async def tag_queue(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._queue(request).tags.update(request["Tags"])
        return {}

    async def untag_queue(self, request: Mapping[str, Any]) -> dict[str, Any]:
        tags = self._queue(request).tags
        for key in request["TagKeys"]:
            tags.pop(key, None)
        return {}

    async def list_queue_tags(self, request: Mapping[str, Any]) -> dict[str, Any]:
        tags = self._queue(request).tags
        return {"Tags": dict(tags)} if tags else {}

    # Messages.

    async def send_message(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return self._send_entry(self._queue(request), request)

    async def send_message_batch(self, request: Mapping[str, Any]) -> dict[str, Any]:
        queue = self._queue(request)
        total = sum(len(entry["MessageBody"].encode()) for entry in request["Entries"])
        if total > 1_048_576:
            raise AwsError(
                "BatchRequestTooLong",
                f"Batch requests cannot be longer than 1048576 bytes. You have sent {total} bytes.",
            )
        return _batch("SendMessageBatch", request["Entries"], lambda entry: self._send_entry(queue, entry))

    async def receive_message(self, request: Mapping[str, Any]) -> dict[str, Any]:
        queue = self._queue(request)
        most = _between(request.get("MaxNumberOfMessages", 1), "MaxNumberOfMessages", 1, 10)
        wait = _between(
            request.get("WaitTimeSeconds", queue.number("ReceiveMessageWaitTimeSeconds")), "WaitTimeSeconds", 0, 20
        )
        hidden = _between(
            request.get("VisibilityTimeout", queue.number("VisibilityTimeout")), "VisibilityTimeout", 0, 43_200
        )
        until = self._clock.time() + wait
        while True:
            if self._queues.get(queue.name) is not queue:
                _no_queue()
            # From here on nothing awaits: whoever is cancelled while waiting has taken nothing.
            taken = self._take(queue, most, hidden)
            now = self._clock.time()
            if taken or now >= until - _ROUNDING:
                break
            with anyio.move_on_after(min(until, queue.next_at(now)) - now):
                await queue.changed.wait()
        return {"Messages": [self._received(queue, message, request) for message in taken]} if taken else {}

    async def delete_message(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return self._delete_entry(self._queue(request), request)

    async def delete_message_batch(self, request: Mapping[str, Any]) -> dict[str, Any]:
        queue = self._queue(request)
        return _batch("DeleteMessageBatch", request["Entries"], lambda entry: self._delete_entry(queue, entry))

    async def change_message_visibility(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return self._change_entry(self._queue(request), request)

    async def change_message_visibility_batch(self, request: Mapping[str, Any]) -> dict[str, Any]:
        queue = self._queue(request)
        return _batch(
            "ChangeMessageVisibilityBatch", request["Entries"], lambda entry: self._change_entry(queue, entry)
        )

    def _send_entry(self, queue: _Queue, entry: Mapping[str, Any]) -> dict[str, Any]:
        body = entry["MessageBody"]
        if not body:
            raise AwsError("MissingParameter", "The request must contain the parameter MessageBody.")
        if len(body.encode()) > (most := queue.number("MaximumMessageSize")):
            raise _wrong_value(
                f"One or more parameters are invalid. Reason: Message must be shorter than {most} bytes."
            )
        attributes = entry.get("MessageAttributes", {})
        if len(attributes) > 10:
            raise _wrong_value(f"Number of message attributes [{len(attributes)}] exceeds the allowed maximum [10].")
        delay = _between(entry.get("DelaySeconds", queue.number("DelaySeconds")), "DelaySeconds", 0, 900)
        group, deduplication = entry.get("MessageGroupId"), entry.get("MessageDeduplicationId")
        if queue.fifo:
            if group is None:
                raise AwsError("MissingParameter", "The request must contain the parameter MessageGroupId.")
            if deduplication is None and queue.attributes.get("ContentBasedDeduplication") != "true":
                raise _wrong_value(
                    "The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId "
                    "provided explicitly"
                )
            deduplication = deduplication or _sha(body)
        message_id, number = self._send(
            queue, body, delay=delay, attributes=attributes, group=group, deduplication=deduplication
        )
        reply = {"MD5OfMessageBody": _md5(body), "MessageId": message_id}
        if attributes:
            reply["MD5OfMessageAttributes"] = _md5_of_attributes(attributes)
        if queue.fifo:
            reply["SequenceNumber"] = f"{number:020d}"
        return reply

    def _send(
        self,
        queue: _Queue,
        body: str,
        *,
        delay: float = 0.0,
        attributes: Mapping[str, Any] | None = None,
        group: str | None = None,
        deduplication: str | None = None,
        by: str | None = None,
    ) -> tuple[str, int]:
        now, number = self._clock.time(), next(self._numbers)
        if queue.fifo and deduplication is not None:
            queue.recent = {key: value for key, value in queue.recent.items() if now - value[0] < 300}
            if deduplication in queue.recent:
                return queue.recent[deduplication][1], number
        message_id = _uuid(self._random)
        if queue.fifo and deduplication is not None:
            queue.recent[deduplication] = (now, message_id)
        queue.add(
            _Message(
                number=number,
                id=message_id,
                body=body,
                sent=self._utc(),
                visible_at=now + delay,
                attributes=attributes or {},
                sender=by or self.account,
                group=group,
                deduplication=deduplication,
            )
        )
        return message_id, number

    def _take(self, queue: _Queue, most: int, hidden: float) -> list[_Message]:
        now, utc = self._clock.time(), self._utc()
        dead_letters, tries = self._redrive(queue)
        oldest = utc - queue.number("MessageRetentionPeriod")
        taken: list[_Message] = []
        while len(taken) < most and (message := queue.next(now, taken)) is not None:
            if message.sent < oldest:
                queue.remove(message)
            elif dead_letters is not None and message.received >= tries:
                queue.remove(message)
                moved = attrs.evolve(message, gone=False, receipt="", visible_at=now)
                dead_letters.add(moved)
            else:
                message.received += 1
                message.first_received = message.first_received or utc
                message.receipt = b64encode(f"{message.id} {message.received} {next(self._numbers)}".encode()).decode()
                queue.by_receipt[message.receipt] = message
                message.visible_at = float("inf")
                taken.append(message)
        # Only now, because one that stays visible (a timeout of 0) is not taken twice by one call.
        for message in taken:
            queue.show(message, now + hidden)
        return taken

    def _redrive(self, queue: _Queue) -> tuple[_Queue | None, int]:
        policy = json.loads(queue.attributes.get("RedrivePolicy") or "{}")
        target = self._queues.get(str(policy.get("deadLetterTargetArn", "")).rpartition(":")[2])
        return target, int(policy.get("maxReceiveCount", 0))

    def _received(self, queue: _Queue, message: _Message, request: Mapping[str, Any]) -> dict[str, Any]:
        reply: dict[str, Any] = {
            "MessageId": message.id,
            "ReceiptHandle": message.receipt,
            "MD5OfBody": _md5(message.body),
            "Body": message.body,
        }
        values: dict[str, str] = {
            "SenderId": message.sender,
            "SentTimestamp": str(round(message.sent * 1000)),
            "ApproximateReceiveCount": str(message.received),
            "ApproximateFirstReceiveTimestamp": str(round((message.first_received or 0) * 1000)),
        }
        if queue.fifo:
            values |= {
                "MessageGroupId": message.group or "",
                "MessageDeduplicationId": message.deduplication or "",
                "SequenceNumber": f"{message.number:020d}",
            }
        asked = {*request.get("AttributeNames", ()), *request.get("MessageSystemAttributeNames", ())}
        if chosen := {name: value for name, value in values.items() if name in asked or "All" in asked}:
            reply["Attributes"] = chosen
        names = request.get("MessageAttributeNames", ())
        if attributes := {name: value for name, value in message.attributes.items() if _is_named(name, names)}:
            reply["MessageAttributes"] = attributes
            reply["MD5OfMessageAttributes"] = _md5_of_attributes(attributes)
        return reply

    def _delete_entry(self, queue: _Queue, entry: Mapping[str, Any]) -> dict[str, Any]:
        message = self._by_receipt(queue, entry["ReceiptHandle"])
        # A handle of an earlier receive is accepted and deletes nothing: the message is somebody else's now.
        if message.receipt == entry["ReceiptHandle"]:
            queue.remove(message)
        return {}

    def _change_entry(self, queue: _Queue, entry: Mapping[str, Any]) -> dict[str, Any]:
        message = self._by_receipt(queue, entry["ReceiptHandle"])
        seconds = _between(entry.get("VisibilityTimeout", 30), "VisibilityTimeout", 0, 43_200)
        now = self._clock.time()
        if message.gone or message.receipt != entry["ReceiptHandle"] or message.visible_at <= now:
            raise _wrong_value(
                f"Value {entry['ReceiptHandle']} for parameter ReceiptHandle is invalid. Reason: Message does not "
                "exist or is not available for visibility timeout change."
            )
        queue.show(message, now + seconds)
        return {}

    def _by_receipt(self, queue: _Queue, handle: str) -> _Message:
        message = queue.by_receipt.get(handle)
        if message is None:
            raise AwsError(
                "ReceiptHandleIsInvalid", f'The input receipt handle "{handle}" is not a valid receipt handle.'
            )
        return message

    def _utc(self) -> float:
        return self._clock.utcnow().timestamp()

    def _url(self, name: str) -> str:
        return f"{self.url_prefix.rstrip('/')}/{self.account}/{name}"

    def _arn(self, queue: _Queue) -> str:
        return f"arn:aws:sqs:{self.region}:{self.account}:{queue.name}"

    def _queue(self, request: Mapping[str, Any]) -> _Queue:
        url: str = request["QueueUrl"].rstrip("/")
        rest, _, name = url.rpartition("/")
        account = rest.rpartition("/")[2]
        queue = self._queues.get(name)
        if queue is None or account != self.account:
            _no_queue()
        return queue

    def _attribute(self, queue: _Queue, name: str) -> str | None:
        if name in _ATTRIBUTES:
            return str(queue.number(name))
        if name in queue.attributes:
            return queue.attributes[name]
        now = self._clock.time()
        messages = queue.messages.values()
        visible = sum(message.visible_at <= now for message in messages)
        delayed = sum(message.visible_at > now and not message.received for message in messages)
        values = {
            "ApproximateNumberOfMessages": visible,
            "ApproximateNumberOfMessagesDelayed": delayed,
            "ApproximateNumberOfMessagesNotVisible": len(messages) - visible - delayed,
            "CreatedTimestamp": int(queue.created),
            "LastModifiedTimestamp": int(queue.modified),
            "QueueArn": self._arn(queue),
            "SqsManagedSseEnabled": "true",
        }
        return str(values[name]) if name in values else None

    def _check_attributes(self, attributes: Mapping[str, str]) -> None:
        for name, value in attributes.items():
            if name not in _ATTRIBUTES and name not in _OTHER_ATTRIBUTES:
                raise AwsError("InvalidAttributeName", f"Unknown Attribute {name}.")
            if name in _ATTRIBUTES:
                _, least, greatest = _ATTRIBUTES[name]
                if not value.isdigit() or not least <= int(value) <= greatest:
                    raise _wrong_attribute(name)
            elif name in {"Policy", "RedrivePolicy"} and value:
                self._check_policy(name, value)

    def _check_policy(self, name: str, value: str) -> None:
        try:
            policy = json.loads(value)
        except ValueError:
            raise _wrong_attribute(name) from None
        if not isinstance(policy, dict):
            raise _wrong_attribute(name)
        if name == "RedrivePolicy":
            target = str(policy.get("deadLetterTargetArn", "")).rpartition(":")[2]
            tries = str(policy.get("maxReceiveCount", ""))
            if target not in self._queues or not tries.isdigit() or not 1 <= int(tries) <= 1000:
                raise _wrong_attribute(name)


def _no_queue() -> NoReturn:
    raise AwsError("QueueDoesNotExist", "The specified queue does not exist.")


def _wrong_value(message: str) -> AwsError:
    return AwsError("InvalidParameterValue", message)


def _wrong_attribute(name: str) -> AwsError:
    return AwsError("InvalidAttributeValue", f"Invalid value for the parameter {name}.")


def _between(value: int, name: str, least: int, most: int) -> int:
    if not least <= value <= most:
        raise _wrong_value(
            f"Value {value} for parameter {name} is invalid. Reason: Must be between {least} and {most}, if provided."
        )
    return value


def _batch(
    verb: str, entries: Sequence[Mapping[str, Any]], do: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """Do each entry on its own: what one of them fails of is told beside it."""
    if not entries:
        raise AwsError("EmptyBatchRequest", f"There should be at least one {verb}RequestEntry in the request.")
    if len(entries) > 10:
        raise AwsError(
            "TooManyEntriesInBatchRequest",
            f"Maximum number of entries per request are 10. You have sent {len(entries)}.",
        )
    seen: set[str] = set()
    for entry in entries:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", entry["Id"]):
            raise AwsError(
                "InvalidBatchEntryId",
                "A batch entry id can only contain alphanumeric characters, hyphens and underscores. It can be at "
                "most 80 letters long.",
            )
        if entry["Id"] in seen:
            raise AwsError("BatchEntryIdsNotDistinct", f"Id {entry['Id']} repeated.")
        seen.add(entry["Id"])
    done: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    for entry in entries:
        try:
            done.append({"Id": entry["Id"], **do(entry)})
        except AwsError as exc:
            failed.append({"Id": entry["Id"], "SenderFault": True, "Code": exc.code, "Message": exc.message})
    return {"Successful": done, "Failed": failed}


def _is_named(name: str, asked: Iterable[str]) -> bool:
    return any(
        pattern == name or pattern in {"All", ".*"} or (pattern.endswith(".*") and name.startswith(pattern[:-2]))
        for pattern in asked
    )


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _md5_of_attributes(attributes: Mapping[str, Any]) -> str:
    """Hash as clients do who check it: length and bytes of name, type and value, sorted by name."""
    digest = hashlib.md5(usedforsecurity=False)
    for name, value in sorted(attributes.items()):
        binary = "BinaryValue" in value
        raw: bytes = value["BinaryValue"] if binary else value["StringValue"].encode()
        for part in (name.encode(), value["DataType"].encode()):
            digest.update(struct.pack("!I", len(part)) + part)
        digest.update(struct.pack("!BI", 2 if binary else 1, len(raw)) + raw)
    return digest.hexdigest()


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _uuid(random: Random) -> str:
    digits = f"{random.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def _many(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _allows(policy: str, queue: str, rule: str) -> bool:
    """Tell whether a queue's policy lets a rule send. Conditions on anything but the rule's ARN are taken as met."""
    for statement in _many(json.loads(policy or "{}").get("Statement", [])):
        principal = statement.get("Principal")
        services = _many(principal.get("Service", [])) if isinstance(principal, dict) else [principal]
        actions = {str(action).lower() for action in _many(statement.get("Action", []))}
        sources = [
            pattern
            for condition in statement.get("Condition", {}).values()
            for key, value in condition.items()
            if key.lower() == "aws:sourcearn"
            for pattern in _many(value)
        ]
        if (
            statement.get("Effect") == "Allow"
            and {"events.amazonaws.com", "*"} & set(services)
            and {"sqs:sendmessage", "sqs:*", "*"} & actions
            and any(fnmatch.fnmatchcase(queue, pattern) for pattern in _many(statement.get("Resource", [])))
            and (not sources or any(fnmatch.fnmatchcase(rule, pattern) for pattern in sources))
        ):
            return True
    return False


# Rules.


@attrs.define(kw_only=True)
class _Rule:
    name: str
    arn: str
    pattern: str
    matches: Callable[[Mapping[str, Any]], bool]
    enabled: bool
    description: str | None
    role: str | None
    tags: dict[str, str]
    effective: float
    targets: dict[str, dict[str, Any]]
    deliveries: dict[str, float]  # target id: when the last one arrives


class EventsService(Service):
    """EventBridge: the default bus, rules with patterns, SQS queues as targets."""

    name: ClassVar[str] = "events"

    def __init__(
        self,
        clock: Clock,
        *,
        region: str = "us-east-1",
        account: str = "111122223333",
        seed: int = 0,
        sqs: SqsService | None = None,
        delivery: Delivery | None = None,
    ) -> None:
        self.region = region
        self.account = account
        self.delivery = delivery or Delivery()
        self.emitted: deque[dict[str, Any]] = deque(maxlen=_REMEMBERED)
        """The last ten thousand events that were on the bus, in order."""

        self._clock = clock
        self._sqs = sqs
        self._random = Random(f"{seed}/events")  # noqa: S311 (repeatable, not secret)
        self._rules: dict[str, _Rule] = {}
        self._tokens = PageTokens(
            clock, seed=f"{seed}/events", code="ValidationException", message="The next token is not valid."
        )

    def emit(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """
        Put an event on the bus, as AWS's own services do, and return it as its targets see it.

        What each event has is filled in if it is missing: version, id, time, account, region, resources.
        """
        complete: dict[str, Any] = {
            "version": "0",
            "id": _uuid(self._random),
            "account": self.account,
            "time": self._clock.utcnow().strftime("%Y-%m-%dT%H:%M:%SZ"),
            "region": self.region,
            "resources": [],
            **event,
        }
        self.emitted.append(complete)
        now = self._clock.time()
        for rule in self._rules.values():
            if rule.enabled and rule.effective <= now and rule.matches(complete):
                for target in rule.targets.values():
                    self._bring(complete, rule, target)
        return complete

    def _bring(self, event: dict[str, Any], rule: _Rule, target: dict[str, Any]) -> None:
        # The dice are thrown the same number of times whatever they say, so that one knob does not turn the others.
        random, how = self._random, self.delivery
        lost, twice, late = random.random(), random.random(), random.random()
        if lost < how.lost:
            return
        now = self._clock.time()
        for _ in range(how.copies if twice < how.duplicated else 1):
            at = now + random.uniform(how.least, how.most)
            if late < how.late:
                at += random.uniform(0, how.late_by)
            elif how.in_order:
                at = rule.deliveries[target["Id"]] = max(at, rule.deliveries.get(target["Id"], 0.0))
            self._send(event, rule, target, at - now)

    def _send(self, event: dict[str, Any], rule: _Rule, target: dict[str, Any], delay: float) -> None:
        if self._sqs is None:
            return
        group = target.get("SqsParameters", {}).get("MessageGroupId")
        sender = rule.arn if self.delivery.queue_policies else None
        body = _body(event, rule, target)
        if self._sqs.deliver(target["Arn"], body, delay=delay, group=group, sender=sender):
            return
        if dead_letters := target.get("DeadLetterConfig", {}).get("Arn"):
            self._sqs.deliver(dead_letters, body, delay=delay, group=group, sender=sender)

    # Verbs.

    async def put_rule(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name, pattern = request["Name"], request.get("EventPattern")
        self._check_bus(request)
        if not re.fullmatch(r"[.\-_A-Za-z0-9]{1,64}", name):
            raise _not_valid(
                f"1 validation error detected: Value '{name}' at 'name' failed to satisfy constraint: Member must "
                r"satisfy regular expression pattern: [\.\-_A-Za-z0-9]+"
            )
        if request.get("ScheduleExpression"):
            raise _not_valid("Parameter ScheduleExpression is not valid. Reason: the fake AWS runs no schedules.")
        if not pattern:
            raise _not_valid("Parameter(s) EventPattern or ScheduleExpression must be specified.")
        if len(pattern) > 4096:
            raise _not_valid(
                "1 validation error detected: Value at 'eventPattern' failed to satisfy constraint: Member must have "
                "length less than or equal to 4096"
            )
        matches = event_pattern(pattern)
        old = self._rules.get(name)
        if old is None and len(self._rules) >= 300:
            raise AwsError("LimitExceededException", "The requested resource exceeds the maximum number allowed.")
        tags = {tag["Key"]: tag["Value"] for tag in request.get("Tags", ())}
        changed = old is None or old.pattern != pattern
        self._rules[name] = _Rule(
            name=name,
            arn=f"arn:aws:events:{self.region}:{self.account}:rule/{name}",
            pattern=pattern,
            matches=matches,
            enabled=request.get("State", "ENABLED") != "DISABLED",
            description=request.get("Description"),
            role=request.get("RoleArn"),
            tags=tags if old is None else old.tags,  # the tags of a rule that exists are not changed
            effective=self._clock.time() + self.delivery.rule_delay if changed or old is None else old.effective,
            targets={} if old is None else old.targets,
            deliveries={} if old is None else old.deliveries,
        )
        return {"RuleArn": self._rules[name].arn}

    async def describe_rule(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {**self._describe(self._rule(request, "Name")), "CreatedBy": self.account}

    async def list_rules(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._check_bus(request)
        prefix = request.get("NamePrefix", "")
        names = sorted(name for name in self._rules if name.startswith(prefix))
        page, token = self._page(("rules", prefix), names, request)
        return {"Rules": [self._describe(self._rules[name]) for name in page]} | token

    async def list_rule_names_by_target(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._check_bus(request)
        arn = request["TargetArn"]
        names = sorted(
            rule.name for rule in self._rules.values() if any(arn == target["Arn"] for target in rule.targets.values())
        )
        page, token = self._page(("names", arn), names, request)
        return {"RuleNames": list(page)} | token

    async def delete_rule(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._check_bus(request)
        rule = self._rules.get(request["Name"])
        if rule is None:
            return {}  # as at AWS, deleting it again is fine
        if rule.targets:
            raise _not_valid("Rule can't be deleted since it has targets.")
        del self._rules[rule.name]
        return {}

    async def enable_rule(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._rule(request, "Name").enabled = True
        return {}

    async def disable_rule(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._rule(request, "Name").enabled = False
        return {}

    async def put_targets(self, request: Mapping[str, Any]) -> dict[str, Any]:
        rule = self._rule(request, "Rule")
        new: dict[str, dict[str, Any]] = {}
        for target in request["Targets"]:
            if not re.fullmatch(r"[.\-_A-Za-z0-9]{1,64}", target["Id"]):
                raise _not_valid(
                    f"Parameter {target['Id']} is not valid. Reason: Provided Id is not in correct format."
                )
            if not re.fullmatch(r"arn:[^:]+:[^:]+:[^:]*:[^:]*:.+", target["Arn"]):
                raise _not_valid(
                    f"Parameter {target['Arn']} is not valid. Reason: Provided Arn is not in correct format."
                )
            if len({"Input", "InputPath", "InputTransformer"} & target.keys()) > 1:
                raise _not_valid(
                    f"Only one of Input, InputPath, or InputTransformer must be provided for target {target['Id']}."
                )
            if ":sqs:" in target["Arn"] and target["Arn"].endswith(".fifo") and "SqsParameters" not in target:
                raise _not_valid(f"Parameter(s) MessageGroupId must be specified for target: {target['Id']}.")
            new[target["Id"]] = dict(target)
        if len(rule.targets | new) > 5:
            raise AwsError("LimitExceededException", "The requested resource exceeds the maximum number allowed.")
        rule.targets.update(new)
        return {"FailedEntryCount": 0, "FailedEntries": []}

    async def remove_targets(self, request: Mapping[str, Any]) -> dict[str, Any]:
        rule = self._rule(request, "Rule")
        for target in request["Ids"]:
            rule.targets.pop(target, None)
        return {"FailedEntryCount": 0, "FailedEntries": []}

    async def list_targets_by_rule(self, request: Mapping[str, Any]) -> dict[str, Any]:
        rule = self._rule(request, "Rule")
        page, token = self._page(("targets", rule.name), sorted(rule.targets), request)
        return {"Targets": [dict(rule.targets[name]) for name in page]} | token

    async def put_events(self, request: Mapping[str, Any]) -> dict[str, Any]:
        entries = request["Entries"]
        if len(entries) > 10:
            raise _not_valid(
                "1 validation error detected: Value at 'entries' failed to satisfy constraint: Member must have "
                "length less than or equal to 10"
            )
        if sum(len(entry.get("Detail", "").encode()) for entry in entries) > 1_048_576:
            raise _not_valid("Total size of the entries in the request is over the limit.")
        replies = [self._put_event(entry) for entry in entries]
        return {"FailedEntryCount": sum("ErrorCode" in reply for reply in replies), "Entries": replies}

    def _put_event(self, entry: Mapping[str, Any]) -> dict[str, str]:
        for name in ("Source", "DetailType", "Detail"):
            if not entry.get(name):
                return _failed(
                    "InvalidArgument", f"Parameter {name} is not valid. Reason: {name} is a required argument."
                )
        if entry["Source"].startswith("aws."):
            return _failed("NotAuthorizedForSourceException", "Not authorized for the source.")
        try:
            detail = json.loads(entry["Detail"])
        except ValueError:
            detail = None
        if not isinstance(detail, dict):
            return _failed("MalformedDetail", "Detail is malformed.")
        try:
            self._check_bus(entry)
        except AwsError as exc:
            return _failed(exc.code, exc.message)
        event: dict[str, Any] = {
            "detail-type": entry["DetailType"],
            "source": entry["Source"],
            "resources": list(entry.get("Resources", ())),
            "detail": detail,
        }
        if "Time" in entry:
            event["time"] = entry["Time"].strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"EventId": self.emit(event)["id"]}

    async def test_event_pattern(self, request: Mapping[str, Any]) -> dict[str, Any]:
        matches = event_pattern(request["EventPattern"])
        try:
            event = json.loads(request["Event"])
        except ValueError:
            raise _not_valid("Parameter Event is not valid. Reason: Event is not valid JSON.") from None
        return {"Result": matches(event)}

    async def tag_resource(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._tagged(request).tags.update({tag["Key"]: tag["Value"] for tag in request["Tags"]})
        return {}

    async def untag_resource(self, request: Mapping[str, Any]) -> dict[str, Any]:
        tags = self._tagged(request).tags
        for key in request["TagKeys"]:
            tags.pop(key, None)
        return {}

    async def list_tags_for_resource(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"Tags": [{"Key": key, "Value": value} for key, value in self._tagged(request).tags.items()]}

    async def describe_event_bus(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._check_bus({"EventBusName": request.get("Name", "default")})
        return {"Name": "default", "Arn": f"arn:aws:events:{self.region}:{self.account}:event-bus/default"}

    def _check_bus(self, request: Mapping[str, Any]) -> None:
        bus = request.get("EventBusName", "default").rpartition("/")[2]
        if bus != "default":
            raise AwsError("ResourceNotFoundException", f"Event bus {bus} does not exist.")

    def _rule(self, request: Mapping[str, Any], member: str) -> _Rule:
        self._check_bus(request)
        name = request[member]
        rule = self._rules.get(name)
        if rule is None:
            raise AwsError("ResourceNotFoundException", f"Rule {name} does not exist on EventBus default.")
        return rule

    def _tagged(self, request: Mapping[str, Any]) -> _Rule:
        return self._rule({"Name": request["ResourceARN"].rpartition("/")[2]}, "Name")

    def _describe(self, rule: _Rule) -> dict[str, Any]:
        described = {
            "Name": rule.name,
            "Arn": rule.arn,
            "EventPattern": rule.pattern,
            "State": "ENABLED" if rule.enabled else "DISABLED",
            "Description": rule.description,
            "RoleArn": rule.role,
            "EventBusName": "default",
        }
        return {name: value for name, value in described.items() if value is not None}

    def _page(
        self, scope: object, names: Sequence[str], request: Mapping[str, Any]
    ) -> tuple[Sequence[str], dict[str, str]]:
        limit = min(request.get("Limit", 100), 100)
        page, token = self._tokens.page(scope, names, token=request.get("NextToken"), limit=limit)
        return page, {"NextToken": token} if token else {}


def _not_valid(message: str) -> AwsError:
    return AwsError("ValidationException", message)


def _failed(code: str, message: str) -> dict[str, str]:
    return {"ErrorCode": code, "ErrorMessage": message}


# What a target gets.


def _body(event: dict[str, Any], rule: _Rule, target: Mapping[str, Any]) -> str:
    if "Input" in target:
        return str(target["Input"])
    if "InputPath" in target:
        value = _dig(event, target["InputPath"])
        return _json({} if value is _MISSING else value)
    if "InputTransformer" in target:
        return _transformed(event, rule, target["InputTransformer"])
    return _json(event)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _dig(event: Any, path: str) -> Any:
    """Follow a path such as ``$.detail.containers[0].name``."""
    for name, index in re.findall(r"\.([^.\[\]]+)|\[(\d+)\]", path.removeprefix("$")):
        try:
            event = event[int(index) if index else name]
        except (KeyError, IndexError, TypeError):
            return _MISSING
    return event


def _transformed(event: dict[str, Any], rule: _Rule, transformer: Mapping[str, Any]) -> str:
    values = {name: _dig(event, path) for name, path in transformer.get("InputPathsMap", {}).items()}
    values |= {
        "aws.events.rule-arn": rule.arn,
        "aws.events.rule-name": rule.name,
        "aws.events.event": event,
        "aws.events.event.json": event,
        "aws.events.event.ingestion-time": event["time"],
    }
    quoted = False
    parts: list[str] = []
    for part in re.split(r'(\\.|"|<[A-Za-z0-9_.-]+>)', transformer["InputTemplate"]):
        if part == '"':
            quoted = not quoted
        name = part[1:-1]
        if part.startswith("<") and name in values:
            value = "" if values[name] is _MISSING else values[name]
            # Inside a text a value stands as it is; outside, as JSON, with its quotes.
            text = _json(value)
            parts.append(text[1:-1] if quoted and isinstance(value, str) else text)
        else:
            parts.append(part)
    return "".join(parts)
