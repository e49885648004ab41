"""The requests of warm-up: what they are made of, and what is wrong with others."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from microkernel import InvalidArgument, ModelConfig
from microkernel.config.model import (
    Control,
    ControlInput,
    ModelInput,
    ModelWarmup,
    Reshape,
    SequenceBatching,
    State,
    WarmupInput,
)
from microkernel.models.warmup import Sample, read_samples
from microkernel.tensor import DATA_TYPES, Tensor

Read = Callable[..., list[Sample]]


def model(
    *inputs: ModelInput, batch: int = 4, sequences: SequenceBatching | None = None
) -> ModelConfig:
    return ModelConfig(
        name="m",
        max_batch_size=batch,
        input=inputs or (ModelInput("X", "TYPE_INT32", dims=(-1,)),),
        sequence_batching=sequences,
    )


def given(
    kind: str = "TYPE_INT32", dims: tuple[int, ...] = (2,), **choice: bool | str
) -> WarmupInput:
    return WarmupInput(kind, dims, **(choice or {"zero_data": True}))  # type: ignore[arg-type]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """`read(config, X=given(...))`: the samples of a model with one sample of those inputs."""

    def samples(
        config: ModelConfig, size: int = 1, count: int = 0, **inputs: WarmupInput
    ) -> list[Sample]:
        warmup = ModelWarmup("s", size, inputs, count)
        made = ModelConfig(
            name=config.name,
            max_batch_size=config.max_batch_size,
            input=config.input,
            sequence_batching=config.sequence_batching,
            model_warmup=(warmup,),
        )
        return list(read_samples(made, tmp_path, 3))

    return samples


def tensors(samples: list[Sample]) -> tuple[Tensor, ...]:
    return samples[0].requests[0].inputs


def write(folder: Path, name: str, data: bytes) -> None:
    (folder / "warmup").mkdir(exist_ok=True)
    (folder / "warmup" / name).write_bytes(data)


def test_a_sample_is_so_many_requests_of_size_one(read: Read) -> None:
    (sample,) = read(model(), 3, 2, X=given())
    assert (sample.name, len(sample.requests), sample.count) == ("s", 3, 2)
    request = sample.requests[0]
    assert (request.model_name, request.version) == ("m", 3)
    assert request.inputs[0].shape == (1, 2)


@pytest.mark.parametrize(("count", "times"), [(0, 1), (1, 1), (5, 5)])
def test_a_sample_runs_at_least_once(read: Read, count: int, times: int) -> None:
    assert read(model(), count=count, X=given())[0].count == times


def test_a_sample_of_size_zero_is_passed_over(read: Read) -> None:
    assert read(model(), 0, X=given(dims=(-1,))) == []


@pytest.mark.parametrize(
    ("batch", "entry", "dims", "shape"),
    [
        (4, ModelInput("X", "TYPE_INT32", dims=(-1,)), (2,), (1, 2)),
        (0, ModelInput("X", "TYPE_INT32", dims=(-1,)), (2,), (2,)),
        (4, ModelInput("X", "TYPE_INT32", dims=(-1,)), (0,), (1, 0)),
        (4, ModelInput("X", "TYPE_INT32", dims=(4,), reshape=Reshape((2, 2))), (4,), (1, 2, 2)),
    ],
)
def test_the_shape_is_the_backends(
    read: Read, batch: int, entry: ModelInput, dims: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    (tensor,) = tensors(read(model(entry, batch=batch), X=given(dims=dims)))
    assert (tensor.shape, len(tensor.data)) == (shape, 4 * int(np.prod(shape)))


def test_inputs_come_in_the_order_of_the_configuration(read: Read) -> None:
    one, two = ModelInput("A", "TYPE_INT32", dims=(2,)), ModelInput("B", "TYPE_FP32", dims=(2,))
    found = tensors(read(model(one, two), B=given("TYPE_FP32"), A=given()))
    assert [(t.name, t.datatype.name) for t in found] == [("A", "INT32"), ("B", "FP32")]


@pytest.mark.parametrize("name", DATA_TYPES)
@pytest.mark.parametrize("choice", ["zero_data", "random_data"])
@pytest.mark.parametrize("value", [True, False])
def test_data_of_every_type(read: Read, name: str, choice: str, value: bool) -> None:
    datatype = DATA_TYPES[name]
    entry = ModelInput("X", datatype.config_name, dims=(500,))
    wanted = given(datatype.config_name, (500,), **{choice: value})
    (tensor,) = tensors(read(model(entry), X=wanted))
    assert len(tensor.data) == 500 * (datatype.size or 4)
    if choice == "zero_data" or name == "BYTES":
        assert not any(tensor.data)
        return
    assert any(tensor.data)
    if name == "BOOL":
        assert set(tensor.data) == {0, 1}
    elif name == "BF16":
        wide = np.frombuffer(tensor.data, np.uint16).astype(np.uint32) << 16
        values = wide.view(np.float32)
        assert 0 <= values.min() < values.max() <= 1
    elif name.startswith("FP"):
        assert 0 <= tensor.as_numpy().min() < tensor.as_numpy().max() <= 1


def test_data_of_a_file(read: Read, tmp_path: Path) -> None:
    write(tmp_path, "x.bin", b"abcdefgh_more")
    (tensor,) = tensors(read(model(), X=given(input_data_file="x.bin")))
    assert tensor.data == b"abcdefgh"


def test_strings_of_a_file_are_all_of_it(read: Read, tmp_path: Path) -> None:
    write(tmp_path, "text", b"\x02\0\0\0hi\x01\0\0\0!")
    entry = ModelInput("X", "TYPE_STRING", dims=(2,))
    wanted = given("TYPE_STRING", input_data_file="text")
    (tensor,) = tensors(read(model(entry), X=wanted))
    assert tensor.as_numpy().tolist() == [[b"hi", b"!"]]


SEQUENCES = SequenceBatching(
    control_input=(
        ControlInput("START", (Control("CONTROL_SEQUENCE_START", fp32_false_true=(0.0, 1.0)),)),
    ),
    state=(State("S_IN", "S_OUT", "TYPE_FP32", (-1,)),),
)


@pytest.mark.parametrize("dims", [(1,), (1, 1)])
def test_controls_and_states_are_inputs(read: Read, dims: tuple[int, ...]) -> None:
    found = tensors(
        read(
            model(sequences=SEQUENCES),
            S_IN=given("TYPE_FP32", (3,)),
            START=given("TYPE_FP32", dims),
            X=given(),
        )
    )
    shapes = [(tensor.name, tensor.shape) for tensor in found]
    assert shapes == [("X", (1, 2)), ("START", (1, 1)), ("S_IN", (1, 3))]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (
            given(dims=(-1,)),
            "warmup setting expects all variable-size dimensions are specified for input 'X' for "
            "model 'm'",
        ),
        (
            WarmupInput("TYPE_INT32", (2,)),
            "warmup setting expects input 'X' to have input_data_type set",
        ),
        (given("TYPE_FP32"), "inference input 'X' data-type is 'FP32', but model 'm' expects"),
        (given("TYPE_INVALID"), "must have a data_type, got TYPE_INVALID"),
        (given(dims=(2, 2)), "unexpected shape for input 'X' for model 'm'. Expected [-1,-1]"),
        (
            given(input_data_file="short"),
            "warmup setting expects 8 bytes, but the data provided from 'short' has only 5 bytes",
        ),
        (given(input_data_file="none"), "warmup data file 'none' is not a file in"),
        (given(input_data_file="../../x"), "warmup data file '../../x' is not a file in"),
        (given(input_data_file="/etc/passwd"), "warmup data file '/etc/passwd' is not a file in"),
        (given(input_data_file="."), "warmup data file '.' is not a file in"),
        (given(input_data_file="link"), "warmup data file 'link' is not a file in"),
    ],
)
def test_what_is_wrong_with_an_input(
    read: Read, tmp_path: Path, wanted: WarmupInput, words: str
) -> None:
    write(tmp_path, "short", b"12345")
    (tmp_path.parent / "x").write_bytes(bytes(100))
    (tmp_path / "warmup" / "link").symlink_to(tmp_path.parent / "x")
    with pytest.raises(InvalidArgument) as error:
        read(model(), X=wanted)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("batch", "size", "inputs", "words"),
    [
        (4, 1, {}, "expected 1 inputs but got 0 inputs for model 'm'"),
        (
            4,
            1,
            {"X": given(), "Z": given()},
            "warmup sample 's' has an input 'Z', which model 'm' does not have",
        ),
        (4, 5, {"X": given()}, "warmup sample 's' of model 'm' has batch_size 5, which must be"),
        (0, 2, {"X": given()}, "has batch_size 2, which must be <= 1"),
    ],
)
def test_what_is_wrong_with_a_sample(
    read: Read, batch: int, size: int, inputs: dict[str, WarmupInput], words: str
) -> None:
    with pytest.raises(InvalidArgument) as error:
        read(model(batch=batch), size, **inputs)
    assert words in str(error.value)
