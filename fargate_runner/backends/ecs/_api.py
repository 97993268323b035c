"""
The one door to AWS: clients, pacing, retries and errors.

Everything that asks AWS anything goes through `Api.call`, which comes back with a reply or with one typed error.

- One session, and one client of each service, for as long as the door is open.
- Every call waits for its turn in the token bucket that AWS will count it in, below the published quota. A throttle
  shrinks the bucket, time lets it grow again, and the call goes on waiting: a throttle never fails a job.
- botocore's own retries are off; tenacity's are the only ones. The same request is sent each time.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import os
import random
import re
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeGuard
from urllib.parse import urlsplit
from weakref import ReferenceType, WeakKeyDictionary, ref

import anyio
import anyio.to_thread
import attrs
from attrs import field

from fargate_runner._backend import TOO_LATE
from fargate_runner._errors import BackendError, BackendUnavailable, InvalidJob, RunnerClosed
from fargate_runner._gc import no_gc
from fargate_runner.backends.ecs._lean import CONNECT_TIMEOUT, POOL, READ_TIMEOUT, LeanSession

if TYPE_CHECKING:
    from tenacity import RetryCallState

__all__ = ["Api", "ApiError", "Budget", "Caller", "Stats", "Trouble", "trouble_of"]


# ---- what went wrong -----------------------------------------------------------------------------------------------


class Trouble(enum.Enum):
    """What kind of trouble an error of AWS is, and with it what can be done."""

    THROTTLED = "throttled"
    """Too many calls. Nothing was done; the same call will pass later."""
    TRANSIENT = "transient"
    """AWS or the way to it failed. It may have been done or not."""
    EXPIRED = "expired"
    """The credentials are no longer good."""
    DENIED = "denied"
    """The credentials are good and do not suffice, or AWS does not know them."""
    CONFLICT = "conflict"
    """It exists already, perhaps otherwise."""
    INVALID = "invalid"
    """AWS refuses the request itself."""
    NOT_FOUND = "not_found"
    """What the request names is not there."""
    UNKNOWN = "unknown"
    """Not an answer that AWS is known to give: perhaps somebody in between."""


_RETRYABLE: Final = frozenset({Trouble.THROTTLED, Trouble.TRANSIENT, Trouble.EXPIRED})

# Text counts only where AWS has no code of its own for it: the trouble, and the codes that it comes with (none: any).
# EC2's throttles reach us through RunTask dressed up as a client's mistake.
_BY_TEXT: Final[tuple[tuple[str, frozenset[str], Trouble], ...]] = (
    ("(errorcode: throttling)", frozenset(), Trouble.THROTTLED),
    ("(errorcode: requestlimitexceeded)", frozenset(), Trouble.THROTTLED),
    ("rate exceeded", frozenset(), Trouble.THROTTLED),
    ("request limit exceeded", frozenset(), Trouble.THROTTLED),
    ("too many concurrent attempts to create a new revision", frozenset({"ClientException"}), Trouble.THROTTLED),
    ("the referenced task was not found", frozenset({"InvalidParameterException"}), Trouble.NOT_FOUND),
    ("the specified resource was not found", frozenset({"InvalidParameterException"}), Trouble.NOT_FOUND),
    # A request that lay about, or a clock that is being set: the next signature is a new one.
    ("signature expired", frozenset({"InvalidSignatureException", "SignatureDoesNotMatch"}), Trouble.TRANSIENT),
    ("signature not yet current", frozenset({"InvalidSignatureException", "SignatureDoesNotMatch"}), Trouble.TRANSIENT),
)

_BY_CODE: Final[Mapping[str, Trouble]] = {
    **dict.fromkeys(
        (
            *("Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled"),
            *("RequestThrottledException", "TooManyRequestsException", "RequestLimitExceeded", "TooManyUpdates"),
            *("BandwidthLimitExceeded", "EC2ThrottledException", "PriorRequestNotComplete", "SlowDown"),
            "ProvisionedThroughputExceededException",
        ),
        Trouble.THROTTLED,
    ),
    **dict.fromkeys(
        (
            *("ServerException", "InternalFailure", "InternalError", "InternalServerError", "InternalServerException"),
            *("InternalServiceError", "InternalServiceException", "ServiceUnavailable", "ServiceUnavailableException"),
            *("Unavailable", "RequestTimeout", "RequestTimeoutException", "RequestTimeTooSkewed"),
            "ReplicatedWriteConflictException",  # DynamoDB: a global table, written in two regions at once
            "OperationAbortedException",  # CloudWatch Logs: "Multiple requests to update the same resource"
        ),
        Trouble.TRANSIENT,
    ),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "RequestExpired"), Trouble.EXPIRED),
    **dict.fromkeys(
        (
            *("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "NotAuthorized", "AuthFailure"),
            *("UnrecognizedClientException", "InvalidClientTokenId", "InvalidAccessKeyId", "OptInRequired"),
            *("MissingAuthenticationToken", "MissingAuthenticationTokenException", "SignatureDoesNotMatch"),
            *("IncompleteSignature", "IncompleteSignatureException", "InvalidSignatureException", "BlockedException"),
        ),
        Trouble.DENIED,
    ),
    "NotImplemented": Trouble.INVALID,  # 501, and still so at the next try
    "ConflictException": Trouble.CONFLICT,
    "ConditionalCheckFailedException": Trouble.CONFLICT,
    "ResourceInUseException": Trouble.CONFLICT,
    "BucketAlreadyOwnedByYou": Trouble.CONFLICT,
}

_BY_CODE_END: Final[tuple[tuple[re.Pattern[str], Trouble], ...]] = (
    (re.compile(r"NotFound(Exception|Fault)?\Z|\ANoSuch|NonExistent|DoesNotExist(Exception)?\Z"), Trouble.NOT_FOUND),
    (re.compile(r"AlreadyExists(Exception|Fault)?\Z"), Trouble.CONFLICT),
)

_A_CODE: Final = re.compile(r"[A-Z][A-Za-z0-9.]+\Z")


def trouble_of(code: str, message: str = "", status: int = 0) -> Trouble:
    """Say what kind of trouble an error is, from what AWS answered; *status* 0 is none."""
    low = message.lower()
    for text, codes, trouble in _BY_TEXT:
        if text in low and (not codes or code in codes):
            return trouble
    if code in _BY_CODE:
        return _BY_CODE[code]
    if status == 429:
        return Trouble.THROTTLED
    if status == 408 or status >= 500:
        return Trouble.TRANSIENT
    for end, trouble in _BY_CODE_END:
        if end.search(code):
            return trouble
    # What has a name of its own was refused by AWS; "403" alone may come from any machine in between.
    return Trouble.INVALID if _A_CODE.match(code) else Trouble.UNKNOWN


_DENIED: Final = re.compile(
    r"(?:(?:User|Principal): (?P<who>\S+) is )?not authorized to perform:? (?P<action>[\w-]+:\w+)"
    r"(?: on resource: (?P<resource>[^\s,]+))?"
)
_EXPLICIT: Final = re.compile(r"with an explicit deny in (?P<where>an? [\w -]+?)(?=[:.]|\Z)")

_ADVICE_BY_ACTION: Final[Mapping[str, str]] = {
    "iam:PassRole": "both the execution role and the task role must be allowed",
    "ecs:RunTask": "the resource is the task definition's revision: allow it as family:*",
    "ecs:TagResource": "tags at a launch or a registration need it",
}
_ADVICE_BY_CODE: Final[Mapping[str, str]] = {
    "ClusterNotFoundException": "check the name of the cluster and the region, or create the cluster",
    **dict.fromkeys(
        ("UnrecognizedClientException", "InvalidClientTokenId", "InvalidAccessKeyId"),
        "AWS does not know these credentials: check AWS_ACCESS_KEY_ID and AWS_SESSION_TOKEN, or log in again",
    ),
    **dict.fromkeys(
        ("SignatureDoesNotMatch", "InvalidSignatureException", "RequestTimeTooSkewed"),
        "the secret key does not belong to the access key, or the clock of this machine is wrong",
    ),
    "OptInRequired": "the account has not signed up for this service, or the region is not enabled",
    "BlockedException": "AWS has blocked this account: ask AWS Support",
    "ParamValidation": "botocore does not even send it",
    TOO_LATE: "look whether it happened before you do it again",
}
_ADVICE: Final[Mapping[Trouble, str]] = {
    Trouble.THROTTLED: "ask AWS for a higher quota, or use less of it: Budget(share=…)",
    Trouble.TRANSIENT: "try again later; AWS's state is at https://health.aws.amazon.com",
    Trouble.EXPIRED: "log in again, or use credentials that renew themselves, such as a role's",
    Trouble.DENIED: "allow it for the credentials in use",
    Trouble.CONFLICT: "",
    Trouble.INVALID: "",
    Trouble.NOT_FOUND: "check the name and the region",
    Trouble.UNKNOWN: "this is no answer of AWS that we know: look for a proxy in between",
}


class ApiError(BackendError):
    """
    AWS answered with an error, or not at all.

    ``trouble`` is its kind; ``code``, ``aws_message``, ``request_id`` and ``status`` are AWS's own words, as far as
    there are any. ``action`` and ``resource`` are the missing permission if it was denied. ``resource_ids`` are those
    of a conflict, ``item`` is what was there instead, of a condition of DynamoDB's. ``in_doubt``: it, or an earlier try
    of the same call, may have had its effect all the same.
    """

    def __init__(
        self,
        operation: str,
        code: str,
        message: str = "",
        request_id: str = "",
        status: int = 0,
        trouble: Trouble | None = None,
        resource_ids: tuple[str, ...] = (),
        *,
        in_doubt: bool = False,
        item: Mapping[str, Any] | None = None,
    ) -> None:
        self.trouble = trouble_of(code, message, status) if trouble is None else trouble
        denied = _DENIED.search(message) if self.trouble is Trouble.DENIED else None
        self.action = denied["action"] if denied else ""
        self.resource = (denied["resource"] or "").rstrip(".") if denied else ""
        said = ": ".join(part for part in (operation, code, _short(message.strip().rstrip("."))) if part)
        self.advice = _advice(self.trouble, code, message, self.action, self.resource)
        if self.advice:
            said = f"{said}; {self.advice}"
        if request_id:
            said = f"{said} (request {request_id})"
        super().__init__(said, operation=operation, code=code, retryable=self.trouble in _RETRYABLE)
        self.aws_message = message
        self.request_id = request_id
        self.status = status
        self.resource_ids = resource_ids
        self.in_doubt = in_doubt
        self.item = item

    def __reduce__(self) -> Any:
        words = (self.operation, self.code, self.aws_message, self.request_id, self.status, self.trouble)
        return type(self), (*words, self.resource_ids), {"in_doubt": self.in_doubt, "item": self.item}


def _advice(trouble: Trouble, code: str, message: str, action: str, resource: str) -> str:
    if action:
        where = f" on {resource}" if resource else ""
        if explicit := _EXPLICIT.search(message):
            return f"{action}{where} is denied by {explicit['where']}: whoever owns that has to change it"
        hint = _ADVICE_BY_ACTION.get(action)
        return f"allow {action}{where} for the credentials in use" + (f" ({hint})" if hint else "")
    return _ADVICE_BY_CODE.get(code, _ADVICE[trouble])


def _short(text: str, limit: int = 1000) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


# ---- how much may be asked -----------------------------------------------------------------------------------------


def _check_share(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and (not _is_number(value) or not 0 < value <= 1):
        fix = "write a part such as 0.5, at most 1, or nothing"
        raise InvalidJob(f"budget.{attribute.name}", value, "expected a part of the quotas", fix)


def _check_rate(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and (not _is_number(value) or not 0 < value < float("inf")):
        fix = "write what AWS allows the account, such as 100, or nothing"
        raise InvalidJob(f"budget.{attribute.name}", value, "expected calls a second, more than none", fix)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@attrs.frozen(kw_only=True)
class Budget:
    """
    How much of the account's API quotas to use. For accounts whose quotas were raised, or are shared with others.

    Each figure is what AWS allows the whole account in a region, in calls a second: see "ECS API throttling" and
    "CloudWatch Logs quotas" in the console's Service Quotas. None: what AWS publishes for the region. ``share`` of
    them is what this process uses at most; two processes of equal weight would take 0.4 each. None: 0.97 of the
    launches, which is what a batch waits for, and 0.85 of everything else. Either way, a throttle makes it less.
    """

    share: float | None = field(default=None, validator=_check_share)
    run_task: float | None = field(default=None, validator=_check_rate)
    """RunTask on Fargate: 20."""
    modify: float | None = field(default=None, validator=_check_rate)
    """RunTask and StopTask together: 40."""
    read: float | None = field(default=None, validator=_check_rate)
    """DescribeTasks and ListTasks together: 20."""
    register: float | None = field(default=None, validator=_check_rate)
    """RegisterTaskDefinition and its opposite: 1."""
    get_log_events: float | None = field(default=None, validator=_check_rate)
    """GetLogEvents: 10 to 30, by region."""
    filter_log_events: float | None = field(default=None, validator=_check_rate)
    """FilterLogEvents: 5 to 25, by region."""


@attrs.frozen
class _Quota:
    """A token bucket of AWS: *burst* calls at once, *rate* a second for good; ``option`` of `Budget` overrides it."""

    burst: float
    rate: float
    operations: tuple[str, ...] = ()
    option: str = ""


# Amazon ECS Developer Guide, "Request throttling for the Amazon ECS API"; CloudWatch Logs quotas; autumn 2026.
# All operations of a bucket share it. Figures of Logs are calls a second, with nothing said of bursts.
_QUOTAS: Final[Mapping[str, _Quota]] = {
    "ecs.run-task": _Quota(20, 20, ("ecs.RunTask",), "run_task"),
    "fargate.launches": _Quota(100, 20, (), "run_task"),
    "fargate.spot-launches": _Quota(100, 20, (), "run_task"),
    "ecs.modify": _Quota(100, 40, ("ecs.RunTask", "ecs.StopTask", "ecs.StartTask", "ecs.ExecuteCommand"), "modify"),
    "ecs.read": _Quota(100, 20, ("ecs.DescribeTasks", "ecs.ListTasks", "ecs.DescribeContainerInstances"), "read"),
    "ecs.definition-modify": _Quota(20, 1, ("ecs.RegisterTaskDefinition", "ecs.DeregisterTaskDefinition"), "register"),
    "ecs.definition-read": _Quota(
        50, 20, ("ecs.DescribeTaskDefinition", "ecs.ListTaskDefinitions", "ecs.ListTaskDefinitionFamilies")
    ),
    "ecs.definition-delete": _Quota(5, 1, ("ecs.DeleteTaskDefinitions",)),
    "ecs.cluster-modify": _Quota(20, 1, ("ecs.CreateCluster", "ecs.DeleteCluster", "ecs.UpdateCluster")),
    "ecs.cluster-read": _Quota(50, 20, ("ecs.DescribeClusters", "ecs.ListClusters")),
    "ecs.tag-modify": _Quota(20, 10, ("ecs.TagResource", "ecs.UntagResource")),
    "ecs.tag-read": _Quota(50, 20, ("ecs.ListTagsForResource",)),
    "ecs.provider-read": _Quota(50, 20, ("ecs.DescribeCapacityProviders",)),
    "ecs.setting-read": _Quota(50, 20, ("ecs.ListAccountSettings",)),
    "logs.get": _Quota(25, 25, ("logs.GetLogEvents",), "get_log_events"),
    "logs.filter": _Quota(10, 10, ("logs.FilterLogEvents",), "filter_log_events"),
    "logs.streams": _Quota(25, 25, ("logs.DescribeLogStreams",)),
    "logs.groups": _Quota(10, 10, ("logs.DescribeLogGroups",)),
    "logs.create-group": _Quota(10, 10, ("logs.CreateLogGroup",)),
    "logs.retention": _Quota(5, 5, ("logs.PutRetentionPolicy",)),
    "logs.tail": _Quota(5, 5, ("logs.StartLiveTail",)),
    "s3": _Quota(200, 200, ("s3.PutObject", "s3.GetObject")),
    # What one partition of a table takes: the pages of a namespace are in one.
    "dynamodb.write": _Quota(1000, 1000, ("dynamodb.PutItem", "dynamodb.DeleteItem")),
    "dynamodb.read": _Quota(1000, 1000, ("dynamodb.GetItem", "dynamodb.BatchGetItem", "dynamodb.Query")),
    "sqs": _Quota(300, 300, ("sqs.ReceiveMessage", "sqs.DeleteMessageBatch")),  # a queue takes nearly any number
}
_OTHER: Final = _Quota(20, 10)
"""Of what is asked seldom, and has no published figure here: each operation by itself."""

_LAUNCHES: Final = ("fargate.launches", "fargate.spot-launches")
"""Of tasks, not of calls: the rates at which Fargate launches them."""

_SLOW_REGIONS: Final = ("eu-central-1", "ap-northeast-3", "ap-southeast-3", "ca-west-1", "il-central-1")
_BY_REGION: Final[Mapping[str, Mapping[str, float]]] = {
    "logs.get": dict.fromkeys((*_SLOW_REGIONS, "us-west-2", "eu-west-1"), 10.0) | {"eu-west-3": 30.0},
    "logs.filter": dict.fromkeys(_SLOW_REGIONS, 5.0) | {"us-east-1": 25.0},
}

_CUT: Final = 0.7
"""What a throttle leaves of a bucket's pace."""
_CUT_EVERY: Final = 1.0
"""Seconds: the calls that were under way together are throttled together, and that is one sign, not many."""
_SLOWEST: Final = 0.1
_GROWTH: Final = 0.03
"""What a second without throttles gives back."""
_TICK: Final = 0.001
"""Seconds: a shorter sleep may be over before the clock has moved."""


