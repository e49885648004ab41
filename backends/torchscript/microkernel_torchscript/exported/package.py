"""AOTInductor packages as the source of instances."""

import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from microkernel import Internal, InvalidArgument, ModelConfig, Placement
from microkernel_torchscript.digests import check_digest
from microkernel_torchscript.exported.archive import archive_members, read_member
from microkernel_torchscript.exported.call_spec import Malformed, input_names, output_names
from microkernel_torchscript.exported.leaf_completion import complete_leaves, input_labels
from microkernel_torchscript.exported.leaf_plans import plan_leaf_inputs, plan_leaf_outputs
from microkernel_torchscript.exported.leaf_results import apart
from microkernel_torchscript.exported.leaves import Leaf
from microkernel_torchscript.exported.package_checks import (
    Expected,
    expected_inputs,
    strange_layout,
)
from microkernel_torchscript.exported.package_probe import CannotProbe, check_on_host, probed
from microkernel_torchscript.exported.package_target import (
    Target,
    misfit,
    model_names,
    package_target,
    this_host,
)
from microkernel_torchscript.failures import headline
from microkernel_torchscript.kinds import COMPILED
from microkernel_torchscript.made_up import Purpose, told_when_long
from microkernel_torchscript.probing.skeleton import unfinished
from microkernel_torchscript.signature import Argument, Signature
from microkernel_torchscript.source import Forward, Source

logger = logging.getLogger(__name__)

_MODEL = "model"

_UNPACKING = threading.Lock()
"""The directory for temporary files belongs to the process."""


class PackageSource(Source):
    """A `.pt2` that AOTInductor compiled. Each instance has the machine code to itself; its weights
    are part of that."""

    def __init__(self, config: ModelConfig, path: Path) -> None:
        """Load the file and check the configuration against what the package tells."""
        self._name, self._path = config.name, path
        self._target = check_package(config.name, path)
        check_digest(config.name, path)
        self._unpacked = contextlib.ExitStack()
        with contextlib.ExitStack() as unpacked:
            first = load_package(config.name, path, None, unpacked)
        expected = _expected(config.name, path)
        inputs, outputs = _leaves(config.name, first, expected)
        self.inputs = plan_leaf_inputs(config, inputs)
        self.outputs = plan_leaf_outputs(config, outputs)
        self._lock = threading.Lock()
        self._unused = [first] if self._target.device in ("", "cpu") else []

    def forward(self, placement: Placement, device: torch.device | None) -> Forward:
        """See `Source.forward`. Tensors come and go in flattening order."""
        kind = self._target.device or "cpu"
        if device is not None and device.type != kind:
            raise InvalidArgument(
                f"failed to load model '{self._name}': '{self._path}' was compiled for {kind}, but "
                f"instance '{placement.name}' is on '{device}': change the kind of its instance "
                "group, or compile the model for that device"
            )
        with self._lock:
            loader = self._unused.pop() if self._unused else None
        return runner(self._name, (loader or self._another(kind, device)).run)

    def close(self) -> None:
        """Unload the machine code that no instance has taken."""
        self._unused.clear()
        self._unpacked.close()

    def _another(self, kind: str, device: torch.device | None) -> Any:
        """The machine code once more. What is for a GPU takes from its files as it runs."""
        if kind != "cpu":
            return load_package(self._name, self._path, device, self._unpacked)
        with contextlib.ExitStack() as unpacked:
            return load_package(self._name, self._path, device, unpacked)


def complete_package(config: ModelConfig, path: Path) -> ModelConfig:
    """Fill in the inputs and outputs that a configuration leaves out.

    A package tells the inputs in the source that lies in it, and the outputs by being run on them.
    Raises InvalidArgument, with the names to write down, where it does not.
    """
    target = check_package(config.name, path)
    with contextlib.ExitStack() as unpacked:
        loader = load_package(config.name, path, None, unpacked)
        inputs, outputs = _leaves(config.name, loader, _expected(config.name, path))
    try:
        check_on_host(target.device)
        with told_when_long(config, Purpose.COMPLETING):
            inputs, outputs = probed(runner(config.name, loader.run), inputs, outputs)
    except CannotProbe as reason:
        lacking = f"the package '{path}' does not tell {reason}"
        raise unfinished(config, _signature(inputs, outputs), path, lacking) from None
    return complete_leaves(config, inputs, outputs)


