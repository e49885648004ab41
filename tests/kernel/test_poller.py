"""Following what changes on disk: loads, reloads and unloads, and what must do no harm."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from odd_loader import odd_loader
from structlog.testing import capture_logs
from waiting import until

from microkernel import InferRequest, ModelIndex
from microkernel.errors import MicrokernelError
from microkernel.models.catalogue import Catalogue
from microkernel.models.poller import Poller
from microkernel.models.table import UNLOADED, ModelTable
from microkernel.repository.store import DUPLICATE

Ask = Callable[..., InferRequest]

CONFIG = """
backend: "odd"
max_batch_size: {size}
input {{ name: "X" data_type: TYPE_INT32 dims: -1 }}
output {{ name: "Y" data_type: TYPE_INT32 dims: -1 }}
version_policy {{ all {{ }} }}
parameters {{ key: "WORKER" value {{ string_value: "thread" }} }}
parameters {{ key: "FAIL" value {{ string_value: "{fail}" }} }}
"""


async def test_a_period_of_0_is_no_look(tmp_path: Path) -> None:
    site = Site(tmp_path)
    tasks = asyncio.all_tasks()
    site.poller.start(0)
    assert asyncio.all_tasks() == tasks
    await site.poller.stop()


class Site:
    """Two repositories that are polled."""

    def __init__(self, root: Path) -> None:
        self.one, self.two = root / "one", root / "two"
        for repository in (self.one, self.two):
            repository.mkdir()
        self.table = ModelTable()
        loader = odd_loader()
        repositories = [self.one, self.two]
        self.catalogue = Catalogue(repositories, loader, self.table, threads=2)
        self.poller = Poller(repositories, self.catalogue)
        self._written = 0

    def write(self, name: str, size: int = 8, fail: str = "", repository: str = "one") -> Path:
        """A model, or another configuration of it, newer than all before."""
        directory: Path = getattr(self, repository) / name
        (directory / "1").mkdir(parents=True, exist_ok=True)
        file = directory / "config.pbtxt"
        file.write_text(CONFIG.format(size=size, fail=fail))
        self._written += 1
        stamp = file.stat().st_mtime_ns + self._written * 10**9
        os.utime(file, ns=(stamp, stamp))
        return directory

    async def start(self) -> None:
        """What the server does at its start."""
        await self.poller.begin()
        await self.catalogue.load_all(None)

    async def follow(self) -> None:
        """Two looks, the second of which confirms the first, and what they ask for."""
        for _ in range(2):
            await self.poller.poll()
        await self.poller.settle()

    def index(self) -> list[ModelIndex]:
        return self.table.index(ready=False)

    def serving(self) -> dict[str, list[int]]:
        """The versions that serve, by model."""
        ready: dict[str, list[int]] = {}
        for line in self.table.index(ready=True):
            ready.setdefault(line.name, []).append(int(line.version))
        return ready

    async def infer(self, request: InferRequest) -> Any:
        response = await self.table.find("odd").infer(request)
        return response.outputs[0].as_numpy().tolist()


@pytest.fixture
async def site(tmp_path: Path, odd_path: None) -> AsyncIterator[Site]:
    made = Site(tmp_path)
    yield made
    await made.poller.stop()
    await made.catalogue.drain(10)
    await made.catalogue.stop()


async def test_what_is_there_at_the_start_is_loaded_once(site: Site) -> None:
    site.write("odd")
    await site.start()
    first = site.table.find("odd")
    await site.follow()
    assert site.table.find("odd") is first


async def test_a_new_model_is_loaded_when_it_is_still(site: Site) -> None:
    await site.start()
    site.write("odd")
    assert await site.poller.poll()
    assert site.index() == []
    site.write("odd", size=3)  # it is still being written
    assert await site.poller.poll()
    assert site.index() == []
    assert not await site.poller.poll()
    await site.poller.settle()
    assert site.table.find("odd").config.max_batch_size == 3


async def test_a_changed_model_is_swapped_and_loses_no_request(site: Site, ask: Ask) -> None:
    site.write("odd")
    await site.start()
    first = site.table.find("odd")
    site.write("odd", size=5)
    answers: list[Any] = []

    async def caller() -> None:
        while site.table.find("odd") is first:
            answers.append(await site.infer(ask(len(answers))))

    callers = [asyncio.ensure_future(caller()) for _ in range(3)]
    await site.follow()
    await asyncio.gather(*callers)
    assert site.table.find("odd").config.max_batch_size == 5
    assert answers
    assert all(row[0] % 2 == 0 for (row,) in answers)


async def test_a_removed_model_is_unloaded(site: Site) -> None:
    directory = site.write("odd")
    site.write("other")
    await site.start()
    shutil.rmtree(directory)
    await site.follow()
    assert site.serving() == {"other": [1]}
    await until(lambda: ModelIndex("odd", "1", "UNAVAILABLE", UNLOADED) in site.index())
    assert site.table.all_ready()
    site.write("odd")
    await site.follow()
    assert site.serving() == {"odd": [1], "other": [1]}


async def test_versions_and_labels_come_and_go(site: Site) -> None:
    directory = site.write("odd")
    await site.start()
    (directory / "2").mkdir()
    await site.follow()
    assert site.serving() == {"odd": [1, 2]}
    shutil.rmtree(directory / "1")
    await site.follow()
    assert site.serving() == {"odd": [2]}
    before = site.table.find("odd")
    (directory / "labels.txt").write_text("cat\ndog\n")
    await site.follow()
    assert site.table.find("odd") is not before


async def test_a_failure_is_logged_once_and_forgotten_when_it_is_gone(site: Site) -> None:
    site.write("odd")
    await site.start()
    site.write("broken", fail="load")
    with capture_logs() as lines:
        for _ in range(3):
            await site.follow()
    assert [line["model"] for line in lines if line["log_level"] == "error"] == ["broken"]
    reason = "Internal: Stranger: cannot load"
    assert ModelIndex("broken", "1", "UNAVAILABLE", reason) in site.index()
    assert not site.table.all_ready()
    shutil.rmtree(site.one / "broken")
    await site.follow()
    assert site.table.all_ready()


async def test_a_model_that_was_never_right_leaves_nothing_behind(site: Site) -> None:
    await site.start()
    (site.write("odd") / "config.pbtxt").write_text("no { such: thing }")
    with capture_logs():
        await site.follow()
    assert [line.state for line in site.index()] == ["UNAVAILABLE"]
    shutil.rmtree(site.one / "odd")
    await site.follow()
    assert site.index() == []


@pytest.mark.parametrize("fail", ["load", "instance exit"])
async def test_a_failing_reload_keeps_what_serves(site: Site, ask: Ask, fail: str) -> None:
    site.write("odd")
    await site.start()
    site.write("odd", fail=fail if fail == "load" else "odd_0_0")
    with capture_logs():
        await site.follow()
    assert await site.infer(ask(2)) == [[4]]
    site.write("odd", size=5)
    await site.follow()
    assert site.table.find("odd").config.max_batch_size == 5


async def test_a_version_that_fails_and_is_withdrawn_is_no_failure_any_more(site: Site) -> None:
    directory = site.write("odd", fail="once")
    await site.start()
    assert site.serving() == {"odd": [1]}
    (directory / "1" / "loaded").unlink()
    (directory / "2").mkdir()
    (directory / "2" / "loaded").touch()
    with capture_logs():
        await site.follow()
    assert not site.table.all_ready()
    shutil.rmtree(directory / "2")
    (directory / "1" / "loaded").unlink(missing_ok=True)
    await site.follow()
    assert site.table.all_ready()
    assert site.serving() == {"odd": [1]}


async def test_a_name_that_comes_to_stand_twice_is_taken_down(site: Site) -> None:
    site.write("odd")
    await site.start()
    directory = site.write("odd", repository="two")
    with capture_logs() as lines:
        await site.follow()
    assert site.index() == [ModelIndex("odd", "", "UNAVAILABLE", DUPLICATE)]
    assert DUPLICATE in [line.get("reason") for line in lines]
    shutil.rmtree(directory)
    await site.follow()
    assert site.serving() == {"odd": [1]}


async def test_a_repository_that_cannot_be_listed_changes_nothing(site: Site, ask: Ask) -> None:
    site.write("odd")
    site.write("other", repository="two")
    await site.start()
    site.one.rename(site.one.with_name("away"))
    site.write("new", repository="two")
    with capture_logs() as lines:
        for _ in range(3):
            await site.follow()
    told = [line for line in lines if line["log_level"] == "error"]
    assert len(told) == 1
    assert f"failed to read the directory '{site.one}'" in told[0]["reason"]
    assert await site.infer(ask(3)) == [[6]]
    assert site.serving() == {"odd": [1], "other": [1]}
    site.one.with_name("away").rename(site.one)
    first = site.table.find("odd")
    await site.follow()
    assert site.serving() == {"new": [1], "odd": [1], "other": [1]}
    assert site.table.find("odd") is first


async def test_what_failed_while_a_repository_was_gone_is_tried_again(site: Site) -> None:
    await site.start()
    site.write("odd", fail="once")
    (site.one / "odd" / "1" / "loaded").touch()
    with capture_logs():
        await site.follow()
    assert site.serving() == {}
    site.two.rename(site.two.with_name("away"))
    with capture_logs():
        await site.follow()
    (site.one / "odd" / "1" / "loaded").unlink()
    site.two.with_name("away").rename(site.two)
    await site.follow()
    assert site.serving() == {"odd": [1]}


async def test_a_directory_that_is_gone_for_one_look_stays_loaded(site: Site) -> None:
    directory = site.write("odd")
    await site.start()
    first = site.table.find("odd")
    directory.rename(site.one.with_name("aside"))
    assert await site.poller.poll()
    site.one.with_name("aside").rename(directory)
    await site.follow()
    assert site.table.find("odd") is first


@pytest.mark.virtual_time
async def test_a_change_is_confirmed_soon_after_it_was_seen(tmp_path: Path) -> None:
    """The loop's clock jumps, and the looks are taken on a thread: only their moments matter."""
    looks: list[float] = []
    loop = asyncio.get_running_loop()

    class Watched(Poller):
        async def poll(self) -> Sequence[str]:
            looks.append(loop.time())
            return ["m"] if len(looks) == 2 else []

    poller = Watched([tmp_path], catalogue=_nobody())
    began = loop.time()
    poller.start(15)
    while len(looks) < 4:  # noqa: ASYNC110 - the poller does not know that we wait
        await asyncio.sleep(1)
    await poller.stop()
    assert [look - began for look in looks] == [15, 30, 31, 46]


