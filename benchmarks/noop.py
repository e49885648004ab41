"""What does a backend cost that does nothing? One that answers with the tensors it is given."""

from collections.abc import Sequence
from pathlib import Path

from microkernel import (
    Backend,
    BackendType,
    Batch,
    InferResponse,
    Instance,
    Model,
    ModelConfig,
    Outcome,
    Placement,
    Tensor,
    WorkerKind,
)


def noop_config(max_batch_size: int) -> str:
    """The config.pbtxt of a model with one input and one output of two dimensions. With a
    `max_batch_size` the first is the batch, and the dynamic batcher is on."""
    dims = "[ -1 ]" if max_batch_size else "[ -1, -1 ]"
    lines = [
        'backend: "noop"',
        f"max_batch_size: {max_batch_size}",
        f'input {{ name: "x" data_type: TYPE_FP32 dims: {dims} }}',
        f'output {{ name: "y" data_type: TYPE_FP32 dims: {dims} }}',
        "instance_group { kind: KIND_CPU count: 1 }",
        *(["dynamic_batching { }"] if max_batch_size else []),
    ]
    return "\n".join(lines) + "\n"


def noop(worker: WorkerKind) -> BackendType:
    """The backend, hosted in that kind of worker."""
    return BackendType("noop", factory="benchmarks.noop:NoopBackend", worker=worker)


class NoopInstance(Instance):
    """Answers each request with its input."""

    def execute(self, batch: Batch) -> Sequence[Outcome]:
        """One output per request, a view on its input."""
        return [
            InferResponse(
                request.model_name,
                request.version,
                request.id,
                tuple(Tensor("y", t.datatype, t.shape, t.data) for t in request.inputs),
            )
            for request in batch.requests
        ]


class NoopModel(Model):
    """Has nothing to load."""

    def instance(self, placement: Placement) -> Instance:
        """A new instance."""
        return NoopInstance()


class NoopBackend(Backend):
    """Loads nothing."""

    def load(self, config: ModelConfig, files: Path) -> Model:
        """A model without files."""
        return NoopModel()
