"""A handler from its call to its return, in virtual time: what it gives main, when it ends, and what it leaves."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import Callable, Generator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from fargate_runner import (
    EcsBackend,
    InvalidJob,
    JobFailed,
    Kind,
    MemoryJournal,
    Runner,
    RunnerClosed,
)
from fargate_runner.aws_lambda import Handler, OutOfTime, StillRunning, for_each, lambda_handler, wait
from fargate_runner.testing.aws import FakeAws, Fault
from fargate_runner.testing.clock import VirtualClock
from tests.aws_lambda.samples import Context, event
from tests.contract.ecs_words import Words, script
from tests.ecs import truths
from tests.ecs.conftest import NETWORK, ROLES

MINUTE = Context(60_000)
WORDS = Words()


class World:
    """An account, a journal, and handlers in virtual time."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.aws = FakeAws(clock=clock, script=script, clusters=("jobs",))
        self.journal = MemoryJournal()
        self.runners: list[Runner] = []
        self.handlers: list[Handler] = []

    def make_runner(self, **options: Any) -> Runner:
        utcnow, session = self.clock.utcnow, self.aws.session()
        backend = EcsBackend(
            "jobs", network=NETWORK, roles=ROLES, session=session, region=self.aws.region, utcnow=utcnow
        )
        known: dict[str, Any] = {"journal": self.journal, "utcnow": utcnow}
        self.runners.append(Runner(backend, **known | options))
        return self.runners[-1]

    def handler(self, main: Callable[..., Any], **options: Any) -> Handler:
        known: dict[str, Any] = {
            "runner": self.make_runner,
            "loop_factory": self.clock.loop,
            "utcnow": self.clock.utcnow,
        }
        self.handlers.append(lambda_handler(**known | options)(main))
        return self.handlers[-1]


@pytest.fixture
def world(clock: VirtualClock) -> Generator[World]:
    world = World(clock)
    yield world
    assert [task for handler in world.handlers for task in pending(handler)] == []
    for handler in world.handlers:
        handler.close()


def pending(handler: Handler) -> set[asyncio.Task[Any]]:
    return {task for warm in handler._idle for task in asyncio.all_tasks(warm.loop)}


# ---- one call after another ----------------------------------------------------------------------------------------


