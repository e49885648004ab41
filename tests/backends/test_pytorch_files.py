"""Files that are no good TorchScript, and digests that a repository keeps of its files."""

import hashlib
import logging
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
import torch_models as models
from hypothesis import given
from hypothesis import strategies as st
from torch_models import config_of, save_script

from microkernel import Batch, Internal, Placement, Unavailable
from microkernel_torchscript.backend import PyTorchBackend
from microkernel_torchscript.digests import check_digest, parse_sums
from microkernel_torchscript.failures import load_failure
from microkernel_torchscript.sniffing import fault_of

MakeBatch = Callable[..., Batch]
OutputOf = Callable[..., Any]
Save = Callable[..., Path]
Serve = Callable[..., Any]

CONFIG = config_of({"x": ("FP32", -1, 2)}, {"y": ("FP32", -1, 2)})
BEGIN = "failed to load model 'm': "


def rewrite(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Pass every member of an archive through `change`."""
    with zipfile.ZipFile(path) as archive:
        members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(name, change(name, data))


def save_on_gpu(path: Path) -> None:
    """A file whose tensors claim to come from the first GPU."""
    save_script(torch.nn.Linear(2, 2).eval(), path)
    text, other = b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0"
    rewrite(path, lambda name, data: data.replace(text, other) if name.endswith(".pkl") else data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(b"no archive at all " * 100)


def half(path: Path) -> None:
    save_script(torch.nn.Linear(2, 2), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": 1}))


def old_checkpoint(path: Path) -> None:
    state = torch.nn.Linear(2, 2).state_dict()
    torch.save(state, path, _use_new_zipfile_serialization=False)


def weights(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)


def pickled_module(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), path)


def program(path: Path) -> None:
    with path.open("wb") as file:
        torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), file)


def archive_of(*names: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "something")

    return write


def methodless(path: Path) -> None:
    save_script(models.Methodless(), path)


@pytest.mark.parametrize(
    ("make", "first", "cure"),
    [
        (empty, "PytorchStreamReader failed", "the file is empty; copy or save it again"),
        (
            noise,
            "PytorchStreamReader failed reading zip archive: failed finding central directory (",
            "this is no TorchScript file; write one with torch.jit.save",
        ),
        (
            half,
            "PytorchStreamReader failed reading zip archive: failed finding central directory (",
            "the file is cut off or damaged; copy or save it again",
        ),
        (
            plain_pickle,
            "PytorchStreamReader failed reading zip archive: failed finding central directory (",
            "it holds pickled Python objects and no code",
        ),
        (old_checkpoint, "PytorchStreamReader failed", "this is a checkpoint, not TorchScript"),
        (
            weights,
            "this is a checkpoint, not TorchScript: it holds weights and no code; export the ",
            "write its class into 'model.py' beside them and set runtime: \"model.py\"",
        ),
        (
            pickled_module,
            "this is a checkpoint, not TorchScript: it holds a pickled module and no code; ",
            "write its class into 'model.py' beside its state_dict() and set runtime",
        ),
        (
            program,
            "this is a program of torch.export, not TorchScript",
            "call it 'model.pt2' and set platform: \"torch_aoti\" instead",
        ),
        (
            archive_of("a/data/aotinductor/model/x.so", "a/archive_format"),
            "Expected hasRecord",
            "this is a package that AOTInductor compiled, not TorchScript",
        ),
        (
            archive_of("hello.txt"),
            "file in archive is not in a subdirectory: hello.txt (",
            "this is an archive of something else",
        ),
        (
            methodless,
            "the module has no method 'forward', which is the one that is called",
            "save a module that has one",
        ),
    ],
)
def test_a_bad_file_is_named_with_what_it_is_and_the_cure(
    tmp_path: Path, make: Callable[[Path], None], first: str, cure: str
) -> None:
    path = tmp_path / "model.pt"
    make(path)
    with pytest.raises(Internal) as caught:
        PyTorchBackend().load(CONFIG, tmp_path)
    text = str(caught.value)
    assert text.startswith(BEGIN + first)
    assert f"'{path}'" in text
    assert cure in text
    assert "corrupted" not in text
    assert len(text.splitlines()) == 1


def test_a_model_of_a_gpu_is_moved_to_the_processor_or_refused_with_the_reason(
    tmp_path: Path, make_batch: MakeBatch, output_of: OutputOf
) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a host without a GPU")
    save_on_gpu(tmp_path / "model.pt")
    model = PyTorchBackend().load(CONFIG, tmp_path)
    instance = model.instance(Placement("m_0", "KIND_CPU"))
    batch = make_batch([{"x": np.ones((1, 2), np.float32)}], batching=False)
    (response,) = instance.execute(batch)
    assert output_of(response, "y").shape == (1, 2)
    instance.close()
    with pytest.raises(Internal) as caught:
        model.instance(Placement("m_1", "KIND_MODEL"))
    text = str(caught.value)
    assert text.startswith(BEGIN)
    assert "'CUDA' backend" in text
    assert "the model was saved on a GPU, which is not to be had here" in text
    model.unload()


def test_a_saved_function_is_a_model_without_modes(
    tmp_path: Path,
    serve_module: Serve,
    make_batch: MakeBatch,
    output_of: OutputOf,
    caplog: pytest.LogCaptureFixture,
) -> None:
    save_script(_double, tmp_path / "model.pt")
    served = serve_module(CONFIG, tmp_path)
    (response,) = served.execute(make_batch([{"x": np.ones((1, 2), np.float32)}], batching=False))
    assert output_of(response, "y").tolist() == [[2, 2]]
    assert not [r for r in caplog.records if "training mode" in r.getMessage()]


def _double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda path: save_script(torch.nn.Linear(2, 2), path), ""),
        (archive_of("a/constants.pkl"), ""),
        (lambda path: path.write_bytes(b"PK"), "the file is cut off or damaged"),
    ],
)
def test_what_a_file_is(tmp_path: Path, make: Callable[[Path], None], fault: str) -> None:
    make(tmp_path / "f")
    found = fault_of(tmp_path / "f")
    assert found.startswith(fault)
    assert bool(found) is bool(fault)


@given(st.binary(max_size=200))
def test_any_bytes_at_all_are_something(tmp_path_factory: Any, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    assert fault_of(path)


def test_the_place_in_torch_s_source_is_left_out() -> None:
    text = "[enforce fail at inline_container.cc:180] . file is not there: x. This is advice."
    assert load_failure(text) == "file is not there: x"


def test_the_file_may_have_another_name(tmp_path: Path) -> None:
    save_script(torch.nn.Linear(2, 2), tmp_path / "net.bin")
    named = replace(CONFIG, default_model_filename="net.bin")
    PyTorchBackend().load(named, tmp_path).unload()
    with pytest.raises(Unavailable) as caught:
        PyTorchBackend().load(replace(named, default_model_filename="other.bin"), tmp_path)
    path = tmp_path / "other.bin"
    assert str(caught.value) == f"unable to find '{path}' for model instance 'm'"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def repository(tmp_path: Path) -> Path:
    """A model's version with a good file."""
    files = tmp_path / "m" / "1"
    files.mkdir(parents=True)
    save_script(torch.nn.Linear(2, 2), files / "model.pt")
    return files


def flip(path: Path) -> None:
    """Turn one bit of a weight over, which torch does not notice."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith("/data/0"))
    data[entry.header_offset + 30 + len(entry.filename) + 70] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("place", ["beside", "version", "model"])
def test_a_file_that_differs_from_its_digest_is_not_loaded(tmp_path: Path, place: str) -> None:
    files = repository(tmp_path)
    path = files / "model.pt"
    sums, name = {
        "beside": (files / "model.pt.sha256", "model.pt"),
        "version": (files / "SHA256SUMS", "./model.pt"),
        "model": (tmp_path / "m" / "SHA256SUMS", "1/model.pt"),
    }[place]
    good = digest(path)
    sums.write_text(f"{good.upper()} *{name}\n{'0' * 64}  other.bin\n")
    PyTorchBackend().load(CONFIG, files).unload()
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(Internal) as caught:
        PyTorchBackend().load(CONFIG, files)
    assert str(caught.value) == (
        f"{BEGIN}'{path}' is not the file that '{sums}' was written for: its SHA-256 digest begins "
        f"with {digest(path)[:12]}, expected {good[:12]}; restore the file, or write its new "
        "digest with sha256sum"
    )


def test_a_flipped_bit_of_a_weight_goes_unnoticed_without_a_digest(tmp_path: Path) -> None:
    files = repository(tmp_path)
    good = digest(files / "model.pt")
    flip(files / "model.pt")
    assert digest(files / "model.pt") != good
    PyTorchBackend().load(CONFIG, files).unload()
    (files / "SHA256SUMS").write_text(f"{good}  model.pt\n")
    with pytest.raises(Internal, match="is not the file that"):
        PyTorchBackend().complete(config_of({"x": ("FP32", -1, 2)}, {}), files)


def test_a_file_that_a_list_leaves_out_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = repository(tmp_path) / "model.pt"
    path.with_name("SHA256SUMS").write_text(f"{'0' * 64}  other.pt\n")
    check_digest("m", path)
    assert ["does not list 'model.pt'" in r.getMessage() for r in caplog.records] == [True]
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.parametrize("text", ["model.pt\n", f"{'0' * 63}  model.pt\n", f"{'0' * 64} model.pt"])
def test_a_list_that_cannot_be_understood_fails_the_load(tmp_path: Path, text: str) -> None:
    files = repository(tmp_path)
    (files / "SHA256SUMS").write_text(text)
    with pytest.raises(Internal, match=r"SHA256SUMS' is no list of digests .*: line 1 is not of"):
        PyTorchBackend().load(CONFIG, files)


def test_no_file_comes_before_its_digest(tmp_path: Path) -> None:
    (tmp_path / "model.pt.sha256").write_text("nonsense")
    with pytest.raises(Unavailable, match="unable to find"):
        PyTorchBackend().load(CONFIG, tmp_path)


ZEROS, ONES = "0" * 64, "1" * 64


@pytest.mark.parametrize(
    ("text", "digests"),
    [
        ("", {}),
        (f"# comment\n\n{ZEROS}  a b.pt\n{ONES} *./c\n", {"a b.pt": ZEROS, "c": ONES}),
        (f"SHA256 (a (1).pt) = {ONES}\r\n", {"a (1).pt": ONES}),
        (f"\\{ONES}  a\\nb\\\\nc\n", {"a\nb\\nc": ONES}),
        (f"{ZEROS}  a\n{ZEROS}  ./a\n", {"a": ZEROS}),
    ],
)
def test_lists_of_digests(text: str, digests: dict[str, str]) -> None:
    assert parse_sums(text) == digests


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"{ZEROS}  a\n{ONES}  a\n", "line 2 gives 'a' a second digest"),
        (f"{ZEROS}\n", "line 1 is not of the form"),
        ("\n<html>\n", "line 2 is not of the form"),
    ],
)
def test_lists_of_something_else(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse_sums(text)


@given(st.dictionaries(st.text(st.characters(exclude_characters="\r"), min_size=1), st.binary()))
def test_a_list_is_read_as_sha256sum_writes_it(files: dict[str, bytes]) -> None:
    kept = {name.removeprefix("./"): hashlib.sha256(data) for name, data in files.items()}
    lines = []
    for name, found in kept.items():
        written = name.replace("\\", "\\\\").replace("\n", "\\n")
        lines.append(f"{'' if written == name else chr(92)}{found.hexdigest()}  {written}")
    if all(name and not name.startswith("./") for name in kept):
        assert parse_sums("\n".join(lines)) == {n: f.hexdigest() for n, f in kept.items()}
