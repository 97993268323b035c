"""
What an identity has to be allowed to do for a configuration, and nothing else: pure functions on values.

Which actions have resources, and which condition keys, is as the Service Authorization Reference has it (autumn 2026).
Where it has none, ``Resource`` can only be ``*``; `UNSCOPED` says for each such action why.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias, get_args
from urllib.parse import urlsplit

import attrs

from fargate_runner._errors import InvalidJob
from fargate_runner.backends.ecs import _wire
from fargate_runner.backends.ecs._config import EbsVolume, LogGroup

if TYPE_CHECKING:
    from fargate_runner._journal import Journal
    from fargate_runner.backends.ecs._backend import EcsBackend

__all__ = ["UNSCOPED", "Access", "Chore", "Policy", "caller_policy", "doctor_policy", "execution_policy"]

Policy: TypeAlias = dict[str, Any]
"""An IAM policy document, to be written as JSON."""

Chore = Literal["discover", "make-events", "make-journal", "prune"]
"""What some callers do beside running jobs."""

UNSCOPED: Final[Mapping[str, str]] = {
    "ec2:DescribeNetworkInterfaces": "EC2's Describe actions have no resource-level permissions",
    "ec2:DescribeRouteTables": "EC2's Describe actions have no resource-level permissions",
    "ec2:DescribeSecurityGroups": "EC2's Describe actions have no resource-level permissions",
    "ec2:DescribeSubnets": "EC2's Describe actions have no resource-level permissions",
    "ec2:DescribeVpcEndpoints": "EC2's Describe actions have no resource-level permissions",
    "ec2:DescribeVpcs": "EC2's Describe actions have no resource-level permissions",
    "ecr:GetAuthorizationToken": "the token is the account's; it opens only what the other ecr: actions name",
    "ecs:DeregisterTaskDefinition": "it has no resource-level permissions",
    "ecs:DescribeTaskDefinition": "it has no resource-level permissions",
    "ecs:ListAccountSettings": "it has no resource-level permissions",
    "ecs:ListClusters": "it has no resource-level permissions",
    "ecs:ListTaskDefinitionFamilies": "it has no resource-level permissions",
    "ecs:ListTasks": "its resource is a container instance, which Fargate has not; the condition names the cluster",
    "events:ListRuleNamesByTarget": "it has no resource-level permissions",
    "logs:DescribeLogGroups": "it has no resource-level permissions",
}
"""The actions whose ``Resource`` is ``*`` in what is written here, and why it can be nothing else."""

_TASKS: Final = "ecs-tasks.amazonaws.com"
_VOLUMES: Final = "ecs.amazonaws.com"
_TEMPLATE: Final = "${"
"""What is part of a template is known at deployment only, and not checked."""

_ACCOUNT: Final = re.compile(r"\d{12}\Z", re.ASCII)
_REGION: Final = re.compile(r"[a-z]{2,}(-[a-z]+)+-\d+\Z", re.ASCII)
_CLUSTER: Final = re.compile(r"(arn:aws[a-z-]*:ecs:[a-z0-9-]+:\d{12}:cluster/)?[A-Za-z0-9_-]{1,255}\Z", re.ASCII)
_ROLE: Final = re.compile(r"(arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]{1,512}|[\w+=,.@-]{1,64})\Z", re.ASCII)
_DEFINITION: Final = re.compile(
    r"(arn:aws[a-z-]*:ecs:[a-z0-9-]+:\d{12}:task-definition/)?[A-Za-z0-9_-]{1,255}(:[1-9]\d{0,9})?\Z", re.ASCII
)
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z", re.ASCII)
_QUEUE: Final = re.compile(r"(https?://[^\s*?]+/)?[A-Za-z0-9_-]{1,80}\Z", re.ASCII)
_TABLE: Final = re.compile(r"(arn:[\w-]+:dynamodb:[\w-]+:\d+:table/)?[A-Za-z0-9_.-]{3,255}\Z", re.ASCII)
_BUCKET: Final = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\s*?$]*)?\Z", re.ASCII)
_PARAMETERS: Final = re.compile(r"(/[A-Za-z0-9_.-]+){1,10}/?\Z", re.ASCII)
_GROUP: Final = re.compile(r"[.\-_/#A-Za-z0-9]{1,512}\Z", re.ASCII)

_SHAPES: Final[Mapping[str, tuple[re.Pattern[str], str, str]]] = {
    "region": (_REGION, "not a region", "write it like 'us-east-1'"),
    "account": (_ACCOUNT, "not the number of an account", "write its 12 digits, like '123456789012'"),
    "cluster": (_CLUSTER, "not the name or ARN of a cluster", "write it like 'jobs'"),
    "roles": (_ROLE, "neither the ARN of a role nor the name of one", "write 'arn:aws:iam::123456789012:role/name'"),
    "volume_roles": (_ROLE, "neither the ARN of a role nor the name of one", "write it like 'ecs-volumes'"),
    "definitions": (_DEFINITION, "not a task definition", "write 'family', 'family:7' or its ARN"),
    "namespace": (_NAMESPACE, "not a namespace", "use 1 to 64 letters, digits, _ and -"),
    "read_log_groups": (_GROUP, "not the name of a log group", "write it like '/jobs'"),
    "events": (_QUEUE, "neither the URL nor the name of a queue", "write it like 'jobs-events'"),
    "journal": (_TABLE, "not the name or ARN of a table", "write it like 'fargate-jobs'"),
    "spill_to": (_BUCKET, "not a place in S3", "write it like 's3://bucket/prefix'"),
    "secret_prefix": (_PARAMETERS, "not a path in the Parameter Store", "write it like '/jobs/secrets'"),
}


def _strings(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise InvalidJob("access", value, "a single text where several are expected", "write a list")
    return tuple(dict.fromkeys(value))


def _chores(value: Iterable[Chore]) -> frozenset[Chore]:
    return frozenset(value)


@attrs.frozen(kw_only=True)
class Access:
    """
    What of an AWS account a caller of this library uses. `Access.of` reads it from a backend and a journal.

    A text with ``${…}`` in it is of a template, and stays as it is.
    """

    region: str
    account: str
    cluster: str
    partition: str = attrs.field(default=attrs.Factory(lambda self: _wire.partition(self.region), takes_self=True))
    roles: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    """Names or ARNs of what tasks get: execution roles and task roles, those of existing definitions included."""
    volume_roles: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    """The infrastructure roles of `EbsVolume`."""
    derives: bool = True
    """Whether task definitions are derived from jobs, and registered."""
    definitions: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    """Existing task definitions that are run."""
    log_group: LogGroup = attrs.field(factory=LogGroup)
    read_log_groups: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    """Other groups that existing definitions write to."""
    namespace: str | None = None
    """The only one that is used; None for any. Tasks and lines are those of the whole cluster all the same."""
    tags: bool = False
    """Whether tasks get tags."""
    events: str = ""
    journal: str = ""
    spill_to: str = ""
    secret_prefix: str = ""
    chores: frozenset[Chore] = attrs.field(factory=frozenset[Chore], converter=_chores)

    def __attrs_post_init__(self) -> None:
        for field, (shape, problem, fix) in _SHAPES.items():
            value = getattr(self, field)
            for text in value if isinstance(value, tuple) else (value,) if value else ():
                if not isinstance(text, str) or (_TEMPLATE not in text and not shape.match(text)):
                    raise InvalidJob(field, text, problem, fix)
        for field in ("region", "account", "cluster"):
            if not getattr(self, field):
                raise InvalidJob(field, "", "it is missing", _SHAPES[field][2])
        if unknown := self.chores - set(get_args(Chore)):
            fix = f"use {', '.join(get_args(Chore))}"
            raise InvalidJob("chores", min(map(str, unknown)), "no such chore", fix)
        if not self.derives and not self.definitions:
            raise InvalidJob("definitions", (), "nothing is derived and nothing exists", "name a task definition")
        for chore, field in (("make-events", "events"), ("make-journal", "journal")):
            if chore in self.chores and not getattr(self, field):
                raise InvalidJob(field, "", f"{chore} makes one, and it has no name", _SHAPES[field][2])

    @classmethod
    def of(
        cls,
        backend: EcsBackend,
        *,
        account: str,
        journal: Journal | str | None = None,
        **more: Any,
    ) -> Self:
        """
        Return what *backend* and *journal* use; *more* are fields that neither of them knows. A backend that was
        not opened yet may have to be told its ``region``.

        What single jobs say (`EcsOptions`, tags) is not known here: name their roles, definitions and tags.

        :raises InvalidJob: a part is missing, or not what it should be
        """
        options = backend.options
        roles = (options.roles.execution, options.roles.task) if options.roles is not None else ()
        volumes = [volume for volume in options.volumes or () if isinstance(volume, EbsVolume)]
        found: dict[str, Any] = {
            "region": backend.api.region,
            "account": account,
            "cluster": backend.cluster,
            "roles": [role for role in roles if role],
            "volume_roles": [volume.role for volume in volumes],
            "derives": options.task_definition is None,
            "definitions": [options.task_definition] if options.task_definition else [],
            "log_group": backend.log_group,
            "tags": bool(backend._tags) or options.propagate_tags == "TASK_DEFINITION",
            "events": backend._events,
            "spill_to": f"s3://{backend._bucket}/{backend._spill_prefix}" if backend._bucket else "",
            "secret_prefix": backend._secret_prefix or "",
            "journal": journal if isinstance(journal, str) else _table_of(journal),
        }
        # What is said beside the backend comes first; what may be several is added.
        for field in ("roles", "volume_roles", "definitions"):
            more[field] = [*found[field], *more.get(field, ())]
        return cls(**found | more)

    # ---- names in AWS's world --------------------------------------------------------------------------------------

    def _arn(self, service: str, name: str) -> str:
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{name}"

    def _cluster_arn(self) -> str:
        return self.cluster if self.cluster.startswith("arn:") else self._arn("ecs", f"cluster/{self.cluster}")

    def _tasks(self) -> str:
        return self._cluster_arn().replace(":cluster/", ":task/", 1) + "/*"

    def _derived(self) -> str:
        namespace = "" if self.namespace is None else f"{self.namespace}-"
        return self._arn("ecs", f"task-definition/fr-{namespace}*:*")

    def _definitions(self) -> list[str]:
        """Return what is run. ECS asks for the right to run the revision that a family's name stands for."""
        found = [self._derived()] if self.derives else []
        for name in self.definitions:
            arn = name if name.startswith("arn:") else self._arn("ecs", f"task-definition/{name}")
            found.append(arn if arn.rpartition(":")[2].isdigit() else f"{arn}:*")
        return found

    def _role_arns(self, roles: Sequence[str]) -> list[str]:
        is_whole = ("arn:", _TEMPLATE)
        return [
            role if role.startswith(is_whole) else f"arn:{self.partition}:iam::{self.account}:role/{role}"
            for role in roles
        ]

    def _lines_are_here(self) -> bool:
        """Whether lines are read at all: never in another region than that of the tasks."""
        return self.log_group.region in {None, self.region}

    def _log_group(self) -> str:
        region = self.log_group.region or self.region
        return f"arn:{self.partition}:logs:{region}:{self.account}:log-group:{self.log_group.name}"

    def _streams(self) -> str:
        return f"{self._log_group()}:log-stream:{self.log_group.stream_prefix}/*"

    def _queue(self) -> str:
        url = urlsplit(self.events)
        account = url.path.strip("/").partition("/")[0] if url.scheme else self.account
        name = self.events.rstrip("/").rpartition("/")[2]
        return f"arn:{self.partition}:sqs:{self.region}:{account if _ACCOUNT.match(account) else self.account}:{name}"

    def _rule(self) -> str:
        return self._arn("events", f"rule/{self.events.rpartition('/')[2]}")

    def _table(self) -> str:
        return self.journal if self.journal.startswith("arn:") else self._arn("dynamodb", f"table/{self.journal}")

    def _parameters(self) -> str:
        namespace = "" if self.namespace is None else f"/{self.namespace}"
        return self._arn("ssm", f"parameter{self.secret_prefix.rstrip('/')}{namespace}/*")

    def _objects(self) -> str:
        bucket, _, prefix = self.spill_to.removeprefix("s3://").partition("/")
        prefix = prefix.strip("/")
        return f"arn:{self.partition}:s3:::{bucket}/{f'{prefix}/' if prefix else ''}*"

    def _bucket(self) -> str:
        return f"arn:{self.partition}:s3:::{self.spill_to.removeprefix('s3://').partition('/')[0]}"


