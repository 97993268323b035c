"""The contract on every journal that there is."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import ClassVar

import pytest

from fargate_runner import DynamoDBJournal, Journal, MemoryJournal, SqliteJournal
from fargate_runner.testing.clock import VirtualClock
from tests.journal.contract import ClosingContract, JournalContract
from tests.journal.table import dynamodb


class TestMemoryJournal(JournalContract):
    @pytest.fixture
    def make_journal(self) -> Callable[[], Journal]:
        journal = MemoryJournal()
        return lambda: journal


class TestSqliteJournal(ClosingContract):
    @pytest.fixture
    def make_journal(self, tmp_path: Path) -> Callable[[], Journal]:
        return lambda: SqliteJournal(tmp_path / "jobs.sqlite")


class TestDynamoDBJournal(ClosingContract):
    many: ClassVar[int] = 250

    @pytest.fixture
    def anyio_backend(self, clock: VirtualClock) -> object:
        return "asyncio", {"loop_factory": clock.loop}

    @pytest.fixture
    async def make_journal(self) -> AsyncGenerator[Callable[[], Journal]]:
        with dynamodb() as session:
            await DynamoDBJournal("jobs", session=session).create_table()
            yield lambda: DynamoDBJournal("jobs", session=session)
