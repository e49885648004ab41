"""What an operator can set about HTTP and the metrics page."""

from dataclasses import dataclass
from typing import ClassVar

from microkernel import Between, Listening, TlsFiles, option

_PORT = Between(0, 65535)
_LOCAL = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The settings of both front ends; the names and defaults of the flags that Triton has are
    Triton's. Port 0 means any free port. A time of 0 seconds means any time."""

    flag_group: ClassVar[str] = "HTTP"

    allow_http: bool = option(True, flag="--allow-http", about="Serve the V2 protocol over HTTP.")
    address: str = option(
        "0.0.0.0",
        flag="--http-address",
        about="The address HTTP listens on, or unix:PATH for a Unix-domain socket, which only the "
        "user of the server can open; --http-port then means nothing.",
    )
    port: int = option(8000, flag="--http-port", check=_PORT, about="The port HTTP listens on.")
    reuse_port: bool = option(
        False, flag="--reuse-http-port", about="Share the HTTP port with other processes."
    )
    thread_count: int = option(
        8,
        flag="--http-thread-count",
        check=Between(1),
        no_effect="one event loop serves every connection",
    )
    max_input_size: int = option(
        64 << 20,
        flag="--http-max-input-size",
        check=Between(1),
        about="The most bytes of JSON in a request, of a tensor made from JSON, and of a body once "
        "it is decompressed.",
    )
    max_body_size: int = option(
        2**31 - 1,
        flag="--http-max-body-size",
        about="The most bytes of a request's body, binary tensors included.",
    )
    header_timeout: float = option(
        30.0,
        flag="--http-header-timeout-secs",
        about="Close a connection that takes longer to begin TLS, or to send the whole head of a "
        "request; 0 for never.",
    )
    body_timeout: float = option(
        60.0,
        flag="--http-body-timeout-secs",
        about="Close a connection on which for so long nothing more comes of a body that is waited "
        "for, or nothing is taken of an answer; 0 for never.",
    )
    keep_alive_timeout: float = option(
        3600.0,
        flag="--http-keep-alive-timeout-secs",
        about="Close a connection that is idle for so long after an answer; 0 for never.",
    )
    header_forward_pattern: str = option(
        "",
        flag="--http-header-forward-pattern",
        about="Headers whose names contain a match of this regular expression become parameters "
        "of the request; case is ignored unless it starts with (?-i).",
    )
    restricted_api: tuple[str, ...] = option(
        (),
        flag="--http-restricted-api",
        many=True,
        about="<API>,<API>:<header>=<value>: these APIs answer only to requests with this header. "
        "APIs: health, metadata, inference, shared-memory, model-config, model-repository, "
        "statistics, trace, logging.",
    )
    use_ssl: bool = option(False, flag="--http-use-ssl", about="Serve HTTP over TLS only.")
    use_ssl_mutual: bool = option(
        False,
        flag="--http-use-ssl-mutual",
        about="Serve HTTP over TLS, to clients with a certificate by --http-root-cert only.",
    )
    server_cert: str = option(
        "", flag="--http-server-cert", about="PEM file of the server's certificate chain."
    )
    server_key: str = option(
        "", flag="--http-server-key", about="PEM file of the server's private key."
    )
    root_cert: str = option(
        "", flag="--http-root-cert", about="PEM file of the roots that clients are checked against."
    )
    auth_file: str = option(
        "",
        flag="--http-auth-file",
        about="A file of keys, one a line. Requests need one, as 'Authorization: Bearer KEY' or as "
        "'X-API-Key: KEY'; /v2/health/live and /v2/health/ready stay open for probes.",
    )
    cors_origin: tuple[str, ...] = option(
        (),
        flag="--http-cors-origin",
        many=True,
        about="An origin, such as https://example.com, whose pages browsers let use this server; "
        "'*' for any. May be repeated.",
    )
    access_log: bool = option(
        False,
        flag="--http-access-log",
        about="Log a line for each request, the metrics page's left out.",
    )
    allow_metrics: bool = option(
        True, group="Metrics", flag="--allow-metrics", about="Serve the metrics page."
    )
    metrics_address: str = option(
        "",
        group="Metrics",
        flag="--metrics-address",
        about="The address the metrics page listens on, or unix:PATH; empty for that of HTTP, or "
        "for 127.0.0.1 where HTTP has a Unix-domain socket.",
    )
    metrics_port: int = option(
        8002,
        group="Metrics",
        flag="--metrics-port",
        check=_PORT,
        about="The port the metrics page listens on.",
    )
    metrics_use_ssl: bool = option(
        False,
        group="Metrics",
        flag="--metrics-use-ssl",
        about="Serve the metrics page over TLS only, with the files of HTTP, and as HTTP to "
        "clients with a certificate only where --http-use-ssl-mutual is set.",
    )
    metrics_auth_file: str = option(
        "",
        group="Metrics",
        flag="--metrics-auth-file",
        about="A file of keys, one a line, of which the metrics page needs one, sent as for HTTP.",
    )

    def page_address(self) -> str:
        """Where the metrics page listens. Who has HTTP off the network does not want the page on it
        unasked."""
        if self.metrics_address:
            return self.metrics_address
        return _LOCAL if self.address.startswith("unix:") else self.address

    def listening(self) -> list[Listening]:
        """What is listened on."""
        found = []
        if self.allow_http:
            found.append(Listening("--http-port", self.address, self.port))
        if self.allow_metrics:
            found.append(Listening("--metrics-port", self.page_address(), self.metrics_port))
        return found

    def doubts(self) -> list[str]:
        """What changes nothing: files for TLS where nothing is served over it."""
        used = self.use_ssl or self.use_ssl_mutual or self.metrics_use_ssl
        return [] if used else self._files().unused()

    def tls(self) -> TlsFiles | None:
        """The files of HTTP, None where it is not served over TLS."""
        return self._files() if self.use_ssl or self.use_ssl_mutual else None

    def metrics_tls(self) -> TlsFiles | None:
        """The files of the metrics page, None where it is not served over TLS."""
        return self._files() if self.metrics_use_ssl else None

    def _files(self) -> TlsFiles:
        return TlsFiles(
            "--http", self.server_cert, self.server_key, self.root_cert, self.use_ssl_mutual
        )
