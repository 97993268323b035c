"""A job is valid once built: sizes, refusals that name field, value and fix, descriptions, derivation."""

from __future__ import annotations

import copy
import json
import math
import pickle
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fargate_runner import HealthCheck, InvalidJob, Job, Kind, Retry, Rule, Secret, SecretRef, Sidecar, Size
from fargate_runner._job import SIZES, check_key, start_order

PAIRS = {(cpu / 1024, memory / 1024) for cpu, memories in SIZES.items() for memory in memories}
SECOND = timedelta(seconds=1)
ARN = "arn:aws:ssm:eu-west-1:123456789012:parameter/token"


CONTAINER: dict[str, Any] = {"image": "registry/name:1", "command": ["true"]}
SIDECAR: dict[str, Any] = {"name": "proxy", "image": "proxy:1"}
HEALTH_CHECK: dict[str, Any] = {"command": ["true"]}
RULE: dict[str, Any] = {"then": "retry"}


def container(**fields: Any) -> Job:
    return Job(**CONTAINER | fields)


def beside(**fields: Any) -> Job:
    """A job with one sidecar of these fields."""
    return container(sidecars=[sidecar(**fields)], vcpu=1)


def sidecar(**fields: Any) -> Sidecar:
    return Sidecar(**SIDECAR | fields)


def health_check(**fields: Any) -> HealthCheck:
    return HealthCheck(**HEALTH_CHECK | fields)


def rule(**fields: Any) -> Rule:
    return Rule(**RULE | fields)


def refusal(make: Callable[..., object], **fields: Any) -> InvalidJob:
    with pytest.raises(InvalidJob) as caught:
        make(**fields)
    return caught.value


# ---- sizes ---------------------------------------------------------------------------------------------------------


def cheapest_that_fits(vcpu: float, memory_gib: float) -> tuple[float, float]:
    """What a person with Fargate's price list would pick: written apart from the code under test."""
    by_price = sorted(PAIRS, key=lambda pair: (0.04048 * pair[0] + 0.004445 * pair[1], pair))
    return next((pair for pair in by_price if pair[0] >= vcpu and pair[1] >= memory_gib), (32.0, 244.0))


