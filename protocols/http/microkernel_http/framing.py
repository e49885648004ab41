"""How a body says where its JSON part ends and the raw bytes of tensors begin; nothing here knows
aiohttp."""

import re
from collections.abc import Mapping
from typing import Protocol

from microkernel import InvalidArgument
from microkernel_http.decode import HEADER_LENGTH, header_length

BINARY = "application/octet-stream"


class Framing(Protocol):
    """What the headers of a request and of its answer say of their bodies."""

    def json_length(self, headers: Mapping[str, str], body_length: int) -> int:
        """The length of the JSON part of a request; that of the body where it has no other. 0 means
        that the body is the data of the only input. `headers` ignores case.

        Raises InvalidArgument for what is no number or does not fit the body.
        """
        ...

    def headers(self, json_length: int) -> Mapping[str, str]:
        """The headers of an answer with raw bytes after its JSON."""
        ...


class LengthHeader:
    """That of the V2 protocol: a header holds the length."""

    def json_length(self, headers: Mapping[str, str], body_length: int) -> int:
        """See `Framing.json_length`."""
        return header_length(headers.get(HEADER_LENGTH), body_length)

    def headers(self, json_length: int) -> Mapping[str, str]:
        """See `Framing.headers`."""
        return {"Content-Type": BINARY, HEADER_LENGTH: str(json_length)}


LENGTH_HEADER = LengthHeader()


class SizedType:
    """That of platforms which pass on no headers of their own making: the type of the body has a
    parameter, `application/vnd.<name>.binary+json;json-header-size=<length>`."""

    def __init__(self, name: str) -> None:
        self._type = f"application/vnd.{name}.binary+json"
        self._found = re.compile(rf"\s*{re.escape(self._type)}\s*(?:;(.*))?", re.IGNORECASE)

    def json_length(self, headers: Mapping[str, str], body_length: int) -> int:
        """See `Framing.json_length`."""
        found = self._found.fullmatch(headers.get("Content-Type", ""))
        if found is None:
            return body_length
        key, _, value = (found[1] or "").partition("=")
        if key.strip().lower() != "json-header-size":
            raise InvalidArgument(
                f"'{self._type}' needs the size of the JSON part, as in "
                f"'{self._type};json-header-size=100'"
            )
        return header_length(value.strip(), body_length, "json-header-size")

    def headers(self, json_length: int) -> Mapping[str, str]:
        """See `Framing.headers`."""
        return {"Content-Type": f"{self._type};json-header-size={json_length}"}
