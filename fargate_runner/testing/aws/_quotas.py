"""The quotas of an account, and the token buckets that enforce them. Figures as AWS publishes them in autumn 2026."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import attrs

from fargate_runner.testing.aws._service import Clock

__all__ = ["Bucket", "Quotas", "Rate", "buckets_of"]


@attrs.frozen
class Rate:
    """What a token bucket allows: *burst* calls at once, *refill* a second for good."""

    burst: float
    refill: float


# Amazon ECS: per account and region; all actions of a bucket share it.
_ECS_BUCKETS: Final[Mapping[str, tuple[Rate, tuple[str, ...]]]] = {
    "ecs.cluster-resource-modify": (
        Rate(100, 40),
        (
            *("DeregisterContainerInstance", "ExecuteCommand", "PutAttributes", "DeleteAttributes"),
            *("RegisterContainerInstance", "RunTask", "StartTask", "StopTask", "SubmitAttachmentStateChanges"),
            *("SubmitContainerStateChange", "SubmitTaskStateChange", "UpdateContainerAgent"),
            "UpdateContainerInstancesState",
        ),
    ),
    "ecs.cluster-resource-read": (
        Rate(100, 20),
        ("DescribeContainerInstances", "DescribeTasks", "ListAttributes", "ListContainerInstances", "ListTasks"),
    ),
    "ecs.task-definition-modify": (Rate(20, 1), ("RegisterTaskDefinition", "DeregisterTaskDefinition")),
    "ecs.task-definition-read": (
        Rate(50, 20),
        ("DescribeTaskDefinition", "ListTaskDefinitionFamilies", "ListTaskDefinitions"),
    ),
    "ecs.task-definition-delete": (Rate(5, 1), ("DeleteTaskDefinitions",)),
    "ecs.cluster-modify": (
        Rate(20, 1),
        ("CreateCluster", "DeleteCluster", "PutClusterCapacityProviders", "UpdateCluster", "UpdateClusterSettings"),
    ),
    "ecs.cluster-read": (Rate(50, 20), ("DescribeClusters", "ListClusters")),
    "ecs.tag-modify": (Rate(20, 10), ("TagResource", "UntagResource")),
    "ecs.tag-read": (Rate(50, 20), ("ListTagsForResource",)),
    "ecs.capacity-provider-modify": (
        Rate(10, 1),
        ("CreateCapacityProvider", "DeleteCapacityProvider", "UpdateCapacityProvider"),
    ),
    "ecs.capacity-provider-read": (Rate(50, 20), ("DescribeCapacityProviders",)),
    "ecs.account-setting-modify": (
        Rate(10, 1),
        ("DeleteAccountSetting", "PutAccountSetting", "PutAccountSettingDefault"),
    ),
    "ecs.account-setting-read": (Rate(50, 20), ("ListAccountSettings",)),
}

# CloudWatch Logs: calls a second per operation; the burst is one second's worth.
_LOGS_PER_SECOND: Final[Mapping[str, float]] = {
    "CreateLogGroup": 10,
    "CreateLogStream": 50,
    "DescribeLogGroups": 10,
    "DescribeLogStreams": 25,
    "PutLogEvents": 5000,
    "PutRetentionPolicy": 5,
    "StartLiveTail": 5,
    "StartQuery": 10,
}
_GET_LOG_EVENTS: Final[Mapping[str, float]] = {
    **dict.fromkeys(
        (
            *("us-west-2", "eu-west-1", "eu-central-1", "ap-northeast-3", "ap-southeast-3"),
            *("ca-west-1", "il-central-1"),
        ),
        10.0,
    ),
    "eu-west-3": 30.0,
}
_FILTER_LOG_EVENTS: Final[Mapping[str, float]] = {
    "us-east-1": 25.0,
    **dict.fromkeys(("eu-central-1", "ap-northeast-3", "ap-southeast-3", "ca-west-1", "il-central-1"), 5.0),
}

FARGATE_RUN_TASK: Final = "ecs.run-task-fargate"
LAUNCHES: Final = {"FARGATE": "fargate.on-demand-launches", "FARGATE_SPOT": "fargate.spot-launches"}


def _published(region: str) -> dict[str, Rate]:
    rates = {name: rate for name, (rate, _) in _ECS_BUCKETS.items()}
    rates[FARGATE_RUN_TASK] = Rate(20, 20)
    rates |= dict.fromkeys(LAUNCHES.values(), Rate(100, 20))
    per_second = {
        **_LOGS_PER_SECOND,
        "GetLogEvents": _GET_LOG_EVENTS.get(region, 25.0),
        "FilterLogEvents": _FILTER_LOG_EVENTS.get(region, 10.0),
    }
    return rates | {f"logs.{operation}": Rate(each, each) for operation, each in per_second.items()}


@attrs.frozen(kw_only=True)
class Quotas:
    """What an account may do. `published` is what AWS gives to everybody, `unlimited` is for tests of other things."""

    rates: Mapping[str, Rate] = attrs.field(factory=dict)
    """A token bucket by name, such as ``ecs.cluster-resource-read`` or ``logs.GetLogEvents``; none: no limit."""
    vcpus: float | None = None
    """How many On-Demand vCPUs may run at once; None: any number."""
    spot_vcpus: float | None = None
    """How many Spot vCPUs may run at once."""

    @classmethod
    def published(
        cls, region: str = "us-east-1", *, vcpus: float | None = None, spot_vcpus: float | None = None
    ) -> Quotas:
        """
        Return AWS's rates of a region, with as many vCPUs as the account was given.

        A new account has 6 of each; AWS raises that with use, so there is no figure that is true of all.
        """
        return cls(rates=_published(region), vcpus=vcpus, spot_vcpus=spot_vcpus)

    @classmethod
    def unlimited(cls) -> Quotas:
        """Return no limits at all."""
        return cls()

    def scaled(self, factor: float) -> Quotas:
        """Return the same with every rate multiplied: other users of the account take their share."""
        rates = {name: Rate(max(1.0, rate.burst * factor), rate.refill * factor) for name, rate in self.rates.items()}
        return attrs.evolve(self, rates=rates)


class Bucket:
    """A token bucket on a clock."""

    def __init__(self, rate: Rate, clock: Clock) -> None:
        self.rate = rate
        self._clock = clock
        self._tokens = float(rate.burst)
        self._at = clock.time()

    def take(self, tokens: float = 1.0) -> bool:
        """Take tokens if there are so many."""
        now = self._clock.time()
        self._tokens = min(self.rate.burst, self._tokens + (now - self._at) * self.rate.refill)
        self._at = now
        # Times are floats: a call each 1/20 s must find its token although 0.05 is not exact.
        if self._tokens + 1e-9 < tokens:
            return False
        self._tokens -= tokens
        return True


_BUCKET_OF: Final = {
    f"ecs.{operation}": name for name, (_, operations) in _ECS_BUCKETS.items() for operation in operations
}


def buckets_of(service: str, operation: str) -> Iterator[str]:
    """Yield the buckets that every call of an operation draws on."""
    called = f"{service}.{operation}"
    yield _BUCKET_OF.get(called, called)
