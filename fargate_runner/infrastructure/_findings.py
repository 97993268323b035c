"""
What the doctor found, and how AWS's answers are judged: plain functions on replies. Nothing here asks anybody.

Each judgement takes replies as botocore parses them, and returns `Finding`s. A finding is green only if what was seen
proves it; what could not be seen is unknown.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

import attrs

from fargate_runner.backends.ecs._config import Capacity, Network
from fargate_runner.backends.ecs._wire import partition as partition_of

__all__ = [
    "EcrImage",
    "Finding",
    "Question",
    "State",
    "Verdict",
    "config_of",
    "judge_architecture",
    "judge_cluster",
    "judge_egress",
    "judge_permissions",
    "judge_quota",
    "judge_route",
    "judge_subnets",
    "judge_trust",
    "principal_of",
    "questions",
    "verdicts",
]

Json: TypeAlias = Mapping[str, Any]


class State(enum.Enum):
    """How a check ended."""

    OK = "ok"
    """What was seen proves that it is right."""
    WARNING = "warning"
    """Jobs run, and something about it may surprise."""
    FAILED = "failed"
    """Jobs will not run, or not as they should."""
    UNKNOWN = "unknown"
    """It could not be looked at, or what was seen does not tell."""


@attrs.frozen(kw_only=True)
class Finding:
    """One line of what the doctor says: what was looked at, how it is, what was seen, and what to do about it."""

    check: str
    """Such as ``route``; several findings may share one."""
    state: State
    seen: str
    todo: str = ""
    """One sentence; never empty if it failed."""

    def __attrs_post_init__(self) -> None:
        assert self.todo or self.state is not State.FAILED, "what failed says what to do"


def ok(check: str, seen: str) -> Finding:
    return Finding(check=check, state=State.OK, seen=seen)


def warning(check: str, seen: str, todo: str) -> Finding:
    return Finding(check=check, state=State.WARNING, seen=seen, todo=todo)


def failed(check: str, seen: str, todo: str) -> Finding:
    return Finding(check=check, state=State.FAILED, seen=seen, todo=todo)


def unknown(check: str, seen: str, todo: str = "") -> Finding:
    return Finding(check=check, state=State.UNKNOWN, seen=seen, todo=todo)


def some(things: Iterable[str], most: int = 4) -> str:
    """Return the first few of *things*, in words."""
    names = list(dict.fromkeys(things))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# ---- permissions -----------------------------------------------------------------------------------------------------


@attrs.frozen
class Question:
    """What IAM's simulator is asked: whether some actions are allowed on one resource."""

    sid: str
    """Of the statement that would allow it."""
    actions: tuple[str, ...]
    resource: str
    context: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict[str, tuple[str, ...]], hash=False)

    def request(self, principal: str) -> dict[str, Any]:
        """Return the members of SimulatePrincipalPolicy (IAM API Reference)."""
        entries = [
            {"ContextKeyName": key, "ContextKeyValues": list(values), "ContextKeyType": _KINDS.get(key, "string")}
            for key, values in sorted(self.context.items())
        ]
        return {
            "PolicySourceArn": principal,
            "ActionNames": list(self.actions),
            "ResourceArns": [self.resource],
            "ContextEntries": entries,
        }


_KINDS: Final = {"dynamodb:LeadingKeys": "stringList", "aws:SecureTransport": "boolean"}


@attrs.frozen
class Verdict:
    """What IAM's simulator says of one action on one resource."""

    sid: str
    action: str
    resource: str
    allowed: bool
    why_not: str = ""
    missing: tuple[str, ...] = ()
    """Keys that some policy looks at, and of which nobody knows the value here."""


_EXAMPLE: Final = "doctor"
_OF_CREATION: Final = "ecs:CreateAction"


def questions(policy: Json, *, region: str, namespace: str) -> list[Question]:
    """
    Return what to ask about each statement of a policy, on a resource of each kind that it names.

    The simulator compares texts: of a resource with a ``*`` in it, one that it stands for is asked about.
    """
    known = {"aws:RequestedRegion": (region,), "aws:SecureTransport": ("true",)}
    found: list[Question] = []
    for statement in policy["Statement"]:
        for pattern in statement["Resource"]:
            resource = _example(pattern)
            context = dict(known)
            for wanted in statement.get("Condition", {}).values():
                for key, value in wanted.items():
                    context[key] = (value,) if isinstance(value, str) else tuple(value)
            if _OF_CREATION in context:
                is_definition = ":task-definition/" in resource
                context[_OF_CREATION] = ("RegisterTaskDefinition" if is_definition else "RunTask",)
            actions = tuple(statement["Action"])
            if actions[0].startswith("dynamodb:"):
                context["dynamodb:LeadingKeys"] = (namespace,)
                if "/index/" in resource:
                    actions = ("dynamodb:Query",)  # nothing else is done with an index
            found.append(Question(statement["Sid"], actions, resource, context))
    return found


