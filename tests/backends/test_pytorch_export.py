"""`microkernel export`: what it writes serves by itself, and what it refuses leaves no file."""

import errno
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
from export_zoo import Counting, Net

from microkernel import (
    Batch,
    DynamicBatching,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    ModelInput,
    ModelOutput,
    Reshape,
)
from microkernel_torchscript.backend import PyTorchBackend
from microkernel_torchscript.describing import EXTRA, read_description
from microkernel_torchscript.exporting.command import export
from microkernel_torchscript.exporting.specs import Wish, input_spec
from microkernel_torchscript.exporting.writing import export_module
from microkernel_torchscript.script.files import load_module

MakeBatch = Callable[..., Batch]
OutputOf = Callable[..., Any]
Run = Callable[..., Result]
Serve = Callable[..., Any]

ZOO = str(Path(__file__).parent / "support" / "export_zoo.py")
IMAGE = ("--input", "image:fp32:-1,3,-1,-1")
X = ("--input", "x:fp32:-1,4")
FORMS = pytest.mark.parametrize("file", ["model.pt", "model.pt2"])
NO_COMPILER = shutil.which("g++") is None and shutil.which("clang++") is None


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run("Net", *arguments)`: what came of exporting a module of the zoo to `model.pt`, or the
    `file`, of the model `m`."""

    def make(target: str, *arguments: str, file: str = "model.pt") -> Result:
        if ":" not in target:
            target = f"{ZOO}:{target}"
        output = str(tmp_path / "m" / "1" / file)
        return CliRunner().invoke(
            export, [target, "--output", output, *arguments], standalone_mode=False
        )

    return make


def refused(result: Result) -> str:
    """Why an export was refused."""
    assert isinstance(result.exception, MicrokernelError), result.exception
    return str(result.exception)


def completed(files: Path) -> ModelConfig:
    """The configuration of an exported model, from its file alone."""
    platform = "torch_aoti" if (files / "model.pt2").exists() else "pytorch_libtorch"
    bare = ModelConfig(name="m", backend="pytorch", platform=platform)
    return PyTorchBackend().complete(bare, files)


@FORMS
def test_a_module_serves_as_it_is_described(
    run: Run,
    tmp_path: Path,
    serve_module: Serve,
    make_batch: MakeBatch,
    output_of: OutputOf,
    file: str,
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\nowl\n")
    given = (*IMAGE, "--max-batch-size=4", "--arg=classes=3")
    result = run("Net", *given, "--output-name=scores", f"--label=scores={labels}", file=file)
    assert result.exception is None, result.output
    assert "# largest difference from the module: " in result.output
    files = tmp_path / "m" / "1"
    assert [path.name for path in files.iterdir()] == [file]
    description = read_description(files / file)
    assert description is not None
    assert description.labels == {"scores": ("cat", "dog", "owl")}
    config = completed(files)
    assert (config.max_batch_size, config.dynamic_batching) == (4, DynamicBatching())
    assert config.input == (ModelInput("image", "TYPE_FP32", dims=(3, -1, -1)),)
    assert config.output == (ModelOutput("scores", "TYPE_FP32", dims=(3,)),)

    module = Net(3).eval()
    instance = serve_module(config, files)
    for rows, side in ((1, 9), (4, 32)):
        image = np.random.default_rng(rows).standard_normal((rows, 3, side, side), np.float32)
        with torch.no_grad():
            expected = module(torch.from_numpy(image)).numpy()
        (outcome,) = instance.execute(make_batch([{"image": image}]))
        np.testing.assert_allclose(output_of(outcome, "scores"), expected, rtol=1e-5, atol=1e-6)


@FORMS
def test_torch_reads_the_description_as_an_extra_file(run: Run, tmp_path: Path, file: str) -> None:
    assert run("Two", *X, file=file).exception is None
    path = tmp_path / "m" / "1" / file
    extra: dict[str, Any] = {EXTRA: ""}
    if file == "model.pt":
        with pytest.warns(DeprecationWarning, match="torch.jit"):
            torch.jit.load(path, _extra_files=extra)  # type: ignore[no-untyped-call]
    else:
        torch.export.load(path, extra_files=extra)
    assert extra[EXTRA] == read_member(path)


def read_member(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        content = archive.read(f"{archive.namelist()[0].split('/')[0]}/extra/{EXTRA}")
    return content if path.suffix == ".pt" else content.decode()


WHOLE = [
    (("Two", *X), ["x:-1,4"], ["OUTPUT__0:-1,4", "OUTPUT__1:-1"]),
    (("READY", *X), ["x:-1,4"], ["OUTPUT__0:-1,4", "OUTPUT__1:-1"]),
    (("make", *IMAGE), ["image:-1,3,-1,-1"], ["OUTPUT__0:-1,2"]),
    (
        ("Two", *X, "--output-name=sum", "--output-name=mean"),
        ["x:-1,4"],
        ["sum:-1,4", "mean:-1"],
    ),
    (
        ("Embedded", "--input", "ids:int64:-1,-1", "--input", "mask:fp32:-1,-1"),
        ["ids:-1,-1", "mask:-1,-1"],
        ["rows:-1,-1,6", "pooled:-1,6"],
    ),
    (
        ("Keyed", "--input", "a:fp32:-1,4", "--input", "b:fp32:-1,4"),
        ["a:-1,4", "b:-1,4"],
        ["sum:-1,4", "difference:-1,4"],
    ),
]


@FORMS
@pytest.mark.parametrize(("arguments", "inputs", "outputs"), WHOLE, ids=range(len(WHOLE)))
def test_the_shapes_of_all_kinds_of_modules(
    run: Run,
    tmp_path: Path,
    file: str,
    arguments: tuple[str, ...],
    inputs: list[str],
    outputs: list[str],
) -> None:
    result = run(*arguments, file=file)
    assert result.exception is None, result.exception
    config = completed(tmp_path / "m" / "1")
    assert [f"{e.name}:{','.join(map(str, e.dims))}" for e in config.input] == inputs
    assert [f"{e.name}:{','.join(map(str, e.dims))}" for e in config.output] == outputs


def test_what_only_torchscript_takes(run: Run, tmp_path: Path) -> None:
    words = ("--input", "words:string:-1", "--max-batch-size=8")
    assert run("Shout", *words).exception is None
    config = completed(tmp_path / "m" / "1")
    assert config.input == (ModelInput("words", "TYPE_STRING", dims=(1,), reshape=Reshape(())),)
    assert run("Times", *X, "--input", "n:int64:1").exception is None
    assert run("Named", *X).exception is None
    assert [entry.name for entry in completed(tmp_path / "m" / "1").output] == ["left", "right"]
    assert "takes tensors only" in refused(run("Shout", *words, file="model.pt2"))
    number = run("Times", *X, "--input", "n:int64:1", file="model.pt2")
    assert "input 'n' feeds an argument of the type int" in refused(number)


def test_a_trace_takes_what_cannot_be_scripted(run: Run, tmp_path: Path) -> None:
    inputs = ("--input", "a:fp32:-1,4", "--input", "b:fp32:-1,4")
    assert "format trace" in refused(run("Unscriptable", *inputs))
    result = run("Unscriptable", *inputs, "--format=trace", "--max-batch-size=2")
    assert result.exception is None, result.exception
    assert [entry.name for entry in completed(tmp_path / "m" / "1").input] == ["a", "b"]


@pytest.mark.parametrize(
    ("file", "form"),
    [("model.pt", "script"), ("model.pt", "trace"), ("model.pt2", "export")],
)
def test_a_state_is_saved_as_it_was(run: Run, tmp_path: Path, file: str, form: str) -> None:
    result = run("Counting", *X, f"--format={form}", file=file)
    assert result.exception is None, result.output
    path = tmp_path / "m" / "1" / file
    saved = (
        torch.export.load(path).module()
        if file == "model.pt2"
        else load_module("m", path, device="cpu")
    )
    assert dict(saved.named_buffers())["calls"].tolist() == [0]


def test_the_module_of_a_program_keeps_its_state(tmp_path: Path) -> None:
    module = Counting()
    wish = Wish("script", (input_spec("x:fp32:-1,4"),))
    export_module(module, wish, tmp_path / "counting.pt")
    assert module.calls.tolist() == [0]


def test_a_module_that_cannot_be_copied_is_tried_itself(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("Uncopied", *X).exception is None
    assert "cannot be copied (there is one of me)" in caplog.text
    assert load_module("m", tmp_path / "m" / "1" / "model.pt", device="cpu").calls.item() > 0


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_that_lost_a_branch_is_not_written(run: Run, tmp_path: Path) -> None:
    assert "a traced one must not branch" in refused(run("Branch", *X, "--format=trace"))
    assert not (tmp_path / "m").exists()
    assert run("Branch", *X).exception is None


@pytest.mark.parametrize("wrap", [None, "state_dict", "parallel"])
def test_weights_are_loaded(run: Run, tmp_path: Path, wrap: str | None) -> None:
    weights: Any = {name: value + 1 for name, value in Net().state_dict().items()}
    if wrap == "state_dict":
        weights = {"epoch": 3, "state_dict": weights}
    elif wrap == "parallel":
        weights = {f"module.{name}": value for name, value in weights.items()}
    torch.save(weights, tmp_path / "net.pth")
    assert run("Net", *IMAGE, f"--weights={tmp_path / 'net.pth'}").exception is None
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        loaded: Any = torch.jit.load(tmp_path / "m" / "1" / "model.pt")  # type: ignore[no-untyped-call]
    assert torch.equal(loaded.head.bias, Net().head.bias + 1)


def test_weights_that_are_none(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    weights = f"--weights={path}"
    assert refused(run("Net", *IMAGE, weights)) == f"there is no file '{path}'"
    path.write_bytes(b"random")
    assert refused(run("Net", *IMAGE, weights)).startswith(f"'{path}' cannot be read as weights: ")
    torch.save(Net(), path)
    assert "Save module.state_dict()" in refused(run("Net", *IMAGE, weights))
    torch.save([1, 2], path)
    assert refused(run("Net", *IMAGE, weights)).startswith(f"'{path}' holds no state dict")
    torch.save(Net(classes=7).state_dict(), path)
    assert "size mismatch for head.weight" in refused(run("Net", *IMAGE, weights))
    torch.save({"other": torch.zeros(1)}, path)
    assert "Missing key(s) in state_dict" in refused(run("Net", *IMAGE, weights))
    safe = path.with_suffix(".safetensors")
    safe.touch()
    assert f"'{safe}' " in refused(run("Net", *IMAGE, f"--weights={safe}"))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("zoo.py:",), "'zoo.py:' must have the form FILE.py:NAME or PACKAGE.MODULE:NAME"),
        (("no.py:Net",), "there is no file 'no.py'"),
        (("no_such_package.x:Net",), "'no_such_package.x' cannot be imported: ModuleNotFoundError"),
        (("torch.nn:Nothing",), "'torch.nn' has no 'Nothing'"),
        (("Nothing",), "has no 'Nothing'; its modules are Branch, Broken, Counting, "),
        (("NUMBER",), "is neither a module nor makes one"),
        (("wrong",), "gives a str, not a torch.nn.Module"),
        (("READY", "--arg=n=1"), "is a module already, which takes no --arg"),
        (("torch.nn:Linear",), "missing 2 required positional arguments"),
        (("Net", "--arg=depth=3"), "arguments are given with --arg NAME=VALUE"),
        (("Two",), "say what forward(x) takes with --input NAME:TYPE:DIMS"),
        (("Two", "--input", "x:fp32:-1,4", "--input", "y:fp32:-1,4"), "expects 2 inputs"),
        (("Broken", *X), "a trial run failed: ValueError: boom at 2 ("),
        (("Scalar", *X), "returns no tensor with dimensions that can be served"),
        (("Random", *X), "a module must give the same every time"),
        (("Fixed", *X), "dimension 0 of input 'x' is to vary, but the module runs on the size 2"),
        (("Total", *X, "--max-batch-size=2"), "the module cannot batch"),
        (("Two", *X, "--output-name=a"), "1 outputs are named, the module returns 2: OUTPUT__0"),
        (("Named", *X, "--output-name=a"), "names its outputs itself: left, right"),
        (("Net", "--input", "image:int64:-1,3,9,9"), "a trial run failed: "),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], text: str
) -> None:
    assert text in refused(run(*arguments))
    assert not (tmp_path / "m").exists()


def test_a_file_that_raises_says_so(run: Run, tmp_path: Path) -> None:
    for name, code in (("bad", "raise KeyError('k')"), ("gone", "import sys; sys.exit(3)")):
        (tmp_path / f"{name}.py").write_text(code)
        with pytest.raises(InvalidArgument, match=rf"{name}\.py' cannot be imported: "):
            raise run(f"{tmp_path / name}.py:Net", *IMAGE).exception or AssertionError


def test_labels_must_fit(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("cat\ndog\n")
    wrong = run("Net", *IMAGE, f"--label=scores={file}")
    assert refused(wrong) == "there are labels for 'scores', but the outputs are OUTPUT__0"
    few = run("Net", *IMAGE, f"--label=OUTPUT__0={file}")
    assert "there are 2 labels for the output 'OUTPUT__0', which has 5 classes" in refused(few)


def test_a_file_that_was_there_stays_where_the_export_fails(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "m" / "1" / "model.pt"
    assert run("Two", *X).exception is None
    before = path.read_bytes()
    refused(run("Random", *X))
    assert path.read_bytes() == before
    assert run("Net", *IMAGE).exception is None
    assert path.read_bytes() != before
    assert list(path.parent.iterdir()) == [path]


def test_a_place_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "m").write_text("in the way")
    assert "model.pt' cannot be written: " in refused(run("Two", *X))
    assert (tmp_path / "m").read_text() == "in the way"


@pytest.mark.slow
@pytest.mark.skipif(NO_COMPILER, reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_compiled_package_describes_itself(run: Run, tmp_path: Path) -> None:
    given = (*IMAGE, "--max-batch-size=4", "--format=aoti", "--output-name=scores")
    result = run("Net", *given, file="model.pt2")
    assert result.exception is None, result.exception
    config = completed(tmp_path / "m" / "1")
    assert config.input == (ModelInput("image", "TYPE_FP32", dims=(3, -1, -1)),)
    assert config.output == (ModelOutput("scores", "TYPE_FP32", dims=(5,)),)


def test_a_full_disk_leaves_what_was_there(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m" / "1" / "model.pt"
    assert run("Two", *X).exception is None
    before = path.read_bytes()

    def fill_up(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", fill_up)
    text = refused(run("Net", *IMAGE))
    assert text == f"'{path}' cannot be written: No space left on device"
    assert (path.read_bytes(), list(path.parent.iterdir())) == (before, [path])


def test_weights_of_safetensors(run: Run, tmp_path: Path) -> None:
    safetensors: Any = pytest.importorskip("safetensors.torch", reason="safetensors is missing")
    weights = {name: value + 1 for name, value in Net().state_dict().items()}
    safetensors.save_file(weights, tmp_path / "net.safetensors")
    assert run("Net", *IMAGE, f"--weights={tmp_path / 'net.safetensors'}").exception is None
