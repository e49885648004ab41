"""`InferenceResponse`: one response to a request."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from microkernel.errors import MicrokernelError
from microkernel.inprocess.enums import DataType
from microkernel.inprocess.memory import buffer_of
from microkernel.inprocess.tensor import Tensor
from microkernel.request import NO_PARAMETERS, InferResponse, Parameters
from microkernel.tensor import Array, Buffer

if TYPE_CHECKING:
    from microkernel.inprocess.model import Model

LetGo: TypeAlias = Callable[[Sequence[Buffer]], object]
"""Drops views on the server's loop; called on any thread."""

_SMALL = 16 << 10
"""Bytes of outputs that are copied: cheaper than sending the news home that they were read."""


@dataclass(slots=True, weakref_slot=True, eq=False)
class InferenceResponse:
    """A response: the model and version that ran, and the outputs by name or the `error` in their
    place. The last one of a request is `final`; it has no outputs where the model had nothing more
    to say. `classification_label` is there for Triton's sake and always None."""

    model: "Model"
    request_id: str | None = None
    parameters: Parameters = NO_PARAMETERS
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    error: MicrokernelError | None = None
    classification_label: str | None = None
    final: bool = False


class _Lease:
    """Keeps views on a worker's memory alive and lets them go on the server's loop: the memory's
    books are kept there, without locks, and a consumer may be on any thread."""

    __slots__ = ("_let_go", "_views")

    def __init__(self, views: Sequence[Buffer], let_go: LetGo) -> None:
        self._views = views
        self._let_go = let_go

    def __del__(self) -> None:
        self._let_go(self._views)


def respond(response: InferResponse, model: "Model", let_go: LetGo) -> InferenceResponse:
    """The response for its consumer. `let_go` gets the views on its outputs when nothing made from
    them lives any more."""
    views = [tensor.data for tensor in response.outputs]
    lent = [view for view in views if not isinstance(view, bytes)]
    lease = None
    if sum(map(len, lent)) <= _SMALL:
        views = [bytes(view) for view in views]
    else:
        lease = _Lease(views, let_go)
    outputs = {
        tensor.name: Tensor(
            DataType(tensor.datatype.number), tensor.shape, buffer_of(_bytes(view), lease)
        )
        for tensor, view in zip(response.outputs, views, strict=True)
    }
    return InferenceResponse(
        model=model,
        request_id=response.id or None,
        parameters=response.parameters,
        outputs=outputs,
        error=response.error,
        final=response.final,
    )


def _bytes(view: Buffer) -> Array:
    return np.frombuffer(view, np.uint8)
