"""What a seed says: the jobs, the bad day of AWS, and the lives of the client."""

from __future__ import annotations

import math
from datetime import timedelta
from random import Random
from typing import Any, Final, Literal

import attrs

from fargate_runner import Capacity, Job, Retry
from fargate_runner.backends.ecs._logs import LogCadence
from fargate_runner.backends.ecs._watch import Cadence
from fargate_runner.testing.aws import (
    Chaos,
    ContainerRun,
    ContainerScript,
    Delivery,
    Fault,
    Ingestion,
    Pace,
    TaskRun,
    TaskScript,
)
from tests.contract.ecs_words import IMAGE

__all__ = ["Freeze", "Lifetime", "Outage", "Plan", "Supervision", "Window", "plan_of", "script", "stuck"]

SPOT_FIRST: Final = (Capacity.spot(), Capacity.spot(), Capacity.fargate())

How = Literal["submit", "run", "map", "recover", "recover and submit", "attach"]
Leaves = Literal[
    "killed at a step",
    "killed at any step",
    "killed after a call",
    "killed",
    "leaves",
    "is cancelled",
    "sees it through",
]


@attrs.frozen
class Freeze:
    """That a life stands still for a while, and then goes on as if nothing had been."""

    after: float
    """Seconds, at most."""
    step: float
    """At this step, if that comes first."""
    lasts: float


@attrs.frozen(kw_only=True)
class Lifetime:
    """What one life does, and how it ends."""

    how: How
    leaves: Leaves
    at: float
    """The step, the call (of *called*) or the second at which it ends."""
    called: str = ""
    """After the how manieth call of what it is killed: ``ecs.RunTask``."""
    on_exit: Literal["stop", "detach"] = "detach"
    killed_leaving: float | None = None
    """Seconds after which it is killed while it is still leaving."""
    crowd: int = 0
    """How many identical jobs without a key it maps besides: one call launches several of them."""
    stops: tuple[tuple[str, float], ...] = ()
    """Which jobs it stops, and after how many seconds."""
    freezes: Freeze | None = None
    """That it stands still for a while. The next one does not wait for it."""
    gap: float = 0.0
    """Seconds until the next one begins."""
    journal_troubles: float = 0.0
    twin: Lifetime | None = None
    """Another one that lives at the same time."""
    twin_after: float = 0.0


@attrs.frozen
class Window:
    """A time in which AWS does one thing to every call: ``throttles``, ``expired`` or ``silence``."""

    kind: Literal["throttles", "expired", "silence"]
    begins: float
    """Seconds from the beginning of a life."""
    lasts: float
    life: int
    """Of which one."""


@attrs.frozen
class Outage:
    """A time without capacity."""

    provider: str | None
    zone: str | None
    lasts: float
    life: int
    """With which one it begins."""


@attrs.frozen(kw_only=True)
class Supervision:
    """That functions are called with the events of ended tasks, beside the lives, as Lambda calls them from a queue."""

    functions: int
    """How many run at a time."""
    mortality: float
    """How often one is killed in the middle; the next one begins soon."""
    delivery: Delivery
    """How events come in, unless the lives have said."""
    journal_troubles: float
    dies_at: float = math.inf
    """At this step, the first one is killed for sure."""


@attrs.frozen(kw_only=True)
class Plan:
    """Everything that a seed says."""

    seed: int
    jobs: tuple[Job, ...]
    lives: tuple[Lifetime, ...]
    chaos: Chaos
    ingestion: Ingestion = attrs.field(factory=Ingestion)
    windows: tuple[Window, ...] = ()
    outages: tuple[Outage, ...] = ()
    capacity: tuple[Capacity, ...] = (Capacity.fargate(),)
    visible_after: tuple[float, float] = (0.0, 1.5)
    pace: Pace = attrs.field(factory=Pace)
    cadence: Cadence = attrs.field(factory=Cadence)
    log_cadence: LogCadence = attrs.field(factory=LogCadence)
    calm_after: float = 0.0
    """Seconds of the last life after which all is well."""
    slowest_write: float = 0.0
    faults: tuple[Fault, ...] = ()
    """Single ones, besides the chaos."""
    crowd: Job | None = None
    """What a life maps that maps many identical jobs."""
    events: Delivery | None = None
    """How events of tasks come in, if a life listens to them."""
    supervision: Supervision | None = None


def _log_uniform(random: Random, least: float, most: float) -> float:
    return math.exp(random.uniform(math.log(least), math.log(most)))


VERBS: Final[dict[str, float]] = {
    "succeeds": 6,
    "long": 1,
    "fails-first": 3,
    "fails": 2,
    "waits": 2,
    "polite": 1,
    "deaf": 1,
    "oom": 2,
    "mute": 0.5,
}


