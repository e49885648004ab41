"""A version of a PyTorch model of any kind, and its instances."""

import contextlib
import threading
from collections.abc import Sequence

import torch

from microkernel import (
    Batch,
    Instance,
    Internal,
    MicrokernelError,
    Model,
    ModelConfig,
    Outcome,
    Placement,
    WorkerFailed,
)
from microkernel_torchscript.failures import execute_failure
from microkernel_torchscript.flags import FirstCalls, claim_cudnn, enter_modes, set_threads
from microkernel_torchscript.gauges import CallGauges
from microkernel_torchscript.gpu.devices import Lane, OnLane, device_of, lane_of
from microkernel_torchscript.gpu.faults import device_failure
from microkernel_torchscript.inputs import InputPlan
from microkernel_torchscript.options import Options
from microkernel_torchscript.outputs import OutputPlan
from microkernel_torchscript.resting import Helpers, spread
from microkernel_torchscript.source import COLD, Forward, Source, Warm, Warmth
from microkernel_torchscript.warming import NoWarmUp, WarmUp, report


class PyTorchModel(Model):
    """A version of a model; its instances run what its source gives them."""

    def __init__(self, config: ModelConfig, version: str, source: Source, options: Options) -> None:
        self._name, self._version = config.name, version
        self._source, self._options = source, options
        self._warm = WarmUp(
            config, source.inputs, options, source.warming_seconds, compiles=source.compiles
        )
        self._lock = threading.Lock()
        self._gauges: CallGauges | None = None
        self._release_cudnn = claim_cudnn(self, config.name, wanted=options.cudnn)

    def instance(self, placement: Placement) -> Instance:
        """An instance for the calling thread, whose torch settings it changes: the number of
        threads, inference mode and optimised execution. Its first calls have been made, unless
        nobody will ask it anything."""
        device = device_of(self._name, placement)
        lane = lane_of(device)
        threads = self._options.intra_op_threads or max(1, placement.threads)
        set_threads(threads)
        helpers = Helpers()  # setting their number starts a thread that helps nobody here
        wanted = self._options.warmup and not placement.passive
        with contextlib.ExitStack() as modes:
            enter_modes(modes, self._options)
            warm: Warm = self._warm if wanted else NoWarmUp()
            if lane is not None:
                lane.enter(modes)
                warm = OnLane(warm, lane)
            ready = self._source.prepare(placement, device, warm)
            self._report(ready.warmth)
            if lane is None:
                forward = spread(ready.forward, helpers, threads)
            else:
                forward = lane.bound(ready.forward)
            if not ready.warmth.is_warm:
                forward = FirstCalls(forward, self._options)
            clean = self._options.cache_cleaning and lane is not None
            source = self._source
            return PyTorchInstance(
                forward, source.inputs, source.outputs, modes.pop_all(), lane, clean_cache=clean
            )

    def _report(self, warmth: Warmth) -> None:
        """Tell once what the first calls showed."""
        with self._lock:
            if self._gauges is not None or warmth is COLD:
                return
            self._gauges = CallGauges(self._name, self._version, warmth)
        report(self._name, warmth)

    def unload(self) -> None:
        """Give back what the source holds."""
        self._source.close()
        self._release_cudnn()
        self._gauges = None


class PyTorchInstance(Instance):
    """One callable on one thread. While it lives, the thread is in inference mode, or without
    gradients where the model turned that off."""

    def __init__(
        self,
        forward: Forward,
        inputs: InputPlan,
        outputs: OutputPlan,
        modes: contextlib.ExitStack,
        lane: Lane | None = None,
        *,
        clean_cache: bool = False,
    ) -> None:
        """The `lane` is that of `forward`, None where there is no GPU. With `clean_cache` torch
        gives the GPU's memory that is not in use back after every batch."""
        self._forward = forward
        self._inputs, self._outputs = inputs, outputs
        self._modes = modes
        self._lane = lane
        self._clean_cache = clean_cache

    def execute(self, batch: Batch) -> Sequence[Outcome]:
        """Call `forward` once for the batch. A request with malformed strings fails alone. Raises
        WorkerFailed for an error after which the process can compute nothing more on its GPU."""
        if not self._clean_cache:
            return self._execute(batch)
        try:
            outcomes = self._execute(batch)
        except WorkerFailed:
            raise  # nor can it clean anything
        except Exception:
            torch.cuda.empty_cache()
            raise
        torch.cuda.empty_cache()
        return outcomes

    def _execute(self, batch: Batch) -> Sequence[Outcome]:
        failed: dict[int, MicrokernelError] = {}
        arguments = self._inputs.arguments(batch, failed)
        if len(failed) == len(batch):
            return [failed[i] for i in range(len(batch))]
        try:
            result = self._forward(*arguments)
        except MicrokernelError:
            raise
        except (Exception, SystemExit) as error:
            raise self._failure(error) from error
        responses = batch.split(self._outputs.tensors(result))
        return [failed.get(i, response) for i, response in enumerate(responses)]

    def _failure(self, error: BaseException) -> MicrokernelError:
        text = execute_failure(error)
        if self._lane is None:
            return Internal(text)
        return device_failure(error, text, self._lane.probe)

    def close(self) -> None:
        """Leave the thread's modes, and give back memory of GPUs that is not in use any more."""
        self._modes.close()
        del self._forward
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()
