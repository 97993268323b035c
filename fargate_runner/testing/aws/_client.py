"""
The fake AWS's face in process: sessions and clients that look like aioboto3's, without sockets, threads or real time.

A client answers in the shapes of botocore's model, raises botocore's exceptions, and lives inside its ``async with``.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn

import anyio
import attrs

from fargate_runner.testing.aws._fake import ConnectionCut
from fargate_runner.testing.aws._model import request_fits
from fargate_runner.testing.aws._protocol import QUERY_ERRORS, service_model
from fargate_runner.testing.aws._service import AwsError

if TYPE_CHECKING:
    from fargate_runner.testing.aws._fake import FakeAws

__all__ = ["FakeClient", "FakeSession"]

_READ_TIMEOUT: Final = 60.0  # botocore's default
_ENDPOINT: Final = "https://{service}.{region}.amazonaws.com/"


@functools.cache
def _operations(service: str) -> Mapping[str, str]:
    """Return the operations of a service by their method's name."""
    return {_method_name(name): name for name in service_model(service).operation_names}


def _method_name(operation: str) -> str:
    from botocore import xform_name

    return str(xform_name(operation))


class FakeSession:
    """
    What `aioboto3.Session` is to AWS, for a `FakeAws`: it makes clients.

    *access_key* is who its clients are; None is somebody who may do everything and never expires.
    """

    def __init__(self, aws: FakeAws, access_key: str | None = None, *, region_name: str | None = None) -> None:
        self._aws = aws
        self._access_key = access_key
        self.region_name = region_name or aws.region
        self.opened: list[str] = []
        """The services that clients were made for, in order: to be counted."""
        self.open_clients = 0
        """How many clients are inside their ``async with`` now."""

    def client(
        self, service_name: str, region_name: str | None = None, *, config: Any = None, **_: Any
    ) -> AbstractAsyncContextManager[FakeClient]:
        """
        Return a client as an asynchronous context manager.

        Of *config* only its read timeout counts; what else aioboto3 takes is accepted and ignored.
        """
        service_model(service_name)  # an unknown service is told here, as botocore does
        return self._client(service_name, region_name or self.region_name, getattr(config, "read_timeout", None))

    create_client = client

    @asynccontextmanager
    async def _client(self, service: str, region: str, patience: float | None) -> AsyncGenerator[FakeClient]:
        client = FakeClient(self._aws, service, region=region, access_key=self._access_key, patience=patience)
        self.opened.append(service)
        self.open_clients += 1
        try:
            yield client
        finally:
            self.open_clients -= 1
            await client.close()

    async def get_credentials(self) -> Any:
        """Return what aioboto3 has for credentials: an object that can be frozen."""
        from botocore.credentials import Credentials

        return Credentials(self._access_key or "AKIAFAKE", "secret")


@attrs.frozen(kw_only=True)
class _Meta:
    region_name: str
    service_model: Any
    endpoint_url: str
    partition: str = "aws"

    @property
    def method_to_api_mapping(self) -> Mapping[str, str]:
        return _operations(self.service_model.service_name)


