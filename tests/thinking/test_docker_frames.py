"""What the Docker log reader decides without waiting for anything: bytes to frames, frames to lines, each once."""

from __future__ import annotations

import itertools
import math
import pickle
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fargate_runner._lifecycle import LogLine
from fargate_runner.backends.docker._logs import Frames, Lines, Uncovered

Kind = Literal["since", "tail", "whole"]
Frame = tuple[int, bytes]
OUT, ERR, ENGINE = 1, 2, 3


def stamp(nanoseconds: int) -> bytes:
    seconds, rest = divmod(nanoseconds, 10**9)
    return b"2026-11-22T21:%02d:%02d.%09dZ" % (*divmod(seconds, 60), rest)


def frame(nanoseconds: int, text: bytes, stream: int = OUT) -> Frame:
    return stream, stamp(nanoseconds) + b" " + text


def packed(*frames: Frame) -> bytes:
    return b"".join(struct.pack(">B3xI", stream, len(payload)) + payload for stream, payload in frames)


def texts(lines: Sequence[LogLine]) -> list[str]:
    return [line.text for line in lines]


def through(lines: Lines, frames: Sequence[Frame], kind: Kind = "since") -> list[str]:
    """The texts that one whole pass adds."""
    lines.begin(kind)
    taken = lines.take(frames)
    if lines.trouble:
        raise lines.trouble
    lines.end()
    return texts(taken)


# Frames.

SOME_FRAMES = st.lists(st.tuples(st.sampled_from([OUT, ERR, ENGINE]), st.binary(max_size=300)), max_size=30)


@given(SOME_FRAMES, st.lists(st.integers(min_value=0), max_size=40))
def test_frames_do_not_depend_on_where_the_stream_is_split(frames: list[Frame], places: list[int]) -> None:
    whole = packed(*frames)
    cuts = [0, *sorted(place % (len(whole) + 1) for place in places), len(whole)]
    parser = Frames()

    got = [found for begin, end in itertools.pairwise(cuts) for found in parser.feed(whole[begin:end])]

    assert got == frames
    assert parser.pending == 0


def test_frames_come_byte_by_byte() -> None:
    frames = [frame(1, b"one\n"), frame(2, b"\n", ERR), frame(3, b"x" * 70_000)]
    parser = Frames()

    got = [found for byte in packed(*frames) for found in parser.feed(bytes([byte]))]

    assert got == frames


@pytest.mark.parametrize("missing", [1, 5, 36, 40, 43])
def test_an_unfinished_frame_stays_pending(missing: int) -> None:
    whole = packed(frame(1, b"kept\n"), frame(2, b"cut!\n"))
    parser = Frames()

    got = parser.feed(whole[:-missing])

    assert got == [frame(1, b"kept\n")]
    assert parser.pending == len(whole) // 2 - missing


@pytest.mark.parametrize("received", [b"plain text of a terminal\n", b"\x04\0\0\0\0\0\0\1a", b"\x01\0\0\1\0\0\0\1a"])
def test_bytes_that_are_no_frames_are_refused(received: bytes) -> None:
    with pytest.raises(ValueError, match="not the header of a frame"):
        Frames().feed(received)


# Lines.


def test_a_line_says_what_wrote_it_and_when() -> None:
    lines = Lines(container="sidecar", attempt=3)

    (line,) = lines.take([frame(1_511_392_666, b"hello\n", ERR)])

    at = datetime(2026, 11, 22, 21, 0, 1, 511392, tzinfo=UTC)
    assert line == LogLine(text="hello", stream="stderr", container="sidecar", at=at, attempt=3)


