"""What a file says of its model, and what its `config.pbtxt` says: the latter wins, and they must
not contradict each other. This module imports no torch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from microkernel import InvalidArgument, ModelConfig, ModelInput, ModelOutput, Reshape
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
    where = f"model '{config.name}'"
    inputs = tuple(_resized(entry, told.max_batch_size, size, where) for entry in told.input)
    outputs = tuple(_resized(entry, told.max_batch_size, size, where) for entry in told.output)
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


def _resized(entry: _Entry, told: int, size: int, where: str) -> _Entry:
    """A described tensor as the configuration's `max_batch_size` has it written."""
    if (told > 0) == (size > 0):
        return entry
    shape: tuple[int, ...] = seen_by_model(entry)
    if size <= 0:
        return replace(entry, dims=(-1, *shape), reshape=None)
    if not shape or shape[0] != -1:
        raise InvalidArgument(
            f"autofill failed for {where}: model does not support batching while non-zero "
            "max_batch_size is specified"
        )
    dims, reshape = shown_to_clients(shape[1:])
    return replace(entry, dims=dims, reshape=reshape)


def seen_by_model(entry: ModelInput | ModelOutput) -> tuple[int, ...]:
    """The shape that the model has of a tensor, without the batch dimension."""
    return entry.dims if entry.reshape is None else entry.reshape.shape


def shown_to_clients(shape: tuple[int, ...]) -> tuple[tuple[int, ...], Reshape | None]:
    """What a configuration that batches writes for a tensor of the model, given without the batch
    dimension: one with no more dimensions needs one of 1 for clients to send."""
    return (shape, None) if shape else ((1,), Reshape(()))


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
        shape, described = seen_by_model(entry), seen_by_model(other)
        if not _compatible(shape, described):
            expected = expects.format(f"shape {list(shape)}", entry.name)
            raise InvalidArgument(f"{expected}, {source} describes it as {list(described)}")


def _compatible(one: Sequence[int], other: Sequence[int]) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in pairs)
