"""Patches go stale: each has to apply to the tree as it is, change the package alone, and say what sees it."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.mutations.__main__ import ROOT, Mutation, mutations

ALL = mutations()


@pytest.mark.parametrize("mutation", ALL, ids=[mutation.name for mutation in ALL])
class TestAMutation:
    def test_applies(self, mutation: Mutation) -> None:
        check = ["git", "apply", "--check", "--recount", str(mutation.path)]

        done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, check=False)

        assert done.returncode == 0, done.stderr

    def test_changes_the_package_and_nothing_else(self, mutation: Mutation) -> None:
        changed = re.findall(r"^\+\+\+ b/(\S+)", mutation.path.read_text(), re.MULTILINE)

        assert changed
        assert all(path.startswith("fargate_runner/") for path in changed)

    def test_is_seen_by_chaos_or_by_tests_that_exist(self, mutation: Mutation) -> None:
        named = [word for command in mutation.commands for word in command.split() if word.startswith("tests/")]

        assert all((ROOT / path).exists() for path in named)
        assert all(command.split()[0] in {"chaos", "pytest"} for command in mutation.commands)


def test_they_are_numbered_without_a_gap() -> None:
    assert [mutation.name for mutation in ALL] == [f"M{number}" for number in range(1, len(ALL) + 1)]
