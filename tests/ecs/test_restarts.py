"""What chaos found on ECS, one by one: most of it when a runner takes over what another one began."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta

import anyio
import pytest

from fargate_runner import Cause, EcsBackend, Job, JobHandle, Kind, MemoryJournal, Phase, Retry, Runner
from fargate_runner.telemetry import Event, PlatformUnanswered
from fargate_runner.testing.aws import ContainerScript, FakeAws, Fault, Pace
from fargate_runner.testing.clock import VirtualClock
from tests.contract.ecs_words import IMAGE, Words
from tests.ecs.test_backend import launched

Make = Callable[..., EcsBackend]


def waits(**changes: object) -> Job:
    return Words().waits().with_(key="k", **changes)


async def begun(backend: EcsBackend, clock: VirtualClock, journal: MemoryJournal, job: Job) -> None:
    """Submit a job, and leave it running."""
    async with Runner(backend, journal=journal, on_exit="detach", utcnow=clock.utcnow) as runner:
        await runner.submit(job)


class TestATaskThatIsTakenOver:
    @pytest.mark.parametrize("hidden", [0.0, 100.0, 250.0])
    async def test_times_out_when_it_is_due_although_ecs_does_not_show_it_at_first(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock, hidden: float
    ) -> None:
        """Chaos, seed 98."""
        journal, job = MemoryJournal(), waits(timeout=timedelta(seconds=300))
        await begun(make_backend(), clock, journal, job)
        (arn,) = aws.world.tasks
        aws.world.hide(arn, hidden)

        async with Runner(make_backend(), journal=journal, utcnow=clock.utcnow) as runner:
            result = await (await runner.submit(job)).wait()

        (truth,) = aws.world.truth()
        assert result.outcome.kind is Kind.TIMED_OUT
        assert truth.ended_at is not None
        assert truth.started_at is not None
        assert truth.ended_at - truth.started_at == pytest.approx(300, abs=10)

    async def test_does_not_start_in_time_although_ecs_does_not_show_it_at_first(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock
    ) -> None:
        journal, job = MemoryJournal(), waits(start_timeout=timedelta(seconds=200))
        aws.world.pace = aws.world.pace.scaled(100)
        await begun(make_backend(), clock, journal, job)
        (arn,) = aws.world.tasks
        aws.world.hide(arn, 150.0)
        await anyio.sleep(100)

        async with Runner(make_backend(), journal=journal, utcnow=clock.utcnow) as runner:
            handle = await runner.submit(job)
            while aws.world.tasks[arn].desired_status == "RUNNING":
                await anyio.sleep(1)
            asked_at = clock.time()
            await handle.stop()

        assert asked_at == pytest.approx(200, abs=10)

    async def test_may_be_hidden_after_it_was_told_to_stop(self, make_backend: Make, aws: FakeAws) -> None:
        """Chaos, seed 5444: it counted as lost, for nobody knew how young it was."""
        async with make_backend() as backend:
            ref = await launched(backend, waits())
        aws.world.hide(ref.address, 200.0)

        async with make_backend() as other:
            await other.stop(ref, reason="enough")
            seen = await other.observe(ref)
            while not seen.ended:
                seen = await other.observe(ref, after=seen)

        assert seen.cause is Cause.STOPPED_ON_REQUEST

    async def test_is_read_from_its_first_attempt_on_although_ecs_has_forgotten_that_one(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock
    ) -> None:
        """Chaos, seed 1166: it was written down after the journal had been asked; the second one's lines came first."""
        journal, job = MemoryJournal(), Job(image=IMAGE, key="k", retry=Retry(failures=1))
        aws.world.script = lambda run: ContainerScript(lines=("said",), run_for=5, exit_code=3)
        aws.faults.add(Fault(match="ecs.ListTasks", delay=25))
        aws.world.pace = Pace.instant()
        late, first = (Runner(make_backend(), journal=journal, utcnow=clock.utcnow) for _ in range(2))
        handles: list[JobHandle] = []

        async def submit() -> None:
            handles.append(await late.submit(job))

        async with late, first, anyio.create_task_group() as tasks:
            tasks.start_soon(submit)
            await anyio.sleep(1)
            handle = await first.submit(job)
            while len(aws.world.tasks) < 2:
                await anyio.sleep(0.1)
            aws.world.hide(next(iter(aws.world.tasks)), math.inf)
            await handle.wait()
            attempts = [line.attempt async for line in handles[0].logs()]

        assert attempts == [1, 2]


