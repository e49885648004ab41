"""A request on its way through an ensemble whose models are in memory: what runs when, what its
steps are asked, and what comes back."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from ensemble_models import DECOUPLED, Site, answer, doubled, ensemble, model, row, step

from microkernel import (
    InferRequest,
    InferResponse,
    InvalidArgument,
    NotFound,
    Tensor,
    Unavailable,
    Unsupported,
)
from microkernel.models.ensemble import EnsembleVersion
from microkernel.models.ensemble_gates import LONGEST_WAIT
from microkernel.models.serving import Company
from microkernel.port import NO_CONTEXT, TraceSettings
from microkernel.request import Sequence
from microkernel.stats import Failure
from microkernel.tracing.tracer import Tracer

pytestmark = pytest.mark.virtual_time


@pytest.fixture
def site() -> Site:
    return Site()


def ask(*values: int, name: str = "a", **more: Any) -> InferRequest:
    return InferRequest("e", (row(name, *values),), **more)


def values(response: InferResponse) -> dict[str, list[int]]:
    return {tensor.name: tensor.as_numpy().tolist() for tensor in response.outputs}


def chain(site: Site, length: int = 2) -> EnsembleVersion:
    site.add(model("m"))
    names = ["a", *(f"t{i}" for i in range(1, length)), "y"]
    steps = [step("m", f"X={one}", f"Y={two}") for one, two in pairwise(names)]
    return site.ensemble(ensemble("e", "a", "y", *steps))


async def test_a_chain(site: Site) -> None:
    made = chain(site, 3)
    response = await made.infer(ask(1, 2, id="7"))
    assert (response.model_name, response.version, response.id) == ("e", 1, "7")
    assert values(response) == {"y": [8, 16]}
    assert response.parameters == {}
    assert response.final
    assert site.idle()


async def test_a_chain_needs_no_task(site: Site) -> None:
    made = chain(site, 3)
    before = len(asyncio.all_tasks())
    seen: list[int] = []

    async def counting(request: InferRequest) -> InferResponse:
        seen.append(len(asyncio.all_tasks()))
        return await doubled(request)

    site.add(model("m"), counting)
    await made.infer(ask(1))
    assert seen == [before] * 3


async def test_branches_run_at_the_same_time(site: Site) -> None:
    meeting = asyncio.Barrier(2)

    async def meet(request: InferRequest) -> InferResponse:
        await meeting.wait()
        return await doubled(request)

    async def added(request: InferRequest) -> InferResponse:
        one, two = (tensor.as_numpy() for tensor in request.inputs)
        return answer(request, Tensor.from_numpy("Y", one + two))

    site.add(model("left"), meet)
    site.add(model("right"), meet)
    site.add(model("sum", "X1 X2"), added)
    made = site.ensemble(
        ensemble(
            "e",
            "a",
            "y",
            step("sum", "X1=l X2=r", "Y=y"),  # the order of steps means nothing
            step("left", "X=a", "Y=l"),
            step("right", "X=a", "Y=r"),
        )
    )
    async with asyncio.timeout(1):
        assert values(await made.infer(ask(3))) == {"y": [12]}


async def test_only_the_steps_that_are_needed_run(site: Site) -> None:
    one, two = site.add(model("one")), site.add(model("two"))
    made = site.ensemble(
        ensemble("e", "a", "y z", step("one", "X=a", "Y=y"), step("two", "X=a", "Y=z"))
    )
    assert values(await made.infer(ask(1, outputs=("z",)))) == {"z": [2]}
    assert (len(one.requests), len(two.requests)) == (0, 1)
    assert values(await made.infer(ask(1))) == {"y": [2], "z": [2]}
    assert (len(one.requests), len(two.requests)) == (1, 2)


async def test_a_step_is_asked_on_behalf_of_the_request(site: Site) -> None:
    made = chain(site, 1)
    await made.infer(
        ask(
            1,
            id="7",
            priority=2,
            timeout_us=9,
            sequence=Sequence(5, start=True),
            parameters={"header": "x"},
        )
    )
    (sent,) = site.find("m", -1).requests
    assert (sent.model_name, sent.version, sent.id) == ("m", -1, "7")
    assert (sent.priority, sent.timeout_us, sent.sequence) == (2, 9, Sequence(5, start=True))
    assert sent.parameters == {"header": "x"}
    assert sent.outputs == ()  # all that the model has


async def test_only_the_mapped_outputs_are_asked_for(site: Site) -> None:
    found = site.add(model("m", outputs="Y Z"))
    made = site.ensemble(ensemble("e", "a", "y", step("m", "X=a", "Y=y")))
    await made.infer(ask(1))
    assert found.requests[0].outputs == ("Y",)


async def test_tensors_are_passed_on_without_a_copy(site: Site) -> None:
    given = row("a", 1, 2)
    made = chain(site, 1)
    await made.infer(InferRequest("e", (given,)))
    assert site.find("m", -1).requests[0].inputs[0].data is given.data


async def test_a_tensor_goes_when_nobody_needs_it_any_more(site: Site) -> None:
    made, arrays = chain(site, 4), list[weakref.ref[Any]]()
    alive: list[int] = []

    async def watched(request: InferRequest) -> InferResponse:
        gc.collect()
        alive.append(sum(ref() is not None for ref in arrays))
        array = np.array(request.inputs[0].as_numpy() * 2)
        arrays.append(weakref.ref(array))
        data = array.data.cast("B")
        return answer(request, Tensor("Y", request.inputs[0].datatype, array.shape, data))

    site.add(model("m"), watched).requests = _Forgetful()
    assert values(await made.infer(ask(1))) == {"y": [16]}
    assert alive == [0, 1, 1, 1]


class _Watched:
    """Makes tensors, and knows how many there were and which of them are still there."""

    def __init__(self) -> None:
        self.arrays: list[weakref.ref[Any]] = []

    def tensor(self, name: str) -> Tensor:
        array = np.array([1], np.int32)
        self.arrays.append(weakref.ref(array))
        return Tensor.from_numpy(name, array)

    def answer(self, request: InferRequest) -> InferResponse:
        return answer(request, self.tensor("Y"))

    async def infer(self, request: InferRequest) -> InferResponse:
        return self.answer(request)

    async def responses(self, request: InferRequest) -> AsyncIterator[InferResponse]:
        yield self.answer(request)


class _Failing(_Watched):
    """Fails instead."""

    def answer(self, request: InferRequest) -> InferResponse:
        raise Unavailable("no")


async def _asked(made: EnsembleVersion, tensor: Tensor, *, streamed: bool) -> str:
    """What an ensemble's answer says is wrong."""
    request = InferRequest("e", (tensor,))
    try:
        if not streamed:
            await made.infer(request)
            return ""
        stream = await made.stream(request)
        errors = [str(response.error) async for response in stream if response.error is not None]
        stream.close()
    except Unavailable as error:
        return str(error)
    return "".join(errors)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("kind", "wrong"), [(_Watched, ""), (_Failing, "in ensemble 'e', no")])