def _job(random: Random, number: int) -> Job:
    verb = random.choices(list(VERBS), weights=list(VERBS.values()))[0]
    seconds = random.uniform(1500, 6000) if verb == "long" else _log_uniform(random, 2, 120)
    lines = random.choice((0, 1, 5, 30))
    changes: dict[str, Any] = {}
    if verb in {"waits", "polite", "deaf"}:
        changes["timeout"] = timedelta(seconds=round(_log_uniform(random, 20, 600)))
    elif random.random() < 0.3:
        changes["timeout"] = timedelta(hours=10)
    if verb == "deaf":
        changes["stop_timeout"] = timedelta(seconds=random.choice((2, 30)))
    if random.random() < 0.3:
        changes["start_timeout"] = timedelta(seconds=random.choice((300, 900)))
    return Job(
        image=IMAGE,
        command=[verb, f"job-{number}", f"{seconds:.1f}", str(lines), str(random.randint(1, 2))],
        key=f"job-{number}",
        retry=Retry(failures=2, out_of_memory=2, never_started=8, interruptions=15),
        **changes,
    )


def script(container: ContainerRun) -> ContainerScript:
    """Say what a container does: its command tells."""
    number = int(container.environment["FARGATE_RUNNER_ATTEMPT"])
    verb, name, seconds, lines, times = container.command
    again = number <= int(times)
    said: dict[str, Any] = {"lines": tuple(f"{name}/{number}/{n}" for n in range(int(lines)))}
    run_for = float(seconds)
    match verb:
        case "fails-first":
            return ContainerScript(**said, run_for=run_for, exit_code=3 if again else 0)
        case "fails":
            return ContainerScript(**said, run_for=run_for, exit_code=4)
        case "mute":
            return ContainerScript(**said, run_for=run_for, exit_code=None)
        case "oom":
            return ContainerScript(**said, run_for=run_for, out_of_memory=again)
        case "waits":
            return ContainerScript(**said, run_for=math.inf)
        case "polite":
            return ContainerScript(**said, run_for=math.inf, exit_code_on_sigterm=0)
        case "deaf":
            return ContainerScript(**said, run_for=math.inf, ignores_sigterm=True)
        case _:
            return ContainerScript(**said, run_for=run_for)


def stuck(seed: int, rate: float) -> Any:
    """Return what makes some tasks stay where they are until somebody stops them."""

    def of(run: TaskRun) -> TaskScript | None:
        random = Random(f"{seed}/stuck/{run.number}")
        if random.random() < rate:
            return TaskScript(stuck_in=random.choice(("PROVISIONING", "PENDING", "ACTIVATING")))
        return None

    return of


GAPS: Final = (
    # Weight, least, most seconds.
    (3, 0.0, 0.0),
    (4, 0.1, 30.0),
    (4, 30.0, 600.0),
    (2, 600.0, 3000.0),
    (1, 3000.0, 3600.0),
    (2, 3600.0, 7200.0),
    (1, 7200.0, 30 * 3600.0),
)


def _gap(random: Random) -> float:
    _, least, most = random.choices(GAPS, weights=[weight for weight, _, _ in GAPS])[0]
    return random.uniform(least, most)


def _freeze(random: Random, jobs: int) -> Freeze:
    step = random.choice((math.inf, random.randint(1, 14 * jobs)))
    return Freeze(after=_log_uniform(random, 0.05, 200), step=step, lasts=_log_uniform(random, 1, 6 * 3600))


def _lifetime(random: Random, keys: list[str], number: int, *, has_twin: bool = True) -> Lifetime:
    how: How = random.choices(("submit", "run", "map"), weights=(5, 1, 1))[0]
    if number > 0:
        how = random.choices(("recover", "recover and submit", "attach", how), weights=(3, 1, 2, 5))[0]
    leaves: Leaves = random.choices(
        ("killed at a step", "killed after a call", "killed", "leaves", "is cancelled", "sees it through"),
        weights=(5, 3, 5, 1.5, 1, 0.5),
    )[0]
    if leaves == "killed at a step":
        at = random.uniform(1, 14 * len(keys))
    elif leaves == "killed after a call":
        at = random.uniform(0, 1.5 * len(keys))
    else:
        at = _log_uniform(random, 0.3 if leaves == "killed" else 10, 400)
    on_exit = random.choices(("stop", "detach"), weights=(1, 2))[0]
    killed_leaving = _log_uniform(random, 0.05, 60) if random.random() < 0.5 else None
    stops = tuple(
        (random.choice(keys), _log_uniform(random, 0.1, 200)) for _ in range(random.choices((0, 1, 2), (6, 3, 1))[0])
    )
    twin = None
    if has_twin and random.random() < 0.25:
        twin = _lifetime(random, keys, 1 if number > 0 else 0, has_twin=False)
    return Lifetime(
        how=how,
        leaves=leaves,
        at=at,
        called=random.choices(("ecs.RunTask", "ecs.StopTask", "ecs.DescribeTasks"), weights=(6, 1, 1))[0],
        on_exit=on_exit,
        killed_leaving=killed_leaving if leaves in {"leaves", "is cancelled"} else None,
        crowd=random.randint(2, 12) if random.random() < 0.15 else 0,
        stops=stops,
        freezes=_freeze(random, len(keys)) if random.random() < 0.2 else None,
        gap=_gap(random),
        journal_troubles=random.choice((0.0, 0.0, 0.02, 0.1)),
        twin=twin,
        twin_after=random.choice((0.0, random.uniform(0, 60))),
    )


