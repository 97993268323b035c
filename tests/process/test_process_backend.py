"""What is particular to the process backend, on real processes. The rest is in tests/contract."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import cast

import anyio
import anyio.lowlevel
import attrs
import pytest

from fargate_runner import (
    Backend,
    BackendUnavailable,
    Identity,
    InvalidJob,
    Job,
    KeyConflict,
    Kind,
    Launch,
    LaunchRejected,
    LogLine,
    LogsUnavailable,
    Phase,
    ProcessBackend,
    RunnerClosed,
    Secret,
    Sidecar,
    Snapshot,
    TaskRef,
)
from fargate_runner._lifecycle import Cause, classify
from fargate_runner.backends import process as module

pytestmark = pytest.mark.anyio

POLITE = timedelta(seconds=30)
SHORT = timedelta(seconds=2)


# ---- helpers -------------------------------------------------------------------------------------------------------


def identity(key: str = "k", attempt: int = 1) -> Identity:
    return Identity(namespace="tests", key=key, attempt=attempt)


def sh(script: str, **fields: object) -> Job:
    return Job(command=["sh", "-c", script], **fields)  # type: ignore[arg-type]


def python(script: str, *arguments: str, **fields: object) -> Job:
    return Job(command=[sys.executable, "-I", "-S", "-c", script, *arguments], **fields)  # type: ignore[arg-type]


async def start(backend: Backend, job: Job, key: str = "k", attempt: int = 1) -> TaskRef:
    return await backend.submit(await backend.prepare(job, identity(key, attempt)))


async def until_ended(backend: Backend, ref: TaskRef) -> Snapshot:
    snapshot = await backend.observe(ref)
    while not snapshot.ended:
        snapshot = await backend.observe(ref, after=snapshot)
    return snapshot


async def end_of(backend: Backend, job: Job) -> Snapshot:
    return await until_ended(backend, await start(backend, job))


async def lines_of(backend: Backend, ref: TaskRef, *, follow: bool = True, tail: int | None = None) -> list[LogLine]:
    return [line async for line in backend.logs(ref, follow=follow, tail=tail)]


def texts(lines: list[LogLine], stream: str = "stdout") -> list[str]:
    return [line.text for line in lines if line.stream == stream]


async def first_line(backend: Backend, ref: TaskRef) -> str:
    async with aclosing(cast("AsyncGenerator[LogLine]", backend.logs(ref, follow=True))) as lines:
        return (await anext(lines)).text


def state_of(pid: int) -> str:
    """The kernel's letter for a process: Z for a zombie, - if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "-"


async def until_dead(pid: int) -> None:
    with anyio.fail_after(20):
        while state_of(pid) not in "Z-":
            await anyio.lowlevel.checkpoint()


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@asynccontextmanager
async def runs_until_killed(
    backend: Backend, script: str, **fields: object
) -> AsyncGenerator[tuple[TaskRef, list[int]]]:
    """A job whose first line is the numbers of its processes; killed at the end, whatever happens."""
    ref = await start(backend, sh(script, **fields))
    pids = [int(word) for word in (await first_line(backend, ref)).split()]
    try:
        yield ref, pids
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