@pytest.mark.parametrize("more", ["", DECOUPLED])
async def test_the_tensors_of_a_request_go_with_its_answer(
    site: Site,
    without_collector: None,
    more: str,
    kind: type[_Watched],
    wrong: str,
    streamed: bool,
) -> None:
    first, second = _Watched(), kind()
    site.add(model("m"), first.infer).requests = _Forgetful()
    site.add(model("n", more=more), second.infer, second.responses).requests = _Forgetful()
    steps = step("m", "X=a", "Y=t"), step("n", "X=t", "Y=y")
    made = site.ensemble(ensemble("e", "a", "y", *steps))
    assert await _asked(made, first.tensor("a"), streamed=streamed) == wrong
    for _ in range(3):  # tasks that are over tell so
        await asyncio.sleep(0)
    arrays = first.arrays + second.arrays
    assert [array() for array in arrays] == [None] * (2 if wrong else 3)


class _Forgetful(list[InferRequest]):
    """Keeps nothing."""

    def append(self, request: InferRequest) -> None:
        pass


OPTIONAL = 'input { name: "B" data_type: TYPE_INT32 dims: [ -1 ] optional: true }\n'


async def test_optional_inputs_are_left_out_of_the_steps(site: Site) -> None:
    found = site.add(model("m", more=OPTIONAL))
    text = ensemble("e", "a", "y", step("m", "X=a B=b", "Y=y"))
    made = site.ensemble(text + OPTIONAL.replace('"B"', '"b"'))
    await made.infer(ask(1))
    assert [tensor.name for tensor in found.requests[0].inputs] == ["X"]
    await made.infer(InferRequest("e", (row("a", 1), row("b", 2))))
    assert [tensor.name for tensor in found.requests[1].inputs] == ["X", "B"]


