"""botocore without aiohttp: what carries its requests, what it makes of each answer, and when aioboto3 has to do it."""

from __future__ import annotations

import asyncio
import datetime as dt
import gc
import ipaddress
import socket
import ssl
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from botocore import exceptions
from botocore.auth import _host_from_url
from botocore.credentials import RefreshableCredentials
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fargate_runner import BackendUnavailable
from fargate_runner.backends.ecs import _lean
from fargate_runner.backends.ecs._api import Api, ApiError, Trouble
from fargate_runner.backends.ecs._lean import Carrier, LeanClient, LeanSession, lean_loader
from fargate_runner.testing.aws import FakeAws

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
NO_CONFIG: dict[str, Any] = {}


@pytest.fixture
def anyio_backend() -> object:
    return "asyncio"  # real sockets take real time


@pytest.fixture(autouse=True)
def somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAFAKE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fake")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


class Canned:
    """A server that answers each request with the next of its answers, as it is, and cuts the connection behind b''."""

    def __init__(self, answers: Sequence[bytes]) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[int, bytes]] = []
        """Which connection it came by, and what it was."""
        self.connections = 0
        self.cut = asyncio.Event()
        """A client has cut a connection in the middle of a request."""
        self.url = ""
        self.serving: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving[task] = writer
        self.connections += 1
        number = self.connections
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0
                )
                self.requests.append((number, head + await reader.readexactly(length)))
                if not self.answers:
                    await reader.read()
                    self.cut.set()
                    return
                answer = self.answers.pop(0)
                writer.write(answer)
                if not answer or answer.endswith(b"!"):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def close(self) -> None:
        for writer in self.serving.values():
            writer.transport.abort()
        if self.serving:
            await asyncio.wait(self.serving)
        for writer in self.serving.values():
            with suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def server(*answers: bytes, tls: ssl.SSLContext | None = None) -> AsyncGenerator[Canned]:
    canned = Canned(answers)
    listening = await asyncio.start_server(canned.serve, "127.0.0.1", 0, ssl=tls)
    scheme = "http" if tls is None else "https"
    canned.url = f"{scheme}://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield canned
    finally:
        listening.close()
        await canned.close()


def request(url: str, body: Any = b"{}", **headers: Any) -> Any:
    return SimpleNamespace(method="POST", url=url, headers=headers, body=body)


def no_tls() -> ssl.SSLContext:
    raise AssertionError("nothing here needs it")


@asynccontextmanager
async def carrier(tls: Callable[[], ssl.SSLContext] = no_tls, **limits: Any) -> AsyncGenerator[Carrier]:
    carrier = Carrier(tls, **limits)
    try:
        yield carrier
    finally:
        await carrier.aclose()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWERS = {
    "of a length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "in chunks": CHUNKED + b"3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nTrailer: 1\r\n\r\n",
    "behind another": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "without a reason": b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello",
}
LAST_ANSWERS = {
    "up to the end": b"HTTP/1.1 200 OK\r\n\r\nhello!",
    "that says it is the last": b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 6\r\n\r\nhello!",
    "of an old server": b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello!",
}
BROKEN = {
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-!",
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello!",
    "half a chunk": CHUNKED + b"30\r\nhel!",
    "no length": b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello!",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello!",
    "no size of a chunk": CHUNKED + b"x\r\nhel!",
    "a chunk of less than nothing": CHUNKED + b"-1\r\nhel!",
    "a length in other digits": b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\nhello!",
    "a chunk that is longer": CHUNKED + b"1\r\nhXX0\r\n\r\n!",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n\r\n!",
    "no status": b"HTTP/1.1 OK\r\n\r\n!",
    "an endless head": b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 2**19 + b"\r\n\r\n!",
}


