"""docs/plugins.md and ARCHITECTURE.md: the code runs, the hooks are described, the files exist."""

import importlib
import inspect
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microkernel
from microkernel import (
    BackendType,
    Batch,
    InferRequest,
    InferResponse,
    Placement,
    Tensor,
    hookspecs,
)
from microkernel.cache_config import parse_cache_config
from microkernel.caching.lookups import ModelCache
from microkernel.caching.opening import open_cache
from microkernel.config.parse import parse_text
from microkernel.plugins import discover
from microkernel.testing import check_backend

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "plugins.md").read_text()
HOOKS = {
    name: function
    for name, function in vars(hookspecs).items()
    if name.startswith("register_") and inspect.isfunction(function)
}


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def doubler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The documented backend as an importable module."""
    (tmp_path / "doubler.py").write_text(blocks("python")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    return importlib.import_module("doubler")


def test_the_documented_backend_is_twenty_lines_and_runs(doubler: Any, tmp_path: Path) -> None:
    lines = [line for line in blocks("python")[0].splitlines() if line.strip()]
    assert len(lines) <= 20
    announced: list[BackendType] = []
    doubler.register_backends(announced.append)
    assert announced[0].factory == "doubler:Doubler"

    config = parse_text(blocks("pbtxt")[0], "docs/plugins.md")
    instance = doubler.Doubler().load(config, tmp_path).instance(Placement("twice_0", "KIND_CPU"))
    tensors = [Tensor.from_numpy("x", np.full((rows, 2), rows, np.float32)) for rows in (1, 2)]
    requests = [InferRequest("twice", (tensor,)) for tensor in tensors]
    whole = Tensor.from_numpy("x", np.concatenate([t.as_numpy() for t in tensors]))
    outcomes = instance.execute(Batch(requests, {"x": whole}, [1, 2]))
    assert all(isinstance(outcome, InferResponse) for outcome in outcomes)
    assert [outcome.outputs[0].name for outcome in outcomes] == ["y", "y"]
    assert [outcome.outputs[0].as_numpy().tolist() for outcome in outcomes] == [
        [[2.0, 2.0]],
        [[4.0, 4.0], [4.0, 4.0]],
    ]


def test_the_documented_countdown_is_a_decoupled_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "countdown.py").write_text(blocks("python")[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    announced: list[BackendType] = []
    importlib.import_module("countdown").register_backends(announced.append)
    config = replace(parse_text(blocks("pbtxt")[1], "docs/plugins.md"), name="countdown")
    requests = [
        InferRequest(
            "countdown", (Tensor.from_numpy("from", np.array([[n]], np.int32)),), id=str(n)
        )
        for n in (3, 0, 1)
    ]
    check_backend(announced[0], config, tmp_path, requests)


def test_the_documented_package_names_its_entry_point() -> None:
    document = tomllib.loads(blocks("toml")[0])
    assert document["project"]["entry-points"][hookspecs.ENTRY_POINT_GROUP] == {
        "doubler": "doubler"
    }


def test_the_documented_settings_are_settings() -> None:
    names: dict[str, Any] = {}
    exec(compile(blocks("python")[2], "docs/plugins.md", "exec"), names)
    declared: list[type[object]] = []
    names["register_options"](declared.append)
    assert microkernel.options.options_of(declared[0])["factor"][1].flag == "--doubler-factor"


async def test_the_documented_cache_keeps_responses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "shelf-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shelf\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[microkernel.plugins]\nshelf = shelf\n")
    [source] = [block for block in blocks("python") if "register_caches" in block]
    (tmp_path / "shelf.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "responses"
    folder.mkdir()

    choice = parse_cache_config([f"shelf,folder={folder}"], 0)
    assert choice is not None
    config = replace(parse_text(blocks("pbtxt")[0], "docs/plugins.md"), name="twice")
    cache = ModelCache(open_cache(choice, discover(), {}), config, 1, b"files")
    request = InferRequest("twice", (Tensor.from_numpy("x", np.ones((1, 2), np.float32)),))
    outputs = (Tensor.from_numpy("y", np.full((1, 2), 2, np.float32)),)
    miss = await cache.look(request)
    assert miss.outputs is None
    await miss.keep(outputs)
    hit = await cache.look(request)
    assert hit.outputs is not None
    assert [tensor.as_numpy().tolist() for tensor in hit.outputs] == [[[2.0, 2.0]]]
    [file] = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert (await cache.look(request)).outputs is None


@pytest.mark.parametrize("name", sorted(HOOKS))
def test_every_hook_is_described_with_its_arguments(name: str) -> None:
    arguments = ", ".join(inspect.signature(HOOKS[name]).parameters)
    assert f"### {name}({arguments})\n" in TEXT
    assert inspect.getdoc(HOOKS[name])


def test_every_hook_described_exists() -> None:
    assert set(re.findall(r"^### (register_\w+)", TEXT, re.MULTILINE)) == set(HOOKS)


def test_the_architecture_names_files_that_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = re.findall(r"`([\w/]+\.(?:py|toml))`", text)
    assert named
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "kernel/microkernel" / name).exists(), name


def test_the_architecture_maps_every_module_of_the_kernel() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([\w/*]+)`", row)}
    kernel = ROOT / "kernel" / "microkernel"
    for path in kernel.rglob("*.py"):
        module = path.relative_to(kernel).with_suffix("").as_posix()
        if not module.endswith("__init__") and not module.endswith("_rules"):
            assert module in named, f"ARCHITECTURE.md does not name {module}"
