"""What tests of plug-ins may use: a server in memory that answers as the test says, an event loop
on virtual time, and the contract that every backend keeps.
"""

from microkernel.testing.clock import VirtualTimeLoop
from microkernel.testing.contract import check_backend
from microkernel.testing.fakes import Answer, FakeModel, FakeServer, echo

__all__ = ["Answer", "FakeModel", "FakeServer", "VirtualTimeLoop", "check_backend", "echo"]
