"""The verbs of ECS: what they accept, and in which words they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from fargate_runner.testing.aws import ContainerScript, Pace, Quotas, TaskScript
from fargate_runner.testing.aws._definitions import FARGATE_SIZES
from fargate_runner.testing.clock import VirtualClock
from tests.aws.account import AWSLOGS, NETWORK, SUBNETS, Account, container, definition, launch, main_of

FOR_EVER = ContainerScript(run_for=math.inf)
SPOT = {"capacityProvider": "FARGATE_SPOT", "weight": 1}
ON_DEMAND = {"capacityProvider": "FARGATE", "weight": 1}
HOUR = 3600.0


@pytest.fixture
def anyio_backend(clock: VirtualClock) -> object:
    return "asyncio", {"loop_factory": clock.loop}


@pytest.fixture
def account(clock: VirtualClock) -> Callable[..., Account]:
    return lambda **options: Account(clock, **options)


@pytest.fixture
def jobs(clock: VirtualClock) -> Account:
    return Account(clock)


def vpc(**changes: Any) -> dict[str, Any]:
    return {"awsvpcConfiguration": {**NETWORK["awsvpcConfiguration"], **changes}}


def override(**changes: Any) -> dict[str, Any]:
    return {"containerOverrides": [{"name": "main", **changes}]}


class TestClusters:
    async def test_one_is_made_described_listed_and_deleted(self, jobs: Account) -> None:
        made = await jobs.ask("CreateCluster", clusterName="new", tags=[{"key": "a", "value": "b"}])
        again = await jobs.ask("CreateCluster", clusterName="new")
        described = await jobs.ask("DescribeClusters", clusters=["new", "nope"], include=["TAGS", "STATISTICS"])
        listed = await jobs.ask("ListClusters")
        deleted = await jobs.ask("DeleteCluster", cluster="new")

        arn = "arn:aws:ecs:us-east-1:123456789012:cluster/new"
        assert made["cluster"]["clusterArn"] == again["cluster"]["clusterArn"] == arn
        assert described["clusters"][0]["tags"] == [{"key": "a", "value": "b"}]
        assert described["failures"] == [{"arn": arn.replace("new", "nope"), "reason": "MISSING"}]
        assert listed["clusterArns"] == [arn.replace("new", "jobs"), arn]
        assert deleted["cluster"]["status"] == "INACTIVE"
        assert (await jobs.refusal("ListTasks", cluster="new")).code == "ClusterNotFoundException"

    async def test_one_with_tasks_is_not_deleted(self, jobs: Account) -> None:
        await jobs.start()

        error = await jobs.refusal("DeleteCluster", cluster="jobs")

        assert error.code == "ClusterContainsTasksException"

    async def test_it_counts_its_tasks(self, jobs: Account) -> None:
        arn = await jobs.start()
        before = await jobs.ask("DescribeClusters", clusters=["jobs"])
        await jobs.until(arn, "RUNNING")

        after = await jobs.ask("DescribeClusters", clusters=["jobs"])

        assert before["clusters"][0]["pendingTasksCount"] == 1
        assert after["clusters"][0]["runningTasksCount"] == 1

    @pytest.mark.parametrize("operation", ["RunTask", "DescribeTasks", "ListTasks", "StopTask"])
    async def test_an_unknown_one_is_refused(self, jobs: Account, operation: str) -> None:
        members = {"RunTask": {"taskDefinition": "job"}, "DescribeTasks": {"tasks": ["a"]}, "StopTask": {"task": "a"}}

        error = await jobs.refusal(operation, cluster="nope", **members.get(operation, {}))

        assert (error.code, error.message) == ("ClusterNotFoundException", "Cluster not found.")

    async def test_a_default_strategy_is_used_by_a_launch_that_names_neither(self, jobs: Account) -> None:
        await jobs.register()
        await jobs.ask(
            "PutClusterCapacityProviders",
            cluster="jobs",
            capacityProviders=["FARGATE_SPOT"],
            defaultCapacityProviderStrategy=[SPOT],
        )

        task = await jobs.run(launchType=None)

        assert (task["launchType"], task["capacityProviderName"]) == ("FARGATE", "FARGATE_SPOT")

    async def test_a_default_strategy_with_a_provider_that_was_deleted_is_refused(self, jobs: Account) -> None:
        await jobs.register()
        group = "arn:aws:autoscaling:us-east-1:123456789012:autoScalingGroup:1:autoScalingGroupName/g"
        await jobs.ask("CreateCapacityProvider", name="mine", autoScalingGroupProvider={"autoScalingGroupArn": group})
        strategy = [{"capacityProvider": "mine", "weight": 1}]
        await jobs.ask(
            "PutClusterCapacityProviders",
            cluster="jobs",
            capacityProviders=["mine"],
            defaultCapacityProviderStrategy=strategy,
        )
        await jobs.ask("DeleteCapacityProvider", capacityProvider="mine")

        error = await jobs.refusal("RunTask", **launch(launchType=None))

        assert error.code == "InvalidParameterException"
        assert "not associated with the cluster" in error.message

    async def test_a_provider_that_was_never_created_is_refused(self, jobs: Account) -> None:
        await jobs.register()
        jobs.aws.ecs.add_cluster("odd", ["nobody-made-this"])
        strategy = [{"capacityProvider": "nobody-made-this", "weight": 1}]
        wanted = launch(cluster="odd", launchType=None, capacityProviderStrategy=strategy)

        error = await jobs.refusal("RunTask", **wanted)

        assert error.code == "InvalidParameterException"
        assert "does not exist" in error.message

    async def test_there_are_neither_services_nor_instances(self, jobs: Account) -> None:
        services = await jobs.ask("DescribeServices", cluster="jobs", services=["web"])
        instances = await jobs.ask("DescribeContainerInstances", cluster="jobs", containerInstances=["i"])

        assert (await jobs.ask("ListServices", cluster="jobs"))["serviceArns"] == []
        assert (await jobs.ask("ListContainerInstances", cluster="jobs"))["containerInstanceArns"] == []
        assert [services["failures"][0]["reason"], instances["failures"][0]["reason"]] == ["MISSING", "MISSING"]

    async def test_settings_and_providers_of_the_account_can_be_read(self, jobs: Account) -> None:
        settings = await jobs.ask("ListAccountSettings", effectiveSettings=True)
        providers = await jobs.ask("DescribeCapacityProviders", capacityProviders=["FARGATE", "mine"])

        assert {"defaultLogDriverMode", "taskLongArnFormat"} <= {each["name"] for each in settings["settings"]}
        assert providers["capacityProviders"][0]["status"] == "ACTIVE"
        assert providers["failures"][0]["reason"] == "MISSING"


class TestRegisterTaskDefinition:
    async def test_revisions_are_counted_per_family(self, jobs: Account) -> None:
        first, second, other = await jobs.register(), await jobs.register(), await jobs.register(family="b")

        assert [each["revision"] for each in (first, second, other)] == [1, 2, 1]
        assert second["taskDefinitionArn"] == "arn:aws:ecs:us-east-1:123456789012:task-definition/job:2"
        assert (first["status"], first["compatibilities"][:2]) == ("ACTIVE", ["EC2", "FARGATE"])

    async def test_what_was_left_out_is_filled_in(self, jobs: Account) -> None:
        registered = await jobs.register()

        main = registered["containerDefinitions"][0]
        assert main["essential"] is True
        assert (main["cpu"], main["environment"], main["mountPoints"]) == (0, [], [])
        assert registered["volumes"] == []

    @pytest.mark.parametrize(
        ("cpu", "memory", "stored"),
        [
            ("1024", "2048", ("1024", "2048")),
            ("1 vCPU", "3GB", ("1024", "3072")),
            (".5 vcpu", "4 GB", ("512", "4096")),
            ("32768", "249856", ("32768", "249856")),
        ],
    )
    async def test_sizes_are_taken_as_people_write_them(
        self, jobs: Account, cpu: str, memory: str, stored: tuple[str, str]
    ) -> None:
        registered = await jobs.register(cpu=cpu, memory=memory)

        assert (registered["cpu"], registered["memory"]) == stored

    def test_there_are_77_sizes(self) -> None:
        assert sum(len(memories) for memories in FARGATE_SIZES.values()) == 77

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"cpu": "257"}, "No Fargate configuration exists for given values."),
            ({"memory": "8192"}, "No Fargate configuration exists for given values."),
            ({"cpu": "32768", "memory": "65536"}, "No Fargate configuration exists for given values."),
            ({"cpu": "lots"}, "Invalid 'cpu' setting for task."),
            ({"memory": "lots"}, "Invalid 'memory' setting for task."),
            ({"cpu": None}, "Fargate requires that 'cpu' be defined at the task level."),
            ({"memory": None}, "Fargate requires that 'memory' be defined at the task level."),
            ({"networkMode": None}, "Fargate only supports network mode \u2018awsvpc\u2019."),
            ({"networkMode": "bridge"}, "Fargate only supports network mode \u2018awsvpc\u2019."),
            ({"family": "bad family!"}, "Invalid family"),
            ({"ephemeralStorage": {"sizeInGiB": 20}}, "between 21 and 200"),
            ({"ephemeralStorage": {"sizeInGiB": 201}}, "between 21 and 200"),
            ({"ipcMode": "task"}, "ipcMode"),
            ({"pidMode": "host"}, "pidMode"),
            ({"volumes": [{"name": "v", "host": {"sourcePath": "/v"}}]}, "host.sourcePath should not be set"),
            ({"placementConstraints": [{"type": "memberOf", "expression": "x"}]}, "placementConstraints"),
            ({"runtimePlatform": {"operatingSystemFamily": "WINDOWS_SERVER_2022_CORE"}}, "No Fargate configuration"),
        ],
    )
    async def test_a_definition_that_fargate_refuses(self, jobs: Account, changes: dict[str, Any], words: str) -> None:
        error = await jobs.refusal("RegisterTaskDefinition", **definition(**changes))

        assert error.code == "ClientException"
        assert words in error.message

    @pytest.mark.parametrize(
        ("containers", "words"),
        [
            ([], "Container list cannot be empty."),
            ([container(name=f"c{number}") for number in range(11)], "at most 10 containers"),
            ([container(), container()], "not unique"),
            ([container(name="a b")], "Invalid container name"),
            ([container(image=None)], "Container.image should not be null or empty."),
            ([container(name=None)], "Container.name should not be null or empty."),
            ([container(essential=False)], "essential"),
            ([container(stopTimeout=1)], "'stopTimeout'"),
            ([container(stopTimeout=121)], "'stopTimeout'"),
            ([container(startTimeout=500)], "'startTimeout'"),
            ([container(memory=1024)], "'memory' setting for task"),
            ([container(cpu=128), container("b", cpu=129)], "'cpu' setting for task"),
            ([container(privileged=True)], "privileged"),
            ([container(links=["b"])], "links"),
            ([container(linuxParameters={"tmpfs": [{"containerPath": "/t", "size": 1}]})], "tmpfs"),
            ([container(linuxParameters={"capabilities": {"add": ["NET_ADMIN"]}})], "SYS_PTRACE"),
            ([container(logConfiguration={"logDriver": "json-file"})], "log driver json-file"),
            ([container(logConfiguration={"logDriver": "awslogs"})], "requires options: awslogs-group, awslogs-region"),
            (
                [container(logConfiguration={**AWSLOGS, "options": {**AWSLOGS["options"], "awslogs-x": "1"}})],
                "disallows options: awslogs-x",
            ),
            (
                [
                    container(
                        logConfiguration={
                            "logDriver": "awslogs",
                            "options": {"awslogs-group": "g", "awslogs-region": "r"},
                        }
                    )
                ],
                "awslogs-stream-prefix",
            ),
            ([container(mountPoints=[{"sourceVolume": "v", "containerPath": "/v"}])], "Unknown volume 'v'."),
            ([container(dependsOn=[{"containerName": "x", "condition": "START"}])], "'x'"),
            (
                [
                    container(dependsOn=[{"containerName": "b", "condition": "START"}]),
                    container("b", dependsOn=[{"containerName": "main", "condition": "START"}]),
                ],
                "cycle",
            ),
            (
                [container(dependsOn=[{"containerName": "b", "condition": "HEALTHY"}]), container("b")],
                "no health check",
            ),
            (
                [container(dependsOn=[{"containerName": "b", "condition": "SUCCESS"}]), container("b")],
                "must not be essential",
            ),
            (
                [container(environment=[{"name": "A", "value": "1"}], secrets=[{"name": "A", "valueFrom": "/a"}])],
                "The secret name must be unique",
            ),
            (
                [container(ulimits=[{"name": "nofile", "softLimit": 1, "hardLimit": 1_048_577}])],
                "nofile",
            ),
        ],
    )
    async def test_containers_that_fargate_refuses(
        self, jobs: Account, containers: list[dict[str, Any]], words: str
    ) -> None:
        error = await jobs.refusal("RegisterTaskDefinition", **definition(containerDefinitions=containers))

        assert error.code == "ClientException"
        assert words in error.message

    @pytest.mark.parametrize(
        "changes",
        [
            {"logConfiguration": AWSLOGS},
            {"secrets": [{"name": "A", "valueFrom": "/a"}]},
            {"image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/job:1"},
        ],
    )
    async def test_some_things_need_an_execution_role(self, jobs: Account, changes: dict[str, Any]) -> None:
        wanted = definition(executionRoleArn=None, containerDefinitions=[container(**changes)])

        error = await jobs.refusal("RegisterTaskDefinition", **wanted)

        assert "Fargate requires task definition to have execution role ARN to support" in error.message

    async def test_64_kib_is_the_most(self, jobs: Account) -> None:
        large = [container(environment=[{"name": "A", "value": "x" * 65536}])]

        error = await jobs.refusal("RegisterTaskDefinition", **definition(containerDefinitions=large))

        assert error.code == "ClientException"
        assert "Max allowed length is '65536' bytes." in error.message

    @pytest.mark.parametrize(
        "tags",
        [
            [{"key": "aws:mine", "value": "1"}],
            [{"key": "a", "value": "1"}, {"key": "a", "value": "2"}],
            [{"key": "a;b", "value": "1"}],
        ],
    )
    async def test_tags_that_aws_does_not_take(self, jobs: Account, tags: list[dict[str, str]]) -> None:
        error = await jobs.refusal("RegisterTaskDefinition", **definition(tags=tags))

        assert error.code == "InvalidParameterException"

    async def test_ec2_takes_what_fargate_refuses(self, jobs: Account) -> None:
        free = definition(
            requiresCompatibilities=["EC2"],
            networkMode="bridge",
            cpu=None,
            memory=None,
            containerDefinitions=[container(memory=128, privileged=True, logConfiguration={"logDriver": "json-file"})],
        )

        reply = await jobs.ask("RegisterTaskDefinition", **free)

        assert reply["taskDefinition"]["compatibilities"] == ["EC2"]

    async def test_what_the_caller_does_with_its_request_afterwards_changes_nothing(self, jobs: Account) -> None:
        wanted = definition()
        await jobs.ask("RegisterTaskDefinition", **wanted)

        wanted["containerDefinitions"][0]["image"] = "other"

        reply = await jobs.ask("DescribeTaskDefinition", taskDefinition="job")
        assert reply["taskDefinition"]["containerDefinitions"][0]["image"] == "busybox:1"


class TestTaskDefinitions:
    @pytest.mark.parametrize("name", ["job", "job:2", "arn:aws:ecs:us-east-1:123456789012:task-definition/job:2"])
    async def test_one_is_found_by_family_revision_and_arn(self, jobs: Account, name: str) -> None:
        await jobs.register()
        await jobs.register()

        reply = await jobs.ask("DescribeTaskDefinition", taskDefinition=name)

        assert reply["taskDefinition"]["revision"] == 2

    async def test_tags_are_told_if_asked_for(self, jobs: Account) -> None:
        await jobs.register(tags=[{"key": "a", "value": "b"}])

        plain = await jobs.ask("DescribeTaskDefinition", taskDefinition="job")
        tagged = await jobs.ask("DescribeTaskDefinition", taskDefinition="job", include=["TAGS"])

        assert "tags" not in plain
        assert tagged["tags"] == [{"key": "a", "value": "b"}]

    @pytest.mark.parametrize("name", ["nope", "job:9", "arn:aws:ecs:eu-west-1:123456789012:task-definition/job:1"])
    async def test_an_unknown_one(self, jobs: Account, name: str) -> None:
        await jobs.register()

        error = await jobs.refusal("DescribeTaskDefinition", taskDefinition=name)

        assert (error.code, error.message) == ("ClientException", "Unable to describe task definition.")

    async def test_a_deregistered_one_is_inactive_and_cannot_be_run(self, jobs: Account) -> None:
        await jobs.register()

        reply = await jobs.ask("DeregisterTaskDefinition", taskDefinition="job:1")

        assert reply["taskDefinition"]["status"] == "INACTIVE"
        assert "deregisteredAt" in reply["taskDefinition"]
        error = await jobs.refusal("RunTask", **launch(taskDefinition="job:1"))
        assert (error.code, error.message) == ("InvalidParameterException", "TaskDefinition is inactive")
        assert (await jobs.refusal("DescribeTaskDefinition", taskDefinition="job")).code == "ClientException"
        assert (await jobs.refusal("DeregisterTaskDefinition", taskDefinition="job:1")).code == "ClientException"

    async def test_deregistering_does_not_free_the_revision(self, jobs: Account) -> None:
        await jobs.register()
        await jobs.ask("DeregisterTaskDefinition", taskDefinition="job:1")

        assert (await jobs.register())["revision"] == 2

    async def test_deregistering_wants_a_revision(self, jobs: Account) -> None:
        await jobs.register()

        error = await jobs.refusal("DeregisterTaskDefinition", taskDefinition="job")

        assert error.code == "InvalidParameterException"

    async def test_only_inactive_ones_are_deleted(self, jobs: Account) -> None:
        await jobs.register()
        await jobs.register()
        await jobs.ask("DeregisterTaskDefinition", taskDefinition="job:1")

        reply = await jobs.ask("DeleteTaskDefinitions", taskDefinitions=["job:1", "job:2"])

        assert [each["status"] for each in reply["taskDefinitions"]] == ["DELETE_IN_PROGRESS"]
        assert "ACTIVE" in reply["failures"][0]["reason"]

    async def test_they_are_listed_in_the_order_of_their_numbers_by_pages(self, jobs: Account) -> None:
        for _ in range(12):
            await jobs.register()
        await jobs.register(family="job-2")

        first = await jobs.ask("ListTaskDefinitions", familyPrefix="job", maxResults=7)
        rest = await jobs.ask("ListTaskDefinitions", familyPrefix="job", maxResults=7, nextToken=first["nextToken"])
        last = await jobs.ask("ListTaskDefinitions", familyPrefix="job", sort="DESC", maxResults=1)

        revisions = [arn.rpartition(":")[2] for arn in first["taskDefinitionArns"] + rest["taskDefinitionArns"]]
        assert revisions == [str(number) for number in range(1, 13)]
        assert "nextToken" not in rest
        assert last["taskDefinitionArns"][0].endswith("job:12")

    async def test_inactive_ones_are_listed_apart(self, jobs: Account) -> None:
        await jobs.register()
        await jobs.ask("DeregisterTaskDefinition", taskDefinition="job:1")

        active = await jobs.ask("ListTaskDefinitions")
        inactive = await jobs.ask("ListTaskDefinitions", status="INACTIVE")

        assert (len(active["taskDefinitionArns"]), len(inactive["taskDefinitionArns"])) == (0, 1)

    async def test_families_are_listed_by_prefix(self, jobs: Account) -> None:
        for family in ("fr-b", "fr-a", "other"):
            await jobs.register(family=family)

        reply = await jobs.ask("ListTaskDefinitionFamilies", familyPrefix="fr-", status="ACTIVE")

        assert reply["families"] == ["fr-a", "fr-b"]


class TestRunTask:
    async def test_it_answers_with_the_task(self, jobs: Account) -> None:
        await jobs.register()

        task = await jobs.run(startedBy="fr/1", tags=[{"key": "a", "value": "b"}], overrides=override(command=["x"]))

        assert task["taskArn"].startswith("arn:aws:ecs:us-east-1:123456789012:task/jobs/")
        assert len(task["taskArn"].rpartition("/")[2]) == 32
        assert (task["group"], task["startedBy"], task["launchType"]) == ("family:job", "fr/1", "FARGATE")
        assert (task["platformVersion"], task["platformFamily"]) == ("1.4.0", "Linux")
        assert (task["cpu"], task["memory"], task["ephemeralStorage"]) == ("256", "512", {"sizeInGiB": 20})
        assert task["overrides"]["containerOverrides"] == [{"name": "main", "command": ["x"]}]
        assert task["tags"] == [{"key": "a", "value": "b"}]

    @pytest.mark.parametrize(
        ("changes", "code", "words"),
        [
            ({"taskDefinition": "nope"}, "InvalidParameterException", "TaskDefinition not found."),
            ({"count": 0}, "InvalidParameterException", "between 1 and 10"),
            ({"count": 11}, "InvalidParameterException", "between 1 and 10"),
            ({"startedBy": "x" * 129}, "InvalidParameterException", "startedBy"),
            ({"clientToken": "x" * 65}, "InvalidParameterException", "client token"),
            ({"clientToken": "a b"}, "InvalidParameterException", "client token"),
            ({"propagateTags": "SERVICE"}, "InvalidParameterException", "SERVICE"),
            ({"tags": [{"key": "aws:x", "value": "1"}]}, "InvalidParameterException", "aws:"),
            ({"launchType": "MOON"}, "InvalidParameterException", "enum value set"),
            ({"launchType": "MANAGED_INSTANCES"}, "InvalidParameterException", "capacity provider strategy"),
            (
                {"capacityProviderStrategy": [SPOT]},
                "InvalidParameterException",
                "Specifying both a launch type and capacity provider strategy is not supported.",
            ),
            (
                {"networkConfiguration": None},
                "InvalidParameterException",
                "Network Configuration must be provided when networkMode 'awsvpc' is specified.",
            ),
            ({"networkConfiguration": vpc(subnets=[])}, "InvalidParameterException", "subnets can not be empty."),
            ({"networkConfiguration": vpc(subnets=["s"] * 17)}, "InvalidParameterException", "16"),
            ({"networkConfiguration": vpc(securityGroups=["g"] * 6)}, "InvalidParameterException", "5"),
            (
                {"overrides": {"containerOverrides": [{"name": "other"}]}},
                "InvalidParameterException",
                "Override for container named other is not a container in the TaskDefinition.",
            ),
            (
                {"overrides": {"containerOverrides": [{"name": "main"}, {"name": "main"}]}},
                "InvalidParameterException",
                "Duplicate",
            ),
            ({"overrides": {"cpu": "512"}}, "ClientException", "No Fargate configuration exists for given values."),
            ({"overrides": {"memory": "x"}}, "ClientException", "Invalid 'memory' setting for task."),
            ({"overrides": {"ephemeralStorage": {"sizeInGiB": 20}}}, "ClientException", "between 21 and 200"),
            ({"overrides": override(memory=1024)}, "ClientException", "memory"),
            ({"platformVersion": "9.9.9"}, "PlatformUnknownException", "9.9.9"),
            ({"placementStrategy": [{"type": "random"}]}, "InvalidParameterException", "placementStrategy"),
            (
                {"volumeConfigurations": [{"name": "v", "managedEBSVolume": {"roleArn": "arn:aws:iam::1:role/r"}}]},
                "InvalidParameterException",
                "not configured at launch",
            ),
            ({"nonsense": 1}, "InvalidParameterException", "Unknown member"),
            ({"count": "1"}, "InvalidParameterException", "integer"),
        ],
    )
    async def test_a_launch_that_ecs_refuses(
        self, jobs: Account, changes: dict[str, Any], code: str, words: str
    ) -> None:
        await jobs.register()

        error = await jobs.refusal("RunTask", **launch(**changes))

        assert error.code == code
        assert words in error.message
        assert jobs.aws.world.tasks == {}

    @pytest.mark.parametrize(
        ("strategy", "words"),
        [
            ([{"capacityProvider": "mine", "weight": 1}], "not associated with the cluster"),
            ([{"capacityProvider": "FARGATE"}], "weight value greater than zero"),
            ([SPOT, SPOT], "twice"),
            ([{**SPOT, "base": 1}, {**ON_DEMAND, "base": 1}], "base"),
            ([SPOT] * 21, "20"),
        ],
    )
    async def test_a_strategy_that_ecs_refuses(self, jobs: Account, strategy: list[dict[str, Any]], words: str) -> None:
        await jobs.register()

        error = await jobs.refusal("RunTask", **launch(launchType=None, capacityProviderStrategy=strategy))

        assert error.code == "InvalidParameterException"
        assert words in error.message

    async def test_spot_has_to_be_associated_with_the_cluster(self, jobs: Account) -> None:
        await jobs.ask("CreateCluster", clusterName="bare")
        await jobs.register()
        wanted = launch(cluster="bare", launchType=None, capacityProviderStrategy=[SPOT])

        error = await jobs.refusal("RunTask", **wanted)

        assert "not associated with the cluster" in error.message
        assert (await jobs.ask("RunTask", **launch(cluster="bare")))["failures"] == []

    async def test_fargate_and_instances_do_not_mix(self, jobs: Account) -> None:
        group = "arn:aws:autoscaling:us-east-1:123456789012:autoScalingGroup:1:autoScalingGroupName/g"
        await jobs.ask("CreateCapacityProvider", name="mine", autoScalingGroupProvider={"autoScalingGroupArn": group})
        await jobs.ask(
            "PutClusterCapacityProviders",
            cluster="jobs",
            capacityProviders=["FARGATE", "mine"],
            defaultCapacityProviderStrategy=[],
        )
        await jobs.register()
        mine = {"capacityProvider": "mine", "weight": 1}

        mixed = await jobs.refusal("RunTask", **launch(launchType=None, capacityProviderStrategy=[ON_DEMAND, mine]))
        task = await jobs.run(launchType=None, capacityProviderStrategy=[mine], networkConfiguration=vpc_private())

        assert "both Fargate and EC2" in mixed.message
        assert (task["launchType"], task["capacityProviderName"]) == ("EC2", "mine")
        assert "containerInstanceArn" in task

    async def test_managed_instances_are_a_capacity_provider_of_a_cluster(self, jobs: Account) -> None:
        await jobs.ask(
            "CreateCapacityProvider",
            name="managed",
            cluster="jobs",
            managedInstancesProvider={
                "infrastructureRoleArn": "arn:aws:iam::123456789012:role/r",
                "instanceLaunchTemplate": {
                    "ec2InstanceProfileArn": "arn:aws:iam::123456789012:instance-profile/p",
                    "networkConfiguration": {"subnets": list(SUBNETS)},
                },
            },
        )
        await jobs.register()
        strategy = [{"capacityProvider": "managed", "weight": 1}]

        arn = (await jobs.run(launchType=None, capacityProviderStrategy=strategy))["taskArn"]

        assert (await jobs.over(arn))["launchType"] == "MANAGED_INSTANCES"

    async def test_a_task_on_ec2_has_a_container_instance_and_no_platform(self, jobs: Account) -> None:
        await jobs.register()

        task = await jobs.run(launchType="EC2", networkConfiguration=vpc_private())

        assert "platformVersion" not in task
        assert "containerInstanceArn" in task

    async def test_a_definition_without_fargate_is_not_run_there(self, jobs: Account) -> None:
        await jobs.register(requiresCompatibilities=["EC2"], cpu=None)

        error = await jobs.refusal("RunTask", **launch())

        assert "does not support launch_type FARGATE" in error.message

    async def test_overrides_are_measured_as_compact_json(self, jobs: Account) -> None:
        await jobs.register()
        room = 8192 - len('{"containerOverrides":[{"name":"main","command":[""]}]}')

        fits = await jobs.ask("RunTask", **launch(overrides=override(command=["x" * room])))
        error = await jobs.refusal("RunTask", **launch(overrides=override(command=["x" * (room + 1)])))

        assert fits["failures"] == []
        assert (error.code, error.message) == (
            "InvalidParameterException",
            "Container Overrides length must be at most 8192",
        )

    async def test_a_size_may_be_overridden_by_a_valid_one(self, jobs: Account) -> None:
        await jobs.register()

        task = await jobs.run(overrides={"cpu": "1 vCPU", "memory": "2GB", "ephemeralStorage": {"sizeInGiB": 50}})

        assert (task["cpu"], task["memory"]) == ("1024", "2048")
        assert task["ephemeralStorage"] == task["fargateEphemeralStorage"] == {"sizeInGiB": 50}

    async def test_several_tasks_at_once(self, jobs: Account) -> None:
        await jobs.register()

        reply = await jobs.ask("RunTask", **launch(count=10))

        assert len({task["taskArn"] for task in reply["tasks"]}) == 10

    async def test_a_strategy_spreads_tasks_by_base_and_weight(self, jobs: Account) -> None:
        await jobs.register()
        strategy = [{**ON_DEMAND, "base": 2}, {**SPOT, "weight": 3}]

        reply = await jobs.ask("RunTask", **launch(launchType=None, capacityProviderStrategy=strategy, count=10))

        chosen = [task["capacityProviderName"] for task in reply["tasks"]]
        assert (chosen.count("FARGATE"), chosen.count("FARGATE_SPOT")) == (4, 6)

    async def test_unknown_networks_are_refused_if_the_fake_knows_them_all(self, jobs: Account) -> None:
        jobs.aws.ecs.only_known_networks = True
        await jobs.register()

        subnet = await jobs.refusal("RunTask", **launch(networkConfiguration=vpc(subnets=["subnet-1"])))
        group = await jobs.refusal("RunTask", **launch(networkConfiguration=vpc(securityGroups=["sg-1"])))

        assert subnet.code == group.code == "InvalidParameterException"
        assert subnet.message == (
            "Error retrieving subnet information for [subnet-1]: The subnet ID 'subnet-1' does not exist "
            "(ErrorCode: InvalidSubnetID.NotFound)"
        )
        assert "(ErrorCode: InvalidGroup.NotFound)" in group.message
        assert (await jobs.ask("RunTask", **launch()))["failures"] == []

    async def test_tags_may_come_from_the_definition_and_from_ecs(self, jobs: Account) -> None:
        await jobs.register(tags=[{"key": "of", "value": "definition"}])

        task = await jobs.run(
            propagateTags="TASK_DEFINITION", enableECSManagedTags=True, tags=[{"key": "own", "value": "1"}]
        )

        tags = {tag["key"]: tag["value"] for tag in task["tags"]}
        assert tags == {"of": "definition", "own": "1", "aws:ecs:clusterName": "jobs"}

    async def test_an_ebs_volume_is_configured_at_launch(self, jobs: Account) -> None:
        mount = [{"sourceVolume": "v", "containerPath": "/v"}]
        await jobs.register(
            volumes=[{"name": "v", "configuredAtLaunch": True}],
            containerDefinitions=[container(mountPoints=mount)],
        )
        role = {"roleArn": "arn:aws:iam::123456789012:role/r"}

        bare = await jobs.refusal("RunTask", **launch())
        empty = [{"name": "v", "managedEBSVolume": role}]
        sized = [{"name": "v", "managedEBSVolume": {**role, "sizeInGiB": 10}}]
        unsized = await jobs.refusal("RunTask", **launch(volumeConfigurations=empty))

        assert "must be provided" in bare.message
        assert "sizeInGiB" in unsized.message
        assert (await jobs.ask("RunTask", **launch(volumeConfigurations=sized)))["failures"] == []


def vpc_private() -> dict[str, Any]:
    return vpc(assignPublicIp="DISABLED")


class TestCapacity:
    async def test_no_capacity_is_a_failure_and_no_exception(self, jobs: Account) -> None:
        await jobs.register()
        jobs.aws.world.capacity.out("FARGATE")

        reply = await jobs.ask("RunTask", **launch())

        assert reply == {
            "tasks": [],
            "failures": [
                {
                    "reason": "Capacity is unavailable at this time. "
                    "Please try again later or in a different availability zone"
                }
            ],
        }

    async def test_a_zone_without_capacity_is_avoided(self, jobs: Account) -> None:
        await jobs.register()
        jobs.aws.world.capacity.out(zone="us-east-1a")

        zones = {(await jobs.run())["availabilityZone"] for _ in range(10)}
        only_there = await jobs.ask("RunTask", **launch(networkConfiguration=vpc(subnets=[SUBNETS[0]])))

        assert zones == {"us-east-1b"}
        assert only_there["failures"][0]["reason"].startswith("Capacity is unavailable")

    async def test_subnets_take_turns_by_chance(self, jobs: Account) -> None:
        await jobs.register()

        zones = {(await jobs.run())["availabilityZone"] for _ in range(20)}

        assert zones == {"us-east-1a", "us-east-1b"}

    async def test_spot_may_be_out_while_on_demand_is_not(self, jobs: Account) -> None:
        await jobs.register()
        jobs.aws.world.capacity.out("FARGATE_SPOT")

        spot = await jobs.ask("RunTask", **launch(launchType=None, capacityProviderStrategy=[SPOT]))
        on_demand = await jobs.ask("RunTask", **launch(launchType=None, capacityProviderStrategy=[ON_DEMAND]))

        assert (len(spot["failures"]), len(on_demand["failures"])) == (1, 0)

    async def test_an_outage_may_turn_away_so_many_launches(self, jobs: Account) -> None:
        await jobs.register()
        jobs.aws.world.capacity.out(times=2, reason="RESOURCE:MEMORY")

        failures = [(await jobs.ask("RunTask", **launch()))["failures"] for _ in range(3)]

        assert failures == [[{"reason": "RESOURCE:MEMORY"}], [{"reason": "RESOURCE:MEMORY"}], []]

    async def test_an_outage_may_last_so_long(self, jobs: Account) -> None:
        await jobs.register()
        jobs.aws.world.capacity.out(seconds=60)

        before = await jobs.ask("RunTask", **launch())
        await anyio.sleep(60)
        after = await jobs.ask("RunTask", **launch())

        assert (len(before["failures"]), len(after["failures"])) == (1, 0)

    async def test_an_outage_may_be_ended(self, jobs: Account) -> None:
        await jobs.register()
        outage = jobs.aws.world.capacity.out()

        jobs.aws.world.capacity.back(outage)

        assert (await jobs.ask("RunTask", **launch()))["failures"] == []

    async def test_a_launch_may_succeed_in_part(self, account: Callable[..., Account]) -> None:
        jobs = account(quotas=Quotas(vcpus=1.0), script=FOR_EVER)
        await jobs.register()

        reply = await jobs.ask("RunTask", **launch(count=6))

        assert (len(reply["tasks"]), len(reply["failures"])) == (4, 2)

    async def test_the_vcpu_quota_has_a_typographic_apostrophe(self, account: Callable[..., Account]) -> None:
        jobs = account(quotas=Quotas(vcpus=0.25), script=FOR_EVER)
        await jobs.register()
        await jobs.run()

        reply = await jobs.ask("RunTask", **launch())

        (failure,) = reply["failures"]
        assert failure == {"reason": "You\u2019ve reached the limit on the number of vCPUs you can run concurrently"}

    async def test_the_quota_is_free_again_when_a_task_is_over(self, account: Callable[..., Account]) -> None:
        jobs = account(quotas=Quotas(vcpus=0.25, spot_vcpus=0.25))
        arn = await jobs.start()
        full = await jobs.ask("RunTask", **launch())
        other = await jobs.ask("RunTask", **launch(launchType=None, capacityProviderStrategy=[SPOT]))

        await jobs.over(arn)

        assert (len(full["failures"]), len(other["failures"])) == (1, 0)
        assert (await jobs.ask("RunTask", **launch()))["failures"] == []


class TestClientTokens:
    async def test_the_same_request_starts_nothing_new(self, jobs: Account) -> None:
        await jobs.register()

        first, second = await jobs.run(clientToken="t"), await jobs.run(clientToken="t")

        assert first["taskArn"] == second["taskArn"]
        assert len(jobs.aws.world.tasks) == 1

    async def test_without_a_token_each_request_starts_a_task(self, jobs: Account) -> None:
        await jobs.register()

        await jobs.run()
        await jobs.run()

        assert len(jobs.aws.world.tasks) == 2

    async def test_other_parameters_are_a_conflict_that_names_the_tasks(self, jobs: Account) -> None:
        await jobs.register()
        arn = (await jobs.run(clientToken="t"))["taskArn"]

        error = await jobs.refusal("RunTask", **launch(clientToken="t", startedBy="other"))

        assert error.code == "ConflictException"
        assert error.members == {"resourceIds": [arn]}

    async def test_a_token_belongs_to_its_cluster(self, jobs: Account) -> None:
        await jobs.ask("CreateCluster", clusterName="other")
        await jobs.register()

        first = await jobs.run(clientToken="t")
        second = await jobs.run(clientToken="t", cluster="other")

        assert first["taskArn"] != second["taskArn"]

    async def test_a_token_counts_even_if_the_definition_is_gone(self, jobs: Account) -> None:
        await jobs.register()
        first = await jobs.run(clientToken="t", taskDefinition="job:1")
        await jobs.ask("DeregisterTaskDefinition", taskDefinition="job:1")

        second = await jobs.run(clientToken="t", taskDefinition="job:1")

        assert first["taskArn"] == second["taskArn"]

    async def test_failures_are_replayed_although_there_is_room_again(self, jobs: Account) -> None:
        await jobs.register()
        jobs.aws.world.capacity.out(times=1)
        first = await jobs.ask("RunTask", **launch(clientToken="t"))

        second = await jobs.ask("RunTask", **launch(clientToken="t"))
        third = await jobs.ask("RunTask", **launch(clientToken="u"))

        assert first["failures"] == second["failures"] != []
        assert third["failures"] == []
        assert len(jobs.aws.world.tasks) == 1

    async def test_two_at_once_start_one_task_although_secrets_take_their_time(self, jobs: Account) -> None:
        class Slow:
            async def secret(self, value_from: str) -> str:
                await anyio.sleep(1)
                return value_from

            async def env_file(self, arn: str) -> str:
                return arn

        jobs.aws.ecs.values = Slow()
        await jobs.register(containerDefinitions=[container(secrets=[{"name": "A", "valueFrom": "/a"}])])

        async with anyio.create_task_group() as group:
            group.start_soon(lambda: jobs.run(clientToken="t"))
            group.start_soon(lambda: jobs.run(clientToken="t"))

        assert len(jobs.aws.world.tasks) == 1

    async def test_a_refusal_does_not_use_up_the_token(self, jobs: Account) -> None:
        await jobs.refusal("RunTask", **launch(clientToken="t"))
        await jobs.register()

        assert (await jobs.run(clientToken="t"))["lastStatus"] == "PROVISIONING"

    async def test_a_stopped_task_is_replayed_in_three_words(self, jobs: Account) -> None:
        arn = await jobs.start(clientToken="t")
        await jobs.over(arn)

        replay = await jobs.run(clientToken="t")

        assert replay == {"taskArn": arn, "lastStatus": "STOPPED", "desiredStatus": "STOPPED"}

    async def test_an_hour_after_the_end_the_token_starts_a_new_task(self, jobs: Account) -> None:
        arn = await jobs.start(clientToken="t")
        await jobs.over(arn)

        await anyio.sleep(HOUR - 10)
        still = await jobs.run(clientToken="t")
        await anyio.sleep(10)
        fresh = await jobs.run(clientToken="t")

        assert still["taskArn"] == arn
        assert fresh["taskArn"] != arn

    async def test_a_day_is_the_most_that_a_token_lives(self, account: Callable[..., Account]) -> None:
        jobs = account(script=FOR_EVER)
        arn = await jobs.start(clientToken="t")

        await anyio.sleep(24 * HOUR - 1)
        still = await jobs.run(clientToken="t")
        await anyio.sleep(1)
        fresh = await jobs.run(clientToken="t")

        assert still["taskArn"] == arn
        assert fresh["taskArn"] != arn

    async def test_it_lives_as_long_as_the_last_of_several_tasks(self, account: Callable[..., Account]) -> None:
        jobs = account(script=lambda run: ContainerScript(run_for=100 * run.number))
        await jobs.register()
        first = await jobs.ask("RunTask", **launch(clientToken="t", count=2))
        await jobs.over(first["tasks"][0]["taskArn"])
        await jobs.over(first["tasks"][1]["taskArn"])

        await anyio.sleep(HOUR - 60)

        second = await jobs.ask("RunTask", **launch(clientToken="t", count=2))
        assert [task["taskArn"] for task in first["tasks"]] == [task["taskArn"] for task in second["tasks"]]


class TestStopTask:
    async def test_the_first_reason_stays(self, account: Callable[..., Account]) -> None:
        jobs = account(script=FOR_EVER)
        arn = await jobs.start()
        await jobs.until(arn, "RUNNING")

        first = await jobs.ask("StopTask", cluster="jobs", task=arn, reason="first")
        second = await jobs.ask("StopTask", cluster="jobs", task=arn[-32:], reason="second")

        assert first["task"]["desiredStatus"] == "STOPPED"
        assert second["task"]["stoppedReason"] == "first"
        assert (await jobs.over(arn))["stopCode"] == "UserInitiated"

    async def test_it_drops_the_tags_and_keeps_who_started_it(self, account: Callable[..., Account]) -> None:
        jobs = account(script=FOR_EVER)
        arn = await jobs.start(startedBy="fr/1", tags=[{"key": "a", "value": "b"}], overrides=override(command=["x"]))
        before = await jobs.describe(arn, include=["TAGS"])

        await jobs.ask("StopTask", cluster="jobs", task=arn)

        after = await jobs.describe(arn, include=["TAGS"])
        assert before["tags"] == [{"key": "a", "value": "b"}]
        assert after["tags"] == []
        assert (after["startedBy"], after["overrides"]["containerOverrides"][0]["command"]) == ("fr/1", ["x"])

    async def test_a_task_that_is_over_stays_as_it_ended(self, jobs: Account) -> None:
        arn = await jobs.start()
        await jobs.over(arn)

        reply = await jobs.ask("StopTask", cluster="jobs", task=arn, reason="late")

        assert reply["task"]["stopCode"] == "EssentialContainerExited"

    async def test_a_task_that_nobody_knows(self, jobs: Account) -> None:
        error = await jobs.refusal("StopTask", cluster="jobs", task="0" * 32)

        assert (error.code, error.message) == ("InvalidParameterException", "The referenced task was not found.")

    async def test_a_task_that_ended_long_ago_is_one_that_nobody_knows(self, jobs: Account) -> None:
        arn = await jobs.start()
        await jobs.over(arn)
        await anyio.sleep(HOUR)

        error = await jobs.refusal("StopTask", cluster="jobs", task=arn)

        assert error.code == "InvalidParameterException"

    @pytest.mark.parametrize("status", ["PROVISIONING", "PENDING", "ACTIVATING"])
    async def test_a_task_that_has_not_started_goes_straight_down(self, jobs: Account, status: str) -> None:
        arn = await jobs.start()
        await jobs.until(arn, status)

        await jobs.ask("StopTask", cluster="jobs", task=arn)
        history = await jobs.history(arn)

        assert history[-2:] == ["DEPROVISIONING", "STOPPED"]
        assert "RUNNING" not in history
        task = await jobs.describe(arn)
        assert "startedAt" not in task
        assert "exitCode" not in main_of(task)

    async def test_the_default_reason(self, jobs: Account) -> None:
        arn = await jobs.start()

        reply = await jobs.ask("StopTask", cluster="jobs", task=arn)

        assert reply["task"]["stoppedReason"] == "Task stopped by user"


class TestDescribeTasks:
    async def test_ids_and_arns_are_taken_alike(self, jobs: Account) -> None:
        arn = await jobs.start()

        reply = await jobs.ask("DescribeTasks", cluster="jobs", tasks=[arn, arn[-32:]])

        assert [task["taskArn"] for task in reply["tasks"]] == [arn, arn]

    async def test_an_unknown_one_is_missing_by_its_full_arn(self, jobs: Account) -> None:
        reply = await jobs.ask("DescribeTasks", cluster="jobs", tasks=["f" * 32])

        arn = f"arn:aws:ecs:us-east-1:123456789012:task/jobs/{'f' * 32}"
        assert reply == {"tasks": [], "failures": [{"arn": arn, "reason": "MISSING"}]}

    async def test_a_hundred_are_the_most(self, jobs: Account) -> None:
        ids = [f"{number:032x}" for number in range(101)]

        fits = await jobs.ask("DescribeTasks", cluster="jobs", tasks=ids[:100])
        error = await jobs.refusal("DescribeTasks", cluster="jobs", tasks=ids)

        assert len(fits["failures"]) == 100
        assert error.code == "InvalidParameterException"

    async def test_none_is_too_few(self, jobs: Account) -> None:
        assert (await jobs.refusal("DescribeTasks", cluster="jobs", tasks=[])).code == "InvalidParameterException"

    async def test_the_arn_of_another_cluster_is_refused(self, jobs: Account) -> None:
        arn = await jobs.start()
        await jobs.ask("CreateCluster", clusterName="other")

        error = await jobs.refusal("DescribeTasks", cluster="other", tasks=[arn])
        by_id = await jobs.ask("DescribeTasks", cluster="other", tasks=[arn[-32:]])

        assert error.message == "Invalid identifier: Identifier is for cluster jobs. Your cluster is other"
        assert by_id["failures"][0]["reason"] == "MISSING"

    @pytest.mark.parametrize(
        ("here", "there"),
        [(":us-east-1:", ":us-west-2:"), (":123456789012:", ":210987654321:")],
        ids=["region", "account"],
    )
    @pytest.mark.parametrize("operation", ["DescribeTasks", "StopTask"])
    async def test_the_arn_of_another_region_or_account_is_refused(
        self, jobs: Account, operation: str, here: str, there: str
    ) -> None:
        arn = (await jobs.start()).replace(here, there)
        members = {"DescribeTasks": {"tasks": [arn]}, "StopTask": {"task": arn}}

        error = await jobs.refusal(operation, cluster="jobs", **members[operation])

        assert error.code == "InvalidParameterException"

    async def test_tags_are_told_if_asked_for(self, jobs: Account) -> None:
        arn = await jobs.start(tags=[{"key": "a", "value": "b"}])

        plain, tagged = await jobs.describe(arn), await jobs.describe(arn, include=["TAGS"])

        assert plain["tags"] == []
        assert tagged["tags"] == [{"key": "a", "value": "b"}]


class TestListTasks:
    async def test_stopped_tasks_are_listed_apart(self, account: Callable[..., Account]) -> None:
        jobs = account(script=FOR_EVER)
        arn = await jobs.start()
        await jobs.ask("StopTask", cluster="jobs", task=arn)

        running = await jobs.ask("ListTasks", cluster="jobs")
        stopped = await jobs.ask("ListTasks", cluster="jobs", desiredStatus="STOPPED")
        pending = await jobs.ask("ListTasks", cluster="jobs", desiredStatus="PENDING")

        assert (running["taskArns"], stopped["taskArns"], pending["taskArns"]) == ([], [arn], [])

    async def test_started_by_finds_what_is_to_run(self, account: Callable[..., Account]) -> None:
        jobs = account(script=FOR_EVER)
        await jobs.register()
        one = (await jobs.run(startedBy="fr/1"))["taskArn"]
        two = (await jobs.run(startedBy="fr/1"))["taskArn"]
        await jobs.run(startedBy="fr/2")
        await jobs.ask("StopTask", cluster="jobs", task=two)

        reply = await jobs.ask("ListTasks", cluster="jobs", startedBy="fr/1")

        assert reply["taskArns"] == [one]

    @pytest.mark.parametrize("more", [{"family": "job"}, {"desiredStatus": "STOPPED"}, {"launchType": "FARGATE"}])
    async def test_started_by_is_the_only_filter(self, jobs: Account, more: dict[str, str]) -> None:
        error = await jobs.refusal("ListTasks", cluster="jobs", startedBy="fr/1", **more)

        assert error.code == "InvalidParameterException"

    async def test_the_default_status_may_be_named_beside_started_by(self, jobs: Account) -> None:
        reply = await jobs.ask("ListTasks", cluster="jobs", startedBy="fr/1", desiredStatus="RUNNING")

        assert reply == {"taskArns": []}

    async def test_family_and_launch_type_filter(self, jobs: Account) -> None:
        arn = await jobs.start()

        found = await jobs.ask("ListTasks", cluster="jobs", family="job", launchType="FARGATE")
        other = await jobs.ask("ListTasks", cluster="jobs", family="jo")

        assert (found["taskArns"], other["taskArns"]) == ([arn], [])

    async def test_pages_have_opaque_tokens(self, jobs: Account) -> None:
        await jobs.register()
        arns = {(await jobs.run())["taskArn"] for _ in range(25)}

        pages = [await jobs.ask("ListTasks", cluster="jobs", maxResults=10)]
        pages.append(await jobs.ask("ListTasks", cluster="jobs", maxResults=10, nextToken=pages[0]["nextToken"]))
        pages.append(await jobs.ask("ListTasks", cluster="jobs", maxResults=10, nextToken=pages[1]["nextToken"]))

        assert [len(page["taskArns"]) for page in pages] == [10, 10, 5]
        assert {arn for page in pages for arn in page["taskArns"]} == arns
        assert "nextToken" not in pages[2]
        assert not any(arn[-32:] in pages[0]["nextToken"] for arn in arns)

    async def test_a_token_fits_only_its_question(self, jobs: Account) -> None:
        await jobs.register()
        await jobs.run()
        await jobs.run()
        page = await jobs.ask("ListTasks", cluster="jobs", maxResults=1)

        other = await jobs.refusal("ListTasks", cluster="jobs", family="job", nextToken=page["nextToken"])
        bogus = await jobs.refusal("ListTasks", cluster="jobs", nextToken="1")

        assert other.code == bogus.code == "InvalidParameterException"

    @pytest.mark.parametrize("most", [0, 101])
    async def test_a_page_holds_up_to_a_hundred(self, jobs: Account, most: int) -> None:
        assert (await jobs.refusal("ListTasks", cluster="jobs", maxResults=most)).code == "InvalidParameterException"


class TestTags:
    async def test_a_task_is_tagged_and_untagged(self, jobs: Account) -> None:
        arn = await jobs.start()

        await jobs.ask("TagResource", resourceArn=arn, tags=[{"key": "a", "value": "1"}, {"key": "b", "value": "2"}])
        await jobs.ask("UntagResource", resourceArn=arn, tagKeys=["a"])

        reply = await jobs.ask("ListTagsForResource", resourceArn=arn)
        assert reply["tags"] == [{"key": "b", "value": "2"}]

    async def test_clusters_and_definitions_have_tags(self, jobs: Account) -> None:
        registered = await jobs.register()
        cluster = "arn:aws:ecs:us-east-1:123456789012:cluster/jobs"

        for arn in (cluster, registered["taskDefinitionArn"]):
            await jobs.ask("TagResource", resourceArn=arn, tags=[{"key": "a", "value": "1"}])

        described = await jobs.ask("DescribeClusters", clusters=["jobs"], include=["TAGS"])
        assert described["clusters"][0]["tags"] == [{"key": "a", "value": "1"}]

    async def test_nothing_else_has(self, jobs: Account) -> None:
        error = await jobs.refusal("ListTagsForResource", resourceArn="arn:aws:ecs:us-east-1:123456789012:task/jobs/1")

        assert error.code == "InvalidParameterException"


class TestExecuteCommand:
    async def test_it_is_refused_clearly(self, account: Callable[..., Account]) -> None:
        jobs = account(script=FOR_EVER)
        plain = await jobs.start()
        enabled = await jobs.start(enableExecuteCommand=True)
        asked: dict[str, Any] = {"cluster": "jobs", "command": "sh", "interactive": True}

        without = await jobs.refusal("ExecuteCommand", task=plain, **asked)
        with_it = await jobs.refusal("ExecuteCommand", task=enabled, **asked)

        assert (without.code, with_it.code) == ("InvalidParameterException", "TargetNotConnectedException")
        assert (await jobs.describe(enabled))["enableExecuteCommand"] is True


class TestThrottling:
    async def test_reads_share_a_bucket_of_a_hundred(self, account: Callable[..., Account]) -> None:
        jobs = account(quotas=Quotas.published())
        for _ in range(50):
            await jobs.ask("ListTasks", cluster="jobs")
            await jobs.ask("DescribeTasks", cluster="jobs", tasks=["a"])

        error = await jobs.refusal("ListTasks", cluster="jobs")

        assert (error.code, error.message, error.status) == ("ThrottlingException", "Rate exceeded", 400)
        assert jobs.aws.calls.throttled == {"ecs.ListTasks": 1}
        assert (await jobs.ask("DescribeClusters"))["clusters"] == []

    async def test_twenty_reads_a_second_go_on_for_ever(self, account: Callable[..., Account]) -> None:
        jobs = account(quotas=Quotas.published())

        for _ in range(1000):
            await jobs.ask("ListTasks", cluster="jobs")
            await anyio.sleep(0.05)

        assert jobs.aws.calls.throttled == {}

    async def test_one_registration_a_second_after_the_first_twenty(self, account: Callable[..., Account]) -> None:
        jobs = account(quotas=Quotas.published())
        for _ in range(20):
            await jobs.register()

        at_once = await jobs.refusal("RegisterTaskDefinition", **definition())
        await anyio.sleep(1)
        await jobs.register()

        assert at_once.code == "ThrottlingException"

    async def test_fargate_takes_twenty_launches_at_once(self, account: Callable[..., Account]) -> None:
        jobs = account(quotas=Quotas.published())
        await jobs.register()
        for _ in range(20):
            await jobs.run()

        error = await jobs.refusal("RunTask", **launch(clientToken="t"))
        await anyio.sleep(0.05)
        task = await jobs.run(clientToken="t")

        assert error.code == "ThrottlingException"
        assert len(jobs.aws.world.tasks) == 21
        assert task["lastStatus"] == "PROVISIONING"

    async def test_tasks_are_launched_at_their_own_rate(self, account: Callable[..., Account]) -> None:
        jobs = account(quotas=Quotas.published())
        await jobs.register()
        for _ in range(10):
            await jobs.ask("RunTask", **launch(count=10))

        error = await jobs.refusal("RunTask", **launch(count=10))

        assert error.code == "ThrottlingException"
        assert (await jobs.ask("RunTask", **launch(launchType=None, capacityProviderStrategy=[SPOT])))["tasks"]


class TestAtOnce:
    async def test_a_thousand_tasks_all_end(self, account: Callable[..., Account]) -> None:
        jobs = account(task_script=lambda run: TaskScript(pace=Pace().scaled(1 + run.number % 3)))
        await jobs.register()
        arns = [(await jobs.run(startedBy=f"fr/{number}"))["taskArn"] for number in range(1000)]

        await anyio.sleep(1000)

        replies = [
            await jobs.ask("DescribeTasks", cluster="jobs", tasks=arns[first : first + 100])
            for first in range(0, 1000, 100)
        ]
        assert {task["lastStatus"] for reply in replies for task in reply["tasks"]} == {"STOPPED"}
        assert len(jobs.aws.world.truth()) == 1000
