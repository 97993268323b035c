"""
Backends that break the contract, one promise each: every test of the contract must turn red for one of them.

`python -m tests.contract.saboteurs` runs each of them against the tests that should notice, and prints what did not.
`test_contract_can_fail.py` does so in every run.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, TypeVar

import anyio
import attrs
import pytest

from fargate_runner import (
    Backend,
    Cause,
    Identity,
    Job,
    Launch,
    LogLine,
    MemoryBackend,
    Phase,
    Secret,
    Snapshot,
    TaskRef,
)
from fargate_runner.backends.memory import MemoryPlatform
from fargate_runner.testing.clock import VirtualClock
from fargate_runner.testing.contract import BackendContract, Vocabulary
from tests.contract.test_memory import Words, script

RED: dict[type[MemoryBackend], tuple[str, ...]] = {}
"""Which tests each saboteur must turn red; the names are without ``test_``."""


_T = TypeVar("_T", bound=type[MemoryBackend])


def breaks(*tests: str) -> Callable[[_T], _T]:
    def note(saboteur: _T) -> _T:
        RED[saboteur] = tests
        return saboteur

    return note


@breaks("preparing_starts_nothing")
class StartsTooEarly(MemoryBackend):
    async def prepare(self, job: Job, identity: Identity) -> Launch:
        launch = await super().prepare(job, identity)
        await self.submit(launch)
        return launch


@breaks("preparing_again_gives_the_same_launch")
class NeverTheSame(MemoryBackend):
    count = 0

    async def prepare(self, job: Job, identity: Identity) -> Launch:
        self.count += 1
        launch = await super().prepare(job, identity)
        return attrs.evolve(launch, description={**launch.description, "count": self.count})


@breaks("another_launch_has_another_token")
class OneToken(MemoryBackend):
    async def prepare(self, job: Job, identity: Identity) -> Launch:
        return attrs.evolve(await super().prepare(job, identity), token="token")


@breaks("a_launch_survives_as_text", "the_exit_code_is_told", "a_failed_run_raises_with_the_record")
class AlwaysWell(MemoryBackend):
    async def submit(self, launch: Launch) -> TaskRef:
        return await super().submit(attrs.evolve(launch, request={**launch.request, "exit_code": 0}))


@breaks("a_failing_job_gets_its_extra_attempts", "a_map_collects_failures_when_asked")
class AlwaysWellToo(AlwaysWell):
    pass


@breaks("a_secret_is_not_in_the_launch")
class Talker(MemoryBackend):
    async def prepare(self, job: Job, identity: Identity) -> Launch:
        launch = await super().prepare(job, identity)
        told = {name: secret.reveal() for name, secret in job.secrets.items() if isinstance(secret, Secret)}
        return attrs.evolve(launch, request={**launch.request, "env": {**launch.request["env"], **told}})


@breaks("a_secret_reaches_the_job")
class KeepsSecrets(MemoryBackend):
    async def submit(self, launch: Launch) -> TaskRef:
        return await super().submit(attrs.evolve(launch, secrets={}))


@breaks("a_variable_reaches_the_job_unchanged", "a_job_knows_which_attempt_it_is")
class TidiesVariables(MemoryBackend):
    async def submit(self, launch: Launch) -> TaskRef:
        env = {name: f"{value.strip()}." for name, value in launch.request["env"].items()}
        return await super().submit(attrs.evolve(launch, request={**launch.request, "env": env}))


@breaks("a_ref_names_its_launch", "a_line_says_whose_it_is")
class MixesUpAttempts(MemoryBackend):
    async def submit(self, launch: Launch) -> TaskRef:
        return attrs.evolve(await super().submit(launch), attempt=99)

    async def logs(self, ref: TaskRef, *, follow: bool, tail: int | None = None) -> AsyncGenerator[LogLine]:
        async for line in super().logs(ref, follow=follow, tail=tail):
            yield attrs.evolve(line, attempt=99)


@breaks(
    "submitting_again_starts_nothing_new",
    "submitting_at_the_same_time_starts_one",
    "an_ended_launch_is_met_and_not_run_again",
    "a_token_starts_no_other_job",
)
class ForgetsTokens(MemoryBackend):
    count = 0

    async def submit(self, launch: Launch) -> TaskRef:
        ForgetsTokens.count += 1
        return await super().submit(attrs.evolve(launch, token=f"{launch.token}/{ForgetsTokens.count}"))


@breaks("a_key_names_one_job_for_ever")
class DescribesNothing(MemoryBackend):
    async def prepare(self, job: Job, identity: Identity) -> Launch:
        raise ZeroDivisionError


@breaks("a_cancelled_submit_leaves_nothing_that_find_does_not_tell", "a_forgotten_attempt_is_gone")
class Hoards(MemoryBackend):
    async def forget(self, ref: TaskRef) -> None:
        await anyio.lowlevel.checkpoint()


@breaks("nothing_is_left_after_a_run")
class HoardsToo(Hoards):
    pass


@breaks("observing_for_the_first_time_returns_at_once", "a_stopped_job_says_so")
class SeesOnlyTheEnd(MemoryBackend):
    async def observe(self, ref: TaskRef, *, after: Snapshot | None = None) -> Snapshot:
        snapshot = await super().observe(ref, after=after)
        while not snapshot.ended:
            with anyio.fail_after(10**6):
                snapshot = await super().observe(ref, after=snapshot)
        return attrs.evolve(snapshot, cause=Cause.EXITED)


@breaks("an_end_carries_a_proof", "an_end_is_for_ever", "all_observers_see_the_same_end")
class NewStory(MemoryBackend):
    told = 0

    async def observe(self, ref: TaskRef, *, after: Snapshot | None = None) -> Snapshot:
        snapshot = await super().observe(ref, after=after)
        if snapshot.proof is None:
            return snapshot
        NewStory.told += 1
        naive = snapshot.proof.seen_at.replace(tzinfo=None)
        return attrs.evolve(snapshot, proof=attrs.evolve(snapshot.proof, seen_at=naive), reason=str(NewStory.told))


@breaks("phases_never_go_back")
class GoesBack(MemoryBackend):
    went_back = False

    async def observe(self, ref: TaskRef, *, after: Snapshot | None = None) -> Snapshot:
        if after is not None and after.phase is Phase.RUNNING and not self.went_back:
            self.went_back = True
            return Snapshot(phase=Phase.PENDING)
        return await super().observe(ref, after=after)


@breaks("observing_can_be_cancelled_and_called_again", "a_follower_can_be_cancelled")
class SulksWhenCancelled(MemoryBackend):
    sulking = False

    async def observe(self, ref: TaskRef, *, after: Snapshot | None = None) -> Snapshot:
        if self.sulking:
            raise RuntimeError("no")
        try:
            return await super().observe(ref, after=after)
        except anyio.get_cancelled_exc_class():
            self.sulking = True
            raise

    async def logs(self, ref: TaskRef, *, follow: bool, tail: int | None = None) -> AsyncGenerator[LogLine]:
        if self.sulking:
            raise RuntimeError("no")
        try:
            async for line in super().logs(ref, follow=follow, tail=tail):
                yield line
                await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class():
            self.sulking = True
            raise


@breaks("times_are_in_order", "what_cannot_start_never_ran", "what_cannot_start_says_why_and_what_to_try")
class Backwards(MemoryBackend):
    async def observe(self, ref: TaskRef, *, after: Snapshot | None = None) -> Snapshot:
        snapshot = await super().observe(ref, after=after)
        if not snapshot.ended or snapshot.created_at is None:
            return snapshot
        before = snapshot.created_at - timedelta(days=1)
        return attrs.evolve(snapshot, started_at=before, reason="", transient=True)


@breaks("what_cannot_start_is_tried_once")
class Hopeful(Backwards):
    pass


@breaks("an_unknown_attempt_has_vanished", "stopping_the_unknown_is_no_error", "forgetting_twice_is_no_error")
class Strict(MemoryBackend):
    def known(self, ref: TaskRef) -> None:
        if ref.address not in self.platform._runs:
            raise KeyError(ref.address)

    async def observe(self, ref: TaskRef, *, after: Snapshot | None = None) -> Snapshot:
        self.known(ref)
        return await super().observe(ref, after=after)

    async def stop(self, ref: TaskRef, *, reason: str) -> None:
        self.known(ref)
        await super().stop(ref, reason=reason)

    async def forget(self, ref: TaskRef) -> None:
        self.known(ref)
        await super().forget(ref)


@breaks("stopping_does_not_wait_for_the_end")
class StopsPatiently(MemoryBackend):
    async def stop(self, ref: TaskRef, *, reason: str) -> None:
        await super().stop(ref, reason=reason)
        await anyio.sleep(3600)


@breaks(
    "a_job_that_ignores_sigterm_is_killed",
    "a_stop_right_after_the_submit_wins",
    "a_job_that_runs_too_long_is_timed_out",
)
class CallsStopsExits(MemoryBackend):
    async def observe(self, ref: TaskRef, *, after: Snapshot | None = None) -> Snapshot:
        snapshot = await super().observe(ref, after=after)
        if snapshot.cause is not Cause.STOPPED_ON_REQUEST:
            return snapshot
        return attrs.evolve(snapshot, cause=Cause.EXITED, exit_code=0)


@breaks(
    "a_runner_cancelled_with_its_backend_stops_its_jobs",
    "leaving_the_runner_stops_its_jobs",
    "a_detached_job_is_met_again",
    "a_live_job_of_the_same_key_is_adopted",
)
class CallsStopsExitsToo(CallsStopsExits):
    pass


@breaks("stopping_twice_is_stopping_once")
class StopsOnce(MemoryBackend):
    async def stop(self, ref: TaskRef, *, reason: str) -> None:
        if self.platform._runs[ref.address].was_stopped:
            raise RuntimeError("I was told")
        await super().stop(ref, reason=reason)


@breaks("stopping_what_is_over_changes_nothing")
class RewritesHistory(MemoryBackend):
    async def stop(self, ref: TaskRef, *, reason: str) -> None:
        self.platform._runs[ref.address].stopped = self.platform._runs[ref.address].begun
        await anyio.lowlevel.checkpoint()


@breaks("stdout_and_stderr_are_kept_apart", "a_line_comes_out_as_it_went_in", "a_silent_job_has_no_lines")
class OneStream(MemoryBackend):
    async def logs(self, ref: TaskRef, *, follow: bool, tail: int | None = None) -> AsyncGenerator[LogLine]:
        async for line in super().logs(ref, follow=follow, tail=tail):
            yield attrs.evolve(line, stream="stdout", text=line.text.strip() + " ")
        yield LogLine(text="")


@breaks("what_never_ran_has_no_lines", "a_run_gives_the_record", "a_map_keeps_the_order_of_its_jobs")
class OneStreamToo(OneStream):
    async def logs(self, ref: TaskRef, *, follow: bool, tail: int | None = None) -> AsyncGenerator[LogLine]:
        yield LogLine(text="")
        async for line in super().logs(ref, follow=follow, tail=tail):
            yield line


@breaks("a_follower_gets_lines_while_the_job_runs", "without_following_it_stops_at_what_is_there")
class LogsAtTheEnd(MemoryBackend):
    async def logs(self, ref: TaskRef, *, follow: bool, tail: int | None = None) -> AsyncGenerator[LogLine]:
        await anyio.sleep(3600)
        run = self.platform._runs[ref.address]
        run.stop(anyio.current_time())
        async for line in super().logs(ref, follow=True, tail=tail):
            yield line
            yield line


@breaks("following_ends_with_the_job", "a_follower_loses_and_doubles_nothing", "the_tail_is_the_end_of_the_whole")
class LosesTheTail(MemoryBackend):
    async def logs(self, ref: TaskRef, *, follow: bool, tail: int | None = None) -> AsyncGenerator[LogLine]:
        lines = [line async for line in super().logs(ref, follow=follow, tail=tail)]
        for line in lines[:-1]:
            yield line


@breaks("followers_do_not_take_lines_from_each_other", "lines_can_be_read_again_after_the_end")
class ReadsOnce(MemoryBackend):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.taken = set[str]()

    async def logs(self, ref: TaskRef, *, follow: bool, tail: int | None = None) -> AsyncGenerator[LogLine]:
        async for line in super().logs(ref, follow=follow, tail=tail):
            if line.text not in self.taken:
                self.taken.add(line.text)
                yield line


@breaks("a_follower_that_leaves_harms_nobody")
class TakesTheJobAlong(MemoryBackend):
    async def logs(self, ref: TaskRef, *, follow: bool, tail: int | None = None) -> AsyncGenerator[LogLine]:
        try:
            async for line in super().logs(ref, follow=follow, tail=tail):
                yield line
        finally:
            self.platform._runs[ref.address].stop(anyio.current_time())


@breaks(
    "a_live_job_is_found_by_another_backend",
    "what_was_found_can_be_stopped_and_read",
    "closing_leaves_a_live_attempt_to_the_next_backend",
)
class OnlyItsOwn(MemoryBackend):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.platform = MemoryPlatform()


@breaks("a_cancelled_run_leaves_nothing_live")
class NeverStops(MemoryBackend):
    async def stop(self, ref: TaskRef, *, reason: str) -> None:
        await anyio.lowlevel.checkpoint()


@breaks("what_is_found_says_what_it_is")
class FindsNoDescription(MemoryBackend):
    async def find(self, namespace: str, key: str) -> list[TaskRef]:
        return [attrs.evolve(ref, description=None) for ref in await super().find(namespace, key)]


@breaks("an_unknown_key_finds_nothing", "namespaces_are_kept_apart", "nothing_is_attached_to_an_unknown_key")
class FindsEverything(MemoryBackend):
    async def find(self, namespace: str, key: str) -> list[TaskRef]:
        stranger = TaskRef(backend="memory", address="a", key=key, attempt=1, token="t")
        return [stranger, *await super().find("contract", key)]


@breaks("attempts_are_found_in_order")
class FindsBackwards(MemoryBackend):
    async def find(self, namespace: str, key: str) -> list[TaskRef]:
        return (await super().find(namespace, key))[::-1]


@breaks("forgetting_does_not_touch_what_runs")
class ForgetsTheLiving(MemoryBackend):
    async def forget(self, ref: TaskRef) -> None:
        self.platform._runs.pop(ref.address, None)
        await anyio.lowlevel.checkpoint()


@breaks("a_closed_backend_says_so")
class AlwaysOpen(MemoryBackend):
    def _check_open(self) -> None:
        pass


@breaks("an_error_comes_out_as_it_is")
class Wraps(MemoryBackend):
    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Any]:
        try:
            self._open = True
            yield self
        except Exception as exc:
            raise ExceptionGroup("wrapped", [exc]) from exc


@breaks("the_same_key_is_the_same_job")
class RefusesKeys(MemoryBackend):
    async def find(self, namespace: str, key: str) -> list[TaskRef]:
        raise ZeroDivisionError


@breaks("a_live_attempt_is_among_the_living", "the_living_say_how_long_they_may_live")
class ListsOnlyItsOwn(MemoryBackend):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.own = set[str]()

    async def submit(self, launch: Launch) -> TaskRef:
        self.own.add(launch.token)
        return await super().submit(launch)

    async def living(self, namespace: str) -> list[TaskRef]:
        return [ref for ref in await super().living(namespace) if ref.token in self.own]


@breaks("an_attempt_that_was_just_launched_is_among_the_living")
class ListsLate(MemoryBackend):
    async def living(self, namespace: str) -> list[TaskRef]:
        return [ref for ref in await super().living(namespace) if (await self.observe(ref)).phase >= Phase.RUNNING]


@breaks("an_ended_attempt_is_not_among_the_living")
class ListsTheDead(MemoryBackend):
    async def living(self, namespace: str) -> list[TaskRef]:
        keys = {run.launch.identity.key for run in self.platform._runs.values()}
        return [ref for key in keys for ref in await self.find(namespace, key)]


@breaks("the_living_of_another_namespace_are_its_own")
class ListsByPrefix(MemoryBackend):
    async def living(self, namespace: str) -> list[TaskRef]:
        names = {run.launch.identity.namespace for run in self.platform._runs.values()}
        return [ref for name in names if name.startswith(namespace) for ref in await super().living(name)]


@breaks("one_of_the_living_can_be_stopped")
class ListsNobody(MemoryBackend):
    async def living(self, namespace: str) -> list[TaskRef]:
        return []


class _Contract(BackendContract):
    saboteur: type[MemoryBackend]

    @pytest.fixture
    def anyio_backend(self, clock: VirtualClock) -> object:
        return "asyncio", {"loop_factory": clock.loop}

    @pytest.fixture
    def jobs(self) -> Vocabulary:
        return Words()

    @pytest.fixture
    def make_backend(self, clock: VirtualClock) -> Callable[[], Backend]:
        platform = MemoryPlatform()
        return lambda: self.saboteur(script, platform=platform, utcnow=clock.utcnow)


for _saboteur in RED:
    _name = f"Test{_saboteur.__name__}"
    globals()[_name] = type(_name, (_Contract,), {"saboteur": _saboteur, "__test__": True})


class Verdicts:
    """A pytest plugin: runs only what a saboteur must turn red, and notes what stayed green."""

    def __init__(self) -> None:
        self.failed = set[tuple[str, str]]()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        wanted = {(f"Test{s.__name__}", f"test_{name}") for s, names in RED.items() for name in names}
        items[:] = [item for item in items if self._who(item.nodeid) in wanted]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(self._who(report.nodeid))

    @staticmethod
    def _who(nodeid: str) -> tuple[str, str]:
        _, saboteur, test = nodeid.split("::")
        return saboteur, test.partition("[")[0]


def main() -> int:
    verdicts = Verdicts()
    options = ["-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-o", "python_files=saboteurs.py"]
    options += ["-W", "ignore:Module already imported"]
    pytest.main([*options, __file__], plugins=[verdicts])
    expected = {(f"Test{s.__name__}", f"test_{name}") for s, names in RED.items() for name in names}
    for saboteur, test in sorted(expected - verdicts.failed):
        print(f"UNNOTICED {saboteur} {test}")
    every = {name for name in dir(BackendContract) if name.startswith("test_")}
    for test in sorted(every - {test for _, test in expected}):
        print(f"NEVER RED {test}")
    print(f"{len(verdicts.failed)} red")
    return 0


if __name__ == "__main__":
    sys.exit(main())
