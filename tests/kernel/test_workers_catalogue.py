"""Loading all models of repositories, and taking them down again."""

import asyncio
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from microkernel import BackendType, InferRequest, InvalidArgument, ModelIndex, Unavailable
from microkernel.models.catalogue import Catalogue
from microkernel.models.loader import Loader, LoaderSettings, Offer
from microkernel.models.table import ModelTable

Ask = Callable[..., InferRequest]

CONFIG = """
    backend: "odd"
    max_batch_size: 8
    input { name: "X" data_type: TYPE_INT32 dims: -1 }
    output { name: "Y" data_type: TYPE_INT32 dims: -1 }
"""
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
        offers = [Offer(BackendType("odd", "odd_backend:OddBackend"), None)]
        loader = Loader(offers, LoaderSettings())
        self.catalogue = Catalogue([self.one, self.two], loader, self.table, threads=2)

    def index(self) -> list[tuple[str, str, str]]:
        return [(m.name, m.version, m.state) for m in self.table.index(ready=False)]

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
    assert (directory / "1" / "trace").read_text().splitlines()[-1] == "unloaded"


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
