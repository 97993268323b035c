"""How jobs are counted while they run, and what of it is shown: in virtual time."""

from __future__ import annotations

import io
import itertools
import random
import warnings
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import anyio
import pytest

from fargate_runner import Attempt, InvalidJob, Job, JobFailed, JobResult, Kind, MemoryJournal, Outcome, Proof, Retry
from fargate_runner.backends.memory import Script
from fargate_runner.progress import Mode, Progress, Standing, Tally, told
from fargate_runner.reports.cost import cost
from fargate_runner.telemetry import AttemptEnded, AttemptSeen, Event, JobAccepted, JobEnded, JobQueued, RetryScheduled
from tests.scenario.world import World, fixed, job, seconds

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def lively(seed: int) -> Any:
    """Jobs of every sort, by chance."""
    chance = random.Random(seed)

    def script(job: Job, identity: object) -> Script:
        return Script(
            start_after=chance.choice([0, 3, 20]),
            run_for=chance.expovariate(1 / 60),
            exit_code=chance.choice([0, 0, 0, 0, 1]),
            lines=("working", "!that was all"),
        )

    return script


async def finish(world: World, jobs: Any, **options: Any) -> None:
    async with world.runner(**options) as runner:
        async for _ in runner.map(jobs, concurrency=20, as_completed=True, on_error="collect"):
            pass


