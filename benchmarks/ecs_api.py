"""
The door to AWS beside plain aioboto3, against a server of canned replies in a process of its own.

What AWS answers is the same on both sides, and so is the machine: CPU time is taken in turns (A B A B), and, where
valgrind is installed, instructions are counted as well, which no other load disturbs.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from benchmarks._report import Row

_MODULE: Final = "benchmarks.ecs_api"
_ACCOUNT: Final = "111122223333"
_AT: Final = 1778065333.877
_LINES: Final = 10_000
_REGION: Final = "us-east-1"
_OVERRIDES: Final[dict[str, Any]] = {
    "containerOverrides": [
        {
            "name": "main",
            "command": ["python", "-m", "job", "--day", "2026-05-06"],
            "environment": [{"name": f"VARIABLE_{n}", "value": f"value {n} of a usual length"} for n in range(8)],
        }
    ],
    "cpu": "1024",
    "memory": "2048",
}
_TAGS: Final = [{"key": f"team:{n}", "value": "billing"} for n in range(4)]


# ---- the server ----------------------------------------------------------------------------------------------------


def _task(number: int) -> dict[str, Any]:
    """Return a task as ECS tells it: some 2.3 KB."""
    name = f"{number:032x}"
    arn = f"arn:aws:ecs:{_REGION}:{_ACCOUNT}:task/jobs/{name}"
    interface = {"attachmentId": "7d6c5b4a-0000-4000-8000-000000000002", "privateIpv4Address": "10.0.1.20"}
    details = {"subnetId": "subnet-0a1b2c3d", "networkInterfaceId": "eni-0a1b2c3d", "macAddress": "0a:58:a9:fe:ac:02"}
    return {
        "taskArn": arn,
        "clusterArn": f"arn:aws:ecs:{_REGION}:{_ACCOUNT}:cluster/jobs",
        "taskDefinitionArn": f"arn:aws:ecs:{_REGION}:{_ACCOUNT}:task-definition/fr-billing-job-3f2a9c:1",
        "attachments": [
            {
                "id": interface["attachmentId"],
                "type": "ElasticNetworkInterface",
                "status": "ATTACHED",
                "details": [{"name": part, "value": value} for part, value in details.items()],
            }
        ],
        "attributes": [{"name": "ecs.cpu-architecture", "value": "x86_64"}],
        "availabilityZone": f"{_REGION}b",
        "capacityProviderName": "FARGATE",
        "connectivity": "CONNECTED",
        "connectivityAt": _AT + 3,
        "containers": [
            {
                "containerArn": f"arn:aws:ecs:{_REGION}:{_ACCOUNT}:container/jobs/{name}/aaaaaaaa-0000",
                "taskArn": arn,
                "name": "main",
                "image": f"{_ACCOUNT}.dkr.ecr.{_REGION}.amazonaws.com/job:1",
                "imageDigest": "sha256:" + "0" * 64,
                "runtimeId": f"{name}-0265927825",
                "lastStatus": "RUNNING",
                "networkBindings": [],
                "networkInterfaces": [interface],
                "healthStatus": "UNKNOWN",
                "cpu": "0",
            }
        ],
        "cpu": "1024",
        "createdAt": _AT,
        "desiredStatus": "RUNNING",
        "enableExecuteCommand": False,
        "ephemeralStorage": {"sizeInGiB": 20},
        "group": "family:fr-billing-job-3f2a9c",
        "healthStatus": "UNKNOWN",
        "lastStatus": "RUNNING",
        "launchType": "FARGATE",
        "memory": "2048",
        "overrides": _OVERRIDES,
        "platformFamily": "Linux",
        "platformVersion": "1.4.0",
        "pullStartedAt": _AT + 10,
        "pullStoppedAt": _AT + 20,
        "startedAt": _AT + 25,
        "startedBy": f"fr/billing/{name}{name[:20]}",
        "tags": _TAGS,
        "version": 4,
    }


def _replies() -> dict[str, bytes]:
    replies = {
        "RunTask": {"tasks": [_task(0)], "failures": []},
        "DescribeTasks": {"tasks": [_task(n) for n in range(100)], "failures": []},
    }
    return {operation: json.dumps(reply).encode() for operation, reply in replies.items()} | {
        "GetLogEvents": _page(0, 1)
    }


@functools.lru_cache(maxsize=16)
def _page(number: int, pages: int) -> bytes:
    """Return a page of a stream of that many *pages*, or the empty one behind the last."""
    numbers = range(number * _LINES, (number + 1) * _LINES) if number < pages else ()
    events = [
        {"timestamp": 1778065333877 + n, "ingestionTime": 1778065334877 + n, "message": f"{n:>10} " + "x" * 59}
        for n in numbers
    ]
    forward = f"f/{min(number + 1, pages)}/s"
    return json.dumps({"events": events, "nextForwardToken": forward, "nextBackwardToken": "b/1/s"}).encode()


def _page_asked_for(request: bytes) -> bytes | None:
    """Return the page of a stream that is named after how many it has."""
    asked = json.loads(request)
    pages = str(asked.get("logStreamName", "")).removeprefix("fr/pages/")
    if not pages.isdigit():
        return None
    token = asked.get("nextToken", "f/0/s")
    return _page(int(token.split("/")[1]), int(pages))


class _Canned(asyncio.Protocol):
    """Answers each request with the canned reply of its operation: as little work as there can be."""

    replies: dict[str, bytes]

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:end].decode().lower()
            length = int(found[1]) if (found := re.search(r"^content-length: *(\d+)", head, re.MULTILINE)) else 0
            if len(self._received) < end + 4 + length:
                return
            request, self._received = self._received[end + 4 : end + 4 + length], self._received[end + 4 + length :]
            target = re.search(r"^x-amz-target: *\S+\.(\w+)", head, re.MULTILINE)
            body = next((b for name, b in self.replies.items() if target and name.lower() == target[1]), b"{}")
            if target and target[1] == "getlogevents":
                body = _page_asked_for(request) or body
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.1\r\n"
                b"x-amzn-RequestId: 11111111-2222-4333-8444-555555555555\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )


async def _serve() -> None:
    _Canned.replies = _replies()
    server = await asyncio.get_running_loop().create_server(_Canned, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def _server() -> Generator[str]:
    with subprocess.Popen([sys.executable, "-m", _MODULE, "serve"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


# ---- the two ways --------------------------------------------------------------------------------------------------

Ask = Callable[..., Awaitable[dict[str, Any]]]

_REQUESTS: Final[dict[str, dict[str, Any]]] = {
    "RunTask": {
        "cluster": "jobs",
        "taskDefinition": f"arn:aws:ecs:{_REGION}:{_ACCOUNT}:task-definition/fr-billing-job-3f2a9c:1",
        "launchType": "FARGATE",
        "clientToken": "a" * 52,
        "startedBy": "fr/billing/" + "a" * 52,
        "networkConfiguration": {
            "awsvpcConfiguration": {"subnets": ["subnet-0a1b2c3d", "subnet-1a1b2c3d"], "assignPublicIp": "DISABLED"}
        },
        "overrides": _OVERRIDES,
        "tags": _TAGS,
    },
    "DescribeTasks": {
        "cluster": "jobs",
        "tasks": [f"arn:aws:ecs:{_REGION}:{_ACCOUNT}:task/jobs/{n:032x}" for n in range(100)],
    },
    "GetLogEvents": {"logGroupName": "/fr", "logStreamName": "fr/main/0", "startFromHead": True},
}
_METHODS: Final = {
    "RunTask": ("ecs", "run_task"),
    "DescribeTasks": ("ecs", "describe_tasks"),
    "GetLogEvents": ("logs", "get_log_events"),
}


@asynccontextmanager
async def _ours(url: str) -> AsyncGenerator[Ask]:
    from fargate_runner.backends.ecs._api import Api, Budget

    plenty = Budget(run_task=1e9, modify=1e9, read=1e9, get_log_events=1e9)
    api = Api(region=_REGION, endpoint_url=url, budget=plenty)

    async def ask(operation: str) -> dict[str, Any]:
        return await api.call(f"{_METHODS[operation][0]}.{operation}", **_REQUESTS[operation])

    async with api.running():
        yield ask
        assert api.parser == "fast"


@asynccontextmanager
async def _stock(url: str) -> AsyncGenerator[Ask]:
    import aioboto3

    session = aioboto3.Session(region_name=_REGION)
    async with session.client("ecs", endpoint_url=url) as ecs, session.client("logs", endpoint_url=url) as logs:
        clients = {"ecs": ecs, "logs": logs}

        async def ask(operation: str) -> dict[str, Any]:
            service, method = _METHODS[operation]
            reply: dict[str, Any] = await getattr(clients[service], method)(**_REQUESTS[operation])
            return reply

        yield ask


_WAYS: Final = {"ours": _ours, "stock": _stock}

Read = Callable[[int], Awaitable[int]]
"""Reads a stream of so many pages to its end, looks at the text of each line, and returns how many there were."""


@asynccontextmanager
async def _our_reader(url: str) -> AsyncGenerator[Read]:
    from fargate_runner.backends.ecs._api import Api, Budget
    from fargate_runner.backends.ecs._logs import LogCadence, LogReader

    plenty = Budget(get_log_events=1e9)
    api = Api(region=_REGION, endpoint_url=url, budget=plenty)

    async def read(pages: int) -> int:
        count = 0
        streams = {f"fr/pages/{pages}": "main"}
        async for lines in reader.read("/fr", streams, tail=None, attempt=1):
            for line in lines:
                count += line.text != ""
        return count

    async with api.running():
        reader = LogReader(api, utcnow=lambda: datetime.now(UTC), cadence=LogCadence())
        yield read
        assert api.parser == "fast"


@asynccontextmanager
async def _stock_reader(url: str) -> AsyncGenerator[Read]:
    import aioboto3

    async with aioboto3.Session(region_name=_REGION).client("logs", endpoint_url=url) as logs:

        async def read(pages: int) -> int:
            count, where = 0, dict[str, str]()
            while True:
                reply = await logs.get_log_events(
                    logGroupName="/fr", logStreamName=f"fr/pages/{pages}", startFromHead=True, **where
                )
                for event in reply["events"]:
                    count += event["message"] != ""
                if reply["nextForwardToken"] == where.get("nextToken"):
                    return count
                where["nextToken"] = reply["nextForwardToken"]

        yield read


_READERS: Final = {"ours": _our_reader, "stock": _stock_reader}


async def _cpu_of(ask: Ask, operation: str, times: int) -> float:
    began = time.process_time()
    for _ in range(times):
        await ask(operation)
    return (time.process_time() - began) / times


async def _in_turns(url: str, rounds: int) -> dict[str, tuple[float, float]]:
    """Return CPU seconds for each call: ours, then aioboto3's."""
    found: dict[str, tuple[float, float]] = {}
    async with _ours(url) as ours, _stock(url) as stock:
        for operation, times in (("RunTask", 50), ("DescribeTasks", 3), ("GetLogEvents", 2)):
            await ours(operation), await stock(operation)
            figures = [
                (await _cpu_of(ours, operation, times), await _cpu_of(stock, operation, times)) for _ in range(rounds)
            ]
            mine, theirs = (statistics.median(column) for column in zip(*figures, strict=True))
            found[operation] = mine, theirs
    return found


