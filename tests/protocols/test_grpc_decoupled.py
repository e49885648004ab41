"""ModelStreamInfer with models that answer any number of times, in memory."""

import asyncio
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel import (
    DATA_TYPES,
    Cancelled,
    InferRequest,
    InferResponse,
    Internal,
    InvalidArgument,
    MicrokernelError,
    ModelConfig,
    ResponseStream,
    Tensor,
    TransactionPolicy,
    Unavailable,
)
from microkernel.testing import FakeModel, FakeServer
from microkernel_grpc.inference import Inference
from microkernel_grpc.schema import message
from microkernel_grpc.stream import Streams

STRICT = (("triton_grpc_error", "true"),)
LIMIT = 20
BYTE = DATA_TYPES["UINT8"]


class Counting(ResponseStream):
    """A stream of responses that says how many were taken and whether it was closed early."""

    def __init__(self) -> None:
        super().__init__(lambda: setattr(self, "abandoned", True))
        self.abandoned = False
        self.taken = 0

    async def __anext__(self) -> InferResponse:
        response = await super().__anext__()
        self.taken += 1
        return response


class Scripted(FakeServer):
    """A server whose responses the test gives, by the id of the request. A request whose id is in
    `refused` is refused, one in `held` is accepted only when the test says so."""

    def __init__(self) -> None:
        super().__init__(
            FakeModel(
                ModelConfig(
                    name=name,
                    backend="python",
                    model_transaction_policy=TransactionPolicy(decoupled=name == "many"),
                )
            )
            for name in ("many", "one")
        )
        self.streams: dict[str, Counting] = {}
        self.refused: dict[str, MicrokernelError] = {}
        self.held: dict[str, asyncio.Event] = {}
        self.accepted: asyncio.Queue[str] = asyncio.Queue()

    async def stream(self, request: InferRequest) -> ResponseStream:
        if request.id in self.held:
            await self.held[request.id].wait()
        if request.id in self.refused:
            raise self.refused[request.id]
        self.requests.append(request)
        self.streams[request.id] = stream = Counting()
        self.accepted.put_nowait(request.id)
        return stream

    async def wait(self, count: int) -> list[str]:
        return [await asyncio.wait_for(self.accepted.get(), LIMIT) for _ in range(count)]

    def give(self, identity: str, *data: bytes, final: bool = False, **fields: Any) -> None:
        """A response per item of `data`; the last one is final where it says so."""
        for i, each in enumerate(data, 1):
            output = Tensor("Y", BYTE, (len(each),), each)
            last = final and i == len(data)
            response = InferResponse("many", 3, identity, (output,), final=last, **fields)
            self.streams[identity].put(response)

    def end(self, identity: str) -> None:
        """Nothing but the news that there will be no more."""
        ending = InferResponse("many", 3, identity, (), final=True, flag_only=True)
        self.streams[identity].put(ending)

    def fail(self, identity: str, text: str, *, final: bool) -> None:
        failed = InferResponse("many", 3, identity, (), final=final, error=Internal(text))
        self.streams[identity].put(failed)


class Conversation:
    """A stream without a network. Answers are written while `flowing` is set."""

    def __init__(self, server: FakeServer, metadata: Any = ()) -> None:
        self.streams = Streams(Inference(server, None))
        self._requests: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.writing = asyncio.Event()
        serving = self.streams.serve(self._requests.get, self._write, metadata)
        self.serving = asyncio.create_task(serving)

    async def _write(self, packed: bytes) -> None:
        assert not self.writing.is_set(), "two writers at once"
        self.writing.set()
        await self.flowing.wait()
        await asyncio.sleep(0)
        self.writing.clear()
        answer = message("ModelStreamInferResponse")()
        answer.ParseFromString(packed)
        self.answers.put_nowait(answer)

    def send(self, *asked: tuple[str, str], **fields: Any) -> None:
        """Requests by id and model."""
        for identity, model in asked:
            request = message("ModelInferRequest")(model_name=model, id=identity, **fields)
            self._requests.put_nowait(request.SerializeToString())

    async def receive(self, count: int = 1) -> list[Any]:
        return [await asyncio.wait_for(self.answers.get(), LIMIT) for _ in range(count)]

    async def shown(self, count: int) -> list[str]:
        """The next answers in short."""
        return [short(answer) for answer in await self.receive(count)]

    async def finish(self) -> None:
        self._requests.put_nowait(None)
        await asyncio.wait_for(self.serving, LIMIT)
        assert self.answers.empty()


def short(answer: Any) -> str:
    """`id:data`, or `id!error`, and `.` where the answer says that it is final."""
    response = answer.infer_response
    final = response.parameters["triton_final_response"]
    assert final.WhichOneof("parameter_choice") == "bool_param"
    data = b"".join(response.raw_output_contents).decode()
    text = f"!{answer.error_message}" if answer.error_message else f":{data}"
    return f"{response.id}{text}{'.' * final.bool_param}"


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
async def server() -> Scripted:
    return Scripted()


