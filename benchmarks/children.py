"""How does the runner talk to the processes that it measures with?

Each is a Python module of this package that answers calls: one JSON document a line in, one a line
out. It ends when its input does, which is also when the runner is gone.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]


class Child:
    """A process running a module of this package. `pid` is its process id."""

    def __init__(self, module: str, *arguments: str) -> None:
        # A worker that the child starts must find this package, too.
        self._name = " ".join((module, *arguments))
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,  # Ctrl-C is for the runner, which ends its children
        )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, function: str, **arguments: Any) -> Any:
        """What the function answers. Raises RuntimeError where it failed or the process ended."""
        self.begin(function, **arguments)
        return self.answer()

    def begin(self, function: str, **arguments: Any) -> None:
        """Start a call whose result `answer` gives, so that several children work at once."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([function, arguments]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """The result of the call that was begun; see `call`."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"'benchmarks.{self._name}' ended with {self._process.wait()}")
        failed, result = json.loads(line)
        if failed:
            raise RuntimeError(f"'benchmarks.{self._name}': {result}")
        return result

    def close(self) -> None:
        """End the process by closing its input, or by force where that takes long."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def answer_calls(functions: Mapping[str, Callable[..., Any]]) -> None:
    """The child's side: answer calls until the input ends. Whatever else is printed goes to the
    standard error stream."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            name, arguments = json.loads(line)
            try:
                reply = [False, functions[name](**arguments)]
            except Exception as error:  # noqa: BLE001 - the runner is told, and ends the run
                reply = [True, f"{type(error).__name__}: {error}"]
            print(json.dumps(reply), file=answers, flush=True)
