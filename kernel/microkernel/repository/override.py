"""What a load request may bring along: a configuration, and files in place of the repository's."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from microkernel.config.codec import config_from_json
from microkernel.config.model import ModelConfig
from microkernel.errors import InvalidArgument

LARGEST_CONFIG = 1 << 20
"""The most characters of a configuration, some twenty thousand inputs: what is made of it, and
looked at by every client that asks for it, takes many times the room."""
LONGEST_PATH = 1024
"""The most characters of a file's path below its model's directory."""
DEEPEST_PATH = 32
"""The most parts of such a path."""


@dataclass(frozen=True, slots=True)
class Override:
    """A configuration in place of the file's, and the model's files by their path below its
    directory; without files the repository's are used."""

    config: ModelConfig
    files: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, config: str | None, files: Mapping[str, bytes]) -> "Override | None":
        """The override of a load request, None where it brings nothing. Raises InvalidArgument for
        a configuration that is wrong or too large and for files without one."""
        if config is None:
            if files:
                raise InvalidArgument("overriding model files requires a 'config' parameter")
            return None
        if len(config) > LARGEST_CONFIG:
            raise InvalidArgument(
                f"Invalid config override: it has {len(config)} characters, the most is "
                f"{LARGEST_CONFIG}; write it to the model's config.pbtxt instead"
            )
        try:
            return cls(config_from_json(config), files)
        except InvalidArgument as error:
            raise InvalidArgument(f"Invalid config override: {error}") from None


class Unpacked:
    """Files of a load request in a temporary directory, `directory`, which goes with `close`."""

    def __init__(self, name: str, files: Mapping[str, bytes]) -> None:
        """Write the files. Raises InvalidArgument for a path that leaves the directory or stands
        for both a file and a directory, and for a full disk."""
        self._temporary = tempfile.TemporaryDirectory(prefix="microkernel-")
        self.directory = Path(self._temporary.name).resolve() / name
        try:
            self.directory.mkdir()
            for path, content in files.items():
                self._write(path, content)
        except BaseException:
            self.close()
            raise

    def _write(self, path: str, content: bytes) -> None:
        # To resolve it takes a time that is quadratic in its length, to make its directories memory
        # that is so in their number.
        parts = path.count("/") + 1
        if len(path) > LONGEST_PATH or parts > DEEPEST_PATH:
            raise InvalidArgument(
                f"file override '{path[:64]}...' cannot be written: its path has {len(path)} "
                f"characters in {parts} parts, the most are {LONGEST_PATH} in {DEEPEST_PATH}"
            )
        if "\0" in path:
            raise InvalidArgument(f"file override {path!r} cannot be written: it holds a null byte")
        target = (self.directory / path).resolve()
        if self.directory not in target.parents:
            raise InvalidArgument(f"file override '{path}' leaves the model's directory")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        except OSError as error:
            raise InvalidArgument(
                f"file override '{path}' cannot be written: {error.strerror}"
            ) from None

    def close(self) -> None:
        """Remove the files."""
        self._temporary.cleanup()