# ---- prepare -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "field"),
    [
        (Job(image="busybox"), "command"),
        (Job(image="busybox", command=["true"], sidecars=[Sidecar(name="s", image="busybox")]), "sidecars"),
        (Job(command=["true"], secrets={"TOKEN": "arn:aws:ssm:x"}), "secrets['TOKEN']"),
        (Job(command=["true"], working_directory="/no/such/place"), "working_directory"),
    ],
)
async def test_what_a_process_can_never_do_is_refused_with_a_fix(backend: ProcessBackend, job: Job, field: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        await backend.prepare(job, identity())

    assert caught.value.field == field
    assert caught.value.fix


async def test_a_watchdog_is_refused_with_what_does_its_work_here(backend: ProcessBackend) -> None:
    job = Job(image="busybox", command=["true"], sidecars=[Sidecar.watchdog(timedelta(hours=1))])

    with pytest.raises(InvalidJob, match="its jobs are killed with it"):
        await backend.prepare(job, identity())


async def test_another_architecture_is_refused(backend: ProcessBackend) -> None:
    other = {"x86_64": "ARM64"}.get(os.uname().machine, "X86_64")

    with pytest.raises(InvalidJob, match="this machine is"):
        await backend.prepare(Job(command=["true"], architecture=other), identity())  # type: ignore[arg-type]


async def test_a_job_with_an_image_and_a_command_runs_without_the_image(backend: ProcessBackend) -> None:
    snapshot = await end_of(backend, Job(image="no-such-image", entry_point=["sh", "-c"], command=["exit 4"]))

    assert snapshot.exit_code == 4


async def test_secret_values_do_not_show(backend: ProcessBackend, place: Path) -> None:
    job = sh('case "$TOKEN" in canary-*) sleep 60;; esac', secrets={"TOKEN": Secret("canary-4711")})

    launch = await backend.prepare(job, identity())
    ref = await backend.submit(launch)

    kept = [path.read_text() for path in place.rglob("*") if path.is_file()]
    assert (await backend.observe(ref)).phase is Phase.RUNNING
    assert kept
    assert "canary-4711" not in "".join((repr(launch), launch.to_json(), repr(ref), *kept))
    await backend.stop(ref, reason="enough")


async def test_a_launch_without_its_secret_values_is_rejected(backend: ProcessBackend) -> None:
    launch = await backend.prepare(sh("true", secrets={"TOKEN": Secret("x")}), identity())

    with pytest.raises(LaunchRejected, match="TOKEN"):
        await backend.submit(Launch.from_json(launch.to_json()))

    assert await backend.find("tests", "k") == []


# ---- the environment -----------------------------------------------------------------------------------------------


async def test_a_job_inherits_the_environment(backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HERE", "yes")

    ref = await start(backend, sh("echo $FROM_HERE"))

    assert texts(await lines_of(backend, ref)) == ["yes"]


async def test_a_job_can_be_kept_from_the_environment(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HERE", "yes")

    async with ProcessBackend(inherit_env=False) as backend:
        ref = await start(backend, sh('echo "${FROM_HERE-no}" "${PATH:+path}"'))

        assert texts(await lines_of(backend, ref)) == ["no path"]


async def test_the_command_is_looked_up_on_the_path_of_the_job(backend: ProcessBackend, tmp_path: Path) -> None:
    tool = tmp_path / "my-own-tool"
    tool.write_text("#!/bin/sh\nexit 9\n")
    tool.chmod(0o755)

    snapshot = await end_of(backend, Job(command=["my-own-tool"], env={"PATH": f"/nowhere:{tmp_path}"}))

    assert snapshot.exit_code == 9


async def test_a_job_runs_in_its_working_directory(backend: ProcessBackend, tmp_path: Path) -> None:
    ref = await start(backend, sh("pwd -P", working_directory=str(tmp_path)))

    assert texts(await lines_of(backend, ref)) == [str(tmp_path.resolve())]


@pytest.mark.parametrize("directory", [None, "/"])
async def test_a_job_gets_no_file_of_ours(backend: ProcessBackend, directory: str | None) -> None:
    script = "import os; print(sorted(os.listdir('/proc/self/fd'), key=int)[3:], os.readlink('/proc/self/fd/0'))"

    ref = await start(backend, python(script, working_directory=directory))

    # The one beyond 0, 1 and 2 is the listing itself.
    assert texts(await lines_of(backend, ref)) == ["['3'] /dev/null"]


async def test_what_our_parent_left_open_is_not_passed_on(place: Path) -> None:
    inherited = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(inherited, True)
    try:
        async with ProcessBackend() as backend:
            ref = await start(backend, python(f"import os; os.fstat({inherited})"))

            assert (await until_ended(backend, ref)).exit_code == 1
    finally:
        os.close(inherited)


# ---- how it ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 75, 255])
async def test_the_exit_code_is_the_process_own(backend: ProcessBackend, code: int) -> None:
    snapshot = await end_of(backend, sh(f"exit {code}"))

    assert (snapshot.cause, snapshot.exit_code) == (Cause.EXITED, code)
    assert snapshot.proof is not None
    assert (snapshot.proof.source, snapshot.proof.evidence) == ("wait-status", f"exit code {code}")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
async def test_a_signal_that_is_not_ours_is_128_and_its_number(backend: ProcessBackend, number: signal.Signals) -> None:
    snapshot = await end_of(backend, sh(f"kill -{number.value} $$"))

    assert (snapshot.cause, snapshot.exit_code) == (Cause.EXITED, 128 + number)
    assert classify(snapshot).kind is Kind.FAILED


async def _no_such_command(place: Path) -> Job:
    return Job(command=["no-such-command-4711"])


async def _no_such_file(place: Path) -> Job:
    return Job(command=["/no/such/file"])


async def _not_executable(place: Path) -> Job:
    (place / "text").write_text("hello")
    return Job(command=[str(place / "text")])


async def _not_executable_on_path(place: Path) -> Job:
    (place / "text").write_text("hello")
    return Job(command=["text"], env={"PATH": str(place)})


async def _a_directory(place: Path) -> Job:
    return Job(command=[str(place)])


async def _no_interpreter(place: Path) -> Job:
    (place / "script").write_text("#!/no/such/interpreter\n")
    (place / "script").chmod(0o755)
    return Job(command=[str(place / "script")])


async def _no_program(place: Path) -> Job:
    (place / "garbage").write_bytes(b"\x01\x02\x03\x04")
    (place / "garbage").chmod(0o755)
    return Job(command=[str(place / "garbage")])


async def _too_long(place: Path) -> Job:
    return Job(command=["true", "x" * 3_000_000])


@pytest.mark.parametrize(
    ("make", "code", "said"),
    [
        (_no_such_command, 127, "command not found"),
        (_no_such_file, 127, "command not found"),
        (_not_executable, 126, "not executable"),
        (_not_executable_on_path, 126, "not executable"),
        (_a_directory, 126, "not executable"),
        (_no_interpreter, 127, "interpreter"),
        (_no_program, 126, "no program"),
        (_too_long, 126, "too long"),
    ],
)
@pytest.mark.parametrize("directory", [None, "/"])
async def test_what_could_not_start_is_told_with_advice(
    backend: ProcessBackend, place: Path, make: object, code: int, said: str, directory: str | None
) -> None:
    job = (await make(place)).with_(working_directory=directory)  # type: ignore[operator]

    snapshot = await end_of(backend, job)

    assert (snapshot.cause, snapshot.exit_code, snapshot.transient) == (Cause.COULD_NOT_START, code, False)
    assert said in snapshot.reason
    assert snapshot.advice
    assert classify(snapshot).kind is Kind.NEVER_STARTED
    assert await lines_of(backend, (await backend.find("tests", "k"))[0]) == []


async def test_a_directory_that_went_away_is_told(backend: ProcessBackend, place: Path) -> None:
    (place / "gone").mkdir()
    launch = await backend.prepare(sh("true", working_directory=str(place / "gone")), identity())
    (place / "gone").rmdir()

    snapshot = await until_ended(backend, await backend.submit(launch))

    assert snapshot.cause is Cause.COULD_NOT_START
    assert "cannot enter" in snapshot.reason


async def test_a_machine_without_room_rejects_the_launch(
    backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fds()
    launch = await backend.prepare(sh("true"), identity())

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_spawn", full)
        with pytest.raises(LaunchRejected) as caught:
            await backend.submit(launch)

    assert (caught.value.retryable, caught.value.code) == (True, "EAGAIN")
    assert fds() == before + 1  # the pipe to the guardian
    assert (await until_ended(backend, await backend.submit(launch))).exit_code == 0


async def test_a_status_that_somebody_else_took_is_no_success(backend: ProcessBackend) -> None:
    ref = await start(backend, sh("echo $$; exec sleep 60"))
    pid = int(await first_line(backend, ref))

    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)  # takes what the backend wants to read
    snapshot = await until_ended(backend, ref)

    assert snapshot.exit_code is None
    assert classify(snapshot).kind is Kind.UNKNOWN


async def test_no_zombie_and_no_file_is_left_after_many_jobs(backend: ProcessBackend) -> None:
    await end_of(backend, sh("true"))
    before = fds()
    pids: list[int] = []

    async def one(number: int) -> None:
        async with limit:
            ref = await start(backend, sh("echo $$"), key=f"many/{number}")
            pids.append(int(await first_line(backend, ref)))
            assert (await until_ended(backend, ref)).exit_code == 0
            await backend.forget(ref)

    limit = anyio.CapacityLimiter(8)
    async with anyio.create_task_group() as tasks:
        for number in range(200):
            tasks.start_soon(one, number)

    assert len(pids) == 200
    assert {state_of(pid) for pid in pids} == {"-"}
    # What is more are files made ready for coming jobs: three for each.
    assert fds() <= before + 3 * module._MOST_READY


async def test_attempts_that_nobody_forgets_do_not_keep_files_open_without_end(backend: ProcessBackend) -> None:
    before = fds()

    refs = [await start(backend, sh(f"echo {number}"), key=f"kept/{number}") for number in range(60)]
    for ref in refs:
        await until_ended(backend, ref)

    assert fds() <= before + 3 * (module._MOST_READY + module._MOST_OPEN_AFTER_END)
    assert texts(await lines_of(backend, refs[-1])) == ["59"]


# ---- groups --------------------------------------------------------------------------------------------------------


async def test_what_is_left_of_the_group_is_killed_after_the_end(backend: ProcessBackend) -> None:
    stubborn = "trap '' TERM HUP; while :; do sleep 60; done"
    ref = await start(backend, sh(f'sh -c "{stubborn}" & echo $!; exit 5'))

    snapshot = await until_ended(backend, ref)

    grandchild = int(texts(await lines_of(backend, ref))[0])
    assert snapshot.exit_code == 5
    assert state_of(grandchild) in "Z-"


async def test_stop_reaches_the_whole_group(backend: ProcessBackend) -> None:
    async with runs_until_killed(backend, "sleep 600 & echo $$ $!; wait", stop_timeout=POLITE) as (ref, pids):
        await backend.stop(ref, reason="enough")
        snapshot = await until_ended(backend, ref)

        assert (snapshot.cause, snapshot.exit_code) == (Cause.STOPPED_ON_REQUEST, 143)
        assert snapshot.reason == "enough"
        assert {state_of(pid) for pid in pids} <= {"Z", "-"}


async def test_stop_kills_what_ignores_sigterm(backend: ProcessBackend) -> None:
    script = "trap '' TERM; sleep 600 & echo $$ $!; while :; do wait; done"
    async with runs_until_killed(backend, script, stop_timeout=SHORT) as (ref, pids):
        await backend.stop(ref, reason="enough")
        await backend.stop(ref, reason="again")
        snapshot = await until_ended(backend, ref)

        assert (snapshot.cause, snapshot.exit_code, snapshot.reason) == (Cause.STOPPED_ON_REQUEST, 137, "enough")
        assert {state_of(pid) for pid in pids} <= {"Z", "-"}


async def test_a_stopped_process_takes_sigterm_too(backend: ProcessBackend) -> None:
    async with runs_until_killed(backend, "echo $$; kill -STOP $$; sleep 600", stop_timeout=POLITE) as (ref, _):
        await backend.stop(ref, reason="enough")

        assert (await until_ended(backend, ref)).exit_code == 143


async def test_one_that_is_over_already_was_not_stopped(backend: ProcessBackend) -> None:
    ref = await start(backend, sh("exit 3"))
    pid = int(ref.address.rpartition(":")[2])
    while state_of(pid) != "Z":  # over, and the backend has had no turn to see it
        pass

    await backend.stop(ref, reason="too late")
    snapshot = await until_ended(backend, ref)

    assert (snapshot.cause, snapshot.exit_code) == (Cause.EXITED, 3)


async def test_leaving_waits_for_a_stop_that_is_under_way(place: Path) -> None:
    async with ProcessBackend() as backend:
        ref = await start(backend, sh("trap '' TERM; echo $$; while :; do sleep 1; done", stop_timeout=SHORT))
        pid = int(await first_line(backend, ref))
        await backend.stop(ref, reason="enough")

    assert state_of(pid) == "-"
    assert list(place.glob("fargate-runner-*/*")) == []


async def test_a_cancelled_leave_hands_a_stop_to_the_guardian(place: Path) -> None:
    pid = 0
    with anyio.CancelScope() as scope:
        async with ProcessBackend() as backend:
            ref = await start(backend, sh("trap '' TERM; echo $$; while :; do sleep 1; done", stop_timeout=SHORT))
            pid = int(await first_line(backend, ref))
            await backend.stop(ref, reason="enough")
            scope.cancel()

    await until_dead(pid)
    assert state_of(pid) in "Z-"


# ---- submit --------------------------------------------------------------------------------------------------------


async def test_the_same_token_meets_the_same_process(backend: ProcessBackend) -> None:
    launch = await backend.prepare(sh("echo once; sleep 60"), identity())
    refs: list[TaskRef] = []

    async def submit() -> None:
        refs.append(await backend.submit(launch))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(submit)

    assert len({ref.address for ref in refs}) == 1
    await backend.stop(refs[0], reason="enough")


async def test_the_same_token_for_another_job_is_a_conflict(backend: ProcessBackend) -> None:
    await end_of(backend, sh("true"))
    other = await backend.prepare(sh("false"), identity())

    with pytest.raises(KeyConflict) as caught:
        await backend.submit(other)

    assert caught.value.difference == ("command",)


async def test_a_cancelled_submit_leaves_nothing_or_what_find_tells_of(place: Path) -> None:
    for checkpoint in range(30):
        async with ProcessBackend() as backend:
            launch = await backend.prepare(sh("sleep 600"), identity())
            returned: list[TaskRef] = []
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_cancel_after, scope, checkpoint)
                    returned.append(await backend.submit(launch))
            found = await backend.find("tests", "k")
            for ref in found:
                await backend.stop(ref, reason="enough")

            assert {ref.address for ref in returned} == {ref.address for ref in found}
    assert list(place.glob("fargate-runner-*/*")) == []


async def _cancel_after(scope: anyio.CancelScope, checkpoints: int) -> None:
    for _ in range(checkpoints):
        await anyio.lowlevel.checkpoint()
    scope.cancel()


async def test_a_forgotten_attempt_gives_its_files_to_the_next(backend: ProcessBackend) -> None:
    first = await start(backend, sh("echo first; echo oops >&2"), key="first")
    await until_ended(backend, first)
    await backend.forget(first)

    second = await start(backend, sh("echo second"), key="second")

    assert first.address.rpartition(":")[0] == second.address.rpartition(":")[0]
    assert [str(line) for line in await lines_of(backend, second)] == ["second"]
    assert (await backend.observe(first)).cause is Cause.VANISHED
    with pytest.raises(LogsUnavailable):
        await lines_of(backend, first)


async def test_files_that_a_daemon_still_writes_to_are_not_used_again(backend: ProcessBackend) -> None:
    first = await start(backend, sh("setsid sh -c 'echo $$; exec sleep 600' & sleep 0.2"), key="first")
    daemon = int(await first_line(backend, first))
    await until_ended(backend, first)
    await backend.forget(first)

    second = await start(backend, sh("true"), key="second")

    assert first.address.rpartition(":")[0] != second.address.rpartition(":")[0]
    assert state_of(daemon) not in "Z-"
    os.kill(daemon, signal.SIGKILL)


async def test_a_closed_backend_says_so(place: Path) -> None:
    backend = ProcessBackend()

    with pytest.raises(RunnerClosed):
        await backend.prepare(sh("true"), identity())


async def test_an_error_in_the_block_comes_out_as_it_is(place: Path) -> None:
    with pytest.raises(KeyError):
        async with ProcessBackend():
            raise KeyError("mine")


async def test_a_directory_that_is_not_private_is_refused(place: Path) -> None:
    (place / f"fargate-runner-{os.geteuid()}").mkdir(mode=0o755)
    (place / f"fargate-runner-{os.geteuid()}").chmod(0o777)

    with pytest.raises(BackendUnavailable, match="TMPDIR"):
        async with ProcessBackend():
            pass


def test_one_program_may_run_several_loops(place: Path) -> None:
    async def main() -> int | None:
        async with ProcessBackend() as backend:
            return (await end_of(backend, sh("exit 6"))).exit_code

    assert [anyio.run(main, backend=loop) for loop in ("asyncio", "trio", "asyncio")] == [6, 6, 6]


# ---- logs ----------------------------------------------------------------------------------------------------------

COUNT = "import sys\nfor n in range({0}): sys.stdout.write(f'out {{n}}\\n'); sys.stderr.write(f'err {{n}}\\n')"


async def test_every_line_comes_once_and_in_order_while_following(backend: ProcessBackend) -> None:
    ref = await start(backend, python(COUNT.format(100_000)))

    lines = await lines_of(backend, ref)

    assert texts(lines) == [f"out {n}" for n in range(100_000)]
    assert texts(lines, "stderr") == [f"err {n}" for n in range(100_000)]


async def test_two_followers_and_a_late_one_see_the_same(backend: ProcessBackend) -> None:
    ref = await start(backend, python(COUNT.format(20_000)))
    seen: list[list[LogLine]] = []

    async def follow() -> None:
        seen.append(await lines_of(backend, ref))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        tasks.start_soon(follow)
    await until_ended(backend, ref)
    await follow()

    expected = [f"out {n}" for n in range(20_000)]
    assert [texts(lines) for lines in seen] == [expected] * 3


async def test_a_slow_reader_gets_everything(backend: ProcessBackend) -> None:
    ref = await start(backend, python(COUNT.format(20_000)))
    numbers: list[str] = []

    async for line in backend.logs(ref, follow=True):
        await anyio.lowlevel.checkpoint()
        numbers.append(line.text)

    assert len(numbers) == 40_000
    assert (await backend.observe(ref)).ended


async def test_a_line_of_a_megabyte_is_one_line(backend: ProcessBackend) -> None:
    ref = await start(backend, python("print('x' * 1_000_000 + 'y'); print('next')"))

    lines = texts(await lines_of(backend, ref))

    assert [len(line) for line in lines] == [1_000_001, 4]
    assert lines[0].endswith("xy")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (r"one\ntwo", ["one", "two"]),
        (r"one\r\ntwo\r\n", ["one", "two"]),
        (r"progress\rdone\n", ["progress\rdone"]),
        (r"\n\nthird\n", ["", "", "third"]),
        (r"bad \377 byte\n", ["bad � byte"]),
        (r"\342\230\203\n", ["☃"]),
        (r"cut \342\230", ["cut �"]),
    ],
)
async def test_lines_are_whole_and_text(backend: ProcessBackend, written: str, expected: list[str]) -> None:
    ref = await start(backend, Job(command=["printf", written]))

    assert texts(await lines_of(backend, ref)) == expected


