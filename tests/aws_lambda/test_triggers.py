"""What an event holds, and the key of each trigger: the same for a redelivery, another for anything else."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fargate_runner import InvalidJob, Job
from fargate_runner.aws_lambda import make_key, triggers_of
from tests.aws_lambda.samples import NAMES, event

OBJECT = "s3/amzn-s3-demo-bucket/in/2026/red flower 100%25.csv/096fKKXTRTtl3on89fVO.nfljtsv6qko.0055AED6DCD90281E5"
INSTANCE = "eventbridge/aws.ec2/6a7e8feb-b491-4cf7-a9f1-bf3703467718"
EXECUTION = "arn:aws:states:us-east-1:111122223333:execution:orders:4d5c6b7a"

KEYS = {
    "api_v1": ["api/a1b2c3d4e5/3b3f3fb7e9ff7548/8e03978e-40d5-43e8-bc93-6894a57f9324"],
    "api_v2": ["api/f6g7h8i9j0/3fd4588208d0ecb1/8e03978e-40d5-43e8-bc93-6894a57f9324"],
    "eventbridge": [INSTANCE],
    "eventbridge_replayed": [f"{INSTANCE}/replay-of-january"],
    "eventbridge_s3": [OBJECT],
    "function_url": ["api/example-url-id/e1506fd5-9e7b-434f-bd42-4f8fa224b599"],
    "load_balancer": [
        "api/arn:aws:elasticloadbalancing:us-east-1:111122223333:targetgroup%2Flambda-279XGJDqGZ5rsrHC2Fjr%2F"
        "49e9d65c45c6791a/Root=1-67748580-1f302e550dcde3b12402207e"
    ],
    "s3": [OBJECT],
    "s3_tagging": [
        "s3/amzn-s3-demo-bucket/in/2026/red flower 100%25.csv/096fKKXTRTtl3on89fVO.nfljtsv6qko."
        "ObjectTagging:Put.2026-01-01T00:00:00.000Z.C3D13FE58DE4C810"
    ],
    "s3_test": [],
    "schedule_rule": ["schedule/arn:aws:events:us-east-1:111122223333:rule/nightly/2026-01-01T06:00:00Z"],
    "schedule_scheduler": [
        "schedule/arn:aws:scheduler:us-east-1:111122223333:schedule/default/nightly/2026-01-01T06:00:00Z"
    ],
    "sns": ["sns/uploads/95df01b4-ee98-5cb9-9903-4c221d41eb5e"],
    "sns_s3": [OBJECT],
    "sqs": [
        "sqs/orders/059f36b4-87a3-44ab-83d2-661975830a7d",
        "sqs/orders/2e1424d4-f796-459a-8184-9c92662be6da",
        "sqs/orders/7d1c0b2e-4a11-4f0e-9d62-0f1e2d3c4b5a",
    ],
    "sqs_eventbridge": [INSTANCE],
    "sqs_fifo": [f"sqs/orders.fifo/11111111-0000-4000-8000-00000000000{n}" for n in range(1, 6)],
    "sqs_s3": [OBJECT],
    "sqs_s3_test": [],
    "sqs_sns": ["sns/uploads/95df01b4-ee98-5cb9-9903-4c221d41eb5e"],
    "sqs_sns_s3": [OBJECT],
    "sqs_step_functions": ["step-functions/20019b28836dfa057406c9a506a89ff1"],
    "step_functions_context": [f"step-functions/{EXECUTION}/Convert/2026-01-01T00:00:01.000Z"],
    "step_functions_token": ["step-functions/c66542b4baf48887078b20034f222601"],
}


def keys_of(given: object) -> list[str]:
    return [trigger.key for trigger in triggers_of(given)]


class TestKeys:
    """They are for ever: a change here starts again what was started before."""

    @pytest.mark.parametrize("name", NAMES)
    def test_of_every_source_stay_what_they_are(self, name: str) -> None:
        assert keys_of(event(name)) == KEYS[name]

    @pytest.mark.parametrize("name", NAMES)
    def test_can_name_a_job(self, name: str) -> None:
        for key in keys_of(event(name)):
            assert Job(command=["true"], key=key).key == key

    def test_of_an_object_are_the_same_by_whichever_way_the_event_came(self) -> None:
        ways = ["s3", "sqs_s3", "sns_s3", "sqs_sns_s3", "eventbridge_s3"]

        assert {key for way in ways for key in keys_of(event(way))} == {OBJECT}

    @pytest.mark.parametrize(
        "change",
        [
            lambda s3: s3["bucket"].update(name="another"),
            lambda s3: s3["object"].update(key="another"),
            lambda s3: s3["object"].update(versionId="another"),
            lambda s3: s3["object"].update(sequencer="0055AED6DCD90281E6"),
        ],
        ids=["bucket", "key", "version", "sequencer"],
    )
    def test_of_another_object_are_others(self, change: Any) -> None:
        other = event("s3")

        change(other["Records"][0]["s3"])

        assert keys_of(other) != [OBJECT]

    def test_of_a_schedule_are_those_of_the_moment_that_was_due(self) -> None:
        again, next_day = event("schedule_rule"), event("schedule_rule")
        again["id"] = "another id, of a rule that was triggered twice"
        next_day["time"] = "2026-01-02T06:00:00Z"

        assert keys_of(again) == keys_of(event("schedule_rule"))
        assert keys_of(next_day) != keys_of(event("schedule_rule"))

    @pytest.mark.parametrize("name", ["sqs", "sns"])
    def test_of_messages_do_not_depend_on_how_often_they_came(self, name: str) -> None:
        again = event(name)

        for record in again["Records"]:
            record["receiptHandle"] = "another"
            record.get("attributes", {})["ApproximateReceiveCount"] = "5"

        assert keys_of(again) == keys_of(event(name))

    def test_of_a_state_are_the_same_when_it_is_retried(self) -> None:
        again = event("step_functions_context")

        again["context"]["State"]["RetryCount"] = 1
        again["context"]["Task"]["Token"] = "another"

        assert keys_of(again) == keys_of(event("step_functions_context"))

    def test_of_a_state_in_a_loop_or_a_map_are_others_each_time(self) -> None:
        entered, item = event("step_functions_context"), event("step_functions_context")

        entered["context"]["State"]["EnteredTime"] = "2026-01-01T00:01:00.000Z"
        item["context"]["Map"] = {"Item": {"Index": 1, "Value": {}}}

        assert len({*keys_of(entered), *keys_of(item), *keys_of(event("step_functions_context"))}) == 3

    def test_never_show_a_task_token(self) -> None:
        trigger = triggers_of(event("step_functions_token"))[0]

        assert trigger.task_token is not None
        assert trigger.task_token not in repr(trigger)
        assert trigger.task_token[:24] not in trigger.key


class TestRequests:
    """The same header of the same caller is the same job; without one, each request is a job."""

    @pytest.fixture(params=["api_v1", "api_v2"])
    def request_event(self, request: pytest.FixtureRequest) -> Any:
        return event(request.param)

    def test_that_are_sent_again_are_the_same(self, request_event: Any) -> None:
        again = copy.deepcopy(request_event)

        again["requestContext"]["requestId"] = "another"

        assert keys_of(again) == keys_of(request_event)

    def test_of_somebody_else_are_others(self, request_event: Any) -> None:
        theirs = copy.deepcopy(request_event)

        authorizer = theirs["requestContext"]["authorizer"]
        authorizer.get("jwt", authorizer)["claims"]["sub"] = "user-2"

        assert keys_of(theirs) != keys_of(request_event)

    @pytest.mark.parametrize("change", ["method", "path"])
    def test_to_something_else_are_others(self, change: str) -> None:
        other = event("api_v2")

        other["requestContext"]["http"][change] = "another"

        assert keys_of(other) != keys_of(event("api_v2"))

    def test_without_the_header_are_each_their_own(self, request_event: Any) -> None:
        other = copy.deepcopy(request_event)
        for each in (request_event, other):
            each["headers"], each["multiValueHeaders"] = {}, {}

        other["requestContext"]["requestId"] = "another"

        assert keys_of(other) != keys_of(request_event)

    def test_may_bring_the_header_in_the_list_of_all_values_only(self) -> None:
        multi = event("api_v1")

        multi["headers"] = None

        assert keys_of(multi) == keys_of(event("api_v1"))

    @pytest.mark.parametrize("value", ["", "x" * 256, "two\nlines"])
    def test_with_a_header_that_is_no_key_are_refused(self, request_event: Any, value: str) -> None:
        names = [name for name in request_event["headers"] if name.lower() == "idempotency-key"]
        request_event["headers"][names[0]] = value

        with pytest.raises(InvalidJob, match=r"event\.headers\['Idempotency-Key'\]=.*1 to 255.*answer 400"):
            triggers_of(request_event)

    def test_that_nothing_identifies_are_refused(self) -> None:
        nameless = event("load_balancer")

        del nameless["headers"]["x-amzn-trace-id"]

        with pytest.raises(InvalidJob, match=r"requestId=None: nothing identifies.*Idempotency-Key"):
            triggers_of(nameless)

    def test_bring_their_body(self) -> None:
        binary = event("api_v2") | {"body": "/w=="}

        assert [triggers_of(event(name))[0].body for name in ("api_v1", "api_v2")] == [{"day": "2026-01-01"}] * 2
        assert triggers_of(event("function_url"))[0].body == "two words"
        assert triggers_of(binary)[0].body == b"\xff"


class TestTriggers:
    def test_of_an_object_tell_it_as_s3_knows_it(self) -> None:
        found = [triggers_of(event(name))[0].object for name in ("s3", "eventbridge_s3")]

        assert [one.key for one in found if one] == ["in/2026/red flower 100%.csv"] * 2
        assert [(one.bucket, one.size, one.version) for one in found if one] == [
            ("amzn-s3-demo-bucket", 1024, "096fKKXTRTtl3on89fVO.nfljtsv6qko")
        ] * 2
        assert [one.event for one in found if one] == ["ObjectCreated:Put", "Object Created"]

    @pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("sqs_s") and "test" not in name])
    def test_that_came_in_a_message_know_which(self, name: str) -> None:
        sent = event(name)

        assert [trigger.message_id for trigger in triggers_of(sent)] == [one["messageId"] for one in sent["Records"]]

    def test_of_a_fifo_queue_know_their_group(self) -> None:
        fair = event("sqs_fifo")
        for record in fair["Records"]:
            record["eventSourceARN"] = record["eventSourceARN"].removesuffix(".fifo")

        assert [trigger.group for trigger in triggers_of(event("sqs_fifo"))] == [
            *("north", "south"),
            *("north", "south"),
            "north",
        ]
        assert {trigger.group for trigger in triggers_of(fair)} == {None}

    @pytest.mark.parametrize(
        "name",
        [
            name
            for name in KEYS
            if KEYS[name] and "token" not in name and name not in {"load_balancer", "sqs_step_functions"}
        ],
    )
    def test_know_when(self, name: str) -> None:
        moment = triggers_of(event(name))[0].at

        assert moment is not None
        assert moment.date() == datetime(2026, 1, 1, tzinfo=UTC).date()
        assert moment.tzinfo is not None

    def test_of_a_message_bring_what_it_says(self) -> None:
        assert [trigger.body for trigger in triggers_of(event("sqs"))] == [{"order": 1}, "plain text", {"order": 3}]

    def test_of_step_functions_bring_input_and_token(self) -> None:
        found = [triggers_of(event(f"step_functions_{name}"))[0] for name in ("context", "token")]

        assert [trigger.body for trigger in found] == [{"day": "2026-01-01"}] * 2
        assert [str(trigger.task_token)[:8] for trigger in found] == ["AAAAKgAA"] * 2

    def test_of_one_message_with_several_objects_are_several(self) -> None:
        sent = event("sqs_s3")
        inner = json.loads(sent["Records"][0]["body"])
        other = copy.deepcopy(inner["Records"][0])
        other["s3"]["object"]["key"] = "another"
        sent["Records"][0]["body"] = json.dumps({"Records": [*inner["Records"], other]})

        found = triggers_of(sent)

        assert [trigger.object.key for trigger in found if trigger.object] == ["in/2026/red flower 100%.csv", "another"]
        assert {trigger.message_id for trigger in found} == {sent["Records"][0]["messageId"]}

    @pytest.mark.parametrize(
        "body",
        [
            {"Records": [{"eventSource": "aws:s3", "s3": {}}]},
            {"Records": [{"order": 1}]},
            {"Type": "Notification", "TopicArn": "arn:aws:sns:us-east-1:111122223333:t"},
            {"source": "aws.ec2", "detail-type": "no id"},
            ["a", "list"],
            "{not JSON",
            "[" * 100_000,
            None,
            7,
        ],
    )
    def test_of_a_message_that_only_looks_like_an_event_are_the_message(self, body: Any) -> None:
        sent = event("sqs")
        sent["Records"] = sent["Records"][:1]
        sent["Records"][0]["body"] = body if isinstance(body, str) else json.dumps(body)

        assert keys_of(sent) == KEYS["sqs"][:1]

    def test_of_pipes_are_those_of_the_records(self) -> None:
        assert keys_of(event("sqs")["Records"]) == KEYS["sqs"]

    @pytest.mark.parametrize("name", ["sqs", "sns", "s3"])
    def test_of_a_single_record_are_its_own(self, name: str) -> None:
        assert keys_of(event(name)["Records"][0]) == KEYS[name][:1]


class DictWrapper(Mapping[str, Any]):
    """An event object of Powertools, as far as it matters: a mapping that keeps the event as `raw_event`."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw_event = raw

    def __getitem__(self, name: str) -> Any:
        return self.raw_event[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw_event)

    def __len__(self) -> int:
        return len(self.raw_event)


