"""Models that people use, from packages that carry them."""

import importlib.util
from pathlib import Path

import pytest


def packaged(package: str, pattern: str) -> Path:
    """The first file of a package that fits the pattern; skips the test where there is none."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = [path for folder in folders for path in Path(folder).glob(pattern)]
    if not found:
        pytest.skip(f"needs the package '{package}', whose model it serves")
    return found[0]
