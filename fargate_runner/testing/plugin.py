"""
Fixtures for pytest: your own pipeline on a fake AWS, where an hour costs a millisecond.

pytest finds this plugin by itself once the package is installed. Async tests are run by anyio's plugin; say once, in
the ``conftest.py`` beside the tests that use a fixture from here, that they live by the virtual clock::

    @pytest.fixture
    def anyio_backend(virtual_time: object) -> object:
        return virtual_time

Each test gets a clock and an AWS of its own:

- ``virtual_clock``: time that moves only when everybody waits
- ``virtual_time``: what anyio's plugin has to know of it
- ``fake_aws``: an AWS account in this process; ``@pytest.mark.fake_aws(…)`` hands options to `FakeAws`
- ``ecs_backend``: an `EcsBackend` in that account, not open yet
- ``fargate_runner``: an open `Runner` on ``ecs_backend``
- ``memory_backend``: a `MemoryBackend`, not open yet; ``@pytest.mark.memory_backend(script=…)`` scripts it

To have one of them otherwise, define a fixture of the same name: those below build on it.
"""

# Every run of pytest on this machine imports this module: what a fixture needs is imported by that fixture.
from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterator

    from fargate_runner._runner import Runner
    from fargate_runner.backends.ecs import EcsBackend
    from fargate_runner.backends.memory import MemoryBackend
    from fargate_runner.testing.aws import FakeAws
    from fargate_runner.testing.clock import VirtualClock

__all__ = ["ecs_backend", "fake_aws", "fargate_runner", "memory_backend", "virtual_clock", "virtual_time"]

_MARKERS: Final = (
    "fake_aws(**options): options of fargate_runner.testing.aws.FakeAws for the fixture of that name",
    "memory_backend(script): the script of the fixture of that name",
)

_HOW_TO_OVERRIDE: Final = """\
the fake AWS lives by virtual time, and this test does not. Put this into the conftest.py beside it:

    @pytest.fixture
    def anyio_backend(virtual_time: object) -> object:
        return virtual_time
"""


def pytest_configure(config: pytest.Config) -> None:
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Put beside the failure of a test what its fake AWS saw."""
    report = yield
    aws = getattr(item, "funcargs", {}).get("fake_aws")
    if report.failed and aws is not None:
        from fargate_runner.testing.aws import FakeAws

        if isinstance(aws, FakeAws):  # somebody else's fixture may have that name
            report.sections.append(("Fake AWS", "\n".join(_story(aws))))
    return report


@pytest.fixture
def virtual_clock() -> VirtualClock:
    """A clock that moves only when everybody waits."""
    from fargate_runner.testing.clock import VirtualClock

    return VirtualClock()


@pytest.fixture
def virtual_time(virtual_clock: VirtualClock) -> tuple[str, dict[str, Any]]:
    """What the fixture ``anyio_backend`` of anyio's plugin has to give, so that tests live by ``virtual_clock``."""
    return "asyncio", {"loop_factory": virtual_clock.loop}


@pytest.fixture
def fake_aws(request: pytest.FixtureRequest, virtual_clock: VirtualClock) -> FakeAws:
    """An AWS account in this process, which lives by ``virtual_clock``."""
    from fargate_runner.testing.aws import FakeAws

    _check_loop(request)
    return FakeAws(clock=virtual_clock, **_options(request, "fake_aws"))


@pytest.fixture
def ecs_backend(fake_aws: FakeAws, virtual_clock: VirtualClock) -> EcsBackend:
    """A backend in ``fake_aws``; whoever uses it opens it."""
    from fargate_runner.backends.ecs import EcsBackend, Network, Roles

    return EcsBackend(
        "default",
        network=Network(subnets=[subnet.id for subnet in fake_aws.ec2.subnets]),
        roles=Roles(execution=f"arn:aws:iam::{fake_aws.account}:role/fargate-runner-execution"),
        session=fake_aws.session(),
        region=fake_aws.region,
        utcnow=virtual_clock.utcnow,
    )


@pytest.fixture
async def fargate_runner(ecs_backend: EcsBackend, virtual_clock: VirtualClock) -> AsyncGenerator[Runner]:
    """An open runner on ``ecs_backend``."""
    import anyio

    from fargate_runner._runner import Runner

    # A real loop started long ago. This also finds the fixture that kept one open for the whole module.
    if anyio.current_time() != virtual_clock.time():
        pytest.fail(_HOW_TO_OVERRIDE, pytrace=False)
    async with Runner(ecs_backend, utcnow=virtual_clock.utcnow) as runner:
        yield runner


@pytest.fixture
def memory_backend(request: pytest.FixtureRequest, virtual_clock: VirtualClock) -> MemoryBackend:
    """A backend that plays scripts; whoever uses it opens it."""
    from fargate_runner.backends.memory import MemoryBackend

    return MemoryBackend(utcnow=virtual_clock.utcnow, **_options(request, "memory_backend"))


def _options(request: pytest.FixtureRequest, marker: str) -> dict[str, Any]:
    """Return what the markers of that name say together; the nearest to the test wins."""
    options: dict[str, Any] = {}
    for mark in request.node.iter_markers(marker):
        if mark.args:
            pytest.fail(f"pytest.mark.{marker} takes its options by name, got {mark.args!r}", pytrace=False)
        options = mark.kwargs | options
    return options


def _check_loop(request: pytest.FixtureRequest) -> None:
    """An async test on a loop of real time would wait for ever for a clock that never moves."""
    if "anyio_backend" not in request.fixturenames:
        return  # not async, or not run by anyio's plugin
    backend = request.getfixturevalue("anyio_backend")
    if isinstance(backend, str) or "loop_factory" not in backend[1]:
        pytest.fail(_HOW_TO_OVERRIDE, pytrace=False)


def _story(aws: FakeAws) -> Iterator[str]:
    """Tell what a fake AWS saw: what went wrong on purpose, the calls, the tasks."""
    yield f"seed {aws.seed}, {aws.clock.time():.1f} s of its time, {aws.faults.chaos or 'no chaos'}"
    outcomes = Counter((call.called, call.outcome) for call in aws.calls)
    for (called, outcome), times in sorted(outcomes.items()):
        yield f"{times:6} x {called}: {outcome}"
    for task in aws.world.tasks.values():
        ends = ", ".join(f"{container.name}: {_end(container)}" for container in task.containers)
        said = f" ({task.stopped_reason})" if task.stopped_reason else ""
        yield f"task {task.number} {task.started_by or task.family} #{task.launch}: {task.status}{said}; {ends}"


def _end(container: Any) -> str:
    return container.status if container.exit_code is None else f"exit code {container.exit_code}"
