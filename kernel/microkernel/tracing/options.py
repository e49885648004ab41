"""The options of the OpenTelemetry mode. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from microkernel.errors import InvalidArgument

_DEFAULT_URL = "http://localhost:4318"
_PATH = "/v1/traces"
_SERVICE = {"service.name": "triton-inference-server"}
_NUMBERS = {
    "bsp_max_queue_size": 2048,
    "bsp_schedule_delay": 5000,
    "bsp_max_export_batch_size": 512,
}
OTLP_KEYS = ("url", "resource", *_NUMBERS)
"""The keys that `--trace-config opentelemetry,` knows."""


@dataclass(frozen=True, slots=True)
class OtlpOptions:
    """Where spans are sent, what is said of their sender, and how they are batched:
    `bsp_schedule_delay` is in milliseconds, the sizes are numbers of spans."""

    url: str
    resource: tuple[tuple[str, str], ...]
    bsp_max_queue_size: int
    bsp_schedule_delay: int
    bsp_max_export_batch_size: int

    def shown(self) -> dict[str, str]:
        """The options by name, as clients are told them."""
        return {
            "url": self.url,
            "resource": ",".join(f"{key}={value}" for key, value in self.resource),
            **{name: str(getattr(self, name)) for name in _NUMBERS},
        }


def otlp_options(
    given: Mapping[str, tuple[str, ...]], environment: Mapping[str, str]
) -> OtlpOptions:
    """The options from the values of each key, in the order in which they were given; what is not
    given comes from the variables of the environment that OpenTelemetry defines. Raises
    InvalidArgument naming flag and key, or the variable."""
    numbers = {name: _batching(name, given, environment) for name in _NUMBERS}
    if numbers["bsp_max_export_batch_size"] > numbers["bsp_max_queue_size"]:
        raise InvalidArgument(
            "--trace-config opentelemetry: bsp_max_export_batch_size must not be more than "
            f"bsp_max_queue_size, got {numbers['bsp_max_export_batch_size']} and "
            f"{numbers['bsp_max_queue_size']}"
        )
    return OtlpOptions(_url(given, environment), _resource(given), **numbers)


def _url(given: Mapping[str, tuple[str, ...]], environment: Mapping[str, str]) -> str:
    if "url" in given:
        url, source = given["url"][-1], "--trace-config opentelemetry,url"
    elif environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        source = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
        url = environment[source]
    else:
        source = "OTEL_EXPORTER_OTLP_ENDPOINT"
        url = (environment.get(source) or _DEFAULT_URL).rstrip("/") + _PATH
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if not right:
        raise InvalidArgument(f"{source} must be an http or https address, got '{url}'")
    return url


def _resource(given: Mapping[str, tuple[str, ...]]) -> tuple[tuple[str, str], ...]:
    attributes = dict(_SERVICE)
    for entry in given.get("resource", ()):
        key, equals, value = entry.partition("=")
        if not (key and equals and value):
            raise InvalidArgument(
                f"--trace-config opentelemetry,resource must be <key>=<value>, got '{entry}'"
            )
        attributes[key] = value
    return tuple(attributes.items())


def _batching(
    name: str, given: Mapping[str, tuple[str, ...]], environment: Mapping[str, str]
) -> int:
    if name in given:
        text, source = given[name][-1], f"--trace-config opentelemetry,{name}"
    else:
        source = f"OTEL_{name.upper()}"
        text = environment.get(source) or str(_NUMBERS[name])
    return number(text, source, least=1)


def number(text: str, source: str, least: int, most: int = 2**31 - 1) -> int:
    """A decimal number within bounds. Raises InvalidArgument naming where it comes from."""
    digits = text.removeprefix("-")
    value = int(text) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
    if value is None or not least <= value <= most:
        raise InvalidArgument(f"{source} must be a number from {least} to {most}, got '{text}'")
    return value
