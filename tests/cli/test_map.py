"""`fargate-runner map`: lines become jobs, results become lines."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fargate_runner import Backend, Identity, Job, MemoryBackend
from fargate_runner.backends.memory import Script
from fargate_runner.cli._app import main
from tests.cli.programs import PROGRAM, ROOT, Terminal, environment, run
from tests.cli.screens import Screen

pytestmark = pytest.mark.sweep


class Recorder(MemoryBackend):
    """Remembers which jobs it was given; those whose name begins with "bad" fail."""

    def __init__(self, seen: list[Job]) -> None:
        super().__init__(self._remember)
        self._seen = seen

    def _remember(self, job: Job, identity: Identity) -> Script:
        self._seen.append(job)
        return Script(exit_code=int(job.name.startswith("bad")), lines=("answer",))


@pytest.fixture
def seen() -> list[Job]:
    return []


@pytest.fixture
def backends(seen: list[Job]) -> dict[str, Callable[[], Backend]]:
    return {name: lambda: Recorder(seen) for name in ("process", "docker", "ecs")}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(*lines: Any, name: str = "jobs.jsonl") -> str:
        path = tmp_path / name
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
        return str(path)

    return write


class TestLines:
    def test_a_line_says_what_run_says_in_options(self, backends: Any, write: Any, seen: list[Job]) -> None:
        row = {
            "command": ["python3", "work.py"],
            "image": "img:1",
            "name": "n",
            "key": "k",
            "env": {"A": "1"},
            "vcpu": 1,
            "memory": "4g",
            "ephemeral_storage": 30,
            "architecture": "ARM64",
            "timeout": "1h30m",
            "start_timeout": 90,
            "stop_timeout": "20s",
            "retry": 2,
            "workdir": "/srv",
            "entrypoint": "sh",
        }

        assert main(["map", "--backend", "docker", write(row)], backends=backends) == 0

        (job,) = seen
        assert (job.command, job.image, job.name, job.key, dict(job.env)) == (
            ("python3", "work.py"),
            "img:1",
            "n",
            "k",
            {"A": "1"},
        )
        assert (job.vcpu, job.memory_gib, job.ephemeral_storage_gib, job.architecture) == (1, 4, 30, "ARM64")
        assert (job.timeout, job.start_timeout, job.stop_timeout) == (
            timedelta(minutes=90),
            timedelta(seconds=90),
            timedelta(seconds=20),
        )
        assert (job.working_directory, job.entry_point, job.retry) == ("/srv", ("sh",), job.retry)
        assert getattr(job.retry, "failures", None) == 2

    def test_it_comes_before_the_options_which_hold_for_all(self, backends: Any, write: Any, seen: list[Job]) -> None:
        file = write({"env": {"B": "2"}}, {"command": ["own"], "vcpu": 2, "env": {"A": "other"}}, {"vcpu": None})

        main(["map", "--vcpu", "1", "-e", "A=1", "--retry", "1", file, "--", "common", "-x"], backends=backends)

        assert [(job.command, job.vcpu, dict(job.env)) for job in seen] == [
            (("common", "-x"), 1, {"A": "1", "B": "2"}),
            (("own",), 2, {"A": "other"}),
            (("common", "-x"), 1, {"A": "1"}),
        ]

    def test_jobs_without_a_name_are_numbered_as_the_lines_are(
        self, backends: Any, write: Any, seen: list[Job]
    ) -> None:
        main(["map", "--name", "resize", write({}, "", {"name": "mine"}, {}), "x"], backends=backends)

        assert [job.name for job in seen] == ["resize-1", "mine", "resize-4"]

    def test_csv_has_a_header_and_commands_as_in_a_shell(self, backends: Any, write: Any, seen: list[Job]) -> None:
        file = write(
            "key,command,env.A,env.B,vcpu,timeout,memory-gib",
            """one,"sh -c 'echo ""$A""'",1,,0.5,10m,""",
            "two,true,,x,,,2",
            name="jobs.csv",
        )

        assert main(["map", file], backends=backends) == 0

        assert [(job.key, job.command, dict(job.env), job.vcpu, job.memory_gib) for job in seen] == [
            ("one", ("sh", "-c", 'echo "$A"'), {"A": "1"}, 0.5, None),
            ("two", ("true",), {"B": "x"}, None, 2),
        ]

    def test_they_can_come_through_a_pipe(self) -> None:
        done = subprocess.run(
            [*PROGRAM, "map", "-"],
            input='\ufeff{"command": ["echo", "one"]}\n{"command": ["echo", "two"]}',
            capture_output=True,
            text=True,
            env=environment(),
            cwd=ROOT,
            check=False,
        )

        assert done.returncode == 0, done.stderr
        assert sorted(json.loads(line)["last_line"] for line in done.stdout.splitlines()) == ["one", "two"]

    @pytest.mark.parametrize(
        ("lines", "told"),
        [
            (["{"], "line 1: it is no JSON"),
            (["{}", "[" * 100_000], "line 2: it is no JSON: nested too deeply"),
            (["[1]"], 'line 1: it is no JSON object; write it like {"command": ["echo", "hello"]}'),
            ([{"comand": ["x"]}], "line 1: unknown field 'comand'; use one of command, image,"),
            ([{"secrets": {"A": "hunter2"}}], "unknown field 'secrets'; use --secret, which holds for all"),
            ([{"command": "echo hello"}], "line 1: COMMAND 'echo hello': expected a list of words"),
            ([{"vcpu": 3}], "--vcpu 3: Fargate has no such size"),
            ([{"vcpu": "many"}], "vcpu: 'many' is not a number"),
            ([{"timeout": "soon"}], "timeout: 'soon' is not a duration"),
            ([{"timeout": [1]}], "--timeout"),
            ([{"memory": "lots"}], "memory: 'lots' is not a size of memory"),
            ([{"memory": True}], "--memory"),
            ([{"env": {"A": 1}}], "--env A"),
            ([{"env": ["A"]}], "--env"),
            ([{"retry": -1}], "--retry"),
            ([{"retry": "x"}], "retry: 'x' is not a number"),
            ([{"name": "\x1b[2Jx"}], "--name"),
            ([{"image": "img"}], "image: say where it runs: --backend docker, or --backend ecs"),
            ([{"key": "k"}, {}, {"key": "k"}], "line 3: the key 'k' is that of line 1 already"),
        ],
    )
    def test_a_wrong_one_is_named_before_anything_is_started(
        self, lines: list[Any], told: str, backends: Any, write: Any, seen: list[Job], capfd: pytest.CaptureFixture[str]
    ) -> None:
        got = main(["map", write({}, {}, *lines), "x"], backends=backends)

        shown = capfd.readouterr()
        assert (got, shown.out, seen) == (2, "", [])
        numbers = re.sub(r"line (\d+)", lambda found: f"line {int(found[1]) + 2}", told)
        assert numbers in " ".join(shown.err.split())
        assert "\x1b" not in shown.err
        assert "hunter2" not in shown.err

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ('command\n"unclosed', "it is not CSV"),
            ("command\nx,y\n", "line 2: it has more fields than the header"),
            ("command\n'x\n", "line 2: command: No closing quotation"),
        ],
    )
    def test_a_wrong_csv_is_told(
        self, text: str, told: str, backends: Any, write: Any, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["map", write(text, name="jobs.CSV")], backends=backends) == 2
        assert told in " ".join(capfd.readouterr().err.split())

    @pytest.mark.parametrize("name", ["missing", "."])
    def test_a_file_that_cannot_be_read_is_told(
        self, name: str, backends: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["map", str(tmp_path / name)], backends=backends) == 2
        assert "FILE" in capfd.readouterr().err

    def test_with_a_journal_each_line_needs_a_key(
        self, backends: Any, write: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["map", "--journal", str(tmp_path / "j"), write({}), "x"], backends=backends) == 2
        assert "line 1: key: with --journal each line needs one" in " ".join(capfd.readouterr().err.split())

    def test_a_wrong_line_in_a_pipe_ends_the_batch(self) -> None:
        done = subprocess.run(
            [*PROGRAM, "map", "-"],
            input='{"command": ["true"]}\n{"comand": ["true"]}\n{"command": ["true"]}\n',
            capture_output=True,
            text=True,
            env=environment(),
            cwd=ROOT,
            check=False,
        )

        assert done.returncode == 2
        assert "fargate-runner: stdin, line 2: unknown field 'comand'" in done.stderr


class TestResults:
    def test_each_is_a_line_of_json(self, backends: Any, write: Any, capfd: pytest.CaptureFixture[str]) -> None:
        got = main(["map", write({"name": "good", "key": "k"}, {"name": "bad"}), "x"], backends=backends)

        results = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        assert got == 1
        assert [(r["name"], r["kind"], r["succeeded"], r["exit_code"], r["last_line"]) for r in results] == [
            ("good", "succeeded", True, 0, "answer"),
            ("bad", "failed", False, 1, "answer"),
        ]
        assert set(results[0]) == {
            *("key", "name", "kind", "succeeded", "exit_code", "detail", "attempts"),
            *("started_at", "ended_at", "run_seconds", "last_line"),
        }

    def test_nothing_in_a_line_is_obeyed_by_a_terminal(self) -> None:
        command = ["printf", r"\033]0;t\007\033[2J\302\233x\342\200\256"]
        done = subprocess.run(
            [*PROGRAM, "map", "-"],
            input=json.dumps({"command": command}),
            capture_output=True,
            text=True,
            env=environment(),
            cwd=ROOT,
            check=False,
        )

        assert done.stdout.strip().isprintable()
        assert json.loads(done.stdout)["last_line"] == "\x1b]0;t\x07\x1b[2J\x9bx\u202e"

    @pytest.mark.parametrize("quiet", [[], ["-q"], ["--progress", "none"]])
    def test_progress_goes_to_stderr_unless_it_is_unwanted(
        self, quiet: list[str], backends: Any, write: Any, capfd: pytest.CaptureFixture[str]
    ) -> None:
        main(["map", *quiet, write({"name": "bad"}, {}), "x"], backends=backends)

        told = (
            "fargate-runner: bad failed: exit code 1 | answer\n"
            "fargate-runner: 2 jobs done in 0s: 1 succeeded, 1 failed\n"
        )
        assert capfd.readouterr().err == ("" if quiet else told)

    def test_after_so_many_failures_the_others_are_stopped(
        self, backends: Any, write: Any, seen: list[Job], capfd: pytest.CaptureFixture[str]
    ) -> None:
        rows = [{"name": f"bad-{n}"} for n in range(50)]

        got = main(["map", "--max-failures", "3", "--concurrency", "1", "-q", write(*rows), "x"], backends=backends)

        shown = capfd.readouterr()
        assert got == 1
        assert 3 <= len(seen) <= 4
        assert shown.err == "fargate-runner: 3 jobs have failed (--max-failures): stopping the others\n"
        assert [json.loads(line)["kind"] for line in shown.out.splitlines()][:3] == ["failed"] * 3

    def test_what_the_journal_knows_is_not_run_again(self, write: Any, tmp_path: Path) -> None:
        count = tmp_path / "count"
        rows = [{"key": f"k{n}", "command": ["sh", "-c", f"echo {n} >> {count}; exit {int(n == 1)}"]} for n in range(3)]
        args = ["map", "--journal", str(tmp_path / "jobs.sqlite"), write(*rows)]
        first, second = run(*args), run(*args)

        assert (first.returncode, second.returncode) == (1, 1)
        assert sorted(count.read_text().split()) == ["0", "1", "2"]
        assert {json.loads(line)["key"] for line in second.stdout.splitlines()} == {"k0", "k1", "k2"}
        assert "3 jobs done in 0s: 2 succeeded, 1 failed; 3 of them in an earlier run" in second.stderr

    def test_a_reader_that_leaves_ends_the_batch(self, write: Any) -> None:
        file = write(*[{"command": ["sh", "-c", "sleep 0.05"]} for _ in range(2000)])
        with subprocess.Popen(
            [*PROGRAM, "map", file],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.stdout.close()
            code = process.wait(90)

        assert code == 141


WAITS = {"command": ["sh", "-c", "exec sleep 1000"]}


class TestSignals:
    def test_ctrl_c_stops_the_jobs_and_tells_their_ends(self, write: Any) -> None:
        with Terminal("map", "--concurrency", "5", write(*[WAITS] * 5)) as terminal:
            terminal.read_until(r"5 running")
            terminal.type("\x03")
            code = terminal.finish()

        assert code == 130
        assert terminal.text.count('"kind": "cancelled"') == 5
        assert "5 jobs done" in terminal.text

    def test_the_live_display_and_the_results_share_a_terminal(self, write: Any) -> None:
        rows = [{"command": ["sh", "-c", f"sleep 0.3; exit {int(n == 2)}"]} for n in range(8)]
        with Terminal("map", "--concurrency", "4", write(*rows), columns=400) as terminal:
            code = terminal.finish()

        assert code == 1
        assert "━" in terminal.text
        screen = Screen(400)
        screen.feed(terminal.text.replace("\r\n", "\n"))
        assert sum(line.startswith('{"key"') for line in screen.lines) == 8
        assert len(screen.lines) == 10
        assert screen.lines[-1].startswith("8 jobs done in")

    def test_a_pipe_that_nobody_writes_to_does_not_keep_it(self) -> None:
        read, write = os.pipe()
        with subprocess.Popen(
            [*PROGRAM, "map", "-"], cwd=ROOT, env=environment(), stdin=read, stderr=subprocess.PIPE, text=True
        ) as process:
            os.write(write, b'{"command": ["true"]}\n')
            assert process.stderr is not None
            process.stderr.readline()
            process.terminate()
            code = process.wait(60)
        os.close(read)
        os.close(write)

        assert code == 143
