"""Instances on GPUs, as far as a host without one can tell: what is decided, and the ways of
tensors between two places in memory."""

import contextlib
from collections import namedtuple
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
from torch_models import MakesTensors

from microkernel import (
    Batch,
    Internal,
    InvalidArgument,
    ModelConfig,
    ModelInput,
    ModelOutput,
    Placement,
    Unavailable,
    WorkerFailed,
)
from microkernel_torchscript import knows_gpus
from microkernel_torchscript.backend import PyTorchBackend
from microkernel_torchscript.gpu.devices import (
    Lane,
    OnLane,
    Staging,
    device_of,
    fetched,
    lane_of,
    plan_copies,
    tensors_in,
    with_tensors,
)
from microkernel_torchscript.gpu.faults import Fault, classify, device_failure
from microkernel_torchscript.inputs import Feed, InputPlan
from microkernel_torchscript.model import PyTorchInstance
from microkernel_torchscript.outputs import plan_outputs
from microkernel_torchscript.source import Forward, Warmth

MakeBatch = Callable[..., Batch]
Save = Callable[..., Path]

CPU, META = torch.device("cpu"), torch.device("meta")
CONFIG = ModelConfig(
    name="m",
    input=(ModelInput("x", "TYPE_FP32", dims=(3,)),),
    output=(ModelOutput("y__0", "TYPE_FP32", dims=(3,)),),
)
Pair = namedtuple("Pair", ("first", "second"))
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this host has a GPU")


SIZES: Mapping[str, tuple[list[int], tuple[list[int], int]]] = {
    "nothing": ([], ([], 0)),
    "one": ([10], ([0], 10)),
    "each begins at a multiple of 256": ([10, 256, 1], ([0, 256, 512], 513)),
    "without data": ([0, 0], ([0, 0], 0)),
    "without data at the end": ([300, 0], ([0, 512], 512)),
}


@pytest.mark.parametrize(("sizes", "expected"), SIZES.values(), ids=SIZES)
def test_the_plan_of_a_copy(sizes: list[int], expected: tuple[list[int], int]) -> None:
    assert plan_copies(sizes) == expected


def test_tensors_are_found_and_put_back_wherever_they_are() -> None:
    a, b, c, d = (torch.full((2,), number) for number in range(4))
    value = [a, {"k": (b, "text"), "n": 3}, Pair(c, None), [["x", d]]]
    found = list(tensors_in(value))
    assert [t.tolist() for t in found] == [[0, 0], [1, 1], [2, 2], [3, 3]]
    again = with_tensors(value, iter([t + 10 for t in found]))
    assert again[0].tolist() == [10, 10]
    assert again[1]["k"][0].tolist() == [11, 11]
    assert (again[1]["k"][1], again[1]["n"]) == ("text", 3)
    assert isinstance(again[1]["k"], tuple)
    assert isinstance(again[2], Pair)
    assert (again[2].first.tolist(), again[2].second) == ([12, 12], None)
    assert again[3][0][0] == "x"
    assert again[3][0][1].tolist() == [13, 13]


def test_what_is_gathered_arrives_as_it_was() -> None:
    tensors = [
        torch.arange(6, dtype=torch.int64).view(2, 3),
        torch.tensor([True, False, True]),
        torch.zeros(0, 4),
        torch.tensor(2.5, dtype=torch.bfloat16),
        torch.arange(12, dtype=torch.float64).view(3, 4).t(),
        torch.empty(0, dtype=torch.int64),
    ]
    staging = Staging(CPU, pinned=False)
    for _ in range(2):  # the block is used again
        moved = staging.moved([tensors[0], {"rest": tensors[1:]}, ["text"], 7])
        got = list(tensors_in(moved))
        assert [(t.dtype, t.shape) for t in got] == [(t.dtype, t.shape) for t in tensors]
        assert all(torch.equal(*pair) for pair in zip(got, tensors, strict=True))
        assert moved[2:] == [["text"], 7]
        assert {t.untyped_storage().data_ptr() for t in got if t.numel()} == {got[0].data_ptr()}
        assert got[0].data_ptr() != tensors[0].data_ptr()


