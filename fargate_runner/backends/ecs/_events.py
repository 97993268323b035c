"""
Events of tasks, read from an SQS queue that EventBridge feeds: they tell of an end a second after it.

They only ever make waiting faster. A message may be lost, late, doubled, out of order or forged, and the queue may be
gone: then there is polling. What an event says is believed if SQS says that its sender is the only one there is, and
DescribeTasks has confirmed what that one said before; else it is a hint where to look.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
import anyio.abc

from fargate_runner._errors import BackendError, BackendUnavailable, InvalidJob
from fargate_runner.backends.ecs import _wire
from fargate_runner.backends.ecs._api import Api, ApiError, Trouble
from fargate_runner.backends.ecs._watch import Watch

__all__ = ["EventReader", "check_queue", "drop_events", "make_events"]

_log = logging.getLogger(__name__)

_BATCH: Final = 10
"""Messages of a ReceiveMessage or DeleteMessageBatch call (Amazon SQS API Reference)."""
_LONG_POLL: Final = 20
"""Seconds that SQS waits for a message, at most; below the time that the door gives an answer."""
_PATIENCE: Final = 2.0
"""Seconds that SQS may be in trouble until we do without it."""
_HIDDEN: Final = 30
"""Seconds until a message that was received and not deleted is shown again: to us, or to whose it is."""
_RECEIVERS: Final = 8
"""Receives under way at once, where one does not keep up."""
_GATHERING: Final = 1.0
"""Seconds that messages wait for others to be deleted with."""
_OFFERED: Final = 3
"""Times that an event of somebody else's task is received until nobody seems to want it."""
_TRUSTED_AFTER: Final = 3
"""Events of a sender that DescribeTasks has to confirm."""
_PAUSES: Final = (1.0, 60.0)
"""(first, longest) seconds between receives that fail, each twice the one before."""
_RETENTION: Final = 300
"""Seconds that a queue of ours keeps an event: by then, polling knows more."""

_QUEUE: Final = re.compile(r"[A-Za-z0-9_-]{1,80}\Z", re.ASCII)
_AWS_HOST: Final = re.compile(r"sqs\.(?P<region>[a-z0-9-]+)\.(amazonaws\.com(\.cn)?|api\.aws)\Z", re.ASCII)


def check_queue(queue: str | None) -> str:
    """Return the URL or name of a queue if it looks like one; empty for none."""
    if queue is None:
        return ""
    name = _name_of(queue) if isinstance(queue, str) else ""
    if name.endswith(".fifo"):
        # There, everything behind a message that is not deleted has to wait.
        raise InvalidJob("events", queue, "a FIFO queue", "use a standard queue: events may come in any order")
    if not _QUEUE.match(name) or (queue != name and urlsplit(queue).scheme not in {"http", "https"}):
        raise InvalidJob("events", queue, "neither the URL nor the name of a queue", "write it like 'jobs-events'")
    return queue


def _name_of(queue: str) -> str:
    return queue.rstrip("/").rpartition("/")[2]


# ---- who is believed -----------------------------------------------------------------------------------------------


class _Senders:
    """
    Who put events into the queue, and whether they are believed.

    The sender is what SQS itself found out when it took the message (``SenderId``), so nobody can pretend to be
    EventBridge. Nobody is told either who EventBridge is: so one sender is believed, once looks have confirmed what it
    said, and none is as soon as there are two.
    """

    def __init__(self) -> None:
        self._heard: set[str] = set()
        self._confirmed = 0
        self._lied = False

    def heard(self, sender: str) -> None:
        """Take note of one who told of a task of ours."""
        if len(self._heard) < 2:
            self._heard.add(sender)

    def believes(self, sender: str) -> bool:
        """Whether what this one tells is true without a look."""
        is_alone = bool(sender) and self._heard == {sender}
        return is_alone and self._confirmed >= _TRUSTED_AFTER and not self._lied

    def judge(self, true: bool) -> None:
        """Take note of whether something that was told was so."""
        self._confirmed += true
        self._lied |= not true


# ---- the reader ----------------------------------------------------------------------------------------------------


