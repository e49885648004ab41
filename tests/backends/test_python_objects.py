"""The objects of `triton_python_backend_utils`, without a model around them."""

import importlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import microkernel
from microkernel import InferRequest
from microkernel_python.datatypes import (
    TRITON_STRING_TO_NUMPY,
    deserialize_bytes_tensor,
    get_input_config_by_name,
    get_input_tensor_by_name,
    get_output_config_by_name,
    get_output_tensor_by_name,
    numpy_to_triton_type,
    serialize_byte_tensor,
    triton_string_to_numpy,
    triton_to_numpy_type,
    using_decoupled_model_transaction_policy,
)
from microkernel_python.errors import TritonModelException
from microkernel_python.logger import Logger
from microkernel_python.memory import InferenceTrace, MemoryType, PreferredMemory
from microkernel_python.plugin import register_backends
from microkernel_python.request import InferenceRequest
from microkernel_python.response import ErrorCode, InferenceResponse, TritonError, outcome
from microkernel_python.tensor import Tensor

FLOATS = np.arange(6, dtype=np.float32).reshape(2, 3)


# InferenceRequest


def nested(**changes: Any) -> InferenceRequest:
    given: dict[str, Any] = {"inputs": [], "requested_output_names": [], "model_name": "n"}
    return InferenceRequest(**(given | changes))


def test_a_request_keeps_what_it_was_given() -> None:
    tensor = Tensor("T", FLOATS)
    request = InferenceRequest(
        "id",
        5,
        [tensor],
        ["A", b"B"],
        b"n",
        2,
        1,
        30,
        PreferredMemory(),
        InferenceTrace(),
        {"k": 1},
    )
    assert request.inputs() == [tensor]
    assert (request.request_id(), request.correlation_id(), request.timeout()) == ("id", 5, 30)
    assert request.requested_output_names() == {"A", "B"}
    assert (request.flags(), request.parameters()) == (1, '{"k": 1}')
    assert (nested().parameters(), nested(correlation_id="s").correlation_id()) == ("{}", "s")


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"correlation_id": None}, TypeError, "correlation_id"),
        ({"correlation_id": np.int64(1)}, TritonModelException, "correlation_id"),
        ({"correlation_id": -1}, TritonModelException, "non-negative"),
        ({"request_id": None}, TypeError, "request_id must be a str, not NoneType"),
        ({"inputs": [None]}, TritonModelException, "inputs must not contain None"),
        ({"inputs": None}, TypeError, "inputs must be a sequence"),
        ({"inputs": [3]}, TypeError, "inputs must be a Tensor, not int"),
        ({"requested_output_names": [""]}, TritonModelException, "empty name"),
        ({"requested_output_names": "A"}, TypeError, "must be a sequence, not str"),
        ({"requested_output_names": [3]}, TypeError, "each output name must be a str"),
        ({"model_version": "1"}, TypeError, "model_version must be an int"),
        ({"flags": None}, TypeError, "flags must be an int"),
        ({"preferred_memory": 3}, TypeError, "must be a PreferredMemory"),
        ({"trace": None}, TypeError, "must be a InferenceTrace"),
        ({"parameters": []}, TritonModelException, "found type '<class 'list'>'"),
        ({"parameters": {1: 1}}, TritonModelException, "keys must be str"),
        ({"parameters": {"k": 1.5}}, TritonModelException, "'k' .* found type '<class 'float'>'"),
        ({"parameters": {"k": None}}, TritonModelException, "NoneType"),
        ({"parameters": {"k": "\ud800"}}, TritonModelException, "'k' is no text in Unicode"),
        ({"parameters": {"\ud800": 1}}, TritonModelException, "key .* is no text in Unicode"),
        ({"parameters": {"k": 2**63}}, TritonModelException, "does not fit 64 bits"),
    ],
)
def test_what_a_request_refuses(changes: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        nested(**changes)


def test_a_request_wants_a_model() -> None:
    with pytest.raises(TypeError, match="'model_name' must be given"):
        InferenceRequest(inputs=[], requested_output_names=[])


async def test_nested_calls_are_refused() -> None:
    with pytest.raises(TritonModelException, match="BLS is not offered"):
        nested().exec()
    with pytest.raises(TritonModelException, match="BLS is not offered"):
        await nested().async_exec(decoupled=True)


def test_a_request_that_the_model_made_is_answered_by_nobody() -> None:
    assert not nested().is_cancelled()
    with pytest.raises(TritonModelException, match="only a request that 'execute' was given"):
        nested().get_response_sender()


def test_release_flags() -> None:
    nested().set_release_flags(1)
    nested().set_release_flags(2)
    with pytest.raises(TritonModelException, match="unknown release flags: 5"):
        nested().set_release_flags(5)


def test_preferred_memory() -> None:
    PreferredMemory(MemoryType.TRITONSERVER_MEMORY_GPU, 1)
    with pytest.raises(TypeError, match="preferred_memory_type must be a MemoryType"):
        PreferredMemory(1)  # type: ignore[arg-type]  # what is tested


# InferenceResponse and TritonError


def test_an_answer_with_an_error_sends_nothing_else() -> None:
    error = TritonError("gone", TritonError.CANCELLED)
    response = InferenceResponse([Tensor("T", FLOATS)], error, {"k": 1})
    assert response.has_error()
    assert response.error() is error
    sent = outcome(InferRequest("m", ()), ["T"], response)
    assert isinstance(sent, microkernel.Cancelled)
    assert str(sent) == "gone"


def test_parameters_of_a_response() -> None:
    assert InferenceResponse([]).parameters() == "{}"
    response = InferenceResponse([], parameters={"k": True, "n": -1})
    assert response.parameters() == '{"k": true, "n": -1}'


def test_sending_prunes_the_response_in_place() -> None:
    response = InferenceResponse([Tensor("T", FLOATS), Tensor("U", FLOATS)])
    outcome(InferRequest("m", ()), ["U"], response)
    assert [tensor.name() for tensor in response.output_tensors()] == ["U"]
    assert get_output_tensor_by_name(response, "T") is None
    assert get_output_tensor_by_name(response, "U") is not None


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_has_an_error_of_its_own(code: ErrorCode) -> None:
    error = TritonError("text", code)
    assert (error.code(), error.message()) == (getattr(TritonError, code.name), "text")
    sent = outcome(InferRequest("m", ()), [], InferenceResponse(error=error))
    assert isinstance(sent, microkernel.MicrokernelError)
    assert sent.code == code.name


def test_what_a_response_refuses() -> None:
    cases: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"output_tensors": None}, TypeError),
        ({"output_tensors": [None]}, TritonModelException),
        ({"error": "text"}, TypeError),
        ({"parameters": {"k": 1.0}}, TritonModelException),
    ]
    for arguments, kind in cases:
        with pytest.raises(kind):
            InferenceResponse(**arguments)
    with pytest.raises(TypeError, match="code must be a ErrorCode"):
        TritonError("x", 3)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError, match="message must be a str"):
        TritonError(None)  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize("arguments", [("m", 20), ("m", None), (3,), (None, Logger.INFO)])
