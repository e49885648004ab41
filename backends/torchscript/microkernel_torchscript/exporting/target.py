"""Making the module that is to be exported: finding its class, calling it, loading weights."""

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from microkernel import InvalidArgument

_WRAPPERS = ("state_dict", "model_state_dict")
"""Under which keys a checkpoint holds the weights beside other things."""

_PARALLEL = "module."
"""What `DataParallel` puts before the name of each weight."""


def make_module(target: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The module that `FILE.py:NAME` or `PACKAGE.MODULE:NAME` names: a `torch.nn.Module`, or what a
    class or function gives for the keyword arguments. Its code runs in this process.

    Raises InvalidArgument for what cannot be found, cannot be called, or gives no module.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise InvalidArgument(
            f"'{target}' must have the form FILE.py:NAME or PACKAGE.MODULE:NAME, where NAME is a "
            "class derived from torch.nn.Module, or a function that makes one"
        )
    source = _imported(place)
    try:
        found = reduce(getattr, name.split("."), source)
    except AttributeError:
        raise InvalidArgument(f"'{place}' has no '{name}'{_offers(source)}") from None
    return _called(target, found, arguments)


def load_weights(module: nn.Module, path: Path) -> None:
    """Give a module the weights of a file: a state dict as `torch.save` writes it, alone or in a
    checkpoint, or a `.safetensors` file. Nothing that a file may hold besides is run.

    Raises InvalidArgument for a file that holds no weights, and weights that do not fit.
    """
    weights = _unwrapped(_read(path))
    if not _are_weights(weights):
        raise InvalidArgument(f"'{path}' holds no state dict; save module.state_dict()")
    if weights and all(key.startswith(_PARALLEL) for key in weights):
        weights = {key.removeprefix(_PARALLEL): value for key, value in weights.items()}
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise InvalidArgument(f"the weights of '{path}' do not fit: {error}") from None


def _imported(place: str) -> ModuleType:
    file = Path(place)
    folder = file.parent if file.suffix == ".py" else Path()
    sys.path.insert(0, str(folder.absolute()))
    try:
        return _from_file(file) if file.suffix == ".py" else importlib.import_module(place)
    except InvalidArgument:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a person's file may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise InvalidArgument(f"'{place}' cannot be imported: {reason}") from None


def _from_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise InvalidArgument(f"there is no file '{file}'")
    # Somebody's json.py must not take the place of Python's.
    name = f"exported_{file.stem}" if file.stem in sys.modules else file.stem
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise InvalidArgument(f"'{file}' is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where torch looks for the source of a class
    spec.loader.exec_module(module)
    return module


def _offers(source: ModuleType) -> str:
    names = [n for n, v in vars(source).items() if isinstance(v, type) and issubclass(v, nn.Module)]
    return f"; its modules are {', '.join(sorted(names))}" if names else ""


def _called(target: str, found: Any, arguments: Mapping[str, Any]) -> nn.Module:
    if isinstance(found, nn.Module):
        if arguments:
            raise InvalidArgument(f"'{target}' is a module already, which takes no --arg")
        return found
    if not callable(found):
        raise InvalidArgument(f"'{target}' is neither a module nor makes one")
    try:
        made = found(**arguments)
    except Exception as error:  # noqa: BLE001 - a person's class may raise anything
        advice = "; arguments are given with --arg NAME=VALUE" if _misses(error) else ""
        reason = f"{type(error).__name__}: {error}"
        raise InvalidArgument(f"'{target}' cannot be made: {reason}{advice}") from None
    if not isinstance(made, nn.Module):
        raise InvalidArgument(f"'{target}' gives a {type(made).__name__}, not a torch.nn.Module")
    return made


def _misses(error: Exception) -> bool:
    return isinstance(error, TypeError) and "argument" in str(error)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise InvalidArgument(f"there is no file '{path}'")
    try:
        if path.suffix == ".safetensors":
            return importlib.import_module("safetensors.torch").load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError:
        raise InvalidArgument(f"'{path}' needs safetensors: pip install safetensors") from None
    except Exception as error:  # noqa: BLE001 - torch raises several kinds for a bad file
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidArgument(
            f"'{path}' cannot be read as weights: {first.split('. ')[0]}. Save "
            "module.state_dict(), which needs no code to be read"
        ) from None


def _unwrapped(content: Any) -> Any:
    if isinstance(content, Mapping) and not _are_weights(content):
        for key in _WRAPPERS:
            if key in content:
                return content[key]
    return content


def _are_weights(content: Any) -> bool:
    return isinstance(content, Mapping) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()
    )
