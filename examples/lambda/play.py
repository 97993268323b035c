"""
Play the whole of this example on this machine: uploads, functions, state machine, and jobs on a fake AWS.

Five objects are uploaded. Every event comes twice and in any order, those of uploads and those of ended tasks, and all
of them once more when everything is over. There has to be one execution and one job for each upload, no attempt twice,
and one answer and one message for each job, of those that fail as well.

    python examples/lambda/play.py                                       # with nothing but Python
    python examples/lambda/play.py --ministack venv/bin/ministack        # on an emulator of Lambda and Step Functions
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import aioboto3
import anyio
from _local import ACCOUNT, REGION, FunctionError, Local, Platform, Unavailable

from fargate_runner import DynamoDBJournal
from fargate_runner.testing.aws import ContainerRun, ContainerScript, FakeAws, Ingestion, Pace

BUCKET, CLUSTER, TABLE, ENDS, DONE = "uploads", "convert", "convert-journal", "convert-ends", "convert-done"
NAMES = ["in/spring.csv", "in/red flower 100%.csv", "in/größe.csv", "in/flaky.csv", "in/broken.csv"]
_LONGEST = 300.0
"""Seconds that the play may take; it takes about 40, most of which are last lines waited for."""


class Account:
    """The fake AWS: jobs, their events, the journal, and the queue that is told."""

    def __init__(self) -> None:
        self.attempts: Counter[tuple[str, str]] = Counter()
        """By key of a job and number of its attempt, how many tasks were started."""
        self.aws = FakeAws(
            region=REGION,
            account=ACCOUNT,
            script=self._script,
            clusters=(CLUSTER,),
            pace=Pace.instant(),
            visible_after=(0.0, 0.0),
            ingestion=Ingestion(least=0.0, most=0.1),
        )
        self.url = ""

    def _script(self, container: ContainerRun) -> ContainerScript:
        """Say what `convert` does: some files cannot be converted, one can at the second attempt."""
        attempt = container.environment["FARGATE_RUNNER_ATTEMPT"]
        self.attempts[container.environment["FARGATE_RUNNER_KEY"], attempt] += 1
        upload = container.command[1]
        fails = "broken" in upload or ("flaky" in upload and attempt == "1")
        said = f"{upload}: no table in it" if fails else f"{upload}: 17 rows"
        return ContainerScript(run_for=0.5, exit_code=3 if fails else 0, lines=(said,))

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[dict[str, str]]:
        """Make what template.yaml makes, and yield the variables that functions get there."""
        async with self.aws.serve(moto=True) as self.url:
            session = aioboto3.Session(aws_access_key_id="test", aws_secret_access_key="test")
            await DynamoDBJournal(TABLE, session=session, region=REGION, endpoint_url=self.url).create_table()
            done, ends = [await self._queue(name) for name in (DONE, ENDS)]
            pattern = {
                "source": ["aws.ecs"],
                "detail-type": ["ECS Task State Change"],
                "detail": {"lastStatus": ["STOPPED"], "startedBy": [{"prefix": "fr/default/"}]},
            }
            await self.aws.call("events", "PutRule", {"Name": ENDS, "EventPattern": json.dumps(pattern)})
            await self.aws.call("events", "PutTargets", {"Rule": ENDS, "Targets": [{"Id": "queue", "Arn": ends}]})
            yield {
                "AWS_ENDPOINT_URL": self.url,
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "FARGATE_RUNNER_CLUSTER": CLUSTER,
                "FARGATE_RUNNER_SUBNETS": "subnet-0aaaaaaaa00000001",
                "FARGATE_RUNNER_EXECUTION_ROLE": f"arn:aws:iam::{ACCOUNT}:role/execution",
                "JOURNAL_TABLE": TABLE,
                "IMAGE": "registry.example/convert:7",
                "NOTIFY": done,
            }

    async def _queue(self, name: str) -> str:
        await self.aws.call("sqs", "CreateQueue", {"QueueName": name})
        return f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}"

    def ends(self) -> list[dict[str, Any]]:
        """The events of ended tasks that were on the bus."""
        return [event for event in self.aws.events.emitted if event["detail"].get("lastStatus") == "STOPPED"]

    async def receive(self, queue: str, wait: int = 1) -> list[dict[str, Any]]:
        """Receive messages, as the event source mapping of a function does."""
        url = (await self.aws.call("sqs", "GetQueueUrl", {"QueueName": queue}))["QueueUrl"]
        request = {"QueueUrl": url, "MaxNumberOfMessages": 10, "WaitTimeSeconds": wait, "VisibilityTimeout": 120}
        return list((await self.aws.call("sqs", "ReceiveMessage", request)).get("Messages", ()))

    async def delete(self, queue: str, message: dict[str, Any]) -> None:
        url = (await self.aws.call("sqs", "GetQueueUrl", {"QueueName": queue}))["QueueUrl"]
        await self.aws.call("sqs", "DeleteMessage", {"QueueUrl": url, "ReceiptHandle": message["ReceiptHandle"]})


def record(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message as Lambda hands it to a function."""
    return {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message["Body"],
        "attributes": {"ApproximateReceiveCount": "1"},
        "messageAttributes": {},
        "md5OfBody": message["MD5OfBody"],
        "eventSource": "aws:sqs",
        "eventSourceARN": f"arn:aws:sqs:{REGION}:{ACCOUNT}:{ENDS}",
        "awsRegion": REGION,
    }


