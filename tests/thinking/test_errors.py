"""What is raised: one tree, messages that say what to try, and nothing lost on the way to another process."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

import fargate_runner
from fargate_runner import (
    BackendError,
    BackendUnavailable,
    FargateRunnerError,
    InvalidJob,
    JobNotFound,
    JournalError,
    KeyConflict,
    LaunchRejected,
    LogsUnavailable,
    PlacementRefused,
    RunnerClosed,
    _errors,
)

ERRORS: list[FargateRunnerError] = [
    InvalidJob("vcpu", 3, "Fargate has no such size", "use one of 2, 4"),
    KeyConflict("nightly", ("command", "image")),
    JobNotFound("nightly", "docker", "default"),
    RunnerClosed("the runner is closed"),
    LogsUnavailable("the lines are gone"),
    JournalError("the file is damaged", journal="jobs.sqlite"),
    BackendError("no answer", operation="create", code="500", retryable=True),
    BackendUnavailable("no engine", operation="ping"),
    LaunchRejected("no such subnet", operation="RunTask", code="InvalidParameterException"),
    PlacementRefused("no capacity", operation="RunTask", code="RESOURCE:CPU", retryable=True),
]
NAMES = [type(error).__name__ for error in ERRORS]


def by_pickle(error: FargateRunnerError) -> FargateRunnerError:
    return pickle.loads(pickle.dumps(error))


class TestTheTree:
    @pytest.mark.parametrize("error", ERRORS, ids=NAMES)
    def test_has_one_root(self, error: FargateRunnerError) -> None:
        assert isinstance(error, FargateRunnerError)

    def test_is_tried_whole(self) -> None:
        assert {*NAMES, "FargateRunnerError"} == set(_errors.__all__)

    def test_is_public(self) -> None:
        assert {*_errors.__all__, "JobFailed"} <= set(fargate_runner.__all__)

    @pytest.mark.parametrize("kind", [BackendUnavailable, LaunchRejected])
    def test_joins_what_the_platform_refused(self, kind: type[Exception]) -> None:
        assert issubclass(kind, BackendError)

    @pytest.mark.parametrize("error", ERRORS[:5], ids=NAMES[:5])
    def test_keeps_misuse_apart_from_the_platform(self, error: FargateRunnerError) -> None:
        assert not isinstance(error, BackendError)


class TestCopies:
    @pytest.mark.parametrize("error", ERRORS, ids=NAMES)
    @pytest.mark.parametrize("copied", [by_pickle, copy.copy, copy.deepcopy])
    def test_say_and_hold_the_same(
        self, error: FargateRunnerError, copied: Callable[[FargateRunnerError], FargateRunnerError]
    ) -> None:
        again = copied(error)

        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)


class TestMessages:
    def test_of_a_conflict_name_the_key_the_difference_and_a_way_out(self) -> None:
        text = str(KeyConflict("nightly", ("command", "image")))

        assert "'nightly'" in text
        assert "command, image" in text
        assert "a key of its own" in text

    def test_of_a_conflict_without_known_difference_are_whole_sentences(self) -> None:
        assert "differs in its description" in str(KeyConflict("nightly", ()))

    def test_of_a_missing_job_name_where_it_was_looked_for(self) -> None:
        text = str(JobNotFound("nightly", "docker", "default"))

        assert "'nightly'" in text
        assert "'docker'" in text
        assert "'default'" in text

    def test_of_a_refusal_read_like_an_assignment(self) -> None:
        text = str(InvalidJob("vcpu", 3, "Fargate has no such size", "use 2"))

        assert text == "vcpu=3: Fargate has no such size; use 2"

    @pytest.mark.parametrize("length", [10, 117, 118, 119, 10_000])
    def test_of_a_refusal_shorten_the_value(self, length: int) -> None:
        shown = str(InvalidJob("command", "x" * length, "p", "f")).removeprefix("command=").removesuffix(": p; f")

        assert len(shown) == min(length + 2, 120)


class TestWhatThePlatformSaid:
    def test_is_kept(self) -> None:
        error = BackendError("no answer", operation="create", code="500", retryable=True)

        assert (error.operation, error.code, error.retryable) == ("create", "500", True)

    def test_is_not_invented(self) -> None:
        error = BackendError("no answer")

        assert (error.operation, error.code, error.retryable) == (None, None, False)
