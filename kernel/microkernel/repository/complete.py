"""What the server fills into a configuration: by what lies on disk, by the backend's habits, and
from what a backend reports."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from microkernel.backend import BackendType
from microkernel.config.ensemble_rules import ENSEMBLE
from microkernel.config.model import (
    DynamicBatching,
    InstanceGroup,
    Latest,
    ModelConfig,
    Optimization,
    PinnedMemory,
    SequenceBatching,
    VersionPolicy,
)
from microkernel.config.validate import PLATFORMS, instance_groups
from microkernel.errors import InvalidArgument
from microkernel.factories import asked
from microkernel.repository.store import directories

_DEFAULT_SEQUENCE_IDLE_US = 1_000_000
_AHEAD_OF_TIME = ("model.pt2", "torch_aoti")
_ALIASES = {"libtorch": "pytorch"}
_UNNAMED = ("pytorch", "model.pt")
"""Triton chooses the PyTorch backend by this file and does not write its name down."""


def complete(
    config: ModelConfig, directory: Path, backends: Sequence[BackendType], name: str = ""
) -> ModelConfig:
    """The configuration with name, backend, platform and default file filled in. Of several
    backends that could take the model the first in `backends` does. With `name` the model goes by
    that, whatever its directory and configuration say.

    Raises InvalidArgument where the name is not the directory's, no backend can be told, the
    backend is unknown, or backend and platform contradict each other.
    """
    named = replace(config, name=name) if name else _named(config, directory.name)
    if named.platform == ENSEMBLE:
        return named
    if not named.backend:
        named = _recognise(named, directory, backends)
    backend = _registered(named.backend, backends)
    _check_platform(named, backend, backends)
    return _with_defaults(named, backend)


def normalise(config: ModelConfig, backend: BackendType, gpus: int) -> ModelConfig:
    """The configuration with every default written out, for a host with `gpus` usable GPUs. Doing
    it twice changes nothing more.

    Raises InvalidArgument for an instance group that this host cannot provide.
    """
    filled = with_defaults(config)
    if config.platform == ENSEMBLE:
        return filled
    groups = config.instance_group or (InstanceGroup(name=config.name),)
    resolved = replace(
        filled,
        optimization=_pinned(config.optimization or Optimization()),
        instance_group=tuple(
            _group(group, f"{config.name}_{index}", backend, gpus)
            for index, group in enumerate(groups)
        ),
    )
    for fault in (*instance_groups(resolved), *_unprovided(resolved, gpus)):
        raise InvalidArgument(fault)
    return resolved


def with_defaults(config: ModelConfig) -> ModelConfig:
    """The configuration with those defaults written out that depend on nothing else, which are all
    that an ensemble has."""
    return replace(
        config,
        version_policy=config.version_policy or VersionPolicy(latest=Latest(1)),
        dynamic_batching=_batching(config.dynamic_batching, config.max_batch_size),
        sequence_batching=_sequences(config.sequence_batching, config.max_batch_size),
    )


def merge_completed(before: ModelConfig, after: ModelConfig) -> ModelConfig:
    """`before` with what a backend may complete taken from `after`: max_batch_size, inputs,
    outputs, the transaction policy, the scheduling choice where `before` makes none, and the number
    of instances where `before` has no instance group.

    Raises InvalidArgument where `after` makes another scheduling choice than `before` did.
    """
    chosen, offered = _scheduling_choice(before), _scheduling_choice(after)
    if chosen and offered != chosen:
        raise InvalidArgument(
            f"Cannot update scheduling choice from '{chosen}' to '{offered or 'none'}' "
            f"when auto-completing model '{before.name}'"
        )
    merged = replace(
        before,
        max_batch_size=after.max_batch_size,
        input=after.input,
        output=after.output,
        model_transaction_policy=after.model_transaction_policy,
        instance_group=before.instance_group or _counted(after.instance_group),
    )
    if chosen:
        return merged
    return replace(
        merged,
        dynamic_batching=after.dynamic_batching,
        sequence_batching=after.sequence_batching,
        ensemble_scheduling=after.ensemble_scheduling,
    )


def _counted(groups: Sequence[InstanceGroup]) -> tuple[InstanceGroup, ...]:
    """The number of instances that a backend asks for, wherever they may run; the rest of a group
    is the operator's to say."""
    counts = [group.count for group in groups if group.count > 1]
    return tuple(InstanceGroup(count=count) for count in counts[:1])


