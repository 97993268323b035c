"""`policy` and `init`: where their values come from, where their text goes, and what they say of bad input."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fargate_runner import EcsBackend
from fargate_runner.cli._app import main
from fargate_runner.infrastructure import Access, Stack, caller_policy, template
from fargate_runner.testing.aws import FakeAws, denied
from tests.infrastructure.iam import ACCOUNT, actions

ROLE = f"arn:aws:iam::{ACCOUNT}:role/execution"
PLACE = ["--cluster", "jobs", "--region", "us-east-1", "--account", ACCOUNT]

Said = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLUSTER", "EXECUTION_ROLE", "TASK_ROLE", "LOG_GROUP"):
        monkeypatch.delenv(f"FARGATE_RUNNER_{name}", raising=False)
    monkeypatch.setenv("AWS_REGION", "us-east-1")


@pytest.fixture
def aws() -> FakeAws:
    return FakeAws()


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], aws: FakeAws) -> Said:
    def run(*words: str) -> tuple[int, str, str]:
        code = main(list(words), backends={"ecs": lambda: EcsBackend(session=aws.session())})
        out, err = capsys.readouterr()
        return code, out, err

    return run


def policy_of(said: Said, *words: str) -> dict[str, Any]:
    code, out, err = said("policy", *words)
    assert (code, err) == (0, "")
    document: dict[str, Any] = json.loads(out)
    return document


class TestPolicy:
    def test_is_that_of_the_library(self, said: Said, aws: FakeAws) -> None:
        written = policy_of(said, *PLACE, "--execution-role", ROLE, "--events", "q", "--also", "make-events", "--tags")

        access = Access(
            region="us-east-1",
            account=ACCOUNT,
            cluster="jobs",
            roles=[ROLE],
            events="q",
            tags=True,
            chores=["make-events"],
        )
        assert written == caller_policy(access)
        assert len(aws.calls) == 0

    def test_the_environment_is_in_use(self, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in (("CLUSTER", "night"), ("EXECUTION_ROLE", ROLE), ("LOG_GROUP", "/night")):
            monkeypatch.setenv(f"FARGATE_RUNNER_{name}", value)

        text = json.dumps(policy_of(said))

        assert f"{ACCOUNT}:cluster/night" in text
        assert f"us-east-1:{ACCOUNT}:log-group:/night:*" in text
        assert ROLE in text

    def test_region_and_account_are_those_of_the_cluster(self, said: Said, aws: FakeAws) -> None:
        written = policy_of(said, "--cluster", "arn:aws:ecs:eu-west-1:111122223333:cluster/jobs")

        assert "arn:aws:ecs:eu-west-1:111122223333:task/jobs/*" in json.dumps(written)
        assert len(aws.calls) == 0

    def test_AWS_is_asked_for_the_account_that_nobody_named(self, said: Said, aws: FakeAws) -> None:
        written = policy_of(said, "--cluster", "jobs")

        assert f"arn:aws:ecs:us-east-1:{ACCOUNT}:cluster/jobs" in json.dumps(written)
        assert set(aws.calls.operations) == {"sts.GetCallerIdentity"}

    @pytest.mark.parametrize(
        ("words", "there", "missing"),
        [
            (["--journal", "fargate-jobs"], {"dynamodb:PutItem"}, set[str]()),
            (["--spill-to", "s3://bucket/x"], {"s3:PutObject"}, set[str]()),
            (["--secret-prefix", "/jobs"], {"ssm:PutParameter"}, set[str]()),
            (["--retention-days", "30"], {"logs:PutRetentionPolicy"}, set[str]()),
            (["--log-group-is-there"], {"logs:DescribeLogGroups"}, {"logs:CreateLogGroup"}),
            (["--definition", "job", "--existing-only"], {"ecs:RunTask"}, {"ecs:RegisterTaskDefinition"}),
            (["--volume-role", "volumes"], {"iam:PassRole"}, set[str]()),
            (["--also", "prune"], {"ecs:DeregisterTaskDefinition"}, set[str]()),
            (["--for", "execution"], {"ecr:BatchGetImage"}, {"ecs:RunTask"}),
        ],
    )
    def test_options_add_what_they_need(self, said: Said, words: list[str], there: set[str], missing: set[str]) -> None:
        found = actions(policy_of(said, *PLACE, *words))

        assert found >= there
        assert not found & missing

    def test_code_says_what_is_in_use(self, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delitem(sys.modules, "app_of_this_test", raising=False)
        Path("app_of_this_test.py").write_text(
            "from fargate_runner import DynamoDBJournal, EcsBackend, Roles, Runner\n"
            f"backend = EcsBackend('jobs', events='q', roles=Roles(execution='{ROLE}'), region='eu-west-1')\n"
            "def make_runner():\n"
            "    return Runner(backend, journal=DynamoDBJournal('table', region='eu-west-1'), namespace='night')\n"
        )

        written = policy_of(said, "--from", "app_of_this_test:make_runner", "--role", "reports")

        access = Access(
            region="eu-west-1",
            account=ACCOUNT,
            cluster="jobs",
            roles=[ROLE, "reports"],
            events="q",
            journal="table",
            namespace="night",
        )
        assert written == caller_policy(access)

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ([], "--cluster: none was said; say --cluster NAME, or set FARGATE_RUNNER_CLUSTER"),
            (["--cluster", "*"], "--cluster '*': not the name or ARN of a cluster; write it like 'jobs'"),
            (["--account", "1"], "--account '1': not the number of an account; write its 12 digits"),
            (["--region", "mars"], "--region 'mars': not a region; write it like 'us-east-1'"),
            (["--role", "*"], "--role '*': neither the ARN of a role nor the name of one"),
            (["--definition", "fr-*"], "--definition 'fr-*': not a task definition; write 'family'"),
            (["--journal", "*"], "--journal '*': not the name or ARN of a table"),
            (["--retention-days", "31"], "--retention-days 31: CloudWatch Logs keeps no such time; use one of 1, 3"),
            (["--existing-only"], "--definition: nothing is derived and nothing exists; name a task definition"),
            (["--also", "make-events"], "--events: make-events makes one, and it has no name"),
            (["--from", "app"], "--from 'app': not a place in Python; write it like app:make_runner"),
            (["--from", "no_such_app:x"], "--from 'no_such_app:x': it cannot be loaded (ModuleNotFoundError"),
            (["--from", "json:dumps"], "--from 'json:dumps': it cannot be loaded (TypeError"),
            (["--from", "sys:path"], "--from 'sys:path': it gives a list; name an EcsBackend, or a Runner on one"),
        ],
        ids=str,
    )
    def test_bad_input_is_told_with_what_to_do(self, said: Said, words: list[str], expected: str) -> None:
        code, out, err = said("policy", *(PLACE if words else []), *words)

        assert (code, out) == (2, "")
        assert expected in err

    def test_without_credentials_it_says_what_to_say(self, said: Said, aws: FakeAws) -> None:
        aws.faults.add(denied("sts.GetCallerIdentity"))

        code, out, err = said("policy", "--cluster", "jobs")

        assert (code, out) == (2, "")
        assert "--account: AWS does not tell it" in err
        assert "--account NUMBER" in err


class TestInit:
    @pytest.mark.parametrize("form", ["cloudformation", "sam", "terraform"])
    def test_is_that_of_the_library(self, said: Said, form: Any, aws: FakeAws) -> None:
        code, out, err = said("init", "--format", form, "--name", "reports", "--namespace", "night", "--tags")

        assert (code, err) == (0, "")
        assert out == template(Stack(name="reports", namespace="night", tags=True), form)
        assert len(aws.calls) == 0

    @pytest.mark.parametrize(
        ("form", "name"), [("cloudformation", "template.yaml"), ("sam", "template.yaml"), ("terraform", "main.tf")]
    )
    @pytest.mark.parametrize("out", ["there", "new/"])
    def test_a_directory_gets_a_file(self, said: Said, tmp_path: Path, form: str, name: str, out: str) -> None:
        (tmp_path / "there").mkdir()

        code, shown, err = said("init", "--format", form, "--out", f"{tmp_path}/{out}")

        path = tmp_path / out / name
        assert (code, shown, err) == (0, "", f"fargate-runner: wrote {path}\n")
        assert "fargate-runner init" in path.read_text()

    def test_nothing_is_written_over_unasked(self, said: Said, tmp_path: Path) -> None:
        path = tmp_path / "jobs.yaml"
        path.write_text("precious")

        code, _, err = said("init", "--format", "sam", "--out", str(path))

        assert code == 2
        assert f"{path} is there already; say --force, or another place" in err
        assert path.read_text() == "precious"
        assert said("init", "--format", "sam", "--out", str(path), "--force")[0] == 0
        assert "precious" not in path.read_text()

    def test_a_place_that_cannot_be_written_is_told(self, said: Said, tmp_path: Path) -> None:
        (tmp_path / "file").touch()

        code, _, err = said("init", "--format", "sam", "--out", f"{tmp_path}/file/x.yaml")

        assert code == 2
        assert "cannot be written" in err

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ([], "Missing option '--format'"),
            (["--format", "pulumi"], "'pulumi' is not one of 'cloudformation', 'sam', 'terraform'"),
            (["--name", "My Jobs"], "--name 'My Jobs': not a name for all that is made; use 3 to 24 small letters"),
            (["--namespace", "a b"], "--namespace 'a b': not a namespace; use 1 to 64 letters"),
            (["--retention-days", "31"], "--retention-days 31: CloudWatch Logs keeps no such time"),
            (["--notify", "done"], "--notify 'done': not the ARN of an SQS queue, an SNS topic or an event bus"),
            (["--spill-to", "bucket"], "--spill-to 'bucket': not a place in S3; write it like 's3://bucket/prefix'"),
        ],
        ids=str,
    )
    def test_bad_input_is_told_with_what_to_do(self, said: Said, words: list[str], expected: str) -> None:
        form = ["--format", "sam"] if words and "--format" not in words else []

        code, out, err = said("init", *form, *words)

        assert (code, out) == (2, "")
        assert expected in err