class TestSizes:
    def test_there_are_77(self) -> None:
        assert len(PAIRS) == len(list(Size.all())) == 77

    @pytest.mark.parametrize(("vcpu", "memory_gib"), sorted(PAIRS))
    def test_each_is_accepted(self, vcpu: float, memory_gib: float) -> None:
        size = container(vcpu=vcpu, memory_gib=memory_gib).size

        assert (size.vcpu, size.memory_gib) == (vcpu, memory_gib)

    @pytest.mark.parametrize(
        ("vcpu", "memories"),
        [
            (0.25, [0.5, 1, 2]),
            (0.5, [1, 2, 3, 4]),
            (1, [2, 3, 4, 5, 6, 7, 8]),
            (2, list(range(4, 17))),
            (4, list(range(8, 31))),
            (8, list(range(16, 61, 4))),
            (16, list(range(32, 121, 8))),
            (32, [60, 120, 244]),
        ],
    )
    def test_are_those_that_aws_lists(self, vcpu: float, memories: list[float]) -> None:
        assert sorted(memory for cpu, memory in PAIRS if cpu == vcpu) == memories

    @given(
        st.tuples(
            st.sampled_from([0.25, 0.5, 1, 2, 3, 4, 8, 16, 32, 64]) | st.floats(0.01, 100),
            st.integers(1, 600).map(lambda n: n / 2) | st.floats(0.01, 300),
        ).filter(lambda pair: pair not in PAIRS)
    )
    @settings(deadline=None)
    def test_every_other_pair_is_refused_and_the_nearest_named(self, pair: tuple[float, float]) -> None:
        vcpu, memory_gib = cheapest_that_fits(*pair)

        error = refusal(Size.of, vcpu=pair[0], memory_gib=pair[1])

        assert error.fix.endswith(f" is vcpu={vcpu:g}, memory_gib={memory_gib:g}")

    @given(st.integers(1, 40_000), st.integers(1, 300_000))
    @settings(deadline=None)
    def test_the_nearest_is_the_cheapest_that_is_large_enough(self, cpu_units: int, memory_mib: int) -> None:
        nearest = Size.nearest(cpu_units, memory_mib)

        assert (nearest.vcpu, nearest.memory_gib) == cheapest_that_fits(cpu_units / 1024, memory_mib / 1024)

    @pytest.mark.parametrize(
        ("given_size", "size"),
        [
            ({}, (0.25, 0.5)),
            ({"vcpu": 0.25}, (0.25, 0.5)),
            ({"vcpu": 4}, (4, 8)),
            ({"vcpu": 32}, (32, 60)),
            ({"memory_gib": 0.5}, (0.25, 0.5)),
            ({"memory_gib": 3}, (0.5, 3)),
            ({"memory_gib": 16}, (2, 16)),
            ({"memory_gib": 244}, (32, 244)),
        ],
    )
    def test_what_is_left_out_becomes_the_smallest(
        self, given_size: dict[str, float], size: tuple[float, float]
    ) -> None:
        found = container(**given_size).size

        assert (found.vcpu, found.memory_gib) == size

    @pytest.mark.parametrize("field", ["vcpu", "memory_gib"])
    @pytest.mark.parametrize(
        "value",
        [
            *(0.3, 0.2500001, 0.24999999, 1e-9, 5e-324, 1e9, 1e308, 10**400, 0, -1, math.nan, math.inf, -math.inf),
            *(True, "1", "1 vCPU", b"1", Decimal(1), [1], (1,), {}, 1 + 0j),
        ],
        ids=repr,
    )
    def test_an_odd_number_is_refused(self, field: str, value: object) -> None:
        error = refusal(container, **{field: value})

        assert error.field == field
        assert error.value is value

    @pytest.mark.parametrize(
        ("asked", "named"),
        [
            ({"vcpu": 0.3}, "vcpu=0.5, memory_gib=1"),
            ({"vcpu": 1e9}, "vcpu=32, memory_gib=244"),
            ({"memory_gib": 0.3}, "vcpu=0.25, memory_gib=0.5"),
            ({"memory_gib": 300}, "vcpu=32, memory_gib=244"),
            ({"vcpu": 0.25, "memory_gib": 4}, "vcpu=0.5, memory_gib=4"),
            ({"vcpu": 2, "memory_gib": 2}, "vcpu=2, memory_gib=4"),
            ({"vcpu": 32, "memory_gib": 61}, "vcpu=32, memory_gib=120"),
            ({"vcpu": 0.2500001, "memory_gib": 0.5}, "vcpu=0.5, memory_gib=1"),
        ],
    )
    def test_the_message_names_the_nearest(self, asked: dict[str, float], named: str) -> None:
        assert named in refusal(container, **asked).fix

    def test_a_size_that_does_not_exist_cannot_be_built(self) -> None:
        assert refusal(Size, cpu_units=300, memory_mib=512).field == "size"

    @pytest.mark.parametrize("size", list(Size.all()), ids=str)
    def test_more_memory_walks_up_the_valid_sizes_and_ends(self, size: Size) -> None:
        walk = list(growth(size))

        assert [s.memory_mib for s in walk] == sorted({s.memory_mib for s in walk})
        assert [s.cpu_units for s in walk] == sorted(s.cpu_units for s in walk)
        assert walk[-1].memory_gib == 244

    @pytest.mark.parametrize(
        ("size", "larger"),
        [
            ((256, 512), (256, 1024)),
            ((256, 2048), (512, 3072)),
            ((4096, 30720), (8192, 32768)),
            ((16384, 122880), (32768, 249856)),
            ((32768, 61440), (32768, 122880)),
        ],
    )
    def test_more_cpu_comes_only_where_fargate_asks_for_it(
        self, size: tuple[int, int], larger: tuple[int, int]
    ) -> None:
        assert Size(*size).with_more_memory() == Size(*larger)

    @given(st.sampled_from(list(Size.all())), st.floats(0, 300))
    @settings(deadline=None)
    def test_more_memory_stays_below_the_limit(self, size: Size, limit: float) -> None:
        walk = list(growth(size, at_most_gib=limit))[1:]

        assert all(s.memory_gib <= limit for s in walk)

    def test_a_size_reads_like_the_fields_of_a_job(self) -> None:
        assert str(Size.of(0.25, 2)) == "vcpu=0.25, memory_gib=2"


def growth(size: Size | None, **limit: float) -> Iterator[Size]:
    while size is not None:
        yield size
        size = size.with_more_memory(**limit)


# ---- refusals ------------------------------------------------------------------------------------------------------

