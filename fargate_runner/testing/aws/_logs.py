"""
CloudWatch Logs, with what makes reading it hard: events come late, many share a millisecond, pages are short.

An event has its place by (timestamp, number of arrival), and it can be read when its batch has become visible. A page
token is such a place, sealed: a caller can keep it and send it back, and nothing else.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count, islice, pairwise
from random import Random
from typing import Any, ClassVar, Final, NoReturn, TypeAlias
from weakref import WeakSet

import anyio
import attrs
from attrs import field, validators

from fargate_runner.testing.aws._service import AwsError, Clock, Service

__all__ = ["Ingestion", "LiveTail", "LogsService", "PageTokens", "filter_pattern"]

_Event: TypeAlias = tuple[int, int, int, str, str]
"""Timestamp, number of arrival, ingestion time, message, stream's name: it sorts as CloudWatch sorts."""

_Place: TypeAlias = tuple[int, int]
"""A place between events: before the first event that is not smaller."""

_DRIVER_LIMIT: Final = 262_118  # bytes; the awslogs driver cuts there, although CloudWatch takes 1 MiB since 2025
_EVENT_OVERHEAD: Final = 26
_BATCH_BYTES: Final = 1_048_576
_PAGE_BYTES: Final = 1_048_576
_PAGE_EVENTS: Final = 10_000
_SCAN_EVENTS: Final = 100_000  # a page of FilterLogEvents looks at so many, then says "go on" with what it has
_TOKEN_LIFE: Final = 24 * 3600
_DAY_MS: Final = 24 * 3600 * 1000
_END_OF_TIME: Final = (1 << 42) - 1  # milliseconds: the year 2109
_RETENTIONS: Final = (
    *(1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731),
    *(1096, 1827, 2192, 2557, 2922, 3288, 3653),
)
_GROUP_NAME: Final = re.compile(r"[.\-_/#A-Za-z0-9]{1,512}")
_STREAM_NAME: Final = re.compile(r"[^:*]{1,512}")

_probability = validators.and_(validators.ge(0.0), validators.lt(1.0))
_seconds = validators.ge(0.0)


@attrs.frozen(kw_only=True)
class Ingestion:
    """How events get from a container to a reader: how late, in which order, in what pages."""

    least: float = field(default=0.2, validator=_seconds)
    """The shortest time in seconds until a batch can be read."""

    most: float = field(default=2.0, validator=_seconds)
    """The longest."""

    in_order: bool = True
    """Whether the batches of one stream become visible in their order. If not, late ones land behind a kept token."""

    short_pages: float = field(default=0.0, validator=_probability)
    """How often a page stops before it is full."""

    empty_pages: float = field(default=0.0, validator=_probability)
    """How often a page is empty although there is more, or FilterLogEvents gives a token although there is none."""

    summary_lag: float = field(default=0.0, validator=_seconds)
    """How many seconds DescribeLogStreams lags behind with lastEventTimestamp; an hour happens at AWS."""

    def __attrs_post_init__(self) -> None:
        if self.most < self.least:
            raise ValueError(f"most must not be below least, got least={self.least} and most={self.most}")


class PageTokens:
    """Seals places into opaque tokens that live 24 hours and fit only the question that they were given for."""

    def __init__(self, clock: Clock, *, seed: object, code: str, message: str) -> None:
        self._clock = clock
        self._seed = f"{seed}"
        self._refusal = (code, message)
        self._numbers = count()

    def seal(self, scope: object, place: str) -> str:
        """Return a token for a place."""
        text = f"{next(self._numbers):x}.{self._clock.time():.3f}.{place}"
        return urlsafe_b64encode(self._check(scope, text) + text.encode()).decode().rstrip("=")

    def unseal(self, scope: object, token: str) -> str:
        """
        Return the place.

        :raises AwsError: it is none of ours, or was given for another question, or is older than a day
        """
        try:
            raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
            check, text = raw[:9], raw[9:].decode()
        except ValueError:
            self.refuse()
        if check != self._check(scope, text):
            self.refuse()
        _, whole, fraction, place = text.split(".", 3)
        if self._clock.time() - float(f"{whole}.{fraction}") > _TOKEN_LIFE:
            self.refuse()
        return place

    def page(
        self, scope: object, names: Sequence[str], *, token: str | None, limit: int
    ) -> tuple[Sequence[str], str | None]:
        """Return a page of sorted names, and the token of the next one if there is more."""
        start = 0 if token is None else bisect_left(names, self.unseal(scope, token))
        more = self.seal(scope, names[start + limit]) if start + limit < len(names) else None
        return names[start : start + limit], more

    def refuse(self) -> NoReturn:
        """Say that the token is no good."""
        raise AwsError(*self._refusal)

    def _check(self, scope: object, text: str) -> bytes:
        return hashlib.blake2b(f"{self._seed}|{scope}|{text}".encode(), digest_size=9).digest()


