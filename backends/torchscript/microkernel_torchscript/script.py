"""TorchScript files as the source of instances."""

import threading
from pathlib import Path

import torch

from microkernel import ModelConfig, Placement
from microkernel_torchscript.files import load_module
from microkernel_torchscript.inputs import plan_inputs
from microkernel_torchscript.outputs import plan_outputs
from microkernel_torchscript.signature import signature_of
from microkernel_torchscript.source import Forward, Source


class ScriptSource(Source):
    """A TorchScript file. Each instance owns a module, because a module may keep state."""

    def __init__(self, config: ModelConfig, path: Path, *, inference_mode: bool) -> None:
        """Load the file and check the configuration against the signature of `forward`."""
        self._name, self._path, self._inference_mode = config.name, path, inference_mode
        self._lock = threading.Lock()
        first = self._load("cpu")
        self.inputs = plan_inputs(config, signature_of(first))
        self.outputs = plan_outputs(config)
        self._unused: list[torch.jit.ScriptModule] = [first]

    def forward(self, placement: Placement, device: torch.device | None) -> Forward:
        """See `Source.forward`: a fresh module, the one that was loaded for the checks or the file
        once more."""
        if device is None:
            return self._load(None).forward
        with self._lock:
            if self._unused:
                return self._unused.pop().to(device).forward
        return self._load(str(device)).forward

    def close(self) -> None:
        """Forget a module that no instance has taken."""
        self._unused.clear()

    def _load(self, device: str | None) -> torch.jit.ScriptModule:
        with torch.inference_mode(self._inference_mode):
            return load_module(self._name, self._path, device=device)