async def test_outputs_that_a_step_does_not_make(site: Site) -> None:
    """Whoever takes them does without, and an output of the ensemble is absent."""
    site.add(model("half", outputs="Y Z"))
    after = site.add(model("after", more=OPTIONAL))
    made = site.ensemble(
        ensemble(
            "e",
            "a",
            "y z w",
            step("half", "X=a", "Y=y Z=z"),
            step("after", "X=y B=z", "Y=w"),
        )
    )
    assert values(await made.infer(ask(1))) == {"y": [2], "w": [4]}
    assert [tensor.name for tensor in after.requests[0].inputs] == ["X"]
    with pytest.raises(InvalidArgument) as raised:
        await made.infer(ask(1, id="7", outputs=("z",)))
    assert str(raised.value) == (
        "in ensemble 'e', [request id: 7] unexpected deadlock, at least one output is not set "
        "while no more ensemble steps can be made"
    )


ROWS = "data_type: TYPE_INT32 dims: [ 2 ]"


@pytest.mark.parametrize(
    ("outer", "inner", "given", "seen", "returned"),
    [
        (0, 8, (2,), (1, 2), (2,)),  # the step batches, the ensemble does not
        (8, 0, (1, 2), (2,), (1, 2)),  # the other way round
        (8, 8, (3, 2), (3, 2), (3, 2)),
        (0, 0, (2,), (2,), (2,)),
    ],
)
async def test_the_batch_dimension_comes_and_goes(
    site: Site,
    outer: int,
    inner: int,
    given: tuple[int, ...],
    seen: tuple[int, ...],
    returned: tuple[int, ...],
) -> None:
    variable = "data_type: TYPE_INT32 dims: [ -1 ]"
    own = model("m", more=f"max_batch_size: {inner}\n").replace(variable, ROWS)
    text = ensemble("e", "a", "y", step("m", "X=a", "Y=y"), more=f"max_batch_size: {outer}\n")

    async def same(request: InferRequest) -> InferResponse:
        return answer(request, replace(request.inputs[0], name="Y"))

    found = site.add(own, same)
    made = site.ensemble(text.replace(variable, ROWS))
    array = np.zeros(given, np.int32)
    response = await made.infer(InferRequest("e", (Tensor.from_numpy("a", array),)))
    assert found.requests[0].inputs[0].shape == seen
    assert response.outputs[0].shape == returned


async def test_reshape_is_what_the_steps_see(site: Site) -> None:
    found = site.add(model("m"), lambda r: same_as(r, "Y"))
    reshape = "data_type: TYPE_INT32 dims: [ 2, -1 ] reshape { shape: [ -1 ] }"
    text = ensemble("e", "", "", step("m", "X=a", "Y=y"))
    fixed = reshape.replace("2, -1", "1, -1")
    text += f'input {{ name: "a" {fixed} }} output {{ name: "y" {fixed} }}'
    made = site.ensemble(text)
    array = np.zeros((1, 4), np.int32)
    response = await made.infer(InferRequest("e", (Tensor.from_numpy("a", array),)))
    assert found.requests[0].inputs[0].shape == (4,)
    assert response.outputs[0].shape == (1, 4)


