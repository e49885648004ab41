"""Whether an ensemble fits the models that it is composed of, and the graph that it is then. Pure.

Messages are Triton's.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from microkernel.config.model import (
    EnsembleStep,
    ModelConfig,
    ModelInput,
    ModelOutput,
    TransactionPolicy,
)
from microkernel.config.padding import pad_names
from microkernel.config.tensors import inner_dims
from microkernel.config.validate import validate
from microkernel.ensembles.graph import Feed, Graph, Step, fits, in_order, route
from microkernel.errors import InvalidArgument
from microkernel.tensor import Shape


@dataclass(frozen=True, slots=True)
class _Form:
    """What a model expects of a tensor: its type, its dimensions, whether a batch's leads."""

    model: str
    data_type: str
    dims: Shape
    batches: bool

    @property
    def full(self) -> Shape:
        return (-1, *self.dims) if self.batches else self.dims


def fitted(config: ModelConfig, models: Sequence[ModelConfig]) -> tuple[ModelConfig, Graph]:
    """An ensemble as it serves with `models`, decoupled where one of its steps is, and its graph.

    Raises InvalidArgument as `fit` does, and for what a decoupled model cannot have.
    """
    graph = fit(config, models)
    policy = TransactionPolicy(decoupled=graph.decoupled)
    config = replace(config, model_transaction_policy=policy)
    validate(config, tensors_required=True)
    return config, graph


def fit(config: ModelConfig, models: Sequence[ModelConfig]) -> Graph:
    """The graph of an ensemble whose steps run `models`, one for each step, both complete.

    Raises InvalidArgument naming the first tensor or model that does not fit.
    """
    steps = config.ensemble_scheduling.step if config.ensemble_scheduling is not None else ()
    for problem in _problems(config, steps, models):
        raise InvalidArgument(problem)
    origins = _origins(config, steps, models)
    givers = _givers(config, steps, models)
    made = tuple(
        _step(step, model, origins, givers) for step, model in zip(steps, models, strict=True)
    )
    batches = config.max_batch_size > 0
    outputs = tuple(
        _feed(output.name, output.name, inner_dims(output), batches, givers)
        for output in config.output
    )
    return Graph(made, origins, outputs, route(made, outputs))


def _problems(
    config: ModelConfig, steps: Sequence[EnsembleStep], models: Sequence[ModelConfig]
) -> Iterator[str]:
    forms: dict[str, _Form] = {}
    tensors: tuple[ModelInput | ModelOutput, ...] = (*config.input, *config.output)
    for shown in tensors:
        forms[shown.name] = _Form(
            config.name, shown.data_type, inner_dims(shown), config.max_batch_size > 0
        )
    for step, model in zip(steps, models, strict=True):
        yield from _batch_size(config, model)
        yield from _names(step, model)
        yield from _tensors(step, model, forms)


def _batch_size(config: ModelConfig, model: ModelConfig) -> Iterator[str]:
    if 0 < model.max_batch_size < config.max_batch_size:
        yield (
            f"ensemble {config.name} allows maximum batch size {config.max_batch_size}, but it "
            f"contains model {model.name} which only allows maximum batch size to be "
            f"{model.max_batch_size}"
        )


def _names(step: EnsembleStep, model: ModelConfig) -> Iterator[str]:
    inputs = {entry.name for entry in model.input}
    outputs = {entry.name for entry in model.output}
    for name, tensor in step.input_map.items():
        if name not in inputs:
            yield (
                f"ensemble tensor {tensor} is mapping to non-existing input {name} in model "
                f"{model.name}"
            )
    for name, tensor in step.output_map.items():
        if name not in outputs:
            yield (
                f"ensemble tensor {tensor} is mapped from non-existing output {name} in model "
                f"{model.name}"
            )
    padded = pad_names(model)
    made = "" if padded is None else padded.mask
    for entry in model.input:
        if not entry.optional and entry.name not in (made, *step.input_map):
            yield f"input {entry.name} in model {model.name} is not mapped to any ensemble tensors"


def _tensors(step: EnsembleStep, model: ModelConfig, forms: dict[str, _Form]) -> Iterator[str]:
    """What the step expects of its tensors, against who used them before; it is noted in turn."""
    batches = model.max_batch_size > 0
    pairs: list[tuple[Mapping[str, str], ModelInput | ModelOutput]] = [
        *((step.input_map, entry) for entry in model.input),
        *((step.output_map, entry) for entry in model.output),
    ]
    for mapped, entry in pairs:
        if (tensor := mapped.get(entry.name)) is None:
            continue
        form = _Form(model.name, entry.data_type, entry.dims, batches)
        yield from _disagreement(tensor, forms.setdefault(tensor, form), form)


def _disagreement(tensor: str, one: _Form, other: _Form) -> Iterator[str]:
    if one.data_type != other.data_type:
        yield (
            f"ensemble tensor {tensor}: inconsistent data type: {one.data_type} is inferred from "
            f"model {one.model} while {other.data_type} is inferred from model {other.model}"
        )
    # Where one batches and the other does not, the batch may be a dimension of the other.
    if not fits(one.dims, other.dims) and not fits(one.full, other.full):
        yield (
            f"ensemble tensor {tensor}: inconsistent shape: {_text(one.full)} is inferred from "
            f"model {one.model} while {_text(other.full)} is inferred from model {other.model}"
        )


def _text(dims: Shape) -> str:
    return "[" + ",".join(map(str, dims)) + "]"


def _origins(
    config: ModelConfig, steps: Sequence[EnsembleStep], models: Sequence[ModelConfig]
) -> dict[str, int | None]:
    """The origin of every tensor. Raises InvalidArgument where tensors of two meet in a step."""
    origins: dict[str, int | None] = {entry.name: None for entry in config.input}
    flow = [(frozenset(s.input_map.values()), s.output_map.values()) for s in steps]
    for number in in_order(flow):
        found = {origins.get(tensor) for tensor in flow[number][0]} - {None}
        if len(found) > 1:
            raise InvalidArgument(
                f"step of model '{models[number].name}' receives inputs originated from different "
                "decoupled models"
            )
        origin = number if models[number].decoupled else next(iter(found), None)
        origins.update(dict.fromkeys(flow[number][1], origin))
    return origins


def _givers(
    config: ModelConfig, steps: Sequence[EnsembleStep], models: Sequence[ModelConfig]
) -> dict[str, bool]:
    """Whether each tensor comes with a batch dimension."""
    givers = {entry.name: config.max_batch_size > 0 for entry in config.input}
    for step, model in zip(steps, models, strict=True):
        givers.update(dict.fromkeys(step.output_map.values(), model.max_batch_size > 0))
    return givers


def _step(
    step: EnsembleStep,
    model: ModelConfig,
    origins: Mapping[str, int | None],
    givers: Mapping[str, bool],
) -> Step:
    batches = model.max_batch_size > 0
    feeds = tuple(
        _feed(entry.name, step.input_map[entry.name], entry.dims, batches, givers)
        for entry in model.input
        if entry.name in step.input_map
    )
    found = {origins.get(feed.tensor) for feed in feeds} - {None}
    every = len(step.output_map) == len(model.output)
    return Step(
        step.model_name,
        step.model_version,
        feeds,
        step.output_map,
        () if every else tuple(step.output_map),
        model.decoupled,
        next(iter(found), None),
    )


def _feed(name: str, tensor: str, dims: Shape, batches: bool, givers: Mapping[str, bool]) -> Feed:
    given = givers[tensor]
    return Feed(name, tensor, int(batches) - int(given), dims)
