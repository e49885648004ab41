"""What the TorchScript backend decides without running a model: naming, parameters, messages."""

from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

from hypothesis import given
from hypothesis import strategies as st

from microkernel import (
    Internal,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelParameter,
    Reshape,
    config_from_json,
)
from microkernel_torchscript.failures import execute_failure, load_failure
from microkernel_torchscript.inputs import plan_inputs
from microkernel_torchscript.naming import index_of, input_positions, output_positions
from microkernel_torchscript.options import (
    Options,
    parse_boolean,
    parse_integer,
    parse_options,
)
from microkernel_torchscript.outputs import plan_outputs
from microkernel_torchscript.probing.skeleton import skeleton
from microkernel_torchscript.signature import REQUIRED, Argument, Signature


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("INPUT__0", 0),
        ("x__12", 12),
        ("__3", 3),
        ("a__b__0", None),
        ("a___1", None),
        ("a__", None),
        ("a_1", None),
        ("a__-1", None),
        ("a__1 ", None),
        ("a__\u0663", None),
        ("", None),
    ],
)
def test_an_index_name_is_split_at_the_first_double_underscore(
    name: str, index: int | None
) -> None:
    assert index_of(name) == index


@given(st.text())
def test_an_index_is_exactly_the_digits_of_the_name(name: str) -> None:
    index = index_of(name)
    if index is not None:
        digits = name.split("__", 1)[1]
        assert digits.isascii()
        assert int(digits) == index


@pytest.mark.parametrize(
    ("names", "positions"),
    [
        (("a", "b"), [0, 1]),
        (("b", "a"), [1, 0]),
        (("X__1", "Y__0"), [1, 0]),
        (("INPUT__0", "INPUT__1"), [0, 1]),
        (("INPUT0", "INPUT__1"), [0, 1]),
        (("INPUT__1", "INPUT0"), [0, 1]),
        (("b", "X__0"), [0, 1]),
        (("q", "r"), [0, 1]),
    ],
)
def test_one_convention_holds_for_all_inputs(names: tuple[str, ...], positions: list[int]) -> None:
    assert input_positions(names, ("a", "b")) == positions


def test_outputs_are_never_named_like_arguments() -> None:
    assert output_positions(("b", "a")) == [0, 1]
    assert output_positions(("b__1", "a__0")) == [1, 0]


def test_a_name_that_lacks_its_number_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    assert output_positions(("OUTPUT__x", "y")) == [0, 1]
    assert ["'OUTPUT__x'" in record.getMessage() for record in caplog.records] == [True]
    caplog.clear()
    output_positions(("x", "y__0"))
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("ON", True), ("1", True), ("False", False), ("off", False), ("0", False)],
)
def test_booleans(text: str, value: bool) -> None:
    assert parse_boolean(text) is value


@pytest.mark.parametrize("text", ["", "yes", "2", "true "])
def test_other_words_are_no_booleans(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_boolean(text)
    assert str(caught.value) == f"failed to convert '{text}' to boolean"


@pytest.mark.parametrize(("text", "value"), [("4", 4), (" 12abc", 12), ("-3", -3), ("+1", 1)])
def test_integers_are_read_up_to_the_first_other_character(text: str, value: int) -> None:
    assert parse_integer(text) == value


@pytest.mark.parametrize("text", ["", "four", "- 1", "\u0663"])
def test_other_words_are_no_integers(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_integer(text)
    assert str(caught.value) == f"failed to convert '{text}' to integral number"


@given(st.integers(), st.text().filter(lambda rest: not rest[:1].isdigit()))
def test_an_integer_ends_where_the_digits_end(number: int, rest: str) -> None:
    assert parse_integer(f"{number}{rest}") == number


def parameters(**values: str) -> ModelConfig:
    entries = {key: ModelParameter(value) for key, value in values.items()}
    return ModelConfig(name="m", parameters=entries)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (ModelConfig(), Options()),
        (parameters(DISABLE_OPTIMIZED_EXECUTION="true"), Options(optimized_execution=False)),
        (parameters(DISABLE_OPTIMIZED_EXECUTION="false"), Options()),
        (parameters(INFERENCE_MODE="off"), Options(inference_mode=False)),
        (parameters(INTRA_OP_THREAD_COUNT="3"), Options(intra_op_threads=3)),
        (parameters(INTER_OP_THREAD_COUNT="2"), Options(inter_op_threads=2)),
        (parameters(INTRA_OP_THREAD_COUNT="-3"), Options()),
        (parameters(SOMETHING_ELSE="x"), Options()),
    ],
)
def test_parameters_become_options(config: ModelConfig, options: Options) -> None:
    assert parse_options(config) == options


@pytest.mark.parametrize("key", ["ENABLE_NVFUSER", "MODULE_METHOD_NAME"])
def test_a_parameter_without_effect_is_said_to_have_none(key: str) -> None:
    (notice,) = parse_options(parameters(**{key: "true"})).notices
    assert key in notice


