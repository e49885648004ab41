"""Tracing from the port to the file, with models on real workers."""

import asyncio
import json
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from odd_loader import odd_loader

from microkernel import (
    NO_CONTEXT,
    InferRequest,
    InvalidArgument,
    LogSettings,
    MicrokernelError,
    TraceChanges,
    TraceSettings,
    Unsupported,
)
from microkernel.log import LogControl
from microkernel.models.catalogue import Catalogue
from microkernel.models.table import ModelTable
from microkernel.server import EXTENSIONS, KernelServer
from microkernel.settings import ServerSettings
from microkernel.tracing.starting import start_tracing

Ask = Callable[..., InferRequest]

CONFIG = """
    backend: "odd"
    max_batch_size: 8
    input { name: "X" data_type: TYPE_INT32 dims: 2 reshape { shape: [ 1, 2 ] } }
    output { name: "Y" data_type: TYPE_INT32 dims: 2 reshape { shape: [ 1, 2 ] } }
    parameters { key: "WORKER" value { string_value: "thread" } }
"""
MARKS = [
    "REQUEST_START",
    "QUEUE_START",
    "COMPUTE_START",
    "COMPUTE_INPUT_END",
    "COMPUTE_OUTPUT_START",
    "COMPUTE_END",
    "INFER_RESPONSE_COMPLETE",
    "REQUEST_END",
]


class Site:
    """A server with the models `odd` and `other`, traced as flags say, and its trace file."""

    def __init__(self, root: Path) -> None:
        self.file = root / "traces"
        self._repository = root / "models"
        for name in ("odd", "other"):
            (self._repository / name / "1").mkdir(parents=True)
            (self._repository / name / "config.pbtxt").write_text(textwrap.dedent(CONFIG))

    async def start(self, *config: str) -> KernelServer:
        settings = ServerSettings(trace_config=config)
        self.tracer = start_tracing(settings, {})
        table = ModelTable()
        self.catalogue = Catalogue([self._repository], odd_loader(), table, 1)
        await self.catalogue.load_all(None)
        control = LogControl(LogSettings())
        self.server = KernelServer(table, self.catalogue, control, settings, self.tracer)
        return self.server

    async def infer(self, request: InferRequest, *, stream: bool = False) -> int:
        """Run a request as a front end does; the id of its trace, 0 for none."""
        trace = await self.server.begin_trace(request, NO_CONTEXT)
        request.trace = trace
        try:
            if stream:
                async for response in await self.server.stream(request):
                    if response.error is not None:
                        raise response.error
            else:
                await self.server.infer(request)
        finally:
            if trace is not None:
                await self.server.end_trace(trace)
        return trace.id if trace is not None else 0

    async def written(self, name: str = "traces") -> list[dict[str, Any]]:
        """The records of a file once everything is written."""
        await self.tracer.close(30)
        records: list[dict[str, Any]] = json.loads(self.file.with_name(name).read_text())
        return records

    async def change(self, model: str = "", **values: str | None) -> TraceSettings:
        given = {key: None if value is None else (value,) for key, value in values.items()}
        return await self.server.trace_settings(model, TraceChanges(given))


@pytest.fixture
async def site(tmp_path: Path, odd_path: None) -> AsyncIterator[Site]:
    made = Site(tmp_path)
    yield made
    await made.catalogue.drain(30)
    await made.catalogue.stop()
    await made.tracer.close(30)


def on(site: Site, *more: str) -> tuple[str, ...]:
    return ("level=TIMESTAMPS", "rate=1", f"triton,file={site.file}", *more)


def marks(records: list[dict[str, Any]], number: int) -> dict[str, int]:
    found = [r["timestamps"][0] for r in records if r["id"] == number and "timestamps" in r]
    return {mark["name"]: mark["ns"] for mark in found}


async def test_nothing_is_traced_by_default(site: Site, ask: Ask) -> None:
    await site.start()
    assert await site.infer(ask(1, 2)) == 0
    assert not site.tracer.active
    await site.tracer.close(30)
    assert not site.file.exists()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_from_the_port_to_the_file(site: Site, ask: Ask, stream: bool) -> None:
    await site.start(*on(site))
    number = await site.infer(ask(1, 2, request_id="mine"), stream=stream)
    records = await site.written()
    assert records[0] == {"id": 1, "model_name": "odd", "model_version": 1, "request_id": "mine"}
    found = marks(records, number)
    assert list(found) == MARKS
    assert sorted(found.values()) == list(found.values())


async def test_the_newest_version_is_named_where_none_was(site: Site, ask: Ask) -> None:
    await site.start(*on(site))
    request = ask(1, 2)
    request.version = -1
    await site.infer(request)
    assert (await site.written())[0]["model_version"] == 1


async def test_tensors_are_copied_where_they_pass(site: Site, ask: Ask) -> None:
    await site.start(*on(site, "level=TENSORS"))
    await site.infer(ask(100, 200))
    tensors = [r for r in await site.written() if "tensor" in r]

    def shown(name: str, data: str, shape: str) -> dict[str, str]:
        return {"name": name, "data": data, "shape": shape, "dtype": "INT32"}

    assert [(r["activity"], r["tensor"]) for r in tensors] == [
        ("TENSOR_QUEUE_INPUT", shown("X", "100,200", "1,2")),
        ("TENSOR_BACKEND_INPUT", shown("X", "100,200", "1,1,2")),
        ("TENSOR_BACKEND_OUTPUT", shown("Y", "200,400", "1,1,2")),
    ]


