"""`pb_utils.InferenceRequest`, as received and as made for a nested call."""

import json
import threading
from collections.abc import Sequence
from typing import Any

from microkernel_python.arguments import elements, instance_of, integer, parameter_values, text
from microkernel_python.errors import TritonModelException
from microkernel_python.memory import InferenceTrace, PreferredMemory
from microkernel_python.reply import Reply
from microkernel_python.sender import InferenceResponseSender
from microkernel_python.tensor import Tensor

SEQUENCE_START = 1
SEQUENCE_END = 2
RELEASE_ALL = 1
RELEASE_RESCHEDULE = 2
ANY_VERSION = -1

_REQUIRED: Any = object()
_DEFAULT_MEMORY = PreferredMemory()
_NO_TRACE = InferenceTrace()
_MAKING_SENDERS = threading.Lock()


class InferenceRequest:
    """A request for a model.

    Raises TypeError for arguments that are missing or of the wrong type, and TritonModelException
    for a correlation id that is neither a non-negative int nor a str, None among the inputs, an
    empty output name, and parameters that are not a dict from str to bool, int or str.
    """

    __slots__ = (
        *("_correlation_id", "_flags", "_inputs", "_model", "_outputs", "_parameters"),
        *("_preferred_memory", "_request_id", "_timeout", "_trace"),
    )

    def __init__(  # noqa: PLR0913, PLR0917 - the arguments and their order are Triton's
        self,
        request_id: str | bytes = "",
        correlation_id: int | str = 0,
        inputs: Sequence[Tensor] = _REQUIRED,
        requested_output_names: Sequence[str | bytes] = _REQUIRED,
        model_name: str | bytes = _REQUIRED,
        model_version: int = ANY_VERSION,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: PreferredMemory = _DEFAULT_MEMORY,
        trace: InferenceTrace = _NO_TRACE,
        parameters: dict[str, bool | int | str] | None = None,
    ) -> None:
        given = (inputs, requested_output_names, model_name)
        if any(argument is _REQUIRED for argument in given):
            raise TypeError("'inputs', 'requested_output_names' and 'model_name' must be given")
        self._request_id = text(request_id, "request_id")
        self._correlation_id = _correlation_id(correlation_id)
        self._inputs: list[Tensor] = elements(inputs, Tensor, "inputs")
        self._outputs = frozenset(_output_names(requested_output_names))
        self._model = (text(model_name, "model_name"), integer(model_version, "model_version"))
        self._flags = integer(flags, "flags")
        self._timeout = integer(timeout, "timeout")
        self._preferred_memory = instance_of(preferred_memory, PreferredMemory, "preferred_memory")
        self._trace = instance_of(trace, InferenceTrace, "trace")
        self._parameters: dict[str, Any] = parameter_values(parameters)

    def inputs(self) -> list[Tensor]:
        """The tensors of the request, as a list of the caller's own; optional inputs that the
        client left out are not among them."""
        return list(self._inputs)

    def request_id(self) -> str:
        """The client's id for the request, "" for none."""
        return self._request_id

    def correlation_id(self) -> int | str:
        """The sequence the request belongs to, 0 for none."""
        return self._correlation_id

    def flags(self) -> int:
        """The sequence flags: 1 for the start, 2 for the end, or both."""
        return self._flags

    def set_flags(self, flags: int) -> None:
        """Replace the sequence flags."""
        self._flags = integer(flags, "flags")

    def timeout(self) -> int:
        """How long the request may wait, in microseconds; 0 for no limit."""
        return self._timeout

    def parameters(self) -> str:
        """The parameters as the text of a JSON object."""
        return json.dumps(self._parameters)

    def requested_output_names(self) -> set[str]:
        """The outputs asked for; of a received request, all of the model's where the client named
        none."""
        return set(self._outputs)

    def trace(self) -> InferenceTrace:
        """The trace the request belongs to."""
        return self._trace

    def is_cancelled(self) -> bool:
        """Whether the client gave the request up; False for a request the model made."""
        return False

    def set_release_flags(self, flags: int) -> None:
        """What becomes of the request when `execute` returns: with
        `TRITONSERVER_REQUEST_RELEASE_RESCHEDULE` a received one comes again in a later batch, where
        the model's sequences are iterative.

        Raises TritonModelException for unknown flags.
        """
        if integer(flags, "flags") not in (RELEASE_ALL, RELEASE_RESCHEDULE):
            raise TritonModelException(f"unknown release flags: {flags}")

    def get_response_sender(self) -> InferenceResponseSender:
        """The request's one sender, the same at each call. Raises TritonModelException for a
        request the model made."""
        raise TritonModelException(
            "only a request that 'execute' was given has a response sender, not one that the model "
            "made"
        )

    def exec(self, decoupled: bool = False) -> object:
        """Raises TritonModelException: this version makes no nested calls."""
        raise TritonModelException("BLS is not offered by this version")

    async def async_exec(self, decoupled: bool = False) -> object:
        """Raises TritonModelException: this version makes no nested calls."""
        return self.exec(decoupled)


class ReceivedRequest(InferenceRequest):
    """A request as `execute` gets it, which is answered by way of `reply`."""

    __slots__ = ("_reply", "_sender")

    def __init__(self, reply: Reply) -> None:
        source = reply.source
        sequence = source.sequence
        self._reply = reply
        self._sender: InferenceResponseSender | None = None
        # Not through the base: nothing here needs its checks, and clients may send parameters that
        # models may not, such as floats.
        self._request_id = source.id
        self._correlation_id = sequence.id
        self._inputs = list(reply.tensors)
        self._outputs = reply.names
        self._model = (source.model_name, source.version)
        self._flags = SEQUENCE_START * sequence.start + SEQUENCE_END * sequence.end
        self._timeout = source.timeout_us
        self._preferred_memory = _DEFAULT_MEMORY
        trace = source.trace
        self._trace = _NO_TRACE if trace is None else InferenceTrace(trace.context)
        self._parameters = dict(source.parameters)

    def is_cancelled(self) -> bool:
        """Whether the client gave the request up; asked anew until it did."""
        return self._reply.is_cancelled()

    def set_release_flags(self, flags: int) -> None:
        """As of any request; what is said last counts."""
        super().set_release_flags(flags)
        self._reply.rescheduled = flags == RELEASE_RESCHEDULE

    def get_response_sender(self) -> InferenceResponseSender:
        """The request's one sender, the same at each call."""
        with _MAKING_SENDERS:
            if self._sender is None:
                self._sender = InferenceResponseSender(self._reply)
        return self._sender


def _correlation_id(value: object) -> int | str:
    if value is None:
        raise TypeError("correlation_id must be an int or a str, not None")
    if not isinstance(value, int | str) or (isinstance(value, int) and value < 0):
        raise TritonModelException(
            f"correlation_id must be a non-negative int or a str, found {value!r} of type "
            f"'{type(value)}'"
        )
    return value


def _output_names(names: object) -> list[str]:
    given = elements(names, object, "requested_output_names")
    checked = [text(name, "each output name") for name in given]
    if "" in checked:
        raise TritonModelException("requested_output_names must not contain an empty name")
    return checked
