"""What only a file has: damage, permissions, other processes, and being killed in the middle of it."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs
import pytest

from fargate_runner import InvalidJob, JournalError, RunnerClosed, SqliteJournal
from tests.journal.contract import open_keys
from tests.journal.samples import START, page

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


async def fill(path: Path, pages: int = 3) -> None:
    """Leave a journal there, closed."""
    async with SqliteJournal(path) as journal:
        await journal.bind("default")
        async with anyio.create_task_group() as tasks:
            for number in range(pages):
                tasks.start_soon(journal.write, page(f"job {number}", description={"env": {"A": "x" * 500}}))


async def look(journal: SqliteJournal) -> None:
    await journal.bind("default")
    await journal.read("job 1")
    await open_keys(journal)


async def refusal(path: Path, namespace: str = "default") -> JournalError:
    """Return what every use of the journal raises."""
    errors: list[JournalError] = []
    async with SqliteJournal(path) as journal:
        for call in (
            lambda: journal.bind(namespace),
            lambda: journal.read("job 1"),
            lambda: journal.write(page("job 9")),
            lambda: open_keys(journal),
            lambda: journal.forget("job 1"),
            lambda: journal.prune(ended_before=START),
        ):
            with pytest.raises(JournalError) as caught:
                await call()
            errors.append(caught.value)
    assert {str(error) for error in errors} == {str(errors[0])}
    assert errors[0].journal == str(path)
    assert str(path) in str(errors[0])
    return errors[0]


# ---- files that are no journal, or not this one's ------------------------------------------------------------------


class TestAFileThatCannotBeUsed:
    @pytest.mark.parametrize("text", ["hello", "hello " * 1000], ids=["short", "long"])
    async def test_is_not_sqlite(self, path: Path, text: str) -> None:
        path.write_text(text)

        error = await refusal(path)

        assert "SQLITE_NOTADB" in str(error)
        assert "no SQLite file, or a damaged one: restore it from a copy, or name another file" in str(error)
        assert path.read_text() == text

    async def test_belongs_to_another_application_and_is_left_as_it_is(self, path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE pages (key TEXT)")
            connection.commit()
        before = path.read_bytes()

        error = await refusal(path)

        assert "an SQLite database, but not a journal of fargate_runner; name another file" in str(error)
        assert path.read_bytes() == before
        assert [each.name for each in path.parent.iterdir()] == [path.name]

    async def test_belongs_to_an_application_with_a_name_of_its_own(self, path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA application_id = 7")

        assert "not a journal of fargate_runner" in str(await refusal(path))

    async def test_is_of_a_newer_version(self, path: Path) -> None:
        await fill(path)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version = 2")

        error = await refusal(path)

        assert "is of version 2, and this library reads up to 1; update fargate_runner, or name another" in str(error)

    async def test_is_a_directory(self, path: Path) -> None:
        path.mkdir()

        assert "SQLITE_CANTOPEN" in str(await refusal(path))

    async def test_is_in_a_directory_that_is_not_there(self, tmp_path: Path) -> None:
        path = tmp_path / "missing" / "jobs.sqlite"

        error = await refusal(path)

        assert "make its directory, allow this user to write there, or name another file" in str(error)
        assert not path.parent.exists()

    async def test_belongs_to_another_namespace(self, path: Path) -> None:
        await fill(path)

        async with SqliteJournal(path) as journal:
            with pytest.raises(
                JournalError, match=r"Runner\(namespace='default'\), or give .* a file of its own"
            ) as caught:
                await journal.bind("other")

            assert str(path) in str(caught.value)
            assert await open_keys(journal) == ["job 0", "job 1", "job 2"]

    @pytest.mark.parametrize("text", ["{}", "", '{"version": 2}'])
    async def test_holds_a_page_that_cannot_be_read(self, path: Path, text: str) -> None:
        await fill(path)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("UPDATE pages SET page = ? WHERE key = 'job 1'", (text,))
            connection.commit()

        async with SqliteJournal(path) as journal:
            for call in (
                lambda: journal.read("job 1"),
                lambda: open_keys(journal),
                lambda: journal.write(page("job 1")),
            ):
                with pytest.raises(JournalError, match=r"page of the job 'job 1' that cannot be read: .*; use the ver"):
                    await call()
            assert await journal.read("job 0") is not None


class TestADamagedFile:
    @pytest.mark.parametrize("seed", range(10))
    async def test_is_told_and_not_begun_anew(self, path: Path, seed: int) -> None:
        await fill(path, pages=60)
        damaged = bytearray(path.read_bytes())
        assert len(damaged) > 8 * 4096
        start = 4096 * Random(seed).randrange(1, 4)
        damaged[start:] = Random(seed).randbytes(len(damaged) - start)
        path.write_bytes(damaged)

        async with SqliteJournal(path) as journal:
            with pytest.raises(JournalError, match=r"SQLITE_(CORRUPT|NOTADB).*restore it from a copy") as caught:
                await look(journal)

        assert str(path) in str(caught.value)
        assert path.read_bytes()[start:] == damaged[start:]

    @pytest.mark.parametrize("left", [2, 99, 4096, 9000])
    async def test_that_was_cut_off_is_told(self, path: Path, left: int) -> None:
        await fill(path, pages=60)
        path.write_bytes(path.read_bytes()[:left])

        async with SqliteJournal(path) as journal:
            with pytest.raises(JournalError, match=r"SQLITE_(CORRUPT|NOTADB)"):
                await journal.read("job 1")

    @pytest.mark.parametrize("lose", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["missing", "empty"])
    async def test_whose_log_is_left_is_not_begun_anew(self, path: Path, lose: Callable[[Path], Any]) -> None:
        log = path.with_name(f"{path.name}-wal")
        await fill(path)
        log.write_bytes(b"what was written last")
        lose(path)

        error = await refusal(path)

        assert "missing or empty, and its write-ahead log jobs.sqlite-wal is not" in str(error)
        assert "restore the file from a copy, or move jobs.sqlite-wal away" in str(error)
        assert log.read_bytes() == b"what was written last"

    async def test_whose_log_goes_while_it_is_looked_at_is_well(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The last of several processes to close it deletes the log."""
        log, exists = path.with_name(f"{path.name}-wal"), Path.exists
        await fill(path)
        log.touch()

        def exists_no_longer(self: Path) -> bool:
            answer = exists(self)
            log.unlink(missing_ok=True)
            return answer

        monkeypatch.setattr(Path, "exists", exists_no_longer)

        async with SqliteJournal(path) as journal:
            assert await journal.read("job 0") is not None

    async def test_that_is_empty_and_has_no_log_is_a_new_one(self, path: Path) -> None:
        path.touch()

        await fill(path)

        assert path.stat().st_size > 0


