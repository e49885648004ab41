"""Message classes and methods, from the descriptor set beside this file.

They live in a descriptor pool of their own: the default pool refuses the same names twice, and user
code imports `tritonclient` into this process.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

SERVICES = ("inference.GRPCInferenceService", "grpc.health.v1.Health")
REFLECTION = (
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
"""One service under two names; its messages are the same on the wire."""

_REFLECTION = "grpc.reflection.v1"


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC: its name, its message classes, and whether both sides are streams."""

    name: str
    request: type[Message]
    response: type[Message]
    streams: bool


@functools.cache
def pool() -> DescriptorPool:
    """Every file of the descriptor set."""
    packed = resources.files("microkernel_grpc").joinpath("grpc_service.binpb").read_bytes()
    filled = DescriptorPool()
    for file in FileDescriptorSet.FromString(packed).file:
        filled.AddSerializedFile(file.SerializeToString())
        if file.package == _REFLECTION:
            filled.AddSerializedFile(_older(file).SerializeToString())
    return filled


def _older(file: FileDescriptorProto) -> FileDescriptorProto:
    """The file of the reflection service as package v1alpha."""
    older = FileDescriptorProto()
    older.CopyFrom(file)
    older.name, older.package = "reflection_v1alpha.proto", f"{_REFLECTION}alpha"
    for method in older.service[0].method:
        method.input_type = _renamed(method.input_type)
        method.output_type = _renamed(method.output_type)
    for field in (field for each in older.message_type for field in each.field):
        if field.type_name:
            field.type_name = _renamed(field.type_name)
    return older


def _renamed(name: str) -> str:
    return name.replace(f".{_REFLECTION}.", f".{_REFLECTION}alpha.")


@functools.cache
def message(name: str, package: str = "inference") -> type[Message]:
    """The class of a message of a package; the same one on every call."""
    return GetMessageClass(pool().FindMessageTypeByName(f"{package}.{name}"))


@functools.cache
def methods() -> Mapping[str, Method]:
    """Every RPC by its path, such as `/inference.GRPCInferenceService/ServerLive`."""
    return {
        f"/{service}/{method.name}": _method(method)
        for service in (*SERVICES, *REFLECTION)
        for method in pool().FindServiceByName(service).methods
    }


def _method(method: MethodDescriptor) -> Method:
    return Method(
        method.name,
        GetMessageClass(method.input_type),
        GetMessageClass(method.output_type),
        streams=method.client_streaming,
    )
