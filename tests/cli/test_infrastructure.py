"""`policy`, `init` and `doctor`: where values come from, where text goes, and what is said of bad input."""

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
from fargate_runner.testing.aws import FakeAws, Fault, denied
from fargate_runner.testing.aws._service import RealClock
from tests.cli.programs import Terminal, environment
from tests.infrastructure.iam import ACCOUNT, actions
from tests.infrastructure.patient import EXECUTION, IMAGE, PRIVATE, PUBLIC, REGION, TASK, Patient

ROLE = f"arn:aws:iam::{ACCOUNT}:role/execution"
PLACE = ["--cluster", "jobs", "--region", "us-east-1", "--account", ACCOUNT]

Said = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLUSTER", "EXECUTION_ROLE", "TASK_ROLE", "LOG_GROUP", "SUBNETS", "SECURITY_GROUPS", "PUBLIC_IP"):
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
            (["--for", "doctor"], {"iam:SimulatePrincipalPolicy"}, {"ecs:RunTask", "sqs:GetQueueAttributes"}),
            (["--for", "doctor", "--events", "q"], {"sqs:GetQueueAttributes"}, {"sqs:ReceiveMessage"}),
            (["--for", "doctor", "--also", "discover"], {"ec2:DescribeVpcs"}, {"dynamodb:DescribeTable"}),
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


@pytest.fixture
def patient() -> Patient:
    return Patient(RealClock())


@pytest.fixture
def examined(patient: Patient, capsys: pytest.CaptureFixture[str]) -> Said:
    def run(*words: str) -> tuple[int, str, str]:
        def make(**said: Any) -> EcsBackend:
            known: dict[str, Any] = {"session": patient.aws.session(), "region": REGION}
            return EcsBackend(**known | said)

        code = main(["doctor", *words], backends={"ecs": make})
        out, err = capsys.readouterr()
        return code, out, err

    return run


WELL = ["--cluster", "jobs", "--execution-role", EXECUTION, "--task-role", TASK, "--log-group", "/jobs"]
IN_PRIVATE = ["--subnet", PRIVATE, "--security-group", "sg-0de0de0de0de0de0d"]


