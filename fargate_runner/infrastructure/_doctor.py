"""
The doctor: looks at what a configuration uses in AWS, and says of each part how it is and what to do about it.

Every call reads. The checks run side by side, each within its own time; one that may not look says what to allow, and
the others go on. What an answer means is decided in `_findings`.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import attrs

from fargate_runner._backend import Identity
from fargate_runner._errors import BackendError, InvalidJob, JournalError
from fargate_runner._job import Job, SecretRef, Size
from fargate_runner.backends.ecs import _discover, _wire
from fargate_runner.backends.ecs._api import _ADVICE, Api, ApiError, Trouble
from fargate_runner.backends.ecs._backend import EcsBackend, _options, _values
from fargate_runner.backends.ecs._config import Capacity, EbsVolume, EcsOptions, LogGroup, Network, Roles
from fargate_runner.infrastructure import _findings
from fargate_runner.infrastructure._findings import (
    EcrImage,
    Finding,
    Verdict,
    failed,
    ok,
    some,
    unknown,
    warning,
)
from fargate_runner.infrastructure._policy import Access, Chore, Policy, caller_policy, execution_policy

if TYPE_CHECKING:
    from fargate_runner._dynamodb import DynamoDBJournal
    from fargate_runner._journal import Journal

__all__ = ["diagnose"]

Json: TypeAlias = Mapping[str, Any]
Ask: TypeAlias = Callable[[], Awaitable[list[Finding]]]
_T = TypeVar("_T")

_PATIENCE: Final = timedelta(seconds=20)
_RETRIES: Final = 5.0
"""Seconds that AWS may be in trouble, or throttle, until that is what is said."""

_LARGEST_CONFIG: Final = 1 << 20
"""Bytes of what an image says of itself; it has a few thousand."""

# Amazon ECS, General Reference: "Fargate service quotas"; by the provider that counts against each.
_QUOTAS: Final[Mapping[str, tuple[str, str]]] = {
    "FARGATE": ("Fargate on demand", "L-3032A538"),
    "FARGATE_SPOT": ("Fargate Spot", "L-36FBB829"),
}
# What the AWS managed policy AmazonECSTaskExecutionRolePolicy allows, on everything (AWS Managed Policy Reference).
_MANAGED: Final = ":iam::aws:policy/service-role/AmazonECSTaskExecutionRolePolicy"
_MANAGED_ACTIONS: Final = frozenset(
    {
        *("ecr:GetAuthorizationToken", "ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer"),
        *("ecr:BatchGetImage", "logs:CreateLogStream", "logs:PutLogEvents"),
    }
)
_DOCTOR: Final = "fargate-runner policy --for doctor"
_REACH: Final = "check the network, a proxy (HTTPS_PROXY), and the region or endpoint (AWS_REGION, AWS_ENDPOINT_URL)"


async def diagnose(
    backend: EcsBackend,
    *,
    job: Job | None = None,
    journal: Journal | str | None = None,
    namespace: str = "default",
    concurrency: int = 1,
    chores: Iterable[Chore] = (),
    discover: bool | None = None,
    patience: timedelta = _PATIENCE,
) -> tuple[Finding, ...]:
    """
    Look at what *backend*, and one *job* on it, use in AWS; return what was found, in a fixed order.

    Nothing is changed, and the backend need not be open. What may not be looked at is `State.UNKNOWN` and names what
    to allow. Without *job* there is no image to look at, and it is of the smallest size. *journal* is a
    `DynamoDBJournal` or the name of its table; *concurrency* is how many jobs are to run at a time; *discover* whether
    what was not said is looked for as by `EcsBackend.discover`, None: if the backend has no cluster. Each check, of
    which a few wait for others, may take *patience*.

    :raises InvalidJob: an argument cannot be right
    """
    if not isinstance(backend, EcsBackend):
        raise InvalidJob("backend", backend, f"expected an EcsBackend, got {type(backend).__name__}", "hand one in")
    if job is not None and not isinstance(job, Job):
        raise InvalidJob("job", job, f"expected a Job, got {type(job).__name__}", "hand one in, or leave it out")
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
        raise InvalidJob("concurrency", concurrency, "expected how many jobs run at a time", "choose 1 or more")
    if not isinstance(patience, timedelta) or patience <= timedelta():
        raise InvalidJob("patience", patience, "expected a time, more than none", "write timedelta(seconds=20)")
    visit = _Visit(
        backend,
        job=job,
        journal=journal,
        namespace=namespace,
        concurrency=concurrency,
        chores=tuple(chores),
        discovers=not backend.cluster if discover is None else discover,
        patience=patience.total_seconds(),
    )
    visit.check()
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(backend._door())
        except BackendError as exc:
            return (_cannot_begin(exc),)
        return tuple(await visit.look())


@attrs.frozen(kw_only=True)
class _Plan:
    """What is to be launched, and into what: as the backend and the job say, or as an existing definition does."""

    cluster: str
    network: Network | None
    rungs: tuple[Capacity, ...]
    roles: Roles
    log_group: LogGroup
    images: tuple[str, ...] = ()
    """The job's own first, then those of its sidecars."""
    architecture: str
    """Empty if it is that of the instance which a task gets to."""
    vcpu: float
    secrets: tuple[str, ...] = ()
    """ARNs, or names of parameters, of what the execution role reads."""
    definition: Json | None = None
    """An existing one."""

    @property
    def is_on_fargate(self) -> bool:
        return any(rung.is_fargate for rung in self.rungs)


