"""A deadline that holds by itself, on a real engine: whoever is alive when it passes."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import timedelta

import anyio
import anyio.to_thread
import pytest

from fargate_runner import Cause, DockerBackend, Identity, Kind, Retry, Runner, Sidecar, Snapshot
from fargate_runner.backends.docker import _pause
from tests.docker.conftest import IMAGE, docker, end_of, first_line, launched, shell, texts_of

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine"), pytest.mark.anyio]

FAR = timedelta(hours=1)
SOON = timedelta(seconds=2)
FOREVER = "trap '' TERM; echo ready; while :; do sleep 1; done"


def watchdog(after: timedelta, image: str = IMAGE) -> Sidecar:
    return Sidecar.watchdog(after, image=image)


def running(token: str) -> set[str]:
    """The containers of an attempt that run, by the job's names for them; that of the network has none."""
    listed = docker(
        "ps", "--filter", f"label=fargate-runner.token={token}", "--format", '{{.Label "fargate-runner.container"}}'
    )
    return set(listed.splitlines()) - {""}


async def over(address: str) -> None:
    """Wait until a container has ended."""
    await anyio.to_thread.run_sync(docker, "wait", address)


@pytest.mark.parametrize("code", [0, 3, 137])
async def test_a_job_that_ends_in_time_keeps_its_own_outcome(backend: DockerBackend, key: str, code: int) -> None:
    async with launched(backend, shell(f"exit {code}", sidecars=[watchdog(FAR)]), key) as ref:
        end = await end_of(backend, ref)

        assert (end.cause, end.exit_code) == (Cause.EXITED, code)
        assert running(ref.token) == set()


async def test_what_a_job_leaves_running_ends_with_it(backend: DockerBackend, key: str) -> None:
    async with launched(backend, shell("sleep 1000 & echo ready; exit 0", sidecars=[watchdog(FAR)]), key) as ref:
        end = await end_of(backend, ref)

        assert (end.cause, end.exit_code) == (Cause.EXITED, 0)
        assert running(ref.token) == set()


async def test_the_deadline_ends_a_job_that_is_deaf_to_signals(backend: DockerBackend, key: str) -> None:
    async with launched(backend, shell(FOREVER, sidecars=[watchdog(SOON)]), key) as ref:
        end = await end_of(backend, ref)

        assert end.cause is Cause.DEADLINE
        assert "deadline" in end.reason
        assert running(ref.token) == set()


async def test_sidecars_get_their_time_to_end_all_the_same(backend: DockerBackend, key: str) -> None:
    polite = Sidecar(
        name="side",
        image=IMAGE,
        command=["sh", "-c", "trap 'sleep 0.5; echo bye; exit 0' TERM; echo ready; while :; do sleep 1 & wait; done"],
    )

    async with launched(backend, shell("sleep 1; exit 3", sidecars=[watchdog(FAR), polite]), key) as ref:
        end = await end_of(backend, ref)
        lines = await texts_of(backend, ref, container="side")

    assert (end.cause, end.exit_code) == (Cause.EXITED, 3)
    assert lines == ["ready", "bye"]


async def test_a_stopped_job_was_stopped(backend: DockerBackend, key: str) -> None:
    job = shell("trap 'exit 143' TERM; echo ready; while :; do sleep 1 & wait; done", sidecars=[watchdog(FAR)])

    async with launched(backend, job, key) as ref:
        await first_line(backend, ref)
        await backend.stop(ref, reason="enough")
        end = await end_of(backend, ref)

        assert (end.cause, end.exit_code) == (Cause.STOPPED_ON_REQUEST, 143)
        assert running(ref.token) == set()


async def test_each_attempt_has_its_own_deadline(backend: DockerBackend) -> None:
    job = shell(FOREVER, sidecars=[watchdog(timedelta(seconds=1))], retry=Retry(failures=1))

    async with Runner(backend) as runner:
        result = await (await runner.submit(job)).wait()

    assert [attempt.outcome.kind for attempt in result.attempts] == [Kind.TIMED_OUT, Kind.TIMED_OUT]


