"""Cancelled at every checkpoint, with a journal: nothing of ours lives on, each page is final or tells the truth."""

from __future__ import annotations

import math
import uuid
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from fargate_runner import DockerBackend, EcsBackend, Job, Journal, MemoryJournal, Retry, Runner, Secret, SqliteJournal
from fargate_runner._journal import Page
from fargate_runner.testing.aws import FakeAws
from fargate_runner.testing.clock import VirtualClock
from tests.contract.ecs_words import Words
from tests.docker.conftest import docker
from tests.ecs import truths
from tests.ecs.conftest import NETWORK, ROLES
from tests.ecs.test_cancelled import CancelledAt
from tests.killed.test_killed_http import plays
from tests.scenario.test_cancellation import STORIES, Countdown, Steps, Story
from tests.scenario.world import World, virtually

IMAGE = "fargate-runner-test/busybox:latest"
RETRY = Retry(failures=1, wait=lambda _: 0.0)


async def open_pages(journal: Journal) -> list[Page]:
    async with journal:
        return [page async for page in journal.open_pages()]


class TestOnMemory:
    """In virtual time, for every story of the sweep without a journal."""

    @pytest.mark.parametrize("story", STORIES)
    def test_at_every_await_of_the_caller(self, story: Story) -> None:
        most, _, _ = virtually(lambda world: told(world, story, math.inf))

        for k in range(1, most + 1):
            _, world, left = virtually(lambda world, k=k: told(world, story, k))

            assert left == []
            assert world.platform._runs == {}
            assert world.unbalanced() == {}

    @pytest.mark.parametrize("story", STORIES)
    def test_around_every_call_of_the_backend_and_the_journal(self, story: Story) -> None:
        most, _, _ = virtually(lambda world: cut_at_step(world, story, math.inf))

        for k in range(1, most + 1):
            _, world, left = virtually(lambda world, k=k: cut_at_step(world, story, k))

            assert left == []
            assert world.platform._runs == {}
            assert world.unbalanced() == {}