async def test_responses_of_decoupled_models_interleave(server: Scripted) -> None:
    talk = Conversation(server)
    talk.send(("a", "many"), ("b", "many"))
    await server.wait(2)
    server.give("b", b"1")
    assert await talk.shown(1) == ["b:1"]
    server.give("a", b"2", b"3")
    assert await talk.shown(2) == ["a:2", "a:3"]
    server.give("b", b"4", final=True)
    server.give("a", b"5", final=True)
    assert await talk.shown(2) == ["b:4.", "a:5."]
    await talk.finish()


async def test_decoupled_and_ordinary_requests_do_not_wait_for_each_other(server: Scripted) -> None:
    talk = Conversation(server)
    talk.send(("a", "one"), ("b", "many"), ("c", "one"), ("d", "one"))
    await server.wait(4)
    server.give("d", b"1", final=True)
    server.give("c", b"2", final=True)
    server.give("b", b"3")
    assert await talk.shown(1) == ["b:3"]
    server.give("a", b"4", final=True)
    assert await talk.shown(3) == ["a:4.", "c:2.", "d:1."]
    server.end("b")
    await talk.finish()


@pytest.mark.parametrize("wanted", [None, False, True])
async def test_an_end_without_a_response(server: Scripted, wanted: bool | None) -> None:
    given = {} if wanted is None else {"triton_enable_empty_final_response": {"bool_param": wanted}}
    talk = Conversation(server)
    talk.send(("a", "many"), parameters=given, model_version="1")
    talk.send(("b", "many"), parameters=given)
    await server.wait(2)
    server.give("a", b"1")
    assert await talk.shown(1) == ["a:1"]
    for identity, version in (("a", "1"), ("b", "")):
        server.end(identity)
        if wanted:
            (answer,) = await talk.receive()
            assert answer.infer_response == message("ModelInferResponse")(
                id=identity,
                model_name="many",
                model_version=version,
                parameters={"triton_final_response": {"bool_param": True}},
            )
    await talk.finish()


async def test_a_response_says_which_version_ran(server: Scripted) -> None:
    talk = Conversation(server)
    talk.send(("a", "many"))
    await server.wait(1)
    server.give("a", b"1", final=True, parameters={"mine": 7})
    (answer,) = await talk.receive()
    assert (answer.infer_response.model_name, answer.infer_response.model_version) == ("many", "3")
    assert answer.infer_response.parameters["mine"].int64_param == 7
    await talk.finish()


async def test_responses_may_follow_an_error(server: Scripted) -> None:
    talk = Conversation(server)
    talk.send(("a", "many"))
    await server.wait(1)
    server.fail("a", "once", final=False)
    server.give("a", b"1")
    server.fail("a", "over", final=True)
    assert await talk.shown(3) == ["a!once", "a:1", "a!over."]
    await talk.finish()


async def test_strict_mode_abandons_every_request(server: Scripted) -> None:
    talk = Conversation(server, STRICT)
    server.refused["x"] = Unavailable("Exceeds maximum queue size")
    talk.send(("a", "many"), ("b", "one"), ("c", "many"), ("x", "many"))
    await server.wait(3)
    assert (await talk.receive())[0].error_message == "Exceeds maximum queue size"
    server.give("a", b"1")
    assert await talk.shown(1) == ["a:1"]
    server.fail("c", "broken", final=False)
    server.give("a", b"2")
    with pytest.raises(Internal, match="broken"):
        await asyncio.wait_for(talk.serving, LIMIT)
    assert [stream.abandoned for stream in server.streams.values()] == [True] * 3


async def test_refusals_keep_their_place(server: Scripted) -> None:
    server.refused = {"b": InvalidArgument("no b"), "c": InvalidArgument("no c")}
    talk = Conversation(server)
    talk.send(("a", "one"), ("b", "one"), ("c", "many"), ("d", "absent"))
    await server.wait(1)
    (first,) = await talk.receive()  # a decoupled model keeps no order
    assert first == message("ModelStreamInferResponse")(
        error_message="no c", infer_response={"id": "c"}
    )
    server.give("a", b"1", final=True)
    texts = [answer.error_message or "good" for answer in await talk.receive(3)]
    assert texts == ["good", "no b", "Request for unknown model: 'absent' is not found"]
    await talk.finish()


async def test_requests_are_accepted_in_their_order(server: Scripted) -> None:
    server.held["a"] = asyncio.Event()
    talk = Conversation(server)
    talk.send(("a", "one"), ("b", "one"))
    await settle()
    assert server.accepted.empty()
    server.held["a"].set()
    assert await server.wait(2) == ["a", "b"]
    for identity in "ab":
        server.give(identity, b"", final=True)
    assert await talk.shown(2) == ["a:.", "b:."]
    await talk.finish()


