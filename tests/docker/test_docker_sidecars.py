"""Several containers as one job, on a real engine."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fargate_runner import Cause, DockerBackend, HealthCheck, Job, Secret, Sidecar
from tests.docker.conftest import (
    IMAGE,
    PYTHON,
    containers,
    docker,
    end_of,
    first_line,
    inspected,
    launched,
    shell,
    texts_of,
)

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine"), pytest.mark.anyio]

WAITS = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 1 & wait; done"


def side(script: str, name: str = "side", **fields: Any) -> Sidecar:
    return Sidecar(name=name, image=IMAGE, command=["sh", "-c", script], **fields)


async def test_the_containers_of_a_job_meet_on_the_loopback(backend: DockerBackend, key: str) -> None:
    server = side("mkdir /www; echo hello > /www/greeting; exec httpd -f -p 127.0.0.1:8080 -h /www")
    job = shell("until wget -q -O - http://127.0.0.1:8080/greeting; do sleep 0.1; done", sidecars=[server])

    async with launched(backend, job, key) as ref:
        lines = await texts_of(backend, ref, container="main")
        end = await end_of(backend, ref)

    assert "hello" in lines
    assert (end.cause, end.exit_code) == (Cause.EXITED, 0)


async def test_a_job_alone_has_no_second_container(backend: DockerBackend, key: str) -> None:
    async with launched(backend, shell("echo ready; sleep 60"), key) as ref:
        await first_line(backend, ref)

        assert containers(ref.token) == [ref.address]


async def test_sidecars_are_stopped_politely_when_the_job_is_over(backend: DockerBackend, key: str) -> None:
    job = shell("sleep 0.5; exit 3", sidecars=[side(WAITS)])

    async with launched(backend, job, key) as ref:
        end = await end_of(backend, ref)
        lines = await texts_of(backend, ref, container="side")
        running = docker("ps", "--quiet", "--filter", f"label=fargate-runner.token={ref.token}")

    assert (end.cause, end.exit_code) == (Cause.EXITED, 3)
    assert lines == ["ready", "bye"]
    assert running == ""


async def test_the_end_of_an_essential_sidecar_ends_the_job(backend: DockerBackend, key: str) -> None:
    job = shell(WAITS, sidecars=[side("sleep 0.5; exit 7", essential=True)])

    async with launched(backend, job, key) as ref:
        end = await end_of(backend, ref)
        lines = await texts_of(backend, ref, container="main")

    assert end.cause is Cause.SIDECAR_ENDED
    assert "'side'" in end.reason
    assert "exit code 7" in end.reason
    assert lines[-1] == "bye"


async def test_the_end_of_another_sidecar_does_not(backend: DockerBackend, key: str) -> None:
    job = shell("sleep 1; exit 4", sidecars=[side("exit 7")])

    async with launched(backend, job, key) as ref:
        end = await end_of(backend, ref)

    assert (end.cause, end.exit_code) == (Cause.EXITED, 4)


async def test_a_stopped_job_takes_its_sidecars_with_it(backend: DockerBackend, key: str) -> None:
    async with launched(backend, shell(WAITS, sidecars=[side("sleep 60")]), key) as ref:
        await first_line(backend, ref)
        await backend.stop(ref, reason="enough")
        end = await end_of(backend, ref)
        running = docker("ps", "--quiet", "--filter", f"label=fargate-runner.token={ref.token}")

    assert end.cause is Cause.STOPPED_ON_REQUEST
    assert running == ""


async def test_containers_start_in_the_order_of_their_conditions(backend: DockerBackend, key: str) -> None:
    check = HealthCheck(command=["test", "-f", "/tmp/fit"], interval=timedelta(seconds=5), timeout=timedelta(seconds=2))
    job = shell(
        "exit 0",
        sidecars=[
            side("sleep 0.5; exit 0", "first"),
            side("exit 9", "second", depends_on={"first": "SUCCESS"}),
            side("touch /tmp/fit; sleep 60", "third", depends_on={"second": "COMPLETE"}, health_check=check),
        ],
        depends_on={"third": "HEALTHY"},
    )

    async with launched(backend, job, key) as ref:
        end = await end_of(backend, ref)
        found = {name: inspected(f"{ref.address}-{name}")["State"] for name in ("first", "second", "third")}
        own = inspected(ref.address)["State"]

    assert (end.cause, end.exit_code) == (Cause.EXITED, 0)
    assert found["first"]["FinishedAt"] < found["second"]["StartedAt"]
    assert found["second"]["FinishedAt"] < found["third"]["StartedAt"]
    assert found["third"]["Health"]["Log"][0]["End"] < own["StartedAt"]


@pytest.mark.parametrize(
    ("sidecar", "condition", "said"),
    [
        (side("echo broken; exit 1", "setup"), "SUCCESS", "ended with exit code 1"),
        (
            side(
                "sleep 60",
                "setup",
                health_check=HealthCheck(command=["false"], interval=timedelta(seconds=5), retries=1),
            ),
            "HEALTHY",
            "is not healthy",
        ),
    ],
    ids=["SUCCESS", "HEALTHY"],
)
async def test_a_condition_that_cannot_come_true_keeps_the_job_from_starting(
    backend: DockerBackend, key: str, sidecar: Sidecar, condition: str, said: str
) -> None:
    job = shell("echo ran", sidecars=[sidecar], depends_on={"setup": condition})

    async with launched(backend, job, key) as ref:
        end = await end_of(backend, ref)
        lines = await texts_of(backend, ref)

    assert (end.cause, end.started_at, end.transient) == (Cause.COULD_NOT_START, None, False)
    assert "'setup'" in end.reason
    assert said in end.reason
    assert "ran" not in lines


async def test_the_lines_of_a_failed_set_up_can_be_read(backend: DockerBackend, key: str) -> None:
    job = shell("echo ran", sidecars=[side("echo broken; exit 1", "setup")], depends_on={"setup": "SUCCESS"})

    async with launched(backend, job, key) as ref:
        await end_of(backend, ref)

        assert await texts_of(backend, ref) == ["broken"]


async def test_a_sidecar_that_cannot_start_is_named(backend: DockerBackend, key: str) -> None:
    job = shell("sleep 60", sidecars=[Sidecar(name="proxy", image="127.0.0.1:1/nothing:1")])

    async with launched(backend, job, key) as ref:
        end = await end_of(backend, ref)

    assert end.cause is Cause.COULD_NOT_START
    assert "'proxy'" in end.reason


async def test_sidecars_have_secrets_of_their_own(backend: DockerBackend, key: str) -> None:
    job = shell(
        'echo "$PASSWORD"; sleep 0.5',
        secrets={"PASSWORD": Secret("of the job")},
        sidecars=[side('echo "$PASSWORD"', secrets={"PASSWORD": Secret("of the sidecar")})],
    )

    async with launched(backend, job, key) as ref:
        await end_of(backend, ref)

        assert await texts_of(backend, ref, container="main") == ["of the job"]
        assert await texts_of(backend, ref, container="side") == ["of the sidecar"]


EATER = "import time; a = bytearray(400 << 20); print('full', flush=True); time.sleep(60)"
VICTIM = "open('/proc/self/oom_score_adj', 'w').write('1000');"
"""Whom the kernel kills when several share a limit."""


async def test_the_memory_limit_holds_for_all_containers_together(backend: DockerBackend, key: str) -> None:
    # Each alone would fit.
    eater = Sidecar(name="side", image=PYTHON, command=["python3", "-c", EATER])
    script = f"{VICTIM} import time; time.sleep(2); a = bytearray(400 << 20)"
    job = Job(image=PYTHON, command=["python3", "-c", script], memory_gib=0.5, sidecars=[eater])

    async with launched(backend, job, key) as ref:
        end = await end_of(backend, ref)
        parent = inspected(ref.address)["HostConfig"]["CgroupParent"]

    assert (end.cause, end.exit_code) == (Cause.OUT_OF_MEMORY, 137)
    assert parent.endswith(ref.token)
    assert not list(Path("/sys/fs/cgroup").glob(f"*/fargate-runner/{ref.token}"))


async def test_a_sidecar_killed_in_its_place_leaves_the_job_its_exit_code(backend: DockerBackend, key: str) -> None:
    # The engine notes the kill for every container below the limit, the innocent ones too.
    eater = Sidecar(name="side", image=PYTHON, command=["python3", "-c", VICTIM + EATER])
    script = "import time; time.sleep(2); a = bytearray(400 << 20)"
    job = Job(image=PYTHON, command=["python3", "-c", script], memory_gib=0.5, sidecars=[eater])

    async with launched(backend, job, key) as ref:
        end = await end_of(backend, ref)

    assert "OOMKilled" in (end.proof.evidence if end.proof else "")
    assert (end.cause, end.exit_code) == (Cause.EXITED, 0)


async def test_a_sidecars_own_limit_is_its_own(backend: DockerBackend, key: str) -> None:
    eater = Sidecar(name="side", image=PYTHON, command=["python3", "-c", EATER], memory_gib=0.125)
    job = shell("sleep 3; exit 0", memory_gib=2, sidecars=[eater])

    async with launched(backend, job, key) as ref:
        end = await end_of(backend, ref)
        found = inspected(f"{ref.address}-side")["State"]

    assert (found["OOMKilled"], found["ExitCode"]) == (True, 137)
    assert (end.cause, end.exit_code) == (Cause.EXITED, 0)


METADATA = """
import json, os, time, urllib.request
time.sleep(0.5)
url = os.environ["ECS_CONTAINER_METADATA_URI_V4"]
own = json.load(urllib.request.urlopen(url))
task = json.load(urllib.request.urlopen(url + "/task"))
print(own["Name"], sorted(c["Name"] for c in task["Containers"]))
"""


async def test_every_container_has_a_metadata_endpoint_of_its_own(backend: DockerBackend, key: str) -> None:
    command = ["python3", "-c", METADATA]
    job = Job(
        image=PYTHON,
        command=["python3", "-c", METADATA + "\ntime.sleep(1)"],
        sidecars=[Sidecar(name="side", image=PYTHON, command=command)],
    )

    async with launched(backend, job, key) as ref:
        await end_of(backend, ref)
        lines = {c: await texts_of(backend, ref, container=c) for c in ("main", "side")}

    assert lines == {"main": ["main ['main', 'side']"], "side": ["side ['main', 'side']"]}
