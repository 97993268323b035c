"""
What has to stand in an AWS account, as text that a person reads and deploys, and what callers have to be allowed.

::

    access = Access.of(backend, journal=DynamoDBJournal("fargate-jobs"), account="123456789012")
    print(json.dumps(caller_policy(access), indent=2))
    print(template(Stack(name="reports"), "terraform"))

Only `diagnose` asks AWS: it says what of all this is not there, or not as it should be. The rest is text.
"""

from __future__ import annotations

from fargate_runner.infrastructure._doctor import diagnose
from fargate_runner.infrastructure._findings import Finding, State
from fargate_runner.infrastructure._policy import (
    UNSCOPED,
    Access,
    Chore,
    Policy,
    caller_policy,
    doctor_policy,
    execution_policy,
)
from fargate_runner.infrastructure._stack import Format, Stack, template

__all__ = [
    "UNSCOPED",
    "Access",
    "Chore",
    "Finding",
    "Format",
    "Policy",
    "Stack",
    "State",
    "caller_policy",
    "diagnose",
    "doctor_policy",
    "execution_policy",
    "template",
]