def test_what_the_logger_refuses(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        Logger.log(*arguments)


# Helpers


def test_type_names() -> None:
    assert triton_string_to_numpy("TYPE_FP16") is np.float16
    assert triton_string_to_numpy("TYPE_BOOL") is bool
    assert triton_string_to_numpy("TYPE_STRING") is np.object_
    assert len(TRITON_STRING_TO_NUMPY) == 13
    for unknown in ("TYPE_BF16", "FP32"):
        with pytest.raises(KeyError):
            triton_string_to_numpy(unknown)


@pytest.mark.parametrize("number", range(1, 14))
def test_type_numbers_and_back(number: int) -> None:
    kind = triton_to_numpy_type(number)
    assert kind is not None
    assert numpy_to_triton_type(kind) == number


def test_types_without_a_number() -> None:
    assert [triton_to_numpy_type(n) for n in (0, 14, 99)] == [None] * 3
    assert numpy_to_triton_type(np.dtype("U4")) is None
    assert numpy_to_triton_type(np.complex64) is None
    assert numpy_to_triton_type(np.dtype("S4")) == 13
    assert numpy_to_triton_type(np.longlong) == 9


@given(st.lists(st.binary(max_size=20), min_size=1))
def test_bytes_round_trip(values: list[bytes]) -> None:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    raw = serialize_byte_tensor(array)
    assert isinstance(raw, bytes)
    assert deserialize_bytes_tensor(raw).tolist() == values


def test_oddities_of_serialising() -> None:
    assert serialize_byte_tensor(np.empty((0,), dtype=object)) == ()
    assert serialize_byte_tensor(FLOATS) is None
    assert (
        serialize_byte_tensor(np.array([[3, "é"]], dtype=object)) == b"\1\0\0\x003\2\0\0\0\xc3\xa9"
    )
    with pytest.raises(TritonModelException, match="expecting string of length 9"):
        deserialize_bytes_tensor(b"\x09\0\0\0x")


def test_look_ups() -> None:
    config = {"input": [{"name": "A"}], "output": [{"name": "B"}]}
    assert get_input_config_by_name(config, "A") == {"name": "A"}
    assert get_output_config_by_name(config, "B") == {"name": "B"}
    assert get_input_config_by_name(config, "B") is None
    assert get_output_config_by_name({}, "B") is None
    assert not using_decoupled_model_transaction_policy(config)
    assert using_decoupled_model_transaction_policy(
        {"model_transaction_policy": {"decoupled": True}}
    )
    tensor = Tensor("A", FLOATS)
    assert get_input_tensor_by_name(nested(inputs=[tensor]), "A") is tensor
    assert get_input_tensor_by_name(nested(), "A") is None


# The worker's interpreter

IMPORTED_BY_A_WORKER = """
import sys
before = set(sys.modules)
import microkernel_python.backend
from microkernel_python import source
sys.path.append(str(source._STUB))
import triton_python_backend_utils, c_python_backend_utils
names = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(names - set(sys.stdlib_module_names)), "asyncio" in names)
"""


def test_a_worker_imports_the_standard_library_and_numpy_only() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED_BY_A_WORKER], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    own = ["microkernel", "microkernel_python", "numpy"]
    stubs = ["c_python_backend_utils", "triton_python_backend_utils"]
    assert done.stdout == f"{sorted(own + stubs)} False\n"


def test_the_native_module_says_what_it_lacks() -> None:
    code = (
        "import sys, microkernel_python.source as source\n"
        "sys.path.append(str(source._STUB))\n"
        "import c_python_backend_utils as c\n"
        "c.MemoryType.TRITONSERVER_MEMORY_CPU, c.InferenceTrace\n"
        "for name in ('shared_memory', 'nonsense'):\n"
        "    try: getattr(c, name)\n"
        "    except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "'c_python_backend_utils.shared_memory' is not offered by this version of the server",
        "'c_python_backend_utils.nonsense' does not exist",
    ]


def test_the_plugin_announces_the_backend() -> None:
    announced: list[microkernel.BackendType] = []
    register_backends(announced.append)
    (backend,) = announced
    assert (backend.name, backend.worker, backend.platform) == ("python", "instance", "")
    assert list(backend.filenames) == ["model.py"]
    module, _, name = backend.factory.partition(":")
    assert isinstance(getattr(importlib.import_module(module), name)(), microkernel.Backend)
