"""The protocols over an in-process server, spoken to with the official clients."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inprocess_models import own_log, write_echo
from server_harness import ask

import microkernel.inprocess as tritonserver
from microkernel.inprocess import KServeGrpc, KServeHttp, Metrics, Server
from microkernel.options import options_of

LOCAL = {"address": "127.0.0.1", "port": 0}
X = np.array([[1, 2]], np.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("frontends") / "models"
    write_echo(repository)
    with own_log(), Server(model_repository=repository) as server:
        yield server


def infer(client: Any, url: str) -> list[list[float]]:
    """What the model answers over a protocol, by the official client's module."""
    tensor = client.InferInput("X", list(X.shape), "FP32")
    tensor.set_data_from_numpy(X)
    with client.InferenceServerClient(url) as connection:
        found: list[list[float]] = connection.infer("echo", [tensor]).as_numpy("Y").tolist()
    return found


@pytest.mark.parametrize(
    ("endpoint", "module"),
    [(KServeHttp, "tritonclient.http"), (KServeGrpc, "tritonclient.grpc")],
)
def test_the_official_client_is_served(server: Server, endpoint: Any, module: str) -> None:
    client = pytest.importorskip(module, reason="tritonclient is missing")
    with endpoint(server, endpoint.Options(**LOCAL)) as service:
        assert infer(client, f"127.0.0.1:{service.port}") == X.tolist()
        with pytest.raises(tritonserver.InvalidArgumentError, match="already started"):
            service.start()
    with pytest.raises(tritonserver.InvalidArgumentError, match="not started"):
        _ = service.port
    service.stop()
    service.start()
    assert infer(client, f"127.0.0.1:{service.port}") == X.tolist()
    service.stop()


def test_the_metrics_page(server: Server) -> None:
    with Metrics(server, Metrics.Options(**LOCAL)) as service:  # type: ignore[arg-type]
        assert "nv_inference" in ask(service.port, "GET", "/metrics").body.decode()
    with pytest.raises(OSError, match="refused"):
        ask(service_port(service), "GET", "/metrics")


def service_port(service: Metrics) -> int:
    """A port on which nothing listens any more."""
    with service as again:
        return again.port


def test_a_taken_port(server: Server) -> None:
    with (
        KServeHttp(server, KServeHttp.Options(**LOCAL)) as first,  # type: ignore[arg-type]
        pytest.raises(tritonserver.UnavailableError, match=str(first.port)),
    ):
        KServeHttp(server, KServeHttp.Options("127.0.0.1", first.port)).start()


def test_it_ends_with_the_server(tmp_path: Path) -> None:
    write_echo(tmp_path / "models")
    with own_log(), Server(model_repository=tmp_path / "models") as server:
        service = KServeHttp(server, KServeHttp.Options(**LOCAL)).start()  # type: ignore[arg-type]
        port = service.port
    with pytest.raises(OSError, match="refused"):
        ask(port, "GET", "/v2/health/live")
    service.stop()
    with pytest.raises(tritonserver.InvalidArgumentError, match="Server not started"):
        service.start()


def test_options(server: Server) -> None:
    with pytest.warns(UserWarning, match="options without effect here: thread_count"):
        KServeHttp(server, KServeHttp.Options(thread_count=2))
    with pytest.raises(tritonserver.InvalidArgumentError, match=r"must be KServeHttp\.Options"):
        KServeHttp(server, KServeGrpc.Options())
    wrong = KServeGrpc(server, KServeGrpc.Options("127.0.0.1", 0, use_ssl=True))
    with pytest.raises(tritonserver.InvalidArgumentError, match="cert"):
        wrong.start()
    wrong = KServeGrpc(server, KServeGrpc.Options(infer_compression_level="extreme"))
    with pytest.raises(tritonserver.InvalidArgumentError, match="infer_response_compression_level"):
        wrong.start()


@pytest.mark.parametrize("endpoint", [KServeHttp, KServeGrpc, Metrics])
def test_every_option_is_a_setting_of_the_plug_in(endpoint: Any, server: Server) -> None:
    """Triton's names stand for settings that the plug-ins declare."""
    plugins = server.engine.setup.plugins.all
    [plugin] = [p for p in plugins if any(f.name == endpoint.name for f in p.frontends)]
    assert plugin.settings_type is not None
    known = set(options_of(plugin.settings_type))
    assert set(endpoint.settings.values()) | set(endpoint.switches) <= known
    assert set(endpoint.settings) <= set(endpoint.Options.__dataclass_fields__)
