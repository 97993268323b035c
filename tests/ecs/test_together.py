"""Identical jobs go out together: one RunTask for up to ten of them, and each has its own attempt and record."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import anyio
import pytest

from fargate_runner import EcsBackend, InvalidJob, Job, JobResult, JournalError, Kind, MemoryJournal, Retry, Runner
from fargate_runner._journal import Page
from fargate_runner.backends.ecs._watch import Cadence
from fargate_runner.testing.aws import ContainerRun, ContainerScript, FakeAws, Fault, Quotas, server_error
from fargate_runner.testing.clock import VirtualClock
from tests.contract.ecs_words import IMAGE
from tests.ecs import truths
from tests.ecs.conftest import NETWORK, ROLES
from tests.scenario.killed import Killed, Plug, PluggedJournal

T = TypeVar("T")


def script(container: ContainerRun) -> ContainerScript:
    match container.command[0]:
        case "fails-once":
            return ContainerScript(run_for=20.0, exit_code=int(container.environment["FARGATE_RUNNER_ATTEMPT"] == "1"))
        case "waits":
            return ContainerScript(run_for=math.inf)
        case word:
            return ContainerScript(run_for=20.0, lines=(word,))


class Account:
    def __init__(self, **options: Any) -> None:
        self.clock = VirtualClock()
        self.aws = FakeAws(clock=self.clock, script=script, clusters=("jobs",), **options)
        self.journal = MemoryJournal()

    def backend(self, **options: Any) -> EcsBackend:
        return EcsBackend(
            "jobs",
            network=NETWORK,
            roles=ROLES,
            session=self.aws.session(),
            region=self.aws.region,
            utcnow=self.clock.utcnow,
            cadence=Cadence(period=5.0),
            **options,
        )

    def runner(self, **options: Any) -> Runner:
        return Runner(self.backend(), utcnow=self.clock.utcnow, **options)

    def run(self, main: Callable[[], Awaitable[T]]) -> T:
        return anyio.run(main, backend_options={"loop_factory": self.clock.loop})

    @property
    def launches(self) -> list[int]:
        return [call.request["count"] for call in self.aws.calls.of("ecs.RunTask") if call.outcome == "ok"]


def job(word: str = "works", **changes: Any) -> Job:
    return Job(image=IMAGE, command=[word]).with_(**changes)


async def collected(account: Account, jobs: list[Job], **options: Any) -> list[JobResult]:
    async with account.runner() as runner:
        return [result async for result in runner.map(jobs, on_error="collect", **options)]


class TestIdenticalJobs:
    def test_are_launched_ten_at_a_time(self) -> None:
        account = Account()

        results = account.run(lambda: collected(account, [job() for _ in range(47)]))

        assert sorted(account.launches) == [7, 10, 10, 10, 10]
        assert {result.outcome.kind for result in results} == {Kind.SUCCEEDED}
        assert len({result.key for result in results}) == 47
        assert len({result.attempts[0].address for result in results}) == 47
        assert len(account.aws.world.tasks) == 47

    def test_that_differ_in_between_are_kept_apart(self) -> None:
        account = Account()
        jobs = [*[job("a")] * 3, *[job("b")] * 4, job("a"), job("a", key="mine"), job("a")]

        results = account.run(lambda: collected(account, jobs))

        assert sorted(account.launches) == [1, 1, 1, 3, 4]
        assert [result.last_lines[0].text for result in results] == [*"aaabbbbaaa"]

    def test_of_an_async_iterable_are_not_waited_for(self) -> None:
        account = Account()

        async def jobs() -> AsyncIterator[Job]:
            for _ in range(3):
                await anyio.sleep(1)
                yield job()

        async def main() -> list[JobResult]:
            async with account.runner() as runner:
                return [result async for result in runner.map(jobs())]

        assert len(account.run(main)) == 3
        assert account.launches == [1, 1, 1]

    @pytest.mark.parametrize("options", [{"concurrency": 3}, {"max_vcpu": 0.75}])
    def test_are_never_more_than_there_is_room_for(self, options: dict[str, Any]) -> None:
        account = Account()

        account.run(lambda: collected(account, [job() for _ in range(9)], **options))

        assert max(account.launches) <= 3
        assert sum(account.launches) == 9

    def test_are_retried_each_by_itself(self) -> None:
        account = Account()
        jobs = [job("fails-once", retry=Retry(failures=1)) for _ in range(5)]

        results = account.run(lambda: collected(account, jobs))

        assert account.launches == [5, 1, 1, 1, 1, 1]
        assert [len(result.attempts) for result in results] == [2] * 5
        environments = [c.run.environment for t in account.aws.world.tasks.values() for c in t.containers]
        assert len({environment["FARGATE_RUNNER_KEY"] for environment in environments}) == 1

    def test_that_found_no_room_are_placed_each_by_itself(self) -> None:
        account = Account()
        account.aws.world.capacity.out("FARGATE", times=3)

        results = account.run(lambda: collected(account, [job() for _ in range(10)]))

        assert {result.outcome.kind for result in results} == {Kind.SUCCEEDED}
        assert len(account.aws.world.tasks) == 10
        assert account.launches == [10, 1, 1, 1]

    def test_wait_for_each_other_under_a_vcpu_quota(self) -> None:
        account = Account(quotas=Quotas.published(vcpus=6))
        jobs = [job(vcpu=1, memory_gib=2) for _ in range(40)]

        results = account.run(lambda: collected(account, jobs))

        assert {result.outcome.kind for result in results} == {Kind.SUCCEEDED}
        assert account.aws.calls.operations["ecs.RunTask"] <= 3 * 40

    @pytest.mark.parametrize("fault", [Fault(cut=True, when="after"), server_error(when="after"), Fault(cut=True)])
    def test_are_launched_once_if_the_answer_is_lost(self, fault: Fault) -> None:
        account = Account()
        fault.match = "ecs.RunTask"
        fault.times = 1
        account.aws.faults.add(fault)

        results = account.run(lambda: collected(account, [job() for _ in range(10)]))

        assert {result.outcome.kind for result in results} == {Kind.SUCCEEDED}
        assert len(account.aws.world.tasks) == 10

    def test_can_be_stopped_one_by_one(self) -> None:
        account = Account()

        async def main() -> list[JobResult]:
            async with account.runner() as runner:
                batch = runner.map([job("waits") for _ in range(4)], max_failures=0)
                await anyio.sleep(100)
                first = next(iter(runner._lives))
                await (await runner.attach(first.key)).stop("enough")
                return [result async for result in batch]

        results = account.run(main)

        assert len(results) == 4
        assert {result.outcome.kind for result in results} == {Kind.CANCELLED}
        assert truths.alive(account.aws) == []

    def test_have_keys_that_nobody_else_can_give(self) -> None:
        account = Account()
        results = account.run(lambda: collected(account, [job(), job()]))

        with pytest.raises(InvalidJob, match="made by a runner"):
            job(key=results[0].key)


async def until_it_dies(account: Account, plug: Plug, count: int) -> None:
    """Launch identical jobs, and die at a step."""
    runner = Runner(account.backend(), journal=PluggedJournal(account.journal, plug), utcnow=account.clock.utcnow)
    try:
        async with runner:
            async for _ in runner.map([job() for _ in range(count)]):
                pass
    except BaseException as exc:
        if not _is_death(exc):
            raise


def _is_death(exc: BaseException) -> bool:
    if isinstance(exc, BaseExceptionGroup):
        return all(map(_is_death, exc.exceptions))
    return isinstance(exc, Killed)


@pytest.mark.parametrize("at", range(1, 40))
def test_killed_at_any_write_none_is_launched_twice_and_none_forgotten(at: int) -> None:
    account = Account()

    async def main() -> list[JobResult]:
        await until_it_dies(account, Plug(at), 6)
        await anyio.sleep(60)
        written = list(account.journal._pages)
        async with account.runner(journal=account.journal) as runner:
            for handle in await runner.recover():
                await handle.wait()
            return [await (await runner.attach(key)).wait() for key in written]

    results = account.run(main)

    assert {result.outcome.kind for result in results} <= {Kind.SUCCEEDED}
    assert truths.alive(account.aws) == []
    addresses = [attempt.address for result in results for attempt in result.attempts]
    assert sorted(addresses) == sorted(account.aws.world.tasks)  # type: ignore[type-var]


class TroubledJournal(MemoryJournal):
    """One of its writes seems to fail, and does not."""

    def __init__(self, at: int, *, retryable: bool) -> None:
        super().__init__()
        self.left = at
        self.retryable = retryable

    async def write(self, page: Page) -> Page:
        written = await super().write(page)
        self.left -= 1
        if self.left == 0:
            raise JournalError("nobody knows whether it was written", journal="troubled", retryable=self.retryable)
        return written


@pytest.mark.parametrize("retryable", [True, False])
@pytest.mark.parametrize("at", range(1, 20))
def test_whichever_write_seems_to_fail_none_is_launched_twice(at: int, retryable: bool) -> None:
    """Chaos, seed 2: the call was made for all, and each was launched by itself besides."""
    account, journal = Account(), TroubledJournal(at, retryable=retryable)

    async def main() -> list[JobResult]:
        with suppress(JournalError):
            async with account.runner(journal=journal) as runner:
                [_ async for _ in runner.map([job() for _ in range(6)], on_error="collect")]
        written = list(journal._pages)
        async with account.runner(journal=journal) as runner:
            for handle in await runner.recover():
                await handle.wait()
            return [await (await runner.attach(key)).wait() for key in written]

    results = account.run(main)

    assert truths.alive(account.aws) == []
    addresses = [attempt.address for result in results for attempt in result.attempts if attempt.address]
    assert sorted(addresses) == sorted(account.aws.world.tasks)
    assert len(account.aws.world.tasks) <= 6


class HeldJournal(MemoryJournal):
    """The first launch that is to be written on the first one's page is held up until somebody lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.is_held, self.goes_on = anyio.Event(), anyio.Event()

    async def write(self, page: Page) -> Page:
        if page.launch is not None and ".0of" in page.key and not self.is_held.is_set():
            self.is_held.set()
            await self.goes_on.wait()
        return await super().write(page)