@pytest.mark.parametrize(
    "config",
    [
        parameters(INFERENCE_MODE="maybe"),
        parameters(INTRA_OP_THREAD_COUNT="all"),
        parameters(ENABLE_WEIGHT_SHARING="maybe"),
    ],
)
def test_bad_parameters_are_refused(config: ModelConfig) -> None:
    with pytest.raises(InvalidArgument, match="failed to convert"):
        parse_options(config)


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        (
            "PytorchStreamReader failed reading zip archive: failed finding central directory. "
            "This is an internal miniz error. If you are",
            "PytorchStreamReader failed reading zip archive: failed finding central directory",
        ),
        ("\n\nUnknown type name 'x':\nmore", "Unknown type name 'x':"),
        ("", "unknown error"),
    ],
)
def test_a_load_failure_is_its_first_clause(text: str, failure: str) -> None:
    assert load_failure(text) == failure


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("forward() is missing value\nmore"), "forward() is missing value\nmore"),
        (RuntimeError(""), "RuntimeError"),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"),
            "the model returned a string that is not valid UTF-8",
        ),
    ],
)
def test_an_execute_failure_keeps_the_text(error: Exception, text: str) -> None:
    assert execute_failure(error) == f"PyTorch execute failure: {text}"


def test_the_last_line_of_a_trace_comes_first() -> None:
    trace = (
        "The following operation failed in the TorchScript interpreter.\nTraceback\n"
        "RuntimeError: mat1\n"
    )
    lines = execute_failure(RuntimeError(trace)).splitlines()
    assert lines[0] == "PyTorch execute failure: RuntimeError: mat1"
    assert lines[1:] == trace.splitlines()


def takes(**kinds: Any) -> Signature:
    names = {
        "tensor": "Tensor",
        "dict": "Dict(str, Tensor)",
        "list": "str[]",
        "other": "Tensor?",
    }
    return Signature(
        tuple(Argument(name, kind, names.get(kind, kind)) for name, kind in kinds.items())
    )


def config_with(*inputs: ModelInput, **rest: Any) -> ModelConfig:
    return ModelConfig(name="m", input=inputs, **rest)


def given_input(name: str, data_type: str = "TYPE_FP32", **rest: Any) -> ModelInput:
    return ModelInput(name, data_type, dims=(1,), **rest)


TWO = takes(a="tensor", b="tensor")


