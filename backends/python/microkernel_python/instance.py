"""One instance of a model: the object of its class, and the batches it executes."""

import inspect
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

from microkernel import (
    Batch,
    InferRequest,
    Instance,
    Internal,
    MicrokernelError,
    ModelConfig,
    Outcome,
    Placement,
    config_to_json,
)
from microkernel_python.failure import describe
from microkernel_python.request import ReceivedRequest
from microkernel_python.response import InferenceResponse, outcome

if TYPE_CHECKING:
    from microkernel_python.loop import LoopThread

P = ParamSpec("P")
T = TypeVar("T")
Answers: TypeAlias = Sequence[InferenceResponse | None]
Admitted: TypeAlias = ReceivedRequest | MicrokernelError

_LOG = logging.getLogger("microkernel.model")


def arguments(config: ModelConfig, folder: Path, placement: Placement) -> dict[str, str]:
    """What `initialize` is given: exactly seven entries, all of them text."""
    absolute = folder.absolute()
    return {
        "model_config": json.dumps(config_to_json(config)),
        "model_instance_kind": placement.kind.removeprefix("KIND_"),
        "model_instance_name": placement.name,
        "model_instance_device_id": str(placement.device_id),
        "model_repository": str(absolute.parent),
        "model_version": absolute.name,
        "model_name": config.name,
    }


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


class PythonInstance(Instance):
    """Runs a model's `execute`.

    Its constructor makes the model's object and calls `initialize`; it raises Internal with the
    model's exception.
    """

    def __init__(
        self, model: type[object], config: ModelConfig, folder: Path, placement: Placement
    ) -> None:
        self._name = placement.name
        self._outputs = tuple(output.name for output in config.output)
        self._loop: LoopThread | None = None
        try:
            self._model: Any = model()
            if hasattr(self._model, "initialize"):
                self._model.initialize(arguments(config, folder, placement))
        except (Exception, SystemExit) as error:
            raise Internal(describe(error)) from error

    def execute(self, batch: Batch) -> list[Outcome]:
        """Run the model on the requests whose inputs are sound; each of the others gets its own
        error. What the model raises or returns amiss fails the whole batch as Internal."""
        admitted = [self._admit(request) for request in batch]
        requests = [entry for entry in admitted if isinstance(entry, ReceivedRequest)]
        outcomes = iter(self._outcomes(requests)) if requests else iter(())
        return [
            next(outcomes) if isinstance(entry, ReceivedRequest) else entry for entry in admitted
        ]

    def close(self) -> None:
        """Stop the event loop and call the model's `finalize`; what that raises is only logged."""
        if self._loop is not None:
            self._loop.stop()
        if not hasattr(self._model, "finalize"):
            return
        try:
            self._model.finalize()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - unloading goes on
            _LOG.info("finalize of '%s' failed: %s", self._name, describe(error))

    def _admit(self, request: InferRequest) -> Admitted:
        try:
            return ReceivedRequest(request, self._outputs)
        except MicrokernelError as error:
            return error

    def _outcomes(self, requests: list[ReceivedRequest]) -> list[Outcome]:
        if not hasattr(self._model, "execute"):
            raise self._failure("the model's class does not implement the 'execute' method")
        try:
            returned = self._guarded(self._call, requests)
            problem = fault(returned, len(requests))
            if problem:
                raise self._failure(problem)
            answers = [None] * len(requests) if returned is None else returned
            return self._guarded(self._encoded, requests, answers)
        finally:
            for request in requests:
                request.release()

    def _guarded(self, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call what runs code of the model; what it raises becomes Internal."""
        try:
            return action(*args, **kwargs)
        except (Exception, SystemExit) as error:
            _LOG.error("execute of '%s' failed", self._name, exc_info=error)
            raise self._failure(describe(error)) from error

    def _call(self, requests: list[ReceivedRequest]) -> Any:
        returned = self._model.execute(list(requests))
        return self._event_loop().run(returned) if inspect.iscoroutine(returned) else returned

    def _encoded(self, requests: list[ReceivedRequest], answers: Answers) -> list[Outcome]:
        return [
            self._unanswered() if answer is None else outcome(request, answer)
            for request, answer in zip(requests, answers, strict=True)
        ]

    def _unanswered(self) -> Internal:
        return self._failure(
            "execute returned no response for the request, and response senders are not offered "
            "by this version"
        )

    def _event_loop(self) -> "LoopThread":
        """The instance's loop, made when first needed; most models need neither it nor asyncio."""
        from microkernel_python.loop import LoopThread  # noqa: PLC0415 - imports asyncio

        if self._loop is None:
            self._loop = LoopThread(f"{self._name} loop")
        return self._loop

    def _failure(self, reason: str) -> Internal:
        return Internal(
            f"Failed to process the request(s) for model '{self._name}', message: {reason}"
        )