class TestTally:
    @pytest.mark.parametrize("seed", range(5))
    async def test_at_every_moment_each_job_is_counted_once(self, world: World, seed: int) -> None:
        tally = Tally(200, clock=lambda: world.now)
        standings: list[Standing] = []

        def watch(event: Event) -> None:
            standings.append(tally.standing())

        jobs = (job("x", retry=Retry(failures=n % 3, wait=fixed(5))) for n in range(200))
        await finish(world, jobs, script=lively(seed), observers=[tally, watch])

        sums = {s.queued + s.starting + s.running + s.stopping + s.done for s in standings}
        assert sums == {200}
        assert min(min(s.queued, s.starting, s.running, s.stopping) for s in standings) == 0
        assert [s.done for s in standings] == sorted(s.done for s in standings)
        assert max(s.starting + s.running + s.stopping for s in standings) <= 20

    @pytest.mark.parametrize("seed", range(5))
    async def test_in_the_end_it_has_counted_what_the_records_say(self, world: World, seed: int) -> None:
        tally = Tally(clock=lambda: world.now)
        jobs = (job("x", retry=Retry(failures=n % 3, wait=fixed(5))) for n in range(200))
        await finish(world, jobs, script=lively(seed), observers=[tally])

        results = [event.result for event in world.told(JobEnded)]
        standing = tally.standing()
        assert (standing.done, standing.succeeded) == (200, sum(result.succeeded for result in results))
        assert sum(standing.outcomes.values()) == 200
        assert standing.retries == sum(len(result.attempts) - 1 for result in results)
        assert (standing.queued, standing.starting, standing.running, standing.stopping) == (0, 0, 0, 0)
        assert standing.cost is None
        assert (tally._stages, tally._under_way) == ([0, 0, 0, 0], {})
        assert abs(tally._since_sum) < 1e-6

    async def test_a_job_goes_through_its_stages(self, world: World) -> None:
        tally = Tally(3, clock=lambda: world.now)
        seen: list[tuple[str, int, int, int, int, int]] = []

        def watch(event: Event) -> None:
            s = tally.standing()
            seen.append((event.title, s.queued, s.starting, s.running, s.stopping, s.done))

        async with world.runner(observers=[tally, watch]) as runner:
            await runner.run(job("failing", "quick", retry=Retry(failures=1, wait=fixed(5))))

        assert seen == [
            ("job.queued", 3, 0, 0, 0, 0),
            ("job.accepted", 3, 0, 0, 0, 0),
            ("attempt.launched", 2, 1, 0, 0, 0),
            ("attempt.seen", 2, 1, 0, 0, 0),
            ("attempt.phase_reached", 2, 1, 0, 0, 0),
            ("attempt.phase_reached", 2, 0, 1, 0, 0),
            ("attempt.phase_reached", 2, 0, 0, 1, 0),
            ("attempt.ended", 2, 0, 0, 1, 0),
            ("retry.scheduled", 3, 0, 0, 0, 0),
            ("attempt.launched", 2, 1, 0, 0, 0),
            ("attempt.seen", 2, 1, 0, 0, 0),
            ("attempt.phase_reached", 2, 1, 0, 0, 0),
            ("attempt.phase_reached", 2, 0, 1, 0, 0),
            ("attempt.phase_reached", 2, 0, 0, 1, 0),
            ("attempt.ended", 2, 0, 0, 1, 0),
            ("job.ended", 2, 0, 0, 0, 1),
        ]

    async def test_jobs_that_are_remembered_refused_or_let_go_are_told_apart(self, world: World) -> None:
        journal = MemoryJournal()
        async with world.runner(journal=journal) as runner:
            await runner.run(job("quick", key="known"))

        def script(job: Job, identity: Any) -> Script:
            if identity.key == "impossible":
                raise InvalidJob("image", "x", "not for this platform", "choose another")
            return Script(run_for=1000)

        tally = Tally(clock=lambda: world.now)
        async with world.runner(script=script, journal=journal, observers=[tally], on_exit="detach") as runner:
            await runner.run(job("quick", key="known"))
            with pytest.raises(InvalidJob):
                await runner.run(job("quick", key="impossible"))
            await runner.submit(job("quick", key="long"))

        standing = tally.standing()
        assert (standing.done, standing.remembered, standing.refused, standing.detached) == (2, 1, 1, 1)
        assert standing.outcomes == {Kind.SUCCEEDED: 1}
        assert [(failure.key, failure.kind) for failure in standing.failures] == [("impossible", None)]

    async def test_jobs_that_are_met_by_their_key_are_counted(self, world: World) -> None:
        async with world.runner(on_exit="detach") as runner:
            await runner.submit(job("quick", key="k"))
        tally = Tally(clock=lambda: world.now)

        async with world.runner(observers=[tally]) as runner:
            await (await runner.attach("k")).wait()

        assert (tally.standing().done, tally.standing().succeeded) == (1, 1)

    async def test_the_last_failures_are_kept_with_reason_and_last_line(self, world: World) -> None:
        tally = Tally(clock=lambda: world.now)

        def script(job: Job, identity: object) -> Script:
            return Script(run_for=1, exit_code=3, lines=("one", "x" * 20_000))

        async with world.runner(script=script, observers=[tally]) as runner:
            async for _ in runner.map((job("x", name=f"n{n}") for n in range(30)), on_error="collect", concurrency=1):
                pass

        failures = tally.standing().failures
        assert [failure.job for failure in failures] == [f"n{n}" for n in range(20, 30)]
        assert {failure.reason for failure in failures} == {"exit code 3"}
        assert {failure.last_line for failure in failures} == {"x" * 1000}

    async def test_a_job_that_was_cancelled_is_counted_and_is_no_failure(self, world: World) -> None:
        tally = Tally(clock=lambda: world.now)

        async with world.runner(observers=[tally]) as runner:
            await (await runner.submit(job("endless"))).stop()

        assert tally.standing().outcomes == {Kind.CANCELLED: 1}
        assert tally.standing().failures == ()

    @pytest.mark.parametrize("total", [-1, True, 1.5, "7"])
    def test_a_total_is_a_number_of_jobs(self, total: Any) -> None:
        with pytest.raises(ValueError, match="total="):
            Tally(total)


