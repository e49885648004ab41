"""Under which key the response to a request is kept. Pure, but for reading a model's files.

Two requests share a key only where a model that answers the same to the same must give both the
same outputs. A key is a cryptographic hash, and everything that goes into it is preceded by its
length, so nobody can make up a request that finds the answer to another one.
"""

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Protocol, Self

from microkernel.config.codec import config_to_json
from microkernel.config.model import ModelConfig
from microkernel.request import InferRequest
from microkernel.tensor import Buffer

KEY_BYTES = 32
_FORM = b"microkernel response 1"
"""Changes when keys are made otherwise: entries may outlive the server that made them."""

_COUNTS = struct.Struct("<3q")
_LENGTH = struct.Struct("<q")


class Digest(Protocol):
    """A hash of SHA-256, for which processors have instructions."""

    def update(self, data: Buffer, /) -> None:
        """Go on with these bytes."""
        ...

    def copy(self) -> Self:
        """One that goes on by itself."""
        ...

    def digest(self) -> bytes:
        """The hash of all bytes so far."""
        ...


def model_digest(config: ModelConfig, version: int, content: bytes) -> Digest:
    """What the keys of one loaded version of a model begin with. `content` is `content_digest`'s,
    so that a version with other files, or another configuration, has other keys."""
    # Where a model runs changes no answer, and may differ among servers that share a cache.
    same = replace(config, instance_group=(), version_policy=None, metric_tags={}, model_warmup=())
    digest = sha256(_FORM)
    for part in (config.name, str(version), json.dumps(config_to_json(same), sort_keys=True)):
        _add(digest, part.encode("utf-8", "surrogatepass"))
    _add(digest, content)
    return digest


def request_key(model: Digest, request: InferRequest) -> bytes:
    """The key of a request that was checked, its inputs in the configuration's order.

    Inputs count with their names, types, shapes and bytes, and so do the outputs that are asked for
    and the parameters, which models see. The request's id, its priority and its timeout do not.
    """
    digest = model.copy()
    parameters = b""
    if request.parameters:
        parameters = json.dumps(dict(request.parameters), sort_keys=True).encode()
    digest.update(_COUNTS.pack(len(request.inputs), len(request.outputs), len(parameters)))
    digest.update(parameters)
    for output in request.outputs:
        _add(digest, output.encode())
    for tensor in request.inputs:
        name, shape, data = tensor.name.encode(), tensor.shape, tensor.data
        words = (len(name), tensor.datatype.number, len(data), len(shape), *shape)
        digest.update(struct.pack(f"<{len(words)}q", *words))
        digest.update(name)
        digest.update(data)
    return digest.digest()


def _add(digest: Digest, part: bytes) -> None:
    digest.update(_LENGTH.pack(len(part)))
    digest.update(part)


def content_digest(directory: Path, version: int) -> bytes:
    """A hash of the files that a version of a model may read: all below the model's directory, but
    not those of its other versions nor what Python compiles for itself. Equal files give equal
    hashes on every machine. Reads every byte of them."""
    digest = sha256()
    for path in sorted(_files(directory, version)):
        _add(digest, os.fsencode(path.relative_to(directory)))
        _add(digest, _file_digest(path))
    return digest.digest()


def _files(directory: Path, version: int) -> Iterator[Path]:
    """Regular files; links are followed, but not round in circles."""
    seen: set[tuple[int, int]] = set()
    for name, inside, files in os.walk(directory, followlinks=True):
        folder = Path(name)
        about = folder.stat()
        place = about.st_dev, about.st_ino
        if place in seen:
            inside.clear()
            continue
        seen.add(place)
        top = folder == directory
        # In the same order everywhere, for a link to a folder counts where it is met first.
        inside[:] = sorted(n for n in inside if not _is_left_out(n, version, top=top))
        yield from (path for file in files if (path := folder / file).is_file())


def _is_left_out(name: str, version: int, *, top: bool) -> bool:
    """Whether a folder is that of another version, or what Python compiles for itself."""
    return name == "__pycache__" or (top and name.isdecimal() and name != str(version))


def _file_digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file_digest(file, sha256).digest()
    except OSError:  # nor can the model read it
        return b""
