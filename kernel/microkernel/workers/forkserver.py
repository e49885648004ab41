"""A process that has imported a framework and forks workers from itself, so that each starts in
milliseconds and shares the framework's memory with the others.

It must never compute: a child forked after a framework has started its thread pools would hang. It
ends when the server's end of its socket does; a child ends with the fork server (Linux) and with
the server, whose control channel it watches.
"""

import ctypes
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
import warnings

from microkernel.workers import child, wire
from microkernel.workers.channel import BlockingChannel
from microkernel.workers.limits import Limits, apply_limits, limits_from_json
from microkernel.workers.wire import Kind

_PR_SET_PDEATHSIG = 1
_IGNORED = (signal.SIGINT, signal.SIGTERM)
"""Only the server ends its workers."""
_SYSTEM = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(parent: int) -> None:
    """Ask the system to end this process when its parent ends, which is when the thread does that
    forked it; Linux only."""
    if _SYSTEM is None:
        return
    _SYSTEM.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it ended before we asked


def _nothing(*_: object) -> None:
    """What a worker does about a signal. One that is ignored for good would be so in the processes
    of its model as well, also after `exec`, and nobody could end them."""


class _Offspring:
    """What becomes of the processes that a model forks: the signals that a worker ignores end
    them, and what the worker's main thread has forked ends with it. Another thread's may outlive
    the thread, and so are left alone."""

    def __init__(self) -> None:
        self._main = threading.get_ident()
        self._parent = os.getpid()
        for number in _IGNORED:
            signal.signal(number, _nothing)
            signal.siginterrupt(number, False)
        os.register_at_fork(before=self._forks, after_in_child=self._forked)

    def _forks(self) -> None:
        self._parent = os.getpid()

    def _forked(self) -> None:
        for number in _IGNORED:
            if signal.getsignal(number) is _nothing:
                signal.signal(number, signal.SIG_DFL)
        if threading.get_ident() == self._main:
            die_with_parent(self._parent)


class ForkServer:
    """Answers each FORK message, which brings a control socket, with the pid of a new worker, and
    reports each worker's end."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._channel = BlockingChannel(sock)
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)

    def serve(self) -> None:
        """Fork until the server is gone."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        self._channel.send(wire.control_message(Kind.DONE, os.getpid()))
        while True:
            readable, _, _ = select.select([self._socket, self._wake], [], [])
            if self._wake in readable:
                self._wake.recv(4096)
            self._reap()
            if self._socket in readable and not self._answer():
                return

    def _answer(self) -> bool:
        """Fork for every order that has come; False when the server is gone."""
        try:
            while (order := self._channel.receive()) is not None:
                limits = limits_from_json(json.loads(order[1]))
                self._fork(self._channel.take_descriptor(), limits)
                if not self._channel.buffered:
                    return True
        except ConnectionError:
            pass  # the server has gone without reading our last news
        return False

    def _fork(self, descriptor: int, limits: Limits) -> None:
        parent = os.getpid()
        with warnings.catch_warnings():
            # numpy's linear algebra keeps threads that know how to survive a fork.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            self._child(parent, descriptor, limits)
        os.close(descriptor)
        self._channel.send(wire.control_message(Kind.FORK, pid))

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            self._channel.send(wire.control_message(Kind.EXITED, [pid, code]))

    def _child(self, parent: int, descriptor: int, limits: Limits) -> None:
        """What the forked process does; never returns."""
        code = 1
        try:
            die_with_parent(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for end in (self._socket, self._wake, self._woken):
                end.close()
            _first_to_go()
            _reseed()
            refusal = apply_limits(limits)
            die_with_parent(parent)  # again: what changes a process's rights may undo it
            _Offspring()
            child.main(socket.socket(fileno=descriptor), refusal)
            code = 0
        except BaseException:  # noqa: BLE001 - the process ends here, whatever it was
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _first_to_go() -> None:
    """When memory runs out, a worker goes before the server does."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123 - a kernel interface
            file.write("500")
    except OSError:
        pass


def _reseed() -> None:
    """Forked workers must not draw the same random numbers; Python reseeds its own by itself."""
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()


def main() -> None:
    """`python -m microkernel.workers.forkserver DESCRIPTOR PARENT MODULE...`"""
    descriptor, parent, *modules = sys.argv[1:]
    die_with_parent(int(parent))
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    for module in modules:
        importlib.import_module(module)
    ForkServer(socket.socket(fileno=int(descriptor))).serve()


if __name__ == "__main__":
    main()
