"""The contract suite: it passes a backend that keeps its promises, and names the one that another
breaks."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microkernel import (
    Backend,
    BackendType,
    Batch,
    DynamicBatching,
    InferRequest,
    Instance,
    Internal,
    Model,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelParameter,
    Outcome,
    Placement,
    Tensor,
)
from microkernel.testing import check_backend

KIND = BackendType("sample", f"{__name__}:Sample")
CONFIG = ModelConfig(
    name="sum",
    backend="sample",
    max_batch_size=4,
    input=(ModelInput("X", "TYPE_FP32", dims=(-1,)), ModelInput("T", "TYPE_STRING", dims=(1,))),
    output=(ModelOutput("SUM", "TYPE_FP32", (1,)), ModelOutput("UPPER", "TYPE_STRING", (1,))),
)


class SampleInstance(Instance):
    """Sums X and raises T to upper case, or breaks the promise that it was told to break."""

    def __init__(self, promise: str, trace: list[str]) -> None:
        self._promise = promise
        self._trace = trace
        self._thread = threading.get_ident()
        self._runs = 0

    def execute(self, batch: Batch) -> Sequence[Outcome]:
        assert threading.get_ident() == self._thread
        self._runs += 1
        x, words = batch.stacked["X"].as_numpy(), batch.stacked["T"].as_numpy()
        if np.isnan(x).any():
            return self._fail(batch)
        total = x.sum(axis=1, keepdims=True)
        upper = np.array([w.upper() for w in words.flat], np.object_).reshape(words.shape)
        broken = BREAKS.get(self._promise)
        outputs = [Tensor.from_numpy("SUM", total), Tensor.from_numpy("UPPER", upper)]
        outcomes: Sequence[Outcome] = batch.split(outputs)
        if broken is not None:
            outcomes = broken(batch, outcomes, self._runs)
        return outcomes

    def _fail(self, batch: Batch) -> Sequence[Outcome]:
        if self._promise == "answer":
            return batch.split([Tensor.from_numpy("SUM", np.zeros((batch.size, 1), np.float32))])
        raise Internal("not a number" if self._promise != "silence" else "")

    def close(self) -> None:
        assert threading.get_ident() == self._thread
        self._trace.append("close")


LAST_RUN = 8
"""Three requests alone, one batch, two outputs alone, one that fails, and the first again."""

Break = Callable[[Batch, Any, int], Any]


def changed(outcomes: Any, **fields: Any) -> Any:
    """The outcomes with the first output of each changed."""
    return [replace(o, outputs=(replace(o.outputs[0], **fields), *o.outputs[1:])) for o in outcomes]


BREAKS: dict[str, Break] = {
    "count": lambda batch, outcomes, runs: [*outcomes, outcomes[0]],
    "order": lambda batch, outcomes, runs: outcomes[::-1],
    "answers": lambda batch, outcomes, runs: [Internal("no")] * len(batch),
    "response": lambda batch, outcomes, runs: [None] * len(batch),
    "names": lambda batch, outcomes, runs: [replace(o, outputs=()) for o in outcomes],
    "unique": lambda batch, outcomes, runs: [replace(o, outputs=o.outputs * 2) for o in outcomes],
    "type": lambda batch, outcomes, runs: changed(
        outcomes, datatype=batch.stacked["T"].datatype, data=b"\0\0\0\0"
    ),
    "shape": lambda batch, outcomes, runs: changed(outcomes, shape=(1, 1, 1)),
    "size": lambda batch, outcomes, runs: changed(outcomes, data=b""),
    "batch": lambda batch, outcomes, runs: (
        changed(outcomes, data=bytes(4)) if len(batch) > 1 else outcomes
    ),
    "again": lambda batch, outcomes, runs: (
        changed(outcomes, data=bytes(4)) if runs == LAST_RUN else outcomes
    ),
    "selection": lambda batch, outcomes, runs: (
        [replace(o, outputs=o.outputs[:1]) for o in outcomes] if batch[0].outputs else outcomes
    ),
}


class SampleModel(Model):
    """Makes instances."""

    def __init__(self, promise: str, trace: list[str]) -> None:
        self._promise = promise
        self._trace = trace

    def instance(self, placement: Placement) -> Instance:
        if self._promise == "instance":
            return None  # type: ignore[return-value]  # the promise that is broken
        self._trace.append(placement.name)
        return SampleInstance(self._promise, self._trace)

    def unload(self) -> None:
        self._trace.append("unload")


TRACE: list[str] = []


class Sample(Backend):
    """Breaks the promise that the parameter BREAK names."""

    def load(self, config: ModelConfig, files: Path) -> Model:
        TRACE.append("load")
        return SampleModel(config.parameter("BREAK"), TRACE)

    def complete(self, config: ModelConfig, files: Path) -> ModelConfig:
        if config.parameter("BREAK") == "complete":
            size = config.max_batch_size + 1
            return replace(config, max_batch_size=size)
        return config


def request(number: int, *values: float) -> InferRequest:
    x = Tensor.from_numpy("X", np.array([values], np.float32))
    t = Tensor.from_numpy("T", np.array([[f"word {number}"]], np.object_))
    return InferRequest("sum", (x, t), version=1, id=str(number))


REQUESTS = [request(1, 1.0, 2.0), request(2, 5.0, 7.0), request(3, 1.0)]
FAILING = request(4, float("nan"))


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch) -> BackendType:
    import sys

    monkeypatch.setitem(sys.modules, "sample_backend", sys.modules[__name__])
    TRACE.clear()
    return replace(KIND, factory="sample_backend:Sample")


def test_a_good_backend_passes_and_is_closed(sample: BackendType, tmp_path: Path) -> None:
    check_backend(sample, CONFIG, tmp_path, REQUESTS, failing=FAILING)
    round_ = ["load", "sum_0", "sum_1", "close", "close", "unload"]
    assert round_ * 2 == TRACE


def test_a_model_that_does_not_batch_passes(sample: BackendType, tmp_path: Path) -> None:
    config = replace(
        CONFIG,
        max_batch_size=0,
        input=(ModelInput("X", "TYPE_FP32", dims=(1, -1)), replace(CONFIG.input[1], dims=(1, 1))),
        output=tuple(replace(output, dims=(1, 1)) for output in CONFIG.output),
    )
    check_backend(sample, config, tmp_path, REQUESTS, failing=FAILING)


def test_a_dynamic_batcher_makes_no_difference(sample: BackendType, tmp_path: Path) -> None:
    config = replace(CONFIG, dynamic_batching=DynamicBatching())
    check_backend(sample, config, tmp_path, REQUESTS)


@pytest.mark.parametrize(
    ("promise", "complaint"),
    [
        ("complete", "complete() changes a configuration that it completed"),
        ("instance", "instance() made None, no Instance"),
        ("count", "execute() gave 2 outcomes for 1 requests"),
        ("order", "request '1' got the response of '2'"),
        ("answers", "a good request got Internal('no'), no response"),
        ("response", "a good request got None, no response"),
        ("names", "none of the outputs ['SUM', 'UPPER'] is in the response"),
        ("unique", "outputs ['SUM', 'UPPER', 'SUM', 'UPPER'] are not unique"),
        ("type", "output 'SUM' is BYTES, configured is FP32"),
        ("shape", "output 'SUM' has shape (1, 1, 1), configured is (1, 1)"),
        ("size", "output 'SUM': tensor 'SUM' "),
        ("batch", "a larger batch gives another 'SUM': array([[0.]], dtype=float32) in place of"),
        ("again", "the same instance, later, gives another 'SUM'"),
        ("selection", "none of the outputs ['UPPER'] is in the response"),
        ("answer", "expected an error, got InferResponse("),
        ("silence", "an error without a message"),
    ],
)
def test_a_broken_promise_is_named(
    sample: BackendType, tmp_path: Path, promise: str, complaint: str
) -> None:
    config = replace(CONFIG, parameters={"BREAK": ModelParameter(promise)})
    with pytest.raises(AssertionError) as caught:
        check_backend(sample, config, tmp_path, REQUESTS, failing=FAILING)
    assert str(caught.value).startswith(complaint)


def test_a_model_that_batches_needs_two_requests_of_a_kind(
    sample: BackendType, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match="two requests that can share a batch"):
        check_backend(sample, CONFIG, tmp_path, [REQUESTS[0], REQUESTS[2]])
