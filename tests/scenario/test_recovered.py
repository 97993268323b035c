"""A program that was killed: it recovers what its journal knows, and then does what it always does, submit its jobs."""

from __future__ import annotations

import anyio
import pytest

from fargate_runner import InvalidJob, JobFailed, KeyConflict, Kind, MemoryJournal, Retry, Secret
from fargate_runner.telemetry import AttemptLaunched, RetryScheduled
from tests.scenario.test_journal import died, lost
from tests.scenario.world import World, fixed, job

RETRIED = Retry(failures=1, wait=fixed(5))


async def test_a_job_that_was_recovered_is_met_when_it_is_submitted_again(world: World) -> None:
    journal = MemoryJournal()
    await died(world, journal, job("quick", key="k"), calls="observe:1")

    async with world.runner(journal=journal) as runner:
        (handle,) = await runner.recover()
        result = await runner.run(job("quick", key="k"))

        assert await handle.wait() == result
    assert len(world.started) == 1


async def test_it_is_met_a_while_later_too(world: World) -> None:
    journal = MemoryJournal()
    await died(world, journal, job("quick", key="k"), calls="observe:1")

    async with world.runner(journal=journal) as runner:
        await runner.recover()
        await anyio.sleep(20)
        assert (await runner.run(job("quick", key="k"))).succeeded


async def test_it_is_met_after_it_was_attached(world: World) -> None:
    journal = MemoryJournal()
    await died(world, journal, job("quick", key="k"), calls="observe:1")

    async with world.runner(journal=journal) as runner:
        await runner.attach("k")
        assert (await runner.run(job("quick", key="k"))).succeeded


async def test_another_job_of_its_key_is_a_conflict(world: World) -> None:
    journal = MemoryJournal()
    await died(world, journal, job("quick", key="k"), calls="observe:1")

    async with world.runner(journal=journal) as runner:
        await runner.recover()
        with pytest.raises(KeyConflict) as conflict:
            await runner.run(job("failing", key="k"))

    assert conflict.value.difference == ("command",)


async def test_the_wait_between_attempts_is_the_one_that_is_brought(world: World) -> None:
    journal = MemoryJournal()
    one = job("failing", "quick", key="k", retry=RETRIED)
    await died(world, journal, one, calls="observe:1")

    async with world.runner(journal=journal) as runner:
        await runner.recover()
        assert (await runner.run(one)).succeeded

    assert [event.wait for event in world.told(RetryScheduled)] == [5]


@pytest.mark.parametrize("calls", ["prepare:1", "submit:1", "observe:1", "observe:3"])
@pytest.mark.parametrize("later", [None, 0.0, 20.0, 75.0, 100.0, 200.0])
async def test_its_secrets_are_those_that_are_brought(world: World, calls: str, later: float | None) -> None:
    journal = MemoryJournal()
    one = job("failing", "quick", key="k", retry=RETRIED, secrets={"A": Secret("canary")})
    await died(world, journal, one, calls=calls)

    async with world.runner(journal=journal) as runner:
        await runner.recover()
        if later is not None:
            await anyio.sleep(later)
        result = await runner.run(one)

    assert [attempt.outcome.kind for attempt in result.attempts] == [Kind.FAILED, Kind.SUCCEEDED]
    assert [(identity.key, identity.attempt) for identity in world.started] == [("k", 1), ("k", 2)]


async def test_they_are_of_no_use_to_a_job_that_has_ended(world: World) -> None:
    journal = MemoryJournal()
    one = job("quick", key="k", secrets={"A": Secret("canary")})
    await died(world, journal, one, calls="observe:1")

    async with world.runner(journal=journal) as runner:
        (handle,) = await runner.recover()
        result = await handle.wait()
        assert await runner.run(one) == result


async def test_a_launch_that_lacks_its_secrets_is_not_given_up_as_long_as_it_can_be_sent_again(world: World) -> None:
    journal = MemoryJournal()
    one = job("quick", key="k", secrets={"A": Secret("canary")})
    backend = world.backend()
    await died(world, journal, one, calls="submit:1")
    world.platform._runs.clear()

    async with world.runner(journal=journal, backend=backend) as runner:
        (handle,) = await runner.recover()
        with pytest.raises(InvalidJob, match="submit the same job again"):
            await handle.wait()
    assert backend.called("submit") == 0
    async with world.runner(journal=journal) as runner:
        assert (await runner.run(one)).succeeded


async def test_after_55_minutes_it_is_given_up(world: World) -> None:
    journal = MemoryJournal()
    one = job("quick", key="k", secrets={"A": Secret("canary")})
    await died(world, journal, one, calls="submit:1")
    world.platform._runs.clear()
    await anyio.sleep(56 * 60)

    async with world.runner(journal=journal) as runner:
        await runner.recover()
        with pytest.raises(JobFailed) as failed:
            await runner.run(one)

    assert failed.value.result.outcome.kind is Kind.UNKNOWN
    assert len(world.told(AttemptLaunched)) == 0


class TestALaunchThatMayBeLostWithItsRunner:
    """As an engine's, where a launch waits in this process for its image."""

    async def test_is_sent_again_if_it_was_not_seen_to_start(self, world: World) -> None:
        journal = MemoryJournal()
        await died(world, journal, job("quick", key="k"), calls="observe:1", starts_later=True)
        await lost(world, "k")
        backend = world.backend()
        backend.starts_later = True

        async with world.runner(journal=journal, backend=backend) as runner:
            result = await runner.run(job("quick", key="k"))

        assert result.succeeded
        assert [attempt.number for attempt in result.attempts] == [1]

    async def test_is_not_sent_again_once_it_was(self, world: World) -> None:
        journal = MemoryJournal()
        await died(world, journal, job("quick", key="k"), calls="observe:3", starts_later=True)
        await lost(world, "k")
        backend = world.backend()
        backend.starts_later = True

        async with world.runner(journal=journal, backend=backend) as runner:
            with pytest.raises(JobFailed) as failed:
                await runner.run(job("quick", key="k"))

        assert failed.value.result.outcome.kind is Kind.UNKNOWN
        assert backend.called("submit") == 0

    async def test_is_met_where_it_was_not_lost(self, world: World) -> None:
        journal = MemoryJournal()
        await died(world, journal, job("quick", key="k"), calls="observe:1", starts_later=True)
        backend = world.backend()
        backend.starts_later = True

        async with world.runner(journal=journal, backend=backend) as runner:
            assert (await runner.run(job("quick", key="k"))).succeeded

        assert len(world.started) == 1
