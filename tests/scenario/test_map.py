"""`Runner.map`: order, room, laziness, failing, leaving."""

from __future__ import annotations

import gc
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

from fargate_runner import (
    InvalidJob,
    Job,
    JobFailed,
    JobResult,
    KeyConflict,
    Kind,
    MemoryBackend,
    Retry,
    Runner,
    RunnerClosed,
)
from fargate_runner.backends.memory import Script
from fargate_runner.telemetry import JobEnded
from tests.scenario.faults import Fault, once
from tests.scenario.world import World, fixed, job, keys, played, seconds, within


async def collected(results: AsyncIterator[JobResult]) -> list[JobResult]:
    return [result async for result in results]


def lasting(*durations: float) -> list[Job]:
    return [job(f"runs:{duration}", key=f"k{number}") for number, duration in enumerate(durations)]


class Source:
    """An endless supply of jobs that counts how many were taken from it."""

    def __init__(self, *words: str) -> None:
        self.words = words or ("quick",)
        self.taken = 0
        self.closed = False

    def __iter__(self) -> Iterator[Job]:
        try:
            for _ in itertools.count():
                self.taken += 1
                yield job(*self.words)
        finally:
            self.closed = True


class TestOrder:
    async def test_results_come_in_the_order_of_the_jobs(self, world: World) -> None:
        async with world.runner() as runner:
            results = await collected(runner.map(lasting(90, 30, 60), concurrency=3))

        assert keys(results) == ["k0", "k1", "k2"]

    async def test_or_in_the_order_of_their_ends(self, world: World) -> None:
        async with world.runner() as runner:
            results = await collected(runner.map(lasting(90, 30, 60), concurrency=3, as_completed=True))

        assert keys(results) == ["k1", "k2", "k0"]

    async def test_a_result_is_given_out_as_soon_as_it_is_there(self, world: World) -> None:
        async with world.runner() as runner:
            results = runner.map(lasting(90, 30), concurrency=2, as_completed=True)
            seen = [(result.key, world.now) async for result in results]

        assert seen == [("k1", 40), ("k0", 100)]

    async def test_no_jobs_give_no_results(self, world: World) -> None:
        async with world.runner() as runner:
            assert await collected(runner.map([])) == []

    async def test_an_exhausted_map_stays_exhausted(self, world: World) -> None:
        async with world.runner() as runner:
            results = runner.map(lasting(1))
            await collected(results)

            assert await collected(results) == []

    async def test_an_async_iterable_will_do(self, world: World) -> None:
        async def jobs() -> AsyncIterator[Job]:
            for one in lasting(10, 20, 30):
                await anyio.sleep(5)
                yield one

        async with world.runner() as runner:
            assert keys(await collected(runner.map(jobs(), concurrency=2))) == ["k0", "k1", "k2"]

    async def test_two_maps_at_once_keep_to_themselves(self, world: World) -> None:
        seen: dict[str, list[str]] = {"a": [], "b": []}

        async def read(name: str, runner: Runner) -> None:
            jobs = [job("quick", key=f"{name}{number}") for number in range(20)]
            async for result in runner.map(jobs, concurrency=3):
                seen[name].append(result.key)

        async with world.runner() as runner, anyio.create_task_group() as tasks:
            tasks.start_soon(read, "a", runner)
            tasks.start_soon(read, "b", runner)

        assert seen == {name: [f"{name}{number}" for number in range(20)] for name in "ab"}


