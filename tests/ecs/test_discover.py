"""What to use when nobody said it, and where it is looked for."""

from __future__ import annotations

import contextlib
import http.server
import json
import math
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from typing import Any

import anyio
import pytest

from fargate_runner import BackendUnavailable, EcsBackend, InvalidJob, Network, Roles
from fargate_runner.backends.ecs import _discover
from fargate_runner.backends.ecs._api import Api, ApiError
from fargate_runner.backends.ecs._discover import Discovered, discover
from fargate_runner.testing.aws import ContainerScript, FakeAws, Fault, denied
from fargate_runner.testing.aws._stores import Ec2Service
from fargate_runner.testing.clock import VirtualClock

DEFAULT_SUBNETS = ("subnet-0aaaaaaaa00000001", "subnet-0bbbbbbbb00000001", "subnet-0cccccccc00000001")
OTHER_SUBNET = "subnet-0aaaaaaaa00000002"
GROUP = "sg-0123456789abcdef0"
EXECUTION = "arn:aws:iam::123456789012:role/execution"
TASK = "arn:aws:iam::123456789012:role/task"
METADATA_URL = "http://169.254.170.2/v4/1234"

Look = Callable[..., Any]


class Ec2WithInterfaces(Ec2Service):
    """The network of a fake, and the one interface of the task that we pretend to run in."""

    groups: tuple[str, ...] = (GROUP,)
    public = False

    async def describe_network_interfaces(self, request: Mapping[str, Any]) -> dict[str, Any]:
        (eni,) = request["NetworkInterfaceIds"]
        address = {"Association": {"PublicIp": "203.0.113.7"}} if self.public else {}
        groups = [{"GroupId": group, "GroupName": "jobs"} for group in self.groups]
        return {"NetworkInterfaces": [{"NetworkInterfaceId": eni, "Groups": groups, **address}]}


@pytest.fixture
def aws(clock: VirtualClock) -> FakeAws:
    aws = FakeAws(clock=clock, script=ContainerScript(run_for=math.inf), clusters=(), visible_after=(0.0, 0.0))
    aws.ec2 = Ec2WithInterfaces(clock, region=aws.region, account=aws.account)
    aws.services["ec2"] = aws.ec2
    return aws


@pytest.fixture
async def api(aws: FakeAws) -> AsyncGenerator[Api]:
    api = Api(session=aws.session(), region=aws.region)
    async with api.running():
        yield api


@pytest.fixture
def look(api: Api) -> Look:
    async def look(environ: Mapping[str, str] | None = None, **options: Any) -> Discovered:
        said = {f"FARGATE_RUNNER_{name}": value for name, value in (environ or {}).items()}
        return await discover(api, environ=said, **options)

    return look


@pytest.fixture
def look_from_task(api: Api, aws: FakeAws) -> Look:
    """Launches a task and looks around as if from inside of it."""

    async def look(environ: Mapping[str, str] | None = None, *, fargate: bool = True, **changes: Any) -> Discovered:
        aws.ecs.add_cluster("home")
        on_fargate = {"requiresCompatibilities": ["FARGATE"], "networkMode": "awsvpc"}
        await api.call(
            "ecs.RegisterTaskDefinition",
            **{
                "family": "ours",
                **on_fargate,
                "cpu": "256",
                "memory": "512",
                "executionRoleArn": EXECUTION,
                "taskRoleArn": TASK,
                "containerDefinitions": [{"name": "main", "image": "registry.example/ours:1"}],
                **changes,
            },
        )
        place = {"awsvpcConfiguration": {"subnets": [OTHER_SUBNET], "assignPublicIp": "DISABLED"}}
        launched = await api.call(
            "ecs.RunTask",
            cluster="home",
            taskDefinition="ours",
            launchType="FARGATE",
            networkConfiguration=place,
            clientToken="ours",
        )
        await anyio.sleep(120)  # it has its interface and runs
        task = launched["tasks"][0]
        metadata = {"Cluster": task["clusterArn"], "TaskARN": task["taskArn"], "Family": "ours"}

        async def read(url: str) -> Mapping[str, Any]:
            assert url == f"{METADATA_URL}/task"
            return metadata

        said = {f"FARGATE_RUNNER_{name}": value for name, value in (environ or {}).items()}
        said["ECS_CONTAINER_METADATA_URI_V4"] = METADATA_URL
        return await discover(api, environ=said, read_metadata=read)

    return look


