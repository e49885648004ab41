"""Requests, batches and settings: the plain data that travels through the server."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from microkernel.batch import Batch
from microkernel.errors import Internal, InvalidArgument
from microkernel.options import Option, build, option, options_of
from microkernel.request import LATEST, InferRequest, parse_version
from microkernel.tensor import BYTES, INT32, Tensor, encode_bytes


def request_of(*values: int, request_id: str = "") -> InferRequest:
    tensor = Tensor.from_numpy("A", np.array(values, dtype=np.int32))
    return InferRequest("m", (tensor,), version=3, id=request_id)


def test_an_input_is_found_by_its_name() -> None:
    request = request_of(1)
    assert request.input("A") is request.inputs[0]
    assert request.input("B") is None


@pytest.mark.parametrize(
    ("request_id", "tag"),
    [("", "[request id: <id_unknown>] "), ("7", "[request id: 7] ")],
)
def test_messages_start_with_the_request_s_id(request_id: str, tag: str) -> None:
    assert request_of(1, request_id=request_id).tag() == tag


@pytest.mark.parametrize(
    ("text", "version"),
    [("", LATEST), ("-1", LATEST), ("0", 0), ("12", 12), ("9223372036854775807", 2**63 - 1)],
)
def test_versions_are_read(text: str, version: int) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize("text", ["a", "1.0", "-2", "9223372036854775808", "9" * 5000])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_version(text)
    assert str(caught.value) == (
        f"failed to get model version from specified version string '{text}' (details: stol), "
        "version should be an integral value > 0"
    )


def batch_of(*sizes: int) -> Batch:
    requests = [request_of(*range(size), request_id=f"r{i}") for i, size in enumerate(sizes)]
    return Batch(requests, {}, sizes)


def test_a_batch_is_the_sequence_of_its_requests() -> None:
    batch = batch_of(1, 2)
    assert (len(batch), batch.size) == (2, 3)
    assert list(batch) == [batch[0], batch[1]] == batch[:]
    assert batch[1] in batch


def test_outputs_are_cut_along_their_first_dimension_without_a_copy() -> None:
    values = np.arange(12, dtype=np.int32).reshape(6, 2)
    responses = batch_of(1, 3, 2).split([Tensor.from_numpy("B", values)])
    parts = [response.outputs[0].as_numpy() for response in responses]
    assert [part.tolist() for part in parts] == [v.tolist() for v in np.split(values, [1, 4])]
    assert all(np.shares_memory(part, values) for part in parts)
    assert [(r.model_name, r.version, r.id) for r in responses] == [
        ("m", 3, "r0"),
        ("m", 3, "r1"),
        ("m", 3, "r2"),
    ]


def test_outputs_of_bytes_are_cut_at_their_elements() -> None:
    output = Tensor("B", BYTES, (3, 1), encode_bytes(["a", "bcd", ""]))
    responses = batch_of(1, 2).split([output])
    assert [r.outputs[0].as_numpy().tolist() for r in responses] == [
        [[b"a"]],
        [[b"bcd"], [b""]],
    ]


def test_surplus_rows_are_dropped() -> None:
    output = Tensor.from_numpy("B", np.arange(4, dtype=np.int32))
    responses = batch_of(1, 2).split([output])
    assert [r.outputs[0].as_numpy().tolist() for r in responses] == [[0], [1, 2]]


def test_a_request_may_have_no_rows() -> None:
    output = Tensor.from_numpy("B", np.arange(2, dtype=np.int32))
    responses = batch_of(0, 2).split([output])
    assert [r.outputs[0].shape for r in responses] == [(0,), (2,)]


def test_a_batch_of_none_but_empty_requests_has_empty_outputs() -> None:
    responses = batch_of(0, 0).split([Tensor("B", INT32, (0, 2), b"")])
    assert [r.outputs[0].shape for r in responses] == [(0, 2), (0, 2)]


@pytest.mark.parametrize("shape", [(), (2,)])
def test_too_few_rows_fail_the_batch(shape: tuple[int, ...]) -> None:
    output = Tensor.from_numpy("B", np.zeros(shape, dtype=np.int32))
    with pytest.raises(Internal, match=r"output tensor 'B' of shape .* over a batch of 3"):
        batch_of(1, 2).split([output])


def test_the_outputs_of_a_single_request_stay_as_they_are() -> None:
    output = Tensor.from_numpy("B", np.arange(3, dtype=np.int32))
    (response,) = batch_of(1).split([output])
    assert response.outputs == (output,)


@pytest.mark.parametrize("sizes", [(1,), (1, 1)])
def test_a_response_holds_every_output_in_order(sizes: tuple[int, ...]) -> None:
    rows = np.zeros(sum(sizes), dtype=np.int32)
    outputs = [Tensor.from_numpy("B", rows), Tensor.from_numpy("C", rows)]
    for response in batch_of(*sizes).split(outputs):
        assert [output.name for output in response.outputs] == ["B", "C"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of every kind."""

    port: int = option(8000, about="where to listen", flag="port")
    share: float = option(0.5, about="how much")
    secure: bool = option(False, about="whether")
    level: str = option("info", about="how loud", choices=("info", "debug"))
    names: tuple[str, ...] = option((), about="which", many=True)


def test_options_tell_type_flag_and_default() -> None:
    known = options_of(Settings)
    assert list(known) == ["port", "share", "secure", "level", "names"]
    assert known["port"] == (int, Option("port", "where to listen"), 8000)
    assert known["names"] == (tuple, Option("", "which", many=True), ())


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({}, Settings()),
        ({"port": 1, "secure": True, "level": "debug"}, Settings(1, 0.5, True, "debug")),
        ({"share": 1}, Settings(share=1.0)),
        ({"names": ["a", "b"]}, Settings(names=("a", "b"))),
    ],
)
def test_settings_are_built(values: dict[str, Any], wanted: Settings) -> None:
    built = build(Settings, values, "plugins.toml")
    assert built == wanted
    assert isinstance(built.share, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"prot": 1},
            "plugins.toml: unknown key 'prot'; it knows level, names, port, secure, share",
        ),
        ({"port": "1"}, "plugins.toml: 'port' must be of type int, got '1'"),
        ({"port": True}, "plugins.toml: 'port' must be of type int, got True"),
        ({"secure": 1}, "plugins.toml: 'secure' must be of type bool, got 1"),
        ({"share": "x"}, "plugins.toml: 'share' must be of type float, got 'x'"),
        ({"names": "a"}, "plugins.toml: 'names' must be of type tuple, got 'a'"),
        ({"level": "loud"}, "plugins.toml: 'level' must be one of info, debug, got 'loud'"),
    ],
)
def test_a_bad_setting_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        build(Settings, values, "plugins.toml")
    assert str(caught.value) == message
