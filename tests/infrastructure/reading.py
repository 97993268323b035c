"""Templates as a deployment reads them: what they refer to is put in, and conditions are decided."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import yaml

from tests.infrastructure.iam import ACCOUNT

REGION = "us-east-1"
TERRAFORM = shutil.which("terraform")


@attrs.frozen
class Tag:
    """A short form of CloudFormation, such as ``!Sub``."""

    name: str
    value: Any


class _Loader(yaml.SafeLoader):
    pass


def _tag(loader: Any, suffix: str, node: Any) -> Tag:
    if isinstance(node, yaml.ScalarNode):
        return Tag(suffix, loader.construct_scalar(node))
    return Tag(suffix, loader.construct_sequence(node, deep=True))


_Loader.add_multi_constructor("!", _tag)


class Template:
    """A template with the names that AWS would give."""

    def __init__(self, text: str, **parameters: str) -> None:
        self.body: dict[str, Any] = yaml.load(text, Loader=_Loader)
        self.resources: dict[str, Any] = self.body["Resources"]
        self._parameters = {name: one.get("Default", "") for name, one in self.body["Parameters"].items()} | parameters

    def properties(self, name: str) -> dict[str, Any]:
        resolved: dict[str, Any] = self.resolved(self.resources[name]["Properties"])
        return resolved

    def resolved(self, value: Any) -> Any:
        match value:
            case Tag("Sub", text):
                return re.sub(r"\$\{([\w:.]+)\}", lambda found: self._name(found[1]), text)
            case Tag("GetAtt" | "Ref", name):
                return self._name(name)
            case Tag("If", [condition, yes, no]):
                return self.resolved(yes if self.holds(condition) else no)
            case Tag("Join", [between, Tag("Ref", name)]):
                return between.join([name])
            case dict():
                return {key: self.resolved(part) for key, part in value.items()}
            case list():
                parts = [self.resolved(part) for part in value]
                return [part for part in parts if part != "AWS::NoValue"]
            case _:
                return value

    def holds(self, name: str) -> bool:
        return self._decided(self.body["Conditions"][name])

    def _decided(self, value: Any) -> bool:
        match value:
            case Tag("Not", [inner]):
                return not self._decided(inner)
            case Tag("Or", several):
                return any(map(self._decided, several))
            case Tag("Equals", [one, other]):
                return bool(self.resolved(one) == self.resolved(other))
            case Tag("Condition", name):
                return self.holds(name)
            case _:
                raise AssertionError(value)

    def _name(self, name: str) -> str:
        known = {
            "AWS::AccountId": ACCOUNT,
            "AWS::NoValue": "AWS::NoValue",
            "AWS::Partition": "aws",
            "AWS::Region": REGION,
            "ExecutionRole.Arn": f"arn:aws:iam::{ACCOUNT}:role/execution",
            "TaskRole.Arn": f"arn:aws:iam::{ACCOUNT}:role/task",
        } | self._parameters
        if name in known:
            return known[name]
        resource, _, attribute = name.partition(".")
        assert resource in self.resources
        properties = self.resources[resource]["Properties"]
        arn = f"arn:aws:{{}}:{REGION}:{ACCOUNT}:{{}}"
        match self.resources[resource]["Type"], attribute:
            case "AWS::ECS::Cluster", "Arn":
                return arn.format("ecs", f"cluster/{properties['ClusterName']}")
            case "AWS::SQS::Queue", "Arn":
                return arn.format("sqs", properties["QueueName"])
            case "AWS::Events::Rule", "Arn":
                return arn.format("events", f"rule/{properties['Name']}")
            case _:
                return name


_REFERENCES: Mapping[str, str] = {
    "local.region": REGION,
    "local.account": ACCOUNT,
    "local.partition": "aws",
    "aws_iam_role.execution.arn": f"arn:aws:iam::{ACCOUNT}:role/execution",
    "aws_iam_role.task.arn": f"arn:aws:iam::{ACCOUNT}:role/task",
}


def evaluated(configuration: str, resource: str, attribute: str, directory: Path) -> Any:
    """Return what Terraform makes of an attribute that is written with ``jsonencode``; needs its program."""
    assert TERRAFORM is not None
    block = configuration[configuration.index(f"resource {resource} {{") :]
    expression = re.search(rf"^  {attribute} = (jsonencode\(\{{.*?^  \}}\))$", block, re.MULTILINE | re.DOTALL)
    assert expression is not None
    text = expression[1]
    for name, value in _REFERENCES.items():
        text = text.replace(f"${{{name}}}", value).replace(name, f'"{value}"')
    (directory / "main.tf").write_text(f"locals {{\n  asked = {text}\n}}\n")
    done = subprocess.run(
        [TERRAFORM, "console"],
        cwd=directory,
        input="local.asked\n",
        env={"TF_CLI_CONFIG_FILE": "", "CHECKPOINT_DISABLE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(json.loads(done.stdout))
