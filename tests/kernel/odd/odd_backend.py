"""A backend of a stranger, for the tests of workers: it doubles an INT32 input, unless it is told
to misbehave.

The first number of a request's input `X` says how to misbehave while executing, by its place in
`DEEDS`; the model's parameter `FAIL` says where in loading. A model leaves traces in the directory
of its files, one line per event in `trace`.
"""

import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from odd_streams import STREAMS  # type: ignore[import-not-found]  # beside this file

from microkernel import (
    RESCHEDULE,
    Backend,
    Batch,
    Instance,
    Internal,
    InvalidArgument,
    Model,
    ModelConfig,
    Outcome,
    Placement,
    Sender,
    Tensor,
    WorkerFailed,
    option,
)

log = logging.getLogger("odd")


class Stranger(Exception):
    """An exception that the kernel does not know."""


def _ours(batch: Batch) -> Sequence[Outcome]:
    raise InvalidArgument("the first number is wrong")


def _strange(batch: Batch) -> Sequence[Outcome]:
    raise Stranger("what is this")


def _system_exit(batch: Batch) -> Sequence[Outcome]:
    sys.exit(3)


def _none(batch: Batch) -> Any:
    return None


def _too_few(batch: Batch) -> Sequence[Outcome]:
    return list(_doubled(batch))[1:]


def _no_outcome(batch: Batch) -> Any:
    return [None for _ in batch]


def _wrong_size(batch: Batch) -> Sequence[Outcome]:
    first = batch.stacked["X"]
    return batch.split([Tensor("Y", first.datatype, (*first.shape, 2), first.data)])


def _strange_parameter(batch: Batch) -> Sequence[Outcome]:
    responses = batch.split(_outputs(batch))
    for response in responses:
        response.parameters = {"when": object()}  # type: ignore[dict-item]  # the point of it
    return responses


def _no_buffer(batch: Batch) -> Sequence[Outcome]:
    first = batch.stacked["X"]
    return batch.split([Tensor("Y", first.datatype, (1,), [1, 2, 3, 4])])  # type: ignore[arg-type]


def _exit(batch: Batch) -> Sequence[Outcome]:
    os._exit(7)


def _segfault(batch: Batch) -> Sequence[Outcome]:
    ctypes.string_at(0)
    return []


def _kill(batch: Batch) -> Sequence[Outcome]:
    os.kill(os.getpid(), signal.SIGKILL)
    return _hang(batch)


def _hang(batch: Batch) -> Sequence[Outcome]:
    threading.Event().wait()
    return []


def _log(batch: Batch) -> Sequence[Outcome]:
    log.info("a line with %s", "words", extra={"ignored": 1})
    log.log(logging.WARNING + 1, "a level of one's own")
    try:
        _strange(batch)
    except Stranger:
        log.exception("it went wrong")
    return _doubled(batch)


def _log_badly(batch: Batch) -> Sequence[Outcome]:
    log.warning("a broken line: %d", "no number")
    return _doubled(batch)


def _large(batch: Batch) -> Sequence[Outcome]:
    """As many numbers as the second number says, each the third one."""
    _, count, value = np.frombuffer(batch.stacked["X"].data, np.int32)[:3].tolist()
    rows = np.full((batch.size, count), value, np.int32)
    return batch.split([Tensor.from_numpy("Y", rows)])


def _pid(batch: Batch) -> Sequence[Outcome]:
    row = [os.getpid(), threading.get_native_id(), 0]
    return batch.split([Tensor.from_numpy("Y", np.array([row] * batch.size, np.int32))])


def _until_cancelled(batch: Batch) -> Sequence[Outcome]:
    """Works for as long as anybody waits for the first request."""
    while not batch.cancelled(0):
        threading.Event().wait(0.001)
    return _doubled(batch)


def _interrupt(batch: Batch) -> Sequence[Outcome]:
    raise KeyboardInterrupt


