"""What a backend is: blocking code that loads a model, makes instances of it and executes batches.

The kernel hosts backends in workers; the same code runs in a child process and in a thread of the
server. A backend is described by a `BackendType`, which names its factory without importing it: the
server never imports a framework.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from microkernel.batch import Batch
from microkernel.binding import FREE, Binding
from microkernel.config.model import ModelConfig, SecondaryDevice
from microkernel.request import Outcome

WorkerKind: TypeAlias = Literal["process", "instance", "thread"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one instance runs: its name, its kind (`KIND_CPU`, `KIND_GPU`, `KIND_MODEL`), its
    device and its share of the host's processors as a number of threads.

    `group` is the place of its instance group in the configuration. One that is `passive` is made
    and never asked anything. The `secondary_devices` are those of its group. Its thread is bound as
    `binding` says before the instance is made, in a process before the model is loaded.
    """

    name: str
    kind: str
    device_id: int = 0
    threads: int = 1
    group: int = 0
    passive: bool = False
    secondary_devices: tuple[SecondaryDevice, ...] = ()
    binding: Binding = FREE


class Sender(Protocol):
    """Sends the responses of one request of a decoupled model; from any thread, also after
    `Instance.stream` has returned."""

    def send(self, response: Outcome | None, *, final: bool) -> None:
        """Send a response or an error, or nothing but the news that there will be no more
        (`None`, which must be `final`). `RESCHEDULE`, which must be `final` as well, ends this run
        of the request, which comes again in a later batch.

        Blocks while the client reads too slowly, unless it is final; the data may be reused when
        this returns. What is sent while `cancelled` is dropped, and a response of more than 256 MiB
        becomes an error. Raises InvalidArgument after the final one."""
        ...

    def cancelled(self) -> bool:
        """Whether nobody waits for the responses any more. The final one must be sent even so."""
        ...


class Instance(ABC):
    """One instance of a model. It is made, used and closed on one thread, and executes one batch at
    a time."""

    @abstractmethod
    def execute(self, batch: Batch) -> Sequence[Outcome]:
        """Run the batch and return one outcome per request, in order: a response, one of our
        errors, or, where the model's sequences are iterative, `RESCHEDULE` for a request that is to
        come again in a later batch.

        An exception fails the whole batch: one of our errors as it is, any other as Internal with
        its text. WorkerFailed ends the worker, which is started again: no instance in it gets
        another batch or is closed, and what the others are running fails as well. In a process that
        is certain; of a worker in the server's process the memory is left behind. Output arrays are
        copied out before the next call, so they may be reused then.
        """

    def stream(self, batch: Batch, senders: Sequence[Sender]) -> None:
        """Run a batch of a decoupled model: answer each request through the sender at its place,
        any number of times, and close it with a `final`, before or after this returns. The instance
        gets its next batch when it returns. Tensors of the requests stay valid until their final
        response is sent.

        An exception fails those requests whose final response has not been sent; WorkerFailed ends
        the worker as in `execute`, and with it every open request of it. A backend that
        does not override this answers each request once, with what `execute` gives for it.
        """
        for sender, outcome in zip(senders, self.execute(batch), strict=True):
            sender.send(outcome, final=True)

    def readiness(self) -> Callable[[], bool] | None:
        """What tells whether the instance is ready, None where it is as long as its worker lives,
        as most are. Asked for once, when the instance has been made. It is called for checks of the
        model's readiness, on a thread of its own beside `execute`, once at a time; taking long and
        raising mean no. Requests come whatever it says."""
        return None

    def close(self) -> None:  # noqa: B027 - most instances have nothing to give back
        """The instance is not used any more."""


class Model(ABC):
    """A loaded model version."""

    @abstractmethod
    def instance(self, placement: Placement) -> Instance:
        """Make one instance; called on the thread that will use it. Raises to fail the load."""

    def unload(self) -> None:  # noqa: B027 - most models have nothing to give back
        """All instances are closed; give back what the model holds."""


class Backend(ABC):
    """Loads models. Made once per worker by the factory of its `BackendType`, with the plug-in's
    settings."""

    @abstractmethod
    def load(self, config: ModelConfig, files: Path) -> Model:
        """Load a version. `files` is its directory, `<repository>/<model>/<version>`. Raises to
        fail the load.

        `config` is complete and valid; a backend raises InvalidArgument where the model contradicts
        it.
        """

    def complete(self, config: ModelConfig, files: Path) -> ModelConfig:
        """Fill in what the model's files can tell: max_batch_size, input, output, the scheduling
        choice if none was made, whether the model is decoupled, and the number of instances in an
        instance group, if none was written. Other changes are dropped.
        Called before `load`, in the same worker, unless the operator turned auto-completion off.
        Raises InvalidArgument where the model contradicts `config`."""
        return config


@dataclass(frozen=True, slots=True)
class BackendType:
    """How the kernel finds, recognises and hosts a backend.

    `factory` is `"module:callable"`, imported in the worker only and called with the plug-in's
    settings object, or with nothing where the plug-in declares none. A model with no `backend` in
    its configuration belongs to the first backend whose `platform` it names, that recognises its
    version directory, or one of whose `filenames` lies there. `recognise` gives the configuration
    with what the directory tells of a model of this backend, or None. `worker` is where its models
    run, or what `hosting` says for the directory of a version, unless the model's parameter
    `WORKER` says otherwise. `labels` gives the labels that the files of a version carry for their
    outputs, by the output's name, where the configuration names no `label_filename`. These three
    run in the server and must import nothing heavy; they raise to fail the load. `preload` names
    modules that a fork server imports once for all workers; importing them must start no
    computation. `environment` is set before that. `requires` names the modules that must be
    importable for the backend to be available, and `extra` the extra of the distribution that
    brings them. `cpu_instances` is the number of instances of a CPU group that gives no count.
    `gpu` says whether instances can be placed on GPUs. `ignored_settings` are keys of Triton's
    `--backend-config` that mean nothing here, each with the reason, which a warning gives.
    """

    name: str
    factory: str
    filenames: Sequence[str] = ()
    platform: str = ""
    recognise: Callable[[ModelConfig, Path], ModelConfig | None] | None = None
    worker: WorkerKind = "process"
    hosting: Callable[[ModelConfig, Path], WorkerKind] | None = None
    labels: Callable[[ModelConfig, Path], Mapping[str, Sequence[str]]] | None = None
    preload: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    requires: Sequence[str] = ()
    extra: str = ""
    cpu_instances: int = 1
    gpu: bool = False
    ignored_settings: Mapping[str, str] = field(default_factory=dict)