NUL, HALF = "a\0b", "a\ud800"
NO_NAMES = [None, "", 5, b"x", "a b", "-a", "_a", "a.b", "ä", "a\n", "x" * 256]
NO_WORDS = [
    *("ls -l", b"ls", 5, True, [], (), ["a", 1], ["a", None], ["a", b"b"], [NUL], [HALF], {"ls", "-l"}),
    *({"ls": "-l"}, object(), Secret("x"), [Secret("x")], timedelta(1)),
]
NO_MAPPINGS = ["A=b", ["A=b"], [("A", "b")], 0, False, "", [], b"", object(), timedelta(0)]
NO_VARIABLES = [{"": "x"}, {"1A": "x"}, {"A B": "x"}, {"A=B": "x"}, {1: "x"}, {None: "x"}, {"Ä": "x"}, {"A\n": "x"}]
NO_IMAGES = [
    *("", " ", "a b", "a\n", "-rm", "/a", ":a", "@sha256:0", "a/", "a:", "a@", "Ubuntu", "reg.io/Ubuntu:22", NUL),
    *("réseau", 5, b"a", ["a"]),
]
NO_DIRECTORIES = ["", 5, b"/srv", NUL, "/" + HALF, ["/srv"]]
NO_DURATIONS = [5, 5.0, "5", True, b"5", [SECOND], timedelta(0), timedelta(seconds=-1), timedelta.min]
NO_NUMBERS = [0, -1, True, "1", b"1", math.nan, math.inf, 10**400, [1], Decimal(1)]
NO_CONDITIONS = [["proxy"], "proxy", 5, {"proxy": "start"}, {"proxy": None}, {"proxy": ["START"]}, {"proxy": True}]


# what is made, the field, the values refused, and the name that the error gives the field (None: the field itself)
@attrs.frozen
class EcsLike:
    """What only one platform understands."""

    task_definition: str | None = None


REFUSED: list[tuple[Callable[..., object], str, list[Any], str | None]] = [
    (container, "image", NO_IMAGES, None),
    (container, "command", NO_WORDS, None),
    (container, "ecs", ["nightly:3", 5, {}, EcsLike, Sidecar(name="proxy", image="proxy:1")], None),
    (container, "entry_point", NO_WORDS, None),
    (container, "name", NO_NAMES, None),
    (container, "key", ["", 5, b"k", "a\n", NUL, HALF, "x" * 513, "a\u202eb", ["k"]], None),
    (container, "env", NO_MAPPINGS, None),
    (container, "env", NO_VARIABLES, None),
    (container, "env", [{"A": v} for v in (1, 1.5, None, b"x", NUL, HALF, ["x"])], "env['A']"),
    (container, "env", [{"A": Secret("x")}, {"A": SecretRef(ARN)}], "env['A']"),
    (container, "secrets", [*NO_MAPPINGS, Secret("x"), SecretRef(ARN), ARN], None),
    (container, "secrets", NO_VARIABLES, None),
    (container, "secrets", [{"A": v} for v in ("plain", "", 1, None, b"x", [Secret("x")])], "secrets['A']"),
    (container, "working_directory", [*NO_DIRECTORIES, "srv/app", "."], None),
    (container, "ephemeral_storage_gib", [0, 20, 201, -1, 25.0, True, "30", b"30", math.nan, 10**400, [30]], None),
    (container, "architecture", ["arm64", "x86_64", "", 5, b"ARM64", ["ARM64"], True], None),
    (container, "timeout", NO_DURATIONS, None),
    (container, "start_timeout", [*NO_DURATIONS, None], None),
    (container, "stop_timeout", [*NO_DURATIONS, None, SECOND, 121 * SECOND], None),
    (container, "retry", [3, True, "3", Retry, Rule, [Retry()], {}, rule()], None),
    (container, "tags", NO_MAPPINGS, None),
    (container, "tags", [{"": "x"}, {"k" * 129: "x"}, {"k": "v" * 257}, {"aws:k": "x"}, {"AWS:k": "x"}], None),
    (container, "tags", [{"k": 1}, {1: "v"}, {"k": None}, {"k": b"v"}, {"k": "<v>"}, {"k": "a\n"}], None),
    (container, "tags", [{f"k{n}": "v" for n in range(51)}], None),
    (container, "container_name", NO_NAMES, None),
    (container, "sidecars", [None, 5, True, "proxy", b"proxy", {"proxy": "img"}, sidecar(), object()], None),
    (container, "sidecars", [[None], ["proxy"], [{"name": "proxy"}], [Sidecar], [[sidecar()]]], None),
    (container, "sidecars", [[sidecar(), sidecar()], [sidecar(name="main")]], None),
    (container, "sidecars", [[sidecar(name=f"s{n}") for n in range(10)]], None),
    (container, "depends_on", [*NO_CONDITIONS, {"proxy": "START"}], None),
    (sidecar, "name", NO_NAMES, "sidecar.name"),
    (sidecar, "image", [None, *NO_IMAGES], "sidecar.image"),
    (sidecar, "command", NO_WORDS, None),
    (sidecar, "entry_point", NO_WORDS, None),
    (sidecar, "env", [*NO_MAPPINGS, *NO_VARIABLES], None),
    (sidecar, "secrets", [*NO_MAPPINGS, *NO_VARIABLES], None),
    (sidecar, "essential", [None, 1, 0, "yes", [], object()], "sidecar.essential"),
    (sidecar, "working_directory", [*NO_DIRECTORIES, "srv"], "sidecar.working_directory"),
    (sidecar, "depends_on", NO_CONDITIONS, None),
    (sidecar, "health_check", [["true"], "true", True, {}, HealthCheck], "sidecar.health_check"),
    (sidecar, "vcpu", NO_NUMBERS, "sidecar.vcpu"),
    (sidecar, "memory_gib", NO_NUMBERS, "sidecar.memory_gib"),
    (beside, "vcpu", [1.5], "sidecar.vcpu"),
    (beside, "memory_gib", [3], "sidecar.memory_gib"),
    (health_check, "command", [None, *NO_WORDS], "health_check.command"),
    (health_check, "interval", [None, *NO_DURATIONS, 4 * SECOND, 301 * SECOND], "health_check.interval"),
    (health_check, "timeout", [None, *NO_DURATIONS, SECOND, 61 * SECOND], "health_check.timeout"),
    (health_check, "start_period", [None, 5, timedelta(seconds=-1), 301 * SECOND], "health_check.start_period"),
    (health_check, "retries", [None, 0, 11, 1.5, True, "3", b"3", [3]], "health_check.retries"),
    (rule, "then", [None, "again", "", 5, True, ["retry"]], "rule.then"),
    (rule, "kinds", ["failed", ["failed"], [], 5, [5], b"x", [[]], [None], object()], "rule.kinds"),
    (rule, "exit_codes", ["75", ["75"], [], 1.5, [1.5], True, [True], b"x", [None], object()], "rule.exit_codes"),
    (rule, "times", [None, -1, 1.5, True, "3", [3]], "rule.times"),
    (Retry, "failures", [None, -1, 1.5, True, "3", [3], math.inf], "retry.failures"),
    (Retry, "out_of_memory", [None, -1, 1.5, True, "3"], "retry.out_of_memory"),
    (Retry, "never_started", [None, -1, 1.5, True, "3"], "retry.never_started"),
    (Retry, "interruptions", [None, -1, 1.5, True, "3"], "retry.interruptions"),
    (Retry, "max_memory_gib", [None, 0, -1, math.nan, True, "16", [16], timedelta(1)], "retry.max_memory_gib"),
    (Retry, "rules", [None, rule(), 5, [5], ["retry"], "retry", [None], [Rule]], "retry.rules"),
    (Retry, "wait", [5, 1.5, "5", SECOND, True, timedelta], "retry.wait"),
]
REFUSED_ROWS = [
    pytest.param(make, field, value, named or field, id=f"{make.__name__}.{field}-{row}.{n}-{type(value).__name__}")
    for row, (make, field, values, named) in enumerate(REFUSED)
    for n, value in enumerate(values)
]


