"""The words of `microkernel export`: what they mean, and what is wrong with the others."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel import BY_CONFIG_NAME, InvalidArgument
from microkernel_torchscript.exporting.specs import (
    InputSpec,
    Wish,
    arguments_of,
    format_of,
    input_spec,
    labels_of,
)

SPEC = InputSpec("x", "TYPE_FP32", (-1, 4))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x:fp32:-1,4", SPEC),
        ("x:FP32:-1,4", SPEC),
        ("x:TYPE_FP32:-1,4", SPEC),
        ("x:float32:-1,4", SPEC),
        ("x: float32 :-1, 4".replace(" ", ""), SPEC),
        ("words:string:-1", InputSpec("words", "TYPE_STRING", (-1,))),
        ("n:long:1", InputSpec("n", "TYPE_INT64", (1,))),
        ("a:b:bool:2", InputSpec("a:b", "TYPE_BOOL", (2,))),
        ("h:half:1", InputSpec("h", "TYPE_FP16", (1,))),
        ("h:bfloat16:1", InputSpec("h", "TYPE_BF16", (1,))),
    ],
)
def test_inputs(text: str, expected: InputSpec) -> None:
    assert input_spec(text) == expected


@given(
    st.from_regex(r"[a-zA-Z_:]\w*", fullmatch=True),
    st.sampled_from(sorted(BY_CONFIG_NAME)),
    st.lists(st.just(-1) | st.integers(1, 2**40), min_size=1),
)
def test_every_input_that_can_be_written_is_read(
    name: str, data_type: str, shape: list[int]
) -> None:
    text = f"{name}:{data_type.removeprefix('TYPE_').lower()}:{','.join(map(str, shape))}"
    assert input_spec(text) == InputSpec(name, data_type, tuple(shape))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x", "must have the form NAME:TYPE:DIMS, as in image:fp32:-1,3,224,224"),
        ("x:fp32", "must have the form"),
        ("x:fp32:", "must have the form"),
        (":fp32:1", "must have the form"),
        ("x::1", "must have the form"),
        ("x:fp33:1", "'fp33' is no type; there are bool, uint8, "),
        ("x:fp32:0", "'0' is no shape; write sizes with commas between them"),
        ("x:fp32:-2,3", "'-2,3' is no shape"),
        ("x:fp32:1,,2", "'1,,2' is no shape"),
        ("x:fp32:a", "'a' is no shape"),
    ],
)
def test_no_inputs(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        input_spec(text)
    assert str(caught.value).startswith(f"--input '{text}'")
    assert reason in str(caught.value)


@given(st.text())
def test_any_text_is_an_input_or_refused(text: str) -> None:
    found: InputSpec | InvalidArgument
    try:
        found = input_spec(text)
    except InvalidArgument as error:
        found = error
    assert isinstance(found, InvalidArgument) or found.shape


@pytest.mark.parametrize(
    ("path", "asked", "expected"),
    [
        ("m/model.pt", None, "script"),
        ("m/model.pt2", None, "export"),
        ("model.pt", "trace", "trace"),
        ("model.pt2", "aoti", "aoti"),
    ],
)
def test_formats(path: str, asked: Any, expected: str) -> None:
    assert format_of(Path(path), asked) == expected


@pytest.mark.parametrize(
    ("path", "asked", "reason"),
    [
        ("model.onnx", None, "'model.onnx' must end in .pt, for TorchScript, or in .pt2"),
        ("model", "script", "'model' must end in .pt"),
        ("model.pt", "aoti", "a file of the format aoti must end in .pt2, not 'model.pt'"),
        ("model.pt2", "trace", "a file of the format trace must end in .pt, not 'model.pt2'"),
    ],
)
def test_formats_that_do_not_fit(path: str, asked: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        format_of(Path(path), asked)
    assert str(caught.value).startswith(reason)


def test_arguments_are_literals_or_texts() -> None:
    texts = ["n=3", "name=net", "on=True", "sizes=[1, 2]", "rate=1e-3", "text='3'", "odd=a=b", "e="]
    assert arguments_of(texts) == {
        "n": 3,
        "name": "net",
        "on": True,
        "sizes": [1, 2],
        "rate": 1e-3,
        "text": "3",
        "odd": "a=b",
        "e": "",
    }


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["n"], "--arg 'n' must have the form NAME=VALUE"),
        (["1n=3"], "--arg '1n=3' must have the form NAME=VALUE"),
        (["n=1", "n=2"], "--arg 'n' is given twice"),
    ],
)
def test_no_arguments(texts: list[str], reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        arguments_of(texts)
    assert str(caught.value) == reason


def test_labels_are_the_lines_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("cat\r\n\nzoë\u2028x\n".encode())
    assert labels_of([f"y={tmp_path / 'a.txt'}"]) == {"y": ("cat", "", "zoë\u2028x")}


def test_no_labels(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xff\n")
    none = tmp_path / "none"
    for texts, reason in (
        ([str(file)], f"--label '{file}' must have the form OUTPUT=FILE"),
        ([f"={file}"], f"--label '={file}' must have the form OUTPUT=FILE"),
        ([f"y={file}"], f"--label '{file}' is not UTF-8 text"),
        ([f"y={none}"], f"--label '{none}' cannot be read: No such file or directory"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            labels_of(texts)
        assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"inputs": (SPEC, SPEC)}, "two inputs are called 'x'"),
        ({"inputs": (SPEC,), "output_names": ("y", "y")}, "two outputs are called 'y'"),
        (
            {"inputs": (InputSpec("x", "TYPE_FP32", (4, -1)),), "max_batch_size": 1},
            "input 'x' has the shape [4, -1], but with --max-batch-size the first dimension of "
            "every input is the batch's: write -1",
        ),
    ],
)
def test_wishes_that_contradict_themselves(wish: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Wish("script", **wish)
    assert str(caught.value) == reason
