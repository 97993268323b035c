"""A backend and a journal that keep their clients from one opening to the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from fargate_runner import BackendError, DynamoDBJournal, EcsBackend, Runner, RunnerClosed
from fargate_runner.testing.aws import FakeAws, denied
from fargate_runner.testing.clock import VirtualClock
from tests.contract.ecs_words import Words
from tests.ecs.conftest import NETWORK, ROLES
from tests.journal.table import dynamodb

Make = Callable[..., EcsBackend]


async def used(backend: EcsBackend, key: str = "k") -> None:
    async with Runner(backend, on_exit="detach") as runner:
        await runner.submit(Words().exits(0).with_(key=key))


class TestABackend:
    async def test_that_stays_warm_makes_its_clients_once_and_looks_once(
        self, aws: FakeAws, make_backend: Make
    ) -> None:
        session = aws.session()
        backend = make_backend(session=session)
        backend.stays_warm = True

        for key in "abc":
            await used(backend, key)

        kept = session.open_clients
        await backend.cool_down()
        assert (session.opened.count("ecs"), kept > 0, session.open_clients) == (1, True, 0)
        assert aws.calls.count("ecs.DescribeClusters") == aws.calls.count("ecs.DescribeTaskDefinition") == 1
        assert aws.calls.count("ecs.RunTask") == 3

    async def test_that_does_not_leaves_nothing_open(self, aws: FakeAws, make_backend: Make) -> None:
        session = aws.session()
        backend = make_backend(session=session)

        await used(backend)

        assert session.open_clients == 0

    async def test_that_was_cooled_down_begins_anew(self, aws: FakeAws, make_backend: Make) -> None:
        session = aws.session()
        backend = make_backend(session=session)
        backend.stays_warm = True

        await used(backend, "a")
        await backend.cool_down()
        await used(backend, "b")
        await backend.cool_down()

        assert session.opened.count("ecs") == aws.calls.count("ecs.DescribeClusters") == 2
        assert session.open_clients == 0

    async def test_is_not_cooled_down_while_it_is_open(self, aws: FakeAws, make_backend: Make) -> None:
        session = aws.session()
        backend = make_backend(session=session)

        async with Runner(backend, on_exit="detach") as runner:
            await runner.submit(Words().exits(0).with_(key="a"))
            await backend.cool_down()
            open_clients = session.open_clients
            await runner.submit(Words().exits(0).with_(key="b"))

        assert open_clients > 0
        assert session.opened.count("ecs") == 1

    def test_on_another_loop_begins_anew(self, aws: FakeAws, clock: VirtualClock) -> None:
        session = aws.session()
        backend = EcsBackend("jobs", network=NETWORK, roles=ROLES, session=session, region=aws.region)
        backend.stays_warm = True

        for key in "ab":
            with asyncio.Runner(loop_factory=clock.loop) as loop:
                loop.run(used(backend, key))

        assert session.opened.count("ecs") == aws.calls.count("ecs.DescribeClusters") == 2

    async def test_whose_opening_failed_begins_anew(self, aws: FakeAws, clock: VirtualClock) -> None:
        session = aws.session()
        backend = EcsBackend(network=NETWORK, roles=ROLES, session=session, region=aws.region, utcnow=clock.utcnow)
        backend.stays_warm = True
        aws.faults.add(denied("ecs.*"))
        with pytest.raises(BackendError):
            async with backend:
                pass
        aws.faults.rules.clear()

        await used(backend)

        await backend.cool_down()
        assert aws.calls.count("ecs.RunTask") == 1
        assert session.open_clients == 0

    async def test_forgets_what_time_aws_said_it_is_when_it_is_cooled_down(
        self, make_backend: Make, clock: VirtualClock
    ) -> None:
        backend = make_backend()
        backend.stays_warm = True
        await used(backend)
        clock.advance(-timedelta(hours=1).total_seconds())  # the clock stood still, AWS's went on

        await backend.cool_down()

        async with backend:
            assert abs((await backend.ask_time() - clock.utcnow()).total_seconds()) < 2


class TestAJournal:
    async def test_that_stays_warm_makes_its_client_once_and_looks_once(self) -> None:
        with dynamodb() as session:
            await DynamoDBJournal("jobs", session=session).create_table()
            session.requests.clear()
            journal = DynamoDBJournal("jobs", session=session)
            journal.stays_warm = True

            for _ in range(3):
                async with journal:
                    await journal.bind("default")
                    assert await journal.read("k") is None

            looks, reads = session.count("describe_table"), session.count("get_item")
            await journal.cool_down()
            async with journal:
                await journal.bind("default")
            await journal.cool_down()

        assert (looks, reads) == (1, 3)
        assert session.count("describe_table") == 2

    async def test_is_closed_between_openings_however_warm(self) -> None:
        with dynamodb() as session:
            await DynamoDBJournal("jobs", session=session).create_table()
            journal: Any = DynamoDBJournal("jobs", session=session)
            journal.stays_warm = True
            async with journal:
                await journal.bind("default")

            with pytest.raises(RunnerClosed):
                await journal.read("k")
            await journal.cool_down()
