"""One instance in a worker process, as the server sees it: a socket and blocks of memory."""

import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from microkernel.errors import MicrokernelError, Unavailable, WorkerFailed
from microkernel.request import InferRequest
from microkernel.stats import Execution
from microkernel.workers import descriptors, wire
from microkernel.workers.arena import Block, BlockPool, block_size
from microkernel.workers.channel import LoopChannel
from microkernel.workers.contract import Done, Result
from microkernel.workers.descriptors import Plan, Schema
from microkernel.workers.flights import Flights, Receiver
from microkernel.workers.parts import Part, read_part
from microkernel.workers.readiness import Readiness
from microkernel.workers.wire import NEED, PART, RESULT, Kind


@dataclass(frozen=True, slots=True)
class Link:
    """How an instance is reached: its socket, whom to tell that it has ended, how to end a worker
    gone wrong, and how to send it a CANCEL, PAUSE or RESUME for the request of a number, or READY.
    Those take another way than the batches, since the instance does not listen while it runs
    one."""

    socket: socket.socket
    closed: Callable[[], None]
    kill: Callable[[str], None]
    signal: Callable[[Kind, int], None]


class ProcessInstance:
    """One instance in a child process: gathers batches into its input block, and reads outcomes
    from the output block it lent, or from the messages of a decoupled model."""

    def __init__(self, name: str, schema: Schema, link: Link) -> None:
        self.name = name
        self._schema = schema
        self._link = link
        self._channel = LoopChannel(link.socket, self._message, link.closed)
        self._blocks = 0
        self._input: Block | None = None
        self._output: Block | None = None
        self._pool = BlockPool(self._create, self._retire)
        self._flights = Flights()
        self._done: Done | None = None
        self._next = self._first = 0
        self._start = 0
        self._failure: WorkerFailed | None = None
        self._gone: MicrokernelError | None = None
        self.readiness: Readiness | None = None

    def can_say(self) -> None:
        """The instance can be asked whether it is ready."""
        self.readiness = Readiness(lambda: self._link.signal(Kind.READY, 0))

    def execute(self, requests: Sequence[InferRequest], sizes: Sequence[int], done: Done) -> int:
        """See `WorkerInstance.execute`."""
        self._done, self._start = done, time.monotonic_ns()
        return self._send(requests, sizes)

    def stream(
        self, requests: Sequence[InferRequest], sizes: Sequence[int], receiver: Receiver
    ) -> int:
        """See `WorkerInstance.stream`."""
        self._start = time.monotonic_ns()
        self._flights.begin(self._next, len(requests), receiver)
        return self._send(requests, sizes)

    def _send(self, requests: Sequence[InferRequest], sizes: Sequence[int]) -> int:
        """Gather the batch into shared memory and send its descriptor; the number of its first
        request. Where there is no memory for it, it fails."""
        self._first = first = self._next
        self._next = first + len(requests)
        if self._gone is not None:
            self._fail_running(self._gone)
            return first
        plan = descriptors.plan(requests, self._schema)
        try:
            block = self._input_block(plan)
            if not self._schema.decoupled:
                self._output = self._pool.take()
        except OSError as error:
            text = f"no memory for {plan.total} bytes of input for '{self.name}': {error}"
            self._fail_running(Unavailable(text))
            return first
        descriptors.gather(plan, block.view)
        numbers = (block.number, self._output.number if self._output else 0, first)
        self._channel.send(descriptors.execute_message(plan, sizes, self._schema, numbers))
        return first

    def _input_block(self, plan: Plan) -> Block:
        if self._input is None or self._input.size < plan.total:
            if self._input is not None:
                self._retire(self._input)
                self._input = None
            self._input = self._create(block_size(max(plan.total, 1)))
        return self._input

    def _create(self, size: int) -> Block:
        self._blocks += 1
        block = Block.create(self._blocks, size)
        self._channel.send(wire.map_message(block.number, size), [block.descriptor])
        return block

    def _retire(self, block: Block) -> None:
        self._channel.send(wire.unmap_message(block.number))
        block.close()

    def _message(self, kind: Kind, body: bytes) -> None:
        try:
            if kind is RESULT:
                news: Result | tuple[int, Part] | WorkerFailed | None = self._result(body)
            elif kind is PART:
                news = self._part(body)
            else:
                news = self._plea(kind, body)
        except (struct.error, ValueError, LookupError, RecursionError) as error:
            self._link.kill(f"it sent a message that cannot be read: {error!r}")
            return
        if isinstance(news, Result):
            if self._schema.decoupled:
                self._flights.returned(news.times)
            else:
                self._finish(news)
        elif isinstance(news, WorkerFailed):
            self._failure = news
            self._link.kill(str(news))  # which answers the batch, by `fail`
        elif news is not None:
            self._flights.part(*news)

    def _plea(self, kind: Kind, body: bytes) -> WorkerFailed | None:
        if kind is NEED:
            self._lend(wire.read_need(body))
            return None
        if kind is Kind.FATAL:
            return WorkerFailed(wire.read_fatal(body))
        raise ValueError(f"a message of the kind {kind.name}, which no instance sends")

    def _lend(self, needed: int) -> None:
        small, self._output = self._output, None
        try:
            self._output = self._pool.grow(needed, small)
        except OSError as error:
            self._link.kill(f"there is no memory for {needed} bytes of its output: {error}")
            return
        self._channel.send(wire.need_message(self._output.number))

    def _part(self, body: bytes) -> tuple[int, Part]:
        number, part = read_part(body, self._schema)
        if number not in self._flights:
            raise ValueError(f"a response for request {number}, which is not open")
        if part.end > time.monotonic_ns():
            raise ValueError("a response of the future")
        return number, part

    def _result(self, body: bytes) -> Result:
        block, self._output = self._output, None
        view = memoryview(b"") if block is None else self._pool.lease(block)
        result = Result(*descriptors.read_result(body, self._schema, view, self._start))
        decoupled = self._schema.decoupled
        expected = 0 if decoupled else self._next - self._first
        running = self._flights.running if decoupled else self._done is not None
        if not running or len(result.answers) != expected:
            raise ValueError(f"{len(result.answers)} outcomes that nobody asked for")
        return result

    def fail(self, error: MicrokernelError) -> None:
        """The worker is gone: answer what has been dispatched and is not finished with an error, or
        with the one that this instance's backend ended its worker with. What comes from now on is
        answered so as well."""
        self._gone = error = self._failure or error
        self._fail_running(error)
        self._flights.fail(error)

    def _fail_running(self, error: MicrokernelError) -> None:
        self._flights.fail_running(error)
        if self._done is not None:
            now = time.monotonic_ns()
            times = Execution(self._start, now, now, now)
            self._finish(Result(times, [error] * (self._next - self._first)))

    def _finish(self, result: Result) -> None:
        done, self._done = self._done, None
        assert done is not None
        done(result)

    def cancel(self, number: int) -> None:
        """See `WorkerInstance.cancel`."""
        running = self._done is not None and number >= self._first
        if running or number in self._flights:
            self._link.signal(Kind.CANCEL, number)

    def pause(self, number: int) -> None:
        """See `WorkerInstance.pause`."""
        if number in self._flights:
            self._link.signal(Kind.PAUSE, number)

    def resume(self, number: int) -> None:
        """See `WorkerInstance.resume`."""
        if number in self._flights:
            self._link.signal(Kind.RESUME, number)

    def close(self) -> None:
        """Close the socket, which lets the instance end, and give the memory back."""
        if self.readiness is not None:
            self.readiness.said(False)
        self._channel.close()
        self._pool.close()
        for block in (self._input, self._output):
            if block is not None:
                block.close()
        self._input = self._output = None
