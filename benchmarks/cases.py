"""Which models are measured, and what does one request to each of them look like?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

TOKENS = 64


@dataclass(frozen=True, slots=True)
class Feed:
    """One input: its name, data type and shape in a request of one row, which leads. Integers are
    drawn from 1 up to, not including, `below`."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    below: int = 2

    def values(self, rows: int) -> Array:
        """Random data for so many rows; the same on every call."""
        shape = (rows * self.shape[0], *self.shape[1:])
        random = np.random.default_rng(7)
        if self.datatype == "INT64":
            return random.integers(1, self.below, shape, np.int64)
        return random.standard_normal(shape, np.float32)


@dataclass(frozen=True, slots=True)
class Network:
    """A TorchScript file, what it is fed, and its output for one row."""

    name: str
    feeds: Sequence[Feed]
    output: str
    output_dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """A network as a model of the repository.

    `max_batch_size` of 0 leaves the batch to the client; more turns the dynamic batcher on.
    """

    model: str
    network: Network
    max_batch_size: int = 0
    instances: int = 1
    parameters: Mapping[str, str] = field(default_factory=dict)

    def config(self) -> str:
        """Its config.pbtxt."""
        lines = [
            'platform: "pytorch_libtorch"',
            f"max_batch_size: {self.max_batch_size}",
            *(self._tensor("input", f.name, f.datatype, f.shape[1:]) for f in self.network.feeds),
            self._tensor("output", self.network.output, "FP32", self.network.output_dims),
            f"instance_group {{ kind: KIND_CPU count: {self.instances} }}",
        ]
        if self.max_batch_size:
            lines.append("dynamic_batching { }")
        lines += [
            f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
            for key, value in self.parameters.items()
        ]
        return "\n".join(lines) + "\n"

    def _tensor(self, side: str, name: str, datatype: str, dims: Sequence[int]) -> str:
        shape = list(dims) if self.max_batch_size else [-1, *dims]
        return f'{side} {{ name: "{name}" data_type: TYPE_{datatype} dims: {shape} }}'


EMPTY = Network("empty", [Feed("x", "FP32", (1, 16))], "y__0", (16,))
MLP = Network("mlp", [Feed("x", "FP32", (1, 16))], "y__0", (16,))
WIDE = Network("wide", [Feed("x", "FP32", (1, 16))], "y__0", (16,))
CNN = Network("cnn", [Feed("x", "FP32", (1, 3, 224, 224))], "y__0", (1000,))
ENCODER = Network("encoder", [Feed("x", "FP32", (1, TOKENS, 256))], "y__0", (TOKENS, 256))
HEAVY = Network("heavy", [Feed("x", "FP32", (1, 16))], "y__0", (16,))
MINILM = Network(
    "minilm",
    [
        Feed("input_ids", "INT64", (1, TOKENS), below=30000),
        Feed("attention_mask", "INT64", (1, TOKENS)),
    ],
    "embedding",
    (384,),
)

SPEECH = Network(
    "speech_stream",
    [
        Feed("audio__0", "FP32", (1, 512)),
        Feed("context__1", "FP32", (1, 64)),
        Feed("state__2", "FP32", (1, 2, 128)),
    ],
    "probability__0",
    (1,),
)

SMALL = (
    Case("empty", EMPTY),
    Case("empty_thread", EMPTY, parameters={"WORKER": "thread"}),
    Case("empty_batched", EMPTY, max_batch_size=64),
    Case("mlp", MLP),
)
LARGE = (CNN, ENCODER, MINILM)
