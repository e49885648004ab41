"""Sequences as clients see them: every backend and protocol, many at once, and what ends them."""

import queue
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from sequence_models import BACKENDS, DIRECT, OLDEST, write_echoes, write_sum
from server_harness import PATIENCE, Running, in_threads

http = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")
grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is missing")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException

START = "must specify the START flag on the first request of the sequence"
SUMS = [
    *(f"{backend}_{strategy}" for backend in BACKENDS for strategy in ("direct", "oldest")),
    "wide",
]


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is missing")
    pytest.importorskip("torch", reason="the extra 'torchscript' is missing")
    repository = tmp_path_factory.mktemp("sequences") / "models"
    for backend in BACKENDS:
        write_sum(repository, f"{backend}_direct", backend, DIRECT)
        write_sum(repository, f"{backend}_oldest", backend, OLDEST)
    write_sum(repository, "hasty", "python", DIRECT, "max_sequence_idle_microseconds: 200000")
    write_sum(repository, "wide", "python", OLDEST)
    config = repository / "wide" / "config.pbtxt"
    config.write_text(config.read_text() + "instance_group { kind: KIND_CPU count: 2 }\n")
    write_echoes(repository)
    return start_server(repository)


def tensor(kinds: Any, name: str, value: float, datatype: str) -> list[Any]:
    given = kinds.InferInput(name, [1, 1], datatype)
    given.set_data_from_numpy(np.array([[value]], np.int32 if datatype == "INT32" else np.float32))
    return [given]


def flags(index: int, count: int) -> dict[str, bool]:
    return {"sequence_start": index == 0, "sequence_end": index == count - 1}


def add_all(
    client: Any, kinds: Any, model: str, sequence: int | str, numbers: Sequence[float]
) -> list[float]:
    """The sums that a sequence gives, one call after the other."""
    results = [
        client.infer(
            model,
            tensor(kinds, "INPUT__0", number, "FP32"),
            sequence_id=sequence,
            **flags(index, len(numbers)),
        )
        for index, number in enumerate(numbers)
    ]
    return [float(result.as_numpy("OUTPUT__0").item()) for result in results]


def expected(numbers: Sequence[float]) -> list[float]:
    return [100 + float(total) for total in np.cumsum(numbers)]


def connect(server: Running, kinds: Any) -> Any:
    return kinds.InferenceServerClient(server.grpc_url if kinds is grpc else server.http_url)


@pytest.mark.parametrize("model", SUMS)
@pytest.mark.parametrize("kinds", [http, grpc], ids=["http", "grpc"])
@pytest.mark.parametrize("sequence", [7, (1 << 63) - 7, "seven"])
def test_a_sequence(server: Running, model: str, kinds: Any, sequence: int | str) -> None:
    with connect(server, kinds) as client:
        for _ in range(2):  # the second one begins anew
            assert add_all(client, kinds, model, sequence, [1, 2, 3]) == expected([1, 2, 3])


@pytest.mark.parametrize("model", SUMS)
def test_many_sequences_at_once_are_each_as_if_alone(server: Running, model: str) -> None:
    """Far more than there are slots, over both protocols."""

    def one(number: int) -> bool:
        numbers = [number, *range(number % 5 + 1)]
        kinds = http if number % 2 else grpc
        with connect(server, kinds) as client:
            return add_all(client, kinds, model, number, numbers) == expected(numbers)

    assert in_threads([partial(one, number) for number in range(1, 21)]) == [True] * 20