class _Bucket:
    """
    A token bucket that is served in the order of arrival, and that learns: less on a throttle, more with time.

    Safe to cancel: who leaves the queue takes nothing along.
    """

    def __init__(self, name: str, burst: float, rate: float) -> None:
        self.name = name
        self.pace = 1.0
        self._burst = max(1.0, burst)
        self._rate = rate
        self._tokens = self._burst
        self._at = self._cut_at = anyio.current_time()
        self._cut_at -= _CUT_EVERY
        self._held = 0
        """Tokens that were taken and not used yet. AWS has not counted them, so none is refilled in their place."""
        self._turn = anyio.Lock()  # fair: its waiters are served first come, first served

    async def take(self, tokens: int = 1) -> None:
        """Wait for tokens and take them."""
        if not self._turn.locked() and self._missing(tokens) <= 0.0:
            self._tokens -= tokens
            return
        async with self._turn:
            while (missing := self._missing(tokens)) > 0.0:  # noqa: ASYNC110 (time is the event)
                await anyio.sleep(max(_TICK, missing / (self._rate * self.pace)))
            self._tokens -= tokens

    def hold(self, tokens: int = 1) -> None:
        """Let the tokens just taken count as unused, until they are let go."""
        self._held += tokens

    def let_go(self, tokens: int = 1) -> None:
        """Let held tokens count as used."""
        self._missing()
        self._held -= tokens

    def give_back(self, tokens: int = 1) -> None:
        """Return tokens that were held and not used."""
        self.let_go(tokens)
        self._tokens += tokens

    def throttled(self) -> None:
        """AWS says that it is too much: whatever the published figure is, others use it too."""
        self._missing()
        self._tokens = min(self._tokens, 0.0)
        if self._at - self._cut_at >= _CUT_EVERY:
            self.pace = max(_SLOWEST, self.pace * _CUT)
            self._cut_at = self._at

    def _missing(self, tokens: int = 1) -> float:
        now = anyio.current_time()
        passed, self._at = now - self._at, now
        self.pace = min(1.0, self.pace + passed * _GROWTH)
        most = max(float(tokens), self._burst * self.pace) - self._held
        self._tokens = min(most, self._tokens + passed * self._rate * self.pace)
        # Times are floats: a call each 1/20 s must find its token although 0.05 is not exact.
        return tokens - 1e-9 - self._tokens


