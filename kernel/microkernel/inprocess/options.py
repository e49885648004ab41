"""`Options`: what a server is started with, by Triton's names, and what of it is meant here."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from microkernel.errors import InvalidArgument
from microkernel.inprocess.enums import (
    InstanceGroupKind,
    LogFormat,
    ModelControlMode,
    RateLimiterResource,
    RateLimitMode,
)
from microkernel.options import build
from microkernel.settings import ServerSettings

Path = str | os.PathLike[str]


@dataclass(slots=True, eq=False)
class Options:
    """The options of a server; names and defaults are Triton's.

    `model_repository` is one directory or several. What is named in `NO_EFFECT` is accepted, with
    one warning for all that are given, so that scripts written for Triton run.
    """

    model_repository: Path | Sequence[Path] | None = None
    server_id: str = "triton"
    model_control_mode: ModelControlMode = ModelControlMode.NONE
    startup_models: Sequence[str] = ()
    strict_model_config: bool = False
    rate_limiter_mode: RateLimitMode = RateLimitMode.OFF
    rate_limiter_resources: Sequence[RateLimiterResource] = ()
    pinned_memory_pool_size: int = 1 << 28
    cuda_memory_pool_sizes: Mapping[int, int] = field(default_factory=dict)
    cache_config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cache_directory: str = "/opt/tritonserver/caches"
    min_supported_compute_capability: float = 6.0
    exit_on_error: bool = True
    strict_readiness: bool = True
    exit_timeout: int = 30
    buffer_manager_thread_count: int = 0
    model_load_thread_count: int = 4
    model_load_retry_count: int = 0
    model_namespacing: bool = False
    enable_peer_access: bool = True
    log_file: Path | None = None
    log_info: bool = False
    log_warn: bool = False
    log_error: bool = False
    log_format: LogFormat = LogFormat.DEFAULT
    log_verbose: int = 0
    metrics: bool = True
    gpu_metrics: bool = True
    cpu_metrics: bool = True
    metrics_interval: int = 2000
    backend_directory: str = "/opt/tritonserver/backends"
    repo_agent_directory: str = "/opt/tritonserver/repoagents"
    model_load_device_limits: Sequence[tuple[InstanceGroupKind, int, float]] = ()
    backend_configuration: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    host_policies: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    metrics_configuration: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


_SAME = {
    "server_id": "id",
    "strict_model_config": "disable_auto_complete_config",
    "strict_readiness": "strict_readiness",
    "exit_on_error": "exit_on_error",
    "exit_timeout": "exit_timeout_secs",
    "model_load_thread_count": "model_load_thread_count",
    "gpu_metrics": "allow_gpu_metrics",
    "cpu_metrics": "allow_cpu_metrics",
    "log_verbose": "log_verbose",
    "model_load_retry_count": "model_load_retry_count",
}
"""Options that the server's settings know under another name."""

_TRANSLATED = {
    *("model_repository", "model_control_mode", "startup_models", "log_file", "log_info"),
    *("log_warn", "log_error", "log_format", "metrics", "metrics_interval"),
    *("metrics_configuration", "backend_configuration", "cache_config"),
    *("rate_limiter_mode", "rate_limiter_resources", "host_policies"),
}

_RATE_LIMITS = {RateLimitMode.OFF: "off", RateLimitMode.EXEC_COUNT: "execution_count"}

NO_EFFECT = tuple(
    f.name for f in fields(Options) if f.name not in _SAME and f.name not in _TRANSLATED
)
"""Options that nothing here corresponds to."""


def settings_of(options: Options) -> ServerSettings:
    """The server's settings. Warns once of options without effect.

    Raises TypeError for an option of the wrong type and InvalidArgument for one that cannot be.
    """
    _check_types(options)
    if given := [n for n in NO_EFFECT if getattr(options, n) != getattr(Options(), n)]:
        warnings.warn(f"options without effect here: {', '.join(given)}", stacklevel=4)
    if options.startup_models and options.model_control_mode is not ModelControlMode.EXPLICIT:
        raise InvalidArgument("startup_models needs model_control_mode=ModelControlMode.EXPLICIT")
    values = {known: getattr(options, name) for name, known in _SAME.items()}
    values |= _severities(options) | {
        "model_repository": _repositories(options),
        "model_control_mode": options.model_control_mode.name.lower(),
        "load_model": tuple(options.startup_models),
        "log_file": "" if options.log_file is None else os.fspath(options.log_file),
        "backend_config": tuple(
            f"{backend},{key}={value}" if backend else f"{key}={value}"
            for backend, pairs in options.backend_configuration.items()
            for key, value in pairs.items()
        ),
        "cache_config": tuple(
            f"{cache},{key}={value}"
            for cache, pairs in options.cache_config.items()
            for key, value in pairs.items()
        ),
        "rate_limit": _RATE_LIMITS[options.rate_limiter_mode],
        "rate_limit_resource": tuple(map(_resource, options.rate_limiter_resources)),
        "host_policy": tuple(
            f"{policy},{key}={value}"
            for policy, pairs in options.host_policies.items()
            for key, value in pairs.items()
        ),
        "log_format": "ISO8601" if options.log_format is LogFormat.ISO8601 else "default",
        "metrics_interval_ms": float(options.metrics_interval),
        "metrics_config": tuple(
            f"{family},{key}={value}" if family else f"{key}={value}"
            for family, pairs in options.metrics_configuration.items()
            for key, value in pairs.items()
        ),
    }
    return build(ServerSettings, values, "Options")


def _resource(resource: RateLimiterResource) -> str:
    device = f":{resource.device}" if resource.device >= 0 else ""
    return f"{resource.name}:{resource.count}{device}"


def _check_types(options: Options) -> None:
    for entry in fields(Options):
        default, value = getattr(Options(), entry.name), getattr(options, entry.name)
        kind = type(default)
        accepted = (int, float) if kind is float else kind
        if default is not None and kind is not tuple and not isinstance(value, accepted):
            raise TypeError(f"option {entry.name} must be of type {kind.__name__}, got {value!r}")
    for path in _paths(options):
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"option model_repository must hold paths, got {path!r}")


def _paths(options: Options) -> Sequence[Any]:
    given: Any = options.model_repository
    return given if isinstance(given, list | tuple) else [] if given is None else [given]


def _repositories(options: Options) -> tuple[str, ...]:
    paths = tuple(os.fspath(path) for path in _paths(options))
    if not paths:
        raise InvalidArgument("option model_repository must name a directory of models")
    return paths


def _severities(options: Options) -> dict[str, bool]:
    """Each severity that is switched on brings the graver ones along, as in Triton."""
    info = options.log_info or options.log_verbose > 0
    warning = options.log_warn or info
    return {
        "log_info": info,
        "log_warning": warning,
        "log_error": options.log_error or warning,
    }
