"""
The world below the ECS verbs: tasks walk PROVISIONING … STOPPED as time passes.

Bookkeeping on a clock. What containers do is an `Engine`'s business; the world does what ECS does itself: statuses,
timestamps, versions, events, and what an essential container's end means for the others.

Nothing here waits. What is due is done when somebody asks (`World.settle`), and by a timer of the running event loop,
so that events and log lines come out while a client sits in a long poll.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from random import Random
from typing import Any, Final, Protocol

import attrs

from fargate_runner._job import DEADLINE_CONTAINER
from fargate_runner.testing.aws._engine import Engine, ScriptedEngine
from fargate_runner.testing.aws._script import (
    ESSENTIAL_EXITED,
    MAINTENANCE,
    NO_CAPACITY,
    SPOT_INTERRUPTED,
    STATUSES,
    ContainerRun,
    ContainerScript,
    Pace,
    Script,
    TaskRun,
    TaskScript,
)
from fargate_runner.testing.aws._service import Clock
from fargate_runner.testing.aws._task import Container, Interface, Task, TaskTruth, truth_of

# Some of these live in files of their own; whoever works on the world finds them here.
__all__ = ["Capacity", "Container", "Due", "Engine", "Fates", "Outage", "ScriptedEngine", "Task", "World"]

_SPOT_NOTICE: Final = 120.0
_VANISHES_AFTER: Final = 3600.0
_TICK: Final = 0.05  # the timer coalesces: ten thousand tasks must not wake the loop a hundred thousand times
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RANK: Final = {status: rank for rank, status in enumerate(STATUSES)}


class Due:
    """Something that will happen."""

    __slots__ = ("act",)

    def __init__(self, act: Callable[[], None]) -> None:
        self.act: Callable[[], None] | None = act

    def cancel(self) -> None:
        """Call it off."""
        self.act = None


@attrs.define(kw_only=True)
class Outage:
    """Capacity that is not there."""

    provider: str | None = None
    """``FARGATE``, ``FARGATE_SPOT``, ``EC2``, a capacity provider; None: all."""
    zone: str | None = None
    """An availability zone; None: all."""
    times: float = math.inf
    """How many launches it turns away."""
    until: float = math.inf
    """When it ends, in seconds of the clock."""
    reason: str = NO_CAPACITY

    def covers(self, provider: str, zone: str, now: float) -> bool:
        """Whether it stands in the way of a launch."""
        return self.times > 0 and now < self.until and self.provider in {None, provider} and self.zone in {None, zone}


class Capacity:
    """What the platform has room for: everything, except where there is an outage."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.outages: list[Outage] = []

    def out(
        self,
        provider: str | None = None,
        *,
        zone: str | None = None,
        times: float = math.inf,
        seconds: float = math.inf,
        reason: str = NO_CAPACITY,
    ) -> Outage:
        """Take capacity away: for so many launches, for so many seconds, or until `back`."""
        outage = Outage(provider=provider, zone=zone, times=times, until=self._world.now() + seconds, reason=reason)
        self.outages.append(outage)
        return outage

    def back(self, outage: Outage | None = None) -> None:
        """End an outage, or all."""
        if outage is None:
            self.outages.clear()
        else:
            self.outages.remove(outage)

    def refusal(self, provider: str, zones: Iterable[str]) -> str | None:
        """Return the reason to turn a launch away if no zone has room; it counts as one for each outage in the way."""
        in_the_way: list[Outage] = []
        for zone in zones:
            outage = self.in_the_way(provider, zone)
            if outage is None:
                return None
            in_the_way.append(outage)
        for outage in {id(outage): outage for outage in in_the_way}.values():
            outage.times -= 1
        return in_the_way[0].reason if in_the_way else None

    def in_the_way(self, provider: str, zone: str) -> Outage | None:
        """Return the outage that stands in the way of a launch there."""
        now = self._world.now()
        return next((outage for outage in self.outages if outage.covers(provider, zone, now)), None)


@attrs.define(kw_only=True)
class _Fate:
    script: TaskScript
    when: Callable[[TaskRun], bool] | None
    times: float
    skip: int


