"""
What stands in the account, told once for all formats: names, policies, the queue's, the rule's and the table's designs.

A template is text, as a person reads it, with places where a value is put: ``@name@`` inside a line for a word, and
``@caller_policy@`` alone on a line for a structure, which each format writes in its own way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

import attrs

from fargate_runner._dynamodb import EXPIRES, table_design
from fargate_runner._errors import InvalidJob
from fargate_runner.backends.ecs._config import LogGroup
from fargate_runner.backends.ecs._events import ABOUT_RULE, QUEUE_ATTRIBUTES, queue_policy, rule_pattern
from fargate_runner.infrastructure._policy import Access, caller_policy, execution_policy

__all__ = ["Format", "Stack", "template"]

Format = Literal["cloudformation", "sam", "terraform"]
Write: TypeAlias = Callable[[Any], list[str]]
"""Writes a structure as lines of a format."""

_KEPT_DAYS: Final = 30
_NAME: Final = re.compile(r"[a-z][a-z0-9-]{1,22}[a-z0-9]\Z", re.ASCII)
_TOLD: Final = re.compile(
    r"arn:aws[a-z-]*:(?P<service>sqs|sns|events):[a-z0-9-]+:\d{12}:(event-bus/)?[A-Za-z0-9/._-]{1,256}\Z", re.ASCII
)
_TELLING: Final = {
    "sqs": ["sqs:GetQueueUrl", "sqs:SendMessage"],
    "sns": ["sns:Publish"],
    "events": ["events:PutEvents"],
}
"""What `on_task_event` calls to tell of an end, by the service of whom it tells."""
_PLACE: Final = re.compile(r"@(?P<name>[a-z_]+)@")
_ALONE: Final = re.compile(r"(?P<indent> *)@(?P<name>[a-z_]+)@\Z")


@attrs.frozen(kw_only=True)
class Stack:
    """
    What is to stand in an account for jobs to run. All names begin with *name*.

    *namespace* None lets callers use any. ``spill_to`` is a bucket that is there already, ``notify`` the ARN of a
    queue, a topic or an event bus that is: the functions may tell it of the ends of jobs.
    """

    name: str = "jobs"
    namespace: str | None = None
    retention_days: int = _KEPT_DAYS
    """How long lines are kept."""
    tags: bool = False
    """Whether callers may tag tasks."""
    spill_to: str = ""
    secret_prefix: str = ""
    notify: str = ""
    task_tokens: bool = False
    """Whether the functions may answer states of Step Functions that wait for a task token."""

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.match(self.name) or "--" in self.name:
            fix = "use 3 to 24 small letters, digits and single -, a letter first, such as 'jobs'"
            raise InvalidJob("name", self.name, "not a name for all that is made", fix)
        if self.notify and (not isinstance(self.notify, str) or not _TOLD.match(self.notify)):
            fix = "write 'arn:aws:sqs:eu-west-1:111122223333:jobs-done'"
            raise InvalidJob("notify", self.notify, "not the ARN of an SQS queue, an SNS topic or an event bus", fix)
        self.access("us-east-1", "123456789012")

    @property
    def log_group(self) -> str:
        return f"/fargate-runner/{self.name}"

    @property
    def queue(self) -> str:
        """Return the name of the queue, which is the rule's as well."""
        return f"{self.name}-events"

    @property
    def ends(self) -> str:
        """Return the name of the supervisor's queue, which is its rule's as well."""
        return f"{self.name}-ends"

    @property
    def table(self) -> str:
        return f"{self.name}-journal"

    def access(self, region: str, account: str, **more: Any) -> Access:
        """
        Return what callers use. *more* are fields of `Access` that a template knows better.

        :raises InvalidJob: a part is not what it should be
        """
        LogGroup(name=self.log_group, retention_days=self.retention_days)
        return Access(
            region=region,
            account=account,
            cluster=self.name,
            log_group=LogGroup(name=self.log_group),
            namespace=self.namespace,
            tags=self.tags,
            events=self.queue,
            journal=self.table,
            spill_to=self.spill_to,
            secret_prefix=self.secret_prefix,
            **more,
        )

    def words(self) -> dict[str, str]:
        """Return what stands inside lines."""
        return {
            "name": self.name,
            "log_group": self.log_group,
            "retention_days": str(self.retention_days),
            "queue": self.queue,
            "ends": self.ends,
            "table": self.table,
            "expires": EXPIRES,
            "about_rule": ABOUT_RULE,
            "retention": str(QUEUE_ATTRIBUTES["MessageRetentionPeriod"]),
            "hidden": str(QUEUE_ATTRIBUTES["VisibilityTimeout"]),
            "long_poll": str(QUEUE_ATTRIBUTES["ReceiveMessageWaitTimeSeconds"]),
            "options": "".join(
                f" {option} {value}"
                for option, value in (
                    ("--namespace", self.namespace),
                    ("--retention-days", "" if self.retention_days == _KEPT_DAYS else self.retention_days),
                    ("--spill-to", self.spill_to),
                    ("--secret-prefix", self.secret_prefix),
                    ("--notify", self.notify),
                )
                if value
            )
            + (" --tags" if self.tags else "")
            + (" --task-tokens" if self.task_tokens else ""),
        }


