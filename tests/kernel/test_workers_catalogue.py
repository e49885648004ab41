"""Loading all models of repositories, and taking them down again."""

import asyncio
import gc
import json
import os
import shutil
import textwrap
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from odd_loader import CONFIG, odd_loader
from structlog.testing import capture_logs
from waiting import until

from microkernel import (
    InferRequest,
    Internal,
    InvalidArgument,
    ModelIndex,
    NotFound,
    Unavailable,
)
from microkernel.models.catalogue import Catalogue, LoadFailed, check_name
from microkernel.models.table import UNLOADED, ModelTable
from microkernel.repository.override import Override

Ask = Callable[..., InferRequest]

ALL_VERSIONS = "version_policy { all { } }\n"


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


def add(
    repository: Path, name: str, more: str = "", versions: int = 1, worker: str = "thread"
) -> Path:
    directory = repository / name
    directory.mkdir()
    for version in range(1, versions + 1):
        (directory / str(version)).mkdir(parents=True)
    (directory / "config.pbtxt").write_text(
        textwrap.dedent(CONFIG) + parameter("WORKER", worker) + more
    )
    return directory


class Site:
    """Two repositories, and a catalogue of them."""

    def __init__(self, root: Path) -> None:
        self.one, self.two = root / "one", root / "two"
        self.one.mkdir()
        self.two.mkdir()
        self.table = ModelTable()
        loader = odd_loader()
        self.catalogue = Catalogue([self.one, self.two], loader, self.table, threads=2)

    def index(self) -> list[tuple[str, str, str]]:
        return [(m.name, m.version, m.state) for m in self.table.index(ready=False)]

    def lines(self) -> list[ModelIndex]:
        return self.table.index(ready=False)

    def traces(self) -> list[str]:
        """The traces that loaded models have left, wherever their files are."""
        sources = self.catalogue._sources.values()
        return [str(source.directory / "1" / "__pycache__" / "trace") for source in sources]

    async def infer(self, request: InferRequest) -> list[list[int]]:
        response = await self.table.find("odd").infer(request)
        rows: list[list[int]] = response.outputs[0].as_numpy().tolist()
        return rows


@pytest.fixture
async def site(tmp_path: Path, odd_path: None) -> AsyncIterator[Site]:
    made = Site(tmp_path)
    yield made
    await made.catalogue.drain(10)
    await made.catalogue.stop()


async def test_every_model_of_every_repository_is_loaded(site: Site, ask: Ask) -> None:
    add(site.one, "odd", ALL_VERSIONS, versions=2)
    add(site.two, "other")
    await site.catalogue.load_all(None)
    assert site.index() == [
        ("odd", "1", "READY"),
        ("odd", "2", "READY"),
        ("other", "1", "READY"),
    ]
    assert site.table.all_ready()
    assert await site.infer(ask(3)) == [[6]]


async def test_a_model_that_fails_stops_no_other(site: Site) -> None:
    add(site.one, "broken", parameter("FAIL", "load"))
    add(site.one, "misspelt", "no_such_field: 3\n")
    add(site.one, "odd")
    with capture_logs() as lines:
        await site.catalogue.load_all(None)
    reasons = {(m.name, m.version): m.reason for m in site.table.index(ready=False)}
    assert reasons[("broken", "1")] == "Internal: Stranger: cannot load"
    assert "no_such_field" in reasons[("misspelt", "")]
    assert reasons[("odd", "1")] == ""
    assert site.table.failures() == ["broken", "misspelt"]
    failures = {line["event"] for line in lines if line["log_level"] == "error"}
    assert failures == {"load failed", "model cannot be loaded"}


async def test_versions_are_all_or_nothing(site: Site) -> None:
    directory = add(site.one, "odd", ALL_VERSIONS + parameter("FAIL", "once"), versions=2)
    (directory / "2" / "loaded").touch()
    with capture_logs():
        await site.catalogue.load_all(None)
    assert site.table.index(ready=False) == [
        ModelIndex("odd", "1", "UNAVAILABLE", "unloaded"),
        ModelIndex("odd", "2", "UNAVAILABLE", "Internal: Stranger: cannot load again"),
    ]
    await site.catalogue.stop()
    assert (directory / "1" / "__pycache__" / "trace").read_text().splitlines()[-1] == "unloaded"


