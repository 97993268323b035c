"""Starts the real program, behind pipes or on a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

ROOT: Final = Path(__file__).parents[2]
PROGRAM: Final = [sys.executable, "-m", "fargate_runner.cli"]

# Makes the terminal on its stdin its controlling one, so that a ^C typed there becomes a signal; then becomes argv[2:].
# Signals are as a login shell has them, however the tests were started (nohup and "&" leave some ignored), but for
# those that argv[1] names.
_ON_TERMINAL: Final = """
import fcntl, os, signal, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM"):
    signal.signal(getattr(signal, name), signal.SIG_IGN if name in sys.argv[1].split() else signal.SIG_DFL)
os.execv(sys.argv[2], sys.argv[2:])
"""


def environment(**changes: str) -> dict[str, str]:
    """A plain environment: no CI, no wishes about colours."""
    unwanted = {"NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS", "TF_BUILD"}
    return {k: v for k, v in os.environ.items() if k not in unwanted} | {"TERM": "xterm-256color"} | changes


def run(*args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program with its output in pipes."""
    return subprocess.run(
        [*PROGRAM, *args], cwd=ROOT, env=env or environment(), capture_output=True, text=True, check=False, timeout=100
    )


class Terminal:
    """The program on a pseudo-terminal. Used with ``with``; *ignores* names the signals that it starts without."""

    def __init__(
        self,
        *args: str,
        env: Mapping[str, str] | None = None,
        program: Sequence[str] = PROGRAM,
        columns: int = 0,
        stdout: int | None = None,
        ignores: str = "",
    ) -> None:
        self._ours, theirs = pty.openpty()
        if columns:
            termios.tcsetwinsize(theirs, (24, columns))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ON_TERMINAL, ignores, *program, *args],
            cwd=ROOT,
            env=env or environment(),
            stdin=theirs,
            stdout=theirs if stdout is None else stdout,
            stderr=theirs,
        )
        os.close(theirs)
        self.text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)

    def read_until(self, pattern: str) -> re.Match[str]:
        """Read what is shown until *pattern* was."""
        while (found := re.search(pattern, self.text)) is None:
            if not self._read():
                raise AssertionError(f"{pattern!r} was never shown; it ended with:\n{self.text}")
        return found

    def type(self, keys: str) -> None:
        """Press *keys*."""
        os.write(self._ours, keys.encode())

    def finish(self) -> int:
        """Read the rest and return the exit code."""
        while self._read():
            pass
        return self.process.wait()

    def _read(self) -> bool:
        try:
            piece = os.read(self._ours, 65_536)
        except OSError:  # EIO: the last program has left the terminal
            return False
        self.text += piece.decode()
        return bool(piece)
