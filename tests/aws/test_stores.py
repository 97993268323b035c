"""What the fake AWS has around jobs: parameters, secrets, objects, who we are, networks. In virtual time."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest

from fargate_runner.testing.aws._service import AwsError, Service
from fargate_runner.testing.aws._stores import (
    Ec2Service,
    S3Service,
    SecretsManagerService,
    SsmService,
    StsService,
    Subnet,
)
from fargate_runner.testing.clock import VirtualClock
from tests.aws.asking import ask, refusal


@pytest.fixture
def anyio_backend(clock: VirtualClock) -> object:
    return ("asyncio", {"loop_factory": clock.loop})


# Parameters.


@pytest.fixture
def ssm(clock: VirtualClock) -> SsmService:
    return SsmService(clock)


async def test_a_parameter_is_put_and_got(ssm: SsmService) -> None:
    put = await ask(ssm, "PutParameter", Name="/a/b", Value="v", Type="String", Tags=[{"Key": "k", "Value": "t"}])

    got = (await ask(ssm, "GetParameter", Name="/a/b"))["Parameter"]
    tags = await ask(ssm, "ListTagsForResource", ResourceType="Parameter", ResourceId="/a/b")

    assert put["Version"] == 1
    assert (got["Value"], got["Type"], got["ARN"]) == (
        "v",
        "String",
        "arn:aws:ssm:us-east-1:111122223333:parameter/a/b",
    )
    assert tags == {"TagList": [{"Key": "k", "Value": "t"}]}


async def test_a_parameter_is_replaced_only_if_asked(ssm: SsmService) -> None:
    await ask(ssm, "PutParameter", Name="p", Value="1", Type="String")

    error = await refusal(ssm, "PutParameter", Name="p", Value="2", Type="String")
    again = await ask(ssm, "PutParameter", Name="p", Value="2", Overwrite=True)
    old = await ask(ssm, "GetParameter", Name="p:1")

    assert error.code == "ParameterAlreadyExists"
    assert again["Version"] == 2
    assert old["Parameter"]["Value"] == "1"
    assert ssm.resolve("p") == "2"


async def test_a_secure_parameter_is_read_only_with_decryption(ssm: SsmService) -> None:
    await ask(ssm, "PutParameter", Name="p", Value="hidden", Type="SecureString")

    closed = await ask(ssm, "GetParameter", Name="p")
    opened = await ask(ssm, "GetParameter", Name="p", WithDecryption=True)

    assert "hidden" not in closed["Parameter"]["Value"]
    assert opened["Parameter"]["Value"] == ssm.resolve("p") == "hidden"
    assert "hidden" not in repr(ssm._parameters)


async def test_a_missing_parameter_is_told(ssm: SsmService) -> None:
    await ask(ssm, "PutParameter", Name="p", Value="v", Type="String")

    got = await ask(ssm, "GetParameters", Names=["p", "q"])

    assert [parameter["Name"] for parameter in got["Parameters"]] == ["p"]
    assert got["InvalidParameters"] == ["q"]
    assert (await refusal(ssm, "GetParameter", Name="q")).code == "ParameterNotFound"
    assert (await refusal(ssm, "GetParameter", Name="p:2")).code == "ParameterVersionNotFound"
    assert (await refusal(ssm, "DeleteParameter", Name="q")).code == "ParameterNotFound"
    assert (await refusal(ssm, "GetParameters", Names=[f"{n}" for n in range(11)])).code == "ValidationException"


@pytest.mark.parametrize(
    "value_from",
    ["p", "/p", "arn:aws:ssm:us-east-1:111122223333:parameter/p", "arn:aws:ssm:us-east-1:111122223333:parameter/p:1"],
)
async def test_a_container_names_a_parameter_in_several_ways(ssm: SsmService, value_from: str) -> None:
    await ask(ssm, "PutParameter", Name="p", Value="v", Type="String")

    assert ssm.resolve(value_from) == "v"


async def test_parameters_are_listed_by_path(ssm: SsmService) -> None:
    for number in range(12):
        await ask(ssm, "PutParameter", Name=f"/a/{number:02}", Value="v", Type="String")
    await ask(ssm, "PutParameter", Name="/a/b/c", Value="v", Type="String")

    first = await ask(ssm, "GetParametersByPath", Path="/a")
    second = await ask(ssm, "GetParametersByPath", Path="/a", NextToken=first["NextToken"])
    deep = await ask(ssm, "GetParametersByPath", Path="/a/b", Recursive=True)
    filters = [{"Key": "Name", "Option": "BeginsWith", "Values": ["/a/0"]}]
    described = await ask(ssm, "DescribeParameters", ParameterFilters=filters)

    names = [parameter["Name"] for parameter in first["Parameters"] + second["Parameters"]]
    assert names == [f"/a/{number:02}" for number in range(12)]
    assert [parameter["Name"] for parameter in deep["Parameters"]] == ["/a/b/c"]
    assert len(described["Parameters"]) == 10


async def test_parameters_are_deleted(ssm: SsmService) -> None:
    for name in "abc":
        await ask(ssm, "PutParameter", Name=name, Value="v", Type="String")

    await ask(ssm, "DeleteParameter", Name="a")
    reply = await ask(ssm, "DeleteParameters", Names=["a", "b"])

    assert reply == {"DeletedParameters": ["b"], "InvalidParameters": ["a"]}
    assert [entry["Name"] for entry in (await ask(ssm, "DescribeParameters"))["Parameters"]] == ["c"]


@pytest.mark.parametrize(
    "request_",
    [
        {"Name": "a b", "Type": "String"},
        {"Name": "p"},
        {"Name": "p", "Type": "String", "Value": "x" * 4097},
        {"Name": "p", "Type": "String", "Overwrite": True, "Tags": [{"Key": "a", "Value": "b"}]},
    ],
)
async def test_an_impossible_parameter_is_refused(ssm: SsmService, request_: dict[str, Any]) -> None:
    error = await refusal(ssm, "PutParameter", **{"Value": "v", **request_})

    assert error.code == "ValidationException"


# Secrets.


@pytest.fixture
def secrets(clock: VirtualClock) -> SecretsManagerService:
    return SecretsManagerService(clock)


async def test_a_secret_is_found_by_name_arn_and_the_arn_without_its_end(secrets: SecretsManagerService) -> None:
    made = await ask(secrets, "CreateSecret", Name="db/main", SecretString="hidden")

    assert re.fullmatch(r"arn:aws:secretsmanager:us-east-1:111122223333:secret:db/main-\w{6}", made["ARN"])
    for name in ("db/main", made["ARN"], made["ARN"][:-7]):
        got = await ask(secrets, "GetSecretValue", SecretId=name)
        assert (got["SecretString"], got["VersionStages"]) == ("hidden", ["AWSCURRENT"])
    assert "hidden" not in repr(secrets._secrets)


async def test_a_secret_keeps_its_previous_value(secrets: SecretsManagerService) -> None:
    await ask(secrets, "CreateSecret", Name="s", SecretString="1")
    await ask(secrets, "PutSecretValue", SecretId="s", SecretString="2")
    third = await ask(secrets, "PutSecretValue", SecretId="s", SecretString="3", VersionStages=["next"])

    stages = {
        stage: (await ask(secrets, "GetSecretValue", SecretId="s", VersionStage=stage))["SecretString"]
        for stage in ("AWSCURRENT", "AWSPREVIOUS", "next")
    }
    by_id = await ask(secrets, "GetSecretValue", SecretId="s", VersionId=third["VersionId"])
    described = await ask(secrets, "DescribeSecret", SecretId="s")

    assert stages == {"AWSCURRENT": "2", "AWSPREVIOUS": "1", "next": "3"}
    assert by_id["SecretString"] == "3"
    assert described["VersionIdsToStages"][third["VersionId"]] == ["next"]


async def test_a_token_puts_a_value_once(secrets: SecretsManagerService) -> None:
    await ask(secrets, "CreateSecret", Name="s", SecretString="1", ClientRequestToken="t" * 32)

    again = await ask(secrets, "PutSecretValue", SecretId="s", SecretString="1", ClientRequestToken="t" * 32)
    error = await refusal(secrets, "PutSecretValue", SecretId="s", SecretString="2", ClientRequestToken="t" * 32)

    assert again["VersionId"] == "t" * 32
    assert error.code == "ResourceExistsException"


async def test_a_container_gets_what_it_names(secrets: SecretsManagerService) -> None:
    text = json.dumps({"user": "ann", "port": 5432})
    made = await ask(secrets, "CreateSecret", Name="s", SecretString=text)
    arn = made["ARN"]
    await ask(secrets, "PutSecretValue", SecretId="s", SecretString='{"user": "bob"}')

    assert secrets.resolve(arn) == '{"user": "bob"}'
    assert secrets.resolve(f"{arn}:user::") == "bob"
    assert secrets.resolve(f"{arn}:user:AWSPREVIOUS:") == "ann"
    assert secrets.resolve(f"{arn}:port::{made['VersionId']}") == "5432"
    for bad in (f"{arn}:none::", f"{arn}::none:", f"{arn}x", "nothing"):
        with pytest.raises(AwsError) as caught:
            secrets.resolve(bad)
        assert caught.value.code == "ResourceNotFoundException"
        assert "bob" not in caught.value.message


async def test_a_deleted_secret_is_in_the_way_for_a_while(secrets: SecretsManagerService) -> None:
    for name in "ab":
        await ask(secrets, "CreateSecret", Name=name, SecretString="v")

    await ask(secrets, "DeleteSecret", SecretId="a")
    await ask(secrets, "DeleteSecret", SecretId="b", ForceDeleteWithoutRecovery=True)

    assert (await refusal(secrets, "GetSecretValue", SecretId="a")).code == "InvalidRequestException"
    assert (await refusal(secrets, "CreateSecret", Name="a")).code == "InvalidRequestException"
    assert "DeletedDate" in await ask(secrets, "DescribeSecret", SecretId="a")
    assert (await refusal(secrets, "GetSecretValue", SecretId="b")).code == "ResourceNotFoundException"
    await ask(secrets, "CreateSecret", Name="b", SecretString="again")


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"Name": "taken"}, "ResourceExistsException"),
        ({"Name": "a b"}, "ValidationException"),
        ({"Name": "new", "SecretString": "a", "SecretBinary": b"b"}, "InvalidParameterException"),
    ],
)
async def test_an_impossible_secret_is_refused(
    secrets: SecretsManagerService, request_: dict[str, Any], code: str
) -> None:
    await ask(secrets, "CreateSecret", Name="taken", SecretString="v")

    error = await refusal(secrets, "CreateSecret", **request_)

    assert error.code == code


async def test_a_secret_without_a_value_has_none(secrets: SecretsManagerService) -> None:
    await ask(secrets, "CreateSecret", Name="s")

    assert (await refusal(secrets, "GetSecretValue", SecretId="s")).code == "ResourceNotFoundException"


async def test_the_seed_decides_the_ends_of_arns(clock: VirtualClock) -> None:
    async def arn(seed: int) -> str:
        return (await ask(SecretsManagerService(clock, seed=seed), "CreateSecret", Name="s"))["ARN"]

    assert await arn(1) == await arn(1) != await arn(2)


# Objects.


@pytest.fixture
async def s3(clock: VirtualClock) -> S3Service:
    s3 = S3Service(clock)
    await ask(s3, "CreateBucket", Bucket="bucket")
    return s3


class Upload:
    async def read(self) -> bytes:
        return b"content"


@pytest.mark.parametrize(
    "body", [b"content", "content", io.BytesIO(b"content"), Upload()], ids=["bytes", "text", "file", "async file"]
)
async def test_an_object_is_put_and_got(s3: S3Service, body: Any) -> None:
    put = await s3.call("PutObject", {"Bucket": "bucket", "Key": "k", "Body": body, "Metadata": {"a": "b"}})

    got = await s3.call("GetObject", {"Bucket": "bucket", "Key": "k"})
    head = await ask(s3, "HeadObject", Bucket="bucket", Key="k")

    async with got["Body"] as stream:
        assert await stream.read(3) + await stream.read() == b"content"
    assert got["ETag"] == put["ETag"] == head["ETag"] == '"9a0364b9e99bb480dd25e1f0284c8555"'
    assert (head["ContentLength"], head["Metadata"]) == (7, {"a": "b"})


async def test_an_object_is_made_only_once_if_asked(s3: S3Service) -> None:
    once = {"Bucket": "bucket", "Key": "k", "IfNoneMatch": "*"}
    first = await ask(s3, "PutObject", Body=b"1", **once)

    error = await refusal(s3, "PutObject", Body=b"2", **once)
    stale = await refusal(s3, "PutObject", Bucket="bucket", Key="k", Body=b"2", IfMatch='"x"')
    await ask(s3, "PutObject", Bucket="bucket", Key="k", Body=b"3", IfMatch=first["ETag"])

    assert (error.code, error.status) == (stale.code, stale.status) == ("PreconditionFailed", 412)
    assert await (await s3.call("GetObject", {"Bucket": "bucket", "Key": "k"}))["Body"].read() == b"3"


async def test_missing_objects_and_buckets_are_told(s3: S3Service) -> None:
    key = await refusal(s3, "GetObject", Bucket="bucket", Key="none")
    head = await refusal(s3, "HeadObject", Bucket="bucket", Key="none")
    bucket = await refusal(s3, "PutObject", Bucket="none", Key="k", Body=b"")

    assert (key.code, key.status) == ("NoSuchKey", 404)
    assert (head.code, head.status) == ("404", 404)
    assert (bucket.code, bucket.status) == ("NoSuchBucket", 404)


async def test_buckets_tell_where_they_are(s3: S3Service) -> None:
    assert await ask(s3, "GetBucketLocation", Bucket="bucket") == {}  # us-east-1 has no name there
    assert (await refusal(s3, "GetBucketLocation", Bucket="none")).code == "NoSuchBucket"

    s3.region = "eu-west-1"
    assert await ask(s3, "GetBucketLocation", Bucket="bucket") == {"LocationConstraint": "eu-west-1"}


async def test_objects_are_deleted_again_and_again(s3: S3Service) -> None:
    await ask(s3, "PutObject", Bucket="bucket", Key="k", Body=b"")
    full = await refusal(s3, "DeleteBucket", Bucket="bucket")
    for _ in range(2):
        await ask(s3, "DeleteObject", Bucket="bucket", Key="k")
    await ask(s3, "DeleteBucket", Bucket="bucket")

    assert (full.code, full.status) == ("BucketNotEmpty", 409)
    assert (await ask(s3, "ListBuckets"))["Buckets"] == []
    assert (await refusal(s3, "HeadBucket", Bucket="bucket")).status == 404


async def test_objects_are_listed_in_pages(s3: S3Service) -> None:
    for key in ("a/1", "a/2", "a/b/1", "a/b/2", "a/c/1", "x"):
        await ask(s3, "PutObject", Bucket="bucket", Key=key, Body=b"1")
    request: dict[str, Any] = {"Bucket": "bucket", "Prefix": "a/", "Delimiter": "/", "MaxKeys": 3}

    first = await ask(s3, "ListObjectsV2", **request)
    second = await ask(s3, "ListObjectsV2", **request, ContinuationToken=first["NextContinuationToken"])
    flat = await ask(s3, "ListObjectsV2", Bucket="bucket", StartAfter="a/b/1")

    assert [entry["Key"] for entry in first["Contents"]] == ["a/1", "a/2"]
    assert [entry["Prefix"] for entry in first["CommonPrefixes"] + second["CommonPrefixes"]] == ["a/b/", "a/c/"]
    assert (first["KeyCount"], first["IsTruncated"], second["IsTruncated"]) == (3, True, False)
    assert [entry["Key"] for entry in flat["Contents"]] == ["a/b/2", "a/c/1", "x"]


@pytest.mark.parametrize(
    ("bucket", "code"), [("bucket", "BucketAlreadyOwnedByYou"), ("No_Bucket", "InvalidBucketName")]
)
async def test_an_impossible_bucket_is_refused(s3: S3Service, bucket: str, code: str) -> None:
    assert (await refusal(s3, "CreateBucket", Bucket=bucket)).code == code


# Who we are, and networks.


async def test_we_are_somebody(clock: VirtualClock) -> None:
    reply = await ask(StsService(clock, account="123456789012", user="ann"), "GetCallerIdentity")

    assert (reply["Account"], reply["Arn"]) == ("123456789012", "arn:aws:iam::123456789012:user/ann")


@pytest.fixture
def ec2(clock: VirtualClock) -> Ec2Service:
    return Ec2Service(clock, security_groups={"sg-1": "default", "sg-2": "jobs"})


def where(**filters: str) -> list[dict[str, Any]]:
    return [{"Name": name.replace("_", "-"), "Values": [value]} for name, value in filters.items()]


async def test_there_is_a_default_vpc_with_public_and_private_subnets(ec2: Ec2Service) -> None:
    [vpc] = (await ask(ec2, "DescribeVpcs", Filters=where(is_default="true")))["Vpcs"]
    subnets = (await ask(ec2, "DescribeSubnets", Filters=where(vpc_id=vpc["VpcId"])))["Subnets"]
    public = (await ask(ec2, "DescribeSubnets", Filters=where(default_for_az="true")))["Subnets"]

    assert len(subnets) == 6
    assert {subnet["AvailabilityZone"] for subnet in public} == {"us-east-1a", "us-east-1b", "us-east-1c"}
    assert all(subnet["MapPublicIpOnLaunch"] for subnet in public)
    assert sum(subnet["MapPublicIpOnLaunch"] for subnet in subnets) == 3
    assert all(re.fullmatch(r"subnet-[0-9a-f]{17}", subnet["SubnetId"]) for subnet in subnets)


async def test_networks_are_chosen_by_id_and_filter(ec2: Ec2Service) -> None:
    zone = await ask(ec2, "DescribeSubnets", Filters=where(availability_zone="*b", map_public_ip_on_launch="false"))
    one = await ask(ec2, "DescribeSubnets", SubnetIds=[zone["Subnets"][0]["SubnetId"]])
    group = await ask(ec2, "DescribeSecurityGroups", Filters=where(group_name="jobs"))

    assert one == zone
    assert len(one["Subnets"]) == 1
    assert [entry["GroupId"] for entry in group["SecurityGroups"]] == ["sg-2"]


@pytest.mark.parametrize(
    ("operation", "request_", "code"),
    [
        ("DescribeSubnets", {"SubnetIds": ["subnet-0"]}, "InvalidSubnetID.NotFound"),
        ("DescribeVpcs", {"VpcIds": ["vpc-0"]}, "InvalidVpcID.NotFound"),
        ("DescribeSecurityGroups", {"GroupIds": ["sg-0"]}, "InvalidGroup.NotFound"),
        ("DescribeSubnets", {"Filters": [{"Name": "colour", "Values": ["red"]}]}, "InvalidParameterValue"),
    ],
)
async def test_an_unknown_network_is_told(ec2: Ec2Service, operation: str, request_: dict[str, Any], code: str) -> None:
    assert (await refusal(ec2, operation, **request_)).code == code


async def test_the_network_is_what_a_test_says(clock: VirtualClock) -> None:
    subnet = Subnet(id="subnet-1", zone="d", cidr="10.0.0.0/24", public=False, default=False, free=3)
    ec2 = Ec2Service(clock, default_vpc=False, subnets=[subnet])

    assert (await ask(ec2, "DescribeVpcs", Filters=where(is_default="true"))) == {"Vpcs": []}
    [found] = (await ask(ec2, "DescribeSubnets"))["Subnets"]
    assert (found["AvailabilityZone"], found["AvailableIpAddressCount"]) == ("us-east-1d", 3)


@pytest.mark.parametrize("service", [SsmService, SecretsManagerService, S3Service, StsService, Ec2Service])
async def test_what_is_not_there_is_told(clock: VirtualClock, service: type[Service]) -> None:
    made = service(clock)  # type: ignore[call-arg]

    assert (await refusal(made, "DoSomething")).code == "UnknownOperationException"
