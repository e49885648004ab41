"""Filling in a configuration from the graph, by the rules of Triton's ONNX Runtime backend."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from microkernel import (
    DynamicBatching,
    InvalidArgument,
    ModelConfig,
    ModelInput,
    ModelOutput,
    Reshape,
    sequence_inputs,
    state_outputs,
)
from microkernel_onnx.graph import Graph, Port


def is_complete(config: ModelConfig) -> bool:
    """Whether nothing is to be completed; `max_batch_size` then stays as it is, even unset."""
    return bool(config.input or config.batch_input) and bool(config.output)


def can_batch(graph: Graph) -> bool:
    """Whether every input and output has a first dimension that is not fixed."""
    ports = (*graph.inputs.values(), *graph.outputs.values())
    return all(port.shape[:1] == (-1,) for port in ports)


def complete(config: ModelConfig, graph: Graph, default_max_batch_size: int) -> ModelConfig:
    """The configuration with the missing side filled in; a side that lists anything stays as it is.

    Raises InvalidArgument where `max_batch_size` asks for batching that the graph does not allow.
    """
    if is_complete(config):
        return config
    max_batch_size = _max_batch_size(config, graph, default_max_batch_size)
    batching = max_batch_size > 0
    dynamic = config.dynamic_batching
    if max_batch_size > 1 and dynamic is None and config.sequence_batching is None:
        dynamic = DynamicBatching()
    listed = config.input or config.batch_input
    made = [entry.name for entry in sequence_inputs(config)]
    states = [entry.name for entry in state_outputs(config)]
    return replace(
        config,
        max_batch_size=max_batch_size,
        dynamic_batching=dynamic,
        input=config.input if listed else _inputs(_without(graph.inputs, made), batching),
        output=config.output or _outputs(_without(graph.outputs, states), batching),
    )


def _max_batch_size(config: ModelConfig, graph: Graph, default: int) -> int:
    if can_batch(graph):
        return config.max_batch_size or max(0, default)
    if config.max_batch_size > 0:
        raise InvalidArgument(
            f"autofill failed for model '{config.name}': model does not support batching while "
            "non-zero max_batch_size is specified"
        )
    return 0


def _without(ports: Mapping[str, Port], names: Sequence[str]) -> Mapping[str, Port]:
    return {name: port for name, port in ports.items() if name not in names}


def _inputs(ports: Mapping[str, Port], batching: bool) -> tuple[ModelInput, ...]:
    return tuple(
        ModelInput(port.name, port.data_type, dims=dims, reshape=reshape)
        for port in ports.values()
        for dims, reshape in (_dims(port, batching),)
    )


def _outputs(ports: Mapping[str, Port], batching: bool) -> tuple[ModelOutput, ...]:
    return tuple(
        ModelOutput(port.name, port.data_type, dims=dims, reshape=reshape)
        for port in ports.values()
        for dims, reshape in (_dims(port, batching),)
    )


def _dims(port: Port, batching: bool) -> tuple[tuple[int, ...], Reshape | None]:
    """A shape as the configuration writes it: no batch dimension, and never empty."""
    dims = port.shape[1:] if batching else port.shape
    if dims:
        return dims, None
    return (1,), Reshape(()) if batching else None
