"""The server's own settings; front ends and backends declare theirs in their plug-ins."""

from dataclasses import dataclass

from microkernel.options import option


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Flags of `microkernel run` that concern the kernel, spelled and defaulted as Triton's."""

    id: str = option("triton", flag="--id", about="The server's name in its metadata.")
    model_repository: tuple[str, ...] = option(
        (),
        flag="--model-repository --model-store",
        many=True,
        about="A directory of models; may be repeated.",
    )
    model_control_mode: str = option(
        "none",
        flag="--model-control-mode",
        choices=("none", "explicit"),
        about="none: load every model at start. explicit: load those named by --load-model.",
    )
    load_model: tuple[str, ...] = option(
        (),
        flag="--load-model",
        many=True,
        about="With --model-control-mode=explicit: a model to load at start; '*' alone loads all.",
    )
    model_config_name: str = option(
        "",
        flag="--model-config-name",
        about="Use configs/NAME.pbtxt of a model where there is one.",
    )
    disable_auto_complete_config: bool = option(
        False,
        flag="--disable-auto-complete-config",
        about="Take configurations as they are written.",
    )
    model_load_thread_count: int = option(
        4, flag="--model-load-thread-count", about="How many models may load at once."
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
        about="Seconds to let accepted requests finish when stopping.",
    )
    allow_client_shm: bool = option(
        False,
        flag="--allow-client-shm",
        about="Whether clients may register shared memory for inputs and outputs.",
    )
    log_verbose: int = option(0, flag="--log-verbose", about="0 for normal, 1 or more for verbose.")
    log_info: bool = option(True, flag="--log-info", about="Whether to log informational lines.")
    log_warning: bool = option(True, flag="--log-warning", about="Whether to log warnings.")
    log_error: bool = option(True, flag="--log-error", about="Whether to log errors.")
    log_format: str = option(
        "default",
        flag="--log-format",
        choices=("default", "ISO8601", "console", "json"),
        about="console: for people. json: one object a line. default: console on a terminal, else "
        "json. ISO8601: default with full dates.",
    )
