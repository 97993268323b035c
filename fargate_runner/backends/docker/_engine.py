"""
The one door to a Docker engine: finding it, speaking with it, and turning what goes wrong into our errors.

aiodocker speaks ssh for us and pulls images. What every job needs is asked for by hand: aiodocker's ``create`` knows no
platform, and on a local socket an exchange costs a third of the CPU without its layers and those below it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import stat
import struct
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, cast
from urllib.parse import urlencode, urlsplit

import anyio
import anyio.to_thread
import attrs

from fargate_runner._errors import BackendError, BackendUnavailable
from fargate_runner.backends.docker import _spec

if TYPE_CHECKING:
    import aiodocker
    import aiohttp

__all__ = ["Endpoint", "Engine", "Refused", "discover"]

_SHORT: Final = 60.0
"""Seconds for a call that the engine answers by itself; a loaded one was seen to take 10."""
_HEAD_LIMIT: Final = 1 << 20
_PULL_SILENCE: Final = 300.0


class Refused(BackendError):
    """The engine answered, and said no. ``status`` is its HTTP status, the message its own words."""

    def __init__(self, status: int, words: str, operation: str) -> None:
        super().__init__(words, operation=operation, code=str(status), retryable=status >= 500)
        self.status = status
        self.words = words


@attrs.frozen(kw_only=True)
class Endpoint:
    """Where an engine may listen, and how we came to think so."""

    url: str
    why: str
    tls: Path | None = attrs.field(default=None)
    """A directory with ca.pem, cert.pem and key.pem."""
    verify: bool = True
    named: bool = True
    """Somebody named it: then nothing else is tried."""


def discover(url: str | None, environ: Mapping[str, str], home: Path) -> list[Endpoint]:
    """
    Return where to look for an engine, in this order; only the first if somebody named it.

    :raises BackendUnavailable: what was named cannot be read, or must not be used
    """
    if url is not None:
        tls = Path(environ.get("DOCKER_CERT_PATH", home / ".docker")) if environ.get("DOCKER_TLS_VERIFY") else None
        return [Endpoint(url=url, why="the url given", tls=tls)]
    if host := environ.get("DOCKER_HOST"):
        tls = Path(environ.get("DOCKER_CERT_PATH", home / ".docker")) if environ.get("DOCKER_TLS_VERIFY") else None
        return [_checked(Endpoint(url=host, why="DOCKER_HOST", tls=tls))]
    directory = Path(environ.get("DOCKER_CONFIG", home / ".docker"))
    context = environ.get("DOCKER_CONTEXT") or read_config(directory).get("currentContext")
    if context and context != "default":
        return [_checked(_context(directory, str(context)))]
    runtime = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid() if hasattr(os, 'getuid') else 0}"
    places = [
        ("the usual socket", "/var/run/docker.sock"),
        ("a rootless Docker", f"{runtime}/docker.sock"),
        ("Docker Desktop", str(home / ".docker/run/docker.sock")),
        ("a rootless Podman", f"{runtime}/podman/podman.sock"),
        ("Podman", "/run/podman/podman.sock"),
    ]
    return [Endpoint(url=f"unix://{path}", why=why, named=False) for why, path in places]


def read_config(directory: Path) -> dict[str, Any]:
    """Return what ``docker`` itself is configured to do, or nothing if that cannot be read."""
    try:
        found = json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _context(directory: Path, name: str) -> Endpoint:
    folder = sha256(name.encode()).hexdigest()
    try:
        endpoint = json.loads((directory / "contexts/meta" / folder / "meta.json").read_bytes())["Endpoints"]["docker"]
        host = str(endpoint["Host"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise BackendUnavailable(
            f"the Docker context {name!r} cannot be read; run 'docker context ls' and choose one that exists, or set "
            "DOCKER_HOST",
            operation="open",
        ) from exc
    tls = directory / "contexts/tls" / folder / "docker"
    return Endpoint(
        url=host,
        why=f"the Docker context {name!r}",
        tls=tls if tls.is_dir() else None,
        verify=not endpoint.get("SkipTLSVerify", False),
    )


def _checked(endpoint: Endpoint) -> Endpoint:
    parts = urlsplit(endpoint.url)
    remote = parts.scheme in {"tcp", "http"} and parts.hostname not in {"localhost", "127.0.0.1", "::1"}
    if remote and endpoint.tls is None:
        raise BackendUnavailable(
            f"{endpoint.why} names {endpoint.url}, where anybody on the way may read secrets and start containers; "
            "use TLS (DOCKER_TLS_VERIFY=1) or ssh://, or pass the url to DockerBackend(url=…) if you mean it",
            operation="open",
        )
    return endpoint


class Engine:
    """A connection to an engine that answers."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: Endpoint, server: str) -> None:
        self.session = session
        self.endpoint = endpoint
        self.base = server
        path = endpoint.url.removeprefix("unix://")
        self._pipes = _Pipes(path) if path != endpoint.url else None
        self._prefix = ""
        self._docker: aiodocker.Docker | None = None
        self.id = ""
        """The engine's own; empty where it has none (Podman)."""
        self.ncpu = 1
        self.architecture = "amd64"
        self.cgroup_version = ""
        self.cgroup_driver = ""
        self.is_podman = False
        self.is_here = False
        """Whether we are root on the engine's own machine: then there can be control groups and mounts of ours."""

    @classmethod
    @asynccontextmanager
    async def connected(cls, url: str | None) -> AsyncGenerator[Self]:
        """
        Find an engine and connect to it.

        :raises BackendUnavailable: none answers; says where we looked and what to do
        """
        try:
            await anyio.to_thread.run_sync(_load)
        except ImportError as exc:
            raise BackendUnavailable(
                f"the Docker backend needs aiodocker ({exc.name or exc} is missing); "
                "install it with: pip install 'fargate-runner[docker]'",
                operation="open",
            ) from exc
        endpoints = await anyio.to_thread.run_sync(discover, url, dict(os.environ), Path.home())
        tried: list[str] = []
        for endpoint in endpoints:
            if not endpoint.named and not await anyio.to_thread.run_sync(_is_socket, endpoint.url):
                tried.append(f"{endpoint.url} ({endpoint.why}): not there")
                continue
            try:
                engine = await cls._connect(endpoint)
            except BackendError as exc:
                tried.append(f"{endpoint.url} ({endpoint.why}): {exc}")
                continue
            try:
                yield engine
            finally:
                with anyio.CancelScope(shield=True):
                    await engine._close()
            return
        raise BackendUnavailable(
            "no Docker engine answers. Tried: " + "; ".join(tried) + ". Start one ('systemctl start docker'), allow "
            "this user to use its socket (the group 'docker'), or name it with DOCKER_HOST or DockerBackend(url=…)",
            operation="open",
        )

    @classmethod
    async def _connect(cls, endpoint: Endpoint) -> Self:
        import aiodocker
        import aiohttp

        try:
            connector, base = await anyio.to_thread.run_sync(_connector_of, endpoint)
            made = connector()
        except (OSError, ValueError, aiodocker.DockerError) as exc:
            raise BackendUnavailable(f"cannot connect: {exc}", operation="open") from exc
        # No cookies, no limit: a hundred containers that are waited for would leave no connection for anything else.
        session = aiohttp.ClientSession(connector=made, cookie_jar=aiohttp.DummyCookieJar())
        engine = cls(session, endpoint, base)
        try:
            version = await engine.call("GET", "/version", timeout=10)
            api = f"v{version['ApiVersion']}"
            engine.base, engine._prefix = f"{base}/{api}", f"/{api}"
            engine._docker = aiodocker.Docker(url=base, connector=made, session=session, api_version=api)
            await engine._learn(version)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await engine._close()
            raise
        return engine

    async def _learn(self, version: Mapping[str, Any]) -> None:
        found = await self.call("GET", "/info")
        self.id = str(found.get("ID") or "")
        self.ncpu = int(found.get("NCPU") or 1)
        self.architecture = str(version.get("Arch") or "amd64")
        self.cgroup_version = str(found.get("CgroupVersion") or "1")
        self.cgroup_driver = str(found.get("CgroupDriver") or "")
        self.is_podman = any("Podman" in part.get("Name", "") for part in version.get("Components") or ())
        if found.get("OSType", "linux") != "linux":
            raise BackendUnavailable("this engine runs Windows containers; switch it to Linux", operation="open")
        path = self.endpoint.url.removeprefix("unix://")
        if path != self.endpoint.url:
            self.is_here = await anyio.to_thread.run_sync(_is_ours, path)

    async def _close(self) -> None:
        if self._pipes is not None:
            self._pipes.close()
        with anyio.move_on_after(5):
            if self._docker is not None:
                await self._docker.close()
            await self.session.close()
            # aiohttp closes its transports one turn of the loop later.
            await asyncio.sleep(0)

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, str] | None = None,
        timeout: float | None = _SHORT,
        raw: bytes | None = None,
        accept: tuple[int, ...] = (),
    ) -> Any:
        """
        Ask the engine, and return its answer as data; of a status in *accept*, None.

        :raises BackendUnavailable: it cannot be reached, or does not answer in time
        :raises Refused: it says no
        """
        operation = f"{method} {path}"
        status, said = await self._exchange(method, path, operation, body, params, timeout, raw)
        if status in accept:
            return None
        if status >= 400:
            raise Refused(status, _words(said), operation)
        if not said:
            return None
        try:
            return json.loads(said)
        except ValueError as exc:
            raise BackendError(f"the engine's answer to {operation} is not JSON", operation=operation) from exc

    async def _exchange(
        self,
        method: str,
        path: str,
        operation: str,
        body: Any,
        params: Mapping[str, str] | None,
        timeout: float | None,
        raw: bytes | None,
    ) -> tuple[int, bytes]:
        import aiohttp

        payload = json.dumps(body).encode() if body is not None else raw
        kind = "application/json" if body is not None else "application/x-tar"
        try:
            if self._pipes is not None:
                return await self._pipes.exchange(method, self._prefix + path, params, payload, kind, timeout)
            headers = {"Content-Type": kind} if payload is not None else None
            limit = aiohttp.ClientTimeout(total=timeout)
            async with self.session.request(
                method, self.base + path, data=payload, params=params, headers=headers, timeout=limit
            ) as answer:
                return answer.status, await answer.read()
        except (aiohttp.ClientError, OSError, EOFError, TimeoutError, ValueError) as exc:
            word = "does not answer in time" if isinstance(exc, TimeoutError) else f"cannot be reached ({exc})"
            raise BackendUnavailable(
                f"the engine at {self.endpoint.url} {word}; check that it runs, for example with 'docker version'",
                operation=operation,
                retryable=True,
            ) from exc

    # ---- what is asked for -----------------------------------------------------------------------------------------

    async def image(self, name: str) -> dict[str, Any] | None:
        """Inspect an image that the engine has."""
        try:
            found: dict[str, Any] = await self.call("GET", f"/images/{name}/json")
        except Refused as exc:
            if exc.status == 404:
                return None
            raise
        return found

    async def create(self, name: str, body: Mapping[str, Any], platform: str | None) -> str:
        """Create a container and return its id."""
        params = {"name": name}
        if platform:
            params["platform"] = platform
        made = await self.call("POST", "/containers/create", body=body, params=params, timeout=2 * _SHORT)
        return str(made["Id"])

    async def start(self, container: str) -> None:
        """Start a container; no error if it runs."""
        await self.call("POST", f"/containers/{container}/start", timeout=5 * _SHORT)

    async def wait(self, container: str, *, condition: str = "not-running") -> None:
        """Return once a container is over."""
        await self.call("POST", f"/containers/{container}/wait", params={"condition": condition}, timeout=None)

    async def inspect(self, container: str) -> dict[str, Any] | None:
        """Return what the engine knows of a container; None if it knows of none."""
        try:
            found: dict[str, Any] = await self.call("GET", f"/containers/{container}/json")
        except Refused as exc:
            if exc.status == 404:
                return None
            raise
        return found

    async def list(self, *labels: str) -> list[dict[str, Any]]:
        """Return all containers that bear all of these labels, as the engine's short records."""
        params = {"all": "1", "filters": json.dumps({"label": list(labels)})}
        found: list[dict[str, Any]] = await self.call("GET", "/containers/json", params=params)
        return found

    async def stop(self, container: str, seconds: int) -> bool:
        """SIGTERM, *seconds*, SIGKILL. Return whether it still ran: False if it was over, or is gone."""
        path = f"/containers/{container}/stop"
        # The engine answers once it is over.
        status, said = await self._exchange(
            "POST", path, f"POST {path}", None, {"t": str(seconds)}, seconds + _SHORT, None
        )
        if status >= 400 and status != 404:
            raise Refused(status, _words(said), f"POST {path}")
        return status == 204

    async def remove(self, container: str, *, force: bool) -> bool:
        """Remove a container and its anonymous volumes. Return False if it runs and *force* is not set."""
        params = {"v": "1", "force": "1" if force else "0"}
        try:
            await self.call("DELETE", f"/containers/{container}", params=params, accept=(404,), timeout=2 * _SHORT)
        except Refused as exc:
            if exc.status == 409 and "removal of container" in exc.words.lower():
                return True  # somebody else is at it
            if exc.status == 409 and not force:
                return False
            raise
        return True

    async def pull(self, image: str, platform: str | None) -> None:
        """
        Pull an image, with what ``docker login`` left for its registry.

        :raises Refused: the engine or the registry says no
        :raises BackendUnavailable: the engine went away
        """
        import aiodocker
        import aiohttp

        registry = _spec.registry_of(image)
        login = await _login(registry)
        operation = f"pull {image}"
        try:
            stream = cast("aiodocker.Docker", self._docker).images.pull(
                _spec.qualified(image),
                auth=login,
                platform=platform,
                stream=True,
                timeout=None,
            )
            with anyio.fail_after(_PULL_SILENCE) as patience:
                async for _ in stream:
                    patience.deadline = anyio.current_time() + _PULL_SILENCE
        except aiodocker.DockerError as exc:
            if exc.status == 900:
                raise BackendUnavailable(str(exc.message), operation=operation, retryable=True) from exc
            raise Refused(exc.status, str(exc.message), operation) from exc
        except TimeoutError as exc:
            raise Refused(504, f"pull of {image}: i/o timeout, nothing came for a long time", operation) from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise BackendUnavailable(f"the engine went away ({exc})", operation=operation, retryable=True) from exc

    async def load(self, archive: bytes) -> None:
        """Load an image."""
        await self.call("POST", "/images/load", raw=archive, params={"quiet": "1"}, timeout=2 * _SHORT)

    async def put_archive(self, container: str, archive: bytes) -> None:
        """Unpack an archive at the root of a container."""
        await self.call("PUT", f"/containers/{container}/archive", raw=archive, params={"path": "/"})

    async def tail(self, container: str, lines: int) -> bytes:
        """Return the raw frames of a container's last lines."""
        import aiohttp

        params = {"stdout": "1", "stderr": "1", "tail": str(lines)}
        try:
            async with self.session.get(
                f"{self.base}/containers/{container}/logs", params=params, timeout=aiohttp.ClientTimeout(total=_SHORT)
            ) as answer:
                said = await answer.read()
                return said if answer.status == 200 else b""
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise BackendUnavailable(f"the engine cannot be reached ({exc})", operation="logs", retryable=True) from exc

    async def kills(self) -> AsyncGenerator[tuple[str, int]]:
        """Yield (container id, signal) whenever somebody sends one of ours a signal. Ends when the stream is cut."""
        import aiohttp

        chosen = {"type": ["container"], "event": ["kill"], "label": [f"{_spec.LABEL}role=job"]}
        try:
            async with self.session.get(
                f"{self.base}/events",
                params={"filters": json.dumps(chosen)},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=30),
            ) as answer:
                async for line in answer.content:
                    event = json.loads(line)
                    yield str(event["Actor"]["ID"]), int(event["Actor"]["Attributes"].get("signal", 0))
        except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError):
            return

    async def signals_sent(self, container: str, since: datetime) -> Sequence[int]:
        """Return the signals that were sent to a container through the engine, as far back as it remembers."""
        import aiohttp

        params = {
            "since": str(int(since.timestamp())),  # the API takes no other form of time
            "until": str(int(time.time()) + 1),
            "filters": json.dumps({"container": [container], "event": ["kill"]}),
        }
        try:
            async with self.session.get(
                f"{self.base}/events", params=params, timeout=aiohttp.ClientTimeout(total=_SHORT)
            ) as answer:
                lines = (await answer.read()).splitlines() if answer.status == 200 else []
            return [int(json.loads(line)["Actor"]["Attributes"].get("signal", 0)) for line in lines]
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, TypeError):
            return []

    async def gateway(self, network: str) -> str | None:
        """Return the address at which containers of *network* see the engine's machine."""
        try:
            found = await self.call("GET", f"/networks/{network}")
        except Refused:
            return None
        return _spec.gateway(found)


