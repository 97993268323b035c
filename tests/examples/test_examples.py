"""The examples, run as their readers run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e import ministack
from tests.e2e.ministack import MiniStackUnavailable

ROOT = Path(__file__).parents[2]
PATIENCE = 350
"""Seconds, for what takes 40 on a calm machine."""


def run(*command: str, patience: float = 100, **variables: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=patience
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


@pytest.mark.sweep
@pytest.mark.timeout(400)  # it tells by itself if it does not come to an end
class TestUploads:
    """`examples/lambda`: handlers in processes of their own, over a fake AWS; and on an emulator that runs Lambda."""

    def test_go_as_they_are_meant_to(self) -> None:
        # Who plays it may have an account, which has to stay out of it.
        theirs = {"AWS_PROFILE": "no-such-profile", "FARGATE_RUNNER_CLUSTER": "theirs"}
        played = run("examples/lambda/play.py", patience=PATIENCE, **theirs)
        told = re.search(r"(\d+) deliveries of 7 ends; .*; 5 answers$", played.stdout, re.MULTILINE)

        assert (played.returncode, played.stderr) == (0, "")
        assert "one execution, one job, one answer and one message for each upload" in played.stdout
        # Each is told three times, and begins once; those that fail first are tried again, the last one for good.
        assert "15 calls of submit.on_upload" in played.stdout
        assert re.search(r"^  in/red flower 100%\.csv +1 +1 +1 +1  SUCCEEDED$", played.stdout, re.MULTILINE)
        assert re.search(r"^  in/flaky\.csv +1 +2 +2 +1  SUCCEEDED$", played.stdout, re.MULTILINE)
        assert re.search(r"^  in/broken\.csv +1 +2 +2 +1  FAILED FargateRunner\.Failed$", played.stdout, re.MULTILINE)
        # So are the ends, and each is answered once.
        assert told is not None
        assert int(told[1]) >= 21

    def test_want_an_emulator_that_can_be_run(self) -> None:
        asked = run("examples/lambda/play.py", "--ministack", "no/such/ministack")

        assert asked.returncode == 1
        assert "no/such/ministack cannot be run: No such file" in asked.stderr
        assert "Traceback" not in asked.stderr

    @pytest.mark.docker  # not for containers: where images can be had, so can MiniStack
    def test_go_the_same_way_on_an_emulator_that_runs_functions(self) -> None:
        try:
            program = ministack.environment().with_name("ministack")
        except MiniStackUnavailable as exc:
            pytest.skip(str(exc))

        done = run("examples/lambda/play.py", "--ministack", str(program), patience=PATIENCE)

        assert (done.returncode, done.stderr) == (0, "")
        assert "functions and state machine ran on MiniStack" in done.stdout


class TestTheTemplateOfUploads:
    """What `examples/lambda/template.yaml` says of the handlers beside it."""

    HERE = ROOT / "examples" / "lambda"

    def test_cfn_lint_has_nothing_to_say(self) -> None:
        words = ["--include-checks", "I", "--regions", "us-east-1", "eu-central-1"]
        said = run("-c", "from cfnlint.runner import main; main()", *words, "--", str(self.HERE / "template.yaml"))

        assert (said.returncode, said.stdout) == (0, ""), said.stdout + said.stderr

    def test_its_functions_are_there_and_get_what_they_read(self) -> None:
        text = (self.HERE / "template.yaml").read_text()
        common, *functions = re.split(r"^  \w+:\n    Type: AWS::Serverless::Function\n", text, flags=re.MULTILINE)
        given = {*re.findall(r"^        (\w+): !", common, re.MULTILINE)}

        named: dict[str, set[str]] = {}
        for function in functions:
            own, _, _ = function.partition("\n  # ----")
            handler = re.search(r"Handler: (\S+)", own)
            assert handler is not None
            named[handler[1]] = given | {*re.findall(r"^          (\w+): !", own, re.MULTILINE)}

        assert sorted(named) == ["submit.on_upload", "submit.submit", "supervise.supervise"]
        shared = read_variables((self.HERE / "jobs.py").read_text())
        for handler, variables in named.items():
            module, _, name = handler.partition(".")
            source = (self.HERE / f"{module}.py").read_text()
            body = source[source.index(f"async def {name}(") :].partition("\n@lambda_handler")[0]
            assert variables >= shared | read_variables(body)

    def test_init_has_the_outputs_that_it_takes(self) -> None:
        made = run("-m", "fargate_runner.cli", "init", "--format", "cloudformation", "--name", "convert").stdout
        outputs = {*re.findall(r"^  (\w+):$", made.partition("\nOutputs:")[2], re.MULTILINE)}
        text = (self.HERE / "template.yaml").read_text().partition("\nParameters:")[2].partition("\nGlobals:")[0]
        parameters = {*re.findall(r"^  (\w+):$", text, re.MULTILINE)}

        assert outputs - {"EventsQueue"} <= parameters
        assert parameters - outputs == {"Image", "PublicIp"}


def read_variables(source: str) -> set[str]:
    return {*re.findall(r'os\.environ\["(\w+)"\]', source)}