async def _readers_in_turns(url: str, rounds: int, pages: int = 3) -> tuple[float, float]:
    """Return CPU seconds for each line: ours, then aioboto3's."""

    async def cpu_of(read: Read) -> float:
        began = time.process_time()
        count = await read(pages)
        assert count == pages * _LINES
        return (time.process_time() - began) / count

    async with _our_reader(url) as ours, _stock_reader(url) as stock:
        await ours(pages)
        await stock(pages)
        figures = [(await cpu_of(ours), await cpu_of(stock)) for _ in range(rounds)]
    mine, theirs = (statistics.median(column) for column in zip(*figures, strict=True))
    return mine, theirs


# ---- whole processes -----------------------------------------------------------------------------------------------


async def _once(way: str, url: str, operation: str, times: int) -> None:
    async with _WAYS[way](url) as ask:
        for _ in range(times):
            await ask(operation)


async def _read_once(way: str, url: str, pages: int) -> None:
    async with _READERS[way](url) as read:
        assert await read(pages) == pages * _LINES


async def _stall(way: str, url: str) -> float:
    """Return the longest time that the first use keeps the event loop from anything else."""
    longest, over = 0.0, False

    async def beat() -> None:
        nonlocal longest
        last = time.perf_counter()
        while not over:
            await asyncio.sleep(0.0005)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    import fargate_runner.backends.ecs  # noqa: F401 (imported where an application imports it, before there is a loop)

    beating = asyncio.create_task(beat())
    await asyncio.sleep(0.01)
    longest = 0.0
    await _once(way, url, "RunTask", 1)
    over = True
    await beating
    return longest


