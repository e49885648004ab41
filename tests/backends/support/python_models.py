"""Models of the Python backend, what they get, and what they give."""

import textwrap
from typing import Any

import numpy as np

from microkernel import DATA_TYPES, InferResponse, Tensor
from microkernel_python.tensor import ReceivedTensor


def executing(body: str) -> str:
    """A model whose `execute` has this body."""
    lines = textwrap.indent(textwrap.dedent(body).strip(), " " * 8)
    return f"class TritonPythonModel:\n    def execute(self, requests):\n{lines}\n"


def answer(outcome: object) -> InferResponse:
    """An outcome that must be a response."""
    assert isinstance(outcome, InferResponse), outcome
    return outcome


def received(array: np.ndarray[Any, Any]) -> ReceivedTensor:
    """An array as a model receives it."""
    return ReceivedTensor(Tensor.from_numpy("T", array))


def bf16(bits: list[int]) -> Tensor:
    """A tensor of numbers that numpy has no type for, by their bits."""
    raw = np.array(bits, dtype="<u2").tobytes()
    return Tensor("T", DATA_TYPES["BF16"], (len(bits),), raw)