async def test_a_character_on_the_edge_of_a_chunk_is_whole(backend: ProcessBackend) -> None:
    script = "import sys; sys.stdout.buffer.write(('x' * 65530 + '☃' * 10 + '\\n').encode())"

    ref = await start(backend, python(script))

    assert texts(await lines_of(backend, ref)) == ["x" * 65530 + "☃" * 10]


async def test_an_unfinished_line_is_not_told_before_its_end(backend: ProcessBackend) -> None:
    ref = await start(backend, sh("echo whole; printf part; read never < /dev/zero; sleep 600"))
    await first_line(backend, ref)

    now = await lines_of(backend, ref, follow=False)
    await backend.stop(ref, reason="enough")
    await until_ended(backend, ref)

    assert texts(now) == ["whole"]
    assert texts(await lines_of(backend, ref)) == ["whole", "part"]


@pytest.mark.parametrize(
    ("tail", "out", "err"),
    [
        (0, [], []),
        (1, [], ["e2"]),
        (4, ["o8", "o9"], ["e1", "e2"]),
        (6, ["o7", "o8", "o9"], ["e0", "e1", "e2"]),
        (99, [f"o{n}" for n in range(10)], ["e0", "e1", "e2"]),
    ],
)
async def test_the_tail_is_the_end_of_both_streams(
    backend: ProcessBackend, tail: int, out: list[str], err: list[str]
) -> None:
    script = "for n in 0 1 2 3 4 5 6 7 8 9; do echo o$n; done; for n in 0 1 2; do echo e$n >&2; done"
    ref = await start(backend, sh(script))
    await until_ended(backend, ref)

    lines = await lines_of(backend, ref, follow=False, tail=tail)

    assert (texts(lines), texts(lines, "stderr")) == (out, err)


