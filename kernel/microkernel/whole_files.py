"""Files that are written whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file at, which takes the place of `path` when the block ends.

    Whoever reads `path` finds the old content or all of the new, also after the power failed; of
    several writers the last wins. A block that raises leaves nothing. Raises OSError where the file
    cannot be put there.
    """
    part = path.parent / f".{path.name}.{os.urandom(8).hex()}.part"
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
