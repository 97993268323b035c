"""
The policy of a configuration against what is asked of AWS under it: nothing is missing, and nothing is spare.

Each configuration lives through everything that a runner does: jobs that end, fail, are stopped, met again, found and
reaped, their lines read from the end and from the beginning, one by one and many at a time.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import attrs
import cfnlint
import pytest
from botocore import xform_name
from botocore.loaders import Loader

from fargate_runner import (
    DynamoDBJournal,
    EbsVolume,
    EcsBackend,
    EcsOptions,
    InvalidJob,
    Job,
    JobHandle,
    LogGroup,
    Roles,
    Runner,
    Secret,
)
from fargate_runner.infrastructure import UNSCOPED, Access, Policy, caller_policy, doctor_policy, execution_policy
from fargate_runner.testing.aws import FakeAws
from fargate_runner.testing.clock import VirtualClock
from tests.aws.account import definition
from tests.contract.ecs_words import Words
from tests.ecs.conftest import NETWORK
from tests.infrastructure.iam import ACCOUNT, Need, actions, allowed, needs
from tests.journal.table import REGION, dynamodb
from tests.test_house import HEAVY, loaded_by

NAMESPACE = "tests"
ECS = f"arn:aws:ecs:us-east-1:{ACCOUNT}"
EXECUTION, TASK, VOLUMES = (f"arn:aws:iam::{ACCOUNT}:role/{name}" for name in ("execution", "task", "volumes"))
ROLES = Roles(execution=EXECUTION, task=TASK)
REFERENCE: Mapping[str, Any] = json.loads(
    (Path(cfnlint.__file__).parent / "data/AdditionalSpecs/Policies.json").read_text()
)
"""The Service Authorization Reference, as cfn-lint brings it."""


def made_backend(aws: FakeAws, clock: VirtualClock, **options: Any) -> EcsBackend:
    known: dict[str, Any] = {"cluster": "jobs", "network": NETWORK, "roles": ROLES, "session": aws.session()}
    known |= {"region": aws.region, "utcnow": clock.utcnow}
    return EcsBackend(**known | options)


async def everything(backend: EcsBackend, *, job: Job | None = None, namespace: str = NAMESPACE) -> None:
    """Do all that a runner can do with jobs, through two lives of it."""
    words = Words()
    plain = words.prints("one", "two") if job is None else job
    endless = words.waits() if job is None else job.with_(command=["waits"])
    async with Runner(backend, namespace=namespace, on_exit="detach") as runner:
        await runner.run(plain.with_(key="first"))
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                handle = await runner.submit(plain.with_(key=f"many/{number}"))
                tasks.start_soon(read, handle)
        handle = await runner.submit(endless.with_(key="stopped"))
        await until_a_line(handle)
        await handle.stop("enough")
        await handle.wait()
        await runner.submit(endless.with_(key="left"))
        await runner.submit(endless.with_(key="overdue", timeout=timedelta(minutes=10)))
    await anyio.sleep(1200)
    async with Runner(backend, namespace=namespace, on_exit="detach") as runner:
        met = await runner.attach("left")
        await until_a_line(met)
        await met.stop("enough")
        await met.wait()
        assert [one.key for one in await runner.reap()] == ["overdue"]


async def read(handle: JobHandle) -> list[str]:
    return [line.text async for line in handle.logs()]


async def until_a_line(handle: JobHandle) -> None:
    async with aclosing(handle.logs()) as lines:
        async for _ in lines:
            break


async def attended(policy: Policy, aws: FakeAws) -> None:
    compare(policy, [need for call in aws.calls for need in needs(call.called, call.request)])


def compare(policy: Policy, needed: Iterable[Need]) -> None:
    """Hold *policy* to what was needed, both ways."""
    needed = list(needed)
    refused = [need for need in needed if not allowed(policy, need)]

    assert not refused
    assert actions(policy) == {need.action for need in needed}


@attrs.frozen
class Case:
    """A configuration, what its policy has to be told beside, and the job that it runs."""

    options: Mapping[str, Any] = attrs.field(factory=dict)
    more: Mapping[str, Any] = attrs.field(factory=dict)
    job: Job | None = None


PRINTS = Words().prints("one")
EBS = EbsVolume(path="/data", role=VOLUMES, size_gib=10)
CASES = {
    "derived": Case(),
    "one namespace": Case(more={"namespace": NAMESPACE}),
    "tags": Case({"tags": {"team": "reports"}}),
    "tags of jobs": Case(more={"tags": True}, job=PRINTS.with_(tags={"team": "reports"})),
    "retention": Case({"log_group": LogGroup(name="/kept", retention_days=30)}),
    "a group that is there": Case({"log_group": LogGroup(name="/there", create=False)}),
    "events": Case({"events": "jobs-events"}),
    "events by URL": Case({"events": f"https://sqs.us-east-1.amazonaws.com/{ACCOUNT}/jobs-events"}),
    "existing": Case(
        {"options": EcsOptions(task_definition="job"), "log_group": "/jobs"},
        more={"roles": [EXECUTION]},
        job=Job(command=["prints", "one"]),
    ),
    "a revision": Case(
        {"options": EcsOptions(task_definition="job:1"), "log_group": "/jobs"},
        job=Job(command=["prints", "one"]),
    ),
    "existing of single jobs": Case(
        more={"definitions": ["job"], "read_log_groups": ["/jobs"]},
    ),
    "spill": Case({"spill_to": "s3://variables/of/jobs"}, job=PRINTS.with_(env={"LONG": "x" * 9000})),
    "secrets": Case({"secret_prefix": "/jobs/secrets"}, job=PRINTS.with_(secrets={"TOKEN": Secret("t0k3n")})),
    "volumes": Case({"options": EcsOptions(volumes=[EBS])}),
    "cluster by ARN": Case({"cluster": f"arn:aws:ecs:us-east-1:{ACCOUNT}:cluster/jobs"}),
}


class TestWhatIsAsked:
    @pytest.mark.parametrize("name", CASES)
    async def test_is_what_the_policy_allows(self, name: str, aws: FakeAws, clock: VirtualClock) -> None:
        case = CASES[name]
        aws.logs.create_group("/jobs")
        aws.logs.create_group("/there")
        await prepare_account(aws, case)
        backend = made_backend(aws, clock, **case.options)
        aws.calls.clear()

        await everything(backend, job=case.job)
        if name == "existing of single jobs":
            async with Runner(backend, namespace=NAMESPACE) as runner:
                ecs = EcsOptions(task_definition="job")
                assert (await runner.run(Job(command=["prints", "one"], ecs=ecs))).succeeded

        policy = caller_policy(Access.of(backend, account=ACCOUNT, **case.more))
        await attended(policy, aws)

    async def test_chores_are_allowed_where_they_are_wanted(self, aws: FakeAws, clock: VirtualClock) -> None:
        backend = made_backend(aws, clock, events="jobs-events")

        await backend.make_events()
        await backend.make_events()
        await everything(backend)
        await anyio.sleep(timedelta(days=60).total_seconds())
        async with backend, made_backend(aws, clock) as other:
            assert await other.prune(NAMESPACE)
        await backend.drop_events()

        chores = ["make-events", "prune"]
        await attended(caller_policy(Access.of(backend, account=ACCOUNT, chores=chores)), aws)

    async def test_discovery(self, aws: FakeAws, clock: VirtualClock) -> None:
        backend = await EcsBackend.discover(session=aws.session(), region=aws.region, roles=ROLES, utcnow=clock.utcnow)

        await everything(backend)

        access = Access.of(backend, account=ACCOUNT, chores=["discover"])
        policy = caller_policy(access)
        needed = [need for call in aws.calls for need in needs(call.called, call.request)]
        assert all(allowed(policy, need) for need in needed)
        # Read in a task of ECS only, to see the network that it is in.
        assert actions(policy) - {need.action for need in needed} == {"ec2:DescribeNetworkInterfaces"}


async def prepare_account(aws: FakeAws, case: Case) -> None:
    logs = {"awslogs-group": "/jobs", "awslogs-region": aws.region, "awslogs-stream-prefix": "theirs"}
    container = {"name": "main", "image": "busybox:1", "logConfiguration": {"logDriver": "awslogs", "options": logs}}
    body = definition("job", containerDefinitions=[container], executionRoleArn=EXECUTION)
    await aws.call("ecs", "RegisterTaskDefinition", body)
    if "spill_to" in case.options:
        await aws.call("s3", "CreateBucket", {"Bucket": "variables"})
    if "events" in case.options:
        maker = EcsBackend("jobs", events="jobs-events", session=aws.session(), region=aws.region)
        await maker.make_events()


class TestJournal:
    @pytest.fixture
    def table(self) -> Generator[Any]:
        with dynamodb() as session:
            yield session

    @pytest.mark.parametrize("namespace", [None, NAMESPACE])
    async def test_is_what_the_policy_allows(
        self, namespace: str | None, table: Any, aws: FakeAws, clock: VirtualClock
    ) -> None:
        journal = DynamoDBJournal("fargate-jobs", session=table)
        backend = made_backend(aws, clock)
        await journal.create_table()
        async with Runner(backend, journal=journal, namespace=NAMESPACE, on_exit="detach") as runner:
            await runner.run(Words().exits().with_(key="one"))
            await runner.submit(Words().waits().with_(key="two"))
        async with Runner(backend, journal=journal, namespace=NAMESPACE) as runner:
            await runner.recover()
            await journal.forget("one")
            await journal.prune(ended_before=clock.utcnow())

        access = Access(
            region=REGION,
            account=ACCOUNT,
            cluster="jobs",
            journal="fargate-jobs",
            namespace=namespace,
            chores=["make-journal"],
        )
        policy = caller_policy(access)
        mine = [one for one in policy["Statement"] if one["Action"][0].startswith("dynamodb:")]
        model = Loader().load_service_model("dynamodb", "service-2")
        operations = {xform_name(name): name for name in model["operations"]}
        asked = [(f"dynamodb.{operations[name]}", request) for name, request in table.requests]
        compare(
            policy | {"Statement": mine},
            [need for called, request in asked for need in needs(called, request, region=REGION)],
        )

    def test_another_namespace_is_not_allowed(self) -> None:
        policy = caller_policy(WHOLE)
        request = {"TableName": "fargate-jobs", "Key": {"namespace": {"S": "others"}, "key": {"S": "k"}}}

        (need,) = needs("dynamodb.GetItem", request)

        assert not allowed(policy, need)


WHOLE = Access(
    region="us-east-1",
    account=ACCOUNT,
    cluster="jobs",
    roles=[EXECUTION, TASK],
    volume_roles=[VOLUMES],
    definitions=["job", "report:7"],
    log_group=LogGroup(name="/jobs", retention_days=30),
    read_log_groups=["/reports"],
    namespace=NAMESPACE,
    tags=True,
    events="jobs-events",
    journal="fargate-jobs",
    spill_to="s3://variables/jobs",
    secret_prefix="/jobs/secrets",
    chores=["discover", "make-events", "make-journal", "prune"],
)
EVERY = {
    "whole": caller_policy(WHOLE),
    "a group that is there": caller_policy(attrs.evolve(WHOLE, log_group=LogGroup(name="/jobs", create=False))),
    "execution": execution_policy(WHOLE),
    "doctor": doctor_policy(WHOLE),
}


@pytest.mark.parametrize("policy", EVERY.values(), ids=EVERY)
class TestEveryStatement:
    def test_has_a_name_of_its_own(self, policy: Policy) -> None:
        sids = [statement["Sid"] for statement in policy["Statement"]]

        assert len(set(sids)) == len(sids)
        assert all(sid.isalnum() for sid in sids)

    def test_names_actions_that_exist(self, policy: Policy) -> None:
        for action in actions(policy):
            service, _, name = action.partition(":")
            assert name.lower() in {known.lower() for known in REFERENCE[service]["Actions"]}

    def test_is_for_everything_only_where_AWS_has_no_resource(self, policy: Policy) -> None:
        unscoped = {
            action
            for statement in policy["Statement"]
            if "*" in statement["Resource"]
            for action in statement["Action"]
        }

        assert unscoped <= set(UNSCOPED)
        for action in unscoped - {"ecs:ListTasks"}:  # its resource is a container instance
            service, _, name = action.partition(":")
            assert not _known(service, name).get("Resources")

    def test_names_resources_where_AWS_has_them(self, policy: Policy) -> None:
        for statement in policy["Statement"]:
            for action in statement["Action"]:
                if "*" not in statement["Resource"]:
                    service, _, name = action.partition(":")
                    assert _known(service, name).get("Resources")


def _known(service: str, action: str) -> Mapping[str, Any]:
    known = REFERENCE[service]["Actions"]
    return next(known[name] for name in known if name.lower() == action.lower())


class TestWhatIsNotAsked:
    """Somebody else's of everything."""

    @pytest.mark.parametrize(
        ("called", "request_"),
        [
            ("ecs.RunTask", {"cluster": "others", "taskDefinition": f"{ECS}:task-definition/job:1"}),
            ("ecs.RunTask", {"cluster": "jobs", "taskDefinition": f"{ECS}:task-definition/theirs:1"}),
            ("ecs.RunTask", {"cluster": "jobs", "taskDefinition": f"{ECS}:task-definition/report:8"}),
            ("ecs.RunTask", {"cluster": "jobs", "taskDefinition": f"{ECS}:task-definition/fr-others-job-1:1"}),
            ("ecs.StopTask", {"cluster": "others", "task": f"{ECS}:task/others/0123456789abcdef"}),
            ("ecs.DescribeTasks", {"cluster": "others", "tasks": [f"{ECS}:task/others/0123456789abcdef"]}),
            ("ecs.ListTasks", {"cluster": "others"}),
            ("ecs.RegisterTaskDefinition", {"family": "theirs"}),
            (
                "ecs.RegisterTaskDefinition",
                {"family": "fr-tests-x", "taskRoleArn": f"arn:aws:iam::{ACCOUNT}:role/admin"},
            ),
            ("logs.GetLogEvents", {"logGroupName": "/theirs", "logStreamName": "fr/main/1"}),
            ("logs.GetLogEvents", {"logGroupName": "/jobs", "logStreamName": "theirs/main/1"}),
            ("logs.FilterLogEvents", {"logGroupName": "/theirs"}),
            ("sqs.ReceiveMessage", {"QueueUrl": f"https://sqs.us-east-1.amazonaws.com/{ACCOUNT}/theirs"}),
            ("sqs.SendMessage", {"QueueUrl": f"https://sqs.us-east-1.amazonaws.com/{ACCOUNT}/jobs-events"}),
            ("events.PutTargets", {"Rule": "jobs-events", "Targets": [{"Arn": "arn:aws:sqs:us-east-1:1:theirs"}]}),
            ("s3.PutObject", {"Bucket": "variables", "Key": "theirs/x.env"}),
            ("s3.GetObject", {"Bucket": "variables", "Key": "jobs/x.env"}),
            ("ssm.PutParameter", {"Name": "/jobs/secrets/others/x/TOKEN"}),
            ("dynamodb.Scan", {"TableName": "fargate-jobs"}),
            ("dynamodb.DeleteTable", {"TableName": "fargate-jobs"}),
        ],
    )
    def test_is_not_allowed(self, called: str, request_: dict[str, Any]) -> None:
        policy = caller_policy(WHOLE)

        assert not all(allowed(policy, need) for need in needs(called, request_))

    def test_nothing_heavy_is_loaded_for_it(self) -> None:
        assert not loaded_by("import fargate_runner.infrastructure") & HEAVY


