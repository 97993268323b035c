"""A stack as Terraform, in the form that ``terraform fmt`` leaves as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from fargate_runner.infrastructure._stack import ABOUT_SUBMIT, ABOUT_SUPERVISOR, Stack, filled, structures

__all__ = ["hcl", "terraform"]


def terraform(stack: Stack) -> str:
    """Return the configuration, one file."""
    access = stack.access(
        "${local.region}",
        "${local.account}",
        partition="${local.partition}",
        roles=["${aws_iam_role.execution.arn}", "${aws_iam_role.task.arn}"],
    )
    parts = structures(
        stack,
        access,
        cluster="${aws_ecs_cluster.jobs.arn}",
        queue="${aws_sqs_queue.events.arn}",
        dead="${aws_sqs_queue.dead.arn}",
        rule="${aws_cloudwatch_event_rule.events.arn}",
        ends_queue="${aws_sqs_queue.ends[0].arn}",
        ends_rule="${aws_cloudwatch_event_rule.ends[0].arn}",
    )
    parts["table_design"] = _table(parts["table_design"])
    text = "\n".join(section.removeprefix("\n").rstrip("\n") for section in (_MAIN, _FUNCTIONS, _OUTPUTS))
    return filled(text, stack.words(), parts, lambda part: part if isinstance(part, list) else hcl(part))


def _table(design: Mapping[str, Any]) -> list[str]:
    """Return what CreateTable is told, as the provider wants it said."""
    keys = {key["KeyType"]: key["AttributeName"] for key in design["KeySchema"]}
    lines = [
        f"billing_mode = {_text(design['BillingMode'])}",
        f"hash_key     = {_text(keys['HASH'])}",
        f"range_key    = {_text(keys['RANGE'])}",
    ]
    for attribute in design["AttributeDefinitions"]:
        name, kind = _text(attribute["AttributeName"]), _text(attribute["AttributeType"])
        lines += ["", "attribute {", f"  name = {name}", f"  type = {kind}", "}"]
    for index in design["LocalSecondaryIndexes"]:
        range_key = next(key["AttributeName"] for key in index["KeySchema"] if key["KeyType"] == "RANGE")
        projection = index["Projection"]["ProjectionType"]
        lines += [
            "",
            "local_secondary_index {",
            f"  name            = {_text(index['IndexName'])}",
            f"  range_key       = {_text(range_key)}",
            f"  projection_type = {_text(projection)}",
            "}",
        ]
    return lines


# ---- HCL -----------------------------------------------------------------------------------------------------------


_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")
_WHOLE: Final = re.compile(r"\$\{(?P<expression>[^{}]+)\}\Z")


def hcl(value: Mapping[str, Any]) -> list[str]:
    """Return the items of a mapping of mappings, lists and texts; ``${…}`` is what Terraform puts in."""
    lines: list[str] = []
    together: list[tuple[str, str]] = []  # items of one line each stand in columns, until one takes several

    def flush() -> None:
        width = max((len(name) for name, _ in together), default=0)
        lines.extend(f"{name:{width}} = {text}" for name, text in together)
        together.clear()

    for key, part in value.items():
        name = key if _NAME.match(key) else _text(key)
        first, *rest = _value(part)
        if not rest:
            together.append((name, first))
        else:
            flush()
            lines += [f"{name} = {first}", *rest]
    flush()
    return lines


def _value(part: Any) -> list[str]:
    if isinstance(part, Mapping):
        return ["{", *(f"  {line}" for line in hcl(part)), "}"]
    if isinstance(part, (list, tuple)):
        items = [_value(item) for item in part]
        if len(items) == 1 and len(items[0]) == 1:
            return [f"[{items[0][0]}]"]
        return ["[", *(f"  {line}" for item in items for line in [*item[:-1], f"{item[-1]},"]), "]"]
    return [_text(part)]


def _text(value: str) -> str:
    if whole := _WHOLE.match(value):
        return whole["expression"]
    return json.dumps(value, ensure_ascii=False)


# ---- the configuration ---------------------------------------------------------------------------------------------


_MAIN: Final = """
# What fargate_runner needs to run jobs, written by
#
#   fargate-runner init --format terraform --name @name@@options@
#
# Apply it:
#
#   terraform init
#   terraform apply -var vpc_id=vpc-... -var 'subnet_ids=["subnet-...", "subnet-..."]'
#
# Once your code is a zip archive, apply it again with -var code=app.zip -var handler=app.handler.

terraform {
  required_version = ">= 1.5"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 6.0"
    }
  }
}

variable "vpc_id" {
  description = "The network that tasks are plugged into."
  type        = string
}

variable "subnet_ids" {
  description = "Its subnets, one in each zone that may be used."
  type        = list(string)
}

