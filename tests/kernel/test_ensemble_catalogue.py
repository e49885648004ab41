"""Ensembles in a repository: in which order they are loaded, and what becomes of them when their
models come, change and go."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from ensemble_models import ensemble, step
from odd_loader import odd_loader
from structlog.testing import capture_logs

from microkernel import InferRequest, Internal, NotFound, Unavailable
from microkernel.models.catalogue import Catalogue, LoadFailed
from microkernel.models.table import UNLOADED, ModelTable
from microkernel.repository.override import Override

Ask = Callable[..., InferRequest]

MODEL = """
backend: "odd"
max_batch_size: 8
input { name: "X" data_type: TYPE_INT32 dims: -1 }
output { name: "Y" data_type: TYPE_INT32 dims: -1 }
parameters { key: "WORKER" value { string_value: "thread" } }
"""
FAILING = 'parameters { key: "FAIL" value { string_value: "load" } }\n'
OTHER_TYPE = MODEL.replace("TYPE_INT32", "TYPE_FP32")
BATCHES = "max_batch_size: 8\n"


def twice(name: str, inner: str = "m", version: int = -1) -> str:
    """An ensemble that doubles twice, by a model or an ensemble which does."""
    inputs, outputs = ("X", "Y") if inner.startswith("m") else ("a", "y")
    steps = (
        step(inner, f"{inputs}=a", f"{outputs}=t", version),
        step(inner, f"{inputs}=t", f"{outputs}=y", version),
    )
    return ensemble(name, "a", "y", *steps, more=BATCHES)


class Site:
    """A repository, and a catalogue of it."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.table = ModelTable()
        self.catalogue = Catalogue([repository], odd_loader(), self.table, threads=2)

    def write(self, name: str, config: str = MODEL, versions: tuple[int, ...] = (1,)) -> Path:
        directory = self.repository / name
        directory.mkdir(exist_ok=True)
        for version in versions:
            (directory / str(version)).mkdir(parents=True, exist_ok=True)
        (directory / "config.pbtxt").write_text(config)
        return directory

    @property
    def states(self) -> dict[str, str]:
        """The state of each model's last version, and why where it is not there."""
        return {
            line.name: line.state if line.state == "READY" else line.reason
            for line in self.table.index(ready=False)
        }

    async def failure(self, name: str, **more: Any) -> str:
        """The message with which a load fails."""
        with capture_logs(), pytest.raises(LoadFailed) as raised:
            await self.catalogue.load(name, **more)
        return str(raised.value)

    async def infer(self, name: str, request: InferRequest) -> list[list[int]]:
        asked = InferRequest(name, tuple(_named(t, "a") for t in request.inputs), id=request.id)
        response = await self.table.find(name).infer(asked)
        rows: list[list[int]] = response.outputs[0].as_numpy().tolist()
        return rows


def _named(tensor: Any, name: str) -> Any:
    return type(tensor)(name, tensor.datatype, tensor.shape, tensor.data)


@pytest.fixture
async def site(tmp_path: Path, odd_path: None) -> AsyncIterator[Site]:
    made = Site(tmp_path)
    yield made
    assert await made.catalogue.drain(10)
    await made.catalogue.stop()


async def test_models_are_loaded_before_the_ensembles_that_need_them(site: Site, ask: Ask) -> None:
    site.write("a_outer", twice("a_outer", "b_inner"))
    site.write("b_inner", twice("b_inner"))
    site.write("m")
    with capture_logs() as lines:
        await site.catalogue.load_all(None)
    loaded = [line["model"] for line in lines if line["event"].endswith("loaded")]
    assert loaded == ["m", "b_inner", "a_outer"]
    assert site.table.all_ready()
    assert await site.infer("a_outer", ask(3)) == [[48]]
    config = site.table.find("a_outer").config
    assert config.model_transaction_policy is not None
    assert not config.decoupled


async def test_an_ensemble_brings_its_models(site: Site) -> None:
    site.write("outer", twice("outer", "inner"))
    site.write("inner", twice("inner"))
    site.write("m")
    site.write("other")
    await site.catalogue.load("outer")
    assert site.states == {"outer": "READY", "inner": "READY", "m": "READY"}


