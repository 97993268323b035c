"""What the command line makes of results, options and errors; jobs are played from scripts, in this process."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest

from fargate_runner import (
    Attempt,
    Backend,
    BackendError,
    BackendUnavailable,
    Cause,
    Identity,
    Job,
    JobResult,
    Kind,
    MemoryBackend,
    Outcome,
    Proof,
    Runner,
    TaskRef,
)
from fargate_runner.backends.memory import MemoryPlatform, Script
from fargate_runner.cli._app import exit_code, main

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def result(kind: Kind, code: int | None) -> JobResult:
    outcome = Outcome(kind=kind, detail="", exit_code=code, proof=Proof(source="test", seen_at=NOW))
    attempt = Attempt(
        number=1, token="t", address="a", outcome=outcome, vcpu=0.25, memory_gib=0.5, created_at=NOW, ended_at=NOW
    )
    return JobResult(key="k", name="n", attempts=(attempt,), accepted_at=NOW, ended_at=NOW)


class TestExitCode:
    @pytest.mark.parametrize(
        ("kind", "code", "expected"),
        [
            (Kind.SUCCEEDED, 0, 0),
            (Kind.FAILED, 3, 3),
            (Kind.FAILED, 0, 1),
            (Kind.FAILED, None, 1),
            (Kind.FAILED, 256, 1),
            (Kind.FAILED, -9, 1),
            (Kind.TIMED_OUT, 0, 124),
            (Kind.TIMED_OUT, 143, 124),
            (Kind.OUT_OF_MEMORY, None, 137),
            (Kind.OUT_OF_MEMORY, 0, 137),
            (Kind.OUT_OF_MEMORY, 139, 139),
            (Kind.NEVER_STARTED, None, 125),
            (Kind.NEVER_STARTED, 0, 125),
            (Kind.NEVER_STARTED, 126, 126),
            (Kind.NEVER_STARTED, 127, 127),
            (Kind.CANCELLED, 0, 130),
            (Kind.INTERRUPTED, 0, 75),
            (Kind.LOST, None, 76),
            (Kind.UNKNOWN, 0, 76),
        ],
    )
    def test_each_kind_has_its_own(self, kind: Kind, code: int | None, expected: int) -> None:
        assert exit_code(result(kind, code)) == expected

    @pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.SUCCEEDED])
    @pytest.mark.parametrize("code", [None, 0, 1, 255, 256, 512, -256])
    def test_it_is_never_0_without_success(self, kind: Kind, code: int | None) -> None:
        assert 0 < exit_code(result(kind, code)) < 256


def plays(script: Script) -> dict[str, Callable[[], Backend]]:
    def choose(job: Job, identity: Identity) -> Script:
        return script

    return {"process": lambda: MemoryBackend(choose)}


class TestEnding:
    @pytest.mark.parametrize(
        ("script", "code", "told"),
        [
            (Script(cause=Cause.UNRECOGNISED, exit_code=0), 76, "ended in an unknown way"),
            (Script(cause=Cause.OUT_OF_MEMORY, exit_code=0), 137, "try: give it more --memory"),
            (Script(cause=Cause.COULD_NOT_START, reason="\x1b[2Jno image"), 125, "never started: no image"),
            (Script(cause=Cause.SIDECAR_ENDED, exit_code=0), 1, "failed"),
        ],
    )
    @pytest.mark.parametrize("quiet", [[], ["--quiet"]])
    def test_what_the_exit_code_stands_for_is_told(
        self, script: Script, code: int, told: str, quiet: list[str], capfd: pytest.CaptureFixture[str]
    ) -> None:
        got = main(["run", *quiet, "-", "--", "x"], backends=plays(script))

        assert got == code
        assert told in capfd.readouterr().err

    def test_every_line_comes_before_the_end_is_told(self, capfd: pytest.CaptureFixture[str]) -> None:
        lines = tuple(f"!{n}" for n in range(1000))

        main(["run", "-", "x"], backends=plays(Script(lines=lines, exit_code=3)))

        told = [
            line for line in capfd.readouterr().err.splitlines() if "accepted" not in line and "running" not in line
        ]
        assert told[:1000] == [str(n) for n in range(1000)]
        assert told[1000].startswith("fargate-runner: failed: exit code 3")


class Broken(MemoryBackend):
    """Cannot be reached."""

    async def prepare(self, job: Job, identity: Identity) -> Any:
        raise BackendUnavailable("the engine does not answer; start it")


async def _leave(job: Job, platform: MemoryPlatform) -> str:
    async with Runner(
        MemoryBackend(lambda *_: Script(run_for=math.inf), platform=platform), on_exit="detach"
    ) as runner:
        return (await runner.submit(job)).key


class TestErrors:
    def test_a_typed_error_is_one_line_and_125(self, capfd: pytest.CaptureFixture[str]) -> None:
        got = main(["run", "-q", "-", "x"], backends={"process": Broken})

        assert (got, capfd.readouterr().err) == (125, "fargate-runner: the engine does not answer; start it\n")

    def test_a_bug_is_shown_and_is_not_taken_for_the_jobs_own_exit_code(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def is_broken() -> Backend:
            raise AssertionError("never happens")

        got = main(["run", "-", "x"], backends={"process": is_broken})

        assert got == 70
        assert "AssertionError: never happens" in capfd.readouterr().err

    def test_a_key_that_names_another_job_is_refused_and_says_what_differs(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        platform = MemoryPlatform()
        left = anyio.run(_leave, Job(command=["one"], key="k"), platform)

        got = main(
            ["run", "-q", "--key", "k", "-", "two"], backends={"process": lambda: MemoryBackend(platform=platform)}
        )

        assert (left, got) == ("k", 125)
        assert "key 'k' already names a job that differs in command" in capfd.readouterr().err

    @pytest.mark.parametrize(
        ("args", "told"),
        [
            (["--vcpu", "3", "-", "x"], "--vcpu 3: Fargate has no such size"),
            (
                ["--memory", "0.7", "-", "x"],
                "--memory 0.7: Fargate has no such size; the nearest is --vcpu 0.25, --memory 1",
            ),
            (["--memory", "lots", "-", "x"], "'lots' is not a size of memory"),
            (["--stop-timeout", "1", "-", "x"], "--stop-timeout 1s: out of range"),
            (["--timeout", "0", "-", "x"], "--timeout 0s: out of range"),
            (["--timeout", "1x", "-", "x"], "'1x' is not a duration; write it like 90, 90s, 15m or 1h30m"),
            (["--timeout", "9" * 30, "-", "x"], "is too long"),
            (["--ephemeral-storage", "5", "-", "x"], "--ephemeral-storage 5: "),
            (["--name", "a b", "-", "x"], "--name 'a b': not a name"),
            (["--key", "", "-", "x"], "--key '': expected 1 to 512"),
            (["--env", "1A=x", "-", "x"], "--env '1A': not the name of an environment variable"),
            (["--env", "NOT_SET_HERE", "-", "x"], "--env NOT_SET_HERE: no such variable is set here"),
            (["--env", "PATH", "--secret", "PATH", "-", "x"], "--secret PATH: the same variable is in env too"),
            (["--retry", "-1", "-", "x"], "--retry -1: expected a number of extra attempts"),
            (["--namespace", "a b", "-", "x"], "--namespace 'a b'"),
            (["--workdir", "", "-", "x"], "--workdir '': expected a path"),
            (["-"], "COMMAND: neither image nor command"),
            (["UPPER/Case:1", "x"], "IMAGE 'UPPER/Case:1': image names are lower case"),
            (["--nonsense", "-", "x"], "--nonsense"),
            ([], "IMAGE_OR_-"),
        ],
    )
    def test_a_refusal_names_the_option_and_is_2(
        self, args: list[str], told: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        got = main(["run", *args], backends=plays(Script()))

        shown = capfd.readouterr()
        assert got == 2
        assert told in " ".join(shown.err.split())
        assert "timedelta" not in shown.err
        assert shown.out == ""

    @pytest.mark.parametrize("text", ["90", "90s", "1m30s", "1.5m", "90000ms"])
    def test_a_duration_can_be_written_in_many_ways(self, text: str) -> None:
        seen: list[Job] = []

        main(["run", "-q", "--timeout", text, "-", "x"], backends={"process": lambda: Recorder(seen)})

        assert [job.timeout.total_seconds() for job in seen if job.timeout] == [90]

    @pytest.mark.parametrize(("text", "gib"), [("2", 2), ("2g", 2), ("2GiB", 2), ("512m", 0.5), (".5", 0.5)])
    def test_memory_can_be_written_in_many_ways(self, text: str, gib: float) -> None:
        seen: list[Job] = []

        main(["run", "-q", "--memory", text, "-", "x"], backends={"process": lambda: Recorder(seen)})

        assert [job.memory_gib for job in seen] == [gib]

    def test_options_behind_the_image_belong_to_the_command(self) -> None:
        seen: list[Job] = []

        main(
            ["run", "-q", "--backend", "process", "img", "ls", "--timeout", "--", "-x"],
            backends={"process": lambda: Recorder(seen)},
        )

        assert [job.command for job in seen] == [("ls", "--timeout", "--", "-x")]
        assert [job.image for job in seen] == ["img"]

    def test_an_image_runs_on_docker_unless_said_otherwise(self) -> None:
        seen: list[Job] = []

        got = main(["run", "-q", "img"], backends={"docker": lambda: Recorder(seen)})

        assert got == 0
        assert [(job.image, job.command) for job in seen] == [("img", None)]

    def test_what_a_backend_needs_and_lacks_is_told(self, capfd: pytest.CaptureFixture[str]) -> None:
        def lacks() -> Backend:
            raise ModuleNotFoundError("No module named 'aiodocker'", name="aiodocker")

        got = main(["run", "img"], backends={"docker": lacks})

        assert got == 2
        assert 'pip install "fargate-runner[docker]"' in capfd.readouterr().err


class Recorder(MemoryBackend):
    """Remembers which jobs it was given."""

    def __init__(self, seen: list[Job]) -> None:
        super().__init__(self._remember)
        self._seen = seen

    def _remember(self, job: Job, identity: Identity) -> Script:
        self._seen.append(job)
        return Script()


class TestReap:
    def test_what_is_overdue_is_stopped_and_told(self, capfd: pytest.CaptureFixture[str]) -> None:
        platform = MemoryPlatform()
        left_behind(platform)

        code = main(["reap", "--namespace", "cli"], backends=hours_later(platform))

        assert (code, live(platform)) == (0, 1)
        (line,) = capfd.readouterr().out.splitlines()
        assert line.startswith("stopped short (attempt 1): it has run for ")

    def test_a_dry_run_stops_nothing(self, capfd: pytest.CaptureFixture[str]) -> None:
        platform = MemoryPlatform()
        left_behind(platform)

        args = ["reap", "--namespace", "cli", "--dry-run", "--max-age", "2h", "--grace", "0"]
        code = main(args, backends=hours_later(platform))

        assert (code, live(platform)) == (0, 2)
        assert [line.split()[:3] for line in capfd.readouterr().out.splitlines()] == [
            ["would", "stop", "short"],
            ["would", "stop", "timeless"],
        ]

    def test_quiet_is_quiet(self, capfd: pytest.CaptureFixture[str]) -> None:
        platform = MemoryPlatform()
        left_behind(platform)

        main(["reap", "-q", "--namespace", "cli"], backends=hours_later(platform))

        assert (capfd.readouterr().out, live(platform)) == ("", 1)

    def test_a_platform_that_cannot_be_asked_is_told(self, capfd: pytest.CaptureFixture[str]) -> None:
        class Silent(MemoryBackend):
            async def living(self, namespace: str) -> list[TaskRef]:
                raise BackendError("nobody answers")

        assert main(["reap"], backends={"process": Silent}) == 125
        assert capfd.readouterr().err == "fargate-runner: nobody answers\n"

    def test_a_namespace_that_cannot_be_one_is_misuse(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert main(["reap", "--namespace", "a b"], backends={"process": MemoryBackend}) == 2
        assert "--namespace" in capfd.readouterr().err


def left_behind(platform: MemoryPlatform) -> None:
    """Leave a job with a timeout of an hour, and one with none."""

    async def leave() -> None:
        backend = MemoryBackend(lambda job, identity: Script(run_for=math.inf), platform=platform)
        async with Runner(backend, namespace="cli", on_exit="detach") as runner:
            await runner.submit(Job(command=["x"], key="short", timeout=timedelta(hours=1)))
            await runner.submit(Job(command=["x"], key="timeless"))

    anyio.run(leave)


def live(platform: MemoryPlatform) -> int:
    async def count() -> int:
        return platform.live()

    return anyio.run(count)


def hours_later(platform: MemoryPlatform) -> dict[str, Callable[[], Backend]]:
    def utcnow() -> datetime:
        return datetime.now(UTC) + timedelta(hours=5)

    return {"process": lambda: MemoryBackend(platform=platform, utcnow=utcnow)}
