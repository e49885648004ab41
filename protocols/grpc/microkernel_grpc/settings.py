"""What an operator can set about gRPC."""

from dataclasses import dataclass
from typing import ClassVar

from microkernel import Between, Listening, TlsFiles, option

LEVELS = ("none", "low", "medium", "high")
"""How hard answers may be compressed, from not at all upwards."""


@dataclass(frozen=True, slots=True)
class GrpcSettings:
    """The settings of the front end; names and defaults of the flags are Triton's. Port 0 means any
    free port; times are milliseconds."""

    flag_group: ClassVar[str] = "gRPC"

    allow_grpc: bool = option(True, flag="--allow-grpc", about="Serve the V2 protocol over gRPC.")
    address: str = option(
        "0.0.0.0",
        flag="--grpc-address",
        about="The address gRPC listens on, or unix:PATH for a Unix-domain socket, which only the "
        "user of the server can open; --grpc-port then means nothing.",
    )
    port: int = option(
        8001, flag="--grpc-port", check=Between(0, 65535), about="The port gRPC listens on."
    )
    reuse_port: bool = option(
        False, flag="--reuse-grpc-port", about="Share the gRPC port with other processes."
    )
    header_forward_pattern: str = option(
        "",
        flag="--grpc-header-forward-pattern",
        about="Metadata whose keys match this regular expression become request parameters.",
    )
    restricted_protocol: tuple[str, ...] = option(
        (),
        flag="--grpc-restricted-protocol",
        many=True,
        about="GROUP[,GROUP...]:KEY=VALUE. Calls of these groups need the metadata "
        "triton-grpc-protocol-KEY with this value; may be repeated.",
    )
    auth_file: str = option(
        "",
        flag="--grpc-auth-file",
        about="File of keys, one a line. Calls need one as the metadata 'authorization: Bearer "
        "KEY' or 'x-api-key: KEY'; ServerLive, ServerReady and the standard health check stay "
        "open.",
    )
    access_log: bool = option(
        False,
        flag="--grpc-access-log",
        about="Log a line for each call, and one for each stream when it has ended.",
    )
    use_ssl: bool = option(False, flag="--grpc-use-ssl", about="Serve gRPC over TLS only.")
    use_ssl_mutual: bool = option(
        False,
        flag="--grpc-use-ssl-mutual",
        about="Serve gRPC over TLS, to clients with a certificate by --grpc-root-cert only.",
    )
    server_cert: str = option(
        "", flag="--grpc-server-cert", about="PEM file of the server's certificate chain."
    )
    server_key: str = option(
        "", flag="--grpc-server-key", about="PEM file of the server's private key."
    )
    root_cert: str = option(
        "", flag="--grpc-root-cert", about="PEM file of the roots that clients are checked against."
    )
    infer_response_compression_level: str = option(
        "none",
        flag="--grpc-infer-response-compression-level",
        choices=LEVELS,
        about="How hard to compress answers, where the client can read that.",
    )
    keepalive_time: int = option(
        7_200_000,
        flag="--grpc-keepalive-time",
        about="Ping a connection after this time without activity.",
    )
    keepalive_timeout: int = option(
        20_000,
        flag="--grpc-keepalive-timeout",
        about="Close a connection whose ping is not answered within this time.",
    )
    keepalive_permit_without_calls: bool = option(
        False,
        flag="--grpc-keepalive-permit-without-calls",
        about="Ping also connections without calls.",
    )
    http2_max_pings_without_data: int = option(
        2,
        flag="--grpc-http2-max-pings-without-data",
        about="How many pings to send without data between; 0 for any number.",
    )
    http2_min_recv_ping_interval_without_data: int = option(
        300_000,
        flag="--grpc-http2-min-recv-ping-interval-without-data",
        about="A client that pings more often without data between gets a strike.",
    )
    http2_max_ping_strikes: int = option(
        2,
        flag="--grpc-http2-max-ping-strikes",
        about="Close the connection of a client with more strikes; 0 for never.",
    )
    max_connection_age: int = option(
        0, flag="--grpc-max-connection-age", about="Close connections of this age; 0 for never."
    )
    max_connection_age_grace: int = option(
        0,
        flag="--grpc-max-connection-age-grace",
        about="How long calls may go on when their connection is too old; 0 for any time.",
    )
    infer_thread_count: int = option(
        2,
        flag="--grpc-infer-thread-count",
        check=Between(2, 128),
        no_effect="one event loop serves every call",
    )
    infer_allocation_pool_size: int = option(
        8,
        flag="--grpc-infer-allocation-pool-size",
        check=Between(0),
        no_effect="messages are not kept for reuse",
    )
    max_response_pool_size: int = option(
        2**31 - 1,
        flag="--grpc-max-response-pool-size",
        check=Between(1),
        no_effect="a stream stops reading requests while its answers wait",
    )

    def listening(self) -> list[Listening]:
        """What is listened on."""
        if not self.allow_grpc:
            return []
        return [Listening("--grpc-port", self.address, self.port)]

    def doubts(self) -> list[str]:
        """What changes nothing: files for TLS where nothing is served over it."""
        return [] if self.use_ssl or self.use_ssl_mutual else self.files().unused()

    def files(self) -> TlsFiles:
        """The files for TLS."""
        return TlsFiles(
            "--grpc", self.server_cert, self.server_key, self.root_cert, self.use_ssl_mutual
        )
