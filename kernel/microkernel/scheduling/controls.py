"""The tensors through which the sequence batcher tells a model of its sequences. Pure."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from microkernel.config.model import Control, ControlInput, ModelConfig, SequenceBatching
from microkernel.config.tensors import CORRELATION, control_type
from microkernel.errors import InvalidArgument
from microkernel.request import NO_SEQUENCE, InferRequest, Sequence
from microkernel.tensor import (
    BOOL,
    BY_CONFIG_NAME,
    BYTES,
    FP32,
    INT32,
    UINT64,
    DataType,
    Shape,
    Tensor,
    encode_bytes,
)

_FORMATS: Mapping[DataType, str] = {INT32: "<i", FP32: "<f", BOOL: "<?"}

_Make: TypeAlias = Callable[[Sequence, bool], Tensor]
"""A control tensor for a request of that sequence, or for a row that is not ready."""


@dataclass(frozen=True, slots=True)
class Controls:
    """The control tensors of a model, in the order in which a request carries them."""

    model: str
    makers: tuple[_Make, ...]
    correlation: tuple[str, DataType] | None
    """The name and type of the tensor that holds the sequence's id."""

    @classmethod
    def of(cls, config: ModelConfig) -> "Controls":
        """The controls of a valid configuration."""
        batching = config.sequence_batching or SequenceBatching()
        shape = (1, 1) if config.max_batch_size > 0 else (1,)
        entries = [entry for entry in batching.control_input if entry.control]
        found = None
        for entry in entries:
            if entry.control[0].kind == CORRELATION:
                found = entry.name, BY_CONFIG_NAME[control_type(entry.control[0])]
        return cls(config.name, tuple(_maker(entry, shape) for entry in entries), found)

    @property
    def takes_text(self) -> bool:
        """Whether the model is told ids as text."""
        return self.correlation is not None and self.correlation[1] is BYTES

    def check(self, request: InferRequest) -> None:
        """Raise InvalidArgument where the model cannot be told the request's sequence id."""
        if self.correlation is None:
            return
        name, expected = self.correlation
        given = BYTES if isinstance(request.sequence.id, str) else UINT64
        if (given is BYTES) != (expected is BYTES):
            raise InvalidArgument(
                f"{request.tag()}sequence batching control '{name}' data-type is '{given.name}', "
                f"but model '{self.model}' expects '{expected.name}'"
            )

    def tensors(self, sequence: Sequence) -> tuple[Tensor, ...]:
        """What a request of that sequence says."""
        return tuple([make(sequence, True) for make in self.makers])

    def null(self) -> tuple[Tensor, ...]:
        """What a row says that is no request."""
        return tuple([make(NO_SEQUENCE, False) for make in self.makers])


def _maker(entry: ControlInput, shape: Shape) -> _Make:
    control = entry.control[0]
    datatype = BY_CONFIG_NAME[control_type(control)]
    if control.kind == CORRELATION:
        return lambda sequence, _: Tensor(entry.name, datatype, shape, _id(sequence.id, datatype))
    values = _values(control, datatype)
    false, true = (Tensor(entry.name, datatype, shape, value) for value in values)
    if control.kind == "CONTROL_SEQUENCE_START":
        return lambda sequence, _: true if sequence.start else false
    if control.kind == "CONTROL_SEQUENCE_END":
        return lambda sequence, _: true if sequence.end else false
    return lambda _, ready: true if ready else false


def _values(control: Control, datatype: DataType) -> tuple[bytes, bytes]:
    given = control.int32_false_true or control.fp32_false_true or control.bool_false_true
    false, true = given
    form = _FORMATS[datatype]
    return struct.pack(form, false), struct.pack(form, true)


def _id(sequence: int | str, datatype: DataType) -> bytes:
    """An id as the data of a tensor: of a number as many low bits as there is room for."""
    if datatype is BYTES:
        return encode_bytes([str(sequence or "").encode(errors="replace")])
    assert isinstance(sequence, int)
    return (sequence & ((1 << 8 * datatype.size) - 1)).to_bytes(datatype.size, "little")
