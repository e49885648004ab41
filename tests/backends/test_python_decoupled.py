"""Decoupled Python models: any number of responses, from any thread, also after `execute`."""

import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoupled_models import CONFIG, LIMIT, Answers, Client, Start, batch_of, model_module, stream

from microkernel import (
    DATA_TYPES,
    Batch,
    InferRequest,
    InferResponse,
    ModelInput,
    Placement,
    Tensor,
)
from microkernel.config.parse import read_config
from microkernel_python.backend import PythonBackend
from microkernel_python.instance import PythonInstance

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "repository"


# Numbers of responses


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("for i in range(n - 1): sender.send(answer(i))\nsender.send(answer(2), FINAL)", [0, 1, 2]),
        ("for i in range(n): sender.send(answer(i))\nsender.send(flags=FINAL)", [0, 1, 2, None]),
        ("sender.send(flags=FINAL)", [None]),
        ("sender.send(answer(n * n), FINAL)", [9]),
        (
            "error = pb_utils.TritonError('odd')\n"
            "sender.send(pb_utils.InferenceResponse(error=error))\n"
            "sender.send(answer(1), flags=FINAL)",
            ["odd", 1],
        ),
        (
            "array = np.array([[7]], np.int32)\n"
            "for i in range(2):\n"
            "    sender.send(pb_utils.InferenceResponse([pb_utils.Tensor('OUT', array)]), i)\n"
            "    array += 1",
            [7, 8],
        ),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("later", [False, True])
def test_any_number_of_responses(
    start: Callable[..., PythonInstance],
    body: str,
    expected: Answers,
    asynchronous: bool,
    later: bool,
) -> None:
    """From `execute`, and from a thread that goes on when it has returned."""
    work = f"def work(sender, n):\n{textwrap.indent(body, '    ')}\n"
    waiting = work.replace("):\n", "):\n    GO.wait()\n", 1) if later else work
    call = "spawn(work, *given)" if later else "work(*given)"
    instance = start(
        f"{waiting}for request in requests:\n"
        f"    given = (request.get_response_sender(), number(request))\n    {call}",
        asynchronous=asynchronous,
    )
    (client,) = stream(instance, 3)
    if later:
        assert client.answers == []
        model_module().GO.set()
    assert client.all() == expected


def test_requests_of_a_batch_end_in_any_order(start: Start) -> None:
    instance = start(
        """
        senders = {number(request): request.get_response_sender() for request in requests}
        for n in sorted(senders):
            for other in sorted(senders):
                if other >= n:
                    senders[other].send(answer(other * 10 + n), FINAL if other == n else 0)
        """
    )
    third, first, second = stream(instance, 3, 1, 2)
    assert [first.all(), second.all(), third.all()] == [[11], [21, 22], [31, 32, 33]]


def test_the_next_batch_runs_while_earlier_ones_are_answered(start: Start) -> None:
    instance = start(
        """
        KEPT.extend(request.get_response_sender() for request in requests)
        if len(KEPT) == 3:
            for i, sender in enumerate(KEPT):
                sender.send(answer(i), FINAL)
        """
    )
    clients = [client for n in (1, 2, 3) for client in stream(instance, n)]
    assert [client.all() for client in clients] == [[0], [1], [2]]


def test_many_threads_may_send_for_one_request(start: Start) -> None:
    """Each response arrives once, and the final flag after all that were sent before it."""
    instance = start(
        """
        sender = requests[0].get_response_sender()
        def work(first):
            for i in range(first, first + 100):
                sender.send(answer(i))
        for first in (0, 100, 200, 300):
            spawn(work, first)
        for thread in THREADS:
            thread.join()
        sender.send(flags=FINAL)
        """
    )
    *numbers, last = stream(instance, 1)[0].all()
    assert (last, sorted(n for n in numbers if isinstance(n, int))) == (None, list(range(400)))


def test_parameters_and_wanted_outputs(start: Start) -> None:
    instance = start(
        """
        tensors = [pb_utils.Tensor(name, np.zeros((1, 1), np.int8)) for name in ("OUT", "OTHER")]
        response = pb_utils.InferenceResponse(tensors, parameters={"k": True})
        requests[0].get_response_sender().send(response, FINAL)
        """
    )
    for wanted, expected in (((), ["OUT"]), (("OTHER",), ["OTHER"])):
        client = Client()
        instance.stream(batch_of(1, outputs=wanted), [client])
        client.all()
        (response,) = client.responses
        assert isinstance(response, InferResponse)
        assert [tensor.name for tensor in response.outputs] == expected
        assert (response.parameters, response.id, response.version) == ({"k": True}, "r1", 1)


def test_a_sender_and_its_request_tell_of_a_client_that_left(start: Start) -> None:
    instance = start(
        """
        request = requests[0]
        facts = [request.is_cancelled(), request.get_response_sender().is_cancelled()]
        code = pb_utils.TritonError.CANCELLED
        error = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(facts), code))
        request.get_response_sender().send(error, FINAL)
        """
    )
    for gone in (False, True):
        client = Client()
        client.gone = gone
        instance.stream(batch_of(1), [client])
        assert client.all() == [str([gone, gone])]


