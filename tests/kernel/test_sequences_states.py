"""States of sequences: what the model is given, what it leaves, and what clients see of it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sequence_harness import Served, request_of, sequence_config, serve

from microkernel import (
    InferRequest,
    Internal,
    InvalidArgument,
    ModelConfig,
    ModelOutput,
    Tensor,
)
from microkernel.config.model import InitialState, SequenceBatching, State, StrategyOldest
from microkernel.models.version import ModelFiles
from microkernel.repository.initial_states import read_initial_states
from microkernel.request import Answer
from microkernel.tensor import BYTES, encode_bytes

pytestmark = pytest.mark.virtual_time

SUM = State("SUM_IN", "SUM_OUT", "TYPE_INT32", (1,))


def config_of(
    *states: State, largest: int = 2, outputs: Sequence[str] = ("Y",), **more: Any
) -> ModelConfig:
    batching = SequenceBatching(state=states or (SUM,), **more)
    tensors = tuple(ModelOutput(name, "TYPE_INT32", (1,)) for name in outputs)
    return sequence_config(batching, largest=largest, output=tensors)


def value(request: InferRequest, name: str) -> Any:
    tensor = request.input(name)
    assert tensor is not None
    return tensor.as_numpy()


def accumulate(request: InferRequest) -> Answer:
    """Y is the sum of X so far."""
    total = value(request, "SUM_IN") + value(request, "X")
    outputs = (Tensor.from_numpy("Y", total), Tensor.from_numpy("SUM_OUT", total))
    wanted = [t for t in outputs if not request.outputs or t.name in request.outputs]
    return Answer(tuple(wanted))


def sums(served: Served) -> dict[str, int]:
    return {name: int(r.outputs[0].as_numpy().item()) for name, r in served.responses.items()}


@pytest.mark.parametrize("oldest", [None, StrategyOldest(max_candidate_sequences=4)])
async def test_an_accumulator(fake_worker: Any, oldest: StrategyOldest | None) -> None:
    """The harness sends the length of each request's name."""
    served = await serve(config_of(oldest=oldest), fake_worker(1))
    served.reply = accumulate
    await served.play(
        *((0, "A", "S"), (0, "B", "S"), (0, "AA", ""), (0, "BBB", ""), (0, "C", "SE")),
        *((1, "AAA", ""), (9, "AAAAA", "E"), (20, "AAAA", "S"), (21, "AAAAAA", "S")),
    )
    assert sums(served) == {
        "A": 1,
        "AA": 3,
        "AAA": 6,
        "AAAAA": 11,
        "B": 1,
        "BBB": 4,
        "C": 1,
        "AAAA": 4,
        "AAAAAA": 6,  # START begins anew, in the middle of a sequence, too
    }
    assert [[t.name for t in r.outputs] for r in served.responses.values()] == [["Y"]] * 9


@pytest.mark.parametrize(
    ("asked", "outputs", "seen"),
    [
        ((), ("Y",), ["Y"]),
        (("Y",), ("Y",), ["Y"]),
        ((), ("Y", "SUM_OUT"), ["Y", "SUM_OUT"]),
        (("Y",), ("Y", "SUM_OUT"), ["Y"]),
        (("SUM_OUT",), ("Y", "SUM_OUT"), ["SUM_OUT"]),
    ],
)
async def test_which_outputs_clients_see(
    fake_worker: Any, asked: tuple[str, ...], outputs: tuple[str, ...], seen: list[str]
) -> None:
    served = await serve(config_of(outputs=outputs), fake_worker(1))
    served.reply = accumulate
    await served.ask(request_of("A", "S", outputs=asked))
    await served.ask(request_of("AA", "", outputs=asked))
    assert [t.name for t in served.responses["AA"].outputs] == seen
    assert sums(served) == {"A": 1, "AA": 3}


async def test_a_state_that_is_no_output_cannot_be_asked_for(fake_worker: Any) -> None:
    served = await serve(config_of(), fake_worker(1))
    await served.ask(request_of("A", "S", outputs=("SUM_OUT",)))
    error = served.errors["A"]
    assert isinstance(error, InvalidArgument)
    assert str(error) == "unexpected inference output 'SUM_OUT' for model 'm'"


