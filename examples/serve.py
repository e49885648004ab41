"""Serve the example models: start the server, and say what to try once it is ready.

Further arguments go to `microkernel run`. A signal to stop is passed on, and the server's exit code
is returned.
"""

import argparse
import http.client
import signal
import subprocess
import sys
import time
from pathlib import Path

POLL_SECONDS = 0.2
HERE = Path(__file__).resolve().parent

TRY = """
Microkernel is ready on port {port}. In another terminal:

  curl -s http://127.0.0.1:{port}/v2/models/tokenize/infer -d '{{"inputs": [{{"name": "text",
    "datatype": "BYTES", "shape": [1, 1], "data": ["Hello, world"]}}]}}'
      answers with input_ids and attention_mask, INT64 of shape [1, 5]
  curl -s --data-binary @README.md -H 'Inference-Header-Content-Length: 0' \
    http://127.0.0.1:{port}/v2/models/file_type/infer --output -
      tells the type of a file, here markdown
  {python} {examples}/sentences.py
  {python} {examples}/file_type.py README.md

Ctrl-C stops the server.
"""


def is_ready(port: int) -> bool:
    """Whether a server on this machine answers that it and all its models are ready."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def wait_ready(server: "subprocess.Popen[bytes]", port: int) -> bool:
    """Wait until the server is ready; False where it ends before."""
    while server.poll() is None:
        if is_ready(port):
            return True
        time.sleep(POLL_SECONDS)
    return False


def shown(path: Path) -> Path:
    """The path as a person in the working directory would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def serve(models: Path, port: int, arguments: list[str]) -> int:
    """Run the server until it ends, and return its exit code, 128 and the signal's number where a
    signal ended it."""
    program = Path(sys.executable).with_name("microkernel")
    known = ["--model-repository", str(models), "--http-port", str(port)]
    # In a process group of its own the server hears Ctrl-C once, from here.
    server = subprocess.Popen([program, "run", *known, *arguments], process_group=0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: server.send_signal(received))
    if wait_ready(server, port):
        python = shown(Path(sys.executable))
        print(TRY.format(port=port, python=python, examples=shown(HERE)), flush=True)
    code = server.wait()
    return code if code >= 0 else 128 - code


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model-repository", type=Path, default=Path("models"))
    parser.add_argument("--http-port", type=int, default=8000)
    options, arguments = parser.parse_known_args()
    sys.exit(serve(options.model_repository, options.http_port, arguments))


if __name__ == "__main__":
    main()
