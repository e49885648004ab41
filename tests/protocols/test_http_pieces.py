"""Large JSON is read and written piece by piece: no call into C keeps other threads waiting."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from microkernel import DATA_TYPES, InferResponse, InvalidArgument, MicrokernelError, Tensor
from microkernel_http import document, elements, encode, generate, nesting, pieces
from microkernel_http.decode import ALL_JSON, Limits, decode

SMALL = 16


def told(read: Callable[[], Any]) -> str:
    try:
        return repr(read())
    except MicrokernelError as error:
        return f"{type(error).__name__}: {error}"


def both(raw: bytes, *, pairs: bool = False, piece: int = SMALL) -> tuple[str, str]:
    """What becomes of a text that is read whole, and in pieces."""
    answers = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", piece)
        for most in (len(raw), -1):
            patch.setattr(document, "LARGE", most)
            answers.append(told(lambda: document.parse(raw, pairs=pairs)))
    return answers[0], answers[1]


_words = st.sampled_from(
    ["1", "-2.5e3", "true", "null", "NaN", "-Infinity", "Inf", "-Inf", '"é\\n"', '"}],\\""', "  7 "]
)
_keys = st.sampled_from(['"a"', '"é"', '"long enough to fill a piece"', '""'])
_space = st.sampled_from(["", " ", "\n" * 20])


def _containers(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    member = st.tuples(_keys, _space, inner).map(lambda m: f"{m[0]}{m[1]}:{m[2]}")
    arrays = st.tuples(_space, st.lists(inner, max_size=6)).map(
        lambda a: f"[{a[0]}{f',{a[0]}'.join(a[1])}{a[0]}]"
    )
    return arrays | st.lists(member, max_size=5).map(lambda m: "{" + ",".join(m) + "}")


_texts = st.recursive(_words, _containers, max_leaves=40)
_damage = st.tuples(
    st.floats(0, 1),
    st.integers(0, 2),
    st.sampled_from([b"", *(bytes([c]) for c in b',[]{}:"x1 \xff'), b"Inf", b"\\x"]),
)


@given(_texts, st.lists(_damage, max_size=2), st.booleans(), st.sampled_from([13, SMALL, 40, 99]))
@example("[", [], False, SMALL)
@example("{", [], False, SMALL)
@example("[" + " " * 40 + ",1]", [], False, SMALL)
@example("[1" + " " * 40 + ",]", [], False, SMALL)
@example('{"a":1' + " " * 40 + ",}", [], False, SMALL)
@example("[1" + " " * 40 + "}", [], False, SMALL)
@example(" " * 40, [], False, SMALL)
@example("7" * 5000, [], False, SMALL)
@settings(max_examples=400, deadline=None)
def test_pieces_make_no_difference(
    text: str, damage: list[tuple[float, int, bytes]], pairs: bool, piece: int
) -> None:
    raw = text.encode()
    for share, size, put in damage:
        at = int(share * len(raw))
        raw = raw[:at] + put + raw[at + size :]
    whole, read = both(raw, pairs=pairs, piece=piece)
    assert read == whole


@pytest.mark.parametrize(
    "text",
    [
        '["\\ud83d\\ude00"]',
        '["' + "\\ud83d\\ude00" * 9 + '"]',
        '["' + "a" * 40 + "\\ud83d" + '\\ude00", 1]',
        '["' + "é" * 40 + '\\ud800"]',
        '["' + "\\\\" * 19 + '\\u00e9"]',
        '["\\ud800", "' + "b" * 40 + '"]',
        '["' + "a" * 40 + '\\u12"]',
        '["' + "a" * 40 + "\\x" + "a" * 40 + '"]',
        '["' + "a" * 40,
        '{"' + "a" * 40 + '": "' + "b" * 40 + '"}',
        '{"' + "a" * 40 + '" 1}',
    ],
)
def test_strings_longer_than_a_piece(text: str) -> None:
    whole, read = both(text.encode())
    assert read == whole


@pytest.mark.parametrize(("at", "piece"), [(0, 7), (6, 7), (7, 7), (20, 7), (20, 1 << 20)])
def test_where_a_text_is_no_utf8(monkeypatch: pytest.MonkeyPatch, at: int, piece: int) -> None:
    monkeypatch.setattr(pieces, "_CHECKED", piece)
    text = "é".encode() * 30
    assert pieces.utf8_fault(memoryview(text)) is None
    for wrong in (b"\xff", b"\xc3"):
        found = pieces.utf8_fault(memoryview(text[: 2 * at] + wrong + text[: 2 * at]))
        assert found == 2 * at


def body(data: str, shape: list[int], datatype: str) -> bytes:
    given = f'"datatype":"{datatype}","shape":{shape},"data":{data}'
    return f'{{"inputs":[{{"name":"X",{given}}}]}}'.encode()


@pytest.mark.parametrize(
    ("data", "shape", "datatype"),
    [
        (list(range(300)), [300], "INT32"),
        ([[[n, n + 0.5]] for n in range(100)], [100, 1, 2], "FP32"),
        ([list(range(100)), list(range(100))], [2, 100], "FP64"),
        ([*range(99), 1 << 63], [100], "UINT64"),
        ([*range(99), -1], [100], "UINT8"),
        ([*range(99), 1 << 63], [100], "INT64"),
        ([*range(99), 1 << 2000], [100], "FP32"),
        ([*range(99), 0.5], [100], "INT8"),
        ([*range(99), {}], [100], "INT8"),
        ([1] * 99, [100], "FP32"),
        (["é" * 30] * 40, [40], "BYTES"),
        ([*["a"] * 99, 1], [100], "BYTES"),
        ([[1]] * 30 + [2] * 30, [60], "FP32"),
        (json.loads("[" * 99 + "1" + ",1" * 90 + "]" * 99), [91], "FP32"),
        (json.loads("[" * 101 + "1" + ",1" * 90 + "]" * 101), [91], "FP32"),
        (json.loads("[1," + "[" * 100 + "1" + "]" * 101), [2], "FP32"),
    ],
)
def test_data_in_pieces_is_the_same(
    monkeypatch: pytest.MonkeyPatch, data: list[Any], shape: list[int], datatype: str
) -> None:
    raw = body(json.dumps(data), shape, datatype)

    def read() -> Any:
        (tensor,) = decode(raw, len(raw), "m", 1, Limits())[0].inputs
        return tensor.datatype, tensor.shape, bytes(tensor.data)

    whole = told(read)
    monkeypatch.setattr(document, "LARGE", -1)
    monkeypatch.setattr(pieces, "PIECE", SMALL)
    for module in (elements, nesting, pieces):
        monkeypatch.setattr(module, "STEP", 7)
    assert told(read) == whole


@pytest.mark.parametrize(
    "made",
    [
        lambda many: "{" + ",".join(f'"k{n}":1' for n in range(many)) + "}",
        lambda many: '{"inputs":[' + ",".join(["{}"] * many) + "]}",
        lambda many: '{"x":[' + ",".join(["[]"] * many) + "]}",
        lambda many: '{"data":[' + ",".join(["{}"] * many) + "]}",
    ],
)
@pytest.mark.parametrize("pairs", [False, True])
def test_more_than_a_request_can_need_is_refused(made: Callable[[int], str], pairs: bool) -> None:
    blank = b" " * document.LARGE
    assert document.parse(blank + made(pieces.MOST - 9).encode(), pairs=pairs)
    with pytest.raises(InvalidArgument, match="more than 10000 objects, arrays and members"):
        document.parse(blank + made(pieces.MOST + 1).encode(), pairs=pairs)


def test_no_call_reads_much(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, load = [], document._load

    def watched(text: str, pairs: bool) -> Any:
        lengths.append(len(text))
        return load(text, pairs)

    monkeypatch.setattr(document, "_load", watched)
    rows = json.dumps([[0.25, 1.5]] * 100_000)
    raw = body(rows, [100_000, 2], "FP32")
    (tensor,) = decode(raw, len(raw), "m", 1, Limits())[0].inputs
    assert tensor.as_numpy().sum() == 175_000
    assert max(lengths) <= pieces.PIECE + 2
    assert sum(lengths) < len(raw) + 2 * len(lengths)


@pytest.mark.parametrize("datatype", ["FP32", "INT64", "BOOL", "BYTES"])
@pytest.mark.parametrize("count", [nesting.STEP, 3 * nesting.STEP + 5])
def test_no_call_writes_much(monkeypatch: pytest.MonkeyPatch, datatype: str, count: int) -> None:
    sizes, dumps = [], encode._dumps

    def watched(value: Any) -> str:
        sizes.append(len(value) if type(value) is list else 1)
        return dumps(value)

    monkeypatch.setattr(encode, "_dumps", watched)
    kind = DATA_TYPES[datatype]
    values = [str(n) for n in range(count)] if datatype == "BYTES" else [1] * count
    raw = elements._strings(values) if datatype == "BYTES" else bytes(np.ones(count, kind.numpy))
    response = InferResponse("m", 1, "", (Tensor("Y", kind, (count,), raw),))
    (text,) = encode.encode(response, ALL_JSON).buffers
    assert json.loads(bytes(text))["outputs"][0]["data"] == values
    flat = generate.from_response(response)
    assert json.loads(encode.flat_to_bytes(flat))["Y"] == values
    assert max(sizes) <= nesting.STEP
