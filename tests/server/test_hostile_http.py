"""HTTP clients that mean no good: each gets the answer that is due, others are served meanwhile,
and the server holds no more afterwards than before."""

import gzip
import json
import random
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import pytest
from hostile_peers import (
    GOOD,
    INFER,
    Peer,
    Victim,
    head_of,
    is_served,
    request_of,
    write_victims,
)
from server_harness import Answer, Running, ask, in_threads

Case: TypeAlias = bytes | tuple[bytes, dict[str, str]]
"""A body, and the headers where it needs some."""
LENGTH = "Inference-Header-Content-Length"
LIMIT = 64 << 20
"""The default of --http-max-input-size."""


@pytest.fixture(scope="module")
def victim(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Victim:
    repository = tmp_path_factory.mktemp("hostile") / "models"
    write_victims(repository)
    return Victim(start_server(repository))


def one(kind: str, shape: str, **more: Any) -> bytes:
    """A request with one input; `shape` is JSON."""
    about = json.dumps({"name": f"IN_{kind}", "datatype": kind, **more})
    return f'{{"inputs":[{{"shape":{shape},{about[1:]}]}}'.encode()


def of_data(kind: str, shape: str, data: bytes) -> bytes:
    """A request with one input whose data is JSON as given."""
    return one(kind, shape, data="@").replace(b'"@"', data)


def sized(size: Any, kind: str = "INT32", shape: str = "[1,2]") -> bytes:
    """The JSON of a request whose input announces `size` bytes after it."""
    return one(kind, shape, parameters={"binary_data_size": size})


def with_tail(text: bytes, tail: bytes) -> tuple[bytes, dict[str, str]]:
    return text + tail, {LENGTH: str(len(text))}


def plain(text: bytes) -> tuple[bytes, dict[str, str]]:
    return text, {}


def announced(length: str, body: bytes = GOOD) -> tuple[bytes, dict[str, str]]:
    return body, {LENGTH: length}


HUGE = "9223372036854775807"
DEEP = 10_000
BODIES: dict[str, tuple[Case, int, str]] = {
    "tail too short": (
        with_tail(sized(8), b"1234567"),
        *(400, "unexpected size for input 'IN_INT32', expecting 1 additional bytes"),
    ),
    "tail missing": (
        with_tail(sized(2**62), b""),
        *(400, f"unexpected size for input 'IN_INT32', expecting {2**62} additional bytes"),
    ),
    "tail too long": (
        with_tail(sized(8), bytes(9)),
        *(400, "unexpected additional input data for model"),
    ),
    "tail of nobody": (with_tail(GOOD, b"x"), 400, "unexpected additional input data for model"),
    "tail for a larger shape": (
        with_tail(sized(8, shape="[1073741824,2]"), bytes(8)),
        *(400, "input byte size mismatch for input 'IN_INT32'"),
    ),
    "tail of 64 MiB for a shape of few": (
        with_tail(sized(64 << 20), bytes(64 << 20)),
        *(400, "input byte size mismatch for input 'IN_INT32' for model 'any'. Expected 8, got"),
    ),
    "tail below none": (with_tail(sized(-1), b""), 500, "non-unsigned-integer"),
    "tail of a fraction": (with_tail(sized(8.0), bytes(8)), 500, "non-unsigned-integer"),
    "tail that wraps": (with_tail(sized(2**64), b""), 500, "non-unsigned-integer"),
    **{
        f"header length {length}": (
            announced(length),
            *(400, "inference header size should be in range"),
        )
        for length in ("-1", str(len(GOOD) + 1), "9" * 30, "-" + "9" * 30)
    },
    **{
        f"header length {length!r}": (announced(length), 400, "Unable to parse")
        for length in ("x", "1.0", "1e2", "0x10", "9" * 5000, "12;13", "nan", "")
    },
    "header length cuts the text": (
        announced(str(len(GOOD) - 1)),
        *(500, "failed to parse the request JSON buffer: Missing a comma or }"),
    ),
    "dims beyond 63 bits": (of_data("INT8", f"[{HUGE},2]", b"[1]"), 400, "total element count"),
    "dims beyond 64 bits": (of_data("INT8", "[18446744073709551616]", b"[1]"), 500, "non-unsigned"),
    "dims with a product of 2^64": (
        of_data("INT8", "[4294967296,4294967296]", b"[1]"),
        *(400, "total element count"),
    ),
    "dims of nothing times much": (
        of_data("INT8", f"[0,{HUGE},{HUGE}]", b"[]"),
        *(400, "unexpected shape for input 'IN_INT8' for model 'any'"),
    ),
    "dims of bytes beyond 63 bits": (
        of_data("FP64", f"[{2**61}]", b"[1]"),
        400,
        "byte size overflow",
    ),
    "dims of strings beyond all": (
        with_tail(sized(4, "BYTES", f"[{2**61},2]"), bytes(4)),
        *(400, f"expected {2**62} string elements for inference input 'IN_BYTES'"),
    ),
    "dims below 0": (of_data("INT8", "[-1,-2]", b"[1,2]"), 500, "non-unsigned-integer"),
    "dims that are none": (of_data("INT8", "[NaN,2]", b"[1,2]"), 500, "non-unsigned-integer"),
    "dims in a string": (of_data("INT8", '"[1,2]"', b"[1,2]"), 500, "non-array"),
    "a million dims": (
        of_data("INT8", "[" + "1," * 10**6 + "2]", b"[1,2]"),
        *(400, "unexpected shape for input 'IN_INT8'"),
    ),
    "a million large dims": (
        of_data("INT8", "[" + HUGE + "," + f"{HUGE}," * 10**5 + "2]", b"[1,2]"),
        *(400, "total element count"),
    ),
    "deep data": (
        of_data("INT8", "[1,2]", b"[" * DEEP + b"]" * DEEP),
        *(400, "the request JSON is nested too deeply"),
    ),
    "data of 101 levels": (
        of_data("INT8", "[1,2]", b"[" * 101 + b"1,2" + b"]" * 101),
        *(400, "nested deeper than 100 levels"),
    ),
    "data deep on one side": (
        of_data("INT8", "[1,2]", b"[1," + b"[" * 150 + b"2" + b"]" * 151),
        *(400, "nested deeper than 100 levels"),
    ),
    "deep and unfinished": (b"[" * DEEP, 400, "the request JSON is nested too deeply"),
    "deep objects": (
        b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        *(400, "the request JSON is nested too deeply"),
    ),
    "deep parameters": (
        b'{"inputs":[],"parameters":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
        *(400, "the request JSON is nested too deeply"),
    ),
    "a number of 100,000 digits": (
        of_data("INT8", "[1,2]", b"[1," + b"1" * 100_000 + b"]"),
        *(500, "Number too big to be stored in double"),
    ),
    "text that is no UTF-8": (
        of_data("BYTES", "[1,2]", b'["\xff","x"]'),
        *(500, "Invalid encoding in string. at"),
    ),
    "text with half a surrogate": (
        of_data("BYTES", "[1,2]", rb'["\ud800","x"]'),
        *(500, "The surrogate pair in string is invalid"),
    ),
    "strings cut": (
        with_tail(sized(9, "BYTES"), b"\1\0\0\0a\xff\0\0\0"),
        *(400, "incomplete string data for inference input 'IN_BYTES'"),
    ),
    "strings for a shape of few": (
        with_tail(sized(4 << 20, "BYTES"), bytes(4 << 20)),
        *(400, "unexpected number of string elements 3 for inference input 'IN_BYTES'"),
    ),
    "priority that is none": (b'{"inputs":[],"parameters":{"priority":NaN}}', 500, "'priority'"),
    "timeout below 0": (b'{"inputs":[],"parameters":{"timeout":-1}}', 500, "'timeout'"),
    "sequence of 2^64": (
        b'{"inputs":[],"parameters":{"sequence_id":18446744073709551616}}',
        *(500, "'sequence_id'"),
    ),
    "no JSON at all": (bytes(range(256)), 500, "failed to parse the request JSON buffer"),
    "a list": (b"[]", 500, "'inputs'"),
    "null": (b"null", 500, "'inputs'"),
    "inputs that are one": (b'{"inputs":{}}', 500, "non-array"),
    "an input that is none": (b'{"inputs":[1]}', 400, "Input must set only one of the following"),
    "a name of a megabyte": (
        one("INT8", "[1,2]", data=[1, 2]).replace(b"IN_INT8", b"x" * (1 << 20)),
        *(400, "unexpected inference input 'xxx"),
    ),
}


def sent(case: Case) -> tuple[bytes, dict[str, str]]:
    return plain(case) if isinstance(case, bytes) else case


@pytest.mark.parametrize("name", BODIES)
def test_bodies(victim: Victim, name: str) -> None:
    case, status, phrase = BODIES[name]
    body, headers = sent(case)

    def attack() -> None:
        found = ask(victim.server.http, "POST", INFER, body, headers)
        assert (found.status, phrase in found.error) == (status, True), found.body[:300]

    victim.suffers(attack)


@pytest.mark.parametrize(
    "body",
    [
        GOOD[:-1] + b',"inputs":[{"name":"x"}]}',
        b'{"inputs":[],' + GOOD[1:],
        GOOD.replace(b'"shape":[1,2]', b'"shape":[9,9],"shape":[1,2]'),
        GOOD.replace(b'"data":[4,2]', b'"data":[4,2],"data":["x"]'),
        b"{" + b'"a":1,' * 100_000 + GOOD[1:],
    ],
    ids=["inputs", "inputs first", "shape", "data", "others"],
)
def test_repeated_keys_of_json(victim: Victim, body: bytes) -> None:
    def attack() -> None:
        found = victim.server.post(INFER, body)
        if found.status == 200:
            assert found.json["outputs"][0]["data"] == [4, 2]
        else:
            assert found.status in (400, 500)
            assert found.error

    victim.suffers(attack)


CODED = gzip.compress(GOOD)


@pytest.mark.parametrize(
    ("coding", "body", "status", "phrase"),
    [
        ("gzip", gzip.compress(bytes(LIMIT + 1)), 400, "Decompressed data size exceeds"),
        ("deflate", zlib.compress(bytes(LIMIT + 1)), 400, "Decompressed data size exceeds"),
        ("gzip", gzip.compress(gzip.compress(bytes(LIMIT))), 500, "failed to parse"),
        ("gzip", b"", 400, "nothing to be decompressed"),
        ("gzip", CODED[:-1], 500, "it ends too early"),
        ("gzip", CODED[:10], 500, "it ends too early"),
        ("gzip", CODED[:-8] + bytes(8), 500, "failed to decompress the request body"),
        ("gzip", CODED + CODED, 500, "there is more data after its end"),
        ("gzip", bytes(1000), 500, "failed to decompress the request body"),
        ("deflate", GOOD, 500, "failed to decompress the request body"),
        ("br", GOOD, 501, "Unsupported compression type"),
        ("gzip, gzip", CODED, 501, "Unsupported compression type"),
    ],
)
def test_compressed_bodies(
    victim: Victim, coding: str, body: bytes, status: int, phrase: str
) -> None:
    def attack() -> None:
        found = victim.server.post(INFER, body, Content_Encoding=coding)
        assert (found.status, phrase in found.error) == (status, True), found.body

    victim.suffers(attack)


CHUNKED = head_of(INFER, "Transfer-Encoding: chunked")
FRAMES: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "two lengths": (head_of(INFER, "Content-Length: 5", "Content-Length: 6") + b"123456", (400,)),
    "length and chunks": (
        head_of(INFER, "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        (400,),
    ),
    "length below 0": (head_of(INFER, "Content-Length: -5"), (400,)),
    "length of a sum": (head_of(INFER, "Content-Length: +5") + b"12345", (400,)),
    "length beyond all": (head_of(INFER, f"Content-Length: {2**63}"), (400,)),
    "length beyond the limit": (head_of(INFER, f"Content-Length: {2**31}"), (400,)),
    "coding unknown": (head_of(INFER, "Transfer-Encoding: gzip"), (400, 501)),
    "chunk of no size": (CHUNKED + b"x\r\n", (400,)),
    "chunk below 0": (CHUNKED + b"-1\r\nx\r\n", (400,)),
    "chunk beyond all": (CHUNKED + b"f" * 17 + b"\r\nx", (400,)),
    "chunk of the wrong size": (CHUNKED + b"1\r\nxy\r\n0\r\n\r\n", (400,)),
    "head with a NUL": (head_of(INFER, "X: \0"), (400,)),
    "head without a colon": (head_of(INFER, "X"), (400,)),
    "head with a name of spaces": (head_of(INFER, "X : x"), (400,)),
    "head of a megabyte": (head_of(INFER, "X: " + "x" * (1 << 20)), (431,)),
    "a path of a megabyte": (head_of("/" + "x" * (1 << 20)), (431,)),
    "a hundred thousand headers": (head_of(INFER, *["X: x"] * 100_000), (400, 431)),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(27), (400,)),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(509), (400,)),
    "SSH": (b"SSH-2.0-OpenSSH_9.6\r\n", (400,)),
    "nothing but line ends": (b"\r\n" * 20_000 + b"x\r\n\r\n", (400,)),
}