def _named(config: ModelConfig, directory: str) -> ModelConfig:
    if config.name and config.name != directory:
        raise InvalidArgument(
            f"unexpected directory name '{directory}' for model '{config.name}', "
            "directory name must equal model name"
        )
    return replace(config, name=directory)


def _recognise(
    config: ModelConfig, directory: Path, backends: Sequence[BackendType]
) -> ModelConfig:
    """The configuration with the backend that platform, default file, files on disk or the model's
    name tell, and with the platform that a found file implies."""
    platform, filename = config.platform, config.default_model_filename
    if platform:
        return replace(config, backend=_by_platform(config, backends))
    inside = _first_directory(directory)
    if inside is not None and not filename:
        for backend in backends:
            found = backend.recognise and asked(backend.recognise, config, inside)
            if found is not None:
                return replace(found, backend=backend.name)
    for backend, known in _known_files(backends):
        if filename == known or (not filename and inside and (inside / known).exists()):
            return _found(config, backend, known)
    suffix = config.name.partition(".")[2]
    if filename or not suffix:
        raise InvalidArgument(
            "Invalid model name: Could not determine backend for model "
            f"'{config.name}' with no backend in model configuration. "
            "Expected model name of the form 'model.<backend_name>'."
        )
    return replace(config, backend=suffix, default_model_filename=f"model.{suffix}")


def _known_files(backends: Iterable[BackendType]) -> list[tuple[BackendType, str]]:
    return [(backend, name) for backend in backends for name in backend.filenames]


def _by_platform(config: ModelConfig, backends: Sequence[BackendType]) -> str:
    platform = config.platform
    for backend in backends:
        if platform in _platforms(backend) or _ALIASES.get(platform) == backend.name:
            return backend.name
    raise InvalidArgument(f"unexpected platform type '{platform}' for {config.name}")


def _first_directory(directory: Path) -> Path | None:
    """Where the model's files are looked for: the first directory in string order, as in Triton,
    so `10` comes before `2`. Hidden ones, which editors leave behind, are passed over."""
    shown = (path for path in directories(directory) if not path.name.startswith("."))
    return next(shown, None)


def _found(config: ModelConfig, backend: BackendType, filename: str) -> ModelConfig:
    unnamed = (backend.name, filename) == _UNNAMED
    written = config.default_model_filename
    return replace(
        config,
        backend=backend.name,
        platform=_platform_of(backend, filename),
        default_model_filename=written or ("" if unnamed else filename),
    )


def _platform_of(backend: BackendType, filename: str) -> str:
    """The platform of a backend's file: PyTorch's has two, and the file tells them apart."""
    file, platform = _AHEAD_OF_TIME
    return platform if (backend.name, filename) == ("pytorch", file) else backend.platform


def _platforms(backend: BackendType) -> tuple[str, ...]:
    """The platforms that may stand beside a backend; () where any may."""
    return PLATFORMS.get(backend.name, (backend.platform,) if backend.platform else ())


def _registered(name: str, backends: Sequence[BackendType]) -> BackendType:
    for backend in backends:
        if backend.name == name:
            return backend
    known = ", ".join(backend.name for backend in backends) or "none"
    raise InvalidArgument(
        f"unable to find backend library for backend '{name}', try specifying runtime on the "
        f"model configuration. Known backends: {known}."
    )