def test_what_is_empty_or_very_large_goes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microkernel_torchscript.gpu.devices._MOST_STAGED", 100)
    staging = Staging(META, pinned=False)
    for tensor in (torch.zeros(26), torch.zeros(0)):
        (moved,) = staging.moved([tensor])
        assert (moved.device.type, moved.shape) == ("meta", tensor.shape)
    assert staging.moved(["text"]) == ["text"]


def test_results_in_the_memory_of_the_host_are_left_alone() -> None:
    value = (torch.ones(2), ["a"], {"k": torch.zeros(1, device="meta")})
    again = fetched(value, None)
    assert again[0] is value[0]
    assert again[2]["k"] is value[2]["k"]


def test_where_an_instance_runs() -> None:
    assert device_of("m", Placement("m_0", "KIND_CPU")) == CPU
    assert device_of("m", Placement("m_0", "KIND_MODEL")) is None
    assert lane_of(CPU) is None


@no_gpu
def test_a_gpu_that_torch_cannot_use(tmp_path: Path, save_module: Save) -> None:
    assert lane_of(None) is None
    model = PyTorchBackend().load(CONFIG, save_module(MakesTensors(), tmp_path))
    with pytest.raises(InvalidArgument) as caught:
        model.instance(Placement("m_0", "KIND_GPU", device_id=1))
    reason = "has 0 of them" if torch.version.cuda else "was built without support for CUDA"
    assert str(caught.value) == (
        f"model 'm': instance 'm_0' is to run on GPU 1, but torch {reason}; use KIND_CPU, or a "
        "torch and a driver that fit the GPU"
    )


def test_a_torch_for_the_cpu_alone_is_known_without_importing_it() -> None:
    assert knows_gpus() == (torch.version.cuda is not None)


def test_warm_up_sees_what_the_instance_calls() -> None:
    class Warm:
        def first_calls(self, forward: Forward) -> Warmth:
            return Warmth(seconds=float(forward(torch.ones(1))))

        def touch(self, forward: Forward) -> None:
            touched.append(forward(torch.ones(1)))

    touched: list[Any] = []
    warm = OnLane(Warm(), Lane(None))
    assert warm.first_calls(lambda x: x + 1) == Warmth(seconds=2.0)
    warm.touch(lambda x: x + 2)
    assert [float(t) for t in touched] == [3.0]


@pytest.mark.parametrize(
    ("warmth", "broken", "expected"),
    [
        (Warmth(sizes=(1,)), True, ""),
        (Warmth(failure="no such row"), False, ""),
        (Warmth(failure="no such row"), True, r"out of use for this process \(no such row\)"),
        (Warmth(sizes=(1,), left_out=(8,)), True, r"out of use for this process \(it hangs\)"),
    ],
)
def test_warm_up_that_breaks_the_gpu_fails_the_load(
    warmth: Warmth, broken: bool, expected: str
) -> None:
    class Warm:
        def first_calls(self, forward: Forward) -> Warmth:
            return warmth

        def touch(self, forward: Forward) -> None:
            raise AssertionError

    class Odd(Lane):
        def probe(self) -> None:
            if broken:
                raise RuntimeError("it hangs")

    warm = OnLane(Warm(), Odd(None))
    if expected:
        with pytest.raises(WorkerFailed, match=expected):
            warm.first_calls(abs)
    else:
        assert warm.first_calls(abs) is warmth


