"""The settings of the connections, as gRPC takes them."""

import ssl
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import grpc

from microkernel import InvalidArgument
from microkernel_grpc.encode import MAX_MESSAGE
from microkernel_grpc.settings import LEVELS, GrpcSettings

_WITHOUT_EFFECT: Mapping[str, tuple[str, str]] = {
    "infer_thread_count": ("--grpc-infer-thread-count", "one event loop serves every call"),
    "infer_allocation_pool_size": (
        "--grpc-infer-allocation-pool-size",
        "messages are not kept for reuse",
    ),
    "max_response_pool_size": (
        "--grpc-max-response-pool-size",
        "a stream stops reading requests while its answers wait",
    ),
}


def channel_options(settings: GrpcSettings) -> list[tuple[str, int]]:
    """The arguments of the server's channels.

    Compression is set for all calls at once: gRPC picks the algorithm of a level from those that
    the client accepts, which a call's own setting would not.
    """
    options = {
        "grpc.max_receive_message_length": MAX_MESSAGE,
        "grpc.max_send_message_length": MAX_MESSAGE,
        "grpc.so_reuseport": int(settings.reuse_port),
        "grpc.keepalive_time_ms": settings.keepalive_time,
        "grpc.keepalive_timeout_ms": settings.keepalive_timeout,
        "grpc.keepalive_permit_without_calls": int(settings.keepalive_permit_without_calls),
        "grpc.http2.max_pings_without_data": settings.http2_max_pings_without_data,
        "grpc.http2.min_ping_interval_without_data_ms": (
            settings.http2_min_recv_ping_interval_without_data
        ),
        "grpc.http2.max_ping_strikes": settings.http2_max_ping_strikes,
    }
    unless_zero = {
        "grpc.max_connection_age_ms": settings.max_connection_age,
        "grpc.max_connection_age_grace_ms": settings.max_connection_age_grace,
        "grpc.default_compression_level": LEVELS.index(settings.infer_response_compression_level),
    }
    return [*options.items(), *((key, value) for key, value in unless_zero.items() if value)]


def without_effect(settings: GrpcSettings) -> list[str]:
    """What to say about the flags that were given and mean nothing here."""
    return [
        f"{flag} has no effect: {why}"
        for name, default in ((f.name, f.default) for f in fields(settings))
        if name in _WITHOUT_EFFECT and getattr(settings, name) != default
        for flag, why in [_WITHOUT_EFFECT[name]]
    ]


def credentials(settings: GrpcSettings) -> Any:
    """gRPC's credentials for TLS, None where it is not asked for.

    Raises InvalidArgument naming the flag and the file for one that is missing or of no use.
    """
    mutual = settings.use_ssl_mutual
    if not (settings.use_ssl or mutual):
        return None
    certificate = _read("--grpc-server-cert", settings.server_cert)
    key = _read("--grpc-server-key", settings.server_key)
    roots = _read("--grpc-root-cert", settings.root_cert) if mutual or settings.root_cert else None
    _check(settings)
    return grpc.ssl_server_credentials([(key, certificate)], roots, require_client_auth=mutual)


def _read(flag: str, path: str) -> bytes:
    if not path:
        raise InvalidArgument(f"{flag} must name a PEM file when gRPC is served over TLS")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{flag}: cannot read '{path}': {error.strerror}") from None


def _check(settings: GrpcSettings) -> None:
    """gRPC takes any bytes and fails without a reason; Python's TLS names what is wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate, key = settings.server_cert, settings.server_key
    try:
        context.load_cert_chain(certificate, key, password="")  # never ask on the terminal
    except ssl.SSLError as error:
        raise InvalidArgument(
            f"--grpc-server-cert '{certificate}' and --grpc-server-key '{key}' must be a "
            f"certificate and its unencrypted key in PEM form: {error.reason or error}"
        ) from None
    if not settings.root_cert:
        return
    try:
        context.load_verify_locations(settings.root_cert)
    except ssl.SSLError as error:
        raise InvalidArgument(
            f"--grpc-root-cert '{settings.root_cert}' must hold certificates in PEM form: "
            f"{error.reason or error}"
        ) from None
