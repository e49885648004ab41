"""Shared memory over HTTP: what bodies say about it, and the routes with real regions."""

import asyncio
import json
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory as Object
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel import (
    DATA_TYPES,
    CudaRegion,
    InferRequest,
    InferResponse,
    Internal,
    InvalidArgument,
    MicrokernelError,
    RegionPart,
    SystemRegion,
    Tensor,
)
from microkernel.shared_memory import SharedMemory
from microkernel.testing import FakeServer
from microkernel_http.control_bodies import cuda_region, system_region
from microkernel_http.decode import ALL_BINARY, ALL_JSON, Limits, OutputForms, decode
from microkernel_http.encode import encode

aiohttp = pytest.importorskip("aiohttp", reason="the extra 'http' is missing")
client = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")

SIZE = 4096
HANDLE = bytes(range(64))
CUDA = {"raw_handle": {"b64": b64encode(HANDLE).decode()}, "byte_size": 1, "device_id": 0}
NO_GPUS = "failed to register CUDA shared memory region: '%s', GPUs not supported"


def place(region: object, size: object = 8, offset: object = 0) -> dict[str, Any]:
    """The parameters of a tensor in shared memory."""
    return {
        "shared_memory_region": region,
        "shared_memory_byte_size": size,
        "shared_memory_offset": offset,
    }


def entry(name: str, parameters: Mapping[str, Any], datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [2], "parameters": parameters}


def read(document: object, tail: bytes = b"") -> tuple[InferRequest, OutputForms]:
    header = json.dumps(document).encode()
    return decode(header + tail, len(header), "m", 1, Limits())


def test_inputs_in_shared_memory_stand_beside_others() -> None:
    request, _ = read(
        {
            "inputs": [
                entry("A", {"binary_data_size": 8}),
                entry("B", place("b", 8, 16)),
                entry("C", {"shared_memory_region": "c"}, datatype="BF16"),
                {"name": "D", "datatype": "FP32", "shape": [2], "data": [1, 2]},
            ]
        },
        b"12345678",
    )
    assert request.shared_inputs == {"B": RegionPart("b", 8, 16), "C": RegionPart("c", 0, 0)}
    a, b, c, d = request.inputs
    assert [bytes(t.data) for t in (a, b, c)] == [b"12345678", b"", b""]
    assert (b.shape, c.datatype) == ((2,), DATA_TYPES["BF16"])
    assert d.as_numpy().tolist() == [1, 2]


def test_outputs_in_shared_memory_stand_beside_others() -> None:
    request, forms = read(
        {
            "inputs": [],
            "outputs": [
                {"name": "A", "parameters": {**place("a", 9, 1), "binary_data": False}},
                {"name": "B", "parameters": {"binary_data": True}},
                {"name": "C", "parameters": {"classification": 2}},
            ],
        }
    )
    assert request.outputs == ("A", "B", "C")
    assert request.shared_outputs == {"A": RegionPart("a", 9, 1)}
    assert request.classifications == {"C": 2}
    assert forms == OutputForms(binary=["B"])


def test_a_request_without_regions_has_no_places() -> None:
    request, _ = read({"inputs": [entry("A", {"binary_data_size": 8})]}, b"12345678")
    assert not request.shared_inputs
    assert not request.shared_outputs


def wrong(key: str, kind: str) -> str:
    return f"Unable to parse '{key}': attempt to access JSON non-{kind} as {kind}"


WRONG_PLACES = [
    (place(1), wrong("shared_memory_region", "string")),
    (place(None), wrong("shared_memory_region", "string")),
    (place("r", -1), wrong("shared_memory_byte_size", "unsigned-integer")),
    (place("r", "8"), wrong("shared_memory_byte_size", "unsigned-integer")),
    (place("r", 8, 1.0), wrong("shared_memory_offset", "unsigned-integer")),
    (place("r", 8, 1 << 64), wrong("shared_memory_offset", "unsigned-integer")),
]


@pytest.mark.parametrize(("parameters", "message"), WRONG_PLACES)
def test_places_of_the_wrong_kind(parameters: dict[str, Any], message: str) -> None:
    for document in (
        {"inputs": [entry("X", parameters)]},
        {"inputs": [], "outputs": [{"name": "X", "parameters": parameters}]},
    ):
        with pytest.raises(Internal) as caught:
            read(document)
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("parameters", "other"),
    [
        ({"classification": 2}, "classification"),
        ({"classification": 0}, "classification"),
        ({"binary_data": True}, "binary_data"),
    ],
)
def test_an_output_goes_to_one_place(parameters: dict[str, Any], other: str) -> None:
    output = {"name": "X", "parameters": {**place("r"), **parameters}}
    with pytest.raises(InvalidArgument) as caught:
        read({"inputs": [], "outputs": [output]})
    assert str(caught.value) == (
        f"Output can't set both 'shared_memory_region' and '{other}', output 'X' does"
    )


