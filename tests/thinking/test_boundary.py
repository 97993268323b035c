"""The values that cross the boundary: launches that can be written down and sent again, tokens that never change."""

from __future__ import annotations

import json
import pickle
import re
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fargate_runner import Identity, Job, Launch, Secret, SecretRef, TaskRef
from fargate_runner._backend import launch_token

IDENTITY = Identity(namespace="default", key="nightly/1", attempt=2)
JOB = Job(image="img", command=["echo", "ü"], env={"B": "2", "A": "1"}, secrets={"TOKEN": Secret("hunter2")})
LAUNCH = Launch(
    token="abc",
    identity=IDENTITY,
    job_name="nightly",
    description=JOB.describe(),
    request={"image": "img@sha256:0", "ports": [1, 2], "nested": {"b": None, "a": 1.5}},
    secrets=JOB.secrets,
)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
IDENTITIES = st.builds(Identity, namespace=NAMES, key=NAMES, attempt=st.integers(1, 99), placement=st.integers(1, 99))


class TestTokens:
    def test_are_the_same_for_ever(self) -> None:
        # Platforms remember tokens over restarts and upgrades of this library. If one of these changes, a job that is
        # sent again after an upgrade runs twice. Never change the expected values.
        assert launch_token("engine", IDENTITY) == "mnclqoudjr436tpasfgafcwutwqclz77ysmrvlje3poo3zlwppjq"
        assert (
            launch_token("", Identity(namespace="n", key="ü", attempt=1, placement=3))
            == "fkakt2jgn6q2rwfpvuem2vmtkw5avb5mllszscukulkedlffjqza"
        )

    @given(NAMES, IDENTITIES)
    @settings(deadline=None)
    def test_are_52_characters_that_every_platform_takes(self, scope: str, identity: Identity) -> None:
        token = launch_token(scope, identity)

        assert re.fullmatch("[a-z2-7]{52}", token)
        assert launch_token(scope, attrs.evolve(identity)) == token

    @given(NAMES, IDENTITIES, NAMES, IDENTITIES)
    @settings(deadline=None)
    def test_differ_for_different_launches(self, scope: str, one: Identity, elsewhere: str, other: Identity) -> None:
        same = launch_token(scope, one) == launch_token(elsewhere, other)

        assert same == ((scope, one) == (elsewhere, other))

    @pytest.mark.parametrize("change", [{"namespace": "x"}, {"key": "x"}, {"attempt": 3}, {"placement": 2}])
    def test_differ_in_every_part(self, change: dict[str, Any]) -> None:
        assert launch_token("engine", attrs.evolve(IDENTITY, **change)) != launch_token("engine", IDENTITY)

    def test_do_not_run_together_where_parts_meet(self) -> None:
        one = Identity(namespace="a", key="bc", attempt=11, placement=1)
        other = Identity(namespace="ab", key="c", attempt=1, placement=11)

        assert launch_token("s", one) != launch_token("s", other)


class TestIdentities:
    def test_tell_a_job_who_it_is(self) -> None:
        assert IDENTITY.variables == {
            "FARGATE_RUNNER_NAMESPACE": "default",
            "FARGATE_RUNNER_KEY": "nightly/1",
            "FARGATE_RUNNER_ATTEMPT": "2",
        }

    def test_begin_with_the_first_placement(self) -> None:
        assert IDENTITY.placement == 1


class TestLaunches:
    def test_come_back_as_they_were(self) -> None:
        again = Launch.from_json(LAUNCH.to_json(), secrets=JOB.secrets)

        assert again == LAUNCH
        assert again.secrets == LAUNCH.secrets
        assert again.identity == IDENTITY

    @given(
        st.builds(
            Launch,
            token=st.text(),
            identity=IDENTITIES,
            job_name=st.text(),
            description=st.dictionaries(st.text(), JSON, max_size=3),
            request=st.dictionaries(st.text(), JSON, max_size=3),
        )
    )
    @settings(deadline=None)
    def test_of_any_kind_come_back_as_the_same_bytes(self, launch: Launch) -> None:
        text = launch.to_json()

        again = Launch.from_json(text)

        assert again == launch
        assert again.to_json() == text

    def test_are_the_same_text_whatever_the_order(self) -> None:
        shuffled = attrs.evolve(LAUNCH, request=dict(reversed(list(LAUNCH.request.items()))))

        assert shuffled.to_json() == LAUNCH.to_json()

    def test_are_one_line_of_ascii(self) -> None:
        text = LAUNCH.to_json()

        assert text.isascii()
        assert "\n" not in text

    def test_leave_the_secrets_out(self) -> None:
        assert "hunter2" not in LAUNCH.to_json() + repr(LAUNCH) + str(attrs.asdict(LAUNCH))
        assert Launch.from_json(LAUNCH.to_json()).secrets == {}

    def test_take_the_secrets_again(self) -> None:
        secrets = {"TOKEN": SecretRef("arn:aws:ssm:x")}

        assert Launch.from_json(LAUNCH.to_json(), secrets=secrets).secrets == secrets

    def test_with_a_secret_are_not_pickled(self) -> None:
        with pytest.raises(TypeError, match="SecretRef"):
            pickle.dumps(LAUNCH)


class TestAddresses:
    REF = TaskRef(backend="docker", address="fr-1", key="k", attempt=1, token="t", description=JOB.describe())

    def test_are_the_same_wherever_they_were_found(self) -> None:
        elsewhere = attrs.evolve(self.REF, description=None)

        assert elsewhere == self.REF
        assert len({elsewhere, self.REF}) == 1

    def test_come_back_from_json(self) -> None:
        again = TaskRef(**json.loads(json.dumps(attrs.asdict(self.REF))))

        assert again == self.REF
        assert again.description == self.REF.description

    def test_come_back_from_a_pickle(self) -> None:
        assert pickle.loads(pickle.dumps(self.REF)) == self.REF

    @pytest.mark.parametrize("change", [{"address": "fr-2"}, {"attempt": 2}, {"token": "u"}, {"backend": "process"}])
    def test_differ_for_another_attempt(self, change: dict[str, Any]) -> None:
        assert attrs.evolve(self.REF, **change) != self.REF