class TestRefusals:
    @pytest.mark.parametrize(("make", "field", "value", "named"), REFUSED_ROWS)
    def test_name_the_field_the_value_and_the_fix(
        self, make: Callable[..., object], field: str, value: object, named: str
    ) -> None:
        error = refusal(make, **{field: value})

        assert error.field == named
        assert str(error).startswith(f"{named}=")
        assert repr(error.value)[:100] in str(error)
        assert error.problem in str(error)
        assert error.fix
        assert str(error).endswith(error.fix)

    @pytest.mark.parametrize(
        ("make", "names"),
        [
            (container, {f.name for f in attrs.fields(Job) if f.init} - {"vcpu", "memory_gib"}),  # see TestSizes
            (sidecar, {f.name for f in attrs.fields(Sidecar)}),
            (health_check, {f.name for f in attrs.fields(HealthCheck)}),
            (rule, {f.name for f in attrs.fields(Rule)}),
            (Retry, {f.name for f in attrs.fields(Retry)}),
        ],
    )
    def test_are_tried_for_every_field(self, make: object, names: set[str]) -> None:
        assert {field for maker, field, _, _ in REFUSED if maker is make} == names

    @given(
        st.sampled_from([
            *((container, f.name) for f in attrs.fields(Job) if f.init),
            *((sidecar, f.name) for f in attrs.fields(Sidecar)),
            *((health_check, f.name) for f in attrs.fields(HealthCheck)),
            *((rule, f.name) for f in attrs.fields(Rule)),
            *((Retry, f.name) for f in attrs.fields(Retry)),
        ]),
        st.recursive(
            st.one_of(
                st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.timedeltas(),
                st.decimals(), st.just(object()), st.just(int), st.just(Secret("x")), st.sampled_from(Kind),
                st.sampled_from([sidecar(), health_check(), rule(), Retry(), container(), "START", "proxy", ARN]),
            ),
            lambda inner: st.lists(inner, max_size=3)
            | st.dictionaries(st.one_of(st.text(), st.integers(), st.none()), inner, max_size=3)
            | st.sets(st.text(), max_size=3),
            max_leaves=5,
        ),
    )  # fmt: skip
    @settings(deadline=None, max_examples=1000)
    def test_are_the_only_answer_to_nonsense(self, place: tuple[Callable[..., object], str], value: object) -> None:
        made = _made_or_refused(place[0], place[1], value)

        assert repr(made)
        assert isinstance(hash(made), int)

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"command": None, "image": None}, "command"),
            ({"image": None, "sidecars": [sidecar()]}, "sidecars"),
            ({"image": None, "depends_on": {"proxy": "START"}}, "depends_on"),
            ({"depends_on": {"proxy": "START"}}, "depends_on"),
            ({"depends_on": {"nobody": "START"}, "sidecars": [sidecar()]}, "depends_on"),
            ({"depends_on": {"main": "START"}, "sidecars": [sidecar()]}, "depends_on"),
            ({"depends_on": {"proxy": "HEALTHY"}, "sidecars": [sidecar()]}, "depends_on"),
            ({"depends_on": {"proxy": "COMPLETE"}, "sidecars": [sidecar(essential=True)]}, "depends_on"),
            ({"depends_on": {"proxy": "SUCCESS"}, "sidecars": [sidecar(essential=True)]}, "depends_on"),
            ({"sidecars": [sidecar(depends_on={"main": "START"})]}, "depends_on"),
            ({"sidecars": [sidecar(depends_on={"proxy": "START"})]}, "depends_on"),
            ({"sidecars": [sidecar(name="a", depends_on={"b": "START"}), sidecar(name="b", depends_on={"a": "START"})]},
             "depends_on"),
            ({"sidecars": [sidecar(name=name, memory_gib=0.3) for name in "ab"]}, "sidecar.memory_gib"),
            ({"container_name": "proxy", "sidecars": [sidecar()]}, "sidecars"),
            ({"env": {"A": "x"}, "secrets": {"A": Secret("y")}}, "secrets['A']"),
        ],
    )  # fmt: skip
    def test_meet_what_cannot_go_together(self, fields: dict[str, Any], field: str) -> None:
        assert refusal(container, **fields).field == field

    @pytest.mark.parametrize(
        ("value", "fix"),
        [(5, "timedelta(seconds=5)"), (1.5, "timedelta(seconds=1.5)"), ("5", "timedelta(seconds=…)")],
    )
    def test_show_how_to_write_a_duration(self, value: object, fix: str) -> None:
        assert fix in refusal(container, timeout=value).fix

    def test_show_how_to_write_a_number_in_the_environment(self) -> None:
        assert refusal(container, env={"N": 5}).fix == "write str(5)"

    def test_show_how_to_hand_over_a_secret(self) -> None:
        assert refusal(container, env={"TOKEN": Secret("x")}).fix == "write secrets={'TOKEN': …} instead"

    def test_show_the_lower_case_image(self) -> None:
        assert "registry.example:5000/team/app:V1" in refusal(container, image="registry.example:5000/Team/App:V1").fix

    def test_fit_on_a_line_whatever_the_size_of_the_value(self) -> None:
        error = refusal(container, command="x" * 10_000_000)

        assert len(str(error)) < 500
        assert len(str(error.value)) == 10_000_000

    @pytest.mark.parametrize("fields", [{"command": "ls"}, {"vcpu": 3}, {"tags": {"aws:x": "y"}}])
    def test_survive_pickling(self, fields: dict[str, Any]) -> None:
        error = refusal(container, **fields)

        again = pickle.loads(pickle.dumps(error))

        assert (str(again), again.field, again.value, again.fix) == (str(error), error.field, error.value, error.fix)

    def test_are_value_errors_too(self) -> None:
        assert issubclass(InvalidJob, ValueError)


