"""
Lambda and Step Functions as far as this example needs them, on this machine and with nothing but Python.

Functions run in processes of their own, as in Lambda: one call at a time in each, cold at first and warm afterwards.
The state machine is read from convert.asl.json; of the language, only what that uses is understood.
"""

import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, Protocol, Self
from uuid import uuid4

import anyio
import anyio.abc
from aiohttp import web
from anyio.streams.buffered import BufferedByteReceiveStream

HERE = Path(__file__).parent
ACCOUNT, REGION = "123456789012", "us-east-1"
_AT_A_TIME = 4
"""Environments of one function."""


class Platform(Protocol):
    """What brings uploads to functions, calls these, and runs the state machine."""

    async def set_up(self, variables: Mapping[str, str]) -> None:
        """Make ready to call functions that have these variables."""

    async def upload(self, bucket: str, names: list[str], random: Random) -> None:
        """Put objects into a bucket, of each of which `submit.on_upload` is told twice."""

    async def tell_again(self, random: Random) -> None:
        """Tell of all uploads once more."""

    async def invoke(self, function: str, event: Any) -> Any:
        """
        Call a function and return its answer.

        :raises FunctionError: it raised
        """

    async def executions(self) -> list[dict[str, Any]]:
        """Return status, input, and error of each execution."""

    def answers(self) -> int | None:
        """Return how many answers came for states that wait, heard or not; None if that cannot be told."""

    def said(self) -> str:
        """Tell what ran."""


