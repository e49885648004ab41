"""Python modules: how they are called, what they may return, and their parameters."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

from module_files import X, Y, forward, load, module_config, with_parameters, write_module

from microkernel import Batch, Internal, InvalidArgument

pytestmark = pytest.mark.usefixtures("uncompiled")

MakeBatch = Callable[..., Batch]
OutputOf = Callable[..., Any]
Serve = Callable[..., Any]

ROW = np.array([1, 2, 3, 4], dtype=np.float32)


# Calls

TWO = {"b": ("FP32", 4), "a": ("FP32", 4)}


def test_inputs_go_by_order_and_never_by_name(ask: Callable[..., Any]) -> None:
    [found] = ask(forward("return a - b", "a, b"), module_config(TWO), {"b": ROW, "a": ROW * 3})
    assert found.tolist() == (-2 * ROW).tolist()


def test_numbers_in_names_of_inputs_mean_nothing(ask: Callable[..., Any]) -> None:
    inputs = {"IN__1": ("FP32", 4), "IN__0": ("FP32", 4)}
    [found] = ask(
        forward("return a - b", "a, b"), module_config(inputs), {"IN__1": ROW * 3, "IN__0": ROW}
    )
    assert found.tolist() == (2 * ROW).tolist()


@pytest.mark.parametrize(
    "body",
    [
        "return x * 2",
        "return x * 2, x",
        "return [x * 2, x]",
        "return {'other': x, 'y': x * 2}",
        "class R(NamedTuple):\n    other: torch.Tensor\n    y: torch.Tensor\nreturn R(x, x * 2)",
        "return (x * 2,), {'more': x}",
        "return (x * 2).t().t()",
    ],
)
def test_results_go_by_position_and_further_ones_are_left(
    ask: Callable[..., Any], body: str
) -> None:
    rows = np.stack([ROW, ROW])
    first, second = ask(forward(body), module_config(max_batch_size=8), {"x": rows}, {"x": rows})
    assert first.tolist() == second.tolist() == (rows * 2).tolist()


def test_numbers_in_names_of_outputs_mean_nothing(
    files: Path, serve_module: Serve, make_batch: MakeBatch, output_of: OutputOf
) -> None:
    outputs = {"y__1": ("FP32", 4), "y__0": ("FP32", 4)}
    served = serve_module(
        module_config(X, outputs), write_module(files, forward("return x, x + 1"))
    )
    [outcome] = served.execute(make_batch([{"x": ROW}], batching=False))
    assert output_of(outcome, "y__1").tolist() == ROW.tolist()
    assert output_of(outcome, "y__0").tolist() == (ROW + 1).tolist()


@pytest.mark.parametrize(
    ("arguments", "inputs", "fault"),
    [
        ("a", TWO, "expects 2 inputs, model provides 1: input 'a' has no argument"),
        ("a, b, c", TWO, "expects 2 inputs, model provides 3: argument 'c' has no input"),
        ("a, b, c=None", TWO, ""),
        ("*all", TWO, ""),
        ("a, *rest", TWO, ""),
        ("a, b, **more", TWO, ""),
        ("", X, "expects 1 inputs, model provides 0"),
        ("a, b: Optional[torch.Tensor]", X, "argument 'b' has no input"),
    ],
)
def test_the_number_of_inputs_is_checked_at_load(
    files: Path, arguments: str, inputs: Any, fault: str
) -> None:
    write_module(files, forward("return 0", arguments))
    if not fault:
        load(files, inputs=inputs).unload()
        return
    with pytest.raises(InvalidArgument, match=fault):
        load(files, inputs=inputs)


@pytest.mark.parametrize(
    ("inputs", "outputs", "text"),
    [
        ({}, Y, "must contain at least one input"),
        (X, {}, "must contain at least one output"),
        ({"x": ("STRING", 2, 2)}, Y, "1 dimensional List of String as input for 'x'"),
    ],
)
def test_what_cannot_be_served(files: Path, inputs: Any, outputs: Any, text: str) -> None:
    write_module(files, forward("return x"))
    with pytest.raises(Internal, match=text):
        load(files, inputs=inputs, outputs=outputs)


def test_numbers_and_strings_by_annotation(ask: Callable[..., Any]) -> None:
    source = forward(
        """
        assert type(n) is int and type(f) is float and type(on) is bool and type(words[0]) is str
        return torch.tensor([n + f if on else -1.0, float(len(words)), float(len(words[1]))])
        """,
        "n: int, f: 'float', on: Optional[bool], words",
    )
    inputs = {
        "n": ("INT64", 1), "f": ("FP32", 1), "on": ("BOOL", 1), "words": ("STRING", -1),
    }  # fmt: skip
    values = {
        "n": np.array([2]),
        "f": np.array([0.5], np.float32),
        "on": np.array([True]),
        "words": np.array(["a", "äöü"], dtype=object),
    }
    [found] = ask(source, module_config(inputs, {"y": ("FP32", 3)}), values)
    assert found.tolist() == [2.5, 2, 3]


def test_a_number_that_is_annotated_is_a_tensor_where_the_input_may_hold_more(
    ask: Callable[..., Any],
) -> None:
    [found] = ask(forward("return x + 1", "x: float"), module_config(), {"x": ROW})
    assert found.tolist() == (ROW + 1).tolist()


STRINGS = {"x": ("STRING", 1)}


def strings(*words: bytes) -> dict[str, Any]:
    return {"x": np.array([[w] for w in words], dtype=object)}


@pytest.fixture
def string_model(files: Path, serve_module: Serve) -> Callable[..., Any]:
    def make(annotation: str) -> Any:
        from dataclasses import replace

        from microkernel import Reshape

        config = module_config(STRINGS, {"y": ("STRING", 1)}, max_batch_size=8)
        flat = Reshape(())
        config = replace(
            config,
            input=(replace(config.input[0], reshape=flat),),
            output=(replace(config.output[0], reshape=flat),),
        )
        body = "return [w.hex() if isinstance(w, bytes) else w + '!' for w in x]"
        return serve_module(config, write_module(files, forward(body, annotation)))

    return make


def flat(request: dict[str, Any]) -> dict[str, Any]:
    return {name: array.reshape(-1) for name, array in request.items()}


def test_a_request_with_broken_text_fails_alone(
    string_model: Callable[..., Any], make_batch: MakeBatch, output_of: OutputOf
) -> None:
    served = string_model("x: list[str]")
    requests = [flat(strings(b"a", b"b")), flat(strings(b"\xff", b"c")), flat(strings(b"d"))]
    first, broken, last = served.execute(make_batch(requests))
    assert output_of(first, "y").tolist() == [b"a!", b"b!"]
    assert isinstance(broken, InvalidArgument)
    assert "input 'x' holds a string that is not valid UTF-8" in str(broken)
    assert output_of(last, "y").tolist() == [b"d!"]


def test_bytes_go_in_as_they_are_where_asked_for(
    string_model: Callable[..., Any], make_batch: MakeBatch, output_of: OutputOf
) -> None:
    served = string_model("x: list[bytes]")
    [outcome] = served.execute(make_batch([flat(strings(b"\xff"))]))
    assert output_of(outcome, "y").tolist() == [b"ff"]


def test_one_dictionary_takes_all_inputs(ask: Callable[..., Any]) -> None:
    source = forward("return d['a'] - d['b']", "d: dict[str, torch.Tensor]")
    [found] = ask(source, module_config(TWO), {"b": ROW, "a": ROW * 3})
    assert found.tolist() == (2 * ROW).tolist()


def test_inference_mode_whatever_the_parameter_says(ask: Callable[..., Any]) -> None:
    body = "return torch.tensor([x.is_inference(), torch.is_inference_mode_enabled()]).float()"
    config = module_config(X, {"y": ("FP32", 2)}, INFERENCE_MODE="false")
    assert ask(forward(body), config, {"x": ROW})[0].tolist() == [1, 1]


# Faults of a running model

UNSPEAKABLE = """
class Unspeakable(Exception):
    def __str__(self):
        raise ValueError("no words")

