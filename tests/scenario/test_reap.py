"""What is left behind by runners that are gone: stopped once it is overdue, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import anyio
import attrs
import pytest

from fargate_runner import BackendError, Job, JournalError, Kind, MemoryJournal, Reaped, Runner, RunnerClosed
from fargate_runner.telemetry import StopRequested
from tests.scenario.faults import Fault
from tests.scenario.world import World, job, played, seconds, within

HOUR = timedelta(hours=1)
SHORT = job("endless", timeout=HOUR)
STUCK = job("slow_to_start", start_timeout=timedelta(minutes=10))
TIMELESS = job("endless")


async def left(world: World, *jobs: Job, **options: Any) -> None:
    """Leave jobs behind, named by their place in the list."""
    async with world.runner(on_exit="detach", **options) as runner:
        for number, one in enumerate(jobs):
            await runner.submit(one.with_(key=f"k{number}"))


async def reaped(world: World, **options: Any) -> list[Reaped]:
    async with world.runner() as runner:
        return await within(60, lambda: runner.reap(**options))


async def test_what_ran_for_longer_than_it_may_is_stopped_and_the_rest_is_not(world: World) -> None:
    await left(world, SHORT, SHORT.with_(timeout=2 * HOUR), TIMELESS)
    await anyio.sleep(5000)

    (one,) = await reaped(world)

    assert (one.key, one.attempt, one.stopped) == ("k0", 1, True)
    # Since 4,990 s; it may for an hour, its stop_timeout of half a minute and five minutes of grace.
    assert one.overdue == seconds(4990 - 3600 - 30 - 300)
    assert one.reason == "it has run for 4,990 s, longer than its timeout of 3,600 s, and nobody looks after it"
    assert world.platform.live() == 2


async def test_what_never_got_to_run_is_stopped(world: World) -> None:
    await left(world, STUCK, STUCK.with_(start_timeout=HOUR))
    await anyio.sleep(1000)

    (one,) = await reaped(world)

    assert (one.key, one.overdue) == ("k0", seconds(100))
    assert world.platform.live() == 1


async def test_to_the_second(world: World) -> None:
    await left(world, SHORT)
    await anyio.sleep(10 + 3600 + 30 + 300)

    assert await reaped(world) == []
    await anyio.sleep(1)
    assert len(await reaped(world)) == 1


async def test_the_next_one_finds_nothing_left_to_do(world: World) -> None:
    await left(world, SHORT, STUCK)
    await anyio.sleep(9000)

    assert [one.key for one in await reaped(world)] == ["k0", "k1"]
    assert await reaped(world) == []


async def test_a_dry_run_says_the_same_and_stops_nothing(world: World) -> None:
    await left(world, SHORT, STUCK, TIMELESS)
    await anyio.sleep(9000)

    dry = await reaped(world, dry_run=True)

    assert world.platform.live() == 3
    assert [attrs.evolve(one, stopped=True) for one in dry] == await reaped(world)


async def test_a_job_without_a_timeout_is_stopped_when_the_caller_gives_it_an_age(world: World) -> None:
    await left(world, TIMELESS, SHORT.with_(timeout=24 * HOUR))
    await anyio.sleep(9000)

    assert [one.key for one in await reaped(world, max_age=2 * HOUR)] == ["k0"]
    assert world.platform.live() == 1


async def test_what_this_very_runner_supervises_is_its_own_business(world: World) -> None:
    await left(world, TIMELESS, TIMELESS)
    async with world.runner() as runner:
        await runner.submit(TIMELESS.with_(key="k0"))
        await runner.submit(TIMELESS.with_(key="mine"))
        await anyio.sleep(9000)

        found = await runner.reap(max_age=HOUR)

        assert [one.key for one in found] == ["k1"]
        assert world.platform.live() == 2


async def test_a_job_that_is_taken_up_while_the_reaper_looks_is_left_alone(world: World) -> None:
    await left(world, TIMELESS)
    await anyio.sleep(9000)
    slow = Fault("is_slow", "observe", first=1, last=1)

    async with world.runner(slow) as runner, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: runner.reap(max_age=HOUR))
        await anyio.wait_all_tasks_blocked()
        await runner.attach("k0")
        await anyio.sleep(900)

        assert world.platform.live() == 1
        tasks.cancel_scope.cancel()


async def test_another_namespace_is_not_ours(world: World) -> None:
    await left(world, SHORT, namespace="default-2")
    await left(world, SHORT, namespace="theirs")
    await anyio.sleep(9000)

    assert await reaped(world) == []
    assert world.platform.live() == 2


async def test_observers_are_told_of_each_stop(world: World) -> None:
    await left(world, SHORT, STUCK.with_(name="stuck"))
    await anyio.sleep(9000)

    await reaped(world)

    told = [(event.key, event.job, event.kind) for event in world.told(StopRequested)]
    assert sorted(told) == [("k0", "job", Kind.TIMED_OUT), ("k1", "stuck", Kind.NEVER_STARTED)]


class TestWithAJournal:
    async def test_what_lives_after_its_job_is_over_is_an_orphan(self, world: World, journal: MemoryJournal) -> None:
        await self.lost_and_over(world, journal)
        await anyio.sleep(301)

        async with world.runner(journal=journal) as runner:
            (one,) = await runner.reap()

        assert one.reason == "its job is over (unknown), and this attempt lives"
        assert world.platform.live() == 0

    async def test_not_before_the_grace(self, world: World, journal: MemoryJournal) -> None:
        await self.lost_and_over(world, journal)

        async with world.runner(journal=journal) as runner:
            assert await runner.reap(grace=24 * HOUR) == []

    async def test_without_the_journal_nobody_knows(self, world: World, journal: MemoryJournal) -> None:
        await self.lost_and_over(world, journal)
        await anyio.sleep(301)

        assert await reaped(world) == []

    async def test_a_job_that_is_not_over_is_judged_by_its_deadline(self, world: World, journal: MemoryJournal) -> None:
        await left(world, SHORT, TIMELESS, journal=journal)
        await anyio.sleep(9000)

        async with world.runner(journal=journal) as runner:
            assert [one.key for one in await runner.reap()] == ["k0"]

    async def test_a_page_of_another_place_says_nothing(self, world: World, journal: MemoryJournal) -> None:
        await self.lost_and_over(world, journal)
        page = await journal.read("k")
        assert page is not None
        await journal.write(attrs.evolve(page, place="elsewhere"))
        await anyio.sleep(301)

        async with world.runner(journal=journal) as runner:
            assert await runner.reap() == []

    @staticmethod
    async def lost_and_over(world: World, journal: MemoryJournal) -> None:
        """Leave an attempt whose platform fell silent, so that its job was written down as of unknown end."""
        silent = Fault("refuses", "observe"), Fault("refuses", "stop")
        async with world.runner(*silent, journal=journal) as runner:
            handle = await runner.submit(TIMELESS.with_(key="k"))
            assert (await handle.wait()).outcome.kind is Kind.UNKNOWN
        assert world.platform.live() == 1

    @pytest.fixture
    async def journal(self) -> Any:
        async with MemoryJournal() as journal:
            yield journal


class TestTrouble:
    async def test_a_platform_that_cannot_be_asked_is_an_error(self, world: World) -> None:
        async with world.runner(Fault("refuses", "living")) as runner:
            with pytest.raises(BackendError):
                await runner.reap()

    @pytest.mark.parametrize(("operation", "how"), [("observe", "refuses"), ("stop", "refuses"), ("observe", "hangs")])
    async def test_one_that_cannot_be_asked_does_not_save_the_others(
        self, world: World, operation: str, how: Any
    ) -> None:
        await left(world, SHORT, SHORT, SHORT)
        await anyio.sleep(9000)

        async with world.runner(Fault(how, operation, last=1 if operation == "stop" else 2)) as runner:
            with pytest.raises(BackendError):
                await runner.reap()

        assert len(await reaped(world)) in {1, 2}
        assert world.platform.live() == 0

    async def test_a_journal_that_cannot_be_read_is_an_error(self, world: World) -> None:
        await left(world, SHORT)
        await anyio.sleep(9000)

        async with MemoryJournal() as journal, world.runner(journal=journal) as runner:
            journal.read = unreadable  # type: ignore[method-assign,assignment]
            with pytest.raises(JournalError, match="unreadable"):
                await runner.reap()

    async def test_a_closed_runner_reaps_nothing(self, world: World) -> None:
        with pytest.raises(RunnerClosed):
            await world.runner().reap()

    @pytest.mark.parametrize("options", [{"grace": 300}, {"max_age": 1}], ids=str)
    async def test_what_is_no_duration_is_refused(self, world: World, options: dict[str, Any]) -> None:
        async with world.runner() as runner:
            with pytest.raises(TypeError, match="expected a timedelta"):
                await runner.reap(**options)


async def unreadable(key: str) -> None:
    raise JournalError("unreadable", journal="test")


@pytest.mark.parametrize("skew", [timedelta(), 24 * HOUR, -24 * HOUR], ids=str)
async def test_a_wrong_clock_here_changes_nothing(world: World, skew: timedelta) -> None:
    await left(world, SHORT, STUCK, TIMELESS, SHORT.with_(timeout=2 * HOUR))
    await anyio.sleep(5000)

    async with Runner(world.backend(script=played), utcnow=skewed(world, skew)) as runner:
        found = [(one.key, one.overdue) for one in await runner.reap()]

    assert found == [("k0", seconds(1060)), ("k1", seconds(4100))]


def skewed(world: World, skew: timedelta) -> Callable[[], datetime]:
    return lambda: world.clock.utcnow() + skew