@pytest.mark.parametrize("port", ["HTTPService", "Metrics"])
@pytest.mark.parametrize("name", FRAMES)
def test_frames(victim: Victim, name: str, port: str) -> None:
    data, statuses = FRAMES[name]

    def attack() -> None:
        with Peer(victim.server.ports[port], data) as peer:
            found = peer.answer()
            assert found.status in (statuses if port == "HTTPService" else (*statuses, 405))
            assert list(found.json) == ["error"]
            if found.status != 405:
                peer.finish()
                assert peer.rest() == b""

    victim.suffers(attack)


@pytest.mark.parametrize("port", ["HTTPService", "Metrics"])
def test_random_bytes(victim: Victim, port: str) -> None:
    def attack() -> None:
        source = random.Random(8)
        for _ in range(50):
            data = source.randbytes(source.randrange(1, 5000))
            with Peer(victim.server.ports[port], data + b"\r\n\r\n") as peer:
                peer.finish()
                found = peer.rest()
                assert found == b"" or found.startswith((b"HTTP/1.0 400 ", b"HTTP/1.1 400 "))

    victim.suffers(attack)


def chunks(count: int) -> bytes:
    """The good request in so many chunks."""
    ends = b"1\r\n \r\n" * (count - 1)
    return CHUNKED + ends + b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)


