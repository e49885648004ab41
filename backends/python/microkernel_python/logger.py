"""`pb_utils.Logger`: lines for the server's log."""

import enum
import logging

from microkernel_python.arguments import instance_of, text

_LOG = logging.getLogger("microkernel.model")


class LogLevel(enum.Enum):
    """The levels of a line, also found on `Logger`."""

    INFO = logging.INFO
    WARNING = logging.WARNING
    ERROR = logging.ERROR
    VERBOSE = logging.DEBUG


class Logger:
    """Writes to the server's log with the caller's file and line.

    Every method raises TypeError where the message is no str or the level is not one of these.
    """

    INFO = LogLevel.INFO
    WARNING = LogLevel.WARNING
    ERROR = LogLevel.ERROR
    VERBOSE = LogLevel.VERBOSE

    @staticmethod
    def log(message: str, level: LogLevel = LogLevel.INFO) -> None:
        """Write a line at a level."""
        _write(message, instance_of(level, LogLevel, "level"))

    @staticmethod
    def log_info(message: str) -> None:
        """Write a line at level INFO."""
        _write(message, LogLevel.INFO)

    @staticmethod
    def log_warn(message: str) -> None:
        """Write a line at level WARNING."""
        _write(message, LogLevel.WARNING)

    @staticmethod
    def log_error(message: str) -> None:
        """Write a line at level ERROR."""
        _write(message, LogLevel.ERROR)

    @staticmethod
    def log_verbose(message: str) -> None:
        """Write a line at level VERBOSE."""
        _write(message, LogLevel.VERBOSE)


def _write(message: object, level: LogLevel) -> None:
    # The line belongs to the model: two frames up from here.
    _LOG.log(level.value, "%s", text(message, "message"), stacklevel=3)
