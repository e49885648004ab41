"""What an operator can set about HTTP and the metrics page."""

from dataclasses import dataclass

from microkernel import option


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The settings of both front ends; names and defaults of the flags are Triton's. Port 0 means
    any free port."""

    allow_http: bool = option(True, flag="--allow-http", about="Serve the V2 protocol over HTTP.")
    address: str = option("0.0.0.0", flag="--http-address", about="The address HTTP listens on.")
    port: int = option(8000, flag="--http-port", about="The port HTTP listens on.")
    reuse_port: bool = option(
        False, flag="--reuse-http-port", about="Share the HTTP port with other processes."
    )
    max_input_size: int = option(
        64 << 20,
        flag="--http-max-input-size",
        about="The most bytes of JSON in a request, of a tensor made from JSON, and of a body once "
        "it is decompressed.",
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
    allow_metrics: bool = option(True, flag="--allow-metrics", about="Serve the metrics page.")
    metrics_address: str = option(
        "",
        flag="--metrics-address",
        about="The address the metrics page listens on; empty for that of HTTP.",
    )
    metrics_port: int = option(
        8002, flag="--metrics-port", about="The port the metrics page listens on."
    )
