"""When a TorchScript module may be compiled, and when what was compiled may serve. Pure.

Machine code looks at nothing: it runs on inputs of another size than it was compiled for, and gives
what is wrong. So it is made only where a configuration leaves no size open but the batch's, which
the compiler is told of.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

from microkernel import ModelConfig, inner_dims
from microkernel_torchscript.inputs import InputPlan
from microkernel_torchscript.probing.examples import is_ragged
from microkernel_torchscript.tuning.compiled.ordering import LEAST_SECONDS

Form: TypeAlias = Literal["tensor", "tuple", "list", ""]
"""What a module returns: one tensor, several in a tuple or a list; "" for anything else."""


def not_compiled(
    config: ModelConfig, plan: InputPlan, form: Form, sizes: Sequence[int], seconds: float
) -> str:
    """Why a model is not compiled, "" where it may be. `form` is what it returns, and `sizes` are
    the batch sizes that results can be compared for."""
    if seconds < LEAST_SECONDS:
        return f"compiling takes too long for {seconds:g} s of measuring; give {LEAST_SECONDS:g}"
    return (
        not_alone(config)
        or _arguments(config, plan)
        or ("" if form else "it returns more than a tensor, or a tuple or list of tensors")
        or _open_sizes(config)
        or _not_comparable(config, sizes)
    )


def not_alone(config: ModelConfig) -> str:
    """Why machine code must not serve in the processes of a configuration: it keeps the interpreter
    to itself while it runs, so that instances in one process would wait for each other."""
    worker = config.parameter("WORKER")
    if worker == "thread":
        return "it would keep the server's interpreter to itself, where WORKER is 'thread'"
    count = sum(max(1, group.count) for group in config.instance_group if not group.passive)
    if count > 1 and worker != "instance":
        return f"{count} instances in one process would wait for each other: set WORKER to instance"
    return ""


def _arguments(config: ModelConfig, plan: InputPlan) -> str:
    """Every argument must be a tensor, in every call."""
    if plan.as_dictionary:
        return "it takes a dictionary"
    for feed in plan.feeds:
        if feed.kind != "tensor":
            return f"input '{feed.name}' is no tensor for it"
    left_out = len(plan.template) > len(plan.feeds) or any(e.optional for e in config.input)
    if left_out or is_ragged(config):
        return "its arguments differ between calls or are not all given"
    shaping = next((entry.name for entry in config.input if entry.is_shape_tensor), "")
    return f"input '{shaping}' is a shape tensor" if shaping else ""


def _open_sizes(config: ModelConfig) -> str:
    for entry in config.input:
        if min((*entry.dims, *inner_dims(entry)), default=1) < 1:
            return f"the configuration leaves sizes of input '{entry.name}' open"
    return ""


def _not_comparable(config: ModelConfig, sizes: Sequence[int]) -> str:
    if config.max_batch_size > 1 and max(sizes, default=1) < 2:
        return "it could not be compared with the plain module in batches"
    return ""
