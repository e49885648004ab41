"""The contract that every backend keeps, as checks."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from microkernel.backend import Backend, BackendType, Instance, Model, Placement
from microkernel.batch import Batch
from microkernel.config.model import ModelConfig
from microkernel.errors import MicrokernelError
from microkernel.models.checking import Checked, RequestChecker
from microkernel.repository.complete import merge_completed, normalise
from microkernel.request import InferRequest, InferResponse
from microkernel.tensor import BY_CONFIG_NAME, Tensor
from microkernel.workers import descriptors
from microkernel.workers.descriptors import Schema
from microkernel.workers.hosting import make_backend
from microkernel.workers.runner import run
from microkernel.workers.wire import HEADER_SIZE


def check_backend(  # noqa: PLR0913 - what is optional is named in the call
    kind: BackendType,
    config: ModelConfig,
    files: Path,
    requests: Sequence[InferRequest],
    *,
    settings: Any = None,
    failing: InferRequest | None = None,
    rtol: float = 1e-5,
) -> None:
    """Check that a backend does with one model what every backend promises; raises AssertionError
    with the promise that it broke.

    `config` is the model's configuration as its `config.pbtxt` would have it, `files` its version
    directory, and `requests` good requests, two or more that can share a batch where the model
    batches. `failing` is a request that the checks let pass and the model answers with an error.
    `settings` is the plug-in's settings object, None where it declares none.

    It completes the configuration twice, loads the model, makes two instances each on a thread of
    its own, runs each request alone, all in one batch and for each output alone, compares the
    results within `rtol`, and closes, unloads and loads again. The model must be deterministic.
    """
    backend = make_backend(kind.factory, settings)
    config = _completed(backend, kind, config, files)
    for _ in range(2):  # what was unloaded can be loaded again
        model = backend.load(config, files)
        with _served(model, config, 0) as first, _served(model, config, 1) as second:
            alone = [first.answer(request) for request in requests]
            _same([second.answer(request) for request in requests], alone, rtol, "an instance")
            first.check_together(requests, alone, rtol)
            first.check_selection(requests[0], alone[0], rtol)
            if failing is not None:
                first.check_failure(failing)
            _same([first.answer(requests[0])], alone[:1], rtol, "the same instance, later,")
        model.unload()


def _completed(
    backend: Backend, kind: BackendType, config: ModelConfig, files: Path
) -> ModelConfig:
    completed = merge_completed(config, backend.complete(config, files))
    again = merge_completed(completed, backend.complete(completed, files))
    assert again == completed, "complete() changes a configuration that it completed"
    return normalise(completed, kind, gpus=0)


_Outputs: TypeAlias = Mapping[str, Tensor]


@contextmanager
def _served(model: Model, config: ModelConfig, number: int) -> Iterator["_Served"]:
    """An instance on a thread of its own, as the kernel hosts it; closed there at the end."""
    placement = Placement(f"{config.name}_{number}", "KIND_CPU")
    with ThreadPoolExecutor(1, thread_name_prefix=placement.name) as thread:
        instance = thread.submit(model.instance, placement).result()
        assert isinstance(instance, Instance), f"instance() made {instance!r}, no Instance"
        yield _Served(thread, instance, config)
        thread.submit(instance.close).result()


class _Served:
    """An instance and what is asked of it. Batches are laid out as the kernel lays them out."""

    def __init__(self, thread: ThreadPoolExecutor, instance: Instance, config: ModelConfig) -> None:
        self._thread = thread
        self._instance = instance
        self._config = config
        self._schema = Schema.of(config)
        self._checker = RequestChecker(config)

    def answer(self, request: InferRequest) -> _Outputs:
        """The outputs of a request that runs alone."""
        return self._execute([request])[0]

    def check_together(
        self, requests: Sequence[InferRequest], alone: Sequence[_Outputs], rtol: float
    ) -> None:
        """Requests that share a batch get what they get alone; also one that comes twice."""
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
        if len(chosen) < 2:
            return
        together = self._execute([requests[index] for index in chosen])
        _same(together, [alone[index] for index in chosen], rtol, "a larger batch")

    def check_selection(self, request: InferRequest, alone: _Outputs, rtol: float) -> None:
        """A request that asks for one output gets that one; more are dropped by the kernel."""
        for name, tensor in alone.items():
            got = self._execute([replace(request, outputs=(name,))])[0]
            _same([{name: got[name]}], [{name: tensor}], rtol, f"asking for '{name}' alone")

    def check_failure(self, request: InferRequest) -> None:
        """An error in a batch is one error per request, or one for the request that caused it."""
        repeated = [request] * (2 if self._schema.batches else 1)
        batch = self._batch(repeated)
        outcomes = self._thread.submit(run, self._instance, batch, self._schema).result()
        assert len(outcomes) == len(repeated), f"{len(outcomes)} outcomes for {len(repeated)}"
        for outcome in outcomes:
            assert isinstance(outcome, MicrokernelError), f"expected an error, got {outcome!r}"
            assert str(outcome), "an error without a message"

    def _execute(self, requests: Sequence[InferRequest]) -> list[_Outputs]:
        batch = self._batch(requests)
        outcomes = self._thread.submit(self._instance.execute, batch).result()
        assert len(outcomes) == len(requests), (
            f"execute() gave {len(outcomes)} outcomes for {len(requests)} requests"
        )
        return [self._outputs(r, o) for r, o in zip(requests, outcomes, strict=True)]

    def _batch(self, requests: Sequence[InferRequest]) -> Batch:
        checked: list[Checked] = [self._checker.check(request) for request in requests]
        sizes = [c.size for c in checked]
        plan = descriptors.plan([c.request for c in checked], self._schema)
        block = memoryview(bytearray(plan.total))
        descriptors.gather(plan, block)
        message = descriptors.execute_message(plan, sizes, self._schema, (1, 0))
        identity = (self._config.name, requests[0].version)
        return descriptors.read_execute(message[HEADER_SIZE:], self._schema, block, identity)

    def _outputs(self, request: InferRequest, outcome: object) -> _Outputs:
        """The outputs that the kernel would keep, copied and checked."""
        assert isinstance(outcome, InferResponse), f"a good request got {outcome!r}, no response"
        assert outcome.id == request.id, (
            f"request '{request.id}' got the response of '{outcome.id}'"
        )
        wanted = request.outputs or self._schema.outputs
        tensors = [replace(t, data=bytes(t.data)) for t in outcome.outputs if t.name in wanted]
        size = self._checker.check(request).size
        for tensor in tensors:
            self._check_output(tensor, size)
        names = [tensor.name for tensor in tensors]
        assert sorted(set(names)) == sorted(names), f"outputs {names} are not unique"
        assert names, f"none of the outputs {list(wanted)} is in the response"
        return {tensor.name: tensor for tensor in tensors}

    def _check_output(self, tensor: Tensor, size: int) -> None:
        entry = next(o for o in self._config.output if o.name == tensor.name)
        expected = BY_CONFIG_NAME[entry.data_type]
        assert tensor.datatype is expected, (
            f"output '{tensor.name}' is {tensor.datatype}, configured is {expected}"
        )
        inner = entry.dims if entry.reshape is None else entry.reshape.shape
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


def _same(got: Sequence[_Outputs], expected: Sequence[_Outputs], rtol: float, where: str) -> None:
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