class TestExecutionRole:
    def test_reads_what_the_caller_keeps(self) -> None:
        execution, caller = execution_policy(WHOLE), caller_policy(WHOLE)
        where = {one["Sid"]: one["Resource"] for one in [*execution["Statement"], *caller["Statement"]]}

        assert where["ReadSecrets"] == where["KeepSecrets"]
        assert where["ReadVariables"] == where["KeepVariables"]

    def test_writes_lines_where_they_are_to_be(self) -> None:
        elsewhere = attrs.evolve(WHOLE, log_group=LogGroup(name="/jobs", region="eu-west-1"), read_log_groups=[])

        where = {one["Sid"]: one["Resource"] for one in execution_policy(elsewhere)["Statement"]}

        assert where["WriteLines"] == [f"arn:aws:logs:eu-west-1:{ACCOUNT}:log-group:/jobs:log-stream:fr/*"]
        # The backend asks for lines in its own region only.
        assert not any(action.startswith("logs:") for action in actions(caller_policy(elsewhere)))

    def test_reads_nothing_that_nobody_keeps(self) -> None:
        plain = Access(region="us-east-1", account=ACCOUNT, cluster="jobs")

        assert {action.partition(":")[0] for action in actions(execution_policy(plain))} == {"ecr", "logs"}


