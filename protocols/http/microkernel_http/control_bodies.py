"""The bodies of requests that control the server; nothing here knows aiohttp."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from microkernel import (
    CudaRegion,
    Internal,
    InvalidArgument,
    LogChanges,
    LogSettings,
    SystemRegion,
    Unsupported,
)
from microkernel_http.document import (
    MISSING,
    boolean,
    member,
    members,
    parse,
    required,
    text,
    unsigned,
)

_FILE = "file:"
_FLAGS = ("log_info", "log_warning", "log_error")
_UNSIGNED = "unsigned-integer"
_HANDLE_SIZE = 64
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """A configuration as JSON text, None where there is none, and files by their path below the
    model's directory."""

    config: str | None
    files: Mapping[str, bytes]


def only_ready(body: bytes) -> bool:
    """Whether an index request asks for ready models only; an empty body asks for all. Raises
    InvalidArgument where it says so by anything but a boolean."""
    ready = member(_document(body), "ready")
    if ready is MISSING:
        return False
    if type(ready) is not bool:
        raise InvalidArgument(
            "Unable to parse 'ready': attempt to access JSON non-boolean as boolean"
        )
    return ready


def load_request(body: bytes) -> LoadRequest:
    """What a load request brings along; nothing, where its body is empty.

    Raises Internal for unknown parameters and for values that are no strings, InvalidArgument for
    a file that is not base64.
    """
    given = _parameters(body)
    for key in given:
        if key != "config" and not key.startswith(_FILE):
            raise Internal(
                f"unrecognized load parameter '{key}', it must be 'config' or "
                "'file:<version>/<name>'"
            )
    files = {
        key.removeprefix(_FILE): _decoded(key, text(value, key))
        for key, value in given.items()
        if key != "config"
    }
    return LoadRequest(text(given["config"], "config") if "config" in given else None, files)


def _decoded(key: str, encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument(f"parameter '{key}' must be valid base64: {error}") from None


def unload_dependents(body: bytes) -> bool:
    """Whether an unload request takes the models along that the model is made of. Raises Internal
    where it says so by anything but a boolean."""
    return boolean(_parameters(body).get("unload_dependents", False), "unload_dependents")


def system_region(name: str, body: bytes) -> SystemRegion:
    """The region that a request wants to be registered as `name`. Raises InvalidArgument for a
    field that is missing, Internal for a value of the wrong kind."""
    document = parse(body)
    key, size, offset = (member(document, field) for field in ("key", "byte_size", "offset"))
    return SystemRegion(
        name,
        text(_necessary(key, "key"), "key"),
        unsigned(_necessary(size, "byte_size"), "byte_size"),
        0 if offset is MISSING else unsigned(offset, "offset"),
    )


def cuda_region(name: str, body: bytes) -> CudaRegion:
    """The region of a GPU's memory that a request wants to be registered as `name`. Raises
    InvalidArgument for a handle that is missing or none, Internal for what else is missing or of
    the wrong kind."""
    document = parse(body)
    handle = members(_necessary(member(document, "raw_handle"), "raw_handle"), "raw_handle")
    encoded = text(required(handle, "b64"), "b64")
    return CudaRegion(
        name,
        _handle(name, encoded),
        unsigned(required(document, "device_id"), "device_id"),
        unsigned(required(document, "byte_size"), "byte_size"),
    )


def _handle(name: str, encoded: str) -> bytes:
    try:
        handle = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        handle = b""
    if len(handle) != _HANDLE_SIZE:
        raise InvalidArgument(
            f"failed to register CUDA shared memory region '{name}': 'raw_handle' must be a valid "
            f"base64 encoded string of {_HANDLE_SIZE} bytes"
        )
    return handle


def _necessary(value: Any, field: str) -> Any:
    if value is MISSING:
        raise InvalidArgument(f"Shared memory register request has no '{field}' field")
    return value


def _parameters(body: bytes) -> dict[str, Any]:
    given = member(_document(body), "parameters")
    return {} if given is MISSING else members(given, "parameters")


def _document(body: bytes) -> Any:
    return parse(body) if body else {}


def log_changes(body: bytes) -> LogChanges:
    """What a request changes about the log; null and unknown keys change nothing.

    Raises Unsupported for the log's file, and Internal for a value of the wrong kind.
    """
    document = parse(body)
    given = document if type(document) is dict else {}
    if given.get("log_file") is not None:
        raise Unsupported("log file location can not be updated through network protocol")
    flags = {key: _optional(given.get(key), bool, "boolean") for key in _FLAGS}
    level = _optional(given.get("log_verbose_level"), int, _UNSIGNED)
    if level is not None and level < 0:
        raise _wrong(_UNSIGNED)
    return LogChanges(
        **flags,
        log_verbose_level=level,
        log_format=_optional(given.get("log_format"), str, "string"),
    )


def _optional(value: Any, kind: type[T], name: str) -> T | None:
    if value is None or type(value) is kind:
        return value
    raise _wrong(name)


def _wrong(name: str) -> Internal:
    return Internal(f"attempt to access JSON non-{name} as {name}")


def log_settings(settings: LogSettings) -> dict[str, Any]:
    """The answer of the logging route."""
    return asdict(settings)