def check_package(name: str, path: Path) -> Target:
    """What a package was compiled for. Raises Internal, with the cure, for a file that is no
    package, or one that this host cannot run."""
    members = archive_members(name, path)
    models, target = model_names(members), package_target(path, members, _MODEL)
    if _MODEL in models:
        reason = misfit(target, this_host(_capability()))
    else:
        reason = (
            f"holds models called {', '.join(models)}; the one to serve must be called '{_MODEL}'"
        )
    if reason:
        raise Internal(f"failed to load model '{name}': '{path}' {reason}")
    return target


def _capability() -> str:
    if not torch.cuda.is_available():
        return ""
    return "".join(map(str, torch.cuda.get_device_capability()))


def load_package(
    name: str, path: Path, device: torch.device | None, kept: contextlib.ExitStack
) -> Any:
    """The loaded machine code. One thread at a time runs it, so it needs no locks of its own.
    Raises Internal for what torch does not load.

    Torch unpacks it into the directory for temporary files and leaves it there when a load fails or
    the process is ended; here it is gone when `kept` is closed, which may be at once on the CPU,
    because the code is mapped by then.
    """
    index = -1 if device is None or device.index is None else device.index
    aoti: Any = torch._C._aoti  # noqa: SLF001 - what torch has in public imports its compiler
    try:
        with _UNPACKING:
            folder = kept.enter_context(tempfile.TemporaryDirectory(prefix="microkernel_"))
            with _temporary(folder):
                return aoti.AOTIModelPackageLoader(str(path), _MODEL, True, 1, index)
    except Exception as error:  # noqa: BLE001 - torch raises several kinds for a bad file
        raise Internal(f"failed to load model '{name}': '{path}': {headline(error)}") from None


@contextlib.contextmanager
def _temporary(folder: str) -> Iterator[None]:
    """Have native code take a folder for temporary files."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def _expected(name: str, path: Path) -> tuple[Expected, ...]:
    """The inputs as the package checks them; none where its source is not in it. Raises Internal
    for an order in memory that requests do not have."""
    found: tuple[Expected, ...] = ()
    for member in archive_members(name, path):
        if member.startswith(f"{COMPILED}{_MODEL}/") and member.endswith(".cpp"):
            with contextlib.suppress(ValueError):
                source = read_member(path, member).decode(errors="replace")
                found = found or expected_inputs(source)
    for place, entry in enumerate(found):
        if strange_layout(entry):
            raise Internal(
                f"failed to load model '{name}': '{path}' was compiled for an argument {place} "
                "that does not lie in memory row after row; compile it with an example that does "
                "(tensor.contiguous())"
            )
    return found


def _leaves(
    name: str, loader: Any, expected: Sequence[Expected]
) -> tuple[tuple[Leaf, ...], tuple[Leaf, ...]]:
    """The arguments and results by their names. Arguments that are no tensors have left no trace
    but in the nesting: then ordinals are all there is."""
    try:
        taken, given = (read(text) for read, text in _specs(loader))
    except Malformed as error:
        raise Internal(f"failed to load model '{name}': {error}") from None
    if expected and len(expected) != len(taken):
        taken = [()] * len(expected)
    inputs = tuple(Leaf(names) for names in taken)
    if expected:
        pairs = zip(inputs, expected, strict=True)
        inputs = tuple(Leaf(leaf.names, e.data_type, e.sizes) for leaf, e in pairs)
    return inputs, tuple(Leaf(names) for names in given)


def _specs(loader: Any) -> list[tuple[Callable[[str], list[tuple[str, ...]]], str]]:
    texts = loader.get_call_spec()
    if len(texts) != 2:
        raise Malformed("the package has no call spec; compile it with a newer torch")
    return [(input_names, texts[0]), (output_names, texts[1])]


def runner(name: str, run: Callable[[list[Any]], list[Any]]) -> Forward:
    """A callable on tensors in flattening order, from machine code on a list of them. What that
    raises becomes Internal, in Triton's words, without the frames of the machine code."""

    def forward(*leaves: Any) -> tuple[Any, ...]:
        try:
            results = run(list(leaves))
        except Exception as error:
            raise Internal(
                f'Inductor model instance "{name}" execution failure: {headline(error)}'
            ) from error
        return apart(results, leaves)

    return forward


def _signature(inputs: Sequence[Leaf], outputs: Sequence[Leaf]) -> Signature:
    names = input_labels(inputs)
    arguments = tuple(Argument(name, "tensor", "Tensor") for name in names)
    return Signature(arguments, returned=len(outputs))
