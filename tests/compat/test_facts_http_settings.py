"""Regions of shared memory over HTTP, the places of tensors in them, and the settings of traces and
of the log."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from facts_harness import JSON, Fact, X, an_input, request
from server_harness import Running

SYSTEM, CUDA = "/v2/systemsharedmemory", "/v2/cudasharedmemory"


def register(status: int, phrase: str | None, base: str = SYSTEM, **body: Any) -> Fact:
    """A request to register the region r."""
    text = json.dumps(body).encode()
    return Fact("POST", f"{base}/region/r/register", status, JSON, phrase, text)


HANDLE = {"b64": base64.b64encode(bytes(64)).decode()}
REGIONS = {
    "without a name": Fact(
        *("POST", f"{SYSTEM}/register", 400, JSON, "'region name' is necessary"),
        b'{"key": "/k", "byte_size": 1}',
    ),
    "without a key": register(
        400, "Shared memory register request has no 'key' field", byte_size=1
    ),
    "without a size": register(
        400, "Shared memory register request has no 'byte_size' field", key="/k"
    ),
    "with a key of slashes": register(400, "invalid shm key", key="//", byte_size=1),
    "with a reserved key": register(
        *(400, "contains the reserved prefix"),
        key="/triton_python_backend_shm_region_1",
        byte_size=1,
    ),
    "with an object that is not there": register(
        500,
        "Unable to open shared memory region: '/no-such-object'",
        key="/no-such-object",
        byte_size=1,
    ),
    "with a size of text": register(500, "byte_size", key="/k", byte_size="1"),
    "of a GPU without a handle": register(
        *(400, "Shared memory register request has no 'raw_handle' field", CUDA),
        byte_size=1,
        device_id=0,
    ),
    "of a GPU without a device": register(500, "device_id", CUDA, raw_handle=HANDLE, byte_size=1),
    "of a GPU without a size": register(500, "byte_size", CUDA, raw_handle=HANDLE, device_id=0),
    "of a GPU with another handle": register(
        500, "b64", CUDA, raw_handle={}, byte_size=1, device_id=0
    ),
    "status of an unknown region": Fact(
        *("GET", f"{SYSTEM}/region/none/status", 404, JSON),
        "Unable to find system shared memory region: 'none'",
    ),
    "status of an unknown region of a GPU": Fact(
        *("GET", f"{CUDA}/region/none/status", 404, JSON),
        "Unable to find cuda shared memory region: 'none'",
    ),
    "of a GPU with a short handle": register(
        *(400, "'raw_handle' must be a valid base64 encoded", CUDA),
        raw_handle={"b64": "AAAA"},
        byte_size=1,
        device_id=0,
    ),
    "unregistering what is unknown": Fact(
        "POST", f"{SYSTEM}/region/none/unregister", 200, JSON, None
    ),
    "unregistering everything": Fact("POST", f"{CUDA}/unregister", 200, JSON, None),
}


@pytest.mark.parametrize("fact", REGIONS)
def test_regions(facts: Running, fact: str) -> None:
    REGIONS[fact].check(facts)


@pytest.fixture
def region(facts: Running) -> Iterator[str]:
    """The key of an object of 64 bytes that is registered as `mine` from its 0th byte."""
    shm = pytest.importorskip("tritonclient.utils.shared_memory", reason="tritonclient is missing")
    handle = shm.create_shared_memory_region("mine", "/facts_of_http", 64)
    body = json.dumps({"key": "/facts_of_http", "byte_size": 64}).encode()
    Fact("POST", f"{SYSTEM}/region/mine/register", 200, JSON, None, body).check(facts)
    yield "/facts_of_http"
    assert facts.post(f"{SYSTEM}/region/mine/unregister").status == 200
    shm.destroy_shared_memory_region(handle)


def test_a_region_is_told_as_it_was_registered(facts: Running, region: str) -> None:
    line = {"name": "mine", "key": region, "offset": 0, "byte_size": 64}
    assert facts.get(f"{SYSTEM}/region/mine/status").json == [line]
    assert line in facts.get(f"{SYSTEM}/status").json
    found = facts.get(f"{CUDA}/region/mine/status")
    assert found.status == 404
    body = json.dumps({"key": region, "byte_size": 64}).encode()
    phrase = "shared memory region 'mine' already in manager"
    Fact("POST", f"{SYSTEM}/region/mine/register", 400, JSON, phrase, body).check(facts)
    body = json.dumps({"key": region, "byte_size": 1 << 20}).encode()
    phrase = "failed to register shared memory region 'more': invalid args"
    Fact("POST", f"{SYSTEM}/region/more/register", 400, JSON, phrase, body).check(facts)


PLACES = {
    "nowhere": ({"region": "none", "byte_size": 8}, 404, "Unable to find shared memory region"),
    "behind the end": (
        *({"region": "mine", "byte_size": 8, "offset": 64}, 400),
        "Invalid offset for shared memory region: 'mine'",
    ),
    "across the end": (
        *({"region": "mine", "byte_size": 8, "offset": 60}, 400),
        "Invalid offset + byte size for shared memory region: 'mine'",
    ),
    "around": (
        *({"region": "mine", "byte_size": (1 << 64) - 1, "offset": 8}, 400),
        "Integer overflow detected",
    ),
    "of another size": ({"region": "mine", "byte_size": 4}, 400, "input byte size mismatch"),
    "fitting": ({"region": "mine", "byte_size": 8}, 200, '"data":[0.0,0.0]'),
}


@pytest.mark.parametrize("place", PLACES)
def test_places_of_inputs(facts: Running, region: str, place: str) -> None:
    given, status, phrase = PLACES[place]
    fields = {f"shared_memory_{key}": value for key, value in given.items()}
    body = request(an_input("X", "FP32", [1, 2], parameters=fields))
    Fact("POST", "/v2/models/echo/infer", status, JSON, phrase, body).check(facts)


def test_an_output_needs_room_and_only_takes_what_it_needs(facts: Running, region: str) -> None:
    for size, status in ((4, 500), (16, 200)):
        place = {"shared_memory_region": "mine", "shared_memory_byte_size": size}
        found = facts.post(
            "/v2/models/echo/infer", request(X, outputs=[{"name": "Y", "parameters": place}])
        )
        assert found.status == status
        if status == 500:
            assert found.error.startswith(
                "shared memory size specified with the request for output 'Y' (4 bytes) should be "
                "at least 8 bytes to hold the results"
            )
        else:
            # Type and shape are told, the data is where it was wanted.
            assert {"name": "Y", "datatype": "FP32", "shape": [1, 2]}.items() <= (
                found.json["outputs"][0].items()
            )
            assert "data" not in found.json["outputs"][0]


TRACE = "/v2/trace/setting"
DEFAULTS = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}


def change(path: str, status: int, phrase: str, **body: Any) -> Fact:
    """A request to change settings."""
    return Fact("POST", path, status, JSON, phrase, json.dumps(body).encode())


SETTINGS = {
    "the file of traces": change(
        *(TRACE, 501, "trace file location can not be updated through network protocol"),
        trace_file="x",
    ),
    "levels beside OFF": change(
        *(TRACE, 400, "Expect only one trace level 'OFF' is specified"),
        trace_level=["OFF", "TIMESTAMPS"],
    ),
    "a rate of a number": change(TRACE, 500, "trace_rate", trace_rate=1),
    "a rate of letters": change(TRACE, 400, "Unable to parse 'trace_rate', got: x", trace_rate="x"),
    "a count below -1": change(TRACE, 400, "trace_count", trace_count="-2"),
    "traces that go nowhere": change(
        *(TRACE, 400, "Attempting to set invalid trace setting"), trace_level=["TIMESTAMPS"]
    ),
    "an unknown setting": change(TRACE, 200, '"trace_rate":"1000"', other="1"),
    "traces of an unknown model": change(
        "/v2/models/absent/trace/setting", 400, "Request for unknown model : absent", trace_rate="1"
    ),
    "the file of the log": change(
        *("/v2/logging", 501, "log file location can not be updated through network protocol"),
        log_file="x",
    ),
    "the file of the log as it is": change("/v2/logging", 200, '"log_file":""', log_file=None),
    "a severity of 1": change("/v2/logging", 500, "non-boolean as boolean", log_info=1),
    "a level of text": change(
        "/v2/logging", 500, "non-unsigned-integer as unsigned-integer", log_verbose_level="1"
    ),
    "a format that is none": change("/v2/logging", 503, "", log_format="none"),
    "an unknown setting of the log": change("/v2/logging", 200, '"log_info":true', other=1),
}


@pytest.mark.parametrize("fact", SETTINGS)
def test_settings(facts: Running, fact: str) -> None:
    SETTINGS[fact].check(facts)


def test_trace_settings_fall_back(facts: Running) -> None:
    mine = "/v2/models/echo/trace/setting"
    assert facts.get(TRACE).json == DEFAULTS
    found = change(mine, 200, "", trace_rate="7").ask(facts).json
    assert found == {**DEFAULTS, "trace_rate": "7"}
    assert facts.get(TRACE).json == DEFAULTS
    assert change(TRACE, 200, "", trace_rate="5", trace_count="9").ask(facts).json == {
        **DEFAULTS,
        "trace_rate": "5",
        "trace_count": "9",
    }
    # What is set on the model stays; what is not follows.
    assert facts.get(mine).json == {**DEFAULTS, "trace_rate": "7", "trace_count": "9"}
    assert change(mine, 200, "", trace_rate=None).ask(facts).json["trace_rate"] == "5"
    cleared = change(TRACE, 200, "", trace_rate=None, trace_count=None).ask(facts).json
    assert cleared == facts.get(mine).json == DEFAULTS


def test_log_settings(facts: Running) -> None:
    expected = {
        "log_file": "",
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }
    assert facts.get("/v2/logging").json == expected
    changed = change("/v2/logging", 200, "", log_verbose_level=1, log_format=None).ask(facts).json
    assert changed == {**expected, "log_verbose_level": 1}
    assert change("/v2/logging", 200, "", log_verbose_level=0).ask(facts).json == expected
