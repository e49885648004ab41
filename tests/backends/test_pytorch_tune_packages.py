"""The compiled model that tuning chose: where it lies, what it takes to serve it, and what serves
where it cannot."""

import logging
import os
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
from compiled_models import CHOSEN, CONFIG, Net, store
from torch import nn
from torch_models import save_frozen

from microkernel import Batch, InstanceGroup, Internal, ModelConfig, ModelParameter, Placement
from microkernel_torchscript.backend import PyTorchBackend
from microkernel_torchscript.exported import package as packages
from microkernel_torchscript.tuning import asking, grid, key, loading, measuring, places
from microkernel_torchscript.tuning.compiled.calling import Compiled
from microkernel_torchscript.tuning.compiled.ordering import PACKAGE
from microkernel_torchscript.tuning.compiled.source import CompiledSource
from microkernel_torchscript.tuning.deciding import Decision
from microkernel_torchscript.tuning.keeping import keep, made_now
from microkernel_torchscript.tuning.record import Measured
from microkernel_torchscript.tuning.trial import AOTI, FROZEN, Candidate
from microkernel_torchscript.tuning.tuner import tune

Save = Callable[..., Path]
Lines = Callable[[], list[str]]
PLACE = Placement("net_0", "KIND_CPU")


compiled = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler, g++")


@pytest.fixture(autouse=True)
def _compiling(own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_COMPILE_DISABLE", raising=False)


@pytest.fixture
def saved(saved_net: Callable[[nn.Module], Path]) -> Path:
    """The version directory of a model 'net'."""
    return saved_net(Net())


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture) -> Lines:
    """`warnings_of()`: what tuning has warned of."""
    return lambda: [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and ".tuning." in record.name
    ]


@pytest.fixture
def kept(saved: Path, tmp_path: Path) -> Path:
    """The version directory of a model for which a compiled one was chosen, of bytes that are no
    package."""
    files, made = saved, tmp_path / "made.pt2"
    made.write_bytes(b"machine code")
    store(files, made)
    return files


def test_a_package_lies_beside_its_record_with_its_digest(kept: Path) -> None:
    record = places.places(kept)[0]
    found = places.read(record)
    assert found is not None
    assert places.package_place(record) == record.with_name("1.pt2")
    assert record.with_name("1.pt2").read_bytes() == b"machine code"
    assert found.package == key.digest_of(record.with_name("1.pt2"))
    assert sorted(entry.name for entry in record.parent.iterdir()) == ["1.json", "1.pt2"]
    assert [entry.name for entry in kept.iterdir()] == ["model.pt"]


def test_another_choice_removes_the_package(kept: Path) -> None:
    record = places.places(kept)[0]
    other = Measured(Decision(Candidate(FROZEN), "it is faster"))
    found = places.read(record)
    assert found is not None
    keep("net", places.places(kept), made_now(found.key, other), None)
    assert [entry.name for entry in record.parent.iterdir()] == ["1.json"]
    assert places.read(record) == replace(made_now(found.key, other), made=_made(record))


def _made(record: Path) -> str:
    found = places.read(record)
    assert found is not None
    return found.made


