"""`Server`: the inference server inside this process, without sockets."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from microkernel.errors import InvalidArgument, Unavailable, Unsupported
from microkernel.inprocess.documents import server_document
from microkernel.inprocess.engine import Engine
from microkernel.inprocess.enums import MetricFormat
from microkernel.inprocess.launch import setup_of
from microkernel.inprocess.model import Model
from microkernel.inprocess.options import Options
from microkernel.port import ModelIndex
from microkernel.request import LATEST

_FILE = "file:"


class ModelDictionary(dict[Any, Model]):
    """Models by name and version; by name alone, the highest version that is ready."""

    def __missing__(self, key: object) -> Model:
        versions = [model for name, model in self.items() if name[0] == key]
        if not versions:
            raise KeyError(key)
        newest = max(versions, key=lambda model: (model.state == "READY", model.version))
        return Model(newest.engine, newest.name, LATEST, newest.state, newest.reason)

    def get(self, key: Any, default: Any = None) -> Any:
        """The model, or the default where there is none."""
        return self[key] if key in self else default  # noqa: SIM401 - that would call this

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or any(name[0] == key for name in self)


class Server:
    """A server on an event loop of its own, which runs on a thread. Every method may be called
    from any thread; from an event loop, use the `async_` forms of those that take time.

    It stops when it is stopped, left as a context manager, dropped, or when the program ends, and
    leaves no process behind. Before `start` and after `stop` everything else raises
    InvalidArgument.
    """

    def __init__(self, options: Options | None = None, **members: Any) -> None:
        """`members` are fields of `Options`, in place of those of `options` where both are given.
        Raises TypeError for a name that is none."""
        self.options = replace(options or Options(), **members)
        self._engine = Engine()

    def start(
        self,
        wait_until_ready: bool = False,
        polling_interval: float = 0.1,
        timeout: float | None = None,
    ) -> Self:
        """Load the models and serve; with `wait_until_ready`, return when `ready` says so, asking
        every `polling_interval` seconds.

        Raises InvalidArgument where the server is started already and for options that cannot be,
        TypeError for options of the wrong type, Internal where models fail to load, and
        Unavailable after `timeout` seconds. Nothing is left running then.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self._engine.start(setup_of(self.options), timeout)
        if wait_until_ready:
            try:
                _poll(self.ready, polling_interval, deadline, "the server is not ready")
            except BaseException:
                self.stop()
                raise
        return self

    async def async_start(self, **arguments: Any) -> Self:
        """`start` without blocking the event loop."""
        return await asyncio.to_thread(self.start, **arguments)

    def stop(self) -> None:
        """Refuse new requests, finish what was accepted for at most `Options.exit_timeout` seconds,
        and end all workers. Without effect where the server does not run; it may be started
        again."""
        self._engine.stop()

    async def async_stop(self) -> None:
        """`stop` without blocking the event loop."""
        await asyncio.to_thread(self.stop)

    def __enter__(self) -> Self:
        return self if self._engine.running else self.start()

    def __exit__(self, *_error: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return self if self._engine.running else await self.async_start()

    async def __aexit__(self, *_error: object) -> None:
        await self.async_stop()

    @property
    def engine(self) -> Engine:
        """What carries calls to the server's loop."""
        return self._engine

    def live(self) -> bool:
        """Whether the server has started."""
        return self._engine.call(lambda port: port.live())

    def ready(self) -> bool:
        """Whether the server is ready for requests: with `Options.strict_readiness`, all models
        are."""
        return self._engine.call(lambda port: port.ready())

    def metadata(self) -> dict[str, Any]:
        """Name, version and extensions of the server."""
        return server_document(self._engine.call(lambda port: port.metadata()))

    def model(self, name: str, version: int = LATEST) -> Model:
        """A model; whether it is there shows when it is used. Raises TypeError for a version that
        is no int."""
        if not isinstance(version, int):
            raise TypeError(f"the version of model '{name}' must be an int, got {version!r:.50}")
        return Model(self._engine, name, version)

    def models(self, exclude_not_ready: bool = False) -> ModelDictionary:
        """The models of the repository's index by name and version."""
        index = self._engine.call(lambda port: port.repository_index(ready=exclude_not_ready))
        return ModelDictionary({(line.name, _version(line)): self._listed(line) for line in index})

    def _listed(self, line: ModelIndex) -> Model:
        return Model(
            self._engine, line.name, _version(line), line.state or None, line.reason or None
        )

    def load(self, model_name: str, parameters: Mapping[str, str | bytes] | None = None) -> Model:
        """Load a model, or load it again if it changed; returns when it serves.

        `parameters` are `config`, a configuration as JSON text in place of the repository's, and
        `file:<path>` for each file in place of those of the repository. Raises what
        `Port.load_model` raises, and InvalidArgument for other parameters.
        """
        config, files = _load_parameters(parameters or {})
        self._engine.call(lambda port: port.load_model(model_name, config, files))
        return self.model(model_name)

    async def async_load(
        self, model_name: str, parameters: Mapping[str, str | bytes] | None = None
    ) -> Model:
        """`load` without blocking the event loop."""
        return await asyncio.to_thread(self.load, model_name, parameters)

    def unload(
        self,
        model: Model | str,
        unload_dependents: bool = False,
        wait_until_unloaded: bool = False,
        polling_interval: float = 0.1,
        timeout: float | None = None,
    ) -> None:
        """Take a model down: it gets no new requests when this returns, what it accepted still
        finishes; with `wait_until_unloaded`, returns when it has, asking every `polling_interval`
        seconds. Raises Unavailable after `timeout` seconds and unless the control mode is
        EXPLICIT."""
        name = model if isinstance(model, str) else model.name
        deadline = None if timeout is None else time.monotonic() + timeout
        self._engine.call(lambda port: port.unload_model(name, unload_dependents=unload_dependents))
        if wait_until_unloaded:
            reason = f"model '{name}' is not unloaded"
            _poll(lambda: self._unloaded(name), polling_interval, deadline, reason)

    async def async_unload(self, model: Model | str, **arguments: Any) -> None:
        """`unload` without blocking the event loop."""
        await asyncio.to_thread(self.unload, model, **arguments)

    def _unloaded(self, name: str) -> bool:
        models = self.models().values()
        return not any(m.name == name and m.state in ("READY", "UNLOADING") for m in models)

    def register_model_repository(
        self, path: str | Path, name_mapping: Mapping[str, str] | None = None
    ) -> None:
        """Look for models in one more repository.

        Raises Unsupported unless the control mode is EXPLICIT and for a `name_mapping`, for models
        go by the names of their directories; AlreadyExists for a repository that is known, and
        InvalidArgument for one that is not there.
        """
        if name_mapping:
            raise Unsupported("name_mapping: models go by the names of their directories")
        self._engine.call(lambda port: port.register_repository(Path(path)))

    def unregister_model_repository(self, path: str | Path) -> None:
        """Look there no more; what was loaded from it goes on serving. Raises Unsupported unless
        the control mode is EXPLICIT, and NotFound for a repository that is not known."""
        self._engine.call(lambda port: port.unregister_repository(Path(path)))

    def poll_model_repository(self) -> None:
        """Look for changes in the repositories now, beside the looks that the server takes by
        itself every 15 seconds, and wait until models are loaded and unloaded accordingly. A model
        that fails to load is in the index. Raises Unavailable unless the control mode is POLL."""
        self._engine.serve(lambda serving: serving.poll())

    def metrics(self, metric_format: MetricFormat = MetricFormat.PROMETHEUS) -> str:
        """The metrics page. Raises Unsupported where `Options.metrics` is off."""
        if metric_format is not MetricFormat.PROMETHEUS:
            raise InvalidArgument(f"{metric_format!r} is no form of the metrics page")
        if not self.options.metrics:
            raise Unsupported("metrics are switched off by Options.metrics")
        return self._engine.call(lambda port: port.metrics()).decode()


def _version(line: ModelIndex) -> int:
    return int(line.version) if line.version else LATEST


def _load_parameters(
    parameters: Mapping[str, str | bytes],
) -> tuple[str | None, dict[str, bytes]]:
    """The configuration and the files by their path."""
    config: Any = None
    files: dict[str, bytes] = {}
    for key, value in parameters.items():
        if key == "config":
            config = value if isinstance(value, str) else json.dumps(value)
        elif key.startswith(_FILE) and isinstance(value, bytes):
            files[key.removeprefix(_FILE)] = value
        else:
            raise InvalidArgument(
                f"load parameter '{key}' must be 'config' with text, or 'file:<version>/<name>' "
                f"with bytes, got {type(value).__name__}"
            )
    return config, files


def _poll(done: Callable[[], bool], interval: float, deadline: float | None, reason: str) -> None:
    """Ask until it is done. Raises Unavailable with the reason when the time is over."""
    while not done():
        left = interval if deadline is None else min(interval, deadline - time.monotonic())
        if left <= 0:
            raise Unavailable(f"{reason}: the time given is over")
        time.sleep(left)
