"""
The two functions that begin the work on an upload, neither of which waits for it.

`on_upload` is called for each object that came into the bucket, and starts the state machine of convert.asl.json. That
has `submit` start the job, and waits for its end, for hours if need be: nothing runs meanwhile but the job.
"""

import hashlib
import json
import os
from contextlib import suppress
from typing import Any

import aioboto3
from jobs import conversion, make_runner

from fargate_runner import Runner
from fargate_runner.aws_lambda import Trigger, for_each, lambda_handler, submit_with_callback


@lambda_handler
async def on_upload(event: Any, context: Any) -> Any:
    """Start one execution for each upload, however often S3 tells of it: the key of its trigger makes the name."""
    async with aioboto3.Session().client("stepfunctions") as states:

        async def start(trigger: Trigger) -> str:
            assert trigger.object is not None
            upload = {"key": trigger.key, "bucket": trigger.object.bucket, "object": trigger.object.key}
            name = hashlib.sha256(trigger.key.encode()).hexdigest()  # at most 80 characters, and no slash
            with suppress(states.exceptions.ExecutionAlreadyExists):  # it is over, and S3 tells once more
                await states.start_execution(
                    stateMachineArn=os.environ["STATE_MACHINE"], name=name, input=json.dumps(upload)
                )
            return name

        return await for_each(event, start)


@lambda_handler(runner=make_runner)
async def submit(event: Any, context: Any, runner: Runner) -> Any:
    """Start the job of a state that waits, and leave the state's token with it: `supervise` answers at its end."""

    async def start(trigger: Trigger) -> str:
        assert trigger.task_token is not None
        handle = await submit_with_callback(conversion(trigger.body), runner, task_token=trigger.task_token)
        return handle.key

    return await for_each(event, start)
