"""A user's suite of tests, written and run inside a test."""

from __future__ import annotations

from importlib import import_module

import pytest

# The runs share these with this process; else each would import its own, and two of a kind would meet.
for shared in ("backends.ecs", "backends.memory", "testing.aws", "testing.clock"):
    import_module(f"fargate_runner.{shared}")

INI = """
[pytest]
addopts = --strict-markers --strict-config
anyio_mode = auto
filterwarnings = error
"""

CONFTEST = """
import pytest


@pytest.fixture
def anyio_backend(virtual_time: object) -> object:
    return virtual_time
"""


class Suite:
    """A user's tests: written, run in this process, and what came of them."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester
        pytester.makeini(INI)
        pytester.makeconftest(CONFTEST)

    def conftest(self, text: str) -> None:
        self._pytester.makeconftest(text)

    def ini(self, text: str) -> None:
        self._pytester.makeini(text)

    def run(self, test: str, *options: str) -> pytest.RunResult:
        self._pytester.makepyfile(test)
        # Hypothesis would be loaded anew by each run, which takes a second.
        return self._pytester.runpytest_inprocess("-p", "no:hypothesispytest", *options)
