"""What lies on disk: models, their versions and their configuration files. Nothing here waits or
remembers."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from microkernel.config.model import Latest, VersionPolicy
from microkernel.errors import InvalidArgument

DUPLICATE = "model appears in two or more repositories"
"""Why a model whose name stands in several repositories is never loaded."""

_NOT_VERSIONS = ("warmup", "initial_state", "configs")
_INTEGER = re.compile(r"[0-9]+")
_ADDRESS = re.compile(r"([a-z][a-z0-9]+):/(.*)", re.DOTALL)
_LARGEST_VERSION = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Found:
    """The models of some repositories, in name order.

    `models` gives the directory of each model whose name is unique; `duplicates` the directories
    of each name that appears in two or more repositories.
    """

    models: Mapping[str, Path]
    duplicates: Mapping[str, tuple[Path, ...]]


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions of a model in ascending order, and a line for each directory passed over that
    looks like a mistake."""

    found: list[int]
    warnings: list[str]


def find_models(paths: Sequence[Path]) -> Found:
    """Every direct sub-directory of the repositories, by name. A repository given twice counts
    once.

    Raises InvalidArgument naming a repository that does not exist, cannot be listed or is not on
    this machine.
    """
    for path in paths:
        _check_local(path)
    places: dict[str, list[Path]] = {}
    for repository in dict.fromkeys(path.resolve() for path in paths):
        for directory in directories(repository):
            places.setdefault(directory.name, []).append(directory)
    ordered = sorted(places.items())
    return Found(
        models={name: where[0] for name, where in ordered if len(where) == 1},
        duplicates={name: tuple(where) for name, where in ordered if len(where) > 1},
    )


def _check_local(path: Path) -> None:
    scheme = _ADDRESS.match(str(path))  # of whose slashes a path keeps one
    if scheme and not path.exists():
        raise InvalidArgument(
            f"'{scheme[1]}://{scheme[2]}' cannot be a model repository: models are served from "
            "local directories only. Copy the models to one, or mount the remote storage, and name "
            "that directory"
        )


def versions(directory: Path) -> Versions:
    """The version directories of a model. Raises InvalidArgument where the model's directory
    cannot be listed."""
    found: list[int] = []
    warnings: list[str] = []
    for name in (entry.name for entry in directories(directory)):
        reason = _not_a_version(name)
        if reason:
            warnings.append(f"ignoring '{directory / name}' as a version directory: {reason}")
        elif name not in _NOT_VERSIONS:
            found.append(int(name))
    return Versions(sorted(found), warnings)


def select(found: Iterable[int], policy: VersionPolicy | None) -> list[int]:
    """The versions a policy serves, in ascending order; without a policy the latest one. A policy
    that chooses nothing means all, as in Triton."""
    ordered = sorted(found)
    if policy is None:
        policy = VersionPolicy(latest=Latest(1))
    if policy.specific is not None:
        return [version for version in ordered if version in policy.specific.versions]
    if policy.latest is not None:
        return ordered[max(0, len(ordered) - policy.latest.num_versions) :]
    return ordered


def missing(found: Iterable[int], policy: VersionPolicy | None) -> list[int]:
    """The versions a policy lists by number that have no directory."""
    if policy is None or policy.specific is None:
        return []
    return sorted(set(policy.specific.versions) - set(found))


def config_path(directory: Path, config_name: str = "") -> Path | None:
    """The model's configuration file: `configs/<config_name>.pbtxt` where a name is given and the
    file exists, else `config.pbtxt`, None where there is neither."""
    candidates = [directory / "config.pbtxt"]
    if config_name:
        candidates.insert(0, directory / "configs" / f"{config_name}.pbtxt")
    return next((path for path in candidates if path.is_file()), None)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a model looked like on disk: the fingerprint of its directory; whether its name stands
    in two or more repositories."""

    fingerprint: int
    duplicated: bool = False


def look(paths: Sequence[Path]) -> dict[str, Seen]:
    """Every model of the repositories as it is now. Raises InvalidArgument as `find_models`
    does."""
    found = find_models(paths)
    seen = {name: Seen(fingerprint(directory)) for name, directory in found.models.items()}
    return seen | {name: Seen(0, duplicated=True) for name in found.duplicates}


def fingerprint(directory: Path) -> int:
    """A number that changes when a file below the directory is added, removed or written; what
    Python compiles for itself does not count. Links are followed."""
    found: list[tuple[object, ...]] = []
    visited: set[tuple[int, int]] = set()
    for name, inside, files in os.walk(directory, followlinks=True):
        folder = Path(name)
        about = _about(folder)
        place = (about.st_dev, about.st_ino) if about else (0, 0)
        if place in visited:  # by another link, maybe without end
            inside.clear()
            continue
        visited.add(place)
        inside[:] = sorted(entry for entry in inside if entry != "__pycache__")
        found.append((name,))
        stats = ((file, _about(folder / file)) for file in files)
        found += [(name, file, s.st_mtime_ns, s.st_size) for file, s in stats if s is not None]
    return hash(tuple(sorted(found, key=str)))


def _about(path: Path) -> os.stat_result | None:
    """What the system says of a file, None where it went while we looked."""
    try:
        return path.stat()
    except OSError:
        return None


def directories(parent: Path) -> list[Path]:
    """The directories right below `parent`, in string order of their names. Raises InvalidArgument
    naming `parent` where it cannot be listed."""
    try:
        return sorted((p for p in parent.iterdir() if p.is_dir()), key=lambda path: path.name)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidArgument(f"failed to read the directory '{parent}': {reason}") from None


def _not_a_version(name: str) -> str:
    """Why a directory's name is no version, "" where it is one or need not be."""
    if name in _NOT_VERSIONS:
        return ""
    if not _INTEGER.fullmatch(name):
        return "its name is not an integer >= 0"
    if len(name) > 1 and name.startswith("0"):
        return "its name has leading zeros"
    # The length is asked first: Python refuses to read numbers of thousands of digits.
    if len(name) > len(str(_LARGEST_VERSION)) or int(name) > _LARGEST_VERSION:
        return "its name does not fit 64 bits"
    return ""
