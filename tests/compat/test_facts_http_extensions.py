"""Compression, limits of size, classification and generation over HTTP."""

import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from facts_harness import (
    EVENTS,
    JSON,
    LENGTH,
    OCTETS,
    TEXT,
    A,
    B,
    Fact,
    X,
    an_input,
    request,
    write_models,
)
from server_harness import Running, ask

INFER, GENERATE = "/v2/models/echo/infer", "/v2/models/echo/generate"
BODY = request(X)
EMPTY: dict[str, str] = {}


def packed(coding: str, body: bytes, status: int, phrase: str, kind: str = JSON) -> Fact:
    """An infer request whose body claims to be in a coding."""
    return Fact("POST", INFER, status, kind, phrase, body, {"Content-Encoding": coding})


def generate(body: bytes, status: int, phrase: str, model: str = "echo") -> Fact:
    """A generate request."""
    return Fact("POST", f"/v2/models/{model}/generate", status, JSON, phrase, body)


CODED = {
    "gzip": packed("gzip", gzip.compress(BODY), 200, '"data":[1.0,2.0]'),
    "deflate": packed("deflate", zlib.compress(BODY), 200, '"data":[1.0,2.0]'),
    "gzip under the name of deflate": packed("deflate", gzip.compress(BODY), 200, "[1.0,2.0]"),
    "deflate under the name of gzip": packed("gzip", zlib.compress(BODY), 200, "[1.0,2.0]"),
    "identity": packed("identity", BODY, 200, '"data":[1.0,2.0]'),
    "no name": packed("", BODY, 200, '"data":[1.0,2.0]'),
    "another": packed("br", BODY, 501, "Unsupported compression type", TEXT),
    "nothing": packed("gzip", b"", 400, "nothing to be decompressed", TEXT),
    "corrupt data": packed("gzip", b"corrupt", 500, "", TEXT),
}


@pytest.mark.parametrize("fact", CODED)
def test_compressed_requests(facts: Running, fact: str) -> None:
    CODED[fact].check(facts)


def test_a_refused_coding_names_those_that_are_known(facts: Running) -> None:
    assert CODED["another"].ask(facts).headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("deflate, gzip", "deflate"),
        ("gzip;q=0.5, deflate;q=0.7", "deflate"),
        ("identity, gzip", None),
        ("identity;q=0.5, gzip", "gzip"),
        ("gzip;q=0", None),
        ("*", None),
        ("br, *;q=1, gzip;q=0.1", "gzip"),
        ("gzip;q=x", None),
        ("", None),
    ],
)
def test_the_coding_of_an_answer(facts: Running, accepted: str, coding: str | None) -> None:
    found = ask(facts.http, "POST", INFER, BODY, {"Accept-Encoding": accepted})
    assert found.headers.get("content-encoding") == coding
    body = zlib.decompress(found.body, 47) if coding else found.body
    assert json.loads(body)["outputs"][0]["data"] == [1, 2]