class TestATaskThatIsNew:
    async def test_is_not_stopped_for_its_start_while_nobody_tells_whether_it_has_started(
        self, make_backend: Make, aws: FakeAws
    ) -> None:
        """Chaos, seed 6340: it had started long ago, and AWS was silent."""
        async with Runner(make_backend()) as runner:
            handle = await runner.submit(waits(start_timeout=timedelta(seconds=300)))
            await anyio.sleep(1)
            aws.faults.add(Fault(match="ecs.DescribeTasks", times=math.inf, cut=True))
            await anyio.sleep(350)
            aws.faults.clear()
            await anyio.sleep(100)
            result = await handle.stop()

        assert [attempt.outcome.kind for attempt in result.attempts] == [Kind.CANCELLED]

    async def test_times_out_when_it_is_due_although_ecs_shows_it_late(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock
    ) -> None:
        """Chaos, seed 22."""
        aws.world.visible_after = (200.0, 200.0)

        async with Runner(make_backend(), utcnow=clock.utcnow) as runner:
            result = await (await runner.submit(waits(timeout=timedelta(seconds=300)))).wait()

        (truth,) = aws.world.truth()
        assert result.outcome.kind is Kind.TIMED_OUT
        assert truth.ended_at is not None
        assert truth.started_at is not None
        assert truth.ended_at - truth.started_at == pytest.approx(300, abs=2)


