"""Who is taken into a sequence, and what ends one: identity, slots, timeouts, cancelled callers,
instances that come and go, and the server's end."""

import asyncio
from typing import Any

import pytest
from sequence_harness import Served, request_of, sequence_config, serve
from structlog.testing import capture_logs

from microkernel import Cancelled, InvalidArgument, MicrokernelError, ModelInput, Unavailable
from microkernel.config.model import SequenceBatching, StrategyDirect, StrategyOldest
from microkernel.stats import Failure

pytestmark = pytest.mark.virtual_time

STRATEGIES = pytest.mark.parametrize(
    "batching",
    [
        SequenceBatching(direct=StrategyDirect()),
        SequenceBatching(oldest=StrategyOldest(max_candidate_sequences=1)),
    ],
    ids=["direct", "oldest"],
)
START = (
    "inference request for sequence {} to model 'm' must specify the START flag on the first "
    "request of the sequence"
)


async def one_slot(batching: SequenceBatching, worker: Any, **options: Any) -> Served:
    """A model with one slot in all, whichever the strategy."""
    return await serve(sequence_config(batching, largest=1, **options), worker)


def started(name: str) -> tuple[type[MicrokernelError], str]:
    """What a request is told that needs START."""
    return InvalidArgument, START.format(ord(name[0]) - ord("A") + 1)


def raised(served: Served) -> dict[str, tuple[type[MicrokernelError], str]]:
    return {name: (type(error), str(error)) for name, error in served.errors.items()}


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (
            request_of("A1", "S", sequence=0),
            "inference request to model 'm' must specify a non-zero or non-empty correlation ID",
        ),
        (
            request_of("A1", "S", sequence=""),
            "inference request to model 'm' must specify a non-zero or non-empty correlation ID",
        ),
        (request_of("A1"), START.format(1)),
        (request_of("A1", "E", sequence="x"), START.format("x")),
    ],
)
async def test_requests_that_belong_to_no_sequence(
    fake_worker: Any, request_: Any, text: str
) -> None:
    served = await serve(sequence_config(), fake_worker())
    await served.ask(request_)
    assert raised(served) == {"A1": (InvalidArgument, text)}
    stats = served.model.stats
    assert (stats.fail.count, stats.pending) == (0, 0)


async def test_a_request_of_two_rows_is_refused(fake_worker: Any) -> None:
    served = await serve(sequence_config(), fake_worker())
    request = request_of("A1", "S")
    rows = request.inputs[0].as_numpy().repeat(2, axis=0)
    request.inputs = (request.inputs[0].from_numpy("X", rows),)
    await served.ask(request)
    text = (
        "inference request to model 'm' must specify batch-size 1 due to requirements of sequence "
        "batcher"
    )
    assert raised(served) == {"A1": (InvalidArgument, text)}


async def test_a_number_and_a_text_are_two_sequences(fake_worker: Any) -> None:
    served = await serve(sequence_config(), fake_worker())
    names = (("A1", 7, "S"), ("B1", "7", "S"), ("A2", 7, "E"), ("B2", "7", "E"))
    await asyncio.gather(*(served.ask(request_of(n, f, sequence=i)) for n, i, f in names))
    assert [rows for _, rows in served.batches] == [["A1"], ["A2", "B1"], ["", "B2"]]


@STRATEGIES
async def test_what_becomes_of_requests_in_order_of_arrival(
    batching: SequenceBatching, fake_worker: Any
) -> None:
    """One slot: A owns it, B and C wait in the backlog, and each end lets the next one in."""
    served = await one_slot(batching, fake_worker(10))
    await served.play(
        (0, "A1", "S"),
        (1, "B1", "S"),
        (2, "A2", ""),
        (3, "C1", "SE"),
        (4, "B2", "E"),
        (5, "A3", "E"),
        (6, "B3", ""),  # its sequence has ended: END was accepted
        (7, "B4", "SE"),  # another sequence, which waits behind the first one of its id
    )
    order = [name for _, names in served.batches for name in names]
    assert order == ["A1", "A2", "A3", "B1", "B2", "C1", "B4"]
    assert raised(served) == {"B3": started("B")}


@STRATEGIES
async def test_a_start_of_a_sequence_that_goes_on_keeps_its_slot(
    batching: SequenceBatching, fake_worker: Any
) -> None:
    served = await one_slot(batching, fake_worker(10))
    with capture_logs() as logs:
        await served.play(
            (0, "A1", "S"), (1, "B1", "SE"), (2, "A2", ""), (3, "A3", "S"), (4, "A4", "E")
        )
    order = [name for _, names in served.batches for name in names]
    assert order == ["A1", "A2", "A3", "A4", "B1"]
    warnings = [line for line in logs if line["log_level"] == "warning"]
    assert [(line["event"], line["sequence"]) for line in warnings] == [
        ("sequence starts again before it has ended", 1)
    ]


