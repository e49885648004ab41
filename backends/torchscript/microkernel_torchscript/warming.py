"""The first calls of a model, made before clients make any.

TorchScript profiles in the first call of a module and optimises in the second; compilers do their
work in the first. So a model is called with made-up inputs of the sizes that it will meet.
"""

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from microkernel import ModelConfig
from microkernel_torchscript.conversion import unreadable
from microkernel_torchscript.failures import first_line
from microkernel_torchscript.flags import FIRST_CALLS, compiling
from microkernel_torchscript.inputs import InputPlan
from microkernel_torchscript.made_up import PATIENCE, Purpose, told_when_long
from microkernel_torchscript.options import Options
from microkernel_torchscript.probing.examples import Example, configured_examples, is_ragged
from microkernel_torchscript.signature import SCALARS
from microkernel_torchscript.source import COLD, Forward, Warmth

logger = logging.getLogger(__name__)

Examples: TypeAlias = tuple[Example, ...]

_BATCH_BYTES = 16 << 20
"""Bytes of made-up inputs of several rows; what a model makes of them is often thirty times as
much."""

_ROW_BYTES = 256 << 20

_ONE_MODEL = threading.Lock()
"""Held while a model is warmed: another one beside it would spoil its times and random numbers."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """Inputs on which the model runs, of one row where it batches."""

    examples: Examples
    other: bool
    sizes: tuple[int, ...] = ()


class NoWarmUp:
    """For instances that are never asked anything, and models that are to start cold."""

    def first_calls(self, forward: Forward) -> Warmth:
        """See `Warm.first_calls`: nothing is called."""
        return COLD

    def touch(self, forward: Forward) -> None:
        """See `Warm.touch`: nothing is called."""


class WarmUp:
    """Warms the callables of one version of a model; see `Warm`."""

    def __init__(
        self,
        config: ModelConfig,
        inputs: InputPlan,
        options: Options,
        limit: float,
        *,
        compiles: bool = False,
        patience: float = PATIENCE,
    ) -> None:
        """`limit` is the number of seconds after which no further call is begun; after those of
        `patience` the log hears of them, in other words where the model `compiles` in them."""
        self._config, self._inputs, self._options = config, inputs, options
        self._limit, self._patience = limit, patience
        self._purpose = Purpose.COMPILING if compiles else Purpose.WARMING
        self._trial: _Trial | None = None

    def first_calls(self, forward: Forward) -> Warmth:
        """See `Warm.first_calls`."""
        watched = told_when_long(self._config, self._purpose, self._patience)
        with compiling(self._options), _ONE_MODEL, watched:
            began = time.perf_counter()
            try:
                warmth = self._first_calls(forward, began + self._limit)
            except _Refused as refused:
                warmth = Warmth(failure=str(refused))
            except (Exception, SystemExit) as error:  # noqa: BLE001 - an equal call succeeded
                warmth = Warmth(failure=_reason(error), keeps_state=True)
            return replace(warmth, seconds=time.perf_counter() - began)

    def touch(self, forward: Forward) -> None:
        """See `Warm.touch`."""
        if (trial := self._trial) is None:
            return
        try:
            for size in trial.sizes:
                self._call(forward, trial, size)
        except (Exception, SystemExit):  # clients will see what a model raises
            logger.debug("model '%s': a warm-up call failed", self._config.name, exc_info=True)

    def _first_calls(self, forward: Forward, until: float) -> Warmth:
        trial, first = self._accepted(forward, until)
        kept, _ = self._call(forward, trial, 1)
        same, steady = self._call(forward, trial, 1)
        keeps_state = not (_equal(kept, same) or self._equal_when_seeded(forward, trial))
        done, left_out = [1], []
        each = steady
        for size in batch_sizes(self._config)[1:]:
            left = until - time.perf_counter()
            if not affordable(size, _row_bytes(trial.examples), each * size / done[-1], left):
                left_out.append(size)
                continue
            try:
                for _ in range(FIRST_CALLS):
                    _, each = self._call(forward, trial, size)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - a model raises what it likes
                logger.debug("a batch of %d failed in warm-up: %s", size, error)
                left_out.append(size)
                continue
            done.append(size)
        self._trial = replace(trial, sizes=tuple(done))
        return Warmth(0.0, first, steady, tuple(done), tuple(left_out), keeps_state)

    def _accepted(self, forward: Forward, until: float) -> tuple[_Trial, float]:
        """The first inputs that the model runs on, and the seconds that this took; raises
        _Refused."""
        reason = ""
        for trial in self._trials():
            if _row_bytes(trial.examples) > _ROW_BYTES:
                reason = reason or "a single row of its inputs is too large to make up"
                continue
            try:
                return trial, self._call(forward, trial, 1)[1]
            except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
                reason = reason or _reason(error)
            if time.perf_counter() > until:
                break
        raise _Refused(reason)

    def _trials(self) -> Iterator[_Trial]:
        config = self._config
        if is_ragged(config):
            raise _Refused("a ragged batch cannot be made up")
        for examples in configured_examples(config, self._inputs.kinds):
            for variant in dict.fromkeys((_of_one_row(config, examples), examples)):
                yield _Trial(variant, other=False)
                yield _Trial(variant, other=True)

    def _call(self, forward: Forward, trial: _Trial, size: int) -> tuple[Any, float]:
        """The result of one call and its seconds. Each call gets inputs of its own, for the model
        may write to them, and the result is a copy, for it may be part of the module."""
        grown = _of_size(trial.examples, size)
        values = {example.name: example.value(other=trial.other) for example in grown}
        arguments = self._inputs.lay_out(values)
        began = time.perf_counter()
        result = forward(*arguments)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        return (_copied(result) if size == 1 else None), seconds

    def _equal_when_seeded(self, forward: Forward, trial: _Trial) -> bool:
        """Whether two calls that draw the same random numbers give the same result."""
        results = []
        for _ in range(2):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                results.append(self._call(forward, trial, 1)[0])
        return _equal(*results)


class _Refused(Exception):
    """No call succeeded; the text says why."""


def batch_sizes(config: ModelConfig) -> list[int]:
    """The sizes of batches to try, ascending: 1, those that the batcher prefers, and the
    largest."""
    batching = config.dynamic_batching
    preferred = batching.preferred_batch_size if batching else ()
    return sorted({1, *(size for size in (*preferred, config.max_batch_size) if size > 1)})


def affordable(size: int, row_bytes: int, seconds: float, left: float) -> bool:
    """Whether a batch of that many rows may be tried: its inputs are not too large, and calls of
    `seconds` each fit in the time left."""
    return size * row_bytes <= _BATCH_BYTES and seconds * FIRST_CALLS <= left


def report(name: str, warmth: Warmth) -> None:
    """Tell the log what the first calls of a model showed."""
    if not warmth.is_warm:
        logger.info(
            "model '%s' could not be warmed up with made-up inputs, so the first calls of clients "
            "will be slow; requests that it is to run first can be given in model_warmup: %s",
            name,
            warmth.failure,
        )
        return
    logger.info(
        "model '%s' was warmed up in %.2f s with batches of %s: its first call took %.1f ms, a "
        "steady one %.1f ms",
        name,
        warmth.seconds,
        ", ".join(map(str, warmth.sizes)),
        warmth.first * 1e3,
        warmth.steady * 1e3,
    )
    if warmth.left_out:
        logger.info(
            "model '%s': batches of %s were not warmed up, because they would take too long or too "
            "much memory; requests of that size can be given in model_warmup",
            name,
            ", ".join(map(str, warmth.left_out)),
        )


def _of_size(examples: Examples, size: int) -> Examples:
    if size == 1:
        return examples
    return tuple(e if e.kind in SCALARS else e.grown(0, size) for e in examples)


def _of_one_row(config: ModelConfig, examples: Examples) -> Examples:
    """With a free first dimension of 1 where the model does not batch: most likely it is that of a
    batch, and a large one takes long and leaves much memory behind."""
    if config.max_batch_size > 0:
        return examples
    return tuple(e.grown(0, 1) if 0 in e.axes else e for e in examples)


def _row_bytes(examples: Examples) -> int:
    return sum(example.nbytes for example in examples)


def _reason(error: BaseException) -> str:
    return first_line(error) if isinstance(error, Exception) else f"it ended with {error!r}"


def _copied(result: Any) -> Any:
    if isinstance(result, torch.Tensor):
        return result.clone()
    if isinstance(result, dict):
        return {key: _copied(value) for key, value in result.items()}
    if isinstance(result, list | tuple):
        return [_copied(value) for value in result]
    return result


def _equal(first: Any, second: Any) -> bool:
    """Whether two results are the same in what can be an output. What cannot be compared is taken
    to be: a model may return anything beside its outputs."""
    try:
        return _agree(first, second)
    except Exception:
        logger.debug("two results cannot be compared", exc_info=True)
        return True


def _agree(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return _close(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_agree(first[k], second[k]) for k in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_agree, first, second))
    if isinstance(first, str) and isinstance(second, str):
        return first == second
    return type(first) is type(second)


def _close(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two results are the same but for the order in which threads add up."""
    if unreadable(first):
        return True  # cannot be served, whatever it holds
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.is_floating_point() or first.is_complex():
        return torch.allclose(first, second, rtol=1e-3, atol=1e-6, equal_nan=True)
    return torch.equal(first, second)
