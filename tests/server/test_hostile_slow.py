"""Clients that take their time, and crowds of them: nobody waits for them for ever."""

import json
import resource
import select
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from hostile_peers import (
    GOOD,
    INFER,
    Peer,
    Victim,
    grpc_stub,
    head_of,
    is_served,
    request_of,
    victim_of,
    wait_until,
)
from server_harness import PATIENCE, Running, ask

pytestmark = pytest.mark.slow

LIMIT = 1
"""Seconds that a server waits for its clients."""
STREAM = "/v2/models/many/generate_stream"
TOO_LATE = b'{"error":"the %b of the request took too long"}'


@pytest.fixture(scope="module")
def victim(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Victim:
    limits = {"header": LIMIT, "body": LIMIT, "keep-alive": 2 * LIMIT}
    flags = [f"--http-{what}-timeout-secs={limit}" for what, limit in limits.items()]
    return victim_of(tmp_path_factory, start_server, *flags)


@contextmanager
def crowd(port: int, data: bytes, count: int = 50) -> Iterator[list[Peer]]:
    """Many clients that send the same."""
    with ExitStack() as closing:
        yield [closing.enter_context(Peer(port, data)) for _ in range(count)]


@contextmanager
def crowds(victim: Victim, data: bytes) -> Iterator[list[Peer]]:
    """The same crowd before every port of HTTP, so that all wait for the limit together."""
    with ExitStack() as closing:
        ports = [victim.server.ports[name] for name in ("HTTPService", "Metrics")]
        yield [peer for port in ports for peer in closing.enter_context(crowd(port, data))]


def test_clients_that_send_nothing(victim: Victim) -> None:
    def attack() -> None:
        with crowds(victim, b"") as peers:
            assert [peer.rest() for peer in peers] == [b""] * len(peers)

    victim.suffers(attack)


def test_heads_that_come_byte_by_byte(victim: Victim) -> None:
    def attack() -> None:
        with crowds(victim, b"GET / HTTP/1.1\r\nX: ") as peers:
            waiting = list(peers)
            while waiting:
                is_served(victim.server)
                answered, _, _ = select.select([peer.socket for peer in waiting], [], [], 0)
                waiting = [peer for peer in waiting if peer.socket not in answered]
                for peer in waiting:
                    peer.send(b"x")
            for peer in peers:  # an answer is lost when a byte arrives after it was sent
                found = peer.rest()
                assert found == b"" or found.endswith(TOO_LATE % b"head")

    victim.suffers(attack)


def test_heads_that_do_not_go_on(victim: Victim) -> None:
    def attack() -> None:
        with crowds(victim, b"GET / HTTP/1.1\r\nX: ") as peers:
            is_served(victim.server)
            for peer in peers:
                found = peer.answer()
                assert (found.status, found.body) == (408, TOO_LATE % b"head")

    victim.suffers(attack)


UNFINISHED = {
    "none": head_of(INFER, f"Content-Length: {len(GOOD)}"),
    "half": request_of(GOOD)[:-1],
    "chunk": head_of(INFER, "Transfer-Encoding: chunked") + b"5\r\n{",
    "gzip": head_of(INFER, "Content-Encoding: gzip", "Content-Length: 99") + b"\x1f\x8b",
}


def test_bodies_that_do_not_go_on(victim: Victim) -> None:
    """Of every kind at once, so that all wait for the limit together."""

    def attack() -> None:
        with ExitStack() as closing:
            kinds = {
                name: closing.enter_context(crowd(victim.server.http, data, 25))
                for name, data in UNFINISHED.items()
            }
            is_served(victim.server)
            for name, peers in kinds.items():
                for peer in peers:
                    found = peer.answer()
                    assert (found.status, found.body) == (408, TOO_LATE % b"body"), name
                    assert peer.rest() == b"", name

    victim.suffers(attack)


def test_answers_that_nobody_takes(victim: Victim) -> None:
    size = 16 << 20
    text = json.dumps(
        {
            "parameters": {"binary_data_output": True},
            "inputs": [
                {
                    "name": "IN_INT32",
                    "datatype": "INT32",
                    "shape": [size // 8, 2],
                    "parameters": {"binary_data_size": size},
                }
            ],
        }
    ).encode()
    data = request_of(text + bytes(size), f"Inference-Header-Content-Length: {len(text)}")

    def attack() -> None:
        with crowd(victim.server.http, data, 5) as peers:
            for peer in peers:
                assert peer.socket.recv(15) == b"HTTP/1.1 200 OK"
            is_served(victim.server)
            assert wait_until(victim.server, victim.is_quiet)

    victim.suffers(attack)


def test_events_that_nobody_takes_give_the_model_back(victim: Victim) -> None:
    body = json.dumps({"SIZES": [1 << 19] * 500}).encode()
    few = json.dumps({"SIZES": [2] * 20}).encode()

    def attack() -> None:
        with crowd(victim.server.http, request_of(body, path=STREAM), 3) as peers:  # all instances
            for peer in peers:
                assert peer.socket.recv(15) == b"HTTP/1.1 200 OK"
            is_served(victim.server)
            found = victim.server.post(STREAM, few)
            assert (found.status, found.body.count(b'"OUT":[0,0]')) == (200, 20)

    victim.suffers(attack)


def test_connections_that_are_kept_for_nothing(victim: Victim) -> None:
    asked = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"

    def attack() -> None:
        with crowd(victim.server.http, asked) as peers:
            for peer in peers:
                assert peer.answer().status == 200
                assert peer.rest() == b""

    victim.suffers(attack)


PORTS = ["HTTPService", "Metrics", "GRPCInferenceService"]


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits cannot be set from outside")
@pytest.mark.parametrize("port", PORTS)
def test_more_connections_than_descriptors(victim: Victim, port: str) -> None:
    pid = victim.server.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)

    def attack() -> None:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (64, limits[1]))
        try:
            with crowd(victim.server.ports[port], b"", 100):
                assert victim.server.process.poll() is None
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)

    victim.suffers(attack)


