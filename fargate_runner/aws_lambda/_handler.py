"""
An async function as a Lambda handler.

Between two calls Lambda freezes the process (AWS Lambda Developer Guide, "Lambda execution environment"): tasks stand
still, connections are cut unheard, clocks jump or do not. So nothing of ours runs then. A call opens a `Runner` of its
own on an event loop that is kept, and lets go of its jobs when it ends; what takes time to make (the loop, AWS's
clients, what was looked up) stays for the next call, unless it may have gone stale.

A call ends before Lambda's limit, in three steps: *margin* before it, the runner lets go of its jobs and whoever waits
is told so; half of that before it, ``main`` is cancelled; a quarter before it, whatever is left is given up. Lambda
would end the process: what a journal has is found again, the rest is lost.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from functools import partial, update_wrapper
from typing import Any, Final, overload

import anyio
import attrs

from fargate_runner._errors import FargateRunnerError, InvalidJob, RunnerClosed
from fargate_runner._lifecycle import JobResult
from fargate_runner._runner import JobHandle, Runner
from fargate_runner.aws_lambda._triggers import Trigger, plain_event, triggers_of

__all__ = ["Handler", "OutOfTime", "StillRunning", "for_each", "lambda_handler", "wait"]

_log = logging.getLogger(__name__)

_MARGIN: Final = timedelta(seconds=3)
_LEAST_MARGIN: Final = timedelta(seconds=2)
_STALE_AFTER: Final = 600.0
"""Seconds between two calls after which everything is looked up anew."""
_CLOCKS_AGREE: Final = 5.0
"""
Seconds that the two clocks may differ between two calls. If the monotonic one stood still while the process was frozen,
every connection looks fresh and AWS's time, which is counted with it, is wrong.
"""
_LEFT_BEHIND: Final = 1.0
"""Seconds that what main left running has to end, once it is cancelled."""
_GIVING_UP: Final = 0.2
_NEVER: Final = float("inf")


@attrs.frozen(kw_only=True)
class StillRunning:
    """
    What `wait` returns for a job that will not be over in time. It runs on; a later call attaches it by ``handle``.

    A handler that returns it gives Lambda ``{"status": "still_running", "key": …, "name": …, "handle": …}``.
    """

    key: str
    name: str
    """The job's name, for people."""
    handle: str
    """For `Runner.attach`, in another call, another process or a day later: `JobHandle.text`."""

    def to_dict(self) -> dict[str, str]:
        """Return it as JSON-able data, as above."""
        return {"status": "still_running", "key": self.key, "name": self.name, "handle": self.handle}


class OutOfTime(FargateRunnerError, TimeoutError):
    """
    A handler's main had not ended when Lambda's limit was near, and was cancelled.

    ``still_running`` are the jobs that it left running. Lambda calls the function again for an event that came
    asynchronously or from a queue; by their keys, the same jobs are met then.
    """

    def __init__(self, message: str, *, still_running: Sequence[StillRunning] = ()) -> None:
        super().__init__(message)
        self.still_running = tuple(still_running)


# ---- inside of a call ----------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class _Call:
    """One call of a handler: when it has to end, in seconds of its loop's clock, and what it lets go of then."""

    lets_go_at: float = _NEVER
    gathers_at: float = _NEVER
    """When `for_each` returns what it has."""
    cut_at: float = _NEVER
    given_up_at: float = _NEVER
    runner: Runner | None = None
    is_late: bool = False
    left: dict[str, StillRunning] = attrs.field(factory=dict)
    """By key, what was left running."""
    rung: list[asyncio.Task[None]] = attrs.field(factory=list)

    @classmethod
    def limited(cls, left: float, margin: float, now: float) -> _Call:
        limit = now + left
        cut = min(margin / 2, left / 3)  # of a limit that is shorter than the margin, something has to remain
        return cls(
            lets_go_at=limit - margin,
            gathers_at=limit - (margin + cut) / 2,
            cut_at=limit - cut,
            given_up_at=limit - cut / 2,
        )

    def let_go(self) -> None:
        """Leave the jobs running. Who waits for one, or for a launch, goes on."""
        self.is_late = True
        if self.runner is not None:
            handles = [JobHandle(self.runner, live) for live in self.runner._lives]
            self.left |= {handle.key: _still_running(handle) for handle in handles}
            self.runner.detach()

    @contextmanager
    def cuts(self, moment: float) -> Generator[anyio.CancelScope]:
        """Cancel the block at a moment. The jobs that it is busy with go on: they are let go of first."""

        def cut() -> None:
            self.let_go()
            scope.cancel()

        with anyio.CancelScope() as scope, self.at(moment, cut):
            yield scope

    @contextmanager
    def at(self, moment: float, do: Callable[[], None]) -> Generator[None]:
        """Do something at a moment of the block, once."""

        async def in_a_task() -> None:  # which anyio wants, and a timer's callback is not
            do()

        def ring() -> None:
            self.rung.append(loop.create_task(in_a_task()))

        loop = asyncio.get_running_loop()
        timer = loop.call_at(moment, ring) if moment < _NEVER else None
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()


