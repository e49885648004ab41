"""SageMaker's paths: pings, invocations of one model, and the control of many.

SageMaker knows few statuses: what goes wrong is 400, and 507 where memory ran out.
"""

import re
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from microkernel import AlreadyExists, InvalidArgument, Port
from microkernel_http.answers import EndpointCall, json_answer, method_answer, status_answer
from microkernel_http.body import read
from microkernel_http.bounds import Bounds
from microkernel_http.decode import Limits
from microkernel_http.encode import JSON
from microkernel_http.exchange import address, restate
from microkernel_http.framing import SizedType
from microkernel_http.generation import Generation
from microkernel_http.infer import InferEndpoint
from microkernel_http.listener import Listener, Place
from microkernel_http.queries import Queries
from microkernel_http.restricted import restrictions
from microkernel_http.routes import Endpoint, Route
from microkernel_http.sagemaker.routes import Action, Call, find
from microkernel_http.sagemaker.settings import Container, SageMakerSettings
from microkernel_http.sagemaker.shelf import Shelf, load_request
from microkernel_http.served import Served, error_type, forbidden, settled

_OUT_OF_MEMORY = re.compile(
    r"out[ _]?of[ _]?memory|\bOOM\b|MemoryError|bad_alloc|ALLOC_FAILED|failed to allocate memory"
    r"|(CUDNN|CUBLAS)_STATUS_NOT_INITIALIZED|no space left on device",
    re.IGNORECASE,
)


class SageMakerFrontend(Served):
    """Serves what SageMaker asks of a container."""

    def __init__(
        self, server: Port, settings: SageMakerSettings, environment: Mapping[str, str]
    ) -> None:
        """Raises InvalidArgument naming the flag or the variable for what cannot be right."""
        allowed = settings.allow_sagemaker
        listener = Listener(
            self._handle,
            Place(settings.address, settings.port),
            Bounds.of(settings),
            access_log=settings.access_log,
        )
        super().__init__("Sagemaker HTTPService", listener, allowed=allowed)
        self._container = Container.of(environment if allowed else {})
        self._restrictions = restrictions(settings.restricted_api)
        self._shelf = Shelf(server)
        limits = Limits(json_size=settings.max_input_size)
        self._endpoints: Mapping[Endpoint, EndpointCall] = {
            Endpoint.INFER: InferEndpoint(server, limits, framing=SizedType("sagemaker-triton")),
            **Generation(server, limits).endpoints(),
            **Queries(server).endpoints(),
        }
        self._actions: Mapping[Action, tuple[Endpoint, _Answering]] = {
            Action.PING: (self._container.ping, self._ping),
            Action.INVOCATION: (self._container.inference, self._invocation),
            Action.INVOKE: (Endpoint.INFER, self._invoke),
            Action.LIST: (Endpoint.REPOSITORY_INDEX, self._list),
            Action.DESCRIBE: (Endpoint.REPOSITORY_INDEX, self._describe),
            Action.LOAD: (Endpoint.LOAD, self._load),
            Action.UNLOAD: (Endpoint.UNLOAD, self._unload),
        }

    async def stop(self, timeout: float) -> None:
        """See `Frontend.stop`."""
        await super().stop(timeout)
        self._shelf.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        call = find(request.method, request.raw_path)
        if call is None:
            return web.Response(status=400)
        if call.action is None:
            return method_answer(call.methods)
        address(request, call.model)
        endpoint, answering = self._actions[call.action]
        refusal = forbidden(self._restrictions, endpoint, request.headers)
        if refusal is not None:
            return refusal
        return await settled(answering(call, request), request, error_type(endpoint))

    async def _ping(self, call: Call, request: web.BaseRequest) -> web.StreamResponse:
        return await self._as_v2(Route(self._container.ping, allowed=True), request)

    async def _invocation(self, call: Call, request: web.BaseRequest) -> web.StreamResponse:
        restate(request, status_of)
        model = self._container.model
        if not model:
            raise InvalidArgument("SAGEMAKER_TRITON_DEFAULT_MODEL_NAME must name the model")
        address(request, model)
        return await self._as_v2(Route(self._container.inference, True, model), request)

    async def _invoke(self, call: Call, request: web.BaseRequest) -> web.StreamResponse:
        if self._shelf.url(call.model) is None:
            return _unknown(call.model)
        restate(request, status_of)
        return await self._as_v2(Route(Endpoint.INFER, True, call.model), request)

    async def _as_v2(self, route: Route, request: web.BaseRequest) -> web.StreamResponse:
        return await self._endpoints[route.endpoint](route, request)

    async def _list(self, call: Call, request: web.BaseRequest) -> web.StreamResponse:
        found = await self._shelf.ready()
        return json_answer({"models": [_described(name, url) for name, url in found.items()]})

    async def _describe(self, call: Call, request: web.BaseRequest) -> web.StreamResponse:
        url = self._shelf.url(call.model)
        return _unknown(call.model) if url is None else json_answer(_described(call.model, url))

    async def _load(self, call: Call, request: web.BaseRequest) -> web.StreamResponse:
        restate(request, status_of)
        try:
            name, url = load_request(await read(request))
            address(request, name)
            await self._shelf.load(name, url)
        except AlreadyExists as error:
            return status_answer(409, str(error), JSON)
        return web.Response()

    async def _unload(self, call: Call, request: web.BaseRequest) -> web.StreamResponse:
        if self._shelf.url(call.model) is None:
            return _unknown(call.model)
        restate(request, status_of)
        await self._shelf.unload(call.model)
        return web.Response()


_Answering = Callable[[Call, web.BaseRequest], Awaitable[web.StreamResponse]]


def _described(name: str, url: str) -> dict[str, str]:
    return {"modelName": name, "modelUrl": url}


def _unknown(name: str) -> web.Response:
    return status_answer(404, f"model '{name}' is not loaded", JSON)


def status_of(answer: web.StreamResponse) -> int:
    """The status that SageMaker is sent for an answer. One that says which encodings are accepted
    refuses that of the request."""
    if answer.status < 400 or answer.status == 409:
        return answer.status
    if "Accept-Encoding" in answer.headers:
        return 415
    body = answer.body if isinstance(answer, web.Response) else None
    told = body.decode("utf-8", "replace") if isinstance(body, bytes) else ""
    return 507 if _OUT_OF_MEMORY.search(told) else 400
