"""On a bad day, too: whatever lives that are killed, throttled and not answered ask of AWS, their policy allows."""

from __future__ import annotations

import attrs
import pytest

from fargate_runner.infrastructure import Access, caller_policy
from tests.chaos.harness import ROLES, Years
from tests.chaos.plan import plan_of
from tests.infrastructure.iam import ACCOUNT, Need, actions, allowed, needs

pytestmark = pytest.mark.sweep

SEEDS = range(12)
SET_UP = {"sqs.CreateQueue", "sqs.GetQueueAttributes", "sqs.SetQueueAttributes", "events.PutRule", "events.PutTargets"}
"""What somebody else asked before the first life."""


@pytest.fixture(scope="module")
def asked() -> set[tuple[Need, str]]:
    """Everything that was needed, and the queue that was the asker's."""
    found: set[tuple[Need, str]] = set()
    for seed in SEEDS:
        years = Years(plan_of(seed))
        years.run()
        for call in years.aws.calls:
            if call.called not in SET_UP:
                # Each of two processes has a queue of its own.
                asked_for = str(call.request.get("QueueUrl") or call.request.get("QueueName"))
                queue = "events-b" if asked_for.endswith("events-b") else "events"
                found |= {(need, queue) for need in needs(call.called, call.request)}
    return found


def test_nothing_is_missing_and_nothing_is_spare(asked: set[tuple[Need, str]]) -> None:
    assert ROLES.execution is not None
    access = Access(region="us-east-1", account=ACCOUNT, cluster="jobs", roles=[ROLES.execution], namespace="default")
    policies = {queue: caller_policy(attrs.evolve(access, events=queue)) for queue in ("events", "events-b")}

    assert [need for need, queue in asked if not allowed(policies[queue], need)] == []
    assert {need.action for need, _ in asked} == actions(policies["events"])