_CALL: ContextVar[_Call | None] = ContextVar("fargate_runner_lambda_call", default=None)


def _still_running(handle: JobHandle) -> StillRunning:
    return StillRunning(key=handle.key, name=handle._live.name, handle=handle.text)


async def wait(handle: JobHandle) -> JobResult | StillRunning:
    """
    Wait for a job's final record, or until the call has to end: then the job runs on, and is returned as such.

    That is *margin* before the limit of the Lambda function, at least 2 seconds. A later call goes on with
    ``await wait(await runner.attach(still_running.handle))``, whose runner should have a journal: without one, ECS
    forgets a task an hour after its end. Between the calls nobody retries the job, nor holds it to its timeouts.

    A job that failed is a result too; ``result.raise_unless_succeeded()`` makes it an error. Outside of a handler, and
    of one that is called without a context, it waits as long as it takes.

    :raises BackendError: the platform took no launch of the job
    :raises JournalError: its record could not be written down
    """
    call = _CALL.get()
    if call is None:
        return await handle.wait()
    with anyio.CancelScope(deadline=call.lets_go_at):
        try:
            return handle.result or await handle.wait()
        except RunnerClosed:
            if not call.is_late:
                raise
    return _still_running(handle)


async def for_each(
    event: object, do: Callable[[Trigger], Awaitable[object]], *, concurrency: int = 10
) -> dict[str, Any] | list[Any]:
    """
    Do something for each trigger of *event* (see `triggers_of`), and return what a handler has to return to Lambda.

    For SQS that is a partial batch response, ``{"batchItemFailures": [{"itemIdentifier": …}, …]}``, of the messages for
    which *do* raised or returned a `StillRunning`, or which it could not come to in time. SQS delivers them again after
    the visibility timeout, and by its key each meets its job; the others are deleted. The event source mapping has to
    ask for it, with ``FunctionResponseTypes: [ReportBatchItemFailures]``: without that, Lambda deletes them all.

    In a FIFO queue order counts: those of one message group are done one after the other, and after one that failed the
    rest of its group is not done and comes again. All else is done *concurrency* at a time.

    For other sources it is the list of what *do* returned. There the first error is raised when all were tried: Lambda
    calls again, and what was started is met.

    :raises InvalidJob: the event is of no source that is known, or *concurrency* is no number from 1
    :raises OutOfTime: there was no time for all triggers of an event that is not from SQS
    """
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
        raise InvalidJob("concurrency", concurrency, "expected a whole number from 1", "leave it out for 10")
    triggers = triggers_of(event)
    call = _CALL.get() or _Call()
    results: dict[int, object] = {}
    errors: dict[int, Exception] = {}
    room = anyio.CapacityLimiter(concurrency)

    async def in_order(indices: Sequence[int]) -> None:
        for index in indices:
            async with room:
                if call.is_late:
                    return
                try:
                    results[index] = await do(triggers[index])
                except Exception as exc:  # noqa: BLE001 (told below, when all were tried)
                    _log.error("what was done for %s failed", triggers[index].key, exc_info=exc)
                    errors[index] = exc
            if index not in results or isinstance(results[index], StillRunning):
                return

    with call.cuts(call.gathers_at):
        async with anyio.create_task_group() as tasks:
            for indices in _queues(triggers):
                tasks.start_soon(in_order, indices)
    if _is_of_sqs(event):
        done = {index for index, result in results.items() if not isinstance(result, StillRunning)}
        again = dict.fromkeys(one.message_id for index, one in enumerate(triggers) if index not in done)
        return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in again]}
    if errors:
        raise errors[min(errors)]
    if missing := [trigger.key for index, trigger in enumerate(triggers) if index not in results]:
        raise OutOfTime(f"there was no time for {len(missing)} of {len(triggers)} triggers: {', '.join(missing)}")
    return [results[index] for index in range(len(triggers))]