ASSERT = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously"
SCRIPTED = "The following operation failed in the TorchScript interpreter.\nRuntimeError: "
ERRORS: list[tuple[BaseException, Fault]] = [
    (ValueError("no"), Fault.MODEL),
    (RuntimeError("shape '[2]' is invalid"), Fault.MODEL),
    (RuntimeError("device-side assert triggered"), Fault.MODEL),
    (RuntimeError("Expected all tensors to be on the same device"), Fault.MODEL),
    (torch.OutOfMemoryError("Tried to allocate 2.00 GiB"), Fault.MEMORY),
    (RuntimeError(SCRIPTED + "CUDA out of memory. Tried to allocate 2.00 GiB"), Fault.MEMORY),
    (torch.AcceleratorError("CUDA error: out of memory"), Fault.MEMORY),
    (
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        Fault.MEMORY,
    ),
    (torch.AcceleratorError(ASSERT), Fault.STICKY),
    (RuntimeError(SCRIPTED + ASSERT), Fault.STICKY),
    (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), Fault.STICKY),
    (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"), Fault.STICKY),
    (RuntimeError("CUDA error: unspecified launch failure"), Fault.STICKY),
    (RuntimeError("CUDA error: misaligned address"), Fault.STICKY),
    (RuntimeError("CUDA error: invalid configuration argument"), Fault.DOUBTFUL),
    (torch.AcceleratorError("something new"), Fault.DOUBTFUL),
    (RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED when calling cublasSgemm"), Fault.DOUBTFUL),
    (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), Fault.DOUBTFUL),
]


@pytest.mark.parametrize(("error", "expected"), ERRORS, ids=lambda value: f"{value!r:.60}")
def test_what_an_error_means(error: BaseException, expected: Fault) -> None:
    assert classify(error) is expected


def works() -> None:
    """A GPU that computes."""


def fails(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "probe", "expected"),
    [
        (ValueError("no"), works, Internal),
        (RuntimeError(ASSERT), works, WorkerFailed),
        (RuntimeError("CUDA out of memory"), works, Unavailable),
        (RuntimeError("CUDA error: invalid argument"), works, Internal),
        (
            RuntimeError("CUDA error: invalid argument"),
            partial(fails, RuntimeError(ASSERT)),
            WorkerFailed,
        ),
        (
            RuntimeError("CUDA error: invalid argument"),
            partial(fails, torch.OutOfMemoryError("none")),
            Internal,
        ),
    ],
)
def test_the_error_of_a_batch(
    error: Exception, probe: Callable[[], None], expected: type[Exception]
) -> None:
    failure = device_failure(error, "what it says", probe)
    assert type(failure) is expected
    assert str(failure).startswith("what it says")


def test_a_lack_of_memory_lets_go_of_the_tensors_of_its_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alive = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(len(held)))

    class Held:
        def __del__(self) -> None:
            held.remove(1)

    def forward() -> None:
        tensor = Held()
        held.append(1)
        raise RuntimeError(f"CUDA out of memory for {type(tensor)}")

    held: list[int] = []
    with pytest.raises(RuntimeError) as caught:
        forward()
    assert held == [1]
    assert type(device_failure(caught.value, "full", works)) is Unavailable
    assert alive == [0]


def broken_instance(text: str, *, clean_cache: bool = False) -> PyTorchInstance:
    def forward(*_: Any) -> Any:
        raise RuntimeError(text)

    inputs = InputPlan((Feed("x", 0, "tensor"),), (None,), as_dictionary=False)
    return PyTorchInstance(
        forward,
        inputs,
        plan_outputs(CONFIG),
        contextlib.ExitStack(),
        Lane(None),
        clean_cache=clean_cache,
    )


def test_an_instance_gives_its_worker_up_and_touches_the_gpu_no_more(
    make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned: list[None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: cleaned.append(None))
    batch = make_batch([{"x": np.ones(3, np.float32)}], batching=False)
    with pytest.raises(WorkerFailed, match="PyTorch execute failure: CUDA error: device-side"):
        broken_instance(ASSERT, clean_cache=True).execute(batch)
    assert cleaned == []
    with pytest.raises(Internal, match="PyTorch execute failure: wrong"):
        broken_instance("wrong", clean_cache=True).execute(batch)
    assert cleaned == [None]
