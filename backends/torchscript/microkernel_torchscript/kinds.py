"""Which kind of PyTorch model a version's directory holds. This module imports no torch."""

import ast
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from enum import Enum
from pathlib import Path

from microkernel import InvalidArgument, ModelConfig, WorkerKind

RUNTIME = "model.py"
"""The value of the configuration's field `runtime`, and the file it is named after."""

_SCRIPT, _PACKAGE = "model.pt", "model.pt2"

COMPILED = "data/aotinductor/"
"""Where machine code lies in a package, below the folder that everything lies in."""


class Kind(Enum):
    """TorchScript; a Python module, for the PyTorch 2 runtime; a package that AOTInductor compiled;
    a program as `torch.export.save` writes it."""

    SCRIPT = "TorchScript"
    MODULE = "Python module"
    PACKAGE = "AOTInductor package"
    PROGRAM = "exported program"


def kind_of(config: ModelConfig, files: Path) -> Kind:
    """The kind of a model. What is wrong with its files is found when they are loaded.

    With the PyTorch 2 runtime the file that `default_model_filename` names decides, then there
    being a `model.py`: with neither, a `model.pt` is TorchScript, as in Triton.
    """
    if config.runtime == RUNTIME:
        return Kind.SCRIPT if module_file(config, files).suffix == ".pt" else Kind.MODULE
    if config.platform == "torch_aoti":
        return Kind.PACKAGE if _is_compiled(files / package_name(config)) else Kind.PROGRAM
    return Kind.SCRIPT


def check_runtime(config: ModelConfig) -> None:
    """InvalidArgument for a field `runtime` that names nothing. The names of libraries are those of
    other servers' backends, which Triton's own repositories may have."""
    if config.runtime not in ("", RUNTIME) and not config.runtime.endswith(".so"):
        raise InvalidArgument(
            f"the field 'runtime' of model '{config.name}' is '{config.runtime}'; it is "
            f"'{RUNTIME}' for a Python module, and left out for TorchScript"
        )


def hosting(config: ModelConfig, files: Path) -> WorkerKind:
    """Where a model runs: only TorchScript leaves the interpreter to others while it computes."""
    return "process" if kind_of(config, files) is Kind.SCRIPT else "instance"


def recognise(config: ModelConfig, files: Path) -> ModelConfig | None:
    """The configuration of a model that is a `model.py` of the PyTorch 2 runtime, without saying so
    anywhere."""
    if config.runtime or not is_module_file(files / RUNTIME):
        return None
    return replace(config, runtime=RUNTIME)


def module_file(config: ModelConfig, files: Path) -> Path:
    """The file that the PyTorch 2 runtime loads."""
    names = (config.default_model_filename, RUNTIME, _SCRIPT)
    return next((files / n for n in names if n and (files / n).exists()), files / RUNTIME)


def script_name(config: ModelConfig) -> str:
    """The name of a TorchScript file."""
    return config.default_model_filename or _SCRIPT


def package_name(config: ModelConfig) -> str:
    """The name of a file of `torch.export` or AOTInductor."""
    return config.default_model_filename or _PACKAGE


def holds_machine_code(members: Iterable[str]) -> bool:
    """Whether an archive with these members is a package that AOTInductor compiled."""
    return any(f"/{COMPILED}" in f"/{name}" for name in members)


def is_module_file(path: Path) -> bool:
    """Whether a file is Python source for the PyTorch 2 runtime: a class in it is derived from
    something called `Module`, and none is a `TritonPythonModel`. It is read, not run."""
    try:
        with warnings.catch_warnings():  # of odd escapes, say, which are for those who run it
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    if any(node.name == "TritonPythonModel" for node in classes):
        return False
    return any(_last_name(base) == "Module" for node in classes for base in node.bases)


def _last_name(base: ast.expr) -> str:
    return base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")


def _is_compiled(path: Path) -> bool:
    """Whether a `.pt2` holds machine code; one that cannot be read is refused when it is loaded."""
    try:
        with zipfile.ZipFile(path) as archive:
            return holds_machine_code(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return True
