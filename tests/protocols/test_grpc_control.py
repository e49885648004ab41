"""Statistics, the repository, the log's settings and shared memory over gRPC."""

import asyncio
import multiprocessing.shared_memory
from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from microkernel import (
    Compute,
    CudaRegion,
    Duration,
    InvalidArgument,
    LogChanges,
    LogSettings,
    MicrokernelError,
    ModelConfig,
    ModelStatistics,
    ModelStats,
    Unsupported,
)
from microkernel.shared_memory import SharedMemory
from microkernel.testing import FakeModel, FakeServer

grpc = pytest.importorskip("grpc", reason="the extra 'grpc' is missing")
client = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is missing")

from microkernel_grpc.logs import log_changes, log_settings  # noqa: E402 - after the checks above
from microkernel_grpc.repository import (  # noqa: E402
    LoadParameters,
    load_parameters,
    unload_dependents,
)
from microkernel_grpc.schema import SERVICES, message, methods  # noqa: E402
from microkernel_grpc.statistics import model_statistics  # noqa: E402

HANDLE = bytes(range(64))
NOT_ENABLED = (
    "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
)


def stats() -> ModelStats:
    compute = Compute(Duration(4, 5), Duration(6, 7), Duration(8, 9))
    return ModelStats(
        success=Duration(10, 11),
        fail=Duration(12, 13),
        queue=Duration(14, 15),
        compute=compute,
        batches={8: Compute(Duration(1, 2)), 1: compute},
        inference_count=16,
        execution_count=17,
        last_inference_ms=18,
    )


@pytest.fixture
def server() -> FakeServer:
    config = ModelConfig(name="m", backend="python")
    return FakeServer([FakeModel(config, version=3, stats=stats())])


async def with_client(port: int, use: Callable[[Any], Any]) -> Any:
    def run() -> Any:
        with client.InferenceServerClient(f"127.0.0.1:{port}") as connected:
            return use(connected)

    return await asyncio.to_thread(run)


async def fails(port: int, use: Callable[[Any], Any]) -> str:
    with pytest.raises(client.InferenceServerException) as caught:
        await with_client(port, use)
    return str(caught.value)


async def ask(channel: Any, name: str, **fields: Any) -> Any:
    method = methods()[f"/{SERVICES[0]}/{name}"]
    call = channel.unary_unary(
        f"/{SERVICES[0]}/{name}",
        request_serializer=method.request.SerializeToString,
        response_deserializer=method.response.FromString,
    )
    return await call(method.request(**fields))


def duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}


def test_all_counters_have_their_place() -> None:
    compute = {
        "compute_input": duration(4, 5),
        "compute_infer": duration(6, 7),
        "compute_output": duration(8, 9),
    }
    zero = duration(0, 0)
    small = {"compute_input": duration(1, 2), "compute_infer": zero, "compute_output": zero}
    assert model_statistics([ModelStatistics("m", "3", stats())]) == message(
        "ModelStatisticsResponse"
    )(
        model_stats=[
            {
                "name": "m",
                "version": "3",
                "last_inference": 18,
                "inference_count": 16,
                "execution_count": 17,
                "inference_stats": {
                    "success": duration(10, 11),
                    "fail": duration(12, 13),
                    "queue": duration(14, 15),
                    **compute,
                    "cache_hit": zero,
                    "cache_miss": zero,
                },
                "batch_stats": [{"batch_size": 1, **compute}, {"batch_size": 8, **small}],
            }
        ]
    )


async def test_the_official_client_reads_statistics(grpc_port: int) -> None:
    def use(c: Any) -> None:
        for args in ((), ("m",), ("m", "3")):
            (model,) = c.get_inference_statistics(*args).model_stats
            assert (model.name, model.version, model.inference_stats.success.ns) == ("m", "3", 11)

    await with_client(grpc_port, use)
    assert await fails(grpc_port, lambda c: c.get_inference_statistics("absent")) == (
        "[StatusCode.INVALID_ARGUMENT] requested model 'absent' is not available"
    )


async def test_the_official_client_loads_and_unloads(server: FakeServer, grpc_port: int) -> None:
    config, content = '{"backend": "python", "max_batch_size": 7}', b"\0\xffcode"
    await with_client(grpc_port, lambda c: c.unload_model("m"))
    assert server.unloads == [("m", False)]
    assert await with_client(grpc_port, lambda c: c.is_model_ready("m")) is False
    await with_client(grpc_port, lambda c: c.load_model("m"))
    assert await with_client(grpc_port, lambda c: c.is_model_ready("m"))
    await with_client(
        grpc_port,
        lambda c: c.load_model("m", config=config, files={"file:1/model.py": content}),
    )
    assert server.loads == [("m", None, {}), ("m", config, {"1/model.py": content})]
    assert server.models["m"].config.max_batch_size == 7
    await with_client(grpc_port, lambda c: c.unload_model("m", unload_dependents=True))
    assert server.unloads[1:] == [("m", True)]
    assert await fails(grpc_port, lambda c: c.load_model("absent")) == (
        "[StatusCode.INTERNAL] failed to load 'absent', failed to poll from model repository"
    )


