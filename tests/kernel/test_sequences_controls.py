"""The tensors that tell a model of its sequences: what they hold, and which ids they can hold."""

import struct
from typing import Any

import pytest
from sequence_harness import request_of, sequence_config, serve

from microkernel import InvalidArgument, Tensor
from microkernel.config.model import Control, ControlInput, SequenceBatching
from microkernel.request import Sequence
from microkernel.scheduling.controls import Controls

pytestmark = pytest.mark.virtual_time

START, END, READY = (f"CONTROL_SEQUENCE_{kind}" for kind in ("START", "END", "READY"))
LARGE = (1 << 63) + (1 << 31) + 5


def controls(*given: Control, largest: int = 4) -> Controls:
    entries = tuple(ControlInput(f"C{i}", (control,)) for i, control in enumerate(given))
    return Controls.of(sequence_config(SequenceBatching(control_input=entries), largest=largest))


def correlation(datatype: str) -> Control:
    return Control("CONTROL_SEQUENCE_CORRID", data_type=datatype)


def data(tensors: tuple[Tensor, ...]) -> list[bytes]:
    return [bytes(tensor.data) for tensor in tensors]


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        (Sequence(1, start=True), (1, 0, 1)),
        (Sequence(1), (0, 0, 1)),
        (Sequence(1, end=True), (0, 1, 1)),
        (Sequence(1, start=True, end=True), (1, 1, 1)),
        (None, (0, 0, 0)),
    ],
)
@pytest.mark.parametrize(
    ("values", "form"),
    [
        ({"int32_false_true": (0, 1)}, "<i"),
        ({"int32_false_true": (7, -7)}, "<i"),
        ({"fp32_false_true": (0.0, 1.0)}, "<f"),
        ({"fp32_false_true": (-0.5, 2.5)}, "<f"),
        ({"bool_false_true": (False, True)}, "<?"),
        ({"bool_false_true": (True, False)}, "<?"),
    ],
)
def test_flags(
    sequence: Sequence | None, expected: tuple[int, ...], values: dict[str, Any], form: str
) -> None:
    made = controls(*(Control(kind, **values) for kind in (START, END, READY)))
    tensors = made.null() if sequence is None else made.tensors(sequence)
    (pair,) = values.values()
    assert data(tensors) == [struct.pack(form, pair[flag]) for flag in expected]


@pytest.mark.parametrize(
    ("datatype", "sequence", "expected"),
    [
        ("TYPE_UINT64", LARGE, LARGE.to_bytes(8, "little")),
        ("TYPE_INT64", LARGE, LARGE.to_bytes(8, "little")),
        ("TYPE_UINT32", LARGE, ((1 << 31) + 5).to_bytes(4, "little")),
        ("TYPE_INT32", LARGE, struct.pack("<i", 5 - (1 << 31))),
        ("TYPE_STRING", "ab\u00e9", b"\x04\0\0\0ab\xc3\xa9"),
        ("TYPE_STRING", "\ud800", b"\x01\0\0\0?"),
    ],
)
def test_correlation_ids(datatype: str, sequence: int | str, expected: bytes) -> None:
    made = controls(correlation(datatype))
    (tensor,) = made.tensors(Sequence(sequence))
    assert bytes(tensor.data) == expected
    (null,) = made.null()
    assert not any(bytes(null.data))


@pytest.mark.parametrize(("largest", "shape"), [(0, (1,)), (4, (1, 1))])
def test_shapes(largest: int, shape: tuple[int, ...]) -> None:
    flag = Control(READY, int32_false_true=(0, 1))
    made = controls(flag, correlation("TYPE_UINT64"), largest=largest)
    assert [tensor.shape for tensor in made.tensors(Sequence(1))] == [shape] * 2


@pytest.mark.parametrize(
    ("datatype", "sequence", "given"),
    [
        ("TYPE_STRING", 1, "UINT64"),
        *((f"TYPE_{name}", "x", "BYTES") for name in ("UINT64", "INT64", "UINT32", "INT32")),
    ],
)
async def test_an_id_that_the_model_cannot_be_told(
    fake_worker: Any, datatype: str, sequence: int | str, given: str
) -> None:
    entry = ControlInput("CORRID", (correlation(datatype),))
    served = await serve(sequence_config(SequenceBatching(control_input=(entry,))), fake_worker())
    await served.ask(request_of("A1", "S", sequence=sequence))
    error = served.errors["A1"]
    expected = "BYTES" if datatype == "TYPE_STRING" else datatype.removeprefix("TYPE_")
    assert isinstance(error, InvalidArgument)
    assert str(error) == (
        f"[request id: A1] sequence batching control 'CORRID' data-type is '{given}', but model "
        f"'m' expects '{expected}'"
    )


async def test_controls_follow_the_inputs_in_the_order_of_the_configuration(
    fake_worker: Any,
) -> None:
    flag = Control(READY, int32_false_true=(0, 1))
    entries = (
        ControlInput("Z", (flag,)),
        ControlInput("unused"),
        ControlInput("B", (correlation("TYPE_INT32"),)),
    )
    served = await serve(sequence_config(SequenceBatching(control_input=entries)), fake_worker(1))
    await served.play((0, "C1", "SE"))
    (row,) = served.rows
    assert [tensor.name for tensor in row.inputs] == ["X", "Z", "B"]
    assert served.controls("B") == [[3]]
