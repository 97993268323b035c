"""What each error of AWS means, by table."""

from __future__ import annotations

import pickle

import pytest

from fargate_runner.backends.ecs._api import ApiError, Trouble, trouble_of

THROTTLED, TRANSIENT, EXPIRED, DENIED = Trouble.THROTTLED, Trouble.TRANSIENT, Trouble.EXPIRED, Trouble.DENIED
CONFLICT, INVALID, NOT_FOUND, UNKNOWN = Trouble.CONFLICT, Trouble.INVALID, Trouble.NOT_FOUND, Trouble.UNKNOWN

SUBNET = "Error retrieving subnet information for [subnet-0a1b2c3d]"

# The exceptions of RunTask and its neighbours, as AWS documents and as users have met them: code, message, status.
TABLE = [
    (THROTTLED, "ThrottlingException", "Rate exceeded", 400),
    (THROTTLED, "Throttling", "Rate exceeded", 400),
    (THROTTLED, "TooManyRequestsException", "Too Many Requests", 429),
    (THROTTLED, "RequestLimitExceeded", "Request limit exceeded.", 503),
    (THROTTLED, "SlowDown", "Please reduce your request rate.", 503),
    (THROTTLED, "ProvisionedThroughputExceededException", "", 400),
    (THROTTLED, "SomethingNew", "", 429),
    (THROTTLED, "429", "", 429),
    (THROTTLED, "InvalidParameterException", f"{SUBNET}: Rate exceeded (ErrorCode: Throttling)", 400),
    (THROTTLED, "InvalidParameterException", f"{SUBNET}: slow down (ErrorCode: Throttling)", 400),
    (THROTTLED, "InvalidParameterException", f"{SUBNET}: no (ErrorCode: RequestLimitExceeded)", 400),
    (THROTTLED, "InvalidParameterException", f"{SUBNET}: Request limit exceeded. (ErrorCode: Client)", 400),
    (THROTTLED, "ClientException", "Rate exceeded", 400),
    (
        THROTTLED,
        "ClientException",
        "Too many concurrent attempts to create a new revision of the specified family.",
        400,
    ),
    (TRANSIENT, "ServerException", "Service Unavailable. Please try again later.", 500),
    (TRANSIENT, "InternalFailure", "", 500),
    (TRANSIENT, "InternalError", "An internal error has occurred", 400),
    (TRANSIENT, "ServiceUnavailable", "", 503),
    (TRANSIENT, "ServiceUnavailableException", "The service cannot complete the request.", 503),
    (TRANSIENT, "RequestTimeoutException", "Request timed out", 408),
    (TRANSIENT, "RequestTimeout", "", 400),
    (TRANSIENT, "500", "Internal Server Error", 500),
    (TRANSIENT, "502", "Bad Gateway", 502),
    (TRANSIENT, "504", "Gateway Timeout", 504),
    (TRANSIENT, "", "", 503),
    (TRANSIENT, "SomethingNewException", "", 500),
    (TRANSIENT, "InternalServerError", "The request processing has failed because of an unknown error", 500),
    (TRANSIENT, "ReplicatedWriteConflictException", "One or more items in this request are being modified", 400),
    (TRANSIENT, "OperationAbortedException", "Multiple concurrent requests to update the same resource", 400),
    (TRANSIENT, "InvalidSignatureException", "Signature expired: 20260101T000000Z is now earlier than …", 400),
    (TRANSIENT, "InvalidSignatureException", "Signature not yet current: …", 400),
    (EXPIRED, "ExpiredTokenException", "The security token included in the request is expired", 403),
    (EXPIRED, "ExpiredToken", "The provided token has expired.", 400),
    (EXPIRED, "RequestExpired", "Request has expired.", 400),
    (DENIED, "AccessDeniedException", "User: arn:aws:iam::1:user/a is not authorized to perform: ecs:RunTask", 400),
    (DENIED, "AccessDenied", "Access Denied", 403),
    (DENIED, "UnauthorizedOperation", "You are not authorized to perform this operation.", 403),
    (DENIED, "UnrecognizedClientException", "The security token included in the request is invalid.", 400),
    (DENIED, "InvalidClientTokenId", "The security token included in the request is invalid.", 403),
    (DENIED, "SignatureDoesNotMatch", "The request signature we calculated does not match …", 403),
    (DENIED, "InvalidSignatureException", "The request signature we calculated does not match …", 400),
    (DENIED, "MissingAuthenticationTokenException", "Missing Authentication Token", 400),
    (DENIED, "OptInRequired", "The AWS Access Key Id needs a subscription for the service", 403),
    (DENIED, "BlockedException", "Your AWS account was blocked.", 400),
    (CONFLICT, "ConflictException", "The token was used with other parameters.", 400),
    (CONFLICT, "ResourceAlreadyExistsException", "The specified log group already exists", 400),
    (CONFLICT, "ParameterAlreadyExists", "The parameter already exists.", 400),
    (CONFLICT, "BucketAlreadyOwnedByYou", "", 409),
    (CONFLICT, "ConditionalCheckFailedException", "The conditional request failed", 400),
    (CONFLICT, "ResourceInUseException", "Table already exists: jobs", 400),
    (NOT_FOUND, "ClusterNotFoundException", "Cluster not found.", 400),
    (NOT_FOUND, "ResourceNotFoundException", "The specified log stream does not exist.", 400),
    (NOT_FOUND, "ParameterNotFound", "", 400),
    (NOT_FOUND, "NoSuchBucket", "The specified bucket does not exist", 404),
    (NOT_FOUND, "InvalidSubnetID.NotFound", "The subnet ID 'subnet-1' does not exist", 400),
    (NOT_FOUND, "AWS.SimpleQueueService.NonExistentQueue", "", 400),
    (NOT_FOUND, "QueueDoesNotExist", "The specified queue does not exist.", 400),
    (NOT_FOUND, "InvalidParameterException", "The referenced task was not found.", 400),
    (INVALID, "InvalidParameterException", "Container Overrides length must be at most 8192", 400),
    (INVALID, "InvalidParameterException", f"{SUBNET}: does not exist (ErrorCode: InvalidSubnetID.NotFound)", 400),
    (INVALID, "InvalidParameterException", "Override for container named x is not a container in the …", 400),
    (INVALID, "InvalidParameterException", "TaskDefinition is inactive", 400),
    (INVALID, "InvalidParameterException", "Unable to assume the service linked role. Please verify …", 400),
    (INVALID, "ClientException", "TaskDefinition is inactive", 400),
    (INVALID, "ClientException", "ECS was unable to assume the role 'arn:aws:iam::1:role/x' that was provided", 400),
    (INVALID, "PlatformUnknownException", "The specified platform version does not exist.", 400),
    (INVALID, "PlatformTaskDefinitionIncompatibilityException", "", 400),
    (INVALID, "UnsupportedFeatureException", "", 400),
    (INVALID, "ValidationError", "", 400),
    (INVALID, "ValidationException", "", 400),
    (INVALID, "LimitExceededException", "The maximum number of log groups was reached.", 400),
    (INVALID, "SomethingNewException", "", 400),
    (INVALID, "SessionTimeoutException", "", 0),
    (UNKNOWN, "403", "Forbidden", 403),
    (UNKNOWN, "400", "", 400),
    (UNKNOWN, "", "", 0),
]


