"""The live display: what it draws, at every width, and on a real terminal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fargate_runner import Kind
from fargate_runner.cli._live import Live, frame
from fargate_runner.cli._screen import Stream
from fargate_runner.progress import Failure, Printed, Standing, summary
from fargate_runner.reports.cost import Cost
from tests.cli.programs import Terminal, environment
from tests.cli.screens import Screen
from tests.scenario.test_progress import HOSTILE

pytestmark = pytest.mark.sweep

EMPTY = Standing(
    total=None,
    queued=0,
    starting=0,
    running=0,
    stopping=0,
    done=0,
    outcomes={},
    remembered=0,
    refused=0,
    detached=0,
    retries=0,
    elapsed=timedelta(),
    rate=None,
    eta=None,
    cost=None,
    failures=(),
)
MIDWAY = attrs.evolve(
    EMPTY,
    total=1000,
    queued=288,
    starting=12,
    running=85,
    stopping=3,
    done=612,
    outcomes={Kind.SUCCEEDED: 602, Kind.FAILED: 8, Kind.TIMED_OUT: 2},
    retries=14,
    elapsed=timedelta(seconds=252),
    rate=145.3,
    eta=timedelta(seconds=160),
    cost=Cost(usd=0.4213, attempts=700),
)


def told(standing: Standing, width: int, **options: Any) -> list[str]:
    return ["".join(text for text, _ in parts) for parts in frame(standing, width, **options)]


class TestFrame:
    def test_of_an_ordinary_terminal(self) -> None:
        assert told(MIDWAY, 79) == [
            "━━━━━━━━━━━━━━━━━━━━━━━━────────────────  612/1000  61%  4m 12s  ≈2m 40s left",
            "288 queued · 12 starting · 85 running · 3 stopping · 145/min",
            "602 succeeded · 8 failed · 2 timed out · 14 retries · ≤ $0.4213",
        ]

    def test_of_a_narrow_one(self) -> None:
        assert told(MIDWAY, 39) == [
            "━━━━━━────  612/1000  61%  ≈2m 40s left",
            "288 queued · 12 starting · 85 running",
            "3 stopping · 145/min",
            "602 succeeded · 8 failed · 2 timed out",
            "14 retries · ≤ $0.4213",
        ]

    def test_without_a_total_there_is_no_bar(self) -> None:
        assert told(attrs.evolve(MIDWAY, total=None, eta=None), 79)[0] == "612 done  4m 12s"

    def test_where_only_ascii_can_be_shown(self) -> None:
        assert all(line.isascii() for line in told(MIDWAY, 79, ascii_only=True))

    def test_the_bar_is_full_only_when_all_is_done(self) -> None:
        assert "─" in told(attrs.evolve(MIDWAY, done=999), 79)[0]
        assert "─" not in told(attrs.evolve(MIDWAY, done=1000), 79)[0]

    @given(
        st.integers(19, 200),
        st.builds(
            Standing,
            total=st.none() | st.integers(0, 10**7),
            queued=st.integers(0, 10**7),
            starting=st.integers(0, 10**4),
            running=st.integers(0, 10**4),
            stopping=st.integers(0, 10**4),
            done=st.integers(0, 10**7),
            outcomes=st.dictionaries(st.sampled_from(Kind), st.integers(1, 10**7)),
            remembered=st.integers(0, 10**7),
            refused=st.integers(0, 10**7),
            detached=st.integers(0, 10**4),
            retries=st.integers(0, 10**7),
            elapsed=st.timedeltas(timedelta(), timedelta(days=400)),
            rate=st.none() | st.floats(0, 1e6),
            eta=st.none() | st.timedeltas(timedelta(), timedelta(days=400)),
            cost=st.none() | st.builds(Cost, usd=st.floats(0, 1e7), unpriced=st.integers(0, 10**7)),
            failures=st.just(()),
        ),
        st.booleans(),
    )
    def test_no_line_is_wider_than_the_terminal(self, width: int, standing: Standing, ascii_only: bool) -> None:
        standing = attrs.evolve(standing, total=max(standing.total, standing.done) if standing.total else None)

        lines = told(standing, width, ascii_only=ascii_only)

        assert max(map(len, lines)) <= width
        assert all(line.isprintable() for line in lines)


class Paper:
    """Stands for the stream of a terminal."""

    encoding = "utf-8"

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        self.screen = Screen(columns)
        self.height = lines
        self.written = ""

    def size(self) -> tuple[int, int]:
        return self.screen.columns, self.height

    def write_trusted(self, text: str) -> None:
        self.written += text
        self.screen.feed(text)

    @property
    def display(self) -> Live:
        return Live(cast("Stream", self))


def failed(text: str) -> Failure:
    return Failure(key="k", job=text, kind=Kind.FAILED, reason=text, last_line=text)


class TestDrawing:
    def test_lines_stand_above_the_frame_which_is_drawn_anew_each_time(self) -> None:
        paper = Paper()
        display = paper.display

        for done in range(600, 613):
            standing = attrs.evolve(MIDWAY, done=done)
            lines = display.look(standing, [failed(f"job-{done}")] if done % 5 == 0 else [], last=False)
            display.draw(lines, standing, last=False)

        assert paper.screen.lines == [
            *(f"✗ job-{done} failed: job-{done} | job-{done}" for done in (600, 605, 610)),
            *told(MIDWAY, 79),
        ]

    def test_at_the_end_a_summary_takes_its_place(self) -> None:
        paper = Paper()
        display = paper.display

        display.draw([], MIDWAY, last=False)
        display.draw(display.look(MIDWAY, [], last=True), MIDWAY, last=True)

        assert paper.screen.lines == [summary(MIDWAY)]

    def test_what_the_program_prints_stays_as_it_is(self) -> None:
        paper = Paper()
        display = paper.display

        display.draw([], MIDWAY, last=False)
        display.draw([Printed("one\n\x1b[31mtwo\n")], None, last=False)

        assert paper.screen.lines == ["one", "two", *told(MIDWAY, 79)]
        assert "\x1b[31mtwo\n\x1b[0m" in paper.written

    def test_a_frame_that_has_not_changed_is_not_drawn(self) -> None:
        paper = Paper()
        display = paper.display
        display.draw([], MIDWAY, last=False)
        before = paper.written

        display.draw([], MIDWAY, last=False)

        assert paper.written == before

    @given(
        st.lists(
            st.tuples(st.integers(20, 100), st.lists(st.text(st.characters(codec="ascii", categories=["L"])))),
            min_size=1,
            max_size=8,
        )
    )
    def test_a_terminal_that_becomes_narrower_loses_nothing_and_keeps_one_frame(
        self, steps: list[tuple[int, list[str]]]
    ) -> None:
        steps.sort(key=lambda step: -step[0])
        paper = Paper(100, 1000)
        display = paper.display
        lines: list[str] = []

        for columns, names in steps:
            paper.screen.resize(columns)
            new = display.look(MIDWAY, [failed(f"n{name}"[:60]) for name in names], last=False)
            lines += new
            display.draw(new, attrs.evolve(MIDWAY, done=len(lines)), last=False)

        assert paper.screen.lines == [
            *(f"✗ {line}" for line in lines),
            *told(attrs.evolve(MIDWAY, done=len(lines)), steps[-1][0] - 1),
        ]

    @pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:30])
    @pytest.mark.parametrize("columns", [40, 80])
    def test_foreign_text_can_do_nothing_to_the_terminal(self, text: str, columns: int) -> None:
        paper = Paper(columns)
        display = paper.display

        display.draw([], MIDWAY, last=False)
        display.draw(display.look(MIDWAY, [failed(text)], last=False), MIDWAY, last=False)

        assert paper.screen.lines[1:] == told(MIDWAY, columns - 1)
        assert "\x1b]" not in paper.written

    @pytest.mark.parametrize(("columns", "lines"), [(10, 24), (19, 1), (80, 1), (80, 2), (1, 1)])
    def test_it_gets_along_with_a_terminal_of_any_size(self, columns: int, lines: int) -> None:
        paper = Paper(columns, lines)
        display = paper.display

        for done in range(3):
            display.draw([], attrs.evolve(MIDWAY, done=done), last=False)
        display.draw(["the end"], MIDWAY, last=True)

        assert paper.screen.lines[-1] == "the end"

    def test_no_color_means_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NO_COLOR", "1")
        paper = Paper()
        display = paper.display

        display.draw([display.look(MIDWAY, [failed("x")], last=False)[0]], MIDWAY, last=False)

        assert re.findall(r"\x1b\[[^A]", paper.written) == []


BATCH = """
import sys, anyio
from fargate_runner import Job, MemoryBackend, Runner
from fargate_runner.backends.memory import Script
from fargate_runner.progress import Progress

