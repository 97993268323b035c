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
from _local import ACCOUNT, HERE, REGION, FunctionError, Unavailable
from botocore.config import Config

_ROLE = f"arn:aws:iam::{ACCOUNT}:role/convert"
_FUNCTIONS = {"submit.on_upload": 60, "submit.submit": 60, "supervise.supervise": 120}
"""Handlers, and the seconds that they have."""
_SERVICES = ("s3", "sqs", "events", "lambda", "stepfunctions")
_KEPT = "uploads-kept"
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
                for name in _SERVICES
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
        kept = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{_KEPT}"
        await self._clients["sqs"].create_queue(QueueName=_KEPT)
        # The function twice, so that each event comes twice, and a queue that keeps them for later.
        targets = [{"Id": str(number), "Arn": arn} for number, arn in enumerate((function, function, kept))]
        await events.put_targets(Rule="uploads", Targets=targets)
        for name in random.sample(names, len(names)):
            await s3.put_object(Bucket=bucket, Key=name, Body=b"a,b\n1,2\n")

    async def tell_again(self, random: Random) -> None:
        sqs, kept = self._clients["sqs"], list[str]()
        url = (await sqs.get_queue_url(QueueName=_KEPT))["QueueUrl"]
        while messages := (await sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)).get("Messages"):
            kept += [message["Body"] for message in messages]
        for event in random.sample(kept, len(kept)):
            await self._clients["lambda"].invoke(FunctionName="on_upload", Payload=event.encode())

    async def invoke(self, function: str, event: Any) -> Any:
        called = await self._clients["lambda"].invoke(
            FunctionName=function.rpartition(".")[2], Payload=json.dumps(event).encode()
        )
        answer = json.loads(await called["Payload"].read())
        if "FunctionError" in called:
            print(answer, file=sys.stderr)
            raise FunctionError(answer["errorType"], answer["errorMessage"])
        return answer

    async def executions(self) -> list[dict[str, Any]]:
        states = self._clients["stepfunctions"]
        listed = (await states.list_executions(stateMachineArn=self._machine))["executions"]
        found = [await states.describe_execution(executionArn=one["executionArn"]) for one in listed]
        return [{"status": one["status"], "input": one["input"], "error": one.get("error")} for one in found]

    def answers(self) -> int | None:
        return None

    def said(self) -> str:
        return "functions and state machine ran on MiniStack"


@asynccontextmanager
async def _started(program: Path) -> AsyncGenerator[str]:
    """Start it on a free port, with a directory of its own, and yield its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        variables = {
            "PATH": os.environ["PATH"],
            "HOME": home,
            "TMPDIR": home,
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(port),
            "MINISTACK_ACCOUNT_ID": ACCOUNT,
            "SERVICES": "s3,sqs,events,lambda,stepfunctions,iam,logs,sts",
            "IOT_MTLS_ENABLED": "0",  # these two listen on fixed ports
            "SFTP_ENABLED": "0",
        }
        with Path(home, "log").open("wb") as log:
            command = [program.absolute()]
            try:
                process = await anyio.open_process(
                    command, env=variables, cwd=home, stdout=log, stderr=log, start_new_session=True
                )
            except OSError as exc:
                raise Unavailable(f"{program} cannot be run: {exc.strerror}") from exc
        try:
            with anyio.move_on_after(_STARTS_WITHIN):
                while process.returncode is None and not await _answers(port):
                    await anyio.sleep(0.2)
            if process.returncode is not None or not await _answers(port):
                said = Path(home, "log").read_text(errors="replace")[-2000:]
                raise Unavailable(f"{program} did not start:\n{said}")
            yield f"http://127.0.0.1:{port}"
        finally:
            with anyio.CancelScope(shield=True):
                if process.returncode is None:
                    process.terminate()
                    with anyio.move_on_after(10):
                        await process.wait()
                if process.returncode is None:
                    process.kill()
                await process.aclose()


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
