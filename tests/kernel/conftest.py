"""Virtual time where a test asks for it, and a misbehaving backend in real workers."""

import asyncio
import gc
import io
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import structlog

from microkernel import (
    BackendType,
    DynamicBatching,
    InferRequest,
    MicrokernelError,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelParameter,
    Placement,
    Tensor,
    TransactionPolicy,
    Unavailable,
    cli,
)
from microkernel.log import configure
from microkernel.models.crew import Crew, CrewEvents
from microkernel.models.version import ModelVersion
from microkernel.request import Answer
from microkernel.settings import ServerSettings
from microkernel.stats import Execution
from microkernel.testing import VirtualTimeLoop
from microkernel.workers.contract import Done, Hosted, Lost, Result, WorkerInstance
from microkernel.workers.flights import Flights, Receiver
from microkernel.workers.process import ProcessWorker
from microkernel.workers.readiness import Readiness
from microkernel.workers.spawning import ForkServers
from microkernel.workers.thread import ThreadWorker

sys.path.append(str(Path(__file__).with_name("support")))  # modules that tests here share

from scheduling_machines import RunLong, run_for, seconds_each  # found through the path set above

ODD = Path(__file__).with_name("odd")
_SECONDS = pytest.StashKey[float]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "virtual_time: run on a loop whose clock jumps")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.get_closest_marker("virtual_time"):
        return {"virtual": VirtualTimeLoop}
    return {"real": asyncio.new_event_loop}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Count the machines that run for long, before any test is deselected, and allow for that."""
    long = [item for item in items if "run_long" in getattr(item, "fixturenames", ())]
    if long:
        config.stash[_SECONDS] = seconds = seconds_each(len(long))
        for item in long:
            item.add_marker(pytest.mark.timeout(2 * seconds + 120))


@pytest.fixture
def run_long(pytestconfig: pytest.Config) -> RunLong:
    """`run_long(Machine)`: run it for its part of the time that all tests with this have together;
    see `scheduling_machines`."""
    return partial(run_for, pytestconfig.stash[_SECONDS])


@pytest.fixture
def log_as_before() -> Iterator[None]:
    """What a test does to the log is undone."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def real_log(log_as_before: None) -> None:
    """The log as the server sets it up, with informational lines of libraries too."""
    configure(ServerSettings(), io.StringIO())
    logging.getLogger().setLevel(logging.INFO)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`call("run", "--id=x")`: the exit code of the command `microkernel`."""

    def make(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["microkernel", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert isinstance(caught.value.code, int)
        return caught.value.code

    return make


@pytest.fixture
def odd_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets this process and the workers import `odd_backend`."""
    monkeypatch.syspath_prepend(str(ODD))
    monkeypatch.setenv("PYTHONPATH", str(ODD))


@pytest.fixture
def new_children() -> Callable[[], list[psutil.Process]]:
    """`new_children()`: the child processes that were started since the test began."""
    before = set(psutil.Process().children())
    return lambda: [child for child in psutil.Process().children() if child not in before]


@pytest.fixture
def open_files() -> Callable[[], list[str]]:
    """`open_files()`: what this process has open, by kind, in no order that matters."""
    gc.collect()  # what earlier tests left in cycles must not end while this one counts

    def kinds() -> list[str]:
        found = []
        for entry in Path("/proc/self/fd").iterdir():
            try:
                found.append(str(entry.readlink()).partition(":")[0])
            except FileNotFoundError:  # the one that lists
                continue
        return sorted(found)

    return kinds


