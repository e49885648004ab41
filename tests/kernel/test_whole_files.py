"""Files that are written whole or not at all."""

import errno
import os
import stat
from pathlib import Path

import pytest

from microkernel import whole_file


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_takes_its_place_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with whole_file(path) as part:
        assert part.parent == tmp_path  # in one file system, so that it can take the place
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_a_block_that_raises_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), whole_file(path) as part:
        part.write_text("half" * 100_000 + "\udc80", encoding="utf-8")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_what_never_reached_the_disk_takes_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"), whole_file(tmp_path / "file") as part:
        part.write_text("new")
    assert names(tmp_path) == []


def test_several_writers_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with whole_file(path) as first, whole_file(path) as second:
        first.write_text("from the first")
        second.write_text("from the second")
    assert path.read_text() == "from the first"  # whose block ended last
    assert names(tmp_path) == ["file"]


def test_a_file_has_the_mode_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    with whole_file(tmp_path / "file") as part:
        part.write_text("")
    modes = {stat.S_IMODE(entry.stat().st_mode) for entry in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("place", ["none/file", "folder", "."])
def test_a_place_that_cannot_be_taken_is_an_os_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError), whole_file(Path(place)) as part:  # noqa: PT011 - of each its own
        part.write_text("new")
    assert names(tmp_path) == ["folder"]