class TestAnswers:
    @pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
    async def test_are_read_and_the_connection_kept(self, answer: bytes) -> None:
        async with server(answer, OK) as canned, carrier() as ours:
            first = await ours.send(request(canned.url))
            second = await ours.send(request(canned.url))

        assert (first.status_code, first.content) == (200, b"hello")
        assert second.content == b"{}"
        assert canned.connections == 1

    @pytest.mark.parametrize("answer", LAST_ANSWERS.values(), ids=LAST_ANSWERS.keys())
    async def test_are_read_and_the_connection_is_not_used_again(self, answer: bytes) -> None:
        async with server(answer, OK) as canned, carrier() as ours:
            first = await ours.send(request(canned.url))
            second = await ours.send(request(canned.url))

        assert first.content == b"hello!"
        assert second.content == b"{}"
        assert canned.connections == 2

    @pytest.mark.parametrize("status", [204, 304])
    async def test_may_have_no_body_by_their_status(self, status: int) -> None:
        async with server(f"HTTP/1.1 {status} None\r\n\r\n".encode(), OK) as canned, carrier() as ours:
            first = await ours.send(request(canned.url))
            second = await ours.send(request(canned.url))

        assert (first.status_code, first.content) == (status, b"")
        assert second.status_code == 200

    @pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN.keys())
    async def test_that_are_none_are_told_and_their_connection_is_cut(self, answer: bytes) -> None:
        async with server(answer, OK) as canned, carrier() as ours:
            with pytest.raises(exceptions.ConnectionClosedError):
                await ours.send(request(canned.url))
            again = await ours.send(request(canned.url))

        assert again.content == b"{}"
        assert canned.connections == 2

    async def test_that_do_not_come_are_not_waited_for_without_end(self) -> None:
        async with server() as canned, carrier(read_timeout=0.02) as ours:
            with pytest.raises(exceptions.ReadTimeoutError):
                await ours.send(request(canned.url))
            with anyio.fail_after(5):
                await canned.cut.wait()

    async def test_large_ones_are_whole(self) -> None:
        body = b"x" * 2_000_000
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

        async with server(answer) as canned, carrier() as ours:
            reply = await ours.send(request(canned.url, body))

        assert reply.content == body
        assert canned.requests[0][1].endswith(body)


class TestRequests:
    async def test_say_what_was_signed(self) -> None:
        headers = {"X-Amz-Target": b"a.B", "Authorization": "AWS4 …", "Host": "elsewhere", "Content-Length": "2"}

        async with server(OK) as canned, carrier() as ours:
            await ours.send(request(f"{canned.url}/a/b?c=d%2F", **headers))

        head = canned.requests[0][1].partition(b"\r\n\r\n")[0].decode().split("\r\n")
        assert head[0] == "POST /a/b?c=d%2F HTTP/1.1"
        assert sorted(head[1:]) == [
            "Accept-Encoding: identity",
            "Authorization: AWS4 …",
            "Content-Length: 2",
            f"Host: {canned.url.removeprefix('http://')}",
            "X-Amz-Target: a.B",
        ]

    @pytest.mark.parametrize(("body", "sent"), [(None, b""), ("ä", "ä".encode()), (b"\0", b"\0")])
    async def test_have_the_length_of_their_body(self, body: Any, sent: bytes) -> None:
        async with server(OK) as canned, carrier() as ours:
            await ours.send(request(canned.url, body))

        assert canned.requests[0][1].endswith(f"Content-Length: {len(sent)}\r\n\r\n".encode() + sent)

    @pytest.mark.parametrize(
        ("url", "host"),
        [
            ("https://ecs.example:443/", "ecs.example"),
            ("http://ecs.example:80/", "ecs.example"),
            ("https://ecs.example:80/", "ecs.example:80"),
            ("http://ecs.example:8080/", "ecs.example:8080"),
            ("http://[::1]:80/", "[::1]"),
            ("http://[::80]/", "[::80]"),
            ("https://me@ecs.example/", "ecs.example"),
        ],
    )
    def test_name_the_host_as_it_was_signed(self, url: str, host: str) -> None:
        message = _lean._message(request(url), urlsplit(url))

        assert f"\r\nHost: {host}\r\n".encode() in message
        assert host == _host_from_url(url)

    async def test_cannot_smuggle_a_header(self) -> None:
        async with server(OK) as canned, carrier() as ours:
            with pytest.raises(ValueError, match="one line"):
                await ours.send(request(canned.url, **{"X-A": "b\r\nX-C: d"}))

        assert canned.requests == []


