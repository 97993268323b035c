"""
Docker: our client beside `docker run --rm` and docker-py, on the same engine in the same run.

The engine does nearly all of the work, so the rounds are interleaved: A B A B.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import anyio

from benchmarks._report import Row
from fargate_runner import DockerBackend, Job, Runner

IMAGE = "fargate-runner-test/busybox:latest"


def _cpu_self() -> float:
    return sum(os.times()[:2])


def _cpu_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _docker_run() -> None:
    subprocess.run(["docker", "run", "--rm", IMAGE, "true"], check=True)


async def _one_after_another(rounds: int) -> tuple[float, float, float, float]:
    """Wall and CPU seconds per job: ours, then the CLI's."""
    job = Job(image=IMAGE, command=["true"])
    ours, theirs, our_cpu, their_cpu = [], [], [], []
    async with Runner(DockerBackend()) as runner:
        await runner.run(job)
        _docker_run()
        for _ in range(rounds):
            began, cpu = time.perf_counter(), _cpu_self()
            await runner.run(job)
            ours.append(time.perf_counter() - began)
            our_cpu.append(_cpu_self() - cpu)
            began, cpu = time.perf_counter(), _cpu_children()
            _docker_run()  # nothing else runs in this process meanwhile
            theirs.append(time.perf_counter() - began)
            their_cpu.append(_cpu_children() - cpu)
    return statistics.median(ours), statistics.median(theirs), statistics.mean(our_cpu), statistics.mean(their_cpu)


async def _many_at_once(count: int) -> float:
    """Jobs per second of ours, *count* in flight."""
    job = Job(image=IMAGE, command=["true"])
    async with Runner(DockerBackend()) as runner:
        began = time.perf_counter()
        results = [result async for result in runner.map([job] * count, concurrency=count)]
        assert all(result.succeeded for result in results)
        return count / (time.perf_counter() - began)


def _many_with_docker_py(count: int) -> float:
    import docker  # type: ignore[import-untyped]

    def cycle(_: int) -> int:
        container = client.containers.create(IMAGE, ["true"])
        container.start()
        code: int = container.wait()["StatusCode"]
        container.logs()
        container.remove()
        return code

    client = docker.from_env(max_pool_size=count)
    began = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        assert not any(pool.map(cycle, range(count)))
    return count / (time.perf_counter() - began)


def _interleaved(rounds: int, *ways: Callable[[], float]) -> list[float]:
    figures = [[way() for way in ways] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*figures, strict=True)]


def run(*, jobs: int = 20, at_once: int = 50, rounds: int = 2) -> list[Row]:
    """Measure."""
    wall, their_wall, cpu, their_cpu = anyio.run(_one_after_another, jobs)
    ours, theirs = _interleaved(
        rounds, lambda: anyio.run(_many_at_once, at_once), lambda: _many_with_docker_py(at_once)
    )
    return [
        Row("docker, one after another: wall per job", wall * 1e3, their_wall * 1e3, "ms", "docker run --rm", 1.0),
        Row("docker, one after another: client CPU per job", cpu * 1e3, their_cpu * 1e3, "ms", "docker run --rm", 0.25),
        Row(f"docker, {at_once} at once", ours, theirs, "jobs/s", "docker-py in threads", 0.95, higher=True),
    ]