async def test_the_models_of_those_that_are_wanted_are_loaded_too(site: Site) -> None:
    site.write("e", twice("e"))
    site.write("m")
    site.write("other")
    await site.catalogue.load_all(["e"])
    assert site.states == {"e": "READY", "m": "READY"}


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        ({"e": twice("e")}, "ensemble e contains models that are not available or ambiguous: m"),
        (
            {"e": twice("e"), "m": MODEL + "no_such_field: 1"},
            "ensemble e contains models that are not available or ambiguous: m",
        ),
        (
            {"e": twice("e"), "m": MODEL + FAILING},
            "ensemble 'e' depends on 'm' which has no loaded version. Model 'm' loading failed "
            "with error: version 1 is at UNAVAILABLE state: Internal: Stranger: cannot load;",
        ),
        (
            {"e": twice("e", "inner"), "inner": twice("inner")},
            "ensemble 'e' depends on 'inner' which is not valid",
        ),
        (
            {"e": twice("e", version=0), "m": MODEL},
            "ensemble 'e' depends on 'm' whose required version 0 is not loaded.",
        ),
        (
            {"e": twice("e", "f"), "f": twice("f", "g"), "g": twice("g", "e")},
            "circular dependency between ensembles: e -> ... -> g -> e",
        ),
        ({"e": twice("e", "e")}, "circular dependency between ensembles: e -> ... -> e -> e"),
        (
            {"e": twice("e"), "m": OTHER_TYPE},
            "ensemble tensor a: inconsistent data type: TYPE_INT32 is inferred from model e while "
            "TYPE_FP32 is inferred from model m",
        ),
    ],
)
async def test_why_an_ensemble_cannot_be_loaded(
    site: Site, models: dict[str, str], reason: str
) -> None:
    for name, config in models.items():
        site.write(name, config)
    assert await site.failure("e") == f"load failed for model 'e': {reason}"
    assert site.states["e"] == f"Invalid argument: {reason}"
    with pytest.raises(NotFound, match=r"^Request for unknown model: 'e' has no available"):
        site.table.find("e")


async def test_a_configuration_that_is_wrong_by_itself(site: Site) -> None:
    site.write("m")
    site.write("e", twice("e").replace('value: "y"', 'value: "z"'))
    with capture_logs(), pytest.raises(Internal, match="failed to poll from model repository"):
        await site.catalogue.load("e")


async def test_an_ensemble_needs_a_version(site: Site) -> None:
    site.write("m")
    site.write("e", twice("e"), versions=())
    assert "at least one version must be available" in await site.failure("e")


async def test_what_is_missing_may_come_later(site: Site, ask: Ask) -> None:
    site.write("e", twice("e"))
    await site.failure("e")
    site.write("m")
    await site.catalogue.load("m")
    assert site.states == {"e": "READY", "m": "READY"}
    assert await site.infer("e", ask(1)) == [[4]]


async def test_ensembles_go_with_a_model_and_come_back_with_it(site: Site, ask: Ask) -> None:
    for name, config in {"outer": twice("outer", "inner"), "inner": twice("inner")}.items():
        site.write(name, config)
    site.write("m")
    await site.catalogue.load_all(None)
    with capture_logs():
        await site.catalogue.unload("m")
    with pytest.raises(NotFound, match="has no available versions"):
        site.table.find("outer")
    await settled(site)
    assert site.states == dict.fromkeys(["inner", "m", "outer"], UNLOADED)
    assert site.table.all_ready()
    await site.catalogue.load("m")
    assert site.states == dict.fromkeys(["inner", "m", "outer"], "READY")
    assert await site.infer("outer", ask(1)) == [[16]]


async def settled(site: Site) -> None:
    """Wait until what was taken down is gone."""
    while site.catalogue._retiring:
        await asyncio.wait(list(site.catalogue._retiring))


async def test_one_that_was_unloaded_itself_does_not_come_back(site: Site) -> None:
    site.write("e", twice("e"))
    site.write("m")
    await site.catalogue.load_all(None)
    await site.catalogue.unload("e")
    await site.catalogue.unload("m")
    await site.catalogue.load("m")
    await settled(site)
    assert site.states == {"e": UNLOADED, "m": "READY"}


async def test_a_model_that_does_not_fit_any_more_takes_its_ensemble_down(site: Site) -> None:
    site.write("e", twice("e"))
    site.write("m")
    await site.catalogue.load_all(None)
    serving = site.table.find("e")
    site.write("m", MODEL + "# the same\n")
    await site.catalogue.load("m")
    assert site.table.find("e") is serving
    site.write("m", OTHER_TYPE)
    with capture_logs():
        await site.catalogue.load("m")
    await settled(site)
    assert site.states["m"] == "READY"
    assert site.states["e"].startswith("Invalid argument: ensemble tensor a: inconsistent data")
    assert not site.table.all_ready()
    site.write("m")
    await site.catalogue.load("m")
    assert site.states == {"e": "READY", "m": "READY"}


async def test_an_ensemble_that_changes_for_the_worse_goes_on(site: Site, ask: Ask) -> None:
    site.write("e", twice("e"))
    site.write("m")
    await site.catalogue.load_all(None)
    site.write("e", twice("e", "missing"))
    await site.failure("e")
    assert await site.infer("e", ask(1)) == [[4]]


OVERRIDE = {
    "backend": "odd",
    "max_batch_size": 4,
    "input": [{"name": "X", "data_type": "TYPE_INT32", "dims": [-1]}],
    "output": [{"name": "Y", "data_type": "TYPE_INT32", "dims": [-1]}],
    "parameters": {"WORKER": {"string_value": "thread"}},
}


async def test_an_ensemble_is_what_it_was_loaded_with(site: Site) -> None:
    """A model with smaller batches comes, which the ensemble does not allow."""
    site.write("e", twice("e"))
    site.write("m")
    await site.catalogue.load_all(None)
    with capture_logs():
        await site.catalogue.load("m", Override.of(json.dumps(OVERRIDE), {}))
    await settled(site)
    assert "which only allows maximum batch size to be 4" in site.states["e"]


