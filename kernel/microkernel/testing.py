"""What tests of plug-ins may use: a server in memory that answers as the test says, an event loop
on virtual time, and the contract that every backend keeps.
"""

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from microkernel import port
from microkernel.backend import Backend, BackendType, Instance, Model, Placement
from microkernel.batch import Batch
from microkernel.classification import Labels, classify_outputs
from microkernel.config.model import ModelConfig, ModelInput, ModelOutput
from microkernel.errors import (
    InvalidArgument,
    MicrokernelError,
    NotFound,
    Unavailable,
    Unsupported,
)
from microkernel.log import LogControl
from microkernel.models.catalogue import check_name, not_polled
from microkernel.models.checking import Checked, RequestChecker
from microkernel.repository.complete import merge_completed, normalise
from microkernel.repository.override import Override
from microkernel.request import LATEST, InferRequest, InferResponse
from microkernel.shared_memory import SharedMemory
from microkernel.stats import ModelStats
from microkernel.tensor import BY_CONFIG_NAME, Tensor
from microkernel.workers import descriptors
from microkernel.workers.descriptors import Schema
from microkernel.workers.hosting import make_backend
from microkernel.workers.runner import run
from microkernel.workers.wire import HEADER_SIZE

Answer: TypeAlias = Callable[[ModelConfig, InferRequest], Awaitable[InferResponse]]


async def echo(config: ModelConfig, request: InferRequest) -> InferResponse:
    """Answer each input under the name of the configuration's output at the same place, in the
    order of the outputs; only those that were asked for."""
    pairs = zip(config.input, config.output, strict=True)
    outputs = tuple(
        replace(tensor, name=there.name)
        for here, there in pairs
        if (tensor := request.input(here.name)) is not None
        and (not request.outputs or there.name in request.outputs)
    )
    return InferResponse(request.model_name, request.version, request.id, outputs)


@dataclass(slots=True)
class FakeModel:
    """One canned model: its configuration, the coroutine that answers its requests, the labels of
    its outputs, and its counters, which stay as the test sets them.

    The coroutine gets the request with the version that runs in place of LATEST; what it raises
    goes to the caller.
    """

    config: ModelConfig
    answer: Answer = echo
    version: int = 1
    ready: bool = True
    labels: Labels = field(default_factory=dict)
    stats: ModelStats = field(default_factory=ModelStats)

    def metadata(self) -> port.ModelMetadata:
        """What clients are told, derived from the configuration."""
        config = self.config
        return port.ModelMetadata(
            config.name,
            [str(self.version)],
            config.platform or config.backend,
            [self._tensor(tensor) for tensor in config.input],
            [self._tensor(tensor) for tensor in config.output],
        )

    def _tensor(self, tensor: ModelInput | ModelOutput) -> port.TensorMetadata:
        batch = (-1,) if self.config.max_batch_size else ()
        datatype = BY_CONFIG_NAME[tensor.data_type].name
        return port.TensorMetadata(tensor.name, datatype, (*batch, *tensor.dims))


