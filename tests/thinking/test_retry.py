"""What is run again: budgets that do not share, rules that come first, memory that grows, waits that are bounded."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenacity import wait_exponential, wait_fixed, wait_incrementing, wait_random_exponential

from fargate_runner import Attempt, Job, Kind, Outcome, Proof, Retry, Rule, Size
from fargate_runner._retry import Decision

NOW = datetime(2026, 11, 22, tzinfo=UTC)
PROOF = Proof(source="script", seen_at=NOW)
JOB = Job(image="img", command=["true"])


def outcome(kind: Kind, exit_code: int | None = None, *, transient: bool = False) -> Outcome:
    return Outcome(kind=kind, detail="", proof=PROOF, exit_code=exit_code, transient=transient)


SUCCEEDED = outcome(Kind.SUCCEEDED, 0)
FAILED = outcome(Kind.FAILED, 1)
TEMPORARY = outcome(Kind.FAILED, 75)
TIMED_OUT = outcome(Kind.TIMED_OUT, 143)
OUT_OF_MEMORY = outcome(Kind.OUT_OF_MEMORY, 137)
NEVER_STARTED = outcome(Kind.NEVER_STARTED, transient=True)
CANNOT_START = outcome(Kind.NEVER_STARTED)
INTERRUPTED = outcome(Kind.INTERRUPTED)
LOST = outcome(Kind.LOST)
UNKNOWN = outcome(Kind.UNKNOWN)
CANCELLED = outcome(Kind.CANCELLED, 0)
EVERY = [
    *(SUCCEEDED, FAILED, TEMPORARY, TIMED_OUT, OUT_OF_MEMORY, NEVER_STARTED),
    *(CANNOT_START, INTERRUPTED, LOST, UNKNOWN, CANCELLED),
]


def attempts(outcomes: Sequence[Outcome]) -> list[Attempt]:
    return [
        Attempt(
            number=number,
            token="t",
            address=None,
            outcome=how,
            vcpu=0.25,
            memory_gib=0.5,
            created_at=NOW,
            ended_at=NOW,
        )
        for number, how in enumerate(outcomes, start=1)
    ]


def decide(retry: Retry, *outcomes: Outcome, job: Job = JOB) -> Decision:
    return retry.decide(job, attempts(outcomes))


def decisions(retry: Retry, outcomes: Sequence[Outcome]) -> list[Decision]:
    """One decision after each of *outcomes*, up to the first that says no."""
    made: list[Decision] = []
    job = JOB
    for count in range(1, len(outcomes) + 1):
        made.append(decide(retry, *outcomes[:count], job=job))
        if made[-1].job is None:
            break
        job = made[-1].job
    return made


def none(**budgets: Any) -> Retry:
    nothing: dict[str, Any] = {"failures": 0, "out_of_memory": 0, "never_started": 0, "interruptions": 0}
    return Retry(**nothing | budgets)


class TestDefaults:
    @pytest.mark.parametrize(
        ("how", "extra"),
        [
            (SUCCEEDED, 0),
            (FAILED, 0),
            (TIMED_OUT, 0),
            (OUT_OF_MEMORY, 0),
            (NEVER_STARTED, 3),
            (CANNOT_START, 0),
            (INTERRUPTED, 10),
            (LOST, 10),
            (UNKNOWN, 0),
            (CANCELLED, 0),
        ],
    )
    def test_repeat_what_the_platform_did_and_nothing_else(self, how: Outcome, extra: int) -> None:
        assert sum(decision.again for decision in decisions(Retry(), [how] * 20)) == extra


class TestBudgets:
    @pytest.mark.parametrize(
        ("budget", "how"),
        [
            ("failures", FAILED),
            ("failures", TIMED_OUT),
            ("out_of_memory", OUT_OF_MEMORY),
            ("never_started", NEVER_STARTED),
            ("interruptions", INTERRUPTED),
            ("interruptions", LOST),
        ],
    )
    @pytest.mark.parametrize("times", [0, 1, 2, 5])
    def test_pay_for_their_own_kind(self, budget: str, how: Outcome, times: int) -> None:
        made = decisions(none(**{budget: times}), [how] * 10)

        assert [decision.again for decision in made] == [True] * times + [False]

    @pytest.mark.parametrize("budget", ["failures", "out_of_memory", "never_started", "interruptions"])
    @pytest.mark.parametrize("how", [FAILED, OUT_OF_MEMORY, NEVER_STARTED, INTERRUPTED])
    def test_do_not_pay_for_another_kind(self, budget: str, how: Outcome) -> None:
        own = {"failures": FAILED, "out_of_memory": OUT_OF_MEMORY, "never_started": NEVER_STARTED}
        expected = own.get(budget, INTERRUPTED) is how

        assert decide(none(**{budget: 5}), how).again is expected

    def test_do_not_share(self) -> None:
        retry = none(failures=1, out_of_memory=1, never_started=1, interruptions=1)

        made = decisions(retry, [INTERRUPTED, FAILED, NEVER_STARTED, OUT_OF_MEMORY, FAILED])

        assert [decision.again for decision in made] == [True, True, True, True, False]

    def test_say_what_is_left_and_what_is_not(self) -> None:
        made = decisions(none(failures=1), [FAILED, FAILED])

        assert made[0].why == "extra attempt 1 of 1 (failures)"
        assert made[1].why == "all 1 extra attempts (failures) are used up"

    def test_name_the_one_that_nobody_gave(self) -> None:
        assert decide(none(), FAILED).why == "failures=0"

    @pytest.mark.parametrize("how", [UNKNOWN, CANCELLED])
    def test_never_pay_for_an_end_that_is_unknown_or_was_wanted(self, how: Outcome) -> None:
        plenty = Retry(failures=99, out_of_memory=99, never_started=99, interruptions=99)

        assert not decide(plenty, how).again

    def test_do_not_pay_for_a_start_that_would_fail_again(self) -> None:
        assert decide(none(never_started=5), NEVER_STARTED).again
        assert not decide(none(never_started=5), CANNOT_START).again

    @given(
        st.builds(
            Retry,
            failures=st.integers(0, 4),
            out_of_memory=st.integers(0, 4),
            never_started=st.integers(0, 4),
            interruptions=st.integers(0, 4),
            rules=st.lists(
                st.builds(
                    Rule,
                    then=st.sampled_from(["retry", "give_up"]),
                    kinds=st.none() | st.sets(st.sampled_from(Kind), min_size=1),
                    exit_codes=st.none() | st.sets(st.sampled_from([0, 1, 75, 137]), min_size=1),
                    times=st.integers(0, 4),
                ),
                max_size=3,
            ),
        ),
        st.lists(st.sampled_from([how for how in EVERY if how is not SUCCEEDED]), min_size=50, max_size=50),
    )
    @settings(deadline=None)
    def test_bound_the_number_of_attempts(self, retry: Retry, outcomes: list[Outcome]) -> None:
        budgets = retry.failures + retry.out_of_memory + retry.never_started + retry.interruptions
        bound = budgets + sum(rule.times for rule in retry.rules)

        made = decisions(retry, outcomes)

        assert sum(decision.again for decision in made) <= bound
        assert not made[-1].again

    @given(st.lists(st.sampled_from(EVERY), max_size=20))
    @settings(deadline=None)
    def test_never_repeat_a_success(self, before: list[Outcome]) -> None:
        plenty = Retry(failures=99, interruptions=99, rules=[Rule(then="retry", times=99)])

        decision = decide(plenty, *before, SUCCEEDED)

        assert decision == Decision(again=False, why="it succeeded")


class TestRules:
    @pytest.mark.parametrize("codes", [75, [75], {75, 111}, (75,), frozenset({75}), range(64, 79)])
    def test_match_exit_codes(self, codes: Any) -> None:
        rule = Rule(then="retry", exit_codes=codes)

        assert rule.matches(TEMPORARY)
        assert not rule.matches(FAILED)
        assert not rule.matches(LOST)

    @pytest.mark.parametrize("kinds", [Kind.FAILED, [Kind.FAILED], {Kind.FAILED, Kind.LOST}, Kind])
    def test_match_kinds(self, kinds: Any) -> None:
        assert Rule(then="retry", kinds=kinds).matches(FAILED)

    def test_of_both_match_where_both_do(self) -> None:
        rule = Rule(then="retry", kinds=Kind.FAILED, exit_codes=137)

        assert rule.matches(outcome(Kind.FAILED, 137))
        assert not rule.matches(FAILED)
        assert not rule.matches(OUT_OF_MEMORY)

    @pytest.mark.parametrize("how", [how for how in EVERY if how is not SUCCEEDED])
    def test_of_nothing_match_everything_but_success(self, how: Outcome) -> None:
        assert Rule(then="retry").matches(how)
        assert not Rule(then="retry").matches(SUCCEEDED)

    def test_come_before_the_budgets(self) -> None:
        retry = none(failures=5, rules=[Rule(then="give_up", exit_codes=75)])

        assert decide(retry, FAILED).again
        assert decide(retry, TEMPORARY) == Decision(again=False, why="a rule says to give up")

    def test_are_read_in_order_and_the_first_that_matches_decides(self) -> None:
        give_up, again = Rule(then="give_up", exit_codes=75), Rule(then="retry", kinds=Kind.FAILED)

        assert not decide(none(rules=[give_up, again]), TEMPORARY).again
        assert decide(none(rules=[again, give_up]), TEMPORARY).again

    def test_have_a_budget_of_their_own(self) -> None:
        retry = none(failures=1, rules=[Rule(then="retry", exit_codes=75, times=2)])

        made = decisions(retry, [TEMPORARY, FAILED, TEMPORARY, TEMPORARY])

        assert [decision.again for decision in made] == [True, True, True, False]

    def test_do_not_pay_for_what_an_earlier_rule_paid(self) -> None:
        rules = [Rule(then="retry", exit_codes=75, times=5), Rule(then="retry", kinds=Kind.FAILED, times=1)]

        made = decisions(none(rules=rules), [TEMPORARY, TEMPORARY, TEMPORARY, FAILED, FAILED])

        assert [decision.again for decision in made] == [True, True, True, True, False]

    @pytest.mark.parametrize("how", [UNKNOWN, CANCELLED, CANNOT_START])
    def test_may_repeat_what_no_budget_does(self, how: Outcome) -> None:
        assert decide(none(rules=[Rule(then="retry", kinds=how.kind, times=1)]), how).again

    def test_with_no_budget_say_so(self) -> None:
        assert decide(none(rules=[Rule(then="retry", times=0)]), FAILED).why == "no extra attempts of a rule"


class TestMemory:
    def test_grows_along_the_sizes_after_each_kill(self) -> None:
        made = decisions(none(out_of_memory=4), [OUT_OF_MEMORY] * 4)

        sizes = [decision.job.size for decision in made if decision.job is not None]
        assert sizes == [Size(256, 1024), Size(256, 2048), Size(512, 3072), Size(512, 4096)]

    def test_grows_when_a_rule_pays_too(self) -> None:
        made = decide(none(rules=[Rule(then="retry", exit_codes=137)]), OUT_OF_MEMORY)

        assert made.job == JOB.with_(vcpu=0.25, memory_gib=1)

    def test_stops_growing_at_the_limit(self) -> None:
        made = decisions(none(out_of_memory=9, max_memory_gib=2), [OUT_OF_MEMORY] * 9)

        assert [decision.again for decision in made] == [True, True, False]
        assert made[-1].why == "no larger size than vcpu=0.25, memory_gib=2 up to 2 GiB"

    def test_stops_growing_at_the_largest_size(self) -> None:
        largest = JOB.with_(vcpu=32, memory_gib=244)

        assert not decide(none(out_of_memory=9), OUT_OF_MEMORY, job=largest).again

    @pytest.mark.parametrize("how", [FAILED, TIMED_OUT, INTERRUPTED, NEVER_STARTED])
    def test_stays_after_anything_else(self, how: Outcome) -> None:
        assert decide(Retry(failures=1), how).job == JOB

    def test_keeps_the_rest_of_the_job(self) -> None:
        full = JOB.with_(key="k", env={"A": "1"}, retry=Retry())

        grown = decide(none(out_of_memory=1), OUT_OF_MEMORY, job=full).job

        assert grown is not None
        assert grown.with_(vcpu=None, memory_gib=None) == full


class TestWaits:
    def test_are_nothing_where_nothing_is_repeated(self) -> None:
        assert decide(none(), FAILED) == Decision(again=False, why="failures=0", wait=0.0, job=None)

    def test_are_those_of_tenacity(self) -> None:
        assert decide(none(failures=1, wait=wait_fixed(5)), FAILED).wait == 5.0

    def test_grow_with_the_attempts_of_a_budget(self) -> None:
        retry = none(failures=9, interruptions=9, wait=wait_incrementing(start=1, increment=1))

        made = decisions(retry, [FAILED, INTERRUPTED, FAILED, FAILED, INTERRUPTED])

        assert [decision.wait for decision in made] == [1, 1, 2, 3, 2]

    def test_may_be_added_up(self) -> None:
        retry = none(failures=9, wait=wait_fixed(10) + wait_exponential(multiplier=1, max=4))

        assert [decision.wait for decision in decisions(retry, [FAILED] * 4)] == [11, 12, 14, 14]

    @given(st.integers(1, 2000))
    @settings(deadline=None, max_examples=30)
    def test_are_a_minute_at_most_where_nobody_says(self, count: int) -> None:
        decision = decide(none(failures=count), *[FAILED] * count)

        assert decision.again
        assert 0 <= decision.wait <= min(60, 2 ** (count - 1))

    def test_are_not_the_same_for_all(self) -> None:
        waits = {decide(none(failures=9), *[FAILED] * 7).wait for _ in range(20)}

        assert len(waits) > 1


class TestValues:
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda retry: pickle.loads(pickle.dumps(retry))])
    def test_a_copy_decides_the_same(self, copied: Any) -> None:
        retry = Retry(failures=1, rules=[Rule(then="give_up", exit_codes=range(64, 79))])

        assert copied(retry) == retry

    def test_a_wait_is_pickled_with_its_job(self) -> None:
        job = JOB.with_(retry=Retry(failures=1, wait=wait_random_exponential(multiplier=1, max=60)))

        again = pickle.loads(pickle.dumps(job))

        assert again.fingerprint == job.fingerprint
        assert again.retry.decide(again, attempts([FAILED])).again
