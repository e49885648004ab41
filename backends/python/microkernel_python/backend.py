"""The Python backend: `TritonPythonModel` classes behind the kernel's contract."""

import json
from collections.abc import Callable
from pathlib import Path

from microkernel import (
    Backend,
    Internal,
    Model,
    ModelConfig,
    Placement,
    Unsupported,
    config_from_json,
    config_to_json,
)
from microkernel_python import autocomplete, source
from microkernel_python.failure import describe
from microkernel_python.instance import PythonInstance

_ENVIRONMENT = "EXECUTION_ENV_PATH"
_FORCE_CPU = "FORCE_CPU_ONLY_INPUT_TENSORS"


class PythonModel(Model):
    """A model's class and where its files are."""

    def __init__(self, model: type[object], config: ModelConfig, folder: Path) -> None:
        self._class = model
        self._config = config
        self._folder = folder

    def instance(self, placement: Placement) -> PythonInstance:
        """Make the model's object and call its `initialize`.

        Raises Internal: `TypeName: message`, and the frames the model's exception came through.
        """
        return PythonInstance(self._class, self._config, self._folder, placement)

    def unload(self) -> None:
        """Forget the model's modules and its folders on `sys.path`."""
        source.forget(self._folder)
        source.remove_from_path(self._folder)


class PythonBackend(Backend):
    """Imports model files. The names they are imported under belong to the process, so a process
    hosts one model."""

    def __init__(self) -> None:
        self._imported: dict[Path, type[object]] = {}

    def load(self, config: ModelConfig, files: Path) -> PythonModel:
        """Import the model's file, unless `complete` just did.

        Raises Unsupported for parameters that are not offered, InvalidArgument for a file name that
        does not end in `.py`, and Internal for a missing file or class and with what the import
        raised.
        """
        imported = self._imported.pop(files, None)
        _check(config)
        return PythonModel(imported or _import(config, files), config, files)

    def complete(self, config: ModelConfig, files: Path) -> ModelConfig:
        """The configuration after the model's `auto_complete_config`, or as it is where the class
        has none. Raises as `load` does, Internal with what the method raised or for what it
        returned, and InvalidArgument where it made an unknown field."""
        _check(config)
        model = _import(config, files)
        self._imported[files] = model
        method = getattr(model, "auto_complete_config", None)
        if method is None:
            return config
        return config_from_json(_completed(method, config))


def _completed(method: Callable[[autocomplete.ModelConfig], object], config: ModelConfig) -> str:
    """What a model makes of its configuration, as JSON text."""
    document = autocomplete.ModelConfig(json.dumps(config_to_json(config)))
    try:
        completed = method(document)
        if isinstance(completed, autocomplete.ModelConfig):
            return json.dumps(completed.as_dict())
    except BaseException as error:
        raise Internal(describe(error)) from error
    raise Internal(
        f"auto_complete_config function in model '{config.name}' must return a valid "
        "pb.ModelConfig object."
    )


def _import(config: ModelConfig, files: Path) -> type[object]:
    return source.import_class(source.locate(config, files), files)


def _check(config: ModelConfig) -> None:
    """Refuse the parameters that would silently mean something else."""
    if config.parameter(_ENVIRONMENT):
        raise Unsupported(
            f"parameter '{_ENVIRONMENT}' of model '{config.name}' is not offered by this version; "
            "install what the model needs beside the server"
        )
    force = config.parameter(_FORCE_CPU, "yes")
    if force not in ("yes", "no"):
        raise Unsupported(
            f"parameter '{_FORCE_CPU}' of model '{config.name}' must be 'yes' or 'no', "
            f"got '{force}'"
        )
