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
from microkernel.config.codec import config_from_json, config_to_json, config_to_text
from microkernel.config.model import (
    DynamicBatching,
    InstanceGroup,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelParameter,
    Reshape,
    TransactionPolicy,
)
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
    error_from,
)
from microkernel.frontend import Frontend, FrontendFactory
from microkernel.host import processors
from microkernel.options import option
from microkernel.port import (
    NO_CONTEXT,
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
    InferRequest,
    InferResponse,
    Outcome,
    Parameter,
    Parameters,
    RegionPart,
    Sequence,
    parse_version,
)
from microkernel.stats import Compute, Duration, ModelStats
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
)
from microkernel.trace import Trace, TracedTensor

if TYPE_CHECKING:
    from microkernel.hookspecs import (
        RegisterBackend,
        RegisterFrontend,
        RegisterOptions,
        hookimpl,
    )
    from microkernel.responses import ResponseStream

_LATER = {
    "RegisterBackend": "microkernel.hookspecs",
    "RegisterFrontend": "microkernel.hookspecs",
    "RegisterOptions": "microkernel.hookspecs",
    "hookimpl": "microkernel.hookspecs",
    "ResponseStream": "microkernel.responses",
}
"""Names that come from modules which import pluggy or asyncio."""


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
    "AccessKeys",
    "AlreadyExists",
    "Backend",
    "BackendType",
    "Batch",
    "Cancelled",
    "Compute",
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
    "LogChanges",
    "LogSettings",
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
    "Outcome",
    "Parameter",
    "Parameters",
    "Placement",
    "Port",
    "RegionPart",
    "RegisterBackend",
    "RegisterFrontend",
    "RegisterOptions",
    "Reshape",
    "ResponseStream",
    "Sender",
    "Sequence",
    "ServerMetadata",
    "Shape",
    "SystemRegion",
    "Tensor",
    "TensorMetadata",
    "Trace",
    "TraceChanges",
    "TraceContext",
    "TraceSettings",
    "TracedTensor",
    "TransactionPolicy",
    "Unavailable",
    "Unknown",
    "Unsupported",
    "WorkerKind",
    "config_from_json",
    "config_to_json",
    "config_to_text",
    "datatype_of",
    "decode_bytes",
    "element_count",
    "encode_bytes",
    "error_from",
    "hookimpl",
    "option",
    "parse_version",
    "processors",
    "raw_view",
]