class FakeClient:
    """A client of one service: a coroutine method for each operation of botocore's model."""

    def __init__(
        self, aws: FakeAws, service: str, *, region: str, access_key: str | None = None, patience: float | None = None
    ) -> None:
        self.meta = _Meta(
            region_name=region,
            service_model=service_model(service),
            endpoint_url=_ENDPOINT.format(service=service, region=region),
        )
        self.exceptions = _exceptions(service)
        self._aws = aws
        self._service = service
        self._access_key = access_key
        self._patience = _READ_TIMEOUT if patience is None else patience
        self._streams: list[_Stream] = []
        self._closed = False

    def __getattr__(self, name: str) -> Callable[..., Awaitable[dict[str, Any]]]:
        operation = _operations(self._service).get(name) if not name.startswith("_") else None
        if operation is None:
            raise AttributeError(f"{self._service} has no operation {name!r}")

        async def method(*args: object, **request: Any) -> dict[str, Any]:
            if args:
                raise TypeError(f"{name}() only accepts keyword arguments.")
            return await self._make_api_call(operation, request)

        method.__name__ = name
        return method

    async def _make_api_call(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        if self._closed:
            raise RuntimeError(f"this {self._service} client is closed: it was used after its 'async with' was left")
        model = self.meta.service_model.operation_model(operation)
        if not request_fits(self._service, operation, request):
            _check(request, model)
        request = {name: self._aws.new_id() for name in model.idempotent_members if name not in request} | request
        cut, reply = "timeout", dict[str, Any]()
        with anyio.move_on_after(self._patience):
            try:
                reply = dict(await self._aws.call(self._service, operation, request, access_key=self._access_key))
                cut = ""
            except AwsError as exc:
                self._refuse(exc, operation)
            except ConnectionCut as exc:
                cut = exc.how
        if cut:
            _cut(cut, self.meta.endpoint_url)
        if (stream := model.output_shape and model.output_shape.event_stream_name) and stream in reply:
            reply[stream] = _Stream(reply[stream], operation)
            self._streams.append(reply[stream])
        return reply | {"ResponseMetadata": self._metadata(200)}

    def _refuse(self, error: AwsError, operation: str) -> NoReturn:
        # A service whose older protocol had other names for its errors still goes by those.
        code = QUERY_ERRORS.get(error.code, error.code) if self._service == "sqs" else error.code
        response = {
            "Error": {"Message": error.message, "Code": code},
            "ResponseMetadata": self._metadata(error.status),
            **error.members,
        }
        shape = self.meta.service_model.shape_for_error_code(error.code)
        response |= {name: error.message for name in ("message", "Message") if shape and name in shape.members}
        raise self.exceptions.from_code(error.code)(response, operation) from None

    def _metadata(self, status: int) -> dict[str, Any]:
        request_id = self._aws.new_id()
        headers = {
            "x-amzn-requestid": request_id,
            "content-type": "application/x-amz-json-1.1",
            "date": self._aws.date(),
        }
        return {"RequestId": request_id, "HTTPStatusCode": status, "HTTPHeaders": headers, "RetryAttempts": 0}

    def get_paginator(self, operation_name: str) -> Any:
        """Return aiobotocore's paginator of a method."""
        from aiobotocore.paginate import AioPaginator
        from botocore.paginate import PaginatorModel

        operation = _operations(self._service)[operation_name]
        model = PaginatorModel(_loaded(self._service, "paginators-1"))
        found = model.get_paginator(operation)
        return AioPaginator(getattr(self, operation_name), found, self.meta.service_model.operation_model(operation))

    def get_waiter(self, waiter_name: str) -> Any:
        """Return aiobotocore's waiter of a name such as ``tasks_stopped``."""
        from aiobotocore.waiter import AIOWaiter, NormalizedOperationMethod
        from botocore.waiter import WaiterModel

        model = WaiterModel(_loaded(self._service, "waiters-2"))
        name = {_method_name(name): name for name in model.waiter_names}[waiter_name]
        config = model.get_waiter(name)
        method = getattr(self, _method_name(config.operation))
        return AIOWaiter(name, config, NormalizedOperationMethod(method))

    async def close(self) -> None:
        """Close the client, and the streams that it has handed out."""
        self._closed = True
        for stream in self._streams:
            await stream.aclose()


def _check(request: Mapping[str, Any], model: Any) -> None:
    """Refuse what botocore would not even send."""
    from botocore.exceptions import ParamValidationError
    from botocore.validate import ParamValidator

    shape = model.input_shape
    if shape is None:
        if request:
            raise ParamValidationError(report=f"{model.name} takes no parameters")
        return
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        raise ParamValidationError(report=report.generate_report())


@functools.cache
def _exceptions(service: str) -> Any:
    from botocore.errorfactory import ClientExceptionsFactory

    return ClientExceptionsFactory().create_client_exceptions(service_model(service))


@functools.cache
def _loaded(service: str, kind: str) -> Any:
    import botocore.session

    return botocore.session.Session().get_component("data_loader").load_service_model(service, kind)


def _cut(how: str, endpoint: str) -> NoReturn:
    """Raise what aiobotocore does for a connection that ends in that way."""
    from botocore import exceptions

    if how == "reset":
        raise exceptions.EndpointConnectionError(endpoint_url=endpoint)
    if how == "timeout":
        raise exceptions.ReadTimeoutError(endpoint_url=endpoint)
    raise exceptions.ConnectionClosedError(endpoint_url=endpoint)


class _Stream:
    """Events of a reply that goes on, as aiobotocore hands them out."""

    def __init__(self, events: AsyncIterator[Mapping[str, Any]], operation: str) -> None:
        self._events = self._translated(events, operation)

    @staticmethod
    async def _translated(events: Any, operation: str) -> AsyncGenerator[Mapping[str, Any]]:
        from botocore.exceptions import EventStreamError

        async with aclosing(events):
            try:
                async for event in events:
                    yield event
            except AwsError as exc:
                raise EventStreamError({"Error": {"Code": exc.code, "Message": exc.message}}, operation) from None

    def __aiter__(self) -> AsyncIterator[Mapping[str, Any]]:
        return self._events

    def close(self) -> None:
        """Do as aiobotocore's: nobody reads on. What is behind it ends with the client."""

    async def aclose(self) -> None:
        """End what is behind it."""
        await self._events.aclose()