async def same_as(request: InferRequest, name: str) -> InferResponse:
    return answer(request, replace(request.inputs[0], name=name))


async def test_the_sequence_that_a_step_says(site: Site) -> None:
    async def telling(request: InferRequest) -> InferResponse:
        response = await doubled(request)
        response.parameters = {"sequence_id": 9, "sequence_end": True, "other": 1}
        return response

    site.add(model("first"), telling)
    second = site.add(model("second"))
    made = site.ensemble(
        ensemble("e", "a", "y z", step("first", "X=a", "Y=z"), step("second", "X=z", "Y=y"))
    )
    response = await made.infer(ask(1, sequence=Sequence(5, start=True)))
    assert second.requests[0].sequence == Sequence(9, start=True, end=True)
    assert response.parameters == {
        "sequence_id": 9,
        "sequence_start": True,
        "sequence_end": True,
    }


@pytest.mark.parametrize("parameters", [{"sequence_id": 1.5}, {"sequence_end": 1}])
async def test_a_sequence_that_makes_no_sense(site: Site, parameters: dict[str, Any]) -> None:
    async def telling(request: InferRequest) -> InferResponse:
        return replace(await doubled(request), parameters=parameters)

    made = chain(site)
    site.add(model("m"), telling)
    with pytest.raises(InvalidArgument, match=r"^in ensemble 'e', response parameter 'sequence_"):
        await made.infer(ask(1))


# Errors


async def test_the_error_of_a_step(site: Site) -> None:
    made = chain(site)
    later = site.add(model("later"))

    async def fail(request: InferRequest) -> InferResponse:
        raise Unavailable("the worker died")

    site.add(model("m"), fail)
    with pytest.raises(Unavailable) as raised:
        await made.infer(ask(1))
    assert str(raised.value) == "in ensemble 'e', the worker died"
    assert later.requests == []
    assert made.stats.fail.count == 2
    assert made.stats.failures[Failure.OTHER] == 2
    assert made.stats.success.count == made.stats.execution_count == 0
    assert site.idle()


async def test_an_error_comes_when_the_other_steps_are_done(site: Site) -> None:
    gate, over = asyncio.Event(), list[str]()

    async def slow(request: InferRequest) -> InferResponse:
        await gate.wait()
        over.append("slow")
        return await doubled(request)

    async def fail(request: InferRequest) -> InferResponse:
        raise InvalidArgument("no")

    site.add(model("slow"), slow)
    after = site.add(model("after"))
    site.add(model("bad"), fail)
    made = site.ensemble(
        ensemble(
            "e",
            "a",
            "y z",
            step("slow", "X=a", "Y=t"),
            step("after", "X=t", "Y=y"),
            step("bad", "X=a", "Y=z"),
        )
    )
    task = asyncio.ensure_future(made.infer(ask(1)))
    await asyncio.sleep(1)
    assert not task.done()
    gate.set()
    with pytest.raises(InvalidArgument, match=r"^in ensemble 'e', no$"):
        await task
    assert over == ["slow"]
    assert after.requests == []


async def test_a_model_that_does_not_serve(site: Site) -> None:
    made = chain(site)
    del site.models["m"]
    assert not made.ready
    with pytest.raises(NotFound, match=r"^in ensemble 'e', Request for unknown model: 'm' is not"):
        await made.infer(ask(1))
    assert made.stats.failures[Failure.OTHER] == 2