class _Visit:
    """One look at an account, through the open door of a backend."""

    def __init__(
        self,
        backend: EcsBackend,
        *,
        job: Job | None,
        journal: Journal | str | None,
        namespace: str,
        concurrency: int,
        chores: tuple[Chore, ...],
        discovers: bool,
        patience: float,
    ) -> None:
        self._backend = backend
        self._api = backend.api
        self._job = job
        self._journal = journal
        self._namespace = namespace
        self._concurrency = concurrency
        self._chores = chores
        self._discovers = discovers
        self._patience = patience
        self._options = (EcsOptions() if job is None else _options(job)).over(backend.options)
        self._arn = self._account = ""
        self._is_lost = False
        """Whether there is no use in looking on."""
        self._found: _discover.Discovered | None = None
        self._plan: _Plan

    async def look(self) -> list[Finding]:
        """Look at everything."""
        found = await self._limited("credentials", self._credentials)
        if self._is_lost:
            return found
        if self._discovers:
            found += await self._limited("configuration", self._discover)
        self._plan = self._planned()
        if self._options.task_definition is not None:
            found += await self._limited("task definition", self._read_definition)
        # What an existing definition, or the environment, says of tasks cannot be looked at where it was not read.
        is_read = self._options.task_definition is None or self._plan.definition is not None
        of_tasks = is_read and (self._found is not None or not self._discovers)
        checks: tuple[tuple[str, Ask, bool], ...] = (
            ("job", self._check_job, of_tasks),
            ("cluster", self._check_cluster, bool(self._plan.cluster)),
            ("", self._check_network, True),
            ("", self._check_execution_role, of_tasks),
            ("task role", self._check_task_role, of_tasks),
            ("log group", self._check_log_group, of_tasks),
            ("log mode", self._check_log_mode, of_tasks),
            ("", self._check_quotas, of_tasks),
            ("", self._check_images, of_tasks),
            ("events", self._check_events, True),
            ("journal", self._check_journal, True),
            ("environments", self._check_spill, True),
            ("permissions", self._check_permissions, True),
        )
        return found + await self._side_by_side(*((check, ask) for check, ask, wanted in checks if wanted))

    async def _limited(self, check: str, ask: Ask) -> list[Finding]:
        """Return what a check finds, or why it found nothing."""
        with anyio.move_on_after(self._patience):
            try:
                return await ask()
            except BackendError as exc:
                return [_of_error(check, exc)]
            except InvalidJob as exc:
                return [failed(check, f"{exc.field}={exc.value!r}: {exc.problem}", exc.fix)]
        return [failed(check, f"AWS did not answer within {self._patience:g} seconds", _REACH)]

    async def _side_by_side(self, *checks: tuple[str, Ask]) -> list[Finding]:
        """Return in their order what checks find that do not wait for each other. One without a name has several."""
        told = await _together([partial(self._limited, check, ask) if check else ask for check, ask in checks])
        return [finding for part in told for finding in part]

    async def _ask(self, operation: str, api: Api | None = None, /, **request: Any) -> dict[str, Any]:
        patience = self._patience_of_calls
        return await (api or self._api).call(operation, patience, patience, **request)

    @property
    def _patience_of_calls(self) -> float:
        return min(_RETRIES, self._patience / 2)

    async def _pages(self, operation: str, member: str, **request: Any) -> list[Json]:
        """Return a list of EC2's, whole."""
        found: list[Json] = []
        token: dict[str, str] = {}
        while True:
            page = await self._ask(operation, **request, **token)
            found += page.get(member) or ()
            if not page.get("NextToken"):
                return found
            token = {"NextToken": page["NextToken"]}

    @asynccontextmanager
    async def _door(self, region: str) -> AsyncGenerator[Api]:
        """The door to AWS in *region*."""
        if region == self._api.region:
            yield self._api
            return
        api = self._backend._make_api(region=region)
        async with api.running():
            yield api

    # ---- who, where, what --------------------------------------------------------------------------------------------

    async def _credentials(self) -> list[Finding]:
        check = "credentials"
        try:
            reply = await self._ask("sts.GetCallerIdentity")
        except BackendError as exc:
            self._is_lost = not exc.retryable or _has(exc, Trouble.EXPIRED)
            return [_cannot_begin(exc) if self._is_lost else _of_error(check, exc)]
        self._arn, self._account = str(reply.get("Arn", "")), str(reply.get("Account", ""))
        seen = f"{self._arn} in {self._api.region}"
        if self._arn.endswith(":root"):
            fix = "use a role that has what fargate-runner policy writes"
            return [warning(check, f"{seen}, who may do everything", fix)]
        return [ok(check, seen)]

    async def _discover(self) -> list[Finding]:
        cluster, network, patience = self._backend.cluster or None, self._options.network, self._patience_of_calls
        self._found = await _discover.look_around(self._api, cluster=cluster, network=network, patience=patience)
        found = [ok("configuration", "; ".join(self._found.why))] if self._found.why else []
        return found + [
            failed("subnets" if part == "network" else part, why, fix)
            for part, (why, fix) in self._found.missing.items()
        ]

    def _planned(self) -> _Plan:
        options, backend, found, job = self._options, self._backend, self._found, self._job
        log_group = backend.log_group
        if found is not None:
            options = options.over(EcsOptions(network=found.network, roles=found.roles))
            if found.log_group is not None and not backend._log_group_was_said:
                log_group = found.log_group
        parts = [] if job is None else [job.secrets, *(side.secrets for side in job.sidecars)]
        secrets = [secret.arn for part in parts for secret in part.values() if isinstance(secret, SecretRef)]
        images = [] if job is None else [job.image, *(side.image for side in job.sidecars)]
        rungs = options.capacity or (Capacity.fargate(),)
        architecture = job.architecture if job is not None else None
        return _Plan(
            cluster=backend.cluster or (found.cluster if found is not None else ""),
            network=options.network,
            rungs=rungs,
            roles=options.roles or Roles(),
            log_group=log_group,
            images=tuple(dict.fromkeys(image for image in images if image is not None)),
            architecture=architecture or ("X86_64" if any(rung.is_fargate for rung in rungs) else ""),
            vcpu=(Size.of(None, None) if job is None else job.size).vcpu,
            secrets=tuple(secrets),
        )

    async def _read_definition(self) -> list[Finding]:
        check, name = "task definition", str(self._options.task_definition)
        fix = "register it, or name an active one as 'family' or 'family:revision'"
        try:
            body = (await self._ask("ecs.DescribeTaskDefinition", taskDefinition=name)).get("taskDefinition") or {}
        except ApiError as exc:
            if exc.trouble not in {Trouble.NOT_FOUND, Trouble.INVALID}:  # ClientException: Unable to describe …
                raise
            return [failed(check, f"ECS knows none of the name {name!r}", fix)]
        arn = str(body.get("taskDefinitionArn", name))
        if body.get("status", "ACTIVE") != "ACTIVE":
            return [failed(check, f"{arn} is {body['status']}", fix)]
        if self._plan.is_on_fargate and "FARGATE" not in (body.get("compatibilities") or ("FARGATE",)):
            fix = "register it with requiresCompatibilities FARGATE, or say the capacity that it is for"
            return [failed(check, f"{arn} is not fit for Fargate", fix)]
        own = _wire.container_of(body, "main" if self._job is None else self._job.container_name)
        self._plan = attrs.evolve(self._plan, **_of_definition(body, own, self._plan, self._job))
        return [ok(check, f"{arn} is active")]

    async def _check_job(self) -> list[Finding]:
        job = self._job
        if job is None or self._options.task_definition is not None:
            return []
        options = self._options
        who = Identity(namespace=self._namespace, key=job.key or "doctor", attempt=1)
        try:
            _wire.definition(
                job,
                roles=self._plan.roles,
                log_group=self._plan.log_group,
                options=options,
                region=self._api.region,
                secret_names=self._backend._parameters(job, who),
                capacity=self._plan.rungs,
            )
        except InvalidJob as exc:
            return [failed("job", f"{exc.field}: {exc.problem}", exc.fix)]
        return []

    def check(self) -> None:
        """Refuse, before anything is asked, what would be refused in the end."""
        region, cluster = self._api.region or "us-east-1", self._backend.cluster or "any"
        self._access(account="123456789012", region=region, cluster=cluster)

    def _used(self) -> Access:
        """Return what is used of the account, for policies."""
        plan, options = self._plan, self._options
        tags = self._backend._tags or (self._job is not None and self._job.tags)
        definition = options.task_definition
        if plan.definition is not None:
            definition = str(plan.definition.get("taskDefinitionArn", definition))
        used = self._access(
            account=self._account,
            cluster=plan.cluster or "any",
            derives=definition is None,
            definitions=[definition] if definition is not None else [],
            log_group=plan.log_group,
            tags=bool(tags) or options.propagate_tags == "TASK_DEFINITION",
        )
        return attrs.evolve(  # what the backend says and this job does not use is not needed
            used,
            definitions=[definition] if definition is not None else [],
            roles=[role for role in (plan.roles.execution, plan.roles.task) if role],
            volume_roles=[volume.role for volume in options.volumes or () if isinstance(volume, EbsVolume)],
        )

    def _access(self, **more: Any) -> Access:
        known: dict[str, Any] = {"journal": self._journal, "namespace": self._namespace, "chores": self._chores}
        return Access.of(self._backend, **known | more)

    # ---- where jobs run ----------------------------------------------------------------------------------------------

    async def _check_cluster(self) -> list[Finding]:
        reply = await self._ask("ecs.DescribeClusters", clusters=[self._plan.cluster])
        return _findings.judge_cluster(self._plan.cluster, self._api.region, reply, self._plan.rungs)

    async def _check_network(self) -> list[Finding]:
        network = self._plan.network
        if network is None:
            if not self._plan.is_on_fargate or self._discovers:
                return []  # it needs none, or that none was found is told already
            fix = "say network=Network(subnets=[…]), or --subnet ID"
            return [failed("subnets", "none were said, and Fargate needs some", fix)]
        vpcs: list[str] = []
        found = await self._limited("subnets", partial(self._check_subnets, network, vpcs))
        if len(vpcs) != 1:
            if all(finding.state is _findings.State.UNKNOWN for finding in found):
                found.append(unknown("route", "without the subnets, nobody knows where their routes lead"))
            return found
        return found + await self._side_by_side(
            ("security groups", partial(self._check_security_groups, network, vpcs[0])),
            ("route", partial(self._check_route, network, vpcs[0])),
        )

    async def _check_subnets(self, network: Network, vpcs: list[str]) -> list[Finding]:
        """Look at the subnets, and add their VPCs to *vpcs*."""
        try:
            reply = await self._ask("ec2.DescribeSubnets", SubnetIds=list(network.subnets))
        except ApiError as exc:
            if exc.trouble is not Trouble.NOT_FOUND:
                raise
            return [
                failed("subnets", f"{_words(exc)} in {self._api.region}", "name subnets of this account and region")
            ]
        vpcs += sorted({str(one.get("VpcId")) for one in reply.get("Subnets") or ()})
        return _findings.judge_subnets(network, reply, concurrency=self._concurrency)

    async def _check_security_groups(self, network: Network, vpc: str) -> list[Finding]:
        wanted: dict[str, Any] = {"GroupIds": list(network.security_groups)}
        if not network.security_groups:
            wanted = {"Filters": [_filter("vpc-id", vpc), _filter("group-name", "default")]}
        try:
            reply = await self._ask("ec2.DescribeSecurityGroups", **wanted)
        except ApiError as exc:
            if exc.trouble is not Trouble.NOT_FOUND:
                raise
            said = _words(exc)
            return [failed("security groups", said, f"name security groups of {vpc}")]
        return [_findings.judge_egress(network, vpc, reply)]

    async def _check_route(self, network: Network, vpc: str) -> list[Finding]:
        tables = await self._pages("ec2.DescribeRouteTables", "RouteTables", Filters=[_filter("vpc-id", vpc)])
        services, only_internet = self._needed()
        judge = partial(_findings.judge_route, network, tables, services=services, only_internet=only_internet)
        try:
            # Whoever has another way does without them.
            endpoints = await self._pages("ec2.DescribeVpcEndpoints", "VpcEndpoints", Filters=[_filter("vpc-id", vpc)])
        except ApiError as exc:
            blind = judge(())
            if all(finding.state is _findings.State.OK for finding in blind):
                return blind
            return [_of_error("route", exc)]
        return judge(endpoints)

    def _needed(self) -> tuple[list[str], str]:
        """Return the services that a task has to reach, and what of it no endpoint leads to."""
        plan, here = self._plan, self._api.region
        only_internet = ""
        if plan.log_group.region not in {None, here}:
            only_internet = f"lines go to {plan.log_group.region}, which is reached over the internet"
        for name in plan.images:
            image = EcrImage.of(name)
            if image is None:
                only_internet = f"the image {name} comes over the internet"
            elif image.region != here:
                only_internet = f"the image {name} is in {image.region}, which is reached over the internet"
        services = ["ecr.api", "ecr.dkr", "s3", "logs"]
        arns = self._secrets()
        by_value = self._job is not None and bool(_values(self._job))
        services += ["secretsmanager"] if any(":secretsmanager:" in arn for arn in arns) else []
        services += ["ssm"] if by_value or any(":ssm:" in arn for arn in arns) else []
        return services, only_internet

    def _secrets(self) -> list[str]:
        """Return the ARNs of what the execution role reads. A name is that of a parameter."""
        place = f"arn:{_wire.partition(self._api.region)}:ssm:{self._api.region}:{self._account}:parameter/"
        # Behind the name of a secret may be the key of JSON, a stage and a version.
        return [
            ":".join(one.split(":")[:7]) if one.startswith("arn:") else place + one.lstrip("/")
            for one in self._plan.secrets
        ]

    async def _check_quotas(self) -> list[Finding]:
        providers = {provider.name for rung in self._plan.rungs for provider in rung.strategy}
        providers |= {rung.launch_type for rung in self._plan.rungs if rung.launch_type == "FARGATE"}
        wanted = [quota for name, quota in _QUOTAS.items() if name in providers]
        return await self._side_by_side(*(("quota", partial(self._check_quota, *quota)) for quota in wanted))

    async def _check_quota(self, name: str, code: str) -> list[Finding]:
        reply: Json = {}
        try:
            reply = await self._ask("service-quotas.GetServiceQuota", ServiceCode="fargate", QuotaCode=code)
        except ApiError as exc:
            if exc.trouble is not Trouble.NOT_FOUND:
                raise
        value = (reply.get("Quota") or {}).get("Value")
        if value is None:
            fix = "look in the console's Service Quotas"
            return [unknown("quota", f"AWS does not tell how many vCPUs there are on {name} ({code})", fix)]
        return [_findings.judge_quota(name, code, value, vcpu=self._plan.vcpu, concurrency=self._concurrency)]

    # ---- roles and permissions ---------------------------------------------------------------------------------------

    async def _check_task_role(self) -> list[Finding]:
        role = self._plan.roles.task
        if role is None:
            return [ok("task role", "none: jobs may ask AWS nothing")]
        return await self._look_at_role("task role", role)

    async def _check_execution_role(self) -> list[Finding]:
        role, check = self._plan.roles.execution, "execution role"
        if role is None:
            # Amazon ECS Developer Guide, "task execution IAM role": Fargate takes it for awslogs and private images.
            if not self._plan.is_on_fargate:
                return [ok(check, "none: the instances' own role pulls images and writes lines")]
            fix = "say roles=Roles(execution='arn:…'), --execution-role ARN, or FARGATE_RUNNER_EXECUTION_ROLE"
            return [failed(check, "none was said, and on Fargate nobody else writes lines or pulls from ECR", fix)]
        found = await self._limited(check, partial(self._look_at_role, check, role))
        if any(finding.state is _findings.State.FAILED for finding in found) or not self._account:
            return found
        return found + await self._limited(check, partial(self._check_what_it_may, role))

    async def _look_at_role(self, check: str, role: str) -> list[Finding]:
        account, region = _wire.account_of(role), self._api.region
        if account and self._account and account != self._account:
            fix = f"name a role of account {self._account}"
            return [failed(check, f"{role} is of another account, and cannot be given to tasks of this one", fix)]
        try:
            found = (await self._ask("iam.GetRole", RoleName=role.rpartition("/")[2])).get("Role") or {}
        except ApiError as exc:
            if exc.trouble is not Trouble.NOT_FOUND:
                raise
            return [failed(check, f"{role} is not there", "make it (fargate-runner init), or name another")]
        if account and found.get("Arn") not in {None, role}:
            fix = "name it with its path, as IAM does"
            return [failed(check, f"there is no {role}, but {found['Arn']}", fix)]
        trust = found.get("AssumeRolePolicyDocument")
        account, partition = self._account or account, _wire.partition(region)
        return [_findings.judge_trust(check, role, trust, region=region, account=account, partition=partition)]

    async def _check_what_it_may(self, role: str) -> list[Finding]:
        policy = self._needed_by_tasks()
        fix = "add the statement {sid} of fargate-runner policy --for execution to it"
        try:
            given = await self._simulated(role, policy)
        except ApiError as exc:
            if exc.trouble not in {Trouble.DENIED, Trouble.INVALID}:
                raise
            return [await self._by_managed_policy(role, policy, exc)]
        return _findings.judge_permissions("execution role", "it", given, fix=fix)

    def _needed_by_tasks(self) -> Policy:
        """Return what the execution role has to be allowed for this job."""
        policy = execution_policy(self._used())
        images = [image for name in self._plan.images if (image := EcrImage.of(name)) is not None]
        pulls = bool(images) or not self._plan.images
        statements = [one for one in policy["Statement"] if pulls or not one["Action"][0].startswith("ecr:")]
        for statement in statements:
            if images and statement["Sid"] == "PullImages":
                statement["Resource"] = [image.arn for image in images]
        for sid, service, action in (
            ("ReadSecretsByReference", "secretsmanager", "secretsmanager:GetSecretValue"),
            ("ReadParametersByReference", "ssm", "ssm:GetParameters"),
        ):
            if arns := [arn for arn in self._secrets() if f":{service}:" in arn]:
                statements.append({"Sid": sid, "Effect": "Allow", "Action": [action], "Resource": arns})
        return policy | {"Statement": statements}

    async def _by_managed_policy(self, role: str, policy: Policy, why: ApiError) -> Finding:
        """Say what a role may by the policies of its own, where the simulator does not."""
        blind, name = _of_error("execution role", why), role.rpartition("/")[2]
        attached = (await self._ask("iam.ListAttachedRolePolicies", RoleName=name)).get("AttachedPolicies") or ()
        bounded = ((await self._ask("iam.GetRole", RoleName=name)).get("Role") or {}).get("PermissionsBoundary")
        names = [str(one.get("PolicyName")) for one in attached]
        is_managed = any(str(one.get("PolicyArn")).endswith(_MANAGED) for one in attached)
        needed = {action for statement in policy["Statement"] for action in statement["Action"]}
        doubtful = sorted(needed - _MANAGED_ACTIONS if is_managed and not bounded else needed)
        if not doubtful:
            return ok("execution role", f"it has {some(names)}; whether anything denies that was not looked at")
        has = f"it has {some(names) or 'no managed policy'}{' and a permissions boundary' if bounded else ''}"
        return attrs.evolve(blind, seen=f"{has}; whether it may {some(doubtful)} is not known, as {blind.seen}")

    async def _check_permissions(self) -> list[Finding]:
        check = "permissions"
        if not self._account or not self._plan.cluster:
            lacking = "the account" if not self._account else "the cluster"
            return [unknown(check, f"without {lacking}, nobody knows what has to be allowed")]
        principal, role = _findings.principal_of(self._arn)
        if not principal:
            return [unknown(check, f"IAM's simulator does not know {self._arn}", "ask with a role or a user of IAM")]
        if role:
            principal = await self._arn_of_role(principal, role)
        try:
            given = await self._simulated(principal, caller_policy(self._used()))
        except ApiError as exc:
            if exc.trouble is not Trouble.NOT_FOUND:
                raise
            seen = f"the role of {self._arn} has a path, which only iam:GetRole tells"
            return [unknown(check, seen, f"allow iam:GetRole ({_DOCTOR})")]
        who = principal.partition(":role/")[2] or principal.partition(":user/")[2]
        fix = "add the statement {sid} of fargate-runner policy to its policies"
        return _findings.judge_permissions(check, who, given, fix=fix)

    async def _arn_of_role(self, guess: str, name: str) -> str:
        try:
            return str(((await self._ask("iam.GetRole", RoleName=name)).get("Role") or {}).get("Arn", guess))
        except ApiError:
            return guess

    async def _simulated(self, principal: str, policy: Policy) -> list[Verdict]:
        """Ask IAM's simulator for all that *policy* allows. The first question that is refused is raised."""
        asked = _findings.questions(policy, region=self._api.region, namespace=self._namespace)
        told = await _together([partial(self._simulate, principal, one) for one in asked])
        return [verdict for part in told for verdict in part]

    async def _simulate(self, principal: str, question: _findings.Question) -> list[Verdict]:
        results: list[Json] = []
        marker: dict[str, str] = {}
        while True:
            page = await self._ask("iam.SimulatePrincipalPolicy", **question.request(principal), **marker)
            results += page.get("EvaluationResults") or ()
            if not page.get("IsTruncated") or not page.get("Marker"):
                return _findings.verdicts(question, {"EvaluationResults": results})
            marker = {"Marker": page["Marker"]}

    # ---- lines, image, stores ----------------------------------------------------------------------------------------

    async def _check_log_group(self) -> list[Finding]:
        group, body = self._plan.log_group, self._plan.definition
        if body is not None and not _log_options(body):
            return []  # that nobody writes there is told of its mode
        region = group.region or self._api.region
        async with self._door(region) as api:
            reply = await self._ask("logs.DescribeLogGroups", api, logGroupNamePrefix=group.name, limit=50)
        if _wire.has_log_group(reply, group.name):
            return [ok("log group", f"{group.name} is there")]
        if group.create and region == self._api.region:  # where the backend makes it
            return [ok("log group", f"{group.name} is not there yet, and made at the first launch")]
        fix = f"make it (aws logs create-log-group --log-group-name {group.name}), or name another"
        return [failed("log group", f"there is no {group.name} in {region}, and tasks do not start without", fix)]

    async def _check_log_mode(self) -> list[Finding]:
        check, body = "log mode", self._plan.definition
        if body is None:
            return [_judge_mode(self._plan.log_group.mode, "task definitions say")]
        found = _log_options(body)
        if not found:
            return [warning(check, "no container writes to CloudWatch Logs, so nobody sees lines", "use awslogs in it")]
        if all(one.get("mode") for one in found):
            modes = {str(one["mode"]) for one in found}
            return [_judge_mode("blocking" if modes == {"blocking"} else "non-blocking", "the task definition says")]
        reply = await self._ask("ecs.ListAccountSettings", name="defaultLogDriverMode", effectiveSettings=True)
        setting: Json = next(iter(reply.get("settings") or ()), {})
        # Amazon ECS API Reference, LogConfiguration: non-blocking unless it is said, since June 25th, 2025.
        return [_judge_mode(str(setting.get("value") or "non-blocking"), "by the account's default, which is")]

    async def _check_images(self) -> list[Finding]:
        return await self._side_by_side(*(("image", partial(self._check_image, name)) for name in self._plan.images))

    async def _check_image(self, name: str) -> list[Finding]:
        image = EcrImage.of(name)
        if image is None:
            return [unknown("image", f"{name} was not looked at; it is pulled over the internet")]
        async with self._door(image.region) as api:
            try:
                reply = await self._ask("ecr.BatchGetImage", api, **image.request())
            except ApiError as exc:
                if exc.trouble is not Trouble.NOT_FOUND:
                    raise
                seen = f"there is no repository {image.repository} in account {image.account}, {image.region}"
                return [failed("image", seen, "make it and push the image, or correct the image's name")]
            digest = _findings.config_of(reply)
            config = await self._config(image, digest, api) if digest else {}
        return [_findings.judge_architecture(name, reply, self._plan.architecture, config)]

    async def _config(self, image: EcrImage, digest: str, api: Api) -> Json:
        """Return what an image says of itself, where its manifest says little; nothing if that cannot be had."""
        layer = {"registryId": image.account, "repositoryName": image.repository, "layerDigest": digest}
        try:
            url = (await self._ask("ecr.GetDownloadUrlForLayer", api, **layer)).get("downloadUrl", "")
            return await anyio.to_thread.run_sync(_downloaded, url, abandon_on_cancel=True)
        except (ApiError, OSError, ValueError) as exc:
            if isinstance(exc, ApiError) and exc.trouble is Trouble.DENIED:
                raise
            return {}

    async def _check_events(self) -> list[Finding]:
        queue, check = self._backend._events, "events"
        if not queue:
            return []
        try:
            by_name = "" if "/" in queue else (await self._ask("sqs.GetQueueUrl", QueueName=queue))["QueueUrl"]
            reply = await self._ask("sqs.GetQueueAttributes", QueueUrl=by_name or queue, AttributeNames=["QueueArn"])
        except ApiError as exc:
            if exc.trouble is not Trouble.NOT_FOUND:
                raise
            fix = f"make it: await EcsBackend('{self._plan.cluster}', events='{queue}').make_events()"
            return [failed(check, f"there is no queue {queue} in {self._api.region}", fix)]
        arn = (reply.get("Attributes") or {}).get("QueueArn", "")
        rules = (await self._ask("events.ListRuleNamesByTarget", TargetArn=arn)).get("RuleNames") or ()
        if not rules:
            fix = "make a rule that does: await backend.make_events()"
            return [warning(check, f"{arn} is there, and no rule of EventBridge sends to it: ends are polled for", fix)]
        states = await _together([partial(self._ask, "events.DescribeRule", Name=rule) for rule in rules[:5]])
        if all(state.get("State") == "DISABLED" for state in states):
            fix = f"enable it (aws events enable-rule --name {rules[0]})"
            return [warning(check, f"{arn} is there, and the rule {some(rules)} is disabled: ends are polled for", fix)]
        return [ok(check, f"{arn} is there, and the rule {some(rules)} sends to it")]

    async def _check_journal(self) -> list[Finding]:
        from fargate_runner._dynamodb import DynamoDBJournal

        journal = self._journal
        if isinstance(journal, str) and journal:
            return await self._look_at_table(DynamoDBJournal(journal.rpartition("/")[2]), journal, self._api)
        if not isinstance(journal, DynamoDBJournal):
            return []
        async with AsyncExitStack() as stack:
            if not journal.is_open:
                await stack.enter_async_context(journal._api.running())
            return await self._look_at_table(journal, journal.name, journal._api)

    async def _look_at_table(self, journal: DynamoDBJournal, name: str, api: Api) -> list[Finding]:
        check = "journal"
        try:
            table = (await self._ask("dynamodb.DescribeTable", api, TableName=name))["Table"]
            journal._check_table(table)
        except ApiError as exc:
            if exc.trouble is not Trouble.NOT_FOUND:
                raise
            fix = f"make it: await DynamoDBJournal('{journal.name}').create_table()"
            return [failed(check, f"there is no table {name} in {api.region}", fix)]
        except JournalError as exc:
            seen, _, fix = str(exc).partition("; ")
            return [failed(check, seen, fix)]
        return [ok(check, f"the table {name} is there")]

    async def _check_spill(self) -> list[Finding]:
        bucket, check = self._backend._bucket, "environments"
        if not bucket:
            return []
        try:
            await self._ask("s3.GetBucketLocation", Bucket=bucket)
        except ApiError as exc:
            if exc.trouble is not Trouble.NOT_FOUND:
                raise
            return [failed(check, f"there is no bucket {bucket}", "make it, or name another place with spill_to")]
        return [ok(check, f"the bucket {bucket} is there")]


