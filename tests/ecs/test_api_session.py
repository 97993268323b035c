"""The session of our own: what it sends is what a stock one would send, and where it finds its settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import botocore
import botocore.session
import pytest
from botocore.exceptions import UnknownServiceError

from fargate_runner import BackendUnavailable
from fargate_runner.backends.ecs import _api, _lean
from fargate_runner.backends.ecs._api import Api
from fargate_runner.testing.aws import FakeAws

VARIABLES = ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("ecs.DescribeTasks", {"tasks": ["1"]}),
    ("ecs.RunTask", {"taskDefinition": "fr-a:1", "clientToken": "t"}),
    ("logs.GetLogEvents", {"logGroupName": "/fr", "logStreamName": "a"}),
    ("sts.GetCallerIdentity", {}),
    ("ssm.PutParameter", {"Name": "/a", "Value": "b", "Type": "String"}),
    ("s3.PutObject", {"Bucket": "payloads", "Key": "a/b.env", "Body": b"A=1"}),
    ("ec2.DescribeVpcs", {}),
    ("dynamodb.PutItem", {"TableName": "jobs", "Item": {"key": {"S": "job"}, "page": {"B": b"\x00\xff"}}}),
]


@pytest.fixture
def anyio_backend() -> object:
    return "asyncio"  # threads and files take real time


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


@pytest.fixture
def somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAFAKE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fake")


class Sent(Exception):
    """Instead of sending a request."""

    def __init__(self, request: Any) -> None:
        super().__init__()
        self.request = request


async def sent(*, region: str, fast: bool) -> dict[str, tuple[str, str, str, bytes]]:
    """Return what would go out for each call: method, URL, who signs for what, and the body."""

    def catch(request: Any, **_: Any) -> None:
        raise Sent(request)

    found = {}
    api = Api(region=region, fast=fast)
    async with api.running():
        for operation, request in CALLS:
            service, method = _api._method_of(operation)
            async with api._lend(service) as lent:
                events = lent.client.meta.events
                events.unregister("before-send", _lean._catch)
                events.register("before-send", catch)
                with pytest.raises(Sent) as caught:
                    await getattr(lent.client, method)(**request)
            out = caught.value.request
            signed = re.sub(r"/\d{8}/|Signature=\w+", "/", str(out.headers["Authorization"]))
            found[operation] = (out.method, out.url, signed, out.body if isinstance(out.body, bytes) else b"")
        assert api.parser == ("fast" if fast else "stock")
    return found


class TestTheLeanSession:
    @pytest.mark.parametrize("region", ["us-east-1", "eu-central-2", "cn-north-1", "us-gov-west-1", "mars-north-1"])
    @pytest.mark.usefixtures("somebody")
    async def test_sends_what_a_stock_one_sends(self, region: str) -> None:
        ours = await sent(region=region, fast=True)
        theirs = await sent(region=region, fast=False)

        assert ours == theirs
        assert ours.keys() == {operation for operation, _ in CALLS}
        assert all(f"/{region}/" in signed for _, _, signed, _ in ours.values())

    def test_still_knows_every_other_service(self) -> None:
        loader = _lean.lean_loader(None)

        assert loader.load_service_model("events", "service-2")["metadata"]["serviceId"] == "EventBridge"
        with pytest.raises(UnknownServiceError):
            loader.load_service_model("nonesuch", "service-2")

    def test_finds_what_it_takes_for_granted(self) -> None:
        known = botocore.session.get_session().get_component("data_loader").list_available_services("service-2")
        rules = (
            botocore.session.get_session().get_component("data_loader").list_available_services("endpoint-rule-set-1")
        )

        assert set(_lean.KNOWN) <= set(known) & set(rules)

    def test_knows_the_models_that_a_user_put_beside(self, tmp_path: Path) -> None:
        loader = _lean.lean_loader(str(tmp_path))

        assert str(tmp_path) in loader.search_paths


@pytest.mark.parametrize("service", ["ecs", "logs", "ssm", "s3", "sts", "ec2", "dynamodb"])
def test_operations_have_botocores_names(service: str) -> None:
    model: Any = botocore.session.get_session().get_service_model(service)
    names = model.operation_names

    assert [_api._method_of(f"{service}.{name}") for name in names] == [
        (service, botocore.xform_name(name)) for name in names
    ]


class TestSettings:
    async def test_a_region_may_come_from_the_profile(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "config").write_text("[profile work]\nregion = ap-south-1\n")
        monkeypatch.setenv("AWS_PROFILE", "work")
        api = Api()

        async with api.running():
            region = api.region

        assert region == "ap-south-1"

    async def test_no_region_anywhere_is_told(self) -> None:
        with pytest.raises(BackendUnavailable, match="set AWS_REGION"):
            async with Api().running():
                pass

    async def test_a_profile_that_is_not_there_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "nobody")

        with pytest.raises(BackendUnavailable, match=r"nobody.*set AWS_PROFILE"):
            async with Api().running():
                pass

    async def test_a_profile_that_is_not_there_is_told_by_a_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        api = Api(region="us-east-1")

        async with api.running():
            with pytest.raises(BackendUnavailable, match="set AWS_PROFILE"):
                await api.call("ecs.ListTasks")

    async def test_no_credentials_anywhere_is_told(self) -> None:
        api = Api(region="us-east-1", endpoint_url="http://127.0.0.1:9")

        async with api.running():
            with pytest.raises(BackendUnavailable, match="no AWS credentials are known: set AWS_ACCESS_KEY_ID"):
                await api.call("ecs.ListTasks")

    @pytest.mark.usefixtures("somebody")
    async def test_the_endpoint_may_come_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        aws = FakeAws(clusters=("jobs",))

        async with aws.serve(moto=False) as url:
            monkeypatch.setenv("AWS_ENDPOINT_URL", url)
            api = Api(region=aws.region)
            async with api.running():
                reply = await api.call("ecs.ListTasks", cluster="jobs")

        assert reply["taskArns"] == []


class TestFreshCredentials:
    async def test_are_read_from_the_files_anew(self, tmp_path: Path) -> None:
        file = tmp_path / "credentials"
        file.write_text("[default]\naws_access_key_id = AKIAOLD\naws_secret_access_key = x\n")
        aws = FakeAws(clusters=("jobs",))

        async with aws.serve(moto=False) as url:
            api = Api(region=aws.region, endpoint_url=url)
            async with api.running():
                await api.call("ecs.ListTasks", cluster="jobs")
                file.write_text("[default]\naws_access_key_id = AKIANEW\naws_secret_access_key = x\n")
                aws.credentials.expire("AKIAOLD")
                reply = await api.call("ecs.ListTasks", cluster="jobs")

        assert reply["taskArns"] == []
        assert [call.access_key for call in aws.calls] == ["AKIAOLD", "AKIAOLD", "AKIANEW"]
