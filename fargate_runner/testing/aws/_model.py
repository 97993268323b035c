"""
Requests and replies against botocore's own model, so that neither the fake nor its users can invent an API.

A shape becomes two closures, made once: one says whether a value fits, without a word and fast, the other what is
wrong with one that does not. What was checked before (`Checked`) is not walked again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final, TypeAlias

from fargate_runner.testing.aws._protocol import service_model
from fargate_runner.testing.aws._service import AwsError

__all__ = ["Checked", "WrongReply", "check_reply", "check_request", "check_shape", "has_operation", "request_fits"]

_Problem: TypeAlias = tuple[str, str]
"""Where, and what."""

_Check: TypeAlias = Callable[[Any, str], Iterator[_Problem]]

_Fits: TypeAlias = Callable[[Any], bool]
"""True is certain. False may only mean that it takes a closer look."""

# What a service calls a request that its model does not allow. The others say ValidationException.
_REFUSAL: Final = {
    "ecs": "InvalidParameterException",
    "logs": "InvalidParameterException",
    "sqs": "InvalidParameterValue",
    "secretsmanager": "InvalidParameterException",
    "sts": "ValidationError",
    "ec2": "InvalidParameterValue",
}


class WrongReply(AssertionError):
    """The fake answered what AWS's model does not know: a mistake in the fake, never in what is tested with it."""


class Checked(dict[str, Any]):
    """A structure of a reply that was checked when it was made, under the name of its shape."""

    __slots__ = ("shape",)

    def __init__(self, members: Mapping[str, Any], shape: str) -> None:
        super().__init__(members)
        self.shape = shape


def has_operation(service: str, operation: str) -> bool:
    """Whether botocore's model of the service has the operation."""
    return operation in service_model(service).operation_names


def check_request(service: str, operation: str, request: Mapping[str, Any]) -> None:
    """
    Refuse what AWS's model does not allow: unknown and missing members, wrong types, values outside an enum.

    :raises AwsError: in the words of the service
    """
    check = _request_check(service, operation)
    if check is None or request_fits(service, operation, request):
        return
    problems = list(check(request, ""))
    if problems:
        said = "; ".join(f"{what} at '{where.lstrip('.')}'" for where, what in problems[:5])
        plural = "error" if len(problems) == 1 else "errors"
        raise AwsError(
            _REFUSAL.get(service, "ValidationException"), f"{len(problems)} validation {plural} detected: {said}"
        )


def request_fits(service: str, operation: str, request: Mapping[str, Any]) -> bool:
    """Whether a request is certainly one that AWS's model allows, and thus botocore too."""
    fits = _request_fits(service, operation)
    return fits is not None and fits(request)


def check_reply(service: str, operation: str, reply: Mapping[str, Any]) -> None:
    """
    Make sure that a reply is one that AWS could give.

    :raises WrongReply: it is not
    """
    check = _reply_check(service, operation)
    if check is None:
        if reply:
            raise WrongReply(f"{service}.{operation} answers nothing, but the fake answered {sorted(reply)}")
        return
    if _reply_fits(service, operation)(reply):
        return
    for where, what in check(reply, ""):
        raise WrongReply(f"{service}.{operation} answered {what} at {where.lstrip('.') or 'the top'}")


def check_shape(service: str, shape: str, value: Mapping[str, Any]) -> Checked:
    """
    Check a structure of a reply once, and return it marked as checked.

    :raises WrongReply: AWS's model does not allow it
    """
    problems = () if _shape_fits(service, shape)(value) else _shape_check(service, shape)(value, "")
    for where, what in problems:
        raise WrongReply(f"the fake made a {service} {shape} with {what} at {where.lstrip('.') or 'the top'}")
    return Checked(value, shape)


@functools.cache
def _request_check(service: str, operation: str) -> _Check | None:
    shape = service_model(service).operation_model(operation).input_shape
    return None if shape is None else _compile(shape, True, {})


@functools.cache
def _reply_check(service: str, operation: str) -> _Check | None:
    shape = service_model(service).operation_model(operation).output_shape
    return None if shape is None else _compile(shape, False, {})


@functools.cache
def _shape_check(service: str, shape: str) -> _Check:
    return _compile(service_model(service).shape_for(shape), False, {})


@functools.cache
def _request_fits(service: str, operation: str) -> _Fits | None:
    shape = service_model(service).operation_model(operation).input_shape
    return None if shape is None else _compile_fits(shape, True, {})


