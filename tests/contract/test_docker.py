"""The contract on a real Docker engine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fargate_runner import Backend, DockerBackend
from fargate_runner.testing.contract import BackendContract, ShellVocabulary, Vocabulary


@pytest.mark.docker
@pytest.mark.usefixtures("engine")
class TestDockerBackend(BackendContract):
    @pytest.fixture
    def jobs(self) -> Vocabulary:
        return ShellVocabulary(image="fargate-runner-test/busybox:latest")

    @pytest.fixture
    def make_backend(self) -> Callable[[], Backend]:
        return DockerBackend
