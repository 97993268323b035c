"""Every code block of the README, of CONTRIBUTING and of docs/ does what its page says; `snippets` tells the rules."""

from __future__ import annotations

import fcntl
import functools
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from tests.docs.snippets import ROOT, Block, SnippetError, blocks, check, check_words, script

pytestmark = pytest.mark.sweep

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]


def _blocks_of(page: str) -> list[Block]:
    return blocks((ROOT / page).read_text(), page)


def _cases() -> list[object]:
    cases = []
    for page in NAMES:
        try:
            found = _blocks_of(page)
        except (SnippetError, FileNotFoundError):
            continue  # test_every_block_follows_the_rules says so, for this very page
        for block in found:
            marks = [pytest.mark.docker] if block.needs_docker else []
            if block.runs:
                cases.append(pytest.param(block, id=block.place, marks=marks))
    return cases


@functools.cache
def _engine_is_ready() -> bool:
    checked = subprocess.run(
        [sys.executable, "scripts/docker_ready.py", "--check"], cwd=ROOT, capture_output=True, check=False
    )
    return checked.returncode == 0


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> None:
    """Let a block that needs Docker through only where an engine answers; CI insists on one."""
    if request.node.get_closest_marker("docker") is None or _engine_is_ready():
        return
    if os.environ.get("FARGATE_RUNNER_DOCKER") == "required":
        pytest.fail("FARGATE_RUNNER_DOCKER=required, but no engine is ready; see scripts/docker_ready.py")
    pytest.skip("no Docker engine is ready; python3 scripts/docker_ready.py makes one so")


@pytest.mark.parametrize("page", NAMES)
def test_every_block_follows_the_rules(page: str) -> None:
    for block in _blocks_of(page):
        if block.language in {"sh", "console"} and block.skip is None:
            check_words(block)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("block", _cases())
def test_the_block_does_what_the_page_says(block: Block, tmp_path: Path) -> None:
    check(block, tmp_path)


def test_the_readme_shows_python_that_runs() -> None:
    shown = [block for block in _blocks_of("README.md") if block.language == "python"]

    assert any(block.runs and not block.needs_docker for block in shown)


# The rules themselves, on small pages.


def only(*lines: str) -> Block:
    (block,) = blocks("\n".join(lines), "page.md")
    return block


def last(*lines: str) -> Block:
    return blocks("\n".join(lines), "page.md")[-1]


class TestReadingAPage:
    def test_a_block_knows_its_code_and_its_line(self) -> None:
        block = only("# Title", "", "```python", "x = 1", "", "y = 2", "```", "after")

        assert (block.language, block.code, block.place) == ("python", "x = 1\n\ny = 2\n", "page.md:4")
        assert block.runs

    def test_a_block_in_a_list_loses_the_indentation_of_its_fence(self) -> None:
        block = only("1. do", "", "   ```python", "   if 1:", "       x = 1", "   ```")

        assert block.code == "if 1:\n    x = 1\n"

    def test_a_longer_fence_shows_a_shorter_one(self) -> None:
        block = only("````markdown", "<!-- docs: nonsense -->", "```python", "1/0", "```", "````")

        assert (block.language, block.runs) == ("markdown", False)

    def test_tildes_make_a_fence_too(self) -> None:
        assert only("~~~python", "pass", "```", "~~~").code == "pass\n```\n"

    def test_words_after_the_language_do_not_matter(self) -> None:
        assert only('```python title="app.py"', "pass", "```").runs

    @pytest.mark.parametrize("language", ["text", "toml", "json"])
    def test_a_quiet_language_is_shown_only(self, language: str) -> None:
        assert not only(f"```{language}", "x", "```").runs

    @pytest.mark.parametrize("language", ["", "py", "Python", "python3", "pycon", "bash", "shell"])
    def test_a_language_that_nobody_knows_is_refused(self, language: str) -> None:
        with pytest.raises(SnippetError, match=r"page\.md:2: language"):
            only(f"```{language}", "1/0", "```")

    def test_a_fence_that_never_closes_is_refused(self) -> None:
        with pytest.raises(SnippetError, match=r"page\.md:2: this fence is never closed"):
            blocks("\n```python\n1/0\n", "page.md")


