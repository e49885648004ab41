"""Ensembles in repositories that are followed: what becomes of them when their models come, change
and go on disk."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ensemble_models import ensemble, step
from odd_loader import odd_loader
from structlog.testing import capture_logs

from microkernel import InferRequest
from microkernel.models.catalogue import Catalogue
from microkernel.models.poller import Poller
from microkernel.models.table import UNLOADED, ModelTable

Ask = Callable[..., InferRequest]

MODEL = """
backend: "odd"
max_batch_size: 8
input { name: "X" data_type: TYPE_INT32 dims: -1 }
output { name: "Y" data_type: TYPE_INT32 dims: -1 }
parameters { key: "WORKER" value { string_value: "thread" } }
"""
OTHER_TYPE = MODEL.replace("TYPE_INT32", "TYPE_FP32")
FAILING = MODEL + 'parameters { key: "FAIL" value { string_value: "load" } }\n'


def chain(name: str, *models: str) -> str:
    """An ensemble that runs models one after the other; those without an `m` are ensembles."""
    tensors = ["a", *(f"t{number}" for number in range(1, len(models))), "y"]
    steps = [
        step(
            model,
            f"{'X' if model.startswith('m') else 'a'}={tensors[number]}",
            f"{'Y' if model.startswith('m') else 'y'}={tensors[number + 1]}",
        )
        for number, model in enumerate(models)
    ]
    return ensemble(name, "a", "y", *steps, more="max_batch_size: 8\n")


class Site:
    """A repository that is polled."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.table = ModelTable()
        self.catalogue = Catalogue([repository], odd_loader(), self.table, threads=2)
        self.poller = Poller([repository], self.catalogue)
        self._written = 0

    def write(self, name: str, config: str = MODEL) -> None:
        """A model, or another configuration of it, newer than all before."""
        directory = self.repository / name
        (directory / "1").mkdir(parents=True, exist_ok=True)
        file = directory / "config.pbtxt"
        file.write_text(config)
        self._written += 1
        stamp = file.stat().st_mtime_ns + self._written * 10**9
        os.utime(file, ns=(stamp, stamp))

    def remove(self, name: str) -> None:
        shutil.rmtree(self.repository / name)

    async def start(self) -> None:
        """What the server does at its start."""
        await self.poller.begin()
        await self.catalogue.load_all(None)

    async def follow(self) -> None:
        """Two looks, the second of which confirms the first, and all that they ask for."""
        with capture_logs():
            for _ in range(2):
                await self.poller.poll()
            await self.poller.settle()

    @property
    def serving(self) -> set[str]:
        return {line.name for line in self.table.index(ready=True)}

    def reason(self, name: str) -> str:
        """Why a model does not serve."""
        (line,) = [line for line in self.table.index(ready=False) if line.name == name]
        return line.reason

    async def infer(self, name: str, request: InferRequest) -> list[list[int]]:
        inputs = tuple(replace(tensor, name="a") for tensor in request.inputs)
        response = await self.table.find(name).infer(InferRequest(name, inputs))
        rows: list[list[int]] = response.outputs[0].as_numpy().tolist()
        return rows


@pytest.fixture
async def site(tmp_path: Path, odd_path: None) -> AsyncIterator[Site]:
    made = Site(tmp_path)
    yield made
    await made.poller.stop()
    await made.catalogue.drain(10)
    await made.catalogue.stop()


async def test_a_model_that_changes_is_held_against_its_ensemble(site: Site, ask: Ask) -> None:
    site.write("m")
    site.write("e", chain("e", "m", "m"))
    site.write("outer", chain("outer", "e"))
    await site.start()
    serving = site.table.find("e")
    site.write("m", MODEL + "dynamic_batching { }\n")
    await site.follow()
    assert site.table.find("e") is serving
    site.write("m", OTHER_TYPE)
    await site.follow()
    assert site.serving == {"m"}
    assert "inconsistent data type: TYPE_INT32 is inferred from model e" in site.reason("e")
    assert site.reason("outer") == (
        "Invalid argument: ensemble 'outer' depends on 'e' which is not valid"
    )
    site.write("m")
    await site.follow()
    assert site.serving == {"e", "m", "outer"}
    assert await site.infer("outer", ask(1)) == [[4]]


