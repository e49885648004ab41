"""Which sequence owns which slot, and what of it waits. Pure: requests and times in, and out the
requests that may run and those that never will.

A sequence has a line, in which its requests wait. A line has a slot of an instance, or waits in the
backlog for one. It is bound to its id until its end was accepted; what waits in it runs after that,
too, and only then the slot goes to the next line.
"""

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace
from math import inf

from microkernel.errors import Cancelled, InvalidArgument, MicrokernelError, Unavailable
from microkernel.scheduling.pending import Pending, Runner
from microkernel.stats import Failure
from microkernel.tensor import Tensor


@dataclass(slots=True, eq=False)
class Line:
    """The requests of one sequence that wait, in order of arrival.

    `touched` is when the last one was accepted, and `count` how many have callers that wait for
    them. Nothing is added to a line that is `over`, and a `doomed` one in the backlog lost a
    request to a caller that has gone. `states` is what the model left for the next request, None
    before the first one ran.
    """

    id: int | str
    touched: float
    queue: deque[Pending] = field(default_factory=deque)
    count: int = 0
    slot: "Slot | None" = None
    over: bool = False
    doomed: bool = False
    deadline: float = inf
    states: tuple[Tensor, ...] | None = None


@dataclass(slots=True, eq=False)
class Slot:
    """A place for one sequence at an instance. `busy` is set while a request that was taken from it
    is not released."""

    seat: "Seat"
    number: int
    line: Line | None = None
    busy: bool = False


@dataclass(slots=True, eq=False)
class Seat:
    """The slots of an instance, the `order`-th that came."""

    instance: Runner
    order: int
    slots: tuple[Slot, ...] = ()


@dataclass(frozen=True, slots=True)
class Dropped:
    """A request that will not run, the error for its caller, and what it counts as."""

    pending: Pending
    error: MicrokernelError
    reason: Failure


