"""Keys of responses: other requests, models and files have other ones."""

import itertools
import os
from dataclasses import replace
from pathlib import Path

import pytest

from microkernel import (
    DATA_TYPES,
    InferRequest,
    InstanceGroup,
    ModelConfig,
    ModelInput,
    ModelParameter,
    Tensor,
)
from microkernel.caching.keys import content_digest, model_digest, request_key
from microkernel.request import Sequence

FP32, INT32, UINT8 = (DATA_TYPES[name] for name in ("FP32", "INT32", "UINT8"))
CONFIG = ModelConfig(name="m", backend="b", input=(ModelInput("x", "TYPE_FP32", dims=(-1,)),))


def x(data: bytes | bytearray | memoryview = bytes(8), **changes: object) -> Tensor:
    tensor = Tensor("x", FP32, (2,), data)
    for name, value in changes.items():
        setattr(tensor, name, value)
    return tensor


def ask(*inputs: Tensor, **fields: object) -> InferRequest:
    return InferRequest("m", inputs or (x(),), **fields)  # type: ignore[arg-type]


def key(request: InferRequest, config: ModelConfig = CONFIG, version: int = 1) -> bytes:
    return request_key(model_digest(config, version, b"files"), request)


DIFFERENT = [
    ask(),
    ask(x(b"\1" + bytes(7))),
    ask(x(bytes(12), shape=(3,))),
    ask(x(shape=(1, 2))),
    ask(x(shape=(2, 1))),
    ask(x(datatype=INT32)),
    ask(x(name="y")),
    ask(x(), x(name="y")),
    ask(x(name="y"), x()),
    ask(x(name="xx", data=bytes(7), datatype=UINT8, shape=(7,))),
    ask(x(name="x", data=b"x" + bytes(7), datatype=UINT8, shape=(8,))),
    ask(x(bytes(4), shape=(1,)), x(bytes(4), shape=(1,))),
    ask(outputs=("a", "b")),
    ask(outputs=("b", "a")),
    ask(outputs=("ab",)),
    ask(outputs=("a",)),
    ask(parameters={"p": 1}),
    ask(parameters={"p": True}),
    ask(parameters={"p": 1.0}),
    ask(parameters={"p": "1"}),
    ask(parameters={"p": "1", "q": ""}),
    ask(parameters={"q": "1", "p": ""}),
]


def test_requests_that_may_be_answered_otherwise() -> None:
    keys = [key(request) for request in DIFFERENT]
    assert len(set(keys)) == len(keys)
    assert {len(found) for found in keys} == {32}


@pytest.mark.parametrize(
    "request_",
    [
        ask(id="7"),
        ask(priority=3),
        ask(timeout_us=1000),
        ask(classifications={"y": 2}),
        ask(x(bytearray(8))),
        ask(x(memoryview(bytes(8)))),
    ],
)
def test_requests_that_are_answered_alike(request_: InferRequest) -> None:
    assert key(request_) == key(ask())


def test_the_order_of_parameters_does_not_count() -> None:
    one, other = {"a": 1, "b": 2}, {"b": 2, "a": 1}
    assert key(ask(parameters=one)) == key(ask(parameters=other))


@pytest.mark.parametrize(
    ("config", "version"),
    [
        (CONFIG, 2),
        (replace(CONFIG, name="n"), 1),
        (replace(CONFIG, parameters={"K": ModelParameter("v")}), 1),
        (replace(CONFIG, default_model_filename="other"), 1),
    ],
)
def test_models_that_may_answer_otherwise(config: ModelConfig, version: int) -> None:
    assert key(ask(), config, version) != key(ask())


def test_where_a_model_runs_does_not_count() -> None:
    moved = replace(CONFIG, instance_group=(InstanceGroup(count=3),), metric_tags={"a": "b"})
    assert key(ask(), moved) == key(ask())


def test_names_cannot_run_into_each_other() -> None:
    for one, other in itertools.combinations(("1", "11"), 2):
        assert key(ask(), replace(CONFIG, name="m" + one), 1) != key(
            ask(), replace(CONFIG, name="m" + other), 1
        )


def test_a_sequence_is_no_part_of_a_key() -> None:
    """Requests of sequences never get one: see `ModelCache.covers`."""
    assert key(ask(sequence=Sequence(1))) == key(ask())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    for name in ("1/model.py", "1/data/weights", "2/model.py", "words.txt", "config.pbtxt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_equal_files_count_alike_wherever_they_lie(model: Path, tmp_path: Path) -> None:
    before = content_digest(model, 1)
    moved = model.rename(tmp_path / "elsewhere")
    for path in moved.rglob("*"):
        os.utime(path, (1, 1))
    assert content_digest(moved, 1) == before


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("1/model.py", True),
        ("1/data/weights", True),
        ("1/new", True),
        ("words.txt", True),
        ("new", True),
        ("1/2/model.py", True),
        ("2/model.py", False),
        ("3/model.py", False),
        ("1/__pycache__/model.pyc", False),
        ("__pycache__/words.pyc", False),
    ],
)
def test_which_files_count(model: Path, name: str, counts: bool) -> None:
    before = content_digest(model, 1)
    (model / name).parent.mkdir(parents=True, exist_ok=True)
    (model / name).write_text("changed")
    assert (content_digest(model, 1) != before) == counts


def test_names_and_contents_of_files_cannot_run_into_each_other(model: Path) -> None:
    (model / "1" / "a").write_text("bc")
    before = content_digest(model, 1)
    (model / "1" / "a").unlink()
    (model / "1" / "ab").write_text("c")
    assert content_digest(model, 1) != before


def test_odd_directories_come_to_an_end(model: Path) -> None:
    (model / "1" / "again").symlink_to(model)
    (model / "1" / "dangling").symlink_to("nowhere")
    os.mkfifo(model / "1" / "pipe")
    assert content_digest(model, 1) == content_digest(model, 1)
