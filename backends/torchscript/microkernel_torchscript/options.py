"""The model parameters of Triton's LibTorch runtime, parsed once."""

import re
from dataclasses import dataclass

from microkernel import InvalidArgument, ModelConfig

_TRUE = {"true", "on", "1"}
_FALSE = {"false", "off", "0"}
_LEADING_INTEGER = re.compile(r"\s*([+-]?\d+)", re.ASCII)

_WITHOUT_EFFECT = (
    "DISABLE_CUDNN",
    "ENABLE_WEIGHT_SHARING",
    "ENABLE_CACHE_CLEANING",
    "ENABLE_JIT_PROFILING",
    "ENABLE_JIT_EXECUTOR",
    "ENABLE_TENSOR_FUSER",
)
_GONE = {
    "ENABLE_NVFUSER": "torch no longer has nvFuser",
    "MODULE_METHOD_NAME": "the method is always 'forward'",
}


@dataclass(frozen=True, slots=True)
class Options:
    """What a model's parameters ask for. A thread count of 0 means none was given. `notices` are
    sentences for the log about parameters that change nothing."""

    optimized_execution: bool = True
    inference_mode: bool = True
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    notices: tuple[str, ...] = ()


def parse_boolean(text: str) -> bool:
    """`true|on|1` and `false|off|0` in any case; InvalidArgument for anything else."""
    word = text.lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise InvalidArgument(f"failed to convert '{text}' to boolean")


def parse_integer(text: str) -> int:
    """The number a text begins with, as C's `stoi` reads it; InvalidArgument where there is
    none."""
    match = _LEADING_INTEGER.match(text)
    if match is None:
        raise InvalidArgument(f"failed to convert '{text}' to integral number")
    return int(match.group(1))


def parse_options(config: ModelConfig) -> Options:
    """The options of a model; InvalidArgument for a value that is no boolean or number. Parameters
    of other names are ignored, as Triton ignores them."""
    return Options(
        optimized_execution=not _boolean(config, "DISABLE_OPTIMIZED_EXECUTION", default=False),
        inference_mode=_boolean(config, "INFERENCE_MODE", default=True),
        intra_op_threads=_count(config, "INTRA_OP_THREAD_COUNT"),
        inter_op_threads=_count(config, "INTER_OP_THREAD_COUNT"),
        notices=_notices(config),
    )


def _boolean(config: ModelConfig, key: str, *, default: bool) -> bool:
    return parse_boolean(config.parameter(key)) if key in config.parameters else default


def _count(config: ModelConfig, key: str) -> int:
    return max(0, parse_integer(config.parameter(key))) if key in config.parameters else 0


def _notices(config: ModelConfig) -> tuple[str, ...]:
    notices = []
    for key in _WITHOUT_EFFECT:
        if key in config.parameters:
            _boolean(config, key, default=False)
            notices.append(f"parameter {key} has no effect yet")
    notices += [
        f"parameter {key} has no effect: {reason}"
        for key, reason in _GONE.items()
        if key in config.parameters
    ]
    return tuple(notices)
