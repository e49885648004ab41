"""The names, signatures, defaults and promises of the in-process API and of the front ends beside
it, as scripts written for Triton's rely on them."""

import asyncio
import inspect
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from facts_harness import SERVED, write_models
from inprocess_models import own_log
from server_harness import ADDRESS, PATIENCE

pytest.importorskip("aiohttp", reason="the extra 'http' is missing")

import microkernel.inprocess as tritonserver
from microkernel.inprocess import (
    AsyncResponseIterator,
    InferenceRequest,
    InferenceResponse,
    KServeGrpc,
    KServeHttp,
    MemoryBuffer,
    Metrics,
    Model,
    Options,
    ResponseIterator,
    Server,
    Tensor,
)

NOTHING = inspect.Parameter.empty
ONE = np.ones((1, 1), np.float32)


@pytest.mark.parametrize(
    ("call", "known"),
    [
        (Server.__init__, {"options": None}),
        (Server.start, {"wait_until_ready": False, "polling_interval": 0.1, "timeout": None}),
        (Server.stop, {}),
        (Server.live, {}),
        (Server.ready, {}),
        (Server.metadata, {}),
        (Server.model, {"name": NOTHING, "version": -1}),
        (Server.models, {"exclude_not_ready": False}),
        (Server.load, {"model_name": NOTHING, "parameters": None}),
        (
            Server.unload,
            {
                "model": NOTHING,
                "unload_dependents": False,
                "wait_until_unloaded": False,
                "polling_interval": 0.1,
                "timeout": None,
            },
        ),
        (Server.register_model_repository, {"path": NOTHING, "name_mapping": None}),
        (Server.unregister_model_repository, {"path": NOTHING}),
        (Server.poll_model_repository, {}),
        (Server.metrics, {"metric_format": tritonserver.MetricFormat.PROMETHEUS}),
        (Model.create_request, {}),
        (Model.infer, {"request": None, "raise_on_error": True}),
        (Model.async_infer, {"request": None, "raise_on_error": True}),
        (Model.metadata, {}),
        (Model.ready, {}),
        (Model.config, {"config_version": 1}),
        (Model.statistics, {}),
        (Model.batch_properties, {}),
        (Model.transaction_properties, {}),
        (ResponseIterator.cancel, {}),
        (AsyncResponseIterator.cancel, {}),
        (Tensor.to_string_array, {}),
        (Tensor.to_bytes_array, {}),
        (Tensor.to_host, {}),
        (Tensor.to_device, {"device": NOTHING}),
        (Tensor.from_dlpack, {"obj": NOTHING}),
        (Tensor.from_string_array, {"string_array": NOTHING}),
        (Tensor.from_bytes_array, {"bytes_array": NOTHING}),
        (MemoryBuffer.from_dlpack, {"owner": NOTHING}),
        (tritonserver.Metric.__init__, {"family": NOTHING, "labels": None}),
        (
            tritonserver.MetricFamily.__init__,
            {"kind": NOTHING, "name": NOTHING, "description": NOTHING},
        ),
    ],
)
def test_what_a_call_takes(call: Any, known: dict[str, Any]) -> None:
    taken = inspect.signature(call).parameters
    assert [name for name in taken if name in known] == list(known)
    assert {name: taken[name].default for name in known} == known
    more = [p for p in taken.values() if p.name not in (*known, "self")]
    assert all(p.default is not NOTHING or p.kind is p.VAR_KEYWORD for p in more)


