"""Devices that are written into the code of TorchScript files: what finds, judges and replaces
them."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
from torch import nn
from torch_models import MakesTensors, Perceptron, save_frozen

from microkernel import InvalidArgument, ModelConfig, ModelInput, ModelOutput, Placement
from microkernel_torchscript.backend import PyTorchBackend
from microkernel_torchscript.gpu.baked import (
    Verdict,
    baked_devices,
    fitted,
    holds_tensors,
    judge,
    replace_device,
)
from microkernel_torchscript.script.files import load_module

Save = Callable[..., Path]

CPU = torch.device("cpu")
GPU, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)
CONFIG = ModelConfig(
    name="m",
    input=(ModelInput("x", "TYPE_FP32", dims=(3,)),),
    output=(ModelOutput("y__0", "TYPE_FP32", dims=(3,)),),
)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this host has a GPU")


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = MakesTensors()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(x)
        return result


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.is_cuda:
            x = x + torch.ones(3, device="cuda:0")
        return x


def load(files: Path) -> torch.jit.ScriptModule:
    return load_module("m", files / "model.pt", device="cpu")


def test_devices_in_traced_code_are_found(tmp_path: Path, save_module: Save) -> None:
    module = load(save_module(Outer(), tmp_path, torch.zeros(3)))
    assert baked_devices(module.inlined_graph) == {"cpu": "aten::ones"}


@pytest.mark.parametrize("module", [Outer(), Branches()])
def test_scripted_code_names_the_device_of_its_input_or_one_in_a_branch(
    tmp_path: Path, save_module: Save, module: nn.Module
) -> None:
    assert baked_devices(load(save_module(module, tmp_path)).inlined_graph) == {}


@no_gpu
def test_a_device_in_code_that_has_not_run_can_be_replaced(
    tmp_path: Path, save_module: Save
) -> None:
    module = load(save_module(Outer(), tmp_path, torch.zeros(3)))
    assert replace_device(module, "cuda:1", "cuda:0") == 0
    assert replace_device(module, "cpu", "cuda:0") == 1
    with pytest.raises(RuntimeError, match="CUDA"):  # it runs what stands there now
        module(torch.zeros(3))


@pytest.mark.parametrize(("form", "expected"), [("frozen", True), ("", False)])
def test_weights_of_a_frozen_module_are_found_in_its_code(
    tmp_path: Path, save_module: Save, form: str, expected: bool
) -> None:
    save = partial(save_frozen, form) if form else save_module
    assert holds_tensors(load(save(Perceptron(), tmp_path)).inlined_graph) is expected


JUDGED: list[tuple[str, dict[str, str], torch.device | None, int, Verdict]] = [
    ("nothing", {}, CPU, 0, Verdict()),
    ("the CPU on the CPU", {"cpu": "op"}, CPU, 0, Verdict()),
    ("a GPU on a host without", {"cuda:0": "op"}, CPU, 0, Verdict(missing="cuda:0")),
    ("any GPU on a host without", {"cuda": "op"}, CPU, 0, Verdict(missing="cuda")),
    ("a GPU on the CPU of a host with", {"cuda:0": "op"}, CPU, 1, Verdict(doubtful="cuda:0")),
    ("the second GPU of one", {"cuda:1": "op"}, CPU, 1, Verdict(missing="cuda:1")),
    ("the CPU on a GPU", {"cpu": "op"}, GPU, 1, Verdict(doubtful="cpu")),
    ("the same GPU", {"cuda:0": "op"}, GPU, 1, Verdict()),
    ("whatever GPU is current", {"cuda": "op"}, SECOND, 2, Verdict()),
    ("another GPU", {"cuda:0": "op"}, SECOND, 2, Verdict(replaced="cuda:0")),
    ("another GPU, not there", {"cuda:3": "op"}, GPU, 1, Verdict(replaced="cuda:3")),
    ("two GPUs", {"cuda:0": "op", "cuda:1": "op"}, SECOND, 2, Verdict()),
    ("two GPUs of one", {"cuda:0": "op", "cuda:1": "op"}, GPU, 1, Verdict(missing="cuda:1")),
    ("where it was saved", {"cuda:1": "op", "cpu": "op"}, None, 2, Verdict()),
    ("where it was saved, not there", {"cuda:1": "op"}, None, 1, Verdict(missing="cuda:1")),
]


@pytest.mark.parametrize(
    ("baked", "device", "gpus", "expected"),
    [row[1:] for row in JUDGED],
    ids=[row[0] for row in JUDGED],
)
def test_what_is_done_about_baked_devices(
    baked: dict[str, str], device: torch.device | None, gpus: int, expected: Verdict
) -> None:
    assert judge(baked, device, gpus) == expected


def save_for(device: str, files: Path, save_module: Save) -> None:
    """Save a model as if it had been traced on a device."""
    module = load(save_module(Outer(), files, torch.zeros(3)))
    assert replace_device(module, "cpu", device) == 1
    module.save(str(files / "model.pt"))


@no_gpu
def test_a_model_of_a_device_that_is_not_there_fails_the_load_with_the_cure(
    tmp_path: Path, save_module: Save
) -> None:
    save_for("cuda:2", tmp_path, save_module)
    model = PyTorchBackend().load(CONFIG, tmp_path)
    with pytest.raises(InvalidArgument) as caught:
        model.instance(Placement("m_0", "KIND_CPU"))
    assert str(caught.value) == (
        "unable to load model 'm': its code names the device cuda:2 (aten::ones), which this host "
        "lacks; export the model with torch.jit.script, or trace it on a device that is there"
    )


@no_gpu
def test_it_is_not_asked_for_a_configuration_first(tmp_path: Path, save_module: Save) -> None:
    save_for("cuda:2", tmp_path, save_module)
    with pytest.raises(InvalidArgument, match="its code names the device cuda:2"):
        PyTorchBackend().complete(ModelConfig(name="m"), tmp_path)


def test_another_gpu_takes_the_place_of_the_one_it_was_traced_on(
    tmp_path: Path, save_module: Save, caplog: pytest.LogCaptureFixture
) -> None:
    save_for("cuda:0", tmp_path, save_module)
    seen = load(tmp_path)
    with caplog.at_level(logging.INFO):
        module = fitted("m", seen, SECOND, partial(load, tmp_path))
    assert module is not seen
    assert list(baked_devices(module.inlined_graph)) == ["cuda:1"]
    assert "cuda:1 stands in its code in place of cuda:0" in caplog.text


def test_a_doubtful_device_is_a_warning(
    tmp_path: Path, save_module: Save, caplog: pytest.LogCaptureFixture
) -> None:
    module = load(save_module(Outer(), tmp_path, torch.zeros(3)))
    assert fitted("m", module, GPU, partial(load, tmp_path)) is module
    assert "its code names the device cpu (aten::ones), and an instance is on cuda:0" in caplog.text
    assert "torch.jit.script, or trace it on cuda:0" in caplog.text
