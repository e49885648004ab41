"""One instance of a model: the object of its class, and the batches it executes."""

import inspect
import json
import logging
import threading
import traceback
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

from microkernel import (
    RESCHEDULE,
    Batch,
    Instance,
    Internal,
    MicrokernelError,
    ModelConfig,
    Outcome,
    Placement,
    Sender,
    config_to_json,
    model_outputs,
)
from microkernel_python.abandonment import Abandonments
from microkernel_python.errors import TritonModelException
from microkernel_python.failure import describe, failed
from microkernel_python.reply import Reply, SingleReply, StreamReply, captured
from microkernel_python.request import ReceivedRequest
from microkernel_python.response import InferenceResponse, fault

if TYPE_CHECKING:
    from microkernel_python.loop import LoopThread

P = ParamSpec("P")
T = TypeVar("T")
Answers: TypeAlias = Sequence[InferenceResponse | None]

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


class PythonInstance(Instance):
    """Runs a model's `execute`.

    Its constructor makes the model's object and calls `initialize`; it raises Internal with the
    model's exception.
    """

    def __init__(
        self, model: type[object], config: ModelConfig, folder: Path, placement: Placement
    ) -> None:
        self._name = placement.name
        self._decoupled = config.decoupled
        self._outputs = tuple(output.name for output in model_outputs(config))
        self._abandonments = Abandonments(placement.name)
        self._loop: LoopThread | None = None
        self._making = threading.Lock()
        try:
            self._model: Any = model()
            if hasattr(self._model, "initialize"):
                self._model.initialize(arguments(config, folder, placement))
        except BaseException as error:
            raise Internal(describe(error)) from error

    def execute(self, batch: Batch) -> list[Outcome]:
        """Run the model on the requests whose inputs are sound; each of the others gets its own
        error. Returns when every request is answered, by what the model returns or through its
        response sender, or is to come again. What the model raises or returns amiss fails as
        Internal every request that it has not answered by then."""
        admitted: list[SingleReply | MicrokernelError] = []
        for index in range(len(batch)):
            try:
                admitted.append(SingleReply(batch, index, self._outputs))
            except MicrokernelError as error:
                admitted.append(error)
        replies = [entry for entry in admitted if isinstance(entry, SingleReply)]
        outcomes = iter(self._outcomes(replies)) if replies else iter(())
        return [next(outcomes) if isinstance(entry, SingleReply) else entry for entry in admitted]

    def stream(self, batch: Batch, senders: Sequence[Sender]) -> None:
        """Run a decoupled model, whose responses go to `senders` as they come. A request whose
        inputs are unsound is answered with its own error, and one that the model lets go of without
        a final response with Internal. Raises Internal for what the model raises and for a result
        other than None."""
        if not self._decoupled:
            super().stream(batch, senders)
            return
        self._abandonments.watch()
        replies: list[StreamReply] = []
        for request, sender in zip(batch, senders, strict=True):
            try:
                reply = StreamReply(request, self._outputs, sender, self._abandonments.report)
            except MicrokernelError as error:
                sender.send(error, final=True)
            else:
                replies.append(reply)
        if replies:
            self._begin(replies)

    def readiness(self) -> Callable[[], bool] | None:
        """The model's `is_ready`, None where it has none."""
        return self._is_ready if hasattr(self._model, "is_ready") else None

    def _is_ready(self) -> bool:
        said = self._model.is_ready()
        if inspect.iscoroutine(said):
            said = self._event_loop().run(said)
        if isinstance(said, bool):
            return said
        raise TypeError(f"is_ready of '{self._name}' must return a bool, got {type(said)}")

    def close(self) -> None:
        """Stop the event loop and call the model's `finalize`; what that raises is only logged."""
        if self._loop is not None:
            self._loop.stop()
        try:
            if hasattr(self._model, "finalize"):
                self._model.finalize()
        except BaseException as error:  # noqa: BLE001 - unloading goes on
            _LOG.info("finalize of '%s' failed: %s", self._name, describe(error))
        self._abandonments.stop()

    def _begin(self, replies: list[StreamReply]) -> None:
        try:
            returned = self._run(replies)
            if inspect.iscoroutine(returned):
                finished = _released_after(returned, replies)
                self._event_loop().begin(finished, partial(self._failed_later, replies))
            elif returned is not None:
                raise self._failure(
                    f"Python model '{self._name}' is using the decoupled mode and the execute "
                    "function must return None."
                )
            else:
                _release(replies)
        except Internal:
            for reply in replies:
                reply.abort()
            raise

    def _outcomes(self, replies: list[SingleReply]) -> list[Outcome]:
        try:
            return self._answers(replies)
        except Internal as failure:
            for reply in replies:
                reply.abort()
            if all(reply.outcome is None for reply in replies):
                raise
            # What was sent stands.
            return [failure if reply.outcome is None else reply.outcome for reply in replies]
        finally:
            for reply in replies:
                reply.release()

    def _answers(self, replies: list[SingleReply]) -> list[Outcome]:
        returned = self._run(replies)
        if inspect.iscoroutine(returned):
            returned = self._guarded(self._event_loop().run, returned)
        problem = fault(returned, len(replies)) or _answered_again(replies, returned)
        if problem:
            raise self._failure(problem)
        lent = [reply for reply in replies if reply.lent]
        if not lent and returned is not None and None not in returned:
            return self._guarded(_encoded, replies, returned)
        return self._mixed(replies, [None] * len(replies) if returned is None else returned)

    def _mixed(self, replies: list[SingleReply], responses: Answers) -> list[Outcome]:
        """The outcomes where some responses are sent, not returned."""
        self._claim(replies, responses)
        pairs = list(zip(replies, responses, strict=True))
        returned = [reply for reply, response in pairs if response is not None]
        given = [response for response in responses if response is not None]
        encoded = self._guarded(_encoded, returned, given)
        if any(reply.awaited for reply in replies):
            encoded = [captured(outcome) for outcome in encoded]
        outcomes = iter(encoded)
        return [
            self._sent(reply) if response is None else next(outcomes) for reply, response in pairs
        ]

    def _run(self, replies: Sequence[Reply]) -> Any:
        if not hasattr(self._model, "execute"):
            raise self._failure("the model's class does not implement the 'execute' method")
        return self._guarded(self._call, replies)

    def _guarded(self, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call what runs code of the model; what it raises becomes Internal."""
        try:
            return action(*args, **kwargs)
        except BaseException as error:
            _LOG.error("execute of '%s' failed", self._name, exc_info=error)
            raise self._failure(describe(error)) from error

    def _call(self, replies: Sequence[Reply]) -> Any:
        # Nothing else may hold the requests: a dropped one is noticed by its end.
        requests = [ReceivedRequest(reply) for reply in replies]
        if self._decoupled:
            for request in requests:
                request.get_response_sender()
        return self._model.execute(requests)

    def _failed_later(self, replies: list[StreamReply], error: BaseException) -> None:
        """The coroutine of a decoupled model ended with an error. What it started may still answer,
        so only requests that it let go of are finished, when that is noticed."""
        _LOG.error("execute of '%s' failed", self._name, exc_info=error)
        reason = describe(error)
        for reply in replies:
            reply.reason = reason
            if reply.rescheduled:  # and perhaps let go of, which nobody will notice
                reply.finish(self._failure(reason))
        traceback.clear_frames(error.__traceback__)  # they hold the requests

    def _claim(self, replies: list[SingleReply], responses: Answers) -> None:
        try:
            for reply, response in zip(replies, responses, strict=True):
                if response is not None:
                    reply.claim()
        except TritonModelException as error:
            raise self._failure(str(error)) from error

    def _sent(self, reply: SingleReply) -> Outcome:
        if reply.rescheduled:
            reply.abort()
            return reply.outcome or RESCHEDULE
        answer = reply.wait()
        if answer is not None:
            return answer
        reason = "execute returned no response for the request, and none was sent"
        _LOG.error("%srequest to '%s': %s", reply.source.tag(), self._name, reason)
        return self._failure(reason)

    def _event_loop(self) -> "LoopThread":
        """The instance's loop, made when first needed; most models need neither it nor asyncio."""
        from microkernel_python.loop import LoopThread  # noqa: PLC0415 - imports asyncio

        with self._making:  # `is_ready` may come while `execute` runs
            if self._loop is None:
                self._loop = LoopThread(f"{self._name} loop")
            return self._loop

    def _failure(self, reason: str) -> Internal:
        return Internal(failed(self._name, reason))


def _release(replies: Sequence[StreamReply]) -> None:
    """Let those requests come again for which the model asked that."""
    for reply in replies:
        if reply.rescheduled:
            reply.finish(RESCHEDULE)


async def _released_after(running: Awaitable[object], replies: Sequence[StreamReply]) -> None:
    await running
    _release(replies)


def _answered_again(replies: Sequence[SingleReply], returned: Answers | None) -> str:
    """What is wrong where a request is both answered and rescheduled; "" if nothing. An answer that
    is an error takes the place of rescheduling."""
    for reply, response in zip(replies, returned or (), strict=False):
        if reply.rescheduled and response is not None and not response.has_error():
            return (
                "Expected a None object in the list that execute returns for a rescheduled request."
            )
    return ""


def _encoded(replies: list[SingleReply], responses: list[InferenceResponse]) -> list[Outcome]:
    pairs = zip(replies, responses, strict=True)
    return [reply.encoded(response) for reply, response in pairs]