async def cannot_be_read(url: str) -> Mapping[str, Any]:
    raise TimeoutError("timed out")


class TestEnvironment:
    async def test_variables_come_before_everything(self, aws: FakeAws, look: Look) -> None:
        aws.ecs.add_cluster("default")

        found = await look(
            {
                "CLUSTER": "jobs",
                "SUBNETS": f"{OTHER_SUBNET}, {DEFAULT_SUBNETS[0]}",
                "SECURITY_GROUPS": GROUP,
                "PUBLIC_IP": "yes",
                "EXECUTION_ROLE": EXECUTION,
                "TASK_ROLE": "jobs",
                "LOG_GROUP": "/jobs",
            }
        )

        assert found.cluster == "jobs"
        assert found.network == Network(
            subnets=[OTHER_SUBNET, DEFAULT_SUBNETS[0]], security_groups=[GROUP], public_ip=True
        )
        assert found.roles == Roles(execution=EXECUTION, task="jobs")
        assert found.log_group is not None
        assert found.log_group.name == "/jobs"
        assert len(aws.calls) == 0

    async def test_each_choice_says_where_it_came_from(self, look: Look) -> None:
        said = {"CLUSTER": "jobs", "SUBNETS": OTHER_SUBNET, "EXECUTION_ROLE": EXECUTION, "LOG_GROUP": "/jobs"}

        found = await look(said)

        for variable, value in said.items():
            assert any(value in line and f"FARGATE_RUNNER_{variable}" in line for line in found.why)

    @pytest.mark.parametrize(
        ("said", "public"),
        [("true", True), ("1", True), ("YES", True), ("false", False), ("0", False), ("No", False), ("", False)],
    )
    async def test_a_public_ip_is_yes_or_no(self, look: Look, said: str, public: bool) -> None:
        found = await look({"CLUSTER": "jobs", "SUBNETS": OTHER_SUBNET, "PUBLIC_IP": said})

        assert found.network.public_ip is public

    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            ("SUBNETS", "jobs"),
            ("SECURITY_GROUPS", "default"),
            ("PUBLIC_IP", "maybe"),
            ("EXECUTION_ROLE", "execution"),
            ("TASK_ROLE", "not a role"),
            ("LOG_GROUP", "no group"),
        ],
    )
    async def test_a_variable_that_cannot_be_is_named(self, look: Look, variable: str, value: str) -> None:
        with pytest.raises(InvalidJob) as caught:
            await look({"CLUSTER": "jobs", "SUBNETS": OTHER_SUBNET, variable: value})

        assert caught.value.field == f"FARGATE_RUNNER_{variable}"

    async def test_security_groups_alone_go_with_what_subnets_are_found(self, look: Look) -> None:
        found = await look({"CLUSTER": "jobs", "SECURITY_GROUPS": GROUP, "PUBLIC_IP": "false"})

        assert found.network == Network(subnets=DEFAULT_SUBNETS, security_groups=[GROUP], public_ip=False)


class TestOwnTask:
    async def test_what_our_own_task_has_is_good_for_others(self, look_from_task: Look) -> None:
        found = await look_from_task()

        assert found.cluster.endswith(":cluster/home")
        assert found.network == Network(subnets=[OTHER_SUBNET], security_groups=[GROUP], public_ip=False)
        assert found.roles == Roles(execution=EXECUTION, task=TASK)
        assert all("the task" in line for line in found.why if not line.startswith("no public IP"))

    async def test_it_has_a_public_ip_if_its_interface_has(self, aws: FakeAws, look_from_task: Look) -> None:
        assert isinstance(aws.ec2, Ec2WithInterfaces)
        aws.ec2.public = True

        found = await look_from_task()

        assert found.network.public_ip

    async def test_variables_come_before_our_own_task(self, look_from_task: Look) -> None:
        found = await look_from_task({"CLUSTER": "jobs", "SUBNETS": DEFAULT_SUBNETS[0], "TASK_ROLE": "other"})

        assert found.cluster == "jobs"
        assert found.network == Network(subnets=[DEFAULT_SUBNETS[0]])
        assert found.roles == Roles(execution=EXECUTION, task="other")

    async def test_an_interface_that_may_not_be_read_leaves_the_subnet(
        self, aws: FakeAws, look_from_task: Look
    ) -> None:
        aws.faults.add(denied("ec2.DescribeNetworkInterfaces"))

        found = await look_from_task()

        assert found.network == Network(subnets=[OTHER_SUBNET])
        assert any("could not be read" in line for line in found.why)

    async def test_a_task_that_may_not_be_described_leaves_the_default_network(
        self, aws: FakeAws, look_from_task: Look
    ) -> None:
        aws.faults.add(denied("ecs.DescribeTasks"))

        found = await look_from_task()

        assert found.cluster.endswith(":cluster/home")
        assert found.network.subnets == DEFAULT_SUBNETS
        assert found.roles is None

    async def test_a_definition_that_may_not_be_described_leaves_no_roles(
        self, aws: FakeAws, look_from_task: Look
    ) -> None:
        aws.faults.add(denied("ecs.DescribeTaskDefinition"))

        found = await look_from_task()

        assert found.roles is None

    async def test_metadata_that_do_not_answer_are_passed_over(self, aws: FakeAws, api: Api) -> None:
        aws.ecs.add_cluster("default")

        found = await discover(
            api, environ={"ECS_CONTAINER_METADATA_URI_V4": METADATA_URL}, read_metadata=cannot_be_read
        )

        assert found.cluster == "default"