@pytest.mark.parametrize("full", ["1.pt2", "1.json"])
def test_a_full_disk_leaves_no_half_of_it_and_the_cache_is_next(
    full: str,
    kept: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warnings_of: Lines,
) -> None:
    first, second = places.places(kept)
    before = places.read(first)
    (tmp_path / "made.pt2").write_bytes(b"other machine code")
    replacing = Path.replace

    def refuses(part: Path, target: Path) -> Path:
        if target == first.with_name(full):
            raise OSError(28, "No space left on device")
        return replacing(part, target)

    monkeypatch.setattr(Path, "replace", refuses)
    store(kept, tmp_path / "made.pt2")
    (warning,) = warnings_of()
    assert "cannot be kept in" in warning
    assert "No space left on device" in warning
    assert second.with_name("1.pt2").read_bytes() == b"other machine code"
    # What was there before is whole, or is known not to be there.
    assert places.read(first) == before
    left = {entry.name for entry in first.parent.iterdir()}
    assert left == ({"1.json", "1.pt2"} if full == "1.pt2" else {"1.json"})


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: path.unlink(), "cannot be read: No such file or directory"),
        (
            lambda path: path.write_bytes(b"machine cude"),
            "is not the file that was measured: its SHA-256 digest begins with",
        ),
        (lambda path: None, "is not an archive or is cut short"),
    ],
)
def test_a_package_that_cannot_serve_leaves_the_model_as_it_was_saved(
    spoil: Callable[[Path], object],
    told: str,
    kept: Path,
    host: Callable[..., Any],
    warnings_of: Lines,
) -> None:
    package = places.places(kept)[0].with_name("1.pt2")
    spoil(package)
    forward = host(PyTorchBackend().load(CONFIG, kept))._instance._forward
    assert "prim::GetAttr" in str(forward.graph)  # the module with its attributes
    (warning,) = warnings_of()
    assert warning.startswith("model 'net' runs as it was saved: ")
    assert f"'{package}'" in warning
    assert told in warning


@pytest.mark.parametrize("place", ["1.pt2", ".", ".."])
def test_a_package_that_anybody_may_have_put_there_does_not_run(
    place: str, kept: Path, host: Callable[..., Any], warnings_of: Lines
) -> None:
    spoilt = (places.places(kept)[0].parent / place).resolve()
    spoilt.chmod(spoilt.stat().st_mode | 0o002)
    host(PyTorchBackend().load(CONFIG, kept))
    assert warnings_of() == [f"model 'net' runs as it was saved: everybody may write to '{spoilt}'"]


def test_a_package_of_another_user_does_not_run(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = places.places(kept)[0]
    assert places.distrusted(record, kept) == ""
    looking, stranger = Path.stat, record.parent

    def other(path: Path, **options: Any) -> Any:
        found = list(looking(path, **options))
        if path == stranger:
            found[4] += 4321
        return os.stat_result(found)

    monkeypatch.setattr(Path, "stat", other)
    told = f"'{stranger}' belongs to another user than the model and the server"
    assert places.distrusted(record, kept) == told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"instance_group": (InstanceGroup("g", "KIND_CPU", 2),)},
            "2 instances in one process would wait for each other",
        ),
        (
            {"parameters": {**CONFIG.parameters, "WORKER": ModelParameter("thread")}},
            "it would keep the server's interpreter to itself",
        ),
    ],
)
def test_where_machine_code_would_be_in_the_way_the_model_runs_as_it_was_saved(
    change: dict[str, Any], told: str, kept: Path, host: Callable[..., Any], warnings_of: Lines
) -> None:
    host(PyTorchBackend().load(replace(CONFIG, **change), kept))
    (warning,) = warnings_of()
    assert f"tuning chose 'AOTInductor', but {told}" in warning


def test_without_a_place_for_it_the_model_runs_as_it_was_saved(
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warnings_of: Lines,
) -> None:
    (tmp_path / "made.pt2").write_bytes(b"machine code")

    def ask(config: ModelConfig, *_: Any) -> asking.Answer:
        return asking.Answer(config, {}, CHOSEN, tmp_path / "made.pt2")

    def full(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loading, "ask", ask)
    monkeypatch.setattr(places, "write_package", full)
    backend, files = PyTorchBackend(), saved
    wanted = replace(CONFIG, parameters={"AUTOTUNE": ModelParameter("true")})
    backend.load(backend.complete(wanted, files), files)
    assert len(warnings_of()) == 3
    assert warnings_of()[-1] == "model 'net' runs as it was saved: its package could not be kept"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Measured]:
    """A version directory with a package in its folder, and what was measured."""
    folder = tmp_path_factory.mktemp("tuned")
    files = folder / "models" / "net" / "1"
    files.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "SLICE", 0.005)
        patch.setattr(grid, "SLICE", 0.005)
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            module: Any = torch.jit.script(Net().eval())
            module.save(files / "model.pt")
        threads = torch.get_num_threads()
        measured = tune(CONFIG, files, 20.0, lambda _: None, folder)
        torch.set_num_threads(threads)
    return files, measured


