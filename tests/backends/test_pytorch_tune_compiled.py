"""AOTInductor as a variant: when it is tried, what is kept of it, and what serves."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
from compiled_models import CONFIG, Net
from torch import nn

from microkernel import (
    InstanceGroup,
    InvalidArgument,
    ModelConfig,
    ModelInput,
    ModelParameter,
)
from microkernel.config.model import BatchInput, Reshape
from microkernel_torchscript.inputs import plan_inputs
from microkernel_torchscript.script.files import load_module
from microkernel_torchscript.signature import signature_of
from microkernel_torchscript.tuning import tuner
from microkernel_torchscript.tuning.closeness import compare
from microkernel_torchscript.tuning.compiled import ordering, trying
from microkernel_torchscript.tuning.compiled.calling import Compiled, form_of
from microkernel_torchscript.tuning.compiled.conditions import Form, not_compiled
from microkernel_torchscript.tuning.compiled.making import checked, compile_module
from microkernel_torchscript.tuning.compiled.ordering import PACKAGE, Made, order_package
from microkernel_torchscript.tuning.compiled.trying import Workpiece, try_compiled
from microkernel_torchscript.tuning.deciding import Decision
from microkernel_torchscript.tuning.samples import find_sampler
from microkernel_torchscript.tuning.trial import (
    AOTI,
    FROZEN,
    OPTIMIZED,
    PLAIN,
    Candidate,
    Figures,
    Row,
)

Saved = Callable[[nn.Module], Path]
Lines = Callable[[], list[str]]
Change = dict[str, Any]


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class Tensors(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1, x - 1


class Listed(nn.Module):
    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x + 1, x - 1]


class Named(nn.Module):
    def forward(self, x: torch.Tensor) -> Pair:
        return Pair(x + 1, x - 1)


class Nested(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        return x, (x + 1, x - 1)


class Keyed(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"x": x + 1}


class Number(nn.Module):
    def forward(self, x: torch.Tensor) -> int:
        return x.size(0)


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
        return x * scale


class Masked(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return x if mask is None else x * mask


class Dictionary(nn.Module):
    def forward(self, d: dict[str, torch.Tensor]) -> torch.Tensor:
        return d["x"] + 1


class Sized(nn.Module):
    """Small batches get another result than large ones."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.size(0) > 2:
            return x * 2
        return x * 3


