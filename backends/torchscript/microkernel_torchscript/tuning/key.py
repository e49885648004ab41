"""For what a measurement holds: the model's file, torch, the processor and the configuration."""

import hashlib
import json
import platform
import threading
from pathlib import Path

from microkernel import ModelConfig, config_to_json, processors

_SETTLED_PARTS = ("max_batch_size", "input", "output", "batch_input", "batch_output")
"""What of a configuration the measurement depends on, beside the parameters below. Instances and
scheduling are what it leads to."""

_PARAMETERS = (
    "DISABLE_OPTIMIZED_EXECUTION",
    "INFERENCE_MODE",
    "ENABLE_JIT_PROFILING",
    "ENABLE_JIT_EXECUTOR",
    "ENABLE_TENSOR_FUSER",
    "INTER_OP_THREAD_COUNT",
)


def key_of(config: ModelConfig, path: Path, torch_version: str) -> dict[str, str]:
    """The key of a completed configuration and the model's file, whose digest is computed.
    Raises OSError where it cannot be read."""
    return {
        "file": digest_of(path),
        "torch": torch_version,
        "cpu": processor(Path("/proc/cpuinfo")),
        "cores": str(processors()),
        "configuration": _short(json.dumps(_settled(config), sort_keys=True)),
    }


def processor(cpuinfo: Path) -> str:
    """The name of this machine's processor and a digest of what it can do."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".strip()
    lines = dict(line.split(":", 1) for line in reversed(text.splitlines()) if ":" in line)
    told = {name.strip(): value.strip() for name, value in lines.items()}
    name = told.get("model name", platform.machine())
    return f"{name} {_short(told.get('flags', told.get('Features', '')))}"


def _settled(config: ModelConfig) -> dict[str, object]:
    document = config_to_json(config)
    parts = {name: document.get(name) for name in _SETTLED_PARTS}
    parameters = {name: config.parameter(name) for name in _PARAMETERS}
    return {**parts, "parameters": parameters}


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Digests:
    """Digests of files, each computed once while the file stays what it is: a load asks twice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, int, int, int], str] = {}

    def of(self, path: Path) -> str:
        stat = path.stat()
        identity = (str(path.absolute()), stat.st_ino, stat.st_size, stat.st_mtime_ns)
        with self._lock:
            if identity not in self._known:
                with path.open("rb") as file:
                    self._known[identity] = hashlib.file_digest(file, "sha256").hexdigest()
            return self._known[identity]


_DIGESTS = _Digests()


def digest_of(path: Path) -> str:
    """The SHA-256 digest of a file. Raises OSError where it cannot be read."""
    return _DIGESTS.of(path)
