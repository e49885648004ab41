"""The RPCs beside inference: what they answer and what they refuse."""

from typing import Any

import pytest
from facts_grpc import (
    PATIENCE,
    Code,
    grpc,
    named,
    refused,
    service_pb2,
    service_pb2_grpc,
)
from facts_harness import SERVED
from server_harness import Running

CALLS: dict[str, tuple[str, dict[str, Any], Any, str]] = {
    "metadata of an unknown model": (
        *("ModelMetadata", {"name": "absent"}, Code.NOT_FOUND),
        "Request for unknown model: 'absent' is not found",
    ),
    "metadata of an unknown version": (
        *("ModelMetadata", {"name": "echo", "version": "7"}, Code.NOT_FOUND),
        "Request for unknown model: 'echo' version 7 is not found",
    ),
    "a version of letters": (
        *("ModelMetadata", {"name": "echo", "version": "x"}, Code.INVALID_ARGUMENT),
        "failed to get model version from specified version string",
    ),
    "a version of letters that is to be ready": (
        *("ModelReady", {"name": "echo", "version": "x"}, Code.INVALID_ARGUMENT),
        "failed to get model version from specified version string",
    ),
    "configuration of an unknown model": (
        *("ModelConfig", {"name": "absent"}, Code.NOT_FOUND),
        "Request for unknown model: 'absent' is not found",
    ),
    "statistics of an unknown model": (
        *("ModelStatistics", {"name": "absent"}, Code.INVALID_ARGUMENT),
        "requested model 'absent' is not available",
    ),
    "a repository to index": (
        *("RepositoryIndex", {"repository_name": "r"}, Code.UNIMPLEMENTED),
        "'repository_name' specification is not supported",
    ),
    "a repository to load from": (
        *("RepositoryModelLoad", {"repository_name": "r", "model_name": "echo"}),
        *(Code.UNIMPLEMENTED, "'repository_name' specification is not supported"),
    ),
    "a repository to unload from": (
        *("RepositoryModelUnload", {"repository_name": "r", "model_name": "echo"}),
        *(Code.UNIMPLEMENTED, "'repository_name' specification is not supported"),
    ),
    "loading what is nowhere": (
        *("RepositoryModelLoad", {"model_name": "absent"}, Code.INTERNAL),
        "failed to load 'absent', failed to poll from model repository",
    ),
    "loading without a name": (
        *("RepositoryModelLoad", {"model_name": ""}, Code.INVALID_ARGUMENT),
        "Model name cannot be empty",
    ),
    "loading a path": (
        *("RepositoryModelLoad", {"model_name": "a/b"}, Code.INVALID_ARGUMENT),
        "must not contain path traversal characters",
    ),
    "an unknown region": (
        *("SystemSharedMemoryStatus", {"name": "none"}, Code.NOT_FOUND),
        "Unable to find system shared memory region: 'none'",
    ),
    "an unknown region of a GPU": (
        *("CudaSharedMemoryStatus", {"name": "none"}, Code.NOT_FOUND),
        "Unable to find cuda shared memory region: 'none'",
    ),
    "a region with a key of slashes": (
        *("SystemSharedMemoryRegister", {"name": "r", "key": "//", "byte_size": 1}),
        *(Code.INVALID_ARGUMENT, "invalid shm key"),
    ),
    "a region with a reserved key": (
        "SystemSharedMemoryRegister",
        {"name": "r", "key": "/triton_python_backend_shm_region_1", "byte_size": 1},
        *(Code.INVALID_ARGUMENT, "contains the reserved prefix"),
    ),
    "a region of no object": (
        *("SystemSharedMemoryRegister", {"name": "r", "key": "/no-object", "byte_size": 1}),
        *(Code.INTERNAL, "Unable to open shared memory region: '/no-object'"),
    ),
    "trace settings of an unknown model": (
        *("TraceSetting", {"model_name": "absent"}, Code.INVALID_ARGUMENT),
        "Request for unknown model : absent",
    ),
    "two values of one setting": (
        *("TraceSetting", {"settings": {"trace_rate": ["1", "2"]}}, Code.INVALID_ARGUMENT),
        "expect only 1 value for 'trace_rate'",
    ),
    "the file of traces": (
        *("TraceSetting", {"settings": {"trace_file": ["x"]}}, Code.UNIMPLEMENTED),
        "trace file location can not be updated through network protocol",
    ),
    "the file of the log": (
        *("LogSettings", {"settings": {"log_file": {"string_param": "x"}}}, Code.UNIMPLEMENTED),
        "log file location can not be updated through network protocol",
    ),
    "a severity of text": (
        *("LogSettings", {"settings": {"log_info": {"string_param": "x"}}}),
        *(Code.INVALID_ARGUMENT, "expect boolean for 'log_info'"),
    ),
    "a level that is true": (
        *("LogSettings", {"settings": {"log_verbose_level": {"bool_param": True}}}),
        *(Code.INVALID_ARGUMENT, "expect int32 for"),
    ),
    "a format that is a number": (
        *("LogSettings", {"settings": {"log_format": {"uint32_param": 1}}}),
        *(Code.INVALID_ARGUMENT, "expect string for"),
    ),
    "a format that is none": (
        *("LogSettings", {"settings": {"log_format": {"string_param": "none"}}}),
        *(Code.INVALID_ARGUMENT, "invalid argument for"),
    ),
}


