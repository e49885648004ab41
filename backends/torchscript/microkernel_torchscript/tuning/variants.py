"""The ways in which a TorchScript module can run."""

import logging

import torch

from microkernel_torchscript.script.files import silenced
from microkernel_torchscript.tuning.trial import FROZEN, MODULES, PLAIN

logger = logging.getLogger(__name__)


def as_variant(module: torch.jit.ScriptModule, variant: str) -> torch.jit.ScriptModule:
    """A module in evaluation mode that computes the same as `module` in the way that `variant`
    names; the module itself for the plain one. The weights of others are constants of their own.
    Raises what torch raises where a module cannot be transformed, and ValueError for another name.
    """
    if variant == PLAIN:
        return module
    if variant not in MODULES:
        raise ValueError(f"no variant is called '{variant}'")
    with silenced(r"`torch\.jit\.(freeze|optimize_for_inference)`", DeprecationWarning):
        frozen: torch.jit.ScriptModule = torch.jit.freeze(module)
        if variant == FROZEN:
            return frozen
        optimized: torch.jit.ScriptModule = torch.jit.optimize_for_inference(frozen)
        return optimized


def as_chosen(name: str, module: torch.jit.ScriptModule, variant: str) -> torch.jit.ScriptModule:
    """The module of a model in the variant that tuning chose, or as it is, with a warning, where
    torch cannot make it, though it could when it was measured."""
    try:
        return as_variant(module, variant)
    except Exception as error:  # noqa: BLE001 - torch raises several kinds
        logger.warning("model '%s' runs as it was saved, not '%s': %s", name, variant, error)
        return module
