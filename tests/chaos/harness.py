"""One seed: its lives on one fake AWS and one journal, in virtual time, and a history of what really happened."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import random as the_random
import warnings
from collections import Counter
from collections.abc import Generator, Iterator
from datetime import datetime
from itertools import count
from random import Random
from typing import Any
from unittest.mock import patch

import anyio
import attrs

from fargate_runner import (
    BackendError,
    EcsBackend,
    FargateRunnerError,
    Job,
    JobFailed,
    JobHandle,
    JobNotFound,
    JobResult,
    JournalError,
    Kind,
    LogsUnavailable,
    Network,
    Roles,
    Runner,
    RunnerClosed,
)
from fargate_runner._backend import Identity, Together
from fargate_runner._journal import Page
from fargate_runner.aws_lambda import on_task_event
from fargate_runner.backends.ecs._api import Budget
from fargate_runner.backends.ecs._wire import started_by
from fargate_runner.telemetry import Event, JobAccepted, JobDetached, JobEnded, JobQueued, JobRefused
from fargate_runner.testing.aws import FakeAws, Fault, TaskTruth
from fargate_runner.testing.aws._client import FakeSession
from fargate_runner.testing.clock import VirtualClock
from tests.chaos.lives import Book, FreezingLoop, Killed, LifesJournal, Mortal, Wire, undertaker
from tests.chaos.plan import Freeze, Lifetime, Plan, Supervision, Window, plan_of, script, stuck

__all__ = ["History", "Placed", "Read", "Span", "Told", "live_through"]

NETWORK = Network(subnets=["subnet-0aaaaaaaa00000001", "subnet-0bbbbbbbb00000001"])
ROLES = Roles(execution="arn:aws:iam::123456789012:role/execution")
_FUNCTIONS_LOG = logging.getLogger("fargate_runner.aws_lambda._handler")
_STUCK_RATE = 0.02
_LONGEST_LIFE = 10 * 3600.0
"""Virtual seconds. No job takes so long; whoever still waits then will wait for ever."""
_TRIES = 10


@attrs.frozen(kw_only=True)
class Placed:
    """A task that was really started."""

    key: str
    attempt: int
    memory_mib: int
    hidden_until: float
    """Until then, ECS did not describe it."""
    truth: TaskTruth


@attrs.frozen(kw_only=True)
class Span:
    """That a life looked after a job, from when to when."""

    life: str
    key: str
    begun: float
    ended: float
    owned: bool


@attrs.frozen(kw_only=True)
class Told:
    """That a life was told how a job ended."""

    life: str
    key: str
    at: float
    result: JobResult


@attrs.frozen(kw_only=True)
class Read:
    """The lines that a life read of a job, from the first to the last."""

    life: str
    key: str
    lines: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Orphan:
    """A task that was alive although the runner that owned it had left, with ``on_exit="stop"``."""

    life: str
    key: str
    arn: str


@attrs.define(kw_only=True)
class History:
    """What happened, for the checker."""

    seed: int
    jobs: dict[str, Job]
    tasks: list[Placed]
    pages: dict[str, list[Page | None]]
    """What was committed for each key, in order; None where the page was forgotten."""
    spans: list[Span]
    told: list[Told]
    readings: list[Read]
    cancelled: dict[str, float]
    """Which jobs somebody asked to end, and when first."""
    left: list[Orphan]
    silences: list[tuple[float, float]]
    """When AWS did not answer at all, or no credentials were good, in seconds of the clock."""
    wrong: list[str]
    """What nobody should ever be told: errors, and lives without end."""
    zero: datetime
    in_order: bool
    """Whether CloudWatch took lines in in their order. If not, a reader gets late ones late."""
    ended: float
    sent: list[Told] = attrs.field(factory=list)
    """What those were told of ends who are told by functions."""
    noted: dict[str, str] = attrs.field(factory=dict)
    """By key, the function that wrote down that this was done."""
    taken: set[str] = attrs.field(factory=set)
    """The tasks whose ends a function was called with, and was done with."""
    killed: set[str] = attrs.field(factory=set)
    """The lives that were killed."""
    calls: Counter[str] = attrs.field(factory=Counter)
    faults: Counter[str] = attrs.field(factory=Counter)
    refused: Counter[str] = attrs.field(factory=Counter)
    """How many calls AWS's own token buckets turned away."""
    sent_again: Counter[str] = attrs.field(factory=Counter)
    """How often a life sent the token of a launch again although it knew that ECS had refused it."""
    peaks: dict[str, tuple[int, float]] = attrs.field(factory=dict)
    """The most calls within a second, and what AWS publishes, by bucket."""
    replays: int = 0
    """How many launches were sent that a life before had sent already."""
    lives: int = 0
    kills: int = 0
    freezes: int = 0
    functions: int = 0
    """How many functions were called with events, until they died or were given up."""
    function_steps: dict[str, int] = attrs.field(factory=dict)
    steps: int = 0
    """Of all lives, as far as they count."""
    called: Counter[str] = attrs.field(factory=Counter)
    """The calls of all lives that came back."""

    def at(self, moment: datetime) -> float:
        """Return a moment in seconds of the clock."""
        return (moment - self.zero).total_seconds()

    @property
    def counts(self) -> Counter[str]:
        """How much there was of everything."""
        return Counter(
            lives=self.lives,
            kills=self.kills,
            freezes=self.freezes,
            jobs=len(self.jobs),
            tasks=len(self.tasks),
            calls=self.calls.total(),
            faults=self.faults.total(),
            replays=self.replays,
            functions=self.functions,
            messages=len(self.sent),
            unknown=sum(
                attempt.outcome.kind is Kind.UNKNOWN
                for pages in self.pages.values()
                for page in pages[-1:]
                if page is not None
                for attempt in page.attempts
            ),
        )

    @property
    def digest(self) -> str:
        """What is the same when the same seed lives the same history."""
        said = repr((self.tasks, sorted(self.pages.items()), self.told, self.readings, sorted(self.calls.items())))
        return hashlib.sha256(said.encode()).hexdigest()[:12]


