"""The worker's side: a process that hosts one model, each instance on a thread of its own.

Imports the standard library, numpy and the kernel's plain nouns only. A single instance lives on
the main thread, which some Python models need. The process ends when its instances' sockets are
closed, and at once when the control channel is, which means that the server is gone.
"""

import json
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from microkernel.backend import Backend, Instance, Model, Placement
from microkernel.batch import Batch
from microkernel.binding import bind_process
from microkernel.config.codec import config_from_json, config_to_json
from microkernel.errors import Unavailable, WorkerFailed
from microkernel.families import route_metrics
from microkernel.origin import origin, works_for
from microkernel.request import InferRequest, Outcome
from microkernel.stats import Execution
from microkernel.workers import descriptors, wire
from microkernel.workers.arena import Block
from microkernel.workers.channel import BlockingChannel
from microkernel.workers.descriptors import Schema
from microkernel.workers.desk import MetricDesk
from microkernel.workers.flags import Flags, Slot
from microkernel.workers.hosting import make_backend, placement_from_json, settings_from_json
from microkernel.workers.parts import Moments, part_message
from microkernel.workers.readiness import says
from microkernel.workers.runner import as_error, run, unload
from microkernel.workers.senders import WorkerSender, run_stream
from microkernel.workers.wire import EXECUTE, Kind

log = logging.getLogger("microkernel.worker")


class _ControlHandler(logging.Handler):
    """Log records become messages to the server, which owns the log."""

    def __init__(self, control: BlockingChannel) -> None:
        super().__init__()
        self._control = control

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event = record.getMessage()
        except Exception:  # noqa: BLE001 - a model's log line must not fail its request
            event = f"{record.msg!r}, whose arguments do not fit it"
        document = {
            "level": _level(record.levelno),
            "event": event,
            "logger": record.name,
            "file": record.filename,
            "line": record.lineno,
            **origin(),
        }
        if record.exc_info:
            document["exception"] = logging.Formatter().formatException(record.exc_info)
        try:
            self._control.send(wire.control_message(Kind.LOG, document))
        except OSError:
            os._exit(1)  # the server is gone


def _level(number: int) -> str:
    """The name of the standard level at or below a number; libraries add levels of their own."""
    names = {logging.ERROR: "error", logging.WARNING: "warning", logging.INFO: "info"}
    return next((name for level, name in names.items() if number >= level), "debug")


class _ChannelSender(WorkerSender):
    """Sends responses over the instance's socket, beside the results of batches."""

    def __init__(
        self, channel: BlockingChannel, slot: Slot, request: InferRequest, schema: Schema
    ) -> None:
        super().__init__(slot, request, schema)
        self._channel = channel

    def _deliver(self, outcome: Outcome | None, moments: Moments, *, final: bool) -> int:
        message, end = part_message(self._slot.number, outcome, self._schema, moments, final=final)
        try:
            self._channel.send(message)
        except OSError:
            os._exit(1)  # the server is gone
        return end


