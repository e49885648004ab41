"""The generate endpoints: the mapping of requests and responses, and the routes."""

import asyncio
import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel import (
    InferRequest,
    InferResponse,
    Internal,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    ModelInput,
    ResponseStream,
    Shape,
    Tensor,
    Unavailable,
    element_count,
)
from microkernel.testing import FakeServer
from microkernel_http.decode import Limits
from microkernel_http.generate import from_response, lay_out, to_request

aiohttp = pytest.importorskip("aiohttp", reason="the extra 'http' is missing")

LIMITS = Limits()


def config(batch: int = 0, **inputs: tuple[str, Shape]) -> ModelConfig:
    entries = (ModelInput(name=n, data_type=f"TYPE_{t}", dims=d) for n, (t, d) in inputs.items())
    return ModelConfig(name="m", max_batch_size=batch, input=tuple(entries))


TEXT = config(4, text=("STRING", (1,)), count=("INT32", (-1,)))


def read(document: object, model: ModelConfig = TEXT, limits: Limits = LIMITS) -> InferRequest:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return to_request(body, model, 3, limits)


def test_members_become_inputs_and_parameters() -> None:
    request = read(
        {
            "id": "seven",
            "text": "caf\u00e9",
            "stream": False,
            "parameters": {"count": [1, 2], "temperature": 0.5, "triton_x": 1, "priority": 2},
            "large": 2**63,
        }
    )
    assert (request.model_name, request.version, request.id) == ("m", 3, "seven")
    text, count = request.inputs
    assert (text.name, text.shape, text.as_numpy().tolist()) == (
        "text",
        (1, 1),
        [["caf\u00e9".encode()]],
    )
    assert (count.name, count.shape, count.as_numpy().tolist()) == ("count", (1, 2), [[1, 2]])
    assert request.parameters == {
        "id": "seven",
        "stream": False,
        "temperature": 0.5,
        "triton_x": 1,
        "priority": 2,
        "large": 2.0**63,
    }
    assert request.priority == 0


def test_an_input_may_be_called_id() -> None:
    request = read({"id": "7"}, config(id=("STRING", (1,))))
    assert request.id == "7"
    assert request.inputs[0].as_numpy().tolist() == [b"7"]
    assert request.parameters == {}


@pytest.mark.parametrize(
    ("count", "dims", "shape"),
    [
        (1, (), ()),
        (2, (), None),
        (4, (4,), (4,)),
        (3, (4,), None),
        (3, (-1,), (3,)),
        (0, (-1,), (0,)),
        (3, (-1, -1), (1, 3)),
        (8, (-1, 4), (2, 4)),
        (8, (-1, -1, 2), (1, 4, 2)),
        (6, (2, -1, 3), (2, 1, 3)),
        (7, (-1, 4), None),
        (0, (0,), (0,)),
        (1, (0,), None),
        (0, (-1, 0), None),
    ],
)
def test_elements_are_laid_over_the_dims(count: int, dims: Shape, shape: Shape | None) -> None:
    assert lay_out(count, dims) == shape


@given(st.integers(0, 99), st.lists(st.integers(-1, 4), max_size=4).map(tuple))
def test_a_shape_holds_its_elements_and_fits(count: int, dims: Shape) -> None:
    shape = lay_out(count, dims)
    if shape is not None:
        assert element_count(shape) == count
        assert all(dim in (-1, size) for size, dim in zip(shape, dims, strict=True))


