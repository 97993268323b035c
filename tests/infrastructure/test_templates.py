"""What is written to be deployed: checked by the tools of each format, and against what the library makes by itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from fargate_runner import DynamoDBJournal, EcsBackend, InvalidJob, Job, Runner
from fargate_runner.infrastructure import Access, Format, Stack, caller_policy, template
from fargate_runner.infrastructure._policy import execution_policy
from fargate_runner.testing.aws import FakeAws
from fargate_runner.testing.clock import VirtualClock
from tests.contract.ecs_words import script
from tests.infrastructure.iam import ACCOUNT, actions, allowed, needs
from tests.infrastructure.reading import REGION, TERRAFORM, Template, evaluated
from tests.infrastructure.test_policy import NAMESPACE, everything, made_backend
from tests.journal.table import dynamodb

pytestmark = pytest.mark.sweep

PLAIN = Stack()
WHOLE = Stack(
    name="reports-of-the-whole-day",
    namespace="night",
    retention_days=365,
    tags=True,
    spill_to="s3://variables/jobs",
    secret_prefix="/jobs/secrets",
    notify="arn:aws:sqs:us-east-1:123456789012:reports-done",
    task_tokens=True,
)
STACKS = {"plain": PLAIN, "whole": WHOLE}
FORMATS: tuple[Format, ...] = ("cloudformation", "sam", "terraform")
SUBNET = "subnet-0aaaaaaaa00000001"
EXECUTION, TASK = (f"arn:aws:iam::{ACCOUNT}:role/{name}" for name in ("execution", "task"))

SUPERVISORS = ("Supervisor", "SupervisorTrigger", "EndsQueue", "EndsQueuePolicy", "EndsRule")
CFN_LINT = "from cfnlint.runner import main; main()"

every_stack = pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
needs_terraform = pytest.mark.skipif(TERRAFORM is None, reason="there is no terraform here")


def wanted(stack: Stack) -> Access:
    return stack.access(REGION, ACCOUNT, roles=[EXECUTION, TASK])


@pytest.mark.parametrize("form", FORMATS)
class TestEveryFormat:
    @every_stack
    def test_is_always_the_same_text(self, form: Format, stack: Stack) -> None:
        text = template(stack, form)

        assert text == template(attrs.evolve(stack), form)
        assert text.isascii()
        assert not any(line != line.rstrip() for line in text.split("\n"))

    def test_says_how_it_was_written(self, form: Format) -> None:
        text = template(WHOLE, form)

        options = "--namespace night --retention-days 365 --spill-to s3://variables/jobs --secret-prefix /jobs/secrets"
        options = f"{options} --notify {WHOLE.notify} --tags --task-tokens"
        assert f"fargate-runner init --format {form} --name {WHOLE.name} {options}\n" in text

    def test_has_nothing_left_to_put_in(self, form: Format) -> None:
        assert "@" not in template(WHOLE, form)


@every_stack
@pytest.mark.parametrize("form", ["cloudformation", "sam"])
class TestCloudFormation:
    def test_cfn_lint_has_nothing_to_say(self, form: Format, stack: Stack, tmp_path: Path) -> None:
        path = tmp_path / "template.yaml"
        path.write_text(template(stack, form))

        regions = ["us-east-1", "eu-central-1", "ap-southeast-2"]
        said = subprocess.run(
            [sys.executable, "-c", CFN_LINT, "--include-checks", "I", "--regions", *regions, "--", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )

        assert (said.returncode, said.stdout) == (0, ""), said.stdout + said.stderr

    def test_its_policies_are_those_of_the_command(self, form: Format, stack: Stack) -> None:
        made = Template(template(stack, form))

        assert made.properties("CallerPolicy")["PolicyDocument"] == caller_policy(wanted(stack))
        (inline,) = made.properties("ExecutionRole")["Policies"]
        assert inline["PolicyDocument"] == execution_policy(wanted(stack))

    def test_its_functions_may_tell_whom_they_are_to_tell(self, form: Format, stack: Stack) -> None:
        made = Template(template(stack, form))
        (inline,) = made.properties("FunctionRole")["Policies"]

        may = {
            (action, resource)
            for statement in inline["PolicyDocument"]["Statement"]
            for action in statement["Action"]
            for resource in statement["Resource"]
        }
        telling = {("sqs:GetQueueUrl", stack.notify), ("sqs:SendMessage", stack.notify)} if stack.notify else set()
        answers = {("states:SendTaskFailure", "*"), ("states:SendTaskSuccess", "*")} if stack.task_tokens else set()
        queues = (f"{stack.queue}-dead", stack.ends)
        own = {(action, of) for action, of in may if action.startswith("logs:") or of.endswith(queues)}
        assert may - own == telling | answers

    async def test_its_queue_and_rule_are_those_of_make_events(
        self, form: Format, stack: Stack, aws: FakeAws, clock: VirtualClock
    ) -> None:
        made = Template(template(stack, form))
        backend = EcsBackend(stack.name, events=stack.queue, session=aws.session(), region=REGION)

        await backend.make_events(namespace=stack.namespace)

        asked = {call.called: call.request for call in aws.calls}
        queue, rule = made.properties("EventsQueue"), made.properties("EventsRule")
        attributes = asked["sqs.CreateQueue"]["Attributes"]
        assert attributes == {name: str(queue[name]) for name in attributes}
        allowed = json.loads(asked["sqs.SetQueueAttributes"]["Attributes"]["Policy"])
        assert made.properties("EventsQueuePolicy")["PolicyDocument"] == allowed
        assert rule["EventPattern"] == json.loads(asked["events.PutRule"]["EventPattern"])
        assert (rule["Name"], rule["State"]) == (asked["events.PutRule"]["Name"], asked["events.PutRule"]["State"])
        (target,) = rule["Targets"]
        assert asked["events.PutTargets"]["Targets"][0].items() <= target.items()

    async def test_its_table_is_a_journal(self, form: Format, stack: Stack, aws: FakeAws, clock: VirtualClock) -> None:
        table = Template(template(stack, form)).properties("Journal")
        forgets = table.pop("TimeToLiveSpecification")

        with dynamodb() as session:
            session.dynamodb.create_table(**table)
            session.dynamodb.update_time_to_live(TableName=stack.table, TimeToLiveSpecification=forgets)
            journal = DynamoDBJournal(stack.table, session=session)
            async with Runner(made_backend(aws, clock), journal=journal) as runner:
                result = await runner.run(Job(image="busybox:1", command=["exits", "0"], key="k"))
            session.requests.clear()
            await journal.create_table()  # finds nothing to do

        assert result.succeeded
        assert session.count("update_time_to_live") == 0

    def test_functions_are_there_for_handlers(self, form: Format, stack: Stack) -> None:
        none = Template(template(stack, form), Handler="")
        both = Template(template(stack, form), Handler="app.handler", SupervisorHandler="app.on_event")

        conditions = {name: one.get("Condition") for name, one in none.resources.items()}
        assert conditions["Submit"] == "HasHandler"
        assert {conditions[name] for name in SUPERVISORS} == {"HasSupervisor"}
        assert not any(map(none.holds, none.body["Conditions"]))
        assert all(map(both.holds, both.body["Conditions"]))

    def test_a_supervisor_gets_ends_through_a_queue_of_its_own(self, form: Format, stack: Stack) -> None:
        made = Template(template(stack, form), SupervisorHandler="app.on_event")
        queue, rule = made.properties("EndsQueue"), made.properties("EndsRule")
        trigger, function = made.properties("SupervisorTrigger"), made.properties("Supervisor")
        arn = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{queue['QueueName']}"

        expected = made.properties("EventsRule")["EventPattern"]
        assert rule["EventPattern"] == expected | {"detail": expected["detail"] | {"lastStatus": ["STOPPED"]}}
        assert [target["Arn"] for target in rule["Targets"]] == [trigger["EventSourceArn"]] == [arn]
        (statement,) = made.properties("EndsQueuePolicy")["PolicyDocument"]["Statement"]
        assert statement["Resource"] == arn
        assert statement["Condition"]["ArnEquals"]["aws:SourceArn"].endswith(f":rule/{rule['Name']}")
        assert trigger["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
        assert queue["VisibilityTimeout"] == 6 * function["Timeout"]
        (inline,) = made.properties("FunctionRole")["Policies"]
        takes = next(one for one in inline["PolicyDocument"]["Statement"] if one["Sid"] == "TakeEnds")
        assert takes["Resource"] == [arn]

    async def test_a_function_may_do_what_it_does_where_it_is_told_to_run(
        self, form: Format, stack: Stack, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = Template(template(stack, form), PublicIp="true")
        aws = FakeAws(clock=clock, script=script, clusters=(stack.name,), log_groups=(stack.log_group,))
        for name, value in made.properties("Submit")["Environment"]["Variables"].items():
            known = {"FARGATE_RUNNER_CLUSTER": stack.name, "FARGATE_RUNNER_LOG_GROUP": stack.log_group}
            known |= {
                "FARGATE_RUNNER_SUBNETS": SUBNET,
                "FARGATE_RUNNER_SECURITY_GROUPS": "",
                "JOURNAL_TABLE": "journal",
            }
            monkeypatch.setenv(name, str(known.get(name, value)))

        backend = EcsBackend(session=aws.session(), region=REGION, utcnow=clock.utcnow)
        await everything(backend, namespace=stack.namespace or NAMESPACE)

        policy = made.properties("CallerPolicy")["PolicyDocument"]
        asked = [need for call in aws.calls for need in needs(call.called, call.request)]
        assert [need for need in asked if not allowed(policy, need)] == []
        spare = actions(policy) - {need.action for need in asked}
        # The queue is for a process that waits; this run had no journal, and no secrets or long environments.
        assert {action.partition(":")[0] for action in spare} <= {"dynamodb", "s3", "sqs", "ssm"}
        assert backend.options.network is not None
        assert backend.options.network.public_ip


class TestLimits:
    def test_the_longest_policy_fits_into_a_managed_one(self) -> None:
        access = attrs.evolve(
            wanted(WHOLE), region="ap-southeast-2", roles=[f"arn:aws:iam::{ACCOUNT}:role/{'r' * 64}"] * 2
        )

        # IAM counts all but white space, and takes 6,144 of them.
        assert len("".join(json.dumps(caller_policy(access)).split())) < 6144

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("name", "Reports"),
            ("name", "x"),
            ("name", "a" * 25),
            ("name", "a--b"),
            ("name", "a-"),
            ("namespace", "*"),
            ("log_group.retention_days", 31),
            ("spill_to", "bucket"),
            ("secret_prefix", "jobs"),
            ("notify", "reports-done"),
            ("notify", "arn:aws:states:us-east-1:123456789012:stateMachine:reports"),
            ("notify", "arn:aws:sqs:us-east-1:123456789012:*"),
        ],
    )
    def test_what_cannot_be_right_is_refused(self, field: str, value: Any) -> None:
        with pytest.raises(InvalidJob) as caught:
            Stack(**{field.rpartition(".")[2]: value})

        assert caught.value.field == field


@every_stack
class TestTerraform:
    @needs_terraform
    def test_fmt_leaves_it_as_it_is(self, stack: Stack, tmp_path: Path) -> None:
        assert TERRAFORM is not None
        (tmp_path / "main.tf").write_text(template(stack, "terraform"))

        told = subprocess.run(
            [TERRAFORM, "fmt", "-check", "-diff"],
            cwd=tmp_path,
            env={"TF_CLI_CONFIG_FILE": "", "CHECKPOINT_DISABLE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

        assert (told.returncode, told.stdout) == (0, "")

    @needs_terraform
    def test_its_policies_are_those_of_the_command(self, stack: Stack, tmp_path: Path) -> None:
        text = template(stack, "terraform")

        assert evaluated(text, '"aws_iam_policy" "caller"', "policy", tmp_path) == caller_policy(wanted(stack))
        execution = evaluated(text, '"aws_iam_role_policy" "execution"', "policy", tmp_path)
        assert execution == execution_policy(wanted(stack))

    @pytest.mark.parametrize(
        ("notify", "actions"),
        [
            ("arn:aws:sqs:us-east-1:123456789012:done.fifo", ["sqs:GetQueueUrl", "sqs:SendMessage"]),
            ("arn:aws:sns:us-east-1:123456789012:done", ["sns:Publish"]),
            ("arn:aws-cn:events:cn-north-1:123456789012:event-bus/default", ["events:PutEvents"]),
        ],
    )
    def test_its_functions_may_tell_whom_they_are_to_tell(self, stack: Stack, notify: str, actions: list[str]) -> None:
        text = template(attrs.evolve(stack, notify=notify), "terraform")

        _, _, told = text.partition("TellOfEnds")
        statement, _, _ = told.partition("}")
        assert notify in statement
        assert re.findall(r"\w+:[A-Z]\w+", statement) == actions

    def test_a_parser_reads_it(self, stack: Stack) -> None:
        hcl2 = pytest.importorskip("hcl2", reason="python-hcl2 is in the group test")

        read = hcl2.loads(template(stack, "terraform"))

        found = {kind.strip('"') for block in read["resource"] for kind in block}
        assert found >= {
            "aws_cloudwatch_event_rule",
            "aws_cloudwatch_log_group",
            "aws_dynamodb_table",
            "aws_ecs_cluster",
            "aws_ecs_cluster_capacity_providers",
            "aws_iam_policy",
            "aws_iam_role",
            "aws_lambda_event_source_mapping",
            "aws_lambda_function",
            "aws_security_group",
            "aws_sqs_queue",
            "aws_sqs_queue_policy",
        }

    def test_it_names_what_the_others_name(self, stack: Stack) -> None:
        text = template(stack, "terraform")

        for name in (stack.name, stack.queue, f"{stack.queue}-dead", stack.ends, stack.table, stack.log_group):
            assert f'"{name}"' in text
