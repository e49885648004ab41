"""The compiled variant of the model under trial."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from microkernel import MicrokernelError, ModelConfig
from microkernel_torchscript.compiling.policy import missing_compiler, turned_off
from microkernel_torchscript.inputs import InputPlan
from microkernel_torchscript.tuning.answering import Say
from microkernel_torchscript.tuning.closeness import Comparison
from microkernel_torchscript.tuning.compiled.calling import form_of, open_compiled
from microkernel_torchscript.tuning.compiled.conditions import not_compiled
from microkernel_torchscript.tuning.compiled.ordering import MOST_SECONDS, PACKAGE, order_package
from microkernel_torchscript.tuning.subject import Tried
from microkernel_torchscript.tuning.trial import AOTI


@dataclass(frozen=True, slots=True)
class Workpiece:
    """A model to compile: its configuration, its version directory, its plain module and how inputs
    become arguments, and the folder to compile in, None for not at all."""

    config: ModelConfig
    files: Path
    module: torch.jit.ScriptModule
    plan: InputPlan
    folder: Path | None


def try_compiled(piece: Workpiece, sizes: Sequence[int], seconds: float, say: Say) -> Tried:
    """The compiled model, compared in batches of these sizes, or why there is none. `seconds` is
    for how long the model is measured, beside which compiling takes up to MOST_SECONDS."""
    fault = _hindrance(piece, sizes, seconds)
    if fault or piece.folder is None:
        return _none(fault)
    say(f"compiling with AOTInductor, which may take {MOST_SECONDS:g} s more")
    made = order_package(piece.config, piece.files, sizes, piece.folder)
    if made.fault:
        return _none(made.fault, made.difference)
    try:
        path, form = piece.folder / PACKAGE, form_of(piece.module)
        compiled = open_compiled(piece.config.name, path, form)
    except MicrokernelError as error:
        return _none(str(error))
    return Tried(AOTI, compiled, Comparison("", made.difference))


def _hindrance(piece: Workpiece, sizes: Sequence[int], seconds: float) -> str:
    if piece.folder is None:
        return "there is no folder to compile in"
    if turned_off():
        return "TORCH_COMPILE_DISABLE turns compiling off"
    form = form_of(piece.module)
    reason = not_compiled(piece.config, piece.plan, form, sizes, seconds)
    return reason or missing_compiler()


def _none(fault: str, difference: float = 0.0) -> Tried:
    return Tried(AOTI, None, Comparison(fault, difference))