FITS = "can not convert input 'count' to tensor with proper shape"


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        (b"", Internal, "failed to parse the request JSON buffer: The document is empty. at 0"),
        (b"{", Internal, "failed to parse the request JSON buffer: "),
        ([], Internal, "Unable to parse 'the request': attempt to access JSON non-object"),
        ({"id": 7}, Internal, "Unable to parse 'id': attempt to access JSON non-string as string"),
        ({"parameters": [1]}, InvalidArgument, "Expected JSON object for keyword: 'parameters'"),
        ({"other": [1]}, InvalidArgument, "parameter 'other' has invalid type"),
        ({"other": None}, InvalidArgument, "parameter 'other' has invalid type"),
        ({"other": {}}, InvalidArgument, "parameter 'other' has invalid type"),
        (
            *({"parameters": {"other": {}}}, InvalidArgument),
            "Converting keyword: 'parameters': parameter 'other' has invalid type",
        ),
        ({"text": ["a", "b", "c"]}, None, ""),
        ({"count": [[1], [2]]}, InvalidArgument, FITS),
        ({"parameters": {"count": [1, [2]]}}, InvalidArgument, "Converting keyword: 'par"),
        ({"count": "1"}, Internal, "Unable to parse 'data': attempt to access JSON non-signed-i"),
        ({"count": {}}, Internal, "Unable to parse 'data': attempt to access JSON non-signed-i"),
        ({"text": 1}, Internal, "Unable to parse JSON bytes array: attempt to access JSON non-s"),
        (b'{"count": 1, "count": 2}', InvalidArgument, "input 'count' already exists in request"),
        (
            *(b'{"count": 1, "parameters": {"count": 2}}', InvalidArgument),
            "Converting keyword: 'parameters': input 'count' already exists in request",
        ),
    ],
)
def test_bad_requests(document: object, error: type[MicrokernelError] | None, message: str) -> None:
    if error is None:
        assert read(document).inputs[0].shape == (3, 1)
        return
    with pytest.raises(error) as caught:
        read(document)
    assert type(caught.value) is error
    assert str(caught.value).startswith(message)


def test_the_json_and_all_tensors_together_are_limited() -> None:
    model = config(a=("INT32", (-1,)), b=("INT32", (-1,)))
    body = b'{"a":[1,2,3,4,5],"b":[1,2,3,4,5]}'
    assert len(read(body, model, Limits(json_size=40)).inputs) == 2
    with pytest.raises(InvalidArgument, match="JSON input 'b' has a byte_size of 20 bytes and"):
        read(body, model, Limits(json_size=39))
    with pytest.raises(InvalidArgument, match="request JSON size of 33 bytes exceeds"):
        read(body, model, Limits(json_size=32))


def test_types_that_json_cannot_carry() -> None:
    with pytest.raises(InvalidArgument, match="receiving FP16 data via JSON is not supported"):
        read({"x": 1.0}, config(x=("FP16", (1,))))


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_keys = st.sampled_from(["text", "count", "id", "parameters", "x"])
_documents = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=4)
)


@given(_documents)
def test_any_document_is_read_or_refused_with_an_error_of_ours(document: object) -> None:
    with contextlib.suppress(MicrokernelError):
        read(document)


def response(*outputs: Tensor, request_id: str = "", **parameters: Any) -> InferResponse:
    return InferResponse("m", 2, request_id, outputs, parameters)


def tensor(name: str, *values: Any, dtype: type[Any] = np.float32) -> Tensor:
    return Tensor.from_numpy(name, np.array(values, dtype=dtype).reshape(1, -1))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (response(), {"model_name": "m", "model_version": "2"}),
        (
            response(tensor("A", 0.5), tensor("B", 1, 2), tensor("C"), request_id="7", done=True),
            {
                "id": "7",
                "model_name": "m",
                "model_version": "2",
                "done": True,
                "A": 0.5,
                "B": [1.0, 2.0],
                "C": [],
            },
        ),
        (
            response(tensor("T", b"caf\xc3\xa9", dtype=object)),
            {"model_name": "m", "model_version": "2", "T": "caf\u00e9"},
        ),
    ],
)
def test_responses_are_flat(answer: InferResponse, expected: dict[str, Any]) -> None:
    assert json.dumps(from_response(answer)) == json.dumps(expected)


