"""Model files that describe themselves: what is read, what is refused, what wins."""

import json
import logging
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel import (
    DynamicBatching,
    InvalidArgument,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelParameter,
    Reshape,
    config_to_json,
    config_to_text,
)
from microkernel_torchscript.describing import (
    EXTRA,
    Description,
    described_labels,
    read_description,
    write_description,
)
from microkernel_torchscript.merging import merged, with_description

TENSORS = ModelConfig(
    max_batch_size=8,
    input=(ModelInput("x", "TYPE_FP32", dims=(3, -1)),),
    output=(ModelOutput("y", "TYPE_INT64", dims=(1,), reshape=Reshape(())),),
    dynamic_batching=DynamicBatching(),
)
X = {"name": "x", "data_type": "TYPE_FP32", "dims": [4]}
WHOLE = Description(TENSORS, {"y": ("zoë\n",)})


def archive(path: Path, **extras: str | bytes) -> Path:
    """A file as torch lays it out, with extra files by name."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data.pkl", b"weights")
        for name, content in extras.items():
            file.writestr(f"model/extra/{name.replace('_', '.')}", content)
    return path


def ours(**fields: Any) -> str:
    return json.dumps({"microkernel": 1, **fields})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "model.pt")
    assert read_description(path) is None
    write_description(path, WHOLE)
    assert read_description(path) == WHOLE
    with zipfile.ZipFile(path) as file:
        assert file.read("model/data.pkl") == b"weights"
        assert f"model/extra/{EXTRA}" in file.namelist()


def test_a_second_description_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "model.pt")
    write_description(path, WHOLE)
    with pytest.raises(InvalidArgument, match=r"model\.pt' has a description already"):
        write_description(path, WHOLE)


def test_only_what_can_be_completed_is_written(tmp_path: Path) -> None:
    path = archive(tmp_path / "model.pt")
    config = replace(TENSORS, name="m", parameters={"A": ModelParameter("b")})
    write_description(path, Description(config))
    assert read_description(path) == Description(TENSORS)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06" + bytes(18)])
def test_a_description_needs_an_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert read_description(path) is None
    path.write_bytes(b"PK\x05\x06" + bytes(18))
    with pytest.raises(InvalidArgument, match="cannot take a description"):
        write_description(path, WHOLE)
    assert read_description(tmp_path / "none.pt") is None
    assert read_description(tmp_path) is None


def test_triton_s_own_forms_are_read(tmp_path: Path) -> None:
    bare = Description(replace(TENSORS, name="m"))
    text = archive(tmp_path / "text.pt", config_pbtxt=config_to_text(bare.config))
    assert read_description(text) == bare
    as_json = archive(tmp_path / "json.pt", config_json=json.dumps(config_to_json(bare.config)))
    assert read_description(as_json) == bare
    both = archive(tmp_path / "both.pt", config_json="{}", microkernel_json=ours())
    assert read_description(both) == Description(ModelConfig())


def test_fields_without_effect_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = archive(
        tmp_path / "model.pt",
        config_pbtxt="name: 'm' backend: 'pytorch' instance_group { count: 2 }",
    )
    with caplog.at_level(logging.WARNING):
        read_description(path)
    assert caplog.messages == [
        f"'{path}': extra file 'config.pbtxt': no effect inside a file: instance_group"
    ]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "is not valid JSON: "),
        ("[1]", "must be a JSON object"),
        ("[" * 100_000, "is not valid JSON: "),
        ("{}", "has the form None, this version reads form 1"),
        ('{"microkernel": 2}', "has the form 2, this version reads form 1"),
        (ours(configs={}), "has unknown fields: configs"),
        (ours(config=3), ": 'config' must be an object"),
        (ours(config={"inputs": []}), ": unknown field 'inputs' in model configuration"),
        (ours(config={"max_batch_size": "x"}), ": 'max_batch_size' must be of type int"),
        (ours(labels=[]), ": 'labels' must give a list of texts for each output"),
        (ours(labels={"y": "cat"}), ": 'labels' must give a list of texts for each output"),
        (ours(labels={"y": [1]}), ": 'labels' must give a list of texts for each output"),
        (ours(config={"max_batch_size": -4}), ": max_batch_size is -4, less than 0"),
        (ours(config={"input": [X, X]}), "lists the input 'x' twice"),
        (ours(config={"input": [X | {"dims": [0, -7]}]}), ": the dims of input 'x' are [0, -7]"),
        (ours(config={"output": [X]}, labels={"y": []}), "has labels for 'y', which is no output"),
        (ours(config={"output": [X]}, labels={"x": ["a"]}), "has 1 labels for the output 'x', whi"),
        (b"\xff{}", "is not UTF-8 text: byte 0"),
        (" " * ((16 << 20) + 1), "is larger than 16 MiB"),
    ],
    ids=range(19),
)
def test_a_malformed_description_names_file_and_member(
    tmp_path: Path, content: str | bytes, text: str
) -> None:
    path = archive(tmp_path / "model.pt", microkernel_json=content)
    with pytest.raises(InvalidArgument) as caught:
        read_description(path)
    assert str(caught.value).startswith(
        f"'{path}': extra file 'microkernel.json'{' ' * (text[0] != ':')}{text}"
    )


@pytest.mark.parametrize("extra", ["config_pbtxt", "config_json"])
def test_a_malformed_configuration_names_file_and_member(tmp_path: Path, extra: str) -> None:
    path = archive(tmp_path / "model.pt", **{extra: "maks_batch_size: 3"})
    with pytest.raises(InvalidArgument, match=r"model\.pt': extra file 'config\.(pbtxt|json)'"):
        read_description(path)


def test_a_damaged_member_is_an_error(tmp_path: Path) -> None:
    path = archive(tmp_path / "model.pt", microkernel_json=ours())
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"microkernel": 1', b'"microkernel": 2'))
    with pytest.raises(InvalidArgument, match="cannot be read: Bad CRC-32"):
        read_description(path)


def test_a_damaged_compressed_member_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"model/extra/{EXTRA}", ours(labels={"y": ["label"] * 50}))
        place = file.infolist()[0].header_offset + 30 + len(f"model/extra/{EXTRA}")
    content = bytearray(path.read_bytes())
    content[place] ^= 0x06  # the kind of the first block
    path.write_bytes(content)
    with pytest.raises(InvalidArgument, match=f"extra file '{EXTRA}' cannot be read: "):
        read_description(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("config"), inner),
)


@given(config=JSON, labels=JSON)
def test_any_json_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, config: Any, labels: Any
) -> None:
    path = archive(
        tmp_path_factory.mktemp("any") / "model.pt",
        microkernel_json=ours(config=config, labels=labels),
    )
    found: Description | InvalidArgument | None
    try:
        found = read_description(path)
    except InvalidArgument as error:
        found = error
    assert isinstance(found, Description) or str(path) in str(found)


def listing(size: int = 0, **fields: Any) -> ModelConfig:
    return ModelConfig(name="m", max_batch_size=size, **fields)


def test_what_is_not_written_is_taken_from_the_file() -> None:
    assert merged(listing(), WHOLE, "f") == replace(TENSORS, name="m")


@pytest.mark.parametrize(
    ("size", "told", "expected"),
    [
        (16, TENSORS, replace(TENSORS, max_batch_size=16)),
        (
            4,
            ModelConfig(
                input=(ModelInput("x", "TYPE_FP32", dims=(-1, 3)),),
                output=(ModelOutput("y", "TYPE_INT64", dims=(-1,)),),
            ),
            ModelConfig(
                max_batch_size=4,
                input=(ModelInput("x", "TYPE_FP32", dims=(3,)),),
                output=(ModelOutput("y", "TYPE_INT64", dims=(1,), reshape=Reshape(())),),
            ),
        ),
    ],
)
def test_a_written_batch_size_decides(size: int, told: ModelConfig, expected: ModelConfig) -> None:
    assert merged(listing(size), Description(told), "f") == replace(expected, name="m")


def test_tensors_that_are_written_without_a_batch_size_do_not_batch() -> None:
    written = listing(input=(ModelInput("x", "TYPE_FP32", dims=(2, 3, 5)),))
    filled = merged(written, WHOLE, "f")
    assert filled.input == written.input
    assert filled.output == (ModelOutput("y", "TYPE_INT64", dims=(-1,)),)
    assert (filled.max_batch_size, filled.dynamic_batching) == (0, None)


def test_a_scheduling_choice_of_one_s_own_stays() -> None:
    own = DynamicBatching(max_queue_delay_microseconds=7)
    assert merged(listing(8, dynamic_batching=own), WHOLE, "f").dynamic_batching == own


def test_other_names_are_one_s_own_affair() -> None:
    written = listing(8, input=(ModelInput("renamed", "TYPE_FP32", dims=(7,)),))
    filled = merged(written, WHOLE, "f")
    assert (filled.input, filled.output) == (written.input, TENSORS.output)


@pytest.mark.parametrize(
    ("config", "told", "text"),
    [
        (
            listing(8, input=(ModelInput("x", "TYPE_FP16", dims=(3, -1)),)),
            TENSORS,
            "model 'm', configuration expects datatype TYPE_FP16 for input 'x', f describes it as "
            "TYPE_FP32",
        ),
        (
            listing(8, output=(ModelOutput("y", "TYPE_INT64", dims=(2,)),)),
            TENSORS,
            "model 'm', configuration expects shape [2] for output 'y', f describes it as []",
        ),
        (
            listing(input=(ModelInput("x", "TYPE_FP32", dims=(1, 4, 1)),)),
            TENSORS,
            "model 'm', configuration expects shape [1, 4, 1] for input 'x', f describes it as "
            "[-1, 3, -1]",
        ),
        (
            listing(8),
            ModelConfig(input=(ModelInput("x", "TYPE_FP32", dims=(4, -1)),)),
            "autofill failed for model 'm': model does not support batching while non-zero "
            "max_batch_size is specified",
        ),
    ],
)
def test_contradictions_are_errors(config: ModelConfig, told: ModelConfig, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        merged(config, Description(told), "f")
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (ModelConfig(), "model.pt"),
        (ModelConfig(default_model_filename="net.pt"), "net.pt"),
        (ModelConfig(platform="torch_aoti"), "model.pt2"),
        (ModelConfig(runtime="model.py", default_model_filename="net.pt"), "net.pt"),
    ],
)
def test_the_file_that_is_served_describes_the_model(
    tmp_path: Path, config: ModelConfig, name: str
) -> None:
    write_description(archive(tmp_path / name), WHOLE)
    assert described_labels(config, tmp_path) == WHOLE.labels
    assert with_description(config, tmp_path).input == TENSORS.input


def test_weights_of_a_module_describe_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.py").touch()
    write_description(archive(tmp_path / "model.pt"), WHOLE)
    config = ModelConfig(runtime="model.py")
    assert described_labels(config, tmp_path) == {}
    assert with_description(config, tmp_path) == config