def test_a_line_is_the_value_that_its_constructor_makes() -> None:
    (line,) = Lines().take([frame(1_000, b"hello\n")])

    made = LogLine(text="hello", at=datetime(2026, 11, 22, 21, 0, 0, 1, tzinfo=UTC))
    assert line == made
    assert hash(line) == hash(made)
    assert attrs.asdict(line) == attrs.asdict(made)
    assert pickle.loads(pickle.dumps(line)) == made


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (b"\n", ""),
        (b"\r\n", ""),
        (b" \n", " "),
        (b"windows\r\n", "windows"),
        (b"50%\r100%\n", "50%\r100%"),
        (b"two spaces  \n", "two spaces  "),
        ("naïve ☃\n".encode(), "naïve ☃"),
        (b"\xff\xfe bad\n", "\ufffd\ufffd bad"),
    ],
)
def test_a_line_is_what_was_written_without_its_end(written: bytes, text: str) -> None:
    assert texts(Lines().take([frame(1, written)])) == [text]


def test_parts_of_a_long_line_are_joined_and_keep_the_first_stamp() -> None:
    parts = [frame(7_000, b"a" * 16_384), frame(7_000, b"b" * 16_384), frame(8_000, b"c\n")]

    (line,) = Lines().take([*parts])

    assert line.text == "a" * 16_384 + "b" * 16_384 + "c"
    assert line.at == datetime(2026, 11, 22, 21, 0, 0, 7, tzinfo=UTC)


def test_a_character_cut_between_two_parts_is_whole_again() -> None:
    snowman = "☃".encode()

    assert texts(Lines().take([frame(1, b"a" + snowman[:1]), frame(1, snowman[1:] + b"\n")])) == ["a☃"]


def test_long_lines_of_both_streams_do_not_mix() -> None:
    lines = Lines()

    got = lines.take(
        [
            frame(1, b"out-1 "),
            frame(2, b"err-1 ", ERR),
            frame(1, b"out-2 "),
            frame(2, b"err-2\n", ERR),
            frame(3, b"short\n", ERR),
            frame(1, b"out-3\n"),
        ]
    )

    assert [(line.stream, line.text) for line in got] == [
        ("stderr", "err-1 err-2"),
        ("stderr", "short"),
        ("stdout", "out-1 out-2 out-3"),
    ]


def test_the_last_line_needs_no_line_end() -> None:
    lines = Lines()

    assert lines.take([frame(1, b"whole\n"), frame(2, b"last"), frame(3, b"words", ERR)])[1:] == []
    assert lines.unfinished
    assert texts(lines.finish()) == ["last", "words"]
    assert lines.finish() == []


def test_the_last_part_of_a_line_is_known_without_a_line_end_where_the_driver_leaves_it_out() -> None:
    part = b"x" * 16_384
    lines = Lines(unmarked=True)

    got = lines.take(
        [
            *[frame(1, part), frame(2, part, ERR), frame(1, b"end"), frame(3, b"short\n")],
            *[frame(4, part), frame(5, part), frame(5, part), frame(6, b"\n"), frame(7, part)],
        ]
    )

    assert [len(line.text) for line in got] == [16_387, 5, 16_384, 2 * 16_384, 0]
    assert [(line.stream, len(line.text)) for line in lines.finish()] == [("stdout", 16_384), ("stderr", 16_384)]


def test_a_short_part_is_the_last_and_does_not_wait_for_the_next_line() -> None:
    assert texts(Lines(unmarked=True).take([frame(1, b"x" * 16_384), frame(1, b"end")])) == ["x" * 16_384 + "end"]


def test_an_error_of_the_engine_is_no_line_and_loses_none() -> None:
    lines = Lines()

    got = lines.take([frame(1, b"before\n"), (ENGINE, b"Error grabbing logs: unexpected EOF\n"), frame(2, b"after\n")])

    assert texts(got) == ["before"]
    assert str(lines.trouble) == "Error grabbing logs: unexpected EOF"


def test_stamps_of_any_zone_are_understood() -> None:
    lines = Lines()

    (line,) = lines.take([(OUT, b"2026-11-22T22:00:01+01:00 hello\n")])

    assert line.at == datetime(2026, 11, 22, 21, 0, 1, tzinfo=UTC)
    assert not lines.precise


