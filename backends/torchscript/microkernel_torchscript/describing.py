"""Model files that describe themselves: a configuration and labels among the extra files of a `.pt`
or `.pt2`. This module imports no torch.

Such a file is a zip archive, and what torch calls an extra file is the member
`<folder>/extra/<name>`. Ours is `microkernel.json`; a configuration in Triton's text or JSON form
is read as well, from `config.pbtxt` and `config.json`.
"""

import json
import logging
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from microkernel import (
    InvalidArgument,
    ModelConfig,
    config_from_json,
    config_to_json,
    parse_text,
)
from microkernel_torchscript.kinds import Kind, kind_of, package_name, script_name

logger = logging.getLogger(__name__)

EXTRA = "microkernel.json"
"""The name of our description among a file's extra files."""

Labels: TypeAlias = Mapping[str, tuple[str, ...]]
"""The labels of a model's outputs by the output's name: the k-th is that of class k."""

_FORM = 1
_LIMIT = 16 << 20
"""No description is larger, so a file that claims one is not read into memory."""

_DESCRIBED = ("max_batch_size", "input", "output", "dynamic_batching", "sequence_batching")
_EXPECTED = {*_DESCRIBED, "name", "platform", "backend", "default_model_filename"}
"""What needs no remark: the part that is used, and what being loaded has told already."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a file says of its model: the part of the configuration that completing may fill in, and
    labels of outputs."""

    config: ModelConfig
    labels: Labels = field(default_factory=dict)


def described_file(config: ModelConfig, files: Path) -> Path | None:
    """The file in a version's directory that may carry a description, None for a kind of model
    whose files cannot."""
    kind = kind_of(config, files)
    if kind is Kind.MODULE:
        return None
    return files / (script_name(config) if kind is Kind.SCRIPT else package_name(config))


def described_labels(config: ModelConfig, files: Path) -> Labels:
    """The labels that a model's file carries. Raises as `read_description` does."""
    path = described_file(config, files)
    description = None if path is None else read_description(path)
    return {} if description is None else description.labels


def read_description(path: Path) -> Description | None:
    """The description in a file, None where there is none or the file is no archive, which loading
    it says better. Raises InvalidArgument naming file and member for one that is malformed."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name, read in _READERS.items():
                if (member := _extra(archive, name)) is not None:
                    return _read(archive, member, read, f"'{path}': extra file '{name}'")
    except (OSError, zipfile.BadZipFile):
        return None
    return None


def write_description(path: Path, description: Description) -> None:
    """Add a description to an archive that has none. Raises InvalidArgument for a file that is no
    such archive, or has one."""
    content = json.dumps(_document(description), ensure_ascii=False, separators=(",", ":"))
    try:
        with zipfile.ZipFile(path, "a") as archive:
            if _extra(archive, EXTRA) is not None:
                raise InvalidArgument(f"'{path}' has a description already")
            folder = archive.namelist()[0].partition("/")[0]
            archive.writestr(f"{folder}/extra/{EXTRA}", content)
    except (OSError, zipfile.BadZipFile, IndexError) as error:
        raise InvalidArgument(f"'{path}' cannot take a description: {error}") from None


def _extra(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo | None:
    for member in archive.infolist():
        parts = member.filename.split("/")
        if len(parts) == 3 and parts[1:] == ["extra", name]:
            return member
    return None


def _read(
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    read: Callable[[str, str], Description],
    where: str,
) -> Description:
    try:
        with archive.open(member) as file:
            content = file.read(_LIMIT + 1)
        if len(content) > _LIMIT:
            raise InvalidArgument(f"{where} is larger than {_LIMIT >> 20} MiB")
        return _checked(read(content.decode(), where), where)
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{where} is not UTF-8 text: byte {error.start}") from None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise InvalidArgument(f"{where} cannot be read: {error}") from None


def _checked(description: Description, where: str) -> Description:
    """The description. Raises InvalidArgument for tensors that no model has, and for labels that do
    not fit the outputs."""
    config = description.config
    if config.max_batch_size < 0:
        raise InvalidArgument(f"{where}: max_batch_size is {config.max_batch_size}, less than 0")
    for direction, entries in (("input", config.input), ("output", config.output)):
        known: set[str] = set()
        for entry in entries:
            if entry.name in known:
                raise InvalidArgument(f"{where} lists the {direction} '{entry.name}' twice")
            known.add(entry.name)
            if any(dim < -1 or dim == 0 for dim in entry.dims):
                raise InvalidArgument(
                    f"{where}: the dims of {direction} '{entry.name}' are {list(entry.dims)}; each "
                    "must be -1 or more than 0"
                )
    if config.output:
        _check_labels(description, where)
    return description


def _check_labels(description: Description, where: str) -> None:
    outputs = {entry.name: entry for entry in description.config.output}
    for name, labels in description.labels.items():
        if name not in outputs:
            known = ", ".join(f"'{output}'" for output in outputs)
            raise InvalidArgument(
                f"{where} has labels for '{name}', which is no output; there are {known}"
            )
        classes = outputs[name].dims[-1] if outputs[name].dims else -1
        if classes not in (-1, len(labels)):
            raise InvalidArgument(
                f"{where} has {len(labels)} labels for the output '{name}', which has {classes} "
                "classes"
            )


def _ours(text: str, where: str) -> Description:
    document = _json(text, where)
    if document.get("microkernel") != _FORM:
        raise InvalidArgument(
            f"{where} has the form {document.get('microkernel')!r}, this version reads form {_FORM}"
        )
    if unknown := document.keys() - {"microkernel", "config", "labels"}:
        raise InvalidArgument(f"{where} has unknown fields: {', '.join(sorted(unknown))}")
    config = _config(document.get("config", {}), where)
    return Description(config, _labels(document.get("labels", {}), where))


def _triton_json(text: str, where: str) -> Description:
    return Description(_config(_json(text, where), where))


def _triton_text(text: str, where: str) -> Description:
    config = parse_text(text, where)
    _report_unused(config, where)
    return Description(config)


_READERS: Mapping[str, Callable[[str, str], Description]] = {
    EXTRA: _ours,
    "config.pbtxt": _triton_text,
    "config.json": _triton_json,
}
"""How each extra file is read; the first one that is there counts."""


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{where} is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidArgument(f"{where} must be a JSON object")
    return document


def _config(document: Any, where: str) -> ModelConfig:
    if not isinstance(document, dict):
        raise InvalidArgument(f"{where}: 'config' must be an object")
    try:
        config = config_from_json(document)
    except InvalidArgument as error:
        raise InvalidArgument(f"{where}: {error}") from None
    _report_unused(config, where)
    return config


def _report_unused(config: ModelConfig, where: str) -> None:
    empty = config_to_json(ModelConfig())
    given = config_to_json(config).items()
    unused = [name for name, v in given if name not in _EXPECTED and v != empty.get(name)]
    if unused:
        logger.warning("%s: no effect inside a file: %s", where, ", ".join(unused))


def _labels(document: Any, where: str) -> Labels:
    if not isinstance(document, dict) or not all(map(_is_texts, document.values())):
        raise InvalidArgument(f"{where}: 'labels' must give a list of texts for each output")
    return {name: tuple(labels) for name, labels in document.items()}


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(label, str) for label in value)


def _document(description: Description) -> dict[str, Any]:
    told = config_to_json(description.config)
    labels: Mapping[str, Sequence[str]] = description.labels
    return {
        "microkernel": _FORM,
        "config": {name: told[name] for name in _DESCRIBED if name in told},
        "labels": {name: list(texts) for name, texts in labels.items()},
    }
