"""
What every backend must show, as tests to inherit. Ours pass them; so should one that you write.

::

    class TestMyBackend(BackendContract):
        @pytest.fixture
        def jobs(self) -> Vocabulary:
            return ShellVocabulary(image="busybox")

        @pytest.fixture
        def make_backend(self) -> Callable[[], Backend]:
            return lambda: MyBackend(...)

``make_backend`` gives a new backend on the same platform each time: what one leaves behind, the next must find.
``jobs`` tells how to say "exit with 3" or "print this" where the backend runs.
"""

from __future__ import annotations

import shlex
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from typing import Any, ClassVar, Final, cast

import anyio
import attrs
import pytest
from tenacity import wait_none

from fargate_runner._backend import Backend, Identity, Launch, TaskRef
from fargate_runner._errors import JobNotFound, KeyConflict, LogsUnavailable, RunnerClosed
from fargate_runner._job import Job, Secret
from fargate_runner._lifecycle import Cause, JobFailed, Kind, LogLine, Phase, Snapshot
from fargate_runner._retry import Retry
from fargate_runner._runner import JobHandle, Runner

__all__ = ["BackendContract", "ShellVocabulary", "Vocabulary"]

_READY: Final = "ready"
"""What the jobs that wait print before they do."""


class Vocabulary(ABC):
    """How to tell the platform under test to behave."""

    @abstractmethod
    def exits(self, code: int = 0) -> Job:
        """End at once with *code*, printing nothing."""

    @abstractmethod
    def prints(self, *lines: str, stderr: tuple[str, ...] = ()) -> Job:
        """Print *lines* to stdout and the others to stderr, and end with 0."""

    @abstractmethod
    def waits(self) -> Job:
        """Print ``ready``, then run until SIGTERM, which ends it at once and not with 0."""

    @abstractmethod
    def ignores_sigterm(self) -> Job:
        """Print ``ready``, then run until SIGKILL. With a ``stop_timeout`` of 2 s."""

    @abstractmethod
    def prints_variable(self, name: str) -> Job:
        """Print the value of an environment variable."""

    @abstractmethod
    def unstartable(self) -> Job:
        """Something that can never start there, and that only the platform can know."""

    @abstractmethod
    def counts(self, lines: int) -> Job:
        """Print the numbers from 1 to *lines*."""


@attrs.frozen
class ShellVocabulary(Vocabulary):
    """For platforms that run a POSIX shell: with *image*, or on this machine without."""

    image: str | None = None

    def _sh(self, script: str, **fields: Any) -> Job:
        return Job(image=self.image, command=["sh", "-c", script], **fields)

    def exits(self, code: int = 0) -> Job:
        return self._sh(f"exit {code}")

    def prints(self, *lines: str, stderr: tuple[str, ...] = ()) -> Job:
        say = [f"printf '%s\\n' {shlex.quote(line)}" for line in lines]
        complain = [f"printf '%s\\n' {shlex.quote(line)} >&2" for line in stderr]
        return self._sh("; ".join([*say, *complain]) or ":")

    def waits(self) -> Job:
        return self._sh(f"trap 'exit 143' TERM; echo {_READY}; while :; do sleep 1 & wait; done")

    def ignores_sigterm(self) -> Job:
        script = f"trap '' TERM; echo {_READY}; while :; do sleep 1; done"
        return self._sh(script, stop_timeout=timedelta(seconds=2))

    def prints_variable(self, name: str) -> Job:
        return self._sh(f'printf "%s\\n" "${name}"')

    def unstartable(self) -> Job:
        return Job(image=self.image, command=["/no/such/program"])

    def counts(self, lines: int) -> Job:
        return self._sh(f"seq 1 {lines}")


