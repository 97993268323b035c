"""
Jobs as ECS tasks: on Fargate, Fargate Spot, EC2 or any other capacity.

The verbs of the boundary over the rooms beside this one: `_taskdefs` pins what to run, `_api` asks AWS, `_watch` looks
at all tasks at once, `_logs` reads all streams at once, `_wire` knows AWS's words.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, ClassVar, Final, Self

import anyio
import attrs

from fargate_runner._backend import Backend, Identity, Launch, TaskRef, Together, launch_token, sheltered_tasks
from fargate_runner._errors import (
    BackendError,
    InvalidJob,
    KeyConflict,
    LaunchRejected,
    LogsUnavailable,
    PlacementRefused,
    RunnerClosed,
)
from fargate_runner._job import Job, Secret
from fargate_runner._lifecycle import Cause, LogLine, Phase, Proof, Snapshot
from fargate_runner.backends.ecs import _discover, _wire
from fargate_runner.backends.ecs._api import Api, ApiError, Budget, Trouble
from fargate_runner.backends.ecs._config import Capacity, EcsOptions, LogGroup, Network, Roles
from fargate_runner.backends.ecs._events import EventReader, check_queue, drop_events, make_events
from fargate_runner.backends.ecs._logs import LogCadence, LogReader
from fargate_runner.backends.ecs._taskdefs import Definition, TaskDefinitions
from fargate_runner.backends.ecs._watch import Cadence, Watch

__all__ = ["EcsBackend"]

_LONGEST_OVERRIDES: Final = 8192
"""Characters of the overrides of a RunTask call (Amazon ECS API Reference, RunTask)."""
_LONGEST_DEFINITION: Final = 64 * 1024
"""Bytes of a task definition (Amazon ECS, General Reference)."""
_VISIBLE_AFTER: Final = 300.0
"""Seconds after which ECS's eventual consistency has caught up with a RunTask or StopTask."""
_CLUSTER: Final = re.compile(r"(arn:aws[a-z-]*:ecs:[a-z0-9-]+:\d{12}:cluster/)?[A-Za-z0-9_-]{1,255}\Z", re.ASCII)
_S3: Final = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?P<prefix>/[^\s]*)?\Z", re.ASCII)
_PARAMETER_PATH: Final = re.compile(r"(/[A-Za-z0-9_.-]+){1,10}/?\Z", re.ASCII)
_THROTTLES_PATIENCE: Final = 60.0
"""
Seconds of nothing but throttles after which a launch is given back to the caller, who may not want it any more: it is
not cancelled, so it must not wait for the end of throttles for ever.
"""
_ALL_LISTED_WITHIN: Final = timedelta(minutes=55)
"""How long after a launch none of its tasks can be forgotten: ECS keeps a stopped one for an hour."""
_TURN_KEPT: Final = 10.0
"""Seconds after which a turn that was waited for counts as not wanted any more."""
_CLEANING_UP: Final = 60.0
"""Seconds that deleting the secrets of ended jobs may hold up anything else."""
_UNTIL_VISIBLE: Final = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds between looks at a task that ECS named itself and does not describe yet."""
_KEPT_BY_ECS: Final = 2 * 3600.0
"""Seconds after which ECS has surely dropped a stopped task; it promises one hour."""


@attrs.frozen
class _Plan:
    """How several identical jobs are launched by one call, for all but the first of them."""

    job: Job
    shared: Identity
    request: dict[str, Any]
    definition: Definition

    def is_of(self, job: Job, identity: Identity) -> bool:
        return job is self.job and identity.shared == self.shared


@attrs.define
class _Placed:
    """What this process remembers of a task that it launched or found."""

    definition: str
    container: str
    owner: str
    """Its ``startedBy``."""
    ref: TaskRef | None = None
    """If this process launched it: ECS may not list it yet."""
    submitted_at: float | None = None
    request_id: str = ""
    told_to_stop: bool = False
    """Because it vanished: once is enough."""


class EcsBackend(Backend):
    """
    Runs each attempt as one ECS task in *cluster*; without one, in what `discover` finds.

    Without anything else said, tasks go to Fargate, and a task definition is derived from each job: by the hash of
    what a launch cannot override, so that jobs which differ in command, environment or size share one.

    - ``network``: where tasks are plugged in; needed for Fargate, and for whatever else uses ``awsvpc``
    - ``roles``: the execution role pulls images, writes logs and reads secrets; the task role is the job's own
    - ``capacity``: one, or a ladder of which each further launch of a job takes the next rung:
      ``[Capacity.spot(), Capacity.spot(), Capacity.fargate()]``
    - ``options``: what jobs get that do not say it themselves with ``Job(ecs=EcsOptions(…))``
    - ``log_group``: a name, or a `LogGroup`
    - ``spill_to``: ``s3://bucket/prefix`` for environments too large for a launch (8,192 characters in all); the
      execution role reads them there
    - ``secret_prefix``: a path in SSM's Parameter Store where the values of `Secret` are kept while their job runs;
      without one, only references (`SecretRef`) are taken
    - ``tags``: put on every task, below the job's own
    - ``events``: name or URL of an SQS queue that EventBridge feeds, which tells of ends sooner than polling and for
      fewer calls; this backend's alone. `make_events` makes it
    - ``session``: any aioboto3 or aiobotocore session; by default one of its own
    - ``budget``: how much of AWS's API quotas to use, where they were raised or are shared
    - ``cadence``, ``log_cadence``: how often tasks and lines are asked for; mostly for tests

    ECS keeps an ended task for an hour, and its lines as long as the log group does; `forget` makes this backend
    forget them, and nobody else.
    """

    name: ClassVar[str] = "ecs"
    answer_patience = 900.0
    """Calls wait for their turn under AWS's quotas, and for the end of a throttling storm."""
    default_concurrency = 1000
    launches_together = 10
    """Tasks that one RunTask takes (Amazon ECS API Reference)."""

    def __init__(
        self,
        cluster: str | None = None,
        *,
        network: Network | None = None,
        roles: Roles | None = None,
        capacity: Capacity | Sequence[Capacity] | None = None,
        options: EcsOptions | None = None,
        log_group: LogGroup | str | None = None,
        spill_to: str | None = None,
        secret_prefix: str | None = None,
        tags: Mapping[str, str] | None = None,
        events: str | None = None,
        region: str | None = None,
        session: Any | None = None,
        endpoint_url: str | None = None,
        budget: Budget | None = None,
        cadence: Cadence | None = None,
        log_cadence: LogCadence | None = None,
        utcnow: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.cluster = "" if cluster is None else _check_cluster_name(cluster)
        rungs = (capacity,) if isinstance(capacity, Capacity) else tuple(capacity) if capacity is not None else None
        self.options = EcsOptions(network=network, roles=roles, capacity=rungs).over(options)
        self._log_group_was_said = log_group is not None
        self.log_group = LogGroup(name=log_group) if isinstance(log_group, str) else log_group or LogGroup()
        self.chosen: tuple[str, ...] = ()
        """What `discover` chose, and where it found it."""
        self._bucket, self._spill_prefix = _check_spill(spill_to)
        self._secret_prefix = _check_secret_prefix(secret_prefix)
        self._tags = dict(tags or {})
        self._events = check_queue(events)
        self._utcnow = utcnow
        self._cadence = cadence or Cadence()
        self._log_cadence = log_cadence or LogCadence()
        self._make_api: Callable[..., Api] = partial(
            Api, session=session, region=region or _wire.region_of(cluster), endpoint_url=endpoint_url, budget=budget
        )
        self._api = self._make_api()
        self._looked_up = False

    @classmethod
    async def discover(cls, **options: Any) -> Self:
        """
        Return a backend for the cluster and network found in the environment, in the task that we run in, or in AWS.

        First the variables ``FARGATE_RUNNER_CLUSTER``, ``FARGATE_RUNNER_SUBNETS`` and so on; then the ECS task that
        this process runs in; then the default VPC and the only cluster. *options* are those of the class and come
        before anything found. ``chosen`` says what was chosen, and why. A backend without a cluster does the same when
        it is opened.

        :raises BackendUnavailable: something is missing; says what, and how to set it
        """
        backend = cls(**options)
        async with backend._api.running():
            await backend._settle()
        return backend

    async def _settle(self) -> None:
        """Fill in what was not said."""
        found = await _discover.discover(self._api, cluster=self.cluster or None, network=self.options.network)
        if not self.cluster:
            self.cluster = found.cluster
        self.options = self.options.over(EcsOptions(network=found.network, roles=found.roles))
        if found.log_group is not None and not self._log_group_was_said:
            self.log_group = found.log_group
        self.chosen = found.why

    @property
    def place(self) -> str:
        return f"{self.name}/{self._api.region}/{_wire.cluster_name(self.cluster)}"

    def now(self) -> datetime:
        return self._api.now() or self._utcnow()

    async def make_events(self, *, namespace: str | None = None) -> str:
        """
        Make the queue that ``events`` names and the EventBridge rule of that name that feeds it; return its URL.

        What is there stays. Only that rule may send to the queue, and it sends what becomes of tasks of this library in
        this cluster; with *namespace*, only of runners of that one. Needs no open backend, and costs next to nothing.

        :raises BackendError: something could not be made, or a queue of that name has a policy of its own
        """
        async with self._door() as api:
            if not self.cluster:
                await self._settle()
            return await make_events(api, self._events, self.cluster, namespace=namespace)

    async def drop_events(self) -> None:
        """Delete the queue that ``events`` names, and its rule. What is not there is no error."""
        async with self._door() as api:
            await drop_events(api, self._events)

    @asynccontextmanager
    async def _door(self) -> AsyncGenerator[Api]:
        """The door to AWS, opened for a moment if the backend is not open."""
        if self.is_open:
            yield self._api
            return
        async with self._api.running():
            yield self._api

    async def ask_time(self) -> datetime:
        self._check_open()
        if self._api.now() is None:
            try:
                await self._api.call("ecs.DescribeClusters", clusters=[self.cluster])
            except ApiError as exc:
                if exc.trouble is not Trouble.DENIED:  # not needed for anything else: then it is this machine's time
                    raise
        return self.now()

    @property
    def api(self) -> Api:
        """The door to AWS: its ``stats`` count the calls."""
        return self._api

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[None]:
        is_warm = self._looked_up and self._api.is_warm
        if not is_warm:
            await self._api.cool_down()
            self._api, self._looked_up = self._make_api(), False
        self._api.stays_warm = self.stays_warm
        self._placed: dict[str, _Placed] = {}
        self._forgotten: dict[str, float] = {}
        self._doubtful: dict[str, tuple[str, float]] = {}
        self._throttled: dict[str, set[tuple[int, int]]] = {}
        self._spilled: set[str] = set()
        self._parameters_of: dict[str, set[str]] = {}
        self._checking = anyio.Lock()
        self._groups: dict[str, _Group] = {}
        self._plan_of_all: _Plan | None = None
        async with self._api.running():
            if not is_warm:
                await self._look_up()
            self._watch = Watch(self._api, self.cluster, utcnow=self._utcnow, cadence=self._cadence, met=self._met)
            self._reader = LogReader(self._api, utcnow=self._utcnow, cadence=self._log_cadence)
            self._finder = _Finder(self._api, self.cluster)
            self._turns = _Turns(self._api)
            events = EventReader(self._api, self._events, watch=self._watch, owner_of=self._owner_of)
            if self._events:
                await events.open()
            async with sheltered_tasks() as tasks:
                tasks.start_soon(self._watch.run)
                tasks.start_soon(self._reader.run)
                if self._events:
                    tasks.start_soon(events.run)
                try:
                    yield
                finally:
                    await self._leave_no_secrets()

    async def _look_up(self) -> None:
        """Begin to know what stays true from one opening to the next."""
        self._cluster_checked = self._group_checked = self._group_made = False
        self._cluster_arn = ""
        self._home_known: _wire.Home | None = None
        if not self.cluster:
            await self._settle()
        self._definitions = TaskDefinitions(self._api)
        self._looked_up = True

    async def cool_down(self) -> None:
        if not self.is_open:
            await self._api.cool_down()

    # ---- prepare ---------------------------------------------------------------------------------------------------

    async def prepare(self, job: Job, identity: Identity) -> Launch:
        self._check_open()
        options = _options(job).over(self.options)
        await self._check_place(options)
        parameters = self._parameters(job, identity)
        if options.task_definition is not None:
            request, definition = await self._plan_existing(job, identity, options)
        elif job.image is None:
            raise InvalidJob("image", None, "ECS runs containers", "give the job an image, or an ecs.task_definition")
        elif (plan := self._plan_of_all) is not None and plan.is_of(job, identity) and not parameters:
            request, definition = plan.request, plan.definition
        else:
            request, definition = await self._plan_derived(job, identity, options, parameters)
            if identity.shared is not None:
                self._plan_of_all = _Plan(job, identity.shared, request, definition)
        token: str = request["clientToken"]
        launches = request["count"] if _wire.is_on_fargate(request) else 0
        await self._turns.wait(token, launches=launches, spot=_wire.is_spot(request))
        return Launch(
            token=token,
            identity=identity,
            job_name=job.name,
            description=job.describe(),
            request={
                "run_task": request,
                "container": _wire.container_of(definition.body, job.container_name),
                "definition_is_ours": definition.ours,
                "parameters": parameters,
            },
            secrets=_values(job),
        )

    async def _plan_existing(
        self, job: Job, identity: Identity, options: EcsOptions
    ) -> tuple[dict[str, Any], Definition]:
        definition = await self._definitions.pinned(str(options.task_definition))
        request = self._request(job, identity, options, definition)
        if _wire.overrides_length(request) > _LONGEST_OVERRIDES:
            spill = await self._to_s3(job)
            spilled = request if spill is None else self._request(job, identity, options, definition, spill=spill)
            if _wire.overrides_length(spilled) > _LONGEST_OVERRIDES:
                raise self._too_long(request)
            request = spilled
        return request, definition

    async def _plan_derived(
        self, job: Job, identity: Identity, options: EcsOptions, parameters: Mapping[str, str]
    ) -> tuple[dict[str, Any], Definition]:
        body = self._body(job, options, parameters)
        request = self._request(job, identity, options, Definition.draft(body))
        if _wire.overrides_length(request) > _LONGEST_OVERRIDES:
            for spill in await self._spills(job, request):
                body = self._body(job, options, parameters, spill=spill)
                spilled = self._request(job, identity, options, Definition.draft(body), spill=spill)
                if _fits(spilled, body):
                    request = spilled
                    break
            else:
                raise self._too_long(request)
        definition = await self._definitions.ensure(body, namespace=identity.namespace, job_name=job.name)
        return request | {"taskDefinition": definition.arn}, definition

    def _body(
        self, job: Job, options: EcsOptions, parameters: Mapping[str, str], *, spill: _wire.Spill | None = None
    ) -> dict[str, Any]:
        return _wire.definition(
            job,
            roles=options.roles,
            log_group=self.log_group,
            options=options,
            region=self._api.region,
            secret_names=parameters,
            capacity=options.capacity,
            spill=spill or _wire.Spill(),
        )

    def _request(
        self,
        job: Job,
        identity: Identity,
        options: EcsOptions,
        definition: Definition,
        *,
        spill: _wire.Spill | None = None,
    ) -> dict[str, Any]:
        together, shared = identity.together, identity.shared
        name = identity if shared is None else shared
        return _wire.run_task(
            job,
            name,
            cluster=self.cluster,
            task_definition=definition.arn,
            body=definition.body,
            token=launch_token(_wire.cluster_name(self.cluster), name),
            count=1 if together is None or shared is None else together.size,
            capacity=_wire.rung(options.capacity or (Capacity.fargate(),), self._without_throttled(identity)),
            network=options.network,
            options=options,
            roles=options.roles,
            tags=self._tags,
            spill=spill or _wire.Spill(),
        )

    def _without_throttled(self, identity: Identity) -> Identity:
        """Return *identity* with the placements that failed for want of room: a throttle says nothing of capacity."""
        owner, launch = _wire.started_by(identity.namespace, identity.key), (identity.attempt, identity.placement)
        throttled = sum(earlier < launch for earlier in self._throttled.get(owner, ()))
        return attrs.evolve(identity, placement=max(1, identity.placement - throttled))

    async def _spills(self, job: Job, request: Mapping[str, Any]) -> list[_wire.Spill]:
        """Say what may travel otherwise, the cheapest first: an object in S3, or a definition of its own."""
        in_s3 = await self._to_s3(job)
        everything = frozenset(job.env)
        if in_s3 is not None:
            return [in_s3, attrs.evolve(in_s3, command=True)]
        longest = next(iter(_wire.overrides_by_field(request)))
        one, other = _wire.Spill(command=True), _wire.Spill(env=everything)
        return [*((other, one) if longest == "env" else (one, other)), _wire.Spill(command=True, env=everything)]

    async def _to_s3(self, job: Job) -> _wire.Spill | None:
        """Put the environment of *job* where ECS can read it. The name is that of the content: twice is once."""
        if not self._bucket or not job.env:
            return None
        text, rest = _wire.env_file(job.env)
        key = f"{self._spill_prefix}{hashlib.sha256(text.encode()).hexdigest()}.env"
        if key not in self._spilled:
            await self._api.call("s3.PutObject", Bucket=self._bucket, Key=key, Body=text.encode())
            self._spilled.add(key)
        partition = _wire.partition(self._api.region)
        return _wire.Spill(env=frozenset(job.env) - set(rest), files=(f"arn:{partition}:s3:::{self._bucket}/{key}",))

    def _too_long(self, request: Mapping[str, Any]) -> InvalidJob:
        sizes = _wire.overrides_by_field(request)
        said = ", ".join(f"{field}: {size:,}" for field, size in sizes.items())
        longest = next(iter(sizes))
        in_s3 = "split long variables, and take out line breaks: in S3 one is a line of up to 64 KiB"
        fixes = {
            "env": in_s3
            if self._bucket
            else "shorten it, or let the backend keep it in S3: EcsBackend(spill_to='s3://bucket/prefix')",
            "command": "shorten it, or put it into env and let the backend keep that in S3: EcsBackend(spill_to=…)",
        }
        return InvalidJob(
            longest,
            f"{sizes[longest]} characters",
            f"a launch takes {_LONGEST_OVERRIDES:,} characters of overrides ({said}) and a definition 64 KiB",
            fixes.get(longest, "shorten it"),
        )

    def _parameters(self, job: Job, identity: Identity) -> dict[str, str]:
        """Name the place in SSM's Parameter Store of each secret that the job brings by value."""
        values = _values(job)
        if values and self._secret_prefix is None:
            name = next(iter(values))
            problem = "ECS takes secrets by reference only; a value in an override could be read by everyone"
            fix = "give the ARN of a secret or parameter, or let the backend keep it: EcsBackend(secret_prefix='/jobs')"
            raise InvalidJob(f"secrets[{name!r}]", "***", problem, fix)
        owner = _wire.started_by(identity.namespace, identity.key)
        return {name: self._parameter(owner, name) for name in values}

    def _parameter(self, owner: str, name: str) -> str:
        return f"{self._secret_prefix}/{owner.removeprefix('fr/')}/{name}"

    async def _check_place(self, options: EcsOptions) -> None:
        """Ask once whether the cluster and the log group are there, before anything is launched into them."""
        async with self._checking:
            if not self._cluster_checked:
                await self._check_cluster()
                self._cluster_checked = True
            if not self._group_checked and options.task_definition is None:
                await self._check_log_group()
                self._group_checked = True

    async def _check_cluster(self) -> None:
        try:
            reply = await self._api.call("ecs.DescribeClusters", clusters=[self.cluster])
        except ApiError as exc:
            if exc.trouble is Trouble.DENIED:
                return  # not needed for a launch: RunTask will tell
            raise
        if not _wire.has_active_cluster(reply):
            said = f"ECS knows no active cluster {self.cluster!r} in {self._api.region}"
            fix = (
                f"create it (aws ecs create-cluster --cluster-name {_wire.cluster_name(self.cluster)}), or name another"
            )
            raise LaunchRejected(f"{said}; {fix}", operation="DescribeClusters", code="ClusterNotFoundException")
        self._cluster_arn = _wire.cluster_arn(reply)

    async def _check_log_group(self) -> None:
        group = self.log_group
        if group.region not in {None, self._api.region}:
            return
        try:
            if group.create:
                await self._make_log_group(group)
            else:
                reply = await self._api.call("logs.DescribeLogGroups", logGroupNamePrefix=group.name, limit=50)
                if not _wire.has_log_group(reply, group.name):
                    said = f"there is no log group {group.name!r} in {self._api.region}, and the task would not start"
                    fix = "create it, or let the backend do so: LogGroup(create=True)"
                    raise LaunchRejected(
                        f"{said}; {fix}", operation="DescribeLogGroups", code="ResourceNotFoundException"
                    )
        except ApiError as exc:
            if exc.trouble is not Trouble.DENIED:  # it may well exist: the start of the task will tell
                raise

    async def _make_log_group(self, group: LogGroup) -> None:
        try:
            await self._api.call("logs.CreateLogGroup", logGroupName=group.name)
        except ApiError as exc:
            if exc.code != "ResourceAlreadyExistsException":
                raise
            # Its retention is its owner's, unless it was an earlier try of ours that made it.
            if not (exc.in_doubt or self._group_made):
                return
        self._group_made = True
        if group.retention_days is not None:
            await self._api.call(
                "logs.PutRetentionPolicy", logGroupName=group.name, retentionInDays=group.retention_days
            )

    # ---- submit ----------------------------------------------------------------------------------------------------

    async def submit(self, launch: Launch) -> TaskRef:
        self._check_open()
        identity = launch.identity.shared or launch.identity
        owner = _wire.started_by(identity.namespace, identity.key)
        # A cancelled call whose effect is unknown is the classic orphan. The API door bounds each request.
        with anyio.CancelScope(shield=True):
            return await self._run(launch, owner)
        raise AssertionError("a shielded scope swallows nothing")

    async def _run(self, launch: Launch, owner: str) -> TaskRef:
        try:
            await self._keep_secrets(launch, owner)
            return await self._run_task(launch, owner)
        except LaunchRejected:  # whoever launches it again brings its secrets again
            with anyio.move_on_after(_CLEANING_UP):
                await self._drop_secrets(owner)
            raise

    async def _run_task(self, launch: Launch, owner: str) -> TaskRef:
        begun = anyio.current_time()
        together = launch.identity.together if launch.identity.shared is not None else None
        try:
            reply = await self._ask_to_run(launch)
        except ApiError as exc:
            return await self._not_run(launch, owner, exc)
        request_id = _wire.request_id(reply)
        tasks = _wire.all_started(reply)
        index = 0 if together is None else together.index
        task = tasks[index] if index < len(tasks) else None
        if task is None and not _wire.has_failures(reply):
            # Another placement might be a second task. The same launch, sent again, is not.
            self._doubtful[owner] = launch.token, anyio.current_time()
            said = f"ECS tells of neither a task nor a failure for {launch.job_name!r} (request {request_id})"
            raise BackendError(said, operation="RunTask", retryable=True)
        self._doubtful.pop(owner, None)
        if task is None:
            raise _refused(launch, reply, request_id)
        return self._take(launch, task, owner, begun, request_id)

    def _in_time(self, launch: Launch) -> Callable[[], bool]:
        """Return what says whether a launch may (still) be sent."""
        until = launch.send_until
        if until is None:
            return lambda: True
        # AWS's time is kept by a clock that may stand still with the machine; the one on the wall does not.
        until_here = self._utcnow() + (until - self.now())
        return lambda: self.now() <= until and self._utcnow() <= until_here

    async def _ask_to_run(self, launch: Launch) -> dict[str, Any]:
        """Send a launch; of several that are one call, the first sends it and all get the reply."""
        self._turns.take(launch.token)
        patience, in_time = (_THROTTLES_PATIENCE, float("inf")), self._in_time(launch)
        send = partial(self._api.call, "ecs.RunTask", *patience, in_time, **launch.request["run_task"])
        if launch.identity.shared is None:
            return await send()
        group = self._groups.get(launch.token)
        if group is None or group.is_failed:
            group = self._groups[launch.token] = _Group(left=launch.request["run_task"]["count"])
            await group.send(send)
        try:
            return await group.reply()
        finally:
            group.left -= 1
            if group.left <= 0:
                self._groups.pop(launch.token, None)

    async def _keep_secrets(self, launch: Launch, owner: str) -> None:
        for name, secret in launch.secrets.items():
            if isinstance(secret, Secret):
                self._parameters_of.setdefault(owner, set()).add(launch.request["parameters"][name])
                parameter = {
                    "Name": launch.request["parameters"][name],
                    "Value": secret.reveal(),
                    "Type": "SecureString",
                    "Tier": "Intelligent-Tiering",
                    "Overwrite": True,
                }
                try:
                    await self._api.call("ssm.PutParameter", _THROTTLES_PATIENCE, **parameter)
                except ApiError as exc:
                    raise self._not_taken(launch, owner, exc) from exc

    async def _drop_secrets(self, owner: str) -> None:
        """Delete what was kept for the tasks of *owner*, if none of them is left that this process knows of."""
        names = self._parameters_of.get(owner)
        if not names or self._is_in_doubt(owner) or any(placed.owner == owner for placed in self._placed.values()):
            return
        while names:
            name = min(names)
            try:
                await self._api.call("ssm.DeleteParameter", Name=name)
            except ApiError as exc:
                if exc.trouble is not Trouble.NOT_FOUND:
                    raise
            names.discard(name)
        self._parameters_of.pop(owner, None)

    async def _leave_no_secrets(self) -> None:
        """Delete what an earlier try could not."""
        with anyio.move_on_after(_CLEANING_UP, shield=True):
            for owner in tuple(self._parameters_of):
                with suppress(BackendError):
                    await self._drop_secrets(owner)

    def _take(self, launch: Launch, task: Mapping[str, Any], owner: str, begun: float, request_id: str) -> TaskRef:
        arn = _wire.task_arn(task)
        ref = TaskRef(
            backend=self.name,
            address=arn,
            key=launch.identity.key,
            attempt=launch.identity.attempt,
            token=sys.intern(launch.token),  # one for all that it has launched
            description=launch.description,
            created_at=_wire.created_at(task) or self._utcnow(),
        )
        self._forgotten.pop(arn, None)
        self._placed[arn] = _Placed(
            definition=sys.intern(launch.request["run_task"]["taskDefinition"]),
            container=sys.intern(launch.request["container"]),
            owner=owner,
            ref=ref,
            submitted_at=begun,
            request_id=request_id,
        )
        self._watch.saw(task, "run-task", asked_at=begun)
        return ref

    async def _not_run(self, launch: Launch, owner: str, exc: ApiError) -> TaskRef:
        """Say what a RunTask that raised means: adopted, refused, or nobody knows."""
        if exc.trouble is Trouble.CONFLICT:
            return await self._adopt(launch, owner, exc)
        if exc.in_doubt or exc.trouble is Trouble.UNKNOWN:
            self._doubtful[owner] = launch.token, anyio.current_time()
            raise exc
        if exc.retryable:  # no try of it had any effect
            raise self._not_taken(launch, owner, exc) from exc
        arn = launch.request["run_task"]["taskDefinition"]
        if _wire.is_inactive(exc.aws_message) and launch.request["definition_is_ours"]:
            # Another deployer deregistered it. The next placement registers it again.
            self._definitions.distrust(arn)
            said = f"the task definition {arn} was deregistered meanwhile; it will be registered again"
            raise PlacementRefused(said, operation="RunTask", code=exc.code, retryable=True) from exc
        refusal = _wire.launch_error(exc.code or "", exc.aws_message)
        error = PlacementRefused if refusal.retryable else LaunchRejected
        advice = f"; {refusal.advice}" if refusal.advice else ""
        raise error(
            f"ECS refused to run {launch.job_name!r}: {exc}{advice}",
            operation="RunTask",
            code=exc.code,
            retryable=refusal.retryable,
        ) from exc

    def _not_taken(self, launch: Launch, owner: str, exc: ApiError) -> LaunchRejected:
        error = LaunchRejected
        if exc.trouble is Trouble.THROTTLED:
            error = PlacementRefused
            self._throttled.setdefault(owner, set()).add((launch.identity.attempt, launch.identity.placement))
        said = f"nothing was started for {launch.job_name!r}: {exc}"
        return error(said, operation=exc.operation, code=exc.code, retryable=exc.retryable)

    async def _adopt(self, launch: Launch, owner: str, exc: ApiError) -> TaskRef:
        """The token has started something else, or the same in other words: meet it, or say what differs."""
        for arn in exc.resource_ids:
            placed = self._placed.get(arn)
            if (
                placed is not None
                and placed.ref is not None
                and placed.ref.description is not None
                and placed.ref.key == launch.identity.key
            ):
                there = placed.ref.description
                if different := tuple(sorted(k for k, v in launch.description.items() if there.get(k) != v)):
                    raise KeyConflict(launch.identity.key, different) from exc
                return placed.ref
        tasks = sorted(await self._described_at_last(exc.resource_ids), key=_wire.task_arn)
        if launch.identity.shared is not None and launch.identity.together is not None:
            index = launch.identity.together.index
            tasks = tasks[index : index + 1] if len(tasks) == len(exc.resource_ids) else []
        for task in tasks:
            if _wire.owner(task) == owner:
                if different := _wire.difference(launch.description, task, await self._definition_of(task)):
                    raise KeyConflict(launch.identity.key, different) from exc
                return self._take(launch, task, owner, anyio.current_time(), exc.request_id or "")
        said = f"the token of this launch started something that ECS does not describe: {', '.join(exc.resource_ids)}"
        raise BackendError(said, operation="RunTask", code=exc.code, retryable=True) from exc

    async def _described_at_last(self, arns: Sequence[str]) -> list[Mapping[str, Any]]:
        """Describe tasks that exist, but that ECS may not show yet."""
        for pause in _UNTIL_VISIBLE:
            if found := await self._describe(arns):
                return found
            await anyio.sleep(pause)
        return await self._describe(arns)

    # ---- observe, stop, read ---------------------------------------------------------------------------------------

    async def observe(self, ref: TaskRef, *, after: Snapshot | None = None) -> Snapshot:
        self._check_open()
        if ref.address in self._forgotten:
            return self._gone("this backend was told to forget it")
        placed = self._placed.get(ref.address)
        snapshot = await self._watch.observe(
            ref.address,
            self._container(ref),
            after=after,
            submitted_at=placed.submitted_at if placed is not None else None,
            created_at=ref.created_at,
        )
        if snapshot.cause is Cause.VANISHED and placed is not None and not placed.told_to_stop:
            placed.told_to_stop = True
            await self._stop_what_vanished(ref)
        if placed is None or not placed.request_id or snapshot.proof is None:
            return snapshot
        # What AWS's support asks for first.
        evidence = f"{snapshot.proof.evidence}; started by RunTask request {placed.request_id}".removeprefix("; ")
        return attrs.evolve(snapshot, proof=attrs.evolve(snapshot.proof, evidence=evidence))

    def watch(self, ref: TaskRef, after: Snapshot, tell: Callable[[Snapshot | None], None]) -> bool:
        self._check_open()
        return ref.address not in self._forgotten and self._watch.watch(ref.address, after, tell)

    def unwatch(self, ref: TaskRef, tell: Callable[[Snapshot | None], None]) -> None:
        self._watch.unwatch(ref.address, tell)

    def _hear(self, task: Mapping[str, Any]) -> bool:
        """Have a task looked at of which somebody tells something; return whether ECS may know more than it told."""
        if not self._watch.is_news(task):
            return False
        self._watch.told(task, believed=False, judge=lambda _: None)
        return True

    async def _stop_what_vanished(self, ref: TaskRef) -> None:
        """ECS says that it does not know the task. If it lives all the same, it must not beside the next attempt."""
        reason = _wire.stop_reason("it is no longer described")
        with anyio.move_on_after(_CLEANING_UP), suppress(BackendError):
            await self._api.call("ecs.StopTask", cluster=self.cluster, task=ref.address, reason=reason)

    async def stop(self, ref: TaskRef, *, reason: str) -> None:
        self._check_open()
        if ref.address in self._forgotten or not _wire.is_task_arn(ref.address):
            return
        asked_at = anyio.current_time()
        try:
            reply = await self._api.call(
                "ecs.StopTask", cluster=self.cluster, task=ref.address, reason=_wire.stop_reason(reason)
            )
        except ApiError as exc:
            if exc.trouble is not Trouble.NOT_FOUND:
                raise
            placed = self._placed.get(ref.address)
            begun = placed.submitted_at if placed is not None else None
            if (
                begun is not None
                and anyio.current_time() - begun < _VISIBLE_AFTER
                and not self._watch.has_ended(ref.address)
            ):
                said = f"ECS does not know the task {ref.address} yet, so it cannot be told to stop"
                raise BackendError(said, operation="StopTask", code=exc.code, retryable=True) from exc
            return
        self._watch.saw(_wire.stopping(reply), "stop-task", asked_at=asked_at)

    async def logs(self, ref: TaskRef, *, follow: bool, tail: int | None = None) -> AsyncGenerator[LogLine]:
        self._check_open()
        if ref.address in self._forgotten or not _wire.is_task_arn(ref.address):
            raise LogsUnavailable(f"the lines of attempt {ref.attempt} of {ref.key!r} are not known to this backend")
        place = await self._log_place(ref)
        if place is None:
            said = f"the task definition of attempt {ref.attempt} of {ref.key!r} sends its output elsewhere"
            raise LogsUnavailable(f"{said}; give its containers the awslogs driver, or read them there")
        last = await self.observe(ref)
        if last.ended and last.started_at is None and last.cause is Cause.COULD_NOT_START:
            return  # no container, no stream: nothing to wait for

        group, streams = place
        if not follow:
            over = self._watch.over(ref.address) if last.ended else None
            reading = self._reader.read(
                group, streams, tail=tail, attempt=ref.attempt, over=over, created_at=last.created_at
            )
        else:
            reading = self._reader.follow(
                group,
                streams,
                tail=tail,
                attempt=ref.attempt,
                started=partial(self._reached, ref, Phase.RUNNING),
                ended=partial(self._over_at, ref),
            )
        async with aclosing(reading):
            async for lines in reading:
                for line in lines:
                    yield line

    async def _reached(self, ref: TaskRef, phase: Phase) -> None:
        seen = await self.observe(ref)
        while seen.phase < phase:
            seen = await self.observe(ref, after=seen)

    async def _over_at(self, ref: TaskRef) -> float:
        """Wait for the end, and return when it was first known that the job's own container is over."""
        await self._reached(ref, Phase.ENDED)
        exited_at = self._watch.exited_at(ref.address)
        return anyio.current_time() if exited_at is None else exited_at

    async def _log_place(self, ref: TaskRef) -> tuple[str, dict[str, str]] | None:
        placed = self._placed.get(ref.address)
        if placed is None:
            for task in await self._describe([ref.address]):
                placed = self._met(task)
        if placed is None:
            return _wire.default_log_place(self.log_group, self._container(ref), ref.address)
        definition = await self._definitions.described(placed.definition)
        if definition is None:
            said = f"ECS does not tell where the lines of attempt {ref.attempt} of {ref.key!r} are: it did not describe"
            raise LogsUnavailable(f"{said} the task definition {placed.definition}; try again")
        if elsewhere := _wire.log_regions(definition.body) - {self._api.region}:
            said = f"the lines of attempt {ref.attempt} of {ref.key!r} are in {', '.join(sorted(elsewhere))}"
            raise LogsUnavailable(f"{said}, and this backend asks in {self._api.region}; read them there")
        return _wire.log_place(definition.body, ref.address)

    # ---- find and forget -------------------------------------------------------------------------------------------

    async def find(self, namespace: str, key: str) -> list[TaskRef]:
        self._check_open()
        found = await self._found(namespace, key)
        together = Identity(namespace=namespace, key=key, attempt=1).together
        if together is not None:
            found += self._mine(await self._found(namespace, together.group), together)
        return sorted(found, key=lambda ref: (ref.attempt, ref.created_at or datetime.min.replace(tzinfo=UTC)))

    async def _found(self, namespace: str, name: str) -> list[TaskRef]:
        """Return the tasks whose launch carries a name: a key, or what jobs that were launched together share."""
        owner = _wire.started_by(namespace, name)
        found: list[TaskRef] = []
        asked_at = anyio.current_time()
        for task in await self._finder.find(owner):
            arn = _wire.task_arn(task)
            there = _wire.unpack(task, await self._definition_of(task))
            if (
                arn in self._forgotten
                or there is None
                or (there.identity.namespace, there.identity.key) != (namespace, name)
            ):
                continue
            self._met(task)
            self._brought(owner, there.parts)
            self._watch.saw(task, "describe", asked_at=asked_at)
            found.append(
                TaskRef(
                    backend=self.name,
                    address=arn,
                    key=name,
                    attempt=there.identity.attempt,
                    token=launch_token(_wire.cluster_name(self.cluster), there.identity),
                    description=there.description,
                    created_at=_wire.created_at(task),
                )
            )
        listed = {ref.address for ref in found}
        found += [  # launched a moment ago: ECS is eventually consistent
            placed.ref
            for arn, placed in self._placed.items()
            if placed.owner == owner and placed.ref is not None and arn not in listed
        ]
        if self._is_in_doubt(owner, {ref.token for ref in found}):
            said = f"ECS did not answer to the launch of {name!r}, and may not list yet what it started"
            raise BackendError(said, operation="ListTasks", retryable=True)
        return found

    def _mine(self, found: Collection[TaskRef], together: Together) -> list[TaskRef]:
        """Return which of the tasks that one call launched is whose: the n-th in the order of their ARNs."""
        for ref in found:
            placed = self._placed.get(ref.address)
            if placed is not None and placed.ref is not None and placed.ref.key == together.key:
                return [placed.ref]
        known = sorted(found, key=lambda ref: ref.address)
        oldest = min((ref.created_at for ref in known if ref.created_at is not None), default=None)
        # ECS forgets a task an hour after its end. Until the first can be gone, the n-th listed is the n-th launched.
        whole = len(known) == together.size or (oldest is not None and self.now() - oldest < _ALL_LISTED_WITHIN)
        if not whole or together.index >= len(known):
            return []
        return [attrs.evolve(known[together.index], key=together.key)]

    def _brought(self, owner: str, description: Mapping[str, Any] | None) -> None:
        """Remember where the secrets are kept that a job brought by value."""
        if self._secret_prefix is not None and (names := _names_of_values(description or {})):
            self._parameters_of.setdefault(owner, set()).update(self._parameter(owner, name) for name in names)

    async def living(self, namespace: str) -> list[TaskRef]:
        self._check_open()
        home = await self._home()
        refs: list[TaskRef] = []
        asked_at = anyio.current_time()
        for task in await self._finder.running():
            there = _wire.launched(task, namespace, home=home)
            if there is None or _wire.is_stopped(task) or (arn := _wire.task_arn(task)) in self._forgotten:
                continue
            self._met(task)
            self._watch.saw(task, "describe", asked_at=asked_at)
            refs.append(
                TaskRef(
                    backend=self.name,
                    address=arn,
                    key=there.identity.key,
                    attempt=there.identity.attempt,
                    token=launch_token(_wire.cluster_name(self.cluster), there.identity),
                    description=there.parts,
                    created_at=_wire.created_at(task),
                )
            )
        listed, now = {ref.address for ref in refs}, anyio.current_time()
        refs += [  # launched a moment ago: ECS is eventually consistent
            placed.ref
            for arn, placed in self._placed.items()
            if placed.ref is not None
            and arn not in listed
            and placed.owner == _wire.started_by(namespace, placed.ref.key)
            and placed.submitted_at is not None
            and now - placed.submitted_at < _VISIBLE_AFTER
            and not self._watch.has_ended(arn)
        ]
        return refs

    async def _home(self) -> _wire.Home:
        """
        Return which account, region and cluster the tasks of this backend are in.

        :raises BackendError: nobody tells the account
        """
        if self._home_known is None:
            arn = self.cluster if self.cluster.startswith("arn:") else self._cluster_arn
            if not arn:
                try:
                    reply = await self._api.call("ecs.DescribeClusters", clusters=[self.cluster])
                    arn = _wire.cluster_arn(reply)
                except ApiError as exc:
                    if exc.trouble is not Trouble.DENIED:
                        raise
            account = _wire.account_of(arn) or await self._api.account()
            if not account:
                said = f"AWS does not tell the account of the cluster {self.cluster!r}"
                fix = "name the cluster by its ARN, or allow ecs:DescribeClusters"
                raise BackendError(f"{said}; {fix}", operation="DescribeClusters")
            self._home_known = _wire.Home(
                account=account, region=self._api.region, cluster=_wire.cluster_name(self.cluster)
            )
        return self._home_known

    def _is_in_doubt(self, owner: str, found: Collection[str] = frozenset()) -> bool:
        """Whether a launch was not answered, and ECS, which lists tasks of the tokens *found*, may not list it yet."""
        token, since = self._doubtful.get(owner, ("", float("-inf")))
        if token in found or anyio.current_time() - since >= _VISIBLE_AFTER:
            self._doubtful.pop(owner, None)
            return False
        return True

    async def forget(self, ref: TaskRef) -> None:
        self._check_open()
        if ref.address in self._forgotten or not _wire.is_task_arn(ref.address):
            return
        if not (self._watch.has_ended(ref.address) or (await self.observe(ref)).ended):
            return
        now = anyio.current_time()
        # The oldest come first: what ECS has dropped as well need not be remembered.
        while (oldest := next(iter(self._forgotten), None)) and now - self._forgotten[oldest] >= _KEPT_BY_ECS:
            del self._forgotten[oldest]
        self._forgotten[ref.address] = now
        self._watch.forget(ref.address)
        placed = self._placed.pop(ref.address, None)
        if placed is not None:
            self._throttled.pop(placed.owner, None)
            self._brought(placed.owner, ref.description)  # perhaps by a runner that died
            await self._drop_secrets(placed.owner)

    async def prune(self, namespace: str, *, unused_since: timedelta = timedelta(days=30)) -> list[str]:
        """
        Deregister task definitions that this library made for *namespace* longer ago, and return their ARNs.

        Those in use by this backend or by a task of the cluster stay. Nothing is ever pruned unasked.

        :raises BackendError: ECS could not be asked, or does not allow it
        """
        self._check_open()
        in_use = frozenset([_wire.definition_arn(task) for task in await self._finder.running()])
        return await self._definitions.prune(namespace, unused_since=unused_since, utcnow=self._utcnow, in_use=in_use)

    # ---- what the verbs share --------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if not self.is_open:
            raise RunnerClosed("the ecs backend is not open: use it inside 'async with'")

    def _gone(self, reason: str) -> Snapshot:
        proof = Proof(source="runner", seen_at=self._utcnow(), evidence=reason)
        return Snapshot(phase=Phase.ENDED, cause=Cause.VANISHED, reason=reason, proof=proof)

    def _owner_of(self, arn: str) -> str | None:
        """Return whose a task is; empty if it is ours and that is not known here, None if it is not ours."""
        if (placed := self._placed.get(arn)) is not None:
            return placed.owner
        return "" if arn in self._forgotten or self._watch.knows(arn) else None

    def _container(self, ref: TaskRef) -> str:
        if (placed := self._placed.get(ref.address)) is not None:
            return placed.container
        return str((ref.description or {}).get("container_name", "main"))

    def _met(self, task: Mapping[str, Any]) -> _Placed:
        arn = _wire.task_arn(task)
        if arn not in self._placed:
            self._placed[arn] = _Placed(
                definition=sys.intern(_wire.definition_arn(task)),
                container=sys.intern(_wire.own_container(task)),
                owner=_wire.owner(task),
            )
        return self._placed[arn]

    async def _definition_of(self, task: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the body of a task's definition, if it is needed to read the task's record."""
        if not _wire.needs_definition(task):
            return None
        definition = await self._definitions.described(_wire.definition_arn(task))
        return definition.body if definition is not None else None

    async def _describe(self, arns: Iterable[str]) -> list[Mapping[str, Any]]:
        return await _describe(self._api, self.cluster, list(arns))


def _options(job: Job) -> EcsOptions:
    if job.ecs is not None and not isinstance(job.ecs, EcsOptions):
        raise InvalidJob("ecs", job.ecs, f"expected EcsOptions, got {type(job.ecs).__name__}", "write EcsOptions(…)")
    return job.ecs or EcsOptions()


def _values(job: Job) -> dict[str, Secret]:
    """Return what *job* brings by value: its own secrets by name, those of a sidecar as ``sidecar/name``."""
    parts = [("", job.secrets), *((f"{side.name}/", side.secrets) for side in job.sidecars)]
    return {
        f"{start}{name}": secret
        for start, secrets in parts
        for name, secret in secrets.items()
        if isinstance(secret, Secret)
    }


def _names_of_values(description: Mapping[str, Any]) -> list[str]:
    """Return the names that `_values` gave, from what `Job.describe` tells of a job."""
    parts = [("", description), *((f"{side.get('name')}/", side) for side in description.get("sidecars") or ())]
    return [
        f"{start}{name}"
        for start, part in parts
        for name, secret in (part.get("secrets") or {}).items()
        if isinstance(secret, Mapping) and "secret" in secret
    ]


def _fits(request: Mapping[str, Any], body: Mapping[str, Any]) -> bool:
    if _wire.overrides_length(request) > _LONGEST_OVERRIDES:
        return False
    # The family and our tag come on top; nobody knows how AWS counts, so there is room left.
    return len(json.dumps(body).encode()) <= _LONGEST_DEFINITION - 1024


def _refused(launch: Launch, reply: Mapping[str, Any], request_id: str) -> LaunchRejected:
    refusal = _wire.refusal(reply)
    said = f"ECS did not place {launch.job_name!r}: {refusal.reason}; {refusal.advice} (request {request_id})"
    if not refusal.retryable:
        return LaunchRejected(said, operation="RunTask", code=refusal.kind)
    quota = refusal.kind == "quota"
    return PlacementRefused(said, operation="RunTask", code=refusal.kind, retryable=True, quota=quota)


def _check_cluster_name(cluster: str) -> str:
    if not isinstance(cluster, str) or not _CLUSTER.match(cluster):
        raise InvalidJob("cluster", cluster, "not the name or ARN of a cluster", "write it like 'jobs'")
    return cluster


def _check_spill(spill_to: str | None) -> tuple[str, str]:
    if spill_to is None:
        return "", ""
    found = _S3.match(spill_to) if isinstance(spill_to, str) else None
    if found is None:
        raise InvalidJob("spill_to", spill_to, "not a place in S3", "write it like 's3://bucket/prefix'")
    prefix = (found["prefix"] or "").strip("/")
    return found["bucket"], f"{prefix}/" if prefix else ""


def _check_secret_prefix(prefix: str | None) -> str | None:
    if prefix is None:
        return None
    if not isinstance(prefix, str) or not _PARAMETER_PATH.match(prefix):
        raise InvalidJob("secret_prefix", prefix, "not a path in the Parameter Store", "write it like '/jobs/secrets'")
    return prefix.rstrip("/")


async def _describe(api: Api, cluster: str, arns: Sequence[str]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for start in range(0, len(arns), 100):
        reply = await api.call("ecs.DescribeTasks", cluster=cluster, tasks=list(arns[start : start + 100]))
        found.extend(_several(reply, "tasks", "DescribeTasks"))
    return found


def _several(reply: Mapping[str, Any], member: str, operation: str) -> list[Any]:
    """Return a list of a reply. One that has none says nothing: not that there are no tasks."""
    parts = reply.get(member)
    if not isinstance(parts, list):
        raise BackendError(f"ECS answered {operation} without {member}", operation=operation, retryable=True)
    return parts


class _Group:
    """One call that launches several jobs: the first to come makes it, all get its reply or its error."""

    def __init__(self, left: int) -> None:
        self.left = left
        """How many have not asked for it yet."""
        self._done = anyio.Event()
        self._reply: dict[str, Any] = {}
        self._error: Exception | None = None

    @property
    def is_failed(self) -> bool:
        """Whether it was answered with an error: whoever tries again makes another call."""
        return self._error is not None

    async def send(self, call: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        """Make the call."""
        try:
            self._reply = await call()
        except Exception as exc:  # noqa: BLE001 (for all who wait for it)
            self._error = exc
        finally:
            self._done.set()

    async def reply(self) -> dict[str, Any]:
        """Return what AWS answered, or raise what it refused with."""
        await self._done.wait()
        if self._error is not None:
            raise self._error
        return self._reply


class _Turns:
    """
    The turns of launches under AWS's quota, waited for before they are submitted.

    A submission must not be cancelled, so nobody should have to wait long in one: of two thousand jobs that are told to
    end at once, those that have not had their turn are not launched any more.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._kept: dict[str, float] = {}
        """Since when launches have a turn that they have not used, by token, the oldest first."""
        self._waited_for: dict[str, anyio.Lock] = {}

    async def wait(self, token: str, *, launches: int = 0, spot: bool = False) -> None:
        """Wait for the turn of a launch; it is kept for a while. Jobs that are one launch wait for one turn."""
        if token in self._kept:
            return
        lock = self._waited_for.setdefault(token, anyio.Lock())
        try:
            async with lock:
                if token not in self._kept:
                    await self._wait(launches, spot)
                    self._kept[token] = anyio.current_time()
        finally:
            if not lock.locked():
                self._waited_for.pop(token, None)

    async def _wait(self, launches: int, spot: bool) -> None:
        while not self._inherit():
            with anyio.move_on_after(_TURN_KEPT) as scope:
                await self._api.reserve("ecs.RunTask", launches=launches, spot=spot)
            if not scope.cancelled_caught:
                break

    def take(self, token: str) -> None:
        """Use the turn of a launch, if it has one."""
        self._kept.pop(token, None)

    def _inherit(self) -> bool:
        """Take over the turn of a launch that was prepared and never submitted. Unused turns would block the queue."""
        oldest = next(iter(self._kept), None)
        if oldest is None or anyio.current_time() - self._kept[oldest] < _TURN_KEPT:
            return False
        del self._kept[oldest]
        return True


class _Finder:
    """
    Finds tasks by their owner, many owners at a time.

    ListTasks takes ``startedBy`` only alone, and then lists what has not stopped; stopped tasks are listed for the
    whole cluster. So one sweep serves everybody who asked before it began.
    """

    _FEW: Final = 10

    def __init__(self, api: Api, cluster: str) -> None:
        self._api = api
        self._cluster = cluster
        self._lock = anyio.Lock()
        self._begun = 0
        self._wanted: set[str] = set()
        self._found: dict[str, list[Mapping[str, Any]]] = {}
        self._covered: frozenset[str] = frozenset()
        self._owners: dict[str, str] = {}
        """Of stopped tasks: for ever the same, so each is looked at once."""

    async def find(self, owner: str) -> list[Mapping[str, Any]]:
        """Return the tasks that *owner* started, live or stopped, as ECS describes them."""
        asked = self._begun
        self._wanted.add(owner)
        async with self._lock:
            if self._begun == asked or owner not in self._covered:
                self._wanted.add(owner)  # a sweep that was cancelled took it along
                await self._sweep()
            return self._found.get(owner, [])

    async def running(self) -> list[Mapping[str, Any]]:
        """Return every task of the cluster that has not stopped."""
        return await _describe(self._api, self._cluster, await self._list())

    async def _sweep(self) -> None:
        self._begun += 1
        owners, self._wanted = frozenset(self._wanted), set()
        self._covered = frozenset()
        # The living first: what stops meanwhile is in the second list.
        arns: list[str] = []
        if len(owners) <= self._FEW:
            for owner in sorted(owners):
                arns += await self._list(startedBy=owner)
        else:
            arns += await self._list()
        stopped = await self._list(desiredStatus="STOPPED")
        strangers = {arn for arn in stopped if self._owners.get(arn, "") in owners or arn not in self._owners}
        tasks = await self._described({*arns, *strangers}, living=arns)
        known = set(stopped)
        self._owners = {arn: owner for arn, owner in self._owners.items() if arn in known}
        found: dict[str, list[Mapping[str, Any]]] = {}
        for task in tasks:
            owner, arn = _wire.owner(task), _wire.task_arn(task)
            if arn in known:
                self._owners[arn] = owner
            if owner in owners:
                found.setdefault(owner, []).append(task)
        self._found, self._covered = found, owners

    async def _described(self, arns: Collection[str], *, living: Sequence[str]) -> list[Mapping[str, Any]]:
        """Describe tasks. A living one is not left out: who does not find it would launch it again."""
        tasks = await _describe(self._api, self._cluster, sorted(arns))
        for pause in _UNTIL_VISIBLE:
            hidden = {*living} - {_wire.task_arn(task) for task in tasks}
            if not hidden:
                break
            await anyio.sleep(pause)
            tasks += await _describe(self._api, self._cluster, sorted(hidden))
        return tasks

    async def _list(self, **only: str) -> list[str]:
        arns: list[str] = []
        token: dict[str, str] = {}
        while True:
            page = await self._api.call("ecs.ListTasks", cluster=self._cluster, maxResults=100, **only, **token)
            arns += _several(page, "taskArns", "ListTasks")
            if not page.get("nextToken"):
                return arns
            token = {"nextToken": page["nextToken"]}