@pytest.mark.parametrize(
    ("more", "tail", "found"),
    [
        ({"data": [1, 2]}, b"", "set 'data' 'shared_memory_region'"),
        ({}, b"12345678", "set 'binary_data_size' 'shared_memory_region'"),
    ],
)
def test_an_input_comes_from_one_place(more: dict[str, Any], tail: bytes, found: str) -> None:
    size = {"binary_data_size": len(tail)} if tail else {}
    with pytest.raises(InvalidArgument, match=f"^Input must set only one of .*But {found}$"):
        read({"inputs": [{**entry("X", {**place("r"), **size}), **more}]}, tail)


_value = st.none() | st.booleans() | st.integers() | st.text(max_size=2) | st.floats()
_place = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys((*place("r"), "binary_data", "classification"), _value),
)
_tensor = st.builds(entry, st.sampled_from("AB"), _place)


@given(st.lists(_tensor, max_size=2), st.lists(_tensor, max_size=2))
@settings(max_examples=150, deadline=None)
def test_any_place_is_read_or_refused_with_an_error_of_ours(
    inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]
) -> None:
    with suppress(MicrokernelError):
        request, _ = read({"inputs": inputs, "outputs": outputs})
        for part in (*request.shared_inputs.values(), *request.shared_outputs.values()):
            assert part.byte_size >= 0
            assert part.offset >= 0


@pytest.mark.parametrize("forms", [ALL_JSON, ALL_BINARY])
def test_of_an_output_in_shared_memory_only_type_and_shape_are_told(forms: OutputForms) -> None:
    outputs = (
        Tensor("S", DATA_TYPES["FP16"], (2, 3), b""),
        Tensor.from_numpy("T", np.array([1, 2], np.int32)),
    )
    response = InferResponse("m", 1, "", outputs, shared_outputs={"S": RegionPart("r", 12)})
    encoded = encode(response, forms)
    entries = json.loads(bytes(encoded.buffers[0]))["outputs"]
    assert entries[0] == {"name": "S", "datatype": "FP16", "shape": [2, 3]}
    assert ("data" in entries[1]) is (forms is ALL_JSON)
    assert len(encoded.buffers) == (1 if forms is ALL_JSON else 2)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"key": "/k", "byte_size": 8}, SystemRegion("r", "/k", 8, 0)),
        ({"key": "k", "byte_size": 0, "offset": 64, "other": 1}, SystemRegion("r", "k", 0, 64)),
    ],
)
def test_regions_to_be_registered(document: object, expected: SystemRegion) -> None:
    assert system_region("r", json.dumps(document).encode()) == expected


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (b"", Internal, "failed to parse the request JSON buffer: The document is empty. at 0"),
        (b"{}", InvalidArgument, "Shared memory register request has no 'key' field"),
        (b"[]", InvalidArgument, "Shared memory register request has no 'key' field"),
        (
            b'{"key": "/k"}',
            *(InvalidArgument, "Shared memory register request has no 'byte_size' field"),
        ),
        (b'{"key": 1, "byte_size": 8}', Internal, wrong("key", "string")),
        (b'{"key": "", "byte_size": -8}', Internal, wrong("byte_size", "unsigned-integer")),
        (
            b'{"key": "", "byte_size": 8, "offset": null}',
            *(Internal, wrong("offset", "unsigned-integer")),
        ),
    ],
)
def test_bad_regions(body: bytes, error: type[MicrokernelError], message: str) -> None:
    with pytest.raises(error) as caught:
        system_region("r", body)
    assert str(caught.value) == message


@pytest.fixture
def shared() -> Iterator[Object]:
    """An object of POSIX shared memory."""
    made = Object(create=True, size=SIZE)
    yield made
    made.close()
    made.unlink()


def contents(shared: Object) -> memoryview:
    """The object's memory, which typing allows to be gone."""
    assert shared.buf is not None
    return shared.buf


@pytest.fixture
def allowed(server: FakeServer) -> FakeServer:
    """The server with the switch on."""
    server.memory = SharedMemory(allowed=True)
    return server


async def ask(port: int, method: str, path: str, document: object = None) -> tuple[int, str, Any]:
    """Status, type and document of an answer; None for an empty one."""
    body = None if document is None else json.dumps(document).encode()
    url = f"http://127.0.0.1:{port}/v2/{path}"
    async with aiohttp.request(method, url, data=body) as answer:
        raw = await answer.read()
        return answer.status, answer.headers["Content-Type"], json.loads(raw) if raw else None


