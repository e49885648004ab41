"""The Python backend executes real models: requests, answers, faults, `async def`."""

import asyncio
import json
import logging
import textwrap
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from python_models import answer, executing

from microkernel import (
    DATA_TYPES,
    Batch,
    InferRequest,
    InferResponse,
    Internal,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    ModelInput,
    ModelOutput,
    Placement,
    Sequence,
    Tensor,
    Unavailable,
)
from microkernel_python.backend import PythonBackend
from microkernel_python.instance import PythonInstance
from microkernel_python.response import InferenceResponse, fault

PLACEMENT = Placement("m_0_0", "KIND_CPU")
ONE = np.array([1.0], dtype=np.float32)
CONFIG = ModelConfig(
    name="m",
    backend="python",
    input=(ModelInput("A", "TYPE_FP32", dims=(-1,)),),
    output=(ModelOutput("B", "TYPE_FP32", dims=(-1,)),),
)

HEAD = "import numpy as np\nimport triton_python_backend_utils as pb_utils\n\n"
MakeBatch = Callable[..., Batch]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(source)`: a version folder whose `model.py` is this; its path."""

    def make(source: str) -> Path:
        folder = tmp_path / "m" / "1"
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(HEAD + textwrap.dedent(source))
        return folder

    return make


def start(folder: Path, config: ModelConfig = CONFIG) -> PythonInstance:
    return PythonBackend().load(config, folder).instance(PLACEMENT)


def batch_of(*tensors: Tensor, **fields: Any) -> Batch:
    """One request with exactly these inputs."""
    return Batch([InferRequest("m", tensors, version=1, **fields)], {}, [1])


def refusal(outcome: object) -> MicrokernelError:
    assert isinstance(outcome, MicrokernelError), outcome
    return outcome


# execute


def test_each_request_keeps_its_own_tensors(write: Write, make_batch: MakeBatch) -> None:
    folder = write(
        executing(
            """
            assert type(requests) is list
            outputs = []
            for i, request in enumerate(requests):
                array = request.inputs()[0].as_numpy()
                array += 10 * i
                outputs.append(pb_utils.InferenceResponse([pb_utils.Tensor("B", array)]))
            return outputs
            """
        )
    )
    arrays = [np.full((n, 2), n, dtype=np.float32) for n in (1, 3)]
    batch = make_batch([{"A": array} for array in arrays])
    outcomes = start(folder).execute(batch)
    for i, (array, outcome) in enumerate(zip(arrays, outcomes, strict=True)):
        response = answer(outcome)
        np.testing.assert_array_equal(response.outputs[0].as_numpy(), array + 10 * i)
        assert (response.model_name, response.version, response.id) == ("m", 1, str(i))
    # The model changed copies of its own, not the kernel's memory.
    np.testing.assert_array_equal(batch.stacked["A"].as_numpy(), np.concatenate(arrays))


def test_what_a_request_tells(write: Write) -> None:
    folder = write(
        executing(
            """
            r = requests[0]
            facts = (r.request_id(), r.correlation_id(), r.flags(), r.timeout(), r.parameters(),
                     sorted(r.requested_output_names()), r.is_cancelled(), len(r.inputs()),
                     pb_utils.get_input_tensor_by_name(r, "A") is None, r.trace().get_context())
            r.set_flags(0)
            error = pb_utils.TritonError(repr(facts + (r.flags(),)), pb_utils.TritonError.NOT_FOUND)
            return [pb_utils.InferenceResponse(error=error)]
            """
        )
    )
    parameters = {"f": 1.5, "i": 7, "b": True, "s": "x"}
    batch = batch_of(
        id="req",
        sequence=Sequence("seq", start=True, end=True),
        timeout_us=99,
        parameters=parameters,
    )
    error = refusal(start(folder).execute(batch)[0])
    facts = ("req", "seq", 3, 99, json.dumps(parameters), ["B"], False, 0, True, None, 0)
    assert (error.code, str(error)) == ("NOT_FOUND", repr(facts))


@pytest.mark.parametrize(
    ("asked", "given"), [((), ["B"]), (("B",), ["B"]), (("C", "B"), ["B", "C"]), (("C",), ["C"])]
)
def test_only_requested_outputs_are_answered(
    write: Write, make_batch: MakeBatch, asked: tuple[str, ...], given: list[str]
) -> None:
    folder = write(
        executing(
            """
            tensors = [pb_utils.Tensor(n, np.zeros(1, np.int8)) for n in ("B", "C", "undeclared")]
            return [pb_utils.InferenceResponse(tensors)]
            """
        )
    )
    config = CONFIG if not asked else replace(CONFIG, output=(*CONFIG.output, ModelOutput("C")))
    outcomes = start(folder, config).execute(make_batch([{"A": ONE}], outputs=asked))
    assert [tensor.name for tensor in answer(outcomes[0]).outputs] == given


def test_an_error_concerns_its_request_only(write: Write, make_batch: MakeBatch) -> None:
    folder = write(
        executing(
            """
            good = pb_utils.InferenceResponse([], parameters={"n": 1, "s": "t", "b": True})
            error = pb_utils.TritonError(b"try later", code=pb_utils.TritonError.UNAVAILABLE)
            return [good, pb_utils.InferenceResponse(error=error)]
            """
        )
    )
    first, second = start(folder).execute(make_batch([{"A": ONE}, {"A": ONE}]))
    assert answer(first).parameters == {"n": 1, "s": "t", "b": True}
    assert isinstance(second, Unavailable)
    assert str(second) == "try later"


ANSWER = "pb_utils.InferenceResponse([])"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("return 'x'", "Expected a list in the execute return, found type '<class 'str'>'"),
        (f"return ({ANSWER},)", "Expected a list in the execute return, found type '<class 'tuple"),
        ("return []", "Number of InferenceResponse objects do not match"),
        (
            "return [3]",
            "Expected an 'InferenceResponse' object in the list that execute returns, "
            "found type '<class 'int'>'",
        ),
        ("raise ValueError('no')", "ValueError: no\n\nAt:\n"),
        ("raise SystemExit(1)", "SystemExit: 1\n\nAt:\n"),
        ("raise KeyboardInterrupt('k')", "KeyboardInterrupt: k\n\nAt:\n"),
        ("import asyncio; raise asyncio.CancelledError", "CancelledError: \n\nAt:\n"),
        ("class Mute(Exception): __str__ = None\nraise Mute", "Mute\n\nAt:\n"),
        ("return [requests[0].exec()]", "TritonModelException: BLS is not offered"),
        (
            f"requests[0].set_release_flags(2); return [{ANSWER}]",
            "Expected a None object in the list that execute returns for a rescheduled request.",
        ),
    ],
)
def test_a_fault_fails_the_whole_batch(
    write: Write, make_batch: MakeBatch, body: str, text: str
) -> None:
    instance = start(write(executing(body)))
    with pytest.raises(Internal) as caught:
        instance.execute(make_batch([{"A": ONE}]))
    prefix = "Failed to process the request(s) for model 'm_0_0', message: "
    assert str(caught.value).startswith(prefix + text)
    assert str(caught.value).count(prefix) == 1


@pytest.mark.parametrize(
    ("returned", "count", "text"),
    [
        (None, 2, ""),
        ([None, None], 2, ""),
        ([InferenceResponse([]), None], 2, ""),
        ([InferenceResponse([])], 2, "size is: 2, and InferenceResponse(s) size is: 1"),
        ([InferenceResponse([]), "x"], 2, "found type '<class 'str'>'"),
        ({}, 0, "found type '<class 'dict'>'"),
    ],
)
def test_what_execute_may_return(returned: object, count: int, text: str) -> None:
    found = fault(returned, count)
    assert text in found
    assert bool(found) == bool(text)


@pytest.mark.parametrize("body", ["return None", "return [None]"])
def test_a_request_without_an_answer_gets_an_error(
    write: Write, make_batch: MakeBatch, body: str
) -> None:
    (outcome,) = start(write(executing(body))).execute(make_batch([{"A": ONE}]))
    assert isinstance(outcome, Internal)
    assert "execute returned no response" in str(outcome)


def test_a_missing_execute_is_told_at_the_first_request(
    write: Write, make_batch: MakeBatch
) -> None:
    instance = start(write("class TritonPythonModel: pass"))
    with pytest.raises(Internal, match="does not implement the 'execute' method"):
        instance.execute(make_batch([{"A": ONE}]))
    instance.close()


def test_an_output_that_cannot_be_encoded_fails_the_batch(
    write: Write, make_batch: MakeBatch
) -> None:
    folder = write(
        """
        class Odd:
            def __str__(self):
                raise ValueError("no text")
        class TritonPythonModel:
            def execute(self, requests):
                return [pb_utils.InferenceResponse([pb_utils.Tensor("B", np.array([Odd()]))])]
        """
    )
    with pytest.raises(Internal, match=r"message: ValueError: no text\n\nAt:\n.*: __str__\n$"):
        start(folder).execute(make_batch([{"A": ONE}]))


def test_unsound_strings_are_refused_before_the_model_sees_them(write: Write) -> None:
    text = DATA_TYPES["BYTES"]
    sound = Tensor("A", text, (1,), b"\x01\0\0\0x")
    cases: list[tuple[Tensor, type[MicrokernelError]]] = [
        (Tensor("A", text, (1,), b"\x05\0\0\0x"), InvalidArgument),
        (Tensor("A", text, (1,), b"\x00\0\0\0" * 2), InvalidArgument),
        (Tensor("A", text, (2,), b"\x00\0\0\0"), Internal),
    ]
    requests = [InferRequest("m", (tensor,), version=1) for tensor, _ in cases]
    requests.insert(1, InferRequest("m", (sound,), version=1))
    folder = write(
        executing(
            """
            (request,) = requests
            array = request.inputs()[0].as_numpy()
            return [pb_utils.InferenceResponse([pb_utils.Tensor("B", array)])]
            """
        )
    )
    outcomes = start(folder).execute(Batch(requests, {}, [1] * 4))
    assert answer(outcomes.pop(1)).outputs[0].as_numpy().tolist() == [b"x"]
    for outcome, (_, kind) in zip(outcomes, cases, strict=True):
        assert type(outcome) is kind


def test_what_a_model_keeps_survives_and_what_it_never_took_is_gone(
    write: Write, make_batch: MakeBatch
) -> None:
    folder = write(
        """
        class TritonPythonModel:
            kept = []
            def execute(self, requests):
                tensor = requests[0].inputs()[0]
                taken = len(self.kept) == 0
                if taken:
                    tensor.as_numpy()
                self.kept.append(tensor)
                if len(self.kept) == 3:
                    self.kept[1].as_numpy()
                return [pb_utils.InferenceResponse([pb_utils.Tensor("B", self.kept[0].as_numpy())])]
        """
    )
    instance = start(folder)
    instance.execute(make_batch([{"A": ONE}]))
    (outcome,) = instance.execute(make_batch([{"A": ONE + 1}]))
    np.testing.assert_array_equal(answer(outcome).outputs[0].as_numpy(), ONE)
    with pytest.raises(Internal, match="tensor 'A' of an earlier request is gone"):
        instance.execute(make_batch([{"A": ONE}]))


def test_an_input_may_be_passed_on_as_it_is(write: Write, make_batch: MakeBatch) -> None:
    folder = write(executing("return [pb_utils.InferenceResponse(requests[0].inputs())]"))
    batch = make_batch([{"A": ONE}], outputs=("A",))
    (outcome,) = start(folder).execute(batch)
    memory = memoryview(batch.requests[0].inputs[0].data)
    memory[:] = b"\0" * len(memory)
    np.testing.assert_array_equal(answer(outcome).outputs[0].as_numpy(), ONE)


# async def execute

ASYNC = """
import asyncio, threading
class TritonPythonModel:
    async def execute(self, requests):
        async def one(request):
            await asyncio.sleep(0)
            thread = np.array([threading.current_thread().name.encode()], dtype=object)
            return pb_utils.InferenceResponse([pb_utils.Tensor("B", thread)])
        if requests[0].request_id() == "fail":
            raise ValueError("async no")
        if requests[0].request_id() == "exit":
            raise SystemExit(2)
        if requests[0].request_id() == "interrupt":
            raise KeyboardInterrupt(3)
        return await asyncio.gather(*map(one, requests))
    def finalize(self):
        names = [t.name for t in threading.enumerate()]
        pb_utils.Logger.log_info(f"loop alive: {'m_0_0 loop' in names}")
"""


def test_async_execute_runs_on_one_daemon_thread(
    write: Write, make_batch: MakeBatch, caplog: pytest.LogCaptureFixture
) -> None:
    instance = start(write(ASYNC))
    for _ in range(2):
        outcomes = instance.execute(make_batch([{"A": ONE}, {"A": ONE}]))
        names = [answer(outcome).outputs[0].as_numpy().tolist() for outcome in outcomes]
        assert names == [[b"m_0_0 loop"]] * 2
    (thread,) = [t for t in threading.enumerate() if t.name == "m_0_0 loop"]
    assert thread.daemon
    with caplog.at_level(logging.INFO, "microkernel.model"):
        instance.close()
    assert not thread.is_alive()
    assert "loop alive: False" in caplog.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("fail", "ValueError: async no"),
        ("exit", "SystemExit: 2"),
        ("interrupt", "KeyboardInterrupt: 3"),
    ],
)
def test_an_async_failure_leaves_the_loop_running(write: Write, name: str, text: str) -> None:
    folder = write(ASYNC)
    instance = start(folder)
    tensor = Tensor.from_numpy("A", ONE)
    with pytest.raises(Internal) as caught:
        instance.execute(batch_of(tensor, id=name))
    message = str(caught.value)
    assert f"message: {text}\n\nAt:\n  {folder / 'model.py'}(" in message
    assert message.count("\n") == 4
    assert isinstance(instance.execute(batch_of(tensor))[0], InferResponse)
    instance.close()


def test_a_background_task_is_cancelled_when_the_instance_closes(
    write: Write, make_batch: MakeBatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(
        """
        import asyncio
        async def forever():
            try:
                await asyncio.Event().wait()
            finally:
                pb_utils.Logger.log_info("cancelled")
        class TritonPythonModel:
            async def execute(self, requests):
                self.task = asyncio.create_task(forever())
                await asyncio.sleep(0)
                return [pb_utils.InferenceResponse([])]
        """
    )
    instance = start(folder)
    instance.execute(make_batch([{"A": ONE}]))
    with caplog.at_level(logging.INFO, "microkernel.model"):
        instance.close()
    assert "cancelled" in caplog.text


def test_a_sync_execute_may_run_a_loop_of_its_own(write: Write, make_batch: MakeBatch) -> None:
    folder = write(
        executing(
            """
            import asyncio
            async def main():
                return [pb_utils.InferenceResponse([])]
            return asyncio.run(main())
            """
        )
    )
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    assert isinstance(start(folder).execute(make_batch([{"A": ONE}]))[0], InferResponse)
