"""The model parameters and optimisation settings of Triton's ONNX Runtime backend, parsed once."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from microkernel import InvalidArgument, ModelConfig, Unsupported

_TRUE = {"true", "on", "1"}
_FALSE = {"false", "off", "0"}
_LEADING_INTEGER = re.compile(r"\s*([+-]?\d+)", re.ASCII)

_SHRINKAGE = "memory.enable_memory_arena_shrinkage"


@dataclass(frozen=True, slots=True)
class Options:
    """How a session is made and run. A thread count of 0 means none was given; `graph_level` is the
    configuration's, whose numbers are Triton's own. `session_entries` and `run_entries` are
    onnxruntime's configuration entries."""

    parallel: bool = False
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    memory_arena: bool = True
    memory_pattern: bool = True
    graph_level: int = 0
    session_entries: Mapping[str, str] = field(default_factory=dict)
    run_entries: Mapping[str, str] = field(default_factory=dict)
    libraries: tuple[str, ...] = ()


def parse_options(config: ModelConfig) -> Options:
    """The options of a model. Raises InvalidArgument for a value of the wrong kind and for an
    unknown accelerator, Unsupported for one that is known but not offered."""
    _check_accelerators(config)
    graph = config.optimization.graph if config.optimization is not None else None
    operations = config.model_operations
    return Options(
        parallel=_is_parallel(config),
        intra_op_threads=max(0, _integer(config, "intra_op_thread_count")),
        inter_op_threads=max(0, _integer(config, "inter_op_thread_count")),
        memory_arena=_boolean(config, "enable_mem_arena"),
        memory_pattern=_boolean(config, "enable_mem_pattern"),
        graph_level=graph.level if graph is not None else 0,
        session_entries={
            key: entry.string_value
            for key, entry in config.parameters.items()
            if key.startswith("session.")
        },
        run_entries=_run_entries(config),
        libraries=operations.op_library_filename if operations is not None else (),
    )


def _is_parallel(config: ModelConfig) -> bool:
    mode = _integer(config, "execution_mode")
    if mode not in (0, 1):
        raise InvalidArgument(
            f"parameter 'execution_mode' of model '{config.name}' must be 0 (sequential) or 1 "
            f"(parallel), got {mode}"
        )
    return mode == 1


def _integer(config: ModelConfig, key: str) -> int:
    if key not in config.parameters:
        return 0
    text = config.parameter(key)
    match = _LEADING_INTEGER.match(text)
    if match is None:
        raise InvalidArgument(f"failed to convert '{text}' to integral number")
    return int(match.group(1))


def _boolean(config: ModelConfig, key: str) -> bool:
    if key not in config.parameters:
        return True
    text = config.parameter(key)
    if text.lower() not in _TRUE | _FALSE:
        raise InvalidArgument(f"failed to convert '{text}' to boolean")
    return text.lower() in _TRUE


def _run_entries(config: ModelConfig) -> Mapping[str, str]:
    return {_SHRINKAGE: config.parameter(_SHRINKAGE)} if _SHRINKAGE in config.parameters else {}


def _check_accelerators(config: ModelConfig) -> None:
    optimization = config.optimization
    if optimization is None or optimization.execution_accelerators is None:
        return
    # Those for GPUs are not looked at on a CPU, whatever they are called.
    for accelerator in optimization.execution_accelerators.cpu_execution_accelerator:
        if accelerator.name != "openvino":
            raise InvalidArgument(
                f"unknown Execution Accelerator '{accelerator.name}' is requested"
            )
        raise Unsupported(
            f"model '{config.name}' asks for the execution accelerator 'openvino', which this "
            "backend does not offer"
        )
