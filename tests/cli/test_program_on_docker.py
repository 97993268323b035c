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
    # It ends when it is told to, once somebody else has met it.
    last_words = "echo heard; until test -e /met; do sleep 0.1; done; echo late; exit 9"
    job = f"trap '{last_words}' TERM; echo ready $$; while :; do sleep 0.1; done"

    with Terminal("run", "--key", key, IMAGE, "--", "sh", "-c", job) as terminal:
        terminal.read_until(READY)
        terminal.type("\x03")
        terminal.read_until("press Ctrl-C again")
        terminal.read_until("heard")
        terminal.type("\x03")
        left = terminal.finish()
    containers = ["docker", "ps", "--all", "--quiet", "--filter", f"label=fargate-runner.key={key}"]
    ids = subprocess.run(containers, capture_output=True, text=True, check=True).stdout.split()
    with Terminal("attach", "--backend", "docker", key) as second:
        second.read_until("heard")
        subprocess.run(["docker", "exec", *ids, "touch", "/met"], capture_output=True, check=True)
        met = second.finish()
    subprocess.run(["docker", "rm", "--force", *ids], capture_output=True, check=True)

    assert left == 130
    assert "late" not in terminal.text
    assert "late" in second.text
    assert met == 9
