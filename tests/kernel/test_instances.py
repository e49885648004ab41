"""Instances of a crew before and while they serve: warm-up, passive ones, and turns."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from microkernel import (
    InferRequest,
    InstanceGroup,
    Internal,
    InvalidArgument,
    ModelConfig,
    Placement,
    TransactionPolicy,
    Unavailable,
)
from microkernel.config.model import RateLimiter as Limits
from microkernel.config.model import Resource
from microkernel.models.crew import Crew, CrewEvents
from microkernel.models.roster import FIRST_DELAY, seats
from microkernel.models.turns import granted
from microkernel.models.warmup import Sample
from microkernel.request import Answer
from microkernel.scheduling.rate_limiter import RateLimiter
from microkernel.scheduling.resources import need_of, parse_sizes
from microkernel.stats import Execution, Failure, ModelStats
from microkernel.workers.contract import Result
from microkernel.workers.parts import Part

pytestmark = pytest.mark.virtual_time


def group(count: int = 1, priority: int = 0, passive: bool = False, **needs: int) -> InstanceGroup:
    limits = Limits(tuple(Resource(n, False, c) for n, c in needs.items()), priority)
    return InstanceGroup("g", "KIND_CPU", count, limits, passive=passive)


def sample(name: str, size: int = 1, count: int = 1) -> Sample:
    return Sample(name, [InferRequest("m", (), id=name)] * size, count)


class Model:
    """A crew on workers in memory whose scheduler is a number of batches that wait. An execution
    takes 10 seconds. `ran` says when each batch of it began and ended."""

    def __init__(
        self,
        make: Callable[..., Any],
        *groups: InstanceGroup,
        name: str = "m",
        limiter: RateLimiter | None = None,
        limit: float = 0,
        load_limit: float = 0,
        decoupled: bool = False,
        samples: tuple[Sample, ...] = (),
        kind: str = "instance",
    ) -> None:
        self.workers: list[Any] = []
        self.joined: list[str] = []
        self.given_up: list[str] = []
        self.waiting = 0
        self.ran: list[tuple[float, float]] = []
        self.stats = ModelStats()
        self.make = make
        config = ModelConfig(
            name=name,
            max_batch_size=8,
            instance_group=groups,
            model_transaction_policy=TransactionPolicy(decoupled),
        )
        places = [
            Placement(f"{name}_{at}_{i}", "KIND_CPU", group=at, passive=entry.passive)
            for at, entry in enumerate(groups)
            for i in range(entry.count)
        ]
        events = CrewEvents(
            freed=self.dispatch,
            given_up=lambda error: self.given_up.append(str(error)),
            joined=lambda instance: self.joined.append(instance.name),
            left=lambda instance: self.joined.remove(instance.name),
            stats=self.stats,
        )
        shared = seats(places, kind)
        self.crew = Crew(
            self._launch,
            config,
            shared,
            events,
            limit=limit,
            load_limit=load_limit,
            samples=samples,
            limiter=limiter,
        )

    async def _launch(self) -> Any:
        self.workers.append(self.make())
        return self.workers[-1]

    async def start(self) -> "Model":
        await self.crew.start(await self._launch())
        return self

    def dispatch(self) -> None:
        while self.waiting and self.crew.idle():
            self.waiting -= 1
            self.crew.execute([InferRequest("m", ())], [1], self._done)
            self.ran.append((asyncio.get_running_loop().time(), -1))

    def _done(self, result: Result) -> None:
        now = asyncio.get_running_loop().time()
        at = next(i for i, (_, end) in enumerate(self.ran) if end < 0)
        self.ran[at] = (self.ran[at][0], now)
        self.dispatch()

    def submit(self, batches: int) -> None:
        self.waiting += batches
        self.dispatch()

    def instance(self, at: int = 0) -> Any:
        return [instance for worker in self.workers for instance in worker.instances][at]


@pytest.fixture
def model(fake_worker: Any) -> Callable[..., Model]:
    """`model(group(2), samples=(...))`: a crew; see `Model`."""

    def make(*groups: InstanceGroup, **options: Any) -> Model:
        return Model(options.pop("make", fake_worker), *(groups or (group(),)), **options)

    return make


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_samples_run_on_every_instance_before_it_joins(model: Callable[..., Model]) -> None:
    made = model(group(2), samples=(sample("a", count=2), sample("b", size=3)), kind="process")
    with capture_logs() as lines:
        await made.start()
    assert made.joined == ["m_0_0", "m_0_1"]
    for at in (0, 1):
        batches = [(0, ["a"]), (10, ["a"]), (20, ["b", "b", "b"])]
        assert made.instance(at).batches == batches
    assert [line for line in lines if line["event"] == "instances warmed up"] == [
        {
            "event": "instances warmed up",
            "log_level": "info",
            "model": "m",
            "instances": ["m_0_0", "m_0_1"],
            "seconds": 30.0,
        }
    ]
    await made.crew.stop()


async def test_warm_up_is_counted(model: Callable[..., Model]) -> None:
    made = await model(samples=(sample("a", size=3, count=2),)).start()
    stats = made.stats
    assert (stats.inference_count, stats.execution_count, stats.success.count) == (6, 2, 6)
    assert (list(stats.batches), stats.pending) == ([3], 0)
    await made.crew.stop()


async def test_without_samples_nothing_runs_first(model: Callable[..., Model]) -> None:
    made = await model().start()
    assert (now(), made.instance().batches) == (0, [])
    await made.crew.stop()


def failing(fake_worker: Any, name: str) -> Callable[[], Any]:
    """Makes workers whose instances fail at the requests of that id."""

    class Failing(fake_worker):  # type: ignore[misc]  # a class that a fixture gives
        async def start(self, *args: Any) -> Any:
            for instance in await super().start(*args):
                instance.answer = lambda r: Internal("no way") if r.id == name else Answer((), {})
            return self.instances

    return Failing


async def test_a_sample_that_fails_fails_the_load(
    model: Callable[..., Model], fake_worker: Any
) -> None:
    samples = (sample("a"), sample("b"), sample("c"))
    made = model(make=failing(fake_worker, "b"), samples=samples)
    with pytest.raises(InvalidArgument) as error:
        await made.start()
    assert str(error.value) == "failed to run warmup sample 'b': no way; "
    assert [ids for _, ids in made.instance().batches] == [["a"], ["b"]]
    assert (made.joined, made.workers[0].stopped) == ([], True)
    assert (made.stats.failures[Failure.BACKEND], made.stats.success.count) == (1, 1)


async def test_a_worker_that_dies_of_warm_up_fails_the_load(model: Callable[..., Model]) -> None:
    made = model(samples=(sample("a"),))
    starting = asyncio.ensure_future(made.start())
    await asyncio.sleep(5)
    made.workers[0].die(Unavailable("segmentation fault"))
    with pytest.raises(InvalidArgument, match="warmup sample 'a': segmentation fault; "):
        await starting


async def test_a_worker_that_dies_right_after_its_warm_up_does_not_join(
    model: Callable[..., Model],
) -> None:
    made = model(samples=(sample("a"),))
    starting = asyncio.ensure_future(made.start())
    await asyncio.sleep(5)
    instance, worker = made.instance(), made.workers[0]
    finish = instance._finish

    def last_words(answers: Any) -> None:
        finish(answers)
        worker.die(Unavailable("gone"))

    instance._finish = last_words
    instance._finish([Answer((), {})])
    with pytest.raises(Unavailable, match="gone"):
        await starting
    assert made.joined == []


async def test_a_warm_up_that_hangs_is_ended(model: Callable[..., Model], fake_worker: Any) -> None:
    slow = model(make=lambda: fake_worker(seconds=1000), samples=(sample("a"),), limit=3)
    with pytest.raises(InvalidArgument, match="execution took longer than 3 seconds"):
        await slow.start()
    assert now() == 3


@pytest.mark.parametrize(("limit", "end"), [(0, 5), (3, 3), (7, 7)])
async def test_where_executions_have_no_limit_those_of_warm_up_have_that_of_the_load(
    model: Callable[..., Model], fake_worker: Any, limit: float, end: float
) -> None:
    slow = model(
        make=lambda: fake_worker(seconds=1000), samples=(sample("a"),), limit=limit, load_limit=5
    )
    with pytest.raises(InvalidArgument, match=f"execution took longer than {end} seconds"):
        await slow.start()
    assert now() == end


async def test_a_limit_of_the_load_is_none_of_executions(
    model: Callable[..., Model], fake_worker: Any
) -> None:
    made = await model(make=lambda: fake_worker(seconds=1000), load_limit=5).start()
    made.submit(1)
    await asyncio.sleep(2000)
    assert made.ran == [(0, 1000)]
    await made.crew.stop()


async def test_each_execution_of_warm_up_gets_the_limit(model: Callable[..., Model]) -> None:
    made = await model(samples=(sample("a", count=5),), limit=11).start()
    assert (now(), made.crew.alive) == (50, 1)
    await asyncio.sleep(100)
    assert made.crew.alive == 1
    await made.crew.stop()


async def test_a_load_that_is_given_up_ends_its_warm_up(
    model: Callable[..., Model], fake_worker: Any
) -> None:
    class Reasons(fake_worker):  # type: ignore[misc]  # a class that a fixture gives
        killed = ""

        def kill(self, reason: str) -> None:
            self.killed = reason
            super().kill(reason)

    made = model(make=Reasons, samples=(sample("a"),))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(made.start(), 3)
    assert made.workers[0].killed == "its warm-up was given up"
    assert made.workers[0].stopped


async def test_a_worker_that_is_started_again_is_warmed_up_again(
    model: Callable[..., Model],
) -> None:
    made = await model(samples=(sample("a"),)).start()
    with capture_logs():
        made.workers[0].die(Unavailable("gone"))
        await asyncio.sleep(FIRST_DELAY + 5)
        assert (made.crew.alive, made.crew.idle(), made.joined) == (0, False, [])
        await asyncio.sleep(10)
    assert (made.crew.alive, made.crew.idle(), made.joined) == (1, True, ["m_0_0"])
    assert made.stats.execution_count == 2
    await made.crew.stop()


async def test_where_warm_up_fails_after_a_restart_the_crew_gives_up_but_tries_on(
    model: Callable[..., Model], fake_worker: Any
) -> None:
    made = await model(samples=(sample("a"),)).start()
    made.make = failing(fake_worker, "a")
    with capture_logs():
        made.workers[0].die(Unavailable("gone"))
        await asyncio.sleep(11)
        assert made.given_up == ["failed to run warmup sample 'a': no way; "]
        made.make = fake_worker
        await asyncio.sleep(50)
    assert made.crew.alive == 1
    await made.crew.stop()


def times() -> Execution:
    return Execution(0, 1, 2, 3)


async def test_a_decoupled_model_is_warm_when_all_is_over(model: Callable[..., Model]) -> None:
    made = model(samples=(sample("a", size=2),), decoupled=True)
    starting = asyncio.ensure_future(made.start())
    await asyncio.sleep(1)
    flights = made.instance().flights
    flights.part(100, Part(Answer((), {}), False, 1, 2, 3))
    flights.returned(times())
    flights.part(100, Part(None, True, 1, 2, 3))
    await asyncio.sleep(1)
    assert not starting.done()
    flights.part(101, Part(Answer((), {}), True, 1, 2, 3))
    await starting
    stats = made.stats
    assert (stats.success.count, stats.execution_count, list(stats.responses)) == (2, 1, ["0", "1"])
    assert (stats.responses["0"].success.count, stats.responses["1"].empty_response.count) == (2, 1)
    await made.crew.stop()


async def test_an_error_among_the_responses_fails_the_load(model: Callable[..., Model]) -> None:
    made = model(samples=(sample("a"),), decoupled=True)
    starting = asyncio.ensure_future(made.start())
    await asyncio.sleep(1)
    flights = made.instance().flights
    flights.part(100, Part(Internal("not this"), False, 1, 2, 3))
    flights.returned(times())
    flights.part(100, Part(Answer((), {}), True, 1, 2, 3))
    with pytest.raises(InvalidArgument, match="failed to run warmup sample 'a': not this; "):
        await starting


async def test_passive_instances_are_made_and_get_nothing(model: Callable[..., Model]) -> None:
    made = await model(group(1), group(1, passive=True), samples=(sample("a"),)).start()
    names = [instance.name for worker in made.workers for instance in worker.instances]
    assert sorted(names) == ["m_0_0", "m_1_0"]
    assert (made.joined, made.crew.alive) == (["m_0_0"], 1)
    made.submit(3)
    await asyncio.sleep(100)
    assert made.ran == [(10, 20), (20, 30), (30, 40)]
    passive = made.instance(names.index("m_1_0"))
    assert passive.batches == []
    await made.crew.stop()


async def pair(model: Callable[..., Model], *groups: InstanceGroup, **options: Any) -> list[Model]:
    """Started models, one for each group, with one limiter."""
    limiter = RateLimiter()
    return [
        await model(entry, name=name, limiter=limiter, **options).start()
        for name, entry in zip("ABC", groups, strict=False)
    ]


async def stop(*models: Model) -> None:
    for made in models:
        await made.crew.stop()


async def test_models_that_share_a_resource_take_turns(model: Callable[..., Model]) -> None:
    a, b = await pair(model, group(R=1), group(R=1))
    a.submit(3)
    b.submit(2)
    await asyncio.sleep(100)
    assert a.ran == [(0, 10), (20, 30), (40, 50)]
    assert b.ran == [(10, 20), (30, 40)]
    await stop(a, b)


async def test_priorities_deal_the_turns(model: Callable[..., Model]) -> None:
    a, b = await pair(model, group(R=1), group(R=1, priority=2))
    a.submit(50)
    b.submit(50)
    await asyncio.sleep(295)
    assert (len(a.ran), len(b.ran)) == (20, 10)
    a.waiting = b.waiting = 0
    await stop(a, b)


async def test_instances_of_a_model_run_as_far_as_there_is_enough(
    model: Callable[..., Model],
) -> None:
    limiter = RateLimiter(parse_sizes(["R:2"]))
    made = await model(group(4, R=1), limiter=limiter).start()
    made.submit(4)
    await asyncio.sleep(100)
    assert made.ran == [(0, 10), (0, 10), (10, 20), (10, 20)]
    await made.crew.stop()


async def test_a_model_that_could_never_run_is_refused(model: Callable[..., Model]) -> None:
    limiter = RateLimiter(parse_sizes(["R1:3"]))
    with pytest.raises(InvalidArgument, match='Resource count for "R1" is limited to 3 which'):
        model(group(R1=4), limiter=limiter)
    made = await model(group(R1=3), limiter=limiter).start()
    await made.crew.stop()


async def test_a_resource_comes_back_when_a_worker_dies(model: Callable[..., Model]) -> None:
    a, b = await pair(model, group(R=1), group(R=1))
    a.submit(1)
    b.submit(1)
    await asyncio.sleep(4)
    with capture_logs():
        a.workers[0].die(Unavailable("gone"))
    await asyncio.sleep(50)
    assert (a.ran, b.ran) == ([(0, 4)], [(4, 14)])
    await stop(a, b)


async def test_a_model_that_is_stopped_makes_way(model: Callable[..., Model]) -> None:
    a, b, c = await pair(model, group(R=2), group(R=2), group(R=1))
    a.submit(1)
    b.submit(1)
    c.submit(1)
    await asyncio.sleep(1)
    b.waiting = 0
    await b.crew.stop()
    await asyncio.sleep(20)
    assert (a.ran, b.ran, c.ran) == ([(0, 10)], [], [(10, 20)])
    await stop(a, c)


async def test_warm_up_takes_its_turn(model: Callable[..., Model], fake_worker: Any) -> None:
    limiter = RateLimiter()
    a = await model(group(R=1), name="A", limiter=limiter).start()
    a.submit(1)
    b = await model(group(R=1), name="B", limiter=limiter, samples=(sample("s"),)).start()
    assert (now(), b.instance().batches) == (20, [(10, ["s"])])
    a.submit(1)
    await asyncio.sleep(10)
    assert a.ran == [(0, 10), (20, 30)]
    await stop(a, b)


async def test_instances_wait_for_each_other_to_warm_up(model: Callable[..., Model]) -> None:
    made = model(group(2, R=1), limiter=RateLimiter(), samples=(sample("s"),), kind="process")
    await made.start()
    assert sorted(made.instance(at).batches for at in (0, 1)) == [[(0, ["s"])], [(10, ["s"])]]
    made.submit(2)
    await asyncio.sleep(40)
    assert made.ran == [(20, 30), (30, 40)]
    await made.crew.stop()


@pytest.mark.parametrize("moment", [5, 12])
async def test_a_load_that_is_given_up_keeps_no_resource(
    model: Callable[..., Model], moment: float
) -> None:
    """While it waits for its turn to warm up, and while it warms up."""
    limiter = RateLimiter()
    a = await model(group(R=1), name="A", limiter=limiter).start()
    a.submit(1)
    b = model(group(R=1), name="B", limiter=limiter, samples=(sample("s"),))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(b.start(), moment)
    began = now()
    a.submit(1)
    await asyncio.sleep(50)
    assert a.ran[1][0] == max(10, began)
    await a.crew.stop()


async def test_a_decoupled_batch_holds_its_resources_until_it_has_returned(
    model: Callable[..., Model],
) -> None:
    limiter = RateLimiter()
    a = await model(group(R=1), name="A", limiter=limiter, decoupled=True).start()
    b = await model(group(R=1), name="B", limiter=limiter).start()
    parts: list[Part] = []

    class Receiver:
        def part(self, index: int, part: Part) -> None:
            parts.append(part)

        def returned(self, times: Execution) -> None:
            pass

        def over(self) -> None:
            pass

    assert a.crew.idle()
    a.crew.stream([InferRequest("m", ())], [1], Receiver(), lambda: False)
    b.submit(1)
    await asyncio.sleep(5)
    assert b.ran == []
    a.instance().flights.returned(times())
    assert b.ran == [(5, -1)]
    a.instance().flights.part(100, Part(None, final=True))
    await stop(a, b)


async def test_a_certain_instance_is_asked_for(model: Callable[..., Model]) -> None:
    made = await model(group(2, R=1), limiter=RateLimiter(parse_sizes(["R:1"]))).start()
    one, other = made.instance(0), made.instance(1)
    assert made.crew.idle(other)
    made.crew.execute([InferRequest("m", ())], [1], lambda _: None, other)
    assert not made.crew.idle(one)
    assert not made.crew.idle(other)
    await asyncio.sleep(11)
    assert made.crew.idle(one)
    assert (len(one.batches), len(other.batches)) == (0, 1)
    await made.crew.stop()


async def test_who_gives_up_just_when_it_is_its_turn_gives_back_what_it_took() -> None:
    limiter, need = RateLimiter(), need_of(group(R=1).rate_limiter, 0)
    holder, waiter = limiter.enrol([(need, 1), (need, 1)], lambda: None)
    limiter.start(holder)
    waiting = asyncio.ensure_future(granted(limiter, waiter))
    await asyncio.sleep(1)
    limiter.finish(holder, free=True)
    limiter.serve()  # from here on the waiter has its turn, and does not know yet
    assert limiter.claim([holder]) is None
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert limiter.claim([holder]) is holder
    assert not waiter.free
