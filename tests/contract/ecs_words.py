"""What the commands of the contract's jobs mean to the fake AWS."""

from __future__ import annotations

import math
from datetime import timedelta

from fargate_runner import Job
from fargate_runner.testing.aws import ContainerRun, ContainerScript
from fargate_runner.testing.contract import Vocabulary

IMAGE = "registry.example/scripted:1"
READY = "ready"
_LONG = "long:"


class Words(Vocabulary):
    """The first word of a command says how it goes."""

    def exits(self, code: int = 0) -> Job:
        return self.says("exits", str(code))

    def prints(self, *lines: str, stderr: tuple[str, ...] = ()) -> Job:
        # A launch takes 8,192 characters of overrides: of a long line it is told how it goes.
        words = [f"{_LONG}{len(line)}:{line[0]}" if len(line) > 1000 else line for line in (*lines, *stderr)]
        return self.says("prints", *words)

    def waits(self) -> Job:
        return self.says("waits")

    def ignores_sigterm(self) -> Job:
        return self.says("ignores_sigterm").with_(stop_timeout=timedelta(seconds=2))

    def prints_variable(self, name: str) -> Job:
        return self.says("prints_variable", name)

    def unstartable(self) -> Job:
        return self.says("unstartable")

    def counts(self, lines: int) -> Job:
        return self.says("counts", str(lines))

    def says(self, *words: str) -> Job:
        return Job(image=IMAGE, command=words)


def script(container: ContainerRun, *, run_for: float = 60.0) -> ContainerScript:
    verb, *words = container.command
    match verb:
        case "exits":
            return ContainerScript(run_for=run_for, exit_code=int(words[0]))
        case "prints":
            return ContainerScript(run_for=run_for, lines=tuple(map(_whole, words)))
        case "waits":
            return ContainerScript(run_for=math.inf, lines=(READY,))
        case "ignores_sigterm":
            return ContainerScript(run_for=math.inf, lines=(READY,), ignores_sigterm=True)
        case "prints_variable":
            return ContainerScript(run_for=run_for, lines=(container.environment[words[0]],))
        case "unstartable":
            said = "CannotStartContainerError: exec: “/no/such/program”: executable file not found in $PATH"
            return ContainerScript(could_not_start=said)
        case "counts":
            return ContainerScript(run_for=run_for, lines=tuple(str(n) for n in range(1, int(words[0]) + 1)))
        case _:
            raise ValueError(verb)


def _whole(word: str) -> str:
    """Return a line in its whole length."""
    if not word.startswith(_LONG):
        return word
    length, _, character = word.removeprefix(_LONG).partition(":")
    return character * int(length)