def _example(pattern: str) -> str:
    if pattern == "*":
        return pattern
    if ":task-definition/" in pattern and pattern.endswith(":*"):
        pattern = f"{pattern.removesuffix('*')}1"
    elif ":log-group:" in pattern and pattern.endswith(":*"):
        pattern = f"{pattern.removesuffix('*')}log-stream:*"
    return pattern.replace("*", _EXAMPLE)


def verdicts(question: Question, reply: Json) -> list[Verdict]:
    """Return what a reply of SimulatePrincipalPolicy says."""
    found: list[Verdict] = []
    for result in reply.get("EvaluationResults") or ():
        decision = result.get("EvalDecision")
        organization = (result.get("OrganizationsDecisionDetail") or {}).get("AllowedByOrganizations", True)
        boundary = (result.get("PermissionsBoundaryDecisionDetail") or {}).get("AllowedByPermissionsBoundary", True)
        if not organization:
            why_not = "a policy of the organization (SCP) does not allow it"
        elif not boundary:
            why_not = "the permissions boundary does not allow it"
        elif decision == "explicitDeny":
            why_not = "a policy denies it"
        elif decision != "allowed":
            why_not = "no policy allows it"
        else:
            why_not = ""
        missing = tuple(sorted(result.get("MissingContextValues") or ()))
        action, resource = str(result.get("EvalActionName")), question.resource
        found.append(Verdict(question.sid, action, resource, not why_not, why_not, missing))
    told = {verdict.action.lower() for verdict in found}
    silent = [action for action in question.actions if action.lower() not in told]
    return [*found, *(Verdict(question.sid, a, question.resource, False, "", ("no answer",)) for a in silent)]


def judge_permissions(check: str, who: str, given: Sequence[Verdict], *, fix: str) -> list[Finding]:
    """Return a line for each statement with something denied, and one for the rest; *fix* takes its ``{sid}``."""
    found: list[Finding] = []
    denied = [verdict for verdict in given if not verdict.allowed and not verdict.missing]
    for sid in dict.fromkeys(verdict.sid for verdict in denied):
        mine = [verdict for verdict in denied if verdict.sid == sid]
        actions, whys = some(v.action for v in mine), some(v.why_not for v in mine)
        seen = f"{who} may not {actions} on {some(v.resource for v in mine)}: {whys}"
        found.append(failed(check, seen, fix.format(sid=sid)))
    doubtful = [verdict for verdict in given if not verdict.allowed and verdict.missing]
    if doubtful:
        keys = some(key for verdict in doubtful for key in verdict.missing)
        seen = f"whether {who} may {some(v.action for v in doubtful)} depends on what nobody knows here ({keys})"
        found.append(unknown(check, seen, "see whether the conditions of its policies are met where it runs"))
    granted = [verdict for verdict in given if verdict.allowed]
    if granted:
        count = len({verdict.action for verdict in granted})
        seen = f"{who} may do {'what is needed' if len(granted) == len(given) else 'the rest'} ({count} actions)"
        if keys := some(key for verdict in granted for key in verdict.missing):
            conditional = f"{seen}, unless a policy denies it by what nobody knows here ({keys})"
            found.append(warning(check, conditional, "see whether its policies deny anything by these conditions"))
        else:
            found.append(ok(check, seen))
    return found


_USER: Final = re.compile(r"arn:[\w-]+:iam::\d{12}:user/.+\Z", re.ASCII)
_ASSUMED: Final = re.compile(r"arn:(?P<p>[\w-]+):sts::(?P<a>\d{12}):assumed-role/(?P<name>[^/]+)/.+\Z", re.ASCII)


