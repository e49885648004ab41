"""The requests of `model_warmup`, made of the configuration and of files beside the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from microkernel.config.model import ModelConfig, ModelInput, ModelWarmup, WarmupInput
from microkernel.config.tensors import model_inputs
from microkernel.errors import InvalidArgument
from microkernel.models.checking import RequestChecker
from microkernel.request import InferRequest
from microkernel.tensor import BY_CONFIG_NAME, DataType, Shape, Tensor, element_count

FOLDER = "warmup"
_EMPTY_ELEMENT = bytes(4)
"""A string of no length, which is what zero and random data of strings are made of."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A batch to run `count` times before an instance serves: requests of size 1, as a scheduler
    would hand them on."""

    name: str
    requests: Sequence[InferRequest]
    count: int


def read_samples(config: ModelConfig, directory: Path, version: int) -> Sequence[Sample]:
    """The samples of a complete configuration in order, without those of size 0. `directory` is the
    model's. It reads files, so not on the event loop.

    Raises InvalidArgument, in Triton's words where it has some, for what cannot be run.
    """
    return [_sample(w, config, directory, version) for w in config.model_warmup if w.batch_size]


def _sample(warmup: ModelWarmup, config: ModelConfig, directory: Path, version: int) -> Sample:
    if warmup.batch_size > max(config.max_batch_size, 1):
        raise InvalidArgument(
            f"warmup sample '{warmup.name}' of model '{config.name}' has batch_size "
            f"{warmup.batch_size}, which must be <= {max(config.max_batch_size, 1)}"
        )
    known = {entry.name: entry for entry in model_inputs(config)}
    for name in warmup.inputs:
        if name not in known:
            raise InvalidArgument(
                f"warmup sample '{warmup.name}' has an input '{name}', which model '{config.name}' "
                "does not have"
            )
    tensors = {
        name: _tensor(known[name], given, config, directory)
        for name, given in warmup.inputs.items()
    }
    request = _request(tensors, config, version)
    return Sample(warmup.name, [request] * warmup.batch_size, max(warmup.count, 1))


def _request(tensors: Mapping[str, Tensor], config: ModelConfig, version: int) -> InferRequest:
    """One request with the inputs of clients, checked as theirs are, and then those that the server
    makes."""
    own = [entry.name for entry in config.input]
    inputs = tuple(tensors[name] for name in own if name in tensors)
    request = InferRequest(config.name, inputs, version)
    checked = RequestChecker(config).check(request).request
    made = (entry.name for entry in model_inputs(config) if entry.name not in own)
    added = tuple(tensors[name] for name in made if name in tensors)
    return replace(checked, inputs=(*checked.inputs, *added))


def _tensor(entry: ModelInput, given: WarmupInput, config: ModelConfig, directory: Path) -> Tensor:
    if any(dim < 0 for dim in given.dims):
        raise InvalidArgument(
            "warmup setting expects all variable-size dimensions are specified for input "
            f"'{entry.name}' for model '{config.name}'"
        )
    datatype = BY_CONFIG_NAME.get(given.data_type)
    if datatype is None:
        raise InvalidArgument(
            f"warmup setting of input '{entry.name}' for model '{config.name}' must have a "
            f"data_type, got {given.data_type}"
        )
    shape = _shape(entry, given.dims, config)
    data = _data(entry.name, given, datatype, element_count(shape), directory)
    return Tensor(entry.name, datatype, shape, data)


def _shape(entry: ModelInput, dims: Shape, config: ModelConfig) -> Shape:
    """The shape of a request of size 1. Triton adds no batch dimension to tensors that clients do
    not send, so configurations may have it already."""
    given = entry not in config.input and len(dims) > len(entry.dims)
    if config.max_batch_size <= 0 or entry.is_shape_tensor or given:
        return dims
    return (1, *dims)


def _data(name: str, given: WarmupInput, datatype: DataType, count: int, directory: Path) -> bytes:
    if given.input_data_file is not None:
        return _file(given.input_data_file, count * datatype.size, directory)
    if given.zero_data is None and given.random_data is None:
        raise InvalidArgument(f"warmup setting expects input '{name}' to have input_data_type set")
    if datatype.size == 0:
        return _EMPTY_ELEMENT * count
    if given.random_data is not None:
        return _random(datatype, count)
    return bytes(count * datatype.size)


def _file(name: str, size: int, directory: Path) -> bytes:
    """The first `size` bytes of a file in the model's directory, all of it for 0."""
    root = directory.resolve()
    path = (root / FOLDER / name).resolve()
    if root not in path.parents or not path.is_file():
        raise InvalidArgument(f"warmup data file '{name}' is not a file in '{root / FOLDER}'")
    try:
        with path.open("rb") as file:
            data = file.read(size) if size else file.read()
    except OSError as error:
        raise InvalidArgument(f"failed to read warmup data file '{path}': {error}") from None
    if len(data) < size:
        raise InvalidArgument(
            f"warmup setting expects {size} bytes, but the data provided from '{name}' has only "
            f"{len(data)} bytes"
        )
    return data


def _random(datatype: DataType, count: int) -> bytes:
    """Random elements: numbers of floating point from 0 to 1, others over their whole range."""
    source = np.random.default_rng()
    if datatype.numpy is None:  # BF16, the upper half of FP32
        halves = source.random(count, np.float32).view(np.uint16).reshape(-1, 2)
        return halves[:, 1].tobytes()
    if datatype.numpy.kind == "f":
        return source.random(count).astype(datatype.numpy).tobytes()
    if datatype.numpy.kind == "b":
        return source.integers(0, 2, count, np.uint8).tobytes()
    return source.bytes(count * datatype.size)