# ---- permissions ---------------------------------------------------------------------------------------------------


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of a user who is not root, as whom this process goes on: root may do everything."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        root = os.geteuid()
        nobody = root or 65534
        os.chown(home, nobody, -1)
        os.seteuid(nobody)
        try:
            yield home
        finally:
            os.seteuid(root)
            home.chmod(0o700)


class TestPermissions:
    async def test_a_file_that_may_not_be_read(self, home: Path) -> None:
        await fill(home / "jobs.sqlite")
        (home / "jobs.sqlite").chmod(0)

        error = await refusal(home / "jobs.sqlite")

        assert "SQLITE_CANTOPEN" in str(error)
        assert "allow this user to write there" in str(error)

    async def test_a_file_that_may_not_be_written(self, home: Path) -> None:
        await fill(home / "jobs.sqlite")
        (home / "jobs.sqlite").chmod(0o400)

        async with SqliteJournal(home / "jobs.sqlite") as journal:
            for call in (
                lambda: journal.bind("default"),
                lambda: journal.write(page("job 9")),
                lambda: journal.forget("job 1"),
                lambda: journal.prune(ended_before=START),
            ):
                with pytest.raises(JournalError, match="SQLITE_READONLY") as caught:
                    await call()

                assert str(home / "jobs.sqlite") in str(caught.value)
                assert "allow this user to write the file and its directory, or name another" in str(caught.value)

    async def test_a_directory_that_may_not_be_written(self, home: Path) -> None:
        home.chmod(0o500)

        error = await refusal(home / "jobs.sqlite")

        assert "make its directory, allow this user to write there" in str(error)

    async def test_a_file_in_a_directory_that_may_not_be_written(self, home: Path) -> None:
        await fill(home / "jobs.sqlite")
        home.chmod(0o500)

        error = await refusal(home / "jobs.sqlite")

        assert "allow this user to write" in str(error)

    async def test_once_allowed_the_same_journal_goes_on(self, home: Path) -> None:
        await fill(home / "jobs.sqlite")
        (home / "jobs.sqlite").chmod(0)
        async with SqliteJournal(home / "jobs.sqlite") as journal:
            with pytest.raises(JournalError):
                await journal.read("job 1")
            (home / "jobs.sqlite").chmod(0o600)

            assert await journal.read("job 1") is not None


