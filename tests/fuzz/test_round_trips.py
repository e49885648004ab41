"""What the official client writes is decoded to the arrays it was given, and what is encoded the
client reads as it was; over both protocols, without a socket between."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from microkernel import DATA_TYPES, InferRequest, InferResponse, InvalidArgument, Tensor
from microkernel_grpc import encode as grpc_encode
from microkernel_grpc.decode import decode as grpc_decode
from microkernel_grpc.decode import parse
from microkernel_http.decode import HEADER_LENGTH, Limits, OutputForms
from microkernel_http.decode import decode as http_decode
from microkernel_http.encode import encode as http_encode

http = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing")
grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is missing")

from tritonclient.grpc import service_pb2  # noqa: E402 - after the checks above
from tritonclient.grpc._utils import _get_inference_request  # noqa: E402 - has no public name

NOT_JSON = ("FP16", "BF16")
RESERVED = {
    *("sequence_id", "sequence_start", "sequence_end", "priority", "timeout"),
    *("headers", "binary_data_output"),
}
LARGE = 3000
"""So many doubles are cut out of a message by hand."""
few = settings(max_examples=60, deadline=None)
text = st.text(st.characters(codec="utf-8"), max_size=8)
sides = st.one_of(st.integers(0, 3), st.integers(0, 3), st.just(LARGE))
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple) | st.tuples(sides)
element = st.binary(max_size=6)
as_text = st.builds(str.encode, text)
custom: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    text.filter(lambda key: key not in RESERVED and not key.startswith("triton_")),
    st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), text),
    max_size=3,
)


@st.composite
def arrays_of(
    draw: st.DrawFn, *, as_json: bool = False, but: str = ""
) -> tuple[str, np.ndarray[Any, Any]]:
    """A data type other than `but` and an array of it; one that JSON can carry where it is to be
    sent so, which is none without dimensions: Triton reads no data of those."""
    left_out = (but, *NOT_JSON) if as_json else (but,)
    name = draw(st.sampled_from([kind for kind in DATA_TYPES if kind not in left_out]))
    shape = draw(shapes.filter(bool) if as_json else shapes)
    if name == "BYTES":
        made = np.empty(math.prod(shape), np.object_)
        some = draw(st.lists(as_text if as_json else element, min_size=1, max_size=9))
        made[:] = list(itertools.islice(itertools.cycle(some), len(made)))
        return name, made.reshape(shape)
    kind = np.dtype("<f4") if name == "BF16" else DATA_TYPES[name].numpy
    assert kind is not None
    return name, draw(arrays.arrays(kind, shape, fill=arrays.from_dtype(kind)))


def inputs_of(client: Any, made: Mapping[str, tuple[str, Any]], binary: Mapping[str, bool]) -> Any:
    found = []
    for name, (kind, array) in made.items():
        entry = client.InferInput(name, list(array.shape), kind)
        if client is http:
            entry.set_data_from_numpy(array, binary_data=binary.get(name, True))
        else:
            entry.set_data_from_numpy(array)
        found.append(entry)
    return found


def same(tensor: Tensor, kind: str, array: Any) -> bool:
    """Whether a tensor holds an array."""
    if tensor.datatype.name != kind or tuple(tensor.shape) != array.shape:
        return False
    if kind == "BYTES":
        return bool(tensor.as_numpy().tolist() == array.tolist())
    return equal(tensor.as_numpy(), array)


def equal(one: Any, other: Any) -> bool:
    """Whether arrays hold the same values; which NaN it is does not survive a text."""
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


@st.composite
def requests(draw: st.DrawFn, *, over_http: bool) -> tuple[dict[str, Any], dict[str, bool]]:
    """Inputs by name, and which of them are sent as raw bytes. No BF16: newer clients take it of
    another package only."""
    names = draw(st.lists(text.filter(bool), min_size=1, max_size=3, unique=True))
    binary = {name: draw(st.booleans()) or not over_http for name in names}
    made = {name: draw(arrays_of(as_json=not binary[name], but="BF16")) for name in names}
    return made, binary


about = st.fixed_dictionaries(
    {
        "request_id": text,
        "sequence_id": st.one_of(st.integers(0, 2**63 - 1), text),
        "sequence_start": st.booleans(),
        "sequence_end": st.booleans(),
        "priority": st.integers(0, 2**63 - 1),
        "timeout": st.one_of(st.none(), st.integers(0, 2**63 - 1)),
        "parameters": custom,
    }
)


def check(request: InferRequest, made: Mapping[str, tuple[str, Any]], said: Any) -> None:
    for tensor, (name, (kind, array)) in zip(request.inputs, made.items(), strict=True):
        assert tensor.name == name
        assert same(tensor, kind, array)
    assert request.id == said["request_id"]
    assert request.priority == said["priority"]
    assert request.timeout_us == (said["timeout"] or 0)
    assert request.sequence.id in (said["sequence_id"], said["sequence_id"] or 0)
    if request.sequence.id:
        assert request.sequence.start is said["sequence_start"]
        assert request.sequence.end is said["sequence_end"]
    assert dict(request.parameters) == said["parameters"]


@given(requests(over_http=True), about)
@few
def test_a_request_of_the_http_client(made: tuple[Any, Any], said: dict[str, Any]) -> None:
    tensors, binary = made
    client = http.InferenceServerClient
    body, length = client.generate_request_body(inputs_of(http, tensors, binary), **said)
    size = len(body) if length is None else length
    request, forms = http_decode(bytes(body), size, "m", -1, Limits())
    check(request, tensors, said)
    assert forms.is_binary("any")


@given(requests(over_http=False), about)
@few
def test_a_request_of_the_grpc_client(made: tuple[Any, Any], said: dict[str, Any]) -> None:
    tensors, _ = made
    asked = _get_inference_request(
        model_name="m", model_version="", inputs=inputs_of(grpc, tensors, {}), outputs=None, **said
    )
    check(grpc_decode(*parse(asked.SerializeToString())), tensors, said)


@st.composite
def responses(draw: st.DrawFn) -> tuple[InferResponse, dict[str, tuple[str, Any]]]:
    """A response, and the arrays in it by the outputs' names."""
    names = draw(st.lists(text.filter(bool), max_size=3, unique=True))
    made = {name: draw(arrays_of()) for name in names}
    outputs = tuple(tensor_of(name, kind, array) for name, (kind, array) in made.items())
    identity, version = draw(text), draw(st.integers(1, 2**62))
    return InferResponse("m", version, identity, outputs, draw(custom)), made


