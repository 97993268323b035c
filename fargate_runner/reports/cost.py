"""
What attempts cost on Fargate, at list prices: a pure function of their records.

::

    from fargate_runner.reports.cost import cost

    print(cost(result))            # at most $0.0021, 1 attempt

It counts what Fargate bills for a task: vCPU, memory and scratch space above 20 GB, by the second, rounded up, one
minute at least. Where a record does not say what the bill goes by, it is the *most* that these prices make of it:

- Billing begins with the pull of the image. A record tells when the platform made the attempt, a little earlier, and
  that is counted from.
- **Spot** is counted at the price on demand. AWS says "up to 70 % off"; what it takes off now is published nowhere.
- What the record does not name is taken for Linux on x86, on Fargate, on demand.
- An attempt whose end nobody saw is counted up to when the runner gave up on it; if it lives on, it costs more.

Not counted: public IPv4 addresses, NAT, logs, image storage, taxes, and discounts such as Savings Plans. Processes
and containers of this machine cost nothing. What has no price here (another region, EC2 capacity) is in ``unpriced``,
not in ``usd``; `Prices.with_rate` adds a price.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol, Self

import attrs

from fargate_runner._lifecycle import Attempt, JobResult

__all__ = ["LIST_PRICES", "Cost", "Prices", "Rate", "cost"]

LINUX_X86: Final = "linux/x86_64"
LINUX_ARM: Final = "linux/arm64"
WINDOWS: Final = "windows/x86_64"

_STORAGE_FREE: Final = 20
"""GB of scratch space that every task has for nothing."""
_MINIMUM: Final = 60
"""Seconds that are billed at least. On Windows it is believed to be five minutes, which AWS does not say."""
_ON_DEMAND: Final = frozenset({"", "FARGATE"})
_SPOT: Final = "FARGATE_SPOT"


@attrs.frozen(kw_only=True)
class Rate:
    """Prices in USD for one hour, in one region and for one platform."""

    vcpu: float
    gib: float
    """For a GB of memory, which AWS counts as a GiB."""
    storage_gb: float | None = None
    """For a GB of scratch space above 20; None: not known."""
    os_licence: float = 0.0
    """For the operating system of a vCPU."""

    def hour(self, vcpu: float, memory_gib: float, ephemeral_storage_gib: int | None = None) -> float | None:
        """Return what an hour of a task of this size costs; None if its scratch space has no price here."""
        more = max(0, (ephemeral_storage_gib or 0) - _STORAGE_FREE)
        if more and self.storage_gb is None:
            return None
        return vcpu * (self.vcpu + self.os_licence) + memory_gib * self.gib + more * (self.storage_gb or 0.0)


def _frozen(rates: Mapping[tuple[str, str], Rate]) -> Mapping[tuple[str, str], Rate]:
    return MappingProxyType(dict(rates))


@attrs.frozen(kw_only=True)
class Prices:
    """What Fargate costs, as somebody published it at some time. By region and platform, such as ``linux/arm64``."""

    as_of: str
    source: str
    rates: Mapping[tuple[str, str], Rate] = attrs.field(converter=_frozen)

    def with_rate(self, region: str, rate: Rate, *, platform: str = LINUX_X86) -> Self:
        """Return these prices with one more, or another one: your own region, a negotiated discount."""
        return attrs.evolve(self, rates={**self.rates, (region, platform): rate})


# Ephemeral storage: published for us-east-1 only, as far as we know.
LIST_PRICES: Final = Prices(
    as_of="autumn 2026",
    source="AWS Fargate pricing page and Price List API (AmazonECS)",
    rates={
        ("us-east-1", LINUX_X86): Rate(vcpu=0.04048, gib=0.004445, storage_gb=0.000111),
        ("us-east-1", LINUX_ARM): Rate(vcpu=0.03238, gib=0.00356, storage_gb=0.000111),
        ("us-east-1", WINDOWS): Rate(vcpu=0.046552, gib=0.00511175, storage_gb=0.000111, os_licence=0.046),
        ("eu-west-2", LINUX_X86): Rate(vcpu=0.04656, gib=0.00511),
        ("ap-northeast-1", LINUX_X86): Rate(vcpu=0.05056, gib=0.00553),
    },
)
"""Fargate's list prices that this library knows. They change; `Prices.as_of` says when these were published."""