def _make_bucket(name: str, budget: Budget, region: str) -> _Bucket:
    quota = _QUOTAS[name]
    asked = getattr(budget, quota.option) if quota.option else None
    rate = asked or _BY_REGION.get(name, {}).get(region, quota.rate)
    # Logs counts calls a second: what is saved up must not make it more in any one of them.
    burst = 0.15 * rate if name.startswith("logs.") else quota.burst * rate / quota.rate
    share = _share(budget, launches=quota.option == "run_task")
    return _Bucket(name, burst * share, rate * share)


def _share(budget: Budget, *, launches: bool = False) -> float:
    return budget.share or (0.97 if launches else 0.85)


def _make_buckets(budget: Budget, region: str) -> dict[str, tuple[_Bucket, ...]]:
    """Return the buckets of each operation, the narrowest first."""
    by_operation: dict[str, tuple[_Bucket, ...]] = {}
    for name, quota in _QUOTAS.items():
        bucket = _make_bucket(name, budget, region)
        for operation in quota.operations:
            by_operation[operation] = (*by_operation.get(operation, ()), bucket)
    return by_operation


@attrs.define
class Stats:
    """What went through a door, for tests, benchmarks and the curious."""

    calls: Counter[str] = field(factory=Counter)
    """Requests sent, by operation: ``ecs.RunTask``. Each try counts."""
    buckets: Counter[str] = field(factory=Counter)
    """Requests sent, by token bucket."""
    throttles: Counter[str] = field(factory=Counter)
    """Requests that AWS turned away as too many, by operation."""
    troubles: Counter[str] = field(factory=Counter)
    """Answers that were errors, by `Trouble`'s value."""
    renewals: int = 0
    """How often clients were made again for fresh credentials."""


