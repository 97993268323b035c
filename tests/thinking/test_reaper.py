"""What the reaper thinks: which attempts are overdue, and which nothing proves to be."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fargate_runner import Cause, Job, Kind, Outcome, Phase, Proof, Snapshot, TaskRef
from fargate_runner._reaper import Limits, judge, may_be_overdue

NOW = datetime(2026, 5, 6, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
JOB = Job(command=["x"], timeout=60 * MINUTE, start_timeout=10 * MINUTE, stop_timeout=MINUTE)
LIMITS = Limits(5 * MINUTE)
PROOF = Proof(source="script", seen_at=NOW)
OVER = Outcome(kind=Kind.FAILED, detail="exit code 3", proof=PROOF)


def ref(age: timedelta, job: Job | None = JOB, **changes: Any) -> TaskRef:
    known = TaskRef(
        backend="memory",
        address="a",
        key="k",
        attempt=1,
        token="t",
        description=None if job is None else job.describe(),
        created_at=NOW - age,
    )
    return attrs.evolve(known, **changes)


def pending(age: timedelta) -> Snapshot:
    return Snapshot(phase=Phase.STARTING, created_at=NOW - age)


def running(ran: timedelta, waited: timedelta = MINUTE) -> Snapshot:
    return Snapshot(phase=Phase.RUNNING, created_at=NOW - ran - waited, started_at=NOW - ran)


class TestDeadlines:
    @pytest.mark.parametrize(
        ("ran", "by"),
        [(66 * MINUTE, None), (66 * MINUTE + timedelta(seconds=1), timedelta(seconds=1)), (90 * MINUTE, 24 * MINUTE)],
        ids=str,
    )
    def test_a_running_one_has_its_timeout_its_stop_timeout_and_the_grace(
        self, ran: timedelta, by: timedelta | None
    ) -> None:
        found = judge(ref(ran + MINUTE), running(ran), NOW, LIMITS)

        assert (found.by if found else None) == by
        assert found is None or found.stop.kind is Kind.TIMED_OUT

    @pytest.mark.parametrize(
        ("age", "by"), [(15 * MINUTE, None), (16 * MINUTE, MINUTE), (90 * MINUTE, 75 * MINUTE)], ids=str
    )
    def test_one_that_does_not_run_has_its_start_timeout_and_the_grace(
        self, age: timedelta, by: timedelta | None
    ) -> None:
        found = judge(ref(age), pending(age), NOW, LIMITS)

        assert (found.by if found else None) == by
        assert found is None or found.stop.kind is Kind.NEVER_STARTED

    def test_without_a_timeout_there_is_no_deadline(self) -> None:
        endless = JOB.with_(timeout=None)

        assert judge(ref(timedelta(days=90), endless), running(timedelta(days=90)), NOW, LIMITS) is None

    def test_unless_the_caller_gives_one(self) -> None:
        endless, limits = JOB.with_(timeout=None), Limits(5 * MINUTE, timedelta(days=1))
        young, old = timedelta(days=1) + 6 * MINUTE, timedelta(days=1) + 7 * MINUTE

        assert judge(ref(young, endless), running(young), NOW, limits) is None
        found = judge(ref(old, endless), running(old), NOW, limits)
        assert found is not None
        assert "max_age of 86,400 s" in found.stop.reason

    def test_the_caller_does_not_shorten_a_timeout(self) -> None:
        assert judge(ref(50 * MINUTE), running(50 * MINUTE), NOW, Limits(MINUTE, MINUTE)) is None

    @pytest.mark.parametrize("phase", [Phase.STOPPING, Phase.ENDED])
    def test_what_is_on_its_way_out_is_left_alone(self, phase: Phase) -> None:
        ended = {"cause": Cause.EXITED, "proof": PROOF} if phase is Phase.ENDED else {}
        seen = attrs.evolve(running(timedelta(days=9)), phase=phase, **ended)

        assert judge(ref(timedelta(days=9)), seen, NOW, LIMITS, over=OVER) is None

    def test_one_that_runs_since_nobody_knows_when_gets_the_time_of_its_start_as_well(self) -> None:
        seen = Snapshot(phase=Phase.RUNNING)

        assert judge(ref(76 * MINUTE), seen, NOW, LIMITS) is None
        assert judge(ref(77 * MINUTE), seen, NOW, LIMITS) is not None


class TestOrphans:
    def test_an_attempt_of_a_job_that_is_over_is_an_orphan_whatever_its_timeout(self) -> None:
        found = judge(ref(6 * MINUTE, JOB.with_(timeout=None)), running(MINUTE, 5 * MINUTE), NOW, LIMITS, over=OVER)

        assert found is not None
        assert (found.stop.kind, found.by) == (Kind.CANCELLED, MINUTE)
        assert "its job is over (failed)" in found.stop.reason

    def test_a_young_one_is_left_alone(self) -> None:
        assert judge(ref(4 * MINUTE), running(3 * MINUTE), NOW, LIMITS, over=OVER) is None


class TestNothingProves:
    @pytest.mark.parametrize("said", [None, "3600", True, float("nan"), float("inf"), -1, [60], 1e300, {}], ids=str)
    def test_a_limit_that_cannot_be_read_is_none(self, said: object) -> None:
        for name in ("timeout", "stop_timeout", "start_timeout"):
            odd = ref(timedelta(days=9), description={**JOB.describe(), name: said})
            seen = pending(timedelta(days=9)) if name == "start_timeout" else running(timedelta(days=9))
            assert judge(odd, seen, NOW, LIMITS) is None

    def test_without_a_description_nothing_is_overdue(self) -> None:
        for seen in (pending(timedelta(days=9)), running(timedelta(days=9))):
            assert judge(ref(timedelta(days=9), None), seen, NOW, LIMITS) is None

    @pytest.mark.parametrize(("limits", "error"), [((5, None), TypeError), ((-MINUTE, None), ValueError)], ids=str)
    def test_a_grace_is_a_duration(self, limits: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match="grace"):
            Limits(*limits)

    def test_a_max_age_is_a_duration(self) -> None:
        with pytest.raises(TypeError, match="max_age"):
            Limits(MINUTE, 3600)  # type: ignore[arg-type]


spans = st.timedeltas(min_value=timedelta(), max_value=timedelta(days=2))


@given(
    age=spans,
    waited=spans,
    timeout=st.none() | st.timedeltas(min_value=MINUTE, max_value=timedelta(days=1)),
    max_age=st.none() | spans,
    grace=spans,
    over=st.sampled_from([None, OVER]),
)
def test_whatever_is_not_worth_a_look_is_not_overdue(
    age: timedelta,
    waited: timedelta,
    timeout: timedelta | None,
    max_age: timedelta | None,
    grace: timedelta,
    over: Outcome | None,
) -> None:
    limits, task = Limits(grace, max_age), ref(age, JOB.with_(timeout=timeout))
    seen = pending(age) if waited >= age else running(age - waited, waited)

    if not may_be_overdue(task, NOW, limits, journalled=over is not None):
        assert judge(task, seen, NOW, limits, over=over) is None