async def _together(asks: Sequence[Callable[[], Awaitable[_T]]]) -> list[_T]:
    """Ask side by side; the first failure in order is raised, once all are through."""
    results: dict[int, _T] = {}
    errors: dict[int, BackendError] = {}

    async def ask(number: int) -> None:
        try:
            results[number] = await asks[number]()
        except BackendError as exc:
            errors[number] = exc  # raised below, where no task group wraps it in a group

    async with anyio.create_task_group() as tasks:
        for number in range(len(asks)):
            tasks.start_soon(ask, number)
    if errors:
        raise errors[min(errors)]
    return [results[number] for number in range(len(asks))]


def _downloaded(url: str) -> Json:
    """Return the JSON object at *url*, which ECR gave: a signed one, of S3. For a worker thread."""
    if urlsplit(url).scheme not in {"http", "https"}:
        raise ValueError(f"not the URL of a server: {url!r}")
    with urllib.request.urlopen(url, timeout=_RETRIES) as reply:  # noqa: S310 (its scheme was looked at)
        found = json.loads(reply.read(_LARGEST_CONFIG))
    return found if isinstance(found, Mapping) else {}


# ---- what goes wrong while looking -----------------------------------------------------------------------------------


def _has(exc: BackendError, trouble: Trouble) -> bool:
    return isinstance(exc, ApiError) and exc.trouble is trouble


