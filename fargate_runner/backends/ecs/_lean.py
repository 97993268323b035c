"""
botocore without aiohttp: it makes and signs each request and reads its reply, and asyncio carries them.

aioboto3 is loaded for what this cannot do. Importing it takes longer than all else in a cold start, and most of that
is aiohttp, of which a JSON request and its answer need next to nothing. What is used of botocore are hooks that were
made for it: components of the session, the event ``before-send``, the models and parsers. Where one of them is not as
it was, `LeanSession` cannot be made, and everything goes through aioboto3.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, Self, final
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import attrs
from attrs import field

from fargate_runner._errors import BackendUnavailable
from fargate_runner._gc import no_gc
from fargate_runner.backends.ecs import _wire

__all__ = ["CONNECT_TIMEOUT", "LEAN", "PLAIN_REPLIES", "POOL", "READ_TIMEOUT", "LeanSession", "lean_loader"]

CONNECT_TIMEOUT: Final = 5.0
READ_TIMEOUT: Final = 30.0
POOL: Final = 100
"""Connections of one client."""
_KEPT: Final = 12.0
"""Seconds that an unused connection is good for; aiobotocore has the same (DEFAULT_KEEPALIVE_TIMEOUT)."""
_HAPPY: Final = 0.25
"""Seconds before another address of a host is tried beside the first, as RFC 8305 has it: IPv6 may lead nowhere."""
_AT_ONCE: Final = 2**18
"""Bytes that are read before they are asked for: a look at a hundred tasks."""

LEAN: Final = frozenset({"ecs", "logs", "dynamodb", "sqs", "sns", "events", "ssm", "sts", "stepfunctions"})
"""Services whose requests and replies are short texts. S3 wants to be asked before a body is sent, and streams."""

PLAIN_REPLIES: Final = frozenset(
    {
        *("RunTaskResponse", "StopTaskResponse", "DescribeTasksResponse", "ListTasksResponse"),
        *("DescribeTaskDefinitionResponse", "RegisterTaskDefinitionResponse"),
        *("GetLogEventsResponse", "FilterLogEventsResponse"),
    }
)
"""
Replies that are read as plain JSON: large or frequent, no member of them renamed or binary, so that only the timestamps
differ from what botocore makes of them. They stay seconds since the epoch. A test holds this to the model.
"""


# ---- what botocore reads -------------------------------------------------------------------------------------------


def fast_parsers(stock_factory: Any) -> Any:
    """
    Return a factory of parsers that leaves the replies of `PLAIN_REPLIES` as JSON has them.

    Four fifths of a DescribeTasks call are botocore's walk over the shapes of fields that nobody reads. Errors, streams
    of events, other replies and the metadata are those of *stock_factory* as ever.

    :raises TypeError: this botocore reads JSON in another way
    """
    from botocore.parsers import ResponseParserError

    stock: Any = type(stock_factory().create_parser("json"))
    if inspect.iscoroutinefunction(stock._handle_json_body):
        raise TypeError("this botocore reads JSON in another way")
    loads, sketched = json_loads()

    class JsonParser(stock):  # type: ignore[misc]
        def _handle_json_body(self, raw_body: bytes, shape: Any) -> Any:
            name = getattr(shape, "name", None)
            if name not in PLAIN_REPLIES:
                return super()._handle_json_body(raw_body, shape)
            if name == "DescribeTasksResponse" and (page := sketched(raw_body)) is not None:
                return page
            try:
                reply = loads(raw_body)
            except (ValueError, RecursionError) as exc:
                raise ResponseParserError(f"not JSON: {raw_body[:100]!r}") from exc
            if not isinstance(reply, dict):
                raise ResponseParserError(f"not a JSON object: {raw_body[:100]!r}")
            return reply

    class Factory(stock_factory):  # type: ignore[misc]
        def create_parser(self, protocol_name: str, *args: Any, **kwargs: Any) -> Any:
            if protocol_name == "json" and not args and not kwargs:
                return JsonParser(**self._defaults)
            return super().create_parser(protocol_name, *args, **kwargs)

    return Factory()


def json_loads() -> tuple[Callable[[bytes], Any], Callable[[bytes], dict[str, Any] | None]]:
    """
    Return what reads JSON, and what reads a page of tasks no further than has to be; that one may find it odd: None.

    Where msgspec is installed the first takes half the time, and the second a tenth; else json reads everything. All
    read alike.
    """
    try:
        import msgspec
    except ImportError:
        return json.loads, lambda body: None

    def loads(body: bytes) -> Any:
        try:
            return msgspec.json.decode(body)
        except ValueError:
            return json.loads(body)  # half of a surrogate pair, say, which json lets pass

    # A look tells of a hundred tasks, most of which have not changed: nothing is made of these, so that nothing has to
    # be collected either, which costs a process with thousands of jobs more than the reading.
    glance_type = msgspec.defstruct("Glance", [(name, Any, _ABSENT) for name in _wire.TOLD_AT_A_GLANCE], gc=False)
    glance = msgspec.json.Decoder(glance_type)
    page_type = msgspec.defstruct("Page", [("tasks", list[msgspec.Raw]), ("failures", Any, _ABSENT)])
    page = msgspec.json.Decoder(page_type)

    def sketched(body: bytes) -> dict[str, Any] | None:
        try:
            body.decode()  # who reads no further sees no bytes that are no text
            found: Any = page.decode(body)
            reply: dict[str, Any] = {"tasks": [Sketch(glance.decode(raw), raw, loads) for raw in found.tasks]}
        except (ValueError, RecursionError):
            return None
        if found.failures is not _ABSENT:
            reply["failures"] = found.failures
        return reply

    return loads, sketched


_ABSENT: Final = object()


@final
class Sketch(Mapping[str, Any]):
    """A part of a reply of which a few members are read; all of it is read when somebody asks for another."""

    __slots__ = ("_glance", "_loads", "_raw", "_whole")

    def __init__(self, glance: object, raw: Any, loads: Callable[[Any], dict[str, Any]]) -> None:
        self._glance = glance
        self._raw: Any = raw
        self._loads = loads
        self._whole: dict[str, Any] | None = None

    def _all(self) -> dict[str, Any]:
        if self._whole is None:
            # A copy: it would keep the whole page alive.
            self._whole, self._raw = self._loads(bytes(self._raw)), None
        return self._whole

    def get(self, key: str, default: Any = None) -> Any:
        found = getattr(self._glance, key, self)
        if found is self:
            return self._all().get(key, default)
        return default if found is _ABSENT else found

    def __getitem__(self, key: str) -> Any:
        return self._all()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


def lean_loader(data_path: str | None, *, with_endpoints: bool = False) -> Any:
    """
    Return a loader of botocore's data that reads what we need, and as plain dictionaries.

    The first client of a session looks into four hundred folders for the names of all services, and reads a megabyte of
    endpoints from before there were rules for them. Of the services in `LEAN`, none takes anything from there; S3 does.
    """
    import gzip
    from pathlib import Path

    from botocore.loaders import JSONFileLoader, Loader, create_loader

    stock = create_loader(data_path)

    class PlainFiles(JSONFileLoader):  # type: ignore[misc]
        def load_file(self, file_path: str) -> Any:
            if (path := Path(f"{file_path}.json")).is_file():
                return json.loads(path.read_bytes())
            if (path := Path(f"{file_path}.json.gz")).is_file():
                return json.loads(gzip.decompress(path.read_bytes()))
            return super().load_file(file_path)

    class LeanLoader(Loader):  # type: ignore[misc]
        _wanted = ""

        def load_service_model(self, service_name: str, *args: Any, **kwargs: Any) -> Any:
            self._wanted = service_name
            try:
                return super().load_service_model(service_name, *args, **kwargs)
            finally:
                self._wanted = ""

        def load_data_with_path(self, name: str) -> Any:
            return no_endpoints if name == "endpoints" and is_spared else super().load_data_with_path(name)

        def list_available_services(self, type_name: str) -> Any:
            return [self._wanted] if self._wanted in KNOWN else super().list_available_services(type_name)

    loader = LeanLoader(file_loader=PlainFiles())
    loader.search_paths[:] = stock.search_paths
    # Somebody's own endpoints replace the rules.
    others = [Path(path) for path in stock.search_paths if path != Loader.BUILTIN_DATA_PATH]
    is_spared = not with_endpoints and not any(loader.file_loader.exists(str(path / "endpoints")) for path in others)
    no_endpoints = {"version": 3, "partitions": []}, str(Path(Loader.BUILTIN_DATA_PATH, "endpoints.json"))
    return loader


KNOWN: Final = LEAN | {"s3", "ec2"}
"""Services that botocore need not look for."""


# ---- what carries --------------------------------------------------------------------------------------------------

_DIGITS: Final = re.compile("[0-9]+")
_HEX_DIGITS: Final = re.compile("[0-9A-Fa-f]+")


class NotConnected(OSError):
    """There was nobody at the other end: what was to be sent was not."""


@attrs.frozen
class Reply:
    """An answer, as botocore's parsers want it."""

    status_code: int
    headers: Any
    content: bytes = field(repr=False)


