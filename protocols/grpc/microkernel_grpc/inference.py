"""How an infer request is decoded and put to the port, alone or on a stream; nothing here knows
grpc."""

from collections.abc import Sequence
from typing import Any

from microkernel import (
    InferRequest,
    InferResponse,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    NotFound,
    Port,
    Unavailable,
    Unsupported,
    parse_version,
)
from microkernel_grpc.decode import Buffer, decode, parse
from microkernel_grpc.encode import encode
from microkernel_grpc.forward import Forward
from microkernel_grpc.restricted import Metadata

_NOT_ACCEPTED = (
    "Request for unknown model",
    "Exceeds maximum queue size",
    "has stopped accepting new inference requests",
)


def precedes_inference(error: MicrokernelError) -> bool:
    """Whether a request failed before it was accepted, as far as an error of `Port.infer` tells:
    what a model cannot be asked is refused, and some texts say that it cannot be asked now."""
    if isinstance(error, Unavailable):
        return any(text in str(error) for text in _NOT_ACCEPTED)
    return isinstance(error, (NotFound, InvalidArgument, Unsupported))


class Inference:
    """Infer requests on their way to the port. `forward` makes parameters of their metadata."""

    def __init__(self, server: Port, forward: Forward | None) -> None:
        self._server = server
        self._forward = forward

    @property
    def reads_metadata(self) -> bool:
        """Whether requests need their metadata."""
        return self._forward is not None

    async def unary(self, packed: bytes, metadata: Metadata) -> bytes:
        """ModelInfer: a serialised response for a serialised request. Raises what `decode` and
        `Port.infer` raise."""
        infer, raw = parse(packed)
        try:
            request = self._decode(infer, raw, metadata)
        except MicrokernelError:
            await self._refuse_decoupled(infer)
            raise
        try:
            response = await self._server.infer(request)
        except Unsupported:
            await self._refuse_decoupled(infer)
            raise
        return encode(response)

    async def accept(self, infer: Any, raw: Sequence[Buffer], metadata: Metadata) -> InferRequest:
        """The request of a message of a stream. A model that cannot be asked at all is reported
        before faults of the request, as in Triton."""
        try:
            return self._decode(infer, raw, metadata)
        except MicrokernelError:
            await self._config(infer)
            raise

    async def infer(self, request: InferRequest) -> InferResponse:
        """See `Port.infer`."""
        return await self._server.infer(request)

    def _decode(self, infer: Any, raw: Sequence[Buffer], metadata: Metadata) -> InferRequest:
        if self._forward is None:
            return decode(infer, raw)
        return decode(infer, raw, self._forward(metadata))

    async def _refuse_decoupled(self, infer: Any) -> None:
        if (await self._config(infer)).decoupled:
            raise Unsupported(
                "ModelInfer RPC doesn't support models with decoupled transaction policy"
            )

    async def _config(self, infer: Any) -> ModelConfig:
        version = parse_version(infer.model_version)
        return await self._server.model_config(infer.model_name, version)