class CountingAws(FakeAws):
    """Counts what the token buckets turn away: throttles by chaos are no fault of the client's."""

    refused: Counter[str]

    def _take(self, bucket: str, tokens: float) -> bool:
        taken = super()._take(bucket, tokens)
        if not taken:
            self.refused[bucket] += 1
        return taken


class Years:
    """Everything that a seed's lives share."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.clock = VirtualClock()
        self.aws = CountingAws(
            clock=self.clock,
            seed=plan.seed,
            script=script,
            task_script=stuck(plan.seed, _STUCK_RATE if plan.chaos.start_failure else 0.0),
            clusters=("jobs",),
            pace=plan.pace,
            visible_after=plan.visible_after,
            latency=(0.01, 0.2),
            chaos=plan.chaos,
            ingestion=plan.ingestion,
            delivery=plan.events or (plan.supervision.delivery if plan.supervision is not None else None),
            validate=False,
        )
        self.aws.refused = Counter()
        self.book = Book()
        self.jobs = {str(job.key): job for job in plan.jobs}
        self.texts: dict[str, str] = {}
        self.all_is_well = False
        self.alive = 0
        self.history = History(
            seed=plan.seed,
            jobs=self.jobs,
            tasks=[],
            pages=self.book.history,
            spans=[],
            told=[],
            readings=[],
            cancelled={},
            left=[],
            noted=self.book.noted,
            silences=[],
            wrong=[],
            zero=self.clock.utcnow(),
            in_order=plan.ingestion.in_order,
            ended=0.0,
        )

    @property
    def now(self) -> float:
        return self.clock.time()

    @property
    def budget(self) -> Budget | None:
        """Processes that share an account say so, as the reference tells them to."""
        together = 1 + any(lifetime.twin for lifetime in self.plan.lives)
        if self.plan.supervision is not None:
            together += self.plan.supervision.functions
        return Budget(share=0.8 / together) if together > 1 else None

    def run(self) -> History:
        the_random.seed(self.plan.seed)  # the pauses between tries of a call, and between attempts
        with warnings.catch_warnings():
            # A life may die between the making of a task and its first step.
            warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)
            # What is wrong is told by the checker; that AWS is not well today, everybody knows.
            logging.getLogger("fargate_runner").setLevel(logging.CRITICAL)
            complaints = _Complaints(self.history.wrong)
            _FUNCTIONS_LOG.setLevel(logging.ERROR)
            _FUNCTIONS_LOG.addHandler(complaints)
            _FUNCTIONS_LOG.propagate = False
            try:
                keys, claims = Random(f"{self.plan.seed}/keys"), Random(f"{self.plan.seed}/claims")
                with (
                    patch("secrets.token_hex", lambda size: f"{keys.getrandbits(8 * size):0{2 * size}x}"),
                    patch("secrets.randbelow", claims.randrange),
                ):
                    anyio.run(self._run, backend_options={"loop_factory": self._loop})
            finally:
                logging.getLogger("fargate_runner").setLevel(logging.NOTSET)
                _FUNCTIONS_LOG.removeHandler(complaints)
                _FUNCTIONS_LOG.setLevel(logging.NOTSET)
                _FUNCTIONS_LOG.propagate = True
        return self._told_by_all()

    def _loop(self) -> asyncio.AbstractEventLoop:
        if any(lifetime.freezes for lifetime in self.plan.lives):
            return FreezingLoop(self.clock)
        return self.clock.loop()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(undertaker)
        loop.set_exception_handler(self._unheard)
        last = len(self.plan.lives) - 1
        if self.plan.events is not None:
            await self._make_queues()
        self.aws.faults.add(*(attrs.evolve(fault) for fault in self.plan.faults))
        functions: Functions | None = None
        if self.plan.supervision is not None:
            functions = Functions(self, self.plan.supervision)
            await functions.make_queue()
        async with anyio.create_task_group() as background:
            self._background = background
            if functions is not None:
                functions.start(background)
            for number, lifetime in enumerate(self.plan.lives):
                for outage in self.plan.outages:
                    if outage.life == number:
                        self.aws.world.capacity.out(outage.provider, zone=outage.zone, seconds=outage.lasts)
                for window in self.plan.windows:
                    if window.life == number:
                        background.start_soon(self._bad_time, window)
                if number == last:
                    background.start_soon(self._calm)
                await self._lives(number, lifetime, is_last=number == last)
                await anyio.sleep(lifetime.gap)
            if any(lifetime.freezes for lifetime in self.plan.lives):
                while self.alive:
                    await anyio.sleep(60)
                await self._lives(last + 1, self.plan.lives[last], is_last=True)
            if functions is not None and not await functions.took_all():
                self.history.wrong.append("no function is done with the events that it gets")
            background.cancel_scope.cancel()
        await self._wind_down()

    async def _make_queues(self) -> None:
        chaos = self.aws.faults.chaos
        self.aws.faults.clear()
        for queue in ("events", "events-b"):
            backend = EcsBackend("jobs", session=self.aws.session(), region=self.aws.region, events=queue)
            await backend.make_events()
        if chaos is not None:
            self.aws.faults.add(chaos)

    async def _lives(self, number: int, lifetime: Lifetime, *, is_last: bool) -> None:
        async with anyio.create_task_group() as together:
            together.start_soon(self._until_it_stands_still, f"{number}", lifetime, is_last)
            if lifetime.twin is not None:
                await anyio.sleep(lifetime.twin_after)
                together.start_soon(self._life, f"{number}b", lifetime.twin, False)

    async def _until_it_stands_still(self, name: str, lifetime: Lifetime, is_last: bool) -> None:
        """Wait for the end of a life, or until it is frozen: then it goes on later, beside the others."""
        if lifetime.freezes is None:
            await self._life(name, lifetime, is_last)
            return
        stands_still = anyio.Event()
        self._background.start_soon(self._life, name, lifetime, is_last, stands_still)
        await stands_still.wait()

    async def _life(
        self, name: str, lifetime: Lifetime, is_last: bool, stands_still: anyio.Event | None = None
    ) -> None:
        self.alive += 1
        try:
            await self._live(name, lifetime, is_last, stands_still)
        finally:
            self.alive -= 1
            if stands_still is not None:
                stands_still.set()

    async def _freeze(self, mortal: Mortal, life: _Life, freezes: Freeze, still: anyio.Event) -> None:
        mortal.freezes_at = freezes.step
        with anyio.move_on_after(freezes.after if math.isinf(freezes.step) else 3600.0):
            await mortal.stood_still.wait()
        if not mortal.dead and mortal.tasks:
            mortal.freeze()
            life.stands_still()
            self.history.freezes += 1
            still.set()
            await anyio.sleep(freezes.lasts)
            life.goes_on()
            mortal.thaw()

    async def _live(self, name: str, lifetime: Lifetime, is_last: bool, stands_still: anyio.Event | None) -> None:
        mortal = Mortal(
            name,
            Random(f"{self.plan.seed}/life/{name}"),
            dies_at=lifetime.at if lifetime.leaves in {"killed at a step", "killed at any step"} else float("inf"),
            dies_after=(lifetime.called, lifetime.at) if lifetime.leaves == "killed after a call" else ("", 0.0),
            every_call=lifetime.leaves == "killed at any step",
        )
        self.history.lives += 1
        life = _Life(self, mortal, lifetime, is_last=is_last)
        root = mortal.start(life.live())
        death = asyncio.ensure_future(mortal.died.wait())
        limit = lifetime.at if lifetime.leaves == "killed" else _LONGEST_LIFE
        if lifetime.killed_leaving is not None:
            limit = lifetime.at + lifetime.killed_leaving
        freezing: asyncio.Task[None] | None = None
        if lifetime.freezes is not None and stands_still is not None:
            limit += lifetime.freezes.lasts
            freezing = asyncio.ensure_future(self._freeze(mortal, life, lifetime.freezes, stands_still))
        await asyncio.wait({root, death}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if not root.done():
            if limit >= _LONGEST_LIFE and not lifetime.leaves.startswith("killed"):
                self.history.wrong.append(f"the life {name} did not end: {life.unfinished()}")
            mortal.die()
        if mortal.dead:
            self.history.kills += 1
            self.history.killed.add(name)
        self.history.steps += mortal.steps
        self.history.called += mortal.calls
        if freezing is not None:
            freezing.cancel()
        life.ended()
        await mortal.bury()
        death.cancel()
        if root.done() and not mortal.dead and (error := root.exception()) is not None:
            self.history.wrong.append(f"the life {name} crashed: {_whole(error)}")

    async def _bad_time(self, window: Window) -> None:
        await anyio.sleep(window.begins)
        if self.all_is_well:
            return
        fault = {
            "throttles": Fault(times=float("inf"), code="ThrottlingException", message="Rate exceeded"),
            "expired": Fault(times=float("inf"), code="ExpiredTokenException", message="it is expired", status=403),
            "silence": Fault(times=float("inf"), cut=True),
        }[window.kind]
        begun = self.now
        self.aws.faults.rules.append(fault)
        try:
            await anyio.sleep(window.lasts)
        finally:
            with contextlib.suppress(ValueError):  # all is well already
                self.aws.faults.rules.remove(fault)
            self.history.faults[window.kind] += fault.happened
            self.history.silences.append((begun, self.now))

    async def _calm(self) -> None:
        await anyio.sleep(self.plan.calm_after)
        self.aws.faults.clear()
        self.aws.world.capacity.back()
        self.all_is_well = True

    async def _wind_down(self) -> None:
        """Give what was told to stop the time to do so."""
        await anyio.sleep(600)
        self.history.ended = self.now

    def _unheard(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is None or not _is_death(error):
            self.history.wrong.append(f"nobody heard: {context.get('message')}: {error!r}")

    def _told_by_all(self) -> History:
        history, aws = self.history, self.aws
        whose = self.owners()
        history.jobs = dict(self.jobs)
        for key, pages in history.pages.items():
            if key not in self.jobs and (pages[-1] is not None or key in whose.values()):
                assert self.plan.crowd is not None
                history.jobs[key] = self.plan.crowd
        for truth in aws.world.truth():
            task = aws.world.tasks[truth.arn]
            run = task.container("main").run
            key = whose[truth.arn]
            number = int(run.environment["FARGATE_RUNNER_ATTEMPT"])
            hidden_until = max(task.visible_at, task.hidden_until)
            history.tasks.append(
                Placed(
                    key=key,
                    attempt=number,
                    memory_mib=int(task.memory or 0),
                    hidden_until=hidden_until,
                    truth=truth,
                )
            )
        history.calls = Counter(aws.calls.operations)
        history.refused = aws.refused
        sent = Counter(call.request.get("clientToken") for call in aws.calls if call.called == "ecs.RunTask")
        history.replays = sum(times - 1 for times in sent.values())
        for call in aws.calls:
            if call.outcome != "ok":
                history.faults[call.outcome] += 1
        history.peaks = {
            name: (aws.calls.peak(name), rate.burst + rate.refill) for name, rate in aws.quotas.rates.items()
        }
        return history

    def owners(self) -> dict[str, str]:
        """Say by its marks whose each task is; of several that one call started, by its place among them."""
        owners = {started_by("default", key): key for key in self.book.history}
        groups: dict[str, Together] = {}
        for key in self.book.history:
            together = Identity(namespace="default", key=key, attempt=1).together
            if together is not None:
                groups[started_by("default", together.group)] = together
        by_token: dict[str, list[str]] = {}
        for truth in self.aws.world.truth():
            by_token.setdefault(truth.token or truth.arn, []).append(truth.arn)
        whose: dict[str, str] = {}
        for arns in by_token.values():
            for index, arn in enumerate(sorted(arns)):
                owner = self.aws.world.tasks[arn].started_by or ""
                whose[arn] = owners[owner] if owner in owners else groups[owner].key_of(index)
        return whose


class _Life:
    """What one life does."""

    def __init__(self, years: Years, mortal: Mortal, lifetime: Lifetime, *, is_last: bool) -> None:
        self._years = years
        self._mortal = mortal
        self._lifetime = lifetime
        self._is_last = is_last
        self._history = years.history
        self._held: dict[str, tuple[float, bool]] = {}
        self._paused: dict[str, tuple[float, bool]] = {}
        self._leaving = False
        self._crowd: set[str] = set()
        self._scopes: dict[anyio.CancelScope, None] = {}

    @property
    def _alive(self) -> bool:
        return not self._mortal.dead

    def unfinished(self) -> str:
        return ", ".join(self._held)

    def ended(self) -> None:
        """Note that it looks after nothing any more."""
        for key in tuple(self._held):
            self._let_go(key)

    def stands_still(self) -> None:
        """Note that for a while it looks after nothing."""
        self._paused = dict(self._held)
        self.ended()

    def goes_on(self) -> None:
        """Note that it looks after what it held before."""
        for key, (_, owned) in self._paused.items():
            self._hold(key, owned=owned)

    def _hold(self, key: str, *, owned: bool) -> None:
        if self._alive and key not in self._held:
            self._held[key] = self._years.now, owned

    def _let_go(self, key: str) -> None:
        if (held := self._held.pop(key, None)) is not None:
            span = Span(life=self._mortal.name, key=key, begun=held[0], ended=self._years.now, owned=held[1])
            self._history.spans.append(span)

    def _cancels(self, key: str) -> None:
        if self._alive:
            self._history.cancelled.setdefault(key, self._years.now)

    def _wrong(self, said: str) -> None:
        if self._alive:
            self._history.wrong.append(f"life {self._mortal.name}: {said}")

    async def live(self) -> None:
        years, lifetime = self._years, self._lifetime
        plan = years.plan
        backend = EcsBackend(
            "jobs",
            network=NETWORK,
            roles=ROLES,
            capacity=plan.capacity,
            session=FakeSession(Wire(self._mortal, years.aws, years.history.sent_again), region_name=years.aws.region),  # type: ignore[arg-type]
            region=years.aws.region,
            utcnow=years.clock.utcnow,
            cadence=plan.cadence,
            log_cadence=plan.log_cadence,
            # Each backend that is open at a time has a queue of its own.
            events=None if plan.events is None else "events-b" if "b" in self._mortal.name else "events",
            budget=years.budget,
        )
        journal = LifesJournal(years.book, self._mortal, slowest=plan.slowest_write, troubles=lifetime.journal_troubles)
        watching = [self._notice] if lifetime.crowd else []
        runner = Runner(
            backend, journal=journal, on_exit=lifetime.on_exit, observers=watching, utcnow=years.clock.utcnow
        )
        with anyio.CancelScope() as whole:
            async with runner:
                try:
                    async with anyio.create_task_group() as tasks:
                        if lifetime.leaves == "leaves":
                            tasks.start_soon(self._leave, tasks.cancel_scope)
                        elif lifetime.leaves == "is cancelled":
                            tasks.start_soon(self._leave, whole)
                        await self._begin(runner, tasks)
                        for key, after in lifetime.stops:
                            tasks.start_soon(self._stop, runner, key, after)
                        if lifetime.leaves not in {"leaves", "is cancelled"}:
                            return
                        await anyio.sleep_forever()
                finally:
                    self._leaves(lifetime.on_exit)
        self._has_left(lifetime.on_exit)

    async def _leave(self, scope: anyio.CancelScope) -> None:
        await anyio.sleep(self._lifetime.at)
        for key in self._held:
            # Cancelling these is stopping the jobs.
            if self._lifetime.how in {"run", "map"} or key in self._crowd:
                self._cancels(key)
        for one in tuple(self._scopes):
            one.cancel()
        scope.cancel()

    def _leaves(self, on_exit: str) -> None:
        self._leaving = True
        for key, (_, owned) in self._held.items():
            if on_exit == "stop" and owned:
                self._cancels(key)

    def _has_left(self, on_exit: str) -> None:
        """See whether what was owned is over, unless somebody else looks after it."""
        if on_exit != "stop" or not self._alive or self._years.alive > 1:
            return
        owned = {key for key, (_, owned) in self._held.items() if owned}
        whose = self._years.owners()
        for truth in self._years.aws.world.truth():
            if truth.status != "STOPPED" and (key := whose[truth.arn]) in owned:
                self._history.left.append(Orphan(life=self._mortal.name, key=key, arn=truth.arn))

    async def _begin(self, runner: Runner, tasks: Any) -> None:
        how, keys = self._lifetime.how, list(self._years.jobs)
        if how.startswith("recover"):
            for handle in await self._recovered(runner):
                self._hold(handle.key, owned=True)
                tasks.start_soon(self._see_to, handle)
        if how.endswith("submit"):
            self._mortal.random.shuffle(keys)
            for key in keys:
                tasks.start_soon(self._submit, runner, key)
        if self._lifetime.crowd:
            tasks.start_soon(self._map_crowd, runner, self._lifetime.crowd)
        if how == "run":
            for key in keys:
                tasks.start_soon(self._run, runner, key)
        if how == "map":
            tasks.start_soon(self._map, runner)
        if how == "attach":
            for key in keys:
                if self._mortal.random.random() < 0.8:
                    tasks.start_soon(self._attach, runner, key)

    async def _recovered(self, runner: Runner) -> list[JobHandle]:
        try:
            return await runner.recover()
        except JournalError as exc:
            if not exc.retryable:
                self._wrong(f"recover: {exc!r}")
            return []

    async def _submit(self, runner: Runner, key: str) -> None:
        with self._cancelled_in_order():
            await self._submit_until_told(runner, key)

    async def _submit_until_told(self, runner: Runner, key: str) -> None:
        tries = 0
        while True:
            tries += 1
            self._hold(key, owned=True)
            all_is_well = self._years.all_is_well
            try:
                handle = await runner.submit(self._years.jobs[key])
            except (BackendError, JournalError) as exc:
                if self._is_last and (all_is_well or tries == _TRIES):
                    self._wrong(f"submit {key}: {exc!r}")
                elif self._is_last:
                    await anyio.sleep(120)
                    continue
                self._let_go(key)
                return
            except FargateRunnerError as exc:
                if not (isinstance(exc, RunnerClosed) and self._leaving):
                    self._wrong(f"submit {key}: {exc!r}")
                self._let_go(key)
                return
            except anyio.get_cancelled_exc_class():
                self._cancels(key)
                raise
            if await self._see_to(handle) or not self._is_last or tries >= _TRIES:
                return

    @contextlib.contextmanager
    def _cancelled_in_order(self) -> Generator[None]:
        """
        Let what is inside be cancelled in the order in which it began, when the life leaves.

        anyio cancels a group in the order of addresses, which is another each time.
        """
        with anyio.CancelScope() as scope:
            self._scopes[scope] = None
            try:
                yield
            finally:
                del self._scopes[scope]

    async def _run(self, runner: Runner, key: str) -> None:
        with self._cancelled_in_order():
            await self._run_until_told(runner, key)

    async def _run_until_told(self, runner: Runner, key: str) -> None:
        self._hold(key, owned=True)
        try:
            result = await runner.run(self._years.jobs[key])
        except JobFailed as exc:
            result = exc.result
        except FargateRunnerError as exc:
            if not self._leaving and not isinstance(exc, (BackendError, JournalError)):
                self._wrong(f"run {key}: {exc!r}")
            self._let_go(key)
            return
        except anyio.get_cancelled_exc_class():
            self._cancels(key)
            raise
        self._told(key, result)
        self._let_go(key)

    async def _map(self, runner: Runner) -> None:
        for key in self._years.jobs:
            self._hold(key, owned=True)
        try:
            async with runner.map(self._years.jobs.values(), as_completed=True, on_error="collect") as results:
                async for result in results:
                    if result.attempts[0].token:  # else the batch tells of an error: no platform ever took the job
                        self._told(result.key, result)
                    self._let_go(result.key)
        except FargateRunnerError as exc:
            if not self._leaving and not isinstance(exc, (BackendError, JournalError)):
                self._wrong(f"map: {exc!r}")
            for key in self._held:  # the others are stopped
                self._cancels(key)
        except anyio.get_cancelled_exc_class():
            for key in self._held:
                self._cancels(key)
            raise

    def _notice(self, event: Event) -> None:
        """Know the jobs of a crowd by what is told of them: their keys are nobody's choice."""
        if event.key in self._years.jobs:
            return
        if isinstance(event, (JobQueued, JobAccepted)):
            self._hold(event.key, owned=True)
            self._crowd.add(event.key)
        elif isinstance(event, (JobEnded, JobDetached, JobRefused)):
            self._let_go(event.key)

    async def _map_crowd(self, runner: Runner, count: int) -> None:
        one = self._years.plan.crowd
        assert one is not None
        try:
            async with runner.map([one] * count, on_error="collect") as results:
                async for result in results:
                    if result.attempts[0].token:
                        self._told(result.key, result)
        except FargateRunnerError as exc:
            if not self._leaving and not isinstance(exc, (BackendError, JournalError)):
                self._wrong(f"map of {count}: {exc!r}")
            for key in sorted(self._crowd):
                self._cancels(key)

    def _told(self, key: str, result: JobResult) -> None:
        if self._alive:
            self._history.told.append(Told(life=self._mortal.name, key=key, at=self._years.now, result=result))

    async def _attach(self, runner: Runner, key: str) -> None:
        text = self._years.texts.get(key)
        if text is None or self._mortal.random.random() < 0.5:
            text = key
        self._hold(key, owned=False)
        is_written = key in self._years.book.keys
        try:
            handle = await runner.attach(text)
        except (BackendError, JournalError, JobNotFound) as exc:
            if isinstance(exc, JobNotFound) and is_written and key in self._years.book.keys:
                self._wrong(f"attach {text}: {exc!r}")
            self._let_go(key)
            return
        await self._see_to(handle)

    async def _see_to(self, handle: JobHandle) -> bool:
        """See a job to its end. False: something came in between."""
        key = handle.key
        if self._alive:
            self._years.texts[key] = handle.text
        lines: list[str] = []
        failed = False
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read, handle, lines)
                result = await handle.wait()
                self._told(key, result)
                if result.outcome.kind is Kind.UNKNOWN:  # its task may run on, and so may its lines
                    tasks.cancel_scope.deadline = anyio.current_time() + 600
        except* (BackendError, JournalError, RunnerClosed) as group:
            failed = True
            if not self._leaving:
                for exc in _each(group):
                    if self._is_last or isinstance(exc, RunnerClosed):
                        self._wrong(f"wait for {key}: {exc!r}")
        self._let_go(key)
        return not failed

    async def _read(self, handle: JobHandle, lines: list[str]) -> None:
        try:
            async with contextlib.aclosing(handle.logs()) as found:
                async for line in found:
                    lines.append(line.text)  # noqa: PERF401 (what was read counts although it ends with an error)
        except FargateRunnerError as exc:
            # Who stood still finds that a call of before has had no answer for long.
            stood_still = isinstance(exc, (BackendError, LogsUnavailable)) and self._mortal.stood_still.is_set()
            if not self._leaving and not stood_still and not self._silent_lately():
                self._wrong(f"lines of {handle.key}: {exc!r}")
            return
        if self._alive and not self._leaving and handle.result is not None:
            self._history.readings.append(Read(life=self._mortal.name, key=handle.key, lines=tuple(lines)))

    def _silent_lately(self) -> bool:
        rules = self._years.aws.faults.rules
        return bool(rules) or any(end > self._years.now - 600 for _, end in self._history.silences)

    async def _stop(self, runner: Runner, key: str, after: float) -> None:
        await anyio.sleep(after)
        try:
            handle = await runner.attach(key)
            if handle.result is None:
                self._cancels(key)
            await handle.stop()
        except (BackendError, JournalError, RunnerClosed, JobNotFound):
            pass