def test_as_many_chunks_as_allowed(victim: Victim) -> None:
    def attack() -> None:
        with Peer(victim.server.http, chunks(65536)) as peer:
            assert peer.answer().status == 200

    victim.suffers(attack)


def test_a_chunk_too_many(victim: Victim) -> None:
    def attack() -> None:
        with Peer(victim.server.http, chunks(65537)) as peer:
            found: Answer = peer.answer()
        assert (found.status, found.headers["connection"]) == (400, "close")
        assert found.error.startswith("Chunked request body exceeds maximum")

    victim.suffers(attack)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"POST",
        head_of(INFER)[:-2],
        head_of(INFER, f"Content-Length: {len(GOOD)}"),
        request_of(GOOD)[:-1],
        head_of(INFER, f"Content-Length: {1 << 30}") + bytes(1 << 20),
        CHUNKED + b"ffff\r\nx",
        request_of(GOOD),
        request_of(GOOD) * 50 + b"GET /v2",
    ],
    ids=["nothing", "word", "head", "no body", "body", "large", "chunk", "whole", "many"],
)
@pytest.mark.parametrize("how", ["half", "whole", "reset"])
def test_clients_that_go_in_the_middle(victim: Victim, data: bytes, how: str) -> None:
    def attack() -> None:
        for _ in range(20):
            with Peer(victim.server.http, data) as peer:
                if how == "half":
                    peer.finish()
                    peer.rest()
                elif how == "reset":
                    peer.reset()

    victim.suffers(attack)


