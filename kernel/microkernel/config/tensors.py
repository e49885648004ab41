"""Every tensor that a model is fed and gives, those that clients never see included."""

from microkernel.config.model import (
    Control,
    ModelConfig,
    ModelInput,
    ModelOutput,
    SequenceBatching,
    State,
)

CORRELATION = "CONTROL_SEQUENCE_CORRID"


def model_inputs(config: ModelConfig) -> tuple[ModelInput, ...]:
    """What a request looks like to the model: the inputs of the configuration, then the controls of
    its sequence batcher, then its states; each with the dimensions without the batch's, and in the
    order in which a request carries them. Tensors of `batch_input` are not among them."""
    batching = config.sequence_batching or SequenceBatching()
    controls = tuple(
        ModelInput(entry.name, control_type(entry.control[0]), dims=(1,))
        for entry in batching.control_input
        if entry.control
    )
    states = tuple(ModelInput(s.input_name, s.data_type, dims=s.dims) for s in states_of(config))
    return (*config.input, *controls, *states)


def model_outputs(config: ModelConfig) -> tuple[ModelOutput, ...]:
    """What the model may give: the outputs of the configuration, then those of its states that are
    not among them."""
    known = {entry.name for entry in config.output}
    states = (ModelOutput(s.output_name, s.data_type, s.dims) for s in states_of(config))
    return (*config.output, *(state for state in states if state.name not in known))


def sequence_inputs(config: ModelConfig) -> tuple[ModelInput, ...]:
    """Those of `model_inputs` that the configuration does not list as inputs: the controls of the
    sequence batcher, then its states."""
    return model_inputs(config)[len(config.input) :]


def state_outputs(config: ModelConfig) -> tuple[ModelOutput, ...]:
    """Those of `model_outputs` that the configuration does not list as outputs: of its states."""
    return model_outputs(config)[len(config.output) :]


def states_of(config: ModelConfig) -> tuple[State, ...]:
    """The states that are heeded: of two with the same input or output only the first is."""
    kept, _ = _sorted_states(config)
    return tuple(kept)


def ignored_states(config: ModelConfig) -> list[int]:
    """The places of the states that are not heeded."""
    _, ignored = _sorted_states(config)
    return ignored


def _sorted_states(config: ModelConfig) -> tuple[list[State], list[int]]:
    kept: list[State] = []
    ignored: list[int] = []
    batching = config.sequence_batching or SequenceBatching()
    for place, state in enumerate(batching.state):
        if any(
            state.input_name == other.input_name or state.output_name == other.output_name
            for other in kept
        ):
            ignored.append(place)
        else:
            kept.append(state)
    return kept, ignored


def inner_dims(entry: ModelInput | ModelOutput) -> tuple[int, ...]:
    """The shape that the backend sees, without the batch dimension."""
    return entry.dims if entry.reshape is None else entry.reshape.shape


def control_type(control: Control) -> str:
    """The configuration's name for the data type of a control tensor."""
    if control.kind == CORRELATION:
        return control.data_type
    if control.int32_false_true:
        return "TYPE_INT32"
    return "TYPE_FP32" if control.fp32_false_true else "TYPE_BOOL"
