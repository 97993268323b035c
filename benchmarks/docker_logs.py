"""
`python -m benchmarks.docker_logs [--lines N] [--rounds R] [--json FILE]`: our log reader beside others.

Each reader runs in a process of its own and follows a fresh container that writes as fast as the engine takes it; the
rounds are interleaved: A B C D A B C D. With a rotating log the others lose lines, so their figures there say little.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from benchmarks._report import Row, show, write

SOCKET = "/var/run/docker.sock"
IMAGE = "fargate-runner-test/busybox:latest"
LABEL = "fargate-runner.test=logs"
LINE = "line %d of the ordinary output of a job, about eighty bytes as they often are ..."
WRITER = (
    "trap : USR1; sleep 600 & wait $!; "  # the signal says that the reader is there
    f"""exec awk 'BEGIN {{ for (i = 1; i <= '"$LINES"'; i++) printf "{LINE}\\n", i }}'"""
)
ROTATED = ("--log-opt", "max-size=10m", "--log-opt", "max-file=50")
SLOW_LINES_PER_SECOND = 1000
"""About a hundredth of what the engine can write."""


# Readers: each counts the lines of one container, says when it is ready, and returns the count and its extra CPU time.


def _ours(container: str, ready: Callable[[], None], *, slow: bool = False) -> int:
    import aiohttp

    from fargate_runner.backends.docker._logs import read_container

    async def read() -> int:
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(SOCKET), timeout=timeout) as session:
            over = asyncio.Event()

            async def watch() -> None:
                async with session.post(f"http://localhost/containers/{container}/wait") as answer:
                    await answer.read()
                over.set()

            watcher = asyncio.create_task(watch())
            await asyncio.sleep(0)
            ready()
            count = 0
            lines: AsyncGenerator[Any] = read_container(
                session,
                "http://localhost",
                container,
                container="main",
                attempt=1,
                follow=True,
                tail=None,
                ended=_void(over.wait),
            )
            async with contextlib.aclosing(lines):
                async for line in lines:
                    count += 1
                    if slow or count % 1000 == 0:
                        assert line.text == LINE % count, f"line {count} is {line.text!r}"
                    if slow and not over.is_set() and count % 10 == 0:
                        await asyncio.sleep(10 / SLOW_LINES_PER_SECOND)
            await watcher
            return count

    return asyncio.run(read())


def _void(wait: Callable[[], Any]) -> Callable[[], Any]:
    async def ended() -> None:
        await wait()

    return ended


def _ours_slow(container: str, ready: Callable[[], None]) -> int:
    return _ours(container, ready, slow=True)


def _aiodocker(container: str, ready: Callable[[], None]) -> int:
    import aiodocker

    async def read() -> int:
        async with aiodocker.Docker(f"unix://{SOCKET}") as docker:
            found = docker.containers.container(container)
            ready()
            count = 0
            async for _ in found.log(stdout=True, stderr=True, follow=True, timestamps=True):
                count += 1
            return count

    return asyncio.run(read())


def _docker_py(container: str, ready: Callable[[], None]) -> int:
    import docker  # type: ignore[import-untyped]

    found = docker.DockerClient(f"unix://{SOCKET}", timeout=600).containers.get(container)
    ready()
    return sum(1 for _ in found.logs(stream=True, follow=True, timestamps=True))


def _cli(container: str, ready: Callable[[], None]) -> int:
    ready()
    command = ["docker", "logs", "--follow", "--timestamps", container]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as docker:
        assert docker.stdout is not None
        pipe, count = docker.stdout.fileno(), 0
        while received := os.read(pipe, 2**16):
            count += received.count(b"\n")
        return count


READERS: dict[str, Callable[[str, Callable[[], None]], int]] = {
    "ours": _ours,
    "ours, slow": _ours_slow,
    "aiodocker": _aiodocker,
    "docker-py": _docker_py,
    "docker logs -f": _cli,
}


def _peers() -> Iterator[str]:
    if importlib.util.find_spec("aiodocker"):
        yield "aiodocker"
    if importlib.util.find_spec("docker"):
        yield "docker-py"
    if shutil.which("docker"):
        yield "docker logs -f"


def _read_as(reader: str, container: str) -> None:
    """Be the process that reads."""
    cpu = peak = 0.0

    def ready() -> None:
        nonlocal cpu, peak
        cpu, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print("ready", flush=True)

    count = READERS[reader](container, ready)
    over = time.monotonic()
    child = resource.getrusage(resource.RUSAGE_CHILDREN)
    # What the process that counts for the CLI does itself is no cost of the CLI.
    own = 0.0 if reader == "docker logs -f" else time.process_time() - cpu
    figures = {
        "lines": count,
        "over": over,
        "cpu": own + child.ru_utime + child.ru_stime,
        "growth": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024,
    }
    print(json.dumps(figures), flush=True)


# The process that measures.


@contextlib.contextmanager
def _writer(lines: int, options: tuple[str, ...]) -> Generator[str]:
    command = ["docker", "run", "--detach", "--network", "none", "--label", LABEL, "--env", f"LINES={lines}"]
    logging = ["--log-driver", "json-file", *options]
    run = subprocess.run([*command, *logging, IMAGE, "sh", "-c", WRITER], check=True, stdout=subprocess.PIPE, text=True)
    container = run.stdout.strip()
    try:
        yield container
    finally:
        subprocess.run(["docker", "rm", "--force", container], check=True, stdout=subprocess.DEVNULL)


def _measure(reader: str, lines: int, options: tuple[str, ...] = ()) -> dict[str, float]:
    with _writer(lines, options) as container:
        worker = [sys.executable, "-m", "benchmarks.docker_logs", "--read-as", reader, container]
        with subprocess.Popen(worker, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", f"{reader} does not start"
            time.sleep(0.3)  # ready is said just before the reader asks the engine
            begun = time.monotonic()
            subprocess.run(["docker", "kill", "--signal", "USR1", container], check=True, stdout=subprocess.DEVNULL)
            told = process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{reader} failed with exit code {process.returncode}")
    figures: dict[str, float] = json.loads(told)
    seconds = figures["over"] - begun
    got = max(figures["lines"], 1)
    return {
        "lines": figures["lines"],
        "seconds": seconds,
        "lines/s": got / seconds,
        "µs/line": figures["cpu"] / got * 1e6,
        "growth": figures["growth"],
    }


def _median(rounds: list[dict[str, float]], key: str) -> float:
    return statistics.median(figures[key] for figures in rounds)


def run(*, lines: int = 300_000, rounds: int = 2) -> list[Row]:
    """Measure."""
    rows: list[Row] = []
    for log, options in (("json-file", ()), ("json-file max-size=10m", ROTATED)):
        figures: dict[str, list[dict[str, float]]] = {name: [] for name in ("ours", *_peers())}
        for number in range(rounds):
            for name, seen in figures.items():
                seen.append(_measure(name, lines, options))
                say = seen[-1]
                print(
                    f"… {log}, round {number + 1}: {name:<15} {say['lines']:>11,.0f} lines {say['lines/s']:>9,.0f}/s "
                    f"{say['µs/line']:6.2f} µs of CPU a line, {say['growth']:5.1f} MiB",
                    file=sys.stderr,
                    flush=True,
                )
        ours = figures.pop("ours")
        fewest = min(seen["lines"] for seen in ours)
        rows.append(Row(f"logs, {log}: lines got", fewest, lines, "lines", "written", 1.0, higher=True))
        for name, seen in figures.items():
            got = _median(seen, "lines")
            # Who loses lines is fast: no goal beside that.
            rate_goal = 1.0 if got == lines else None
            cpu_goal = 0.7 if got == lines and name == "aiodocker" else None
            rate, cpu = "lines/s", "µs/line"
            rows += [
                Row(f"logs, {log}: follow", _median(ours, rate), _median(seen, rate), rate, name, rate_goal, True),
                Row(f"logs, {log}: CPU", _median(ours, cpu), _median(seen, cpu), cpu, name, cpu_goal),
                Row(f"logs, {log}: their lines", got, lines, "lines", f"written ({name})"),
            ]
        slow = _measure("ours, slow", lines, options)
        name = f"logs, {log}, reader 100 x slower"
        rows += [
            Row(f"{name}: lines got", slow["lines"], lines, "lines", "written", 1.0, higher=True),
            Row(f"{name}: peak RSS growth", slow["growth"], 64, "MiB", "promised", 1.0),
        ]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.docker_logs", description=__doc__)
    parser.add_argument("--lines", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--read-as", nargs=2, metavar=("READER", "CONTAINER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read_as:
        _read_as(*given.read_as)
        return 0
    rows = run(lines=given.lines, rounds=given.rounds)
    show(rows)
    if given.json is not None:
        write(rows, given.json)
    return int(any(row.verdict.startswith("MISSED") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
