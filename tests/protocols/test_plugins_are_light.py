import importlib
import subprocess
import sys

import pytest

from microkernel.options import build, options_of

PACKAGES = (
    *("microkernel_http", "microkernel_grpc"),
    *("microkernel_http.sagemaker", "microkernel_http.vertex_ai"),
)


@pytest.mark.parametrize("package", PACKAGES)
def test_listing_a_plug_in_imports_no_network_library(package: str) -> None:
    code = (
        f"import sys, {package}\n"
        f"print([m for m in ('aiohttp', 'grpc', 'google.protobuf')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


CLOUD = {
    "sagemaker": [
        *("--allow-sagemaker", "--sagemaker-port", "--sagemaker-safe-port-range"),
        *("--sagemaker-thread-count",),
    ],
    "vertex_ai": [
        *("--allow-vertex-ai", "--vertex-ai-port", "--vertex-ai-default-model"),
        *("--vertex-ai-thread-count",),
    ],
}


def _registered(package: str) -> tuple[type[object], list[tuple[object, ...]]]:
    module = importlib.import_module(package)
    settings: list[type[object]] = []
    frontends: list[tuple[object, ...]] = []

    def register(name: str, factory: object, **rest: object) -> None:
        assert callable(factory)
        frontends.append((name, *rest.values()))

    module.register_options(settings.append)
    module.register_frontends(register)
    return settings[0], frontends


def test_what_the_plug_ins_register() -> None:
    http, http_frontends = _registered("microkernel_http")
    grpc, grpc_frontends = _registered("microkernel_grpc")
    assert http_frontends == [
        ("http", ("aiohttp",), "http"),
        ("metrics", ("aiohttp",), "http", True),  # the page stays reachable to the end
    ]
    assert grpc_frontends == [("grpc", ("grpc",), "grpc")]
    flags = [spec.flag for s in (http, grpc) for _, spec, _ in options_of(s).values()]
    assert flags == [
        *("--allow-http", "--http-address", "--http-port", "--reuse-http-port"),
        *("--http-thread-count", "--http-max-input-size", "--http-max-body-size"),
        *("--http-header-timeout-secs", "--http-body-timeout-secs"),
        *("--http-keep-alive-timeout-secs", "--http-header-forward-pattern"),
        *("--http-restricted-api", "--http-use-ssl", "--http-use-ssl-mutual"),
        *("--http-server-cert", "--http-server-key", "--http-root-cert", "--http-auth-file"),
        *("--http-cors-origin", "--http-access-log", "--allow-metrics", "--metrics-address"),
        *("--metrics-port", "--metrics-use-ssl", "--metrics-auth-file"),
        *("--allow-grpc", "--grpc-address", "--grpc-port", "--reuse-grpc-port"),
        *("--grpc-header-forward-pattern", "--grpc-restricted-protocol"),
        *("--grpc-auth-file", "--grpc-access-log"),
        *("--grpc-use-ssl", "--grpc-use-ssl-mutual", "--grpc-server-cert"),
        *("--grpc-server-key", "--grpc-root-cert", "--grpc-infer-response-compression-level"),
        *(
            "--grpc-keepalive-time",
            "--grpc-keepalive-timeout",
            "--grpc-keepalive-permit-without-calls",
        ),
        *(
            "--grpc-http2-max-pings-without-data",
            "--grpc-http2-min-recv-ping-interval-without-data",
        ),
        *(
            "--grpc-http2-max-ping-strikes",
            "--grpc-max-connection-age",
            "--grpc-max-connection-age-grace",
        ),
        *("--grpc-infer-thread-count", "--grpc-infer-allocation-pool-size"),
        *("--grpc-max-response-pool-size",),
    ]
    for name, flags in CLOUD.items():
        cloud, cloud_frontends = _registered(f"microkernel_http.{name}")
        assert cloud_frontends == [(name, ("aiohttp",), "http")]
        own = [spec.flag for _, spec, _ in options_of(cloud).values()]
        shared = {spec.flag for _, spec, _ in options_of(http).values()}
        assert [flag for flag in own if flag and flag not in shared] == flags
    assert build(http, {"port": 0}, "plugins.toml") == http(port=0)  # type: ignore[call-arg]
