"""The real program, its exit codes and its signals, on the process backend."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.programs import PROGRAM, ROOT, Terminal, environment, run

# Says who it is, then waits for ever; the second does not even obey.
WAITS = "echo ready $$; exec sleep 1000"
IGNORES_SIGTERM = "trap '' TERM; echo ready $$; while :; do sleep 0.1; done"


@pytest.fixture(autouse=True)
def _jobs_of_this_test_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))


READY = r"ready (\d+)\s"


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class TestExitCode:
    @pytest.mark.parametrize(
        ("args", "code"),
        [
            (["-", "--", "true"], 0),
            (["-", "--", "sh", "-c", "exit 3"], 3),
            (["-", "sh", "-c", "exit 255"], 255),
            (["-", "--", "sh", "-c", "kill -KILL $$"], 137),
            (["--timeout", "100ms", "-", "--", "sleep", "1000"], 124),
            (["-", "--", "/no/such/program"], 127),
            (["-", "--", "/etc/passwd"], 126),
            (["--backend", "process", "image:tag", "--", "sh", "-c", "exit 4"], 4),
        ],
    )
    def test_it_tells_how_the_job_ended(self, args: list[str], code: int) -> None:
        assert run("run", *args).returncode == code

    @pytest.mark.parametrize("command", ["attach", "stop"])
    def test_a_key_that_nobody_knows_is_125_and_one_line(self, command: str) -> None:
        done = run(command, "no-such-key")

        assert done.returncode == 125
        assert re.fullmatch(r"fargate-runner: no job with key 'no-such-key' .*\n", done.stderr)

    def test_the_exit_codes_are_in_the_help(self) -> None:
        told = run("run", "--help").stdout

        assert {"70", "74", "75", "76", "124", "125", "126", "127", "130", "137", "141"} <= set(
            re.findall(r"\d+", told)
        )


class TestOutput:
    def test_stdout_is_data_and_nothing_else(self) -> None:
        done = run("run", "-", "--", "sh", "-c", "echo out; echo err >&2")

        assert done.stdout == "out\n"
        assert "err\n" in done.stderr.splitlines(keepends=True)
        assert {line for line in done.stderr.splitlines() if not line.startswith("fargate-runner: ")} == {"err"}

    def test_quiet_leaves_only_the_jobs_lines(self) -> None:
        done = run("run", "-q", "-", "--", "sh", "-c", "echo out; echo err >&2; exit 3")

        assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)

    def test_quiet_does_not_hide_what_an_exit_code_of_ours_stands_for(self) -> None:
        done = run("run", "-q", "--timeout", "0.1", "-", "--", "sleep", "1000")

        assert "timed out" in done.stderr

    def test_no_line_of_many_is_lost_or_changed(self) -> None:
        done = run("run", "-", "--", "seq", "200000")

        assert done.stdout == "".join(f"{n}\n" for n in range(1, 200_001))

    def test_a_pipe_gets_control_sequences_as_they_are(self) -> None:
        assert run("run", "-", "--", "printf", r"\033]0;t\007\033[2Jx\n").stdout == "\x1b]0;t\x07\x1b[2Jx\n"

    def test_the_last_line_needs_no_end(self) -> None:
        assert run("run", "-", "--", "printf", r"one\ntwo").stdout == "one\ntwo\n"

    def test_a_ci_system_finds_no_commands_in_the_output(self) -> None:
        done = run("run", "-", "--", "printf", r"::error::x\nok\n", env=environment(GITHUB_ACTIONS="true"))

        assert done.stdout == "| ::error::x\nok\n"

    def test_a_failed_attempt_is_told_before_the_next(self) -> None:
        done = run("run", "--retry", "1", "-", "--", "sh", "-c", 'test "$FARGATE_RUNNER_ATTEMPT" = 2')

        assert done.returncode == 0
        assert "attempt 1 failed: exit code 1; the next begins" in done.stderr

    def test_a_reader_that_leaves_ends_the_job_politely(self) -> None:
        with subprocess.Popen(
            [*PROGRAM, "run", "-", "--", "yes"],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                first = process.stdout.readline()
                process.stdout.close()
                told = process.stderr.read()
                process.wait()
            finally:
                process.kill()

        assert first == "y\n"
        assert process.returncode == 141
        assert "stopping the job" in told
        assert "Traceback" not in told

    def test_a_full_disk_is_told_and_ends_the_job(self) -> None:
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [*PROGRAM, "run", "-", "--", "sh", "-c", WAITS],
                cwd=ROOT,
                env=environment(),
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )

        assert done.returncode == 74
        assert "the output cannot be written: No space left on device" in done.stderr


class TestEnvironment:
    def test_variables_are_given_or_taken_from_here(self) -> None:
        env = environment(HERE="from here")

        done = run("run", "--env", "GIVEN=a=b", "--env", "HERE", "-", "--", "sh", "-c", 'echo "$GIVEN $HERE"', env=env)

        assert done.stdout == "a=b from here\n"

    def test_a_secret_reaches_the_job_and_nobody_else(self) -> None:
        env = environment(TOKEN="canary-in-the-mine")

        done = run("run", "--secret", "TOKEN", "-", "--", "sh", "-c", 'test "$TOKEN" = canary-in-the-mine', env=env)

        assert done.returncode == 0
        assert "canary" not in done.stdout + done.stderr

    @pytest.mark.parametrize("mistake", ["TOKEN=canary", "canary"])
    def test_a_secret_on_the_command_line_is_refused_and_not_shown(self, mistake: str) -> None:
        done = run("run", "--secret", mistake, "-", "--", "true")

        assert done.returncode == 2
        assert "canary" not in done.stdout + done.stderr


class TestMissingExtra:
    @pytest.mark.parametrize("library", ["click", "rich"])
    def test_it_says_what_to_install_in_one_line(self, library: str) -> None:
        code = (
            f"import sys; sys.modules[{library!r}] = None; from fargate_runner.cli import main; sys.exit(main(['run']))"
        )

        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)

        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert 'pip install "fargate-runner[cli]"' in done.stderr


class TestOnATerminal:
    def test_control_sequences_do_not_reach_it_but_colours_do(self) -> None:
        with Terminal("run", "-q", "-", "--", "printf", r"\033]0;t\007\033[2J\033[31mred\n") as terminal:
            code = terminal.finish()

        assert (terminal.text, code) == ("\x1b[31mred\x1b[0m\r\n", 0)

    @pytest.mark.parametrize(
        ("args", "variables"), [(["--no-color"], {}), ([], {"NO_COLOR": "1"}), ([], {"TERM": "dumb"})]
    )
    def test_colours_can_be_refused(self, args: list[str], variables: dict[str, str]) -> None:
        env = environment(**variables)

        with Terminal("run", *args, "-", "--", "printf", r"\033[31mred\n", env=env) as terminal:
            terminal.finish()

        assert "red\r\n" in terminal.text
        assert "\x1b" not in terminal.text

    def test_ctrl_c_stops_the_job(self) -> None:
        with Terminal("run", "-", "--", "sh", "-c", WAITS) as terminal:
            pid = int(terminal.read_until(READY)[1])
            terminal.type("\x03")
            code = terminal.finish()

        assert code == 130
        assert "press Ctrl-C again to detach" in terminal.text
        assert "was stopped" in terminal.text
        assert not is_alive(pid)

    def test_a_second_ctrl_c_leaves_the_job_alive_and_tells_how_to_meet_it(self) -> None:
        with Terminal(
            "run", "--key", "a b", "--namespace", "twice", "-", "--", "sh", "-c", IGNORES_SIGTERM
        ) as terminal:
            pid = int(terminal.read_until(READY)[1])
            terminal.type("\x03")
            terminal.read_until("press Ctrl-C again")
            terminal.type("\x03")
            code = terminal.finish()

        alive = is_alive(pid)
        os.killpg(pid, signal.SIGKILL)
        assert code == 130
        assert alive
        assert "fargate-runner attach --backend process --namespace twice 'a b'" in terminal.text
        assert "Traceback" not in terminal.text

    def test_ctrl_c_in_attach_ends_only_the_watching(self) -> None:
        with Terminal("run", "--key", "watched", "-", "--", "sh", "-c", WAITS) as owner:
            pid = int(owner.read_until(READY)[1])
            with Terminal("attach", "watched") as watcher:
                watcher.read_until(READY)
                watcher.type("\x03")
                code = watcher.finish()
            alive = is_alive(pid)
            owner.type("\x03")
            owner.finish()

        assert (code, alive) == (130, True)
        assert "the job goes on" in watcher.text

    def test_stop_ends_a_job_of_another_program(self) -> None:
        with Terminal("run", "--key", "stopped", "-", "--", "sh", "-c", WAITS) as owner:
            pid = int(owner.read_until(READY)[1])
            done = run("stop", "stopped")
            owner.finish()

        assert done.returncode == 0
        assert "the job is over" in done.stderr
        assert not is_alive(pid)

    def test_talk_is_styled_and_harmless(self) -> None:
        with Terminal("run", "--name", "styled", "-", "--", "\x1b]0;t\x07no") as terminal:
            code = terminal.finish()

        assert code == 127
        assert "\x1b]" not in terminal.text
        assert "\x1b[2m" in terminal.text


# Tells the handle of a job that waits for its reader, and then how it has ended.
OWNER = """
import anyio
from fargate_runner import Job, Runner

