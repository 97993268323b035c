"""The ECS backend as a whole, over the fake AWS in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import anyio
import pytest

from fargate_runner import (
    Capacity,
    EcsBackend,
    EcsOptions,
    Identity,
    InvalidJob,
    Job,
    JobFailed,
    KeyConflict,
    Kind,
    LaunchRejected,
    PlacementRefused,
    Retry,
    Runner,
    Secret,
    Sidecar,
    TaskRef,
)
from fargate_runner.testing.aws import ContainerRun, ContainerScript, FakeAws, Fault
from tests.contract.ecs_words import IMAGE, Words
from tests.ecs.conftest import NETWORK

Make = Callable[..., EcsBackend]


def identity(key: str = "k", attempt: int = 1, placement: int = 1) -> Identity:
    return Identity(namespace="tests", key=key, attempt=attempt, placement=placement)


async def launched(backend: EcsBackend, job: Job, **who: Any) -> TaskRef:
    return await backend.submit(await backend.prepare(job, identity(**who)))


def calls(aws: FakeAws, operation: str) -> list[dict[str, Any]]:
    """The requests of *operation* that came in, in order."""
    return [dict(call.request) for call in aws.calls if call.called.endswith(f".{operation}")]


class TestTaskDefinitions:
    async def test_fifty_identical_submits_at_once_register_one(self, make_backend: Make, aws: FakeAws) -> None:
        async with make_backend() as backend, anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(lambda n=number: launched(backend, Words().exits(), key=f"k{n}"))

        assert len(calls(aws, "RegisterTaskDefinition")) == 1
        assert aws.calls.count("ecs.RunTask", "ok") == 50

    async def test_another_process_finds_what_the_first_registered(self, make_backend: Make, aws: FakeAws) -> None:
        for number in range(2):
            async with make_backend() as backend:
                await launched(backend, Words().exits(), key=f"k{number}")

        assert len(calls(aws, "RegisterTaskDefinition")) == 1

    @pytest.mark.parametrize(
        "change",
        [
            {"command": ["exits", "1"]},
            {"env": {"A": "1"}},
            {"memory_gib": 2},
            {"vcpu": 4},
            {"ephemeral_storage_gib": 50},
            {"tags": {"a": "b"}},
            {"timeout": timedelta(hours=1)},
        ],
        ids=str,
    )
    async def test_what_a_launch_can_override_needs_no_other(
        self, make_backend: Make, aws: FakeAws, change: dict[str, Any]
    ) -> None:
        async with make_backend() as backend:
            await launched(backend, Words().exits())
            await launched(backend, Words().exits().with_(**change), key="other")

        assert len(calls(aws, "RegisterTaskDefinition")) == 1

    @pytest.mark.parametrize(
        "change",
        [
            {"image": "registry.example/scripted:2"},
            {"entry_point": ["sh"]},
            {"working_directory": "/srv"},
            {"stop_timeout": timedelta(seconds=60)},
            {"architecture": "ARM64"},
            {"container_name": "worker"},
            {"secrets": {"A": "arn:aws:secretsmanager:us-east-1:123456789012:secret:a-AbCdEf"}},
            {"sidecars": [Sidecar(name="side", image=IMAGE, command=["exits", "0"])]},
            {"ecs": EcsOptions(user="nobody")},
        ],
        ids=str,
    )
    async def test_what_it_cannot_override_needs_another(
        self, make_backend: Make, aws: FakeAws, change: dict[str, Any]
    ) -> None:
        async with make_backend() as backend:
            await backend.prepare(Words().exits(), identity())
            await backend.prepare(Words().exits().with_(**change), identity("other"))

        assert len(calls(aws, "RegisterTaskDefinition")) == 2

    async def test_one_that_exists_is_run_as_it_is(self, make_backend: Make, aws: FakeAws) -> None:
        async with make_backend() as backend:
            await backend.prepare(Words().exits(), identity())
            (registered,) = calls(aws, "RegisterTaskDefinition")
            job = Job(command=["prints", "hello"], ecs=EcsOptions(task_definition=registered["family"]))

            async with Runner(backend) as runner:
                result = await runner.run(job)

        assert [str(line) for line in result.last_lines] == ["hello"]
        assert len(calls(aws, "RegisterTaskDefinition")) == 1

    async def test_one_that_does_not_exist_is_refused_before_the_launch(self, make_backend: Make) -> None:
        async with make_backend() as backend:
            with pytest.raises(InvalidJob, match="nightly:3"):
                await backend.prepare(Job(ecs=EcsOptions(task_definition="nightly:3")), identity())

    async def test_one_that_was_deregistered_meanwhile_is_registered_again(
        self, make_backend: Make, aws: FakeAws
    ) -> None:
        async with make_backend() as backend, Runner(backend) as runner:
            await runner.run(Words().exits())
            (sent, *_) = calls(aws, "RunTask")
            await aws.call("ecs", "DeregisterTaskDefinition", {"taskDefinition": sent["taskDefinition"]})

            result = await runner.run(Words().exits())

        assert result.succeeded
        assert len(calls(aws, "RegisterTaskDefinition")) == 2


class TestCapacity:
    async def test_a_ladder_is_climbed_one_rung_a_launch(self, make_backend: Make, aws: FakeAws) -> None:
        ladder = [Capacity.spot(), Capacity.spot(), Capacity.fargate()]
        backend = make_backend(capacity=ladder)

        async with backend, Runner(backend) as runner:
            handle = await runner.submit(Words().exits(1).with_(retry=Retry(failures=3)))
            await handle.wait()

        used = [
            sent.get("launchType") or sent["capacityProviderStrategy"][0]["capacityProvider"]
            for sent in calls(aws, "RunTask")
        ]
        assert used == ["FARGATE_SPOT", "FARGATE_SPOT", "FARGATE", "FARGATE"]

    async def test_each_placement_tries_another_subnet_first(self, make_backend: Make) -> None:
        async with make_backend() as backend:
            launches = [await backend.prepare(Words().exits(), identity(placement=n)) for n in (1, 2, 3)]

        first = [
            launch.request["run_task"]["networkConfiguration"]["awsvpcConfiguration"]["subnets"][0]
            for launch in launches
        ]
        assert first[0] != first[1]
        assert first[0] == first[2]

    async def test_out_of_memory_grows_by_override_alone(self, make_backend: Make, aws: FakeAws) -> None:
        def greedy(container: ContainerRun) -> ContainerScript:
            return ContainerScript(out_of_memory=container.environment["FARGATE_RUNNER_ATTEMPT"] != "3")

        aws.world.script = greedy
        async with make_backend() as backend, Runner(backend) as runner:
            result = await runner.run(Job(image=IMAGE, retry=Retry(out_of_memory=2)))

        assert [attempt.memory_gib for attempt in result.attempts] == [0.5, 1, 2]
        assert [attempt.outcome.kind for attempt in result.attempts[:2]] == [Kind.OUT_OF_MEMORY] * 2
        assert len(calls(aws, "RegisterTaskDefinition")) == 1


class TestLargeInputs:
    async def test_two_hundred_kilobytes_arrive_by_s3(self, make_backend: Make, aws: FakeAws) -> None:
        arrived: dict[str, str] = {}

        def remember(container: ContainerRun) -> ContainerScript:
            arrived.update(container.environment)
            return ContainerScript()

        aws.world.script = remember
        payload = {f"PART_{n}": f"{n}" * 50_000 for n in range(4)}
        backend = make_backend(spill_to="s3://payloads/jobs")
        await aws.call("s3", "CreateBucket", {"Bucket": "payloads"})

        async with backend, Runner(backend) as runner:
            result = await runner.run(Job(image=IMAGE, env=payload))

        assert result.succeeded
        assert {name: arrived[name] for name in payload} == payload

    async def test_twenty_kilobytes_arrive_by_a_definition_of_their_own(self, make_backend: Make, aws: FakeAws) -> None:
        async with make_backend() as backend, Runner(backend) as runner:
            result = await runner.run(Words().says("prints", "x" * 20_000))

        assert [str(line)[:10] for line in result.last_lines] == ["x" * 10]

    async def test_what_fits_nowhere_is_refused_with_the_size_of_each_field(
        self, make_backend: Make, aws: FakeAws
    ) -> None:
        job = Words().says("prints", "x" * 100_000).with_(env={"SMALL": "1"})

        async with make_backend() as backend:
            with pytest.raises(InvalidJob, match=r"command: 100,\d\d\d") as caught:
                await backend.prepare(job, identity())

        assert "spill_to" in caught.value.fix
        assert calls(aws, "RunTask") == []

    async def test_a_large_job_is_found_again(self, make_backend: Make, aws: FakeAws) -> None:
        job = Words().says("prints", "x" * 20_000)

        async with make_backend() as backend:
            await launched(backend, job)
            (found,) = await backend.find("tests", "k")

        assert found.description == job.describe()


class TestSecrets:
    async def test_a_value_is_refused_where_it_could_be_kept_nowhere(self, make_backend: Make, aws: FakeAws) -> None:
        async with make_backend() as backend:
            with pytest.raises(InvalidJob, match="secret_prefix") as caught:
                await backend.prepare(Words().exits().with_(secrets={"A": Secret("canary")}), identity())

        assert "canary" not in str(caught.value)

    async def test_a_value_is_in_no_request_but_the_one_that_stores_it(self, make_backend: Make, aws: FakeAws) -> None:
        backend = make_backend(secret_prefix="/jobs")

        async with backend, Runner(backend) as runner:
            await runner.run(Words().prints_variable("A").with_(secrets={"A": Secret("canary")}))

        holding = {call.called for call in aws.calls if "canary" in repr(call.request)}
        assert holding == {"ssm.PutParameter"}

    async def test_a_value_is_removed_when_its_job_is_forgotten(self, make_backend: Make, aws: FakeAws) -> None:
        backend = make_backend(secret_prefix="/jobs")

        async with backend, Runner(backend) as runner:
            await runner.run(Words().exits().with_(secrets={"A": Secret("canary")}))

        (put,) = calls(aws, "PutParameter")
        (deleted,) = calls(aws, "DeleteParameter")
        assert put["Name"] == deleted["Name"]


class TestLaunching:
    @pytest.mark.parametrize("when", ["before", "after"])
    async def test_a_lost_answer_starts_one_task(self, make_backend: Make, aws: FakeAws, when: Any) -> None:
        aws.faults.add(Fault(match="ecs.RunTask", cut=True, when=when))

        async with make_backend() as backend, Runner(backend) as runner:
            result = await runner.run(Words().exits())

        assert result.succeeded
        assert len(aws.world.tasks) == 1

    async def test_a_refused_placement_is_asked_again_with_another_token(
        self, make_backend: Make, aws: FakeAws
    ) -> None:
        aws.world.capacity.out("FARGATE", times=3)

        async with make_backend() as backend, Runner(backend) as runner:
            result = await runner.run(Words().exits())

        tokens = [sent["clientToken"] for sent in calls(aws, "RunTask")]
        assert len(set(tokens)) == 4
        assert len(result.attempts) == 1

    async def test_a_token_that_started_another_job_is_a_conflict(self, make_backend: Make) -> None:
        async with make_backend() as backend:
            await launched(backend, Words().waits())

            with pytest.raises(KeyConflict) as caught:
                await launched(backend, Words().waits().with_(env={"A": "1"}, memory_gib=2))

        assert caught.value.difference == ("env", "size")

    async def test_missing_permission_names_the_action(self, make_backend: Make, aws: FakeAws) -> None:
        said = (
            "User: arn:aws:iam::123456789012:user/me is not authorized to perform: iam:PassRole on resource: "
            "arn:aws:iam::123456789012:role/execution because no identity-based policy allows the iam:PassRole action"
        )
        aws.faults.add(Fault(match="ecs.RunTask", code="AccessDeniedException", message=said))

        async with make_backend() as backend:
            with pytest.raises(LaunchRejected, match=r"iam:PassRole.*role/execution"):
                await launched(backend, Words().exits())

    async def test_a_wrong_cluster_is_told_before_the_launch(
        self, make_backend: Make, aws: FakeAws, clock: Any
    ) -> None:
        backend = EcsBackend("no-such", network=NETWORK, session=aws.session(), region=aws.region, utcnow=clock.utcnow)

        async with backend:
            with pytest.raises(LaunchRejected, match="no-such"):
                await launched(backend, Words().exits())

        assert calls(aws, "RunTask") == []

    async def test_a_quota_that_is_used_up_is_no_failure(self, make_backend: Make, aws: FakeAws) -> None:
        said = "You\u2019ve reached the limit on the number of vCPUs you can run concurrently"
        aws.world.capacity.out("FARGATE", times=1, reason=said)

        async with make_backend() as backend:
            with pytest.raises(PlacementRefused, match="vCPU"):
                await launched(backend, Words().exits())


class TestFailures:
    async def test_a_failure_says_where_to_look(self, make_backend: Make, aws: FakeAws) -> None:
        async with make_backend() as backend, Runner(backend) as runner:
            with pytest.raises(JobFailed) as caught:
                await runner.run(Words().unstartable())

        (attempt,) = caught.value.result.attempts
        told = f"{attempt.outcome.detail} {attempt.outcome.advice} {attempt.outcome.proof.evidence}"
        assert attempt.address is not None
        assert attempt.address in told
        assert "console.aws.amazon.com" in told
        assert "request" in told

    async def test_a_task_that_vanished_is_lost_and_not_a_success(self, make_backend: Make, aws: FakeAws) -> None:
        async with make_backend() as backend:
            ref = await launched(backend, Words().exits())
        await anyio.sleep(3 * 3600)

        async with make_backend() as backend:
            end = await backend.observe(ref)

        assert end.cause is not None
        assert end.cause.value == "vanished"


class TestDoors:
    async def test_there_is_one_client_for_each_service(self, make_backend: Make, aws: FakeAws) -> None:
        session = aws.session()
        backend = make_backend(session=session)

        async with backend, Runner(backend) as runner:
            async for _ in runner.map([Words().prints("a") for _ in range(30)]):
                pass

        assert sorted(session.opened) == ["ecs", "logs"]
        assert session.open_clients == 0
