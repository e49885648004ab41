"""The members of a `.pt2`, read without torch."""

import zipfile
from pathlib import Path

from microkernel import Internal, Unavailable

_LARGEST = 256 << 20


def check_exists(name: str, path: Path) -> None:
    """Raises Unavailable, in Triton's words, where there is no such file; Internal for a
    directory."""
    if not path.exists():
        raise Unavailable(
            f'PyTorch inductor model file "{path}" is unreachable or inaccessible. (model '
            f"'{name}')"
        )
    if path.is_dir():
        raise Internal(f"failed to load model '{name}': '{path}' is a directory, not a .pt2 file")


def archive_members(name: str, path: Path) -> list[str]:
    """The members of the archive, without the directory they all lie in.

    Raises Internal for a file that is no archive, or is one with a part missing.
    """
    check_exists(name, path)
    try:
        with zipfile.ZipFile(path) as archive:
            names, fault = archive.namelist(), _shift(archive)
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        names, fault = [], str(error)
    if fault:
        empty = not path.stat().st_size
        what = "is empty" if empty else f"is not an archive or is cut short ({fault})"
        raise Internal(
            f"failed to load model '{name}': '{path}' {what}; write it again with "
            "torch.export.save or torch._inductor.aoti_compile_and_package"
        )
    return [member.partition("/")[2] or member for member in names]


def _shift(archive: zipfile.ZipFile) -> str:
    """What is wrong where an archive does not begin at the beginning: the end of a file that is cut
    short may be that of an archive inside it."""
    first = min((entry.header_offset for entry in archive.infolist()), default=0)
    return f"it begins at byte {first}" if first else ""


def read_member(path: Path, member: str) -> bytes:
    """A small member's bytes. Raises ValueError where it is missing, broken or very large."""
    try:
        with zipfile.ZipFile(path) as archive:
            full = next(n for n in archive.namelist() if n == member or n.endswith(f"/{member}"))
            if archive.getinfo(full).file_size > _LARGEST:
                raise ValueError(f"'{member}' in the archive is larger than {_LARGEST} bytes")
            return archive.read(full)
    except StopIteration:
        raise ValueError(f"the archive has no '{member}'") from None
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"'{member}' in the archive cannot be read: {error}") from None