def _process(*words: str, under: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONHASHSEED": "0"}
    command = [*under, sys.executable, "-m", _MODULE, *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True)


def _cpu_of_process(*words: str) -> float:
    before = os.times()
    _process(*words)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def _instructions(*words: str) -> float:
    """Return how many instructions a whole process takes."""
    grind = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")
    found = re.search(r"I\s+refs:\s+([\d,]+)", _process(*words, under=grind).stderr)
    assert found is not None
    return float(found[1].replace(",", ""))


def _instructions_of_a_call(way: str, url: str, operation: str, times: int) -> float:
    """Return the instructions of one call: what more of them make a process longer by."""
    few, many = (_instructions("ask", way, url, operation, str(count)) for count in (2, 2 + times))
    return (many - few) / times


def _instructions_of_a_line(way: str, url: str, pages: int = 4) -> float:
    """Return the instructions of one line read: what more pages make a process longer by."""
    few, many = (_instructions("read", way, url, str(count)) for count in (2, 2 + pages))
    return (many - few) / (pages * _LINES)


# ---- the table -----------------------------------------------------------------------------------------------------

_GOALS: Final = {
    "RunTask": ("submit path: one RunTask", 1.15, "client.run_task"),
    "DescribeTasks": ("one poll of 100 tasks", 0.35, "client.describe_tasks"),
    "GetLogEvents": ("one page of 10,000 lines, a line", 0.35, "client.get_log_events"),
}


def _row(operation: str, kind: str, ours: float, theirs: float, unit: str, scale: float) -> Row:
    name, goal, against = _GOALS[operation]
    scale /= _LINES if operation == "GetLogEvents" else 1
    return Row(f"ecs, {name}: {kind}", ours * scale, theirs * scale, unit, f"aioboto3 {against}", goal)


def _reading_row(kind: str, ours: float, theirs: float, unit: str, scale: float) -> Row:
    name = f"ecs, reading log lines through LogReader, a line: {kind}"
    return Row(name, ours * scale, theirs * scale, unit, "paging with aioboto3 client.get_log_events", 0.35)


@contextmanager
def _somebody() -> Generator[None]:
    """Be somebody with a key, and nobody else's settings."""
    ours = {
        "AWS_ACCESS_KEY_ID": "AKIABENCH",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def run(*, rounds: int = 15, instructions: bool = True) -> list[Row]:
    """Measure."""
    rows: list[Row] = []
    with _somebody(), _server() as url:
        for operation, (ours, theirs) in asyncio.run(_in_turns(url, rounds)).items():
            rows.append(_row(operation, "CPU", ours, theirs, "us", 1e6))
        rows.append(_reading_row("CPU", *asyncio.run(_readers_in_turns(url, rounds)), "us", 1e6))
        cold = [[_cpu_of_process("ask", way, url, "RunTask", "1") for way in _WAYS] for _ in range(max(3, rounds // 3))]
        ours, theirs = (statistics.median(column) for column in zip(*cold, strict=True))
        rows.append(Row("ecs, cold process to the first answer: CPU", ours * 1e3, theirs * 1e3, "ms", "aioboto3"))
        stalls = [[float(_process("stall", way, url).stdout) for way in _WAYS] for _ in range(max(3, rounds // 3))]
        ours, theirs = (min(column) for column in zip(*stalls, strict=True))
        against = "aioboto3 imported and used inline"
        rows.append(Row("ecs, longest stall of the loop by a first use", ours * 1e3, theirs * 1e3, "ms", against, 0.25))
        if instructions and shutil.which("valgrind"):
            for operation, times in (("RunTask", 40), ("DescribeTasks", 10), ("GetLogEvents", 4)):
                ours, theirs = (_instructions_of_a_call(way, url, operation, times) for way in _WAYS)
                rows.append(_row(operation, "instructions", ours, theirs, "M", 1e-6))
            ours, theirs = (_instructions_of_a_line(way, url) for way in _READERS)
            rows.append(_reading_row("instructions", ours, theirs, "k", 1e-3))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}")
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("serve", help="answer until killed; says its port")
    for part in ("ask", "stall"):
        asking = parts.add_parser(part)
        asking.add_argument("way", choices=_WAYS)
        asking.add_argument("url")
        if part == "ask":
            asking.add_argument("operation", choices=_METHODS)
            asking.add_argument("times", type=int)
    reading = parts.add_parser("read")
    reading.add_argument("way", choices=_READERS)
    reading.add_argument("url")
    reading.add_argument("pages", type=int)
    given = parser.parse_args()
    match given.part:
        case "serve":
            asyncio.run(_serve())
        case "ask":
            asyncio.run(_once(given.way, given.url, given.operation, given.times))
        case "read":
            asyncio.run(_read_once(given.way, given.url, given.pages))
        case _:
            print(asyncio.run(_stall(given.way, given.url)))


if __name__ == "__main__":
    main()
