"""
How AWS's services are spoken to over HTTP: bytes to the shapes of botocore's model, and back. No sockets.

Three protocols are known: ``json`` (1.0 and 1.1), ``query`` (forms in, XML out: STS, and SQS as older clients speak it)
and ``ec2`` (query with habits of its own). What a request or reply may contain is botocore's model to say.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import re
import struct
import zlib
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

import attrs

from fargate_runner.testing.aws._service import AwsError

__all__ = [
    "EVENT_STREAM_TYPE",
    "QUERY_ERRORS",
    "Asked",
    "Written",
    "access_key_of",
    "asked",
    "error_frame",
    "event_frame",
    "initial_frame",
    "service_model",
    "service_of",
    "write_error",
    "write_reply",
]

# botocore's model of SQS has forgotten what its errors are called in the query protocol; the JSON protocol still says
# so in a header, and clients go by it (Amazon SQS API Reference, "Common errors").
QUERY_ERRORS: Final[Mapping[str, str]] = {
    "QueueDoesNotExist": "AWS.SimpleQueueService.NonExistentQueue",
    "QueueNameExists": "QueueAlreadyExists",
} | {
    name: f"AWS.SimpleQueueService.{name}"
    for name in (
        "BatchEntryIdsNotDistinct",
        "BatchRequestTooLong",
        "EmptyBatchRequest",
        "InvalidBatchEntryId",
        "MessageNotInflight",
        "PurgeQueueInProgress",
        "QueueDeletedRecently",
        "TooManyEntriesInBatchRequest",
        "UnsupportedOperation",
    )
}
_SHAPE_OF_QUERY_ERROR: Final = {code: name for name, code in QUERY_ERRORS.items()}

# Clients that sign nothing still say which version of the API they mean.
_SERVICE_BY_VERSION: Final = {"2012-11-05": "sqs", "2011-06-15": "sts", "2016-11-15": "ec2", "2010-05-08": "iam"}

_SCOPE: Final = re.compile(r"Credential=(?P<key>[^/,\s]+)/\d{8}/[^/]*/(?P<service>[^/]+)/aws4_request")
_PRESIGNED: Final = re.compile(r"(?P<key>[^/]+)/\d{8}/[^/]*/(?P<service>[^/]+)/aws4_request")


@functools.cache
def service_model(service: str) -> Any:
    """Return botocore's model of a service. The first look at one reads its file."""
    return _session().get_service_model(service)


@functools.cache
def _session() -> Any:
    import botocore.session

    return botocore.session.Session()