class _Stream:
    """The events of one log stream that can be read, sorted."""

    def __init__(self, name: str, *, number: int, created: int, random: Random) -> None:
        self.name = name
        self.number = number
        self.created = created
        self.random = random
        self.events: list[_Event] = []
        self.visible_at = 0.0  # of the latest batch
        self.last_ingestion: int | None = None
        self.summaries: list[tuple[float, int]] = []  # visible since when: the newest timestamp

    def show(self, batch: list[_Event], at: float) -> None:
        events = self.events
        if not events or events[-1] < batch[0]:
            events.extend(batch)
        else:
            # Late ones are nearly at the end: only what comes after them is sorted again.
            place = bisect_left(events, batch[0])
            events[place:] = sorted(events[place:] + batch)
        self.last_ingestion = max(self.last_ingestion or 0, batch[-1][2])
        newest = events[-1][0]
        if not self.summaries or self.summaries[-1][1] != newest:
            self.summaries.append((at, newest))

    def index(self, place: _Place) -> int:
        return bisect_left(self.events, place)

    def span(self, first: _Place, end: _Place) -> range:
        return range(self.index(first), self.index(end))


class _Group:
    """A log group: its streams, and the batches that nobody can read yet."""

    def __init__(self, name: str, *, number: int, created: int, log_class: str, tags: Mapping[str, str]) -> None:
        self.name = name
        self.number = number
        self.created = created
        self.log_class = log_class
        self.tags = dict(tags)
        self.retention: int | None = None
        self.streams: dict[str, _Stream] = {}
        self.names: list[str] = []  # sorted
        self.pending: list[tuple[float, int, _Stream, list[_Event]]] = []

    def settle(self, now: float) -> None:
        """Show what has become visible."""
        while self.pending and self.pending[0][0] <= now:
            at, _, stream, batch = heapq.heappop(self.pending)
            stream.show(batch, at)

    def add(self, stream: _Stream) -> None:
        self.streams[stream.name] = stream
        self.names.insert(bisect_left(self.names, stream.name), stream.name)

    def remove(self, name: str) -> None:
        del self.streams[name]
        del self.names[bisect_left(self.names, name)]

    def starting_with(self, prefix: str) -> list[str]:
        first = bisect_left(self.names, prefix)
        found: list[str] = []
        for name in islice(self.names, first, None):
            if not name.startswith(prefix):
                break
            found.append(name)
        return found


