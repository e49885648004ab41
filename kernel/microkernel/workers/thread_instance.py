"""One instance on a thread of the server process.

A batch of one reaches the backend as a view on what the protocol received; outputs are copied once,
so that a backend may use its buffers again.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import structlog

from microkernel.backend import Instance, Model, Placement
from microkernel.batch import Batch
from microkernel.binding import bind_thread
from microkernel.errors import MicrokernelError, Unavailable, WorkerFailed
from microkernel.origin import works_for
from microkernel.request import Answer, Answered, InferRequest, Outcome, Reschedule
from microkernel.responses import HIGH_BYTES, HIGH_COUNT
from microkernel.stats import Execution
from microkernel.workers import descriptors
from microkernel.workers.contract import Done, Result
from microkernel.workers.descriptors import Schema
from microkernel.workers.flags import Flags, Slot
from microkernel.workers.flights import Flights, Receiver
from microkernel.workers.parts import Moments, Part
from microkernel.workers.readiness import Readiness, says
from microkernel.workers.runner import as_error, run
from microkernel.workers.senders import WorkerSender, run_stream

log = structlog.get_logger()

T = TypeVar("T")


class Homecoming:
    """Brings news from instance threads to the loop, waking it once for all that are there."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._news: deque[tuple[Callable[[Any], object], object]] = deque()
        self._context = Context()  # else the loop would log in the name of the thread's batch
        self._woken = False

    def bring(self, tell: Callable[[T], object], news: T) -> None:
        """Have `tell(news)` called on the loop, in the order of the calls."""
        self._news.append((tell, news))
        if not self._woken:
            self._woken = True
            try:  # noqa: SIM105 - suppress() costs much of what a result costs here
                self._loop.call_soon_threadsafe(self._deliver, context=self._context)
            except RuntimeError:
                pass  # a thread left behind may outlive the loop

    def _deliver(self) -> None:
        self._woken = False  # first: what is brought from now on wakes the loop again
        while self._news:
            tell, news = self._news.popleft()
            self._loop.call_soon(tell, news)


@dataclass(slots=True, eq=False)
class _Order:
    """A batch on its way through an instance; `done` is None for one of a decoupled model."""

    requests: Sequence[InferRequest]
    sizes: Sequence[int]
    first: int
    start: int
    done: Done | None = None


class _ThreadSender(WorkerSender):
    """Hands responses to the loop as copies, and waits while it has too many of them to take."""

    def __init__(
        self,
        slot: Slot,
        request: InferRequest,
        schema: Schema,
        bring: Callable[["_ThreadSender", Part], None],
    ) -> None:
        super().__init__(slot, request, schema)
        self.number = slot.number
        self._bring = bring
        # Each is written by one side only, so they need no lock.
        self._sent_count = self._sent_bytes = 0
        self._taken_count = self._taken_bytes = 0

    def _deliver(self, outcome: Outcome | None, moments: Moments, *, final: bool) -> int:
        answer = None if outcome is None else _copied(outcome)
        end = time.monotonic_ns()
        if self._full() and not final:
            self._slot.flags.wait_for(self.number, lambda: not self._full())
        self._sent_count += 1
        self._sent_bytes += _size(answer)
        self._bring(self, Part(answer, final, moments.began, moments.output_start, end))
        return time.monotonic_ns()

    def _full(self) -> bool:
        return (
            self._sent_count - self._taken_count > HIGH_COUNT
            or self._sent_bytes - self._taken_bytes > HIGH_BYTES
        )

    def taken(self, part: Part) -> None:
        """The loop has taken a part."""
        full = self._full()
        self._taken_count += 1
        self._taken_bytes += _size(part.answer)
        if full and not self._full():
            self._slot.flags.notify()


