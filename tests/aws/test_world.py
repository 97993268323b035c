"""What happens to a task of the fake as time passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import anyio
import pytest

from fargate_runner.testing.aws import ContainerRun, ContainerScript, FakeAws, Pace, TaskScript
from fargate_runner.testing.clock import VirtualClock
from tests.aws.account import AWSLOGS, Account, container, main_of

STATUSES = [
    *("PROVISIONING", "PENDING", "ACTIVATING", "RUNNING"),
    *("DEACTIVATING", "STOPPING", "DEPROVISIONING", "STOPPED"),
]
MOMENTS = [
    *("createdAt", "connectivityAt", "pullStartedAt", "pullStoppedAt"),
    *("startedAt", "executionStoppedAt", "stoppingAt", "stoppedAt"),
]


@pytest.fixture
def anyio_backend(clock: VirtualClock) -> object:
    return "asyncio", {"loop_factory": clock.loop}


@pytest.fixture
def account(clock: VirtualClock) -> Callable[..., Account]:
    return lambda **options: Account(clock, **options)


def by_name(**scripts: ContainerScript) -> Callable[[ContainerRun], ContainerScript]:
    return lambda run: scripts[run.name]


FOR_EVER = ContainerScript(run_for=math.inf)


class TestTheWayOfATask:
    async def test_it_goes_through_every_status(self, account: Callable[..., Account]) -> None:
        jobs = account()
        arn = await jobs.start()

        assert await jobs.history(arn) == STATUSES

    async def test_it_goes_through_every_status_even_if_the_platform_takes_no_time(
        self, account: Callable[..., Account]
    ) -> None:
        jobs = account(pace=Pace.instant(), script=ContainerScript(run_for=0))
        arn = await jobs.start()

        task = await jobs.describe(arn)

        assert task["lastStatus"] == "STOPPED"
        seen = [event["detail"]["lastStatus"] for event in jobs.events(arn)]
        assert [status for status, _ in pairwise([*seen, ""]) if status != _] == STATUSES

    async def test_run_task_answers_before_anything_has_happened(self, account: Callable[..., Account]) -> None:
        jobs = account(pace=Pace.instant(), script=ContainerScript(run_for=0))
        await jobs.register()

        task = await jobs.run()

        assert (task["lastStatus"], task["desiredStatus"], task["version"]) == ("PROVISIONING", "RUNNING", 1)
        assert main_of(task)["lastStatus"] == "PENDING"
        assert task["attachments"][0]["status"] == "PRECREATED"

    async def test_it_takes_about_as_long_to_start_as_on_fargate(self, account: Callable[..., Account]) -> None:
        jobs = account()
        arns = [await jobs.start() for _ in range(20)]

        tasks = [await jobs.over(arn) for arn in arns]

        waits = [(task["startedAt"] - task["createdAt"]).total_seconds() for task in tasks]
        assert 15 < min(waits) < max(waits) < 50
        assert len(set(waits)) > 10

    async def test_a_task_that_has_not_started_has_few_timestamps(self, account: Callable[..., Account]) -> None:
        jobs = account()
        arn = await jobs.start()

        task = await jobs.describe(arn)

        assert [name for name in MOMENTS if name in task] == ["createdAt"]
        assert "stopCode" not in task
        assert "exitCode" not in main_of(task)

    async def test_a_task_that_is_over_has_all_timestamps_in_order(self, account: Callable[..., Account]) -> None:
        jobs = account(script=ContainerScript(run_for=60))
        arn = await jobs.start()

        task = await jobs.over(arn)

        moments = [task[name] for name in MOMENTS]
        assert moments == sorted(moments)
        assert (task["executionStoppedAt"] - task["startedAt"]).total_seconds() == 60
        assert all(moment.tzinfo is not None for moment in moments)

    async def test_the_version_grows_with_every_event(self, account: Callable[..., Account]) -> None:
        jobs = account()
        arn = await jobs.start()

        task = await jobs.over(arn)

        versions = [event["detail"]["version"] for event in jobs.events(arn)]
        assert versions == list(range(1, task["version"] + 1))

    async def test_its_network_is_known_once_it_is_provisioned(self, account: Callable[..., Account]) -> None:
        jobs = account()
        arn = await jobs.start()

        early, late = await jobs.describe(arn), await jobs.until(arn, "PENDING")

        assert [each["name"] for each in early["attachments"][0]["details"]] == ["subnetId"]
        assert late["attachments"][0]["type"] == "ElasticNetworkInterface"
        address = {each["name"]: each["value"] for each in late["attachments"][0]["details"]}["privateIPv4Address"]
        assert main_of(late)["networkInterfaces"][0]["privateIpv4Address"] == address

    async def test_its_zone_is_that_of_its_subnet(self, account: Callable[..., Account]) -> None:
        jobs = account()
        network = {"awsvpcConfiguration": {"subnets": ["subnet-0bbbbbbbb00000001"]}}

        arn = await jobs.start(networkConfiguration=network)

        assert (await jobs.describe(arn))["availabilityZone"] == "us-east-1b"

    async def test_the_exit_code_is_known_before_the_task_is_over(self, account: Callable[..., Account]) -> None:
        jobs = account(script=ContainerScript(exit_code=3))
        arn = await jobs.start()

        task = await jobs.until(arn, "DEPROVISIONING")

        assert main_of(task)["lastStatus"] == "STOPPED"
        assert main_of(task)["exitCode"] == 3
        assert task["stopCode"] == "EssentialContainerExited"
        assert task["stoppedReason"] == "Essential container in task exited"
        assert "stoppedAt" not in task

    async def test_the_same_seed_gives_the_same_life(self, clock: VirtualClock) -> None:
        first, second = Account(clock, seed=7), Account(clock, seed=7)
        one, two = await first.start(), await second.start()

        tasks = await first.over(one), await second.over(two)

        assert tasks[0] == tasks[1]

    async def test_another_seed_gives_another_life(self, clock: VirtualClock) -> None:
        first, second = Account(clock, seed=7), Account(clock, seed=8)
        one, two = await first.start(), await second.start()

        tasks = await first.over(one), await second.over(two)

        assert tasks[0]["startedAt"] != tasks[1]["startedAt"]
        assert one != two

    async def test_time_that_nobody_asks_about_passes_all_the_same(self, account: Callable[..., Account]) -> None:
        jobs = account(script=ContainerScript(run_for=60))
        arn = await jobs.start()

        await anyio.sleep(3000)

        task = await jobs.describe(arn)
        assert task["lastStatus"] == "STOPPED"
        assert (task["executionStoppedAt"] - task["startedAt"]).total_seconds() == 60


class TestContainers:
    async def test_the_first_essential_one_to_end_takes_the_others_with_it(
        self, account: Callable[..., Account]
    ) -> None:
        jobs = account(script=by_name(main=ContainerScript(run_for=10), side=FOR_EVER))
        arn = await jobs.start(container(), container("side"))

        task = await jobs.over(arn)

        assert main_of(task)["exitCode"] == 0
        assert main_of(task, "side")["exitCode"] == 143
        assert task["stopCode"] == "EssentialContainerExited"

    async def test_one_that_is_not_essential_may_end_alone(self, account: Callable[..., Account]) -> None:
        jobs = account(script=by_name(main=ContainerScript(run_for=100), side=ContainerScript(run_for=5, exit_code=1)))
        arn = await jobs.start(container(), container("side", essential=False))

        await jobs.until(arn, "RUNNING")
        await anyio.sleep(50)

        task = await jobs.describe(arn)
        assert (task["lastStatus"], task["desiredStatus"]) == ("RUNNING", "RUNNING")
        assert main_of(task, "side")["exitCode"] == 1
        assert "exitCode" not in main_of(task)

    async def test_one_that_ignores_sigterm_is_killed_after_its_stop_timeout(
        self, account: Callable[..., Account]
    ) -> None:
        jobs = account(script=ContainerScript(run_for=math.inf, ignores_sigterm=True))
        arn = await jobs.start(container(stopTimeout=90))
        await jobs.until(arn, "RUNNING")
        asked_at = jobs.clock.time()

        await jobs.ask("StopTask", cluster="jobs", task=arn)
        task = await jobs.over(arn)

        assert main_of(task)["exitCode"] == 137
        (truth,) = jobs.aws.world.truth()
        assert truth.ended_at == asked_at + 90

    async def test_without_a_stop_timeout_it_is_half_a_minute(self, account: Callable[..., Account]) -> None:
        jobs = account(script=ContainerScript(run_for=math.inf, ignores_sigterm=True))
        arn = await jobs.start()
        await jobs.until(arn, "RUNNING")
        asked_at = jobs.clock.time()

        await jobs.ask("StopTask", cluster="jobs", task=arn)
        await jobs.over(arn)

        (truth,) = jobs.aws.world.truth()
        assert truth.ended_at == asked_at + 30

    async def test_one_that_takes_sigterm_politely_exits_as_it_likes(self, account: Callable[..., Account]) -> None:
        jobs = account(script=ContainerScript(run_for=math.inf, exit_code_on_sigterm=0))
        arn = await jobs.start()
        await jobs.until(arn, "RUNNING")

        await jobs.ask("StopTask", cluster="jobs", task=arn, reason="enough")
        task = await jobs.over(arn)

        assert main_of(task)["exitCode"] == 0
        assert (task["stopCode"], task["stoppedReason"]) == ("UserInitiated", "enough")

    async def test_out_of_memory_has_its_reason_and_137(self, account: Callable[..., Account]) -> None:
        jobs = account(script=ContainerScript(out_of_memory=True))
        arn = await jobs.start()

        main = main_of(await jobs.over(arn))

        assert (main["exitCode"], main["reason"]) == (137, "OutOfMemoryError: Container killed due to memory usage")

    async def test_an_exit_code_that_nobody_knows_is_absent(self, account: Callable[..., Account]) -> None:
        jobs = account(script=ContainerScript(exit_code=None, reason="DockerTimeoutError: Could not transition"))
        arn = await jobs.start()

        main = main_of(await jobs.over(arn))

        assert main["lastStatus"] == "STOPPED"
        assert "exitCode" not in main
        assert main["reason"].startswith("DockerTimeoutError")

    async def test_an_exit_that_ecs_does_not_see_leaves_the_task_running(self, account: Callable[..., Account]) -> None:
        jobs = account(script=ContainerScript(run_for=5, exit_code=4, exit_unnoticed=True))
        arn = await jobs.start()
        await jobs.until(arn, "RUNNING")

        await anyio.sleep(3600 * 5)

        assert (await jobs.describe(arn))["lastStatus"] == "RUNNING"
        (truth,) = jobs.aws.world.truth()
        assert truth.containers["main"].exit_code == 4
        assert truth.ended_at is not None

    async def test_stopping_frees_a_task_whose_exit_was_not_seen(self, account: Callable[..., Account]) -> None:
        jobs = account(script=ContainerScript(run_for=5, exit_code=4, exit_unnoticed=True))
        arn = await jobs.start()
        await jobs.until(arn, "RUNNING")
        await anyio.sleep(100)

        await jobs.ask("StopTask", cluster="jobs", task=arn)

        assert (await jobs.over(arn))["stopCode"] == "UserInitiated"

    async def test_a_script_is_asked_for_each_launch(self, account: Callable[..., Account]) -> None:
        asked: list[ContainerRun] = []

        def script(run: ContainerRun) -> ContainerScript:
            asked.append(run)
            return ContainerScript(exit_code=run.launch)

        jobs = account(script=script)
        await jobs.register(containerDefinitions=[container(command=["a"], entryPoint=["/e"])])
        override = {"containerOverrides": [{"name": "main", "command": ["b", "c"]}]}

        first = await jobs.run(startedBy="fr/1", overrides=override)
        second = await jobs.run(startedBy="fr/1")
        other = await jobs.run(startedBy="fr/2", launchType=None, capacityProviderStrategy=[SPOT])

        assert [run.launch for run in asked] == [1, 2, 1]
        assert [run.number for run in asked] == [1, 2, 3]
        assert [run.command for run in asked] == [("b", "c"), ("a",), ("a",)]
        assert [run.capacity_provider for run in asked] == ["FARGATE", "FARGATE", "FARGATE_SPOT"]
        assert asked[0].task_arn == first["taskArn"]
        assert (asked[0].image, asked[0].entry_point, asked[0].family) == ("busybox:1", ("/e",), "job")
        assert main_of(await jobs.over(second["taskArn"]))["exitCode"] == 2
        assert main_of(await jobs.over(other["taskArn"]))["exitCode"] == 1


SPOT = {"capacityProvider": "FARGATE_SPOT", "weight": 1}


class TestDependencies:
    @pytest.mark.parametrize(
        ("condition", "changes", "script", "wait"),
        [
            ("START", {}, FOR_EVER, 0),
            ("COMPLETE", {"essential": False}, ContainerScript(run_for=20, exit_code=1), 20),
            ("SUCCESS", {"essential": False}, ContainerScript(run_for=20), 20),
            ("HEALTHY", {"healthCheck": {"command": ["CMD", "x"]}}, ContainerScript(run_for=1e9, healthy_after=7), 7),
        ],
    )
    async def test_a_container_waits_for_the_other(
        self,
        account: Callable[..., Account],
        condition: str,
        changes: dict[str, Any],
        script: ContainerScript,
        wait: float,
    ) -> None:
        jobs = account(script=by_name(main=ContainerScript(), first=script))
        waits = [{"containerName": "first", "condition": condition}]

        arn = await jobs.start(container(dependsOn=waits), container("first", **changes))
        await jobs.over(arn)

        (truth,) = jobs.aws.world.truth()
        main, first = truth.containers["main"].started_at, truth.containers["first"].started_at
        assert main is not None
        assert first is not None
        assert main - first == pytest.approx(wait)

    async def test_the_task_is_running_once_all_have_started(self, account: Callable[..., Account]) -> None:
        jobs = account(script=by_name(main=ContainerScript(), first=ContainerScript(run_for=20)))
        waits = [{"containerName": "first", "condition": "SUCCESS"}]

        arn = await jobs.start(container(dependsOn=waits), container("first", essential=False))
        task = await jobs.over(arn)

        (truth,) = jobs.aws.world.truth()
        assert task["startedAt"] == jobs.aws.world.moment(truth.containers["main"].started_at or 0)

    @pytest.mark.parametrize(
        ("condition", "changes", "script"),
        [
            ("SUCCESS", {"essential": False}, ContainerScript(exit_code=2)),
            (
                "HEALTHY",
                {"healthCheck": {"command": ["CMD", "x"]}},
                ContainerScript(run_for=math.inf, healthy_after=None),
            ),
        ],
    )
    async def test_a_dependency_that_fails_fails_the_task(
        self, account: Callable[..., Account], condition: str, changes: dict[str, Any], script: ContainerScript
    ) -> None:
        jobs = account(script=by_name(main=ContainerScript(), first=script))
        waits = [{"containerName": "first", "condition": condition}]

        arn = await jobs.start(container(dependsOn=waits), container("first", **changes))
        task = await jobs.over(arn)

        assert task["stopCode"] == "TaskFailedToStart"
        assert task["stoppedReason"].startswith("TaskDependencyError")
        assert "exitCode" not in main_of(task)
        assert "startedAt" not in task

    async def test_an_unhealthy_container_stops_no_task(self, account: Callable[..., Account]) -> None:
        jobs = account(script=ContainerScript(run_for=100, healthy_after=None))
        arn = await jobs.start(container(healthCheck={"command": ["CMD", "x"]}))
        await jobs.until(arn, "RUNNING")

        await anyio.sleep(50)

        task = await jobs.describe(arn)
        assert main_of(task)["healthStatus"] == task["healthStatus"] == "UNHEALTHY"
        assert task["desiredStatus"] == "RUNNING"


class TestStartsThatFail:
    @pytest.mark.parametrize(
        ("reason", "absent"),
        [
            ("ResourceInitializationError: failed to invoke EFS utils", ["pullStartedAt", "pullStoppedAt"]),
            ("CannotPullContainerError: manifest unknown", ["pullStoppedAt"]),
            ('CannotStartContainerError: exec: "x": executable file not found in $PATH', []),
        ],
    )
    async def test_a_container_that_could_not_start(
        self, account: Callable[..., Account], reason: str, absent: list[str]
    ) -> None:
        jobs = account(script=ContainerScript(could_not_start=reason))
        arn = await jobs.start()

        task = await jobs.over(arn)

        assert (task["stopCode"], task["stoppedReason"]) == ("TaskFailedToStart", reason)
        assert main_of(task)["reason"] == reason
        assert "exitCode" not in main_of(task)
        missing = [name for name in ("pullStartedAt", "pullStoppedAt", "startedAt") if name not in task]
        assert missing == [*absent, "startedAt"]

    async def test_it_never_runs(self, account: Callable[..., Account]) -> None:
        jobs = account(script=ContainerScript(could_not_start="CannotPullContainerError: not found"))
        arn = await jobs.start()

        history = await jobs.history(arn)

        assert history == ["PROVISIONING", "PENDING", "ACTIVATING", "DEPROVISIONING", "STOPPED"]
        (truth,) = jobs.aws.world.truth()
        assert truth.alive is None

    async def test_a_sidecar_that_could_not_start_takes_down_what_runs(self, account: Callable[..., Account]) -> None:
        broken = ContainerScript(could_not_start="CannotStartContainerError: permission denied")
        jobs = account(script=by_name(main=FOR_EVER, side=broken))
        waits = [{"containerName": "main", "condition": "START"}]

        arn = await jobs.start(container(), container("side", dependsOn=waits))
        task = await jobs.over(arn)

        assert task["stopCode"] == "TaskFailedToStart"
        assert main_of(task)["exitCode"] == 143

    @pytest.mark.parametrize("status", ["PROVISIONING", "PENDING", "ACTIVATING"])
    async def test_a_task_that_fails_in_a_status(self, account: Callable[..., Account], status: str) -> None:
        reason = "Timeout waiting for network interface provisioning to complete."
        jobs = account(task_script=lambda _: TaskScript(fails_to_start=reason, fails_in=status))
        arn = await jobs.start()

        history = await jobs.history(arn)
        task = await jobs.describe(arn)

        assert history[-3:] == [status, "DEPROVISIONING", "STOPPED"]
        assert (task["stopCode"], task["stoppedReason"]) == ("TaskFailedToStart", reason)
        assert main_of(task)["lastStatus"] == "STOPPED"
        assert "exitCode" not in main_of(task)

    async def test_the_containers_may_be_missing(self, account: Callable[..., Account]) -> None:
        jobs = account()
        jobs.aws.world.fates.add(TaskScript(fails_to_start="InternalError: oh", without_containers=True))
        arn = await jobs.start()

        task = await jobs.over(arn)

        assert task["containers"] == []

    async def test_a_missing_log_group(self, account: Callable[..., Account]) -> None:
        jobs = account(log_groups=())
        arn = await jobs.start(container(logConfiguration=AWSLOGS))

        task = await jobs.over(arn)

        assert task["stopCode"] == "TaskFailedToStart"
        assert "failed to initialize logging driver" in task["stoppedReason"]
        assert task["stoppedReason"].startswith("ResourceInitializationError")

    async def test_a_missing_log_group_that_may_be_made(self, account: Callable[..., Account]) -> None:
        jobs = account(log_groups=(), script=ContainerScript(lines=("hello",)))
        options = {**AWSLOGS["options"], "awslogs-create-group": "true"}

        arn = await jobs.start(container(logConfiguration={"logDriver": "awslogs", "options": options}))
        await jobs.over(arn)

        assert jobs.aws.logs.messages("/jobs", f"fr/main/{arn[-32:]}") == ["hello"]

    async def test_a_secret_that_is_not_there(self, account: Callable[..., Account]) -> None:
        jobs = account()
        arn = await jobs.start(container(secrets=[{"name": "TOKEN", "valueFrom": "/not/there"}]))

        task = await jobs.over(arn)

        assert task["stopCode"] == "TaskFailedToStart"
        assert task["stoppedReason"].startswith("ResourceInitializationError: unable to pull secrets or registry auth")

    async def test_an_environment_file_that_is_not_there(self, account: Callable[..., Account]) -> None:
        jobs = account()
        files = [{"type": "s3", "value": "arn:aws:s3:::nowhere/job.env"}]
        arn = await jobs.start(container(environmentFiles=files))

        task = await jobs.over(arn)

        assert task["stoppedReason"].startswith("ResourceInitializationError: failed to download env files")


class TestEnvironment:
    async def test_it_is_made_of_files_definition_overrides_and_secrets(self, account: Callable[..., Account]) -> None:
        seen: list[ContainerRun] = []
        jobs = account(script=lambda run: seen.append(run) or ContainerScript())
        secret = await jobs.ask("secretsmanager.CreateSecret", Name="db", SecretString='{"password":"pw"}')
        await jobs.ask("ssm.PutParameter", Name="/fr/token", Value="tk", Type="SecureString")
        await jobs.ask("s3.CreateBucket", Bucket="envs")
        await jobs.ask("s3.PutObject", Bucket="envs", Key="a.env", Body=b"# no\nFILE=1\nDEFINED=file\n\nOVER=file\n")

        await jobs.start(
            container(
                environment=[{"name": "DEFINED", "value": "def"}, {"name": "OVER", "value": "def"}],
                environmentFiles=[{"type": "s3", "value": "arn:aws:s3:::envs/a.env"}],
                secrets=[
                    {"name": "PASSWORD", "valueFrom": f"{secret['ARN']}:password::"},
                    {"name": "TOKEN", "valueFrom": "/fr/token"},
                ],
            ),
            overrides={"containerOverrides": [{"name": "main", "environment": [{"name": "OVER", "value": "task"}]}]},
        )

        assert seen[0].environment == {
            "FILE": "1",
            "DEFINED": "def",
            "OVER": "task",
            "PASSWORD": "pw",
            "TOKEN": "tk",
        }

    async def test_it_is_not_shown(self, account: Callable[..., Account]) -> None:
        run = ContainerRun(name="main", image="i", environment={"PASSWORD": "pw"})

        assert "pw" not in repr(run)


class TestOutput:
    LINES = tuple(f"line {number}" for number in range(100))

    async def test_it_goes_to_the_stream_of_the_container(self, account: Callable[..., Account]) -> None:
        jobs = account(script=ContainerScript(run_for=60, lines=self.LINES))
        arn = await jobs.start(container(logConfiguration=AWSLOGS))

        await jobs.over(arn)

        assert jobs.aws.logs.messages("/jobs", f"fr/main/{arn[-32:]}") == list(self.LINES)

    async def test_it_is_spread_over_the_run(self, account: Callable[..., Account]) -> None:
        jobs = account(script=ContainerScript(run_for=60, lines=self.LINES))
        arn = await jobs.start(container(logConfiguration=AWSLOGS))
        await jobs.over(arn)

        reply = await jobs.ask(
            "logs.GetLogEvents", logGroupName="/jobs", logStreamName=f"fr/main/{arn[-32:]}", startFromHead=True
        )

        stamps = [event["timestamp"] for event in reply["events"]]
        assert len(set(stamps)) == 100
        assert 55_000 < stamps[-1] - stamps[0] < 60_000

    async def test_the_stream_exists_once_the_container_has_started(self, account: Callable[..., Account]) -> None:
        jobs = account(script=FOR_EVER)
        arn = await jobs.start(container(logConfiguration=AWSLOGS))
        asked: dict[str, Any] = {"logGroupName": "/jobs", "logStreamName": f"fr/main/{arn[-32:]}"}

        early = await jobs.refusal("logs.GetLogEvents", **asked)
        await jobs.until(arn, "RUNNING")

        assert early.code == "ResourceNotFoundException"
        assert (await jobs.ask("logs.GetLogEvents", **asked))["events"] == []

    async def test_what_was_not_said_before_the_kill_is_not_there(self, account: Callable[..., Account]) -> None:
        jobs = account(script=ContainerScript(run_for=100, lines=self.LINES))
        arn = await jobs.start(container(logConfiguration=AWSLOGS))
        await jobs.until(arn, "RUNNING")
        await anyio.sleep(50)

        await jobs.ask("StopTask", cluster="jobs", task=arn)
        await jobs.over(arn)

        said = jobs.aws.logs.messages("/jobs", f"fr/main/{arn[-32:]}")
        assert 48 <= len(said) <= 51
        assert said == list(self.LINES[: len(said)])
        (truth,) = jobs.aws.world.truth()
        assert truth.containers["main"].lines == tuple(said)

    async def test_a_container_that_runs_for_ever_says_a_line_a_second(self, account: Callable[..., Account]) -> None:
        jobs = account(script=ContainerScript(run_for=math.inf, lines=self.LINES))
        arn = await jobs.start(container(logConfiguration=AWSLOGS))
        await jobs.until(arn, "RUNNING")

        await anyio.sleep(30)

        assert 24 <= len(jobs.aws.logs.messages("/jobs", f"fr/main/{arn[-32:]}")) <= 30

    async def test_what_an_unseen_exit_left_behind_is_written(self, account: Callable[..., Account]) -> None:
        jobs = account(script=ContainerScript(run_for=10, lines=self.LINES, exit_unnoticed=True))
        arn = await jobs.start(container(logConfiguration=AWSLOGS))
        await jobs.until(arn, "RUNNING")

        await anyio.sleep(60)

        assert jobs.aws.logs.messages("/jobs", f"fr/main/{arn[-32:]}") == list(self.LINES)


class TestInterruptions:
    async def test_a_spot_notice_comes_while_the_task_runs(self, account: Callable[..., Account]) -> None:
        stubborn = ContainerScript(run_for=math.inf, ignores_sigterm=True)
        jobs = account(script=stubborn, task_script=lambda _: TaskScript(interrupted_after=30))
        arn = await jobs.start(container(stopTimeout=100), launchType=None, capacityProviderStrategy=[SPOT])
        await jobs.until(arn, "RUNNING")

        await anyio.sleep(40)
        noticed = await jobs.describe(arn)
        task = await jobs.over(arn)

        assert (noticed["lastStatus"], noticed["desiredStatus"]) == ("RUNNING", "STOPPED")
        assert (noticed["stopCode"], noticed["stoppedReason"]) == (
            "SpotInterruption",
            "Your Spot Task was interrupted.",
        )
        assert "stoppedAt" not in noticed
        assert main_of(task)["exitCode"] == 137
        (truth,) = jobs.aws.world.truth()
        assert truth.started_at is not None
        assert truth.ended_at == pytest.approx(truth.started_at + 130)

    async def test_the_notice_is_an_event(self, account: Callable[..., Account]) -> None:
        jobs = account(script=FOR_EVER, task_script=lambda _: TaskScript(interrupted_after=30))
        arn = await jobs.start(container(stopTimeout=100))

        await jobs.over(arn)

        notices = [event["detail"] for event in jobs.events(arn) if event["detail"].get("stopCode")]
        assert (notices[0]["lastStatus"], notices[0]["desiredStatus"]) == ("RUNNING", "STOPPED")
        assert notices[0]["stopCode"] == "SpotInterruption"
        assert "stoppedAt" not in notices[0]

    async def test_a_container_that_takes_the_hint_may_exit_0(self, account: Callable[..., Account]) -> None:
        polite = ContainerScript(run_for=math.inf, exit_code_on_sigterm=0)
        jobs = account(script=polite, task_script=lambda _: TaskScript(interrupted_after=30))
        arn = await jobs.start()

        task = await jobs.over(arn)

        assert task["stopCode"] == "SpotInterruption"
        assert main_of(task)["exitCode"] == 0

    async def test_capacity_may_be_taken_back_before_the_task_runs(self, account: Callable[..., Account]) -> None:
        jobs = account()
        arn = await jobs.start()
        await jobs.until(arn, "ACTIVATING")

        jobs.aws.world.interrupt(arn)
        task = await jobs.over(arn)

        assert task["stopCode"] == "SpotInterruption"
        assert "startedAt" not in task

    async def test_a_lost_host_leaves_neither_exit_code_nor_stop_code(self, account: Callable[..., Account]) -> None:
        jobs = account(script=FOR_EVER, task_script=lambda _: TaskScript(host_fails_after=30))
        arn = await jobs.start()

        task = await jobs.over(arn)

        assert "stopCode" not in task
        assert task["stoppedReason"].startswith("ECS is performing maintenance")
        assert main_of(task)["lastStatus"] == "STOPPED"
        assert "exitCode" not in main_of(task)
        (truth,) = jobs.aws.world.truth()
        assert truth.started_at is not None
        assert truth.ended_at == pytest.approx(truth.started_at + 30)

    async def test_a_host_may_be_lost_with_a_stop_code(self, account: Callable[..., Account]) -> None:
        jobs = account(script=FOR_EVER)
        arn = await jobs.start()
        await jobs.until(arn, "PENDING")

        jobs.aws.world.lose_host(arn, reason="Host EC2 (instance i-1) terminated.", stop_code="TerminationNotice")
        task = await jobs.over(arn)

        assert (task["stopCode"], task["stoppedReason"]) == ("TerminationNotice", "Host EC2 (instance i-1) terminated.")

    @pytest.mark.parametrize("status", STATUSES[:-1])
    async def test_a_task_may_be_stuck_for_ever(self, account: Callable[..., Account], status: str) -> None:
        jobs = account(task_script=lambda _: TaskScript(stuck_in=status))
        arn = await jobs.start()

        await anyio.sleep(100_000)

        assert (await jobs.describe(arn))["lastStatus"] == status

    @pytest.mark.parametrize("status", STATUSES[:3])
    async def test_a_task_that_is_stuck_on_its_way_up_can_be_stopped(
        self, account: Callable[..., Account], status: str
    ) -> None:
        jobs = account(task_script=lambda _: TaskScript(stuck_in=status))
        arn = await jobs.start()
        await anyio.sleep(1000)

        await jobs.ask("StopTask", cluster="jobs", task=arn)

        assert (await jobs.over(arn))["stopCode"] == "UserInitiated"

    async def test_guardduty_puts_a_container_of_its_own_into_the_task(self, account: Callable[..., Account]) -> None:
        jobs = account(script=ContainerScript(exit_code=3), task_script=lambda _: TaskScript(guardduty=True))
        arn = await jobs.start()

        task = await jobs.over(arn)

        (guard,) = [each for each in task["containers"] if each["name"].startswith("aws-guardduty-agent-")]
        assert guard["cpu"] == "null"
        assert "image" not in guard
        assert guard["name"] in [each["name"] for each in task["overrides"]["containerOverrides"]]
        assert main_of(task)["exitCode"] == 3

    async def test_fates_are_used_up(self, account: Callable[..., Account]) -> None:
        jobs = account()
        jobs.aws.world.fates.add(
            TaskScript(fails_to_start="InternalError: oh"), when=lambda run: run.started_by == "b", skip=1
        )

        codes = [(await jobs.over(await jobs.start(startedBy=who)))["stopCode"] for who in ("a", "b", "a", "b", "b")]

        exited = "EssentialContainerExited"
        assert codes == [exited, exited, exited, "TaskFailedToStart", exited]


class TestEvents:
    async def test_they_have_the_shape_that_aws_documents(self, account: Callable[..., Account]) -> None:
        jobs = account(script=ContainerScript(out_of_memory=True))
        arn = await jobs.start(container(), tags=[{"key": "a", "value": "b"}], startedBy="fr/1")

        await jobs.over(arn)

        event = jobs.events(arn)[-1]
        assert set(event) == {
            *("version", "id", "detail-type", "source", "account", "time", "region", "resources", "detail"),
        }
        assert (event["version"], event["source"], event["detail-type"]) == ("0", "aws.ecs", "ECS Task State Change")
        assert set(event["detail"]) == {
            *("attachments", "attributes", "availabilityZone", "clusterArn", "connectivity", "connectivityAt"),
            *("containers", "cpu", "memory", "createdAt", "desiredStatus", "lastStatus", "enableExecuteCommand"),
            *("ephemeralStorage", "group", "launchType", "overrides", "platformVersion", "startedBy"),
            *("pullStartedAt", "pullStoppedAt", "startedAt", "executionStoppedAt", "stoppingAt", "stoppedAt"),
            *("stopCode", "stoppedReason", "taskArn", "taskDefinitionArn", "updatedAt", "version"),
        }
        assert event["detail"]["attachments"][0]["type"] == "eni"
        assert "healthStatus" not in event["detail"]["containers"][0]

    async def test_their_moments_are_texts(self, account: Callable[..., Account]) -> None:
        jobs = account()
        arn = await jobs.start()

        task = await jobs.over(arn)

        detail = jobs.events(arn)[-1]["detail"]
        assert detail["createdAt"] == "2026-01-01T00:00:00Z"
        assert detail["stoppedAt"].rstrip("Z") == task["stoppedAt"].isoformat()[: len(detail["stoppedAt"]) - 1]

    async def test_they_reach_a_queue_while_the_client_waits_there(self, account: Callable[..., Account]) -> None:
        jobs = account()
        queue = (await jobs.ask("sqs.CreateQueue", QueueName="q"))["QueueUrl"]
        attributes = await jobs.ask("sqs.GetQueueAttributes", QueueUrl=queue, AttributeNames=["QueueArn"])
        await jobs.ask("events.PutRule", Name="r", EventPattern='{"source":["aws.ecs"]}')
        target = {"Id": "q", "Arn": attributes["Attributes"]["QueueArn"]}
        await jobs.ask("events.PutTargets", Rule="r", Targets=[target])
        await anyio.sleep(120)
        await jobs.start()
        first = await jobs.ask("sqs.ReceiveMessage", QueueUrl=queue, WaitTimeSeconds=20)
        begun = jobs.clock.time()

        second = await jobs.ask("sqs.ReceiveMessage", QueueUrl=queue, WaitTimeSeconds=20)

        assert '"lastStatus": "PROVISIONING"' in first["Messages"][0]["Body"].replace('":"', '": "')
        assert '"lastStatus": "PENDING"' in second["Messages"][0]["Body"].replace('":"', '": "')
        assert 0 < jobs.clock.time() - begun < 20

    async def test_a_launch_that_found_no_room_tells_nobody(self, account: Callable[..., Account]) -> None:
        jobs = account()
        await jobs.register()
        jobs.aws.world.capacity.out("FARGATE")

        await jobs.ask(
            "RunTask",
            cluster="jobs",
            taskDefinition="job",
            launchType="FARGATE",
            networkConfiguration={"awsvpcConfiguration": {"subnets": ["subnet-1"]}},
        )

        assert not jobs.aws.events.emitted


class TestWhatCanBeSeen:
    async def test_a_new_task_is_missing_for_a_moment(self, account: Callable[..., Account]) -> None:
        jobs = account(visible_after=(2.0, 3.0))
        arn = await jobs.start()

        at_once = await jobs.ask("DescribeTasks", cluster="jobs", tasks=[arn])
        listed = await jobs.ask("ListTasks", cluster="jobs")
        await anyio.sleep(3)

        assert at_once == {"tasks": [], "failures": [{"arn": arn, "reason": "MISSING"}]}
        assert listed["taskArns"] == []
        assert (await jobs.describe(arn))["taskArn"] == arn
        assert (await jobs.ask("ListTasks", cluster="jobs"))["taskArns"] == [arn]

    async def test_a_task_that_is_not_seen_yet_can_be_stopped(self, account: Callable[..., Account]) -> None:
        jobs = account(visible_after=(2.0, 3.0))
        arn = await jobs.start()

        reply = await jobs.ask("StopTask", cluster="jobs", task=arn)

        assert reply["task"]["desiredStatus"] == "STOPPED"

    async def test_it_vanishes_an_hour_after_its_end(self, account: Callable[..., Account]) -> None:
        jobs = account()
        arn = await jobs.start()
        await jobs.over(arn)

        await anyio.sleep(3590)
        still = await jobs.ask("ListTasks", cluster="jobs", desiredStatus="STOPPED")
        await anyio.sleep(10)
        gone = await jobs.ask("ListTasks", cluster="jobs", desiredStatus="STOPPED")

        assert (still["taskArns"], gone["taskArns"]) == ([arn], [])
        reply = await jobs.ask("DescribeTasks", cluster="jobs", tasks=[arn])
        assert reply["failures"] == [{"arn": arn, "reason": "MISSING"}]
        assert len(jobs.aws.world.truth()) == 1

    async def test_it_can_be_hidden(self, account: Callable[..., Account]) -> None:
        jobs = account()
        arn = await jobs.start()

        jobs.aws.world.hide(arn, 60)

        hidden = await jobs.ask("DescribeTasks", cluster="jobs", tasks=[arn])
        await anyio.sleep(60)
        assert hidden["failures"][0]["reason"] == "MISSING"
        assert (await jobs.describe(arn))["taskArn"] == arn


class TestTheTruth:
    async def test_it_tells_who_started_what_and_when_it_lived(self, account: Callable[..., Account]) -> None:
        jobs = account(script=ContainerScript(run_for=60, lines=("a", "b")))
        await jobs.register()
        first = (await jobs.run(startedBy="fr/1", clientToken="t1"))["taskArn"]
        await jobs.run(startedBy="fr/2")
        await jobs.over(first)

        (truth,) = jobs.aws.world.truth("fr/1")

        assert (truth.arn, truth.started_by, truth.token, truth.family) == (first, "fr/1", "t1", "job")
        assert truth.alive is not None
        assert truth.alive[1] - truth.alive[0] == pytest.approx(60)
        assert truth.containers["main"].lines == ("a", "b")
        assert truth.containers["main"].exit_code == 0

    async def test_a_task_that_runs_is_alive_until_further_notice(self, account: Callable[..., Account]) -> None:
        jobs = account(script=FOR_EVER)
        arn = await jobs.start()
        await jobs.until(arn, "RUNNING")

        (truth,) = jobs.aws.world.truth()

        assert truth.alive is not None
        assert truth.alive[1] == math.inf
        assert truth.stopped_at is None


def test_moments_keep_the_order_of_seconds_whatever_the_wall_clock_does() -> None:
    class Jumpy(VirtualClock):
        def utcnow(self) -> datetime:
            self._start -= timedelta(milliseconds=3)
            return super().utcnow()

    world = FakeAws(clock=Jumpy()).world

    assert [world.milliseconds(n / 1000) - world.milliseconds(0) for n in range(10)] == list(range(10))