class LogsService(Service):
    """CloudWatch Logs. Containers write by `put`; everybody reads by AWS's verbs."""

    name: ClassVar[str] = "logs"

    def __init__(
        self,
        clock: Clock,
        *,
        region: str = "us-east-1",
        account: str = "111122223333",
        seed: int = 0,
        ingestion: Ingestion | None = None,
    ) -> None:
        self.region = region
        self.account = account
        self.ingestion = ingestion or Ingestion()
        self.changed = anyio.Event()
        """Set, and replaced by a new one, whenever somebody writes."""

        self._clock = clock
        self._seed = seed
        self._groups: dict[str, _Group] = {}
        self._numbers = count(1)  # of groups and streams
        self._arrivals = count(1)  # of events
        self._batches = count(1)
        self._random = Random(f"{seed}/pages")  # noqa: S311 (repeatable, not secret)
        self._tokens = PageTokens(
            clock, seed=seed, code="InvalidParameterException", message="The specified nextToken is invalid."
        )
        self._tails: WeakSet[LiveTail] = WeakSet()

    # The containers' side.

    def has_group(self, name: str) -> bool:
        """Whether the group exists."""
        return name in self._groups

    def create_group(self, name: str) -> None:
        """
        Make a log group, as ``awslogs-create-group`` does; one that exists is fine.

        :raises AwsError: no name for a log group
        """
        if name not in self._groups:
            self._new_group(name)

    def put(self, group: str, stream: str, events: Iterable[tuple[int, str]] = ()) -> None:
        """
        Write (milliseconds, line) pairs as the awslogs driver does: without any, only the stream is created.

        Long lines are cut into several events, empty ones vanish.

        :raises AwsError: there is no such group, which is a start failure of the container
        """
        target = self._group(group)
        place = target.streams.get(stream) or self._new_stream(target, stream)
        self._accept(target, place, [(at, piece) for at, line in events for piece in _pieces(line)])

    def messages(self, group: str, stream: str) -> list[str]:
        """Return all that was written to a stream, whether or not it can be read yet. For tests to compare with."""
        found = self._group(group)
        place = self._stream(found, stream)
        hidden = [event for _, _, owner, batch in found.pending if owner is place for event in batch]
        return [event[3] for event in sorted(place.events + hidden)]

    def _accept(self, group: _Group, stream: _Stream, events: list[tuple[int, str]]) -> None:
        if events:
            now = self._now()
            if any(later[0] < earlier[0] for earlier, later in pairwise(events)):
                events.sort(key=lambda event: event[0])
            arrivals, name = self._arrivals, stream.name
            batch = [(at, next(arrivals), now, message, name) for at, message in events]
            at = self._clock.time() + stream.random.uniform(self.ingestion.least, self.ingestion.most)
            if self.ingestion.in_order:
                at = max(at, stream.visible_at)
            stream.visible_at = at
            heapq.heappush(group.pending, (at, next(self._batches), stream, batch))
            for tail in list(self._tails):
                tail.offer(group.name, at, batch)
        changed, self.changed = self.changed, anyio.Event()
        changed.set()

    # Groups.

    async def create_log_group(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name = request["logGroupName"]
        if name in self._groups:
            raise AwsError("ResourceAlreadyExistsException", "The specified log group already exists")
        self._new_group(name, log_class=request.get("logGroupClass", "STANDARD"), tags=request.get("tags", {}))
        return {}

    async def delete_log_group(self, request: Mapping[str, Any]) -> dict[str, Any]:
        del self._groups[self._group(request["logGroupName"]).name]
        return {}

    async def describe_log_groups(self, request: Mapping[str, Any]) -> dict[str, Any]:
        prefix, part = request.get("logGroupNamePrefix"), request.get("logGroupNamePattern")
        if prefix is not None and part is not None:
            raise _invalid("LogGroup name prefix and LogGroup name pattern are mutually exclusive parameters.")
        wanted = {_name_in(identifier) for identifier in request.get("logGroupIdentifiers", ())}
        log_class = request.get("logGroupClass")
        names = sorted(
            name
            for name, group in self._groups.items()
            if name.startswith(prefix or "")
            and (part or "") in name
            and (not wanted or name in wanted)
            and log_class in {None, group.log_class}
        )
        limit = _limit(request, 50)
        scope = ("groups", prefix, part, log_class)
        page, token = self._tokens.page(scope, names, token=request.get("nextToken"), limit=limit)
        reply: dict[str, Any] = {"logGroups": [self._describe_group(self._groups[name]) for name in page]}
        return reply | _next_token(token)

    async def put_retention_policy(self, request: Mapping[str, Any]) -> dict[str, Any]:
        group = self._group(request["logGroupName"])
        if request["retentionInDays"] not in _RETENTIONS:
            raise _constraint(
                request["retentionInDays"], "retentionInDays", f"satisfy enum value set: {list(_RETENTIONS)}"
            )
        group.retention = request["retentionInDays"]
        return {}

    async def delete_retention_policy(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._group(request["logGroupName"]).retention = None
        return {}

    async def tag_resource(self, request: Mapping[str, Any]) -> dict[str, Any]:
        tags = self._tagged(request).tags
        if len(tags | request["tags"]) > 50:
            raise AwsError("TooManyTagsException", "A resource can have no more than 50 tags.")
        tags.update(request["tags"])
        return {}

    async def untag_resource(self, request: Mapping[str, Any]) -> dict[str, Any]:
        tags = self._tagged(request).tags
        for key in request["tagKeys"]:
            tags.pop(key, None)
        return {}

    async def list_tags_for_resource(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"tags": dict(self._tagged(request).tags)}

    # Streams.

    async def create_log_stream(self, request: Mapping[str, Any]) -> dict[str, Any]:
        group = self._group(request["logGroupName"])
        if request["logStreamName"] in group.streams:
            raise AwsError("ResourceAlreadyExistsException", "The specified log stream already exists")
        self._new_stream(group, request["logStreamName"])
        return {}

    async def delete_log_stream(self, request: Mapping[str, Any]) -> dict[str, Any]:
        group = self._group(request["logGroupName"])
        group.remove(self._stream(group, request["logStreamName"]).name)
        return {}

    async def describe_log_streams(self, request: Mapping[str, Any]) -> dict[str, Any]:
        group = self._asked_group(request)
        prefix, by_time = request.get("logStreamNamePrefix"), request.get("orderBy") == "LastEventTime"
        if by_time and prefix is not None:
            raise _invalid("Cannot order by LastEventTime with a logStreamNamePrefix.")
        names = group.starting_with(prefix or "")
        if by_time:
            names.sort(key=lambda name: self._summary(group.streams[name]) or 0)
        if request.get("descending"):
            names.reverse()
        scope = ("streams", group.number, prefix, by_time, bool(request.get("descending")))
        start = int(self._tokens.unseal(scope, request["nextToken"])) if "nextToken" in request else 0
        end = start + _limit(request, 50)
        token = self._tokens.seal(scope, str(end)) if end < len(names) else None
        streams = [self._describe_stream(group, group.streams[name]) for name in names[start:end]]
        return {"logStreams": streams} | _next_token(token)

    # Events.

    async def put_log_events(self, request: Mapping[str, Any]) -> dict[str, Any]:
        group = self._group(request["logGroupName"])
        stream = self._stream(group, request["logStreamName"])
        events = [(event["timestamp"], event["message"]) for event in request["logEvents"]]
        _check_batch(events)
        now = self._now()
        oldest = now - (group.retention or 100_000) * _DAY_MS
        expired = bisect_left(events, oldest, key=lambda event: event[0])
        too_old = bisect_left(events, now - 14 * _DAY_MS, key=lambda event: event[0])
        too_new = bisect_left(events, now + 2 * 3600 * 1000 + 1, key=lambda event: event[0])
        rejected: dict[str, int] = {}
        if too_new < len(events):
            rejected["tooNewLogEventStartIndex"] = too_new
        if too_old:
            rejected["tooOldLogEventEndIndex"] = too_old
        if expired:
            rejected["expiredLogEventEndIndex"] = expired
        self._accept(group, stream, events[max(too_old, expired) : too_new])
        reply: dict[str, Any] = {"nextSequenceToken": f"{next(self._numbers):056d}"}
        return reply | ({"rejectedLogEventsInfo": rejected} if rejected else {})

    async def get_log_events(self, request: Mapping[str, Any]) -> dict[str, Any]:
        group = self._asked_group(request)
        stream = self._stream(group, request["logStreamName"])
        limit = _limit(request, _PAGE_EVENTS)
        sent = request.get("nextToken")
        start, end = self._start(group, request), min(request.get("endTime", _END_OF_TIME), _END_OF_TIME)
        whole = stream.span((start, 0), (end, 0))
        if sent is None:
            forward = bool(request.get("startFromHead"))
            place = (start, 0) if forward else (end, 0)
        else:
            forward, place = self._open(stream, sent)
        here = min(max(stream.index(place), whole.start), max(whole.start, whole.stop))
        if forward:
            left = range(here, whole.stop)
            chosen = left[: self._page(stream.events, left, limit)]
        else:
            left = range(whole.start, here)
            chosen = left[len(left) - self._page(stream.events, left[::-1], limit) :]
        if chosen:
            before, after = stream.events[chosen[0]][:2], _after(stream.events[chosen[-1]])
        elif sent is not None or forward:
            before = after = place
        else:
            before, after = place, _after(stream.events[left[-1]]) if left else (start, 0)
        tokens = {
            "nextForwardToken": self._seal(stream, "f", after),
            "nextBackwardToken": self._seal(stream, "b", before),
        }
        if not left and sent is not None:
            # The end, which AWS tells by the token that was sent.
            tokens["nextForwardToken" if forward else "nextBackwardToken"] = sent
        events = [
            {"timestamp": at, "message": message, "ingestionTime": ingestion}
            for at, _, ingestion, message, _ in map(stream.events.__getitem__, chosen)
        ]
        return {"events": events, **tokens}

    async def filter_log_events(self, request: Mapping[str, Any]) -> dict[str, Any]:
        group = self._asked_group(request)
        streams = self._chosen_streams(group, request)
        pattern = request.get("filterPattern", "")
        matches = filter_pattern(pattern)
        limit = _limit(request, _PAGE_EVENTS)
        scope = (
            group.number,
            pattern,
            request.get("logStreamNamePrefix"),
            sorted(request.get("logStreamNames", ())),
        )
        first: _Place = (self._start(group, request), 0)
        if "nextToken" in request:
            at, _, number = self._tokens.unseal(scope, request["nextToken"]).partition("-")
            first = max(first, (int(at), int(number)))
        end: _Place = (request.get("endTime", _END_OF_TIME) + 1, 0)  # unlike GetLogEvents', it is inclusive
        events, place = self._search(streams, (first, end), matches, limit)
        token = None if place is None else self._tokens.seal(scope, f"{place[0]}-{place[1]}")
        found = [
            {
                "logStreamName": name,
                "timestamp": at,
                "message": message,
                "ingestionTime": ingestion,
                "eventId": self._event_id(at, number),
            }
            for at, number, ingestion, message, name in events
        ]
        return {"events": found, "searchedLogStreams": []} | _next_token(token)

    def _search(
        self,
        streams: list[_Stream],
        between: tuple[_Place, _Place],
        matches: Callable[[str], bool] | None,
        limit: int,
    ) -> tuple[list[_Event], _Place | None]:
        spans = [(stream, stream.span(*between)) for stream in streams]
        sources = [map(stream.events.__getitem__, span) for stream, span in spans if span]
        merged: Iterator[_Event] = sources[0] if len(sources) == 1 else heapq.merge(*sources)
        wanted = self._wanted(limit)
        found: list[_Event] = []
        size = 0
        place = between[0]
        for scanned, event in enumerate(merged):
            weight = _size(event[3])
            if len(found) >= wanted or scanned >= _SCAN_EVENTS or (found and size + weight > _PAGE_BYTES):
                return found, place
            place = _after(event)
            if matches is None or matches(event[3]):
                found.append(event)
                size += weight
        # AWS may say "there is more" before it knows that there is not.
        return found, place if found and self._chance(self.ingestion.empty_pages) else None

    async def start_live_tail(self, request: Mapping[str, Any]) -> dict[str, Any]:
        names, prefixes = request.get("logStreamNames"), request.get("logStreamNamePrefixes")
        groups: dict[str, str] = {}
        for identifier in request["logGroupIdentifiers"]:
            if not identifier.startswith("arn:") or identifier.endswith("*"):
                raise _invalid(f"{identifier} is not the ARN of a log group; it must not end with an asterisk.")
            name = self._group(_name_in(identifier)).name
            groups[name] = f"{self.account}:{name}"
        if not 1 <= len(groups) <= 10:
            raise _invalid("A Live Tail session takes 1 to 10 log groups.")
        if names is not None and prefixes is not None:
            raise _invalid("logStreamNames and logStreamNamePrefixes cannot be specified together.")
        if len(groups) > 1 and (names is not None or prefixes is not None):
            raise _invalid("Log streams can be specified only with one log group.")
        if len(names or prefixes or ()) > 100:
            raise _invalid("No more than 100 log streams or prefixes can be specified.")
        if any(self._groups[name].log_class != "STANDARD" for name in groups):
            raise AwsError("InvalidOperationException", "Live Tail needs log groups of the Standard class.")
        if len(self._tails) >= 15:
            raise AwsError("LimitExceededException", "The limit of 15 concurrent Live Tail sessions is reached.")
        number = next(self._numbers)
        random = Random(f"{self._seed}/tail/{number}")  # noqa: S311 (repeatable, not secret)
        tail = LiveTail(
            self._clock,
            {"requestId": _uuid(random), "sessionId": _uuid(random), **request},
            groups=groups,
            random=random,
            closed=self._tails.discard,
        )
        now = self._clock.time()
        for name in groups:
            group = self._groups[name]
            group.settle(now)
            for at, _, _, batch in sorted(group.pending, key=lambda entry: entry[:2]):
                tail.offer(name, at, batch)
        self._tails.add(tail)
        return {"responseStream": tail}

    # Finding and describing.

    def _now(self) -> int:
        return round(self._clock.utcnow().timestamp() * 1000)

    def _chance(self, probability: float) -> bool:
        return probability > 0 and self._random.random() < probability

    def _arn(self, group: _Group) -> str:
        return f"arn:aws:logs:{self.region}:{self.account}:log-group:{group.name}"

    def _group(self, name: str) -> _Group:
        found = self._groups.get(name)
        if found is None:
            raise AwsError("ResourceNotFoundException", "The specified log group does not exist.")
        found.settle(self._clock.time())
        return found

    def _stream(self, group: _Group, name: str) -> _Stream:
        found = group.streams.get(name)
        if found is None:
            raise AwsError("ResourceNotFoundException", "The specified log stream does not exist.")
        return found

    def _asked_group(self, request: Mapping[str, Any]) -> _Group:
        name, identifier = request.get("logGroupName"), request.get("logGroupIdentifier")
        if (name is None) == (identifier is None):
            raise _invalid("You must include either logGroupIdentifier or logGroupName, but not both.")
        if identifier is not None and "*" in identifier:
            raise _constraint(identifier, "logGroupIdentifier", r"satisfy regular expression pattern: [\w#+=/:,.@-]*")
        return self._group(_name_in(identifier or name or ""))

    def _tagged(self, request: Mapping[str, Any]) -> _Group:
        return self._group(_name_in(request["resourceArn"].removesuffix(":*")))

    def _chosen_streams(self, group: _Group, request: Mapping[str, Any]) -> list[_Stream]:
        names, prefix = request.get("logStreamNames"), request.get("logStreamNamePrefix")
        if names is None:
            return [group.streams[name] for name in group.starting_with(prefix or "")]
        if prefix is not None:
            raise _invalid("logStreamNamePrefix and logStreamNames are mutually exclusive parameters.")
        if not 1 <= len(names) <= 100:
            raise _constraint(names, "logStreamNames", "have length less than or equal to 100")
        # One unknown name among a hundred refuses them all: AWS names the stream's absence, not the stream.
        return [self._stream(group, name) for name in dict.fromkeys(names)]

    def _start(self, group: _Group, request: Mapping[str, Any]) -> int:
        start: int = min(request.get("startTime", 0), _END_OF_TIME)
        if group.retention is None:
            return start
        return max(start, self._now() - group.retention * _DAY_MS)

    def _new_group(self, name: str, *, log_class: str = "STANDARD", tags: Mapping[str, str] | None = None) -> None:
        if not _GROUP_NAME.fullmatch(name):
            raise _constraint(name, "logGroupName", r"satisfy regular expression pattern: [\.\-_/#A-Za-z0-9]+")
        number = next(self._numbers)
        self._groups[name] = _Group(name, number=number, created=self._now(), log_class=log_class, tags=tags or {})

    def _new_stream(self, group: _Group, name: str) -> _Stream:
        if not _STREAM_NAME.fullmatch(name):
            raise _constraint(name, "logStreamName", "satisfy regular expression pattern: [^:*]*")
        # Each stream has its own dice, so that what one container writes does not change how late another's is.
        random = Random(f"{self._seed}/{group.name}/{name}")  # noqa: S311 (repeatable, not secret)
        stream = _Stream(name, number=next(self._numbers), created=self._now(), random=random)
        group.add(stream)
        return stream

    def _describe_group(self, group: _Group) -> dict[str, Any]:
        arn = self._arn(group)
        described = {
            "logGroupName": group.name,
            "creationTime": group.created,
            "metricFilterCount": 0,
            "arn": f"{arn}:*",
            "storedBytes": 0,
            "logGroupClass": group.log_class,
            "logGroupArn": arn,
        }
        return described | ({} if group.retention is None else {"retentionInDays": group.retention})

    def _describe_stream(self, group: _Group, stream: _Stream) -> dict[str, Any]:
        described: dict[str, Any] = {
            "logStreamName": stream.name,
            "creationTime": stream.created,
            "arn": f"{self._arn(group)}:log-stream:{stream.name}",
            "storedBytes": 0,
            "uploadSequenceToken": f"{stream.number:056d}",
        }
        last = self._summary(stream)
        if last is not None:
            described["firstEventTimestamp"] = stream.events[0][0]
            described["lastEventTimestamp"] = last
            described["lastIngestionTime"] = stream.last_ingestion
        return described

    def _summary(self, stream: _Stream) -> int | None:
        known = bisect_left(stream.summaries, (self._clock.time() - self.ingestion.summary_lag, _END_OF_TIME))
        return stream.summaries[known - 1][1] if known else None

    # Pages.

    def _wanted(self, limit: int) -> int:
        """Return how many events a page may have this time."""
        if self._chance(self.ingestion.empty_pages):
            return 0
        if self._chance(self.ingestion.short_pages):
            return self._random.randint(1, limit)
        return limit

    def _page(self, events: list[_Event], left: range, limit: int) -> int:
        """Return how many of the events that are left, in reading order, fit on a page."""
        if not left:
            return 0
        fitting = size = 0
        for index in left[: self._wanted(min(limit, len(left)))]:
            size += _size(events[index][3])
            if fitting and size > _PAGE_BYTES:
                break
            fitting += 1
        return fitting

    # A token looks like AWS's: 56 digits, made of the event's time (42 bits), its number (40), the second in which the
    # token was made (34), a running number (30) and a check (40).

    def _seal(self, stream: _Stream, kind: str, place: _Place) -> str:
        at, number = place
        body = ((at << 40 | number) << 34 | int(self._clock.time())) << 30 | (next(self._numbers) & 0x3FFF_FFFF)
        return f"{kind}/{body << 40 | self._check(stream, kind, body):056d}/s"

    def _open(self, stream: _Stream, token: str) -> tuple[bool, _Place]:
        shape = re.fullmatch(r"([fb])/(\d{56})/s", token)
        if shape is None:
            self._tokens.refuse()
        kind = shape[1]
        body, check = divmod(int(shape[2]), 1 << 40)
        made = body >> 30 & (1 << 34) - 1
        if check != self._check(stream, kind, body) or self._clock.time() - made > _TOKEN_LIFE:
            self._tokens.refuse()
        at, number = divmod(body >> 64, 1 << 40)
        return kind == "f", (at, number)

    def _check(self, stream: _Stream, kind: str, body: int) -> int:
        text = f"{self._seed}/{stream.number}/{kind}/{body}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=5).digest(), "big")

    def _event_id(self, at: int, number: int) -> str:
        # Sortable as AWS's are; the last digits are there so that nobody reads a meaning into them.
        noise = (number * 0x9E3779B97F4A7C15 + self._seed) & (1 << 64) - 1
        return f"{at << 144 | number << 104 | noise:056d}"


class LiveTail(AsyncIterator[dict[str, Any]]):
    """A Live Tail session: ``sessionStart``, then a ``sessionUpdate`` each second. It misses what came before it."""

    def __init__(
        self,
        clock: Clock,
        start: dict[str, Any],
        *,
        groups: Mapping[str, str],
        random: Random,
        closed: Callable[[LiveTail], None],
    ) -> None:
        self._clock = clock
        self._start: dict[str, Any] | None = start
        self._groups = groups
        self._names = frozenset(start.get("logStreamNames", ()))
        self._prefixes = tuple(start.get("logStreamNamePrefixes", ()))
        self._matches = filter_pattern(start.get("logEventFilterPattern", ""))
        self._random = random
        self._closed: Callable[[LiveTail], None] | None = closed
        self._opened = clock.time()
        self._due = self._opened + 1
        self._numbers = count()
        self._queue: list[tuple[float, int, dict[str, Any]]] = []

    def offer(self, group: str, at: float, batch: list[_Event]) -> None:
        """Show a batch to the session when it has become visible."""
        identifier = self._groups.get(group)
        if identifier is None or not self._listens_to(batch[0][4]):
            return
        for timestamp, _, ingestion, message, stream in batch:
            if self._matches is None or self._matches(message):
                event = {
                    "logStreamName": stream,
                    "logGroupIdentifier": identifier,
                    "message": message,
                    "timestamp": timestamp,
                    "ingestionTime": ingestion,
                }
                heapq.heappush(self._queue, (at, next(self._numbers), event))

    def _listens_to(self, stream: str) -> bool:
        if self._names:
            return stream in self._names
        return not self._prefixes or stream.startswith(self._prefixes)

    def __aiter__(self) -> LiveTail:
        return self

    async def __anext__(self) -> dict[str, Any]:
        if self._closed is None:
            raise StopAsyncIteration
        if self._start is not None:
            start, self._start = self._start, None
            return {"sessionStart": start}
        if self._due - self._opened > 3 * 3600:
            await self.aclose()
            raise AwsError("SessionTimeoutException", "The Live Tail session has reached its limit of 3 hours.")
        await anyio.sleep(max(0.0, self._due - self._clock.time()))
        # Ten updates or 5,000 events are kept for somebody slow, then the oldest are dropped.
        behind = self._clock.time() - self._due
        if behind > 10:
            self._due += int(behind - 10)
            self._take(self._due - 1)
        events = self._take(self._due)
        self._due += 1
        if sampled := len(events) > 500:
            events = [events[index] for index in sorted(self._random.sample(range(len(events)), 500))]
        return {"sessionUpdate": {"sessionMetadata": {"sampled": sampled}, "sessionResults": events}}

    def _take(self, until: float) -> list[dict[str, Any]]:
        taken: list[dict[str, Any]] = []
        while self._queue and self._queue[0][0] <= until:
            taken.append(heapq.heappop(self._queue)[2])
        return taken

    async def aclose(self) -> None:
        """End the session, which frees its place among the 15."""
        if self._closed is not None:
            self._closed(self)
            self._closed = None
            self._queue.clear()


# Limits.


def _invalid(message: str) -> AwsError:
    return AwsError("InvalidParameterException", message)


def _constraint(value: object, where: str, what: str) -> AwsError:
    return _invalid(
        f"1 validation error detected: Value '{value}' at '{where}' failed to satisfy constraint: Member must {what}"
    )


def _limit(request: Mapping[str, Any], most: int) -> int:
    limit: int = request.get("limit", most)
    if limit < 1:
        raise _constraint(limit, "limit", "have value greater than or equal to 1")
    if limit > most:
        raise _constraint(limit, "limit", f"have value less than or equal to {most}")
    return limit


def _next_token(token: str | None) -> dict[str, str]:
    return {} if token is None else {"nextToken": token}


def _after(event: _Event) -> _Place:
    return event[0], event[1] + 1


def _name_in(identifier: str) -> str:
    """Return the name in a group's ARN, or the name itself."""
    _, found, name = identifier.partition(":log-group:")
    return name if found else identifier


def _bytes(message: str) -> int:
    return len(message) if message.isascii() else len(message.encode())


def _size(message: str) -> int:
    return _bytes(message) + _EVENT_OVERHEAD


def _uuid(random: Random) -> str:
    digits = f"{random.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def _pieces(line: str) -> Iterator[str]:
    """Cut a line as the awslogs driver does, never inside a character."""
    if len(line) * 4 <= _DRIVER_LIMIT:
        if line:
            yield line
        return
    raw = line.encode()
    start = 0
    while start < len(raw):
        end = min(start + _DRIVER_LIMIT, len(raw))
        while end < len(raw) and raw[end] & 0xC0 == 0x80:
            end -= 1
        yield raw[start:end].decode()
        start = end


def _check_batch(events: list[tuple[int, str]]) -> None:
    if len(events) > _PAGE_EVENTS:
        raise _constraint("[...]", "logEvents", f"have length less than or equal to {_PAGE_EVENTS}")
    total = 0
    for number, (_, message) in enumerate(events, start=1):
        if not message:
            raise _constraint("", f"logEvents.{number}.member.message", "have length greater than or equal to 1")
        size = _size(message)
        if size > _BATCH_BYTES:
            raise _invalid(f"Log event too large: {size} bytes exceeds limit of {_BATCH_BYTES}")
        total += size
    if total > _BATCH_BYTES:
        raise _invalid(f"Upload too large: {total} bytes exceeds limit of {_BATCH_BYTES}")
    if any(later[0] < earlier[0] for earlier, later in pairwise(events)):
        raise _invalid("Log events in a single PutLogEvents request must be in chronological order.")
    if events and events[-1][0] - events[0][0] > _DAY_MS:
        raise _invalid("The batch of log events in a single PutLogEvents request cannot span more than 24 hours.")


# Filter patterns.

_TERM: Final = re.compile(r'([-?]?)(?:"((?:[^"\\]|\\.)*)"|%([^%]+)%|([^\s"%]\S*))(?=\s|$)\s*')
_SELECTOR: Final = re.compile(r"\$(?:\.[A-Za-z0-9_-]+|\[\d+\])+")
_JSON_TOKEN: Final = re.compile(
    r'\s*(?:(&&|\|\||[()]|!=|>=|<=|=|>|<)|(\$[^\s=!<>()]+)|"((?:[^"\\]|\\.)*)"|%([^%]+)%|([^\s=!<>()&|"%$]+))'
)


def filter_pattern(text: str) -> Callable[[str], bool] | None:
    """
    Read a filter pattern: terms, phrases, ``?any``, ``-not``, ``%regex%``, or a JSON condition in braces.

    :raises AwsError: no pattern, or one of the kinds that the fake does not read
    """
    text = text.strip()
    if not text:
        return None
    if text.startswith("["):
        raise _invalid(f"Invalid filter pattern: the fake AWS does not read space-delimited patterns: {text}")
    if text.startswith("{"):
        return _JsonPattern(text).matches
    return _term_pattern(text)


def _term_pattern(text: str) -> Callable[[str], bool]:
    every: list[Callable[[str], bool]] = []
    some: list[Callable[[str], bool]] = []
    none: list[Callable[[str], bool]] = []
    kinds = {"": every, "?": some, "-": none}
    place = 0
    while place < len(text):
        found = _TERM.match(text, place)
        if found is None:
            raise _invalid(f"Invalid filter pattern: {text}")
        sign, phrase, regex, word = found.groups()
        kinds[sign].append(_searcher(regex) if regex else _container(_unescaped(phrase) if phrase else word or ""))
        place = found.end()
    # AWS ignores ?terms beside others.
    if every or none:
        some = []

    def matches(message: str) -> bool:
        return (
            all(holds(message) for holds in every)
            and not any(holds(message) for holds in none)
            and (not some or any(holds(message) for holds in some))
        )

    return matches


def _container(term: str) -> Callable[[str], bool]:
    return lambda message: term in message


def _searcher(regex: str) -> Callable[[str], bool]:
    try:
        compiled = re.compile(regex)
    except re.error as exc:
        raise _invalid(f"Invalid filter pattern: %{regex}%: {exc}") from exc
    return lambda message: compiled.search(message) is not None


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


_MISSING: Final = object()
_Condition: TypeAlias = Callable[[Any], bool]


class _JsonPattern:
    """``{ ($.level = "ERROR" || $.code >= 500) && $.user NOT EXISTS }``, read from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        if not text.endswith("}"):
            self._refuse()
        self._tokens = self._split(text[1:-1])
        self._place = 0
        self._holds = self._either()
        if self._place != len(self._tokens):
            self._refuse()

    def matches(self, message: str) -> bool:
        try:
            value = json.loads(message)
        except ValueError:
            return False
        return self._holds(value)

    def _refuse(self) -> NoReturn:
        raise _invalid(f"Invalid filter pattern: {self._text}")

    def _split(self, text: str) -> list[tuple[str, str]]:
        kinds = ("sign", "selector", "text", "regex", "word")
        tokens: list[tuple[str, str]] = []
        place, text = 0, text.rstrip()
        while place < len(text):
            found = _JSON_TOKEN.match(text, place)
            if found is None:
                self._refuse()
            index = next(index for index, group in enumerate(found.groups()) if group is not None)
            tokens.append((kinds[index], found.groups()[index]))
            place = found.end()
        return tokens

    def _next(self) -> tuple[str, str]:
        if self._place == len(self._tokens):
            self._refuse()
        self._place += 1
        return self._tokens[self._place - 1]

    def _skip(self, sign: str) -> bool:
        if self._place < len(self._tokens) and self._tokens[self._place] == ("sign", sign):
            self._place += 1
            return True
        return False

    def _either(self) -> _Condition:
        conditions = [self._both()]
        while self._skip("||"):
            conditions.append(self._both())
        return lambda value: any(holds(value) for holds in conditions)

    def _both(self) -> _Condition:
        conditions = [self._single()]
        while self._skip("&&"):
            conditions.append(self._single())
        return lambda value: all(holds(value) for holds in conditions)

    def _single(self) -> _Condition:
        if self._skip("("):
            inner = self._either()
            if not self._skip(")"):
                self._refuse()
            return inner
        kind, selector = self._next()
        if kind != "selector" or not _SELECTOR.fullmatch(selector):
            self._refuse()
        path = [int(part) if part.isdigit() else name for name, part in re.findall(r"\.([\w-]+)|\[(\d+)\]", selector)]
        test = self._test()
        return lambda value: test(_dig(value, path))

    def _test(self) -> _Condition:
        kind, sign = self._next()
        if kind == "word":
            return self._word_test(sign.upper(), self._next()[1].upper())
        if kind != "sign":
            self._refuse()
        kind, operand = self._next()
        if sign in {"=", "!="}:
            equal = _equality(kind, operand)
            return equal if sign == "=" else lambda value: value is not _MISSING and not equal(value)
        number = _number(operand)
        if sign not in _COMPARISONS or number is None:
            self._refuse()
        compare = _COMPARISONS[sign]
        return lambda value: isinstance(value, int | float) and compare(float(value), number)

    def _word_test(self, verb: str, what: str) -> _Condition:
        tests: dict[tuple[str, str], _Condition] = {
            ("NOT", "EXISTS"): lambda value: value is _MISSING,
            ("IS", "NULL"): lambda value: value is None,
            ("IS", "TRUE"): lambda value: value is True,
            ("IS", "FALSE"): lambda value: value is False,
        }
        if (verb, what) not in tests:
            self._refuse()
        return tests[verb, what]


_COMPARISONS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">": lambda value, number: value > number,
    "<": lambda value, number: value < number,
    ">=": lambda value, number: value >= number,
    "<=": lambda value, number: value <= number,
}


def _equality(kind: str, operand: str) -> _Condition:
    if kind == "regex":
        search = _searcher(operand)
        return lambda value: isinstance(value, str) and search(value)
    number = _number(operand) if kind == "word" else None
    if number is not None:
        return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and float(value) == number
    parts = (_unescaped(operand) if kind == "text" else operand).split("*")
    wanted = re.compile(".*".join(re.escape(part) for part in parts), re.DOTALL)
    return lambda value: isinstance(value, str) and wanted.fullmatch(value) is not None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _dig(value: Any, path: list[str | int]) -> Any:
    for step in path:
        if isinstance(step, int):
            value = value[step] if isinstance(value, list) and step < len(value) else _MISSING
        else:
            value = value.get(step, _MISSING) if isinstance(value, dict) else _MISSING
    return value
