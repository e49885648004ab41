"""Digests of model files: a repository that has them gets no file loaded that differs from them.

They are kept as `sha256sum` of the GNU coreutils writes them: in `<file>.sha256` beside the file,
in `SHA256SUMS` beside it, or in `SHA256SUMS` of the model's directory, with paths such as
`1/model.pt`. A torch file has no digest that its own reader would check: one flipped bit of a
weight goes unnoticed. This module imports no torch.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from microkernel import Internal

SUMS = "SHA256SUMS"

logger = logging.getLogger(__name__)

_PLAIN = re.compile(r"(?P<escaped>\\?)(?P<digest>[0-9A-Fa-f]{64}) [ *](?P<name>.+)")
_TAGGED = re.compile(r"(?P<escaped>\\?)SHA256 \((?P<name>.+)\) = (?P<digest>[0-9A-Fa-f]{64})")
_ESCAPES = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}
_SHOWN = 12
"""Digits of a digest in a message; enough to tell two apart."""


def check_digest(model: str, path: Path) -> None:
    """Compare a file with every digest that the repository has for it; it is read in pieces.

    Raises Internal, beginning with `failed to load model`, for a digest that differs and for a list
    of digests that cannot be understood. Where there is a list that does not name the file, a
    warning says that it is not checked.
    """
    found = ""
    for sums, name in _lists(path):
        listed = _digests(model, sums)
        if name not in listed:
            logger.warning(
                "model '%s': '%s' does not list '%s', which is not checked", model, sums, name
            )
            continue
        found = found or _digest_of(model, path)
        if listed[name] != found:
            raise Internal(
                f"failed to load model '{model}': '{path}' is not the file that '{sums}' was "
                f"written for: its SHA-256 digest begins with {found[:_SHOWN]}, expected "
                f"{listed[name][:_SHOWN]}; restore the file, or write its new digest with sha256sum"
            )


def check_absent(model: str, path: Path) -> None:
    """Internal where a list of digests promises a file that is not there."""
    for sums, name in _lists(path):
        if name in _digests(model, sums):
            raise Internal(
                f"failed to load model '{model}': '{sums}' lists '{name}', but there is no '{path}'"
            )


def parse_sums(text: str) -> dict[str, str]:
    """Digests in lower case by file name, `./` before it taken away. Empty lines and those that
    begin with `#` mean nothing. Raises ValueError, naming the line, for one of another form and for
    a file that has two digests."""
    digests: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _PLAIN.fullmatch(line.removesuffix("\r")) or _TAGGED.fullmatch(
            line.removesuffix("\r")
        )
        if match is None:
            raise ValueError(
                f"line {number} is not of the form '<64 hexadecimal digits>  <file>': {line[:80]!r}"
            )
        name, digest = match["name"], match["digest"].lower()
        if match["escaped"]:
            name = re.sub(r"\\[\\nr]", lambda found: _ESCAPES[found[0]], name)
        name = name.removeprefix("./")
        if digests.setdefault(name, digest) != digest:
            raise ValueError(f"line {number} gives '{name}' a second digest")
    return digests


def _lists(path: Path) -> Iterator[tuple[Path, str]]:
    """The lists of digests that there are for a file, and what each calls it."""
    version = path.parent
    yield from (
        (sums, name)
        for sums, name in (
            (path.with_name(f"{path.name}.sha256"), path.name),
            (version / SUMS, path.name),
            (version.parent / SUMS, f"{version.name}/{path.name}"),
        )
        if os.path.lexists(sums)  # one that cannot be read must not go for none
    )


def _digests(model: str, sums: Path) -> dict[str, str]:
    try:
        return parse_sums(sums.read_bytes().decode())
    except (OSError, ValueError) as error:
        raise Internal(
            f"failed to load model '{model}': '{sums}' is no list of digests as sha256sum writes "
            f"it: {error}"
        ) from None


def _digest_of(model: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Internal(
            f"failed to load model '{model}': '{path}' cannot be read: {error.strerror}"
        ) from None
