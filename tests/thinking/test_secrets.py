"""A secret never shows: 1,000 random values against every place where a program shows what it holds."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import pprint
import random
import string
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import attrs
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from fargate_runner import Identity, InvalidJob, Job, Launch, Secret, SecretRef, Sidecar

MARK = "cAnArY"
_RANDOM = random.Random(20261122)
CANARIES = ["".join(_RANDOM.choices(string.ascii_letters + string.digits + "+/=_-.", k=24)) + MARK for _ in range(1000)]
ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:token"


def job(value: str) -> Job:
    proxy = Sidecar(name="proxy", image="proxy:1", secrets={"P": Secret(value)})
    return Job(image="img", command=["true"], secrets={"TOKEN": Secret(value)}, sidecars=[proxy])


def launch(value: str) -> Launch:
    return Launch(
        token="t",
        identity=Identity(namespace="n", key="k", attempt=1),
        job_name="job",
        description=job(value).describe(),
        request={},
        secrets={"TOKEN": Secret(value)},
    )


HOLDERS: dict[str, Callable[[str], object]] = {
    "secret": Secret,
    "in-a-dict": lambda value: {"TOKEN": Secret(value)},
    "in-a-list": lambda value: [Secret(value)],
    "in-a-job": job,
    "in-the-secrets-of-a-job": lambda value: job(value).secrets,
    "in-a-sidecar": lambda value: job(value).sidecars[0],
    "in-a-launch": launch,
    "in-a-copy": lambda value: copy.copy(Secret(value)),
    "in-a-deep-copy": lambda value: copy.deepcopy(job(value)),
    "in-attrs": lambda value: attrs.asdict(job(value)),
    "in-a-changed-job": lambda value: job(value).with_(name="other"),
}


def logged(thing: object) -> str:
    out = io.StringIO()
    logger = logging.getLogger(__name__)
    handler = logging.StreamHandler(out)
    logger.addHandler(handler)
    logger.warning("%s %r", thing, thing, exc_info=raised(thing))
    logger.removeHandler(handler)
    return out.getvalue()


def structured(thing: object) -> str:
    out = io.StringIO()
    for renderer in (structlog.processors.JSONRenderer(), structlog.dev.ConsoleRenderer(colors=False)):
        log = structlog.wrap_logger(structlog.PrintLogger(out), processors=[renderer])
        log.info("event", thing=thing)
    tracebacks = [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    structlog.wrap_logger(structlog.PrintLogger(out), processors=tracebacks).error("event", exc_info=raised(thing))
    return out.getvalue()


def raised(thing: object) -> Exception:
    """An exception from a frame that holds *thing* in a variable."""
    try:
        _fail(thing)
    except RuntimeError as error:
        return error
    raise AssertionError


def _fail(thing: object) -> None:
    kept = [thing]
    raise RuntimeError(f"failed with {thing} in {kept!r}")


def traced(thing: object) -> str:
    return "".join(traceback.TracebackException.from_exception(raised(thing), capture_locals=True).format())


def richly_traced(thing: object) -> str:
    error = raised(thing)
    return rendered(error, error.__traceback__)


def rendered(error: Exception, frames: TracebackType | None) -> str:
    rich_traceback = pytest.importorskip("rich.traceback")
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=500)
    options: dict[str, Any] = {"show_locals": True, "locals_max_length": None, "locals_max_string": None}
    console.print(rich_traceback.Traceback.from_exception(type(error), error, frames, **options))
    return console.file.getvalue()


SINKS: dict[str, Callable[[object], str]] = {
    "repr": repr,
    "str": str,
    "f-string": lambda thing: f"{thing} {thing!r} {thing!s} {thing!a}",
    "format": lambda thing: "{} {!r}".format(thing, thing),  # noqa: UP032
    "percent": lambda thing: "%s %r" % (thing, thing),  # noqa: UP031
    "pprint": pprint.pformat,
    "json": lambda thing: json.dumps({"thing": thing}, default=str) + json.dumps([thing], default=repr),
    "logging": logged,
    "structlog": structured,
    "traceback": traced,
    "rich": richly_traced,
}


FEWER = {"rich": 20}  # it takes a tenth of a second for each job


class TestEverySink:
    @pytest.mark.parametrize("holder", HOLDERS)
    @pytest.mark.parametrize("sink", SINKS)
    def test_shows_no_secret(self, sink: str, holder: str) -> None:
        held = [HOLDERS[holder](value) for value in CANARIES[: FEWER.get(sink, 1000)]]

        shown = SINKS[sink](held)

        assert shown
        assert MARK not in shown

    @pytest.mark.parametrize("sink", SINKS)
    def test_would_show_a_plain_value(self, sink: str) -> None:
        assert MARK in SINKS[sink]([CANARIES[0]])

    @pytest.mark.parametrize("sink", ["repr", "str", "f-string", "json", "traceback"])
    @given(st.text(min_size=1).filter(lambda text: "\0" not in text))
    @settings(deadline=None, max_examples=30)
    def test_shows_no_secret_of_any_shape(self, sink: str, value: str) -> None:
        usual = SINKS[sink](Secret("x"))

        assert SINKS[sink](Secret(value)) == usual

    def test_shows_no_secret_by_itself(self) -> None:
        shown = "".join(f"{s}{s!r}{s:>40}{s:s}{s!a}" for s in map(Secret, CANARIES))

        assert MARK not in shown


class TestWhatIsWrittenDown:
    def test_a_description_holds_no_secret(self) -> None:
        assert MARK not in "".join(json.dumps(job(value).describe()) for value in CANARIES)

    def test_a_launch_holds_no_secret(self) -> None:
        assert MARK not in "".join(launch(value).to_json() for value in CANARIES)

    def test_a_fingerprint_does_not_depend_on_it(self) -> None:
        assert len({job(value).fingerprint for value in CANARIES}) == 1

    @pytest.mark.parametrize("holder", HOLDERS)
    @pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
    def test_nothing_is_pickled_with_it(self, holder: str, protocol: int) -> None:
        with pytest.raises(TypeError, match="SecretRef") as caught:
            pickle.dumps(HOLDERS[holder](CANARIES[0]), protocol)

        assert MARK not in str(caught.value)

    def test_it_is_not_serialised_without_being_asked(self) -> None:
        with pytest.raises(TypeError, match="Secret"):
            json.dumps(Secret(CANARIES[0]))


def refused_jobs() -> Iterator[dict[str, Any]]:
    for value in CANARIES:
        secret = Secret(value)
        yield {"env": {"TOKEN": secret}}
        yield {"env": [("TOKEN", secret)]}
        yield {"secrets": {"TOKEN": value}}
        yield {"secrets": {"TOKEN": value.encode()}}
        yield {"secrets": value}
        yield {"secrets": [value]}
        yield {"secrets": {"1": secret}}
        yield {"secrets": {"TOKEN": secret}, "env": {"TOKEN": "x"}}
        yield {"secrets": {"TOKEN": secret}, "vcpu": 3}
        yield {"command": ["login", secret]}
        yield {"command": secret}
        yield {"image": secret}
        yield {"tags": {"k": secret}}
        yield {"key": secret}


class TestRefusals:
    def test_show_no_secret(self) -> None:
        errors = [refusal(fields) for fields in refused_jobs()]

        assert MARK not in "".join(f"{e}{e!r}{e.value}{e.value!r}{e.fix}{e.problem}{e.args}" for e in errors)

    def test_of_a_wrapped_value_show_it_in_no_variable(self) -> None:
        with pytest.raises(InvalidJob) as caught:
            refuse_with_secrets(*CANARIES[:2])

        ours = caught.tb.tb_next
        assert ours is not None
        assert MARK not in rendered(caught.value, ours.tb_next)

    @pytest.mark.parametrize("value", [CANARIES[0].encode(), CANARIES[0] + "\0", CANARIES[0] + "\ud800"])
    def test_of_a_value_that_no_secret_can_hold_do_not_show_it(self, value: Any) -> None:
        with pytest.raises(InvalidJob) as caught:
            Secret(value)

        ours = caught.tb.tb_next
        assert ours is not None
        trace = traceback.TracebackException(InvalidJob, caught.value, ours, capture_locals=True)
        assert MARK not in "".join(trace.format())

    @pytest.mark.parametrize("value", [None, b"x", 5, ["x"], "a\0b", "\ud800"])
    def test_of_a_secret_name_the_field_and_a_fix(self, value: Any) -> None:
        with pytest.raises(InvalidJob, match=r"secrets=.*os\.environ"):
            Secret(value)

    @pytest.mark.parametrize("arn", ["", "token", None, 5, b"arn:x", CANARIES[0]])
    def test_of_a_reference_do_not_show_what_may_be_a_value(self, arn: Any) -> None:
        with pytest.raises(InvalidJob, match="not shown") as caught:
            SecretRef(arn)

        assert MARK not in str(caught.value)

    def test_of_a_field_that_does_not_exist_do_not_show_its_value(self) -> None:
        with pytest.raises(InvalidJob) as caught:
            job(CANARIES[0]).with_(secret={"TOKEN": CANARIES[1]})

        assert MARK not in f"{caught.value}{caught.value.value}"


def refuse_with_secrets(one: str, other: str) -> None:
    Job(image="img", secrets={"TOKEN": Secret(one), "1": Secret(other)})


def refusal(fields: dict[str, Any]) -> InvalidJob:
    usual: dict[str, Any] = {"image": "img", "command": ["true"]}
    with pytest.raises(InvalidJob) as caught:
        Job(**usual | fields)
    return caught.value


class TestTheValue:
    def test_is_given_to_whoever_asks_for_it(self) -> None:
        assert [Secret(value).reveal() for value in CANARIES] == CANARIES

    def test_makes_secrets_equal(self) -> None:
        assert Secret("ä") == Secret("ä")
        assert Secret("a") != Secret("b")
        assert Secret("a") != "a"
        assert len({Secret("a"), Secret("a"), Secret("b")}) == 2

    def test_cannot_be_given_other_attributes(self) -> None:
        with pytest.raises(AttributeError):
            Secret("a").value = "b"  # type: ignore[attr-defined]
