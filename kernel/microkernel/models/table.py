"""Which models there are, which versions of them serve, and why the others do not."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from microkernel.errors import NotFound, Unavailable
from microkernel.models.serving import Served
from microkernel.port import ModelIndex
from microkernel.request import LATEST
from microkernel.workers.readiness import agreed

UNLOADED = "unloaded"
"""The reason of a version that was taken down on purpose."""


class State(Enum):
    """The state of a model version, as the repository index shows it."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(slots=True)
class _Entry:
    """One version. `model` is there while it is READY or UNLOADING."""

    state: State
    reason: str = ""
    model: Served | None = None


@dataclass(slots=True)
class _Model:
    """One name. `reason` says why it has no versions at all. `serving` are the versions that are
    READY, the newest also under LATEST; every request asks for them, so they are found when a
    state changes."""

    versions: dict[int, _Entry] = field(default_factory=dict)
    reason: str = ""
    serving: dict[int, Served] = field(default_factory=dict)

    def settle(self) -> None:
        """Find the versions that serve; after a version became READY or ceased to be."""
        self.serving = {
            version: entry.model
            for version, entry in self.versions.items()
            if entry.state is State.READY and entry.model is not None
        }
        if self.serving:
            self.serving[LATEST] = self.serving[max(self.serving)]

    def forget_failures(self) -> None:
        """Versions that failed to load are not wanted any more."""
        for entry in self.versions.values():
            if entry.state is State.UNAVAILABLE:
                entry.reason = UNLOADED


