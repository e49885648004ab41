"""Python modules, Triton's PyTorch 2 runtime, as the source of instances."""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from microkernel import Internal, ModelConfig, Placement, state_outputs
from microkernel_torchscript.compiling.parameters import parse_compile_options
from microkernel_torchscript.compiling.policy import Compiled, compiled
from microkernel_torchscript.digests import check_absent, check_digest
from microkernel_torchscript.kinds import module_file
from microkernel_torchscript.module.code import (
    construct,
    forget,
    import_module_file,
    module_classes,
)
from microkernel_torchscript.module.inputs import plan_module_inputs, varying_axes
from microkernel_torchscript.module.signature import keyword_only, module_signature
from microkernel_torchscript.module.warming import call_with_more
from microkernel_torchscript.module.weights import Weights, misfit, read_weights, take_over
from microkernel_torchscript.naming import index_of
from microkernel_torchscript.outputs import OutputPlan, plan_outputs
from microkernel_torchscript.source import Forward, Ready, Source, Warm

logger = logging.getLogger(__name__)


class ModuleFiles:
    """A Python file and the weights beside it: makes modules."""

    def __init__(self, config: ModelConfig, files: Path, *, mapped: bool) -> None:
        """Import the file and find the class of the model, which is made once to see that it can
        be. `mapped` weights lie in the file itself, so that processes share them. Raises one of our
        errors, naming the file and the line, where that fails."""
        self._name, self._path = config.name, module_file(config, files)
        self._weights_path = self._path.with_suffix(".pt")
        self._has_weights = os.path.lexists(self._weights_path)
        self._mapped = mapped
        self._lock = threading.Lock()
        try:
            self._class, module = self._first()
        except BaseException:
            forget(self._path.parent)
            raise
        self._unused = [module]

    def module(self) -> nn.Module:
        """A module of its own for the caller, with its weights, in evaluation mode."""
        with self._lock:
            if self._unused:
                return self._unused.pop()
        weights = self._read() if self._has_weights else None
        return self._filled(construct(self._name, self._path, self._class), weights)

    def peek(self) -> nn.Module:
        """The module that the next caller of `module` gets, to look at."""
        with self._lock:
            if self._unused:
                return self._unused[-1]
        made = self.module()
        with self._lock:
            self._unused.append(made)
        return made

    def close(self) -> None:
        """Forget what was imported."""
        self._unused.clear()
        forget(self._path.parent)

    def _first(self) -> tuple[type[nn.Module], nn.Module]:
        check_digest(self._name, self._path)
        classes = module_classes(import_module_file(self._name, self._path))
        if not classes:
            raise Internal(
                f"failed to load model '{self._name}': '{self._path}': Cannot find a subclass of "
                "torch.nn.Module"
            )
        if not self._has_weights:
            check_absent(self._name, self._weights_path)
            logger.info("Model parameter file not found for '%s'", self._name)
            kind, module = _chosen(self._name, self._path, classes, None)
            return kind, module.eval()
        check_digest(self._name, self._weights_path)
        weights = self._read()
        kind, module = _chosen(self._name, self._path, classes, weights)
        return kind, self._filled(module, weights)

    def _read(self) -> Weights:
        return read_weights(self._name, self._weights_path, mapped=self._mapped)

    def _filled(self, module: nn.Module, weights: Weights | None) -> nn.Module:
        if weights is not None:
            take_over(self._name, self._weights_path, module, weights)
        return module.eval()