@functools.cache
def _target_prefixes(services: frozenset[str]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for service in services:
        prefix = service_model(service).metadata.get("targetPrefix")
        if prefix:
            found[prefix] = service
    return found


# ---- what is asked -------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Asked:
    """A request that is ours to answer."""

    service: str
    operation: str
    protocol: str
    """``json``, ``query`` or ``ec2``."""
    version: str = "1.1"
    """Of the JSON protocol."""
    request: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def model(self) -> Any:
        """botocore's model of the operation, or None if it knows of none."""
        service = service_model(self.service)
        return service.operation_model(self.operation) if self.operation in service.operation_names else None


def access_key_of(headers: Mapping[str, str], query: Mapping[str, str]) -> str | None:
    """Return the access key that a request is signed with."""
    found = _SCOPE.search(headers.get("Authorization", "")) or _PRESIGNED.match(query.get("X-Amz-Credential", ""))
    return found["key"] if found else None


def service_of(headers: Mapping[str, str], query: Mapping[str, str]) -> str | None:
    """Return the service that a request is signed for, by its signing name."""
    found = _SCOPE.search(headers.get("Authorization", "")) or _PRESIGNED.match(query.get("X-Amz-Credential", ""))
    return found["service"] if found else None


def asked(
    headers: Mapping[str, str], path: str, query: Mapping[str, str], body: bytes, *, ours: Collection[str]
) -> Asked | None:
    """
    Return what a request asks of one of *ours*; None if it is for somebody else.

    *headers* are looked up without regard to case.

    :raises AwsError: it is for us and cannot be read
    """
    if target := headers.get("X-Amz-Target"):
        prefix, _, operation = target.rpartition(".")
        service = _target_prefixes(frozenset(ours)).get(prefix)
        if service is None:
            return None
        version = "1.0" if "json-1.0" in headers.get("Content-Type", "") else "1.1"
        found = Asked(service=service, operation=operation, protocol="json", version=version)
        return attrs.evolve(found, request=_from_body(found.model, body)) if found.model is not None else found
    form = dict(query)
    if headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded"):
        form |= dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
    if "Action" not in form:
        return None
    # What the version says is what is meant: an ec2 client may be signed for any name that a proxy likes.
    named = _SERVICE_BY_VERSION.get(form.get("Version", "")) or service_of(headers, query)
    if named is None or named not in ours:
        return None
    protocol = "ec2" if named == "ec2" else "query"
    found = Asked(service=named, operation=form["Action"], protocol=protocol)
    if found.model is None:
        return found
    names = _Names(named, protocol)
    request = _from_form(found.model.input_shape, _tree(form), names) if found.model.input_shape else {}
    if named == "sqs" and path.strip("/") and "QueueUrl" in _members(found.model):
        # Old clients send the request to the queue's own address and do not repeat it.
        request.setdefault("QueueUrl", path)
    return attrs.evolve(found, request=request)


def _members(model: Any) -> Mapping[str, Any]:
    shape = model.input_shape
    return shape.members if shape is not None else {}


def _from_body(model: Any, body: bytes) -> dict[str, Any]:
    if not body.strip():
        return {}
    try:
        parsed = json.loads(body)
    except ValueError:
        raise AwsError("SerializationException", "the body is not JSON") from None
    if not isinstance(parsed, dict):
        raise AwsError("SerializationException", "Start of structure or map found where not expected.")
    shape = model.input_shape
    request: dict[str, Any] = _from_json(shape, parsed) if shape is not None else {}
    return request


def _from_json(shape: Any, value: Any) -> Any:
    """Turn JSON into what a verb expects. What has the wrong type stays as it is, for the validator to refuse."""
    kind = shape.type_name
    if kind == "structure" and isinstance(value, dict):
        if shape.is_document_type:
            return value
        # Members that the model does not know are those of a newer client: AWS ignores them, and nulls.
        by_name = {member.serialization.get("name", name): (name, member) for name, member in shape.members.items()}
        return {
            by_name[key][0]: _from_json(by_name[key][1], part)
            for key, part in value.items()
            if key in by_name and part is not None
        }
    if kind == "list" and isinstance(value, list):
        return [_from_json(shape.member, part) for part in value]
    if kind == "map" and isinstance(value, dict):
        return {key: _from_json(shape.value, part) for key, part in value.items() if part is not None}
    if kind == "timestamp":
        return _moment(value)
    if kind == "blob" and isinstance(value, str):
        return _unbase64(value)
    if kind in {"integer", "long"} and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _moment(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return datetime.fromtimestamp(value, UTC)
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        return value
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise AwsError("SerializationException", "a blob is not base64") from None


# ---- forms ---------------------------------------------------------------------------------------------------------


_ODD_NAMES: Final = {"Actions": "ActionName", "queueUrls": "QueueUrl"}


@attrs.frozen
class _Names:
    """
    What members are called in forms and in XML.

    botocore's model of SQS is of its JSON protocol only; the names of the other follow from the shapes', but for two.
    """

    service: str
    protocol: str

    def is_flat(self, shape: Any) -> bool:
        """Whether a list or map of a form has no name of its own for its parts."""
        return self.protocol == "ec2" or bool(shape.serialization.get("flattened"))

    def asked(self, name: str, shape: Any) -> str:
        """Return a member's name in a form."""
        if self.protocol != "ec2":
            return self.told(name, shape)
        if "queryName" in shape.serialization:
            return str(shape.serialization["queryName"])
        own = str(shape.serialization.get("name", name))
        return own[:1].upper() + own[1:]

    def told(self, name: str, shape: Any) -> str:
        """Return a member's name in XML."""
        if shape.type_name not in {"list", "map"}:
            return str(shape.serialization.get("name", name))
        if self.service == "sqs":
            if shape.type_name == "list" and shape.member.type_name == "structure":
                return str(shape.member.name)
            own = _ODD_NAMES.get(name) or name.removesuffix("s")
            return own[:1].upper() + own[1:]
        if shape.type_name == "list" and shape.serialization.get("flattened") and self.protocol == "query":
            return str(shape.member.serialization.get("name") or shape.serialization.get("name", name))
        return str(shape.serialization.get("name", name))

    def item(self, shape: Any) -> str:
        """Return what a part of a list is called that is not flat."""
        return str(shape.member.serialization.get("name", "item" if self.protocol == "ec2" else "member"))

    def pair(self, shape: Any) -> tuple[str, str]:
        """Return what the key and the value of a map are called."""
        if self.service == "sqs":
            return ("Key" if shape.name == "TagMap" else "Name"), "Value"
        return str(shape.key.serialization.get("name", "key")), str(shape.value.serialization.get("name", "value"))


def _tree(form: Mapping[str, str]) -> dict[str, Any]:
    """Turn ``{"A.1.B": "x"}`` into ``{"A": {"1": {"B": "x"}}}``."""
    root: dict[str, Any] = {}
    for name, value in form.items():
        *path, last = name.split(".")
        node: Any = root
        for word in path:
            node = node.setdefault(word, {}) if isinstance(node, dict) else None
        if isinstance(node, dict) and not isinstance(node.get(last), dict):
            node[last] = value
    return root


def _from_form(shape: Any, node: Any, names: _Names) -> Any:
    kind = shape.type_name
    if kind == "structure":
        found = node if isinstance(node, dict) else {}
        members = ((name, member, found.get(names.asked(name, member))) for name, member in shape.members.items())
        return {name: _from_form(member, part, names) for name, member, part in members if part is not None}
    if kind == "list":
        if not isinstance(node, dict):
            return []  # "an empty list" is sent as a name without a value
        parts = node if names.is_flat(shape) else node.get(names.item(shape), {})
        return [_from_form(shape.member, part, names) for part in _in_order(parts)]
    if kind == "map":
        key, value = names.pair(shape)
        parts = node if names.is_flat(shape) or not isinstance(node, dict) else node.get("entry", {})
        return {
            str(part[key]): _from_form(shape.value, part.get(value, ""), names)
            for part in _in_order(parts)
            if isinstance(part, dict) and key in part
        }
    return _scalar(kind, node)


def _in_order(parts: Any) -> Iterable[Any]:
    if not isinstance(parts, dict):
        return ()
    return [parts[key] for key in sorted((key for key in parts if key.isdecimal()), key=int)]


def _scalar(kind: str, text: Any) -> Any:
    """Turn text into what a verb expects. What cannot be turned stays text, for the validator to refuse."""
    if not isinstance(text, str):
        return text
    if kind == "boolean":
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind == "timestamp":
        return _moment(float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else text)
    if kind == "blob":
        return _unbase64(text)
    if kind in {"integer", "long"}:
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else text
    if kind in {"float", "double"}:
        return float(text) if re.fullmatch(r"[+-]?\d+(\.\d*)?", text) else text
    return text


# ---- what is answered ----------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Written:
    """An answer as it goes over the wire."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def write_reply(question: Asked, reply: Mapping[str, Any], request_id: str) -> Written:
    """Write the answer to *question*."""
    if question.protocol == "json":
        body = json.dumps(reply, default=_json_of, separators=(",", ":")).encode()
        return Written(status=200, headers=_json_headers(question, request_id), body=body)
    shape, names = question.model.output_shape, _Names(question.service, question.protocol)
    inner = "".join(_xml_members(shape, reply, names)) if shape is not None else ""
    operation, namespace = question.operation, _namespace(question)
    if question.protocol == "ec2":
        text = f"<requestId>{request_id}</requestId>{inner}"
    else:
        wrapper = shape.serialization.get("resultWrapper", f"{operation}Result") if shape is not None else None
        result = f"<{wrapper}>{inner}</{wrapper}>" if wrapper else ""
        text = f"{result}<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata>"
    return _xml(200, f'<{operation}Response xmlns="{namespace}">{text}</{operation}Response>', request_id)


def write_error(question: Asked, error: AwsError, request_id: str) -> Written:
    """Write the refusal of *question*."""
    sender = error.status < 500
    if question.protocol == "json":
        # The name of the shape goes into the body, what the query protocol calls it into a header.
        name = _SHAPE_OF_QUERY_ERROR.get(error.code, error.code)
        body = {"__type": name, "message": error.message, **error.members}
        headers = _json_headers(question, request_id) | {"x-amzn-ErrorType": name}
        if "awsQueryCompatible" in service_model(question.service).metadata:
            old = QUERY_ERRORS.get(name, name)
            headers["x-amzn-query-error"] = f"{old};{'Sender' if sender else 'Receiver'}"
        text = json.dumps(body, default=_json_of, separators=(",", ":")).encode()
        return Written(status=error.status, headers=headers, body=text)
    code = escape(QUERY_ERRORS.get(error.code, error.code))
    message = escape(_xml_text(error.message))
    if question.protocol == "ec2":
        inside = f"<Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>"
        return _xml(error.status, f"<Response>{inside}<RequestID>{request_id}</RequestID></Response>", request_id)
    inside = f"<Type>{'Sender' if sender else 'Receiver'}</Type><Code>{code}</Code><Message>{message}</Message>"
    for name, value in error.members.items():
        inside += f"<{name}>{escape(_xml_text(str(value)))}</{name}>"
    return _xml(
        error.status,
        f'<ErrorResponse xmlns="{_namespace(question)}"><Error>{inside}</Error>'
        f"<RequestId>{request_id}</RequestId></ErrorResponse>",
        request_id,
    )


def _json_headers(question: Asked, request_id: str) -> dict[str, str]:
    return {"Content-Type": f"application/x-amz-json-{question.version}", "x-amzn-RequestId": request_id}


def _json_of(value: Any) -> Any:
    if isinstance(value, datetime):
        return round(value.timestamp(), 3)  # as AWS writes it: seconds, and thousandths
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} has no place in a reply")


def _namespace(question: Asked) -> str:
    if question.service == "sqs":
        return "http://queue.amazonaws.com/doc/2012-11-05/"
    metadata = service_model(question.service).metadata
    return str(metadata.get("xmlNamespace") or f"http://ec2.amazonaws.com/doc/{metadata['apiVersion']}/")


def _xml(status: int, text: str, request_id: str) -> Written:
    headers = {"Content-Type": "text/xml;charset=utf-8", "x-amzn-RequestId": request_id}
    return Written(status=status, headers=headers, body=f'<?xml version="1.0"?>\n{text}'.encode())


def _xml_members(shape: Any, value: Mapping[str, Any], names: _Names) -> Iterable[str]:
    for name, part in value.items():
        member = shape.members.get(name)
        if member is not None and part is not None:
            yield _element(names.told(name, member), member, part, names)


def _element(tag: str, shape: Any, value: Any, names: _Names) -> str:
    kind = shape.type_name
    if kind == "structure":
        return f"<{tag}>{''.join(_xml_members(shape, value, names))}</{tag}>"
    if kind == "list":
        if shape.serialization.get("flattened"):
            return "".join(_element(tag, shape.member, part, names) for part in value)
        item = names.item(shape)
        return f"<{tag}>{''.join(_element(item, shape.member, part, names) for part in value)}</{tag}>"
    if kind == "map":
        key, inner = names.pair(shape)
        pairs = [
            f"{_element(key, shape.key, one, names)}{_element(inner, shape.value, two, names)}"
            for one, two in value.items()
        ]
        if shape.serialization.get("flattened"):
            return "".join(f"<{tag}>{pair}</{tag}>" for pair in pairs)
        return f"<{tag}>{''.join(f'<entry>{pair}</entry>' for pair in pairs)}</{tag}>"
    return f"<{tag}>{escape(_xml_text(_plain(value)))}</{tag}>"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    return str(value)


_NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _xml_text(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


# ---- event streams -------------------------------------------------------------------------------------------------

EVENT_STREAM_TYPE: Final = "application/vnd.amazon.eventstream"
_TEXT: Final = 7
"""The type of a header that is a string."""


def initial_frame() -> bytes:
    """Return the frame that a stream of the JSON protocol begins with."""
    return _frame({":message-type": "event", ":event-type": "initial-response"}, b"{}")


def event_frame(name: str, event: Mapping[str, Any]) -> bytes:
    """Return the frame of one event."""
    payload = json.dumps(event, default=_json_of, separators=(",", ":")).encode()
    return _frame({":message-type": "event", ":event-type": name}, payload)


def error_frame(error: AwsError) -> bytes:
    """Return the frame that ends a stream with an error."""
    payload = json.dumps({"message": error.message}).encode()
    return _frame({":message-type": "exception", ":exception-type": error.code}, payload)


def _frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    written = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", _TEXT, len(value)) + value.encode()
        for name, value in {**headers, ":content-type": "application/json"}.items()
    )
    # Total length, length of the headers, a checksum of these two; headers, payload, and a checksum of all of it.
    prelude = struct.pack("!II", 16 + len(written) + len(payload), len(written))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + written + payload
    return message + struct.pack("!I", zlib.crc32(message))
