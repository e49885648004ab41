"""Files that are no exported programs, or none that may be loaded; weights that processes share."""

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
from exported_programs import export, save, save_perceptron
from torch_models import Perceptron

from microkernel import (
    Batch,
    Internal,
    MicrokernelError,
    ModelConfig,
    ModelParameter,
    Placement,
    Unavailable,
)
from microkernel_torchscript.backend import PyTorchBackend
from microkernel_torchscript.exported.program_file import load_program

CONFIG = ModelConfig(name="m", backend="pytorch", platform="torch_aoti")


@pytest.fixture(scope="module")
def perceptron(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_perceptron(tmp_path_factory.mktemp("perceptron") / "1") / "model.pt2"


def _fault(files: Path, config: ModelConfig = CONFIG) -> tuple[type[Exception], str]:
    """What completing says, which loading says as well."""
    backend, found = PyTorchBackend(), []
    for act in (backend.complete, backend.load):
        with pytest.raises(MicrokernelError) as caught:
            act(config, files)
        found.append((caught.type, str(caught.value)))
    assert found[0] == found[1]
    return found[0]


def _rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of an archive with changed members; None leaves one out."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target.parent


def _in_program(**changes: Any) -> Callable[[str, bytes], bytes]:
    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        return json.dumps(json.loads(content) | changes).encode()

    return change


def test_a_missing_file_is_told_in_tritons_words(tmp_path: Path) -> None:
    kind, text = _fault(tmp_path)
    assert kind is Unavailable
    start = (
        f'PyTorch inductor model file "{tmp_path / "model.pt2"}" is unreachable or inaccessible.'
    )
    assert text.startswith(start)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").mkdir()
    assert "is a directory, not a .pt2 file" in _fault(tmp_path)[1]


CONTENTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty; write it again"),
    "random": (bytes(range(256)) * 8, "is not an archive or is cut short"),
    "pickle": (pickle.dumps([1, 2]), "is not an archive or is cut short"),
}


@pytest.mark.parametrize(("content", "text"), CONTENTS.values(), ids=list(CONTENTS))
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "model.pt2").write_bytes(content)
    kind, found = _fault(tmp_path)
    assert kind is Internal
    assert found.startswith(f"failed to load model 'm': '{tmp_path / 'model.pt2'}' {text}")


@pytest.mark.parametrize("part", [0.3, 0.6, 0.99])
def test_a_file_that_is_cut_short_is_refused(perceptron: Path, tmp_path: Path, part: float) -> None:
    whole = perceptron.read_bytes()
    (tmp_path / "model.pt2").write_bytes(whole[: int(len(whole) * part)])
    assert "is not an archive or is cut short" in _fault(tmp_path)[1]


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
        archive.writestr("notes/a.txt", "a")
    assert "is neither an exported program (torch.export.save) nor" in _fault(tmp_path)[1]


def test_a_script_is_told_apart(tmp_path: Path, save_module: Callable[..., Path]) -> None:
    save_module(Perceptron(), tmp_path)
    (tmp_path / "model.pt").rename(tmp_path / "model.pt2")
    assert "is TorchScript, not a .pt2: call it model.pt, or set platform" in _fault(tmp_path)[1]


def test_a_checkpoint_is_told_apart(tmp_path: Path) -> None:
    torch.save(Perceptron().state_dict(), tmp_path / "model.pt2")
    assert "is a checkpoint, not an exported program: it holds weights" in _fault(tmp_path)[1]


def test_a_program_of_another_version_of_the_format_is_refused(
    perceptron: Path, tmp_path: Path
) -> None:
    newer = _in_program(schema_version={"major": 99, "minor": 1}, torch_version="9.9")
    text = _fault(_rewritten(perceptron, tmp_path / "model.pt2", newer))[1]
    assert "was saved by torch 9.9 in version 99 of the format; torch" in text
    assert text.endswith("export the model again with this torch")


def test_a_program_that_is_not_what_torch_writes_is_refused(
    perceptron: Path, tmp_path: Path
) -> None:
    strange = _in_program(graph_module={"graph": 7})
    text = _fault(_rewritten(perceptron, tmp_path / "model.pt2", strange))[1]
    assert text.startswith("failed to load model 'm': '")
    assert "\n" not in text


