"""
The ECS verbs over the world: what AWS accepts, in which words it refuses, and what it remembers of a launch.

Where AWS's wording is not known, the message says what is wrong; its code is AWS's. Clients go by codes.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Final, Protocol

import attrs

from fargate_runner.testing.aws import _definitions
from fargate_runner.testing.aws._definitions import check_tags, checked_definition, container_total, size_in
from fargate_runner.testing.aws._logs import PageTokens
from fargate_runner.testing.aws._model import Checked, check_shape
from fargate_runner.testing.aws._quotas import FARGATE_RUN_TASK, LAUNCHES, Quotas
from fargate_runner.testing.aws._script import ContainerRun
from fargate_runner.testing.aws._service import AwsError, Clock, Service
from fargate_runner.testing.aws._task import Container, LogTarget, Task
from fargate_runner.testing.aws._world import World

__all__ = ["EcsService", "Values"]

_FARGATE: Final = ("FARGATE", "FARGATE_SPOT")
_MOST_OVERRIDES: Final = 8192
_DAY: Final = 24 * 3600.0
_HOUR: Final = 3600.0
_REPLAY_MEMBERS: Final = ("taskArn", "lastStatus", "desiredStatus")
_LONGEST_STARTED_BY: Final = 128
_TOKEN: Final = re.compile(r"[!-~]{1,64}")
_CLUSTER_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,255}")
_ENV_LINE: Final = re.compile(r"([^#=\s][^=]*)=(.*)")
_CHECKED: Final = partial(Checked, shape="Task")
_VCPU_LIMIT: Final = (
    "You\N{RIGHT SINGLE QUOTATION MARK}ve reached the limit on the number of vCPUs you can run concurrently"
)

# What ListAccountSettings says of an account that has changed nothing.
_SETTINGS: Final = {
    "awsvpcTrunking": "disabled",
    "containerInsights": "disabled",
    "containerInstanceLongArnFormat": "enabled",
    "defaultLogDriverMode": "non-blocking",
    "dualStackIPv6": "enabled",
    "fargateFIPSMode": "disabled",
    "fargateTaskRetirementWaitPeriod": "7",
    "guardDutyActivate": "off",
    "serviceLongArnFormat": "enabled",
    "tagResourceAuthorization": "off",
    "taskLongArnFormat": "enabled",
}


class Values(Protocol):
    """Where secrets and environment files come from."""

    async def secret(self, value_from: str) -> str:
        """
        Return what a container's ``secrets[].valueFrom`` stands for.

        :raises AwsError: it cannot be had
        """
        ...

    async def env_file(self, arn: str) -> str:
        """
        Return the text of an environment file on S3.

        :raises AwsError: it cannot be had
        """
        ...


@attrs.define(kw_only=True)
class _Cluster:
    name: str
    arn: str
    providers: list[str] = attrs.field(factory=list)
    strategy: list[dict[str, Any]] = attrs.field(factory=list)
    settings: list[dict[str, str]] = attrs.field(factory=lambda: [{"name": "containerInsights", "value": "disabled"}])
    configuration: dict[str, Any] | None = None
    active: bool = True


@attrs.define(kw_only=True)
class _Remembered:
    """A RunTask that was answered under a token."""

    asked: str = attrs.field(repr=False)  # with the values of the environment
    made_at: float
    tasks: list[Task]
    failures: list[dict[str, Any]]

    def lives(self, now: float) -> bool:
        """Whether the token still stands for it: a day, and an hour after the end of its last task."""
        if now >= self.made_at + _DAY:
            return False
        ends = [task.times.get("stoppedAt") for task in self.tasks]
        if not ends:
            return now < self.made_at + _HOUR
        return any(end is None or now < end + _HOUR for end in ends)


def _invalid(message: str, **members: Any) -> AwsError:
    return AwsError("InvalidParameterException", message, **members)


def _client(message: str) -> AwsError:
    return AwsError("ClientException", message)


class EcsService(Service):
    """Amazon ECS, as far as one-off tasks go."""

    name: ClassVar[str] = "ecs"

    def __init__(
        self,
        clock: Clock,
        world: World,
        *,
        region: str = "us-east-1",
        account: str = "123456789012",
        seed: int = 0,
        quotas: Quotas | None = None,
        take: Callable[[str, float], bool] = lambda _bucket, _tokens: True,
        values: Values | None = None,
        validate: bool = True,
    ) -> None:
        self.world = world
        self.quotas = quotas or Quotas.unlimited()
        self.values = values
        """Where secrets and environment files come from; None: every one is empty."""
        self.only_known_networks = False
        """Whether subnets and security groups must be among ``world.subnets`` and ``world.security_groups``."""
        self.shortage: Callable[[str], str | None] = lambda _provider: None
        """Asked for each task that is to be placed: why there is no room for it, beside ``world.capacity``."""
        self.strict_list_filters = True
        """Whether ListTasks takes ``startedBy`` as the only filter, as its reference says."""

        self._clock = clock
        self._region = region
        self._account = account
        self._take = take
        self._validate = validate
        self._clusters: dict[str, _Cluster] = {}
        self._definitions: dict[str, list[dict[str, Any]]] = {}
        self._gone: dict[str, int] = {}
        self._tags: dict[str, dict[str, str]] = {}
        self._providers: dict[str, dict[str, Any]] = {}
        self._settings = dict(_SETTINGS)
        self._remembered: dict[tuple[str, str], _Remembered] = {}
        self._pages = PageTokens(clock, seed=f"{seed}/ecs", code="InvalidParameterException", message="Invalid token")

    # ---- clusters ----

    def add_cluster(self, name: str, providers: Iterable[str] = _FARGATE) -> str:
        """Make a cluster that was always there, and return its ARN."""
        arn = self._arn(f"cluster/{name}")
        self._clusters[name] = _Cluster(name=name, arn=arn, providers=list(providers))
        return arn

    async def create_cluster(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name = request.get("clusterName") or "default"
        if not _CLUSTER_NAME.fullmatch(name):
            raise _invalid(
                "Identifier: up to 255 letters (uppercase and lowercase), numbers, underscores, and hyphens are "
                "allowed."
            )
        known = self._clusters.get(name)
        if known is None or not known.active:
            tags = check_tags(request.get("tags", []))
            self._check_providers(request.get("capacityProviders", []))
            self.add_cluster(name, request.get("capacityProviders", []))
            known = self._clusters[name]
            known.strategy = self._checked_strategy(known, request.get("defaultCapacityProviderStrategy", []))
            known.configuration = copy.deepcopy(request.get("configuration"))
            self._tags[known.arn] = tags
        if "settings" in request:
            known.settings = copy.deepcopy(request["settings"])
        return {"cluster": self._describe_cluster(known, {"SETTINGS", "TAGS", "CONFIGURATIONS"})}

    async def describe_clusters(self, request: Mapping[str, Any]) -> dict[str, Any]:
        found: list[dict[str, Any]] = []
        failures: list[dict[str, Any]] = []
        if len(request.get("clusters", [])) > 100:
            raise _invalid("Clusters cannot have more than 100 elements.")
        for name in request.get("clusters") or ["default"]:
            cluster = self._clusters.get(name.rpartition("/")[2])
            if cluster is None:
                failures.append({"arn": self._arn(f"cluster/{name.rpartition('/')[2]}"), "reason": "MISSING"})
            else:
                found.append(self._describe_cluster(cluster, set(request.get("include", []))))
        return {"clusters": found, "failures": failures}

    async def list_clusters(self, request: Mapping[str, Any]) -> dict[str, Any]:
        arns = sorted(cluster.arn for cluster in self._clusters.values() if cluster.active)
        return self._page(request, "clusterArns", "clusters", [(arn, arn) for arn in arns])

    async def delete_cluster(self, request: Mapping[str, Any]) -> dict[str, Any]:
        cluster = self._cluster(request["cluster"])
        if any(not task.stopped for task in self.world.listed(cluster.arn)):
            raise AwsError("ClusterContainsTasksException", "The Cluster cannot be deleted while Tasks are active.")
        cluster.active = False
        return {"cluster": self._describe_cluster(cluster, set())}

    async def update_cluster(self, request: Mapping[str, Any]) -> dict[str, Any]:
        cluster = self._cluster(request["cluster"])
        if "settings" in request:
            cluster.settings = copy.deepcopy(request["settings"])
        if "configuration" in request:
            cluster.configuration = copy.deepcopy(request["configuration"])
        return {"cluster": self._describe_cluster(cluster, {"SETTINGS", "TAGS", "CONFIGURATIONS"})}

    async def update_cluster_settings(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return await self.update_cluster(request)

    async def put_cluster_capacity_providers(self, request: Mapping[str, Any]) -> dict[str, Any]:
        cluster = self._cluster(request["cluster"])
        self._check_providers(request["capacityProviders"])
        before, cluster.providers = cluster.providers, list(request["capacityProviders"])
        try:
            cluster.strategy = self._checked_strategy(cluster, request["defaultCapacityProviderStrategy"])
        except AwsError:
            cluster.providers = before
            raise
        return {"cluster": self._describe_cluster(cluster, set())}

    def _cluster(self, name: str | None) -> _Cluster:
        """Return an active cluster by its name or ARN; none given is ``default``."""
        cluster = self._clusters.get((name or "default").rpartition("/")[2])
        if cluster is None or not cluster.active or (name and ":" in name and name != cluster.arn):
            raise AwsError("ClusterNotFoundException", "Cluster not found.")
        return cluster

    def _describe_cluster(self, cluster: _Cluster, include: set[str]) -> dict[str, Any]:
        tasks = list(self.world.listed(cluster.arn))
        shown: dict[str, Any] = {
            "clusterArn": cluster.arn,
            "clusterName": cluster.name,
            "status": "ACTIVE" if cluster.active else "INACTIVE",
            "registeredContainerInstancesCount": 0,
            "runningTasksCount": sum(task.status == "RUNNING" for task in tasks),
            "pendingTasksCount": sum(task.status in {"PROVISIONING", "PENDING", "ACTIVATING"} for task in tasks),
            "activeServicesCount": 0,
            "statistics": [],
            "tags": [],
            "settings": [],
            "capacityProviders": list(cluster.providers),
            "defaultCapacityProviderStrategy": copy.deepcopy(cluster.strategy),
        }
        if "STATISTICS" in include:
            fargate = [task for task in tasks if task.launch_type == "FARGATE"]
            running = sum(task.status == "RUNNING" for task in fargate)
            pending = sum(task.status in {"PROVISIONING", "PENDING", "ACTIVATING"} for task in fargate)
            shown["statistics"] = [
                {"name": "runningFargateTasksCount", "value": str(running)},
                {"name": "pendingFargateTasksCount", "value": str(pending)},
            ]
        if "TAGS" in include:
            shown["tags"] = _tag_list(self._tags.get(cluster.arn, {}))
        if "SETTINGS" in include:
            shown["settings"] = copy.deepcopy(cluster.settings)
        if "CONFIGURATIONS" in include and cluster.configuration:
            shown["configuration"] = copy.deepcopy(cluster.configuration)
        return shown

    # ---- capacity providers ----

    async def create_capacity_provider(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name = request["name"]
        if not _CLUSTER_NAME.fullmatch(name) or name.lower().startswith(("aws", "ecs", "fargate")):
            raise _invalid(f"The capacity provider name {name} is not valid.")
        managed = request.get("managedInstancesProvider")
        if (managed is None) == (request.get("autoScalingGroupProvider") is None):
            raise _invalid("Exactly one of autoScalingGroupProvider and managedInstancesProvider must be given.")
        arn = self._arn(f"capacity-provider/{name}")
        self._tags[arn] = check_tags(request.get("tags", []))
        provider: dict[str, Any] = {
            "capacityProviderArn": arn,
            "name": name,
            "status": "ACTIVE",
            "type": "EC2_AUTOSCALING" if managed is None else "MANAGED_INSTANCES",
        }
        if managed is None:
            provider["autoScalingGroupProvider"] = copy.deepcopy(request["autoScalingGroupProvider"])
        else:
            cluster = self._cluster(request.get("cluster"))
            provider["cluster"] = cluster.name
            provider["managedInstancesProvider"] = copy.deepcopy(managed)
            cluster.providers.append(name)
        self._providers[name] = provider
        return {"capacityProvider": {**provider, "tags": _tag_list(self._tags[arn])}}

    async def delete_capacity_provider(self, request: Mapping[str, Any]) -> dict[str, Any]:
        provider = self._providers.pop(request["capacityProvider"].rpartition("/")[2], None)
        if provider is None:
            raise _invalid("The specified capacity provider does not exist. Specify a valid name or ARN and try again.")
        for cluster in self._clusters.values():
            if provider["name"] in cluster.providers:
                cluster.providers.remove(provider["name"])
        return {"capacityProvider": {**provider, "status": "INACTIVE"}}

    async def describe_capacity_providers(self, request: Mapping[str, Any]) -> dict[str, Any]:
        own = {
            name: {
                "capacityProviderArn": self._arn(f"capacity-provider/{name}"),
                "name": name,
                "status": "ACTIVE",
                "type": name,
            }
            for name in _FARGATE
        }
        known = own | self._providers
        asked = [name.rpartition("/")[2] for name in request.get("capacityProviders") or known]
        return {
            "capacityProviders": [
                {**known[name], "tags": _tag_list(self._tags.get(str(known[name]["capacityProviderArn"]), {}))}
                for name in asked
                if name in known
            ],
            "failures": [
                {"arn": self._arn(f"capacity-provider/{name}"), "reason": "MISSING"}
                for name in asked
                if name not in known
            ],
        }

    def _check_providers(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in _FARGATE and name not in self._providers:
                raise _invalid(
                    "The specified capacity provider does not exist. Specify a valid name or ARN and try again."
                )

    def _checked_strategy(self, cluster: _Cluster, strategy: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        items = [{"weight": 0, "base": 0, **item} for item in strategy]
        if len(items) > 20:
            raise _invalid("A capacity provider strategy can contain a maximum of 20 capacity providers.")
        for item in items:
            if item["capacityProvider"] not in cluster.providers:
                raise _invalid(
                    "The specified capacity provider strategy cannot contain a capacity provider that is not "
                    "associated with the cluster. Associate the capacity provider with the cluster and try again."
                )
        names = [item["capacityProvider"] for item in items]
        if len(set(names)) != len(names):
            raise _invalid("A capacity provider strategy cannot contain a capacity provider twice.")
        if len({name in _FARGATE for name in names}) > 1:
            raise _invalid(
                "The specified capacity provider strategy cannot contain both Fargate and EC2 capacity providers."
            )
        if sum(item["base"] > 0 for item in items) > 1:
            raise _invalid("Only one capacity provider in a capacity provider strategy can have a base defined.")
        if items and not any(item["weight"] for item in items):
            raise _invalid("At least one capacity provider in the strategy must have a weight value greater than zero.")
        return items

    # ---- task definitions ----

    async def register_task_definition(self, request: Mapping[str, Any]) -> dict[str, Any]:
        tags = check_tags(request.get("tags", []))
        definition = checked_definition(request)
        family = definition["family"]
        known = self._definitions.setdefault(family, [])
        revision = self._gone.get(family, 0) + len(known) + 1
        definition |= {
            "taskDefinitionArn": self._arn(f"task-definition/{family}:{revision}"),
            "revision": revision,
            "status": "ACTIVE",
            "registeredAt": self.world.moment(self.world.now()),
            "registeredBy": f"arn:aws:iam::{self._account}:user/fake",
        }
        known.append(definition)
        self._tags[definition["taskDefinitionArn"]] = tags
        shown: dict[str, Any] = {"taskDefinition": copy.deepcopy(definition)}
        return shown | ({"tags": _tag_list(tags)} if tags else {})

    async def describe_task_definition(self, request: Mapping[str, Any]) -> dict[str, Any]:
        definition = self._definition(request["taskDefinition"])
        if definition is None:
            raise _client("Unable to describe task definition.")
        shown: dict[str, Any] = {"taskDefinition": copy.deepcopy(definition)}
        if "TAGS" in request.get("include", []):
            shown["tags"] = _tag_list(self._tags[definition["taskDefinitionArn"]])
        return shown

    async def deregister_task_definition(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if ":" not in request["taskDefinition"].rpartition("/")[2]:
            raise _invalid("Invalid revision number. Number: null")
        definition = self._definition(request["taskDefinition"])
        if definition is None:
            raise _client("Unable to describe task definition.")
        if definition["status"] != "ACTIVE":
            raise _client(
                "The specified task definition is inactive. You may only deregister task definitions that are active."
            )
        definition["status"] = "INACTIVE"
        definition["deregisteredAt"] = self.world.moment(self.world.now())
        return {"taskDefinition": copy.deepcopy(definition)}

    async def delete_task_definitions(self, request: Mapping[str, Any]) -> dict[str, Any]:
        names = request["taskDefinitions"]
        if not 1 <= len(names) <= 10:
            raise _invalid("Between 1 and 10 task definitions can be deleted at once.")
        deleted: list[dict[str, Any]] = []
        failures: list[dict[str, Any]] = []
        for name in names:
            definition = self._definition(name)
            if definition is None or ":" not in name.rpartition("/")[2]:
                failures.append({"arn": name, "reason": "The specified task definition does not exist."})
            elif definition["status"] == "ACTIVE":
                reason = (
                    "The specified task definition is still in ACTIVE status. "
                    "Please deregister the target and try again."
                )
                failures.append({"arn": definition["taskDefinitionArn"], "reason": reason})
            else:
                definition["status"] = "DELETE_IN_PROGRESS"
                deleted.append(copy.deepcopy(definition))
        return {"taskDefinitions": deleted, "failures": failures}

    async def list_task_definitions(self, request: Mapping[str, Any]) -> dict[str, Any]:
        # The prefix is a whole family here, whatever its name says; in ListTaskDefinitionFamilies it is a prefix.
        family, status = request.get("familyPrefix"), request.get("status", "ACTIVE")
        found = [
            (f"{name} {definition['revision']:09d}", definition["taskDefinitionArn"])
            for name in ([family] if family else sorted(self._definitions))
            for definition in self._definitions.get(name, ())
            if definition["status"] == status
        ]
        down = request.get("sort") == "DESC"
        return self._page(request, "taskDefinitionArns", f"definitions {family} {status} {down}", found, down=down)

    async def list_task_definition_families(self, request: Mapping[str, Any]) -> dict[str, Any]:
        prefix, status = request.get("familyPrefix", ""), request.get("status", "ALL")
        active = {
            family: any(definition["status"] == "ACTIVE" for definition in definitions)
            for family, definitions in self._definitions.items()
        }
        found = [
            (family, family)
            for family in sorted(active)
            if family.startswith(prefix) and (status == "ALL" or active[family] == (status == "ACTIVE"))
        ]
        return self._page(request, "families", f"families {prefix} {status}", found)

    def _definition(self, name: str) -> dict[str, Any] | None:
        """Return a definition by its ARN, ``family:revision``, or ``family``: the latest active one."""
        if name.startswith("arn:") and not name.startswith(self._arn("task-definition/")):
            return None
        family, _, revision = name.rpartition("/")[2].partition(":")
        known = self._definitions.get(family, [])
        if not revision:
            return next((each for each in reversed(known) if each["status"] == "ACTIVE"), None)
        if not revision.isdecimal():
            raise _invalid(f"Invalid revision number. Number: {revision}")
        return next((each for each in known if each["revision"] == int(revision)), None)

    # ---- launching ----

    async def run_task(self, request: Mapping[str, Any]) -> dict[str, Any]:
        cluster = self._cluster(request.get("cluster"))
        token = request.get("clientToken")
        if token is not None and not _TOKEN.fullmatch(token):
            raise _invalid("Invalid client token: up to 64 ASCII characters in the range of 33-126 are allowed.")
        asked = _canonical(request)
        if (remembered := self._known_under(cluster, token)) is not None:
            return self._replay(remembered, asked)
        launch = self._checked_launch(cluster, copy.deepcopy(dict(request)))
        environment = await self._environments(launch)
        # Fetching secrets may have taken a while, and somebody else may have come with the same token.
        if (remembered := self._known_under(cluster, token)) is not None:
            return self._replay(remembered, asked)
        reply = self._launch(cluster, launch, token, environment)
        if token is not None:
            tasks = [self.world.tasks[task["taskArn"]] for task in reply["tasks"]]
            self._remembered[cluster.arn, token] = _Remembered(
                asked=asked, made_at=self.world.now(), tasks=tasks, failures=reply["failures"]
            )
        return reply

    def _known_under(self, cluster: _Cluster, token: str | None) -> _Remembered | None:
        """Return what was answered under a token that still stands for it."""
        remembered = self._remembered.get((cluster.arn, token)) if token is not None else None
        return remembered if remembered is not None and remembered.lives(self.world.now()) else None

    def _replay(self, remembered: _Remembered, asked: str) -> dict[str, Any]:
        if remembered.asked != asked:
            raise AwsError(
                "ConflictException",
                "The request could not be processed because of conflict in the current state of the resource: "
                "the client token was used with other parameters.",
                resourceIds=[task.arn for task in remembered.tasks],
            )
        tasks: list[dict[str, Any]] = []
        for task in remembered.tasks:
            shown = self._show(task, tags=True)
            tasks.append({name: shown[name] for name in _REPLAY_MEMBERS} if task.stopped else shown)
        return {"tasks": tasks, "failures": copy.deepcopy(remembered.failures)}

    def _checked_launch(self, cluster: _Cluster, request: dict[str, Any]) -> _Launch:
        """Return what is to be launched, or refuse it as AWS does."""
        definition = self._definition(request["taskDefinition"])
        if definition is None:
            raise _invalid("TaskDefinition not found.")
        if definition["status"] != "ACTIVE":
            raise _invalid("TaskDefinition is inactive")
        count = request.get("count", 1)
        if not 1 <= count <= 10:
            raise _invalid(f"Invalid count {count}: it must be between 1 and 10.")
        if len(request.get("startedBy", "")) > _LONGEST_STARTED_BY:
            # The reference names letters, digits, "-", "/" and "_". Deployers in wide use send a space, so only the
            # length is known to be checked.
            raise _invalid(f"Invalid startedBy: at most {_LONGEST_STARTED_BY} characters are allowed.")
        if request.get("propagateTags") == "SERVICE":
            raise _invalid("The SERVICE value for propagateTags is not supported when running a task.")
        launch_type, strategy = self._where(cluster, request)
        launch = _Launch(
            request=request,
            definition=definition,
            count=count,
            launch_type=launch_type,
            strategy=strategy,
            tags=self._launch_tags(cluster, request, definition),
        )
        if launch_type == "FARGATE" and "FARGATE" not in definition["compatibilities"]:
            raise _invalid("Task definition does not support launch_type FARGATE.")
        self._check_platform(launch)
        self._check_network(launch)
        _check_overrides(launch)
        _check_volumes(launch)
        return launch

    def _where(self, cluster: _Cluster, request: Mapping[str, Any]) -> tuple[str, list[dict[str, Any]]]:
        launch_type, asked = request.get("launchType"), request.get("capacityProviderStrategy")
        if launch_type and asked:
            raise _invalid(
                "Specifying both a launch type and capacity provider strategy is not supported. Remove one and try "
                "again."
            )
        if launch_type == "MANAGED_INSTANCES":
            raise _invalid("Managed Instances are used through a capacity provider strategy, without a launch type.")
        if launch_type:
            return launch_type, []
        # The cluster's own, too: a provider may have been deleted since it was set.
        strategy = self._checked_strategy(cluster, asked or cluster.strategy)
        if not strategy:
            return "EC2", []
        self._check_providers(item["capacityProvider"] for item in strategy)
        first = strategy[0]["capacityProvider"]
        if first in _FARGATE:
            return "FARGATE", strategy
        managed = self._providers[first]["type"] == "MANAGED_INSTANCES"
        return "MANAGED_INSTANCES" if managed else "EC2", strategy

    def _launch_tags(
        self, cluster: _Cluster, request: Mapping[str, Any], definition: Mapping[str, Any]
    ) -> dict[str, str]:
        tags = check_tags(request.get("tags", []))
        if request.get("propagateTags") == "TASK_DEFINITION":
            tags = {**self._tags[definition["taskDefinitionArn"]], **tags}
        if request.get("enableECSManagedTags"):
            tags["aws:ecs:clusterName"] = cluster.name
        return tags

    def _check_platform(self, launch: _Launch) -> None:
        request, platform = launch.request, launch.definition.get("runtimePlatform") or {}
        if launch.launch_type != "FARGATE":
            if request.get("platformVersion"):
                raise _invalid("The platform version is only valid for tasks on Fargate.")
            return
        windows = platform.get("operatingSystemFamily", "LINUX") != "LINUX"
        versions = ("1.0.0",) if windows else ("1.4.0", "1.3.0")
        version = request.get("platformVersion", "LATEST")
        if version != "LATEST" and version not in versions:
            raise AwsError("PlatformUnknownException", f"The specified platform version {version} does not exist.")
        launch.platform_version = versions[0] if version == "LATEST" else version
        launch.platform_family = "Windows" if windows else "Linux"
        arm = platform.get("cpuArchitecture") == "ARM64"
        if launch.platform_version == "1.3.0" and (arm or launch.definition.get("ephemeralStorage")):
            raise AwsError(
                "PlatformTaskDefinitionIncompatibilityException",
                "The specified platform version does not satisfy the task definition's required capabilities.",
            )
        if windows and any(item["capacityProvider"] == "FARGATE_SPOT" for item in launch.strategy):
            raise _invalid("Windows tasks are not supported with the FARGATE_SPOT capacity provider.")
        for name in ("placementConstraints", "placementStrategy"):
            if request.get(name):
                raise _invalid(f"{name} are not supported with FARGATE launch type.")

    def _check_network(self, launch: _Launch) -> None:
        network = (launch.request.get("networkConfiguration") or {}).get("awsvpcConfiguration")
        if launch.definition.get("networkMode") != "awsvpc":
            if network is not None:
                raise _invalid("Network Configuration is not valid for the given networkMode of this task definition.")
            return
        if network is None:
            raise _invalid("Network Configuration must be provided when networkMode 'awsvpc' is specified.")
        subnets, groups = network["subnets"], network.get("securityGroups") or []
        if not subnets:
            raise _invalid("subnets can not be empty.")
        if len(subnets) > 16:
            raise _invalid("subnets can have at most 16 items.")
        if len(groups) > 5:
            raise _invalid("securityGroups can have at most 5 items.")
        if network.get("assignPublicIp") == "ENABLED" and launch.launch_type == "EC2":
            raise _invalid("Assign public IP is not supported for this launch type.")
        if self.only_known_networks:
            for subnet in subnets:
                if subnet not in self.world.subnets:
                    raise _invalid(
                        f"Error retrieving subnet information for [{', '.join(subnets)}]: The subnet ID '{subnet}' "
                        "does not exist (ErrorCode: InvalidSubnetID.NotFound)"
                    )
            for group in groups:
                if group not in self.world.security_groups:
                    raise _invalid(
                        f"Error retrieving security group information for [{', '.join(groups)}]: The security group "
                        f"'{group}' does not exist (ErrorCode: InvalidGroup.NotFound)"
                    )
        launch.subnets = list(subnets)

    def _launch(
        self, cluster: _Cluster, launch: _Launch, token: str | None, environment: Mapping[str, Mapping[str, str]]
    ) -> dict[str, Any]:
        """Start what has room. What has none is told in ``failures``, without an exception."""
        tasks: list[Task] = []
        failures: list[dict[str, Any]] = []
        providers = self._providers_for(launch)
        if launch.launch_type == "FARGATE":
            self._take_launch_tokens(providers)
        for provider in providers:
            subnet, refusal = self._place(launch, provider)
            if refusal is None:
                tasks.append(self._start(cluster, launch, provider, subnet, token, environment))
            else:
                failures.append({"reason": refusal})
        return {"tasks": [self._show(task, tags=True) for task in tasks], "failures": failures}

    def _take_launch_tokens(self, providers: list[str | None]) -> None:
        called = [provider or "FARGATE" for provider in providers]
        if not self._take(FARGATE_RUN_TASK, 1.0):
            raise AwsError("ThrottlingException", "Rate exceeded")
        for provider in set(called):
            if not self._take(LAUNCHES[provider], float(called.count(provider))):
                raise AwsError("ThrottlingException", "Rate exceeded")

    def _providers_for(self, launch: _Launch) -> list[str | None]:
        """Return the capacity provider of each task: the base first, then by weight."""
        if not launch.strategy:
            return [None] * launch.count
        chosen: list[str | None] = []
        for item in launch.strategy:
            chosen += [item["capacityProvider"]] * min(item["base"], launch.count - len(chosen))
        weights = {item["capacityProvider"]: item["weight"] for item in launch.strategy if item["weight"]}
        given = dict.fromkeys(weights, 0)
        while len(chosen) < launch.count:
            # Whoever is furthest below its share is next; the first named, if they are level.
            name = min(weights, key=lambda each: (given[each] + 1) / weights[each])
            given[name] += 1
            chosen.append(name)
        return chosen

    def _place(self, launch: _Launch, provider: str | None) -> tuple[str | None, str | None]:
        """Return the subnet, or why there is no room."""
        drawn_on = provider or launch.launch_type
        if (refusal := self.shortage(drawn_on)) is not None:
            return None, refusal
        spots = launch.subnets or [""]
        zones = {self._zone(subnet): None for subnet in spots}
        if (refusal := self.world.capacity.refusal(drawn_on, zones)) is not None:
            return None, refusal
        if drawn_on in _FARGATE:
            limit = self.quotas.spot_vcpus if drawn_on == "FARGATE_SPOT" else self.quotas.vcpus
            if limit is not None and self.world.vcpus(drawn_on) + int(launch.cpu or 0) / 1024 > limit:
                return None, _VCPU_LIMIT
        free = [subnet for subnet in spots if self.world.capacity.in_the_way(drawn_on, self._zone(subnet)) is None]
        return self.world.choose(free) or None, None

    def _zone(self, subnet: str) -> str:
        return self.world.zone_of(subnet) if subnet else f"{self._region}a"

    def _start(
        self,
        cluster: _Cluster,
        launch: _Launch,
        provider: str | None,
        subnet: str | None,
        token: str | None,
        environment: Mapping[str, Mapping[str, str]],
    ) -> Task:
        world, request, definition = self.world, launch.request, launch.definition
        task_id = world.new_task_id()
        family = definition["family"]
        started_by = request.get("startedBy")
        task = Task(
            arn=self._arn(f"task/{cluster.name}/{task_id}"),
            id=task_id,
            cluster_arn=cluster.arn,
            number=len(world.tasks) + 1,
            launch=world.next_launch(started_by, family),
            definition=definition,
            launch_type=launch.launch_type,
            capacity_provider=provider,
            platform_version=launch.platform_version,
            platform_family=launch.platform_family,
            group=request.get("group") or f"family:{family}",
            started_by=started_by,
            token=token,
            tags=dict(launch.tags),
            overrides=request.get("overrides") or {},
            cpu=launch.cpu,
            memory=launch.memory,
            ephemeral_gib=launch.ephemeral_gib,
            execute_command=bool(request.get("enableExecuteCommand")),
            zone=self._zone(subnet or ""),
            interface=world.new_interface(subnet) if subnet else None,
            unresolved=launch.unresolved,
        )
        if launch.launch_type != "FARGATE":
            task.instance_arn = self._arn(f"container-instance/{cluster.name}/{world.new_task_id()}")
        overrides = {each.get("name"): each for each in task.overrides.get("containerOverrides") or ()}
        for defined in definition["containerDefinitions"]:
            name = defined["name"]
            override = overrides.get(name, {})
            run = ContainerRun(
                name=name,
                image=defined["image"],
                command=tuple(override.get("command") or defined.get("command") or ()),
                entry_point=tuple(defined.get("entryPoint") or ()),
                environment=environment.get(name, {}),
                essential=defined["essential"],
                task_arn=task.arn,
                family=family,
                started_by=started_by or "",
                capacity_provider=task.provider,
                launch=task.launch,
                number=task.number,
            )
            arn = self._arn(f"container/{cluster.name}/{task_id}/{world.new_task_id()}")
            container = Container(run, defined, arn=arn)
            container.override = override
            container.log = _log_target(defined, task_id)
            task.containers.append(container)
        world.accept(task)
        return task

    async def _environments(self, launch: _Launch) -> dict[str, dict[str, str]]:
        """Return the environment of each container. What cannot be had makes the task fail later, not the call."""
        overrides = {
            each.get("name"): each for each in (launch.request.get("overrides") or {}).get("containerOverrides") or ()
        }
        found: dict[str, dict[str, str]] = {}
        for defined in launch.definition["containerDefinitions"]:
            override = overrides.get(defined["name"], {})
            resolved: dict[str, str] = {}
            files = override.get("environmentFiles") or defined.get("environmentFiles") or ()
            for file in files:
                resolved |= await self._env_file(launch, file["value"])
            resolved |= _pairs(defined.get("environment"))
            resolved |= _pairs(override.get("environment"))
            for secret in defined.get("secrets") or ():
                resolved[secret["name"]] = await self._secret(launch, secret["valueFrom"])
            found[defined["name"]] = resolved
        return found

    async def _secret(self, launch: _Launch, value_from: str) -> str:
        if self.values is None:
            return ""
        try:
            return await self.values.secret(value_from)
        except AwsError as exc:
            launch.unresolved = launch.unresolved or (
                "ResourceInitializationError: unable to pull secrets or registry auth: execution resource retrieval "
                f"failed: unable to retrieve secret from {_store(value_from)}: {exc.code}: {exc.message}"
            )
            return ""

    async def _env_file(self, launch: _Launch, arn: str) -> dict[str, str]:
        if self.values is None:
            return {}
        try:
            text = await self.values.env_file(arn)
        except AwsError as exc:
            launch.unresolved = launch.unresolved or (
                f"ResourceInitializationError: failed to download env files: file download command: {arn}: "
                f"{exc.code}: {exc.message}"
            )
            return {}
        return dict(found.groups() for line in text.splitlines() if (found := _ENV_LINE.fullmatch(line)))  # type: ignore[misc]

    # ---- tasks ----

    async def stop_task(self, request: Mapping[str, Any]) -> dict[str, Any]:
        cluster = self._cluster(request.get("cluster"))
        task = self.world.known(cluster.arn, self._task_id(cluster, request["task"]))
        if task is None:
            raise _invalid("The referenced task was not found.")
        self.world.stop(task, request.get("reason"))
        task.tags.clear()
        return {"task": self._show(task, tags=False)}

    async def describe_tasks(self, request: Mapping[str, Any]) -> dict[str, Any]:
        cluster = self._cluster(request.get("cluster"))
        names = request["tasks"]
        if not names:
            raise _invalid("Tasks cannot be empty.")
        if len(names) > 100:
            raise _invalid("Tasks cannot have more than 100 elements.")
        tags = "TAGS" in request.get("include", [])
        found: list[dict[str, Any]] = []
        failures: list[dict[str, Any]] = []
        for name in names:
            task = self.world.tasks.get(name)  # nearly all who ask for thousands do so by ARN
            if task is None or task.cluster_arn != cluster.arn or not self.world.shows(task):
                task_id = self._task_id(cluster, name)
                task = self.world.find(cluster.arn, task_id)
                if task is None:
                    failures.append({"arn": self._arn(f"task/{cluster.name}/{task_id}"), "reason": "MISSING"})
                    continue
            found.append(self._show(task, tags=tags))
        return {"tasks": found, "failures": failures}

    async def list_tasks(self, request: Mapping[str, Any]) -> dict[str, Any]:
        cluster = self._cluster(request.get("cluster"))
        started_by, family = request.get("startedBy"), request.get("family")
        desired, launch_type = request.get("desiredStatus", "RUNNING"), request.get("launchType")
        if started_by is not None and self.strict_list_filters:
            # The reference says "the only filter". desiredStatus=RUNNING, the default, is sent by others and works.
            others = [name for name in ("family", "serviceName", "containerInstance", "launchType") if name in request]
            if others or desired != "RUNNING":
                raise _invalid("startedBy must be the only filter when it is used.")
        if "serviceName" in request:
            raise AwsError("ServiceNotFoundException", "Service not found.")
        if "containerInstance" in request:
            raise _invalid("The fake AWS has no container instances to filter by.")
        found = [
            (task.id, task.arn)
            for task in self.world.listed(cluster.arn, started_by)
            if task.desired_status == desired
            and (family is None or task.family == family)
            and (launch_type is None or task.launch_type == launch_type)
        ]
        scope = f"tasks {cluster.arn} {started_by} {family} {desired} {launch_type}"
        return self._page(request, "taskArns", scope, found)

    async def execute_command(self, request: Mapping[str, Any]) -> dict[str, Any]:
        cluster = self._cluster(request.get("cluster"))
        task = self.world.known(cluster.arn, self._task_id(cluster, request["task"]))
        if task is None:
            raise _invalid("The referenced task was not found.")
        if not task.execute_command:
            raise _invalid(
                "The execute command failed because execute command was not enabled when the task was run or the "
                "execute command agent isn\N{RIGHT SINGLE QUOTATION MARK}t running. Wait and try again or run a new "
                "task with execute command enabled and try again."
            )
        raise AwsError("TargetNotConnectedException", "The fake AWS opens no sessions into containers.")

    def _task_id(self, cluster: _Cluster, name: str) -> str:
        if not name.startswith("arn:"):
            return name
        _, _, _, region, account, resource = (name.split(":", 5) + [""] * 5)[:6]
        if region != self._region:
            raise _invalid("Invalid Region in ARN")
        if account != self._account:  # how AWS words this is not known
            raise _invalid(f"Invalid identifier: Identifier is for account {account}. Your account is {self._account}")
        parts = resource.split("/")
        if len(parts) == 3 and parts[1] != cluster.name:
            raise _invalid(f"Invalid identifier: Identifier is for cluster {parts[1]}. Your cluster is {cluster.name}")
        if parts[0] != "task":
            raise _invalid("Invalid identifier: Unexpected resource type.")
        return parts[-1]

    def _show(self, task: Task, *, tags: bool) -> dict[str, Any]:
        if self._validate and task.checked_version != task.version:
            check_shape("ecs", "Task", self.world.drawn(task))
            task.checked_version = task.version
        shown = self.world.wire(task, _CHECKED) if self._validate else self.world.wire(task)
        if tags:
            shown["tags"] = _tag_list(task.tags)
        return shown

    # ---- tags, settings ----

    async def tag_resource(self, request: Mapping[str, Any]) -> dict[str, Any]:
        tags = self._tags_of(request["resourceArn"])
        new = check_tags(request["tags"])
        if len(tags | new) > 50:
            raise _invalid("The number of tags must not exceed 50.")
        tags |= new
        return {}

    async def untag_resource(self, request: Mapping[str, Any]) -> dict[str, Any]:
        tags = self._tags_of(request["resourceArn"])
        for key in request["tagKeys"]:
            tags.pop(key, None)
        return {}

    async def list_tags_for_resource(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"tags": _tag_list(self._tags_of(request["resourceArn"]))}

    def _tags_of(self, arn: str) -> dict[str, str]:
        task = self.world.tasks.get(arn)
        if task is not None and self.world.known(task.cluster_arn, task.id) is not None:
            return task.tags
        cluster = self._clusters.get(arn.rpartition("/")[2])
        if cluster is not None and cluster.arn == arn and cluster.active:
            return self._tags.setdefault(arn, {})
        if arn in self._tags:
            return self._tags[arn]
        raise _invalid("The specified resource was not found. Specify a valid ARN and try again.")

    # What has neither services nor container instances says so: clients look for them on their way to a task.

    async def list_services(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._cluster(request.get("cluster"))
        return {"serviceArns": []}

    async def describe_services(self, request: Mapping[str, Any]) -> dict[str, Any]:
        cluster = self._cluster(request.get("cluster"))
        arns = [name if ":" in name else self._arn(f"service/{cluster.name}/{name}") for name in request["services"]]
        return {"services": [], "failures": [{"arn": arn, "reason": "MISSING"} for arn in arns]}

    async def list_container_instances(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._cluster(request.get("cluster"))
        return {"containerInstanceArns": []}

    async def describe_container_instances(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._cluster(request.get("cluster"))
        failures = [{"arn": arn, "reason": "MISSING"} for arn in request["containerInstances"]]
        return {"containerInstances": [], "failures": failures}

    async def list_account_settings(self, request: Mapping[str, Any]) -> dict[str, Any]:
        principal = f"arn:aws:iam::{self._account}:root"
        settings = [
            {"name": name, "value": value, "principalArn": request.get("principalArn", principal), "type": "user"}
            for name, value in sorted(self._settings.items())
            if request.get("name", name) == name and request.get("value", value) == value
        ]
        return {"settings": settings}

    async def put_account_setting(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._settings[request["name"]] = request["value"]
        (setting,) = (await self.list_account_settings({"name": request["name"]}))["settings"]
        return {"setting": setting}

    async def put_account_setting_default(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return await self.put_account_setting(request)

    # ---- helpers ----

    def _arn(self, rest: str) -> str:
        return f"arn:aws:ecs:{self._region}:{self._account}:{rest}"

    def _page(
        self,
        request: Mapping[str, Any],
        member: str,
        scope: str,
        items: list[tuple[str, str]],
        *,
        down: bool = False,
    ) -> dict[str, Any]:
        """Return a page of (sort key, value), with an opaque token if there is more."""
        most = request.get("maxResults", 100)
        if not 1 <= most <= 100:
            raise _invalid("maxResults must be between 1 and 100.")
        items = sorted(items, reverse=down)
        if (token := request.get("nextToken")) is not None:
            last = self._pages.unseal(scope, token)
            items = [item for item in items if (item[0] < last if down else item[0] > last)]
        page: dict[str, Any] = {member: [value for _, value in items[:most]]}
        if len(items) > most:
            page["nextToken"] = self._pages.seal(scope, items[most - 1][0])
        return page


@attrs.define(kw_only=True)
class _Launch:
    """A RunTask that AWS would accept."""

    request: Mapping[str, Any] = attrs.field(repr=False)  # with the values of the environment
    definition: Mapping[str, Any] = attrs.field(repr=False)
    count: int
    launch_type: str
    strategy: list[dict[str, Any]]
    tags: dict[str, str]
    platform_version: str | None = None
    platform_family: str | None = None
    subnets: list[str] = attrs.field(factory=list)
    cpu: str | None = None
    memory: str | None = None
    ephemeral_gib: int | None = None
    unresolved: str = ""


def _check_overrides(launch: _Launch) -> None:
    overrides: Mapping[str, Any] = launch.request.get("overrides") or {}
    definition = launch.definition
    length = len(json.dumps(overrides, separators=(",", ":"), ensure_ascii=False))
    if length > _MOST_OVERRIDES:
        raise _invalid(f"Container Overrides length must be at most {_MOST_OVERRIDES}")
    names = {container["name"] for container in definition["containerDefinitions"]}
    seen: set[str] = set()
    for override in overrides.get("containerOverrides") or ():
        name = override.get("name")
        if name not in names:
            raise _invalid(f"Override for container named {name} is not a container in the TaskDefinition.")
        if name in seen:
            raise _invalid(f"Duplicate override for container named {name}.")
        seen.add(name)
        if len(override.get("environmentFiles") or ()) > 10:
            raise _invalid(f"Override for container named {name} has more than 10 environment files.")
    launch.cpu, launch.memory = (
        str(size_in(overrides[kind], kind)) if kind in overrides else definition.get(kind) for kind in ("cpu", "memory")
    )
    storage = overrides.get("ephemeralStorage") or definition.get("ephemeralStorage")
    if launch.launch_type != "FARGATE":
        return
    assert launch.cpu is not None
    assert launch.memory is not None
    _definitions.check_fargate_size(int(launch.cpu), int(launch.memory))
    _definitions.check_storage(overrides.get("ephemeralStorage"))
    launch.ephemeral_gib = storage["sizeInGiB"] if storage else 20
    by_name = {each.get("name"): each for each in overrides.get("containerOverrides") or ()}
    containers = [
        {**container, **by_name.get(container["name"], {})} for container in definition["containerDefinitions"]
    ]
    for kind, limit in (("cpu", launch.cpu), ("memory", launch.memory)):
        if container_total(containers, kind) > int(limit):
            raise _client(f"Invalid '{kind}' setting for task: the containers ask for more than {limit}.")


def _check_volumes(launch: _Launch) -> None:
    later = {volume.get("name") for volume in launch.definition["volumes"] if volume.get("configuredAtLaunch")}
    given = [each["name"] for each in launch.request.get("volumeConfigurations") or ()]
    if len(given) > 1:
        raise _invalid("volumeConfigurations can have at most 1 item.")
    for name in given:
        if name not in later:
            raise _invalid(f"Volume {name} is not configured at launch in the task definition.")
    if missing := sorted(str(name) for name in later - set(given)):
        raise _invalid(f"Volume configurations must be provided for the volumes {', '.join(missing)}.")
    for each in launch.request.get("volumeConfigurations") or ():
        volume = each.get("managedEBSVolume")
        if volume is None or not (volume.get("sizeInGiB") or volume.get("snapshotId")):
            raise _invalid(f"Volume {each['name']} needs a managedEBSVolume with a sizeInGiB or a snapshotId.")


def _canonical(request: Mapping[str, Any]) -> str:
    """Return what makes two requests the same: everything but the token."""
    members = {name: value for name, value in request.items() if name != "clientToken"}
    members.setdefault("count", 1)
    return json.dumps(members, sort_keys=True, default=str)


def _log_target(container: Mapping[str, Any], task_id: str) -> LogTarget | None:
    log = container.get("logConfiguration")
    if not log or log["logDriver"] != "awslogs":
        return None
    options = log.get("options") or {}
    prefix = options.get("awslogs-stream-prefix")
    stream = f"{prefix}/{container['name']}/{task_id}" if prefix else f"{task_id}-{container['name']}"
    return LogTarget(group=options["awslogs-group"], stream=stream)


def _pairs(environment: Iterable[Mapping[str, str]] | None) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in environment or () if "name" in each}


def _store(value_from: str) -> str:
    return "asm" if ":secretsmanager:" in value_from else "ssm"


def _tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in sorted(tags.items())]
