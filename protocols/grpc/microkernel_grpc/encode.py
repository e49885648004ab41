"""Answers as messages; nothing here knows grpc."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from microkernel import (
    LATEST,
    CudaRegion,
    DataType,
    InferRequest,
    InferResponse,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    ModelIndex,
    ModelMetadata,
    Parameter,
    ServerMetadata,
    Shape,
    SystemRegion,
    TensorMetadata,
    config_to_json,
)
from microkernel_grpc.schema import message
from microkernel_grpc.wire import Buffer, join_raw, join_streamed

MAX_MESSAGE = 2**31 - 1
_FINAL = "triton_final_response"


def encode(response: InferResponse) -> bytes:
    """A serialised ModelInferResponse; every output is raw, whatever form the inputs had.

    Raises InvalidArgument where it exceeds what gRPC can carry.
    """
    if response.id or response.parameters:
        head, contents = _split(response)
        return join_raw(head.SerializeToString(), contents)
    outputs = tuple([(o.name, o.datatype, tuple(o.shape)) for o in response.outputs])
    return join_raw(_plain(response.model_name, response.version, outputs), _contents(response))


@lru_cache(1024)
def _plain(
    model_name: str, version: int, outputs: tuple[tuple[str, DataType, Shape], ...]
) -> bytes:
    """A serialised ModelInferResponse without raw contents. There are not many that differ."""
    infer: Any = message("ModelInferResponse")(model_name=model_name, model_version=str(version))
    for name, datatype, shape in outputs:
        infer.outputs.add(name=name, datatype=datatype.name, shape=shape)
    packed: bytes = infer.SerializeToString()
    return packed


def encode_streamed(response: InferResponse) -> bytes:
    """A serialised ModelStreamInferResponse with a response, which says whether it is the final
    one. Raises as `encode`."""
    head, contents = _split(response)
    head.parameters[_FINAL].bool_param = response.final
    return join_streamed(head.SerializeToString(), contents)


def refusal(identity: str, error: MicrokernelError) -> bytes:
    """A serialised ModelStreamInferResponse for a request that failed before it was accepted."""
    return _failure(error, {"id": identity})


def failure(asked: InferRequest, error: MicrokernelError, *, final: bool) -> bytes:
    """A serialised ModelStreamInferResponse for an accepted request that failed. The version is the
    one that was asked for, "" for any."""
    return _failure(error, _nothing(asked, final=final))


def empty_final(asked: InferRequest) -> bytes:
    """A serialised ModelStreamInferResponse which says only that there will be no more."""
    response = message("ModelStreamInferResponse")(infer_response=_nothing(asked, final=True))
    return response.SerializeToString()


def _nothing(asked: InferRequest, *, final: bool) -> dict[str, Any]:
    """A response without outputs."""
    return {
        "id": asked.id,
        "model_name": asked.model_name,
        "model_version": "" if asked.version == LATEST else str(asked.version),
        "parameters": {_FINAL: {"bool_param": final}},
    }


def _failure(error: MicrokernelError, response: dict[str, Any]) -> bytes:
    return message("ModelStreamInferResponse")(
        error_message=error_text(error), infer_response=response
    ).SerializeToString()


def error_text(error: MicrokernelError) -> str:
    """The message of an error as valid Unicode, whatever a backend put into it."""
    return str(error).encode("utf-8", "backslashreplace").decode()


def _split(response: InferResponse) -> tuple[Any, Sequence[Buffer]]:
    """A ModelInferResponse without its raw contents, and those."""
    infer: Any = message("ModelInferResponse")(
        model_name=response.model_name, model_version=str(response.version), id=response.id
    )
    for output in response.outputs:
        infer.outputs.add(name=output.name, datatype=output.datatype.name, shape=output.shape)
    for key, value in response.parameters.items():
        _set_parameter(infer.parameters[key], value)
    return infer, _contents(response)


def _contents(response: InferResponse) -> Sequence[Buffer]:
    contents = [output.data for output in response.outputs]
    size = sum(map(len, contents))
    if size > MAX_MESSAGE:
        raise InvalidArgument(
            f"Response has byte size {size} which exceeds gRPC's byte size limit {MAX_MESSAGE}."
        )
    return contents


def _set_parameter(parameter: Any, value: Parameter) -> None:
    match value:
        case bool():
            parameter.bool_param = value
        case int():
            parameter.int64_param = value
        case float():
            parameter.double_param = value
        case _:
            parameter.string_param = value


def server_metadata(about: ServerMetadata) -> Message:
    """The answer of ServerMetadata."""
    return message("ServerMetadataResponse")(
        name=about.name, version=about.version, extensions=about.extensions
    )


def model_metadata(about: ModelMetadata) -> Message:
    """The answer of ModelMetadata."""
    return message("ModelMetadataResponse")(
        name=about.name,
        versions=about.versions,
        platform=about.platform,
        inputs=[_tensor(tensor) for tensor in about.inputs],
        outputs=[_tensor(tensor) for tensor in about.outputs],
    )


def _tensor(about: TensorMetadata) -> dict[str, Any]:
    return {"name": about.name, "datatype": about.datatype, "shape": about.shape}


def model_config(config: ModelConfig) -> Message:
    """The answer of ModelConfig."""
    return ParseDict({"config": config_to_json(config)}, message("ModelConfigResponse")())


def repository_index(lines: Sequence[ModelIndex]) -> Message:
    """The answer of RepositoryIndex."""
    models = [
        {"name": line.name, "version": line.version, "state": line.state, "reason": line.reason}
        for line in lines
    ]
    return message("RepositoryIndexResponse")(models=models)


def cuda_regions(regions: Iterable[CudaRegion]) -> Message:
    """The answer of CudaSharedMemoryStatus."""
    return message("CudaSharedMemoryStatusResponse")(
        regions={
            region.name: {
                "name": region.name,
                "device_id": region.device_id,
                "byte_size": region.byte_size,
            }
            for region in regions
        }
    )


def system_regions(regions: Iterable[SystemRegion]) -> Message:
    """The answer of SystemSharedMemoryStatus."""
    return message("SystemSharedMemoryStatusResponse")(
        regions={region.name: asdict(region) for region in regions}
    )
