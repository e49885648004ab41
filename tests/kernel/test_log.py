"""The log: for people on a terminal, for machines otherwise."""

import io
import json
import logging
import re
from collections.abc import Callable

import pytest
import structlog

from microkernel import InvalidArgument, LogChanges, LogSettings
from microkernel.log import LogControl, configure, table
from microkernel.options import build
from microkernel.settings import ServerSettings

pytestmark = pytest.mark.usefixtures("log_as_before")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[str]:
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in stream.getvalue().splitlines()]


def shout() -> None:
    log = structlog.get_logger()
    log.debug("debug")
    log.info("info", key="value")
    log.warning("warning")
    log.error("error")


def logged(settings: ServerSettings) -> list[str]:
    stream = io.StringIO()
    configure(settings, stream)
    shout()
    return [json.loads(line)["event"] for line in lines(stream)]


@pytest.mark.parametrize(
    ("settings", "events"),
    [
        (ServerSettings(), ["info", "warning", "error"]),
        (ServerSettings(log_verbose=1), ["debug", "info", "warning", "error"]),
        (ServerSettings(log_info=False), ["warning", "error"]),
        (ServerSettings(log_warning=False), ["info", "error"]),
        (ServerSettings(log_error=False), ["info", "warning"]),
        (ServerSettings(log_info=False, log_warning=False, log_error=False), []),
    ],
)
def test_severities_are_switched_on_and_off(settings: ServerSettings, events: list[str]) -> None:
    assert logged(settings) == events


CONSOLE = r"\d\d:\d\d:\d\d \[info +\] info +key=value"
CONSOLE_ISO = r"\d{4}-\d\d-\d\dT[0-9:.]+Z \[info +\] info +key=value"
JSON = r'\{.*"event": "info".*\}'


@pytest.mark.parametrize(
    ("kind", "stream", "form"),
    [
        ("default", io.StringIO, JSON),
        ("default", Terminal, CONSOLE),
        ("console", io.StringIO, CONSOLE),
        ("console", Terminal, CONSOLE),
        ("json", io.StringIO, JSON),
        ("json", Terminal, JSON),
        ("ISO8601", io.StringIO, JSON),
        ("ISO8601", Terminal, CONSOLE_ISO),
    ],
)
def test_the_form_of_a_line(kind: str, stream: Callable[[], io.StringIO], form: str) -> None:
    out = stream()
    configure(ServerSettings(log_format=kind), out)
    shout()
    assert re.fullmatch(form, lines(out)[0].strip())


def test_a_json_line_has_every_field() -> None:
    out = io.StringIO()
    configure(ServerSettings(), out)
    structlog.get_logger().bind(model="m").info("loaded", seconds=1.5, at=re.compile("x"))
    record = json.loads(out.getvalue())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[0-9:.]+Z", record.pop("timestamp"))
    assert record == {
        "event": "loaded",
        "level": "info",
        "model": "m",
        "seconds": 1.5,
        "at": "re.compile('x')",
    }


def test_a_traceback_is_part_of_the_json_line() -> None:
    out = io.StringIO()
    configure(ServerSettings(), out)
    try:
        int("x")
    except ValueError:
        structlog.get_logger().exception("failed")
    (line,) = lines(out)
    assert json.loads(line)["exception"][0]["exc_type"] == "ValueError"


KEY = "Bearer s3cr3t"


def _call_with(key: str) -> None:
    credentials = {"authorization": key}
    raise RuntimeError(f"{len(credentials)} given")


@pytest.mark.parametrize("kind", ["json", "console"])
def test_a_traceback_tells_no_values(kind: str) -> None:
    out = io.StringIO()
    configure(ServerSettings(log_format=kind), out)
    try:
        _call_with(KEY)
    except RuntimeError:
        structlog.get_logger().exception("failed")
    assert "1 given" in out.getvalue()
    assert "_call_with" in out.getvalue()
    assert KEY not in out.getvalue()


