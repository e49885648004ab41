"""From a version directory to a loaded module."""

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from microkernel import Internal, ModelConfig, Unavailable
from microkernel_torchscript.failures import load_failure
from microkernel_torchscript.kinds import script_name

logger = logging.getLogger(__name__)

_FILTERS = threading.Lock()
"""Warning filters belong to the process; instances load on threads of their own."""


def model_file(config: ModelConfig, files: Path) -> Path:
    """The model's file in its version directory.

    Raises Unavailable where there is none.
    """
    path = files / script_name(config)
    if not path.exists():
        raise Unavailable(f"unable to find '{path}' for model instance '{config.name}'")
    if path.is_dir():
        raise Internal(
            f"failed to load model '{config.name}': '{path}' is a directory, a TorchScript file "
            "was expected"
        )
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
        raise Internal(f"failed to load model '{name}': {load_failure(str(error))}") from None
    if not isinstance(getattr(module, "forward", None), torch.ScriptMethod):
        raise Internal(f"failed to load model '{name}': the module has no method 'forward'")
    if module.training:
        logger.warning(
            "model '%s' was saved in training mode and is switched to evaluation; call eval() "
            "before saving it",
            name,
        )
        module.eval()
    return module


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
