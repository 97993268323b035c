"""With a journal, a job survives the death of its runner at any step, and ends once."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import anyio
import attrs
import pytest

from fargate_runner import (
    Backend,
    InvalidJob,
    Job,
    JobFailed,
    JobNotFound,
    JobResult,
    JournalError,
    KeyConflict,
    Kind,
    LogsUnavailable,
    MemoryBackend,
    MemoryJournal,
    Retry,
    Runner,
    Secret,
    TaskRef,
)
from fargate_runner._journal import Page
from fargate_runner.telemetry import AttemptLaunched, JobEnded
from tests.scenario.faults import Fault, How, once
from tests.scenario.killed import Killed, Plug, PluggedJournal
from tests.scenario.world import World, fixed, job, played, seconds, virtually

RETRY = Retry(failures=2, wait=fixed(5))


async def until_it_dies(world: World, journal: MemoryJournal, jobs: list[Job], plug: Plug) -> list[JobResult]:
    """Live a runner's life, to its end or to the step at which it is killed."""
    results: list[JobResult] = []
    faults = [once("has_no_room", 1, "submit")]
    backend = world.backend(*faults)
    backend.at_step = plug.step

    async def see(runner: Runner, one: Job) -> None:
        results.append(await (await runner.submit(one)).wait())

    try:
        async with (
            world.runner(backend=backend, journal=PluggedJournal(journal, plug)) as runner,
            anyio.create_task_group() as tasks,
        ):
            for one in jobs:
                tasks.start_soon(see, runner, one)
    except (Killed, BaseExceptionGroup) as exc:
        if not _is_death(exc):
            raise
        return []
    return results


def _is_death(exc: BaseException) -> bool:
    if isinstance(exc, BaseExceptionGroup):
        return all(map(_is_death, exc.exceptions))
    return isinstance(exc, Killed)


JOBS = {
    "quick": ([job("quick", key="quick")], {"quick": (Kind.SUCCEEDED, 1)}),
    "retried": ([job("failing", "quick", key="retried", retry=RETRY)], {"retried": (Kind.SUCCEEDED, 2)}),
    "timed out": ([job("endless", key="endless", timeout=seconds(90))], {"endless": (Kind.TIMED_OUT, 1)}),
    "failed": ([job("soon_failing", key="failed")], {"failed": (Kind.FAILED, 1)}),
    "two": (
        [job("quick", key="a"), job("failing", "quick", key="b", retry=RETRY)],
        {"a": (Kind.SUCCEEDED, 1), "b": (Kind.SUCCEEDED, 2)},
    ),
}


def steps_of(jobs: list[Job]) -> int:
    async def main(world: World) -> int:
        plug = Plug()
        await until_it_dies(world, MemoryJournal(), jobs, plug)
        return plug.steps

    return virtually(main)


def started_twice(world: World) -> list[tuple[str, int]]:
    """The attempts that the platform started more than once."""
    times = Counter((identity.key, identity.attempt) for identity in world.started)
    return [whose for whose, count in times.items() if count > 1]


CASES = [
    pytest.param(name, at, gap, id=f"{name}-{at}-{gap}")
    for name, (jobs, _) in JOBS.items()
    for at in range(1, steps_of(jobs) + 1)
    for gap in (0.0, 30.0, 3000.0)
]


@pytest.mark.parametrize(("name", "at", "gap"), CASES)
def test_killed_at_any_step_each_job_ends_once(name: str, at: int, gap: float) -> None:
    jobs, expected = JOBS[name]

    async def main(world: World) -> tuple[list[JobResult], World]:
        journal = MemoryJournal()
        results = await until_it_dies(world, journal, jobs, Plug(at))
        assert results == []
        await anyio.sleep(gap)
        return await until_it_dies(world, journal, jobs, Plug()), world

    results, world = virtually(main)

    assert {result.key: (result.outcome.kind, len(result.attempts)) for result in results} == expected
    assert started_twice(world) == []


@pytest.mark.parametrize("at", range(1, steps_of(JOBS["two"][0]) + 1))
def test_recovered_without_the_jobs_each_one_that_was_written_down_ends_once(at: int) -> None:
    jobs, expected = JOBS["two"]

    async def main(world: World) -> tuple[dict[str, JobResult], set[str], World]:
        journal = MemoryJournal()
        await until_it_dies(world, journal, jobs, Plug(at))
        written = set(journal._pages)
        async with world.runner(journal=journal) as runner:
            for handle in await runner.recover():
                await handle.wait()
            assert await runner.recover() == []
            return {key: await (await runner.attach(key)).wait() for key in written}, written, world

    results, written, world = virtually(main)

    assert {key: (result.outcome.kind, len(result.attempts)) for key, result in results.items()} == {
        key: expected[key] for key in written
    }
    assert started_twice(world) == []