@pytest.mark.parametrize("recovered", ["all", "one"])
def test_who_stood_still_before_the_call_does_not_make_it_any_more(recovered: str) -> None:
    """Chaos, seed 2159: the others had been launched each by itself, and then all of them by one call."""
    account, journal = Account(), HeldJournal()
    results: list[JobResult] = []

    async def stands_still() -> None:
        async with account.runner(journal=journal) as runner:
            results.extend([result async for result in runner.map([job() for _ in range(6)], on_error="collect")])

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stands_still)
            await journal.is_held.wait()
            async with account.runner(journal=journal) as runner:
                key = next(key for key in journal._pages if ".3of" in key)
                handles = await runner.recover() if recovered == "all" else [await runner.attach(key)]
                for handle in handles:
                    await handle.wait()
            journal.goes_on.set()

    account.run(main)

    assert {result.outcome.kind for result in results} == {Kind.SUCCEEDED}
    assert len(results) == 6
    addresses = [attempt.address for result in results for attempt in result.attempts]
    assert sorted(addresses) == sorted(account.aws.world.tasks)  # type: ignore[type-var]


def test_found_again_each_is_the_one_it_was() -> None:
    account = Account()

    async def main() -> tuple[dict[str, str], dict[str, str]]:
        async with account.runner(on_exit="detach") as runner:
            batch = runner.map([job() for _ in range(5)])
            await anyio.sleep(30)
            assert batch.under_way == 5
            before = {live.key: live.refs[0].address for live in runner._lives}
        after: dict[str, str] = {}
        async with account.runner() as runner:
            for key in before:
                result = await (await runner.attach(key)).wait()
                after[key] = result.attempts[0].address or ""
        return before, after

    before, after = account.run(main)

    assert len(set(before.values())) == 5
    assert after == before


@pytest.mark.parametrize("skew", [timedelta(hours=-24), timedelta(hours=24)])
def test_how_old_a_launch_is_tells_aws_and_not_the_clock_of_whoever_finds_it(skew: timedelta) -> None:
    account = Account()

    async def main() -> tuple[int, JobResult]:
        await until_it_dies(account, Plug(4), 1)
        page = next(iter(account.journal._pages.values()))
        assert page.launch is not None
        assert page.ref is None
        backend = account.backend()
        backend._utcnow = lambda: account.clock.utcnow() + skew
        async with Runner(backend, journal=account.journal, utcnow=account.clock.utcnow) as runner:
            (handle,) = await runner.recover()
            return account.aws.calls.operations["ecs.RunTask"], await handle.wait()

    _, result = account.run(main)

    assert result.outcome.kind is Kind.SUCCEEDED
    assert len(account.aws.world.tasks) == 1