async def ask(
    port: int, path: str, body: object, headers: dict[str, str] | None = None
) -> tuple[int, Any, bytes]:
    url = f"http://127.0.0.1:{port}/v2/models/{path}"
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with aiohttp.request("POST", url, data=data, headers=headers) as answer:
        return answer.status, answer.headers, await answer.read()


ANSWER = b'{"id":"7","model_name":"addsub","model_version":"1","SUM":[2,4,6,8],"DIFF":[0,0,0,0]}'
QUESTION = {"id": "7", "A": [1, 2, 3, 4], "parameters": {"B": [1, 2, 3, 4]}}
FAILING = {**QUESTION, "A": [-1, 2, 3, 4]}


async def test_generate(server: FakeServer, http_port: int) -> None:
    status, headers, body = await ask(http_port, "addsub/generate", QUESTION)
    assert (status, headers["Content-Type"], body) == (200, "application/json", ANSWER)
    assert server.requests[0].parameters == {"id": "7"}


async def test_generate_stream(http_port: int) -> None:
    path = "addsub/versions/1/generate_stream"
    status, headers, body = await ask(http_port, path, QUESTION)
    assert (status, headers["Transfer-Encoding"]) == (200, "chunked")
    assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert body == b"data: " + ANSWER + b"\n\n"


async def test_an_error_of_the_model(http_port: int) -> None:
    status, headers, body = await ask(http_port, "addsub/generate", FAILING)
    assert (status, headers["Content-Type"]) == (500, "application/json")
    assert body == b'{"error":"A starts below zero"}'
    status, headers, body = await ask(http_port, "addsub/generate_stream", FAILING)
    assert (status, headers["Content-Type"]) == (500, "text/event-stream; charset=utf-8")
    assert body == b'data: {"error":"A starts below zero"}\n\n'


@pytest.mark.parametrize("path", ["generate", "generate_stream"])
@pytest.mark.parametrize(
    ("model", "body", "headers", "status", "message"),
    [
        ("absent", QUESTION, {}, 404, "Request for unknown model: 'absent' is not found"),
        ("addsub/versions/9", QUESTION, {}, 404, "Request for unknown model: 'addsub' version 9"),
        ("addsub", b"{", {}, 500, "failed to parse the request JSON buffer"),
        ("addsub", {"A": 1}, {}, 400, "can not convert input 'A' to tensor with proper shape"),
        (
            *("addsub", QUESTION, {"Content-Encoding": "gzip"}, 400),
            "Unsupported content-encoding, only 'identity' is supported",
        ),
    ],
)
async def test_errors_before_inference_are_ordinary(
    http_port: int,
    path: str,
    model: str,
    body: object,
    headers: dict[str, str],
    status: int,
    message: str,
) -> None:
    found, answered, answer = await ask(http_port, f"{model}/{path}", body, headers)
    assert (found, answered["Content-Type"]) == (status, "application/json")
    assert message in json.loads(answer)["error"]


async def test_a_full_queue_is_an_ordinary_error(
    server: FakeServer, http_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(request: InferRequest) -> ResponseStream:
        raise Unavailable("Exceeds maximum queue size")

    monkeypatch.setattr(server, "stream", refuse)
    status, headers, body = await ask(http_port, "addsub/generate_stream", QUESTION)
    assert (status, headers["Content-Type"]) == (503, "application/json")
    assert json.loads(body) == {"error": "Exceeds maximum queue size"}


async def test_a_large_request(http_port: int) -> None:
    values = [float(i) for i in range(60_000)]
    _, _, body = await ask(http_port, "identity/generate", {"INPUT0": values})
    assert json.loads(body)["OUTPUT0"] == values


async def test_a_client_that_leaves_cancels_its_request(server: FakeServer, http_port: int) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(config: ModelConfig, request: InferRequest) -> InferResponse:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    server.models["addsub"].answer = wait
    asking = asyncio.create_task(ask(http_port, "addsub/generate_stream", QUESTION))
    await asyncio.wait_for(started.wait(), 10)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.wait_for(cancelled.wait(), 10)
