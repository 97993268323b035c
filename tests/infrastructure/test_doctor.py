"""
The doctor over an account that is well, and over that account broken in one place at a time.

Each check has its green line, its red ones, and the one where it may not look. What is not broken stays as it was.
"""

from __future__ import annotations

import json
import math
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest

from fargate_runner import (
    Capacity,
    DynamoDBJournal,
    EbsVolume,
    EcsBackend,
    EcsOptions,
    InvalidJob,
    Job,
    LogGroup,
    MemoryBackend,
    MemoryJournal,
    Network,
    Provider,
    Roles,
    Secret,
    SecretRef,
    Sidecar,
)
from fargate_runner.infrastructure import Access, Finding, State, diagnose, doctor_policy
from fargate_runner.testing.aws import FakeAws, Fault, denied, throttled
from fargate_runner.testing.aws._service import RealClock
from fargate_runner.testing.clock import VirtualClock
from tests.aws.account import definition
from tests.ecs.test_discover import endpoint
from tests.infrastructure.iam import ACCOUNT
from tests.infrastructure.patient import (
    EXECUTION,
    IMAGE,
    OTHER_VPC,
    PRIVATE,
    PUBLIC,
    REGION,
    TASK,
    TRUST,
    Patient,
    Role,
    bad,
    index,
    of,
    only,
    single,
)

