"""The loader of tests that serve the odd backend."""

from microkernel import BackendType, LogSettings
from microkernel.log import LogControl
from microkernel.models.loader import Loader, LoaderSettings, Offer

CONFIG = """
    backend: "odd"
    max_batch_size: 8
    input { name: "X" data_type: TYPE_INT32 dims: -1 }
    output { name: "Y" data_type: TYPE_INT32 dims: -1 }
"""
"""Of a model that gives back what it is given."""


def odd_loader(*, verbose: bool = False) -> Loader:
    """A loader of models of the odd backend, whose folder must be on the path, and of no other."""
    offers = [Offer(BackendType("odd", "odd_backend:OddBackend"), None)]
    control = LogControl(LogSettings(log_verbose_level=int(verbose)))
    return Loader(offers, LoaderSettings(log_control=control))
