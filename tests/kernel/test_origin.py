"""Whose requests a line of the log is about."""

import asyncio
import contextvars
import io
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import structlog

from microkernel import InferRequest, ModelConfig, Placement, Trace
from microkernel.log import configure
from microkernel.origin import origin, works_for, works_for_model
from microkernel.settings import ServerSettings
from microkernel.workers.contract import Result, Worker

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def logged() -> Iterator[Lines]:
    """`logged()`: the lines of models so far, as the server writes them."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure(ServerSettings(), stream)
    root.setLevel(logging.INFO)

    def lines() -> list[dict[str, Any]]:
        found = [json.loads(line) for line in stream.getvalue().splitlines()]
        return [line for line in found if line.get("logger") == "odd"]

    yield lines
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def request(identity: str = "", trace: Trace | None = None) -> InferRequest:
    return InferRequest("m", (), id=identity, trace=trace)


@pytest.mark.parametrize(
    ("requests", "fields"),
    [
        ([], {}),
        ([request()], {}),
        ([request("a")], {"request_ids": ["a"]}),
        ([request("a"), request(), request("b")], {"request_ids": ["a", "b"]}),
        ([request(trace=Trace(7, "m", 1))], {"trace_ids": ["7"]}),
        (
            [request("a", Trace(7, "m", 1, context=TRACEPARENT)), request("b")],
            {"request_ids": ["a", "b"], "trace_ids": ["0af7651916cd43dd8448eb211c80319c"]},
        ),
    ],
)
def test_the_fields_of_a_batch(requests: list[InferRequest], fields: dict[str, Any]) -> None:
    def run() -> list[dict[str, object]]:
        works_for([request("earlier")])
        works_for(requests)
        alone = origin()
        works_for_model("m", 2)
        return [alone, origin()]

    found = contextvars.Context().run(run)
    assert found == [fields, {"model": "m", "version": 2, **fields}]
    assert origin() == {}


async def worked(
    launch: Callable[[], Awaitable[Worker]],
    config: ModelConfig,
    run: Callable[[Any], Awaitable[object]],
) -> None:
    worker = await launch()
    try:
        (instance,) = await worker.start(config, [Placement("odd_0", "KIND_CPU")])
        await run(instance)
    finally:
        await worker.stop()


async def test_lines_of_a_model_name_the_requests_of_its_batch(
    logged: Lines,
    launch: Callable[[], Awaitable[Worker]],
    odd_config: Callable[..., ModelConfig],
    run_batch: Callable[..., Awaitable[Result]],
    ask: Callable[..., InferRequest],
) -> None:
    from odd_backend import DEEDS  # type: ignore[import-not-found]  # on the path in these tests

    log = DEEDS["log"]

    async def run(instance: Any) -> None:
        traced = replace(ask(2, request_id="b"), trace=Trace(7, "odd", 1))
        await run_batch(instance, ask(log, request_id="a"), ask(1), traced)
        await run_batch(instance, ask(log))
        await run_batch(instance, ask(log, request_id="c"))

    await worked(launch, odd_config(), run)
    told = [line for line in logged() if line["event"] == "a line with words"]
    assert [line.get("request_ids") for line in told] == [["a", "b"], None, ["c"]]
    assert [line.get("trace_ids") for line in told] == [["7"], None, None]
    assert {(line["model"], line["version"]) for line in told} == {("odd", 1)}


async def test_so_do_those_of_a_decoupled_model(
    logged: Lines,
    launch: Callable[[], Awaitable[Worker]],
    odd_config: Callable[..., ModelConfig],
    ask: Callable[..., InferRequest],
) -> None:
    from odd_backend import DEEDS

    from microkernel import TransactionPolicy

    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    class Receiver:
        def part(self, index: int, part: Any) -> None:
            pass

        def returned(self, times: Any) -> None:
            pass

        def over(self) -> None:
            over.set_result(None)

    async def run(instance: Any) -> None:
        instance.stream([ask(DEEDS["log"], request_id="s")], [1], Receiver())
        async with asyncio.timeout(20):
            await over

    policy = TransactionPolicy(decoupled=True)
    await worked(launch, replace(odd_config(), model_transaction_policy=policy), run)
    told = [line for line in logged() if line["event"] == "a line with words"]
    assert [line["request_ids"] for line in told] == [["s"]]


async def test_the_loop_does_not_log_in_the_name_of_a_batch(
    odd_path: None,
    hosted: Any,
    odd_config: Callable[..., ModelConfig],
    ask: Callable[..., InferRequest],
) -> None:
    from microkernel.workers.thread import ThreadWorker

    seen: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()

    async def launch() -> Worker:
        return ThreadWorker(hosted)

    async def run(instance: Any) -> None:
        instance.execute([ask(1, request_id="a")], [1], lambda _: seen.set_result(origin()))
        assert await seen == {}

    await worked(launch, odd_config(), run)


def test_what_a_line_says_itself_stands(logged: Lines) -> None:
    stream = io.StringIO()
    configure(ServerSettings(), stream)

    def run() -> None:
        works_for_model("m", 1)
        works_for([request("a")])
        structlog.get_logger().error("wrong", model="another")

    contextvars.Context().run(run)
    line = json.loads(stream.getvalue())
    assert (line["model"], line["version"], line["request_ids"]) == ("another", 1, ["a"])