@pytest.mark.parametrize(
    ("config", "signature", "error", "text"),
    [
        (
            config_with(),
            TWO,
            InvalidArgument,
            "unable to load model 'm', configuration expects 0 inputs, model provides 2",
        ),
        (
            config_with(given_input("a"), given_input("b"), given_input("c")),
            TWO,
            InvalidArgument,
            "configuration expects 3 inputs, model provides 2",
        ),
        (
            config_with(),
            takes(d="dict"),
            Internal,
            "model configuration must contain at least one input, none were specified.",
        ),
        (
            config_with(given_input("a")),
            takes(a="tensor", d="dict"),
            Internal,
            "Multiple inputs of kind DictType were detected. Only a single input of type "
            "Dict(str, Tensor) is supported.",
        ),
        (
            config_with(given_input("a")),
            takes(a="other"),
            Internal,
            "An input of type 'Tensor?' was detected in the model. Only a single input of type "
            "Dict(str, Tensor) or input(s) of type Tensor are supported.",
        ),
        (
            config_with(given_input("a")),
            takes(d="dict", a="tensor"),
            Internal,
            "An input of type 'Dict(str, Tensor)' was detected",
        ),
        (
            config_with(given_input("a", "TYPE_INVALID")),
            takes(a="tensor"),
            Internal,
            "unsupported datatype TYPE_INVALID for input 'a' for model 'm'",
        ),
        (
            config_with(ModelInput("a", "TYPE_STRING", dims=(2, 2))),
            takes(a="list"),
            Internal,
            "Triton only supports 1 dimensional List of String as input for 'a' for model 'm'",
        ),
        (
            config_with(given_input("a", "TYPE_STRING"), max_batch_size=2),
            takes(a="list"),
            Internal,
            "Triton only supports 1 dimensional List of String as input for 'a'",
        ),
        (
            config_with(given_input("A__0"), given_input("B__7")),
            TWO,
            InvalidArgument,
            "input 'B__7' refers to argument 7, but the model has 2 arguments",
        ),
        (
            config_with(given_input("A__1"), given_input("B__1")),
            TWO,
            InvalidArgument,
            "input 'B__1' refers to argument 1, which input 'A__1' already feeds",
        ),
        (
            config_with(given_input("n", "TYPE_FP32")),
            takes(n="int"),
            InvalidArgument,
            "configuration expects datatype TYPE_FP32 for input 'n', model provides TYPE_INT64",
        ),
        (
            config_with(given_input("n", "TYPE_INT64"), max_batch_size=4),
            takes(n="int"),
            InvalidArgument,
            "set max_batch_size to 0",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    config: ModelConfig, signature: Signature, error: type[MicrokernelError], text: str
) -> None:
    with pytest.raises(error) as caught:
        plan_inputs(config, signature)
    assert text in str(caught.value)


def test_a_scalar_with_a_default_may_be_left_out() -> None:
    signature = Signature(
        (Argument("x", "tensor", "Tensor"), Argument("n", "int", "int", 16), *TWO.arguments[1:])
    )
    plan = plan_inputs(config_with(given_input("b"), given_input("x")), signature)
    assert list(plan.lay_out({"x": "X", "b": "B"})) == ["X", 16, "B"]
    assert signature.arguments[0].default is REQUIRED
    with pytest.raises(InvalidArgument, match="argument 'b' of the model has no input"):
        plan_inputs(config_with(given_input("x"), given_input("n", "TYPE_INT32")), signature)


def test_a_string_input_of_a_batching_model_is_reshaped_to_no_dims() -> None:
    entry = given_input("a", "TYPE_STRING", reshape=Reshape(()))
    plan = plan_inputs(config_with(entry, max_batch_size=2), takes(a="list"))
    assert [feed.name for feed in plan.feeds] == ["a"]


def test_controls_batch_inputs_and_states_count_as_inputs() -> None:
    config = config_from_json(
        {
            "name": "m",
            "input": [{"name": "X__0", "data_type": "TYPE_FP32", "dims": [1]}],
            "batch_input": [{"target_name": ["N__1"]}],
            "sequence_batching": {
                "control_input": [{"name": "START__2", "control": [{"fp32_false_true": [0, 1]}]}],
                "state": [{"input_name": "S__3", "output_name": "T__1", "data_type": "TYPE_FP32"}],
            },
        }
    )
    plan = plan_inputs(config, takes(a="tensor", b="tensor", c="tensor", d="tensor"))
    assert [(feed.name, feed.position) for feed in plan.feeds] == [
        ("X__0", 0),
        ("N__1", 1),
        ("START__2", 2),
        ("S__3", 3),
    ]


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ((), "model configuration must contain at least one output, none were specified."),
        (
            (ModelOutput("y", "TYPE_INVALID", dims=(1,)),),
            "unsupported datatype TYPE_INVALID for output 'y' for model 'm'",
        ),
        (
            (ModelOutput("y", "TYPE_STRING", dims=(1, 1)),),
            "Triton only supports 1 dimensional List of String as output for 'y' for model 'm'",
        ),
    ],
)
def test_outputs_that_cannot_be_read_are_refused(
    outputs: tuple[ModelOutput, ...], text: str
) -> None:
    with pytest.raises(Internal) as caught:
        plan_outputs(ModelConfig(name="m", output=outputs))
    assert str(caught.value) == text


def test_a_skeleton_marks_what_a_person_has_to_fill_in() -> None:
    signature = Signature(takes(x="tensor", sr="int", t="list").arguments, returned=2)
    text = skeleton(ModelConfig(name="m", backend="pytorch", max_batch_size=2), signature)
    assert text == (
        'name: "m"\n'
        'backend: "pytorch"\n'
        "max_batch_size: 2\n"
        "input {\n"
        '  name: "x"\n'
        "  data_type: TYPE_FP32  # fill in: its type\n"
        "  dims: [ ]  # fill in: its shape without the batch dimension, -1 where a size varies\n"
        "}\n"
        "input {\n"
        '  name: "sr"\n'
        "  data_type: TYPE_INT64\n"
        "  dims: [ 1 ]\n"
        "}\n"
        "input {\n"
        '  name: "t"\n'
        "  data_type: TYPE_STRING\n"
        "  dims: [ 1 ]\n"
        "  reshape { }\n"
        "}\n"
        "output {\n"
        '  name: "OUTPUT__0"\n'
        "  data_type: TYPE_FP32  # fill in: its type\n"
        "  dims: [ ]  # fill in: its shape without the batch dimension, -1 where a size varies\n"
        "}\n"
        "output {\n"
        '  name: "OUTPUT__1"\n'
        "  data_type: TYPE_FP32  # fill in: its type\n"
        "  dims: [ ]  # fill in: its shape without the batch dimension, -1 where a size varies\n"
        "}\n"
    )


def test_a_skeleton_keeps_what_is_listed_and_asks_for_keys() -> None:
    listed = config_with(ModelInput("k", "TYPE_FP32", dims=(3,)))
    signature = Signature(takes(d="dict").arguments, returns_dictionary=True)
    text = skeleton(listed, signature)
    assert 'name: "k"\n  data_type: TYPE_FP32\n  dims: [ 3 ]\n' in text
    assert 'output {\n  name: "KEY"  # fill in: a key of the result; one entry per key\n' in text
    assert "# fill in: a key of the dictionary" in skeleton(ModelConfig(name="m"), signature)
