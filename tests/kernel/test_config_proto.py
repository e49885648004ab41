"""The protobuf schema, its packed form, the dataclasses and Triton's own schema say the same."""

import dataclasses
import types
import typing
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from microkernel.config.codec import enum_words, numbers, schema
from microkernel.config.model import ModelConfig
from microkernel.config.proto import config_message

TOP: Any = config_message().DESCRIPTOR  # typed as one of two classes by its stubs
FOLDER = Path(str(resources.files("microkernel.config")))
SCALARS = {
    FieldDescriptor.CPPTYPE_INT32: int,
    FieldDescriptor.CPPTYPE_INT64: int,
    FieldDescriptor.CPPTYPE_UINT32: int,
    FieldDescriptor.CPPTYPE_UINT64: int,
    FieldDescriptor.CPPTYPE_DOUBLE: float,
    FieldDescriptor.CPPTYPE_FLOAT: float,
    FieldDescriptor.CPPTYPE_BOOL: bool,
    FieldDescriptor.CPPTYPE_ENUM: str,
    FieldDescriptor.CPPTYPE_STRING: str,
}


def of_field(field: FieldDescriptor) -> str:
    """The shape of a field: repeated, map, optional or plain, of messages or of what scalars."""
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        key, value = message.fields_by_name["key"], message.fields_by_name["value"]
        return f"map of {of_field(key)} to {of_field(value).removeprefix('optional ')}"
    kind = "message" if message is not None else SCALARS[field.cpp_type].__name__
    if field.is_repeated:
        return f"repeated {kind}"
    return f"optional {kind}" if message is not None or field.containing_oneof else kind


NUMBERS: dict[int, range | float] = {
    FieldDescriptor.CPPTYPE_INT32: range(-(2**31), 2**31),
    FieldDescriptor.CPPTYPE_INT64: range(-(2**63), 2**63),
    FieldDescriptor.CPPTYPE_UINT32: range(2**32),
    FieldDescriptor.CPPTYPE_UINT64: range(2**64),
    FieldDescriptor.CPPTYPE_FLOAT: float(np.finfo(np.float32).max),
}


