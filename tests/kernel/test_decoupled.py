"""Decoupled models on real workers: any number of responses, at any time, and exactly one end."""

import asyncio
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from multiprocessing.shared_memory import SharedMemory as Object
from pathlib import Path

import pytest
from odd_deeds import stream_deed as deed
from odd_loader import CONFIG, odd_loader
from structlog.testing import capture_logs
from waiting import until

from microkernel import (
    InferRequest,
    InferResponse,
    InvalidArgument,
    RegionPart,
    ResponseStream,
    SystemRegion,
    Unavailable,
    Unsupported,
)
from microkernel.models import streams
from microkernel.models.loader import Loader
from microkernel.models.version import ModelVersion
from microkernel.responses import HIGH_BYTES, HIGH_COUNT
from microkernel.shared_memory import SharedMemory
from microkernel.stats import Failure

Ask = Callable[..., InferRequest]
Load = Callable[..., Awaitable[ModelVersion]]
Row = list[int] | str

DECOUPLED = "model_transaction_policy { decoupled: true }\n"
BATCHED = "dynamic_batching { preferred_batch_size: 2 max_queue_delay_microseconds: 20000000 }\n"


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


def told(response: InferResponse) -> Row:
    """The numbers of a response, or what else it says; a `!` where it is final."""
    end = "!" if response.final else ""
    if response.error is not None:
        return f"{type(response.error).__name__}: {response.error}{end}"
    if response.flag_only:
        return end
    numbers: list[int] = response.outputs[0].as_numpy()[0].tolist()
    return [*numbers, -1] if response.final else numbers


async def read(stream: ResponseStream) -> list[Row]:
    async with asyncio.timeout(20):
        return [told(response) async for response in stream]


async def first(stream: ResponseStream) -> InferResponse:
    async with asyncio.timeout(20):
        return await anext(stream)


async def end(model: ModelVersion) -> None:
    async with asyncio.timeout(20):
        await model.drain()
        await model.stop()


@pytest.fixture
async def loader(odd_path: None) -> AsyncIterator[Loader]:
    made = odd_loader()
    yield made
    await made.close()


@pytest.fixture
async def load_on(loader: Loader, tmp_path: Path) -> AsyncIterator[Load]:
    """`model = await load_on("thread", ...)`: a decoupled model on that kind of worker."""
    made: list[ModelVersion] = []

    async def make(kind: str, *more: str) -> ModelVersion:
        directory = tmp_path / "odd"
        (directory / "1").mkdir(parents=True, exist_ok=True)
        text = textwrap.dedent(CONFIG) + DECOUPLED + parameter("WORKER", kind) + "".join(more)
        (directory / "config.pbtxt").write_text(text)
        config = loader.read(directory)
        made.append(await loader.load(config, directory, 1))
        return made[-1]

    yield make
    for model in made:
        await end(model)


@pytest.fixture(params=["process", "thread"])
def load(request: pytest.FixtureRequest, load_on: Load) -> Load:
    """`model = await load(...)`: a decoupled model, on either kind of worker."""

    async def make(*more: str) -> ModelVersion:
        return await load_on(request.param, *more)

    return make


def trace(tmp_path: Path) -> list[str]:
    return (tmp_path / "odd" / "1" / "__pycache__" / "trace").read_text().splitlines()


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("count", 0, ["!"]),
        ("count", 1, [[0, -1]]),
        ("count", 3, [[0], [1], [2, -1]]),
        ("flagged", 0, ["!"]),
        ("flagged", 4, [[0], [1], [2], [3], "!"]),
        (
            "error_and_more",
            0,
            ["InvalidArgument: not this time", [7], "Internal: never again!"],
        ),
        ("raise_midway", 0, [[1, -1]]),
        ("nothing", 0, ["InvalidArgument: a response must be given unless it is the final one!"]),
        ("after_final", 0, [[1, -1]]),
    ],
)
async def test_responses_come_as_they_are_sent(
    load: Load, ask: Ask, name: str, count: int, expected: list[Row]
) -> None:
    model = await load()
    with capture_logs():
        stream = await model.stream(ask(deed(name), count, request_id="7"))
        responses = [response async for response in stream]
    assert [told(response) for response in responses] == expected
    assert {(r.model_name, r.version, r.id) for r in responses} == {("odd", 1, "7")}


