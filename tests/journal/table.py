"""
DynamoDB for tests: moto's in this process, behind clients that can lose requests and answers.

A call is one step of the event loop, so that conditional writes are as atomic as DynamoDB's, and virtual time works.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from typing import Any, Literal
from unittest.mock import patch

import anyio.lowlevel
import attrs
import boto3
from botocore.exceptions import ClientError, ConnectionClosedError
from moto import mock_aws
from moto.dynamodb.models.dynamo_type import DynamoType

from tests.ecs.doors import refused

REGION = "eu-west-1"


def cut() -> Exception:
    """The connection ends in place of an answer."""
    return ConnectionClosedError(endpoint_url=f"https://dynamodb.{REGION}.amazonaws.com/")


def throttled() -> Exception:
    return refused("ProvisionedThroughputExceededException", "The level of configured provisioned throughput …")


def failed() -> Exception:
    return refused("InternalServerError", "The request processing has failed", status=500)


@attrs.define(kw_only=True)
class Fault:
    """What goes wrong with the next calls of an operation: an error, or something that comes in between."""

    operation: str
    error: Exception | None = None
    between: Callable[[], Awaitable[Any]] | None = None
    change: Callable[[Any], None] | None = None
    """Of the answer, or of the error."""
    when: Literal["before", "after"] = "before"
    times: float = 1

    async def strike(self) -> None:
        if self.between is not None:
            await self.between()
        if self.error is not None:
            raise self.error


class Session:
    """Makes clients of one DynamoDB. For `Api`."""

    region_name = REGION

    def __init__(self) -> None:
        self.dynamodb = _client()
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, dict[str, Any]]] = []

    def client(self, service: str, **options: Any) -> Any:
        assert service == "dynamodb"
        return self._client()

    @asynccontextmanager
    async def _client(self) -> AsyncGenerator[Any]:
        await anyio.lowlevel.checkpoint()
        yield Client(self)

    def add(self, operation: str, error: Exception | None = None, **more: Any) -> None:
        """Have something go wrong."""
        self.faults.append(Fault(operation=operation, error=error, **more))

    def draw(self, operation: str) -> Fault | None:
        for fault in self.faults:
            if fault.operation == operation and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    def count(self, operation: str) -> int:
        return sum(asked == operation for asked, _ in self.requests)


class Client:
    def __init__(self, session: Session) -> None:
        self._session = session

    def __getattr__(self, operation: str) -> Any:
        session = self._session

        async def call(**request: Any) -> Any:
            session.requests.append((operation, request))
            await anyio.lowlevel.checkpoint()
            fault = session.draw(operation) or Fault(operation=operation)
            if fault.when == "before":
                await fault.strike()
            try:
                reply = getattr(session.dynamodb, operation)(**request)
            except ClientError as exc:
                if fault.change is not None:
                    fault.change(exc.response)
                raise
            if fault.when == "after":
                await fault.strike()
            if fault.change is not None:
                fault.change(reply)
            await anyio.lowlevel.checkpoint()
            return reply

        return call


@cache
def _client() -> Any:
    return boto3.client("dynamodb", region_name=REGION, aws_access_key_id="AKIAFAKE", aws_secret_access_key="fake")


_counted = DynamoType.size


def _size(value: DynamoType) -> int:
    # moto counts what is binary as the base64 that came in, DynamoDB its bytes.
    return len(b64decode(value.value)) if value.is_binary() and isinstance(value.value, str) else _counted(value)


@contextmanager
def dynamodb() -> Generator[Session]:
    """A DynamoDB without tables."""
    with mock_aws(), patch.object(DynamoType, "size", _size):
        yield Session()