class TestAFinalRecord:
    async def test_is_never_written_twice_nor_the_job_run_again(self, world: World) -> None:
        journal = MemoryJournal()
        async with world.runner(journal=journal) as runner:
            first = await runner.run(job("quick", key="k"))
        backend = world.backend()
        async with world.runner(journal=journal, backend=backend) as runner:
            second = await runner.run(job("quick", key="k"))

        assert second == first
        assert backend.calls == []

    async def test_of_a_failure_is_raised_again(self, world: World) -> None:
        journal = MemoryJournal()
        for _ in range(2):
            async with world.runner(journal=journal) as runner:
                with pytest.raises(JobFailed):
                    await runner.run(job("failing", key="k"))

        assert len(world.told(AttemptLaunched)) == 1

    async def test_is_met_by_key_and_by_text(self, world: World) -> None:
        journal = MemoryJournal()
        async with world.runner(journal=journal) as runner:
            handle = await runner.submit(job("quick", key="k"))
            text = handle.text
            result = await handle.wait()
        await anyio.sleep(100_000)

        async with world.runner(journal=journal) as runner:
            assert await (await runner.attach("k")).wait() == result
        async with world.runner(journal=journal) as runner:
            assert await (await runner.attach(text)).wait() == result

    async def test_leads_to_the_lines_as_long_as_the_platform_keeps_them(self, world: World) -> None:
        class Keeping(MemoryBackend):
            async def forget(self, ref: TaskRef) -> None:
                pass  # as ECS does: CloudWatch keeps the lines

        journal = MemoryJournal()
        read: list[list[str]] = []
        one = job("talking", key="k")
        for _ in range(2):
            backend = Keeping(played, platform=world.platform, utcnow=world.clock.utcnow)
            async with world.runner(journal=journal, backend=backend) as runner:
                handle = await runner.submit(one)
                read.append([str(line) async for line in handle.logs()])

        assert read == [["one", "two", "three"]] * 2

    async def test_does_not_say_that_there_were_no_lines_where_they_are_gone(self, world: World) -> None:
        journal = MemoryJournal()
        async with world.runner(journal=journal) as runner:
            await runner.run(job("talking", key="k"))

        async with world.runner(journal=journal) as runner:
            handle = await runner.submit(job("talking", key="k"))
            with pytest.raises(LogsUnavailable):
                [line async for line in handle.logs()]

    async def test_of_another_job_is_a_conflict(self, world: World) -> None:
        journal = MemoryJournal()
        async with world.runner(journal=journal) as runner:
            await runner.run(job("quick", key="k"))
        async with world.runner(journal=journal) as runner:
            with pytest.raises(KeyConflict) as conflict:
                await runner.run(job("failing", key="k"))

        assert conflict.value.difference == ("command",)

    async def test_that_was_forgotten_frees_the_key(self, world: World) -> None:
        journal = MemoryJournal()
        async with world.runner(journal=journal) as runner:
            await runner.run(job("quick", key="k"))
        await journal.forget("k")
        async with world.runner(journal=journal) as runner:
            await runner.run(job("quick", key="k"))

        assert len(world.told(AttemptLaunched)) == 2

    async def test_is_there_before_the_platform_forgets(self, world: World) -> None:
        class Watched(MemoryJournal):
            async def write(self, page: Page) -> Page:
                if page.ended_at is not None:
                    there.append([ref.address for ref in await backend.find("default", page.key)])
                return await super().write(page)

        there: list[list[str]] = []
        backend = world.backend()
        async with world.runner(journal=Watched(), backend=backend) as runner:
            result = await runner.run(job("quick", key="k"))

        assert there == [[result.attempts[0].address]]


async def died(
    world: World,
    journal: MemoryJournal,
    one: Job,
    *faults: Fault,
    calls: str,
    starts_later: bool = False,
    **options: Any,
) -> None:
    """Let a runner die at the n-th call of an operation, as in ``submit:1``."""
    operation, _, number = calls.partition(":")
    backend = world.backend(*faults)
    backend.starts_later = starts_later

    def step() -> None:
        if backend.called(operation) >= int(number):
            raise Killed

    backend.at_step = step
    try:
        async with world.runner(backend=backend, journal=journal, **options) as runner:
            await (await runner.submit(one)).wait()
    except (Killed, BaseExceptionGroup) as exc:
        if not _is_death(exc):
            raise