def parameters(**values: dict[str, Any]) -> Mapping[str, Any]:
    request: Any = message("RepositoryModelLoadRequest")(parameters=values)
    found: Mapping[str, Any] = request.parameters
    return found


def test_load_parameters() -> None:
    assert load_parameters({}) == LoadParameters(None, {})
    values: dict[str, dict[str, Any]] = {
        "config": {"string_param": ""},
        "file:1/a": {"bytes_param": b"x"},
        "file:": {"bytes_param": b""},
    }
    given = parameters(**values)
    assert load_parameters(given) == LoadParameters("", {"1/a": b"x", "": b""})


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        (
            "config",
            {"bytes_param": b"{}"},
            "invalid value type for load parameter 'config', expected string_param.",
        ),
        (
            "file:1/a",
            {"string_param": ""},
            "invalid value type for load parameter 'file:1/a', expected bytes_param.",
        ),
        (
            "config",
            {},
            "invalid value type for load parameter 'config', expected string_param.",
        ),
        (
            "speed",
            {"bool_param": True},
            "unrecognized load parameter 'speed', expected 'config' or 'file:<path>'",
        ),
    ],
)
async def test_bad_load_parameters(
    server: FakeServer, channel: Any, key: str, value: dict[str, Any], text: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(channel, "RepositoryModelLoad", model_name="m", parameters={key: value})
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == text
    assert server.loads == []


def test_unload_parameters() -> None:
    assert not unload_dependents({})
    assert not unload_dependents(parameters(other={"int64_param": 1}))
    assert not unload_dependents(parameters(unload_dependents={"bool_param": False}))
    assert unload_dependents(parameters(unload_dependents={"bool_param": True}))
    with pytest.raises(InvalidArgument) as caught:
        unload_dependents(parameters(unload_dependents={"string_param": "true"}))
    assert str(caught.value) == (
        "invalid value type for unload parameter 'unload_dependents', expected bool_param."
    )


async def test_the_official_client_changes_the_log(server: FakeServer, grpc_port: int) -> None:
    before = await with_client(grpc_port, lambda c: c.get_log_settings(as_json=True))
    assert before == {
        "settings": {
            "log_file": {"string_param": ""},
            "log_info": {"bool_param": True},
            "log_warning": {"bool_param": True},
            "log_error": {"bool_param": True},
            "log_verbose_level": {"uint32_param": 0},
            "log_format": {"string_param": "default"},
        }
    }
    wanted = {"log_info": False, "log_verbose_level": 3, "log_format": "ISO8601"}
    after = await with_client(grpc_port, lambda c: c.update_log_settings(wanted))
    assert not after.settings["log_info"].bool_param
    assert after.settings["log_verbose_level"].uint32_param == 3
    assert server.log.settings == LogSettings(
        log_info=False, log_verbose_level=3, log_format="ISO8601"
    )
    text = await fails(grpc_port, lambda c: c.update_log_settings({"log_format": "short"}))
    assert text.startswith("[StatusCode.INVALID_ARGUMENT] invalid argument for")
    assert await fails(grpc_port, lambda c: c.update_log_settings({"log_file": "x"})) == (
        "[StatusCode.UNIMPLEMENTED] log file location can not be updated through network protocol"
    )


def settings(**values: dict[str, Any]) -> Mapping[str, Any]:
    request: Any = message("LogSettingsRequest")(settings=values)
    found: Mapping[str, Any] = request.settings
    return found


@pytest.mark.parametrize(
    ("values", "changes"),
    [
        ({}, None),
        ({"unknown": {"bool_param": True}}, None),
        ({"log_error": {"bool_param": False}}, LogChanges(log_error=False)),
        (
            {"log_warning": {"bool_param": True}, "log_verbose_level": {"uint32_param": 0}},
            LogChanges(log_warning=True, log_verbose_level=0),
        ),
        ({"log_format": {"string_param": "x"}}, LogChanges(log_format="x")),
    ],
)
def test_log_changes(values: dict[str, Any], changes: LogChanges | None) -> None:
    assert log_changes(settings(**values)) == changes


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ({"log_info": {"uint32_param": 1}}, InvalidArgument, "expect boolean for 'log_info'"),
        ({"log_error": {}}, InvalidArgument, "expect boolean for 'log_error'"),
        (
            {"log_verbose_level": {"bool_param": True}},
            InvalidArgument,
            "expect int32 for 'log_verbose_level'",
        ),
        ({"log_format": {"bool_param": True}}, InvalidArgument, "expect string for 'log_format'"),
        (
            {"log_file": {"string_param": ""}},
            Unsupported,
            "log file location can not be updated through network protocol",
        ),
    ],
)
def test_bad_log_changes(values: dict[str, Any], error: type[MicrokernelError], text: str) -> None:
    with pytest.raises(error) as caught:
        log_changes(settings(**values))
    assert str(caught.value) == text


