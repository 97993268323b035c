"""
The fake AWS's face over HTTP, on loopback: any AWS client can talk to it that can be given an endpoint.

One port for all services. What `FakeAws` knows is answered by it, everything else by moto, if that is installed.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import uuid
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from fargate_runner.testing.aws import _moto
from fargate_runner.testing.aws._fake import ConnectionCut
from fargate_runner.testing.aws._protocol import (
    EVENT_STREAM_TYPE,
    Asked,
    Written,
    access_key_of,
    asked,
    error_frame,
    event_frame,
    initial_frame,
    service_of,
    write_error,
    write_reply,
)
from fargate_runner.testing.aws._service import AwsError

if TYPE_CHECKING:
    from fargate_runner.testing.aws._fake import FakeAws

__all__ = ["serve"]

_log = logging.getLogger(__name__)

_LARGEST_REQUEST: Final = 1 << 30
_OURS: Final = ("ecs", "logs", "sqs", "events")
_WITHOUT_MOTO: Final = ("sts", "ssm", "secretsmanager", "ec2", "sns", "stepfunctions")
"""What we answer, as far as we can, where moto is not there to do it better."""
_WELCOME: Final = """\
This is a fake AWS, made by fargate_runner.testing.aws. It speaks ECS, CloudWatch Logs, SQS and EventBridge{others}.
Point any AWS client at it:

    export AWS_ENDPOINT_URL={url} AWS_REGION={region} AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test
    aws ecs list-clusters