def _made_or_refused(make: Callable[..., object], field: str, value: object) -> object:
    try:
        return make(**{field: value})
    except InvalidJob as error:
        return error


class TestAccepted:
    @pytest.mark.parametrize(
        "image",
        [
            *("busybox", "busybox:latest", "team/app", "registry.example/team/app:1.2-rc1", "localhost:5000/app"),
            *("registry:5000/a/b/c:TAG", "Registry.Example/app", f"app@sha256:{'0a' * 32}", f"a:1@sha256:{'0a' * 32}"),
            *("a__b/c--d.e", "123456789012.dkr.ecr.eu-west-1.amazonaws.com/app:V2"),
        ],
    )
    def test_the_name_of_an_image(self, image: str) -> None:
        assert container(image=image).image == image

    @pytest.mark.parametrize(
        "fields",
        [
            {"command": None},
            {"command": ["printf", "%s", "", "ünïcödé\n"]},
            {"command": iter(["a", "b"])},
            {"entry_point": ("sh", "-c")},
            {"image": None, "command": ["true"], "working_directory": "src"},
            {"name": "x" * 255},
            {"key": "nightly/2026-11-22 ü"},
            {"key": "x" * 512},
            {"env": {"A.b-c_1": ""}},
            {"secrets": {"A": ARN, "B": SecretRef(ARN), "C": Secret("")}},
            {"ephemeral_storage_gib": 21},
            {"ephemeral_storage_gib": 200},
            {"architecture": "ARM64"},
            {"timeout": timedelta(microseconds=1)},
            {"start_timeout": timedelta.max},
            {"stop_timeout": 2 * SECOND},
            {"stop_timeout": 120 * SECOND},
            {"retry": Retry(failures=3)},
            {"tags": {f"k{n}": "v" for n in range(50)}},
            {"tags": {"k" * 128: "v" * 256, "Ü b_.:/=+-@": ""}},
            {"sidecars": [sidecar(name=f"s{n}") for n in range(9)]},
            {"sidecars": [sidecar(name=name, vcpu=0.125, memory_gib=0.25) for name in "ab"]},
            {"sidecars": [sidecar(health_check=health_check())], "depends_on": {"proxy": "HEALTHY"}},
            {"sidecars": [sidecar()], "depends_on": {"proxy": "SUCCESS"}},
            {"sidecars": [sidecar(essential=True)], "depends_on": {"proxy": "START"}},
            {"depends_on": {}},
        ],
    )  # fmt: skip
    def test_what_a_job_may_say(self, fields: dict[str, Any]) -> None:
        assert container(**fields)

    def test_none_stands_for_nothing(self) -> None:
        nothing = container(env=None, secrets=None, tags=None)

        assert nothing == container()
        assert (dict(nothing.env), dict(nothing.secrets), dict(nothing.tags)) == ({}, {}, {})

    def test_an_arn_among_the_secrets_becomes_a_reference(self) -> None:
        assert container(secrets={"A": ARN}).secrets["A"] == SecretRef(ARN)

    @pytest.mark.parametrize("key", ["k", "nightly/2026-11-22", "x" * 512])
    def test_a_key(self, key: str) -> None:
        assert check_key(key) == key

    def test_containers_start_after_those_they_wait_for(self) -> None:
        third = sidecar(name="third", depends_on={"second": "START"})
        second = sidecar(name="second", depends_on={"first": "COMPLETE"})
        job = container(sidecars=[third, second, sidecar(name="first")])

        assert start_order(job) == ["first", "second", "third", "main"]

    @given(st.permutations(range(9)), st.data())
    @settings(deadline=None)
    def test_any_order_without_a_circle_is_found(self, numbers: list[int], data: st.DataObject) -> None:
        earlier = [st.sets(st.sampled_from(numbers[:place])) for place in range(1, 9)]
        waits = dict(zip(numbers, [set[int](), *map(data.draw, earlier)], strict=True))
        sidecars = [sidecar(name=f"s{n}", depends_on={f"s{o}": "START" for o in waits[n]}) for n in range(9)]

        order = start_order(container(sidecars=sidecars))

        assert all(order.index(f"s{o}") < order.index(f"s{n}") for n in waits for o in waits[n])