class TestReadingTheMarks:
    def test_a_skipped_block_keeps_its_reason(self) -> None:
        block = only("<!-- docs: skip because it needs an AWS account -->", "```python", "1/0", "```")

        assert (block.runs, block.skip) == (False, "it needs an AWS account")

    def test_a_block_that_needs_docker_says_so(self) -> None:
        assert only("<!-- docs: needs docker -->", "```python", "pass", "```").needs_docker

    def test_what_continues_a_block_that_needs_docker_needs_it_too(self) -> None:
        first = ("<!-- docs: needs docker -->", "```python", "pass", "```")

        assert last(*first, "<!-- docs: continues -->", "```python", "pass", "```").needs_docker

    def test_marks_stand_one_above_the_other(self) -> None:
        marks = ("<!-- docs: continues -->", "<!-- docs: prints -->")

        found = blocks(
            "\n".join(["```python", "a = 1", "```", *marks, "```python", "```", "", "```text", "2", "```"]), "page.md"
        )

        assert (found[1].before, found[1].prints) == (found[0], "2\n")

    @pytest.mark.parametrize(
        "comment",
        [
            "<!-- docs: skpi because of a slip -->",
            "<!-- docs: skip -->",
            "<!-- docs: skip because -->",
            "<!-- docs: skip because  -->",
            "<!-- docs: -->",
            "<!-- docs skip because the colon is missing -->",
            "<!-- doc: skip because the letter is missing -->",
            "<!-- DOCS: skip because it shouts -->",
            "<!-- docs: skip because it is not closed",
            "<!-- docs: run -->",
            "<!-- docs: needs podman -->",
        ],
    )
    def test_a_slip_in_a_mark_is_refused(self, comment: str) -> None:
        with pytest.raises(SnippetError):
            only(comment, "```python", "pass", "```")

    @pytest.mark.parametrize("between", ["", "some words"])
    def test_a_mark_that_is_not_directly_above_a_fence_is_refused(self, between: str) -> None:
        with pytest.raises(SnippetError, match="directly above a fence"):
            only("<!-- docs: needs docker -->", between, "```python", "pass", "```")

    def test_a_mark_at_the_end_of_a_page_is_refused(self) -> None:
        with pytest.raises(SnippetError, match="directly above a fence"):
            blocks("<!-- docs: continues -->", "page.md")

    @pytest.mark.parametrize(
        "before",
        [
            [],
            ["```text", "no Python", "```"],
            ["<!-- docs: skip because it is broken -->", "```python", "1/0", "```"],
        ],
    )
    def test_continuing_nothing_that_runs_is_refused(self, before: list[str]) -> None:
        with pytest.raises(SnippetError, match="continues no Python block"):
            last(*before, "<!-- docs: continues -->", "```python", "pass", "```")

    @pytest.mark.parametrize(
        "after",
        [[], ["", "```toml", "x = 1", "```"], ["It prints:", "```text", "1", "```"], ["```python", "pass", "```"]],
    )
    def test_prints_without_its_text_block_is_refused(self, after: list[str]) -> None:
        with pytest.raises(SnippetError):
            blocks("\n".join(["<!-- docs: prints -->", "```python", "pass", "```", *after]), "page.md")

    @pytest.mark.parametrize("mark", ["needs docker", "prints", "continues"])
    def test_a_shell_block_takes_no_mark_that_has_no_effect(self, mark: str) -> None:
        with pytest.raises(SnippetError):
            blocks(f"<!-- docs: {mark} -->\n```sh\ngit status\n```\n```text\nx\n```", "page.md")

    @pytest.mark.parametrize("mark", ["run", "skip because it is data"])
    def test_a_quiet_block_takes_no_mark(self, mark: str) -> None:
        with pytest.raises(SnippetError, match="a text block knows no"):
            only(f"<!-- docs: {mark} -->", "```text", "x", "```")

    def test_a_skipped_block_takes_no_other_mark(self) -> None:
        with pytest.raises(SnippetError, match="no other mark"):
            only("<!-- docs: needs docker -->", "<!-- docs: skip because of X -->", "```python", "pass", "```")


class TestRunningABlock:
    def test_a_block_that_exits_with_0_passes(self, tmp_path: Path) -> None:
        check(only("```python", "open('here', 'w').close()", "```"), tmp_path)

        assert (tmp_path / "here").exists()

    @pytest.mark.parametrize("code", ["1/0", "raise SystemExit(3)", "x ="])
    def test_a_block_that_fails_fails_the_test(self, code: str, tmp_path: Path) -> None:
        with pytest.raises(AssertionError, match=r"page\.md:2 exits with [13]"):
            check(only("```python", code, "```"), tmp_path)

    def test_the_package_can_be_imported(self, tmp_path: Path) -> None:
        check(only("```python", "import fargate_runner", "```"), tmp_path)

    def test_a_block_does_not_see_the_one_before_it(self, tmp_path: Path) -> None:
        block = last("```python", "x = 1", "```", "```python", "print(x)", "```")

        with pytest.raises(AssertionError, match="NameError"):
            check(block, tmp_path)

    def test_a_block_that_continues_sees_all_that_it_continues(self, tmp_path: Path) -> None:
        mark = "<!-- docs: continues -->"
        code = ["```python", "x = 1", "```", mark, "```python", "y = 2", "```", mark, "```python", "assert x + y == 3"]

        check(last(*code, "```"), tmp_path)

    def test_an_error_names_the_line_of_the_page(self, tmp_path: Path) -> None:
        block = last("```python", "x = 0", "```", "words", "<!-- docs: continues -->", "```python", "x", "1/x", "```")

        with pytest.raises(AssertionError, match="line 8, in <module>"):
            check(block, tmp_path)

    @pytest.mark.parametrize(("shown", "agrees"), [("2\n3", True), ("2\n4", False), ("2", False), ("2\n3\n3", False)])
    def test_what_is_printed_is_what_the_page_shows(self, shown: str, agrees: bool, tmp_path: Path) -> None:
        first = ("```python", "print('not this')", "```")
        marks = ("<!-- docs: continues -->", "<!-- docs: prints -->")
        code = ("```python", "print(2)", "print(3)", "```", "```text", shown, "```")
        block = blocks("\n".join([*first, *marks, *code]), "page.md")[1]

        assert _passes(block, tmp_path) is agrees

    @pytest.mark.timeout(30)
    def test_what_a_block_leaves_running_ends_with_it(self, tmp_path: Path) -> None:
        hold = "import fcntl, subprocess as s; f = open('held', 'w'); fcntl.flock(f, fcntl.LOCK_EX)"
        leave = "s.Popen(['sleep', '999'], pass_fds=[f.fileno()], stdout=s.DEVNULL, stderr=s.DEVNULL)"

        check(only("```python", hold, leave, "```"), tmp_path)

        with (tmp_path / "held").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # comes back once nobody holds the lock any more
            assert not file.read()

    def test_the_script_has_the_lines_of_the_page(self) -> None:
        block = last("one", "```python", "a", "```", "<!-- docs: continues -->", "```python", "b", "```")

        lines = script(block).splitlines()

        assert (lines[2], lines[6], len(lines)) == ("a", "b", 7)


