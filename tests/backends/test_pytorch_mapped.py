"""Weights that lie in the mapped file."""

import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the extra 'torchscript' is missing")

import torch

from microkernel_torchscript.script.mapped import Stored, share_weights, stored_tensors


class Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.register_buffer("count", torch.tensor([3], dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(x) + self.count
        return result


class Outer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other = Inner(), Inner()
        self.other.linear.weight = self.inner.linear.weight  # tied
        self.turned = torch.nn.Parameter(torch.randn(8, 4).t())
        self.small = torch.nn.Parameter(torch.randn(4).to(torch.bfloat16))
        self.none = torch.nn.Parameter(torch.zeros(0, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.other(self.inner(x)) * self.small.to(torch.float32)
        return y @ self.turned + self.none.sum()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        yield


def load(path: Path) -> Any:
    return torch.jit.load(path)  # type: ignore[no-untyped-call]


def saved(path: Path) -> Path:
    torch.manual_seed(1)
    torch.jit.save(torch.jit.script(Outer().eval()), path)
    return path


def mapped_files(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


@pytest.mark.parametrize("inference", [True, False])
def test_a_module_gives_the_same_from_the_mapped_file(tmp_path: Path, inference: bool) -> None:
    path = saved(tmp_path / "model.pt")
    with torch.inference_mode(inference), torch.no_grad():
        module = load(path)
        x = torch.randn(2, 4)
        before = module(x)
        own = module.inner.linear.weight.data_ptr()
        shared = share_weights(module, path)
        assert torch.equal(module(x), before)
        assert module.inner.linear.weight.data_ptr() != own
        assert module.inner.linear.weight.data_ptr() == module.other.linear.weight.data_ptr()
    # Twice the tied weight, two biases and counts, the turned and the small one.
    assert shared == 2 * (64 + 16 + 8) + 128 + 8
    assert mapped_files(path) > 0


def test_where_the_tensors_of_a_file_lie(tmp_path: Path) -> None:
    stored = stored_tensors(saved(tmp_path / "model.pt"))
    assert set(stored) == {
        *(f"{part}.{name}" for part in ("inner", "other") for name in ("linear.weight",)),
        *(f"{part}.{name}" for part in ("inner", "other") for name in ("linear.bias", "count")),
        *("turned", "small", "none"),
    }
    assert stored["inner.linear.weight"].record == stored["other.linear.weight"].record
    assert stored["small"].dtype is torch.bfloat16
    assert (stored["turned"].shape, stored["turned"].stride) == ((4, 8), (1, 4))


def test_a_change_in_place_stays_in_its_process(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt")
    content = path.read_bytes()
    module = load(path)
    share_weights(module, path)
    with torch.no_grad():
        module.inner.count.add_(1)
    assert module.inner.count.item() == 4
    assert path.read_bytes() == content
    again = load(path)
    assert again.inner.count.item() == 3


def test_what_differs_from_the_file_stays(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt")
    module = load(path)
    with torch.no_grad():
        module.turned.add_(1)
        kept = module.turned.clone()
        bias = module.inner.linear.bias
        bias.fill_(float("nan"))
    assert share_weights(module, path) == 2 * 64 + 16 + 16 + 8
    assert torch.equal(module.turned, kept)
    assert torch.isnan(module.inner.linear.bias).all()


def with_pickled(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """The same archive with another pickled part."""
    target = path.with_name("changed.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith("/data.pkl") else content)
    return target


class _Harm:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("exit 7",)


class _Deep:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return getattr, ("", "format")


@pytest.mark.parametrize(
    "change",
    [
        lambda _: b"",
        lambda _: b"\x80\x02garbage",
        lambda content: content[: len(content) // 2],
        lambda _: pickle.dumps(_Harm()),
        lambda _: pickle.dumps(_Deep()),
        lambda _: pickle.dumps(17),
        lambda _: pickle.dumps({"a": [1, 2]}),
    ],
)
def test_a_file_that_tells_nothing_changes_nothing(
    tmp_path: Path, change: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: str) -> int:
        raise AssertionError("code of the file has run")

    path = saved(tmp_path / "model.pt")
    changed = with_pickled(path, change)
    monkeypatch.setattr(os, "system", never)
    assert stored_tensors(changed) == {}
    module = load(path)
    before = module.inner.linear.weight.data_ptr()
    assert share_weights(module, changed) == 0
    assert module.inner.linear.weight.data_ptr() == before


@pytest.mark.parametrize("path", ["missing.pt", "."])
def test_what_is_no_archive_tells_nothing(tmp_path: Path, path: str) -> None:
    assert stored_tensors(tmp_path / path) == {}


def test_places_outside_the_file_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "model.pt")
    far = Stored("data/0", torch.float32, 1 << 40, (4, 4), (4, 1))
    odd = Stored("data/none", torch.float32, 0, (4, 4), (4, 1))
    told = {"inner.linear.weight": far, "other.linear.weight": odd}
    monkeypatch.setattr("microkernel_torchscript.script.mapped.stored_tensors", lambda _: told)
    module = load(path)
    assert share_weights(module, path) == 0


def test_a_pickled_part_with_other_kinds_of_objects_is_read(tmp_path: Path) -> None:
    """Lists, strings and constants beside the tensors, as traced and scripted files have them."""
    example = torch.randn(1, 4)
    traced = torch.jit.trace(Inner().eval(), example)  # type: ignore[no-untyped-call]
    torch.jit.save(traced, tmp_path / "traced.pt")
    assert set(stored_tensors(tmp_path / "traced.pt")) == {"linear.weight", "linear.bias", "count"}
    buffer = io.BytesIO()
    torch.save(Inner().state_dict(), buffer)
    (tmp_path / "weights.pt").write_bytes(buffer.getvalue())
    assert stored_tensors(tmp_path / "weights.pt") == {}