async def test_a_backend_that_does_not_stream_answers_once(load: Load, ask: Ask) -> None:
    model = await load()
    assert await read(await model.stream(ask(4))) == [[8, -1]]


async def test_nothing_can_be_sent_after_the_final_response(
    load: Load, ask: Ask, tmp_path: Path
) -> None:
    model = await load()
    await read(await model.stream(ask(deed("after_final"))))
    await end(model)
    assert trace(tmp_path)[1:3] == ["the final response of the request has been sent"] * 2


async def test_what_is_rescheduled_where_nothing_comes_again_is_an_error(
    load: Load, ask: Ask, tmp_path: Path
) -> None:
    model = await load()
    with capture_logs():
        assert await read(await model.stream(ask(deed("come_again")))) == [
            [7],
            "InvalidArgument: Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, "
            "while the model is not configured to handle such a flag.!",
        ]
    await end(model)
    assert trace(tmp_path)[1:3] == [
        "a request is rescheduled with what is final",
        "the final response of the request has been sent",
    ]


async def test_many_requests_at_once_each_get_their_own(load: Load, ask: Ask) -> None:
    model = await load()
    streams = [await model.stream(ask(deed("count"), n % 7, request_id=str(n))) for n in range(60)]
    for n, stream in enumerate(streams):
        responses = [response async for response in stream]
        assert {response.id for response in responses} == {str(n)}
        values = [response.outputs[0].as_numpy().item() for response in responses if n % 7]
        assert values == list(range(n % 7))


async def test_requests_of_a_batch_may_end_in_any_order(load: Load, ask: Ask) -> None:
    model = await load(BATCHED)
    streams = [await model.stream(ask(deed("backwards"))) for _ in range(2)]
    rows = [await read(stream) for stream in streams]
    assert rows == [[[0, 0], [0, 1, -1]], [[1, 0], [1, 1, -1]]]
    await end(model)
    assert model.stats.execution_count == 1


async def test_what_is_raised_ends_only_what_is_not_finished(load: Load, ask: Ask) -> None:
    model = await load(BATCHED)
    with capture_logs():
        done, broken = [await model.stream(ask(deed("raise_midway"))) for _ in range(2)]
        assert await read(done) == [[1, -1]]
        assert await read(broken) == [[2], "Internal: ValueError: it broke in the middle!"]
    assert (model.stats.success.count, model.stats.fail.count) == (1, 1)
    assert model.stats.failures[Failure.BACKEND] == 1
    pair = [await model.stream(ask(deed("count"), 1)) for _ in range(2)]
    assert [await read(stream) for stream in pair] == [[[0, -1]]] * 2


async def test_the_instance_is_free_while_responses_are_still_to_be_sent(
    load: Load, ask: Ask
) -> None:
    model = await load()
    later = await model.stream(ask(deed("later"), 3, 42))
    await until(model.idle)
    for number in range(20):  # which use the memory of the first one's inputs
        assert await read(await model.stream(ask(number))) == [[2 * number, -1]]
    assert later.buffered == 0
    assert await read(await model.stream(ask(deed("go"), 1))) == [[0, -1]]
    assert await read(later) == [[0], [1], [2], [deed("later"), 3, 42, -1]]


async def test_unloading_waits_for_the_final_response(load: Load, ask: Ask, tmp_path: Path) -> None:
    model = await load()
    later = await model.stream(ask(deed("later"), 1))
    await until(model.idle)
    waits = await model.stream(ask(deed("go"), 1))
    drained = asyncio.ensure_future(model.drain())
    await asyncio.sleep(0)
    assert not drained.done()
    with pytest.raises(Unavailable, match="has stopped accepting"):
        await model.stream(ask(1))
    async with asyncio.timeout(20):
        await drained
        await model.stop()
    assert trace(tmp_path)[-1] == "unloaded"
    assert await read(later) == [[0], [deed("later"), 1, -1]]
    assert await read(waits) == [[0, -1]]


