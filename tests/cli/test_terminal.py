"""What may reach a terminal, and what a CI system must not read as a command."""

from __future__ import annotations

import itertools
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fargate_runner.cli._terminal import clean, fence

pytestmark = pytest.mark.sweep

SGR = re.compile(r"\x1b\[[0-9;:]*m")
UNSAFE_FORMATS = {
    chr(c)
    for c in (
        *(0x61C, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF),
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
        *range(0xE0000, 0xE0080),
    )
}

BODIES = [
    "0;title", "2;title", "8;;file:///etc/passwd", "8;id=1;https://example.org", "52;c;cm0gLXJmIC8=",
    "4;1;rgb:ff/00/00", "10;?", "1337;File=inline=1:AAAA", "777;notify;a;b", "9;4;1;50", "$q q", "+q544e",
    "q#0;2;0;0;0#0~~", "Gf=100;AAAA", "",
]  # fmt: skip
STARTS = ["\x1b]", "\x1bP", "\x1bX", "\x1b^", "\x1b_", "\x9d", "\x90", "\x98", "\x9e", "\x9f"]
ENDS = ["\x07", "\x1b\\", "\x9c", "", "\x1b", "\x18"]
STRINGS = [start + body + end for start, body, end in itertools.product(STARTS, BODIES, ENDS)]
CSI = [
    "2J", "3J", "H", "1;1H", "K", "2K", "A", "999B", "C", "D", "s", "u", "?25l", "?1049h", "?2004h", "?1000h",
    "6n", "c", ">c", "=c", "5n", "0q", " q", "!p", "1;2r", "20h", "8;50;50t", "21t", "22;0t", "?5h", "1$}",
    ">4;2m", "?4m", "<u", "31", "31;", "", "1;1\x08H", "31 m", ";;;;", "38;2;1;2",
]  # fmt: skip
OTHER = [
    "\x1bc", "\x1b7", "\x1b8", "\x1bM", "\x1bD", "\x1bE", "\x1b(0", "\x1b)B", "\x1b%G", "\x1b#8", "\x1b=",
    "\x1b>", "\x1b", "\x1b\x1b", "\x1b\x1b[31m[2J", "\x1b\x1b]0;x\x07]0;y\x07", "\x1b[\x1b[2J2J",
    "\x1b[3\x1b[2J1m", "\x1b(P", "\x1b\\", "\x84", "\x85", "\x8d", "\x9b", "\x9b2J", "\x9b31m", "\x9c", "\x0e",
    "\x0f", "\x05", "\x08\x08\x08", "\x7f", "\x00", "\x07", "\x0b", "\x0c", "\x1a", "\x1c", "a\r\x1b[2J",
    "\r\r\r", "\ud800", "\udc9b2J", "\u202epwn", "\u2066x\u2069", "\u200bx", "a\u200db", "\u2028x", "\u2029",
    "\ufeffx", "\u061cx", "\U000e0041x", "\ufff9a\ufffab\ufffb",
]  # fmt: skip
PAYLOADS = sorted({*STRINGS, *("\x1b[" + tail for tail in CSI), *("\x9b" + tail for tail in CSI), *OTHER})


def unsafe(shown: str) -> str:
    """What is left in *shown* that a terminal might obey."""
    rest = SGR.sub("", shown)
    return "".join(
        c for c in rest if c not in "\t\n" and (unicodedata.category(c) in {"Cc", "Cs"} or c in UNSAFE_FORMATS)
    )


class TestPayloads:
    """In a loop, because there are a thousand of them."""

    def test_there_are_enough_of_them(self) -> None:
        assert len(PAYLOADS) >= 200

    @pytest.mark.parametrize("colours", [True, False])
    def test_none_reaches_the_terminal(self, colours: bool) -> None:
        shown = {payload: clean(f"before {payload}é after", colours=colours) for payload in PAYLOADS}

        assert not {payload: unsafe(text) for payload, text in shown.items() if unsafe(text)}

    @pytest.mark.parametrize("colours", [True, False])
    def test_none_hides_the_text_behind_it(self, colours: bool) -> None:
        shown = {payload: clean(f"before {payload}é after", colours=colours) for payload in PAYLOADS}

        assert not {p: text for p, text in shown.items() if not text.removesuffix("\x1b[0m").endswith("é after")}

    def test_no_escape_is_left_where_colours_are_off(self) -> None:
        assert not [payload for payload in PAYLOADS if "\x1b" in clean(f"\x1b[31m{payload}\x1b[1m")]

    @pytest.mark.parametrize("colours", [True, False])
    def test_each_is_the_same_when_cleaned_twice(self, colours: bool) -> None:
        shown = [clean(f"x{payload}x", colours=colours) for payload in PAYLOADS]

        assert [clean(text, colours=colours) for text in shown] == shown


