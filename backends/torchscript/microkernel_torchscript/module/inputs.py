"""How the inputs of a configuration become the arguments of a Python module.

Their order decides, never their names, as in Triton: inputs, then batch inputs, then the controls
and states of sequences, except that of those one called `<text>__<number>` says where it goes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from microkernel import (
    Batch,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    Tensor,
    element_count,
    inner_dims,
    model_inputs,
    sequence_inputs,
)
from microkernel_torchscript.conversion import STRING
from microkernel_torchscript.inputs import (
    Feed,
    InputPlan,
    check_any,
    check_entry,
    fed_names,
    fits_scalar,
)
from microkernel_torchscript.naming import index_of
from microkernel_torchscript.signature import REQUIRED, SCALARS, Argument, Signature


@dataclass(frozen=True)  # with slots it would be another class than the one `super` knows
class ModuleInputs(InputPlan):
    """Where each input goes. Strings are `str`, but `bytes` in the arguments of `as_bytes`."""

    as_bytes: frozenset[int] = frozenset()

    def _value(
        self, feed: Feed, tensor: Tensor, batch: Batch, failed: dict[int, MicrokernelError]
    ) -> Any:
        value = super()._value(feed, tensor, batch, failed)
        if feed.kind != "list" or feed.position in self.as_bytes:
            return value
        try:
            return [word.decode() for word in value]
        except UnicodeDecodeError:
            return _decoded(feed.name, value, batch, failed)


def plan_module_inputs(config: ModelConfig, signature: Signature | None) -> InputPlan:
    """Match the configuration's inputs with the arguments of `forward`; a `signature` of None takes
    any number of tensors.

    Raises InvalidArgument or Internal, in Triton's words where it has any, where they do not fit.
    """
    names = fed_names(config)
    check_any(names, "input")
    for entry in model_inputs(config):
        check_entry(config, entry)
    if signature is not None and signature.takes_dictionary:
        kinds = _kinds(config, ())
        feeds = tuple(Feed(name, 0, kinds.get(name, "tensor")) for name in names)
        return ModuleInputs(feeds, (), as_dictionary=True)
    arguments = None if signature is None else signature.arguments
    places = _places(config, names)
    _check_places(config, places, arguments)
    kinds = _kinds(config, [(n, (arguments or ())[p]) for n, p in places.items() if arguments])
    defaults = [argument.default for argument in arguments or ()]
    count = max(places.values()) + 1
    return ModuleInputs(
        tuple(Feed(name, place, kinds.get(name, "tensor")) for name, place in places.items()),
        tuple(defaults[:count]) or (REQUIRED,) * count,
        as_dictionary=False,
        as_bytes=frozenset(
            index for index, a in enumerate(arguments or ()) if a.type_name == "bytes[]"
        ),
    )


def varying_axes(config: ModelConfig, plan: InputPlan) -> list[tuple[int, tuple[int, ...]]]:
    """The positions of arguments that are tensors, each with its axes whose size is free."""
    if plan.as_dictionary:
        return []
    entries = {entry.name: entry for entry in model_inputs(config)}
    batching = config.max_batch_size > 0
    found = []
    for feed in plan.feeds:
        entry = entries.get(feed.name)
        if entry is None or feed.kind != "tensor" or entry.allow_ragged_batch:
            continue
        sizes = (-1,) * batching + inner_dims(entry)
        axes = tuple(axis for axis, size in enumerate(sizes) if size < 0)
        if axes:
            found.append((feed.position, axes))
    return found


def _places(config: ModelConfig, names: Sequence[str]) -> dict[str, int]:
    """The position of every input, in the order of the configuration; InvalidArgument where two
    have the same."""
    placed_by_name = {entry.name for entry in sequence_inputs(config)}
    places: dict[str, int] = {}
    following = 0
    for name in names:
        index = index_of(name) if name in placed_by_name else None
        if index is None:
            index, following = following, following + 1
        if index in places.values():
            raise InvalidArgument(
                f"unable to load model '{config.name}', input '{name}' refers to argument {index}, "
                "which another input already feeds"
            )
        places[name] = index
    return places


def _check_places(
    config: ModelConfig, places: Mapping[str, int], arguments: Sequence[Argument] | None
) -> None:
    known = range(len(places)) if arguments is None else range(len(arguments))
    for name, place in places.items():
        if place not in known:
            raise _wrong_count(config, places, len(known), f"input '{name}' has no argument")
    for place in known:
        # What follows the last input is left to Python, which has the defaults.
        argument = None if arguments is None else arguments[place]
        if place not in places.values() and (argument is None or not argument.optional):
            missing = f"argument {place}" if argument is None else f"argument '{argument.name}'"
            raise _wrong_count(config, places, len(known), f"{missing} has no input")


def _wrong_count(
    config: ModelConfig, places: Mapping[str, int], provided: int, fault: str
) -> InvalidArgument:
    return InvalidArgument(
        f"unable to load model '{config.name}', configuration expects {len(places)} inputs, model "
        f"provides {provided}: {fault}"
    )


def _kinds(config: ModelConfig, placed: Sequence[tuple[str, Argument]]) -> dict[str, str]:
    """What the inputs become that do not become tensors. Strings are a list whatever the annotation
    says. A number is one where `forward` says so and the input cannot be anything else."""
    entries = {entry.name: entry for entry in model_inputs(config)}
    kinds = {name: "list" for name, entry in entries.items() if entry.data_type == STRING}
    for name, argument in placed:
        entry = entries.get(name)
        if entry is None or argument.kind not in SCALARS or config.max_batch_size > 0:
            continue
        if prod(inner_dims(entry)) == 1 and fits_scalar(argument.kind, entry.data_type):
            kinds[name] = argument.kind
    return kinds


def _decoded(
    name: str, words: Sequence[bytes], batch: Batch, failed: dict[int, MicrokernelError]
) -> list[str]:
    """The words as text. A request with one that is no UTF-8 goes into `failed`, and empty strings
    stand in for its own."""
    texts: list[str] = []
    for index, request in enumerate(batch.requests):
        tensor = request.input(name)
        own = words[len(texts) :][: 0 if tensor is None else element_count(tensor.shape)]
        try:
            texts += [word.decode() for word in own]
        except UnicodeDecodeError:
            failed[index] = InvalidArgument(
                f"input '{name}' holds a string that is not valid UTF-8; the model can take raw "
                "bytes where the argument is annotated with list[bytes]"
            )
            texts += [""] * len(own)
    return texts