variable "public_ip" {
  description = "Whether tasks get a public address. Without one, the subnets need a NAT gateway or endpoints."
  type        = bool
  default     = false
}

variable "code" {
  description = "The zip archive with your handlers and fargate_runner; needed with a handler."
  type        = string
  default     = ""
}

variable "handler" {
  description = "Your handler that runs jobs, such as app.handler. Empty for no function."
  type        = string
  default     = ""
}

variable "supervisor_handler" {
  description = "Your handler that is told what becomes of tasks, such as app.on_event. Empty for no function."
  type        = string
  default     = ""
}

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_region" "current" {}

locals {
  account   = data.aws_caller_identity.current.account_id
  partition = data.aws_partition.current.partition
  region    = data.aws_region.current.region
}

# ---- where jobs run -------------------------------------------------------------------------------------------------

resource "aws_ecs_cluster" "jobs" {
  name = "@name@"
}

resource "aws_ecs_cluster_capacity_providers" "jobs" {
  cluster_name       = aws_ecs_cluster.jobs.name
  capacity_providers = ["FARGATE", "FARGATE_SPOT"]

  default_capacity_provider_strategy {
    capacity_provider = "FARGATE"
    weight            = 1
  }
}

# Tasks reach out, and nobody reaches them.
resource "aws_security_group" "jobs" {
  name_prefix = "fargate-runner-@name@-"
  description = "Tasks of fargate_runner (@name@)"
  vpc_id      = var.vpc_id

  egress {
    description = "Whatever jobs need"
    protocol    = "-1"
    from_port   = 0
    to_port     = 0
    cidr_blocks = ["0.0.0.0/0"]
  }
}

resource "aws_cloudwatch_log_group" "jobs" {
  name              = "@log_group@"
  retention_in_days = @retention_days@
}

# ---- who may do what ------------------------------------------------------------------------------------------------

# Pulls the image, writes the lines. Add the secrets that jobs name by reference.
resource "aws_iam_role" "execution" {
  name_prefix = "@name@-execution-"

  assume_role_policy = jsonencode({
    @tasks_trust@
  })
}

resource "aws_iam_role_policy" "execution" {
  name = "execution"
  role = aws_iam_role.execution.id

  policy = jsonencode({
    @execution_policy@
  })
}

# What jobs themselves may do: nothing, until you add it.
resource "aws_iam_role" "task" {
  name_prefix = "@name@-task-"

  assume_role_policy = jsonencode({
    @tasks_trust@
  })
}

# Whoever runs jobs needs this one.
resource "aws_iam_policy" "caller" {
  name_prefix = "@name@-caller-"
  description = "To run jobs with fargate_runner (@name@)"

  policy = jsonencode({
    @caller_policy@
  })
}

# ---- what becomes of tasks ------------------------------------------------------------------------------------------

# For one process that waits, EcsBackend(events="@queue@"): as its make_events() makes it.
resource "aws_sqs_queue" "events" {
  name                       = "@queue@"
  message_retention_seconds  = @retention@
  visibility_timeout_seconds = @hidden@
  receive_wait_time_seconds  = @long_poll@
  sqs_managed_sse_enabled    = true

  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.dead.arn
    maxReceiveCount     = 5
  })
}

# What nobody could read, or could not be delivered.
resource "aws_sqs_queue" "dead" {
  name                      = "@queue@-dead"
  message_retention_seconds = 1209600
  sqs_managed_sse_enabled   = true
}

resource "aws_sqs_queue_policy" "events" {
  queue_url = aws_sqs_queue.events.id

  policy = jsonencode({
    @queue_policy@
  })
}

resource "aws_sqs_queue_policy" "dead" {
  queue_url = aws_sqs_queue.dead.id

  policy = jsonencode({
    @dead_policy@
  })
}

resource "aws_cloudwatch_event_rule" "events" {
  name        = "@queue@"
  description = "@about_rule@"
  state       = "ENABLED"

  event_pattern = jsonencode({
    @pattern@
  })
}

resource "aws_cloudwatch_event_target" "queue" {
  rule      = aws_cloudwatch_event_rule.events.name
  target_id = "queue"
  arn       = aws_sqs_queue.events.arn

  dead_letter_config {
    arn = aws_sqs_queue.dead.arn
  }
}

# ---- what survives a crash ------------------------------------------------------------------------------------------

# Not to be destroyed with the rest, unless you take out prevent_destroy.
resource "aws_dynamodb_table" "journal" {
  name = "@table@"

  @table_design@

  ttl {
    attribute_name = "@expires@"
    enabled        = true
  }

  lifecycle {
    prevent_destroy = true
  }
}

# ---- your functions -------------------------------------------------------------------------------------------------