async def lost(world: World, key: str) -> None:
    """Let the platform lose every memory of a job."""
    for token, run in tuple(world.platform._runs.items()):
        if run.launch.identity.key == key:
            del world.platform._runs[token]


class TestALaunchWithoutAnAnswer:
    """The runner died between the call and its answer."""

    async def test_is_sent_again_as_it_was(self, world: World) -> None:
        journal = MemoryJournal()
        await died(world, journal, job("quick", key="k"), calls="submit:1")
        launch = journal._pages["k"].launch

        async with world.runner(journal=journal) as runner:
            result = await runner.run(job("quick", key="k"))

        assert launch is not None
        assert result.attempts[0].token == launch.token
        assert len(world.started) == 1

    @pytest.mark.parametrize("minutes", [56, 120, 60 * 30])
    async def test_is_not_sent_again_after_55_minutes(self, world: World, minutes: int) -> None:
        journal = MemoryJournal()
        await died(world, journal, job("quick", key="k"), calls="submit:1")
        await lost(world, "k")
        await anyio.sleep(minutes * 60)

        backend = world.backend()
        async with world.runner(journal=journal, backend=backend) as runner:
            with pytest.raises(JobFailed) as failed:
                await runner.run(job("quick", key="k"))

        assert failed.value.result.outcome.kind is Kind.UNKNOWN
        assert backend.called("submit") == 0

    async def test_is_found_by_its_token_however_late(self, world: World) -> None:
        journal = MemoryJournal()
        await died(world, journal, job("quick", key="k"), calls="observe:1")
        page = journal._pages["k"]
        journal._pages["k"] = attrs.evolve(page, ref=None)  # as if the answer had not been written
        await anyio.sleep(7200)

        async with world.runner(journal=journal) as runner:
            result = await runner.run(job("quick", key="k"))

        assert result.succeeded
        assert len(result.attempts) == 1

    async def test_with_a_clock_that_went_back_is_not_sent_again(self, world: World) -> None:
        journal = MemoryJournal()
        await died(world, journal, job("quick", key="k"), calls="submit:1")
        page = journal._pages["k"]
        assert page.launched_at is not None
        journal._pages["k"] = attrs.evolve(page, launched_at=page.launched_at + timedelta(hours=24))
        await lost(world, "k")

        backend = world.backend()
        async with world.runner(journal=journal, backend=backend) as runner:
            with pytest.raises(JobFailed, match="unknown way"):
                await runner.run(job("quick", key="k"))

        assert backend.called("submit") == 0

    async def test_that_is_refused_goes_on_with_the_next_placement(self, world: World) -> None:
        journal = MemoryJournal()
        no_room = [once("has_no_room", 1, "submit"), once("has_no_room", 2, "submit")]
        await died(world, journal, job("quick", key="k"), *no_room, calls="submit:3")

        async with world.runner(no_room[0], journal=journal) as runner:
            result = await runner.run(job("quick", key="k"))

        assert result.succeeded
        assert [identity.placement for identity in world.started] == [4]

    async def test_can_be_run_again_by_choice(self, world: World) -> None:
        journal = MemoryJournal()
        await died(world, journal, job("quick", key="k"), calls="submit:1")
        await lost(world, "k")
        await anyio.sleep(7200)

        async with world.runner(journal=journal, on_unknown="rerun") as runner:
            result = await runner.run(job("quick", key="k"))

        assert [attempt.outcome.kind for attempt in result.attempts] == [Kind.UNKNOWN, Kind.SUCCEEDED]

    async def test_brings_its_secrets_when_it_is_submitted_again(self, world: World) -> None:
        journal = MemoryJournal()
        one = job("quick", key="k", secrets={"A": Secret("canary")})
        await died(world, journal, one, calls="submit:1")

        assert "canary" not in journal._pages["k"].to_json()
        async with world.runner(journal=journal) as runner:
            assert (await runner.run(one)).succeeded

    async def test_without_its_secrets_waits_for_whoever_has_them(self, world: World) -> None:
        journal = MemoryJournal()
        one = job("failing", "quick", key="k", secrets={"A": Secret("canary")}, retry=RETRY)
        await died(world, journal, one, calls="observe:1")

        async with world.runner(journal=journal) as runner:
            (handle,) = await runner.recover()
            with pytest.raises(InvalidJob, match="submit the same job again"):
                await handle.wait()
        async with world.runner(journal=journal) as runner:
            result = await runner.run(one)

        assert len(result.attempts) == 2
        assert result.succeeded


