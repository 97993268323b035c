"""What attempts cost: the list prices, how Fargate bills, and what is said where nobody knows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fargate_runner import Attempt, JobResult, Kind, Outcome, Proof, Size
from fargate_runner.reports.cost import LIST_PRICES, Cost, Rate, cost

NOW = datetime(2026, 11, 22, tzinfo=UTC)
OUTCOME = Outcome(kind=Kind.SUCCEEDED, detail="", exit_code=0, proof=Proof(source="test", seen_at=NOW))


def arn(region: str = "us-east-1", partition: str = "aws") -> str:
    return f"arn:{partition}:ecs:{region}:123456789012:task/jobs/0123456789abcdef0123456789abcdef"


def attempt(
    vcpu: float = 0.25, memory_gib: float = 0.5, *, seconds: float = 3600, region: str = "us-east-1", **fields: Any
) -> Attempt:
    given: dict[str, Any] = {
        "number": 1,
        "token": "t",
        "address": arn(region),
        "outcome": OUTCOME,
        "vcpu": vcpu,
        "memory_gib": memory_gib,
        "capacity": "FARGATE",
        "created_at": NOW,
        "ended_at": NOW + timedelta(seconds=seconds),
    }
    return Attempt(**given | fields)


def result(*attempts: Attempt) -> JobResult:
    return JobResult(key="k", name="n", attempts=attempts, accepted_at=NOW, ended_at=NOW)


class TestPrices:
    @pytest.mark.parametrize(
        ("vcpu", "memory_gib", "platform", "an_hour"),
        [
            (0.25, 0.5, "linux/x86_64", 0.01234),
            (1, 2, "linux/x86_64", 0.04937),
            (2, 8, "linux/x86_64", 0.11652),
            (4, 16, "linux/x86_64", 0.23304),
            (16, 64, "linux/x86_64", 0.93216),
            (32, 244, "linux/x86_64", 2.37994),
            (1, 2, "linux/arm64", 0.0395),
            (1, 2, "windows/x86_64", 0.046552 + 2 * 0.00511175 + 0.046),
            (1, 2, "", 0.04937),
        ],
    )
    def test_an_hour_costs_what_the_list_says(
        self, vcpu: float, memory_gib: float, platform: str, an_hour: float
    ) -> None:
        assert cost(attempt(vcpu, memory_gib, platform=platform)).usd == pytest.approx(an_hour, abs=5e-6)

    @pytest.mark.parametrize(
        ("region", "an_hour"), [("eu-west-2", 0.04656 + 2 * 0.00511), ("ap-northeast-1", 0.05056 + 2 * 0.00553)]
    )
    def test_each_region_has_its_own(self, region: str, an_hour: float) -> None:
        assert cost(attempt(1, 2, region=region)).usd == pytest.approx(an_hour)

    def test_the_least_that_a_task_can_cost_is_a_minute_of_the_smallest(self) -> None:
        assert cost(attempt(seconds=1)).usd == pytest.approx(0.000206, abs=5e-7)

    @pytest.mark.parametrize(
        ("seconds", "billed"), [(0, 60), (-0.5, 60), (59.9, 60), (60, 60), (60.000001, 61), (61, 61), (3599.2, 3600)]
    )
    def test_seconds_are_rounded_up_and_the_first_minute_is_whole(self, seconds: float, billed: int) -> None:
        assert cost(attempt(seconds=seconds)).billed == timedelta(seconds=billed)

    @pytest.mark.parametrize(("gib", "more"), [(None, 0), (21, 0.000111), (100, 0.00888), (200, 180 * 0.000111)])
    def test_scratch_space_costs_above_20_gb(self, gib: int | None, more: float) -> None:
        assert cost(attempt(ephemeral_storage_gib=gib)).usd - cost(attempt()).usd == pytest.approx(more)

    def test_a_price_can_be_added(self) -> None:
        prices = LIST_PRICES.with_rate("eu-central-1", Rate(vcpu=1, gib=2))

        assert cost(attempt(1, 2, region="eu-central-1"), prices=prices) == Cost(
            usd=5, attempts=1, billed=timedelta(hours=1), vcpu_hours=1, gib_hours=2
        )
        assert ("eu-central-1", "linux/x86_64") not in LIST_PRICES.rates


class TestWhatNobodyKnows:
    def test_spot_is_counted_at_the_price_on_demand_and_says_so(self) -> None:
        spot, on_demand = cost(attempt(capacity="FARGATE_SPOT")), cost(attempt())

        assert (spot.usd, spot.spot, on_demand.spot) == (on_demand.usd, 1, 0)
        assert "1 on Spot at the price on demand" in str(spot)

    @pytest.mark.parametrize(
        "fields",
        [
            {"region": "eu-central-1"},
            {"region": "eu-west-2", "platform": "linux/arm64"},
            {"capacity": "EC2"},
            {"capacity": "my-provider"},
            {"address": arn("cn-north-1", "aws-cn")},
        ],
        ids=str,
    )
    def test_what_has_no_price_is_counted_and_not_guessed(self, fields: dict[str, Any]) -> None:
        counted = cost(attempt(**fields))

        assert (counted.usd, counted.unpriced) == (0, 1)
        assert "1 without a price" in str(counted)

    def test_a_part_without_a_price_is_told_and_the_rest_counted(self) -> None:
        counted = cost(attempt(1, 2, region="eu-west-2", ephemeral_storage_gib=50))

        assert (counted.usd, counted.unpriced) == (pytest.approx(0.05678), 1)

    @pytest.mark.parametrize("address", [None, "0f3a9c", "/tmp/jobs/3:4711", "arn:aws:ecs", ""])
    def test_what_aws_does_not_bill_costs_nothing(self, address: str | None) -> None:
        assert cost(attempt(address=address)) == Cost(attempts=1)


class TestSums:
    def test_a_job_costs_what_its_attempts_cost(self) -> None:
        one, other = attempt(1, 2), attempt(2, 4, number=2)

        assert cost(result(one, other)) == cost(one) + cost(other) == cost([one, other])

    def test_nothing_costs_nothing(self) -> None:
        assert cost([]) == Cost()
        assert str(Cost()) == "at most $0.0000, 0 attempts"

    @given(
        st.lists(st.tuples(st.sampled_from(list(Size.all())), st.floats(0, 1e6)), max_size=20),
        st.integers(0, 20),
    )
    def test_it_does_not_matter_how_they_are_grouped(self, parts: list[tuple[Size, float]], cut: int) -> None:
        attempts = [attempt(size.vcpu, size.memory_gib, seconds=seconds) for size, seconds in parts]

        whole, halves = cost(attempts), cost(attempts[:cut]) + cost(attempts[cut:])

        assert whole.usd == pytest.approx(halves.usd)
        assert (whole.attempts, whole.billed) == (halves.attempts, halves.billed)

    @given(st.sampled_from(list(Size.all())), st.floats(0, 1e6), st.floats(0, 1e4))
    def test_longer_never_costs_less(self, size: Size, seconds: float, more: float) -> None:
        short, long = (attempt(size.vcpu, size.memory_gib, seconds=s) for s in (seconds, seconds + more))

        assert cost(short).usd <= cost(long).usd
