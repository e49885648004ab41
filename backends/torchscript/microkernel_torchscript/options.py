"""The model parameters of Triton's LibTorch runtime, parsed once."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from microkernel import InvalidArgument, ModelConfig

_TRUE = {"true", "on", "1"}
_FALSE = {"false", "off", "0"}
MOST_THREADS = 1024
"""Threads that a model may ask for; torch starts as many at the first call."""
_LEADING_INTEGER = re.compile(r"\s*([+-]?\d+)", re.ASCII)

_GONE = {
    "ENABLE_NVFUSER": "torch no longer has nvFuser; what its TensorExpr fuser does on a GPU is on "
    "unless ENABLE_TENSOR_FUSER turns it off",
    "MODULE_METHOD_NAME": "the method is always 'forward'",
}


@dataclass(frozen=True, slots=True)
class Options:
    """What a model's parameters ask for. A thread count of 0 means none was given, and None that
    torch is left as it is. `notices` are sentences for the log about parameters that change nothing
    or cost speed."""

    optimized_execution: bool = True
    cache_cleaning: bool = False
    inference_mode: bool = True
    cudnn: bool = True
    tensor_fuser: bool | None = None
    weight_sharing: bool | None = None
    jit_profiling: bool | None = None
    jit_executor: bool | None = None
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    warmup: bool = True
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
        optimized_execution=not boolean(config, "DISABLE_OPTIMIZED_EXECUTION", default=False),
        cache_cleaning=boolean(config, "ENABLE_CACHE_CLEANING", default=False),
        inference_mode=boolean(config, "INFERENCE_MODE", default=True),
        cudnn=not boolean(config, "DISABLE_CUDNN", default=False),
        tensor_fuser=_choice(config, "ENABLE_TENSOR_FUSER"),
        weight_sharing=_choice(config, "ENABLE_WEIGHT_SHARING"),
        jit_profiling=_choice(config, "ENABLE_JIT_PROFILING"),
        jit_executor=_choice(config, "ENABLE_JIT_EXECUTOR"),
        intra_op_threads=_count(config, "INTRA_OP_THREAD_COUNT"),
        inter_op_threads=_count(config, "INTER_OP_THREAD_COUNT"),
        warmup=boolean(config, "WARMUP", default=True),
        notices=_notices(config),
    )


def described(name: str, options: Options) -> Iterator[str]:
    """The lines that Triton logs once for a loaded version of a model, in its order: some always,
    the others only where a parameter was given."""
    switches: tuple[tuple[str, bool | None], ...] = (
        ("Optimized execution", options.optimized_execution),
        ("Cache Cleaning", options.cache_cleaning),
        ("Inference Mode", options.inference_mode),
        ("cuDNN", options.cudnn),
        ("Tensor fuser", options.tensor_fuser),
        ("Weight sharing", options.weight_sharing),
        ("Jit profiling", options.jit_profiling),
        ("Jit executor", options.jit_executor),
    )
    for text, on in switches:
        if on is not None:
            yield f"{text} is {'enabled' if on else 'disabled'} for model instance '{name}'"
    counts = (("Intra op", options.intra_op_threads), ("Inter op", options.inter_op_threads))
    for text, count in counts:
        if count:
            yield f"{text} thread count is set to {count} for model instance '{name}'"


def boolean(config: ModelConfig, key: str, *, default: bool) -> bool:
    """A switch among a model's parameters. InvalidArgument for a value that is none."""
    return parse_boolean(config.parameter(key)) if key in config.parameters else default


def _choice(config: ModelConfig, key: str) -> bool | None:
    return parse_boolean(config.parameter(key)) if key in config.parameters else None


def _count(config: ModelConfig, key: str) -> int:
    if key not in config.parameters:
        return 0
    number = parse_integer(config.parameter(key))
    if abs(number) > MOST_THREADS:
        raise InvalidArgument(
            f"failed to convert '{config.parameter(key)}' to integral number: parameter {key} may "
            f"be at most {MOST_THREADS}"
        )
    return max(0, number)


def _notices(config: ModelConfig) -> tuple[str, ...]:
    notices = [
        f"parameter {key} has no effect: {reason}"
        for key, reason in _GONE.items()
        if key in config.parameters
    ]
    if _choice(config, "ENABLE_TENSOR_FUSER") is False:
        notices.append(
            "ENABLE_TENSOR_FUSER: false leaves what profiling adds in the code that runs, which "
            "makes small models on a CPU slower"
        )
    return tuple(notices)
