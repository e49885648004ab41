"""What a model is fed and gives besides what its clients see."""

from microkernel.config.model import (
    Control,
    ControlInput,
    ModelConfig,
    ModelInput,
    ModelOutput,
    SequenceBatching,
    State,
)
from microkernel.config.tensors import model_inputs, model_outputs

PLAIN = ModelConfig(
    input=(ModelInput("X", "TYPE_FP32", dims=(4,)),),
    output=(ModelOutput("Y", "TYPE_FP32", (4,)),),
)


def test_a_model_without_sequences_is_fed_its_inputs() -> None:
    assert model_inputs(PLAIN) == PLAIN.input
    assert model_outputs(PLAIN) == PLAIN.output


def test_controls_and_states_come_after_the_inputs() -> None:
    batching = SequenceBatching(
        control_input=(
            ControlInput("GO", (Control("CONTROL_SEQUENCE_START", int32_false_true=(0, 1)),)),
            ControlInput("OK", (Control("CONTROL_SEQUENCE_READY", fp32_false_true=(0, 1)),)),
            ControlInput("END", (Control("CONTROL_SEQUENCE_END", bool_false_true=(False, True)),)),
            ControlInput("ID", (Control("CONTROL_SEQUENCE_CORRID", data_type="TYPE_STRING"),)),
        ),
        state=(
            State("S", "S_OUT", "TYPE_FP16", (2, -1)),
            State("T", "Y", "TYPE_FP32", (4,)),  # which clients see, too
            State("S", "OTHER", "TYPE_INT8", (1,)),  # a name that is taken
        ),
    )
    config = ModelConfig(input=PLAIN.input, output=PLAIN.output, sequence_batching=batching)
    assert [(i.name, i.data_type, i.dims) for i in model_inputs(config)] == [
        ("X", "TYPE_FP32", (4,)),
        ("GO", "TYPE_INT32", (1,)),
        ("OK", "TYPE_FP32", (1,)),
        ("END", "TYPE_BOOL", (1,)),
        ("ID", "TYPE_STRING", (1,)),
        ("S", "TYPE_FP16", (2, -1)),
        ("T", "TYPE_FP32", (4,)),
    ]
    assert [(o.name, o.data_type, o.dims) for o in model_outputs(config)] == [
        ("Y", "TYPE_FP32", (4,)),
        ("S_OUT", "TYPE_FP16", (2, -1)),
    ]
