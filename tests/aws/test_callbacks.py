"""Topics and states that wait, as the fake has them."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from fargate_runner.testing.aws import AwsError, FakeAws
from fargate_runner.testing.clock import VirtualClock


@pytest.fixture
def anyio_backend(clock: VirtualClock) -> object:
    return "asyncio", {"loop_factory": clock.loop}


@pytest.fixture
def aws(clock: VirtualClock) -> FakeAws:
    return FakeAws(clock=clock)


async def refused(aws: FakeAws, service: str, operation: str, **request: Any) -> str:
    with pytest.raises(AwsError) as caught:
        await aws.call(service, operation, request)
    return caught.value.code


class TestTopics:
    async def test_keep_what_was_published(self, aws: FakeAws) -> None:
        topic = (await aws.call("sns", "CreateTopic", {"Name": "done"}))["TopicArn"]
        replies = [await aws.call("sns", "Publish", {"TopicArn": topic, "Message": text}) for text in "ab"]

        assert [each["Message"] for each in aws.sns.published[topic]] == ["a", "b"]
        assert len({reply["MessageId"] for reply in replies}) == 2

    async def test_in_order_take_an_id_once_in_five_minutes(self, aws: FakeAws) -> None:
        topic = (await aws.call("sns", "CreateTopic", {"Name": "done.fifo"}))["TopicArn"]
        message = {"TopicArn": topic, "Message": "a", "MessageGroupId": "g", "MessageDeduplicationId": "d"}
        first, second = [await aws.call("sns", "Publish", message) for _ in range(2)]
        one = len(aws.sns.published[topic])
        await anyio.sleep(301)
        await aws.call("sns", "Publish", message)

        assert (one, len(aws.sns.published[topic])) == (1, 2)
        assert first == second

    async def test_refuse_what_sns_refuses(self, aws: FakeAws) -> None:
        topic = (await aws.call("sns", "CreateTopic", {"Name": "done.fifo"}))["TopicArn"]

        assert await refused(aws, "sns", "CreateTopic", Name="a b") == "InvalidParameter"
        assert await refused(aws, "sns", "Publish", TopicArn=topic[:-5], Message="a") == "NotFound"
        assert await refused(aws, "sns", "Publish", TopicArn=topic, Message="") == "InvalidParameter"
        assert await refused(aws, "sns", "Publish", TopicArn=topic, Message="a") == "InvalidParameter"
        assert await refused(aws, "sns", "Publish", TopicArn=topic, Message="a" * 262_145) == "InvalidParameter"


class TestStates:
    async def test_take_one_answer(self, aws: FakeAws) -> None:
        well, badly = aws.stepfunctions.wait_for_token(), aws.stepfunctions.wait_for_token()
        await aws.call("stepfunctions", "SendTaskHeartbeat", {"taskToken": well.token})
        await aws.call("stepfunctions", "SendTaskSuccess", {"taskToken": well.token, "output": '{"a": 1}'})
        await aws.call("stepfunctions", "SendTaskFailure", {"taskToken": badly.token, "error": "E", "cause": "c"})

        assert (well.is_over, well.output, well.error) == (True, {"a": 1}, None)
        assert (badly.is_over, badly.error, badly.cause) == (True, "E", "c")
        again = {"taskToken": well.token, "output": "{}"}
        assert await refused(aws, "stepfunctions", "SendTaskSuccess", **again) == "TaskTimedOut"
        assert await refused(aws, "stepfunctions", "SendTaskFailure", taskToken=badly.token) == "TaskTimedOut"

    async def test_refuse_what_step_functions_refuses(self, aws: FakeAws) -> None:
        state = aws.stepfunctions.wait_for_token()

        assert await refused(aws, "stepfunctions", "SendTaskSuccess", taskToken="t", output="{}") == "InvalidToken"
        assert (
            await refused(aws, "stepfunctions", "SendTaskSuccess", taskToken=state.token, output="{") == "InvalidOutput"
        )
        assert not state.is_over