def _queues(triggers: Sequence[Trigger]) -> list[list[int]]:
    """Return which triggers wait for each other, by their numbers: those of a message group of a FIFO queue."""
    queues: dict[object, list[int]] = {}
    for index, trigger in enumerate(triggers):
        queues.setdefault(index if trigger.group is None else trigger.group, []).append(index)
    return list(queues.values())


def _is_of_sqs(event: object) -> bool:
    plain = plain_event(event)
    records = plain.get("Records", [plain]) if isinstance(plain, Mapping) else plain
    return bool(records) and records[0].get("eventSource") == "aws:sqs"


# ---- the handler ---------------------------------------------------------------------------------------------------

_Main = Callable[[Any, Any], Awaitable[object]]
_MainWithRunner = Callable[[Any, Any, Runner], Awaitable[object]]


@overload
def lambda_handler(main: _Main, /) -> Handler: ...


@overload
def lambda_handler(
    *,
    runner: Callable[[], Runner],
    margin: timedelta = ...,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = ...,
    utcnow: Callable[[], datetime] = ...,
) -> Callable[[_MainWithRunner], Handler]: ...


@overload
def lambda_handler(
    *,
    margin: timedelta = ...,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = ...,
    utcnow: Callable[[], datetime] = ...,
) -> Callable[[_Main], Handler]: ...


