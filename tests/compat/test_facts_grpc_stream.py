"""Streams of infer requests over gRPC."""

import itertools
import struct
from typing import Any

import pytest
from facts_grpc import (
    PATIENCE,
    Code,
    Infer,
    echo,
    many,
    pair,
    parameter,
    refused,
    service_pb2,
)


def converse(stub: Any, *requests: Any, **options: Any) -> list[Any]:
    """The messages of a stream that is closed after these requests."""
    return list(stub.ModelStreamInfer(iter(requests), timeout=PATIENCE, **options))


def final(message: Any) -> bool:
    """The flag of a response that inference produced."""
    return bool(message.infer_response.parameters["triton_final_response"].bool_param)


def test_a_stream_of_ordinary_models_is_answered_in_order(stub: Any) -> None:
    requests = [pair(n, id=str(n)) if n % 2 else echo(id=str(n)) for n in range(1, 21)]
    found = converse(stub, *requests)
    assert [message.infer_response.id for message in found] == [r.id for r in requests]
    assert all(final(message) and not message.error_message for message in found)


def test_failures_do_not_end_a_stream(stub: Any) -> None:
    requests = [
        *(Infer(model_name="absent", id="lookup"), pair(-1, id="inference", model_version="1")),
        *(echo(bytes(4), id="check"), echo(id="good")),
    ]
    lookup, inference, check, good = converse(stub, *requests)
    assert "Request for unknown model: 'absent' is not found" in lookup.error_message
    assert inference.error_message == "the model refuses"
    assert "input byte size mismatch" in check.error_message
    assert good.error_message == ""
    # What fails before inference is answered with its id only.
    for message, name in ((lookup, "lookup"), (check, "check")):
        expected = service_pb2.ModelInferResponse(id=name)
        assert message.infer_response == expected
    answer = inference.infer_response
    assert (answer.id, answer.model_name, answer.model_version) == ("inference", "pair", "1")
    assert final(inference)
    assert not answer.outputs


def test_a_decoupled_model_answers_as_often_as_it_wants(stub: Any) -> None:
    found = converse(stub, many(3, id="three"), many(0, id="none"))
    assert [message.infer_response.id for message in found] == ["three"] * 3
    values = [struct.unpack("<i", m.infer_response.raw_output_contents[0])[0] for m in found]
    assert values == [0, 1, 2]
    # The last one was sent without the flag; an empty end is not told unless asked for.
    assert not any(final(message) for message in found)


@pytest.mark.parametrize("count", [0, 2])
def test_an_empty_end_can_be_asked_for(stub: Any, count: int) -> None:
    request = parameter(many(count, id="i"), "triton_enable_empty_final_response", bool_param=True)
    *found, last = converse(stub, request)
    assert [final(message) for message in found] == [False] * count
    assert final(last)
    answer = last.infer_response
    assert (answer.id, answer.model_name, answer.model_version) == ("i", "many", "")
    assert not answer.outputs


def test_ordinary_and_decoupled_models_share_a_stream(stub: Any) -> None:
    found = converse(stub, many(2, id="d"), echo(id="o"), many(1, id="e"))
    ids = sorted(message.infer_response.id for message in found)
    assert ids == ["d", "d", "e", "o"]


def test_strict_mode_ends_the_stream_with_the_first_error(stub: Any) -> None:
    metadata = (("triton_grpc_error", "true"),)
    endless = itertools.chain([pair(-3)], iter(lambda: echo(), None))
    call = stub.ModelStreamInfer(endless, timeout=PATIENCE, metadata=metadata)
    refused(lambda: list(call), Code.NOT_FOUND, "the model refuses")
    # What fails before inference does not end it.
    found = converse(stub, Infer(model_name="absent"), echo(id="good"), metadata=metadata)
    assert found[0].error_message
    assert found[1].infer_response.id == "good"
