"""A real Redis on a free port of 127.0.0.1, which a test can stop, freeze and start again."""

import os
import random
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from server_harness import ADDRESS, PATIENCE

BINARY = shutil.which("redis-server")
LONG = 20_000
"""Milliseconds that a test would rather wait than have Redis taken for gone."""
_TIMES = ("connect_timeout", "socket_timeout", "wait_timeout")
_OWN_PORTS = range(20_000, 30_000)
"""Below those that Linux gives to connections."""


class RedisProcess:
    """Redis with what it holds in `folder`; `flags` are its own, such as `--requirepass`."""

    def __init__(self, folder: Path, *flags: str) -> None:
        if BINARY is None:
            pytest.skip("redis-server is not installed")
        self.port = _free_port()
        self._folder = folder
        self._flags = flags
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        """Start it where it does not run; returns when it takes connections."""
        command = [str(BINARY), "--port", str(self.port), "--bind", ADDRESS, "--save", ""]
        self._process = subprocess.Popen(
            [*command, "--dir", str(self._folder), *self._flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "Ready to accept connections" in line:
                return
        raise AssertionError("redis-server did not start")

    def kill(self) -> None:
        """End it at once; what it held is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate(timeout=PATIENCE)
            self._process = None

    def freeze(self) -> None:
        """Let it take connections and answer nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    @property
    def config(self) -> list[str]:
        """The flags of a server that uses it, and waits for it however busy the machine is."""
        return [*self.hasty_config, *(f"--cache-config=redis,{time}={LONG}" for time in _TIMES)]

    @property
    def hasty_config(self) -> list[str]:
        """The flags of a server that waits for it no longer than it does by default."""
        return [f"--cache-config=redis,host={ADDRESS}", f"--cache-config=redis,port={self.port}"]


def _free_port() -> int:
    """A port on which nobody listens, and which no connection of anybody is given, so that it is
    free to the end of the test."""
    with socket.socket() as free:
        for port in random.sample(_OWN_PORTS, len(_OWN_PORTS)):
            with suppress(OSError):
                free.bind((ADDRESS, port))
                return port
    raise AssertionError("every port is taken")
