"""The server inside a Python process, shaped like Triton's in-process API: `import
microkernel.inprocess as tritonserver` runs a script written for it."""

from microkernel.inprocess.enums import (
    DataType,
    DLDeviceType,
    InstanceGroupKind,
    LogFormat,
    MemoryType,
    MetricFormat,
    MetricKind,
    ModelBatchFlag,
    ModelControlMode,
    ModelTxnPropertyFlag,
    RateLimiterResource,
    RateLimitMode,
)
from microkernel.inprocess.errors import (
    AlreadyExistsError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    TritonError,
    UnavailableError,
    UnknownError,
    UnsupportedError,
)
from microkernel.inprocess.frontends import KServeGrpc, KServeHttp, Metrics
from microkernel.inprocess.iterators import AsyncResponseIterator, ResponseIterator
from microkernel.inprocess.memory import MemoryBuffer
from microkernel.inprocess.metrics import Metric, MetricFamily
from microkernel.inprocess.model import Model
from microkernel.inprocess.options import Options
from microkernel.inprocess.request import InferenceRequest
from microkernel.inprocess.response import InferenceResponse
from microkernel.inprocess.server import ModelDictionary, Server
from microkernel.inprocess.tensor import Tensor

__all__ = [
    "AlreadyExistsError",
    "AsyncResponseIterator",
    "DLDeviceType",
    "DataType",
    "InferenceRequest",
    "InferenceResponse",
    "InstanceGroupKind",
    "InternalError",
    "InvalidArgumentError",
    "KServeGrpc",
    "KServeHttp",
    "LogFormat",
    "MemoryBuffer",
    "MemoryType",
    "Metric",
    "MetricFamily",
    "MetricFormat",
    "MetricKind",
    "Metrics",
    "Model",
    "ModelBatchFlag",
    "ModelControlMode",
    "ModelDictionary",
    "ModelTxnPropertyFlag",
    "NotFoundError",
    "Options",
    "RateLimitMode",
    "RateLimiterResource",
    "ResponseIterator",
    "Server",
    "Tensor",
    "TritonError",
    "UnavailableError",
    "UnknownError",
    "UnsupportedError",
]
