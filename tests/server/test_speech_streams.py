"""Many streams of speech at once: each gets the numbers that the package's own model gives it
alone, whichever windows of other streams share its batches."""

import importlib
import importlib.util
import random
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest
from server_harness import Running, in_threads

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = "speech_stream"
PACKAGES = ("silero_vad", "torch", "tritonclient")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

Array = np.ndarray[Any, Any]
PENDING = f'nv_inference_pending_request_count{{model="{MODEL}",version="1"}}'
NOT_STARTED = (
    f"inference request for sequence {{}} to model '{MODEL}' must specify the START flag on the "
    "first request of the sequence"
)


@dataclass(frozen=True)
class Stream:
    """An id, windows of shape [N, 512], and the N numbers that the package's own model gives."""

    id: int | str
    windows: Array
    expected: Array


def example_module(name: str) -> ModuleType:
    """A script of the examples, which find one another by name."""
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both speech models, as `prepare.py` writes them."""
    folder = tmp_path_factory.mktemp("speech") / "models"
    shutil.copytree(EXAMPLES / "repository" / MODEL, folder / MODEL)
    example_module("prepare").prepare_silero(folder)
    return folder


@pytest.fixture(scope="module", params=["oldest", "direct"])
def server(
    files: Path, request: pytest.FixtureRequest, start_server: Callable[..., Running]
) -> Running:
    """A server with the model as it is, or with the other strategy and fewer slots than streams."""
    folder = files.parent / str(request.param) / MODEL
    shutil.copytree(files / MODEL, folder)
    if request.param == "direct":
        config = (folder / "config.pbtxt").read_text()
        config = config.replace("oldest { max_candidate_sequences: 256 }", "direct { }")
        config = config.replace("max_batch_size: 64", "max_batch_size: 16")
        assert "direct { }" in config
        assert "max_batch_size: 16" in config
        (folder / "config.pbtxt").write_text(config)
    return start_server(folder.parent)


def recordings() -> list[Array]:
    """Forty pieces of 3 to 25 windows of the made-up voice, each at a loudness and with a noise of
    its own."""
    module, generator = example_module("speech"), np.random.default_rng(11)
    voice, made = module.made_up(), []
    for _ in range(40):
        length, start = generator.integers(3, 26), generator.integers(0, len(voice) - 26 * 512)
        piece = generator.uniform(0.2, 1.5) * voice[start : start + length * 512]
        noise = 0.02 * generator.standard_normal(len(piece))
        made.append(module.windows((piece + noise).astype(np.float32)))
    return made


@pytest.fixture(scope="module")
def streams(files: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Stream]:
    """Streams with numbers and texts as ids. The model as its authors ship it gives the numbers; a
    call with another number of rows makes it forget the stream before."""
    folder, cut = tmp_path_factory.mktemp("direct"), recordings()
    sounds = [rows for piece in cut for rows in (np.zeros((2, 512), np.float32), *piece[:, None])]
    calls = {}
    for number, sound in enumerate(sounds):
        calls[f"silero_vad/{number}/x"] = sound
        calls[f"silero_vad/{number}/sr"] = np.array([16000], np.int64)
    np.savez(folder / "calls.npz", **calls)
    script = Path(__file__).with_name("run_directly.py")
    paths = [script, files, folder / "calls.npz", folder / "results.npz"]
    subprocess.run([sys.executable, *map(str, paths), "silero_vad=1"], check=True)
    with np.load(folder / "results.npz") as found:
        numbers = iter([found[f"silero_vad/{number}"] for number in range(len(sounds))])
    made = []
    for i, piece in enumerate(cut):
        next(numbers)
        expected = np.array([next(numbers)[0, 0] for _ in piece])
        made.append(Stream(i + 2**60 if i % 2 else f"stream {i}", piece, expected))
    return made


def connect(server: Running, *, grpc: bool) -> Any:
    """The connection of the example clients, on Triton's own client library."""
    client = example_module("client")
    return client.Client(server.grpc_url if grpc else server.http_url, grpc)


def send(client: Any, stream: Stream, windows: range) -> list[Array]:
    """The answers to some windows of a stream; the flags are those of the whole stream."""
    found, last = [], len(stream.windows) - 1
    for i in windows:
        step = example_module("client").Step(stream.id, start=i == 0, end=i == last)
        inputs = {"audio__0": stream.windows[i : i + 1]}
        answer = client.infer(MODEL, inputs, ("probability__0",), step)["probability__0"]
        assert answer.shape == (1, 1)
        assert answer.dtype == np.float32
        found.append(answer[0, 0])
    return found


def listen(server: Running, stream: Stream) -> Array:
    """A whole stream, each window over HTTP or gRPC as chance will have it."""
    chance = random.Random(str(stream.id))
    with connect(server, grpc=False) as http, connect(server, grpc=True) as grpc:
        return np.concatenate(
            [
                send(chance.choice((http, grpc)), stream, range(i, i + 1))
                for i in range(len(stream.windows))
            ]
        )


def counts(server: Running) -> tuple[int, int, int]:
    """Requests that were answered, rows that were computed for them, and executions."""
    [found] = server.get(f"/v2/models/{MODEL}/stats").json["model_stats"]
    success = found["inference_stats"]["success"]["count"]
    return int(success), int(found["inference_count"]), int(found["execution_count"])


def worker_of(server: Running) -> psutil.Process:
    """The only worker: the child of the fork server."""
    children = psutil.Process(server.process.pid).children()
    [worker] = [worker for child in children for worker in child.children()]
    return worker


@contextmanager
def halted(server: Running) -> Iterator[psutil.Process]:
    """The worker, which computes nothing in the block."""
    worker = worker_of(server)
    worker.suspend()
    try:
        yield worker
    finally:
        with suppress(psutil.NoSuchProcess):
            worker.resume()


