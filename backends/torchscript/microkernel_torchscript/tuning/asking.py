"""Having an interpreter of our own measure a model, so that no torch comes into this process and a
model that crashes or hangs takes nothing along. No torch."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from microkernel import (
    ModelConfig,
    ModelParameter,
    config_from_json,
    config_to_json,
    error_from,
)
from microkernel_torchscript.tuning.record import Measured, measured_from_json

Heard = Callable[[str], None]

_CHILD = "microkernel_torchscript.tuning.child"
_START_SECONDS = 60.0
"""For importing torch and loading the model, beside twice the time for measuring."""

_MOST_BYTES = 4 * 1024 * 1024


class NotMeasured(Exception):
    """The interpreter ended or hung; the text says how."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The complete configuration of a model, the key of a record of it, and what was measured:
    None where the model is no TorchScript, or nothing was asked for."""

    config: ModelConfig
    key: Mapping[str, str]
    measured: Measured | None


def ask(config: ModelConfig, files: Path, seconds: float, heard: Heard) -> Answer:
    """Complete a model's configuration and measure it for about so many seconds, not at all for 0.
    `heard` gets news as it goes. Raises what the model's files are refused for, and NotMeasured."""
    order = {
        "config": config_to_json(_without_tuning(config)),
        "files": str(files.absolute()),
        "seconds": seconds,
    }
    read_end, write_end = os.pipe()
    try:
        process = _start(write_end)
    finally:
        os.close(write_end)
    try:
        _order(process, order)
        return _answer(read_end, process, time.monotonic() + 2 * seconds + _START_SECONDS, heard)
    finally:
        process.kill()
        os.close(read_end)
        process.communicate()


def _without_tuning(config: ModelConfig) -> ModelConfig:
    """The configuration of the model that is measured, which must not be tuned in turn."""
    return replace(config, parameters={**config.parameters, "AUTOTUNE": ModelParameter("off")})


def _start(descriptor: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        # -P: what lies in the working directory is not imported.
        [sys.executable, "-P", "-m", _CHILD, str(descriptor)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(descriptor,),
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
    )


def _order(process: "subprocess.Popen[bytes]", order: Mapping[str, Any]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        raise NotMeasured("the measuring process did not start") from None


def _answer(
    descriptor: int, process: "subprocess.Popen[bytes]", deadline: float, heard: Heard
) -> Answer:
    for line in _lines(descriptor, deadline):
        try:
            document = json.loads(line)
            if "news" not in document:
                return _read(document)
        except (ValueError, KeyError, TypeError) as error:
            raise NotMeasured(f"the measuring process answers what is no answer: {error}") from None
        heard(str(document["news"]))
    code = process.wait()
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    raise NotMeasured(f"the measuring process ended with {how}")


def _read(document: dict[str, Any]) -> Answer:
    """The answer in a document; raises the error that it tells of."""
    if "failed" in document:
        code, text = document["failed"]
        raise error_from(code, text)
    measured = document.get("measured")
    return Answer(
        config_from_json(document["config"]),
        document["key"],
        None if measured is None else measured_from_json(measured),
    )


def _lines(descriptor: int, deadline: float) -> Iterator[bytes]:
    """The lines that come through a pipe until it ends. Raises NotMeasured at the deadline."""
    kept = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            raise NotMeasured("the model was still running when measuring had to be over")
        if not (more := os.read(descriptor, 65536)):
            return
        *lines, kept = (kept + more).split(b"\n")
        yield from lines
        if len(kept) > _MOST_BYTES:
            raise NotMeasured("the measuring process said too much")