@functools.cache
def _reply_fits(service: str, operation: str) -> _Fits:
    return _compile_fits(service_model(service).operation_model(operation).output_shape, False, {})


@functools.cache
def _shape_fits(service: str, shape: str) -> _Fits:
    return _compile_fits(service_model(service).shape_for(shape), False, {})


def _compile(shape: Any, asked: bool, made: dict[str, _Check]) -> _Check:
    """Return the check of a shape. Shapes may contain themselves, so each is made once per root."""
    if shape.name in made:
        return made[shape.name]

    def later(value: Any, where: str) -> Iterator[_Problem]:
        return made[shape.name](value, where)

    kind = shape.type_name
    # A shape's own constraints differ from member to member only where it is a scalar; those are not shared.
    if kind in _COMPOUND:
        made[shape.name] = later
        made[shape.name] = check = _COMPOUND[kind](shape, asked, made)
        return check
    return _scalar(shape, asked)


def _structure(shape: Any, asked: bool, made: dict[str, _Check]) -> _Check:
    members = {name: _compile(member, asked, made) for name, member in shape.members.items()}
    required = tuple(shape.required_members)
    stream = shape.event_stream_name if not asked and hasattr(shape, "event_stream_name") else None
    if stream:
        members[stream] = _anything
    name_of_shape = shape.name

    def check(value: Any, where: str) -> Iterator[_Problem]:
        if type(value) is Checked and value.shape == name_of_shape:
            return
        if not isinstance(value, Mapping):
            yield where, _wrong(value, "a structure")
            return
        if asked:
            for name in required:
                if name not in value:
                    yield f"{where}.{name}", "Value null failed to satisfy constraint: Member must not be null"
        for name, part in value.items():
            member = members.get(name)
            if member is None:
                yield f"{where}.{name}", f"Unknown member {name!r} (the model knows {', '.join(sorted(members))})"
            else:
                yield from member(part, f"{where}.{name}")

    return check


def _list(shape: Any, asked: bool, made: dict[str, _Check]) -> _Check:
    member = _compile(shape.member, asked, made)
    least, most = shape.metadata.get("min"), shape.metadata.get("max")

    def check(value: Any, where: str) -> Iterator[_Problem]:
        if not isinstance(value, list | tuple):
            yield where, _wrong(value, "a list")
            return
        if asked:
            yield from _length(value, where, least, most)
        for number, part in enumerate(value):
            yield from member(part, f"{where}[{number}]")

    return check


def _map(shape: Any, asked: bool, made: dict[str, _Check]) -> _Check:
    member = _compile(shape.value, asked, made)

    def check(value: Any, where: str) -> Iterator[_Problem]:
        if not isinstance(value, Mapping):
            yield where, _wrong(value, "a map")
            return
        for key, part in value.items():
            if not isinstance(key, str):
                yield f"{where}.{key}", _wrong(key, "a string as key")
            yield from member(part, f"{where}.{key}")

    return check


_COMPOUND: Final = {"structure": _structure, "list": _list, "map": _map}

_TYPES: Final[Mapping[str, tuple[tuple[type, ...], str]]] = {
    "string": ((str,), "a string"),
    "character": ((str,), "a string"),
    "integer": ((int,), "an integer"),
    "long": ((int,), "an integer"),
    "float": ((int, float), "a number"),
    "double": ((int, float), "a number"),
    "boolean": ((bool,), "a boolean"),
    "blob": ((bytes, bytearray), "bytes"),
    # A request may carry any form of a moment; in a reply it is an aware datetime, as botocore gives it.
    "timestamp": ((datetime,), "a moment"),
}


def _scalar(shape: Any, asked: bool) -> _Check:
    kind = shape.type_name
    types, called = _TYPES[kind]
    if asked and kind == "timestamp":
        types = (datetime, int, float, str)
    if asked and kind == "blob":
        types = (bytes, bytearray, str)
    if asked and getattr(shape, "is_document_type", False):
        return _anything
    enum = frozenset(shape.metadata.get("enum", ())) if asked else None
    least, most = (shape.metadata.get("min"), shape.metadata.get("max")) if asked else (None, None)
    numeric = kind in {"integer", "long", "float", "double"}

    def check(value: Any, where: str) -> Iterator[_Problem]:
        if not isinstance(value, types) or (numeric and isinstance(value, bool)):
            yield where, _wrong(value, called)
            return
        if enum and value not in enum:
            allowed = ", ".join(sorted(enum))
            yield (
                where,
                f"Value '{value}' failed to satisfy constraint: Member must satisfy enum value set: [{allowed}]",
            )
        if kind == "string":
            yield from _length(value, where, least, most)
        elif numeric:
            yield from _range(value, where, least, most)  # type: ignore[arg-type]
        elif kind == "timestamp" and not asked and value.tzinfo is None:  # type: ignore[attr-defined]
            yield where, "a moment without its time zone"

    return check


