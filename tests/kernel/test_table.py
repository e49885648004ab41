"""Which models there are, in the table and through the server."""

from dataclasses import replace
from typing import Any

import pytest

from microkernel import (
    InferRequest,
    InferResponse,
    InvalidArgument,
    LogSettings,
    ModelConfig,
    ModelIndex,
    ModelInput,
    ModelOutput,
    NotFound,
    ServerMetadata,
    TensorMetadata,
    Unavailable,
)
from microkernel.log import LogControl
from microkernel.models.catalogue import Catalogue
from microkernel.models.loader import Loader, LoaderSettings
from microkernel.models.table import UNLOADED, ModelTable
from microkernel.server import EXTENSIONS, KernelServer
from microkernel.settings import ServerSettings
from microkernel.stats import ModelStats
from microkernel.workers.readiness import Readiness

CONFIG = ModelConfig(
    name="m",
    backend="python",
    platform="",
    max_batch_size=8,
    input=(ModelInput("A", "TYPE_STRING", dims=(-1,)), ModelInput("B", "TYPE_FP32", dims=())),
    output=(ModelOutput("Y", "TYPE_INT64", (2, -1)),),
    metric_tags={"team": "red"},
)


class Loaded:
    """As much of a loaded version as the table and the server look at."""

    def __init__(self, version: int, config: ModelConfig = CONFIG) -> None:
        self.version = version
        self.config = config
        self.ready = True
        self.stats = ModelStats()

    def readiness(self) -> tuple[Readiness, ...]:
        return ()

    async def infer(self, request: InferRequest) -> InferResponse:
        return InferResponse(self.config.name, self.version, request.id, ())


def table_of(*versions: int, name: str = "m") -> tuple[ModelTable, dict[int, Any]]:
    """A table with one model, and its loaded versions."""
    table, loaded = ModelTable(), {}
    for version in versions:
        loaded[version] = put(table, name, version)
    return table, loaded


def put(table: ModelTable, name: str, version: int) -> Any:
    model: Any = Loaded(version, replace(CONFIG, name=name))
    table.loading(name, [version])
    table.swap(name, {**serving(table, name), version: model})
    return model


def serving(table: ModelTable, name: str) -> dict[int, Any]:
    """The versions of a model that serve."""
    return {version: table.find(name, version) for version in table.ready_versions(name)}


def fail(table: ModelTable, name: str, version: int, reason: str) -> None:
    table.loading(name, [version])
    table.failed(name, {version: reason})


def retire(table: ModelTable, name: str, version: int) -> None:
    """Have a version take no new requests."""
    table.swap(name, {v: m for v, m in serving(table, name).items() if v != version})


def test_the_latest_version_is_the_highest_that_is_ready() -> None:
    table, loaded = table_of(1, 10, 2)
    assert table.find("m") is loaded[10]
    assert table.find("m", 2) is loaded[2]
    retire(table, "m", 10)
    assert table.find("m") is loaded[2]
    assert table.ready_versions("m") == [1, 2]


UNKNOWN = "Request for unknown model: "


@pytest.mark.parametrize(
    ("name", "version", "kind", "text"),
    [
        ("x", -1, NotFound, "'x' is not found"),
        ("x", 3, NotFound, "'x' is not found"),
        ("m", 9, NotFound, "'m' version 9 is not found"),
        ("m", 2, Unavailable, "'m' version 2 is not at ready state"),
        ("m", 3, Unavailable, "'m' version 3 is not at ready state"),
        ("m", 4, Unavailable, "'m' version 4 is not at ready state"),
        ("m", 5, Unavailable, "'m' version 5 is not at ready state"),
        ("none ready", -1, NotFound, "'none ready' has no available versions"),
        ("refused", -1, NotFound, "'refused' is not found"),
        ("refused", 1, NotFound, "'refused' is not found"),
    ],
)
def test_what_does_not_serve_is_told_in_triton_s_words(
    name: str, version: int, kind: type[Exception], text: str
) -> None:
    table, loaded = table_of(1, 4, 5)
    fail(table, "m", 3, "Internal: it broke")
    table.loading("m", [2])
    retire(table, "m", 4)
    loaded[5].ready = False
    table.loading("none ready", [1])
    table.refuse("refused", "Invalid argument: no backend")
    with pytest.raises(kind) as caught:
        table.find(name, version)
    assert (type(caught.value), str(caught.value)) == (kind, UNKNOWN + text)
    assert not table.ready(name, version)


def test_the_index_lists_every_version_in_order() -> None:
    table, loaded = table_of(10, 2, name="b")
    put(table, "a", 1)
    fail(table, "b", 1, "Internal: it broke")
    table.loading("b", [3])
    retire(table, "a", 1)
    table.refuse("c", "Invalid argument: no backend")
    loaded[10].ready = False
    assert table.index(ready=False) == [
        ModelIndex("a", "1", "UNLOADING", ""),
        ModelIndex("b", "1", "UNAVAILABLE", "Internal: it broke"),
        ModelIndex("b", "2", "READY", ""),
        ModelIndex("b", "3", "LOADING", ""),
        ModelIndex("b", "10", "UNAVAILABLE", "no instance is alive"),
        ModelIndex("c", "", "UNAVAILABLE", "Invalid argument: no backend"),
    ]
    assert table.index(ready=True) == [ModelIndex("b", "2", "READY", "")]
    assert [m.version for m in table.loaded_versions()] == [1, 2, 10]


def loading(table: ModelTable) -> None:
    table.loading("m", [2])


def broken(table: ModelTable) -> None:
    fail(table, "m", 2, "Internal: it broke")


