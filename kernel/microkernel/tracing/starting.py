"""Makes what traces requests from the server's flags."""

from collections.abc import Mapping
from pathlib import Path

import structlog

from microkernel.errors import InvalidArgument
from microkernel.settings import ServerSettings
from microkernel.tracing.files import FileSink
from microkernel.tracing.flags import TraceStart, trace_start
from microkernel.tracing.options import OtlpOptions
from microkernel.tracing.tracer import Tracer
from microkernel.tracing.writer import Sink

log = structlog.get_logger()


def start_tracing(settings: ServerSettings, environment: Mapping[str, str]) -> Tracer:
    """What traces requests by the flags; doubts about them are logged. Raises InvalidArgument for
    flags that cannot be right and where the OpenTelemetry mode lacks its packages."""
    start = trace_start(settings, environment)
    for warning in start.warnings:
        log.warning(warning)
    return Tracer(start.settings, _sink(start))


def _sink(start: TraceStart) -> Sink | None:
    if start.otlp is not None:
        return _otlp(start.otlp)
    file = start.settings.trace_file
    if not file:
        return None
    if not Path(file).parent.is_dir():
        log.warning("the folder of the trace file does not exist", file=file)
    return FileSink(file)


def _otlp(options: OtlpOptions) -> Sink:
    try:
        from microkernel.tracing.otlp import OtlpSink  # noqa: PLC0415 - its packages are an extra
    except ImportError as error:
        raise InvalidArgument(
            f"--trace-config mode=opentelemetry needs packages that are missing ({error.name}): "
            "pip install 'microkernel[opentelemetry]'"
        ) from None
    return OtlpSink(options)
