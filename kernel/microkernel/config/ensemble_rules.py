"""What an ensemble must obey by itself: its steps, and the tensors that flow between them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from microkernel.config.model import EnsembleScheduling, EnsembleStep, ModelConfig
from microkernel.request import LATEST

ENSEMBLE = "ensemble"
"""The platform of every ensemble, and of nothing else."""


def ensemble(config: ModelConfig) -> Iterator[str]:
    """What goes with the platform, and what every step must name."""
    scheduled = config.ensemble_scheduling is not None
    if scheduled and config.platform != ENSEMBLE:
        yield (
            f"ensemble scheduling cannot be set for model '{config.name}' "
            "whose platform is not ensemble"
        )
    if config.platform != ENSEMBLE:
        return
    if not scheduled:
        yield (
            f"ensemble scheduling must be set for ensemble {config.name} whose platform is ensemble"
        )
    if config.instance_group:
        yield f"instance group should not be specified for ensemble '{config.name}'"
    if config.optimization is not None:
        yield f"optimization should not be specified for ensemble '{config.name}'"
    if config.model_warmup:
        yield f"model_warmup can not be specified for ensemble '{config.name}'"
    yield from _steps(config.name, config.ensemble_scheduling)


def _steps(name: str, scheduling: EnsembleScheduling | None) -> Iterator[str]:
    if scheduling is None:
        return
    if not scheduling.step:
        yield f"must specify 'step' for ensemble '{name}'"
    for index, step in enumerate(scheduling.step):
        for field in ("model_name", "input_map", "output_map"):
            if not getattr(step, field):
                yield f"must specify '{field}' in step {index} of ensemble '{name}'"
        if step.model_version < LATEST:
            yield (
                f"'model_version' in step {index} of ensemble '{name}' must be a version, or -1 "
                f"for the latest, got {step.model_version}"
            )


def ensemble_tensors(config: ModelConfig) -> Iterator[str]:
    """How the tensors flow: each is made once, is needed, and can be made of the inputs."""
    if config.ensemble_scheduling is None or config.platform != ENSEMBLE:
        return
    steps, name = config.ensemble_scheduling.step, config.name
    inputs = [tensor.name for tensor in config.input]
    outputs = [tensor.name for tensor in config.output]
    if not outputs:
        yield f"must specify 'output' for ensemble '{name}'"
    made = Counter(chain(inputs, *(step.output_map.values() for step in steps)))
    fed = set(chain.from_iterable(step.input_map.values() for step in steps))
    for tensor, count in made.items():
        if count > 1:
            yield f"ensemble tensor '{tensor}' can appear in an output map only once for '{name}'"
    written = set(chain.from_iterable(step.output_map.values() for step in steps))
    known = written | fed
    for where, tensors in (("input", inputs), ("output", outputs)):
        for tensor in tensors:
            if tensor not in known:
                yield f"ensemble {where} '{tensor}' for ensemble {name}' is not used"
    yield from _flow(name, steps, inputs, [tensor for tensor in outputs if tensor in known])


def _flow(
    name: str, steps: Sequence[EnsembleStep], inputs: Sequence[str], outputs: Sequence[str]
) -> Iterator[str]:
    reached = _reached(steps, inputs)
    for tensor in outputs:
        if tensor not in reached:
            gap = _gap(tensor, steps, inputs)
            yield f"output '{tensor}' for ensemble '{name}' is not written{gap}"
    fed = set(chain.from_iterable(step.input_map.values() for step in steps))
    every = chain.from_iterable(
        (*step.input_map.values(), *step.output_map.values()) for step in steps
    )
    shown = set(outputs)
    for tensor in dict.fromkeys(every):
        if tensor not in shown and not (tensor in fed and tensor in reached):
            yield f"ensemble tensor '{tensor}' is unused in ensemble '{name}'"


def _reached(steps: Sequence[EnsembleStep], inputs: Sequence[str]) -> set[str]:
    """The tensors that can be made of the inputs."""
    lacking = [set(step.input_map.values()) for step in steps]
    consumers: dict[str, list[int]] = {}
    for index, tensors in enumerate(lacking):
        for tensor in tensors:
            consumers.setdefault(tensor, []).append(index)
    reached, waiting = set(inputs), list(inputs)
    while waiting:
        for index in consumers.pop(tensor := waiting.pop(), ()):
            lacking[index].discard(tensor)
            if not lacking[index]:
                waiting += set(steps[index].output_map.values()) - reached
                reached.update(steps[index].output_map.values())
    return reached


def _gap(tensor: str, steps: Sequence[EnsembleStep], inputs: Sequence[str]) -> str:
    """Which tensor that another depends on nobody makes; "" where the steps go round in circles."""
    makers: Mapping[str, EnsembleStep] = {
        made: step for step in steps for made in step.output_map.values()
    }
    seen, waiting = {tensor, *inputs}, [tensor]
    while waiting:
        step = makers.get(waiting.pop())
        for source in step.input_map.values() if step is not None else ():
            if source in seen:
                continue
            if source not in makers:
                return f": at least one of its depending tensors, '{source}', is not connected"
            seen.add(source)
            waiting.append(source)
    return ""
