"""
What survives a crash: one page for each job, written before anything happens, read by whoever comes next.

A page goes ``INTENT (frozen launch) → ACK (address) → [STOP_ASKED] → … → TERMINAL (record)``. It is written by compare
and set: whoever has not read the last state of a page cannot overwrite it. So several processes may see the same job
through at once; they all follow one page, and it gets one final record.
"""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import threading
import time
import types
import typing
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import anyio
import anyio.to_thread
import attrs
from anyio import AsyncContextManagerMixin

from fargate_runner._backend import Launch, TaskRef
from fargate_runner._errors import InvalidJob, JournalError, RunnerClosed
from fargate_runner._job import _TOGETHER, Job, SecretRef
from fargate_runner._lifecycle import Attempt, JobResult, Kind, LogLine, Outcome, Proof, StopAsked
from fargate_runner._retry import Retry, Rule

__all__ = ["Callback", "Journal", "MemoryJournal", "Overtaken", "Page", "SqliteJournal"]

_VERSION: Final = 1
"""Of a page's text. Older ones stay readable; a newer one is refused."""
_LINES_KEPT: Final = 32_768
"""Characters of an attempt's last lines that a page keeps: a page has to fit into a DynamoDB item of 400 KB."""


# ---- a page --------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Callback:
    """Whether those who want to know of a job's end were told. Who is about to tell them says so here first."""

    token: str | None = attrs.field(default=None, repr=False)
    """What Step Functions waits for to come back."""
    answered: bool = False
    """Whether it has come back."""
    told_at: datetime | None = None
    """When the others were told."""
    claimed_until: datetime | None = None
    """Until then, whoever wrote this tells them; after that anybody may. In the time of the place."""


@attrs.frozen(kw_only=True)
class Page:
    """What a journal knows of one job. Written whole, and only over the revision that was read."""

    key: str
    name: str
    """The job's name, for people."""
    place: str
    """Where it runs: `Backend.place`. Another place knows nothing of it."""
    description: Mapping[str, Any] = attrs.field(repr=False)
    """`Job.describe`: the same key is the same job."""
    retry: Mapping[str, Any] | None = None
    """The policy that it was submitted with, as far as it can be written; None is the default one."""
    accepted_at: datetime
    attempts: tuple[Attempt, ...] = ()
    """Those that are over."""
    launch: Launch | None = None
    """The launch under way, as it was sent and would be sent again."""
    launched_at: datetime | None = None
    """When it was about to be sent, in the time of the place."""
    ref: TaskRef | None = None
    """What came of it, once the place has told."""
    stop: StopAsked | None = None
    """That the attempt under way, or with ``CANCELLED`` the job, was asked to end."""
    ended_at: datetime | None = None
    """When the job got its final record: the attempts as they are."""
    callback: Callback | None = None
    """Who is to be told of the end, and whether that was done; None until somebody is."""
    revision: int = 0
    """How often it was written. The journal counts."""

    @property
    def result(self) -> JobResult | None:
        """The final record, once there is one."""
        if self.ended_at is None:
            return None
        return JobResult(
            key=self.key,
            name=self.name,
            attempts=self.attempts,
            accepted_at=self.accepted_at,
            ended_at=self.ended_at,
        )

    def to_json(self) -> str:
        """Return the page as text; values of secrets were never in it."""
        parts = {
            "version": _VERSION,
            "key": self.key,
            "name": self.name,
            "place": self.place,
            "description": self.description,
            "retry": self.retry,
            "accepted_at": self.accepted_at.isoformat(),
            "attempts": [_attempt_to_plain(attempt) for attempt in self.attempts],
            "launch": None if self.launch is None else json.loads(self.launch.to_json()),
            "launched_at": _moment(self.launched_at),
            "ref": None if self.ref is None else _ref_to_plain(self.ref),
            "stop": None if self.stop is None else {"kind": self.stop.kind.value, "reason": self.stop.reason},
            "ended_at": _moment(self.ended_at),
        }
        if self.callback is not None:  # left out where nobody is told: versions that do not know it can read the page
            known = attrs.asdict(self.callback)
            parts["callback"] = known | {name: _moment(known[name]) for name in _MOMENTS_OF_A_CALLBACK}
        return json.dumps(parts, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, *, revision: int) -> Self:
        """
        Return the page that `to_json` wrote, by this version of the library or an older one.

        :raises ValueError: it is no page, or one of a newer version
        """
        try:
            parts = json.loads(text)
            version = parts.pop("version")
            if version > _VERSION:
                said = f"it was written in version {version} of the format, and this library reads up to {_VERSION}"
                raise ValueError(said)
            launch, ref, stop = parts["launch"], parts["ref"], parts["stop"]
            callback = parts.get("callback")
            changed = {
                "accepted_at": datetime.fromisoformat(parts["accepted_at"]),
                "attempts": tuple(_attempt_from_plain(attempt) for attempt in parts["attempts"]),
                "launch": None if launch is None else Launch.from_json(json.dumps(launch)),
                "launched_at": _parsed(parts["launched_at"]),
                "ref": None if ref is None else _ref_from_plain(ref),
                "stop": None if stop is None else StopAsked(kind=Kind(stop["kind"]), reason=stop["reason"]),  # type: ignore[arg-type]
                "ended_at": _parsed(parts["ended_at"]),
                "callback": None if callback is None else _callback_from_plain(callback),
            }
            return cls(**parts | changed, revision=revision)
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"it is not a job's page: {exc!r}") from exc


