"""What a step of an ensemble is asked, and to which sequence its answer belongs. Pure."""

from collections.abc import Mapping
from dataclasses import replace

from microkernel.ensembles.flow import Start, Value
from microkernel.ensembles.graph import Feed, Step
from microkernel.errors import InvalidArgument
from microkernel.request import NO_SEQUENCE, InferRequest, Parameters, Sequence, Spent
from microkernel.tensor import Tensor

_ID, _START, _END = "sequence_id", "sequence_start", "sequence_end"


def step_request(request: InferRequest, step: Step, start: Start, spent: Spent) -> InferRequest:
    """What a step asks its model on behalf of a request of the ensemble: it has its id, sequence,
    priority, timeout and parameters; `spent` is where the model's time is added up."""
    values = start.values
    return InferRequest(
        step.model,
        inputs_of(step, values),
        version=step.version,
        id=request.id,
        outputs=step.asks,
        parameters=request.parameters,
        priority=request.priority,
        timeout_us=request.timeout_us,
        sequence=sequence_of(step, values) or request.sequence,
        spent=spent,
    )


def inputs_of(step: Step, values: Mapping[str, Value]) -> tuple[Tensor, ...]:
    """The tensors that a step takes, under the names its model knows; those left out are not among
    them. Nothing is copied."""
    return tuple(
        [
            passed(tensor, feed)
            for feed in step.feeds
            if (tensor := values[feed.tensor].tensor) is not None
        ]
    )


def passed(tensor: Tensor, feed: Feed) -> Tensor:
    """A tensor as its taker sees it: another name, and the batch dimension that it expects."""
    shape = feed.shaped(tensor.shape) if feed.leading else tensor.shape
    return Tensor(feed.name, tensor.datatype, shape, tensor.data)


def sequence_of(step: Step, values: Mapping[str, Value]) -> Sequence | None:
    """The sequence that the tensors of a step belong to, None for that of the request; of several
    the last one counts."""
    found: Sequence | None = None
    for feed in step.feeds:
        found = values[feed.tensor].sequence or found
    return found


def overridden(
    parameters: Parameters, inherited: Sequence | None, request: Sequence = NO_SEQUENCE
) -> Sequence | None:
    """The sequence that what a step has made belongs to: a model may say it by the parameters
    `sequence_id`, `sequence_start` and `sequence_end` of its response, else it is the `inherited`
    one of the step. Raises InvalidArgument for a value of another type."""
    if not parameters or not parameters.keys() & {_ID, _START, _END}:
        return inherited
    found = inherited or request
    if _ID in parameters:
        name = parameters[_ID]
        if isinstance(name, bool | float):
            raise InvalidArgument(
                f"response parameter '{_ID}' must be an integer or a string, got {name}"
            )
        found = replace(found, id=name)
    if _START in parameters:
        found = replace(found, start=_flag(parameters, _START))
    if _END in parameters:
        found = replace(found, end=_flag(parameters, _END))
    return found


def _flag(parameters: Parameters, name: str) -> bool:
    value = parameters[name]
    if not isinstance(value, bool):
        raise InvalidArgument(f"response parameter '{name}' must be true or false, got {value}")
    return value


def sequence_parameters(sequence: Sequence) -> Parameters:
    """What a response of the ensemble says of the sequence that it belongs to."""
    return {_ID: sequence.id, _START: sequence.start, _END: sequence.end}
