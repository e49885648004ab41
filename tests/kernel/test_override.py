"""The configuration of a load request: its size, and where it is read."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from microkernel import InvalidArgument, LogSettings
from microkernel.log import LogControl
from microkernel.models.catalogue import Catalogue
from microkernel.models.loader import Loader, LoaderSettings
from microkernel.models.table import ModelTable
from microkernel.repository.override import LARGEST_CONFIG, Override
from microkernel.repository.store import find_models
from microkernel.server import KernelServer
from microkernel.settings import ServerSettings

CONFIG = '{"backend": "odd"}'


def test_a_configuration_has_a_largest_size() -> None:
    most = CONFIG.ljust(LARGEST_CONFIG)
    override = Override.of(most, {})
    assert override is not None
    assert override.config.backend == "odd"
    with pytest.raises(InvalidArgument, match=f"1048577 characters, the most is {LARGEST_CONFIG}"):
        Override.of(most + " ", {})


async def test_a_configuration_is_read_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []

    def watched(config: str | None, files: Mapping[str, bytes]) -> Override | None:
        threads.append(threading.current_thread() is threading.main_thread())
        return Override(config=Override.of(config, files).config)  # type: ignore[union-attr] # given

    class Loaded(Catalogue):
        async def load(
            self, name: str, override: Any = None, directory: Path | None = None
        ) -> None:
            loaded.append(override.config.backend)

    loaded: list[str] = []
    table = ModelTable()
    catalogue = Loaded([], Loader([], LoaderSettings()), table, 1)
    settings = ServerSettings(model_control_mode="explicit")
    server = KernelServer(table, catalogue, LogControl(LogSettings()), settings)
    monkeypatch.setattr("microkernel.server.Override", type("Watched", (), {"of": watched}))
    await server.load_model("odd", CONFIG)
    assert (threads, loaded) == ([False], ["odd"])


@pytest.mark.parametrize("address", ["s3://bucket/models", "gs://bucket", "as://account/container"])
def test_a_remote_repository_is_refused_with_what_to_do(address: str) -> None:
    told = f"^'{address}' cannot be a model repository: .* local directories only. Copy"
    with pytest.raises(InvalidArgument, match=told):
        find_models([Path(address)])


def test_a_local_directory_that_is_missing_is_no_remote_repository(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"No such file or directory$"):
        find_models([tmp_path / "s3:" / "bucket"])