@STRATEGIES
@pytest.mark.parametrize(
    ("script", "refused", "order"),
    [
        # 5 seconds of silence end A, and B moves in; the next request of A is none of a sequence.
        (((0, "A1", "S"), (2, "B1", "SE"), (6, "A2", "")), ["A2"], ["A1", "B1"]),
        # Every request that is accepted begins the time anew.
        (((0, "A1", "S"), (4, "A2", ""), (8, "A3", "E")), [], ["A1", "A2", "A3"]),
        # What waits in the slot of an expired sequence still runs, and only then it is free.
        (
            ((0, "A1", "S"), (0.1, "A2", ""), (0.2, "A3", ""), (0.3, "B1", "SE"), (6, "A4", "")),
            ["A4"],
            ["A1", "A2", "A3", "B1"],
        ),
        # In the backlog nothing expires; the time of B begins when it gets the slot, at 6.
        (
            (
                *((0, "A1", "S"), (0.5, "B1", "S"), (3, "A2", ""), (6, "A3", "E")),
                *((10.5, "B2", ""), (15, "B3", "E")),
            ),
            [],
            ["A1", "A2", "A3", "B1", "B2", "B3"],
        ),
    ],
)
async def test_sequences_that_are_idle(
    batching: SequenceBatching, fake_worker: Any, script: Any, refused: list[str], order: list[str]
) -> None:
    served = await one_slot(batching, fake_worker(3), idle=5)
    await served.play(*script)
    assert raised(served) == {name: started(name) for name in refused}
    assert [name for _, names in served.batches for name in names] == order


@STRATEGIES
async def test_an_execution_that_takes_longer_than_a_sequence_may_be_idle(
    batching: SequenceBatching, fake_worker: Any
) -> None:
    served = await one_slot(batching, fake_worker(10), idle=5)
    await served.play((0, "A1", "S"), (11, "A2", ""))
    assert raised(served) == {"A2": started("A")}
    assert served.ends["A1"] == 10


@STRATEGIES
async def test_timeouts_of_requests_matter_in_the_backlog_only(
    batching: SequenceBatching, fake_worker: Any
) -> None:
    served = await one_slot(batching, fake_worker(10))

    def ask(name: str, flags: str, timeout: float = 0) -> "asyncio.Task[None]":
        request = request_of(name, flags, timeout_us=round(timeout * 1e6))
        return asyncio.ensure_future(served.ask(request))

    calls = [
        ask("A1", "S"),
        ask("A2", "", timeout=1),  # in a slot, where it may wait for as long as it takes
        ask("B1", "S", timeout=30),
        ask("B2", "", timeout=3),  # the earliest of its sequence, which goes with it
        ask("C1", "SE", timeout=21),  # gets the slot at 20, as A3 is taken
        ask("A3", "E"),
    ]
    await asyncio.sleep(4)
    calls.append(ask("B3", ""))
    await asyncio.gather(*calls)
    expired = (Unavailable, "timeout of the corresponding sequence has been expired")
    assert raised(served) == {"B1": expired, "B2": expired, "B3": started("B")}
    assert [served.ends[name] for name in ("B1", "B2")] == [3, 3]
    assert [name for _, names in served.batches for name in names] == ["A1", "A2", "A3", "C1"]
    assert served.model.stats.failures[Failure.REJECTED] == 2


@STRATEGIES
@pytest.mark.parametrize(
    ("gone", "ran", "cancelled", "refused"),
    [
        # Behind A1, which runs: A2 comes to the front at 10 and takes A3 along.
        ("A2", ["A1", "B1", "B2"], ["A3"], ["A4"]),
        ("A3", ["A1", "A2", "B1", "B2"], [], ["A4"]),
        # In the backlog: B ends when it would be given the slot.
        ("B1", ["A1", "A2", "A3", "A4"], ["B2"], []),
        ("B2", ["A1", "A2", "A3", "A4"], ["B1"], []),
    ],
)
async def test_a_cancelled_request_ends_its_sequence(
    batching: SequenceBatching,
    fake_worker: Any,
    gone: str,
    ran: list[str],
    cancelled: list[str],
    refused: list[str],
) -> None:
    served = await one_slot(batching, fake_worker(10))
    script = (("A1", "S"), ("A2", ""), ("A3", ""), ("B1", "S"), ("B2", "E"))
    calls = {
        name: asyncio.ensure_future(served.ask(request_of(name, flags))) for name, flags in script
    }
    await asyncio.sleep(1)
    calls[gone].cancel()
    await asyncio.sleep(30)
    calls["A4"] = asyncio.ensure_future(served.ask(request_of("A4", "E")))
    await asyncio.gather(*calls.values(), return_exceptions=True)
    assert [name for _, names in served.batches for name in names] == ran
    number = 1 if gone[0] == "A" else 2
    expected = dict.fromkeys(
        cancelled, (Cancelled, f"another request of sequence {number} was cancelled")
    )
    assert raised(served) == expected | {name: started(name) for name in refused}
    assert served.model.stats.failures[Failure.CANCELED] == 1 + len(cancelled)
    assert served.model.stats.pending == 0


