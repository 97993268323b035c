"""
The same on MiniStack, an emulator of AWS that really runs Lambda functions and state machines.

S3, EventBridge, Lambda and Step Functions are MiniStack's. Jobs, their events, the journal and the queues are the fake
AWS's, for MiniStack's ECS sends no events. MiniStack wants a virtual environment of its own; its functions run on the
interpreter of that, with the packages of this one.
"""

import asyncio
import io
import json
import os
import socket
import sys
import tempfile
import zipfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, Self

import aioboto3
import anyio
from _local import ACCOUNT, HERE, REGION, FunctionError
from botocore.config import Config

_ROLE = f"arn:aws:iam::{ACCOUNT}:role/convert"
_FUNCTIONS = {"submit.on_upload": 60, "submit.submit": 60, "supervise.supervise": 120}
"""Handlers, and the seconds that they have."""
_STARTS_WITHIN = 60.0


class MiniStack:
    """A `Platform`."""

    def __init__(self, url: str, clients: Mapping[str, Any]) -> None:
        self._url = url
        self._clients = clients
        self._machine = f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:convert"
        self._told: list[dict[str, Any]] = []

    @classmethod
    @asynccontextmanager
    async def running(cls, program: Path) -> AsyncGenerator[Self]:
        session = aioboto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name=REGION)
        config = Config(read_timeout=180, retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})
        async with AsyncExitStack() as stack:
            url = await stack.enter_async_context(_started(program))
            clients = {
                name: await stack.enter_async_context(session.client(name, endpoint_url=url, config=config))
                for name in ("s3", "events", "lambda", "stepfunctions")
            }
            yield cls(url, clients)

    async def set_up(self, variables: Mapping[str, str]) -> None:
        """Make functions, state machine, bucket and rule."""
        here = {
            **variables,
            "AWS_ENDPOINT_URL_SFN": self._url,
            "STATE_MACHINE": self._machine,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path and Path(path) != HERE),
        }
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name in ("jobs.py", "submit.py", "supervise.py"):
                archive.write(HERE / name, name)
        for handler, seconds in _FUNCTIONS.items():
            await self._clients["lambda"].create_function(
                FunctionName=handler.rpartition(".")[2],
                Handler=handler,
                Runtime=f"python{sys.version_info.major}.{sys.version_info.minor}",
                Role=_ROLE,
                Timeout=seconds,
                Code={"ZipFile": packed.getvalue()},
                Environment={"Variables": here},
            )
        definition = (HERE / "convert.asl.json").read_text().replace("${SubmitFunction}", "submit")
        made = await self._clients["stepfunctions"].create_state_machine(
            name="convert", definition=definition, roleArn=_ROLE
        )
        assert made["stateMachineArn"] == self._machine

    async def upload(self, bucket: str, names: list[str], random: Random) -> None:
        function = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:on_upload"
        s3, events = self._clients["s3"], self._clients["events"]
        await s3.create_bucket(Bucket=bucket)
        await s3.put_bucket_notification_configuration(
            Bucket=bucket, NotificationConfiguration={"EventBridgeConfiguration": {}}
        )
        pattern = {"source": ["aws.s3"], "detail-type": ["Object Created"], "detail": {"bucket": {"name": [bucket]}}}
        await events.put_rule(Name="uploads", EventPattern=json.dumps(pattern))
        # Two targets: each event comes twice.
        await events.put_targets(Rule="uploads", Targets=[{"Id": str(n), "Arn": function} for n in range(2)])
        for name in random.sample(names, len(names)):
            await s3.put_object(Bucket=bucket, Key=name, Body=b"a,b\n1,2\n")