"""


@pytest.mark.parametrize(
    ("body", "error", "text"),
    [
        ("raise ValueError('boom')", Internal, r"^PyTorch execute failure: ValueError: boom \("),
        (
            "raise RuntimeError('boom')",
            Internal,
            r"^PyTorch execute failure: boom \(model.py, line",
        ),
        ("assert False, 'never'", Internal, r"AssertionError: never \(model.py, line \d+\)$"),
        ("return {}['label']", Internal, r"KeyError: 'label' \(model.py, line \d+\)$"),
        ("return x @ torch.ones(3)", Internal, r"size.* \(model.py, line \d+\)$"),
        ("raise SystemExit(4)", Internal, r"SystemExit: 4 \(model.py"),
        ("raise Unspeakable()", Internal, r"^PyTorch execute failure: Unspeakable \(model.py"),
        ("return None", Internal, "output must be of type Tensor"),
        ("return 1.0", Internal, "output must be of type Tensor"),
        ("return [1]", Internal, "received List"),
        ("return x.sum()", InvalidArgument, "output 'y' is a scalar"),
        ("return x.double()", InvalidArgument, "configuration expects datatype TYPE_FP32"),
        ("return ()", InvalidArgument, "refers to an output index which doesn't exist"),
        ("return {'z': x}", InvalidArgument, "refers to a key which doesn't exist"),
    ],
)
def test_a_forward_that_fails_or_gives_something_else(
    files: Path,
    serve_module: Serve,
    make_batch: MakeBatch,
    body: str,
    error: type[Exception],
    text: str,
) -> None:
    source = UNSPEAKABLE + forward(body)
    served = serve_module(module_config(), write_module(files, source))
    with pytest.raises(error, match=text):
        served.execute(make_batch([{"x": ROW}], batching=False))


def test_other_types_on_the_second_call_fail_that_call_only(
    files: Path, serve_module: Serve, make_batch: MakeBatch, output_of: OutputOf
) -> None:
    source = """
    class Net(nn.Module):
        def forward(self, x):
            return "odd" if x[0] > 1 else x
    """
    served = serve_module(module_config(), write_module(files, source))
    for value, fails in ((1, False), (2, True), (0, False)):
        batch = make_batch([{"x": ROW * 0 + value}], batching=False)
        if fails:
            with pytest.raises(Internal, match="output must be of type Tensor"):
                served.execute(batch)
        else:
            [outcome] = served.execute(batch)
            assert output_of(outcome, "y").tolist() == [value] * 4


def test_a_model_that_writes_to_its_input_changes_no_other_request(
    files: Path, serve_module: Serve, make_batch: MakeBatch, output_of: OutputOf
) -> None:
    served = serve_module(
        module_config(max_batch_size=4), write_module(files, forward("return x.add_(1)"))
    )
    for _ in range(2):
        outcomes = served.execute(make_batch([{"x": ROW[None]}, {"x": ROW[None] * 2}]))
        assert [output_of(o, "y").tolist() for o in outcomes] == [
            [(ROW + 1).tolist()],
            [(ROW * 2 + 1).tolist()],
        ]


# Parameters


@pytest.mark.parametrize(
    ("text", "count"),
    [("1", 1), ("2", 2), (" 3 ", 3)] + [(t, 0) for t in ("", "0", "-1", "two", "1.5", "9999999")],
)
@pytest.mark.parametrize("key", ["NUM_THREADS", "NUM_INTEROP_THREADS"])
def test_numbers_of_threads(key: str, text: str, count: int) -> None:
    from microkernel_torchscript.module.options import module_options

    config = with_parameters(module_config(), **{key: text})
    if not count:
        with pytest.raises(InvalidArgument, match=f"parameter {key} must be a whole number"):
            module_options(config)
        return
    options = module_options(config)
    found = {
        "NUM_THREADS": options.intra_op_threads,
        "NUM_INTEROP_THREADS": options.inter_op_threads,
    }
    assert found[key] == count
    assert sum(found.values()) == count + 1


def test_threads_hold_for_the_instance_and_the_log_says_so(
    ask: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    body = "return torch.tensor([float(torch.get_num_threads())])"
    with caplog.at_level(logging.DEBUG):
        [found] = ask(forward(body), module_config(NUM_THREADS="2"), {"x": ROW})
    assert found.tolist() == [2]
    assert (
        "Torch parallelism settings for 'm': NUM_THREADS = 2; NUM_INTEROP_THREADS = 1; "
        in caplog.messages
    )
    assert "'torch.compile' optional parameter(s) for 'm': {}" in caplog.messages


def test_parameters_of_the_other_runtime_are_ignored_and_named(
    files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_module(files, forward("return x"))
    load(
        files, DISABLE_CUDNN="perhaps", INTRA_OP_THREAD_COUNT="x", MODULE_METHOD_NAME="run"
    ).unload()
    assert "parameter DISABLE_CUDNN has no effect with the runtime 'model.py'" in caplog.text
    assert (
        "INTRA_OP_THREAD_COUNT has no effect with the runtime 'model.py': NUM_THREADS"
        in caplog.text
    )


SEQUENCE = """
sequence_batching {{
  control_input {{
    name: "{start}" control {{ kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] }}
  }}
  state {{ input_name: "{read}" output_name: "{wrote}" data_type: TYPE_FP32 dims: [ 1 ] }}
}}
"""


@pytest.mark.parametrize(
    ("start", "read", "wrote", "places", "results"),
    [
        ("START", "READ", "WROTE", {"x": 0, "START": 1, "READ": 2}, {"y": 0, "WROTE": 1}),
        ("START__2", "READ__1", "WROTE__3", {"x": 0, "START__2": 2, "READ__1": 1},
         {"y": 0, "WROTE__3": 3}),
        ("START__2", "READ", "WROTE", {"x": 0, "START__2": 2, "READ": 1}, {"y": 0, "WROTE": 1}),
    ],
)  # fmt: skip
def test_where_controls_and_states_go(
    start: str, read: str, wrote: str, places: dict[str, int], results: dict[str, int]
) -> None:
    from dataclasses import replace

    from microkernel_torchscript.module.inputs import plan_module_inputs
    from microkernel_torchscript.module.source import plan_module_outputs

    config = module_config()
    batching = parsed_sequence(SEQUENCE.format(start=start, read=read, wrote=wrote))
    config = replace(config, sequence_batching=batching)
    plan = plan_module_inputs(config, None)
    assert {feed.name: feed.position for feed in plan.feeds} == places
    outputs = plan_module_outputs(config)
    assert {wanted.name: wanted.position for wanted in outputs.wanted} == results


def test_two_inputs_for_one_argument() -> None:
    from dataclasses import replace

    from microkernel_torchscript.module.inputs import plan_module_inputs

    batching = parsed_sequence(SEQUENCE.format(start="START__0", read="R", wrote="W"))
    config = replace(module_config(), sequence_batching=batching)
    with pytest.raises(
        InvalidArgument, match="input 'START__0' refers to argument 0, which another"
    ):
        plan_module_inputs(config, None)


def parsed_sequence(text: str) -> Any:
    from microkernel.config.parse import parse_text

    return parse_text(text, "config.pbtxt").sequence_batching