async def test_unloading_waits_for_the_final_response_also_where_the_client_has_gone(
    load: Load, ask: Ask
) -> None:
    model = await load()
    later = await model.stream(ask(deed("later"), 1))
    await until(model.idle)
    later.close()
    drained = asyncio.ensure_future(model.drain())
    await asyncio.sleep(0)
    assert not drained.done()
    model.abandon("the test is over")
    async with asyncio.timeout(20):
        await drained


async def test_a_worker_that_dies_ends_every_stream(load_on: Load, ask: Ask) -> None:
    model = await load_on("process")
    open_one = await model.stream(ask(deed("never")))
    assert told(await first(open_one)) == [1]
    with capture_logs():
        killed = await model.stream(ask(deed("kill_midway")))
        text = (
            "Unavailable: the worker process of model 'odd' (instances: 'odd_0') ended: killed by "
            "signal SIGKILL!"
        )
        assert await read(killed) == [[1], text]
        assert await read(open_one) == [text]
    assert await read(await model.stream(ask(deed("count"), 2))) == [[0], [1, -1]]
    assert (model.stats.success.count, model.stats.failures[Failure.BACKEND]) == (1, 2)


async def test_a_limit_ends_what_is_not_finished_in_time(load: Load, ask: Ask) -> None:
    model = await load(parameter("EXECUTION_TIMEOUT_SECS", "0.3"))
    with capture_logs():
        *some, last = await read(await model.stream(ask(deed("never"))))
    assert some == [[1]]
    assert isinstance(last, str)
    assert last.startswith("Unavailable: the ")
    assert last.endswith("an execution took longer than 0.3 seconds!")
    await until(lambda: model.ready)
    assert await read(await model.stream(ask(deed("count"), 2))) == [[0], [1, -1]]


async def test_abandoning_a_model_ends_every_stream(load: Load, ask: Ask) -> None:
    model = await load()
    stream = await model.stream(ask(deed("never")))
    assert told(await first(stream)) == [1]
    with capture_logs():
        model.abandon("time is up")
        (last,) = await read(stream)
    assert str(last).endswith("time is up!")


async def test_leaving_tells_the_model(load: Load, ask: Ask, tmp_path: Path) -> None:
    model = await load()
    for name in ("until_gone", "wait_until_gone"):
        stream = await model.stream(ask(deed(name), 1))
        await first(stream)
        stream.close()
        assert [told(response) async for response in stream] == []
        await until(model.idle)
    await end(model)
    assert trace(tmp_path)[1:3] == ["gone", "gone"]
    stats = model.stats
    assert stats.failures[Failure.CANCELED] == 1  # the model said so of one of them
    assert stats.success.count == 1


async def test_a_request_that_waits_is_forgotten_when_its_client_leaves(
    load: Load, ask: Ask
) -> None:
    model = await load()
    runs = await model.stream(ask(deed("wait_until_gone")))
    waits = await model.stream(ask(deed("count"), 1))
    assert model.stats.pending == 1
    waits.close()
    assert model.stats.pending == 0
    await first(runs)
    runs.close()
    await end(model)
    assert model.stats.execution_count == 1
    assert model.stats.failures[Failure.CANCELED] == 1


async def test_a_slow_client_holds_its_own_model_back_and_loses_nothing(
    load: Load, ask: Ask, tmp_path: Path
) -> None:
    model = await load("instance_group { kind: KIND_CPU count: 2 }\n")
    count, size = 200, 100_000
    slow = await model.stream(ask(deed("flood"), count, size))
    await until(lambda: slow.buffered * size * 4 > HIGH_BYTES)
    for number in range(20):
        assert await read(await model.stream(ask(number))) == [[2 * number, -1]]
    # What is on its way when the worker is told to pause is bounded by its socket's buffer.
    assert slow.buffered * size * 4 < 3 * HIGH_BYTES
    assert "flooded" not in trace(tmp_path)
    number = 0
    async with asyncio.timeout(20):
        async for response in slow:
            if not response.flag_only:
                values = response.outputs[0].as_numpy()
                assert values.shape == (1, size)
                assert (values == number).all()
                number += 1
    assert number == count
    assert trace(tmp_path)[-1] == "flooded"


