"""`--trace-config` and the deprecated flags: what they become, and what is wrong with them."""

from typing import Any

import pytest

from microkernel import InvalidArgument, TraceSettings
from microkernel.settings import ServerSettings
from microkernel.tracing.flags import TraceStart, trace_start


def start(*config: str, env: dict[str, str] | None = None, **deprecated: Any) -> TraceStart:
    return trace_start(ServerSettings(trace_config=config, **deprecated), env or {})


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ((), TraceSettings()),
        (
            ("level=TIMESTAMPS", "rate=100", "count=7", "triton,file=/t/a,b=c"),
            TraceSettings("/t/a,b=c", ("TIMESTAMPS",), 100, 7),
        ),
        (
            ("triton,file=t", "level=tensors", "level=Timestamps", "triton,log-frequency=50"),
            TraceSettings("t", ("TIMESTAMPS", "TENSORS"), log_frequency=50),
        ),
        (("triton,file=t", "level=max"), TraceSettings("t", ("TIMESTAMPS",))),
        (("triton,file=t", "level=TENSORS", "level=off"), TraceSettings("t")),
        (("Triton,file=t", "rate=1", "rate=2", "mode=TRITON"), TraceSettings("t", trace_rate=2)),
    ],
)
def test_the_settings_that_flags_become(config: tuple[str, ...], settings: TraceSettings) -> None:
    made = start(*config)
    assert (made.settings, made.otlp, made.warnings) == (settings, None, ())


def test_the_opentelemetry_mode() -> None:
    made = start(
        "mode=opentelemetry",
        "level=TIMESTAMPS",
        "opentelemetry,url=https://collector:4318/v1/traces",
        "opentelemetry,resource=service.name=mine",
        "opentelemetry,resource=zone=a=b",
        "opentelemetry,bsp_schedule_delay=100",
        env={"OTEL_BSP_MAX_QUEUE_SIZE": "600", "OTEL_BSP_SCHEDULE_DELAY": "1"},
    )
    assert made.settings == TraceSettings(
        trace_level=("TIMESTAMPS",),
        trace_mode="opentelemetry",
        options={
            "url": "https://collector:4318/v1/traces",
            "resource": "service.name=mine,zone=a=b",
            "bsp_max_queue_size": "600",
            "bsp_schedule_delay": "100",
            "bsp_max_export_batch_size": "512",
        },
    )
    assert made.otlp is not None
    assert made.otlp.resource == (("service.name", "mine"), ("zone", "a=b"))
    assert made.otlp.bsp_max_queue_size == 600


