"""
What to run: `Job`, its sidecars, its secrets and its size.

A job is a frozen value, valid once built. Everything that can be known to be wrong without asking a platform is
refused here, with an `InvalidJob` that names the field, the value and the fix.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from datetime import timedelta
from typing import Any, Final, Literal, NoReturn, Protocol, Self, TypeVar, get_args

import attrs

from fargate_runner._errors import InvalidJob

__all__ = [
    "DEADLINE_CONTAINER",
    "WATCHDOG_IMAGE",
    "Architecture",
    "Condition",
    "HealthCheck",
    "Job",
    "Secret",
    "SecretRef",
    "Sidecar",
    "Size",
    "check_key",
]

Architecture = Literal["X86_64", "ARM64"]
Condition = Literal["START", "COMPLETE", "SUCCESS", "HEALTHY"]

_K = TypeVar("_K")
_V = TypeVar("_V")


# ---- sizes ---------------------------------------------------------------------------------------------------------

_GIB: Final = 1024

# Fargate's task sizes: cpu units -> memory in MiB. Amazon ECS Developer Guide, "Task CPU and memory" (autumn 2026);
# the 32 vCPU row has three discrete values, not a range. 77 pairs in all.
SIZES: Final[Mapping[int, tuple[int, ...]]] = {
    256: (512, 1024, 2048),
    512: tuple(range(1024, 4096 + 1, 1024)),
    1024: tuple(range(2048, 8192 + 1, 1024)),
    2048: tuple(range(4096, 16384 + 1, 1024)),
    4096: tuple(range(8192, 30720 + 1, 1024)),
    8192: tuple(range(16384, 61440 + 1, 4096)),
    16384: tuple(range(32768, 122880 + 1, 8192)),
    32768: (61440, 122880, 249856),
}

# What a vCPU costs in GiB of memory (us-east-1, Linux x86: 0.04048 / 0.004445 USD an hour). It only ranks sizes.
_GIB_PER_VCPU: Final = 9.1


@attrs.frozen(order=False)
class Size:
    """One of Fargate's 77 pairs of vCPU and memory."""

    cpu_units: int
    memory_mib: int

    def __attrs_post_init__(self) -> None:
        if self.memory_mib not in SIZES.get(self.cpu_units, ()):
            fix = "write Size.of(vcpu, memory_gib), which names the nearest"
            raise InvalidJob("size", (self.cpu_units, self.memory_mib), "Fargate has no such size", fix)

    @property
    def vcpu(self) -> float:
        """Virtual CPUs: 1024 units are one."""
        return self.cpu_units / 1024

    @property
    def memory_gib(self) -> float:
        """Memory in GiB."""
        return self.memory_mib / _GIB

    @property
    def price_rank(self) -> float:
        """Orders sizes as Fargate's prices do."""
        return self.vcpu * _GIB_PER_VCPU + self.memory_gib

    def __str__(self) -> str:
        return f"vcpu={self.vcpu:g}, memory_gib={self.memory_gib:g}"

    @classmethod
    def all(cls) -> Iterator[Size]:
        """Every valid size, the smallest CPU first."""
        return iter(_all_sizes())

    @classmethod
    def of(cls, vcpu: float | None, memory_gib: float | None) -> Size:
        """
        Return the size of *vcpu* and *memory_gib*; what is None becomes the smallest that fits the other.

        :raises InvalidJob: Fargate has no such size; the message names the nearest one
        """
        cpu_units = _scaled("vcpu", vcpu, 1024)
        memory_mib = _scaled("memory_gib", memory_gib, _GIB)
        if cpu_units is None and memory_mib is None:
            return cls(256, 512)
        fits = [
            size
            for size in cls.all()
            if (cpu_units is None or size.cpu_units == cpu_units)
            and (memory_mib is None or size.memory_mib == memory_mib)
        ]
        if fits:
            return min(fits, key=lambda size: size.price_rank)
        nearest = cls.nearest(cpu_units or 0, memory_mib or 0)
        if cpu_units is None:
            raise InvalidJob("memory_gib", memory_gib, "Fargate has no such size", f"the nearest is {nearest}")
        row = next((memories for units, memories in SIZES.items() if units == cpu_units), None)
        if row is None:
            choice = ", ".join(f"{units / 1024:g}" for units in SIZES)
            raise InvalidJob(
                "vcpu", vcpu, "Fargate has no such size", f"use one of {choice}; the nearest size is {nearest}"
            )
        raise InvalidJob(
            "memory_gib",
            memory_gib,
            f"{vcpu:g} vCPU goes with {row[0] / _GIB:g} to {row[-1] / _GIB:g} GiB, in fixed steps",
            f"the nearest size is {nearest}",
        )

    @classmethod
    def nearest(cls, cpu_units: float, memory_mib: float) -> Size:
        """Return the cheapest size that is at least as large in both, else the largest there is."""
        roomy = [s for s in cls.all() if s.cpu_units >= cpu_units and s.memory_mib >= memory_mib]
        return min(roomy, key=lambda size: size.price_rank) if roomy else list(cls.all())[-1]

    def with_more_memory(self, *, at_most_gib: float = math.inf) -> Size | None:
        """Return the next size with more memory (more CPU only where Fargate asks for it), or None if none is left."""
        row = [m for m in SIZES[self.cpu_units] if m > self.memory_mib]
        larger = (
            Size(self.cpu_units, row[0])
            if row
            else min(
                (s for s in Size.all() if s.cpu_units > self.cpu_units and s.memory_mib > self.memory_mib),
                key=lambda size: (size.cpu_units, size.memory_mib),
                default=None,
            )
        )
        return larger if larger is not None and larger.memory_gib <= at_most_gib else None


