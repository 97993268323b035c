"""What the tests on a real engine share: a way to launch and look, and a check that nothing is left."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from fargate_runner import Backend, DockerBackend, Identity, Job, Snapshot, TaskRef

IMAGE = "fargate-runner-test/busybox:latest"
PYTHON = "fargate-runner-test/python:latest"


def docker(*words: str) -> str:
    """Ask the engine past our own code."""
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True).stdout.strip()


def containers(token: str) -> list[str]:
    """The names of all containers of an attempt."""
    asked = ["ps", "--all", "--filter", f"label=fargate-runner.token={token}", "--format", "{{.Names}}"]
    return docker(*asked).split()


def inspected(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker("inspect", name))[0]
    return found


def shell(script: str, **fields: Any) -> Job:
    return Job(image=IMAGE, command=["sh", "-c", script], **fields)


async def end_of(backend: Backend, ref: TaskRef) -> Snapshot:
    snapshot = await backend.observe(ref)
    while not snapshot.ended:
        snapshot = await backend.observe(ref, after=snapshot)
    return snapshot


async def texts_of(backend: Backend, ref: TaskRef, *, follow: bool = True, container: str | None = None) -> list[str]:
    lines = [line async for line in backend.logs(ref, follow=follow)]
    return [line.text for line in lines if container in {None, line.container}]


async def first_line(backend: Backend, ref: TaskRef) -> str:
    lines = backend.logs(ref, follow=True)
    try:
        return (await anext(lines)).text
    finally:
        await lines.aclose()  # type: ignore[attr-defined]


@pytest.fixture
def key() -> str:
    return f"docker/{uuid.uuid4().hex}"


@pytest.fixture
def identity(key: str) -> Identity:
    return Identity(namespace="docker", key=key, attempt=1)


@pytest.fixture
async def backend(engine: None) -> AsyncGenerator[DockerBackend]:
    async with DockerBackend() as backend:
        yield backend


@asynccontextmanager
async def launched(backend: Backend, job: Job, key: str, attempt: int = 1) -> AsyncGenerator[TaskRef]:
    """Launch, and leave nothing behind."""
    launch = await backend.prepare(job, Identity(namespace="docker", key=key, attempt=attempt))
    ref = await backend.submit(launch)
    try:
        yield ref
    finally:
        with anyio.CancelScope(shield=True):
            await backend.stop(ref, reason="the test is over")
            await end_of(backend, ref)
            await backend.forget(ref)


Launched = Callable[..., AbstractAsyncContextManager[TaskRef]]


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest, key: str) -> Iterator[None]:
    """After each test, no container of its key, no mount and no control group is left."""
    yield
    if "backend" not in request.fixturenames and "engine" not in request.fixturenames:
        return
    if "key" not in request.fixturenames:
        return
    asked = ["ps", "--all", "--filter", f"label=fargate-runner.key={key}", "--format", "{{.Names}}"]
    left = docker(*asked).split()
    tokens = {name.removeprefix("fr-")[:52] for name in left}
    assert left == []
    assert not [mount for mount in Path("/proc/mounts").read_text().split() if any(t in mount for t in tokens)]
