"""Where tensors of nested calls are to lie, and traces: values that models pass along."""

import enum
import json

from microkernel_python.arguments import instance_of, integer


class MemoryType(enum.Enum):
    """The kinds of memory."""

    TRITONSERVER_MEMORY_CPU = 0
    TRITONSERVER_MEMORY_GPU = 2


class PreferredMemory:
    """Where a nested call's outputs are wanted. Raises TypeError for arguments of another type."""

    __slots__ = ("_device_id", "_memory_type")

    def __init__(
        self,
        preferred_memory_type: MemoryType = MemoryType.TRITONSERVER_MEMORY_CPU,
        preferred_device_id: int = 0,
    ) -> None:
        self._memory_type = instance_of(preferred_memory_type, MemoryType, "preferred_memory_type")
        self._device_id = integer(preferred_device_id, "preferred_device_id")


class InferenceTrace:
    """The trace of a request."""

    __slots__ = ("_traceparent",)

    def __init__(self, traceparent: str = "") -> None:
        self._traceparent = traceparent

    def get_context(self) -> str | None:
        """The propagated OpenTelemetry context as the text of a JSON object, which is a carrier for
        OpenTelemetry's propagators; None where there is none."""
        return json.dumps({"traceparent": self._traceparent}) if self._traceparent else None
