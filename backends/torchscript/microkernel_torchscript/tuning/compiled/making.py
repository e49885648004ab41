"""The interpreter that compiles: `python -m microkernel_torchscript.tuning.compiled.making
DESCRIPTOR`. Its torch is full of compilers afterwards, and a crash of theirs ends nothing else."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from microkernel import ModelConfig, config_from_json
from microkernel_torchscript.inputs import plan_inputs
from microkernel_torchscript.script.files import load_module, model_file
from microkernel_torchscript.signature import signature_of
from microkernel_torchscript.tuning.answering import Say, answer
from microkernel_torchscript.tuning.compiled.calling import form_of, open_compiled
from microkernel_torchscript.tuning.samples import Arguments, Sampler, complaint, find_sampler
from microkernel_torchscript.tuning.subject import compared

_SETTINGS = {"freezing": True, "cpp.dynamic_threads": True}
"""Weights are constants that may be laid out anew; the number of threads is that of the thread
which calls, and not that of this process."""


class _Cannot(Exception):
    """The module cannot be compiled; the text says why."""


def carry_out(order: dict[str, Any], _: Say) -> dict[str, Any]:
    """Write the package that an order asks for and compare its results with the plain module's.
    Returns the `fault`, "" for none, and the largest `difference`."""
    config, files = config_from_json(order["config"]), Path(order["files"])
    path = Path(order["path"])
    torch.set_num_threads(1)
    module = load_module(config.name, model_file(config, files), device="cpu")
    plan = plan_inputs(config, signature_of(module))
    with torch.no_grad():
        sampler = find_sampler(config, plan, module.forward)
        try:
            compile_module(module, sampler, config, max(order["sizes"]), path)
        except _Cannot as reason:
            return {"fault": str(reason), "difference": 0.0}
        made = open_compiled(config.name, path, form_of(module))
        found = compared(module, made, sampler, checked(order["sizes"]))
    return {"fault": found.fault, "difference": found.difference}


def checked(sizes: Sequence[int]) -> list[int]:
    """The batch sizes that results are compared for: a compiler may have taken the one that it was
    shown for the only one, and 1 and small ones for something special."""
    largest = max(sizes)
    wanted = {*sizes, 1, 2, 3, largest - 1}
    return sorted(size for size in wanted if 1 <= size <= largest)


def compile_module(
    module: torch.jit.ScriptModule, sampler: Sampler, config: ModelConfig, batch: int, path: Path
) -> None:
    """Compile a module into a package. All sizes but that of the batch become fixed, and that is
    one from 1 to the largest of the configuration; `batch` is shown to the compiler. Raises _Cannot
    for what torch cannot do."""
    example = tuple(sampler.arguments(batch, seed=0))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on its own ways
            program = _exported(module, example, config.max_batch_size)
    except Exception as error:
        raise _Cannot(f"it cannot be exported: {complaint(error)}") from error
    inductor: Any = torch._inductor  # noqa: SLF001 - where torch documents its packages
    try:
        inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs=dict(_SETTINGS)
        )
    except Exception as error:
        raise _Cannot(f"it cannot be compiled: {complaint(error)}") from error


def _exported(module: torch.jit.ScriptModule, example: Arguments, most: int) -> Any:
    """The module as a program. The converter leaves every size open, so that it is exported once
    more with those that requests can have."""
    from torch._export.converter import (  # noqa: PLC0415 - private: another torch may have none
        TS2EPConverter,
    )

    program = TS2EPConverter(module, tuple(example)).convert()
    varying = {0: torch.export.Dim("batch", min=1, max=most)} if most > 1 else None
    shapes = tuple(varying for _ in example)
    return torch.export.export(
        program.module(), tuple(example), dynamic_shapes=shapes, strict=False
    )


if __name__ == "__main__":
    answer(carry_out)
