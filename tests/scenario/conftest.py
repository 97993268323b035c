"""Scenarios run in virtual time."""

from __future__ import annotations

import pytest

from fargate_runner.testing.clock import VirtualClock
from tests.scenario.world import World


@pytest.fixture
def anyio_backend(clock: VirtualClock) -> object:
    return "asyncio", {"loop_factory": clock.loop}


@pytest.fixture
def world(clock: VirtualClock) -> World:
    return World(clock=clock)