class Ends:
    """The events of ended tasks, on their way from the queue to `supervise`."""

    def __init__(self, account: Account, platform: Platform, random: Random) -> None:
        self._account = account
        self._platform = platform
        self._random = random
        self.handled: list[dict[str, Any]] = []
        self.deliveries = 0

    async def deliver(self) -> None:
        """Deliver what comes, until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                if messages := await self._account.receive(ENDS):
                    tasks.start_soon(self._until_done, messages)

    async def again(self) -> None:
        """Deliver every one of them once more."""
        await self._until_handled(self.handled)

    async def _until_done(self, messages: list[dict[str, Any]]) -> None:
        async with anyio.create_task_group() as copies:
            copies.start_soon(self._until_handled, messages)
            copies.start_soon(self._until_handled, messages)
        for message in messages:
            await self._account.delete(ENDS, message)
        self.handled += messages

    async def _until_handled(self, messages: list[dict[str, Any]]) -> None:
        """Deliver a batch in any order, and those again that are not done; at AWS, the queue does so."""
        left = {message["MessageId"]: record(message) for message in self._random.sample(messages, len(messages))}
        while left:
            self.deliveries += len(left)
            try:
                answer = await self._platform.invoke("supervise.supervise", {"Records": [*left.values()]})
            except FunctionError:  # it has told why
                await anyio.sleep(1)
                continue
            again = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
            left = {name: one for name, one in left.items() if name in again}


async def play(running: AbstractAsyncContextManager[Platform], seed: int) -> list[str]:
    """Play it, tell what happens, and return what did not go as it should."""
    random, begun = Random(seed), time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - begun:5.1f} s  {text}", flush=True)

    account = Account()
    async with account.open() as variables, running as platform:
        await platform.set_up(variables)
        ends = Ends(account, platform, random)
        say(f"uploads {len(NAMES)} objects; S3 tells of each of them twice, in any order")
        async with anyio.create_task_group() as background:
            background.start_soon(ends.deliver)
            with anyio.move_on_after(_LONGEST) as limit:
                await platform.upload(BUCKET, NAMES, random)
                seen = (0, 0)
                while not await _is_over(account, platform, ends):
                    await anyio.sleep(0.2)
                    now = (account.attempts.total(), len(ends.handled))
                    if now != seen:
                        seen = now
                        say(f"{now[0]} tasks started; the ends of {now[1]} handled, each of them twice")
                say("all executions are over; every event comes once more")
                await platform.tell_again(random)
                await ends.again()
            background.cancel_scope.cancel()
        told = Counter[str]()
        while messages := await account.receive(DONE, wait=0):
            told += Counter(json.loads(message["Body"])["key"] for message in messages)
        executions = await platform.executions()
        say(f"{ends.deliveries} deliveries of {len(account.ends())} ends; {platform.said()}")
        print(report(executions, account, told))
        found = surprises(executions, account, told)
        if limit.cancelled_caught:
            found.append(f"it was not over after {_LONGEST:.0f} s")
        if platform.answers() not in {None, len(NAMES)}:
            found.append(f"{platform.answers()} answers for {len(NAMES)} states")
        return found


async def _is_over(account: Account, platform: Platform, ends: Ends) -> bool:
    executions = await platform.executions()
    running = [execution for execution in executions if execution["status"] == "RUNNING"]
    return len(executions) >= len(NAMES) and not running and len(ends.handled) == len(account.ends())


def report(executions: list[dict[str, Any]], account: Account, told: Counter[str]) -> str:
    """Return a table: what became of each upload."""
    lines = ["", f"  {'upload':<24}{'executions':>11}{'tasks':>7}{'attempts':>10}{'messages':>10}  ended"]
    for name in NAMES:
        mine = [one for one in executions if json.loads(one["input"])["object"] == name]
        key = json.loads(mine[0]["input"])["key"] if mine else ""
        attempts = {attempt: tasks for (of, attempt), tasks in account.attempts.items() if of == key}
        ended = ", ".join(f"{one['status']}{' ' + one['error'] if one['error'] else ''}" for one in mine)
        counts = f"{len(mine):>11}{sum(attempts.values()):>7}{len(attempts):>10}{told[key]:>10}"
        lines.append(f"  {name:<24}{counts}  {ended or 'never began'}")
    return "\n".join([*lines, ""])


def surprises(executions: list[dict[str, Any]], account: Account, told: Counter[str]) -> list[str]:
    """Return what did not go as this example means it to go."""
    found: list[str] = []
    keys = Counter(json.loads(one["input"])["key"] for one in executions)
    uploads = Counter(json.loads(one["input"])["object"] for one in executions)
    if uploads != Counter(NAMES):
        found.append(f"the executions are {dict(uploads)}, not one for each upload")
    if told != keys:
        found.append(f"the messages are {dict(told)}, not one for each job")
    found += [f"attempt {n} of {key} has {tasks} tasks" for (key, n), tasks in account.attempts.items() if tasks != 1]
    for one in executions:
        upload = json.loads(one["input"])
        name, attempts = upload["object"], len([1 for key, _ in account.attempts if key == upload["key"]])
        if attempts != (2 if "flaky" in name or "broken" in name else 1):
            found.append(f"{name}: {attempts} attempts")
        meant = ("FAILED", "FargateRunner.Failed") if "broken" in name else ("SUCCEEDED", None)
        if (one["status"], one["error"]) != meant:
            found.append(f"{name}: {one['status']} {one['error'] or ''}")
    return found


def main() -> int:
    """Play it; exit code 0 if it went as meant."""
    parser = argparse.ArgumentParser(description="Play uploads, functions, a state machine and jobs on this machine.")
    parser.add_argument("--ministack", type=Path, help="the program ministack, to run Lambda and Step Functions")
    parser.add_argument("--seed", type=int, default=0, help="in which order the events come (default: %(default)s)")
    args = parser.parse_args()
    # Nothing of an account that this machine may use gets into the play.
    for name in [name for name in os.environ if name.startswith(("AWS_", "FARGATE_RUNNER_"))]:
        del os.environ[name]
    os.environ |= dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
    running: AbstractAsyncContextManager[Platform] = Local.running()
    if args.ministack is not None:
        from _ministack import MiniStack

        running = MiniStack.running(args.ministack)
    try:
        told = anyio.run(play, running, args.seed)
    except ModuleNotFoundError as exc:
        if exc.name != "moto":
            raise
        print("it cannot be played without moto: pip install 'fargate-runner[testing]'", file=sys.stderr)
        return 1
    except Unavailable as exc:
        print(f"it cannot be played: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    for surprise in told:
        print(f"unexpected: {surprise}", file=sys.stderr)
    if told:
        return 1
    print("as meant: one execution, one job, one answer and one message for each upload")
    return 0


if __name__ == "__main__":
    sys.exit(main())
