"""
A job seen to its end without anybody who waits: by the events that ECS sends when a task has ended.

There is one supervisor, the `Runner`, and this is another door to it. An event says which page of the journal to open,
and nothing else of it is believed: a runner takes the job over from where its page stands, asks ECS, writes down what
it has found, launches the next attempt and lets go, all in one call. Whatever comes twice, late, out of order or from
somebody else finds a page that says something else, or ECS does.

Those who want to know of the end are told by whoever claims that on the page. Five copies of an event make one claim;
who dies with it is followed by the next copy, a minute later, with the same id.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import math
import secrets
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, cast

import anyio
import attrs

from fargate_runner._backend import Identity, launch_token
from fargate_runner._errors import BackendError, InvalidJob, JournalError
from fargate_runner._job import Job
from fargate_runner._journal import Callback, Overtaken, Page
from fargate_runner._lifecycle import JobResult, Kind
from fargate_runner._runner import JobHandle, Runner
from fargate_runner.aws_lambda._handler import (
    _CALL,
    OutOfTime,
    StillRunning,
    _Call,
    _result_to_dict,
    _still_running,
    for_each,
)
from fargate_runner.aws_lambda._triggers import Trigger, plain_event, triggers_of
from fargate_runner.backends.ecs import _wire
from fargate_runner.backends.ecs._api import ApiError
from fargate_runner.backends.ecs._backend import EcsBackend

__all__ = ["on_task_event", "submit_with_callback"]

_log = logging.getLogger(__name__)

Notify = str | Callable[[JobResult], Awaitable[object]]

_LONGEST_SLEEP: Final = 20.0
"""Seconds before an attempt that a call sleeps, if a queue can keep the event for longer: Lambda is paid by time."""
_LONGEST_VISIBILITY: Final = 43_200
_CLAIM: Final = timedelta(seconds=60)
_TELLING: Final = 45.0
"""Seconds that telling may take: well within a claim, so that two never tell at the same time."""
_CLAIM_CADENCE: Final = 1.0
_SERVICES: Final = ("sqs", "sns", "events")
_LARGEST_CAUSE: Final = 32_768
"""Characters (AWS Step Functions API Reference, SendTaskFailure)."""
_LARGEST_OUTPUT: Final = 200_000
"""Bytes: SendTaskSuccess, EventBridge, SNS and SQS take 256 KiB and more."""
_NOBODY_WAITS: Final = frozenset({"TaskTimedOut", "TaskDoesNotExist", "InvalidToken"})
"""The state was answered, has timed out, or was never there."""


# ---- an event ------------------------------------------------------------------------------------------------------


async def on_task_event(
    event: object, runner: Runner, *, notify: Notify | Sequence[Notify] = (), concurrency: int = 10
) -> dict[str, Any] | list[Any]:
    """
    Go on with the jobs whose tasks have ended: *event* is ECS's task state change, from EventBridge or through SQS.

    For each task that the journal knows: ask ECS how it ended, write that down, launch the next attempt if the job's
    `Retry` says so, or write its final record and tell of it. The next attempt runs on alone; its end is another event.
    The *runner* needs an `EcsBackend` and a journal, and should let go of its jobs when it is left, as
    `lambda_handler`'s does.

    What this library did not launch, or the journal does not know, or is older than what the journal says, does
    nothing. An event that ECS does not confirm does nothing, and comes again.

    *notify* is told of a job's final record, whoever wrote it: the ARN of an SQS queue, an SNS topic or an EventBridge
    bus, an async function of a `JobResult`, or several of these. A task token that came with the job
    (`submit_with_callback`) is answered as well. That is done once, unless whoever does it dies in the middle: then a
    later copy of the event does it again, with the same ``id``.

    Return it to Lambda: for SQS a partial batch response (see `for_each`), else what was done, by event.

    :raises InvalidJob: *notify*, the runner's backend or its journal cannot be right
    :raises OutOfTime: there was no time for it, or it is too early: Lambda calls again
    """
    destinations = _checked(notify, runner)
    try:
        triggers_of(event)
    except InvalidJob as exc:
        _log.warning("this is no event of a task: %s", exc)
        return []
    supervisor = _Supervisor(runner, destinations, _receipts(event))
    answer = await for_each(event, supervisor.take, concurrency=concurrency)
    if isinstance(answer, list) and (left := [one for one in answer if isinstance(one, StillRunning)]):
        jobs = ", ".join(one.key for one in left)
        raise OutOfTime(f"not done with the events of {jobs}: have them delivered again", still_running=left)
    return answer


def _receipts(event: object) -> dict[str, tuple[str, str]]:
    """Return queue and receipt of each SQS message that an event holds, by its id."""
    plain = plain_event(event)
    records = plain.get("Records", [plain]) if isinstance(plain, Mapping) else plain
    return {
        str(record["messageId"]): (str(record["eventSourceARN"]), str(record["receiptHandle"]))
        for record in records
        if isinstance(record, Mapping) and {"messageId", "eventSourceARN", "receiptHandle"} <= record.keys()
    }


class _Supervisor:
    """What one call does with the events that it got."""

    def __init__(self, runner: Runner, destinations: Sequence[Notify], receipts: Mapping[str, tuple[str, str]]) -> None:
        self._runner = runner
        self._backend = cast("EcsBackend", runner.backend)
        self._destinations = destinations
        self._receipts = receipts

    async def take(self, trigger: Trigger) -> str | StillRunning:
        """Do what is to be done for one event, and say what that was."""
        task = _ended_task(trigger.event)
        if task is None or not self._is_near(task):
            return "ignored"
        identity = await self._identity_of(task)
        if identity is None:
            return "ignored"
        return await self._go_on(identity, task, trigger)

    def _is_near(self, task: Mapping[str, Any]) -> bool:
        backend = self._backend
        cluster = _wire.cluster_name(str(task.get("clusterArn", "")))
        prefix = _wire.started_by_prefix(self._runner.namespace)
        return (
            _wire.region_of(_wire.task_arn(task)) == backend.api.region
            and cluster == _wire.cluster_name(backend.cluster)
            and _wire.owner(task).startswith(prefix)
        )

    async def _identity_of(self, task: Mapping[str, Any]) -> Identity | None:
        """Return what the record of a task's launch says that it is, if ECS's own mark is of the same key."""
        packed = _wire.unpack(task)
        if packed is None:  # an event may leave something out
            for found in await self._backend._describe([_wire.task_arn(task)]):
                packed = _wire.unpack(found)
        if packed is None or packed.identity.namespace != self._runner.namespace:
            return None
        owner = _wire.started_by(self._runner.namespace, packed.identity.key)
        return packed.identity if _wire.owner(task) == owner else None

    async def _go_on(self, identity: Identity, task: Mapping[str, Any], trigger: Trigger) -> str | StillRunning:
        runner, call, arn = self._runner, _CALL.get() or _Call(), _wire.task_arn(task)
        page = await runner._read_page(identity.key)
        if page is None or page.place != self._backend.place:
            return "ignored"
        if page.ended_at is None:
            if not self._is_next(page, arn, identity):
                return "old" if _is_over(page, arn) else "ignored"
            receipt = self._receipts.get(trigger.message_id or "")
            left = call.lets_go_at - anyio.current_time()
            longest = min(left, _LONGEST_SLEEP) if receipt is not None else left
            live = await runner._carry_on(page, longest_wait=longest, look_again=lambda: self._backend._hear(task))
            if live.result is None:
                if live.refs and live.refs[-1].address != arn and live.refs[-1].attempt > identity.attempt:
                    return "launched again"
                if receipt is not None and (wait := live.due_again - anyio.current_time()) > 0:
                    await self._show_again(*receipt, wait)
                return _still_running(JobHandle(runner, live))
        elif not _is_over(page, arn):
            return "ignored"
        return await self.tell(identity.key)

    def _is_next(self, page: Page, arn: str, identity: Identity) -> bool:
        """Whether the end of a task is what an open page waits for."""
        if page.ref is not None:
            return page.ref.address == arn
        # Whoever went on with it did not get far: no attempt is under way, or nobody wrote what came of its launch.
        token = launch_token(_wire.cluster_name(self._backend.cluster), identity)
        return _is_over(page, arn) or (page.launch is not None and page.launch.token == token)

    async def _show_again(self, queue: str, receipt: str, wait: float) -> None:
        """Have SQS deliver a message once its time has come, as far as we may."""
        seconds = min(_LONGEST_VISIBILITY, math.ceil(wait))
        try:
            url = await _queue_url(self._backend, queue)
            call = self._backend.api.call
            await call("sqs.ChangeMessageVisibility", QueueUrl=url, ReceiptHandle=receipt, VisibilityTimeout=seconds)
        except BackendError as exc:
            _log.warning("the event comes again when its visibility timeout has passed, not in %s s: %s", seconds, exc)

    # ---- telling ---------------------------------------------------------------------------------------------------

    async def tell(self, key: str) -> str:
        """Tell those who want to know that a job is over, unless that was done, or somebody is about to."""
        runner = self._runner
        while True:
            page = await runner._read_page(key)
            if page is None or page.result is None:
                return "ignored"  # forgotten meanwhile, and perhaps submitted anew
            callback = page.callback or Callback()
            destinations = self._destinations if callback.told_at is None else ()
            token = None if callback.answered else callback.token
            if not destinations and token is None:
                return "ended"
            now = self._backend.now()
            if callback.claimed_until is not None and now < callback.claimed_until:
                await anyio.sleep(_CLAIM_CADENCE)
                continue
            # No two claims are alike, so that each knows its own.
            until = now + _CLAIM + timedelta(microseconds=secrets.randbelow(1_000_000))
            try:
                claimed = await runner._turn(attrs.evolve(page, callback=attrs.evolve(callback, claimed_until=until)))
            except Overtaken:
                continue
            try:
                with anyio.fail_after(_TELLING):
                    await _tell_all(self._backend, runner.namespace, claimed, destinations, token)
            except Exception:
                try:
                    await self._note(key, until)  # the next copy need not wait for our claim to run out
                except JournalError as exc:
                    _log.warning("the claim on telling of %s could not be taken back: %s", key, exc)
                raise
            await self._note(key, until, told=bool(destinations), answered=token)
            # Again, for a new token may have come meanwhile.

    async def _note(self, key: str, until: datetime, *, told: bool = False, answered: str | None = None) -> None:
        """Write down what became of a claim, unless another one was made since."""
        while True:
            page = await self._runner._read_page(key)
            callback = page.callback if page is not None else None
            if page is None or callback is None or callback.claimed_until != until:
                return
            changed = attrs.evolve(
                callback,
                claimed_until=None,
                told_at=self._backend.now() if told else callback.told_at,
                answered=callback.answered or (answered is not None and answered == callback.token),
            )
            try:
                await self._runner._turn(attrs.evolve(page, callback=changed))
                return
            except Overtaken:
                continue


def _ended_task(event: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the task that an event says has ended, if it is ECS's and of this library, and right in itself."""
    if (event.get("source"), event.get("detail-type")) != ("aws.ecs", "ECS Task State Change"):
        return None
    task = _wire.event_task(event)
    return task if _wire.is_consistent(event) and _wire.is_stopped(task) else None


