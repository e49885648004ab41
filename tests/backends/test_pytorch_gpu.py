"""Instances on a real GPU."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
from torch import nn

from microkernel import (
    Batch,
    InferResponse,
    InstanceGroup,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelParameter,
    Placement,
    Unavailable,
)
from microkernel_torchscript.backend import PyTorchBackend
from microkernel_torchscript.gpu.devices import Staging

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU"),
]

MakeBatch = Callable[..., Batch]
Save = Callable[..., Path]

VECTOR = ModelConfig(
    name="m",
    max_batch_size=8,
    input=(ModelInput("x", "TYPE_FP32", dims=(-1,)),),
    output=(ModelOutput("y__0", "TYPE_FP32", dims=(-1,)),),
)
IMAGE = replace(
    VECTOR,
    input=(ModelInput("x", "TYPE_FP32", dims=(3, 16, 16)),),
    output=(ModelOutput("y__0", "TYPE_FP32", dims=(5,)),),
)


class Same(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Where(nn.Module):
    """Tells the device and the stream that it runs on, and whether its input is there."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, float(x.get_device()))


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
        )
        self.head = nn.Linear(128, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.body(x))
        return result


class Moves(nn.Module):
    """Keeps a weight on a GPU, and moves its input there itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.weight.device) * self.weight


class Greedy(nn.Module):
    """Takes as much memory as its first number says, in GiB."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        room = torch.ones([1 + int(x[0, 0].item()) * 1024, 1024, 256], device=x.device)
        return x + room[0, 0, 0]


@contextmanager
def instances(
    config: ModelConfig, files: Path, count: int = 1, kind: str = "KIND_GPU"
) -> Iterator[list[Callable[[Batch], Any]]]:
    """Instances on threads of their own, as the kernel hosts them: what executes on each."""
    config = replace(config, instance_group=(InstanceGroup(count=count, kind=kind),))
    model = PyTorchBackend().load(config, files)
    threads = [ThreadPoolExecutor(1) for _ in range(count)]
    made = [
        thread.submit(model.instance, Placement(f"m_{number}", kind)).result()
        for number, thread in enumerate(threads)
    ]

    def executes(number: int) -> Callable[[Batch], Any]:
        return lambda batch: threads[number].submit(made[number].execute, batch).result()

    yield [executes(number) for number in range(count)]
    for thread, instance in zip(threads, made, strict=True):
        thread.submit(instance.close).result()
        thread.shutdown()
    model.unload()


def output(outcome: Any) -> Any:
    assert isinstance(outcome, InferResponse), outcome
    return outcome.outputs[0].as_numpy()


@pytest.mark.parametrize("width", [1, 1000, 300_000])
def test_what_goes_there_and_back_is_the_same(
    tmp_path: Path, save_module: Save, make_batch: MakeBatch, width: int
) -> None:
    rows = [np.random.default_rng(n).random((n + 1, width), np.float32) for n in range(3)]
    with instances(VECTOR, save_module(Same(), tmp_path)) as (execute,):
        for _ in range(3):
            outcomes = execute(make_batch([{"x": row} for row in rows]))
            for outcome, row in zip(outcomes, rows, strict=True):
                np.testing.assert_array_equal(output(outcome), row)


def test_inputs_are_on_the_gpu(tmp_path: Path, save_module: Save, make_batch: MakeBatch) -> None:
    with instances(VECTOR, save_module(Where(), tmp_path)) as (execute,):
        (outcome,) = execute(make_batch([{"x": np.zeros((1, 2), np.float32)}]))
    assert output(outcome).tolist() == [[0.0, 0.0]]


def test_a_network_computes_what_it_does_on_the_cpu(
    tmp_path: Path, save_module: Save, make_batch: MakeBatch
) -> None:
    images = np.random.default_rng(0).random((4, 3, 16, 16), np.float32)
    files = save_module(Convolutional(), tmp_path, torch.zeros(1, 3, 16, 16))
    results = []
    for kind in ("KIND_CPU", "KIND_GPU"):
        with instances(IMAGE, files, kind=kind) as (execute,):
            results.append(output(execute(make_batch([{"x": images}]))[0]))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-2, atol=1e-3)


def test_two_instances_compute_on_two_streams(
    tmp_path: Path, save_module: Save, make_batch: MakeBatch
) -> None:
    model = PyTorchBackend().load(VECTOR, save_module(Same(), tmp_path))
    streams: list[int] = []
    both = threading.Barrier(2)

    def run(number: int) -> None:
        instance = model.instance(Placement(f"m_{number}", "KIND_GPU"))
        streams.append(torch.cuda.current_stream().stream_id)
        both.wait(60)
        for step in range(50):
            row = np.full((2, 1000), number + step, np.float32)
            (outcome,) = instance.execute(make_batch([{"x": row}]))
            np.testing.assert_array_equal(output(outcome), row)
        instance.close()

    with ThreadPoolExecutor(2) as threads:
        for future in [threads.submit(run, number) for number in range(2)]:
            future.result()
    model.unload()
    assert len(set(streams)) == 2
    assert torch.cuda.default_stream().stream_id not in streams


def test_inputs_are_gathered_in_memory_that_the_gpu_reads_by_itself() -> None:
    staging = Staging(torch.device("cuda", 0), pinned=True)
    tensors = [torch.arange(1000, dtype=torch.int64), torch.ones(3, 5)]
    moved = staging.moved(tensors)
    torch.cuda.synchronize()
    assert staging._block is not None
    assert staging._block.is_pinned()
    for there, here in zip(moved, tensors, strict=True):
        assert there.is_cuda
        assert torch.equal(there.cpu(), here)


def test_a_model_that_places_its_tensors_itself(
    tmp_path: Path, save_module: Save, make_batch: MakeBatch
) -> None:
    files = save_module(Moves().cuda(), tmp_path)
    with instances(VECTOR, files, kind="KIND_MODEL") as (execute,):
        (outcome,) = execute(make_batch([{"x": np.ones((2, 4), np.float32)}]))
    assert output(outcome).tolist() == [[2.0] * 4] * 2


def test_a_lack_of_memory_fails_one_batch(
    tmp_path: Path, save_module: Save, make_batch: MakeBatch
) -> None:
    config = replace(VECTOR, parameters={"WARMUP": ModelParameter("false")})
    with instances(config, save_module(Greedy(), tmp_path)) as (execute,):
        for _ in range(2):
            with pytest.raises(Unavailable, match="out of memory"):
                execute(make_batch([{"x": np.full((1, 1), 1024, np.float32)}]))
            (outcome,) = execute(make_batch([{"x": np.zeros((1, 1), np.float32)}]))
            assert output(outcome).tolist() == [[1.0]]


def test_another_thread_than_that_of_the_instance_has_its_own_stream() -> None:
    before = torch.cuda.current_stream().stream_id
    stream = torch.cuda.Stream(0)  # type: ignore[no-untyped-call]  # not annotated
    with torch.cuda.stream(stream), ThreadPoolExecutor(1) as thread:
        there = thread.submit(lambda: torch.cuda.current_stream().stream_id).result()
    assert there == before
