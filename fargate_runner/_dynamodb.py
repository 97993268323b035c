"""
A journal in DynamoDB: for Lambda handlers and for fleets of machines, which share no disk.

One item is one page. DynamoDB's conditional writes are the compare and set, its consistent reads show what was written
last by whomever, and its TTL forgets what ended long ago.
"""

from __future__ import annotations

import hashlib
import re
import uuid
import zlib
from bisect import bisect_left
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import anyio
import attrs

from fargate_runner._errors import BackendError, InvalidJob, JournalError
from fargate_runner._journal import Journal, Overtaken, Page, bound
from fargate_runner.backends.ecs._api import Api, ApiError, Trouble

__all__ = ["DynamoDBJournal"]

_Item = Mapping[str, Mapping[str, Any]]

_KEYS: Final = {"namespace": "HASH", "key": "RANGE"}
_INDEX: Final = "open"
_INDEX_KEYS: Final = {"namespace": "HASH", "open_since": "RANGE"}
EXPIRES: Final = "expires_at"

# Amazon DynamoDB Developer Guide, "Quotas" and "Local secondary indexes", autumn 2026.
_LARGEST_ITEM: Final = 405_000
"""Bytes of an item and its entries in local indexes, names of attributes included. The limit is 400 KB, or 409,600."""
_LARGEST_KEY: Final = 1024
_KEYS_AT_ONCE: Final = 100

_DELETES_AT_ONCE: Final = 20
_MAKING: Final = 300.0
"""Seconds that a new table may take."""
_MAKING_CADENCE: Final = 1.0
_UNPROCESSED_PAUSE: Final = 0.2

_CONDITION_FAILED: Final = "ConditionalCheckFailedException"
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{3,255}\Z|arn:[\w-]+:dynamodb:[\w-]+:\d+:table/[A-Za-z0-9_.-]{3,255}\Z")