def principal_of(arn: str) -> tuple[str, str]:
    """
    Return whose policies count for the identity *arn*, and the name of its role if it is one, else empty.

    The session of a role does not tell the path of the role: its ARN is a guess until GetRole has told it. Of the
    root user and of federated users the simulator knows nothing, and neither is returned.
    """
    if _USER.match(arn):
        return arn, ""
    if assumed := _ASSUMED.match(arn):
        return f"arn:{assumed['p']}:iam::{assumed['a']}:role/{assumed['name']}", assumed["name"]
    return "", ""


# ---- roles -----------------------------------------------------------------------------------------------------------

_TASKS: Final = "ecs-tasks.amazonaws.com"


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def policy_document(said: Any) -> Json:
    """Return a policy that IAM gave: botocore parses it, others leave it as the URL-encoded text that it is."""
    if isinstance(said, Mapping):
        return said
    try:
        found = json.loads(unquote(str(said)))
    except ValueError:
        return {}
    return found if isinstance(found, Mapping) else {}


def judge_trust(check: str, role: str, document: Any, *, region: str, account: str, partition: str) -> Finding:
    """Say whether a task may get *role*, by the trust policy in it."""
    statements = [one for one in _listed(policy_document(document).get("Statement")) if _is_for_tasks(one)]
    fix = f"let the service {_TASKS} assume it, in the trust policy of {role}"
    if any(one.get("Effect") == "Deny" for one in statements):
        return failed(check, f"the trust policy of {role} denies it to {_TASKS}", fix)
    if not statements:
        return failed(check, f"{role} may not be given to a task: its trust policy does not name {_TASKS}", fix)
    context: dict[str, str] = {}
    if account:
        task = f"arn:{partition}:ecs:{region}:{account}:task/{_EXAMPLE}/{_EXAMPLE}"
        context = {"aws:sourceaccount": account, "aws:sourcearn": task}
    met = [_conditions_met(one.get("Condition") or {}, context) for one in statements]
    if True in met:
        return ok(check, f"{role} is there, and tasks may be given it")
    if None in met:
        seen = f"{role} is there, and its trust policy has conditions that are not looked at"
        return unknown(check, seen, f"see whether {_TASKS} meets them")
    seen = f"the trust policy of {role} has conditions that tasks of account {account} in {region} do not meet"
    return failed(check, seen, f"have aws:SourceAccount and aws:SourceArn in it name {account} and {region}")


def _is_for_tasks(statement: Any) -> bool:
    if not isinstance(statement, Mapping):
        return False
    principal = statement.get("Principal")
    services = _listed(principal.get("Service")) if isinstance(principal, Mapping) else _listed(principal)
    actions = [str(action).lower() for action in _listed(statement.get("Action"))]
    return bool({_TASKS, "*"}.intersection(services)) and any(fnmatchcase("sts:assumerole", a) for a in actions)


def _conditions_met(conditions: Json, context: Mapping[str, str]) -> bool | None:
    """Whether all hold; None if that cannot be told, and none of those that can is broken."""
    certain = True
    for operator, wanted in conditions.items():
        for key, values in wanted.items():
            there = context.get(str(key).lower())
            if there is None or str(operator).lower() not in _COMPARES:
                certain = False
            elif not any(fnmatchcase(there, str(value)) for value in _listed(values)):
                return False
    return True if certain else None


_COMPARES: Final = frozenset({"stringequals", "stringlike", "arnlike", "arnequals"})


# ---- cluster, quotas, logs -------------------------------------------------------------------------------------------


def judge_cluster(name: str, region: str, reply: Json, rungs: Sequence[Capacity]) -> list[Finding]:
    """Say whether DescribeClusters knows the cluster, and what jobs are to run on in it."""
    cluster: Json = next(iter(reply.get("clusters") or ()), {})
    status = cluster.get("status", "")
    if status != "ACTIVE":
        seen = f"it is {status}" if status else f"ECS knows none of the name {name!r} in {region}"
        make = f"make it (aws ecs create-cluster --cluster-name {name.rpartition('/')[2]}), or name another"
        return [failed("cluster", seen, make)]
    found = [ok("cluster", f"{cluster.get('clusterName', name)} is active")]
    attached: set[str] = set(cluster.get("capacityProviders") or ())
    wanted = list(dict.fromkeys(provider.name for rung in rungs for provider in rung.strategy))
    if missing := [provider for provider in wanted if provider not in attached]:
        seen = f"{some(missing)} cannot be used: the cluster has {some(sorted(attached)) or 'no capacity providers'}"
        fix = "attach it (aws ecs put-cluster-capacity-providers names all that the cluster is to have)"
        found.append(failed("capacity", seen, fix))
    elif any(rung.launch_type == "EC2" for rung in rungs) and not cluster.get("registeredContainerInstancesCount"):
        seen = "no EC2 instance is registered with the cluster"
        found.append(failed("capacity", seen, "start instances that join it, or use Fargate"))
    elif wanted:
        found.append(ok("capacity", f"the cluster has {some(wanted)}"))
    return found