class SteppingJournal(MemoryJournal):
    """Tells before and after each call."""

    def __init__(self, step: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.step = step

    async def read(self, key: str) -> Page | None:
        self.step()
        page = await super().read(key)
        self.step()
        return page

    async def write(self, page: Page) -> Page:
        self.step()
        written = await super().write(page)
        self.step()
        return written

    async def forget(self, key: str, *, revision: int | None = None) -> None:
        self.step()
        await super().forget(key, revision=revision)
        self.step()


async def told(world: World, story: Story, cancel_at: float) -> tuple[int, World, list[Page]]:
    steps, journal = Steps(cancel_at), MemoryJournal()
    async with world.runner(journal=journal) as runner:
        await steps.run(story, runner)
    return steps.count, world, await open_pages(journal)


async def cut_at_step(world: World, story: Story, number: float) -> tuple[int, World, list[Page]]:
    backend = world.backend()
    journal = SteppingJournal()
    with anyio.CancelScope() as scope:
        backend.at_step = journal.step = countdown = Countdown(number, scope)
        async with world.runner(backend=backend, journal=journal) as runner:
            await story(runner)
    count = countdown.count
    return count, world, await open_pages(journal)


@pytest.mark.sweep
class TestOnEcs:
    """On the fake AWS, in virtual time."""

    @pytest.fixture
    def anyio_backend(self, clock: VirtualClock) -> object:
        return "asyncio", {"loop_factory": clock.loop}

    @pytest.fixture
    def aws(self, clock: VirtualClock) -> FakeAws:
        return FakeAws(clock=clock, script=plays, clusters=("jobs",))

    @pytest.fixture
    def runner(self, aws: FakeAws, clock: VirtualClock) -> Callable[[Journal], Runner]:
        def make(journal: Journal) -> Runner:
            backend = EcsBackend(
                "jobs",
                network=NETWORK,
                roles=ROLES,
                secret_prefix="/killed",
                session=aws.session(),
                region=aws.region,
                utcnow=clock.utcnow,
            )
            return Runner(backend, journal=journal, utcnow=clock.utcnow)

        return make

    @pytest.mark.parametrize("cancel_at", range(1, 60))
    @pytest.mark.parametrize("verb", ["run", "submit"])
    async def test_at_every_await_of_the_caller(
        self, runner: Callable[[Journal], Runner], aws: FakeAws, cancel_at: int, verb: str
    ) -> None:
        journal = MemoryJournal()
        job = Words().waits().with_(key="k", secrets={"A": Secret("canary")})

        async with runner(journal) as running:
            with anyio.move_on_after(200) as scope:
                await CancelledAt(cancel_at, scope, getattr(running, verb)(job))

        assert await self.left(aws, journal) == ([], [], [])

    @pytest.mark.parametrize("cancel_at", range(1, 40))
    async def test_around_every_write_and_its_neighbours(
        self, runner: Callable[[Journal], Runner], aws: FakeAws, cancel_at: int
    ) -> None:
        journal = SteppingJournal()
        job = Words().says("exits_by_attempt", "1", "0").with_(key="k", retry=RETRY, secrets={"A": Secret("canary")})

        with anyio.CancelScope() as scope:
            journal.step = Countdown(cancel_at, scope)
            async with runner(journal) as running, anyio.create_task_group() as tasks:
                tasks.start_soon(running.run, job)
                tasks.start_soon(running.run, Words().waits().with_(key="other"))
                await anyio.sleep(200)
                tasks.cancel_scope.cancel()

        assert await self.left(aws, journal) == ([], [], [])

    async def left(self, aws: FakeAws, journal: Journal) -> tuple[list[Any], ...]:
        kept = await aws.ssm.call("GetParametersByPath", {"Path": "/killed", "Recursive": True})
        return truths.alive(aws), kept["Parameters"], await open_pages(journal)


@pytest.mark.docker
@pytest.mark.usefixtures("engine")
class TestOnDocker:
    """On a real engine, with a real file."""

    @pytest.fixture
    async def namespace(self) -> AsyncGenerator[str]:
        namespace = f"cancelled-{uuid.uuid4().hex[:12]}"
        yield namespace
        left = docker("ps", "--all", "--quiet", "--filter", f"label=fargate-runner.namespace={namespace}")
        assert left == ""

    def waiting(self, **fields: Any) -> Job:
        script = "trap 'exit 143' TERM; echo ready; sleep 60 & wait"
        return Job(image=IMAGE, command=["sh", "-c", script], key="k", **fields)

    @pytest.mark.parametrize("cancel_at", range(1, 10))
    @pytest.mark.parametrize("verb", ["run", "submit"])
    async def test_at_every_await_of_the_caller(
        self, tmp_path: Path, namespace: str, cancel_at: int, verb: str
    ) -> None:
        journal = SqliteJournal(tmp_path / "jobs.sqlite")

        async with Runner(DockerBackend(), namespace=namespace, journal=journal) as runner:
            with anyio.move_on_after(1) as scope:
                await CancelledAt(cancel_at, scope, getattr(runner, verb)(self.waiting()))

        assert await open_pages(journal) == []

    @pytest.mark.parametrize("cancel_at", range(1, 15))
    async def test_around_every_write(self, tmp_path: Path, namespace: str, cancel_at: int) -> None:
        journal = SteppingJournal()
        job = Job(image=IMAGE, command=["sh", "-c", 'test "$FARGATE_RUNNER_ATTEMPT" = 2'], key="k", retry=RETRY)

        with anyio.CancelScope() as scope:
            journal.step = Countdown(cancel_at, scope)
            async with Runner(DockerBackend(), namespace=namespace, journal=journal) as runner:
                await runner.run(job)

        assert await open_pages(journal) == []
