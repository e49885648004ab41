"""Framed sockets: the server's end on the loop against the worker's blocking end."""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable

import pytest

from microkernel.workers import wire
from microkernel.workers.channel import BlockingChannel, LoopChannel
from microkernel.workers.wire import Kind

OpenFiles = Callable[[], list[str]]
Message = tuple[Kind, bytes]


class Peers:
    """A `LoopChannel` that collects what comes, and the blocking end that it talks to."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.messages: asyncio.Queue[Message] = asyncio.Queue()
        self.closed = asyncio.Event()
        self.loop_end = LoopChannel(ours, self._message, self.closed.set)
        self.blocking = BlockingChannel(self.theirs)

    def _message(self, kind: Kind, body: bytes) -> None:
        self.messages.put_nowait((kind, body))

    async def next(self) -> Message:
        return await asyncio.wait_for(self.messages.get(), 10)

    def close(self) -> None:
        self.loop_end.close()
        self.theirs.close()


@pytest.fixture
async def peers() -> AsyncIterator[Peers]:
    made = Peers()
    yield made
    made.close()


async def test_messages_go_both_ways(peers: Peers) -> None:
    peers.loop_end.send(wire.frame(Kind.NEED, b"abc"))
    assert await asyncio.to_thread(peers.blocking.receive) == (Kind.NEED, b"abc")
    peers.blocking.send(wire.frame(Kind.LOG, b""))
    assert await peers.next() == (Kind.LOG, b"")


async def test_messages_in_parts_and_in_heaps(peers: Peers) -> None:
    stream = b"".join(wire.frame(Kind.LOG, bytes([i]) * i) for i in range(20))
    for start in range(0, len(stream), 7):
        peers.theirs.sendall(stream[start : start + 7])
    assert [await peers.next() for _ in range(20)] == [
        (Kind.LOG, bytes([i]) * i) for i in range(20)
    ]


async def test_a_message_larger_than_the_socket_s_buffer(peers: Peers) -> None:
    bodies = [os.urandom(3_000_000), b"small", os.urandom(1_000_000)]
    for body in bodies:
        peers.loop_end.send(wire.frame(Kind.EXECUTE, body))
    for body in bodies:
        assert await asyncio.to_thread(peers.blocking.receive) == (Kind.EXECUTE, body)
    peers_answer = asyncio.to_thread(peers.blocking.send, wire.frame(Kind.RESULT, bodies[0]))
    answer, _ = await asyncio.gather(peers.next(), peers_answer)
    assert answer == (Kind.RESULT, bodies[0])


async def test_descriptors_ride_along_in_order(peers: Peers, open_files: OpenFiles) -> None:
    pipes = [os.pipe() for _ in range(3)]
    before = len(open_files())
    for number, (reader, _) in enumerate(pipes):
        peers.loop_end.send(wire.map_message(number, 1), [reader])
    for number, (_, writer) in enumerate(pipes):
        message = await asyncio.to_thread(peers.blocking.receive)
        assert message is not None
        assert wire.read_map(message[1])[0] == number
        received = peers.blocking.take_descriptor()
        os.write(writer, bytes([number]))
        assert os.read(received, 10) == bytes([number])
        os.close(received)
    assert len(open_files()) == before
    for pipe in pipes:
        for end in pipe:
            os.close(end)


async def test_descriptors_wait_behind_what_the_socket_cannot_take_yet(
    peers: Peers, open_files: OpenFiles
) -> None:
    reader, writer = os.pipe()
    before = len(open_files())
    peers.loop_end.send(wire.frame(Kind.EXECUTE, bytes(2_000_000)))
    peers.loop_end.send(wire.map_message(7, 1), [reader])
    os.close(reader)  # the channel keeps its own copy
    for kind in (Kind.EXECUTE, Kind.MAP):
        message = await asyncio.to_thread(peers.blocking.receive)
        assert message is not None
        assert message[0] is kind
    os.close(peers.blocking.take_descriptor())
    assert len(open_files()) == before - 1
    os.close(writer)


async def test_several_messages_are_buffered(peers: Peers) -> None:
    peers.theirs.setblocking(True)
    peers.loop_end.send(wire.frame(Kind.LOG, b"1") + wire.frame(Kind.LOG, b"2"))
    assert await asyncio.to_thread(peers.blocking.receive) == (Kind.LOG, b"1")
    assert peers.blocking.buffered
    assert peers.blocking.receive() == (Kind.LOG, b"2")
    assert not peers.blocking.buffered


async def test_the_end_of_the_worker_is_reported_once(peers: Peers) -> None:
    peers.theirs.close()
    await asyncio.wait_for(peers.closed.wait(), 10)
    peers.loop_end.send(wire.frame(Kind.LOG, b"nobody"))
    peers.loop_end.close()


async def test_a_peer_that_speaks_nonsense_is_as_good_as_gone(peers: Peers) -> None:
    peers.theirs.sendall(wire.frame(Kind.LOG, b"a") + struct.pack("<IB", 0, 99))
    async with asyncio.timeout(10):
        await peers.closed.wait()
    assert peers.blocking.receive() is None


async def test_the_end_of_the_server_is_told_to_the_worker(peers: Peers) -> None:
    peers.loop_end.close()
    assert await asyncio.to_thread(peers.blocking.receive) is None
    assert not peers.closed.is_set()
    with pytest.raises(OSError, match="Broken pipe"):
        peers.blocking.send(wire.frame(Kind.LOG, b"x"))


async def test_what_could_not_be_sent_is_given_up_with_its_descriptors(
    peers: Peers, open_files: OpenFiles
) -> None:
    reader, writer = os.pipe()
    before = len(open_files())
    peers.loop_end.send(wire.frame(Kind.EXECUTE, bytes(2_000_000)))
    peers.loop_end.send(wire.map_message(1, 1), [reader])
    assert len(open_files()) == before + 1
    peers.theirs.close()
    await asyncio.wait_for(peers.closed.wait(), 10)
    assert len(open_files()) == before - 2  # both ends of the channel are gone
    os.close(reader)
    os.close(writer)