# ---- AWS's own time -------------------------------------------------------------------------------------------------

_CLOCK_READ_EVERY: Final = 60.0
"""Seconds: two clocks do not drift apart much faster than a header tells, which is whole seconds."""
_CLOCK_LATE: Final = 30.0
"""Seconds: a reply that took longer may have lain about while this process stood still, and tells what time it was."""


class _Clock:
    """
    What time it is at AWS: the ``Date`` of its replies, kept as an offset to the monotonic clock.

    This machine's own time may be wrong, and be set while a job runs; AWS's stamps must not be compared with it.
    """

    def __init__(self) -> None:
        self.due = float("-inf")
        """The moment of the loop from which on the next reply is read."""
        self._zero: datetime | None = None

    def learn(self, reply: Mapping[str, Any], now: float) -> None:
        """Read the time that a reply tells, which came in *now*; one that tells none changes nothing."""
        meta = reply.get("ResponseMetadata")
        headers = meta.get("HTTPHeaders") if isinstance(meta, Mapping) else None
        said = headers.get("date") if isinstance(headers, Mapping) else None
        if not isinstance(said, str):
            return
        from email.utils import parsedate_to_datetime  # botocore has loaded it by now

        try:
            told = parsedate_to_datetime(said)
            self._zero = (told if told.tzinfo is not None else told.replace(tzinfo=UTC)) - timedelta(seconds=now)
        except (ValueError, OverflowError, TypeError):
            return
        self.due = now + _CLOCK_READ_EVERY

    def at(self, now: float) -> datetime | None:
        """Return the time at a moment of the loop; None before any reply has told it."""
        return None if self._zero is None else self._zero + timedelta(seconds=now)


# ---- sessions and clients ------------------------------------------------------------------------------------------

_LONGEST_TRY: Final = 60.0
"""Seconds for one try in all: a reply that trickles in is none."""
_CLOSING: Final = 5.0
"""Seconds that closing a client may take."""


@attrs.frozen(kw_only=True)
class _Session:
    """A session, and how it was made."""

    session: Any
    parser: str = "stock"
    lean: LeanSession | None = None
    """What makes the clients that need no aiohttp; ``session`` is then not asked."""


def _make_session(fast: bool) -> _Session:
    """Make a session, of aioboto3 or as light as one. For a worker thread: importing takes a third of a second."""
    with no_gc():
        if fast:
            try:
                lean = LeanSession()
            except (ImportError, AttributeError, TypeError, LookupError):
                pass  # a botocore of another shape
            else:
                return _Session(session=lean, parser="fast", lean=lean)
        try:
            import aioboto3
        except ImportError as exc:  # a bundle has none
            fix = "install it, or a botocore that this version knows"
            raise BackendUnavailable(f"this botocore needs aioboto3, which cannot be imported ({exc}); {fix}") from exc

        return _Session(session=aioboto3.Session())


class _Shared:
    """The session that all doors on one event loop share which were not handed one, while any of them is open."""

    def __init__(self) -> None:
        self.made: dict[bool, _Session] = {}
        self.making = anyio.Lock()


_SHARED: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, ReferenceType[_Shared]]] = WeakKeyDictionary()


def _shared_on(loop: asyncio.AbstractEventLoop) -> _Shared:
    known = _SHARED.get(loop)
    shared = known() if known is not None else None
    if shared is None:
        shared = _Shared()
        _SHARED[loop] = ref(shared)
    return shared


@attrs.define(eq=False)
class _Client:
    """An open client. It is closed when nobody uses it any more."""

    client: Any
    manager: Any
    generation: int
    users: int = 0
    retired: bool = False


def _config(endpoint_url: str | None, service: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT,
        "read_timeout": READ_TIMEOUT,
        "max_pool_connections": POOL,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "user_agent_extra": "lib/fargate-runner",
    }
    if _is_not_aws(endpoint_url or _endpoint_from(os.environ, service)):
        # Names below the endpoint's own ("stream-logs.", a bucket's) lead nowhere there.
        options |= {"inject_host_prefix": False, "s3": {"addressing_style": "path"}}
    return options


def _endpoint_from(environ: Mapping[str, str], service: str) -> str | None:
    if environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return None
    found = environ.get(f"AWS_ENDPOINT_URL_{_SERVICE_IDS.get(service, service).upper()}")
    return found or environ.get("AWS_ENDPOINT_URL")