@pytest.mark.parametrize(
    ("kind", "defaults"),
    [
        (
            Options,
            {
                "server_id": "triton",
                "model_control_mode": tritonserver.ModelControlMode.NONE,
                "strict_model_config": False,
                "rate_limiter_mode": tritonserver.RateLimitMode.OFF,
                "pinned_memory_pool_size": 2**28,
                "min_supported_compute_capability": 6.0,
                "exit_on_error": True,
                "strict_readiness": True,
                "exit_timeout": 30,
                "buffer_manager_thread_count": 0,
                "model_load_thread_count": 4,
                "model_load_retry_count": 0,
                "model_namespacing": False,
                "enable_peer_access": True,
                "log_file": None,
                "log_info": False,
                "log_warn": False,
                "log_error": False,
                "log_format": tritonserver.LogFormat.DEFAULT,
                "log_verbose": 0,
                "metrics": True,
                "gpu_metrics": True,
                "cpu_metrics": True,
                "metrics_interval": 2000,
            },
        ),
        (KServeHttp.Options, {"port": 8000, "thread_count": 8}),
        (
            KServeGrpc.Options,
            {
                "port": 8001,
                "infer_thread_count": 2,
                "infer_allocation_pool_size": 8,
                "use_ssl": False,
                "use_mutual_auth": False,
                "keepalive_time_ms": 7_200_000,
                "keepalive_timeout_ms": 20_000,
                "keepalive_permit_without_calls": False,
                "http2_max_pings_without_data": 2,
                "http2_min_recv_ping_interval_without_data_ms": 300_000,
                "http2_max_ping_strikes": 2,
                "max_connection_age_ms": 0,
                "max_connection_age_grace_ms": 0,
            },
        ),
        (Metrics.Options, {"port": 8002, "thread_count": 1}),
    ],
)
def test_the_defaults_of_options(kind: Any, defaults: dict[str, Any]) -> None:
    made = kind()
    assert {name: getattr(made, name) for name in defaults} == defaults


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            Options,
            "model_repository startup_models rate_limiter_resources cuda_memory_pool_sizes "
            "cache_config cache_directory backend_directory repo_agent_directory "
            "model_load_device_limits backend_configuration host_policies metrics_configuration",
        ),
        (
            InferenceRequest,
            "model request_id flags correlation_id priority timeout inputs parameters "
            "output_memory_type response_queue",
        ),
        (
            InferenceResponse,
            "model request_id parameters outputs error classification_label final",
        ),
        (Tensor, "data_type shape memory_buffer"),
        (MemoryBuffer, "data_ptr memory_type memory_type_id size owner"),
        (tritonserver.RateLimiterResource, "name count device"),
        (KServeHttp.Options, "address port reuse_port thread_count header_forward_pattern"),
        (
            KServeGrpc.Options,
            "address reuse_port server_cert server_key root_cert infer_compression_level "
            "max_response_pool_size forward_header_pattern",
        ),
        (Metrics.Options, "address port thread_count"),
    ],
)
def test_the_members_of_a_record(kind: Any, names: str) -> None:
    assert set(names.split()) <= {field.name for field in fields(kind)}


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("MemoryType", {"CPU": 0, "CPU_PINNED": 1, "GPU": 2}),
        ("ModelControlMode", {"NONE": 0, "POLL": 1, "EXPLICIT": 2}),
        ("RateLimitMode", {"OFF": 0, "EXEC_COUNT": 1}),
        ("LogFormat", {"DEFAULT": 0, "ISO8601": 1}),
        ("MetricKind", {"COUNTER": 0, "GAUGE": 1, "HISTOGRAM": 2}),
        ("MetricFormat", {"PROMETHEUS": 0}),
        ("InstanceGroupKind", {"AUTO": 0, "CPU": 1, "GPU": 2, "MODEL": 3}),
        ("ModelBatchFlag", {"UNKNOWN": 1, "FIRST_DIM": 2}),
        ("ModelTxnPropertyFlag", {"ONE_TO_ONE": 1, "DECOUPLED": 2}),
    ],
)
def test_the_members_of_an_enumeration(name: str, members: dict[str, int]) -> None:
    found = getattr(tritonserver, name)
    assert {member.name: member.value for member in found} == members


