"""What a configuration must obey, as a list of small rules; and what it says without effect.

A rule looks at the configuration alone and yields a message per fault. The messages are Triton's
where clients and operators know them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import isfinite
from typing import TypeAlias

from microkernel.config.ensemble_rules import ENSEMBLE, ensemble, ensemble_tensors
from microkernel.config.model import (
    InstanceGroup,
    MetricControl,
    ModelConfig,
    Optimization,
)
from microkernel.config.padding import padding
from microkernel.config.queue_rules import queue_parameters
from microkernel.config.scheduling_rules import dynamic_batching, sequence_batching
from microkernel.config.tensor_rules import (
    batch_inputs,
    batch_outputs,
    inputs_and_outputs,
)
from microkernel.config.tensors import ignored_states
from microkernel.errors import InvalidArgument

Rule: TypeAlias = Callable[[ModelConfig], Iterator[str]]

PLATFORMS: Mapping[str, tuple[str, ...]] = {
    "tensorflow": ("tensorflow_graphdef", "tensorflow_savedmodel"),
    "tensorrt": ("tensorrt_plan",),
    "onnxruntime": ("onnxruntime_onnx",),
    "pytorch": ("pytorch_libtorch", "torch_aoti"),
}
"""The platforms that may stand beside the backends Triton knows; other backends accept any."""

MOST_INSTANCES = 1024
"""How many instances a version of a model may have. Each is a process or a thread, and a number
written by mistake, or sent by a client, must not take the whole host."""


def validate(config: ModelConfig, *, tensors_required: bool) -> None:
    """Raise InvalidArgument with the first problem. Inputs and outputs are looked at only with
    `tensors_required`: before auto-completion they may still be missing."""
    found = problems(config, tensors_required=tensors_required)
    if found:
        raise InvalidArgument(found[0])


def problems(config: ModelConfig, *, tensors_required: bool = True) -> list[str]:
    """Everything wrong with the configuration by itself, the most basic first; see `validate`."""
    rules = (*_RULES, *_TENSOR_RULES) if tensors_required else _RULES
    return [message for rule in rules for message in rule(config)]


def ignored(config: ModelConfig) -> list[str]:
    """What the configuration says that is accepted but has no effect, as field paths."""
    return [path for path, given in _without_effect(config).items() if given]


def _without_effect(config: ModelConfig) -> dict[str, bool]:
    tuning = config.optimization or Optimization()
    # Graph level and accelerators mean something to one backend only.
    for_onnx = config.backend == "onnxruntime"
    return {
        "model_repository_agents": config.model_repository_agents is not None,
        "optimization.cuda": tuning.cuda is not None,
        "optimization.gather_kernel_buffer_threshold": tuning.gather_kernel_buffer_threshold > 0,
        "optimization.eager_batching": tuning.eager_batching,
        "optimization.graph": tuning.graph is not None and not for_onnx,
        "optimization.execution_accelerators": tuning.execution_accelerators is not None
        and not for_onnx,
        **{f"sequence_batching.state[{place}]": True for place in ignored_states(config)},
    }


def _name(config: ModelConfig) -> Iterator[str]:
    if not config.name:
        yield "model configuration must specify 'name'"


def _one_of_each(config: ModelConfig) -> Iterator[str]:
    """The text format cannot name two members of a oneof; the JSON form can."""
    choice = (config.dynamic_batching, config.sequence_batching, config.ensemble_scheduling)
    groups: dict[str, tuple[object, ...]] = {
        "dynamic_batching, sequence_batching, ensemble_scheduling": choice
    }
    if config.version_policy:
        policy = config.version_policy
        groups["latest, all, specific"] = (policy.latest, policy.all, policy.specific)
    if config.sequence_batching:
        groups["direct, oldest"] = (
            config.sequence_batching.direct,
            config.sequence_batching.oldest,
        )
    for members, values in groups.items():
        if sum(value is not None for value in values) > 1:
            yield f"only one of {members} can be set for {config.name}"


def _backend_and_platform(config: ModelConfig) -> Iterator[str]:
    platform, backend = config.platform, config.backend
    if not backend and platform != ENSEMBLE:
        yield f"unexpected platform type '{platform}' for {config.name}"
    elif backend and platform == ENSEMBLE:
        yield (
            f"Ensemble model '{config.name}' must have platform type 'ensemble' "
            "and empty backend type"
        )
    elif platform and platform not in PLATFORMS.get(backend, (platform,)):
        yield f"unexpected 'platform' and 'backend' pair, got:{platform}, {backend}"


def _max_batch_size(config: ModelConfig) -> Iterator[str]:
    if config.max_batch_size < 0:
        yield f"'max_batch_size' must be non-negative value for {config.name}"


def _response_cache(config: ModelConfig) -> Iterator[str]:
    if config.response_cache is None or not config.response_cache.enable:
        return
    start = f"Response Cache does not currently support model {config.name}"
    if config.sequence_batching is not None:
        yield f"{start} with sequence batching scheduler"
    if config.decoupled:
        yield f"{start} with 'decoupled' transaction policy"


def _model_metrics(config: ModelConfig) -> Iterator[str]:
    for control in config.model_metrics.metric_control if config.model_metrics else ():
        yield from (f"{fault} for {config.name}" for fault in _metric(control))


def _metric(control: MetricControl) -> Iterator[str]:
    if control.metric_identifier is None:
        yield "metric control must specify 'metric_identifier'"
    elif not control.metric_identifier.family:
        yield "metric identifier must specify non-empty 'family'"
    if control.histogram_options is None:
        yield "metric control must specify 'histogram_options'"
    elif not control.histogram_options.buckets:
        yield "histogram options must specify non-empty 'buckets'"
    elif not _ascending(control.histogram_options.buckets):
        yield "histogram options must specify 'buckets' in ascending order"


def _ascending(buckets: Sequence[float]) -> bool:
    return all(a < b for a, b in pairwise(buckets)) and all(map(isfinite, buckets))


def instance_groups(config: ModelConfig) -> Iterator[str]:
    """The faults of the instance groups that show without knowing the machine. How many instances
    there are is known of normalised groups; of others, how many at least."""
    count = sum(map(_instances, config.instance_group))
    if count > MOST_INSTANCES:
        yield (
            f"instance groups of model {config.name} have {count} instances, more than the "
            f"{MOST_INSTANCES} that a model may have"
        )
    for index, group in enumerate(config.instance_group):
        name = group.name or f"{config.name}_{index}"
        for fault in _group(group, config.backend):
            yield f"instance group {name} of model {config.name} {fault}"


def _instances(group: InstanceGroup) -> int:
    """As many on each GPU, of which a group that does not name any may have but one."""
    return max(1, group.count) * (max(1, len(group.gpus)) if group.kind == "KIND_GPU" else 1)


def _group(group: InstanceGroup, backend: str) -> Iterator[str]:
    if group.gpus and group.kind in ("KIND_CPU", "KIND_MODEL"):
        yield f"has kind {group.kind} but specifies one or more GPUs"
    if group.profile and backend != "tensorrt":
        yield "specifies 'profile', which is only supported for TensorRT models"


_RULES: tuple[Rule, ...] = (
    _name,
    _one_of_each,
    _backend_and_platform,
    ensemble,
    _max_batch_size,
    dynamic_batching,
    sequence_batching,
    _response_cache,
    instance_groups,
    _model_metrics,
)
_TENSOR_RULES: tuple[Rule, ...] = (
    inputs_and_outputs,
    batch_inputs,
    batch_outputs,
    ensemble_tensors,
    padding,
    queue_parameters,
)
