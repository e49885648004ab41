"""The model configuration as frozen dataclasses: the fields, names and defaults of Triton's
`config.pbtxt`.

Field order and names are those of `model_config.proto` beside this file (a test compares the two).
An optional sub-message is None where it was not given. Enumerations are their names as text
(`"TYPE_FP32"`, `"KIND_CPU"`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from microkernel.errors import InvalidArgument

K = TypeVar("K")
V = TypeVar("V")


def _mapping() -> Mapping[K, V]:
    return field(default_factory=dict)


def int64_as_text() -> tuple[int, ...]:
    """A repeated 64-bit field that the JSON form writes as strings, as Triton's happens to."""
    return field(default=(), metadata={"json": "text"})


@dataclass(frozen=True, slots=True)
class Reshape:
    """The shape a backend sees in place of the one clients send; the batch dimension is never part
    of it."""

    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One input; `dims` without the batch dimension, -1 for a variable one."""

    name: str = ""
    data_type: str = "TYPE_INVALID"
    format: str = "FORMAT_NONE"
    dims: tuple[int, ...] = ()
    reshape: Reshape | None = None
    is_shape_tensor: bool = False
    allow_ragged_batch: bool = False
    optional: bool = False
    is_non_linear_format_io: bool = False


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """One output; `dims` without the batch dimension, -1 for a variable one."""

    name: str = ""
    data_type: str = "TYPE_INVALID"
    dims: tuple[int, ...] = ()
    reshape: Reshape | None = None
    label_filename: str = ""
    is_shape_tensor: bool = False
    is_non_linear_format_io: bool = False


@dataclass(frozen=True, slots=True)
class BatchInput:
    """A tensor the server makes from the composition of a batch."""

    kind: str = "BATCH_ELEMENT_COUNT"
    target_name: tuple[str, ...] = ()
    data_type: str = "TYPE_INVALID"
    source_input: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchOutput:
    """How an output of a whole batch is given back to its requests."""

    target_name: tuple[str, ...] = ()
    kind: str = "BATCH_SCATTER_WITH_INPUT_SHAPE"
    source_input: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Latest:
    """Serve the numerically largest versions."""

    num_versions: int = 0


@dataclass(frozen=True, slots=True)
class All:
    """Serve every version."""


@dataclass(frozen=True, slots=True)
class Specific:
    """Serve the listed versions that exist."""

    versions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which version directories are served; exactly one member is set."""

    latest: Latest | None = None
    all: All | None = None
    specific: Specific | None = None


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource the rate limiter counts."""

    name: str = ""
    global_: bool = field(default=False, metadata={"name": "global"})
    count: int = 0


@dataclass(frozen=True, slots=True)
class RateLimiter:
    """What an instance needs before it may run, and its priority."""

    resources: tuple[Resource, ...] = ()
    priority: int = 0


@dataclass(frozen=True, slots=True)
class SecondaryDevice:
    """A further device of an instance."""

    kind: str = "KIND_NVDLA"
    device_id: int = field(default=0, metadata={"json": "text"})


@dataclass(frozen=True, slots=True)
class InstanceGroup:
    """A group of equal instances; `count` of them on each listed GPU, or in all."""

    name: str = ""
    kind: str = "KIND_AUTO"
    count: int = 0
    rate_limiter: RateLimiter | None = None
    gpus: tuple[int, ...] = ()
    secondary_devices: tuple[SecondaryDevice, ...] = ()
    profile: tuple[str, ...] = ()
    passive: bool = False
    host_policy: str = ""


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How long and how many requests of one priority may wait."""

    timeout_action: str = "REJECT"
    default_timeout_microseconds: int = 0
    allow_timeout_override: bool = False
    max_queue_size: int = 0


@dataclass(frozen=True, slots=True)
class DynamicBatching:
    """Requests that arrive close together run as one batch."""

    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_priority_level: int = 0
    default_queue_policy: QueuePolicy | None = None
    priority_queue_policy: Mapping[int, QueuePolicy] = _mapping()


