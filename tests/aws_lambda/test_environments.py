"""Real loops, threads, processes and sockets: frozen, forked, cut off, and called from everywhere."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import pytest
from anyio.streams.text import TextReceiveStream

from fargate_runner import SqliteJournal
from fargate_runner.testing.aws import FakeAws, Ingestion, Pace, Quotas
from tests.aws_lambda.program import make_handler, pending, troubles
from tests.aws_lambda.samples import NAMES, event
from tests.aws_lambda.test_triggers import KEYS
from tests.aws_lambda.wire import Cut, Wire, wire
from tests.contract.ecs_words import script

pytestmark = pytest.mark.sweep

ROOT = Path(__file__).parents[2]
MINUTES = 300.0


@pytest.fixture
def aws() -> FakeAws:
    return FakeAws(
        script=script,
        clusters=("jobs",),
        quotas=Quotas.unlimited(),
        pace=Pace.instant(),
        visible_after=(0.0, 0.0),
        ingestion=Ingestion(least=0.0, most=0.05),
    )


@pytest.fixture
async def line(aws: FakeAws) -> AsyncGenerator[Wire]:
    async with aws.serve(moto=False) as url, wire(url) as line:
        yield line


def notice(name: str) -> dict[str, Any]:
    """An event of its own."""
    return event("eventbridge") | {"id": name}


def started(aws: FakeAws) -> Counter[str]:
    """How many tasks were started, by key."""
    runs = (next(c.run for c in task.containers if c.run.name == "main") for task in aws.world.tasks.values())
    return Counter(run.environment["FARGATE_RUNNER_KEY"] for run in runs)


# ---- in this process -----------------------------------------------------------------------------------------------


async def test_calls_between_three_loops_of_the_user_all_work(aws: FakeAws, line: Wire, tmp_path: Path) -> None:
    handler = make_handler(line.url, tmp_path / "jobs.sqlite")

    async def of_the_user() -> None:
        await asyncio.sleep(0)

    def calls() -> list[Any]:
        answers = []
        for number in range(3):
            asyncio.run(of_the_user())
            answers.append(handler(notice(str(number))))
            assert pending(handler) == 0
        handler.close()
        return answers

    answers = await anyio.to_thread.run_sync(calls)

    assert [len(answer) for answer in answers] == [1, 1, 1]
    assert aws.calls.count("ecs.RunTask") == 3
    assert aws.calls.count("ecs.DescribeClusters") == 1


async def test_calls_of_one_thread_after_another_use_the_same_clients(aws: FakeAws, line: Wire, tmp_path: Path) -> None:
    handler = make_handler(line.url, tmp_path / "jobs.sqlite")

    for number in range(3):
        thread = threading.Thread(target=handler, args=(notice(str(number)),))
        thread.start()
        await anyio.to_thread.run_sync(thread.join)

    assert (pending(handler), len(handler._idle), troubles(handler)) == (0, 1, 0)
    assert aws.calls.count("ecs.RunTask") == 3
    assert aws.calls.count("ecs.DescribeClusters") == 1
    await anyio.to_thread.run_sync(handler.close)


async def test_calls_of_threads_at_a_time_do_not_wait_for_each_other(aws: FakeAws, line: Wire, tmp_path: Path) -> None:
    handler = make_handler(line.url, tmp_path / "jobs.sqlite")
    together = threading.Barrier(4)
    main = handler.main

    async def meets_the_others(*arguments: Any) -> Any:
        together.wait(60)  # each call is inside of main while the others are
        return await main(*arguments)

    handler.main = meets_the_others
    for _ in range(2):
        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(anyio.to_thread.run_sync, handler, notice(str(number % 2)))

    assert sorted(started(aws).values()) == [1, 1]
    assert (pending(handler), len(handler._idle)) == (0, 4)
    await anyio.to_thread.run_sync(handler.close)


@pytest.mark.parametrize("how", ["closed", "reset"])
async def test_connections_that_the_server_cut_are_not_used_again(
    aws: FakeAws, line: Wire, tmp_path: Path, how: Cut
) -> None:
    handler = make_handler(line.url, tmp_path / "jobs.sqlite")

    cut = []
    for number in range(3):
        await anyio.to_thread.run_sync(handler, notice(str(number)))
        cut.append(line.cut(how))

    assert any(cut)
    assert (pending(handler), troubles(handler)) == (0, 0)
    assert set(started(aws).values()) == {1}
    assert aws.calls.count("ecs.RunTask") == 3
    await anyio.to_thread.run_sync(handler.close)


async def test_a_handler_that_nobody_has_any_more_closes_what_it_kept(line: Wire) -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    def call_and_forget() -> None:
        handler = make_handler(line.url, None)
        handler(notice("1"))
        loops.append(handler._idle[0].loop)

    await anyio.to_thread.run_sync(call_and_forget)
    gc.collect()

    assert [loop.is_closed() for loop in loops] == [True]


# ---- in processes of their own -------------------------------------------------------------------------------------


class Died(Exception):
    """A process was killed in the middle of a call."""


class Environment:
    """A process as Lambda keeps one: it takes a call at a time, and stands still in between."""

    def __init__(self, process: anyio.abc.Process) -> None:
        self._process = process
        self.died = False
        self._said = TextReceiveStream(process.stdout)  # type: ignore[arg-type]
        self._read = ""

    async def call(self, event: Any, **options: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        await self._process.stdin.send(json.dumps({"event": event} | options).encode() + b"\n")
        while "\n" not in self._read:
            try:
                self._read += await self._said.receive()
            except anyio.EndOfStream:
                self.died = await self._process.wait() == -signal.SIGKILL
                raise Died from None
        first, _, self._read = self._read.partition("\n")
        answer: dict[str, Any] = json.loads(first)
        return answer

    async def freeze(self) -> None:
        """Stop it, and return once it stands still."""
        os.kill(self._process.pid, signal.SIGSTOP)
        await anyio.to_thread.run_sync(os.waitid, os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)


@asynccontextmanager
async def environment(
    url: str, journal: Path | str | None, *more: str, **variables: str
) -> AsyncGenerator[Environment]:
    command = [sys.executable, "-m", "tests.aws_lambda.program", url, str(journal or ""), *more]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error,ignore::DeprecationWarning"} | variables
    process = await anyio.open_process(command, cwd=ROOT, env=env, stderr=None)
    try:
        made = Environment(process)
        yield made
        assert process.stdin is not None
        await process.stdin.aclose()
        assert await process.wait() == (-signal.SIGKILL if made.died else 0)
    finally:
        if process.returncode is None:
            os.kill(process.pid, signal.SIGCONT)
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.aclose()


WELL = {"pending": 0, "troubles": 0}


def well(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without what was answered."""
    assert "error" not in answer, answer
    return {name: said for name, said in answer.items() if name != "answer"}