async def test_a_state_that_the_model_does_not_give_stays(fake_worker: Any) -> None:
    served = await serve(config_of(), fake_worker(1))

    def lazily(request: InferRequest) -> Any:
        if request.id == "AAA":
            return Internal("not today")
        answer = accumulate(request)
        return Answer(answer.outputs[: 1 if request.id == "AA" else 2])

    served.reply = lazily
    await served.play((0, "A", "S"), (1, "AA", ""), (2, "AAA", ""), (3, "AAAA", ""))
    assert sums(served) == {"A": 1, "AA": 3, "AAAA": 5}
    assert list(served.errors) == ["AAA"]


async def test_a_state_is_a_copy(fake_worker: Any) -> None:
    served = await serve(config_of(), fake_worker(1))
    memory = bytearray(np.array([[5]], np.int32).tobytes())

    def lend(request: InferRequest) -> Answer:
        like = request.inputs[0]
        return Answer((Tensor("SUM_OUT", like.datatype, (1, 1), memoryview(memory)),))

    served.reply = lend
    await served.ask(request_of("A", "S"))
    memory[:] = bytes(4)  # as when the next batch is written there
    await served.ask(request_of("AA", ""))
    assert [value(row, "SUM_IN").tolist() for row in served.rows] == [[[0]], [[5]]]


async def test_states_of_different_shapes_do_not_share_a_batch(fake_worker: Any) -> None:
    history = State("PAST", "PRESENT", "TYPE_INT32", (-1,))
    served = await serve(config_of(history), fake_worker(1))

    def remember(request: InferRequest) -> Answer:
        grown = np.concatenate([value(request, "PAST"), value(request, "X")], axis=1)
        return Answer((Tensor.from_numpy("PRESENT", grown),))

    served.reply = remember
    await served.play(
        (0, "A", "S"), (0, "AA", ""), (0, "AAA", ""), (0.5, "B", "S"), (0.5, "BB", "")
    )
    assert [names for _, names in served.batches] == [
        *(["A"], ["AA", ""], ["AAA", ""]),
        *(["", "B"], ["", "BB"]),
    ]
    shapes = [value(row, "PAST").shape for row in served.rows]
    assert shapes == [(1, 1), (1, 2), (1, 2), (1, 3), (1, 3), (1, 1), (1, 1), (1, 2), (1, 2)]


@pytest.mark.parametrize(
    ("answer", "shape"),
    [(np.zeros((1, 2), np.int32), [1, 2]), (np.zeros((1, 1), np.float32), [1, 1])],
)
async def test_a_state_that_is_not_as_configured_is_an_error(
    fake_worker: Any, answer: Any, shape: list[int]
) -> None:
    served = await serve(config_of(), fake_worker(1))
    served.reply = lambda _: Answer((Tensor.from_numpy("SUM_OUT", answer),))
    await served.ask(request_of("A", "S"))
    given = Tensor.from_numpy("", answer).datatype.name
    assert str(served.errors["A"]) == (
        f"state 'SUM_OUT' should be INT32 of shape [1, 1], the model gave {given} of shape {shape}"
    )
    served.reply = accumulate
    await served.ask(request_of("AA", ""))
    assert sums(served) == {"AA": 2}


@pytest.mark.parametrize(
    ("state", "largest", "shape", "data"),
    [
        (SUM, 2, (1, 1), bytes(4)),
        (SUM, 0, (1,), bytes(4)),
        (State("I", "O", "TYPE_FP16", (3, -1)), 2, (1, 3, 1), bytes(6)),
        (State("I", "O", "TYPE_STRING", (2,)), 2, (1, 2), encode_bytes([b"", b""])),
    ],
)
async def test_states_begin_as_zeros(
    fake_worker: Any, state: State, largest: int, shape: tuple[int, ...], data: bytes
) -> None:
    config = config_of(state, largest=largest)
    served = await serve(config, fake_worker(1))
    request = request_of("A", "S")
    if not largest:
        request.inputs = (Tensor.from_numpy("X", np.zeros(1, np.int32)),)
    await served.ask(request)
    tensor = served.rows[0].inputs[-1]
    assert (tensor.shape, bytes(tensor.data)) == (shape, data)


