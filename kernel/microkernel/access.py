"""Who may call: the keys of a file, sent as a bearer token or as an API key."""

import hmac
from collections.abc import Iterable
from pathlib import Path

from microkernel.errors import InvalidArgument

SHORTEST = 16
"""Characters a key must have at least; a shorter one can be guessed."""

REFUSAL = (
    "This server needs a key: send it as 'Authorization: Bearer <key>' or as 'X-API-Key: <key>'"
)


class AccessKeys:
    """The keys that open a front end. Without any, everybody may call."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._keys = tuple(key.encode() for key in keys)

    @classmethod
    def read(cls, path: str, flag: str) -> "AccessKeys":
        """The keys of a file, one a line; blank lines and those that begin with `#` are left out.
        "" is no file and no keys. Raises InvalidArgument naming the flag and the file for one that
        cannot be read, holds no key, or a key that is short or has blanks in it."""
        if not path:
            return cls()
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise InvalidArgument(f"{flag}: cannot read '{path}': {reason}") from None
        keys = {
            number: line.strip()
            for number, line in enumerate(lines, 1)
            if line.strip() and not line.lstrip().startswith("#")
        }
        if not keys:
            raise InvalidArgument(f"{flag}: '{path}' holds no key; write one a line")
        for number, key in keys.items():
            if len(key) < SHORTEST or not key.isascii() or len(key.split()) > 1:
                raise InvalidArgument(
                    f"{flag}: line {number} of '{path}' must be a key of at least {SHORTEST} ASCII "
                    "characters without blanks"
                )
        return cls(keys.values())

    def __bool__(self) -> bool:
        """Whether a key is needed."""
        return bool(self._keys)

    def admits(self, authorization: str = "", api_key: str = "") -> bool:
        """Whether one of the headers of a call, `Authorization` and `X-API-Key`, holds a key. The
        time this takes tells nothing about the keys."""
        if not self._keys:
            return True
        scheme, _, token = authorization.partition(" ")
        given = [api_key] + [token.strip()] * (scheme.lower() == "bearer")
        encoded = [text.encode("utf-8", "surrogateescape") for text in given if text]
        matches = [hmac.compare_digest(key, text) for key in self._keys for text in encoded]
        return any(matches)