async def test_a_request_that_does_not_fit_is_refused_and_not_counted(site: Site) -> None:
    made = chain(site)
    with pytest.raises(InvalidArgument, match=r"^unexpected inference input 'b' for model 'e'$"):
        await made.infer(ask(1, name="b"))
    assert made.stats.fail.count == 0


async def test_one_who_goes_takes_the_steps_along(site: Site) -> None:
    async def hang(request: InferRequest) -> InferResponse:
        await asyncio.Event().wait()
        raise AssertionError

    one, two = site.add(model("one"), hang), site.add(model("two"), hang)
    made = site.ensemble(
        ensemble("e", "a", "y z", step("one", "X=a", "Y=y"), step("two", "X=a", "Y=z"))
    )
    task = asyncio.ensure_future(made.infer(ask(1)))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (one.abandoned, two.abandoned) == (1, 1)
    assert made.stats.fail.count == 2
    assert site.idle()


# Ensembles in ensembles


async def test_an_ensemble_in_an_ensemble_in_an_ensemble(site: Site) -> None:
    async def slow(request: InferRequest) -> InferResponse:
        await asyncio.sleep(1)
        return await doubled(request)

    innermost = site.add(model("m"), slow)
    site.ensemble(ensemble("one", "a", "y", step("m", "X=a", "Y=t"), step("m", "X=t", "Y=y")))
    site.ensemble(ensemble("two", "a", "y", step("one", "a=a", "y=t"), step("m", "X=t", "Y=y")))
    made = site.ensemble(
        ensemble("e", "a", "y", step("m", "X=a", "Y=t"), step("two", "a=t", "y=y"))
    )
    task = asyncio.ensure_future(made.infer(ask(1)))
    await asyncio.sleep(0.5)
    assert innermost.held == 1  # once, also where the request has not come to yet
    del site.models["m"]
    assert values(await task) == {"y": [16]}
    assert innermost.held == 0


async def test_ensembles_that_are_nested_deeply_are_looked_at_once(site: Site) -> None:
    """Each needs the one below twice, so that there are more ways down than can be walked."""
    looks: list[str] = []
    find = site.find

    def counting(name: str, version: int) -> Any:
        looks.append(name)
        return find(name, version)

    site.find = counting  # type: ignore[method-assign]  # to count
    below = site.add(model("m0", "a", "y"), lambda request: same_as(request, "y"))
    for depth in range(1, 101):
        inner = f"m{depth - 1}"
        site.ensemble(
            ensemble(f"m{depth}", "a", "y z", step(inner, "a=a", "y=y"), step(inner, "a=a", "y=z"))
        )
    made = site.models["m100"]
    before = made.ready
    assert len(looks) == 200
    company = Company()
    company.hold(made)
    assert len(looks) == 400
    assert below.held == 1
    company.release()
    assert below.held == 0
    below.ready = False
    assert (before, made.ready) == (True, False)
    with pytest.raises(Unavailable, match=r"^in ensemble 'm100', Request for unknown model: 'm0'"):
        await made.infer(InferRequest("m100", (row("a", 1),)))
    assert site.idle()


async def test_errors_name_every_ensemble(site: Site) -> None:
    async def fail(request: InferRequest) -> InferResponse:
        raise Unavailable("no")

    site.add(model("m"), fail)
    site.ensemble(ensemble("inner", "a", "y", step("m", "X=a", "Y=y")))
    made = site.ensemble(ensemble("e", "a", "y", step("inner", "a=a", "y=y")))
    with pytest.raises(Unavailable, match=r"^in ensemble 'e', in ensemble 'inner', no$"):
        await made.infer(ask(1))


# Decoupled steps


def repeating(*counts: int, flag: bool = False) -> Any:
    """The responses of a decoupled model: 10, 20, ... times the input; to the n-th request as many
    as the n-th count says, the last one final or followed by a mere flag."""
    left = list(counts)

    async def respond(request: InferRequest) -> AsyncIterator[InferResponse]:
        value, count = int(request.inputs[0].as_numpy()[0]), left.pop(0)
        for index in range(1, count + 1):
            await asyncio.sleep(0)
            response = answer(request, row("Y", 10 * index * value))
            response.final = index == count and not flag
            yield response
        if flag or not count:
            yield answer(request, flag_only=True)

    return respond