@attrs.frozen(kw_only=True)
class Cost:
    """What attempts cost at most, and what they took. Costs add up: ``sum(costs, Cost())``."""

    usd: float = 0.0
    attempts: int = 0
    """How many are counted, those that cost nothing included."""
    spot: int = 0
    """How many of them ran on Spot, and are in ``usd`` at the price on demand."""
    unpriced: int = 0
    """How many of them have no price here, or only a part of one; what is not known is not in ``usd``."""
    billed: timedelta = timedelta()
    """The time that Fargate bills, of all tasks together."""
    vcpu_hours: float = 0.0
    gib_hours: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(
            usd=self.usd + other.usd,
            attempts=self.attempts + other.attempts,
            spot=self.spot + other.spot,
            unpriced=self.unpriced + other.unpriced,
            billed=self.billed + other.billed,
            vcpu_hours=self.vcpu_hours + other.vcpu_hours,
            gib_hours=self.gib_hours + other.gib_hours,
        )

    def __str__(self) -> str:
        told = f"at most ${self.usd:.4f}, {_counted(self.attempts, 'attempt')}"
        if self.spot:
            told += f", {self.spot} on Spot at the price on demand"
        if self.unpriced:
            told += f", {self.unpriced} without a price"
        return told


def cost(what: Attempt | JobResult | Iterable[Attempt | JobResult], *, prices: Prices = LIST_PRICES) -> Cost:
    """Return what an attempt, a job with all its attempts, or several of either cost at most, at *prices*."""
    if isinstance(what, Attempt):
        return _cost(what, prices)
    parts = what.attempts if isinstance(what, JobResult) else what
    return sum((cost(part, prices=prices) for part in parts), Cost())


def _cost(attempt: Attempt, prices: Prices) -> Cost:
    tariff = tariff_of(attempt, prices)
    if tariff is None:
        return Cost(attempts=1)
    if not tariff.is_fargate:
        return Cost(attempts=1, unpriced=1)
    seconds = billed_seconds(attempt.ended_at - attempt.created_at)
    return Cost(
        usd=tariff.hourly * seconds / 3600,
        attempts=1,
        spot=int(tariff.is_spot),
        unpriced=int(not tariff.is_whole),
        billed=timedelta(seconds=seconds),
        vcpu_hours=attempt.vcpu * seconds / 3600,
        gib_hours=attempt.memory_gib * seconds / 3600,
    )


class Footprint(Protocol):
    """What a price goes by: an `Attempt`, or the event `AttemptSeen`."""

    @property
    def address(self) -> str | None: ...
    @property
    def capacity(self) -> str: ...
    @property
    def platform(self) -> str: ...
    @property
    def vcpu(self) -> float: ...
    @property
    def memory_gib(self) -> float: ...
    @property
    def ephemeral_storage_gib(self) -> int | None: ...


class Tariff(NamedTuple):
    """What an hour of an attempt costs at most."""

    hourly: float
    is_whole: bool
    """Whether all of it has a price."""
    is_spot: bool = False
    is_fargate: bool = True


def tariff_of(taken: Footprint, prices: Prices) -> Tariff | None:
    """Return what an hour of an attempt costs; None for one that AWS does not bill."""
    region = region_of(taken.address)
    if region is None:
        return None
    is_spot = taken.capacity == _SPOT
    if not is_spot and taken.capacity not in _ON_DEMAND:
        return Tariff(0.0, False, is_fargate=False)  # the instances are billed, whoever runs on them
    rate = prices.rates.get((region, taken.platform or LINUX_X86))
    if rate is None:
        return Tariff(0.0, False, is_spot)
    hourly = rate.hour(taken.vcpu, taken.memory_gib, taken.ephemeral_storage_gib)
    if hourly is None:
        return Tariff(rate.hour(taken.vcpu, taken.memory_gib) or 0.0, False, is_spot)
    return Tariff(hourly, True, is_spot)


def billed_seconds(span: timedelta) -> int:
    """Return how many seconds Fargate bills for a task that lived for *span*."""
    return max(_MINIMUM, -(-span // timedelta(seconds=1)))


def region_of(address: str | None) -> str | None:
    """Return the region of a task's ARN; None for an attempt that was never placed, and for one of this machine."""
    parts = (address or "").split(":", 4)
    is_task = len(parts) == 5 and parts[0] == "arn" and parts[2] == "ecs"
    return parts[3] if is_task else None


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