async def main():
    async with Runner() as runner:
        handle = await runner.submit(Job(command=["sh", "-c", "echo here; exec sleep 1000"], key="a b:c"))
        print(handle.text, flush=True)
        print((await handle.wait()).outcome.kind.value, flush=True)

anyio.run(main)
"""


class TestAHandlesText:
    def test_is_taken_for_a_key(self) -> None:
        owner = [sys.executable, "-c", OWNER]
        with subprocess.Popen(owner, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as program:
            assert program.stdout is not None
            text = program.stdout.readline().strip()
            with Terminal("attach", text) as watcher:
                watcher.read_until("here")
                done = run("stop", text)
                code = watcher.finish()
            kind = program.stdout.read().strip()

        assert done.returncode == 0
        assert kind == "failed"  # a local process's owner sees a signal, and not whose it was
        assert code == 143


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    def test_the_job_is_stopped_as_by_ctrl_c(self, number: signal.Signals) -> None:
        with Terminal("run", "-", "--", "sh", "-c", WAITS) as terminal:
            pid = int(terminal.read_until(READY)[1])
            terminal.process.send_signal(number)
            code = terminal.finish()

        assert code == 128 + number
        assert not is_alive(pid)

    def test_under_nohup_it_goes_on_without_its_terminal(self) -> None:
        with Terminal("run", "-", "--", "sh", "-c", WAITS, ignores="SIGHUP") as terminal:
            pid = int(terminal.read_until(READY)[1])
            terminal.process.send_signal(signal.SIGHUP)
            terminal.process.send_signal(signal.SIGTERM)
            code = terminal.finish()

        assert code == 128 + signal.SIGTERM
        assert not is_alive(pid)
