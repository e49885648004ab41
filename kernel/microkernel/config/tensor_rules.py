"""What inputs and outputs must obey."""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import chain

from microkernel.config.model import BatchOutput, ModelConfig, ModelInput, ModelOutput
from microkernel.config.tensors import inner_dims, model_inputs


def tensors(config: ModelConfig) -> Iterator[tuple[str, ModelInput | ModelOutput]]:
    """Every input and output, each with the word for what it is: `input` or `output`."""
    yield from (("input", tensor) for tensor in config.input)
    yield from (("output", tensor) for tensor in config.output)


def inputs_and_outputs(config: ModelConfig) -> Iterator[str]:
    """Names, types, dimensions and reshapes."""
    names = Counter((where, tensor.name) for where, tensor in tensors(config))
    for (where, name), count in names.items():
        if name and count > 1:
            yield f"model {where} '{name}' must not be specified twice for {config.name}"
    for where, tensor in tensors(config):
        start = f"model {where} '{tensor.name}'" if tensor.name else f"model {where}"
        for fault in chain(_tensor(tensor, config), _layout(tensor, config)):
            yield f"{start} {fault} for {config.name}"


def _tensor(tensor: ModelInput | ModelOutput, config: ModelConfig) -> Iterator[str]:
    if not tensor.name:
        yield "must specify 'name'"
    if tensor.data_type == "TYPE_INVALID":
        yield "must specify 'data_type'"
    if not tensor.dims:
        yield "must specify 'dims'"
    if any(dim < 1 and dim != -1 for dim in tensor.dims):
        yield "dimension must be integer >= 1, or -1 to indicate a variable-size dimension"
    elif tensor.dims and tensor.reshape is not None:
        yield from _reshape(tensor.dims, tensor.reshape.shape, config.max_batch_size)


def _layout(tensor: ModelInput | ModelOutput, config: ModelConfig) -> Iterator[str]:
    if isinstance(tensor, ModelInput) and tensor.format != "FORMAT_NONE" and len(tensor.dims) != 3:
        yield "NHWC/NCHW require 3 dims"
    tensorrt = config.backend == "tensorrt" or config.platform == "tensorrt_plan"
    if tensor.is_shape_tensor and not tensorrt:
        yield "shape tensors are only supported for TensorRT platform"
    if tensor.is_non_linear_format_io and not tensorrt:
        yield "Non-linear IO format is only supported for TensorRT platform"


def _reshape(dims: tuple[int, ...], shape: tuple[int, ...], max_batch: int) -> Iterator[str]:
    if any(dim < 1 and dim != -1 for dim in shape):
        yield "reshape dimensions must be integer >= 1, or -1 to indicate a variable-size dimension"
    elif not shape and max_batch == 0:
        yield (
            "cannot have empty reshape for non-batching model as scalar tensors are not supported"
        )
    elif (-1 in dims) != (-1 in shape):
        yield "has different size for dims and reshape"
    elif dims.count(-1) != shape.count(-1):
        yield "has different number of variable-size dimensions for dims and reshape"
    elif _fixed_runs(dims) != _fixed_runs(shape):
        yield "has different size for dims and reshape"


def _fixed_runs(dims: tuple[int, ...]) -> list[int]:
    """The product of each run of fixed dimensions around and between the variable ones."""
    ends = [i for i, dim in enumerate(dims) if dim == -1]
    return [
        math.prod(dims[start + 1 : end])
        for start, end in zip([-1, *ends], [*ends, len(dims)], strict=True)
    ]


def batch_inputs(config: ModelConfig) -> Iterator[str]:
    """Types and sources of the tensors that the server makes."""
    known = {tensor.name for tensor in config.input}
    for batch_input in config.batch_input:
        if batch_input.data_type not in ("TYPE_INT32", "TYPE_FP32"):
            yield f"batch input data type must be TYPE_INT32 or TYPE_FP32 for {config.name}"
        kind = f"batch input kind '{batch_input.kind}'"
        yield from _sources(kind, batch_input.source_input, known, config.name)
    taken = {tensor.name for tensor in model_inputs(config)}
    targets = Counter(name for entry in config.batch_input for name in entry.target_name)
    for target, count in targets.items():
        if count > 1 or target in taken:
            yield f"batch input '{target}' has the name of another input for {config.name}"


def batch_outputs(config: ModelConfig) -> Iterator[str]:
    """Targets and sources of the outputs that belong to a whole batch."""
    inputs = {tensor.name for tensor in config.input}
    outputs = {tensor.name for tensor in config.output}
    targets = Counter(name for entry in config.batch_output for name in entry.target_name)
    for target, count in targets.items():
        if target not in outputs:
            yield f"unknown target output name '{target}' for {config.name}"
        if count > 1:
            yield f"target output name '{target}' can only be specified once for {config.name}"
    for entry in config.batch_output:
        kind = f"batch output kind '{entry.kind}'"
        yield from _sources(kind, entry.source_input, inputs, config.name)
        yield from _scattered(entry, config)


def _scattered(entry: BatchOutput, config: ModelConfig) -> Iterator[str]:
    """Each variable dimension of a target is that of its source at the same place."""
    sources = {i.name: len(inner_dims(i)) for i in config.input if i.name in entry.source_input}
    for output in config.output:
        if output.name not in entry.target_name or len(sources) != 1:
            continue
        ((source, rank),) = sources.items()
        for axis, dim in enumerate(inner_dims(output)):
            if dim == -1 and axis >= rank:
                yield (
                    f"target output '{output.name}' has a variable dimension {axis}, which source "
                    f"input '{source}' lacks, for {config.name}"
                )


def _sources(kind: str, sources: tuple[str, ...], known: set[str], model: str) -> Iterator[str]:
    if len(sources) != 1:
        yield f"{kind} expects 1 source input, got {len(sources)} for {model}"
    for source in sources:
        if source not in known:
            yield f"unknown source input name '{source}' for {model}"