async def test_a_model_that_goes_takes_its_ensembles_along_until_it_is_back(
    site: Site, ask: Ask
) -> None:
    site.write("m")
    site.write("e", chain("e", "m"))
    site.write("outer", chain("outer", "e", "m"))
    await site.start()
    site.remove("m")
    await site.follow()
    assert site.serving == set()
    while site.catalogue._retiring:
        await asyncio.wait(list(site.catalogue._retiring))
    assert [site.reason(name) for name in ("e", "m", "outer")] == [UNLOADED] * 3
    assert site.table.all_ready()
    site.write("m")
    await site.follow()
    assert site.serving == {"e", "m", "outer"}
    assert await site.infer("outer", ask(1)) == [[4]]


@pytest.mark.parametrize("order", [("outer", "e", "m"), ("e", "m", "outer"), ("m", "outer", "e")])
async def test_models_and_ensembles_come_in_any_order(
    site: Site, ask: Ask, order: tuple[str, ...]
) -> None:
    configs = {"m": MODEL, "e": chain("e", "m"), "outer": chain("outer", "e", "m")}
    await site.start()
    for name in order:
        site.write(name, configs[name])
        await site.follow()
    assert site.serving == {"e", "m", "outer"}
    assert site.table.all_ready()
    assert await site.infer("outer", ask(1)) == [[4]]


async def test_models_and_ensembles_that_come_together(site: Site, ask: Ask) -> None:
    await site.start()
    for name in ("m", "m2"):
        site.write(name)
    site.write("e", chain("e", "m", "m2"))
    site.write("outer", chain("outer", "e", "m"))
    await site.follow()
    assert site.serving == {"e", "m", "m2", "outer"}
    assert await site.infer("outer", ask(1)) == [[8]]


async def test_a_model_that_fails_at_first(site: Site) -> None:
    await site.start()
    site.write("m", FAILING)
    site.write("e", chain("e", "m"))
    await site.follow()
    assert site.serving == set()
    assert "ensemble 'e' depends on 'm' which has no loaded version" in site.reason("e")
    site.write("m")
    await site.follow()
    assert site.serving == {"e", "m"}


async def test_an_ensemble_that_changes_while_its_model_is_away(site: Site, ask: Ask) -> None:
    """It comes back as it is now, not as it was."""
    site.write("m")
    site.write("m2")
    site.write("e", chain("e", "m"))
    await site.start()
    site.remove("m")
    await site.follow()
    site.write("e", chain("e", "m", "m2"))
    await site.follow()
    assert site.serving == {"m2"}
    site.write("m")
    await site.follow()
    assert await site.infer("e", ask(1)) == [[4]]


async def test_an_ensemble_changes_when_the_model_that_it_lacks_has_come(
    site: Site, ask: Ask
) -> None:
    site.write("m")
    site.write("e", chain("e", "m"))
    await site.start()
    site.write("e", chain("e", "m", "m2"))
    await site.follow()
    assert await site.infer("e", ask(1)) == [[2]]
    site.write("m2")
    await site.follow()
    assert await site.infer("e", ask(1)) == [[4]]
    site.remove("m2")
    await site.follow()
    assert site.serving == {"m"}


async def test_a_model_goes_on_until_the_ensemble_in_its_place_can_serve(site: Site) -> None:
    site.write("e")
    await site.start()
    site.write("e", chain("e", "m"))
    await site.follow()
    assert site.table.find("e").config.ensemble_scheduling is None
    site.write("m")
    await site.follow()
    assert site.table.find("e").config.ensemble_scheduling is not None
    assert site.table.all_ready()


async def test_an_ensemble_that_goes_does_not_come_back(site: Site) -> None:
    site.write("m")
    site.write("e", chain("e", "m"))
    await site.start()
    site.write("e", chain("e", "m", "m2"))
    await site.follow()
    site.remove("e")
    await site.follow()
    site.write("m2")
    await site.follow()
    assert site.serving == {"m", "m2"}
    assert site.table.all_ready()
