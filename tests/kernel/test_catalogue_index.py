"""The repository index beside what is loaded, and what is kept of names that clients make up."""

import gc
from pathlib import Path

import pytest
from odd_loader import odd_loader

from microkernel import Internal, ModelIndex
from microkernel.models.catalogue import Catalogue
from microkernel.models.table import ModelTable
from microkernel.repository.store import DUPLICATE


@pytest.fixture
def repositories(tmp_path: Path) -> list[Path]:
    """Two repositories: `mine` is in the first, `both` in both."""
    for part in ("one/mine", "one/both", "two/both"):
        (tmp_path / part / "1").mkdir(parents=True)
    return [tmp_path / "one", tmp_path / "two"]


@pytest.fixture
def catalogue(repositories: list[Path]) -> Catalogue:
    return Catalogue(repositories, odd_loader(), ModelTable(), threads=1)


async def test_what_was_never_loaded_has_a_name_only(
    catalogue: Catalogue, repositories: list[Path]
) -> None:
    both = ModelIndex("both", "", "UNAVAILABLE", DUPLICATE)
    assert await catalogue.index() == [both, ModelIndex("mine")]
    (repositories[1] / "new").mkdir()
    assert await catalogue.index() == [both, ModelIndex("mine"), ModelIndex("new")]


async def test_nothing_is_kept_of_models_that_are_nowhere(catalogue: Catalogue) -> None:
    before = await catalogue.index()
    for number in range(20):
        with pytest.raises(Internal, match="failed to poll from model repository"):
            await catalogue.load(f"absent{number}")
        await catalogue.unload(f"absent{number}")
    gc.collect()  # the errors' tracebacks hold on to the last one
    assert await catalogue.index() == before
    assert len(catalogue._locks) == 0
    assert catalogue._table.all_ready()
