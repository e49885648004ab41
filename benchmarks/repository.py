"""How does a model get into a repository? Its file is linked, its configuration written."""

import os
from pathlib import Path

from benchmarks.cases import Case


def add_model(repository: Path, case: Case, networks: Path) -> None:
    """Write a model with one version; `networks` is the folder of the TorchScript files."""
    version = repository / case.model / "1"
    version.mkdir(parents=True)
    os.link(networks / f"{case.network.name}.pt", version / "model.pt")
    (repository / case.model / "config.pbtxt").write_text(case.config())
