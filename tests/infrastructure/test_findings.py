"""What AWS may answer and the account of `patient` does not; and the names of images."""

from __future__ import annotations

from typing import Any

import pytest

from fargate_runner import Network
from fargate_runner.infrastructure import Finding, State
from fargate_runner.infrastructure._findings import (
    EcrImage,
    judge_egress,
    judge_subnets,
    judge_trust,
    principal_of,
    some,
)

ACCOUNT = "123456789012"
NETWORK = Network(subnets=["subnet-0aaaaaaaa00000001"], security_groups=["sg-0123456789abcdef0"])


class TestFinding:
    def test_that_is_red_says_what_to_do(self) -> None:
        with pytest.raises(AssertionError, match="says what to do"):
            Finding(check="cluster", state=State.FAILED, seen="it is gone")


class TestAnswersThatLackSomething:
    def test_subnets_that_are_left_out_are_red(self) -> None:
        (finding,) = judge_subnets(NETWORK, {"Subnets": []}, concurrency=1)

        assert (finding.state, finding.seen) == (State.FAILED, "subnet-0aaaaaaaa00000001 is not there")

    def test_security_groups_that_are_left_out_are_red(self) -> None:
        finding = judge_egress(NETWORK, "vpc-1", {"SecurityGroups": []})

        assert (finding.state, finding.seen) == (State.FAILED, "sg-0123456789abcdef0 is not there")

    def test_a_VPC_without_a_default_group_is_unknown(self) -> None:
        finding = judge_egress(Network(subnets=NETWORK.subnets), "vpc-1", {"SecurityGroups": []})

        assert finding.state is State.UNKNOWN

    @pytest.mark.parametrize("document", [None, "", "not JSON", "%5B%5D", {}])
    def test_a_trust_policy_that_cannot_be_read_is_not_green(self, document: Any) -> None:
        finding = judge_trust("task role", "r", document, region="us-east-1", account=ACCOUNT, partition="aws")

        assert finding.state is State.FAILED


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("123456789012.dkr.ecr.us-east-1.amazonaws.com/a/b:7", ("us-east-1", "a/b", "7")),
        ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com/a", ("us-gov-west-1", "a", "latest")),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn/a:x", ("cn-north-1", "a", "x")),
        ("123456789012.dkr-ecr.eu-west-1.on.aws/a:x", ("eu-west-1", "a", "x")),
        ("public.ecr.aws/a/b:7", None),
        ("python:3.12", None),
        ("12345.dkr.ecr.us-east-1.amazonaws.com/a", None),
        ("evil.example/123456789012.dkr.ecr.us-east-1.amazonaws.com/a", None),
        (None, None),
    ],
)
def test_private_images_of_ECR_are_told_from_others(name: str | None, expected: Any) -> None:
    image = EcrImage.of(name)

    assert expected == (None if image is None else (image.region, image.repository, image.tag))


@pytest.mark.parametrize(
    ("arn", "expected"),
    [
        (f"arn:aws:iam::{ACCOUNT}:user/teams/me", (f"arn:aws:iam::{ACCOUNT}:user/teams/me", "")),
        (f"arn:aws-cn:sts::{ACCOUNT}:assumed-role/ci/i-1", (f"arn:aws-cn:iam::{ACCOUNT}:role/ci", "ci")),
        (f"arn:aws:iam::{ACCOUNT}:root", ("", "")),
        (f"arn:aws:sts::{ACCOUNT}:federated-user/me", ("", "")),
        ("", ("", "")),
    ],
)
def test_the_policies_of_a_session_are_its_roles(arn: str, expected: tuple[str, str]) -> None:
    assert principal_of(arn) == expected


def test_of_many_things_some_are_named_once() -> None:
    assert some(["a", "b", "a"]) == "a, b"
    assert some("abcdef") == "a, b, c, d and 2 more"
    assert some([]) == ""