def test_log_settings_as_a_message() -> None:
    found: Any = log_settings(LogSettings("f", False, True, False, 2, "ISO8601"))
    kinds = {
        key: getattr(value, value.WhichOneof("parameter_choice"))
        for key, value in found.settings.items()
    }
    assert kinds == {
        "log_file": "f",
        "log_info": False,
        "log_warning": True,
        "log_error": False,
        "log_verbose_level": 2,
        "log_format": "ISO8601",
    }


@pytest.mark.parametrize("kind", ["system", "cuda"])
async def test_shared_memory_is_switched_off(grpc_port: int, kind: str) -> None:
    def status(c: Any, name: str = "") -> Any:
        return getattr(c, f"get_{kind}_shared_memory_status")(name).regions

    def register(c: Any) -> None:
        if kind == "system":
            c.register_system_shared_memory("r", "/r", 64)
        else:
            c.register_cuda_shared_memory("r", b"AAAA", 0, 64)

    def unregister(c: Any) -> None:
        getattr(c, f"unregister_{kind}_shared_memory")()

    assert not await with_client(grpc_port, status)
    for use in (register, unregister):
        assert await fails(grpc_port, use) == f"[StatusCode.UNIMPLEMENTED] {NOT_ENABLED}"
    assert await fails(grpc_port, lambda c: status(c, "r")) == (
        f"[StatusCode.NOT_FOUND] Unable to find {kind} shared memory region: 'r'"
    )


async def test_regions_of_gpus(server: FakeServer, grpc_port: int, channel: Any) -> None:
    """The driver is asked for nothing but its name here; the kernel's tests do the rest."""
    registered: list[CudaRegion] = []
    forgotten: list[str] = []

    async def register(region: CudaRegion) -> None:
        registered.append(region)

    async def unregister(name: str = "") -> None:
        forgotten.append(name)

    async def status(name: str = "") -> list[CudaRegion]:
        return [region for region in registered if name in ("", region.name)]

    def use(c: Any) -> None:
        c.register_cuda_shared_memory("r", b64encode(HANDLE), 1, 64)
        c.register_cuda_shared_memory("s", b64encode(HANDLE), 0, 8)
        assert sorted(c.get_cuda_shared_memory_status().regions) == ["r", "s"]
        (region,) = c.get_cuda_shared_memory_status("r").regions.values()
        assert (region.name, region.device_id, region.byte_size) == ("r", 1, 64)
        c.unregister_cuda_shared_memory("r")
        c.unregister_cuda_shared_memory()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "register_cuda_shared_memory", register)
        patch.setattr(server, "unregister_cuda_shared_memory", unregister)
        patch.setattr(server, "cuda_shared_memory", status)
        await with_client(grpc_port, use)
    assert registered == [CudaRegion("r", HANDLE, 1, 64), CudaRegion("s", HANDLE, 0, 8)]
    assert forgotten == ["r", ""]


async def test_without_gpus_there_are_no_regions_of_them(
    server: FakeServer, grpc_port: int
) -> None:
    server.memory = SharedMemory(allowed=True, cuda=lambda: None)
    text = await fails(
        grpc_port, lambda c: c.register_cuda_shared_memory("c", b64encode(HANDLE), 0, 64)
    )
    assert text == (
        "[StatusCode.INVALID_ARGUMENT] failed to register CUDA shared memory region: 'c', GPUs not "
        "supported"
    )
    await with_client(grpc_port, lambda c: c.unregister_cuda_shared_memory("c"))


async def test_regions_of_shared_memory(server: FakeServer, grpc_port: int) -> None:
    server.memory = SharedMemory(allowed=True)
    memory = multiprocessing.shared_memory.SharedMemory(create=True, size=8192)

    def use(c: Any) -> None:
        c.register_system_shared_memory("r", f"/{memory.name}", 100, offset=4096)
        for name in ("", "r"):
            (region,) = c.get_system_shared_memory_status(name).regions.items()
            assert region[0] == region[1].name == "r"
            assert (region[1].key, region[1].byte_size) == (f"/{memory.name}", 100)
            assert region[1].offset == 4096
        c.unregister_system_shared_memory("r")
        assert not c.get_system_shared_memory_status().regions

    try:
        await with_client(grpc_port, use)
        text = await fails(
            grpc_port, lambda c: c.register_system_shared_memory("r", memory.name, 8193)
        )
    finally:
        memory.close()
        memory.unlink()
    assert text == (
        "[StatusCode.INVALID_ARGUMENT] failed to register shared memory region 'r': invalid args"
    )
