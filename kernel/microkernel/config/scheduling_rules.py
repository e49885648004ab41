"""What the messages that choose a scheduler must obey."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain

from microkernel.config.model import (
    Control,
    DynamicBatching,
    InitialState,
    ModelConfig,
    QueuePolicy,
    SequenceBatching,
    State,
)

_CORRELATION_TYPES = ("TYPE_UINT64", "TYPE_INT64", "TYPE_UINT32", "TYPE_INT32", "TYPE_STRING")


def dynamic_batching(config: ModelConfig) -> Iterator[str]:
    """Preferred sizes, priorities, and what order-keeping excludes."""
    if config.dynamic_batching is None:
        return
    preferred = config.dynamic_batching.preferred_batch_size
    faults = chain(
        _preferred(preferred, config.max_batch_size, "dynamic batching preferred size"),
        _priorities(config.dynamic_batching),
        _ordering(config.dynamic_batching),
    )
    yield from (f"{fault} for {config.name}" for fault in faults)


def _preferred(sizes: tuple[int, ...], limit: int, what: str) -> Iterator[str]:
    if any(size <= 0 for size in sizes):
        yield f"{what} must be positive"
    if any(size > limit for size in sizes):
        yield f"{what} must be <= max batch size"


def _priorities(dynamic: DynamicBatching) -> Iterator[str]:
    levels = dynamic.priority_levels
    if levels == 0:
        return
    if not 1 <= dynamic.default_priority_level <= levels:
        yield f"default priority level must be in range [1, {levels}]"
    if any(not 1 <= level <= levels for level in dynamic.priority_queue_policy):
        yield f"priority queue policy must have priority level in range [1, {levels}]"


def _ordering(dynamic: DynamicBatching) -> Iterator[str]:
    if not dynamic.preserve_ordering:
        return
    if dynamic.priority_levels > 1:
        yield "only one priority level is allowed when 'preserve_ordering' is true"
    policies = (dynamic.default_queue_policy, *dynamic.priority_queue_policy.values())
    if any(policy is not None and _delays(policy) for policy in policies):
        yield (
            "queue policy can not have a non-zero default timeout with timeout action DELAY "
            "when 'preserve_ordering' is true"
        )


def _delays(policy: QueuePolicy) -> bool:
    return policy.timeout_action == "DELAY" and policy.default_timeout_microseconds != 0


def sequence_batching(config: ModelConfig) -> Iterator[str]:
    """Controls, strategy and states."""
    if config.sequence_batching is None:
        return
    faults = chain(
        _controls(config.sequence_batching),
        _names(config, config.sequence_batching),
        _strategy(config.sequence_batching, config.max_batch_size),
        *(_state(state) for state in config.sequence_batching.state),
    )
    yield from (f"{fault} for {config.name}" for fault in faults)


def _controls(batching: SequenceBatching) -> Iterator[str]:
    # A tensor with several controls is as good as one that is named several times.
    names = Counter(t.name for t in batching.control_input for _ in t.control or (None,))
    for name, count in names.items():
        if not name:
            yield "control tensor must have a name"
        elif count > 1:
            yield f"control tensor '{name}' is specified for multiple control kinds"
    kinds = Counter(c.kind for tensor in batching.control_input for c in tensor.control)
    for kind, count in kinds.items():
        if count > 1:
            yield f"sequence batching specifies multiple {kind} tensors"
    for tensor in batching.control_input:
        for control in tensor.control:
            faults = _correlation if control.kind == "CONTROL_SEQUENCE_CORRID" else _flag
            yield from (f"{fault} for control tensor '{tensor.name}'" for fault in faults(control))


def _names(config: ModelConfig, batching: SequenceBatching) -> Iterator[str]:
    """No two tensors that the model is fed have one name. Two states may: one is ignored."""
    taken = {tensor.name for tensor in config.input}
    controls = {tensor.name: None for tensor in batching.control_input if tensor.name}
    states = {state.input_name: None for state in batching.state if state.input_name}
    for what, names in (("control tensor", controls), ("sequence batching state", states)):
        for name in names:
            if name in taken:
                yield f"{what} '{name}' has the name of another input"
        taken.update(names)


def _flag(control: Control) -> Iterator[str]:
    """A control that is false or true needs one list with the two values."""
    given = _value_lists(control)
    if not given:
        yield (
            "sequence batching must specify either 'int32_false_true', 'fp32_false_true' "
            f"or 'bool_false_true' for {control.kind}"
        )
    elif len(given) > 1:
        yield (
            "sequence batching specifies more than one from 'int32_false_true', "
            f"'fp32_false_true' and 'bool_false_true' for {control.kind}"
        )
    for name, length in given.items():
        if length != 2:
            yield f"sequence batching control '{name}' must have exactly 2 entries"


def _correlation(control: Control) -> Iterator[str]:
    if _value_lists(control):
        yield (
            "sequence batching must not specify either 'int32_false_true', 'fp32_false_true' "
            f"or 'bool_false_true' for {control.kind}"
        )
    if control.data_type not in _CORRELATION_TYPES:
        yield f"unexpected data type for control {control.kind}"


def _value_lists(control: Control) -> dict[str, int]:
    lists = {
        "int32_false_true": len(control.int32_false_true),
        "fp32_false_true": len(control.fp32_false_true),
        "bool_false_true": len(control.bool_false_true),
    }
    return {name: length for name, length in lists.items() if length}


def _strategy(batching: SequenceBatching, limit: int) -> Iterator[str]:
    if batching.oldest is not None:
        if batching.oldest.max_candidate_sequences < 0:
            yield "sequence batching 'max_candidate_sequences' must not be negative"
        sizes = batching.oldest.preferred_batch_size
        yield from _preferred(sizes, limit, "sequence batching preferred batch size")
    if batching.direct is not None and not 0 <= batching.direct.minimum_slot_utilization <= 1:
        yield "sequence batching minimum slot utilization must be in range [0.0, 1.0]"


def _state(state: State) -> Iterator[str]:
    name = state.input_name
    if not name or not state.output_name:
        yield "sequence batching state must have an 'input_name' and an 'output_name'"
    if state.data_type == "TYPE_INVALID":
        yield f"sequence batching state '{name}' must specify 'data_type'"
    if any(dim < 1 and dim != -1 for dim in state.dims):
        yield (
            f"sequence batching state '{name}' dimension must be integer >= 1, or -1 to indicate a "
            "variable-size dimension"
        )
    if len(state.initial_state) > 1:
        yield f"sequence batching state '{name}' can have only one initial state"
    for initial in state.initial_state:
        yield from _initial_state(state, initial)


def _initial_state(state: State, initial: InitialState) -> Iterator[str]:
    name = state.input_name
    if any(dim < 0 for dim in initial.dims):
        yield f"'initial_state' field for state input name '{name}' contains variable dimensions."
    if not initial.name:
        yield (
            "Field 'name' must be set when using initial_state in the state input field. State "
            f"input name is '{name}'"
        )
    if initial.data_type != state.data_type:
        yield f"The data type used for 'initial_state' field of state '{name}' does not match"
    fits = len(initial.dims) == len(state.dims) and all(
        dim in (-1, given) for dim, given in zip(state.dims, initial.dims, strict=True)
    )
    if not fits:
        yield (
            f"The dimensions used for 'initial_state' field of state '{name}' are "
            f"{list(initial.dims)}, which are none of {list(state.dims)}"
        )
    if initial.zero_data is None and not initial.data_file:
        yield f"'initial_state' of state '{name}' must specify 'zero_data' or 'data_file'"
