"""Message classes and methods, from the descriptor set beside this file.

They live in a descriptor pool of their own: the default pool refuses the same names twice, and user
code imports `tritonclient` into this process.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

SERVICES = ("inference.GRPCInferenceService", "grpc.health.v1.Health")


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC: its name, its message classes, and whether both sides are streams."""

    name: str
    request: type[Message]
    response: type[Message]
    streams: bool


@functools.cache
def _pool() -> DescriptorPool:
    packed = resources.files("microkernel_grpc").joinpath("grpc_service.binpb").read_bytes()
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(packed).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


@functools.cache
def message(name: str) -> type[Message]:
    """The class of a message of package `inference`; the same one on every call."""
    return GetMessageClass(_pool().FindMessageTypeByName(f"inference.{name}"))


@functools.cache
def methods() -> Mapping[str, Method]:
    """Every RPC by its path, such as `/inference.GRPCInferenceService/ServerLive`."""
    return {
        f"/{service}/{method.name}": _method(method)
        for service in SERVICES
        for method in _pool().FindServiceByName(service).methods
    }


def _method(method: MethodDescriptor) -> Method:
    return Method(
        method.name,
        GetMessageClass(method.input_type),
        GetMessageClass(method.output_type),
        streams=method.client_streaming,
    )
