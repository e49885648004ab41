"""What each RPC does, from message bytes to message bytes; nothing here knows grpc."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from google.protobuf.message import DecodeError, Message

from microkernel import InvalidArgument, MicrokernelError, Server, Unsupported, parse_version
from microkernel_grpc import encode
from microkernel_grpc.decode import decode, parse
from microkernel_grpc.schema import Method, message

Call: TypeAlias = Callable[[bytes], Awaitable[bytes]]
_Typed: TypeAlias = Callable[[Any], Awaitable[Message]]

_SERVING, _NOT_SERVING = 1, 2


class Calls:
    """The RPCs that are served. All errors they raise are `MicrokernelError`s, save for faults of
    this server's own."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._typed: Mapping[str, _Typed] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "RepositoryIndex": self._repository_index,
        }

    def call(self, method: Method) -> Call | None:
        """The coroutine function behind a method, None where the method is not served."""
        if method.name == "ModelInfer":
            return self.infer
        typed = self._check(method) if method.name == "Check" else self._typed.get(method.name)
        return None if typed is None else _from_bytes(method, typed)

    async def infer(self, packed: bytes) -> bytes:
        """ModelInfer. A model that cannot be asked at all is reported before faults of the
        request, as in Triton."""
        infer, raw = parse(packed)
        try:
            request = decode(infer, raw)
        except MicrokernelError:
            await self._check_model(infer)
            raise
        try:
            response = await self._server.infer(request)
        except Unsupported:
            await self._check_model(infer)
            raise
        return encode.encode(response)

    async def _check_model(self, infer: Any) -> None:
        version = parse_version(infer.model_version)
        config = await self._server.model_config(infer.model_name, version)
        if config.decoupled:
            raise Unsupported(
                "ModelInfer RPC doesn't support models with decoupled transaction policy"
            )

    async def _server_live(self, request: Any) -> Message:
        return message("ServerLiveResponse")(live=await self._server.live())

    async def _server_ready(self, request: Any) -> Message:
        return message("ServerReadyResponse")(ready=await self._server.ready())

    async def _model_ready(self, request: Any) -> Message:
        ready = await self._server.model_ready(request.name, parse_version(request.version))
        return message("ModelReadyResponse")(ready=ready)

    async def _server_metadata(self, request: Any) -> Message:
        return encode.server_metadata(await self._server.metadata())

    async def _model_metadata(self, request: Any) -> Message:
        version = parse_version(request.version)
        return encode.model_metadata(await self._server.model_metadata(request.name, version))

    async def _model_config(self, request: Any) -> Message:
        version = parse_version(request.version)
        return encode.model_config(await self._server.model_config(request.name, version))

    async def _repository_index(self, request: Any) -> Message:
        if request.repository_name:
            raise Unsupported("'repository_name' specification is not supported")
        lines = await self._server.repository_index(ready=request.ready)
        return encode.repository_index(lines)

    def _check(self, method: Method) -> _Typed:
        async def check(request: Any) -> Message:
            ready = await self._server.ready()
            return method.response(status=_SERVING if ready else _NOT_SERVING)

        return check


def _from_bytes(method: Method, typed: _Typed) -> Call:
    async def call(packed: bytes) -> bytes:
        request = method.request()
        try:
            request.ParseFromString(packed)
        except DecodeError:
            name = method.request.DESCRIPTOR.name
            raise InvalidArgument(f"the message is not a valid {name}") from None
        return (await typed(request)).SerializeToString()

    return call