def judge_quota(name: str, code: str, quota: float, *, vcpu: float, concurrency: int) -> Finding:
    """Say whether so many jobs of *vcpu* each fit at a time under a quota of vCPUs."""
    fit = int(quota / vcpu + 1e-9)
    fix = f"ask for more in the console's Service Quotas (AWS Fargate, {code})"
    seen = f"{quota:g} vCPUs at a time on {name}"
    if not fit:
        return failed("quota", f"{seen}, and one job takes {vcpu:g}", f"{fix}, or take a smaller size")
    if fit < concurrency:
        return warning("quota", f"{seen}: {fit} of {concurrency} jobs with {vcpu:g} each fit, the others wait", fix)
    return ok("quota", f"{seen}, and {'a job takes' if concurrency == 1 else 'jobs take'} {vcpu * concurrency:g}")


# ---- network ---------------------------------------------------------------------------------------------------------


def judge_subnets(network: Network, reply: Json, *, concurrency: int) -> list[Finding]:
    """Say whether tasks find room in the subnets."""
    subnets = {str(one.get("SubnetId")): one for one in reply.get("Subnets") or ()}
    missing = [one for one in network.subnets if one not in subnets]
    if missing:
        return [failed("subnets", f"{some(missing)} is not there", "name subnets of this account and region")]
    vpcs = sorted({str(one.get("VpcId")) for one in subnets.values()})
    if len(vpcs) > 1:
        return [failed("subnets", f"they are of {len(vpcs)} VPCs ({some(vpcs)})", "name subnets of one VPC only")]
    if unready := [name for name, one in subnets.items() if one.get("State", "available") != "available"]:
        return [failed("subnets", f"{some(unready)} is not available yet", "wait for it, or name others")]
    free = sum(int(one.get("AvailableIpAddressCount", concurrency)) for one in subnets.values())
    zones = sorted({str(one.get("AvailabilityZone")) for one in subnets.values()})
    seen = f"{len(subnets)} of {vpcs[0]} in {some(zones)}, {free} free addresses"
    fix = "name more or larger subnets, in other zones: each task takes an address"
    if full := [name for name, one in subnets.items() if one.get("AvailableIpAddressCount") == 0]:
        judged = failed if len(full) == len(subnets) else warning
        return [judged("subnets", f"{some(full)} has no free address", fix)]
    if free < concurrency:
        return [warning("subnets", f"{seen}, for {concurrency} jobs at a time", fix)]
    return [ok("subnets", seen)]


def judge_egress(network: Network, vpc: str, reply: Json) -> Finding:
    """Say whether the security groups let a task out at TCP 443, where the registry and the logs are."""
    groups = {str(one.get("GroupId")): one for one in reply.get("SecurityGroups") or ()}
    wanted = network.security_groups or tuple(groups)  # none said: it was the VPC's default one that was asked for
    check = "security groups"
    if missing := [one for one in wanted if one not in groups]:
        return failed(check, f"{some(missing)} is not there", "name security groups of the subnets' VPC")
    if not wanted:
        return unknown(check, f"{vpc} has no default one", "name a security group that lets tasks out at TCP 443")
    if strangers := [one for one in wanted if groups[one].get("VpcId", vpc) != vpc]:
        return failed(check, f"{some(strangers)} is not of the subnets' {vpc}", f"name security groups of {vpc}")
    ways = [way for one in wanted for way in _ways_out(groups[one])]
    names = some(wanted)
    if not ways:
        fix = f"allow outbound TCP 443 in {wanted[0]}, or name another"
        return failed(check, f"{names} lets nothing out at TCP 443", fix)
    if "0.0.0.0/0" not in ways:
        fix = "see that the image registry, CloudWatch Logs and S3 are among them"
        return warning(check, f"{names} lets TCP 443 out to {some(ways)} only", fix)
    return ok(check, f"{names} lets TCP 443 out")