class TestCalls:
    def test_give_what_main_returns(self, world: World) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> Any:
            return [event, context, (await runner.run(WORDS.exits(0))).outcome.kind.value]

        assert world.handler(main)({"a": 1}) == [{"a": 1}, None, "succeeded"]

    def test_without_a_runner_are_calls_too(self, world: World) -> None:
        @lambda_handler
        async def main(event: Any, context: Any) -> Any:
            await anyio.sleep(0)
            return event

        assert main("x") == main("x", None) == "x"
        main.close()

    def test_keep_the_loop_and_the_clients(self, world: World) -> None:
        loops: list[object] = []

        async def main(event: Any, context: Any, runner: Runner) -> None:
            loops.append(asyncio.get_running_loop())
            await runner.submit(WORDS.exits(0).with_(key=event))

        handler = world.handler(main)
        for key in "abc":
            handler(key)

        assert len(set(loops)) == len(world.runners) == 1
        assert world.aws.calls.count("ecs.RunTask") == 3
        assert world.aws.calls.count("ecs.DescribeClusters") == 1
        assert world.aws.calls.count("ecs.DescribeTaskDefinition") == 1

    def test_let_go_of_their_jobs(self, world: World) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> str:
            return (await runner.submit(WORDS.waits().with_(key="k"))).text

        async def later(event: Any, context: Any, runner: Runner) -> Any:
            return await (await runner.attach(event)).stop()

        text = world.handler(main)({})
        alive = truths.alive(world.aws)
        result = world.handler(later)(text)

        assert len(alive) == 1
        assert result["status"] == "cancelled"

    def test_let_go_whatever_on_exit_says(self, world: World) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> None:
            await runner.submit(WORDS.waits())

        world.handler(main, runner=lambda: world.make_runner(on_exit="stop"))({})

        assert len(truths.alive(world.aws)) == 1

    def test_that_fail_leave_all_as_it_was(self, world: World) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> str:
            await runner.submit(WORDS.waits().with_(key="k"))
            return event["name"]

        handler = world.handler(main)
        with pytest.raises(KeyError, match="name"):
            handler({})

        assert handler({"name": "x"}) == "x"
        assert len(world.runners) == 1
        assert len(world.aws.world.truth()) == 1

    def test_raise_the_failure_of_a_job(self, world: World) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> None:
            await runner.run(WORDS.exits(3))

        with pytest.raises(JobFailed):
            world.handler(main)({})

    def test_cancel_what_main_left_running(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        ends: list[str] = []

        async def forgotten() -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                ends.append("cancelled")

        async def main(event: Any, context: Any, runner: Runner) -> None:
            event.append(asyncio.create_task(forgotten()))
            await asyncio.sleep(0)

        with caplog.at_level(logging.WARNING):
            world.handler(main)([])

        assert ends == ["cancelled"]
        assert "left running" in caplog.text

    def test_make_all_anew_after_a_task_that_cannot_be_cancelled(self, world: World) -> None:
        async def stubborn() -> None:
            while True:
                try:
                    await asyncio.sleep(1000)
                except asyncio.CancelledError:
                    if world.clock.time() > 10:
                        raise

        async def main(event: list[Any], context: Any, runner: Runner) -> None:
            event.append(asyncio.create_task(stubborn()))
            await asyncio.sleep(0)
            await asyncio.sleep(0)

        async def wait_long(event: Any, context: Any, runner: Runner) -> None:
            await anyio.sleep(10)

        handler = world.handler(wait_long)
        handler({})
        handler.main = main
        handler([])

        assert pending(handler) == set()

    def test_by_ctrl_c_end_with_it_and_the_next_is_made_anew(self, world: World) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> str:
            await runner.submit(WORDS.waits().with_(key="k"))
            if event:
                raise KeyboardInterrupt
            return "well"

        handler = world.handler(main)
        with pytest.raises(KeyboardInterrupt):
            handler("stop")

        assert handler("") == "well"
        assert len(world.runners) == 2
        assert len(world.aws.world.truth()) == 1

    def test_after_the_loop_was_closed_make_it_anew(self, world: World) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> None:
            await runner.submit(WORDS.exits(0))

        handler = world.handler(main)
        handler({})
        handler._idle[0].loop.close()
        handler({})

        assert len(world.runners) == 2

    def test_of_several_handlers_do_not_mix(self, world: World) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> object:
            return asyncio.get_running_loop()

        one, other = world.handler(main), world.handler(main)

        assert one({}) is one({}) is not other({})


class TestStaleness:
    """Between two calls, clocks may jump together, or one without the other."""

    @pytest.mark.parametrize(
        ("monotonic", "wall", "stale"),
        [(0, 0, 0), (300, 300, 0), (3600, 3600, 1), (0, 60, 1), (60, 0, 1), (0, -3600, 1)],
        ids=["at once", "soon", "much later", "frozen clock", "clock set back", "clock set far back"],
    )
    def test_of_what_is_kept_is_seen_by_both_clocks(
        self, world: World, monotonic: float, wall: float, stale: int
    ) -> None:
        skew = timedelta()

        async def main(event: Any, context: Any, runner: Runner) -> None:
            await runner.submit(WORDS.exits(0))

        handler = world.handler(main, utcnow=lambda: world.clock.utcnow() + skew)
        handler({})
        world.clock.advance(monotonic)
        skew = timedelta(seconds=wall - monotonic)
        handler({})

        assert world.aws.calls.count("ecs.DescribeClusters") == 1 + stale
        assert world.aws.calls.count("ecs.RunTask") == 2
        assert len(world.runners) == 1


# ---- Lambda's limit ------------------------------------------------------------------------------------------------


class TestTheLimit:
    @pytest.mark.parametrize("margin", [2, 3, 10])
    def test_brings_a_wait_back_in_time(self, world: World, margin: int) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> Any:
            still = await wait(await runner.submit(WORDS.waits().with_(key="k", name="report")))
            return still, world.clock.time()

        handler = world.handler(main, margin=timedelta(seconds=margin))
        still, returned_at = handler({}, MINUTE)

        assert returned_at == 60 - margin
        assert still == {"status": "still_running", "key": "k", "name": "report", "handle": still["handle"]}
        assert json.loads(json.dumps(still)) == still
        assert len(truths.alive(world.aws)) == 1

    @pytest.mark.parametrize("journal", [True, False])
    def test_does_not_end_a_job_that_later_calls_go_on_with(self, world: World, journal: bool) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> Any:
            if "handle" in event:
                return await wait(await runner.attach(event["handle"]))
            return await wait(await runner.submit(WORDS.exits(0).with_(key="k")))

        handler = world.handler(main, runner=lambda: world.make_runner(**({} if journal else {"journal": None})))
        answers = [handler({}, Context(10_000))]
        while answers[-1]["status"] == "still_running":
            answers.append(handler(answers[-1], Context(10_000)))

        assert len(answers) > 5
        assert (answers[-1]["status"], answers[-1]["key"], answers[-1]["attempts"]) == ("succeeded", "k", 1)
        assert len(world.aws.world.truth()) == 1

    def test_is_none_without_a_context(self, world: World) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> Any:
            return await wait(await runner.submit(WORDS.exits(0)))

        assert world.handler(main)({}, None)["succeeded"]
        assert world.handler(main)({}, SimpleNamespace(function_name="f"))["succeeded"]

    def test_gives_a_job_that_is_over_even_when_it_is_near(self, world: World) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> Any:
            handle = await runner.submit(WORDS.exits(0))
            await handle.wait()
            return await wait(handle)

        async def late(event: Any, context: Any, runner: Runner) -> Any:
            return await wait(await runner.submit(WORDS.exits(0)))

        assert world.handler(main)({}, Context(600_000))["succeeded"]
        assert world.handler(late)({}, Context(1_000))["status"] == "still_running"

    def test_ends_a_run_that_does_not_know_it_and_leaves_its_job(self, world: World) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> None:
            await runner.run(WORDS.waits().with_(key="k"))

        with pytest.raises(OutOfTime, match=r"left running: k; wait with fargate_runner\.aws_lambda\.wait") as raised:
            world.handler(main)({}, MINUTE)

        assert [one.key for one in raised.value.still_running] == ["k"]
        assert isinstance(raised.value, TimeoutError)
        assert world.clock.time() == 57
        assert len(truths.alive(world.aws)) == 1

    def test_ends_runs_in_a_task_group_too(self, world: World) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> None:
            async with anyio.create_task_group() as tasks:
                for key in "ab":
                    tasks.start_soon(runner.run, WORDS.waits().with_(key=key))

        with pytest.raises(OutOfTime, match="left running: a, b"):
            world.handler(main)({}, MINUTE)

        assert len(truths.alive(world.aws)) == 2

    def test_cancels_a_main_that_does_something_else(self, world: World) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> None:
            await runner.submit(WORDS.waits().with_(key="k"))
            await anyio.sleep(1000)

        with pytest.raises(OutOfTime, match=r"had not ended, and was cancelled before the limit.*left running: k"):
            world.handler(main)({}, MINUTE)

        assert world.clock.time() == 58.5
        assert len(truths.alive(world.aws)) == 1

    def test_gives_up_a_main_that_cannot_be_cancelled(self, world: World) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> str:
            await runner.submit(WORDS.waits().with_(key="k"))
            if event:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(1000)
            return "well"

        handler = world.handler(main)
        with pytest.raises(OutOfTime, match="was given up"):
            handler("hang", MINUTE)
        given_up_at = world.clock.time()

        assert given_up_at < 60
        assert handler("", Context(300_000)) == "well"
        assert len(world.aws.world.truth()) == 1

    def test_leaves_a_launch_without_an_answer_to_the_journal(self, world: World) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> Any:
            return (await runner.submit(WORDS.exits(0).with_(key="k"))).key

        handler = world.handler(main)
        world.aws.faults.add(Fault(match="ecs.RunTask", cut=True, when="after", times=1_000))
        with pytest.raises((OutOfTime, RunnerClosed)):
            handler({}, Context(30_000))
        returned_at = world.clock.time()
        world.aws.faults.rules.clear()

        assert returned_at < 30
        assert world.journal._pages["k"].launch is not None
        assert handler({}, Context(30_000)) == "k"
        assert len(world.aws.world.truth()) == 1

    def test_lets_a_submission_that_finds_no_room_come_again(self, world: World) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> Any:
            return await wait(await runner.submit(WORDS.exits(0).with_(key="k")))

        handler = world.handler(main)
        world.aws.world.capacity.out("FARGATE", seconds=100)
        first = handler({}, MINUTE)
        second = handler({}, Context(600_000))

        assert first["status"] == "still_running"
        assert second["status"] == "succeeded"
        assert len(world.aws.world.truth()) == 1

    def test_that_is_shorter_than_the_margin_leaves_time_to_submit(self, world: World) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> Any:
            return await wait(await runner.submit(WORDS.waits().with_(key="k")))

        assert world.handler(main)({}, Context(3_000))["status"] == "still_running"
        assert len(truths.alive(world.aws)) == 1


# ---- batches of messages -------------------------------------------------------------------------------------------


def failures(answer: Any) -> list[str]:
    return [one["itemIdentifier"] for one in answer["batchItemFailures"]]


def ids(name: str) -> list[str]:
    return [record["messageId"] for record in event(name)["Records"]]


class TestBatches:
    def test_answer_with_the_messages_that_failed(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> Any:
            async def do(trigger: Any) -> None:
                await runner.run(WORDS.exits(int(trigger.body == "plain text")).with_(key=trigger.key))

            return await for_each(event, do)

        handler = world.handler(main)

        assert failures(handler(event("sqs"))) == ids("sqs")[1:2]
        assert failures(handler(event("sqs"))) == ids("sqs")[1:2]
        assert "sqs/orders/2e1424d4" in caplog.text
        assert len(world.aws.world.truth()) == 3

    def test_of_which_all_is_well_answer_so(self, world: World) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> Any:
            return await for_each(event, lambda trigger: runner.submit(WORDS.exits(0).with_(key=trigger.key)))

        handler = world.handler(main)

        assert handler(event("sqs")) == handler(event("sqs_s3_test")) == {"batchItemFailures": []}

    async def test_of_a_fifo_queue_stop_each_group_at_its_first_failure(self) -> None:
        done: list[int] = []

        async def do(trigger: Any) -> None:
            done.append(trigger.body["order"])
            await anyio.sleep(0)
            if trigger.body["order"] == 3:
                raise ValueError("3")

        answer = await for_each(event("sqs_fifo"), do)

        assert failures(answer) == [ids("sqs_fifo")[index] for index in (2, 4)]
        assert sorted(done) == [1, 2, 3, 4]
        assert [n for n in done if n % 2] == [1, 3]

    async def test_of_a_fifo_queue_do_one_of_a_group_at_a_time(self) -> None:
        under_way: set[str] = set()

        async def do(trigger: Any) -> None:
            assert trigger.group not in under_way
            under_way.add(trigger.group)
            await anyio.sleep(0)
            under_way.remove(trigger.group)

        assert failures(await for_each(event("sqs_fifo"), do)) == []

    async def test_do_so_many_at_a_time(self) -> None:
        most = under_way = 0

        async def do(trigger: Any) -> None:
            nonlocal most, under_way
            under_way += 1
            most = max(most, under_way)
            await anyio.sleep(0)
            under_way -= 1

        await for_each(event("sqs"), do, concurrency=2)

        assert most == 2

    async def test_of_a_message_with_several_objects_fail_as_one(self) -> None:
        sent = event("sqs_s3")
        body = json.loads(sent["Records"][0]["body"])
        other = json.loads(json.dumps(body["Records"][0]))
        other["s3"]["object"]["key"] = "bad"
        sent["Records"][0]["body"] = json.dumps({"Records": [body["Records"][0], other]})

        async def do(trigger: Any) -> None:
            if trigger.object.key == "bad":
                raise ValueError("bad")

        assert failures(await for_each(sent, do)) == ids("sqs_s3")

    def test_whose_jobs_still_run_come_again_until_they_are_over(self, world: World) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> Any:
            async def do(trigger: Any) -> Any:
                return await wait(await runner.submit(WORDS.exits(0).with_(key=trigger.key)))

            return await for_each(event, do)

        handler = world.handler(main)
        answers = [failures(handler(event("sqs"), Context(10_000)))]
        while answers[-1]:
            answers.append(failures(handler(event("sqs"), Context(10_000))))

        assert len(answers) > 5
        assert answers[0] == ids("sqs")
        assert len(world.aws.world.truth()) == 3

    def test_answer_in_time_with_what_was_not_come_to(self, world: World) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> Any:
            async def do(trigger: Any) -> None:
                await runner.submit(WORDS.waits().with_(key=trigger.key))
                await anyio.sleep(1000 if trigger.body == "plain text" else 1)

            return await for_each(event, do, concurrency=1)

        assert failures(world.handler(main)(event("sqs"), MINUTE)) == ids("sqs")[1:]
        assert world.clock.time() < 58.5
        assert len(truths.alive(world.aws)) == 2

    def test_begin_nothing_once_jobs_are_let_go_of(self, world: World) -> None:
        begun: list[str] = []

        async def main(event: Any, context: Any, runner: Runner) -> Any:
            async def do(trigger: Any) -> None:
                begun.append(trigger.message_id)
                await anyio.sleep(57.2)

            return await for_each(event, do, concurrency=1)

        assert failures(world.handler(main)(event("sqs"), MINUTE)) == ids("sqs")[1:]
        assert begun == ids("sqs")[:1]

    async def test_of_other_sources_give_what_was_done(self) -> None:
        async def do(trigger: Any) -> str:
            return trigger.source

        assert await for_each(event("sns"), do) == ["sns"]
        assert await for_each(event("schedule_rule"), do) == ["schedule"]

    async def test_of_other_sources_raise_the_first_error_when_all_were_tried(self) -> None:
        tried: list[str] = []
        several = event("s3")
        several["Records"].append(json.loads(json.dumps(several["Records"][0])))
        several["Records"][1]["s3"]["object"]["key"] = "other"

        async def do(trigger: Any) -> None:
            tried.append(trigger.object.key)
            raise ValueError(trigger.object.key)

        with pytest.raises(ValueError, match="flower"):
            await for_each(several, do)

        assert len(tried) == 2

    def test_of_other_sources_without_time_say_so(self, world: World) -> None:
        async def main(event: Any, context: Any, runner: Runner) -> Any:
            return await for_each(event, lambda _: anyio.sleep(1000))

        with pytest.raises(OutOfTime, match="no time for 1 of 1 triggers: sns/uploads/"):
            world.handler(main)(event("sns"), MINUTE)

    @pytest.mark.parametrize("concurrency", [0, -1, True, 1.5, "2"])
    async def test_of_no_number_are_refused(self, concurrency: Any) -> None:
        with pytest.raises(InvalidJob, match=r"concurrency=.*whole number from 1; leave it out"):
            await for_each(event("sqs"), anyio.sleep, concurrency=concurrency)  # type: ignore[arg-type]


# ---- what is refused -----------------------------------------------------------------------------------------------


async def takes_two(event: Any, context: Any) -> None: ...


async def takes_three(event: Any, context: Any, runner: Any) -> None: ...


def decorate(*main: Any, **options: Any) -> Any:
    """`lambda_handler`, for what its types forbid."""
    made: Any = lambda_handler
    return made(*main, **options)


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            (lambda: decorate(lambda event, context: None), r"main=.*async function, got function; write async"),
            (lambda: decorate(takes_three), r"called with 2 arguments.*lambda_handler\(runner=make_runner\)"),
            (lambda: decorate(runner=Runner)(takes_two), r"called with 3 arguments.*event, context, runner"),
            (lambda: decorate(runner="x"), r"runner='x': expected a function, got str; write runner=make"),
            (lambda: decorate(margin=timedelta(seconds=1.9)), r"margin=.*2 seconds or more"),
            (lambda: decorate(margin=3), r"margin=3.*timedelta\(seconds=3\)"),
            (lambda: decorate(loop_factory=7), r"loop_factory=7: expected a function"),
        ],
    )
    def test_at_once_is_told_by_field_value_and_fix(self, wrong: Any, said: str) -> None:
        with pytest.raises(InvalidJob, match=said):
            wrong()

    def test_a_factory_that_makes_no_runner(self) -> None:
        handler = decorate(runner=lambda: 7)(takes_three)

        with pytest.raises(InvalidJob, match="runner=7: expected it to make a Runner, got int"):
            handler({})

    @pytest.mark.parametrize("told", [None, "60000", True, object()])
    def test_a_context_that_tells_no_time(self, told: Any) -> None:
        with pytest.raises(InvalidJob, match=r"context=.*did not return a number; in a test, pass None"):
            lambda_handler(takes_two)({}, Context(told))

    async def test_a_call_where_a_loop_runs(self) -> None:
        with pytest.raises(RuntimeError, match=r"asyncio\.to_thread\(handler, event, context\)"):
            lambda_handler(takes_two)({})


class TestTheHandlerItself:
    def test_looks_like_main_and_is_a_plain_function_to_whoever_wraps_it(self) -> None:
        handler = lambda_handler(takes_two)

        assert (handler.__name__, handler.__module__) == ("takes_two", __name__)
        assert handler.main is takes_two
        assert not inspect.iscoroutinefunction(handler)
        assert repr(handler) == "<Handler takes_two>"

    async def test_main_can_be_awaited_and_waits_without_a_limit(self, clock: VirtualClock) -> None:
        assert await takes_two({}, None) is None

    def test_a_still_running_job_is_found_anywhere_in_what_main_returns(self) -> None:
        one = StillRunning(key="k", name="n", handle="fr1:…")

        @lambda_handler
        async def main(event: Any, context: Any) -> Any:
            return {"jobs": [one, {"deep": (one,)}], "n": 1}

        assert main({}) == {"jobs": [one.to_dict(), {"deep": [one.to_dict()]}], "n": 1}
        main.close()

    def test_kind_is_the_status(self) -> None:
        assert "still_running" not in {kind.value for kind in Kind}
