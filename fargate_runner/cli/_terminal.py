"""
What may reach a terminal: pure functions on text.

The output of a job is somebody else's text. A terminal obeys what it is told in it: to clear the screen, to change its
title, to hide a line or to show another. `clean` lets through printable text, tabs, line ends and (on request) colours,
nothing else. A CI system obeys marked lines; `fence` breaks the mark.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["clean", "fence"]

_SHOWN: Final = "\N{REPLACEMENT CHARACTER}"
_RESET: Final = "\x1b[0m"
_RESETS: Final = ("\x1b[m", _RESET)

# Format characters that reorder, hide or break text: bidi controls, zero width, line separators, tags.
_UNSEEN: Final = (
    "\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f"
)
# Joiners make emoji and many scripts what they are, but between ASCII they only hide.
_JOINERS: Final = "\u200c\u200d"

_SUSPECT: Final = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_UNSEEN}{_JOINERS}]")

# One pass, so that what is taken out can never uncover another sequence: an ESC that begins no whole sequence is
# replaced itself. No alternative can run past another control character, which keeps it linear.
_TOKEN: Final = re.compile(
    # A colour or another rendition: ESC [ 1 ; 31 m.
    r"(?P<sgr>\x1b\[[0-9;:]{0,64}m)"
    # OSC, DCS, SOS, PM, APC with their text, up to BEL or ST: titles, links, clipboards, images.
    r"|(?P<gone>(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x00-\x1f\x7f-\x9f]*+(?:\x07|\x1b\\|\x9c)"
    # CSI: moving the cursor, clearing, modes.
    r"|(?:\x1b\[|\x9b)[\x30-\x3f]*+[\x20-\x2f]*+[\x40-\x7e]"
    # The other escapes: character sets, reset, keypad. Not the beginnings of those above.
    r"|\x1b[\x20-\x2f]*+(?![\[\]PX^_])[\x30-\x7e])"
    # Whatever is left, and the beginning of a sequence that never ends.
    r"|(?P<bad>\x1b[\[\]PX^_]"
    rf"|[\x00-\x08\x0b-\x1f\x7f-\x9f{_UNSEEN}]"
    rf"|(?<![^\x00-\x9f{_UNSEEN}])[{_JOINERS}]|[{_JOINERS}](?![^\x00-\x9f{_UNSEEN}]))"
)


def clean(text: str, *, colours: bool = False) -> str:
    r"""
    Return *text* as it may be shown on a terminal: printable characters, ``\t``, ``\n``, and colours if wanted.

    Whole control sequences are left out; stray control characters, bidi controls and invisible characters become
    U+FFFD. Of a line that was written over with ``\r``, the last version stays. Colours never outlast their line.
    ``clean(clean(text)) == clean(text)``; text without any of these is returned as it is.
    """
    if _SUSPECT.search(text) is None:
        return text
    return "\n".join(_clean_line(line, colours=colours) for line in text.split("\n"))


def _clean_line(line: str, *, colours: bool) -> str:
    if _SUSPECT.search(line) is None:
        return line
    # A progress bar: what a terminal would show in the end is the last version that shows anything.
    for version in reversed(line.split("\r")):
        if shown := _clean_version(version, colours=False):
            return _clean_version(version, colours=True) if colours else shown
    return ""


def _clean_version(text: str, *, colours: bool) -> str:
    last_colour = ""

    def replaced(match: re.Match[str]) -> str:
        nonlocal last_colour
        if match["bad"] is not None:
            return _SHOWN
        if match["sgr"] is not None and colours:
            last_colour = match["sgr"]
            return last_colour
        return ""

    shown = _TOKEN.sub(replaced, text)
    return shown + _RESET if last_colour and last_colour not in _RESETS else shown


# GitHub reads "::command …" at the beginning of a line (after white space) and "##[command]" anywhere; Azure Pipelines
# reads "##vso[…]" anywhere. Their line readers end a line at \r as well.
_COMMAND: Final = re.compile("(?P<begin>^|[\r\n])(?P<space>(?:(?![\r\n])[\\s\ufeff])*)::|##(?=[A-Za-z]*\\[)")


def fence(text: str) -> str:
    """Return *text* so that no line of it is a command to the CI system that reads it; the change can be seen."""
    return _COMMAND.sub(_fenced, text) if "::" in text or "##" in text else text


def _fenced(match: re.Match[str]) -> str:
    return "## " if match["begin"] is None else f"{match['begin']}{match['space']}| ::"