@pytest.fixture(scope="module")
def patient(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Victim:
    """A server with the limits that are set by default."""
    return victim_of(tmp_path_factory, start_server)


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("data", [b"", b"GET /v2/health/live HTTP/1.1\r\nX: "])
def test_a_thousand_idle_connections(patient: Victim, port: str, data: bytes) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("too few descriptors are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))

    def attack() -> None:
        with crowd(patient.server.ports[port], data, 1000):
            for _ in range(20):
                is_served(patient.server)

    patient.suffers(attack)


@pytest.mark.timeout(600)
def test_streams_that_nobody_reads_give_the_model_back(patient: Victim) -> None:
    def sizes(messages: Any, count: int) -> Iterator[Any]:
        request = messages.ModelInferRequest(model_name="many")
        request.inputs.add(name="SIZES", datatype="INT32", shape=[count])
        request.raw_input_contents.append((1 << 20).to_bytes(4, "little") * count)
        yield request

    def attack() -> None:
        with ExitStack() as channels:
            stubs = [channels.enter_context(grpc_stub(patient.server)) for _ in range(4)]
            unread = [stub.ModelStreamInfer(sizes(m, 500)) for stub, m in stubs[:3]]
            for call in unread:
                assert not next(call).error_message
            is_served(patient.server)
            stub, messages = stubs[3]
            answers = list(stub.ModelStreamInfer(sizes(messages, 20), timeout=3 * PATIENCE))
            assert [answer.error_message for answer in answers] == [""] * 20

    patient.suffers(attack)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("begin", "again", "times", "end", "status", "phrase"),
    [
        (b"", b"1", 100 << 20, b"", 400, "request JSON size of 104857600 bytes exceeds"),
        (b"[", b"1", 60 << 20, b"", 500, "Number too big to be stored in double"),
        (b"[1.", b"1", 60 << 20, b"]", 500, "'inputs'"),
        (b'"', b"a", 60 << 20, b"", 500, "Missing a closing quotation mark"),
        (b'"', b"\\u0041", 10 << 20, b'"', 500, "'inputs'"),
        (b"[", b"[],", 8 << 20, b"[]]", 400, "more than 10000 objects, arrays and members"),
        (b"[", b"{},", 8 << 20, b"{}]", 400, "more than 10000 objects, arrays and members"),
        (b"", b" ", 60 << 20, b"", 500, "The document is empty"),
    ],
    ids=["too large", "digits", "fraction", "open", "escapes", "arrays", "objects", "spaces"],
)
def test_large_texts(
    patient: Victim, begin: bytes, again: bytes, times: int, end: bytes, status: int, phrase: str
) -> None:
    body = begin + again * times + end

    def attack() -> None:
        found = ask(patient.server.http, "POST", INFER, body)
        assert (found.status, phrase in found.error) == (status, True), found.body[:300]

    patient.suffers(attack)
