"""
Killed with SIGKILL on a real engine, whose own events tell what was started.

FARGATE_RUNNER_KILLED_POINTS and FARGATE_RUNNER_KILLED_MOMENTS say how often, in steps of five.
"""

from __future__ import annotations

import json
import subprocess
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, Self

import pytest

from tests.docker.conftest import docker
from tests.killed import account
from tests.killed.batch import ENDS, IMAGE, Plan
from tests.killed.lives import how_many

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine"), pytest.mark.timeout(900)]

PARTS = 5
POINTS = how_many("FARGATE_RUNNER_KILLED_POINTS", 40)
MOMENTS = how_many("FARGATE_RUNNER_KILLED_MOMENTS", 50)


class Witness:
    """Everything that the engine says of the containers of a namespace, also of those that are gone."""

    def __init__(self, namespace: str) -> None:
        self._label = f"label=fargate-runner.namespace={namespace}"
        self._label_of_marks = self._label.removeprefix("label=")
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        words = ["docker", "events", "--filter", self._label, "--filter", "type=container", "--format", "{{json .}}"]
        # What comes before it is connected is told as well.
        now = docker("info", "--format", "{{.SystemTime}}")
        self._process = subprocess.Popen([*words, "--since", now], stdout=subprocess.PIPE, text=True)
        self._read_to_a_mark()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read_to_a_mark(self) -> list[dict[str, Any]]:
        """Everything until now: a container is made, and its event is the last of them."""
        name = f"mark-{uuid.uuid4().hex}"
        docker("create", "--name", name, "--label", self._label_of_marks, IMAGE, "true")
        docker("rm", name)
        told: list[dict[str, Any]] = []
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told.append(json.loads(line))
            if told[-1]["Actor"]["Attributes"]["name"] == name and told[-1]["Action"] == "destroy":
                return told
        raise AssertionError("the engine says no more")

    def look(self) -> None:
        """Take in everything until now."""
        self._events += self._read_to_a_mark()

    def starts(self) -> Counter[tuple[str, str]]:
        """How often each attempt of each key was started."""
        return Counter(
            (marks["fargate-runner.key"], marks["fargate-runner.attempt"])
            for action, marks, _ in self._of_jobs()
            if action == "start"
        )

    def tales(self, faults: list[str]) -> str:
        """What the engine says of the keys that begin the lines of *faults*."""
        keys = {fault.split()[0].rstrip(":") for fault in faults}
        told = [
            f"{at} {action} {marks['fargate-runner.key']} {marks['fargate-runner.attempt']} {marks.get('exitCode', '')}"
            for action, marks, at in self._of_jobs()
            if marks["fargate-runner.key"] in keys
        ]
        return "\n".join([*faults, *told])

    def _of_jobs(self) -> Iterator[tuple[str, dict[str, str], int]]:
        for event in self._events:
            marks = event["Actor"]["Attributes"]
            if marks.get("fargate-runner.role") == "job":
                yield event["Action"], marks, event["timeNano"]


@pytest.fixture
def namespace() -> Iterator[str]:
    namespace = f"killed-{uuid.uuid4().hex[:12]}"
    yield namespace
    # A record that was written, and a runner that was killed before it forgot: the engine keeps that for an hour.
    if left := containers(namespace):
        docker("rm", "--force", *left)


def containers(namespace: str, *only: str) -> list[str]:
    marks = ["--filter", f"label=fargate-runner.namespace={namespace}", *only]
    return docker("ps", "--all", "--quiet", *marks).split()


@pytest.mark.parametrize("part", range(PARTS))
async def test_killed_wherever_every_job_ends_once(namespace: str, tmp_path: Path, part: int) -> None:
    plan = Plan(place="docker", directory=tmp_path, namespace=namespace, batch="batch")
    points = account.points_of(part, PARTS, POINTS)

    with Witness(namespace) as witness:
        toll = await account.take(plan, points=points, moments=MOMENTS // PARTS, chance=Random(part))
        witness.look()
        starts = witness.starts()

    print(f"part {part}: {toll}", *toll.at_points, sep="; ")
    assert not toll.faults, witness.tales(toll.faults)
    doubled = [f"{key}: attempt {attempt} was started twice" for (key, attempt), times in starts.items() if times > 1]
    assert not doubled, witness.tales(doubled)
    assert sorted(whose for whose in starts if "cancelled" not in whose[0]) == sorted(
        (f"batch-{batch}/{name}", str(attempt + 1))
        for batch in range(toll.batches)
        for name, (_, attempts) in ENDS.items()
        for attempt in range(attempts)
        if name != "cancelled"  # it may be stopped before it has begun
    )
    assert containers(namespace, "--filter", "status=running") == []
    assert len(toll.at_points) == len(points)