class DynamoDBJournal(Journal):
    """
    Keeps pages in one table of DynamoDB, for any number of processes on any number of machines.

    *table* is its name or ARN; `create_table` makes one. It may hold many namespaces, each runner sees its own. The
    pages of jobs that ended are dropped by DynamoDB itself, *keep_ended* after their end; None keeps them for ever.

    A page is an item: its text compressed with zlib in ``page``, and beside it what a person or a program may want to
    read: ``namespace``, ``key``, ``revision``, ``name``, ``open_since`` while the job has no final record, ``ended_at``
    and ``expires_at`` once it has. Should an item become too large for DynamoDB, it is kept without the last lines of
    the oldest attempts, and if need be without any.

    The credentials need ``dynamodb:`` ``DescribeTable``, ``GetItem``, ``PutItem``, ``DeleteItem`` and ``BatchGetItem``
    on the table, and ``Query`` on the table and on ``table/<name>/index/open``. DynamoDB takes about a thousand writes
    a second and 10 GB for one namespace.
    """

    def __init__(
        self,
        table: str,
        *,
        region: str | None = None,
        session: Any | None = None,
        endpoint_url: str | None = None,
        keep_ended: timedelta | None = timedelta(days=30),
    ) -> None:
        if not isinstance(table, str) or not _NAME.match(table):
            raise InvalidJob("table", table, "not the name of a table", "write DynamoDBJournal('fargate-jobs')")
        if keep_ended is not None and (not isinstance(keep_ended, timedelta) or keep_ended <= timedelta()):
            fix = "write timedelta(days=30), or None for ever"
            raise InvalidJob("keep_ended", keep_ended, "expected a time, more than none", fix)
        self.name = table
        self._keep_ended = keep_ended
        self._api = Api(session=session, region=region, endpoint_url=endpoint_url)
        self._namespace: str | None = None
        self._table_checked = False
        self._doubtful: dict[str, tuple[int, bytes, str]] = {}
        """By key, the writes of which nobody knows whether they were done: revision, page and id."""

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[None]:
        self._namespace = None
        self._doubtful.clear()
        self._table_checked &= self._api.is_warm
        self._api.stays_warm = self.stays_warm
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._api.running())
            except BackendError as exc:
                raise self._translated(exc) from exc
            yield

    async def cool_down(self) -> None:
        await self._api.cool_down()

    async def bind(self, namespace: str) -> None:
        self._check_open()
        if not self._table_checked:
            self._check_table((await self._call("DescribeTable"))["Table"])
            self._table_checked = True
        way_out = "give this namespace a DynamoDBJournal of its own; the table may be the same"
        self._namespace = bound(self.name, self._namespace, namespace, way_out)

    async def read(self, key: str) -> Page | None:
        item = await self._get(key)
        return None if item is None else self._unpacked(item)

    async def write(self, page: Page) -> Page:
        written = attrs.evolve(page, revision=page.revision + 1)
        packed = self._fitted(written)
        revision, text, write_id = self._doubtful.pop(page.key, (0, b"", ""))
        if not write_id or (revision, text) != (written.revision, packed):
            write_id = uuid.uuid4().hex
        request: dict[str, Any] = {
            "Item": self._item(written, packed, write_id),
            "ConditionExpression": "attribute_not_exists(#revision)",
            "ExpressionAttributeNames": {"#revision": "revision"},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        if page.revision:
            request["ConditionExpression"] = "#revision = :read"
            request["ExpressionAttributeValues"] = {":read": {"N": str(page.revision)}}
        try:
            try:
                await self._call("PutItem", but=_CONDITION_FAILED, **request)
                return written
            except ApiError as exc:
                there = exc.item if exc.item is not None else await self._get(page.key)
        except BaseException:
            # Done or not: the same page written again is the same write, and not another's that was quicker.
            self._doubtful[page.key] = written.revision, packed, write_id
            raise
        if there is None:
            raise Overtaken(None)
        # The answer to our first try was lost, and the second met what the first had written.
        if there.get("write", {}).get("S") == write_id and there["revision"]["N"] == str(written.revision):
            return written
        raise Overtaken(self._unpacked(there))

    async def open_pages(self) -> AsyncGenerator[Page]:
        async with aclosing(self._query(IndexName=_INDEX)) as parts:
            async for found in parts:
                keys = [item["key"]["S"] for item in found]
                for start in range(0, len(keys), _KEYS_AT_ONCE):
                    for page in await self._get_many(keys[start : start + _KEYS_AT_ONCE]):
                        if page.ended_at is None:  # it may have got its final record since
                            yield page

    async def forget(self, key: str, *, revision: int | None = None) -> None:
        sort_key = _sort_key(key)
        if revision is not None:
            values = {":revision": {"N": str(revision)}}
            condition = "attribute_exists(#ended_at) OR #revision = :revision"
            await self._delete(sort_key, condition, values, names={"#revision": "revision"})
        else:
            await self._delete(sort_key, "attribute_exists(#ended_at)")

    async def prune(self, *, ended_before: datetime) -> int:
        """
        Forget all jobs whose final record was written before a moment, and return how many they were.

        Reads the whole namespace, which *keep_ended* does not need to.

        :raises JournalError: it cannot be written
        """
        values = {":before": {"S": _utc(ended_before)}}
        condition = "#ended_at < :before"
        old: list[str] = []
        request = {
            "FilterExpression": condition,
            "ExpressionAttributeNames": {"#ended_at": "ended_at", "#key": "key"},
            "ExpressionAttributeValues": values,
            "ProjectionExpression": "#key",
        }
        async for found in self._query(**request):
            old += [item["key"]["S"] for item in found]
        forgotten = 0
        failures: list[JournalError] = []

        async def work() -> None:
            nonlocal forgotten
            while old and not failures:
                try:
                    if await self._delete(old.pop(), condition, values):
                        forgotten += 1
                except JournalError as exc:
                    failures.append(exc)  # raised below, where no task group wraps it in a group

        async with anyio.create_task_group() as tasks:
            for _ in range(min(_DELETES_AT_ONCE, len(old))):
                tasks.start_soon(work)
        if failures:
            raise failures[0]
        return forgotten

    async def create_table(self) -> None:
        """
        Make the table, unless it is there, and return once it can be used. Inside its ``async with`` block or outside.

        It is paid by the request, and drops what has expired. The credentials need ``dynamodb:`` ``CreateTable``,
        ``DescribeTable``, ``DescribeTimeToLive`` and ``UpdateTimeToLive``.

        :raises JournalError: it cannot be made, or is there and is no journal
        """
        if not self._open:
            async with self:
                await self._make_table()
        else:
            await self._make_table()

    # ---- items -----------------------------------------------------------------------------------------------------

    def _fitted(self, page: Page) -> bytes:
        """Return the text of a page, packed, with as many last lines as there is room for."""

        def pack(dropped: int) -> bytes:
            shortened = [attrs.evolve(attempt, last_lines=()) for attempt in page.attempts[:dropped]]
            kept = attrs.evolve(page, attempts=(*shortened, *page.attempts[dropped:]))
            return zlib.compress(kept.to_json().encode())

        def size(packed: bytes) -> int:
            return _size(self._item(page, packed, uuid.uuid4().hex))

        packed = pack(0)
        if size(packed) <= _LARGEST_ITEM:
            return packed
        most = len(page.attempts)
        packed = pack(bisect_left(range(most), True, key=lambda dropped: size(pack(dropped)) <= _LARGEST_ITEM))
        if size(packed) > _LARGEST_ITEM:
            kilobytes = f"{size(packed) / 1000:.0f} KB, and an item of DynamoDB has room for 400"
            fix = "make the job's command and environment smaller, or keep them in S3 and have the job fetch them"
            raise JournalError(f"the page of the job {page.key!r} takes {kilobytes}; {fix}", journal=self.name)
        return packed

    def _item(self, page: Page, packed: bytes, write_id: str) -> dict[str, dict[str, Any]]:
        item: dict[str, dict[str, Any]] = {
            **self._primary_key(_sort_key(page.key)),
            "revision": {"N": str(page.revision)},
            "write": {"S": write_id},
            "name": {"S": page.name},
            "page": {"B": packed},
        }
        if page.ended_at is None:
            return item | {"open_since": {"S": _utc(page.accepted_at)}}
        item["ended_at"] = {"S": _utc(page.ended_at)}
        if self._keep_ended is not None:
            item[EXPIRES] = {"N": str(int((page.ended_at + self._keep_ended).timestamp()))}
        return item

    def _unpacked(self, item: _Item) -> Page:
        try:
            text = zlib.decompress(item["page"]["B"]).decode()
            return Page.from_json(text, revision=int(item["revision"]["N"]))
        except (ValueError, KeyError, TypeError, zlib.error) as exc:
            key = item.get("key", {}).get("S")
            said = f"the journal {self.name} holds a page of the job {key!r} that cannot be read: {exc}"
            fix = "use the version of fargate_runner that wrote it, or delete the item"
            raise JournalError(f"{said}; {fix}", journal=self.name) from exc

    def _primary_key(self, sort_key: str) -> dict[str, dict[str, Any]]:
        self._check_open()
        if self._namespace is None:
            said = f"the journal {self.name} belongs to no namespace yet"
            raise JournalError(f"{said}; hand it to a Runner, or await journal.bind('default')", journal=self.name)
        return {"namespace": {"S": self._namespace}, "key": {"S": sort_key}}

    # ---- requests --------------------------------------------------------------------------------------------------

    async def _get(self, key: str) -> _Item | None:
        reply = await self._call("GetItem", Key=self._primary_key(_sort_key(key)), ConsistentRead=True)
        return reply.get("Item")

    async def _get_many(self, keys: Sequence[str]) -> list[Page]:
        """Return the pages of some keys, in their order, without those that are gone."""
        found: dict[str, Page] = {}
        wanted = [self._primary_key(key) for key in keys]
        while wanted:
            asked: dict[str, Any] = {self.name: {"Keys": wanted, "ConsistentRead": True}}
            reply = await self._call("BatchGetItem", named=False, RequestItems=asked)
            items: list[_Item] = [item for items in reply.get("Responses", {}).values() for item in items]
            found |= {item["key"]["S"]: self._unpacked(item) for item in items}
            # Too many, or too large for one answer. The door learns from throttles; this is none.
            wanted = [key for rest in (reply.get("UnprocessedKeys") or {}).values() for key in rest["Keys"]]
            if wanted:
                await anyio.sleep(_UNPROCESSED_PAUSE)
        return [found[key] for key in keys if key in found]

    async def _query(self, **request: Any) -> AsyncGenerator[Sequence[_Item]]:
        """Yield what a query of the namespace finds, part by part."""
        names = {"#namespace": "namespace"} | request.pop("ExpressionAttributeNames", {})
        namespace = self._primary_key("")["namespace"]
        values = {":namespace": namespace} | request.pop("ExpressionAttributeValues", {})
        while True:
            reply = await self._call(
                "Query",
                KeyConditionExpression="#namespace = :namespace",
                ExpressionAttributeNames=names,
                ExpressionAttributeValues=values,
                ConsistentRead=True,
                **request,
            )
            yield reply["Items"]
            last = reply.get("LastEvaluatedKey")
            if not last:
                return
            request["ExclusiveStartKey"] = last

    async def _delete(
        self,
        sort_key: str,
        condition: str,
        values: Mapping[str, Any] | None = None,
        *,
        names: Mapping[str, str] | None = None,
    ) -> bool:
        """Delete a page if the condition on its end holds, and tell whether that was us."""
        request: dict[str, Any] = {
            "Key": self._primary_key(sort_key),
            "ConditionExpression": condition,
            "ExpressionAttributeNames": {"#ended_at": "ended_at", **(names or {})},
        }
        if values:
            request["ExpressionAttributeValues"] = values
        try:
            await self._call("DeleteItem", but=_CONDITION_FAILED, **request)
        except ApiError as exc:
            return exc.in_doubt  # an earlier try, whose answer was lost
        return True

    async def _call(self, operation: str, *, but: str = "", named: bool = True, **request: Any) -> dict[str, Any]:
        """Ask DynamoDB about the table; an error with the code *but* is the caller's, as it is."""
        self._check_open()
        if named:
            request["TableName"] = self.name
        try:
            return await self._api.call(f"dynamodb.{operation}", **request)
        except BackendError as exc:
            if isinstance(exc, ApiError) and exc.code == but:
                raise
            raise self._translated(exc) from exc

    def _translated(self, exc: BackendError) -> JournalError:
        said = f"the journal {self.name} cannot be used: {exc}"
        if isinstance(exc, ApiError):
            action = (exc.operation or "").replace(".", ":")
            if exc.code == "ResourceNotFoundException":
                said = (
                    f"there is no table {self.name} in {self._api.region} ({exc.code}); check its name and the region, "
                    f"or make it: await DynamoDBJournal({self.name!r}).create_table()"
                )
            elif exc.code == "ItemCollectionSizeLimitExceededException":
                said = f"{said}; a namespace has room for 10 GB: prune it, or shorten keep_ended"
            elif exc.trouble is Trouble.DENIED and not exc.action:
                said = f"{said}; it was {action} on the table {self.name}"
        return JournalError(said, journal=self.name, retryable=exc.retryable)

    # ---- the table -------------------------------------------------------------------------------------------------

    def _check_table(self, table: Mapping[str, Any]) -> None:
        status = table.get("TableStatus", "ACTIVE")
        if status not in {"ACTIVE", "UPDATING"}:
            making = status == "CREATING"
            fix = "try again in a while" if making else "look at it in the console"
            said = f"the table {self.name} cannot be used now, it is {status}; {fix}"
            raise JournalError(said, journal=self.name, retryable=making)
        types = {each["AttributeName"]: each["AttributeType"] for each in table["AttributeDefinitions"]}
        indexes = {each["IndexName"]: _schema(each) for each in table.get("LocalSecondaryIndexes", ())}
        expected = dict.fromkeys((*_KEYS, *_INDEX_KEYS), "S")
        if _schema(table) == _KEYS and indexes.get(_INDEX) == _INDEX_KEYS and types.items() >= expected.items():
            return
        keys = ", ".join(f"{name} ({types.get(name)}, {kind})" for name, kind in _schema(table).items())
        said = (
            f"the table {self.name} is no journal: its keys are {keys} and its local indexes {sorted(indexes)}, not "
            f"namespace (S, HASH), key (S, RANGE) and the index 'open' on open_since (S)"
        )
        fix = f"name another table, which create_table() makes: await DynamoDBJournal('{self.name}-2').create_table()"
        raise JournalError(f"{said}; {fix}", journal=self.name)

    async def _make_table(self) -> None:
        with suppress(ApiError):  # it is there, perhaps by our own first try
            await self._call(
                "CreateTable",
                but="ResourceInUseException",
                **table_design(),
            )
        with anyio.move_on_after(_MAKING):
            # DescribeTable may not know a table yet that CreateTable has just made.
            while (table := await self._described()) is None or table["TableStatus"] == "CREATING":  # noqa: ASYNC110
                await anyio.sleep(_MAKING_CADENCE)
            self._check_table(table)
            await self._have_it_forget()
            return
        said = f"the table {self.name} could not be used within {_MAKING / 60:.0f} minutes of its making"
        raise JournalError(f"{said}; call create_table() again", journal=self.name, retryable=True)

    async def _described(self) -> Mapping[str, Any] | None:
        try:
            table: Mapping[str, Any] = (await self._call("DescribeTable", but="ResourceNotFoundException"))["Table"]
        except ApiError:
            return None
        return table

    async def _have_it_forget(self) -> None:
        if await self._forgets():
            return
        wanted = {"Enabled": True, "AttributeName": EXPIRES}
        try:
            await self._call("UpdateTimeToLive", but="ValidationException", TimeToLiveSpecification=wanted)
        except ApiError as exc:
            if not await self._forgets():  # it may be another runner that was quicker
                raise self._translated(exc) from exc

    async def _forgets(self) -> bool:
        found = (await self._call("DescribeTimeToLive"))["TimeToLiveDescription"]
        enabled = found.get("TimeToLiveStatus") in {"ENABLED", "ENABLING"}
        return enabled and found.get("AttributeName") == EXPIRES


def table_design() -> dict[str, Any]:
    """Return what CreateTable is told of the table of a journal, beside its name."""
    index = {
        "IndexName": _INDEX,
        "KeySchema": [{"AttributeName": name, "KeyType": kind} for name, kind in _INDEX_KEYS.items()],
        "Projection": {"ProjectionType": "KEYS_ONLY"},  # each byte more counts against the 400 KB of an item
    }
    names = dict.fromkeys((*_KEYS, *_INDEX_KEYS))
    return {
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in names],
        "KeySchema": [{"AttributeName": name, "KeyType": kind} for name, kind in _KEYS.items()],
        "LocalSecondaryIndexes": [index],
    }


def _schema(described: Mapping[str, Any]) -> dict[str, str]:
    return {each["AttributeName"]: each["KeyType"] for each in described["KeySchema"]}


def _sort_key(key: str) -> str:
    """Return what a page is filed under: its key, unless that is too long for DynamoDB."""
    encoded = key.encode()
    return key if len(encoded) <= _LARGEST_KEY else f"sha256:{hashlib.sha256(encoded).hexdigest()}"


def _size(item: _Item) -> int:
    """Return the bytes that DynamoDB counts for an item and its entry in the index."""
    sizes = {name: len(name.encode()) + sum(map(_bytes, value.values())) for name, value in item.items()}
    # The documented overhead of an index entry; numbers take at most 21 bytes.
    entry = sum(sizes.get(name, 0) for name in {*_KEYS, *_INDEX_KEYS}) + 100
    return sum(sizes.values()) + entry + 42


def _bytes(value: str | bytes) -> int:
    return len(value) if isinstance(value, bytes) else len(value.encode())


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