async def test_many_small_responses_are_held_back_too(load: Load, ask: Ask) -> None:
    model = await load()
    count = 20 * HIGH_COUNT
    slow = await model.stream(ask(deed("flood"), count, 1))
    await until(lambda: slow.buffered > HIGH_COUNT)
    others = [await model.stream(ask(1)) for _ in range(2)]
    for _ in range(20):
        await asyncio.sleep(0.01)
    assert slow.buffered < count // 2
    assert [other.buffered for other in others] == [0, 0]  # the only instance waits for the client
    rows = await read(slow)
    assert rows == [*([n] for n in range(count)), "!"]
    assert [await read(other) for other in others] == [[[2, -1]]] * 2


async def test_a_client_that_leaves_wakes_the_model_it_held_back(
    load: Load, ask: Ask, tmp_path: Path
) -> None:
    model = await load()
    stream = await model.stream(ask(deed("until_gone"), 100_000))
    await until(lambda: stream.buffered * 400_000 > HIGH_BYTES)
    stream.close()
    async with asyncio.timeout(20):
        await end(model)
    assert trace(tmp_path)[1] == "gone"


async def test_a_client_that_does_not_read_at_all_is_given_up(
    load: Load, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "STALL_LIMIT", 0.2)
    model = await load()
    stream = await model.stream(ask(deed("until_gone"), 100_000, request_id="9"))
    async with asyncio.timeout(20):
        await model.drain()
    *_, last = await read(stream)
    assert last == "Unavailable: [request id: 9] the client has read no response for 0.2 seconds!"
    assert model.stats.failures[Failure.CANCELED] == 1


async def test_a_limit_gives_up_slow_clients_before_the_worker(load: Load, ask: Ask) -> None:
    model = await load(parameter("EXECUTION_TIMEOUT_SECS", "0.5"))
    stream = await model.stream(ask(deed("until_gone"), 100_000))
    async with asyncio.timeout(20):
        await model.drain()
    *_, last = await read(stream)
    assert "the client reads so slowly that the execution takes too long!" in str(last)
    assert model.ready


async def test_a_single_response_may_be_asked_for_as_one(load: Load, ask: Ask) -> None:
    model = await load()
    response = await model.infer(ask(4, request_id="5"))
    assert (told(response), response.id) == ([8, -1], "5")
    assert told(await model.infer(ask(deed("flagged"), 1))) == [0, -1]


@pytest.mark.parametrize(("name", "count", "got"), [("count", 0, 0), ("count", 5, 2)])
async def test_another_number_of_responses_cannot_be_asked_for_as_one(
    load: Load, ask: Ask, name: str, count: int, got: int
) -> None:
    model = await load()
    with pytest.raises(Unsupported) as caught:
        await model.infer(ask(deed(name), count))
    assert str(caught.value) == (
        "doesn't support models with decoupled transaction policy: expected a single response, "
        f"got {got}"
    )


async def test_the_second_response_abandons_a_request_for_one(
    load: Load, ask: Ask, tmp_path: Path
) -> None:
    model = await load()
    with pytest.raises(Unsupported, match="got 2"):
        await model.infer(ask(deed("until_gone"), 1))
    await end(model)
    assert trace(tmp_path)[1] == "gone"


async def test_an_error_in_place_of_the_only_response_is_raised(load: Load, ask: Ask) -> None:
    model = await load()
    with pytest.raises(InvalidArgument, match=r"^not this time$"):
        await model.infer(ask(deed("error_and_more")))
    with capture_logs(), pytest.raises(InvalidArgument, match=r"^a response must be given"):
        await model.infer(ask(deed("nothing")))


async def test_a_caller_of_infer_that_goes_abandons_the_request(
    load: Load, ask: Ask, tmp_path: Path
) -> None:
    model = await load()
    asking = asyncio.ensure_future(model.infer(ask(deed("wait_until_gone"))))
    await until(lambda: model.stats.responses != {})
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await end(model)
    assert trace(tmp_path)[1] == "gone"


async def test_refused_requests_raise(load: Load, ask: Ask) -> None:
    model = await load()
    with pytest.raises(InvalidArgument, match="batch-size must be <= 8"):
        await model.stream(ask(*[[1]] * 9))