async def test_a_name_in_two_repositories_is_refused(site: Site) -> None:
    add(site.one, "odd")
    add(site.two, "odd")
    with capture_logs():
        await site.catalogue.load_all(None)
    assert site.table.index(ready=False) == [
        ModelIndex("odd", "", "UNAVAILABLE", "model appears in two or more repositories")
    ]


async def test_only_the_models_that_are_wanted_are_loaded(site: Site) -> None:
    add(site.one, "odd")
    add(site.one, "other")
    await site.catalogue.load_all(["other"])
    assert site.index() == [("other", "1", "READY")]


async def test_a_wanted_model_that_is_nowhere_is_an_error(site: Site) -> None:
    add(site.one, "odd")
    with pytest.raises(InvalidArgument, match=r"^model 'x' of --load-model is in no repository$"):
        await site.catalogue.load_all(["odd", "x"])
    assert site.index() == []


async def test_a_model_without_versions_is_refused(site: Site) -> None:
    add(site.one, "odd", versions=0)
    with capture_logs():
        await site.catalogue.load_all(None)
    ((name, version, state),) = site.index()
    assert (name, version, state) == ("odd", "", "UNAVAILABLE")


async def test_an_empty_catalogue_drains_at_once(site: Site) -> None:
    await site.catalogue.load_all(None)
    assert await site.catalogue.drain(0)


async def test_draining_finishes_what_was_accepted(site: Site, ask: Ask) -> None:
    add(site.one, "odd")
    await site.catalogue.load_all(None)
    tasks = [asyncio.ensure_future(site.infer(ask(n))) for n in range(5)]
    await asyncio.sleep(0)
    assert await site.catalogue.drain(20)
    assert [task.result() for task in tasks] == [[[2 * n]] for n in range(5)]
    with pytest.raises(Unavailable, match="has stopped accepting new inference requests"):
        await site.infer(ask(1))


async def test_what_does_not_finish_in_time_is_answered_with_an_error(site: Site, ask: Ask) -> None:
    from odd_backend import DEEDS  # type: ignore[import-not-found]  # on the path in these tests

    add(site.one, "odd", worker="process")
    await site.catalogue.load_all(None)
    tasks = [asyncio.ensure_future(site.infer(ask(n))) for n in (DEEDS["hang"], 1)]
    await asyncio.sleep(0)
    with capture_logs():
        assert not await site.catalogue.drain(0.05)
        results = await asyncio.gather(*tasks, return_exceptions=True)
    reason = "the server is stopping and its exit timeout has expired"
    assert [type(result) for result in results] == [Unavailable, Unavailable]
    assert str(results[0]).endswith(f"ended: {reason}")
    assert str(results[1]) == f"no instance of model 'odd' is alive: {reason}"


async def test_what_runs_without_a_caller_does_not_hold_up_the_end(site: Site, ask: Ask) -> None:
    from odd_backend import DEEDS  # on the path in these tests

    add(site.one, "odd", worker="process")
    await site.catalogue.load_all(None)
    task = asyncio.ensure_future(site.infer(ask(DEEDS["hang"])))
    await asyncio.sleep(0)
    task.cancel()
    with capture_logs():
        assert not await site.catalogue.drain(0.05)
        await asyncio.wait_for(site.catalogue.stop(), 20)


def touch(directory: Path) -> None:
    """Make the directory look newer than it was."""
    newest = max(path.stat().st_mtime_ns for path in [directory, *directory.rglob("*")])
    os.utime(directory / "config.pbtxt", ns=(newest + 10**9, newest + 10**9))


async def test_a_model_that_did_not_change_is_left_alone(site: Site, ask: Ask) -> None:
    add(site.one, "odd")
    await site.catalogue.load("odd")
    first = site.table.find("odd")
    await site.catalogue.load("odd")
    assert site.table.find("odd") is first


