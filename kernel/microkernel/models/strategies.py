"""Custom batching: finding a model's strategy, and asking it without trusting it."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import structlog

from microkernel.backend import BackendType
from microkernel.batching import BatchingStrategy, StrategyFactory
from microkernel.config.model import ModelConfig
from microkernel.config.queue_rules import STRATEGY, STRATEGY_PATH
from microkernel.errors import InvalidArgument
from microkernel.factories import package_of
from microkernel.scheduling.pending import Pending
from microkernel.scheduling.policy import Joins, Waiting

log = structlog.get_logger()

FILE = "batchstrategy.py"
FACTORY = "batching_strategy"
_LIBRARY = "batchstrategy.so"


class Strategies:
    """The batching strategies that plug-ins offer, and those that models bring as files."""

    def __init__(self, registered: Mapping[str, StrategyFactory]) -> None:
        self._registered = registered

    def of(
        self, config: ModelConfig, directory: Path, version: int, backend: BackendType
    ) -> Callable[[], Joins] | None:
        """What the dynamic batcher of a model asks, None where it asks nobody.

        Runs the model's code, and may block. Raises what `found` raises, and InvalidArgument for
        what does not work.
        """
        found = self.found(config, directory, version, backend)
        if found is None:
            return None
        if isinstance(found, Path):
            return self._guarded(config, _factory(found), str(found))
        return self._guarded(config, found, f"parameter '{STRATEGY}'")

    def found(
        self, config: ModelConfig, directory: Path, version: int, backend: BackendType
    ) -> StrategyFactory | Path | None:
        """The strategy that a parameter names, or a file in the folder of the version, the model or
        the backend; None where there is neither, or no dynamic batcher. Runs nothing of it, and may
        block. Raises InvalidArgument for what is not there."""
        if config.dynamic_batching is None:
            return None
        if name := config.parameter(STRATEGY):
            return self._named(config, name)
        return _file(config, directory, version, backend)

    def _named(self, config: ModelConfig, name: str) -> StrategyFactory:
        if name not in self._registered:
            known = ", ".join(sorted(self._registered)) or "none"
            raise _fault(config, STRATEGY, f"names '{name}', and the plug-ins offer: {known}")
        return self._registered[name]

    def _guarded(
        self, config: ModelConfig, factory: StrategyFactory, where: str
    ) -> Callable[[], Joins]:
        try:
            strategy = factory(config)
        except (Exception, SystemExit) as error:
            raise InvalidArgument(
                f"{where}: the batching strategy of model '{config.name}' cannot be made: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(strategy, BatchingStrategy):
            raise InvalidArgument(
                f"{where}: the batching strategy of model '{config.name}' must be a "
                f"microkernel.BatchingStrategy, got {type(strategy).__name__}"
            )
        return Guarded(config.name, strategy).open_batch


def _fault(config: ModelConfig, name: str, what: str) -> InvalidArgument:
    return InvalidArgument(f"parameter '{name}' of model '{config.name}' {what}")


def _file(config: ModelConfig, directory: Path, version: int, backend: BackendType) -> Path | None:
    """The file that holds the strategy. A library, which Triton would load, is refused."""
    if given := config.parameter(STRATEGY_PATH):
        path, root = (directory / given).resolve(), directory.resolve()
        if not path.is_relative_to(root):
            raise _fault(config, STRATEGY_PATH, f"must name a file inside {root}, got '{given}'")
        if path.suffix == ".so":
            raise InvalidArgument(_instead(path))
        if not path.is_file():
            raise _fault(config, STRATEGY_PATH, f"names '{given}', but {path} is not a file")
        return path
    for folder in _folders(directory, version, backend):
        if (folder / FILE).is_file():
            return folder / FILE
        if (folder / _LIBRARY).is_file():
            raise InvalidArgument(_instead(folder / _LIBRARY))
    return None


def _instead(path: Path) -> str:
    return (
        f"{path}: batching strategies are Python here, not libraries: put a '{FILE}' that defines "
        f"'{FACTORY}(config)' in its place"
    )


def _folders(directory: Path, version: int, backend: BackendType) -> Sequence[Path]:
    """Where a strategy may lie, the most particular place first."""
    return [directory / str(version), directory, *_package(backend)]


def _package(backend: BackendType) -> Iterator[Path]:
    """The folder of the backend, where it is a package."""
    spec = importlib.util.find_spec(package_of(backend.factory))
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        yield Path(folder)


def _factory(file: Path) -> StrategyFactory:
    spec = importlib.util.spec_from_file_location(f"microkernel_batching_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InvalidArgument(
            f"{file}: cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    factory = getattr(module, FACTORY, None)
    if not callable(factory):
        raise InvalidArgument(f"{file}: does not define '{FACTORY}(config)'")
    return cast("StrategyFactory", factory)


class Guarded:
    """A strategy whose faults disturb nobody: the first is logged, and all count as yes."""

    def __init__(self, model: str, strategy: BatchingStrategy) -> None:
        self._model = model
        self._strategy = strategy
        self._reported = False

    def open_batch(self) -> Joins:
        """A batch without requests."""
        try:
            batch = self._strategy.open_batch()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's code
            self._report(error)
            return _anything

        def joins(waiting: Waiting) -> bool:
            try:
                return bool(batch.include(cast("Pending", waiting).request))
            except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's code
                self._report(error)
                return True

        return joins

    def _report(self, error: BaseException) -> None:
        if not self._reported:
            self._reported = True
            text = "batching strategy failed, further faults are not logged"
            log.error(text, model=self._model, exc_info=error)


def _anything(waiting: Waiting) -> bool:
    return True
