"""Models of `x` and a code that says what they shall do wrong, as the official clients ask them."""

import importlib
import threading
from typing import Any

import numpy as np
import pytest
from server_harness import PATIENCE, Running

_TYPES = {"float32": "FP32", "int64": "INT64"}


class Client:
    """The official client of a protocol: one call of a model."""

    def __init__(self, protocol: str, server: Running) -> None:
        self.protocol = protocol
        self.kind: Any = importlib.import_module(f"tritonclient.{protocol}")
        url = server.http_url if protocol == "http" else server.grpc_url
        self.calls = self.kind.InferenceServerClient(url)

    def input(self, name: str, array: np.ndarray[Any, Any]) -> Any:
        """An input, sent along with the request."""
        made = self.kind.InferInput(name, list(array.shape), _TYPES[array.dtype.name])
        made.set_data_from_numpy(array)
        return made

    def ask(self, model: str, **arrays: np.ndarray[Any, Any]) -> Any:
        """The model's only output."""
        result = self.calls.infer(model, [self.input(*pair) for pair in arrays.items()])
        response, over_http = result.get_response(), self.protocol == "http"
        outputs = response["outputs"] if over_http else response.outputs
        [output] = [o["name"] if over_http else o.name for o in outputs]
        return result.as_numpy(output)

    def command(self, model: str, code: int) -> list[float]:
        """What the model makes of one and two."""
        x = np.array([1, 2], np.float32)
        found: list[float] = self.ask(model, x=x, code=np.array([code])).tolist()
        return found

    def error(self, model: str, code: int) -> str:
        """The message of the error with which a command must end."""
        with pytest.raises(self.kind.InferenceServerException) as caught:
            self.command(model, code)
        return str(caught.value.message())


def hang_beside_a_neighbour(server: Running, client: Client, hang: int, good: int) -> str:
    """Have the model `endless` hang until the server ends it: the error of that call. Meanwhile
    `neighbour` must answer, and afterwards `endless` again."""
    errors: list[str] = []
    since = len(server.log.lines)
    other = Client(client.protocol, server)
    hanging = threading.Thread(target=lambda: errors.append(other.error("endless", hang)))
    hanging.start()
    answers = 0
    while hanging.is_alive():
        assert client.command("neighbour", good) == [2, 3]
        answers += 1
    hanging.join(PATIENCE)
    other.calls.close()
    assert answers > 0
    server.log.wait("worker restarted", since=since)
    assert client.command("endless", good) == [2, 3]
    [error] = errors
    return error
