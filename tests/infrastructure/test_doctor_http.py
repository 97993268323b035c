"""
The doctor over HTTP: clients of aiobotocore, and networks, roles, images and tables that are moto's and not ours.

moto has no simulator of IAM and no quotas of Fargate: of those, nothing may be green.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

import aioboto3
import pytest

from fargate_runner import EcsBackend, Job, Network, Roles
from fargate_runner._dynamodb import table_design
from fargate_runner.backends.ecs._api import Api
from fargate_runner.infrastructure import Finding, State, diagnose
from fargate_runner.testing.aws import FakeAws
from tests.infrastructure.patient import TRUST, bad, index, of, only

pytestmark = pytest.mark.sweep

ACCOUNT = "123456789012"
IMAGE = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/report:7"
MANAGED = "arn:aws:iam::aws:policy/service-role/AmazonECSTaskExecutionRolePolicy"


@pytest.fixture
def anyio_backend() -> object:
    return "asyncio"


class World:
    """An account at a URL, and what was made in it."""

    def __init__(self, api: Api, url: str) -> None:
        self.api = api
        self.url = url
        self.ids: dict[str, str] = {}

    async def make(self) -> None:
        ask, ids = self.api.call, self.ids
        vpc = (await ask("ec2.CreateVpc", CidrBlock="10.0.0.0/16"))["Vpc"]["VpcId"]
        for name, block in (("public", "10.0.1.0/24"), ("private", "10.0.2.0/24"), ("closed", "10.0.3.0/24")):
            made = await ask("ec2.CreateSubnet", VpcId=vpc, CidrBlock=block, AvailabilityZone="us-east-1a")
            ids[name] = made["Subnet"]["SubnetId"]
            table = (await ask("ec2.CreateRouteTable", VpcId=vpc))["RouteTable"]["RouteTableId"]
            ids[f"{name} table"] = table
            await ask("ec2.AssociateRouteTable", RouteTableId=table, SubnetId=ids[name])
        gateway = (await ask("ec2.CreateInternetGateway"))["InternetGateway"]["InternetGatewayId"]
        await ask("ec2.AttachInternetGateway", InternetGatewayId=gateway, VpcId=vpc)
        await ask(
            "ec2.CreateRoute", RouteTableId=ids["public table"], DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway
        )
        nat = (await ask("ec2.CreateNatGateway", SubnetId=ids["public"]))["NatGateway"]["NatGatewayId"]
        await ask(
            "ec2.CreateRoute", RouteTableId=ids["private table"], DestinationCidrBlock="0.0.0.0/0", NatGatewayId=nat
        )
        group = await ask("ec2.CreateSecurityGroup", GroupName="jobs", Description="jobs", VpcId=vpc)
        ids |= {"vpc": vpc, "group": group["GroupId"]}
        for name, trust in (("execution", TRUST), ("stranger", {"Version": "2012-10-17", "Statement": []})):
            await ask("iam.CreateRole", RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))
        await ask("iam.AttachRolePolicy", RoleName="execution", PolicyArn=MANAGED)
        await ask("iam.CreateUser", UserName="ci")
        key = (await ask("iam.CreateAccessKey", UserName="ci"))["AccessKey"]
        ids |= {"key": key["AccessKeyId"], "secret": key["SecretAccessKey"]}
        await ask("ecr.CreateRepository", repositoryName="report")
        await ask("ecr.PutImage", repositoryName="report", imageTag="7", imageManifest=index("amd64"))
        await ask("dynamodb.CreateTable", TableName="fargate-jobs", **table_design())
        await ask("s3.CreateBucket", Bucket="variables")

    async def lead_to_endpoints(self, *services: str) -> None:
        for service in services:
            kind: dict[str, Any] = {"VpcEndpointType": "Interface", "PrivateDnsEnabled": True}
            if service == "s3":
                kind = {"VpcEndpointType": "Gateway", "RouteTableIds": [self.ids["closed table"]]}
            name = f"com.amazonaws.us-east-1.{service}"
            await self.api.call("ec2.CreateVpcEndpoint", VpcId=self.ids["vpc"], ServiceName=name, **kind)

    async def examined(self, subnet: str = "public", **changes: Any) -> list[Finding]:
        network = Network(subnets=[self.ids[subnet]], security_groups=[self.ids["group"]], public_ip=subnet == "public")
        known: dict[str, Any] = {
            "cluster": "jobs",
            "network": network,
            "roles": Roles(execution=f"arn:aws:iam::{ACCOUNT}:role/execution"),
            "log_group": "/jobs",
            "spill_to": "s3://variables/x",
            "region": "us-east-1",
            "endpoint_url": self.url,
            "session": aioboto3.Session(self.ids["key"], self.ids["secret"]),
        }
        job = Job(image=changes.pop("image", IMAGE), command=["report"], architecture=changes.pop("architecture", None))
        journal = changes.pop("journal", "fargate-jobs")
        backend = EcsBackend(**known | changes)
        return list(await diagnose(backend, job=job, journal=journal, patience=timedelta(minutes=2)))


@pytest.fixture
async def world() -> AsyncGenerator[World]:
    aws = FakeAws(clusters=("jobs",), log_groups=("/jobs",))
    async with aws.serve() as url:
        api = Api(session=aioboto3.Session("test", "test"), region="us-east-1", endpoint_url=url)
        async with api.running():
            world = World(api, url)
            await world.make()
            yield world


async def test_what_moto_answers_is_read_as_AWS_means_it(world: World) -> None:
    found = await world.examined(spill_to="s3://variables/x")

    assert {(finding.check, finding.state) for finding in bad(found)} == {
        ("execution role", State.UNKNOWN),  # variables in S3 are beyond its managed policy
        ("permissions", State.UNKNOWN),
        ("quota", State.UNKNOWN),
    }
    assert only(found, "credentials").seen == f"arn:aws:iam::{ACCOUNT}:user/ci in us-east-1"
    assert only(found, "environments").state is State.OK
    assert only(found, "journal").state is State.OK
    assert "for X86_64" in only(found, "image").seen
    well = await world.examined("private", spill_to=None)
    assert {finding.check for finding in bad(well)} == {"permissions", "quota"}
    assert only(well, "route").seen.rpartition(" ")[2].startswith("nat-")
    assert of(well, "execution role")[1].seen.startswith("it has AmazonECSTaskExecutionRolePolicy;")

    closed = only(await world.examined("closed"), "route")
    assert closed.state is State.FAILED
    await world.lead_to_endpoints("ecr.api", "ecr.dkr", "logs")
    assert "endpoints for s3 are missing" in only(await world.examined("closed"), "route").seen
    await world.lead_to_endpoints("s3")
    assert only(await world.examined("closed"), "route").state is State.OK


async def test_what_moto_has_not_is_red(world: World) -> None:
    await world.api.call(
        "ec2.RevokeSecurityGroupEgress",
        GroupId=world.ids["group"],
        IpPermissions=[{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}],
    )

    found = await world.examined(
        cluster="nights",
        roles=Roles(execution=f"arn:aws:iam::{ACCOUNT}:role/nobody", task="stranger"),
        spill_to="s3://nothing/x",
        events="jobs-events",
        journal="nights",
        image=IMAGE.replace(":7", ":8"),
    )
    others = await world.examined(image=IMAGE.replace("report", "reports"), architecture="ARM64")
    network = Network(subnets=["subnet-0123456789abcdef0"], security_groups=["sg-0123456789abcdef0"])
    elsewhere = await world.examined(network=network, architecture="ARM64")

    red = {finding.check for finding in found if finding.state is State.FAILED}
    assert red == {
        *("cluster", "security groups", "execution role", "task role", "image", "events", "journal", "environments"),
    }
    assert "no repository reports" in only(others, "image").seen
    assert only(elsewhere, "subnets").state is State.FAILED
    assert "and the job for ARM64" in only(elsewhere, "image").seen


async def test_a_place_where_nobody_answers_is_a_red_line(world: World) -> None:
    backend = EcsBackend(
        "jobs",
        region="us-east-1",
        endpoint_url="http://127.0.0.1:9",
        session=aioboto3.Session("test", "test"),
        network=Network(subnets=["subnet-0123456789abcdef0"]),
    )

    found = await diagnose(backend, patience=timedelta(seconds=0.2))

    assert found[0].state is State.FAILED
    assert "HTTPS_PROXY" in found[0].todo