class TestAnAttemptThatNobodyWatched:
    async def test_and_that_vanished_is_unknown_and_not_run_again(self, world: World) -> None:
        journal = MemoryJournal()
        await died(world, journal, job("quick", key="k"), calls="observe:1")
        await lost(world, "k")

        backend = world.backend()
        async with world.runner(journal=journal, backend=backend) as runner:
            with pytest.raises(JobFailed) as failed:
                await runner.run(job("quick", key="k"))

        assert failed.value.result.outcome.kind is Kind.UNKNOWN
        assert backend.called("submit") == 0

    async def test_that_was_asked_to_stop_counts_as_what_it_was_asked_for(self, world: World) -> None:
        journal = MemoryJournal()
        one = job("stubborn", key="k", timeout=seconds(60), stop_timeout=seconds(30))
        await died(world, journal, one, calls="stop:1")

        async with world.runner(journal=journal) as runner:
            with pytest.raises(JobFailed) as failed:
                await runner.run(one)

        assert failed.value.result.outcome.kind is Kind.TIMED_OUT

    async def test_times_out_when_it_is_due_not_later(self, world: World) -> None:
        journal = MemoryJournal()
        one = job("endless", key="k", timeout=seconds(600))
        await died(world, journal, one, calls="observe:2")
        await anyio.sleep(500)

        async with world.runner(journal=journal) as runner:
            with pytest.raises(JobFailed) as failed:
                await runner.run(one)

        assert failed.value.result.outcome.kind is Kind.TIMED_OUT
        assert failed.value.result.attempts[0].run_time == seconds(600)


class TestTwoRunnersOfOneJournal:
    @pytest.mark.parametrize("later", [0.0, 5.0, 30.0, 75.0])
    async def test_see_one_job_through_together(self, world: World, later: float) -> None:
        journal = MemoryJournal()
        results: list[JobResult] = []
        one = job("failing", "failing", "quick", key="k", retry=RETRY)

        async def live(after: float) -> None:
            await anyio.sleep(after)
            async with world.runner(journal=journal) as runner:
                results.append(await runner.run(one))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(live, 0.0)
            tasks.start_soon(live, later)

        assert results[0] == results[1]
        assert [attempt.outcome.kind for attempt in results[0].attempts] == [Kind.FAILED, Kind.FAILED, Kind.SUCCEEDED]
        assert world.unbalanced() == {} or len(world.told(JobEnded)) == 2

    async def test_a_job_that_one_stops_ends_for_both(self, world: World) -> None:
        journal = MemoryJournal()
        results: list[JobResult] = []

        async def wait() -> None:
            async with world.runner(journal=journal) as runner:
                results.append(await (await runner.submit(job("endless", key="k"))).wait())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.sleep(50)
            async with world.runner(journal=journal) as runner:
                handle = await runner.attach("k")
                results.append(await handle.stop("enough"))

        assert results[0] == results[1]
        assert results[0].outcome.kind is Kind.CANCELLED
        assert results[0].outcome.detail == "enough"

    async def test_what_one_launched_too_late_is_stopped(self, world: World) -> None:
        """One is told that there is no room and goes on to another placement; the other's launch was under way."""
        journal = MemoryJournal()
        results: list[JobResult] = []

        async def live(after: float, how: How) -> None:
            await anyio.sleep(after)
            async with world.runner(once(how, 1, "submit"), journal=journal) as runner:
                results.append(await runner.run(job("quick", key="k")))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(live, 0.0, "has_no_room")
            tasks.start_soon(live, 0.5, "is_slow")

        assert results[0] == results[1]
        assert [identity.placement for identity in world.started] == [2, 1]
        assert [run.was_stopped for run in world.platform._runs.values()] == [True]  # the other was seen to its end


class BrokenJournal(MemoryJournal):
    """Refuses some of its writes."""

    def __init__(self, *refused: int, retryable: bool = False) -> None:
        super().__init__()
        self.refused = refused
        self.retryable = retryable
        self.writes = 0

    async def write(self, page: Page) -> Page:
        self.writes += 1
        if self.writes in self.refused:
            raise JournalError("the disk is full", journal="broken", retryable=self.retryable)
        return await super().write(page)


