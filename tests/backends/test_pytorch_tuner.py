"""Measuring real modules: which variants are held to be equal, and what is refused."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
from torch import nn
from torch_models import FROZEN as FROZEN_FORMS
from torch_models import save_frozen

from microkernel import (
    Internal,
    InvalidArgument,
    ModelConfig,
    ModelInput,
    ModelOutput,
    config_to_json,
)
from microkernel.config.model import SequenceBatching
from microkernel_torchscript.options import parse_options
from microkernel_torchscript.script.files import load_module
from microkernel_torchscript.tuning import asking, grid, measuring, subject
from microkernel_torchscript.tuning.asking import NotMeasured, ask
from microkernel_torchscript.tuning.closeness import Comparison, compare
from microkernel_torchscript.tuning.trial import AOTI, FROZEN, MODULES, OPTIMIZED, PLAIN, Candidate
from microkernel_torchscript.tuning.tuner import tune
from microkernel_torchscript.tuning.variants import as_chosen, as_variant

Save = Callable[..., Path]
Nan, Inf = float("nan"), float("inf")

CONFIG = ModelConfig(
    name="net",
    max_batch_size=2,
    input=(ModelInput("x", "TYPE_FP32", dims=(4,)),),
    output=(ModelOutput("OUTPUT__0", "TYPE_FP32", dims=(-1,)),),
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layers(x)
        return result


class Noisy(Net):
    """Drops some of its inputs even when it is evaluated."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.layers(x), 0.5, training=True)


class Dropping(nn.Module):
    """Drops nearly everything while it is trained, and so until somebody calls `eval`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Net()
        self.drop = nn.Dropout(0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.drop(self.inner(x))
        return result


class Counting(Net):
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        result: torch.Tensor = self.layers(x) + self.count
        return result


class Mixing(Net):
    """Lets the rows of a batch see each other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layers(x - x.mean(0))
        return result


