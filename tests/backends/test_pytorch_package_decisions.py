"""AOTInductor packages, as far as their text and metadata tell: no compiler is needed here."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch

from microkernel import Internal, ModelConfig
from microkernel_torchscript.backend import PyTorchBackend
from microkernel_torchscript.exported.leaf_completion import batches
from microkernel_torchscript.exported.leaves import Leaf, Size, exact, shape_fault
from microkernel_torchscript.exported.package import runner
from microkernel_torchscript.exported.package_checks import (
    Expected,
    expected_inputs,
    strange_layout,
)
from microkernel_torchscript.exported.package_probe import CannotProbe, probed
from microkernel_torchscript.exported.package_target import Host, Target, misfit, this_host

CONFIG = ModelConfig(name="m", backend="pytorch", platform="torch_aoti")
HOST = Host("linux", "x86_64", frozenset(("avx2", "fma", "sse4_2")))


def _cpu(instructions: str) -> Target:
    return Target("cpu", "linux", "x86_64", instructions)


def _gpu(capability: str) -> Target:
    return Target("cuda", "linux", "x86_64", "AVX2", capability)


MISFITS = {
    "the same": (_cpu("AVX2"), HOST, ""),
    "nothing said": (Target(), HOST, ""),
    "no vectors": (_cpu("INVALID_VEC_ISA"), HOST, ""),
    "unknown flags": (_cpu("AVX512"), Host("linux", "x86_64", frozenset()), ""),
    "a larger set": (
        _cpu("AVX512 AVX512_VNNI"),
        HOST,
        "was compiled for a CPU with AVX512 AVX512_VNNI, but this one has no AVX512 and no "
        "AVX512_VNNI: compile it on a machine like this one",
    ),
    "another machine": (
        Target("cpu", "linux", "aarch64", "ASIMD"),
        HOST,
        "was compiled for linux on aarch64, but this is linux on x86_64: compile it here",
    ),
    "another system": (
        Target("cpu", "darwin", "x86_64"),
        HOST,
        "was compiled for darwin on x86_64, but this is linux on x86_64: compile it here",
    ),
    "no GPU": (
        _gpu("90"),
        HOST,
        "was compiled for cuda (compute capability 90), but this host has no such device: compile "
        "it for the CPU",
    ),
    "another GPU": (
        _gpu("90"),
        Host("linux", "x86_64", HOST.flags, "8.0"),
        "was compiled for cuda (compute capability 90), but the GPU of this host has compute "
        "capability 8.0: compile it here",
    ),
    "that GPU": (_gpu("9.0"), Host("linux", "x86_64", HOST.flags, "90"), ""),
}


@pytest.mark.parametrize(("target", "host", "text"), MISFITS.values(), ids=list(MISFITS))
def test_a_package_runs_where_it_was_compiled_for(target: Target, host: Host, text: str) -> None:
    assert misfit(target, host) == text


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux's /proc")
def test_this_host_has_flags() -> None:
    assert this_host().flags


def _package(files: Path, model: str = "model", **notes: str) -> Path:
    note = {"AOTI_DEVICE_KEY": "cpu", **notes}
    with zipfile.ZipFile(files / "model.pt2", "w") as archive:
        folder = f"net/data/aotinductor/{model}"
        archive.writestr("net/archive_format", "pt2")
        archive.writestr(f"{folder}/a.wrapper_metadata.json", json.dumps(note))
        archive.writestr(f"{folder}/a.wrapper.so", b"\x7fELF nonsense")
    return files


PACKAGES: dict[str, tuple[dict[str, Any], str]] = {
    "another name": (
        {"model": "net"},
        "holds models called net; the one to serve must be called 'model'",
    ),
    "another machine": ({"AOTI_MACHINE": "s390x"}, "was compiled for"),
    "a GPU": (
        {"AOTI_DEVICE_KEY": "xpu", "AOTI_COMPUTE_CAPABILITY": "1"},
        "was compiled for xpu (compute capability 1), but",
    ),
    "no machine code": ({}, ""),
}


@pytest.mark.parametrize(("made", "text"), PACKAGES.values(), ids=list(PACKAGES))
def test_a_package_that_cannot_run_here_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: dict[str, Any], text: str
) -> None:
    unpacked = tmp_path / "temporary"
    unpacked.mkdir()
    monkeypatch.setenv("TMPDIR", str(unpacked))
    monkeypatch.setattr("tempfile.tempdir", None)
    path = _package(tmp_path, **made) / "model.pt2"
    backend = PyTorchBackend()
    for act in (backend.complete, backend.load):
        with pytest.raises(Internal) as caught:
            act(CONFIG, tmp_path)
        assert str(caught.value).startswith(f"failed to load model 'm': '{path}'")
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not list(unpacked.iterdir())


# As torch 2.13 writes it, shortened: dtypes, a varying first size, an exact one, strides.
def _checks(place: int, kind: str, *facts: str) -> str:
    head = (
        f'ss << "input_handles[{place}]: unmatched dtype, "\n           << "expected: " << '
        f'arg_expected_dtype << "(at::k{kind}), "\n           << "but got: " << arg_dtype << "\\n";'
    )
    return head + "".join(f'\n ss << "input_handles[{place}]: {fact};' for fact in facts)


def _size(axis: int, size: int) -> str:
    return f'unmatched dim value at {axis}, "\n  << "expected: {size}, " << "but got: "'


def _low(axis: int, size: int) -> str:
    return f'dim value is too small at {axis}, "\n  << "expected it to be >= {size}, " << "but got"'


def _high(axis: int, size: int) -> str:
    return f'dim value is too large at {axis}, "\n  << "expected to be <= {size}, " << "but got: "'


def _stride(axis: int, step: int) -> str:
    return f'unmatched stride value at {axis}, "\n  << "expected: {step}, " << "but got: "'


SOURCES: dict[str, tuple[str, Sequence[Expected]]] = {
    "no checks": ("int main() {}", ()),
    "a gap": (_checks(1, "Float"), ()),
    "a scalar": (_checks(0, "Long"), (Expected("TYPE_INT64", ()),)),
    "a batch": (
        _checks(0, "Float", _low(0, 2), _high(0, 32), _size(1, 4), _stride(0, 4), _stride(1, 1)),
        (Expected("TYPE_FP32", (Size(1, 32), Size(4, 4)), ((0, 4), (1, 1))),),
    ),
    "no end": (
        _checks(0, "BFloat16", _low(0, 0), _low(1, 7), _stride(1, 1)),
        (Expected("TYPE_BF16", (Size(0, None), Size(7, None)), ((1, 1),)),),
    ),
    "two": (
        _checks(0, "Bool", _size(0, 2)) + _checks(1, "Half", _size(0, 3)),
        (Expected("TYPE_BOOL", exact(2)), Expected("TYPE_FP16", exact(3))),
    ),
    "a type that is not served": (
        _checks(0, "ComplexFloat", _size(0, 2)),
        (Expected(None, exact(2)),),
    ),
}


def _run(arguments: int, *symbols: tuple[str, int, int]) -> str:
    lines = [f"auto arg{i}_1 = std::move(inputs[{i}]);" for i in range(arguments)]
    lines += [f"int64_t {name} = arg{i}_1_size[{axis}];" for name, i, axis in symbols]
    return "\n".join(lines)


_BATCH = [_low(0, 2), _high(0, 32)]
_LENGTH = [_low(1, 2), _high(1, 512)]

SYMBOLS = {
    "one for all": (
        _checks(0, "Float", *_BATCH) + _checks(1, "Float", *_BATCH) + _run(2, ("s0", 0, 0)),
        [["s0"], ["s0"]],
    ),
    "each its own": (
        _checks(0, "Float", *_BATCH)
        + _checks(1, "Float", *_BATCH)
        + _run(2, ("s0", 0, 0), ("s1", 1, 0)),
        [["s0"], ["s1"]],
    ),
    "told apart by their range": (
        _checks(0, "Float", *_BATCH, *_LENGTH)
        + _checks(1, "Float", *_BATCH, *_LENGTH)
        + _run(2, ("s0", 0, 0), ("s1", 0, 1)),
        [["s0", "s1"], ["s0", "s1"]],
    ),
    "one of two": (
        _checks(0, "Float", *_BATCH)
        + _checks(1, "Float", *_BATCH)
        + _checks(2, "Float", *_BATCH)
        + _run(3, ("s0", 0, 0), ("s1", 1, 0)),
        [["s0"], ["s1"], [""]],
    ),
    "none read": (_checks(0, "Float", *_BATCH, _size(1, 4)), [["", ""]]),
}


@pytest.mark.parametrize(("source", "symbols"), SYMBOLS.values(), ids=list(SYMBOLS))
def test_sizes_that_must_be_equal_are_known(source: str, symbols: list[list[str]]) -> None:
    found = expected_inputs(source)
    assert [[size.symbol for size in entry.sizes] for entry in found] == symbols


@pytest.mark.parametrize(("source", "expected"), SOURCES.values(), ids=list(SOURCES))
def test_the_source_in_a_package_tells_its_inputs(
    source: str, expected: Sequence[Expected]
) -> None:
    assert list(expected_inputs(source)) == list(expected)


ANY = Size(1, 32)


@pytest.mark.parametrize(
    ("sizes", "strides", "strange"),
    [
        ((ANY, *exact(3, 4)), {0: 12, 1: 4, 2: 1}, False),
        ((ANY, *exact(3, 4)), {0: 12, 1: 1, 2: 3}, True),
        ((ANY, *exact(3, 8, 8)), {0: 192, 1: 1, 2: 24, 3: 3}, True),
        ((ANY, *exact(1, 4)), {0: 4, 1: 1, 2: 1}, False),
        ((Size(4, 4), ANY), {1: 1}, False),
        ((Size(4, 4), Size(2, None)), {0: 1}, True),
        ((), {}, False),
    ],
)
def test_an_order_in_memory_that_requests_do_not_have_is_found(
    sizes: tuple[Size, ...], strides: dict[int, int], strange: bool
) -> None:
    expected = Expected("TYPE_FP32", sizes, tuple(strides.items()))
    assert strange_layout(expected) is strange


def _row(*sizes: Size) -> Leaf:
    return Leaf(("x",), "TYPE_FP32", sizes)


def test_a_trial_shows_what_varies_with_the_inputs() -> None:
    def run(x: torch.Tensor, fixed: torch.Tensor) -> list[torch.Tensor]:
        rows = x.shape[0]
        return [x.to(torch.int64), torch.zeros(2 * rows, 5), fixed]

    inputs = [_row(Size(1, 8), *exact(3)), _row(*exact(4))]
    named, found = probed(run, inputs, [Leaf(), Leaf(), Leaf()])
    assert [leaf.data_type for leaf in found] == ["TYPE_INT64", "TYPE_FP32", "TYPE_FP32"]
    assert [tuple(s.dim for s in leaf.sizes or ()) for leaf in found] == [(-1, 3), (-1, 5), (4,)]
    assert batches(named[:1], found[:1])
    assert not batches(named[:1], found[:2])


def test_sizes_that_vary_are_tried_together_and_within_their_range() -> None:
    tried: list[tuple[int, ...]] = []

    def run(a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
        tried.append((*a.shape, *b.shape))
        return [a + b]

    probed(run, [_row(Size(1, 3)), _row(Size(1, 9))], [Leaf()])
    assert tried == [(2, 2), (3, 3)]


UNTRIED: dict[str, tuple[list[Leaf], str]] = {
    "nothing known": ([Leaf(("x",))], "the type and the shape of argument 0, because"),
    "a multiple": ([_row(Size(1, 9)), _row(Size(4, 18))], "its sizes vary in different ways"),
    "one size": ([_row(Size(1, 2))], "its sizes vary in different ways"),
}


@pytest.mark.parametrize(("inputs", "text"), UNTRIED.values(), ids=list(UNTRIED))
def test_what_may_not_be_safe_is_not_tried(inputs: list[Leaf], text: str) -> None:
    def run(*_: torch.Tensor) -> list[torch.Tensor]:
        raise AssertionError("must not be called")

    with pytest.raises(CannotProbe, match=text):
        probed(run, inputs, [Leaf()])


def test_a_trial_that_fails_is_told() -> None:
    def run(*_: torch.Tensor) -> list[torch.Tensor]:
        raise RuntimeError("boom")

    with pytest.raises(CannotProbe, match="the outputs, because a trial run failed: boom"):
        probed(run, [_row(*exact(2))], [Leaf()])


def test_what_machine_code_raises_is_told_without_its_frames() -> None:
    def run(_: list[torch.Tensor]) -> list[torch.Tensor]:
        raise RuntimeError("sizes differ\nException raised from meta\nframe #0: c10::Error")

    with pytest.raises(Internal) as caught:
        runner("m", run)(torch.ones(1))
    assert str(caught.value) == 'Inductor model instance "m" execution failure: sizes differ'


def test_results_in_the_memory_of_an_argument_are_copied() -> None:
    given = torch.ones(4)
    whole, part, own = runner("m", lambda leaves: [leaves[0], leaves[0][1:], leaves[0] + 1])(given)
    given.zero_()
    assert whole.tolist() == [1] * 4
    assert part.tolist() == [1] * 3
    assert own.tolist() == [2] * 4


@pytest.mark.parametrize(
    ("sizes", "shape", "fault"),
    [
        ((Size(0, None, "n", 2), Size(0, None, "n")), (4, 2), ""),
        ((Size(0, None, "n", 2), Size(0, None, "n", 1, -1)), (4, 1), ""),
        ((Size(0, None, "n", 2),), (5,), "where 5 is not a multiple of 2"),
        ((Size(0, None, "n", 2, 1),), (4,), "where 4 is not a multiple of 2 and 1 more"),
        ((Size(0, None, "n"), Size(0, None, "n", 2)), (2, 5), "asks for 4 in place of 5"),
        ((Size(0, None, "n", 2), Size(0, None, "n")), (4, 3), "another input has 2 in place of 3"),
    ],
)
def test_sizes_of_one_symbol_follow_from_each_other(
    sizes: tuple[Size, ...], shape: tuple[int, ...], fault: str
) -> None:
    found = shape_fault(sizes, shape, {})
    assert (fault in found) if fault else not found
