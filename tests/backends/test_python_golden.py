"""The models that the recorded conversations were made with, through the Python backend."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from python_models import answer

from microkernel import (
    DATA_TYPES,
    Batch,
    Internal,
    ModelConfig,
    ModelOutput,
    Placement,
)
from microkernel_python.backend import PythonBackend
from microkernel_python.instance import PythonInstance

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "repository"
MakeBatch = Callable[..., Batch]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy, because importing a model may leave its byte code beside it."""
    if not GOLDEN.is_dir():
        pytest.skip("the recorded repository is not beside this checkout")
    return Path(shutil.copytree(GOLDEN, tmp_path / "repository"))


def start(repository: Path, name: str, *outputs: str) -> PythonInstance:
    backend, folder = PythonBackend(), repository / name / "1"
    config = ModelConfig(name=name, output=tuple(ModelOutput(output) for output in outputs))
    completed = backend.complete(config, folder)
    assert completed == config
    return backend.load(completed, folder).instance(Placement(f"{name}_0_0", "KIND_CPU"))


def test_identity(repository: Path, make_batch: MakeBatch) -> None:
    instance = start(repository, "identity", "OUTPUT0")
    arrays = [np.arange(n * 3, dtype=np.float32).reshape(n, 3) for n in (1, 2)]
    outcomes = instance.execute(make_batch([{"INPUT0": a} for a in arrays], model="identity"))
    for array, outcome in zip(arrays, outcomes, strict=True):
        np.testing.assert_array_equal(answer(outcome).outputs[0].as_numpy(), array)


def test_addsub(repository: Path, make_batch: MakeBatch) -> None:
    instance = start(repository, "addsub", "SUM", "DIFF")
    a, b = np.arange(4, dtype=np.int32), np.full(4, 10, dtype=np.int32)
    (outcome,) = instance.execute(make_batch([{"A": a, "B": b}], batching=False))
    found = {t.name: t.as_numpy().tolist() for t in answer(outcome).outputs}
    assert found == {"SUM": (a + b).tolist(), "DIFF": (a - b).tolist()}
    (outcome,) = instance.execute(make_batch([{"A": a - 1, "B": b}], batching=False))
    assert isinstance(outcome, Internal)
    assert str(outcome) == "A starts below zero"


def test_strings(repository: Path, make_batch: MakeBatch) -> None:
    instance = start(repository, "strings", "UPPER", "LENGTH")
    text = np.array([["ab", "ü", ""]], dtype=np.object_)
    (outcome,) = instance.execute(make_batch([{"TEXT": text}], model="strings"))
    upper, length = answer(outcome).outputs
    assert upper.as_numpy().tolist() == [[b"AB", "ü".encode(), b""]]
    assert length.as_numpy().tolist() == [[2, 2, 0]]


def test_types(repository: Path, make_batch: MakeBatch) -> None:
    numeric = {n: t.numpy for n, t in DATA_TYPES.items() if t.numpy is not None and t.size}
    instance = start(repository, "types", *(f"{name}_OUT" for name in numeric))
    inputs = {name: np.array([0, 1, 1], dtype=dtype) for name, dtype in numeric.items()}
    (outcome,) = instance.execute(make_batch([inputs], batching=False))
    outputs = answer(outcome).outputs
    assert [t.name for t in outputs] == [f"{name}_OUT" for name in numeric]
    for tensor, (name, array) in zip(outputs, inputs.items(), strict=True):
        assert tensor.datatype is DATA_TYPES[name]
        np.testing.assert_array_equal(tensor.as_numpy(), array)