class TestTheDisk:
    async def test_that_is_full_fails_what_does_not_fit_and_nothing_else(self, path: Path) -> None:
        await fill(path)
        async with SqliteJournal(path) as journal:
            there = await journal.read("job 0")
            assert there is not None
            assert journal._connection is not None
            (used,) = journal._connection.execute("PRAGMA page_count").fetchone()
            journal._connection.execute(f"PRAGMA max_page_count = {used}")
            large = {"env": {"A": "x" * 100_000}}

            with pytest.raises(JournalError, match=r"SQLITE_FULL\); make room on its disk") as caught:
                await journal.write(attrs.evolve(there, description=large))

            assert str(path) in str(caught.value)
            assert await journal.read("job 0") == there
            journal._connection.execute("PRAGMA max_page_count = 1000000")
            written = await journal.write(attrs.evolve(there, description=large))
            assert await journal.read("job 0") == written

    async def test_a_file_that_another_process_holds_may_be_tried_again(self, path: Path) -> None:
        await fill(path)
        async with SqliteJournal(path) as journal:
            await journal.bind("default")
            assert journal._connection is not None
            journal._connection.execute("PRAGMA busy_timeout = 0")
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")

                with pytest.raises(JournalError, match=r"SQLITE_BUSY.*another process holds it") as caught:
                    await journal.write(page("job 9"))

                assert caught.value.retryable
                other.execute("COMMIT")
            assert (await journal.write(page("job 9"))).revision == 1

    async def test_it_holds_what_was_written_even_without_power(self, path: Path) -> None:
        async with SqliteJournal(path) as journal:
            await journal.bind("default")
            assert journal._connection is not None

            (synchronous,) = journal._connection.execute("PRAGMA synchronous").fetchone()
            (mode,) = journal._connection.execute("PRAGMA journal_mode").fetchone()

        assert (synchronous, mode) == (2, "wal")  # 2: FULL

    async def test_nothing_is_left_beside_the_file_once_it_is_closed(self, path: Path) -> None:
        await fill(path)

        assert [each.name for each in path.parent.iterdir()] == [path.name]


# ---- many at once --------------------------------------------------------------------------------------------------


class TestGroupCommit:
    async def test_a_thousand_writes_at_once_take_few_transactions(self, path: Path) -> None:
        async with SqliteJournal(path) as journal:
            await journal.bind("default")
            assert journal._connection is not None
            statements: list[str] = []
            journal._connection.set_trace_callback(statements.append)

            async with anyio.create_task_group() as tasks:
                for number in range(1000):
                    tasks.start_soon(journal.write, page(f"job {number}"))

            assert len(await open_keys(journal)) == 1000
        assert sum(statement.startswith("INSERT") for statement in statements) == 1000
        assert statements.count("COMMIT") < 10

    async def test_who_is_overtaken_takes_nobody_along(self, path: Path) -> None:
        async with SqliteJournal(path) as journal:
            await journal.bind("default")
            await journal.write(page("taken"))
            outcomes: dict[str, str] = {}

            async def write(key: str) -> None:
                try:
                    await journal.write(page(key))
                    outcomes[key] = "written"
                except Exception as exc:
                    outcomes[key] = type(exc).__name__

            async with anyio.create_task_group() as tasks:
                for key in ("a", "taken", "b", "half of a \ud83d pair", "c"):
                    tasks.start_soon(write, key)

            assert outcomes.pop("half of a \ud83d pair") == "UnicodeEncodeError"
            assert outcomes == {"a": "written", "taken": "Overtaken", "b": "written", "c": "written"}
            assert sorted(await open_keys(journal)) == ["a", "b", "c", "taken"]


