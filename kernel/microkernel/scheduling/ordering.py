"""Answers that leave in the order in which their requests came, whoever is finished first."""

from collections import OrderedDict
from typing import Protocol, TypeGuard

from microkernel.config.model import ModelConfig
from microkernel.errors import MicrokernelError
from microkernel.request import InferResponse
from microkernel.scheduling.pending import Reply


class StreamedReply(Reply, Protocol):
    """A reply of many responses, which can be kept from their reader for a while."""

    def hold(self) -> None:
        """Show the reader nothing until `release`; what comes is kept, as for one who reads
        slowly."""
        ...

    def release(self) -> None:
        """Show the reader what has come and will come."""
        ...


def _is_streamed(reply: Reply) -> TypeGuard[StreamedReply]:
    return hasattr(reply, "hold")


class Line:
    """Those whose answers must leave one after the other."""

    def __init__(self) -> None:
        self._places: OrderedDict[Place, None] = OrderedDict()

    @classmethod
    def of(cls, config: ModelConfig) -> "Line | None":
        """A line where the dynamic batcher is to keep the order, else None."""
        dynamic = config.dynamic_batching
        return cls() if dynamic is not None and dynamic.preserve_ordering else None

    def place(self, reply: Reply) -> "Place":
        """A place at the end of the line, to be answered in the reply's stead. One whose caller
        goes must `leave`."""
        place = OpenPlace(self, reply) if _is_streamed(reply) else SinglePlace(self, reply)
        self._places[place] = None
        self.move()
        return place

    def move(self) -> None:
        """Let those answer who have nobody before them."""
        while self._places:
            first = next(iter(self._places))
            if not first.turn:
                first.admit()
            if not first.over:
                return
            self._places.pop(first, None)

    def remove(self, place: "Place") -> None:
        """Give up a place, which may have been given up already."""
        if place in self._places:
            del self._places[place]
            self.move()


class Place:
    """A place in a line, and the reply of whoever stands there; promises what `Reply` does.

    `turn` says that nobody is before it, so that it may answer, and `over` that its final answer
    has come, which may still have to wait.
    """

    def __init__(self, line: Line, reply: Reply) -> None:
        self.turn = False
        self.over = False
        self._line = line
        self._reply = reply

    def done(self) -> bool:
        """See `Reply.done`."""
        return self.over or self._reply.done()

    def admit(self) -> None:
        """It is its turn: answer what is there."""
        self.turn = True

    def leave(self) -> None:
        """The caller has gone, or was refused: those behind wait for it no more."""
        if not self.turn:
            self.admit()  # whatever comes of it, nobody sees it
        self._line.remove(self)

    def set_result(self, response: InferResponse) -> None:
        """See `Reply.set_result`."""
        raise NotImplementedError

    def set_exception(self, error: MicrokernelError) -> None:
        """See `Reply.set_exception`."""
        raise NotImplementedError

    def _finished(self) -> None:
        self.over = True
        if self.turn:
            self._line.remove(self)


class SinglePlace(Place):
    """The place of a request that is answered once; the answer waits here for its turn."""

    _answer: InferResponse | MicrokernelError | None = None

    def set_result(self, response: InferResponse) -> None:
        """Answer, or keep the answer."""
        self._set(response)

    def set_exception(self, error: MicrokernelError) -> None:
        """Answer with an error, which waits for its turn like any answer."""
        self._set(error)

    def _set(self, answer: InferResponse | MicrokernelError) -> None:
        self._answer = answer
        if self.turn:
            self._tell()
        self._finished()

    def admit(self) -> None:
        """See `Place.admit`."""
        super().admit()
        self._tell()

    def _tell(self) -> None:
        answer, self._answer = self._answer, None
        if answer is None or self._reply.done():  # whose caller has gone
            return
        if isinstance(answer, MicrokernelError):
            self._reply.set_exception(answer)
        else:
            self._reply.set_result(answer)


class OpenPlace(Place):
    """The place of a request whose responses go to a stream; they wait there, where too many of
    them stop the model."""

    _reply: StreamedReply

    def __init__(self, line: Line, reply: StreamedReply) -> None:
        super().__init__(line, reply)
        reply.hold()

    def admit(self) -> None:
        """See `Place.admit`."""
        super().admit()
        self._reply.release()

    def set_result(self, response: InferResponse) -> None:
        """Put a response on the stream."""
        self._reply.set_result(response)
        if response.final:
            self._finished()

    def set_exception(self, error: MicrokernelError) -> None:
        """End the stream with an error."""
        self._reply.set_exception(error)
        self._finished()