def test_a_compressed_answer_is_compressed_whole(facts: Running) -> None:
    body = request(X, parameters={"binary_data_output": True})
    found = ask(facts.http, "POST", INFER, body, {"Accept-Encoding": "gzip"})
    whole, length = gzip.decompress(found.body), int(found.headers[LENGTH.lower()])
    assert found.headers["content-type"] == OCTETS
    assert json.loads(whole[:length])["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert len(whole) == length + 8


def test_the_length_of_a_compressed_request_is_that_of_its_contents(facts: Running) -> None:
    head = request(an_input("X", "FP32", [1, 2], parameters={"binary_data_size": 8}))
    headers = {"Content-Encoding": "gzip", LENGTH: str(len(head))}
    found = ask(facts.http, "POST", INFER, gzip.compress(head + bytes(8)), headers)
    assert found.json["outputs"][0]["data"] == [0, 0]


@pytest.mark.parametrize("path", ["/v2", "/v2/models/echo", "/v2/models/stats", "/v2/logging"])
def test_only_inference_compresses(facts: Running, path: str) -> None:
    found = ask(facts.http, "GET", path, headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in found.headers


def test_an_error_is_not_compressed(facts: Running) -> None:
    found = ask(facts.http, "POST", INFER, b"{", {"Accept-Encoding": "gzip"})
    assert "content-encoding" not in found.headers
    assert found.error.startswith("failed to parse the request JSON buffer: ")


LIMIT = 256


@pytest.fixture(scope="module")
def tight(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    """A server that takes no more than LIMIT bytes of JSON, and no client's shared memory."""
    flags = ["--model-control-mode=explicit", "--load-model=echo", "--load-model=kinds"]
    repository = write_models(tmp_path_factory.mktemp("tight") / "models")
    return start_server(repository, *flags, f"--http-max-input-size={LIMIT}")


ADVICE = "Use --http-max-input-size to increase the limit."


def padded(size: int) -> bytes:
    """A request of so many bytes."""
    return BODY + b" " * (size - len(BODY))


def large(count: int) -> bytes:
    """A request of so many elements of 8 bytes each, in few bytes of JSON."""
    data = ",".join("1" * count)
    return (
        f'{{"inputs":[{{"name":"FP64","datatype":"FP64","shape":[{count}],"data":[{data}]}}],'
        '"outputs":[{"name":"FP64_OUT"}]}'
    ).encode()


KINDS = "/v2/models/kinds/infer"
LIMITS = {
    "JSON up to the limit": Fact("POST", INFER, 200, JSON, '"Y"', padded(LIMIT)),
    "JSON beyond the limit": Fact(
        *("POST", INFER, 400, JSON),
        f"request JSON size of {LIMIT + 1} bytes exceeds the maximum allowed input size",
        padded(LIMIT + 1),
    ),
    "a tensor up to the limit": Fact("POST", KINDS, 200, JSON, "FP64_OUT", large(LIMIT // 8)),
    "a tensor beyond the limit": Fact(
        "POST", KINDS, 400, JSON, "JSON input 'FP64' has a byte_size", large(LIMIT // 8 + 1)
    ),
    "a raw body up to the limit": Fact(
        "POST", INFER, 200, OCTETS, '"shape":[1,64]', bytes(LIMIT), {LENGTH: "0"}
    ),
    "a raw body beyond the limit": Fact(
        *("POST", INFER, 400, JSON, "Raw input has a byte_size", bytes(LIMIT + 4)),
        {LENGTH: "0"},
    ),
    "contents beyond the limit": Fact(
        *("POST", INFER, 400, TEXT, "Decompressed data size exceeds the maximum allowed value"),
        gzip.compress(padded(LIMIT + 1)),
        {"Content-Encoding": "gzip"},
    ),
    "contents up to the limit": Fact(
        *("POST", INFER, 200, JSON, '"Y"', gzip.compress(padded(LIMIT))),
        {"Content-Encoding": "gzip"},
    ),
    "tensors that are too large together": Fact(
        *("POST", "/v2/models/kinds/generate", 400, JSON, "exceed"),
        json.dumps({"FP64": [1] * 17, "INT64": [1] * 16}).encode(),
    ),
}


@pytest.mark.parametrize("fact", LIMITS)
def test_the_limit_of_json(tight: Running, fact: str) -> None:
    LIMITS[fact].check(tight)
    if LIMITS[fact].status == 400:
        assert LIMITS[fact].ask(tight).error.endswith(ADVICE)


def test_the_binary_part_is_not_limited_by_it(tight: Running) -> None:
    count = LIMIT
    head = request(an_input("X", "FP32", [1, count], parameters={"binary_data_size": 4 * count}))
    found = ask(tight.http, "POST", INFER, head + bytes(4 * count), {LENGTH: str(len(head))})
    assert found.json["outputs"][0]["shape"] == [1, count]


def classified(name: str, count: int, *inputs: dict[str, Any], model: str = "pair") -> Fact:
    """A request for the strongest classes of an output."""
    body = request(*inputs, outputs=[{"name": name, "parameters": {"classification": count}}])
    return Fact("POST", f"/v2/models/{model}/infer", 200, JSON, "", body)


@pytest.mark.parametrize(
    ("fact", "shape", "classes"),
    [
        (classified("SUM", 2, A, B), [2], ["8:3:west", "6:2:south"]),
        (
            classified("DIFF", 9, A, {**B, "data": [4, 3, 2, 1]}),
            [4],
            ["3:3", "1:2", "-1:1", "-3:0"],
        ),
        (
            classified("Y", 1, {**X, "shape": [2, 2], "data": [0.1, 0.9, 3, 2]}, model="echo"),
            *([2, 1], ["0.900000:1", "3.000000:0"]),
        ),
    ],
)
def test_classes(facts: Running, fact: Fact, shape: list[int], classes: list[str]) -> None:
    output = fact.ask(facts).json["outputs"][0]
    assert (output["datatype"], output["shape"]) == ("BYTES", shape)
    assert output["data"] == classes


@pytest.mark.parametrize("kind", ["BOOL", "BYTES"])
def test_types_without_classes(facts: Running, kind: str) -> None:
    name, value = ("BOOL", True) if kind == "BOOL" else ("STRING", "a")
    outputs = [{"name": f"{name}_OUT", "parameters": {"classification": 1}}]
    body = request(an_input(name, kind, [1], data=[value]), outputs=outputs)
    found = facts.post("/v2/models/kinds/infer", body)
    assert found.status == 400
    assert "class result not available for output due to unsupported type" in found.error


GENERATED = {
    "a scalar": generate(b'{"X": 1}', 200, '{"model_name":"echo","model_version":"1","Y":1.0}'),
    "an array": generate(b'{"X": [1, 2]}', 200, '"Y":[1.0,2.0]'),
    "no elements": generate(b'{"X": []}', 200, '"Y":[]'),
    "an id": generate(b'{"X": 1, "id": "i"}', 200, '{"id":"i","model_name"'),
    "in the member parameters": generate(b'{"parameters": {"X": 1}}', 200, '"Y":1.0'),
    "other members are parameters": generate(b'{"X": 1, "other": 5}', 200, '"Y":1.0'),
    "fixed dimensions divide the count": generate(b'{"X": [1,2,3,4]}', 200, '"Y":[1.0', "grid"),
    "the innermost dimension takes what is left": generate(
        b'{"X": [1, 2, 3]}', 200, '"Y":[1.0,2.0,3.0]', "plane"
    ),
    "a text": generate(b'{"X": "hello"}', 200, '"Y":"hello"', "text"),
    "parameters of a model": generate(b'{"X": 1}', 200, '"on":true,"count":3,"word":"w"', "told"),
    "a decoupled model that answers once": generate(b'{"COUNT": 1}', 200, '"Y":0', "many"),
    "an error of a decoupled model": generate(b'{"COUNT": -1}', 400, "fewer than none", "many"),
    "a count that does not divide": generate(
        *(b'{"X": [1, 2, 3]}', 400, "can not convert input 'X' to tensor with proper shape"),
        "grid",
    ),
    "a nested array": generate(b'{"X": [[1]]}', 400, "can not convert input 'X' to tensor with"),
    "parameters that are none": generate(
        b'{"parameters": 1}', 400, "Expected JSON object for keyword: 'parameters'"
    ),
    "a fault in parameters": generate(
        b'{"parameters": {"a": null}}', 400, "Converting keyword: 'parameters': "
    ),
    "an input twice": generate(b'{"X": 1, "X": 2}', 400, "already exists in request"),
    "an input twice, once in parameters": generate(
        b'{"X": 1, "parameters": {"X": 2}}', 400, "already exists in request"
    ),
    "a missing input": generate(b"{}", 400, "expected 1 inputs but got 0 inputs"),
    "malformed JSON": generate(b"{", 500, "failed to parse the request JSON buffer: "),
    "a compressed body": Fact(
        *("POST", GENERATE, 400, JSON),
        "Unsupported content-encoding, only 'identity' is supported",
        gzip.compress(b'{"X": 1}'),
        {"Content-Encoding": "gzip"},
    ),
    "a compressed body of a stream": Fact(
        *("POST", f"{GENERATE}_stream", 400, JSON),
        "Unsupported content-encoding, only 'identity' is supported",
        gzip.compress(b'{"X": 1}'),
        {"Content-Encoding": "gzip"},
    ),
}


@pytest.mark.parametrize("fact", GENERATED)
def test_generate(facts: Running, fact: str) -> None:
    GENERATED[fact].check(facts)


@pytest.mark.parametrize("count", [0, 2])
def test_generate_wants_exactly_one_response(facts: Running, count: int) -> None:
    found = facts.post("/v2/models/many/generate", b'{"COUNT": %d}' % count)
    # The status is that of the first response, which was a good one or none at all.
    assert found.status == 200
    assert "generate expects model to produce exactly 1 response" in found.error


def test_what_generate_makes_parameters(facts: Running) -> None:
    body = b'{"X": 1, "id": "i", "triton_x": true, "parameters": {"q": 0.5}}'
    found = facts.post("/v2/models/told/generate", body, X_Mine="header").json
    about = json.loads(found["TOLD"])
    assert (about["id"], about["parameters"]) == ("i", {"id": "i", "triton_x": True, "q": 0.5})


@pytest.mark.parametrize(
    ("model", "body", "status", "events"),
    [
        ("many", b'{"COUNT": 0}', 200, []),
        ("many", b'{"COUNT": 2, "id": "i"}', 200, [0, 1]),
        ("many", b'{"COUNT": -1}', 400, ["fewer than none"]),
        ("echo", b'{"X": 1}', 200, [1.0]),
    ],
)
def test_a_stream(
    facts: Running, model: str, body: bytes, status: int, events: list[object]
) -> None:
    found = facts.post(f"/v2/models/{model}/generate_stream", body)
    assert (found.status, found.headers["content-type"]) == (status, EVENTS)
    assert found.headers["transfer-encoding"] == "chunked"
    lines = found.body.decode().split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: {") for line in lines)
    documents = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert [d["error"] if status == 400 else d["Y"] for d in documents] == events
    assert all(("id" in document) == (b'"id"' in body) for document in documents)


def test_generate_is_never_compressed(facts: Running) -> None:
    found = ask(facts.http, "POST", GENERATE, b'{"X": 1}', {"Accept-Encoding": "gzip"})
    assert "content-encoding" not in found.headers
    assert found.json["Y"] == 1


def test_an_error_before_inference_is_no_event(facts: Running) -> None:
    Fact("POST", f"{GENERATE}_stream", 400, JSON, "expected 1 inputs", b"{}").check(facts)


@pytest.mark.parametrize("kind", ["system", "cuda"])
def test_shared_memory_is_off_unless_asked_for(tight: Running, kind: str) -> None:
    path, phrase = (
        f"/v2/{kind}sharedmemory",
        (
            "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to "
            "enable."
        ),
    )
    Fact("POST", f"{path}/region/r/register", 501, JSON, phrase, b"{}").check(tight)
    Fact("POST", f"{path}/unregister", 501, JSON, phrase).check(tight)
    Fact("GET", f"{path}/status", 200, JSON, "[]").check(tight)