EVIL = "\\x1b]0;t\\x07\\x1b[2J\\u202e"

def script(job, identity):
    fails = int(job.name == "bad")
    return Script(start_after=0.01, run_for=float(sys.argv[1]), exit_code=fails, lines=(EVIL + "boom",))

async def main():
    jobs = [Job(name="bad" if n == 3 else f"job-{n}", command=["x"]) for n in range(10)]
    async with Progress(total=10) as progress, Runner(MemoryBackend(script), observers=[progress]) as runner:
        async for result in runner.map(jobs, concurrency=5, on_error="collect"):
            print("got", result.name)
            if result.name == sys.argv[2]:
                raise SystemExit("left early")

anyio.run(main)
"""
WITHOUT_RICH = """
import importlib.util as util
find = util.find_spec
util.find_spec = lambda name, *rest: None if name == "rich" else find(name, *rest)
"""


def batch(*args: str, columns: int = 80, env: Mapping[str, str] | None = None) -> Terminal:
    return Terminal(*args, env=env, program=[sys.executable, "-c", BATCH], columns=columns)


def screen_of(terminal: Terminal, columns: int = 80) -> Screen:
    screen = Screen(columns)
    screen.feed(terminal.text.replace("\r\n", "\n"))
    return screen


class TestOnATerminal:
    @pytest.mark.parametrize("columns", [40, 80, 200])
    def test_what_stays_is_what_was_printed_the_failures_and_a_summary(self, columns: int) -> None:
        with batch("0.3", "", columns=columns) as terminal:
            code = terminal.finish()

        lines = screen_of(terminal, columns).lines
        assert code == 0
        assert re.search(r"━|─", terminal.text)
        assert sorted(line for line in lines if line.startswith("got")) == sorted(
            ["got bad", *(f"got job-{n}" for n in range(10) if n != 3)]
        )
        assert [line for line in lines if "bad failed" in line] == ["✗ bad failed: exit code 1 | \ufffdboom"]
        assert re.fullmatch(r"10 jobs done in \ds: 9 succeeded, 1 failed", lines[-1])
        assert len(lines) == 12

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_whatever_ends_it_the_next_prompt_stands_on_a_line_of_its_own(self, number: int) -> None:
        with batch("1000", "") as terminal:
            terminal.read_until(r"5 running")
            terminal.process.send_signal(number)
            terminal.finish()

        text = terminal.text.partition("Traceback")[0]
        assert text.endswith("\n")
        # No mode was ever set: no cursor hidden, no other screen, no mouse.
        assert re.findall(r"\x1b[^\[]|\x1b\[[?>=]", terminal.text) == []

    def test_a_program_that_leaves_early_gets_its_streams_back(self) -> None:
        with batch("0.1", "job-1") as terminal:
            code = terminal.finish()

        assert code == 1
        assert terminal.text.rstrip().endswith("left early")
        assert "10 jobs done" in terminal.text

    def test_a_dumb_terminal_gets_lines(self) -> None:
        with batch("0.1", "", env=environment(TERM="dumb")) as terminal:
            terminal.finish()

        assert "\x1b" not in terminal.text
        assert "fargate-runner: 10 jobs done" in terminal.text

    @pytest.mark.parametrize(
        ("mode", "drawn", "told"), [("none", False, False), ("plain", False, True), ("live", True, True)]
    )
    def test_the_environment_chooses(self, mode: str, drawn: bool, told: bool) -> None:
        with batch("0.3", "", env=environment(FARGATE_RUNNER_PROGRESS=mode)) as terminal:
            terminal.finish()

        assert ("\x1b[" in terminal.text) is drawn
        assert ("10 jobs done" in terminal.text) is told

    def test_without_rich_it_tells_lines_and_what_to_install(self) -> None:
        with Terminal("0.1", "", program=[sys.executable, "-c", f"{WITHOUT_RICH}\n{BATCH}"]) as terminal:
            terminal.finish()

        assert terminal.text.count('pip install "fargate-runner[cli]"') == 1
        assert "fargate-runner: 10 jobs done" in terminal.text
        assert "\x1b" not in terminal.text


STUCK = """
import os, sys, anyio
from fargate_runner import Job, MemoryBackend, Runner
from fargate_runner.backends.memory import Script
from fargate_runner.progress import Progress

async def main():
    jobs = (Job(name=f"job-{n}", command=["x"]) for n in range(3000))
    backend = MemoryBackend(lambda job, identity: Script(exit_code=1, lines=("x" * 900,)))
    async with Progress(mode=sys.argv[1]) as progress, Runner(backend, observers=[progress]) as runner:
        async for result in runner.map(jobs, on_error="collect"):
            pass
        os.write(int(sys.argv[2]), b"%d done" % progress.standing.done)

anyio.run(main)
"""


@pytest.mark.parametrize("mode", ["live", "plain"])
def test_a_terminal_that_takes_nothing_holds_up_nobody(mode: str) -> None:
    """Nobody reads from the terminal: it is full after some kilobytes."""
    ours, theirs = os.openpty()
    told, tell = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", STUCK, mode, str(tell)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(),
        pass_fds=[tell],
        cwd=Path(__file__).parents[2],
    ) as process:
        os.close(tell)
        os.close(theirs)
        try:
            assert os.read(told, 100) == b"3000 done"
            assert process.wait(60) == 0
        finally:
            process.kill()
            os.close(ours)
            os.close(told)