class TestAProcessThatStoodStill:
    """By SIGSTOP, a closed lid, or as Lambda does between two requests."""

    async def test_does_not_call_lost_what_it_did_not_watch(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock
    ) -> None:
        """Chaos, seed 789: it was run again, although it had done its work."""
        async with Runner(make_backend(), utcnow=clock.utcnow) as runner:
            handle = await runner.submit(Words().exits().with_(key="k"))
            while handle.snapshot is None or handle.snapshot.phase < Phase.RUNNING:
                await anyio.sleep(1)
            clock.advance(3 * 3600)
            result = await handle.wait()

        assert [attempt.outcome.kind for attempt in result.attempts] == [Kind.UNKNOWN]
        assert len(aws.world.truth()) == 1

    async def test_does_not_stop_for_its_start_what_has_long_started(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock
    ) -> None:
        """Chaos, seed 1048."""
        aws.latency = (0.1, 0.2)
        async with Runner(make_backend(), utcnow=clock.utcnow) as runner:
            handle = await runner.submit(waits(start_timeout=timedelta(seconds=300)))
            await anyio.sleep(1)
            clock.advance(1800)
            await anyio.sleep(600)
            result = await handle.stop()

        assert [attempt.outcome.kind for attempt in result.attempts] == [Kind.CANCELLED]

    async def test_does_not_take_its_own_silence_for_the_platforms(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock
    ) -> None:
        """AWS had not answered once, and nobody had asked again for as long as it may be silent."""
        told: list[Event] = []
        async with Runner(make_backend(), utcnow=clock.utcnow, observers=[told.append]) as runner:
            handle = await runner.submit(waits())
            while handle.snapshot is None or handle.snapshot.phase < Phase.RUNNING:
                await anyio.sleep(1)
            aws.faults.add(Fault(match="ecs.DescribeTasks", times=math.inf, cut=True))
            while not any(isinstance(event, PlatformUnanswered) for event in told):
                await anyio.sleep(0.1)
            aws.faults.clear()
            clock.advance(1800)
            await anyio.sleep(60)
            result = await handle.stop()

        assert [attempt.outcome.kind for attempt in result.attempts] == [Kind.CANCELLED]

    async def test_does_not_take_an_answer_that_lay_about_for_news(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock
    ) -> None:
        """Chaos, seed 6437: the answer said that the task runs, and it was hours old."""
        async with Runner(make_backend(), utcnow=clock.utcnow) as runner:
            handle = await runner.submit(Words().exits().with_(key="k"))
            while handle.snapshot is None or handle.snapshot.phase < Phase.RUNNING:
                await anyio.sleep(1)
            aws.faults.add(Fault(match="ecs.DescribeTasks", delay=25, when="after"))
            await anyio.sleep(20)
            clock.advance(3 * 3600)
            result = await handle.wait()

        assert [attempt.outcome.kind for attempt in result.attempts] == [Kind.UNKNOWN]

    async def test_does_not_send_again_what_it_sent_long_ago(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock
    ) -> None:
        """Chaos, seed 402: the answer was lost, and the task had ended, and its token was forgotten."""
        aws.world.pace, aws.world.script = Pace.instant(), lambda run: ContainerScript(run_for=5)
        aws.faults.add(Fault(match="ecs.RunTask", delay=25, cut=True, when="after"))

        async with Runner(make_backend(), utcnow=clock.utcnow) as runner, anyio.create_task_group() as tasks:
            tasks.start_soon(runner.submit, Words().exits().with_(key="k"))
            await anyio.sleep(20)
            clock.advance(3 * 3600)
            result = await (await runner.submit(Words().exits().with_(key="k"))).wait()

        assert result.outcome.kind is Kind.UNKNOWN
        assert len(aws.world.truth()) == 1

    @pytest.mark.parametrize("still", [100.0, 400.0])
    async def test_times_out_when_it_is_due_although_it_was_launched_before(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock, still: float
    ) -> None:
        """Chaos, seed 1508: the answer to the launch lay about, and the timeout began when it was read."""
        aws.faults.add(Fault(match="ecs.RunTask", delay=10, when="after"))

        async with Runner(make_backend(), utcnow=clock.utcnow) as runner, anyio.create_task_group() as tasks:
            tasks.start_soon(runner.submit, waits(timeout=timedelta(seconds=600)))
            await anyio.sleep(5)
            clock.advance(still)
            result = await (await runner.submit(waits(timeout=timedelta(seconds=600)))).wait()

        (truth,) = aws.world.truth()
        assert result.outcome.kind is Kind.TIMED_OUT
        assert truth.ended_at is not None
        assert truth.started_at is not None
        assert truth.ended_at - truth.started_at == pytest.approx(600, abs=2)

    async def test_does_not_start_in_time_although_it_was_launched_before(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock
    ) -> None:
        job = waits(start_timeout=timedelta(seconds=600), retry=Retry(never_started=0))
        aws.world.pace = aws.world.pace.scaled(1000)
        aws.faults.add(Fault(match="ecs.RunTask", delay=10, when="after"))

        async with Runner(make_backend(), utcnow=clock.utcnow) as runner, anyio.create_task_group() as tasks:
            tasks.start_soon(runner.submit, job)
            await anyio.sleep(5)
            clock.advance(400)
            handle = await runner.submit(job)
            (task,) = aws.world.tasks.values()
            while task.desired_status == "RUNNING":
                await anyio.sleep(1)
            asked_at = clock.time()
            await handle.stop()

        assert asked_at == pytest.approx(600, abs=10)

    @pytest.mark.parametrize("answered", [True, False])
    async def test_does_not_call_lost_what_it_has_never_seen(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock, answered: bool
    ) -> None:
        """It launched it, and stood still until ECS had forgotten how it ended."""
        aws.faults.add(Fault(match="ecs.RunTask", delay=10, when="after"))

        async with Runner(make_backend(), utcnow=clock.utcnow) as runner, anyio.create_task_group() as tasks:
            tasks.start_soon(runner.submit, Words().exits().with_(key="k"))
            await anyio.sleep(11 if answered else 5)
            clock.advance(3 * 3600)
            result = await (await runner.submit(Words().exits().with_(key="k"))).wait()

        assert [attempt.outcome.kind for attempt in result.attempts] == [Kind.UNKNOWN]
        assert len(aws.world.truth()) == 1


class TestCredentialsThatExpire:
    @pytest.mark.parametrize("seconds", [60.0, 240.0, 800.0])
    async def test_do_not_make_a_stop_one_in_vain(
        self, make_backend: Make, aws: FakeAws, clock: VirtualClock, seconds: float
    ) -> None:
        """Chaos, seed 83."""
        job = waits()
        async with Runner(make_backend(), utcnow=clock.utcnow) as runner:
            handle = await runner.submit(job)
            await anyio.sleep(100)
            expired = Fault(times=math.inf, code="ExpiredTokenException", message="it is expired", status=403)
            aws.faults.add(expired)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(handle.stop)
                await anyio.sleep(seconds)
                aws.faults.clear()

        assert handle.result is not None
        assert handle.result.outcome.kind is Kind.CANCELLED
        assert [truth.status for truth in aws.world.truth()] == ["STOPPED"]
