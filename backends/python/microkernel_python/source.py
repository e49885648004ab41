"""Importing a model file the way Triton does.

The file `<model>/<version>/<stem>.py` becomes the module `<version>.<stem>`, the version folder the
package around it, and three folders are appended to `sys.path`: the version's, the model's, and the
one that holds `triton_python_backend_utils`. The names are the process's own, so a process hosts
one model; what an earlier one left under the same names is forgotten.
"""

import importlib
import importlib.util
import os
import sys
import types
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path

from microkernel import Internal, InvalidArgument, ModelConfig
from microkernel_python.failure import describe

UTILITIES = "triton_python_backend_utils"
_STUB = Path(__file__).parent / "stub"
_DEFAULT = "model.py"
_CLASS = "TritonPythonModel"


def locate(config: ModelConfig, folder: Path) -> Path:
    """The model's file in its version folder.

    Raises InvalidArgument where the configured name does not end in `.py`, and Internal where the
    file is missing.
    """
    name = config.default_model_filename or _DEFAULT
    if not name.endswith(".py"):
        raise InvalidArgument(
            f"default_model_filename '{name}' of model '{config.name}' must end in '.py'"
        )
    path = folder.absolute() / name
    if not path.is_file():
        raise Internal(f"Python model file not found in '{path}'")
    return path


def import_class(path: Path, folder: Path) -> type[object]:
    """Import a model file afresh and give its class `TritonPythonModel`.

    Raises Internal with the model's exception, or where the class is missing.
    """
    forget(folder)
    _extend_path(folder)
    try:
        found = getattr(_import_file(path, folder), _CLASS, None)
    except BaseException as error:
        forget(folder)
        remove_from_path(folder)
        raise Internal(describe(error)) from error
    if not isinstance(found, type):
        raise Internal(f"model file '{path}' must define a class '{_CLASS}'")
    _announce(folder)
    return found


def forget(folder: Path) -> None:
    """Drop the modules of a version's package and those imported from its folder, so that the next
    import runs them anew."""
    version, prefix = folder.name, f"{folder.absolute()}{os.sep}"
    for name, module in list(sys.modules.items()):
        # Not by attribute: a lazy module would import itself to answer.
        origin = getattr(module, "__dict__", {}).get("__file__") or ""
        if name == version or name.startswith(f"{version}.") or origin.startswith(prefix):
            del sys.modules[name]


def remove_from_path(folder: Path) -> None:
    """Take a version's folders off `sys.path` again, and only what an import put there."""
    for entry in _own_folders(folder):
        positions = [i for i, present in enumerate(sys.path) if present == entry]
        if positions:
            del sys.path[positions[-1]]


def _own_folders(folder: Path) -> tuple[str, str]:
    absolute = folder.absolute()
    return str(absolute), str(absolute.parent)


def _extend_path(folder: Path) -> None:
    sys.path += _own_folders(folder)
    if str(_STUB) not in sys.path:
        sys.path.append(str(_STUB))
    importlib.invalidate_caches()


class _FromSource(SourceFileLoader):
    """Compiles the file each time. Python's own cache would run the old code of a model that was
    written twice within a second at the same size, and would put files beside the model."""

    def get_code(self, fullname: str) -> types.CodeType:
        """The code of the file as it is now."""
        code: types.CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


def _import_file(path: Path, folder: Path) -> types.ModuleType:
    _utilities()
    package = _package(folder)
    name = f"{folder.name}.{path.stem}"
    loader = _FromSource(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader.exec_module(module)
    setattr(package, path.stem, module)
    return module


def _package(folder: Path) -> types.ModuleType:
    """The version folder as a package, a regular one where it holds an `__init__.py`.

    Its path is fixed: an ordinary namespace package would also take in a folder `1` of the working
    directory.
    """
    name, absolute = folder.name, folder.absolute()
    spec = PathFinder.find_spec(name, [str(absolute.parent)])
    if spec is None or spec.loader is None or spec.origin is None:
        package = types.ModuleType(name)
        package.__path__ = [str(absolute)]
        sys.modules[name] = package
        return package
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)
    return package


def _utilities() -> types.ModuleType:
    """The module models import, ours even where another of that name lies earlier on the path, such
    as a copy that stands beside the model for its author's tests."""
    present = sys.modules.get(UTILITIES)
    if present is not None and (present.__file__ or "").startswith(str(_STUB)):
        return present
    spec = PathFinder.find_spec(UTILITIES, [str(_STUB)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[UTILITIES] = module
    spec.loader.exec_module(module)
    return module


def _announce(folder: Path) -> None:
    """Add `get_model_dir`, which Triton too adds only when the model's file has been imported."""
    directory = str(folder.absolute())
    vars(_utilities())["get_model_dir"] = lambda: directory
