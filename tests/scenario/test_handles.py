"""Handles: waiting, stopping, reading the lines of a job that may be retried, ended, forgotten."""

from __future__ import annotations

from contextlib import aclosing
from datetime import timedelta
from typing import Any

import anyio
import pytest

from fargate_runner import JobHandle, Kind, LogsUnavailable, Phase, Retry
from fargate_runner.backends.memory import Script
from tests.scenario.faults import Fault
from tests.scenario.world import World, fixed, job


async def read(handle: JobHandle, *, follow: bool = True) -> list[tuple[int, str]]:
    return [(line.attempt, line.text) async for line in handle.logs(follow=follow)]


def counting(lines: int, run_for: float = 100, **fields: Any) -> Script:
    return Script(start_after=10, run_for=run_for, lines=tuple(map(str, range(lines))), **fields)


class TestWaiting:
    async def test_many_may_wait_for_one_record(self, world: World) -> None:
        results = []

        async def wait(handle: JobHandle) -> None:
            results.append(await handle.wait())

        async with world.runner() as runner:
            handle = await runner.submit(job("quick"))
            async with anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(wait, handle)

        assert len(results) == 50
        assert set(map(id, results)) == {id(handle.result)}

    async def test_waiting_again_gives_the_same_record(self, world: World) -> None:
        async with world.runner() as runner:
            handle = await runner.submit(job("quick"))

            assert await handle.wait() is await handle.wait() is handle.result

    async def test_a_record_outlives_the_runner(self, world: World) -> None:
        async with world.runner() as runner:
            handle = await runner.submit(job("quick"))

        assert await handle.wait() is handle.result
        assert (await handle.stop()) is handle.result

    async def test_a_stop_after_the_end_changes_nothing(self, world: World) -> None:
        async with world.runner() as runner:
            handle = await runner.submit(job("quick"))
            result = await handle.wait()

            assert await handle.stop() is result
            assert result.succeeded

    async def test_submit_returns_as_soon_as_the_platform_has_the_job(self, world: World) -> None:
        async with world.runner() as runner:
            handle = await runner.submit(job("endless"))

            assert world.now == 0
            assert world.platform.live() == 1
            assert handle.result is None


class TestLooking:
    async def test_the_snapshot_follows_the_job(self, world: World) -> None:
        phases: list[Phase] = []

        async def look(handle: JobHandle) -> None:
            for _ in range(5):
                await anyio.sleep(15)
                assert handle.snapshot is not None
                phases.append(handle.snapshot.phase)

        async with world.runner(script=lambda *_: counting(0, run_for=1e9, ignores_sigterm=True)) as runner:
            handle = await runner.submit(job("?", stop_timeout=timedelta(seconds=30)))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(look, handle)
                await anyio.sleep(35)
                await handle.stop()

        assert phases == [Phase.RUNNING, Phase.RUNNING, Phase.STOPPING, Phase.STOPPING, Phase.ENDED]

    async def test_a_repr_names_the_job_and_its_phase(self, world: World) -> None:
        async with world.runner() as runner:
            handle = await runner.submit(job("quick", name="census", key="k/1"))
            new = repr(handle)
            await handle.wait()

        assert new == "<JobHandle 'census' key='k/1' new>"
        assert repr(handle) == "<JobHandle 'census' key='k/1' ended>"

    async def test_a_job_without_a_key_gets_one_that_can_be_attached(self, world: World) -> None:
        async with world.runner() as runner:
            handle = await runner.submit(job("quick"))
            met = await runner.attach(handle.key)

            assert await met.wait() is await handle.wait()
        assert world.unbalanced() == {}