async def collected(made: EnsembleVersion, request: InferRequest) -> list[InferResponse]:
    return [response async for response in await made.stream(request)]


def fan_out(site: Site, *counts: int, flag: bool = False, limit: int = 0) -> EnsembleVersion:
    """A model that answers many times, and one that doubles each answer."""
    site.add(model("many", more=DECOUPLED), responses=repeating(*counts, flag=flag))
    if "m" not in site.models:
        site.add(model("m"))
    return site.ensemble(
        ensemble("e", "a", "y", step("many", "X=a", "Y=t"), step("m", "X=t", "Y=y"), limit=limit)
    )


@pytest.mark.parametrize("flag", [False, True])
async def test_every_answer_of_a_step_goes_on(site: Site, flag: bool) -> None:
    made = fan_out(site, 3, flag=flag)
    assert made.config.decoupled
    found = await collected(made, ask(1))
    shown = [response for response in found if not response.flag_only]
    assert [values(response) for response in shown] == [{"y": [20 * i]} for i in (1, 2, 3)]
    assert [response.final for response in found] == [False] * (len(found) - 1) + [True]
    assert made.stats.success.count == made.stats.execution_count == 1
    await made.drain()
    assert site.idle()


async def test_no_answer_at_all(site: Site) -> None:
    (only,) = await collected(fan_out(site, 0), ask(1))
    assert (only.flag_only, only.final) == (True, True)


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_one_answer_where_one_is_wanted(site: Site, count: int) -> None:
    made = fan_out(site, count)
    if count == 1:
        assert values(await made.infer(ask(1))) == {"y": [20]}
    else:
        with pytest.raises(Unsupported, match=f"expected a single response, got {count}"):
            await made.infer(ask(1))


async def test_an_ordinary_ensemble_on_a_stream_answers_once(site: Site) -> None:
    (only,) = await collected(chain(site), ask(1))
    assert (values(only), only.final) == ({"y": [4]}, True)


async def test_a_decoupled_step_after_a_decoupled_step(site: Site) -> None:
    site.add(model("many", more=DECOUPLED), responses=repeating(2))
    site.add(model("more", more=DECOUPLED), responses=repeating(1, 3))
    made = site.ensemble(
        ensemble("e", "a", "y", step("many", "X=a", "Y=t"), step("more", "X=t", "Y=y"))
    )
    found = await collected(made, ask(1))
    shown = sorted(values(r)["y"][0] for r in found if not r.flag_only)
    assert shown == [100, 200, 400, 600]
    assert found[-1].final


async def test_what_is_there_once_goes_with_every_answer(site: Site) -> None:
    async def added(request: InferRequest) -> InferResponse:
        one, two = (tensor.as_numpy() for tensor in request.inputs)
        return answer(request, Tensor.from_numpy("Y", one + two))

    site.add(model("many", more=DECOUPLED), responses=repeating(3))
    site.add(model("sum", "X1 X2"), added)
    made = site.ensemble(
        ensemble("e", "a", "y", step("many", "X=a", "Y=t"), step("sum", "X1=t X2=a", "Y=y"))
    )
    assert [values(r)["y"] for r in await collected(made, ask(1))] == [[11], [21], [31]]


async def test_an_error_ends_a_stream(site: Site) -> None:
    async def fail(request: InferRequest) -> InferResponse:
        raise Unavailable("no")

    site.add(model("m"), fail)
    made = fan_out(site, 3)
    (only,) = await collected(made, ask(1))
    assert isinstance(only.error, Unavailable)
    assert str(only.error) == "in ensemble 'e', no"
    assert only.final
    await made.drain()
    assert site.idle()


