"""Loading ONNX models and running them on the CPU."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from microkernel import (
    Backend,
    Batch,
    Instance,
    Internal,
    InvalidArgument,
    MicrokernelError,
    Model,
    ModelConfig,
    Outcome,
    Placement,
    Tensor,
    Unsupported,
    element_count,
    model_outputs,
)
from microkernel_onnx import Settings
from microkernel_onnx.completion import complete, is_complete
from microkernel_onnx.graph import graph_of
from microkernel_onnx.options import Options, parse_options
from microkernel_onnx.session import UNOPTIMISED, failure, model_file, open_session, run_options
from microkernel_onnx.validation import validate


class OnnxBackend(Backend):
    """Serves ONNX files on the CPU."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or Settings()

    def load(self, config: ModelConfig, files: Path) -> Model:
        """Open the file and check the configuration against its graph."""
        return OnnxModel(config, model_file(config, files), parse_options(config))

    def complete(self, config: ModelConfig, files: Path) -> ModelConfig:
        """Fill in `max_batch_size`, inputs, outputs and dynamic batching from the graph, unless
        inputs and outputs are both listed."""
        if is_complete(config):
            return config
        options = replace(parse_options(config), graph_level=UNOPTIMISED)
        graph = graph_of(open_session(model_file(config, files), options))
        return complete(config, graph, self._settings.default_max_batch_size)


class OnnxModel(Model):
    """A version of a model. Its instances share one session: runs of a session may overlap, and
    weights and threads exist once."""

    def __init__(self, config: ModelConfig, path: Path, options: Options) -> None:
        self._config, self._options = config, options
        self._session = open_session(path, options)
        self._graph = graph_of(self._session)
        validate(config, self._graph)

    def instance(self, placement: Placement) -> Instance:
        """An instance on the CPU."""
        if placement.kind == "KIND_GPU":
            raise Unsupported(
                f"model '{self._config.name}': instance '{placement.name}' is of KIND_GPU, which "
                "the onnxruntime backend does not serve; use KIND_CPU"
            )
        ports = {**self._graph.inputs, **self._graph.initializers}
        scalars = frozenset(name for name, port in ports.items() if not port.shape)
        return OnnxInstance(self._session, self._config, scalars, run_options(self._options))

    def unload(self) -> None:
        """Give the session back."""
        self._session = None


class OnnxInstance(Instance):
    """One user of the shared session. `scalars` are the inputs that have no dimension in the graph,
    whatever the configuration says."""

    def __init__(
        self,
        session: Any,
        config: ModelConfig,
        scalars: frozenset[str],
        run_options: Any,
    ) -> None:
        self._session, self._scalars, self._run_options = session, scalars, run_options
        self._dims = {entry.name: entry.dims for entry in model_outputs(config)}
        self._outputs = list(self._dims)

    def execute(self, batch: Batch) -> Sequence[Outcome]:
        """Run the session once for the batch. A request with malformed strings fails alone."""
        failed: dict[int, MicrokernelError] = {}
        feed = {name: self._array(tensor, batch, failed) for name, tensor in batch.stacked.items()}
        if len(failed) == len(batch):
            return [failed[i] for i in range(len(batch))]
        try:
            results = self._session.run(self._outputs, feed, self._run_options)
        except UnicodeDecodeError:
            raise Internal("the model gave a string that is not valid UTF-8") from None
        except Exception as error:
            raise failure(error) from error
        responses = batch.split(list(map(self._tensor, self._outputs, results)))
        return [failed.get(i, response) for i, response in enumerate(responses)]

    def close(self) -> None:
        """Let go of the session."""
        self._session = None

    def _array(self, tensor: Tensor, batch: Batch, failed: dict[int, MicrokernelError]) -> Any:
        if tensor.datatype.name == "BYTES":
            array = _strings(tensor, batch, failed)
        else:
            array = tensor.as_numpy()
        return array.reshape(()) if tensor.name in self._scalars else array

    def _tensor(self, name: str, array: Any) -> Tensor:
        """An output; a scalar goes out in the configuration's dims, which are all 1."""
        shaped = array if array.ndim else array.reshape(self._dims[name])
        return Tensor.from_numpy(name, shaped)


def _strings(tensor: Tensor, batch: Batch, failed: dict[int, MicrokernelError]) -> Any:
    """The batch's strings as onnxruntime takes them: `str` objects, since it would pass the Python
    notation of `bytes`. A request whose strings are malformed goes into `failed` by its index, and
    empty strings stand in its place."""
    elements: list[str] = []
    for index, request in enumerate(batch.requests):
        own = request.input(tensor.name)
        if own is None:
            continue
        try:
            elements += _decoded(own)
        except InvalidArgument as error:
            failed[index] = error
            elements += [""] * element_count(own.shape)
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    return array.reshape(tensor.shape)


def _decoded(tensor: Tensor) -> list[str]:
    try:
        return [element.decode() for element in tensor.as_numpy().reshape(-1)]
    except UnicodeDecodeError:
        raise InvalidArgument(
            f"input '{tensor.name}' holds bytes that are not valid UTF-8, which the onnxruntime "
            "backend cannot pass to the model"
        ) from None
