"""One call for both protocols, on Triton's own client library."""

import argparse
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One request of several that the model must see in order: the id of their sequence, a number
    or a text, and whether this is the first or the last one."""

    sequence: int | str
    start: bool = False
    end: bool = False


class Client:
    """A connection to a server at `url`, `host:port`, over HTTP or over gRPC."""

    def __init__(self, url: str, grpc: bool) -> None:
        self._url = url
        self._protocol = importlib.import_module(f"tritonclient.{'grpc' if grpc else 'http'}")
        self._connection = self._protocol.InferenceServerClient(url)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()

    def require_ready(self) -> None:
        """Raises SystemExit where no server answers or it is not ready."""
        try:
            ready = self._connection.is_server_ready()
        except (OSError, InferenceServerException) as error:
            raise SystemExit(f"no server at {self._url} ({error}); start one: make serve") from None
        if not ready:
            raise SystemExit(f"the server at {self._url} is not ready")

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        step: Step | None = None,
    ) -> dict[str, Array]:
        """Run a model. Arrays of objects go out as BYTES. A model that remembers must be told which
        step of a sequence it is. Raises InferenceServerException with the server's message where it
        refuses."""
        asked = [self._protocol.InferRequestedOutput(name) for name in outputs]
        sent = [self._input(name, array) for name, array in inputs.items()]
        result = self._connection.infer(model, sent, outputs=asked, **_sequence(step))
        return {name: result.as_numpy(name) for name in outputs}

    def _input(self, name: str, array: Array) -> Any:
        tensor = self._protocol.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        return tensor


def _sequence(step: Step | None) -> dict[str, Any]:
    """What the client library calls it."""
    if step is None:
        return {}
    return {
        "sequence_id": step.sequence,
        "sequence_start": step.start,
        "sequence_end": step.end,
    }


def strings(elements: Sequence[str | bytes]) -> Array:
    """A BYTES input of shape [N, 1]; text becomes UTF-8."""
    array = np.empty((len(elements), 1), np.object_)
    array[:, 0] = [item.encode() if isinstance(item, str) else item for item in elements]
    return array


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options that say how to reach the server."""
    parser.add_argument("--grpc", action="store_true", help="use gRPC instead of HTTP")
    parser.add_argument("--url", help="host:port; default: 127.0.0.1 and the protocol's own port")


def connect(options: argparse.Namespace) -> Client:
    """A client for a server that is ready, by the options. Raises SystemExit where none answers."""
    client = Client(options.url or f"127.0.0.1:{8001 if options.grpc else 8000}", options.grpc)
    client.require_ready()
    return client
