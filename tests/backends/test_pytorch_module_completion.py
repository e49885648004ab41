"""Configurations for Python modules that have none, and which files are recognised as such."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

from module_files import forward, module_config, write_module

from microkernel import Internal, InvalidArgument, ModelConfig
from microkernel_torchscript.backend import PyTorchBackend
from microkernel_torchscript.kinds import hosting, is_module_file, recognise

pytestmark = pytest.mark.usefixtures("uncompiled")

LAYERS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = {layer}

    def forward(self, {arguments}):
        return {result}
"""


def complete(files: Path, config: ModelConfig) -> ModelConfig:
    return PyTorchBackend().complete(config, files)


def bare(max_batch_size: int = 0) -> ModelConfig:
    return module_config({}, {}, max_batch_size)


def tensors(config: ModelConfig) -> tuple[Any, Any]:
    return tuple(
        [(entry.name, entry.data_type.removeprefix("TYPE_"), entry.dims) for entry in side]
        for side in (config.input, config.output)
    )  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("layer", "arguments", "result", "inputs", "outputs"),
    [
        ("nn.Linear(4, 3)", "features", "self.layer(features)",
         [("features", "FP32", (-1, 4))], [("OUTPUT__0", "FP32", (-1, 3))]),
        ("nn.Linear(4, 3)", "x, scale: float = 2.0", "(self.layer(x) * scale, x)",
         [("x", "FP32", (-1, 4))],
         [("OUTPUT__0", "FP32", (-1, 3)), ("OUTPUT__1", "FP32", (-1, 4))]),
        ("nn.Conv2d(3, 2, 3)", "image", "self.layer(image)",
         [("image", "FP32", (-1, 3, -1, -1))], [("OUTPUT__0", "FP32", (-1, 2, -1, -1))]),
        ("nn.Embedding(10, 4)", "ids, mask", "{'y': (self.layer(ids) * mask[..., None]).mean(1)}",
         [("ids", "INT64", (-1, -1)), ("mask", "INT64", (-1, -1))], [("y", "FP32", (-1, 4))]),
        ("None", "words: list[str], n: int", "[w * n for w in words]",
         [("words", "STRING", (-1,)), ("n", "INT64", (1,))], [("OUTPUT__0", "STRING", (-1,))]),
    ],
)  # fmt: skip
def test_what_the_file_tells(
    files: Path, layer: str, arguments: str, result: str, inputs: Any, outputs: Any
) -> None:
    write_module(files, LAYERS.format(layer=layer, arguments=arguments, result=result))
    assert tensors(complete(files, bare())) == (inputs, outputs)


def test_batches_have_no_batch_dimension_in_the_configuration(files: Path) -> None:
    write_module(
        files, LAYERS.format(layer="nn.Linear(4, 3)", arguments="x", result="self.layer(x)")
    )
    completed = complete(files, bare(8))
    assert tensors(completed) == ([("x", "FP32", (4,))], [("OUTPUT__0", "FP32", (3,))])
    assert completed.max_batch_size == 8


def test_a_module_that_cannot_batch_is_told_so(files: Path) -> None:
    write_module(
        files, LAYERS.format(layer="nn.Linear(4, 3)", arguments="x", result="self.layer(x).sum(0)")
    )
    with pytest.raises(InvalidArgument, match="model does not support batching"):
        complete(files, bare(8))


def test_listed_inputs_stay_and_tell_the_outputs(files: Path) -> None:
    write_module(files, forward("return a - b", "a, b"))
    config = module_config({"p": ("FP32", 2), "q": ("FP32", 2)}, {})
    assert tensors(complete(files, config)) == (
        [("p", "FP32", (2,)), ("q", "FP32", (2,))],
        [("OUTPUT__0", "FP32", (2,))],
    )


def test_a_complete_configuration_runs_nothing(files: Path) -> None:
    write_module(files, "raise SystemExit(1)")
    config = module_config()
    assert complete(files, config) == config


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (forward("return a + b", "a, b"), "no layer hints at their shape"),
        (LAYERS.format(layer="nn.Linear(4, 3)", arguments="a, b", result="a"),
         "the types and shapes of 'a', 'b', because 'forward' names neither"),
        (forward("return x['a']", "x: dict[str, torch.Tensor]"), "takes them as a dictionary"),
        (forward("return all[0]", "*all"), "no argument that needs one"),
        (LAYERS.format(layer="nn.Linear(4, 3)", arguments="x", result="1 / 0"),
         "a trial run failed: ZeroDivisionError: division by zero (model.py, line "),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_asked_for_with_a_configuration_to_paste(
    files: Path, source: str, reason: str
) -> None:
    write_module(files, source)
    with pytest.raises(InvalidArgument) as raised:
        complete(files, bare())
    assert reason in str(raised.value)
    assert str(files / "model.py") in str(raised.value)
    assert 'runtime: "model.py"' in str(raised.value)
    assert "# fill in" in str(raised.value)


def test_a_file_that_cannot_be_run_is_told_as_at_load(files: Path) -> None:
    write_module(files, "raise ValueError('boom')")
    with pytest.raises(Internal, match=r"model\.py', line 6: ValueError: boom"):
        complete(files, bare())


# Which files are meant for this runtime

MODULE = "import torch\nclass Net(torch.nn.Module):\n    pass\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (MODULE, True),
        ("from torch.nn import Module\nclass Net(Module): pass\n", True),
        ("from torch import nn\nclass Net(Other, nn.Module): pass\n", True),
        (MODULE + "print('\\d')\n", True),
        ("class TritonPythonModel:\n    pass\n", False),
        (MODULE + "class TritonPythonModel:\n    pass\n", False),
        ("from base import TritonPythonModel\n", False),
        ("class Net: pass\n", False),
        ("def build():\n    class Net(nn.Module): pass\n", False),
        ("class Net(module()): pass\n", False),
        ("", False),
        ("class Net(nn.Module)\n", False),
        ("x = '\0'\n", False),
        ("(" * 100_000, False),
        ("x = " + "-" * 100_000 + "1\n", False),
    ],
)
def test_files_that_hold_a_module(tmp_path: Path, source: str, expected: bool) -> None:
    path = tmp_path / "model.py"
    path.write_text(source)
    assert is_module_file(path) == expected


def test_what_cannot_be_read_holds_none(tmp_path: Path) -> None:
    assert not is_module_file(tmp_path / "model.py")
    assert not is_module_file(tmp_path)
    (tmp_path / "model.py").write_bytes(b"# coding: nonsense\nclass Net(nn.Module): pass\n")
    assert not is_module_file(tmp_path / "model.py")


def test_a_recognised_directory_gets_the_runtime_and_a_worker_per_instance(files: Path) -> None:
    write_module(files, "class Net(nn.Module): pass")
    found = recognise(ModelConfig(name="m"), files)
    assert found is not None
    assert found.runtime == "model.py"
    assert hosting(found, files) == "instance"
    assert recognise(replace(found, runtime="other"), files) is None


def test_a_python_model_is_not_recognised(files: Path) -> None:
    write_module(files, "class TritonPythonModel:\n    pass")
    assert recognise(ModelConfig(name="m"), files) is None