class TestRoom:
    @pytest.mark.parametrize("as_completed", [False, True])
    @pytest.mark.parametrize("concurrency", [1, 2, 7])
    async def test_never_more_are_live_than_asked(self, world: World, concurrency: int, as_completed: bool) -> None:
        backend = world.backend()
        durations = [(number * 37) % 50 + 1 for number in range(60)]

        async with world.runner(backend=backend) as runner:
            await collected(runner.map(lasting(*durations), concurrency=concurrency, as_completed=as_completed))

        assert backend.most_live == concurrency

    async def test_room_is_used_as_soon_as_there_is_some(self, world: World) -> None:
        async with world.runner() as runner:
            await collected(runner.map([job("quick") for _ in range(10)], concurrency=2))

        assert world.now == pytest.approx(5 * 70)

    async def test_a_retry_keeps_its_room(self, world: World) -> None:
        backend = world.backend()
        jobs = [job("failing", "quick", retry=Retry(failures=1, wait=fixed(5))) for _ in range(12)]

        async with world.runner(backend=backend) as runner:
            await collected(runner.map(jobs, concurrency=3))

        assert backend.most_live == 3

    async def test_the_iterable_is_not_run_ahead_of_the_room(self, world: World) -> None:
        source = Source("endless")
        async with world.runner() as runner:
            results = runner.map(source, concurrency=4)
            await anyio.sleep(3600)

            assert source.taken == 4
            await results.aclose()

    @pytest.mark.parametrize("as_completed", [False, True])
    async def test_a_slow_reader_holds_the_jobs_back(self, world: World, as_completed: bool) -> None:
        source = Source()
        async with world.runner() as runner:
            results = runner.map(source, concurrency=50, as_completed=as_completed)
            await anyio.sleep(7 * 24 * 3600)

            assert 1000 <= source.taken <= 1100
            await results.aclose()

    async def test_a_slow_first_job_holds_nobody_up_until_there_is_no_room(self, world: World) -> None:
        jobs = [job("runs:100000", key="first"), *(job("quick", key=f"k{number}") for number in range(500))]

        async with world.runner() as runner:
            results = await collected(runner.map(jobs, concurrency=10))

        assert keys(results) == [one.key for one in jobs]
        assert world.now == pytest.approx(100_010)

    @pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "3"])
    async def test_a_concurrency_that_is_none_is_refused(self, world: World, wrong: Any) -> None:
        async with world.runner() as runner:
            with pytest.raises(ValueError, match="concurrency"):
                runner.map([], concurrency=wrong)

    @pytest.mark.sweep
    @pytest.mark.timeout(600)  # some ten seconds of pure computing, where nobody else computes
    async def test_ten_thousand_jobs_come_to_their_ends(self, world: World) -> None:
        backend = MemoryBackend(played, platform=world.platform, utcnow=world.clock.utcnow)
        count = 0

        async with Runner(backend) as runner:
            async for result in runner.map((job("quick") for _ in range(10_000)), concurrency=1000):
                count += result.succeeded

            assert not runner._lives
            assert not runner._named

        assert (count, world.now) == (10_000, pytest.approx(700))
        assert world.platform._runs == {}


class TestFailing:
    async def test_the_first_failure_stops_the_others_and_waits_for_them(self, world: World) -> None:
        async with world.runner() as runner:
            with pytest.raises(JobFailed) as failed:
                await collected(runner.map([job("stubborn"), job("failing", key="bad"), job("endless")]))

            assert failed.value.result.key == "bad"
            assert world.platform.live() == 0
            assert world.now == pytest.approx(70 + 30)

    async def test_it_comes_although_an_earlier_job_still_runs(self, world: World) -> None:
        async with world.runner() as runner:
            with pytest.raises(JobFailed):
                await within(100, collected, runner.map([job("endless"), job("failing")]))

    async def test_nothing_is_started_after_it(self, world: World) -> None:
        backend = world.backend()
        async with world.runner(backend=backend) as runner:
            with pytest.raises(JobFailed):
                await collected(runner.map(Source("failing"), concurrency=3))
            started = backend.calls.count("submit")
            await anyio.sleep(3600)

        assert started == backend.calls.count("submit") == 3

    async def test_failures_are_collected_when_asked(self, world: World) -> None:
        words = ["quick", "failing", "quick", "failing"]
        async with world.runner() as runner:
            results = await collected(runner.map([job(word) for word in words], on_error="collect"))

        assert [result.exit_code for result in results] == [0, 3, 0, 3]

    @pytest.mark.parametrize("on_error", ["raise", "collect"])
    async def test_an_iterable_that_raises_is_heard_of_and_stops_the_rest(self, world: World, on_error: Any) -> None:
        def jobs() -> Iterator[Job]:
            yield job("endless")
            raise ZeroDivisionError("in the caller's generator")

        async with world.runner() as runner:
            with pytest.raises(ZeroDivisionError):
                await within(100, collected, runner.map(jobs(), on_error=on_error))

            assert world.platform.live() == 0

    @pytest.mark.parametrize("wrong", ["a string", None, 5, {"image": "x"}])
    async def test_what_is_no_job_is_refused(self, world: World, wrong: Any) -> None:
        async with world.runner() as runner:
            with pytest.raises(TypeError, match="expected a Job"):
                await collected(runner.map([wrong]))

    async def test_something_that_cannot_be_iterated_is_refused(self, world: World) -> None:
        async with world.runner() as runner:
            with pytest.raises(TypeError):
                await collected(runner.map(5))  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="several jobs"):
                runner.map(job("quick"))  # type: ignore[arg-type]

    async def test_a_job_that_the_backend_refuses_is_heard_of_and_stops_the_rest(self, world: World) -> None:
        def choosy(one: Job, identity: Any) -> Script:
            if one.name == "impossible":
                raise InvalidJob("image", None, "there is none", "give one")
            return Script(run_for=1e9)

        async with world.runner(script=choosy) as runner:
            with pytest.raises(InvalidJob):
                await within(100, collected, runner.map([job("endless"), job("quick", name="impossible")]))

            assert world.platform.live() == 0

    async def test_the_failure_is_raised_again_when_asked_again(self, world: World) -> None:
        async with world.runner() as runner:
            results = runner.map([job("failing")])
            for _ in range(2):
                with pytest.raises(JobFailed):
                    await anext(results)

    async def test_closing_while_a_failure_is_settled_does_not_hang(self, world: World) -> None:
        """Two tasks wait for the same end."""

        async def read() -> None:
            with pytest.raises(JobFailed):
                await anext(results)

        async with world.runner() as runner:
            results = runner.map([job("stubborn"), job("failing")])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                await anyio.sleep(80)
                await within(3600, results.aclose)


