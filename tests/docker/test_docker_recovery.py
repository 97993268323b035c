"""Processes that are gone, callers that are cancelled, engines that are away: nothing is lost, nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

from fargate_runner import BackendUnavailable, Cause, DockerBackend, Identity, Phase, Sidecar, TaskRef
from fargate_runner.backends.docker import _backend, _host
from fargate_runner.backends.docker._backend import _ref_of
from tests.docker.conftest import IMAGE, containers, docker, end_of, first_line, inspected, launched, shell, texts_of

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine"), pytest.mark.anyio]

# Submits one job, says its token when the container runs, and waits for its end.
OWNER = """
import sys, anyio
from fargate_runner import DockerBackend, Identity, Job, Sidecar

async def main():
    async with DockerBackend() as backend:
        sidecars = [Sidecar(name="side", image=sys.argv[2], command=["sleep", "60"])] if sys.argv[4:] else []
        job = Job(image=sys.argv[2], command=["sh", "-c", sys.argv[3]], sidecars=sidecars)
        ref = await backend.submit(await backend.prepare(job, Identity(namespace="docker", key=sys.argv[1], attempt=1)))
        async for line in backend.logs(ref, follow=True):
            print(ref.token, flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""

# Submits many and says nothing.
BUSY = """
import sys, anyio
from fargate_runner import DockerBackend, Identity, Job, Sidecar

async def main():
    async with DockerBackend() as backend:
        print("open", flush=True)
        for number in range(4):
            sidecars = [Sidecar(name="side", image=sys.argv[2], command=["sleep", "5"])] if number == 1 else []
            job = Job(image=sys.argv[2], command=["sh", "-c", f"sleep 1; exit {number}"], sidecars=sidecars)
            identity = Identity(namespace="docker", key=f"{sys.argv[1]}/{number}", attempt=1)
            await backend.submit(await backend.prepare(job, identity))
        await anyio.sleep_forever()

anyio.run(main)
"""


def killed_owner(key: str, script: str, *more: str) -> str:
    """Run a process that launches a job, kill it once the job speaks, and return the token."""
    with subprocess.Popen([sys.executable, "-c", OWNER, key, IMAGE, script, *more], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        token = owner.stdout.readline().decode().strip()
        owner.send_signal(signal.SIGKILL)
    return token


async def cleared(backend: DockerBackend, key: str) -> None:
    for ref in await backend.find("docker", key):
        await backend.stop(ref, reason="the test is over")
        await end_of(backend, ref)
        await backend.forget(ref)


# ---- a process of ours is killed -----------------------------------------------------------------------------------


async def test_a_killed_processs_job_is_found_and_watched_to_its_true_end(key: str) -> None:
    token = killed_owner(key, "echo ready; sleep 2; echo done; exit 6")

    async with DockerBackend() as backend:
        (ref,) = await backend.find("docker", key)
        early = await backend.observe(ref)
        end = await end_of(backend, ref)
        lines = await texts_of(backend, ref)
        await backend.forget(ref)

    assert ref.token == token
    assert early.phase is Phase.RUNNING
    assert (end.cause, end.exit_code) == (Cause.EXITED, 6)
    assert lines == ["ready", "done"]


async def test_a_job_that_ended_meanwhile_is_found_with_its_end(key: str) -> None:
    token = killed_owner(key, "echo ready; exit 6")
    docker("wait", f"fr-{token}")

    async with DockerBackend() as backend:
        (ref,) = await backend.find("docker", key)
        end = await backend.observe(ref)
        await backend.forget(ref)

    assert (end.cause, end.exit_code) == (Cause.EXITED, 6)


_ENDED = b'"Status":"exited","Running":false,"Paused":false,"Restarting":false'
_REMOVING = b'"Status":"removing","Running":false,"Paused":null,"Restarting":null'
_CREATED = b'"Status":"created","Running":false,"Paused":false'
_NEVER = b'"Status":"removing","Running":false,"Paused":null'


async def test_a_job_whose_container_is_just_being_removed_is_told_with_its_end(tmp_path: Any, key: str) -> None:
    token = killed_owner(key, "echo ready; exit 6")
    docker("wait", f"fr-{token}")

    async with wire(f"{tmp_path}/d.sock") as way, DockerBackend(f"unix://{tmp_path}/d.sock") as backend:
        (ref,) = await backend.find("docker", key)
        way.rewritten, way.has_looked = (_ENDED, _REMOVING), False
        way.then = partial(docker, "rm", f"fr-{token}")
        end = await backend.observe(ref)

    assert way.then is None
    assert (end.cause, end.exit_code) == (Cause.EXITED, 6)


async def test_a_container_that_was_never_started_and_is_being_removed_has_not_succeeded(
    tmp_path: Any, key: str
) -> None:
    async with wire(f"{tmp_path}/d.sock") as way, DockerBackend(f"unix://{tmp_path}/d.sock") as backend:
        launch = await backend.prepare(shell("exit 5"), Identity(namespace="docker", key=key, attempt=1))
        abandoned(f"fr-{launch.token}", key, launch.token, owner_label(host="another/machine"))
        ref = _ref_of(inspected(f"fr-{launch.token}")["Config"]["Labels"])
        way.rewritten = (_CREATED, _NEVER)
        end = await backend.observe(ref)

    assert (end.cause, end.exit_code) == (Cause.VANISHED, None)
    assert containers(launch.token) == []


async def test_a_job_stopped_by_hand_meanwhile_has_not_just_exited(key: str) -> None:
    token = killed_owner(key, "trap 'exit 0' TERM; echo ready; sleep 60 & wait")
    docker("stop", f"fr-{token}")

    async with DockerBackend() as backend:
        (ref,) = await backend.find("docker", key)
        end = await backend.observe(ref)
        await backend.forget(ref)

    assert (end.cause, end.exit_code) == (Cause.STOPPED_ON_REQUEST, 0)


async def test_a_killed_processs_sidecars_end_with_their_job(key: str) -> None:
    token = killed_owner(key, "echo ready; sleep 1; exit 6", "with a sidecar")

    async with DockerBackend() as backend:
        (ref,) = await backend.find("docker", key)
        end = await end_of(backend, ref)
        running = docker("ps", "--quiet", "--filter", f"label=fargate-runner.token={token}")
        await backend.forget(ref)

    assert (end.cause, end.exit_code) == (Cause.EXITED, 6)
    assert running == ""


async def test_sidecars_whose_job_is_over_are_stopped_when_a_backend_opens(key: str) -> None:
    token = killed_owner(key, "echo ready; exit 6", "with a sidecar")
    docker("wait", f"fr-{token}")

    async with DockerBackend() as backend:
        running = docker("ps", "--quiet", "--filter", f"label=fargate-runner.token={token}")
        await cleared(backend, key)

    assert running == ""


@pytest.mark.parametrize("moment", range(6))
async def test_a_kill_at_any_moment_leaves_nothing_that_is_not_accounted_for(moment: int, key: str) -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY, key, IMAGE], stdout=subprocess.PIPE) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        try:
            busy.wait(0.06 * moment)
        except subprocess.TimeoutExpired:
            busy.send_signal(signal.SIGKILL)

    async with DockerBackend() as backend:
        await anyio.sleep(_backend._REAP_AGAIN + 1)  # what the engine had under way when the process died
        found = {n: await backend.find("docker", f"{key}/{n}") for n in range(4)}
        names = {f"{key}/{n}": docker("ps", "-aq", "--filter", f"label=fargate-runner.key={key}/{n}") for n in range(4)}
        ends = {n: await end_of(backend, refs[0]) for n, refs in found.items() if refs}
        for n in range(4):
            await cleared(backend, f"{key}/{n}")

    assert all(bool(refs) == bool(names[f"{key}/{n}"]) for n, refs in found.items())
    assert {n: end.exit_code for n, end in ends.items()} == {n: n for n in ends}