@pytest.mark.parametrize(
    ("trouble", "code", "message", "status"), TABLE, ids=[f"{row[1]}-{row[3]}-{n}" for n, row in enumerate(TABLE)]
)
def test_each_error_has_its_meaning(trouble: Trouble, code: str, message: str, status: int) -> None:
    assert trouble_of(code, message, status) is trouble


@pytest.mark.parametrize("trouble", Trouble)
def test_asking_again_may_help_with_three_kinds_only(trouble: Trouble) -> None:
    error = ApiError("ecs.RunTask", "Code", trouble=trouble)

    assert error.retryable is (trouble in {THROTTLED, TRANSIENT, EXPIRED})


class TestWhatAnErrorSays:
    def test_operation_code_message_request_and_what_to_try(self) -> None:
        error = ApiError("ecs.ListTasks", "ClusterNotFoundException", "Cluster not found.", "4f2a", 400)

        assert str(error) == (
            "ecs.ListTasks: ClusterNotFoundException: Cluster not found; "
            "check the name of the cluster and the region, or create the cluster (request 4f2a)"
        )

    def test_the_fields_are_aws_own_words(self) -> None:
        error = ApiError("ecs.RunTask", "ConflictException", "Other words.", "4f2a", 400, None, ("arn:1",))

        assert (error.operation, error.code, error.aws_message) == ("ecs.RunTask", "ConflictException", "Other words.")
        assert (error.request_id, error.status, error.resource_ids) == ("4f2a", 400, ("arn:1",))
        assert (error.trouble, error.in_doubt) == (CONFLICT, False)

    def test_a_message_of_kilobytes_is_cut_in_the_text_only(self) -> None:
        error = ApiError("ec2.DescribeVpcs", "UnauthorizedOperation", "Encoded: " + "x" * 5000)

        assert len(str(error)) < 1300
        assert len(error.aws_message) == 5009

    def test_it_can_be_pickled(self) -> None:
        error = ApiError("ecs.RunTask", "ServerException", "No.", "4f2a", 500, None, ("arn:1",), in_doubt=True)

        same = pickle.loads(pickle.dumps(error))

        assert str(same) == str(error)
        assert (same.trouble, same.resource_ids, same.in_doubt, same.retryable) == (TRANSIENT, ("arn:1",), True, True)

    def test_it_can_be_pickled_with_what_was_there(self) -> None:
        error = ApiError("dynamodb.PutItem", "ConditionalCheckFailedException", item={"key": {"S": "job"}})

        assert pickle.loads(pickle.dumps(error)).item == {"key": {"S": "job"}}


