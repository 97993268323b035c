"""The tests that docs/how-to/test-with-a-fake-aws.md shows, run as its readers would."""

from __future__ import annotations

from tests.docs.snippets import ROOT, blocks
from tests.plugin.suite import Suite

pytest_plugins = ["pytester"]

PAGE = "docs/how-to/test-with-a-fake-aws.md"


def test_the_tests_of_the_page_pass(suite: Suite) -> None:
    conftest, *tests = [block.code for block in blocks((ROOT / PAGE).read_text(), PAGE) if block.language == "python"]
    suite.conftest(conftest)

    result = suite.run("\n\n".join(tests))

    result.assert_outcomes(passed=14)
