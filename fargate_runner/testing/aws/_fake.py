"""
The front of the fake AWS: one object that answers for a whole account in a region.

In process under virtual time by `FakeAws.session`; over HTTP, for any AWS client, by `FakeAws.serve`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from email.utils import format_datetime
from random import Random
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

import anyio
import anyio.lowlevel
import attrs

from fargate_runner.testing.aws._callbacks import SnsService, StepFunctionsService
from fargate_runner.testing.aws._ecs import EcsService, Values
from fargate_runner.testing.aws._engine import Engine
from fargate_runner.testing.aws._events import Delivery, EventsService, SqsService
from fargate_runner.testing.aws._faults import Chaos, Fault, Faults
from fargate_runner.testing.aws._logs import Ingestion, LogsService
from fargate_runner.testing.aws._model import check_reply, check_request, has_operation
from fargate_runner.testing.aws._quotas import Bucket, Quotas, buckets_of
from fargate_runner.testing.aws._script import ContainerScript, Pace, Script, TaskRun, TaskScript
from fargate_runner.testing.aws._service import AwsError, Clock, RealClock, Service
from fargate_runner.testing.aws._stores import (
    Ec2Service,
    S3Service,
    SecretsManagerService,
    SsmService,
    StsService,
)
from fargate_runner.testing.aws._task import Task
from fargate_runner.testing.aws._world import World

__all__ = ["Call", "CallLog", "ConnectionCut", "Credentials", "FakeAws"]


class ConnectionCut(Exception):
    """
    The connection ends instead of an answer.

    ``when`` tells whether the request had its effect (``after``), ``how`` how it ends: ``closed``, ``reset``, or
    ``half``: in the middle of the answer, which is ``reply``.
    """

    def __init__(
        self,
        when: Literal["before", "after"] = "before",
        *,
        how: Literal["closed", "reset", "half"] = "closed",
        reply: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"the connection was cut {when} the effect")
        self.when = when
        self.how = how
        self.reply = reply


@attrs.frozen(kw_only=True)
class Call:
    """One call that came in, and what came of it."""

    called: str
    """``ecs.RunTask``."""
    at: float
    """When it came in, in seconds of the clock."""
    moment: datetime
    outcome: str
    """``ok``, the code of an error, or ``cut before``, ``cut after``."""
    request: Mapping[str, Any] = attrs.field(repr=False)
    access_key: str | None = attrs.field(default=None, repr=False)


class CallLog:
    """Every call that came in. Calls are counted when they come in, outcomes when they are known."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.operations: Counter[str] = Counter()
        """How many calls of each operation came in."""
        self.buckets: Counter[str] = Counter()
        """How many calls drew on each token bucket."""
        self.throttled: Counter[str] = Counter()
        """How many calls of each operation were turned away as too many."""
        self._times: dict[str, list[float]] = {}

    def __iter__(self) -> Iterator[Call]:
        return iter(self.calls)

    def __len__(self) -> int:
        return len(self.calls)

    def of(self, called: str) -> list[Call]:
        """Return the calls of an operation, in order of their outcome."""
        return [call for call in self.calls if call.called == called]

    def count(self, called: str, outcome: str | None = None) -> int:
        """Return how many calls of an operation there were, or how many with an outcome."""
        if outcome is None:
            return self.operations[called]
        return sum(call.called == called and call.outcome == outcome for call in self.calls)

    def peak(self, bucket: str, window: float = 1.0) -> int:
        """Return the most calls that drew on a bucket within any *window* seconds."""
        times = self._times.get(bucket, [])
        most = first = 0
        for last, at in enumerate(times):
            while times[first] <= at - window:
                first += 1
            most = max(most, last - first + 1)
        return most

    def clear(self) -> None:
        """Forget all of it."""
        self.calls.clear()
        self.operations.clear()
        self.buckets.clear()
        self.throttled.clear()
        self._times.clear()

    def came_in(self, called: str, buckets: Iterable[str], at: float) -> None:
        """Count a call."""
        self.operations[called] += 1
        for bucket in buckets:
            self.buckets[bucket] += 1
            self._times.setdefault(bucket, []).append(at)

    def ended(self, call: Call) -> None:
        """Keep what came of a call."""
        self.calls.append(call)
        if call.outcome == "ThrottlingException":
            self.throttled[call.called] += 1