class Single(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.size(0) == 1, "one at a time"
        result: torch.Tensor = self.layers(x)
        return result


class Table(nn.Module):
    """Numbers from 2 on are refused."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.rows(x).sum(1)
        return result


class Writing(Net):
    """Writes into its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += 1
        result: torch.Tensor = self.layers(x)
        return result


class Failing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() > 0:
            raise ValueError("never works")
        return x


class Choosy(nn.Module):
    """Fails for all inputs but the first that are made up."""

    def __init__(self) -> None:
        super().__init__()
        first = torch.randn((1, 4), generator=torch.Generator().manual_seed(0))
        self.first = float(first[0, 0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if float(x[0, 0]) != self.first:
            raise ValueError("not the first")
        return x


@pytest.fixture(autouse=True)
def _settings_of_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Measuring changes them in its process. Short slices show as much here as long ones."""
    monkeypatch.setattr(measuring, "SLICE", 0.005)
    monkeypatch.setattr(grid, "SLICE", 0.005)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def saved(save_module: Save, tmp_path: Path) -> Callable[..., Path]:
    """`saved(module, training=False)`: the version directory of a model 'net'."""

    def save(module: nn.Module, training: bool = False) -> Path:
        files = tmp_path / "models" / "net" / "1"
        files.mkdir(parents=True)
        return save_module(module, files, training=training)

    return save


@pytest.mark.parametrize(
    ("expected", "actual", "fault"),
    [
        (torch.ones(2), torch.ones(2) + 1e-6, ""),
        (torch.ones(2), torch.ones(2) + 1e-3, "differs by up to 0.001"),
        (torch.ones(2).half(), torch.ones(2).half() + 0.002, ""),
        (torch.ones(2).double(), torch.ones(2).double() + 1e-6, "differs by up to 1e-06"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "other values of torch.int64"),
        (torch.ones(2), torch.ones(3), "torch.float32 of shape [3] instead of"),
        (torch.ones(2), torch.ones(2).double(), "torch.float64 of shape [2] instead of"),
        (torch.tensor([Nan, Inf]), torch.tensor([Nan, Inf]), ""),
        (torch.tensor([Inf]), torch.tensor([1.0]), "differs"),
        (torch.tensor([1.0]), torch.tensor([Nan]), "differs"),
        (torch.empty(0, 3), torch.empty(0, 3), ""),
        ((torch.ones(1), ["a"]), (torch.ones(1), ["b"]), "another value at [1][0]"),
        ({"a": torch.ones(1)}, {"b": torch.ones(1)}, "another structure"),
        ((torch.ones(1),), torch.ones(1), "another structure"),
        ({"a": (torch.ones(1), 2)}, {"a": (torch.ones(1), 2)}, ""),
    ],
)
def test_results_are_compared_by_structure_type_shape_and_value(
    expected: Any, actual: Any, fault: str
) -> None:
    found = compare(expected, actual)
    assert fault in found.fault
    assert bool(fault) == bool(found.fault)


def test_the_largest_difference_is_told_also_of_what_is_close() -> None:
    found = compare((torch.zeros(2), torch.ones(2)), (torch.zeros(2), torch.ones(2) + 2**-20))
    assert found == Comparison("", 2**-20)


@pytest.mark.parametrize("variant", MODULES)
def test_a_variant_computes_the_same_and_takes_the_same_arguments(
    variant: str, saved: Callable[..., Path]
) -> None:
    module = load_module("net", saved(Net()) / "model.pt", device="cpu")
    made = as_variant(module, variant)  # warns of nothing
    x = torch.randn(3, 4)
    with torch.inference_mode():
        for _ in range(3):
            assert compare(module(x), made(x)).fault == ""
    assert (made is module) == (variant == PLAIN)
    assert len(list(made.parameters())) == (4 if variant == PLAIN else 0)


def test_a_variant_that_torch_cannot_make_leaves_the_module(
    saved: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    module = load_module("net", saved(Net()) / "model.pt", device="cpu").train()
    assert as_chosen("net", module, FROZEN) is module
    assert "model 'net' runs as it was saved, not 'frozen'" in caplog.text
    with pytest.raises(ValueError, match="no variant is called 'other'"):
        as_variant(module, "other")


def test_a_model_is_measured(saved: Callable[..., Path]) -> None:
    news: list[str] = []
    found = tune(CONFIG, saved(Net()), 3.0, news.append)
    measured = {row.candidate.variant for row in found.rows if row.figures is not None}
    assert measured == set(MODULES)
    for row in found.rows:
        if row.figures is not None:
            assert min(row.figures.latency_ms, row.figures.items_per_second) > 0
            assert row.difference is not None
            assert row.difference < 1e-5
    (aoti,) = [row for row in found.rows if row.candidate.variant == AOTI]
    assert aoti.note == "there is no folder to compile in"
    assert found.decision.choice in {row.candidate for row in found.rows if row.accepted}
    assert found.decision.reason
    assert "rtol 0.0001, atol 1e-05" in found.tolerance
    assert len(news) == 3


@pytest.mark.parametrize("form", FROZEN_FORMS)
def test_a_module_that_was_frozen_before_is_measured(form: str, tmp_path: Path) -> None:
    found = tune(CONFIG, save_frozen(form, Net(), tmp_path), 1.0, lambda _: None)
    notes = {row.candidate.variant: row.note for row in found.rows if row.figures is None}
    assert set(notes) & {PLAIN, FROZEN, OPTIMIZED} == set(), notes


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Noisy(), "equal inputs give different results"),
        (Counting(), "the model keeps state: it changes its attribute 'count' in place"),
        (Failing(), "it runs on no inputs made up for it: .*never works"),
        (Choosy(), "it fails on some of the inputs made up for it: .*not the first"),
    ],
)
def test_a_model_whose_results_are_no_measure_stays_as_it_is(
    module: nn.Module, reason: str, saved: Callable[..., Path]
) -> None:
    found = tune(CONFIG, saved(module), 1.0, lambda _: None)
    assert found.decision.choice.variant == PLAIN
    assert (found.decision.choice.instances, found.decision.choice.batch) == (1, 1)
    assert (found.rows, found.decision.difference) == ((), 0.0)
    assert re.search(reason, found.decision.reason)


def test_a_model_of_sequences_is_not_measured(saved: Callable[..., Path]) -> None:
    config = replace(CONFIG, sequence_batching=SequenceBatching())
    found = tune(config, saved(Net()), 1.0, lambda _: None)
    assert found.decision.reason == "a model of sequences is not tuned"


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (Mixing(), "an item of a batch gets another result than alone: differs by up to"),
        (Single(), "a batch of 2 fails: .*one at a time"),
    ],
)
def test_a_model_that_does_not_batch_is_given_single_items(
    module: nn.Module, told: str, saved: Callable[..., Path]
) -> None:
    found = tune(CONFIG, saved(module), 2.0, lambda _: None)
    assert re.search(told, found.left_out[0])
    assert {row.candidate.batch for row in found.rows} == {1}


@pytest.mark.parametrize(
    ("module", "data_type"), [(Table(), "TYPE_INT64"), (Writing(), "TYPE_FP32")]
)
def test_inputs_are_found_that_a_model_runs_on(
    module: nn.Module, data_type: str, saved: Callable[..., Path]
) -> None:
    entry = ModelInput("x", data_type, dims=(-1,) if data_type == "TYPE_INT64" else (4,))
    config = replace(CONFIG, input=(entry,), max_batch_size=1)
    found = tune(config, saved(module), 1.0, lambda _: None)
    assert {row.candidate.variant for row in found.rows if row.figures} == set(MODULES)


def test_a_model_saved_in_training_mode_is_measured_as_it_is_served(
    saved: Callable[..., Path],
) -> None:
    files = saved(Dropping(), training=True)
    found = tune(replace(CONFIG, max_batch_size=0), files, 1.0, lambda _: None)
    assert {row.candidate.variant for row in found.rows if row.figures} == set(MODULES)


def test_a_variant_that_fails_or_differs_is_refused_and_never_chosen(
    saved: Callable[..., Path],
    save_module: Save,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(module: torch.jit.ScriptModule, variant: str) -> torch.jit.ScriptModule:
        if variant == FROZEN:
            raise RuntimeError("no such pass\nframe #1: somewhere")
        if variant == OPTIMIZED:
            return load_module("net", halved, device="cpu")
        return module

    halved = save_module(_Half(Net()), tmp_path) / "model.pt"

    monkeypatch.setattr(subject, "as_variant", broken)
    found = tune(replace(CONFIG, max_batch_size=0), saved(Net()), 1.0, lambda _: None)
    notes = {row.candidate.variant: row.note for row in found.rows}
    assert notes[FROZEN].startswith("no such pass (test_pytorch_tuner.py, line ")
    assert notes[OPTIMIZED].startswith("batch of 1: differs by up to")
    assert found.decision.choice.variant == PLAIN
    assert not any(row.accepted for row in found.rows if row.candidate.variant != PLAIN)


class _Half(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(x) * 0.5
        return result


class _Greedy:
    """Lets no other thread run Python while it is called, as machine code does."""

    def __init__(self) -> None:
        self.took: list[float] = []

    def forward(self, _: torch.Tensor) -> None:
        before = time.thread_time()
        sum(range(2_000_000))
        self.took.append(time.thread_time() - before)


def test_processor_time_is_counted_from_the_first_call_also_of_machine_code() -> None:
    greedy = _Greedy()
    runner = measuring.Runner(greedy, (torch.ones(1),), parse_options(CONFIG))
    figures = measuring.run_slice(Candidate(AOTI), runner, 0.001)
    _, *calls = greedy.took  # the first one warms up
    assert figures.cpu_ms * len(calls) >= 0.99e3 * sum(calls)


def test_without_time_nothing_is_measured(saved: Callable[..., Path]) -> None:
    found = tune(CONFIG, saved(Net()), 0.001, lambda _: None)
    assert found.decision.reason == "the time does not suffice for a single variant"


def test_inputs_of_too_many_bytes_are_not_made_up(saved: Callable[..., Path]) -> None:
    large = replace(CONFIG, input=(ModelInput("x", "TYPE_FP32", dims=(1 << 40, 4)),))
    found = tune(large, saved(Net()), 1.0, lambda _: None)
    assert found.decision.reason.endswith("the inputs of one item are too large")


def test_a_broken_file_fails_as_its_load_does(saved: Callable[..., Path]) -> None:
    files = saved(Net())
    (files / "model.pt").write_bytes(b"nothing")
    with pytest.raises(Internal, match="failed to load model 'net'"):
        tune(CONFIG, files, 1.0, lambda _: None)


def test_a_configuration_that_contradicts_the_model_fails(saved: Callable[..., Path]) -> None:
    config = replace(CONFIG, input=(*CONFIG.input, ModelInput("y", "TYPE_FP32", dims=(4,))))
    with pytest.raises(InvalidArgument, match="expects 2 inputs, model provides 1"):
        tune(config, saved(Net()), 1.0, lambda _: None)


def test_an_interpreter_of_its_own_tells_why_a_load_fails(saved: Callable[..., Path]) -> None:
    files = saved(Net())
    (files / "model.pt").write_bytes(b"nothing")
    with pytest.raises(Internal, match="failed to load model 'net'"):
        ask(CONFIG, files, 1.0, lambda _: None)


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import os; os.kill(os.getpid(), 11)", "ended with signal 11"),
        ("raise SystemExit(3)", "ended with exit code 3"),
        ("import os, sys; os.write(int(sys.argv[1]), b'{}\\n')", "answers what is no answer"),
        ("import os, sys; os.write(int(sys.argv[1]), b'[\\n')", "answers what is no answer"),
        ("import sys; sys.stdin.read()", "still running when measuring had to be over"),
        ("import os, sys; os.write(int(sys.argv[1]), b'x' * 5_000_000)", "said too much"),
    ],
)
def test_an_interpreter_that_ends_or_hangs_is_told_of(
    program: str, told: str, saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen

    def other(command: list[str], **options: Any) -> Any:
        return start([sys.executable, "-c", program, command[-1]], **options)

    monkeypatch.setattr(subprocess, "Popen", other)
    monkeypatch.setattr(asking, "_START_SECONDS", 0.5 if "stdin" in program else 60.0)
    with pytest.raises(NotMeasured, match=told):
        ask(CONFIG, saved(Net()), 0.0, lambda _: None)


def test_the_interpreter_ends_with_who_asked(saved: Callable[..., Path]) -> None:
    read_end, write_end = os.pipe()
    order = {"config": config_to_json(CONFIG), "files": str(saved(Net())), "seconds": 3600}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "microkernel_torchscript.tuning.child", str(write_end)],
        stdin=subprocess.PIPE,
        pass_fds=(write_end,),
    )
    os.close(write_end)
    assert process.stdin is not None
    process.stdin.write(json.dumps(order).encode() + b"\n")
    process.stdin.flush()
    assert os.read(read_end, 100).startswith(b'{"news"')
    process.stdin.close()
    assert process.wait(60) == 1
    os.close(read_end)
