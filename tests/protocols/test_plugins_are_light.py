import subprocess
import sys

import pytest

from microkernel.options import build, options_of


@pytest.mark.parametrize("package", ["microkernel_http", "microkernel_grpc"])
def test_listing_a_plug_in_imports_no_network_library(package: str) -> None:
    code = (
        f"import sys, {package}\n"
        f"print([m for m in ('aiohttp', 'grpc', 'google.protobuf')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def _registered(package: str) -> tuple[type[object], list[tuple[object, ...]]]:
    module = __import__(package)
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
        *("--http-max-input-size", "--http-header-forward-pattern", "--http-restricted-api"),
        *("--allow-metrics", "--metrics-address", "--metrics-port"),
        *("--allow-grpc", "--grpc-address", "--grpc-port", "--reuse-grpc-port"),
        *("--grpc-header-forward-pattern", "--grpc-restricted-protocol"),
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
    assert build(http, {"port": 0}, "plugins.toml") == http(port=0)  # type: ignore[call-arg]