locals {
  # EcsBackend() finds these; the table is for DynamoDBJournal(os.environ["JOURNAL_TABLE"]).
  environment = {
    FARGATE_RUNNER_CLUSTER         = aws_ecs_cluster.jobs.name
    FARGATE_RUNNER_SUBNETS         = join(",", var.subnet_ids)
    FARGATE_RUNNER_SECURITY_GROUPS = aws_security_group.jobs.id
    FARGATE_RUNNER_PUBLIC_IP       = tostring(var.public_ip)
    FARGATE_RUNNER_EXECUTION_ROLE  = aws_iam_role.execution.arn
    FARGATE_RUNNER_TASK_ROLE       = aws_iam_role.task.arn
    FARGATE_RUNNER_LOG_GROUP       = aws_cloudwatch_log_group.jobs.name
    JOURNAL_TABLE                  = aws_dynamodb_table.journal.name
  }
}

resource "aws_iam_role" "function" {
  name_prefix = "@name@-function-"

  assume_role_policy = jsonencode({
    @functions_trust@
  })
}

resource "aws_iam_role_policy" "function" {
  name = "function"
  role = aws_iam_role.function.id

  policy = jsonencode({
    @functions_policy@
  })
}

resource "aws_iam_role_policy_attachment" "function" {
  role       = aws_iam_role.function.name
  policy_arn = aws_iam_policy.caller.arn
}
"""


def _function(name: str, variable: str, about: str, seconds: int) -> str:
    return f"""
resource "aws_cloudwatch_log_group" "{name}" {{
  count = var.{variable} == "" ? 0 : 1

  name              = "/aws/lambda/@name@-{name}"
  retention_in_days = @retention_days@
}}

# {about}
resource "aws_lambda_function" "{name}" {{
  count = var.{variable} == "" ? 0 : 1

  function_name    = "@name@-{name}"
  filename         = var.code
  source_code_hash = filebase64sha256(var.code)
  handler          = var.{variable}
  runtime          = "python3.13"
  memory_size      = 512
  timeout          = {seconds}
  role             = aws_iam_role.function.arn

  dead_letter_config {{
    target_arn = aws_sqs_queue.dead.arn
  }}

  environment {{
    variables = local.environment
  }}

  depends_on = [
    aws_cloudwatch_log_group.{name},
    aws_iam_role_policy.function,
    aws_iam_role_policy_attachment.function,
  ]
}}
"""


_FUNCTIONS: Final = (
    "\n"
    + _function("submit", "handler", "\n# ".join(ABOUT_SUBMIT), 60)
    + _function("supervisor", "supervisor_handler", ABOUT_SUPERVISOR.replace("above", "below"), 120)
    + """
# Ends of tasks, delivered again until it is done with them, ten times at twelve minutes.
resource "aws_sqs_queue" "ends" {
  count = var.supervisor_handler == "" ? 0 : 1

  name                       = "@ends@"
  message_retention_seconds  = 345600
  visibility_timeout_seconds = 720
  sqs_managed_sse_enabled    = true

  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.dead.arn
    maxReceiveCount     = 10
  })
}

resource "aws_sqs_queue_policy" "ends" {
  count = var.supervisor_handler == "" ? 0 : 1

  queue_url = aws_sqs_queue.ends[0].id

  policy = jsonencode({
    @ends_policy@
  })
}

resource "aws_cloudwatch_event_rule" "ends" {
  count = var.supervisor_handler == "" ? 0 : 1

  name        = "@ends@"
  description = "Ends of tasks of fargate_runner, for the queue of the same name"
  state       = "ENABLED"

  event_pattern = jsonencode({
    @ends_pattern@
  })
}

resource "aws_cloudwatch_event_target" "ends" {
  count = var.supervisor_handler == "" ? 0 : 1

  rule      = aws_cloudwatch_event_rule.ends[0].name
  target_id = "queue"
  arn       = aws_sqs_queue.ends[0].arn
}

resource "aws_lambda_event_source_mapping" "supervisor" {
  count = var.supervisor_handler == "" ? 0 : 1

  event_source_arn        = aws_sqs_queue.ends[0].arn
  function_name           = aws_lambda_function.supervisor[0].arn
  batch_size              = 10
  function_response_types = ["ReportBatchItemFailures"]
}
"""
)

_OUTPUTS: Final = """

# ---- what to say to EcsBackend elsewhere ----------------------------------------------------------------------------

output "environment" {
  description = "The variables that EcsBackend() looks for, and the journal's table."
  value       = local.environment
}

output "events_queue" {
  description = "For EcsBackend(events=...), in one process."
  value       = aws_sqs_queue.events.url
}

output "caller_policy" {
  description = "For the roles of whoever runs jobs."
  value       = aws_iam_policy.caller.arn
}
"""
