"""Many containers at once, through the runner: none is lost, none is left, no line is missing."""

from __future__ import annotations

import anyio
import pytest

from fargate_runner import DockerBackend, Job, JobResult, Runner

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine"), pytest.mark.timeout(400)]

IMAGE = "fargate-runner-test/busybox:latest"
LINES = 50


def counting(number: int) -> Job:
    script = f"seq 1 {LINES}; echo {number}; exit {number % 7}"
    return Job(image=IMAGE, command=["sh", "-c", script], key=f"many/{number}")


async def test_two_hundred_containers_sixty_of_them_followed() -> None:
    results: dict[int, JobResult] = {}
    followed: dict[int, list[str]] = {}

    async def follow(number: int) -> None:
        handle = await runner.submit(counting(number))
        followed[number] = [line.text async for line in handle.logs()]
        results[number] = await handle.wait()

    async def watch(number: int) -> None:
        results[number] = await (await runner.submit(counting(number))).wait()

    async with DockerBackend() as backend:
        async with Runner(backend, namespace="many") as runner, anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(follow, number)
            for number in range(60, 200):
                tasks.start_soon(watch, number)
        left = [ref for number in range(200) for ref in await backend.find("many", f"many/{number}")]

    assert {number: result.exit_code for number, result in results.items()} == {n: n % 7 for n in range(200)}
    assert followed == {n: [*(str(i) for i in range(1, LINES + 1)), str(n)] for n in range(60)}
    assert left == []


async def test_a_map_on_docker_keeps_to_what_the_machine_can_take() -> None:
    async with Runner(DockerBackend(), namespace="many") as runner:
        limit = runner.backend.default_concurrency
        codes = [result.exit_code async for result in runner.map(map(counting, range(1000, 1020)), on_error="collect")]

    assert codes == [number % 7 for number in range(1000, 1020)]
    assert 4 <= limit <= 64