async def test_a_request_that_fails_is_traced_to_its_end(site: Site, ask: Ask) -> None:
    from odd_backend import DEEDS  # type: ignore[import-not-found]  # on the path in these tests

    await site.start(*on(site, "level=TENSORS"))
    with pytest.raises(MicrokernelError):
        await site.infer(ask(DEEDS["ours"], 0))
    records = await site.written()
    assert list(marks(records, 1)) == MARKS
    assert "TENSOR_BACKEND_OUTPUT" not in [r.get("activity") for r in records]


async def test_a_request_that_is_refused_is_traced(site: Site, ask: Ask) -> None:
    await site.start(*on(site))
    with pytest.raises(InvalidArgument):
        await site.infer(ask(1, 2, 3))
    assert list(marks(await site.written(), 1)) == ["REQUEST_START"]


async def test_a_model_that_is_unknown_is_not_traced(site: Site, ask: Ask) -> None:
    server = await site.start(*on(site))
    request = ask(1, 2)
    request.model_name = "absent"
    assert await server.begin_trace(request, NO_CONTEXT) is None


async def test_a_caller_that_leaves_still_ends_its_trace(site: Site, ask: Ask) -> None:
    await site.start(*on(site))
    first = asyncio.ensure_future(site.infer(ask(1, 2)))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert "REQUEST_START" in marks(await site.written(), 1)


async def test_work_on_behalf_of_a_request_is_grouped_with_it(site: Site, ask: Ask) -> None:
    server = await site.start(*on(site, "count=1"))
    outer, inner = ask(1, 2), ask(3, 4)
    outer.trace = await server.begin_trace(outer, NO_CONTEXT)
    assert outer.trace is not None
    inner.trace = outer.trace
    number = await site.infer(inner)
    await server.infer(outer)
    await server.end_trace(outer.trace)
    records = await site.written("traces.0")
    headers = [record for record in records if "model_name" in record]
    assert [(h["id"], h.get("parent_id")) for h in headers] == [(1, None), (number, 1)]
    assert list(marks(records, number)) == list(marks(records, 1)) == MARKS


async def test_a_trace_that_is_ended_twice_is_written_once(site: Site, ask: Ask) -> None:
    server = await site.start(*on(site))
    trace = await server.begin_trace(ask(1, 2), NO_CONTEXT)
    assert trace is not None
    await server.end_trace(trace)
    await server.end_trace(trace)
    assert [record["id"] for record in await site.written()] == [1]


async def test_a_number_of_traces_is_collected_into_an_indexed_file(site: Site, ask: Ask) -> None:
    server = await site.start(*on(site, "count=2"))
    assert [await site.infer(ask(1, 2)) for _ in range(4)] == [1, 2, 0, 0]
    assert (await server.trace_settings()).trace_count == 0
    assert not site.tracer.active
    records = await site.written("traces.0")
    assert {record["id"] for record in records} == {1, 2}
    assert not site.file.exists()


async def test_a_file_is_written_every_few_traces(site: Site, ask: Ask) -> None:
    await site.start(*on(site, "triton,log-frequency=2"))
    for _ in range(3):
        await site.infer(ask(1, 2))
    assert {record["id"] for record in await site.written("traces.0")} == {1, 2}
    assert {record["id"] for record in await site.written("traces.1")} == {3}


async def test_settings_that_change_write_what_was_collected(site: Site, ask: Ask) -> None:
    server = await site.start(*on(site))
    await site.infer(ask(1, 2))
    open_one = await server.begin_trace(ask(1, 2), NO_CONTEXT)
    assert open_one is not None
    assert (await site.change(trace_level="OFF")).trace_level == ("OFF",)
    assert await site.infer(ask(1, 2)) == 0
    await server.end_trace(open_one)  # under the settings with which it began
    assert {record["id"] for record in await site.written()} == {1, 2}


async def test_a_model_is_traced_by_settings_of_its_own(site: Site, ask: Ask) -> None:
    server = await site.start(f"triton,file={site.file}", "rate=1")
    assert not site.tracer.active
    assert (await site.change("other", trace_level="TIMESTAMPS")).trace_level == ("TIMESTAMPS",)
    other = ask(1, 2)
    other.model_name = "other"
    assert [await site.infer(ask(1, 2)), await site.infer(other)] == [0, 1]
    assert (await server.trace_settings("odd")).trace_level == ("OFF",)
    assert (await site.change("other", trace_level=None)).trace_level == ("OFF",)
    assert not site.tracer.active


@pytest.mark.parametrize("changes", [None, TraceChanges({"trace_rate": ("5",)})])
async def test_the_settings_of_a_model_that_is_unknown(
    site: Site, changes: TraceChanges | None
) -> None:
    server = await site.start()
    with pytest.raises(InvalidArgument, match=r"^Request for unknown model : absent$"):
        await server.trace_settings("absent", changes)


async def test_the_file_cannot_be_changed_from_outside(site: Site) -> None:
    await site.start(*on(site))
    with pytest.raises(Unsupported, match="trace file location can not be updated"):
        await site.change(trace_file="elsewhere", trace_rate="5")
    assert (await site.server.trace_settings()).trace_rate == 1


def test_tracing_is_offered_in_tritons_order() -> None:
    assert EXTENSIONS[-3:] == ("statistics", "trace", "logging")
