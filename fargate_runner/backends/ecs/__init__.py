"""Jobs as tasks of AWS ECS: on Fargate, Fargate Spot, EC2 and any other capacity."""

from fargate_runner.backends.ecs._api import Budget
from fargate_runner.backends.ecs._backend import EcsBackend
from fargate_runner.backends.ecs._config import (
    Capacity,
    EbsVolume,
    EcsOptions,
    EfsVolume,
    LogGroup,
    Network,
    Provider,
    Roles,
)
from fargate_runner.backends.ecs._logs import LogCadence
from fargate_runner.backends.ecs._watch import Cadence

__all__ = [
    "Budget",
    "Cadence",
    "Capacity",
    "EbsVolume",
    "EcsBackend",
    "EcsOptions",
    "EfsVolume",
    "LogCadence",
    "LogGroup",
    "Network",
    "Provider",
    "Roles",
]