class EventReader:
    """
    Reads one queue and tells a watch. `open` says if that will not work, `run` never ends.

    *owner_of* returns the ``startedBy`` of a task of ours, empty if it is ours and that is not known, None for others'.
    """

    def __init__(self, api: Api, queue: str, *, watch: Watch, owner_of: Callable[[str], str | None]) -> None:
        self._api = api
        self._queue = queue
        self._watch = watch
        self._owner_of = owner_of
        self._url = ""
        self._senders = _Senders()
        self._receivers = 0
        self._done: list[str] = []
        """Receipts of messages that are to be deleted."""
        self._anything_done = anyio.Event()
        self._said: set[str] = set()

    async def open(self) -> None:
        """
        Receive once, without waiting.

        :raises BackendUnavailable: there is no such queue here, or it may not be read
        """
        try:
            self._url = await self._find()
            self._take_in(await self._receive(wait=0))
        except ApiError as exc:
            if exc.trouble is Trouble.NOT_FOUND:
                fix = "make it with EcsBackend(…).make_events(), correct its name, or leave events= out"
                said = f"there is no queue {self._queue!r} in {self._api.region}; {fix}"
            elif exc.trouble is Trouble.DENIED:
                said = f"the queue {self._queue!r} may not be read ({exc}); {_PERMISSIONS}"
            elif exc.trouble in {Trouble.INVALID, Trouble.CONFLICT}:
                said = f"the queue {self._queue!r} cannot be read: {exc}"
            else:
                self._failed(exc)
                return
            raise BackendUnavailable(said, operation=exc.operation, code=exc.code) from exc

    async def _find(self) -> str:
        if _name_of(self._queue) == self._queue:
            found = await self._api.call("sqs.GetQueueUrl", 0.0, _PATIENCE, QueueName=self._queue)
            return str(found["QueueUrl"])
        aws = _AWS_HOST.match(urlsplit(self._queue).hostname or "")
        if aws is not None and aws["region"] != self._api.region:
            said = (
                f"the queue {self._queue!r} is in {aws['region']}, and events of tasks come in {self._api.region} only"
            )
            raise BackendUnavailable(said, operation="ReceiveMessage", code="WrongRegion")
        return self._queue

    async def run(self) -> None:
        """Read for ever. Cancelled, it leaves the messages that it had to whoever comes next."""
        self._watch.expects_events = True
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._delete_what_is_done)
            await self._read(tasks)

    async def _read(self, tasks: anyio.abc.TaskGroup, *, helps: bool = False) -> None:
        self._receivers += 1
        failures = 0
        while True:
            try:
                if not self._url:
                    self._url = await self._find()
                messages = await self._receive(wait=_LONG_POLL)
            except Exception as exc:  # noqa: BLE001 (the queue is a shortcut: nothing that is wrong with it costs a job)
                self._failed(exc)
                if helps:
                    break
                failures += 1
                await anyio.sleep(min(_PAUSES[1], _PAUSES[0] * 2.0 ** min(failures - 1, 10)))
                continue
            failures = 0
            self._take_in(messages)
            if len(messages) == _BATCH and self._receivers < _RECEIVERS:
                tasks.start_soon(partial(self._read, tasks, helps=True))
            elif len(messages) < _BATCH and helps:
                break
        self._receivers -= 1

    async def _receive(self, *, wait: int) -> Sequence[Mapping[str, Any]]:
        reply = await self._api.call(
            "sqs.ReceiveMessage",
            0.0,
            _PATIENCE,
            QueueUrl=self._url,
            MaxNumberOfMessages=_BATCH,
            WaitTimeSeconds=wait,
            VisibilityTimeout=_HIDDEN,
            MessageSystemAttributeNames=["SenderId", "ApproximateReceiveCount"],
        )
        return reply.get("Messages") or ()

    def _failed(self, exc: Exception) -> None:
        self._watch.events_fail()
        why = exc.code if isinstance(exc, BackendError) and exc.code else type(exc).__name__
        self._say_once(why, f"events do not come, so tasks are polled more often: {str(exc) or why}")

    def _say_once(self, about: str, said: str) -> None:
        if about not in self._said:
            self._said.add(about)
            _log.warning("queue %s: %s", self._queue, said)

    # ---- one message -----------------------------------------------------------------------------------------------

    def _take_in(self, messages: Sequence[Mapping[str, Any]]) -> None:
        done = [message["ReceiptHandle"] for message in messages if self._is_done(message)]
        if done:
            self._done += done
            self._anything_done.set()

    def _is_done(self, message: Mapping[str, Any]) -> bool:
        """Take in a message; return whether it may be deleted."""
        attributes = message.get("Attributes") or {}
        event = _wire.event_of(message.get("Body") or "")
        if event is None:
            # Perhaps not our queue at all.
            self._say_once("strange", "there are messages that are no events of ECS tasks; they are left there")
            return False
        task = _wire.event_task(event)
        owner = self._owner_of(_wire.task_arn(task))
        if owner is None:
            # Another runner's that reads the same queue, or our own launch was not answered yet: it is shown again.
            return int(attributes.get("ApproximateReceiveCount") or 1) >= _OFFERED
        if _wire.is_consistent(event, owner):
            sender = str(attributes.get("SenderId") or "").partition(":")[0]  # behind it, the name of a session
            self._senders.heard(sender)
            self._watch.told(task, believed=self._senders.believes(sender), judge=self._senders.judge)
        return True

    async def _delete_what_is_done(self) -> None:
        while True:
            await self._anything_done.wait()
            if len(self._done) < _BATCH:
                await anyio.sleep(_GATHERING)
            async with anyio.create_task_group() as deletes:
                while self._done:
                    receipts, self._done = self._done[:_BATCH], self._done[_BATCH:]
                    deletes.start_soon(self._delete, receipts)
            if not self._done:
                self._anything_done = anyio.Event()

    async def _delete(self, receipts: Sequence[str]) -> None:
        entries = [{"Id": str(number), "ReceiptHandle": receipt} for number, receipt in enumerate(receipts)]
        try:
            await self._api.call("sqs.DeleteMessageBatch", 0.0, _PATIENCE, QueueUrl=self._url, Entries=entries)
        except Exception as exc:  # noqa: BLE001 (what is not deleted is shown again, and is old news then)
            self._say_once("delete", f"messages cannot be deleted, and come again: {exc}; {_PERMISSIONS}")