def test_a_frame_without_a_stamp_is_refused() -> None:
    with pytest.raises(ValueError, match="not a time stamp"):
        Lines().take([(OUT, b"no stamp here\n")])


# Passes: what is sent again is left out, what is new is not.


def test_frames_at_the_last_stamp_are_counted_not_compared() -> None:
    lines = Lines()
    through(lines, [frame(5, b"same\n")] * 3)

    again = through(lines, [frame(5, b"same\n")] * 5 + [frame(6, b"new\n")])

    assert again == ["same", "same", "new"]
    assert not lines.lost


def test_streams_are_counted_apart() -> None:
    lines = Lines()
    through(lines, [frame(5, b"o\n"), frame(5, b"e\n", ERR), frame(5, b"e\n", ERR)])

    again = through(
        lines,
        [frame(5, b"o\n"), frame(5, b"o2\n"), frame(5, b"e\n", ERR), frame(5, b"e\n", ERR), frame(5, b"e3\n", ERR)],
    )

    assert again == ["o2", "e3"]


def test_a_line_whose_parts_come_in_two_passes_is_whole() -> None:
    lines = Lines()
    through(lines, [frame(5, b"one "), frame(5, b"two ")])

    again = through(lines, [frame(5, b"one "), frame(5, b"two "), frame(5, b"three\n")])

    assert again == ["one two three"]


LOGS = st.lists(st.tuples(st.sampled_from([OUT, ERR]), st.integers(0, 3), st.booleans()), min_size=1, max_size=40)


def log_of(steps: list[tuple[int, int, bool]]) -> list[Frame]:
    """A log in order of time, with many frames of one stamp and many parts of lines."""
    now, frames = 100 * 10**9, []
    for number, (stream, later, ends) in enumerate(steps):
        now += later
        frames.append(frame(now, b"%d%s" % (number, b"\n" if ends else b"+"), stream))
    return frames


PASS_KINDS: list[Kind] = ["since", "tail", "whole"]


@given(LOGS, st.lists(st.tuples(st.integers(0, 40), st.sampled_from(PASS_KINDS), st.integers(1, 40))))
def test_every_line_comes_once_however_reading_is_cut(
    steps: list[tuple[int, int, bool]], passes: list[tuple[int, Kind, int]]
) -> None:
    log = log_of(steps)
    expected = Lines()
    expected_texts = texts([*expected.take(log), *expected.finish()])
    lines = Lines()
    got: list[str] = []

    the_rest: tuple[int, Kind, int] = (len(log), "since", 0)
    for end, kind, size in (*passes, the_rest):  # each pass is cut at some frame, the last is not
        begin = max(0, end - size) if kind == "tail" and lines.taken else 0
        lines.begin(kind)
        got += texts(lines.take(log[begin:end]))
    got += texts(lines.finish())

    assert sorted(got) == sorted(expected_texts)
    assert lines.taken == len(log)


@given(LOGS, st.integers(0, 40))
def test_asking_since_the_last_frame_is_enough(steps: list[tuple[int, int, bool]], cut: int) -> None:
    log = log_of(steps)
    lines = Lines()
    got = texts(lines.take(log[:cut]))

    seconds, _, nanoseconds = lines.since().partition(".")
    since = stamp(int(seconds) % 3600 * 10**9 + int(nanoseconds)) if seconds else b""
    got += through(lines, [found for found in log if found[1][:30] >= since])

    assert got == texts(Lines().take(log))
    assert not lines.lost


def test_since_is_asked_for_in_nanoseconds() -> None:
    lines = Lines()
    assert lines.since() == ""

    through(lines, [frame(8_000_000_005, b"e\n", ERR), frame(9_000_000_007, b"o\n")])

    epoch = int(datetime(2026, 11, 22, 21, tzinfo=UTC).timestamp())
    assert lines.since() == f"{epoch + 8}.000000005"