async def test_statistics(load: Load, ask: Ask) -> None:
    model = await load()
    for count in (0, 1, 3):
        await read(await model.stream(ask(deed("flagged"), count)))
    await read(await model.stream(ask(deed("error_and_more"))))
    await end(model)
    stats = model.stats
    assert (stats.success.count, stats.fail.count, stats.failures[Failure.BACKEND]) == (3, 1, 1)
    assert (stats.inference_count, stats.execution_count, stats.pending) == (3, 4, 0)
    assert stats.queue.count == stats.compute.compute_infer.count == 3
    assert stats.success.ns >= stats.queue.ns + stats.compute.compute_infer.ns > 0
    assert list(stats.responses) == ["0", "1", "2", "3"]
    counts = {
        key: tuple(
            getattr(entry, name).count
            for name in ("success", "empty_response", "fail", "cancel", "compute_infer")
        )
        for key, entry in stats.responses.items()
    }
    assert counts == {
        "0": (2, 1, 1, 0, 4),
        "1": (2, 1, 0, 0, 3),
        "2": (1, 0, 1, 0, 2),
        "3": (0, 1, 0, 0, 1),
    }
    good = stats.responses["2"]
    assert good.compute_output.count == good.success.count == 1
    assert good.success.ns > 0


async def test_a_request_is_counted_when_its_final_response_is_read(load: Load, ask: Ask) -> None:
    model = await load()
    for number in range(1, 30):
        await read(await model.stream(ask(deed("count"), 1)))
        assert model.stats.success.count == number


async def test_a_late_response_is_not_compute_time(load: Load, ask: Ask) -> None:
    model = await load()
    later = await model.stream(ask(deed("later"), 0))
    await until(lambda: model.stats.execution_count == 1)
    (batch,) = model.stats.batches.values()
    charged = batch.compute_infer.ns
    await asyncio.sleep(0.05)
    await read(await model.stream(ask(deed("go"), 0)))
    await read(later)
    assert model.stats.compute.compute_infer.ns < charged + 50_000_000


async def test_a_cancelled_answer_is_counted_as_such(load: Load, ask: Ask) -> None:
    model = await load()
    stream = await model.stream(ask(deed("until_gone"), 1))
    await first(stream)
    stream.close()
    await model.drain()
    assert sum(entry.cancel.count for entry in model.stats.responses.values()) <= 1
    assert model.stats.failures[Failure.CANCELED] == 1


async def test_closing_at_once_leaves_nothing_behind(load: Load, ask: Ask) -> None:
    model = await load()
    for _ in range(20):
        (await model.stream(ask(deed("until_gone"), 1))).close()
    async with asyncio.timeout(20):
        await model.drain()
    assert model.stats.pending == 0
    assert model.stats.success.count == 0


async def test_tensors_of_a_stream_may_lie_in_shared_memory(load: Load, ask: Ask) -> None:
    model, memory = await load(), SharedMemory(allowed=True)
    shared = Object(create=True, size=4096)
    try:
        memory.register(SystemRegion("r", shared.name, 4096))
        request = ask(deed("later"), 2, request_id="7")
        (x,) = request.inputs
        assert shared.buf is not None
        shared.buf[: x.nbytes] = bytes(x.data)
        request = replace(
            request,
            inputs=(replace(x, data=b""),),
            shared_inputs={"X": RegionPart("r", x.nbytes)},
            shared_outputs={"Y": RegionPart("r", 4, 100)},
        )
        stream = await memory.stream(request, model.stream)
        await until(model.idle)
        await read(await model.stream(ask(deed("go"), 1)))
        for number in range(2):
            response = await first(stream)
            assert response.shared_outputs == {"Y": RegionPart("r", 4, 100)}
            assert response.outputs[0].nbytes == 0
            assert bytes(shared.buf[100:104]) == number.to_bytes(4, "little")
        last = await first(stream)
        assert told(last) == (
            "Internal: shared memory size specified with the request for output 'Y' (4 bytes) "
            "should be at least 8 bytes to hold the results!"
        )
        memory.unregister("r")
        memory.register(SystemRegion("r", shared.name, 4096))  # nothing holds the old one any more
    finally:
        shared.close()
        shared.unlink()
