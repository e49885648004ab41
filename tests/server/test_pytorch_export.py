"""Files of `microkernel export` in a server, with nothing beside them: names, types, shapes, labels
and batching come from the file."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_harness import COMMAND, Running

torch: Any = pytest.importorskip("torch", reason="the extra 'torchscript' is missing")

pytestmark = pytest.mark.slow  # the command imports torch and tries the module, twice
http: Any = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")
grpc: Any = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is missing")

NET = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 3, bias=False)

    def forward(self, x):
        return self.head(x), x.argmax(1, keepdim=True)
"""
WEIGHTS = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
FILES = {"script": "model.pt", "program": "model.pt2"}
MODELS = pytest.mark.parametrize("model", FILES)
ROWS = np.array([[3, 0, 0, 0], [0, 5, 0, 0], [0, 0, 2, 2]], np.float32)


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    """A server of the same module in both formats, exported by the command; of the model `written`,
    which has labels of its own in the configuration that `microkernel config` printed; and of the
    model `damaged`, whose description is."""
    folder = tmp_path_factory.mktemp("export")
    models = folder / "models"
    (folder / "net.py").write_text(NET)
    torch.save({"head.weight": torch.tensor(WEIGHTS)}, folder / "net.pth")
    (folder / "classes.txt").write_text("cat\ndog\nowl\n")
    for model, file in FILES.items():
        arguments = ["--weights=net.pth", "--input=x:fp32:-1,4", "--max-batch-size=8"]
        arguments += ["--output-name=scores", "--output-name=best", "--label=scores=classes.txt"]
        run(folder, "export", "net.py:Net", f"--output=models/{model}/1/{file}", *arguments)
    content = (models / "script" / "1" / "model.pt").read_bytes()
    damaged = content.replace(b'"microkernel":1', b'"microkernel":2')
    for model, its in (("written", content), ("damaged", damaged)):
        (models / model / "1").mkdir(parents=True)
        (models / model / "1" / "model.pt").write_bytes(its)
    text = run(folder, "config", "models/written")
    own = text.replace('name: "scores"', 'name: "scores" label_filename: "own.txt"')
    (models / "written" / "config.pbtxt").write_text(own)
    (models / "written" / "own.txt").write_text("one\ntwo\nthree\n")
    return start_server(models, "--exit-on-error=false")


def run(folder: Path, *arguments: str) -> str:
    """What a command prints."""
    command = [str(COMMAND), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def clients(server: Running) -> list[tuple[Any, Any]]:
    """Both protocols: a client and its module."""
    return [
        (http.InferenceServerClient(server.http_url), http),
        (grpc.InferenceServerClient(server.grpc_url), grpc),
    ]


@MODELS
def test_the_file_tells_everything(server: Running, model: str) -> None:
    told = server.get(f"/v2/models/{model}").json
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert told["outputs"] == [
        {"name": "scores", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "best", "datatype": "INT64", "shape": [-1, 1]},
    ]
    config = server.get(f"/v2/models/{model}/config").json
    assert config["max_batch_size"] == 8
    assert config["dynamic_batching"]["preferred_batch_size"] == [8]


@MODELS
def test_batches_of_all_sizes_are_answered(clients: list[tuple[Any, Any]], model: str) -> None:
    for client, kind in clients:
        for rows in (1, 3, 8):
            values = np.resize(ROWS, (rows, 4))
            tensor = kind.InferInput("x", [rows, 4], "FP32")
            tensor.set_data_from_numpy(values)
            answer = client.infer(model, [tensor])
            np.testing.assert_allclose(answer.as_numpy("scores"), values @ np.array(WEIGHTS).T)
            assert answer.as_numpy("best").tolist() == values.argmax(1, keepdims=True).tolist()


@MODELS
def test_classes_have_the_labels_of_the_file(clients: list[tuple[Any, Any]], model: str) -> None:
    for client, kind in clients:
        tensor = kind.InferInput("x", [3, 4], "FP32")
        tensor.set_data_from_numpy(ROWS)
        wanted = kind.InferRequestedOutput("scores", class_count=1)
        found = client.infer(model, [tensor], outputs=[wanted]).as_numpy("scores")
        assert found.reshape(-1).tolist() == [
            b"3.000000:0:cat",
            b"5.000000:1:dog",
            b"4.000000:2:owl",
        ]


def test_the_printed_configuration_serves_the_same(server: Running) -> None:
    found, printed = (
        server.get(f"/v2/models/{model}/config").json for model in ("script", "written")
    )
    assert printed["output"][0].pop("label_filename") == "own.txt"
    assert found["output"][0].pop("label_filename") == ""
    for config in (found, printed):
        del config["name"], config["instance_group"][0]["name"]
    assert printed == found


def test_label_files_beat_the_labels_in_the_file(clients: list[tuple[Any, Any]]) -> None:
    for client, kind in clients:
        tensor = kind.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(ROWS[:1])
        wanted = kind.InferRequestedOutput("scores", class_count=1)
        found = client.infer("written", [tensor], outputs=[wanted]).as_numpy("scores")
        assert found.reshape(-1).tolist() == [b"3.000000:0:one"]


def test_a_damaged_description_fails_the_load_and_no_other(server: Running) -> None:
    state, reason = server.index()["damaged"]
    assert state == "UNAVAILABLE"
    assert "model.pt': extra file 'microkernel.json' cannot be read: Bad CRC-32" in reason
    assert {server.index()[model][0] for model in (*FILES, "written")} == {"READY"}