class Functions:
    """
    Lambda, as far as it calls a supervisor with what its queue has: several at a time, each killed now and then.

    What one was about is delivered again, to whichever comes first.
    """

    QUEUE = "ends"

    def __init__(self, years: Years, how: Supervision) -> None:
        self._years = years
        self._how = how
        self._url = ""
        self._under_way: set[str] = set()

    async def make_queue(self) -> None:
        """Have the ends of our tasks come into a queue."""
        aws = self._years.aws
        self._url = (await aws.sqs.call("CreateQueue", {"QueueName": self.QUEUE}))["QueueUrl"]
        pattern = {
            "source": ["aws.ecs"],
            "detail": {"lastStatus": ["STOPPED"], "startedBy": [{"prefix": "fr/default/"}]},
        }
        await aws.events.call("PutRule", {"Name": self.QUEUE, "EventPattern": json.dumps(pattern)})
        arn = f"arn:aws:sqs:{aws.region}:{aws.account}:{self.QUEUE}"
        await aws.events.call("PutTargets", {"Rule": self.QUEUE, "Targets": [{"Id": "queue", "Arn": arn}]})

    def start(self, background: Any) -> None:
        for number in range(self._how.functions):
            background.start_soon(self._one_after_another, number)

    async def took_all(self) -> bool:
        """Wait until nothing is left in the queue, and return whether that came to be."""
        asked = {"QueueUrl": self._url, "AttributeNames": ["All"]}
        for _ in range(500):
            found = (await self._years.aws.sqs.call("GetQueueAttributes", asked))["Attributes"]
            if not any(int(count) for name, count in found.items() if name.startswith("ApproximateNumberOf")):
                return True
            await anyio.sleep(30)
        return False

    async def _one_after_another(self, number: int) -> None:
        random = Random(f"{self._years.plan.seed}/function/{number}")
        for generation in count():
            await self._live(f"function {number}.{generation}", random)
            await anyio.sleep(random.choice((0.0, random.uniform(0, 60))))

    async def _live(self, name: str, random: Random) -> None:
        years, history = self._years, self._years.history
        dies_at: float = random.randint(1, 60) if random.random() < self._how.mortality else math.inf
        if not history.functions:
            dies_at = min(dies_at, self._how.dies_at)
        mortal = Mortal(name, random, dies_at=dies_at, every_call=True)
        history.functions += 1
        root = mortal.start(self._be_called(mortal, batches=random.randint(1, 8)))
        death = asyncio.ensure_future(mortal.died.wait())
        try:
            await asyncio.wait({root, death}, return_when=asyncio.FIRST_COMPLETED)
            if mortal.dead:
                history.kills += 1
                history.killed.add(name)
            elif (error := root.exception()) is not None:
                history.wrong.append(f"{name} crashed: {_whole(error)}")
        finally:
            history.function_steps.setdefault(name, mortal.steps)
            mortal.die()
            with anyio.CancelScope(shield=True):
                await mortal.bury()
            death.cancel()
            years.alive -= name in self._under_way
            self._under_way.discard(name)

    async def _be_called(self, mortal: Mortal, *, batches: int) -> None:
        years, plan = self._years, self._years.plan
        session: Any = FakeSession(Wire(mortal, years.aws, years.history.sent_again), region_name=years.aws.region)  # type: ignore[arg-type]
        backend = EcsBackend(
            "jobs",
            network=NETWORK,
            roles=ROLES,
            capacity=plan.capacity,
            session=session,
            region=years.aws.region,
            utcnow=years.clock.utcnow,
            cadence=plan.cadence,
            log_cadence=plan.log_cadence,
            budget=years.budget,
        )
        journal = LifesJournal(years.book, mortal, slowest=plan.slowest_write, troubles=self._how.journal_troubles)
        pattern = Runner(backend, journal=journal, utcnow=years.clock.utcnow)
        backend.stays_warm = journal.stays_warm = True

        async def tell(result: JobResult) -> None:
            await anyio.sleep(mortal.random.uniform(0, 2))
            mortal.step()
            at = years.now
            years.history.sent.append(Told(life=mortal.name, key=result.key, at=at, result=result))
            await anyio.sleep(mortal.random.uniform(0, 2))
            mortal.step()

        for _ in range(batches):
            messages = await self._received(mortal)
            years.alive += 1
            self._under_way.add(mortal.name)
            event = {"Records": [_record(message) for message in messages]}
            try:
                async with pattern._anew() as runner:
                    answer = await on_task_event(event, runner, notify=tell)
            except (BackendError, JournalError):  # the runner could not be opened, or a call failed
                answer = {"batchItemFailures": [{"itemIdentifier": each["MessageId"]} for each in messages]}
            assert isinstance(answer, dict)
            again = {each["itemIdentifier"] for each in answer["batchItemFailures"]}
            for message in messages:
                if message["MessageId"] not in again and not mortal.dead:
                    await years.aws.sqs.call(
                        "DeleteMessage", {"QueueUrl": self._url, "ReceiptHandle": message["ReceiptHandle"]}
                    )
                    years.history.taken.add(json.loads(message["Body"])["detail"]["taskArn"])
            years.alive -= 1
            self._under_way.discard(mortal.name)

    async def _received(self, mortal: Mortal) -> list[dict[str, Any]]:
        """Wait for a batch. It is Lambda that asks, not the function, and its calls do not fail."""
        asked = {
            "QueueUrl": self._url,
            "MaxNumberOfMessages": mortal.random.choice((1, 10)),
            "WaitTimeSeconds": 20,
            "VisibilityTimeout": 300,
        }
        while True:
            if messages := (await self._years.aws.sqs.call("ReceiveMessage", asked)).get("Messages"):
                return list(messages)


def _record(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message of SQS as Lambda hands it to a function."""
    return {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message["Body"],
        "attributes": {},
        "eventSource": "aws:sqs",
        "eventSourceARN": f"arn:aws:sqs:us-east-1:123456789012:{Functions.QUEUE}",
    }


class _Complaints(logging.Handler):
    """Hears what goes wrong for single events: that AWS or the journal do not answer is no surprise."""

    def __init__(self, wrong: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._wrong = wrong

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, (BackendError, JournalError)):
            self._wrong.append(f"{record.getMessage()}: {error!r}")


def _each(group: BaseExceptionGroup) -> Iterator[BaseException]:
    for exc in group.exceptions:
        if isinstance(exc, BaseExceptionGroup):
            yield from _each(exc)
        else:
            yield exc


def _is_death(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_death, error.exceptions))
    return isinstance(error, (Killed, asyncio.CancelledError))


def _whole(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return " and ".join(map(_whole, error.exceptions))
    return repr(error)


def live_through(seed: int) -> History:
    """Live a seed, and return what happened."""
    return Years(plan_of(seed)).run()
