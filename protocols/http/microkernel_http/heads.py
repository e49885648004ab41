"""The JSON parts of infer requests, which recur: clients send the same text with other tensors.
Nothing here knows aiohttp.
"""

from dataclasses import dataclass, replace

from microkernel import DataType, InferRequest, Shape, Tensor
from microkernel_http.decode import Limits, OutputForms, decode

LONGEST = 2 << 10
"""The most bytes of a text that is remembered."""
MOST = 256
"""How many texts are remembered; where there are more, all are forgotten."""


@dataclass(slots=True)
class _Head:
    """What a text said: a request without its tensors, their names, types, shapes and sizes, the
    bytes of them all, and the forms of the outputs."""

    request: InferRequest
    inputs: list[tuple[str, DataType, Shape, int]]
    size: int
    forms: OutputForms


class Heads:
    """Decodes bodies as `decode` does, and remembers what short texts meant."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: dict[bytes, _Head] = {}

    def decode(
        self, body: bytes, length: int, model_name: str, version: int
    ) -> tuple[InferRequest, OutputForms]:
        """See `microkernel_http.decode.decode`, whose answer depends on nothing but the text, the
        size of what comes after it, and the limits."""
        if length > LONGEST or length == len(body):
            return decode(body, length, model_name, version, self._limits)
        text = body[:length]
        head = self._known.get(text)
        if head is not None and head.size == len(body) - length:
            return _again(head, body, length, model_name, version), head.forms
        request, forms = decode(body, length, model_name, version, self._limits)
        if not request.id:  # else there will hardly be another
            self._remember(text, request, forms, len(body) - length)
        return request, forms

    def _remember(self, text: bytes, request: InferRequest, forms: OutputForms, size: int) -> None:
        inputs = [(t.name, t.datatype, t.shape, len(t.data)) for t in request.inputs]
        if request.shared_inputs or sum(entry[3] for entry in inputs) != size:
            return  # some data is elsewhere: in the text, or in shared memory
        if len(self._known) >= MOST:
            self._known.clear()
        said = replace(request, inputs=(), parameters=dict(request.parameters))
        self._known[text] = _Head(said, inputs, size, forms)


def _again(head: _Head, body: bytes, start: int, model_name: str, version: int) -> InferRequest:
    """The request that a text means once more, with the tensors that come after it."""
    view, tensors = memoryview(body), []
    for name, datatype, shape, size in head.inputs:
        end = start + size
        tensors.append(Tensor(name, datatype, shape, view[start:end]))
        start = end
    said = head.request
    return InferRequest(
        model_name,
        tuple(tensors),
        version,
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