def _check_platform(
    config: ModelConfig, backend: BackendType, backends: Iterable[BackendType]
) -> None:
    platform, own = config.platform, _platforms(backend)
    others = (_platforms(other) for other in backends if other is not backend)
    foreign = any(platform in theirs for theirs in others)
    if platform and platform not in own and (own or foreign):
        raise InvalidArgument(
            f"unexpected 'platform' and 'backend' pair, got:{platform}, {backend.name}"
        )


def _with_defaults(config: ModelConfig, backend: BackendType) -> ModelConfig:
    """Platform and default file of a model whose configuration names its backend."""
    filename = config.default_model_filename
    platform = config.platform or _platform_of(backend, filename)
    if not filename:
        filename = next((f for f in backend.filenames if _fits(backend, f, platform)), "")
    if (backend.name, filename) == _UNNAMED:
        filename = config.default_model_filename
    return replace(config, platform=platform, default_model_filename=filename)


def _fits(backend: BackendType, filename: str, platform: str) -> bool:
    """Whether a file is one of the given platform; any is where the backend has no platforms."""
    return not backend.platform or _platform_of(backend, filename) == platform


def _batching(dynamic: DynamicBatching | None, limit: int) -> DynamicBatching | None:
    if dynamic is None or dynamic.preferred_batch_size or limit <= 0:
        return dynamic
    return replace(dynamic, preferred_batch_size=(limit,))


def _sequences(batching: SequenceBatching | None, limit: int) -> SequenceBatching | None:
    if batching is None:
        return None
    idle = batching.max_sequence_idle_microseconds or _DEFAULT_SEQUENCE_IDLE_US
    oldest = batching.oldest
    if oldest is not None and not oldest.preferred_batch_size and limit > 0:
        oldest = replace(oldest, preferred_batch_size=(limit,))
    return replace(batching, max_sequence_idle_microseconds=idle, oldest=oldest)


def _pinned(optimization: Optimization) -> Optimization:
    return replace(
        optimization,
        input_pinned_memory=optimization.input_pinned_memory or PinnedMemory(enable=True),
        output_pinned_memory=optimization.output_pinned_memory or PinnedMemory(enable=True),
    )


def _group(group: InstanceGroup, name: str, backend: BackendType, gpus: int) -> InstanceGroup:
    """A group with name, kind, count and, on GPUs, the list of them."""
    kind = _kind(group, gpus)
    usual = backend.cpu_instances if kind == "KIND_CPU" else 1
    devices = group.gpus or tuple(range(gpus)) if kind == "KIND_GPU" else group.gpus
    return replace(
        group,
        name=group.name or name,
        kind=kind,
        count=group.count if group.count >= 1 else usual,
        gpus=devices,
    )


def _kind(group: InstanceGroup, gpus: int) -> str:
    if group.kind != "KIND_AUTO":
        return group.kind
    usable = gpus > 0 and all(0 <= device < gpus for device in group.gpus)
    return "KIND_GPU" if usable else "KIND_CPU"


def _unprovided(config: ModelConfig, gpus: int) -> list[str]:
    """The GPU groups that this host cannot provide."""
    faults: list[str] = []
    usable = ", ".join(str(device) for device in range(gpus))
    for group in config.instance_group:
        where = f"instance group {group.name} of model {config.name}"
        if group.kind == "KIND_GPU" and gpus == 0:
            faults.append(f"{where} has kind KIND_GPU but no GPUs are available")
        elif group.kind == "KIND_GPU":
            faults += [
                f"{where} specifies invalid or unsupported gpu id {device}. GPUs with at least "
                f"the minimum required CUDA compute compatibility are: {usable}"
                for device in group.gpus
                if not 0 <= device < gpus
            ]
    return faults


def _scheduling_choice(config: ModelConfig) -> str:
    """The name of the scheduling choice, "" where there is none."""
    choices = {
        "dynamic_batching": config.dynamic_batching,
        "sequence_batching": config.sequence_batching,
        "ensemble_scheduling": config.ensemble_scheduling,
    }
    return next((name for name, value in choices.items() if value is not None), "")