class TestRateAndWhatIsLeft:
    async def test_jobs_of_a_kind_are_foretold_well(self, world: World) -> None:
        """1000 jobs of 100 s, twenty at a time: 5000 s; none is told before the first twenty have ended."""
        tally = Tally(1000, clock=lambda: world.now)
        told: list[tuple[float, float]] = []
        early: list[Any] = []

        def watch(event: Event) -> None:
            standing = tally.standing()
            if standing.done < 20:
                early.append(standing.eta)
            elif standing.done < 1000 and standing.eta is not None:
                told.append((world.now, world.now + standing.eta.total_seconds()))

        def script(job: Job, identity: object) -> Script:
            return Script(run_for=100)

        await finish(world, (job("x") for _ in range(1000)), script=script, observers=[tally, watch])

        assert set(early) == {None}
        assert all(4900 <= end <= 5100 for _, end in told)
        assert tally.standing().eta is None

    @pytest.mark.parametrize("seed", range(5))
    async def test_jobs_of_all_lengths_are_foretold_within_a_third_once_half_are_done(
        self, world: World, seed: int
    ) -> None:
        chance = random.Random(seed)
        tally = Tally(400, clock=lambda: world.now)
        told: list[float] = []

        def watch(event: Event) -> None:
            standing = tally.standing()
            if standing.eta is not None and 200 <= standing.done < 360:
                told.append(world.now + standing.eta.total_seconds())

        def script(job: Job, identity: object) -> Script:
            return Script(run_for=chance.uniform(1, 200))

        await finish(world, (job("x") for _ in range(400)), script=script, observers=[tally, watch])

        assert told
        assert all(world.now / 1.34 <= end <= world.now * 1.34 for end in told)

    async def test_nothing_is_foretold_while_only_the_short_ones_have_ended(self, world: World) -> None:
        tally = Tally(20, clock=lambda: world.now)

        def script(job: Job, identity: object) -> Script:
            return Script(run_for=float(job.name.removeprefix("n")))

        told: list[tuple[int, timedelta | None]] = []
        jobs = [job("x", name=f"n{10 * n}") for n in range(1, 21)]
        await finish(
            world,
            jobs,
            script=script,
            observers=[tally, lambda event: told.append((tally.standing().done, tally.standing().eta))],
        )

        assert {eta for done, eta in told if done < 10} == {None}
        assert all(eta is not None for done, eta in told if 10 <= done < 20)

    async def test_without_a_total_nothing_is_foretold(self, world: World) -> None:
        tally = Tally(clock=lambda: world.now)
        told = []
        await finish(
            world, (job("quick") for _ in range(50)), observers=[tally, lambda e: told.append(tally.standing().eta)]
        )

        assert set(told) == {None}

    async def test_the_rate_is_that_of_the_last_while(self, world: World) -> None:
        """Twenty jobs at a time: 100 of 60 s, then 100 of 6 s."""
        tally = Tally(clock=lambda: world.now)
        rates: list[float | None] = []

        def script(job: Job, identity: object) -> Script:
            return Script(run_for=60 if job.name == "slow" else 6)

        jobs = [job("x", name="slow")] * 100 + [job("x", name="fast")] * 400
        await finish(world, jobs, script=script, observers=[tally, lambda event: rates.append(tally.standing().rate)])

        assert rates[0] is None
        assert rates[-1] == pytest.approx(200, rel=0.1)


def arn(number: int) -> str:
    return f"arn:aws:ecs:us-east-1:123456789012:task/c/{number:032x}"


class TestCost:
    """The events of jobs on AWS, told by hand."""

    WHO: Any = {"key": "k", "job": "n"}  # noqa: RUF012

    def record(self, *spans: float) -> JobResult:
        outcome = Outcome(kind=Kind.SUCCEEDED, detail="", exit_code=0, proof=Proof(source="test", seen_at=NOW))
        attempts = tuple(
            Attempt(
                number=number,
                token="t",
                address=arn(number),
                outcome=outcome,
                vcpu=1,
                memory_gib=2,
                capacity="FARGATE_SPOT",
                created_at=NOW,
                ended_at=NOW + timedelta(seconds=span),
            )
            for number, span in enumerate(spans, 1)
        )
        return JobResult(key="k", name="n", attempts=attempts, accepted_at=NOW, ended_at=NOW)

    def seen(self, attempt: int, age: float = 0, key: str = "k") -> AttemptSeen:
        size: Any = {"vcpu": 1, "memory_gib": 2, "capacity": "FARGATE_SPOT"}
        return AttemptSeen(key=key, job="n", attempt=attempt, address=arn(attempt), age=age, **size)

    def test_it_grows_while_jobs_run_and_ends_at_what_the_record_says(self) -> None:
        now = 0.0
        tally = Tally(clock=lambda: now)
        record = self.record(3600, 7200)

        def spent() -> float:
            so_far = tally.standing().cost
            assert so_far is not None
            return so_far.usd

        for event in (JobQueued(**self.WHO), JobAccepted(**self.WHO)):
            tally(event)
        assert tally.standing().cost is None
        tally(self.seen(1))
        now = 1800
        assert spent() == pytest.approx(0.04937 / 2)
        now = 3600
        tally(AttemptEnded(**self.WHO, attempt=1, outcome=record.outcome))
        tally(RetryScheduled(**self.WHO, attempt=2, wait=600, why="w"))
        now = 4200
        assert spent() == pytest.approx(0.04937)
        tally(self.seen(2))
        now = 4200 + 7200
        assert spent() == pytest.approx(3 * 0.04937)
        tally(AttemptEnded(**self.WHO, attempt=2, outcome=record.outcome))
        tally(JobEnded(**self.WHO, result=record))
        now = 1e6
        assert tally.standing().cost == cost(record)
        assert (cost(record).spot, cost(record).usd) == (2, pytest.approx(3 * 0.04937))

    def test_an_attempt_that_was_met_has_cost_something_already(self) -> None:
        tally = Tally(clock=lambda: 5.0)

        tally(JobAccepted(**self.WHO, adopted=True))
        tally(self.seen(1, age=3600))

        so_far = tally.standing().cost
        assert so_far is not None
        assert so_far.usd == pytest.approx(0.04937)

    def test_what_ran_while_nobody_listened_is_counted_from_the_record(self) -> None:
        tally = Tally(clock=lambda: 5.0)
        tally(JobAccepted(**self.WHO, adopted=True))
        tally(self.seen(2))
        tally(JobEnded(**self.WHO, result=self.record(3600, 60)))

        assert tally.standing().cost == cost(self.record(3600, 60))


