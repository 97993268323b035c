"""The examples, run as their readers run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=100
    )


@pytest.fixture(scope="module")
def census() -> subprocess.CompletedProcess[str]:
    return run("examples/census.py", "--shares", "8")


class TestTheCensus:
    def test_goes_as_it_is_meant_to(self, census: subprocess.CompletedProcess[str]) -> None:
        assert (census.returncode, census.stderr) == (0, "")

    def test_tells_its_progress(self, census: subprocess.CompletedProcess[str]) -> None:
        told = re.findall(r"^\[ *(\d+)/9\]", census.stdout, re.MULTILINE)

        assert [int(number) for number in told] == list(range(1, 10))

    def test_repeats_the_share_that_fails_first(self, census: subprocess.CompletedProcess[str]) -> None:
        assert "retried: share-7, exit code 1 at first, then exit code 0" in census.stdout

    def test_shows_what_the_failed_job_said(self, census: subprocess.CompletedProcess[str]) -> None:
        assert "9 jobs, 11 attempts" in census.stdout
        assert "8 succeeded, 1 failed" in census.stdout
        assert re.search(r"failed: +urllib2, exit code 1, 2 attempts\n +\| Python .* no module", census.stdout)

    def test_counts_what_one_program_counts_alone(self, census: subprocess.CompletedProcess[str]) -> None:
        alone = run("examples/_count.py")

        files = sum(map(int, re.findall(r'"files": (\d+)', alone.stdout)))
        lines = sum(map(int, re.findall(r'"files": \d+, "lines": (\d+)', alone.stdout)))

        assert files > 400
        assert re.search(rf"^  total +{files:,} +{lines:,} ", census.stdout, re.MULTILINE)

    def test_wants_a_share_to_retry(self) -> None:
        asked = run("examples/census.py", "--shares", "7")

        assert asked.returncode == 2
        assert "at least 8" in asked.stderr

    @pytest.mark.docker
    @pytest.mark.usefixtures("engine")
    def test_goes_the_same_way_in_containers(self) -> None:
        done = run("examples/census.py", "--backend", "docker", "--shares", "8")

        assert (done.returncode, done.stderr) == (0, "")
        assert "9 jobs, 11 attempts" in done.stdout

    @pytest.mark.docker
    @pytest.mark.usefixtures("engine")
    def test_a_missing_image_is_told_and_not_a_traceback(self) -> None:
        done = run("examples/census.py", "--backend", "docker", "--shares", "8", "--image", "127.0.0.1:1/no/such:1")

        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "unexpected: and 5 more" in done.stderr

    @pytest.mark.docker
    def test_a_missing_engine_is_told_and_not_a_traceback(self) -> None:
        done = run("examples/census.py", "--backend", "docker", DOCKER_HOST="unix:///nonexistent/docker.sock")

        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "the census could not be taken" in done.stderr
