"""Loading TorchScript models and running them."""

import contextlib
import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from microkernel import (
    Backend,
    Batch,
    Instance,
    Internal,
    MicrokernelError,
    Model,
    ModelConfig,
    Outcome,
    Placement,
    Unsupported,
)
from microkernel_torchscript import Settings
from microkernel_torchscript.completion import complete
from microkernel_torchscript.failures import execute_failure
from microkernel_torchscript.files import expect_read_only_buffers, load_module, model_file
from microkernel_torchscript.inputs import InputPlan, plan_inputs
from microkernel_torchscript.options import Options, parse_options
from microkernel_torchscript.outputs import OutputPlan, plan_outputs
from microkernel_torchscript.signature import signature_of

logger = logging.getLogger(__name__)


class TorchScriptBackend(Backend):
    """Serves TorchScript files on the CPU."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        expect_read_only_buffers()

    def load(self, config: ModelConfig, files: Path) -> Model:
        """Load the file and check the configuration against the signature of `forward`."""
        path = model_file(config, files)
        options = parse_options(config)
        _report(config.name, options)
        _set_inter_op_threads(options.inter_op_threads or max(1, self._settings.inter_op_threads))
        return TorchScriptModel(config, path, options)

    def complete(self, config: ModelConfig, files: Path) -> ModelConfig:
        """Fill in inputs and outputs that the configuration leaves out; see `completion`."""
        if config.input and config.output:
            return config
        return complete(config, model_file(config, files))


class TorchScriptModel(Model):
    """A version of a model. Each instance owns a module, because a module may keep state."""

    def __init__(self, config: ModelConfig, path: Path, options: Options) -> None:
        self._name, self._path, self._options = config.name, path, options
        self._lock = threading.Lock()
        first = self._load("cpu")
        self._inputs = plan_inputs(config, signature_of(first))
        self._outputs = plan_outputs(config)
        self._unused: list[torch.jit.ScriptModule] = [first]

    def instance(self, placement: Placement) -> Instance:
        """An instance for the calling thread, whose torch settings it changes: the number of
        threads, inference mode and optimised execution."""
        if placement.kind == "KIND_GPU":
            raise Unsupported(
                f"model '{self._name}': instance '{placement.name}' is of KIND_GPU, which the "
                "pytorch backend does not serve; use KIND_CPU"
            )
        torch.set_num_threads(self._options.intra_op_threads or max(1, placement.threads))
        module = self._module(placement.kind)
        return TorchScriptInstance(module, self._inputs, self._outputs, self._options)

    def unload(self) -> None:
        """Forget a module that no instance has taken."""
        self._unused.clear()

    def _module(self, kind: str) -> torch.jit.ScriptModule:
        """A fresh module: the one that was loaded for the checks, or the file once more."""
        if kind == "KIND_MODEL":  # each tensor goes where it was saved
            return self._load(None)
        with self._lock:
            if self._unused:
                return self._unused.pop()
        return self._load("cpu")

    def _load(self, device: str | None) -> torch.jit.ScriptModule:
        with torch.inference_mode(self._options.inference_mode):
            return load_module(self._name, self._path, device=device)


class TorchScriptInstance(Instance):
    """One module on one thread. While it lives, the thread is in inference mode, or without
    gradients where the model turned that off."""

    def __init__(
        self,
        module: torch.jit.ScriptModule,
        inputs: InputPlan,
        outputs: OutputPlan,
        options: Options,
    ) -> None:
        self._forward = module.forward
        self._inputs, self._outputs = inputs, outputs
        # Entered once for the thread: entering per call costs as much as a small model.
        self._modes = contextlib.ExitStack()
        self._modes.enter_context(
            torch.inference_mode() if options.inference_mode else torch.no_grad()
        )
        optimized = torch.jit.optimized_execution  # type: ignore[attr-defined]  # not annotated
        self._modes.enter_context(optimized(options.optimized_execution))

    def execute(self, batch: Batch) -> Sequence[Outcome]:
        """Call `forward` once for the batch. A request with malformed strings fails alone."""
        failed: dict[int, MicrokernelError] = {}
        arguments = self._inputs.arguments(batch, failed)
        if len(failed) == len(batch):
            return [failed[i] for i in range(len(batch))]
        try:
            result = self._forward(*arguments)
        except Exception as error:
            raise Internal(execute_failure(error)) from error
        responses = batch.split(self._outputs.tensors(result))
        return [failed.get(i, response) for i, response in enumerate(responses)]

    def close(self) -> None:
        """Leave the thread's modes."""
        self._modes.close()


def _report(name: str, options: Options) -> None:
    for text, on in (
        ("Optimized execution", options.optimized_execution),
        ("Inference Mode", options.inference_mode),
    ):
        logger.info("%s is %s for model instance '%s'", text, "enabled" if on else "disabled", name)
    for text, count in (
        ("Intra op", options.intra_op_threads),
        ("Inter op", options.inter_op_threads),
    ):
        if count:
            logger.info("%s thread count is set to %d for model instance '%s'", text, count, name)
    for notice in options.notices:
        logger.warning("model '%s': %s", name, notice)


def _set_inter_op_threads(count: int) -> None:
    """The number holds for the process: torch accepts it once, so the first model decides."""
    if torch.get_num_interop_threads() == count:
        return
    try:
        torch.set_num_interop_threads(count)
    except RuntimeError:
        logger.warning(
            "%d inter-op threads were asked for, but this process already uses %d; a model that "
            "needs its own number needs its own worker",
            count,
            torch.get_num_interop_threads(),
        )
