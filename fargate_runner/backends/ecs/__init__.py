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

__all__ = [
    "Budget",
    "Capacity",
    "EbsVolume",
    "EcsBackend",
    "EcsOptions",
    "EfsVolume",
    "LogGroup",
    "Network",
    "Provider",
    "Roles",
]
