"""
The code blocks of the documentation, found and run.

Every fenced block names its language. What happens to it follows from the language and from comments that stand
directly above the fence, one to a line:

``python``
    is a script of its own: it runs in an empty directory and has to exit with 0.

    ``<!-- docs: continues -->``          runs after the Python block before it, in one script
    ``<!-- docs: prints -->``             what it prints is the ``text`` block that follows
    ``<!-- docs: needs docker -->``       runs where a Docker engine answers
    ``<!-- docs: skip because WHY -->``   does not run

``sh``, ``console``
    is not run, but its commands, scripts, sessions and options have to exist. A ``console`` block holds
    commands after ``$ `` and below each what it prints.

    ``<!-- docs: run -->``                runs from the root of the project and has to exit with 0; ``prints``
                                          and ``needs docker`` may stand beside it
    ``<!-- docs: skip because WHY -->``   is not even looked at

anything in ``QUIET``
    is shown only.

Whatever fits none of this is a `SnippetError`: a block must not fall silent because of a slip in a comment.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
QUIET = frozenset({"diff", "dockerfile", "html", "ini", "json", "markdown", "mermaid", "text", "toml", "yaml"})
_SKIPPED = "skip because …"
MARKERS = {
    "python": {"continues", "prints", "needs docker", _SKIPPED},
    "sh": {"run", "prints", "needs docker", _SKIPPED},
    "console": {"run", "needs docker", _SKIPPED},
}
# Commands that a reader has or installs; whether this machine has them says nothing about the page.
OUTSIDE = frozenset(
    {"apt-get", "aws", "cd", "docker", "export", "git", "pip", "podman", "sam", "source", "sudo", "terraform"}
)

_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<ticks>`{3,}|~{3,})[ \t]*(?P<info>[^`]*)$")
_COMMENT = re.compile(r"[ \t]*<!--\s*docs?\b(?P<rest>.*?)(?:-->\s*)?$", re.IGNORECASE)
_SKIP = re.compile(r"skip because (?P<why>\S.*)")
_MARK = "\N{RECORD SEPARATOR}"


class SnippetError(Exception):
    """A page breaks the rules above."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block. ``line`` is where its first line of code stands in the page."""

    page: str
    line: int
    language: str
    code: str
    marks: frozenset[str] = frozenset()
    skip: str | None = None
    before: Block | None = None  # what a continued block continues
    prints: str | None = None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def runs(self) -> bool:
        return self.skip is None and (self.language == "python" or "run" in self.marks)

    @property
    def needs_docker(self) -> bool:
        return "needs docker" in self.marks or (self.before is not None and self.before.needs_docker)


def blocks(text: str, page: str) -> list[Block]:
    """Every block of a page, in order, its marks understood."""
    found: list[Block] = []
    lines = text.splitlines()
    marks: dict[str, int] = {}
    waiting: Block | None = None  # a block marked `prints`, until the next block is seen
    at = 0
    while at < len(lines):
        line, at = lines[at], at + 1
        if comment := _COMMENT.match(line):
            marks[_marker(comment, line, f"{page}:{at}")] = at
            continue
        fence = _FENCE.match(line)
        if fence is None:
            _expect(not marks, f"{page}:{at}", "a docs comment stands directly above a fence")
            _expect(waiting is None or not line.strip(), f"{page}:{at}", "text stands between code and its output")
            continue
        start, at = at + 1, _end(lines, at, fence, page)
        code = "\n".join(_dedent(text, fence["indent"]) for text in lines[start - 1 : at - 1]) + "\n"
        language = fence["info"].split()[0] if fence["info"].strip() else ""
        if waiting is not None:
            _expect(language == "text", waiting.place, "`prints` wants a text block right after the code")
            found[-1] = replace(waiting, prints=code)
        block = _block(page, start, language, code, frozenset(marks), found)
        waiting = block if "prints" in block.marks else None
        marks = {}
        found.append(block)
    _expect(not marks, page, "a docs comment stands directly above a fence")
    _expect(waiting is None, page, "`prints` wants a text block right after the code")
    return found


def _marker(comment: re.Match[str], line: str, place: str) -> str:
    whole = re.fullmatch(r"\s*<!-- docs: (?P<word>.+?) -->\s*", line)
    _expect(whole is not None, place, f"cannot read {line.strip()!r}; write it like <!-- docs: continues -->")
    assert whole is not None
    return whole["word"]


def _block(page: str, line: int, language: str, code: str, words: frozenset[str], found: list[Block]) -> Block:
    place = f"{page}:{line}"
    known = QUIET | set(MARKERS)
    _expect(language in known, place, f"language {language!r}; write one of {', '.join(sorted(known))}")
    reasons = {word: match["why"] for word in words if (match := _SKIP.fullmatch(word))}
    marks = (words - set(reasons)) | ({_SKIPPED} if reasons else set())
    allowed = MARKERS.get(language, set())
    for mark in marks:
        _expect(mark in allowed, place, f"a {language} block knows no {mark!r}, only {sorted(allowed)}")
    shell = language in {"sh", "console"}
    _expect(_SKIPPED not in marks or len(marks) == 1, place, "a skipped block takes no other mark")
    _expect(not shell or not marks or bool(marks & {"run", _SKIPPED}), place, f"{sorted(marks)} wants `run` too")
    before = None
    if "continues" in marks:
        before = next((b for b in reversed(found) if b.language == "python"), None)
        _expect(before is not None and before.skip is None, place, "continues no Python block, or a skipped one")
    return Block(
        page=page, line=line, language=language, code=code, marks=frozenset(marks),
        skip=next(iter(reasons.values()), None), before=before,
    )  # fmt: skip