def _is_over(page: Page, arn: str) -> bool:
    return any(attempt.address == arn for attempt in page.attempts)


# ---- who is told ---------------------------------------------------------------------------------------------------


def _checked(notify: Notify | Sequence[Notify], runner: Runner) -> tuple[Notify, ...]:
    if not isinstance(runner.backend, EcsBackend):
        raise InvalidJob("runner", runner.backend, "its backend is not ECS", "write Runner(EcsBackend(…), journal=…)")
    if runner.journal is None:
        problem = "it has no journal, and nobody knows what its jobs were"
        raise InvalidJob("runner", "(not shown)", problem, "write Runner(…, journal=DynamoDBJournal('fargate-jobs'))")
    found = (notify,) if isinstance(notify, str) or callable(notify) else tuple(notify)
    for one in found:
        if isinstance(one, str):
            _check_arn(one, runner.backend)
        elif not inspect.iscoroutinefunction(one) and not inspect.iscoroutinefunction(type(one).__call__):
            raise InvalidJob("notify", one, "neither an ARN nor an async function", "write async def told(result): …")
    return found


def _check_arn(arn: str, backend: EcsBackend) -> None:
    parts = arn.split(":")
    if len(parts) < 6 or parts[0] != "arn" or parts[2] not in _SERVICES or not parts[5]:
        problem = "not the ARN of an SQS queue, an SNS topic or an EventBridge bus"
        raise InvalidJob("notify", arn, problem, "write it like arn:aws:sqs:eu-west-1:111122223333:jobs-done")
    if backend.is_open and parts[3] != backend.api.region:
        problem = f"it is in {parts[3]}, and this backend asks in {backend.api.region}"
        raise InvalidJob("notify", arn, problem, "name one there, or pass an async function that sends it on")


