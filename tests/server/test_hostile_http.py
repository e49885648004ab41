"""HTTP clients that mean no good: each gets the answer that is due, others are served meanwhile,
and the server holds no more afterwards than before."""

import gzip
import json
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import pytest
from hostile_peers import (
    GOOD,
    INFER,
    Victim,
    victim_of,
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
    return victim_of(tmp_path_factory, start_server)


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


@pytest.mark.parametrize(
    ("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_bombs(victim: Victim, coding: str, compress: Callable[[bytes], bytes]) -> None:
    bomb = compress(bytes(LIMIT + 1))
    bomb_of_bombs = compress(bomb)

    def attack() -> None:
        found = victim.server.post(INFER, bomb, Content_Encoding=coding)
        assert (found.status, found.error.split(" of ")[0]) == (
            400,
            "Decompressed data size exceeds the maximum allowed value",
        )
        found = victim.server.post(INFER, bomb_of_bombs, Content_Encoding=coding)
        assert (found.status, "failed to parse" in found.error) == (500, True)

    victim.suffers(attack)


CODED = gzip.compress(GOOD, mtime=0)


@pytest.mark.parametrize(
    ("coding", "body", "status", "phrase"),
    [
        ("gzip", b"", 400, "nothing to be decompressed"),
        ("gzip", CODED[:-1], 500, "it ends too early"),
        ("gzip", CODED[:10], 500, "it ends too early"),
        ("gzip", CODED[:-8] + bytes(8), 500, "failed to decompress the request body"),
        ("gzip", CODED + b"more", 500, "there is more data after its end"),
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


@pytest.mark.slow
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