class TestPowertools:
    @pytest.mark.parametrize("name", NAMES)
    def test_event_objects_are_events(self, name: str) -> None:
        assert keys_of(DictWrapper(event(name))) == KEYS[name]

    def test_records_are_records(self) -> None:
        records = [DictWrapper(record) for record in event("sqs")["Records"]]

        assert keys_of(records) == KEYS["sqs"]
        assert keys_of(records[1]) == KEYS["sqs"][1:2]


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({}, r"event='\(not shown\)': not an event of SQS.*it has no fields; give its job a key.*make_key"),
            ({"b": "secret", "a": 1}, r"it has 'a', 'b';"),
            ({"Records": [{"eventSource": "aws:kinesis"}]}, r"event\.Records\[0\]\.eventSource=.*'aws:kinesis'"),
            ({"Records": ["x"]}, r"event\.Records\[0\]=.*got str"),
            ({"Records": [{"eventSource": "aws:sns"}]}, r"event\.Records\[0\]\.Sns=.*as it is"),
            (None, r"event=.*got NoneType; pass the handler's event"),
            ("text", r"got str"),
            ([{"eventSource": "aws:sqs"}], r"event\[0\]\.messageId=None: expected a text"),
            ({"detail-type": "x", "source": "y"}, r"event\.id=None: expected a text"),
            ({"detail-type": "Scheduled Event", "source": "aws.events"}, r"event\.resources=None: expected the ARN"),
            ({"Records": [{"eventSource": "aws:s3"}]}, r"event\.Records\[0\]\.s3\.object\.key=None|s3\.bucket\.name"),
        ],
    )
    def test_is_told_by_field_value_and_fix(self, given: Any, said: str) -> None:
        with pytest.raises(InvalidJob, match=said) as told:
            triggers_of(given)

        assert "secret" not in str(told.value)


