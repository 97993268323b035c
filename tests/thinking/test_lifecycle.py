"""How an attempt ended: cause before exit code, no success without proof, messages fit for a terminal."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any, Literal

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fargate_runner import Attempt, Cause, JobFailed, JobResult, Kind, LogLine, Outcome, Phase, Proof, Snapshot
from fargate_runner._lifecycle import StopAsked, classify

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
PROOF = Proof(source="script", seen_at=NOW, evidence="exit 0")
SECOND = timedelta(seconds=1)

ASKED: dict[Kind | None, StopAsked | None] = {
    None: None,
    Kind.CANCELLED: StopAsked(kind=Kind.CANCELLED, reason="the caller was cancelled"),
    Kind.TIMED_OUT: StopAsked(kind=Kind.TIMED_OUT, reason="it ran longer than 5 s (timeout)"),
    Kind.NEVER_STARTED: StopAsked(kind=Kind.NEVER_STARTED, reason="it took longer than 600 s to start"),
}
EXIT_CODES = [None, 0, 1, 126, 127, 137, 143, 255]


def ended(cause: Cause = Cause.EXITED, exit_code: int | None = 0, **more: Any) -> Snapshot:
    return Snapshot(phase=Phase.ENDED, cause=cause, exit_code=exit_code, proof=PROOF, **more)


def outcome(kind: Kind = Kind.FAILED, detail: str = "exit code 1", **more: Any) -> Outcome:
    return Outcome(kind=kind, detail=detail, proof=PROOF, **more)


def attempt(number: int = 1, how: Outcome | None = None, **more: Any) -> Attempt:
    usual: dict[str, Any] = {
        "token": "t",
        "address": "a",
        "vcpu": 0.25,
        "memory_gib": 0.5,
        "created_at": NOW,
        "ended_at": NOW + 60 * SECOND,
    }
    return Attempt(number=number, outcome=how if how is not None else outcome(exit_code=1), **usual | more)


def result(*attempts: Attempt, name: str = "nightly", key: str = "nightly/1") -> JobResult:
    return JobResult(key=key, name=name, attempts=attempts, accepted_at=NOW, ended_at=NOW + 60 * SECOND)


# cause, exit code (...: any), what was asked (...: anything) -> kind
RULES: list[tuple[Cause, Any, Any, Kind]] = [
    (Cause.EXITED, 0, ..., Kind.SUCCEEDED),
    (Cause.EXITED, None, ..., Kind.UNKNOWN),
    *((Cause.EXITED, code, ..., Kind.FAILED) for code in (1, 126, 127, 137, 143, 255)),
    (Cause.OUT_OF_MEMORY, ..., ..., Kind.OUT_OF_MEMORY),
    (Cause.STOPPED_ON_REQUEST, ..., None, Kind.CANCELLED),
    (Cause.STOPPED_ON_REQUEST, ..., Kind.CANCELLED, Kind.CANCELLED),
    (Cause.STOPPED_ON_REQUEST, ..., Kind.TIMED_OUT, Kind.TIMED_OUT),
    (Cause.STOPPED_ON_REQUEST, ..., Kind.NEVER_STARTED, Kind.NEVER_STARTED),
    (Cause.SIDECAR_ENDED, ..., ..., Kind.FAILED),
    (Cause.DEADLINE, ..., ..., Kind.TIMED_OUT),
    (Cause.COULD_NOT_START, ..., ..., Kind.NEVER_STARTED),
    (Cause.RECLAIMED, ..., ..., Kind.INTERRUPTED),
    (Cause.HOST_FAILED, ..., ..., Kind.INTERRUPTED),
    (Cause.VANISHED, ..., ..., Kind.LOST),
    (Cause.UNRECOGNISED, ..., ..., Kind.UNKNOWN),
]
TABLE = [
    (cause, code, asked, kind)
    for cause, codes, askeds, kind in RULES
    for code in (EXIT_CODES if codes is ... else [codes])
    for asked in (ASKED if askeds is ... else [askeds])
]


class TestClassify:
    def test_the_table_is_whole(self) -> None:
        assert sorted(map(repr, (row[:3] for row in TABLE))) == sorted(map(repr, product(Cause, EXIT_CODES, ASKED)))

    @pytest.mark.parametrize(("cause", "exit_code", "asked", "kind"), TABLE)
    def test_the_cause_outranks_the_exit_code(
        self, cause: Cause, exit_code: int | None, asked: Kind | None, kind: Kind
    ) -> None:
        how = classify(ended(cause, exit_code), ASKED[asked])

        assert how.kind is kind
        assert how.exit_code == exit_code
        assert how.proof is PROOF
        assert how.detail

    def test_no_exit_code_is_no_success(self) -> None:
        assert classify(ended(exit_code=None)).kind is Kind.UNKNOWN

    def test_a_child_killed_for_memory_is_out_of_memory_although_the_job_exits_0(self) -> None:
        assert classify(ended(Cause.OUT_OF_MEMORY, 0)).kind is Kind.OUT_OF_MEMORY

    def test_a_stop_that_came_too_late_does_not_undo_a_success(self) -> None:
        assert classify(ended(Cause.EXITED, 0), ASKED[Kind.CANCELLED]).kind is Kind.SUCCEEDED

    def test_a_stop_that_nobody_here_asked_for_says_so(self) -> None:
        assert "not ours" in classify(ended(Cause.STOPPED_ON_REQUEST)).detail
        assert classify(ended(Cause.STOPPED_ON_REQUEST, reason="by an operator")).detail == "by an operator"

    def test_a_stop_that_we_asked_for_says_why(self) -> None:
        how = classify(ended(Cause.STOPPED_ON_REQUEST, 143, reason="SIGTERM"), ASKED[Kind.TIMED_OUT])

        assert how.detail == "it ran longer than 5 s (timeout)"

    def test_a_start_that_took_too_long_may_work_the_next_time(self) -> None:
        how = classify(ended(Cause.STOPPED_ON_REQUEST, None), ASKED[Kind.NEVER_STARTED])

        assert how.kind is Kind.NEVER_STARTED
        assert how.transient

    @pytest.mark.parametrize("transient", [True, False])
    @pytest.mark.parametrize("cause", [cause for cause in Cause if cause is not Cause.STOPPED_ON_REQUEST], ids=str)
    def test_what_is_likely_to_pass_is_for_the_platform_to_say(self, cause: Cause, transient: bool) -> None:
        assert classify(ended(cause, transient=transient), ASKED[Kind.NEVER_STARTED]).transient is transient

    @pytest.mark.parametrize("asked", [None, Kind.CANCELLED, Kind.TIMED_OUT])
    def test_another_stop_is_not_likely_to_pass(self, asked: Kind | None) -> None:
        assert not classify(ended(Cause.STOPPED_ON_REQUEST), ASKED[asked]).transient

    @pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.ENDED])
    @pytest.mark.parametrize("known", [{}, {"cause": Cause.EXITED, "exit_code": 0, "proof": PROOF}])
    def test_what_has_not_ended_is_not_judged(self, phase: Phase, known: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=f"not ended: {phase.name}"):
            classify(Snapshot(phase=phase, **known))

    @pytest.mark.parametrize(
        ("exit_code", "said"),
        [
            (1, "exit code 1"),
            (126, "could not be executed"),
            (127, "not found"),
            (134, "SIGABRT"),
            (137, "SIGKILL"),
            (139, "SIGSEGV"),
            (143, "SIGTERM"),
        ],
    )
    def test_the_detail_says_what_an_exit_code_means(self, exit_code: int, said: str) -> None:
        assert said in classify(ended(exit_code=exit_code)).detail

    @pytest.mark.parametrize(
        "cause", [cause for cause in Cause if cause not in {Cause.EXITED, Cause.STOPPED_ON_REQUEST}], ids=str
    )
    def test_the_detail_is_the_platforms_reason(self, cause: Cause) -> None:
        assert classify(ended(cause, reason="its words")).detail == "its words"
        assert classify(ended(cause)).detail == cause.value.replace("_", " ")

    def test_the_platforms_advice_comes_before_ours(self) -> None:
        assert classify(ended(exit_code=1, advice="install it")).advice == "install it"

    @pytest.mark.parametrize(
        ("cause", "word"),
        [
            (Cause.SIDECAR_ENDED, "failures="),
            (Cause.DEADLINE, "longer timeout"),
            (Cause.OUT_OF_MEMORY, "out_of_memory="),
            (Cause.RECLAIMED, "interruptions="),
            (Cause.VANISHED, "twice"),
            (Cause.UNRECOGNISED, "own record"),
        ],
    )
    def test_there_is_advice_for_what_goes_wrong(self, cause: Cause, word: str) -> None:
        assert word in classify(ended(cause)).advice

    @given(
        st.builds(
            Snapshot,
            phase=st.sampled_from(Phase),
            cause=st.sampled_from(Cause),
            reason=st.text(),
            exit_code=st.none() | st.integers(-300, 300) | st.just(0),
            transient=st.booleans(),
            advice=st.text(),
            proof=st.just(PROOF),
        ),
        st.sampled_from(list(ASKED.values())),
    )
    @settings(deadline=None, max_examples=1000)
    def test_success_is_never_said_without_exit_and_code_0(self, last: Snapshot, asked: StopAsked | None) -> None:
        succeeded = _says_success(last, asked)

        assert succeeded <= (last.ended and last.cause is Cause.EXITED and last.exit_code == 0)


def _says_success(last: Snapshot, asked: StopAsked | None) -> bool:
    try:
        return classify(last, asked).succeeded
    except ValueError:
        return False


class TestWhatCannotBeBuilt:
    @pytest.mark.parametrize("missing", ["cause", "proof"])
    def test_an_end_without_cause_or_proof(self, missing: str) -> None:
        with pytest.raises(ValueError, match="needs a cause and a proof"):
            attrs.evolve(ended(), **{missing: None})

    @pytest.mark.parametrize("kind", Kind)
    @pytest.mark.parametrize("proof", [None, "docker-inspect", {}])
    def test_an_outcome_without_proof(self, kind: Kind, proof: Any) -> None:
        with pytest.raises(TypeError, match="needs a proof"):
            Outcome(kind=kind, detail="", proof=proof, exit_code=0)

    def test_an_outcome_that_leaves_the_proof_out(self) -> None:
        without: dict[str, Any] = {"kind": Kind.SUCCEEDED, "detail": "", "exit_code": 0}

        with pytest.raises(TypeError, match="proof"):
            Outcome(**without)

    @pytest.mark.parametrize("exit_code", [None, 1, -1, 137])
    def test_a_success_without_exit_code_0(self, exit_code: int | None) -> None:
        with pytest.raises(ValueError, match="success needs exit code 0"):
            outcome(Kind.SUCCEEDED, exit_code=exit_code)

    def test_a_success_made_out_of_a_failure(self) -> None:
        with pytest.raises(ValueError, match="success needs exit code 0"):
            attrs.evolve(outcome(exit_code=1), kind=Kind.SUCCEEDED)

    @pytest.mark.parametrize(
        "kind", [kind for kind in Kind if kind not in {Kind.CANCELLED, Kind.TIMED_OUT, Kind.NEVER_STARTED}], ids=str
    )
    def test_a_stop_that_counts_as_anything_else(self, kind: Any) -> None:
        with pytest.raises(ValueError, match="does not count"):
            StopAsked(kind=kind, reason="")

    def test_a_result_without_attempts(self) -> None:
        with pytest.raises(ValueError, match="attempts"):
            result()

    @pytest.mark.parametrize("value", [ended(), outcome(), attempt(), result(attempt()), PROOF, LogLine(text="x")])
    def test_a_record_that_is_written_again(self, value: Any) -> None:
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(value, attrs.fields(type(value))[0].name, None)


class TestSnapshots:
    @pytest.mark.parametrize("phase", Phase)
    def test_are_over_in_the_last_phase_only(self, phase: Phase) -> None:
        assert Snapshot(phase=phase, cause=Cause.EXITED, proof=PROOF).ended is (phase is Phase.ENDED)

    def test_have_phases_in_the_order_of_a_life(self) -> None:
        assert sorted(Phase) == [Phase.PENDING, Phase.STARTING, Phase.RUNNING, Phase.STOPPING, Phase.ENDED]


class TestAttempts:
    @pytest.mark.parametrize(
        ("started", "ended_after", "run_time"),
        [
            (None, SECOND, None),
            (NOW, SECOND, SECOND),
            (NOW, timedelta(0), timedelta(0)),
            (NOW + SECOND, timedelta(0), timedelta(0)),  # clocks: the end stamped before the start
        ],
    )
    def test_never_ran_for_less_than_nothing(
        self, started: datetime | None, ended_after: timedelta, run_time: timedelta | None
    ) -> None:
        assert attempt(started_at=started, ended_at=NOW + ended_after).run_time == run_time


class TestResults:
    def test_are_those_of_the_last_attempt(self) -> None:
        lines = (LogLine(text="done"),)
        last = attempt(2, outcome(Kind.SUCCEEDED, exit_code=0), started_at=NOW, last_lines=lines)

        final = result(attempt(1, last_lines=(LogLine(text="oops"),)), last)

        assert final.outcome is last.outcome
        assert final.succeeded
        assert final.exit_code == 0
        assert final.last_lines == lines
        assert final.started_at == NOW

    def test_that_succeeded_are_handed_back(self) -> None:
        final = result(attempt(1, outcome(Kind.SUCCEEDED, exit_code=0)))

        assert final.raise_unless_succeeded() is final

    @pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.SUCCEEDED], ids=str)
    def test_of_any_other_kind_are_raised(self, kind: Kind) -> None:
        final = result(attempt(1, outcome(kind)))

        with pytest.raises(JobFailed) as caught:
            final.raise_unless_succeeded()

        assert caught.value.result is final

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
    def test_are_kept_whole_by_a_copy(self, copied: Callable[[JobResult], JobResult]) -> None:
        final = result(attempt(1, last_lines=(LogLine(text="x"),)))

        assert copied(final) == final


class TestTheMessage:
    def test_says_which_job_how_it_ended_what_to_try_and_its_last_lines(self) -> None:
        lines = tuple(LogLine(text=f"line {n}") for n in range(20))
        how = outcome(Kind.OUT_OF_MEMORY, "killed at 512 MiB", advice="give it more memory_gib")

        text = str(JobFailed(result(attempt(1), attempt(2, how, last_lines=lines))))

        assert text.splitlines() == [
            "job 'nightly' (key 'nightly/1') ran out of memory: killed at 512 MiB",
            "attempts: 2",
            "try: give it more memory_gib",
            "last lines:",
            *(f"  | line {n}" for n in range(10, 20)),
        ]

    def test_is_one_line_where_there_is_no_more_to_say(self) -> None:
        assert str(JobFailed(result(attempt()))) == "job 'nightly' (key 'nightly/1') failed: exit code 1"

    @pytest.mark.parametrize("kind", Kind)
    def test_has_words_for_every_kind(self, kind: Kind) -> None:
        assert str(JobFailed(result(attempt(1, outcome(kind, exit_code=0))))).startswith("job 'nightly' (key")

    @given(st.text(), st.text(), st.text())
    @settings(deadline=None)
    def test_is_harmless_on_a_terminal(self, line: str, detail: str, advice: str) -> None:
        how = outcome(detail=detail, advice=advice)

        text = str(JobFailed(result(attempt(1, how, last_lines=(LogLine(text=line),)))))

        assert all(c.isprintable() or c in "\t\n" for c in text)

    @pytest.mark.parametrize(
        "line",
        [
            "\x1b[2J",
            "\x1b]0;title\x07",
            "\x1b]8;;http://x\x1b\\y",
            "\x9b2J",
            "a\rb",
            "a\nb",
            "a\bb",
            "\u202eabc",
            "\u2066",
        ],
    )
    @pytest.mark.parametrize("place", ["line", "detail", "advice"])
    def test_neutralises_control_sequences(self, line: str, place: Literal["line", "detail", "advice"]) -> None:
        where = {"line": "", "detail": "", "advice": "x"} | {place: line}
        how = outcome(detail=where["detail"], advice=where["advice"])

        text = str(JobFailed(result(attempt(1, how, last_lines=(LogLine(text=where["line"]),)))))

        assert len(text.splitlines()) == 4
        assert "\N{REPLACEMENT CHARACTER}" in text
        assert line not in text

    @pytest.mark.parametrize(("length", "shown"), [(499, 499), (500, 500), (501, 501), (1_000_000, 501)])
    def test_shortens_long_lines(self, length: int, shown: int) -> None:
        text = str(JobFailed(result(attempt(1, last_lines=(LogLine(text="x" * length),)))))

        assert len(text.splitlines()[-1]) == len("  | ") + shown

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
    def test_survives_a_copy(self, copied: Callable[[JobFailed], JobFailed]) -> None:
        error = JobFailed(result(attempt(1, last_lines=(LogLine(text="x"),))))

        again = copied(error)

        assert str(again) == str(error)
        assert again.result == error.result

    def test_a_line_reads_as_its_text(self) -> None:
        assert str(LogLine(text="hello")) == "hello"