def wait_pending(server: Running, least: int) -> None:
    """Wait until so many requests wait."""
    server.until(lambda: server.metrics()[PENDING] >= least)


@pytest.mark.parametrize("grpc", [False, True], ids=["http", "grpc"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_stream_alone_is_the_packages_own_to_the_bit(
    server: Running, streams: list[Stream], number: int, grpc: bool
) -> None:
    stream = streams[number]
    with connect(server, grpc=grpc) as client:
        found = send(client, stream, range(len(stream.windows)))
    assert np.array(found).tobytes() == stream.expected.tobytes()


def test_streams_at_once_share_batches_and_keep_their_numbers(
    server: Running, streams: list[Stream]
) -> None:
    """The first window of nearly all waits before anything runs, so batches must be shared."""
    before = counts(server)

    def let_run() -> None:
        wait_pending(server, len(streams) - 1)
        worker.resume()

    with halted(server) as worker:
        *found, error = in_threads([*(partial(listen, server, s) for s in streams), let_run])
    assert error is None
    for stream, answers in zip(streams, found, strict=True):
        np.testing.assert_allclose(answers, stream.expected, atol=1e-5)
    windows = sum(len(stream.windows) for stream in streams)
    after = counts(server)
    success, computed, executions = (b - a for a, b in zip(before, after, strict=True))
    assert success == computed == windows
    assert executions < windows


def test_a_stream_takes_the_id_of_one_that_stopped_half_way(
    server: Running, streams: list[Stream]
) -> None:
    first, second, third = streams[:3]
    second = replace(second, id=first.id)
    half = len(first.windows) // 2
    with connect(server, grpc=True) as client:
        found = [send(client, first, range(half)), send(client, third, range(2))]
        found.append(send(client, second, range(len(second.windows))))
        found.append(send(client, third, range(2, len(third.windows))))
    expected = [
        *(first.expected[:half], third.expected[:2]),
        *(second.expected, third.expected[2:]),
    ]
    for here, there in zip(found, expected, strict=True):
        np.testing.assert_allclose(here, there, atol=1e-5)


def test_a_stream_that_has_ended_must_start_again(server: Running, streams: list[Stream]) -> None:
    stream = streams[0]
    with connect(server, grpc=False) as client:
        send(client, stream, range(len(stream.windows)))
        with pytest.raises(Exception, match=NOT_STARTED.format(stream.id)):
            send(client, stream, range(1, 2))


def failures(results: Sequence[Any]) -> list[str]:
    """The messages of calls that have all failed."""
    assert all(isinstance(result, Exception) for result in results), results
    return [str(result.message()) for result in results]


def test_a_dead_worker_ends_its_streams_and_new_ones_go_on(
    server: Running, streams: list[Stream]
) -> None:
    """One stream dies in the worker and the others behind it; none goes on where it was."""
    since, bound = len(server.log.lines), streams[:6]

    def go_on(stream: Stream, window: int) -> list[Array]:
        with connect(server, grpc=isinstance(stream.id, int)) as client:
            return send(client, stream, range(window, window + 1))

    for stream in bound:
        go_on(stream, 0)

    def kill() -> None:
        wait_pending(server, len(bound) - 1)
        worker.kill()

    with halted(server) as worker:
        *results, error = in_threads([*(partial(go_on, stream, 1) for stream in bound), kill])
    assert error is None
    instance = f"{MODEL}_0_0"
    running = (
        f"the worker process of model '{MODEL}' (instances: '{instance}') ended: "
        "killed by signal SIGKILL"
    )
    waiting = (
        f"instance '{instance}' of model '{MODEL}' has ended, and with it the sequence, which must "
        "be started again"
    )
    assert sorted(failures(results)) == sorted([running, *[waiting] * (len(bound) - 1)])
    server.log.wait("worker restarted", since=since)
    late = in_threads([partial(go_on, stream, 2) for stream in bound])
    assert failures(late) == [NOT_STARTED.format(stream.id) for stream in bound]
    for stream, answers in zip(
        bound, in_threads([partial(listen, server, s) for s in bound]), strict=True
    ):
        np.testing.assert_allclose(answers, stream.expected, atol=1e-5)


def write_wav(path: Path, samples: Array) -> None:
    with wave.open(str(path), "wb") as file:
        file.setframerate(16000)
        file.setnchannels(1)
        file.setsampwidth(2)
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())


@pytest.mark.parametrize("grpc", [False, True], ids=["http", "grpc"])
def test_the_client_listens_to_several_recordings(
    server: Running, tmp_path: Path, grpc: bool
) -> None:
    voice = example_module("speech").made_up()
    pieces = {"all": voice, "late": voice[8000:], "none": voice[:0], "silence": voice[:4000]}
    for name, samples in pieces.items():
        write_wav(tmp_path / f"{name}.wav", samples)
    url = ["--url", server.grpc_url, "--grpc"] if grpc else ["--url", server.http_url]
    names = [f"{name}.wav" for name in pieces]
    command = [sys.executable, str(EXAMPLES / "speech.py"), *url, *names]
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found: dict[str, list[float]] = {}
    for line in result.stdout.splitlines():
        if line.endswith(":"):
            found[line[:-1]] = []
        else:
            found[[*found][-1]].append(float(line.split()[2]))
    assert [*found] == names
    windows = [-(-len(samples) // 512) for samples in pieces.values()]
    assert [len(numbers) for numbers in found.values()] == windows
    assert [found["all.wav"][i] > 0.5 for i in (5, 30, 60)] == [False, True, False]
    assert found["late.wav"][15] > 0.5
    assert max(found["silence.wav"]) < 0.1