# ---- values --------------------------------------------------------------------------------------------------------

FULL = container(
    name="full",
    key="full/1",
    entry_point=["sh", "-c"],
    env={"B": "2", "A": "1"},
    secrets={"TOKEN": ARN},
    working_directory="/srv",
    vcpu=2,
    memory_gib=8,
    ephemeral_storage_gib=50,
    architecture="X86_64",
    timeout=timedelta(hours=1),
    retry=Retry(failures=2, rules=[rule(exit_codes=75)]),
    tags={"team": "data"},
    sidecars=[sidecar(health_check=health_check(), env={"P": "1"}, vcpu=0.5)],
    depends_on={"proxy": "HEALTHY"},
)

# a change of every field that makes another job
CHANGES: dict[str, Any] = {
    "image": "registry/name:2",
    "command": ["false"],
    "entry_point": None,
    "name": "other",
    "env": {"A": "1"},
    "secrets": {"TOKEN": ARN + "2"},
    "working_directory": "/",
    "vcpu": 4,
    "memory_gib": 9,
    "ephemeral_storage_gib": 51,
    "architecture": "ARM64",
    "timeout": timedelta(hours=2),
    "start_timeout": timedelta(hours=1),
    "stop_timeout": timedelta(minutes=1),
    "ecs": EcsLike("nightly:3"),
    "tags": {"team": "web"},
    "container_name": "worker",
    "sidecars": [sidecar(health_check=health_check(retries=4), env={"P": "1"}, vcpu=0.5)],
    "depends_on": {"proxy": "START"},
}


