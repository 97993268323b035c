"""Completion by events: from the queue to whoever waits, in virtual time."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import anyio
import attrs
import pytest

from fargate_runner import BackendUnavailable, EcsBackend, Identity, InvalidJob, Job, TaskRef
from fargate_runner._errors import BackendError
from fargate_runner._lifecycle import Phase, Snapshot
from fargate_runner.backends.ecs import _wire
from fargate_runner.backends.ecs._events import _Senders
from fargate_runner.backends.ecs._watch import Cadence
from fargate_runner.testing.aws import ContainerRun, ContainerScript, Delivery, FakeAws, Fault, Pace, denied
from fargate_runner.testing.aws import throttled as throttle
from fargate_runner.testing.clock import VirtualClock
from tests.contract.ecs_words import IMAGE
from tests.ecs.conftest import NETWORK, ROLES

Make = Callable[..., EcsBackend]
QUEUE = "jobs-events"
URL = f"https://sqs.us-east-1.amazonaws.com/123456789012/{QUEUE}"


def script(container: ContainerRun) -> ContainerScript:
    seconds, code = container.command
    return ContainerScript(run_for=float(seconds), exit_code=int(code))


def runs(seconds: float, code: int = 0) -> Job:
    return Job(image=IMAGE, command=[str(seconds), str(code)])


@pytest.fixture
def delivery() -> Delivery:
    return Delivery(queue_policies=True)


@pytest.fixture
def aws(clock: VirtualClock, delivery: Delivery) -> FakeAws:
    return made_aws(clock, delivery)


def made_aws(clock: VirtualClock, delivery: Delivery, **more: Any) -> FakeAws:
    return FakeAws(clock=clock, script=script, clusters=("jobs",), delivery=delivery, **more)


def made_backend(aws: FakeAws, clock: VirtualClock, **more: Any) -> EcsBackend:
    known: dict[str, Any] = {"network": NETWORK, "roles": ROLES, "session": aws.session(), "region": aws.region}
    known |= {"utcnow": clock.utcnow, "events": QUEUE} | more
    return EcsBackend("jobs", **known)


@attrs.define
class Seen:
    """What a waiter saw of a task, and when."""

    phases: list[Phase] = attrs.field(factory=list)
    end: Snapshot | None = None
    at: float = math.inf


@attrs.define
class Rig:
    """An open backend that listens, what was seen through it, and when the events of ends came into the queue."""

    aws: FakeAws
    backend: EcsBackend
    seen: dict[str, Seen] = attrs.field(factory=dict)
    arrived: dict[str, float] = attrs.field(factory=dict)

    async def launch(self, job: Job, key: str) -> TaskRef:
        identity = Identity(namespace="tests", key=key, attempt=1)
        return await self.backend.submit(await self.backend.prepare(job, identity))

    async def run(self, job: Job, key: str) -> Seen:
        return await self.wait(await self.launch(job, key))

    async def wait(self, ref: TaskRef) -> Seen:
        seen = self.seen[ref.address] = Seen()
        last = await self.backend.observe(ref)
        seen.phases.append(last.phase)
        while not last.ended:
            last = await self.backend.observe(ref, after=last)
            seen.phases.append(last.phase)
        seen.end, seen.at = last, anyio.current_time()
        return seen

    async def run_all(self, jobs: list[Job]) -> None:
        async with anyio.create_task_group() as tasks:
            for number, job in enumerate(jobs):
                tasks.start_soon(self.run, job, f"k{number}")

    @property
    def reads(self) -> int:
        return self.aws.calls.operations["ecs.DescribeTasks"]

    def delays(self) -> list[float]:
        """From a STOPPED event's arrival in the queue to the return of who waits, the shortest first."""
        return sorted(self.seen[arn].at - at for arn, at in self.arrived.items())

    def after_the_end(self) -> list[float]:
        """From the true end to the return of who waits, the shortest first."""
        truths = {truth.arn: truth.stopped_at for truth in self.aws.world.truth()}
        return sorted(seen.at - (truths[arn] or 0) for arn, seen in self.seen.items())

    def untrue(self) -> list[str]:
        """Where what was seen is not what DescribeTasks says, or went back."""
        tasks = {task.arn: task for task in self.aws.world.tasks.values()}
        return [arn for arn, seen in self.seen.items() if _is_untrue(seen, self.aws.world.wire(tasks[arn]))]


