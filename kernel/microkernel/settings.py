"""The server's own settings; front ends and backends declare theirs in their plug-ins."""

from dataclasses import dataclass
from typing import ClassVar

from microkernel.accepted import AcceptedSettings
from microkernel.options import Between, Shaped, option


@dataclass(frozen=True, slots=True)
class ServerSettings(AcceptedSettings):
    """Flags of `microkernel run` that concern the kernel, spelled and defaulted as Triton's."""

    flag_group: ClassVar[str] = "Server"

    id: str = option("triton", flag="--id", about="The server's name in its metadata.")
    model_repository: tuple[str, ...] = option(
        (),
        group="Models",
        flag="--model-repository --model-store",
        many=True,
        about="A directory of models; may be repeated.",
    )
    model_control_mode: str = option(
        "none",
        group="Models",
        flag="--model-control-mode",
        choices=("none", "poll", "explicit"),
        about="none: load every model at start. poll: the same, and follow what changes on disk. "
        "explicit: load those named by --load-model, and others on request.",
    )
    repository_poll_secs: int = option(
        15,
        group="Models",
        flag="--repository-poll-secs",
        check=Between(0),
        about="With --model-control-mode=poll: seconds between looks at the repositories; 0 for "
        "none after the start.",
    )
    load_model: tuple[str, ...] = option(
        (),
        group="Models",
        flag="--load-model",
        many=True,
        about="With --model-control-mode=explicit: a model to load at start; '*' alone loads all.",
    )
    model_config_name: str = option(
        "",
        group="Models",
        flag="--model-config-name",
        check=Shaped("<name>, without blanks", r"\S*"),
        about="Use configs/NAME.pbtxt of a model where there is one.",
    )
    disable_auto_complete_config: bool = option(
        False,
        group="Models",
        flag="--disable-auto-complete-config",
        about="Take configurations as they are written.",
    )
    strict_model_config: bool = option(
        False,
        group="Models",
        flag="--strict-model-config",
        deprecated="--disable-auto-complete-config",
    )
    model_load_thread_count: int = option(
        4,
        group="Models",
        flag="--model-load-thread-count",
        check=Between(1),
        about="How many models may load at once.",
    )
    model_load_retry_count: int = option(
        0,
        group="Models",
        flag="--model-load-retry-count",
        check=Between(0),
        about="How often a load that fails is tried again.",
    )
    backend_config: tuple[str, ...] = option(
        (),
        group="Models",
        flag="--backend-config",
        many=True,
        check=Shaped("<backend>,<key>=<value> or <key>=<value>", r"([^,=]+,)?[^,=]+=.*"),
        about="A setting of a backend, as in its table of plugins.toml, or of every backend that "
        "has it; may be repeated.",
    )
    rate_limit: str = option(
        "off",
        group="Models",
        flag="--rate-limit",
        choices=("off", "execution_count"),
        about="execution_count: instances take turns, by how often they have run and by their "
        "priority, and wait for the resources of their rate_limiter. off: each runs whenever it is "
        "free.",
    )
    rate_limit_resource: tuple[str, ...] = option(
        (),
        group="Models",
        flag="--rate-limit-resource",
        many=True,
        check=Shaped("<name>:<count> or <name>:<count>:<device>", r"[^:]+:[0-9]+(:[0-9]+)?"),
        about="With --rate-limit=execution_count: how much there is of a resource, on a device or "
        "on each; may be repeated. Without, as much as the neediest instance takes.",
    )
    host_policy: tuple[str, ...] = option(
        (),
        group="Models",
        flag="--host-policy",
        many=True,
        check=Shaped("<policy>,<setting>=<value>", r"[^,=]+,[^,=]+=.*"),
        about="Where the instances of a host policy run: cpu-cores=0-3,8 or numa-node=0, of the "
        "policy that their group names, else of cpu, gpu_0 or model; may be repeated.",
    )
    strict_readiness: bool = option(
        True,
        flag="--strict-readiness",
        about="Report ready only while every model is ready.",
    )
    exit_on_error: bool = option(
        True, flag="--exit-on-error", about="End with exit code 1 if a model fails at start."
    )
    exit_timeout_secs: int = option(
        30,
        flag="--exit-timeout-secs",
        check=Between(0),
        about="Seconds to let accepted requests finish when stopping.",
    )
    cache_config: tuple[str, ...] = option(
        (),
        group="Models",
        flag="--cache-config",
        many=True,
        check=Shaped("<name>,<key>=<value>", "[^,=]+,[^,=]+=.*"),
        about="The cache of responses and its settings: local,size=BYTES, or redis,host=HOST and "
        "redis,port=PORT; may be repeated. It serves models with response_cache { enable: true }.",
    )
    response_cache_byte_size: int = option(
        0,
        group="Models",
        flag="--response-cache-byte-size",
        check=Between(0),
        deprecated="--cache-config=local,size=BYTES",
    )
    allow_client_shm: bool = option(
        False,
        group="Shared memory",
        flag="--allow-client-shm",
        about="Whether clients may register shared memory for inputs and outputs.",
    )
    allow_gpu_metrics: bool = option(
        True,
        group="Metrics",
        flag="--allow-gpu-metrics",
        about="Whether the metrics page tells of GPUs.",
    )
    allow_cpu_metrics: bool = option(
        True,
        group="Metrics",
        flag="--allow-cpu-metrics",
        about="Whether the metrics page tells of processors and memory.",
    )
    metrics_interval_ms: float = option(
        2000.0,
        group="Metrics",
        flag="--metrics-interval-ms",
        about="Milliseconds between readings of the metrics of GPUs, processors and memory.",
    )
    metrics_config: tuple[str, ...] = option(
        (),
        group="Metrics",
        flag="--metrics-config",
        many=True,
        about="What the metrics page has: counter_latencies=false, histogram_latencies=true, "
        "summary_latencies=true, summary_quantiles=0.5:0.05,0.9:0.01; may be repeated.",
    )
    trace_config: tuple[str, ...] = option(
        (),
        group="Tracing",
        flag="--trace-config",
        many=True,
        about="How requests are traced: level=TIMESTAMPS, level=TENSORS, rate=1000, count=-1, "
        "mode=triton with triton,file=FILE and triton,log-frequency=0, or mode=opentelemetry with "
        "opentelemetry,url=URL, opentelemetry,resource=KEY=VALUE and opentelemetry,bsp_*; may be "
        "repeated.",
    )
    trace_file: str = option(
        "",
        group="Tracing",
        flag="--trace-file",
        about="Deprecated: --trace-config triton,file=FILE.",
    )
    trace_level: tuple[str, ...] = option(
        (),
        group="Tracing",
        flag="--trace-level",
        many=True,
        about="Deprecated: --trace-config level=LEVEL.",
    )
    trace_rate: int = option(
        1000, group="Tracing", flag="--trace-rate", about="Deprecated: --trace-config rate=RATE."
    )
    trace_count: int = option(
        -1, group="Tracing", flag="--trace-count", about="Deprecated: --trace-config count=COUNT."
    )
    trace_log_frequency: int = option(
        0,
        group="Tracing",
        flag="--trace-log-frequency",
        about="Deprecated: --trace-config triton,log-frequency=FREQUENCY.",
    )
    log_verbose: int = option(
        0,
        group="Logging",
        flag="--log-verbose",
        check=Between(0, 2**32 - 1),
        about="0 for normal, 1 or more for verbose.",
    )
    log_info: bool = option(
        True, group="Logging", flag="--log-info", about="Whether to log informational lines."
    )
    log_warning: bool = option(
        True, group="Logging", flag="--log-warning", about="Whether to log warnings."
    )
    log_error: bool = option(
        True, group="Logging", flag="--log-error", about="Whether to log errors."
    )
    log_file: str = option(
        "",
        group="Logging",
        flag="--log-file",
        about="Log to this file and not to the console; opened again at SIGHUP.",
    )
    log_format: str = option(
        "default",
        group="Logging",
        flag="--log-format",
        choices=("default", "ISO8601", "console", "json"),
        about="console: for people. json: one object a line. default: console on a terminal, else "
        "json. ISO8601: default with full dates.",
    )
