"""Where lines of the log go, and that nothing that happens there stops the server."""

import gc
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from microkernel import InvalidArgument
from microkernel.log import configure
from microkernel.log_file import Console, LogFile
from microkernel.settings import ServerSettings

pytestmark = pytest.mark.usefixtures("log_as_before")


def events(file: Path) -> list[str]:
    return [json.loads(line)["event"] for line in file.read_text().splitlines()]


def test_lines_go_to_the_file_and_not_to_the_console(tmp_path: Path) -> None:
    file, console = tmp_path / "log", io.StringIO()
    file.write_text('{"event": "earlier"}\n')
    control = configure(ServerSettings(log_file=str(file)), console)
    structlog.get_logger().info("now", text="\udcff")
    assert events(file) == ["earlier", "now"]
    assert console.getvalue() == ""
    assert control.settings.log_file == str(file)


def test_without_a_file_there_is_only_the_console() -> None:
    console = io.StringIO()
    control = configure(ServerSettings(), console)
    structlog.get_logger().info("now")
    assert json.loads(console.getvalue())["event"] == "now"
    assert (control.settings.log_file, control.file) == ("", None)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("no/log", "No such file or directory"), (".", "Is a directory"), ("a\0b", "null byte")],
)
def test_a_file_that_cannot_be_written(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=f"log_file: cannot write '.*': .*{reason}"):
        configure(ServerSettings(log_file=f"{tmp_path}/{name}"))


def test_it_is_opened_again_after_rotation(tmp_path: Path) -> None:
    file = tmp_path / "log"
    log = LogFile(str(file))
    log.write("first\n")
    file.rename(tmp_path / "log.1")
    log.write("second\n")
    assert log.reopen() == ""
    log.write("third\n")
    assert (tmp_path / "log.1").read_text() == "first\nsecond\n"
    assert file.read_text() == "third\n"


def test_where_it_cannot_be_opened_again_the_old_file_stays(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = LogFile(str(folder / "log"))
    folder.rename(tmp_path / "away")
    assert log.reopen() == "No such file or directory"
    log.write("still here\n")
    assert (tmp_path / "away" / "log").read_text() == "still here\n"


def test_a_file_is_closed_with_the_last_reference(
    tmp_path: Path, open_files: Callable[[], list[str]]
) -> None:
    before = open_files()
    log = LogFile(str(tmp_path / "log"))
    log.reopen()
    assert len(open_files()) == len(before) + 1
    del log
    gc.collect()
    assert open_files() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device /dev/full is missing")
def test_a_full_disk_stops_nothing() -> None:
    control = configure(ServerSettings(log_file="/dev/full"))
    structlog.get_logger().info("lost")
    assert control.file is not None
    assert control.file.write("lost") == 4


class Broken(io.StringIO):
    """A stream whose other end is gone."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def write(self, text: str) -> int:
        raise self._error

    def flush(self) -> None:
        raise self._error


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "full"), ValueError("closed")])
def test_a_console_that_is_gone_stops_nothing(error: Exception) -> None:
    configure(ServerSettings(), Broken(error))
    structlog.get_logger().error("lost")
    assert Console(Broken(error)).write("lost") == 4


def test_a_terminal_is_recognised_through_the_console() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert Console(Terminal()).isatty()
    assert not Console(io.StringIO()).isatty()


def test_a_worker_does_not_inherit_the_file(tmp_path: Path) -> None:
    log: Any = LogFile(str(tmp_path / "log"))
    log.reopen()
    assert not os.get_inheritable(log._descriptor)