class Credentials:
    """Who may call, and for how long. A key that was never mentioned works for ever."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ends: dict[str, float] = {}

    def issue(self, access_key: str, *, lives: float) -> None:
        """Let a key work for so many seconds from now."""
        self._ends[access_key] = self._clock.time() + lives

    def expire(self, access_key: str) -> None:
        """Let a key work no longer."""
        self._ends[access_key] = self._clock.time()

    def check(self, access_key: str | None) -> None:
        """
        Refuse a key that has expired.

        :raises AwsError: it has
        """
        if access_key is not None and self._clock.time() >= self._ends.get(access_key, float("inf")):
            raise AwsError("ExpiredTokenException", "The security token included in the request is expired", status=403)


class _StoredValues(Values):
    """Secrets and environment files from the fake's own stores."""

    def __init__(self, ssm: SsmService, secretsmanager: SecretsManagerService, s3: S3Service) -> None:
        self._ssm = ssm
        self._secretsmanager = secretsmanager
        self._s3 = s3

    async def secret(self, value_from: str) -> str:
        if ":secretsmanager:" in value_from:
            return self._secretsmanager.resolve(value_from)
        return self._ssm.resolve(value_from)

    async def env_file(self, arn: str) -> str:
        bucket, _, key = urlsplit(arn).path.rpartition(":::")[2].partition("/")
        found = await self._s3.get_object({"Bucket": bucket, "Key": key})
        content: bytes = await found["Body"].read()
        return content.decode()


