"""The contract on the ECS backend through a real aioboto3, over the fake AWS's HTTP face, in real time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import ClassVar

import aioboto3
import pytest

from fargate_runner import Backend, EcsBackend
from fargate_runner.backends.ecs._logs import LogCadence
from fargate_runner.backends.ecs._watch import Cadence
from fargate_runner.testing.aws import FakeAws, Ingestion, Pace, Quotas
from fargate_runner.testing.contract import BackendContract, Vocabulary
from tests.contract.ecs_words import Words, script
from tests.contract.test_ecs import NETWORK, ROLES

pytestmark = pytest.mark.sweep

SESSION = aioboto3.Session()  # reading botocore's models once is enough


class TestEcsOverHttp(BackendContract):
    merges_streams: ClassVar[bool] = True
    drops_blank_lines: ClassVar[bool] = True

    @pytest.fixture
    def jobs(self) -> Vocabulary:
        return Words()

    @pytest.fixture
    async def make_backend(self, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Callable[[], Backend]]:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAFAKE")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fake")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        aws = FakeAws(
            script=partial(script, run_for=0.05),
            clusters=("jobs",),
            quotas=Quotas.unlimited(),
            pace=Pace.instant(),
            visible_after=(0.0, 0.0),
            ingestion=Ingestion(least=0.0, most=0.05),
        )
        async with aws.serve(moto=False) as url:
            yield lambda: EcsBackend(
                "jobs",
                network=NETWORK,
                roles=ROLES,
                secret_prefix="/fargate-runner",
                region=aws.region,
                session=SESSION,
                endpoint_url=url,
                cadence=Cadence.quick(),
                log_cadence=LogCadence.quick(),
            )