@pytest.mark.parametrize("tail", [1, 3, 7000])
async def test_the_tail_of_a_long_log_is_found(backend: ProcessBackend, tail: int) -> None:
    ref = await start(backend, python("for n in range(20000): print('line', n, 'x' * 20)\nprint('last', end='')"))
    await until_ended(backend, ref)

    lines = texts(await lines_of(backend, ref, follow=False, tail=tail))

    assert len(lines) == tail
    assert lines[-1] == "last"
    assert [line.split()[1] for line in lines[:-1]] == [str(n) for n in range(20001 - tail, 20000)]


async def test_the_tail_of_a_live_job_is_followed(backend: ProcessBackend) -> None:
    ref = await start(
        backend,
        sh(
            "echo a; echo b; echo c; while ! test -e go; do sleep 0.01; done; echo d",
            working_directory=os.environ["TMPDIR"],
        ),
    )
    seen: list[str] = []

    while texts(await lines_of(backend, ref, follow=False))[-1:] != ["c"]:
        await anyio.lowlevel.checkpoint()
    async for line in backend.logs(ref, follow=True, tail=1):
        seen.append(line.text)
        (Path(os.environ["TMPDIR"]) / "go").touch()

    assert seen == ["c", "d"]


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_a_job_that_cuts_its_own_log_is_told_of(backend: ProcessBackend, stream: str) -> None:
    number = {"stdout": 1, "stderr": 2}[stream]
    ref = await start(backend, sh(f"echo lost >&{number}; echo kept > /dev/{stream}"))
    await until_ended(backend, ref)
    seen: list[str] = []

    with pytest.raises(LogsUnavailable, match=f">&{number}"):  # noqa: PT012
        async for line in backend.logs(ref, follow=True):
            seen.append(line.text)  # noqa: PERF401 (what came before the error counts)

    assert seen == ["kept"]
    assert (await backend.observe(ref)).exit_code == 0


