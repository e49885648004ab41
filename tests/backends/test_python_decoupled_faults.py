"""Decoupled Python models whose requests end badly, late or never, and asynchronous ones."""

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from decoupled_models import (
    CONFIG,
    LIMIT,
    Answers,
    Client,
    Start,
    batch_of,
    model_module,
    stream,
)

from microkernel import (
    Internal,
    InvalidArgument,
    MicrokernelError,
    Outcome,
    Placement,
)
from microkernel_python.backend import PythonBackend

FAILED = "Failed to process the request(s) for model 'm_0_0', message: "
DROPPED = (
    f"{FAILED}the model let go of the request and its response sender without sending "
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL"
)
CLOSED = "Unable to send response. Response sender has been closed."


# Faults


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("raise ValueError('no')", "ValueError: no\n\nAt:\n"),
        ("raise SystemExit(3)", "SystemExit: 3\n\nAt:\n"),
        ("raise KeyboardInterrupt(4)", "KeyboardInterrupt: 4\n\nAt:\n"),
        ("sender.send(flags=3)", "TritonModelException: Unable to send response. Unsupported"),
        *(
            (
                f"return {value}",
                "Python model 'm_0_0' is using the decoupled mode and the execute function must "
                "return None.",
            )
            for value in ("[]", "[None]", "[answer(1)]", "0")
        ),
    ],
)
def test_a_fault_fails_what_is_not_final_and_closes_the_senders(
    start: Start, fault: str, text: str
) -> None:
    instance = start(
        f"""
        def work(sender):
            GO.wait()
            try:
                sender.send(answer(3), FINAL)
            except pb_utils.TritonModelException as error:
                ERRORS.append(str(error))
        final, half, later = [request.get_response_sender() for request in requests]
        final.send(answer(1), FINAL)
        half.send(answer(2))
        spawn(work, later)
        sender = half
        {fault}
        """
    )
    clients = [Client() for _ in range(3)]
    with pytest.raises(Internal) as caught:
        instance.stream(batch_of(1, 2, 3), clients)
    assert str(caught.value).startswith(FAILED + text)
    assert str(caught.value).count(FAILED) == 1
    model = model_module()
    model.GO.set()
    model.THREADS[0].join(LIMIT)
    assert model.ERRORS == [CLOSED]
    assert [client.answers for client in clients] == [[1], [2], []]  # the kernel sends the rest


def test_a_fault_ends_what_another_thread_is_sending(start: Start) -> None:
    """It does not wait for it: the client may read slowly."""

    class Blocked(Client):
        def send(self, response: Outcome | None, *, final: bool) -> None:
            model_module().GO.set()
            assert self.ended.wait(LIMIT)
            raise InvalidArgument("the final response was sent")

    instance = start(
        """
        def work(sender):
            try:
                sender.send(answer(1))
            except pb_utils.TritonModelException as error:
                ERRORS.append(str(error))
        spawn(work, requests[0].get_response_sender())
        GO.wait()
        raise ValueError
        """
    )
    client = Blocked()
    with pytest.raises(Internal):
        instance.stream(batch_of(1), [client])
    client.ended.set()
    model_module().THREADS[0].join(LIMIT)
    assert model_module().ERRORS == [CLOSED]