@pytest.mark.parametrize(
    "name",
    [
        *("UnknownError", "InternalError", "NotFoundError", "InvalidArgumentError"),
        *("UnavailableError", "UnsupportedError", "AlreadyExistsError"),
    ],
)
def test_every_error_is_a_triton_error(name: str) -> None:
    error = getattr(tritonserver, name)
    assert issubclass(error, tritonserver.TritonError)
    assert issubclass(tritonserver.TritonError, Exception)
    assert error is not tritonserver.TritonError


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the models of facts."""
    given: dict[str, Any] = {
        "model_repository": write_models(tmp_path_factory.mktemp("inprocess") / "models"),
        "model_control_mode": tritonserver.ModelControlMode.EXPLICIT,
        "startup_models": list(SERVED),
    }
    with own_log(), Server(**given).start(wait_until_ready=True, timeout=PATIENCE) as running:
        yield running


def test_members_are_those_of_the_options(tmp_path: Path) -> None:
    options = Options(model_repository=tmp_path, server_id="one")
    made = Server(options, server_id="two")
    assert (made.options.server_id, made.options.model_repository) == ("two", tmp_path)
    assert options.server_id == "one"
    with pytest.raises(TypeError):
        Server(no_such_option=1)


def test_a_server_that_was_not_started_answers_nothing(tmp_path: Path) -> None:
    made = Server(model_repository=tmp_path)
    model = made.model("echo")
    for call in (made.live, made.metadata, model.ready, model.metadata, model.infer):
        with pytest.raises(tritonserver.InvalidArgumentError):
            call()


def test_models_are_found_by_name_and_version(server: Server) -> None:
    listed = server.models()
    assert {("two", 1), ("echo", 1)} <= set(listed)
    assert (listed["two", 2].version, listed["echo"].name) == (2, "echo")
    ready = server.models(exclude_not_ready=True)
    assert {name for name, _ in ready} == set(SERVED)
    assert {name for name, _ in listed} - set(SERVED) == {"fails", "later", "empty", "odd"}
    assert all(model.state == "READY" for model in ready.values())


def test_a_model_is_not_checked_before_it_is_used(server: Server) -> None:
    model = server.model("absent", 7)
    assert (model.name, model.version, model.ready()) == ("absent", 7, False)
    with pytest.raises(tritonserver.NotFoundError, match="unknown model: 'absent'"):
        model.metadata()


def test_what_is_asked_by_members_or_as_a_request(server: Server) -> None:
    model = server.model("echo")
    request = model.create_request(request_id="r", inputs={"X": ONE})
    for responses in (model.infer(request), model.infer(inputs={"X": ONE}, request_id="r")):
        [response] = responses
        assert (response.request_id, response.final, response.error) == ("r", True, None)
        assert (response.model.name, response.model.version) == ("echo", 1)
        assert np.from_dlpack(response.outputs["Y"]).tolist() == [[1]]
        with pytest.raises(StopIteration):
            next(responses)


@pytest.mark.parametrize("place", ["cpu", "cpu:0", tritonserver.MemoryType.CPU, ("cpu", 0)])
def test_outputs_are_where_they_were_asked_for(server: Server, place: Any) -> None:
    [response] = server.model("echo").infer(inputs={"X": ONE}, output_memory_type=place)
    output = response.outputs["Y"]
    assert (output.memory_type, output.memory_type_id) == (tritonserver.MemoryType.CPU, 0)
    assert (output.data_type, list(output.shape)) == (tritonserver.DataType.FP32, [1, 1])
    assert (output.size, output.memory_buffer.size) == (4, 4)
    assert output.data_ptr == output.memory_buffer.data_ptr
    assert output.__dlpack_device__() == (tritonserver.DLDeviceType.kDLCPU, 0)
    assert output.to_host().to_device(place).size == 4


@pytest.mark.parametrize(
    ("given", "text"),
    [([["a", "b"]], ["a", "b"]), (np.array([["c"]], np.object_), ["c"]), ([[b"d"]], ["d"])],
)
def test_inputs_of_text(server: Server, given: Any, text: list[str]) -> None:
    made = Tensor.from_bytes_array(given) if given == [[b"d"]] else given
    [response] = server.model("text").infer(inputs={"X": made})
    assert response.outputs["Y"].to_string_array().reshape(-1).tolist() == text
    expected = [word.encode() for word in text]
    assert response.outputs["Y"].to_bytes_array().reshape(-1).tolist() == expected


def pair(server: Server, first: int, **members: Any) -> Any:
    """The responses of pair, which fails for less than none."""
    given = np.array([first, 0, 0, 0], np.int32)
    return server.model("pair").infer(inputs={"A": given, "B": given}, **members)


def test_an_error_is_raised_or_given_out(server: Server) -> None:
    with pytest.raises(tritonserver.TritonError, match="the model refuses"):
        next(pair(server, -1))
    [response] = pair(server, -1, raise_on_error=False)
    assert isinstance(response.error, tritonserver.TritonError)
    assert (dict(response.outputs), response.final) == ({}, True)


def test_the_end_of_a_decoupled_model_is_a_response_without_outputs(server: Server) -> None:
    count = {"COUNT": np.array([2], np.int32)}
    queue: SimpleQueue[InferenceResponse] = SimpleQueue()
    responses = list(server.model("many").infer(inputs=count, response_queue=queue))
    assert [bool(response.outputs) for response in responses] == [True, True, False]
    assert [response.final for response in responses] == [False, False, True]
    assert [queue.get(timeout=PATIENCE).final for _ in responses] == [False, False, True]
    assert queue.empty()


async def test_the_same_from_an_event_loop(server: Server) -> None:
    queue: asyncio.Queue[InferenceResponse] = asyncio.Queue()
    responses = server.model("echo").async_infer(inputs={"X": ONE}, response_queue=queue)
    assert [response.final async for response in responses] == [True]
    assert (await asyncio.wait_for(queue.get(), PATIENCE)).final
    responses.cancel()


def test_parameters_and_priorities_reach_the_model(server: Server) -> None:
    given: dict[str, Any] = {"word": "w", "number": 7, "half": 0.5, "on": True}
    [response] = server.model("told").infer(
        inputs={"X": np.array([1], np.int32)},
        parameters=given,
        correlation_id=5,
        flags=1,
        timeout=9_000_000,
    )
    told = response.outputs["TOLD"].to_string_array()[0]
    for phrase in ('"word": "w"', '"number": 7', '"sequence": 5', '"flags": 1', "9000000"):
        assert phrase in told
    assert response.parameters == {"on": True, "count": 3, "word": "w"}


def test_what_a_model_is(server: Server) -> None:
    echo, many = server.model("echo"), server.model("many")
    assert echo.batch_properties() is tritonserver.ModelBatchFlag.FIRST_DIM
    assert many.batch_properties() is tritonserver.ModelBatchFlag.UNKNOWN
    assert echo.transaction_properties() is tritonserver.ModelTxnPropertyFlag.ONE_TO_ONE
    assert many.transaction_properties() is tritonserver.ModelTxnPropertyFlag.DECOUPLED
    assert echo.config()["max_batch_size"] == 8
    assert echo.metadata()["versions"] == ["1"]
    assert echo.statistics()["model_stats"][0]["name"] == "echo"


def test_loading_gives_the_model_and_unloading_waits(server: Server) -> None:
    model = server.load("later")
    assert (type(model), model.name, model.ready()) == (Model, "later", True)
    server.unload(model, wait_until_unloaded=True, timeout=PATIENCE)
    assert not model.ready()
    server.load("later")
    server.unload("later", wait_until_unloaded=True, timeout=PATIENCE)
    assert server.models()["later", 1].reason == "unloaded"


def test_only_what_is_contiguous_is_a_buffer() -> None:
    array = np.zeros((4, 4), np.float32)
    buffer = MemoryBuffer.from_dlpack(array)
    assert (buffer.data_ptr, buffer.size) == (array.ctypes.data, 64)
    assert (buffer.memory_type, buffer.memory_type_id) == (tritonserver.MemoryType.CPU, 0)
    with pytest.raises(tritonserver.InvalidArgumentError, match="contiguous"):
        MemoryBuffer.from_dlpack(array.T[1:])


@pytest.mark.parametrize("kind", [KServeHttp, KServeGrpc, Metrics])
def test_a_front_end_is_a_context_manager(server: Server, kind: Any) -> None:
    endpoint = kind(server, kind.Options(address=ADDRESS, port=0))
    with endpoint as entered:
        assert entered is endpoint
        assert endpoint.port > 0
        with pytest.raises(tritonserver.TritonError, match="already started"):
            endpoint.start()
    endpoint.stop()
    endpoint.start()
    endpoint.stop()
