"""What holds for every job and every reply, not only for those that somebody thought of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import botocore.session
import pytest
from botocore.validate import ParamValidator
from hypothesis import given, settings
from hypothesis import strategies as st

from fargate_runner import Cause, HealthCheck, Identity, Job, Phase, Secret, SecretRef, Sidecar, Size
from fargate_runner.backends.ecs import _wire
from fargate_runner.backends.ecs._config import (
    Capacity,
    EbsVolume,
    EcsOptions,
    EfsVolume,
    LogGroup,
    Network,
    Provider,
    Roles,
)
from fargate_runner.backends.ecs._wire import Spill

NOW = datetime(2026, 5, 6, 12, tzinfo=UTC)
ROLE = "arn:aws:iam::111122223333:role/r"
NETWORK = Network(subnets=["subnet-0a1b2c3d"])
MODEL: Any = botocore.session.get_session().get_service_model("ecs")

pytestmark = pytest.mark.sweep

# ---- jobs ----------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True)
ours = st.sampled_from(["FARGATE_RUNNER_KEY", "FARGATE_RUNNER_ATTEMPT", "FARGATE_RUNNER_NAMESPACE", _wire.RECORD])
variables = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,15}", fullmatch=True) | ours
words = st.lists(texts, min_size=1, max_size=4)
envs = st.dictionaries(variables, texts, max_size=4)
references = st.sampled_from(["arn:aws:ssm:us-east-1:1:parameter/a", "arn:aws:secretsmanager:us-east-1:1:secret:a:b::"])
secrets = st.dictionaries(
    st.from_regex(r"SECRET_[A-Z]{1,5}", fullmatch=True),
    references.map(SecretRef) | st.just("canary").map(Secret),
    max_size=2,
)
seconds = st.integers(2, 120).map(lambda n: timedelta(seconds=n))
health = st.builds(HealthCheck, command=words, retries=st.integers(1, 10))


@st.composite
def options(draw: st.DrawFn) -> EcsOptions:
    rungs = st.sampled_from(
        [
            Capacity.fargate(),
            Capacity.spot(platform_version="1.4.0"),
            Capacity.providers([Provider(name="FARGATE", base=1), Provider(name="FARGATE_SPOT", weight=3)]),
        ]
    )
    volumes = st.sampled_from(
        [
            EfsVolume(path="/a", file_system_id="fs-0a1b2c3d", access_point="fsap-0a1b2c3d"),
            EbsVolume(path="/b", role=ROLE, size_gib=10),
            EfsVolume(path="/c", file_system_id="fs-0a1b2c3d", name="volume-1"),
        ]
    )
    return EcsOptions(
        capacity=draw(st.none() | st.lists(rungs, min_size=1, max_size=3)),
        network=draw(st.none() | st.just(NETWORK)),
        roles=draw(st.none() | st.builds(Roles, task=st.none() | st.just("reader"))),
        volumes=draw(st.none() | st.lists(volumes, unique=True, max_size=3)),
        group=draw(st.none() | names),
        init_process=draw(st.none() | st.booleans()),
        user=draw(st.none() | st.just("1000:1000")),
    )


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    size = draw(st.sampled_from(list(Size.all())))
    side_names = draw(st.lists(names, max_size=3, unique=True))
    own = draw(names.filter(lambda name: name not in side_names))
    sides = [
        Sidecar(
            name=name,
            image="side:1",
            command=draw(st.none() | words),
            env=draw(envs),
            secrets=draw(secrets),
            essential=draw(st.booleans()),
            health_check=draw(st.none() | health),
            memory_gib=draw(st.none() | st.just(0.125)),
        )
        for name in side_names
    ]
    waits: dict[str, Any] = {
        side.name: draw(st.sampled_from(["START", *([] if side.essential else ["SUCCESS"])])) for side in sides
    }
    return Job(
        image=draw(st.sampled_from(["registry/job:1", "job@sha256:" + "0" * 64])),
        command=draw(st.none() | words),
        entry_point=draw(st.none() | words),
        name=draw(names),
        env=draw(envs),
        secrets=draw(secrets),
        working_directory=draw(st.none() | st.just("/srv")),
        vcpu=size.vcpu,
        memory_gib=size.memory_gib,
        ephemeral_storage_gib=draw(st.none() | st.integers(21, 200)),
        architecture=draw(st.sampled_from([None, "X86_64", "ARM64"])),
        timeout=draw(st.none() | seconds),
        stop_timeout=draw(seconds),
        tags=draw(
            st.dictionaries(
                st.from_regex(r"[a-z]{1,9}", fullmatch=True), st.from_regex(r"[a-z ]{0,9}", fullmatch=True), max_size=3
            )
        ),
        container_name=own,
        sidecars=sides,
        depends_on=draw(st.none() | st.just(waits)) if sides else None,
        ecs=draw(st.none() | options()),
    )


identities = st.builds(
    Identity,
    namespace=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True),
    key=st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=512),
    attempt=st.integers(1, 99),
    placement=st.integers(1, 99),
)


@st.composite
def spills(draw: st.DrawFn, job: Job) -> Spill:
    env = frozenset(draw(st.sets(st.sampled_from(sorted(job.env))))) if job.env else frozenset[str]()
    return Spill(command=draw(st.booleans()) and job.command is not None, env=env)


def launched(job: Job, identity: Identity, spill: Spill) -> tuple[dict[str, Any], dict[str, Any]]:
    said: EcsOptions = attrs.evolve(job.ecs) if isinstance(job.ecs, EcsOptions) else EcsOptions()
    kept = dict.fromkeys(job.secrets, "/kept") | {
        f"{s.name}/{name}": "/kept" for s in job.sidecars for name in s.secrets
    }
    body = _wire.definition(
        job,
        roles=Roles(execution=ROLE),
        log_group=LogGroup(),
        options=said,
        region="us-east-1",
        secret_names=kept,
        spill=spill,
    )
    request = _wire.run_task(
        job,
        identity,
        cluster="jobs",
        task_definition="f:1",
        body=body,
        token="t",
        capacity=_wire.rung(said.capacity or (Capacity.fargate(),), identity),
        network=NETWORK,
        options=said,
        spill=spill,
    )
    return body, request


@settings(deadline=None, max_examples=200)
@given(data=st.data(), job=jobs(), identity=identities)
def test_every_job_is_told_by_its_task_as_it_describes_itself(
    data: st.DataObject, job: Job, identity: Identity
) -> None:
    spill = data.draw(spills(job))

    body, request = launched(job, identity, spill)
    task = json.loads(json.dumps(request))
    found = _wire.unpack(task, json.loads(json.dumps(body)))

    assert found is not None
    assert (found.description, found.identity) == (json.loads(json.dumps(job.describe())), identity)
    assert found.container == job.container_name
    assert found.essential == tuple(sorted(side.name for side in job.sidecars if side.essential))
    assert _wire.difference(job.describe(), task, body) == ()
    assert _wire.difference(job.describe(), task) == ()


@settings(deadline=None, max_examples=150)
@given(data=st.data(), job=jobs(), identity=identities)
def test_every_request_is_one_that_botocore_takes(data: st.DataObject, job: Job, identity: Identity) -> None:
    body, request = launched(job, identity, data.draw(spills(job)))

    for operation, sent in (("RegisterTaskDefinition", {"family": "f", **body}), ("RunTask", request)):
        report = ParamValidator().validate(sent, MODEL.operation_model(operation).input_shape)
        assert not report.has_errors(), report.generate_report()
    assert len(request["startedBy"]) <= 128
    assert sum(_wire.overrides_by_field(request).values()) == _wire.overrides_length(request)
    assert "canary" not in json.dumps([body, request])


@settings(deadline=None, max_examples=100)
@given(data=st.data(), job=jobs(), identity=identities)
def test_the_container_gets_exactly_the_environment_of_the_job(
    data: st.DataObject, job: Job, identity: Identity
) -> None:
    body, request = launched(job, identity, data.draw(spills(job)))

    defined = body["containerDefinitions"][0].get("environment", [])
    overridden = request["overrides"]["containerOverrides"][0]["environment"]
    got = {pair["name"]: pair["value"] for pair in [*defined, *overridden]}

    record = got.pop(_wire.RECORD)
    assert got == {k: v for k, v in (identity.variables | dict(job.env)).items() if k != _wire.RECORD}
    assert record != job.env.get(_wire.RECORD)


@settings(max_examples=200)
@given(env=st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,9}", fullmatch=True), texts, max_size=8))
def test_an_environment_file_says_each_variable_once_or_leaves_it(env: dict[str, str]) -> None:
    text, left = _wire.env_file(env)

    # As the agent reads it: a variable for each line, cut at the first equals sign.
    read = dict(line.split("=", 1) for line in text.split("\n") if line)

    assert read | left == env
    assert read.keys().isdisjoint(left)
    assert all(read.values())


# ---- replies -------------------------------------------------------------------------------------------------------

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
states = st.sampled_from([*_wire._PHASES, "HIBERNATING"]) | anything
codes = st.sampled_from(["EssentialContainerExited", "TaskFailedToStart", "UserInitiated", "SpotInterruption", "New"])
reasons = st.sampled_from(
    ["Essential container in task exited", "Your Spot Task was interrupted.", "OutOfMemoryError: x", "InternalError: x"]
)
times = st.floats(0, 4e9) | st.datetimes(timezones=st.just(UTC)) | st.just("2026-05-06T11:02:13.5Z") | anything
replies = st.fixed_dictionaries(
    {},
    optional={
        "taskArn": st.just("arn:aws:ecs:us-east-1:111122223333:task/jobs/a") | anything,
        "lastStatus": states,
        "desiredStatus": st.sampled_from(["RUNNING", "STOPPED"]) | anything,
        "stopCode": codes | anything,
        "stoppedReason": reasons | anything,
        "createdAt": times,
        "startedAt": times,
        "stoppedAt": times,
        "stoppingAt": times,
        "executionStoppedAt": times,
        "overrides": anything,
        "containers": st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "name": st.sampled_from(["main", "proxy", "aws-guardduty-agent-x"]) | anything,
                    "exitCode": st.sampled_from([0, 1, 137, 143]) | anything,
                    "reason": reasons | anything,
                    "lastStatus": states,
                    "runtimeId": anything,
                },
            )
            | anything,
            max_size=3,
        )
        | anything,
    },
)


@settings(deadline=None, max_examples=500)
@given(task=replies, container=st.sampled_from(["main", ""]), source=st.sampled_from(["describe", "event", "run-task"]))
def test_no_reply_crashes_and_success_needs_its_proof(task: dict[str, Any], container: str, source: str) -> None:
    last = _wire.snapshot(task, container, source=source, seen_at=NOW)

    moments = [at for at in (last.created_at, last.started_at, last.ended_at) if at is not None]
    assert moments == sorted(moments)
    assert last.ended is (_wire.is_stopped(task) and last.proof is not None)
    assert last.cause is not Cause.EXITED or last.exit_code is not None
    if last.ended and last.cause is Cause.EXITED and last.exit_code == 0:
        assert is_proven(task)


def is_proven(task: Mapping[str, Any]) -> bool:
    by_code = task.get("stopCode") == "EssentialContainerExited"
    by_words = task.get("stopCode") in (None, "") and task.get("stoppedReason") == "Essential container in task exited"
    return (by_code or by_words) and any(
        type(part.get("exitCode")) is int and part["exitCode"] == 0 and not part.get("reason")
        for part in task["containers"]
        if isinstance(part, dict)
    )


@settings(deadline=None, max_examples=200)
@given(story=st.lists(replies, min_size=2, max_size=5))
def test_a_story_told_in_any_order_never_goes_back(story: list[dict[str, Any]]) -> None:
    told: list[Any] = []

    for task in story:
        told.append(_wire.snapshot(task, "main", source="event", seen_at=NOW, before=told[-1] if told else None))

    assert [last.phase for last in told] == sorted(last.phase for last in told)
    first_end = next((last for last in told if last.phase is Phase.ENDED), told[-1])
    assert told[-1] is first_end or told[-1].phase is not Phase.ENDED


@settings(max_examples=200)
@given(value=anything)
def test_no_failures_list_crashes(value: Any) -> None:
    refused = _wire.refusal({"failures": value})

    assert refused.kind in {"capacity", "quota", "transient", "fatal"}
    assert refused.reason


@pytest.mark.parametrize(
    "read", [_wire.stopping, _wire.started, _wire.request_id, _wire.own_container, _wire.log_place]
)
@settings(max_examples=50)
@given(reply=st.dictionaries(st.sampled_from(["task", "tasks", "ResponseMetadata", "containers"]), anything))
def test_no_reply_crashes_a_reader(read: Callable[..., Any], reply: dict[str, Any]) -> None:
    more = ["arn"] if read is _wire.log_place else []

    read(reply, *more)
