"""The workers of a model: who is free, what a death does, and how a worker comes back."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from microkernel import InferRequest, Internal, ModelConfig, Placement, Unavailable
from microkernel.models.crew import LONGEST_DELAY, SETTLED, Crew, CrewEvents
from microkernel.models.roster import FIRST_DELAY, seats
from microkernel.models.table import no_instance
from microkernel.workers.contract import Result

pytestmark = pytest.mark.virtual_time

OddConfig = Callable[..., ModelConfig]


class Staff:
    """A crew on workers in memory. `workers` holds all that were launched; `supply` says what the
    next launches give: a worker, or an error. `moves` are the instances that came and went."""

    def __init__(self, config: ModelConfig, make: Any, *groups: int, limit: float = 0) -> None:
        self.workers: list[Any] = []
        self.supply: list[Any] = []
        self.launched = asyncio.Event()
        self.freed = 0
        self.given_up: list[str] = []
        self.moves: list[str] = []
        self.make = make
        numbers = iter(range(100))
        places = [
            [Placement(f"odd_{next(numbers)}", "KIND_CPU") for _ in range(count)]
            for count in groups
        ]
        events = CrewEvents(
            freed=self._freed,
            given_up=lambda e: self.given_up.append(str(e)),
            joined=lambda i: self.moves.append(f"+{i.name}"),
            left=lambda i: self.moves.append(f"-{i.name}"),
        )
        self.crew = Crew(self._launch, config, places, events, limit=limit)

    def _freed(self) -> None:
        self.freed += 1

    async def _launch(self) -> Any:
        worker = self.supply.pop(0) if self.supply else self.make()
        if isinstance(worker, Exception):
            raise worker
        self.workers.append(worker)
        self.launched.set()
        return worker

    async def start(self) -> None:
        await self.crew.start(await self._launch())

    def run(self, name: str) -> "asyncio.Future[Result]":
        """Run a batch of one request; the result to come."""
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.crew.execute([InferRequest("odd", (), id=name)], [1], done.set_result)
        return done

    def instances(self) -> dict[str, list[str]]:
        """Which requests each instance ran, by name, of all workers there were."""
        return {
            instance.name: [name for _, names in instance.batches for name in names]
            for worker in self.workers
            for instance in worker.instances
        }


@pytest.fixture
def staff(odd_config: OddConfig, fake_worker: Any) -> Callable[..., Staff]:
    """`staff(2, 1)`: a crew of two workers with two and one instances."""

    def make(*groups: int, limit: float = 0) -> Staff:
        return Staff(odd_config(), fake_worker, *groups, limit=limit)

    return make


async def test_a_batch_runs_on_a_free_instance(staff: Callable[..., Staff]) -> None:
    team = staff(2, 1)
    await team.start()
    assert (team.crew.alive, len(team.workers)) == (3, 2)
    for name in "abc":
        assert team.crew.idle()
        team.run(name)
    assert not team.crew.idle()
    assert sorted(team.instances().values()) == [["a"], ["b"], ["c"]]
    await asyncio.sleep(10)
    assert team.crew.idle()
    await team.crew.stop()


async def test_an_instance_is_free_before_its_result_is_handed_out(
    staff: Callable[..., Staff],
) -> None:
    team = staff(1)
    await team.start()
    seen: list[bool] = []
    team.crew.execute([InferRequest("odd", ())], [1], lambda _: seen.append(team.crew.idle()))
    await asyncio.sleep(10)
    assert seen == [True]
    await team.crew.stop()


async def test_a_dead_worker_fails_its_batch_and_the_others_go_on(
    staff: Callable[..., Staff],
) -> None:
    team = staff(1, 1)
    await team.start()
    results = [team.run("a"), team.run("b")]
    dying = team.workers[0]
    with capture_logs() as lines:
        dying.die(Internal("segmentation fault"))
    (answers,) = [r.result().answers for r in results if r.done()]
    assert [str(a) for a in answers] == ["segmentation fault"]
    assert team.crew.alive == 1
    assert lines == [
        {
            "event": "worker lost",
            "log_level": "error",
            "model": "odd",
            "reason": "segmentation fault",
            "restart_seconds": FIRST_DELAY,
            "requests": 1,
            "request_ids": ["b"],
        }
    ]
    await asyncio.gather(*results)
    assert team.given_up == []
    await team.crew.stop()


async def test_the_first_few_that_a_dead_worker_fails_are_named(
    staff: Callable[..., Staff],
) -> None:
    team = staff(12)
    await team.start()
    for name in ["", *"abcdefghijk"]:
        team.run(name)
    with capture_logs() as lines:
        team.workers[0].die(Internal("gone"))
    assert (lines[0]["requests"], lines[0]["request_ids"]) == (12, list("abcdefgh"))
    await team.crew.stop()


async def test_a_dead_worker_is_started_again_and_serves(staff: Callable[..., Staff]) -> None:
    team = staff(2)
    await team.start()
    with capture_logs() as lines:
        fails = team.run("first")
        team.workers[0].die(Internal("gone"))
        assert fails.done()
        assert (team.crew.alive, team.crew.idle()) == (0, False)
        await asyncio.sleep(FIRST_DELAY)
        await asyncio.sleep(0)
    assert [line["event"] for line in lines] == ["worker lost", "worker restarted"]
    assert (team.crew.alive, len(team.workers), team.freed) == (2, 2, 2)
    assert team.moves == ["+odd_0", "+odd_1", "-odd_0", "-odd_1", "+odd_0", "+odd_1"]
    assert team.crew.idle()
    result = await team.run("again")
    assert len(result.answers) == 1
    assert team.instances() == {"odd_0": [], "odd_1": ["again"]}
    await team.crew.stop()


async def test_the_delay_grows_while_the_worker_keeps_dying(staff: Callable[..., Staff]) -> None:
    team = staff(1)
    await team.start()
    loop, starts = asyncio.get_running_loop(), []
    with capture_logs():
        for _ in range(11):
            team.workers[-1].die(Internal("gone"))
            team.launched.clear()
            began = loop.time()
            await team.launched.wait()
            starts.append(round(loop.time() - began, 1))
            await asyncio.sleep(0)
    assert starts[:5] == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert starts[-2:] == [LONGEST_DELAY, LONGEST_DELAY]
    await team.crew.stop()


async def test_the_delay_starts_over_after_a_quiet_time(staff: Callable[..., Staff]) -> None:
    team = staff(1)
    await team.start()
    with capture_logs() as lines:
        for quiet in (0, 0, SETTLED + 1):
            await asyncio.sleep(quiet)
            team.workers[-1].die(Internal("gone"))
            await asyncio.sleep(5)
    delays = [line["restart_seconds"] for line in lines if line["event"] == "worker lost"]
    assert delays == [FIRST_DELAY, 2 * FIRST_DELAY, FIRST_DELAY]
    await team.crew.stop()


async def test_when_no_worker_comes_back_the_crew_gives_up_but_goes_on_trying(
    staff: Callable[..., Staff], fake_worker: Any
) -> None:
    team = staff(1)
    await team.start()
    team.supply = [Unavailable("no process"), fake_worker(failure=Internal("cannot load"))]
    with capture_logs() as lines:
        team.workers[0].die(Internal("gone"))
        await asyncio.sleep(FIRST_DELAY * 8)
    assert team.given_up == ["no process", "cannot load"]
    assert team.crew.alive == 1
    assert [line["event"] for line in lines] == [
        "worker lost",
        "worker restart failed",
        "worker restart failed",
        "worker restarted",
    ]
    await team.crew.stop()
    assert all(worker.stopped for worker in team.workers[1:])


async def test_while_another_worker_lives_the_crew_does_not_give_up(
    staff: Callable[..., Staff],
) -> None:
    team = staff(1, 1)
    await team.start()
    team.supply = [Unavailable("no process")]
    with capture_logs():
        team.workers[0].die(Internal("gone"))
        await asyncio.sleep(1)
    assert (team.given_up, team.crew.alive) == ([], 2)
    await team.crew.stop()


async def test_an_execution_that_takes_too_long_ends_the_worker(
    staff: Callable[..., Staff], fake_worker: Any
) -> None:
    team = staff(1, limit=3)
    team.supply = [fake_worker(seconds=1000)]
    await team.start()
    with capture_logs():
        result = await team.run("slow")
    assert asyncio.get_running_loop().time() == 3
    assert [str(a) for a in result.answers] == ["an execution took longer than 3 seconds"]
    await team.crew.stop()


async def test_an_execution_in_time_is_left_alone(staff: Callable[..., Staff]) -> None:
    team = staff(1, limit=11)
    await team.start()
    await team.run("a")
    await asyncio.sleep(100)
    assert (team.crew.alive, len(team.workers)) == (1, 1)
    await team.crew.stop()


@pytest.mark.parametrize("broken", [0, 1, 2])
async def test_when_one_worker_cannot_start_the_others_are_stopped(
    staff: Callable[..., Staff], fake_worker: Any, broken: int
) -> None:
    team = staff(1, 1, 1)
    team.supply = [
        fake_worker(failure=Internal("cannot load") if i == broken else None) for i in range(3)
    ]
    with pytest.raises(Internal, match="cannot load"):
        await team.start()
    assert [worker.stopped for worker in team.workers] == [True] * 3
    assert team.crew.alive == 0


async def test_a_start_that_is_cancelled_stops_what_has_started(
    staff: Callable[..., Staff], odd_config: OddConfig, fake_worker: Any
) -> None:
    team = staff(1, 1)
    never = asyncio.Event()

    async def hang(config: ModelConfig, placements: Sequence[Placement]) -> Any:
        await never.wait()

    slow = fake_worker()
    slow.start = hang
    team.supply = [fake_worker(), slow]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(team.start(), 1)
    assert [worker.stopped for worker in team.workers] == [True, True]


async def test_stopping_lets_running_batches_finish(staff: Callable[..., Staff]) -> None:
    team = staff(2)
    await team.start()
    results = [team.run("a"), team.run("b")]
    await team.crew.stop()
    assert asyncio.get_running_loop().time() == 10
    assert all(result.done() for result in results)
    assert team.workers[0].stopped
    assert (team.crew.alive, team.crew.idle()) == (0, False)


async def test_stopping_ends_the_attempts_to_bring_a_worker_back(
    staff: Callable[..., Staff],
) -> None:
    team = staff(1)
    await team.start()
    with capture_logs():
        team.workers[0].die(Internal("gone"))
        await team.crew.stop()
        await asyncio.sleep(100)
    assert len(team.workers) == 1


async def test_a_death_while_stopping_is_final(staff: Callable[..., Staff]) -> None:
    team = staff(1)
    await team.start()
    result = team.run("a")
    stopping = asyncio.ensure_future(team.crew.stop())
    await asyncio.sleep(1)
    team.workers[0].die(Internal("gone"))
    await stopping
    assert [str(a) for a in result.result().answers] == ["gone"]
    await asyncio.sleep(100)
    assert len(team.workers) == 1


async def test_abandoning_ends_what_runs_with_the_reason(staff: Callable[..., Staff]) -> None:
    team = staff(1, 1)
    await team.start()
    result = team.run("a")
    with capture_logs():
        team.crew.abandon("time is up")
    assert [str(a) for a in (await result).answers] == ["time is up"]
    assert team.crew.alive == 1  # the idle worker is stopped in order, later
    await team.crew.stop()


PLACES = [Placement("a", "KIND_CPU"), Placement("b", "KIND_CPU")]


@pytest.mark.parametrize(
    ("kind", "groups"),
    [("process", [PLACES]), ("thread", [PLACES]), ("instance", [PLACES[:1], PLACES[1:]])],
)
def test_which_instances_share_a_worker(kind: str, groups: list[list[Placement]]) -> None:
    assert seats(PLACES, kind) == groups


def test_a_model_without_instances_is_not_ready() -> None:
    assert str(no_instance("m", 3)) == (
        "Request for unknown model: 'm' version 3 is not at ready state"
    )
