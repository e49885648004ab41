"""The label files of a model's outputs."""

from pathlib import Path

from microkernel.classification import Labels, label_lines
from microkernel.config.model import ModelConfig
from microkernel.errors import InvalidArgument, Unsupported


def read_labels(config: ModelConfig, directory: Path) -> Labels:
    """The labels of each output that names a file in the model's directory: one a line, blank lines
    included.

    Raises Unsupported for a path that leaves the directory, and InvalidArgument for a file that
    cannot be read.
    """
    return {
        output.name: _read(output.name, output.label_filename, directory)
        for output in config.output
        if output.label_filename
    }


def _read(output: str, name: str, directory: Path) -> tuple[str, ...]:
    root = directory.resolve()
    path = (root / name).resolve()
    if root not in path.parents:
        raise Unsupported(
            f"label file '{name}' of output '{output}' lies outside the model's directory '{root}'"
        )
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidArgument(
            f"label file '{name}' of output '{output}' cannot be read: {error.strerror}"
        ) from None
    return label_lines(raw.decode("utf-8", "surrogateescape"))