def _ways_out(group: Json) -> Iterator[str]:
    for rule in group.get("IpPermissionsEgress") or ():
        protocol = str(rule.get("IpProtocol"))
        low, high = rule.get("FromPort", 0), rule.get("ToPort", 65535)
        if protocol == "-1" or (protocol in {"tcp", "6"} and low <= 443 <= high):
            for member, name in (
                ("IpRanges", "CidrIp"),
                ("Ipv6Ranges", "CidrIpv6"),
                ("PrefixListIds", "PrefixListId"),
                ("UserIdGroupPairs", "GroupId"),
            ):
                yield from (str(one[name]) for one in rule.get(member) or () if one.get(name))


class _Way(enum.Enum):
    """Where a subnet's default route leads."""

    GATEWAY = enum.auto()
    """To the internet, for who has a public address."""
    NAT = enum.auto()
    ELSEWHERE = enum.auto()
    """To somebody who may know the way: a transit gateway, a firewall, an instance."""
    DEAD = enum.auto()
    NONE = enum.auto()


def _table_of(subnet: str, tables: Sequence[Json]) -> Json:
    def is_associated(table: Json, *, main: bool) -> bool:
        parts = table.get("Associations") or ()
        return any(part.get("Main") if main else part.get("SubnetId") == subnet for part in parts)

    own = next((table for table in tables if is_associated(table, main=False)), None)
    return own or next((table for table in tables if is_associated(table, main=True)), {})


def _way_of(table: Json) -> tuple[_Way, str]:
    default = next((one for one in table.get("Routes") or () if one.get("DestinationCidrBlock") == "0.0.0.0/0"), None)
    if default is None:
        return _Way.NONE, ""
    target = next((str(default[name]) for name in _TARGETS if default.get(name)), "something unknown")
    if default.get("State") == "blackhole":
        return _Way.DEAD, target
    if target.startswith("igw-"):
        return _Way.GATEWAY, target
    return (_Way.NAT if target.startswith("nat-") else _Way.ELSEWHERE), target


_TARGETS: Final = (
    *("NatGatewayId", "GatewayId", "TransitGatewayId", "VpcPeeringConnectionId", "NetworkInterfaceId", "InstanceId"),
    *("LocalGatewayId", "CarrierGatewayId", "CoreNetworkArn"),
)


def judge_route(
    network: Network,
    tables: Sequence[Json],
    endpoints: Sequence[Json],
    *,
    services: Sequence[str],
    only_internet: str = "",
) -> list[Finding]:
    """
    Say whether a task in each subnet reaches *services* (``ecr.api``, …): over the internet, or by VPC endpoints.

    *only_internet* names what no endpoint leads to. As "Amazon ECR interface VPC endpoints" in the ECR User Guide has
    it, layers come from S3 by its gateway endpoint and no other.
    """
    by_verdict: dict[tuple[State, str, str], list[str]] = {}
    for subnet in network.subnets:
        table = _table_of(subnet, tables)
        found = _judge_subnet(network, table, endpoints, services, only_internet)
        by_verdict.setdefault(found, []).append(subnet)
    return [
        Finding(check="route", state=state, seen=f"{some(subnets)}: {seen}", todo=todo)
        for (state, seen, todo), subnets in by_verdict.items()
    ]


def _judge_subnet(
    network: Network, table: Json, endpoints: Sequence[Json], services: Sequence[str], only_internet: str
) -> tuple[State, str, str]:
    way, target = _way_of(table)
    if way is _Way.NAT or (way is _Way.GATEWAY and network.public_ip):
        return State.OK, f"the internet is reached by {target}", ""
    missing = [service for service in services if not _leads_to(service, endpoints, str(table.get("RouteTableId")))]
    if not missing and not only_internet:
        return State.OK, f"{some(services, 8)} are reached by endpoints", ""
    lacking = only_internet or f"endpoints for {some(missing, 8)} are missing"
    endpoint_fix = "" if only_internet else f", or make endpoints for {some(missing, 8)}"
    match way:
        case _Way.GATEWAY:
            fix = "give tasks a public IP (Network(public_ip=True), FARGATE_RUNNER_PUBLIC_IP=true), or a NAT gateway"
            return State.FAILED, f"its way out, {target}, takes a public IP, which tasks do not get; {lacking}", fix
        case _Way.ELSEWHERE:
            seen = f"its way out leads to {target}, and no further is looked; {lacking}"
            return State.UNKNOWN, seen, f"see that the internet is reached through {target}{endpoint_fix}"
        case _Way.DEAD:
            fix = f"lead its default route to a NAT gateway that is there{endpoint_fix}"
            return State.FAILED, f"its way out leads to {target}, which is gone; {lacking}", fix
        case _:
            fix = f"add a route to a NAT gateway, or name other subnets{endpoint_fix}"
            return State.FAILED, f"it has no way out; {lacking}", fix