async def test_a_watchdog_that_cannot_sleep_is_no_deadline(backend: DockerBackend, key: str) -> None:
    async with launched(backend, shell("echo ready; sleep 60", sidecars=[watchdog(SOON)]), key) as ref:
        await first_line(backend, ref)  # the engine has the image of the network's holder from here on
    without_sleep = watchdog(SOON, image=_pause.image_name("amd64"))

    async with launched(backend, shell(FOREVER, sidecars=[without_sleep]), f"{key}/2") as ref:
        end = await end_of(backend, ref)

    assert end.cause in {Cause.SIDECAR_ENDED, Cause.COULD_NOT_START}
    assert "fargate-runner-deadline" in end.reason


async def test_two_who_launch_the_same_meet(backend: DockerBackend, key: str) -> None:
    job, ends = shell("echo once; sleep 1; exit 3", sidecars=[watchdog(FAR)]), list[Snapshot]()
    launch = await backend.prepare(job, Identity(namespace="docker", key=key, attempt=1))

    async def submit(place: DockerBackend) -> None:
        ends.append(await end_of(place, await place.submit(launch)))

    async with DockerBackend() as other:
        async with anyio.create_task_group() as both:
            both.start_soon(submit, backend)
            both.start_soon(submit, other)
        ref = await backend.submit(launch)
        lines = await texts_of(backend, ref, container="main")
        await backend.forget(ref)

    assert [(end.cause, end.exit_code) for end in ends] == [(Cause.EXITED, 3)] * 2
    assert lines == ["once"]


# ---- nobody left -----------------------------------------------------------------------------------------------------

VICTIM = """
import sys, anyio
from datetime import timedelta
from fargate_runner import DockerBackend, Job, Runner, Sidecar

key, image, after, script = sys.argv[1:]

async def main():
    side = Sidecar(name="side", image=image, command=["sleep", "1000"])
    sidecars = [Sidecar.watchdog(timedelta(seconds=float(after)), image=image), side]
    async with Runner(DockerBackend(), namespace="deadline") as runner:
        job = Job(image=image, command=["sh", "-c", script], sidecars=sidecars, key=key)
        handle = await runner.submit(job)
        async for line in handle.logs():
            print(handle._live.refs[-1].address, handle._live.refs[-1].token, flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


def killed(key: str, after: float, script: str) -> tuple[str, str]:
    """Have a runner launch a job and kill it with SIGKILL once the job speaks; return its address and token."""
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, key, IMAGE, str(after), script], stdout=subprocess.PIPE)
    with victim:
        assert victim.stdout is not None
        address, token = victim.stdout.readline().decode().split()
        victim.send_signal(signal.SIGKILL)
    assert victim.returncode == -signal.SIGKILL
    return address, token


async def forget(runner: Runner, key: str) -> None:
    for ref in await runner.backend.find("deadline", key):
        await runner.backend.forget(ref)


async def test_it_holds_when_its_runner_was_killed(key: str) -> None:
    address, token = killed(key, 4, FOREVER)
    await over(address)
    alive = running(token)

    async with Runner(DockerBackend(), namespace="deadline") as runner:
        handle = await runner.attach(key)
        result = await handle.wait()
        await forget(runner, key)

    # Nobody has looked at them between the kill and here.
    assert alive == set()
    assert result.outcome.kind is Kind.TIMED_OUT
    assert result.outcome.exit_code == 137


async def test_a_job_that_ended_in_time_is_not_blamed_for_a_deadline_that_passed_later(key: str) -> None:
    address, _ = killed(key, 3, "echo ready")
    await over(f"{address}-fargate-runner-deadline")

    async with Runner(DockerBackend(), namespace="deadline") as runner:
        result = await (await runner.attach(key)).wait()
        await forget(runner, key)

    assert (result.outcome.kind, result.outcome.exit_code) == (Kind.SUCCEEDED, 0)
