"""What clients that mean no good are made of, and how to see that a server has come through: it
serves others meanwhile, and holds no more than before."""

import http.client
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from identity_models import write_identity
from server_harness import ADDRESS, PATIENCE, Answer, Running, write_python_model

if not Path("/proc/self/fd").is_dir():
    pytest.skip("looks into /proc", allow_module_level=True)

ROOM = 24 << 20
"""Bytes by which the memory of a server may differ when the same has happened to it again."""
SPARE_THREADS = 16
"""gRPC makes some threads when it has much to do, and ends them when it sees fit."""
MOST_ATTACKS = 8
"""After so many of the same the memory must have stopped to grow."""
MODEL = "any"
INFER = f"/v2/models/{MODEL}/infer"
GOOD = b'{"inputs":[{"name":"IN_INT32","datatype":"INT32","shape":[1,2],"data":[4,2]}]}'
_MANY = """
model_transaction_policy { decoupled: true }
input { name: "SIZES" data_type: TYPE_INT32 dims: [ -1 ] }
output { name: "OUT" data_type: TYPE_UINT8 dims: [ -1 ] }
instance_group { kind: KIND_CPU count: 3 }
"""
_MANY_BODY = """
def execute(self, requests):
    for request in requests:
        sender = request.get_response_sender()
        for size in read(request, "SIZES"):
            if request.is_cancelled():
                break
            sender.send(answer(OUT=np.zeros(size, np.uint8)))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
_TYPES = ("BOOL", "INT8", "INT32", "UINT64", "FP32", "FP64", "BYTES")


def write_victims(repository: Path) -> None:
    """`any`, which gives back whichever of its optional inputs it gets, and `many`, which answers
    with as many bytes as each number of `SIZES` says, three requests at a time."""
    write_identity(repository, MODEL, "python", "plain", _TYPES, "optional: true")
    write_python_model(repository, "many", _MANY, _MANY_BODY)


def victim_of(
    folders: pytest.TempPathFactory, start_server: Callable[..., Running], *flags: str
) -> "Victim":
    """A server of those models, with these flags, to be attacked."""
    repository = folders.mktemp("hostile") / "models"
    write_victims(repository)
    return Victim(start_server(repository, *flags))


class Peer:
    """A client that sends bytes as they are. No wait of it is longer than PATIENCE."""

    def __init__(self, port: int, data: bytes = b"") -> None:
        self.socket = socket.create_connection((ADDRESS, port), PATIENCE)
        self.send(data)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Send; False where the server has closed the connection already."""
        try:
            self.socket.sendall(data)
        except ConnectionError:
            return False
        return True

    def finish(self) -> None:
        """Send no more, and go on to listen."""
        with suppress(OSError):  # the server may have closed already
            self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Break the connection off without a farewell."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def answer(self) -> Answer:
        """The next answer."""
        response = http.client.HTTPResponse(self.socket)
        response.begin()
        named = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, named, response.read())

    def rest(self) -> bytes:
        """What comes until the server closes the connection."""
        parts = []
        try:
            while part := self.socket.recv(1 << 16):
                parts.append(part)
        except ConnectionError:
            pass
        return b"".join(parts)


def head_of(path: str, *headers: str) -> bytes:
    """The head of a POST."""
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def request_of(body: bytes, *headers: str, path: str = INFER) -> bytes:
    """A whole POST."""
    return head_of(path, *headers, f"Content-Length: {len(body)}") + body


def is_served(server: Running) -> None:
    """Another client gets what it asks for, over both protocols."""
    found = server.post(INFER, GOOD)
    assert (found.status, found.json["outputs"][0]["data"]) == (200, [4, 2])
    with grpc_stub(server) as (stub, messages):
        request = messages.ModelInferRequest(model_name=MODEL)
        entry = request.inputs.add(name="IN_INT32", datatype="INT32", shape=[1, 2])
        entry.contents.int_contents.extend([4, 2])
        response = stub.ModelInfer(request, timeout=PATIENCE)
    assert list(response.raw_output_contents) == [bytes([4, 0, 0, 0, 2, 0, 0, 0])]


@contextmanager
def grpc_stub(server: Running, **options: int) -> Iterator[tuple[Any, Any]]:
    """A stub on a channel of its own, and the module of its messages."""
    grpc = pytest.importorskip("grpc", reason="the extra 'grpc' is missing")
    pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is missing")
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    given = [("grpc.use_local_subchannel_pool", 1), *options.items()]
    with grpc.insecure_channel(server.grpc_url, options=given) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel), service_pb2


@dataclass(frozen=True)
class Footprint:
    """What the processes of a server hold: blocks of memory that they share, other descriptors,
    threads, and the bytes of the server itself."""

    blocks: int
    descriptors: int
    threads: int
    memory: int

    def has_outgrown(self, before: "Footprint") -> bool:
        """Whether more is held of what is kept for the next time."""
        return self.blocks > before.blocks or self.memory > before.memory + ROOM


def footprint(server: Running) -> Footprint:
    """What is held now."""
    process = psutil.Process(server.process.pid)
    every = [process, *server.processes()]
    opened = [name for each in every for name in _opened(each.pid)]
    blocks = sum(name.startswith("/memfd:") for name in opened)
    threads = sum(each.num_threads() for each in every)
    return Footprint(blocks, len(opened) - blocks, threads, process.memory_info().rss)


def _opened(pid: int) -> list[str]:
    """What the descriptors of a process stand for."""
    names = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            names.append(str(entry.readlink()))
    return names


def wait_until(server: Running, reached: Callable[[], bool]) -> bool:
    """Whether something comes to be, the server being asked for its health meanwhile."""
    until = time.monotonic() + PATIENCE
    while not reached():
        if time.monotonic() > until:
            return False
        assert server.get("/v2/health/live").status == 200
    return True


class Victim:
    """A server that is attacked. `quiet` is what it holds when nobody is connected."""

    def __init__(self, server: Running) -> None:
        self.server = server
        for _ in range(3):
            is_served(server)
        self._fill_threads()
        self.quiet = self._least()

    def _least(self) -> Footprint:
        """The least of several looks, for connections are closed a little after their clients."""
        looks = []
        for _ in range(20):
            assert self.server.get("/v2/health/live").status == 200
            looks.append(footprint(self.server))
        descriptors = min(look.descriptors for look in looks)
        return replace(
            looks[-1], descriptors=descriptors, threads=min(each.threads for each in looks)
        )

    def _fill_threads(self) -> None:
        """Have the threads made that large bodies are worked on in, for they stay."""
        import gzip

        body = gzip.compress(GOOD + b" " * (1 << 20), 1)
        connected = [Peer(self.server.http) for _ in range(16)]
        for peer in connected:
            peer.send(request_of(body, "Content-Encoding: gzip"))
        for peer in connected:
            assert peer.answer().status == 200
            peer.socket.close()

    def suffers(self, attack: Callable[[], Any]) -> None:
        """Attack again and again: others are served after each time, no descriptor and no thread of
        ours is left behind, and soon memory is as it was the time before."""
        seen = [footprint(self.server)]
        while len(seen) < 3 or seen[-1].has_outgrown(seen[-2]):
            assert len(seen) < MOST_ATTACKS, seen
            attack()
            is_served(self.server)
            assert self.server.process.poll() is None
            assert wait_until(self.server, self.is_quiet), (footprint(self.server), self.quiet)
            seen.append(footprint(self.server))

    def is_quiet(self) -> bool:
        """Whether nothing is held for any client."""
        now = footprint(self.server)
        threads = self.quiet.threads + SPARE_THREADS
        return now.descriptors <= self.quiet.descriptors and now.threads <= threads
