"""An account in virtual time, whose every call is recorded."""

from __future__ import annotations

import pytest

from fargate_runner.testing.aws import Delivery, FakeAws
from fargate_runner.testing.clock import VirtualClock
from tests.contract.ecs_words import script


@pytest.fixture
def anyio_backend(clock: VirtualClock) -> object:
    return "asyncio", {"loop_factory": clock.loop}


@pytest.fixture
def aws(clock: VirtualClock) -> FakeAws:
    return FakeAws(clock=clock, script=script, clusters=("jobs",), delivery=Delivery(queue_policies=True))
