"""What holds for every test."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

_PREPARE = Path(__file__).resolve().parent.parent / "examples" / "prepare.py"

# Else setuptools, which torch's compiler imports, stumbles over whoever has imported distutils.
os.environ.setdefault("SETUPTOOLS_USE_DISTUTILS", "stdlib")

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

_OF_MODELS = ("1", "triton_python_backend_utils")
"""What a Python model leaves among the modules: its version's package, and the utilities."""


def _as_it_was() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.split(".", 1)[0] in _OF_MODELS:
            del sys.modules[name]


@pytest.fixture(scope="module", autouse=True)
def _search_path_as_it_was() -> Iterator[None]:
    """A file of tests that imports models or examples leaves the interpreter to the next file as
    it was, whichever comes next."""
    yield from _as_it_was()


@pytest.fixture
def own_interpreter_state() -> Iterator[None]:
    """The same for a test: the next one gets the interpreter as it was."""
    yield from _as_it_was()


@pytest.fixture(scope="session", autouse=True)
def _operators_of_torch_are_kept() -> Iterator[None]:
    """torch tells its operators from other objects by their addresses, also those that it has let
    go of. What gets such an address counts as an operator, and a module that has it as an attribute
    cannot be scripted."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        yield
        return
    kept, builtins = [], torch.jit._builtins
    register = builtins._register_builtin

    def keep(operator: Any, name: str) -> None:
        kept.append(operator)
        register(operator, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "_register_builtin", keep)
        yield


@pytest.fixture(scope="session")
def prepared_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of example models as its script makes it, once for all tests: whoever wants
    another makes a copy."""
    models = tmp_path_factory.mktemp("examples") / "models"
    command = [sys.executable, "-W", "error", str(_PREPARE), "--output", str(models)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return models


def pytest_collection_finish() -> None:
    """Keep the collector of garbage from looking through thousands of tests again and again, which
    took a quarter of the suite's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