@pytest.fixture
def package(tuned: tuple[Path, Measured]) -> Path:
    return tuned[0].parents[2] / PACKAGE


@compiled
@pytest.mark.slow
def test_it_is_measured_and_held_against_the_module(tuned: tuple[Path, Measured]) -> None:
    rows = [row for row in tuned[1].rows if row.candidate.variant == AOTI]
    assert {row.candidate.batch for row in rows if row.figures is not None} == {1, 4}
    for row in rows:
        assert row.candidate.instances == 1
        assert row.difference is not None
        assert row.difference < 1e-5
        assert row.figures is None or row.figures.cpu_ms > 0


@compiled
@pytest.mark.slow
def test_it_is_kept_loaded_and_serves_what_the_module_does(
    tuned: tuple[Path, Measured],
    package: Path,
    host: Callable[..., Any],
    make_batch: Callable[..., Batch],
    output_of: Callable[..., Any],
    warnings_of: Lines,
) -> None:
    files = tuned[0]
    store(files, package)
    backend = PyTorchBackend()
    served = host(backend.load(backend.complete(CONFIG, files), files), threads=1)
    assert isinstance(served._instance._forward.__self__, Compiled)
    plain = host(PyTorchBackend().load(replace(CONFIG, parameters={}), files))
    for rows in (1, 2, 3, 4):
        x = np.random.default_rng(rows).random((rows, 3, 8, 8), np.float32)
        batch = make_batch([{"x": x}])
        (found,), (expected,) = served.execute(batch), plain.execute(batch)
        found, expected = output_of(found, "OUTPUT__0"), output_of(expected, "OUTPUT__0")
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert warnings_of() == []
    altered = places.places(files)[0].with_name("1.pt2")
    content = bytearray(altered.read_bytes())
    content[len(content) // 2] ^= 1
    altered.write_bytes(content)
    host(PyTorchBackend().load(CONFIG, files))
    (warning,) = warnings_of()
    assert f"'{altered}' is not the file that was measured" in warning


@compiled
@pytest.mark.slow
def test_instances_have_the_code_to_themselves_and_no_weights_of_the_file(
    tuned: tuple[Path, Measured], package: Path
) -> None:
    source = CompiledSource(CONFIG, tuned[0] / "model.pt", package)
    first, second = (source.forward(PLACE, torch.device("cpu")) for _ in range(2))
    assert first.__self__.run is not second.__self__.run  # type: ignore[attr-defined]
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(first(x), second(x))
    source.close()
    torch.testing.assert_close(first(x), second(x))
    modules = [value for value in vars(source).values() if isinstance(value, nn.Module)]
    assert modules == []


@compiled
@pytest.mark.slow
def test_the_thread_that_calls_says_how_many_work(package: Path) -> None:
    with zipfile.ZipFile(package) as archive:
        names = [name for name in archive.namelist() if name.endswith(".cpp")]
        source = "".join(archive.read(name).decode() for name in names)
    assert "#pragma omp parallel" in source
    assert "num_threads(" not in source  # a number that was fixed when it was compiled


@compiled
@pytest.mark.slow
def test_a_package_of_another_processor_is_refused(
    tuned: tuple[Path, Measured], package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "misfit", lambda *_: "was compiled for another CPU")
    with pytest.raises(Internal, match="was compiled for another CPU"):
        CompiledSource(CONFIG, tuned[0] / "model.pt", package)


@compiled
@pytest.mark.slow
def test_a_module_that_was_frozen_before_serves_as_machine_code(
    tmp_path: Path, package: Path
) -> None:
    files = save_frozen("frozen", Net(), tmp_path)
    forward = CompiledSource(CONFIG, files / "model.pt", package).forward(
        PLACE, torch.device("cpu")
    )
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(forward(x), Net().eval()(x), rtol=1e-4, atol=1e-5)