def _events(random: Random) -> Delivery:
    return Delivery(
        most=random.choice((1.0, 10.0)),
        in_order=random.random() < 0.5,
        lost=random.choice((0.0, 0.1, 0.9)),
        duplicated=random.choice((0.0, 0.3)),
        copies=3,
        late=random.choice((0.0, 0.2)),
        late_by=900.0,
    )


def _supervision(random: Random) -> Supervision | None:
    if random.random() >= 0.3:
        return None
    delivery = attrs.evolve(_events(random), lost=random.choice((0.0, 0.1, 0.5)))
    return Supervision(
        functions=random.choice((1, 2, 3)),
        mortality=random.choice((0.0, 0.3, 0.8)),
        delivery=delivery,
        journal_troubles=random.choice((0.0, 0.0, 0.02, 0.1)),
    )


def plan_of(seed: int) -> Plan:
    """Return what a seed says."""
    random = Random(f"chaos/{seed}")
    jobs = tuple(_job(random, number) for number in range(random.randint(2, 8)))
    keys = [str(job.key) for job in jobs]
    lives = [_lifetime(random, keys, number) for number in range(random.choices((1, 2, 3, 5, 8), (3, 4, 4, 2, 1))[0])]
    crowds = any(one.crowd for life in lives for one in (life, life.twin) if one is not None)
    how = random.choice(("submit", "recover and submit"))
    # Without a key, nobody can submit them again.
    last = Lifetime(how="recover and submit" if crowds else how, leaves="sees it through", at=0.0)
    windows: list[Window] = []
    for kind, rate, most in (("throttles", 0.25, 90), ("expired", 0.15, 400), ("silence", 0.1, 900)):
        if random.random() < rate:
            begins, lasts = _log_uniform(random, 1, 200), _log_uniform(random, 5, most)
            windows.append(Window(kind, begins, lasts, random.randrange(len(lives) + 1)))  # type: ignore[arg-type]
    outages = [
        Outage(
            random.choice(("FARGATE_SPOT", "FARGATE", None)),
            random.choice((None, "us-east-1a")),
            _log_uniform(random, 5, 2000),
            random.randrange(len(lives) + 1),
        )
        for _ in range(random.choices((0, 1, 2), (4, 3, 1))[0])
    ]
    # From a fair day to one on which a call in four fails.
    rough = random.choice((0.0, 0.3, 1.0, 2.0))
    rates = {
        "throttle": 0.03,
        "server_error": 0.02,
        "server_error_after": 0.02,
        "lost_request": 0.02,
        "lost_answer": 0.03,
        "slow": 0.05,
        "ec2_throttle": 0.02,
        "no_capacity": 0.05,
        "hidden": 0.1,
        "spot": 0.1,
        "host": 0.03,
        "start_failure": 0.05,
    }
    scaled: dict[str, Any] = {name: min(0.5, rate * rough) for name, rate in rates.items()}
    chaos = Chaos(
        seed=seed,
        slow_for=(0.1, random.choice((5.0, 45.0))),
        hidden_for=(1.0, random.choice((30.0, 290.0))),
        trouble_after=(0.0, random.choice((10.0, 60.0, 1200.0))),
        **scaled,
    )
    period = random.choice((5.0, 10.0, 20.0))
    return Plan(
        seed=seed,
        jobs=jobs,
        lives=(*lives, last),
        chaos=chaos,
        ingestion=Ingestion(
            most=random.choice((2.0, 8.0)),
            in_order=random.random() < 0.7,
            empty_pages=0.1,
            short_pages=0.1,
        ),
        windows=tuple(windows),
        outages=tuple(outages),
        capacity=random.choice(((Capacity.fargate(),), SPOT_FIRST)),
        visible_after=(0.0, random.choice((1.5, 20.0))),
        pace=random.choice((Pace(), Pace().scaled(0.1))),
        cadence=Cadence(period=period),
        # The driver's batches span five seconds each, and one may come eight seconds after the next.
        log_cadence=LogCadence(period=period, overlap=20.0),
        calm_after=random.choice((0.0, 30.0, 600.0)),
        slowest_write=random.choice((0.0, 0.05)),
        crowd=_job(random, 0).with_(key=None, name="crowd") if crowds else None,
        events=_events(random) if random.random() < 0.35 else None,
        supervision=_supervision(Random(f"chaos/{seed}/supervision")),
    )