async def test_nothing_is_taken_while_the_client_does_not_read(server: Scripted) -> None:
    talk = Conversation(server)
    talk.flowing.clear()
    talk.send(("a", "many"), ("b", "many"))
    await server.wait(2)
    server.give("a", *[b"x"] * 50)
    server.give("b", *[b"y"] * 50)
    await settle()
    assert [stream.taken for stream in server.streams.values()] == [1, 1]
    talk.flowing.set()
    server.end("a")
    server.end("b")
    shown = await talk.shown(100)
    assert shown == ["a:x", "b:y"] * 50  # neither keeps the other from writing
    await talk.finish()


async def test_a_client_that_goes_abandons_what_runs(server: Scripted) -> None:
    talk = Conversation(server)
    talk.flowing.clear()
    talk.send(("a", "many"), ("b", "one"), ("c", "many"))
    await server.wait(3)
    server.give("a", b"1")
    server.give("c", b"2", final=True)
    await settle()
    talk.serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(talk.serving, LIMIT)
    assert {i for i, stream in server.streams.items() if stream.abandoned} == {"a", "b"}


async def test_a_request_that_is_being_accepted_goes_with_the_stream(server: Scripted) -> None:
    server.held["a"] = asyncio.Event()
    talk = Conversation(server)
    talk.send(("a", "many"))
    await settle()
    talk.serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(talk.serving, LIMIT)
    assert not server.streams


async def test_a_response_that_cannot_be_sent_becomes_an_error(
    server: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 2**31

    talk = Conversation(server)
    talk.send(("a", "many"))
    await server.wait(1)
    huge = Tensor("Y", BYTE, (2**31,), Huge())
    server.streams["a"].put(InferResponse("many", 1, "a", (huge,), final=False))
    wrong = Tensor("Y", BYTE, ("secret",), b"")  # type: ignore[arg-type]
    server.streams["a"].put(InferResponse("many", 1, "a", (wrong,), final=False))
    server.give("a", b"1", final=True)
    large, fault, good = await talk.shown(3)
    assert large.startswith("a!Response has byte size 2147483648 which exceeds gRPC's byte size")
    assert fault == "a!internal error, see the server's log"
    assert good == "a:1."
    assert "ModelStreamInfer" in capsys.readouterr().out
    await talk.finish()


async def test_stopping_waits_for_the_last_response(server: Scripted) -> None:
    talk = Conversation(server)
    talk.send(("a", "many"))
    await server.wait(1)
    talk.streams.stop()
    server.give("a", b"1")
    assert await talk.shown(1) == ["a:1"]
    assert not talk.serving.done()
    server.end("a")
    with pytest.raises(Unavailable, match="shutting down"):
        await asyncio.wait_for(talk.serving, LIMIT)


async def test_a_write_that_fails_ends_the_stream(server: Scripted) -> None:
    async def write(packed: bytes) -> None:
        raise Cancelled("gone")

    requests: asyncio.Queue[bytes | None] = asyncio.Queue()
    asked = message("ModelInferRequest")(model_name="many", id="a").SerializeToString()
    requests.put_nowait(asked)
    serving = asyncio.create_task(Streams(Inference(server, None)).serve(requests.get, write, ()))
    await server.wait(1)
    server.give("a", b"1", b"2")
    with pytest.raises(Cancelled, match="gone"):
        await asyncio.wait_for(serving, LIMIT)
    assert server.streams["a"].abandoned


REQUESTS = st.lists(
    st.tuples(st.sampled_from(["many", "one"]), st.integers(0, 4), st.booleans()), max_size=6
)


@given(REQUESTS, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_everything_arrives_in_the_order_that_is_promised(
    plan: list[tuple[str, int, bool]], random: Any
) -> None:
    """Requests that end with or without a response, served in any order."""

    async def run() -> list[str]:
        server = Scripted()
        talk = Conversation(server)
        talk.send(*((str(i), model) for i, (model, _, _) in enumerate(plan)))
        await server.wait(len(plan))
        left = {str(i): expected(*each) for i, each in enumerate(plan)}
        while left:
            identity = random.choice(sorted(left))
            if left[identity]:
                data, final = left[identity].popleft()
                server.give(identity, data, final=final)
            if not left[identity]:
                server.end(identity)  # dropped where a response was the final one
                del left[identity]
            if random.random() < 0.5:
                await settle()
        count = sum(len(expected(*each)) for each in plan)
        shown = await talk.shown(count)
        await talk.finish()
        return shown

    shown = asyncio.run(run())
    for i, each in enumerate(plan):
        mine = [text.partition(":")[2] for text in shown if text.startswith(f"{i}:")]
        assert mine == [f"{data.decode()}{'.' * final}" for data, final in expected(*each)]
    ordinary = [text for text in shown if plan[int(text[0])][0] == "one"]
    assert ordinary == sorted(ordinary)


def expected(model: str, count: int, ends_alone: bool) -> "deque[tuple[bytes, bool]]":
    """The responses of a request: data, and whether it is the final one."""
    if model == "one":
        return deque([(b"0", True)])
    datas = [str(n).encode() for n in range(count)]
    return deque((data, not ends_alone and i == count) for i, data in enumerate(datas, 1))