@pytest.mark.anyio
class BackendContract(ABC):
    """The behaviours that every backend must show. Inherit, and give the two fixtures."""

    merges_streams: ClassVar[bool] = False
    """The platform keeps stdout and stderr in one log and does not say which was which (ECS: awslogs)."""

    drops_blank_lines: ClassVar[bool] = False
    """The platform's log takes no empty line (CloudWatch Logs)."""

    def _kept(self, *lines: str) -> list[str]:
        return [line for line in lines if line or not self.drops_blank_lines]

    @pytest.fixture
    @abstractmethod
    def jobs(self) -> Vocabulary:
        """How to tell the platform under test to behave."""

    @pytest.fixture
    @abstractmethod
    def make_backend(self) -> Callable[[], Backend]:
        """Makes a new backend on the same platform, each time it is called."""

    @pytest.fixture
    async def backend(self, make_backend: Callable[[], Backend]) -> AsyncIterator[Backend]:
        """An open one."""
        async with make_backend() as backend:
            yield backend

    @pytest.fixture
    def key(self) -> str:
        """A key that no other test uses."""
        return f"contract/{uuid.uuid4().hex}"

    # ---- prepare ---------------------------------------------------------------------------------------------------

    async def test_preparing_starts_nothing(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        await backend.prepare(jobs.waits(), _identity(key))

        assert await backend.find("contract", key) == []

    async def test_preparing_again_gives_the_same_launch(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        one = await backend.prepare(jobs.exits(), _identity(key))
        other = await backend.prepare(jobs.exits(), _identity(key))

        assert one.to_json() == other.to_json()

    @pytest.mark.parametrize(
        "change", [{"attempt": 2}, {"placement": 2}, {"key": "another"}, {"namespace": "another"}], ids=str
    )
    async def test_another_launch_has_another_token(
        self, backend: Backend, jobs: Vocabulary, key: str, change: dict[str, Any]
    ) -> None:
        one = await backend.prepare(jobs.exits(), _identity(key))
        other = await backend.prepare(jobs.exits(), attrs.evolve(_identity(key), **change))

        assert one.token != other.token

    async def test_a_launch_survives_as_text(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        launch = await backend.prepare(jobs.exits(7), _identity(key))

        async with _submitted(backend, Launch.from_json(launch.to_json())) as ref:
            assert (await _end(backend, ref)).exit_code == 7

    async def test_a_secret_is_not_in_the_launch(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        job = jobs.prints_variable("PASSWORD").with_(secrets={"PASSWORD": Secret("canary-4711")})

        launch = await backend.prepare(job, _identity(key))

        assert "canary-4711" not in launch.to_json() + repr(launch)

    # ---- what reaches the job --------------------------------------------------------------------------------------

    async def test_a_secret_reaches_the_job(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        job = jobs.prints_variable("PASSWORD").with_(secrets={"PASSWORD": Secret("canary-4711")})

        async with _launched(backend, job, key) as ref:
            assert await _texts(backend, ref) == ["canary-4711"]

    @pytest.mark.parametrize("value", ["", "two words", "quote\"d 'text'", "naïve ☃", "a=b", "$HOME `id` $(id)"])
    async def test_a_variable_reaches_the_job_unchanged(
        self, backend: Backend, jobs: Vocabulary, key: str, value: str
    ) -> None:
        job = jobs.prints_variable("GREETING").with_(env={"GREETING": value})

        async with _launched(backend, job, key) as ref:
            assert await _texts(backend, ref) == self._kept(value)

    @pytest.mark.parametrize(
        ("name", "value"),
        [("FARGATE_RUNNER_NAMESPACE", "contract"), ("FARGATE_RUNNER_KEY", "k/1"), ("FARGATE_RUNNER_ATTEMPT", "2")],
    )
    async def test_a_job_knows_which_attempt_it_is(
        self, backend: Backend, jobs: Vocabulary, name: str, value: str
    ) -> None:
        async with _launched(backend, jobs.prints_variable(name), "k/1", attempt=2) as ref:
            assert await _texts(backend, ref) == [value]

    # ---- submit ----------------------------------------------------------------------------------------------------

    async def test_a_ref_names_its_launch(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        launch = await backend.prepare(jobs.exits(), _identity(key))

        async with _submitted(backend, launch) as ref:
            assert (ref.backend, ref.key, ref.attempt, ref.token) == (backend.name, key, 1, launch.token)

    async def test_submitting_again_starts_nothing_new(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        launch = await backend.prepare(jobs.waits(), _identity(key))

        async with _submitted(backend, launch) as one:
            other = await backend.submit(launch)

            assert one.address == other.address
            assert len(await backend.find("contract", key)) == 1

    async def test_submitting_at_the_same_time_starts_one(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        launch = await backend.prepare(jobs.prints("once"), _identity(key))
        refs: list[TaskRef] = []

        async def submit() -> None:
            refs.append(await backend.submit(launch))

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(submit)

        async with _submitted(backend, launch) as ref:
            assert {other.address for other in refs} == {ref.address}
            assert await _texts(backend, ref) == ["once"]

    async def test_an_ended_launch_is_met_and_not_run_again(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        launch = await backend.prepare(jobs.prints("once"), _identity(key))

        async with _submitted(backend, launch) as ref:
            await _end(backend, ref)
            again = await backend.submit(launch)

            assert (await backend.observe(again)).ended
            assert await _texts(backend, again) == ["once"]

    async def test_a_token_starts_no_other_job(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        one = await backend.prepare(jobs.waits(), _identity(key))
        other = await backend.prepare(jobs.exits(3), _identity(key))

        async with _submitted(backend, one):
            with pytest.raises(KeyConflict, match="command"):
                await backend.submit(other)

    async def test_a_cancelled_submit_leaves_nothing_that_find_does_not_tell(
        self, backend: Backend, jobs: Vocabulary, key: str
    ) -> None:
        launch = await backend.prepare(jobs.waits(), _identity(key))

        with anyio.CancelScope() as scope:
            scope.cancel()
            await backend.submit(launch)

        for ref in await backend.find("contract", key):
            await backend.stop(ref, reason="the test is over")
            assert (await _end(backend, ref)).ended
            await backend.forget(ref)
        assert await backend.find("contract", key) == []

    # ---- observe ---------------------------------------------------------------------------------------------------

    async def test_observing_for_the_first_time_returns_at_once(
        self, backend: Backend, jobs: Vocabulary, key: str
    ) -> None:
        async with _launched(backend, jobs.waits(), key) as ref:
            assert not (await backend.observe(ref)).ended

    @pytest.mark.parametrize("code", [0, 1, 3, 42, 255])
    async def test_the_exit_code_is_told(self, backend: Backend, jobs: Vocabulary, key: str, code: int) -> None:
        async with _launched(backend, jobs.exits(code), key) as ref:
            end = await _end(backend, ref)

            assert (end.cause, end.exit_code) == (Cause.EXITED, code)

    async def test_an_end_carries_a_proof(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.exits(), key) as ref:
            end = await _end(backend, ref)

            assert end.proof is not None
            assert end.proof.source
            assert end.proof.seen_at.tzinfo is not None

    async def test_phases_never_go_back(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.prints("hello"), key) as ref:
            phases = [snapshot.phase async for snapshot in _snapshots(backend, ref)]

            assert phases == sorted(phases)
            assert phases[-1] is Phase.ENDED

    async def test_an_end_is_for_ever(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.exits(5), key) as ref:
            end = await _end(backend, ref)

            assert await backend.observe(ref) == end
            assert await backend.observe(ref, after=end) == end

    async def test_observing_can_be_cancelled_and_called_again(
        self, backend: Backend, jobs: Vocabulary, key: str
    ) -> None:
        async with _launched(backend, jobs.waits(), key) as ref:
            running = await _running(backend, ref)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await backend.observe(ref, after=running)

            await backend.stop(ref, reason="the test is over")
            assert (await _end(backend, ref)).cause is Cause.STOPPED_ON_REQUEST

    async def test_all_observers_see_the_same_end(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.exits(3), key) as ref:
            ends: list[Snapshot] = []

            async def observe() -> None:
                ends.append(await _end(backend, ref))

            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(observe)

            assert ends == [ends[0]] * 5

    async def test_times_are_in_order(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.prints("hello"), key) as ref:
            end = await _end(backend, ref)

            assert end.created_at is not None
            assert end.started_at is not None
            assert end.ended_at is not None
            assert end.created_at <= end.started_at <= end.ended_at
            assert end.created_at.tzinfo is not None

    async def test_what_cannot_start_never_ran(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.unstartable(), key) as ref:
            end = await _end(backend, ref)

            assert (end.cause, end.started_at) == (Cause.COULD_NOT_START, None)
            assert end.exit_code in {None, 126, 127}  # some platforms say what a shell would

    async def test_what_cannot_start_says_why_and_what_to_try(
        self, backend: Backend, jobs: Vocabulary, key: str
    ) -> None:
        async with _launched(backend, jobs.unstartable(), key) as ref:
            end = await _end(backend, ref)

            assert end.reason
            assert end.transient is False

    async def test_an_unknown_attempt_has_vanished(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.exits(), key) as ref:
            await _end(backend, ref)
        stranger = attrs.evolve(ref, address="no-such-address", token="nosuchtoken", key=f"{key}/stranger")

        end = await backend.observe(stranger)

        assert end.cause is Cause.VANISHED

    # ---- stop ------------------------------------------------------------------------------------------------------

    async def test_a_stopped_job_says_so(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.waits(), key) as ref:
            await _ready(backend, ref)
            await backend.stop(ref, reason="enough")
            end = await _end(backend, ref)

            assert (end.cause, end.exit_code) == (Cause.STOPPED_ON_REQUEST, 143)

    async def test_stopping_does_not_wait_for_the_end(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.ignores_sigterm(), key) as ref:
            await _ready(backend, ref)
            await backend.stop(ref, reason="enough")

            assert not (await backend.observe(ref)).ended

    async def test_a_job_that_ignores_sigterm_is_killed(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.ignores_sigterm(), key) as ref:
            await _ready(backend, ref)
            await backend.stop(ref, reason="enough")
            end = await _end(backend, ref)

            assert (end.cause, end.exit_code) == (Cause.STOPPED_ON_REQUEST, 137)

    async def test_stopping_twice_is_stopping_once(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.waits(), key) as ref:
            await _ready(backend, ref)
            await backend.stop(ref, reason="enough")
            await backend.stop(ref, reason="really")

            assert (await _end(backend, ref)).cause is Cause.STOPPED_ON_REQUEST

    async def test_stopping_what_is_over_changes_nothing(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.exits(3), key) as ref:
            end = await _end(backend, ref)
            await backend.stop(ref, reason="too late")

            assert await backend.observe(ref) == end

    async def test_stopping_the_unknown_is_no_error(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.exits(), key) as ref:
            await _end(backend, ref)
        stranger = attrs.evolve(ref, address="no-such-address", token="nosuchtoken", key=f"{key}/stranger")

        await backend.stop(stranger, reason="whoever you are")

        assert (await backend.observe(stranger)).ended

    async def test_a_stop_right_after_the_submit_wins(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.waits(), key) as ref:
            await backend.stop(ref, reason="changed my mind")

            assert (await _end(backend, ref)).cause is Cause.STOPPED_ON_REQUEST

    # ---- logs ------------------------------------------------------------------------------------------------------

    async def test_stdout_and_stderr_are_kept_apart(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.prints("a", "b", stderr=("x", "y")), key) as ref:
            lines = await _lines(backend, ref)

            errors = "stdout" if self.merges_streams else "stderr"
            assert [line.text for line in lines if line.stream == "stdout" and line.text in "ab"] == ["a", "b"]
            assert [line.text for line in lines if line.stream == errors and line.text in "xy"] == ["x", "y"]
            assert len(lines) == 4

    async def test_a_follower_gets_lines_while_the_job_runs(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.waits(), key) as ref:
            await _ready(backend, ref)

            assert not (await backend.observe(ref)).ended

    async def test_following_ends_with_the_job(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.prints("first", "last"), key) as ref:
            assert await _texts(backend, ref, follow=True) == ["first", "last"]
            assert (await _end(backend, ref)).exit_code == 0

    @pytest.mark.parametrize(
        "line",
        ["", "  indented  ", "tab\there", "naïve ☃ 𝄞", "100% 'quoted' \"twice\" \\n", "x" * 100_000],
        ids=lambda line: line[:9],
    )
    async def test_a_line_comes_out_as_it_went_in(
        self, backend: Backend, jobs: Vocabulary, key: str, line: str
    ) -> None:
        async with _launched(backend, jobs.prints("before", line, "after"), key) as ref:
            assert await _texts(backend, ref) == ["before", *self._kept(line), "after"]

    async def test_a_follower_loses_and_doubles_nothing(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.counts(5000), key) as ref:
            assert await _texts(backend, ref, follow=True) == [str(n) for n in range(1, 5001)]

    async def test_followers_do_not_take_lines_from_each_other(
        self, backend: Backend, jobs: Vocabulary, key: str
    ) -> None:
        async with _launched(backend, jobs.counts(200), key) as ref:
            seen: list[list[str]] = []

            async def follow() -> None:
                seen.append(await _texts(backend, ref, follow=True))

            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(follow)

            assert seen == [[str(n) for n in range(1, 201)]] * 3

    async def test_lines_can_be_read_again_after_the_end(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.counts(20), key) as ref:
            followed = await _texts(backend, ref, follow=True)
            await _end(backend, ref)

            assert await _texts(backend, ref, follow=False) == followed

    async def test_without_following_it_stops_at_what_is_there(
        self, backend: Backend, jobs: Vocabulary, key: str
    ) -> None:
        async with _launched(backend, jobs.waits(), key) as ref:
            await _ready(backend, ref)

            assert await _texts(backend, ref, follow=False) == [_READY]

    @pytest.mark.parametrize("tail", [0, 1, 3, 10, 1000])
    async def test_the_tail_is_the_end_of_the_whole(
        self, backend: Backend, jobs: Vocabulary, key: str, tail: int
    ) -> None:
        async with _launched(backend, jobs.counts(20), key) as ref:
            await _end(backend, ref)
            lines = [line.text async for line in backend.logs(ref, follow=False, tail=tail)]

            assert lines == [str(n) for n in range(max(1, 21 - tail), 21)]

    async def test_a_follower_that_leaves_harms_nobody(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.waits(), key) as ref:
            await _ready(backend, ref)
            await _ready(backend, ref)

            assert not (await backend.observe(ref)).ended

    async def test_a_follower_can_be_cancelled(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.waits(), key) as ref:
            await _ready(backend, ref)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await _texts(backend, ref, follow=True)

            assert await _texts(backend, ref, follow=False) == [_READY]

    async def test_a_silent_job_has_no_lines(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.exits(), key) as ref:
            assert await _texts(backend, ref, follow=True) == []

    async def test_what_never_ran_has_no_lines(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.unstartable(), key) as ref:
            assert await _texts(backend, ref, follow=True) == []

    async def test_a_line_says_whose_it_is(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        job = jobs.prints("hello").with_(container_name="worker")

        async with _launched(backend, job, key, attempt=3) as ref:
            (line,) = await _lines(backend, ref)

            assert (line.container, line.attempt) == ("worker", 3)

    # ---- find ------------------------------------------------------------------------------------------------------

    async def test_a_live_job_is_found_by_another_backend(
        self, backend: Backend, make_backend: Callable[[], Backend], jobs: Vocabulary, key: str
    ) -> None:
        async with _launched(backend, jobs.waits(), key) as ref:
            await _ready(backend, ref)
            async with make_backend() as other:
                (found,) = await other.find("contract", key)

                assert (found.key, found.attempt, found.token) == (key, 1, ref.token)
                assert not (await other.observe(found)).ended

    async def test_what_was_found_can_be_stopped_and_read(
        self, backend: Backend, make_backend: Callable[[], Backend], jobs: Vocabulary, key: str
    ) -> None:
        async with _launched(backend, jobs.waits(), key) as ref:
            await _ready(backend, ref)
            async with make_backend() as other:
                (found,) = await other.find("contract", key)
                await other.stop(found, reason="by another")

                assert await _texts(other, found, follow=True) == [_READY]
                assert (await _end(other, found)).ended

    async def test_what_is_found_says_what_it_is(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        job = jobs.waits()

        async with _launched(backend, job, key):
            (found,) = await backend.find("contract", key)

            assert found.description == job.describe()

    async def test_an_unknown_key_finds_nothing(self, backend: Backend, key: str) -> None:
        assert await backend.find("contract", key) == []

    async def test_namespaces_are_kept_apart(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.waits(), key):
            assert await backend.find("another", key) == []

    async def test_attempts_are_found_in_order(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.exits(1), key, attempt=2), _launched(backend, jobs.exits(1), key, attempt=1):
            assert [ref.attempt for ref in await backend.find("contract", key)] == [1, 2]

    # ---- the living ------------------------------------------------------------------------------------------------

    async def test_a_live_attempt_is_among_the_living(
        self, backend: Backend, make_backend: Callable[[], Backend], jobs: Vocabulary, key: str
    ) -> None:
        async with _launched(backend, jobs.waits(), key, attempt=2) as ref:
            await _ready(backend, ref)
            async with make_backend() as other:
                (found,) = await _living(other, key)

                assert (found.key, found.attempt, found.token) == (key, 2, ref.token)
                assert not (await other.observe(found)).ended

    async def test_an_attempt_that_was_just_launched_is_among_the_living(
        self, backend: Backend, jobs: Vocabulary, key: str
    ) -> None:
        async with _launched(backend, jobs.waits(), key) as ref:
            assert [found.address for found in await _living(backend, key)] == [ref.address]

    async def test_an_ended_attempt_is_not_among_the_living(
        self, backend: Backend, make_backend: Callable[[], Backend], jobs: Vocabulary, key: str
    ) -> None:
        async with _launched(backend, jobs.exits(3), key) as ref:
            await _end(backend, ref)

            assert await _living(backend, key) == []
            async with make_backend() as other:
                assert await _living(other, key) == []

    async def test_the_living_of_another_namespace_are_its_own(
        self, backend: Backend, jobs: Vocabulary, key: str
    ) -> None:
        async with _launched(backend, jobs.waits(), key):
            assert await _living(backend, key, "another") == await _living(backend, key, "contrac") == []

    async def test_the_living_say_how_long_they_may_live(
        self, backend: Backend, make_backend: Callable[[], Backend], jobs: Vocabulary, key: str
    ) -> None:
        job = jobs.waits().with_(timeout=timedelta(hours=3), start_timeout=timedelta(minutes=7))
        described = job.describe()

        async with _launched(backend, job, key) as ref:
            await _ready(backend, ref)
            async with make_backend() as other:
                (found,) = await _living(other, key)

                assert found.created_at is not None
                assert found.created_at.tzinfo is not None
                assert found.description is not None
                for limit in ("timeout", "start_timeout", "stop_timeout"):
                    assert found.description[limit] == described[limit]

    async def test_one_of_the_living_can_be_stopped(
        self, backend: Backend, make_backend: Callable[[], Backend], jobs: Vocabulary, key: str
    ) -> None:
        async with _launched(backend, jobs.waits(), key) as ref:
            await _ready(backend, ref)
            async with make_backend() as other:
                (found,) = await _living(other, key)
                await other.stop(found, reason="nobody looks after it")
                assert (await _end(other, found)).ended

            assert (await _end(backend, ref)).ended

    # ---- forget ----------------------------------------------------------------------------------------------------

    async def test_a_forgotten_attempt_is_gone(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.prints("hello"), key) as ref:
            await _end(backend, ref)
            await backend.forget(ref)

            assert await backend.find("contract", key) == []
            assert (await backend.observe(ref)).cause is Cause.VANISHED
            with pytest.raises(LogsUnavailable):
                await _texts(backend, ref, follow=False)

    async def test_forgetting_does_not_touch_what_runs(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.waits(), key) as ref:
            await _ready(backend, ref)
            await backend.forget(ref)

            assert not (await backend.observe(ref)).ended

    async def test_forgetting_twice_is_no_error(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with _launched(backend, jobs.exits(), key) as ref:
            await _end(backend, ref)
            await backend.forget(ref)
            await backend.forget(ref)

            assert await backend.find("contract", key) == []

    # ---- lifetime --------------------------------------------------------------------------------------------------

    async def test_a_closed_backend_says_so(
        self, make_backend: Callable[[], Backend], jobs: Vocabulary, key: str
    ) -> None:
        backend = make_backend()

        assert not backend.is_open
        with pytest.raises(RunnerClosed, match="async with"):
            await backend.prepare(jobs.exits(), _identity(key))

    async def test_an_error_comes_out_as_it_is(self, make_backend: Callable[[], Backend]) -> None:
        with pytest.raises(ZeroDivisionError):
            async with make_backend():
                raise ZeroDivisionError

    async def test_closing_leaves_a_live_attempt_to_the_next_backend(
        self, make_backend: Callable[[], Backend], jobs: Vocabulary, key: str
    ) -> None:
        async with make_backend() as backend:
            ref = await backend.submit(await backend.prepare(jobs.waits(), _identity(key)))
            await _ready(backend, ref)

        async with make_backend() as other:
            (found,) = await other.find("contract", key)
            async with _cleared(other, found):
                assert not (await other.observe(found)).ended

    # ---- with a runner ---------------------------------------------------------------------------------------------

    async def test_a_run_gives_the_record(self, backend: Backend, jobs: Vocabulary) -> None:
        async with Runner(backend, namespace="contract") as runner:
            result = await runner.run(jobs.prints("hello"))

        assert result.succeeded
        assert result.exit_code == 0
        assert [line.text for line in result.last_lines] == ["hello"]

    async def test_a_failed_run_raises_with_the_record(self, backend: Backend, jobs: Vocabulary) -> None:
        async with Runner(backend, namespace="contract") as runner:
            with pytest.raises(JobFailed, match="exit code 3") as failed:
                await runner.run(jobs.exits(3))

        assert failed.value.result.outcome.kind is Kind.FAILED

    async def test_a_failing_job_gets_its_extra_attempts(self, backend: Backend, jobs: Vocabulary) -> None:
        async with Runner(backend, namespace="contract") as runner:
            handle = await runner.submit(jobs.exits(3).with_(retry=Retry(failures=2, wait=wait_none())))
            result = await handle.wait()

        assert [attempt.number for attempt in result.attempts] == [1, 2, 3]

    async def test_what_cannot_start_is_tried_once(self, backend: Backend, jobs: Vocabulary) -> None:
        async with Runner(backend, namespace="contract") as runner:
            handle = await runner.submit(jobs.unstartable())
            result = await handle.wait()

        assert result.outcome.kind is Kind.NEVER_STARTED
        assert len(result.attempts) == 1

    async def test_a_cancelled_run_leaves_nothing_live(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with Runner(backend, namespace="contract") as runner, anyio.create_task_group() as tasks:
            tasks.start_soon(runner.run, jobs.waits().with_(key=key))
            handle = await _attached(runner, key)
            await _first(handle.logs())
            tasks.cancel_scope.cancel()

        assert await _live(backend, key) == []

    async def test_a_runner_cancelled_with_its_backend_stops_its_jobs(
        self, make_backend: Callable[[], Backend], jobs: Vocabulary, key: str
    ) -> None:
        handles: list[JobHandle] = []

        with anyio.CancelScope() as scope:
            async with Runner(make_backend(), namespace="contract") as runner:
                handles.append(await runner.submit(jobs.waits().with_(key=key)))
                async for _ in handles[0].logs():
                    scope.cancel()

        assert handles[0].result is not None
        assert handles[0].result.outcome.kind is Kind.CANCELLED

    async def test_leaving_the_runner_stops_its_jobs(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with Runner(backend, namespace="contract") as runner:
            handle = await runner.submit(jobs.waits().with_(key=key))
            await _first(handle.logs())

        assert handle.result is not None
        assert handle.result.outcome.kind is Kind.CANCELLED
        assert await _live(backend, key) == []

    async def test_a_detached_job_is_met_again(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with Runner(backend, namespace="contract", on_exit="detach") as runner:
            handle = await runner.submit(jobs.waits().with_(key=key))
            await _first(handle.logs())

        async with Runner(backend, namespace="contract") as runner:
            handle = await runner.attach(key)
            result = await handle.stop("met again")
            for ref in await backend.find("contract", key):
                await backend.forget(ref)

        assert result.outcome.kind is Kind.CANCELLED

    async def test_nothing_is_attached_to_an_unknown_key(self, backend: Backend, key: str) -> None:
        async with Runner(backend, namespace="contract") as runner:
            with pytest.raises(JobNotFound, match="no job with key"):
                await runner.attach(key)

    async def test_a_job_that_runs_too_long_is_timed_out(self, backend: Backend, jobs: Vocabulary) -> None:
        async with Runner(backend, namespace="contract") as runner:
            handle = await runner.submit(jobs.waits().with_(timeout=timedelta(milliseconds=300)))
            result = await handle.wait()

        assert result.outcome.kind is Kind.TIMED_OUT

    async def test_the_same_key_is_the_same_job(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        job = jobs.prints("once").with_(key=key)

        async with Runner(backend, namespace="contract") as runner:
            one, other = await runner.submit(job), await runner.submit(job)

            assert await one.wait() is await other.wait()

    async def test_a_key_names_one_job_for_ever(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with Runner(backend, namespace="contract") as runner:
            await runner.submit(jobs.waits().with_(key=key))
            with pytest.raises(KeyConflict, match="command"):
                await runner.submit(jobs.exits(3).with_(key=key))

    async def test_a_live_job_of_the_same_key_is_adopted(
        self, make_backend: Callable[[], Backend], jobs: Vocabulary, key: str
    ) -> None:
        job = jobs.waits().with_(key=key)
        async with Runner(make_backend(), namespace="contract", on_exit="detach") as runner:
            handle = await runner.submit(job)
            await _first(handle.logs())

        async with Runner(make_backend(), namespace="contract") as runner:
            handle = await runner.submit(job)

            assert len(await runner.backend.find("contract", key)) == 1
            assert (await handle.stop()).outcome.kind is Kind.CANCELLED

    async def test_a_map_keeps_the_order_of_its_jobs(self, backend: Backend, jobs: Vocabulary) -> None:
        async with Runner(backend, namespace="contract") as runner:
            mapped = runner.map([jobs.prints(str(n)) for n in range(6)], concurrency=3)

            assert [result.last_lines[0].text async for result in mapped] == [str(n) for n in range(6)]

    async def test_a_map_collects_failures_when_asked(self, backend: Backend, jobs: Vocabulary) -> None:
        async with Runner(backend, namespace="contract") as runner:
            mapped = runner.map([jobs.exits(code) for code in (0, 3, 0)], on_error="collect")

            assert [result.exit_code async for result in mapped] == [0, 3, 0]

    async def test_nothing_is_left_after_a_run(self, backend: Backend, jobs: Vocabulary, key: str) -> None:
        async with Runner(backend, namespace="contract") as runner:
            await runner.run(jobs.prints("hello").with_(key=key))

        assert await backend.find("contract", key) == []


# ---- words of the tests --------------------------------------------------------------------------------------------


def _identity(key: str, attempt: int = 1) -> Identity:
    return Identity(namespace="contract", key=key, attempt=attempt)


@asynccontextmanager
async def _cleared(backend: Backend, ref: TaskRef) -> AsyncGenerator[None]:
    """Leave nothing of an attempt behind, however the test goes."""
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await backend.stop(ref, reason="the test is over")
            await _end(backend, ref)
            await backend.forget(ref)


@asynccontextmanager
async def _submitted(backend: Backend, launch: Launch) -> AsyncGenerator[TaskRef]:
    ref = await backend.submit(launch)
    async with _cleared(backend, ref):
        yield ref


@asynccontextmanager
async def _launched(backend: Backend, job: Job, key: str, attempt: int = 1) -> AsyncGenerator[TaskRef]:
    async with _submitted(backend, await backend.prepare(job, _identity(key, attempt))) as ref:
        yield ref


async def _snapshots(backend: Backend, ref: TaskRef) -> AsyncGenerator[Snapshot]:
    snapshot = await backend.observe(ref)
    yield snapshot
    while not snapshot.ended:
        snapshot = await backend.observe(ref, after=snapshot)
        yield snapshot


async def _end(backend: Backend, ref: TaskRef) -> Snapshot:
    return [snapshot async for snapshot in _snapshots(backend, ref)][-1]


async def _running(backend: Backend, ref: TaskRef) -> Snapshot:
    async with aclosing(_snapshots(backend, ref)) as snapshots:
        return await anext(s async for s in snapshots if s.phase >= Phase.RUNNING)


async def _ready(backend: Backend, ref: TaskRef) -> None:
    """Wait until the job says that it is ready."""
    assert await _first(backend.logs(ref, follow=True)) == _READY


async def _first(lines: AsyncIterator[LogLine]) -> str:
    async with aclosing(cast("AsyncGenerator[LogLine]", lines)) as open_lines:
        return (await anext(open_lines)).text


async def _lines(backend: Backend, ref: TaskRef) -> list[LogLine]:
    return [line async for line in backend.logs(ref, follow=True)]


async def _texts(backend: Backend, ref: TaskRef, *, follow: bool = True) -> list[str]:
    return [line.text async for line in backend.logs(ref, follow=follow)]


async def _attached(runner: Runner, key: str) -> Any:
    """Attach to a job that another task is about to submit."""
    while True:
        try:
            return await runner.attach(key)
        except JobNotFound:
            await anyio.lowlevel.checkpoint()


async def _living(backend: Backend, key: str, namespace: str = "contract") -> list[TaskRef]:
    """Return the attempts of *key* among the living of a namespace; other tests may run on the same platform."""
    if type(backend).living is Backend.living:
        pytest.skip("this backend does not implement living(): Runner.reap is not for it")
    return [ref for ref in await backend.living(namespace) if ref.key == key]


async def _live(backend: Backend, key: str) -> list[TaskRef]:
    """Return the attempts of *key* that are not over."""
    return [ref for ref in await backend.find("contract", key) if not (await backend.observe(ref)).ended]
