"""Calling a package as the module that it was compiled from."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from microkernel import InvalidArgument
from microkernel_torchscript.exported.package import check_package, load_package, runner
from microkernel_torchscript.tuning.compiled.conditions import Form


@dataclass(frozen=True, slots=True)
class Compiled:
    """A package as what it was compiled from: takes the same tensors and returns the same
    structure. One thread at a time may call it."""

    name: str
    run: Callable[..., tuple[Any, ...]]
    form: Form

    def forward(self, *arguments: Any) -> Any:
        """The result of the machine code. Raises InvalidArgument for inputs without an element,
        which it was not compiled for, and Internal for what goes wrong in it."""
        if not all(argument.numel() for argument in arguments):
            raise InvalidArgument(
                f"model '{self.name}' runs as machine code, which takes a batch of at least 1 item"
            )
        results = self.run(*arguments)
        if self.form == "tensor":
            return results[0]
        return list(results) if self.form == "list" else results


def open_compiled(name: str, path: Path, form: Form) -> Compiled:
    """The package of a model, loaded for the CPU. Raises Internal for one that this host cannot
    run and for a file that is none."""
    check_package(name, path)
    with contextlib.ExitStack() as unpacked:
        loader = load_package(name, path, None, unpacked)
    return Compiled(name, runner(name, loader.run), form)


def form_of(module: torch.jit.ScriptModule) -> Form:
    """What a module's `forward` returns."""
    forward: Any = module.forward
    result = forward.schema.returns[0].type
    match result.kind():
        case "TensorType":
            return "tensor"
        case "ListType":
            return "list" if result.getElementType().kind() == "TensorType" else ""
        case "TupleType" if result.str().startswith("("):  # with names it is a NamedTuple
            kinds = {element.kind() for element in result.elements()}
            return "tuple" if kinds == {"TensorType"} else ""
    return ""