# Pieces of sequences, so that random text hits the grammar.
HOSTILE = st.lists(
    st.one_of(
        st.sampled_from(PAYLOADS),
        st.sampled_from(["\x1b", "[", "]", "31", ";", "m", "\x07", "\\", "\r", "\n", "\u200d", "é", "👩", "\x9b", "P"]),
        st.text(alphabet=st.characters(exclude_categories=())),
    )
).map("".join)


class TestAnything:
    @given(HOSTILE)
    def test_no_control_byte_but_tab_and_line_end_comes_out(self, text: str) -> None:
        shown = clean(text)

        assert not unsafe(shown)
        assert "\x1b" not in shown

    @given(HOSTILE)
    def test_with_colours_only_colours_come_out(self, text: str) -> None:
        assert not unsafe(clean(text, colours=True))

    @given(HOSTILE, st.booleans())
    def test_twice_is_once(self, text: str, colours: bool) -> None:
        shown = clean(text, colours=colours)

        assert clean(shown, colours=colours) == shown

    @given(HOSTILE)
    def test_the_number_of_lines_stays(self, text: str) -> None:
        assert clean(text, colours=True).count("\n") == text.count("\n")

    @given(st.text(alphabet=st.characters(categories=("L", "M", "N", "P", "S", "Zs"))))
    def test_plain_text_is_unchanged(self, text: str) -> None:
        assert clean(text) == text

    @given(HOSTILE)
    def test_no_colour_outlasts_its_line(self, text: str) -> None:
        lines = clean(text, colours=True).split("\n")

        ends = [SGR.findall(line)[-1] for line in lines if SGR.search(line)]

        assert set(ends) <= {"\x1b[0m", "\x1b[m"}


class TestShowing:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("plain\ttext", "plain\ttext"),
            ("a\x1b[31mred\x1b[0m b", "a\x1b[31mred\x1b[0m b"),
            ("\x1b[1;38:2::1:2:3mbold", "\x1b[1;38:2::1:2:3mbold\x1b[0m"),
            ("\x1b[31ma\nb", "\x1b[31ma\x1b[0m\nb"),
            ("\x1b]8;;https://example.org\x07link\x1b]8;;\x07", "link"),
            ("\x1b]0;never ends", "\ufffd0;never ends"),
            ("bell\x07", "bell\ufffd"),
            ("10%\r50%\r100%", "100%"),
            ("100%\r", "100%"),
            ("100%\r\x1b[K", "100%"),
            ("100%\r\x1b[0m", "100%"),
            ("👩\u200d💻 न\u200dम", "👩\u200d💻 न\u200dम"),
            ("pass\u200dword", "pass\ufffdword"),
            ("user\u202enimda", "user\ufffdnimda"),
        ],
    )
    def test_a_line_looks_as_its_author_meant(self, text: str, shown: str) -> None:
        assert clean(text, colours=True) == shown

    def test_colours_go_where_they_are_not_wanted(self) -> None:
        assert clean("\x1b[31mred\x1b[0m") == "red"

    @pytest.mark.parametrize(
        "piece", ["\x1b]", "\x9d", "\x1b[", "\x1b[1;", "\x1b", "\r", "\x1bP\x1b", "\x9b ", "\u200d", "\n"]
    )
    def test_a_megabyte_of_one_piece_takes_linear_time(self, piece: str) -> None:
        assert not unsafe(clean(piece * (1_000_000 // len(piece)), colours=True))


class TestFence:
    @pytest.mark.parametrize(
        ("text", "fenced"),
        [
            ("::set-output name=a::b", "| ::set-output name=a::b"),
            ("  ::error::x", "  | ::error::x"),
            ("\ufeff::error::x", "\ufeff| ::error::x"),
            ("ok\n::add-mask::x\nok", "ok\n| ::add-mask::x\nok"),
            ("ok\r::add-mask::x", "ok\r| ::add-mask::x"),
            ("##[group]x", "## [group]x"),
            ("text ##[error]x", "text ## [error]x"),
            ("##vso[task.setvariable]x", "## vso[task.setvariable]x"),
            ("std::vector", "std::vector"),
            ("## heading", "## heading"),
        ],
    )
    def test_a_command_loses_its_mark_and_nothing_else_changes(self, text: str, fenced: str) -> None:
        assert fence(text) == fenced

    @given(st.text(alphabet=": #[v\n\rx\ufeff\u2028"))
    def test_twice_is_once_and_no_command_is_left(self, text: str) -> None:
        fenced = fence(text)

        assert fence(fenced) == fenced
        assert not any(line.strip().strip("\ufeff").strip().startswith("::") for line in re.split("[\r\n]", fenced))
        assert not re.search(r"##[a-z]*\[", fenced)

    @pytest.mark.parametrize("piece", ["\n", " ", "#", "\n ", "::", "##a"])
    def test_a_megabyte_of_one_piece_takes_linear_time(self, piece: str) -> None:
        assert len(fence(piece * (1_000_000 // len(piece)) + "::##")) >= 1_000_000