class TestLeaving:
    async def test_breaking_out_of_the_loop_stops_the_rest(self, world: World) -> None:
        source = Source()
        async with world.runner() as runner:
            async for _ in runner.map(source, concurrency=3):
                break
            gc.collect()
            await anyio.sleep(1)

            assert world.platform.live() == 0
            taken = source.taken
            await anyio.sleep(3600)
            assert source.taken == taken

    async def test_the_block_waits_for_the_end_of_the_rest(self, world: World) -> None:
        async with world.runner() as runner:
            async with runner.map([job("quick"), job("stubborn")]) as results:
                await anext(results)

            assert world.platform.live() == 0

    async def test_leaving_early_closes_the_callers_generator(self, world: World) -> None:
        source = Source("quick")
        async with world.runner() as runner:
            async with runner.map(source, concurrency=2) as results:
                await anext(results)
            await anyio.sleep(0)
            gc.collect()

            assert source.closed

    async def test_leaving_does_not_wait_for_an_iterable_that_has_nothing(self, world: World) -> None:
        closed = []

        async def jobs() -> AsyncIterator[Job]:
            try:
                yield job("quick")
                await anyio.sleep_forever()
            finally:
                closed.append(world.now)

        async with world.runner() as runner:
            async with runner.map(jobs()) as results:
                await anext(results)
            await anyio.sleep(1)

            assert closed == [70]

    async def test_an_async_generator_between_two_jobs_is_closed_too(self, world: World) -> None:
        closed = []

        async def jobs() -> AsyncIterator[Job]:
            try:
                while True:
                    yield job("quick")
            finally:
                closed.append(world.now)

        async with world.runner() as runner:
            async with runner.map(jobs(), concurrency=1) as results:
                await anext(results)
            await anyio.sleep(1)

            assert len(closed) == 1

    async def test_a_cancelled_reader_leaves_nothing_live(self, world: World) -> None:
        async with world.runner() as runner:
            with anyio.move_on_after(30):
                async with runner.map([job("endless"), job("stubborn")]) as results:
                    await anext(results)

            assert world.platform.live() == 0

    async def test_a_closed_map_ends(self, world: World) -> None:
        async with world.runner() as runner:
            results = runner.map([job("endless")])
            await anyio.sleep(30)
            await results.aclose()
            await results.aclose()

            assert await collected(results) == []

    async def test_leaving_the_runner_ends_its_maps(self, world: World) -> None:
        failures = []

        async def read(results: AsyncIterator[JobResult]) -> None:
            try:
                await collected(results)
            except (JobFailed, RunnerClosed) as exc:
                failures.append(exc)

        async with anyio.create_task_group() as tasks, world.runner() as runner:
            for on_error in ("raise", "collect"):
                tasks.start_soon(read, runner.map(Source("endless"), concurrency=2, on_error=on_error))
            await anyio.sleep(30)

        assert len(failures) == 2
        assert world.platform.live() == 0

    async def test_a_closed_runner_takes_no_map(self, world: World) -> None:
        async with world.runner() as runner:
            pass

        with pytest.raises(RunnerClosed):
            runner.map([])


