"""What really happened in the fake AWS, for tests that compare it with what the runner says."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

from fargate_runner import Attempt, JobResult
from fargate_runner.testing.aws import FakeAws, TaskTruth


def alive(aws: FakeAws) -> list[str]:
    """The tasks that have not stopped."""
    return [truth.arn for truth in aws.world.truth() if truth.status != "STOPPED"]


def attempt_of(aws: FakeAws, arn: str) -> tuple[str, int]:
    """Whose attempt a task is: its owner, and the number."""
    task = aws.world.tasks[arn]
    number = next(c.run.environment["FARGATE_RUNNER_ATTEMPT"] for c in task.containers if c.run.name == "main")
    return task.started_by or "", int(number)


def doubled_tokens(aws: FakeAws) -> list[str | None]:
    """The tokens, each of a key, attempt and placement, that started more than one task."""
    return [token for token, times in Counter(truth.token for truth in aws.world.truth()).items() if times > 1]


def doubled_attempts(aws: FakeAws) -> list[tuple[str, int]]:
    """The attempts of which two tasks were alive at once, from the launch to STOPPED."""
    lives: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for truth in aws.world.truth():
        end = float("inf") if truth.stopped_at is None else truth.stopped_at
        lives[attempt_of(aws, truth.arn)].append((truth.accepted_at, end))
    return [whose for whose, spans in lives.items() if any(a[1] > b[0] for a, b in pairwise(sorted(spans)))]


def untrue(aws: FakeAws, results: list[JobResult]) -> list[str]:
    """What records say that did not happen."""
    truths = {truth.arn: truth for truth in aws.world.truth()}
    attempts = [attempt for result in results for attempt in result.attempts if attempt.address is not None]
    return [said for attempt in attempts if (said := _untrue(attempt, truths[attempt.address or ""]))]


def _untrue(attempt: Attempt, truth: TaskTruth) -> str:
    main = truth.containers["main"]
    said = attempt.outcome
    if said.succeeded and (main.exit_code != 0 or truth.stop_code in {"SpotInterruption", "UserInitiated"}):
        return f"{attempt.address} is called a success, and was {truth}"
    if said.exit_code is not None and said.exit_code != main.exit_code:
        return f"{attempt.address}: exit code {said.exit_code}, and it was {main.exit_code}"
    return ""