def _cannot_begin(exc: BackendError) -> Finding:
    """Say why AWS takes no question at all."""
    if isinstance(exc, ApiError):
        return failed("credentials", _said(exc), exc.advice or "log in again")
    seen, _, fix = str(exc).partition(": " if exc.code == "NoRegion" or "known: " in str(exc) else "; ")
    return failed("credentials", seen, fix or _REACH)


def _words(exc: ApiError) -> str:
    """Return AWS's own."""
    return exc.aws_message.strip().rstrip(".") or str(exc.code)


def _said(exc: ApiError) -> str:
    return ": ".join(dict.fromkeys(word for word in (exc.operation, exc.code, _words(exc)) if word))


def _of_error(check: str, exc: BackendError) -> Finding:
    """Say what a question that was not answered means for a check."""
    if not isinstance(exc, ApiError):
        seen, _, fix = str(exc).rpartition("; ") if "; " in str(exc) else (str(exc), "", "")
        return failed(check, seen, fix or _REACH)
    is_plain = exc.advice == _ADVICE[Trouble.DENIED]  # AWS does not say of which action
    if exc.trouble is Trouble.DENIED and (exc.action or is_plain):
        action = exc.action or _action(exc.operation or "")
        fix = f"allow {action} for the credentials in use" if is_plain else exc.advice
        return unknown(check, f"{action} is not allowed", f"{fix} ({_DOCTOR})")
    if exc.trouble in {Trouble.TRANSIENT, Trouble.EXPIRED, Trouble.NOT_FOUND}:
        return failed(check, _said(exc), exc.advice if exc.status and exc.advice else _REACH)
    return unknown(check, _said(exc), exc.advice)


