"""One journal and several event loops, one after another or side by side; keys that expire, deadlines to the second."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from fargate_runner import EcsBackend, Job, JobResult, Kind, MemoryJournal, Retry, Runner, SqliteJournal
from fargate_runner.testing.aws import FakeAws, Ingestion, Pace, Quotas
from fargate_runner.testing.clock import VirtualClock
from tests.contract.ecs_words import Words
from tests.ecs import truths
from tests.ecs.conftest import NETWORK, ROLES
from tests.ecs.test_api_fake import RotatingSession
from tests.killed.batch import Plan, backend_of
from tests.killed.test_killed_http import plays
from tests.scenario.world import World, job, seconds, virtually

# ---- loops ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def aws() -> FakeAws:
    return FakeAws(
        script=plays,
        clusters=("jobs",),
        quotas=Quotas.unlimited(),
        pace=Pace.instant(),
        visible_after=(0.0, 0.0),
        ingestion=Ingestion(least=0.0, most=0.05),
    )


@pytest.fixture
async def plan(aws: FakeAws, tmp_path: Path) -> AsyncGenerator[Plan]:
    async with aws.serve(moto=False) as url:
        yield Plan(place="ecs", directory=tmp_path, namespace="loops", batch="batch", url=url)


@pytest.mark.parametrize("journal_of", [SqliteJournal, None], ids=["a new journal each time", "one journal object"])
@pytest.mark.parametrize("backend_of_all", [False, True], ids=["a new backend each time", "one backend object"])
async def test_three_loops_of_one_process_go_on_with_one_file(
    aws: FakeAws, plan: Plan, journal_of: Any, backend_of_all: bool
) -> None:
    path = plan.directory / "jobs.sqlite"
    shared, backend = SqliteJournal(path), backend_of(plan)

    async def life(number: int) -> list[JobResult]:
        journal = shared if journal_of is None else journal_of(path)
        place = backend if backend_of_all else backend_of(plan)
        async with Runner(place, namespace="loops", journal=journal, on_exit="detach") as runner:
            results = [await runner.run(Words().exits(0).with_(key=f"k{n}")) for n in range(number + 1)]
            await runner.submit(Words().waits().with_(key="long"))
            if number == 2:
                handle = await runner.attach("long")
                results.append(await handle.stop())
            return results

    lives = [await anyio.to_thread.run_sync(asyncio.run, life(number)) for number in range(3)]

    assert lives[0] == lives[1][:1] == lives[2][:1]
    assert lives[1] == lives[2][:2]
    assert lives[2][-1].outcome.kind is Kind.CANCELLED
    assert len(aws.world.truth()) == 4
    assert truths.alive(aws) == []


async def test_threads_with_loops_of_their_own_share_one_file(aws: FakeAws, plan: Plan) -> None:
    results: dict[str, list[JobResult]] = {}
    lock = threading.Lock()

    async def life(thread: int) -> None:
        journal = SqliteJournal(plan.directory / "jobs.sqlite")
        jobs = [Words().exits(0).with_(key=f"own-{thread}"), *(Words().exits(0).with_(key=f"k{n}") for n in range(8))]
        async with Runner(backend_of(plan), namespace="loops", journal=journal) as runner:
            async for result in runner.map(jobs):
                with lock:
                    results.setdefault(result.key, []).append(result)

    async with anyio.create_task_group() as tasks:
        for thread in range(4):
            tasks.start_soon(anyio.to_thread.run_sync, asyncio.run, life(thread))

    assert sorted(results) == [*(f"k{n}" for n in range(8)), *(f"own-{n}" for n in range(4))]
    assert {key for key, told in results.items() if any(result != told[0] for result in told)} == set()
    assert [len(results[f"k{n}"]) for n in range(8)] == [4] * 8
    assert len(aws.world.truth()) == 12


async def test_a_handles_text_is_attached_by_another_loop(plan: Plan) -> None:
    path = plan.directory / "jobs.sqlite"

    async def submits() -> str:
        journal = SqliteJournal(path)
        async with Runner(backend_of(plan), namespace="loops", journal=journal, on_exit="detach") as runner:
            return (await runner.submit(Words().exits(7).with_(key="a b:c"))).text

    async def attaches(text: str, *, journal: SqliteJournal | None) -> JobResult:
        async with Runner(backend_of(plan), namespace="loops", journal=journal) as runner:
            return await (await runner.attach(text)).wait()

    text = await anyio.to_thread.run_sync(asyncio.run, submits())
    without = await anyio.to_thread.run_sync(asyncio.run, attaches(text, journal=None))
    with_it = await anyio.to_thread.run_sync(asyncio.run, attaches(text, journal=SqliteJournal(path)))

    assert (without.key, without.exit_code) == ("a b:c", 7)
    assert (with_it.key, with_it.exit_code) == ("a b:c", 7)


# ---- keys that expire ----------------------------------------------------------------------------------------------


class TestKeysThatExpire:
    """While a job is waited for, with a journal, in virtual time."""

    @pytest.fixture
    def anyio_backend(self, clock: VirtualClock) -> object:
        return "asyncio", {"loop_factory": clock.loop}

    @pytest.fixture
    def aws(self, clock: VirtualClock) -> FakeAws:
        return FakeAws(clock=clock, script=plays, clusters=("jobs",))

    @pytest.fixture
    def session(self, aws: FakeAws) -> RotatingSession:
        return RotatingSession(aws, "AKIA0")

    @pytest.fixture
    def runner_of(self, aws: FakeAws, clock: VirtualClock, session: RotatingSession) -> Callable[..., Runner]:
        def make(**options: Any) -> Runner:
            backend = EcsBackend(
                "jobs", network=NETWORK, roles=ROLES, session=session, region=aws.region, utcnow=clock.utcnow
            )
            return Runner(backend, utcnow=clock.utcnow, **options)

        return make

    async def test_every_minute_cost_no_job_anything(
        self, aws: FakeAws, session: RotatingSession, runner_of: Callable[..., Runner]
    ) -> None:
        async def rotate() -> None:
            for number in range(100):
                session.key = f"AKIA{number}"
                aws.credentials.issue(session.key, lives=60)
                await anyio.sleep(65)

        journal = MemoryJournal()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rotate)
            async with runner_of(journal=journal) as runner:
                waiting = Words().waits().with_(key="long", timeout=timedelta(hours=1))
                retried = (
                    Words()
                    .says("exits_by_attempt", "1", "1", "0")
                    .with_(key="retried", retry=Retry(failures=2, wait=lambda _: 600.0))
                )
                handles = [await runner.submit(waiting), await runner.submit(retried)]
                results = [await handle.wait() for handle in handles]
            tasks.cancel_scope.cancel()

        assert [result.outcome.kind for result in results] == [Kind.TIMED_OUT, Kind.SUCCEEDED]
        assert [len(result.attempts) for result in results] == [1, 3]
        assert [journal._pages[result.key].result for result in results] == results
        assert len(aws.world.truth()) == 4

    async def test_and_that_nobody_renews_leave_the_page_open_for_the_next_runner(
        self, aws: FakeAws, session: RotatingSession, runner_of: Callable[..., Runner]
    ) -> None:
        journal = MemoryJournal()
        aws.credentials.issue("AKIA0", lives=60)
        with anyio.move_on_after(300):
            async with runner_of(journal=journal, on_exit="detach") as runner:
                await (await runner.submit(Words().waits().with_(key="k", timeout=timedelta(minutes=30)))).wait()
        session.key = "AKIA1"

        async with runner_of(journal=journal) as runner:
            (handle,) = await runner.recover()
            result = await handle.wait()

        assert result.outcome.kind is Kind.TIMED_OUT
        assert len(aws.world.truth()) == 1


# ---- deadlines -----------------------------------------------------------------------------------------------------


class TestDeadlines:
    """To the second, whenever the runner died."""

    @pytest.mark.parametrize("dies_at", [1, 15, 300, 599, 609])
    @pytest.mark.parametrize("gap", [0, 100])
    def test_of_a_run_hold_across_a_death(self, dies_at: int, gap: int) -> None:
        one = job("endless", key="k", timeout=seconds(600))

        result, _ = virtually(lambda world: across_a_death(world, one, dies_at, gap))

        # It runs from 10 s on; a runner that comes later than the deadline stops it at once.
        assert result.outcome.kind is Kind.TIMED_OUT
        assert result.attempts[0].run_time == seconds(max(600, dies_at + gap - 10))

    @pytest.mark.parametrize("dies_at", [1, 100, 599])
    @pytest.mark.parametrize("gap", [0, 100])
    def test_of_a_start_hold_across_a_death(self, dies_at: int, gap: int) -> None:
        one = job("slow_to_start", key="k", start_timeout=seconds(600), retry=Retry(never_started=0))

        result, ended_at = virtually(lambda world: across_a_death(world, one, dies_at, gap))

        assert result.outcome.kind is Kind.NEVER_STARTED
        assert ended_at == max(600, dies_at + gap)

    def test_of_the_caller_hold_with_a_journal(self) -> None:
        async def main(world: World) -> float:
            journal = MemoryJournal()
            async with world.runner(journal=journal) as runner:
                with anyio.move_on_after(50):
                    await runner.run(job("endless", key="k"))
            assert journal._pages["k"].result is not None
            return world.now

        assert virtually(main) == 50

    def test_a_thousand_jobs_are_let_go_of_at_once(self) -> None:
        async def main(world: World) -> float:
            journal = MemoryJournal()
            async with world.runner(journal=journal, on_exit="detach") as runner:
                for n in range(1000):
                    await runner.submit(job("endless", key=f"k{n}"))
                await anyio.sleep(100)
                left_at = world.now
            assert all(page.ref is not None for page in journal._pages.values())
            return world.now - left_at

        assert virtually(main) == 0


async def across_a_death(world: World, one: Job, dies_at: float, gap: float) -> tuple[JobResult, float]:
    journal = MemoryJournal()
    with anyio.move_on_after(dies_at):
        # All that is left of a runner that lets go is what the journal says.
        async with world.runner(journal=journal, on_exit="detach") as runner:
            await (await runner.submit(one)).wait()
    await anyio.sleep(gap)
    async with world.runner(journal=journal) as runner:
        result = await (await runner.submit(one)).wait()
    assert world.platform.live() == 0
    return result, world.now
