"""Where tasks run, what they bring along, and that nothing which AWS answers makes a wait endless."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import anyio
import pytest

from fargate_runner import (
    BackendError,
    Capacity,
    EbsVolume,
    EcsBackend,
    EcsOptions,
    EfsVolume,
    InvalidJob,
    Job,
    JobFailed,
    JobResult,
    Kind,
    LaunchRejected,
    LogGroup,
    Network,
    Retry,
    Roles,
    Runner,
    Secret,
    SecretRef,
    Sidecar,
)
from fargate_runner.testing.aws import (
    ContainerRun,
    ContainerScript,
    FakeAws,
    Fault,
    Quotas,
    TaskScript,
    denied,
    throttled,
)
from fargate_runner.testing.clock import VirtualClock
from tests.contract.ecs_words import IMAGE, Words, script
from tests.ecs import truths
from tests.ecs.conftest import NETWORK, ROLES
from tests.ecs.test_backend import calls, identity, launched

Make = Callable[..., EcsBackend]

LADDER = [Capacity.spot(), Capacity.spot(), Capacity.fargate()]
ROLE = "arn:aws:iam::123456789012:role/"


def providers(aws: FakeAws) -> list[str]:
    return [truth.provider for truth in aws.world.truth()]


def zones(aws: FakeAws) -> list[str]:
    return [task.zone for task in aws.world.tasks.values()]


async def kept_secrets(aws: FakeAws) -> list[str]:
    reply = await aws.ssm.call("GetParametersByPath", {"Path": "/jobs", "Recursive": True})
    return [parameter["Name"] for parameter in reply["Parameters"]]


class TestLadder:
    async def test_a_spot_outage_leads_to_on_demand(self, make_backend: Make, aws: FakeAws) -> None:
        aws.world.capacity.out("FARGATE_SPOT")

        async with Runner(make_backend(capacity=LADDER)) as runner:
            result = await runner.run(Words().exits())

        assert providers(aws) == ["FARGATE"]
        assert len(result.attempts) == 1
        assert len(calls(aws, "RunTask")) == 3

    async def test_interruptions_lead_to_on_demand(self, make_backend: Make, aws: FakeAws) -> None:
        aws.world.fates.add(
            TaskScript(interrupted_after=10.0), when=lambda run: "SPOT" in run.capacity_provider, times=9
        )

        async with Runner(make_backend(capacity=LADDER)) as runner:
            result = await runner.run(Words().exits())

        assert providers(aws) == ["FARGATE_SPOT", "FARGATE_SPOT", "FARGATE"]
        assert [attempt.outcome.kind for attempt in result.attempts] == [Kind.INTERRUPTED] * 2 + [Kind.SUCCEEDED]

    @pytest.mark.parametrize("match", ["ecs.RunTask", "ssm.PutParameter"])
    async def test_throttles_lead_nowhere(self, make_backend: Make, aws: FakeAws, match: str) -> None:
        backend = make_backend(capacity=LADDER, secret_prefix="/jobs")
        aws.faults.add(throttled(match, times=math.inf))

        async with Runner(backend) as runner, anyio.create_task_group() as tasks:
            tasks.start_soon(runner.run, Words().exits().with_(secrets={"A": Secret("canary")}))
            await anyio.sleep(200)
            aws.faults.clear()

        assert providers(aws) == ["FARGATE_SPOT"]

    async def test_after_a_throttle_an_outage_leads_on(self, make_backend: Make, aws: FakeAws) -> None:
        aws.world.capacity.out("FARGATE_SPOT")
        aws.faults.add(throttled("ecs.RunTask", times=math.inf))

        async with Runner(make_backend(capacity=LADDER)) as runner, anyio.create_task_group() as tasks:
            tasks.start_soon(runner.run, Words().exits())
            await anyio.sleep(100)
            aws.faults.clear()

        on_spot = ["capacityProviderStrategy" in call for call in calls(aws, "RunTask")[-3:]]
        assert on_spot == [True, True, False]
        assert providers(aws) == ["FARGATE"]

    async def test_a_zone_without_room_is_left_for_another(self, make_backend: Make, aws: FakeAws) -> None:
        network = Network(subnets=[aws.ec2.subnets[0].id, aws.ec2.subnets[1].id])
        aws.world.capacity.out(zone=aws.world.zone_of(network.subnets[0]))

        async with Runner(make_backend(network=network)) as runner:
            await runner.run(Words().exits())

        assert zones(aws) == [aws.world.zone_of(network.subnets[1])]

    async def test_a_used_up_vcpu_quota_is_waited_for(self, clock: VirtualClock) -> None:
        aws = FakeAws(clock=clock, script=script, clusters=("jobs",), quotas=Quotas.published(vcpus=6))
        known: dict[str, Any] = {"network": NETWORK, "roles": ROLES, "session": aws.session(), "region": aws.region}
        backend = EcsBackend("jobs", **known, utcnow=clock.utcnow)
        big = Words().exits().with_(vcpu=2, memory_gib=4, start_timeout=timedelta(hours=1))

        async with Runner(backend) as runner:
            results = [result async for result in runner.map([big] * 9)]

        assert [result.outcome.kind for result in results] == [Kind.SUCCEEDED] * 9
        assert len(aws.world.truth()) == 9

    async def test_no_room_for_longer_than_the_start_timeout_is_never_started(
        self, make_backend: Make, aws: FakeAws
    ) -> None:
        aws.world.capacity.out()
        job = Words().exits().with_(start_timeout=timedelta(minutes=2), retry=Retry(never_started=0))

        async with Runner(make_backend()) as runner:
            with pytest.raises(JobFailed, match="more zones") as caught:
                await runner.run(job)

        assert caught.value.result.outcome.kind is Kind.NEVER_STARTED
        assert aws.world.truth() == []


class TestOtherCapacity:
    @pytest.mark.parametrize(
        ("capacity", "sent"),
        [
            (Capacity.fargate(), {"launchType": "FARGATE"}),
            (Capacity.ec2(), {"launchType": "EC2"}),
            (
                Capacity.providers({"machines": 3}),
                {"capacityProviderStrategy": [{"capacityProvider": "machines", "weight": 3, "base": 0}]},
            ),
            (
                Capacity.providers({"managed": 1}, managed_instances=True),
                {"capacityProviderStrategy": [{"capacityProvider": "managed", "weight": 1, "base": 0}]},
            ),
            (
                Capacity.providers({"FARGATE_SPOT": 3, "FARGATE": 1}, platform_version="1.4.0"),
                {
                    "capacityProviderStrategy": [
                        {"capacityProvider": "FARGATE_SPOT", "weight": 3, "base": 0},
                        {"capacityProvider": "FARGATE", "weight": 1, "base": 0},
                    ],
                    "platformVersion": "1.4.0",
                },
            ),
        ],
        ids=["fargate", "ec2", "provider", "managed-instances", "mixed"],
    )
    async def test_a_launch_says_where(
        self, make_backend: Make, aws: FakeAws, capacity: Capacity, sent: dict[str, Any]
    ) -> None:
        async with make_backend(capacity=capacity) as backend:
            launch = await backend.prepare(Words().exits(), identity())

        request = launch.request["run_task"]
        told = {"launchType", "capacityProviderStrategy", "platformVersion"} & request.keys()
        assert {name: request[name] for name in told} == sent

    @pytest.fixture
    async def instances(self, aws: FakeAws) -> None:
        group = "arn:aws:autoscaling:us-east-1:123456789012:autoScalingGroup:0a1b:autoScalingGroupName/group"
        profile = "arn:aws:iam::123456789012:instance-profile/p"
        template = {"ec2InstanceProfileArn": profile, "networkConfiguration": {"subnets": list(NETWORK.subnets)}}
        managed = {"infrastructureRoleArn": f"{ROLE}infrastructure", "instanceLaunchTemplate": template}
        request: dict[str, Any] = {"name": "machines", "autoScalingGroupProvider": {"autoScalingGroupArn": group}}
        await aws.call("ecs", "CreateCapacityProvider", request)
        request = {"name": "managed", "cluster": "jobs", "managedInstancesProvider": managed}
        await aws.call("ecs", "CreateCapacityProvider", request)
        names = {"capacityProviders": ["machines", "managed"], "defaultCapacityProviderStrategy": []}
        await aws.call("ecs", "PutClusterCapacityProviders", {"cluster": "jobs", **names})

    @pytest.mark.usefixtures("instances")
    @pytest.mark.parametrize(
        "capacity",
        [
            Capacity.ec2(),
            Capacity.providers({"machines": 1}),
            Capacity.providers({"managed": 1}, managed_instances=True),
        ],
        ids=["launch-type", "provider", "managed-instances"],
    )
    async def test_instances_run_jobs(self, make_backend: Make, capacity: Capacity) -> None:
        async with Runner(make_backend(capacity=capacity)) as runner:
            result = await runner.run(Words().exits())

        assert result.succeeded

    async def test_instances_without_room_are_waited_for(self, make_backend: Make, aws: FakeAws) -> None:
        aws.world.capacity.out("EC2", times=4, reason="RESOURCE:MEMORY")

        async with Runner(make_backend(capacity=Capacity.ec2())) as runner:
            result = await runner.run(Words().exits())

        assert len(result.attempts) == 1
        assert len(aws.world.truth()) == 1


class TestWhatTasksBring:
    async def test_a_launch_carries_what_options_say(self, make_backend: Make, aws: FakeAws) -> None:
        options = EcsOptions(
            enable_execute_command=True,
            propagate_tags="TASK_DEFINITION",
            enable_managed_tags=True,
            group="nightly",
            platform_version="1.4.0",
            roles=Roles(task=f"{ROLE}task", execution=f"{ROLE}execution"),
            volumes=[
                EfsVolume(path="/mnt/shared", file_system_id="fs-0a1b2c3d4e5f67890", shared_with=["side"]),
                EbsVolume(path="/mnt/disk", role=f"{ROLE}infrastructure", size_gib=20),
            ],
        )
        job = (
            Words()
            .exits()
            .with_(
                architecture="ARM64",
                ephemeral_storage_gib=50,
                tags={"team": "a"},
                sidecars=[Sidecar(name="side", image=IMAGE, command=["exits", "0"], essential=False)],
                ecs=options,
            )
        )

        async with Runner(make_backend(tags={"team": "b", "app": "c"})) as runner:
            result = await runner.run(job)

        (sent,) = calls(aws, "RunTask")
        (registered,) = calls(aws, "RegisterTaskDefinition")
        assert result.succeeded
        assert sent["enableExecuteCommand"] is sent["enableECSManagedTags"] is True
        assert (sent["propagateTags"], sent["group"], sent["platformVersion"]) == (
            "TASK_DEFINITION",
            "nightly",
            "1.4.0",
        )
        assert sent["tags"] == [{"key": "app", "value": "c"}, {"key": "team", "value": "a"}]
        assert sent["overrides"]["ephemeralStorage"] == {"sizeInGiB": 50}
        assert [disk["name"] for disk in sent["volumeConfigurations"]] == ["volume-2"]
        assert sent["networkConfiguration"]["awsvpcConfiguration"]["assignPublicIp"] == "DISABLED"
        assert (registered["taskRoleArn"], registered["executionRoleArn"]) == (f"{ROLE}task", f"{ROLE}execution")
        assert registered["runtimePlatform"]["cpuArchitecture"] == "ARM64"
        mounts = {part["name"]: len(part["mountPoints"]) for part in registered["containerDefinitions"]}
        assert mounts == {"main": 2, "side": 1}

    @pytest.mark.parametrize(
        "arn",
        [
            "arn:aws:secretsmanager:us-east-1:123456789012:secret:db-AbCdEf",
            "arn:aws:secretsmanager:us-east-1:123456789012:secret:db-AbCdEf:password::",
            "arn:aws:ssm:us-east-1:123456789012:parameter/db/password",
        ],
    )
    async def test_references_to_secrets_travel_as_they_are(self, make_backend: Make, aws: FakeAws, arn: str) -> None:
        side = Sidecar(name="side", image=IMAGE, command=["exits", "0"], secrets={"B": SecretRef(arn)})
        async with make_backend() as backend:
            await backend.prepare(Words().exits().with_(secrets={"A": arn}, sidecars=[side]), identity())

        (registered,) = calls(aws, "RegisterTaskDefinition")
        secrets = {part["name"]: part["secrets"] for part in registered["containerDefinitions"]}
        assert secrets == {"main": [{"name": "A", "valueFrom": arn}], "side": [{"name": "B", "valueFrom": arn}]}

    async def test_values_of_sidecars_arrive_and_are_removed(self, make_backend: Make, aws: FakeAws) -> None:
        arrived: dict[str, str] = {}

        def remember(container: ContainerRun) -> ContainerScript:
            arrived.update({container.name: container.environment["A"]})
            return ContainerScript()

        aws.world.script = remember
        side = Sidecar(name="side", image=IMAGE, essential=False, secrets={"A": Secret("theirs")})

        async with Runner(make_backend(secret_prefix="/jobs")) as runner:
            await runner.run(Job(image=IMAGE, secrets={"A": Secret("ours")}, sidecars=[side]))

        assert arrived == {"main": "ours", "side": "theirs"}
        assert len(calls(aws, "DeleteParameter")) == 2

    async def test_values_are_removed_by_another_process_that_sees_the_job_end(
        self, make_backend: Make, aws: FakeAws
    ) -> None:
        side = Sidecar(name="side", image=IMAGE, command=["exits", "0"], essential=False, secrets={"A": Secret("b")})
        job = Words().exits().with_(key="k", secrets={"A": Secret("a")}, sidecars=[side])
        async with Runner(make_backend(secret_prefix="/jobs"), on_exit="detach") as runner:
            await runner.submit(job)
        await anyio.sleep(30)  # until it is listed
        detached = await kept_secrets(aws)

        async with Runner(make_backend(secret_prefix="/jobs")) as runner:
            await runner.run(job)

        assert len(detached) == 2
        assert await kept_secrets(aws) == []

    async def test_values_of_a_launch_that_is_refused_are_removed(self, make_backend: Make, aws: FakeAws) -> None:
        aws.faults.add(denied("ecs.RunTask"))

        async with Runner(make_backend(secret_prefix="/jobs")) as runner:
            with pytest.raises(JobFailed, match="ecs:RunTask"):
                await runner.run(Words().exits().with_(secrets={"A": Secret("canary")}))

            assert await kept_secrets(aws) == []


class TestExistingDefinitions:
    @pytest.fixture
    async def registered(self, aws: FakeAws) -> dict[str, Any]:
        body = {
            "family": "nightly",
            "networkMode": "awsvpc",
            "requiresCompatibilities": ["FARGATE"],
            "cpu": "256",
            "memory": "512",
            "executionRoleArn": f"{ROLE}execution",
            "containerDefinitions": [
                {"name": "worker", "image": IMAGE, "essential": True, "command": ["exits", "0"]},
                {"name": "agent", "image": IMAGE, "essential": False, "command": ["exits", "0"]},
            ],
        }
        reply = await aws.call("ecs", "RegisterTaskDefinition", body)
        found: dict[str, Any] = reply["taskDefinition"]
        return found

    @pytest.mark.parametrize("form", ["family", "family:revision", "arn"])
    async def test_each_way_to_name_one_works(
        self, make_backend: Make, aws: FakeAws, registered: dict[str, Any], form: str
    ) -> None:
        arn = registered["taskDefinitionArn"]
        names = {"family": "nightly", "family:revision": "nightly:1", "arn": arn}
        job = Job(command=["exits", "7"], ecs=EcsOptions(task_definition=names[form]))

        async with Runner(make_backend()) as runner:
            handle = await runner.submit(job)
            result = await handle.wait()

        (sent,) = calls(aws, "RunTask")
        assert sent["taskDefinition"] == arn
        assert [part["name"] for part in sent["overrides"]["containerOverrides"]] == ["worker"]
        assert result.exit_code == 7
        assert len(calls(aws, "RegisterTaskDefinition")) == 1

    async def test_an_unknown_container_is_refused_with_those_that_there_are(
        self, make_backend: Make, aws: FakeAws, registered: dict[str, Any]
    ) -> None:
        two = [dict(part, essential=True) for part in registered["containerDefinitions"]]
        await aws.call(
            "ecs",
            "RegisterTaskDefinition",
            {"family": "two", "networkMode": "awsvpc", "containerDefinitions": two, "cpu": "256", "memory": "512"},
        )
        job = Job(container_name="nobody", ecs=EcsOptions(task_definition="two"))

        async with make_backend() as backend:
            with pytest.raises(InvalidJob, match="nobody") as caught:
                await backend.prepare(job, identity())

        assert caught.value.field == "container_name"
        assert "worker, agent" in caught.value.fix

    async def test_pruning_takes_our_own_of_the_namespace_alone(
        self, make_backend: Make, aws: FakeAws, registered: dict[str, Any]
    ) -> None:
        async with make_backend() as backend:
            await backend.prepare(Words().exits(), identity())
        async with make_backend() as other:
            theirs = identity()
            await other.prepare(Words().exits(), type(theirs)(namespace="tests-2", key="k", attempt=1))
        await anyio.sleep(40 * 86400)

        async with make_backend() as backend:
            pruned = await backend.prune("tests")
            left = await aws.call("ecs", "ListTaskDefinitions", {})

        assert len(pruned) == 1
        assert registered["taskDefinitionArn"] in left["taskDefinitionArns"]
        assert any("fr-tests-2-" in arn for arn in left["taskDefinitionArns"])

    async def test_pruning_leaves_what_is_in_use(self, make_backend: Make, aws: FakeAws) -> None:
        async with make_backend() as backend:
            await launched(backend, Words().waits())
        await anyio.sleep(40 * 86400)

        async with make_backend() as backend:
            assert await backend.prune("tests") == []

    async def test_pruning_leaves_what_is_young(self, make_backend: Make, aws: FakeAws) -> None:
        async with make_backend() as backend:
            await backend.prepare(Words().exits(), identity())

        async with make_backend() as backend:
            assert await backend.prune("tests") == []


class TestLogGroups:
    async def test_one_that_is_made_is_kept_as_long_as_said(self, make_backend: Make, aws: FakeAws) -> None:
        async with make_backend(log_group=LogGroup(name="/mine", retention_days=30)) as backend:
            await backend.prepare(Words().exits(), identity())

        groups = await aws.logs.call("DescribeLogGroups", {})
        assert [(group["logGroupName"], group["retentionInDays"]) for group in groups["logGroups"]] == [("/mine", 30)]

    async def test_one_that_exists_keeps_its_own_time(self, make_backend: Make, aws: FakeAws) -> None:
        aws.logs.create_group("/mine")

        async with make_backend(log_group=LogGroup(name="/mine", retention_days=30)) as backend:
            await backend.prepare(Words().exits(), identity())

        assert calls(aws, "PutRetentionPolicy") == []

    async def test_one_that_may_not_be_made_is_told_before_the_launch(self, make_backend: Make, aws: FakeAws) -> None:
        async with make_backend(log_group=LogGroup(name="/mine", create=False)) as backend:
            with pytest.raises(LaunchRejected, match="/mine"):
                await backend.prepare(Words().exits(), identity())

    async def test_where_it_may_not_even_be_asked_for_the_job_runs(self, make_backend: Make, aws: FakeAws) -> None:
        aws.logs.create_group("/fargate-runner")
        aws.faults.add(denied("logs.CreateLogGroup"))

        async with Runner(make_backend()) as runner:
            result = await runner.run(Words().prints("a"))

        assert [str(line) for line in result.last_lines] == ["a"]

    async def test_one_that_is_not_there_is_an_outcome_with_advice(self, make_backend: Make, aws: FakeAws) -> None:
        aws.faults.add(denied("logs.CreateLogGroup"))

        async with Runner(make_backend()) as runner:
            with pytest.raises(JobFailed, match="log group") as caught:
                await runner.run(Words().prints("a"))

        assert caught.value.result.outcome.kind is Kind.NEVER_STARTED

    async def test_lines_in_another_region_are_not_said_to_be_none(self, make_backend: Make, aws: FakeAws) -> None:
        group = LogGroup(name="/mine", region="eu-west-1")
        aws.logs.create_group("/mine")

        async with Runner(make_backend(log_group=group)) as runner:
            result = await runner.run(Words().exits())

        assert not result.attempts[0].logs_complete


class TestBadInput:
    @pytest.mark.parametrize(
        ("job", "options", "field"),
        [
            (Job(command=["true"]), {}, "image"),
            (Words().exits(), {"network": None}, "network"),
            (Words().exits().with_(ephemeral_storage_gib=50), {"capacity": Capacity.ec2()}, "ephemeral_storage_gib"),
            (Words().exits().with_(secrets={"A": Secret("x")}), {}, "secrets['A']"),
            (Words().exits().with_(tags={f"t{n}": "x" for n in range(50)}), {"tags": {"app": "a"}}, "tags"),
            (Words().exits().with_(ecs=EcsOptions(task_definition="none:1")), {}, "ecs.task_definition"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    async def test_what_can_never_run_is_refused_before_anything_is_sent(
        self, make_backend: Make, aws: FakeAws, job: Job, options: dict[str, Any], field: str
    ) -> None:
        async with make_backend(**options) as backend:
            with pytest.raises(InvalidJob) as caught:
                await backend.prepare(job, identity())

        assert caught.value.field == field
        assert caught.value.fix
        assert aws.calls.count("ecs.RunTask") == aws.calls.count("ecs.RegisterTaskDefinition") == 0

    @pytest.mark.parametrize(
        ("code", "said", "told"),
        [
            (
                "InvalidParameterException",
                "Error retrieving subnet information for [subnet-0a]: InvalidSubnetID.NotFound",
                "subnets",
            ),
            ("ClientException", "Role is not valid", "role"),
            ("InvalidParameterException", "No Fargate configuration exists for given values.", "size|vcpu|Fargate"),
            ("ClusterNotFoundException", "Cluster not found.", "cluster"),
            ("PlatformUnknownException", "The specified platform version does not exist.", "platform"),
            ("BlockedException", "Your account is currently blocked.", "AWS Support"),
        ],
        ids=["subnet", "role", "size", "cluster", "platform", "blocked"],
    )
    async def test_what_aws_refuses_is_an_outcome_with_its_words_and_advice(
        self, make_backend: Make, aws: FakeAws, code: str, said: str, told: str
    ) -> None:
        aws.faults.add(Fault(match="ecs.RunTask", code=code, message=said, times=math.inf))

        async with Runner(make_backend()) as runner:
            with pytest.raises(JobFailed, match=f"(?s){told}") as caught:
                await runner.run(Words().exits())

        assert said.rstrip(".") in str(caught.value)
        assert "request" in str(caught.value)
        assert caught.value.result.outcome.kind is Kind.NEVER_STARTED


STATUSES = ("PROVISIONING", "PENDING", "ACTIVATING", "RUNNING", "DEACTIVATING", "STOPPING", "DEPROVISIONING")


class TestNoWaitIsEndless:
    @pytest.mark.parametrize("status", STATUSES)
    async def test_a_task_that_is_stuck_comes_to_an_end(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock, status: str
    ) -> None:
        aws.world.fates.add(TaskScript(stuck_in=status), times=math.inf)
        job = Words().exits().with_(timeout=timedelta(minutes=10), retry=Retry(never_started=1, interruptions=0))

        async with Runner(make_backend()) as runner:
            handle = await runner.submit(job)
            result = await handle.wait()

        assert clock.time() < 4 * 3600
        assert result.outcome.kind is not None
        assert result.succeeded is (status in {"RUNNING", "DEACTIVATING", "STOPPING", "DEPROVISIONING"})

    @pytest.mark.parametrize("status", STATUSES)
    async def test_a_stuck_task_does_not_keep_the_runner_open(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock, status: str
    ) -> None:
        aws.world.fates.add(TaskScript(stuck_in=status), times=math.inf)

        with anyio.move_on_after(300):
            async with Runner(make_backend()) as runner:
                await runner.run(Words().exits())

        assert clock.time() < 2 * 3600

    @pytest.mark.parametrize("match", ["ecs.StopTask", "ecs.DescribeTasks", "ecs.StopTask|ecs.DescribeTasks", "logs.*"])
    async def test_endless_throttles_while_stopping_come_to_an_end(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock, match: str
    ) -> None:
        async with Runner(make_backend()) as runner:
            handle = await runner.submit(Words().waits())
            await anyio.sleep(100)
            aws.faults.add(throttled(match, times=math.inf))
            result = await handle.stop()

        assert clock.time() < 2 * 3600
        assert result.outcome.kind in {Kind.CANCELLED, Kind.UNKNOWN}


class Answers:
    """A session whose answers are not those of AWS."""

    def __init__(self, session: Any, answer: Callable[[str, dict[str, Any]], dict[str, Any]]) -> None:
        self._session = session
        self._answer = answer
        self.region_name = session.region_name

    def client(self, name: str, **options: Any) -> Any:
        made = self._session.client(name, **options)
        answer = self._answer

        class Opened:
            async def __aenter__(self) -> Any:
                client = await made.__aenter__()
                real = client._make_api_call

                async def changed(operation: str, request: dict[str, Any]) -> dict[str, Any]:
                    return answer(operation, await real(operation, request))

                client._make_api_call = changed
                return client

            async def __aexit__(self, *exc: object) -> None:
                await made.__aexit__(*exc)

        return Opened()


ODD: dict[str, Callable[[str, dict[str, Any]], dict[str, Any]]] = {
    "an unknown status": lambda operation, reply: (
        reply | {"tasks": [task | {"lastStatus": "CONTEMPLATING"} for task in reply["tasks"]]}
        if operation == "DescribeTasks"
        else reply
    ),
    "never listed": lambda operation, reply: reply | {"taskArns": []} if operation == "ListTasks" else reply,
    "never described": lambda operation, reply: (
        {"tasks": [], "failures": []} if operation == "DescribeTasks" else reply
    ),
    "nothing launched, nothing failed": lambda operation, reply: (
        {"tasks": [], "failures": []} if operation == "RunTask" else reply
    ),
    "empty": lambda operation, reply: {} if operation == "DescribeTasks" else reply,
    "empty launches": lambda operation, reply: {} if operation == "RunTask" else reply,
    "empty stops": lambda operation, reply: {} if operation == "StopTask" else reply,
    "empty pages": lambda operation, reply: {} if operation.endswith("LogEvents") else reply,
    "empty lists": lambda operation, reply: {} if operation == "ListTasks" else reply,
    "empty clusters": lambda operation, reply: {} if operation == "DescribeClusters" else reply,
    "empty definitions": lambda operation, reply: {} if operation.endswith("TaskDefinition") else reply,
    "nulls": lambda operation, reply: dict.fromkeys(reply) if operation in {"DescribeTasks", "ListTasks"} else reply,
    "endless pages": lambda operation, reply: reply | {"nextToken": "again"} if operation == "ListTasks" else reply,
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("word", ["exits", "waits"])
async def test_odd_answers_end_in_a_record_or_an_error(
    make_backend: Make, aws: FakeAws, clock: VirtualClock, odd: str, word: str
) -> None:
    backend = make_backend(session=Answers(aws.session(), ODD[odd]))
    job = getattr(Words(), word)().with_(key="k", timeout=timedelta(minutes=10), retry=Retry(interruptions=1))
    ended: list[JobResult | BackendError] = []

    async with Runner(backend) as runner:
        try:
            handle = await runner.submit(job)
            ended.append(await handle.wait())
        except BackendError as exc:
            ended.append(exc)

    results = [one for one in ended if isinstance(one, JobResult)]
    assert len(ended) == 1
    assert clock.time() < 4 * 3600
    assert truths.untrue(aws, results) == []
    assert truths.doubled_attempts(aws) == []
    assert len(aws.world.truth()) <= 2


class TestOddAnswers:
    async def test_neither_a_task_nor_a_failure_is_asked_again_with_the_same_token(
        self, make_backend: Make, aws: FakeAws
    ) -> None:
        backend = make_backend(session=Answers(aws.session(), ODD["nothing launched, nothing failed"]))

        async with Runner(backend) as runner:
            result = await runner.run(Words().exits())

        assert result.succeeded
        assert len(aws.world.truth()) == 1
        assert len({sent["clientToken"] for sent in calls(aws, "RunTask")}) == 1

    async def test_a_task_that_is_no_longer_described_is_told_to_stop(self, make_backend: Make, aws: FakeAws) -> None:
        backend = make_backend(session=Answers(aws.session(), ODD["never described"]))

        async with Runner(backend) as runner:
            handle = await runner.submit(Words().waits().with_(retry=Retry(interruptions=0)))
            result = await handle.wait()
            await anyio.sleep(120)

        assert result.outcome.kind is Kind.LOST
        assert truths.alive(aws) == []

    async def test_a_launch_in_doubt_is_not_hidden_by_the_attempt_before(
        self, make_backend: Make, aws: FakeAws
    ) -> None:
        async with make_backend() as backend:
            await launched(backend, Words().exits(1))
            await anyio.sleep(300)
            aws.faults.add(Fault(match="ecs.RunTask", cut=True, when="after", times=math.inf))
            aws.world.on_launch.append(lambda task: aws.world.hide(task, 200.0))
            launch = await backend.prepare(Words().exits(1), identity(attempt=2))
            with pytest.raises(BackendError):
                await backend.submit(launch)

            with pytest.raises(BackendError, match="may not list yet"):
                await backend.find("tests", "k")
            await anyio.sleep(200)
            found = await backend.find("tests", "k")

        assert [ref.attempt for ref in found] == [1, 2]

    async def test_a_living_task_that_is_listed_and_not_described_is_waited_for(
        self, make_backend: Make, aws: FakeAws
    ) -> None:
        async with make_backend() as backend:
            await launched(backend, Words().waits())
        await anyio.sleep(60)
        looks = iter([True, True, False])

        def hidden(operation: str, reply: dict[str, Any]) -> dict[str, Any]:
            if operation == "DescribeTasks" and next(looks, False):
                return {"tasks": [], "failures": []}
            return reply

        async with make_backend(session=Answers(aws.session(), hidden)) as backend:
            found = await backend.find("tests", "k")

        assert [ref.attempt for ref in found] == [1]