async def test_two_backends_do_not_reap_each_other(backend: DockerBackend, key: str) -> None:
    async with launched(backend, shell("echo ready; sleep 60"), key) as ref:
        await first_line(backend, ref)
        async with DockerBackend() as other:
            await other._reap()

            assert containers(ref.token) == [ref.address]
            assert not (await other.observe(ref)).ended


def abandoned(
    name: str, key: str, token: str, owner: str, *, role: str = "job", run: bool = False, command: str = "sleep 60"
) -> None:
    """Create a container as a process would have that did not get further."""
    labels = {"namespace": "docker", "key": key, "attempt": "1", "token": token, "role": role, "owner": owner}
    labels |= {"container": "main", "stop-timeout": "2", "shared": "no", "essential": "yes"}
    words = [word for label, value in labels.items() for word in ("--label", f"fargate-runner.{label}={value}")]
    docker("run" if run else "create", *(["--detach"] if run else []), "--name", name, *words, IMAGE, *command.split())


def owner_label(**changes: Any) -> str:
    return json.dumps(json.loads(_host.owner_label("nonce")) | changes)


@pytest.mark.parametrize(
    ("owner", "left"),
    [
        ({"pid": 1, "born": "1"}, 0),
        ({"boot": "another"}, 0),
        ({}, 0),  # this process, and no backend that is open
        ({"pid": 1, "born": _host._born(1)}, 1),
        ({"host": "another/machine"}, 1),
        ({"pidns": "pid:[1]"}, 1),
    ],
    ids=["dead", "before a reboot", "a closed backend", "alive", "another machine", "another pid namespace"],
)
async def test_only_what_a_dead_process_never_started_is_removed(key: str, owner: dict[str, Any], left: int) -> None:
    token = uuid.uuid4().hex
    abandoned(f"fr-{token}", key, token, owner_label(**owner))

    async with DockerBackend():
        there = containers(token)
    for name in there:
        docker("rm", name)

    assert len(there) == left