def test_a_silent_stream_is_asked_for_only_as_far_back_as_frames_may_have_changed_places() -> None:
    lines = Lines()

    through(lines, [frame(1 * 10**9, b"e\n", ERR), frame(600 * 10**9 + 7, b"o\n")])

    epoch = int(datetime(2026, 11, 22, 21, tzinfo=UTC).timestamp())
    assert lines.since() == f"{epoch + 595}.000000007"


def test_what_the_engine_threw_away_in_between_is_noticed() -> None:
    lines = Lines()
    through(lines, [frame(1, b"a\n"), frame(2, b"b\n")])

    again = through(lines, [frame(9, b"z\n")])

    assert again == ["z"]
    assert lines.lost


def test_a_log_that_became_empty_is_noticed() -> None:
    lines = Lines()
    through(lines, [frame(1, b"a\n")])

    assert through(lines, []) == []
    assert lines.lost


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param([], id="nothing"),
        pytest.param([frame(9, b"z\n")], id="begins behind"),
        pytest.param([frame(5, b"b\n"), frame(9, b"z\n")], id="begins among frames of the last stamp"),
        pytest.param([frame(3, b"?\n", ERR), frame(5, b"b\n")], id="begins with a stream never seen"),
    ],
)
def test_a_tail_that_does_not_reach_back_is_not_believed(tail: list[Frame]) -> None:
    lines = Lines()
    through(lines, [frame(4, b"a\n"), frame(5, b"b\n")])

    with pytest.raises(Uncovered):
        through(lines, tail, "tail")

    assert not lines.lost


def test_lines_before_a_doubtful_place_in_a_tail_are_kept() -> None:
    lines = Lines()
    through(lines, [frame(1, b"o1\n"), frame(5, b"e1\n", ERR), frame(6, b"o2\n")])

    lines.begin("tail")
    got = texts(lines.take([frame(1, b"o1\n"), frame(6, b"o2\n"), frame(7, b"o3\n"), frame(5, b"e1\n", ERR)]))
    rest = through(lines, [frame(1, b"o1\n"), frame(5, b"e1\n", ERR), frame(6, b"o2\n"), frame(7, b"o3\n")])

    assert got == ["o3"]
    assert rest == []


def test_a_tail_that_may_begin_among_equal_stamps_of_a_stream_is_not_counted() -> None:
    stored = [
        frame(1, b"o1\n"),
        frame(5, b"same\n", ERR),
        frame(5, b"o2\n"),
        frame(5, b"same\n", ERR),
        frame(6, b"o3\n"),
    ]
    late = frame(5, b"same\n", ERR)
    lines = Lines()
    through(lines, stored)

    lines.begin("tail")
    got = texts(lines.take([*stored[2:], late]))

    assert isinstance(lines.trouble, Uncovered)
    assert got == []
    assert through(lines, [*stored, late]) == ["same"]


def test_frames_are_known_by_number_where_the_clock_ran_backwards() -> None:
    log = [frame(9, b"a\n"), frame(3, b"b\n"), frame(4, b"c\n")]
    lines = Lines()
    through(lines, log[:2])

    again = through(lines, log, "whole")

    assert not lines.ordered
    assert again == ["c"]


def test_reading_can_begin_at_a_tail_only_where_its_lines_are_whole() -> None:
    inside_of_a_line, among_equals, whole = Lines(), Lines(), Lines()
    inside_of_a_line.take([frame(1, b"+"), frame(1, b"+")])
    among_equals.take([frame(1, b"a\n"), frame(1, b"b\n")])
    whole.take([frame(1, b"a\n"), frame(2, b"b\n")])

    assert not inside_of_a_line.start_here()
    assert not among_equals.start_here()
    assert whole.start_here()
    assert through(whole, [frame(0, b"old\n", ERR), frame(2, b"b\n"), frame(3, b"new\n", ERR)]) == ["new"]


def test_a_tail_says_nothing_of_how_often_a_silent_stream_wrote() -> None:
    lines = Lines()
    lines.take([frame(1, b"a\n"), frame(2, b"b\n")])

    assert lines.start_here()
    assert lines._err.count == math.inf
