"""What a command of `microkernel` is that a plug-in brings."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CommandType:
    """How the command line finds a plug-in's command.

    `name` is what follows `microkernel`, and `about` the line that `microkernel --help` shows.
    `target` is `"module:object"`, a `click.Command` that is imported only when it is called. What
    the command returns is the exit code, and one of our errors exits with 1 and its text.
    `requires` names the modules that must be importable for the command to be available, and
    `extra` the extra of the distribution that brings them.
    """

    name: str
    target: str
    about: str
    requires: Sequence[str] = ()
    extra: str = ""