class FakeServer:
    """The port `Server` in memory, for the tests of front ends.

    It looks models up and refuses what does not serve as the real server does; it checks nothing
    else about a request. Everything it answers from is public and may be changed by a test at any
    time: `models` by name, `is_live` and `is_ready`, `about`, `log`, `memory`, `page` (the
    metrics), and `failure`, an error that every call raises while it is set. `requests` collects
    what `infer` received; `loads` and `unloads` what was to be loaded and unloaded.
    """

    def __init__(self, models: Iterable[FakeModel] = ()) -> None:
        self.models = {model.config.name: model for model in models}
        self.is_live = self.is_ready = True
        self.log = LogControl(port.LogSettings())
        self.memory = SharedMemory(allowed=False)
        self.about = port.ServerMetadata("triton", "0.0.0", ["binary_tensor_data", "parameters"])
        self.page = b""
        self.failure: MicrokernelError | None = None
        self.requests: list[InferRequest] = []
        self.loads: list[tuple[str, str | None, Mapping[str, bytes]]] = []
        self.unloads: list[tuple[str, bool]] = []

    async def infer(self, request: InferRequest) -> InferResponse:
        """Record the request and give the model's answer, with the classes that are asked for."""
        model = self._model(request.model_name, request.version)
        if model.config.decoupled:
            raise Unsupported("doesn't support models with decoupled transaction policy")
        self.requests.append(request)
        response = await model.answer(model.config, replace(request, version=model.version))
        if not request.classifications:
            return response
        batches = model.config.max_batch_size > 0
        return classify_outputs(response, request.classifications, model.labels, batches=batches)

    async def live(self) -> bool:
        """`is_live`."""
        self._fail()
        return self.is_live

    async def ready(self) -> bool:
        """`is_ready`."""
        self._fail()
        return self.is_ready

    async def model_ready(self, name: str, version: int = LATEST) -> bool:
        """Whether there is such a model, in that version, and it is ready."""
        self._fail()
        model = self.models.get(name)
        return model is not None and model.ready and version in (LATEST, model.version)

    async def metadata(self) -> port.ServerMetadata:
        """`about`."""
        self._fail()
        return self.about

    async def model_metadata(self, name: str, version: int = LATEST) -> port.ModelMetadata:
        """The model's metadata, or NotFound."""
        return self._model(name, version).metadata()

    async def model_config(self, name: str, version: int = LATEST) -> ModelConfig:
        """The model's configuration, or NotFound."""
        return self._model(name, version).config

    async def repository_index(self, *, ready: bool = False) -> Sequence[port.ModelIndex]:
        """A line per model; one that is not ready was unloaded."""
        self._fail()
        return [
            port.ModelIndex(name, str(model.version), "READY")
            if model.ready
            else port.ModelIndex(name, str(model.version), "UNAVAILABLE", "unloaded")
            for name, model in sorted(self.models.items())
            if model.ready or not ready
        ]

    async def statistics(
        self, name: str = "", version: int = LATEST
    ) -> Sequence[port.ModelStatistics]:
        """The counters of the models, or of the one of that name."""
        self._fail()
        models = [m for m in self.models.values() if m.ready and name in ("", m.config.name)]
        if name and not models:
            raise InvalidArgument(f"requested model '{name}' is not available")
        if version != LATEST and all(model.version != version for model in models):
            raise InvalidArgument(f"requested model version is not available for model '{name}'")
        return [port.ModelStatistics(m.config.name, str(m.version), m.stats) for m in models]

    async def load_model(
        self, name: str, config: str | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        """Record the call; the model is ready then, with the configuration that is given."""
        self._fail()
        check_name(name)
        self.loads.append((name, config, files or {}))
        try:
            model, override = self.models[name], Override.of(config, files or {})
        except (InvalidArgument, KeyError):
            raise not_polled(name) from None
        model.ready = True
        if override is not None:
            model.config = replace(override.config, name=name)

    async def unload_model(self, name: str, *, unload_dependents: bool = False) -> None:
        """Record the call; the model, if there is one, is not ready then."""
        self._fail()
        self.unloads.append((name, unload_dependents))
        if name in self.models:
            self.models[name].ready = False

    async def log_settings(self, changes: port.LogChanges | None = None) -> port.LogSettings:
        """The settings of `log`, changed first where `changes` says so."""
        self._fail()
        return self.log.settings if changes is None else self.log.change(changes)

    async def register_system_shared_memory(self, region: port.SystemRegion) -> None:
        """Register with `memory`."""
        self.memory.register(region)

    async def system_shared_memory(self, name: str = "") -> Sequence[port.SystemRegion]:
        """The regions of `memory`."""
        return self.memory.status(name)

    async def unregister_system_shared_memory(self, name: str = "") -> None:
        """Unregister from `memory`."""
        self.memory.unregister(name)

    async def metrics(self) -> bytes:
        """`page`."""
        self._fail()
        return self.page

    def _model(self, name: str, version: int) -> FakeModel:
        self._fail()
        model, unknown = self.models.get(name), f"Request for unknown model: '{name}'"
        if model is None:
            raise NotFound(f"{unknown} is not found")
        if version not in (LATEST, model.version):
            raise NotFound(f"{unknown} version {version} is not found")
        if not model.ready and version == LATEST:
            raise NotFound(f"{unknown} has no available versions")
        if not model.ready:
            raise Unavailable(f"{unknown} version {version} is not at ready state")
        return model

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure


class _JumpingSelector(selectors.DefaultSelector):
    """Looks at its files without waiting, and adds to its clock what it would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See `BaseSelector.select`. With nothing to wait for in time it waits for a file."""
        ready = super().select(None if timeout is None else 0)
        if not ready and timeout is not None:
            self.now += max(timeout, 0.0)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that starts at 0 seconds and jumps to its next timer whenever nothing else can
    run: `await asyncio.sleep(3600)` returns at once, and `time()` is exactly an hour later.

    Only for code without threads and processes, which the clock would run ahead of. Use it with
    `asyncio.Runner(loop_factory=VirtualTimeLoop)` or from pytest-asyncio's hook
    `pytest_asyncio_loop_factories`.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """The virtual time in seconds."""
        return self._jumping.now


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
