"""From options to what an operator decides, and where the log goes."""

import sys

from microkernel import log
from microkernel.app import Setup
from microkernel.inprocess.options import Options, settings_of
from microkernel.plugins import discover


def setup_of(options: Options) -> Setup:
    """What to start. Raises what `settings_of` raises, and InvalidArgument for a log file that
    cannot be written and a `plugins.toml` that is wrong."""
    settings = settings_of(options)
    plugins = discover()
    return Setup(settings, plugins, {}, log.configure(settings, sys.stderr, embedded=True))
