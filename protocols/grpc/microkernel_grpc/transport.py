"""The settings of the connections, as gRPC takes them."""

from typing import Any

import grpc

from microkernel_grpc.encode import MAX_MESSAGE
from microkernel_grpc.settings import LEVELS, GrpcSettings

# Once 1000 calls wait to be handed over, gRPC answers some with CANCELLED, whoever has made them,
# and a burst of requests is enough for that. A call that waits takes some 30 KB.
_MOST_WAITING = 1 << 13


def channel_options(settings: GrpcSettings) -> list[tuple[str, int]]:
    """The arguments of the server's channels.

    Compression is set for all calls at once: gRPC picks the algorithm of a level from those that
    the client accepts, which a call's own setting would not.
    """
    options = {
        "grpc.max_receive_message_length": MAX_MESSAGE,
        "grpc.max_send_message_length": MAX_MESSAGE,
        "grpc.server.max_pending_requests": _MOST_WAITING,
        "grpc.server.max_pending_requests_hard_limit": _MOST_WAITING,
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


def credentials(settings: GrpcSettings) -> Any:
    """gRPC's credentials for TLS, None where it is not asked for.

    Raises InvalidArgument naming the flag and the file for one that is missing or of no use.
    """
    mutual = settings.use_ssl_mutual
    if not (settings.use_ssl or mutual):
        return None
    files = settings.files().contents()
    pair = (files.key, files.certificate)
    return grpc.ssl_server_credentials([pair], files.roots, require_client_auth=mutual)