async def test_a_changed_model_is_swapped_and_loses_no_request(site: Site, ask: Ask) -> None:
    directory = add(site.one, "odd", worker="process")
    await site.catalogue.load("odd")
    first = site.table.find("odd")
    touch(directory)
    answers: list[list[list[int]]] = []

    async def caller() -> None:
        while site.table.find("odd") is first:
            answers.append(await site.infer(ask(len(answers))))

    callers = [asyncio.ensure_future(caller()) for _ in range(3)]
    await site.catalogue.load("odd")
    await asyncio.gather(*callers)
    assert site.table.find("odd") is not first
    assert await site.infer(ask(21)) == [[42]]
    assert len(answers) > 3
    assert all(row[0] % 2 == 0 for (row,) in answers)


async def test_versions_come_and_go_with_a_reload(site: Site) -> None:
    directory = add(site.one, "odd", ALL_VERSIONS, versions=2)
    await site.catalogue.load("odd")
    (directory / "3").mkdir()
    shutil.rmtree(directory / "1")
    touch(directory)
    await site.catalogue.load("odd")
    assert site.table.ready_versions("odd") == [2, 3]
    await until(lambda: ModelIndex("odd", "1", "UNAVAILABLE", UNLOADED) in site.lines())


async def test_a_failing_reload_keeps_what_serves(site: Site, ask: Ask) -> None:
    directory = add(site.one, "odd")
    await site.catalogue.load("odd")
    good = (directory / "config.pbtxt").read_text()
    (directory / "config.pbtxt").write_text(good + parameter("FAIL", "load"))
    touch(directory)
    text = (
        "load failed for model 'odd': version 1 is at UNAVAILABLE state: "
        "Internal: Stranger: cannot load;\n"
    )
    for _ in range(2):  # a load that failed is tried again
        with capture_logs(), pytest.raises(LoadFailed) as caught:
            await site.catalogue.load("odd")
        assert str(caught.value) == text
    assert await site.infer(ask(2)) == [[4]]
    (directory / "config.pbtxt").write_text("no { such: thing }")
    with capture_logs(), pytest.raises(Internal, match=r"failed to load 'odd', failed to poll"):
        await site.catalogue.load("odd")
    assert await site.infer(ask(3)) == [[6]]
    assert site.table.index(ready=True) == [ModelIndex("odd", "1", "READY")]


async def test_a_configuration_that_comes_along_sticks(site: Site) -> None:
    add(site.one, "odd")
    await site.catalogue.load("odd")
    await site.catalogue.load("odd", override(5))
    await site.catalogue.load("odd", override(3))
    assert site.table.find("odd").config.max_batch_size == 3
    await site.catalogue.load("odd")  # nothing has changed on disk
    assert site.table.find("odd").config.max_batch_size == 3
    await site.catalogue.unload("odd")
    await site.catalogue.load("odd")
    assert site.table.find("odd").config.max_batch_size == 8


async def test_files_that_came_along_outlive_a_load_that_fails(site: Site, ask: Ask) -> None:
    await site.catalogue.load("odd", override(2, {"1/trace": b""}))
    (trace,) = map(Path, site.traces())
    with capture_logs(), pytest.raises(LoadFailed):
        await site.catalogue.load("odd", override(2, {"1/trace": b""}, "load"))
    gc.collect()
    assert trace.exists()
    assert await site.infer(ask(4)) == [[8]]


def override(
    max_batch_size: int, files: Mapping[str, bytes] | None = None, fail: str = ""
) -> Override:
    """The configuration of `odd` with another batch size, where it is to fail, and files by their
    path."""
    document = {
        "backend": "odd",
        "max_batch_size": max_batch_size,
        "input": [{"name": "X", "data_type": "TYPE_INT32", "dims": [-1]}],
        "output": [{"name": "Y", "data_type": "TYPE_INT32", "dims": [-1]}],
        "parameters": {"WORKER": {"string_value": "thread"}, "FAIL": {"string_value": fail}},
    }
    made = Override.of(json.dumps(document), files or {})
    assert made is not None
    return made


