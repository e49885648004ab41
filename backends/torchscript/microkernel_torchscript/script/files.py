"""From a version directory to a loaded module."""

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from microkernel import Internal, ModelConfig, Unavailable
from microkernel_torchscript.digests import check_digest
from microkernel_torchscript.failures import load_failure
from microkernel_torchscript.kinds import script_name
from microkernel_torchscript.sniffing import fault_of

logger = logging.getLogger(__name__)

_FUNCTION = "PlaceholderModule"
"""What torch calls the module of a function that was saved; it has no modes."""

_FILTERS = threading.Lock()
"""Warning filters belong to the process; instances load on threads of their own."""


def model_file(config: ModelConfig, files: Path) -> Path:
    """The model's file in its version directory, with the digest that the repository has for it.

    Raises Unavailable where there is no file, Internal where it is a directory or has another
    digest.
    """
    path = files / script_name(config)
    if not path.exists():
        raise Unavailable(f"unable to find '{path}' for model instance '{config.name}'")
    if path.is_dir():
        raise Internal(
            f"failed to load model '{config.name}': '{path}' is a directory, a TorchScript file "
            "was expected"
        )
    check_digest(config.name, path)
    return path


def load_module(
    name: str, path: Path, *, device: str | None, restore_shapes: bool = False
) -> torch.jit.ScriptModule:
    """Load a TorchScript file for inference.

    `device` is where its tensors go, None for where each was saved. `restore_shapes` brings back
    the example shapes of a traced module. Raises Internal, beginning with `failed to load model`,
    for a file that torch cannot load or that has no `forward`.
    """
    try:
        with silenced(r"`torch\.jit\.load`", DeprecationWarning):
            module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
                path, map_location=device, _restore_shapes=restore_shapes
            )
    except Exception as error:  # noqa: BLE001 - torch raises several kinds for a bad file
        raise _refusal(name, path, str(error)) from None
    if not isinstance(getattr(module, "forward", None), torch.ScriptMethod):
        raise Internal(
            f"failed to load model '{name}': the module has no method 'forward', which is the one "
            f"that is called ('{path}'); save a module that has one"
        )
    if not hasattr(module, "training"):  # it was frozen, and torch misses it in freezing once more
        module.eval()
    elif module.training and module.original_name != _FUNCTION:
        logger.warning(
            "model '%s' was saved in training mode and is switched to evaluation; call eval() "
            "before saving it",
            name,
        )
        module.eval()
    return module


def _refusal(name: str, path: Path, text: str) -> Internal:
    try:
        fault = fault_of(path)
    except OSError as error:
        fault = f"the file cannot be read: {error.strerror}"
    if "CUDA" in text:
        fault = (
            "the model was saved on a GPU, which is not to be had here: with KIND_CPU its tensors "
            "are moved to the CPU"
        )
    if "constants.pkl" in text:  # torch's words for a file that is fine, but no TorchScript
        return Internal(f"failed to load model '{name}': {fault} ('{path}')")
    cure = f": {fault}" if fault else ""
    return Internal(f"failed to load model '{name}': {load_failure(text)} ('{path}'{cure})")


def expect_read_only_buffers() -> None:
    """Have torch's remark about read-only memory made now, unheard: torch makes it once in a
    process, and inputs may lie in read-only memory, where models leave them alone."""
    with silenced("The given buffer is not writable", UserWarning):
        torch.frombuffer(b"\0", dtype=torch.uint8)


@contextlib.contextmanager
def silenced(message: str, category: type[Warning]) -> Iterator[None]:
    """Ignore warnings of one category whose text begins with the pattern `message`."""
    with _FILTERS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=message, category=category)
        yield