class _Pipes:
    """
    Kept connections to a local socket: HTTP/1.1, as far as an engine speaks it.

    A job is some seven short exchanges, and most of what they cost a client is its library: this takes a third.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop()[1].close()

    async def exchange(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        payload: bytes | None,
        kind: str,
        timeout: float | None,
    ) -> tuple[int, bytes]:
        """
        Send one request and return the status and the body of the answer.

        :raises OSError: the connection broke
        :raises EOFError: it ended before the answer did
        :raises ValueError: that is no HTTP
        """
        target = f"{path}?{urlencode(params)}" if params else path
        head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n"
        if payload is not None:
            head += f"Content-Type: {kind}\r\nContent-Length: {len(payload)}\r\n"
        async with asyncio.timeout(timeout):
            reader, writer = await self._connection()
            is_whole = False
            try:
                writer.write(head.encode() + b"\r\n" + (payload or b""))
                await writer.drain()
                status, said, is_whole = await _answer(reader)
            finally:
                if is_whole:
                    self._idle.append((reader, writer))
                else:
                    writer.transport.abort()  # cancelled, or broken: what comes next on it would be misread
            return status, said

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing() and reader.exception() is None:
                return reader, writer
            writer.transport.abort()
        return await asyncio.open_unix_connection(self._path, limit=_HEAD_LIMIT)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Return the status, the body, and whether the connection may be used again."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.LimitOverrunError as exc:
        raise ValueError("the answer has no head") from exc
    status = int(head[0].split(" ", 2)[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    is_kept = headers.get("connection", "").lower() != "close"
    if status in {204, 304}:
        return status, b"", is_kept
    if headers.get("transfer-encoding", "").lower() == "chunked":
        pieces: list[bytes] = []
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            pieces.append((await reader.readexactly(size + 2))[:-2])
        await reader.readuntil(b"\r\n")
        return status, b"".join(pieces), is_kept
    if "content-length" in headers:
        return status, await reader.readexactly(int(headers["content-length"])), is_kept
    return status, await reader.read(), False


def _words(said: bytes) -> str:
    try:
        return str(json.loads(said)["message"])
    except (ValueError, KeyError, TypeError):
        return said.decode(errors="replace").strip()[:500] or "no reason given"


def _load() -> None:
    import aiodocker
    import aiohttp  # the imports take a moment; in a thread they do not hold up the loop

    _ = aiodocker.Docker, aiohttp.ClientSession


def _is_socket(url: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(url.removeprefix("unix://")).st_mode)  # noqa: PTH116
    except OSError:
        return False


def _connector_of(endpoint: Endpoint) -> tuple[Any, str]:
    """Return what makes the connector, on the event loop, and the base of all URLs. Reads files: for a thread."""
    import ssl

    import aiohttp

    url = endpoint.url
    scheme, _, rest = url.partition("://")
    match scheme:
        case "unix":
            return lambda: aiohttp.UnixConnector(rest, limit=0), "http://localhost"
        case "npipe":
            path = rest.replace("/", "\\")
            return lambda: aiohttp.NamedPipeConnector(path, limit=0), "http://localhost"
        case "ssh":
            from aiodocker.ssh import SSHConnector

            return lambda: SSHConnector(url), "http://localhost"
        case "tcp" | "http" | "https":
            if endpoint.tls is None and scheme != "https":
                return lambda: aiohttp.TCPConnector(limit=0), f"http://{rest.rstrip('/')}"
            context = ssl.create_default_context()
            if endpoint.tls is not None:
                ca, cert, key = (endpoint.tls / name for name in ("ca.pem", "cert.pem", "key.pem"))
                if ca.exists():
                    context.load_verify_locations(str(ca))
                if cert.exists():
                    context.load_cert_chain(str(cert), str(key))
                if not endpoint.verify:
                    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            return lambda: aiohttp.TCPConnector(limit=0, ssl=context), f"https://{rest.rstrip('/')}"
        case _:
            pass
    raise ValueError(f"{url!r} is no address of an engine; write it like unix:///var/run/docker.sock")


def _is_ours(path: str) -> bool:
    """Whether we are root on the machine of the engine behind this socket, and see its file system as it does."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.settimeout(5)
            probe.connect(path)
            pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            # 0 is a process outside of our pid namespace. The listener may be pid 1, on behalf of the engine.
            return pid > 0 and os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")  # noqa: PTH115
        except OSError:
            return False


