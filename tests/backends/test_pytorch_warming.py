"""The first calls of a model, made with made-up inputs before clients make any."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
from torch import nn
from torch_models import Counter

from microkernel import (
    Batch,
    DynamicBatching,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelParameter,
    Placement,
)
from microkernel.config.model import BatchInput
from microkernel_torchscript.backend import PyTorchBackend
from microkernel_torchscript.inputs import Feed, InputPlan
from microkernel_torchscript.options import Options
from microkernel_torchscript.outputs import OutputPlan
from microkernel_torchscript.source import COLD, Source
from microkernel_torchscript.warming import NoWarmUp, WarmUp, affordable, batch_sizes

MakeBatch = Callable[..., Batch]
OutputOf = Callable[..., Any]
Save = Callable[..., Path]
Serve = Callable[..., Any]

MIB = 1 << 20
X = ModelInput("x", "TYPE_FP32", dims=(4,))
CONFIG = ModelConfig(
    name="m", max_batch_size=8, input=(X,), output=(ModelOutput("y__0", "TYPE_FP32", dims=(4,)),)
)
PLAN = InputPlan((Feed("x", 0, "tensor"),), (None,), as_dictionary=False)


class Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Picky(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert float(x.max()) > 5.0, "too small for me"
        return x * 2


class Shapes:
    """A callable that notes the shapes that it is given and does as it is told."""

    def __init__(self, act: Callable[[torch.Tensor], Any] = lambda x: x * 2) -> None:
        self.seen: list[tuple[int, ...]] = []
        self._act = act

    def __call__(self, x: torch.Tensor) -> Any:
        self.seen.append(tuple(x.shape))
        return self._act(x)


def warm_up(config: ModelConfig = CONFIG, limit: float = 60.0) -> WarmUp:
    return WarmUp(config, PLAN, Options(), limit)


@pytest.mark.parametrize(
    ("largest", "preferred", "sizes"),
    [
        (0, (), [1]),
        (1, (), [1]),
        (8, (), [1, 8]),
        (8, (4, 2, 8), [1, 2, 4, 8]),
        (64, (1, 16), [1, 16, 64]),
    ],
)
def test_the_sizes_of_batches(largest: int, preferred: tuple[int, ...], sizes: list[int]) -> None:
    batching = DynamicBatching(preferred_batch_size=preferred) if preferred else None
    config = replace(CONFIG, max_batch_size=largest, dynamic_batching=batching)
    assert batch_sizes(config) == sizes


@pytest.mark.parametrize(
    ("size", "row_bytes", "seconds", "left", "expected"),
    [
        (8, 1024, 0.1, 10.0, True),
        (1024, 3 * 224 * 224 * 4, 0.0, 10.0, False),
        (8, 2 * MIB, 0.1, 10.0, True),
        (8, 2 * MIB + 1, 0.1, 10.0, False),
        (8, 1024, 4.0, 10.0, False),
        (8, 1024, 0.0, -1.0, False),
    ],
)
def test_what_is_affordable(
    size: int, row_bytes: int, seconds: float, left: float, expected: bool
) -> None:
    assert affordable(size, row_bytes, seconds, left) is expected


def test_each_size_is_called_three_times() -> None:
    forward = Shapes()
    warmth = warm_up().first_calls(forward)
    assert forward.seen == [(1, 4)] * 3 + [(8, 4)] * 3
    assert (warmth.sizes, warmth.left_out, warmth.keeps_state) == ((1, 8), (), False)
    assert warmth.steady > 0
    assert warmth.first + warmth.steady <= warmth.seconds


def test_what_others_share_is_touched_once_for_each_size() -> None:
    warm, forward = warm_up(), Shapes()
    warm.touch(forward)
    assert forward.seen == []
    warm.first_calls(Shapes())
    warm.touch(forward)
    assert forward.seen == [(1, 4), (8, 4)]


def test_free_sizes_are_tried_until_the_model_takes_them() -> None:
    def act(x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] != 64:
            raise ValueError("must be 64")
        return x

    config = replace(CONFIG, max_batch_size=2, input=(replace(X, dims=(-1,)),))
    forward = Shapes(act)
    assert warm_up(config).first_calls(forward).sizes == (1, 2)
    assert forward.seen[-6:] == [(1, 64)] * 3 + [(2, 64)] * 3


def test_what_must_not_be_zero_is_not() -> None:
    def act(x: torch.Tensor) -> torch.Tensor:
        if not x.any():
            raise ValueError("all zero")
        return x

    assert warm_up().first_calls(Shapes(act)).is_warm


def test_a_model_that_refuses_everything_is_named_with_the_first_line_of_its_words() -> None:
    def act(x: torch.Tensor) -> torch.Tensor:
        raise ValueError(f"first {tuple(x.shape)}\nsecond")

    warmth = warm_up().first_calls(Shapes(act))
    assert not warmth.is_warm
    assert warmth.failure.startswith("ValueError: first (1, 4) (test_pytorch_warming.py, line ")


def test_a_model_that_ends_the_interpreter_is_only_not_warm() -> None:
    def act(x: torch.Tensor) -> torch.Tensor:
        raise SystemExit(3)

    assert "SystemExit(3)" in warm_up().first_calls(Shapes(act)).failure


def test_a_size_that_fails_leaves_the_others() -> None:
    def act(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 4:
            raise ValueError("not four")
        return x

    batching = DynamicBatching(preferred_batch_size=(4,))
    config = replace(CONFIG, dynamic_batching=batching)
    warmth = warm_up(config).first_calls(Shapes(act))
    assert (warmth.sizes, warmth.left_out) == ((1, 8), (4,))


def test_without_time_only_the_smallest_batch_is_tried() -> None:
    forward = Shapes()
    warmth = warm_up(limit=0.0).first_calls(forward)
    assert forward.seen == [(1, 4)] * 3
    assert warmth.left_out == (8,)


def test_a_batch_that_takes_too_much_memory_is_left_out() -> None:
    image = replace(X, dims=(3, 224, 224))
    config = replace(CONFIG, max_batch_size=1024, input=(image,))
    warmth = warm_up(config).first_calls(Shapes(lambda x: x[:, 0, 0]))
    assert (warmth.sizes, warmth.left_out) == ((1,), (1024,))


def test_a_row_that_takes_too_much_memory_is_not_made() -> None:
    forward = Shapes()
    config = replace(CONFIG, input=(replace(X, dims=(1 << 40,)),))
    assert "too large" in warm_up(config).first_calls(forward).failure
    assert forward.seen == []


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, input=(replace(X, allow_ragged_batch=True),)),
        replace(CONFIG, batch_input=(BatchInput("BATCH_ELEMENT_COUNT", ("n",)),)),
    ],
)
def test_a_ragged_batch_is_not_made_up(config: ModelConfig) -> None:
    assert "ragged" in warm_up(config).first_calls(Shapes()).failure


class Accumulating:
    """Adds up what it was called with, in the tensor that it gives back."""

    def __init__(self) -> None:
        self.total = torch.zeros(1, 4)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.total.add_(1) if x.shape[0] == 1 else x


def drawing(x: torch.Tensor) -> torch.Tensor:
    return x + torch.randn(1)


def growing(x: torch.Tensor, kept: list[int] = []) -> list[str]:  # noqa: B006 - it keeps state
    kept.append(1)
    return ["word"] * len(kept)


def nested(x: torch.Tensor) -> dict[str, Any]:
    return {"a": [x, (x + 1,)], "b": ["text"], "c": None}


def nan(x: torch.Tensor) -> torch.Tensor:
    return x / 0


def in_place(x: torch.Tensor) -> torch.Tensor:
    return x.add_(1)


@dataclass
class Held:
    """A result that is no output, and holds tensors."""

    tensor: torch.Tensor


def beside(make: Callable[[], Any]) -> Callable[[torch.Tensor], tuple[torch.Tensor, Any]]:
    """A model that returns something beside its output, made anew in each call."""
    return lambda x: (x, make())


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (beside(lambda: Held(torch.zeros(3))), False),
        (beside(lambda: np.zeros(3)), False),
        (lambda x: np.zeros(3), False),
        (beside(object), False),
        (beside(time.perf_counter), False),
        (beside(lambda: float("nan")), False),
        (beside(lambda: torch.zeros(2, dtype=torch.float8_e4m3fn)), False),
        (Accumulating(), True),
        (growing, True),
        (drawing, False),
        (nested, False),
        (nan, False),
        (in_place, False),
    ],
)
def test_equal_calls_tell_whether_state_is_kept(act: Callable[..., Any], expected: bool) -> None:
    assert warm_up().first_calls(act).keeps_state is expected


def test_a_model_that_fails_when_it_is_called_again_is_only_not_warm() -> None:
    calls = iter(["the first"])
    warmth = warm_up().first_calls(lambda x: next(calls) and x)
    assert (warmth.is_warm, warmth.keeps_state) == (False, True)
    assert "StopIteration" in warmth.failure


def test_comparing_leaves_the_random_numbers_of_others_alone() -> None:
    torch.manual_seed(3)
    drawn = [torch.rand(1).item() for _ in range(4)]
    torch.manual_seed(3)
    forward = Shapes(lambda x: x + torch.rand(1))
    warm_up(replace(CONFIG, max_batch_size=0)).first_calls(forward)
    assert len(forward.seen) == 5  # three, and two that draw from a seed
    assert torch.rand(1).item() == drawn[3]


def test_nothing_is_called_where_nothing_is_wanted() -> None:
    forward = Shapes()
    assert NoWarmUp().first_calls(forward) is COLD
    NoWarmUp().touch(forward)
    assert forward.seen == []


def test_clients_find_a_module_with_state_as_it_was_saved(
    tmp_path: Path, save_module: Save, serve_module: Serve, make_batch: MakeBatch, output_of: Any
) -> None:
    served = serve_module(CONFIG, save_module(Counter(), tmp_path))
    batch = make_batch([{"x": np.zeros((1, 4), np.float32)}])
    counts = [output_of(served.execute(batch)[0], "y__0")[0, 0] for _ in range(2)]
    assert counts == [1, 2]


class Adding(Source):
    """Whose callables add up, each by itself."""

    inputs = PLAN
    outputs = OutputPlan(())

    def __init__(self) -> None:
        self.made: list[Accumulating] = []

    def forward(self, placement: Placement, device: torch.device | None) -> Accumulating:
        self.made.append(Accumulating())
        return self.made[-1]


def test_whatever_keeps_state_is_made_anew_after_its_first_calls() -> None:
    source = Adding()
    ready = source.prepare(Placement("m_0", "KIND_CPU"), torch.device("cpu"), warm_up())
    assert ready.warmth.keeps_state
    assert [made.total[0, 0].item() > 0 for made in source.made] == [True, False]
    assert ready.forward is source.made[-1]


def messages(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


def test_the_log_says_how_long_it_took(
    tmp_path: Path, save_module: Save, serve_module: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    serve_module(CONFIG, save_module(Double(), tmp_path))
    assert messages(caplog).count("model 'm' was warmed up in ") == 1
    assert "with batches of 1, 8: its first call took " in messages(caplog)


def test_a_model_that_cannot_be_warmed_is_loaded_and_said_to_be_slow(
    tmp_path: Path,
    save_module: Save,
    serve_module: Serve,
    make_batch: MakeBatch,
    output_of: OutputOf,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    served = serve_module(CONFIG, save_module(Picky(), tmp_path))
    assert "could not be warmed up" in messages(caplog)
    assert "model_warmup: " in messages(caplog)
    assert "too small for me" in messages(caplog)
    (response,) = served.execute(make_batch([{"x": np.full((1, 4), 6, np.float32)}]))
    assert output_of(response, "y__0").tolist() == [[12, 12, 12, 12]]


@pytest.mark.parametrize(
    ("parameters", "passive"), [({"WARMUP": ModelParameter("false")}, False), ({}, True)]
)
def test_what_is_not_to_be_warmed_is_not(
    tmp_path: Path,
    save_module: Save,
    caplog: pytest.LogCaptureFixture,
    parameters: dict[str, ModelParameter],
    passive: bool,
) -> None:
    caplog.set_level(logging.INFO)
    config = replace(CONFIG, parameters=parameters)
    model = PyTorchBackend().load(config, save_module(Double(), tmp_path))
    model.instance(Placement("m_0", "KIND_CPU", passive=passive)).close()
    model.unload()
    assert "warm" not in messages(caplog)
