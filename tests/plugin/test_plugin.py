"""The pytest plugin, as the suite of somebody who uses it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.plugin.suite import Suite

pytest_plugins = ["pytester"]


class TestWhenNobodyUsesIt:
    def test_it_loads_no_library(self) -> None:
        script = (
            "import sys, pytest; before = set(sys.modules); import fargate_runner.testing.plugin;"
            "print(*set(sys.modules) - before)"
        )
        loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout

        assert {name.partition(".")[0] for name in loaded.split()} == {"fargate_runner"}

    def test_other_tests_run_as_before(self, suite: Suite) -> None:
        suite.conftest("")

        result = suite.run("def test_something() -> None:\n    pass\n", "--anyio-mode=strict")

        result.assert_outcomes(passed=1)

    def test_async_tests_keep_their_loop(self, suite: Suite) -> None:
        suite.conftest("")

        result = suite.run(
            """
            import asyncio

            import pytest


            @pytest.mark.parametrize("anyio_backend", ["asyncio"])
            async def test_the_loop_is_an_ordinary_one() -> None:
                assert asyncio.get_running_loop().time() > 0
            """
        )

        result.assert_outcomes(passed=1)

    def test_a_suite_without_anyios_plugin_runs(self, suite: Suite) -> None:
        suite.conftest("")
        suite.ini("[pytest]\nfilterwarnings = error\n")

        result = suite.run("def test_something(virtual_clock) -> None:\n    pass\n", "-p", "no:anyio")

        result.assert_outcomes(passed=1)

    def test_the_markers_are_known(self, suite: Suite) -> None:
        suite.run("").assert_outcomes()

        suite.run("", "--markers").stdout.fnmatch_lines(["*pytest.mark.fake_aws*", "*pytest.mark.memory_backend*"])


class TestVirtualTime:
    def test_an_hour_passes_at_once(self, suite: Suite) -> None:
        result = suite.run(
            """
            import anyio


            async def test_an_hour(virtual_clock) -> None:
                await anyio.sleep(3600)

                assert virtual_clock.time() == 3600
            """
        )

        result.assert_outcomes(passed=1)

    def test_each_test_has_a_clock_of_its_own(self, suite: Suite) -> None:
        result = suite.run(
            """
            import anyio
            import pytest


            @pytest.mark.parametrize("n", range(3))
            async def test_starts_at_its_own_midnight(virtual_clock, n) -> None:
                before = virtual_clock.time()
                await anyio.sleep(60)

                assert before == 0
            """
        )

        result.assert_outcomes(passed=3)


class TestMemoryBackend:
    def test_it_plays_the_script_of_its_marker(self, suite: Suite) -> None:
        result = suite.run(
            """
            import pytest

            from fargate_runner import Job, Runner
            from fargate_runner.backends.memory import Script


            @pytest.mark.memory_backend(script=lambda job, identity: Script(run_for=3600, lines=("hello",)))
            async def test_it_says_hello(memory_backend) -> None:
                async with Runner(memory_backend) as runner:
                    result = await runner.run(Job(command=["anything"]))

                assert [line.text for line in result.last_lines] == ["hello"]
            """
        )

        result.assert_outcomes(passed=1)

    def test_without_a_marker_everything_succeeds(self, suite: Suite) -> None:
        result = suite.run(
            """
            from fargate_runner import Job, Runner


            async def test_it_succeeds(memory_backend) -> None:
                async with Runner(memory_backend) as runner:
                    assert (await runner.run(Job(command=["anything"]))).succeeded
            """
        )

        result.assert_outcomes(passed=1)


class TestFakeAws:
    def test_the_marker_hands_over_options(self, suite: Suite) -> None:
        result = suite.run(
            """
            import pytest


            @pytest.mark.fake_aws(seed=7, region="eu-central-1")
            def test_it_is_as_asked(fake_aws, virtual_clock) -> None:
                assert (fake_aws.seed, fake_aws.region, fake_aws.clock) == (7, "eu-central-1", virtual_clock)
            """
        )

        result.assert_outcomes(passed=1)

    def test_the_nearest_marker_wins(self, suite: Suite) -> None:
        result = suite.run(
            """
            import pytest

            pytestmark = pytest.mark.fake_aws(seed=1, region="eu-central-1")


            @pytest.mark.fake_aws(seed=2)
            class TestSomething:
                @pytest.mark.fake_aws(seed=3)
                def test_it_is_as_asked(self, fake_aws) -> None:
                    assert (fake_aws.seed, fake_aws.region) == (3, "eu-central-1")
            """
        )

        result.assert_outcomes(passed=1)

    def test_a_marker_without_names_is_told_apart(self, suite: Suite) -> None:
        result = suite.run(
            """
            import pytest


            @pytest.mark.fake_aws(7)
            def test_something(fake_aws) -> None:
                pass
            """
        )

        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(["*takes its options by name, got (7,)*"])

    def test_each_test_has_an_account_of_its_own(self, suite: Suite) -> None:
        result = suite.run(
            """
            import pytest


            @pytest.mark.parametrize("n", range(2))
            async def test_nothing_was_called_before(fake_aws, n) -> None:
                before = len(fake_aws.calls)
                async with fake_aws.session().client("ecs") as ecs:
                    await ecs.list_clusters()

                assert (before, len(fake_aws.calls)) == (0, 1)
            """
        )

        result.assert_outcomes(passed=2)

    def test_a_sync_test_may_run_a_loop_of_its_own(self, suite: Suite) -> None:
        result = suite.run(
            """
            import anyio


            def test_an_hour(fake_aws, virtual_clock) -> None:
                anyio.run(anyio.sleep, 3600, backend_options={"loop_factory": virtual_clock.loop})

                assert virtual_clock.time() == 3600
            """
        )

        result.assert_outcomes(passed=1)

    @pytest.mark.parametrize("fixture", ["fake_aws", "ecs_backend", "fargate_runner"])
    def test_real_time_is_refused_and_the_cure_told(self, suite: Suite, fixture: str) -> None:
        suite.conftest("")

        result = suite.run(
            f"""
            import pytest


            @pytest.mark.parametrize("anyio_backend", ["asyncio"])
            async def test_something({fixture}) -> None:
                pass
            """
        )

        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(["*return virtual_time*"])

    def test_a_loop_that_somebody_keeps_open_is_noticed(self, suite: Suite) -> None:
        suite.conftest(
            """
            import pytest


            @pytest.fixture(scope="session")
            def anyio_backend():
                return "asyncio"


            @pytest.fixture(scope="session")
            async def keeper(anyio_backend):
                yield
            """
        )

        result = suite.run(
            """
            import pytest


            class TestFirst:
                async def test_something(self, keeper) -> None:
                    pass


            class TestSecond:
                @pytest.fixture
                def anyio_backend(self, virtual_time):
                    return virtual_time

                async def test_something(self, fargate_runner) -> None:
                    pass
            """
        )

        result.assert_outcomes(passed=1, errors=1)
        result.stdout.fnmatch_lines(["*return virtual_time*"])

    def test_a_failure_tells_what_aws_saw(self, suite: Suite) -> None:
        result = suite.run(
            """
            import pytest

            from fargate_runner.testing.aws import throttled


            @pytest.mark.fake_aws(seed=4711)
            async def test_something(fake_aws) -> None:
                fake_aws.faults.add(throttled("ecs.ListClusters"))
                async with fake_aws.session().client("ecs") as ecs:
                    await ecs.list_clusters()
            """
        )

        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["*Fake AWS*", "seed 4711*", "*1 x ecs.ListClusters: ThrottlingException*"])

    def test_a_fixture_of_that_name_may_be_somebody_elses(self, suite: Suite) -> None:
        result = suite.run(
            """
            import pytest


            @pytest.fixture
            def fake_aws():
                return object()


            def test_something(fake_aws) -> None:
                raise ZeroDivisionError
            """
        )

        result.assert_outcomes(failed=1)


class TestRunner:
    def test_a_pipeline_runs_on_the_fake(self, suite: Suite) -> None:
        result = suite.run(
            """
            import pytest

            from fargate_runner import Job
            from fargate_runner.testing.aws import ContainerScript


            @pytest.mark.fake_aws(script=ContainerScript(run_for=3600, lines=("hello",)))
            async def test_it_says_hello(fargate_runner, fake_aws, virtual_clock) -> None:
                result = await fargate_runner.run(Job(image="busybox", command=["anything"]))

                assert [line.text for line in result.last_lines] == ["hello"]
                assert fake_aws.calls.count("ecs.RunTask") == 1
                assert virtual_clock.time() > 3600
                # Real time is ahead of the virtual one, which begins at the start of 2026.
                assert result.ended_at <= virtual_clock.utcnow()
                assert result.attempts[0].outcome.proof.seen_at <= virtual_clock.utcnow()
            """
        )

        result.assert_outcomes(passed=1)

    def test_the_backend_may_be_the_users_own(self, suite: Suite) -> None:
        result = suite.run(
            """
            import pytest

            from fargate_runner import Job
            from fargate_runner.backends.ecs import Capacity, EcsBackend, Network, Roles


            @pytest.fixture
            def ecs_backend(fake_aws):
                return EcsBackend(
                    "default",
                    capacity=Capacity.spot(),
                    network=Network(subnets=["subnet-0a1b2c3d4e5f60001"]),
                    roles=Roles(execution="arn:aws:iam::123456789012:role/execution"),
                    session=fake_aws.session(),
                    region="us-east-1",
                )


            async def test_it_runs_on_spot(fargate_runner, fake_aws) -> None:
                await fargate_runner.run(Job(image="busybox", command=["anything"]))

                (task,) = fake_aws.world.tasks.values()
                assert task.provider == "FARGATE_SPOT"
            """
        )

        result.assert_outcomes(passed=1)
