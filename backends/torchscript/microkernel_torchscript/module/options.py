"""The model parameters of Triton's PyTorch 2 runtime."""

import logging
import re

from microkernel import InvalidArgument, ModelConfig
from microkernel_torchscript.options import MOST_THREADS, Options, boolean

logger = logging.getLogger(__name__)

_THREADS, _INTEROP_THREADS = "NUM_THREADS", "NUM_INTEROP_THREADS"

_OF_THE_OTHER_RUNTIME = {
    "DISABLE_OPTIMIZED_EXECUTION": "that is for TorchScript",
    "INFERENCE_MODE": "inference mode is always on",
    "DISABLE_CUDNN": "",
    "ENABLE_CACHE_CLEANING": "",
    "ENABLE_JIT_PROFILING": "that is for TorchScript",
    "ENABLE_JIT_EXECUTOR": "that is for TorchScript",
    "ENABLE_TENSOR_FUSER": "that is for TorchScript",
    "ENABLE_NVFUSER": "that is for TorchScript",
    "INTRA_OP_THREAD_COUNT": f"{_THREADS} is what counts",
    "INTER_OP_THREAD_COUNT": f"{_INTEROP_THREADS} is what counts",
}


def module_options(config: ModelConfig) -> Options:
    """The options of a model of this runtime: one thread of either kind where the parameters do
    not say otherwise, inference mode, and weights of its own for each instance.

    Raises InvalidArgument for a number of threads that is none. The values of parameters that only
    the other runtime reads are not looked at.
    """
    return Options(
        intra_op_threads=_threads(config, _THREADS),
        inter_op_threads=_threads(config, _INTEROP_THREADS),
        weight_sharing=boolean(config, "ENABLE_WEIGHT_SHARING", default=False),
        warmup=boolean(config, "WARMUP", default=True),
        notices=tuple(
            f"parameter {key} has no effect with the runtime 'model.py'"
            + (f": {reason}" if reason else "")
            for key, reason in _OF_THE_OTHER_RUNTIME.items()
            if key in config.parameters
        ),
    )


def report_threads(name: str, options: Options) -> None:
    """Log what Triton logs of the threads of a model."""
    logger.debug(
        "Torch parallelism settings for '%s': NUM_THREADS = %d; NUM_INTEROP_THREADS = %d; ",
        name,
        options.intra_op_threads,
        options.inter_op_threads,
    )


def _threads(config: ModelConfig, key: str) -> int:
    if key not in config.parameters:
        return 1
    text = config.parameter(key).strip()
    if not re.fullmatch(r"\+?[0-9]{1,6}", text) or not 1 <= int(text) <= MOST_THREADS:
        raise InvalidArgument(
            f"failed to load model '{config.name}': parameter {key} must be a whole number from 1 "
            f"to {MOST_THREADS}, got '{text}'"
        )
    return int(text)