class TestKeys:
    @pytest.mark.parametrize("as_completed", [False, True])
    async def test_jobs_with_one_key_are_one_job_with_a_result_for_each(self, world: World, as_completed: bool) -> None:
        backend = world.backend()
        jobs = [job("quick", key="same") for _ in range(5)]

        async with world.runner(backend=backend) as runner:
            results = await collected(runner.map(jobs, concurrency=3, as_completed=as_completed))

        assert len(results) == 5
        assert len(set(map(id, results))) == 1
        assert backend.calls.count("submit") == 1

    async def test_very_many_jobs_may_have_one_key(self, world: World) -> None:
        async with world.runner() as runner:
            results = await collected(runner.map([job("quick", key="same") for _ in range(3000)], concurrency=3000))

        assert len(results) == 3000

    async def test_a_job_that_is_over_is_met_by_its_key(self, world: World) -> None:
        async with world.runner() as runner:
            before = await runner.run(job("quick", key="same"))
            results = await collected(runner.map([job("quick"), job("quick", key="same")]))

        assert results[1] is before

    async def test_another_job_of_a_key_is_a_conflict(self, world: World) -> None:
        async with world.runner() as runner:
            with pytest.raises(KeyConflict, match="command"):
                await collected(runner.map([job("endless", key="same"), job("quick", key="same")]))

            assert world.platform.live() == 0

    async def test_a_job_that_others_wait_for_survives_the_end_of_a_batch(self, world: World) -> None:
        async with world.runner() as runner:
            handle = await runner.submit(job("quick", key="shared"))
            with pytest.raises(JobFailed):
                await within(50, collected, runner.map([job("quick", key="shared"), job("soon_failing")]))

            assert (await handle.wait()).outcome.kind is Kind.SUCCEEDED


class TestLaunching:
    async def test_what_was_not_launched_yet_is_not_launched_to_be_stopped(self, world: World) -> None:
        backend = world.backend(Fault("is_slow", "prepare", first=2))
        async with world.runner(backend=backend) as runner:
            with anyio.move_on_after(15):
                async with runner.map([job("quick") for _ in range(5)]) as results:
                    await anext(results)

        assert backend.calls.count("submit") == 1
        assert [event.result.outcome.kind for event in world.told(JobEnded)] == [Kind.CANCELLED] * 5

    async def test_a_launch_that_fails_is_heard_of(self, world: World) -> None:
        async with world.runner(once("refuses_for_good", 2, "submit")) as runner:
            with pytest.raises(Exception, match="the fault plan says so"):
                await collected(runner.map([job("endless"), job("endless")]))

            assert world.platform.live() == 0


class TestCollecting:
    async def test_a_job_that_could_not_be_submitted_is_a_result_too(self, world: World) -> None:
        async with world.runner(once("refuses_for_good", 2, "submit")) as runner:
            jobs = [job("quick", key=f"k{n}") for n in range(4)]
            results = await collected(runner.map(jobs, concurrency=1, on_error="collect"))

        assert [result.outcome.kind for result in results].count(Kind.NEVER_STARTED) == 1
        assert keys(results) == ["k0", "k1", "k2", "k3"]
        assert "fault plan" in results[1].outcome.detail

    async def test_so_is_one_whose_key_names_another_job(self, world: World) -> None:
        jobs = [job("quick", key="same"), job("failing", key="same"), job("quick")]

        async with world.runner() as runner:
            results = await collected(runner.map(jobs, on_error="collect"))

        assert [result.succeeded for result in results] == [True, False, True]
        assert "already names a job" in results[1].outcome.detail

    async def test_what_is_no_job_is_the_callers_mistake(self, world: World) -> None:
        wrong: Any = [job("quick"), "quick"]

        async with world.runner() as runner:
            with pytest.raises(TypeError, match="expected a Job"):
                await collected(runner.map(wrong, on_error="collect"))


