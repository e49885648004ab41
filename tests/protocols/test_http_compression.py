"""Compressed requests and answers of the infer endpoint."""

import asyncio
import gzip
import json
import threading
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel import Internal, InvalidArgument
from microkernel.testing import FakeServer
from microkernel_http.compression import CODINGS, PIECE, choose, deflate, inflate

aiohttp = pytest.importorskip("aiohttp", reason="the extra 'http' is missing")
client = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")

from microkernel_http.body import LARGE  # noqa: E402 - after the check above
from microkernel_http.frontend import HttpFrontend  # noqa: E402
from microkernel_http.settings import HttpSettings  # noqa: E402

BODY = b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,2],"data":[1,2]}]}'
LIMIT = 1 << 20
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


def inflated(body: bytes, limit: int = LIMIT) -> bytes:
    return b"".join(inflate(body, limit))


@pytest.mark.parametrize("coding", sorted(CODINGS))
@given(st.lists(st.binary(max_size=99), max_size=4))
def test_what_is_deflated_is_inflated(coding: str, parts: list[bytes]) -> None:
    assert inflated(deflate(parts, coding)) == b"".join(parts)


@given(st.binary(min_size=1, max_size=99))
def test_any_body_is_inflated_or_refused_with_an_error_of_ours(body: bytes) -> None:
    try:
        inflated(body)
    except Internal as error:
        assert str(error).startswith("failed to decompress the request body: ")  # noqa: PT017


@pytest.mark.parametrize("coding", sorted(CODINGS))
def test_data_that_does_not_shrink(coding: str) -> None:
    data = np.random.default_rng(1).bytes(3 * PIECE + 7)
    assert inflated(deflate([data], coding)) == data


@given(st.lists(st.binary(max_size=99), min_size=1, max_size=4))
def test_gzip_members_one_behind_another_are_one_body(parts: list[bytes]) -> None:
    assert inflated(b"".join(map(gzip.compress, parts))) == b"".join(parts)


def test_a_member_ends_anywhere_in_what_is_fed() -> None:
    data = np.random.default_rng(2).bytes(2 * PIECE)
    assert inflated(gzip.compress(data) + gzip.compress(b"end")) == data + b"end"


@pytest.mark.parametrize(
    "body",
    [
        gzip.compress(b"a") + zlib.compress(b"b"),
        zlib.compress(b"a") + gzip.compress(b"b"),
        gzip.compress(b"") * 4097,
    ],
    ids=["mixed", "zlib", "many"],
)
def test_what_is_no_further_member_is_refused(body: bytes) -> None:
    with pytest.raises(Internal, match="there is more data after its end"):
        inflated(body)


@pytest.mark.parametrize("coding", sorted(CODINGS))
def test_the_limit_itself_passes(coding: str) -> None:
    assert inflated(COMPRESS[coding](bytes(LIMIT))) == bytes(LIMIT)


def test_one_byte_above_the_limit() -> None:
    with pytest.raises(InvalidArgument) as caught:
        inflated(zlib.compress(bytes(LIMIT + 1)))
    assert str(caught.value) == (
        f"Decompressed data size exceeds the maximum allowed value of {LIMIT} bytes. "
        "Use --http-max-input-size to increase the limit."
    )


def test_a_bomb_is_inflated_no_further_than_the_limit() -> None:
    taken: list[int] = []

    def take() -> None:
        taken.extend(map(len, inflate(zlib.compress(bytes(64 * LIMIT)), LIMIT)))

    with pytest.raises(InvalidArgument):
        take()
    assert sum(taken) <= LIMIT
    assert max(taken) <= PIECE
    assert min(taken) > 0


WHOLE = zlib.compress(b"some contents")


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (b"", InvalidArgument, "nothing to be decompressed"),
        (b"not gzip at all", Internal, "failed to decompress the request body: Error -3"),
        (WHOLE[:-1], Internal, "failed to decompress the request body: it ends too early"),
        (WHOLE[:1], Internal, "failed to decompress the request body: it ends too early"),
        (WHOLE + b"x", Internal, "failed to decompress the request body: there is more data"),
        (WHOLE + bytes(99_999), Internal, "failed to decompress the request body: there is more"),
        (WHOLE[:-1] + b"x", Internal, "failed to decompress the request body: Error -3"),
    ],
)
def test_bodies_that_are_refused(body: bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        inflated(body)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        (None, "identity"),
        ("", "identity"),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("GZip", "gzip"),
        ("gzip, deflate", "gzip"),
        ("deflate, gzip", "deflate"),
        ("identity, gzip", "identity"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip ; q=0.5 , identity;q=0.4", "gzip"),
        ("gzip;q=0.5, identity", "identity"),
        ("gzip;q=0", "identity"),
        ("*", "identity"),
        ("*;q=1, gzip;q=0.1", "gzip"),
        ("br, gzip;q=0.1", "gzip"),
        ("gzip;q=x, deflate;q=0.1", "deflate"),
        ("gzip;q=2, deflate;q=0.1", "deflate"),
        ("gzip;q=nan, deflate;q=0.1", "deflate"),
        ("gzip;x=1, deflate;q=0.1", "deflate"),
        ("gzip;q=1;q=1, deflate;q=0.1", "deflate"),
        (",;,=,;q=1", "identity"),
    ],
)
def test_the_coding_of_an_answer(accepted: str | None, coding: str) -> None:
    assert choose(accepted) == coding


