"""The enumerations of Triton's in-process API, with its numbers."""

from dataclasses import dataclass
from enum import IntEnum, IntFlag


class DataType(IntEnum):
    """Element types; the names are those of the wire."""

    INVALID = 0
    BOOL = 1
    UINT8 = 2
    UINT16 = 3
    UINT32 = 4
    UINT64 = 5
    INT8 = 6
    INT16 = 7
    INT32 = 8
    INT64 = 9
    FP16 = 10
    FP32 = 11
    FP64 = 12
    BYTES = 13
    BF16 = 14


class MemoryType(IntEnum):
    """Where memory lies."""

    CPU = 0
    CPU_PINNED = 1
    GPU = 2


class DLDeviceType(IntEnum):
    """DLPack's kinds of devices, by its own names."""

    kDLCPU = 1  # noqa: N815
    kDLCUDA = 2  # noqa: N815
    kDLCUDAHost = 3  # noqa: N815
    kDLOpenCL = 4  # noqa: N815
    kDLVulkan = 7  # noqa: N815
    kDLMetal = 8  # noqa: N815
    kDLVPI = 9  # noqa: N815
    kDLROCM = 10  # noqa: N815
    kDLROCMHost = 11  # noqa: N815
    kDLExtDev = 12  # noqa: N815
    kDLCUDAManaged = 13  # noqa: N815
    kDLOneAPI = 14  # noqa: N815
    kDLWebGPU = 15  # noqa: N815
    kDLHexagon = 16  # noqa: N815


class ModelControlMode(IntEnum):
    """Who decides which models are loaded: all at start, the repository as it changes, or calls."""

    NONE = 0
    POLL = 1
    EXPLICIT = 2


class RateLimitMode(IntEnum):
    """Whether executions are limited by resources."""

    OFF = 0
    EXEC_COUNT = 1


class LogFormat(IntEnum):
    """How the log writes the time."""

    DEFAULT = 0
    ISO8601 = 1


class MetricKind(IntEnum):
    """What a metric does: it grows, moves both ways, or counts by size."""

    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2


class MetricFormat(IntEnum):
    """The forms of the metrics page."""

    PROMETHEUS = 0


class InstanceGroupKind(IntEnum):
    """What instances run on."""

    AUTO = 0
    CPU = 1
    GPU = 2
    MODEL = 3


class ModelBatchFlag(IntFlag):
    """How a model batches: in no way that is known, or along the first dimension."""

    UNKNOWN = 1
    FIRST_DIM = 2


class ModelTxnPropertyFlag(IntFlag):
    """Whether a model answers a request once, or any number of times."""

    ONE_TO_ONE = 1
    DECOUPLED = 2


@dataclass(frozen=True, slots=True)
class RateLimiterResource:
    """So many of a resource on a device, -1 for every device."""

    name: str
    count: int
    device: int = -1
