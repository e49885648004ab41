"""`pb_utils.InferenceResponse` and `pb_utils.TritonError`: what a model answers a request with."""

import enum
import json
from collections.abc import Collection, Sequence

from microkernel import InferRequest, InferResponse, Outcome, Parameter, error_from
from microkernel_python.arguments import elements, instance_of, parameter_values, text
from microkernel_python.tensor import Tensor


class ErrorCode(enum.IntEnum):
    """The codes of a `TritonError`, also found on that class."""

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7


class TritonError:
    """An answer that says what went wrong with one request. It is no exception.

    Raises TypeError where `message` is no str or `code` is not one of this class's codes.
    """

    __slots__ = ("_code", "_message")

    UNKNOWN = ErrorCode.UNKNOWN
    INTERNAL = ErrorCode.INTERNAL
    NOT_FOUND = ErrorCode.NOT_FOUND
    INVALID_ARG = ErrorCode.INVALID_ARG
    UNAVAILABLE = ErrorCode.UNAVAILABLE
    UNSUPPORTED = ErrorCode.UNSUPPORTED
    ALREADY_EXISTS = ErrorCode.ALREADY_EXISTS
    CANCELLED = ErrorCode.CANCELLED

    def __init__(self, message: str | bytes, code: ErrorCode = ErrorCode.INTERNAL) -> None:
        self._message = text(message, "message")
        self._code = instance_of(code, ErrorCode, "code")

    def message(self) -> str:
        """The text for the client."""
        return self._message

    def code(self) -> ErrorCode:
        """The kind of error."""
        return self._code


class InferenceResponse:
    """One answer: tensors, or an error in their place.

    `parameters` maps str to bool, int or str. Raises TypeError for arguments of the wrong type, and
    TritonModelException for None among the tensors and for other parameters.
    """

    __slots__ = ("_error", "_outputs", "_parameters")

    def __init__(
        self,
        output_tensors: Sequence[Tensor] = (),
        error: TritonError | None = None,
        parameters: dict[str, bool | int | str] | None = None,
    ) -> None:
        self._outputs = elements(output_tensors, Tensor, "output_tensors")
        self._error = None if error is None else instance_of(error, TritonError, "error")
        self._parameters = parameter_values(parameters)

    def output_tensors(self) -> list[Tensor]:
        """The tensors, as a list of the caller's own."""
        return list(self._outputs)

    def has_error(self) -> bool:
        """Whether this is an error."""
        return self._error is not None

    def error(self) -> TritonError | None:
        """The error, or None."""
        return self._error

    def parameters(self) -> str:
        """The parameters as the text of a JSON object."""
        return json.dumps(self._parameters)

    def values(self) -> dict[str, Parameter]:
        """The parameters themselves."""
        return dict(self._parameters)

    def prune(self, names: Collection[str]) -> None:
        """Drop the tensors of other names, as sending does."""
        self._outputs = [tensor for tensor in self._outputs if tensor.name() in names]


def outcome(source: InferRequest, names: Collection[str], response: InferenceResponse) -> Outcome:
    """What the kernel gets for a request: of the response's outputs those of the wanted `names`, or
    its error.

    The outputs are views on the model's arrays.
    """
    error = response.error()
    if error is not None:
        return error_from(error.code().name, error.message())
    response.prune(names)
    outputs = tuple(tensor.encoded() for tensor in response.output_tensors())
    return InferResponse(source.model_name, source.version, source.id, outputs, response.values())


def fault(returned: object, count: int) -> str:
    """What is wrong with the value that `execute` returned for `count` requests, "" if nothing."""
    if returned is None:
        return ""
    if not isinstance(returned, list):
        return f"Expected a list in the execute return, found type '{type(returned)}'."
    if len(returned) != count:
        return (
            "Number of InferenceResponse objects do not match the number of InferenceRequest "
            f"objects. InferenceRequest(s) size is: {count}, and InferenceResponse(s) size is: "
            f"{len(returned)}"
        )
    for element in returned:
        if element is not None and not isinstance(element, InferenceResponse):
            return (
                "Expected an 'InferenceResponse' object in the list that execute returns, found "
                f"type '{type(element)}'."
            )
    return ""
