"""The package that tuning chose for a TorchScript model as the source of its instances."""

import logging
import threading
from pathlib import Path

import torch

from microkernel import Internal, ModelConfig, Placement
from microkernel_torchscript.inputs import plan_inputs
from microkernel_torchscript.outputs import plan_outputs
from microkernel_torchscript.script.files import load_module
from microkernel_torchscript.signature import signature_of
from microkernel_torchscript.source import Forward, Source
from microkernel_torchscript.tuning.compiled.calling import Compiled, form_of, open_compiled

logger = logging.getLogger(__name__)


class CompiledSource(Source):
    """A TorchScript file that is checked and a package that runs. Each instance has the machine
    code, and the weights in it, to itself."""

    def __init__(self, config: ModelConfig, path: Path, package: Path) -> None:
        """Load the package, and check the configuration against the signature of the file, whose
        weights are not kept. Raises what loading a TorchScript model raises, and Internal for a
        package that torch cannot load."""
        module = _without_weights(config.name, path)
        self.inputs = plan_inputs(config, signature_of(module))
        self.outputs = plan_outputs(config)
        self._name, self._package, self._form = config.name, package, form_of(module)
        del module
        self._lock = threading.Lock()
        self._unused: list[Compiled] = [self._opened()]

    def forward(self, placement: Placement, device: torch.device | None) -> Forward:
        """See `Source.forward`."""
        with self._lock:
            compiled = self._unused.pop() if self._unused else None
        return (compiled or self._opened()).forward

    def close(self) -> None:
        """Unload the machine code that no instance has taken."""
        self._unused.clear()

    def _opened(self) -> Compiled:
        return open_compiled(self._name, self._package, self._form)


def _without_weights(name: str, path: Path) -> torch.jit.ScriptModule:
    """The module of a file, with its weights only where it was frozen: they are constants then,
    whose values torch compares as it loads them."""
    try:
        return load_module(name, path, device="meta")
    except Internal:
        return load_module(name, path, device="cpu")


def compiled_source(config: ModelConfig, path: Path, package: Path) -> CompiledSource | None:
    """The source of a model that tuning chose to compile. None, with a warning, where torch does
    not load the package: the model runs as it was saved then."""
    try:
        return CompiledSource(config, path, package)
    except Internal as error:
        logger.warning("model '%s' runs as it was saved: %s", config.name, error)
        return None