"""


@asynccontextmanager
async def serve(
    aws: FakeAws, *, port: int = 0, host: str = "127.0.0.1", moto: bool | None = None
) -> AsyncGenerator[str]:
    """
    Answer at a port of *host* and yield the URL; port 0 is one that is free.

    With *moto*, what is not ours is moto's; None: if it is installed. Leaving the block ends every answer under way.

    :raises OSError: the port is taken
    :raises ModuleNotFoundError: *moto* is True, and it is not installed
    """
    if moto and not _moto.is_installed():
        raise ModuleNotFoundError("moto is not installed: pip install 'moto[server]', or use moto=False", name="moto")
    async with AsyncExitStack() as stack:
        others: _moto.Moto | None = None
        if moto or (moto is None and _moto.is_installed()):
            running = _moto.Moto.running(account=aws.account, region=aws.region)
            others = await stack.enter_async_context(running)
            stack.enter_context(_values_from(others, aws))
        face = _Face(aws, others)
        app = web.Application(client_max_size=_LARGEST_REQUEST)
        app.on_shutdown.append(face.close)
        app.on_response_prepare.append(face.date)
        app.router.add_route("*", "/{path:.*}", face.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=30.0, lingering_time=0)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, host, port)
        await site.start()
        bound: int = runner.addresses[0][1]
        url = f"http://{host}:{bound}"
        with _queues_at(aws, url):
            yield url


@contextmanager
def _queues_at(aws: FakeAws, url: str) -> Generator[None]:
    """Have SQS hand out addresses that lead here."""
    before, aws.sqs.url_prefix = aws.sqs.url_prefix, url
    try:
        yield
    finally:
        aws.sqs.url_prefix = before


@contextmanager
def _values_from(moto: _moto.Moto, aws: FakeAws) -> Generator[None]:
    """Have tasks find their secrets and environment files where clients put them."""
    before, aws.ecs.values = aws.ecs.values, _moto.Values(moto)
    try:
        yield
    finally:
        aws.ecs.values = before


class _Face:
    """What happens to a request."""

    def __init__(self, aws: FakeAws, others: _moto.Moto | None) -> None:
        self._aws = aws
        self._others = others
        self._ours = _OURS if others is not None else (*_OURS, *_WITHOUT_MOTO)
        self._under_way: set[asyncio.Task[Any]] = set()
        self._is_closing = False

    async def close(self, app: web.Application) -> None:
        """End every answer that is under way: long polls, streams, requests of which only half has come."""
        del app
        self._is_closing = True
        waiting = {task for task in self._under_way if task is not asyncio.current_task()}
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    async def date(self, request: web.Request, response: web.StreamResponse) -> None:
        """Have an answer tell the fake's own time, which need not be this machine's."""
        del request
        response.headers["Date"] = self._aws.date()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self._is_closing:
            return _hang_up(request)
        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        try:
            return await self._answer(request)
        finally:
            self._under_way.discard(task)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        path, _, query = request.raw_path.partition("?")
        request_id = str(uuid.uuid4())
        try:
            question = asked(request.headers, path, request.query, body, ours=(*self._ours, "ec2"))
        except AwsError as exc:
            version = "1.1" if "json-1.1" in request.headers.get("Content-Type", "") else "1.0"
            return _response(
                write_error(Asked(service="ecs", operation="", protocol="json", version=version), exc, request_id)
            )
        # Those of our tasks are nobody else's; clients look there for the address of what they have started.
        if question is not None and (interfaces := self._interfaces(question)):
            return _response(write_reply(question, {"NetworkInterfaces": interfaces}, request_id))
        if question is not None and question.service in self._ours:
            return await self._ask(request, question, request_id)
        if path == "/" and request.method == "GET" and not query and service_of(request.headers, request.query) is None:
            return self._welcome(request)
        if request.headers.get("Smithy-Protocol"):
            said = (
                f"the fake AWS does not speak {request.headers['Smithy-Protocol']}; have the client use JSON or query"
            )
            error = AwsError("UnknownOperationException", said)
            return _response(write_error(Asked(service="ecs", operation="", protocol="json"), error, request_id))
        if self._others is None:
            return _response(self._nobody(request, request_id))
        try:
            return _response(await self._others.answer(request.method, path, query, request.headers.items(), body))
        except Exception:  # noqa: BLE001 (moto's own failure: it is logged, and the client is not to try it again)
            _log.exception("moto failed at %s %s", request.method, path)
            return _response(self._nobody(request, request_id, failed=True))

    async def _ask(self, request: web.Request, question: Asked, request_id: str) -> web.StreamResponse:
        access_key = access_key_of(request.headers, request.query)
        try:
            request_ = dict(question.request)
            reply = await self._aws.call(question.service, question.operation, request_, access_key=access_key)
        except AwsError as exc:
            return _response(write_error(question, exc, request_id))
        except ConnectionCut as exc:
            if exc.how == "half" and exc.reply is not None:
                return await _half(request, write_reply(question, exc.reply, request_id))
            return _hang_up(request, reset=exc.how == "reset")
        except Exception:  # noqa: BLE001 (a bug of the fake: it is logged, and the client gets an answer all the same)
            _log.exception("the fake AWS failed at %s.%s", question.service, question.operation)
            failure = AwsError("InternalFailure", "the fake AWS failed, see its log", status=500)
            return _response(write_error(question, failure, request_id))
        shape = question.model.output_shape
        if shape is not None and shape.event_stream_name in reply:
            return await _stream(request, reply[shape.event_stream_name], request_id)
        return _response(write_reply(question, reply, request_id))

    def _interfaces(self, question: Asked) -> list[dict[str, Any]]:
        """Return the network interfaces of tasks, if it is them that are asked for by name."""
        if (question.service, question.operation) != ("ec2", "DescribeNetworkInterfaces"):
            return []
        request = question.request
        wanted = {*request.get("NetworkInterfaceIds", ())}
        for chosen in request.get("Filters", ()):
            if chosen.get("Name") == "network-interface-id":
                wanted |= {*chosen.get("Values", ())}
        found: list[dict[str, Any]] = []
        for task in self._aws.world.tasks.values() if wanted else ():
            interface = task.interface
            if interface is None or interface.eni not in wanted:
                continue
            address: dict[str, Any] = {
                "PrivateIpAddress": interface.address,
                "PrivateDnsName": f"ip-{interface.address.replace('.', '-')}.ec2.internal",
                # Who may reach the container at all reaches it at its own address.
                "Association": {"PublicIp": interface.address, "IpOwnerId": "amazon"},
            }
            found.append(
                {
                    "NetworkInterfaceId": interface.eni,
                    "Description": task.arn,
                    "InterfaceType": "interface",
                    "RequesterManaged": True,
                    "OwnerId": self._aws.account,
                    "SubnetId": interface.subnet,
                    "AvailabilityZone": task.zone,
                    "MacAddress": interface.mac,
                    "Status": "in-use",
                    **address,
                    "PrivateIpAddresses": [{**address, "Primary": True}],
                }
            )
        return found

    def _welcome(self, request: web.Request) -> web.Response:
        others = ", and by moto everything else that moto knows" if self._others is not None else ""
        url = f"http://{request.host}"
        return web.Response(text=_WELCOME.format(others=others, url=url, region=self._aws.region))

    def _nobody(self, request: web.Request, request_id: str, *, failed: bool = False) -> Written:
        """Say that the service is nobody's here."""
        service = service_of(request.headers, request.query)
        target = request.headers.get("X-Amz-Target", "")
        named = service or target.partition(".")[0] or f"{request.method} {request.path}"
        message = f"the fake AWS does not speak {named}; moto would: pip install 'moto[server]' and start it again"
        if failed:
            message = f"neither the fake AWS nor moto can answer {named}; the log of the fake AWS says more"
        error = AwsError("NotImplemented", message, status=501)
        protocol = "json" if target or "json" in request.headers.get("Content-Type", "") else "query"
        return write_error(Asked(service="sts", operation="", protocol=protocol), error, request_id)


def _response(written: Written) -> web.Response:
    return web.Response(status=written.status, headers=written.headers, body=written.body)


def _hang_up(request: web.Request, *, reset: bool = False) -> web.Response:
    """End the connection without an answer."""
    transport = request.transport
    if transport is not None:
        if reset and (peer := transport.get_extra_info("socket")) is not None:
            # To linger for no time is to send RST in place of FIN.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()


async def _half(request: web.Request, written: Written) -> web.StreamResponse:
    """Send the first half of an answer, and end the connection."""
    response = web.StreamResponse(status=written.status, headers=written.headers)
    response.content_length = len(written.body)
    await response.prepare(request)
    await response.write(written.body[: len(written.body) // 2])
    if request.transport is not None:
        request.transport.close()
    return response


async def _stream(request: web.Request, events: Any, request_id: str) -> web.StreamResponse:
    """Send the events of a reply as they come, until the client has enough or the stream ends."""
    response = web.StreamResponse(headers={"Content-Type": EVENT_STREAM_TYPE, "x-amzn-RequestId": request_id})
    try:
        await response.prepare(request)
        await response.write(initial_frame())
        try:
            async for event in events:
                for name, members in event.items():
                    await response.write(event_frame(name, members))
        except AwsError as exc:
            await response.write(error_frame(exc))
        await response.write_eof()
    except ConnectionError:
        pass  # the client has left
    finally:
        await events.aclose()
    return response
