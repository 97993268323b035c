"""
What has to stand in an AWS account, as text that a person reads and deploys, and what callers have to be allowed.

::

    access = Access.of(backend, journal=DynamoDBJournal("fargate-jobs"), account="123456789012")
    print(json.dumps(caller_policy(access), indent=2))
    print(template(Stack(name="reports"), "terraform"))

Nothing here asks AWS.
"""

from __future__ import annotations

from fargate_runner.infrastructure._policy import UNSCOPED, Access, Chore, Policy, caller_policy, execution_policy
from fargate_runner.infrastructure._stack import Format, Stack, template

__all__ = [
    "UNSCOPED",
    "Access",
    "Chore",
    "Format",
    "Policy",
    "Stack",
    "caller_policy",
    "execution_policy",
    "template",
]
