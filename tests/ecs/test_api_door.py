"""The door to AWS: its clients, its patience, and what it says when it has none left."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import pytest
from botocore import exceptions as boto

from fargate_runner import BackendUnavailable, InvalidJob, RunnerClosed
from fargate_runner.backends.ecs._api import Api, ApiError, Budget, Trouble
from fargate_runner.testing.clock import VirtualClock
from tests.ecs.doors import Session, refused, throttled

DESCRIBED: dict[str, Any] = {"tasks": [], "failures": []}
URL = "https://ecs.eu-west-1.amazonaws.com/"
LOST = [
    boto.ConnectionClosedError(endpoint_url=URL),
    boto.ReadTimeoutError(endpoint_url=URL),
    boto.EndpointConnectionError(endpoint_url=URL),
    boto.HTTPClientError(error="?"),
    boto.IncompleteReadError(actual_bytes=1, expected_bytes=2),
    TimeoutError(),
    ConnectionResetError(104, "Connection reset by peer"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    refused("ServerException", "Service Unavailable", status=500),
    refused("503", status=503),
]


def named(exc: Any) -> str:
    code: str = exc.response["Error"]["Code"] if isinstance(exc, boto.ClientError) else ""
    return code or type(exc).__name__


async def failure(api: Api, operation: str = "ecs.DescribeTasks", **request: Any) -> ApiError:
    """Return what a call raises."""
    with pytest.raises(ApiError) as raised:
        await api.call(operation, **request)
    return raised.value


class TestACall:
    async def test_is_the_method_of_that_name_with_the_request_as_it_is(self) -> None:
        session = Session(DESCRIBED)
        api = Api(session=session)

        async with api.running():
            reply = await api.call("ecs.DescribeTasks", cluster="jobs", tasks=["a"])

        assert reply is DESCRIBED
        assert session.requests == [{"cluster": "jobs", "tasks": ["a"]}]

    async def test_of_run_task_needs_a_token(self) -> None:
        session = Session(DESCRIBED)
        api = Api(session=session)

        async with api.running():
            with pytest.raises(AssertionError, match="clientToken"):
                await api.call("ecs.RunTask", cluster="jobs")

        assert session.requests == []

    async def test_outside_of_running_is_told(self) -> None:
        api = Api(session=Session())

        with pytest.raises(RunnerClosed, match="not open"):
            await api.call("ecs.ListTasks")
        async with api.running():
            pass
        with pytest.raises(RunnerClosed, match="not open"):
            await api.call("ecs.ListTasks")

    async def test_that_botocore_does_not_know_is_told(self) -> None:
        class Old(Session):
            def client(self, service: str, **options: Any) -> Any:
                return contextlib.nullcontext(object())

        api = Api(session=Old())

        async with api.running():
            with pytest.raises(BackendUnavailable, match=r"does not know ecs\.ListTasks: upgrade aioboto3"):
                await api.call("ecs.ListTasks")

    async def test_a_mistake_of_ours_stays_what_it_is(self) -> None:
        api = Api(session=Session(KeyError("x")))

        async with api.running():
            with pytest.raises(KeyError):
                await api.call("ecs.ListTasks")

    async def test_is_counted_each_time_it_is_sent(self) -> None:
        api = Api(session=Session(throttled(), refused("ServerException", status=500), DESCRIBED))

        async with api.running():
            await api.call("ecs.DescribeTasks")

        assert api.stats.calls == {"ecs.DescribeTasks": 3}
        assert api.stats.buckets == {"ecs.read": 3}
        assert api.stats.throttles == {"ecs.DescribeTasks": 1}
        assert api.stats.troubles == {"throttled": 1, "transient": 1}


class TestClients:
    async def test_there_is_one_for_each_service(self) -> None:
        session = Session()
        api = Api(session=session)

        async with api.running(), anyio.create_task_group() as tasks:
            for operation in ("ecs.ListTasks", "ecs.ListClusters", "logs.GetLogEvents") * 5:
                tasks.start_soon(api.call, operation)

        assert sorted(session.made) == ["ecs", "logs"]

    async def test_they_are_made_when_they_are_needed(self) -> None:
        session = Session()
        api = Api(session=session)

        async with api.running():
            made = list(session.made)

        assert made == []

    async def test_they_are_closed_in_the_end(self) -> None:
        session = Session()
        api = Api(session=session)

        async with api.running():
            await api.call("ecs.ListTasks")
            within = session.open

        assert (within, session.open) == (1, 0)

    async def test_they_are_closed_when_the_block_is_cancelled(self) -> None:
        session = Session()
        api = Api(session=session)

        with anyio.move_on_after(1):
            async with api.running():
                await api.call("ecs.ListTasks")
                await anyio.sleep_forever()

        assert session.open == 0

    async def test_one_that_does_not_close_is_left_after_a_while(self, clock: VirtualClock) -> None:
        class Stuck(Session):
            @contextlib.asynccontextmanager
            async def _client(self, service: str, options: dict[str, Any]) -> AsyncGenerator[Any]:
                async with super()._client(service, options) as client:
                    yield client
                    await anyio.sleep_forever()

        api = Api(session=Stuck())

        async with api.running():
            await api.call("ecs.ListTasks")

        assert clock.time() == pytest.approx(5, abs=0.1)

    async def test_botocore_does_not_retry_and_does_not_wait_for_ever(self) -> None:
        session = Session()
        api = Api(session=session, region="ap-south-1")

        async with api.running():
            await api.call("ecs.ListTasks")

        (options,) = session.options
        config = options["config"]
        assert options["region_name"] == "ap-south-1"
        assert "endpoint_url" not in options
        assert config.retries == {"total_max_attempts": 1, "mode": "standard"}
        assert (config.connect_timeout, config.read_timeout, config.inject_host_prefix) == (5, 30, True)

    @pytest.mark.parametrize("way", ["argument", "environment", "environment of the service"])
    async def test_an_endpoint_of_our_own_has_no_names_below_it(
        self, way: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:4566" if way == "environment" else "")
        monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDWATCH_LOGS", "http://fake:1" if "service" in way else "")
        session = Session()
        api = Api(session=session, endpoint_url="http://127.0.0.1:4566" if way == "argument" else None)

        async with api.running():
            await api.call("logs.StartLiveTail")

        assert session.options[0]["config"].inject_host_prefix is False
        assert session.options[0]["config"].s3 == {"addressing_style": "path"}

    async def test_an_endpoint_of_aws_keeps_its_names(self) -> None:
        session = Session()
        api = Api(session=session, endpoint_url="https://vpce-1.logs.eu-west-1.vpce.amazonaws.com")

        async with api.running():
            await api.call("logs.StartLiveTail")

        assert session.options[0]["config"].inject_host_prefix is True

    async def test_a_session_that_says_create_client_will_do(self) -> None:
        inner = Session(DESCRIBED)

        class Core:
            create_client = staticmethod(inner.client)

            def get_config_variable(self, name: str) -> str | None:
                return {"region": "sa-east-1"}.get(name)

        api = Api(session=Core())

        async with api.running():
            reply = await api.call("ecs.DescribeTasks")

        assert (reply, api.region, api.parser) == (DESCRIBED, "sa-east-1", "stock")

    async def test_a_client_that_was_not_made_is_made_by_the_next_call(self) -> None:
        class Slow(Session):
            @contextlib.asynccontextmanager
            async def _client(self, service: str, options: dict[str, Any]) -> AsyncGenerator[Any]:
                await anyio.sleep(10)
                async with super()._client(service, options) as client:
                    yield client

        session = Slow(DESCRIBED)
        api = Api(session=session)

        async with api.running():
            with anyio.move_on_after(1):
                await api.call("ecs.DescribeTasks")
            reply = await api.call("ecs.DescribeTasks")

        assert reply is DESCRIBED
        assert session.open == 0

    def test_a_session_that_would_block_is_refused(self) -> None:
        boto3 = pytest.importorskip("boto3")

        with pytest.raises(InvalidJob, match=r"boto3\.session\.Session makes no asynchronous clients; pass aioboto3"):
            Api(session=boto3.Session(region_name="eu-west-1"))

    async def test_a_session_whose_clients_would_block_is_refused(self) -> None:
        class Blocking:
            region_name = "eu-west-1"

            def client(self, service: str, **_: Any) -> object:
                return object()

        api = Api(session=Blocking())

        async with api.running():
            with pytest.raises(InvalidJob, match="pass aioboto3"):
                await api.call("ecs.ListTasks")

    def test_what_is_no_session_is_refused(self) -> None:
        with pytest.raises(InvalidJob, match="session"):
            Api(session="eu-west-1")

    @pytest.mark.parametrize("url", ["127.0.0.1:4566", "localhost", "ftp://host", "http://"])
    def test_what_is_no_endpoint_is_refused(self, url: str) -> None:
        with pytest.raises(InvalidJob, match="endpoint_url"):
            Api(endpoint_url=url)


class TestTheLoop:
    def test_another_one_is_told(self) -> None:
        api = Api(session=Session())

        async def used() -> None:
            await api.call("ecs.ListTasks")

        async def opened() -> None:
            async with api.running():
                await anyio.to_thread.run_sync(anyio.run, used)

        with pytest.raises(RunnerClosed, match="belong to the event loop that they were opened on"):
            anyio.run(opened)

    def test_each_may_open_it_in_turn(self) -> None:
        session = Session(DESCRIBED)
        api = Api(session=session)

        async def used() -> dict[str, Any]:
            async with api.running():
                return await api.call("ecs.DescribeTasks")

        assert anyio.run(used) == anyio.run(used) == DESCRIBED
        assert session.made == ["ecs", "ecs"]

    def test_it_has_to_be_asyncios(self) -> None:
        api = Api(session=Session())

        async def used() -> None:
            async with api.running():
                pass

        with pytest.raises(BackendUnavailable, match="asyncio only"):
            anyio.run(used, backend="trio")

    async def test_it_is_opened_once_at_a_time(self) -> None:
        api = Api(session=Session())

        async with api.running():
            with pytest.raises(RunnerClosed, match="open already"):
                async with api.running():
                    pass


class TestTheRegion:
    @pytest.fixture(autouse=True)
    def nowhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
            monkeypatch.delenv(name, raising=False)

    @pytest.mark.parametrize(
        ("said", "session", "variables", "region"),
        [
            ("a-1", "b-1", {"AWS_REGION": "c-1"}, "a-1"),
            (None, "b-1", {"AWS_REGION": "c-1"}, "b-1"),
            (None, None, {"AWS_REGION": "c-1", "AWS_DEFAULT_REGION": "d-1"}, "c-1"),
            (None, None, {"AWS_DEFAULT_REGION": "d-1"}, "d-1"),
        ],
    )
    async def test_is_the_nearest_one_said(
        self,
        said: str | None,
        session: str | None,
        variables: dict[str, str],
        region: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        given = Session()
        given.region_name = session
        api = Api(session=given, region=said)

        async with api.running():
            found = api.region

        assert found == region

    async def test_that_nobody_said_is_told_with_what_to_set(self) -> None:
        given = Session()
        given.region_name = None

        with pytest.raises(BackendUnavailable, match="set AWS_REGION"):
            async with Api(session=given).running():
                pass


class TestPatience:
    @pytest.mark.parametrize("lost", LOST, ids=named)
    async def test_what_was_lost_is_sent_again_the_same(self, lost: Exception) -> None:
        session = Session(lost, lost, {"tasks": [{}]})
        api = Api(session=session)
        request = {"cluster": "jobs", "clientToken": "t", "overrides": {"cpu": "256"}}

        async with api.running():
            reply = await api.call("ecs.RunTask", **request)

        assert reply == {"tasks": [{}]}
        assert session.requests == [request] * 3

    @pytest.mark.parametrize("lost", LOST, ids=named)
    async def test_it_ends_after_two_minutes(self, lost: Exception, clock: VirtualClock) -> None:
        session = Session(DESCRIBED, lost)
        api = Api(session=session)

        async with api.running():
            await api.call("ecs.DescribeTasks")
            error = await failure(api)

        assert (error.trouble, error.retryable) == (Trouble.TRANSIENT, True)
        assert 120 <= clock.time() <= 140
        assert 10 <= len(session.requests) <= 30

    async def test_the_tries_come_at_growing_and_uneven_distances(self) -> None:
        session = Session(LOST[0])
        api = Api(session=session)

        async with api.running():
            await failure(api)

        gaps = [after - before for before, after in zip(session.times, session.times[1:], strict=False)]
        assert gaps[0] <= 0.2
        assert max(gaps) <= 15
        assert gaps[6] > 4 * gaps[0]
        assert len({round(gap, 6) for gap in gaps}) == len(gaps)

    async def test_an_answer_that_never_ends_is_given_up_and_asked_again(self, clock: VirtualClock) -> None:
        async def hang(**_: Any) -> None:
            await anyio.sleep_forever()

        session = Session(hang, DESCRIBED)
        api = Api(session=session)

        async with api.running():
            reply = await api.call("ecs.DescribeTasks")

        assert reply is DESCRIBED
        assert clock.time() == pytest.approx(60, abs=1)

    async def test_an_answer_with_nothing_in_it_is_none(self) -> None:
        session = Session({"ResponseMetadata": {}}, DESCRIBED)
        api = Api(session=session)

        async with api.running():
            reply = await api.call("ecs.DescribeTasks")

        assert reply is DESCRIBED

    async def test_a_refusal_is_told_at_once(self, clock: VirtualClock) -> None:
        session = Session(refused("ClusterNotFoundException", "Cluster not found."))
        api = Api(session=session)

        async with api.running():
            error = await failure(api)

        assert (error.code, error.status, error.request_id) == ("ClusterNotFoundException", 400, "11111111-2222")
        assert isinstance(error.__cause__, boto.ClientError)
        assert (len(session.requests), clock.time()) == (1, 0)

    async def test_what_botocore_refuses_to_send_is_invalid(self) -> None:
        api = Api(session=Session(boto.ParamValidationError(report="Unknown parameter in input: taks")))

        async with api.running():
            error = await failure(api)

        assert (error.trouble, error.code, error.in_doubt) == (Trouble.INVALID, "ParamValidation", False)

    @pytest.mark.parametrize(
        "then", [boto.NoCredentialsError(), boto.ProfileNotFound(profile="jobs"), ZeroDivisionError()], ids=named
    )
    async def test_what_an_earlier_try_may_have_done_stays_in_doubt(self, then: Exception) -> None:
        api = Api(session=Session(boto.ReadTimeoutError(endpoint_url=URL), then))

        async with api.running():
            error = await failure(api, "ecs.RunTask", clientToken="t")

        assert (error.trouble, error.in_doubt, error.code) == (Trouble.UNKNOWN, True, type(then).__name__)

    async def test_credentials_that_are_renewed_and_expired_all_the_same_are_waited_for(self) -> None:
        said = "Credentials were refreshed, but the refreshed credentials are still expired."
        api = Api(session=Session(RuntimeError(said), DESCRIBED))

        async with api.running():
            reply = await api.call("ecs.DescribeTasks")

        assert reply is DESCRIBED
        assert api.stats.troubles[Trouble.EXPIRED.value] == 1

    async def test_credentials_that_never_come_are_not_waited_for(self, clock: VirtualClock) -> None:
        class Silent:
            async def __aenter__(self) -> None:
                await anyio.sleep_forever()

            async def __aexit__(self, *_: object) -> None:
                raise AssertionError("it was never entered")

        class Asking:
            region_name = "eu-west-1"

            def client(self, name: str, **known: Any) -> Silent:
                return Silent()

        api = Api(session=Asking())
        async with api.running():
            with pytest.raises(BackendUnavailable, match="credentials takes too long") as raised:
                await api.call("ecs.DescribeTasks")

        assert (raised.value.operation, clock.time()) == ("ecs.DescribeTasks", 60)

    async def test_a_conflict_names_what_the_token_started(self) -> None:
        arn = "arn:aws:ecs:eu-west-1:111122223333:task/jobs/0"
        api = Api(session=Session(refused("ConflictException", "…", resourceIds=[arn])))

        async with api.running():
            error = await failure(api, "ecs.RunTask", clientToken="t")

        assert (error.trouble, error.resource_ids) == (Trouble.CONFLICT, (arn,))

    async def test_a_condition_that_failed_is_final_and_brings_what_was_there(self) -> None:
        item = {"key": {"S": "job"}, "revision": {"N": "2"}}
        session = Session(refused("ConditionalCheckFailedException", "The conditional request failed", Item=item))
        api = Api(session=session)

        async with api.running():
            error = await failure(api, "dynamodb.PutItem", TableName="jobs", Item={})

        assert (error.code, error.trouble) == ("ConditionalCheckFailedException", Trouble.CONFLICT)
        assert (error.item, error.in_doubt, error.retryable) == (item, False, False)
        assert len(session.requests) == 1

    async def test_a_table_is_not_asked_as_slowly_as_what_has_no_quota(self, clock: VirtualClock) -> None:
        session = Session({})
        api = Api(session=session)

        async with api.running():
            for operation in ("PutItem", "DeleteItem", "GetItem", "BatchGetItem", "Query"):
                for _ in range(400):
                    await api.call(f"dynamodb.{operation}", TableName="jobs")

        assert len(session.requests) == 2000
        assert clock.time() < 1.0

    async def test_a_cancelled_wait_ends_at_once(self, clock: VirtualClock) -> None:
        session = Session(LOST[0])
        api = Api(session=session)

        async with api.running():
            with anyio.move_on_after(3):
                await api.call("ecs.DescribeTasks")
            session.answers = [DESCRIBED]
            await api.call("ecs.DescribeTasks")

        assert clock.time() == pytest.approx(3, abs=0.1)

    async def test_leaving_ends_calls_under_way_with_a_clear_error(self) -> None:
        async def until_closed(**_: Any) -> None:
            while api._loop is not None:
                await anyio.sleep(1)
            raise RuntimeError("Session is closed")

        api = Api(session=Session(until_closed))
        errors: list[RunnerClosed] = []

        async def call() -> None:
            with pytest.raises(RunnerClosed) as raised:
                await api.call("ecs.DescribeTasks")
            errors.append(raised.value)

        async with anyio.create_task_group() as tasks:
            async with api.running():
                tasks.start_soon(call)
                await anyio.sleep(5)

        assert "closed while ecs.DescribeTasks was under way" in str(errors)


class TestDoubt:
    @pytest.mark.parametrize("lost", LOST, ids=named)
    async def test_a_refusal_after_a_lost_answer_does_not_say_that_nothing_was_done(self, lost: Exception) -> None:
        api = Api(session=Session(lost, refused("InvalidParameterException", "TaskDefinition is inactive")))

        async with api.running():
            error = await failure(api, "ecs.RunTask", clientToken="t")

        assert (error.trouble, error.in_doubt) == (Trouble.INVALID, True)

    @pytest.mark.parametrize(
        "unsent",
        [
            boto.ConnectTimeoutError(endpoint_url=URL),
            boto.ProxyConnectionError(proxy_url="http://proxy", error="refused"),
            boto.SSLError(endpoint_url=URL, error="CERTIFICATE_VERIFY_FAILED"),
            boto.EndpointConnectionError(endpoint_url=URL, error=type("ClientConnectorError", (OSError,), {})()),
            throttled(),
        ],
        ids=named,
    )
    async def test_what_never_left_leaves_none(self, unsent: Exception) -> None:
        api = Api(session=Session(unsent, refused("InvalidParameterException", "TaskDefinition is inactive")))

        async with api.running():
            error = await failure(api, "ecs.RunTask", clientToken="t")

        assert error.in_doubt is False

    async def test_an_answer_of_nobody_known_leaves_some(self) -> None:
        api = Api(session=Session(refused("403", "Forbidden", status=403)))

        async with api.running():
            error = await failure(api, "ecs.RunTask", clientToken="t")

        assert (error.trouble, error.in_doubt) == (Trouble.UNKNOWN, True)


class TestUnreachable:
    UNSENT = (
        boto.ConnectTimeoutError(endpoint_url=URL),
        boto.SSLError(endpoint_url=URL, error="CERTIFICATE_VERIFY_FAILED"),
        boto.EndpointConnectionError(endpoint_url=URL, error=type("gaierror", (OSError,), {})()),
    )

    @pytest.mark.parametrize("unsent", UNSENT, ids=named)
    async def test_where_nobody_ever_answered_it_is_told_after_half_a_minute(
        self, unsent: Exception, clock: VirtualClock
    ) -> None:
        api = Api(session=Session(unsent))

        async with api.running():
            with pytest.raises(BackendUnavailable, match=r"cannot be reached in eu-west-1: .*AWS_ENDPOINT_URL"):
                await api.call("ecs.ListTasks")

        assert 30 <= clock.time() <= 50

    @pytest.mark.parametrize(
        "answered", [DESCRIBED, refused("ClusterNotFoundException", "Cluster not found.")], ids=["well", "badly"]
    )
    async def test_where_somebody_has_answered_before_it_may_come_back(
        self, answered: Any, clock: VirtualClock
    ) -> None:
        api = Api(session=Session(answered, self.UNSENT[0]))

        async with api.running():
            with contextlib.suppress(ApiError):
                await api.call("ecs.DescribeTasks")
            error = await failure(api)

        assert (error.trouble, error.in_doubt) == (Trouble.TRANSIENT, False)
        assert clock.time() >= 120

    async def test_one_that_was_reached_in_between_is_not_unreachable(self) -> None:
        api = Api(session=Session(LOST[0], self.UNSENT[0]))

        async with api.running():
            error = await failure(api, "ecs.RunTask", clientToken="t")

        assert error.in_doubt is True


SETTINGS = [
    (boto.NoCredentialsError(), "AWS_ACCESS_KEY_ID"),
    (boto.PartialCredentialsError(provider="env", cred_var="aws_secret_access_key"), "AWS_ACCESS_KEY_ID"),
    (boto.CredentialRetrievalError(provider="container-role", error_msg="no"), "AWS_ACCESS_KEY_ID"),
    (boto.UnauthorizedSSOTokenError(), "aws sso login"),
    (boto.TokenRetrievalError(provider="sso", error_msg="expired"), "aws sso login"),
    (boto.NoRegionError(), "AWS_REGION"),
    (boto.InvalidRegionError(region_name="nowhere!"), "AWS_REGION"),
    (boto.ProfileNotFound(profile="nobody"), "AWS_PROFILE"),
    (boto.UnknownServiceError(service_name="ecs", known_service_names="s3"), "upgrade aioboto3"),
]


class TestSettings:
    @pytest.mark.parametrize(("wrong", "fix"), SETTINGS, ids=[named(wrong) for wrong, _ in SETTINGS])
    async def test_that_are_wrong_are_told_at_once_with_the_fix(
        self, wrong: Exception, fix: str, clock: VirtualClock
    ) -> None:
        session = Session(wrong)
        api = Api(session=session)

        async with api.running():
            with pytest.raises(BackendUnavailable, match=fix) as raised:
                await api.call("ecs.ListTasks")

        assert raised.value.code == type(wrong).__name__
        assert (len(session.requests), clock.time()) == (1, 0)

    async def test_that_are_wrong_for_the_client_are_told_too(self) -> None:
        class Unable(Session):
            def client(self, service: str, **options: Any) -> Any:
                raise boto.NoRegionError

        api = Api(session=Unable())

        async with api.running():
            with pytest.raises(BackendUnavailable, match="AWS_REGION"):
                await api.call("ecs.ListTasks")


EXPIRED = refused("ExpiredTokenException", "The security token included in the request is expired", status=403)


class TestCredentials:
    async def test_that_expired_are_fetched_again_and_the_call_goes_on(self) -> None:
        session = Session(DESCRIBED, EXPIRED, DESCRIBED)
        api = Api(session=session)

        async with api.running():
            await api.call("ecs.DescribeTasks")
            reply = await api.call("ecs.DescribeTasks")
            still_open = session.open

        assert reply is DESCRIBED
        assert session.made == ["ecs", "ecs"]
        assert (still_open, session.open, api.stats.renewals) == (1, 0, 1)

    async def test_many_calls_that_meet_expired_ones_renew_them_once(self) -> None:
        good = False

        def answer(**_: Any) -> Any:
            return DESCRIBED if good else EXPIRED

        class Renewing(Session):
            def client(self, service: str, **options: Any) -> Any:
                nonlocal good
                good = bool(self.made)
                return super().client(service, **options)

        session = Renewing(answer)
        api = Api(session=session, budget=Budget(read=10_000))

        async with api.running(), anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(api.call, "ecs.DescribeTasks")

        assert session.made == ["ecs", "ecs"]

    async def test_a_call_that_set_out_before_they_were_renewed_does_not_renew_them_again(self) -> None:
        async def late(**_: Any) -> None:
            await anyio.sleep(10)
            raise EXPIRED

        session = Session(late, EXPIRED, DESCRIBED)
        api = Api(session=session)

        async with api.running(), anyio.create_task_group() as tasks:
            tasks.start_soon(api.call, "ecs.DescribeTasks")
            await anyio.sleep(1)
            tasks.start_soon(api.call, "ecs.DescribeTasks")

        assert (api.stats.renewals, session.made) == (1, ["ecs", "ecs"])

    async def test_a_client_that_somebody_uses_is_closed_when_nobody_does(self) -> None:
        release = anyio.Event()

        async def slow(**_: Any) -> dict[str, Any]:
            await release.wait()
            return DESCRIBED

        session = Session(slow, EXPIRED, DESCRIBED)
        api = Api(session=session)

        async with api.running(), anyio.create_task_group() as tasks:
            tasks.start_soon(api.call, "ecs.DescribeTasks")
            await anyio.sleep(1)
            await api.call("ecs.DescribeTasks")
            both = session.open
            release.set()
            await anyio.sleep(1)
            one = session.open

        assert (both, one) == (2, 1)

    async def test_the_wait_for_fresh_ones_ends_after_a_quarter_of_an_hour(self, clock: VirtualClock) -> None:
        session = Session(DESCRIBED, EXPIRED)
        api = Api(session=session)

        async with api.running():
            await api.call("ecs.DescribeTasks")
            error = await failure(api)

        assert (error.trouble, error.retryable) == (Trouble.EXPIRED, True)
        assert "log in again" in str(error)
        assert 900 <= clock.time() <= 940
        assert len(session.requests) < 60

    @pytest.mark.parametrize("gone", [setting[0] for setting in SETTINGS[:5]], ids=named)
    async def test_that_were_there_may_be_there_again(self, gone: Exception, clock: VirtualClock) -> None:
        session = Session(DESCRIBED, *[gone] * 8, DESCRIBED)
        api = Api(session=session)

        async with api.running():
            await api.call("ecs.DescribeTasks")
            reply = await api.call("ecs.DescribeTasks")

        assert reply is DESCRIBED
        assert clock.time() > 10

    async def test_that_aws_does_not_know_are_refused_at_once(self) -> None:
        session = Session(refused("UnrecognizedClientException", "The security token … is invalid."))
        api = Api(session=session)

        async with api.running():
            error = await failure(api)

        assert (error.trouble, len(session.requests)) == (Trouble.DENIED, 1)
        assert "log in again" in str(error)


WHO = {"UserId": "AIDA", "Account": "111122223333", "Arn": "arn:aws:iam::111122223333:user/me"}


class TestTheCaller:
    async def test_is_asked_once(self) -> None:
        session = Session(WHO)
        api = Api(session=session)

        async with api.running():
            first, second, account = await api.caller(), await api.caller(), await api.account()

        assert first is second
        assert first is not None
        assert (first.arn, first.user_id) == ("arn:aws:iam::111122223333:user/me", "AIDA")
        assert first.account == account == "111122223333"
        assert len(session.requests) == 1

    @pytest.mark.parametrize(
        "trouble", [refused("AccessDenied"), LOST[0], throttled(), boto.NoCredentialsError()], ids=named
    )
    async def test_that_sts_does_not_tell_is_nobody_and_costs_seconds_only(
        self, trouble: Exception, clock: VirtualClock
    ) -> None:
        session = Session(trouble)
        api = Api(session=session)

        async with api.running():
            found = await api.caller(), await api.account()
            asked = len(session.requests)
            await api.caller()

        assert found == (None, "")
        assert clock.time() <= 12
        assert len(session.requests) == asked


class TestABudget:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            *[("share", value) for value in (0, -0.1, 1.01, True, "0.5", float("nan"))],
            *[("read", value) for value in (0, -1, True, "20", float("inf"), float("nan"))],
            ("run_task", 0),
            ("modify", 0),
            ("register", 0),
            ("get_log_events", 0),
            ("filter_log_events", 0),
        ],
    )
    def test_that_cannot_be_is_refused(self, field: str, value: Any) -> None:
        with pytest.raises(InvalidJob, match=f"budget.{field}"):
            Budget(**{field: value})