class Turning(nn.Module):
    """Runs a loop as often as there are items."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(x.size(0)):
            x = x + x[i]
        return x


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(autouse=True)
def _compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_COMPILE_DISABLE", raising=False)


def loaded(files: Path) -> torch.jit.ScriptModule:
    return load_module("net", files / "model.pt", device="cpu")


def reason(
    files: Path, config: ModelConfig, sizes: Sequence[int] = (1, 4), seconds: float = 60.0
) -> str:
    module = loaded(files)
    plan = plan_inputs(config, signature_of(module))
    return not_compiled(config, plan, form_of(module), sizes, seconds)


def dims(*sizes: int, **more: Any) -> Change:
    return {"input": (replace(CONFIG.input[0], dims=sizes, **more),)}


def parameter(name: str, text: str) -> Change:
    return {"parameters": {name: ModelParameter(text)}}


def instances(count: int, **more: Any) -> Change:
    return {"instance_group": (InstanceGroup("g", "KIND_CPU", count, **more),)}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"max_batch_size": 0},
        dims(192, reshape=Reshape((3, 8, 8))),
        dims(),
        parameter("WORKER", "instance"),
        parameter("WORKER", "process"),
        instances(1),
        {**instances(4), **parameter("WORKER", "instance")},
        {"instance_group": (*instances(1)["instance_group"], InstanceGroup(count=3, passive=True))},
    ],
)
def test_a_model_whose_sizes_are_all_known_may_be_compiled(
    change: Change, saved_net: Saved
) -> None:
    assert reason(saved_net(Net()), replace(CONFIG, **change)) == ""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dims(-1, 8, 8), "the configuration leaves sizes of input 'x' open"),
        (dims(-1, reshape=Reshape((3, 8, -1))), "the configuration leaves sizes of input 'x' open"),
        (dims(0, 8, 8), "the configuration leaves sizes of input 'x' open"),
        (dims(3, 8, 8, optional=True), "its arguments differ between calls"),
        (dims(3, 8, 8, allow_ragged_batch=True), "its arguments differ between calls"),
        (dims(3, 8, 8, is_shape_tensor=True), "input 'x' is a shape tensor"),
        (parameter("WORKER", "thread"), "the server's interpreter to itself, where WORKER is"),
        (instances(2), "2 instances in one process would wait for each other: set WORKER to"),
        (
            {**instances(3), **parameter("WORKER", "process")},
            "3 instances in one process would wait",
        ),
    ],
)
def test_what_a_configuration_must_not_leave_open(
    change: Change, told: str, saved_net: Saved
) -> None:
    assert told in reason(saved_net(Net()), replace(CONFIG, **change))


def test_a_batch_input_is_not_compiled_for(saved_net: Saved) -> None:
    made = BatchInput(target_name=("mask",), data_type="TYPE_FP32", source_input=("x",))
    files = saved_net(Masked())
    assert "arguments differ" in reason(files, replace(CONFIG, batch_input=(made,)))


@pytest.mark.parametrize(
    ("module", "change", "told"),
    [
        (Named(), {}, "it returns more than a tensor, or a tuple or list of tensors"),
        (Nested(), {}, "it returns more than a tensor"),
        (Keyed(), {}, "it returns more than a tensor"),
        (Number(), {}, "it returns more than a tensor"),
        (Dictionary(), {}, "it takes a dictionary"),
        (Masked(), {}, "its arguments differ between calls or are not all given"),
        (Scaled(), {"max_batch_size": 0}, "its arguments differ between calls or are not all"),
        (
            Scaled(),
            {
                "max_batch_size": 0,
                "input": (*CONFIG.input, ModelInput("scale", "TYPE_FP32", dims=(1,))),
            },
            "input 'scale' is no tensor for it",
        ),
    ],
)
def test_what_a_module_must_not_take_or_return(
    module: nn.Module, change: Change, told: str, saved_net: Saved
) -> None:
    assert told in reason(saved_net(module), replace(CONFIG, **change))


def test_it_takes_time_and_batches_to_compare(saved_net: Saved) -> None:
    files = saved_net(Net())
    assert "compiling takes too long for 5 s of measuring; give 20" in reason(
        files, CONFIG, seconds=5.0
    )
    assert "could not be compared with the plain module in batches" in reason(files, CONFIG, (1,))
    assert reason(files, replace(CONFIG, max_batch_size=1), (1,)) == ""
    assert reason(files, replace(CONFIG, max_batch_size=0), (1,)) == ""


@pytest.mark.parametrize(
    ("module", "form"),
    [
        (Net(), "tensor"),
        (Tensors(), "tuple"),
        (Listed(), "list"),
        *((module, "") for module in (Named(), Nested(), Keyed(), Number())),
    ],
)
def test_what_is_returned_is_told_by_the_signature(
    module: nn.Module, form: Form, saved_net: Saved
) -> None:
    assert form_of(loaded(saved_net(module))) == form


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("tensor", torch.ones(2)),
        ("tuple", (torch.ones(2), torch.zeros(2))),
        ("list", [torch.ones(2), torch.zeros(2)]),
    ],
)
def test_results_have_the_structure_of_the_modules(form: Form, expected: Any) -> None:
    compiled = Compiled("net", lambda *_: (torch.ones(2), torch.zeros(2)), form)
    found = compiled.forward(torch.ones(1))
    assert compare(expected, found).fault == ""
    assert type(found) is type(expected)


def test_a_batch_of_nothing_does_not_reach_machine_code() -> None:
    def fails(*_: Any) -> tuple[Any, ...]:
        raise AssertionError("it was called")

    with pytest.raises(InvalidArgument, match="model 'net' runs as machine code, which takes a b"):
        Compiled("net", fails, "tensor").forward(torch.empty(0, 3))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((1,), [1]), ((1, 2), [1, 2]), ((1, 8), [1, 2, 3, 7, 8]), ((1, 4, 16), [1, 2, 3, 4, 15, 16])],
)
def test_results_are_compared_in_more_batches_than_were_shown(
    sizes: tuple[int, ...], expected: list[int]
) -> None:
    assert checked(sizes) == expected


@pytest.mark.parametrize(
    ("variant", "best", "note"),
    [
        (AOTI, AOTI, "one instance serves fewer items than several"),
        (AOTI, OPTIMIZED, "no clear gain"),
        (FROZEN, AOTI, "no clear gain"),
        (OPTIMIZED, AOTI, ""),
        (PLAIN, AOTI, ""),
    ],
)
def test_the_table_says_why_it_was_not_chosen(variant: str, best: str, note: str) -> None:
    row = Row(Candidate(variant), Figures(1.0, 1.0, 1.0))
    decision = Decision(Candidate(OPTIMIZED, 1, 2), "it serves more")
    assert tuner._judged(row, decision, best).note == note


@pytest.mark.parametrize("module", [Sized(), Turning()])
def test_code_that_depends_on_the_size_of_a_batch_is_refused(
    module: nn.Module, saved_net: Saved, tmp_path: Path
) -> None:
    made = loaded(saved_net(module))
    with torch.no_grad():
        sampler = find_sampler(CONFIG, plan_inputs(CONFIG, signature_of(made)), made.forward)
        with pytest.raises(Exception, match=r"it cannot be exported: .+"):
            compile_module(made, sampler, CONFIG, 4, tmp_path / PACKAGE)
    assert not (tmp_path / PACKAGE).exists()


def test_a_torch_without_the_converter_is_a_reason(
    saved_net: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch._export.converter", None)
    made = loaded(saved_net(Net()))
    with torch.no_grad():
        sampler = find_sampler(CONFIG, plan_inputs(CONFIG, signature_of(made)), made.forward)
        with pytest.raises(Exception, match=r"it cannot be exported: .*_export\.converter"):
            compile_module(made, sampler, CONFIG, 4, tmp_path / PACKAGE)


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import os; os.kill(os.getpid(), 11)", "the compiling process ended with signal 11"),
        ("raise SystemExit(3)", "the compiling process ended with exit code 3"),
        ("say(b'{}')", "answers what is no answer"),
        ("say(b'[]')", "answers what is no answer"),
        ('say(b\'{"fault": "", "difference": -1}\')', "answers what is no answer"),
        ('say(b\'{"fault": "no such pass", "difference": 0}\')', "no such pass"),
        ('say(b\'{"failed": ["INTERNAL", "it is broken"]}\')', "it is broken"),
        ("sys.stdin.read()", "compiling takes more than 180 s"),
    ],
)
def test_whatever_the_compiler_does_is_a_reason(
    program: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen
    head = "import os, sys\ndef say(t): os.write(int(sys.argv[1]), t + b'\\n')\n"

    def other(command: list[str], **options: Any) -> Any:
        return start([sys.executable, "-c", head + program, command[-1]], **options)

    monkeypatch.setattr(subprocess, "Popen", other)
    monkeypatch.setattr(ordering, "MOST_SECONDS", 0.5 if "stdin" in program else 60.0)
    made = order_package(CONFIG, tmp_path, (1, 4), tmp_path)
    assert told in made.fault


def test_what_a_compiler_started_ends_with_who_gave_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `g++` is started by the interpreter that compiles."""
    read_end, write_end = os.pipe()
    start = subprocess.Popen
    program = (
        "import subprocess, sys\n"
        f"subprocess.Popen(['sleep', '3600'], pass_fds=[{write_end}])\n"
        "sys.stdin.read()"
    )

    def other(command: list[str], **options: Any) -> Any:
        options["pass_fds"] = (*options["pass_fds"], write_end)
        return start([sys.executable, "-c", program, command[-1]], **options)

    monkeypatch.setattr(subprocess, "Popen", other)
    monkeypatch.setattr(ordering, "MOST_SECONDS", 1.0)
    order_package(CONFIG, tmp_path, (1,), tmp_path)
    os.close(write_end)
    assert os.read(read_end, 1) == b""  # nobody has the other end any more
    os.close(read_end)


