"""The reflection service: the schema for clients that have none; nothing here knows grpc."""

import asyncio
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError

from microkernel import InvalidArgument, Unavailable
from microkernel_grpc.restricted import Metadata
from microkernel_grpc.schema import REFLECTION, SERVICES, message, pool
from microkernel_grpc.stream import SHUTTING_DOWN, Read, Write

_PACKAGE = "grpc.reflection.v1"
_NOT_FOUND, _INVALID_ARGUMENT = 5, 3


class Reflections:
    """The streams of questions that are open."""

    def __init__(self) -> None:
        self._reading: set[asyncio.Task[bytes | None]] = set()
        self._stopping = False

    async def serve(self, read: Read, write: Write, metadata: Metadata) -> None:
        """Answer one question after the other until the client asks no more. Raises
        InvalidArgument for what is no question, Unavailable once told to stop, and what `write`
        raises."""
        while (packed := await self._next(read)) is not None:
            await write(answer(packed))

    def stop(self) -> None:
        """End the streams that wait for a question."""
        self._stopping = True
        for reading in self._reading:
            reading.cancel()

    async def _next(self, read: Read) -> bytes | None:
        reading = asyncio.ensure_future(_read(read))
        self._reading.add(reading)
        try:
            if self._stopping:
                raise Unavailable(SHUTTING_DOWN)
            return await reading
        except asyncio.CancelledError:
            if self._stopping:
                raise Unavailable(SHUTTING_DOWN) from None
            raise
        finally:
            reading.cancel()
            self._reading.discard(reading)


async def _read(read: Read) -> bytes | None:
    return await read()


def answer(packed: bytes) -> bytes:
    """The serialised answer to a serialised question. Both packages of the service have the same
    messages. Raises InvalidArgument for what is no question."""
    request: Any = message("ServerReflectionRequest", _PACKAGE)()
    try:
        request.ParseFromString(packed)
    except DecodeError:
        raise InvalidArgument("the message is not a valid ServerReflectionRequest") from None
    try:
        found = _found(request)
    except KeyError:
        text = "the server knows nothing of that name"
        found = {"error_response": {"error_code": _NOT_FOUND, "error_message": text}}
    response = message("ServerReflectionResponse", _PACKAGE)
    return response(valid_host=request.host, original_request=request, **found).SerializeToString()


def _found(request: Any) -> dict[str, Any]:
    """The part of the answer that fits the question. Raises KeyError for what there is not."""
    asked = request.WhichOneof("message_request")
    match asked:
        case "file_by_filename":
            return _files(pool().FindFileByName(request.file_by_filename))
        case "file_containing_symbol":
            return _files(_file_of(request.file_containing_symbol))
        case "file_containing_extension":
            raise KeyError  # the schema has none
        case "all_extension_numbers_of_type":
            name = pool().FindMessageTypeByName(request.all_extension_numbers_of_type).full_name
            return {"all_extension_numbers_response": {"base_type_name": name}}
        case "list_services":
            services = [{"name": name} for name in sorted((*SERVICES, *REFLECTION))]
            return {"list_services_response": {"service": services}}
        case _:
            text = "the request asks nothing"
            return {"error_response": {"error_code": _INVALID_ARGUMENT, "error_message": text}}


def _file_of(symbol: str) -> FileDescriptor:
    try:
        return pool().FindFileContainingSymbol(symbol)
    except KeyError:  # the pool does not count methods among its symbols
        service, _, name = symbol.rpartition(".")
        found = pool().FindServiceByName(service)
        return found.methods_by_name[name].containing_service.file


def _files(wanted: FileDescriptor) -> dict[str, Any]:
    """A file and those that it needs."""
    needed: dict[str, FileDescriptor] = {}
    remaining = [wanted]
    while remaining:
        file = remaining.pop()
        needed[file.name] = file
        remaining += [each for each in file.dependencies if each.name not in needed]
    packed = [file.serialized_pb for file in needed.values()]
    return {"file_descriptor_response": {"file_descriptor_proto": packed}}
