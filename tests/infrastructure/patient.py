"""
An account that the doctor can look at, all of it well, to be broken part by part.

What `FakeAws` has not (IAM, ECR, Service Quotas, route tables, endpoints, a table) is added here. Requests and replies
are held to botocore's model like all others, and permissions are those of policies that `iam` evaluates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import quote

import attrs

from fargate_runner import EcsBackend, Job, Network, Roles
from fargate_runner._dynamodb import table_design
from fargate_runner.infrastructure import Access, Finding, Policy, State, caller_policy, diagnose, execution_policy
from fargate_runner.testing.aws import AwsError, FakeAws
from fargate_runner.testing.aws._service import Clock, Service
from fargate_runner.testing.aws._stores import Ec2Service
from tests.infrastructure.iam import ACCOUNT, Need, allowed

REGION = "us-east-1"
PUBLIC, PRIVATE = "subnet-0aaaaaaaa00000001", "subnet-0aaaaaaaa00000002"
EXECUTION, TASK = (f"arn:aws:iam::{ACCOUNT}:role/{name}" for name in ("execution", "task"))
IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/team/report:7"
OTHER_VPC = "vpc-0eeeeeeeeeeeeeee0"
TRUST: Mapping[str, Any] = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "ecs-tasks.amazonaws.com"}, "Action": "sts:AssumeRole"},
    ],
}


@attrs.define
class Role:
    """A role, what it trusts, and what it is allowed."""

    trust: Mapping[str, Any] = TRUST
    policies: list[Policy] = attrs.field(factory=list[Policy])
    attached: tuple[str, ...] = ()
    path: str = "/"
    boundary: str = ""


class Iam(Service):
    """Roles and users, and the simulator of what they may."""

    name: ClassVar[str] = "iam"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.roles: dict[str, Role] = {}
        self.users: dict[str, list[Policy]] = {}
        self.missing: dict[str, list[str]] = {}
        """Keys that nobody gave, by action."""
        self.details: dict[str, Any] = {}
        """What each result says beside."""
        self.pages = 1
        self.managed = "aws"
        """Whose the policies are that are attached to roles."""
        self.silent: set[str] = set()
        """Actions that it does not answer for."""

    def arn(self, name: str) -> str:
        return f"arn:aws:iam::{ACCOUNT}:role{self.roles[name].path}{name}"

    async def get_role(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name = request["RoleName"]
        role = self._role(name)
        found: dict[str, Any] = {
            "Path": role.path,
            "RoleName": name,
            "RoleId": "AROAFAKEFAKEFAKEFAKE1",
            "Arn": self.arn(name),
            "CreateDate": self._clock.utcnow(),
            "AssumeRolePolicyDocument": quote(json.dumps(role.trust)),
        }
        if role.boundary:
            found["PermissionsBoundary"] = {"PermissionsBoundaryArn": role.boundary}
        return {"Role": found}

    async def list_attached_role_policies(self, request: Mapping[str, Any]) -> dict[str, Any]:
        attached = [
            {"PolicyName": name, "PolicyArn": f"arn:aws:iam::{self.managed}:policy/service-role/{name}"}
            for name in self._role(request["RoleName"]).attached
        ]
        return {"AttachedPolicies": attached, "IsTruncated": False}

    async def simulate_principal_policy(self, request: Mapping[str, Any]) -> dict[str, Any]:
        policies = self._policies(request["PolicySourceArn"])
        (resource,) = request["ResourceArns"]
        context = {entry["ContextKeyName"]: entry["ContextKeyValues"][0] for entry in request["ContextEntries"]}
        results = [
            {
                "EvalActionName": action,
                "EvalResourceName": resource,
                "EvalDecision": self._decision(policies, Need(action, resource, context)),
                "MissingContextValues": self.missing.get(action, []),
                "MatchedStatements": [],
                **self.details,
            }
            for action in request["ActionNames"]
            if action not in self.silent
        ]
        first = int(request.get("Marker", 0))
        size = max(1, -(-len(results) // self.pages))
        last = first + size
        page: dict[str, Any] = {"EvaluationResults": results[first:last], "IsTruncated": last < len(results)}
        return page | ({"Marker": str(last)} if last < len(results) else {})

    @staticmethod
    def _decision(policies: list[Policy], need: Need) -> str:
        denies = [one for policy in policies for one in policy["Statement"] if one["Effect"] == "Deny"]
        if any(need.action in one["Action"] for one in denies):
            return "explicitDeny"
        return "allowed" if any(allowed(policy, need) for policy in policies) else "implicitDeny"

    def _policies(self, arn: str) -> list[Policy]:
        kind, _, name = arn.rpartition(":")[2].partition("/")
        if kind == "user" and name in self.users:
            return self.users[name]
        if kind == "role" and (role := name.rpartition("/")[2]) in self.roles and self.arn(role) == arn:
            return self.roles[role].policies
        raise AwsError("NoSuchEntity", f"{arn} does not exist", status=404)

    def _role(self, name: str) -> Role:
        if name not in self.roles:
            raise AwsError("NoSuchEntity", f"The role with name {name} cannot be found.", status=404)
        return self.roles[name]


class Ecr(Service):
    """Repositories, and the manifest of each image."""

    name: ClassVar[str] = "ecr"

    def __init__(self) -> None:
        self.images: dict[str, dict[str, str]] = {"team/report": {"7": index("amd64", "arm64")}}
        self.url = ""
        """Where layers are; there are none without it."""

    async def batch_get_image(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name = request["repositoryName"]
        if name not in self.images:
            said = f"The repository with name '{name}' does not exist in the registry with id '{request['registryId']}'"
            raise AwsError("RepositoryNotFoundException", said)
        (wanted,) = request["imageIds"]
        manifest = self.images[name].get(wanted.get("imageTag") or wanted["imageDigest"])
        if manifest is None:
            failure = {"imageId": wanted, "failureCode": "ImageNotFound", "failureReason": "Requested image not found"}
            return {"images": [], "failures": [failure]}
        image = {"registryId": request["registryId"], "repositoryName": name, "imageId": wanted}
        return {"images": [image | {"imageManifest": manifest}], "failures": []}

    async def get_download_url_for_layer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if not self.url:
            raise AwsError("LayersNotFoundException", "The layers with digests do not exist")
        return {"downloadUrl": self.url, "layerDigest": request["layerDigest"]}


def single() -> str:
    """Return the manifest of an image for one platform, which does not say which."""
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    return json.dumps(
        {"schemaVersion": 2, "mediaType": kind, "config": {"digest": f"sha256:{'0a' * 32}"}, "layers": []}
    )


def index(*architectures: str) -> str:
    parts = [{"digest": "sha256:1", "platform": {"os": "linux", "architecture": one}} for one in architectures]
    attestation = {"digest": "sha256:2", "platform": {"os": "unknown", "architecture": "unknown"}}
    kind = "application/vnd.oci.image.index.v1+json"
    return json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": [*parts, attestation]})


class Quotas(Service):
    """How many vCPUs the account may have."""

    name: ClassVar[str] = "service-quotas"

    def __init__(self) -> None:
        self.values: dict[str, float] = {"L-3032A538": 6.0, "L-36FBB829": 4.0}

    async def get_service_quota(self, request: Mapping[str, Any]) -> dict[str, Any]:
        code = request["QuotaCode"]
        if code not in self.values:
            raise AwsError(
                "NoSuchResourceException", "The request failed because the specified service quota does not exist."
            )
        return {"Quota": {"ServiceCode": "fargate", "QuotaCode": code, "Value": self.values[code]}}


class Dynamodb(Service):
    """Tables, as they are described."""

    name: ClassVar[str] = "dynamodb"

    def __init__(self) -> None:
        design = {name: value for name, value in table_design().items() if name != "BillingMode"}
        self.tables: dict[str, dict[str, Any]] = {
            "fargate-jobs": {"TableName": "fargate-jobs", "TableStatus": "ACTIVE", **design}
        }

    async def describe_table(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name = request["TableName"].rpartition("/")[2]
        if name not in self.tables:
            raise AwsError("ResourceNotFoundException", f"Requested resource not found: Table: {name} not found")
        return {"Table": self.tables[name]}


class Ec2(Ec2Service):
    """The fake's network, and where its routes lead: public subnets to a gateway, private ones to a NAT gateway."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock, region=REGION, account=ACCOUNT)
        gateway = {"DestinationCidrBlock": "0.0.0.0/0", "GatewayId": "igw-0de0de0de0de0de0d", "State": "active"}
        nat = {"DestinationCidrBlock": "0.0.0.0/0", "NatGatewayId": "nat-0de0de0de0de0de0d", "State": "active"}
        self.public_route: dict[str, str] | None = gateway
        self.private_route: dict[str, str] | None = nat
        self.endpoints: list[dict[str, Any]] = []
        self.vpc_of: dict[str, str] = {}
        """Of subnets and groups that are elsewhere."""
        self.states: dict[str, str] = {}
        """Of subnets that are not available."""
        self.egress: list[dict[str, Any]] = [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
        self.pages = 1

    def lead_to_endpoints(self, *services: str, **changes: Any) -> None:
        """Make an endpoint for each service, that of S3 for the private subnets' table."""
        for service in services:
            endpoint = {"State": "available", "VpcId": self.vpc, "ServiceName": f"com.amazonaws.{REGION}.{service}"}
            if service == "s3":
                endpoint |= {"VpcEndpointType": "Gateway", "RouteTableIds": ["rtb-private"]}
            else:
                endpoint |= {"VpcEndpointType": "Interface", "PrivateDnsEnabled": True}
            self.endpoints.append(endpoint | changes)

    async def describe_subnets(self, request: Mapping[str, Any]) -> dict[str, Any]:
        found = await super().describe_subnets(request)
        for subnet in found["Subnets"]:
            subnet["VpcId"] = self.vpc_of.get(subnet["SubnetId"], self.vpc)
            subnet["State"] = self.states.get(subnet["SubnetId"], "available")
        return found

    async def describe_security_groups(self, request: Mapping[str, Any]) -> dict[str, Any]:
        found = await super().describe_security_groups(request)
        for group in found["SecurityGroups"]:
            group["VpcId"] = self.vpc_of.get(group["GroupId"], self.vpc)
            group["IpPermissionsEgress"] = self.egress
        return found

    async def describe_route_tables(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert request["Filters"] == [{"Name": "vpc-id", "Values": [self.vpc]}]
        private = [{"SubnetId": one.id, "Main": False} for one in self.subnets if not one.public]
        local = {"DestinationCidrBlock": "172.31.0.0/16", "GatewayId": "local", "State": "active"}
        tables = [
            {"RouteTableId": name, "Routes": [local, *([route] if route else [])], "Associations": associations}
            for name, route, associations in (
                ("rtb-main", self.public_route, [{"Main": True}]),
                ("rtb-private", self.private_route, private),
            )
        ]
        return self._paged("RouteTables", tables, request)

    async def describe_vpc_endpoints(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert request["Filters"] == [{"Name": "vpc-id", "Values": [self.vpc]}]
        return self._paged("VpcEndpoints", self.endpoints, request)

    def _paged(self, member: str, things: list[dict[str, Any]], request: Mapping[str, Any]) -> dict[str, Any]:
        first = int(request.get("NextToken", 0))
        last = first + max(1, -(-len(things) // self.pages))
        page: dict[str, Any] = {member: things[first:last]}
        return page | ({"NextToken": str(last)} if last < len(things) else {})


class Patient:
    """The account, and the backend whose configuration is looked at."""

    def __init__(self, clock: Any) -> None:
        self.aws = FakeAws(clock=clock, clusters=("jobs",), log_groups=("/jobs",))
        self.clock = clock
        self.iam, self.ecr, self.quotas = Iam(clock), Ecr(), Quotas()
        self.ec2, self.dynamodb = Ec2(clock), Dynamodb()
        self.aws.ec2 = self.ec2
        for service in (self.iam, self.ecr, self.quotas, self.ec2, self.dynamodb):
            self.aws.services[service.name] = service
        access = Access(
            region=REGION,
            account=ACCOUNT,
            cluster="jobs",
            roles=[EXECUTION, TASK],
            log_group=self.backend().log_group,
            tags=True,
            events="jobs-events",
            journal="fargate-jobs",
            spill_to="s3://variables/jobs",
            secret_prefix="/jobs/secrets",
            chores=["discover"],
        )
        self.iam.users["fake"] = [caller_policy(access)]
        self.iam.roles["execution"] = Role(policies=[execution_policy(access)])
        self.iam.roles["task"] = Role()

    def backend(self, cluster: str | None = "jobs", **changes: Any) -> EcsBackend:
        known: dict[str, Any] = {
            "network": Network(subnets=[PUBLIC], security_groups=["sg-0de0de0de0de0de0d"], public_ip=True),
            "roles": Roles(execution=EXECUTION, task=TASK),
            "log_group": "/jobs",
            "session": self.aws.session(),
            "region": REGION,
            "utcnow": self.clock.utcnow,
        }
        return EcsBackend(cluster, **known | changes)

    def job(self, **changes: Any) -> Job:
        known: dict[str, Any] = {"image": IMAGE, "command": ["report"]}
        return Job(**known | changes)

    async def examined(self, job: Job | None = None, **more: Any) -> list[Finding]:
        """Return what the doctor finds; what `diagnose` does not take is said to the backend."""
        known = {"journal", "namespace", "concurrency", "chores", "discover", "patience", "backend"}
        options = {name: value for name, value in more.items() if name not in known}
        asked = {name: value for name, value in more.items() if name in known}
        backend = asked.pop("backend", None) or self.backend(**options)
        return list(await diagnose(backend, job=job or self.job(), **asked))

    def forbid(self, name: str, *actions: str) -> None:
        """Take actions away from a user or role."""
        policies = self.iam.users.get(name) or self.iam.roles[name].policies
        for policy in policies:
            for statement in policy["Statement"]:
                statement["Action"] = [action for action in statement["Action"] if action not in actions]


def of(found: list[Finding], check: str) -> list[Finding]:
    return [finding for finding in found if finding.check == check]


def only(found: list[Finding], check: str) -> Finding:
    (finding,) = of(found, check)
    return finding


def bad(found: list[Finding]) -> list[Finding]:
    """Return what is not well."""
    return [finding for finding in found if finding.state is not State.OK]