async def test_a_circle_that_a_reload_would_close(site: Site) -> None:
    site.write("e", twice("e", "f"))
    site.write("f", twice("f"))
    site.write("m")
    await site.catalogue.load_all(None)
    site.write("f", twice("f", "e"))
    assert "circular dependency between ensembles: f -> ... -> e -> f" in await site.failure("f")
    assert site.states == dict.fromkeys("efm", "READY")


@pytest.mark.parametrize(
    ("explicit", "left"),
    [
        (["outer"], []),
        (["m", "outer"], ["m"]),
        (["outer", "second"], ["m", "second"]),
        (["inner", "outer"], ["inner", "m"]),
    ],
)
async def test_what_only_an_ensemble_needed_goes_with_it(
    site: Site, explicit: list[str], left: list[str]
) -> None:
    configs = {"outer": twice("outer", "inner"), "inner": twice("inner"), "m": MODEL}
    for name, config in {**configs, "second": twice("second")}.items():
        site.write(name, config)
    for name in explicit:
        await site.catalogue.load(name)
    await site.catalogue.unload("outer", dependents=True)
    assert sorted(name for name, state in site.states.items() if state == "READY") == left


async def test_models_stay_unless_they_are_to_go(site: Site) -> None:
    site.write("e", twice("e"))
    site.write("m")
    await site.catalogue.load("e")
    await site.catalogue.unload("e")
    assert site.table.ready("m")


async def test_versions(site: Site, ask: Ask) -> None:
    site.write("e", twice("e", version=2) + "version_policy { all { } }\n", versions=(1, 3))
    site.write("m", MODEL + "version_policy { all { } }\n", versions=(1, 2))
    await site.catalogue.load_all(None)
    assert site.table.ready_versions("e") == [1, 3]
    assert await site.infer("e", ask(1)) == [[4]]
    site.write("m", MODEL + "version_policy { specific { versions: 1 } }\n", versions=(1, 2))
    with capture_logs():
        await site.catalogue.load("m")
    await settled(site)
    assert site.states["e"].endswith("whose required version 2 is not loaded.")


async def test_labels_of_a_models_output_are_those_of_the_ensembles(site: Site) -> None:
    labelled = MODEL.replace("-1 }\nparam", '-1 label_filename: "names.txt" }\nparam')
    (site.write("m", labelled) / "names.txt").write_text("zero\none\n")
    site.write("e", twice("e"))
    site.write("own", twice("own").replace('"y" data', '"y" label_filename: "own.txt" data'))
    (site.repository / "own" / "own.txt").write_text("null\n")
    await site.catalogue.load_all(None)
    assert site.table.find("e").labels == {"y": ("zero", "one")}
    assert site.table.find("own").labels == {"y": ("null",)}


async def test_a_label_file_that_is_missing(site: Site) -> None:
    site.write("m")
    site.write("e", twice("e").replace('"y" data', '"y" label_filename: "own.txt" data'))
    assert "label file 'own.txt' of output 'y' cannot be read" in await site.failure("e")


async def test_two_hundred_requests_at_once(site: Site, ask: Ask) -> None:
    site.write("outer", twice("outer", "inner"))
    site.write("inner", twice("inner"))
    site.write("m", MODEL + "dynamic_batching { }\n")
    await site.catalogue.load_all(None)
    found = await asyncio.gather(*(site.infer("outer", ask(n)) for n in range(10, 210)))
    assert found == [[[16 * n]] for n in range(10, 210)]
    assert site.table.find("outer").stats.success.count == 200
    assert site.table.find("m").stats.success.count == 800


async def test_requests_in_an_ensemble_finish_when_a_model_goes(site: Site, ask: Ask) -> None:
    site.write("e", twice("e"))
    site.write("m")
    await site.catalogue.load_all(None)
    tasks = [asyncio.ensure_future(site.infer("e", ask(n))) for n in range(5)]
    await asyncio.sleep(0)
    with capture_logs():
        await site.catalogue.unload("m")
    with pytest.raises(NotFound):
        await site.infer("e", ask(1))
    assert await asyncio.gather(*tasks) == [[[4 * n]] for n in range(5)]
    await settled(site)
    assert site.states == {"e": UNLOADED, "m": UNLOADED}


async def test_requests_in_an_ensemble_finish_when_the_server_stops(site: Site, ask: Ask) -> None:
    site.write("e", twice("e"))
    site.write("m")
    await site.catalogue.load_all(None)
    tasks = [asyncio.ensure_future(site.infer("e", ask(n))) for n in range(5)]
    await asyncio.sleep(0)
    assert await site.catalogue.drain(20)
    assert [task.result() for task in tasks] == [[[4 * n]] for n in range(5)]
    with pytest.raises(Unavailable, match="has stopped accepting new inference requests"):
        await site.infer("e", ask(1))
