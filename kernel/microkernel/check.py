"""`microkernel check`: what is wrong with the models of a repository, and what would be filled
in."""

import difflib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from microkernel.config.codec import config_to_text
from microkernel.config.model import ModelConfig
from microkernel.errors import MicrokernelError
from microkernel.models.loader import Loader
from microkernel.repository.store import DUPLICATE, find_models


@dataclass(frozen=True, slots=True)
class Verdict:
    """One model: `problem` is "" where it is right; `added` are the lines of the configuration that
    the server and the backend would fill in."""

    model: str
    problem: str
    added: tuple[str, ...]


async def check(repository: Path, loader: Loader) -> AsyncIterator[Verdict]:
    """A verdict for every model in name order. Raises InvalidArgument where there is no repository.

    Backends complete configurations in workers, as at a load; no model is loaded.
    """
    found = find_models([repository])
    for name in sorted({*found.models, *found.duplicates}):
        if name in found.duplicates:
            yield Verdict(name, DUPLICATE, ())
            continue
        try:
            yield Verdict(name, "", await _added(found.models[name], loader))
        except MicrokernelError as error:
            yield Verdict(name, error.quoted(), ())


async def _added(directory: Path, loader: Loader) -> tuple[str, ...]:
    config = loader.read(directory)
    completed = config
    for version in loader.chosen(config, directory):
        completed = await loader.completed(config, directory, version)
    return _difference(loader.written(directory), completed)


def _difference(before: ModelConfig, after: ModelConfig) -> tuple[str, ...]:
    lines = difflib.ndiff(config_to_text(before).splitlines(), config_to_text(after).splitlines())
    return tuple(line[2:] for line in lines if line.startswith("+ "))