async def test_loads_under_way_are_left_to_the_catalogue(site: Site) -> None:
    await site.start()
    site.write("odd")
    await site.poller.poll()
    await site.poller.poll()
    await until(site.index)
    await site.poller.stop()
    await until(lambda: site.serving() == {"odd": [1]})


async def test_once_stopped_it_begins_nothing(site: Site) -> None:
    await site.start()
    site.write("odd")
    await site.poller.poll()
    await site.poller.stop()
    await site.poller.poll()
    assert not site.poller._working


async def test_a_fault_of_the_poller_is_logged(tmp_path: Path) -> None:
    class Broken(Poller):
        async def poll(self) -> Sequence[str]:
            raise RuntimeError("a fault")

    poller = Broken([tmp_path], catalogue=_nobody())
    with capture_logs() as lines:
        poller.start(1e-6)
        await until(lambda: lines)
        await poller.stop()
    assert lines[0]["event"] == "polling the repositories failed unexpectedly"


def _nobody() -> Any:
    """A catalogue that is never asked."""
    return None


async def test_a_load_that_fails_is_tried_again_as_often_as_asked(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write("odd")
    load: Callable[..., Awaitable[Any]] = site.catalogue._loader.load
    attempts: list[int] = []

    async def failing(*arguments: Any) -> Any:
        attempts.append(1)
        if len(attempts) < 3:
            raise MicrokernelError("not yet")
        return await load(*arguments)

    monkeypatch.setattr(site.catalogue._loader, "load", failing)
    site.catalogue._retries = 2
    with capture_logs() as lines:
        await site.catalogue.load("odd")
    assert site.serving() == {"odd": [1]}
    told = [line for line in lines if line["event"] == "load failed and is tried again"]
    assert [line["retries_left"] for line in told] == [2, 1]