def _is_untrue(seen: Seen, task: dict[str, Any]) -> bool:
    assert seen.end is not None
    told = _wire.snapshot(task, "main", source="describe", seen_at=attrs.evolve(seen.end).proof.seen_at)  # type: ignore[union-attr]
    names = ("phase", "cause", "reason", "exit_code", "created_at", "started_at", "ended_at", "advice")
    return seen.phases != sorted(seen.phases) or any(getattr(seen.end, n) != getattr(told, n) for n in names)


@asynccontextmanager
async def listening(aws: FakeAws, clock: VirtualClock, **more: Any) -> AsyncGenerator[Rig]:
    backend = made_backend(aws, clock, **more)
    await backend.make_events()
    async with backend:
        rig = Rig(aws, backend)
        deliver = aws.sqs.deliver

        def noting(arn: str, body: str, *, delay: float = 0.0, **how: Any) -> bool:
            task = json.loads(body)["detail"]
            at = clock.time() + delay
            if task["lastStatus"] == "STOPPED":
                rig.arrived[task["taskArn"]] = min(at, rig.arrived.get(task["taskArn"], math.inf))
            return deliver(arn, body, delay=delay, **how)

        aws.sqs.deliver = noting  # type: ignore[method-assign]
        yield rig


def some_jobs(count: int, seed: int = 0) -> list[Job]:
    random = Random(seed)
    return [runs(random.uniform(10, 120), random.choice([0, 0, 0, 3, 137])) for _ in range(count)]


async def messages(aws: FakeAws) -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    reply = await aws.call("sqs", "GetQueueAttributes", {"QueueUrl": URL, "AttributeNames": names})
    return sum(int(value) for value in reply["Attributes"].values())


class TestWhenEventsCome:
    @pytest.mark.sweep
    async def test_a_thousand_ends_are_seen_at_once_and_hardly_a_look_is_needed(
        self, aws: FakeAws, clock: VirtualClock
    ) -> None:
        aws.latency, aws.validate = (0.01, 0.15), False

        async with listening(aws, clock) as rig:
            await rig.run_all(some_jobs(1000))
            await anyio.sleep(5)
            left = await messages(aws)
        delays = rig.delays()

        assert rig.untrue() == []
        assert len(delays) == 1000
        assert delays[990] <= 1.0
        assert rig.reads <= 60
        assert aws.calls.throttled.total() == 0
        assert left == 0

    async def test_the_end_of_one_job_is_looked_at_as_soon_as_its_event_is_there(
        self, aws: FakeAws, clock: VirtualClock
    ) -> None:
        async with listening(aws, clock) as rig:
            seen = await rig.run(runs(1000), "k")

        assert rig.delays()[0] <= 0.7
        assert seen.phases[-3:] == [Phase.RUNNING, Phase.STOPPING, Phase.ENDED]

    async def test_what_became_of_a_task_is_told_with_its_proof(self, aws: FakeAws, clock: VirtualClock) -> None:
        async with listening(aws, clock) as rig:
            await rig.run_all(some_jobs(10))
            seen = await rig.run(runs(500, 3), "last")

        assert seen.end is not None
        assert seen.end.proof is not None
        assert seen.end.exit_code == 3
        assert seen.end.proof.source == "event"
        assert "STOPPED" in seen.end.proof.evidence

    async def test_an_end_whose_event_does_not_tell_how_is_looked_at(self, aws: FakeAws, clock: VirtualClock) -> None:
        def never(run: ContainerRun) -> ContainerScript:
            reason = "CannotPullContainerError: pull image manifest has been retried 5 time(s): i/o timeout"
            return ContainerScript(could_not_start=reason) if run.command[0] == "-1" else script(run)

        async with listening(aws, clock) as rig:
            await rig.run_all(some_jobs(10))
            aws.world.script = never
            seen = await rig.run(runs(-1), "last")

        assert seen.end is not None
        assert seen.end.proof is not None
        assert seen.end.proof.source == "describe"
        assert rig.untrue() == []

    async def test_a_task_known_by_its_address_alone_is_told_of_as_well(
        self, aws: FakeAws, clock: VirtualClock
    ) -> None:
        async with made_backend(aws, clock, events=None) as first:
            refs = [await Rig(aws, first).launch(runs(60 + n), f"k{n}") for n in range(20)]

        async with listening(aws, clock) as rig, anyio.create_task_group() as tasks:
            for ref in refs:
                tasks.start_soon(rig.wait, ref)

        assert rig.untrue() == []
        assert rig.delays()[-1] <= 0.7

    async def test_a_running_task_is_looked_at_every_half_minute(self, aws: FakeAws, clock: VirtualClock) -> None:
        async with listening(aws, clock) as rig, anyio.create_task_group() as tasks:
            tasks.start_soon(rig.run_all, [runs(2000), *some_jobs(5)])
            await anyio.sleep(300)
            before = rig.reads
            await anyio.sleep(300)
            made = rig.reads - before
            tasks.cancel_scope.cancel()

        assert made == 10

    async def test_more_events_than_one_receive_can_bring_are_received_side_by_side(
        self, aws: FakeAws, clock: VirtualClock
    ) -> None:
        aws.latency = (1.0, 1.0)

        async with listening(aws, clock) as rig:
            await rig.run_all([runs(60)] * 400)
            aws.calls.clear()
            await anyio.sleep(400)
        sources = Counter(seen.end.proof.source for seen in rig.seen.values() if seen.end and seen.end.proof)

        assert rig.delays()[395] <= 3.0
        assert sources["event"] >= 360
        assert aws.calls.operations["sqs.ReceiveMessage"] <= 21