@dataclass(frozen=True, slots=True)
class Control:
    """One control value of a sequence, and how it is spelled in the tensor."""

    kind: str = "CONTROL_SEQUENCE_START"
    int32_false_true: tuple[int, ...] = ()
    fp32_false_true: tuple[float, ...] = ()
    bool_false_true: tuple[bool, ...] = ()
    data_type: str = "TYPE_INVALID"


@dataclass(frozen=True, slots=True)
class ControlInput:
    """A tensor through which the sequence batcher talks to the model."""

    name: str = ""
    control: tuple[Control, ...] = ()


@dataclass(frozen=True, slots=True)
class InitialState:
    """The state of a sequence before its first request."""

    data_type: str = "TYPE_INVALID"
    dims: tuple[int, ...] = int64_as_text()
    zero_data: bool | None = None
    data_file: str | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """A tensor that is carried from one request of a sequence to the next."""

    input_name: str = ""
    output_name: str = ""
    data_type: str = "TYPE_INVALID"
    dims: tuple[int, ...] = ()
    initial_state: tuple[InitialState, ...] = ()
    use_same_buffer_for_input_output: bool = False
    use_growable_memory: bool = False


@dataclass(frozen=True, slots=True)
class StrategyDirect:
    """A sequence keeps its slot; every slot of an instance runs together."""

    max_queue_delay_microseconds: int = 0
    minimum_slot_utilization: float = 0.0


@dataclass(frozen=True, slots=True)
class StrategyOldest:
    """Candidate sequences feed a dynamic batcher, the oldest first."""

    max_candidate_sequences: int = 0
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    preserve_ordering: bool = False


@dataclass(frozen=True, slots=True)
class SequenceBatching:
    """Requests of one sequence go to one slot, in order."""

    direct: StrategyDirect | None = None
    oldest: StrategyOldest | None = None
    max_sequence_idle_microseconds: int = 0
    control_input: tuple[ControlInput, ...] = ()
    state: tuple[State, ...] = ()
    iterative_sequence: bool = False


@dataclass(frozen=True, slots=True)
class EnsembleStep:
    """One model of an ensemble and how its tensors are wired."""

    model_name: str = ""
    model_version: int = 0
    input_map: Mapping[str, str] = _mapping()
    output_map: Mapping[str, str] = _mapping()
    model_namespace: str = ""


@dataclass(frozen=True, slots=True)
class EnsembleScheduling:
    """A graph of models behind one name."""

    step: tuple[EnsembleStep, ...] = ()
    max_inflight_requests: int = 0


@dataclass(frozen=True, slots=True)
class Accelerator:
    """An execution accelerator and its parameters."""

    name: str = ""
    parameters: Mapping[str, str] = _mapping()


@dataclass(frozen=True, slots=True)
class ExecutionAccelerators:
    """Accelerators by device kind, in order of preference."""

    gpu_execution_accelerator: tuple[Accelerator, ...] = ()
    cpu_execution_accelerator: tuple[Accelerator, ...] = ()


@dataclass(frozen=True, slots=True)
class Graph:
    """Graph optimisation."""

    level: int = 0


@dataclass(frozen=True, slots=True)
class GraphShape:
    """A shape of a CUDA graph's input."""

    dim: tuple[int, ...] = int64_as_text()