class TestAws:
    async def test_the_default_cluster_and_the_default_network(self, aws: FakeAws, look: Look) -> None:
        aws.ecs.add_cluster("default")
        aws.ecs.add_cluster("jobs")

        found = await look()

        assert found.cluster == "default"
        assert found.network == Network(subnets=DEFAULT_SUBNETS, public_ip=True)
        assert found.roles is None
        assert found.log_group is None
        assert any("default VPC" in line for line in found.why)

    async def test_the_only_cluster(self, aws: FakeAws, look: Look) -> None:
        aws.ecs.add_cluster("jobs")

        found = await look()

        assert found.cluster == "jobs"
        assert any("the only one" in line for line in found.why)

    async def test_one_of_several_clusters_is_not_guessed(self, aws: FakeAws, look: Look) -> None:
        aws.ecs.add_cluster("red")
        aws.ecs.add_cluster("blue")

        with pytest.raises(BackendUnavailable, match=r"there are 2 .*blue, red.*FARGATE_RUNNER_CLUSTER"):
            await look()

    async def test_a_cluster_that_was_deleted_is_none(self, aws: FakeAws, api: Api, look: Look) -> None:
        aws.ecs.add_cluster("default")
        aws.ecs.add_cluster("jobs")
        await api.call("ecs.DeleteCluster", cluster="default")

        found = await look()

        assert found.cluster == "jobs"

    async def test_the_only_cluster_is_found_by_who_may_only_list(self, aws: FakeAws, look: Look) -> None:
        aws.ecs.add_cluster("jobs")
        aws.faults.add(denied("ecs.DescribeClusters"))

        found = await look()

        assert found.cluster == "jobs"

    async def test_the_default_cluster_is_found_by_who_may_only_describe(self, aws: FakeAws, look: Look) -> None:
        aws.ecs.add_cluster("default")
        aws.faults.add(denied("ecs.ListClusters"))

        found = await look()

        assert found.cluster == "default"

    async def test_everything_missing_is_told_at_once_with_how_to_set_it(self, aws: FakeAws, look: Look) -> None:
        aws.ec2.default_vpc = False

        with pytest.raises(BackendUnavailable) as caught:
            await look()

        for words in ("FARGATE_RUNNER_CLUSTER", "FARGATE_RUNNER_SUBNETS", "no default VPC", "no active one"):
            assert words in str(caught.value)

    async def test_a_default_network_without_subnets_is_none(self, aws: FakeAws, look: Look) -> None:
        aws.ec2.subnets = ()

        with pytest.raises(BackendUnavailable, match="no default subnets"):
            await look({"CLUSTER": "jobs"})

    @pytest.mark.parametrize("operation", ["ec2.DescribeVpcs", "ec2.DescribeSubnets"])
    async def test_a_network_that_may_not_be_read_names_the_permission(
        self, aws: FakeAws, look: Look, operation: str
    ) -> None:
        aws.faults.add(denied(operation))

        with pytest.raises(BackendUnavailable, match=f"{operation.replace('.', ':')} is not allowed"):
            await look({"CLUSTER": "jobs"})

    async def test_what_is_said_is_not_looked_for(self, aws: FakeAws, look: Look) -> None:
        network = Network(subnets=[OTHER_SUBNET])

        found = await look(cluster="jobs", network=network)

        assert (found.cluster, found.network) == ("jobs", network)
        assert len(aws.calls) == 0

    async def test_an_aws_that_is_down_is_not_taken_for_an_empty_one(self, aws: FakeAws, look: Look) -> None:
        aws.faults.add(Fault(match="ecs.*", times=math.inf, code="ServerException", status=500))

        with pytest.raises(ApiError) as caught:
            await look()

        assert caught.value.retryable