async def test_appending_to_dev_stderr_loses_nothing(backend: ProcessBackend) -> None:
    ref = await start(backend, sh("echo one >&2; echo two >> /dev/stderr"))

    assert texts(await lines_of(backend, ref), "stderr") == ["one", "two"]


async def test_a_reader_keeps_its_lines_when_the_attempt_is_forgotten(backend: ProcessBackend) -> None:
    ref = await start(backend, python(COUNT.format(20_000)))
    await until_ended(backend, ref)

    lines = backend.logs(ref, follow=True)
    first = await anext(lines)
    await backend.forget(ref)
    other = await start(backend, sh("echo other"), key="other")
    await until_ended(backend, other)
    rest = [line async for line in lines]

    assert texts([first, *rest]) == [f"out {n}" for n in range(20_000)]


# ---- other processes -----------------------------------------------------------------------------------------------

OTHER = """
import sys, anyio, attrs, json
from fargate_runner import Job, Identity, ProcessBackend

async def main():
    async with ProcessBackend() as backend:
        async def start(key, script):
            job = Job(command=["sh", "-c", script])
            identity = Identity(namespace="tests", key=key, attempt=1)
            ref = await backend.submit(await backend.prepare(job, identity))
            return [line.text async for line in first(backend.logs(ref, follow=True))][0]
        async def first(lines):
            async for line in lines:
                yield line
                return
{body}

anyio.run(main)
"""