def test_a_model_without_execute(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("class TritonPythonModel: pass")
    model = PythonBackend().load(CONFIG, tmp_path)
    instance = model.instance(Placement("m_0_0", "KIND_CPU"))
    with pytest.raises(Internal, match="does not implement the 'execute' method"):
        instance.stream(batch_of(1), [Client()])
    instance.close()
    model.unload()


def test_what_the_kernel_refuses_is_told_to_the_model(start: Start) -> None:
    class Refusing(Client):
        def send(self, response: Outcome | None, *, final: bool) -> None:
            if response is not None:
                raise MicrokernelError("the response is too large")
            super().send(response, final=final)

    instance = start(
        """
        sender = requests[0].get_response_sender()
        try:
            sender.send(answer(1), FINAL)
        except pb_utils.TritonModelException as error:
            ERRORS.append(str(error))
        sender.send(flags=FINAL)
        """
    )
    client = Refusing()
    instance.stream(batch_of(1), [client])
    assert client.all() == [None]
    assert model_module().ERRORS == ["Unable to send response. the response is too large"]


# Requests that nobody can finish


@pytest.mark.parametrize(
    ("body", "answers"),
    [
        ("pass", [DROPPED]),
        ("requests[0].get_response_sender().send(answer(1))", [1, DROPPED]),
        ("spawn(lambda sender: sender.send(answer(1)), requests[0].get_response_sender())", None),
        ("KEPT.append(requests[0].inputs())", [DROPPED]),
        ("spawn(lambda request: None, requests[0])", [DROPPED]),
    ],
)
def test_a_request_that_is_let_go_of_is_finished_with_an_error(
    start: Start, caplog: pytest.LogCaptureFixture, body: str, answers: Answers | None
) -> None:
    (client,) = stream(start(body), 1)
    assert client.all() == (answers or [1, DROPPED])
    words = "[request id: r1] request to 'm_0_0': the model let go of the request"
    assert [words in record.getMessage() for record in caplog.records] == [True]


def test_a_request_in_a_cycle_is_finished_when_the_collector_finds_it(start: Start) -> None:
    instance = start(
        """
        cycle = [requests[0].get_response_sender()]
        cycle.append(cycle)
        """
    )
    (client,) = stream(instance, 1)
    gc.collect()
    assert client.all() == [DROPPED]


def test_a_collector_that_strikes_while_the_kernel_sends_does_not_block(start: Start) -> None:
    """The kernel's way out is locked then, by the very thread that collects."""
    lock = threading.Lock()

    class Locked(Client):
        def send(self, response: Outcome | None, *, final: bool) -> None:
            with lock:
                model_module().KEPT.clear()
                super().send(response, final=final)

    instance = start(
        """
        KEPT.append(requests[0].get_response_sender())
        sender = requests[1].get_response_sender()
        requests.clear()
        sender.send(answer(2), FINAL)
        """
    )
    clients = [Locked(), Locked()]
    instance.stream(batch_of(1, 2), clients)
    assert [client.all() for client in clients] == [[DROPPED], [2]]


def test_a_slow_client_does_not_keep_others_waiting(start: Start) -> None:
    class Slow(Client):
        read = threading.Event()

        def send(self, response: Outcome | None, *, final: bool) -> None:
            assert self.read.wait(LIMIT)
            super().send(response, final=final)

    slow, quick = Slow(), Client()
    instance = start("pass")
    instance.stream(batch_of(1, 2), [slow, quick])
    assert quick.all() == [DROPPED]
    assert not slow.ended.is_set()
    slow.read.set()
    assert slow.all() == [DROPPED]


def test_what_is_kept_is_not_finished(start: Start) -> None:
    """The request keeps its sender alive, and the sender the request's end open."""
    instance = start("KEPT.append(requests[-1])")
    dropped, kept = stream(instance, 1, 2)
    assert dropped.all() == [DROPPED]
    gc.collect()
    assert kept.answers == []
    model_module().KEPT.pop().get_response_sender().send(flags=1)
    assert kept.all() == [None]


# async def execute


def test_coroutines_of_several_batches_run_at_once(start: Callable[..., Any]) -> None:
    instance = start(
        """
        sender = requests[0].get_response_sender()
        KEPT.append(asyncio.Event())
        if len(KEPT) == 2:
            KEPT[0].set()
        await KEPT[0].wait()
        sender.send(answer(len(KEPT)), FINAL)
        return "ignored"
        """,
        asynchronous=True,
    )
    first, second = stream(instance, 1) + stream(instance, 2)
    assert (first.all(), second.all()) == ([2], [2])


def test_a_coroutine_that_only_waits_is_not_collected(start: Callable[..., Any]) -> None:
    instance = start(
        """
        import weakref
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        KEPT.extend((loop, weakref.ref(future)))
        loop.call_soon(GO.set)
        await future
        requests[0].get_response_sender().send(answer(1), FINAL)
        """,
        asynchronous=True,
    )
    (client,) = stream(instance, 1)
    model = model_module()
    assert model.GO.wait(LIMIT)
    gc.collect()
    loop, future = model.KEPT
    loop.call_soon_threadsafe(lambda: future().set_result(None))
    assert client.all() == [1]


@pytest.mark.parametrize("error", ["ValueError", "KeyboardInterrupt", "CancelledError"])
def test_an_async_failure_ends_only_what_it_let_go_of(
    start: Callable[..., Any], caplog: pytest.LogCaptureFixture, error: str
) -> None:
    """Tasks that the coroutine started go on."""
    instance = start(
        f"""
        from asyncio import CancelledError
        async def one(request):
            sender = request.get_response_sender()
            if number(request) == 1:
                raise {error}("no")
            await asyncio.to_thread(GO.wait)
            sender.send(answer(number(request)), FINAL)
        others = [asyncio.create_task(one(request)) for request in requests[1:]]
        KEPT.extend(others)
        await asyncio.sleep(0)
        await one(requests[0])
        """,
        asynchronous=True,
    )
    failed, going_on = stream(instance, 1, 2)
    (failure,) = failed.all()
    assert str(failure).startswith(f"{FAILED}{error}: no\n\nAt:\n")
    model_module().GO.set()
    assert going_on.all() == [2]
    assert any(record.exc_info and "failed" in record.getMessage() for record in caplog.records)
    assert stream(instance, 4)[0].all() == [4]


def test_closing_ends_what_still_runs(start: Callable[..., Any]) -> None:
    instance = start(
        """
        requests[0].get_response_sender().send(flags=FINAL)
        try:
            await asyncio.Event().wait()
        finally:
            KEPT.append("cancelled")
        """,
        asynchronous=True,
    )
    assert stream(instance, 1)[0].all() == [None]
    instance.close()
    assert model_module().KEPT == ["cancelled"]
    assert not [t for t in threading.enumerate() if t.name.startswith("m_0_0")]