JSON = "application/json"
DONE = (200, JSON, None)


async def test_regions_come_and_go(allowed: FakeServer, http_port: int, shared: Object) -> None:
    base = "systemsharedmemory"
    whole = {"key": f"/{shared.name}", "byte_size": SIZE}
    first, second = f"{base}/region/a%20b", f"{base}/region/second"
    assert await ask(http_port, "POST", f"{first}/register", whole) == DONE
    part = {**whole, "byte_size": 8, "offset": 0}
    assert await ask(http_port, "POST", f"{second}/register", part) == DONE
    entries = [
        {"name": "a b", "key": whole["key"], "offset": 0, "byte_size": SIZE},
        {"name": "second", "key": whole["key"], "offset": 0, "byte_size": 8},
    ]
    assert await ask(http_port, "GET", f"{base}/status") == (200, JSON, entries)
    assert await ask(http_port, "GET", f"{first}/status") == (200, JSON, entries[:1])
    assert await ask(http_port, "POST", f"{first}/unregister") == DONE
    assert await ask(http_port, "POST", f"{first}/unregister") == DONE
    assert await ask(http_port, "GET", f"{base}/status") == (200, JSON, entries[1:])
    assert await ask(http_port, "POST", f"{base}/unregister") == DONE
    assert await ask(http_port, "GET", f"{base}/status") == (200, JSON, [])


@pytest.mark.parametrize(
    ("path", "document", "status", "message"),
    [
        ("region/r/register", {}, 400, "Shared memory register request has no 'key' field"),
        ("region/r/register", {"key": "k"}, 400, "Shared memory register request has no 'byte_siz"),
        ("region/r/register", {"key": 1, "byte_size": 1}, 500, wrong("key", "string")),
        ("register", {}, 400, "'region name' is necessary to register system shared memory reg"),
        (
            "region/r/register",
            {"key": "/none such", "byte_size": 1},
            *(500, "Unable to open shared memory region: '/none such'"),
        ),
        ("region/r/register", {"key": "//", "byte_size": 1}, 400, "failed to register shared mem"),
        (
            "region/taken/register",
            {"key": "/k", "byte_size": 1},
            *(400, "shared memory region 'taken' already in manager"),
        ),
    ],
)
async def test_regions_that_cannot_be_registered(
    allowed: FakeServer,
    http_port: int,
    shared: Object,
    path: str,
    document: object,
    status: int,
    message: str,
) -> None:
    allowed.memory.register(SystemRegion("taken", shared.name, SIZE))
    found = await ask(http_port, "POST", f"systemsharedmemory/{path}", document)
    assert found[:2] == (status, JSON)
    assert found[2]["error"].startswith(message)
    assert [region.name for region in allowed.memory.status()] == ["taken"]


async def test_there_are_no_gpus_for_regions(
    allowed: FakeServer, http_port: int, shared: Object
) -> None:
    allowed.memory.register(SystemRegion("r", shared.name, SIZE))
    base = "cudasharedmemory"
    found = await ask(http_port, "POST", f"{base}/region/c/register", CUDA)
    assert found == (400, JSON, {"error": NO_GPUS % "c"})
    status, _, document = await ask(http_port, "POST", f"{base}/register", {})
    assert (status, document["error"][:29]) == (400, "'region name' is necessary to")
    assert await ask(http_port, "POST", f"{base}/region/r/unregister") == DONE
    assert await ask(http_port, "POST", f"{base}/unregister") == DONE
    assert await ask(http_port, "GET", f"{base}/status") == (200, JSON, [])
    for name, message in (
        ("r", "The region named 'r' is registered as system shared memory, not as CUDA shared mem"),
        ("c", "Unable to find cuda shared memory region: 'c'"),
    ):
        status, _, document = await ask(http_port, "GET", f"{base}/region/{name}/status")
        assert status == 404
        assert document["error"].startswith(message)
    assert len(allowed.memory.status()) == 1


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"raw_handle": None}, Internal, wrong("raw_handle", "object")),
        ({"raw_handle": {}}, Internal, "attempt to access non-existing object member 'b64'"),
        ({"raw_handle": {"b64": 1}}, Internal, wrong("b64", "string")),
        ({"raw_handle": {"b64": "AA=="}}, InvalidArgument, "must be a valid base64 encoded"),
        ({"raw_handle": {"b64": "?"}}, InvalidArgument, "must be a valid base64 encoded"),
        ({"byte_size": -1}, Internal, wrong("byte_size", "unsigned-integer")),
        ({"device_id": "0"}, Internal, wrong("device_id", "unsigned-integer")),
    ],
)
def test_bad_requests_for_regions_of_gpus(
    changes: dict[str, Any], error: type[MicrokernelError], text: str
) -> None:
    with pytest.raises(error) as caught:
        cuda_region("c", json.dumps({**CUDA, **changes}).encode())
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("field", "error", "text"),
    [
        ("raw_handle", InvalidArgument, "register request has no 'raw_handle' field"),
        ("byte_size", Internal, "non-existing object member 'byte_size'"),
        ("device_id", Internal, "non-existing object member 'device_id'"),
    ],
)
def test_a_region_of_a_gpu_needs_every_field(
    field: str, error: type[MicrokernelError], text: str
) -> None:
    given = {key: value for key, value in CUDA.items() if key != field}
    with pytest.raises(error) as caught:
        cuda_region("c", json.dumps(given).encode())
    assert text in str(caught.value)
    assert cuda_region("c", json.dumps(CUDA).encode()) == CudaRegion("c", HANDLE, 0, 1)


