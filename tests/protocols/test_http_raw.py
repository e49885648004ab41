import pytest

from microkernel import InvalidArgument, ModelConfig, ModelInput
from microkernel_http.decode import Limits
from microkernel_http.raw import decode_raw

LIMITS = Limits()


def raw_model(datatype: str, *dims: tuple[int, ...], batch: int = 8) -> ModelConfig:
    inputs = [ModelInput(f"I{i}", f"TYPE_{datatype}", dims=d) for i, d in enumerate(dims)]
    return ModelConfig(name="m", max_batch_size=batch, input=tuple(inputs))


@pytest.mark.parametrize(
    ("config", "body", "shape", "data"),
    [
        (raw_model("FP32", (-1,)), bytes(12), (1, 3), bytes(12)),
        (raw_model("FP32", (-1,)), b"", (1, 0), b""),
        (raw_model("INT16", (2, -1, 3), batch=0), bytes(24), (2, 2, 3), bytes(24)),
        (raw_model("INT8", (4,), batch=0), bytes(4), (4,), bytes(4)),
        (raw_model("STRING", (-1,)), b"abc", (1, 1), b"\3\0\0\0abc"),
    ],
)
def test_a_raw_body_gets_its_shape_from_the_configuration(
    config: ModelConfig, body: bytes, shape: tuple[int, ...], data: bytes
) -> None:
    (tensor,) = decode_raw(body, config, "m", 1, LIMITS).inputs
    assert (tensor.name, tensor.shape, bytes(tensor.data)) == ("I0", shape, data)


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        (raw_model("FP32", (1,), (1,)), 4, "Raw request must only have 1 input (found 1) to be"),
        (raw_model("FP32", (-1, -1)), 4, "there are more than one variable-sized dimension"),
        (raw_model("FP32", (-1,)), 5, "input 'raw_input' for model 'm'. Expected 4, got 5"),
        (raw_model("FP32", (2,)), 4, "input 'raw_input' for model 'm'. Expected 8, got 4"),
        (raw_model("FP32", (0, -1)), 4, "input 'raw_input' for model 'm'. Expected 0, got 4"),
        (raw_model("STRING", (2,)), 4, "For BYTE datatype raw input 'I0'"),
        (raw_model("FP32", (-1,)), 101, "Raw input has a byte_size of 101 bytes"),
    ],
)
def test_a_raw_body_that_fits_no_shape(config: ModelConfig, size: int, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode_raw(bytes(size), config, "m", 1, Limits(json_size=100))
    assert message in str(caught.value)
