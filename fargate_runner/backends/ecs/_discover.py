"""
Where to run when nobody said it: found in the environment, in the ECS task that we run in, or in AWS.

Each part is looked for by itself, in this order, and whoever may not read one source goes on with the next. What was
chosen is told with where it came from; what was not found is told with how to set it.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias

import anyio.to_thread
import attrs

from fargate_runner._errors import BackendUnavailable, InvalidJob
from fargate_runner.backends.ecs import _wire
from fargate_runner.backends.ecs._api import Api, ApiError, Trouble
from fargate_runner.backends.ecs._config import LogGroup, Network, Roles

__all__ = ["Discovered", "discover", "look_around"]

Json: TypeAlias = Mapping[str, Any]
ReadMetadata: TypeAlias = Callable[[str], Awaitable[Json]]

_PREFIX: Final = "FARGATE_RUNNER_"
_METADATA: Final = "ECS_CONTAINER_METADATA_URI_V4"
_METADATA_TIMEOUT: Final = 2.0
"""Seconds: it is on the same host."""
_MOST_SUBNETS: Final = 16
"""What RunTask takes (Amazon ECS API Reference, AwsVpcConfiguration)."""
_YES_OR_NO: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_HELP: Final = {
    "cluster": f"set {_PREFIX}CLUSTER, or say EcsBackend('name')",
    "network": f"set {_PREFIX}SUBNETS (with commas between them), or say network=Network(subnets=[…])",
}


@attrs.frozen(kw_only=True)
class Discovered:
    """
    What was found. ``why`` has a plain sentence for each choice: what, and from where. ``missing`` has for each part
    that was not found, ``cluster`` or ``network``, why, and how to set it.
    """

    cluster: str
    network: Network | None = None
    roles: Roles | None = None
    log_group: LogGroup | None = None
    why: tuple[str, ...] = ()
    missing: Mapping[str, tuple[str, str]] = attrs.field(factory=dict[str, tuple[str, str]])


async def discover(
    api: Api,
    *,
    cluster: str | None = None,
    network: Network | None = None,
    environ: Mapping[str, str] | None = None,
    read_metadata: ReadMetadata | None = None,
) -> Discovered:
    """
    Return what to use for whatever is not said: *cluster* and *network* if they are.

    :raises BackendUnavailable: a part is found nowhere; lists each, why, and how to set it
    :raises InvalidJob: a variable of the environment is not what it should be
    :raises ApiError: AWS did not answer for minutes
    """
    found = await look_around(api, cluster=cluster, network=network, environ=environ, read_metadata=read_metadata)
    if found.missing:
        missing = [f"{part}: {why}; {fix}" for part, (why, fix) in found.missing.items()]
        raise BackendUnavailable(f"not everything was found that ECS needs. {'. '.join(missing)}", code="NotFound")
    return found


async def look_around(
    api: Api,
    *,
    cluster: str | None = None,
    network: Network | None = None,
    environ: Mapping[str, str] | None = None,
    read_metadata: ReadMetadata | None = None,
    patience: float = float("inf"),
) -> Discovered:
    """
    Return what `discover` does, and what is missing as well. *patience* is how long AWS may be in trouble, in seconds.

    :raises InvalidJob: a variable of the environment is not what it should be
    :raises ApiError: AWS did not answer
    """
    environ = os.environ if environ is None else environ
    search = _Search(api, environ, read_metadata or _read_metadata, patience)
    found_cluster = cluster or await search.cluster()
    found_network = network or await search.network()
    parts = {"cluster": found_cluster, "network": found_network}
    return Discovered(
        cluster=found_cluster,
        network=found_network,
        roles=await search.roles(),
        log_group=search.log_group(),
        why=tuple(search.why),
        missing={part: ("; ".join(search.missed[part]), _HELP[part]) for part, found in parts.items() if not found},
    )


class _Search:
    """One search: what was chosen so far and why, and what is known of the task that we run in."""

    def __init__(self, api: Api, environ: Mapping[str, str], read_metadata: ReadMetadata, patience: float) -> None:
        self._api = api
        self._patience = patience
        self._environ = environ
        self._read_metadata = read_metadata
        self._metadata: Json | None = None
        self._task: Json | None = None
        self.why: list[str] = []
        self.missed: dict[str, list[str]] = {part: [] for part in ("cluster", "network", "roles")}
        """Why a part was not found, source by source."""

    def _said(self, name: str) -> str:
        return self._environ.get(_PREFIX + name, "").strip()

    async def _asked(self, part: str, operation: str, **request: Any) -> Json | None:
        """Ask AWS for the sake of a part; None if it refuses."""
        try:
            return await self._api.call(operation, self._patience, self._patience, **request)
        except ApiError as exc:
            if exc.retryable:
                raise  # that it did not answer does not mean that there is nothing
            self.missed[part].append(_why_not(operation, exc))
            return None

    # ---- cluster ---------------------------------------------------------------------------------------------------

    async def cluster(self) -> str:
        if said := self._said("CLUSTER"):
            self.why.append(f"cluster {said}: from {_PREFIX}CLUSTER")
            return said
        if own := str((await self._own_metadata("cluster")).get("Cluster") or ""):
            self.why.append(f"cluster {_wire.cluster_name(own)}: the one that the task runs in which we are part of")
            return own
        names = await self._clusters()
        if "default" in names:
            self.why.append("cluster default: it is there, and nothing else was said")
            return "default"
        if len(names) == 1:
            self.why.append(f"cluster {names[0]}: the only one in {self._api.region}")
            return names[0]
        if names:
            some = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            self.missed["cluster"].append(
                f"there are {len(names)} in {self._api.region} and none is 'default' ({some})"
            )
        else:
            self.missed["cluster"].append(f"no active one was found in {self._api.region}")
        return ""

    async def _clusters(self) -> list[str]:
        """Return the names of what may be meant: ``default``, or all active ones."""
        default = await self._asked("cluster", "ecs.DescribeClusters", clusters=["default"])
        if default is not None and (names := list(_active_clusters(default))):
            return names
        names = []
        token: dict[str, str] = {}
        while True:
            page = await self._asked("cluster", "ecs.ListClusters", maxResults=100, **token)
            arns = list((page or {}).get("clusterArns", ()))
            described = await self._asked("cluster", "ecs.DescribeClusters", clusters=arns) if arns else {}
            # Who may list them and not describe them sees the inactive ones as well, which ECS soon drops.
            names += map(_wire.cluster_name, arns) if described is None else _active_clusters(described)
            if not page or not page.get("nextToken"):
                return sorted(names)
            token = {"nextToken": page["nextToken"]}

    # ---- network ---------------------------------------------------------------------------------------------------

    async def network(self) -> Network | None:
        groups, public = self._said("SECURITY_GROUPS"), self._public_ip()
        found_groups: tuple[str, ...] = ()
        found_public = False
        if said := self._said("SUBNETS"):
            subnets = _words(said)
            why = f"from {_PREFIX}SUBNETS"
        elif (own := await self._own_network()) is not None:
            subnets, found_groups, found_public, why = own
        elif default := await self._default_subnets():
            subnets, found_public = default, True
            why = "the default subnets of the default VPC, which are public"
        else:
            return None
        network = _valid(
            subnets=subnets,
            security_groups=_words(groups) if groups else found_groups,
            public_ip=found_public if public is None else public,
        )
        self.why.append(f"subnets {', '.join(network.subnets)}: {why}")
        if groups:
            self.why.append(f"security groups {', '.join(network.security_groups)}: from {_PREFIX}SECURITY_GROUPS")
        elif network.security_groups:
            self.why.append(f"security groups {', '.join(network.security_groups)}: those of the task that we run in")
        else:
            self.why.append("security groups: the VPC's default one, because none was said")
        given = "a public IP" if network.public_ip else "no public IP"
        self.why.append(f"{given}: {f'from {_PREFIX}PUBLIC_IP' if public is not None else 'as fits the subnets'}")
        return network

    def _public_ip(self) -> bool | None:
        said = self._said("PUBLIC_IP")
        if not said:
            return None
        if said.lower() not in _YES_OR_NO:
            raise InvalidJob(f"{_PREFIX}PUBLIC_IP", said, "neither yes nor no", "write true or false")
        return _YES_OR_NO[said.lower()]

    async def _own_network(self) -> tuple[tuple[str, ...], tuple[str, ...], bool, str] | None:
        """Return subnet, security groups, public IP and the reason, from the interface of the task that we run in."""
        details = _interface_of(await self._own_task("network"))
        if "subnetId" not in details:
            return None
        why = "that of the task that we run in"
        reply = None
        if eni := details.get("networkInterfaceId"):
            reply = await self._asked("network", "ec2.DescribeNetworkInterfaces", NetworkInterfaceIds=[eni])
        interface = next(iter((reply or {}).get("NetworkInterfaces", ())), None)
        if interface is None:
            why += " (its interface could not be read, so security groups and public IP are the defaults)"
            return (details["subnetId"],), (), False, why
        groups = tuple(group["GroupId"] for group in interface.get("Groups", ()))
        public = bool(interface.get("Association", {}).get("PublicIp"))
        return (details["subnetId"],), groups, public, why

    async def _default_subnets(self) -> tuple[str, ...]:
        vpcs = await self._asked("network", "ec2.DescribeVpcs", Filters=[_filter("is-default", "true")])
        if vpcs is None:
            return ()
        ids = [vpc["VpcId"] for vpc in vpcs.get("Vpcs", ())]
        if not ids:
            self.missed["network"].append(f"there is no default VPC in {self._api.region}")
            return ()
        only = [_filter("vpc-id", ids[0]), _filter("default-for-az", "true")]
        reply = await self._asked("network", "ec2.DescribeSubnets", Filters=only)
        if reply is None:
            return ()
        subnets = sorted((subnet["AvailabilityZone"], subnet["SubnetId"]) for subnet in reply.get("Subnets", ()))
        if not subnets:
            self.missed["network"].append(f"the default VPC {ids[0]} has no default subnets")
        return tuple(subnet for _, subnet in subnets)[:_MOST_SUBNETS]

    # ---- roles and log group ---------------------------------------------------------------------------------------

    async def roles(self) -> Roles | None:
        execution, task = self._said("EXECUTION_ROLE"), self._said("TASK_ROLE")
        own = Roles() if execution and task else await self._own_roles()
        for variable, role, found in (("EXECUTION_ROLE", execution, own.execution), ("TASK_ROLE", task, own.task)):
            kind = variable.partition("_")[0].lower()
            if role:
                _check_role(variable, role)
                self.why.append(f"{kind} role {role}: from {_PREFIX}{variable}")
            elif found:
                self.why.append(f"{kind} role {found}: that of the task that we run in")
        roles = Roles(execution=execution or own.execution, task=task or own.task)
        return None if roles == Roles() else roles

    async def _own_roles(self) -> Roles:
        task = await self._own_task("roles")
        if not task:
            return Roles()
        said: Json = {}
        if definition := _wire.definition_arn(task):
            reply = await self._asked("roles", "ecs.DescribeTaskDefinition", taskDefinition=definition)
            said = (reply or {}).get("taskDefinition", {})
        found = {name: role for name, role in {**said, **task.get("overrides", {})}.items() if role}
        try:
            return Roles(execution=found.get("executionRoleArn"), task=found.get("taskRoleArn"))
        except InvalidJob as exc:  # AWS's own words are no mistake of the user's
            self.missed["roles"].append(str(exc))
            return Roles()

    def log_group(self) -> LogGroup | None:
        said = self._said("LOG_GROUP")
        if not said:
            return None
        try:
            group = LogGroup(name=said)
        except InvalidJob as exc:
            raise InvalidJob(f"{_PREFIX}LOG_GROUP", said, exc.problem, exc.fix) from exc
        self.why.append(f"log group {said}: from {_PREFIX}LOG_GROUP")
        return group

    # ---- the task that we run in -----------------------------------------------------------------------------------

    async def _own_metadata(self, part: str) -> Json:
        """Return what the metadata endpoint says of the task that we run in; nothing if we run in none."""
        if self._metadata is not None:
            return self._metadata
        found: Json = {}
        if url := self._environ.get(_METADATA, ""):
            try:
                found = await self._read_metadata(f"{url}/task")
            except (OSError, ValueError) as exc:
                self.missed[part].append(f"the metadata of the task that we run in could not be read ({exc})")
        self._metadata = found
        return found

    async def _own_task(self, part: str) -> Json:
        """Return what ECS says of the task that we run in; nothing if we run in none."""
        metadata = await self._own_metadata(part)
        arn, cluster = str(metadata.get("TaskARN", "")), str(metadata.get("Cluster", ""))
        if self._task is not None:
            return self._task
        found: Json = {}
        if _wire.is_task_arn(arn):
            reply = await self._asked(part, "ecs.DescribeTasks", cluster=cluster or "default", tasks=[arn])
            found = next(iter((reply or {}).get("tasks", ())), {})
        self._task = found
        return found


def _why_not(operation: str, exc: ApiError) -> str:
    if exc.trouble is Trouble.DENIED:
        return f"{exc.action or operation.replace('.', ':')} is not allowed for the credentials in use"
    return str(exc)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for part in text.split(",") if (word := part.strip()))


_VARIABLE_OF: Final = {
    "network.subnets": f"{_PREFIX}SUBNETS",
    "network.security_groups": f"{_PREFIX}SECURITY_GROUPS",
}


def _valid(**parts: Any) -> Network:
    try:
        return Network(**parts)
    except InvalidJob as exc:
        raise InvalidJob(_VARIABLE_OF.get(exc.field, exc.field), exc.value, exc.problem, exc.fix) from exc


def _check_role(variable: str, role: str) -> None:
    try:
        Roles(**{variable.partition("_")[0].lower(): role})
    except InvalidJob as exc:
        raise InvalidJob(_PREFIX + variable, role, exc.problem, exc.fix) from exc


# ---- AWS's words ---------------------------------------------------------------------------------------------------


def _active_clusters(reply: Json) -> Iterator[str]:
    for cluster in reply.get("clusters", ()):
        if cluster.get("status") == "ACTIVE":
            yield str(cluster["clusterName"])


def _interface_of(task: Json) -> dict[str, str]:
    """Return the details of a task's network interface; nothing if it has none of its own."""
    for attachment in task.get("attachments", ()):
        if attachment.get("type") in {"ElasticNetworkInterface", "eni"}:
            return {detail["name"]: detail["value"] for detail in attachment.get("details", ()) if "value" in detail}
    return {}


def _filter(name: str, value: str) -> dict[str, Any]:
    return {"Name": name, "Values": [value]}


async def _read_metadata(url: str) -> Json:
    return await anyio.to_thread.run_sync(_get, url)


def _get(url: str) -> Json:
    if not url.startswith("http://"):
        raise ValueError(f"{url!r} is not the URL of the metadata endpoint")
    # It is on a link-local address: no proxy leads there.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=_METADATA_TIMEOUT) as reply:
        answered = json.loads(reply.read())
    if not isinstance(answered, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 (to its caller it is as bad as no JSON)
    return answered
