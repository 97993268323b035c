"""The function that sees jobs to their ends: ECS's events of ended tasks bring it up, through a queue."""

import os
from typing import Any

from jobs import make_runner

from fargate_runner import Runner
from fargate_runner.aws_lambda import lambda_handler, on_task_event


@lambda_handler(runner=make_runner)
async def supervise(event: Any, context: Any, runner: Runner) -> Any:
    """Launch the next attempt of a job, or write its final record, answer the state that waits, and tell the queue."""
    return await on_task_event(event, runner, notify=os.environ["NOTIFY"])
