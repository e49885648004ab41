"""What a trace file holds: its records and their members, the names of what happened, tensors as
text, and which files there are."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from facts_grpc import echo, many, service_pb2_grpc
from facts_grpc import grpc as library
from facts_harness import A, B, an_input, request, write_models
from server_harness import Running

MODELS = ("echo", "pair", "kinds", "many")
KERNEL = {
    *("REQUEST_START", "REQUEST_END", "QUEUE_START", "COMPUTE_START", "COMPUTE_INPUT_END"),
    *("COMPUTE_OUTPUT_START", "COMPUTE_END", "INFER_RESPONSE_COMPLETE"),
}
HTTP = {"HTTP_RECV_START", "HTTP_RECV_END", "HTTP_SEND_START", "HTTP_SEND_END"}
GRPC = {"GRPC_WAITREAD_START", "GRPC_WAITREAD_END", "GRPC_SEND_START", "GRPC_SEND_END"}
ACTIVITIES = ("TENSOR_QUEUE_INPUT", "TENSOR_BACKEND_INPUT", "TENSOR_BACKEND_OUTPUT")
KINDS = {
    "BOOL": ([True, False], "1,0"),
    "UINT8": ([200, 7], "200,7"),
    "INT64": ([-1, 9007199254740993], "-1,9007199254740993"),
    "FP32": ([1, 0.5], "1,0.5"),
    "FP64": ([0.1, -2], "0.1,-2"),
}

Records = list[dict[str, Any]]


def started(folder: Path, start_server: Callable[..., Running], *config: str) -> Running:
    """A server that traces every request, tensors included, into `traces.json`."""
    flags = [*(f"--load-model={name}" for name in MODELS), "--model-control-mode=explicit"]
    given = ("rate=1", "level=TIMESTAMPS", "level=TENSORS", f"triton,file={folder}/traces.json")
    flags += [f"--trace-config={value}" for value in (*given, *config)]
    return start_server(write_models(folder / "models"), *flags)


def infer(server: Running, model: str, *inputs: dict[str, Any], **members: Any) -> None:
    """A request over HTTP that must be answered."""
    found = server.post(f"/v2/models/{model}/infer", request(*inputs, **members))
    assert found.status == 200, found.body


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]) -> Records:
    """The records of a server that was asked, in this order: pair with an id and without one, echo
    over gRPC and on a stream, many on a stream, kinds, and what is refused; between the first and
    the last record, which are not of a trace, stand the times of a clock."""
    folder = tmp_path_factory.mktemp("traces")
    server, begin = started(folder, start_server), time.monotonic_ns()
    infer(server, "pair", A, B, id="mine")
    infer(server, "pair", A, B)
    with library.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        stub.ModelInfer(echo(id="over gRPC"), timeout=30)
        asked = [echo(id="streamed"), many(2, id="twice")]
        assert len(list(stub.ModelStreamInfer(iter(asked), timeout=30))) == 3
    tensors = [an_input(kind, kind, [2], data=data) for kind, (data, _) in KINDS.items()]
    infer(server, "kinds", *tensors, an_input("STRING", "BYTES", [2], data=["a", "b"]), id="kinds")
    assert server.post("/v2/models/pair/infer", request(A, id="refused")).status == 400
    assert not (folder / "traces.json").exists()
    assert server.stop() == 0
    found: Records = json.loads((folder / "traces.json").read_text())
    assert [path.name for path in folder.glob("traces*")] == ["traces.json"]
    return [{"clock": begin}, *found, {"clock": time.monotonic_ns()}]


def of(file: Records, identity: str) -> Records:
    """The records of the trace of a request."""
    [number] = [record["id"] for record in file if record.get("request_id") == identity]
    return [record for record in file if record.get("id") == number]


def names(records: Records) -> list[str]:
    """The names of what happened."""
    return [record["timestamps"][0]["name"] for record in records if "timestamps" in record]


def test_a_header_says_whose_trace_it_is(file: Records) -> None:
    headers = [record for record in file if "model_name" in record]
    keys = {"id", "model_name", "model_version", "request_id"}
    assert all(set(header) | {"request_id"} == keys for header in headers)
    assert [(h["model_name"], h["model_version"], h.get("request_id")) for h in headers] == [
        ("pair", 1, "mine"),
        ("pair", 1, None),
        ("echo", 1, "over gRPC"),
        ("echo", 1, "streamed"),
        ("many", 1, "twice"),
        ("kinds", 1, "kinds"),
        ("pair", 1, "refused"),
    ]
    numbers = [header["id"] for header in headers]
    assert all(type(number) is int for number in numbers)
    assert len(set(numbers)) == len(numbers)


def test_records_of_a_trace_stand_together(file: Records) -> None:
    numbers = [record["id"] for record in file[1:-1]]
    changes = [number for at, number in enumerate(numbers) if at == 0 or numbers[at - 1] != number]
    assert len(changes) == len(set(numbers))
    assert all("model_name" in file[1 + numbers.index(number)] for number in changes)


def test_every_record_is_of_one_of_three_kinds(file: Records) -> None:
    for record in file[1:-1]:
        if "timestamps" in record:
            assert set(record) == {"id", "timestamps"}
            [stamp] = record["timestamps"]
            assert set(stamp) == {"name", "ns"}
        elif "tensor" in record:
            assert set(record) == {"id", "activity", "tensor"}
            assert set(record["tensor"]) == {"name", "data", "shape", "dtype"}
            assert all(type(value) is str for value in record["tensor"].values())
        else:
            assert "model_name" in record


def test_times_are_nanoseconds_of_the_monotonic_clock(file: Records) -> None:
    stamps = [r["timestamps"][0]["ns"] for r in file[1:-1] if "timestamps" in r]
    assert all(type(stamp) is int for stamp in stamps)
    assert file[0]["clock"] < min(stamps) <= max(stamps) < file[-1]["clock"]


@pytest.mark.parametrize(
    ("identity", "protocol"), [("mine", HTTP), ("over gRPC", GRPC), ("streamed", GRPC)]
)
def test_what_happened_to_a_request(file: Records, identity: str, protocol: set[str]) -> None:
    found = names(of(file, identity))
    assert set(found) == KERNEL | protocol
    assert len(found) == len(set(found))


def test_every_response_of_a_decoupled_model_is_marked(file: Records) -> None:
    found = names(of(file, "twice"))
    assert set(found) == KERNEL | GRPC
    assert found.count("INFER_RESPONSE_COMPLETE") >= 2
    assert found.count("REQUEST_END") == 1


def test_a_request_that_is_refused_is_traced(file: Records) -> None:
    found = set(names(of(file, "refused")))
    assert {"REQUEST_START", "REQUEST_END"} | HTTP >= found > {"HTTP_RECV_START"}


@pytest.mark.parametrize("activity", ACTIVITIES)
def test_tensors_are_flat_text(file: Records, activity: str) -> None:
    tensors = {
        record["tensor"]["name"]: record["tensor"]
        for record in of(file, "mine")
        if record.get("activity") == activity
    }
    form = {"shape": "4", "dtype": "INT32"}
    data = {"SUM": "2,4,6,8", "DIFF": "0,0,0,0"}
    if activity != "TENSOR_BACKEND_OUTPUT":
        data = dict.fromkeys("AB", "1,2,3,4")
    assert tensors == {name: {"name": name, "data": text, **form} for name, text in data.items()}


def test_dimensions_are_joined_by_commas_and_the_data_is_flat(file: Records) -> None:
    [queued] = [r["tensor"] for r in of(file, "streamed") if r.get("activity") == ACTIVITIES[0]]
    assert queued == {"name": "X", "data": "1,2", "shape": "1,2", "dtype": "FP32"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_of_every_type(file: Records, kind: str) -> None:
    found = [r["tensor"] for r in of(file, "kinds") if "tensor" in r]
    shown = {t["name"]: (t["data"], t["dtype"]) for t in found}
    assert shown[kind] == shown[f"{kind}_OUT"] == (KINDS[kind][1], kind)


@pytest.mark.parametrize(
    ("config", "asked", "files"),
    [
        (("triton,log-frequency=2",), 5, ["traces.json.0", "traces.json.1", "traces.json.2"]),
        (("count=2",), 3, ["traces.json.0"]),
        ((), 0, []),
    ],
)
def test_which_files_there_are(
    tmp_path: Path,
    start_server: Callable[..., Running],
    config: tuple[str, ...],
    asked: int,
    files: list[str],
) -> None:
    server = started(tmp_path, start_server, *config)
    for _ in range(asked):
        infer(server, "pair", A, B)
    assert server.stop() == 0
    found = sorted(tmp_path.glob("traces*"))
    assert [path.name for path in found] == files
    traces = [sum("model_name" in r for r in json.loads(path.read_text())) for path in found]
    assert traces == {5: [2, 2, 1], 3: [2], 0: []}[asked]
