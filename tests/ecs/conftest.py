"""An account in virtual time, and a backend on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fargate_runner import EcsBackend, Network, Roles
from fargate_runner.testing.aws import FakeAws
from fargate_runner.testing.clock import VirtualClock
from tests.contract.ecs_words import Words, script

NETWORK = Network(subnets=["subnet-0aaaaaaaa00000001", "subnet-0bbbbbbbb00000001"])
ROLES = Roles(execution="arn:aws:iam::123456789012:role/execution")


@pytest.fixture
def anyio_backend(clock: VirtualClock) -> object:
    return "asyncio", {"loop_factory": clock.loop}


@pytest.fixture
def aws(clock: VirtualClock) -> FakeAws:
    return FakeAws(clock=clock, script=script, clusters=("jobs",))


@pytest.fixture
def jobs() -> Words:
    return Words()


@pytest.fixture
def make_backend(aws: FakeAws, clock: VirtualClock) -> Callable[..., EcsBackend]:
    def make(**options: Any) -> EcsBackend:
        known: dict[str, Any] = {
            "network": NETWORK,
            "roles": ROLES,
            "session": aws.session(),
            "region": aws.region,
            "utcnow": clock.utcnow,
        }
        return EcsBackend("jobs", **known | options)

    return make
