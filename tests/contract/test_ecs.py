"""The contract on the ECS backend over the fake AWS, in process and in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest

from fargate_runner import Backend, EcsBackend, Network, Roles
from fargate_runner.testing.aws import FakeAws
from fargate_runner.testing.clock import VirtualClock
from fargate_runner.testing.contract import BackendContract, Vocabulary
from tests.contract.ecs_words import Words, script

NETWORK = Network(subnets=["subnet-0aaaaaaaa00000001", "subnet-0bbbbbbbb00000001"])
ROLES = Roles(execution="arn:aws:iam::123456789012:role/execution")


class TestEcsOverTheFakeAws(BackendContract):
    merges_streams: ClassVar[bool] = True
    drops_blank_lines: ClassVar[bool] = True

    @pytest.fixture
    def anyio_backend(self, clock: VirtualClock) -> object:
        return "asyncio", {"loop_factory": clock.loop}

    @pytest.fixture
    def jobs(self) -> Vocabulary:
        return Words()

    @pytest.fixture
    def make_backend(self, clock: VirtualClock) -> Callable[[], Backend]:
        aws = FakeAws(clock=clock, script=script, clusters=("jobs",))
        return lambda: EcsBackend(
            "jobs",
            network=NETWORK,
            roles=ROLES,
            secret_prefix="/fargate-runner",
            session=aws.session(),
            region=aws.region,
            utcnow=clock.utcnow,
        )
