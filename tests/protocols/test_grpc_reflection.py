"""The reflection service, with gRPC's own client of it and with bare calls."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from hypothesis import given
from hypothesis import strategies as st

from microkernel import InvalidArgument
from microkernel.testing import FakeServer

grpc = pytest.importorskip("grpc", reason="the extra 'grpc' is missing")

from microkernel_grpc.frontend import GrpcFrontend  # noqa: E402 - after the check above
from microkernel_grpc.reflection import answer  # noqa: E402
from microkernel_grpc.schema import REFLECTION, SERVICES, message, methods  # noqa: E402
from microkernel_grpc.settings import GrpcSettings  # noqa: E402
from microkernel_grpc.stream import SHUTTING_DOWN  # noqa: E402

PACKAGE = "grpc.reflection.v1"


def ask(**question: Any) -> Any:
    request = message("ServerReflectionRequest", PACKAGE)(host="here", **question)
    response: Any = message("ServerReflectionResponse", PACKAGE)()
    response.ParseFromString(answer(request.SerializeToString()))
    assert (response.valid_host, response.original_request) == ("here", request)
    return response


def files(response: Any) -> list[str]:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    packed = response.file_descriptor_response.file_descriptor_proto
    return sorted(FileDescriptorProto.FromString(each).name for each in packed)


BOTH = ["grpc_service.proto", "model_config.proto"]


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ({"file_by_filename": "health.proto"}, ["health.proto"]),
        ({"file_by_filename": "grpc_service.proto"}, BOTH),
        ({"file_containing_symbol": "inference.GRPCInferenceService"}, BOTH),
        ({"file_containing_symbol": "inference.GRPCInferenceService.ModelInfer"}, BOTH),
        ({"file_containing_symbol": "inference.ModelInferRequest.InferInputTensor"}, BOTH),
        ({"file_containing_symbol": "inference.DataType"}, ["model_config.proto"]),
        ({"file_containing_symbol": f"{PACKAGE}.ServerReflection"}, ["reflection.proto"]),
        ({"file_containing_symbol": REFLECTION[1]}, ["reflection_v1alpha.proto"]),
    ],
)
def test_files_come_with_those_they_need(question: dict[str, Any], found: list[str]) -> None:
    assert files(ask(**question)) == found


EXTENSION = {"containing_type": "inference.ModelInferRequest", "extension_number": 3}


@pytest.mark.parametrize(
    ("question", "code"),
    [
        ({"file_by_filename": "absent.proto"}, 5),
        ({"file_by_filename": "../grpc_service.proto"}, 5),
        ({"file_containing_symbol": "inference.Absent"}, 5),
        ({"file_containing_symbol": "inference.GRPCInferenceService.Absent"}, 5),
        ({"file_containing_symbol": ""}, 5),
        ({"file_containing_extension": EXTENSION}, 5),
        ({"all_extension_numbers_of_type": "inference.Absent"}, 5),
        ({}, 3),
    ],
)
def test_what_there_is_not(question: dict[str, Any], code: int) -> None:
    response = ask(**question)
    assert response.error_response.error_code == code
    assert response.error_response.error_message


def test_there_are_no_extensions() -> None:
    response = ask(all_extension_numbers_of_type="inference.ModelInferRequest")
    numbers = response.all_extension_numbers_response
    assert (numbers.base_type_name, list(numbers.extension_number)) == (
        "inference.ModelInferRequest",
        [],
    )


@given(st.binary(max_size=60))
def test_any_bytes_are_answered_or_refused(packed: bytes) -> None:
    with contextlib.suppress(InvalidArgument):
        message("ServerReflectionResponse", PACKAGE)().ParseFromString(answer(packed))


async def test_grpc_learns_the_whole_schema(grpc_port: int) -> None:
    reflection = pytest.importorskip(
        "grpc_reflection.v1alpha.proto_reflection_descriptor_database",
        reason="grpcio-reflection, of the group 'dev', is missing",
    )

    def learn() -> tuple[list[str], set[str]]:
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            database = reflection.ProtoReflectionDescriptorDatabase(channel)
            pool = DescriptorPool(database)
            services = list(database.get_services())
            found = {
                f"/{service}/{method.name}"
                for service in services
                for method in pool.FindServiceByName(service).methods
            }
            return services, found

    services, found = await asyncio.to_thread(learn)
    assert services == sorted((*SERVICES, *REFLECTION))
    assert found == set(methods())


@pytest.fixture
async def frontend() -> AsyncIterator[GrpcFrontend]:
    made = GrpcFrontend(FakeServer(), GrpcSettings(address="127.0.0.1", port=0))
    await made.start()
    yield made
    await made.stop(5)


def open_stream(channel: Any, service: str) -> Any:
    return channel.stream_stream(
        f"/{service}/ServerReflectionInfo",
        request_serializer=message("ServerReflectionRequest", PACKAGE).SerializeToString,
        response_deserializer=message("ServerReflectionResponse", PACKAGE).FromString,
    )()


@pytest.mark.parametrize("service", REFLECTION)
async def test_many_questions_on_one_stream(frontend: GrpcFrontend, service: str) -> None:
    question = message("ServerReflectionRequest", PACKAGE)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{frontend.port}") as channel:
        call = open_stream(channel, service)
        for _ in range(3):
            await call.write(question(list_services="*"))
            listed = (await call.read()).list_services_response.service
            assert sorted((*SERVICES, *REFLECTION)) == [each.name for each in listed]
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_stopping_ends_a_stream_that_waits(frontend: GrpcFrontend) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{frontend.port}") as channel:
        call = open_stream(channel, REFLECTION[0])
        await call.write(message("ServerReflectionRequest", PACKAGE)(list_services=""))
        await call.read()
        await asyncio.wait_for(frontend.stop(300), 20)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == SHUTTING_DOWN


async def test_bytes_that_are_no_question(frontend: GrpcFrontend) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{frontend.port}") as channel:
        call = channel.stream_stream(f"/{REFLECTION[0]}/ServerReflectionInfo")()
        await call.write(b"\xff")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
