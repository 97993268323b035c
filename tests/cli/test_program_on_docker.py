"""The real program on a real engine: only what differs from the process backend."""

from __future__ import annotations

import subprocess
import uuid

import pytest

from tests.cli.programs import Terminal, run
from tests.cli.test_program import READY

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine")]

IMAGE = "fargate-runner-test/busybox:latest"


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ([IMAGE, "--", "sh", "-c", "exit 5"], 5),
        ([IMAGE, "--", "/no/such/program"], 127),
        (["no-such-registry.invalid/image:1", "--", "true"], 125),
        (["--timeout", "0.5", IMAGE, "--", "sleep", "1000"], 124),
        (["--backend", "docker", "-", "--", "true"], 2),
    ],
)
def test_the_exit_code_tells_how_the_job_ended(args: list[str], code: int) -> None:
    done = run("run", *args)

    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_ctrl_c_stops_the_container() -> None:
    job = "trap 'echo bye; exit 0' TERM; echo ready $$; while :; do sleep 0.1; done"

    with Terminal("run", IMAGE, "--", "sh", "-c", job) as terminal:
        terminal.read_until(READY)
        terminal.type("\x03")
        code = terminal.finish()

    assert code == 130
    assert "bye\r\n" in terminal.text


def test_after_a_second_ctrl_c_the_job_is_met_again_with_its_lines_and_its_end() -> None:
    key = f"cli/{uuid.uuid4()}"
    job = "trap 'echo heard; sleep 3; echo late; exit 9' TERM; echo ready $$; while :; do sleep 0.1; done"

    with Terminal("run", "--key", key, IMAGE, "--", "sh", "-c", job) as terminal:
        terminal.read_until(READY)
        terminal.type("\x03")
        terminal.read_until("press Ctrl-C again")
        terminal.read_until("heard")  # a signal that comes later is seen by the next, and somebody else's to him
        terminal.type("\x03")
        left = terminal.finish()
    met = run("attach", "--backend", "docker", key)
    containers = ["docker", "ps", "--all", "--quiet", "--filter", f"label=fargate-runner.key={key}"]
    ids = subprocess.run(containers, capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["docker", "rm", "--force", *ids], capture_output=True, check=True)

    assert left == 130
    assert "late" not in terminal.text
    assert met.stdout.splitlines()[-1] == "late"
    assert met.returncode == 9