class _Broken(Exception):
    """What came is no answer of HTTP, or half of one."""


@attrs.define(eq=False)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    used_at: float = 0.0

    def is_good(self, now: float) -> bool:
        return self.is_quiet and not self.writer.is_closing() and now - self.used_at < _KEPT

    @property
    def is_quiet(self) -> bool:
        """Whether nothing came that nobody asked for: it would be taken for the next answer."""
        return not self.reader.at_eof() and not getattr(self.reader, "_buffer", b"")

    def cut(self) -> None:
        self.writer.transport.abort()


class Carrier:
    """
    Carries requests over HTTP/1.1, on connections that are kept for the next ones.

    It tries nothing twice. Belongs to one event loop. *tls* gives the context of connections that need one; timeouts
    are seconds, and *most* is how many connections there are at a time.
    """

    def __init__(
        self,
        tls: Callable[[], ssl.SSLContext],
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
        read_timeout: float = READ_TIMEOUT,
        most: int = POOL,
    ) -> None:
        self._tls = tls
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._idle: dict[tuple[str, str, int], list[_Connection]] = {}
        self._all: set[_Connection] = set()
        self._is_closed = False
        self._room = asyncio.Semaphore(most)

    async def send(self, request: Any) -> Reply:
        """
        Send what botocore has prepared and return the answer, whatever its status. Cancelled, it cuts the connection.

        :raises botocore.exceptions.HTTPClientError: there was nobody, or no whole answer in time
        """
        from botocore import exceptions

        parts = urlsplit(request.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        place = parts.scheme, parts.hostname or "", port
        message = _message(request, parts)
        async with self._room:
            try:
                connection = self._kept(place) or await self._connect(place)
            except ssl.SSLError as exc:
                raise exceptions.SSLError(endpoint_url=request.url, error=exc) from exc
            except TimeoutError as exc:
                raise exceptions.ConnectTimeoutError(endpoint_url=request.url, error=exc) from exc
            except OSError as exc:
                inner = NotConnected(str(exc))
                raise exceptions.EndpointConnectionError(endpoint_url=request.url, error=inner) from exc
            if self._is_closed:
                self._drop(connection)
                closed = NotConnected("it was closed meanwhile")
                raise exceptions.EndpointConnectionError(endpoint_url=request.url, error=closed)
            try:
                reply, stays = await _ask(connection, message, self._read_timeout)
            except BaseException as exc:
                self._drop(connection)
                if isinstance(exc, TimeoutError):
                    raise exceptions.ReadTimeoutError(endpoint_url=request.url, error=exc) from exc
                if isinstance(exc, (OSError, EOFError, asyncio.LimitOverrunError, _Broken)):
                    raise exceptions.ConnectionClosedError(endpoint_url=request.url, error=exc) from exc
                raise
            if stays:
                connection.used_at = asyncio.get_running_loop().time()
                self._idle.setdefault(place, []).append(connection)
            else:
                self._drop(connection)
            return reply

    async def aclose(self) -> None:
        """Cut all connections. What has not begun to go out never will."""
        self._is_closed = True
        connections, self._all = list(self._all), set[_Connection]()
        self._idle.clear()
        for connection in connections:
            connection.cut()
        for connection in connections:
            with suppress(OSError):  # so it was cut already
                await connection.writer.wait_closed()

    def _kept(self, place: tuple[str, str, int]) -> _Connection | None:
        idle, now = self._idle.get(place, []), asyncio.get_running_loop().time()
        while idle:
            connection = idle.pop()  # the one that was used last: the others may grow old
            if connection.is_good(now):
                return connection
            self._drop(connection)
        return None

    async def _connect(self, place: tuple[str, str, int]) -> _Connection:
        scheme, host, port = place
        context = self._tls() if scheme == "https" else None
        with anyio.fail_after(self._connect_timeout):
            reader, writer = await asyncio.open_connection(
                host, port, ssl=context, limit=_AT_ONCE, happy_eyeballs_delay=_HAPPY
            )
        connection = _Connection(reader, writer)
        self._all.add(connection)
        return connection

    def _drop(self, connection: _Connection) -> None:
        self._all.discard(connection)
        connection.cut()


def _message(request: Any, parts: Any) -> bytes:
    host = parts.netloc.rpartition("@")[2]
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    body = request.body or b""
    body = body.encode() if isinstance(body, str) else body
    # As it was signed: AWS's signature takes the host without its usual port.
    host = host.removesuffix(":443" if parts.scheme == "https" else ":80")
    lines = [f"{request.method} {target} HTTP/1.1", f"Host: {host}", "Accept-Encoding: identity"]
    known = {"host", "accept-encoding"}
    for name, value in request.headers.items():
        if name.lower() not in known:
            known.add(name.lower())
            lines.append(f"{name}: {value.decode() if isinstance(value, bytes) else value}")
    if "content-length" not in known:
        lines.append(f"Content-Length: {len(body)}")
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header of a request must be one line")
    return "\r\n".join((*lines, "\r\n")).encode() + body


async def _ask(connection: _Connection, message: bytes, patience: float) -> tuple[Reply, bool]:
    """Return the answer, and whether the connection can be kept; *patience* is for its head, and again for its body."""
    from botocore.awsrequest import HeadersDict

    reader, writer = connection.reader, connection.writer
    status, version, headers = 100, "", dict[str, str]()
    with anyio.fail_after(patience):
        writer.write(message)
        await writer.drain()
        while status < 200:  # "100 Continue" is none yet
            status, version, headers = _head(await reader.readuntil(b"\r\n\r\n"))
    with anyio.fail_after(patience):
        body = b"" if status in {204, 304} else await _body(reader, headers)
    said = headers.get("connection", "").lower()
    stays = said != "close" if version == "HTTP/1.1" else said == "keep-alive"
    return Reply(status, HeadersDict(headers), body), stays and connection.is_quiet


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return await _chunks(reader)
    if (length := headers.get("content-length")) is None:
        return await reader.read()
    if not _DIGITS.fullmatch(length):
        raise _Broken(f"a length of {length!r}")
    return await reader.readexactly(int(length))


def _head(head: bytes) -> tuple[int, str, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1.") or not _DIGITS.fullmatch(rest[:3]):
        raise _Broken(f"not HTTP: {first[:100]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(rest[:3]), version, headers


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    chunks: list[bytes] = []
    while True:
        size = (await reader.readuntil(b"\r\n")).partition(b";")[0].strip().decode("latin-1")
        if not _HEX_DIGITS.fullmatch(size):
            raise _Broken(f"a chunk of {size[:20]!r} bytes")
        length = int(size, 16)
        if length == 0:
            while await reader.readuntil(b"\r\n") != b"\r\n":
                pass  # trailers
            return b"".join(chunks)
        chunks.append(await reader.readexactly(length))
        if await reader.readexactly(2) != b"\r\n":
            raise _Broken("a chunk that goes on")


# ---- clients -------------------------------------------------------------------------------------------------------


class _Prepared(Exception):
    """Instead of sending a request: here it is."""

    def __init__(self, request: Any) -> None:
        super().__init__()
        self.request = request


def _catch(request: Any, **_: Any) -> None:
    raise _Prepared(request)


class LeanClient:
    """A client of botocore's whose methods are asynchronous, and an asynchronous context manager of itself."""

    def __init__(self, client: Any, parser: Any, credentials: Any, tls: Callable[[], ssl.SSLContext]) -> None:
        client.meta.events.register("before-send", _catch)
        self.meta = client.meta
        self._client = client
        self._credentials = credentials
        self._parser = parser
        self._carrier: Carrier | None = None
        self._tls = tls

    def __getattr__(self, name: str) -> Callable[..., Awaitable[dict[str, Any]]]:
        try:
            operation = self.meta.method_to_api_mapping[name]
        except KeyError:
            raise AttributeError(f"this client has no operation {name!r}") from None
        prepare = getattr(self._client, name)
        model = self.meta.service_model.operation_model(operation)
        if model.has_streaming_output or model.has_event_stream_output:
            raise NotImplementedError(f"{operation} answers with a stream: hand in aioboto3.Session() to read it")

        async def call(**request: Any) -> dict[str, Any]:
            prepared = await self._prepared(prepare, request)
            if self._carrier is None:
                self._carrier = Carrier(self._tls)
            return self._read(model, await self._carrier.send(prepared))

        self.__dict__[name] = call
        return call

    async def _prepared(self, prepare: Callable[..., Any], request: dict[str, Any]) -> Any:
        """Return the request as it goes out, signed."""

        def sign() -> Any:
            try:
                prepare(**request)
            except _Prepared as caught:
                return caught.request
            raise RuntimeError("botocore sent a request that it was to hand out")

        is_due = getattr(self._credentials, "refresh_needed", None)
        if is_due is not None and is_due():  # asks a server or a file, and waits for it
            return await anyio.to_thread.run_sync(sign, abandon_on_cancel=True)
        return sign()

    def _read(self, model: Any, reply: Reply) -> dict[str, Any]:
        from botocore.endpoint import convert_to_response_dict
        from botocore.exceptions import ClientError

        said = convert_to_response_dict(reply, model)
        read: dict[str, Any] = self._parser.parse(said, model.output_shape)
        if reply.status_code < 300:
            return read
        shape = model.service_model.shape_for_error_code(read.get("Error", {}).get("Code"))
        if shape is not None:
            read.update(self._parser.parse(said, shape))
        raise ClientError(read, model.name)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._carrier is not None:
            await self._carrier.aclose()


class LeanSession:
    """
    A session of botocore's, and of aioboto3's for what is asked of it alone. Both are of this process's environment.

    :raises Exception: of many kinds, if botocore is not what it was
    """

    def __init__(self) -> None:
        from botocore.parsers import ResponseParserFactory
        from botocore.session import get_session

        self.core: Any = get_session()
        self._parsers = fast_parsers(ResponseParserFactory)
        self.core.register_component("data_loader", lean_loader(self.core.get_config_variable("data_path")))
        self._others: Any = None
        self._making = threading.Lock()  # botocore's sessions are not for two threads, and doors may share this one
        self._context: ssl.SSLContext | None = None

    @property
    def region_name(self) -> str | None:
        region = self.core.get_config_variable("region")
        return region if isinstance(region, str) else None

    def make(self, service: str, config: Mapping[str, Any], **known: Any) -> LeanClient | None:
        """Make a client; None if only aioboto3 can. For a worker thread: it reads files, and may ask for a role."""
        from botocore.config import Config
        from botocore.utils import get_environ_proxies

        if service not in LEAN:
            return None
        with self._making:
            self.core.get_credentials()  # which may take long: somebody is asked for a role, or for a code
        with self._making, no_gc():
            client = self.core.create_client(service, config=Config(**config), **known)
            if get_environ_proxies(client.meta.endpoint_url):
                return None
            if client.meta.endpoint_url.startswith("https:"):
                self._tls()  # here, where it does not stall the event loop
            model = client.meta.service_model
            parser = self._parsers.create_parser(getattr(model, "resolved_protocol", model.metadata["protocol"]))
            return LeanClient(client, parser, self.core.get_credentials(), self._tls)

    def others(self, service: str) -> Any:
        """Return a session of aioboto3 that has read what a client of *service* needs. For a worker thread."""
        with self._making, no_gc():
            if self._others is None:
                import aioboto3
                from aiobotocore.parsers import AioResponseParserFactory
                from aiobotocore.session import get_session

                core = get_session()
                core.register_component("response_parser_factory", fast_parsers(AioResponseParserFactory))
                loader = lean_loader(core.get_config_variable("data_path"), with_endpoints=True)
                core.register_component("data_loader", loader)
                self._others = aioboto3.Session(botocore_session=core)
            loader = self._others._session.get_component("data_loader")
            for kind in ("service-2", "endpoint-rule-set-1"):
                loader.load_service_model(service, kind, api_version=None)
            for name in ("endpoints", "partitions", "_retry"):  # a megabyte, which clients would read on the event loop
                loader.load_data(name)
            return self._others

    def _tls(self) -> ssl.SSLContext:
        """Return the one context of all clients; reading the certificates takes as long as making a client."""
        if self._context is None:
            from botocore.httpsession import get_cert_path

            bundle = self.core.get_config_variable("ca_bundle")
            path = get_cert_path(True if bundle is None else bundle)
            try:
                context = ssl.create_default_context(cafile=path)
            except OSError as exc:
                fix = "correct AWS_CA_BUNDLE, or ca_bundle in the profile"
                raise BackendUnavailable(f"no certificates can be read from {path!r} ({exc}); {fix}") from exc
            # As botocore has it. Since Python 3.13 certificates are held to the letter, and those of companies fail.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            self._context = context
        return self._context
