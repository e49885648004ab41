"""The HTTP front end of the V2 protocol, and the metrics page."""

from typing import Any

from microkernel import Frontend, Port, RegisterFrontend, RegisterOptions, hookimpl
from microkernel_http.settings import HttpSettings


def make_http(server: Port, settings: Any) -> Frontend:
    """The V2 protocol over HTTP."""
    from microkernel_http.frontend import HttpFrontend  # noqa: PLC0415 - imports aiohttp

    return HttpFrontend(server, settings)


def make_metrics(server: Port, settings: Any) -> Frontend:
    """The metrics page on a port of its own."""
    from microkernel_http.metrics import MetricsFrontend  # noqa: PLC0415 - imports aiohttp

    return MetricsFrontend(server, settings)


@hookimpl
def register_options(register: RegisterOptions) -> None:
    register(HttpSettings)


@hookimpl
def register_frontends(register: RegisterFrontend) -> None:
    register("http", make_http, requires=("aiohttp",), extra="http")
    register("metrics", make_metrics, requires=("aiohttp",), extra="http", last=True)
