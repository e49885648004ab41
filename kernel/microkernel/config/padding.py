"""What a model's parameters say of padding, and what they must obey.

`PAD_TO_LONGEST` names inputs whose one variable dimension is filled up to the longest of a batch,
`PAD_VALUE` says with what, `PAD_MASK` names the input that tells the model which part is real,
`PAD_CUT` outputs that are cut back, and `PAD_LIMIT` says how much may be filled in. Triton has
nothing like it.
"""

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from microkernel.config.model import ModelConfig, ModelInput, ModelOutput
from microkernel.config.tensors import inner_dims
from microkernel.tensor import BF16, BY_CONFIG_NAME, BYTES, DataType

TO_LONGEST, VALUE, MASK = "PAD_TO_LONGEST", "PAD_VALUE", "PAD_MASK"
CUT, LIMIT = "PAD_CUT", "PAD_LIMIT"


@dataclass(frozen=True, slots=True)
class PadNames:
    """The parameters, taken apart; `values` are texts by the input's name, "" for the others."""

    inputs: Sequence[str]
    values: Mapping[str, str]
    mask: str
    cut: Sequence[str]

    def value(self, name: str) -> str:
        """What an input is padded with."""
        return self.values.get(name, self.values.get("", "0"))


def pad_names(config: ModelConfig) -> PadNames | None:
    """What the parameters name; None where nothing is padded."""
    inputs = _listed(config, TO_LONGEST)
    if not inputs:
        return None
    values = {}
    for entry in _listed(config, VALUE):
        name, equals, value = entry.rpartition("=")
        values[name.strip() if equals else ""] = value.strip()
    mask = config.parameter(MASK).strip()
    return PadNames([n for n in inputs if n != mask], values, mask, _listed(config, CUT))


def _listed(config: ModelConfig, key: str) -> list[str]:
    names = (name.strip() for name in config.parameter(key).split(","))
    return [name for name in names if name]


def element(text: str, datatype: DataType) -> bytes:
    """The bytes of one element of a value. Raises ValueError where the type has no such value, as
    BYTES has none."""
    if datatype is BYTES:
        raise ValueError("a string")
    if datatype is BF16:
        return struct.pack("<f", float(text))[2:]
    assert datatype.numpy is not None
    floating = datatype.numpy.kind == "f"
    value = float(text) if floating else int(text)
    least, most = _bounds(datatype.numpy)
    if math.isfinite(value) and not least <= value <= most:
        raise ValueError(f"{text} is not between {least} and {most}")
    return np.array([value]).astype(datatype.numpy).tobytes()


def _bounds(dtype: "np.dtype[Any]") -> tuple[float, float]:
    """The least and the largest value of a type of numbers; integers stay exact."""
    if dtype.kind == "f":
        return float(np.finfo(dtype).min), float(np.finfo(dtype).max)
    if dtype.kind == "b":
        return 0, 1
    bounds = np.iinfo(dtype)
    return int(bounds.min), int(bounds.max)


def padding(config: ModelConfig) -> Iterator[str]:
    """The faults of the parameters."""
    names = pad_names(config)
    if names is None:
        for key in (VALUE, MASK, CUT, LIMIT):
            if config.parameter(key):
                yield f"parameter {key} needs {TO_LONGEST} to name inputs for {config.name}"
        return
    inputs = {entry.name: entry for entry in config.input}
    outputs = {entry.name: entry for entry in config.output}
    for name in names.inputs:
        yield from _padded(TO_LONGEST, name, inputs, config.name)
    if names.mask:
        yield from _padded(MASK, names.mask, inputs, config.name)
    for name in names.cut:
        yield from _padded(CUT, name, outputs, config.name)
    yield from _values(names, inputs, config.name)
    if config.parameter(LIMIT):
        yield from _limit(config)


def _padded(
    key: str, name: str, known: Mapping[str, ModelInput] | Mapping[str, ModelOutput], model: str
) -> Iterator[str]:
    entry = known.get(name)
    direction = "output" if key == CUT else "input"
    start = f"parameter {key} names {direction} '{name}', which"
    if entry is None:
        yield f"{start} is not in the configuration for {model}"
        return
    variable = inner_dims(entry).count(-1)
    if variable != 1:
        yield f"{start} has {variable} variable dimensions where it must have one for {model}"
    if isinstance(entry, ModelInput) and (entry.allow_ragged_batch or entry.is_shape_tensor):
        yield f"{start} needs no padding, being ragged or a shape tensor, for {model}"
    if isinstance(entry, ModelInput) and entry.data_type == "TYPE_STRING":
        yield f"{start} is of TYPE_STRING and cannot be padded for {model}"


def pad_limit(config: ModelConfig) -> float:
    """How many times as large as its requests a padded batch may be; infinity where that is left
    open. Raises ValueError for what is no number."""
    return float(config.parameter(LIMIT) or math.inf)


def _limit(config: ModelConfig) -> Iterator[str]:
    try:
        good = pad_limit(config) >= 1
    except ValueError:
        good = False
    if not good:
        yield f"parameter {LIMIT} must be a number from 1 on for {config.name}"
    if config.dynamic_batching is None:
        yield f"parameter {LIMIT} needs 'dynamic_batching' for {config.name}"


def _values(names: PadNames, inputs: Mapping[str, ModelInput], model: str) -> Iterator[str]:
    for name in names.values:
        if name and name not in names.inputs:
            yield f"parameter {VALUE} names input '{name}', which is not padded, for {model}"
    for name in names.inputs:
        entry = inputs.get(name)
        if entry is None or entry.data_type in ("TYPE_STRING", "TYPE_INVALID"):
            continue
        try:
            element(names.value(name), BY_CONFIG_NAME[entry.data_type])
        except (ValueError, OverflowError):
            yield (
                f"parameter {VALUE} gives '{names.value(name)}' for input '{name}', which is no "
                f"value of {entry.data_type}, for {model}"
            )