# ---- keys of one's own ---------------------------------------------------------------------------------------------

PARTS = st.lists(st.text(min_size=1) | st.integers(), min_size=1, max_size=4)


class TestMakeKey:
    def test_reads_like_a_path(self) -> None:
        assert make_key("report", "2026-11-22", 7) == "report/2026-11-22/7"

    @given(PARTS)
    def test_names_a_job_whatever_its_parts_are(self, parts: list[str | int]) -> None:
        key = make_key(*parts)

        assert Job(command=["true"], key=key).key == key == make_key(*parts)

    @given(PARTS, PARTS)
    def test_is_another_for_other_parts(self, one: list[str | int], other: list[str | int]) -> None:
        assert (make_key(*one) == make_key(*other)) == (list(map(str, one)) == list(map(str, other)))

    def test_of_long_parts_is_shortened_and_still_tells_them_apart(self) -> None:
        one, other = make_key("x" * 600, "one"), make_key("x" * 600, "other")

        assert len(one) == len(other) == 512
        assert one != other

    @pytest.mark.parametrize("parts", [(), ("",), (None,), (True,), (1.5,), ("a", b"b")])
    def test_refuses_what_is_no_text_and_no_number(self, parts: tuple[Any, ...]) -> None:
        with pytest.raises(InvalidJob, match=r"parts.*write it like make_key"):
            make_key(*parts)
