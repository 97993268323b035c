"""CloudWatch Logs of the fake AWS, in virtual time."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

import anyio
import pytest

from fargate_runner.testing.aws._logs import Ingestion, LogsService
from fargate_runner.testing.aws._service import AwsError
from fargate_runner.testing.clock import VirtualClock
from tests.aws.asking import ask, refusal

T0 = 1_767_225_600_000
"""The moment at which a virtual clock starts, in milliseconds."""

GROUP, STREAM = "/fr", "fr/main/0123"


@pytest.fixture
def anyio_backend(clock: VirtualClock) -> object:
    return ("asyncio", {"loop_factory": clock.loop})


@pytest.fixture
def logs(clock: VirtualClock) -> LogsService:
    return made(clock)


def made(clock: VirtualClock, **ingestion: Any) -> LogsService:
    """A service with a group and an empty stream, prompt unless asked otherwise."""
    how: dict[str, Any] = {"least": 0, "most": 0, **ingestion}
    logs = LogsService(clock, ingestion=Ingestion(**how))
    logs.create_group(GROUP)
    logs.put(GROUP, STREAM)
    return logs


def lines(count: int, *, first: int = 0, at: int = T0) -> list[tuple[int, str]]:
    return [(at + number, f"line {number}") for number in range(first, first + count)]


async def read(logs: LogsService, *, token: str | None = None, **request: Any) -> tuple[list[str], str]:
    """Read a stream from a token to its end, as AWS says how to."""
    messages: list[str] = []
    while True:
        sent = {} if token is None else {"nextToken": token}
        page = await ask(
            logs, "GetLogEvents", logGroupName=GROUP, logStreamName=STREAM, startFromHead=True, **sent, **request
        )
        messages += [event["message"] for event in page["events"]]
        if page["nextForwardToken"] == token:
            return messages, page["nextForwardToken"]
        token = page["nextForwardToken"]


async def search(logs: LogsService, **request: Any) -> list[dict[str, Any]]:
    """Read all that matches."""
    events: list[dict[str, Any]] = []
    sent: dict[str, str] = {}
    while True:
        page = await ask(logs, "FilterLogEvents", logGroupName=GROUP, **sent, **request)
        events += page["events"]
        if "nextToken" not in page:
            return events
        sent = {"nextToken": page["nextToken"]}


def texts(events: list[dict[str, Any]]) -> list[str]:
    return [event["message"] for event in events]


# Groups.


async def test_a_group_is_made_described_and_deleted(logs: LogsService) -> None:
    await ask(logs, "CreateLogGroup", logGroupName="/other", tags={"a": "b"})

    both = await ask(logs, "DescribeLogGroups")
    await ask(logs, "DeleteLogGroup", logGroupName="/other")
    one = await ask(logs, "DescribeLogGroups", logGroupNamePrefix="/")

    assert [group["logGroupName"] for group in both["logGroups"]] == [GROUP, "/other"]
    assert both["logGroups"][0]["arn"] == "arn:aws:logs:us-east-1:111122223333:log-group:/fr:*"
    assert both["logGroups"][0]["creationTime"] == T0
    assert [group["logGroupName"] for group in one["logGroups"]] == [GROUP]
    assert not logs.has_group("/other")


async def test_a_group_exists_once(logs: LogsService) -> None:
    error = await refusal(logs, "CreateLogGroup", logGroupName=GROUP)

    assert (error.code, error.message) == (
        "ResourceAlreadyExistsException",
        "The specified log group already exists",
    )


async def test_a_group_that_is_made_for_a_container_may_exist(logs: LogsService) -> None:
    logs.create_group(GROUP)

    assert logs.messages(GROUP, STREAM) == []


@pytest.mark.parametrize("name", ["a b", "a:b", "x" * 513, ""])
async def test_a_bad_group_name_is_refused(logs: LogsService, name: str) -> None:
    error = await refusal(logs, "CreateLogGroup", logGroupName=name)

    assert error.code == "InvalidParameterException"


async def test_groups_come_in_pages(logs: LogsService) -> None:
    for number in range(70):
        logs.create_group(f"/page/{number:02}")

    first = await ask(logs, "DescribeLogGroups", logGroupNamePrefix="/page")
    second = await ask(logs, "DescribeLogGroups", logGroupNamePrefix="/page", nextToken=first["nextToken"])

    assert len(first["logGroups"]) == 50
    assert [group["logGroupName"] for group in second["logGroups"]] == [
        f"/page/{number:02}" for number in range(50, 70)
    ]
    assert "nextToken" not in second


@pytest.mark.parametrize("days", [1, 30, 3653])
async def test_a_valid_retention_is_kept(logs: LogsService, days: int) -> None:
    await ask(logs, "PutRetentionPolicy", logGroupName=GROUP, retentionInDays=days)

    described = await ask(logs, "DescribeLogGroups")
    assert described["logGroups"][0]["retentionInDays"] == days


@pytest.mark.parametrize("days", [0, 2, 29, 3654])
async def test_another_retention_is_refused(logs: LogsService, days: int) -> None:
    error = await refusal(logs, "PutRetentionPolicy", logGroupName=GROUP, retentionInDays=days)

    assert error.code == "InvalidParameterException"


async def test_events_older_than_the_retention_are_gone(logs: LogsService) -> None:
    logs.put(GROUP, STREAM, lines(3))
    await ask(logs, "PutRetentionPolicy", logGroupName=GROUP, retentionInDays=1)

    await anyio.sleep(2 * 24 * 3600)
    gone, _ = await read(logs)
    await ask(logs, "DeleteRetentionPolicy", logGroupName=GROUP)

    assert gone == []


async def test_a_group_is_tagged_by_its_arn(logs: LogsService) -> None:
    arn = "arn:aws:logs:us-east-1:111122223333:log-group:/fr"

    await ask(logs, "TagResource", resourceArn=arn, tags={"a": "1", "b": "2"})
    await ask(logs, "UntagResource", resourceArn=arn, tagKeys=["a"])

    assert await ask(logs, "ListTagsForResource", resourceArn=arn) == {"tags": {"b": "2"}}


# Streams.


@pytest.mark.parametrize(
    ("operation", "request_"),
    [
        ("GetLogEvents", {}),
        ("DeleteLogStream", {}),
        ("PutLogEvents", {"logEvents": [{"timestamp": T0, "message": "x"}]}),
    ],
)
async def test_a_missing_stream_and_a_missing_group_are_told_apart(
    logs: LogsService, operation: str, request_: dict[str, Any]
) -> None:
    stream = await refusal(logs, operation, logGroupName=GROUP, logStreamName="none", **request_)
    group = await refusal(logs, operation, logGroupName="none", logStreamName="none", **request_)

    assert stream.code == group.code == "ResourceNotFoundException"
    assert stream.message == "The specified log stream does not exist."
    assert group.message == "The specified log group does not exist."


async def test_a_filter_on_streams_of_which_one_is_missing_is_refused(logs: LogsService) -> None:
    error = await refusal(logs, "FilterLogEvents", logGroupName=GROUP, logStreamNames=[STREAM, "none"])

    assert error.code == "ResourceNotFoundException"
    assert error.message == "The specified log stream does not exist."


async def test_a_container_writes_only_into_a_group_that_exists(logs: LogsService) -> None:
    with pytest.raises(AwsError, match="The specified log group does not exist"):
        logs.put("none", STREAM, lines(1))


async def test_a_container_that_wrote_nothing_has_a_stream(logs: LogsService) -> None:
    described = await ask(logs, "DescribeLogStreams", logGroupName=GROUP)

    assert [stream["logStreamName"] for stream in described["logStreams"]] == [STREAM]
    assert "lastEventTimestamp" not in described["logStreams"][0]


async def test_a_stream_exists_once(logs: LogsService) -> None:
    await ask(logs, "CreateLogStream", logGroupName=GROUP, logStreamName="new")
    error = await refusal(logs, "CreateLogStream", logGroupName=GROUP, logStreamName="new")
    bad = await refusal(logs, "CreateLogStream", logGroupName=GROUP, logStreamName="a:b")

    assert error.code == "ResourceAlreadyExistsException"
    assert bad.code == "InvalidParameterException"


async def test_a_deleted_stream_takes_its_events_and_tokens_with_it(logs: LogsService) -> None:
    logs.put(GROUP, STREAM, lines(2))
    _, token = await read(logs)

    await ask(logs, "DeleteLogStream", logGroupName=GROUP, logStreamName=STREAM)
    logs.put(GROUP, STREAM, [(T0, "again")])
    error = await refusal(logs, "GetLogEvents", logGroupName=GROUP, logStreamName=STREAM, nextToken=token)

    assert error.message == "The specified nextToken is invalid."
    assert (await read(logs))[0] == ["again"]


async def test_streams_are_listed_by_prefix_in_pages(logs: LogsService) -> None:
    for number in range(7):
        logs.put(GROUP, f"p/{number}")

    first = await ask(logs, "DescribeLogStreams", logGroupName=GROUP, logStreamNamePrefix="p/", limit=4)
    second = await ask(
        logs,
        "DescribeLogStreams",
        logGroupName=GROUP,
        logStreamNamePrefix="p/",
        limit=4,
        nextToken=first["nextToken"],
    )

    assert [stream["logStreamName"] for stream in first["logStreams"]] == ["p/0", "p/1", "p/2", "p/3"]
    assert [stream["logStreamName"] for stream in second["logStreams"]] == ["p/4", "p/5", "p/6"]
    assert "nextToken" not in second


async def test_streams_are_ordered_by_their_last_event(logs: LogsService) -> None:
    logs.put(GROUP, "old", [(T0 + 1, "x")])
    logs.put(GROUP, "young", [(T0 + 2, "x")])

    described = await ask(logs, "DescribeLogStreams", logGroupName=GROUP, orderBy="LastEventTime", descending=True)
    error = await refusal(
        logs, "DescribeLogStreams", logGroupName=GROUP, orderBy="LastEventTime", logStreamNamePrefix="o"
    )

    assert [stream["logStreamName"] for stream in described["logStreams"]] == ["young", "old", STREAM]
    assert error.message == "Cannot order by LastEventTime with a logStreamNamePrefix."


async def test_the_summary_of_a_stream_lags_if_asked(clock: VirtualClock) -> None:
    logs = made(clock, summary_lag=3600)
    logs.put(GROUP, STREAM, lines(1))

    now = await ask(logs, "DescribeLogStreams", logGroupName=GROUP)
    await anyio.sleep(3601)
    later = await ask(logs, "DescribeLogStreams", logGroupName=GROUP)

    assert "lastEventTimestamp" not in now["logStreams"][0]
    assert later["logStreams"][0]["lastEventTimestamp"] == T0


# Writing.


async def test_a_long_line_is_cut_into_events_between_characters(logs: LogsService) -> None:
    line = "x" + "\N{EURO SIGN}" * 200_000

    logs.put(GROUP, STREAM, [(T0, line)])
    messages, _ = await read(logs)

    assert "".join(messages) == line
    assert [len(message.encode()) for message in messages] == [262_117, 262_116, 75_768]


async def test_empty_lines_vanish(logs: LogsService) -> None:
    logs.put(GROUP, STREAM, [(T0, "a"), (T0, ""), (T0 + 1, "b")])

    assert (await read(logs))[0] == ["a", "b"]


async def test_events_of_one_millisecond_keep_their_order(logs: LogsService) -> None:
    logs.put(GROUP, STREAM, [(T0, f"{number}") for number in range(500)])
    logs.put(GROUP, STREAM, [(T0, f"{number}") for number in range(500, 1000)])

    got, _ = await read(logs, limit=7)
    found = await search(logs, logStreamNames=[STREAM], limit=7)

    assert got == texts(found) == [str(number) for number in range(1000)]
    assert len({event["eventId"] for event in found}) == 1000


async def test_put_log_events_accepts_and_answers(logs: LogsService) -> None:
    reply = await ask(
        logs,
        "PutLogEvents",
        logGroupName=GROUP,
        logStreamName=STREAM,
        logEvents=[{"timestamp": T0, "message": "a"}, {"timestamp": T0, "message": "b"}],
        sequenceToken="ignored since 2023",
    )

    assert reply.keys() == {"nextSequenceToken"}
    assert (await read(logs))[0] == ["a", "b"]


HOUR = 3600 * 1000


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([(T0 + 1, "a"), (T0, "b")], "chronological order"),
        ([(T0, "a"), (T0 + 24 * HOUR + 1, "b")], "cannot span more than 24 hours"),
        ([(T0, "x" * 1_048_551)], "Log event too large: 1048577 bytes exceeds limit of 1048576"),
        ([(T0, "x" * 600_000), (T0, "x" * 600_000)], "Upload too large: 1200052 bytes exceeds limit of 1048576"),
        ([(T0, "x")] * 10_001, "Member must have length less than or equal to 10000"),
        ([(T0, "")], "'logEvents.1.member.message' failed to satisfy constraint"),
    ],
)
async def test_a_bad_batch_is_refused_whole(logs: LogsService, events: list[tuple[int, str]], message: str) -> None:
    entries = [{"timestamp": at, "message": text} for at, text in events]

    error = await refusal(logs, "PutLogEvents", logGroupName=GROUP, logStreamName=STREAM, logEvents=entries)

    assert error.code == "InvalidParameterException"
    assert message in error.message
    assert logs.messages(GROUP, STREAM) == []


async def test_a_batch_of_the_greatest_size_is_accepted(logs: LogsService) -> None:
    entries = [{"timestamp": T0, "message": "x" * (1_048_576 - 26)}]

    await ask(logs, "PutLogEvents", logGroupName=GROUP, logStreamName=STREAM, logEvents=entries)

    assert len((await read(logs))[0][0]) == 1_048_550


async def test_events_of_the_far_past_and_future_are_rejected_by_index(logs: LogsService) -> None:
    async def put(*hours: int) -> tuple[dict[str, int], int]:
        await ask(logs, "CreateLogStream", logGroupName=GROUP, logStreamName=f"s{hours}")
        entries = [{"timestamp": T0 + hour * HOUR, "message": f"{hour}"} for hour in hours]
        reply = await ask(logs, "PutLogEvents", logGroupName=GROUP, logStreamName=f"s{hours}", logEvents=entries)
        return reply["rejectedLogEventsInfo"], len(logs.messages(GROUP, f"s{hours}"))

    assert await put(-15 * 24, -15 * 24 + 1, -14 * 24) == ({"tooOldLogEventEndIndex": 2}, 1)
    assert await put(0, 2, 3, 4) == ({"tooNewLogEventStartIndex": 2}, 2)

    await ask(logs, "PutRetentionPolicy", logGroupName=GROUP, retentionInDays=1)

    assert await put(-25, -24, -1) == ({"expiredLogEventEndIndex": 1}, 2)


async def test_whoever_waits_for_writes_is_woken(logs: LogsService, clock: VirtualClock) -> None:
    woken: list[float] = []

    async def wait() -> None:
        await logs.changed.wait()
        woken.append(clock.time())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.sleep(5)
        logs.put(GROUP, STREAM, lines(1))

    assert woken == [5]


# Ingestion.


async def test_events_are_visible_after_a_while(clock: VirtualClock) -> None:
    logs = made(clock, least=3, most=5)
    logs.put(GROUP, STREAM, lines(1))

    await anyio.sleep(2.9)
    too_early, _ = await read(logs)
    await anyio.sleep(2.2)

    assert too_early == []
    assert (await read(logs))[0] == ["line 0"]
    assert logs.messages(GROUP, STREAM) == ["line 0"]


async def test_batches_become_visible_in_order(clock: VirtualClock) -> None:
    logs = made(clock, least=0, most=60)
    for number in range(50):
        logs.put(GROUP, STREAM, lines(1, first=number))

    sizes: list[int] = []
    for _ in range(70):
        seen, _ = await read(logs)
        sizes.append(len(seen))
        assert seen == [f"line {number}" for number in range(len(seen))]
        await anyio.sleep(1)

    assert sizes[-1] == 50
    assert len(set(sizes)) > 3


async def test_batches_out_of_order_land_behind_a_kept_token(clock: VirtualClock) -> None:
    logs = made(clock, least=0, most=60, in_order=False)
    for number in range(50):
        logs.put(GROUP, STREAM, lines(1, first=number))

    followed: list[str] = []
    token: str | None = None
    for _ in range(70):
        page, token = await read(logs, token=token)
        followed += page
        await anyio.sleep(1)

    assert (await read(logs))[0] == [f"line {number}" for number in range(50)]
    assert len(followed) < 50
    assert followed == sorted(followed, key=lambda line: int(line.split()[1]))


async def test_the_seed_decides_when_events_are_visible() -> None:
    async def times(seed: int) -> list[float]:
        clock = VirtualClock()
        logs = LogsService(clock, seed=seed)
        logs.create_group(GROUP)
        logs.put(GROUP, STREAM, lines(1))
        logs.put(GROUP, "other", lines(1))
        return [entry[0] for entry in sorted(logs._groups[GROUP].pending, key=lambda entry: entry[2].name)]

    assert await times(1) == await times(1)
    assert await times(1) != await times(2)


@pytest.mark.parametrize("bad", [{"least": 3, "most": 2}, {"least": -1}, {"short_pages": 1.0}, {"empty_pages": -0.1}])
def test_an_impossible_ingestion_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (some texts are attrs')
        Ingestion(**bad)


# GetLogEvents.


async def test_the_end_is_told_by_the_same_token(logs: LogsService) -> None:
    logs.put(GROUP, STREAM, lines(3))
    ask_for = {"logGroupName": GROUP, "logStreamName": STREAM, "startFromHead": True}

    first = await ask(logs, "GetLogEvents", **ask_for)
    second = await ask(logs, "GetLogEvents", **ask_for, nextToken=first["nextForwardToken"])
    third = await ask(logs, "GetLogEvents", **ask_for, nextToken=second["nextForwardToken"])

    assert len(first["events"]) == 3
    assert second["events"] == third["events"] == []
    assert first["nextForwardToken"] == second["nextForwardToken"] == third["nextForwardToken"]


async def test_a_full_last_page_is_followed_by_the_same_token(logs: LogsService) -> None:
    logs.put(GROUP, STREAM, lines(4))

    messages, _ = await read(logs, limit=2)

    assert messages == ["line 0", "line 1", "line 2", "line 3"]


async def test_tokens_look_like_aws_tokens(logs: LogsService) -> None:
    empty = await ask(logs, "GetLogEvents", logGroupName=GROUP, logStreamName=STREAM)
    logs.put(GROUP, STREAM, lines(3))
    page = await ask(logs, "GetLogEvents", logGroupName=GROUP, logStreamName=STREAM)

    for tokens in (empty, page):
        kind, digits, end = tokens["nextForwardToken"].split("/")
        assert (kind, len(digits), digits.isdigit(), end) == ("f", 56, True, "s")
        kind, digits, end = tokens["nextBackwardToken"].split("/")
        assert (kind, len(digits), digits.isdigit(), end) == ("b", 56, True, "s")


async def test_a_kept_token_yields_what_comes_later(logs: LogsService) -> None:
    nothing, token = await read(logs)
    logs.put(GROUP, STREAM, lines(2))
    first, token = await read(logs, token=token)
    await anyio.sleep(3600)
    logs.put(GROUP, STREAM, lines(2, first=2))
    second, _ = await read(logs, token=token)

    assert (nothing, first, second) == ([], ["line 0", "line 1"], ["line 2", "line 3"])


async def test_a_token_dies_after_a_day(logs: LogsService) -> None:
    _, token = await read(logs)
    ask_for = {"logGroupName": GROUP, "logStreamName": STREAM, "nextToken": token}

    await anyio.sleep(24 * 3600 - 1)
    await ask(logs, "GetLogEvents", **ask_for)
    await anyio.sleep(2)
    error = await refusal(logs, "GetLogEvents", **ask_for)

    assert (error.code, error.message) == ("InvalidParameterException", "The specified nextToken is invalid.")


async def test_a_token_of_another_stream_or_of_nobody_is_refused(logs: LogsService) -> None:
    logs.put(GROUP, "other")
    _, token = await read(logs)
    kind, digits, end = token.split("/")
    changed = f"{int(digits) + 1:056d}"

    for bad in ("x", "", f"{kind}/{changed}/{end}", f"b/{digits}/{end}"):
        error = await refusal(logs, "GetLogEvents", logGroupName=GROUP, logStreamName=STREAM, nextToken=bad)
        assert error.message == "The specified nextToken is invalid."
    error = await refusal(logs, "GetLogEvents", logGroupName=GROUP, logStreamName="other", nextToken=token)
    assert error.message == "The specified nextToken is invalid."


async def test_without_start_from_head_the_newest_come_first(logs: LogsService) -> None:
    logs.put(GROUP, STREAM, lines(10))
    ask_for = {"logGroupName": GROUP, "logStreamName": STREAM, "limit": 4}

    pages: list[list[str]] = []
    token: dict[str, str] = {}
    for _ in range(4):
        page = await ask(logs, "GetLogEvents", **ask_for, **token)
        pages.append(texts(page["events"]))
        token = {"nextToken": page["nextBackwardToken"]}
    end = await ask(logs, "GetLogEvents", **ask_for, **token)

    assert pages == [
        ["line 6", "line 7", "line 8", "line 9"],
        ["line 2", "line 3", "line 4", "line 5"],
        ["line 0", "line 1"],
        [],
    ]
    assert end["nextBackwardToken"] == token["nextToken"]


async def test_one_goes_on_forward_from_the_newest(logs: LogsService) -> None:
    logs.put(GROUP, STREAM, lines(10))

    tail = await ask(logs, "GetLogEvents", logGroupName=GROUP, logStreamName=STREAM, limit=2)
    logs.put(GROUP, STREAM, lines(1, first=10))
    later, _ = await read(logs, token=tail["nextForwardToken"])

    assert texts(tail["events"]) == ["line 8", "line 9"]
    assert later == ["line 10"]


async def test_the_tail_of_an_empty_stream_goes_on_with_its_first_line(logs: LogsService) -> None:
    tail = await ask(logs, "GetLogEvents", logGroupName=GROUP, logStreamName=STREAM)
    logs.put(GROUP, STREAM, lines(1))

    assert (await read(logs, token=tail["nextForwardToken"]))[0] == ["line 0"]


async def test_the_start_is_inclusive_and_the_end_is_not(logs: LogsService) -> None:
    logs.put(GROUP, STREAM, lines(10))

    messages, _ = await read(logs, startTime=T0 + 3, endTime=T0 + 6)

    assert messages == ["line 3", "line 4", "line 5"]


async def test_a_page_has_no_more_than_ten_thousand_events(logs: LogsService) -> None:
    logs.put(GROUP, STREAM, lines(10_001))

    page = await ask(logs, "GetLogEvents", logGroupName=GROUP, logStreamName=STREAM, startFromHead=True)
    error = await refusal(logs, "GetLogEvents", logGroupName=GROUP, logStreamName=STREAM, limit=10_001)

    assert len(page["events"]) == 10_000
    assert error.code == "InvalidParameterException"
    assert len((await read(logs))[0]) == 10_001


@pytest.mark.parametrize("operation", ["GetLogEvents", "FilterLogEvents"])
async def test_a_page_has_no_more_than_a_megabyte(logs: LogsService, operation: str) -> None:
    logs.put(GROUP, STREAM, [(T0 + number, "x" * 100_000) for number in range(25)])
    where = {"GetLogEvents": {"logStreamName": STREAM, "startFromHead": True}}.get(operation, {})

    page = await ask(logs, operation, logGroupName=GROUP, **where)

    assert len(page["events"]) == 10
    assert len((await read(logs))[0]) == len(await search(logs)) == 25


async def test_a_group_is_named_by_its_arn_too(logs: LogsService) -> None:
    logs.put(GROUP, STREAM, lines(1))
    arn = "arn:aws:logs:us-east-1:111122223333:log-group:/fr"

    page = await ask(logs, "GetLogEvents", logGroupIdentifier=arn, logStreamName=STREAM)
    found = await ask(logs, "FilterLogEvents", logGroupIdentifier=GROUP)
    both = await refusal(logs, "FilterLogEvents", logGroupIdentifier=arn, logGroupName=GROUP)
    none = await refusal(logs, "GetLogEvents", logStreamName=STREAM)
    star = await refusal(logs, "FilterLogEvents", logGroupIdentifier=f"{arn}:*")

    assert texts(page["events"]) == texts(found["events"]) == ["line 0"]
    assert {both.code, none.code, star.code} == {"InvalidParameterException"}


@pytest.mark.parametrize("seed", range(5))
async def test_short_and_empty_pages_lose_nothing(clock: VirtualClock, seed: int) -> None:
    logs = LogsService(clock, seed=seed, ingestion=Ingestion(least=0, most=0, short_pages=0.5, empty_pages=0.4))
    logs.create_group(GROUP)
    logs.put(GROUP, STREAM, lines(2000))
    calls: list[int] = []

    async def paged() -> list[str]:
        messages: list[str] = []
        token: dict[str, str] = {}
        while True:
            page = await ask(
                logs, "GetLogEvents", logGroupName=GROUP, logStreamName=STREAM, startFromHead=True, limit=100, **token
            )
            calls.append(len(page["events"]))
            messages += texts(page["events"])
            if {"nextToken": page["nextForwardToken"]} == token:
                return messages
            token = {"nextToken": page["nextForwardToken"]}

    expected = [f"line {number}" for number in range(2000)]
    assert await paged() == expected
    assert texts(await search(logs, limit=100)) == expected
    assert 0 in calls[:-1]
    assert any(0 < size < 100 for size in calls)


# FilterLogEvents.


async def test_many_streams_are_read_in_one_order(logs: LogsService) -> None:
    random = Random(1)
    written: list[tuple[int, str]] = []
    for number in range(200):
        at = T0 + random.randrange(50)
        logs.put(GROUP, f"s/{number % 7}", [(at, f"{number}")])
        written.append((at, f"{number}"))

    found = await search(logs, logStreamNames=[f"s/{number}" for number in range(7)], limit=13)

    assert texts(found) == [text for _, text in sorted(written, key=lambda event: event[0])]
    ids = [event["eventId"] for event in found]
    assert ids == sorted(set(ids))
    assert all(len(event_id) == 56 for event_id in ids)


async def test_an_event_id_stays(logs: LogsService) -> None:
    logs.put(GROUP, STREAM, [(T0 + 5, "a")])
    before = await search(logs)
    logs.put(GROUP, STREAM, [(T0 + 4, "earlier")])
    logs.put(GROUP, "other", [(T0 + 5, "a")])

    after = await search(logs)

    assert next(event["eventId"] for event in after if event["message"] == "a") == before[0]["eventId"]
    assert len({event["eventId"] for event in after}) == 3


async def test_only_the_streams_that_were_asked_for_answer(logs: LogsService) -> None:
    for name in ("a/1", "a/2", "b/1"):
        logs.put(GROUP, name, [(T0, name)])

    named = await search(logs, logStreamNames=["a/1", "b/1", "a/1"])
    prefixed = await search(logs, logStreamNamePrefix="a/")
    everything = await search(logs)
    both = await refusal(logs, "FilterLogEvents", logGroupName=GROUP, logStreamNames=["a/1"], logStreamNamePrefix="a")
    many = await refusal(logs, "FilterLogEvents", logGroupName=GROUP, logStreamNames=[f"{n}" for n in range(101)])

    assert texts(named) == ["a/1", "b/1"]
    assert [event["logStreamName"] for event in prefixed] == ["a/1", "a/2"]
    assert len(everything) == 3
    assert both.code == many.code == "InvalidParameterException"


async def test_both_ends_of_a_filter_are_inclusive(logs: LogsService) -> None:
    logs.put(GROUP, STREAM, lines(10))

    assert texts(await search(logs, startTime=T0 + 3, endTime=T0 + 5)) == ["line 3", "line 4", "line 5"]


async def test_a_filters_token_fits_only_its_question(logs: LogsService) -> None:
    logs.put(GROUP, STREAM, lines(3))
    token = (await ask(logs, "FilterLogEvents", logGroupName=GROUP, limit=1))["nextToken"]

    other = await refusal(logs, "FilterLogEvents", logGroupName=GROUP, filterPattern="x", nextToken=token)
    nonsense = await refusal(logs, "FilterLogEvents", logGroupName=GROUP, nextToken="nonsense")
    await anyio.sleep(24 * 3600 + 1)
    old = await refusal(logs, "FilterLogEvents", logGroupName=GROUP, nextToken=token)

    assert {error.message for error in (other, nonsense, old)} == {"The specified nextToken is invalid."}


async def test_late_events_are_found_by_a_window_that_overlaps(clock: VirtualClock) -> None:
    logs = made(clock, least=0, most=20, in_order=False)
    found: dict[str, str] = {}
    for second in range(100):
        logs.put(GROUP, f"s{second % 3}", [(T0 + second * 1000, f"{second}")])
        await anyio.sleep(1)
        window = await search(logs, startTime=T0 + (second - 30) * 1000)
        found |= {event["eventId"]: event["message"] for event in window}
    await anyio.sleep(30)
    found |= {event["eventId"]: event["message"] for event in await search(logs, startTime=T0 + 60_000)}

    assert sorted(found.values(), key=int) == [str(second) for second in range(100)]


async def test_a_long_search_says_go_on_before_it_has_found_anything(logs: LogsService) -> None:
    logs.put(GROUP, STREAM, [*((T0, "hay") for _ in range(100_000)), (T0 + 1, "needle")])

    first = await ask(logs, "FilterLogEvents", logGroupName=GROUP, filterPattern="needle")
    found = await search(logs, filterPattern="needle")

    assert first["events"] == []
    assert "nextToken" in first
    assert texts(found) == ["needle"]


MESSAGES = [
    "ERROR out of memory",
    "error in code",
    "WARN disk is full",
    '{"level": "ERROR", "code": 500, "user": {"name": "ann"}, "tags": ["a", "b"], "ok": false}',
    '{"level": "INFO", "code": 200, "user": null}',
]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("", [0, 1, 2, 3, 4]),
        ("ERROR", [0, 3]),
        ("ERROR memory", [0]),
        ('"out of"', [0]),
        ('"disk is" WARN', [2]),
        ("?WARN ?memory", [0, 2]),
        ("ERROR ?WARN", [0, 3]),
        ("ERROR -memory", [3]),
        ('-"out of" -INFO -ERROR', [1, 2]),
        ("%^[a-z]+ in%", [1]),
        (r'"\"level\""', [3, 4]),
        ('{ $.level = "ERROR" }', [3]),
        ('{ $.level = "*O*" }', [3, 4]),
        ("{ $.level = INFO }", [4]),
        ("{ $.code >= 300 }", [3]),
        ("{ $.code = 200 }", [4]),
        ('{ $.level != "ERROR" }', [4]),
        ('{ $.user.name = "ann" && $.code > 1 }', [3]),
        ('{ ($.code = 200 || $.code = 500) && $.tags[1] = "b" }', [3]),
        ("{ $.user IS NULL }", [4]),
        ("{ $.ok IS FALSE }", [3]),
        ("{ $.ok NOT EXISTS }", [4]),
        ("{ $.level = %^ER% }", [3]),
    ],
)
async def test_a_pattern_chooses(logs: LogsService, pattern: str, found: list[int]) -> None:
    logs.put(GROUP, STREAM, [(T0 + number, message) for number, message in enumerate(MESSAGES)])

    events = await search(logs, filterPattern=pattern)

    assert texts(events) == [MESSAGES[number] for number in found]


@pytest.mark.parametrize(
    "pattern",
    ["[ip, user]", '"open', "%(%", "{ $.a }", "{ $.a = }", "{ $.a = 1", "{ a = 1 }", "{ $.a ~ 1 }", "{ $.a > b }"],
)
async def test_a_pattern_that_nobody_can_read_is_refused(logs: LogsService, pattern: str) -> None:
    error = await refusal(logs, "FilterLogEvents", logGroupName=GROUP, filterPattern=pattern)

    assert error.code == "InvalidParameterException"
    assert "Invalid filter pattern" in error.message


# Much of it.


async def test_a_million_events_are_read_whole(logs: LogsService) -> None:
    for batch in range(100):
        logs.put(GROUP, STREAM, [(T0 + batch, f"{batch * 10_000 + number}") for number in range(10_000)])
    expected = list(map(str, range(1_000_000)))

    got: list[str] = []
    token: dict[str, str] = {}
    while True:
        page = await logs.get_log_events(
            {"logGroupName": GROUP, "logStreamName": STREAM, "startFromHead": True, **token}
        )
        got += texts(page["events"])
        if {"nextToken": page["nextForwardToken"]} == token:
            break
        token = {"nextToken": page["nextForwardToken"]}

    assert got == expected


async def test_ten_thousand_late_batches_are_sorted_in(clock: VirtualClock) -> None:
    logs = made(clock, least=0, most=30, in_order=False)
    for number in range(10_000):
        logs.put(GROUP, STREAM, [(T0 + number * 10 + part, f"{number}/{part}") for part in range(10)])
        await anyio.sleep(0.01)
    await anyio.sleep(60)

    events = logs._group(GROUP).streams[STREAM].events

    assert len(events) == 100_000
    assert all(earlier < later for earlier, later in pairwise(events))