def test_followers_are_told_when_verbosity_changes() -> None:
    control, told = LogControl(LogSettings(log_verbose_level=1)), list[bool]()
    control.follow(told.append)
    assert told == [True]
    for level in (2, 0, 0, 7):
        control.change(LogChanges(log_verbose_level=level))
    control.change(LogChanges(log_info=False))
    assert told == [True, False, True]
    control.leave(told.append)
    control.change(LogChanges(log_verbose_level=0))
    assert told == [True, False, True]


@pytest.mark.parametrize("level", [-1, 2**32, 10**30])
def test_a_level_that_no_protocol_can_tell_is_refused(level: int) -> None:
    control = LogControl(LogSettings())
    with pytest.raises(InvalidArgument, match=r"log_verbose_level: '.*', must be from 0 to"):
        control.change(LogChanges(log_info=False, log_verbose_level=level))
    assert control.settings == LogSettings()
    with pytest.raises(InvalidArgument, match="'log_verbose' must be from 0 to "):
        build(ServerSettings, {"log_verbose": level}, "file")


def test_a_table_is_laid_out_for_people_and_kept_for_machines() -> None:
    rows = [{"model": "a", "state": "READY"}, {"model": "longer", "state": "LOADING"}]
    people, machines = Terminal(), io.StringIO()
    for stream in (people, machines):
        configure(ServerSettings(), stream)
        structlog.get_logger().info("models", table=rows)
    assert [line.rstrip() for line in lines(people)[1:]] == [
        "model   state",
        "------  -------",
        "a       READY",
        "longer  LOADING",
    ]
    assert json.loads(machines.getvalue())["table"] == rows


def test_an_empty_table_is_no_table() -> None:
    out = Terminal()
    configure(ServerSettings(), out)
    structlog.get_logger().info("no models", table=[])
    assert len(lines(out)) == 1


def forwarded(act: Callable[[logging.Logger], None]) -> list[dict[str, object]]:
    """The lines that a library's logger gives; only ours of the root's handlers is asked, for
    pytest adds its own."""
    out = io.StringIO()
    configure(ServerSettings(), out)
    library, ours = logging.getLogger("library"), logging.getLogger().handlers[0]
    library.addHandler(ours)
    library.propagate = False
    act(library)
    library.removeHandler(ours)
    library.propagate = True
    return [json.loads(line) for line in lines(out)]


def test_lines_of_libraries_take_the_same_road() -> None:
    (line,) = forwarded(lambda library: library.warning("careful, %s", "you"))
    assert (line["event"], line["level"], line["logger"]) == ("careful, you", "warning", "library")


def test_a_library_s_traceback_comes_along() -> None:
    def fail(library: logging.Logger) -> None:
        try:
            int("x")
        except ValueError:
            library.exception("failed")

    (line,) = forwarded(fail)
    assert line["level"] == "error"
    assert "exception" in line


def test_a_level_of_a_library_s_own_is_not_lost() -> None:
    (line,) = forwarded(lambda library: library.log(35, "between"))
    assert line["event"] == "between"


def test_a_broken_line_of_a_library_does_not_fail_its_caller() -> None:
    (line,) = forwarded(lambda library: library.warning("%d items", "no"))
    assert line["event"] == "'%d items', whose arguments do not fit it"


def test_libraries_are_quiet_below_warning() -> None:
    out = io.StringIO()
    configure(ServerSettings(), out)
    logging.getLogger("library").info("chatter")
    assert out.getvalue() == ""


def test_a_model_in_a_thread_is_heard() -> None:
    out = io.StringIO()
    configure(ServerSettings(log_format="json"), out)
    logging.getLogger("microkernel.model").info("loaded %d words", 3)
    logging.getLogger("microkernel.model").debug("not unless verbose")
    (line,) = lines(out)
    assert json.loads(line)["event"] == "loaded 3 words"


def test_columns_are_aligned() -> None:
    assert table(("a", "bb"), [("long", "x"), ("b", "")]).splitlines() == [
        "a     bb",
        "----  --",
        "long  x",
        "b",
    ]
