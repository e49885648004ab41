"""The gRPC front end of the V2 protocol."""

from typing import Any

from microkernel import Frontend, Port, RegisterFrontend, RegisterOptions, hookimpl
from microkernel_grpc.settings import GrpcSettings


def make_grpc(server: Port, settings: Any) -> Frontend:
    """The V2 protocol over gRPC."""
    from microkernel_grpc.frontend import GrpcFrontend  # noqa: PLC0415 - imports grpc

    return GrpcFrontend(server, settings)


@hookimpl
def register_options(register: RegisterOptions) -> None:
    register(GrpcSettings)


@hookimpl
def register_frontends(register: RegisterFrontend) -> None:
    register("grpc", make_grpc, requires=("grpc",), extra="grpc")
