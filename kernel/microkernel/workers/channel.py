"""A framed socket at both ends: blocking in the worker, on the event loop in the server."""

import array
import asyncio
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence

from microkernel.workers.wire import LARGEST_MESSAGE, Kind, split_messages, whole_message

_RECEIVE = 16 * 1024
_RECEIVE_MORE = 256 * 1024  # where the beginning of a message was too long for the other
_MOST_DESCRIPTORS = 250  # the kernel allows 253 in one message


class BlockingChannel:
    """The worker's end. Receiving belongs to one thread; sending may come from several."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray()
        self._sending = threading.Lock()
        self._ready: deque[tuple[Kind, bytes]] = deque()
        self._descriptors: deque[int] = deque()
        self._ancillary = socket.CMSG_SPACE(_MOST_DESCRIPTORS * array.array("i").itemsize)

    def send(self, message: bytes) -> None:
        """Send a whole message. Raises OSError when the server is gone."""
        with self._sending:
            self._socket.sendall(message)

    def receive(self) -> tuple[Kind, bytes] | None:
        """The next message, None when the server closed the channel."""
        while not self._ready:
            data, ancillary, _, _ = self._socket.recvmsg(_RECEIVE, self._ancillary)
            for _, _, raw in ancillary:
                self._descriptors.extend(array.array("i", raw))
            if not data:
                return None
            if not self._buffer and (message := whole_message(data)) is not None:
                return message
            self._buffer += data
            self._ready.extend(split_messages(self._buffer))
        return self._ready.popleft()

    @property
    def buffered(self) -> bool:
        """Whether a message has been received and not been taken yet."""
        return bool(self._ready)

    def take_descriptor(self) -> int:
        """The next file descriptor that rode along with a message. Raises LookupError for one that
        this process could not take."""
        if not self._descriptors:
            raise LookupError("a file did not arrive: this process may open no more")
        return self._descriptors.popleft()


class LoopChannel:
    """The server's end: messages out at once where the socket takes them, else as it drains."""

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[Kind, bytes], None],
        on_closed: Callable[[], None],
    ) -> None:
        """Listen on the running loop. `on_closed` is called once, when the peer is gone."""
        sock.setblocking(False)
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._on_closed = on_closed
        self._incoming = bytearray()
        self._outgoing: deque[tuple[memoryview, list[int]]] = deque()
        self._open = True
        self._loop.add_reader(sock, self._readable)

    def send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message and, with its first byte, file descriptors. Silent when the peer is gone:
        the death is reported by `on_closed`."""
        if not self._open:
            return
        if not descriptors and not self._outgoing:
            try:
                sent = self._socket.send(message)
            except BlockingIOError:
                sent = 0
            except OSError:
                return  # the reader sees the end, too
            if sent == len(message):
                return
            message = message[sent:]
        self._outgoing.append((memoryview(message), [os.dup(d) for d in descriptors]))
        if len(self._outgoing) == 1:
            self._write()

    def _write(self) -> None:
        while self._outgoing:
            data, descriptors = self._outgoing[0]
            try:
                sent = (
                    socket.send_fds(self._socket, [data], descriptors)
                    if descriptors
                    else self._socket.send(data)
                )
            except BlockingIOError:
                self._loop.add_writer(self._socket, self._writable)
                return
            except OSError:
                self._discard()  # the reader sees the end, too
                return
            _close(descriptors)
            if sent < len(data):
                self._outgoing[0] = (data[sent:], [])
            else:
                self._outgoing.popleft()

    def _discard(self) -> None:
        while self._outgoing:
            _close(self._outgoing.popleft()[1])

    def _writable(self) -> None:
        self._loop.remove_writer(self._socket)
        self._write()

    def _readable(self) -> None:
        try:
            data = self._socket.recv(_RECEIVE_MORE if self._incoming else _RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            whole = None if self._incoming else whole_message(data)
            messages = self._received(data) if whole is None else (whole,)
        except (EOFError, ValueError):  # a peer that speaks nonsense is as good as gone
            self.close()
            self._on_closed()
            return
        for kind, body in messages:
            if self._open:  # else what an earlier one says has ended it
                self._on_message(kind, body)

    def _received(self, data: bytes) -> Sequence[tuple[Kind, bytes]]:
        """The messages that are complete now. Raises EOFError at the end of the channel and
        ValueError for a message of an unknown kind and one that is too long."""
        if not data:
            raise EOFError
        self._incoming += data
        return list(split_messages(self._incoming, LARGEST_MESSAGE))

    def close(self) -> None:
        """Close the channel; the peer sees the end."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._discard()
            self._socket.close()


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