@given(st.text(alphabet="gzipdeflate,;q=.019* -"))
def test_any_accept_encoding_gives_a_known_coding(accepted: str) -> None:
    assert choose(accepted) in {"identity", *CODINGS}


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("sent", [None, "gzip", "deflate"])
@pytest.mark.parametrize("returned", [None, "gzip", "deflate"])
@pytest.mark.parametrize("size", [3, LARGE])
async def test_the_official_client(
    http_port: int, binary: bool, sent: str | None, returned: str | None, size: int
) -> None:
    values = np.arange(size, dtype=np.float32).reshape(1, -1)

    def use() -> Any:
        tensor = client.InferInput("INPUT0", [1, size], "FP32")
        tensor.set_data_from_numpy(values, binary_data=binary)
        with client.InferenceServerClient(f"127.0.0.1:{http_port}") as connected:
            return connected.infer(
                "identity",
                [tensor],
                outputs=[client.InferRequestedOutput("OUTPUT0", binary_data=binary)],
                request_compression_algorithm=sent,
                response_compression_algorithm=returned,
            )

    result = await asyncio.to_thread(use)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), values)


@pytest.fixture
async def small_port(server: FakeServer) -> AsyncIterator[int]:
    """A front end that takes little input."""
    frontend = HttpFrontend(server, HttpSettings(address="127.0.0.1", port=0, max_input_size=LARGE))
    await frontend.start()
    yield frontend.port
    await frontend.stop(5)


async def ask(
    port: int, body: bytes, headers: dict[str, str], model: str = "identity"
) -> tuple[int, Any, bytes]:
    url = f"http://127.0.0.1:{port}/v2/models/{model}/infer"
    headers = {"Accept-Encoding": "identity", **headers}
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.post(url, data=body, headers=headers) as answer,
    ):
        return answer.status, answer.headers, await answer.read()


@pytest.mark.parametrize("coding", sorted(CODINGS))
async def test_a_compressed_answer_counts_its_json_uncompressed(
    http_port: int, coding: str
) -> None:
    binary = {"parameters": {"binary_data_output": True}}
    body = json.dumps(json.loads(BODY) | binary).encode()
    _, plain_headers, plain = await ask(http_port, body, {})
    status, headers, packed = await ask(http_port, body, {"Accept-Encoding": coding})
    assert (status, headers["Content-Encoding"]) == (200, coding)
    assert inflated(packed) == plain
    for name in ("Inference-Header-Content-Length", "Content-Type"):
        assert headers[name] == plain_headers[name]
    assert "Content-Encoding" not in plain_headers


async def test_the_length_header_of_a_compressed_request_counts_the_contents(
    http_port: int,
) -> None:
    entry = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 1]}
    head = json.dumps({"inputs": [entry | {"parameters": {"binary_data_size": 4}}]}).encode()
    headers = {"Content-Encoding": "gzip", "Inference-Header-Content-Length": str(len(head))}
    status, _, answer = await ask(http_port, gzip.compress(head + b"\0\0\x80\x3f"), headers)
    assert status == 200
    assert json.loads(answer)["outputs"][0]["data"] == [1.0]


async def test_an_error_is_never_compressed(http_port: int) -> None:
    accepting = {"Accept-Encoding": "gzip"}
    status, headers, body = await ask(http_port, BODY, accepting, model="absent")
    assert (status, "Content-Encoding" in headers) == (404, False)
    assert json.loads(body)["error"].startswith("Request for unknown model")


@pytest.mark.parametrize("coding", ["GZIP", "Deflate"])
async def test_the_case_of_a_coding_does_not_matter(http_port: int, coding: str) -> None:
    packed = COMPRESS[coding.lower()](BODY)
    status, _, answer = await ask(http_port, packed, {"Content-Encoding": coding})
    assert status == 200
    assert json.loads(answer)["outputs"][0]["data"] == [1.0, 2.0]


@pytest.mark.parametrize("coding", ["", "identity", "IDENTITY"])
async def test_a_body_that_says_it_is_not_compressed(http_port: int, coding: str) -> None:
    status, _, _ = await ask(http_port, BODY, {"Content-Encoding": coding})
    assert status == 200


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "nothing to be decompressed"),
        (b"not gzip at all", 500, "failed to decompress the request body"),
        (gzip.compress(bytes(9 * LIMIT)), 400, "Decompressed data size exceeds the maximum"),
        (gzip.compress(np.random.default_rng(1).bytes(LARGE + 1)), 400, "Decompressed data size"),
    ],
)
async def test_bad_compressed_requests(
    small_port: int, body: bytes, status: int, message: str
) -> None:
    found, _, answer = await ask(small_port, body, {"Content-Encoding": "gzip"})
    assert found == status
    assert json.loads(answer)["error"].startswith(message)


async def test_an_unknown_model_is_reported_before_a_bad_body(http_port: int) -> None:
    for headers in ({"Content-Encoding": "gzip"}, {"Inference-Header-Content-Length": "x"}):
        status, found, _ = await ask(http_port, b"{", headers, model="absent")
        assert (status, found["Content-Type"]) == (404, "text/plain")


async def test_large_bodies_are_worked_on_in_threads(
    http_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from microkernel_http import infer as module

    threads = set()

    def watched(*given: Any) -> bytes:
        threads.add(threading.current_thread())
        return deflate(*given)

    monkeypatch.setattr(module, "deflate", watched)
    accepting = {"Accept-Encoding": "gzip"}
    await ask(http_port, BODY, accepting)
    assert threads == {threading.main_thread()}
    threads.clear()
    data = list(range(LARGE // 2))
    entry = {"name": "INPUT0", "datatype": "FP32", "shape": [1, len(data)], "data": data}
    body = json.dumps({"inputs": [entry]}).encode()
    status, _, _ = await ask(http_port, body, accepting)
    assert status == 200
    assert threading.main_thread() not in threads
    assert threads