class ModuleSource(Source):
    """A Python module. Each instance owns one, compiled as the model's parameters say."""

    warming_seconds: ClassVar[float] = 300.0

    def __init__(self, config: ModelConfig, files: Path, *, mapped: bool = False) -> None:
        """Import the file and check the configuration against the arguments of `forward`. Raises to
        fail the load."""
        self._config, self._name = config, config.name
        self._options = parse_compile_options(config)
        self.compiles = not self._options.disabled
        with torch.inference_mode():
            self._files = ModuleFiles(config, files, mapped=mapped)
        try:
            forward = self._files.peek().forward
            check_keywords(self._name, forward)
            self.inputs = plan_module_inputs(config, module_signature(forward))
            self.outputs = plan_module_outputs(config)
            self._varying = varying_axes(config, self.inputs)
            # Where the model batches, batches of several sizes have been run.
            self._open = bool(self._varying) and config.max_batch_size <= 0
        except BaseException:
            self._files.close()
            raise

    def forward(self, placement: Placement, device: torch.device | None) -> Forward:
        """See `Source.forward`. A module whose instance names no device stays where its first
        parameter is, and its inputs are brought there."""
        module = self._files.module()
        if device is not None:
            return compiled(self._name, module.to(device), self._options, self._varying)
        found = next(module.parameters(), None)
        if found is None:
            raise Internal(
                f"failed to load model '{self._name}': Cannot determine model device: it has no "
                "parameters; use KIND_CPU or KIND_GPU"
            )
        made = compiled(self._name, module, self._options, self._varying)
        return made if found.device.type == "cpu" else _moving(made, found.device)

    def prepare(self, placement: Placement, device: torch.device | None, warm: Warm) -> Ready:
        """See `Source.prepare`. Raises CompileFailed where the compiler that the model asks for
        gives up."""
        ready = super().prepare(placement, device, warm)
        if not isinstance(ready.forward, Compiled):
            return ready
        if ready.forward.failure is not None:
            raise ready.forward.failure
        if ready.warmth.is_warm and not ready.warmth.keeps_state and self._open:
            call_with_more(self._config, self.inputs, ready.forward)
        return ready

    def close(self) -> None:
        """See `Source.close`."""
        self._files.close()


def plan_module_outputs(config: ModelConfig) -> OutputPlan:
    """Which results become outputs: by the order of the configuration, never by name; states follow
    the outputs, where they are not called `<text>__<number>`."""
    plan = plan_outputs(config)
    states = {entry.name for entry in state_outputs(config)}
    placed = []
    for place, wanted in enumerate(plan.wanted):
        index = index_of(wanted.name) if wanted.name in states else None
        placed.append(replace(wanted, position=place if index is None else index))
    return OutputPlan(tuple(placed))


def check_keywords(name: str, forward: Callable[..., Any]) -> None:
    """Internal where `forward` has arguments that no input can feed."""
    if missing := keyword_only(forward):
        raise Internal(
            f"failed to load model '{name}': 'forward' must be callable with arguments by position "
            f"only, but has {', '.join(missing)} after '*' without a default"
        )


def _chosen(
    name: str, path: Path, classes: Sequence[type[nn.Module]], weights: Weights | None
) -> tuple[type[nn.Module], nn.Module]:
    """The class that is the model and a first module of it: of several that which the weights fit,
    else the first."""
    if len(classes) == 1:
        return classes[0], construct(name, path, classes[0])
    first: tuple[type[nn.Module], nn.Module] | None = None
    failure: Internal | None = None
    for kind in classes:
        try:
            module = construct(name, path, kind)
        except Internal as error:
            failure = failure or error
            continue
        first = first or (kind, module)
        if weights is None or not misfit(module, weights):
            first = (kind, module)
            break
    if first is None:
        assert failure is not None
        raise failure
    logger.warning(
        "model '%s': '%s' has the modules %s; %s is served, %s",
        name,
        path,
        ", ".join(kind.__name__ for kind in classes),
        first[0].__name__,
        "the first by name that can be made"
        if weights is None
        else "the first that fits the weights",
    )
    return first


def _moving(forward: Forward, device: torch.device) -> Forward:
    """Calls a module with its tensors on the device that it has chosen itself."""

    def call(*arguments: Any) -> Any:
        return forward(*(_moved(argument, device) for argument in arguments))

    return call


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {key: _moved(member, device) for key, member in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value