class TestCancelled:
    async def test_one_that_was_about_to_write_for_all_leaves_the_others_theirs(self, path: Path) -> None:
        async with SqliteJournal(path) as journal:
            await journal.bind("default")
            limiter = anyio.to_thread.current_default_thread_limiter()
            held = limiter.total_tokens
            written: dict[str, Any] = {}
            first = anyio.CancelScope()

            async def write(key: str, scope: anyio.CancelScope) -> None:
                with scope:
                    written[key] = await journal.write(page(key))

            for _ in range(int(held)):  # no thread is free
                await limiter.acquire_on_behalf_of(object())
            borrowers = limiter.statistics().borrowers
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(write, "first", first)
                tasks.start_soon(write, "second", anyio.CancelScope())
                await anyio.wait_all_tasks_blocked()
                first.cancel()
                await anyio.wait_all_tasks_blocked()
                for borrower in borrowers:
                    limiter.release_on_behalf_of(borrower)

            assert written.keys() == {"second"}
            assert await journal.read("second") == written["second"]
            assert await journal.read("first") is None

    async def test_by_asyncio_it_leaves_its_thread_behind_and_nobody_stumbles_over_it(self, path: Path) -> None:
        """`asyncio.timeout` and ``task.cancel()`` do not wait for a worker thread as anyio's scopes do."""
        async with SqliteJournal(path) as journal:
            await journal.bind("default")
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")  # the thread waits for this one
                first = asyncio.create_task(journal.write(page("first")))
                while not journal._busy.locked() or journal._asked:
                    await anyio.lowlevel.checkpoint()
                first.cancel()
                await asyncio.wait([first])
                later = [asyncio.create_task(journal.write(page(key))) for key in ("second", "third")]
                await anyio.wait_all_tasks_blocked()
                other.execute("COMMIT")

            written = await asyncio.gather(*later)

            assert first.cancelled()
            assert [each.key for each in written] == ["second", "third"]
            assert sorted(await open_keys(journal)) == ["first", "second", "third"]

    async def test_leaving_waits_for_a_thread_that_was_left_behind(self, path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
            async with SqliteJournal(path) as journal:
                await journal.bind("default")
                other.execute("BEGIN IMMEDIATE")
                first = asyncio.create_task(journal.write(page("first")))
                while not journal._busy.locked() or journal._asked:
                    await anyio.lowlevel.checkpoint()
                first.cancel()
                await asyncio.wait([first])
                threading.Thread(target=other.execute, args=("COMMIT",)).start()

            assert journal._connection is None
            async with journal:
                assert await open_keys(journal) == ["first"]

    async def test_who_still_asks_while_it_closes_is_told(self, path: Path) -> None:
        journal = SqliteJournal(path)
        errors: list[RunnerClosed] = []

        async def write() -> None:
            try:
                await journal.write(page())
            except RunnerClosed as exc:
                errors.append(exc)

        async with anyio.create_task_group() as tasks:
            async with journal:
                await journal.bind("default")
                await journal._lock.acquire()  # somebody else's turn
                tasks.start_soon(write)
                await anyio.wait_all_tasks_blocked()
            journal._lock.release()

        assert [str(error) for error in errors] == [f"the journal {path} was closed while this was under way"]
        assert journal._connection is None


# ---- other processes -----------------------------------------------------------------------------------------------


@pytest.fixture
def start() -> Generator[Callable[..., subprocess.Popen[str]]]:
    programs: list[subprocess.Popen[str]] = []

    def start(*words: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.journal.programs", *map(str, words)]
        program = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        programs.append(program)
        return program

    try:
        yield start
    finally:
        for program in programs:
            program.kill()
            program.communicate()


def read_line(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    return program.stdout.readline().strip()


def write_line(program: subprocess.Popen[str], words: str) -> None:
    assert program.stdin is not None
    program.stdin.write(f"{words}\n")
    program.stdin.flush()


class TestProcesses:
    async def test_a_file_that_others_make_just_now_is_waited_for(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answers = ["database is locked"] * 3

        class Crowded(sqlite3.Connection):
            """Where several turn on the write-ahead log at once, SQLite refuses all but one of them, at once."""

            def execute(self, sql: str, *words: Any) -> sqlite3.Cursor:
                if sql == "PRAGMA journal_mode = WAL" and answers:
                    error = sqlite3.OperationalError(answers.pop())
                    error.sqlite_errorname = "SQLITE_BUSY"
                    raise error
                return super().execute(sql, *words)

        monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Crowded))

        await fill(path, pages=1)

        assert answers == []
        async with SqliteJournal(path) as journal:
            assert await journal.read("job 0") is not None

    async def test_no_increment_of_several_is_lost(self, path: Path, start: Callable[..., Any]) -> None:
        programs = [start("count", path, 50) for _ in range(4)]
        assert [read_line(program) for program in programs] == ["ready"] * 4
        for program in programs:
            write_line(program, "go")

        codes = [program.wait(timeout=100) for program in programs]

        assert codes == [0] * 4
        async with SqliteJournal(path) as journal:
            there = await journal.read("job")
        assert there is not None
        assert (there.name, there.revision) == ("200", 201)

    @pytest.mark.sweep
    async def test_what_was_acknowledged_survives_a_kill_at_any_moment(
        self, path: Path, start: Callable[..., Any]
    ) -> None:
        random = Random(1)
        nursery = start("nursery", path)
        acknowledged: dict[str, int] = {}
        cut_off = 0
        for life in range(60):
            write_line(nursery, f"life {life}")
            child, lines = 0, random.choice([0, 1, 5, 20, 100])
            while not child or lines:
                line = read_line(nursery)
                if line.startswith("pid "):
                    child = int(line.removeprefix("pid "))
                else:
                    key, _, revision = line.rpartition(" ")
                    acknowledged[key] = int(revision)
                    lines -= lines > 0
            for _ in range(random.randrange(3000)):  # it goes on meanwhile
                pass
            os.kill(child, signal.SIGKILL)
            while (line := read_line(nursery)) != "gone":
                key, _, revision = line.rpartition(" ")
                acknowledged[key] = int(revision)

            async with SqliteJournal(path) as journal:
                await journal.bind("default")
                there = {each.key: each.revision async for each in journal.open_pages()}
            missing = {key for key, revision in acknowledged.items() if there.get(key, 0) < revision}
            assert not missing
            cut_off += len(there) > len(acknowledged)

        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert len(acknowledged) > 100
        assert cut_off > 0  # some were killed between the write and its acknowledgement


class TestSettings:
    @pytest.mark.parametrize("path", ["", None, 7, b"jobs.sqlite"])
    def test_it_needs_the_path_of_a_file(self, path: Any) -> None:
        with pytest.raises(InvalidJob, match="SqliteJournal"):
            SqliteJournal(path)

    def test_memory_is_not_a_file(self) -> None:
        with pytest.raises(InvalidJob, match="MemoryJournal"):
            SqliteJournal(":memory:")

    async def test_a_relative_path_stays_where_it_was(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        journal = SqliteJournal("jobs.sqlite")
        monkeypatch.chdir("/")

        async with journal:
            await journal.bind("default")

        assert (tmp_path / "jobs.sqlite").exists()
        assert journal.name == "jobs.sqlite"
