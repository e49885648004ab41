"""A TorchScript model whose signature carries the state of a sequence, strings among it."""

import importlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_harness import Running

torch: Any = pytest.importorskip("torch", reason="the extra 'torchscript' is missing")
pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")
pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is missing")

SENTENCE = """
backend: "pytorch"
input { name: "WORD__0" data_type: TYPE_STRING dims: [ 1 ] }
output [
  { name: "COUNT__0" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "SENTENCE__1" data_type: TYPE_STRING dims: [ 1 ] }
]
instance_group { kind: KIND_CPU count: 2 }
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  control_input [
    { name: "START__1" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } },
    { name: "WHO__2" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
  ]
  state [
    { input_name: "BEFORE__3" output_name: "SENTENCE__1" data_type: TYPE_STRING dims: [ 1 ] },
    { input_name: "COUNTED__4" output_name: "COUNTED__2" data_type: TYPE_INT32 dims: [ 1 ] }
  ]
}
"""


class Sentence(torch.nn.Module):  # type: ignore[misc]
    """Every word of a sequence so far, and how many there were."""

    def forward(
        self,
        word: list[str],
        start: torch.Tensor,
        who: torch.Tensor,
        before: list[str],
        counted: torch.Tensor,
    ) -> tuple[torch.Tensor, list[str], torch.Tensor]:
        count = counted + 1
        said = f"{int(who.to(torch.int64)[0])}:" if bool(start[0] == 1) else before[0]
        return count, [said + " " + word[0]], count


def write(repository: Path) -> None:
    folder = repository / "sentence"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(SENTENCE)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        torch.jit.script(Sentence().eval()).save(folder / "1" / "model.pt")


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    repository = tmp_path_factory.mktemp("states") / "models"
    write(repository)
    return start_server(repository)


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, server: Running) -> Iterator[Any]:
    kind: Any = importlib.import_module(f"tritonclient.{request.param}")
    url = server.http_url if request.param == "http" else server.grpc_url
    with kind.InferenceServerClient(url) as made:
        made.kind = kind
        yield made


def say(client: Any, word: str, sequence: int, **flags: bool) -> tuple[int, str]:
    tensor = client.kind.InferInput("WORD__0", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([word.encode()], np.object_))
    result = client.infer("sentence", [tensor], sequence_id=sequence, **flags)
    (count,), (sentence,) = result.as_numpy("COUNT__0"), result.as_numpy("SENTENCE__1")
    return int(count), sentence.decode()


def test_strings_are_kept_for_the_next_request_of_a_sequence(client: Any) -> None:
    large = 1 << 40
    assert say(client, "the", 7, sequence_start=True) == (1, "7: the")
    assert say(client, "ein", large, sequence_start=True) == (1, f"{large}: ein")
    assert say(client, "cat", 7) == (2, "7: the cat")
    assert say(client, "Bär", large, sequence_end=True) == (2, f"{large}: ein Bär")
    assert say(client, "sat", 7, sequence_end=True) == (3, "7: the cat sat")
    assert say(client, "a", 7, sequence_start=True, sequence_end=True) == (1, "7: a")