class TestLines:
    async def test_before_during_and_after_the_job_they_are_the_same(self, world: World) -> None:
        async with world.runner(script=lambda *_: counting(20)) as runner:
            handle = await runner.submit(job("?"))
            found: list[list[tuple[int, str]]] = []

            async def reader() -> None:
                found.append(await read(handle))

            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(reader)
                    await anyio.sleep(27)
            await handle.wait()
            await reader()

        assert found == [[(1, str(number)) for number in range(20)]] * 6

    async def test_they_come_while_the_job_runs(self, world: World) -> None:
        async with world.runner(script=lambda *_: counting(4)) as runner:
            handle = await runner.submit(job("?"))
            moments = [world.now async for _ in handle.logs()]

        assert moments == [10, 35, 60, 85]

    async def test_they_go_on_through_all_attempts(self, world: World) -> None:
        def script(_: Any, identity: Any) -> Script:
            return counting(3, exit_code=1 if identity.attempt < 3 else 0)

        async with world.runner(script=script) as runner:
            handle = await runner.submit(job("?", retry=Retry(failures=2, wait=fixed(500))))

            assert await read(handle) == [(attempt, str(line)) for attempt in (1, 2, 3) for line in range(3)]

    async def test_without_follow_they_are_those_that_are_there(self, world: World) -> None:
        async with world.runner(script=lambda *_: counting(4)) as runner:
            handle = await runner.submit(job("?"))
            nothing = await read(handle, follow=False)
            await anyio.sleep(70)

            assert (nothing, await read(handle, follow=False)) == ([], [(1, "0"), (1, "1"), (1, "2")])
            assert world.now == 70

    async def test_a_reader_may_be_slower_than_the_job(self, world: World) -> None:
        async with world.runner(script=lambda *_: counting(10)) as runner:
            handle = await runner.submit(job("?"))
            lines = []
            async for line in handle.logs():
                await anyio.sleep(3600)
                lines.append(line.text)

        assert lines == [str(number) for number in range(10)]

    async def test_a_slow_reader_of_a_job_that_nobody_keeps_is_waited_for(self, world: World) -> None:
        async with world.runner(script=lambda *_: counting(10)) as runner:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(runner.run, job("?", key="k"))
                await anyio.sleep(20)
                lines = []
                async for line in (await runner.attach("k")).logs():
                    await anyio.sleep(3600)
                    lines.append(line.text)
            await anyio.sleep(1)

            assert lines == [str(number) for number in range(10)]
            assert world.platform._runs == {}

    async def test_a_reader_that_leaves_early_lets_the_platform_forget(self, world: World) -> None:
        async with world.runner(script=lambda *_: counting(10)) as runner:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(runner.run, job("?", key="k"))
                await anyio.sleep(20)
                async with aclosing((await runner.attach("k")).logs()) as lines:
                    await anext(lines)
                    await anyio.sleep(3600)
                    assert len(world.platform._runs) == 1
            await anyio.sleep(1)

            assert world.platform._runs == {}

    async def test_a_reader_that_never_leaves_does_not_keep_the_platform_from_forgetting(self, world: World) -> None:
        async with world.runner(script=lambda *_: counting(10)) as runner:
            handle = await runner.submit(job("?"))
            lines = handle.logs()
            await anext(lines)
            await handle.wait()
        await lines.aclose()

        assert world.platform._runs == {}

    async def test_nor_does_one_of_a_job_that_nobody_keeps(self, world: World) -> None:
        async with anyio.create_task_group() as tasks, world.runner(script=lambda *_: counting(10)) as runner:
            tasks.start_soon(runner.run, job("?", key="k"))
            await anyio.sleep(20)
            lines = (await runner.attach("k")).logs()
            await anext(lines)
            await anyio.sleep(3600)
        await lines.aclose()

        assert world.platform._runs == {}

    async def test_they_are_kept_for_the_last_hundred_jobs(self, world: World) -> None:
        async with world.runner(script=lambda one, _: counting(2, run_for=float(one.command[0]))) as runner:
            handles = [await runner.submit(job(str(100 + number))) for number in range(103)]
            for handle in handles:
                await handle.wait()
            await anyio.sleep(1)

            assert len(world.platform._runs) == 100
            for handle in handles[:3]:
                with pytest.raises(LogsUnavailable, match="last 100 jobs"):
                    await read(handle)
            assert [len(await read(handle)) for handle in handles[3:]] == [2] * 100
        assert world.platform._runs == {}

    async def test_submitting_a_job_that_is_being_run_keeps_its_lines(self, world: World) -> None:
        async with world.runner() as runner, anyio.create_task_group() as tasks:
            tasks.start_soon(runner.run, job("talking", key="k"))
            await anyio.sleep(20)
            handle = await runner.submit(job("talking", key="k"))
            await handle.wait()
            await anyio.sleep(100)

            assert len(await read(handle)) == 3

    async def test_lines_that_the_platform_lost_are_said_to_be_gone(self, world: World) -> None:
        async with world.runner(Fault("refuses", "logs")) as runner:
            handle = await runner.submit(job("talking"))
            with pytest.raises(LogsUnavailable):
                await read(handle)

            assert (await handle.wait()).outcome.kind is Kind.SUCCEEDED

    async def test_a_reader_ends_with_a_job_that_never_started(self, world: World) -> None:
        async with world.runner(Fault("rejects_for_good", "submit")) as runner:
            handle = await runner.submit(job("talking"))

            assert await read(handle) == []

    async def test_a_cancelled_reader_harms_nobody(self, world: World) -> None:
        async with world.runner(script=lambda *_: counting(4)) as runner:
            handle = await runner.submit(job("?"))
            with anyio.move_on_after(50):
                await read(handle)

            assert len(await read(handle)) == 4
            assert (await handle.wait()).succeeded

    async def test_the_record_has_the_last_fifty(self, world: World) -> None:
        async with world.runner(script=lambda *_: counting(120)) as runner:
            result = await runner.run(job("?"))

        assert [line.text for line in result.last_lines] == [str(number) for number in range(70, 120)]

    async def test_a_very_long_line_is_shortened_in_the_record_only(self, world: World) -> None:
        async with world.runner(script=lambda *_: Script(run_for=1, lines=("x" * 100_000,))) as runner:
            handle = await runner.submit(job("?"))
            result = await handle.wait()

            assert [len(text) for _, text in await read(handle)] == [100_000]
            assert len(result.last_lines[0].text) < 17_000