class FunctionError(Exception):
    """A handler raised."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


class Unavailable(Exception):
    """What is to be played on is not there."""


class Functions:
    """Lambda: each function has a few processes, made when they are needed."""

    def __init__(self, processes: AsyncExitStack) -> None:
        self._processes = processes
        self._variables: dict[str, str] = {}
        self._idle: dict[str, list[_Environment]] = {}
        self._room: dict[str, anyio.CapacityLimiter] = {}
        self.starts: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def configure(self, variables: Mapping[str, str]) -> None:
        self._variables = {**os.environ, **dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), REGION), **variables}

    async def invoke(self, function: str, event: Any) -> Any:
        async with self._room.setdefault(function, anyio.CapacityLimiter(_AT_A_TIME)):
            idle = self._idle.setdefault(function, [])
            environment = idle.pop() if idle else await self._start(function)
            self.calls[function] += 1
            answer = await environment.call(event)
            idle.append(environment)
        if "errorType" in answer:
            raise FunctionError(answer["errorType"], answer["errorMessage"])
        return answer["answer"]

    async def _start(self, function: str) -> "_Environment":
        self.starts[function] += 1
        command = [sys.executable, str(HERE / "_environment.py"), function]
        process = await anyio.open_process(command, env=self._variables, stderr=None, start_new_session=True)
        self._processes.push_async_callback(_end, process)
        return _Environment(process)


class _Environment:
    def __init__(self, process: anyio.abc.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._asked = process.stdin
        self._said = BufferedByteReceiveStream(process.stdout)

    async def call(self, event: Any) -> dict[str, Any]:
        try:
            await self._asked.send(json.dumps(event).encode() + b"\n")
            answer: dict[str, Any] = json.loads(await self._said.receive_until(b"\n", 6_000_000))
        except (anyio.BrokenResourceError, anyio.EndOfStream, anyio.IncompleteRead) as exc:
            raise FunctionError("Runtime.ExitError", "the process ended; its last words are above") from exc
        return answer


async def _end(process: anyio.abc.Process) -> None:
    with anyio.CancelScope(shield=True):
        process.kill()
        await process.aclose()


# ---- Step Functions ------------------------------------------------------------------------------------------------


class StateError(Exception):
    """A state failed: ``States.Timeout``, ``FargateRunner.Failed``, the class of what a handler raised."""

    def __init__(self, error: str, cause: str = "") -> None:
        super().__init__(f"{error}: {cause}")
        self.error = error
        self.cause = cause


class _Waiting:
    """A state that waits with its token."""

    def __init__(self) -> None:
        self.answered = anyio.Event()
        self.output: Any = None
        self.error: StateError | None = None


class StateMachine:
    """Step Functions: executions of one definition, and its API as far as the handlers call it."""

    def __init__(self, name: str, definition: Mapping[str, Any], functions: Functions, tasks: Any) -> None:
        self.arn = f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:{name}"
        self.executions: dict[str, dict[str, Any]] = {}
        self.answers = 0
        """How many answers of states came in, heard or not."""
        self._definition = definition
        self._functions = functions
        self._tasks = tasks
        self._waiting: dict[str, _Waiting] = {}

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[str]:
        app = web.Application()
        app.router.add_post("/", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        verb = request.headers["X-Amz-Target"].rpartition(".")[2]
        asked = await request.json()
        try:
            reply = {"StartExecution": self._start, "SendTaskSuccess": self._succeed, "SendTaskFailure": self._fail}[
                verb
            ](asked)
        except _Refused as exc:
            return web.json_response({"__type": exc.code, "message": str(exc)}, status=400)
        return web.json_response(reply, content_type="application/x-amz-json-1.0")

    def _start(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        name, now = asked["name"], datetime.now(UTC)
        arn = f"{self.arn.replace(':stateMachine:', ':execution:')}:{name}"
        known = self.executions.get(name)
        if known is None:
            known = {"status": "RUNNING", "input": asked["input"], "error": None, "started": now.timestamp()}
            self.executions[name] = known
            self._tasks.start_soon(self._run, arn, known)
        elif known["status"] != "RUNNING" or known["input"] != asked["input"]:
            raise _Refused("ExecutionAlreadyExists", f"Execution Already Exists: '{arn}'")
        return {"executionArn": arn, "startDate": known["started"]}

    def _succeed(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        self._of(asked).output = json.loads(asked["output"])
        return self._go_on(asked)

    def _fail(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        self._of(asked).error = StateError(asked.get("error", ""), asked.get("cause", ""))
        return self._go_on(asked)

    def _of(self, asked: Mapping[str, Any]) -> _Waiting:
        self.answers += 1
        found = self._waiting.get(asked["taskToken"])
        if found is None or found.answered.is_set():
            raise _Refused("TaskTimedOut", "Task Timed Out: 'Provided task does not exist anymore'")
        return found

    def _go_on(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        self._waiting[asked["taskToken"]].answered.set()
        return {}

    async def _run(self, arn: str, execution: dict[str, Any]) -> None:
        values, name = json.loads(execution["input"]), self._definition["StartAt"]
        context = {"Execution": {"Id": arn, "Name": arn.rpartition(":")[2], "Input": values}}
        while True:
            state = self._definition["States"][name]
            if state["Type"] == "Succeed":
                execution["status"] = "SUCCEEDED"
                return
            if state["Type"] == "Fail":
                execution.update(status="FAILED", error=_found(state["ErrorPath"], values, {}))
                return
            try:
                entered = {"Name": name, "EnteredTime": datetime.now(UTC).isoformat()}
                result, place = await self._retried(state, values, {**context, "State": entered}), state["ResultPath"]
                name = state["Next"]
            except StateError as exc:
                [caught] = state["Catch"]  # of States.ALL
                result, place = {"Error": exc.error, "Cause": exc.cause}, caught["ResultPath"]
                name = caught["Next"]
            values = {**values, place.removeprefix("$."): result}

    async def _retried(self, state: Mapping[str, Any], values: Any, context: Mapping[str, Any]) -> Any:
        tries = 0
        while True:
            try:
                return await self._task(state, values, {**context, "Task": {"Token": uuid4().hex * 8}})
            except StateError as exc:
                rules = [rule for rule in state["Retry"] if {exc.error, "States.TaskFailed"} & {*rule["ErrorEquals"]}]
                if not rules or tries >= rules[0]["MaxAttempts"]:
                    raise
                await anyio.sleep(rules[0]["IntervalSeconds"] * rules[0]["BackoffRate"] ** tries)
                tries += 1

    async def _task(self, state: Mapping[str, Any], values: Any, context: Mapping[str, Any]) -> Any:
        token = context["Task"]["Token"]
        waiting = self._waiting[token] = _Waiting()
        asked = _filled(state["Parameters"], values, context)
        try:
            # Twice: Lambda promises at least once, and a job has to be started once all the same.
            for _ in range(2):
                await self._functions.invoke(asked["FunctionName"], asked["Payload"])
        except FunctionError as exc:
            raise StateError(exc.kind, exc.message) from exc
        with anyio.move_on_after(state.get("TimeoutSeconds", math.inf)):
            await waiting.answered.wait()
        if waiting.error is not None:
            raise waiting.error
        if not waiting.answered.is_set():
            raise StateError("States.Timeout")
        return waiting.output


class _Refused(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def _filled(template: Any, values: Any, context: Mapping[str, Any]) -> Any:
    if isinstance(template, dict):
        return {
            name.removesuffix(".$"): _found(part, values, context)
            if name.endswith(".$")
            else _filled(part, values, context)
            for name, part in template.items()
        }
    return template


def _found(path: str, values: Any, context: Mapping[str, Any]) -> Any:
    found, rest = (context, path[2:]) if path.startswith("$$") else (values, path[1:])
    for name in re.findall(r"\.(\w+)", rest):
        found = found[name]
    return found


# ---- both ----------------------------------------------------------------------------------------------------------


class Local:
    """Uploads, functions and the state machine, in this process and its children. A `Platform`."""

    def __init__(self, functions: Functions, machine: StateMachine, url: str) -> None:
        self._functions = functions
        self._machine = machine
        self._url = url
        self._uploads: list[dict[str, Any]] = []

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncGenerator[Self]:
        definition = (HERE / "convert.asl.json").read_text().replace("${SubmitFunction}", "submit.submit")
        async with AsyncExitStack() as stack:
            functions = Functions(stack)
            tasks = await stack.enter_async_context(anyio.create_task_group())
            machine = StateMachine("convert", json.loads(definition), functions, tasks)
            url = await stack.enter_async_context(machine.serving())
            yield cls(functions, machine, url)
            tasks.cancel_scope.cancel()

    async def set_up(self, variables: Mapping[str, str]) -> None:
        here = {"AWS_ENDPOINT_URL_SFN": self._url, "STATE_MACHINE": self._machine.arn}
        self._functions.configure({**variables, **here})

    async def upload(self, bucket: str, names: list[str], random: Random) -> None:
        self._uploads = [_created(bucket, name, number) for number, name in enumerate(names)]
        await self._tell([*self._uploads, *self._uploads], random)

    async def tell_again(self, random: Random) -> None:
        await self._tell(self._uploads, random)

    async def _tell(self, events: list[dict[str, Any]], random: Random) -> None:
        async with anyio.create_task_group() as tasks:
            for event in random.sample(events, len(events)):
                tasks.start_soon(self._asynchronously, "submit.on_upload", event)

    async def _asynchronously(self, function: str, event: Any) -> None:
        for _ in range(3):  # tries that Lambda makes in all
            with suppress(FunctionError):  # its traceback is there
                await self._functions.invoke(function, event)
                return

    async def invoke(self, function: str, event: Any) -> Any:
        return await self._functions.invoke(function, event)

    async def executions(self) -> list[dict[str, Any]]:
        return [*self._machine.executions.values()]

    def answers(self) -> int | None:
        return self._machine.answers

    def said(self) -> str:
        calls, starts = self._functions.calls, self._functions.starts
        each = ", ".join(f"{calls[name]} calls of {name} in {starts[name]} processes" for name in sorted(calls))
        return f"{each}; {self._machine.answers} answers"


def _created(bucket: str, name: str, number: int) -> dict[str, Any]:
    """Return the event of an upload, as S3 sends it to EventBridge."""
    return {
        "version": "0",
        "id": str(uuid4()),
        "detail-type": "Object Created",
        "source": "aws.s3",
        "account": ACCOUNT,
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "region": REGION,
        "resources": [f"arn:aws:s3:::{bucket}"],
        "detail": {
            "version": "0",
            "bucket": {"name": bucket},
            "object": {"key": name, "size": 1024, "etag": "0" * 32, "sequencer": f"00617F08299329{number:04X}"},
            "request-id": uuid4().hex[:16].upper(),
            "requester": ACCOUNT,
            "reason": "PutObject",
        },
    }