class Fates:
    """Rules for what the platform does to tasks: the first that fits is used, then the fake's ``task_script``."""

    def __init__(self) -> None:
        self._rules: list[_Fate] = []

    def add(
        self,
        script: TaskScript,
        *,
        when: Callable[[TaskRun], bool] | None = None,
        times: float = 1,
        skip: int = 0,
    ) -> None:
        """Let the next *times* launches that fit (after the first *skip*) go that way."""
        self._rules.append(_Fate(script=script, when=when, times=times, skip=skip))

    def draw(self, run: TaskRun) -> TaskScript | None:
        """Return the script of a launch, and count it."""
        for rule in self._rules:
            if rule.times <= 0 or (rule.when is not None and not rule.when(run)):
                continue
            if rule.skip > 0:
                rule.skip -= 1
                continue
            rule.times -= 1
            return rule.script
        return None


class _Logs(Protocol):
    def has_group(self, name: str) -> bool: ...

    def create_group(self, name: str) -> None: ...

    def put(self, group: str, stream: str, events: Iterable[tuple[int, str]] = ()) -> None: ...


class World:
    """All tasks of an account, and the time that passes for them."""

    def __init__(
        self,
        clock: Clock,
        *,
        region: str = "us-east-1",
        account: str = "123456789012",
        seed: int = 0,
        engine: Engine | None = None,
        script: Script | ContainerScript | None = None,
        task_script: Callable[[TaskRun], TaskScript | None] | None = None,
        pace: Pace | None = None,
        visible_after: tuple[float, float] = (0.0, 0.0),
        logs: _Logs | None = None,
        emit: Callable[[dict[str, Any]], object] | None = None,
    ) -> None:
        self.clock = clock
        # One for all: two clocks of a machine are never read at the same moment, and what was written later must not
        # look as if it was written before.
        self._zero = clock.utcnow() - timedelta(seconds=clock.time())
        self.region = region
        self.account = account
        self.seed = seed
        self.engine = engine or ScriptedEngine()
        self.script: Script = _script(script)
        """What containers do; may be replaced at any time, for the launches that follow."""
        self.task_script = task_script
        self.pace = pace or Pace()
        self.visible_after = visible_after
        """(least, most) seconds until a new task can be described and listed."""
        self.fates = Fates()
        self.capacity = Capacity(self)
        self.subnets: dict[str, str] = {}
        """Availability zone by subnet, of those that are known; that of another follows from its name."""
        self.security_groups: set[str] = set()
        self.tasks: dict[str, Task] = {}
        """Every task that ever was, by ARN; ECS forgets them, the world does not."""
        self.on_launch: list[Callable[[Task], None]] = []
        """Called with each task once it is accepted and scripted, before anything happens to it."""

        self._logs = logs
        self._emit = emit
        self._by_starter: dict[str, list[Task]] = {}
        self._by_cluster: dict[str, dict[str, Task]] = {}
        self._random = Random(f"{seed}/world")  # noqa: S311 (repeatable, not secret)
        self._launches: dict[str, int] = {}
        self._due: list[tuple[float, int, Due]] = []
        self._order = count()
        self._settling: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._fired_at = -math.inf
        self._broken: BaseException | None = None
        self.engine.bind(self)

    # Time.

    def now(self) -> float:
        """Return the moment that is being lived, in seconds of the clock."""
        return self.clock.time() if self._settling is None else self._settling

    def moment(self, seconds: float) -> datetime:
        """Return a moment of the clock as AWS writes it: to the millisecond."""
        exact = self._zero + timedelta(seconds=seconds)
        return exact.replace(microsecond=exact.microsecond // 1000 * 1000)

    def milliseconds(self, seconds: float) -> int:
        """Return a moment of the clock as CloudWatch writes it."""
        exact = self._zero + timedelta(seconds=seconds)
        return int((exact - _EPOCH) / timedelta(milliseconds=1))

    def at(self, moment: float, act: Callable[[], None]) -> Due:
        """Let something happen at a moment of the clock."""
        due = Due(act)
        heapq.heappush(self._due, (moment, next(self._order), due))
        if self._settling is None:
            self._arm()
        return due

    def after(self, seconds: float, act: Callable[[], None]) -> Due:
        """Let something happen in so many seconds."""
        return self.at(self.now() + seconds, act)

    def settle(self) -> None:
        """Do all that is due."""
        if self._broken is not None:
            raise RuntimeError("the fake AWS broke while time passed") from self._broken
        if self._settling is not None:
            return
        now = self.clock.time()
        try:
            while self._due and self._due[0][0] <= now:
                moment, _, due = heapq.heappop(self._due)
                if due.act is not None:
                    self._settling = moment
                    due.act()
        except BaseException as exc:
            self._broken = exc
            raise
        finally:
            self._settling = None
        self._arm()

    def _arm(self) -> None:
        """Have the running event loop call us when the next thing is due."""
        while self._due and self._due[0][2].act is None:
            heapq.heappop(self._due)
        if not self._due:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        at = max(self._due[0][0], self._fired_at + _TICK)
        if self._timer is not None:
            if loop is self._loop and self._timer_at <= at:
                return
            self._timer.cancel()
        self._loop, self._timer_at = loop, at
        self._timer = loop.call_later(max(0.0, at - self.clock.time()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._fired_at = self.clock.time()
        self.settle()

    def pace_of(self, task: Task) -> Pace:
        """Return how quick the platform is with a task."""
        return task.script.pace or self.pace

    def span(self, task: Task, step: str) -> float:
        """Return how long a step takes for a task: a draw from its `Pace`."""
        least, most = getattr(self.pace_of(task), step)
        return least if least == most else task.random.uniform(least, most)

    # Places.

    def zone_of(self, subnet: str) -> str:
        """Return the availability zone of a subnet."""
        known = self.subnets.get(subnet)
        return known or f"{self.region}{'abc'[zlib.crc32(subnet.encode()) % 3]}"

    def choose(self, names: Sequence[str]) -> str:
        """Return one of several, as chance will have it."""
        return names[0] if len(names) == 1 else self._random.choice(names)

    # Launching; called by the ECS verbs.

    def next_launch(self, started_by: str | None, family: str) -> int:
        """Count a launch of the same ``startedBy``, or of the same family if there is none."""
        key = f"by {started_by}" if started_by else f"of {family}"
        self._launches[key] = launch = self._launches.get(key, 0) + 1
        return launch

    def new_task_id(self) -> str:
        """Return an identifier as ECS makes them."""
        return f"{self._random.getrandbits(128):032x}"

    def new_interface(self, subnet: str) -> Interface:
        """Return a network interface in a subnet."""
        draw = self._random.getrandbits
        number = len(self.tasks) + 1
        bits = f"{draw(128):032x}"
        return Interface(
            id=f"{bits[:8]}-{bits[8:12]}-4{bits[13:16]}-8{bits[17:20]}-{bits[20:]}",
            subnet=subnet,
            eni=f"eni-{draw(68):017x}",
            mac="0e:" + ":".join(f"{draw(8):02x}" for _ in range(5)),
            address=f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",
        )

    def accept(self, task: Task) -> None:
        """Take in a new task: it is PROVISIONING from now on."""
        now = self.now()
        task.random = Random(f"{self.seed}/{task.number}")  # noqa: S311 (repeatable, not secret)
        runs = tuple(container.run for container in task.containers)
        run = TaskRun(
            task_arn=task.arn,
            family=task.family,
            started_by=task.started_by or "",
            launch_type=task.launch_type,
            capacity_provider=task.provider,
            launch=task.launch,
            number=task.number,
            containers=runs,
        )
        task.script = (
            self.fates.draw(run) or (self.task_script(run) if self.task_script is not None else None) or TaskScript()
        )
        for container in task.containers:
            container.script = _watchdog(container.run) or self.script(container.run)
        if task.script.guardduty:
            self._inject(task)
        task.visible_at = now + task.random.uniform(*self.visible_after)
        task.listed_at = now + task.random.uniform(*self.visible_after)
        self.tasks[task.arn] = task
        self._by_cluster.setdefault(task.cluster_arn, {})[task.id] = task
        if task.started_by:
            self._by_starter.setdefault(task.started_by, []).append(task)
        self._stamp(task, "createdAt")
        for told in self.on_launch:
            told(task)
        self._changed(task)
        self.after(self.span(task, "provisioning"), partial(self._leave, task, "PROVISIONING", "PENDING"))

    def _inject(self, task: Task) -> None:
        name = f"aws-guardduty-agent-{task.id[:6]}"
        run = ContainerRun(name=name, image="", essential=False, task_arn=task.arn, family=task.family)
        arn = f"{task.arn.replace(':task/', ':container/')}/{name}"
        task.containers.append(Container(run, {"name": name, "essential": False}, arn=arn, defined=False))
        overrides = [*(task.overrides.get("containerOverrides") or ()), {"name": name}]
        task.overrides = {**task.overrides, "containerOverrides": overrides}

    def _leave(self, task: Task, status: str, following: str) -> None:
        """Go from one status of the way up to the next."""
        if task.stopping or task.status != status or task.script.stuck_in == status:
            return
        script = task.script
        if script.fails_to_start and script.fails_in == status:
            self._fail(task, script.fails_to_start)
            return
        if following == "ACTIVATING" and not self.engine.shows_activating:
            self._activate(task)  # the state is shown when its containers are there
            return
        task.status = following
        if following == "PENDING":
            if task.interface is not None:
                task.interface.status = "ATTACHED"
            task.connected = True
            self._stamp(task, "connectivityAt")
            self._changed(task)
            self.after(self.span(task, "pending"), partial(self._leave, task, "PENDING", "ACTIVATING"))
        else:
            self._changed(task)
            self._activate(task)

    def _activate(self, task: Task) -> None:
        script = task.script
        if script.fails_to_start:
            self.after(self.span(task, "pull"), partial(self._fail, task, script.fails_to_start))
        elif script.stuck_in == "ACTIVATING":
            pass
        elif why := task.unresolved or self._log_trouble(task):
            self.after(self.span(task, "start"), partial(self._fail, task, why))
        else:
            task.handed_over = True
            self.engine.start(task)

    def _log_trouble(self, task: Task) -> str:
        """Return why the log driver of a container cannot be had, having made the groups that may be made."""
        if self._logs is None:
            return ""
        for container in task.containers:
            if container.log is None or self._logs.has_group(container.log.group):
                continue
            options = container.definition["logConfiguration"].get("options") or {}
            if options.get("awslogs-create-group", "").lower() == "true":
                self._logs.create_group(container.log.group)
                continue
            return (
                "ResourceInitializationError: failed to initialize logging driver: failed to create Cloudwatch log "
                "stream: ResourceNotFoundException: The specified log group does not exist."
            )
        return ""

    def _fail(self, task: Task, reason: str) -> None:
        if not task.stopping:
            self.failed_to_start(task, reason)

    # Reports of an engine.

    def pulling(self, task: Task) -> None:
        """Take note that the image pull began."""
        self._stamp(task, "pullStartedAt")

    def pulled(self, task: Task) -> None:
        """Take note that the last image is there."""
        self._stamp(task, "pullStoppedAt")

    def container_started(
        self, task: Task, name: str, *, runtime_id: str = "", image_digest: str = "", address: str = ""
    ) -> None:
        """
        Take note that a container runs; the task is RUNNING once all of them have started.

        *address* is its IPv4 address, if it is not the one that the fake made up. Its log stream exists from now on.
        """
        container = task.container(name)
        container.status = "RUNNING"
        container.started_at = self.now()
        container.runtime_id = runtime_id or f"{task.id}-{zlib.crc32(name.encode()):010d}"
        digest = zlib.crc32(container.run.image.encode())
        container.digest = image_digest or f"sha256:{digest:08x}{'0' * 56}"
        if address and task.interface is not None:
            task.interface.address = address
        if container.log is not None and self._logs is not None:
            self._logs.put(container.log.group, container.log.stream)
        if all(other.status != "PENDING" for other in task.containers if other.defined) and not task.stopping:
            if task.status == "PENDING":
                task.status = "ACTIVATING"
                self._changed(task)
            task.status = "RUNNING"
            self._stamp(task, "startedAt")
            for other in task.containers:
                if not other.defined:
                    other.status = "RUNNING"
            self._changed(task)
            self._plan_trouble(task)
        else:
            self._changed(task)

    def _plan_trouble(self, task: Task) -> None:
        script = task.script
        if script.interrupted_after is not None:
            self.after(script.interrupted_after, partial(self.interrupt, task))
        if script.host_fails_after is not None:
            lose = partial(self.lose_host, task, reason=script.host_reason, stop_code=script.host_stop_code)
            self.after(script.host_fails_after, lose)

    def container_healthy(self, task: Task, name: str, *, healthy: bool = True) -> None:
        """Take note of what a container's health check says. It never stops a task of RunTask."""
        task.container(name).health = "HEALTHY" if healthy else "UNHEALTHY"
        self._changed(task)

    def output(self, task: Task, name: str, lines: Sequence[tuple[int, str]]) -> None:
        """Take lines that a container wrote: (milliseconds since 1970, text without its line end)."""
        container = task.container(name)
        container.written.extend(lines)
        if container.log is not None and self._logs is not None:
            self._logs.put(container.log.group, container.log.stream, lines)

    def container_exited(self, task: Task, name: str, *, exit_code: int | None, reason: str = "") -> None:
        """
        Take note that a container ended; exit code None if nobody knows it.

        If it is the first essential one, the world wants the task stopped and calls the engine's `stop` at once.
        """
        container = task.container(name)
        container.status = "STOPPED"
        container.exit_code = exit_code
        container.reason = reason
        if container.ended_at is None:
            container.ended_at, container.true_exit_code = self.now(), exit_code
        if container.essential:
            self._stamp(task, "executionStoppedAt")
        if container.essential and not task.stopping:
            self._want_stopped(task, "EssentialContainerExited", ESSENTIAL_EXITED)
        else:
            self._changed(task)

    def failed_to_start(
        self, task: Task, reason: str, *, container: str = "", container_reason: str = "", exit_code: int | None = None
    ) -> None:
        """
        Take note that a task cannot start; *reason* is its ``stoppedReason``.

        *container* is the one that could not, with its own reason, and with the exit code that an engine may have
        given it although it never ran.
        """
        if container:
            culprit = task.container(container)
            culprit.status = "STOPPED"
            culprit.reason = container_reason
            culprit.exit_code = exit_code
        if task.stopping:
            self._changed(task)
            return
        if task.script.without_containers:
            task.shows_containers = False
        self._want_stopped(task, "TaskFailedToStart", reason)

    def finished(self, task: Task) -> None:
        """Take note that nothing of the task runs any more; the world winds it down to STOPPED."""
        if task.finished:
            return
        task.finished = True
        if not task.stopping:
            # Every container has ended, none of them essential (or the engine gave up): the task is over.
            self._want_stopped(task, "EssentialContainerExited", ESSENTIAL_EXITED)
        elif task.noticed:
            self._go_down(task)
        elif task.status in {"STOPPING", "PROVISIONING", "PENDING", "ACTIVATING"}:
            self._deprovision(task)

    # The way down.

    def stop(self, task: Task, reason: str | None = None) -> None:
        """Do as StopTask: the first reason stays, a task that is over stays as it is."""
        if not task.stopping:
            self._want_stopped(task, "UserInitiated", reason or "Task stopped by user")

    def interrupt(self, task: Task | str) -> None:
        """Take Spot capacity back: a notice with SIGTERM now, the end two minutes later at most."""
        task = self._task(task)
        if task.stopping:
            return
        task.noticed = task.status == "RUNNING"
        self._want_stopped(task, "SpotInterruption", SPOT_INTERRUPTED)
        self.after(_SPOT_NOTICE, partial(self._reclaim, task))

    def _reclaim(self, task: Task) -> None:
        if not task.finished and task.handed_over:
            self.engine.kill(task)

    def lose_host(self, task: Task | str, *, reason: str = MAINTENANCE, stop_code: str | None = None) -> None:
        """End everything of a task without notice: its containers have no exit codes."""
        task = self._task(task)
        if task.stopped or task.finished:
            return
        if not task.stopping:
            task.desired_status = "STOPPED"
            task.stop_code, task.stopped_reason = stop_code, reason
            self._changed(task)
            self._go_down(task)
        if task.handed_over:
            self.engine.kill(task)
        else:
            self.finished(task)

    def hide(self, task: Task | str, seconds: float) -> None:
        """Let DescribeTasks and ListTasks not find a task for a while."""
        task = self._task(task)
        task.hidden_until = self.now() + seconds

    def _task(self, task: Task | str) -> Task:
        return self.tasks[task] if isinstance(task, str) else task

    def _want_stopped(self, task: Task, code: str | None, reason: str) -> None:
        task.desired_status = "STOPPED"
        task.stop_code, task.stopped_reason = code, reason
        self._changed(task)
        if not task.noticed:
            self._go_down(task)
        if task.finished:
            return
        if task.handed_over:
            self.engine.stop(task)
        else:
            self.finished(task)

    def _go_down(self, task: Task) -> None:
        """Say DEACTIVATING and STOPPING in their time; a task that never ran skips both."""
        task.noticed = False
        if task.status == "RUNNING":
            if task.script.stuck_in != "RUNNING":
                self.after(self.span(task, "deactivating"), partial(self._descend, task, "DEACTIVATING"))
        elif task.finished:
            self._deprovision(task)

    def _descend(self, task: Task, status: str) -> None:
        if _RANK[task.status] >= _RANK[status]:
            return
        task.status = status
        if status == "DEACTIVATING":
            self._changed(task)
            if task.script.stuck_in != status:
                self.after(self.span(task, "stopping"), partial(self._descend, task, "STOPPING"))
            return
        self._stamp(task, "stoppingAt")
        self._changed(task)
        if task.finished:
            self.after(self.span(task, "deactivating"), partial(self._deprovision, task))

    def _deprovision(self, task: Task) -> None:
        if task.script.stuck_in == task.status and task.status == "STOPPING":
            return
        if _RANK[task.status] >= _RANK["DEPROVISIONING"]:
            return
        task.status = "DEPROVISIONING"
        self._stamp(task, "stoppingAt")
        for container in task.containers:
            if container.defined and container.status == "PENDING":
                container.status = "STOPPED"  # it never ran: no exit code
            elif not container.defined:
                container.exit_code = 0 if container.status == "RUNNING" else None
                container.status = "STOPPED"
        if task.interface is not None:
            task.interface.status = "DETACHING"
        self._changed(task)
        if task.script.stuck_in != "DEPROVISIONING":
            self.after(self.span(task, "deprovisioning"), partial(self._end, task))

    def _end(self, task: Task) -> None:
        task.status = "STOPPED"
        self._stamp(task, "stoppedAt")
        if task.interface is not None:
            task.interface.status = "DELETED"
        self._changed(task)

    def _stamp(self, task: Task, name: str) -> None:
        """Note when something happened to a task; the first time stays."""
        if name not in task.times:
            task.times[name] = now = self.now()
            task.moments[name] = self.moment(now)
            task.drawn = None

    def _changed(self, task: Task) -> None:
        task.version += 1
        task.drawn = None
        if self._emit is not None:
            self._emit(self.event(task))

    # What can be seen.

    def find(self, cluster_arn: str, task_id: str) -> Task | None:
        """Return a task if DescribeTasks sees it: not at once, and for an hour after its end."""
        task = self._by_cluster.get(cluster_arn, {}).get(task_id)
        return None if task is None or not self.shows(task) else task

    def shows(self, task: Task) -> bool:
        """Whether DescribeTasks shows a task now."""
        now = self.now()
        return now >= task.visible_at and now >= task.hidden_until and not self._vanished(task)

    def known(self, cluster_arn: str, task_id: str) -> Task | None:
        """Return a task if StopTask knows it: at once, and for an hour after its end."""
        task = self._by_cluster.get(cluster_arn, {}).get(task_id)
        return None if task is None or self._vanished(task) else task

    def listed(self, cluster_arn: str, started_by: str | None = None) -> Iterator[Task]:
        """Yield the tasks that ListTasks sees, of one starter or all."""
        now = self.now()
        tasks: Iterable[Task] = (
            self._by_cluster.get(cluster_arn, {}).values()
            if started_by is None
            else self._by_starter.get(started_by, ())
        )
        for task in tasks:
            seen = now >= max(task.listed_at, task.hidden_until) and not self._vanished(task)
            if seen and task.cluster_arn == cluster_arn:
                yield task

    def _vanished(self, task: Task) -> bool:
        stopped = task.times.get("stoppedAt")
        return stopped is not None and self.now() >= stopped + _VANISHES_AFTER

    def vcpus(self, provider: str) -> float:
        """Return how many vCPUs run on a Fargate provider."""
        spot = provider == "FARGATE_SPOT"
        return sum(
            int(task.cpu or 0) / 1024
            for tasks in self._by_cluster.values()
            for task in tasks.values()
            if not task.stopped and task.launch_type == "FARGATE" and (task.provider == "FARGATE_SPOT") == spot
        )

    def wire(self, task: Task, make: Callable[[Mapping[str, Any]], dict[str, Any]] = dict[str, Any]) -> dict[str, Any]:
        """Return a task in ECS's words, without its tags. The caller may change it: *make* copies it."""
        drawn = make(self.drawn(task))
        drawn["containers"] = [dict(container) for container in drawn["containers"]]
        drawn["attachments"] = [dict(attachment) for attachment in drawn["attachments"]]
        drawn["overrides"] = dict(drawn["overrides"])
        return drawn

    def drawn(self, task: Task) -> Mapping[str, Any]:
        """Return the same, for who changes nothing in it: it is made once for each state of the task."""
        if task.drawn is None:
            task.drawn = self._draw(task)
        return task.drawn

    def _draw(self, task: Task) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "attachments": _attachments(task, "ElasticNetworkInterface"),
            "attributes": _attributes(task),
            "availabilityZone": task.zone,
            "clusterArn": task.cluster_arn,
            "containers": [self._container(task, each, event=False) for each in _shown(task)],
            "desiredStatus": task.desired_status,
            "enableExecuteCommand": task.execute_command,
            "group": task.group,
            "healthStatus": _health(task),
            "lastStatus": task.status,
            "launchType": task.launch_type,
            "overrides": {"containerOverrides": [], "inferenceAcceleratorOverrides": [], **task.overrides},
            "tags": [],
            "taskArn": task.arn,
            "taskDefinitionArn": task.definition["taskDefinitionArn"],
            "version": task.version,
        }
        shown |= {name: value for name, value in _optional(task) if value is not None}
        shown |= task.moments
        if task.ephemeral_gib is not None:
            shown["fargateEphemeralStorage"] = {"sizeInGiB": task.ephemeral_gib}
        return shown

    def event(self, task: Task) -> dict[str, Any]:
        """Return an EventBridge event that tells of a task as it is."""
        now = self.moment(self.now())
        detail: dict[str, Any] = {
            "attachments": _attachments(task, "eni"),
            "attributes": _attributes(task),
            "availabilityZone": task.zone,
            "clusterArn": task.cluster_arn,
            "containers": [self._container(task, each, event=True) for each in _shown(task)],
            "desiredStatus": task.desired_status,
            "enableExecuteCommand": task.execute_command,
            "group": task.group,
            "lastStatus": task.status,
            "launchType": task.launch_type,
            "overrides": {"containerOverrides": [], **task.overrides},
            "taskArn": task.arn,
            "taskDefinitionArn": task.definition["taskDefinitionArn"],
            "version": task.version,
        }
        detail |= {name: value for name, value in _optional(task) if value is not None and name != "platformFamily"}
        detail |= {name: _iso(moment) for name, moment in task.moments.items()}
        detail["updatedAt"] = _iso(now)
        return {
            "version": "0",
            "id": _event_id(task),
            "detail-type": "ECS Task State Change",
            "source": "aws.ecs",
            "account": self.account,
            "time": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "region": self.region,
            "resources": [task.arn],
            "detail": detail,
        }

    def _container(self, task: Task, container: Container, *, event: bool) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "containerArn": container.arn,
            "taskArn": task.arn,
            "name": container.name,
            "lastStatus": container.status,
            "networkInterfaces": [],
            "cpu": str(container.definition.get("cpu") or 0) if container.defined else "null",
        }
        if task.interface is not None and task.interface.status != "PRECREATED":
            shown["networkInterfaces"] = [
                {"attachmentId": task.interface.id, "privateIpv4Address": task.interface.address}
            ]
        if container.defined:
            shown["image"] = container.run.image
        for name in ("memory", "memoryReservation"):
            amount = container.override.get(name) or container.definition.get(name)
            if amount:
                shown[name] = str(amount)
        if container.override.get("cpu"):
            shown["cpu"] = str(container.override["cpu"])
        if container.digest:
            shown["imageDigest"] = container.digest
        if container.runtime_id:
            shown["runtimeId"] = container.runtime_id
        if container.exit_code is not None:
            shown["exitCode"] = container.exit_code
        if container.reason:
            shown["reason"] = container.reason[:1024]
        if not event:
            shown["healthStatus"] = container.health or "UNKNOWN"
        return shown

    # The truth.

    def truth(self, started_by: str | None = None) -> list[TaskTruth]:
        """Return what really happened, in the order of launches: of one starter or all."""
        self.settle()
        return [truth_of(task) for task in self.tasks.values() if started_by is None or task.started_by == started_by]


def _script(script: Script | ContainerScript | None) -> Script:
    if script is None:
        script = ContainerScript()
    if isinstance(script, ContainerScript):
        always = script
        return lambda _: always
    return script


def _watchdog(run: ContainerRun) -> ContainerScript | None:
    """Return what our own watchdog does: a script of a test knows its job, not what the library puts beside it."""
    if run.name != DEADLINE_CONTAINER or run.entry_point != ("sleep",) or len(run.command) != 1:
        return None
    return ContainerScript(run_for=float(run.command[0]))


def _shown(task: Task) -> list[Container]:
    return task.containers if task.shows_containers else []


def _optional(task: Task) -> Iterator[tuple[str, Any]]:
    yield "capacityProviderName", task.capacity_provider
    yield "connectivity", "CONNECTED" if task.connected else None
    yield "containerInstanceArn", task.instance_arn
    yield "cpu", task.cpu
    yield "memory", task.memory
    yield "ephemeralStorage", None if task.ephemeral_gib is None else {"sizeInGiB": task.ephemeral_gib}
    yield "platformFamily", task.platform_family
    yield "platformVersion", task.platform_version
    yield "startedBy", task.started_by
    yield "stopCode", task.stop_code
    yield "stoppedReason", task.stopped_reason


def _attachments(task: Task, kind: str) -> list[dict[str, Any]]:
    interface = task.interface
    if interface is None:
        return []
    return [{"id": interface.id, "type": kind, "status": interface.status, "details": interface.details()}]


def _attributes(task: Task) -> list[dict[str, str]]:
    platform = task.definition.get("runtimePlatform") or {}
    architecture = "arm64" if platform.get("cpuArchitecture") == "ARM64" else "x86_64"
    return [{"name": "ecs.cpu-architecture", "value": architecture}]


def _health(task: Task) -> str:
    checked = [container.health for container in task.containers if container.essential and container.health]
    if "UNHEALTHY" in checked:
        return "UNHEALTHY"
    return "HEALTHY" if checked and set(checked) == {"HEALTHY"} else "UNKNOWN"


def _iso(moment: datetime) -> str:
    """Write a moment as events do: as many digits as it takes."""
    text = moment.isoformat().removesuffix("+00:00")
    return f"{text.rstrip('0') if '.' in text else text}Z"


def _event_id(task: Task) -> str:
    bits = f"{task.id[:24]}{task.version:08x}"
    return f"{bits[:8]}-{bits[8:12]}-4{bits[13:16]}-8{bits[17:20]}-{bits[20:]}"
