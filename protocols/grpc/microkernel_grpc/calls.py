"""What each unary RPC does, from message bytes to message bytes; nothing here knows grpc."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from google.protobuf.message import DecodeError, Message

from microkernel import (
    CudaRegion,
    InvalidArgument,
    Port,
    SystemRegion,
    Unsupported,
    parse_version,
)
from microkernel_grpc import encode
from microkernel_grpc.logs import log_changes, log_settings
from microkernel_grpc.repository import load_parameters, unload_dependents
from microkernel_grpc.schema import Method, message
from microkernel_grpc.statistics import model_statistics
from microkernel_grpc.traces import trace_changes, trace_settings
from microkernel_grpc.wire import MOST_FIELDS, crowded

Call: TypeAlias = Callable[[bytes], Awaitable[bytes]]
_Typed: TypeAlias = Callable[[Any], Awaitable[Message]]

_LOAD = "RepositoryModelLoad"
_LONGEST = 1 << 20
"""The most bytes of a request that holds no more than names and settings."""
_SERVING, _NOT_SERVING = 1, 2


class Calls:
    """The unary RPCs that are served, but for ModelInfer. All errors they raise are
    `MicrokernelError`s, save for faults of this server's own."""

    def __init__(self, server: Port) -> None:
        self._server = server
        self._typed: Mapping[str, _Typed] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            _LOAD: self._load,
            "RepositoryModelUnload": self._unload,
            "SystemSharedMemoryStatus": self._system_regions,
            "SystemSharedMemoryRegister": self._register_system_region,
            "SystemSharedMemoryUnregister": self._unregister_system_region,
            "CudaSharedMemoryStatus": self._cuda_regions,
            "CudaSharedMemoryRegister": self._register_cuda_region,
            "CudaSharedMemoryUnregister": self._unregister_cuda_region,
            "TraceSetting": self._trace_setting,
            "LogSettings": self._log_settings,
        }

    def call(self, method: Method) -> Call:
        """The coroutine function behind a method other than ModelInfer."""
        typed = self._check(method) if method.name == "Check" else self._typed[method.name]
        return _from_bytes(method, typed)

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

    async def _model_statistics(self, request: Any) -> Message:
        version = parse_version(request.version)
        return model_statistics(await self._server.statistics(request.name, version))

    async def _repository_index(self, request: Any) -> Message:
        _refuse_repository(request)
        lines = await self._server.repository_index(ready=request.ready)
        return encode.repository_index(lines)

    async def _load(self, request: Any) -> Message:
        _refuse_repository(request)
        given = load_parameters(request.parameters)
        await self._server.load_model(request.model_name, given.config, given.files)
        return message("RepositoryModelLoadResponse")()

    async def _unload(self, request: Any) -> Message:
        _refuse_repository(request)
        dependents = unload_dependents(request.parameters)
        await self._server.unload_model(request.model_name, unload_dependents=dependents)
        return message("RepositoryModelUnloadResponse")()

    async def _system_regions(self, request: Any) -> Message:
        return encode.system_regions(await self._server.system_shared_memory(request.name))

    async def _register_system_region(self, request: Any) -> Message:
        await self._server.register_system_shared_memory(
            SystemRegion(request.name, request.key, request.byte_size, request.offset)
        )
        return message("SystemSharedMemoryRegisterResponse")()

    async def _unregister_system_region(self, request: Any) -> Message:
        await self._server.unregister_system_shared_memory(request.name)
        return message("SystemSharedMemoryUnregisterResponse")()

    async def _cuda_regions(self, request: Any) -> Message:
        return encode.cuda_regions(await self._server.cuda_shared_memory(request.name))

    async def _register_cuda_region(self, request: Any) -> Message:
        await self._server.register_cuda_shared_memory(
            CudaRegion(request.name, request.raw_handle, request.device_id, request.byte_size)
        )
        return message("CudaSharedMemoryRegisterResponse")()

    async def _unregister_cuda_region(self, request: Any) -> Message:
        await self._server.unregister_cuda_shared_memory(request.name)
        return message("CudaSharedMemoryUnregisterResponse")()

    async def _trace_setting(self, request: Any) -> Message:
        changes = trace_changes(request.settings)
        return trace_settings(await self._server.trace_settings(request.model_name, changes))

    async def _log_settings(self, request: Any) -> Message:
        changes = log_changes(request.settings)
        return log_settings(await self._server.log_settings(changes))

    def _check(self, method: Method) -> _Typed:
        async def check(request: Any) -> Message:
            ready = await self._server.ready()
            return method.response(status=_SERVING if ready else _NOT_SERVING)

        return check


def _refuse_repository(request: Any) -> None:
    if request.repository_name:
        raise Unsupported("'repository_name' specification is not supported")


def _from_bytes(method: Method, typed: _Typed) -> Call:
    async def call(packed: bytes) -> bytes:
        if len(packed) > _LONGEST:
            await _check_long(method, packed)
        request = method.request()
        try:
            request.ParseFromString(packed)
        except DecodeError:
            name = method.request.DESCRIPTOR.name
            raise InvalidArgument(f"the message is not a valid {name}") from None
        return (await typed(request)).SerializeToString()

    return call


async def _check_long(method: Method, packed: bytes) -> None:
    """Refuse what would keep all others waiting while it is parsed. Only to load a model takes many
    bytes, which are those of files."""
    if method.name != _LOAD:
        raise InvalidArgument(
            f"the message has {len(packed)} bytes, expected no more than {_LONGEST}"
        )
    if await asyncio.to_thread(crowded, packed):
        raise InvalidArgument(f"the message has more than {MOST_FIELDS} parameters")