class TestShellBlocks:
    def test_a_block_is_not_run_unless_it_says_so(self) -> None:
        assert not only("```sh", "git status", "```").runs
        assert only("<!-- docs: run -->", "```sh", "git status", "```").runs

    @pytest.mark.parametrize("code", ["exit 3", "false\ntrue", "false | true", "echo $not_set"])
    def test_a_command_that_fails_fails_the_test(self, code: str, tmp_path: Path) -> None:
        with pytest.raises(AssertionError, match="exits with"):
            check(only("<!-- docs: run -->", "```sh", code, "```"), tmp_path)

    @pytest.mark.parametrize(("shown", "agrees"), [("1", True), ("2", False)])
    def test_a_console_block_shows_what_its_commands_print(self, shown: str, agrees: bool, tmp_path: Path) -> None:
        code = ("```console", "$ echo 0", "$ echo \\", "1", shown, "```")

        assert _passes(only("<!-- docs: run -->", *code), tmp_path) is agrees

    @pytest.mark.parametrize(("shown", "agrees"), [("1", True), ("2", False)])
    def test_a_shell_block_prints_the_text_below_it(self, shown: str, agrees: bool, tmp_path: Path) -> None:
        marks = ("<!-- docs: run -->", "<!-- docs: prints -->")
        page = "\n".join([*marks, "```sh", "echo 1", "```", "```text", shown, "```"])

        assert _passes(blocks(page, "page.md")[0], tmp_path) is agrees

    @pytest.mark.parametrize(
        "command",
        [
            "git clone https://example.org/x && cd x",
            "python3 -m venv .venv && .venv/bin/pip install -q nox && .venv/bin/nox -s tests",
            "nox -s lint tests-3.12 -- tests/none -k x",
            "nox -s tests -- -s tests/none",
            "FARGATE_RUNNER_DOCKER=required .ci/run",
            "python3 scripts/docker_ready.py # makes an engine ready",
            "python3 -c 'print(1)' | python3 -m json.tool",
            "pip install \\\n  'fargate-runner[docker]'",
        ],
    )
    def test_commands_that_exist_are_let_through(self, command: str) -> None:
        check_words(only("```sh", command, "```"))

    @pytest.mark.parametrize(
        "command",
        [
            "frobnicate",
            "git status && frobnicate",
            "X=1 frobnicate",
            "nox -s no_such_session",
            "nox -s lint no_such_session",
            ".venv/bin/nox -s no_such_session",
            "python3 examples/no_such_file.py",
            "python3 -m no_such_module",
            "./no_such_script",
            "git status\nfrobnicate",
        ],
    )
    @pytest.mark.parametrize("language", ["sh", "console"])
    def test_a_command_that_does_not_exist_is_refused(self, command: str, language: str) -> None:
        lines = command.splitlines()
        prompt = "$ " if language == "console" else ""

        with pytest.raises(SnippetError, match=r"page\.md:2: "):
            check_words(only(f"```{language}", *(prompt + line for line in lines), "```"))

    def test_quotes_over_several_lines_are_refused(self) -> None:
        with pytest.raises(SnippetError, match="cannot read"):
            check_words(only("```sh", "python3 -c 'pass", "pass'", "```"))

    def test_a_console_block_starts_with_a_command(self) -> None:
        with pytest.raises(SnippetError, match="starts with a command"):
            check_words(only("```console", "git status", "```"))

    def test_options_of_our_own_command_exist(self) -> None:
        check_words(only("```sh", "fargate-runner run --backend process - -- true --no-such-option", "```"))

    @pytest.mark.parametrize("words", ["frobnicate", "run --no-such-option x", "run --back process x", "--no-such"])
    def test_options_that_our_own_command_does_not_have_are_refused(self, words: str) -> None:
        with pytest.raises(SnippetError):
            check_words(only("```sh", f"fargate-runner {words}", "```"))


def _passes(block: Block, directory: Path) -> bool:
    try:
        check(block, directory)
    except AssertionError:
        traceback.print_exc()
        return False
    return True
