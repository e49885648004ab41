"""From a version directory to an onnxruntime session on the CPU."""

import os
import re
from pathlib import Path
from typing import Any

import onnxruntime

from microkernel import Internal, MicrokernelError, ModelConfig, Unavailable, processors
from microkernel_onnx.options import Options

_ERROR = re.compile(r"\[ONNXRuntimeError\] : (\d+) : \w+ : (.*)", re.DOTALL)
_GENERAL_FAILURE = 1

_LEVELS = {
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
"""Triton's numbers for the levels of optimisation; every other number means all of it."""

UNOPTIMISED = 2


def model_file(config: ModelConfig, files: Path) -> Path:
    """The model's file in its version directory; a folder of that name holds it as `model.onnx`.

    Raises Unavailable where there is none.
    """
    path = files / (config.default_model_filename or "model.onnx")
    if path.is_dir():
        path = path / "model.onnx"
    if not path.is_file():
        raise Unavailable(f"unable to find '{path}' for model instance '{config.name}'")
    return path


def open_session(path: Path, options: Options) -> Any:
    """An `InferenceSession` on the CPU. Raises Internal, with onnxruntime's code and message, for a
    file that it cannot load."""
    try:
        return onnxruntime.InferenceSession(
            os.fspath(path), session_options(options), providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise failure(error) from error


def session_options(options: Options) -> Any:
    """onnxruntime's form of the options. Without a thread count the session gets one thread per
    processor that this process may use, and none of them spins while it waits."""
    native = onnxruntime.SessionOptions()
    mode = onnxruntime.ExecutionMode
    native.execution_mode = mode.ORT_PARALLEL if options.parallel else mode.ORT_SEQUENTIAL
    native.graph_optimization_level = _LEVELS.get(
        options.graph_level, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    )
    native.intra_op_num_threads = options.intra_op_threads or processors()
    native.inter_op_num_threads = options.inter_op_threads
    native.enable_cpu_mem_arena = options.memory_arena
    native.enable_mem_pattern = options.memory_pattern
    entries = {"session.intra_op.allow_spinning": "0", **options.session_entries}
    for key, value in entries.items():
        native.add_session_config_entry(key, value)
    for library in options.libraries:
        native.register_custom_ops_library(library)
    return native


def run_options(options: Options) -> Any:
    """onnxruntime's options of each run, None where there are none."""
    if not options.run_entries:
        return None
    native = onnxruntime.RunOptions()
    for key, value in options.run_entries.items():
        native.add_run_config_entry(key, value)
    return native


def failure(error: Exception) -> MicrokernelError:
    """onnxruntime's exception in Triton's words; what carries no code counts as general."""
    text = str(error).strip()
    match = _ERROR.fullmatch(text)
    code, message = match.groups() if match else (_GENERAL_FAILURE, text or type(error).__name__)
    return Internal(f"onnx runtime error {code}: {message}")
