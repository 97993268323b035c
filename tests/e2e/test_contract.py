"""The contract on the ECS backend with a session of its own, over HTTP, with real containers behind the fake AWS."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import ClassVar

import attrs
import pytest

from fargate_runner import Backend, EcsBackend, EcsOptions, Job
from fargate_runner.backends.ecs._logs import LogCadence
from fargate_runner.backends.ecs._watch import Cadence
from fargate_runner.testing.aws import FakeAws
from fargate_runner.testing.contract import BackendContract, ShellVocabulary, Vocabulary
from tests.contract.test_ecs import NETWORK, ROLES

pytestmark = pytest.mark.docker


@attrs.frozen
class Shell(ShellVocabulary):
    """What a shell does on ECS. A launch takes 8,192 characters: a long line is made where it is printed."""

    def prints(self, *lines: str, stderr: tuple[str, ...] = ()) -> Job:
        if not any(len(line) > 1000 for line in lines):
            return super().prints(*lines, stderr=stderr)
        before, line, after = lines
        return self._sh(f"echo {before}; head -c {len(line)} /dev/zero | tr '\\0' {line[0]}; echo; echo {after}")

    def unstartable(self) -> Job:
        # With an init process, which there is unless told otherwise, a missing program is an exit with 127.
        return super().unstartable().with_(ecs=EcsOptions(init_process=False))


class TestEcsWithRealContainers(BackendContract):
    merges_streams: ClassVar[bool] = True
    drops_blank_lines: ClassVar[bool] = True

    @pytest.fixture
    def jobs(self) -> Vocabulary:
        return Shell(image="fargate-runner-test/busybox:latest")

    @pytest.fixture
    async def make_backend(
        self, real: FakeAws, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncGenerator[Callable[[], Backend]]:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAFAKE")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fake")
        real.ecs.add_cluster("jobs")
        async with real.serve(moto=False) as url:
            yield lambda: EcsBackend(
                "jobs",
                network=NETWORK,
                roles=ROLES,
                secret_prefix="/fargate-runner",
                region=real.region,
                endpoint_url=url,
                cadence=Cadence.quick(),
                log_cadence=LogCadence.quick(),
            )
