"""docs/pytorch.md: what it says of exporting is what happens."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch

from microkernel import ModelConfig
from microkernel_torchscript.backend import PyTorchBackend
from microkernel_torchscript.describing import EXTRA, read_description
from microkernel_torchscript.exporting.command import export

TEXT = (Path(__file__).parents[2] / "docs" / "pytorch.md").read_text()
NET = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Conv2d(3, 3, 3)

    def forward(self, image):
        return self.body(image).mean((2, 3))
"""

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def block(words: str, language: str) -> str:
    """The fenced block of a language that has these words in it."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    [found] = [text for text in blocks if words in text]
    return str(found)


def test_the_documented_command_writes_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    Path("classes.txt").write_text("cat\ndog\nowl\n")
    names = {"body.weight": torch.zeros(3, 3, 3, 3), "body.bias": torch.zeros(3)}
    torch.save(names, "net.pth")
    line = block("microkernel export", "sh").replace("\\\n", " ").splitlines()[0]
    words = line.split()
    assert words[:2] == ["microkernel", "export"]
    result = CliRunner().invoke(export, words[2:], standalone_mode=False)
    assert result.exception is None, result.exception
    description = read_description(Path("models/net/1/model.pt"))
    assert description is not None
    assert description.labels == {"scores": ("cat", "dog", "owl")}


def test_the_documented_description_is_read_from_a_file_of_torch(tmp_path: Path) -> None:
    content = block('"microkernel": 1', "json")
    module = torch.jit.script(torch.nn.Conv2d(3, 3, 3))
    torch.jit.save(module, tmp_path / "model.pt", _extra_files={EXTRA: content})
    config = PyTorchBackend().complete(ModelConfig(name="m", backend="pytorch"), tmp_path)
    assert [(e.name, e.dims) for e in config.input] == [("image", (3, -1, -1))]
    assert config.max_batch_size == 8


def test_the_documented_python_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = compile(block("export_module", "python"), "docs/pytorch.md", "exec")
    exec(code, {"module": torch.nn.Linear(4, 3)})
    config = PyTorchBackend().complete(
        ModelConfig(name="net", backend="pytorch"), Path("models/net/1")
    )
    assert [(e.name, e.dims) for e in config.output] == [("y", (3,))]