@dataclass(frozen=True, slots=True)
class LowerBound:
    """The smallest batch and shapes a CUDA graph is used for."""

    batch_size: int = 0
    input: Mapping[str, GraphShape] = _mapping()


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One CUDA graph to capture."""

    batch_size: int = 0
    input: Mapping[str, GraphShape] = _mapping()
    graph_lower_bound: LowerBound | None = None


@dataclass(frozen=True, slots=True)
class Cuda:
    """CUDA settings."""

    graphs: bool = False
    busy_wait_events: bool = False
    graph_spec: tuple[GraphSpec, ...] = ()
    output_copy_stream: bool = False


@dataclass(frozen=True, slots=True)
class PinnedMemory:
    """Whether staging buffers are pinned."""

    enable: bool = False


@dataclass(frozen=True, slots=True)
class Optimization:
    """Optimisation settings."""

    graph: Graph | None = None
    priority: str = "PRIORITY_DEFAULT"
    cuda: Cuda | None = None
    execution_accelerators: ExecutionAccelerators | None = None
    input_pinned_memory: PinnedMemory | None = None
    output_pinned_memory: PinnedMemory | None = None
    gather_kernel_buffer_threshold: int = 0
    eager_batching: bool = False


@dataclass(frozen=True, slots=True)
class WarmupInput:
    """The data of one input of a warm-up request; exactly one of the last three is set."""

    data_type: str = "TYPE_INVALID"
    dims: tuple[int, ...] = ()
    zero_data: bool | None = None
    random_data: bool | None = None
    input_data_file: str | None = None


@dataclass(frozen=True, slots=True)
class ModelWarmup:
    """A request run before the model is ready."""

    name: str = ""
    batch_size: int = 0
    inputs: Mapping[str, WarmupInput] = _mapping()
    count: int = 0


@dataclass(frozen=True, slots=True)
class ModelParameter:
    """A free parameter for the backend."""

    string_value: str = ""


@dataclass(frozen=True, slots=True)
class ModelOperations:
    """Libraries of custom operators."""

    op_library_filename: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TransactionPolicy:
    """Whether a request may have any number of responses."""

    decoupled: bool = False


@dataclass(frozen=True, slots=True)
class Agent:
    """A repository agent and its parameters."""

    name: str = ""
    parameters: Mapping[str, str] = _mapping()


@dataclass(frozen=True, slots=True)
class RepositoryAgents:
    """Agents that run when the model loads and unloads."""

    agents: tuple[Agent, ...] = ()


@dataclass(frozen=True, slots=True)
class ResponseCache:
    """Whether answers may come from the cache."""

    enable: bool = False


@dataclass(frozen=True, slots=True)
class MetricIdentifier:
    """A metric family."""

    family: str = ""


@dataclass(frozen=True, slots=True)
class HistogramOptions:
    """The buckets of a histogram."""

    buckets: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class MetricControl:
    """How one metric family is kept for this model."""

    metric_identifier: MetricIdentifier | None = None
    histogram_options: HistogramOptions | None = None


@dataclass(frozen=True, slots=True)
class ModelMetrics:
    """Per-model choices about metrics."""

    metric_control: tuple[MetricControl, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A whole `config.pbtxt`."""

    name: str = ""
    platform: str = ""
    backend: str = ""
    runtime: str = ""
    version_policy: VersionPolicy | None = None
    max_batch_size: int = 0
    input: tuple[ModelInput, ...] = ()
    output: tuple[ModelOutput, ...] = ()
    batch_input: tuple[BatchInput, ...] = ()
    batch_output: tuple[BatchOutput, ...] = ()
    optimization: Optimization | None = None
    dynamic_batching: DynamicBatching | None = None
    sequence_batching: SequenceBatching | None = None
    ensemble_scheduling: EnsembleScheduling | None = None
    instance_group: tuple[InstanceGroup, ...] = ()
    default_model_filename: str = ""
    cc_model_filenames: Mapping[str, str] = _mapping()
    metric_tags: Mapping[str, str] = _mapping()
    parameters: Mapping[str, ModelParameter] = _mapping()
    model_warmup: tuple[ModelWarmup, ...] = ()
    model_operations: ModelOperations | None = None
    model_transaction_policy: TransactionPolicy | None = None
    model_repository_agents: RepositoryAgents | None = None
    response_cache: ResponseCache | None = None
    model_metrics: ModelMetrics | None = None

    def parameter(self, name: str, default: str = "") -> str:
        """The text of a free parameter, `default` where the configuration lacks it."""
        entry = self.parameters.get(name)
        return default if entry is None else entry.string_value

    def switch(self, name: str) -> bool:
        """Whether a free parameter says `true`; one that is not given does not. Raises
        InvalidArgument where it says neither that nor `false`."""
        given = self.parameter(name, "false")
        if given not in ("true", "false"):
            raise InvalidArgument(
                f"parameter '{name}' of model '{self.name}' must be 'true' or 'false', got "
                f"'{given}'"
            )
        return given == "true"

    @property
    def decoupled(self) -> bool:
        """Whether a request may have any number of responses."""
        policy = self.model_transaction_policy
        return policy is not None and policy.decoupled
