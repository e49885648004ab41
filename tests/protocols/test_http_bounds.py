"""How long a connection is waited for."""

import math
from typing import Any

import pytest

from microkernel import InvalidArgument
from microkernel.options import remarks

pytest.importorskip("aiohttp", reason="the extra 'http' is missing")

from microkernel_http.bounds import Bounds, Late, Waits
from microkernel_http.settings import HttpSettings

BOUNDS = Bounds(head=30, body=60, keep_alive=3600, body_size=1)


@pytest.mark.parametrize(
    ("head", "body", "reader", "late"),
    [
        (None, None, None, None),
        (70.0, 40.0, 40.0, None),
        (69.9, None, None, Late.HEAD),
        (None, 39.9, None, Late.BODY),
        (None, None, 39.9, Late.READER),
        (0.0, 0.0, 0.0, Late.READER),
        (0.0, 0.0, 90.0, Late.BODY),
        (0.0, 90.0, 90.0, Late.HEAD),
    ],
)
def test_what_is_late(
    head: float | None, body: float | None, reader: float | None, late: Late | None
) -> None:
    assert Waits(head, body, reader).late(100.0, BOUNDS) is late


def test_the_defaults() -> None:
    assert Bounds.of(HttpSettings()) == Bounds(30, 60, 3600, 2**31 - 1)


def test_zero_seconds_are_any_time() -> None:
    never = Bounds.of(HttpSettings(header_timeout=0, body_timeout=0, keep_alive_timeout=0))
    years = 365 * 24 * 3600.0
    assert min(never.head, never.body, never.keep_alive) > years
    assert Waits(0.0, 0.0, 0.0).late(years, never) is None


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"header_timeout": -1.0}, "--http-header-timeout-secs must not be below 0, got -1.0"),
        ({"body_timeout": math.nan}, "--http-body-timeout-secs must not be below 0, got nan"),
        ({"keep_alive_timeout": -0.5}, "--http-keep-alive-timeout-secs must not be below 0"),
        ({"max_body_size": 0}, "--http-max-body-size must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_right(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Bounds.of(HttpSettings(**settings))
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("head", "body", "interval"),
    [(30.0, 60.0, 1.0), (2.0, 60.0, 0.5), (30.0, 1.0, 0.25), (0.001, 60.0, 0.02), (1e9, 1e9, 1.0)],
)
def test_how_often_connections_are_looked_at(head: float, body: float, interval: float) -> None:
    assert Bounds(head, body, 1, 1).interval == interval


def test_flags_without_effect_are_named() -> None:
    assert remarks(HttpSettings()) == []
    assert remarks(HttpSettings(thread_count=4)) == [
        "--http-thread-count has no effect: one event loop serves every connection"
    ]