class TestConnections:
    async def test_are_as_many_as_are_under_way(self) -> None:
        async with server(OK, OK, OK, OK) as canned, carrier() as ours:
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(ours.send, request(canned.url))
            await ours.send(request(canned.url))

        assert canned.connections == 3

    async def test_are_no_more_than_said(self) -> None:
        async with server(OK, OK, OK) as canned, carrier(most=1) as ours, anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(ours.send, request(canned.url))

        assert canned.connections == 1

    async def test_that_were_cut_meanwhile_are_not_used(self) -> None:
        async with server(OK + b"", OK) as canned, carrier() as ours:
            await ours.send(request(canned.url))
            ((kept,),) = ours._idle.values()
            kept.reader.feed_eof()
            await ours.send(request(canned.url))

        assert canned.connections == 2

    async def test_on_which_more_came_than_was_asked_for_are_not_used(self) -> None:
        async with server(OK + OK, OK) as canned, carrier() as ours:
            await ours.send(request(canned.url))
            await ours.send(request(canned.url))

        assert canned.connections == 2

    async def test_on_which_something_came_meanwhile_are_not_used(self) -> None:
        async with server(OK, OK) as canned, carrier() as ours:
            await ours.send(request(canned.url))
            ((kept,),) = ours._idle.values()
            kept.reader.feed_data(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
            await ours.send(request(canned.url))

        assert canned.connections == 2

    async def test_that_are_made_while_all_are_closed_carry_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop, asked, go = asyncio.get_running_loop(), anyio.Event(), anyio.Event()
        connect = loop.sock_connect

        async def slow(sock: socket.socket, address: Any) -> None:
            asked.set()
            await go.wait()
            await connect(sock, address)

        async def send() -> None:
            with pytest.raises(exceptions.EndpointConnectionError):
                await ours.send(request(canned.url))

        monkeypatch.setattr(loop, "sock_connect", slow)
        async with server(OK) as canned, carrier() as ours, anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await asked.wait()
            await ours.aclose()
            go.set()

        assert canned.requests == []
        assert ours._all == set()

    async def test_that_were_not_used_for_long_are_not_used(self) -> None:
        async with server(OK, OK) as canned, carrier() as ours:
            await ours.send(request(canned.url))
            ((kept,),) = ours._idle.values()
            kept.used_at -= 12.5
            await ours.send(request(canned.url))

        assert canned.connections == 2

    async def test_take_another_address_where_the_first_says_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        connect, looked_up = loop.sock_connect, loop.getaddrinfo

        async def silent(sock: socket.socket, address: Any) -> None:
            await (anyio.sleep_forever() if address[0] == "127.0.0.2" else connect(sock, address))

        async def both(host: str, port: int, **options: Any) -> list[Any]:
            return [found for each in ("127.0.0.2", "127.0.0.1") for found in await looked_up(each, port, **options)]

        monkeypatch.setattr(loop, "sock_connect", silent)
        monkeypatch.setattr(loop, "getaddrinfo", both)
        async with server(OK) as canned, carrier() as ours:
            reply = await ours.send(request(canned.url.replace("127.0.0.1", "localhost")))

        assert (reply.status_code, canned.connections) == (200, 1)

    async def test_of_a_call_that_is_cancelled_are_cut(self) -> None:
        async with server() as canned, carrier() as ours:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ours.send, request(canned.url))
                with anyio.fail_after(5):
                    while not canned.requests:
                        await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            with anyio.fail_after(5):
                await canned.cut.wait()
            left = ours._all

        assert not left

    async def test_that_cannot_be_made_in_time_are_told(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
            async with carrier(connect_timeout=0.0) as ours:
                with pytest.raises(exceptions.ConnectTimeoutError):
                    await ours.send(request(url))
                left = ours._all

        assert not left

    async def test_to_nobody_say_that_nothing_was_sent(self) -> None:
        async with server() as canned:
            url = canned.url

        api = Api(region="us-east-1", endpoint_url=url)
        async with api.running(), carrier() as ours:
            with pytest.raises(exceptions.EndpointConnectionError):
                await ours.send(request(url))
            with pytest.raises(ApiError) as caught:
                await api.call("ecs.ListTasks", float("inf"), 0.0)

        assert caught.value.trouble is Trouble.TRANSIENT
        assert not caught.value.in_doubt


# ---- TLS -----------------------------------------------------------------------------------------------------------


def certificate(directory: Path, name: x509.GeneralName) -> tuple[Path, ssl.SSLContext]:
    """A certificate that vouches for itself: where it is, and what a server with it needs."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fake")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(who, who, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "certificate.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret = directory / "key.pem"
    plain = serialization.NoEncryption()
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path, secret)
    return path, context


HERE = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
LISTED = b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"taskArns":[]}'


class TestTls:
    async def test_trusts_the_bundle_of_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path, context = certificate(tmp_path, HERE)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(path))

        async with server(LISTED, tls=context) as canned:
            api = Api(region="us-east-1", endpoint_url=canned.url)
            async with api.running():
                reply = await api.call("ecs.ListTasks")

        assert reply["taskArns"] == []

    @pytest.mark.parametrize("name", [HERE, x509.DNSName("elsewhere.example")], ids=["unknown", "another host"])
    async def test_trusts_nobody_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: x509.GeneralName
    ) -> None:
        path, context = certificate(tmp_path, name)
        if name is not HERE:
            monkeypatch.setenv("AWS_CA_BUNDLE", str(path))

        async with server(LISTED, tls=context) as canned:
            api = Api(region="us-east-1", endpoint_url=canned.url)
            async with api.running():
                with pytest.raises(ApiError, match="SSL validation failed") as caught:
                    await api.call("ecs.ListTasks", float("inf"), 0.0)

        assert not caught.value.in_doubt
        assert canned.requests == []

    @pytest.mark.parametrize("content", [None, "no certificate"])
    async def test_a_bundle_that_cannot_be_read_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
    ) -> None:
        bundle = tmp_path / "bundle.pem"
        monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
        if content is not None:
            bundle.write_text(content)
        api = Api(region="us-east-1")

        async with api.running():
            with pytest.raises(BackendUnavailable, match=r"bundle\.pem.*correct AWS_CA_BUNDLE"):
                await api.call("ecs.ListTasks")

    async def test_reads_certificates_once(self) -> None:
        session = LeanSession()

        assert session._tls() is session._tls()
        assert session._tls().verify_mode is ssl.CERT_REQUIRED
        assert session._tls().check_hostname


# ---- clients and sessions ------------------------------------------------------------------------------------------


class TestClients:
    @pytest.mark.parametrize(
        ("proxy", "spared", "is_lean"),
        [("", "", True), ("http://proxy.example:3128", "", False), ("http://proxy.example:3128", "127.0.0.1", True)],
    )
    def test_go_through_a_proxy_with_aioboto3(
        self, monkeypatch: pytest.MonkeyPatch, proxy: str, spared: str, is_lean: bool
    ) -> None:
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.setenv("no_proxy", spared)

        made = LeanSession().make("ecs", NO_CONFIG, region_name="us-east-1", endpoint_url="http://127.0.0.1:9")

        assert isinstance(made, LeanClient) == is_lean

    async def test_through_a_proxy_read_replies_alike(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with server(LISTED) as proxy:
            monkeypatch.setenv("http_proxy", proxy.url)
            api = Api(region="us-east-1", endpoint_url="http://aws.example")
            async with api.running():
                reply = await api.call("ecs.ListTasks")

        assert (reply["taskArns"], api.parser) == ([], "fast")
        assert proxy.requests[0][1].startswith(b"POST http://aws.example/ HTTP/1.1\r\n")

    def test_asked_for_by_several_threads_are_made_one_by_one(self) -> None:
        session, services = LeanSession(), ["ecs", "logs", "dynamodb", "sqs"]
        create, under_way, most = session.core.create_client, [], []

        def create_slowly(service: str, **known: Any) -> Any:
            under_way.append(service)
            made = create(service, **known)  # reads files, which lets other threads go on
            most.append(len(under_way))
            under_way.remove(service)
            return made

        session.core.create_client = create_slowly
        with ThreadPoolExecutor(len(services)) as threads:
            made = list(threads.map(lambda name: session.make(name, NO_CONFIG, region_name="us-east-1"), services))

        assert [client and client.meta.service_model.service_name for client in made] == services
        assert most == [1] * len(services)

    @pytest.mark.parametrize("service", ["s3", "ec2"])
    def test_of_other_protocols_are_aioboto3s(self, service: str) -> None:
        session = LeanSession()

        assert session.make(service, NO_CONFIG, region_name="us-east-1") is None
        assert type(session.others(service)).__module__.startswith("aioboto3")
        assert session.others(service) is session.others("s3")

    def test_know_what_they_do_not(self) -> None:
        client = LeanSession().make("ecs", NO_CONFIG, region_name="us-east-1")

        with pytest.raises(AttributeError, match="no_such_thing"):
            client.no_such_thing()  # type: ignore[union-attr]

    async def test_renew_credentials_off_the_event_loop(self) -> None:
        asked_in = []

        def refresh() -> dict[str, str]:
            asked_in.append(is_loop_running())
            until = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
            return {"access_key": "AKIANEW", "secret_key": "x", "token": "t", "expiry_time": until.isoformat()}

        soon = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1)
        old = RefreshableCredentials("AKIAOLD", "x", "t", soon, refresh, "test")
        session = LeanSession()
        session.core._credentials = old
        async with server(LISTED) as canned:
            made = session.make("ecs", NO_CONFIG, region_name="us-east-1", endpoint_url=canned.url)
            assert made is not None
            asked_in.clear()  # making it asks, too
            old._expiry_time = soon
            async with made as client:
                await client.list_tasks()

        assert asked_in == [False]
        assert b"Credential=AKIANEW/" in canned.requests[0][1]

    async def test_whose_credentials_are_old_again_at_once_are_asked_for_off_the_event_loop(self) -> None:
        asked_in = []

        def refresh() -> dict[str, str]:
            asked_in.append(is_loop_running())
            until = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=12)
            return {"access_key": "AKIANEW", "secret_key": "x", "token": "t", "expiry_time": until.isoformat()}

        soon = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1)
        session = LeanSession()
        session.core._credentials = RefreshableCredentials("AKIAOLD", "x", "t", soon, refresh, "test")
        async with server(LISTED) as canned:
            made = session.make("ecs", NO_CONFIG, region_name="us-east-1", endpoint_url=canned.url)
            assert made is not None
            asked_in.clear()
            async with made as client:
                await client.list_tasks()

        assert set(asked_in) == {False}

    def test_wait_for_credentials_with_the_collector_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        session, collects = LeanSession(), []
        ask = session.core.get_credentials

        def asked() -> Any:
            collects.append(gc.isenabled())
            return ask()

        monkeypatch.setattr(session.core, "get_credentials", asked)
        session.make("ecs", NO_CONFIG, region_name="us-east-1")

        assert collects[0]

    def test_trust_the_certificates_that_botocore_trusts(self) -> None:
        assert not LeanSession()._tls().verify_flags & ssl.VERIFY_X509_STRICT


def is_loop_running() -> bool:
    return asyncio._get_running_loop() is not None


class TestWithoutAioboto3:
    async def test_calls_that_need_none_pass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "aioboto3", None)
        aws = FakeAws(clusters=("jobs",))

        async with aws.serve(moto=False) as url:
            api = Api(region=aws.region, endpoint_url=url)
            async with api.running():
                reply = await api.call("ecs.ListTasks", cluster="jobs")

        assert reply["taskArns"] == []

    async def test_others_say_what_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "aioboto3", None)
        api = Api(region="us-east-1", endpoint_url="http://127.0.0.1:9")

        async with api.running():
            with pytest.raises(BackendUnavailable, match=r"s3 needs aioboto3.*bundle with --service s3"):
                await api.call("s3.PutObject", Bucket="a", Key="b")

    async def test_a_stock_session_says_so_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "aioboto3", None)
        api = Api(region="us-east-1", fast=False)

        async with api.running():
            with pytest.raises(BackendUnavailable, match="needs aioboto3, which cannot be imported"):
                await api.call("ecs.ListTasks")


class TestOneSessionForAll:
    async def test_doors_on_one_loop_share_it(self) -> None:
        first, second = Api(region="us-east-1"), Api(region="eu-west-1")

        async with first.running(), second.running():
            shared = await first._open_session()
            other = await second._open_session()

        assert shared is other

    async def test_doors_that_open_at_once_make_one(self) -> None:
        doors = [Api(region="us-east-1") for _ in range(3)]
        made = []

        async with doors[0].running(), doors[1].running(), doors[2].running():

            async def open_one(api: Api) -> None:
                made.append(await api._open_session())

            async with anyio.create_task_group() as tasks:
                for api in doors:
                    tasks.start_soon(open_one, api)

        assert len(set(map(id, made))) == 1

    async def test_which_was_handed_one_uses_that(self) -> None:
        aws = FakeAws()
        first, second = Api(region="us-east-1"), Api(region="us-east-1", session=aws.session())

        async with first.running(), second.running():
            ours, theirs = await first._open_session(), await second._open_session()

        assert theirs.session is not ours.session

    async def test_the_next_ones_read_the_environment_anew(self) -> None:
        api = Api(region="us-east-1")

        async with api.running():
            first = await api._open_session()
        async with api.running():
            second = await api._open_session()

        assert first is not second

    async def test_renewed_by_one_it_is_new_for_those_that_come(self) -> None:
        first, second = Api(region="us-east-1"), Api(region="us-east-1")

        async with first.running(), second.running():
            old = await first._open_session()
            await first._renew(0)
            renewed, joined = await first._open_session(), await second._open_session()

        assert renewed is not old
        assert joined is renewed


class TestTheLoader:
    def test_reads_no_endpoints_but_somebodys_own(self, tmp_path: Path) -> None:
        (tmp_path / "endpoints.json").write_text('{"version": 3, "partitions": [], "mine": true}')

        assert lean_loader(None).load_data("endpoints") == {"version": 3, "partitions": []}
        assert lean_loader(str(tmp_path)).load_data("endpoints")["mine"]
        assert lean_loader(None, with_endpoints=True).load_data("endpoints")["partitions"]

    def test_reads_models_that_are_not_compressed(self, tmp_path: Path) -> None:
        place = tmp_path / "mine" / "2026-01-01"
        place.mkdir(parents=True)
        (place / "service-2.json").write_text('{"metadata": {"serviceId": "Mine"}}')

        model = lean_loader(str(tmp_path)).load_service_model("mine", "service-2")

        assert model["metadata"] == {"serviceId": "Mine"}
