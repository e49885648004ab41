"""How the inputs of a configuration become the arguments of `forward`."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from microkernel import (
    Batch,
    Internal,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    ModelInput,
    ModelOutput,
    Tensor,
    element_count,
    inner_dims,
    sequence_inputs,
    state_outputs,
)
from microkernel_torchscript.conversion import STRING, is_supported, to_torch
from microkernel_torchscript.naming import input_positions
from microkernel_torchscript.sequences import (
    check_sequence_tensors,
    sequence_position,
    state_inputs,
)
from microkernel_torchscript.signature import REQUIRED, SCALARS, Argument, Signature

_INTEGERS = frozenset(f"TYPE_{kind}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64))
_SCALAR_TYPES = {
    "int": _INTEGERS,
    "float": _INTEGERS | {"TYPE_FP16", "TYPE_BF16", "TYPE_FP32", "TYPE_FP64"},
    "bool": frozenset(("TYPE_BOOL",)),
}
_MODEL_TYPES = {"int": "TYPE_INT64", "float": "TYPE_FP64", "bool": "TYPE_BOOL"}


@dataclass(frozen=True, slots=True)
class Feed:
    """One input: the argument it becomes, and that argument's kind."""

    name: str
    position: int
    kind: str


@dataclass(frozen=True, slots=True)
class InputPlan:
    """Where each input goes. `template` holds the arguments' defaults, REQUIRED where an argument
    has none. `writes` says that the model may write to the memory of its inputs."""

    feeds: tuple[Feed, ...]
    template: tuple[Any, ...]
    as_dictionary: bool
    writes: bool = True

    @property
    def kinds(self) -> dict[str, str]:
        """The kinds of the arguments by the names of the inputs that feed them."""
        return {feed.name: feed.kind for feed in self.feeds}

    def lay_out(self, values: Mapping[str, Any]) -> Sequence[Any]:
        """The arguments of `forward` from one value per input name. A name without a value keeps
        the argument's default; InvalidArgument where there is none."""
        if self.as_dictionary:
            return (dict(values),)
        if len(values) < len(self.feeds):
            self._check_given(values)
        arguments = list(self.template)
        for feed in self.feeds:
            if feed.name in values:
                arguments[feed.position] = values[feed.name]
        return arguments

    def _check_given(self, values: Mapping[str, Any]) -> None:
        for feed in self.feeds:
            if feed.name not in values and self.template[feed.position] is REQUIRED:
                raise InvalidArgument(
                    f"input '{feed.name}' must be given: the configuration calls it optional, but "
                    f"argument {feed.position} of the model has no default"
                )

    def arguments(self, batch: Batch, failed: dict[int, MicrokernelError]) -> Sequence[Any]:
        """The arguments for a batch. A request whose strings are malformed goes into `failed` by
        its index, and empty strings stand in its place."""
        values: dict[str, Any] = {}
        for feed in self.feeds:
            tensor = batch.stacked.get(feed.name)
            if tensor is not None:
                values[feed.name] = self._value(feed, tensor, batch, failed)
        return self.lay_out(values)

    def _value(
        self, feed: Feed, tensor: Tensor, batch: Batch, failed: dict[int, MicrokernelError]
    ) -> Any:
        if tensor.datatype.config_name == STRING:
            return list(_strings(feed.name, batch, failed))
        return _scalar(feed, tensor) if feed.kind in SCALARS else to_torch(tensor, self.writes)


def plan_inputs(config: ModelConfig, signature: Signature) -> InputPlan:
    """Match the configuration's inputs with the arguments of `forward`.

    Raises InvalidArgument or Internal, in Triton's words, where they do not fit.
    """
    names = fed_names(config)
    check_sequence_tensors(config, signature)
    if signature.takes_dictionary:
        feeds = tuple(Feed(name, 0, "tensor") for name in names)
    else:
        check_kinds(signature.arguments)
        feeds = _positional(config, names, signature.arguments)
    check_any(names, "input")
    _check_types(config, {feed.name: feed.kind for feed in feeds})
    defaults = tuple(argument.default for argument in signature.arguments)
    return InputPlan(feeds, defaults, signature.takes_dictionary, signature.writes)


def fits_scalar(kind: str, data_type: str) -> bool:
    """Whether an argument of the kind `int`, `float` or `bool` can be fed from such a tensor."""
    return data_type in _SCALAR_TYPES[kind]


def check_entry(config: ModelConfig, entry: ModelInput | ModelOutput) -> None:
    """Internal, in Triton's words, for a tensor of a type that the backend cannot read, and for one
    of strings that the configuration lists with more than one dimension; InvalidArgument for such a
    state."""
    direction = "input" if isinstance(entry, ModelInput) else "output"
    if not is_supported(entry.data_type):
        raise Internal(
            f"unsupported datatype {entry.data_type} for {direction} '{entry.name}' for model "
            f"'{config.name}'"
        )
    if entry.data_type != STRING or len(inner_dims(entry)) + (config.max_batch_size > 0) < 2:
        return
    if entry.name in state_inputs(config) or entry in state_outputs(config):
        raise _state_of_strings(config, entry.name)
    if entry in (*config.input, *config.output):
        raise Internal(
            f"Triton only supports 1 dimensional List of String as {direction} for '{entry.name}' "
            f"for model '{config.name}'"
        )