async def test_what_a_dead_process_never_started_is_not_found(backend: DockerBackend, key: str) -> None:
    token = uuid.uuid4().hex
    abandoned(f"fr-{token}", key, token, owner_label(pid=1, born="1"))

    assert await backend.find("docker", key) == []
    assert containers(token) == []


async def test_what_runs_is_left_alone_whoever_started_it(key: str) -> None:
    token = uuid.uuid4().hex
    abandoned(f"fr-{token}", key, token, owner_label(pid=1, born="1"), run=True)

    async with DockerBackend() as backend:
        (ref,) = await backend.find("docker", key)
        snapshot = await backend.observe(ref)
        await cleared(backend, key)

    assert snapshot.phase is Phase.RUNNING


async def test_a_launch_that_a_dead_process_began_is_begun_again(backend: DockerBackend, key: str) -> None:
    launch = await backend.prepare(shell("exit 5"), Identity(namespace="docker", key=key, attempt=1))
    abandoned(f"fr-{launch.token}", key, launch.token, owner_label(pid=1, born="1"))

    ref = await backend.submit(launch)
    end = await end_of(backend, ref)
    await backend.forget(ref)

    assert (end.cause, end.exit_code) == (Cause.EXITED, 5)


# ---- a caller is cancelled, a backend is closed --------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(0, 40, 3))
async def test_closing_at_any_turn_of_a_launch_leaves_a_running_job_or_nothing(turns: int, key: str) -> None:
    async with DockerBackend() as backend:
        job = shell("sleep 60", sidecars=[Sidecar(name="side", image=IMAGE, command=["sleep", "60"])])
        ref = await backend.submit(await backend.prepare(job, Identity(namespace="docker", key=key, attempt=1)))
        with anyio.move_on_after(turns * 0.05):
            await end_of(backend, ref)

    async with DockerBackend() as backend:
        states = [inspected(name)["State"]["Status"] for name in containers(ref.token)]
        found = await backend.find("docker", key)
        await cleared(backend, key)

    assert states in ([], ["running"] * 3)
    assert len(found) == bool(states)


@pytest.mark.parametrize("turns", range(12))
async def test_a_submit_cancelled_at_any_turn_leaves_nothing_that_find_does_not_tell(
    backend: DockerBackend, key: str, turns: int
) -> None:
    launch = await backend.prepare(shell("sleep 60"), Identity(namespace="docker", key=key, attempt=1))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(backend.submit, launch)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    await cleared(backend, key)

    assert containers(launch.token) == []


async def test_cancelling_the_block_of_a_backend_leaves_a_running_job_to_the_next(key: str) -> None:
    with anyio.CancelScope() as scope:
        async with DockerBackend() as backend:
            launch = await backend.prepare(
                shell("echo ready; sleep 60"), Identity(namespace="docker", key=key, attempt=1)
            )
            await first_line(backend, await backend.submit(launch))
            scope.cancel()
            await anyio.sleep_forever()

    async with DockerBackend() as backend:
        (ref,) = await backend.find("docker", key)
        snapshot = await backend.observe(ref)
        await cleared(backend, key)

    assert snapshot.phase is Phase.RUNNING


