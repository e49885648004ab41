"""From a Python file to a module: importing it and choosing the class.

The file gets a module name of its own, so that two versions of a model do not meet. As for Python
models the folders of the version and of the model are appended to `sys.path`, for what the file
imports beside itself.
"""

import importlib
import importlib.util
import logging
import os
import sys
import traceback
import types
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path

from torch import nn

from microkernel import Internal, Unavailable

logger = logging.getLogger(__name__)


def import_module_file(name: str, path: Path) -> types.ModuleType:
    """Run the file of the model `name` afresh.

    Raises Unavailable where there is no file, and Internal, naming the file and the line, where it
    cannot be run.
    """
    if not path.exists():
        raise Unavailable(f"No model found in {path.parent}/[{path.name}]")
    if path.is_dir() or path.suffix != ".py":
        raise Internal(
            f"failed to load model '{name}': '{path}' is no Python file, which the runtime "
            "'model.py' needs; a TorchScript file must be called '.pt'"
        )
    _extend_path(path.parent)
    try:
        return _import_file(name, path)
    except (Exception, SystemExit) as error:
        forget(path.parent)
        raise load_failure(name, path, error) from error


def module_classes(module: types.ModuleType) -> Sequence[type[nn.Module]]:
    """The classes of a file that may be the model, the likeliest first: those defined in it, by
    name, or else those that it imports.

    Triton takes the first by name, imported or not.
    """
    found = [value for _, value in sorted(vars(module).items()) if _is_module_class(value)]
    own = [value for value in found if value.__module__ == module.__name__]
    return list(dict.fromkeys(own or found))


def construct(name: str, path: Path, kind: type[nn.Module]) -> nn.Module:
    """An instance of the model's class, made without arguments; Internal where that fails."""
    try:
        return kind()
    except (Exception, SystemExit) as error:
        raise load_failure(name, path, error, f"class {kind.__name__}: ") from error


def load_failure(name: str, path: Path, error: BaseException, about: str = "") -> Internal:
    """The error of a load that failed in the model's code: file and line first."""
    line = _line(path, error)
    place = f"'{path}', line {line}" if line else f"'{path}'"
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    return Internal(f"failed to load model '{name}': {place}: {about}{text}")


def forget(folder: Path) -> None:
    """Drop the modules that came from a version's folder, and take its folders off `sys.path`."""
    prefix = f"{folder.absolute()}{os.sep}"
    for name, module in list(sys.modules.items()):
        # Not by attribute: a lazy module would import itself to answer.
        origin = getattr(module, "__dict__", {}).get("__file__") or ""
        if origin.startswith(prefix):
            del sys.modules[name]
    for entry in _own_folders(folder):
        if entry in sys.path:
            sys.path.remove(entry)


class _FromSource(SourceFileLoader):
    """Compiles the file each time, and puts no compiled one beside it."""

    def get_code(self, fullname: str) -> types.CodeType:
        """The code of the file as it is now."""
        code: types.CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


def _import_file(name: str, path: Path) -> types.ModuleType:
    unique = f"{name}_{path.parent.name}".replace(".", "_")
    loader = _FromSource(unique, str(path.absolute()))
    spec = importlib.util.spec_from_loader(unique, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path.absolute())
    sys.modules[unique] = module
    loader.exec_module(module)
    return module


def _own_folders(folder: Path) -> tuple[str, str]:
    absolute = folder.absolute()
    return str(absolute), str(absolute.parent)


def _extend_path(folder: Path) -> None:
    sys.path += [entry for entry in _own_folders(folder) if entry not in sys.path]
    importlib.invalidate_caches()


def _is_module_class(value: object) -> bool:
    """Whether something is a class of modules; those of torch itself are none that anybody serves
    by importing them."""
    return (
        isinstance(value, type)
        and issubclass(value, nn.Module)
        and not value.__module__.startswith("torch.nn.")
    )


def _line(path: Path, error: BaseException) -> int | None:
    """The line of the file in which an exception came up."""
    own = str(path.absolute())
    if isinstance(error, SyntaxError) and error.filename == own:
        return error.lineno
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == own
    ]
    return lines[-1] if lines else None
