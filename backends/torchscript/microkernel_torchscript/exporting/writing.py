"""From a module to a file that describes itself: tried, saved, compared, and only then written."""

import copy
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from microkernel import InvalidArgument, ModelConfig, whole_file
from microkernel_torchscript.describing import Description, write_description
from microkernel_torchscript.exporting.comparing import compare
from microkernel_torchscript.exporting.saving import save
from microkernel_torchscript.exporting.specs import Wish
from microkernel_torchscript.exporting.trial import try_out

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written: the configuration it serves with, the largest difference between its
    results and the module's, and whether its model could batch though it was not asked to."""

    config: ModelConfig
    difference: float
    could_batch: bool


def export_module(module: nn.Module, wish: Wish, path: Path) -> Exported:
    """Write a module to a `.pt` or `.pt2` that serves with no configuration.

    The module is switched to evaluation; copies of it run several times, so that a state which it
    keeps is saved as it is. Raises InvalidArgument, and writes nothing, where it cannot be
    exported, the file gives other results than the module, or the file cannot be written; a file
    that was there before stays then.
    """
    tried, saved, compared = _copies(module.eval(), 3)
    trial = try_out(model_name(path), tried, wish)
    with tempfile.TemporaryDirectory(prefix="microkernel-export-") as folder:
        made = Path(folder) / f"model{path.suffix}"
        save(replace(trial, module=saved), wish.form, made)
        write_description(made, Description(trial.config, wish.labels))
        difference = compare(replace(trial, module=compared), made.parent)
        _move(made, path)
    firsts = {entry.dims[0] for entry in trial.config.input}
    firsts |= {entry.dims[0] for entry in trial.config.output}
    could_batch = not wish.max_batch_size and firsts == {-1}
    return Exported(trial.config, difference, could_batch)


def is_found(path: Path) -> bool:
    """Whether a server finds the file of a model without a configuration: it is called `model` and
    lies in a version's directory."""
    return path.stem == "model" and path.absolute().parent.name.isdecimal()


def model_name(path: Path) -> str:
    """The name of the model that a file will be served as."""
    where = path.absolute()
    return where.parent.parent.name if is_found(path) else where.stem


def _copies(module: nn.Module, count: int) -> Sequence[nn.Module]:
    """Copies of a module that share its parameters, which no run changes; the module itself so
    often where it cannot be copied."""
    shared = {id(parameter): parameter for parameter in module.parameters()}
    try:
        return [copy.deepcopy(module, dict(shared)) for _ in range(count)]
    except Exception as error:  # noqa: BLE001 - a module may hold anything
        logger.warning(
            "the module cannot be copied (%s): what trial runs leave in it is saved", error
        )
        return [module] * count


def _move(made: Path, path: Path) -> None:
    """Put a file in its place, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            shutil.copyfile(made, part)
    except OSError as error:
        raise InvalidArgument(f"'{path}' cannot be written: {error.strerror}") from None