def with_client(port: int, use: Callable[[Any], Any]) -> Any:
    with client.InferenceServerClient(f"127.0.0.1:{port}") as connected:
        return use(connected)


async def test_the_official_client_infers_in_shared_memory(
    allowed: FakeServer, http_port: int, shared: Object
) -> None:
    a, b = np.arange(4, dtype=np.int32), np.full(4, 10, np.int32)
    contents(shared)[64:80] = a.tobytes()

    def use(c: Any) -> Any:
        c.register_system_shared_memory("r", f"/{shared.name}", SIZE)
        inputs = [client.InferInput(name, [4], "INT32") for name in ("A", "B")]
        inputs[0].set_shared_memory("r", 16, offset=64)
        inputs[1].set_data_from_numpy(b)
        outputs = [client.InferRequestedOutput(name) for name in ("SUM", "DIFF")]
        outputs[0].set_shared_memory("r", 100, offset=128)
        return c.infer("addsub", inputs, outputs=outputs)

    result = await asyncio.to_thread(with_client, http_port, use)
    assert result.get_output("SUM") == {"name": "SUM", "datatype": "INT32", "shape": [4]}
    assert np.frombuffer(contents(shared)[128:144], np.int32).tolist() == (a + b).tolist()
    assert bytes(contents(shared)[144:228]) == bytes(84)
    assert result.as_numpy("DIFF").tolist() == (a - b).tolist()


def request(input_place: dict[str, Any], output_place: dict[str, Any]) -> dict[str, Any]:
    """A request to a model with one FP32 input of shape [1,2]."""
    return {
        "inputs": [{**entry("INPUT0", input_place), "shape": [1, 2]}],
        "outputs": [{"name": "OUTPUT0", "parameters": output_place}],
    }


@pytest.mark.parametrize(
    ("document", "status", "kind", "message"),
    [
        (request(place("x"), {}), 404, JSON, "Unable to find shared memory region: 'x'"),
        (request(place("r"), place("x")), 404, JSON, "Unable to find shared memory region: 'x'"),
        (
            request(place("r", 8, SIZE), {}),
            *(400, JSON, "Invalid offset for shared memory region: 'r'"),
        ),
        (
            request(place("r"), place("r", 8, SIZE - 7)),
            *(400, JSON, "Invalid offset + byte size for shared memory region: 'r'"),
        ),
        (
            request(place("r", 8, (1 << 63) - 1), {}),
            *(400, JSON, "Integer overflow detected"),
        ),
        (
            request(place("r"), place("r", 7)),
            *(500, "text/plain"),
            "shared memory size specified with the request for output 'OUTPUT0' (7 bytes) should "
            "be at least 8 bytes to hold the results",
        ),
    ],
)
async def test_requests_that_do_not_fit_their_region(
    allowed: FakeServer,
    http_port: int,
    shared: Object,
    document: dict[str, Any],
    status: int,
    kind: str,
    message: str,
) -> None:
    allowed.memory.register(SystemRegion("r", shared.name, SIZE))
    found = await ask(http_port, "POST", "models/identity/infer", document)
    assert found[:2] == (status, kind)
    assert found[2]["error"].startswith(message)


async def test_a_model_that_is_not_there_comes_before_the_region(http_port: int) -> None:
    document = request(place("x"), {})
    found = await ask(http_port, "POST", "models/absent/infer", document)
    error = "Request for unknown model: 'absent' is not found"
    assert found == (404, "text/plain", {"error": error})
    status, kind, _ = await ask(http_port, "POST", "models/stream/infer", document)
    assert (status, kind) == (501, "text/plain")