class TestDerivation:
    def test_changes_one_field_and_keeps_the_rest(self) -> None:
        changed = FULL.with_(command=["false"])

        assert changed.command == ("false",)
        assert changed.with_(command=["true"]) == FULL
        assert FULL.command == ("true",)

    @pytest.mark.parametrize("field", CHANGES)
    def test_takes_every_field(self, field: str) -> None:
        assert FULL.with_(**{field: CHANGES[field]}) != FULL

    def test_is_checked_again(self) -> None:
        assert refusal(FULL.with_, memory_gib=100).field == "memory_gib"

    def test_computes_the_size_again(self) -> None:
        assert container().with_(memory_gib=16).size == Size.of(2, 16)

    @pytest.mark.parametrize("name", ["cpu", "size", "imgae", "self"])
    def test_names_a_field_that_does_not_exist(self, name: str) -> None:
        error = refusal(lambda **changes: FULL.with_(**changes), **{f"{name}_": "hunter2"})

        assert error.field == f"{name}_"
        assert "command" in error.fix
        assert "hunter2" not in str(error)

    def test_refuses_the_size_which_is_computed(self) -> None:
        assert refusal(FULL.with_, size=Size.of(1, 2)).field == "size"

    def test_keeps_the_class(self) -> None:
        class Special(Job):
            pass

        assert isinstance(Special(command=["true"]).with_(name="x"), Special)


class TestWatchdog:
    """The sidecar whose end is the deadline of its job."""

    def test_it_sleeps_under_a_reserved_name_and_its_end_is_everybodys(self) -> None:
        side = Sidecar.watchdog(timedelta(hours=2), image="registry.example/busybox:1")

        assert (side.name, side.image) == ("fargate-runner-deadline", "registry.example/busybox:1")
        assert (side.entry_point, side.command) == (("sleep",), ("7200",))
        assert side.essential
        assert side.is_watchdog

    @pytest.mark.parametrize(
        ("after", "command"),
        [(timedelta(seconds=1), "1"), (timedelta(seconds=1.2), "2"), (timedelta(days=30), "2592000")],
        ids=str,
    )
    def test_it_sleeps_whole_seconds_and_never_too_few(self, after: timedelta, command: str) -> None:
        assert Sidecar.watchdog(after).command == (command,)

    @pytest.mark.parametrize("after", [None, 60, "1h", timedelta(), timedelta(seconds=-1), timedelta(seconds=0.5)])
    def test_what_is_no_time_to_sleep_is_refused(self, after: Any) -> None:
        with pytest.raises(InvalidJob, match=r"sidecar\.watchdog"):
            Sidecar.watchdog(after)

    @pytest.mark.parametrize(
        "change",
        [
            {"essential": False},
            {"entry_point": None},
            {"entry_point": ["nap"]},
            {"command": None},
            {"command": ["1", "2"]},
            {"command": ["1h"]},
            {"command": ["0"]},
            {"command": ["-1"]},
            {"depends_on": {"proxy": "START"}},
            {"health_check": HealthCheck(command=["true"])},
        ],
        ids=str,
    )
    def test_nothing_else_may_have_its_name(self, change: dict[str, Any]) -> None:
        with pytest.raises(InvalidJob, match=r"Sidecar\.watchdog"):
            attrs.evolve(Sidecar.watchdog(timedelta(hours=1)), **change)

    def test_nor_may_the_job(self) -> None:
        with pytest.raises(InvalidJob, match="container_name"):
            container(container_name="fargate-runner-deadline")

    def test_one_is_enough(self) -> None:
        with pytest.raises(InvalidJob, match="share a name"):
            container(sidecars=[Sidecar.watchdog(timedelta(hours=1)), Sidecar.watchdog(timedelta(hours=2))])

    def test_its_limits_are_within_the_jobs(self) -> None:
        side = Sidecar.watchdog(timedelta(hours=1), vcpu=0.125, memory_gib=0.01)

        assert container(sidecars=[side], vcpu=1).sidecars == (side,)

    def test_it_is_part_of_what_the_job_is(self) -> None:
        one, other = (container(sidecars=[Sidecar.watchdog(timedelta(hours=hours))]) for hours in (1, 2))

        assert one.fingerprint != other.fingerprint


