"""What infer requests say beside their raw contents, which recurs: clients send the same message
with other tensors. Nothing here knows grpc.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias

from microkernel import DataType, InferRequest, Shape, Tensor
from microkernel_grpc.wire import raw_places

LONGEST = 2 << 10
"""The most bytes beside the raw contents of a message that is remembered."""
MOST = 256
"""How many messages are remembered; where there are more, all are forgotten."""
_START = 16

_Key: TypeAlias = tuple[int, bytes]


@dataclass(slots=True)
class _Head:
    """What a message said: a request without its tensors; their names, types and shapes, each with
    where its bytes start and end; and the `pieces` of the message around those, each with where it
    starts and ends."""

    request: InferRequest
    inputs: list[tuple[str, DataType, Shape, int, int]]
    pieces: list[tuple[int, int, bytes]]


class Heads:
    """Remembers what the messages of requests said that hold all their tensors as raw contents."""

    def __init__(self) -> None:
        self._known: dict[_Key, _Head] = {}

    def again(self, packed: bytes) -> InferRequest | None:
        """The request of a serialised message with views on it, where one that differed in nothing
        but raw contents is remembered; else None."""
        head = self._known.get((len(packed), packed[:_START]))
        if head is None:
            return None
        for start, end, piece in head.pieces:
            if packed[start:end] != piece:
                return None
        view, said = memoryview(packed), head.request
        return InferRequest(
            said.model_name,
            tuple([Tensor(n, d, shape, view[i:j]) for n, d, shape, i, j in head.inputs]),
            said.version,
            "",
            said.outputs,
            dict(said.parameters) if said.parameters else said.parameters,
            said.priority,
            said.timeout_us,
            said.sequence,
            said.classifications,
            said.shared_inputs,
            said.shared_outputs,
        )

    def remember(self, packed: bytes, request: InferRequest) -> None:
        """What a message has been decoded to. One with an id is not remembered, for there will
        hardly be another, nor one whose tensors are elsewhere."""
        size = sum([len(tensor.data) for tensor in request.inputs])
        if request.id or request.shared_inputs or len(packed) - size > LONGEST:
            return
        places = raw_places(packed)
        if not places or len(places) != len(request.inputs):
            return
        if len(self._known) >= MOST:
            self._known.clear()
        inputs = [
            (tensor.name, tensor.datatype, tensor.shape, start, end)
            for tensor, (_, start, end) in zip(request.inputs, places, strict=True)
        ]
        said = replace(request, inputs=(), parameters=dict(request.parameters))
        self._known[len(packed), packed[:_START]] = _Head(said, inputs, _around(packed, places))


def _around(packed: bytes, places: list[tuple[int, int, int]]) -> list[tuple[int, int, bytes]]:
    """The pieces of a message around its raw contents."""
    starts = [0, *(end for _, _, end in places)]
    ends = [*(start for _, start, _ in places), len(packed)]
    pairs = zip(starts, ends, strict=True)
    return [(start, end, packed[start:end]) for start, end in pairs if start < end]
