"""A backend of a stranger that declares metrics wherever it can: when it loads, when it makes an
instance, while it executes and when it closes."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from microkernel import (
    Backend,
    Batch,
    Instance,
    Metric,
    MetricFamily,
    Model,
    ModelConfig,
    Outcome,
    Placement,
    Tensor,
)

DIE = -1


class CountingInstance(Instance):
    """Adds the numbers of requests to a counter and answers with its value."""

    def __init__(self, counter: Metric, files: Path) -> None:
        self._counter = counter
        self._files = files
        family = MetricFamily("odd_sizes", "Sizes.", "histogram")
        self._sizes = family.metric(buckets=[1, 10])
        self._family = family

    def execute(self, batch: Batch) -> Sequence[Outcome]:
        """Ends the process where the first number says so."""
        numbers = batch.stacked["X"].as_numpy()
        if numbers.flat[0] == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        self._counter.increment(numbers.sum())
        self._sizes.observe(len(batch))
        value = np.full(numbers.shape, self._counter.value(), np.int32)
        return batch.split([Tensor.from_numpy("Y", value)])

    def close(self) -> None:
        """Leave the last value in a file."""
        (self._files / "last").write_text(str(self._counter.value()))


class CountingModel(Model):
    """Has one counter for all its instances."""

    def __init__(self, files: Path) -> None:
        self._files = files
        self._family = MetricFamily("odd_numbers", "Numbers.", "counter")
        self._counter = self._family.metric({"part": "all"})
        self._counter.increment(100)
        if self._counter.value() < 100:
            raise ValueError("the page did not take what was said while the model loads")

    def instance(self, placement: Placement) -> CountingInstance:
        """Declares a family of its own."""
        return CountingInstance(self._counter, self._files)


class CountingBackend(Backend):
    """Declares metrics also to complete a configuration."""

    def load(self, config: ModelConfig, files: Path) -> CountingModel:
        """Raises ValueError where the page does not answer."""
        return CountingModel(files)

    def complete(self, config: ModelConfig, files: Path) -> ModelConfig:
        """Leaves nothing: the family goes at once."""
        family = MetricFamily("odd_completions", "", "gauge")
        family.metric().set(1)
        return config
