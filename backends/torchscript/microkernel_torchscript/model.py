"""A version of a PyTorch model of any kind, and its instances."""

import contextlib
from collections.abc import Sequence

import torch

from microkernel import (
    Batch,
    Instance,
    Internal,
    MicrokernelError,
    Model,
    Outcome,
    Placement,
    Unsupported,
)
from microkernel_torchscript.failures import execute_failure
from microkernel_torchscript.inputs import InputPlan
from microkernel_torchscript.options import Options
from microkernel_torchscript.outputs import OutputPlan
from microkernel_torchscript.source import Forward, Source


class PyTorchModel(Model):
    """A version of a model; its instances run what its source gives them."""

    def __init__(self, name: str, source: Source, options: Options) -> None:
        self._name, self._source, self._options = name, source, options

    def instance(self, placement: Placement) -> Instance:
        """An instance for the calling thread, whose torch settings it changes: the number of
        threads, inference mode and optimised execution."""
        device = self._device(placement)
        torch.set_num_threads(self._options.intra_op_threads or max(1, placement.threads))
        with contextlib.ExitStack() as modes:
            _enter(modes, self._options)
            forward = self._source.forward(placement, device)
            source = self._source
            return PyTorchInstance(forward, source.inputs, source.outputs, modes.pop_all())

    def unload(self) -> None:
        """Give back what the source holds."""
        self._source.close()

    def _device(self, placement: Placement) -> torch.device | None:
        if placement.kind == "KIND_GPU":
            raise Unsupported(
                f"model '{self._name}': instance '{placement.name}' is of KIND_GPU, which the "
                "pytorch backend does not serve; use KIND_CPU"
            )
        return None if placement.kind == "KIND_MODEL" else torch.device("cpu")


class PyTorchInstance(Instance):
    """One callable on one thread. While it lives, the thread is in inference mode, or without
    gradients where the model turned that off."""

    def __init__(
        self,
        forward: Forward,
        inputs: InputPlan,
        outputs: OutputPlan,
        modes: contextlib.ExitStack,
    ) -> None:
        self._forward = forward
        self._inputs, self._outputs = inputs, outputs
        self._modes = modes

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


def _enter(modes: contextlib.ExitStack, options: Options) -> None:
    """Enter the thread's modes, once: entering them per call costs as much as a small model."""
    modes.enter_context(torch.inference_mode() if options.inference_mode else torch.no_grad())
    optimized = torch.jit.optimized_execution  # type: ignore[attr-defined]  # not annotated
    modes.enter_context(optimized(options.optimized_execution))