def unloaded(table: ModelTable) -> None:
    fail(table, "m", 2, UNLOADED)


def refused(table: ModelTable) -> None:
    table.refuse("other", "no backend")


def dead(table: ModelTable) -> None:
    put(table, "m", 2).ready = False


def nothing(table: ModelTable) -> None:
    """Leave the table as it is."""


@pytest.mark.parametrize(
    ("change", "ready", "failures"),
    [
        (nothing, True, []),
        (loading, False, []),
        (broken, False, ["m"]),
        (unloaded, True, []),
        (refused, False, ["other"]),
        (dead, False, []),
    ],
)
async def test_strict_readiness_and_failures(
    change: Any, failures: list[str], *, ready: bool
) -> None:
    table, _ = table_of(1)
    change(table)
    assert table.all_ready() is ready
    assert table.failures() == failures
    for strict in (True, False):
        server = new_server(table, strict=strict)
        assert not await server.ready()
        server.started()
        assert await server.ready() is (ready or not strict)


def new_server(table: ModelTable, *, strict: bool = True) -> KernelServer:
    settings = ServerSettings(
        strict_readiness=strict, allow_cpu_metrics=False, allow_gpu_metrics=False
    )
    catalogue = Catalogue([], Loader([], LoaderSettings()), table, threads=1)
    return KernelServer(table, catalogue, LogControl(LogSettings()), settings)


def server_of(table: ModelTable) -> KernelServer:
    server = new_server(table)
    server.started()
    return server


async def test_a_server_that_exits_is_not_healthy_but_answers() -> None:
    table, _ = table_of(1)
    server = new_server(table)
    assert not await server.live()
    server.started()
    assert await server.live()
    assert await server.model_ready("m")
    server.exiting()
    for call in (server.live, server.ready):
        with pytest.raises(Unavailable, match=r"^Server exiting$"):
            await call()
    assert not await server.model_ready("m")
    assert (await server.infer(InferRequest("m", (), id="7"))).id == "7"


async def test_requests_go_to_the_version_they_name() -> None:
    server = server_of(table_of(1, 2)[0])
    assert (await server.infer(InferRequest("m", ()))).version == 2
    assert (await server.infer(InferRequest("m", (), version=1))).version == 1
    with pytest.raises(NotFound, match="'x' is not found"):
        await server.infer(InferRequest("x", ()))


async def test_model_metadata_has_the_batch_dimension() -> None:
    server = server_of(table_of(1, 2)[0])
    metadata = await server.model_metadata("m")
    assert (metadata.name, metadata.versions, metadata.platform) == ("m", ["1", "2"], "python")
    assert metadata.inputs == [
        TensorMetadata("A", "BYTES", (-1, -1)),
        TensorMetadata("B", "FP32", (-1,)),
    ]
    assert metadata.outputs == [TensorMetadata("Y", "INT64", (-1, 2, -1))]
    assert (await server.model_metadata("m", 1)).versions == ["1"]
    assert await server.model_config("m", 1) == CONFIG


async def test_metadata_of_a_model_that_does_not_batch_has_a_platform() -> None:
    table = ModelTable()
    config = replace(CONFIG, max_batch_size=0, platform="onnxruntime_onnx")
    model: Any = Loaded(1, config)
    table.loading("m", [1])
    table.swap("m", {1: model})
    metadata = await server_of(table).model_metadata("m")
    assert metadata.platform == "onnxruntime_onnx"
    assert [tensor.shape for tensor in metadata.inputs] == [(-1,), ()]


async def test_server_metadata() -> None:
    from importlib.metadata import version

    metadata = await server_of(ModelTable()).metadata()
    assert metadata == ServerMetadata("triton", version("microkernel"), EXTENSIONS)


async def test_the_index_and_the_metrics_through_the_server() -> None:
    table, loaded = table_of(1)
    fail(table, "m", 2, UNLOADED)
    loaded[1].stats.pending = 5
    server = server_of(table)
    assert len(await server.repository_index()) == 2
    assert await server.repository_index(ready=True) == [ModelIndex("m", "1", "READY")]
    line = b'nv_inference_pending_request_count{_team="red",model="m",version="1"} 5'
    assert line in (await server.metrics()).splitlines()


async def test_invalid_arguments_of_a_model_reach_the_caller() -> None:
    table, loaded = table_of(1)

    async def refuse(request: InferRequest) -> InferResponse:
        raise InvalidArgument("no")

    loaded[1].infer = refuse
    with pytest.raises(InvalidArgument, match="no"):
        await server_of(table).infer(InferRequest("m", ()))


def test_what_failed_is_forgotten_when_it_is_not_wanted_any_more() -> None:
    table, _ = table_of(1)
    table.loading("m", [1, 2])
    table.failed("m", {2: "Internal: no"})
    assert not table.all_ready()
    put(table, "m", 1)
    assert table.all_ready()
    assert ModelIndex("m", "2", "UNAVAILABLE", UNLOADED) in table.index(ready=False)


def test_a_model_that_is_removed_leaves_no_failure() -> None:
    table, _ = table_of(1)
    table.refuse("wrong", "unreadable")
    table.loading("broken", [1])
    table.failed("broken", {1: "Internal: no"})
    for name in ("wrong", "broken", "never seen"):
        table.removed(name)
    assert table.all_ready()
    assert table.failures() == []
    assert table.index(ready=False) == [
        ModelIndex("broken", "1", "UNAVAILABLE", UNLOADED),
        ModelIndex("m", "1", "READY"),
    ]