def _leads_to(service: str, endpoints: Sequence[Json], table: str) -> bool:
    for one in endpoints:
        is_ready = str(one.get("State", "")).lower() == "available"
        if not is_ready or not str(one.get("ServiceName", "")).endswith(f".{service}"):
            continue
        if one.get("VpcEndpointType") == "Gateway":
            if table in (one.get("RouteTableIds") or ()):
                return True
        elif service != "s3" and one.get("PrivateDnsEnabled"):  # else its name leads to the public address
            return True
    return False


# ---- image -----------------------------------------------------------------------------------------------------------

_ECR: Final = re.compile(
    r"(?P<account>\d{12})\.(dkr[.-]ecr(-fips)?\.(?P<region>[a-z0-9-]+))\.(amazonaws\.com(\.cn)?|on\.aws)/"
    r"(?P<repository>[a-z0-9._/-]+?)(:(?P<tag>[\w.-]+))?(@(?P<digest>sha256:[0-9a-f]{64}))?\Z",
    re.ASCII,
)
_INDEXES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFESTS: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_PLATFORMS: Final = {"amd64": "X86_64", "arm64": "ARM64"}


@attrs.frozen(kw_only=True)
class EcrImage:
    """An image in a private registry of ECR."""

    account: str
    region: str
    repository: str
    tag: str
    digest: str
    """If there is one, it counts, and not the tag."""

    @classmethod
    def of(cls, image: str | None) -> EcrImage | None:
        """Return the parts of *image*; None if it is in no private registry of ECR."""
        found = _ECR.match(image or "")
        if found is None:
            return None
        account, region, repository = found["account"], found["region"], found["repository"]
        tag, digest = found["tag"] or "latest", found["digest"] or ""
        return cls(account=account, region=region, repository=repository, tag=tag, digest=digest)

    @property
    def arn(self) -> str:
        """That of its repository."""
        return f"arn:{partition_of(self.region)}:ecr:{self.region}:{self.account}:repository/{self.repository}"

    def request(self) -> dict[str, Any]:
        """Return the members of BatchGetImage (ECR API Reference)."""
        return {
            "registryId": self.account,
            "repositoryName": self.repository,
            "imageIds": [{"imageDigest": self.digest} if self.digest else {"imageTag": self.tag}],
            "acceptedMediaTypes": [*_INDEXES, *_MANIFESTS],
        }


def config_of(reply: Json) -> str:
    """Return the digest of what the image says of itself, which is where one for a single platform names it."""
    there: Json = next(iter(reply.get("images") or ()), {})
    try:
        return str(json.loads(there["imageManifest"])["config"]["digest"])
    except (ValueError, LookupError, TypeError):
        return ""


def judge_architecture(image: str, reply: Json, architecture: str, config: Json) -> Finding:
    """
    Say whether BatchGetImage found the image, and whether it is one for *architecture*; empty is any.

    *config* is what an image for a single platform says of itself, as far as it is known.
    """
    there = next(iter(reply.get("images") or ()), None)
    if there is None:
        failure: Json = next(iter(reply.get("failures") or ()), {})
        why = str(failure.get("failureCode") or "ImageNotFound")
        return failed("image", f"{image} is not in its repository ({why})", "push it, or correct its tag or digest")
    try:
        manifest = json.loads(there.get("imageManifest") or "{}")
        parts = [part.get("platform") or {} for part in manifest.get("manifests") or ()]
    except (ValueError, AttributeError):
        parts = []
    found = {str(part.get("architecture")) for part in [*parts, config] if part.get("os") == "linux"}
    if not architecture:
        return ok("image", f"{image} is there")
    if not found:
        seen = f"{image} is there, for a platform that could not be read"
        return unknown("image", seen, f"see that it was built for {architecture}")
    names = sorted(_PLATFORMS.get(one, one) for one in found)
    if architecture not in names:
        fix = f"build it for {architecture} too (docker buildx build --platform), or run it as {names[0]}"
        return failed("image", f"{image} is for {some(names)}, and the job for {architecture}", fix)
    return ok("image", f"{image} is there, for {some(names)}")