def test_a_program_by_another_name_is_refused(perceptron: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(perceptron) as old, zipfile.ZipFile(tmp_path / "model.pt2", "w") as new:
        for name in old.namelist():
            new.writestr(name.replace("models/model.", "models/net."), old.read(name))
    assert (
        "holds programs called net; the one to serve must be called 'model'"
        in (_fault(tmp_path)[1])
    )


def test_missing_weights_are_a_fault_of_the_file(perceptron: Path, tmp_path: Path) -> None:
    def change(name: str, content: bytes) -> bytes | None:
        return None if name.endswith("weights/weight_0") else content

    text = _fault(_rewritten(perceptron, tmp_path / "model.pt2", change))[1]
    assert text.startswith(f"failed to load model 'm': '{tmp_path / 'model.pt2'}': ")


def test_a_program_of_a_gpu_runs_on_the_host(
    perceptron: Path, tmp_path: Path, host: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    def change(name: str, content: bytes) -> bytes:
        here, there = (
            b'"device": {"type": "cpu", "index": null}',
            b'"device": {"type": "cuda", "index": 0}',
        )
        return content.replace(here, there) if name.endswith(".json") else content

    files = _rewritten(perceptron, tmp_path / "model.pt2", change)
    backend = PyTorchBackend()
    model = backend.load(backend.complete(CONFIG, files), files)
    rows = np.ones((2, 4), np.float32)
    (outcome,) = host(model).execute(make_batch([{"x": rows}], batching=False))
    expected = Perceptron()(torch.from_numpy(rows)).detach().numpy()
    np.testing.assert_allclose(outcome.outputs[0].as_numpy(), expected, rtol=1e-5)
    if not torch.cuda.is_available():
        with pytest.raises(
            Internal, match="failed to load model 'm': it cannot go to 'its device'"
        ):
            model.instance(Placement("m_1", "KIND_MODEL"))


class _Hostile:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("touched"),)


def test_pickled_parts_run_no_code(
    perceptron: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example inputs in a file may be anything; a weight must be a tensor."""
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save(_Hostile(), buffer)

    def examples(name: str, content: bytes) -> bytes:
        return buffer.getvalue() if "sample_inputs" in name else content

    def weights(name: str, content: bytes) -> bytes:
        if name.endswith("weights/weight_0"):
            return buffer.getvalue()
        return content.replace(b'"use_pickle": false', b'"use_pickle": true')

    files = _rewritten(perceptron, tmp_path / "1" / "model.pt2", examples)
    PyTorchBackend().load(PyTorchBackend().complete(CONFIG, files), files)
    files = _rewritten(perceptron, tmp_path / "2" / "model.pt2", weights)
    assert "is held as a pickled object, which is not loaded" in _fault(files)[1]
    assert not Path("touched").exists()


def test_a_digest_that_differs_is_a_fault(perceptron: Path, tmp_path: Path) -> None:
    shutil.copy(perceptron, tmp_path)
    (tmp_path / "model.pt2.sha256").write_text(f"{'0' * 64}  model.pt2\n")
    backend = PyTorchBackend()
    config = backend.complete(CONFIG, tmp_path)
    with pytest.raises(Internal, match="its SHA-256 digest begins with"):
        backend.load(config, tmp_path)


@pytest.mark.parametrize("mapped", [False, True])
def test_weights_are_those_that_were_saved(perceptron: Path, mapped: bool) -> None:
    program = load_program("m", perceptron, mapped=mapped)
    for name, value in Perceptron().state_dict().items():
        assert torch.equal(program.state_dict[name], value)


def _mapped(path: Path) -> int:
    """How many pages' ranges of this process belong to a file."""
    return Path("/proc/self/maps").read_text().count(f" {path}\n")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("sharing", ["true", "false"])
def test_weights_lie_in_the_file_where_sharing_is_asked_for(
    perceptron: Path, tmp_path: Path, host: Callable[..., Any], sharing: str
) -> None:
    shutil.copy(perceptron, tmp_path)
    parameters = {"ENABLE_WEIGHT_SHARING": ModelParameter(sharing)}
    backend = PyTorchBackend()
    config = backend.complete(replace(CONFIG, parameters=parameters), tmp_path)
    model = backend.load(config, tmp_path)
    assert _mapped(tmp_path / "model.pt2") == (1 if sharing == "true" else 0)
    model.unload()


def test_two_names_of_one_weight_stay_one(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(4, 4, bias=False)
            self.b = torch.nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.b(self.a(x))
            return result

    module = Tied()
    files = save(export(module, (torch.ones(2, 4),)), tmp_path)
    program: Any = load_program("m", files / "model.pt2", mapped=False)
    pointers = {value.data_ptr() for value in program.state_dict.values()}
    assert len(pointers) == 1
    expected = module(torch.ones(2, 4)).detach().numpy()
    np.testing.assert_allclose(program.module()(torch.ones(2, 4)).detach().numpy(), expected)