@pytest.mark.parametrize("skew", [0.0, MINUTES], ids=["for a moment", "for minutes"])
@pytest.mark.parametrize("how", ["closed", "reset"])
async def test_a_frozen_process_goes_on_after_its_connections_were_cut(
    aws: FakeAws, line: Wire, tmp_path: Path, how: Cut, skew: float
) -> None:
    async with environment(line.url, tmp_path / "jobs.sqlite") as process:
        answers = [await process.call(notice("0"))]
        for number in range(1, 4):
            await process.freeze()
            line.cut(how)
            process.thaw()
            answers.append(await process.call(notice(str(number)), skew=number * skew))

    assert [well(answer) for answer in answers] == [WELL] * 4
    assert sorted(started(aws).values()) == [1] * 4


async def test_a_process_frozen_for_minutes_does_not_use_what_silently_leads_nowhere(
    aws: FakeAws, line: Wire, tmp_path: Path
) -> None:
    """As behind a NAT gateway. The monotonic clock stood still, so that to aiohttp they look fresh."""
    async with environment(line.url, tmp_path / "jobs.sqlite") as process:
        before = await process.call(notice("0"))
        await process.freeze()
        silent = line.cut("silent")
        process.thaw()
        after = await process.call(notice("1"), skew=MINUTES)

    assert silent > 0
    assert [well(before), well(after)] == [WELL] * 2
    assert sorted(started(aws).values()) == [1, 1]


async def test_a_forked_process_makes_its_own_and_its_parent_goes_on(aws: FakeAws, line: Wire, tmp_path: Path) -> None:
    async with environment(line.url, tmp_path / "jobs.sqlite") as process:
        answers = [
            await process.call(notice("0")),
            await process.call(notice("1"), fork=True),
            await process.call(notice("2")),
            await process.call(notice("3"), fork=True),
        ]

    assert [well(answer) for answer in answers] == [WELL] * 4
    assert sorted(started(aws).values()) == [1] * 4
    assert aws.calls.count("ecs.DescribeClusters") == 3  # the parent's, and one of each child


async def test_a_process_whose_main_fails_goes_on(aws: FakeAws, line: Wire, tmp_path: Path) -> None:
    async with environment(line.url, tmp_path / "jobs.sqlite") as process:
        failed = await process.call({"no": "event"})
        answer = await process.call(notice("0"))

    assert failed["error"].startswith("InvalidJob: event=")
    assert (failed["pending"], well(answer)) == (0, WELL)


@pytest.mark.parametrize("journal", [True, False], ids=["with a journal", "without"])
async def test_each_event_delivered_five_times_shuffled_in_parallel_processes_starts_one_task(
    aws: FakeAws, line: Wire, tmp_path: Path, journal: bool
) -> None:
    answers: list[dict[str, Any]] = []

    async def deliver(seed: int) -> None:
        async with environment(line.url, tmp_path / "jobs.sqlite" if journal else None) as process:
            shuffled = random.Random(seed).sample(NAMES, len(NAMES))
            answers.extend([await process.call(event(name)) for name in shuffled])

    async with anyio.create_task_group() as tasks:
        for seed in range(5):
            tasks.start_soon(deliver, seed)

    keys = {key for keys in KEYS.values() for key in keys}
    assert [well(answer) for answer in answers] == [WELL] * 5 * len(NAMES)
    assert started(aws) == dict.fromkeys(keys, 1)
    assert {
        len(answer["answer"].get("batchItemFailures", [])) for answer in answers if isinstance(answer["answer"], dict)
    } == {0}
    if journal:
        async with SqliteJournal(tmp_path / "jobs.sqlite") as book:
            await book.bind("lambda")
            assert {page.key async for page in book.open_pages()} == keys
