"""What a module takes and gives, told by running it on the inputs that were asked for."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from microkernel import (
    DynamicBatching,
    InvalidArgument,
    ModelConfig,
    ModelInput,
    ModelOutput,
)
from microkernel_torchscript.batching import written
from microkernel_torchscript.conversion import STRING
from microkernel_torchscript.exporting.specs import InputSpec, Wish
from microkernel_torchscript.inputs import InputPlan, plan_inputs
from microkernel_torchscript.module.signature import module_signature
from microkernel_torchscript.naming import index_of
from microkernel_torchscript.probing.examples import CannotTell, Example
from microkernel_torchscript.probing.survey import Survey, survey
from microkernel_torchscript.signature import Argument, Signature, signature_of

_ROWS = 2
"""The size of a first dimension that varies. `torch.export` takes a 1 for a fixed size."""

_SIZES = (16, 32, 64, 224, 7)


@dataclass(frozen=True, slots=True)
class Trial:
    """A module that has run: the configuration that describes it, how its inputs become arguments
    of `forward`, and the examples that it ran on."""

    module: nn.Module
    config: ModelConfig
    plan: InputPlan
    examples: tuple[Example, ...]

    def call(self, values: Mapping[str, Any]) -> Any:
        """Run the module on one value for each input."""
        with torch.no_grad():
            return self.module(*self.arguments(values))

    def arguments(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """The arguments of `forward` by position, up to the last one that an input feeds."""
        last = max(feed.position for feed in self.plan.feeds)
        return tuple(self.plan.lay_out(values))[: last + 1]


def try_out(name: str, module: nn.Module, wish: Wish) -> Trial:
    """Run a module in evaluation mode on sizes of all kinds and describe it as the model `name`.

    Raises InvalidArgument where it does not take the inputs, does not run, does not vary the sizes
    that are to vary, or gives other outputs than are named.
    """
    module.eval()
    signature = _signature(module, wish)
    if not wish.inputs:
        names = ", ".join(argument.name for argument in signature.arguments)
        raise InvalidArgument(
            f"say what forward({names}) takes with --input NAME:TYPE:DIMS, as in --input "
            "image:fp32:-1,3,224,224, where -1 is a size that varies"
        )
    inputs = tuple(_entry(spec, wish.max_batch_size) for spec in wish.inputs)
    config = ModelConfig(
        name=name,
        max_batch_size=wish.max_batch_size,
        input=inputs,
        dynamic_batching=DynamicBatching() if wish.max_batch_size > 0 else None,
    )
    plan = plan_inputs(config, signature)
    bare = Trial(module, config, plan, ())
    examples, found = _surveyed(bare.call, wish, plan.kinds)
    _check_sizes(wish, examples, found)
    outputs = _outputs(wish, found)
    return replace(bare, config=replace(config, output=outputs), examples=examples)


def example_sizes(spec: InputSpec, size: int, *, spread: bool) -> tuple[int, ...]:
    """The sizes of an example: those that vary are 2 for the first dimension and `size` for others,
    or multiples of it with `spread`, since `torch.export` takes equal sizes for one."""
    return tuple(
        dim if dim > 0 else _ROWS if axis == 0 else size * (axis if spread else 1)
        for axis, dim in enumerate(spec.shape)
    )


def _entry(spec: InputSpec, max_batch_size: int) -> ModelInput:
    dims, reshape = written(spec.shape, max_batch_size)
    return ModelInput(spec.name, spec.data_type, dims=dims, reshape=reshape)


def _signature(module: nn.Module, wish: Wish) -> Signature:
    if isinstance(module, torch.jit.ScriptModule):
        return signature_of(module)
    told = module_signature(module.forward)
    if told is not None:
        return told
    return Signature(tuple(Argument(spec.name, "tensor", "Tensor") for spec in wish.inputs))


def _surveyed(
    call: Callable[[Mapping[str, Any]], Any], wish: Wish, kinds: Mapping[str, str]
) -> tuple[tuple[Example, ...], Survey]:
    """The first examples that the module runs on, and what runs on variations of them showed."""
    reason = ""
    for examples in _candidates(wish, kinds):
        try:
            return examples, survey(call, examples)
        except CannotTell as failure:
            reason = reason or str(failure)
    raise InvalidArgument(f"the module does not tell {reason}")


def _candidates(wish: Wish, kinds: Mapping[str, str]) -> Iterator[tuple[Example, ...]]:
    """Sets of examples, one for each size to try; sizes that vary are all alike where the module
    does not run on different ones."""
    tried = set()
    for spread in (True, False):
        for size in _SIZES:
            examples = tuple(_example(s, kinds[s.name], size, spread) for s in wish.inputs)
            if examples not in tried:
                tried.add(examples)
                yield examples


def _example(spec: InputSpec, kind: str, size: int, spread: bool) -> Example:
    axes = frozenset(axis for axis, dim in enumerate(spec.shape) if dim < 0)
    return Example(spec.name, spec.data_type, example_sizes(spec, size, spread=spread), axes, kind)


def _check_sizes(wish: Wish, examples: tuple[Example, ...], found: Survey) -> None:
    for spec, example in zip(wish.inputs, examples, strict=True):
        for axis in sorted(example.axes):
            if found.inputs[spec.name][axis] != -1:
                raise InvalidArgument(
                    f"dimension {axis} of input '{spec.name}' is to vary, but the module runs on "
                    f"the size {example.shape[axis]} and on no other that was tried; write the size"
                )
    if wish.max_batch_size > 0 and not found.batches:
        raise InvalidArgument(
            "the module cannot batch, since the first dimension of its outputs does not grow with "
            "that of its inputs; leave --max-batch-size out"
        )


def _outputs(wish: Wish, found: Survey) -> tuple[ModelOutput, ...]:
    if not found.outputs:
        raise InvalidArgument("the module returns no tensor with dimensions that can be served")
    names = _named(wish.output_names, tuple(found.outputs))
    outputs = []
    for name, (data_type, whole) in zip(names, found.outputs.values(), strict=True):
        dims, reshape = written(whole, wish.max_batch_size)
        outputs.append(ModelOutput(name, data_type, dims=dims, reshape=reshape))
    _check_labels(wish.labels, outputs)
    return tuple(outputs)


def _named(wanted: tuple[str, ...], found: tuple[str, ...]) -> tuple[str, ...]:
    if not wanted or wanted == found:
        return found
    if [index_of(name) for name in found] != list(range(len(found))):
        raise InvalidArgument(
            f"the module names its outputs itself: {', '.join(found)}; leave --output-name out"
        )
    if len(wanted) != len(found):
        raise InvalidArgument(
            f"{len(wanted)} outputs are named, the module returns {len(found)}: {', '.join(found)}"
        )
    return wanted


def _check_labels(labels: Mapping[str, tuple[str, ...]], outputs: list[ModelOutput]) -> None:
    known = {output.name: output for output in outputs}
    for name, texts in labels.items():
        if name not in known:
            raise InvalidArgument(
                f"there are labels for '{name}', but the outputs are {', '.join(known)}"
            )
        classes = known[name].dims[-1]
        if known[name].data_type == STRING or classes not in (-1, len(texts)):
            raise InvalidArgument(
                f"there are {len(texts)} labels for the output '{name}', which has {classes} "
                "classes"
            )
