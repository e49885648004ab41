"""Python modules: which file, which class and which weights make the model."""

import hashlib
import logging
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
from module_files import forward, load, module_config, write_module
from torch import nn

from microkernel import Batch, Internal, InvalidArgument, Placement, Unavailable
from microkernel_torchscript.backend import PyTorchBackend
from microkernel_torchscript.module.source import ModuleSource

pytestmark = pytest.mark.usefixtures("uncompiled")

MakeBatch = Callable[..., Batch]
OutputOf = Callable[..., Any]
Serve = Callable[..., Any]

ROW = np.array([1, 2, 3, 4], dtype=np.float32)
LINEAR = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x)
"""


def module_of(files: Path, kind: str = "KIND_CPU", mapped: bool = False, **settings: Any) -> Any:
    """The module that an instance calls."""
    source = ModuleSource(module_config(**settings), files, mapped=mapped)
    device = None if kind == "KIND_MODEL" else torch.device("cpu")
    module = source.forward(Placement("m_0", kind), device)
    source.close()
    return module


def served_class(files: Path, **settings: Any) -> str:
    return type(module_of(files, **settings)).__name__


# Files


def test_weights_beside_the_file_are_loaded_and_the_module_is_in_evaluation_mode(
    ask: Callable[..., Any],
) -> None:
    layer = nn.Linear(4, 4)
    weights = {f"layer.{name}": value for name, value in layer.state_dict().items()}
    source = LINEAR.replace(
        "self.layer(x)", "nn.functional.dropout(self.layer(x), 0.9, self.training)"
    )
    [found] = ask(source, module_config(), {"x": ROW}, weights=weights)
    with torch.no_grad():
        np.testing.assert_allclose(found, layer(torch.from_numpy(ROW)).numpy(), rtol=1e-6)


def test_without_weights_the_module_is_as_it_was_made(
    ask: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        [found] = ask(forward("return x + 1"), module_config(), {"x": ROW})
    assert found.tolist() == [2, 3, 4, 5]
    assert "Model parameter file not found for 'm'" in caplog.messages


def test_the_named_file_wins_and_has_weights_of_its_own_name(files: Path) -> None:
    write_module(files, "class Usual(nn.Module):\n    def forward(self, x): return x")
    write_module(files, LINEAR.replace("Net", "Other"), None, "other")
    torch.save({"layer.weight": torch.eye(4), "layer.bias": torch.ones(4)}, files / "other.pt")
    assert served_class(files, filename="other.py") == "Other"
    assert served_class(files, filename="not_there.py") == "Usual"
    assert served_class(files) == "Usual"


def test_a_pt_file_is_torchscript(
    files: Path,
    save_module: Callable[..., Path],
    ask: Callable[..., Any],
    serve_module: Serve,
    make_batch: MakeBatch,
    output_of: OutputOf,
    caplog: pytest.LogCaptureFixture,
) -> None:
    files.mkdir(parents=True)
    with caplog.at_level(logging.INFO):
        served = serve_module(module_config(), save_module(nn.ReLU(), files))
    [outcome] = served.execute(make_batch([{"x": -ROW}], batching=False))
    assert output_of(outcome, "y").tolist() == [0, 0, 0, 0]
    assert "Loading 'm' as TorchScript" in caplog.messages


@pytest.mark.parametrize("runtime", ["model_py", "Model.py", "torch"])
def test_a_runtime_that_there_is_not(files: Path, runtime: str) -> None:
    write_module(files, LINEAR)
    config = replace(module_config(), runtime=runtime)
    for ask_for in (PyTorchBackend().load, PyTorchBackend().complete):
        with pytest.raises(InvalidArgument, match=f"'runtime' of model 'm' is '{runtime}'"):
            ask_for(config, files)


def test_the_library_of_another_server_is_torchscript(
    files: Path, save_module: Callable[..., Path]
) -> None:
    files.mkdir(parents=True)
    save_module(nn.ReLU(), files)
    config = replace(module_config(), runtime="libtriton_pytorch.so")
    PyTorchBackend().load(config, files).unload()


def test_no_file_at_all(files: Path) -> None:
    files.mkdir(parents=True)
    with pytest.raises(Unavailable, match=r"No model found in .*/1/\[model\.py\]"):
        load(files)


def test_a_file_that_is_neither_python_nor_torchscript(files: Path) -> None:
    files.mkdir(parents=True)
    (files / "model.bin").write_bytes(b"\0")
    with pytest.raises(Internal, match=r"'.*model\.bin' is no Python file"):
        load(files, filename="model.bin")


def test_versions_and_what_they_import_do_not_meet(tmp_path: Path) -> None:
    found = []
    for version, number in (("1", 10), ("2", 20)):
        files = write_module(
            tmp_path / "m" / version,
            "import part\nclass Net(nn.Module):\n  def forward(self, x): return x + part.NUMBER",
        )
        (files / "part.py").write_text(f"NUMBER = {number}\n")
        found.append(module_of(files)(torch.zeros(1)).item())
    assert found == [10, 20]


# Classes


@pytest.mark.parametrize(
    ("source", "chosen", "warned"),
    [
        ("class Net(nn.Module): pass", "Net", False),
        ("from torch.nn import Linear\nclass Z(Linear):\n  def __init__(s): super().__init__(1, 1)",
         "Z", False),
        ("class B(nn.Module): pass\nclass A(nn.Module): pass", "A", True),
        ("class A:\n  pass\nclass B(nn.Module): pass", "B", False),
        ("class A(nn.Module):\n  def __init__(s, n): super().__init__()\nclass B(nn.Module): pass",
         "B", True),
        ("class B(nn.Module): pass\nA = B", "B", False),
    ],
)  # fmt: skip
def test_the_class_that_is_served(
    files: Path, caplog: pytest.LogCaptureFixture, source: str, chosen: str, warned: bool
) -> None:
    write_module(files, source)
    assert served_class(files) == chosen
    assert any(f"{chosen} is served, the first by name" in m for m in caplog.messages) == warned


def test_an_imported_class_is_served_where_the_file_defines_none(files: Path) -> None:
    write_module(files, "from net_of_test import *")
    write_module(files, "class Imported(nn.Module): pass", name="net_of_test")
    assert served_class(files) == "Imported"


def test_of_several_classes_the_one_is_served_that_the_weights_fit(
    files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = """
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = Layer()
    """
    weights = {f"part.inner.{k}": v for k, v in nn.Linear(2, 2).state_dict().items()}
    write_module(files, source, weights)
    assert served_class(files) == "Net"
    assert any("Net is served, the first that fits the weights" in m for m in caplog.messages)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("X = 1", "model.py': Cannot find a subclass of torch.nn.Module"),
        ("", "Cannot find a subclass of torch.nn.Module"),
        ("class Net(nn.Module)\n  pass", r"model\.py', line 6: SyntaxError: "),
        ("import nothing_of_that_name", r"line 6: ModuleNotFoundError: No module named"),
        ("raise ValueError('boom')", r"line 6: ValueError: boom"),
        ("import sys\nsys.exit(3)", r"line 7: SystemExit: 3"),
        ("class Net(nn.Module):\n  def __init__(self, width): super().__init__()",
         r"class Net: TypeError: .*missing 1 required positional argument: 'width'"),
        ("class Net(nn.Module):\n  def __init__(self):\n    raise OSError('no')",
         r"line 8: class Net: OSError: no"),
        ("class Net(nn.Module):\n  def __init__(self): exit()", r"class Net: SystemExit"),
        (forward("return x", "x, *, y"), "'forward' must be callable .*but has y after"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_code_is_told_by_file_and_line(
    files: Path, source: str, text: str
) -> None:
    write_module(files, source)
    with pytest.raises(Internal, match=rf"(?s)^failed to load model 'm': .*{text}"):
        load(files)


# Weights


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ({}, "does not fit class Net: it has no tensor layer.bias, layer.weight"),
        ({"layer.weight": torch.eye(4)}, "has no tensor layer.bias"),
        ({"layer.weight": torch.eye(4), "layer.bias": torch.ones(4), "more": torch.ones(1)},
         "holds what the module lacks, more"),
        ({"layer.weight": torch.eye(4), "layer.bias": torch.ones(3)},
         r"has other shapes: layer.bias is \[3\], the module's \[4\]"),
        ([1, 2], "it holds a list, a state dictionary was expected"),
        ({1: 2}, "a state dictionary was expected"),
        (nn.Linear(4, 4), "holds Python objects, as a whole pickled module does"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(files: Path, weights: object, text: str) -> None:
    write_module(files, LINEAR, weights)
    with pytest.raises(Internal, match=rf"^failed to load model 'm': '.*model\.pt': .*{text}"):
        load(files)


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"PK\3\4 no archive"])
def test_weights_that_are_no_checkpoint(files: Path, content: bytes) -> None:
    write_module(files, LINEAR)
    (files / "model.pt").write_bytes(content)
    with pytest.raises(Internal, match=r"^failed to load model 'm': '.*model\.pt': \S"):
        load(files)


NO_WEIGHTS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "the file is empty"),
    "text": (b"hello world", "this is no file of torch"),
    "a page": (b"<html><body>404</body></html>", "this is no file of torch"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "safetensors": (b'\x40\0\0\0\0\0\0\0{"w": {}}', "this is a safetensors file"),
    "a pickle": (pickle.dumps({"a": 1}), "it holds pickled Python objects"),
    "zeros": (bytes(64), "this is no file of torch"),
    "half an archive": (b"PK\3\4 no archive", "cut off or damaged"),
}


@pytest.mark.parametrize(("content", "told"), NO_WEIGHTS.values(), ids=NO_WEIGHTS.keys())
def test_what_weights_are_instead_is_told(files: Path, content: bytes, told: str) -> None:
    write_module(files, LINEAR)
    (files / "model.pt").write_bytes(content)
    with pytest.raises(Internal, match=rf"model\.pt': .*{told}"):
        load(files)


@pytest.mark.parametrize("mapped", [True, False])
def test_weights_that_were_cut_off_are_called_so(files: Path, mapped: bool) -> None:
    write_module(files, LINEAR, {f"layer.{k}": v for k, v in nn.Linear(4, 4).state_dict().items()})
    whole = (files / "model.pt").read_bytes()
    (files / "model.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Internal, match="the file is cut off or damaged"):
        module_of(files, mapped=mapped)


def test_the_weights_of_a_checkpoint_are_to_be_saved_alone(files: Path) -> None:
    write_module(files, LINEAR, {"state_dict": nn.Linear(4, 4).state_dict(), "epoch": 3})
    with pytest.raises(Internal, match="save the one called 'state_dict' alone"):
        load(files)


def test_weights_that_cannot_be_reached_are_not_left_out(files: Path) -> None:
    write_module(files, LINEAR)
    (files / "model.pt").symlink_to(files / "moved.pt")
    with pytest.raises(Internal, match=r"model\.pt': it is a link to what is not there"):
        load(files)
    (files / "model.pt").unlink()
    (files / "model.pt").mkdir()
    with pytest.raises(Internal, match=r"model\.pt': it is a directory"):
        load(files)


def test_weights_that_a_list_of_digests_promises_are_not_left_out(files: Path) -> None:
    write_module(files, LINEAR)
    digest = hashlib.sha256((files / "model.py").read_bytes()).hexdigest()
    (files / "SHA256SUMS").write_text(f"{digest}  model.py\n{'0' * 64}  model.pt\n")
    with pytest.raises(Internal, match=r"SHA256SUMS' lists 'model\.pt', but there is no"):
        load(files)


def test_a_list_of_digests_that_cannot_be_reached_is_not_left_out(files: Path) -> None:
    write_module(files, LINEAR)
    (files / "SHA256SUMS").symlink_to(files / "elsewhere")
    with pytest.raises(Internal, match="SHA256SUMS' is no list of digests"):
        load(files)


def test_weights_that_are_torchscript(files: Path, save_module: Callable[..., Path]) -> None:
    write_module(files, LINEAR)
    save_module(nn.Linear(4, 4), files)
    with pytest.raises(Internal, match="it is TorchScript, a state dictionary was expected"):
        load(files)


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("mapped", [True, False])
def test_weights_of_another_type_are_converted_and_old_files_are_read(
    files: Path, archive: bool, mapped: bool
) -> None:
    write_module(files, LINEAR)
    weights = {"layer.weight": torch.eye(4).double(), "layer.bias": torch.ones(4).half()}
    torch.save(weights, files / "model.pt", _use_new_zipfile_serialization=archive)
    result = module_of(files, mapped=mapped)(torch.ones(4))
    assert result.dtype == torch.float32
    assert result.tolist() == [2, 2, 2, 2]


def test_shared_weights_lie_in_the_file_and_others_do_not(files: Path) -> None:
    def lies_in_the_file(mapped: bool) -> bool:
        module = module_of(files, mapped=mapped)
        address = module.layer.weight.data_ptr()
        spans = [
            line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()
        ]
        ends = [[int(end, 16) for end in span[0].split("-")] for span in spans]
        return any(
            start <= address < end and span[-1] == str(files / "model.pt")
            for (start, end), span in zip(ends, spans, strict=True)
        )

    write_module(files, LINEAR, {f"layer.{k}": v for k, v in nn.Linear(4, 4).state_dict().items()})
    assert [lies_in_the_file(mapped=True), lies_in_the_file(mapped=False)] == [True, False]


def test_tied_weights_stay_tied(files: Path) -> None:
    source = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4, bias=False)
            self.second = nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(x)
    """
    write_module(files, source, {"first.weight": torch.eye(4), "second.weight": torch.eye(4) * 2})
    module = module_of(files, mapped=True)
    assert module.first.weight is module.second.weight


def test_a_digest_that_differs_is_refused(files: Path) -> None:
    write_module(files, LINEAR)
    (files / "model.py.sha256").write_text(f"{'0' * 64}  model.py\n")
    with pytest.raises(Internal, match="its SHA-256 digest begins with"):
        load(files)


# Devices


def test_kind_model_stays_where_the_first_parameter_is(files: Path) -> None:
    write_module(files, LINEAR)
    assert module_of(files, "KIND_MODEL")(torch.ones(4)).shape == (4,)


def test_kind_model_needs_a_parameter(files: Path) -> None:
    write_module(files, forward("return x"))
    with pytest.raises(Internal, match="Cannot determine model device"):
        module_of(files, "KIND_MODEL")