BAD = Delivery(duplicated=0.5, copies=3, in_order=False, lost=0.1, late=0.2, late_by=900, queue_policies=True)


async def forge(rig: Rig, random: Random) -> None:
    """Keep sending events that somebody made up who knows all of our tasks."""
    while True:
        await anyio.sleep(random.uniform(0.2, 3.0))
        tasks = [task for task in rig.aws.world.tasks.values() if task.status != "STOPPED"]
        if tasks:
            await send(rig.aws, forged(rig.aws, random.choice(tasks), random))


def forged(aws: FakeAws, task: Any, random: Random) -> dict[str, Any]:
    event = aws.world.event(task)
    status = random.choice(["STOPPED", "STOPPED", "RUNNING", "DEPROVISIONING"])
    event["detail"] |= {
        "lastStatus": status,
        "desiredStatus": "STOPPED" if status == "STOPPED" else "RUNNING",
        "version": task.version + random.choice([0, 1, 2, 5, 10**9]),
        "stopCode": random.choice(["EssentialContainerExited", "UserInitiated", "SpotInterruption"]),
        "stoppedAt": "2026-01-01T00:00:00Z",
    }
    for container in event["detail"]["containers"]:
        container |= {"lastStatus": status, "exitCode": random.choice([0, 1, 77])}
    return event


async def send(aws: FakeAws, event: Any, **more: Any) -> None:
    await aws.call("sqs", "SendMessage", {"QueueUrl": URL, "MessageBody": json.dumps(event), **more})


def lived(seed: int, delivery: Delivery, *, forger: bool = False, count: int = 60, **more: Any) -> Rig:
    """Run jobs on an AWS that delivers events badly, to the end."""
    clock = VirtualClock()
    aws = made_aws(clock, delivery, seed=seed, validate=False, **more)

    async def main() -> Rig:
        async with listening(aws, clock) as rig, anyio.create_task_group() as tasks:
            if forger:
                tasks.start_soon(forge, rig, Random(seed))
            await rig.run_all(some_jobs(count, seed))
            tasks.cancel_scope.cancel()
        return rig

    return anyio.run(main, backend_options={"loop_factory": clock.loop})


