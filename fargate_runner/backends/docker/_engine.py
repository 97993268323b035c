"""
The one door to a Docker engine: where it is, how it is asked, and what its errors mean.

aiodocker does the talking. Its pool of 100 connections would let 50 jobs that are waited for and followed block every
other question, so it gets a connector without a limit.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote

from fargate_runner._errors import BackendError, BackendUnavailable

if TYPE_CHECKING:
    import aiodocker

_ANSWER_PATIENCE: Final = 60.0
_PULL_PATIENCE: Final = 3600.0


class EngineError(Exception):
    """The engine refused. ``status`` is HTTP's, the text its own words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Engine:
    """An open connection to an engine."""

    def __init__(self, docker: aiodocker.Docker, where: str) -> None:
        self._docker = docker
        self.where = where
        self.host: Mapping[str, Any] = {}

    @property
    def session(self) -> Any:
        """The HTTP session, for the log reader."""
        return self._docker.session

    @property
    def base_url(self) -> str:
        """What paths of the engine's API are appended to."""
        return str(self._docker._canonicalize_url("")).rstrip("/")

    @classmethod
    async def connect(cls, url: str | None) -> Self:
        """
        Find an engine and make sure that it answers.

        :raises BackendUnavailable: no client library, no engine, or no permission; says what was tried
        """
        try:
            import aiodocker
            import aiohttp
        except ImportError as exc:
            raise BackendUnavailable(
                "the Docker backend needs aiodocker: pip install 'fargate-runner[docker]'", operation="connect"
            ) from exc
        where = url or _look_for()
        if where is None:
            tried = ", ".join(["DOCKER_HOST", *map(str, _sockets())])
            raise BackendUnavailable(
                f"no Docker engine was found (tried {tried}); start one, or set DOCKER_HOST", operation="connect"
            )
        if where.startswith("unix://"):
            path = where.removeprefix("unix://")
            connector = aiohttp.UnixConnector(path, limit=0)
            docker = aiodocker.Docker(url="unix://localhost", connector=connector)
        else:
            docker = aiodocker.Docker(url=where)
        engine = cls(docker, where)
        try:
            engine.host = await engine.get("info")
        except BaseException:
            await engine.close()
            raise
        return engine

    async def close(self) -> None:
        connector = self._docker.session.connector
        await self._docker.close()
        if connector is not None:  # aiodocker leaves a connector open that it was given
            await connector.close()

    async def get(self, path: str, **params: Any) -> Any:
        return await self._ask("GET", path, params=params)

    async def post(self, path: str, body: Any = None, *, timeout: float = _ANSWER_PATIENCE, **params: Any) -> Any:
        return await self._ask("POST", path, params=params, body=body, timeout=timeout)

    async def put(self, path: str, body: bytes, **params: Any) -> Any:
        return await self._ask("PUT", path, params=params, body=body)

    async def delete(self, path: str, **params: Any) -> Any:
        return await self._ask("DELETE", path, params=params)

    async def load(self, archive: bytes) -> None:
        await self._ask("POST", "images/load", params={"quiet": "1"}, body=archive)

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any],
        body: Any = None,
        timeout: float | None = _ANSWER_PATIENCE,
    ) -> Any:
        import aiodocker
        import aiohttp

        headers = {}
        if isinstance(body, bytes):
            headers["Content-Type"] = "application/x-tar"
        elif body is not None:
            body = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        try:
            async with self._docker._query(
                path,
                method,
                params={name: str(value) for name, value in params.items()},
                data=body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=timeout),
            ) as answer:
                text = await answer.read()
        except aiodocker.DockerError as exc:
            if exc.status >= 900:
                raise self.unavailable(exc) from exc
            raise EngineError(exc.status, str(exc.message)) from exc
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise self.unavailable(exc) from exc
        if not text:
            return answer.status
        if answer.content_type == "application/json" and not path.startswith(("images/create", "images/load")):
            return json.loads(text)
        return text

    async def pull(self, image: str, platform: str | None) -> None:
        """Pull an image. What the engine says in the middle of its answer is an error too."""
        name, _, digest = image.partition("@")
        if digest:
            params = {"fromImage": name, "tag": digest}
        else:
            path, _, last = name.rpartition("/")
            base, _, tag = last.partition(":")
            params = {"fromImage": f"{path}/{base}" if path else base, "tag": tag or "latest"}
        if platform:
            params["platform"] = platform
        import aiodocker
        import aiohttp

        headers = {}
        if auth := _auth_for(image):
            headers["X-Registry-Auth"] = auth
        try:
            async with self._docker._query(
                "images/create",
                "POST",
                params=params,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=_PULL_PATIENCE),
            ) as answer:
                async for line in answer.content:
                    if b'"error"' in line and (said := json.loads(line).get("error")):
                        raise EngineError(500, said)
        except aiodocker.DockerError as exc:
            raise EngineError(exc.status, str(exc.message)) from exc
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise self.unavailable(exc) from exc

    def unavailable(self, exc: Exception) -> BackendError:
        said = str(exc) or type(exc).__name__
        if "ermission denied" in said:
            hint = "join the group docker, or run as a user who may use it"
        elif self.where.startswith("unix://"):
            hint = "is it running? start it, or set DOCKER_HOST"
        else:
            hint = "check the address, or set DOCKER_HOST"
        return BackendUnavailable(
            f"the Docker engine at {self.where} does not answer: {said}; {hint}", operation="ask", retryable=True
        )


def container_path(name: str, rest: str = "") -> str:
    return f"containers/{quote(name, safe='')}{rest}"


def _sockets() -> list[Path]:
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    return [
        Path("/var/run/docker.sock"),
        runtime / "docker.sock",
        Path.home() / ".docker/run/docker.sock",
        runtime / "podman/podman.sock",
        Path("/run/podman/podman.sock"),
    ]


def _look_for() -> str | None:
    if host := os.environ.get("DOCKER_HOST"):
        return host
    for socket in _sockets():
        if socket.exists():
            return f"unix://{socket}"
    return None


def _config() -> dict[str, Any]:
    directory = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    try:
        found = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _auth_for(image: str) -> str | None:
    first = image.split("/", 1)[0]
    registry = first if "/" in image and ("." in first or ":" in first or first == "localhost") else None
    names = [registry] if registry else ["https://index.docker.io/v1/", "docker.io"]
    auths = _config().get("auths", {})
    for name in names:
        entry = auths.get(name) or auths.get(f"https://{name}")
        if entry and entry.get("auth"):
            user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
            told = {"username": user, "password": password, "serveraddress": name}
            return base64.urlsafe_b64encode(json.dumps(told).encode()).decode()
    return None