async def _tell_all(
    backend: EcsBackend, namespace: str, page: Page, destinations: Sequence[Notify], token: str | None
) -> None:
    result = page.result
    assert result is not None
    message = {"id": _id_of(namespace, page), "namespace": namespace, **_result_to_dict(result)}
    for destination in destinations:
        if isinstance(destination, str):
            send = _SENDERS[destination.split(":")[2]]
            await send(backend, destination, message)
        else:
            await destination(result)
    if token is not None:
        await _answer_state(backend, token, result, message)


def _id_of(namespace: str, page: Page) -> str:
    """Return what is the same however often a job's end is told: a key that was forgotten may name another one."""
    parts = (namespace, page.key, page.accepted_at.isoformat())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _in_order(arn: str, message: Mapping[str, Any]) -> dict[str, str]:
    """What FIFO queues and topics want besides: of one job, they pass on one message in five minutes."""
    if not arn.endswith(".fifo"):
        return {}
    return {"MessageGroupId": message["id"], "MessageDeduplicationId": message["id"]}


async def _queue_url(backend: EcsBackend, arn: str) -> str:
    account, name = arn.split(":")[4:6]
    found = await backend.api.call("sqs.GetQueueUrl", QueueName=name, QueueOwnerAWSAccountId=account)
    return str(found["QueueUrl"])