class TestMaxFailures:
    @pytest.mark.parametrize("as_completed", [False, True])
    async def test_so_many_are_borne(self, world: World, as_completed: bool) -> None:
        jobs = [job("failing" if n % 3 == 0 else "quick") for n in range(9)]

        async with world.runner() as runner:
            batch = runner.map(jobs, concurrency=2, max_failures=3, as_completed=as_completed)
            results = await collected(batch)

        assert len(results) == 9
        assert batch.stopped == ""
        assert batch.counts == {Kind.SUCCEEDED: 6, Kind.FAILED: 3}

    @pytest.mark.parametrize("as_completed", [False, True])
    async def test_one_more_stops_the_batch_with_what_there_is(self, world: World, as_completed: bool) -> None:
        source = Source("failing")

        async with world.runner() as runner:
            batch = runner.map(source, concurrency=5, max_failures=7, as_completed=as_completed)
            results = await collected(batch)

            assert world.platform.live() == 0
        kinds = [result.outcome.kind for result in results]
        assert kinds.count(Kind.FAILED) >= 8
        assert set(kinds) <= {Kind.FAILED, Kind.CANCELLED}
        assert len(results) == batch.started <= 14
        assert "max_failures=7" in batch.stopped
        assert source.closed

    async def test_what_others_wait_for_goes_on(self, world: World) -> None:
        async with world.runner() as runner:
            shared = await runner.submit(job("endless", key="shared"))
            batch = runner.map([job("endless", key="shared"), job("failing"), job("quick")], max_failures=0)
            results = await within(1000, collected, batch)

            assert [result.outcome.kind for result in results] == [Kind.FAILED, Kind.SUCCEEDED]
            assert shared.result is None
            await shared.stop()


class TestVcpu:
    async def test_never_more_are_under_way(self, world: World) -> None:
        sizes = [(1, 2), (2, 4), (4, 8), (0.25, 0.5), (1, 2), (2, 4)] * 5
        jobs = [job("quick", vcpu=vcpu, memory_gib=memory) for vcpu, memory in sizes]
        seen: list[float] = []

        async with world.runner() as runner:
            batch = runner.map(jobs, max_vcpu=4, as_completed=True)
            async for _ in batch:
                live = [live for live in runner._lives if not live.finished]
                seen += [sum(one.job.size.vcpu for one in live if one.job is not None)]

        assert len(seen) == len(jobs)
        assert max(seen) <= 4

    async def test_a_job_that_never_fits_is_refused(self, world: World) -> None:
        async with world.runner() as runner:
            with pytest.raises(InvalidJob, match="max_vcpu=2"):
                await collected(runner.map([job("quick", vcpu=4, memory_gib=8)], max_vcpu=2))

    @pytest.mark.parametrize(
        "options",
        [
            {"max_vcpu": 0},
            {"max_vcpu": True},
            {"max_vcpu": "4"},
            {"max_vcpu": float("nan")},
            {"max_failures": -1},
            {"max_failures": 0.1},
            {"max_failures": 1, "on_error": "raise"},
        ],
    )
    async def test_wrong_options_name_themselves(self, world: World, options: dict[str, Any]) -> None:
        async with world.runner() as runner:
            with pytest.raises(ValueError, match=next(iter(options))):
                runner.map([], **options)


class TestAQuotaThatIsUsedUp:
    async def test_costs_the_jobs_time_and_nothing_else(self, world: World) -> None:
        backend = world.backend()
        backend.quota = 3
        jobs = [job("runs:3600", start_timeout=seconds(60), retry=Retry(never_started=0)) for _ in range(30)]

        async with world.runner(backend=backend) as runner:
            results = await collected(runner.map(jobs))

        assert {result.outcome.kind for result in results} == {Kind.SUCCEEDED}
        assert world.now == pytest.approx(10 * 3610, rel=0.05)

    async def test_is_not_asked_for_by_all_at_once(self, world: World) -> None:
        backend = world.backend()
        backend.quota = 10
        jobs = [job("runs:20") for _ in range(500)]

        async with world.runner(backend=backend) as runner:
            await collected(runner.map(jobs, concurrency=500))

        assert backend.called("submit") <= 3 * 500

    async def test_by_others_alone_is_waited_for_as_long_as_any_room(self, world: World) -> None:
        backend = world.backend()
        backend.quota = 0
        one = job("quick", start_timeout=seconds(300), retry=Retry(never_started=0))

        async with world.runner(backend=backend) as runner:
            handle = await within(400, runner.submit, one)
            ended = await within(400, handle.wait)

        assert ended.outcome.kind is Kind.NEVER_STARTED

    async def test_a_job_that_waits_for_its_turn_can_be_stopped(self, world: World) -> None:
        backend = world.backend()
        backend.quota = 1

        async with world.runner(backend=backend) as runner, anyio.create_task_group() as tasks:
            tasks.start_soon(runner.run, job("runs:36000"))
            await anyio.sleep(1)
            for _ in range(5):
                tasks.start_soon(runner.run, job("quick"))
            await anyio.sleep(100)
            with anyio.fail_after(60):
                tasks.cancel_scope.cancel()

        assert world.platform.live() == 0
        assert world.unbalanced() == {}