async def test_files_that_come_along_need_no_repository(site: Site, ask: Ask) -> None:
    await site.catalogue.load("odd", override(2, {"1/trace": b"", "1/deep/file": b"x"}))
    assert await site.infer(ask(4)) == [[8]]
    (trace,) = map(Path, site.traces())
    assert trace.stat().st_size
    await site.catalogue.unload("odd")
    await until(lambda: not trace.exists())
    with capture_logs(), pytest.raises(Internal, match="failed to poll from model repository"):
        await site.catalogue.load("odd")


@pytest.mark.parametrize("path", ["../odd2/file", "/etc/file", "1/../../x", ".", ""])
async def test_files_stay_in_the_model_s_directory(site: Site, path: str) -> None:
    with capture_logs() as logs, pytest.raises(Internal, match="failed to load 'odd'"):
        await site.catalogue.load("odd", override(2, {path: b""}))
    assert any("file override" in entry["reason"] for entry in logs)


def test_files_need_a_configuration() -> None:
    assert Override.of(None, {}) is None
    with pytest.raises(InvalidArgument, match="requires a 'config' parameter"):
        Override.of(None, {"1/model.py": b""})
    with pytest.raises(InvalidArgument, match=r"Invalid config override: .*not valid JSON"):
        Override.of("{", {})


async def test_unloading_finishes_what_was_accepted(site: Site, ask: Ask) -> None:
    add(site.one, "odd")
    await site.catalogue.load("odd")
    tasks = [asyncio.ensure_future(site.infer(ask(n))) for n in range(3)]
    await asyncio.sleep(0)
    await site.catalogue.unload("odd")
    with pytest.raises(NotFound, match="'odd' has no available versions"):
        await site.infer(ask(1))
    assert [await task for task in tasks] == [[[0]], [[2]], [[4]]]
    await until(lambda: site.lines() == [ModelIndex("odd", "1", "UNAVAILABLE", UNLOADED)])
    assert site.table.all_ready()
    await site.catalogue.unload("odd")
    await site.catalogue.unload("nobody")


async def test_a_load_goes_on_when_its_caller_has_gone(site: Site) -> None:
    add(site.one, "odd")
    loading = asyncio.ensure_future(site.catalogue.load("odd"))
    await until(lambda: site.table.index(ready=False))
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    await until(lambda: site.table.ready("odd"))


async def test_stopping_gives_up_a_load(site: Site, new_children: Callable[[], list[Any]]) -> None:
    add(site.one, "odd", worker="process")
    loading = asyncio.ensure_future(site.catalogue.load("odd"))
    await until(lambda: site.table.index(ready=False))
    await site.catalogue.stop()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert new_children() == []


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("", "Model name cannot be empty"),
        ("  ", "Model name cannot be empty"),
        ("..", "model name must not contain path traversal characters"),
        (" .. ", "model name must not contain path traversal characters"),
        ("a/b", "model name must not contain path traversal characters"),
    ],
)
def test_names_that_cannot_be_models(name: str, phrase: str) -> None:
    with pytest.raises(InvalidArgument, match=phrase):
        check_name(name)
    for good in ("...", "a..1", "m"):
        check_name(good)


async def test_a_model_that_lies_anywhere(site: Site, ask: Ask, tmp_path: Path) -> None:
    directory = add(tmp_path, "elsewhere", 'name: "written"\n')
    await site.catalogue.load("odd", directory=directory)
    assert site.index() == [("odd", "1", "READY")]
    assert await site.infer(ask(3)) == [[6]]
    before = site.table.find("odd")
    await site.catalogue.load("odd")  # from where it was, and nothing has changed
    assert site.table.find("odd") is before
    (directory / "1" / "more").touch()
    await site.catalogue.load("odd")
    assert site.table.find("odd") is not before
    await site.catalogue.unload("odd")
    with capture_logs(), pytest.raises(Internal, match="failed to load 'odd'"):
        await site.catalogue.load("odd")


async def test_a_model_that_lies_nowhere(site: Site, tmp_path: Path) -> None:
    with capture_logs() as lines, pytest.raises(Internal, match="failed to load 'odd'"):
        await site.catalogue.load("odd", directory=tmp_path / "absent")
    assert "failed to read the directory" in lines[0]["reason"]
