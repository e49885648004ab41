"""What is counted and traced of the requests of an ensemble."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from microkernel.errors import InvalidArgument
from microkernel.models.serving import Company, Held
from microkernel.request import InferRequest, Spent
from microkernel.stats import Execution, Failure, ModelStats
from microkernel.tensor import Tensor
from microkernel.tracing import marks


@dataclass(slots=True)
class Accepted:
    """A request on its way. `models` are those of the steps, and `company` is what they are held in
    until it is answered, None where others hold them; `began` is when the first step could start,
    `answers` is how many were given, `counted` is whether it has succeeded, and `spent` what its
    steps took in all."""

    request: InferRequest
    size: int
    arrived_ns: int
    models: tuple[Held, ...]
    company: Company | None
    began: int = 0
    answers: int = 0
    counted: bool = False
    spent: Spent = field(default_factory=Spent)


class Accounts:
    """Counts requests, and marks the traces of those that are traced."""

    def __init__(self, stats: ModelStats) -> None:
        self._stats = stats

    def answered(self, accepted: Accepted, outputs: Sequence[Tensor]) -> None:
        """The steps have made an answer."""
        now = time.monotonic_ns()
        if accepted.answers == 0:
            self._stats.first_response(now - accepted.arrived_ns)
        accepted.answers += 1
        if accepted.request.trace is not None:
            marks.responded(accepted.request, outputs, now)

    def found(self, accepted: Accepted, began: int, outputs: Sequence[Tensor]) -> None:
        """The answer was in the cache, which was asked at the moment `began`."""
        now = time.monotonic_ns()
        self._stats.first_response(now - began)
        self._stats.hit(began, now)
        if accepted.request.trace is not None:
            marks.answered(accepted.request, outputs, now)

    def succeeded(self, accepted: Accepted) -> None:
        """A request is done. It is charged what its steps took in all, which may be more than the
        time that it took itself."""
        accepted.counted = True
        spent = accepted.spent
        request, now, began = accepted.request, time.monotonic_ns(), accepted.began
        input_end = began + spent.input_ns
        output_start = input_end + spent.infer_ns
        times = Execution(began, input_end, output_start, output_start + spent.output_ns)
        self._stats.succeeded(accepted.arrived_ns, now, accepted.size, times)
        self._stats.executed(times, accepted.size)
        if request.spent is not None:
            request.spent.add(spent.input_ns, spent.infer_ns, spent.output_ns)
        if request.trace is not None:
            marks.over(request, now)

    def failed(self, accepted: Accepted) -> None:
        """A request has failed. It counts twice, as in Triton, which counts it when it is answered
        and when it is done with."""
        now = time.monotonic_ns()
        self._stats.failed(accepted.arrived_ns, now, Failure.OTHER)
        self._stats.failed(accepted.arrived_ns, now, Failure.OTHER)
        if accepted.request.trace is not None:
            marks.over(accepted.request, now)


def no_answer(request: InferRequest) -> InvalidArgument:
    """The error of a request that no step can go on with and that has no answer, in Triton's
    words."""
    return InvalidArgument(
        f"{request.tag()}unexpected deadlock, at least one output is not set while no more "
        "ensemble steps can be made"
    )
