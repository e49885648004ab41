"""`.pt2` files in a server: exported programs, and packages that AOTInductor compiled where a
compiler is found. Both are asked the same things, by the official clients."""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_harness import Running, in_threads, launch

pytest.importorskip("torch", reason="needs the extra 'torchscript'")
pytest.importorskip("tritonclient.http", reason="needs tritonclient[http,grpc]")
pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[http,grpc]")

import tritonclient.grpc
import tritonclient.http
from packaged_models import WEIGHT, save_memory
from tritonclient.utils import InferenceServerException

Array = np.ndarray[Any, Any]

PROTOCOLS = pytest.mark.parametrize("protocol", ["http", "grpc"])

BATCHING = """
platform: "torch_aoti"
max_batch_size: 8
input { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 4 ] }
input { name: "ARGS[1]" data_type: TYPE_FP32 dims: [ 1 ] }
input { name: "KWARGS[start]" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "RESULT[1]" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "RESULT[0]" data_type: TYPE_FP32 dims: [ 1 ] }
dynamic_batching { max_queue_delay_microseconds: 2000 }
"""

SEQUENCE = """
platform: "torch_aoti"
max_batch_size: 4
input { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 1 ] }
sequence_batching {
  control_input {
    name: "START__2"
    control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] }
  }
  state {
    input_name: "ARGS[1]" output_name: "RESULT[0]" data_type: TYPE_FP32 dims: [ 1 ]
    initial_state { name: "zeros" data_type: TYPE_FP32 dims: [ 1 ] zero_data: true }
  }
}
"""

CORRELATED = SEQUENCE.replace(
    "kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ]",
    "kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_STRING",
)

WRONG = {
    "correlated": (CORRELATED, "Unsupported datatype TYPE_STRING for input"),
    "large": (BATCHING.replace("max_batch_size: 8", "max_batch_size: 16"), "max_batch_size is 16"),
}


def _compiled(kind: str) -> bool:
    return kind == "package"


def _write(repository: Path, name: str, file: Path, config: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    shutil.copy(file, repository / name / "1" / "model.pt2")
    if config:
        (repository / name / "config.pbtxt").write_text(config)


@pytest.fixture(
    scope="module",
    params=[
        "program",
        pytest.param(
            "package",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler, g++"),
            ],
        ),
    ],
)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A server with the model in every configuration of this module."""
    folder = tmp_path_factory.mktemp(request.param)
    file = save_memory(folder / "memory.pt2", compiled=_compiled(request.param))
    models = {"plain": "", "batching": BATCHING}
    models |= {"sequence": SEQUENCE, **{name: config for name, (config, _) in WRONG.items()}}
    for name, config in models.items():
        _write(folder / "models", name, file, config)
    running = launch(folder / "models", "--exit-on-error=false", "--strict-readiness=false")
    yield running.wait_started()
    running.stop()


def ask(server: Running, protocol: str, model: str, inputs: dict[str, Array], **sent: Any) -> Any:
    """The outputs of one request by name."""
    module = tritonclient.grpc if protocol == "grpc" else tritonclient.http
    url = server.grpc_url if protocol == "grpc" else server.http_url
    tensors = []
    for name, array in inputs.items():
        kind = {"f": "FP32", "i": "INT64"}[array.dtype.kind]
        tensors.append(module.InferInput(name, array.shape, kind))
        tensors[-1].set_data_from_numpy(array)
    with module.InferenceServerClient(url) as client:
        return client.infer(model, tensors, **sent)


def _rows(count: int, value: float = 1.0) -> Array:
    return np.full((count, 4), value, np.float32)


def _column(*values: float) -> Array:
    return np.array(values, np.float32)[:, None]


@PROTOCOLS
def test_it_serves_without_a_configuration(server: Running, protocol: str) -> None:
    config = server.get("/v2/models/plain/config").json
    names = [entry["name"] for entry in config["input"]]
    assert names[-1] == "start"
    values = (_rows(2, 2.0), _column(5, 7), _column(0, 1))
    found = ask(server, protocol, "plain", dict(zip(names, values, strict=True)))
    assert found.as_numpy("OUTPUT__0").tolist() == [[5 + 8 * WEIGHT], [8 * WEIGHT]]
    assert found.as_numpy("OUTPUT__1").tolist() == _rows(2, 2.0).tolist()


@PROTOCOLS
def test_requests_meet_in_batches_and_keep_their_rows(server: Running, protocol: str) -> None:
    def call(number: int) -> Any:
        inputs = {
            "INPUT__0": _rows(1 + number % 3, number),
            "ARGS[1]": np.ones((1 + number % 3, 1), np.float32),
            "KWARGS[start]": np.zeros((1 + number % 3, 1), np.float32),
        }
        return ask(server, protocol, "batching", inputs)

    for number, found in enumerate(in_threads([partial(call, n) for n in range(12)])):
        rows = 1 + number % 3
        assert found.as_numpy("RESULT[0]").tolist() == [[1 + 4 * WEIGHT * number]] * rows
        assert found.as_numpy("RESULT[1]").tolist() == [[number] * 4] * rows


@PROTOCOLS
def test_a_sequence_keeps_its_state(server: Running, protocol: str) -> None:
    def run(sequence: int) -> list[float]:
        totals = []
        for step in range(3):
            found = ask(
                server,
                protocol,
                "sequence",
                {"INPUT__0": _rows(1, sequence)},
                sequence_id=sequence + (10 if protocol == "grpc" else 0),
                sequence_start=step == 0,
                sequence_end=step == 2,
            )
            totals.append(found.as_numpy("OUTPUT__0").item())
        return totals

    for sequence, totals in enumerate(in_threads([partial(run, s) for s in (1, 2, 3)]), 1):
        assert totals == [4 * WEIGHT * sequence * step for step in (1, 2, 3)]


@pytest.mark.parametrize(("model", "text"), [(m, text) for m, (_, text) in WRONG.items()])
def test_a_configuration_that_does_not_fit_is_told(server: Running, model: str, text: str) -> None:
    state, reason = server.index()[model]
    assert state == "UNAVAILABLE"
    assert text in reason


MISFITS = {
    "a batch": ((9, 9), r"has shape \[9, 4\], the model takes \[[01] to 8, 4\]"),
    "one of them": ((2, 3), r"has shape \[3, 1\], where another input has 2 in place of 3"),
}


@PROTOCOLS
@pytest.mark.parametrize(("rows", "text"), MISFITS.values(), ids=list(MISFITS))
def test_a_call_that_does_not_fit_fails_and_others_go_on(
    server: Running, protocol: str, rows: tuple[int, int], text: str
) -> None:
    """`plain` promises any number of rows, and any for each input by itself."""
    names = [e["name"] for e in server.get("/v2/models/plain/config").json["input"]]
    wrong = (_rows(rows[0]), np.zeros((rows[1], 1), np.float32), np.zeros((rows[0], 1), np.float32))
    with pytest.raises(InferenceServerException, match=text):
        ask(server, protocol, "plain", dict(zip(names, wrong, strict=True)))
    right = (_rows(2), _column(0, 0), _column(0, 0))
    found = ask(server, protocol, "plain", dict(zip(names, right, strict=True)))
    assert found.as_numpy("OUTPUT__0").tolist() == [[4 * WEIGHT]] * 2