def lambda_handler(
    main: _Main | None = None,
    /,
    *,
    runner: Callable[[], Runner] | None = None,
    margin: timedelta = _MARGIN,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    utcnow: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Any:
    """
    Make ``async def main(event, context)`` a Lambda handler; with *runner*, ``async def main(event, context, runner)``.

    *runner* is a function that makes a `Runner`, with a backend and a journal of its own. It is called at the first
    call of the handler, and again whenever everything has to be made anew. Each call then gets an open runner; leaving
    it lets go of the jobs that are not over, whatever its ``on_exit`` says, so that they are met again by their keys.

    Whatever main returns has to be JSON-able for Lambda; a `JobResult` or a `StillRunning` in it is made so.

    *margin* is how long before the function's limit `wait` comes back. At its half, main is cancelled and the call
    raises `OutOfTime`. Without a context, as in a test, there is no limit. *loop_factory* makes event loops (uvloop's,
    virtual time's), *utcnow* tells the time: how long the process was frozen.

    :raises InvalidJob: main is no async function of such parameters, or an option cannot be right
    """
    if not isinstance(margin, timedelta) or margin < _LEAST_MARGIN:
        raise InvalidJob("margin", margin, "expected a time of 2 seconds or more", "write timedelta(seconds=3)")
    for name, value in (("runner", runner), ("loop_factory", loop_factory), ("utcnow", utcnow)):
        if value is not None and not callable(value):
            problem = f"expected a function, got {type(value).__name__}"
            raise InvalidJob(name, value, problem, f"write {name}=make, of a function that makes one")
    make = partial(Handler, make_runner=runner, margin=margin, loop_factory=loop_factory, utcnow=utcnow)
    return make if main is None else make(main)


class Handler:
    """
    What Lambda calls: ``handler(event, context)``. Made by `lambda_handler`.

    It may be called from any thread, and from several at a time: each call that finds nobody idle makes an event loop
    and clients of its own. ``main`` is the async function itself.
    """

    __name__: str

    def __init__(
        self,
        main: Callable[..., Awaitable[object]],
        *,
        make_runner: Callable[[], Runner] | None,
        margin: timedelta,
        loop_factory: Callable[[], asyncio.AbstractEventLoop],
        utcnow: Callable[[], datetime],
    ) -> None:
        _check_main(main, takes_runner=make_runner is not None)
        self.main = main
        self._make_runner = make_runner
        self._margin = margin.total_seconds()
        self._loop_factory = loop_factory
        self._utcnow = utcnow
        self._idle: list[_Warm] = []
        update_wrapper(self, main)
        self.__dict__.pop("__wrapped__")  # its parameters are not ours
        weakref.finalize(self, _close_all, self._idle)  # also when the interpreter ends

    def __repr__(self) -> str:
        return f"<Handler {self.__name__}>"

    def __call__(self, event: Any, context: Any = None) -> Any:
        """
        Run main to its end and return what Lambda can send on.

        Nothing of the call goes on after it: jobs are let go of, tasks that main left behind are cancelled.

        :raises OutOfTime: main had not ended when the function's limit was near
        :raises RuntimeError: an event loop runs in this thread
        """
        if asyncio._get_running_loop() is not None:
            said = "a Lambda handler is called where no event loop runs, and one runs in this thread"
            raise RuntimeError(f"{said}: await asyncio.to_thread(handler, event, context), or handler.main(…) itself")
        left = _time_left(context)
        warm = self._take()
        try:
            return _jsonable(warm.run(self.main, event, context, left=left, margin=self._margin))
        finally:
            if warm.is_fit:
                self._idle.append(warm)
            else:
                warm.close()

    def close(self) -> None:
        """Close what is kept from call to call: for tests. The next call makes it anew."""
        _close_all(self._idle)

    def _take(self) -> _Warm:
        """Return an idle loop with what is kept on it, or a new one."""
        while True:
            try:
                warm = self._idle.pop()  # atomic: another thread may be calling, too
            except IndexError:
                return _Warm(self._make_runner, self._loop_factory, self._utcnow)
            if warm.is_ours and not warm.loop.is_closed():
                return warm
            warm.abandon()


def _check_main(main: object, *, takes_runner: bool) -> None:
    wanted = ("event", "context", "runner") if takes_runner else ("event", "context")
    fix = f"write async def main({', '.join(wanted)})"
    if not inspect.iscoroutinefunction(main):
        raise InvalidJob("main", main, f"expected an async function, got {type(main).__name__}", fix)
    try:
        inspect.signature(main).bind(*wanted)
    except TypeError as exc:
        hint = "" if takes_runner else "; to get a runner, decorate with lambda_handler(runner=make_runner)"
        raise InvalidJob("main", main, f"it is called with {len(wanted)} arguments: {exc}", f"{fix}{hint}") from None


def _time_left(context: object) -> float:
    """Return the seconds until Lambda's limit, as the context tells; infinite without one."""
    ask = getattr(context, "get_remaining_time_in_millis", None)
    if ask is None:
        return _NEVER
    told = ask()
    if isinstance(told, bool) or not isinstance(told, (int, float)):
        problem = "get_remaining_time_in_millis() did not return a number"
        raise InvalidJob("context", context, problem, "in a test, pass None: then there is no limit")
    return max(0.0, told / 1000)


def _jsonable(value: object) -> Any:
    if isinstance(value, StillRunning):
        return value.to_dict()
    if isinstance(value, JobResult):
        return _result_to_dict(value)
    if isinstance(value, Mapping):
        return {name: _jsonable(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(part) for part in value]
    return value


def _result_to_dict(result: JobResult) -> dict[str, Any]:
    outcome, last = result.outcome, result.attempts[-1]
    return {
        "status": outcome.kind.value,
        "succeeded": result.succeeded,
        "key": result.key,
        "name": result.name,
        "exit_code": outcome.exit_code,
        "detail": outcome.detail,
        "attempts": len(result.attempts),
        "started_at": last.started_at.isoformat() if last.started_at is not None else None,
        "ended_at": last.ended_at.isoformat(),
        "last_line": result.last_lines[-1].text if result.last_lines else None,
    }


# ---- what is kept from call to call --------------------------------------------------------------------------------

_ABANDONED: Final[list[object]] = []
"""What a parent process made. Closed here, its sockets and its selector would be disturbed there."""


class _Warm:
    """One event loop, with the backend and the journal whose clients are kept on it."""

    def __init__(
        self,
        make_runner: Callable[[], Runner] | None,
        loop_factory: Callable[[], asyncio.AbstractEventLoop],
        utcnow: Callable[[], datetime],
    ) -> None:
        self._make_runner = make_runner
        self._pattern: Runner | None = None
        self._utcnow = utcnow
        self._pid = os.getpid()
        self._left_at: tuple[float, datetime] | None = None
        self.is_fit = True
        """Whether another call can use it."""
        self.loop = loop_factory()

    @property
    def is_ours(self) -> bool:
        """Whether this process made it."""
        return self._pid == os.getpid()

    def run(self, main: Callable[..., Awaitable[object]], event: object, context: object, **limits: float) -> object:
        """Run one call to its end, or up to where it has to be given up."""
        loop = self.loop
        call = _Call.limited(limits["left"], limits["margin"], loop.time())
        task = loop.create_task(self._run(call, main, event, context))
        alarm = loop.call_at(call.given_up_at, loop.stop) if call.given_up_at < _NEVER else None
        try:
            return loop.run_until_complete(task)
        except BaseException:
            # Ctrl-C, or a main that ends the interpreter: nobody knows what is left running.
            self.is_fit &= task.done() and not isinstance(task.exception(), (KeyboardInterrupt, SystemExit))
            if not task.done() and alarm is not None and loop.time() >= call.given_up_at:
                raise _out_of_time(call, "was given up: it did not end when it was cancelled") from None
            raise
        finally:
            if alarm is not None:
                alarm.cancel()
            self._left_at = loop.time(), self._utcnow()

    async def _run(self, call: _Call, main: Callable[..., Awaitable[object]], event: object, context: object) -> object:
        _CALL.set(call)
        try:
            with call.at(call.lets_go_at, call.let_go), call.cuts(call.cut_at):
                if self._is_stale():
                    await self._cool_down()
                async with self._opened(call) as arguments:
                    return await main(event, context, *arguments)
        except Exception as exc:
            if not (call.is_late and _is_let_go(exc)):
                raise
            raise _out_of_time(call, "had not ended") from exc
        finally:
            await self._sweep()
        raise _out_of_time(call, "had not ended, and was cancelled")

    @asynccontextmanager
    async def _opened(self, call: _Call) -> AsyncGenerator[tuple[Runner, ...]]:
        if self._make_runner is None:
            yield ()
            return
        if self._pattern is None:
            self._pattern = _made(self._make_runner)
        async with self._pattern._anew() as runner:
            call.runner = runner
            yield (runner,)

    def _is_stale(self) -> bool:
        """Whether what was kept may no longer be what it was: frozen for long, or by a clock that stood still."""
        if self._left_at is None:
            return False
        then, moment = self._left_at
        awake, elapsed = self.loop.time() - then, (self._utcnow() - moment).total_seconds()
        return abs(elapsed - awake) > _CLOCKS_AGREE or max(awake, elapsed) > _STALE_AFTER

    async def _cool_down(self) -> None:
        if self._pattern is not None:
            await self._pattern.backend.cool_down()
            if self._pattern.journal is not None:
                await self._pattern.journal.cool_down()

    async def _sweep(self) -> None:
        """Cancel what main has left running: it would stand still with the process, and go on in a later call."""
        if not self.is_fit:
            return  # given up: whoever closes it does that
        for _ in range(3):  # what is about to end by itself may
            await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if not left:
            return
        for task in left:
            _log.warning("cancelled what the handler left running, Lambda would freeze it: %r", task)
            task.cancel()
        _, stubborn = await asyncio.wait(left, timeout=_LEFT_BEHIND)
        self.is_fit &= not stubborn

    def close(self) -> None:
        """Close the clients and the loop."""
        if not self.is_ours:
            self.abandon()
        elif not self.loop.is_closed():
            # A thread of its own: wherever we are, a loop may be running.
            if asyncio._get_running_loop() is None:
                self._close()
            else:
                closer = threading.Thread(target=self._close, name="fargate_runner-close")
                closer.start()
                closer.join()

    def _close(self) -> None:
        loop, self.is_fit = self.loop, False
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        self._finish(asyncio.wait(left) if left else None)
        self._finish(self._cool_down())
        self._finish(loop.shutdown_asyncgens())
        loop.close()

    def _finish(self, what: Coroutine[Any, Any, Any] | None) -> None:
        """Run what has to be done before the loop is closed, within a moment."""
        if what is None:
            return
        alarm = self.loop.call_later(_GIVING_UP, self.loop.stop)
        with suppress(RuntimeError):  # stopped before it was done
            self.loop.run_until_complete(what)
        alarm.cancel()

    def abandon(self) -> None:
        """Touch it no more: another process, or whoever closed its loop, has to do with it."""
        _ABANDONED.append(self)


def _made(make_runner: Callable[[], Runner]) -> Runner:
    runner = make_runner()
    if not isinstance(runner, Runner):
        fix = "write def make_runner() -> Runner: return Runner(…)"
        raise InvalidJob("runner", runner, f"expected it to make a Runner, got {type(runner).__name__}", fix)
    runner.backend.stays_warm = True
    if runner.journal is not None:
        runner.journal.stays_warm = True
    return runner


def _close_all(idle: list[_Warm]) -> None:
    while idle:
        idle.pop().close()


def _is_let_go(error: BaseException) -> bool:
    """Whether all of it says that the runner let go of a job."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_let_go, error.exceptions))
    return isinstance(error, RunnerClosed)


def _out_of_time(call: _Call, what: str) -> OutOfTime:
    jobs = ", ".join(call.left)
    left = f"; left running: {jobs}" if jobs else ""
    fix = "wait with fargate_runner.aws_lambda.wait(handle), or give the function more time"
    return OutOfTime(
        f"main {what} before the limit of the Lambda function{left}; {fix}", still_running=tuple(call.left.values())
    )