_SERVICE_IDS: Final = {"logs": "CLOUDWATCH_LOGS", "events": "EVENTBRIDGE"}


def _is_not_aws(url: str | None) -> bool:
    host = (urlsplit(url).hostname or "") if url else ""
    return bool(host) and not host.endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws"))


_WORD_END: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@functools.cache
def _method_of(operation: str) -> tuple[str, str]:
    """Return the service and the method of an operation: ``ecs.RunTask`` is ``run_task`` of ``ecs``."""
    service, _, name = operation.partition(".")
    return service, _WORD_END.sub("_", name).lower()


@attrs.frozen(kw_only=True)
class Caller:
    """Who the credentials belong to, as STS tells."""

    account: str
    arn: str
    user_id: str


class Api:
    """
    The door to AWS, for one account and region. Open inside ``async with api.running()``, on one event loop.

    *session* is anything with ``client(name, **kw)`` or ``create_client(name, **kw)`` that returns an asynchronous
    context manager of a client: aioboto3's, aiobotocore's, a fake's. None: one of our own, made in a worker
    thread when it is first needed, and shared with every open door of this event loop. *fast* allows that one to do
    without aiohttp and to read large replies as plain JSON; without it, it is a new ``aioboto3.Session()``.
    """

    def __init__(
        self,
        *,
        session: Any | None = None,
        region: str | None = None,
        endpoint_url: str | None = None,
        budget: Budget | None = None,
        fast: bool = True,
    ) -> None:
        self._given = _check_session(session)
        self._region_said = region
        self._endpoint_url = _check_endpoint(endpoint_url)
        self._budget = Budget() if budget is None else budget
        self._fast = fast
        self._loop: asyncio.AbstractEventLoop | None = None
        self.region = region or ""
        """The region that is asked; empty while it is not known, which is before it is open."""
        self.parser = "stock"
        """``fast`` if large replies are read as plain JSON, ``stock`` if botocore reads them."""
        self.stats = Stats()
        self.stays_warm = False
        """Whether leaving `running` keeps the clients, and all that was learned, for the next time on this loop."""
        self._warm_on: asyncio.AbstractEventLoop | None = None
        self._clients: dict[str, _Client] = {}
        self._clock = _Clock()

    @property
    def is_warm(self) -> bool:
        """Whether it is closed, and has kept its clients for the event loop that runs."""
        return self._warm_on is not None and self._warm_on is _running_loop()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """
        Open the door; leaving the block closes every client, cancelled or not, unless it ``stays_warm``.

        :raises BackendUnavailable: no region is known, or the profile of the environment is not there
        """
        if self._loop is not None:
            raise RunnerClosed("this door to AWS is open already")
        has_begun, self._warm_on = self.is_warm, None
        self._loop = loop = _running_loop()
        try:
            if not has_begun:
                await self._begin_anew()
            has_begun = True
            yield
        finally:
            self._loop = None
            if self.stays_warm and has_begun:
                self._warm_on = loop
            else:
                await self._close_all()

    async def cool_down(self) -> None:
        """Close the clients that it has kept; those of another event loop can only be dropped."""
        if self._loop is not None:
            return
        if not self.is_warm:
            self._clients = {}
        self._warm_on = None
        await self._close_all()

    async def _begin_anew(self) -> None:
        self._session: _Session | None = None
        self._shared = _shared_on(_running_loop())
        self._clients = {}
        self._opening = anyio.Lock()
        self._reserved: Counter[str] = Counter()
        self._generation = 0
        self._renewed_at = float("-inf")
        self._worked = self._reached = False
        self._caller: Caller | None = None
        self._caller_asked_at = float("-inf")
        self._clock = _Clock()
        self.region = await self._find_region()
        self._buckets = _make_buckets(self._budget, self.region)
        self._launches = tuple(_make_bucket(name, self._budget, self.region) for name in _LAUNCHES)

    async def _close_all(self) -> None:
        self._session = None
        self._shared = _Shared()
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await self._close(client)

    async def call(
        self,
        operation: str,
        throttle_patience: float = float("inf"),
        patience: float = float("inf"),
        may_be_sent: Callable[[], bool] = lambda: True,
        /,
        **request: Any,
    ) -> dict[str, Any]:
        """
        Ask AWS: ``await api.call("ecs.RunTask", cluster=…)``. Safe to cancel; its effect is then unknown.

        Throttles are waited out, without end unless *throttle_patience* gives one in seconds. What AWS or the way to it
        fails in is tried again for two minutes, what expired credentials fail in for a quarter of an hour, or for
        *patience* seconds if that is less; always with the very same request. *may_be_sent* is asked before each try.

        :raises ApiError: AWS's own error, or none of its answers; or it may not be sent any more
        :raises BackendUnavailable: AWS cannot be reached at all: no credentials, no region, no way to the endpoint
        :raises RunnerClosed: outside of `running`, or on another event loop
        """
        self._check_open()
        if operation == "ecs.RunTask":
            # botocore would make up a new one for each try, and each would start a task.
            assert request.get("clientToken"), "a RunTask without a clientToken must not be sent twice"
        asked = _Call(
            self,
            operation,
            request,
            patience=patience,
            throttle_patience=throttle_patience,
            may_be_sent=may_be_sent,
        )
        return await self._try(asked)

    async def _try(self, call: _Call) -> dict[str, Any]:
        try:
            return await call.once()
        except ApiError as exc:
            if not call.goes_on(exc):
                raise
            first = exc
        # Most calls need no second try, and most processes thus no tenacity, which takes as long to import as attrs.
        from tenacity import AsyncRetrying, retry_if_exception

        def pause(state: RetryCallState) -> float:
            assert state.outcome is not None
            return call.pause(state.outcome.exception())

        await anyio.sleep(call.pause(first))
        retrying = AsyncRetrying(retry=retry_if_exception(call.goes_on), wait=pause, sleep=anyio.sleep, reraise=True)
        try:
            return await retrying(call.once)
        except ApiError as exc:
            error = call.given_up(exc)
            if error is exc:
                raise
            raise error from exc

    async def reserve(self, operation: str, *, launches: int = 0, spot: bool = False) -> None:
        """
        Wait for a turn, and keep it for the next call of *operation*, which then does not wait.

        *launches* is how many tasks that will launch on Fargate: AWS counts those as well, Spot's apart.
        """
        self._check_open()
        fargate = self._launches[spot]
        if launches:
            await fargate.take(launches)
            fargate.hold(launches)
        try:
            await self._hold(self._buckets_of(operation))
        except BaseException:
            fargate.give_back(launches)
            raise
        fargate.let_go(launches)
        self._reserved[operation] += 1

    async def caller(self) -> Caller | None:
        """Return who the credentials belong to; None if STS does not tell. Asked once."""
        self._check_open()
        if self._caller is None and anyio.current_time() - self._caller_asked_at > _ASK_STS_EVERY:
            self._caller_asked_at = anyio.current_time()
            try:
                reply = await self._try(_Call(self, "sts.GetCallerIdentity", {}, patience=_STS_PATIENCE))
            except BackendError:
                return None
            said = {name.lower(): str(value) for name, value in reply.items()}
            self._caller = Caller(
                account=said.get("account", ""), arn=said.get("arn", ""), user_id=said.get("userid", "")
            )
        return self._caller

    async def account(self) -> str:
        """Return the number of the account; empty if STS does not tell."""
        caller = await self.caller()
        return "" if caller is None else caller.account

    def now(self) -> datetime | None:
        """Return AWS's time, as its replies tell it, to about a second; None before the first one. Asks nobody."""
        return None if self._loop is None else self._clock.at(self._loop.time())

    # ---- what a call needs -----------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._loop is None:
            raise RunnerClosed("the door to AWS is not open: use the backend inside 'async with'")
        if _running_loop() is not self._loop:
            raise RunnerClosed(
                "AWS clients belong to the event loop that they were opened on, and this is another: open a backend "
                "on each, or keep one loop (asyncio.Runner) for all calls"
            )

    async def _take(self, operation: str) -> tuple[_Bucket, ...]:
        """Wait for the turn of a call, in every bucket that it counts in."""
        buckets = self._buckets_of(operation)
        if self._reserved[operation]:
            self._reserved[operation] -= 1
        else:
            await self._hold(buckets)
        for bucket in buckets:
            bucket.let_go()
        return buckets

    def _buckets_of(self, operation: str) -> tuple[_Bucket, ...]:
        buckets = self._buckets.get(operation)
        if buckets is None:
            name = operation if operation.partition(".")[0] != "s3" else "s3"
            share = _share(self._budget)
            made = _Bucket(name, _OTHER.burst * share, _OTHER.rate * share)
            buckets = self._buckets[operation] = (made,)
        return buckets

    async def _hold(self, buckets: tuple[_Bucket, ...]) -> None:
        """Take a token of each bucket, and hold them all."""
        held = 0
        try:
            for bucket in buckets:
                await bucket.take()
                bucket.hold()
                held += 1
        except BaseException:
            for bucket in buckets[:held]:
                bucket.give_back()
            raise

    @asynccontextmanager
    async def _lend(self, service: str) -> AsyncGenerator[_Client]:
        """Lend the client of a service."""
        client = self._clients.get(service)
        if client is None:
            with anyio.move_on_after(_LONGEST_TRY):
                async with self._opening:
                    client = self._clients.get(service)
                    if client is None:
                        client = self._clients[service] = await self._open(service)
            if client is None:
                raise _SlowCredentials(f"they did not come within {_LONGEST_TRY:.0f} seconds")
        client.users += 1
        try:
            yield client
        finally:
            client.users -= 1
            if client.retired and client.users == 0:
                await self._close(client)

    async def _renew(self, generation: int) -> None:
        """Have the next calls use fresh credentials, unless somebody has seen to that since *generation*."""
        now = anyio.current_time()
        if generation != self._generation or now - self._renewed_at < _RENEW_EVERY:
            return
        self._generation += 1
        self._renewed_at = now
        self.stats.renewals += 1
        retired, self._clients = list(self._clients.values()), {}
        if self._session is not None and self._shared.made.get(self._fast) is self._session:
            del self._shared.made[self._fast]
        self._session = None  # one of ours is made again: it reads the environment and the files of AWS anew
        for client in retired:
            client.retired = True
            if client.users == 0:
                await self._close(client)

    async def _open(self, service: str) -> _Client:
        made = await self._open_session()
        known: dict[str, Any] = {"region_name": self.region}
        if self._endpoint_url is not None:
            known["endpoint_url"] = self._endpoint_url
        config = _config(self._endpoint_url, service)
        session = made.session
        if made.lean is not None:
            make_lean = partial(made.lean.make, service, config, **known)
            lean = await anyio.to_thread.run_sync(make_lean, abandon_on_cancel=True)  # it may ask a server for a role
            if lean is not None:
                return _Client(client=lean, manager=lean, generation=self._generation)
            try:
                session = await anyio.to_thread.run_sync(made.lean.others, service)
            except ImportError as exc:
                fix = f"install it, or build the bundle with --service {service}"
                raise BackendUnavailable(f"{service} needs aioboto3, which cannot be imported ({exc}); {fix}") from exc
        make = getattr(session, "client", None) or session.create_client
        with no_gc():
            from aiobotocore.config import AioConfig

            known["config"] = AioConfig(**config)
            manager = make(service, **known)
            if not hasattr(manager, "__aenter__"):
                raise _wrong_session(self._given)
            client = await manager.__aenter__()
        return _Client(client=client, manager=manager, generation=self._generation)

    async def _open_session(self) -> _Session:
        if self._session is None:
            if self._given is not None:
                self._session = _Session(session=self._given)
            else:
                self._session = await self._shared_session()
            self.parser = self._session.parser
        return self._session

    async def _shared_session(self) -> _Session:
        shared = self._shared
        async with shared.making:
            made = shared.made.get(self._fast)
            if made is None:
                made = shared.made[self._fast] = await anyio.to_thread.run_sync(_make_session, self._fast)
        return made

    async def _close(self, client: _Client) -> None:
        with anyio.CancelScope(shield=True), anyio.move_on_after(_CLOSING):
            await client.manager.__aexit__(None, None, None)

    async def _find_region(self) -> str:
        region = self._region_said
        if not region and self._given is not None:
            region = _region_of_session(self._given)
        region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if not region and self._given is None:
            try:
                region = _region_of_session((await self._open_session()).session)
            except Exception as exc:
                raise _translated(exc, "running") from exc
        if not region:
            raise BackendUnavailable(_NO_REGION, code="NoRegion")
        return region