def _state_of_strings(config: ModelConfig, name: str) -> InvalidArgument:
    cure = "[ ], for the batch has one already" if config.max_batch_size > 0 else "[ -1 ]"
    return InvalidArgument(
        f"unable to load model '{config.name}', state '{name}' is a list of strings, which has one "
        f"dimension: it needs dims: {cure}"
    )


def check_any(names: Collection[object], direction: str) -> None:
    """Internal, in Triton's words, for no tensors; `direction` is `input` or `output`."""
    if not names:
        raise Internal(
            f"model configuration must contain at least one {direction}, none were specified."
        )


def fed_names(config: ModelConfig) -> list[str]:
    """All tensors that the server feeds: inputs, batch inputs, sequence controls and states."""
    return [*listed_names(config), *(entry.name for entry in sequence_inputs(config))]


def listed_names(config: ModelConfig) -> list[str]:
    """The inputs and the batch inputs, whose names follow one convention."""
    names = [entry.name for entry in config.input]
    return names + [target for entry in config.batch_input for target in entry.target_name]


def check_kinds(arguments: Sequence[Argument]) -> None:
    """Internal, in Triton's words, for arguments that no input can feed, where they are not one
    dictionary."""
    if any(argument.kind == "dict" for argument in arguments[1:]):
        raise Internal(
            "Multiple inputs of kind DictType were detected. Only a single input of type "
            "Dict(str, Tensor) is supported."
        )
    for argument in arguments:
        if argument.kind in ("dict", "other"):
            raise Internal(
                f"An input of type '{argument.type_name}' was detected in the model. Only a single "
                "input of type Dict(str, Tensor) or input(s) of type Tensor are supported."
            )


def _positional(
    config: ModelConfig, names: Sequence[str], arguments: Sequence[Argument]
) -> tuple[Feed, ...]:
    required = sum(not argument.may_be_left_out for argument in arguments)
    if not required <= len(names) <= len(arguments):
        raise InvalidArgument(
            f"unable to load model '{config.name}', configuration expects {len(names)} inputs, "
            f"model provides {len(arguments)}"
        )
    known = [argument.name for argument in arguments]
    positions = input_positions(listed_names(config), known)
    positions += [sequence_position(entry.name, known) for entry in sequence_inputs(config)]
    _check_positions(config, dict(zip(names, positions, strict=True)), arguments)
    return tuple(
        Feed(name, position, arguments[position].kind)
        for name, position in zip(names, positions, strict=True)
    )


def _check_positions(
    config: ModelConfig, positions: Mapping[str, int], arguments: Sequence[Argument]
) -> None:
    """Each argument that needs an input has exactly one, and no input lies beyond them."""
    taken: dict[int, str] = {}
    for name, position in positions.items():
        if position in taken:
            raise fed_twice(config, name, position, taken[position])
        if position >= len(arguments):
            raise InvalidArgument(
                f"unable to load model '{config.name}', input '{name}' refers to argument "
                f"{position}, but the model has {len(arguments)} arguments"
            )
        taken[position] = name
    for position, argument in enumerate(arguments):
        if position not in taken and not argument.may_be_left_out:
            raise InvalidArgument(
                f"unable to load model '{config.name}', argument '{argument.name}' of the model "
                "has no input in the configuration"
            )


def fed_twice(config: ModelConfig, name: str, position: int, other: str) -> InvalidArgument:
    """The error for an input whose argument another input has already."""
    return InvalidArgument(
        f"unable to load model '{config.name}', input '{name}' refers to argument {position}, "
        f"which input '{other}' already feeds"
    )


def _check_types(config: ModelConfig, kinds: Mapping[str, str]) -> None:
    for entry in (*config.input, *sequence_inputs(config)):
        kind = kinds[entry.name]
        if kind in SCALARS:
            _check_scalar(config, entry.name, entry.data_type, kind)
        else:
            check_entry(config, entry)


def _check_scalar(config: ModelConfig, name: str, data_type: str, kind: str) -> None:
    if config.max_batch_size > 0:
        raise InvalidArgument(
            f"unable to load model '{config.name}', input '{name}' feeds an argument of type "
            f"{kind}, which has one value for a whole batch: set max_batch_size to 0"
        )
    if data_type not in _SCALAR_TYPES[kind]:
        raise InvalidArgument(
            f"unable to load model '{config.name}', configuration expects datatype {data_type} for "
            f"input '{name}', model provides {_MODEL_TYPES[kind]}"
        )


def _scalar(feed: Feed, tensor: Tensor) -> Any:
    if element_count(tensor.shape) != 1:
        raise InvalidArgument(
            f"input '{feed.name}' feeds an argument of type {feed.kind} and must hold 1 element, "
            f"got shape {list(tensor.shape)}"
        )
    value = to_torch(tensor).item()
    return float(value) if feed.kind == "float" else value


def _strings(name: str, batch: Batch, failed: dict[int, MicrokernelError]) -> Iterable[bytes]:
    for index, request in enumerate(batch.requests):
        tensor = request.input(name)
        if tensor is None:
            continue
        try:
            yield from tensor.as_numpy().reshape(-1).tolist()
        except InvalidArgument as error:
            failed[index] = error
            yield from [b""] * element_count(tensor.shape)
