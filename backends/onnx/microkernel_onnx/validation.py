"""Checking a configuration against the graph, in Triton's words."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from microkernel import (
    Internal,
    InvalidArgument,
    ModelConfig,
    ModelInput,
    ModelOutput,
    Unsupported,
    inner_dims,
    model_outputs,
    sequence_inputs,
)
from microkernel_onnx.graph import Graph, Port


def validate(config: ModelConfig, graph: Graph) -> None:
    """Raises InvalidArgument where the configuration contradicts the graph, Internal where a tensor
    of the sequence batcher is missing, Unsupported for types that Python cannot pass to
    onnxruntime."""
    _check_count(config, graph)
    for entry in config.input:
        _check_input(config, entry, graph)
    for output in model_outputs(config):
        _check_output(config, output, graph)
    _check_sequence_tensors(config, graph)
    for made in made_from_batch(config):
        _check_type(config, made, _named(made.name, graph.inputs, "input"), "input")


def made_from_batch(config: ModelConfig) -> Sequence[ModelInput]:
    """The tensors that tell the model what a batch is made of."""
    return [
        ModelInput(target, entry.data_type)
        for entry in config.batch_input
        for target in entry.target_name
    ]


def _check_count(config: ModelConfig, graph: Graph) -> None:
    required = sum(not entry.optional for entry in config.input)
    expected = required + len(sequence_inputs(config)) + len(made_from_batch(config))
    if expected != len(graph.inputs):
        needed = [e.name for e in config.input if e.optional and e.name in graph.inputs]
        told = "".join(f"; input '{name}' is optional, but the model needs it" for name in needed)
        raise InvalidArgument(
            f"unable to load model '{config.name}', configuration expects {expected} inputs, model "
            f"provides {len(graph.inputs)}{told}"
        )


def _check_sequence_tensors(config: ModelConfig, graph: Graph) -> None:
    for entry in sequence_inputs(config):
        if entry.name not in graph.inputs:
            raise Internal(
                f"unable to load model '{config.name}', configuration specified sequence tensor "
                f"'{entry.name}', but the model has no such input"
            )
        port = graph.inputs[entry.name]
        _check_type(config, entry, port, "input")
        _check_shape(config, port, entry.dims, _input_accepts)


def _check_input(config: ModelConfig, entry: ModelInput, graph: Graph) -> None:
    if entry.optional and (config.max_batch_size > 0 or entry.allow_ragged_batch):
        raise InvalidArgument(
            f"unable to load model '{config.name}', input '{entry.name}' is optional, which needs "
            "max_batch_size: 0 and no ragged batches"
        )
    known = graph.initializers if entry.optional else graph.inputs
    port = _named(entry.name, known, "input")
    _check_type(config, entry, port, "input")
    if entry.allow_ragged_batch:
        _check_ragged(config, port)
        return
    _check_shape(config, port, inner_dims(entry), _input_accepts)


def _check_output(config: ModelConfig, entry: ModelOutput, graph: Graph) -> None:
    port = _named(entry.name, graph.outputs, "output")
    _check_type(config, entry, port, "output")
    if any(entry.name in scattered.target_name for scattered in config.batch_output):
        return
    if entry not in config.output:  # a state, whose shape may change from step to step
        return
    _check_shape(config, port, inner_dims(entry), _output_accepts)


def _named(name: str, known: Mapping[str, Port], direction: str) -> Port:
    if name not in known:
        raise InvalidArgument(
            f"unexpected inference {direction} '{name}', allowed {direction}s are: "
            f"{', '.join(sorted(known))}"
        )
    return known[name]


def _check_type(
    config: ModelConfig, entry: ModelInput | ModelOutput, port: Port, direction: str
) -> None:
    if entry.data_type != port.data_type or entry.data_type == "TYPE_INVALID":
        raise InvalidArgument(
            f"unable to load model '{config.name}', configuration expects datatype "
            f"{entry.data_type} for {direction} '{entry.name}', model provides {port.data_type}"
        )
    if entry.data_type == "TYPE_BF16":
        raise Unsupported(
            f"unable to load model '{config.name}', {direction} '{entry.name}' is TYPE_BF16, which "
            "this backend cannot pass to onnxruntime; export the model with FP32 or FP16 tensors "
            "at its borders"
        )


def _check_ragged(config: ModelConfig, port: Port) -> None:
    if port.shape != (-1,):
        raise InvalidArgument(
            f"unable to load model '{config.name}', input '{port.name}' allows ragged batches, for "
            f"which its shape in the model must be [-1], not {_text(port.shape)}"
        )


def _input_accepts(model: int, configured: int) -> bool:
    return model in (-1, configured)


def _output_accepts(model: int, configured: int) -> bool:
    return model == configured


def _check_shape(
    config: ModelConfig, port: Port, dims: Sequence[int], accepts: Callable[[int, int], bool]
) -> None:
    batching = config.max_batch_size > 0
    if batching and port.shape[:1] != (-1,):
        raise InvalidArgument(
            f"model '{config.name}', tensor '{port.name}': for the model to support batching the "
            "shape should have at least 1 dimension and the first dimension must be -1; but shape "
            f"expected by the model is {_text(port.shape)}"
        )
    if not port.shape and all(dim == 1 for dim in dims):
        return  # a scalar
    whole = (-1, *dims) if batching else tuple(dims)
    fits = len(whole) == len(port.shape) and all(map(accepts, port.shape, whole))
    if not fits:
        raise InvalidArgument(_mismatch(config, port, whole))


def _mismatch(config: ModelConfig, port: Port, whole: Sequence[int]) -> str:
    explained = f"shape {_text(whole)}"
    if config.max_batch_size > 0:
        explained = (
            "an initial batch dimension because max_batch_size > 0 followed by the explicit tensor "
            f"shape, making complete shape {_text(whole)}"
        )
    return (
        f"model '{config.name}', tensor '{port.name}': the model expects {len(port.shape)} "
        f"dimensions (shape {_text(port.shape)}) but the model configuration specifies "
        f"{len(whole)} dimensions ({explained})"
    )


def _text(shape: Iterable[int]) -> str:
    return f"[{','.join(map(str, shape))}]"
