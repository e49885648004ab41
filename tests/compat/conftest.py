"""Starts real servers, as the tests of whole servers do."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("psutil", reason="psutil, of the group 'dev', is missing")
pytest.importorskip("aiohttp", reason="the extra 'http' is missing")
pytest.importorskip("grpc", reason="the extra 'grpc' is missing")

sys.path += [str(Path(__file__).parent / "facts"), str(Path(__file__).parent.parent / "server")]

# Found through the path set above.
from facts_harness import channel, facts, failing, stub
from server_harness import start_server

__all__ = ["channel", "facts", "failing", "start_server", "stub"]