STREAMS = {
    "generate": (
        "/v2/models/many/generate_stream",
        json.dumps({"SIZES": [1 << 19] * 500}).encode(),
    ),
    "infer": (
        "/v2/models/many/infer",
        json.dumps(
            {
                "inputs": [
                    {
                        "name": "SIZES",
                        "datatype": "INT32",
                        "shape": [500],
                        "data": [1 << 19] * 500,
                    }
                ]
            }
        ).encode(),
    ),
}


@pytest.mark.parametrize("how", ["half", "whole", "reset"])
@pytest.mark.parametrize("name", STREAMS)
def test_events_that_nobody_reads(victim: Victim, name: str, how: str) -> None:
    path, body = STREAMS[name]

    def attack() -> None:
        unread = [
            Peer(victim.server.http, request_of(body, "Accept: text/event-stream", path=path))
            for _ in range(2)
        ]
        for peer in unread:
            assert peer.socket.recv(15) == b"HTTP/1.1 200 OK"
        for _ in range(20):
            is_served(victim.server)
        few = json.dumps({"SIZES": [2] * 20}).encode()
        found = victim.server.post("/v2/models/many/generate_stream", few)
        assert (found.status, found.body.count(b'"OUT":[0,0]')) == (200, 20)
        for peer in unread:
            if how == "half":
                peer.finish()
            elif how == "reset":
                peer.reset()
            peer.socket.close()

    victim.suffers(attack)


def test_many_bad_clients_at_once(victim: Victim) -> None:
    cases = [sent(case) for case, _, _ in BODIES.values()]
    statuses = [status for _, status, _ in BODIES.values()]

    def attack() -> None:
        calls: list[Callable[[], Answer]] = [
            partial(ask, victim.server.http, "POST", INFER, body, headers)
            for body, headers in cases * 3
        ]
        calls += [partial(victim.server.post, INFER, GOOD)] * 50
        found = in_threads(calls)
        assert [answer.status for answer in found] == statuses * 3 + [200] * 50

    victim.suffers(attack)