class Overtaken(Exception):
    """Another runner wrote the page first. ``page`` is what it wrote; None if the page is gone."""

    def __init__(self, page: Page | None) -> None:
        super().__init__(f"another runner has written the page of {page.key!r}" if page else "the page is gone")
        self.page = page


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _parsed(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _callback_from_plain(parts: Mapping[str, Any]) -> Callback:
    known: dict[str, Any] = {**parts} | {name: _parsed(parts[name]) for name in _MOMENTS_OF_A_CALLBACK}
    return Callback(**known)


_MOMENTS_OF_A_CALLBACK: Final = ("told_at", "claimed_until")


def _ref_to_plain(ref: TaskRef) -> dict[str, Any]:
    # Its description is the job's own, which the page has; its size may be another.
    size = (ref.description or {}).get("size")
    return {
        "backend": ref.backend,
        "address": ref.address,
        "key": ref.key,
        "attempt": ref.attempt,
        "token": ref.token,
        "size": size,
        "created_at": _moment(ref.created_at),
    }


def _ref_from_plain(parts: Mapping[str, Any]) -> TaskRef:
    known: dict[str, Any] = {**parts, "created_at": _parsed(parts["created_at"])}
    size = known.pop("size")
    return TaskRef(**known, description=None if size is None else {"size": size})


def _attempt_to_plain(attempt: Attempt) -> dict[str, Any]:
    outcome = attempt.outcome
    proof = outcome.proof
    return {
        "number": attempt.number,
        "token": attempt.token,
        "address": attempt.address,
        "outcome": {
            "kind": outcome.kind.value,
            "detail": outcome.detail,
            "exit_code": outcome.exit_code,
            "transient": outcome.transient,
            "advice": outcome.advice,
            "proof": {"source": proof.source, "seen_at": proof.seen_at.isoformat(), "evidence": proof.evidence},
        },
        "vcpu": attempt.vcpu,
        "memory_gib": attempt.memory_gib,
        "ephemeral_storage_gib": attempt.ephemeral_storage_gib,
        "capacity": attempt.capacity,
        "platform": attempt.platform,
        "created_at": attempt.created_at.isoformat(),
        "started_at": _moment(attempt.started_at),
        "ended_at": attempt.ended_at.isoformat(),
        "last_lines": [
            [line.text, line.stream, line.container, _moment(line.at), line.attempt]
            for line in _last_that_fit(attempt.last_lines)
        ],
        "logs_complete": attempt.logs_complete,
    }


def _attempt_from_plain(parts: Mapping[str, Any]) -> Attempt:
    outcome, proof = parts["outcome"], parts["outcome"]["proof"]
    proven = Proof(**proof | {"seen_at": datetime.fromisoformat(proof["seen_at"])})
    lines = tuple(
        LogLine(text=text, stream=stream, container=container, at=_parsed(at), attempt=attempt)
        for text, stream, container, at, attempt in parts["last_lines"]
    )
    changed: dict[str, Any] = {
        "outcome": Outcome(**outcome | {"kind": Kind(outcome["kind"]), "proof": proven}),
        "created_at": datetime.fromisoformat(parts["created_at"]),
        "started_at": _parsed(parts["started_at"]),
        "ended_at": datetime.fromisoformat(parts["ended_at"]),
        "last_lines": lines,
    }
    return Attempt(**{**parts, **changed})


def _last_that_fit(lines: Sequence[LogLine]) -> list[LogLine]:
    kept: list[LogLine] = []
    left = _LINES_KEPT
    for line in reversed(lines):
        left -= len(line.text)
        if left < 0:
            break
        kept.append(line)
    return kept[::-1]


# ---- a job from its page -------------------------------------------------------------------------------------------


def retry_to_plain(policy: object) -> dict[str, Any] | None:
    """Return a policy as JSON-able data. None for the default one, and for one that is no `Retry`."""
    if not isinstance(policy, Retry):
        return None
    return {
        "failures": policy.failures,
        "out_of_memory": policy.out_of_memory,
        "never_started": policy.never_started,
        "interruptions": policy.interruptions,
        "max_memory_gib": policy.max_memory_gib,
        "rules": [
            {
                "then": rule.then,
                "kinds": None if rule.kinds is None else sorted(kind.value for kind in rule.kinds),
                "exit_codes": None if rule.exit_codes is None else _listed(rule.exit_codes),
                "times": rule.times,
            }
            for rule in policy.rules
        ],
    }


def _listed(exit_codes: Collection[int]) -> list[int]:
    # range(1, 2**31) is a way to say "any"; no process ends with more than a byte.
    return [code for code in range(256) if code in exit_codes] if isinstance(exit_codes, range) else sorted(exit_codes)


def _retry_from_plain(parts: Mapping[str, Any] | None) -> Retry | None:
    if parts is None:
        return None
    rules: list[Rule] = []
    for rule in parts["rules"]:
        kinds = None if rule["kinds"] is None else {Kind(kind) for kind in rule["kinds"]}
        written: dict[str, Any] = {**rule, "kinds": kinds}
        rules.append(Rule(**written))
    known: dict[str, Any] = {**parts, "rules": rules}
    return Retry(**known)


def job_of(page: Page) -> tuple[Job, bool]:
    """
    Return the job that a page describes, and whether it lacks something: secrets brought by value are not written.
    """
    described = dict(page.description)
    size = described.pop("size")
    described |= {"vcpu": size["cpu_units"] / 1024, "memory_gib": size["memory_mib"] / 1024}
    kept, lacks = _without_values(described)
    if kept.get("ecs") is not None:
        from fargate_runner.backends.ecs._config import EcsOptions

        kept["ecs"] = _rebuilt(EcsOptions, kept["ecs"])
    key = None if _TOGETHER.match(page.key) else page.key
    return _rebuilt(Job, kept | {"key": key, "retry": _retry_from_plain(page.retry)}), lacks


def _without_values(described: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    lacks = False
    kept = dict(described)
    if secrets := described.get("secrets"):
        kept["secrets"] = {name: secret for name, secret in secrets.items() if "secret" not in secret}
        lacks = len(kept["secrets"]) < len(secrets)
    if sidecars := described.get("sidecars"):
        sides = [_without_values(side) for side in sidecars]
        kept["sidecars"] = [side for side, _ in sides]
        lacks = lacks or any(lack for _, lack in sides)
    return kept, lacks


_T = TypeVar("_T")


def _rebuilt(kind: type[_T], parts: Mapping[str, Any]) -> _T:
    """Make an attrs value from what `Job.describe` made of it."""
    hints = typing.get_type_hints(kind)
    known = {field.alias: hints[field.name] for field in attrs.fields(typing.cast("Any", kind)) if field.init}
    return kind(**{name: _value(known[name], part) for name, part in parts.items() if name in known})


def _value(hint: Any, part: Any) -> Any:
    if part is None or not isinstance(part, (Mapping, list, int, float)):
        return part
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        candidates = [choice for choice in inside if choice is not type(None)]
        if isinstance(part, Mapping) and set(part) == {"arn"} and SecretRef in candidates:
            return SecretRef(part["arn"])
        return _value(candidates[0], part)
    if hint is timedelta and isinstance(part, (int, float)):
        return timedelta(seconds=part)
    if isinstance(part, Mapping) and attrs.has(hint):
        return _rebuilt(hint, part)
    if isinstance(part, Mapping) and len(inside) == 2:
        return {name: _value(inside[1], each) for name, each in part.items()}
    if isinstance(part, list):
        return tuple(_value(inside[0], each) if inside else each for each in part)
    return part


# ---- journals ------------------------------------------------------------------------------------------------------


class Journal(AsyncContextManagerMixin, ABC):
    """
    Where pages are kept. Used as ``async with journal``, or opened and closed by the runner that it is handed to.

    A journal belongs to one namespace: that of the first runner which wrote it. Every method may be called
    concurrently, by several processes where the journal says so.
    """

    name: str = "journal"
    """What messages call it: its file, its table."""

    stays_warm: bool = False
    """Whether closing it keeps its clients for its next opening on the same event loop, see `Backend.stays_warm`."""

    _open: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it is inside its ``async with`` block."""
        return self._open

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        if self._open:
            raise RunnerClosed(f"the journal {self.name} is open already; enter it once and share it between runners")
        async with self._running():
            self._open = True
            try:
                yield self
            finally:
                self._open = False

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[None]:
        """What lives as long as the journal is open. For subclasses."""
        yield

    async def cool_down(self) -> None:
        """Give up what `stays_warm` has kept, on the event loop that it was kept on. Does nothing while it is open."""

    @abstractmethod
    async def bind(self, namespace: str) -> None:
        """
        Check that the journal can be used for *namespace*; a new one belongs to it from now on.

        :raises JournalError: it cannot be read or written, is of a newer version, or belongs to another namespace
        """

    @abstractmethod
    async def read(self, key: str) -> Page | None:
        """
        Return the page of a job as it was written last, by whomever; None if there is none.

        :raises JournalError: it cannot be read; it is never taken for an empty one
        """

    @abstractmethod
    async def write(self, page: Page) -> Page:
        """
        Write *page* over the revision that it was read with (0: there must be none), durably; return it as it is now.

        :raises Overtaken: another one is there, and nothing was written
        :raises JournalError: it cannot be written, or nobody can tell whether it was; writing the same again is safe
        """

    @abstractmethod
    def open_pages(self) -> AsyncIterator[Page]:
        """
        Yield the pages of all jobs that have no final record, the oldest first.

        :raises JournalError: they cannot be read
        """

    @abstractmethod
    async def forget(self, key: str, *, revision: int | None = None) -> None:
        """
        Drop the page of a job that has its final record; the key is free again. Does nothing for any other.

        With a *revision*, the page of an open job is dropped too, unless it was written since.

        :raises JournalError: it cannot be written
        """

    @abstractmethod
    async def prune(self, *, ended_before: datetime) -> int:
        """
        Forget all jobs whose final record was written before a moment, and return how many they were.

        :raises JournalError: it cannot be written
        """

    def _check_open(self) -> None:
        if not self._open:
            raise RunnerClosed(f"the journal {self.name} is not open: use it inside 'async with'")


class MemoryJournal(Journal):
    """
    Keeps pages in this process: for tests, and for runners that share jobs within one program.

    It outlives the runners it is handed to, and is lost with the process.
    """

    name = "memory"

    def __init__(self) -> None:
        self._namespace: str | None = None
        self._pages: dict[str, Page] = {}

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        # Several runners may share it, and none of them closes anything.
        self._open = True
        yield self

    async def bind(self, namespace: str) -> None:
        await anyio.lowlevel.checkpoint()
        self._namespace = bound(self.name, self._namespace, namespace, "use a MemoryJournal of its own")

    async def read(self, key: str) -> Page | None:
        await anyio.lowlevel.checkpoint()
        return self._pages.get(key)

    async def write(self, page: Page) -> Page:
        await anyio.lowlevel.checkpoint()
        there = self._pages.get(page.key)
        if (there.revision if there is not None else 0) != page.revision:
            raise Overtaken(there)
        written = self._pages[page.key] = attrs.evolve(page, revision=page.revision + 1)
        return written

    async def open_pages(self) -> AsyncGenerator[Page]:
        for page in [page for page in self._pages.values() if page.ended_at is None]:
            await anyio.lowlevel.checkpoint()
            yield page

    async def forget(self, key: str, *, revision: int | None = None) -> None:
        await anyio.lowlevel.checkpoint()
        page = self._pages.get(key)
        if page is not None and (page.ended_at is not None or page.revision == revision):
            del self._pages[key]

    async def prune(self, *, ended_before: datetime) -> int:
        await anyio.lowlevel.checkpoint()
        old = [key for key, page in self._pages.items() if page.ended_at is not None and page.ended_at < ended_before]
        for key in old:
            del self._pages[key]
        return len(old)


def bound(journal: str, there: str | None, namespace: str, way_out: str) -> str:
    """Return the namespace of a journal, which is that of whoever came first."""
    if there is not None and there != namespace:
        raise JournalError(
            f"the journal {journal} belongs to the namespace {there!r}, not to {namespace!r}; "
            f"write Runner(namespace={there!r}), or {way_out}",
            journal=journal,
        )
    return namespace


# ---- one file, several processes -----------------------------------------------------------------------------------

_PATIENCE: Final = 30.0
"""Seconds for which another process may hold the file."""
_APPLICATION_ID: Final = 0x46524A31
"""``FRJ1`` in the header of the file: what tells a journal from any other SQLite database."""
_SCHEMA_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE journal (namespace TEXT NOT NULL);
CREATE TABLE pages (
    key TEXT PRIMARY KEY,
    revision INTEGER NOT NULL,
    number INTEGER NOT NULL,  -- the order in which jobs were accepted
    ended_at TEXT,            -- in UTC, so that texts compare as moments do
    page TEXT NOT NULL
);
CREATE INDEX open_pages ON pages (number) WHERE ended_at IS NULL;
CREATE INDEX ended_pages ON pages (ended_at) WHERE ended_at IS NOT NULL;
"""

_Step = Callable[[sqlite3.Connection], Any]


@attrs.define(eq=False)
class _Ask:
    """One question to the file, and what came of it."""

    step: _Step
    answer: Any = None
    error: Exception | None = None
    done: bool = False
    dropped: bool = False
    """Nobody waits for it any more: not done, if it can still be helped."""


class SqliteJournal(Journal):
    """
    Keeps pages in one SQLite file, for any number of processes of one machine. Safe under SIGKILL and loss of power.

    The file must be on a local disk: SQLite's write-ahead log does not work over a network. What is asked for at the
    same time is written in one transaction, by a worker thread, so that a thousand jobs cost a few writes to the disk.
    """

    def __init__(self, path: str | Path) -> None:
        if not isinstance(path, (str, Path)) or not str(path):
            raise InvalidJob("path", path, "expected the path of a file", "write SqliteJournal('jobs.sqlite')")
        if str(path) == ":memory:":
            raise InvalidJob("path", path, "nothing of it would survive", "use MemoryJournal(), or the path of a file")
        self.path = Path(path).absolute()
        self.name = str(path)
        self._connection: sqlite3.Connection | None = None
        self._busy = threading.Lock()
        """Held by the thread that uses the connection: asyncio's own cancellation leaves it behind at its work."""
        self._asked: deque[_Ask] = deque()

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[None]:
        self._lock = anyio.Lock()  # of this event loop
        self._asked = deque()
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._disconnect)

    async def bind(self, namespace: str) -> None:
        def step(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM journal WHERE false")  # a file that can only be read shows itself here
            row = connection.execute("SELECT namespace FROM journal").fetchone()
            owner = bound(self.name, row[0] if row else None, namespace, "give this namespace a file of its own")
            if row is None:
                connection.execute("INSERT INTO journal VALUES (?)", (owner,))

        await self._do(step)

    async def read(self, key: str) -> Page | None:
        return typing.cast("Page | None", await self._do(lambda connection: self._read(connection, key)))

    async def write(self, page: Page) -> Page:
        written = attrs.evolve(page, revision=page.revision + 1)
        text, ended_at = page.to_json(), _utc(page.ended_at)

        def step(connection: sqlite3.Connection) -> Page:
            if page.revision == 0:
                sql = (
                    "INSERT INTO pages SELECT ?, 1, coalesce(max(number), 0) + 1, ?, ? FROM pages "
                    "WHERE true ON CONFLICT (key) DO NOTHING"
                )
                values: tuple[Any, ...] = (page.key, ended_at, text)
            else:
                sql = "UPDATE pages SET revision = revision + 1, ended_at = ?, page = ? WHERE key = ? AND revision = ?"
                values = (ended_at, text, page.key, page.revision)
            if connection.execute(sql, values).rowcount == 0:
                raise Overtaken(self._read(connection, page.key))
            return written

        return typing.cast("Page", await self._do(step))

    async def open_pages(self) -> AsyncGenerator[Page]:
        after = 0
        while True:
            sql = (
                "SELECT number, key, revision, page FROM pages WHERE ended_at IS NULL AND number > ? "
                "ORDER BY number LIMIT 500"
            )

            def step(connection: sqlite3.Connection, sql: str = sql, after: int = after) -> list[tuple[int, Page]]:
                rows = connection.execute(sql, (after,)).fetchall()
                return [(number, self._parsed(key, revision, text)) for number, key, revision, text in rows]

            found = typing.cast("list[tuple[int, Page]]", await self._do(step))
            for number, page in found:
                after = number
                yield page
            if not found:
                return

    async def forget(self, key: str, *, revision: int | None = None) -> None:
        sql = "DELETE FROM pages WHERE key = ? AND (ended_at IS NOT NULL OR revision = ?)"
        await self._do(lambda connection: connection.execute(sql, (key, revision)))

    async def prune(self, *, ended_before: datetime) -> int:
        sql = "DELETE FROM pages WHERE ended_at < ?"
        before = _utc(ended_before)
        return int(await self._do(lambda connection: connection.execute(sql, (before,)).rowcount))

    def _read(self, connection: sqlite3.Connection, key: str) -> Page | None:
        row = connection.execute("SELECT key, revision, page FROM pages WHERE key = ?", (key,)).fetchone()
        return None if row is None else self._parsed(*row)

    def _parsed(self, key: str, revision: int, text: str) -> Page:
        try:
            return Page.from_json(text, revision=revision)
        except ValueError as exc:
            said = f"the journal {self.name} holds a page of the job {key!r} that cannot be read: {exc}"
            fix = "use the version of fargate_runner that wrote it, or move the file away and start another"
            raise JournalError(f"{said}; {fix}", journal=self.name) from exc

    # ---- one thread, one transaction for all who ask at the same time ----------------------------------------------

    async def _do(self, step: _Step) -> Any:
        """Run *step* in a transaction with whatever else was asked for meanwhile. Done once this returns."""
        self._check_open()
        ask, waiting = _Ask(step), self._asked
        waiting.append(ask)
        try:
            async with self._lock:
                # Cancelled, the one before us may have left its thread at work, and ours among what that does.
                while not ask.done:
                    await anyio.to_thread.run_sync(self._transact, waiting)
        finally:
            ask.dropped = True
        if ask.error is not None:
            raise ask.error
        return ask.answer

    def _transact(self, waiting: deque[_Ask]) -> None:
        """Do what is asked for, in one transaction. For a worker thread, which alone takes from those that wait."""
        with self._busy:
            asked: list[_Ask] = []
            while waiting:
                ask = waiting.popleft()
                if not ask.dropped:
                    asked.append(ask)
            if not asked:
                return
            try:
                self._run(self._connect(), asked)
            except (sqlite3.Error, OSError) as exc:
                for ask in asked:
                    ask.error = self._translated(exc)
            except Exception as exc:  # noqa: BLE001 (raised by everybody who asked)
                for ask in asked:
                    ask.error = exc
            for ask in asked:
                ask.done = True

    def _run(self, connection: sqlite3.Connection, asked: Sequence[_Ask]) -> None:
        with _transaction(connection):
            for ask in asked:
                try:
                    ask.answer = ask.step(connection)
                except (sqlite3.Error, OSError):
                    raise
                except Exception as exc:  # noqa: BLE001 (nothing of it was written; the others are none of its business)
                    ask.error = exc

    def _connect(self) -> sqlite3.Connection:
        if not self._open:
            raise RunnerClosed(f"the journal {self.name} was closed while this was under way")
        if self._connection is None:
            self._check_left_behind()
            # Two threads never use it at once: there is the lock.
            connection = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
            try:
                self._prepare_or_wait(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        with self._busy:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def _check_left_behind(self) -> None:
        """Refuse to begin anew where the file is gone and its write-ahead log is not: SQLite would delete that."""
        log = self.path.with_name(f"{self.path.name}-wal")
        # SQLite takes a file of one byte for an empty one.
        if _size_of(log) > 0 and _size_of(self.path) <= 1:
            said = f"the journal {self.name} is missing or empty, and its write-ahead log {log.name} is not"
            fix = f"restore the file from a copy, or move {log.name} away to start another"
            raise JournalError(f"{said}; {fix}", journal=self.name)

    def _prepare_or_wait(self, connection: sqlite3.Connection) -> None:
        """Several may make the file at once: SQLite then says to some that it is locked, and does not wait."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                return self._prepare(connection)
            except sqlite3.Error as exc:
                if not _is_busy(exc) or time.monotonic() >= until:
                    raise
            time.sleep(random.uniform(0.005, 0.05))  # noqa: S311 (no secret)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # FULL: what was written survives a loss of power, too. In WAL mode that is one fsync for each transaction.
        connection.execute("PRAGMA synchronous = FULL")
        # Another application's database is left as it is. In one view: somebody may be making a journal of it just now.
        connection.execute("BEGIN")
        try:
            self._is_new(connection)
        finally:
            connection.execute("ROLLBACK")
        connection.execute("PRAGMA journal_mode = WAL")
        with _transaction(connection):
            if self._is_new(connection):
                for statement in _SCHEMA.split(";\n"):
                    if statement.strip():
                        connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    def _is_new(self, connection: sqlite3.Connection) -> bool:
        """Whether nobody has written to the file. JournalError: somebody has, and it is no journal that we can read."""
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application == 0 and version == 0 and tables == 0:
            return True
        if application != _APPLICATION_ID:
            said = f"{self.name} is an SQLite database, but not a journal of fargate_runner"
            raise JournalError(f"{said}; name another file", journal=self.name)
        if version > _SCHEMA_VERSION:
            said = f"the journal {self.name} is of version {version}, and this library reads up to {_SCHEMA_VERSION}"
            fix = "update fargate_runner, or name another file"
            raise JournalError(f"{said}; {fix}", journal=self.name)
        return False

    def _translated(self, exc: sqlite3.Error | OSError) -> JournalError:
        code = _code(exc)
        fix = next((fix for start, fix in _FIXES.items() if code.startswith(start)), "check the file and its disk")
        said = f"the journal {self.name} cannot be used: {exc} ({code})"
        error = JournalError(f"{said}; {fix}", journal=self.name, retryable=_is_busy(exc))
        error.__cause__ = exc
        return error


def _size_of(path: Path) -> int:
    """Bytes of a file; 0 if it is not there: the last process to close a journal deletes its write-ahead log."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _code(exc: sqlite3.Error | OSError) -> str:
    return getattr(exc, "sqlite_errorname", None) or type(exc).__name__


def _is_busy(exc: sqlite3.Error | OSError) -> bool:
    return _code(exc).startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Generator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


_FIXES: Final = {
    "SQLITE_NOTADB": "it is no SQLite file, or a damaged one: restore it from a copy, or name another file",
    "SQLITE_CORRUPT": "it is damaged: restore it from a copy, or move it away and name another file",
    "SQLITE_CANTOPEN": "make its directory, allow this user to write there, or name another file",
    "SQLITE_READONLY": "allow this user to write the file and its directory, or name another file",
    "SQLITE_PERM": "allow this user to write the file and its directory, or name another file",
    "SQLITE_FULL": "make room on its disk",
    "SQLITE_IOERR": "check its disk; a journal must not be on a network file system",
    "SQLITE_BUSY": "another process holds it for long; try again, or look who does",
    "SQLITE_LOCKED": "another process holds it for long; try again, or look who does",
}


def _utc(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="microseconds")