async def _to_queue(backend: EcsBackend, arn: str, message: Mapping[str, Any]) -> None:
    url, body = await _queue_url(backend, arn), _fitted(message, _LARGEST_OUTPUT)
    await backend.api.call("sqs.SendMessage", QueueUrl=url, MessageBody=body, **_in_order(arn, message))


async def _to_topic(backend: EcsBackend, arn: str, message: Mapping[str, Any]) -> None:
    body = _fitted(message, _LARGEST_OUTPUT)
    await backend.api.call("sns.Publish", TopicArn=arn, Message=body, **_in_order(arn, message))


async def _to_bus(backend: EcsBackend, arn: str, message: Mapping[str, Any]) -> None:
    entry = {
        "Source": "fargate_runner",
        "DetailType": "Job Ended",
        "Detail": _fitted(message, _LARGEST_OUTPUT),
        "EventBusName": arn,
    }
    reply = await backend.api.call("events.PutEvents", Entries=[entry])
    if reply.get("FailedEntryCount"):
        failed: Mapping[str, Any] = next(iter(reply.get("Entries") or ()), {})
        said = f"EventBridge did not take the event: {failed.get('ErrorMessage', 'no reason')}"
        raise BackendError(said, operation="PutEvents", code=failed.get("ErrorCode"))


_SENDERS: Final = {"sqs": _to_queue, "sns": _to_topic, "events": _to_bus}


async def _answer_state(backend: EcsBackend, token: str, result: JobResult, message: Mapping[str, Any]) -> None:
    call = backend.api.call
    try:
        if result.succeeded:
            await call("stepfunctions.SendTaskSuccess", taskToken=token, output=_fitted(message, _LARGEST_OUTPUT))
        else:
            error, cause = _error_name(result.outcome.kind), _fitted(message, _LARGEST_CAUSE)
            await call("stepfunctions.SendTaskFailure", taskToken=token, error=error, cause=cause)
    except ApiError as exc:
        if exc.code not in _NOBODY_WAITS:
            raise
        _log.warning("no state waits for the job %s any more: %s", result.key, exc)


def _error_name(kind: Kind) -> str:
    """Return what a state's ``Catch`` and ``Retry`` name: ``FargateRunner.OutOfMemory``."""
    return "FargateRunner." + "".join(part.capitalize() for part in kind.value.split("_"))


def _fitted(message: Mapping[str, Any], most: int) -> str:
    """Return a message as JSON of so many bytes at most: what a job said last is cut, and if need be why it ended."""
    for name in ("last_line", "detail"):
        said = message[name]
        if said and len(json.dumps(message)) > most:  # ASCII: a character is a byte
            room = most - len(json.dumps({**message, name: "…"}))
            kept = bisect_right(range(1, len(said) + 1), room, key=lambda length: len(json.dumps(said[:length])) - 2)
            message = {**message, name: f"{said[:kept]}…"}
    return json.dumps(message)


# ---- a state that waits --------------------------------------------------------------------------------------------


async def submit_with_callback(job: Job, runner: Runner, *, task_token: str) -> JobHandle:
    """
    Submit *job* for a state of Step Functions that waits for a task token, and remember the token with the job.

    ``trigger.task_token`` is that of a trigger. When the job has its final record, `on_task_event` answers the state:
    ``SendTaskSuccess`` with the record as JSON, or ``SendTaskFailure``, whose error is ``FargateRunner.Failed``,
    ``FargateRunner.OutOfMemory`` and so on, by the kind of its outcome, and whose cause is the record. A job that is
    over already, for the state is retried, is answered at once. Of several tokens for one job the last one counts.

    The token is in the journal, and nowhere else. The job should have a key, as a trigger's.

    :raises InvalidJob: there is no token, or the runner's backend or its journal cannot be right
    """
    _checked((), runner)
    if not isinstance(task_token, str) or not task_token:
        fix = 'have the state pass it on: "context.$": "$$"'
        raise InvalidJob("task_token", task_token and "***", "expected the token of a state that waits", fix)
    handle = await runner._submit_with(job, Callback(token=task_token))
    while True:
        page = await runner._read_page(handle.key)
        if page is None:
            raise JournalError(f"the page of {handle.key!r} is gone from the journal: somebody forgot it meanwhile")
        known = page.callback or Callback()
        if known.token != task_token:
            callback = attrs.evolve(known, token=task_token, answered=False)
            try:
                page = await runner._turn(attrs.evolve(page, callback=callback))
            except Overtaken:
                continue
        break
    if page.ended_at is not None:
        await _Supervisor(runner, (), {}).tell(handle.key)
    return handle
