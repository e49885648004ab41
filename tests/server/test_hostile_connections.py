"""Connections to the HTTP ports that mean no good: what is no HTTP, clients that go in the middle,
and streams that nobody reads."""

import json
import random
from collections.abc import Callable

import pytest
from hostile_peers import GOOD, INFER, Peer, Victim, head_of, is_served, request_of, victim_of
from server_harness import Answer, Running


@pytest.fixture(scope="module")
def victim(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Victim:
    return victim_of(tmp_path_factory, start_server)


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
