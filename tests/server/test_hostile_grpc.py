"""gRPC clients that mean no good: each gets the code that is due, others are served meanwhile, and
the server holds no more afterwards than before."""

import random
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from hostile_peers import MODEL, Peer, Victim, grpc_stub, is_served, victim_of
from server_harness import PATIENCE, Running, in_threads

grpc = pytest.importorskip("grpc", reason="the extra 'grpc' is missing")

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_STREAM, END_HEADERS = 1, 4


@pytest.fixture(scope="module")
def victim(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Victim:
    return victim_of(tmp_path_factory, start_server)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header, not compressed."""
    return b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in (name, value))


CALL = b"".join(
    literal(name, value)
    for name, value in (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/inference.GRPCInferenceService/ModelInfer"),
        (":authority", "x"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    )
)
GREETING = PREFACE + frame(SETTINGS, 0, 0)
OPEN = frame(HEADERS, END_HEADERS, 1, CALL)
RAW = {
    "nothing": b"",
    "HTTP/1.1": b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(509),
    "random bytes": random.Random(9).randbytes(5000),
    "half a preface": PREFACE[:10],
    "preface and random bytes": GREETING + random.Random(9).randbytes(5000),
    "no call": GREETING,
    "half a call": GREETING + OPEN[:-9],
    "headers without end": GREETING
    + frame(HEADERS, 0, 1, CALL)
    + frame(CONTINUATION, 0, 1, literal("x", "y" * 100)) * 5000,
    "data for nobody": GREETING + frame(DATA, 0, 7, b"x"),
    "a frame of 16 MiB": GREETING + frame(DATA, 0, 1, bytes((1 << 24) - 1)),
    "half a message": GREETING + OPEN + frame(DATA, 0, 1, b"\0\0\0\0\x09x"),
    "a message of 4 GiB": GREETING + OPEN + frame(DATA, 0, 1, b"\0\xff\xff\xff\xffx"),
    "a message that is not compressed": GREETING
    + OPEN
    + frame(DATA, END_STREAM, 1, b"\1\0\0\0\1x"),
    "a thousand calls taken back": GREETING
    + b"".join(
        frame(HEADERS, END_HEADERS, 2 * n + 1, CALL) + frame(RESET, 0, 2 * n + 1, bytes(4))
        for n in range(1000)
    ),
    "ten thousand pings": GREETING + frame(PING, 0, 0, bytes(8)) * 10_000,
    "ten thousand settings": GREETING + frame(SETTINGS, 0, 0, bytes(6)) * 10_000,
}


@pytest.mark.parametrize("how", ["half", "whole", "reset"])
@pytest.mark.parametrize("name", RAW)
def test_what_is_no_call(victim: Victim, name: str, how: str) -> None:
    port = victim.server.ports["GRPCInferenceService"]

    def attack() -> None:
        for _ in range(5):
            with Peer(port, RAW[name]) as peer:
                if how == "half":
                    peer.finish()
                    peer.rest()
                elif how == "reset":
                    peer.reset()

    victim.suffers(attack)


def varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


NAMED = field(1, MODEL.encode())
GROUP, UNGROUP = varint(99 << 3 | 3), varint(99 << 3 | 4)
MESSAGES = {
    "a field cut": b"\x0a\xff",
    "a length of 2^64": b"\x0a" + b"\xff" * 9 + b"\x01",
    "a varint without end": b"\xff" * 100,
    "a name that is no UTF-8": field(1, b"\xff"),
    "an input cut": NAMED + field(5, b"\x0a\xff"),
    "a tag of 0": b"\0\0",
    "groups without end": GROUP * 10_000,
    "groups in groups": NAMED + GROUP * 10_000 + UNGROUP * 10_000,
    "random bytes": random.Random(7).randbytes(100_000),
    "a large field cut": NAMED + varint(7 << 3 | 2) + varint(1 << 30) + bytes(1 << 20),
}


@contextmanager
def refused(code: str, *phrases: str) -> Iterator[None]:
    """What is done must be refused so."""
    with pytest.raises(grpc.RpcError) as raised:
        yield
    assert raised.value.code().name == code, raised.value.details()
    for phrase in phrases:
        assert phrase in raised.value.details()


@pytest.mark.parametrize("name", MESSAGES)
def test_what_is_no_message(victim: Victim, name: str) -> None:
    def attack() -> None:
        with grpc.insecure_channel(victim.server.grpc_url) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", None, None)
            with refused("INVALID_ARGUMENT"):
                call(MESSAGES[name], timeout=PATIENCE)

    victim.suffers(attack)


Fill = Callable[[Any], None]


def given(kind: str, shape: list[int], *raw: bytes, **contents: list[Any]) -> Fill:
    def fill(request: Any) -> None:
        entry = request.inputs.add(name=f"IN_{kind}", datatype=kind, shape=shape)
        request.raw_input_contents.extend(raw)
        for name, values in contents.items():
            getattr(entry.contents, name).extend(values)

    return fill


def parameters(count: int) -> Fill:
    def fill(request: Any) -> None:
        for number in range(count):
            request.parameters[f"k{number}"].uint64_param = 1

    return fill


def inputs(count: int) -> Fill:
    def fill(request: Any) -> None:
        for number in range(count):
            request.inputs.add(name=f"X{number}", datatype="INT8", shape=[1, 1])
            request.raw_input_contents.append(b"x")

    return fill


def misnamed(kind: str) -> Fill:
    def fill(request: Any) -> None:
        request.inputs.add(name="IN_INT32", datatype=kind, shape=[1, 2])
        request.raw_input_contents.append(bytes(8))

    return fill


REQUESTS: dict[str, tuple[Fill, str]] = {
    "dims of 2^64": (given("INT32", [2**62, 2], bytes(8)), "Expected"),
    "dims of 2^126": (given("INT32", [2**63 - 1, 2], bytes(8)), "Expected"),
    "dims below 0": (given("INT32", [-1, 2], bytes(8)), "All input dimensions should be specified"),
    "least dims": (given("INT32", [-(2**63), 2], b""), "All input dimensions should be specified"),
    "dims of nothing times much": (given("INT32", [0, 2**63 - 1], b""), "unexpected shape"),
    "100,000 dims": (given("INT32", [2**63 - 1] * 100_000, b""), "unexpected shape"),
    "strings beyond all": (given("BYTES", [2**62, 2], bytes(4)), "string elements"),
    "strings for a shape of few": (
        given("BYTES", [1, 2], bytes(4 << 20)),
        "unexpected number of string elements 3",
    ),
    "a string beyond its end": (given("BYTES", [1, 2], b"\xff" * 4), "incomplete string data"),
    "a million elements for two": (
        given("INT32", [1, 2], int_contents=[1] * 10**6),
        "input byte size mismatch",
    ),
    "64 MiB for two": (given("INT32", [1, 2], bytes(64 << 20)), "input byte size mismatch"),
    "10,000 parameters": (parameters(10_000), "invalid value type for 'k"),
    "10,000 inputs": (inputs(10_000), "expected number of inputs between 0 and 7 but got 10000"),
    "a type of a megabyte": (misnamed("x" * (1 << 20)), f"'{'x' * 100}' is no data type"),
}


@pytest.mark.parametrize("compression", ["NoCompression", "Gzip"])
@pytest.mark.parametrize("name", REQUESTS)
def test_requests(victim: Victim, name: str, compression: str) -> None:
    fill, phrase = REQUESTS[name]

    def attack() -> None:
        with grpc_stub(victim.server) as (stub, messages):
            request = messages.ModelInferRequest(model_name=MODEL)
            fill(request)
            with refused("INVALID_ARGUMENT", phrase):
                how = getattr(grpc.Compression, compression)
                stub.ModelInfer(request, timeout=PATIENCE, compression=how)

    victim.suffers(attack)


@pytest.mark.parametrize(("count", "size"), [(1, 1 << 20), (2000, 500), (1, 70_000)])
def test_metadata(victim: Victim, count: int, size: int) -> None:
    def attack() -> None:
        with grpc_stub(victim.server) as (stub, messages):
            metadata = [(f"x-{number}", "x" * size) for number in range(count)]
            with refused("RESOURCE_EXHAUSTED"):
                stub.ServerLive(messages.ServerLiveRequest(), metadata=metadata, timeout=PATIENCE)

    victim.suffers(attack)


def test_calls_that_are_taken_back(victim: Victim) -> None:
    def attack() -> None:
        with grpc_stub(victim.server) as (stub, messages):
            request = messages.ModelInferRequest(model_name=MODEL)
            given("INT32", [1, 2], bytes(8))(request)
            calls = [stub.ModelInfer.future(request) for _ in range(200)]
            for call in calls:
                call.cancel()
            for _ in range(50):
                with suppress(grpc.RpcError):
                    stub.ModelInfer(request, timeout=1e-4)

    victim.suffers(attack)


@pytest.mark.slow
def test_a_burst_of_calls_is_answered(victim: Victim) -> None:
    def attack() -> None:
        with grpc_stub(victim.server) as (stub, messages):
            request = messages.ModelInferRequest(model_name=MODEL)
            given("INT32", [1, 2], bytes(8))(request)
            calls = [stub.ModelInfer.future(request) for _ in range(3000)]
            raw = [call.result(timeout=PATIENCE).raw_output_contents[0] for call in calls]
        assert raw == [bytes(8)] * 3000

    victim.suffers(attack)


def sizes(messages: Any, size: int, count: int) -> Any:
    request = messages.ModelInferRequest(model_name="many", id="x")
    request.inputs.add(name="SIZES", datatype="INT32", shape=[count])
    request.raw_input_contents.append(struct.pack("<i", size) * count)
    return request


def endless(request: Any, stop: threading.Event) -> Iterator[Any]:
    yield request
    stop.wait(PATIENCE)


def whole(stub: Any, messages: Any) -> list[Any]:
    """The answers of a stream that is read to its end."""
    return list(stub.ModelStreamInfer(iter([sizes(messages, 1 << 20, 20)]), timeout=PATIENCE))


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_streams_that_nobody_reads(victim: Victim, how: str) -> None:
    def attack() -> None:
        stop = threading.Event()
        with ExitStack() as channels:
            stubs = [channels.enter_context(grpc_stub(victim.server)) for _ in range(2)]
            requests = [sizes(messages, 1 << 20, 500) for _, messages in stubs]
            calls = [
                stub.ModelStreamInfer(endless(request, stop))
                for (stub, _), request in zip(stubs, requests, strict=True)
            ]
            for call in calls:
                assert next(call).infer_response.id == "x"
            for _ in range(20):
                is_served(victim.server)
            stub, messages = stubs[0]
            read = [len(a.infer_response.raw_output_contents) for a in whole(stub, messages)]
            assert read == [1] * 20
            if how == "cancel":
                for call in calls:
                    call.cancel()
            stop.set()

    victim.suffers(attack)


def test_streams_that_say_nothing(victim: Victim) -> None:
    def attack() -> None:
        stop = threading.Event()
        with grpc_stub(victim.server) as (stub, messages):
            calls = [
                stub.ModelStreamInfer(endless(messages.ModelInferRequest(), stop))
                for _ in range(50)
            ]
            for call in calls:
                assert "not found" in next(call).error_message
            is_served(victim.server)
            stop.set()
            assert [list(call) for call in calls] == [[]] * 50

    victim.suffers(attack)


def test_a_stream_of_nothing_but_faults(victim: Victim) -> None:
    def attack() -> None:
        with grpc_stub(victim.server) as (stub, messages):
            request = messages.ModelInferRequest(model_name=MODEL, id="x")
            given("INT32", [1, 3], bytes(8))(request)
            answers = list(stub.ModelStreamInfer(iter([request] * 3000), timeout=PATIENCE))
        assert len(answers) == 3000
        assert {answer.error_message[:23] for answer in answers} == {
            "[request id: x] unexpect"[:23]
        }

    victim.suffers(attack)


@pytest.mark.parametrize("compression", ["NoCompression", "Gzip"])
@pytest.mark.slow
def test_a_stream_of_large_faults(victim: Victim, compression: str) -> None:
    def attack() -> None:
        with grpc_stub(victim.server) as (stub, messages):
            request = messages.ModelInferRequest(model_name=MODEL, id="x")
            given("INT32", [1, 3], bytes(8 << 20))(request)
            how = getattr(grpc.Compression, compression)
            sent = iter([request] * 8)
            answers = list(stub.ModelStreamInfer(sent, timeout=PATIENCE, compression=how))
        assert ["unexpected shape" in answer.error_message for answer in answers] == [True] * 8

    victim.suffers(attack)


@pytest.mark.slow
def test_many_bad_clients_at_once(victim: Victim) -> None:
    def bad(name: str) -> str:
        with grpc_stub(victim.server) as (stub, messages):
            request = messages.ModelInferRequest(model_name=MODEL)
            REQUESTS[name][0](request)
            try:
                stub.ModelInfer(request, timeout=PATIENCE)
            except grpc.RpcError as error:
                return str(error.code().name)
        return "OK"

    names = [name for name in REQUESTS if "64 MiB" not in name]

    def attack() -> None:
        calls = [lambda name=name: bad(name) for name in names * 8]
        assert in_threads(calls) == ["INVALID_ARGUMENT"] * len(calls)

    victim.suffers(attack)