def _action(operation: str) -> str:
    """Return the permission that an operation needs."""
    service, _, name = operation.partition(".")
    return f"{_PREFIXES.get(service, service)}:{name}"


_PREFIXES: Final = {"service-quotas": "servicequotas"}


# ---- AWS's words -----------------------------------------------------------------------------------------------------


def _filter(name: str, value: str) -> dict[str, Any]:
    return {"Name": name, "Values": [value]}


def _judge_mode(mode: str, whose: str) -> Finding:
    if mode == "blocking":
        return ok("log mode", f"{whose} blocking: no line is lost")
    fix = "say mode 'blocking' (LogGroup's default), or a larger buffer"
    return warning("log mode", f"{whose} {mode}: lines are dropped when a job writes faster than they are sent", fix)


def _log_options(body: Json) -> list[Json]:
    """Return the options of the containers of a definition that write to CloudWatch Logs."""
    logs = [part.get("logConfiguration") or {} for part in body.get("containerDefinitions") or ()]
    return [log.get("options") or {} for log in logs if log.get("logDriver") == "awslogs"]


def _of_definition(body: Json, own: str, plan: _Plan, job: Job | None) -> dict[str, Any]:
    """Return what of a plan an existing definition says; what a launch overrides stays."""
    parts: list[Json] = sorted(body["containerDefinitions"], key=lambda part: part.get("name") != own)  # our own first
    platform = body.get("runtimePlatform") or {}
    log = next(iter(_log_options({"containerDefinitions": parts})), {})
    changes: dict[str, Any] = {
        "definition": body,
        "images": tuple(dict.fromkeys(str(part["image"]) for part in parts if part.get("image"))),
        "architecture": platform.get("cpuArchitecture") or ("X86_64" if plan.is_on_fargate else ""),
        "roles": plan.roles.over(Roles(execution=body.get("executionRoleArn"), task=body.get("taskRoleArn"))),
        "secrets": tuple(
            str(secret["valueFrom"])
            for part in parts
            for secret in part.get("secrets") or ()
            if secret.get("valueFrom")
        ),
    }
    if (job is None or (job.vcpu is None and job.memory_gib is None)) and str(body.get("cpu", "")).isdigit():
        changes["vcpu"] = int(body["cpu"]) / 1024
    if log.get("awslogs-group"):
        changes["log_group"] = LogGroup(
            name=log["awslogs-group"],
            create=False,
            stream_prefix=log.get("awslogs-stream-prefix") or plan.log_group.stream_prefix,
            region=log.get("awslogs-region"),
        )
    return changes
