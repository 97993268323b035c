"""
The services around a job, as far as this library asks them: parameters, secrets, objects, who we are, networks.

For the fake in process; over HTTP these are answered by moto.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import string
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from random import Random
from typing import Any, ClassVar, Final, Self

import attrs

from fargate_runner.testing.aws._logs import PageTokens
from fargate_runner.testing.aws._service import AwsError, Clock, Service

__all__ = ["Ec2Service", "S3Service", "SecretsManagerService", "SsmService", "StsService", "Subnet"]


# SSM parameters.


@attrs.define(kw_only=True)
class _Parameter:
    name: str
    type: str
    values: list[str] = attrs.field(repr=False)
    modified: datetime
    description: str | None
    tags: dict[str, str]


class SsmService(Service):
    """Systems Manager's parameters."""

    name: ClassVar[str] = "ssm"

    def __init__(
        self, clock: Clock, *, region: str = "us-east-1", account: str = "111122223333", seed: int = 0
    ) -> None:
        self.region = region
        self.account = account
        self._clock = clock
        self._parameters: dict[str, _Parameter] = {}
        self._tokens = PageTokens(
            clock, seed=f"{seed}/ssm", code="InvalidNextToken", message="The specified token is not valid."
        )

    def resolve(self, value_from: str) -> str:
        """
        Return the value that a container's ``secrets[].valueFrom`` stands for: a parameter's name or ARN.

        :raises AwsError: there is no such parameter
        """
        parameter, version = self._find(value_from)
        return parameter.values[version - 1]

    async def put_parameter(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name, value, overwrite = request["Name"], request["Value"], request.get("Overwrite", False)
        if not re.fullmatch(r"/?[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+){0,14}", name) or len(name) > 1011:
            raise AwsError(
                "ValidationException",
                'Parameter name: can\'t be prefixed with "ssm" (case-insensitive). If formed as a path, it can consist '
                "of sub-paths divided by slash symbol; each sub-path can be formed as a mix of letters, numbers and "
                "the following 3 symbols .-_",
            )
        if len(value.encode()) > (8192 if request.get("Tier") in {"Advanced", "Intelligent-Tiering"} else 4096):
            raise AwsError("ValidationException", "Standard tier parameters support a maximum parameter value of 4096 "
                           "characters.")  # fmt: skip
        old = self._parameters.get(name)
        if old is not None and not overwrite:
            raise AwsError(
                "ParameterAlreadyExists",
                "The parameter already exists. To overwrite this value, set the overwrite option in the request to "
                "true.",
            )
        if old is None and "Type" not in request:
            raise AwsError("ValidationException", "A parameter type is required when you create a parameter.")
        if overwrite and "Tags" in request:
            raise AwsError("ValidationException", "Invalid request: tags and overwrite can't be used together.")
        self._parameters[name] = _Parameter(
            name=name,
            type=request.get("Type") or (old.type if old else "String"),
            values=[*(old.values if old else ()), value],
            modified=self._clock.utcnow(),
            description=request.get("Description", old.description if old else None),
            tags=old.tags if old else {tag["Key"]: tag["Value"] for tag in request.get("Tags", ())},
        )
        return {"Version": len(self._parameters[name].values), "Tier": request.get("Tier", "Standard")}

    async def get_parameter(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"Parameter": self._shown(request["Name"], request)}

    async def get_parameters(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if len(request["Names"]) > 10:
            raise AwsError(
                "ValidationException",
                "1 validation error detected: Value at 'names' failed to satisfy constraint: Member must have length "
                "less than or equal to 10",
            )
        shown: list[dict[str, Any]] = []
        missing: list[str] = []
        for name in dict.fromkeys(request["Names"]):
            try:
                shown.append(self._shown(name, request))
            except AwsError:
                missing.append(name)
        return {"Parameters": shown, "InvalidParameters": missing}

    async def get_parameters_by_path(self, request: Mapping[str, Any]) -> dict[str, Any]:
        path = request["Path"].rstrip("/") + "/"
        names = sorted(
            name
            for name in self._parameters
            if name.startswith(path) and (request.get("Recursive") or "/" not in name[len(path) :])
        )
        page, token = self._page(("path", path, bool(request.get("Recursive"))), names, request, 10)
        return {"Parameters": [self._shown(name, request) for name in page]} | token

    async def describe_parameters(self, request: Mapping[str, Any]) -> dict[str, Any]:
        names = sorted(
            name
            for name in self._parameters
            if all(_keeps(name, entry) for entry in request.get("ParameterFilters", ()))
        )
        page, token = self._page(("describe", repr(request.get("ParameterFilters"))), names, request, 50)
        described: list[dict[str, Any]] = []
        for name in page:
            parameter = self._parameters[name]
            described.append(
                {
                    "Name": name,
                    "ARN": self._arn(name),
                    "Type": parameter.type,
                    "LastModifiedDate": parameter.modified,
                    "Version": len(parameter.values),
                    "Tier": "Standard",
                    **({} if parameter.description is None else {"Description": parameter.description}),
                }
            )
        return {"Parameters": described} | token

    async def delete_parameter(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._parameters.pop(request["Name"], None) is None:
            raise AwsError("ParameterNotFound", "")
        return {}

    async def delete_parameters(self, request: Mapping[str, Any]) -> dict[str, Any]:
        known = [name for name in request["Names"] if self._parameters.pop(name, None) is not None]
        return {
            "DeletedParameters": known,
            "InvalidParameters": [name for name in request["Names"] if name not in known],
        }

    async def list_tags_for_resource(self, request: Mapping[str, Any]) -> dict[str, Any]:
        parameter, _ = self._find(request["ResourceId"])
        return {"TagList": [{"Key": key, "Value": value} for key, value in parameter.tags.items()]}

    def _find(self, name: str) -> tuple[_Parameter, int]:
        """Return a parameter and the version that is meant, by ``name``, ``name:version`` or either's ARN."""
        if name.startswith("arn:"):
            _, _, _, region, account, resource = name.split(":", 5)
            name = resource.removeprefix("parameter")
            if (region, account) != (self.region, self.account):
                raise AwsError("ParameterNotFound", "")
        bare, _, version = name.partition(":")
        # The ARN of "name" and of "/name" look alike.
        found = self._parameters.get(bare) or self._parameters.get(bare.removeprefix("/"))
        if found is None:
            raise AwsError("ParameterNotFound", "")
        number = int(version) if version.isdigit() else len(found.values)
        if not 1 <= number <= len(found.values):
            raise AwsError("ParameterVersionNotFound", f"Systems Manager could not find version {version} of {bare}.")
        return found, number

    def _shown(self, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
        parameter, version = self._find(name)
        value = parameter.values[version - 1]
        if parameter.type == "SecureString" and not request.get("WithDecryption"):
            value = "AQICAH" + hashlib.sha256(value.encode()).hexdigest()  # what is stored is not what was put
        return {
            "Name": parameter.name,
            "Type": parameter.type,
            "Value": value,
            "Version": version,
            "LastModifiedDate": parameter.modified,
            "ARN": self._arn(parameter.name),
            "DataType": "text",
        }

    def _arn(self, name: str) -> str:
        return f"arn:aws:ssm:{self.region}:{self.account}:parameter/{name.removeprefix('/')}"

    def _page(
        self, scope: object, names: Sequence[str], request: Mapping[str, Any], most: int
    ) -> tuple[Sequence[str], dict[str, str]]:
        limit = min(request.get("MaxResults", most), most)
        page, token = self._tokens.page(scope, names, token=request.get("NextToken"), limit=limit)
        return page, {"NextToken": token} if token else {}


def _keeps(name: str, entry: Mapping[str, Any]) -> bool:
    """Tell whether a parameter passes a filter."""
    values = entry.get("Values", ())
    if entry["Key"] not in {"Name", "Path"}:
        raise AwsError("InvalidFilterKey", f"The fake AWS does not filter parameters by {entry['Key']}.")
    if entry["Key"] == "Path":
        return any(name.startswith(value.rstrip("/") + "/") for value in values)
    tests: dict[str, Callable[[str], bool]] = {
        "Equals": lambda value: name == value,
        "BeginsWith": name.startswith,
        "Contains": lambda value: value in name,
    }
    option = entry.get("Option", "Equals")
    if option not in tests:
        raise AwsError("InvalidFilterOption", f"{option} is not an option of the filter Name.")
    return any(tests[option](value) for value in values)


# Secrets.


@attrs.define(kw_only=True)
class _Secret:
    name: str
    arn: str
    created: datetime
    changed: datetime
    description: str | None
    tags: dict[str, str]
    versions: dict[str, dict[str, Any]] = attrs.field(repr=False)  # version id: SecretString or SecretBinary
    stages: dict[str, str]  # stage: version id
    deleted: datetime | None = None


class SecretsManagerService(Service):
    """Secrets Manager: secrets with versions and stages."""

    name: ClassVar[str] = "secretsmanager"

    def __init__(
        self, clock: Clock, *, region: str = "us-east-1", account: str = "111122223333", seed: int = 0
    ) -> None:
        self.region = region
        self.account = account
        self._clock = clock
        self._random = Random(f"{seed}/secretsmanager")  # noqa: S311 (repeatable, not secret)
        self._secrets: dict[str, _Secret] = {}

    def resolve(self, value_from: str) -> str:
        """
        Return the value that a container's ``secrets[].valueFrom`` stands for.

        It is the secret's ARN, and may go on with ``:json-key:version-stage:version-id``, each of which may be empty.

        :raises AwsError: no such secret, version or key
        """
        parts = value_from.split(":")
        arn, rest = ":".join(parts[:7]), [*parts[7:], "", "", ""]
        key, stage, version = rest[:3]
        found = self._find(arn)
        content = self._version(found, version or None, stage or None)[1]
        text: str = content.get("SecretString", "")
        if not key:
            return text
        try:
            return _as_text(json.loads(text)[key])
        except (ValueError, KeyError, TypeError):
            raise AwsError(
                "ResourceNotFoundException",
                f"retrieved secret from Secrets Manager did not contain json key {key}",
            ) from None

    async def create_secret(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name = request["Name"]
        if not re.fullmatch(r"[A-Za-z0-9/_+=.@-]{1,512}", name):
            raise AwsError(
                "ValidationException",
                "Invalid name. Must be a valid name containing alphanumeric characters, or any of the following: "
                "-/_+=.@!",
            )
        if name in self._secrets:
            if self._secrets[name].deleted:
                raise AwsError(
                    "InvalidRequestException",
                    "You can't create this secret because a secret with this name is already scheduled for deletion.",
                )
            raise AwsError("ResourceExistsException", f"The operation failed because the secret {name} already exists.")
        suffix = "".join(self._random.choices(string.ascii_letters + string.digits, k=6))
        now = self._clock.utcnow()
        secret = self._secrets[name] = _Secret(
            name=name,
            arn=f"arn:aws:secretsmanager:{self.region}:{self.account}:secret:{name}-{suffix}",
            created=now,
            changed=now,
            description=request.get("Description"),
            tags={tag["Key"]: tag["Value"] for tag in request.get("Tags", ())},
            versions={},
            stages={},
        )
        reply: dict[str, Any] = {"ARN": secret.arn, "Name": name}
        if "SecretString" in request or "SecretBinary" in request:
            reply["VersionId"] = self._put(secret, request)
        return reply

    async def put_secret_value(self, request: Mapping[str, Any]) -> dict[str, Any]:
        secret = self._find(request["SecretId"])
        version = self._put(secret, request)
        stages = sorted(stage for stage, holder in secret.stages.items() if holder == version)
        return {"ARN": secret.arn, "Name": secret.name, "VersionId": version, "VersionStages": stages}

    async def get_secret_value(self, request: Mapping[str, Any]) -> dict[str, Any]:
        secret = self._find(request["SecretId"])
        version, content = self._version(secret, request.get("VersionId"), request.get("VersionStage"))
        return {
            "ARN": secret.arn,
            "Name": secret.name,
            "VersionId": version,
            "VersionStages": sorted(stage for stage, holder in secret.stages.items() if holder == version),
            "CreatedDate": secret.created,
            **content,
        }

    async def describe_secret(self, request: Mapping[str, Any]) -> dict[str, Any]:
        secret = self._find(request["SecretId"], deleted=True)
        stages: dict[str, list[str]] = {}
        for stage, version in sorted(secret.stages.items()):
            stages.setdefault(version, []).append(stage)
        optional = {"Description": secret.description, "DeletedDate": secret.deleted}
        return {
            "ARN": secret.arn,
            "Name": secret.name,
            "CreatedDate": secret.created,
            "LastChangedDate": secret.changed,
            "Tags": [{"Key": key, "Value": value} for key, value in secret.tags.items()],
            "VersionIdsToStages": stages,
            **{name: value for name, value in optional.items() if value is not None},
        }

    async def delete_secret(self, request: Mapping[str, Any]) -> dict[str, Any]:
        secret = self._find(request["SecretId"])
        now = self._clock.utcnow()
        if request.get("ForceDeleteWithoutRecovery"):
            del self._secrets[secret.name]
        else:
            secret.deleted = now
        return {"ARN": secret.arn, "Name": secret.name, "DeletionDate": now}

    def _find(self, name: str, *, deleted: bool = False) -> _Secret:
        # By name, by ARN, or by ARN without the six characters at its end.
        for secret in self._secrets.values():
            if name in {secret.name, secret.arn, secret.arn[:-7]}:
                if secret.deleted and not deleted:
                    raise AwsError(
                        "InvalidRequestException",
                        "You can't perform this operation on the secret because it was marked for deletion.",
                    )
                return secret
        raise AwsError("ResourceNotFoundException", "Secrets Manager can't find the specified secret.")

    def _put(self, secret: _Secret, request: Mapping[str, Any]) -> str:
        content = {name: request[name] for name in ("SecretString", "SecretBinary") if name in request}
        if len(content) != 1:
            raise AwsError("InvalidParameterException", "You must provide either SecretString or SecretBinary.")
        version: str = request.get("ClientRequestToken") or _uuid(self._random)
        if version in secret.versions:
            if secret.versions[version] != content:
                raise AwsError(
                    "ResourceExistsException",
                    "You tried to create a new version of a secret with a token that was used for another value.",
                )
            return version
        secret.versions[version] = content
        secret.changed = self._clock.utcnow()
        stages = request.get("VersionStages", ["AWSCURRENT"])
        if "AWSCURRENT" in stages and "AWSCURRENT" in secret.stages:
            secret.stages["AWSPREVIOUS"] = secret.stages["AWSCURRENT"]
        secret.stages |= dict.fromkeys(stages, version)
        return version

    def _version(self, secret: _Secret, version: str | None, stage: str | None) -> tuple[str, dict[str, Any]]:
        wanted = version or secret.stages.get(stage or "AWSCURRENT", "")
        if wanted not in secret.versions or (stage is not None and secret.stages.get(stage) != wanted):
            by = f"VersionId: {version}" if version else f"staging label: {stage or 'AWSCURRENT'}"
            raise AwsError(
                "ResourceNotFoundException", f"Secrets Manager can't find the specified secret value for {by}"
            )
        return wanted, secret.versions[wanted]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _uuid(random: Random) -> str:
    digits = f"{random.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


# S3 objects.


class _Body(bytes):
    """
    What GetObject has as its ``Body``: to be read whole or in pieces.

    It is the bytes as well, because a blob is what botocore's model says it is.
    """

    _read = 0

    async def read(self, amount: int | None = None) -> bytes:
        start = self._read
        self._read = len(self) if amount is None or amount < 0 else start + amount
        return self[start : self._read]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Read no more."""
        self._read = len(self)


@attrs.frozen(kw_only=True)
class _Object:
    content: bytes = attrs.field(repr=False)
    modified: datetime
    etag: str
    type: str
    metadata: Mapping[str, str]


class S3Service(Service):
    """S3: buckets and objects, with conditional writes."""

    name: ClassVar[str] = "s3"

    def __init__(
        self, clock: Clock, *, region: str = "us-east-1", account: str = "111122223333", seed: int = 0
    ) -> None:
        self.region = region
        self.account = account
        self._clock = clock
        self._buckets: dict[str, dict[str, _Object]] = {}
        self._created: dict[str, datetime] = {}
        self._tokens = PageTokens(
            clock, seed=f"{seed}/s3", code="InvalidArgument", message="The continuation token provided is incorrect"
        )

    async def create_bucket(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name = request["Bucket"]
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", name):
            raise AwsError("InvalidBucketName", "The specified bucket is not valid.", BucketName=name)
        if name in self._buckets:
            raise AwsError(
                "BucketAlreadyOwnedByYou",
                "Your previous request to create the named bucket succeeded and you already own it.",
                status=409,
            )
        self._buckets[name] = {}
        self._created[name] = self._clock.utcnow()
        return {"Location": f"/{name}"}

    async def head_bucket(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if request["Bucket"] not in self._buckets:
            raise AwsError("404", "Not Found", status=404)
        return {"BucketRegion": self.region}

    async def get_bucket_location(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._bucket(request)
        return {} if self.region == "us-east-1" else {"LocationConstraint": self.region}

    async def list_buckets(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"Buckets": [{"Name": name, "CreationDate": self._created[name]} for name in sorted(self._buckets)]}

    async def delete_bucket(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._bucket(request):
            raise AwsError("BucketNotEmpty", "The bucket you tried to delete is not empty", status=409)
        del self._buckets[request["Bucket"]]
        return {}

    async def put_object(self, request: Mapping[str, Any]) -> dict[str, Any]:
        bucket, key = self._bucket(request), request["Key"]
        content = await _content(request.get("Body", b""))
        old = bucket.get(key)
        matches = request.get("IfMatch")
        if matches is not None and old is None:
            raise _no_key(key)
        if (request.get("IfNoneMatch") == "*" and old) or (matches is not None and old and old.etag != matches):
            raise AwsError(
                "PreconditionFailed",
                "At least one of the pre-conditions you specified did not hold",
                status=412,
                Condition="If-None-Match" if matches is None else "If-Match",
            )
        etag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
        bucket[key] = _Object(
            content=content,
            modified=self._clock.utcnow(),
            etag=etag,
            type=request.get("ContentType", "binary/octet-stream"),
            metadata=dict(request.get("Metadata", {})),
        )
        return {"ETag": etag}

    async def get_object(self, request: Mapping[str, Any]) -> dict[str, Any]:
        found = self._bucket(request).get(request["Key"])
        if found is None:
            raise _no_key(request["Key"])
        return {**self._head(found), "Body": _Body(found.content)}

    async def head_object(self, request: Mapping[str, Any]) -> dict[str, Any]:
        found = self._buckets.get(request["Bucket"], {}).get(request["Key"])
        if found is None:
            raise AwsError("404", "Not Found", status=404)  # a HEAD reply has no body to say more in
        return self._head(found)

    async def delete_object(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._bucket(request).pop(request["Key"], None)
        return {}

    async def list_objects_v2(self, request: Mapping[str, Any]) -> dict[str, Any]:
        bucket, name = self._bucket(request), request["Bucket"]
        prefix, delimiter = request.get("Prefix", ""), request.get("Delimiter", "")
        most = min(request.get("MaxKeys", 1000), 1000)
        keys = sorted(key for key in bucket if key.startswith(prefix) and key > request.get("StartAfter", ""))
        entries: list[str] = []  # keys, and what stands for several of them
        for key in keys:
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            entry = prefix + head + delimiter if found else key
            if not entries or entries[-1] != entry:
                entries.append(entry)
        scope = (name, prefix, delimiter)
        start = 0
        if "ContinuationToken" in request:
            start = bisect_left(entries, self._tokens.unseal(scope, request["ContinuationToken"]))
        page, more = entries[start : start + most], entries[start + most : start + most + 1]
        contents = [
            {
                "Key": key,
                "Size": len(bucket[key].content),
                "ETag": bucket[key].etag,
                "LastModified": bucket[key].modified,
                "StorageClass": "STANDARD",
            }
            for key in page
            if not (delimiter and key[len(prefix) :].endswith(delimiter) and key not in bucket)
        ]
        reply: dict[str, Any] = {
            "Name": name,
            "Prefix": prefix,
            "MaxKeys": most,
            "KeyCount": len(page),
            "IsTruncated": bool(more),
        }
        groups = [entry for entry in page if delimiter and entry not in bucket]
        optional = {
            "Contents": contents,
            "CommonPrefixes": [{"Prefix": group} for group in groups],
            "Delimiter": delimiter,
            "NextContinuationToken": self._tokens.seal(scope, more[0]) if more else "",
        }
        return reply | {name: value for name, value in optional.items() if value}

    def _bucket(self, request: Mapping[str, Any]) -> dict[str, _Object]:
        found = self._buckets.get(request["Bucket"])
        if found is None:
            raise AwsError(
                "NoSuchBucket", "The specified bucket does not exist", status=404, BucketName=request["Bucket"]
            )
        return found

    def _head(self, found: _Object) -> dict[str, Any]:
        return {
            "ContentLength": len(found.content),
            "ContentType": found.type,
            "ETag": found.etag,
            "LastModified": found.modified,
            "Metadata": dict(found.metadata),
        }


def _no_key(key: str) -> AwsError:
    return AwsError("NoSuchKey", "The specified key does not exist.", status=404, Key=key)


async def _content(body: Any) -> bytes:
    """Read what PutObject takes as a body: bytes, text, or a file, ordinary or asynchronous."""
    if hasattr(body, "read"):
        body = body.read()
        if isinstance(body, Awaitable):
            body = await body
    return body.encode() if isinstance(body, str) else bytes(body)


# Who we are.


class StsService(Service):
    """STS, which says who asks."""

    name: ClassVar[str] = "sts"

    def __init__(
        self, clock: Clock, *, region: str = "us-east-1", account: str = "111122223333", user: str = "fake"
    ) -> None:
        self.region = region
        self.account = account
        self.user = user
        self._clock = clock

    async def get_caller_identity(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "UserId": "AIDAFAKEFAKEFAKEFAKE1",
            "Account": self.account,
            "Arn": f"arn:aws:iam::{self.account}:user/{self.user}",
        }


# Networks.


@attrs.frozen(kw_only=True)
class Subnet:
    """A subnet of the fake's network."""

    id: str
    zone: str
    """The last letter of the availability zone."""

    cidr: str
    public: bool = True
    """Whether it gives public addresses, and has a way out by itself."""

    default: bool = True
    """Whether it is the default subnet of its zone."""

    free: int = 4091
    """How many addresses are left."""


_PUBLIC: Final = tuple(
    Subnet(id=f"subnet-0{zone * 8}00000001", zone=zone, cidr=f"172.31.{16 * index}.0/20")
    for index, zone in enumerate("abc")
)
_PRIVATE: Final = tuple(
    Subnet(
        id=f"subnet-0{zone * 8}00000002",
        zone=zone,
        cidr=f"172.31.{64 + 16 * index}.0/20",
        public=False,
        default=False,
    )
    for index, zone in enumerate("abc")
)


class Ec2Service(Service):
    """EC2's networks: one VPC, subnets in three zones, the default security group and what a test adds."""

    name: ClassVar[str] = "ec2"

    def __init__(
        self,
        clock: Clock,
        *,
        region: str = "us-east-1",
        account: str = "111122223333",
        vpc: str = "vpc-0de0de0de0de0de0d",
        default_vpc: bool = True,
        subnets: Iterable[Subnet] = (*_PUBLIC, *_PRIVATE),
        security_groups: Mapping[str, str] | None = None,
    ) -> None:
        self.region = region
        self.account = account
        self.vpc = vpc
        self.default_vpc = default_vpc
        self.subnets = tuple(subnets)
        self.security_groups = dict(security_groups or {"sg-0de0de0de0de0de0d": "default"})
        """Name by id."""
        self._clock = clock

    async def describe_vpcs(self, request: Mapping[str, Any]) -> dict[str, Any]:
        vpc = {
            "VpcId": self.vpc,
            "CidrBlock": "172.31.0.0/16",
            "State": "available",
            "IsDefault": self.default_vpc,
            "OwnerId": self.account,
            "InstanceTenancy": "default",
            "DhcpOptionsId": "dopt-0de0de0de0de0de0d",
            "Tags": [],
        }
        chosen = _chosen([vpc], request, key="VpcId", ids="VpcIds", kind="vpc", code="InvalidVpcID.NotFound")
        return {"Vpcs": chosen}

    async def describe_subnets(self, request: Mapping[str, Any]) -> dict[str, Any]:
        subnets = [
            {
                "SubnetId": subnet.id,
                "SubnetArn": f"arn:aws:ec2:{self.region}:{self.account}:subnet/{subnet.id}",
                "VpcId": self.vpc,
                "AvailabilityZone": f"{self.region}{subnet.zone}",
                "AvailabilityZoneId": f"use1-az{ord(subnet.zone) - ord('a') + 1}",
                "CidrBlock": str(ipaddress.ip_network(subnet.cidr)),
                "MapPublicIpOnLaunch": subnet.public,
                "DefaultForAz": subnet.default,
                "AvailableIpAddressCount": subnet.free,
                "State": "available",
                "OwnerId": self.account,
                "AssignIpv6AddressOnCreation": False,
                "Tags": [],
            }
            for subnet in self.subnets
        ]
        chosen = _chosen(
            subnets, request, key="SubnetId", ids="SubnetIds", kind="subnet", code="InvalidSubnetID.NotFound"
        )
        return {"Subnets": chosen}

    async def describe_security_groups(self, request: Mapping[str, Any]) -> dict[str, Any]:
        groups = [
            {
                "GroupId": group,
                "GroupName": name,
                "Description": f"{name} VPC security group",
                "VpcId": self.vpc,
                "OwnerId": self.account,
                "IpPermissions": [],
                "IpPermissionsEgress": [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}],
                "Tags": [],
            }
            for group, name in sorted(self.security_groups.items())
        ]
        chosen = _chosen(
            groups, request, key="GroupId", ids="GroupIds", kind="security group", code="InvalidGroup.NotFound"
        )
        return {"SecurityGroups": chosen}


# The filter's name, and the member that it looks at.
_FILTERS: Final[Mapping[str, str]] = {
    "availability-zone": "AvailabilityZone",
    "availabilityZone": "AvailabilityZone",
    "cidr": "CidrBlock",
    "cidr-block": "CidrBlock",
    "default-for-az": "DefaultForAz",
    "defaultForAz": "DefaultForAz",
    "group-id": "GroupId",
    "group-name": "GroupName",
    "is-default": "IsDefault",
    "isDefault": "IsDefault",
    "map-public-ip-on-launch": "MapPublicIpOnLaunch",
    "owner-id": "OwnerId",
    "state": "State",
    "subnet-id": "SubnetId",
    "vpc-id": "VpcId",
}


def _chosen(
    things: list[dict[str, Any]], request: Mapping[str, Any], *, key: str, ids: str, kind: str, code: str
) -> list[dict[str, Any]]:
    """Return what the ids and filters of a request leave."""
    known = {thing[key]: thing for thing in things}
    wanted = request.get(ids, ())
    for one in wanted:
        if one not in known:
            raise AwsError(code, f"The {kind} ID '{one}' does not exist")
    if wanted:
        things = [known[one] for one in wanted]
    for entry in request.get("Filters", ()):
        things = [thing for thing in things if _passes(thing, entry["Name"], entry.get("Values", ()))]
    return things


def _passes(thing: Mapping[str, Any], name: str, values: Collection[str]) -> bool:
    member = _FILTERS.get(name)
    if member is None or member not in thing:
        raise AwsError("InvalidParameterValue", f"The filter '{name}' is invalid")
    value = thing[member]
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return any(re.fullmatch(re.escape(wanted).replace(r"\*", ".*").replace(r"\?", "."), text) for wanted in values)
