"""What every journal has to show, whatever it keeps its pages in."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from random import Random
from typing import ClassVar

import anyio
import anyio.lowlevel
import attrs
import pytest

from fargate_runner import JournalError, RunnerClosed
from fargate_runner._journal import Journal, Overtaken, Page
from tests.journal.samples import SAMPLES, START, ended, page

ODD_KEYS = [
    "a",
    "A",
    "nightly/2026-11-29",
    "'; DROP TABLE pages; --",
    "%_*?",
    "\N{PILE OF POO}",
    " ",
    "漢" * 512,
    "x" * 512,
]


async def open_keys(journal: Journal) -> list[str]:
    return [found.key async for found in journal.open_pages()]


async def increment(journal: Journal, key: str) -> None:
    """Count up in the page's name, against whomever."""
    while True:
        there = await journal.read(key)
        assert there is not None
        try:
            await journal.write(attrs.evolve(there, name=str(int(there.name) + 1)))
        except Overtaken:
            continue
        return


class JournalContract:
    """Subclasses have a fixture ``make_journal``: it returns a journal, and each time one of the same pages."""

    many: ClassVar[int] = 1_200
    """Pages, more than the journal reads at once."""

    # ---- one page --------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", SAMPLES)
    async def test_a_page_is_read_as_it_was_written(self, make_journal: Callable[[], Journal], name: str) -> None:
        async with make_journal() as journal:
            await journal.bind("default")

            written = await journal.write(SAMPLES[name])

            assert written == attrs.evolve(SAMPLES[name], revision=1)
            assert await journal.read("nightly/2026-11-29") == written

    async def test_what_was_never_written_is_not_there(self, make_journal: Callable[[], Journal]) -> None:
        async with make_journal() as journal:
            await journal.bind("default")

            assert await journal.read("job") is None
            assert await open_keys(journal) == []

    async def test_each_write_counts(self, make_journal: Callable[[], Journal]) -> None:
        async with make_journal() as journal:
            await journal.bind("default")
            there = page()
            for _ in range(11):
                there = await journal.write(there)

            assert there.revision == 11
            assert await journal.read("job") == there

    @pytest.mark.parametrize("key", ODD_KEYS)
    async def test_any_key_will_do(self, make_journal: Callable[[], Journal], key: str) -> None:
        async with make_journal() as journal:
            await journal.bind("default")
            written = await journal.write(page(key))

            assert await journal.read(key) == written
            assert await open_keys(journal) == [key]
            with pytest.raises(Overtaken):
                await journal.write(page(key))
            await journal.write(ended(written))
            await journal.forget(key)
            assert await journal.read(key) is None

    async def test_keys_that_look_alike_are_different(self, make_journal: Callable[[], Journal]) -> None:
        async with make_journal() as journal:
            await journal.bind("default")
            for key in ODD_KEYS:
                await journal.write(page(key, name=f"of {key}"))

            found = {key: await journal.read(key) for key in ODD_KEYS}

            assert {key: found_page and found_page.name for key, found_page in found.items()} == {
                key: f"of {key}" for key in ODD_KEYS
            }

    # ---- compare and set -------------------------------------------------------------------------------------------

    async def test_a_page_that_is_there_is_not_begun_again(self, make_journal: Callable[[], Journal]) -> None:
        async with make_journal() as journal:
            await journal.bind("default")
            there = await journal.write(page(name="first"))

            with pytest.raises(Overtaken) as caught:
                await journal.write(page(name="second"))

            assert caught.value.page == there
            assert await journal.read("job") == there

    async def test_who_has_not_read_the_last_state_writes_nothing(self, make_journal: Callable[[], Journal]) -> None:
        async with make_journal() as journal:
            await journal.bind("default")
            first = await journal.write(page())
            second = await journal.write(attrs.evolve(first, name="second"))

            with pytest.raises(Overtaken) as caught:
                await journal.write(attrs.evolve(first, name="late"))

            assert caught.value.page == second
            assert await journal.read("job") == second

    async def test_a_page_from_the_future_is_not_written_either(self, make_journal: Callable[[], Journal]) -> None:
        async with make_journal() as journal:
            await journal.bind("default")
            first = await journal.write(page())

            with pytest.raises(Overtaken) as caught:
                await journal.write(attrs.evolve(first, revision=2))

            assert caught.value.page == first

    async def test_a_page_that_is_gone_is_not_written_again(self, make_journal: Callable[[], Journal]) -> None:
        async with make_journal() as journal:
            await journal.bind("default")
            written = await journal.write(ended(page()))
            await journal.forget("job")

            with pytest.raises(Overtaken) as caught:
                await journal.write(written)

            assert caught.value.page is None
            assert await journal.read("job") is None

    @pytest.mark.parametrize("revision", [0, 1])
    async def test_of_five_writers_one_wins(self, make_journal: Callable[[], Journal], revision: int) -> None:
        async with make_journal() as journal:
            await journal.bind("default")
            there = page()
            for _ in range(revision):
                there = await journal.write(there)
            won: list[Page] = []
            lost: list[Page | None] = []

            async def write(number: int) -> None:
                try:
                    won.append(await journal.write(attrs.evolve(there, name=f"writer {number}")))
                except Overtaken as exc:
                    lost.append(exc.page)

            async with anyio.create_task_group() as tasks:
                for number in range(5):
                    tasks.start_soon(write, number)

            assert len(won) == 1
            assert lost == won * 4
            assert await journal.read("job") == won[0]

    async def test_of_five_who_write_the_same_one_wins(self, make_journal: Callable[[], Journal]) -> None:
        async with make_journal() as journal:
            await journal.bind("default")
            outcomes: list[str] = []

            async def write() -> None:
                try:
                    await journal.write(page())
                    outcomes.append("won")
                except Overtaken:
                    outcomes.append("lost")

            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(write)

            assert sorted(outcomes) == ["lost"] * 4 + ["won"]

    async def test_no_increment_is_lost(self, make_journal: Callable[[], Journal]) -> None:
        async with make_journal() as journal:
            await journal.bind("default")
            await journal.write(page(name="0"))

            async def work() -> None:
                for _ in range(10):
                    await increment(journal, "job")

            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(work)

            there = await journal.read("job")
            assert there is not None
            assert (there.name, there.revision) == ("50", 51)

    # ---- all pages -------------------------------------------------------------------------------------------------

    async def test_open_pages_are_those_without_a_final_record_the_oldest_first(
        self, make_journal: Callable[[], Journal]
    ) -> None:
        async with make_journal() as journal:
            await journal.bind("default")
            for number, key in enumerate("dbeca"):
                await journal.write(page(key, accepted_at=START + timedelta(seconds=number)))
            for key in "be":
                there = await journal.read(key)
                assert there is not None
                await journal.write(ended(there))
            there = await journal.read("d")
            assert there is not None
            changed = await journal.write(attrs.evolve(there, name="changed"))

            found = [each async for each in journal.open_pages()]

            assert [each.key for each in found] == ["d", "c", "a"]
            assert found[0] == changed

    async def test_a_page_with_its_final_record_at_once_is_not_open(self, make_journal: Callable[[], Journal]) -> None:
        async with make_journal() as journal:
            await journal.bind("default")
            await journal.write(ended(page()))

            assert await open_keys(journal) == []

    async def test_all_of_many_pages_are_found_while_others_come_and_go(
        self, make_journal: Callable[[], Journal]
    ) -> None:
        async with make_journal() as journal:
            await journal.bind("default")

            async def write(number: int) -> None:
                await journal.write(page(f"job {number}", accepted_at=START + timedelta(seconds=number)))

            async with anyio.create_task_group() as tasks:
                for number in range(self.many):
                    tasks.start_soon(write, number)
            found: list[str] = []
            async for each in journal.open_pages():
                found.append(each.key)
                if len(found) % 100 == 1:  # the page that is being looked at ends, and another begins
                    await journal.write(ended(each))
                    await journal.write(page(f"new {len(found)}", accepted_at=START + timedelta(days=1)))

            old = [key for key in found if key.startswith("job ")]
            assert sorted(old) == sorted(f"job {number}" for number in range(self.many))
            assert len(set(found)) == len(found)

    async def test_reading_the_open_pages_may_be_left_half_way(self, make_journal: Callable[[], Journal]) -> None:
        async with make_journal() as journal:
            await journal.bind("default")
            for key in "abc":
                await journal.write(page(key))

            pages = journal.open_pages()
            await anext(pages)
            await pages.aclose()  # type: ignore[attr-defined]

            assert len(await open_keys(journal)) == 3

    # ---- forgetting ------------------------------------------------------------------------------------------------

    async def test_only_a_job_that_ended_is_forgotten_and_its_key_is_free(
        self, make_journal: Callable[[], Journal]
    ) -> None:
        async with make_journal() as journal:
            await journal.bind("default")
            await journal.write(ended(page("over")))
            running = await journal.write(page("running"))

            for key in ("over", "running", "unknown"):
                await journal.forget(key)

            assert await journal.read("over") is None
            assert await journal.read("running") == running
            again = await journal.write(page("over"))
            assert again.revision == 1
            assert await open_keys(journal) == ["running", "over"] or await open_keys(journal) == ["over", "running"]

    async def test_forget_with_a_revision_drops_an_open_page_that_nobody_wrote_since(
        self, make_journal: Callable[[], Journal]
    ) -> None:
        async with make_journal() as journal:
            await journal.bind("default")
            first = await journal.write(page("withdrawn"))
            other = await journal.write(await journal.write(page("written again")))

            await journal.forget("withdrawn", revision=first.revision)
            await journal.forget("written again", revision=other.revision - 1)

            assert await journal.read("withdrawn") is None
            assert await journal.read("written again") == other

    async def test_prune_forgets_what_ended_before_and_counts_it(self, make_journal: Callable[[], Journal]) -> None:
        async with make_journal() as journal:
            await journal.bind("default")
            await journal.write(page("running", accepted_at=START - timedelta(days=900)))
            for number in range(50):
                await journal.write(ended(page(f"old {number}"), START - timedelta(microseconds=1, days=number)))
            elsewhere = START.astimezone(timezone(timedelta(hours=-9)))
            await journal.write(ended(page("at the moment"), elsewhere))
            await journal.write(ended(page("later"), START + timedelta(microseconds=1)))

            forgotten = await journal.prune(ended_before=START)

            assert forgotten == 50
            left = [key for key in ("running", "old 0", "old 49", "at the moment", "later") if await journal.read(key)]
            assert left == ["running", "at the moment", "later"]
            assert await journal.prune(ended_before=datetime(9000, 1, 1, tzinfo=UTC)) == 2
            assert await open_keys(journal) == ["running"]

    # ---- whose it is, and when -------------------------------------------------------------------------------------

    async def test_it_belongs_to_one_namespace(self, make_journal: Callable[[], Journal]) -> None:
        async with make_journal() as journal:
            await journal.bind("default")
            await journal.bind("default")

            with pytest.raises(JournalError, match=r"'default', not to 'other'.*; .*of its own") as caught:
                await journal.bind("other")

            assert caught.value.journal == journal.name
            await journal.write(page())
            assert await open_keys(journal) == ["job"]

    async def test_it_outlives_its_runner(self, make_journal: Callable[[], Journal]) -> None:
        async with make_journal() as journal:
            await journal.bind("default")
            written = await journal.write(SAMPLES["retried"])

        for again in (journal, make_journal()):
            async with again:
                await again.bind("default")
                assert await again.read(written.key) == written

    # ---- cancellation ----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("seed", range(8))
    async def test_a_cancelled_write_was_done_or_not_and_harms_nobody(
        self, make_journal: Callable[[], Journal], seed: int
    ) -> None:
        random = Random(seed)
        async with make_journal() as journal:
            await journal.bind("default")
            done: set[str] = set()

            async def write(key: str, scope: anyio.CancelScope) -> None:
                with scope:
                    await journal.write(page(key))
                    done.add(key)

            scopes = {f"job {number}": anyio.CancelScope() for number in range(40)}
            cancelled = set(random.sample(sorted(scopes), 20))
            async with anyio.create_task_group() as tasks:
                for key, scope in scopes.items():
                    tasks.start_soon(write, key, scope)
                for key in cancelled:
                    for _ in range(random.choice([0, 0, 1, 2])):
                        await anyio.lowlevel.checkpoint()
                    scopes[key].cancel()

            assert done >= scopes.keys() - cancelled
            there = set(await open_keys(journal))
            assert there >= done
            for key in scopes.keys() - there:
                await journal.write(page(key))
            assert set(await open_keys(journal)) == scopes.keys()


class ClosingContract(JournalContract):
    """Of journals that have something to open and to close."""

    async def test_it_is_used_while_it_is_open(self, make_journal: Callable[[], Journal]) -> None:
        journal = make_journal()
        calls = [
            lambda: journal.bind("default"),
            lambda: journal.read("job"),
            lambda: journal.write(page()),
            lambda: journal.forget("job"),
            lambda: journal.prune(ended_before=START),
            lambda: open_keys(journal),
        ]
        for _ in range(2):  # before, and after
            for call in calls:
                with pytest.raises(RunnerClosed, match="is not open"):
                    await call()
            async with journal:
                assert journal.is_open
                await journal.bind("default")
                with pytest.raises(RuntimeError, match="already"):
                    async with journal:
                        pass
            assert not journal.is_open