class ThreadInstance:
    """One instance on a thread of the server process."""

    def __init__(
        self,
        placement: Placement,
        schema: Schema,
        home: Homecoming,
        enter: Callable[[], None],
        failed: Callable[["ThreadInstance", WorkerFailed], None],
    ) -> None:
        """`enter` is called on the thread before anything of the model is; `failed` on the loop,
        when its backend says that the worker cannot go on, and nobody has answered the batch."""
        self.name = placement.name
        self._placement = placement
        self._schema = schema
        self._home = home
        self._enter = enter
        self._failed = failed
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._flights = Flights()
        self._flags = Flags()
        self._next = 0
        self._running: _Order | None = None
        self._left_behind = False
        self._gone: MicrokernelError | None = None
        self._loop = asyncio.get_running_loop()
        self._thread: threading.Thread | None = None
        self.readiness: Readiness | None = None

    async def start(self, model: Model) -> None:
        """Make the instance on its thread. Raises what the backend raised."""
        made: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._serve, args=(model, made), name=self.name, daemon=True
        )
        self._thread.start()
        await made

    def execute(self, requests: Sequence[InferRequest], sizes: Sequence[int], done: Done) -> int:
        """See `WorkerInstance.execute`."""
        return self._start(requests, sizes, done)

    def stream(
        self, requests: Sequence[InferRequest], sizes: Sequence[int], receiver: Receiver
    ) -> int:
        """See `WorkerInstance.stream`."""
        self._flights.begin(self._next, len(requests), receiver)
        return self._start(requests, sizes)

    def _start(
        self, requests: Sequence[InferRequest], sizes: Sequence[int], done: Done | None = None
    ) -> int:
        first = self._next
        self._next = first + len(requests)
        self._running = _Order(requests, sizes, first, time.monotonic_ns(), done)
        if self._gone is None:
            self._orders.put(self._running)
        else:
            self._answer(self._gone)
        return first

    def fail(self, error: MicrokernelError) -> None:
        """Answer with an error what was dispatched and is not finished, and leave the thread behind
        where it runs a batch: what it brings later is dropped. The thread ends when it can, and
        what comes from now on is answered with the error as well."""
        self._gone = error
        self._say(ready=False)
        if self._running is not None:
            self._left_behind = True
        self._orders.put(None)
        self._flags.release()
        self._answer(error)

    def _answer(self, error: MicrokernelError) -> None:
        order, self._running = self._running, None
        self._flights.fail(error)
        if order is not None and order.done is not None:
            order.done(_failed(order, error))

    def cancel(self, number: int) -> None:
        """See `WorkerInstance.cancel`."""
        self._flags.cancel(number)

    def pause(self, number: int) -> None:
        """See `WorkerInstance.pause`."""
        self._flags.pause(number)

    def resume(self, number: int) -> None:
        """See `WorkerInstance.resume`."""
        self._flags.resume(number)

    def stop(self) -> None:
        """Close the instance and end the thread; blocks until it has, unless it was left behind."""
        self._orders.put(None)
        if self._thread is not None and not self._left_behind:
            self._thread.join()

    def _serve(self, model: Model, made: "asyncio.Future[None]") -> None:
        self._enter()
        try:
            bind_thread(self._placement.binding)
            instance = model.instance(self._placement)
            ask = instance.readiness()
        except BaseException as error:  # noqa: BLE001 - goes to who starts the model
            self._loop.call_soon_threadsafe(_settle, made, as_error(error))
            return
        self._loop.call_soon_threadsafe(self._made, made, ask)
        try:
            self._serve_orders(instance)
        except WorkerFailed as error:
            log.exception("the worker of an instance cannot go on", instance=self.name)
            self._home.bring(partial(self._failed, self), error)
            return  # to close the instance is to call into what is damaged
        works_for(())
        try:
            instance.close()
        except BaseException:
            log.exception("closing an instance failed", instance=self.name)

    def _made(self, made: "asyncio.Future[None]", ask: Callable[[], bool] | None) -> None:
        if ask is not None:
            name = f"{self.name} ready"
            self.readiness = Readiness(
                lambda: threading.Thread(
                    target=self._ask, args=(ask,), name=name, daemon=True
                ).start()
            )
        _settle(made, None)

    def _ask(self, ask: Callable[[], bool]) -> None:
        self._enter()
        ready = says(ask, self.name)
        with contextlib.suppress(RuntimeError):  # a thread may outlive the loop
            self._loop.call_soon_threadsafe(self._say, ready)

    def _say(self, ready: bool) -> None:
        if self.readiness is not None:
            self.readiness.said(ready)

    def _serve_orders(self, instance: Instance) -> None:
        while (order := self._orders.get()) is not None:
            if order.done is None:
                self._stream(instance, order)
            else:
                result = self._execute(instance, order)
                self._home.bring(partial(self._finished, order), result)
            del order  # and what it holds, however long the next one takes to come

    def _finished(self, order: _Order, result: Result) -> None:
        if self._running is order:
            self._running = None
            assert order.done is not None
            order.done(result)

    def _execute(self, instance: Instance, order: _Order) -> Result:
        times = Execution(order.start, 0, 0, 0)
        self._flags.begin(order.first)
        try:
            batch = self._batch(order)
            times.input_end = time.monotonic_ns()
            outcomes = run(instance, batch, self._schema)
            times.output_start = time.monotonic_ns()
            answers = [_kept(outcome) for outcome in outcomes]
        except MemoryError as error:
            return _failed(order, self._no_memory(error))
        times.end = time.monotonic_ns()
        return Result(times, answers)

    def _batch(self, order: _Order) -> Batch:
        requests, sizes, first, gone = order.requests, order.sizes, order.first, self._flags.gone
        works_for(requests)
        if len(requests) == 1:
            batch = descriptors.alone(requests, sizes, self._schema, first)
            batch.gone = gone
            return batch
        plan = descriptors.plan(requests, self._schema)
        block = memoryview(bytearray(plan.total))
        descriptors.gather(plan, block)
        batch = descriptors.lay_out(plan, sizes, self._schema, block)
        batch.first, batch.gone = first, gone
        return batch

    def _no_memory(self, error: MemoryError) -> Unavailable:
        return Unavailable(f"no memory for a batch of '{self.name}': {error}")

    def _stream(self, instance: Instance, order: _Order) -> None:
        self._flags.begin(order.first, len(order.requests))
        senders = [
            _ThreadSender(Slot(self._flags, number), request, self._schema, self._bring)
            for number, request in enumerate(order.requests, order.first)
        ]
        times = Execution(order.start, 0, 0, 0)
        try:
            batch = self._batch(order)
        except MemoryError as error:
            for sender in senders:
                sender.fail(self._no_memory(error))
        else:
            times.input_end = time.monotonic_ns()
            run_stream(instance, batch, senders)
        times.output_start = times.end = time.monotonic_ns()
        times.input_end = times.input_end or times.end
        self._home.bring(partial(self._returned, order), times)

    def _returned(self, order: _Order, times: Execution) -> None:
        if self._running is order:
            self._running = None
            self._flights.returned(times)

    def _bring(self, sender: _ThreadSender, part: Part) -> None:
        if not self._flags.released:  # else nobody is left to take it
            self._home.bring(partial(self._came, sender), part)

    def _came(self, sender: _ThreadSender, part: Part) -> None:
        sender.taken(part)
        if sender.number in self._flights:  # else the instance was given up meanwhile
            self._flights.part(sender.number, part)


def _settle(made: "asyncio.Future[None]", error: MicrokernelError | None) -> None:
    if made.done():
        return  # nobody waits any more
    if error is None:
        made.set_result(None)
    else:
        made.set_exception(error)


def _failed(order: _Order, error: MicrokernelError) -> Result:
    now = time.monotonic_ns()
    return Result(Execution(order.start, now, now, now), [error] * len(order.requests))


def _size(answer: Answered | None) -> int:
    return sum(t.nbytes for t in answer.outputs) if isinstance(answer, Answer) else 0


def _copied(outcome: Outcome) -> Answered:
    """As `_kept`, for an outcome that its backend may go on using."""
    if isinstance(outcome, (MicrokernelError, Reschedule)):
        return outcome
    outputs = tuple(replace(tensor, data=bytes(tensor.data)) for tensor in outcome.outputs)
    return Answer(outputs, dict(outcome.parameters))


def _kept(outcome: Outcome) -> Answered:
    if isinstance(outcome, (MicrokernelError, Reschedule)):
        return outcome
    for tensor in outcome.outputs:
        tensor.data = bytes(tensor.data)
    return Answer(outcome.outputs, outcome.parameters)