class TestWhatEventsMayDo:
    @pytest.mark.sweep
    @pytest.mark.parametrize("forger", [False, True])
    @pytest.mark.parametrize("seed", range(15))
    def test_doubled_shuffled_lost_late_and_forged_they_change_no_answer(self, seed: int, forger: bool) -> None:
        rig = lived(seed, BAD, forger=forger)

        assert len(rig.seen) == 60
        assert rig.untrue() == []
        assert rig.after_the_end()[-1] <= 31

    @pytest.mark.parametrize("seed", range(3))
    def test_with_all_of_them_lost_it_is_as_without(self, seed: int) -> None:
        rig = lived(seed, Delivery(lost=1.0))

        assert rig.untrue() == []
        assert rig.after_the_end()[-1] <= 2.1

    def test_those_that_are_late_do_not_hold_up_the_polling(self) -> None:
        rig = lived(0, Delivery(late=1.0, late_by=900))

        assert rig.untrue() == []
        assert rig.after_the_end()[54] <= 3

    def test_with_half_of_them_lost_polling_takes_over_for_good(self) -> None:
        rig = lived(0, Delivery(lost=0.5), count=200)

        assert rig.untrue() == []
        assert rig.after_the_end()[180] <= 2.5
        assert rig.after_the_end()[-1] <= 31

    def test_one_who_forges_many_costs_few_looks(self) -> None:
        rig = lived(1, Delivery(), forger=True, count=300)

        assert rig.untrue() == []
        assert rig.delays()[295] <= 1.0
        assert rig.reads <= 1.5 * rig.aws.clock.time()

    async def test_an_event_in_which_anything_is_another_than_ours_says_nothing(
        self, aws: FakeAws, clock: VirtualClock
    ) -> None:
        random = Random(1)
        async with listening(aws, clock) as rig, anyio.create_task_group() as tasks:
            tasks.start_soon(rig.run_all, [runs(5000)])
            await anyio.sleep(100)
            (task,) = aws.world.tasks.values()
            before = rig.reads
            for _ in range(2000):
                await send(aws, _altered(forged(aws, task, random), random))
                await anyio.sleep(0.05)
            made, seen = rig.reads - before, rig.seen[task.arn]
            tasks.cancel_scope.cancel()

        assert seen.end is None
        assert made <= 51
        assert aws.calls.operations["ecs.StopTask"] == 0


def _altered(event: dict[str, Any], random: Random) -> Any:
    strange = random.choice([None, 7, "", "x", [], {}, "arn:aws:ecs:us-east-1:999999999999:cluster/jobs"])
    part = random.choice(["account", "region", "source", "detail-type", "detail"])
    name = random.choice(["clusterArn", "startedBy", "taskArn", "version"])
    if random.random() < 0.4:
        return {**event, part: strange}
    return {**event, "detail": {**event["detail"], name: "" if strange == 7 else strange}}


class TestWhoIsBelieved:
    def test_one_sender_is_once_looks_have_confirmed_it_three_times(self) -> None:
        senders = _Senders()
        senders.heard("bridge")
        believed = []
        for _ in range(4):
            believed.append(senders.believes("bridge"))
            senders.judge(True)

        assert believed == [False, False, False, True]

    @pytest.mark.parametrize("stranger", ["somebody", ""])
    def test_nobody_is_once_there_are_two(self, stranger: str) -> None:
        senders = _Senders()
        senders.heard("bridge")
        for _ in range(10):
            senders.judge(True)
        senders.heard(stranger)

        assert not senders.believes("bridge")
        assert not senders.believes(stranger)

    def test_nobody_is_after_a_lie(self) -> None:
        senders = _Senders()
        senders.heard("bridge")
        senders.judge(False)
        for _ in range(10):
            senders.judge(True)

        assert not senders.believes("bridge")

    def test_one_that_sqs_does_not_name_is_not(self) -> None:
        senders = _Senders()
        senders.heard("")
        for _ in range(10):
            senders.judge(True)

        assert not senders.believes("")


