"""What only a table has: lost answers, conditions, sizes, permissions, and its making."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable, Generator
from datetime import timedelta
from typing import Any

import aioboto3
import anyio
import attrs
import pytest
from botocore import xform_name

from fargate_runner import DynamoDBJournal, InvalidJob, JournalError, LogLine
from fargate_runner._journal import Overtaken, Page
from fargate_runner.testing.aws import FakeAws
from fargate_runner.testing.clock import VirtualClock
from tests.ecs.doors import refused
from tests.journal.contract import open_keys
from tests.journal.samples import START, TERMINAL, ended, page
from tests.journal.table import REGION, Session, cut, dynamodb, failed, throttled
from tests.test_house import HEAVY, loaded_by


@pytest.fixture
def anyio_backend(clock: VirtualClock) -> object:
    return "asyncio", {"loop_factory": clock.loop}


@pytest.fixture
def session() -> Generator[Session]:
    with dynamodb() as session:
        yield session


@pytest.fixture
async def make_journal(session: Session) -> Callable[..., DynamoDBJournal]:
    await DynamoDBJournal("jobs", session=session).create_table()
    session.requests.clear()
    return lambda **options: DynamoDBJournal("jobs", session=session, **options)


@pytest.fixture
async def journal(make_journal: Callable[..., DynamoDBJournal]) -> AsyncGenerator[DynamoDBJournal]:
    async with make_journal() as journal:
        await journal.bind("default")
        yield journal


def items(session: Session) -> list[dict[str, Any]]:
    pages = session.dynamodb.get_paginator("scan").paginate(TableName="jobs")
    return [item for page in pages for item in page["Items"]]


def size(item: dict[str, Any]) -> int:
    return sum(len(name) + sum(map(len, value.values())) for name, value in item.items())


async def overwrite(session: Session, name: str) -> Page:
    """Write the page of ``job`` as another machine would."""
    async with DynamoDBJournal("jobs", session=session) as other:
        await other.bind("default")
        there = await other.read("job")
        assert there is not None
        return await other.write(attrs.evolve(there, name=name))


# ---- faults --------------------------------------------------------------------------------------------------------


class TestALostAnswer:
    @pytest.mark.parametrize("error", [cut(), failed()], ids=["cut", "failed"])
    @pytest.mark.parametrize("revision", [0, 1])
    async def test_is_not_another_runner(
        self, journal: DynamoDBJournal, session: Session, error: Exception, revision: int
    ) -> None:
        there = page()
        for _ in range(revision):
            there = await journal.write(there)
        session.add("put_item", error, when="after")

        written = await journal.write(there)

        assert written.revision == revision + 1
        assert await journal.read("job") == written
        assert session.count("put_item") == revision + 2

    async def test_is_told_from_another_by_a_service_that_does_not_return_the_item(
        self, journal: DynamoDBJournal, session: Session
    ) -> None:
        session.add("put_item", cut(), when="after")
        session.add("put_item", change=lambda answer: answer.pop("Item"))

        written = await journal.write(page())

        assert await journal.read("job") == written
        assert session.count("get_item") == 2

    async def test_of_a_page_that_another_has_built_upon_shows_the_others(
        self, journal: DynamoDBJournal, session: Session
    ) -> None:
        session.add("put_item", cut(), when="after")
        session.add("put_item", between=lambda: overwrite(session, "theirs"))

        with pytest.raises(Overtaken) as caught:
            await journal.write(page())

        assert caught.value.page is not None
        assert (caught.value.page.name, caught.value.page.revision) == ("theirs", 2)

    async def test_of_one_who_was_too_late_is_still_too_late(self, journal: DynamoDBJournal, session: Session) -> None:
        first = await journal.write(page())
        theirs = await overwrite(session, "theirs")
        session.add("put_item", cut())

        with pytest.raises(Overtaken) as caught:
            await journal.write(first)

        assert caught.value.page == theirs

    async def test_for_longer_than_we_wait_leaves_a_write_that_can_be_repeated(
        self, journal: DynamoDBJournal, session: Session
    ) -> None:
        session.add("put_item", cut(), when="after")
        session.add("put_item", cut(), times=float("inf"))
        with pytest.raises(JournalError, match="ConnectionClosedError") as caught:
            await journal.write(page())
        session.faults.clear()

        written = await journal.write(page())

        assert caught.value.retryable
        assert caught.value.journal == "jobs"
        assert await journal.read("job") == written
        assert written.revision == 1

    async def test_leaves_no_room_for_another_page_to_pass_as_the_same(
        self, journal: DynamoDBJournal, session: Session
    ) -> None:
        session.add("put_item", cut(), when="after")
        session.add("put_item", cut(), times=float("inf"))
        with pytest.raises(JournalError):
            await journal.write(page(name="first"))
        session.faults.clear()

        with pytest.raises(Overtaken) as caught:
            await journal.write(page(name="second"))

        assert caught.value.page == attrs.evolve(page(name="first"), revision=1)

    async def test_after_a_cancellation_leaves_a_write_that_can_be_repeated(
        self, journal: DynamoDBJournal, session: Session
    ) -> None:
        session.add("put_item", between=anyio.sleep_forever, when="after")
        with anyio.move_on_after(1.0):
            await journal.write(page())

        written = await journal.write(page())

        assert session.count("put_item") == 2
        assert await journal.read("job") == written

    async def test_of_a_read_is_asked_again(self, journal: DynamoDBJournal, session: Session) -> None:
        written = await journal.write(page())
        for operation in ("get_item", "query", "batch_get_item"):
            session.add(operation, cut(), when="after")

        assert await journal.read("job") == written
        assert await open_keys(journal) == ["job"]

    async def test_of_a_prune_counts_all_the_same(self, journal: DynamoDBJournal, session: Session) -> None:
        for number in range(30):
            await journal.write(ended(page(f"job {number}")))
        session.add("delete_item", cut(), when="after", times=7)

        assert await journal.prune(ended_before=START + timedelta(days=1)) == 30

    async def test_of_a_forget_is_no_trouble(self, journal: DynamoDBJournal, session: Session) -> None:
        await journal.write(ended(page()))
        session.add("delete_item", cut(), when="after")

        await journal.forget("job")

        assert await journal.read("job") is None


class TestTrouble:
    @pytest.mark.parametrize("error", [throttled(), failed(), cut()], ids=["throttled", "failed", "cut"])
    @pytest.mark.parametrize("operation", ["put_item", "get_item", "query", "batch_get_item", "delete_item"])
    async def test_that_passes_is_waited_out(
        self, journal: DynamoDBJournal, session: Session, operation: str, error: Exception
    ) -> None:
        session.add(operation, error, times=3)

        written = await journal.write(page())
        assert await journal.read("job") == written
        assert await open_keys(journal) == ["job"]
        await journal.write(ended(written))
        await journal.forget("job")

        assert await journal.read("job") is None
        assert session.count(operation) > 3

    async def test_that_stays_is_an_error_that_may_be_tried_again(
        self, journal: DynamoDBJournal, session: Session
    ) -> None:
        session.add("get_item", failed(), times=float("inf"))

        with pytest.raises(JournalError, match=r"^the journal jobs .*InternalServerError") as caught:
            await journal.read("job")

        assert caught.value.retryable

    @pytest.mark.parametrize("action", ["PutItem", "GetItem", "Query", "BatchGetItem", "DeleteItem"])
    async def test_of_permissions_names_action_and_table(
        self, journal: DynamoDBJournal, session: Session, action: str
    ) -> None:
        await journal.write(page())
        arn = f"arn:aws:dynamodb:{REGION}:123456789012:table/jobs"
        said = (
            f"User: arn:aws:sts::123456789012:assumed-role/jobs/i is not authorized to perform: dynamodb:{action} on "
            f"resource: {arn} because no identity-based policy allows the dynamodb:{action} action"
        )
        session.add(xform_name(action), refused("AccessDeniedException", said))
        calls = {
            "PutItem": lambda: journal.write(page()),
            "GetItem": lambda: journal.read("job"),
            "Query": lambda: open_keys(journal),
            "BatchGetItem": lambda: open_keys(journal),
            "DeleteItem": lambda: journal.forget("job"),
        }

        with pytest.raises(JournalError) as caught:
            await calls[action]()

        assert f"allow dynamodb:{action} on {arn}" in str(caught.value)
        assert (caught.value.journal, caught.value.retryable) == ("jobs", False)

    async def test_of_permissions_names_them_even_if_dynamodb_does_not(
        self, journal: DynamoDBJournal, session: Session
    ) -> None:
        session.add("put_item", refused("AccessDeniedException", "no"))

        with pytest.raises(JournalError, match="it was dynamodb:PutItem on the table jobs"):
            await journal.write(page())

    async def test_of_a_prune_is_raised_by_itself(self, journal: DynamoDBJournal, session: Session) -> None:
        for number in range(30):
            await journal.write(ended(page(f"job {number}")))
        session.add("delete_item", refused("AccessDeniedException", "no"), times=float("inf"))

        with pytest.raises(JournalError, match="dynamodb:DeleteItem"):
            await journal.prune(ended_before=START + timedelta(days=1))

    async def test_of_a_full_namespace_says_what_to_do(self, journal: DynamoDBJournal, session: Session) -> None:
        session.add("put_item", refused("ItemCollectionSizeLimitExceededException", "Collection size exceeded."))

        with pytest.raises(JournalError, match=r"10 GB: prune it, or shorten keep_ended"):
            await journal.write(page())

    async def test_of_the_table_going_away_is_no_empty_journal(
        self, journal: DynamoDBJournal, session: Session
    ) -> None:
        session.dynamodb.delete_table(TableName="jobs")

        for call in (journal.read("job"), open_keys(journal), journal.write(page())):
            with pytest.raises(JournalError, match="there is no table jobs"):
                await call

    async def test_of_an_unknown_region_is_an_error_of_the_journal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
            monkeypatch.delenv(name, raising=False)
        session = Session.__new__(Session)
        session.region_name = None  # type: ignore[assignment]

        with pytest.raises(JournalError, match="set AWS_REGION"):
            async with DynamoDBJournal("jobs", session=session):
                pass


class TestSeveralMachines:
    async def test_of_five_writers_one_wins_though_answers_are_lost(
        self, make_journal: Callable[..., DynamoDBJournal], session: Session
    ) -> None:
        session.add("put_item", cut(), when="after", times=3)
        session.add("put_item", throttled(), times=3)
        won: list[Page] = []
        lost: list[Page | None] = []

        async def work(number: int) -> None:
            async with make_journal() as journal:
                await journal.bind("default")
                try:
                    won.append(await journal.write(page(name=f"machine {number}")))
                except Overtaken as exc:
                    lost.append(exc.page)

        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(work, number)

        assert len(won) == 1
        assert lost == won * 4


# ---- items ---------------------------------------------------------------------------------------------------------


class TestAnItem:
    async def test_of_an_open_job_is_indexed_and_does_not_expire(
        self, journal: DynamoDBJournal, session: Session
    ) -> None:
        await journal.write(page(name="nightly"))

        (item,) = items(session)

        assert item.keys() == {"namespace", "key", "revision", "write", "name", "page", "open_since"}
        assert (item["namespace"], item["key"], item["name"]) == ({"S": "default"}, {"S": "job"}, {"S": "nightly"})
        assert item["revision"] == {"N": "1"}
        assert item["open_since"] == {"S": "2026-11-29T08:30:00.250000+00:00"}

    async def test_of_a_job_that_ended_expires_and_is_not_indexed(
        self, make_journal: Callable[..., DynamoDBJournal], session: Session
    ) -> None:
        async with make_journal(keep_ended=timedelta(days=7)) as journal:
            await journal.bind("default")
            await journal.write(ended(await journal.write(page()), START))

        (item,) = items(session)

        assert "open_since" not in item
        assert item["ended_at"] == {"S": "2026-11-29T08:30:00.250000+00:00"}
        assert item["expires_at"] == {"N": str(int((START + timedelta(days=7)).timestamp()))}

    async def test_may_be_kept_for_ever(self, make_journal: Callable[..., DynamoDBJournal], session: Session) -> None:
        async with make_journal(keep_ended=None) as journal:
            await journal.bind("default")
            await journal.write(ended(page()))

        (item,) = items(session)

        assert "expires_at" not in item

    async def test_is_read_consistently(self, journal: DynamoDBJournal, session: Session) -> None:
        await journal.write(page())
        await journal.read("job")
        await open_keys(journal)
        await journal.prune(ended_before=START)
        session.add("put_item", change=lambda answer: answer.pop("Item"))
        with pytest.raises(Overtaken):
            await journal.write(page())

        reads = [request for operation, request in session.requests if operation in {"get_item", "query"}]
        batches = [request for operation, request in session.requests if operation == "batch_get_item"]

        assert len(reads) == 4
        assert all(request["ConsistentRead"] is True for request in reads)
        assert [request["RequestItems"]["jobs"]["ConsistentRead"] for request in batches] == [True]

    @pytest.mark.parametrize(
        "change",
        [
            {"page": {"B": b"not zlib"}},
            {"page": {"S": "text"}},
            {"page": {"B": b"x\x9c\xab\xae\x05\x00\x01u\x00\xf9"}},  # {}
            {"revision": {"S": "one"}},
        ],
        ids=["not packed", "text", "no page", "no revision"],
    )
    async def test_that_is_no_page_is_an_error_and_not_taken_for_none(
        self, journal: DynamoDBJournal, session: Session, change: dict[str, Any]
    ) -> None:
        await journal.write(page())
        session.dynamodb.put_item(TableName="jobs", Item=items(session)[0] | change)

        with pytest.raises(JournalError, match=r"the journal jobs holds a page of the job 'job' that cannot be read"):
            await journal.read("job")
        with pytest.raises(JournalError, match="cannot be read"):
            await open_keys(journal)

    async def test_of_a_job_that_ends_while_it_is_looked_for_is_not_shown_as_open(
        self, journal: DynamoDBJournal, session: Session
    ) -> None:
        open_page = await journal.write(page("open"))
        over, gone = await journal.write(page("over")), await journal.write(page("gone"))

        async def end() -> None:
            for each in (over, gone):
                await journal.write(ended(each))
            await journal.forget("gone")

        session.add("batch_get_item", between=end)

        assert [each async for each in journal.open_pages()] == [open_page]

    async def test_belongs_to_its_namespace(
        self, make_journal: Callable[..., DynamoDBJournal], journal: DynamoDBJournal
    ) -> None:
        mine = await journal.write(page(name="mine"))
        async with make_journal() as other:
            await other.bind("other")

            theirs = await other.write(page(name="theirs"))

            assert await other.read("job") == theirs
            assert await other.prune(ended_before=START + timedelta(days=9)) == 0
        assert await journal.read("job") == mine
        assert [each async for each in journal.open_pages()] == [mine]


def chatty(seed: int, number: int, characters: int = 32_000) -> Any:
    """An attempt whose last lines can hardly be packed."""
    noise = random.Random(seed + number)
    text = "".join(chr(noise.randrange(0x4E00, 0x9FFF)) for _ in range(characters))
    return attrs.evolve(TERMINAL.attempts[0], number=number, last_lines=(LogLine(text=text),))


class TestALargePage:
    async def test_loses_the_last_lines_of_the_oldest_attempts_first(
        self, journal: DynamoDBJournal, session: Session
    ) -> None:
        attempts = tuple(chatty(1, number) for number in range(1, 11))
        large = attrs.evolve(TERMINAL, key="job", attempts=attempts)

        written = await journal.write(large)

        found = await journal.read("job")
        assert found is not None
        kept = [bool(each.last_lines) for each in found.attempts]
        assert kept == sorted(kept)
        assert 3 <= sum(kept) < 10
        assert found.attempts[-1] == attempts[-1]
        assert [each.outcome for each in found.attempts] == [each.outcome for each in attempts]
        assert written == attrs.evolve(large, revision=1)

    async def test_loses_those_of_the_last_attempt_if_need_be(self, journal: DynamoDBJournal, session: Session) -> None:
        noise = random.Random(3).randbytes(170_000).hex()
        large = attrs.evolve(TERMINAL, key="job", attempts=(chatty(3, 1),), description={"env": {"NOISE": noise}})

        await journal.write(attrs.evolve(large, description={"env": {"NOISE": noise[:200_000]}}))
        fits = await journal.read("job")
        await journal.write(attrs.evolve(large, key="larger", description={"env": {"NOISE": noise + noise[::-1]}}))
        found = await journal.read("larger")

        assert fits is not None
        assert found is not None
        assert fits.attempts[0].last_lines
        assert not found.attempts[0].last_lines

    async def test_that_is_too_large_all_the_same_is_refused_with_its_size(
        self, journal: DynamoDBJournal, session: Session
    ) -> None:
        noise = random.Random(4).randbytes(500_000).hex()
        large = page(description={"env": {"NOISE": noise}})

        with pytest.raises(JournalError, match=r"the job 'job' takes 5\d\d KB.* room for 400; make .* smaller"):
            await journal.write(large)

        assert session.count("put_item") == 0

    async def test_up_to_the_limit_loses_nothing(self, journal: DynamoDBJournal, session: Session) -> None:
        """And nothing is sent that DynamoDB would refuse: an item of more than 400 KB, names of attributes included."""
        attempts = [chatty(5, number) for number in range(1, 5)]
        for number in range(20):
            last = chatty(5, 5, 26_000 + 350 * number)
            await journal.write(attrs.evolve(TERMINAL, key=f"job {number:02}", attempts=(*attempts, last)))

        pages = [await journal.read(f"job {number:02}") for number in range(20)]
        whole = [bool(page and page.attempts[0].last_lines) for page in pages]
        sizes = {item["key"]["S"]: size(item) for item in items(session)}

        assert whole == sorted(whole, reverse=True)
        assert 0 < sum(whole) < 20
        largest = max(sizes.values())
        assert 400_000 < largest <= 409_600
        assert sizes[f"job {sum(whole) - 1:02}"] == largest

    async def test_many_large_pages_are_read_part_by_part(self, journal: DynamoDBJournal, session: Session) -> None:
        for number in range(12):
            await journal.write(
                page(
                    f"{number:02}",
                    accepted_at=START + timedelta(seconds=number),
                    attempts=(chatty(6, number), chatty(7, number)),
                )
            )

        found = await open_keys(journal)

        assert found == [f"{number:02}" for number in range(12)]
        assert session.count("query") > 1

    async def test_keys_that_were_left_out_of_an_answer_are_asked_for_again(
        self, journal: DynamoDBJournal, session: Session
    ) -> None:
        def leave_out(answer: Any) -> None:
            there = answer["Responses"]["jobs"]
            keys = [{name: item[name] for name in ("namespace", "key")} for item in there[1:]]
            answer["UnprocessedKeys"] = {"jobs": {"Keys": keys, "ConsistentRead": True}}
            del there[1:]

        for number in range(5):
            await journal.write(page(f"job {number}", accepted_at=START + timedelta(seconds=number)))
        session.add("batch_get_item", change=leave_out, times=2)

        assert await open_keys(journal) == [f"job {number}" for number in range(5)]
        assert session.count("batch_get_item") == 3


# ---- the table -----------------------------------------------------------------------------------------------------


def plain_table(session: Session, **changes: Any) -> None:
    known: dict[str, Any] = {
        "TableName": "jobs",
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [{"AttributeName": "id", "AttributeType": "S"}],
        "KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}],
    }
    session.dynamodb.create_table(**known | changes)


class TestBind:
    async def test_says_how_to_make_a_table_that_is_not_there(self, session: Session) -> None:
        async with DynamoDBJournal("jobs", session=session) as journal:
            with pytest.raises(
                JournalError, match=r"no table jobs in eu-west-1.*DynamoDBJournal\('jobs'\).create_table"
            ):
                await journal.bind("default")

    async def test_refuses_the_table_of_something_else(self, session: Session) -> None:
        plain_table(session)

        async with DynamoDBJournal("jobs", session=session) as journal:
            with pytest.raises(
                JournalError, match=r"the table jobs is no journal: its keys are id \(S, HASH\).*name another"
            ):
                await journal.bind("default")

    async def test_refuses_a_table_whose_index_is_another(self, session: Session) -> None:
        def schema(sort_key: str) -> list[dict[str, str]]:
            return [
                {"AttributeName": "namespace", "KeyType": "HASH"},
                {"AttributeName": sort_key, "KeyType": "RANGE"},
            ]

        index = {"IndexName": "waiting", "KeySchema": schema("open_since"), "Projection": {"ProjectionType": "ALL"}}
        plain_table(
            session,
            AttributeDefinitions=[
                {"AttributeName": name, "AttributeType": "S"} for name in ("namespace", "key", "open_since")
            ],
            KeySchema=schema("key"),
            LocalSecondaryIndexes=[index],
        )

        async with DynamoDBJournal("jobs", session=session) as journal:
            with pytest.raises(JournalError, match=r"no journal: .* its local indexes \['waiting'\], not"):
                await journal.bind("default")

    @pytest.mark.parametrize(("status", "retryable"), [("CREATING", True), ("DELETING", False)])
    async def test_refuses_a_table_that_is_not_ready(
        self, make_journal: Callable[..., DynamoDBJournal], session: Session, status: str, retryable: bool
    ) -> None:
        session.add("describe_table", change=lambda answer: answer["Table"].update(TableStatus=status))

        async with make_journal() as journal:
            with pytest.raises(JournalError, match=f"the table jobs cannot be used now, it is {status}") as caught:
                await journal.bind("default")

        assert caught.value.retryable is retryable

    async def test_comes_before_everything_else(self, make_journal: Callable[..., DynamoDBJournal]) -> None:
        async with make_journal() as journal:
            for call in (journal.read("job"), journal.write(page()), open_keys(journal), journal.forget("job")):
                with pytest.raises(JournalError, match="belongs to no namespace yet"):
                    await call

    async def test_is_for_as_long_as_the_journal_is_open(self, make_journal: Callable[..., DynamoDBJournal]) -> None:
        journal = make_journal()
        async with journal:
            await journal.bind("default")
            await journal.write(page())

        async with journal:
            await journal.bind("other")

            assert await journal.read("job") is None


class TestCreateTable:
    async def test_makes_what_a_journal_needs(self, session: Session) -> None:
        await DynamoDBJournal("jobs", session=session).create_table()

        table = session.dynamodb.describe_table(TableName="jobs")["Table"]
        assert table["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
        (index,) = table["LocalSecondaryIndexes"]
        assert (index["IndexName"], index["Projection"]) == ("open", {"ProjectionType": "KEYS_ONLY"})
        expiry = session.dynamodb.describe_time_to_live(TableName="jobs")["TimeToLiveDescription"]
        assert expiry == {"TimeToLiveStatus": "ENABLED", "AttributeName": "expires_at"}

    async def test_leaves_a_journal_that_is_there_as_it_is(self, journal: DynamoDBJournal, session: Session) -> None:
        written = await journal.write(page())

        await journal.create_table()
        await DynamoDBJournal("jobs", session=session).create_table()

        assert await journal.read("job") == written
        assert session.count("update_time_to_live") == 0

    async def test_refuses_the_table_of_something_else(self, session: Session) -> None:
        plain_table(session)

        with pytest.raises(JournalError, match="the table jobs is no journal"):
            await DynamoDBJournal("jobs", session=session).create_table()

        assert session.count("update_time_to_live") == 0

    async def test_waits_until_the_table_can_be_used(self, session: Session, clock: VirtualClock) -> None:
        session.add("describe_table", refused("ResourceNotFoundException", "not yet"))
        making = {"TableStatus": "CREATING"}
        session.add("describe_table", change=lambda answer: answer["Table"].update(making), times=20)
        began = clock.time()

        await DynamoDBJournal("jobs", session=session).create_table()

        assert session.count("describe_table") == 22
        assert 20 <= clock.time() - began < 40

    async def test_does_not_wait_for_ever(self, session: Session) -> None:
        making = {"TableStatus": "CREATING"}
        session.add("describe_table", change=lambda answer: answer["Table"].update(making), times=float("inf"))

        with pytest.raises(JournalError, match="could not be used within 5 minutes") as caught:
            await DynamoDBJournal("jobs", session=session).create_table()

        assert caught.value.retryable

    @pytest.mark.parametrize("operation", ["create_table", "update_time_to_live"])
    async def test_survives_a_lost_answer(self, session: Session, operation: str) -> None:
        session.add(operation, cut(), when="after")

        await DynamoDBJournal("jobs", session=session).create_table()

        assert session.count(operation) == 2

    async def test_by_several_at_once_makes_one(self, session: Session) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(DynamoDBJournal("jobs", session=session).create_table)

        assert session.count("create_table") == 3
        assert session.dynamodb.list_tables()["TableNames"] == ["jobs"]

    async def test_does_not_mind_that_another_was_quicker(self, session: Session) -> None:
        wanted = {"Enabled": True, "AttributeName": "expires_at"}

        async def enable() -> None:
            session.dynamodb.update_time_to_live(TableName="jobs", TimeToLiveSpecification=wanted)

        refusal = refused("ValidationException", "TimeToLive is already enabled")
        session.add("update_time_to_live", refusal, between=enable)

        await DynamoDBJournal("jobs", session=session).create_table()

        assert session.count("update_time_to_live") == 1

    async def test_says_which_permission_is_missing(self, session: Session) -> None:
        said = "User: arn:aws:iam::1:user/a is not authorized to perform: dynamodb:CreateTable on resource: x"
        session.add("create_table", refused("AccessDeniedException", said))

        with pytest.raises(JournalError, match="allow dynamodb:CreateTable on x"):
            await DynamoDBJournal("jobs", session=session).create_table()

    async def test_refuses_a_table_that_forgets_by_another_attribute(
        self, make_journal: Callable[..., DynamoDBJournal], session: Session
    ) -> None:
        for enabled, name in ((False, "expires_at"), (True, "ttl")):
            wanted = {"Enabled": enabled, "AttributeName": name}
            session.dynamodb.update_time_to_live(TableName="jobs", TimeToLiveSpecification=wanted)
        session.add("update_time_to_live", refused("ValidationException", "TimeToLive is active on another attribute"))

        with pytest.raises(JournalError, match="active on another attribute"):
            await make_journal().create_table()


class TestSettings:
    @pytest.mark.parametrize("table", ["", "no", "my jobs", "x" * 256, 7, "arn:aws:dynamodb:eu-west-1:1:stream/jobs"])
    def test_a_table_has_a_name(self, table: Any) -> None:
        with pytest.raises(InvalidJob, match="table"):
            DynamoDBJournal(table)

    @pytest.mark.parametrize("table", ["my.fargate_jobs-2", "arn:aws-cn:dynamodb:cn-north-1:123456789012:table/jobs"])
    def test_or_an_arn(self, table: str) -> None:
        assert DynamoDBJournal(table).name == table

    @pytest.mark.parametrize("keep", [timedelta(0), timedelta(days=-1), 30])
    def test_what_ended_is_kept_for_a_time(self, keep: Any) -> None:
        with pytest.raises(InvalidJob, match="keep_ended"):
            DynamoDBJournal("jobs", keep_ended=keep)

    def test_it_loads_no_library_of_aws(self) -> None:
        code = "from fargate_runner import DynamoDBJournal; DynamoDBJournal('jobs', region='eu-west-1')"

        assert not loaded_by(code) & HEAVY


# ---- on the wire ---------------------------------------------------------------------------------------------------


class TestOverHttp:
    """Through real clients and sockets, in real time: our own session with its fast parser, and one of a user's."""

    @pytest.fixture
    def anyio_backend(self) -> object:
        return "asyncio"

    @pytest.fixture
    async def url(self, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[str]:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAFAKE")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fake")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        async with FakeAws().serve() as url:
            yield url

    @pytest.mark.parametrize("make_session", [lambda: None, aioboto3.Session], ids=["ours", "theirs"])
    async def test_pages_are_kept(self, url: str, make_session: Callable[[], Any]) -> None:
        journal = DynamoDBJournal("jobs", session=make_session(), region="us-east-1", endpoint_url=url)
        await journal.create_table()
        async with journal:
            await journal.bind("default")
            written = await journal.write(attrs.evolve(TERMINAL, key="job", ended_at=None))

            assert await journal.read("job") == written
            assert [each async for each in journal.open_pages()] == [written]
            with pytest.raises(Overtaken) as caught:
                await journal.write(attrs.evolve(written, revision=0))
            assert caught.value.page == written
            over = await journal.write(ended(written))
            assert await open_keys(journal) == []
            assert await journal.read("job") == over
            assert await journal.prune(ended_before=START + timedelta(days=1)) == 1
            assert await journal.read("job") is None

    async def test_a_condition_that_failed_brings_the_item_along(self, url: str) -> None:
        journal = DynamoDBJournal("jobs", region="us-east-1", endpoint_url=url)
        await journal.create_table()
        async with journal:
            await journal.bind("default")
            await journal.write(page())
            with pytest.raises(Overtaken):
                await journal.write(page())

            assert journal._api.parser == "fast"
            assert journal._api.stats.calls["dynamodb.PutItem"] == 2
            assert journal._api.stats.calls["dynamodb.GetItem"] == 0