def _end(lines: list[str], at: int, fence: re.Match[str], page: str) -> int:
    """The number of the line that closes this fence."""
    ticks = fence["ticks"]
    for number in range(at, len(lines)):
        text = lines[number].strip()
        if len(text) >= len(ticks) and set(text) == {ticks[0]}:
            return number + 1
    raise SnippetError(f"{page}:{at}: this fence is never closed")


def _dedent(line: str, indent: str) -> str:
    return line.removeprefix(indent) if line.startswith(indent) else line.lstrip()


def _expect(holds: bool, place: str, rule: str) -> None:
    if not holds:
        raise SnippetError(f"{place}: {rule}")


def script(block: Block) -> str:
    """The block as a script, with what it continues; every line has the number that it has in the page."""
    parts = [block]
    while parts[0].before is not None:
        parts.insert(0, parts[0].before)
    lines: list[str] = []
    for part in parts:
        lines += [""] * (part.line - 1 - len(lines))
        if part is block and block.before is not None:
            lines[-1] = f"print({_MARK!r}, flush=True)"  # on the line of the fence: what came before is not ours
        lines += part.code.splitlines()
    return "\n".join(lines) + "\n"


def check(block: Block, directory: Path) -> None:
    """Run the block in *directory* and hold it to what its page says."""
    if block.language == "python":
        path = directory / f"{Path(block.page).stem}.py"
        path.write_text(script(block))
        said = _run([sys.executable, str(path)], directory, block)
        if block.prints is not None:
            _compare(block, said.rpartition(f"{_MARK}\n")[2], block.prints)
        return
    for command, expected in _steps(block):
        said = _run(["bash", "-euo", "pipefail", "-c", command], ROOT, block)
        if expected is not None:
            _compare(block, said, expected)


def _compare(block: Block, said: str, expected: str) -> None:
    assert said.splitlines() == expected.splitlines(), f"{block.place} prints something else than the page says"


def _run(command: list[str], directory: Path, block: Block) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    # A session of its own: whatever a block leaves running ends with it, also when the test runs out of time.
    child = subprocess.Popen(
        command,
        cwd=directory,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = child.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
    assert child.returncode == 0, f"{block.place} exits with {child.returncode}\n{out}{err}"
    return out


def _steps(block: Block) -> list[tuple[str, str | None]]:
    """The commands of a shell block, each with what the page says it prints, if it says so."""
    if block.language == "sh":
        return [(block.code, block.prints)]
    steps: list[tuple[str, str | None]] = []
    for line in block.code.splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], None))
        else:
            _expect(bool(steps), block.place, "a console block starts with a command after `$ `")
            command, expected = steps[-1]
            if command.endswith("\\"):
                steps[-1] = (f"{command}\n{line}", None)
            else:
                steps[-1] = (command, f"{expected or ''}{line}\n")
    return steps


def check_words(block: Block) -> None:
    """Every command of a shell block exists, with the script, session or options that it names."""
    for step, _ in _steps(block):
        words: list[str] = []
        for line in step.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            try:
                words += [*lexer, ";"]
            except ValueError as exc:  # a quoted text over several lines, a here-document
                raise SnippetError(f"{block.place}: cannot read {line!r} ({exc}); run it or skip it") from exc
        command: list[str] = []
        for word in words:
            if set(word) <= set("&|;()"):
                _check_command(command, block.place)
                command = []
            elif command or not re.match(r"\w+=", word):
                command.append(word)


def _check_command(command: list[str], place: str) -> None:
    match command:
        case []:
            return
        case [python, "-m", module, *_] if _is(python, "python3", "python"):
            exists = importlib.util.find_spec(module) is not None or (ROOT / module).is_dir()
            _expect(exists, place, f"there is no module {module!r}")
        case [python, first, *_] if _is(python, "python3", "python"):
            _expect(first.startswith("-") or (ROOT / first).is_file(), place, f"there is no file {first!r}")
        case [nox, *rest] if _is(nox, "nox"):
            unknown = _asked_sessions(rest) - _sessions()
            _expect(not unknown, place, f"noxfile.py has no session {', '.join(sorted(unknown))}")
        case [runner, *rest] if _is(runner, "fargate-runner"):
            _check_cli(rest, place)
        case _:
            name = command[0]
            known = name in OUTSIDE or _is(name, "pip") or ("/" in name and (ROOT / name).is_file())
            _expect(known, place, f"nobody here knows the command {name!r}")


def _is(word: str, *names: str) -> bool:
    return Path(word).name in names and (word in names or word.startswith(".venv/bin/"))


def _asked_sessions(words: list[str]) -> set[str]:
    asked: set[str] = set()
    taking = False
    for word in words:
        if word.startswith("-"):
            taking = word in {"-s", "--session", "--sessions"}
        elif taking:
            asked.add(word.partition("-")[0])  # tests-3.12 is the session tests
        if word == "--":
            break
    return asked


def _sessions() -> set[str]:
    tree = ast.parse((ROOT / "noxfile.py").read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {f.name for f in functions if any("nox.session" in ast.unparse(d) for d in f.decorator_list)}


def _check_cli(words: list[str], place: str) -> None:
    ours = words[: words.index("--")] if "--" in words else words
    subcommand = ours[:1] if ours and not ours[0].startswith("-") else []
    command = [str(Path(sys.executable).parent / "fargate-runner"), *subcommand, "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    _expect(told.returncode == 0, place, f"fargate-runner {' '.join(subcommand)} does not exist\n{told.stderr}")
    for option in (word.partition("=")[0] for word in ours if re.match(r"--?\w", word)):
        is_told = re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", told.stdout)
        _expect(is_told is not None, place, f"fargate-runner knows no {option}")