def other(body: str) -> list[str]:
    indented = "\n".join(f"        {line}" for line in body.strip().splitlines())
    return [sys.executable, "-c", OTHER.replace("{body}", indented)]


def elsewhere(place: Path) -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return os.environ | {"TMPDIR": str(place), "PYTHONPATH": root}


async def test_jobs_die_with_a_program_that_is_killed(place: Path) -> None:
    script = "setsid sh -c 'trap \\\"\\\" TERM; echo $$ >> pids; sleep 600' & env -i sleep 600 & echo $$ $!; wait"
    body = f'print(await start("a", "cd {place}; {script}"), flush=True)\nawait anyio.sleep_forever()'
    owner = subprocess.Popen(other(body), env=elsewhere(place), stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pids = [int(word) for word in (await anyio.to_thread.run_sync(owner.stdout.readline)).split()]
    while not (place / "pids").exists() or not (place / "pids").read_text():
        await anyio.lowlevel.checkpoint()
    pids.append(int((place / "pids").read_text()))
    assert "-" not in {state_of(pid) for pid in pids}

    owner.kill()
    owner.wait()
    owner.stdout.close()

    for pid in pids:
        await until_dead(pid)


async def test_the_files_of_a_killed_program_are_removed(place: Path) -> None:
    body = 'print(await start("a", "echo $$; sleep 600"), flush=True)\nimport os\nos.kill(os.getpid(), 9)'
    ran = await anyio.to_thread.run_sync(
        lambda: subprocess.run(other(body), env=elsewhere(place), capture_output=True, text=True)
    )
    await until_dead(int(ran.stdout))
    assert len(list(place.glob("fargate-runner-*/*"))) == 1

    async with ProcessBackend() as backend:
        assert await backend.find("tests", "a") == []
        assert len(list(place.glob("fargate-runner-*/*"))) == 1


async def leave_behind(place: Path, script: str) -> str:
    ran = await anyio.to_thread.run_sync(
        lambda: subprocess.run(
            other(f'print(await start("left", {script!r}))'), env=elsewhere(place), capture_output=True, text=True
        )
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


async def test_a_job_that_was_left_lives_on_and_is_met_by_key(place: Path) -> None:
    pid = int(await leave_behind(place, "echo $$; trap 'echo bye; exit 0' TERM; while :; do sleep 0.05; done"))
    assert state_of(pid) not in "Z-"

    async with ProcessBackend() as backend:
        (ref,) = await backend.find("tests", "left")
        assert (await backend.observe(ref)).phase is Phase.RUNNING
        assert ref.description == Job(command=ref.description["command"]).describe()  # type: ignore[index]

        await backend.stop(ref, reason="enough")
        snapshot = await until_ended(backend, ref)

        assert texts(await lines_of(backend, ref)) == [str(pid), "bye"]
        assert (snapshot.cause, snapshot.reason) == (Cause.STOPPED_ON_REQUEST, "enough")
        assert snapshot.exit_code is None  # its parent is dead: nobody could read it
        await backend.forget(ref)
    assert state_of(pid) in "Z-"


async def test_an_end_that_nobody_saw_is_no_success(place: Path) -> None:
    await leave_behind(place, "echo $$; while ! test -e $TMPDIR/go; do sleep 0.01; done; exit 0")

    async with ProcessBackend() as backend:
        (ref,) = await backend.find("tests", "left")
        (place / "go").touch()
        snapshot = await until_ended(backend, ref)

        assert (snapshot.cause, snapshot.exit_code) == (Cause.EXITED, None)
        assert classify(snapshot).kind is Kind.UNKNOWN


async def test_one_that_ended_after_it_was_left_still_has_its_lines(place: Path) -> None:
    pid = int(await leave_behind(place, "echo $$; while ! test -e $TMPDIR/go; do sleep 0.01; done; echo end"))
    (place / "go").touch()
    await until_dead(pid)

    async with ProcessBackend() as backend:
        (ref,) = await backend.find("tests", "left")

        assert (await backend.observe(ref)).exit_code is None
        assert texts(await lines_of(backend, ref)) == [str(pid), "end"]


async def test_two_backends_of_one_program_see_each_others_jobs_and_ends(place: Path) -> None:
    async with ProcessBackend() as one, ProcessBackend() as two:
        ref = await start(one, sh("while ! test -e go; do sleep 0.01; done; exit 7", working_directory=str(place)))
        (found,) = await two.find("tests", "k")
        (place / "go").touch()

        mine, theirs = await until_ended(one, ref), await until_ended(two, found)

        assert found == ref
        assert (theirs.exit_code, theirs.cause) == (mine.exit_code, mine.cause) == (7, Cause.EXITED)
        assert theirs.proof is not None
        assert "parent" in theirs.proof.evidence


async def test_an_end_is_known_to_another_also_if_its_parent_left_at_once(place: Path) -> None:
    async with ProcessBackend() as one, ProcessBackend() as two:
        ref = await start(one, sh("while ! test -e go; do sleep 0.01; done; exit 7", working_directory=str(place)))
        await two.observe(ref)
        Path(ref.address.rpartition(":")[0] + ".json").unlink()  # as one that leaves its runner tidies up
        (place / "go").touch()

        theirs = await until_ended(two, ref)

        assert (theirs.exit_code, theirs.cause) == (7, Cause.EXITED)


async def test_a_stop_from_another_backend_is_heeded(place: Path) -> None:
    async with ProcessBackend() as one, ProcessBackend() as two:
        ref = await start(one, sh("exec sleep 600"))

        await two.stop(ref, reason="by another")
        mine, theirs = await until_ended(one, ref), await until_ended(two, ref)

        assert (mine.cause, mine.exit_code) == (Cause.EXITED, 143)
        assert (theirs.cause, theirs.exit_code, theirs.reason) == (Cause.STOPPED_ON_REQUEST, 143, "by another")


async def test_a_job_that_was_left_by_this_program_is_reaped_and_its_end_known(place: Path) -> None:
    async with ProcessBackend() as backend:
        ref = await start(
            backend, sh("echo $$; while ! test -e go; do sleep 0.01; done; exit 8", working_directory=str(place))
        )
        pid = int(await first_line(backend, ref))

    async with ProcessBackend() as backend:
        (place / "go").touch()
        snapshot = await until_ended(backend, ref)

        assert (snapshot.cause, snapshot.exit_code) == (Cause.EXITED, 8)
        assert state_of(pid) == "-"


async def test_a_number_that_is_used_again_is_not_taken_for_the_job(place: Path) -> None:
    async with ProcessBackend() as one, ProcessBackend() as two:
        ref = await start(one, sh("exec sleep 600"))
        card = Path(ref.address.rpartition(":")[0] + ".json")
        text = card.read_text()
        born = json.loads(text.partition("\n")[0])["born"]
        card.write_text(text.replace(json.dumps(born), json.dumps([born[0] - 500, born[1] - 500])))

        snapshot = await until_ended(two, ref)
        await two.stop(ref, reason="never")

        assert snapshot.exit_code is None
        assert (await one.observe(ref)).phase is Phase.RUNNING
        await one.stop(ref, reason="enough")


@pytest.mark.parametrize("text", ["", "{", "[1]\n\n", '{"key": "k", "namespace": "tests"}\n\n'])
async def test_a_card_that_cannot_be_read_is_nobody(place: Path, text: str) -> None:
    async with ProcessBackend() as one, ProcessBackend() as two:
        ref = await start(one, sh("exec sleep 600"))
        Path(ref.address.rpartition(":")[0] + ".json").write_text(text)

        assert await two.find("tests", "k") == []
        assert (await two.observe(ref)).cause is Cause.VANISHED
        await one.stop(ref, reason="enough")


async def test_a_ref_of_nowhere_has_vanished(backend: ProcessBackend) -> None:
    ref = attrs.evolve(await start(backend, sh("true")), address="/no/such/place/1:1")

    assert (await backend.observe(ref)).cause is Cause.VANISHED
    await backend.stop(ref, reason="nothing there")
    await backend.forget(ref)


# ---- without pidfd -------------------------------------------------------------------------------------------------


async def test_it_works_without_pidfd(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_pidfd", lambda pid: None)

    async with ProcessBackend() as backend:
        stubborn = await start(backend, sh("exec sleep 600"), key="stopped")
        await backend.stop(stubborn, reason="enough")

        assert (await until_ended(backend, stubborn)).exit_code == 143
        assert (await end_of(backend, sh("exit 3"))).exit_code == 3


async def test_it_works_without_waitid(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_pidfd", lambda pid: None)
    monkeypatch.delattr(os, "waitid")

    async with ProcessBackend() as backend:
        assert (await end_of(backend, sh("kill -9 $$"))).exit_code == 137


def test_closing_warns_of_nothing(place: Path) -> None:
    async def main() -> None:
        async with ProcessBackend() as backend:
            await end_of(backend, sh("true", working_directory="/"))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        anyio.run(main)

    assert re.fullmatch(r"fargate-runner-\d+", next(iter(place.iterdir())).name)
