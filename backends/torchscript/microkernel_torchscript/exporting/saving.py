"""Writing a module to a file in one of the formats."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from microkernel import InvalidArgument
from microkernel_torchscript.exporting.specs import Format
from microkernel_torchscript.exporting.trial import Trial
from microkernel_torchscript.script.files import silenced

_ADVICE: Mapping[Format, str] = {
    "script": "--format trace records one run in place of reading the code, and a file that ends "
    "in .pt2 takes torch.export",
    "trace": "--format script reads the code in place of recording a run",
    "export": "a file that ends in .pt takes TorchScript",
    "aoti": "--format export needs no compiler",
}


def save(trial: Trial, form: Format, path: Path) -> None:
    """Write the module of a trial to a file. Raises InvalidArgument with torch's words and what to
    try instead where torch cannot."""
    if form in ("export", "aoti"):
        _check_tensors(trial, form)
    values = {e.name: e.value(other=True) for e in trial.examples}
    try:
        with silenced(r".*`torch\.jit\.\w+`", DeprecationWarning):
            if form in ("script", "trace"):
                torch.jit.save(_scripted(trial, form, values), path)
            elif form == "export":
                program = _exported(trial, values)
                program.example_inputs = None  # they would be saved as well, as large as they are
                torch.export.save(program, path)
            else:
                _package(_exported(trial, values), path)
    except Exception as error:
        raise InvalidArgument(
            f"the module cannot be saved in the format {form}: {_told(error)}\n"
            f"Another way: {_ADVICE[form]}."
        ) from error


def _check_tensors(trial: Trial, form: Format) -> None:
    for feed in trial.plan.feeds:
        if feed.kind != "tensor":
            raise InvalidArgument(
                f"input '{feed.name}' feeds an argument of the type {feed.kind}, and the format "
                f"{form} takes tensors only; {_ADVICE['export']}"
            )


def _told(error: Exception) -> str:
    """What torch says, without its advice to call other functions of torch."""
    return str(error).partition("\n\nThe error above occurred")[0].strip() or type(error).__name__


def _scripted(trial: Trial, form: Format, values: Mapping[str, Any]) -> torch.jit.ScriptModule:
    if isinstance(trial.module, torch.jit.ScriptModule):
        return trial.module
    make: Any = torch.jit
    with torch.no_grad():
        if form == "script":
            made: torch.jit.ScriptModule = make.script(trial.module)
        else:
            made = _traced(trial, values)
    return made


def _traced(trial: Trial, values: Mapping[str, Any]) -> torch.jit.ScriptModule:
    """The module as one run records it, in the state that it had before."""
    before = {name: buffer.clone() for name, buffer in trial.module.named_buffers()}
    trace: Any = torch.jit.trace
    made: torch.jit.ScriptModule = trace(trial.module, trial.arguments(values), strict=False)
    for name, buffer in made.named_buffers():
        buffer.copy_(before.get(name, buffer))
    return made


def _exported(trial: Trial, values: Mapping[str, Any]) -> ExportedProgram:
    varying = {e.name: dict.fromkeys(sorted(e.axes), Dim.DYNAMIC) for e in trial.examples}
    arguments = trial.arguments(values)
    shapes = tuple(  # what is no tensor is a default and has no shape
        shape if isinstance(argument, torch.Tensor | dict) else None
        for shape, argument in zip(trial.arguments(varying), arguments, strict=True)
    )
    with torch.no_grad():
        return torch.export.export(trial.module, arguments, dynamic_shapes=shapes, strict=False)


def _package(program: ExportedProgram, path: Path) -> None:
    inductor: Any = torch._inductor  # noqa: SLF001 - where torch documents its packages
    with torch.no_grad():
        inductor.aoti_compile_and_package(program, package_path=str(path))
