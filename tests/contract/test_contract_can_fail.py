"""A contract is worth something only if it turns red: each test of it does, for a backend that breaks its promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.sweep
def test_every_behaviour_turns_red_for_a_backend_without_it() -> None:
    run = [sys.executable, "-m", "tests.contract.saboteurs"]

    told = subprocess.run(run, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True).stdout

    lines = told.splitlines()
    assert [line for line in lines if line.startswith(("UNNOTICED", "NEVER RED"))] == []
    assert int(lines[-1].split()[0]) >= 73