def settings(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a message: lists of values for traces, one value each for the log."""
    message = getattr(service_pb2, f"{kind}Request")
    return {
        key: message.SettingValue(**({"value": value} if isinstance(value, list) else value))
        for key, value in given.items()
    }


@pytest.mark.parametrize("case", CALLS)
def test_calls_that_are_refused(stub: Any, case: str) -> None:
    kind, fields, code, phrase = CALLS[case]
    if "settings" in fields:
        fields = {"settings": settings(kind, fields["settings"])}
    request = named(kind, **fields)
    refused(lambda: getattr(stub, kind)(request, timeout=PATIENCE), code, phrase)


def test_loading_what_fails(failing: Running) -> None:
    with grpc.insecure_channel(failing.grpc_url) as channel:
        load = service_pb2_grpc.GRPCInferenceServiceStub(channel).RepositoryModelLoad
        request = named("RepositoryModelLoad", model_name="fails")
        phrase = "load failed for model 'fails': version 1 is at UNAVAILABLE state: Internal: "
        refused(lambda: load(request, timeout=PATIENCE), Code.INVALID_ARGUMENT, phrase)
        # That a version is not ready shows when it is asked for, and in the server's health.
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = named("ModelMetadata", name="fails", version="1")
        phrase = "Request for unknown model: 'fails' version 1 is not at ready state"
        refused(lambda: stub.ModelMetadata(request, timeout=PATIENCE), Code.UNAVAILABLE, phrase)
        request = named("ModelMetadata", name="fails")
        phrase = "Request for unknown model: 'fails' has no available versions"
        refused(lambda: stub.ModelMetadata(request, timeout=PATIENCE), Code.NOT_FOUND, phrase)
        assert not stub.ServerReady(named("ServerReady"), timeout=PATIENCE).ready
        check = channel.unary_unary("/grpc.health.v1.Health/Check", None, None)
        assert check(b"", timeout=PATIENCE) == b"\x08\x02"


def test_an_unknown_rpc(channel: Any) -> None:
    call = channel.unary_unary("/inference.GRPCInferenceService/Nothing", None, None)
    refused(lambda: call(b"", timeout=PATIENCE), Code.UNIMPLEMENTED, "")


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [("echo", "", True), ("echo", "1", True), ("echo", "7", False), ("absent", "", False)],
)
def test_whether_a_model_is_ready(stub: Any, name: str, version: str, ready: bool) -> None:
    request = named("ModelReady", name=name, version=version)
    assert stub.ModelReady(request, timeout=PATIENCE).ready is ready


def test_health_and_metadata(stub: Any, facts: Running) -> None:
    assert stub.ServerLive(named("ServerLive"), timeout=PATIENCE).live
    assert stub.ServerReady(named("ServerReady"), timeout=PATIENCE).ready
    about = stub.ServerMetadata(named("ServerMetadata"), timeout=PATIENCE)
    document = facts.get("/v2").json
    assert (about.name, about.version) == (document["name"], document["version"])
    assert list(about.extensions) == document["extensions"]
    model = stub.ModelMetadata(named("ModelMetadata", name="echo"), timeout=PATIENCE)
    assert (model.name, list(model.versions), model.platform) == ("echo", ["1"], "python")
    assert (model.inputs[0].datatype, list(model.inputs[0].shape)) == ("FP32", [-1, -1])
    config = stub.ModelConfig(named("ModelConfig", name="many"), timeout=PATIENCE).config
    assert config.model_transaction_policy.decoupled
    assert config.input[0].data_type == 8


def test_statistics_and_the_index(stub: Any) -> None:
    found = stub.ModelStatistics(named("ModelStatistics"), timeout=PATIENCE)
    assert [entry.name for entry in found.model_stats] == sorted([*SERVED, "two"])
    index = stub.RepositoryIndex(named("RepositoryIndex", ready=True), timeout=PATIENCE)
    assert {line.name: line.state for line in index.models} == dict.fromkeys(SERVED, "READY")
    index = stub.RepositoryIndex(named("RepositoryIndex"), timeout=PATIENCE)
    assert [line.version for line in index.models if line.name == "later"] == [""]


def test_the_standard_health_service_ignores_the_name(channel: Any) -> None:
    for packed in (b"", b"\x0a\x07another"):
        call = channel.unary_unary("/grpc.health.v1.Health/Check", None, None)
        assert call(packed, timeout=PATIENCE) == b"\x08\x01"
    watch = channel.unary_stream("/grpc.health.v1.Health/Watch", None, None)
    refused(lambda: list(watch(b"", timeout=PATIENCE)), Code.UNIMPLEMENTED, "")


def test_load_parameters(stub: Any) -> None:
    for key, value, phrase in (
        ("other", {"string_param": "x"}, "unrecognized load parameter"),
        ("config", {"bool_param": True}, "config"),
        ("file:1/model.py", {"string_param": "x"}, "file:1/model.py"),
    ):
        request = named("RepositoryModelLoad", model_name="echo")
        request.parameters[key].CopyFrom(service_pb2.ModelRepositoryParameter(**value))
        refused(
            lambda request=request: stub.RepositoryModelLoad(request, timeout=PATIENCE),  # type: ignore[misc]
            *(Code.INVALID_ARGUMENT, phrase),
        )


def test_settings_are_lists_of_text(stub: Any) -> None:
    found = stub.TraceSetting(named("TraceSetting"), timeout=PATIENCE).settings
    assert {key: list(value.value) for key, value in found.items()} == {
        "trace_level": ["OFF"],
        "trace_rate": ["1000"],
        "trace_count": ["-1"],
        "log_frequency": ["0"],
        "trace_file": [""],
        "trace_mode": ["triton"],
    }
    log = stub.LogSettings(named("LogSettings"), timeout=PATIENCE).settings
    kinds = {key: value.WhichOneof("parameter_choice") for key, value in log.items()}
    assert kinds == {
        **dict.fromkeys(("log_info", "log_warning", "log_error"), "bool_param"),
        "log_verbose_level": "uint32_param",
        **dict.fromkeys(("log_file", "log_format"), "string_param"),
    }


def test_an_empty_list_clears_a_setting(stub: Any) -> None:
    for given, rate in ((["7"], "7"), ([], "1000")):
        request = named(
            "TraceSetting",
            model_name="echo",
            settings=settings("TraceSetting", {"trace_rate": given}),
        )
        found = stub.TraceSetting(request, timeout=PATIENCE).settings
        assert list(found["trace_rate"].value) == [rate]
