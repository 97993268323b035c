"""The seam between the world and what runs the containers: anybody may drive tasks by it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import anyio
import pytest

from fargate_runner.testing.aws import ContainerScript, Engine, ScriptedEngine
from fargate_runner.testing.aws._task import Task
from fargate_runner.testing.clock import VirtualClock
from tests.aws.account import AWSLOGS, Account, container, main_of


class HandEngine(Engine):
    """Does nothing by itself: a test reports what happens."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def start(self, task: Task) -> None:
        self.asked.append("start")

    def stop(self, task: Task) -> None:
        self.asked.append("stop")

    def kill(self, task: Task) -> None:
        self.asked.append("kill")


class CoyEngine(HandEngine):
    """Its tasks are PENDING until their containers run."""

    shows_activating = False


class DeafEngine(ScriptedEngine):
    """Sends no signals."""

    def stop(self, task: Task) -> None:
        pass


@pytest.fixture
def anyio_backend(clock: VirtualClock) -> object:
    return "asyncio", {"loop_factory": clock.loop}


@pytest.fixture
def engine() -> HandEngine:
    return HandEngine()


@pytest.fixture
def jobs(clock: VirtualClock, engine: HandEngine) -> Account:
    return Account(clock, engine=engine)


@pytest.fixture
def started(jobs: Account) -> Callable[..., Awaitable[Task]]:
    async def start(*containers: dict[str, object]) -> Task:
        arn = await jobs.start(*containers)
        await jobs.until(arn, "ACTIVATING")
        return jobs.aws.world.tasks[arn]

    return start


async def test_the_engine_is_asked_once_the_task_is_activating(jobs: Account, engine: HandEngine) -> None:
    arn = await jobs.start()
    before = list(engine.asked)

    await jobs.until(arn, "ACTIVATING")
    await anyio.sleep(1000)

    assert (before, engine.asked) == ([], ["start"])
    assert (await jobs.describe(arn))["lastStatus"] == "ACTIVATING"


async def test_what_it_reports_is_what_ecs_shows(jobs: Account, started: Callable[..., Awaitable[Task]]) -> None:
    task = await started(container(logConfiguration=AWSLOGS))
    world = jobs.aws.world

    world.pulling(task)
    await anyio.sleep(1)
    world.pulled(task)
    world.container_started(task, "main", runtime_id="r-1", image_digest="sha256:1", address="172.17.0.2")
    world.output(task, "main", [(world.milliseconds(world.now()), "hello")])
    shown = await jobs.describe(task.arn)

    assert shown["lastStatus"] == "RUNNING"
    assert (shown["pullStoppedAt"] - shown["pullStartedAt"]).total_seconds() == 1
    main = main_of(shown)
    assert (main["runtimeId"], main["imageDigest"]) == ("r-1", "sha256:1")
    assert main["networkInterfaces"][0]["privateIpv4Address"] == "172.17.0.2"
    assert jobs.aws.logs.messages("/jobs", f"fr/main/{task.id}") == ["hello"]


async def test_an_essential_exit_asks_it_to_stop_the_rest(
    jobs: Account, engine: HandEngine, started: Callable[..., Awaitable[Task]]
) -> None:
    task = await started(container(), container("side"))
    world = jobs.aws.world
    world.container_started(task, "main")
    between = (await jobs.describe(task.arn))["lastStatus"]
    world.container_started(task, "side")

    world.container_exited(task, "main", exit_code=7)
    await anyio.sleep(100)
    waiting = await jobs.describe(task.arn)
    world.container_exited(task, "side", exit_code=143)
    world.finished(task)
    over = await jobs.over(task.arn)

    assert between == "ACTIVATING"
    assert engine.asked == ["start", "stop"]
    assert (waiting["lastStatus"], waiting["desiredStatus"]) == ("STOPPING", "STOPPED")
    assert (main_of(over)["exitCode"], main_of(over, "side")["exitCode"]) == (7, 143)


async def test_it_may_fail_to_start(jobs: Account, engine: HandEngine, started: Callable[..., Awaitable[Task]]) -> None:
    task = await started()
    reason = "CannotStartContainerError: no such file"

    jobs.aws.world.failed_to_start(task, reason, container="main", container_reason=reason, exit_code=127)
    jobs.aws.world.finished(task)
    over = await jobs.over(task.arn)

    assert engine.asked == ["start", "stop"]
    assert (over["stopCode"], over["stoppedReason"]) == ("TaskFailedToStart", reason)
    assert (main_of(over)["exitCode"], main_of(over)["reason"]) == (127, reason)


async def test_a_task_that_was_stopped_before_is_none_of_its_business(jobs: Account, engine: HandEngine) -> None:
    arn = await jobs.start()

    await jobs.ask("StopTask", cluster="jobs", task=arn)
    await jobs.over(arn)

    assert engine.asked == []


async def test_stopping_twice_asks_it_once(
    jobs: Account, engine: HandEngine, started: Callable[..., Awaitable[Task]]
) -> None:
    task = await started()

    for _ in range(2):
        await jobs.ask("StopTask", cluster="jobs", task=task.arn)

    assert engine.asked == ["start", "stop"]


async def test_saying_twice_that_it_is_finished_is_harmless(
    jobs: Account, started: Callable[..., Awaitable[Task]]
) -> None:
    task = await started()
    jobs.aws.world.container_started(task, "main")
    jobs.aws.world.container_exited(task, "main", exit_code=0)

    jobs.aws.world.finished(task)
    jobs.aws.world.finished(task)

    assert (await jobs.history(task.arn))[-1] == "STOPPED"


async def test_spot_waits_two_minutes_for_it_and_no_longer(clock: VirtualClock) -> None:
    jobs = Account(clock, engine=DeafEngine(), script=ContainerScript(run_for=math.inf))
    arn = await jobs.start()
    await jobs.until(arn, "RUNNING")
    asked_at = clock.time()

    jobs.aws.world.interrupt(arn)
    await jobs.over(arn)

    (truth,) = jobs.aws.world.truth()
    assert truth.ended_at == asked_at + 120


async def test_one_that_hides_activating_is_asked_while_the_task_is_pending(clock: VirtualClock) -> None:
    engine = CoyEngine()
    jobs = Account(clock, engine=engine)
    arn = await jobs.start()

    await anyio.sleep(1000)
    task = jobs.aws.world.tasks[arn]
    before = (await jobs.describe(arn))["lastStatus"]
    engine.world.container_started(task, task.containers[0].run.name)

    assert (before, engine.asked) == ("PENDING", ["start"])
    assert (await jobs.describe(arn))["lastStatus"] == "RUNNING"