class _InstanceLoop:
    """Serves one instance's socket until the server closes it."""

    def __init__(self, sock: socket.socket, schema: Schema, model: tuple[str, int]) -> None:
        self._channel = BlockingChannel(sock)
        self._schema = schema
        self._model = model
        self._blocks: dict[int, Block] = {}
        self.flags = Flags()

    def serve(self, instance: Instance) -> None:
        """Execute batches until the end of the channel. Raises WorkerFailed where the backend
        does; the batch is not answered then."""
        while (message := self._next()) is not None:
            if self._schema.decoupled:
                self._stream(instance, message)
                continue
            outcomes, times = self._execute(instance, message)
            self._answer(outcomes, times, descriptors.read_blocks(message)[1])

    def give_up(self, error: WorkerFailed) -> NoReturn:
        """Fail the batch and let the server end this process. It must not end by itself: news of
        its exit may be faster than the responses that it has just sent."""
        self._channel.send(wire.fatal_message(str(error)))
        while True:
            threading.Event().wait()

    def _next(self) -> bytes | None:
        """The next EXECUTE message or answer to NEED; blocks are mapped and unmapped on the way."""
        while (message := self._channel.receive()) is not None:
            kind, body = message
            if kind is EXECUTE:
                return body
            self._housekeep(kind, body)
        return None

    def _housekeep(self, kind: Kind, body: bytes) -> int:
        if kind is Kind.MAP:
            number, size = wire.read_map(body)
            self._blocks[number] = Block(number, self._channel.take_descriptor(), size)
            return number
        self._blocks.pop(wire.read_unmap(body)).close()
        return 0

    def _batch(self, body: bytes) -> Batch:
        inputs = self._blocks[descriptors.read_blocks(body)[0]]
        batch = descriptors.read_execute(body, self._schema, inputs.view, self._model)
        works_for(batch.requests)
        batch.gone = self.flags.gone
        return batch

    def _stream(self, instance: Instance, body: bytes) -> None:
        batch = self._batch(body)
        self.flags.begin(batch.first, len(batch))
        times = Execution(0, time.monotonic_ns(), 0, 0)
        senders = [
            _ChannelSender(self._channel, Slot(self.flags, number), request, self._schema)
            for number, request in enumerate(batch, batch.first)
        ]
        run_stream(instance, batch, senders)
        times.output_start = times.end = time.monotonic_ns()
        self._channel.send(descriptors.result_message((), (), self._schema, times))

    def _execute(self, instance: Instance, body: bytes) -> tuple[Sequence[Outcome], Execution]:
        batch = self._batch(body)
        self.flags.begin(batch.first)
        times = Execution(0, time.monotonic_ns(), 0, 0)
        outcomes = run(instance, batch, self._schema)
        times.output_start = time.monotonic_ns()
        return outcomes, times

    def _answer(self, outcomes: Sequence[Outcome], times: Execution, output_block: int) -> None:
        offsets, total = descriptors.place(outcomes)
        if total:
            descriptors.write(outcomes, offsets, self._room(output_block, total).view)
        times.end = time.monotonic_ns()
        self._channel.send(descriptors.result_message(outcomes, offsets, self._schema, times))

    def _room(self, number: int, total: int) -> Block:
        """The output block given, or a larger one asked for in its place."""
        block = self._blocks.get(number)
        if block is not None and block.size >= total:
            return block
        self._channel.send(wire.need_message(total))
        while True:
            message = self._channel.receive()
            if message is None:
                os._exit(1)  # the server is gone
            kind, body = message
            if kind is Kind.NEED:  # the answer: the number of the block to use
                return self._blocks[wire.read_need(body)]
            self._housekeep(kind, body)


class _Child:
    """Completes a configuration, loads the model, makes the instances and waits for the end."""

    def __init__(self, control: BlockingChannel, reader: "_Reader", refusal: str) -> None:
        self._refusal = refusal
        self._control = control
        self._reader = reader
        self._backend: Backend | None = None

    def obey(self, kind: Kind, order: Any) -> bool:
        """Do what a message asks for; whether that was all there was to do."""
        if self._refusal:
            raise Unavailable(f"model '{order['model']}': {self._refusal}")
        if self._backend is None:
            settings = settings_from_json(order["settings"])
            self._backend = make_backend(order["factory"], settings)
        config, files = config_from_json(order["config"]), Path(order["files"])
        if kind is Kind.COMPLETE:
            completed = self._backend.complete(config, files)
            self._control.send(wire.control_message(Kind.DONE, config_to_json(completed)))
            return False
        placements = [placement_from_json(p) for p in order["placements"]]
        bind_process(placements[0].binding)  # first: the threads of a model are bound like this one
        identity = (order["model"], order["version"])
        self._start(self._backend.load(config, files), Schema.of(config), identity, placements)
        return True

    def _start(
        self,
        model: Model,
        schema: Schema,
        identity: tuple[str, int],
        placements: Sequence[Placement],
    ) -> None:
        """Make the instances; returns when all are closed."""
        sockets = [socket.socket(fileno=self._control.take_descriptor()) for _ in placements]
        loops = [_InstanceLoop(sock, schema, identity) for sock in sockets]
        made = _Made(placements, self._control)
        self._reader.flags, self._reader.made = [loop.flags for loop in loops], made
        pairs = list(zip(loops, placements, strict=True))
        threads = [
            threading.Thread(target=_serve, args=(*pair, model, made, place), name=pair[1].name)
            for place, pair in enumerate(pairs[1:], 1)
        ]
        for thread in threads:
            thread.start()
        _serve(*pairs[0], model, made, 0)
        for thread in threads:
            thread.join()
        unload(model)


_SIGNALS = {Kind.CANCEL: Flags.cancel, Kind.PAUSE: Flags.pause, Kind.RESUME: Flags.resume}