_PERMISSIONS: Final = "reading takes sqs:ReceiveMessage and sqs:DeleteMessage on it, and sqs:GetQueueUrl by its name"


# ---- the queue and its rule ----------------------------------------------------------------------------------------


async def make_events(api: Api, queue: str, cluster: str, *, namespace: str | None = None) -> str:
    """Make the queue and the rule of the same name that feeds it, as far as they are not there; return the URL."""
    name = _rule_name(queue)
    url = await _make_queue(api, name)
    known = await api.call("sqs.GetQueueAttributes", QueueUrl=url, AttributeNames=["QueueArn", "Policy"])
    arn, policy = known["Attributes"]["QueueArn"], known["Attributes"].get("Policy", "")
    place = ":".join((*arn.split(":")[:2], "{}", *arn.split(":")[3:5]))
    wanted = queue_policy(arn, f"{place.format('events')}:rule/{name}")
    if policy and json.loads(policy) != wanted:
        said = f"the queue {name!r} has a policy of its own; take another name, or add to it: {json.dumps(wanted)}"
        raise BackendError(said, operation="SetQueueAttributes", code="PolicyExists")
    if not policy:
        await api.call("sqs.SetQueueAttributes", QueueUrl=url, Attributes={"Policy": json.dumps(wanted)})
    pattern = json.dumps(rule_pattern(f"{place.format('ecs')}:cluster/{_wire.cluster_name(cluster)}", namespace))
    await api.call("events.PutRule", Name=name, EventPattern=pattern, State="ENABLED", Description=ABOUT_RULE)
    put = await api.call("events.PutTargets", Rule=name, Targets=[{"Id": _TARGET, "Arn": arn}])
    if put.get("FailedEntryCount"):
        failed: Mapping[str, Any] = next(iter(put.get("FailedEntries") or ()), {})
        said = f"the rule {name!r} does not take its queue as a target: {failed.get('ErrorMessage', 'no reason')}"
        raise BackendError(said, operation="PutTargets", code=failed.get("ErrorCode"))
    return url


ABOUT_RULE: Final = "Tasks of fargate_runner, for the queue of the same name"
QUEUE_ATTRIBUTES: Final[Mapping[str, int]] = {
    "MessageRetentionPeriod": _RETENTION,
    "VisibilityTimeout": _HIDDEN,
    "ReceiveMessageWaitTimeSeconds": _LONG_POLL,
}
_TARGET: Final = "queue"


def _rule_name(queue: str) -> str:
    name = _name_of(queue)
    if not name or len(name) > 64:
        fix = "say the name of a queue, EcsBackend(events='jobs-events'), of up to 64 characters"
        raise InvalidJob("events", queue or None, "queue and rule share a name", fix)
    return name


async def _make_queue(api: Api, name: str) -> str:
    attributes = {attribute: str(seconds) for attribute, seconds in QUEUE_ATTRIBUTES.items()}
    try:
        made = await api.call("sqs.CreateQueue", QueueName=name, Attributes=attributes)
    except ApiError as exc:
        if exc.code not in {"QueueNameExists", "QueueAlreadyExists"}:
            raise
        made = await api.call("sqs.GetQueueUrl", QueueName=name)  # with attributes of its owner's
    return str(made["QueueUrl"])


def rule_pattern(cluster: str, namespace: str | None = None) -> dict[str, Any]:
    """Return what events the rule lets through: those of our tasks in the cluster of that ARN."""
    return {
        "source": ["aws.ecs"],
        "detail-type": ["ECS Task State Change"],
        "detail": {
            "clusterArn": [cluster],
            "startedBy": [{"prefix": _wire.started_by_prefix(namespace)}],
            "lastStatus": ["PENDING", "RUNNING", "STOPPED"],
        },
    }


def queue_policy(queue: str, rule: str) -> dict[str, Any]:
    """Return who may send to the queue of that ARN: the rule of that ARN, and nobody else."""
    statement = {
        "Sid": "OnlyTheRuleOfThisQueue",
        "Effect": "Allow",
        "Principal": {"Service": "events.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": queue,
        "Condition": {"ArnEquals": {"aws:SourceArn": rule}},
    }
    return {"Version": "2012-10-17", "Statement": [statement]}


async def drop_events(api: Api, queue: str) -> None:
    """Delete what `make_events` made, the rule first; what is not there is no error."""
    name = _rule_name(queue)
    with _if_there():
        await api.call("events.RemoveTargets", Rule=name, Ids=[_TARGET])
    await api.call("events.DeleteRule", Name=name)
    with _if_there():
        found = await api.call("sqs.GetQueueUrl", QueueName=name)
        await api.call("sqs.DeleteQueue", QueueUrl=found["QueueUrl"])


@contextmanager
def _if_there() -> Generator[None]:
    try:
        yield
    except ApiError as exc:
        if exc.trouble is not Trouble.NOT_FOUND:
            raise