class TestDoctor:
    def test_says_that_all_is_well_in_one_line_each(self, examined: Said) -> None:
        code, out, err = examined(*WELL, *IN_PRIVATE, IMAGE)

        *lines, empty, counts = out.splitlines()
        assert (code, err, empty) == (0, "", "")
        assert all(line.startswith("ok       ") for line in lines)
        assert "ok       cluster: jobs is active" in lines
        assert counts == f"{len(lines)} ok"

    def test_says_of_each_red_line_what_to_do_and_fails(self, examined: Said, patient: Patient) -> None:
        del patient.iam.roles["task"]
        patient.aws.faults.add(denied("ec2.DescribeSecurityGroups"))

        code, out, _ = examined(*WELL, "--subnet", PUBLIC, IMAGE)

        lines = out.splitlines()
        assert code == 1
        for mark in ("FAILED   route: ", "FAILED   task role: ", "unknown  security groups: "):
            (number,) = [number for number, line in enumerate(lines) if line.startswith(mark)]
            assert lines[number + 1].startswith("         to do: ")
        assert lines[-1].endswith("ok, 2 failed, 1 unknown")

    def test_what_is_unknown_or_a_warning_does_not_fail(self, examined: Said, patient: Patient) -> None:
        patient.aws.faults.add(denied("iam.SimulatePrincipalPolicy"))

        code, out, _ = examined(*WELL, *IN_PRIVATE, "--concurrency", "100", IMAGE)

        assert code == 0
        assert out.splitlines()[-1].endswith("ok, 1 warning, 2 unknown")

    def test_writes_JSON(self, examined: Said) -> None:
        code, out, err = examined("--json", *WELL, "--subnet", PUBLIC)

        found = json.loads(out)
        assert (code, err) == (1, "")
        (route,) = [one for one in found if one["check"] == "route"]
        assert set(route) == {"check", "state", "seen", "todo"}
        assert route["state"] == "failed"
        assert {one["state"] for one in found} == {"ok", "failed"}

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["--cluster", "nights"], "FAILED   cluster: ECS knows none of the name 'nights'"),
            (["--cluster", f"arn:aws:ecs:{REGION}:{ACCOUNT}:cluster/jobs"], "ok       cluster: jobs is active"),
            (["--region", "eu-west-1"], f"ok       credentials: arn:aws:iam::{ACCOUNT}:user/fake in eu-west-1"),
            (["--subnet", PUBLIC, "--public-ip"], f"ok       route: {PUBLIC}: the internet is reached by igw-"),
            (["--subnet", PRIVATE, "--subnet", PUBLIC], f"ok       route: {PRIVATE}: the internet is reached by nat-"),
            (["--subnet", PUBLIC, "--security-group", "sg-0123456789abcdef0"], "FAILED   security groups: "),
            (["--spot"], "ok       capacity: the cluster has FARGATE_SPOT"),
            (["--execution-role", "arn:aws:iam::123456789012:role/x"], "FAILED   execution role: "),
            (["--task-role", "x"], "FAILED   task role: x is not there"),
            (["--log-group", "/new"], "ok       log group: /new is not there yet, and made at the first launch"),
            (["--log-group", "/new", "--log-group-is-there"], "FAILED   log group: there is no /new"),
            (["--log-group-is-there"], "FAILED   log group: there is no /fargate-runner"),
            (["--definition", "nights"], "FAILED   task definition: ECS knows none of the name 'nights'"),
            (["--events", "q"], "FAILED   events: there is no queue q"),
            (["--journal", "t-1"], "FAILED   journal: there is no table t-1"),
            (["--journal", "fargate-jobs"], "ok       journal: "),
            (["--spill-to", "s3://variables/x"], "FAILED   environments: there is no bucket variables"),
            (["--secret-prefix", "/other"], "ssm:PutParameter on arn:aws:ssm:us-east-1:123456789012:parameter/other/"),
            (["--also", "prune"], "FAILED   permissions: fake may not ecs:DeregisterTaskDefinition"),
            (["--vcpu", "8", IMAGE], "FAILED   quota: 6 vCPUs at a time on Fargate on demand, and one job takes 8"),
            (["-m", "16g", IMAGE], "and a job takes 2"),
            (["--concurrency", "25"], "warning  quota: 6 vCPUs at a time on Fargate on demand: 24 of 25 jobs"),
            ([IMAGE.replace("7", "8")], "FAILED   image: "),
            (["--architecture", "arm64", IMAGE], f"ok       image: {IMAGE} is there, for ARM64, X86_64"),
            (["python:3.12"], "unknown  image: python:3.12 was not looked at"),
        ],
        ids=" ".join,
    )
    def test_looks_at_what_options_say(self, examined: Said, words: list[str], expected: str) -> None:
        usual = ["--cluster", "jobs"] if "--cluster" not in words else []

        code, out, err = examined(*usual, *words)

        assert expected in out, out
        assert err == ""
        assert code == int("FAILED" in out)

    def test_looks_at_what_run_would_find(self, examined: Said, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in (
            ("CLUSTER", "jobs"),
            ("SUBNETS", PRIVATE),
            ("EXECUTION_ROLE", EXECUTION),
            ("LOG_GROUP", "/jobs"),
        ):
            monkeypatch.setenv(f"FARGATE_RUNNER_{name}", value)

        code, out, _ = examined(IMAGE)

        assert code == 0
        assert f"ok       configuration: cluster jobs: from FARGATE_RUNNER_CLUSTER; subnets {PRIVATE}" in out

    def test_what_options_do_not_say_is_found(self, examined: Said, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FARGATE_RUNNER_SUBNETS", PRIVATE)

        code, out, _ = examined(*WELL, IMAGE)

        assert code == 0
        assert f"ok       route: {PRIVATE}: the internet is reached by nat-" in out

    def test_options_come_before_what_is_found(self, examined: Said, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FARGATE_RUNNER_CLUSTER", "nights")
        monkeypatch.setenv("FARGATE_RUNNER_EXECUTION_ROLE", "arn:aws:iam::123456789012:role/nobody")

        _, out, _ = examined(*WELL, *IN_PRIVATE)

        assert "FAILED" not in out

    def test_looks_at_what_code_says(
        self, examined: Said, patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delitem(sys.modules, "app_of_the_doctor", raising=False)
        monkeypatch.setenv("FARGATE_RUNNER_CLUSTER", "not-this")
        Path("app_of_the_doctor.py").write_text(
            "from fargate_runner import DynamoDBJournal, Job, Runner, SecretRef\n"
            "patient = None\n"
            "def make_runner():\n"
            "    journal = DynamoDBJournal('fargate-jobs', session=patient.aws.session())\n"
            "    return Runner(patient.backend(), journal=journal, namespace='night')\n"
            f"nightly = Job(image='{IMAGE}', vcpu=8)\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        import app_of_the_doctor  # type: ignore[import-not-found]

        app_of_the_doctor.patient = patient

        code, out, _ = examined("--from", "app_of_the_doctor:make_runner", "--job", "app_of_the_doctor:nightly")

        assert code == 1
        assert "ok       journal: the table fargate-jobs is there" in out
        assert "and one job takes 8" in out
        assert "ok       cluster: jobs is active" in out
        code, out, _ = examined("--from", "app_of_the_doctor:make_runner", IMAGE)
        assert code == 0
        patient.forbid("fake", "ecs:RunTask")
        code, out, _ = examined("--from", "app_of_the_doctor:make_runner")
        assert ":task-definition/fr-night-doctor:1: no policy allows it" in out

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["--cluster", "*"], "--cluster '*': not the name or ARN of a cluster; write it like 'jobs'"),
            (
                ["--subnet", "nowhere"],
                "--subnet 'nowhere': not an id of this kind; write it like 'subnet-0a1b2c3d4e5f67890'",
            ),
            (["--subnet", PUBLIC, "--security-group", "x"], "--security-group 'x': not an id of this kind"),
            (["--security-group", "sg-0123456789abcdef0"], "--security-group: of which subnets? Say --subnet ID too"),
            (["--public-ip"], "--public-ip: of which subnets?"),
            (["--execution-role", "x"], "--execution-role 'x': not the ARN of a role"),
            (["--definition", "*"], "--definition '*': not the name of a task definition"),
            (["--definition", "nights", IMAGE], "--definition says its own; leave one of the two out"),
            (["--vcpu", "1"], "--vcpu: of a job without an image; say IMAGE too, or leave it out"),
            (["-m", "1"], "--memory: of a job without an image"),
            (["--vcpu", "3", IMAGE], "--vcpu 3: "),
            (["--memory", "x", IMAGE], "'x' is not a size of memory"),
            (["--concurrency", "0"], "Invalid value for '--concurrency'"),
            (["--namespace", "a b"], "--namespace 'a b': not a namespace"),
            (["--journal", "*"], "--journal '*': not the name or ARN of a table"),
            (["--events", "a b"], "--events 'a b': neither the URL nor the name of a queue"),
            (["--also", "make-events"], "--events: make-events makes one, and it has no name"),
            (["IMAGE WITH SPACES"], "IMAGE 'IMAGE WITH SPACES'"),
            (["--from", "sys:path"], "--from 'sys:path': it gives a list; name an EcsBackend, or a Runner on one"),
            (["--from", "x:y", "--subnet", PUBLIC], "--subnet: --from 'x:y' says it already; leave one of the two out"),
            (["--from", "x:y", "--spot"], "--spot: --from 'x:y' says it already"),
            (["--from", "x:y", "--events", "q"], "--events: --from 'x:y' says it already"),
            (["--from", "x:y", "--security-group", "sg-1"], "--security-group: --from 'x:y' says it already"),
            (["--from", "x:y", "--log-group-is-there"], "--log-group-is-there: --from 'x:y' says it already"),
            (["--job", "sys:path"], "--job 'sys:path': it gives a list; name a Job"),
            (["--job", "x"], "--job 'x': not a place in Python"),
            (["--job", "x:y", IMAGE], "IMAGE: --job 'x:y' says it already; leave one of the two out"),
            (["--job", "x:y", "-m", "1"], "--memory: --job 'x:y' says it already"),
        ],
        ids=" ".join,
    )
    def test_bad_input_is_told_with_what_to_do(
        self, examined: Said, patient: Patient, words: list[str], expected: str
    ) -> None:
        code, out, err = examined(*words)

        assert (code, out) == (2, "")
        assert expected in err
        assert len(patient.aws.calls) == 0

    def test_what_AWS_says_cannot_move_the_cursor(self, examined: Said, patient: Patient) -> None:
        said = "\x1b[2Jgone\x07"
        patient.aws.faults.add(Fault(match="ecr.*", code="StrangeException", message=said, status=400, times=99))

        _, out, _ = examined(*WELL, *IN_PRIVATE, IMAGE)

        assert "unknown  image: ecr.BatchGetImage: StrangeException: gone" in out
        assert "\x1b" not in out

    def test_is_in_colours_on_a_terminal_only(self) -> None:
        nowhere = {"AWS_REGION": "", "AWS_DEFAULT_REGION": "", "AWS_CONFIG_FILE": "/dev/null", "AWS_PROFILE": ""}
        env = {name: value for name, value in environment(**nowhere).items() if value}
        for words, expected in (([], "\x1b[31mFAILED  \x1b[0m credentials"), (["--no-color"], "FAILED   credentials")):
            with Terminal("doctor", *words, env=env) as terminal:
                code = terminal.finish()

            assert code == 1
            assert expected in terminal.text
            assert "to do: set AWS_REGION" in terminal.text