@functools.cache
def _all_sizes() -> tuple[Size, ...]:
    return tuple(Size(cpu, memory) for cpu, memories in SIZES.items() for memory in memories)


def _scaled(field: str, value: float | None, unit: int) -> float | None:
    """The units of a number that a person wrote; those that are not whole stay so, and fit no size."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidJob(field, value, f"expected a number, got {type(value).__name__}", "write it like 0.5 or 2")
    if not 0 < value < 1e100:  # comparing refuses nan, too, and takes integers that no float can hold
        raise InvalidJob(field, value, "expected a finite number above zero", "write it like 0.5 or 2")
    units = value * unit
    # 1023.99 units would round to a valid size that nobody asked for.
    return round(units) if math.isclose(units, round(units), abs_tol=1e-6) else units


# ---- secrets -------------------------------------------------------------------------------------------------------


class Secret:
    """
    A value that never shows: not in a repr, a log, a traceback, a pickle or a journal.

    Local backends hand it to the process in its environment, as ECS does with the secrets it resolves. Whoever may
    inspect the process or the container may read it there.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        problem = _unsendable(value) if isinstance(value, str) else f"a secret is a str, got {type(value).__name__}"
        if problem is not None:
            del value  # some report tracebacks with the values of all variables
            raise InvalidJob("secrets", "(not shown)", problem, "check where the value comes from, such as os.environ")
        self._value = value

    def reveal(self) -> str:
        """Return the value itself. Whoever calls this keeps it out of sight."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())  # never fails: __init__ tried it

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled: hand the other process a SecretRef, or the value by its own way")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self


@attrs.frozen
class SecretRef:
    """Where the platform finds the value: the ARN of a Secrets Manager secret or of an SSM parameter."""

    arn: str

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.arn, str) or not self.arn.startswith("arn:"):
            raise InvalidJob(
                "secrets", "(not shown)", "expected the ARN of a secret or parameter", "wrap a value in Secret(…)"
            )


# ---- converters ----------------------------------------------------------------------------------------------------


class _FrozenMap(Mapping[_K, _V]):
    """A mapping that a frozen value can hold: no writing, hashable, picklable."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[_K, _V]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: _K) -> _V:
        return self._items[key]

    def __iter__(self) -> Iterator[_K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


_EMPTY: Final[Mapping[Any, Any]] = _FrozenMap({})


def _words(field: str, value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, (str, bytes)):
        fix = 'write ["sh", "-c", "…"] for a shell line, or a list with one word for each argument'
        raise InvalidJob(field, value, "expected a list of words, got one string", fix)
    if not isinstance(value, Iterable) or isinstance(value, (Mapping, AbstractSet)):  # a set has no order
        fix = "write a list with one word for each argument"
        raise InvalidJob(field, value, f"expected a list of words, got {type(value).__name__}", fix)
    words = tuple(value)
    for word in words:
        _check_text(field, word, value=words)
    if not words:
        raise InvalidJob(field, words, "it is empty", "leave it out to use what the image says")
    return words


def _command(value: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if value is None else _words("command", value)


def _entry_point(value: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if value is None else _words("entry_point", value)


def _check(value: Iterable[str]) -> tuple[str, ...]:
    return _words("health_check.command", value)


def _check_text(field: str, word: object, *, value: object) -> None:
    if not isinstance(word, str):
        raise InvalidJob(field, value, f"every part is a str, got {type(word).__name__}", "turn it into a str first")
    if problem := _unsendable(word):
        raise InvalidJob(field, value, problem, "take it out")


def _unsendable(text: str) -> str | None:
    """Why no platform can hand *text* to a program, if that is so."""
    if "\0" in text:
        return "a NUL character would end it there"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "it holds half a character, which UTF-8 cannot say"
    return None


_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,254}\Z")
# AWS accepts far stranger names than a shell or a program can read; POSIX says what is portable.
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")


def _env(value: Mapping[str, str] | None) -> Mapping[str, str]:
    if value is None:
        return _EMPTY
    _check_mapping("env", value)
    for name, text in value.items():
        _check_variable("env", name)
        if isinstance(text, (Secret, SecretRef)):
            fix = f"write secrets={{{name!r}: …}} instead"
            raise InvalidJob(f"env[{name!r}]", "***", "in env it is readable for everyone who may list tasks", fix)
        if not isinstance(text, str):
            fix = f"write str({text!r})" if isinstance(text, (int, float)) else "turn it into a str first"
            raise InvalidJob(f"env[{name!r}]", text, f"expected a str, got {type(text).__name__}", fix)
        if problem := _unsendable(text):
            raise InvalidJob(f"env[{name!r}]", text, problem, "take it out")
    return _FrozenMap(value)


def _secrets(value: Mapping[str, Secret | SecretRef | str] | None) -> Mapping[str, Secret | SecretRef]:
    if value is None:
        return _EMPTY
    _check_mapping("secrets", value)
    kept: dict[str, Secret | SecretRef] = {}
    for name, secret in value.items():
        _check_variable("secrets", name)
        if isinstance(secret, str) and secret.startswith("arn:"):
            kept[name] = SecretRef(secret)
        elif isinstance(secret, (Secret, SecretRef)):
            kept[name] = secret
        else:
            fix = "wrap the value in Secret(…), or give the ARN of a secret or parameter"
            problem = f"expected Secret, SecretRef or an ARN, got {type(secret).__name__}"
            raise InvalidJob(f"secrets[{name!r}]", "(not shown)", problem, fix)
    return _FrozenMap(kept)


def _check_mapping(field: str, value: object) -> None:
    if not isinstance(value, Mapping):
        shown = "(not shown)" if field == "secrets" else value
        raise InvalidJob(field, shown, f"expected a mapping, got {type(value).__name__}", "write {'NAME': 'value'}")


def _check_variable(field: str, name: object) -> None:
    if not isinstance(name, str) or not _VARIABLE.match(name):
        problem = "not the name of an environment variable"
        raise InvalidJob(field, name, problem, "use letters, digits and _, not starting with a digit")


def _tags(value: Mapping[str, str] | None) -> Mapping[str, str]:
    if value is None:
        return _EMPTY
    _check_mapping("tags", value)
    # Amazon ECS API Reference, "Tag": at most 50; key 1…128, value 0…256 characters, no "aws:" prefix.
    if len(value) > 50:
        raise InvalidJob("tags", f"{len(value)} tags", "AWS takes at most 50", "keep the ones that you search by")
    for key, text in value.items():
        fix = "use letters, digits, spaces and _.:/=+-@, a key of 1 to 128 and a value of up to 256 characters"
        if not isinstance(key, str) or not isinstance(text, str):
            raise InvalidJob("tags", {key: text}, "keys and values are str", fix)
        if not (1 <= len(key) <= 128 and len(text) <= 256) or not _is_tag_text(key + text):
            raise InvalidJob("tags", {key: text}, "AWS refuses this tag", fix)
        if key.lower().startswith("aws:"):
            raise InvalidJob("tags", {key: text}, "the prefix aws: belongs to AWS", "choose another key")
    return _FrozenMap(value)


def _is_tag_text(text: str) -> bool:
    return all(c.isalnum() or c in " _.:/=+-@" for c in text)


def _conditions(value: Mapping[str, Condition] | None) -> Mapping[str, Condition] | None:
    if value is None:
        return None
    _check_mapping("depends_on", value)
    for name, condition in value.items():
        if condition not in get_args(Condition):
            fix = f"use one of {', '.join(get_args(Condition))}"
            raise InvalidJob("depends_on", {name: condition}, "no such condition", fix)
    return _FrozenMap(value)


def _check_duration(field: str, value: object, low: timedelta, high: timedelta | None) -> None:
    if not isinstance(value, timedelta):
        fix = f"write timedelta(seconds={value!r})" if isinstance(value, (int, float)) else "write timedelta(seconds=…)"
        raise InvalidJob(field, value, f"expected a timedelta, got {type(value).__name__}", fix)
    if value < low or (high is not None and value > high):
        limits = f"between {low.total_seconds():g} and {high.total_seconds():g} s" if high else "above zero"
        raise InvalidJob(field, value, "out of range", f"choose one {limits}")


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def check_key(key: object) -> str:
    """
    Return *key* if it can name a job.

    :raises InvalidJob: it is not a str of 1 to 512 printable characters
    """
    if not isinstance(key, str):
        raise InvalidJob("key", key, f"expected a str, got {type(key).__name__}", "write it like 'nightly/2026-11-22'")
    if not 1 <= len(key) <= 512 or not key.isprintable():
        raise InvalidJob("key", key, "expected 1 to 512 printable characters", "write it like 'nightly/2026-11-22'")
    return key


_TOGETHER: Final = re.compile(r"(?P<group>~[0-9a-f]{24})\.(?P<index>\d{1,2})of(?P<size>\d{1,2})\Z")
"""Keys that a runner gives to identical jobs which one call launches."""


# ---- containers ----------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class HealthCheck:
    """A command that tells whether a container is fit: exit code 0 is healthy. Ranges are ECS's (API Reference)."""

    command: tuple[str, ...] = attrs.field(converter=_check)
    interval: timedelta = timedelta(seconds=30)
    timeout: timedelta = timedelta(seconds=5)
    retries: int = 3
    start_period: timedelta = timedelta(0)

    def __attrs_post_init__(self) -> None:
        seconds = timedelta(seconds=1)
        _check_duration("health_check.interval", self.interval, 5 * seconds, 300 * seconds)
        _check_duration("health_check.timeout", self.timeout, 2 * seconds, 60 * seconds)
        _check_duration("health_check.start_period", self.start_period, 0 * seconds, 300 * seconds)
        if not _is_whole(self.retries, 1, 10):
            raise InvalidJob("health_check.retries", self.retries, "expected a whole number in range", "choose 1 to 10")


DEADLINE_CONTAINER: Final = "fargate-runner-deadline"
"""The name of the container that `Sidecar.watchdog` makes."""
WATCHDOG_IMAGE: Final = "public.ecr.aws/docker/library/busybox:stable"
_SLEEP: Final = ("sleep",)


@attrs.frozen(kw_only=True)
class Sidecar:
    """
    A container that runs beside the job's own: a proxy, an agent, a set-up step.

    It shares the job's network (127.0.0.1 is the same for all) and lives no longer than the job's own container.
    If it is ``essential``, its end ends the job. ``depends_on`` names the containers it waits for.
    """

    name: str
    image: str
    command: tuple[str, ...] | None = attrs.field(default=None, converter=_command)
    entry_point: tuple[str, ...] | None = attrs.field(default=None, converter=_entry_point)
    env: Mapping[str, str] = attrs.field(default=None, converter=_env)
    secrets: Mapping[str, Secret | SecretRef] = attrs.field(default=None, converter=_secrets, repr=False)
    essential: bool = False
    working_directory: str | None = None
    depends_on: Mapping[str, Condition] | None = attrs.field(default=None, converter=_conditions)
    health_check: HealthCheck | None = None
    vcpu: float | None = None
    """A limit of its own, within the job's."""
    memory_gib: float | None = None
    """A hard limit of its own, within the job's."""

    @classmethod
    def watchdog(
        cls,
        after: timedelta,
        *,
        image: str = WATCHDOG_IMAGE,
        vcpu: float | None = None,
        memory_gib: float | None = None,
    ) -> Self:
        """
        Return a container that ends the job *after* some time, whoever is alive then: a deadline that holds by itself.

        It sleeps, and its end makes the platform end the whole attempt, which is then ``TIMED_OUT``. Each attempt has
        its own, and it counts from its own start, which is before the job's. Give it more than the job's ``timeout``
        and ``stop_timeout``, so that a runner that lives comes first. *image* needs nothing but a program ``sleep``.
        Whole seconds; the name is reserved.

        :raises InvalidJob: less than a second, or not the name of an image
        """
        _check_duration("sidecar.watchdog", after, timedelta(seconds=1), None)
        return cls(
            name=DEADLINE_CONTAINER,
            image=image,
            # Both, so that neither of the image's own is mixed in.
            entry_point=_SLEEP,
            command=[str(math.ceil(after.total_seconds()))],
            essential=True,
            vcpu=vcpu,
            memory_gib=memory_gib,
        )

    @property
    def is_watchdog(self) -> bool:
        """Whether it is what `watchdog` makes: its end is the deadline of the attempt."""
        return self.name == DEADLINE_CONTAINER

    def __attrs_post_init__(self) -> None:
        _check_container(self, "sidecar.")
        if self.is_watchdog:
            _check_watchdog(self)
        _check_image(self.image, "sidecar.image")
        _scaled("sidecar.vcpu", self.vcpu, 1024)
        _scaled("sidecar.memory_gib", self.memory_gib, _GIB)
        if not isinstance(self.essential, bool):
            raise InvalidJob("sidecar.essential", self.essential, "expected a bool", "write True or False")
        check = self.health_check
        if check is not None and not isinstance(check, HealthCheck):
            problem = f"expected a HealthCheck, got {type(check).__name__}"
            raise InvalidJob("sidecar.health_check", check, problem, "write HealthCheck(command=[…])")


def _check_watchdog(side: Sidecar) -> None:
    """Whoever has the reserved name is believed that its end is a deadline: so it does nothing but sleep."""
    seconds = side.command or ()
    sleeps = side.entry_point == _SLEEP and len(seconds) == 1 and re.fullmatch(r"[1-9][0-9]*", seconds[0], re.ASCII)
    if not sleeps or not side.essential or side.depends_on or side.health_check is not None:
        problem = "the name is reserved for the container whose end is the job's deadline"
        raise InvalidJob("sidecar.name", side.name, problem, "write Sidecar.watchdog(timedelta(…)), or take another")


def _sidecars(value: Iterable[Sidecar]) -> tuple[Sidecar, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise InvalidJob("sidecars", value, f"expected a list, got {type(value).__name__}", "write [Sidecar(…), …]")
    sidecars = tuple(value)
    for side in sidecars:
        if not isinstance(side, Sidecar):
            problem = f"expected a Sidecar, got {type(side).__name__}"
            raise InvalidJob("sidecars", side, problem, "write [Sidecar(…), …]")
    return sidecars


class PlatformOptions(Protocol):
    """What only one platform understands, as a frozen attrs value; `fargate_runner.EcsOptions` is one."""

    @property
    def task_definition(self) -> str | None:
        """Something on the platform that says what to run, so that the job need not."""


class RetryPolicy(Protocol):
    """What decides whether a job is launched again; `fargate_runner.Retry` is one."""

    def decide(self, job: Job, attempts: Any, /) -> Any:
        """Say what comes after the last of *attempts*, see `fargate_runner.Retry.decide`."""


@attrs.frozen(kw_only=True)
class Job:
    """
    What to run: a frozen value, valid once built, derived with `with_`.

    With ``image`` it is a container; without, a command of this machine (only `ProcessBackend` runs those).
    ``vcpu`` and ``memory_gib`` must be one of Fargate's 77 sizes; what is left out becomes the smallest that fits.
    Durations are timedeltas: ``timeout`` bounds how long the job's own container runs, ``start_timeout`` how long it
    may take to get there, ``stop_timeout`` is the time between SIGTERM and SIGKILL.

    ``key`` names the job for ever: the same key is the same job, and never runs twice at a time. Without one, each
    submission is a job of its own.

    ``retry`` decides what is run again (`Retry`); None means the default policy. ``ecs`` (`EcsOptions`) says what only
    ECS understands; other platforms ignore it, so that the same job runs in tests without AWS.

    :raises InvalidJob: a field cannot be right; nothing was sent
    """

    image: str | None = None
    command: tuple[str, ...] | None = attrs.field(default=None, converter=_command)
    entry_point: tuple[str, ...] | None = attrs.field(default=None, converter=_entry_point)
    name: str = "job"
    """For people: shows in logs, container names and results. Need not be unique."""
    key: str | None = None
    env: Mapping[str, str] = attrs.field(default=None, converter=_env)
    secrets: Mapping[str, Secret | SecretRef] = attrs.field(default=None, converter=_secrets, repr=False)
    working_directory: str | None = None
    vcpu: float | None = None
    memory_gib: float | None = None
    ephemeral_storage_gib: int | None = None
    """Scratch space, 21 to 200 GiB; None is the platform's default (20 GiB on Fargate)."""
    architecture: Architecture | None = None
    """None is the platform's own: X86_64 on Fargate, the engine's on Docker."""
    timeout: timedelta | None = None
    start_timeout: timedelta = timedelta(minutes=10)
    stop_timeout: timedelta = timedelta(seconds=30)
    retry: RetryPolicy | None = None
    tags: Mapping[str, str] = attrs.field(default=None, converter=_tags)
    container_name: str = "main"
    """The name of the job's own container among its sidecars."""
    sidecars: tuple[Sidecar, ...] = attrs.field(default=(), converter=_sidecars)
    depends_on: Mapping[str, Condition] | None = attrs.field(default=None, converter=_conditions)
    """Sidecars that the job's own container waits for, each with a condition; None: until all have started."""
    ecs: PlatformOptions | None = None
    size: Size = attrs.field(init=False, repr=False, eq=False)
    _described: dict[str, Any] | None = attrs.field(init=False, repr=False, eq=False, default=None)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "size", Size.of(self.vcpu, self.memory_gib))
        if self.ecs is not None and not (attrs.has(type(self.ecs)) and hasattr(self.ecs, "task_definition")):
            raise InvalidJob(
                "ecs", self.ecs, f"expected EcsOptions, got {type(self.ecs).__name__}", "write EcsOptions(…)"
            )
        defined = self.ecs is not None and self.ecs.task_definition is not None
        if self.image is None and self.command is None and not defined:
            fix = "give a command of this machine, an image, or both"
            raise InvalidJob("command", None, "neither image nor command says what to run", fix)
        if self.image is not None:
            _check_image(self.image, "image")
        elif self.sidecars:
            problem = "only a job with an image has containers of its own"
            raise InvalidJob("sidecars", self.sidecars, problem, "give the job an image")
        _check_container(self, "")
        self._check_limits()
        if self.container_name == DEADLINE_CONTAINER:
            problem = "the name is reserved for the container whose end is the job's deadline"
            raise InvalidJob("container_name", self.container_name, problem, "take another")
        if self.key is not None and _TOGETHER.match(check_key(self.key)):
            fix = "give the job a key of its own, or attach to the one that is there"
            raise InvalidJob("key", self.key, "this key was made by a runner, for a job without one", fix)
        if self.sidecars or self.depends_on:
            _check_order(self)

    def _check_limits(self) -> None:
        second = timedelta(seconds=1)
        # Amazon ECS API Reference, ContainerDefinition: stopTimeout is 2…120 s on Fargate.
        _check_duration("stop_timeout", self.stop_timeout, 2 * second, 120 * second)
        _check_duration("start_timeout", self.start_timeout, timedelta(microseconds=1), None)
        if self.timeout is not None:
            _check_duration("timeout", self.timeout, timedelta(microseconds=1), None)
        storage = self.ephemeral_storage_gib
        if storage is not None and not _is_whole(storage, 21, 200):
            # 20 GiB is what a task has anyway; ECS refuses it as an explicit value.
            fix = "choose 21 to 200, or leave it out for the default of 20"
            raise InvalidJob("ephemeral_storage_gib", storage, "expected a whole number in range", fix)
        if self.architecture is not None and self.architecture not in get_args(Architecture):
            fix = f"use one of {', '.join(get_args(Architecture))}"
            raise InvalidJob("architecture", self.architecture, "no such architecture", fix)
        retry = self.retry
        if retry is not None and (isinstance(retry, type) or not callable(getattr(retry, "decide", None))):
            raise InvalidJob("retry", retry, f"expected a Retry, got {type(retry).__name__}", "write Retry(…)")

    def with_(self, **changes: Any) -> Self:
        """
        Return a copy with *changes*, checked like a new one.

        :raises InvalidJob: a change cannot be right, or names no field
        """
        known = {field.name for field in attrs.fields(type(self)) if field.init}
        for name in changes:
            if name not in known:
                # Not its value: a misspelt "secrets" would show what nobody wrapped.
                fix = f"use one of {', '.join(sorted(known))}"
                raise InvalidJob(name, "(not shown)", "a Job has no such field", fix)
        return attrs.evolve(self, **changes)

    def describe(self) -> dict[str, Any]:
        """
        Return what makes this job the job it is, as JSON-able data: no key, no retry, no secret values.

        Two jobs with equal descriptions are the same job. Not to be changed: it is made once for each job.
        """
        if self._described is None:
            described = {
                field.name: _plain(getattr(self, field.name))
                for field in attrs.fields(type(self))
                if field.name not in {"key", "retry", "vcpu", "memory_gib", "_described"}
            }
            object.__setattr__(self, "_described", described)
            return described
        return self._described

    @property
    def fingerprint(self) -> str:
        """A hash of `describe`: 64 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """JSON-able form of anything that a job may hold."""
    if isinstance(value, Secret):
        return {"secret": "***"}
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if attrs.has(type(value)):
        return {field.name: _plain(getattr(value, field.name)) for field in attrs.fields(type(value))}
    return value


def _check_image(image: object, field: str) -> None:
    # A reference is [registry/]name[:tag][@digest]. Spaces and upper case are typing errors; the platform knows more.
    if not isinstance(image, str) or not image:
        raise InvalidJob(field, image, "expected the name of an image", "write it like 'registry/name:tag'")
    if any(c.isspace() or not c.isprintable() for c in image) or not image.isascii():
        raise InvalidJob(field, image, "not the name of an image", "write it like 'registry/name:tag'")
    if image.startswith(("-", "/", ":", "@")) or image.endswith(("/", ":", "@")):
        raise InvalidJob(field, image, "not the name of an image", "write it like 'registry/name:tag'")
    path = image.split("@", 1)[0].split("/", 1)[-1].rsplit(":", 1)[0]
    if path != path.lower():
        raise InvalidJob(field, image, "image names are lower case", f"write {image.replace(path, path.lower())!r}")


def _check_container(part: Job | Sidecar, prefix: str) -> None:
    own = ("name", "container_name") if isinstance(part, Job) else ("name",)
    for field in own:
        name = getattr(part, field)
        if not isinstance(name, str) or not _NAME.match(name):
            fix = "use letters, digits, _ and -, starting with a letter or digit"
            raise InvalidJob(f"{prefix}{field}", name, "not a name that every platform takes", fix)
    if both := set(part.env) & set(part.secrets):
        name = min(both)
        raise InvalidJob(f"{prefix}secrets[{name!r}]", "***", "the same variable is in env too", "keep one of the two")
    directory = part.working_directory
    if directory is None:
        return
    if not isinstance(directory, str) or not directory or _unsendable(directory):
        raise InvalidJob(f"{prefix}working_directory", directory, "expected a path", "write it like '/srv/app'")
    if part.image is not None and not directory.startswith("/"):
        problem = "in a container a path has nothing to start from but the root"
        raise InvalidJob(f"{prefix}working_directory", directory, problem, "write it like '/srv/app'")


def _check_order(job: Job) -> None:
    """Names are unique, dependencies exist and have no circle, conditions can come true."""
    # Amazon ECS General Reference: at most 10 containers in a task definition.
    if len(job.sidecars) > 9:
        raise InvalidJob("sidecars", f"{len(job.sidecars)} sidecars", "a task holds 10 containers", "keep 9 at most")
    by_name = {side.name: side for side in job.sidecars}
    if len(by_name) < len(job.sidecars) or job.container_name in by_name:
        names = [side.name for side in job.sidecars]
        raise InvalidJob("sidecars", names, "two containers share a name", f"{job.container_name!r} is the job's own")
    for field, whole in (("vcpu", job.size.vcpu), ("memory_gib", job.size.memory_gib)):
        asked = sum(getattr(side, field) or 0 for side in job.sidecars)
        if asked > whole:
            problem = f"the sidecars' own limits add up to {asked:g}, more than the job's {whole:g}"
            raise InvalidJob(f"sidecar.{field}", asked, problem, "give the job more, or the sidecars less")
    waits = {side.name: side.depends_on or {} for side in job.sidecars} | {job.container_name: job.depends_on or {}}
    for name, conditions in waits.items():
        for other, condition in conditions.items():
            if other not in by_name:
                problem = f"{name!r} waits for a container that is no sidecar"
                fix = f"name one of {', '.join(sorted(by_name))}" if by_name else "add the sidecar, or leave this out"
                raise InvalidJob("depends_on", {other: condition}, problem, fix)
            if condition == "HEALTHY" and by_name[other].health_check is None:
                raise InvalidJob("depends_on", {other: condition}, f"{other!r} has no health check", "give it one")
            if condition in {"COMPLETE", "SUCCESS"} and by_name[other].essential:
                problem = f"{other!r} is essential, its end would end the job"
                raise InvalidJob("depends_on", {other: condition}, problem, "set essential=False")
    start_order(job)


def start_order(job: Job) -> list[str]:
    """
    Return the names of all containers so that each comes after those it waits for; the job's own is last.

    :raises InvalidJob: they wait for each other in a circle
    """
    waits = {side.name: set(side.depends_on or ()) for side in job.sidecars}
    order: list[str] = []
    while waits:
        ready = [name for name, others in waits.items() if others <= set(order)]
        if not ready:
            raise InvalidJob("depends_on", sorted(waits), "these wait for each other in a circle", "break the circle")
        order.extend(ready)
        for name in ready:
            del waits[name]
    return [*order, job.container_name]