_ASK_STS_EVERY: Final = 300.0
_STS_PATIENCE: Final = 5.0
_RENEW_EVERY: Final = 1.0
_NO_REGION: Final = (
    "no AWS region is known: set AWS_REGION, say region='eu-west-1', or set one in the profile (aws configure)"
)


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise BackendUnavailable("AWS's libraries run on asyncio only: use anyio's asyncio backend") from None


def _check_session(session: Any) -> Any:
    if session is None:
        return None
    makers = (getattr(session, "client", None), getattr(session, "create_client", None))
    # aioboto3's session is a subclass of boto3's; boto3's own makes clients that block the event loop.
    library = type(session).__module__.partition(".")[0]
    if library in {"boto3", "botocore"} or not any(map(callable, makers)):
        raise _wrong_session(session)
    return session


def _wrong_session(session: Any) -> InvalidJob:
    kind = f"{type(session).__module__}.{type(session).__qualname__}"
    problem = f"{kind} makes no asynchronous clients"
    return InvalidJob("session", session, problem, "pass aioboto3.Session(…), or a session of aiobotocore")


def _check_endpoint(url: str | None) -> str | None:
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InvalidJob("endpoint_url", url, "not the URL of a server", "write it like 'http://127.0.0.1:4566'")
    return url


def _region_of_session(session: Any) -> str | None:
    region = getattr(session, "region_name", None)
    if region is None and callable(ask := getattr(session, "get_config_variable", None)):
        region = ask("region")
    return region if isinstance(region, str) else None


