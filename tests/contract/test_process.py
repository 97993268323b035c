"""The contract on local processes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fargate_runner import Backend, ProcessBackend
from fargate_runner.testing.contract import BackendContract, ShellVocabulary, Vocabulary


class TestProcessBackend(BackendContract):
    @pytest.fixture
    def jobs(self) -> Vocabulary:
        return ShellVocabulary()

    @pytest.fixture
    def make_backend(self) -> Callable[[], Backend]:
        return ProcessBackend