async def _login(registry: str) -> dict[str, str] | None:
    """Return what ``docker login`` left for *registry*: in its file, or with its credential helper."""
    config = await anyio.to_thread.run_sync(
        lambda: read_config(Path(os.environ.get("DOCKER_CONFIG", Path.home() / ".docker")))
    )
    helper = (config.get("credHelpers") or {}).get(registry) or config.get("credsStore")
    if helper:
        try:
            done = await anyio.run_process([f"docker-credential-{helper}", "get"], input=registry.encode(), check=False)
            found = json.loads(done.stdout) if done.returncode == 0 else {}
        except (OSError, ValueError):
            found = {}
        if found.get("Username") == "<token>":
            return {"identitytoken": str(found.get("Secret", ""))}
        if found.get("Username"):
            return {"username": str(found["Username"]), "password": str(found.get("Secret", ""))}
    entry = (config.get("auths") or {}).get(registry) or (config.get("auths") or {}).get(f"https://{registry}")
    if not isinstance(entry, dict):
        return None
    if entry.get("identitytoken"):
        return {"identitytoken": str(entry["identitytoken"])}
    try:
        user, _, password = base64.b64decode(str(entry.get("auth", ""))).decode().partition(":")
    except ValueError:
        return None
    return {"username": user, "password": password} if user else None
