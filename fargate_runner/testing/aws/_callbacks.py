"""
What is told when something is over: topics of SNS, and states of Step Functions that wait for a task token.

For the fake in process, and over HTTP where moto is not there: moto's SNS reaches more, and its Step Functions run
state machines.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from random import Random
from typing import Any, ClassVar, Final
from uuid import UUID

import attrs

from fargate_runner.testing.aws._service import AwsError, Clock, Service

__all__ = ["SnsService", "StateTask", "StepFunctionsService"]

_DEDUPLICATED: Final = 300.0
"""Seconds in which a FIFO topic takes a deduplication id once (Amazon SNS Developer Guide)."""
_LARGEST_MESSAGE: Final = 262_144


class SnsService(Service):
    """SNS: topics that keep what was published; nobody subscribes to them."""

    name: ClassVar[str] = "sns"

    def __init__(
        self, clock: Clock, *, region: str = "us-east-1", account: str = "111122223333", seed: int = 0
    ) -> None:
        self.region = region
        self.account = account
        self.published: dict[str, list[dict[str, Any]]] = {}
        """By the ARN of a topic, the requests that it took, those left out that a FIFO topic had had before."""
        self._clock = clock
        self._random = Random(f"{seed}/sns")  # noqa: S311 (repeatable, not secret)
        self._taken: dict[tuple[str, str], tuple[float, str]] = {}

    async def create_topic(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name = request["Name"]
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,256}|[A-Za-z0-9_-]{1,251}\.fifo", name):
            raise AwsError("InvalidParameter", "Invalid parameter: Topic Name")
        arn = f"arn:aws:sns:{self.region}:{self.account}:{name}"
        self.published.setdefault(arn, [])
        return {"TopicArn": arn}

    async def publish(self, request: Mapping[str, Any]) -> dict[str, Any]:
        arn = request.get("TopicArn") or request.get("TargetArn") or ""
        topic = self.published.get(arn)
        if topic is None:
            raise AwsError("NotFound", "Topic does not exist", status=404)
        message = request["Message"]
        if not message:
            raise AwsError("InvalidParameter", "Invalid parameter: Empty message")
        if len(message.encode()) > _LARGEST_MESSAGE:
            raise AwsError("InvalidParameter", "Invalid parameter: Message too long")
        message_id = str(UUID(int=self._random.getrandbits(128), version=4))
        if arn.endswith(".fifo"):
            for name in ("MessageGroupId", "MessageDeduplicationId"):
                if not request.get(name):
                    raise AwsError("InvalidParameter", f"Invalid parameter: The {name} parameter is required")
            now, seen = self._clock.time(), (arn, request["MessageDeduplicationId"])
            at, first = self._taken.get(seen, (float("-inf"), ""))
            if now - at < _DEDUPLICATED:
                return {"MessageId": first}
            self._taken[seen] = now, message_id
        topic.append(dict(request))
        return {"MessageId": message_id}


@attrs.define
class StateTask:
    """A state that waits, and what it was told."""

    token: str
    output: Any = None
    """Read as JSON, of a success."""
    error: str | None = None
    cause: str | None = None
    is_over: bool = False


class StepFunctionsService(Service):
    """Step Functions, as far as somebody answers a state that waits for a task token."""

    name: ClassVar[str] = "stepfunctions"

    def __init__(self, clock: Clock) -> None:
        self.tasks: dict[str, StateTask] = {}
        """By token."""
        self._clock = clock

    def wait_for_token(self, name: str = "state") -> StateTask:
        """Begin to wait in a state, and return what it waits with."""
        token = hashlib.sha256(f"{name}/{len(self.tasks)}".encode()).hexdigest() * 4
        return self.tasks.setdefault(token, StateTask(token))

    async def send_task_success(self, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            output = json.loads(request["output"])
        except ValueError:
            raise AwsError("InvalidOutput", f"Invalid Output: '{request['output'][:80]}'") from None
        task = self._waiting(request)
        task.output, task.is_over = output, True
        return {}

    async def send_task_failure(self, request: Mapping[str, Any]) -> dict[str, Any]:
        task = self._waiting(request)
        task.error, task.cause, task.is_over = request.get("error"), request.get("cause"), True
        return {}

    async def send_task_heartbeat(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._waiting(request)
        return {}

    def _waiting(self, request: Mapping[str, Any]) -> StateTask:
        task = self.tasks.get(request["taskToken"])
        if task is None:
            raise AwsError("InvalidToken", "Invalid Token: 'Invalid token'")
        if task.is_over:
            raise AwsError("TaskTimedOut", "Task Timed Out: 'Provided task does not exist anymore'")
        return task
