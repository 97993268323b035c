"""
IAM for tests: what each recorded call needs, and whether a policy allows it.

An operation needs the action of its name, with three exceptions that AWS documents: a batch of SQS needs the single
action, tags and roles in a request need actions of their own, and who asks for its own identity needs none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

ACCOUNT = "123456789012"
_BATCHES = {"sqs:DeleteMessageBatch": "sqs:DeleteMessage"}
_FREE = {"sts:GetCallerIdentity"}


@attrs.frozen
class Need:
    """An action on a resource, with what conditions look at."""

    action: str
    resource: str
    context: Mapping[str, str] = attrs.field(factory=dict, hash=False)


def needs(called: str, request: Mapping[str, Any], *, region: str = "us-east-1") -> list[Need]:
    """Return what a call such as ``ecs.RunTask`` needs."""
    action = called.replace(".", ":")
    if action in _FREE:
        return []
    service = action.partition(":")[0]
    action = _BATCHES.get(action, action)
    found = [Need(action, resource, context) for resource, context in _WHERE[service](action, request, region)]
    return [*found, *_tags(action, request, region), *_passed(request)]


def allowed(policy: Mapping[str, Any], need: Need) -> bool:
    """Return whether a statement of *policy* allows what is needed."""
    return any(_allows(statement, need) for statement in policy["Statement"])


def actions(policy: Mapping[str, Any]) -> set[str]:
    return {action for statement in policy["Statement"] for action in statement["Action"]}


def _allows(statement: Mapping[str, Any], need: Need) -> bool:
    return (
        statement["Effect"] == "Allow"
        and need.action in statement["Action"]
        and any(_matches(pattern, need.resource) for pattern in statement["Resource"])
        and all(_holds(kind, wanted, need) for kind, wanted in statement.get("Condition", {}).items())
    )


def _holds(kind: str, wanted: Mapping[str, Any], need: Need) -> bool:
    assert kind in {"ArnEquals", "StringEquals", "ForAllValues:StringEquals"}
    for key, values in wanted.items():
        there = need.context.get(key)
        if there is None and kind.startswith("ForAllValues"):
            continue
        choices = [values] if isinstance(values, str) else values
        if there is None or not any(_matches(choice, there) for choice in choices):
            return False
    return True


def _matches(pattern: str, text: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text) is not None


def _arn(service: str, region: str, name: str) -> str:
    return f"arn:aws:{service}:{region}:{ACCOUNT}:{name}"


_Where = Iterable[tuple[str, Mapping[str, str]]]


def _ecs(action: str, request: Mapping[str, Any], region: str) -> _Where:
    cluster = str(request.get("cluster", "default")).rpartition("/")[2]
    context = {"ecs:cluster": _arn("ecs", region, f"cluster/{cluster}")}
    match action.partition(":")[2]:
        case "RunTask":
            yield request["taskDefinition"], context  # pinned
        case "StopTask":
            yield request["task"], context
        case "DescribeTasks":
            yield from ((task, context) for task in request["tasks"])
        case "DescribeClusters":
            names = [name.rpartition("/")[2] for name in request["clusters"]]
            yield from ((_arn("ecs", region, f"cluster/{name}"), {}) for name in names)
        case "RegisterTaskDefinition":
            yield _arn("ecs", region, f"task-definition/{request['family']}:1"), {}
        case _:
            yield "*", context


def _logs(action: str, request: Mapping[str, Any], region: str) -> _Where:
    name = request.get("logGroupName")
    if action == "logs:DescribeLogGroups":
        yield "*", {}
    else:
        yield _arn("logs", region, f"log-group:{name}:log-stream:{request.get('logStreamName', '')}"), {}


def _sqs(action: str, request: Mapping[str, Any], region: str) -> _Where:
    yield _arn("sqs", region, request.get("QueueName") or request["QueueUrl"].rpartition("/")[2]), {}


def _events(action: str, request: Mapping[str, Any], region: str) -> _Where:
    targets = request.get("Targets") or [{"Arn": ""}]
    rule = request.get("Name") or request["Rule"]
    yield from ((_arn("events", region, f"rule/{rule}"), {"events:TargetArn": target["Arn"]}) for target in targets)


def _dynamodb(action: str, request: Mapping[str, Any], region: str) -> _Where:
    table = request.get("TableName") or next(iter(request["RequestItems"]))
    index = f"/index/{request['IndexName']}" if "IndexName" in request else ""
    keys = request.get("Key") or request.get("Item") or {}
    if action == "dynamodb:BatchGetItem":
        keys = request["RequestItems"][table]["Keys"][0]
    namespace = keys.get("namespace") or request.get("ExpressionAttributeValues", {}).get(":namespace")
    context = {"dynamodb:LeadingKeys": namespace["S"]} if namespace else {}
    yield _arn("dynamodb", region, f"table/{table}{index}"), context


def _ssm(action: str, request: Mapping[str, Any], region: str) -> _Where:
    yield _arn("ssm", region, f"parameter{request['Name']}"), {}


def _s3(action: str, request: Mapping[str, Any], region: str) -> _Where:
    yield f"arn:aws:s3:::{request['Bucket']}/{request['Key']}", {}


def _ec2(action: str, request: Mapping[str, Any], region: str) -> _Where:
    yield "*", {}


_WHERE = {
    "dynamodb": _dynamodb,
    "ec2": _ec2,
    "ecs": _ecs,
    "events": _events,
    "logs": _logs,
    "s3": _s3,
    "sqs": _sqs,
    "ssm": _ssm,
}


def _tags(action: str, request: Mapping[str, Any], region: str) -> Iterator[Need]:
    if action in {"ecs:RunTask", "ecs:RegisterTaskDefinition"} and request.get("tags"):
        created = action.partition(":")[2]
        cluster = str(request.get("cluster")).rpartition("/")[2]
        name = f"task/{cluster}/0123456789abcdef0123456789abcdef"
        if created == "RegisterTaskDefinition":
            name = f"task-definition/{request['family']}:1"
        yield Need("ecs:TagResource", _arn("ecs", region, name), {"ecs:CreateAction": created})


def _passed(request: Mapping[str, Any]) -> Iterator[Need]:
    for part in (request, request.get("overrides", {})):
        for field in ("executionRoleArn", "taskRoleArn"):
            if part.get(field):
                yield _pass(part[field], "ecs-tasks.amazonaws.com")
    for volume in request.get("volumeConfigurations", ()):
        yield _pass(volume["managedEBSVolume"]["roleArn"], "ecs.amazonaws.com")


def _pass(role: str, service: str) -> Need:
    arn = role if role.startswith("arn:") else f"arn:aws:iam::{ACCOUNT}:role/{role}"
    return Need("iam:PassRole", arn, {"iam:PassedToService": service})
