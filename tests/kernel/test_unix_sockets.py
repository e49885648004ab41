"""Addresses `unix:PATH`."""

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from microkernel import InvalidArgument, Unavailable, UnixSocket


@pytest.fixture
def path() -> Iterator[Path]:
    """A path short enough for a socket, wherever the tests run."""
    with tempfile.TemporaryDirectory(prefix="mk") as folder:
        yield Path(folder) / "s"


def put(kind: str, path: Path, other: Path) -> None:
    other.write_text("precious")
    if kind == "file":
        path.write_text("precious")
    elif kind == "link":
        path.symlink_to(other)
    else:
        path.mkdir()


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("0.0.0.0", None),
        ("::1", None),
        ("unix:/run/s", "unix:/run/s"),
        ("unix:///run/s", "unix:/run/s"),
        ("unix:s", "unix:s"),
        ("unix:/" + "x" * 106, "unix:/" + "x" * 106),
    ],
)
def test_addresses(address: str, found: str | None) -> None:
    unix = UnixSocket.of(address)
    assert (unix and str(unix)) == found


@pytest.mark.parametrize("address", ["unix:", "unix:/" + "x" * 107, "unix:/a\0b"])
def test_addresses_that_name_no_path(address: str) -> None:
    with pytest.raises(InvalidArgument, match="must be unix:PATH with a path of 1 to 107 bytes"):
        UnixSocket.of(address)


def test_nobody_else_may_open_it_whatever_the_umask_is(path: Path) -> None:
    unix, before = UnixSocket(path), os.umask(0)
    try:
        bound = unix.bind()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    unix.remove()
    assert not path.exists()
    unix.remove()
    bound.close()


def test_what_another_has_bound_is_taken_over(path: Path) -> None:
    unix = UnixSocket(path)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        unix.remove()
        assert path.is_socket()
        unix.secure()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    unix.remove()
    assert not path.exists()


def test_one_that_nobody_listens_on_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with UnixSocket(path).bind() as bound:
        bound.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


@pytest.mark.parametrize("backlog", [0, 5])
def test_one_that_somebody_listens_on_is_in_use(path: Path, backlog: int) -> None:
    with socket.socket(socket.AF_UNIX) as taken, socket.socket(socket.AF_UNIX) as waiting:
        taken.bind(str(path))
        taken.listen(backlog)
        waiting.connect(str(path))  # with a backlog of 0, no other fits
        with pytest.raises(Unavailable, match=f"^Socket 'unix:{path}' already in use$"):
            UnixSocket(path).bind()
    assert path.is_socket()


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_another_kind_of_file_is_never_removed(path: Path, kind: str) -> None:
    other = path.with_name("other")
    put(kind, path, other)
    with pytest.raises(Unavailable, match=f"'{path}' exists and is no socket"):
        UnixSocket(path).bind()
    assert os.path.lexists(path)
    assert other.read_text() == "precious"


def test_a_path_that_cannot_be_bound(path: Path) -> None:
    missing = path / "absent"
    with pytest.raises(Unavailable) as caught:
        UnixSocket(missing).bind()
    assert str(caught.value) == f"failed to listen on 'unix:{missing}': No such file or directory"


def test_a_file_that_has_taken_the_place_stays(path: Path) -> None:
    unix = UnixSocket(path)
    unix.bind().close()
    path.rename(path.with_name("moved"))
    path.write_text("another")
    unix.remove()
    assert path.read_text() == "another"