def of_hint(hint: Any) -> str:
    """The same shape, read from a dataclass field's type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return f"optional {of_hint(arguments[0])}"
    if origin is tuple:
        return f"repeated {of_hint(arguments[0])}"
    if origin is not None:
        return f"map of {of_hint(arguments[0])} to {of_hint(arguments[1])}"
    return "message" if dataclasses.is_dataclass(hint) else str(hint.__name__)


def inner(hint: Any) -> Any:
    """The message class inside a type, None where there is none."""
    if dataclasses.is_dataclass(hint):
        return hint
    return next((found for part in typing.get_args(hint) if (found := inner(part))), None)


def pairs() -> list[tuple[str, Any, Descriptor]]:
    """Every dataclass with its message, found by walking both from the top."""
    found: dict[str, tuple[Any, Descriptor]] = {}
    waiting: list[tuple[Any, Descriptor]] = [(ModelConfig, TOP)]
    while waiting:
        kind, message = waiting.pop()
        found[kind.__name__] = (kind, message)
        for name, (_, hint) in schema(kind).items():
            field = message.fields_by_name.get(name)
            below = field.message_type if field is not None else None
            if below is not None and below.GetOptions().map_entry:
                below = below.fields_by_name["value"].message_type
            child = inner(hint)
            if below is not None and child is not None and child.__name__ not in found:
                waiting.append((child, below))
    return [(name, kind, message) for name, (kind, message) in found.items()]


PAIRS = [pytest.param(kind, message, id=name) for name, kind, message in pairs()]


def test_every_dataclass_is_compared() -> None:
    from microkernel.config import model

    classes = {n for n, c in vars(model).items() if dataclasses.is_dataclass(c)}
    assert {name for name, _, _ in pairs()} == classes


@pytest.mark.parametrize(("kind", "message"), PAIRS)
def test_dataclass_and_message_have_the_same_fields(kind: Any, message: Descriptor) -> None:
    ours = {name: of_hint(hint) for name, (_, hint) in schema(kind).items()}
    assert ours == {field.name: of_field(field) for field in message.fields}


@pytest.mark.parametrize(("kind", "message"), PAIRS)
def test_words_and_defaults_are_those_of_the_message(kind: Any, message: Descriptor) -> None:
    for field in message.fields:
        member = schema(kind)[field.name][0]
        words = enum_words(kind, member.name)
        if field.enum_type is None:
            assert words == ()
            continue
        values = sorted(field.enum_type.values, key=lambda value: value.number)
        assert words == tuple(value.name for value in values)
        assert [value.number for value in values] == list(range(len(values)))
        assert member.default == values[0].name


@pytest.mark.parametrize(("kind", "message"), PAIRS)
def test_numbers_are_those_that_the_message_can_hold(kind: Any, message: Descriptor) -> None:
    for field in message.fields:
        below = field.message_type
        told = field
        if below is not None and below.GetOptions().map_entry:
            told = below.fields_by_name["key"]
        if told.cpp_type in NUMBERS:
            member = schema(kind)[field.name][0]
            assert numbers(kind, member.name) == NUMBERS[told.cpp_type], field.name


@pytest.mark.parametrize(("kind", "message"), PAIRS)
def test_scalar_defaults_are_those_of_protobuf(kind: Any, message: Descriptor) -> None:
    empty = kind()
    for field in message.fields:
        shape, member = of_field(field), schema(kind)[field.name][0]
        value = getattr(empty, member.name)
        if shape.startswith("optional"):
            assert value is None
        elif shape.startswith(("repeated", "map")):
            assert len(value) == 0
        elif field.enum_type is None:
            assert value == field.default_value


def test_packed_schema_is_up_to_date(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc", reason="needs grpcio-tools")
    built = tmp_path / "built.binpb"
    arguments = ["protoc", f"-I{FOLDER}", f"--descriptor_set_out={built}", "model_config.proto"]
    assert protoc.main(arguments) == 0
    shipped = (FOLDER / "model_config.binpb").read_bytes()
    assert FileDescriptorSet.FromString(built.read_bytes()) == FileDescriptorSet.FromString(shipped)


def signature(message: Descriptor, found: dict[str, set[tuple[object, ...]]]) -> None:
    if message.full_name in found:
        return
    entry: set[tuple[object, ...]] = set()
    found[message.full_name] = entry
    for field in message.fields:
        oneof = field.containing_oneof.name if field.containing_oneof else ""
        entry.add((field.name, field.number, field.type, field.is_repeated, oneof))
        if field.enum_type is not None:
            entry.update((field.name, value.name, value.number) for value in field.enum_type.values)
        if field.message_type is not None:
            entry.add((field.name, field.message_type.full_name))
            signature(field.message_type, found)


def test_names_and_numbers_are_tritons_beside_its_client() -> None:
    pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc]")
    from tritonclient.grpc import model_config_pb2

    ours: dict[str, set[tuple[object, ...]]] = {}
    theirs: dict[str, set[tuple[object, ...]]] = {}
    signature(TOP, ours)
    signature(model_config_pb2.ModelConfig.DESCRIPTOR, theirs)
    assert ours == theirs


def test_lives_in_a_pool_of_its_own_beside_tritons_client() -> None:
    pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc]")
    from tritonclient.grpc import model_config_pb2

    ours, theirs = config_message(), model_config_pb2.ModelConfig
    assert ours.DESCRIPTOR.full_name == theirs.DESCRIPTOR.full_name
    assert ours.DESCRIPTOR.file.pool is not theirs.DESCRIPTOR.file.pool
    raw = theirs(name="m", max_batch_size=3).SerializeToString()
    assert ours.FromString(raw).SerializeToString() == raw


def test_class_is_made_once() -> None:
    assert config_message() is config_message()
