"""Live Tail of the fake AWS, in virtual time."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from fargate_runner.testing.aws._logs import Ingestion, LiveTail, LogsService
from fargate_runner.testing.aws._service import AwsError
from fargate_runner.testing.clock import VirtualClock
from tests.aws.asking import ask, check, model, refusal

T0 = 1_767_225_600_000
GROUP, STREAM = "/fr", "fr/main/0123"
ARN = "arn:aws:logs:us-east-1:111122223333:log-group:/fr"


@pytest.fixture
def anyio_backend(clock: VirtualClock) -> object:
    return ("asyncio", {"loop_factory": clock.loop})


@pytest.fixture
def logs(clock: VirtualClock) -> LogsService:
    logs = LogsService(clock, ingestion=Ingestion(least=0, most=0))
    logs.create_group(GROUP)
    return logs


async def tail(logs: LogsService, **request: Any) -> LiveTail:
    reply = await ask(logs, "StartLiveTail", logGroupIdentifiers=[ARN], **request)
    return reply["responseStream"]


async def update(session: LiveTail) -> dict[str, Any]:
    """Return the next event, which has to be an update."""
    event = await anext(session)
    shape = model("logs").shape_for("StartLiveTailResponseStream")
    check(event["sessionUpdate"], shape.members["sessionUpdate"], "a session update")
    return event["sessionUpdate"]


def texts(events: dict[str, Any]) -> list[str]:
    return [event["message"] for event in events["sessionResults"]]


async def test_a_session_starts_with_what_was_asked(logs: LogsService) -> None:
    session = await tail(logs, logStreamNamePrefixes=["fr/"], logEventFilterPattern="x")

    event = await anext(session)

    shape = model("logs").shape_for("StartLiveTailResponseStream")
    check(event["sessionStart"], shape.members["sessionStart"], "the session start")
    assert event["sessionStart"]["logGroupIdentifiers"] == [ARN]
    assert event["sessionStart"]["logStreamNamePrefixes"] == ["fr/"]
    assert event["sessionStart"]["logEventFilterPattern"] == "x"


async def test_an_update_comes_each_second_even_without_events(logs: LogsService, clock: VirtualClock) -> None:
    session = await tail(logs)
    await anext(session)

    updates = [(await update(session), clock.time()) for _ in range(3)]

    empty = {"sessionMetadata": {"sampled": False}, "sessionResults": []}
    assert updates == [(empty, 1), (empty, 2), (empty, 3)]


async def test_events_come_with_where_they_are_from(logs: LogsService) -> None:
    session = await tail(logs)
    await anext(session)
    logs.put(GROUP, STREAM, [(T0, "a"), (T0 + 1, "b")])

    first = await update(session)
    second = await update(session)

    assert first["sessionResults"][0] == {
        "logStreamName": STREAM,
        "logGroupIdentifier": "111122223333:/fr",
        "message": "a",
        "timestamp": T0,
        "ingestionTime": T0,
    }
    assert texts(first) == ["a", "b"]
    assert texts(second) == []


async def test_what_could_be_read_before_is_not_repeated(logs: LogsService) -> None:
    logs.put(GROUP, STREAM, [(T0, "before")])
    session = await tail(logs)
    await anext(session)
    logs.put(GROUP, STREAM, [(T0, "after")])

    assert texts(await update(session)) == ["after"]


async def test_what_becomes_visible_later_is_shown_then(clock: VirtualClock) -> None:
    logs = LogsService(clock, ingestion=Ingestion(least=2.5, most=2.5))
    logs.create_group(GROUP)
    logs.put(GROUP, STREAM, [(T0, "under way")])
    session = await tail(logs)
    await anext(session)

    updates = [texts(await update(session)) for _ in range(4)]

    assert updates == [[], [], ["under way"], []]


@pytest.mark.parametrize(
    ("request_", "seen"),
    [
        ({"logStreamNames": ["a/1"]}, ["ERROR a1"]),
        ({"logStreamNamePrefixes": ["a/", "c"]}, ["ERROR a1", "a2"]),
        ({"logEventFilterPattern": "ERROR"}, ["ERROR a1", "ERROR b1"]),
    ],
)
async def test_a_session_may_be_narrow(logs: LogsService, request_: dict[str, Any], seen: list[str]) -> None:
    session = await tail(logs, **request_)
    await anext(session)
    logs.put(GROUP, "a/1", [(T0, "ERROR a1")])
    logs.put(GROUP, "a/2", [(T0, "a2")])
    logs.put(GROUP, "b/1", [(T0, "ERROR b1")])

    assert texts(await update(session)) == seen


async def test_more_than_500_events_a_second_are_sampled(logs: LogsService) -> None:
    session = await tail(logs)
    await anext(session)
    logs.put(GROUP, STREAM, [(T0, f"{number}") for number in range(2000)])

    first = await update(session)
    second = await update(session)

    assert first["sessionMetadata"] == {"sampled": True}
    assert len(first["sessionResults"]) == 500
    assert texts(first) == sorted(texts(first), key=int)
    assert second == {"sessionMetadata": {"sampled": False}, "sessionResults": []}


async def test_somebody_slow_loses_the_oldest(logs: LogsService) -> None:
    session = await tail(logs)
    await anext(session)
    for second in range(30):
        logs.put(GROUP, STREAM, [(T0, f"{second}")])
        await anyio.sleep(1)

    seen = [text for _ in range(11) for text in texts(await update(session))]

    assert seen == [str(second) for second in range(20, 30)]


async def test_a_session_ends_after_three_hours(logs: LogsService, clock: VirtualClock) -> None:
    session = await tail(logs)
    await anext(session)

    with pytest.raises(AwsError) as caught:
        async for _ in session:
            pass

    assert caught.value.code == "SessionTimeoutException"
    assert clock.time() == 3 * 3600
    with pytest.raises(StopAsyncIteration):
        await anext(session)


async def test_fifteen_sessions_at_once_are_enough(logs: LogsService) -> None:
    sessions = [await tail(logs) for _ in range(15)]

    error = await refusal(logs, "StartLiveTail", logGroupIdentifiers=[ARN])
    await sessions[0].aclose()
    await tail(logs)

    assert error.code == "LimitExceededException"


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"logGroupIdentifiers": [GROUP]}, "InvalidParameterException"),
        ({"logGroupIdentifiers": [f"{ARN}:*"]}, "InvalidParameterException"),
        ({"logGroupIdentifiers": [f"{ARN}/none"]}, "ResourceNotFoundException"),
        ({"logGroupIdentifiers": [f"{ARN}{n}" for n in range(11)]}, "InvalidParameterException"),
        (
            {"logGroupIdentifiers": [ARN], "logStreamNames": ["a"], "logStreamNamePrefixes": ["a"]},
            "InvalidParameterException",
        ),
        ({"logGroupIdentifiers": [ARN, f"{ARN}1"], "logStreamNames": ["a"]}, "InvalidParameterException"),
        ({"logGroupIdentifiers": [ARN], "logStreamNames": ["a"] * 101}, "InvalidParameterException"),
        ({"logGroupIdentifiers": [ARN], "logEventFilterPattern": "[a]"}, "InvalidParameterException"),
    ],
)
async def test_an_impossible_session_is_refused(logs: LogsService, request_: dict[str, Any], code: str) -> None:
    for number in range(11):
        logs.create_group(f"{GROUP}{number}")

    error = await refusal(logs, "StartLiveTail", **request_)

    assert error.code == code
