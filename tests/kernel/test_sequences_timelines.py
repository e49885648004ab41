"""The sequence batcher on virtual time: which request runs when, in which row, and with what."""

import asyncio
from typing import Any

import pytest
from sequence_harness import FLAGS, SECOND, request_of, sequence_config, serve

from microkernel.config.model import SequenceBatching, StrategyDirect, StrategyOldest
from microkernel.stats import ModelStats

pytestmark = pytest.mark.virtual_time

DIRECT = SequenceBatching(control_input=FLAGS)
OLDEST = SequenceBatching(control_input=FLAGS, oldest=StrategyOldest(max_candidate_sequences=3))


def executed(stats: ModelStats) -> dict[int, int]:
    return {size: batch.compute_infer.count for size, batch in stats.batches.items()}


async def test_the_timeline_of_the_direct_strategy(fake_worker: Any) -> None:
    served = await serve(sequence_config(DIRECT), fake_worker(10))
    await served.play(
        (0, "A1", "S"),
        (1, "B1", "S"),
        (2, "A2", ""),
        (3, "C1", "S"),
        (12, "B2", "E"),
        (25, "A3", "E"),
        (45, "C2", "E"),
    )
    assert served.batches == [
        (0, ["A1"]),
        (10, ["A2", "B1"]),
        (20, ["", "B2"]),
        (30, ["A3", "C1"]),
        (45, ["", "C2"]),
    ]
    assert served.controls("START") == [[1], [0, 1], [0, 0], [0, 1], [0, 0]]
    assert served.controls("END") == [[0], [0, 0], [0, 1], [1, 0], [0, 1]]
    assert served.controls("READY") == [[1], [1, 1], [0, 1], [1, 1], [0, 1]]
    assert served.ends == {"A1": 10, "A2": 20, "B1": 20, "B2": 30, "A3": 40, "C1": 40, "C2": 55}
    stats = served.model.stats
    assert (stats.execution_count, stats.inference_count, stats.success.count) == (5, 7, 7)
    assert executed(stats) == {1: 1, 2: 4}
    assert (stats.pending, stats.fail.count) == (0, 0)


async def test_the_timeline_of_the_oldest_strategy(fake_worker: Any) -> None:
    served = await serve(sequence_config(OLDEST), fake_worker(10))
    await served.play(
        (0, "A1", "S"),
        (1, "B1", "S"),
        (2, "C1", "S"),
        (3, "D1", "S"),
        (4, "A2", "E"),
        (15, "B2", ""),
    )
    assert served.batches == [
        (0, ["A1"]),
        (10, ["B1", "C1"]),
        (20, ["A2", "B2"]),
        (30, ["D1"]),
    ]
    assert served.controls("READY") == [[1], [1, 1], [1, 1], [1]]
    assert served.controls("START") == [[1], [1, 1], [0, 0], [1]]
    assert served.controls("END") == [[0], [0, 0], [1, 0], [0]]
    stats = served.model.stats
    assert (stats.execution_count, stats.inference_count) == (4, 6)
    assert executed(stats) == {1: 2, 2: 2}


async def test_an_idle_batcher_of_the_oldest_strategy_holds_a_request_for_a_partner(
    fake_worker: Any,
) -> None:
    oldest = StrategyOldest(3, (2,), max_queue_delay_microseconds=5 * SECOND)
    served = await serve(sequence_config(SequenceBatching(oldest=oldest)), fake_worker(10))
    await served.play((0, "A1", "S"), (3, "B1", "S"), (20, "A2", ""), (40, "B2", ""))
    assert served.batches == [(3, ["A1", "B1"]), (25, ["A2"]), (45, ["B2"])]


async def test_the_next_requests_of_a_batch_of_sequences_run_together(fake_worker: Any) -> None:
    oldest = StrategyOldest(max_candidate_sequences=4)
    config = sequence_config(SequenceBatching(oldest=oldest), largest=4)
    served = await serve(config, fake_worker(10))
    script = [(float(i), f"{name}{i + 1}", "" if i else "S") for name in "BCD" for i in range(3)]
    await served.play((0, "A1", "S"), *script)
    assert [names for _, names in served.batches] == [
        ["A1"],
        ["B1", "C1", "D1"],
        ["B2", "C2", "D2"],
        ["B3", "C3", "D3"],
    ]


@pytest.mark.parametrize(
    ("delay", "utilization", "begins"),
    [
        (0, 0.0, 0),
        (0, 1.0, 0),  # without a delay the utilization means nothing
        (5, 0.0, 0),  # nor the other way round
        (5, 0.5, 1),
        (5, 0.75, 2),
        (5, 1.0, 5),
    ],
)
async def test_how_long_the_direct_strategy_waits_for_slots(
    fake_worker: Any, delay: int, utilization: float, begins: int
) -> None:
    direct = StrategyDirect(delay * SECOND, utilization)
    config = sequence_config(SequenceBatching(direct=direct), largest=4)
    served = await serve(config, fake_worker(1))
    await served.play((0, "A1", "S"), (1, "B1", "S"), (2, "C1", "S"))
    assert served.batches[0][0] == begins


async def test_three_fifths_of_five_slots_are_three(fake_worker: Any) -> None:
    utilization = 0.6000000238418579  # 0.6 as the 32-bit number that a configuration holds
    direct = StrategyDirect(5 * SECOND, utilization)
    config = sequence_config(SequenceBatching(direct=direct), largest=5)
    served = await serve(config, fake_worker(1))
    await served.play((0, "A1", "S"), (1, "B1", "S"), (2, "C1", "S"))
    assert served.batches == [(2, ["A1", "B1", "C1"])]


async def test_sequences_spread_over_instances_before_they_fill_one(fake_worker: Any) -> None:
    served = await serve(sequence_config(DIRECT), fake_worker(10), instances=2)
    await served.play(*((i, f"{name}1", "S") for i, name in enumerate("ABCD")))
    batches = [instance.batches for instance in served.worker.instances]
    assert batches == [[(0, ["A1"]), (10, ["", "C1"])], [(1, ["B1"]), (11, ["", "D1"])]]


async def test_a_row_that_cannot_run_with_the_first_stays_behind(fake_worker: Any) -> None:
    served = await serve(sequence_config(DIRECT), fake_worker(10))
    wide = request_of("B1", "S")
    wide.inputs = (wide.inputs[0].from_numpy("X", wide.inputs[0].as_numpy().repeat(3, axis=1)),)
    requests = (request_of("C1", "S"), wide, request_of("A1", "S"), request_of("C2", "E"))
    await asyncio.gather(*(served.ask(request) for request in requests))
    assert [names for _, names in served.batches] == [["C1"], ["C2", ""], ["A1", ""], ["", "B1"]]
    shapes = [row.inputs[0].shape for row in served.rows]
    assert shapes == [(1, 1)] * 5 + [(1, 3)] * 2


async def test_a_model_that_does_not_batch_has_a_slot_per_instance(fake_worker: Any) -> None:
    served = await serve(sequence_config(DIRECT, largest=0, input=(), output=()), fake_worker(10))
    for request in (first := request_of("A1", "S"), second := request_of("B1", "S")):
        request.inputs = ()
    end = request_of("A2", "E", inputs=())
    await asyncio.gather(*(served.ask(request) for request in (first, second, end)))
    assert served.batches == [(0, ["A1"]), (10, ["A2"]), (20, ["B1"])]
    assert served.rows[0].inputs[0].shape == (1,)
