"""A model that is called with made-up inputs for long: what the log hears of it."""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
from torch import nn

from microkernel import ModelConfig, ModelInput, ModelOutput, ModelParameter
from microkernel_torchscript.exported.program import ProgramSource
from microkernel_torchscript.inputs import Feed, InputPlan
from microkernel_torchscript.made_up import Purpose, notice, told_after, told_when_long
from microkernel_torchscript.module.source import ModuleSource
from microkernel_torchscript.options import Options
from microkernel_torchscript.probing.completion import Subject, completed
from microkernel_torchscript.probing.examples import Example
from microkernel_torchscript.signature import Argument, Signature
from microkernel_torchscript.source import Source
from microkernel_torchscript.warming import WarmUp

WAIT = 60.0
X = ModelInput("x", "TYPE_FP32", dims=(4,))
CONFIG = ModelConfig(name="m", input=(X,), output=(ModelOutput("y__0", "TYPE_FP32", dims=(4,)),))
PLAN = InputPlan((Feed("x", 0, "tensor"),), (None,), as_dictionary=False)
TIMED = "its parameter LOAD_TIMEOUT_SECS limits how long it may take to load"


class Heard(logging.Handler):
    """The lines of the log, and a model that waits until there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int, str]] = []
        self.any = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelno, record.getMessage()))
        self.any.set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns when the log has heard something."""
        assert self.any.wait(WAIT)
        return x


@pytest.fixture
def heard() -> Iterator[Heard]:
    """What the log hears of calls with made-up inputs."""
    logger = logging.getLogger("microkernel_torchscript.made_up")
    handler, level = Heard(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.mark.parametrize(
    ("purpose", "level", "words"),
    [
        (
            Purpose.COMPLETING,
            logging.WARNING,
            "model 'm' has been running on made-up inputs for 30 s, to find out which inputs and "
            "outputs it has; if it does not return from that, list both in its configuration and "
            f'set its parameter WARMUP to "false"; {TIMED}',
        ),
        (
            Purpose.WARMING,
            logging.WARNING,
            "model 'm' has been running on made-up inputs for 30 s, to be warm when clients call; "
            f'if it does not return from that, set its parameter WARMUP to "false"; {TIMED}',
        ),
        (
            Purpose.COMPILING,
            logging.INFO,
            "the first calls of model 'm', in which 'torch.compile' works, have taken 30 s; that "
            f"may go on for minutes; {TIMED}",
        ),
    ],
)
def test_what_is_told(purpose: Purpose, level: int, words: str) -> None:
    assert notice("m", purpose, 30.0) == (level, words)


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [(None, 30), ("0", 30), ("600", 30), ("61", 30), ("5", 2.5), ("soon", 30), ("-1", 30)],
)
def test_it_is_told_before_the_load_is_ended(timeout: str | None, seconds: float) -> None:
    given = {} if timeout is None else {"LOAD_TIMEOUT_SECS": ModelParameter(timeout)}
    assert told_after(replace(CONFIG, parameters=given), 30.0) == seconds


def test_it_is_told_once(heard: Heard) -> None:
    with told_when_long(CONFIG, Purpose.WARMING, 0.01):
        assert heard.any.wait(WAIT)
    assert heard.lines == [notice("m", Purpose.WARMING, 0.01)]


def test_a_block_that_ends_in_time_leaves_no_thread_and_says_nothing(heard: Heard) -> None:
    before = set(threading.enumerate())
    with told_when_long(CONFIG, Purpose.WARMING, WAIT):
        (timer,) = set(threading.enumerate()) - before
        assert timer.daemon
    timer.join(WAIT)
    assert not timer.is_alive()
    assert heard.lines == []


@pytest.mark.parametrize(
    ("compiles", "purpose"), [(False, Purpose.WARMING), (True, Purpose.COMPILING)]
)
def test_first_calls_are_watched(heard: Heard, compiles: bool, purpose: Purpose) -> None:
    warm = WarmUp(CONFIG, PLAN, Options(), 60.0, compiles=compiles, patience=0.01)
    assert warm.first_calls(heard.forward).is_warm
    assert heard.lines[0] == notice("m", purpose, 0.01)


def test_trial_runs_are_watched(heard: Heard, tmp_path: Path) -> None:
    signature = Signature((Argument("x", "tensor", "Tensor"),), returned=1)
    subject = Subject(
        forward=heard.forward,
        signature=signature,
        plan=lambda listed: PLAN,
        guesses=lambda: iter([(Example("x", "TYPE_FP32", (1, 4), frozenset({0})),)]),
    )
    found = completed(ModelConfig(name="m"), tmp_path, subject, patience=0.01)
    assert [entry.dims for entry in found.input] == [(-1, 4)]
    assert heard.lines == [notice("m", Purpose.COMPLETING, 0.01)]


COMPILE = "TORCH_COMPILE_OPTIONAL_PARAMETERS"
MODULE = """
import torch
class Twice(torch.nn.Module):
    def forward(self, x):
        return x * 2
"""


class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def module_source(config: ModelConfig, files: Path) -> Source:
    (files / "model.py").write_text(MODULE)
    return ModuleSource(config, files)


def program_source(config: ModelConfig, files: Path) -> Source:
    torch.export.save(torch.export.export(Twice(), (torch.zeros(4),)), files / "model.pt2")
    return ProgramSource(config, files / "model.pt2")


@pytest.mark.parametrize(
    ("make", "parameters", "compiles"),
    [
        (module_source, {}, True),
        (module_source, {COMPILE: '{"backend": "eager"}'}, True),
        (module_source, {COMPILE: '{"disable": true}'}, False),
        (program_source, {}, False),
        (program_source, {COMPILE: '{"backend": "eager"}'}, True),
        (program_source, {COMPILE: '{"disable": true}'}, False),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_which_models_may_compile_in_their_first_calls(
    make: Callable[..., Any], parameters: dict[str, str], compiles: bool, tmp_path: Path
) -> None:

    given = {key: ModelParameter(value) for key, value in parameters.items()}
    source = make(replace(CONFIG, parameters=given), tmp_path)
    try:
        assert source.compiles is compiles
    finally:
        source.close()
