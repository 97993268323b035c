"""
The shapes in which ECS tells that a task is over, one file each, and what they mean.

A file says where its shape comes from, the task, and the expected outcome. Shapes that are ``broken`` were bent by
hand; from the whole ones, thousands more are bent at random here, and none of those may crash or become a success.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator

from fargate_runner import Cause, Kind, Phase, Proof, Snapshot
from fargate_runner._lifecycle import classify
from fargate_runner.backends.ecs import _wire

NOW = datetime(2026, 5, 6, 12, tzinfo=UTC)
MODEL: Any = botocore.session.get_session().get_service_model("ecs")
CORPUS = {path.stem: json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "corpus").glob("*.json"))}
ENDED = {name: shape for name, shape in CORPUS.items() if shape["expect"].get("phase", "ENDED") == "ENDED"}
WHOLE = {name: shape for name, shape in CORPUS.items() if not shape.get("broken")}

pytestmark = pytest.mark.sweep


def seen(shape: Mapping[str, Any]) -> Snapshot:
    return _wire.snapshot(shape["task"], shape["container"], source=shape["source"], seen_at=NOW)


def facts(last: Snapshot) -> dict[str, Any]:
    found: dict[str, Any] = {
        "phase": last.phase.name,
        "cause": last.cause.value if last.cause is not None else None,
        "exit_code": last.exit_code,
        "transient": last.transient,
    }
    return found | ({"kind": classify(last).kind.value} if last.ended else {})


def test_there_are_more_than_eighty_shapes_of_an_end() -> None:
    assert len(ENDED) >= 80


@pytest.mark.parametrize("name", CORPUS)
def test_a_shape_means_what_its_file_says(name: str) -> None:
    expected = {"phase": "ENDED"} | {k: v for k, v in CORPUS[name]["expect"].items() if not k.endswith("_has")}

    found = facts(seen(CORPUS[name]))

    assert {key: found.get(key) for key in expected} == expected


@pytest.mark.parametrize("name", [name for name in CORPUS if any(k.endswith("_has") for k in CORPUS[name]["expect"])])
def test_a_shape_says_what_its_file_wants_said(name: str) -> None:
    wanted = {k.removesuffix("_has"): v for k, v in CORPUS[name]["expect"].items() if k.endswith("_has")}

    last = seen(CORPUS[name])

    assert all(text in getattr(last, field) for field, text in wanted.items()), (wanted, last)


@pytest.mark.parametrize("name", ENDED)
def test_an_end_carries_its_proof(name: str) -> None:
    shape = ENDED[name]

    last = seen(shape)

    assert isinstance(last.proof, Proof)
    assert (last.proof.source, last.proof.seen_at) == (shape["source"], NOW)
    assert shape["task"]["taskArn"] in last.proof.evidence
    assert "console.aws.amazon.com" in last.proof.evidence


@pytest.mark.parametrize(
    "name",
    [
        n
        for n, s in ENDED.items()
        if s["expect"]["kind"] != "succeeded" and s["expect"]["cause"] != "stopped_on_request"
    ],
)
def test_an_end_that_nobody_asked_for_comes_with_advice_and_an_address(name: str) -> None:
    last = seen(ENDED[name])

    advice, _, address = last.advice.partition("; see ")

    assert advice
    assert address.startswith("https://us-east-1.console.aws.amazon.com/ecs/v2/clusters/jobs/tasks/0123")


@pytest.mark.parametrize("name", ENDED)
def test_aws_own_words_are_in_the_reason(name: str) -> None:
    task = ENDED[name]["task"]
    said = task.get("stoppedReason") or ""

    assert said.removeprefix("fargate-runner: ") in seen(ENDED[name]).reason


@pytest.mark.parametrize("name", CORPUS)
def test_times_are_in_order_and_aware(name: str) -> None:
    last = seen(CORPUS[name])

    times = [at for at in (last.created_at, last.started_at, last.ended_at) if at is not None]

    assert times == sorted(times)
    assert all(at.tzinfo is not None for at in times)


@pytest.mark.parametrize("name", [name for name in CORPUS if f"{name}--event" in CORPUS])
def test_an_event_says_the_same_as_a_reply(name: str) -> None:
    reply, event = seen(CORPUS[name]), seen(CORPUS[f"{name}--event"])

    assert facts(reply) == facts(event)
    assert (reply.reason, reply.advice) == (event.reason, event.advice)
    pairs = [
        (reply.created_at, event.created_at),
        (reply.started_at, event.started_at),
        (reply.ended_at, event.ended_at),
    ]
    assert all((one is None) == (other is None) for one, other in pairs)
    assert all(
        abs((one - other).total_seconds()) < 0.002 for one, other in pairs if one is not None and other is not None
    )


def test_every_row_of_the_table_of_reasons_has_a_shape() -> None:
    said = [
        text.lower()
        for shape in CORPUS.values()
        for text in (
            shape["task"].get("stoppedReason"),
            *(part.get("reason") for part in shape["task"].get("containers") or ()),
        )
        if text
    ]

    first = {next((row for row in _wire._REASONS if row.matches(text)), None) for text in said}

    assert [row for row in _wire._REASONS if row not in first] == []


def test_every_stop_code_and_state_of_the_model_has_a_shape() -> None:
    codes = set(MODEL.shape_for("TaskStopCode").enum)

    assert codes <= {shape["task"].get("stopCode") for shape in CORPUS.values()}
    assert set(_wire._PHASES) <= {shape["task"].get("lastStatus") for shape in CORPUS.values()}


@pytest.mark.parametrize("name", [name for name, shape in WHOLE.items() if shape["source"] != "event"])
def test_a_whole_shape_is_one_of_the_model(name: str) -> None:
    report = ParamValidator().validate(WHOLE[name]["task"], MODEL.shape_for("Task"))

    assert not report.has_errors(), report.generate_report()


# ---- bent at random ------------------------------------------------------------------------------------------------

SEEDS = 2000
UNKNOWN_TEXTS = (
    "",
    "The moon was full.",
    "Ein unerwarteter Fehler",
    "exit code 0",
    "succeeded",
    "\ud83d\ude00" * 3,
    "x" * 5000,
)
WRONG = (1, 3.5, -1, True, False, "0", "STOPPED?", [], {}, [None], {"a": None}, [{"name": "main"}], [[]])
EXTRA = (
    {"name": "aws-guardduty-agent-a1b2c3", "lastStatus": "STOPPED", "exitCode": 0, "cpu": "null"},
    {"name": "stranger", "lastStatus": "STOPPED", "exitCode": 0},
    {"name": "main", "lastStatus": "STOPPED", "exitCode": 0},
    {"name": None, "exitCode": 0},
    {"exitCode": 0},
    None,
    "main",
)
Bend = Callable[[dict[str, Any], random.Random], None]


def parts(task: dict[str, Any]) -> list[dict[str, Any]]:
    containers = task.get("containers")
    return [part for part in containers if isinstance(part, dict)] if isinstance(containers, list) else []


def somewhere(task: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    return dice.choice([task, task, *parts(task)])


def drop_a_field(task: dict[str, Any], dice: random.Random) -> None:
    place = somewhere(task, dice)
    place.pop(dice.choice([*place, "nothing"]), None)


def null_a_field(task: dict[str, Any], dice: random.Random) -> None:
    place = somewhere(task, dice)
    place[dice.choice([*place, "stopCode"])] = None


def of_another_type(task: dict[str, Any], dice: random.Random) -> None:
    place = somewhere(task, dice)
    place[dice.choice([*place, "stoppedReason"])] = copy.deepcopy(dice.choice(WRONG))


def in_unknown_words(task: dict[str, Any], dice: random.Random) -> None:
    place = somewhere(task, dice)
    place["stoppedReason" if place is task else "reason"] = dice.choice(UNKNOWN_TEXTS)


def with_an_unknown_code(task: dict[str, Any], dice: random.Random) -> None:
    task["stopCode"] = dice.choice(["InstanceRetired", "essentialcontainerexited", "Success"])


def without_a_deciding_field(task: dict[str, Any], dice: random.Random) -> None:
    task.pop(dice.choice(["stopCode", "stoppedReason", "containers", "startedAt", "desiredStatus"]), None)


def with_another_container(task: dict[str, Any], dice: random.Random) -> None:
    if isinstance(task.get("containers"), list):
        task["containers"].insert(dice.randint(0, len(task["containers"])), copy.deepcopy(dice.choice(EXTRA)))


def shuffled(task: dict[str, Any], dice: random.Random) -> None:
    if isinstance(task.get("containers"), list):
        dice.shuffle(task["containers"])


def with_a_torn_record(task: dict[str, Any], dice: random.Random) -> None:
    overrides = task.get("overrides")
    if isinstance(overrides, dict) and overrides.get("containerOverrides"):
        pairs = overrides["containerOverrides"][0]["environment"]
        for pair in pairs:
            pair["value"] = dice.choice([pair["value"][: len(pair["value"]) // 2], "", None, "!", 7])


BENDS: tuple[Bend, ...] = (
    drop_a_field,
    null_a_field,
    of_another_type,
    in_unknown_words,
    with_an_unknown_code,
    without_a_deciding_field,
    with_another_container,
    shuffled,
    with_a_torn_record,
)


def bent(seed: int) -> tuple[str, dict[str, Any]]:
    """A whole shape with one to four things changed. Nothing here turns a failure into what would prove a success."""
    dice = random.Random(seed)
    name = dice.choice(sorted(WHOLE))
    shape = copy.deepcopy(WHOLE[name])
    for bend in dice.sample(BENDS, k=dice.randint(1, 4)):
        bend(shape["task"], dice)
    return name, shape


def own_containers(shape: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    injected = "aws-guardduty-agent"
    named = [part for part in parts(shape["task"]) if part.get("name") == shape["container"]]
    return named or [
        p for p in parts(shape["task"]) if not shape["container"] and not str(p.get("name")).startswith(injected)
    ]


def is_false_success(name: str, shape: Mapping[str, Any], kind: Kind) -> bool:
    """
    Whether a success is claimed that is none.

    The shape that was bent has to have been one; and what is left of it has to prove it still: exit code 0 of the
    job's own container, which is there once, and AWS's word that a container ended the task by itself.
    """
    if kind is not Kind.SUCCEEDED:
        return False
    task, own = shape["task"], own_containers(shape)
    said = str(task.get("stoppedReason") or "").lower()
    by_itself = task.get("stopCode") == "EssentialContainerExited" or (
        not task.get("stopCode") and said.startswith("essential container") and said.endswith("exited")
    )
    has_code = len(own) == 1 and type(own[0].get("exitCode")) is int and own[0]["exitCode"] == 0
    was_one = WHOLE[name]["expect"].get("kind") == "succeeded"
    return not (was_one and by_itself and has_code)


def test_no_bent_shape_crashes_or_becomes_a_success() -> None:
    kinds: dict[Kind, int] = {}
    false: list[tuple[int, str]] = []

    for seed in range(SEEDS):
        name, shape = bent(seed)
        last = seen(shape)
        kind = classify(last).kind if last.ended else None
        if kind is not None:
            kinds[kind] = kinds.get(kind, 0) + 1
            false += [(seed, name)] if is_false_success(name, shape, kind) else []

    assert false == []
    assert kinds[Kind.SUCCEEDED] > SEEDS / 100, "the bent corpus would pass if nothing ever succeeded"
    assert kinds[Kind.UNKNOWN] > SEEDS / 100, "the bending does not reach what decides"


@pytest.mark.parametrize("seed", range(0, SEEDS, 10))
def test_no_other_reading_of_a_bent_shape_crashes(seed: int) -> None:
    task = bent(seed)[1]["task"]

    read = (
        _wire.unpack(task),
        _wire.unpack(task, task),
        _wire.needs_definition(task),
        _wire.difference({"image": "x"}, task),
        _wire.own_container(task),
        _wire.is_stopped(task),
        _wire.version(task),
        _wire.created_at(task),
        _wire.task_arn(task) + _wire.owner(task) + _wire.definition_arn(task),
        _wire.log_place(task, "arn"),
    )

    assert isinstance(read[6], int)


def exit_code_first(shape: Mapping[str, Any]) -> Kind:
    own = own_containers(shape)
    return Kind.SUCCEEDED if own and own[0].get("exitCode") == 0 else Kind.FAILED


def no_exit_code_is_zero(shape: Mapping[str, Any]) -> Kind:
    own = own_containers(shape)
    return Kind.SUCCEEDED if own and not own[0].get("exitCode") else Kind.FAILED


def any_container_counts(shape: Mapping[str, Any]) -> Kind:
    return Kind.SUCCEEDED if any(part.get("exitCode") == 0 for part in parts(shape["task"])) else Kind.FAILED


def the_first_container_counts(shape: Mapping[str, Any]) -> Kind:
    found = parts(shape["task"])
    return Kind.SUCCEEDED if found and found[0].get("exitCode") == 0 else Kind.FAILED


def words_do_not_count(shape: Mapping[str, Any]) -> Kind:
    exited = shape["task"].get("stopCode") in ("EssentialContainerExited", None)
    return exit_code_first(shape) if exited else Kind.UNKNOWN


@pytest.mark.parametrize(
    "naive",
    [exit_code_first, no_exit_code_is_zero, any_container_counts, the_first_container_counts, words_do_not_count],
)
def test_the_bent_corpus_finds_a_naive_reading(naive: Callable[[Mapping[str, Any]], Kind]) -> None:
    false = [name for name, shape in map(bent, range(SEEDS)) if is_false_success(name, shape, naive(shape))]

    assert false


def test_what_was_seen_on_the_way_tells_who_ended_first() -> None:
    tie = CORPUS["sidecar-essential-both-0"]
    job_first, sidecar_first = seen(CORPUS["live-job-ended-first"]), seen(CORPUS["live-sidecar-ended-first"])

    after_job, after_sidecar = (
        _wire.snapshot(tie["task"], "main", source="describe", seen_at=NOW, before=before)
        for before in (job_first, sidecar_first)
    )

    assert (after_job.cause, after_job.exit_code) == (Cause.EXITED, 0)
    assert after_sidecar.cause is Cause.SIDECAR_ENDED


@pytest.mark.parametrize("name", CORPUS)
def test_a_phase_never_goes_back(name: str) -> None:
    later = seen(CORPUS[name])

    again = _wire.snapshot(CORPUS["live-provisioning"]["task"], "main", source="describe", seen_at=NOW, before=later)

    assert again.phase >= later.phase
    assert (again is later) is (later.phase is Phase.ENDED)


@pytest.mark.parametrize(
    ("changes", "capacity", "platform"),
    [
        ({}, "FARGATE", "linux/x86_64"),
        ({"capacityProviderName": "FARGATE_SPOT"}, "FARGATE_SPOT", "linux/x86_64"),
        ({"capacityProviderName": None, "launchType": "EC2"}, "EC2", "linux/x86_64"),
        ({"capacityProviderName": None, "launchType": ["FARGATE"]}, "", "linux/x86_64"),
        ({"platformFamily": "Windows Server 2022 Core"}, "FARGATE", "windows/x86_64"),
        ({"platformFamily": "WINDOWS_SERVER_2022_CORE"}, "FARGATE", "windows/x86_64"),
        ({"attributes": [{"name": "ecs.cpu-architecture", "value": "arm64"}]}, "FARGATE", "linux/arm64"),
        ({"attributes": None}, "FARGATE", ""),
        ({"platformFamily": "\x1b[2Jlinux"}, "FARGATE", ""),
    ],
    ids=str,
)
def test_what_a_price_goes_by_is_read(changes: dict[str, Any], capacity: str, platform: str) -> None:
    task = {**CORPUS["live-provisioning"]["task"], "capacityProviderName": "FARGATE", **changes}

    seen = _wire.snapshot(task, "main", source="describe", seen_at=NOW)

    assert (seen.capacity, seen.platform) == (capacity, platform)


def test_what_a_price_goes_by_outlives_a_reply_that_does_not_tell() -> None:
    before = Snapshot(phase=Phase.RUNNING, capacity="FARGATE_SPOT", platform="linux/arm64")

    for seen in (
        _wire.snapshot({"lastStatus": "RUNNING"}, "main", source="event", seen_at=NOW, before=before),
        _wire.missing("arn:aws:ecs:us-east-1:1:task/c/t", seen_at=NOW, last=before),
    ):
        assert (seen.capacity, seen.platform) == ("FARGATE_SPOT", "linux/arm64")
