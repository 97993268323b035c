"""A terminal in memory: as much of one as the live display needs, and an error for everything else."""

from __future__ import annotations

import re
from typing import Final

_STEP: Final = re.compile(
    r"(?P<sgr>\x1b\[[0-9;]*m)|\x1b\[(?P<up>[0-9]+)A|(?P<erase>\x1b\[J)|(?P<text>[^\x00-\x1f\x7f-\x9f]+)|(?P<control>[\r\n\t])"
)


class Screen:
    """Lines of text, the cursor, and a width at which lines break. Keeps what scrolled away."""

    def __init__(self, columns: int = 80) -> None:
        self.columns = columns
        self.rows = [""]
        self._broken = [False]
        """Whether a row goes on in the next."""
        self._row = 0
        self._column = 0

    def feed(self, text: str) -> None:
        """Show *text*, which a program has written; a terminal makes CR LF of its LF."""
        at = 0
        while at < len(text):
            step = _STEP.match(text, at)
            assert step is not None, f"a terminal would obey {text[at : at + 20]!r}"
            at = step.end()
            if step["up"]:
                self._row = max(0, self._row - int(step["up"]))
            elif step["erase"]:
                assert self._column == 0
                del self.rows[self._row :], self._broken[self._row :]
                self._grow()
            elif step["control"] == "\r":
                self._column = 0
            elif step["control"] == "\n":
                self._next(broken=False)
            elif step["text"]:
                for character in step["text"]:
                    self._put(character)

    def resize(self, columns: int) -> None:
        """Become narrower: lines break again. The cursor has to stand at the beginning of the last row."""
        assert (self._row, self._column) == (len(self.rows) - 1, 0)
        whole, rest = self.lines, ""
        self.__init__(columns)  # type: ignore[misc]
        self.feed("\n".join([*whole, rest]))

    @property
    def lines(self) -> list[str]:
        """The lines as they were before they were broken, without the empty one at the end."""
        lines, line = [], ""
        for row, broken in zip(self.rows, self._broken, strict=True):
            line += row
            if not broken:
                lines.append(line)
                line = ""
        return lines[:-1] if lines and not lines[-1] else lines

    def _put(self, character: str) -> None:
        if self._column == self.columns:
            self._next(broken=True)
        row = self.rows[self._row]
        self.rows[self._row] = row[: self._column].ljust(self._column) + character + row[self._column + 1 :]
        self._column += 1

    def _next(self, *, broken: bool) -> None:
        self._broken[self._row] = broken
        self._row += 1
        self._column = 0
        self._grow()

    def _grow(self) -> None:
        while len(self.rows) <= self._row:
            self.rows.append("")
            self._broken.append(False)