class TestAccess:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("account", "1234"),
            ("region", "mars"),
            ("cluster", "*"),
            ("cluster", ""),
            ("roles", ["*"]),
            ("definitions", ["fr-*"]),
            ("namespace", "a*"),
            ("events", "jobs-*"),
            ("journal", "*"),
            ("spill_to", "s3://bucket/*"),
            ("secret_prefix", "jobs"),
            ("read_log_groups", ["/jobs*"]),
            ("chores", ["dishes"]),
        ],
    )
    def test_refuses_what_would_allow_something_else(self, field: str, value: Any) -> None:
        known: dict[str, Any] = {"region": "us-east-1", "account": ACCOUNT, "cluster": "jobs"}

        with pytest.raises(InvalidJob) as caught:
            Access(**known | {field: value})

        assert caught.value.field == field

    def test_other_parts_of_AWS_have_other_names(self) -> None:
        access = Access(region="cn-north-1", account=ACCOUNT, cluster="jobs", roles=["task"])

        text = json.dumps(caller_policy(access))

        assert "arn:aws-cn:" in text
        assert "arn:aws:" not in text

    def test_the_same_configuration_gives_the_same_text(self) -> None:
        again = attrs.evolve(WHOLE, chores=sorted(WHOLE.chores, reverse=True))

        assert json.dumps(caller_policy(again)) == json.dumps(caller_policy(WHOLE))
