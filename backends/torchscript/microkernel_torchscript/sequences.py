"""The tensors of the sequence batcher: what a model may call its controls and states."""

from collections.abc import Sequence

from microkernel import Internal, InvalidArgument, MicrokernelError, ModelConfig, sequence_inputs
from microkernel_torchscript.conversion import is_supported
from microkernel_torchscript.naming import index_of
from microkernel_torchscript.signature import Signature


def state_inputs(config: ModelConfig) -> Sequence[str]:
    """The names of the inputs that states feed."""
    batching = config.sequence_batching
    return () if batching is None else [state.input_name for state in batching.state]


def misnamed(config: ModelConfig, name: str, *, state: bool) -> MicrokernelError:
    """The error, in Triton's words, for a control or a state whose place in the model cannot be
    told from its name."""
    if not state:
        return Internal(f"input '{name}' does not follow <name>__<index> naming convention.")
    return _unconventional(config, f"state '{name}' does not follow")


def _unconventional(config: ModelConfig, fault: str) -> InvalidArgument:
    return InvalidArgument(
        f"PyTorch model '{config.name}' is using sequence batching with state but {fault} the "
        "<name>__<index> naming convention. "
    )


def check_sequence_tensors(config: ModelConfig, signature: Signature) -> None:
    """Raises Internal for a control and InvalidArgument for a state whose place in the model cannot
    be told from its name, and Internal for types that the model cannot take; in Triton's words.

    Where Triton wants an index after the name, the name of an argument does as well.
    """
    entries, states = sequence_inputs(config), state_inputs(config)
    arguments = [argument.name for argument in signature.arguments]
    for entry in entries:
        if entry.name in states:
            continue
        if not signature.takes_dictionary and not _is_placed(entry.name, arguments):
            raise misnamed(config, entry.name, state=False)
        if not is_supported(entry.data_type):
            raise Internal(
                f"input '{entry.name}' type '{entry.data_type}' is not supported by PyTorch."
            )
    if states:
        _check_states(config, signature, arguments)


def sequence_position(name: str, arguments: Sequence[str]) -> int:
    """The argument that a checked control or state feeds."""
    return arguments.index(name) if name in arguments else index_of(name) or 0


def _is_placed(name: str, arguments: Sequence[str]) -> bool:
    return name in arguments or index_of(name) is not None


def _check_states(config: ModelConfig, signature: Signature, arguments: Sequence[str]) -> None:
    inputs = [entry.name for entry in config.input]
    placed = signature.takes_dictionary or all(name in arguments for name in inputs)
    if not (placed or _all_indexed(inputs)) or not (
        signature.returns_dictionary or _all_indexed([entry.name for entry in config.output])
    ):
        raise _unconventional(config, "not all inputs and outputs follow")
    states = config.sequence_batching.state if config.sequence_batching else ()
    for state in states:
        fed = signature.takes_dictionary or _is_placed(state.input_name, arguments)
        given = signature.returns_dictionary or index_of(state.output_name) is not None
        if not fed or not given:
            name = state.output_name if fed else state.input_name
            raise misnamed(config, name, state=True)
    for entry in sequence_inputs(config):
        if not is_supported(entry.data_type):
            raise Internal(
                f"unsupported datatype {entry.data_type} for state '{entry.name}' for model "
                f"'{config.name}'"
            )


def _all_indexed(names: Sequence[str]) -> bool:
    return all(index_of(name) is not None for name in names)
