"""Asking a service of the fake as a client would: the question and the answer are checked by botocore's model."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from fargate_runner.testing.aws._service import AwsError, Service


@functools.cache
def model(service: str) -> Any:
    import botocore.session

    return botocore.session.Session().get_service_model(service)


def check(value: dict[str, Any], shape: Any, what: str) -> None:
    from botocore.validate import ParamValidator

    if shape is None:
        assert value == {}, what
        return
    stream = shape.event_stream_name
    report = ParamValidator().validate({name: member for name, member in value.items() if name != stream}, shape)
    assert not report.has_errors(), f"{what}: {report.generate_report()}"


async def ask(service: Service, operation: str, **request: Any) -> dict[str, Any]:
    """Return the answer."""
    shapes = model(service.name).operation_model(operation)
    check(request, shapes.input_shape, f"the request of {operation}")

    reply = await service.call(operation, request)

    check(reply, shapes.output_shape, f"the reply of {operation}")
    return reply


async def refusal(service: Service, operation: str, **request: Any) -> AwsError:
    """Return what the answer is instead of a reply."""
    with pytest.raises(AwsError) as caught:
        await service.call(operation, request)

    return caught.value