@pytest.mark.parametrize("model", SUMS)
def test_sequences_over_one_stream(server: Running, model: str) -> None:
    """All requests are sent before any response is read; those of a sequence come in order."""
    answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    with connect(server, grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for index in range(5):
            for sequence in range(1, 11):
                client.async_stream_infer(
                    model,
                    tensor(grpc, "INPUT__0", sequence, "FP32"),
                    request_id=str(sequence),
                    sequence_id=sequence,
                    **flags(index, 5),
                )
        sums: dict[int, list[float]] = {sequence: [] for sequence in range(1, 11)}
        for _ in range(50):
            result, error = answers.get(timeout=PATIENCE)
            assert error is None
            sums[int(result.get_response().id)].append(float(result.as_numpy("OUTPUT__0").item()))
        client.stop_stream()
    assert sums == {sequence: expected([sequence] * 5) for sequence in range(1, 11)}


@pytest.mark.parametrize("kinds", [http, grpc], ids=["http", "grpc"])
def test_what_a_model_is_told(server: Running, kinds: Any) -> None:
    with connect(server, kinds) as client:
        results = [
            client.infer(
                "echo", tensor(kinds, "X", 1, "INT32"), sequence_id=41, **flags(index, count)
            )
            for count in (3, 1)
            for index in range(count)
        ]
    assert [result.as_numpy("TOLD").tolist() for result in results] == [
        *([[1, 0, 1, 41]], [[0, 0, 1, 41]], [[0, 1, 1, 41]]),
        [[1, 1, 1, 41]],
    ]
    said = [result.as_numpy("SAID").tolist() for result in results]
    assert said == [[[41, 1]], [[41, 0]], [[41, 2]], [[41, 3]]]


def test_a_row_that_is_no_request_is_seen_by_the_model_only(server: Running) -> None:
    """Sequence 52 has slot 1; without 51, row 0 is filled, which shows in the size of the batch."""
    with connect(server, grpc) as client:
        ask = partial(client.infer, "echo", tensor(grpc, "X", 1, "INT32"))
        ask(sequence_id=51, sequence_start=True)
        before = client.get_inference_statistics("echo", as_json=True)["model_stats"][0]
        result = ask(sequence_id=52, sequence_start=True, sequence_end=True)
        ask(sequence_id=51, sequence_end=True)
        after = client.get_inference_statistics("echo", as_json=True)["model_stats"][0]
    assert result.as_numpy("ROWS").tolist() == [[2]]
    assert result.as_numpy("TOLD").tolist() == [[1, 1, 1, 52]]
    assert int(after["inference_count"]) - int(before["inference_count"]) == 2
    assert int(after["execution_count"]) - int(before["execution_count"]) == 2


@pytest.mark.parametrize("kinds", [http, grpc], ids=["http", "grpc"])
def test_ids_that_are_text(server: Running, kinds: Any) -> None:
    with connect(server, kinds) as client:
        ask = partial(client.infer, "names", tensor(kinds, "X", 1, "INT32"), sequence_start=True)
        result = ask(sequence_id="h\u00e9llo", sequence_end=True)
        assert result.as_numpy("NAME").tolist() == [["h\u00e9llo".encode()]]
        text = (
            "sequence batching control 'CORRID' data-type is 'UINT64', but model 'names' expects "
            "'BYTES'"
        )
        with pytest.raises(InferenceServerException, match=text):
            ask(sequence_id=7)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "must specify a non-zero or non-empty correlation ID"),
        ({"sequence_id": 600}, f"inference request for sequence 600 to model 'echo' {START}"),
        ({"sequence_id": "x", "sequence_end": True}, "is 'BYTES', but model 'echo' expects"),
    ],
)
@pytest.mark.parametrize("kinds", [http, grpc], ids=["http", "grpc"])
def test_requests_that_are_refused(
    server: Running, kinds: Any, options: dict[str, Any], text: str
) -> None:
    with connect(server, kinds) as client, pytest.raises(InferenceServerException, match=text):
        client.infer("echo", tensor(kinds, "X", 1, "INT32"), **options)


@pytest.mark.parametrize("kinds", [http, grpc], ids=["http", "grpc"])
def test_a_client_that_never_ends_its_sequences(server: Running, kinds: Any) -> None:
    """Four slots, and each sequence keeps one until it has been idle: the others get theirs then,
    and an idle one is over."""
    with connect(server, kinds) as client:

        def begin(sequence: int) -> float:
            result = client.infer(
                "hasty",
                tensor(kinds, "INPUT__0", sequence, "FP32"),
                sequence_id=sequence,
                sequence_start=True,
            )
            return float(result.as_numpy("OUTPUT__0").item())

        assert [begin(sequence) for sequence in range(1, 10)] == [100 + n for n in range(1, 10)]
        with pytest.raises(InferenceServerException, match=START):
            client.infer("hasty", tensor(kinds, "INPUT__0", 1, "FP32"), sequence_id=1)


def test_a_worker_that_dies_takes_its_sequences_along(server: Running) -> None:
    model, fatal = "wide", -2000.0  # which has another instance, so that it stays ready
    with connect(server, http) as client:

        def add(number: float, **options: Any) -> float:
            given = tensor(http, "INPUT__0", number, "FP32")
            result = client.infer(model, given, sequence_id=900, **options)
            return float(result.as_numpy("OUTPUT__0").item())

        assert add(1, sequence_start=True) == 101
        with pytest.raises(InferenceServerException, match="killed by signal SIGKILL"):
            add(fatal)
        with pytest.raises(InferenceServerException, match=START):
            add(1)
        assert add(5, sequence_start=True, sequence_end=True) == 105