@pytest.mark.parametrize(
    ("env", "url"),
    [
        ({}, "http://localhost:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1/"}, "http://c:1/v1/traces"),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1/",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://d:2/in",
            },
            "http://d:2/in",
        ),
    ],
)
def test_where_spans_go_by_default(env: dict[str, str], url: str) -> None:
    made = start("mode=opentelemetry", env=env).otlp
    assert made is not None
    assert (made.url, made.resource) == (url, (("service.name", "triton-inference-server"),))
    batching = made.bsp_max_queue_size, made.bsp_schedule_delay, made.bsp_max_export_batch_size
    assert batching == (2048, 5000, 512)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (["rate"], "--trace-config must be <mode>,<key>=<value> or <key>=<value>, got 'rate'"),
        (["rate="], "--trace-config must be .*, got 'rate='"),
        (["=1"], "--trace-config must be .*, got '=1'"),
        ([",rate=1"], "--trace-config must be .*, got ',rate=1'"),
        (["rate=x"], "--trace-config rate must be a number from 0 to 4294967295, got 'x'"),
        (["rate=-1"], "--trace-config rate must be a number from 0"),
        (["count=-2"], "--trace-config count must be a number from -1 to 2147483647, got '-2'"),
        (["triton,log-frequency=1.5"], "--trace-config triton,log-frequency must be a number"),
        (["level=all"], "--trace-config level must be OFF, TIMESTAMPS or TENSORS, got 'all'"),
        (["mode=zipkin"], "--trace-config mode must be triton or opentelemetry, got 'zipkin'"),
        (["zipkin,url=x"], "--trace-config: unknown trace mode 'zipkin' in 'zipkin,url=x'"),
        (
            ["file=x"],
            "--trace-config: unknown key 'file' without a mode; write triton,file=<value>",
        ),
        (["triton,rate=1"], "unknown key 'rate' in mode 'triton'; write rate=<value>"),
        (["fil=x"], "unknown key 'fil' without a mode; it knows mode, level, rate, count"),
        (
            ["opentelemetry,bps=1"],
            "unknown key 'bps' in mode 'opentelemetry'; it knows url, resource, bsp_max_queue_size",
        ),
        (
            ["mode=opentelemetry", "opentelemetry,url=collector:4318"],
            "--trace-config opentelemetry,url must be an http or https address, "
            "got 'collector:4318'",
        ),
        (
            ["mode=opentelemetry", "opentelemetry,url=http://c:99999"],
            "--trace-config opentelemetry,url must be an http or https address",
        ),
        (
            ["mode=opentelemetry", "opentelemetry,resource=name"],
            "--trace-config opentelemetry,resource must be <key>=<value>, got 'name'",
        ),
        (
            ["mode=opentelemetry", "opentelemetry,bsp_schedule_delay=0"],
            "--trace-config opentelemetry,bsp_schedule_delay must be a number from 1",
        ),
        (
            ["mode=opentelemetry", "opentelemetry,bsp_max_queue_size=8"],
            "bsp_max_export_batch_size must not be more than bsp_max_queue_size, got 512 and 8",
        ),
    ],
)
def test_what_is_wrong_names_flag_and_key(config: list[str], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        start(*config)


def test_a_variable_that_is_wrong_is_named() -> None:
    with pytest.raises(InvalidArgument, match=r"OTEL_BSP_MAX_QUEUE_SIZE must be a number .* 'big'"):
        start("mode=opentelemetry", env={"OTEL_BSP_MAX_QUEUE_SIZE": "big"})
    assert start(env={"OTEL_BSP_MAX_QUEUE_SIZE": "big"}).otlp is None


def test_the_deprecated_flags_still_work() -> None:
    made = start(
        trace_file="t",
        trace_level=("TENSORS", "TIMESTAMPS"),
        trace_rate=5,
        trace_count=6,
        trace_log_frequency=7,
    )
    assert made.settings == TraceSettings("t", ("TIMESTAMPS", "TENSORS"), 5, 6, 7)
    assert len(made.warnings) == 5
    assert "--trace-rate is deprecated; write --trace-config rate=<value>" in made.warnings


def test_the_new_flag_beats_the_deprecated_ones() -> None:
    made = start("rate=9", "triton,file=new", trace_file="old", trace_rate=5)
    assert (made.settings.trace_file, made.settings.trace_rate) == ("new", 9)
    assert made.warnings == (
        "--trace-file is ignored: --trace-config triton,file is given",
        "--trace-rate is ignored: --trace-config rate is given",
    )


@pytest.mark.parametrize(
    ("config", "warning"),
    [
        (("level=TIMESTAMPS",), "nothing is traced: trace file name is not given"),
        (("level=TIMESTAMPS", "rate=0", "triton,file=t"), "nothing is traced: sample rate"),
        (("opentelemetry,url=http://c",), "opentelemetry,url has no effect: the trace mode is tr"),
        (("mode=opentelemetry", "triton,file=t"), "triton,file has no effect"),
        (("mode=opentelemetry", "level=TENSORS"), "level=TENSORS has no effect"),
    ],
)
def test_what_will_hardly_be_meant_is_told(config: tuple[str, ...], warning: str) -> None:
    [told] = start(*config).warnings
    assert warning in told