class ModelTable:
    """Names and versions of models, and the loaded object behind each."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}

    def refuse(self, name: str, reason: str) -> None:
        """The model cannot be served at all; clients are told that it is not found."""
        self._models[name] = _Model(reason=reason)

    def loading(self, name: str, versions: Iterable[int]) -> None:
        """Versions are being loaded; those that serve already go on."""
        model = self._models.setdefault(name, _Model())
        for version in versions:
            if not self.ready(name, version):
                model.versions[version] = _Entry(State.LOADING)
        model.settle()

    def failed(self, name: str, reasons: Mapping[int, str]) -> None:
        """A load failed: none of the versions it was about serves, unless it did before."""
        for version, entry in self._models[name].versions.items():
            if entry.state is State.LOADING:
                entry.state = State.UNAVAILABLE
                entry.reason = reasons.get(version, UNLOADED)

    def swap(
        self, name: str, models: Mapping[int, Served], reason: str = UNLOADED
    ) -> dict[int, Served]:
        """These versions serve from now on and no others, for that `reason`. Returns the ones that
        served before, which get no new requests; `unloaded` says when they are gone."""
        model = self._models.setdefault(name, _Model()) if models else self._models.get(name)
        if model is None:
            return {}
        before = {v: loaded for v, loaded in model.serving.items() if v != LATEST}
        for version in before:
            model.versions[version].state = State.UNLOADING
            model.versions[version].reason = reason
        for version, loaded in models.items():
            model.versions[version] = _Entry(State.READY, model=loaded)
        if models:
            model.forget_failures()
        model.settle()
        return before

    def removed(self, name: str) -> None:
        """The model is to be served no more: why it was not is forgotten. Call it after `swap` has
        taken down what served."""
        model = self._models.get(name, _Model())
        model.forget_failures()
        if not model.versions:
            self._models.pop(name, None)

    def unloaded(self, name: str, version: int, model: Served) -> None:
        """A version that `swap` gave back is gone."""
        entry = self._models[name].versions.get(version)
        if entry is not None and entry.model is model:
            self._models[name].versions[version] = _Entry(State.UNAVAILABLE, entry.reason)

    def loaded(self, name: str, version: int = LATEST) -> Served | None:
        """The version that is READY, whether it would answer now or not; None where there is
        none."""
        model = self._models.get(name)
        return None if model is None else model.serving.get(version)

    def reasons(self, name: str) -> dict[int, str] | None:
        """Why the versions of a model do not serve, for those that could not be loaded; None for a
        name that has none."""
        model = self._models.get(name)
        if model is None or not model.versions:
            return None
        failed = {version: entry.reason for version, entry in model.versions.items()}
        return {v: reason for v, reason in failed.items() if reason and reason != UNLOADED}

    def find(self, name: str, version: int = LATEST) -> Served:
        """The version that answers a request. Raises NotFound and Unavailable in Triton's words."""
        loaded = self.look_up(name, version)
        if not loaded.ready:
            raise no_instance(name, loaded.version)
        return loaded

    def look_up(self, name: str, version: int = LATEST) -> Served:
        """As `find`, for those who ask the version themselves whether it would answer."""
        model = self._models.get(name)
        if model is None or not model.versions:
            raise NotFound(f"Request for unknown model: '{name}' is not found")
        loaded = model.serving.get(version)
        if loaded is None and version == LATEST:
            raise NotFound(f"Request for unknown model: '{name}' has no available versions")
        if loaded is None and version not in model.versions:
            raise NotFound(f"Request for unknown model: '{name}' version {version} is not found")
        if loaded is None:
            raise no_instance(name, version)
        return loaded

    def ready(self, name: str, version: int = LATEST) -> bool:
        """Whether a version would answer."""
        try:
            self.find(name, version)
        except (NotFound, Unavailable):
            return False
        return True

    async def says_ready(self, name: str, version: int = LATEST) -> bool:
        """As `ready`, and whether the version says so, too, where it can."""
        try:
            loaded = self.find(name, version)
        except (NotFound, Unavailable):
            return False
        return await agreed(loaded.readiness())

    def ready_versions(self, name: str) -> list[int]:
        """The versions of a model that would answer, in ascending order."""
        model = self._models.get(name, _Model())
        return [version for version in sorted(model.versions) if self.ready(name, version)]

    def all_ready(self) -> bool:
        """Strict readiness: every known version serves, or was unloaded on purpose."""
        return all(
            model.versions
            and all(
                self.ready(name, version)
                if entry.state is State.READY
                else entry.state is State.UNAVAILABLE and entry.reason == UNLOADED
                for version, entry in model.versions.items()
            )
            for name, model in self._models.items()
        )

    async def all_say_ready(self) -> bool:
        """Strict readiness, with what the versions themselves say."""
        if not self.all_ready():
            return False
        return await agreed(asked for model in self.serving() for asked in model.readiness())

    def failures(self) -> list[str]:
        """The models of which something could not be loaded."""
        return [
            name
            for name, model in sorted(self._models.items())
            if model.reason
            or any(e.reason and e.reason != UNLOADED for e in model.versions.values())
        ]

    def index(self, *, ready: bool) -> list[ModelIndex]:
        """Every version in name order, or only those that are ready."""
        lines = [line for name in sorted(self._models) for line in self._lines(name)]
        return [line for line in lines if not ready or line.state == State.READY.value]

    def _lines(self, name: str) -> Iterator[ModelIndex]:
        model = self._models[name]
        if not model.versions:
            yield ModelIndex(name, "", State.UNAVAILABLE.value, model.reason)
        for version, entry in sorted(model.versions.items()):
            state = entry.state
            reason = "" if state is State.UNLOADING else entry.reason
            if state is State.READY and not self.ready(name, version):
                state, reason = State.UNAVAILABLE, _silence(entry.model)
            yield ModelIndex(name, str(version), state.value, reason)

    def serving(self) -> list[Served]:
        """Every version that is READY, in name order."""
        return [
            entry.model
            for _, model in sorted(self._models.items())
            for _, entry in sorted(model.versions.items())
            if entry.state is State.READY and entry.model is not None
        ]

    def loaded_versions(self) -> list[Served]:
        """Every version that is loaded, in name order."""
        return [
            entry.model
            for _, model in sorted(self._models.items())
            for _, entry in sorted(model.versions.items())
            if entry.model is not None
        ]


def _silence(model: Served | None) -> str:
    """Why a version that is loaded does not answer."""
    if model is not None and model.config.ensemble_scheduling is not None:
        return "a model that it is composed of does not answer"
    return "no instance is alive"


def no_instance(model: str, version: int) -> Unavailable:
    """The error of a model none of whose instances is alive."""
    return Unavailable(
        f"Request for unknown model: '{model}' version {version} is not at ready state"
    )
