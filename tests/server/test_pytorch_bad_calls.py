"""TorchScript models that fail, hang, chatter and want all memory there is: their callers hear what
happened, and the neighbours never notice."""

import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commanded_models import Client, hang_beside_a_neighbour
from inprocess_models import own_log
from server_harness import Running

from microkernel import Server

torch: Any = pytest.importorskip("torch", reason="the extra 'torchscript' is missing")
pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")
pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is missing")
shm: Any = pytest.importorskip("tritonclient.utils.shared_memory", reason="tritonclient is missing")

GOOD, RAISE, ASSERT, CHATTER, HANG, ALLOCATE, NOTHING, OTHER_TYPE, LONG = 1, 2, 3, 4, 5, 6, 7, 8, 9
"""What the model is asked to do; the rest of its life it adds one to its input, in place."""

TENSORS = """
input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] }
input { name: "code" data_type: TYPE_INT64 dims: [ 1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ -1 ] }
"""
FAILURE = "PyTorch execute failure: "


class Misbehaving(torch.nn.Module):  # type: ignore[misc]
    def forward(self, x: torch.Tensor, code: int) -> torch.Tensor | None:
        self.fail(x, code)
        self.take_long(x, code)
        if code == 6:
            return torch.zeros([1 << 50])
        if code == 7:
            return None
        if code == 8:
            return x.to(torch.int32)
        return x.add_(1)

    def fail(self, x: torch.Tensor, code: int) -> None:
        if code == 2:
            raise ValueError("no such luck")
        if code == 3:
            assert x.numel() > 100, "too few numbers"
        if code == 9:
            text = "endless "
            for _ in range(17):
                text = text + text
            raise ValueError(text)

    def take_long(self, x: torch.Tensor, code: int) -> None:
        if code == 4:
            for _ in range(20000):
                print("a line of fifty characters, so often that it adds")
        going = code == 5
        while going:
            going = bool((x == x).all())


def write(repository: Path, name: str, **parameters: str) -> None:
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    lines = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in parameters.items()
    )
    (folder / "config.pbtxt").write_text(f'backend: "pytorch"\n{TENSORS}{lines}')
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        torch.jit.script(Misbehaving()).save(folder / "1" / "model.pt")


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    repository = tmp_path_factory.mktemp("calls") / "models"
    write(repository, "bad")
    write(repository, "endless", EXECUTION_TIMEOUT_SECS="2")
    write(repository, "neighbour")
    write(repository, "inside", WORKER="thread")
    return start_server(repository, "--allow-client-shm=true")


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, server: Running) -> Iterator[Client]:
    made = Client(request.param, server)
    yield made
    made.calls.close()


@pytest.mark.parametrize(
    ("code", "first", "later"),
    [
        (RAISE, "builtins.ValueError: no such luck", 'raise ValueError("no such luck")'),
        (ASSERT, "RuntimeError: AssertionError: too few numbers", "Traceback of TorchScript"),
        (ALLOCATE, "can't allocate memory: you tried to allocate", "torch.zeros"),
        (NOTHING, "output must be of type Tensor, List[str] or Tuple containing", ""),
    ],
)
def test_what_went_wrong_comes_first_and_the_model_goes_on(
    client: Client, code: int, first: str, later: str
) -> None:
    text = client.error("bad", code)
    assert text.startswith(FAILURE)
    assert first in text.splitlines()[0]
    assert later in text
    assert client.command("bad", GOOD) == [2, 3]


def test_another_type_than_before_fails_its_own_call(client: Client) -> None:
    assert client.command("bad", GOOD) == [2, 3]
    assert client.error("bad", OTHER_TYPE) == (
        "configuration expects datatype TYPE_FP32 for output 'y', model provides TYPE_INT32"
    )
    assert client.command("bad", GOOD) == [2, 3]


def test_a_megabyte_of_an_error_arrives_shortened(client: Client) -> None:
    text = client.error("bad", LONG)
    assert text.startswith(f"{FAILURE}builtins.ValueError: endless endless")
    assert "characters left out]" in text
    assert len(text) < 8000


def test_a_megabyte_of_chatter_holds_nothing_up(client: Client) -> None:
    assert client.command("bad", CHATTER) == [2, 3]


def test_a_call_without_end_is_ended_and_the_neighbours_do_not_notice(
    server: Running, client: Client
) -> None:
    error = hang_beside_a_neighbour(server, client, HANG, GOOD)
    assert "the worker process of model 'endless'" in error
    assert "an execution took longer than 2 seconds" in error


def test_a_model_that_works_in_place_leaves_the_memory_of_clients_alone(
    server: Running, client: Client
) -> None:
    key = f"/bad_calls_{uuid.uuid4().hex}"
    region = shm.create_shared_memory_region("given", key, 8)
    values = np.array([1, 2], np.float32)
    try:
        shm.set_shared_memory_region(region, [values])
        client.calls.register_system_shared_memory("given", key, 8)
        x = client.kind.InferInput("x", [2], "FP32")
        x.set_shared_memory("given", 8)
        for _ in range(2):
            result = client.calls.infer("inside", [x, client.input("code", np.array([GOOD]))])
            assert result.as_numpy("y").tolist() == [2, 3]
        kept = shm.get_contents_as_numpy(region, np.float32, [2])
        assert kept.tolist() == [1, 2]
    finally:
        client.calls.unregister_system_shared_memory("given")
        shm.destroy_shared_memory_region(region)


def test_a_model_that_works_in_place_leaves_a_program_s_arrays_alone(tmp_path: Path) -> None:
    write(tmp_path / "models", "inside", WORKER="thread")
    with own_log(), Server(model_repository=tmp_path / "models") as server:
        x = np.array([1, 2], np.float32)
        (answer,) = server.model("inside").infer(inputs={"x": x, "code": np.array([GOOD])})
        assert np.from_dlpack(answer.outputs["y"]).tolist() == [2, 3]
        assert x.tolist() == [1, 2]
