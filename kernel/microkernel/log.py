"""The log: lines for people on a terminal, one JSON object a line otherwise."""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, TextIO

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor, WrappedLogger

from microkernel.errors import InvalidArgument
from microkernel.log_file import Console, LogFile
from microkernel.origin import origin
from microkernel.port import LogChanges, LogSettings
from microkernel.settings import ServerSettings

FORMATS = ("default", "ISO8601")
"""The forms of the time that the log knows."""

_MOST_VERBOSE = 2**32 - 1
"""The highest level that gRPC's message can tell."""

_WITHOUT_VALUES = ExceptionDictTransformer(show_locals=False)
"""How a traceback is told. The variables of its frames may hold keys and the data of clients."""


class LogControl:
    """The settings of the log in force; they can be changed while the server runs. `file` is where
    lines go, None for the console."""

    def __init__(self, settings: LogSettings, file: LogFile | None = None) -> None:
        self.settings = settings
        self.file = file
        self._followers: set[Callable[[bool], None]] = set()

    @property
    def verbose(self) -> bool:
        """Whether verbose lines are logged."""
        return self.settings.log_verbose_level > 0

    def follow(self, follower: Callable[[bool], None]) -> None:
        """Have `follower` told whether verbose lines are logged, now and whenever that changes."""
        self._followers.add(follower)
        follower(self.verbose)

    def leave(self, follower: Callable[[bool], None]) -> None:
        """Have it told no more; one that does not follow is left alone."""
        self._followers.discard(follower)

    def change(self, changes: LogChanges) -> LogSettings:
        """Change what is given; the settings then. Raises InvalidArgument for an unknown format and
        a level that is too high."""
        given = {f.name: getattr(changes, f.name) for f in fields(changes)}
        wanted = {name: value for name, value in given.items() if value is not None}
        if wanted.get("log_format", "default") not in FORMATS:
            raise InvalidArgument(
                f"invalid argument for log_format: '{changes.log_format}', must be one of "
                f"{', '.join(FORMATS)}"
            )
        if not 0 <= wanted.get("log_verbose_level", 0) <= _MOST_VERBOSE:
            raise InvalidArgument(
                f"invalid argument for log_verbose_level: '{changes.log_verbose_level}', must be "
                f"from 0 to {_MOST_VERBOSE}"
            )
        before = self.verbose
        self.settings = replace(self.settings, **wanted)
        if self.verbose != before:
            for follower in tuple(self._followers):
                follower(self.verbose)
        return self.settings


def configure(
    settings: ServerSettings, stream: TextIO = sys.stderr, *, embedded: bool = False
) -> LogControl:
    """Send structlog's lines and those of the standard `logging` to the settings' file, or without
    one to `stream`; where the server is `embedded` in somebody's program, only the server's own,
    and those as the program has them where it has set up structlog itself.

    Raises InvalidArgument where the file cannot be written.
    """
    if embedded and _set_up_elsewhere():
        return LogControl(_shown(settings))
    file = LogFile(settings.log_file) if settings.log_file else None
    control = LogControl(_shown(settings), file)
    sink: Any = file or Console(stream)
    terminal = sink.isatty()
    human = settings.log_format == "console" or (settings.log_format != "json" and terminal)
    final: list[Processor]
    if human:
        final = [
            _lay_out_tables,
            structlog.dev.ConsoleRenderer(
                colors=terminal, exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    else:
        final = [
            structlog.processors.ExceptionRenderer(_WITHOUT_VALUES),
            structlog.processors.JSONRenderer(default=str),
        ]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _Switches(control),
            _add_origin,
            _Stamp(control, human=human),
            *final,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(file=sink),
        cache_logger_on_first_use=False,
    )
    if not embedded:
        _forward_standard_logging()
    return control


def _shown(settings: ServerSettings) -> LogSettings:
    return LogSettings(
        log_file=settings.log_file,
        log_info=settings.log_info,
        log_warning=settings.log_warning,
        log_error=settings.log_error,
        log_verbose_level=settings.log_verbose,
        log_format="ISO8601" if settings.log_format == "ISO8601" else "default",
    )


def _set_up_elsewhere() -> bool:
    processors = structlog.get_config()["processors"]
    return structlog.is_configured() and not any(isinstance(p, _Switches) for p in processors)


class _Switches:
    """Drops the lines of the severities that are switched off."""

    def __init__(self, control: LogControl) -> None:
        self._control = control

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        settings = self._control.settings
        on = {
            "debug": settings.log_verbose_level > 0,
            "info": settings.log_info,
            "warning": settings.log_warning,
            "error": settings.log_error,
        }
        if not on.get(event["level"], True):
            raise structlog.DropEvent
        return event


def _add_origin(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Say whose requests the thread works for; what the line says itself stands."""
    for name, value in origin().items():
        event.setdefault(name, value)
    return event


class _Stamp:
    """The time of a line: of the day for people, unless full dates are asked for; else in full."""

    def __init__(self, control: LogControl, *, human: bool) -> None:
        self._control = control
        self._human = human
        self._short = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
        self._full = structlog.processors.TimeStamper(fmt="iso", utc=True)

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        short = self._human and self._control.settings.log_format == "default"
        return (self._short if short else self._full)(logger, method, event)


def _lay_out_tables(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """A field `table`, a list of records of one form, is shown below the line."""
    records = event.pop("table", None)
    if records:
        header = tuple(records[0])
        rows = [tuple(str(record[key]) for key in header) for record in records]
        event["event"] += "\n" + table(header, rows)
    return event


class _Forward(logging.Handler):
    """Hands records of the standard `logging` (libraries, thread workers) to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event = record.getMessage()
        except Exception:  # noqa: BLE001 - a model's log line must not fail its request
            event = f"{record.msg!r}, whose arguments do not fit it"
        method = record.levelname.lower()
        fields: dict[str, Any] = {"logger": record.name}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        log = structlog.get_logger()
        getattr(log, method, log.error)(event, **fields)


def _forward_standard_logging() -> None:
    root = logging.getLogger()
    root.handlers[:] = [_Forward()]
    root.setLevel(logging.WARNING)
    # What models of thread workers say belongs to the log as that of process workers does.
    logging.getLogger("microkernel").setLevel(logging.DEBUG)


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as text in aligned columns under a header; the last column is not padded."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, tuple("-" * width for width in widths), *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
