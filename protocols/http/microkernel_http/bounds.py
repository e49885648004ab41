"""How much and how long a connection may take; nothing here knows aiohttp."""

from dataclasses import dataclass
from enum import Enum, auto

from microkernel import InvalidArgument
from microkernel_http.settings import HttpSettings
from microkernel_http.shared_settings import SharedSettings

MAX_LINE = 16 << 10
"""The most bytes of the request line, and of each header."""
_FOR_EVER = 1e9
_OFTEN, _SELDOM = 0.02, 1.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """The longest times in seconds, and the largest body in bytes.

    `head` is for the head of a request, `body` for a pause while a body is received or an answer
    taken, `keep_alive` for a connection that is idle after an answer.
    """

    head: float
    body: float
    keep_alive: float
    body_size: int

    @classmethod
    def of(cls, settings: HttpSettings | SharedSettings) -> "Bounds":
        """Those of the settings. Raises InvalidArgument naming the flag for what is negative."""
        times = {
            "--http-header-timeout-secs": settings.header_timeout,
            "--http-body-timeout-secs": settings.body_timeout,
            "--http-keep-alive-timeout-secs": settings.keep_alive_timeout,
        }
        for flag, seconds in times.items():
            if not seconds >= 0:
                raise InvalidArgument(f"{flag} must not be below 0, got {seconds}")
        if settings.max_body_size < 1:
            raise InvalidArgument(
                f"--http-max-body-size must be at least 1, got {settings.max_body_size}"
            )
        head, body, keep_alive = (min(t or _FOR_EVER, _FOR_EVER) for t in times.values())
        return cls(head, body, keep_alive, settings.max_body_size)

    @property
    def interval(self) -> float:
        """How often to look whether a connection is late."""
        return min(max(min(self.head, self.body) / 4, _OFTEN), _SELDOM)


class Late(Enum):
    """What a connection is waited for, for too long."""

    HEAD = auto()
    BODY = auto()
    READER = auto()


@dataclass(slots=True)
class Waits:
    """Since when a connection is waited for; None where it is not.

    `head`: a head has begun and is not whole, or none came yet at all. `body`: the last that came
    of a body which is not whole. `reader`: the last that was taken of an answer.
    """

    head: float | None
    body: float | None
    reader: float | None

    def late(self, now: float, bounds: Bounds) -> Late | None:
        """What has taken too long."""
        if self.reader is not None and now - self.reader > bounds.body:
            return Late.READER
        if self.body is not None and now - self.body > bounds.body:
            return Late.BODY
        if self.head is not None and now - self.head > bounds.head:
            return Late.HEAD
        return None
