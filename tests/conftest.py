"""What all tests share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("fargate_runner.testing.contract")

from fargate_runner.testing.clock import VirtualClock  # noqa: E402 (the contract is rewritten before anybody imports it)

# Started in the background by a shell, we ignore Ctrl-C, and so would every program that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test looks at the wall clock, and none fails because the machine is busy.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

READY = Path(__file__).parents[1] / "scripts" / "docker_ready.py"


@pytest.fixture
def anyio_backend() -> object:
    return "asyncio"


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture(scope="session")
def engine() -> None:
    """Make sure of a Docker engine with the test images; without one, skip, or fail where skipping is forbidden."""
    check = subprocess.run([sys.executable, str(READY), "--check"], capture_output=True, text=True, check=False)
    if check.returncode == 0:
        return
    why = f"no Docker engine with the test images: run scripts/docker_ready.py ({check.stderr or check.stdout})"
    if os.environ.get("FARGATE_RUNNER_DOCKER") == "required":
        pytest.fail(why)
    pytest.skip(why)