async def shown(world: World, jobs: Any, *, total: int | None = None, **options: Any) -> str:
    """What is shown in plain lines."""
    file = io.StringIO()
    async with Progress(total, mode="plain", file=file) as progress:
        await finish(world, jobs, observers=[progress], **options)
    return file.getvalue()


class TestPlainLines:
    async def test_a_batch_is_told_in_a_few_lines(self, world: World) -> None:
        def script(job: Job, identity: object) -> Script:
            number = int(job.name.removeprefix("resize-"))
            fails = number == 17
            return Script(
                start_after=2, run_for=10, exit_code=int(fails), lines=("KeyError: 'width'",) if fails else ()
            )

        jobs = [job("x", name=f"resize-{n}") for n in range(100)]

        assert await shown(world, jobs, total=100, script=script) == (
            "fargate-runner: 0/100 done; 80 queued, 20 running\n"
            "fargate-runner: resize-17 failed: exit code 1 | KeyError: 'width'\n"
            "fargate-runner: 20/100 done, 1 failed; 60 queued, 20 running; 60/min, about 40s left\n"
            "fargate-runner: 40/100 done, 1 failed; 40 queued, 20 running; 80/min, about 30s left\n"
            "fargate-runner: 60/100 done, 1 failed; 20 queued, 20 running; 90/min, about 20s left\n"
            "fargate-runner: 80/100 done, 1 failed; 20 starting; 96/min, about 10s left\n"
            "fargate-runner: 80/100 done, 1 failed; 20 running; 80/min, about 0s left\n"
            "fargate-runner: 100 jobs done in 1m 00s: 99 succeeded, 1 failed\n"
        )

    async def test_a_night_of_it_can_still_be_read(self, world: World) -> None:
        text = await shown(world, (job("quick") for _ in range(8000)), total=8000)

        assert world.now > 7 * 3600
        assert text.count("\n") < 600

    async def test_without_jobs_there_is_nothing_to_tell(self, world: World) -> None:
        assert await shown(world, []) == ""

    async def test_it_tells_the_end_whatever_ends_it(self, world: World) -> None:
        file = io.StringIO()

        with pytest.raises(JobFailed):
            async with Progress(3, mode="plain", file=file) as progress, world.runner(observers=[progress]) as runner:
                await runner.run(job("failing"))

        assert file.getvalue().splitlines()[-2:] == [
            "fargate-runner: job failed: exit code 3",
            "fargate-runner: 1 of 3 jobs done in 1m 10s: 1 failed",
        ]

    async def test_a_cancelled_block_ends_at_once_and_tells_how_far_it_came(self, world: World) -> None:
        file = io.StringIO()

        with anyio.move_on_after(100) as scope:
            async with Progress(5, mode="plain", file=file) as progress:
                await finish(world, (job("endless") for _ in range(5)), observers=[progress])

        assert scope.cancelled_caught
        assert file.getvalue().endswith("fargate-runner: 5 jobs done in 1m 40s: 5 cancelled\n")

    async def test_an_error_of_the_block_is_not_wrapped(self) -> None:
        with pytest.raises(ZeroDivisionError):
            async with Progress(mode="none"):
                raise ZeroDivisionError