# ---- one call ------------------------------------------------------------------------------------------------------

_PATIENCES: Final[Mapping[Trouble, float]] = {
    Trouble.TRANSIENT: 120.0,
    Trouble.EXPIRED: 900.0,
}
"""Seconds that each kind of trouble is waited out; throttles as long as the caller says."""
_UNREACHED_PATIENCE: Final = 30.0
"""Seconds that we knock at an endpoint that nobody has ever answered at."""

_PAUSES: Final[Mapping[Trouble, tuple[float, float]]] = {
    Trouble.THROTTLED: (0.2, 5.0),  # the bucket does the rest
    Trouble.TRANSIENT: (0.2, 15.0),
    Trouble.EXPIRED: (0.1, 30.0),
}
"""(first, longest) seconds between tries, each twice the one before."""


# AWS always answers these with both; an answer with neither is somebody else's.
_NEVER_EMPTY: Final[Mapping[str, frozenset[str]]] = dict.fromkeys(
    ("ecs.RunTask", "ecs.DescribeTasks"), frozenset({"tasks", "failures"})
)


class _Call:
    """One call and its tries: what is known of it from one to the next."""

    def __init__(
        self,
        api: Api,
        operation: str,
        request: Mapping[str, Any],
        *,
        patience: float = float("inf"),
        throttle_patience: float = float("inf"),
        may_be_sent: Callable[[], bool] = lambda: True,
    ) -> None:
        self._may_be_sent = may_be_sent
        self._api = api
        self._operation = operation
        self._request = request
        self._patience = patience
        self._throttle_patience = throttle_patience
        self._service, self._method = _method_of(operation)
        self._began = 0.0
        self._tries: dict[Trouble, int] = dict.fromkeys(_PAUSES, 0)
        self._since: dict[Trouble, float] = {}
        """Since when the trouble of the last try has been the trouble of all."""
        self._unsent = True
        """No try has reached anybody."""
        self._in_doubt = False

    async def once(self) -> dict[str, Any]:
        """Send the request, once, when it is its turn."""
        api = self._api
        api._check_open()
        buckets = await api._take(self._operation)
        self._began = anyio.current_time()
        generation = api._generation
        try:
            async with api._lend(self._service) as lent:
                generation = lent.generation
                if not self._may_be_sent():
                    said = "it is too late to send it: AWS may have forgotten what it did about it before"
                    raise ApiError(self._operation, TOO_LATE, said, trouble=Trouble.UNKNOWN, in_doubt=True)
                api.stats.calls[self._operation] += 1
                for bucket in buckets:
                    api.stats.buckets[bucket.name] += 1
                reply = await self._ask(lent.client)
        except Exception as exc:
            if api._loop is None:
                raise RunnerClosed(f"the door to AWS was closed while {self._operation} was under way") from exc
            error = _translated(exc, self._operation, worked=api._worked)
            if self._in_doubt and not isinstance(error, ApiError):
                # What an earlier try may have done is not undone by what keeps this one from being sent.
                code, said = type(exc).__name__, str(error) or type(exc).__name__
                error = ApiError(self._operation, code, said, trouble=Trouble.UNKNOWN, in_doubt=True)
            await self._learn(error, buckets, generation)
            if error is exc:
                raise
            raise error from exc
        api._worked = api._reached = True
        now = anyio.current_time()
        if now >= api._clock.due and now - self._began <= _CLOCK_LATE:
            api._clock.learn(reply, now)
        return reply

    async def _ask(self, client: Any) -> dict[str, Any]:
        method = getattr(client, self._method, None)
        if method is None:
            said = f"this botocore does not know {self._operation}: upgrade aioboto3, or hand in a newer session"
            raise BackendUnavailable(said, operation=self._operation)
        with anyio.move_on_after(_LONGEST_TRY):
            reply: dict[str, Any] = await method(**self._request)
            if self._operation in _NEVER_EMPTY and not _NEVER_EMPTY[self._operation] & reply.keys():
                raise _Lost("the answer holds nothing")  # a proxy's page, or half of an answer: not "no tasks"
            return reply
        raise _Lost(f"no whole answer within {_LONGEST_TRY:.0f} seconds")

    async def _learn(self, error: Exception, buckets: tuple[_Bucket, ...], generation: int) -> None:
        if not isinstance(error, ApiError):
            return
        api, trouble = self._api, error.trouble
        api._reached |= error.status > 0
        api.stats.troubles[trouble.value] += 1
        self._unsent &= trouble is Trouble.TRANSIENT and not error.in_doubt
        self._in_doubt |= error.in_doubt
        error.in_doubt = self._in_doubt
        self._tries[trouble] = self._tries.get(trouble, 0) + 1
        self._since = {trouble: self._since.get(trouble, self._began)}
        if trouble is Trouble.THROTTLED:
            api.stats.throttles[self._operation] += 1
            buckets[0].throttled()
            if self._operation == "ecs.RunTask":  # AWS does not say which of its buckets was empty
                for fargate in api._launches:
                    fargate.throttled()
        elif trouble is Trouble.EXPIRED:
            await api._renew(generation)

    def goes_on(self, error: BaseException) -> bool:
        """Whether another try is worth it."""
        if not isinstance(error, ApiError) or error.trouble not in _PAUSES:
            return False
        patience = _PATIENCES.get(error.trouble, self._throttle_patience)
        if self._unsent and not self._api._reached:
            patience = min(patience, _UNREACHED_PATIENCE)
        return anyio.current_time() - self._since[error.trouble] < min(patience, self._patience)

    def pause(self, error: BaseException | None) -> float:
        """Return the seconds until the next try."""
        assert isinstance(error, ApiError)
        first, longest = _PAUSES[error.trouble]
        pause = min(longest, first * 2.0 ** min(self._tries[error.trouble] - 1, 16))
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 (spreads the tries of many, hides nothing)

    def given_up(self, error: ApiError) -> BackendError:
        """Return what to raise for the last of all tries."""
        if self._unsent and not self._api._reached:
            said = (
                f"AWS cannot be reached in {self._api.region}: {error.aws_message.rstrip('.')}; check the network, a "
                "proxy (HTTPS_PROXY), and the region or endpoint (AWS_REGION, AWS_ENDPOINT_URL)"
            )
            return BackendUnavailable(said, operation=error.operation, code=error.code, retryable=True)
        return error