# Inputs


def test_inputs_are_there_until_the_final_response(start: Start) -> None:
    instance = start(
        """
        def work(request):
            GO.wait()
            tensor = request.inputs()[0]
            request.get_response_sender().send(answer(int(tensor.as_numpy()[0, 0])), FINAL)
            KEPT.append(request)
        def never_taken(request):
            GO.wait()
            tensor = request.inputs()[0]
            request.get_response_sender().send(flags=FINAL)
            try:
                tensor.as_numpy()
            except pb_utils.TritonModelException as error:
                ERRORS.append(str(error))
        spawn(work, requests[0])
        spawn(never_taken, requests[1])
        """
    )
    first, second = stream(instance, 5, 6)
    model = model_module()
    model.GO.set()
    assert (first.all(), second.all()) == ([5], [None])
    for thread in model.THREADS:
        thread.join(LIMIT)
    assert model.KEPT[0].inputs()[0].as_numpy().tolist() == [[5]]  # the model's own copy
    (error,) = model.ERRORS
    assert error.startswith("tensor 'IN' of an earlier request is gone")


def test_unsound_inputs_are_answered_without_the_model(start: Callable[..., Any]) -> None:
    config = replace(CONFIG, input=(ModelInput("IN", "TYPE_STRING", dims=(1,)),))
    body = """
        for request in requests:
            request.get_response_sender().send(answer(len(requests)), FINAL)
    """
    instance = start(body, config)
    text = DATA_TYPES["BYTES"]
    raw = [b"\5\0\0\0x", b"\1\0\0\0x", b""]
    requests = [InferRequest("m", (Tensor("IN", text, (1, 1), data),)) for data in raw]
    clients = [Client() for _ in raw]
    instance.stream(Batch(requests, {}, [1] * 3), clients)
    short, sound, missing = [client.all()[0] for client in clients]
    assert sound == 1
    assert str(short).startswith("incomplete string data for inference input 'IN'")
    assert str(missing).startswith("expected 1 string elements for inference input 'IN', got 0")
    only = Client()
    instance.stream(Batch(requests[:1], {}, [1]), [only])
    assert only.all() == [short]


# Configuration


def test_auto_completion_may_make_a_model_decoupled(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        textwrap.dedent(
            """
            import triton_python_backend_utils as pb_utils
            class TritonPythonModel:
                @staticmethod
                def auto_complete_config(config):
                    config.set_model_transaction_policy({"decoupled": True})
                    return config
                def execute(self, requests):
                    for request in requests:
                        request.get_response_sender().send(flags=1)
            """
        )
    )
    backend = PythonBackend()
    completed = backend.complete(replace(CONFIG, model_transaction_policy=None), tmp_path)
    assert completed.decoupled
    model = backend.load(completed, tmp_path)
    instance = model.instance(Placement("m_0_0", "KIND_CPU"))
    assert stream(instance, 1)[0].all() == [None]
    instance.close()
    model.unload()


def test_a_model_that_is_not_decoupled_answers_a_stream_once(start: Callable[..., Any]) -> None:
    config = replace(CONFIG, model_transaction_policy=None)
    instance = start("return [answer(7 * number(request)) for request in requests]", config)
    assert [client.all() for client in stream(instance, 1, 2)] == [[7], [14]]


# The example


def numbers_of(client: Client) -> list[list[int]]:
    return [
        [int(tensor.as_numpy()[0]) for tensor in response.outputs]
        for response in client.responses
        if isinstance(response, InferResponse)
    ]


def test_the_example_repeats_its_input() -> None:
    folder = EXAMPLES / "repeat_int32"
    config = replace(read_config(folder / "config.pbtxt"), name="repeat_int32")
    model = PythonBackend().load(config, folder / "1")
    instance = model.instance(Placement("repeat_int32_0_0", "KIND_CPU"))

    def run(values: list[int], delays: list[int] | None = None, gone: bool = False) -> Client:
        inputs = [Tensor.from_numpy("IN", np.array(values, np.int32))]
        if delays is not None:
            inputs.append(Tensor.from_numpy("DELAY", np.array(delays, np.uint32)))
        client = Client()
        client.gone = gone
        instance.stream(Batch([InferRequest("m", tuple(inputs))], {}, [1]), [client])
        client.all()
        return client

    assert numbers_of(run([4, 2, 1])) == [[4, 0], [2, 1], [1, 2]]
    assert numbers_of(run([7], [0])) == [[7, 0]]
    assert run([]).answers == [None]
    assert run([1, 2], [0]).answers == ["DELAY has 1 elements, IN 2"]
    assert run([1, 2], gone=True).answers == ["the client left"]
    instance.close()
    model.unload()