def _give_up(batch: Batch) -> Sequence[Outcome]:
    raise WorkerFailed("the device is on fire")


def _open_files(batch: Batch) -> Sequence[Outcome]:
    """Opens files until no more can be opened; how many, and the number of the error."""
    opened: list[int] = []
    number = 0
    while not number:
        try:
            opened.append(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            number = error.errno or -1
    for descriptor in opened:
        os.close(descriptor)
    row = [len(opened), number, 0]
    return batch.split([Tensor.from_numpy("Y", np.array([row] * batch.size, np.int32))])


def _reach_home(batch: Batch) -> Sequence[Outcome]:
    """The number of the error of sending to this host, and the user and the group of the worker."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        row = [sock.connect_ex(("127.0.0.1", 9)), os.getuid(), os.getgid()]
    return batch.split([Tensor.from_numpy("Y", np.array([row] * batch.size, np.int32))])


def _offspring(batch: Batch) -> Sequence[Outcome]:
    """Ends a process that it forked and one that it started, and leaves a third: the signals that
    ended the two, and the pid of the third."""
    forking = multiprocessing.get_context("fork")
    forked, left = (forking.Process(target=signal.pause) for _ in range(2))
    forked.start()
    left.start()
    started = subprocess.Popen(["sleep", "3600"])
    forked.terminate()
    started.terminate()
    forked.join()
    row = [-(forked.exitcode or 0), -started.wait(), left.pid]
    return batch.split([Tensor.from_numpy("Y", np.array([row] * batch.size, np.int32))])


def _second_fails(batch: Batch) -> Sequence[Outcome]:
    outcomes = list(_doubled(batch))
    outcomes[1] = Internal("only the second")
    return outcomes


def _second_comes_again(batch: Batch) -> Sequence[Outcome]:
    outcomes = list(_doubled(batch))
    outcomes[1] = RESCHEDULE
    return outcomes


def _outputs(batch: Batch) -> list[Tensor]:
    doubled = batch.stacked["X"].as_numpy() * 2
    return [Tensor.from_numpy("Y", doubled), Tensor.from_numpy("NOT_CONFIGURED", doubled)]


def _doubled(batch: Batch) -> Sequence[Outcome]:
    return batch.split(_outputs(batch))


_ACTS: tuple[Callable[[Batch], Sequence[Outcome]], ...] = (
    *(_doubled, _ours, _strange, _system_exit, _none, _too_few, _no_outcome, _wrong_size),
    *(_strange_parameter, _no_buffer, _exit, _segfault, _kill, _hang, _log, _large, _pid),
    *(_interrupt, _second_fails, _log_badly, _until_cancelled, _second_comes_again),
    *(_give_up, _open_files, _reach_home, _offspring),
)
DEEDS = {act.__name__.removeprefix("_"): -number for number, act in enumerate(_ACTS)}
"""What the first number of a request asks for; anything else is doubled."""


class OddInstance(Instance):
    """Does what the first request of a batch asks for."""

    def __init__(self, name: str, trace: Callable[[str], None]) -> None:
        self._name = name
        self._trace = trace

    def execute(self, batch: Batch) -> Sequence[Outcome]:
        """See `DEEDS`."""
        numbers = np.frombuffer(batch.stacked["X"].data, np.int32)
        deed = int(numbers[0]) if numbers.size else 0
        return _ACTS[-deed if -len(_ACTS) < deed <= 0 else 0](batch)

    def stream(self, batch: Batch, senders: Sequence[Sender]) -> None:
        """See `odd_streams.STREAMS`; anything else is executed."""
        numbers = np.frombuffer(batch.stacked["X"].data, np.int32)
        deed = STREAMS.get(int(numbers[0])) if numbers.size else None
        if deed is None:
            super().stream(batch, senders)
        else:
            deed(batch, senders, self._trace)

    def close(self) -> None:
        """Leave a trace."""
        self._trace(f"closed {self._name}")


class SayingInstance(OddInstance):
    """Says whether it is ready: what stands in the file `ready`, which may be a FIFO."""

    def __init__(self, name: str, trace: Callable[[str], None], file: Path) -> None:
        super().__init__(name, trace)
        self._file = file

    def readiness(self) -> Callable[[], bool]:
        """Raises where there is no such file."""
        return self._is_ready

    def _is_ready(self) -> bool:
        self._trace("asked")
        return self._file.read_text() == "yes"


class StubbornInstance(OddInstance):
    """Does not close."""

    def close(self) -> None:
        """Wait for nothing."""
        threading.Event().wait()


class OddModel(Model):
    """Makes instances, unless it is to fail then."""

    def __init__(self, config: ModelConfig, files: Path) -> None:
        self._fail = config.parameter("FAIL")
        self._says = config.parameter("SAYS") == "ready"
        # In a place that no change of the model is looked for: else each load would change it.
        (files / "__pycache__").mkdir(exist_ok=True)
        self._file = files / "__pycache__" / "trace"

    def instance(self, placement: Placement) -> OddInstance:
        """Raises what the parameter FAIL asks for."""
        if self._fail == placement.name:
            raise InvalidArgument(f"no instance {placement.name} today")
        if self._fail == "instance exit":
            os._exit(9)
        if self._fail == "instance hangs":
            threading.Event().wait()
        self._trace(f"made {placement.name}")
        if self._fail == "close hangs":
            return StubbornInstance(placement.name, self._trace)
        if self._says:
            return SayingInstance(placement.name, self._trace, self._file.with_name("ready"))
        return OddInstance(placement.name, self._trace)

    def unload(self) -> None:
        """Leave a trace."""
        self._trace("unloaded")

    def _trace(self, event: str) -> None:
        with self._file.open("a") as file:
            file.write(event + "\n")


class OddBackend(Backend):
    """Loads a model, unless it is to fail then."""

    def load(self, config: ModelConfig, files: Path) -> OddModel:
        """Raises what the parameter FAIL asks for."""
        match config.parameter("FAIL"):
            case "load":
                raise Stranger("cannot load")
            case "load exit":
                os._exit(8)
            case "load sys.exit":
                sys.exit("bye")
            case "load hangs":
                threading.Event().wait()
            case "once":
                _fail_after_the_first(files / "loaded")
            case "hangs after once":
                _hang_after_the_first(files / "loaded")
        return OddModel(config, files)

    def complete(self, config: ModelConfig, files: Path) -> ModelConfig:
        """Raises what the parameter FAIL asks for."""
        if config.parameter("FAIL") == "complete":
            raise InvalidArgument("cannot complete")
        if config.parameter("FAIL") == "complete hangs":
            threading.Event().wait()
        return config


def _fail_after_the_first(mark: Path) -> None:
    """The first load goes well and leaves a mark; those after it fail while the mark is there."""
    if mark.exists():
        raise Stranger("cannot load again")
    mark.touch()


def _hang_after_the_first(mark: Path) -> None:
    """The first load goes well and leaves a mark; those after it never end while the mark is
    there."""
    if mark.exists():
        threading.Event().wait()
    mark.touch()


@dataclass(frozen=True, slots=True)
class OddSettings:
    """Settings as a plug-in declares them."""

    fail: str = option("", about="Where to fail.")
    words: tuple[str, ...] = option((), about="Some words.", many=True)


class ToldBackend(OddBackend):
    """Fails as its settings say."""

    def __init__(self, settings: OddSettings) -> None:
        self._settings = settings

    def load(self, config: ModelConfig, files: Path) -> OddModel:
        """Raises where it is told to."""
        if self._settings.fail == "load":
            raise InvalidArgument(f"told to fail at load with {self._settings.words}")
        return super().load(config, files)


def make_with_settings(settings: OddSettings) -> ToldBackend:
    """A factory that takes settings."""
    return ToldBackend(settings)
