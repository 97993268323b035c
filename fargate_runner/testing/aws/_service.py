"""
What a service of the fake AWS is: verbs over a world that lives on a clock.

A service knows botocore's shapes, not how a request came in. `FakeAws.call` checks requests and replies against
botocore's own model, so a verb may trust the types and the required members of what it gets.
"""

from __future__ import annotations

import re
import time
from abc import ABC
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol

__all__ = ["AwsError", "Clock", "RealClock", "Service", "snake"]


class AwsError(Exception):
    """What AWS answers instead of a reply: ``members`` are those of the error shape, such as ``resourceIds``."""

    def __init__(self, code: str, message: str, *, status: int = 400, **members: Any) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status
        self.members = members


class Clock(Protocol):
    """What the world lives by; `fargate_runner.testing.clock.VirtualClock` is one."""

    def time(self) -> float:
        """Return seconds since some moment. It runs as `anyio.current_time` does."""
        ...

    def utcnow(self) -> datetime:
        """Return the moment that AWS puts in its answers."""
        ...


class RealClock:
    """The clock on the wall."""

    def time(self) -> float:
        return time.monotonic()

    def utcnow(self) -> datetime:
        return datetime.now(UTC)


_WORD_END = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def snake(operation: str) -> str:
    """Return the method's name of an operation: ``RunTask`` is ``run_task``."""
    return _WORD_END.sub("_", operation).lower()


class Service(ABC):
    """One AWS service. Each operation ``RunTask`` is a coroutine method ``run_task(request) -> reply``."""

    name: ClassVar[str]
    """botocore's name of the service: ``ecs``, ``logs``, ``sqs``, ``events``, …"""

    def knows(self, operation: str) -> bool:
        """Whether the operation is one of ours."""
        return callable(getattr(self, snake(operation), None)) and not operation.startswith("_")

    async def call(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """
        Answer a request in the shapes of botocore's model; timestamps are aware datetimes where the model says so.

        :raises AwsError: what AWS would refuse
        """
        if not self.knows(operation):
            raise AwsError("UnknownOperationException", f"{self.name}.{operation} is not part of the fake AWS")
        reply: dict[str, Any] = await getattr(self, snake(operation))(request)
        return reply
