"""The native half of `triton_python_backend_utils`, which some models import by its own name.

What this version does not offer is absent, and says so when it is asked for.
"""

from typing import Any

from microkernel_python.errors import TritonModelException
from microkernel_python.logger import Logger
from microkernel_python.memory import InferenceTrace, MemoryType, PreferredMemory
from microkernel_python.metric import Metric, MetricFamily, MetricKind
from microkernel_python.request import InferenceRequest
from microkernel_python.response import InferenceResponse, TritonError
from microkernel_python.sender import InferenceResponseSender
from microkernel_python.tensor import Tensor

_MISSING = ("ResponseIterator", "is_model_ready", "load_model", "shared_memory", "unload_model")


def __getattr__(name: str) -> Any:
    known = name in _MISSING
    reason = "is not offered by this version of the server" if known else "does not exist"
    raise AttributeError(f"'c_python_backend_utils.{name}' {reason}")


__all__ = [
    "InferenceRequest",
    "InferenceResponse",
    "InferenceResponseSender",
    "InferenceTrace",
    "Logger",
    "MemoryType",
    "Metric",
    "MetricFamily",
    "MetricKind",
    "PreferredMemory",
    "Tensor",
    "TritonError",
    "TritonModelException",
]