class TestBackend:
    @pytest.fixture(autouse=True)
    def nothing_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("CLUSTER", "SUBNETS", "SECURITY_GROUPS", "PUBLIC_IP", "EXECUTION_ROLE", "TASK_ROLE", "LOG_GROUP"):
            monkeypatch.delenv(f"FARGATE_RUNNER_{name}", raising=False)
        monkeypatch.delenv("ECS_CONTAINER_METADATA_URI_V4", raising=False)

    async def test_discover_makes_a_backend_for_what_is_there(self, aws: FakeAws) -> None:
        aws.ecs.add_cluster("jobs")

        backend = await EcsBackend.discover(session=aws.session(), region=aws.region)

        assert backend.cluster == "jobs"
        assert backend.options.network == Network(subnets=DEFAULT_SUBNETS, public_ip=True)
        assert any("jobs" in line for line in backend.chosen)

    async def test_a_backend_without_a_cluster_finds_it_when_opened(self, aws: FakeAws) -> None:
        aws.ecs.add_cluster("jobs")

        async with EcsBackend(session=aws.session(), region=aws.region) as backend:
            assert backend.cluster == "jobs"
            assert backend.options.network is not None

    async def test_what_was_said_comes_before_what_is_found(
        self, aws: FakeAws, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        aws.ecs.add_cluster("default")
        monkeypatch.setenv("FARGATE_RUNNER_LOG_GROUP", "/found")
        network = Network(subnets=[OTHER_SUBNET])

        backend = await EcsBackend.discover(
            cluster="jobs", network=network, log_group="/said", session=aws.session(), region=aws.region
        )

        assert (backend.cluster, backend.options.network) == ("jobs", network)
        assert backend.log_group.name == "/said"

    async def test_variables_reach_the_backend(self, aws: FakeAws, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FARGATE_RUNNER_CLUSTER", "jobs")
        monkeypatch.setenv("FARGATE_RUNNER_SUBNETS", OTHER_SUBNET)
        monkeypatch.setenv("FARGATE_RUNNER_EXECUTION_ROLE", EXECUTION)
        monkeypatch.setenv("FARGATE_RUNNER_LOG_GROUP", "/found")

        async with EcsBackend(session=aws.session(), region=aws.region) as backend:
            assert backend.cluster == "jobs"
            assert backend.options.network == Network(subnets=[OTHER_SUBNET])
            assert backend.options.roles == Roles(execution=EXECUTION)
            assert backend.log_group.name == "/found"

    async def test_nothing_found_says_so_when_opened(self, aws: FakeAws) -> None:
        backend = EcsBackend(session=aws.session(), region=aws.region)

        with pytest.raises(BackendUnavailable, match="FARGATE_RUNNER_CLUSTER"):
            async with backend:
                pass


class TestMetadata:
    """The endpoint itself, over HTTP in real time."""

    @pytest.fixture
    def anyio_backend(self) -> object:
        return "asyncio"

    async def test_it_is_read_as_json_and_not_through_a_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.delenv("no_proxy", raising=False)

        with endpoint(json.dumps({"Cluster": "home"}).encode()) as url:
            found = await _discover._read_metadata(f"{url}/task")

        assert found == {"Cluster": "home"}

    @pytest.mark.parametrize("body", [b"", b"<html>", b"[]"])
    async def test_what_is_no_json_object_is_refused(self, body: bytes) -> None:
        with endpoint(body) as url, pytest.raises(ValueError, match=r"JSON|Expecting"):
            await _discover._read_metadata(f"{url}/task")

    async def test_nothing_but_http_is_opened(self) -> None:
        with pytest.raises(ValueError, match="not the URL"):
            await _discover._read_metadata("file:///etc/hostname")


@contextlib.contextmanager
def endpoint(body: bytes) -> Generator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (its name there)
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