# ---- the engine is away --------------------------------------------------------------------------------------------


class Wire:
    """A way to the engine that can be cut."""

    def __init__(self) -> None:
        self.writers: set[asyncio.StreamWriter] = set()
        self.is_cut = False
        self.losing = b""
        """The first request with these bytes has its effect, and its answer never arrives."""
        self.lost: asyncio.StreamWriter | None = None
        self.awaited = b""
        """A request with these bytes sets `arrived`, before it has had its effect."""
        self.arrived = anyio.Event()
        self.then: Callable[[], object] | None = None
        """Done once, between the first look at a container and whatever is asked for next."""
        self.has_looked = False
        self.rewritten: tuple[bytes, bytes] | None = None
        """What the engine says, and what arrives in its place, of the same length."""

    def cut(self) -> None:
        self.is_cut = True
        for writer in self.writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
            return
        from_engine, to_engine = await asyncio.open_unix_connection("/var/run/docker.sock")
        self.writers |= {writer, to_engine}
        await asyncio.gather(self.ask(reader, to_engine, writer), self.pump(from_engine, writer))
        self.writers -= {writer, to_engine}

    async def ask(
        self, source: asyncio.StreamReader, engine: asyncio.StreamWriter, client: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while received := await source.read(65536):
                if self.losing and self.losing in received:
                    self.losing, self.lost = b"", client
                if self.has_looked and self.then is not None:
                    then, self.then = self.then, None
                    await anyio.to_thread.run_sync(then)
                self.has_looked = self.has_looked or (received[:4] == b"GET " and b"/containers/" in received)
                if self.awaited and self.awaited in received:
                    self.arrived.set()
                    await asyncio.sleep(0.05)
                engine.write(received)
                await engine.drain()
        engine.close()

    async def pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while received := await source.read(65536):
                if sink is self.lost:
                    await asyncio.sleep(0.5)  # a short job is over by then
                    sink.transport.abort()
                    return
                if self.rewritten is not None:
                    received = received.replace(*self.rewritten)
                sink.write(received)
                await sink.drain()
        sink.close()


@asynccontextmanager
async def wire(path: str) -> AsyncGenerator[Wire]:
    wire = Wire()
    server = await asyncio.start_unix_server(wire.serve, path)
    try:
        yield wire
    finally:
        wire.cut()
        server.close()


async def test_a_cut_connection_says_nothing_about_the_job(tmp_path: Any, key: str) -> None:
    async with wire(f"{tmp_path}/d.sock") as way, DockerBackend(f"unix://{tmp_path}/d.sock") as backend:
        async with launched(backend, shell("sleep 2; exit 3"), key) as ref:
            await first_phase(backend, ref, Phase.RUNNING)
            way.cut()
            await anyio.sleep(0.5)
            way.is_cut = False
            end = await end_of(backend, ref)

    assert (end.cause, end.exit_code) == (Cause.EXITED, 3)


async def test_an_engine_that_stays_away_is_told(tmp_path: Any, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backend, "_DOUBT_AFTER", 0.2)

    async with wire(f"{tmp_path}/d.sock") as way, DockerBackend(f"unix://{tmp_path}/d.sock") as backend:
        async with launched(backend, shell("sleep 2; exit 3"), key) as ref:
            running = await first_phase(backend, ref, Phase.RUNNING)
            way.cut()
            with pytest.raises(BackendUnavailable):
                await backend.observe(ref, after=running)
            way.is_cut = False
            end = await patient_end_of(backend, ref)

    assert (end.cause, end.exit_code) == (Cause.EXITED, 3)


async def test_a_launch_whose_answers_are_lost_starts_one_container(tmp_path: Any, key: str) -> None:
    async with wire(f"{tmp_path}/d.sock") as way, DockerBackend(f"unix://{tmp_path}/d.sock") as backend:
        async with launched(backend, shell("echo once; exit 3"), key) as ref:
            for _ in range(4):
                await anyio.sleep(0.05)
                way.cut()
                way.is_cut = False
            end = await end_of(backend, ref)
            lines = await texts_of(backend, ref)

    assert (end.cause, end.exit_code) == (Cause.EXITED, 3)
    assert lines == ["once"]


@pytest.mark.parametrize("verb", ["open", "find", "observe", "submit"])
async def test_what_a_dead_process_started_with_its_last_request_runs_once(tmp_path: Any, key: str, verb: str) -> None:
    """The engine comes to that request when somebody has seen the container unstarted, and the job is over at once."""
    async with DockerBackend() as other:
        launch = await other.prepare(shell("exit 5"), Identity(namespace="docker", key=key, attempt=1))
    name = f"fr-{launch.token}"
    async with wire(f"{tmp_path}/d.sock") as way:
        backend = DockerBackend(f"unix://{tmp_path}/d.sock")
        async with AsyncExitStack() as stack:
            if verb != "open":
                await stack.enter_async_context(backend)
            abandoned(name, key, launch.token, owner_label(pid=1, born="1"), command="true")
            (first,) = [inspected(each)["Id"] for each in containers(launch.token)]
            way.has_looked, way.then = False, partial(docker, "start", "--attach", name)
            ref = _ref_of(inspected(name)["Config"]["Labels"])
            if verb == "open":
                await stack.enter_async_context(backend)
            elif verb == "find":
                assert [found.token for found in await backend.find("docker", key)] == [launch.token]
            elif verb == "submit":
                await backend.submit(launch)
            end = await end_of(backend, ref)
            left = [inspected(each)["Id"] for each in containers(launch.token)]
            await backend.forget(ref)

    assert way.then is None
    assert left == [first]
    assert (end.cause, end.exit_code) == (Cause.EXITED, 0)


@pytest.mark.parametrize("request_", [b"/containers/create", b"/start", b"/wait", b"DELETE"])
async def test_a_request_whose_answer_is_lost_has_its_effect_once(tmp_path: Any, key: str, request_: bytes) -> None:
    async with wire(f"{tmp_path}/d.sock") as way, DockerBackend(f"unix://{tmp_path}/d.sock") as backend:
        way.losing = request_
        launch = await backend.prepare(shell("echo once; exit 3"), Identity(namespace="docker", key=key, attempt=1))
        ref = await backend.submit(launch)
        end = await end_of(backend, ref)
        lines = await texts_of(backend, ref)
        with contextlib.suppress(BackendUnavailable):
            await backend.forget(ref)
        await backend.forget(ref)

    assert (end.cause, end.exit_code) == (Cause.EXITED, 3)
    assert lines == ["once"]
    assert way.losing == b""


@pytest.mark.parametrize("request_", [b"/containers/create", b"/start", b"/wait"])
async def test_a_stop_in_the_middle_of_a_request_wins(tmp_path: Any, key: str, request_: bytes) -> None:
    async with wire(f"{tmp_path}/d.sock") as way, DockerBackend(f"unix://{tmp_path}/d.sock") as backend:
        way.awaited = request_
        async with launched(backend, shell("exec sleep 60"), key) as ref:
            await way.arrived.wait()
            await backend.stop(ref, reason="changed my mind")
            end = await end_of(backend, ref)
            running = docker("ps", "--quiet", "--filter", f"label=fargate-runner.token={ref.token}")

    assert (end.cause, end.reason) == (Cause.STOPPED_ON_REQUEST, "changed my mind")
    assert running == ""


@pytest.mark.parametrize("request_", [b"/containers/create", b"/start", b"/wait"])
async def test_closing_in_the_middle_of_a_request_leaves_a_running_job_or_nothing(
    tmp_path: Any, key: str, request_: bytes
) -> None:
    async with wire(f"{tmp_path}/d.sock") as way:
        async with DockerBackend(f"unix://{tmp_path}/d.sock") as backend:
            way.awaited = request_
            launch = await backend.prepare(shell("sleep 60"), Identity(namespace="docker", key=key, attempt=1))
            ref = await backend.submit(launch)
            await way.arrived.wait()

    states = [inspected(name)["State"]["Status"] for name in containers(ref.token)]
    async with DockerBackend() as backend:
        found = await backend.find("docker", key)
        await cleared(backend, key)

    assert states == ([] if request_ == b"/containers/create" else ["running"])
    assert len(found) == len(states)


async def patient_end_of(backend: DockerBackend, ref: TaskRef) -> Any:
    while True:
        try:
            return await end_of(backend, ref)
        except BackendUnavailable:
            await anyio.sleep(0.1)


async def first_phase(backend: DockerBackend, ref: TaskRef, phase: Phase) -> Any:
    snapshot = await backend.observe(ref)
    while snapshot.phase < phase:
        snapshot = await backend.observe(ref, after=snapshot)
    return snapshot