async def test_one_who_leaves_a_stream(site: Site) -> None:
    async def endless(request: InferRequest) -> AsyncIterator[InferResponse]:
        while True:
            await asyncio.sleep(1)
            yield replace(answer(request, row("Y", 1)), final=False)

    made = fan_out(site, 1)
    many = site.add(model("many", more=DECOUPLED), responses=endless)
    stream = await made.stream(ask(1))
    assert values(await anext(stream)) == {"y": [2]}
    stream.close()
    await made.drain()
    assert many.abandoned == 1
    assert site.idle()


async def test_one_who_does_not_read_holds_the_steps_back_and_is_given_up(site: Site) -> None:
    large = Tensor.from_numpy("Y", np.zeros(1 << 20, np.int32))

    async def endless(request: InferRequest) -> AsyncIterator[InferResponse]:
        while True:
            await asyncio.sleep(1)
            yield replace(answer(request, large), final=False)

    after = site.add(model("m"), lambda request: same_as(request, "Y"))
    made = fan_out(site, 1)
    many = site.add(model("many", more=DECOUPLED), responses=endless)
    stream = await made.stream(ask(1))
    await asyncio.sleep(10)
    passed = len(after.requests)
    await asyncio.sleep(10)
    assert len(after.requests) == passed < 10
    for _ in range(passed):
        await anext(stream)
    await asyncio.sleep(10)
    assert len(after.requests) > passed
    await asyncio.sleep(100)
    found = [response async for response in stream]
    assert "the client has read no response for 60 seconds" in str(found[-1].error)
    assert isinstance(found[-1].error, Unavailable)
    assert many.abandoned == 1
    await made.drain()
    assert site.idle()


# Limits


async def test_so_many_of_a_step_are_under_way_at_most(site: Site) -> None:
    inside, most = 0, 0

    async def counted(request: InferRequest) -> InferResponse:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(1)
        inside -= 1
        return await doubled(request)

    site.add(model("m"), counted)
    made = fan_out(site, *[4] * 3, limit=2)
    found = await asyncio.gather(*(collected(made, ask(n)) for n in (1, 2, 3)))
    assert [len(responses) for responses in found] == [4, 4, 4]
    assert most == 2


async def test_who_waits_too_long_goes_on(site: Site) -> None:
    started: list[float] = []
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def stuck(request: InferRequest) -> InferResponse:
        started.append(loop.time())
        await gate.wait()
        return await doubled(request)

    site.add(model("m"), stuck)
    made = site.ensemble(ensemble("e", "a", "y", step("m", "X=a", "Y=y"), limit=1))
    tasks = [asyncio.ensure_future(made.infer(ask(n))) for n in (1, 2)]
    await asyncio.sleep(LONGEST_WAIT + 1)
    assert started == [0, LONGEST_WAIT]
    gate.set()
    await asyncio.gather(*tasks)