@pytest.mark.parametrize(("group", "code"), [(None, 1), (0, -9)])
def test_a_folder_nobody_waits_for_any_more_is_removed(
    group: int | None, code: int, tmp_path: Path
) -> None:
    folder = tmp_path / "work"
    (folder / "inductor").mkdir(parents=True)
    program = (
        "import time; from microkernel_torchscript.tuning.answering import answer; "
        "answer(lambda *_: time.sleep(3600))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "1"], stdin=subprocess.PIPE, process_group=group
    )
    process.communicate(json.dumps({"folder": str(folder)}).encode() + b"\n", timeout=60)
    assert process.returncode == code
    assert not folder.exists()


@pytest.fixture
def piece(saved_net: Saved, tmp_path: Path) -> Workpiece:
    """A model that may be compiled."""
    files = saved_net(Net())
    module = loaded(files)
    return Workpiece(CONFIG, files, module, plan_inputs(CONFIG, signature_of(module)), tmp_path)


@pytest.mark.parametrize(
    ("hindrance", "told"),
    [
        ("folder", "there is no folder to compile in"),
        ("turned off", "TORCH_COMPILE_DISABLE turns compiling off"),
        ("compiler", "there is no C++ compiler"),
        ("seconds", "compiling takes too long for 19 s"),
    ],
)
def test_a_host_that_cannot_compile_says_why_and_nothing_is_tried(
    hindrance: str, told: str, piece: Workpiece, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trying, "missing_compiler", lambda: "")
    monkeypatch.setattr(trying, "order_package", None)
    if hindrance == "folder":
        piece = replace(piece, folder=None)
    if hindrance == "turned off":
        monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    if hindrance == "compiler":
        monkeypatch.setattr(trying, "missing_compiler", lambda: "there is no C++ compiler (g++)")
    tried = try_compiled(piece, (1, 4), 19.0 if hindrance == "seconds" else 60.0, lambda _: None)
    assert told in tried.comparison.fault
    assert (tried.module, tried.difference) == (None, None)


def test_a_package_that_differs_or_does_not_load_is_refused(
    piece: Workpiece, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trying, "missing_compiler", lambda: "")
    monkeypatch.setattr(trying, "order_package", lambda *_: Made("batch of 2: differs", 0.5))
    tried = try_compiled(piece, (1, 4), 60.0, lambda _: None)
    assert (tried.comparison.fault, tried.difference) == ("batch of 2: differs", 0.5)
    monkeypatch.setattr(trying, "order_package", lambda *_: Made("", 0.0))
    tried = try_compiled(piece, (1, 4), 60.0, lambda _: None)
    assert "unreachable or inaccessible" in tried.comparison.fault
    assert tried.module is None