class Slots:
    """The slots of all instances, the sequences in them, and the backlog.

    `stirred` are slots in which something may be taken that could not before, in the order in which
    that came to be; `dropped` are requests to be answered. Whoever acts on them empties them.
    `backlogged` is how many requests wait in the backlog.
    """

    def __init__(self, model: str, count: int, idle: float) -> None:
        """Every instance has `count` slots; a sequence that owns one and gets no request for `idle`
        seconds is over."""
        self._model = model
        self._count = count
        self._idle_limit = idle
        self._joined = 0
        self._bound: dict[int | str, Line] = {}
        self._idle: OrderedDict[Line, None] = OrderedDict()  # bound and in a slot, by `touched`
        self._backlog: OrderedDict[Line, None] = OrderedDict()
        self._deadlines: list[tuple[float, int, Line]] = []
        self._pushed = 0
        self._free: list[tuple[int, int, Slot]] = []
        self._waiting: dict[Pending, Line] = {}
        self._gone: set[Pending] = set()
        self.seats: dict[Runner, Seat] = {}
        self.stirred: dict[Slot, None] = {}
        self.dropped: list[Dropped] = []
        self.backlogged = 0

    @property
    def waiting(self) -> int:
        """How many requests wait in slots and in the backlog."""
        return len(self._waiting)

    def line_of(self, sequence: int | str) -> Line | None:
        """The line bound to that id."""
        return self._bound.get(sequence)

    def admit(self, pending: Pending, now: float) -> None:
        """Put a request into the line of its sequence. Raises InvalidArgument for one of a sequence
        that is not known and that it does not start."""
        sequence = pending.request.sequence
        line = self._bound.get(sequence.id)
        if line is None:
            if not sequence.start:
                raise self.unknown(sequence.id)
            line = self._open(sequence.id, now)
        self._append(line, pending, now)
        if sequence.end:
            self._unbind(line)

    def unknown(self, sequence: int | str) -> InvalidArgument:
        """The error for a request that goes on with a sequence that is over or never began."""
        return InvalidArgument(
            f"inference request for sequence {sequence} to model '{self._model}' must specify the "
            "START flag on the first request of the sequence"
        )

    def _open(self, sequence: int | str, now: float) -> Line:
        line = self._bound[sequence] = Line(sequence, now)
        if (slot := self._free_slot()) is None:
            self._backlog[line] = None
        else:
            self._place(line, slot, now)
        return line

    def _free_slot(self) -> Slot | None:
        """The free slot of the lowest number over all instances."""
        while self._free:
            slot = heapq.heappop(self._free)[-1]
            if slot.seat.instance in self.seats:  # else its instance has left
                return slot
        return None

    def _append(self, line: Line, pending: Pending, now: float) -> None:
        line.queue.append(pending)
        line.count += 1
        line.touched = now
        self._waiting[pending] = line
        if line.slot is not None:
            self._idle.move_to_end(line)
            self.stirred[line.slot] = None
            return
        self.backlogged += 1
        if pending.request.timeout_us:
            pending.deadline = pending.arrived + pending.request.timeout_us / 1e6
            self._limit(line, pending.deadline)

    def _limit(self, line: Line, deadline: float) -> None:
        if deadline >= line.deadline:
            return
        line.deadline = deadline
        self._pushed += 1
        heapq.heappush(self._deadlines, (deadline, self._pushed, line))
        if len(self._deadlines) > 2 * len(self._backlog) + 64:  # most are of lines that have gone
            lines = [each for each in self._backlog if each.deadline < inf]
            self._deadlines = [(each.deadline, i, each) for i, each in enumerate(lines)]
            heapq.heapify(self._deadlines)

    def _place(self, line: Line, slot: Slot, now: float) -> None:
        slot.line, line.slot = line, slot
        # A client that waits for its turn is not idle, so its clock begins here.
        line.touched, line.deadline = now, inf
        for pending in line.queue:
            pending.deadline = inf
        if not line.over:
            self._idle[line] = None
        if line.queue:
            self.stirred[slot] = None

    def _unbind(self, line: Line) -> None:
        """The line takes no more requests; the next one of its id begins another."""
        line.over = True
        self._idle.pop(line, None)
        if self._bound.get(line.id) is line:
            del self._bound[line.id]

    def take(self, slot: Slot, now: float) -> tuple[Pending, Line]:
        """The next request of a slot in which one waits, to be run, and its line."""
        line = slot.line
        assert line is not None
        pending = line.queue.popleft()
        line.count -= 1
        del self._waiting[pending]
        self._settle(slot, now)
        return pending, line

    def _settle(self, slot: Slot, now: float) -> None:
        """Look at the front of a slot's line: a request whose caller has gone ends the line, and a
        line that is over and empty leaves the slot to the next one."""
        line = slot.line
        if line is None:
            return
        if line.queue and line.queue[0] in self._gone:
            self._cancel(line)
        if line.over and not line.queue:
            slot.line = line.slot = None
            self._fill(slot, now)
        elif line.queue:
            self.stirred[slot] = None

    def _fill(self, slot: Slot, now: float) -> None:
        """Give a slot without a line to the oldest one of the backlog, else keep it as free."""
        while self._backlog:
            line, _ = self._backlog.popitem(last=False)
            self.backlogged -= line.count
            if line.doomed:
                self._cancel(line)
                continue
            self._place(line, slot, now)
            return
        heapq.heappush(self._free, (slot.number, slot.seat.order, slot))

    def _cancel(self, line: Line) -> None:
        text = f"another request of sequence {line.id} was cancelled"
        self._drop(line, Cancelled(text), Failure.CANCELED)

    def _drop(self, line: Line, error: MicrokernelError, reason: Failure) -> None:
        """End a line and answer everything in it."""
        self._unbind(line)
        for pending in line.queue:
            if self._waiting.pop(pending, None) is None:
                self._gone.discard(pending)
            else:
                self.dropped.append(Dropped(pending, error, reason))
        line.queue.clear()
        line.count = 0

    def abandon(self, pending: Pending, now: float) -> bool:
        """The caller of a request has gone; whether it waited. Its sequence ends when the request
        comes to the front of its slot, or its line to the front of the backlog."""
        line = self._waiting.pop(pending, None)
        if line is None:
            return False
        self._gone.add(pending)
        line.count -= 1
        pending.request = replace(pending.request, inputs=())  # it may stay here for long
        if line.slot is not None:
            self._settle(line.slot, now)
            return True
        line.doomed = True
        self.backlogged -= 1
        if line.count == 0:  # nobody is left to notice
            del self._backlog[line]
            self._cancel(line)
        return True

    def cancel(self, line: Line, now: float) -> None:
        """End a line that is or was in a slot, with all that waits in it."""
        self._cancel(line)
        if line.slot is not None:
            self._settle(line.slot, now)

    def finish(self, line: Line, now: float) -> None:
        """A line that is or was in a slot is over when what waits in it has run."""
        self._unbind(line)
        if line.slot is not None:
            self._settle(line.slot, now)

    def release(self, slot: Slot) -> None:
        """The request that was taken from a slot has been released."""
        slot.busy = False
        if slot.line is not None and slot.line.queue:
            self.stirred[slot] = None

    def due(self) -> float:
        """When `expire` has something to do at the earliest."""
        idle = inf
        if self._idle:
            idle = next(iter(self._idle)).touched + self._idle_limit
        return min(idle, self._deadlines[0][0]) if self._deadlines else idle

    def expire(self, now: float) -> None:
        """End sequences that have been idle for too long, and those that waited in the backlog for
        longer than one of their requests allows."""
        while self._idle:
            line = next(iter(self._idle))
            if line.touched + self._idle_limit > now:
                break
            self.finish(line, now)
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, line = heapq.heappop(self._deadlines)
            if line in self._backlog and line.deadline <= now:
                del self._backlog[line]
                self.backlogged -= line.count
                text = "timeout of the corresponding sequence has been expired"
                self._drop(line, Unavailable(text), Failure.REJECTED)

    def join(self, instance: Runner, now: float) -> Seat:
        """An instance brings its slots, which the oldest lines of the backlog get."""
        seat = self.seats[instance] = Seat(instance, self._joined)
        self._joined += 1
        seat.slots = tuple(Slot(seat, number) for number in range(self._count))
        for slot in seat.slots:
            self._fill(slot, now)
        return seat

    def leave(self, instance: Runner, error: MicrokernelError) -> Seat:
        """An instance has gone; the sequences in its slots end, for what it knew of them has gone,
        too."""
        seat = self.seats.pop(instance)
        for slot in seat.slots:
            if (line := slot.line) is not None:
                slot.line = line.slot = None
                self._drop(line, error, Failure.OTHER)
            self.stirred.pop(slot, None)
        return seat

    def take_all(self, now: float) -> list[Pending]:
        """Everything that waits, in order of arrival; every sequence is over then."""
        waiting = list(self._waiting)
        self._waiting.clear()
        self._gone.clear()
        self._backlog.clear()
        self._deadlines.clear()
        self.backlogged = 0
        for line in [*self._bound.values()]:
            self._unbind(line)
        for slot in [slot for seat in self.seats.values() for slot in seat.slots]:
            if slot.line is not None:
                slot.line.queue.clear()
                slot.line.count = 0
                self._unbind(slot.line)
                self._settle(slot, now)
        return waiting
