"""What `fargate_runner.aws_lambda` promises about itself: its imports, its names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fargate_runner import aws_lambda
from tests.test_house import HEAVY, _docstrings, loaded_by

ROOT = Path(__file__).parents[2]


def modules_after(code: str) -> set[str]:
    report = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


class TestImporting:
    def test_loads_nothing_beyond_the_package_itself(self) -> None:
        before, after = modules_after("import fargate_runner"), modules_after("import fargate_runner.aws_lambda")

        assert after - before == {"fargate_runner.aws_lambda"}
        assert "fargate_runner.aws_lambda" not in before

    def test_and_decorating_loads_no_aws_library(self) -> None:
        code = """
from fargate_runner.aws_lambda import for_each, lambda_handler, triggers_of, wait

@lambda_handler(runner=lambda: None)
async def handler(event, context, runner): ...
"""

        assert not loaded_by(code) & HEAVY


class TestPublicNames:
    def test_are_sorted_and_there_once(self) -> None:
        assert list(aws_lambda.__all__) == sorted(set(aws_lambda.__all__))
        assert set(aws_lambda.__all__) <= set(dir(aws_lambda))

    @pytest.mark.parametrize("name", aws_lambda.__all__)
    def test_each_has_a_docstring_and_so_has_what_it_offers(self, name: str) -> None:
        silent = [where for where, doc in _docstrings(name, getattr(aws_lambda, name)) if not doc]

        assert not silent

    def test_an_unknown_name_is_an_attribute_error(self) -> None:
        name = "no_such_name"

        with pytest.raises(AttributeError, match=name):
            getattr(aws_lambda, name)
