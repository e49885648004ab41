"""Flags of torch: two models in one process each have their own, and the process keeps none."""

import logging
import threading
from collections.abc import Callable, Iterator
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
    Internal,
    Model,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelParameter,
    Placement,
)
from microkernel_torchscript.backend import PyTorchBackend
from microkernel_torchscript.flags import FIRST_CALLS, FirstCalls, compiling
from microkernel_torchscript.options import Options

MakeBatch = Callable[..., Batch]
Save = Callable[..., Path]
Serve = Callable[..., Any]


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(x * 2 + 1) * 3
        return result


class Picky(nn.Module):
    """Refuses what warm-up makes up."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert float(x.max()) > 5.0, "too small"
        return x * 2 + 1


CONFIG = ModelConfig(
    name="m",
    input=(ModelInput("x", "TYPE_FP32", dims=(4,)),),
    output=(ModelOutput("y__0", "TYPE_FP32", dims=(4,)),),
)
LARGE = np.full(4, 9, np.float32)


def with_parameters(name: str = "m", **texts: str) -> ModelConfig:
    entries = {key: ModelParameter(text) for key, text in texts.items()}
    return replace(CONFIG, name=name, parameters=entries)


def flags_of_the_process() -> tuple[bool, bool, bool]:
    """Executor, profiling mode, tensor fuser; each is read by setting it to what it is."""
    executor = torch._C._jit_set_profiling_executor(True)
    profiling = torch._C._jit_set_profiling_mode(True)
    torch._C._jit_set_profiling_executor(executor)
    torch._C._jit_set_profiling_mode(profiling)
    return executor, profiling, torch._C._jit_texpr_fuser_enabled()


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    before = flags_of_the_process(), torch.backends.cudnn.enabled
    yield
    assert (flags_of_the_process(), torch.backends.cudnn.enabled) == before


def compiled(forward: Any) -> list[str] | None:
    """The operations of the code that a module runs from now on; None where it is not compiled."""
    try:
        state = forward.owner.get_debug_state()
    except RuntimeError:
        return None
    (plan,) = state.execution_plans.values()
    return [node.kind() for node in plan.graph.nodes()]


def forward_of(served: Any) -> Any:
    forward = served._instance._forward
    return forward._forward if isinstance(forward, FirstCalls) else forward


@pytest.mark.parametrize(
    ("parameter", "values", "after_one_call"),
    [
        ("ENABLE_JIT_PROFILING", ("true", "false"), (False, True)),
        ("ENABLE_JIT_PROFILING", ("false", "true"), (True, False)),
        ("ENABLE_JIT_EXECUTOR", ("true", "false"), (False, True)),
        ("ENABLE_JIT_EXECUTOR", ("false", "true"), (True, False)),
    ],
)
def test_models_with_opposite_flags_are_compiled_each_its_own_way(
    tmp_path: Path,
    save_module: Save,
    host: Serve,
    make_batch: MakeBatch,
    parameter: str,
    values: tuple[str, str],
    after_one_call: tuple[bool, bool],
) -> None:
    """With profiling the first call only observes; without, code is optimised in it."""
    files = save_module(Scaled(), tmp_path)
    models = [
        PyTorchBackend().load(with_parameters(WARMUP="false", **{parameter: value}), files)
        for value in values
    ]
    served = [host(model) for model in models]
    for instance in served:
        instance.execute(make_batch([{"x": LARGE}], batching=False))
    assert tuple(compiled(forward_of(s)) is not None for s in served) == after_one_call


def test_the_tensor_fuser_is_off_for_one_model_only(
    tmp_path: Path, save_module: Save, host: Serve
) -> None:
    """Without the fuser, what profiling adds stays in the code."""
    files = save_module(Scaled(), tmp_path)
    configs = [with_parameters(ENABLE_TENSOR_FUSER=value) for value in ("false", "true")]
    served = [host(PyTorchBackend().load(config, files)) for config in configs]
    codes = [compiled(forward_of(instance)) for instance in served]
    assert ["prim::profile" in (code or ()) for code in codes] == [True, False]


def test_optimised_execution_is_off_for_one_model_only(
    tmp_path: Path, save_module: Save, host: Serve
) -> None:
    files = save_module(Scaled(), tmp_path)
    configs = [with_parameters(DISABLE_OPTIMIZED_EXECUTION=value) for value in ("true", "false")]
    served = [host(PyTorchBackend().load(config, files)) for config in configs]
    codes = [compiled(forward_of(instance)) for instance in served]
    assert codes[0] is None
    assert codes[1] is not None
    assert "aten::relu" in codes[1]


def test_a_model_that_could_not_be_warmed_keeps_its_flags_for_its_first_calls(
    tmp_path: Path, save_module: Save, serve_module: Serve, make_batch: MakeBatch
) -> None:
    files = save_module(Picky(), tmp_path)
    served = serve_module(with_parameters(ENABLE_TENSOR_FUSER="false"), files)
    for _ in range(FIRST_CALLS):
        served.execute(make_batch([{"x": LARGE}], batching=False))
    assert "prim::profile" in (compiled(forward_of(served)) or ())


def test_only_the_first_calls_that_succeed_run_under_flags() -> None:
    seen: list[bool] = []

    def forward(value: int) -> int:
        seen.append(torch._C._jit_texpr_fuser_enabled())
        if not value:
            raise ValueError("nothing")
        return value

    calls = FirstCalls(forward, Options(tensor_fuser=False))
    with pytest.raises(ValueError, match="nothing"):
        calls(0)
    assert [calls(i) for i in range(1, 5)] == [1, 2, 3, 4]
    assert seen == [False, False, False, False, torch._C._jit_texpr_fuser_enabled()]


def test_flags_are_restored_when_a_model_raises() -> None:
    before = flags_of_the_process()
    options = Options(tensor_fuser=not before[2], jit_executor=False, jit_profiling=False)
    seen = []

    def forward() -> None:
        seen.append(flags_of_the_process())
        raise Internal("no")

    with pytest.raises(Internal):
        FirstCalls(forward, options)()
    assert seen == [(False, False, not before[2])]
    assert flags_of_the_process() == before


@pytest.mark.parametrize("options", [Options(), Options(tensor_fuser=False)])
def test_first_calls_under_equal_flags_run_side_by_side(options: Options) -> None:
    """A long one keeps nobody waiting, nor the loading of other models."""
    both, flags = threading.Barrier(2), []

    def forward() -> None:
        both.wait(60)
        flags.append(torch._C._jit_texpr_fuser_enabled())

    before = torch._C._jit_texpr_fuser_enabled()
    threads = [threading.Thread(target=FirstCalls(forward, options)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert flags == [before and options.tensor_fuser is None] * 2


def test_one_model_at_a_time_has_its_flags_in_the_process() -> None:
    entered, seen = threading.Event(), []

    def second() -> None:
        entered.set()
        with compiling(Options()):
            seen.append(torch._C._jit_texpr_fuser_enabled())

    before = torch._C._jit_texpr_fuser_enabled()
    thread = threading.Thread(target=second)
    with compiling(Options(tensor_fuser=not before)):
        thread.start()
        assert entered.wait(60)
    thread.join(60)
    assert seen == [before]


def test_each_model_has_its_own_number_of_threads(
    tmp_path: Path, save_module: Save, host: Serve, make_batch: MakeBatch
) -> None:
    files = save_module(Scaled(), tmp_path)
    configs = [with_parameters(INTRA_OP_THREAD_COUNT=count) for count in ("1", "3")]
    served = [host(PyTorchBackend().load(config, files)) for config in configs]
    for instance in served:
        instance.execute(make_batch([{"x": LARGE}], batching=False))
    assert [instance.on_thread(torch.get_num_threads) for instance in served] == [1, 3]


def load_all(files: Path, *disabled: str) -> list[Model]:
    return [
        PyTorchBackend().load(with_parameters(f"m{i}", DISABLE_CUDNN=text), files)
        for i, text in enumerate(disabled)
    ]


def test_the_first_model_decides_about_cudnn(
    tmp_path: Path, save_module: Save, caplog: pytest.LogCaptureFixture
) -> None:
    states = [torch.backends.cudnn.enabled]
    models = load_all(save_module(Scaled(), tmp_path), "true", "false", "true")
    for model in models:
        states.append(torch.backends.cudnn.enabled)
        model.unload()
    assert [*states, torch.backends.cudnn.enabled] == [True, False, True, False, True]
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "model 'm1' wants cuDNN enabled" in warning
    assert "it is disabled in this process for model 'm0'" in warning


@pytest.mark.parametrize(("text", "expected"), [("true", 0), ("false", 0)])
def test_a_model_on_the_processor_leaves_the_memory_of_gpus_alone(
    tmp_path: Path,
    save_module: Save,
    serve_module: Serve,
    make_batch: MakeBatch,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    expected: int,
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(None))
    served = serve_module(
        with_parameters(ENABLE_CACHE_CLEANING=text), save_module(Scaled(), tmp_path)
    )
    served.execute(make_batch([{"x": LARGE}], batching=False))
    assert len(calls) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("text", ["true", "false"])
def test_the_cache_of_a_gpu_is_emptied_after_every_batch(
    tmp_path: Path, save_module: Save, make_batch: MakeBatch, text: str
) -> None:
    config = with_parameters(ENABLE_CACHE_CLEANING=text, WARMUP="false")
    config = replace(config, input=(ModelInput("x", "TYPE_FP32", dims=(-1,)),))
    model = PyTorchBackend().load(config, save_module(Scaled(), tmp_path))
    instance = model.instance(Placement("m_0", "KIND_GPU"))
    instance.execute(make_batch([{"x": np.ones(1 << 22, np.float32)}], batching=False))
    kept = torch.cuda.memory_reserved() > torch.cuda.memory_allocated() + (1 << 22)
    instance.close()
    model.unload()
    assert kept == (text == "false")