def structures(
    stack: Stack,
    access: Access,
    *,
    cluster: str,
    queue: str,
    dead: str,
    rule: str,
    ends_queue: str,
    ends_rule: str,
) -> dict[str, Any]:
    """Return what stands on lines of its own; the words are how a format says the ARNs of what it makes."""
    pattern = rule_pattern(cluster, stack.namespace)
    ends = pattern | {"detail": pattern["detail"] | {"lastStatus": ["STOPPED"]}}
    return {
        "caller_policy": caller_policy(access),
        "execution_policy": execution_policy(access),
        "tasks_trust": _tasks_trust(access),
        "functions_policy": _functions_policy(stack, access, dead),
        "functions_trust": _trust("FunctionsOnly", "lambda.amazonaws.com"),
        "pattern": pattern,
        "ends_pattern": ends,
        "ends_policy": queue_policy(ends_queue, ends_rule),
        "queue_policy": queue_policy(queue, rule),
        "dead_policy": queue_policy(dead, rule),
        "table_design": table_design(),
    }


def _tasks_trust(access: Access) -> dict[str, Any]:
    """Return who may take the roles of tasks: ECS, for tasks of this account and region."""
    only = {
        "StringEquals": {"aws:SourceAccount": access.account},
        "ArnLike": {"aws:SourceArn": f"arn:{access.partition}:ecs:{access.region}:{access.account}:*"},
    }
    return _trust("TasksOnly", "ecs-tasks.amazonaws.com", Condition=only)


def _trust(sid: str, service: str, **more: Any) -> dict[str, Any]:
    who = {"Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    return {"Version": "2012-10-17", "Statement": [{"Sid": sid, "Effect": "Allow", **who, **more}]}


def _functions_policy(stack: Stack, access: Access, dead: str) -> dict[str, Any]:
    """Return what a function needs to be one, beside what callers need."""
    lines = f"arn:{access.partition}:logs:{access.region}:{access.account}:log-group:/aws/lambda/{stack.name}-"
    statements: list[dict[str, Any]] = [
        {
            "Sid": "WriteOwnLines",
            "Effect": "Allow",
            "Action": ["logs:CreateLogStream", "logs:PutLogEvents"],
            "Resource": [f"{lines}submit:*", f"{lines}supervisor:*"],
        },
        {"Sid": "KeepWhatFailed", "Effect": "Allow", "Action": ["sqs:SendMessage"], "Resource": [dead]},
        {
            "Sid": "TakeEnds",
            "Effect": "Allow",
            "Action": [
                *("sqs:ChangeMessageVisibility", "sqs:DeleteMessage", "sqs:GetQueueAttributes"),
                *("sqs:GetQueueUrl", "sqs:ReceiveMessage"),
            ],
            "Resource": [f"arn:{access.partition}:sqs:{access.region}:{access.account}:{stack.ends}"],
        },
    ]
    if told := _TOLD.match(stack.notify):
        telling = {"Action": _TELLING[told["service"]], "Resource": [stack.notify]}
        statements.append({"Sid": "TellOfEnds", "Effect": "Allow", **telling})
    if stack.task_tokens:
        # They have no resource-level permissions (Service Authorization Reference): the token says which state it is.
        answers = ["states:SendTaskFailure", "states:SendTaskSuccess"]
        statements.append({"Sid": "AnswerStates", "Effect": "Allow", "Action": answers, "Resource": ["*"]})
    return {"Version": "2012-10-17", "Statement": statements}


def filled(text: str, words: Mapping[str, str], parts: Mapping[str, Any], write: Write) -> str:
    """Return a template with everything put where it belongs."""
    lines: list[str] = []
    for line in text.strip("\n").split("\n"):
        alone = _ALONE.match(line)
        if alone is not None and alone["name"] in parts:
            lines += [f"{alone['indent']}{part}".rstrip() for part in write(parts[alone["name"]])]
        else:
            lines.append(_PLACE.sub(lambda place: words[place["name"]], line))
    return "\n".join(lines) + "\n"


def template(stack: Stack, form: Format) -> str:
    """Return *stack* as text to deploy, always the same: a template of CloudFormation or SAM in YAML, or Terraform."""
    from fargate_runner.infrastructure import _cloudformation, _terraform

    if form == "terraform":
        return _terraform.terraform(stack)
    return _cloudformation.cloudformation(stack, sam=form == "sam")


ABOUT_SUBMIT: Final = (
    "Starts jobs. Give it a trigger of yours: a queue, a schedule, an API.",
    "The timeout is enough to start jobs; to wait for their ends, it may be up to 900.",
)
ABOUT_SUPERVISOR: Final = "Sees jobs to their ends, by the queue above. The last lines of a job take some 15 seconds."
FILE_NAMES: Final[Mapping[Format, str]] = {
    "cloudformation": "template.yaml",
    "sam": "template.yaml",
    "terraform": "main.tf",
}
FORMATS: Final[Sequence[Format]] = tuple(FILE_NAMES)
