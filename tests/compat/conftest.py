"""Starts real servers, as the tests of whole servers do."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("psutil", reason="psutil, of the group 'dev', is missing")
pytest.importorskip("aiohttp", reason="the extra 'http' is missing")
pytest.importorskip("grpc", reason="the extra 'grpc' is missing")

sys.path.append(str(Path(__file__).parent.parent / "server"))

from server_harness import start_server  # found through the path set above

__all__ = ["start_server"]