class TestTroubleWithTheQueue:
    async def _ends_in(self, aws: FakeAws, clock: VirtualClock, harm: Callable[[], Any]) -> Rig:
        async with listening(aws, clock) as rig, anyio.create_task_group() as tasks:
            tasks.start_soon(rig.run_all, [runs(n, n % 2) for n in range(30, 330, 3)])
            await anyio.sleep(165)
            await harm()
        assert rig.untrue() == []
        return rig

    async def test_a_queue_that_is_deleted_midway_means_polling(
        self, aws: FakeAws, clock: VirtualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        rig = await self._ends_in(aws, clock, lambda: aws.call("sqs", "DeleteQueue", {"QueueUrl": URL}))

        assert rig.after_the_end()[-1] <= 3.1
        assert caplog.text.count("polled more often") == 1

    async def test_a_rule_that_is_disabled_midway_is_found_out(self, aws: FakeAws, clock: VirtualClock) -> None:
        rig = await self._ends_in(aws, clock, lambda: aws.call("events", "DisableRule", {"Name": QUEUE}))

        assert rig.after_the_end()[-1] <= 31
        assert rig.after_the_end()[80] <= 2.5

    @pytest.mark.sweep
    @pytest.mark.parametrize(
        "fault",
        [
            denied("sqs.*"),
            throttle("sqs.*", times=math.inf),
            Fault(match="sqs.*", code="InternalError", status=500, times=math.inf),
            Fault(match="sqs.*", cut=True, times=math.inf),
        ],
        ids=["denied", "throttled", "broken", "cut"],
    )
    async def test_a_queue_that_does_not_answer_any_more_means_polling(
        self, aws: FakeAws, clock: VirtualClock, fault: Fault
    ) -> None:
        async def harm() -> None:
            aws.faults.add(fault)

        rig = await self._ends_in(aws, clock, harm)

        assert rig.after_the_end()[-1] <= 31
        assert rig.after_the_end()[96] <= 2.5

    async def test_a_receive_that_hangs_means_polling(self, aws: FakeAws, clock: VirtualClock) -> None:
        async def harm() -> None:
            aws.faults.add(Fault(match="sqs.ReceiveMessage", delay=3000, times=math.inf))

        rig = await self._ends_in(aws, clock, harm)

        assert rig.after_the_end()[-1] <= 31
        assert rig.after_the_end()[85] <= 2.5

    async def test_messages_that_cannot_be_deleted_are_old_news_the_next_time(
        self, aws: FakeAws, clock: VirtualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def harm() -> None:
            aws.faults.add(denied("sqs.DeleteMessageBatch"))

        rig = await self._ends_in(aws, clock, harm)

        assert rig.delays()[-1] <= 1
        assert caplog.text.count("messages cannot be deleted") == 1

    async def test_a_queue_that_answers_again_is_relied_on_again(self, aws: FakeAws, clock: VirtualClock) -> None:
        async def harm() -> None:
            aws.faults.add(throttle("sqs.*", times=4))

        rig = await self._ends_in(aws, clock, harm)
        since = [call.at for call in aws.calls.of("ecs.DescribeTasks") if call.at > 220]

        assert rig.delays()[-1] <= 25
        assert len(since) <= 20


class TestOverHttp:
    @pytest.fixture
    def anyio_backend(self) -> object:
        return "asyncio"

    async def test_an_end_that_nobody_looks_for_is_told_through_aioboto3(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.delenv("AWS_PROFILE", raising=False)
        aws = FakeAws(
            script=script,
            clusters=("jobs",),
            pace=Pace.instant(),
            visible_after=(0.0, 0.0),
            delivery=Delivery(least=0.0, most=0.01, queue_policies=True),
        )
        known: dict[str, Any] = {"network": NETWORK, "roles": ROLES, "region": aws.region, "events": QUEUE}

        async with aws.serve(moto=False) as url:
            never = Cadence(first=600, period=600, reconcile=600, confirm=0.01)
            backend = EcsBackend("jobs", **known, endpoint_url=url, cadence=never)
            await backend.make_events()
            async with backend:
                rig = Rig(aws, backend)
                await rig.run_all([runs(0.3, n) for n in range(5)])
                while await messages(aws):
                    await anyio.sleep(0.05)
                unread = await messages(aws)
            await backend.drop_events()

        assert rig.untrue() == []
        assert {seen.end.exit_code for seen in rig.seen.values() if seen.end} == {0, 1, 2, 3, 4}
        assert unread == 0


class TestOpening:
    async def test_a_queue_that_is_not_there_is_told(self, aws: FakeAws, clock: VirtualClock) -> None:
        with pytest.raises(
            BackendUnavailable, match=r"no queue 'jobs-events' in us-east-1; make it with .*make_events"
        ):
            async with made_backend(aws, clock):
                pass

    async def test_one_that_is_named_by_its_url_as_well(self, aws: FakeAws, clock: VirtualClock) -> None:
        with pytest.raises(BackendUnavailable, match="no queue"):
            async with made_backend(aws, clock, events=URL):
                pass

    async def test_a_missing_permission_is_named_with_the_queue(self, aws: FakeAws, clock: VirtualClock) -> None:
        await made_backend(aws, clock).make_events()
        aws.faults.add(denied("sqs.ReceiveMessage", resource=f"arn:aws:sqs:us-east-1:123456789012:{QUEUE}"))

        with pytest.raises(BackendUnavailable) as told:
            async with made_backend(aws, clock):
                pass

        assert "sqs:ReceiveMessage" in str(told.value)
        assert QUEUE in str(told.value)

    async def test_a_queue_of_another_region_is_told(self, aws: FakeAws, clock: VirtualClock) -> None:
        with pytest.raises(BackendUnavailable, match="is in eu-west-1"):
            async with made_backend(aws, clock, events=URL.replace("us-east-1", "eu-west-1")):
                pass

    async def test_a_queue_that_is_only_late_costs_a_moment(self, aws: FakeAws, clock: VirtualClock) -> None:
        await made_backend(aws, clock).make_events()
        aws.faults.add(Fault(match="sqs.*", delay=1000, times=3))

        async with made_backend(aws, clock):
            took = clock.time()

        assert took <= 40

    @pytest.mark.parametrize("events", ["", "a b", "ftp://host/q", "q.fifo", 7, "https://host/1/q.fifo", "x" * 81])
    def test_what_is_no_queue_is_refused(self, aws: FakeAws, clock: VirtualClock, events: Any) -> None:
        with pytest.raises(InvalidJob, match="events"):
            made_backend(aws, clock, events=events)


class TestOthersMessages:
    async def test_an_event_of_another_runner_is_left_for_it_and_then_deleted(
        self, aws: FakeAws, clock: VirtualClock
    ) -> None:
        async with listening(aws, clock), made_backend(aws, clock, events=None) as other:
            ref = await Rig(aws, other).launch(runs(5000), "theirs")
            await anyio.sleep(20)
            left = await messages(aws)
            await anyio.sleep(100)
            later = await messages(aws)

        assert left == 1
        assert later <= 1  # of RUNNING, which came later
        assert ref.address

    async def test_two_runners_of_one_queue_see_every_end(self, aws: FakeAws, clock: VirtualClock) -> None:
        async with (
            listening(aws, clock) as one,
            made_backend(aws, clock) as backend,
            anyio.create_task_group() as tasks,
        ):
            two = Rig(aws, backend)
            tasks.start_soon(one.run_all, some_jobs(40, 1))
            for number, job in enumerate(some_jobs(40, 2)):
                tasks.start_soon(two.run, job, f"other{number}")

        assert one.untrue() == two.untrue() == []
        assert max(one.after_the_end()[-1], two.after_the_end()[-1]) <= 31
        assert one.after_the_end()[20] <= 2.5

    @pytest.mark.parametrize("body", ["order 17", '{"order": 17}', "[" * 100_000, '{"detail": null}', "null"])
    async def test_what_is_no_event_is_never_deleted(
        self, aws: FakeAws, clock: VirtualClock, caplog: pytest.LogCaptureFixture, body: str
    ) -> None:
        async with listening(aws, clock) as rig:
            await aws.call("sqs", "SendMessage", {"QueueUrl": URL, "MessageBody": body})
            await rig.run(runs(200), "k")
            await anyio.sleep(2)
            left = await messages(aws)

        assert left == 1
        assert caplog.text.count("no events of ECS tasks") == 1
        assert rig.untrue() == []


class TestClosing:
    async def test_the_receive_under_way_is_cancelled_and_nothing_hangs(
        self, aws: FakeAws, clock: VirtualClock
    ) -> None:
        async with listening(aws, clock):
            await anyio.sleep(7)
            began = clock.time()

        assert clock.time() == began
        assert Counter(call.outcome for call in aws.calls.of("sqs.ReceiveMessage")) == {"ok": 1, "cancelled": 1}

    async def test_what_was_not_deleted_comes_back(self, aws: FakeAws, clock: VirtualClock) -> None:
        async with listening(aws, clock) as rig:
            await rig.launch(runs(5000), "k")
            while not aws.sqs._queues[QUEUE].by_receipt:
                await anyio.sleep(0.01)
        await anyio.sleep(31)

        reply = await aws.call("sqs", "ReceiveMessage", {"QueueUrl": URL, "MaxNumberOfMessages": 10})

        assert any("PENDING" in message["Body"] for message in reply["Messages"])


class TestMakingThem:
    async def test_only_the_rule_may_send_and_it_sends_what_is_ours(self, aws: FakeAws, clock: VirtualClock) -> None:
        url = await made_backend(aws, clock).make_events(namespace="nightly")
        rule = await aws.call("events", "DescribeRule", {"Name": QUEUE})
        targets = await aws.call("events", "ListTargetsByRule", {"Rule": QUEUE})
        queue = (await aws.call("sqs", "GetQueueAttributes", {"QueueUrl": URL, "AttributeNames": ["All"]}))[
            "Attributes"
        ]
        (statement,) = json.loads(queue["Policy"])["Statement"]

        assert url == URL
        assert json.loads(rule["EventPattern"]) == {
            "source": ["aws.ecs"],
            "detail-type": ["ECS Task State Change"],
            "detail": {
                "clusterArn": ["arn:aws:ecs:us-east-1:123456789012:cluster/jobs"],
                "startedBy": [{"prefix": "fr/nightly/"}],
                "lastStatus": ["PENDING", "RUNNING", "STOPPED"],
            },
        }
        assert targets["Targets"] == [{"Id": "queue", "Arn": queue["QueueArn"]}]
        assert queue["MessageRetentionPeriod"] == "300"
        assert (statement["Action"], statement["Resource"]) == ("sqs:SendMessage", queue["QueueArn"])
        assert statement["Condition"] == {"ArnEquals": {"aws:SourceArn": rule["Arn"]}}

    async def test_twice_is_once(self, aws: FakeAws, clock: VirtualClock) -> None:
        backend = made_backend(aws, clock)
        first = await backend.make_events()
        async with backend:
            second = await backend.make_events()

        assert first == second
        assert aws.calls.count("sqs.SetQueueAttributes") == 1

    async def test_a_queue_that_is_there_keeps_its_settings(self, aws: FakeAws, clock: VirtualClock) -> None:
        await aws.call("sqs", "CreateQueue", {"QueueName": QUEUE, "Attributes": {"VisibilityTimeout": "5"}})

        async with listening(aws, clock) as rig:
            await rig.run_all(some_jobs(20))
        queue = await aws.call("sqs", "GetQueueAttributes", {"QueueUrl": URL, "AttributeNames": ["VisibilityTimeout"]})

        assert queue["Attributes"] == {"VisibilityTimeout": "5"}
        assert len(rig.arrived) == 20

    async def test_a_policy_of_somebody_else_is_not_touched(self, aws: FakeAws, clock: VirtualClock) -> None:
        policy = json.dumps({"Version": "2012-10-17", "Statement": []})
        await aws.call("sqs", "CreateQueue", {"QueueName": QUEUE, "Attributes": {"Policy": policy}})

        with pytest.raises(BackendError, match=r"a policy of its own.*aws:SourceArn"):
            await made_backend(aws, clock).make_events()

    async def test_dropped_they_are_gone_and_twice_is_no_error(self, aws: FakeAws, clock: VirtualClock) -> None:
        backend = made_backend(aws, clock)
        await backend.make_events()
        await backend.drop_events()
        await backend.drop_events()

        rules = await aws.call("events", "ListRules", {})
        queues = await aws.call("sqs", "ListQueues", {})

        assert rules["Rules"] == []
        assert queues == {}

    async def test_without_a_name_there_is_nothing_to_make(self, aws: FakeAws, clock: VirtualClock) -> None:
        with pytest.raises(InvalidJob, match="events"):
            await made_backend(aws, clock, events=None).make_events()