SECRET = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:db-AbCdEf"
PARAMETER = f"arn:aws:ssm:{REGION}:{ACCOUNT}:parameter/jobs/token"
GROUP = "sg-0de0de0de0de0de0d"
WITHOUT_IP = Network(subnets=[PUBLIC], security_groups=[GROUP])
PRIVATELY = Network(subnets=[PRIVATE], security_groups=[GROUP])


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("FARGATE_RUNNER_", "ECS_CONTAINER_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def patient(clock: VirtualClock) -> Patient:
    return Patient(clock)


EVERYTHING: dict[str, Any] = {
    "events": "jobs-events",
    "spill_to": "s3://variables/jobs",
    "secret_prefix": "/jobs/secrets",
    "tags": {"team": "reports"},
    "journal": "fargate-jobs",
}


CLOSED: dict[str, Any] = EVERYTHING | {"network": PRIVATELY}
"""In subnets whose only ways out are endpoints."""
ALL = ("ecr.api", "ecr.dkr", "s3", "logs")


async def prepare(patient: Patient) -> None:
    """Make what `EVERYTHING` names."""
    await patient.backend(events="jobs-events").make_events()
    await patient.aws.call("s3", "CreateBucket", {"Bucket": "variables"})
    patient.aws.calls.clear()


class TestAWholeAccount:
    async def test_is_well_in_every_line(self, patient: Patient) -> None:
        await prepare(patient)

        found = await patient.examined(**EVERYTHING)

        assert bad(found) == []
        assert [finding.check for finding in found] == [
            *("credentials", "cluster", "subnets", "security groups", "route", "execution role", "execution role"),
            *("task role", "log group", "log mode", "quota", "image", "events", "journal", "environments"),
            "permissions",
        ]

    async def test_is_only_looked_at(self, patient: Patient) -> None:
        await prepare(patient)
        await register(patient)

        await patient.examined(**EVERYTHING)
        await patient.examined(Job(command=["x"], ecs=EcsOptions(task_definition="report")))

        patient.ecr.images["team/report"]["7"] = single()
        await patient.examined()

        reading = re.compile(r"(Get|Describe|List)[A-Z]\w+|BatchGetImage|SimulatePrincipalPolicy")
        asked = {called.partition(".")[2] for called in patient.aws.calls.operations}
        assert len(asked) > 15
        assert [name for name in asked if not reading.fullmatch(name)] == []

    async def test_what_is_asked_is_what_its_policy_allows(self, patient: Patient) -> None:
        await prepare(patient)
        await register(patient)
        role = "AmazonECSTaskExecutionRolePolicy"
        patient.iam.roles["execution"].attached = (role,)

        await patient.examined(**EVERYTHING)
        await patient.examined(Job(command=["x"], ecs=EcsOptions(task_definition="report")))
        patient.aws.faults.add(denied("iam.SimulatePrincipalPolicy"))
        patient.ecr.images["team/report"]["7"] = single()
        await patient.examined()

        access = Access(
            region=REGION,
            account=ACCOUNT,
            cluster="jobs",
            definitions=["report"],
            events="jobs-events",
            journal="fargate-jobs",
            spill_to="s3://variables/jobs",
        )
        policy = doctor_policy(access)
        allowed = {action for statement in policy["Statement"] for action in statement["Action"]}
        asked = {
            called.replace(".", ":").replace("service-quotas", "servicequotas")
            for called in patient.aws.calls.operations
        }
        assert asked - {"sts:GetCallerIdentity"} == allowed

    async def test_is_looked_at_side_by_side(self, patient: Patient, clock: VirtualClock) -> None:
        await prepare(patient)
        patient.aws.latency = (3.0, 3.0)
        began = clock.time()

        found = await patient.examined(**EVERYTHING)

        assert bad(found) == []
        # One call after another, each of three seconds, would be minutes. Buckets of ten calls a second are included.
        assert len(patient.aws.calls) > 30
        assert clock.time() - began <= 15.0

    async def test_an_open_backend_can_be_looked_at_and_stays_open(self, patient: Patient) -> None:
        async with patient.backend() as backend:
            found = await patient.examined(backend=backend)

            assert backend.is_open
            assert bad(found) == []

    async def test_nothing_of_a_job_needs_nothing_of_an_image(self, patient: Patient) -> None:
        found = list(await diagnose(patient.backend()))

        assert bad(found) == []
        assert of(found, "image") == []


async def operations(patient: Patient) -> list[str]:
    await prepare(patient)
    patient.ec2.private_route = None
    patient.ec2.lead_to_endpoints(*ALL)
    await patient.examined(**CLOSED)
    asked = sorted(patient.aws.calls.operations)
    patient.aws.calls.clear()
    return [called for called in asked if called != "sts.GetCallerIdentity"]


class TestEachQuestion:
    """Whatever is asked may be denied, unanswered or unknown; nothing else changes, and nothing is green by mistake."""

    async def test_that_is_denied_is_unknown_and_names_the_permission(self, patient: Patient) -> None:
        for called in await operations(patient):
            patient.aws.faults.clear()
            patient.aws.faults.add(denied(called))

            found = await patient.examined(**CLOSED)

            action = called.replace(".", ":")
            blind = bad(found)
            assert {finding.state for finding in blind} == {State.UNKNOWN}, called
            assert any(f"allow {action} on * for the credentials in use" in finding.todo for finding in blind), called
            self.check_others(found, blind)

    @pytest.mark.parametrize(
        ("called", "code", "message", "seen", "todo"),
        [
            (
                "ec2.DescribeSubnets",
                "UnauthorizedOperation",
                "You are not authorized to perform this operation.",
                "ec2:DescribeSubnets is not allowed",
                "allow ec2:DescribeSubnets for the credentials in use (fargate-runner policy --for doctor)",
            ),
            (
                "service-quotas.GetServiceQuota",
                "AccessDeniedException",
                "",
                "servicequotas:GetServiceQuota is not allowed",
                "allow servicequotas:GetServiceQuota for the credentials in use (fargate-runner policy --for doctor)",
            ),
            (
                "ecr.BatchGetImage",
                "AccessDeniedException",
                "User: arn:aws:iam::1:user/a is not authorized to perform: ecr:BatchGetImage on resource: arn:aws:ecr:x"
                " with an explicit deny in a service control policy",
                "ecr:BatchGetImage is not allowed",
                "ecr:BatchGetImage on arn:aws:ecr:x is denied by a service control policy: whoever owns that has to"
                " change it (fargate-runner policy --for doctor)",
            ),
            (
                "ecr.BatchGetImage",
                "OptInRequired",
                "You are not subscribed to this service",
                "ecr.BatchGetImage: OptInRequired: You are not subscribed to this service",
                "the account has not signed up for this service, or the region is not enabled",
            ),
        ],
        ids=["in no words", "by no words", "by an organization", "by no contract"],
    )
    async def test_that_is_denied_in_other_words_is_unknown_too(
        self, patient: Patient, called: str, code: str, message: str, seen: str, todo: str
    ) -> None:
        patient.aws.faults.add(Fault(match=called, times=math.inf, code=code, message=message, status=403))

        finding = bad(await patient.examined())[0]

        assert (finding.state, finding.seen, finding.todo) == (State.UNKNOWN, seen, todo)

    async def test_that_is_cut_off_has_the_way_there_checked(self, patient: Patient) -> None:
        patient.aws.faults.add(Fault(match="ecr.*", times=math.inf, cut=True))

        finding = only(await patient.examined(), "image")

        assert finding.state is State.FAILED
        assert "check the network, a proxy (HTTPS_PROXY)" in finding.todo

    async def test_that_is_throttled_for_long_is_unknown(self, patient: Patient) -> None:
        patient.aws.faults.add(throttled("ecr.*", times=math.inf))

        finding = only(await patient.examined(), "image")

        assert finding.state is State.UNKNOWN
        assert "ThrottlingException" in finding.seen

    async def test_that_is_not_answered_is_a_red_line_in_time(self, patient: Patient, clock: VirtualClock) -> None:
        for called in await operations(patient):
            patient.aws.faults.clear()
            patient.aws.faults.add(Fault(match=called, times=math.inf, delay=1e6))
            began = clock.time()

            found = await patient.examined(**CLOSED)

            lost = bad(found)
            assert State.FAILED in {finding.state for finding in lost}, called
            assert all(finding.todo for finding in lost if finding.state is State.FAILED)
            assert clock.time() - began <= 21.0, called
            self.check_others(found, lost)

    async def test_that_fails_for_long_is_a_red_line(self, patient: Patient) -> None:
        for called in await operations(patient):
            patient.aws.faults.clear()
            patient.aws.faults.add(Fault(match=called, times=math.inf, code="InternalFailure", status=500))

            found = await patient.examined(**CLOSED)

            lost = bad(found)
            assert State.FAILED in {finding.state for finding in lost}, called
            self.check_others(found, lost)

    async def test_that_fails_once_is_asked_again(self, patient: Patient) -> None:
        for called in await operations(patient):
            patient.aws.faults.clear()
            patient.aws.faults.add(Fault(match=called, code="InternalFailure", status=500))

            assert bad(await patient.examined(**CLOSED)) == [], called

    async def test_that_nobody_knows_is_unknown(self, patient: Patient) -> None:
        for called in await operations(patient):
            patient.aws.faults.clear()
            patient.aws.faults.add(Fault(match=called, times=math.inf, code="NotImplemented", status=501))

            found = await patient.examined(**CLOSED)

            blind = bad(found)
            assert blind, called
            assert {finding.state for finding in blind} == {State.UNKNOWN}, called
            self.check_others(found, blind)

    @staticmethod
    def check_others(found: list[Finding], concerned: list[Finding]) -> None:
        about = {finding.check for finding in concerned}
        about |= {"security groups", "route"} if "subnets" in about else set()
        others = {finding.check for finding in found if finding.state is State.OK} | about
        expected = {
            *("credentials", "cluster", "subnets", "security groups", "route", "execution role", "task role"),
            *("log group", "log mode", "quota", "image", "events", "journal", "environments", "permissions"),
        }
        assert expected <= others


class TestCredentials:
    async def test_say_who_and_where(self, patient: Patient) -> None:
        finding = only(await patient.examined(), "credentials")

        assert finding.state is State.OK
        assert finding.seen == f"arn:aws:iam::{ACCOUNT}:user/fake in {REGION}"

    @pytest.mark.parametrize(
        ("code", "message", "fix"),
        [
            ("ExpiredToken", "The security token included in the request is expired", "log in again"),
            (
                "InvalidClientTokenId",
                "The security token included in the request is invalid.",
                "AWS does not know these",
            ),
            ("SignatureDoesNotMatch", "The request signature we calculated does not match", "clock of this machine"),
        ],
    )
    async def test_that_AWS_does_not_take_are_the_only_line(
        self, patient: Patient, code: str, message: str, fix: str
    ) -> None:
        patient.aws.faults.add(Fault(match="*", times=math.inf, code=code, message=message, status=403))

        (finding,) = await patient.examined()

        assert (finding.check, finding.state) == ("credentials", State.FAILED)
        assert message.rstrip(".") in finding.seen
        assert fix in finding.todo

    async def test_of_the_root_user_are_a_warning(self, patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
        be(patient, f"arn:aws:iam::{ACCOUNT}:root")

        found = await patient.examined()

        assert only(found, "credentials").state is State.WARNING
        assert only(found, "permissions").state is State.UNKNOWN

    async def test_of_which_STS_says_nothing_leave_the_rest_to_be_looked_at(self, patient: Patient) -> None:
        patient.aws.faults.add(Fault(match="sts.*", times=math.inf, delay=1e6))

        found = await patient.examined()

        assert only(found, "credentials").state is State.FAILED
        assert only(found, "permissions").state is State.UNKNOWN
        assert {finding.check for finding in bad(found)} == {"credentials", "permissions"}

    async def test_of_which_STS_fails_leave_the_rest_to_be_looked_at(self, patient: Patient) -> None:
        patient.aws.faults.add(Fault(match="sts.*", times=math.inf, code="InternalFailure", status=500))

        found = await patient.examined()

        assert {finding.check for finding in bad(found)} == {"credentials", "permissions"}
        assert only(found, "image").state is State.OK

    async def test_without_a_region_say_how_to_set_it(self, monkeypatch: pytest.MonkeyPatch, patient: Patient) -> None:
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
            monkeypatch.delenv(name, raising=False)
        session = patient.aws.session()
        session.region_name = None

        (finding,) = await diagnose(EcsBackend("jobs", session=session))

        assert (finding.state, finding.seen) == (State.FAILED, "no AWS region is known")
        assert "set AWS_REGION" in finding.todo


def be(patient: Patient, arn: str) -> None:
    """Have STS say that we are somebody else."""

    async def get_caller_identity(request: Any) -> dict[str, Any]:
        return {"UserId": "AROAFAKEFAKEFAKEFAKE1:me", "Account": ACCOUNT, "Arn": arn}

    patient.aws.sts.get_caller_identity = get_caller_identity  # type: ignore[method-assign]


class TestPermissions:
    async def test_each_that_is_missing_is_named_with_its_statement(self, patient: Patient) -> None:
        policies = [statement for policy in patient.iam.users["fake"] for statement in policy["Statement"]]
        wanted = {(one["Sid"], action) for one in policies for action in one["Action"] if one["Sid"] != "Discover"}
        wanted -= {("DiscoverClusters", "ecs:DescribeClusters")}
        await prepare(patient)
        assert len(wanted) > 20
        for sid, action in sorted(wanted):
            (statement,) = [one for one in policies if one["Sid"] == sid]
            before, statement["Action"] = statement["Action"], [one for one in statement["Action"] if one != action]

            failures = [f for f in await patient.examined(**EVERYTHING) if f.state is State.FAILED]

            statement["Action"] = before
            if (sid, action) == ("LookAtJournal", "dynamodb:DescribeTable") or not failures:
                assert failures or action == "ecs:DescribeClusters", action  # two statements allow it
                continue
            (finding,) = failures
            assert finding.check == "permissions"
            assert f"fake may not {action} on " in finding.seen
            assert "no policy allows it" in finding.seen
            assert f"add the statement {sid} of fargate-runner policy" in finding.todo

    async def test_to_pass_each_role_are_asked_for(self, patient: Patient) -> None:
        passing = [one for p in patient.iam.users["fake"] for one in p["Statement"] if one["Sid"] == "PassRoles"]
        passing[0]["Resource"] = [EXECUTION]

        finding = only(bad(await patient.examined()), "permissions")

        assert f"fake may not iam:PassRole on {TASK}: no policy allows it" in finding.seen

    async def test_of_a_job_of_its_own_are_asked_for(self, patient: Patient) -> None:
        job = patient.job(tags={"team": "reports"}, ecs=EcsOptions(roles=Roles(task="another")))
        patient.iam.roles["another"] = Role()
        whole = [one for p in patient.iam.users["fake"] for one in p["Statement"] if one["Sid"] == "TagAtCreation"]
        whole[0]["Resource"] = [one for one in whole[0]["Resource"] if ":task/" not in one]

        failures = {f.seen for f in await patient.examined(job) if f.state is State.FAILED}

        assert failures == {
            f"fake may not iam:PassRole on arn:aws:iam::{ACCOUNT}:role/another: no policy allows it",
            f"fake may not ecs:TagResource on arn:aws:ecs:{REGION}:{ACCOUNT}:task/jobs/doctor: no policy allows it",
        }

    async def test_are_not_asked_for_what_a_job_does_not_use(self, patient: Patient) -> None:
        patient.iam.roles["another"] = Role()
        job = patient.job(ecs=EcsOptions(roles=Roles(task="another")))
        (passing,) = [one for p in patient.iam.users["fake"] for one in p["Statement"] if one["Sid"] == "PassRoles"]
        passing["Resource"] = [EXECUTION, f"arn:aws:iam::{ACCOUNT}:role/another"]

        assert bad(await patient.examined(job)) == []

    async def test_to_pass_the_roles_of_volumes_are_asked_for(self, patient: Patient) -> None:
        disk = EbsVolume(path="/data", role=f"arn:aws:iam::{ACCOUNT}:role/volumes", size_gib=10)

        (finding,) = bad(await patient.examined(patient.job(ecs=EcsOptions(volumes=[disk]))))

        assert f"fake may not iam:PassRole on {disk.role}" in finding.seen

    async def test_that_are_as_narrow_as_what_is_asked_of_AWS_suffice(self, patient: Patient) -> None:
        (policy,) = patient.iam.users["fake"]
        narrow = [one for one in policy["Statement"] if one["Sid"] not in {"TagAtCreation", "KeepJournal"}]
        ecs, table = f"arn:aws:ecs:{REGION}:{ACCOUNT}", f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/fargate-jobs"
        pages = [f"dynamodb:{verb}" for verb in ("BatchGetItem", "DeleteItem", "GetItem", "PutItem", "Query")]
        for resource, actions, condition in (
            (
                f"{ecs}:task-definition/fr-default-*:1",
                ["ecs:TagResource"],
                {"ecs:CreateAction": "RegisterTaskDefinition"},
            ),
            (f"{ecs}:task/jobs/*", ["ecs:TagResource"], {"ecs:CreateAction": "RunTask"}),
            (table, pages, {"dynamodb:LeadingKeys": "default"}),
            (f"{table}/index/open", ["dynamodb:Query"], {"dynamodb:LeadingKeys": "default"}),
        ):
            statement = {"Effect": "Allow", "Action": actions, "Resource": [resource]}
            narrow.append(statement | {"Condition": {"StringEquals": condition}})
        policy["Statement"] = narrow

        assert bad(await patient.examined(tags={"team": "reports"}, journal="fargate-jobs")) == []

    async def test_are_asked_for_on_things_and_not_on_patterns(self, patient: Patient) -> None:
        await patient.examined(**EVERYTHING)

        asked = {
            one for call in patient.aws.calls.of("iam.SimulatePrincipalPolicy") for one in call.request["ResourceArns"]
        }
        assert [one for one in asked if "*" in one] == ["*"]
        assert f"arn:aws:ecs:{REGION}:{ACCOUNT}:task-definition/fr-default-doctor:1" in asked
        assert f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/jobs:log-stream:doctor" in asked

    async def test_that_conditions_narrow_are_asked_for_as_they_will_be_used(self, patient: Patient) -> None:
        patient.aws.ecs.add_cluster("others")

        failures = [finding for finding in await patient.examined(cluster="others") if finding.state is State.FAILED]

        assert {finding.check for finding in failures} == {"permissions"}
        assert any("ecs:RunTask" in finding.seen for finding in failures)

    async def test_that_a_policy_denies_say_so(self, patient: Patient) -> None:
        patient.iam.users["fake"].append(
            {"Statement": [{"Effect": "Deny", "Action": ["ecs:RunTask"], "Resource": ["*"]}]}
        )

        (finding,) = bad(await patient.examined())

        assert finding.seen.endswith("a policy denies it")

    @pytest.mark.parametrize(
        ("details", "why"),
        [
            ({"OrganizationsDecisionDetail": {"AllowedByOrganizations": False}}, "a policy of the organization (SCP)"),
            (
                {"PermissionsBoundaryDecisionDetail": {"AllowedByPermissionsBoundary": False}},
                "the permissions boundary",
            ),
        ],
        ids=["SCP", "boundary"],
    )
    async def test_that_somebody_else_limits_are_not_green(self, patient: Patient, details: Any, why: str) -> None:
        patient.iam.details = details

        found = of(await patient.examined(), "permissions")

        assert {finding.state for finding in found} == {State.FAILED}
        assert all(f"{why} does not allow it" in finding.seen for finding in found)

    async def test_that_a_condition_may_deny_are_a_warning(self, patient: Patient) -> None:
        patient.iam.missing["ecs:RunTask"] = ["aws:SourceIp"]

        finding = only(await patient.examined(), "permissions")

        assert finding.state is State.WARNING
        assert "(aws:SourceIp)" in finding.seen

    async def test_that_a_condition_may_allow_are_unknown(self, patient: Patient) -> None:
        patient.forbid("fake", "ecs:RunTask")
        patient.iam.missing["ecs:RunTask"] = ["aws:SourceIp"]

        blind, rest = of(await patient.examined(), "permissions")

        assert (blind.state, rest.state) == (State.UNKNOWN, State.OK)
        assert "whether fake may ecs:RunTask depends on what nobody knows here (aws:SourceIp)" in blind.seen

    async def test_that_the_simulator_passes_over_are_not_green(self, patient: Patient) -> None:
        patient.iam.silent.add("ecs:RunTask")

        assert State.UNKNOWN in {finding.state for finding in of(await patient.examined(), "permissions")}

    async def test_are_read_to_the_last_page(self, patient: Patient) -> None:
        patient.iam.pages = 5
        patient.forbid("fake", "dynamodb:Query")

        (finding,) = bad(await patient.examined(journal="fargate-jobs"))

        assert "dynamodb:Query" in finding.seen

    @pytest.mark.parametrize("path", ["/", "/teams/night/"])
    async def test_of_a_session_are_those_of_its_role(self, patient: Patient, path: str) -> None:
        patient.iam.roles["caller"] = Role(policies=patient.iam.users.pop("fake"), path=path)
        be(patient, f"arn:aws:sts::{ACCOUNT}:assumed-role/caller/session")

        assert bad(await patient.examined()) == []

        patient.forbid("caller", "ecs:StopTask")
        (finding,) = bad(await patient.examined())
        assert f"{path.lstrip('/')}caller may not ecs:StopTask" in finding.seen

    async def test_of_a_role_whose_path_nobody_tells_are_unknown(self, patient: Patient) -> None:
        patient.iam.roles["caller"] = Role(policies=patient.iam.users.pop("fake"), path="/teams/")
        be(patient, f"arn:aws:sts::{ACCOUNT}:assumed-role/caller/session")
        patient.aws.faults.add(denied("iam.GetRole"))

        finding = only(await patient.examined(), "permissions")

        assert finding.state is State.UNKNOWN
        assert "allow iam:GetRole" in finding.todo

    async def test_of_a_federated_user_are_unknown(self, patient: Patient) -> None:
        be(patient, f"arn:aws:sts::{ACCOUNT}:federated-user/me")

        assert only(await patient.examined(), "permissions").state is State.UNKNOWN


class TestCluster:
    async def test_that_is_not_there_is_red(self, patient: Patient) -> None:
        finding = only(await patient.examined(cluster="nights"), "cluster")

        assert finding.state is State.FAILED
        assert finding.seen == f"ECS knows none of the name 'nights' in {REGION}"
        assert "aws ecs create-cluster --cluster-name nights" in finding.todo

    async def test_that_was_deleted_is_red(self, patient: Patient) -> None:
        await patient.aws.call("ecs", "DeleteCluster", {"cluster": "jobs"})

        finding = only(await patient.examined(), "cluster")

        assert (finding.state, finding.seen) == (State.FAILED, "it is INACTIVE")

    async def test_without_the_provider_that_is_wanted_is_red(self, patient: Patient) -> None:
        patient.aws.ecs.add_cluster("jobs", providers=["FARGATE"])

        finding = only(await patient.examined(capacity=Capacity.spot()), "capacity")

        assert finding.state is State.FAILED
        assert finding.seen == "FARGATE_SPOT cannot be used: the cluster has FARGATE"

    async def test_with_its_providers_is_green(self, patient: Patient) -> None:
        ladder = [Capacity.spot(), Capacity.fargate()]

        finding = only(await patient.examined(capacity=ladder), "capacity")

        assert (finding.state, finding.seen) == (State.OK, "the cluster has FARGATE_SPOT")

    async def test_without_instances_is_red_for_EC2(self, patient: Patient) -> None:
        finding = only(await patient.examined(capacity=Capacity.ec2()), "capacity")

        assert (finding.state, finding.seen) == (State.FAILED, "no EC2 instance is registered with the cluster")


class TestSubnets:
    async def test_that_are_not_there_are_red(self, patient: Patient) -> None:
        found = await patient.examined(network=Network(subnets=["subnet-0123456789abcdef0"]))

        assert only(found, "subnets").state is State.FAILED
        assert "subnet-0123456789abcdef0" in only(found, "subnets").seen
        assert of(found, "route") == []

    async def test_that_were_not_said_are_red(self, patient: Patient) -> None:
        finding = only(await patient.examined(network=None), "subnets")

        assert finding.state is State.FAILED
        assert "--subnet" in finding.todo

    async def test_are_not_needed_on_EC2(self, patient: Patient) -> None:
        assert of(await patient.examined(network=None, capacity=Capacity.ec2()), "subnets") == []

    async def test_of_two_VPCs_are_red(self, patient: Patient) -> None:
        patient.ec2.vpc_of[PRIVATE] = OTHER_VPC

        found = await patient.examined(network=Network(subnets=[PUBLIC, PRIVATE]))

        assert "they are of 2 VPCs" in only(found, "subnets").seen
        assert only(found, "subnets").state is State.FAILED

    async def test_that_are_still_being_made_are_red(self, patient: Patient) -> None:
        patient.ec2.states[PUBLIC] = "pending"

        assert only(await patient.examined(), "subnets").state is State.FAILED

    @pytest.mark.parametrize(
        ("free", "concurrency", "state"),
        [(0, 1, State.FAILED), (4, 5, State.WARNING), (5, 5, State.OK)],
    )
    async def test_have_an_address_for_each_job(
        self, patient: Patient, free: int, concurrency: int, state: State
    ) -> None:
        patient.ec2.subnets = tuple(attrs.evolve(one, free=free) for one in patient.ec2.subnets)

        assert only(await patient.examined(concurrency=concurrency), "subnets").state is state

    async def test_of_which_one_is_full_are_a_warning(self, patient: Patient) -> None:
        patient.ec2.subnets = tuple(
            attrs.evolve(one, free=0) if one.id == PUBLIC else one for one in patient.ec2.subnets
        )
        network = Network(subnets=[PUBLIC, "subnet-0bbbbbbbb00000001"], public_ip=True)

        finding = only(await patient.examined(network=network), "subnets")

        assert (finding.state, finding.seen) == (State.WARNING, f"{PUBLIC} has no free address")


class TestSecurityGroups:
    async def test_that_are_not_there_are_red(self, patient: Patient) -> None:
        network = Network(subnets=[PUBLIC], security_groups=["sg-0123456789abcdef0"], public_ip=True)

        finding = only(await patient.examined(network=network), "security groups")

        assert finding.state is State.FAILED
        assert "sg-0123456789abcdef0" in finding.seen

    async def test_of_another_VPC_are_red(self, patient: Patient) -> None:
        patient.ec2.vpc_of[GROUP] = OTHER_VPC

        finding = only(await patient.examined(), "security groups")

        assert finding.state is State.FAILED
        assert "is not of the subnets' vpc-" in finding.seen

    async def test_that_were_not_said_are_the_VPCs_default_one(self, patient: Patient) -> None:
        patient.ec2.security_groups["sg-0123456789abcdef0"] = "another"

        finding = only(await patient.examined(network=Network(subnets=[PUBLIC], public_ip=True)), "security groups")

        assert finding.seen == f"{GROUP} lets TCP 443 out"

    @pytest.mark.parametrize(
        ("egress", "state"),
        [
            ([], State.FAILED),
            (
                [{"IpProtocol": "tcp", "FromPort": 80, "ToPort": 80, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}],
                State.FAILED,
            ),
            (
                [{"IpProtocol": "udp", "FromPort": 0, "ToPort": 65535, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}],
                State.FAILED,
            ),
            ([{"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}], State.OK),
            ([{"IpProtocol": "6", "FromPort": 0, "ToPort": 65535, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}], State.OK),
            (
                [{"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}],
                State.WARNING,
            ),
            ([{"IpProtocol": "-1", "PrefixListIds": [{"PrefixListId": "pl-1"}]}], State.WARNING),
            ([{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": GROUP}]}], State.WARNING),
        ],
    )
    async def test_have_to_let_tasks_out_at_443(self, patient: Patient, egress: Any, state: State) -> None:
        patient.ec2.egress = egress

        assert only(await patient.examined(), "security groups").state is state


class TestRoute:
    async def test_by_a_gateway_takes_a_public_IP(self, patient: Patient) -> None:
        finding = only(await patient.examined(network=WITHOUT_IP), "route")

        assert finding.state is State.FAILED
        assert "takes a public IP, which tasks do not get" in finding.seen
        assert "FARGATE_RUNNER_PUBLIC_IP=true" in finding.todo

    @pytest.mark.parametrize("public_ip", [False, True])
    async def test_by_a_NAT_gateway_takes_none(self, patient: Patient, public_ip: bool) -> None:
        finding = only(await patient.examined(network=attrs.evolve(PRIVATELY, public_ip=public_ip)), "route")

        assert (finding.state, finding.seen) == (
            State.OK,
            f"{PRIVATE}: the internet is reached by nat-0de0de0de0de0de0d",
        )

    async def test_that_is_not_there_is_red_with_or_without_a_public_IP(self, patient: Patient) -> None:
        patient.ec2.private_route = None
        for public_ip in (False, True):
            finding = only(await patient.examined(network=attrs.evolve(PRIVATELY, public_ip=public_ip)), "route")

            assert finding.state is State.FAILED
            assert "it has no way out; endpoints for ecr.api, ecr.dkr, s3, logs are missing" in finding.seen
            assert "NAT gateway" in finding.todo

    async def test_to_what_is_gone_is_red(self, patient: Patient) -> None:
        patient.ec2.private_route = {
            "DestinationCidrBlock": "0.0.0.0/0",
            "NatGatewayId": "nat-0123456789abcdef0",
            "State": "blackhole",
        }

        finding = only(await patient.examined(network=PRIVATELY), "route")

        assert finding.state is State.FAILED
        assert "leads to nat-0123456789abcdef0, which is gone" in finding.seen

    @pytest.mark.parametrize("target", ["TransitGatewayId", "NetworkInterfaceId", "VpcPeeringConnectionId"])
    async def test_to_somebody_else_is_not_followed(self, patient: Patient, target: str) -> None:
        patient.ec2.private_route = {"DestinationCidrBlock": "0.0.0.0/0", target: "x-1", "State": "active"}

        finding = only(await patient.examined(network=PRIVATELY), "route")

        assert finding.state is State.UNKNOWN
        assert "leads to x-1, and no further is looked" in finding.seen

    async def test_by_endpoints_alone_is_green(self, patient: Patient) -> None:
        patient.ec2.private_route = None
        patient.ec2.lead_to_endpoints(*ALL)

        finding = only(await patient.examined(network=PRIVATELY), "route")

        assert (finding.state, finding.seen) == (
            State.OK,
            f"{PRIVATE}: ecr.api, ecr.dkr, s3, logs are reached by endpoints",
        )

    @pytest.mark.parametrize("missing", ALL)
    async def test_lacks_any_endpoint_that_is_missing(self, patient: Patient, missing: str) -> None:
        patient.ec2.private_route = None
        patient.ec2.lead_to_endpoints(*(service for service in ALL if service != missing))

        finding = only(await patient.examined(network=PRIVATELY), "route")

        assert finding.state is State.FAILED
        assert f"endpoints for {missing} are missing" in finding.seen
        assert f"make endpoints for {missing}" in finding.todo

    @pytest.mark.parametrize(
        ("service", "changes"),
        [
            ("ecr.dkr", {"PrivateDnsEnabled": False}),
            ("logs", {"State": "pendingAcceptance"}),
            ("s3", {"RouteTableIds": ["rtb-main"]}),
            ("s3", {"VpcEndpointType": "Interface", "PrivateDnsEnabled": True, "RouteTableIds": []}),
            ("logs", {"ServiceName": "com.amazonaws.us-east-1.sync-states.logs-not"}),
        ],
    )
    async def test_is_not_led_by_an_endpoint_that_leads_nowhere(
        self, patient: Patient, service: str, changes: dict[str, Any]
    ) -> None:
        patient.ec2.private_route = None
        patient.ec2.lead_to_endpoints(*(one for one in ALL if one != service))
        patient.ec2.lead_to_endpoints(service, **changes)

        assert f"endpoints for {service} are missing" in only(await patient.examined(network=PRIVATELY), "route").seen

    async def test_to_a_public_image_is_over_the_internet_only(self, patient: Patient) -> None:
        patient.ec2.private_route = None
        patient.ec2.lead_to_endpoints(*ALL)

        finding = only(await patient.examined(patient.job(image="python:3.12"), network=PRIVATELY), "route")

        assert finding.state is State.FAILED
        assert "the image python:3.12 comes over the internet" in finding.seen
        assert "endpoints" not in finding.todo

    async def test_to_an_image_of_another_region_is_over_the_internet_only(self, patient: Patient) -> None:
        patient.ec2.private_route = None
        patient.ec2.lead_to_endpoints(*ALL)
        image = IMAGE.replace(REGION, "eu-west-1")

        assert (
            "is in eu-west-1" in only(await patient.examined(patient.job(image=image), network=PRIVATELY), "route").seen
        )

    async def test_to_lines_of_another_region_is_over_the_internet_only(self, patient: Patient) -> None:
        patient.ec2.private_route = None
        patient.ec2.lead_to_endpoints(*ALL)
        group = LogGroup(name="/jobs", region="eu-west-1")

        finding = only(await patient.examined(network=PRIVATELY, log_group=group), "route")

        assert "lines go to eu-west-1" in finding.seen

    @pytest.mark.parametrize(
        ("secret", "service"),
        [(SecretRef(SECRET), "secretsmanager"), (SecretRef(PARAMETER), "ssm"), (Secret("t0k3n"), "ssm")],
        ids=["secret", "parameter", "by value"],
    )
    async def test_to_secrets_is_needed_where_there_are_some(self, patient: Patient, secret: Any, service: str) -> None:
        patient.ec2.private_route = None
        patient.ec2.lead_to_endpoints(*ALL)
        job = patient.job(secrets={"TOKEN": secret})

        finding = only(await patient.examined(job, network=PRIVATELY, secret_prefix="/jobs/secrets"), "route")

        assert f"endpoints for {service} are missing" in finding.seen

    async def test_of_each_subnet_counts(self, patient: Patient) -> None:
        patient.ec2.private_route = None
        network = Network(subnets=[PUBLIC, PRIVATE, "subnet-0bbbbbbbb00000001"], public_ip=True)

        well, ill = of(await patient.examined(network=network), "route")

        assert (well.state, ill.state) == (State.OK, State.FAILED)
        assert well.seen.startswith(f"{PUBLIC}, subnet-0bbbbbbbb00000001: ")
        assert ill.seen.startswith(f"{PRIVATE}: ")

    async def test_is_read_to_the_last_page(self, patient: Patient) -> None:
        patient.ec2.pages = 4
        patient.ec2.private_route = None
        patient.ec2.lead_to_endpoints(*ALL)

        assert only(await patient.examined(network=PRIVATELY), "route").state is State.OK

    async def test_needs_no_endpoints_to_be_looked_at_where_there_is_another(self, patient: Patient) -> None:
        patient.aws.faults.add(denied("ec2.DescribeVpcEndpoints"))

        assert only(await patient.examined(network=PRIVATELY), "route").state is State.OK
        patient.ec2.private_route = None
        assert "allow ec2:DescribeVpcEndpoints" in only(await patient.examined(network=PRIVATELY), "route").todo


class TestRoles:
    async def test_without_an_execution_role_on_Fargate_is_red(self, patient: Patient) -> None:
        found = await patient.examined(roles=Roles(task=TASK))

        assert only(found, "execution role").state is State.FAILED
        assert "FARGATE_RUNNER_EXECUTION_ROLE" in only(found, "execution role").todo

    async def test_without_an_execution_role_on_EC2_is_green(self, patient: Patient) -> None:
        found = await patient.examined(roles=Roles(task=TASK), capacity=Capacity.ec2())

        assert only(found, "execution role").state is State.OK

    async def test_without_a_task_role_is_green(self, patient: Patient) -> None:
        finding = only(await patient.examined(roles=Roles(execution=EXECUTION)), "task role")

        assert (finding.state, finding.seen) == (State.OK, "none: jobs may ask AWS nothing")

    @pytest.mark.parametrize("name", ["execution", "task"])
    async def test_that_are_not_there_are_red(self, patient: Patient, name: str) -> None:
        del patient.iam.roles[name]

        finding = only(await patient.examined(), f"{name} role")

        assert finding.state is State.FAILED
        assert finding.seen == f"arn:aws:iam::{ACCOUNT}:role/{name} is not there"

    async def test_of_another_account_are_red(self, patient: Patient) -> None:
        finding = only(
            await patient.examined(roles=Roles(execution="arn:aws:iam::999999999999:role/execution")), "execution role"
        )

        assert finding.state is State.FAILED
        assert "is of another account" in finding.seen

    async def test_named_without_their_path_are_red(self, patient: Patient) -> None:
        patient.iam.roles["task"].path = "/teams/"

        finding = only(await patient.examined(), "task role")

        assert finding.state is State.FAILED
        assert finding.seen.endswith(f"but arn:aws:iam::{ACCOUNT}:role/teams/task")

    async def test_may_be_names(self, patient: Patient) -> None:
        finding = only(await patient.examined(roles=Roles(execution=EXECUTION, task="task")), "task role")

        assert (finding.state, finding.seen) == (State.OK, "task is there, and tasks may be given it")

    @pytest.mark.parametrize("name", ["execution", "task"])
    @pytest.mark.parametrize(
        ("changes", "state"),
        [
            ({}, State.OK),
            ({"Principal": {"Service": ["ec2.amazonaws.com", "ecs-tasks.amazonaws.com"]}}, State.OK),
            ({"Action": ["sts:TagSession", "sts:AssumeRole"]}, State.OK),
            ({"Action": "sts:*"}, State.OK),
            ({"Principal": {"Service": "ec2.amazonaws.com"}}, State.FAILED),
            ({"Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}}, State.FAILED),
            ({"Action": "sts:TagSession"}, State.FAILED),
            ({"Effect": "Deny"}, State.FAILED),
            ({"Condition": {"StringEquals": {"aws:SourceAccount": ACCOUNT}}}, State.OK),
            ({"Condition": {"StringEquals": {"aws:SourceAccount": "999999999999"}}}, State.FAILED),
            ({"Condition": {"ArnLike": {"aws:SourceArn": f"arn:aws:ecs:{REGION}:{ACCOUNT}:*"}}}, State.OK),
            ({"Condition": {"ArnLike": {"aws:SourceArn": f"arn:aws:ecs:eu-west-1:{ACCOUNT}:*"}}}, State.FAILED),
            ({"Condition": {"StringEquals": {"sts:ExternalId": "x"}}}, State.UNKNOWN),
            ({"Condition": {"StringNotEquals": {"aws:SourceAccount": ACCOUNT}}}, State.UNKNOWN),
        ],
    )
    async def test_have_to_trust_tasks(self, patient: Patient, name: str, changes: Any, state: State) -> None:
        (statement,) = TRUST["Statement"]
        patient.iam.roles[name].trust = {**TRUST, "Statement": [{**statement, **changes}]}

        finding = of(await patient.examined(), f"{name} role")[0]

        assert finding.state is state

    async def test_whose_account_nobody_tells_are_not_red_for_that(self, patient: Patient) -> None:
        patient.aws.faults.add(Fault(match="sts.*", times=math.inf, code="InternalFailure", status=500))
        (statement,) = TRUST["Statement"]
        only_here = {"Condition": {"StringEquals": {"aws:SourceAccount": ACCOUNT}}}
        patient.iam.roles["task"].trust = {**TRUST, "Statement": [{**statement, **only_here}]}

        finding = only(await patient.examined(roles=Roles(execution=EXECUTION, task="task")), "task role")

        assert finding.state is State.UNKNOWN

    @pytest.mark.parametrize("trust", [{}, {"Statement": []}, {"Statement": ["*"]}])
    async def test_that_trust_nobody_are_red(self, patient: Patient, trust: Any) -> None:
        patient.iam.roles["task"].trust = trust

        assert only(await patient.examined(), "task role").state is State.FAILED


class TestWhatTheExecutionRoleMay:
    async def test_is_each_action_that_it_needs(self, patient: Patient) -> None:
        await prepare(patient)
        (policy,) = patient.iam.roles["execution"].policies
        wanted = [(one["Sid"], action) for one in policy["Statement"] for action in one["Action"]]
        assert len(wanted) == 9
        for sid, action in wanted:
            (statement,) = [one for one in policy["Statement"] if one["Sid"] == sid]
            before, statement["Action"] = statement["Action"], [one for one in statement["Action"] if one != action]

            (finding,) = bad(await patient.examined(**EVERYTHING))

            statement["Action"] = before
            assert (finding.check, finding.state) == ("execution role", State.FAILED)
            assert f"it may not {action} on " in finding.seen
            assert f"add the statement {sid} of fargate-runner policy --for execution" in finding.todo

    async def test_is_to_pull_that_image(self, patient: Patient) -> None:
        (policy,) = patient.iam.roles["execution"].policies
        (pulling,) = [one for one in policy["Statement"] if one["Sid"] == "PullImages"]
        pulling["Resource"] = [f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/others"]

        (finding,) = bad(await patient.examined())

        assert f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/team/report" in finding.seen

    async def test_is_to_pull_that_image_of_another_account(self, patient: Patient) -> None:
        (finding,) = bad(await patient.examined(patient.job(image=IMAGE.replace(ACCOUNT, "999999999999"))))

        assert f"arn:aws:ecr:{REGION}:999999999999:repository/team/report: no policy allows it" in finding.seen

    async def test_is_nothing_of_ECR_for_a_public_image(self, patient: Patient) -> None:
        actions = ("GetAuthorizationToken", "BatchCheckLayerAvailability", "BatchGetImage", "GetDownloadUrlForLayer")
        patient.forbid("execution", *(f"ecr:{action}" for action in actions))

        found = await patient.examined(patient.job(image="python:3.12"))

        assert {finding.state for finding in of(found, "execution role")} == {State.OK}

    @pytest.mark.parametrize(
        ("arn", "action"),
        [
            (SECRET, "secretsmanager:GetSecretValue"),
            (f"{SECRET}:password::", "secretsmanager:GetSecretValue"),
            (PARAMETER, "ssm:GetParameters"),
        ],
    )
    async def test_is_to_read_secrets(self, patient: Patient, arn: str, action: str) -> None:
        sidecar = Sidecar(name="side", image=IMAGE, secrets={"TOKEN": SecretRef(arn)})
        for job in (patient.job(secrets={"TOKEN": SecretRef(arn)}), patient.job(sidecars=[sidecar])):
            (finding,) = bad(await patient.examined(job))

            resource = SECRET if "secretsmanager" in arn else PARAMETER
            assert finding.seen == f"it may not {action} on {resource}: no policy allows it"

    @pytest.mark.parametrize(
        "fault",
        [
            denied("iam.SimulatePrincipalPolicy"),
            Fault(match="iam.SimulatePrincipalPolicy", times=math.inf, code="NotImplemented", status=501),
        ],
        ids=["denied", "not there"],
    )
    async def test_is_seen_by_its_managed_policy_where_nobody_simulates(self, patient: Patient, fault: Fault) -> None:
        patient.aws.faults.add(fault)
        role = patient.iam.roles["execution"]
        role.attached = ("AmazonECSTaskExecutionRolePolicy",)

        _, finding = of(await patient.examined(), "execution role")
        assert finding.state is State.OK
        assert finding.seen == "it has AmazonECSTaskExecutionRolePolicy; whether anything denies that was not looked at"

        _, finding = of(await patient.examined(patient.job(secrets={"T": SecretRef(SECRET)})), "execution role")
        assert finding.state is State.UNKNOWN
        assert "whether it may secretsmanager:GetSecretValue is not known" in finding.seen

        patient.iam.managed = ACCOUNT
        _, finding = of(await patient.examined(), "execution role")
        assert finding.state is State.UNKNOWN  # somebody's own policy has the name

        patient.iam.managed = "aws"
        role.boundary = f"arn:aws:iam::{ACCOUNT}:policy/boundary"
        _, finding = of(await patient.examined(), "execution role")
        assert finding.state is State.UNKNOWN
        assert "and a permissions boundary" in finding.seen

        role.attached, role.boundary = (), ""
        _, finding = of(await patient.examined(), "execution role")
        assert finding.state is State.UNKNOWN
        assert "it has no managed policy; whether it may ecr:" in finding.seen

    async def test_is_not_known_if_its_policies_may_not_be_listed_either(self, patient: Patient) -> None:
        patient.aws.faults.add(denied("iam.SimulatePrincipalPolicy"), denied("iam.ListAttachedRolePolicies"))

        _, finding = of(await patient.examined(), "execution role")

        assert finding.state is State.UNKNOWN


class Recording:
    """A session that tells of which regions its clients are."""

    def __init__(self, aws: FakeAws) -> None:
        self.session = aws.session()
        self.region_name = REGION
        self.made: set[tuple[str, str]] = set()

    def client(self, service: str, *, region_name: str, **options: Any) -> Any:
        self.made.add((service, region_name))
        return self.session.client(service, region_name, **options)


class TestLogs:
    async def test_group_that_is_not_there_yet_is_made(self, patient: Patient) -> None:
        finding = only(await patient.examined(log_group="/new"), "log group")

        assert (finding.state, finding.seen) == (State.OK, "/new is not there yet, and made at the first launch")

    async def test_group_that_is_not_to_be_made_has_to_be_there(self, patient: Patient) -> None:
        finding = only(await patient.examined(log_group=LogGroup(name="/new", create=False)), "log group")

        assert finding.state is State.FAILED
        assert "aws logs create-log-group --log-group-name /new" in finding.todo

    async def test_group_whose_name_only_begins_so_is_another(self, patient: Patient) -> None:
        finding = only(await patient.examined(log_group=LogGroup(name="/job", create=False)), "log group")

        assert finding.state is State.FAILED

    async def test_group_of_another_region_is_looked_for_there_and_not_made(self, patient: Patient) -> None:
        session = Recording(patient.aws)

        found = await patient.examined(log_group=LogGroup(name="/new", region="eu-west-1"), session=session)

        assert only(found, "log group").seen == "there is no /new in eu-west-1, and tasks do not start without"
        assert ("logs", "eu-west-1") in session.made

    async def test_mode_that_may_drop_lines_is_a_warning(self, patient: Patient) -> None:
        finding = only(await patient.examined(log_group=LogGroup(name="/jobs", mode="non-blocking")), "log mode")

        assert finding.state is State.WARNING


async def register(patient: Patient, **changes: Any) -> None:
    options = {"awslogs-group": "/jobs", "awslogs-region": REGION, "awslogs-stream-prefix": "theirs"}
    options |= changes.pop("options", {})
    container = {"name": "main", "image": IMAGE, "logConfiguration": {"logDriver": "awslogs", "options": options}}
    container |= changes.pop("container", {})
    body = definition("report", containerDefinitions=[container], executionRoleArn=EXECUTION, cpu="1024", memory="2048")
    await patient.aws.call("ecs", "RegisterTaskDefinition", body | changes)
    patient.aws.calls.clear()


class TestAnExistingDefinition:
    JOB = Job(command=["x"], ecs=EcsOptions(task_definition="report"))

    async def examined(self, patient: Patient, job: Job = JOB, **more: Any) -> list[Finding]:
        known: dict[str, Any] = {"roles": None, "log_group": "/unused", "options": EcsOptions(task_definition="report")}
        found = list(await diagnose(patient.backend(**known | more), job=job))
        assert of(found, "job") == []
        return found

    async def test_says_image_roles_and_log_group(self, patient: Patient) -> None:
        await register(patient, options={"mode": "blocking"})

        found = await self.examined(patient)

        assert only(found, "task definition").state is State.OK
        assert IMAGE in only(found, "image").seen
        assert EXECUTION in of(found, "execution role")[0].seen
        assert only(found, "log group").seen == "/jobs is there"
        assert only(found, "log mode").state is State.OK
        assert "a job takes 1" in only(found, "quota").seen

    async def test_is_enough_without_a_job(self, patient: Patient) -> None:
        await register(patient)

        found = list(await diagnose(patient.backend(options=EcsOptions(task_definition="report"))))

        assert IMAGE in only(found, "image").seen

    async def test_needs_other_permissions(self, patient: Patient) -> None:
        await register(patient)

        failures = [finding for finding in await self.examined(patient) if finding.state is State.FAILED]

        assert any(
            "ecs:RunTask on arn:aws:ecs:us-east-1:123456789012:task-definition/report:1" in f.seen for f in failures
        )

    @pytest.mark.parametrize("name", ["nights", "report:7"])
    async def test_that_is_not_there_is_red(self, patient: Patient, name: str) -> None:
        await register(patient)

        found = await self.examined(
            patient, options=EcsOptions(task_definition=name), job=Job(command=["x"], image="a")
        )

        assert only(found, "task definition").state is State.FAILED

    async def test_that_was_deregistered_is_red(self, patient: Patient) -> None:
        await register(patient)
        await patient.aws.call("ecs", "DeregisterTaskDefinition", {"taskDefinition": "report:1"})

        found = await self.examined(
            patient, options=EcsOptions(task_definition="report:1"), job=Job(command=["x"], image="a")
        )

        assert only(found, "task definition").seen.endswith("report:1 is INACTIVE")

    async def test_with_other_containers_is_red(self, patient: Patient) -> None:
        await register(patient)

        found = await self.examined(patient, self.JOB.with_(container_name="other"), roles=Roles(execution=EXECUTION))
        assert only(found, "task definition").state is State.OK  # it has only one

        others = [{"name": name, "image": IMAGE, "essential": True} for name in ("one", "two")]
        await register(patient, containerDefinitions=others)
        found = await self.examined(patient)
        assert "the task definition has no such container" in only(found, "task definition").seen

    async def test_that_may_not_be_read_is_unknown(self, patient: Patient) -> None:
        await register(patient)
        patient.aws.faults.add(denied("ecs.DescribeTaskDefinition"))

        found = await self.examined(patient)

        assert only(found, "task definition").state is State.UNKNOWN
        # What the backend says of its own definitions is not about this one.
        seen = {finding.check for finding in found}
        assert not seen & {"image", "execution role", "task role", "log group", "log mode", "quota"}
        assert seen >= {"cluster", "route", "permissions"}

    async def test_is_of_its_own_architecture(self, patient: Patient) -> None:
        await register(patient, runtimePlatform={"cpuArchitecture": "ARM64", "operatingSystemFamily": "LINUX"})
        patient.ecr.images["team/report"]["7"] = index("amd64")

        assert "and the job for ARM64" in only(await self.examined(patient), "image").seen

    async def test_has_a_log_group_that_nobody_makes(self, patient: Patient) -> None:
        await register(patient, options={"awslogs-group": "/new"})

        assert only(await self.examined(patient), "log group").state is State.FAILED

    async def test_without_lines_is_a_warning(self, patient: Patient) -> None:
        await register(patient, container={"logConfiguration": {"logDriver": "splunk", "options": {}}})

        found = await self.examined(patient)

        assert of(found, "log group") == []
        assert only(found, "log mode").state is State.WARNING

    @pytest.mark.parametrize(("mode", "state"), [("blocking", State.OK), ("non-blocking", State.WARNING)])
    async def test_without_a_mode_has_the_accounts(self, patient: Patient, mode: str, state: State) -> None:
        await register(patient)
        await patient.aws.call("ecs", "PutAccountSettingDefault", {"name": "defaultLogDriverMode", "value": mode})

        finding = only(await self.examined(patient), "log mode")

        assert finding.state is state
        assert "by the account's default" in finding.seen

    async def test_whose_mode_may_not_be_looked_up_is_unknown(self, patient: Patient) -> None:
        await register(patient)
        patient.aws.faults.add(denied("ecs.ListAccountSettings"))

        assert "allow ecs:ListAccountSettings" in only(await self.examined(patient), "log mode").todo

    async def test_that_says_a_mode_is_judged_by_it(self, patient: Patient) -> None:
        await register(patient, options={"mode": "non-blocking"})

        assert "the task definition says non-blocking" in only(await self.examined(patient), "log mode").seen

    @pytest.mark.parametrize(
        ("value_from", "needed"),
        [
            (SECRET, f"secretsmanager:GetSecretValue on {SECRET}:"),
            ("/jobs/token", f"ssm:GetParameters on {PARAMETER}:"),
        ],
    )
    async def test_has_secrets_that_its_role_reads(self, patient: Patient, value_from: str, needed: str) -> None:
        await register(patient, container={"secrets": [{"name": "TOKEN", "valueFrom": value_from}]})

        assert any(f"it may not {needed}" in finding.seen for finding in bad(await self.examined(patient)))

    async def test_that_is_not_for_Fargate_is_red(self, patient: Patient) -> None:
        await register(patient, requiresCompatibilities=["EC2"], networkMode="bridge")

        assert "is not fit for Fargate" in only(await self.examined(patient), "task definition").seen
        found = await self.examined(patient, capacity=Capacity.ec2())
        assert only(found, "task definition").state is State.OK

    async def test_is_run_in_that_revision(self, patient: Patient) -> None:
        await register(patient)
        await register(patient)
        (policy,) = patient.iam.users["fake"]
        for statement in policy["Statement"]:
            if statement["Sid"] == "RunTasks":
                statement["Resource"] = [f"arn:aws:ecs:{REGION}:{ACCOUNT}:task-definition/report:2"]

        failures = [finding for finding in await self.examined(patient) if finding.state is State.FAILED]

        assert [finding for finding in failures if "ecs:RunTask" in finding.seen] == []

    async def test_writes_where_the_jobs_own_container_does(self, patient: Patient) -> None:
        usual = {"awslogs-region": REGION, "awslogs-stream-prefix": "theirs"}
        logs = [usual | {"awslogs-group": group} for group in ("/side", "/jobs")]
        containers = [
            {"name": name, "image": IMAGE, "logConfiguration": {"logDriver": "awslogs", "options": options}}
            for name, options in zip(("side", "main"), logs, strict=True)
        ]
        await register(patient, containerDefinitions=containers)

        assert only(await self.examined(patient), "log group").seen == "/jobs is there"


class TestQuota:
    @pytest.mark.parametrize(
        ("vcpu", "concurrency", "state", "seen"),
        [
            (1, 1, State.OK, "6 vCPUs at a time on Fargate on demand, and a job takes 1"),
            (1, 6, State.OK, "jobs take 6"),
            (0.25, 24, State.OK, "jobs take 6"),
            (1, 7, State.WARNING, "6 of 7 jobs with 1 each fit"),
            (8, 1, State.FAILED, "and one job takes 8"),
        ],
    )
    async def test_is_held_against_the_jobs(
        self, patient: Patient, vcpu: float, concurrency: int, state: State, seen: str
    ) -> None:
        finding = only(await patient.examined(patient.job(vcpu=vcpu), concurrency=concurrency), "quota")

        assert finding.state is state
        assert seen in finding.seen
        assert state is State.OK or "L-3032A538" in finding.todo

    async def test_is_that_of_each_rung(self, patient: Patient) -> None:
        ladder = [Capacity.spot(), Capacity.fargate()]

        demand, spot = of(await patient.examined(capacity=ladder), "quota")

        assert "6 vCPUs at a time on Fargate on demand" in demand.seen
        assert "4 vCPUs at a time on Fargate Spot" in spot.seen

    async def test_of_other_capacity_is_not_Fargates(self, patient: Patient) -> None:
        capacity = Capacity.providers([Provider(name="gpu")])

        assert of(await patient.examined(capacity=capacity), "quota") == []

    async def test_that_AWS_does_not_tell_is_unknown(self, patient: Patient) -> None:
        patient.quotas.values.clear()

        finding = only(await patient.examined(), "quota")

        assert finding.state is State.UNKNOWN
        assert "Service Quotas" in finding.todo


class TestImage:
    @pytest.mark.parametrize(
        ("manifest", "architecture", "state"),
        [
            (index("amd64", "arm64"), None, State.OK),
            (index("amd64"), "X86_64", State.OK),
            (index("arm64"), "ARM64", State.OK),
            (index("arm64"), None, State.FAILED),
            (index("amd64"), "ARM64", State.FAILED),
            ('{"schemaVersion": 2, "config": {}}', None, State.UNKNOWN),
            (index("amd64").replace("linux", "windows"), None, State.UNKNOWN),
            (single(), None, State.UNKNOWN),
            ("not JSON", None, State.UNKNOWN),
            ("[]", None, State.UNKNOWN),
        ],
    )
    async def test_is_for_the_jobs_architecture(
        self, patient: Patient, manifest: str, architecture: Any, state: State
    ) -> None:
        patient.ecr.images["team/report"]["7"] = manifest

        finding = only(await patient.examined(patient.job(architecture=architecture)), "image")

        assert finding.state is state

    async def test_without_the_tag_is_red(self, patient: Patient) -> None:
        finding = only(await patient.examined(patient.job(image=IMAGE.replace(":7", ":8"))), "image")

        assert finding.state is State.FAILED
        assert "is not in its repository (ImageNotFound)" in finding.seen

    async def test_without_the_repository_is_red(self, patient: Patient) -> None:
        finding = only(await patient.examined(patient.job(image=IMAGE.replace("report", "reports"))), "image")

        assert finding.seen == f"there is no repository team/reports in account {ACCOUNT}, {REGION}"
        assert finding.state is State.FAILED

    async def test_may_be_named_by_digest_or_without_a_tag(self, patient: Patient) -> None:
        digest = f"sha256:{'0a' * 32}"
        patient.ecr.images["team/report"] |= {digest: index("amd64"), "latest": index("amd64")}
        for name in (IMAGE.replace(":7", f"@{digest}"), IMAGE.replace(":7", ""), f"{IMAGE}@{digest}"):
            assert only(await patient.examined(patient.job(image=name)), "image").state is State.OK

    async def test_of_another_region_is_looked_for_there(self, patient: Patient) -> None:
        session = Recording(patient.aws)

        found = await patient.examined(patient.job(image=IMAGE.replace(REGION, "eu-west-1")), session=session)

        assert only(found, "image").state is State.OK
        assert ("ecr", "eu-west-1") in session.made
        assert session.session.open_clients == 0

    async def test_of_each_sidecar_counts(self, patient: Patient) -> None:
        side = Sidecar(name="side", image=IMAGE.replace(":7", ":8"))
        public = Sidecar(name="public", image="python:3.12")
        patient.ec2.private_route = None
        patient.ec2.lead_to_endpoints(*ALL)

        found = await patient.examined(patient.job(sidecars=[side, public]), network=PRIVATELY)

        assert [finding.state for finding in of(found, "image")] == [State.OK, State.FAILED, State.UNKNOWN]
        assert "the image python:3.12 comes over the internet" in only(found, "route").seen

    async def test_is_of_any_architecture_where_the_instance_says_it(self, patient: Patient) -> None:
        patient.ecr.images["team/report"]["7"] = index("arm64")

        assert only(await patient.examined(capacity=Capacity.ec2()), "image").state is State.OK
        found = await patient.examined(patient.job(architecture="X86_64"), capacity=Capacity.ec2())
        assert only(found, "image").state is State.FAILED

    @pytest.mark.parametrize("image", ["python:3.12", "public.ecr.aws/docker/library/python:3.12", "ghcr.io/a/b"])
    async def test_of_elsewhere_is_not_looked_at(self, patient: Patient, image: str) -> None:
        finding = only(await patient.examined(patient.job(image=image)), "image")

        assert (finding.state, finding.seen) == (
            State.UNKNOWN,
            f"{image} was not looked at; it is pulled over the internet",
        )
        assert patient.aws.calls.count("ecr.BatchGetImage") == 0


class TestAnImageForOnePlatform:
    """What it says of itself is downloaded, in real time."""

    @pytest.fixture
    def anyio_backend(self, monkeypatch: pytest.MonkeyPatch) -> object:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        return "asyncio"

    @pytest.fixture
    def patient(self) -> Patient:
        patient = Patient(RealClock())
        patient.ecr.images["team/report"]["7"] = single()
        return patient

    @pytest.mark.parametrize(
        ("said", "state"),
        [
            ({"os": "linux", "architecture": "amd64"}, State.OK),
            ({"os": "linux", "architecture": "arm64", "variant": "v8"}, State.FAILED),
            ({"os": "windows", "architecture": "amd64"}, State.UNKNOWN),
            ({}, State.UNKNOWN),
            ([1], State.UNKNOWN),
        ],
    )
    async def test_is_held_against_the_job(self, patient: Patient, said: Any, state: State) -> None:
        with endpoint(json.dumps(said).encode()) as patient.ecr.url:
            finding = only(await patient.examined(), "image")

        assert finding.state is state
        assert state is not State.FAILED or finding.seen == f"{IMAGE} is for ARM64, and the job for X86_64"

    @pytest.mark.parametrize("url", ["", "http://127.0.0.1:9/", "file://{}"])
    async def test_that_cannot_be_downloaded_is_unknown(self, patient: Patient, url: str, tmp_path: Path) -> None:
        path = tmp_path / "config.json"
        path.write_text('{"os": "linux", "architecture": "amd64"}')
        patient.ecr.url = url.format(path)

        finding = only(await patient.examined(), "image")

        assert finding.state is State.UNKNOWN
        assert "see that it was built for X86_64" in finding.todo

    async def test_that_may_not_be_downloaded_names_the_permission(self, patient: Patient) -> None:
        patient.aws.faults.add(denied("ecr.GetDownloadUrlForLayer"))

        finding = only(await patient.examined(), "image")

        assert finding.state is State.UNKNOWN
        assert "allow ecr:GetDownloadUrlForLayer" in finding.todo

    async def test_that_is_no_JSON_is_unknown(self, patient: Patient) -> None:
        with endpoint(b"<html>") as patient.ecr.url:
            assert only(await patient.examined(), "image").state is State.UNKNOWN


class TestEvents:
    async def test_without_the_queue_is_red(self, patient: Patient) -> None:
        for queue in ("jobs-events", f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/jobs-events"):
            finding = only(await patient.examined(events=queue), "events")

            assert finding.state is State.FAILED
            assert "make_events()" in finding.todo

    async def test_without_a_rule_is_a_warning(self, patient: Patient) -> None:
        await patient.aws.call("sqs", "CreateQueue", {"QueueName": "jobs-events"})

        finding = only(await patient.examined(events="jobs-events"), "events")

        assert finding.state is State.WARNING
        assert "no rule of EventBridge sends to it" in finding.seen

    async def test_with_a_rule_that_is_disabled_is_a_warning(self, patient: Patient) -> None:
        await patient.backend(events="jobs-events").make_events()
        await patient.aws.call("events", "DisableRule", {"Name": "jobs-events"})

        finding = only(await patient.examined(events="jobs-events"), "events")

        assert finding.state is State.WARNING
        assert "the rule jobs-events is disabled" in finding.seen

    async def test_with_both_is_green(self, patient: Patient) -> None:
        url = await patient.backend(events="jobs-events").make_events()
        for queue in ("jobs-events", url):
            assert only(await patient.examined(events=queue), "events").state is State.OK


class TestJournal:
    async def test_without_the_table_is_red(self, patient: Patient) -> None:
        finding = only(await patient.examined(journal="nights"), "journal")

        assert finding.state is State.FAILED
        assert finding.seen == f"there is no table nights in {REGION}"
        assert "DynamoDBJournal('nights').create_table()" in finding.todo

    async def test_by_its_ARN_is_found(self, patient: Patient) -> None:
        arn = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/fargate-jobs"

        assert only(await patient.examined(journal=arn), "journal").state is State.OK

    async def test_that_is_no_journal_is_red(self, patient: Patient) -> None:
        patient.dynamodb.tables["fargate-jobs"]["LocalSecondaryIndexes"] = []

        finding = only(await patient.examined(journal="fargate-jobs"), "journal")

        assert finding.state is State.FAILED
        assert "is no journal" in finding.seen

    async def test_that_is_being_deleted_is_red(self, patient: Patient) -> None:
        patient.dynamodb.tables["fargate-jobs"]["TableStatus"] = "DELETING"

        finding = only(await patient.examined(journal="fargate-jobs"), "journal")

        assert finding.state is State.FAILED
        assert "it is DELETING" in finding.seen

    async def test_is_looked_at_with_what_it_has_itself(self, patient: Patient) -> None:
        theirs = patient.aws.session()
        journal = DynamoDBJournal("fargate-jobs", session=theirs, region="eu-west-1")

        assert only(await patient.examined(journal=journal), "journal").state is State.OK
        assert theirs.opened == ["dynamodb"]
        assert not journal.is_open

    async def test_that_is_open_stays_open(self, patient: Patient) -> None:
        async with DynamoDBJournal("fargate-jobs", session=patient.aws.session(), region=REGION) as journal:
            assert only(await patient.examined(journal=journal), "journal").state is State.OK
            assert journal.is_open

    async def test_of_another_kind_is_not_AWSs(self, patient: Patient) -> None:
        assert of(await patient.examined(journal=MemoryJournal()), "journal") == []


class TestEnvironments:
    async def test_without_the_bucket_are_red(self, patient: Patient) -> None:
        finding = only(await patient.examined(spill_to="s3://variables/jobs"), "environments")

        assert (finding.state, finding.seen) == (State.FAILED, "there is no bucket variables")


class TestJob:
    async def test_that_cannot_be_one_of_ECS_is_red(self, patient: Patient) -> None:
        finding = only(await patient.examined(patient.job(secrets={"TOKEN": Secret("t0k3n")})), "job")

        assert finding.state is State.FAILED
        assert "secret_prefix" in finding.todo
        assert "t0k3n" not in str(finding)

    async def test_without_an_image_is_red(self, patient: Patient) -> None:
        finding = only(await patient.examined(Job(command=["true"])), "job")

        assert (finding.state, finding.seen) == (State.FAILED, "image: a task needs an image")


class TestDiscovery:
    async def test_of_what_was_not_said_is_told(self, patient: Patient) -> None:
        patient.aws.ecs.add_cluster("default")

        found = await patient.examined(cluster=None, network=None)

        told = only(found, "configuration")
        assert told.state is State.OK
        assert "cluster default: it is there, and nothing else was said" in told.seen
        assert only(found, "route").state is State.OK

    async def test_uses_variables(self, patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in (
            ("CLUSTER", "jobs"),
            ("SUBNETS", PRIVATE),
            ("EXECUTION_ROLE", EXECUTION),
            ("LOG_GROUP", "/jobs"),
        ):
            monkeypatch.setenv(f"FARGATE_RUNNER_{name}", value)

        found = await patient.examined(cluster=None, network=None, roles=None, log_group=None)

        assert only(found, "cluster").seen == "jobs is active"
        assert only(found, "log group").seen == "/jobs is there"
        assert EXECUTION in of(found, "execution role")[0].seen
        assert PRIVATE in only(found, "route").seen
        assert bad(found) == []

    async def test_is_not_done_where_the_backend_does_not(
        self, patient: Patient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FARGATE_RUNNER_SUBNETS", PRIVATE)

        assert only(await patient.examined(network=None), "subnets").state is State.FAILED
        assert of(await patient.examined(network=None, discover=True), "subnets")[0].state is State.OK

    async def test_that_finds_nothing_is_red_and_the_rest_is_looked_at(self, patient: Patient) -> None:
        patient.aws.ecs.add_cluster("another")

        found = await patient.examined(cluster=None)

        told = only(found, "cluster")
        assert told.state is State.FAILED
        assert told.seen == "there are 2 in us-east-1 and none is 'default' (another, jobs)"
        assert "set FARGATE_RUNNER_CLUSTER" in told.todo
        assert only(found, "permissions").state is State.UNKNOWN
        assert {finding.check for finding in bad(found)} == {"cluster", "permissions"}

    async def test_that_finds_no_network_is_red_and_the_rest_is_looked_at(
        self, patient: Patient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FARGATE_RUNNER_EXECUTION_ROLE", EXECUTION)
        patient.ec2.default_vpc = False

        found = await patient.examined(network=None, roles=None, discover=True)

        assert {finding.check for finding in bad(found)} == {"subnets"}
        assert "set FARGATE_RUNNER_SUBNETS" in only(found, "subnets").todo
        assert EXECUTION in of(found, "execution role")[0].seen

    @pytest.mark.parametrize(
        ("trouble", "seen"),
        [
            ({"delay": 1e6}, "AWS did not answer within 20 seconds"),
            ({"code": "InternalFailure", "status": 500}, "ec2.DescribeVpcs: InternalFailure"),
        ],
        ids=["silence", "failure"],
    )
    async def test_that_is_not_answered_is_red_and_nothing_is_made_up(
        self, patient: Patient, clock: VirtualClock, trouble: dict[str, Any], seen: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FARGATE_RUNNER_EXECUTION_ROLE", EXECUTION)
        patient.aws.faults.add(Fault(match="ec2.DescribeVpcs", times=math.inf, **trouble))

        found = await patient.examined(network=None, roles=None, discover=True)

        assert {finding.check for finding in bad(found)} == {"configuration"}
        assert (only(found, "configuration").state, only(found, "configuration").seen) == (State.FAILED, seen)
        # Nobody knows what the environment says of roles and lines, and nobody says that it says nothing.
        assert not {"execution role", "task role", "log group", "subnets"} & {finding.check for finding in found}
        assert clock.time() <= 21.0

    async def test_that_is_denied_names_the_permission(self, patient: Patient) -> None:
        patient.aws.faults.add(denied("ec2.DescribeVpcs"))

        finding = only(await patient.examined(network=None, discover=True), "subnets")

        assert "ec2:DescribeVpcs is not allowed for the credentials in use" in finding.seen

    async def test_of_a_wrong_variable_is_red(self, patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FARGATE_RUNNER_SUBNETS", "nowhere")

        found = await patient.examined(cluster=None, network=None)

        assert "FARGATE_RUNNER_SUBNETS" in only(found, "configuration").seen
        assert of(found, "subnets") == []

    async def test_leaves_the_backend_as_it_was(self, patient: Patient) -> None:
        patient.aws.ecs.add_cluster("default")
        backend = patient.backend(None, network=None)

        await patient.examined(backend=backend)

        assert (backend.cluster, backend.options.network) == ("", None)


class TestBadInput:
    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"job": "report"}, "job"),
            ({"concurrency": 0}, "concurrency"),
            ({"concurrency": True}, "concurrency"),
            ({"patience": timedelta()}, "patience"),
            ({"patience": 20}, "patience"),
            ({"namespace": "a b"}, "namespace"),
            ({"journal": "no table!"}, "journal"),
            ({"chores": ["dishes"]}, "chores"),
        ],
    )
    async def test_is_refused_before_anything_is_asked(
        self, patient: Patient, changes: dict[str, Any], field: str
    ) -> None:
        with pytest.raises(InvalidJob) as caught:
            await diagnose(patient.backend(), **changes)

        assert caught.value.field == field
        assert len(patient.aws.calls) == 0

    async def test_another_backend_has_no_doctor(self) -> None:
        with pytest.raises(InvalidJob, match="expected an EcsBackend, got MemoryBackend"):
            await diagnose(MemoryBackend())  # type: ignore[arg-type]