def _length(value: Any, where: str, least: int | None, most: int | None) -> Iterator[_Problem]:
    if least is not None and len(value) < least:
        yield where, f"Value failed to satisfy constraint: Member must have length greater than or equal to {least}"
    if most is not None and len(value) > most:
        yield where, f"Value failed to satisfy constraint: Member must have length less than or equal to {most}"


def _range(value: float, where: str, least: float | None, most: float | None) -> Iterator[_Problem]:
    if least is not None and value < least:
        yield (
            where,
            f"Value '{value}' failed to satisfy constraint: Member must have value greater than or equal to {least}",
        )
    if most is not None and value > most:
        yield (
            where,
            f"Value '{value}' failed to satisfy constraint: Member must have value less than or equal to {most}",
        )


def _anything(value: Any, where: str) -> Iterator[_Problem]:
    del value, where
    return iter(())


def _wrong(value: Any, wanted: str) -> str:
    return f"{type(value).__name__} where {wanted} was expected"


# The same, fast: most of what is checked is right, and then nobody asks for the place of a mistake.


def _compile_fits(shape: Any, asked: bool, made: dict[str, _Fits]) -> _Fits:
    if shape.name in made:
        return made[shape.name]

    def later(value: Any) -> bool:
        return made[shape.name](value)

    kind = shape.type_name
    if kind in _COMPOUND_FITS:
        made[shape.name] = later
        made[shape.name] = fits = _COMPOUND_FITS[kind](shape, asked, made)
        return fits
    return _scalar_fits(shape, asked)


def _structure_fits(shape: Any, asked: bool, made: dict[str, _Fits]) -> _Fits:
    stream = shape.event_stream_name if not asked and hasattr(shape, "event_stream_name") else None
    members = {name: _compile_fits(member, asked, made) for name, member in shape.members.items() if name != stream}
    required = tuple(shape.required_members) if asked else ()
    name_of_shape = shape.name

    def fits(value: Any) -> bool:
        kind = type(value)
        if kind is Checked and value.shape == name_of_shape:
            return True
        if kind is not dict:
            return False
        for name in required:
            if name not in value:
                return False
        for name, part in value.items():
            member = members.get(name)
            if member is None or not member(part):
                return False
        return True

    return fits


def _list_fits(shape: Any, asked: bool, made: dict[str, _Fits]) -> _Fits:
    member = _compile_fits(shape.member, asked, made)
    least, most = (shape.metadata.get("min"), shape.metadata.get("max")) if asked else (None, None)
    is_free = least is None and most is None

    def fits(value: Any) -> bool:
        if type(value) is not list or not (is_free or next(_length(value, "", least, most), None) is None):
            return False
        for part in value:  # noqa: SIM110 (a generator for each list takes half as long again)
            if not member(part):
                return False
        return True

    return fits


def _map_fits(shape: Any, asked: bool, made: dict[str, _Fits]) -> _Fits:
    member = _compile_fits(shape.value, asked, made)

    def fits(value: Any) -> bool:
        return type(value) is dict and all(type(key) is str and member(part) for key, part in value.items())

    return fits


_COMPOUND_FITS: Final = {"structure": _structure_fits, "list": _list_fits, "map": _map_fits}
_FAST_TYPES: Final[Mapping[str, type]] = {
    "string": str,
    "character": str,
    "integer": int,
    "long": int,
    "float": float,
    "double": float,
    "boolean": bool,
    "blob": bytes,
    "timestamp": datetime,
}


def _scalar_fits(shape: Any, asked: bool) -> _Fits:
    expected = _FAST_TYPES[shape.type_name]
    if getattr(shape, "is_document_type", False):
        return lambda value: False
    if shape.type_name == "timestamp":
        return lambda value: type(value) is datetime and value.tzinfo is not None
    if not asked or not {"enum", "min", "max"} & shape.metadata.keys():
        return lambda value: type(value) is expected
    check = _scalar(shape, asked)
    return lambda value: type(value) is expected and next(check(value, ""), None) is None