@pytest.fixture
def without_collector() -> Iterator[None]:
    """What is in a cycle stays."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def odd_config() -> Callable[..., ModelConfig]:
    """`odd_config(FAIL="load")`: a batching model of the odd backend, X to Y, with parameters."""

    def make(
        max_batch_size: int = 8, dynamic: DynamicBatching | None = None, **parameters: str
    ) -> ModelConfig:
        return ModelConfig(
            name="odd",
            backend="odd",
            max_batch_size=max_batch_size,
            input=(ModelInput(name="X", data_type="TYPE_INT32", dims=(-1,)),),
            output=(ModelOutput(name="Y", data_type="TYPE_INT32", dims=(-1,)),),
            dynamic_batching=dynamic,
            parameters={key: ModelParameter(value) for key, value in parameters.items()},
        )

    return make


@pytest.fixture
def ask() -> Callable[..., InferRequest]:
    """`ask(1, 2, 3)`: a request of one row, or of the rows given as lists."""

    def make(*numbers: int | Sequence[int], request_id: str = "") -> InferRequest:
        rows = np.atleast_2d(np.array(numbers, np.int32))
        return InferRequest("odd", (Tensor.from_numpy("X", rows),), version=1, id=request_id)

    return make


@pytest.fixture
def run_batch() -> Callable[..., Awaitable[Result]]:
    """`await run_batch(instance, request, ...)`: the result of one batch, within 30 seconds."""

    async def run(instance: WorkerInstance, *requests: InferRequest) -> Result:
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        sizes = [request.inputs[0].shape[0] for request in requests]
        instance.execute(requests, sizes, done.set_result)
        async with asyncio.timeout(30):
            return await done

    return run


@pytest.fixture
def hosted(tmp_path: Path) -> Hosted:
    """A version of a model of the odd backend whose files lie in `tmp_path`."""
    return Hosted(BackendType("odd", "odd_backend:OddBackend"), None, "odd", 1, tmp_path)


@pytest.fixture
async def forks(odd_path: None) -> AsyncIterator[ForkServers]:
    made = ForkServers()
    yield made
    await made.close()


@pytest.fixture
def spawn(forks: ForkServers, hosted: Hosted) -> Callable[..., Awaitable[ProcessWorker]]:
    """`await spawn()`: a worker process that hosts nothing yet."""

    async def launch(**options: Any) -> ProcessWorker:
        return await ProcessWorker.spawn(hosted, forks, **options)

    return launch


@pytest.fixture(params=["process", "thread"])
def launch(
    request: pytest.FixtureRequest, odd_path: None, hosted: Hosted
) -> Callable[[], Awaitable[ProcessWorker | ThreadWorker]]:
    """`await launch()`: a worker of either kind."""
    if request.param == "thread":

        async def thread() -> ProcessWorker | ThreadWorker:
            return ThreadWorker(hosted)

        return thread
    spawned: Callable[[], Awaitable[ProcessWorker]] = request.getfixturevalue("spawn")
    return spawned


def places(count: int = 1) -> list[Placement]:
    """Placements of that many instances, `odd_0` and on."""
    return [Placement(f"odd_{number}", "KIND_CPU") for number in range(count)]


@pytest.fixture
def placements() -> Callable[..., list[Placement]]:
    """`placements(2)`: that many instances, `odd_0` and on."""
    return places


class FakeInstance:
    """Answers each request with its own inputs under the outputs' names, after some seconds of the
    loop's time. `batches` says when each batch came and of which request ids it was, `told` what
    the model is to be told of requests, by their numbers, which begin with 100."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self.readiness: Readiness | None = None
        self.batches: list[tuple[float, list[str]]] = []
        self.answer: Callable[[InferRequest], Answer | MicrokernelError] = _echo
        self._seconds = seconds
        self._running: tuple[Done, int] | None = None
        self._next = 100
        self.flights = Flights()
        self.told: list[tuple[str, int]] = []

    def execute(self, requests: Sequence[InferRequest], sizes: Sequence[int], done: Done) -> int:
        loop = asyncio.get_running_loop()
        assert self._running is None, "busy"
        self._running = (done, len(requests))
        self.batches.append((loop.time(), [request.id for request in requests]))
        answers = [self.answer(request) for request in requests]
        loop.call_later(self._seconds, self._finish, answers)
        return self._numbered(requests)

    def stream(
        self, requests: Sequence[InferRequest], sizes: Sequence[int], receiver: Receiver
    ) -> int:
        """A batch of a decoupled model, of which the test says what comes with `flights`."""
        loop = asyncio.get_running_loop()
        self.batches.append((loop.time(), [request.id for request in requests]))
        first = self._numbered(requests)
        self.flights.begin(first, len(requests), receiver)
        return first

    def _numbered(self, requests: Sequence[InferRequest]) -> int:
        first, self._next = self._next, self._next + len(requests)
        return first

    def cancel(self, number: int) -> None:
        self.told.append(("cancel", number))

    def pause(self, number: int) -> None:
        self.told.append(("pause", number))

    def resume(self, number: int) -> None:
        self.told.append(("resume", number))

    def fail(self, error: MicrokernelError) -> None:
        """Answer what runs with an error."""
        self.flights.fail(error)
        if self._running is not None:
            self._finish([error] * self._running[1])

    def _finish(self, answers: Sequence[Answer | MicrokernelError]) -> None:
        if self._running is None:
            return
        (done, _), self._running = self._running, None
        now = time.monotonic_ns()
        done(Result(Execution(now, now, now, now), answers))


def _echo(request: InferRequest) -> Answer:
    return Answer(tuple(replace(t, name="Y") for t in request.inputs), {})


class FakeWorker:
    """A worker in memory. `die` ends it as a crash would."""

    def __init__(self, seconds: float = 10.0, failure: MicrokernelError | None = None) -> None:
        self.instances: list[FakeInstance] = []
        self.stopped = False
        self._seconds = seconds
        self._failure = failure
        self._lost: Lost = lambda _: None

    async def complete(self, config: ModelConfig) -> ModelConfig:
        return config

    async def start(
        self, config: ModelConfig, placements: Sequence[Placement]
    ) -> Sequence[FakeInstance]:
        if self._failure is not None:
            raise self._failure
        self.instances = [FakeInstance(p.name, self._seconds) for p in placements]
        return self.instances

    def watch(self, lost: Lost) -> None:
        self._lost = lost

    def kill(self, reason: str) -> None:
        self.die(Unavailable(reason))

    def die(self, error: MicrokernelError) -> None:
        self._lost(error)
        for instance in self.instances:
            instance.fail(error)

    async def released(self) -> None:
        pass

    async def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def fake_worker() -> type[FakeWorker]:
    """`fake_worker(seconds=10.0, failure=None)`: a worker in memory, see `FakeWorker`."""
    return FakeWorker


@pytest.fixture
def serve(
    odd_config: Callable[..., ModelConfig], fake_worker: type[FakeWorker]
) -> Callable[..., Awaitable[tuple[ModelVersion, Any]]]:
    """`model, worker = await serve(dynamic, instances=1, seconds=10, ...)`: a version in memory."""

    async def make(
        dynamic: DynamicBatching | None,
        instances: int = 1,
        seconds: float = 10,
        *,
        largest: int = 4,
        decoupled: bool = False,
        **parameters: str,
    ) -> tuple[ModelVersion, Any]:
        worker = fake_worker(seconds)
        own = replace(
            odd_config(max_batch_size=largest, dynamic=dynamic),
            model_transaction_policy=TransactionPolicy(decoupled=decoupled),
            parameters={name: ModelParameter(text) for name, text in parameters.items()},
        )

        async def launch() -> Any:
            raise Unavailable("no process")

        def crew(events: CrewEvents) -> Crew:
            places = [Placement(f"odd_{i}", "KIND_CPU") for i in range(instances)]
            return Crew(launch, own, [places], events)

        model = ModelVersion(own, 3, crew)
        await model.start(worker)
        return model, worker

    return make
