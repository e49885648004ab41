"""Calling a stranger's code: one batch through an instance, whatever it raises or returns.

The same code runs in a child process and in a thread of the server.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

from microkernel.backend import Instance, Model
from microkernel.batch import Batch
from microkernel.errors import Internal, MicrokernelError, WorkerFailed, error_summary
from microkernel.request import Outcome, Reschedule
from microkernel.tensor import Tensor, element_count
from microkernel.workers.descriptors import Schema

log = logging.getLogger("microkernel.worker")


def run(instance: Instance, batch: Batch, schema: Schema) -> list[Outcome]:
    """One outcome per request of the batch, in order. Raises WorkerFailed where the backend does,
    and nothing else.

    A response keeps the outputs that its request asked for and the configuration knows.
    """
    try:
        outcomes = instance.execute(batch)
        if len(outcomes) != len(batch):
            text = f"the backend gave {len(outcomes)} outcomes for a batch of {len(batch)} requests"
            return [Internal(text)] * len(batch)
        pairs = zip(batch.requests, outcomes, strict=True)
        return [checked(outcome, request.outputs or schema.outputs) for request, outcome in pairs]
    except WorkerFailed:
        raise
    except MicrokernelError as error:
        return [error] * len(batch)
    except BaseException as error:
        log.exception("backend failed")
        return [as_error(error)] * len(batch)


def unload(model: Model) -> None:
    """Unload a model; what it raises is logged, for nobody could do anything about it."""
    try:
        model.unload()
    except BaseException:
        log.exception("unloading failed")


def as_error(error: BaseException) -> MicrokernelError:
    """Any exception as one of ours: what is not ours becomes Internal with its type and text."""
    if isinstance(error, MicrokernelError):
        return error
    return Internal(error_summary(error))


def checked(outcome: Outcome, wanted: Sequence[str]) -> Outcome:
    """The outcome with those outputs that are wanted, or an error where it cannot be one. A request
    that asks for no output in particular wants those of the configuration."""
    if isinstance(outcome, (MicrokernelError, Reschedule)):
        return outcome
    kept = tuple(tensor for tensor in outcome.outputs if tensor.name in wanted)
    for tensor in kept:
        if fault := _fault(tensor):
            return Internal(fault)
    for key, value in outcome.parameters.items():
        if not (_is_parameter(value) and _is_parameter(key)):
            return Internal(
                f"response parameter {key!r} must be a boolean, a number or text, got {value!r}"
            )
    return outcome if len(kept) == len(outcome.outputs) else replace(outcome, outputs=kept)


def _fault(tensor: Tensor) -> str:
    if not _is_flat(tensor.data):
        return (
            f"output '{tensor.name}' should hold a flat buffer of bytes, the backend gave "
            f"{tensor.data!r:.100}"
        )
    size = tensor.datatype.size
    expected = element_count(tensor.shape) * size
    if size and len(tensor.data) != expected:
        return (
            f"output '{tensor.name}' of shape {list(tensor.shape)} should hold {expected} bytes, "
            f"the backend gave {len(tensor.data)}"
        )
    return ""


def _is_parameter(value: object) -> bool:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
        return True
    return isinstance(value, bool | int | float)


def _is_flat(data: object) -> bool:
    if isinstance(data, memoryview):
        return data.format == "B" and data.ndim == 1
    return isinstance(data, bytes | bytearray)
