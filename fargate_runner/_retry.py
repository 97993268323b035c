"""
What is run again, how often, and after how long: `Retry`, a pure decision on what has happened so far.

Calls to a platform's API are retried elsewhere, by the backend that makes them. Here jobs are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Final, Literal, TypeVar

import attrs

from fargate_runner._errors import InvalidJob
from fargate_runner._job import Job
from fargate_runner._lifecycle import Attempt, Kind, Outcome

if TYPE_CHECKING:
    from tenacity import RetryCallState

__all__ = ["Decision", "Retry", "Rule"]

_T = TypeVar("_T")


def _times(instance: object, field: attrs.Attribute[int], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        name = f"{type(instance).__name__.lower()}.{field.name}"
        raise InvalidJob(name, value, "expected a number of extra attempts", "write 0, 1, 2, …")


def _kinds(value: Kind | Collection[Kind] | None) -> frozenset[Kind] | None:
    if value is None:
        return None
    if isinstance(value, Kind):
        return frozenset([value])
    kinds = _several("rule.kinds", value, "write Kind.FAILED, or several in {…}")
    if wrong := [kind for kind in kinds if not isinstance(kind, Kind)]:
        raise InvalidJob("rule.kinds", wrong[0], "no kind of outcome", f"use {', '.join(map(str, Kind))}")
    return frozenset(kinds)


def _exit_codes(value: int | Collection[int] | None) -> Collection[int] | None:
    if value is None:
        return None
    if isinstance(value, range):
        return value
    fix = "write 75, {75, 111} or range(64, 79)"
    codes = _several("rule.exit_codes", [value] if isinstance(value, int) else value, fix)
    if wrong := [code for code in codes if isinstance(code, bool) or not isinstance(code, int)]:
        raise InvalidJob("rule.exit_codes", wrong[0], "exit codes are numbers", fix)
    return frozenset(codes)


def _several(field: str, value: Collection[_T], fix: str) -> tuple[_T, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise InvalidJob(field, value, f"got a {type(value).__name__}", fix)
    if not (parts := tuple(value)):
        raise InvalidJob(field, value, "it is empty and would match nothing", "leave it out to match everything")
    return parts


@attrs.frozen(kw_only=True)
class Rule:
    """
    An exception to the budgets: what to do after outcomes of these kinds, or with these exit codes.

    Both given, both must match; none given, it matches everything. ``times`` is the rule's own budget.
    """

    then: Literal["retry", "give_up"]
    kinds: frozenset[Kind] | None = attrs.field(default=None, converter=_kinds)
    exit_codes: Collection[int] | None = attrs.field(default=None, converter=_exit_codes)
    times: int = attrs.field(default=3, validator=_times)

    def __attrs_post_init__(self) -> None:
        if self.then not in ("retry", "give_up"):
            raise InvalidJob("rule.then", self.then, "no such decision", "write 'retry' or 'give_up'")

    def matches(self, outcome: Outcome) -> bool:
        """Whether *outcome* is one that this rule speaks of. A success is never one."""
        if outcome.succeeded:
            return False
        if self.kinds is not None and outcome.kind not in self.kinds:
            return False
        return self.exit_codes is None or outcome.exit_code in self.exit_codes


def _rules(value: Iterable[Rule]) -> tuple[Rule, ...]:
    if not isinstance(value, Iterable):
        raise InvalidJob("retry.rules", value, f"expected a list, got {type(value).__name__}", "write [Rule(…)]")
    rules = tuple(value)
    for rule in rules:
        if not isinstance(rule, Rule):
            raise InvalidJob("retry.rules", rule, f"expected a Rule, got {type(rule).__name__}", "write [Rule(…)]")
    return rules


@attrs.frozen(kw_only=True)
class Decision:
    """Whether to launch again, and why or why not. ``job`` is what to launch: it may have grown."""

    again: bool
    why: str
    wait: float = 0.0
    """Seconds until then."""
    job: Job | None = None


# A job that was told to end may have ended well: a timeout is the job's own failure, a start timeout the platform's.
_BUDGET: Final = {
    Kind.FAILED: "failures",
    Kind.TIMED_OUT: "failures",
    Kind.OUT_OF_MEMORY: "out_of_memory",
    Kind.NEVER_STARTED: "never_started",
    Kind.INTERRUPTED: "interruptions",
    Kind.LOST: "interruptions",
}


@attrs.frozen(kw_only=True)
class Retry:
    """
    How many extra attempts a job gets, by what went wrong. Budgets do not share: an interruption costs no failure.

    - ``failures``: the job's own fault: it ended with an exit code other than 0, or ran into its timeout
    - ``out_of_memory``: each extra attempt gets the next valid size with more memory, up to ``max_memory_gib``
    - ``never_started``: the platform's fault, and only if that is likely to pass: a missing image is not tried again
    - ``interruptions``: the platform took the machine away, or lost the attempt

    ``rules`` come first, the first that matches decides. ``wait`` is a tenacity wait object; None waits 0…1 s, then
    up to twice as long each time, a minute at most. A job that was cancelled, or whose end nobody knows
    (``Kind.UNKNOWN``: it may still be running), is not run again unless a rule says so.
    """

    failures: int = attrs.field(default=0, validator=_times)
    out_of_memory: int = attrs.field(default=0, validator=_times)
    never_started: int = attrs.field(default=3, validator=_times)
    interruptions: int = attrs.field(default=10, validator=_times)
    max_memory_gib: float = attrs.field(default=244.0)
    rules: tuple[Rule, ...] = attrs.field(default=(), converter=_rules)
    wait: Callable[[RetryCallState], float] | None = None

    def __attrs_post_init__(self) -> None:
        most = self.max_memory_gib
        # Not "most <= 0": that is False of nan, too.
        if isinstance(most, bool) or not isinstance(most, (int, float)) or not most > 0:
            raise InvalidJob("retry.max_memory_gib", most, "expected a number above zero", "write it like 16")
        if self.wait is not None and (not callable(self.wait) or isinstance(self.wait, type)):
            fix = "write tenacity.wait_fixed(5), or another of tenacity's"
            raise InvalidJob("retry.wait", self.wait, "expected a tenacity wait object", fix)

    def decide(self, job: Job, attempts: Sequence[Attempt]) -> Decision:
        """Say what comes after the last of *attempts*, the attempts of *job* so far."""
        outcome = attempts[-1].outcome
        if outcome.succeeded:
            return Decision(again=False, why="it succeeded")
        if rule := self._rule_for(outcome):
            if rule.then == "give_up":
                return Decision(again=False, why="a rule says to give up")
            used = sum(self._rule_for(attempt.outcome) is rule for attempt in attempts)
            return self._spend(job, used, rule.times, "of a rule", outcome)
        budget = _BUDGET.get(outcome.kind)
        if budget is None:
            return Decision(again=False, why=f"what was {outcome.kind.value} is not run again")
        if outcome.kind is Kind.NEVER_STARTED and not outcome.transient:
            return Decision(again=False, why="it would not start the next time either")
        used = sum(self._counts(attempt.outcome, budget) for attempt in attempts)
        return self._spend(job, used, getattr(self, budget), budget, outcome)

    def _rule_for(self, outcome: Outcome) -> Rule | None:
        """The first rule that matches *outcome*: it alone decides and pays."""
        return next((rule for rule in self.rules if rule.matches(outcome)), None)

    def _counts(self, outcome: Outcome, budget: str) -> bool:
        """Whether *outcome* was paid from *budget*, and not by a rule."""
        return _BUDGET.get(outcome.kind) == budget and self._rule_for(outcome) is None

    def _spend(self, job: Job, used: int, budget: int, name: str, outcome: Outcome) -> Decision:
        if used > budget:
            if budget == 0:
                return Decision(again=False, why=f"no extra attempts {name}" if " " in name else f"{name}=0")
            return Decision(again=False, why=f"all {budget} extra attempts ({name}) are used up")
        if outcome.kind is Kind.OUT_OF_MEMORY:
            size = job.size.with_more_memory(at_most_gib=self.max_memory_gib)
            if size is None:
                return Decision(again=False, why=f"no larger size than {job.size} up to {self.max_memory_gib:g} GiB")
            job = job.with_(vcpu=size.vcpu, memory_gib=size.memory_gib)
        return Decision(again=True, why=f"extra attempt {used} of {budget} ({name})", wait=self._pause(used), job=job)

    def _pause(self, tries: int) -> float:
        from tenacity import RetryCallState, wait_random_exponential  # half of our import time, and often not needed

        state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]
        state.attempt_number = tries
        return float((self.wait or wait_random_exponential(multiplier=1, max=60))(state))
