"""The protocols over an in-process server, by the names of Triton's `tritonfrontend`.

The front ends are those of the installed plug-ins; what they are called there, and what their
settings are, is all that is known of them here.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from microkernel.app import Serving, Setup
from microkernel.errors import InvalidArgument, Unsupported
from microkernel.frontend import Frontend
from microkernel.inprocess.server import Server
from microkernel.plugins import FrontendType, Plugin


class _Endpoint:
    """A front end on a server that runs; made with its options, started and stopped."""

    name: ClassVar[str]
    settings: ClassVar[Mapping[str, str]]
    """The plug-in's setting for each option; an option that has none is accepted without effect."""
    switches: ClassVar[Mapping[str, bool]]
    Options: ClassVar[type[Any]]

    def __init__(self, server: Server, options: Any = None) -> None:
        """Raises InvalidArgument for options of another kind."""
        options = self.Options() if options is None else options
        if not isinstance(options, self.Options):
            raise InvalidArgument(
                f"the options of {type(self).__name__} must be {type(self).__name__}.Options"
            )
        self._server = server
        self._values = dict(self.switches) | _values(options, self.settings)
        self._frontend: Frontend | None = None

    def start(self) -> Self:
        """Listen. Raises InvalidArgument where it listens already and for settings that cannot be,
        Unsupported where the plug-in is missing, and Unavailable when the port is taken."""
        if self._frontend is not None:
            raise InvalidArgument(f"{type(self).__name__} already started")
        setup = self._server.engine.setup
        kind, settings = _found(setup, self.name, self._values)
        self._frontend = self._server.engine.serve(lambda serving: _listen(serving, kind, settings))
        return self

    def stop(self) -> None:
        """Stop listening; requests in flight are finished. Without effect where it does not
        listen; it stops with the server at the latest."""
        frontend, self._frontend = self._frontend, None
        if frontend is not None and self._server.engine.running:
            self._server.engine.serve(lambda serving: serving.hang_up(frontend))

    @property
    def port(self) -> int:
        """The port that is bound, where the options said 0. Raises InvalidArgument where it does
        not listen."""
        if self._frontend is None:
            raise InvalidArgument(f"{type(self).__name__} not started")
        return int(getattr(self._frontend, "port", 0))

    def __enter__(self) -> Self:
        return self if self._frontend is not None else self.start()

    def __exit__(self, *_error: object) -> None:
        self.stop()


def _values(options: Any, settings: Mapping[str, str]) -> dict[str, Any]:
    """The options that were given as settings of the plug-in."""
    default = type(options)()
    given = {
        f.name: getattr(options, f.name)
        for f in fields(options)
        if getattr(options, f.name) != getattr(default, f.name) or f.name in ("address", "port")
    }
    if ignored := [name for name in given if name not in settings]:
        warnings.warn(f"options without effect here: {', '.join(ignored)}", stacklevel=3)
    return {settings[name]: value for name, value in given.items() if name in settings}


def _found(setup: Setup, name: str, values: Mapping[str, Any]) -> tuple[FrontendType, Any]:
    """The front end and its settings."""
    for plugin in setup.plugins.all:
        for kind in plugin.frontends:
            if kind.name == name:
                if reason := _unusable(plugin):
                    raise Unsupported(f"plug-in '{plugin.name}' cannot be used: {reason}")
                return kind, setup.plugins.settings(plugin, values)
    raise Unsupported(f"no plug-in with a front end '{name}' is installed")


def _unusable(plugin: Plugin) -> str:
    return plugin.remedy() if plugin.enabled else "it is switched off in plugins.toml"


async def _listen(serving: Serving, kind: FrontendType, settings: Any) -> Frontend:
    frontend = kind.factory(serving.port, settings)
    await serving.listen(frontend, last=kind.last)
    return frontend


class KServeHttp(_Endpoint):
    """The V2 protocol over HTTP."""

    @dataclass(slots=True)
    class Options:
        """Where to listen; port 0 is any free one."""

        address: str = "0.0.0.0"
        port: int = 8000
        reuse_port: bool = False
        thread_count: int = 8
        header_forward_pattern: str = ""

    name = "http"
    settings: ClassVar[Mapping[str, str]] = {
        name: name for name in ("address", "port", "reuse_port", "header_forward_pattern")
    }
    switches: ClassVar[Mapping[str, bool]] = {"allow_http": True}


class KServeGrpc(_Endpoint):
    """The V2 protocol over gRPC."""

    @dataclass(slots=True)
    class Options:
        """Where to listen, and how connections are kept; port 0 is any free one, times are
        milliseconds."""

        address: str = "0.0.0.0"
        port: int = 8001
        reuse_port: bool = False
        use_ssl: bool = False
        server_cert: str = ""
        server_key: str = ""
        root_cert: str = ""
        use_mutual_auth: bool = False
        keepalive_time_ms: int = 7_200_000
        keepalive_timeout_ms: int = 20_000
        keepalive_permit_without_calls: bool = False
        http2_max_pings_without_data: int = 2
        http2_min_recv_ping_interval_without_data_ms: int = 300_000
        http2_max_ping_strikes: int = 2
        max_connection_age_ms: int = 0
        max_connection_age_grace_ms: int = 0
        infer_compression_level: str | int = "none"
        infer_thread_count: int = 2
        infer_allocation_pool_size: int = 8
        max_response_pool_size: int = 2**31 - 1
        forward_header_pattern: str = ""

    name = "grpc"
    settings: ClassVar[Mapping[str, str]] = {
        **{name: name for name in ("address", "port", "reuse_port", "use_ssl", "server_cert")},
        **{name: name for name in ("server_key", "root_cert", "keepalive_permit_without_calls")},
        **{name: name for name in ("http2_max_pings_without_data", "http2_max_ping_strikes")},
        **{
            f"{name}_ms": name
            for name in (
                *("keepalive_time", "keepalive_timeout", "max_connection_age"),
                *("max_connection_age_grace", "http2_min_recv_ping_interval_without_data"),
            )
        },
        "use_mutual_auth": "use_ssl_mutual",
        "infer_compression_level": "infer_response_compression_level",
        "forward_header_pattern": "header_forward_pattern",
    }
    switches: ClassVar[Mapping[str, bool]] = {"allow_grpc": True}


class Metrics(_Endpoint):
    """The metrics page."""

    @dataclass(slots=True)
    class Options:
        """Where to listen; port 0 is any free one."""

        address: str = "0.0.0.0"
        port: int = 8002
        thread_count: int = 1

    name = "metrics"
    settings: ClassVar[Mapping[str, str]] = {"address": "metrics_address", "port": "metrics_port"}
    switches: ClassVar[Mapping[str, bool]] = {"allow_metrics": True}
