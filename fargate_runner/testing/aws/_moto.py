"""
Every service that is not ours to fake, answered by moto in this process: S3, STS, Secrets Manager, SSM, IAM, EC2, …

moto is spoken to as the WSGI application it is, in worker threads: no second port, no thread that outlives the loop.
Those of DynamoDB take turns: moto looks at a condition and writes in two steps, and between these another one would.
It keeps what it knows per process. So two fake AWSes in one process share it, and the first one that opens finds it
empty.
"""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Final
from urllib.parse import unquote_to_bytes

import anyio
import anyio.to_thread

from fargate_runner.testing.aws._protocol import Written, service_model
from fargate_runner.testing.aws._service import AwsError

__all__ = ["Moto", "Values", "is_installed"]

_AT_ONCE: Final = 8
_HOP_BY_HOP: Final = {"connection", "content-length", "date", "server", "transfer-encoding"}


def is_installed() -> bool:
    """Whether moto's server is there to be used."""
    return all(importlib.util.find_spec(name) is not None for name in ("moto", "flask", "flask_cors"))


class Moto:
    """moto's server without its socket."""

    _open: ClassVar[int] = 0

    def __init__(self, *, account: str, region: str) -> None:
        self._account = account
        self._region = region
        self._app: Callable[..., Iterable[bytes]] | None = None
        self._loading = anyio.Lock()
        self._threads = anyio.CapacityLimiter(_AT_ONCE)
        self._in_turn = anyio.CapacityLimiter(1)

    @classmethod
    @asynccontextmanager
    async def running(cls, *, account: str, region: str) -> AsyncGenerator[Moto]:
        """Use moto; the first one of this process that does finds it empty."""
        moto = cls(account=account, region=region)
        if not cls._open and "moto" in sys.modules:
            await anyio.to_thread.run_sync(_reset)
        cls._open += 1
        try:
            yield moto
        finally:
            cls._open -= 1
            if not cls._open and "moto" in sys.modules:
                _load_managed_policies(wanted=False)

    async def answer(
        self, method: str, path: str, query: str, headers: Iterable[tuple[str, str]], body: bytes
    ) -> Written:
        """Return moto's answer to a request; *path* is as it came, with its percent signs."""
        async with self._loading:
            if self._app is None:
                self._app = await anyio.to_thread.run_sync(_application)
        environ = _environ(method, path, query, headers, body) | {"HTTP_X_MOTO_ACCOUNT_ID": self._account}
        in_turn = environ.get("HTTP_X_AMZ_TARGET", "").startswith("DynamoDB_")
        threads = self._in_turn if in_turn else self._threads
        return await anyio.to_thread.run_sync(_run, self._app, environ, limiter=threads)

    async def call(self, service: str, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """
        Ask a service that speaks JSON, past HTTP.

        :raises AwsError: moto refused it
        """
        metadata = service_model(service).metadata
        scope = f"AWS4-HMAC-SHA256 Credential=FAKE/20260101/{self._region}/{service}/aws4_request, SignedHeaders=host"
        headers = [
            ("Host", f"{service}.{self._region}.amazonaws.com"),
            ("Authorization", scope),
            ("X-Amz-Target", f"{metadata['targetPrefix']}.{operation}"),
            ("Content-Type", f"application/x-amz-json-{metadata['jsonVersion']}"),
        ]
        answer = await self.answer("POST", "/", "", headers, json.dumps(request).encode())
        found = json.loads(answer.body or b"{}")
        if answer.status >= 300:
            code = str(found.get("__type", answer.status)).rpartition("#")[2]
            raise AwsError(code, str(found.get("message") or found.get("Message") or ""), status=answer.status)
        return dict(found)

    async def object(self, bucket: str, key: str) -> bytes:
        """
        Return an object of S3.

        :raises AwsError: there is none
        """
        scope = f"AWS4-HMAC-SHA256 Credential=FAKE/20260101/{self._region}/s3/aws4_request, SignedHeaders=host"
        headers = [("Host", f"s3.{self._region}.amazonaws.com"), ("Authorization", scope)]
        answer = await self.answer("GET", f"/{bucket}/{key}", "", headers, b"")
        if answer.status >= 300:
            code = "NoSuchBucket" if b"NoSuchBucket" in answer.body else "NoSuchKey"
            raise AwsError(code, f"s3://{bucket}/{key} does not exist", status=answer.status)
        return answer.body


class Values:
    """Secrets, parameters and environment files of tasks, as they are kept by moto."""

    def __init__(self, moto: Moto) -> None:
        self._moto = moto

    async def secret(self, value_from: str) -> str:
        """
        Return what a container's ``secrets[].valueFrom`` stands for.

        :raises AwsError: there is no such thing
        """
        if ":secretsmanager:" in value_from:
            return await self._secret(value_from)
        # The ARN of a parameter does not tell whether its name begins with a slash.
        name = value_from.partition(":parameter")[2] if value_from.startswith("arn:") else value_from
        request = {"Names": [name, name.lstrip("/")] if name.startswith("/") else [name], "WithDecryption": True}
        found = (await self._moto.call("ssm", "GetParameters", request)).get("Parameters") or ()
        if not found:
            raise AwsError("ParameterNotFound", f"invalid ssm parameters: {value_from}")
        return str(found[0]["Value"])

    async def _secret(self, value_from: str) -> str:
        # arn:aws:secretsmanager:region:account:secret:name:json-key:version-stage:version-id
        parts = value_from.split(":")
        key, stage, version = [*parts[7:], "", "", ""][:3]
        request = {"SecretId": ":".join(parts[:7]), "VersionStage": stage, "VersionId": version}
        found = await self._moto.call("secretsmanager", "GetSecretValue", {k: v for k, v in request.items() if v})
        text = str(found.get("SecretString", ""))
        if not key:
            return text
        try:
            value = json.loads(text)[key]
        except (ValueError, KeyError, TypeError):
            message = f"retrieved secret from Secrets Manager did not contain json key {key}"
            raise AwsError("ResourceNotFoundException", message) from None
        return value if isinstance(value, str) else json.dumps(value)

    async def env_file(self, arn: str) -> str:
        """
        Return the text of an environment file.

        :raises AwsError: there is none
        """
        bucket, _, key = arn.partition(":::")[2].partition("/")
        return (await self._moto.object(bucket, key)).decode()


def _application() -> Callable[..., Iterable[bytes]]:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    _load_managed_policies(wanted=True)
    app: Callable[..., Iterable[bytes]] = DomainDispatcherApplication(create_backend_app)
    return app


def _load_managed_policies(*, wanted: bool) -> None:
    """Roles of tasks are made with policies that AWS manages; moto knows those only if it is asked to."""
    from moto.core.config import default_user_config

    default_user_config["iam"] = {"load_aws_managed_policies": wanted}


def _reset() -> None:
    from moto.moto_api._internal.models import moto_api_backend

    moto_api_backend.reset()


def _environ(method: str, path: str, query: str, headers: Iterable[tuple[str, str]], body: bytes) -> dict[str, Any]:
    """Return a request as PEP 3333 has it: bytes as text, one letter for each byte."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "RAW_URI": f"{path}?{query}" if query else path,
        "REQUEST_URI": f"{path}?{query}" if query else path,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in headers:
        key = name.upper().replace("-", "_")
        if key in {"CONTENT_LENGTH", "TRANSFER_ENCODING"}:
            continue
        key = key if key == "CONTENT_TYPE" else f"HTTP_{key}"
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    environ["CONTENT_LENGTH"] = str(len(body))
    return environ


def _run(app: Callable[..., Iterable[bytes]], environ: dict[str, Any]) -> Written:
    status, headers = 500, dict[str, str]()

    def start_response(line: str, pairs: list[tuple[str, str]], exc_info: object = None) -> Callable[[bytes], None]:
        nonlocal status
        status = int(line.split(" ", 1)[0])
        headers.clear()
        headers.update((name, value) for name, value in pairs if name.lower() not in _HOP_BY_HOP)
        return lambda _: None

    parts = app(environ, start_response)
    try:
        body = b"".join(parts)
    finally:
        close = getattr(parts, "close", None)
        if close is not None:
            close()
    return Written(status=status, headers=headers, body=body)