class TestAJournalThatCannotBeWritten:
    async def test_before_a_launch_means_no_launch(self, world: World) -> None:
        backend = world.backend()
        async with world.runner(journal=BrokenJournal(1), backend=backend) as runner:
            with pytest.raises(JournalError, match="disk is full"):
                await runner.run(job("quick", key="k"))

        assert backend.called("submit") == 0

    async def test_after_a_launch_costs_nothing(self, world: World) -> None:
        journal = BrokenJournal(2)
        async with world.runner(journal=journal) as runner:
            result = await runner.run(job("quick", key="k"))

        assert result.succeeded
        assert journal._pages["k"].result == result

    async def test_at_the_end_is_an_error_that_says_how_it_ended_and_nothing_is_forgotten(self, world: World) -> None:
        journal = BrokenJournal(3)
        async with world.runner(journal=journal) as runner:
            with pytest.raises(JournalError, match="succeeded: exit code 0"):
                await runner.run(job("quick", key="k"))
        async with world.runner(journal=journal) as runner:
            result = await runner.run(job("quick", key="k"))

        assert result.succeeded
        assert len(world.told(AttemptLaunched)) == 1

    async def test_for_a_moment_is_tried_again(self, world: World) -> None:
        journal = BrokenJournal(1, 3, 5, retryable=True)
        async with world.runner(journal=journal) as runner:
            assert (await runner.run(job("quick", key="k"))).succeeded


class TestWhatDoesNotFit:
    async def test_another_namespace(self, world: World) -> None:
        journal = MemoryJournal()
        async with world.runner(journal=journal, namespace="one"):
            pass

        with pytest.raises(JournalError, match=r"belongs to the namespace 'one'.*namespace='one'"):
            async with world.runner(journal=journal, namespace="two"):
                pass

    async def test_another_place(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        class Elsewhere(type(world.backend())):  # type: ignore[misc]
            place = "elsewhere"  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

        journal = MemoryJournal()
        await died(world, journal, job("quick", key="k"), calls="observe:1")

        there: Backend = Elsewhere(world.backend().inner)
        async with world.runner(journal=journal, backend=there) as runner:
            with pytest.raises(JournalError, match="'k' runs on 'memory'"):
                await runner.run(job("quick", key="k"))
            assert await runner.recover() == []

    async def test_a_handle_of_another_namespace(self, world: World) -> None:
        async with world.runner(namespace="one") as runner:
            text = (await runner.submit(job("quick", key="k"))).text
        async with world.runner(namespace="two") as runner:
            with pytest.raises(InvalidJob, match="namespace='one'"):
                await runner.attach(text)

    async def test_nothing_to_recover_from(self, world: World) -> None:
        async with world.runner() as runner:
            with pytest.raises(JournalError, match="journal="):
                await runner.recover()

    async def test_no_such_key(self, world: World) -> None:
        async with world.runner(journal=MemoryJournal()) as runner:
            with pytest.raises(JobNotFound):
                await runner.attach("nobody")

    @pytest.mark.parametrize("options", [{"on_unknown": "maybe"}, {"journal": "jobs.sqlite"}])
    async def test_wrong_options(self, options: dict[str, Any]) -> None:
        with pytest.raises((ValueError, TypeError), match=next(iter(options))):
            Runner(**options)


class TestAHandlesText:
    async def test_attaches_without_a_search(self, world: World) -> None:
        async with world.runner(on_exit="detach") as runner:
            text = (await runner.submit(job("quick", key="reports/a b:c"))).text
        backend = world.backend()

        async with world.runner(backend=backend) as runner:
            handle = await runner.attach(text)
            result = await handle.wait()

        assert handle.key == "reports/a b:c"
        assert result.succeeded
        assert backend.called("find") == 0

    async def test_is_short_and_one_word(self, world: World) -> None:
        async with world.runner(on_exit="detach") as runner:
            text = (await runner.submit(job("quick", key="k"))).text

        assert text.startswith("fr1:memory:default:k:1:")
        assert not any(c.isspace() for c in text)


class TestALaunchThatFailed:
    async def test_leaves_no_page_behind(self, world: World) -> None:
        journal = MemoryJournal()
        faults = [Fault("refuses", "submit", last=10)]
        async with world.runner(*faults, journal=journal) as runner:
            with pytest.raises(Exception, match="fault plan"):
                await runner.run(job("quick", key="k"))
            assert journal._pages == {}
            assert await runner.recover() == []

    async def test_for_good_has_its_record(self, world: World) -> None:
        journal = MemoryJournal()
        async with world.runner(Fault("rejects_for_good", "submit"), journal=journal) as runner:
            with pytest.raises(JobFailed):
                await runner.run(job("quick", key="k"))

        result = journal._pages["k"].result
        assert result is not None
        assert result.outcome.kind is Kind.NEVER_STARTED
