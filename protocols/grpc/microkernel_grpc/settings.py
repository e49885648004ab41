"""What an operator can set about gRPC."""

from dataclasses import dataclass

from microkernel import option


@dataclass(frozen=True, slots=True)
class GrpcSettings:
    """The settings of the front end; names and defaults of the flags are Triton's. Port 0 means any
    free port."""

    allow_grpc: bool = option(True, flag="--allow-grpc", about="Serve the V2 protocol over gRPC.")
    address: str = option("0.0.0.0", flag="--grpc-address", about="The address gRPC listens on.")
    port: int = option(8001, flag="--grpc-port", about="The port gRPC listens on.")
    reuse_port: bool = option(
        False, flag="--reuse-grpc-port", about="Share the gRPC port with other processes."
    )
