"""The log: lines for people on a terminal, one JSON object a line otherwise."""

import logging
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from microkernel.settings import ServerSettings


def configure(settings: ServerSettings, stream: TextIO = sys.stderr) -> None:
    """Send structlog's lines and those of the standard `logging` to `stream`."""
    terminal = stream.isatty()
    human = settings.log_format == "console" or (settings.log_format != "json" and terminal)
    iso = settings.log_format == "ISO8601" or not human
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _Switches(settings),
        structlog.processors.TimeStamper(fmt="iso" if iso else "%H:%M:%S", utc=iso),
    ]
    final: list[Processor]
    if human:
        final = [_lay_out_tables, structlog.dev.ConsoleRenderer(colors=terminal)]
    else:
        final = [
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(default=str),
        ]
    structlog.configure(
        processors=[*shared, *final],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.DEBUG if settings.log_verbose > 0 else logging.INFO
        ),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )
    _forward_standard_logging()


class _Switches:
    """Drops the lines of the severities that are switched off."""

    def __init__(self, settings: ServerSettings) -> None:
        self._on = {
            "info": settings.log_info,
            "warning": settings.log_warning,
            "error": settings.log_error,
        }

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        if not self._on.get(event["level"], True):
            raise structlog.DropEvent
        return event


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


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as text in aligned columns under a header; the last column is not padded."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, tuple("-" * width for width in widths), *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
