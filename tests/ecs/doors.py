"""Sessions for the door to AWS: clients that answer by a script, with botocore's own exceptions."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from botocore.exceptions import ClientError

Answer = dict[str, Any] | Exception | Callable[..., Any]


def refused(
    code: str, message: str = "", *, status: int = 400, request_id: str = "11111111-2222", **members: Any
) -> ClientError:
    """Return what botocore raises for an error of AWS's."""
    meta = {"RequestId": request_id, "HTTPStatusCode": status}
    return ClientError({"Error": {"Code": code, "Message": message}, "ResponseMetadata": meta, **members}, "Operation")


def throttled() -> ClientError:
    return refused("ThrottlingException", "Rate exceeded")


class Session:
    """
    Makes clients whose every operation gives the next answer, and the last one for ever.

    An answer is a reply, an exception, or a function of the request that returns or raises one.
    """

    region_name: str | None = "eu-west-1"

    def __init__(self, *answers: Answer) -> None:
        self.answers: list[Any] = list(answers) or [{}]
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.made: list[str] = []
        self.options: list[dict[str, Any]] = []
        self.open = 0

    def client(self, service: str, **options: Any) -> Any:
        return self._client(service, options)

    @asynccontextmanager
    async def _client(self, service: str, options: dict[str, Any]) -> AsyncGenerator[Any]:
        self.made.append(service)
        self.options.append(options)
        self.open += 1
        await anyio.lowlevel.checkpoint()
        try:
            yield Client(self)
        finally:
            await anyio.lowlevel.checkpoint()  # closing takes a moment, even when all is cancelled
            self.open -= 1

    async def answer(self, request: dict[str, Any]) -> Any:
        self.requests.append(request)
        self.times.append(anyio.current_time())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await anyio.lowlevel.checkpoint()
        if callable(answer):
            answer = answer(**request)
            if inspect.isawaitable(answer):
                answer = await answer
        if isinstance(answer, Exception):
            raise answer
        return answer


class Client:
    """One client; anything is an operation of it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        async def method(**request: Any) -> Any:
            return await self._session.answer(request)

        return method
