"""What Amazon SageMaker asks of a container."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from structlog.testing import capture_logs

from microkernel import InvalidArgument, Listening, MicrokernelError, ModelConfig, Unavailable
from microkernel.frontend import clash
from microkernel.options import options_of
from microkernel.testing import FakeModel, FakeServer
from microkernel_http.framing import SizedType
from microkernel_http.sagemaker.routes import Action, find
from microkernel_http.sagemaker.settings import Container, SageMakerSettings

aiohttp = pytest.importorskip("aiohttp", reason="the extra 'http' is missing")
client = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")

from microkernel_http.sagemaker.frontend import SageMakerFrontend  # noqa: E402
from microkernel_http.sagemaker.shelf import Shelf, model_directory  # noqa: E402

BINARY = "application/vnd.sagemaker-triton.binary+json;json-header-size="
MODEL = "SAGEMAKER_TRITON_DEFAULT_MODEL_NAME"
TYPE = "SAGEMAKER_TRITON_INFERENCE_TYPE"
PING = "SAGEMAKER_TRITON_PING_MODE"
Serving: TypeAlias = Callable[..., Any]
"""Called with a server, an environment and settings, serves a front end."""

INFER = {"inputs": [{"name": "INPUT0", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}


@pytest.fixture
def serving(http_site: Any) -> Serving:
    def make(
        server: FakeServer, environment: Mapping[str, str] | None = None, **settings: Any
    ) -> Any:
        given = {"allow_sagemaker": True, "address": "127.0.0.1", "port": 0, **settings}
        return http_site(SageMakerFrontend(server, SageMakerSettings(**given), environment or {}))

    return make


@pytest.fixture
async def site(server: FakeServer, serving: Serving) -> AsyncIterator[Any]:
    """One that invokes `identity`."""
    async with serving(server, {MODEL: "identity"}) as site:
        yield site


@pytest.fixture
def unpacked(tmp_path: Path, server: FakeServer) -> dict[str, str]:
    """What loads a model `m` that the server does not have yet."""
    server.models["m"] = FakeModel(ModelConfig(name="m"), ready=False)
    (tmp_path / "1").mkdir()
    return {"model_name": "m", "url": str(tmp_path)}


async def test_where_it_listens() -> None:
    settings = SageMakerSettings(allow_sagemaker=True, address="127.0.0.1", port=0)
    frontend = SageMakerFrontend(FakeServer(), settings, {})
    line = await frontend.start()
    assert line == f"Started Sagemaker HTTPService at 127.0.0.1:{frontend.port}"
    await frontend.stop(1)


@pytest.mark.parametrize("ports", ["9-2", "1-65536", "9", "a-b"])
def test_a_range_of_ports_that_cannot_be(ports: str) -> None:
    _, spec, _ = options_of(SageMakerSettings)["safe_port_range"]
    assert spec.fault(ports).startswith("must ")
    assert [spec.fault(right) for right in ("2-9", "9-9", "0-65535")] == ["", "", ""]


async def test_switched_off_it_reads_no_environment_and_does_not_listen() -> None:
    frontend = SageMakerFrontend(FakeServer(), SageMakerSettings(), {PING: "perhaps"})
    assert await frontend.start() is None
    await frontend.stop(1)


@pytest.mark.parametrize(
    ("request_line", "action", "model"),
    [
        ("GET /ping", Action.PING, ""),
        ("GET /ping?now", Action.PING, ""),
        ("POST /ping", None, ""),
        ("POST /invocations", Action.INVOCATION, ""),
        ("GET /models", Action.LIST, ""),
        ("GET /models/", Action.LIST, ""),
        ("POST /models", Action.LOAD, ""),
        ("DELETE /models", None, ""),
        ("GET /models/a%20b", Action.DESCRIBE, "a b"),
        ("DELETE /models/h", Action.UNLOAD, "h"),
        ("POST /models/h", None, "h"),
        ("POST /models/h/invoke", Action.INVOKE, "h"),
        ("GET /models/h/invoke", None, "h"),
    ],
)
def test_paths(request_line: str, action: Action | None, model: str) -> None:
    call = find(*request_line.split())
    assert call is not None
    assert (call.action, call.model) == (action, model)


@pytest.mark.parametrize("path", ["/", "/ping/", "/pin", "/models/a/b", "/v2/health/ready"])
async def test_an_unknown_path_is_an_empty_400(site: Any, path: str) -> None:
    assert find("GET", path) is None
    status, _, body = await site.ask("GET", path)
    assert (status, body) == (400, b"")


async def test_a_method_that_a_path_does_not_know(site: Any) -> None:
    status, headers, _ = await site.ask("POST", "/models/h", {})
    assert (status, headers["Allow"]) == (405, "DELETE, GET")


@pytest.mark.parametrize(
    ("mode", "live", "ready", "status"),
    [("", True, True, 200), ("ready", True, False, 400), ("live", True, False, 200)],
)
async def test_pings(
    server: FakeServer, mode: str, live: bool, ready: bool, status: int, serving: Serving
) -> None:
    server.is_live, server.is_ready = live, ready
    async with serving(server, {PING: mode}) as site:
        assert (await site.ask("GET", "/ping"))[::2] == (status, b"")


@pytest.mark.parametrize(("variable", "value"), [(PING, "perhaps"), (TYPE, "Infer")])
def test_variables_that_are_wrong(variable: str, value: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{variable} must be one of .*, got '{value}'"):
        Container.of({variable: value})


def inputs(**form: Any) -> list[Any]:
    """Inputs of `identity` by the official client."""
    made = client.InferInput("INPUT0", [1, 3], "FP32")
    made.set_data_from_numpy(np.array([[1, 2, 3]], np.float32), **form)
    return [made]


async def test_an_invocation_in_json(site: Any) -> None:
    outputs = [client.InferRequestedOutput("OUTPUT0", binary_data=False)]
    made, size = client.InferenceServerClient.generate_request_body(
        inputs(binary_data=False), outputs=outputs
    )
    assert size is None
    status, headers, body = await site.ask(
        "POST", "/invocations", made, {"Content-Type": "application/json"}
    )
    assert (status, headers["Content-Type"]) == (200, "application/json")
    found = client.InferenceServerClient.parse_response_body(body)
    assert found.as_numpy("OUTPUT0").tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("blank", ["", " "])
async def test_an_invocation_with_raw_bytes(site: Any, blank: str) -> None:
    made, size = client.InferenceServerClient.generate_request_body(inputs())
    assert size < len(made)
    kind = {"Content-Type": BINARY.replace(";", ";" + blank) + str(size)}
    status, headers, body = await site.ask("POST", "/invocations", made, kind)
    assert status == 200
    assert headers["Content-Type"].startswith(BINARY)
    assert "Inference-Header-Content-Length" not in headers
    length = int(headers["Content-Type"].removeprefix(BINARY))
    found = client.InferenceServerClient.parse_response_body(body, header_length=length)
    assert found.as_numpy("OUTPUT0").tolist() == [[1, 2, 3]]


async def test_compressed_bodies_both_ways(site: Any) -> None:
    made, size = client.InferenceServerClient.generate_request_body(inputs())
    headers = {
        "Content-Type": f"{BINARY}{size}",
        "Content-Encoding": "gzip",
        "Accept-Encoding": "gzip",
    }
    status, headers_, body = await site.ask("POST", "/invocations", gzip.compress(made), headers)
    assert (status, headers_["Content-Encoding"]) == (200, "gzip")
    length = int(headers_["Content-Type"].removeprefix(BINARY))
    found = client.InferenceServerClient.parse_response_body(
        body, header_length=length, content_encoding="gzip"
    )
    assert found.as_numpy("OUTPUT0").tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        ("application/json", 10),
        ("", 10),
        (f"{BINARY}7", 7),
        (f"{BINARY.upper()}7", 7),
        (f"{BINARY}0", 0),
        (f"text/plain, {BINARY}7", 10),
    ],
)
def test_where_the_json_part_ends(kind: str, length: int) -> None:
    framing = SizedType("sagemaker-triton")
    assert framing.json_length({"Content-Type": kind}, 10) == length


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (f"{BINARY}11", "inference header size should be in range"),
        (f"{BINARY}-1", "inference header size should be in range"),
        (f"{BINARY}x", "Unable to parse json-header-size, got: x"),
        (BINARY, "Unable to parse json-header-size, got: "),
        (BINARY.partition(";")[0], "needs the size of the JSON part"),
        (BINARY.partition(";")[0] + ";charset=utf-8", "needs the size of the JSON part"),
    ],
)
async def test_a_size_that_cannot_be_is_400(site: Any, kind: str, message: str) -> None:
    sent = json.dumps(INFER).encode()[:10]
    status, _, body = await site.ask("POST", "/invocations", sent, {"Content-Type": kind})
    assert status == 400
    assert message in json.loads(body)["error"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "failed to parse the request JSON buffer"),  # 500 in V2
        ({"inputs": [{"name": "INPUT0"}]}, "Input must set only one of the following fields"),
    ],
)
async def test_what_goes_wrong_is_400(site: Any, body: Any, message: str) -> None:
    status, _, told = await site.ask("POST", "/invocations", body)
    assert status == 400
    assert message in json.loads(told)["error"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Unavailable("Exceeds maximum queue size"), 400),
        (Unavailable("CUDA out of memory. Tried to allocate 2 GiB"), 507),
        (Unavailable("MemoryError: none left"), 507),
        (InvalidArgument("CUBLAS_STATUS_ALLOC_FAILED"), 507),
        (InvalidArgument("there is no ROOM here"), 400),
    ],
)
async def test_errors_of_an_invocation(
    server: FakeServer, error: MicrokernelError, status: int, serving: Serving
) -> None:
    server.failure = error
    async with serving(server, {MODEL: "identity"}) as site:
        found, headers, body = await site.ask("POST", "/invocations", INFER)
    assert found == status
    assert "Retry-After" not in headers
    assert json.loads(body) == {"error": str(error)}


@pytest.mark.parametrize("traced", [False, True])
async def test_an_unknown_model_of_invocations(
    server: FakeServer, traced: bool, serving: Serving
) -> None:
    server.traced = traced
    async with serving(server, {MODEL: "absent"}) as site:
        assert await site.status("POST", "/invocations", INFER) == 400
    async with serving(server) as site:
        status, _, body = await site.ask("POST", "/invocations", INFER)
    assert status == 400
    assert MODEL in json.loads(body)["error"]


async def test_a_traced_error_is_400(server: FakeServer, serving: Serving) -> None:
    server.traced = True
    body = {
        "inputs": [{"name": n, "shape": [4], "datatype": "INT32", "data": [-1] * 4} for n in "AB"]
    }
    async with serving(server, {MODEL: "addsub"}) as site:
        assert await site.status("POST", "/invocations", body) == 400  # 500 in V2
    assert len(server.traces) == 1


async def test_lines_name_the_model(
    server: FakeServer, serving: Serving, unpacked: dict[str, str]
) -> None:
    with capture_logs() as lines:
        async with serving(server, {MODEL: "identity"}, access_log=True) as site:
            await site.ask("POST", "/invocations", {**INFER, "id": "mine"})
            await site.ask("POST", "/models", unpacked)
            await site.ask("GET", "/models/m")
            await site.ask("GET", "/ping")
    told = [line for line in lines if line["event"] == "answered"]
    assert [line["model"] for line in told] == ["identity", "m", "m", ""]
    assert [line["id"] for line in told] == ["mine", "", "", ""]


@pytest.mark.parametrize("path", ["/invocations", "/models/m/invoke"])
async def test_an_unknown_encoding_is_415(site: Any, unpacked: dict[str, str], path: str) -> None:
    assert await site.status("POST", "/models", unpacked) == 200
    status, headers, _ = await site.ask("POST", path, b"x", {"Content-Encoding": "br"})
    assert (status, headers["Accept-Encoding"]) == (415, "gzip, deflate")


async def test_invocations_that_generate(server: FakeServer, serving: Serving) -> None:
    body = {"TEXT": "hi"}
    async with serving(server, {MODEL: "strings", TYPE: "generate"}) as site:
        status, _, told = await site.ask("POST", "/invocations", body)
        assert await site.status("POST", "/invocations", b"[]") == 400  # 500 in V2
    assert (status, json.loads(told)["UPPER"]) == (200, "HI")
    async with serving(server, {MODEL: "strings", TYPE: "generate_stream"}) as site:
        status, headers, told = await site.ask("POST", "/invocations", body)
    assert (status, headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    assert json.loads(told.removeprefix(b"data: "))["UPPER"] == "HI"


async def test_the_life_of_a_model(site: Any, server: FakeServer, unpacked: dict[str, str]) -> None:
    described = {"modelName": "m", "modelUrl": unpacked["url"]}
    assert await site.status("GET", "/models/m") == 404
    assert (await site.ask("POST", "/models", unpacked))[::2] == (200, b"")
    assert server.directories == {"m": unpacked["url"]}
    assert json.loads((await site.ask("GET", "/models/m"))[2]) == described
    assert json.loads((await site.ask("GET", "/models"))[2]) == {"models": [described]}
    assert await site.status("POST", "/models/m/invoke", {"inputs": []}) == 200
    assert await site.status("POST", "/models", unpacked) == 409
    assert (await site.ask("DELETE", "/models/m"))[::2] == (200, b"")
    assert server.unloads == [("m", True)]
    for method, path in [("GET", ""), ("DELETE", ""), ("POST", "/invoke")]:
        assert await site.status(method, f"/models/m{path}") == 404
    assert json.loads((await site.ask("GET", "/models"))[2]) == {"models": []}
    assert await site.status("POST", "/models", unpacked) == 200


async def test_a_model_that_is_not_ready_is_not_listed(
    site: Any, server: FakeServer, unpacked: dict[str, str]
) -> None:
    assert await site.status("POST", "/models", unpacked) == 200
    server.models["m"].ready = False
    assert json.loads((await site.ask("GET", "/models"))[2]) == {"models": []}
    assert await site.status("POST", "/models/m/invoke", {"inputs": []}) == 400  # 404 in V2


async def test_a_name_that_a_model_of_the_repository_has(
    site: Any, unpacked: dict[str, str]
) -> None:
    status, _, body = await site.ask("POST", "/models", {**unpacked, "model_name": "identity"})
    assert (status, json.loads(body)) == (409, {"error": "model 'identity' already exists"})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "failed to parse"),
        ({"model_name": "m"}, "url"),
        ({"url": "/tmp"}, "model_name"),
        ({"model_name": 1, "url": "/tmp"}, "model_name"),
        ({"model_name": "m", "url": "relative"}, "must be the path of an unpacked model"),
        ({"model_name": "m", "url": "/proc/self"}, "must be the path of an unpacked model"),
        ({"model_name": "m", "url": "/dev/../proc"}, "must be the path of an unpacked model"),
        ({"model_name": "m", "url": "/absent/model"}, "cannot read '/absent/model'"),
        ({"model_name": "m", "url": "x" * 70000}, "at most 65536 bytes"),
    ],
)
async def test_a_load_that_cannot_be(site: Any, body: Any, message: str) -> None:
    status, _, told = await site.ask("POST", "/models", body)
    assert status == 400
    assert message in json.loads(told)["error"]


@pytest.mark.parametrize(
    ("text", "status"), [("load failed: no weights", 400), ("failed to allocate memory", 507)]
)
async def test_a_model_that_does_not_load(
    site: Any, server: FakeServer, unpacked: dict[str, str], text: str, status: int
) -> None:
    load = server.load_model

    async def refuse(*args: Any, **kwargs: Any) -> None:
        raise InvalidArgument(text)

    server.load_model = refuse  # type: ignore[method-assign]
    found, _, body = await site.ask("POST", "/models", unpacked)
    assert (found, json.loads(body)) == (status, {"error": text})
    assert await site.status("GET", "/models/m") == 404
    server.load_model = load  # type: ignore[method-assign]
    assert await site.status("POST", "/models", unpacked) == 200


async def test_a_model_is_loaded_once(server: FakeServer, unpacked: dict[str, str]) -> None:
    shelf, seen = Shelf(server), []

    async def meanwhile(*args: Any, **kwargs: Any) -> None:
        with pytest.raises(MicrokernelError) as caught:
            await shelf.load("m", unpacked["url"])
        seen.append((str(caught.value), shelf.url("m"), dict(await shelf.ready())))

    server.load_model = meanwhile  # type: ignore[method-assign]
    await shelf.load("m", unpacked["url"])
    assert seen == [("model 'm' already exists", None, {})]


async def test_a_load_goes_on_when_its_caller_gives_up(
    server: FakeServer, unpacked: dict[str, str]
) -> None:
    shelf, begun, go_on = Shelf(server), asyncio.Event(), asyncio.Event()

    async def slow(*args: Any, **kwargs: Any) -> None:
        begun.set()
        await go_on.wait()

    server.load_model = slow  # type: ignore[method-assign]
    caller = asyncio.ensure_future(shelf.load("m", unpacked["url"]))
    await begun.wait()
    caller.cancel()
    await asyncio.wait([caller])
    assert shelf.url("m") is None
    work = list(shelf._work)
    go_on.set()
    await asyncio.wait(work)
    assert shelf.url("m") == unpacked["url"]


async def test_closing_ends_what_still_waits(server: FakeServer, unpacked: dict[str, str]) -> None:
    shelf, begun = Shelf(server), asyncio.Event()

    async def endless(*args: Any, **kwargs: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    server.load_model = endless  # type: ignore[method-assign]
    caller = asyncio.ensure_future(shelf.load("m", unpacked["url"]))
    await begun.wait()
    shelf.close()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert shelf.url("m") is None


@pytest.mark.parametrize(("limit", "asked"), [(60.0, 3), (0.0, 0)])
async def test_an_unload_waits_until_the_model_is_down(
    server: FakeServer, unpacked: dict[str, str], limit: float, asked: int
) -> None:
    shelf = Shelf(server, limit)
    await shelf.load("m", unpacked["url"])
    states = ["READY", "UNLOADING", "UNAVAILABLE"]
    index, seen = server.repository_index, []

    async def lines(*, ready: bool = False) -> Any:
        seen.append(ready)
        found = await index(ready=ready)
        state = states.pop(0)
        return [type(line)(line.name, line.version, state) for line in found if line.name == "m"]

    server.repository_index = lines  # type: ignore[method-assign]
    await shelf.unload("m")
    assert (len(seen) >= asked, shelf.url("m")) == (True, None)
    if limit:
        assert states == []


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["config.pbtxt", "1/model.py", "extra/x"], "."),
        (["1/model.onnx"], "."),
        (["resnet/config.pbtxt", "resnet/1/model.pt", ".cache/x", "notes.txt"], "resnet"),
        (["resnet/1/model.pt"], "resnet"),
        (["a/1/model.pt", "b/1/model.pt"], "must hold one model, there are: a, b"),
        (["notes.txt"], "must hold one model, there are: none"),
    ],
)
def test_where_the_model_lies(tmp_path: Path, files: list[str], found: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    if (tmp_path / found).exists():
        assert model_directory(str(tmp_path)) == tmp_path / found
        return
    with pytest.raises(InvalidArgument, match=found):
        model_directory(str(tmp_path))


async def test_restricted_apis(
    server: FakeServer, unpacked: dict[str, str], serving: Serving
) -> None:
    restricted = ("inference,model-repository:admin=secret",)
    async with serving(server, {MODEL: "identity"}, restricted_api=restricted) as site:
        assert await site.status("GET", "/ping") == 200
        for method, path, body in [
            ("POST", "/invocations", INFER),
            ("POST", "/models", unpacked),
            ("GET", "/models", None),
            ("GET", "/models/m", None),
            ("POST", "/models/m/invoke", {"inputs": []}),
            ("DELETE", "/models/m", None),
        ]:
            assert await site.status(method, path, body) == 403
            assert await site.status(method, path, body, admin="secret") == 200


async def test_bodies_are_bounded(server: FakeServer, serving: Serving) -> None:
    async with serving(server, {MODEL: "identity"}, max_body_size=10) as site:
        assert await site.status("POST", "/invocations", INFER) == 400


@pytest.mark.parametrize(
    ("text", "port", "fault"),
    [
        ("", 8000, ""),
        ("8000-8001", 8000, ""),
        ("8001-8002", 8000, "--http-port must be from 8001 to 8002, is 8000"),
        ("0-7999", 8000, "--http-port must be from 0 to 7999, is 8000"),
    ],
)
def test_the_safe_range_is_for_others(text: str, port: int, fault: str) -> None:
    settings = SageMakerSettings(allow_sagemaker=True, safe_port_range=text)
    http = Listening("--http-port", "0.0.0.0", port)
    assert clash([http, *settings.listening()]) == fault
    elsewhere = Listening("--http-port", "127.0.0.1", port)
    assert clash([elsewhere, *settings.listening()]) == ""
    assert SageMakerSettings(safe_port_range=text).listening() == []
