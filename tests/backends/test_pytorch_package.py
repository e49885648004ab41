"""A package that AOTInductor compiled: completing, checking and running machine code."""

import shutil
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
from exported_programs import Nested, export, nested_example, nested_sizes

from microkernel import (
    Batch,
    Internal,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    ModelInput,
    ModelOutput,
)
from microkernel_torchscript.backend import PyTorchBackend

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler, g++"),
]

CONFIG = ModelConfig(name="m", backend="pytorch", platform="torch_aoti")
NAMES = ["ARGS[0]", "ARGS[1][0]", "ARGS[1][1]", "ARGS[2][b]", "ARGS[2][a]", "scale"]

MakeBatch = Callable[..., Batch]
Serve = Callable[..., Any]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nested") / "1"
    folder.mkdir()
    args, kwargs = nested_example()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._inductor.aoti_compile_and_package(
            export(Nested(), args, kwargs, nested_sizes()),
            package_path=str(folder / "model.pt2"),
        )
    return folder


def _request(rows: int = 2) -> dict[str, np.ndarray[Any, Any]]:
    args, kwargs = nested_example(rows)
    values = [args[0], *args[1], args[2]["b"], args[2]["a"], kwargs["scale"]]
    return {name: value.numpy() for name, value in zip(NAMES, values, strict=True)}


def test_a_package_tells_its_inputs_and_shows_its_outputs(files: Path) -> None:
    found = PyTorchBackend().complete(replace(CONFIG, max_batch_size=32), files)
    assert [(e.name, e.data_type, e.dims) for e in found.input] == [
        ("ARGS[0]", "TYPE_FP32", (4,)),
        ("ARGS[1][0]", "TYPE_FP32", (4,)),
        ("ARGS[1][1]", "TYPE_FP32", (4,)),
        ("ARGS[2][b]", "TYPE_FP32", (2,)),
        ("ARGS[2][a]", "TYPE_INT64", (1,)),
        ("scale", "TYPE_FP32", (1,)),
    ]
    assert [(e.name, e.data_type, e.dims) for e in found.output] == [
        ("total", "TYPE_FP32", (4,)),
        ("parts.0", "TYPE_FP32", (2,)),
        ("parts.1.0", "TYPE_INT64", (1,)),
    ]


@pytest.mark.parametrize("rows", [1, 2, 32])
def test_it_computes_what_the_module_does(
    files: Path,
    serve_module: Serve,
    make_batch: MakeBatch,
    output_of: Callable[..., Any],
    rows: int,
) -> None:
    args, kwargs = nested_example(rows)
    expected = Nested()(*args, **kwargs)
    served = serve_module(replace(CONFIG, max_batch_size=32), files)
    (outcome,) = served.execute(make_batch([_request(rows)]))
    assert output_of(outcome, "total").tolist() == expected["total"].tolist()
    assert output_of(outcome, "parts.0").tolist() == expected["parts"][0].tolist()
    assert output_of(outcome, "parts.1.0").tolist() == expected["parts"][1][0].tolist()


def test_every_instance_has_the_machine_code_and_leaves_no_files(
    files: Path,
    host: Callable[..., Any],
    make_batch: MakeBatch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    backend = PyTorchBackend()
    model = backend.load(backend.complete(replace(CONFIG, max_batch_size=4), files), files)
    for served in (host(model), host(model)):
        assert len(served.execute(make_batch([_request()]))) == 1
    assert not list(tmp_path.iterdir())


MISFITS: dict[str, tuple[dict[str, Any], type[MicrokernelError], str]] = {
    "batch": (
        {"max_batch_size": 64},
        InvalidArgument,
        "max_batch_size is 64, but the program was exported for batches of 1 to 32 (input 'ARGS[0]",
    ),
    "size": (
        {"input": {"dims": (5,)}},
        InvalidArgument,
        "input 'ARGS[0]' has shape [-1, 5] in the configuration, model provides [1 to 32, 4]",
    ),
    "type": (
        {"input": {"data_type": "TYPE_INT32"}},
        InvalidArgument,
        "configuration expects datatype TYPE_INT32 for input 'ARGS[0]', model provides TYPE_FP32",
    ),
    "name": (
        {"input": {"name": "KWARGS[size]"}},
        Internal,
        'Input "KWARGS[size]" for model instance "m" is not found in model input map.',
    ),
}


@pytest.mark.parametrize(("change", "kind", "text"), MISFITS.values(), ids=list(MISFITS))
def test_a_configuration_that_does_not_fit_is_refused(
    files: Path, change: dict[str, Any], kind: type[MicrokernelError], text: str
) -> None:
    right = PyTorchBackend().complete(replace(CONFIG, max_batch_size=4), files)
    first = replace(right.input[0], **change.get("input", {}))
    limit = change.get("max_batch_size", 4)
    wrong = replace(right, max_batch_size=limit, input=(first, *right.input[1:]))
    with pytest.raises(kind) as caught:
        PyTorchBackend().load(wrong, files)
    assert text in str(caught.value)


def test_an_output_of_another_type_is_told_in_tritons_words(
    files: Path, serve_module: Serve, make_batch: MakeBatch
) -> None:
    right = PyTorchBackend().complete(replace(CONFIG, max_batch_size=4), files)
    wrong = replace(right, output=(ModelOutput("RESULT[total]", "TYPE_INT64", dims=(4,)),))
    with pytest.raises(Internal) as caught:
        serve_module(wrong, files).execute(make_batch([_request()]))
    assert str(caught.value) == (
        'Inductor model instance "m" output tensor "RESULT[total]" has datatype TYPE_FP32 but '
        "model configuration expects TYPE_INT64."
    )


def _without_source(files: Path, target: Path) -> Path:
    target.mkdir()
    with (
        zipfile.ZipFile(files / "model.pt2") as old,
        zipfile.ZipFile(target / "model.pt2", "w") as new,
    ):
        for name in old.namelist():
            if not name.endswith(".cpp"):
                new.writestr(name, old.read(name))
    return target


def test_without_its_source_a_package_tells_names_only(
    files: Path,
    tmp_path: Path,
    serve_module: Serve,
    make_batch: MakeBatch,
    output_of: Callable[..., Any],
) -> None:
    bare = _without_source(files, tmp_path / "1")
    with pytest.raises(InvalidArgument) as caught:
        PyTorchBackend().complete(CONFIG, bare)
    assert "does not tell the type and the shape of argument 0, because the source" in str(
        caught.value
    )
    for name in (*NAMES, "OUTPUT__2"):
        assert f'name: "{name}"' in str(caught.value)
    written = PyTorchBackend().complete(replace(CONFIG, max_batch_size=4), files)
    (outcome,) = serve_module(written, bare).execute(make_batch([_request()]))
    assert output_of(outcome, "total").tolist() == [[2.0] * 4] * 2


def test_without_its_source_inputs_are_counted(
    files: Path, tmp_path: Path, serve_module: Serve, make_batch: MakeBatch
) -> None:
    """Without the source nothing is known before the call but the number of inputs."""
    bare = _without_source(files, tmp_path / "1")
    listed = tuple(ModelInput(f"INPUT__{i}", "TYPE_FP32", dims=(4,)) for i in range(5))
    short = replace(
        CONFIG,
        max_batch_size=4,
        input=listed,
        output=(ModelOutput("OUTPUT__0", "TYPE_FP32", dims=(4,)),),
    )
    with pytest.raises(Internal, match="configuration expects 5 inputs, but model expects 6"):
        PyTorchBackend().load(short, bare)