def _table_of(journal: Journal | None) -> str:
    """Return the table of a journal that is one; a file has no permissions in AWS."""
    from fargate_runner._dynamodb import DynamoDBJournal

    return journal.name if isinstance(journal, DynamoDBJournal) else ""


# ---- policies ------------------------------------------------------------------------------------------------------


def caller_policy(access: Access) -> Policy:
    """
    Return the least that whoever runs jobs has to be allowed, as an IAM policy document.

    The same value gives the same text. Each statement has a ``Sid``; no action is a pattern; a resource is ``*`` only
    for actions that have none (`UNSCOPED`).
    """
    statements = [*_running(access), *_definitions(access), *_passing(access), *_lines(access)]
    return _document([*statements, *_stores(access), *_chores_of(access)])


def execution_policy(access: Access, *, repositories: Sequence[str] = ("*",)) -> Policy:
    """
    Return what the execution role needs: pull images, write lines, read the secrets and variables that we keep.

    *repositories* are names of ECR repositories in the account. Secrets that jobs name by reference are not known here.
    """
    found = [
        _statement("AskForRegistry", ["ecr:GetAuthorizationToken"], "*"),
        _statement(
            "PullImages",
            ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
            [access._arn("ecr", f"repository/{name}") for name in repositories],
        ),
        _statement("WriteLines", ["logs:CreateLogStream", "logs:PutLogEvents"], access._streams()),
    ]
    if access.secret_prefix:
        found.append(_statement("ReadSecrets", ["ssm:GetParameters"], access._parameters()))
    if access.spill_to:
        found.append(_statement("ReadVariables", ["s3:GetObject"], access._objects()))
        found.append(_statement("FindVariables", ["s3:GetBucketLocation"], access._bucket()))
    return _document(found)


