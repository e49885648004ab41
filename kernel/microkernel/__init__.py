"""The front door: every name that a plug-in may import, and nothing else.

What needs only the standard library and numpy is imported at once, for this module is also imported
by workers under other interpreters; `hookimpl`, which needs pluggy, is looked up when asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from microkernel.access import REFUSAL, AccessKeys
from microkernel.backend import (
    Backend,
    BackendType,
    Instance,
    Model,
    Placement,
    Sender,
    WorkerKind,
)
from microkernel.batch import Batch
from microkernel.batching import BatchingStrategy, OpenBatch
from microkernel.binding import Binding
from microkernel.cache import Cache, CacheType
from microkernel.classification import label_lines
from microkernel.command import CommandType
from microkernel.config.codec import config_from_json, config_to_json, config_to_text
from microkernel.config.model import (
    DynamicBatching,
    InstanceGroup,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelParameter,
    Reshape,
    SecondaryDevice,
    TransactionPolicy,
)
from microkernel.config.tensors import (
    inner_dims,
    model_inputs,
    model_outputs,
    sequence_inputs,
    state_outputs,
)
from microkernel.dlpack import export_dlpack, load_dlpack
from microkernel.documents import statistics_document
from microkernel.errors import (
    AlreadyExists,
    Cancelled,
    Internal,
    InvalidArgument,
    MicrokernelError,
    NotFound,
    Unavailable,
    Unknown,
    Unsupported,
    WorkerFailed,
    error_from,
    error_summary,
)
from microkernel.families import Metric, MetricFamily, MetricKind
from microkernel.frontend import Frontend, FrontendFactory, Listening
from microkernel.host import processors
from microkernel.options import Between, Shaped, option
from microkernel.port import (
    NO_CONTEXT,
    CudaRegion,
    LogChanges,
    LogSettings,
    ModelIndex,
    ModelMetadata,
    ModelStatistics,
    Port,
    ServerMetadata,
    SystemRegion,
    TensorMetadata,
    TraceChanges,
    TraceContext,
    TraceSettings,
)
from microkernel.request import (
    LATEST,
    RESCHEDULE,
    InferRequest,
    InferResponse,
    Outcome,
    Parameter,
    Parameters,
    RegionPart,
    Reschedule,
    Sequence,
    parse_version,
)
from microkernel.stats import Compute, Duration, ModelStats, ResponseStats
from microkernel.tensor import (
    BY_CONFIG_NAME,
    BY_NUMBER,
    DATA_TYPES,
    DataType,
    Shape,
    Tensor,
    datatype_of,
    decode_bytes,
    element_count,
    encode_bytes,
    raw_view,
    unknown_type,
)
from microkernel.trace import Trace, TracedTensor
from microkernel.whole_files import whole_file

if TYPE_CHECKING:
    from microkernel.config.parse import parse_text
    from microkernel.hookspecs import (
        RegisterBackend,
        RegisterBatchingStrategy,
        RegisterCache,
        RegisterCommand,
        RegisterFrontend,
        RegisterOptions,
        RegisterPreset,
        hookimpl,
    )
    from microkernel.inprocess import Options, Server
    from microkernel.responses import ResponseStream
    from microkernel.tls import TlsFiles
    from microkernel.unix_sockets import UnixSocket

_LATER = {
    "Options": "microkernel.inprocess",
    "RegisterBackend": "microkernel.hookspecs",
    "RegisterBatchingStrategy": "microkernel.hookspecs",
    "RegisterCache": "microkernel.hookspecs",
    "RegisterCommand": "microkernel.hookspecs",
    "RegisterFrontend": "microkernel.hookspecs",
    "RegisterOptions": "microkernel.hookspecs",
    "RegisterPreset": "microkernel.hookspecs",
    "hookimpl": "microkernel.hookspecs",
    "parse_text": "microkernel.config.parse",
    "ResponseStream": "microkernel.responses",
    "Server": "microkernel.inprocess",
    "TlsFiles": "microkernel.tls",
    "UnixSocket": "microkernel.unix_sockets",
}
"""Names that come from modules which import protobuf, pluggy, asyncio, ssl or socket."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'microkernel' has no attribute '{name}'")


__all__ = [
    "BY_CONFIG_NAME",
    "BY_NUMBER",
    "DATA_TYPES",
    "LATEST",
    "NO_CONTEXT",
    "REFUSAL",
    "RESCHEDULE",
    "AccessKeys",
    "AlreadyExists",
    "Backend",
    "BackendType",
    "Batch",
    "BatchingStrategy",
    "Between",
    "Binding",
    "Cache",
    "CacheType",
    "Cancelled",
    "CommandType",
    "Compute",
    "CudaRegion",
    "DataType",
    "Duration",
    "DynamicBatching",
    "Frontend",
    "FrontendFactory",
    "InferRequest",
    "InferResponse",
    "Instance",
    "InstanceGroup",
    "Internal",
    "InvalidArgument",
    "Listening",
    "LogChanges",
    "LogSettings",
    "Metric",
    "MetricFamily",
    "MetricKind",
    "MicrokernelError",
    "Model",
    "ModelConfig",
    "ModelIndex",
    "ModelInput",
    "ModelMetadata",
    "ModelOutput",
    "ModelParameter",
    "ModelStatistics",
    "ModelStats",
    "NotFound",
    "OpenBatch",
    "Options",
    "Outcome",
    "Parameter",
    "Parameters",
    "Placement",
    "Port",
    "RegionPart",
    "RegisterBackend",
    "RegisterBatchingStrategy",
    "RegisterCache",
    "RegisterCommand",
    "RegisterFrontend",
    "RegisterOptions",
    "RegisterPreset",
    "Reschedule",
    "Reshape",
    "ResponseStats",
    "ResponseStream",
    "SecondaryDevice",
    "Sender",
    "Sequence",
    "Server",
    "ServerMetadata",
    "Shape",
    "Shaped",
    "SystemRegion",
    "Tensor",
    "TensorMetadata",
    "TlsFiles",
    "Trace",
    "TraceChanges",
    "TraceContext",
    "TraceSettings",
    "TracedTensor",
    "TransactionPolicy",
    "Unavailable",
    "UnixSocket",
    "Unknown",
    "Unsupported",
    "WorkerFailed",
    "WorkerKind",
    "config_from_json",
    "config_to_json",
    "config_to_text",
    "datatype_of",
    "decode_bytes",
    "element_count",
    "encode_bytes",
    "error_from",
    "error_summary",
    "export_dlpack",
    "hookimpl",
    "inner_dims",
    "label_lines",
    "load_dlpack",
    "model_inputs",
    "model_outputs",
    "option",
    "parse_text",
    "parse_version",
    "processors",
    "raw_view",
    "sequence_inputs",
    "state_outputs",
    "statistics_document",
    "unknown_type",
    "whole_file",
]