HOSTILE = [
    "\x1b[2J\x1b[H",
    "\x1b]0;title\x07",
    "\x1b]8;;file:///etc/passwd\x1b\\click\x1b]8;;\x1b\\",
    "\x9b2J",
    "\x9d0;t\x9c",
    "\u202egnp.exe",
    "\u2066x\u2069",
    "\r\rover",
    "a\nb\x0bc\x0cd\x85e\u2028f",
    "[red]markup[/red] [link=file:///x]y[/link]",
    "\x00\x07\x08\x7f",
    "\U000e0041\u200b",
    "x" * 10_000,
    "\x1b[31m" * 3000,
    "\ud800",
    "::error::x",
]


class TestForeignText:
    @pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:30])
    def test_a_failure_is_one_line_without_a_control_character(self, text: str) -> None:
        tally = Tally(clock=lambda: 0.0)
        outcome = Outcome(kind=Kind.FAILED, detail=text, proof=Proof(source="test", seen_at=NOW))
        record = TestCost().record(1).attempts[0]
        failed = Attempt(
            **{name: getattr(record, name) for name in ("number", "token", "address", "vcpu", "memory_gib")},
            outcome=outcome,
            created_at=NOW,
            ended_at=NOW,
        )
        tally(
            JobEnded(
                key=text,
                job=text,
                result=JobResult(key=text, name=text, attempts=(failed,), accepted_at=NOW, ended_at=NOW),
            )
        )

        line = told(tally.standing().failures[0])

        assert line.isprintable()
        assert len(line) < 500

    async def test_a_ci_system_finds_no_command_in_it(self, world: World) -> None:
        def script(job: Job, identity: object) -> Script:
            return Script(exit_code=1, lines=("##[error]x",))

        assert "##[" not in await shown(world, [job("x")], script=script)


class TestModes:
    @pytest.mark.parametrize("mode", ["auto", "plain", "none"])
    def test_the_environment_speaks_where_the_program_does_not(
        self, mode: Mode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FARGATE_RUNNER_PROGRESS", "live")

        assert Progress(mode=mode)._mode == ("live" if mode == "auto" else mode)

    @pytest.mark.parametrize("wrong", ["loud", "LIVE"])
    def test_a_mode_that_there_is_not_is_refused(self, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ValueError, match="use one of auto, live, plain, none"):
            Progress(mode=wrong)
        monkeypatch.setenv("FARGATE_RUNNER_PROGRESS", wrong)
        with pytest.raises(ValueError, match="FARGATE_RUNNER_PROGRESS="):
            Progress()

    async def test_none_shows_nothing(self, world: World, capfd: pytest.CaptureFixture[str]) -> None:
        async with Progress(mode="none") as progress:
            await finish(world, [job("failing")], observers=[progress])

        assert capfd.readouterr() == ("", "")
        assert progress.standing.done == 1

    async def test_live_is_plain_where_there_is_no_terminal(
        self, world: World, capfd: pytest.CaptureFixture[str]
    ) -> None:
        async with Progress(mode="live") as progress:
            await finish(world, [job("soon_failing")], observers=[progress])

        assert capfd.readouterr() == (
            "",
            "fargate-runner: job failed: exit code 3\nfargate-runner: 1 job done in 5s: 1 failed\n",
        )

    async def test_a_stream_that_was_closed_harms_nothing(self, world: World) -> None:
        file = io.StringIO()
        async with Progress(mode="plain", file=file) as progress:
            file.close()
            await finish(world, [job("failing")], observers=[progress])

        assert progress.standing.done == 1


class TestListener:
    async def test_it_gets_frozen_standings_now_and_then_and_the_last(self, world: World) -> None:
        got: list[tuple[float, Standing]] = []

        async with Progress(50, mode="none", listener=lambda standing: got.append((world.now, standing))) as progress:
            await finish(world, (job("quick") for _ in range(50)), observers=[progress])

        times = [at for at, _ in got]
        assert min(b - a for a, b in itertools.pairwise(times[:-1])) >= 0.25
        assert (got[0][1].done, got[-1][1].done, got[-1][1].queued) == (0, 50, 0)
        with pytest.raises(AttributeError):
            cast("Any", got[-1][1]).done = 0

    @pytest.mark.parametrize("action", ["ignore", "error"])
    async def test_one_that_raises_is_dropped_and_no_job_is_harmed(self, world: World, action: Any) -> None:
        def broken(standing: Standing) -> None:
            raise ZeroDivisionError

        with warnings.catch_warnings():
            warnings.simplefilter(action)
            async with Progress(mode="none", listener=broken) as progress:
                await finish(world, [job("quick", timeout=seconds(100))], observers=[progress])

        assert progress.standing.succeeded == 1
