"""Weights of a Python module: a state dictionary beside it, taken over where it lies.

A checkpoint can be mapped, so that its pages are in the page cache once, however many workers have
the model loaded. What is mapped must be replaced by renaming another file over it: one that is
written anew in place changes under the model, so it is done when asked for only.
"""

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from microkernel import Internal
from microkernel_torchscript.failures import load_failure
from microkernel_torchscript.sniffing import weights_fault

Weights = Mapping[str, Any]
"""Tensors, and whatever else a module keeps, by their names in the module."""

_SHOWN = 5
"""How many names an error lists."""


def read_weights(name: str, path: Path, *, mapped: bool = False) -> Weights:
    """The state dictionary of a file, its tensors on the host; `mapped` where the file allows it.

    Raises Internal, naming the file and what is wrong with it, for anything else; nothing in the
    file is run.
    """
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "a link to what is not there"
        raise _failed(name, path, f"it is {kind}, a file with a state dictionary was expected")
    try:
        found = _read(path, mapped=mapped)
    except Exception as error:  # noqa: BLE001 - torch raises several kinds for a bad file
        raise _failed(name, path, _reason(path, error)) from None
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise _failed(
            name,
            path,
            f"it holds a {type(found).__name__}, a state dictionary was expected; save "
            "module.state_dict()",
        )
    return found


def misfit(module: nn.Module, weights: Weights) -> str:
    """What keeps weights from being those of a module: names that are missing or left over, and
    shapes; "" for nothing."""
    own = module.state_dict()
    faults = [
        _listed("has no tensor", sorted(own.keys() - weights.keys())),
        _listed("holds what the module lacks,", sorted(weights.keys() - own.keys())),
        _listed("has other shapes:", [*_other_shapes(own, weights)]),
    ]
    return "; it ".join(fault for fault in faults if fault)


def take_over(name: str, path: Path, module: nn.Module, weights: Weights) -> None:
    """Give a module its weights. Tensors of the module's own type and device become the module's
    as they are; if any is not, all are copied, as Triton does. Raises Internal where they do not
    fit.
    """
    own = module.state_dict()
    in_place = all(_alike(own[key], value) for key, value in weights.items() if key in own)
    try:
        module.load_state_dict(weights, assign=in_place and not _tied(module))
    except Exception as error:  # noqa: BLE001 - a module may read its weights in its own way
        fault = _wrapped(weights) or misfit(module, weights) or str(error)
        raise _failed(
            name, path, f"does not fit class {type(module).__name__}: it {fault}"
        ) from None


def _wrapped(weights: Weights) -> str:
    """What to do with a checkpoint of a training run, "" for other weights."""
    inner = next((key for key, value in weights.items() if isinstance(value, Mapping)), "")
    return f"holds other dictionaries; save the one called '{inner}' alone" if inner else ""


def _read(path: Path, *, mapped: bool) -> Any:
    # Files of the time before torch wrote archives cannot be mapped.
    mapped = mapped and zipfile.is_zipfile(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _reason(path: Path, error: Exception) -> str:
    text = str(error)
    if "TorchScript archive" in text:
        return (
            "it is TorchScript, a state dictionary was expected; take away 'model.py' and the "
            "field 'runtime' to serve it as it is"
        )
    if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in text:
        return (
            "it holds Python objects, as a whole pickled module does, which are not loaded because "
            "that would run code in the file; save module.state_dict() instead"
        )
    try:
        return weights_fault(path) or load_failure(text)
    except OSError as unread:
        return f"it cannot be read: {unread.strerror}"


def _failed(name: str, path: Path, fault: str) -> Internal:
    return Internal(f"failed to load model '{name}': '{path}': {fault}")


def _listed(text: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:_SHOWN])
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{text} {shown}{rest}"


def _other_shapes(own: Weights, weights: Weights) -> list[str]:
    return [
        f"{key} is {list(weights[key].shape)}, the module's {list(value.shape)}"
        for key, value in own.items()
        if isinstance(value, torch.Tensor)
        and isinstance(weights.get(key), torch.Tensor)
        and weights[key].shape != value.shape
    ]


def _alike(own: Any, value: Any) -> bool:
    return (
        isinstance(own, torch.Tensor)
        and isinstance(value, torch.Tensor)
        and own.dtype == value.dtype
        and own.device == value.device
    )


def _tied(module: nn.Module) -> bool:
    """Whether two names in a module mean one tensor, which taking over would make two of."""
    tensors = [*module.named_parameters(remove_duplicate=False)]
    return len({id(tensor) for _, tensor in tensors}) < len(tensors)
