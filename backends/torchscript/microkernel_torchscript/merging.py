"""What a file says of its model, and what its `config.pbtxt` says: the latter wins, and they must
not contradict each other. This module imports no torch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from microkernel import InvalidArgument, ModelConfig, ModelInput, ModelOutput, inner_dims
from microkernel_torchscript.batching import cannot_batch, written
from microkernel_torchscript.describing import Description, described_file, read_description

_Entry = TypeVar("_Entry", ModelInput, ModelOutput)


def with_description(config: ModelConfig, files: Path) -> ModelConfig:
    """The configuration with what the file in a version's directory says where it says nothing.

    A configuration that lists no tensors takes the file's `max_batch_size` as well. Raises
    InvalidArgument for a malformed description, and where type or shape of a tensor contradict it.
    """
    path = described_file(config, files)
    description = None if path is None else read_description(path)
    return config if description is None else merged(config, description, f"'{path}'")


def merged(config: ModelConfig, description: Description, source: str) -> ModelConfig:
    """See `with_description`; `source` names the file in messages."""
    told = description.config
    size = config.max_batch_size
    if not (size or config.input or config.output):
        size = told.max_batch_size
    name, was = config.name, told.max_batch_size
    where = f"model '{name}'"
    inputs = tuple(_resized(entry, was, size, name) for entry in told.input)
    outputs = tuple(_resized(entry, was, size, name) for entry in told.output)
    _compare(config.input, inputs, f"{where}, configuration expects {{}} for input '{{}}'", source)
    _compare(
        config.output, outputs, f"{where}, configuration expects {{}} for output '{{}}'", source
    )
    filled = replace(
        config,
        max_batch_size=size,
        input=config.input or inputs,
        output=config.output or outputs,
    )
    if config.dynamic_batching or config.sequence_batching or size <= 0:
        return filled
    return replace(
        filled,
        dynamic_batching=told.dynamic_batching,
        sequence_batching=told.sequence_batching,
    )


def _resized(entry: _Entry, told: int, size: int, name: str) -> _Entry:
    """A described tensor as the configuration's `max_batch_size` has it written."""
    if (told > 0) == (size > 0):
        return entry
    shape: tuple[int, ...] = inner_dims(entry)
    whole = shape if told <= 0 else (-1, *shape)
    if size > 0 and whole[:1] != (-1,):
        raise cannot_batch(name)
    dims, reshape = written(whole, size)
    return replace(entry, dims=dims, reshape=reshape)


def _compare(
    written: Sequence[ModelInput | ModelOutput],
    told: Sequence[ModelInput | ModelOutput],
    expects: str,
    source: str,
) -> None:
    known = {entry.name: entry for entry in told}
    for entry in written:
        other = known.get(entry.name)
        if other is None:
            continue
        if entry.data_type != other.data_type:
            expected = expects.format(f"datatype {entry.data_type}", entry.name)
            raise InvalidArgument(f"{expected}, {source} describes it as {other.data_type}")
        shape, described = inner_dims(entry), inner_dims(other)
        if not _compatible(shape, described):
            expected = expects.format(f"shape {list(shape)}", entry.name)
            raise InvalidArgument(f"{expected}, {source} describes it as {list(described)}")


def _compatible(one: Sequence[int], other: Sequence[int]) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in pairs)