def doctor_policy(access: Access) -> Policy:
    """
    Return what `diagnose` needs to see everything: it reads, and changes nothing.

    The roles are all of the account: whose the credentials will be is not known here.
    """
    roles, users = (f"arn:{access.partition}:iam::{access.account}:{kind}/*" for kind in ("role", "user"))
    network = ("RouteTables", "SecurityGroups", "Subnets", "VpcEndpoints")
    found = [
        _statement("LookAtCluster", ["ecs:DescribeClusters"], access._cluster_arn()),
        _statement("LookAtNetwork", [f"ec2:Describe{what}" for what in network], "*"),
        _statement("LookAtRoles", ["iam:GetRole", "iam:ListAttachedRolePolicies"], roles),
        _statement("AskWhatIsAllowed", ["iam:SimulatePrincipalPolicy"], [roles, users]),
        _statement("LookAtLogGroups", ["logs:DescribeLogGroups"], "*"),
        _statement("LookAtQuotas", ["servicequotas:GetServiceQuota"], access._arn("servicequotas", "fargate/*")),
        _statement(
            "LookAtImages", ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"], access._arn("ecr", "repository/*")
        ),
    ]
    if access.definitions:
        asked = ["ecs:DescribeTaskDefinition", "ecs:ListAccountSettings"]
        found.append(_statement("LookAtDefinitions", asked, "*"))
    if access.events:
        by_name = [] if "/" in access.events else ["sqs:GetQueueUrl"]
        found.append(_statement("LookAtQueue", ["sqs:GetQueueAttributes", *by_name], access._queue()))
        found.append(_statement("LookForRule", ["events:ListRuleNamesByTarget"], "*"))
        found.append(_statement("LookAtRule", ["events:DescribeRule"], access._arn("events", "rule/*")))
    if access.journal:
        found.append(_statement("LookAtJournal", ["dynamodb:DescribeTable"], access._table()))
    if access.spill_to:
        found.append(_statement("FindVariables", ["s3:GetBucketLocation"], access._bucket()))
    if "discover" in access.chores:
        found += _discovery(access)
    return _document(found)


def _document(statements: Iterable[Mapping[str, Any]]) -> Policy:
    return {"Version": "2012-10-17", "Statement": [dict(statement) for statement in statements]}


def _statement(
    sid: str, actions: Sequence[str], resources: str | Sequence[str], condition: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    several = [resources] if isinstance(resources, str) else list(resources)
    found: dict[str, Any] = {"Sid": sid, "Effect": "Allow", "Action": sorted(actions), "Resource": several}
    return found if condition is None else found | {"Condition": dict(condition)}


def _running(access: Access) -> Iterable[dict[str, Any]]:
    in_cluster = {"ArnEquals": {"ecs:cluster": access._cluster_arn()}}
    yield _statement("RunTasks", ["ecs:RunTask"], access._definitions(), in_cluster)
    yield _statement("LookAfterTasks", ["ecs:DescribeTasks", "ecs:StopTask"], access._tasks())
    yield _statement("FindTasks", ["ecs:ListTasks"], "*", in_cluster)
    yield _statement("LookAtCluster", ["ecs:DescribeClusters"], access._cluster_arn())


def _definitions(access: Access) -> Iterable[dict[str, Any]]:
    yield _statement("ReadDefinitions", ["ecs:DescribeTaskDefinition"], "*")
    if access.derives:
        yield _statement("RegisterDefinitions", ["ecs:RegisterTaskDefinition"], access._derived())
    tagged = {
        **({"RegisterTaskDefinition": access._derived()} if access.derives else {}),
        **({"RunTask": access._tasks()} if access.tags else {}),
    }
    if tagged:
        at_creation = {"StringEquals": {"ecs:CreateAction": list(tagged)}}
        yield _statement("TagAtCreation", ["ecs:TagResource"], list(tagged.values()), at_creation)


def _passing(access: Access) -> Iterable[dict[str, Any]]:
    for sid, roles, service in (
        ("PassRoles", access.roles, _TASKS),
        ("PassVolumeRoles", access.volume_roles, _VOLUMES),
    ):
        if roles:
            only = {"StringEquals": {"iam:PassedToService": service}}
            yield _statement(sid, ["iam:PassRole"], access._role_arns(roles), only)


def _lines(access: Access) -> Iterable[dict[str, Any]]:
    ours = access._log_group()
    # Who wrote a definition of its own chose the prefix of its streams, too.
    streams = (
        {ours: access._streams() if access.derives else f"{ours}:log-stream:*"} if access._lines_are_here() else {}
    )
    for group in (access._arn("logs", f"log-group:{name}") for name in access.read_log_groups):
        streams[group] = f"{group}:log-stream:*"
    if streams:
        yield _statement("ReadGroups", ["logs:FilterLogEvents"], [f"{group}:*" for group in streams])
        yield _statement("ReadStreams", ["logs:GetLogEvents"], list(streams.values()))
    if access.derives and access._lines_are_here():
        if not access.log_group.create:
            yield _statement("FindLogGroup", ["logs:DescribeLogGroups"], "*")
        else:
            retention = ["logs:PutRetentionPolicy"] if access.log_group.retention_days is not None else []
            yield _statement("MakeLogGroup", ["logs:CreateLogGroup", *retention], f"{ours}:*")


def _stores(access: Access) -> Iterable[dict[str, Any]]:
    if access.events:
        by_name = [] if "/" in access.events else ["sqs:GetQueueUrl"]
        yield _statement("ReadEvents", ["sqs:ReceiveMessage", "sqs:DeleteMessage", *by_name], access._queue())
    if access.journal:
        table = access._table()
        pages = ["BatchGetItem", "DeleteItem", "GetItem", "PutItem", "Query"]
        own = None
        if access.namespace is not None:  # the hash key of each page
            own = {"ForAllValues:StringEquals": {"dynamodb:LeadingKeys": [access.namespace]}}
        yield _statement("LookAtJournal", ["dynamodb:DescribeTable"], table)
        yield _statement("KeepJournal", [f"dynamodb:{page}" for page in pages], [table, f"{table}/index/open"], own)
    if access.spill_to:
        yield _statement("KeepVariables", ["s3:PutObject"], access._objects())
    if access.secret_prefix:
        yield _statement("KeepSecrets", ["ssm:DeleteParameter", "ssm:PutParameter"], access._parameters())


def _chores_of(access: Access) -> Iterable[dict[str, Any]]:
    if "prune" in access.chores:
        yield _statement("Prune", ["ecs:DeregisterTaskDefinition", "ecs:ListTaskDefinitionFamilies"], "*")
    if "discover" in access.chores:
        yield from _discovery(access)
    if "make-events" in access.chores:
        queue = ("CreateQueue", "DeleteQueue", "GetQueueAttributes", "GetQueueUrl", "SetQueueAttributes")
        yield _statement("MakeQueue", [f"sqs:{verb}" for verb in queue], access._queue())
        rule = ("DeleteRule", "PutRule", "RemoveTargets")
        yield _statement("MakeRule", [f"events:{verb}" for verb in rule], access._rule())
        only = {"ArnEquals": {"events:TargetArn": access._queue()}}
        yield _statement("FeedQueue", ["events:PutTargets"], access._rule(), only)
    if "make-journal" in access.chores:
        table = ("CreateTable", "DescribeTable", "DescribeTimeToLive", "UpdateTimeToLive")
        yield _statement("MakeJournal", [f"dynamodb:{verb}" for verb in table], access._table())


def _discovery(access: Access) -> Iterable[dict[str, Any]]:
    asked = [f"ec2:Describe{what}" for what in ("NetworkInterfaces", "Subnets", "Vpcs")]
    yield _statement("Discover", ["ecs:ListClusters", *asked], "*")
    yield _statement("DiscoverClusters", ["ecs:DescribeClusters"], access._arn("ecs", "cluster/*"))