class _Reader:
    """Reads the control channel on a thread of its own: orders wait for the main thread, what a
    model waits for while that is busy with one does not, and the channel's end is the end of a
    busy process. `flags` are those of the instances, which come with the order to start, and `made`
    what was made by it."""

    def __init__(self, control: BlockingChannel) -> None:
        self.flags: Sequence[Flags] = ()
        self.made: _Made | None = None
        self._control = control
        self._desk = MetricDesk(self._send)
        self._orders: queue.SimpleQueue[tuple[Kind, Any] | None] = queue.SimpleQueue()
        self._idle = True
        route_metrics(self._desk, whole_process=True)
        threading.Thread(target=self._read, name="control", daemon=True).start()

    def order(self) -> tuple[Kind, Any] | None:
        """The next order, None when there will be none; the process is busy from then on."""
        self._idle = True
        order = self._orders.get()
        self._idle = False
        return order

    def _send(self, document: object, kind: Kind = Kind.METRIC) -> None:
        try:
            self._control.send(wire.control_message(kind, document))
        except OSError:
            os._exit(1)  # the server is gone

    def _ask(self, place: int) -> None:
        assert self.made is not None
        self._send([place, self.made.says(place)], Kind.READY)

    def _read(self) -> None:
        try:
            while (message := self._control.receive()) is not None:
                self._sort(*message)
        except OSError:
            pass
        if not self._idle:
            os._exit(1)
        self._orders.put(None)

    def _sort(self, kind: Kind, body: bytes) -> None:
        if (signal := _SIGNALS.get(kind)) is not None:
            instance, number = wire.read_signal(body)
            signal(self.flags[instance], number)
        elif kind is Kind.READY:
            place, _ = wire.read_signal(body)
            threading.Thread(target=self._ask, args=(place,), name="ready", daemon=True).start()
        elif kind is Kind.METRIC:
            self._desk.answer(json.loads(body))
        elif kind is Kind.VERBOSE:
            logging.getLogger().setLevel(logging.DEBUG if json.loads(body) else logging.INFO)
        else:
            self._orders.put((kind, json.loads(body)))


class _Made:
    """Counts the instances made, and tells the server when all are, with the places of those that
    can say whether they are ready, or each failure."""

    def __init__(self, placements: Sequence[Placement], control: BlockingChannel) -> None:
        self._names = [placement.name for placement in placements]
        self._left = len(placements)
        self._asks: dict[int, Callable[[], bool]] = {}
        self._control = control
        self._lock = threading.Lock()

    def one(self, place: int, ask: Callable[[], bool] | None) -> None:
        with self._lock:
            self._left -= 1
            if ask is not None:
                self._asks[place] = ask
            if self._left == 0:
                self._control.send(wire.control_message(Kind.DONE, list(self._asks)))

    def says(self, place: int) -> bool:
        """Whether the instance at a place says that it is ready."""
        return says(self._asks[place], self._names[place])

    def failed(self, error: BaseException) -> None:
        with self._lock:
            self._left = -1  # DONE is never sent
            _send_failure(self._control, error)


def _serve(
    loop: _InstanceLoop, placement: Placement, model: Model, made: _Made, place: int
) -> None:
    try:
        instance = model.instance(placement)
        ask = instance.readiness()
    except BaseException as error:
        log.debug("instance failed", exc_info=True)
        made.failed(error)
        return
    made.one(place, ask)
    try:
        _serve_batches(loop, instance, placement.name)
    except OSError:
        os._exit(1)  # the server is gone
    except BaseException:
        log.critical("instance %s cannot go on", placement.name, exc_info=True)
        os._exit(1)  # a thread that just ended would leave its requests waiting
    works_for(())
    try:
        instance.close()
    except BaseException:
        log.exception("closing instance %s failed", placement.name)


def _serve_batches(loop: _InstanceLoop, instance: Instance, name: str) -> None:
    try:
        loop.serve(instance)
    except WorkerFailed as error:
        log.critical("the worker of instance %s cannot go on", name, exc_info=True)
        loop.give_up(error)


def _send_failure(control: BlockingChannel, error: BaseException) -> None:
    ours = as_error(error)
    control.send(wire.control_message(Kind.FAILED, [ours.code, str(ours)]))


def main(sock: socket.socket, refusal: str = "") -> None:
    """Host a model by the orders that come over `sock`; returns when there is nothing to host.
    Where there is a `refusal` it is the answer to all of them."""
    control = BlockingChannel(sock)
    root = logging.getLogger()
    root.handlers[:] = [_ControlHandler(control)]
    root.setLevel(logging.INFO)
    reader = _Reader(control)
    child = _Child(control, reader, refusal)
    while (message := reader.order()) is not None:
        kind, order = message
        try:
            if child.obey(kind, order):
                return
        except BaseException as error:
            log.debug("order failed", exc_info=True)
            _send_failure(control, error)
            if kind is Kind.START:
                return  # the server closes the sockets of instances only, which nobody reads
