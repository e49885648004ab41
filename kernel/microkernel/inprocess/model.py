"""`Model`: one model of a running server."""

from concurrent.futures import Future
from typing import Any

from microkernel.config.codec import config_to_json
from microkernel.documents import statistics_document
from microkernel.errors import InvalidArgument
from microkernel.inprocess.documents import model_document
from microkernel.inprocess.engine import Engine
from microkernel.inprocess.enums import ModelBatchFlag, ModelTxnPropertyFlag
from microkernel.inprocess.iterators import (
    AsyncResponseIterator,
    LoopOutlet,
    ResponseIterator,
    ThreadOutlet,
)
from microkernel.inprocess.loop import wait
from microkernel.inprocess.relay import Outlet, Relay
from microkernel.inprocess.request import InferenceRequest, encode
from microkernel.inprocess.response import InferenceResponse, LetGo, respond
from microkernel.request import LATEST, InferResponse


class Model:
    """A model by name and version, -1 for the highest that is ready. Whether there is one shows
    when it is used: NotFound and Unavailable are raised then. `state` and `reason` are those of
    the repository's index where `Server.models` gave the model, else None."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        version: int = LATEST,
        state: str | None = None,
        reason: str | None = None,
    ) -> None:
        self._engine = engine
        self.name = name
        self.version = version
        self.state = state
        self.reason = reason

    def __repr__(self) -> str:
        return f"Model(name={self.name!r}, version={self.version}, state={self.state!r})"

    def create_request(self, **members: Any) -> InferenceRequest:
        """A request for this model; see `InferenceRequest` for its members."""
        return InferenceRequest(model=self, **members)

    def infer(
        self,
        request: InferenceRequest | None = None,
        raise_on_error: bool = True,
        **members: Any,
    ) -> ResponseIterator:
        """Run a request, made of the members where none is given. Returns when it is accepted; the
        responses are waited for by iterating.

        Raises NotFound and Unavailable for a model that does not serve, and InvalidArgument for a
        request that does not fit it. What goes wrong later is raised by the iterator, or given out
        as a response with an `error` unless `raise_on_error`.
        """
        request = request or self.create_request(**members)
        outlet = ThreadOutlet(request)
        relay, opened = _submit(request, outlet)
        iterator = ResponseIterator(outlet, relay, raise_on_error=raise_on_error)
        wait(opened)  # if a signal interrupts this, dropping the iterator abandons the request
        return iterator

    def async_infer(
        self,
        request: InferenceRequest | None = None,
        raise_on_error: bool = True,
        **members: Any,
    ) -> AsyncResponseIterator:
        """The same without waiting for anything, to be iterated with `async for` on the running
        event loop. A request that is refused raises at the first step."""
        request = request or self.create_request(**members)
        outlet = LoopOutlet(request)
        relay, opened = _submit(request, outlet)
        return AsyncResponseIterator(outlet, relay, opened, raise_on_error=raise_on_error)

    @property
    def engine(self) -> Engine:
        """The server that the model belongs to."""
        return self._engine

    def metadata(self) -> dict[str, Any]:
        """Names, types and shapes of the tensors, with the versions that are ready."""
        return model_document(
            self._engine.call(lambda port: port.model_metadata(self.name, self.version))
        )

    def ready(self) -> bool:
        """Whether the model answers; False for an unknown one."""
        return self._engine.call(lambda port: port.model_ready(self.name, self.version))

    def config(self, config_version: int = 1) -> dict[str, Any]:
        """The configuration in force. There is one form of it, 1."""
        if config_version != 1:
            raise InvalidArgument(f"there is no version {config_version} of configurations, only 1")
        return config_to_json(
            self._engine.call(lambda port: port.model_config(self.name, self.version))
        )

    def statistics(self) -> dict[str, Any]:
        """What the model has done since it was loaded, under `model_stats` for each version."""
        return statistics_document(
            self._engine.call(lambda port: port.statistics(self.name, self.version))
        )

    def batch_properties(self) -> ModelBatchFlag:
        """Whether the first dimension is the batch."""
        batches = self.config()["max_batch_size"] > 0
        return ModelBatchFlag.FIRST_DIM if batches else ModelBatchFlag.UNKNOWN

    def transaction_properties(self) -> ModelTxnPropertyFlag:
        """Whether a request gets one response, or any number."""
        config = self._engine.call(lambda port: port.model_config(self.name, self.version))
        if config.decoupled:
            return ModelTxnPropertyFlag.DECOUPLED
        return ModelTxnPropertyFlag.ONE_TO_ONE


def _submit(request: InferenceRequest, outlet: Outlet) -> tuple[Relay, "Future[None]"]:
    engine = request.model.engine

    def made(response: InferResponse, let_go: LetGo) -> InferenceResponse:
        model = Model(engine, response.model_name, response.version)
        return respond(response, model, let_go)

    return engine.relay(encode(request), outlet, made)