def tensor_of(name: str, kind: str, array: Any) -> Tensor:
    if kind != "BF16":
        return Tensor.from_numpy(name, array)
    upper = np.ascontiguousarray(array).view("<u2").reshape(-1, 2)[:, 1]
    return Tensor(name, DATA_TYPES[kind], array.shape, upper.tobytes())


def check_result(result: Any, made: Mapping[str, tuple[str, Any]]) -> None:
    for name, (kind, array) in made.items():
        read = result.as_numpy(name)
        assert read.shape == array.shape
        if kind == "BF16":
            cut = (array.view("<u4") & 0xFFFF0000).view("<f4")
            assert equal(read.astype(np.float32), cut)
        elif kind == "BYTES":
            assert [as_bytes(each) for each in read.reshape(-1)] == array.reshape(-1).tolist()
        else:
            assert equal(read, array)


def as_bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value


@given(responses(), st.data())
@few
def test_a_response_to_the_http_client(made: tuple[Any, Any], data: st.DataObject) -> None:
    response, outputs = made
    kept = [n for n, (k, a) in outputs.items() if k in NOT_JSON or _not_text(k, a)]
    forms = OutputForms(binary=[n for n in outputs if n in kept or data.draw(st.booleans())])
    encoded = http_encode(response, forms)
    length = encoded.headers.get(HEADER_LENGTH)
    body = b"".join(encoded.buffers)
    size = None if length is None else int(length)
    result = http.InferenceServerClient.parse_response_body(body, header_length=size)
    told = result.get_response()
    assert told.get("id", "") == response.id
    assert told["model_version"] == str(response.version)
    assert told.get("parameters", {}) == dict(response.parameters)
    check_result(result, outputs)


def _not_text(kind: str, array: Any) -> bool:
    """Whether there are bytes in an array that JSON cannot carry to this client."""
    return kind == "BYTES" and any(not _is_utf8(each) for each in array.reshape(-1))


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(responses())
@few
def test_a_response_to_the_grpc_client(made: tuple[InferResponse, Any]) -> None:
    response, outputs = made
    read = service_pb2.ModelInferResponse()
    read.ParseFromString(grpc_encode.encode(response))
    result = grpc.InferResult(read)
    assert read.id == response.id
    assert read.model_version == str(response.version)
    check_result(result, outputs)
    streamed = service_pb2.ModelStreamInferResponse()
    streamed.ParseFromString(grpc_encode.encode_streamed(response))
    assert streamed.infer_response.parameters["triton_final_response"].bool_param
    del streamed.infer_response.parameters["triton_final_response"]
    assert streamed.infer_response == read


@pytest.mark.parametrize("kind", NOT_JSON)
def test_what_is_no_json_is_refused_both_ways(kind: str) -> None:
    output = Tensor("x", DATA_TYPES[kind], (1,), bytes(2))
    with pytest.raises(InvalidArgument, match=f"sending {kind} data via JSON is not supported"):
        http_encode(InferResponse("m", 1, "", (output,)), OutputForms())
    body = b'{"inputs":[{"name":"x","datatype":"%s","shape":[1],"data":[1]}]}' % kind.encode()
    with pytest.raises(InvalidArgument, match=f"receiving {kind} data via JSON is not supported"):
        http_decode(body, len(body), "m", -1, Limits())
