"""What a test says of the containers and tasks of the fake: values, and AWS's own words for what they cause."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import attrs
from attrs import field, validators

__all__ = [
    "ENI_TIMEOUT",
    "ESSENTIAL_EXITED",
    "MAINTENANCE",
    "NO_CAPACITY",
    "OUT_OF_MEMORY",
    "SPOT_INTERRUPTED",
    "STATUSES",
    "ContainerRun",
    "ContainerScript",
    "Pace",
    "Script",
    "TaskRun",
    "TaskScript",
]

OUT_OF_MEMORY: Final = "OutOfMemoryError: Container killed due to memory usage"
ESSENTIAL_EXITED: Final = "Essential container in task exited"
SPOT_INTERRUPTED: Final = "Your Spot Task was interrupted."
MAINTENANCE: Final = "ECS is performing maintenance on the underlying infrastructure hosting the task"
ENI_TIMEOUT: Final = "Timeout waiting for network interface provisioning to complete."
NO_CAPACITY: Final = "Capacity is unavailable at this time. Please try again later or in a different availability zone"

STATUSES: Final = (
    "PROVISIONING",
    "PENDING",
    "ACTIVATING",
    "RUNNING",
    "DEACTIVATING",
    "STOPPING",
    "DEPROVISIONING",
    "STOPPED",
)
"""What ``lastStatus`` goes through, in its order."""

_seconds = validators.ge(0.0)


@attrs.frozen(kw_only=True)
class ContainerRun:
    """What a container is about to run: overrides applied, secrets and environment files resolved."""

    name: str
    image: str
    command: tuple[str, ...] = ()
    entry_point: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(factory=dict, repr=False)
    essential: bool = True
    task_arn: str = ""
    family: str = ""
    started_by: str = ""
    capacity_provider: str = ""
    """``FARGATE``, ``FARGATE_SPOT``, …; the launch type where the task was started without a strategy."""
    launch: int = 1
    """This is the n-th task with this ``startedBy`` (of this family, if it has none), counted from 1."""
    number: int = 1
    """This is the n-th task of the whole fake, counted from 1."""


@attrs.frozen(kw_only=True)
class ContainerScript:
    """What a container does, unless somebody stops it."""

    run_for: float = field(default=5.0, validator=_seconds)
    """Seconds until it exits by itself; ``math.inf``: never."""
    exit_code: int | None = 0
    """None: the platform never learns it."""
    lines: tuple[str, ...] = ()
    """Its output, spread evenly over the run; one a second if it runs for ever."""
    reason: str = ""
    """``containers[].reason`` once it has exited."""
    exit_code_on_sigterm: int = 143
    ignores_sigterm: bool = False
    """It runs until SIGKILL, after the ``stopTimeout``: exit code 137."""
    out_of_memory: bool = False
    """It ends after *run_for* as the kernel's victim: exit code 137, with ECS's reason."""
    could_not_start: str = ""
    """
    Why it never runs, in ECS's words. The first word decides when: ``ResourceInitializationError: …`` comes before the
    image pull, ``CannotPullContainerError: …`` with it, anything else after it.
    """
    healthy_after: float | None = 1.0
    """Seconds until its health check (if the definition has one) says HEALTHY; None: it says UNHEALTHY."""
    exit_unnoticed: bool = False
    """Its process ends, and ECS does not see it: the container stays RUNNING until the task is stopped."""


Script: TypeAlias = Callable[[ContainerRun], ContainerScript]


@attrs.frozen(kw_only=True)
class TaskRun:
    """What a task is about to run."""

    task_arn: str
    family: str
    started_by: str
    launch_type: str
    capacity_provider: str
    launch: int
    number: int
    containers: tuple[ContainerRun, ...]


@attrs.frozen(kw_only=True)
class Pace:
    """How long the platform takes: (least, most) seconds for each step. The default is about that of real Fargate."""

    provisioning: tuple[float, float] = (5.0, 12.0)
    """The network interface; on EC2 capacity providers, the machine."""
    pending: tuple[float, float] = (4.0, 10.0)
    pull: tuple[float, float] = (8.0, 22.0)
    start: tuple[float, float] = (0.5, 2.0)
    """From the last pull to the first container."""
    dying: tuple[float, float] = (0.1, 0.5)
    """How long a process takes to end once it was told to."""
    deactivating: tuple[float, float] = (0.2, 1.0)
    stopping: tuple[float, float] = (2.0, 10.0)
    """From the wish to stop until STOPPING is said; ``stoppingAt``."""
    deprovisioning: tuple[float, float] = (8.0, 22.0)
    log_flush: float = field(default=5.0, validator=_seconds)
    """The awslogs driver's batches."""

    @classmethod
    def instant(cls) -> Pace:
        """Return a platform that takes no time: every status still comes, in its order."""
        none = (0.0, 0.0)
        return cls(
            provisioning=none,
            pending=none,
            pull=none,
            start=none,
            dying=none,
            deactivating=none,
            stopping=none,
            deprovisioning=none,
            log_flush=0.0,
        )

    def scaled(self, factor: float) -> Pace:
        """Return the same, *factor* times as slow."""
        spans = {
            name: tuple(limit * factor for limit in value)
            for name, value in attrs.asdict(self).items()
            if isinstance(value, tuple)
        }
        return attrs.evolve(self, log_flush=self.log_flush * factor, **spans)


@attrs.frozen(kw_only=True)
class TaskScript:
    """What the platform does to a task, besides what its containers do themselves."""

    fails_to_start: str = ""
    """``stoppedReason`` of a task that never runs, such as ``Timeout waiting for network interface provisioning …``."""
    fails_in: str = field(default="PROVISIONING", validator=validators.in_(("PROVISIONING", "PENDING", "ACTIVATING")))
    """The status after which it fails."""
    without_containers: bool = False
    """A task that fails to start shows ``containers: []``, as AWS sometimes does."""
    interrupted_after: float | None = None
    """Seconds after RUNNING at which Spot takes the capacity back: a notice, SIGTERM, two minutes at most."""
    host_fails_after: float | None = None
    """Seconds after RUNNING at which everything ends without notice."""
    host_reason: str = MAINTENANCE
    host_stop_code: str | None = None
    """AWS often gives none."""
    stuck_in: str | None = field(default=None, validator=validators.optional(validators.in_(STATUSES[:-1])))
    """The status that it never leaves; before RUNNING, it still can be stopped."""
    guardduty: bool = False
    """A container that nobody defined is among ``containers``."""
    pace: Pace | None = None