ROLE = "arn:aws:iam::111122223333:role/fr-execution"
REVISION = "arn:aws:ecs:eu-west-1:111122223333:task-definition/fr-a-b-0123:7"


class TestAMissingPermission:
    @pytest.mark.parametrize(
        ("message", "action", "resource"),
        [
            (
                "User: arn:aws:iam::111122223333:user/me is not authorized to perform: ecs:RunTask on resource: "
                f"{REVISION} because no identity-based policy allows the ecs:RunTask action",
                "ecs:RunTask",
                REVISION,
            ),
            (
                "User: arn:aws:sts::111122223333:assumed-role/ci/me is not authorized to perform: iam:PassRole on "
                f"resource: {ROLE} because no identity-based policy allows the iam:PassRole action",
                "iam:PassRole",
                ROLE,
            ),
            (
                "User: arn:aws:iam::111122223333:user/me is not authorized to perform: ecs:TagResource on resource: * "
                "with an explicit deny in a service control policy",
                "ecs:TagResource",
                "*",
            ),
            (
                "You are not authorized to perform this operation. User: arn:aws:iam::111122223333:user/me is not "
                "authorized to perform: ec2:DescribeVpcs because no identity-based policy allows it",
                "ec2:DescribeVpcs",
                "",
            ),
            ("Access Denied", "", ""),
        ],
    )
    def test_is_named(self, message: str, action: str, resource: str) -> None:
        error = ApiError("ecs.RunTask", "AccessDeniedException", message, "4f2a", 400)

        assert (error.action, error.resource) == (action, resource)
        assert (f"allow {action} on {resource}" in str(error) or f"{action} on {resource} is denied" in str(error)) is (
            bool(resource)
        )

    def test_is_said_with_what_aws_needs_beside(self) -> None:
        message = f"User: x is not authorized to perform: iam:PassRole on resource: {ROLE}"

        error = ApiError("ecs.RunTask", "AccessDeniedException", message)

        assert f"allow iam:PassRole on {ROLE} for the credentials in use" in str(error)
        assert "both the execution role and the task role" in str(error)

    def test_an_explicit_deny_is_somebody_elses_to_change(self) -> None:
        message = (
            "User: x is not authorized to perform: ecs:RunTask on resource: y with an explicit deny in a service "
            "control policy: arn:aws:organizations::1:policy/o/p"
        )

        error = ApiError("ecs.RunTask", "AccessDeniedException", message)

        assert "ecs:RunTask on y is denied by a service control policy: whoever owns that" in str(error)

    def test_a_resource_ends_before_the_full_stop(self) -> None:
        message = "User: x is not authorized to perform: ecs:StopTask on resource: arn:aws:ecs:::task/a."

        assert ApiError("ecs.StopTask", "AccessDeniedException", message).resource == "arn:aws:ecs:::task/a"

    def test_in_another_trouble_is_none(self) -> None:
        message = "User: x is not authorized to perform: ecs:RunTask on resource: y"

        assert ApiError("ecs.RunTask", "ServerException", message, status=500).action == ""
