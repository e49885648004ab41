"""For whom a thread or a task of a worker works, for the lines that it logs meanwhile.

Kept as a context variable, so that it follows a batch into the tasks that the model makes of it.
Only texts are kept: a task that outlives its batch must not keep the batch's memory.
"""

from collections.abc import Sequence
from contextvars import ContextVar

from microkernel.request import InferRequest

_MODEL: ContextVar[tuple[str, int] | None] = ContextVar("model", default=None)
_BATCH: ContextVar[tuple[list[str], list[str]] | None] = ContextVar("batch", default=None)
"""The ids of the requests and those of their traces, None where there are neither."""


def works_for_model(model: str, version: int) -> None:
    """The thread hosts a version of a model from now on."""
    _MODEL.set((model, version))


def works_for(requests: Sequence[InferRequest]) -> None:
    """The thread runs a batch from now on."""
    texts: tuple[list[str], list[str]] | None = None
    for request in requests:  # for every batch, and most requests have neither
        if request.id or request.trace is not None:
            texts = texts or ([], [])
            if request.id:
                texts[0].append(request.id)
            if request.trace is not None:
                texts[1].append(request.trace.shown_id)
    if texts is not None or _BATCH.get() is not None:
        _BATCH.set(texts)


def origin() -> dict[str, object]:
    """The fields of a line that is logged now: `model` and `version` in a thread of the server
    that hosts a model, and of the batch that runs, or last ran, on the thread `request_ids` and
    `trace_ids`, those that there are."""
    fields: dict[str, object] = {}
    if (model := _MODEL.get()) is not None:
        fields["model"], fields["version"] = model
    requests, traces = _BATCH.get() or ((), ())
    if requests:
        fields["request_ids"] = list(requests)
    if traces:
        fields["trace_ids"] = list(traces)
    return fields