async def test_a_request_that_waits_in_the_inner_batcher_can_be_cancelled(
    fake_worker: Any,
) -> None:
    oldest = StrategyOldest(2, max_queue_delay_microseconds=10**7)
    served = await serve(sequence_config(SequenceBatching(oldest=oldest)), fake_worker(1))
    call = asyncio.ensure_future(served.ask(request_of("A1", "S")))
    other = asyncio.ensure_future(served.ask(request_of("A2")))
    await asyncio.sleep(1)
    call.cancel()
    await asyncio.gather(other, return_exceptions=True)
    assert raised(served) == {"A2": (Cancelled, "another request of sequence 1 was cancelled")}
    assert served.batches == []


async def test_sequences_end_with_their_instance(fake_worker: Any) -> None:
    again = fake_worker(10)
    served = await serve(sequence_config(), fake_worker(10), launch=lambda: again)
    script = (("A1", "S"), ("A2", ""), ("B1", "S"), ("C1", "S"))
    calls = [asyncio.ensure_future(served.ask(request_of(*entry))) for entry in script]
    await asyncio.sleep(1)
    served.worker.die(Unavailable("killed"))
    await served.ask(request_of("A3"))
    await asyncio.gather(*calls)
    text = (
        "instance 'm_0' of model 'm' has ended, and with it the sequence, which must be started "
        "again"
    )
    assert raised(served) == {
        "A1": (Unavailable, "killed"),
        "A2": (Unavailable, text),
        "B1": (Unavailable, text),
        "A3": started("A"),
    }
    assert [names for _, names in again.instances[0].batches] == [["C1"]]  # from the backlog
    assert served.model.stats.pending == 0


@STRATEGIES
async def test_a_closed_server_lets_known_sequences_go_on(
    batching: SequenceBatching, fake_worker: Any
) -> None:
    served = await one_slot(batching, fake_worker(10))
    first = asyncio.ensure_future(served.ask(request_of("A1", "S")))
    await asyncio.sleep(1)
    drained = asyncio.ensure_future(served.model.drain())
    await asyncio.sleep(0)
    await served.play((0, "A2", ""), (0, "B1", "S"), (0, "A3", "S"), (0, "C1", ""))
    await asyncio.gather(first, drained)
    stopping = (
        Unavailable,
        "[request id: {}] Server is stopping, scheduler for model has stopped accepting new "
        "inference requests",
    )
    assert raised(served) == {
        "B1": (stopping[0], stopping[1].format("B1")),
        "A3": (stopping[0], stopping[1].format("A3")),
        "C1": started("C"),
    }
    assert [name for _, names in served.batches for name in names] == ["A1", "A2"]


@STRATEGIES
async def test_what_waits_is_answered_when_the_version_is_abandoned(
    batching: SequenceBatching, fake_worker: Any
) -> None:
    served = await one_slot(batching, fake_worker(10))
    script = (("A1", "S"), ("A2", ""), ("B1", "S"), ("B2", "E"))
    calls = [asyncio.ensure_future(served.ask(request_of(*entry))) for entry in script]
    await asyncio.sleep(1)
    served.model.abandon("enough")
    await asyncio.gather(*calls)
    assert sorted(served.errors) == ["A1", "A2", "B1", "B2"]
    assert served.model.stats.pending == 0


@pytest.mark.parametrize(
    ("slots", "backlog", "begins"), [(0, 0, 0), (3, 0, 3), (3, 1, 4), (1, 2, 5)]
)
@STRATEGIES
async def test_a_test_may_delay_the_scheduler(
    batching: SequenceBatching,
    fake_worker: Any,
    monkeypatch: pytest.MonkeyPatch,
    slots: int,
    backlog: int,
    begins: int,
) -> None:
    monkeypatch.setenv("TRITONSERVER_DELAY_SCHEDULER", str(slots))
    monkeypatch.setenv("TRITONSERVER_BACKLOG_DELAY_SCHEDULER", str(backlog))
    served = await one_slot(batching, fake_worker(1))
    await served.play(
        (0, "A1", "S"), (1, "A2", ""), (3, "A3", "E"), (4, "B1", "SE"), (5, "C1", "SE")
    )
    assert served.batches[0][0] == begins
    assert sum(len(names) for _, names in served.batches) == 5


async def test_ten_thousand_sequences_in_the_backlog(fake_worker: Any) -> None:
    served = await serve(sequence_config(largest=4), fake_worker(1))
    count = 10_000
    requests = [
        request_of(f"A{number}", "SE", sequence=number, timeout_us=10**10)
        for number in range(1, count + 1)
    ]
    await asyncio.gather(*(served.ask(request) for request in requests))
    assert [name for _, names in served.batches for name in names if name] == [
        request.id for request in requests
    ]
    assert served.model.stats.success.count == count


async def test_clients_send_no_control_tensors(fake_worker: Any) -> None:
    config = sequence_config(input=(ModelInput("X", "TYPE_INT32", dims=(-1,), optional=True),))
    served = await serve(config, fake_worker(1))
    request = request_of("A1", "S")
    request.inputs = (request.inputs[0].from_numpy("START", request.inputs[0].as_numpy()),)
    await served.ask(request)
    assert raised(served) == {
        "A1": (InvalidArgument, "unexpected inference input 'START' for model 'm'")
    }
