"""An instance of a model as the kernel hosts it, and what is asked of it to see that it keeps its
promises."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from microkernel.backend import Instance, Model, Placement
from microkernel.batch import Batch
from microkernel.config.model import ModelConfig
from microkernel.config.tensors import inner_dims, model_outputs
from microkernel.errors import MicrokernelError
from microkernel.models.checking import Checked, RequestChecker
from microkernel.models.padding import Padding
from microkernel.request import InferRequest, InferResponse
from microkernel.tensor import BY_CONFIG_NAME, Tensor
from microkernel.workers import descriptors
from microkernel.workers.descriptors import Schema
from microkernel.workers.runner import run
from microkernel.workers.wire import HEADER_SIZE

Outputs: TypeAlias = Mapping[str, Tensor]
"""The outputs of a response by their names."""


@contextmanager
def served(model: Model, config: ModelConfig, number: int) -> Iterator["Served"]:
    """An instance on a thread of its own, as the kernel hosts it; closed there at the end."""
    placement = Placement(f"{config.name}_{number}", "KIND_CPU")
    with ThreadPoolExecutor(1, thread_name_prefix=placement.name) as thread:
        instance = thread.submit(model.instance, placement).result()
        assert isinstance(instance, Instance), f"instance() made {instance!r}, no Instance"
        yield Served(thread, instance, config)
        thread.submit(instance.close).result()


class Served:
    """An instance, the thread that it lives on, and what is asked of it. Batches are laid out as
    the kernel lays them out."""

    def __init__(self, thread: ThreadPoolExecutor, instance: Instance, config: ModelConfig) -> None:
        self.thread = thread
        self.instance = instance
        self._config = config
        self._schema = Schema.of(config)
        self._checker = RequestChecker(config)
        self._padding = Padding.of(config)

    def answer(self, request: InferRequest) -> Outputs:
        """The outputs of a request that runs alone."""
        return self._execute([request])[0]

    def check_together(
        self, requests: Sequence[InferRequest], alone: Sequence[Outputs], rtol: float
    ) -> None:
        """Requests that share a batch get what they get alone; also one that comes twice."""
        if chosen := self.can_share(requests):
            together = self._execute([requests[index] for index in chosen])
            same(together, [alone[index] for index in chosen], rtol, "a larger batch")

    def can_share(self, requests: Sequence[InferRequest]) -> list[int]:
        """The places of requests that can share a batch with the first; empty where none can."""
        checked = [self._checker.check(request) for request in requests]
        assert not self._schema.batches or len({c.key for c in checked}) < len(requests), (
            "the model batches; give check_backend() two requests that can share a batch"
        )
        room = self._config.max_batch_size
        chosen: list[int] = []
        for index, one in enumerate(checked):
            if one.key == checked[0].key and one.size <= room:
                chosen.append(index)
                room -= one.size
        return chosen if len(chosen) > 1 else []

    def check_selection(self, request: InferRequest, alone: Outputs, rtol: float) -> None:
        """A request that asks for one output gets that one; more are dropped by the kernel."""
        for name, tensor in alone.items():
            got = self._execute([replace(request, outputs=(name,))])[0]
            same([{name: got[name]}], [{name: tensor}], rtol, f"asking for '{name}' alone")

    def check_failure(self, request: InferRequest) -> None:
        """An error in a batch is one error per request, or one for the request that caused it."""
        repeated = [request] * (2 if self._schema.batches else 1)
        batch = self.batch(repeated)
        outcomes = self.thread.submit(run, self.instance, batch, self._schema).result()
        assert len(outcomes) == len(repeated), f"{len(outcomes)} outcomes for {len(repeated)}"
        for outcome in outcomes:
            assert isinstance(outcome, MicrokernelError), f"expected an error, got {outcome!r}"
            assert str(outcome), "an error without a message"

    def _execute(self, requests: Sequence[InferRequest]) -> list[Outputs]:
        batch = self.batch(requests)
        outcomes = self.thread.submit(self.instance.execute, batch).result()
        assert len(outcomes) == len(requests), (
            f"execute() gave {len(outcomes)} outcomes for {len(requests)} requests"
        )
        return [self._outputs(r, o) for r, o in zip(requests, outcomes, strict=True)]

    def batch(self, requests: Sequence[InferRequest]) -> Batch:
        """The requests as a batch that the kernel laid out."""
        checked: list[Checked] = [self._checker.check(request) for request in requests]
        sizes = [c.size for c in checked]
        ready: Sequence[InferRequest] = [c.request for c in checked]
        if self._padding is not None:
            ready = self._padding.pad(ready)
        plan = descriptors.plan(ready, self._schema)
        block = memoryview(bytearray(plan.total))
        descriptors.gather(plan, block)
        message = descriptors.execute_message(plan, sizes, self._schema, (1, 0, 0))
        identity = (self._config.name, requests[0].version)
        return descriptors.read_execute(message[HEADER_SIZE:], self._schema, block, identity)

    def _outputs(self, request: InferRequest, outcome: object) -> Outputs:
        """As `kept`, of what must be a response to that request."""
        assert isinstance(outcome, InferResponse), f"a good request got {outcome!r}, no response"
        assert outcome.id == request.id, (
            f"request '{request.id}' got the response of '{outcome.id}'"
        )
        return self.kept(request, outcome)

    def kept(self, request: InferRequest, outcome: InferResponse) -> Outputs:
        """The outputs of a response that the kernel would keep, copied and checked."""
        wanted = request.outputs or self._schema.outputs
        given = outcome.outputs
        if self._padding is not None:
            given = self._padding.cut(self._checker.check(request).request, given)
        tensors = [replace(t, data=bytes(t.data)) for t in given if t.name in wanted]
        size = -1 if self._schema.decoupled else self._checker.check(request).size
        for tensor in tensors:
            self._check_output(tensor, size)
        names = [tensor.name for tensor in tensors]
        assert sorted(set(names)) == sorted(names), f"outputs {names} are not unique"
        some = names or self._schema.decoupled  # whose responses may each hold something else
        assert some, f"none of the outputs {list(wanted)} is in the response"
        return {tensor.name: tensor for tensor in tensors}

    def _check_output(self, tensor: Tensor, size: int) -> None:
        entry = next(o for o in model_outputs(self._config) if o.name == tensor.name)
        expected = BY_CONFIG_NAME[entry.data_type]
        assert tensor.datatype is expected, (
            f"output '{tensor.name}' is {tensor.datatype}, configured is {expected}"
        )
        inner = inner_dims(entry)
        dims = (size, *inner) if self._schema.batches else inner
        fits = len(dims) == len(tensor.shape) and all(
            dim in (-1, got) for dim, got in zip(dims, tensor.shape, strict=True)
        )
        assert fits, f"output '{tensor.name}' has shape {tensor.shape}, configured is {dims}"
        try:
            _array(tensor)
        except (MicrokernelError, ValueError) as error:
            raise AssertionError(f"output '{tensor.name}': {error}") from error


def _array(tensor: Tensor) -> Any:
    """The tensor as an array; BF16, which numpy lacks, by its bits."""
    if tensor.datatype.numpy is None:
        return np.frombuffer(tensor.data, np.uint16).reshape(tensor.shape)
    return tensor.as_numpy()


def same(got: Sequence[Outputs], expected: Sequence[Outputs], rtol: float, where: str) -> None:
    """Whether outputs are equal within `rtol`; `where` says whose they are."""
    for mine, theirs in zip(got, expected, strict=True):
        assert sorted(mine) == sorted(theirs), f"{where} gives other outputs: {sorted(mine)}"
        for name, tensor in mine.items():
            ours, other = _array(tensor), _array(theirs[name])
            close = ours.shape == other.shape and (
                np.allclose(ours, other, rtol=rtol, atol=rtol, equal_nan=True)
                if ours.dtype.kind == "f"
                else np.array_equal(ours, other)
            )
            assert close, f"{where} gives another '{name}': {ours!r} in place of {other!r}"