def initial(datatype: str, dims: tuple[int, ...], file: str | None = None) -> InitialState:
    zeros = True if file is None else None
    return InitialState(datatype, dims, zero_data=zeros, data_file=file, name="first")


def state_from(datatype: str, dims: tuple[int, ...], file: str | None = None) -> State:
    given = initial(datatype, dims, file)
    return State("I", "O", datatype, tuple(-1 for _ in dims), initial_state=(given,))


@pytest.mark.parametrize(
    ("state", "written", "shape", "data"),
    [
        (state_from("TYPE_INT32", (2, 3)), b"", (1, 2, 3), bytes(24)),
        (state_from("TYPE_STRING", (2,)), b"", (1, 2), bytes(8)),
        (state_from("TYPE_INT32", (2,), "s"), b"12345678rest", (1, 2), b"12345678"),
        (state_from("TYPE_STRING", (1,), "s"), encode_bytes([b"x"]), (1, 1), encode_bytes([b"x"])),
    ],
)
async def test_initial_states(
    fake_worker: Any,
    tmp_path: Path,
    state: State,
    written: bytes,
    shape: tuple[int, ...],
    data: bytes,
) -> None:
    (tmp_path / "initial_state").mkdir()
    (tmp_path / "initial_state" / "s").write_bytes(written)
    config = config_of(state)
    files = ModelFiles(initial_states=read_initial_states(config, tmp_path))
    served = await serve(config, fake_worker(1), files=files)
    await served.play((0, "A", "S"))
    tensor = served.rows[0].inputs[-1]
    assert (tensor.name, tensor.shape, bytes(tensor.data)) == ("I", shape, data)


@pytest.mark.parametrize(
    ("state", "written", "text"),
    [
        (
            state_from("TYPE_INT32", (2,), "s"),
            b"1234567",
            "initial state 'first' of state 'I' expects 8 bytes, but the data provided in 's' "
            "has 7",
        ),
        (
            state_from("TYPE_STRING", (2,), "s"),
            encode_bytes([b"x"]),
            "initial state 'first' of state 'I' should hold 2 strings, 's' holds 1",
        ),
        (
            state_from("TYPE_INT32", (2,), "none"),
            b"",
            "file 'none' of the initial state of 'I' cannot be read: No such file or directory",
        ),
        (
            state_from("TYPE_INT32", (2,), "../config.pbtxt"),
            b"",
            "file '../config.pbtxt' of the initial state of 'I' lies outside the folder '{}'",
        ),
    ],
)
def test_initial_states_that_cannot_be_read(
    tmp_path: Path, state: State, written: bytes, text: str
) -> None:
    folder = tmp_path / "initial_state"
    folder.mkdir()
    (folder / "s").write_bytes(written)
    with pytest.raises(InvalidArgument) as raised:
        read_initial_states(config_of(state), tmp_path)
    assert str(raised.value) == text.format(folder)


async def test_null_rows_have_blank_inputs_and_states(fake_worker: Any) -> None:
    words = State("WORDS", "WORDS_OUT", "TYPE_STRING", (1,))
    served = await serve(config_of(SUM, words), fake_worker(1))

    def keep(request: InferRequest) -> Answer:
        text = Tensor("WORDS_OUT", BYTES, (1, 1), encode_bytes([b"secret"]))
        return Answer((*accumulate(request).outputs, text))

    served.reply = keep
    await served.play((0, "A", "S"), (0, "B", "S"), (2, "BB", ""))
    assert [row.id for row in served.rows] == ["A", "", "B", "", "BB"]
    assert value(served.rows[4], "WORDS").tolist() == [[b"secret"]]
    assert [bytes(t.data) for t in served.rows[3].inputs] == [bytes(4), bytes(4), bytes(4)]


async def test_a_new_sequence_in_a_slot_finds_nothing_of_the_one_before(fake_worker: Any) -> None:
    served = await serve(config_of(largest=1), fake_worker(1))
    served.reply = accumulate
    calls = [("A", "S"), ("AA", "E"), ("B", "S"), ("BB", "E")]
    await asyncio.gather(*(served.ask(request_of(*entry)) for entry in calls))
    assert sums(served) == {"A": 1, "AA": 3, "B": 1, "BB": 3}