# ---- what others raise ---------------------------------------------------------------------------------------------


class _Lost(Exception):
    """There was no answer that means anything."""


class _SlowCredentials(Exception):
    """Whoever has the credentials did not hand them out in time."""


_NO_CREDENTIALS: Final = (
    "no AWS credentials are known: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, choose a profile (AWS_PROFILE), "
    "log in (aws sso login), or run with a role"
)
_LOGGED_OUT: Final = "log in again: aws sso login"
_SLOW: Final = "whoever has the AWS credentials takes too long: see the credential_process or the role of the profile"

# Exceptions of botocore and aiohttp by name, so that reading one imports neither. The first name on the way to the
# root counts. What is said before the library's own words, and what to try.
_CREDENTIALS: Final[Mapping[str, str]] = {
    "NoCredentialsError": _NO_CREDENTIALS,
    "PartialCredentialsError": _NO_CREDENTIALS,
    "CredentialRetrievalError": _NO_CREDENTIALS,
    "MetadataRetrievalError": _NO_CREDENTIALS,
    "RefreshWithMFAUnsupportedError": _NO_CREDENTIALS,
    "InfiniteLoopConfigError": _NO_CREDENTIALS,
    "_SlowCredentials": _SLOW,
    "NoAuthTokenError": _LOGGED_OUT,
    "SSOError": _LOGGED_OUT,
    "TokenRetrievalError": _LOGGED_OUT,
}
_SETTINGS: Final[Mapping[str, str]] = {
    "NoRegionError": _NO_REGION,
    "InvalidRegionError": "the region is not the name of one: set AWS_REGION",
    "EndpointProviderError": "the region or the endpoint is not right: set AWS_REGION",
    "UnknownServiceError": "this botocore does not know the service: upgrade aioboto3",
    "ProfileNotFound": "set AWS_PROFILE to a profile of ~/.aws/config, or unset it",
    "ConfigParseError": "the file of AWS's settings cannot be read: correct it",
    "ConfigNotFound": "the file of AWS's settings is not there: see AWS_CONFIG_FILE",
    "InvalidConfigError": "a setting of AWS's is not right: correct it",
    "InvalidRetryConfigurationError": "a setting of AWS's is not right: correct it",
    "InvalidProxiesConfigError": "the settings of the proxy are not right: correct them",
}
_UNSENT: Final = frozenset({"ConnectTimeoutError", "ProxyConnectionError", "SSLError", "ClientConnectorError"})
_LOST: Final = frozenset(
    {
        *("EndpointConnectionError", "ConnectionClosedError", "ReadTimeoutError", "HTTPClientError"),
        *("ConnectionError", "ResponseParserError", "ResponseStreamingError", "IncompleteReadError"),
        *("ChecksumError", "FlexibleChecksumError", "ClientPayloadError", "UnicodeDecodeError", "JSONDecodeError"),
        *("TimeoutError", "OSError", "_Lost"),
    }
)


def _translated(exc: Exception, operation: str, *, worked: bool = False) -> Exception:
    """Return the error of ours that says the same; *exc* itself if it is none of AWS's doing."""
    response = getattr(exc, "response", None)
    if isinstance(response, Mapping):
        return _from_response(response, operation)
    said = str(exc).rstrip(".")
    if type(exc) is RuntimeError and "credentials are still expired" in said:  # botocore has no name for it
        return ApiError(operation, "ExpiredCredentials", said, trouble=Trouble.EXPIRED)
    for name in (cls.__name__ for cls in type(exc).__mro__):
        if name in _CREDENTIALS:
            if worked:  # there were some, so there may be again: a file that is being written, a service that restarts
                return ApiError(operation, type(exc).__name__, said, trouble=Trouble.EXPIRED)
            return BackendUnavailable(f"{_CREDENTIALS[name]} ({said})", operation=operation, code=type(exc).__name__)
        if name in _SETTINGS:
            return BackendUnavailable(f"{said}; {_SETTINGS[name]}", operation=operation, code=type(exc).__name__)
        if name == "ParamValidationError":
            return ApiError(operation, "ParamValidation", said, trouble=Trouble.INVALID)
        if name in _UNSENT or name in _LOST:
            code = type(exc).__name__.lstrip("_")
            in_doubt = name in _LOST and not _is_unsent(exc)
            return ApiError(operation, code, said or code, trouble=Trouble.TRANSIENT, in_doubt=in_doubt)
    if _broke_a_parser(exc):
        return ApiError(operation, "ResponseParserError", said, trouble=Trouble.TRANSIENT, in_doubt=True)
    return exc


def _broke_a_parser(exc: Exception) -> bool:
    """Whether botocore stumbled over an answer: its parsers take for granted that JSON is an object."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__") in {"botocore.parsers", "aiobotocore.parsers"}


def _is_unsent(exc: Exception) -> bool:
    """Whether a connection could not even be made. aiobotocore has one name for that and for one that was reset."""
    inner = getattr(exc, "kwargs", {}).get("error")
    return any(cls.__name__ in {"ClientConnectorError", "gaierror", "NotConnected"} for cls in type(inner).__mro__)


def _from_response(response: Mapping[str, Any], operation: str) -> ApiError:
    """Read an error as botocore parsed it."""
    error, meta = response.get("Error") or {}, response.get("ResponseMetadata") or {}
    code, message = str(error.get("Code") or ""), str(error.get("Message") or "")
    status = int(meta.get("HTTPStatusCode") or 0)
    trouble = trouble_of(code, message, status)
    return ApiError(
        operation,
        code,
        message,
        request_id=str(meta.get("RequestId") or ""),
        status=status,
        trouble=trouble,
        resource_ids=tuple(map(str, response.get("resourceIds") or ())),
        in_doubt=trouble in {Trouble.TRANSIENT, Trouble.UNKNOWN},
        item=response.get("Item"),
    )