class FakeAws:
    """
    A whole AWS account in a region, as far as one-off tasks need it.

    *script* says what containers do (a `ContainerScript` for all, or a function that is asked at each launch),
    *task_script* what the platform does to tasks, *pace* how long it takes, *visible_after* between how many seconds a
    new task becomes visible. *quotas* None are those that AWS publishes. *latency* is how long an answer takes.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        region: str = "us-east-1",
        account: str = "123456789012",
        seed: int = 0,
        quotas: Quotas | None = None,
        script: Script | ContainerScript | None = None,
        task_script: Callable[[TaskRun], TaskScript | None] | None = None,
        engine: Engine | None = None,
        pace: Pace | None = None,
        visible_after: tuple[float, float] = (0.0, 1.5),
        latency: tuple[float, float] = (0.0, 0.0),
        chaos: Chaos | None = None,
        ingestion: Ingestion | None = None,
        delivery: Delivery | None = None,
        clusters: Iterable[str] = ("default",),
        log_groups: Iterable[str] = (),
        validate: bool = True,
    ) -> None:
        self.clock: Clock = clock or RealClock()
        self.region = region
        self.account = account
        self.seed = seed
        self.quotas = Quotas.published(region) if quotas is None else quotas
        self.latency = latency
        self.validate = validate
        self.faults = Faults()
        self.calls = CallLog()
        self.credentials = Credentials(self.clock)
        self._buckets = {name: Bucket(rate, self.clock) for name, rate in self.quotas.rates.items()}
        self._random = Random(f"{seed}/latency")  # noqa: S311 (repeatable, not secret)
        self._ids = Random(f"{seed}/ids")  # noqa: S311

        self.logs = LogsService(self.clock, region=region, account=account, seed=seed, ingestion=ingestion)
        self.sqs = SqsService(self.clock, region=region, account=account, seed=seed)
        self.events = EventsService(
            self.clock, region=region, account=account, seed=seed, sqs=self.sqs, delivery=delivery
        )
        self.ssm = SsmService(self.clock, region=region, account=account, seed=seed)
        self.secretsmanager = SecretsManagerService(self.clock, region=region, account=account, seed=seed)
        self.s3 = S3Service(self.clock, region=region, account=account, seed=seed)
        self.sts = StsService(self.clock, region=region, account=account)
        self.ec2 = Ec2Service(self.clock, region=region, account=account)
        self.sns = SnsService(self.clock, region=region, account=account, seed=seed)
        self.stepfunctions = StepFunctionsService(self.clock)
        self.world = World(
            self.clock,
            region=region,
            account=account,
            seed=seed,
            engine=engine,
            script=script,
            task_script=task_script,
            pace=pace,
            visible_after=visible_after,
            logs=self.logs,
            emit=self.events.emit,
        )
        self.world.subnets = {subnet.id: f"{region}{subnet.zone}" for subnet in self.ec2.subnets}
        self.world.security_groups = set(self.ec2.security_groups)
        self.world.on_launch.append(self._launched)
        self.ecs = EcsService(
            self.clock,
            self.world,
            region=region,
            account=account,
            seed=seed,
            quotas=self.quotas,
            take=self._take,
            values=_StoredValues(self.ssm, self.secretsmanager, self.s3),
            validate=validate,
        )
        self.ecs.shortage = self._shortage
        self.services: dict[str, Service] = {
            service.name: service
            for service in (
                *(self.ecs, self.logs, self.events, self.sqs, self.ssm, self.secretsmanager),
                *(self.s3, self.sts, self.ec2, self.sns, self.stepfunctions),
            )
        }
        for cluster in clusters:
            self.ecs.add_cluster(cluster)
        for group in log_groups:
            self.logs.create_group(group)
        if chaos is not None:
            self.faults.add(chaos)

    async def call(
        self, service: str, operation: str, request: Mapping[str, Any], *, access_key: str | None = None
    ) -> dict[str, Any]:
        """
        Answer a request as AWS does.

        In this order: the request against AWS's model, expired credentials, faults before the effect, the token
        bucket, the verb, the reply against AWS's model, faults after the effect.

        :raises AwsError: what AWS answers instead of a reply
        :raises ConnectionCut: the request or its answer was lost
        :raises WrongReply: the fake answered what AWS could not; a mistake in the fake
        """
        called, at = f"{service}.{operation}", self.clock.time()
        buckets = tuple(buckets_of(service, operation))
        self.calls.came_in(called, buckets, at)
        outcome = "failed"
        try:
            await self._travel()
            reply = await self._answer(service, operation, request, access_key, buckets)
            outcome = "ok"
            return reply
        except AwsError as exc:
            outcome = exc.code
            raise
        except ConnectionCut as exc:
            outcome = f"cut {exc.when}"
            raise
        except anyio.get_cancelled_exc_class():
            outcome = "cancelled"
            raise
        finally:
            self.calls.ended(
                Call(
                    called=called,
                    at=at,
                    moment=self.clock.utcnow(),
                    outcome=outcome,
                    request=request,
                    access_key=access_key,
                )
            )

    def date(self) -> str:
        """Return the moment as the ``Date`` header of a reply: whole seconds of the fake's own clock."""
        return format_datetime(self.clock.utcnow().astimezone(UTC), usegmt=True)

    async def _travel(self) -> None:
        least, most = self.latency
        if most > 0.0:
            await anyio.sleep(self._random.uniform(least, most))
        else:
            await anyio.lowlevel.checkpoint()

    async def _answer(
        self,
        service: str,
        operation: str,
        request: Mapping[str, Any],
        access_key: str | None,
        buckets: tuple[str, ...],
    ) -> dict[str, Any]:
        if service not in self.services or not has_operation(service, operation):
            raise AwsError("UnknownOperationException", f"{service}.{operation} is not part of the fake AWS")
        if self.validate:
            check_request(service, operation, request)
        self.credentials.check(access_key)
        faults = self.faults.draw(f"{service}.{operation}", self.clock.time())
        await self._suffer([fault for fault in faults if fault.when == "before"], None)
        for bucket in buckets:
            if not self._take(bucket, 1.0):
                raise AwsError("ThrottlingException", "Rate exceeded")
        self.world.settle()
        reply = await self.services[service].call(operation, request)
        if self.validate:
            check_reply(service, operation, reply)
        await self._suffer([fault for fault in faults if fault.when == "after"], reply)
        return reply

    async def _suffer(self, faults: list[Fault], reply: Mapping[str, Any] | None) -> None:
        for fault in faults:
            if fault.delay:
                await anyio.sleep(fault.delay)
            if (error := fault.error()) is not None:
                raise error
            if fault.cut:
                raise ConnectionCut(fault.when, how="closed" if fault.cut is True else fault.cut, reply=reply)

    def _take(self, bucket: str, tokens: float) -> bool:
        found = self._buckets.get(bucket)
        return found is None or found.take(tokens)

    def _shortage(self, provider: str) -> str | None:
        """Return why the chaos has no room for the next launch."""
        del provider
        chaos = self.faults.chaos
        self._placements += 1
        return None if chaos is None else chaos.capacity(self._placements, self.clock.time())

    _placements = 0

    def _launched(self, task: Task) -> None:
        if self.faults.chaos is not None:
            self.faults.chaos.launch(self.world, task)

    def new_id(self) -> str:
        """Return what a request goes by, the same for the same seed."""
        return str(UUID(int=self._ids.getrandbits(128), version=4))

    def session(self, access_key: str | None = None) -> Any:
        """Return what `aioboto3.Session` is to AWS: it makes clients, in process."""
        from fargate_runner.testing.aws._client import FakeSession

        return FakeSession(self, access_key)

    def serve(self, *, host: str = "127.0.0.1", port: int = 0, **options: Any) -> AbstractAsyncContextManager[str]:
        """Answer over HTTP while inside the block; its value is the URL."""
        from fargate_runner.testing.aws import _http

        return _http.serve(self, host=host, port=port, **options)