class TestValues:
    @pytest.mark.parametrize("field", [f.name for f in attrs.fields(Job)])
    def test_no_field_can_be_written(self, field: str) -> None:
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(FULL, field, None)

    @pytest.mark.parametrize("field", ["env", "secrets", "tags", "depends_on"])
    def test_no_mapping_can_be_written(self, field: str) -> None:
        with pytest.raises(TypeError):
            getattr(FULL, field)["A"] = "x"

    def test_a_mapping_is_copied(self) -> None:
        env = {"A": "1"}
        job = container(env=env)

        env["A"] = "2"

        assert job.env == {"A": "1"}

    def test_equal_jobs_are_equal_and_hash_alike(self) -> None:
        one, other = container(env={"A": "1", "B": "2"}), container(env={"B": "2", "A": "1"})

        assert one == other
        assert len({one, other}) == 1

    @pytest.mark.parametrize("field", CHANGES)
    def test_different_jobs_are_not_equal(self, field: str) -> None:
        assert {FULL, FULL.with_(**{field: CHANGES[field]})} != {FULL}

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda job: pickle.loads(pickle.dumps(job))])
    def test_a_copy_is_equal(self, copied: Callable[[Job], Job]) -> None:
        again = copied(FULL)

        assert again == FULL
        assert hash(again) == hash(FULL)
        assert again.size == FULL.size
        assert again.fingerprint == FULL.fingerprint

    @pytest.mark.parametrize("value", [FULL, FULL.sidecars[0], FULL.sidecars[0].health_check, FULL.retry, FULL.size])
    def test_every_value_has_a_repr(self, value: object) -> None:
        assert type(value).__name__ in repr(value)

    def test_rules_that_say_the_same_are_equal(self) -> None:
        assert rule(exit_codes=[111, 75]) == rule(exit_codes={75, 111})
        assert rule(exit_codes=75) == rule(exit_codes=[75])
        assert rule(kinds=Kind.FAILED) == rule(kinds=[Kind.FAILED])


class TestDescriptions:
    def test_are_json_and_come_back_the_same(self) -> None:
        assert json.loads(json.dumps(FULL.describe())) == FULL.describe()

    @given(st.permutations(["A", "B", "C", "D"]), st.permutations(["x", "y", "z"]))
    @settings(deadline=None)
    def test_do_not_know_the_order_of_mappings(self, names: list[str], tags: list[str]) -> None:
        job = container(env={n: n for n in names}, tags={t: t for t in tags})
        sorted_job = container(env={n: n for n in sorted(names)}, tags={t: t for t in sorted(tags)})

        assert job.describe() == sorted_job.describe()
        assert job.fingerprint == sorted_job.fingerprint

    @pytest.mark.parametrize("change", [{"key": "other"}, {"key": None}, {"retry": None}, {"retry": Retry(failures=9)}])
    def test_leave_out_what_makes_no_other_job(self, change: dict[str, Any]) -> None:
        assert FULL.with_(**change).fingerprint == FULL.fingerprint

    def test_leave_out_the_value_of_a_secret(self) -> None:
        one, other = (container(secrets={"TOKEN": Secret(value)}) for value in ("hunter2", "hunter3"))

        assert one.fingerprint == other.fingerprint
        assert "hunter" not in json.dumps(one.describe())

    @pytest.mark.parametrize("field", CHANGES)
    def test_differ_for_another_job(self, field: str) -> None:
        assert FULL.with_(**{field: CHANGES[field]}).fingerprint != FULL.fingerprint

    def test_are_tried_for_every_field(self) -> None:
        assert set(CHANGES) == {f.name for f in attrs.fields(Job) if f.init} - {"key", "retry"}

    def test_tell_the_place_of_a_secret(self) -> None:
        prints = {
            container().fingerprint,
            container(secrets={"A": Secret("x")}).fingerprint,
            container(secrets={"B": Secret("x")}).fingerprint,
            container(secrets={"A": ARN}).fingerprint,
            container(env={"A": "x"}).fingerprint,
        }

        assert len(prints) == 5

    def test_do_not_mind_how_the_size_was_written(self) -> None:
        assert container().fingerprint == container(vcpu=0.25, memory_gib=0.5).fingerprint

    def test_have_a_fingerprint_of_64_hexadecimal_digits(self) -> None:
        assert re.fullmatch("[0-9a-f]{64}", FULL.fingerprint)


class TestWhatOnlyOnePlatformUnderstands:
    def test_may_say_what_to_run(self) -> None:
        assert Job(ecs=EcsLike("nightly:3")).image is None

    def test_does_not_replace_an_image_otherwise(self) -> None:
        assert refusal(Job, ecs=EcsLike()).field == "command"
