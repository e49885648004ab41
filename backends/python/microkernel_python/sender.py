"""`InferenceResponseSender`: answers a request whenever the model likes."""

import weakref

from microkernel_python.arguments import instance_of, integer
from microkernel_python.reply import Reply
from microkernel_python.response import InferenceResponse


class InferenceResponseSender:
    """Sends the responses of one request; from any thread, also after `execute` has returned.

    A request whose sender is dropped before its final response is answered with an error.
    """

    __slots__ = ("__weakref__", "_reply")

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        reply.lend()
        weakref.finalize(self, reply.abandon).atexit = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """Send a response and say with `flags` whether it is the last one
        (`TRITONSERVER_RESPONSE_COMPLETE_FINAL`), or send that alone. Waits while the client reads
        too slowly; the response's arrays may be changed when this returns.

        Raises TypeError for arguments of another type, and TritonModelException for unknown flags,
        for neither response nor flag, after the final response, and where a model that is not
        decoupled sends a second response or a final flag before its response.
        """
        if response is not None:
            instance_of(response, InferenceResponse, "response")
        self._reply.send(response, integer(flags, "flags"))

    def is_cancelled(self) -> bool:
        """Whether the client gave the request up. It must be finished even so."""
        return self._reply.is_cancelled()
