"""TorchScript files as the source of instances."""

import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from microkernel import ModelConfig, Placement
from microkernel_torchscript.gpu.baked import fitted, holds_tensors
from microkernel_torchscript.inputs import plan_inputs
from microkernel_torchscript.outputs import plan_outputs
from microkernel_torchscript.script.files import load_module
from microkernel_torchscript.script.heap import pool_heaps
from microkernel_torchscript.script.mapped import share_weights
from microkernel_torchscript.script.sharing import Modules
from microkernel_torchscript.signature import signature_of
from microkernel_torchscript.source import Forward, Ready, Source, Warm
from microkernel_torchscript.tuning.trial import PLAIN
from microkernel_torchscript.tuning.variants import as_chosen
from microkernel_torchscript.warming import NoWarmUp

_CPU = torch.device("cpu")


class ScriptSource(Source):
    """A TorchScript file. Each instance owns a module, because a module may keep state; with
    `sharing` those that keep none share their weights, and all do whose instances are processes."""

    def __init__(
        self,
        config: ModelConfig,
        path: Path,
        *,
        inference_mode: bool,
        sharing: bool = False,
        variant: str = PLAIN,
    ) -> None:
        """Load the file and check the configuration against the signature of `forward`. On the CPU
        instances run the module as `variant` says."""
        # In a process of its own an instance has nobody to share with but the file.
        mapped = sharing and config.parameter("WORKER") == "instance"
        self._file = _File(config.name, path, inference_mode, variant, mapped)
        self._sharing = sharing
        self._single = [group.count for group in config.instance_group] == [1]
        self._lock = threading.Lock()
        if sharing and config.parameter("WORKER") != "thread":
            pool_heaps()  # before the threads of the instances start
        first = self._file.load("cpu")
        self.inputs = plan_inputs(config, signature_of(first))
        self.outputs = plan_outputs(config)
        self._unused: list[torch.jit.ScriptModule] = [first]
        self._modules: dict[torch.device | None, Modules] = {}

    def forward(self, placement: Placement, device: torch.device | None) -> Forward:
        """See `Source.forward`."""
        return self.prepare(placement, device, NoWarmUp()).forward

    def prepare(self, placement: Placement, device: torch.device | None, warm: Warm) -> Ready:
        """See `Source.prepare`. Instances wait for each other: the first makes the calls that
        compile, and the others get copies."""
        with self._lock:
            if device not in self._modules:
                self._modules[device] = self._modules_on(device)
            return self._modules[device].take(warm, last=self._single)

    def close(self) -> None:
        """Forget the modules."""
        self._unused.clear()
        self._modules.clear()

    def _modules_on(self, device: torch.device | None) -> Modules:
        """The modules of one device; the one that was loaded for the checks is the first."""
        load = partial(self._file.load_for, device)
        unused = self._unused.pop() if device is not None and self._unused else None
        if unused is None or (device != _CPU and holds_tensors(unused.inlined_graph)):
            first = load()
        else:
            first = self._file.chosen(unused.to(device), device)
        return Modules(self._file.name, load, first, sharing=self._sharing)


@dataclass(frozen=True, slots=True)
class _File:
    """Where modules come from, and as what they run on the CPU; `mapped` ones have their weights in
    the file itself there."""

    name: str
    path: Path
    inference_mode: bool
    variant: str
    mapped: bool

    def load(self, device: str | None) -> torch.jit.ScriptModule:
        with torch.inference_mode(self.inference_mode):
            module = load_module(self.name, self.path, device=device)
            if self.mapped and device == "cpu":
                share_weights(module, self.path)
            return module

    def load_for(self, device: torch.device | None) -> torch.jit.ScriptModule:
        return self.chosen(self.load(None if device is None else str(device)), device)

    def chosen(
        self, module: torch.jit.ScriptModule, device: torch.device | None
    ) -> torch.jit.ScriptModule:
        load = partial(self.load, None if device is None else str(device))
        module = fitted(self.name, module, device, load)
        if device is None or device.type != "cpu":
            return module
        return as_chosen(self.name, module, self.variant)
