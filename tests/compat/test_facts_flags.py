"""The flags that Triton has: each is taken, with Triton's default, and a command line of Triton's
starts this server."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from server_harness import COMMAND, PATIENCE, launch, write_python_model

from microkernel.options import options_of
from microkernel.plugins import discover
from microkernel.settings import ServerSettings

NONE: tuple[str, ...] = ()
DEFAULTS: dict[str, Any] = {
    "--id": "triton",
    "--exit-timeout-secs": 30,
    "--log-verbose": 0,
    "--log-info": True,
    "--log-warning": True,
    "--log-error": True,
    "--log-format": "default",
    "--log-file": "",
    "--model-repository --model-store": NONE,
    "--exit-on-error": True,
    "--disable-auto-complete-config": False,
    "--strict-model-config": False,
    "--strict-readiness": True,
    "--model-control-mode": "none",
    "--repository-poll-secs": 15,
    "--load-model": NONE,
    "--model-config-name": "",
    "--model-load-thread-count": 4,
    "--model-load-retry-count": 0,
    "--model-namespacing": False,
    "--enable-peer-access": True,
    "--allow-http": True,
    "--http-address": "0.0.0.0",
    "--http-port": 8000,
    "--reuse-http-port": False,
    "--http-header-forward-pattern": "",
    "--http-thread-count": 8,
    "--http-max-input-size": 67108864,
    "--http-restricted-api": NONE,
    "--allow-grpc": True,
    "--grpc-address": "0.0.0.0",
    "--grpc-port": 8001,
    "--reuse-grpc-port": False,
    "--grpc-header-forward-pattern": "",
    "--grpc-infer-thread-count": 2,
    "--grpc-infer-allocation-pool-size": 8,
    "--grpc-max-response-pool-size": 2147483647,
    "--grpc-use-ssl": False,
    "--grpc-use-ssl-mutual": False,
    "--grpc-server-cert": "",
    "--grpc-server-key": "",
    "--grpc-root-cert": "",
    "--grpc-infer-response-compression-level": "none",
    "--grpc-keepalive-time": 7200000,
    "--grpc-keepalive-timeout": 20000,
    "--grpc-keepalive-permit-without-calls": False,
    "--grpc-http2-max-pings-without-data": 2,
    "--grpc-http2-min-recv-ping-interval-without-data": 300000,
    "--grpc-http2-max-ping-strikes": 2,
    "--grpc-max-connection-age": 0,
    "--grpc-max-connection-age-grace": 0,
    "--grpc-restricted-protocol": NONE,
    "--allow-sagemaker": False,
    "--sagemaker-port": 8080,
    "--sagemaker-thread-count": 8,
    "--sagemaker-safe-port-range": "",
    "--allow-vertex-ai": False,
    "--vertex-ai-port": 8080,
    "--vertex-ai-thread-count": 8,
    "--vertex-ai-default-model": "",
    "--allow-metrics": True,
    "--allow-gpu-metrics": True,
    "--allow-cpu-metrics": True,
    "--metrics-address": "",
    "--metrics-port": 8002,
    "--metrics-interval-ms": 2000,
    "--metrics-config": NONE,
    "--trace-config": NONE,
    "--trace-file": "",
    "--trace-rate": 1000,
    "--trace-count": -1,
    "--trace-log-frequency": 0,
    "--backend-directory": "/opt/tritonserver/backends",
    "--backend-config": NONE,
    "--repoagent-directory": "/opt/tritonserver/repoagents",
    "--cache-config": NONE,
    "--cache-directory": "/opt/tritonserver/caches",
    "--response-cache-byte-size": 0,
    "--rate-limit": "off",
    "--rate-limit-resource": NONE,
    "--pinned-memory-pool-byte-size": 268435456,
    "--cuda-memory-pool-byte-size": NONE,
    "--cuda-virtual-address-size": NONE,
    "--min-supported-compute-capability": 6.0,
    "--buffer-manager-thread-count": 0,
    "--host-policy": NONE,
    "--model-load-gpu-limit": NONE,
    "--allow-client-shm": False,
}
"""What each flag of Triton stands at when it is not given."""

CHOICES = {
    "--model-control-mode": {"none", "poll", "explicit"},
    "--log-format": {"default", "ISO8601"},
    "--grpc-infer-response-compression-level": {"none", "low", "medium", "high"},
    "--rate-limit": {"off", "execution_count"},
}
"""The words that some of them must take."""


def declared() -> dict[str, tuple[object, tuple[str, ...]]]:
    """The default and the choices of every flag of this server."""
    settings: list[type[object]] = [ServerSettings]
    settings += [p.settings_type for p in discover(None).all if p.settings_type is not None]
    return {
        spec.flag: (default, spec.choices)
        for one in settings
        for _, spec, default in options_of(one).values()
    }


@pytest.mark.parametrize("flag", DEFAULTS)
def test_the_default_of_a_flag(flag: str) -> None:
    default, _ = declared()[flag]
    assert default == DEFAULTS[flag]


@pytest.mark.parametrize("flag", CHOICES)
def test_the_words_that_a_flag_takes(flag: str) -> None:
    _, choices = declared()[flag]
    assert CHOICES[flag] <= set(choices)


@pytest.mark.parametrize(
    "flags",
    [
        ["--no-such-flag"],
        ["--allow-http=maybe"],
        ["--http-max-input-size=0"],
        ["--load-model=m"],
        ["--http-restricted-api=health:a=b", "--http-restricted-api=health:c=d"],
        ["--http-port=18111", "--grpc-port=18111"],
    ],
    ids=" ".join,
)
def test_a_wrong_flag_ends_with_1(tmp_path: Path, flags: list[str]) -> None:
    ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
    base = [str(COMMAND), "run", f"--model-repository={tmp_path}", "--http-address=127.0.0.1"]
    command = [*base, "--grpc-address=127.0.0.1", *ports, *flags]
    found = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert found.returncode == 1
    assert "Traceback" not in found.stderr


TYPICAL = """
--model-store={models} --model-control-mode explicit --load-model=* --strict-model-config=false
--exit-on-error=TRUE --log-verbose=true --log-warning=1 --log-format ISO8601
--http-thread-count=16 --grpc-infer-allocation-pool-size 16 --grpc-infer-thread-count=4
--rate-limit=off --pinned-memory-pool-byte-size=1048576 --cuda-memory-pool-byte-size=0:1048576
--min-supported-compute-capability=7.5 --backend-directory=/opt/tritonserver/backends
--cache-config=local,size=1048576 --metrics-interval-ms=500 --allow-gpu-metrics=off
--model-load-thread-count=2 --buffer-manager-thread-count=2 --id=mine
"""


def test_a_start_script_of_triton_starts_this_server(tmp_path: Path) -> None:
    models = tmp_path / "models"
    body = "def execute(self, requests):\n    return [answer(Y=read(r, 'X')) for r in requests]\n"
    tensors = "input { name: 'X' data_type: TYPE_FP32 dims: [ 1 ] }\n"
    write_python_model(
        models, "m", tensors + tensors.replace("input", "output").replace("X", "Y"), body
    )
    running = launch(models, *TYPICAL.format(models=models).split(), "--log-format=json")
    try:
        running.wait_started()
        assert running.get("/v2").json["name"] == "mine"
        assert running.infer("m", ("X", "FP32", [1.5])).json["outputs"][0]["data"] == [1.5]
    finally:
        code = running.stop()
    assert code == 0