async def test_one_who_is_cancelled_while_waiting_leaves_no_hole(site: Site) -> None:
    gate = asyncio.Event()

    async def stuck(request: InferRequest) -> InferResponse:
        await gate.wait()
        return await doubled(request)

    site.add(model("m"), stuck)
    made = site.ensemble(ensemble("e", "a", "y", step("m", "X=a", "Y=y"), limit=1))
    tasks = [asyncio.ensure_future(made.infer(ask(n))) for n in (1, 2, 3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    gate.set()
    first, second, third = await asyncio.gather(*tasks, return_exceptions=True)
    assert values(first) == {"y": [2]}  # type: ignore[arg-type]  # no exception
    assert isinstance(second, asyncio.CancelledError)
    assert values(third) == {"y": [6]}  # type: ignore[arg-type]  # no exception


# Accounts


async def test_what_the_steps_took_adds_up(site: Site) -> None:
    async def spending(request: InferRequest) -> InferResponse:
        assert request.spent is not None
        request.spent.add(1_000, 20_000, 300)
        return await doubled(request)

    site.add(model("m"), spending)
    site.ensemble(ensemble("inner", "a", "y", step("m", "X=a", "Y=t"), step("m", "X=t", "Y=y")))
    made = site.ensemble(
        ensemble("e", "a", "y", step("inner", "a=a", "y=t"), step("m", "X=t", "Y=y"))
    )
    await made.infer(ask(1))
    compute = made.stats.compute
    assert (compute.compute_input.ns, compute.compute_input.count) == (3_000, 1)
    assert compute.compute_infer.ns == 60_000
    assert compute.compute_output.ns == 900
    assert (made.stats.inference_count, made.stats.execution_count) == (1, 1)
    assert made.stats.batches[1].compute_infer.ns == 60_000
    assert made.stats.pending == 0


async def test_a_traced_request_has_a_trace_for_every_step(site: Site) -> None:
    site.tracer = Tracer(
        TraceSettings(trace_file="unused", trace_level=("TIMESTAMPS",), trace_rate=1)
    )
    made = chain(site)
    request = ask(1)
    request.trace = site.tracer.begin(request, 1, NO_CONTEXT)
    assert request.trace is not None
    await made.infer(request)
    names = [name for name, _ in request.trace.timestamps]
    assert names == ["REQUEST_START", "QUEUE_START", "INFER_RESPONSE_COMPLETE", "REQUEST_END"]
    children = request.trace.children
    assert [(c.model_name, c.version, c.parent) for c in children] == [
        ("m", 1, request.trace.id)
    ] * 2
    assert all(child.ended_ns for child in children)
    assert [r.trace for r in site.find("m", -1).requests] == children


async def test_classes_of_an_output(site: Site) -> None:
    made = chain(site, 1)
    response = await made.infer(ask(1, 3, 2, classifications={"y": 2}))
    assert response.outputs[0].as_numpy().tolist() == [b"6:1:one", b"4:2:two"]


# Ends


async def test_draining_waits_and_refuses(site: Site) -> None:
    async def slow(request: InferRequest) -> InferResponse:
        await asyncio.sleep(1)
        return await doubled(request)

    site.add(model("m"), slow)
    made = site.ensemble(ensemble("e", "a", "y", step("m", "X=a", "Y=t"), step("m", "X=t", "Y=y")))
    task = asyncio.ensure_future(made.infer(ask(1)))
    await asyncio.sleep(0)
    draining = asyncio.ensure_future(made.drain())
    below = asyncio.ensure_future(site.find("m", -1).drain())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="has stopped accepting new inference requests"):
        await made.infer(ask(1))
    assert [draining.done(), below.done()] == [False, False]
    assert values(await task) == {"y": [4]}
    await asyncio.gather(draining, below)


async def test_one_who_holds_a_drained_ensemble_is_answered(site: Site) -> None:
    made = chain(site)
    company = Company()
    held = company.hold(made)
    draining = asyncio.ensure_future(made.drain())
    await asyncio.sleep(0)
    assert values(await held.infer(ask(1))) == {"y": [4]}
    company.release()
    await draining
    assert site.idle()


async def test_abandoned_requests_start_no_more_steps(site: Site) -> None:
    gate = asyncio.Event()

    async def slow(request: InferRequest) -> InferResponse:
        await gate.wait()
        return await doubled(request)

    found = site.add(model("m"), slow)
    made = site.ensemble(ensemble("e", "a", "y", step("m", "X=a", "Y=t"), step("m", "X=t", "Y=y")))
    task = asyncio.ensure_future(made.infer(ask(1)))
    await asyncio.sleep(0)
    made.abandon("the server is stopping")
    gate.set()
    with pytest.raises(Unavailable, match=r"^in ensemble 'e', the server is stopping$"):
        await task
    assert len(found.requests) == 1
