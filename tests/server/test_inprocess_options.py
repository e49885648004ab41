"""The options of an in-process server, and the settings made from them."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from microkernel.inprocess import (
    InvalidArgumentError,
    LogFormat,
    ModelControlMode,
    Options,
    RateLimiterResource,
    RateLimitMode,
)
from microkernel.inprocess.options import NO_EFFECT, settings_of

REPOSITORY = {"model_repository": "models"}


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({"model_repository": Path("models")}, {"model_repository": ("models",)}),
        ({"model_repository": ["one", Path("two")]}, {"model_repository": ("one", "two")}),
        ({"server_id": "mine"}, {"id": "mine"}),
        ({"strict_model_config": True}, {"disable_auto_complete_config": True}),
        ({"exit_timeout": 3}, {"exit_timeout_secs": 3}),
        (
            {"model_control_mode": ModelControlMode.EXPLICIT, "startup_models": ["a"]},
            {"model_control_mode": "explicit", "load_model": ("a",)},
        ),
        ({}, {"log_info": False, "log_warning": False, "log_error": False}),
        ({"log_error": True}, {"log_info": False, "log_warning": False, "log_error": True}),
        ({"log_warn": True}, {"log_info": False, "log_warning": True, "log_error": True}),
        ({"log_info": True}, {"log_info": True, "log_warning": True, "log_error": True}),
        ({"log_verbose": 2}, {"log_info": True, "log_warning": True, "log_verbose": 2}),
        ({"log_format": LogFormat.ISO8601}, {"log_format": "ISO8601"}),
        ({"cpu_metrics": False}, {"allow_cpu_metrics": False, "allow_gpu_metrics": True}),
        ({"metrics_interval": 500}, {"metrics_interval_ms": 500.0}),
        ({"model_load_retry_count": 2}, {"model_load_retry_count": 2}),
        ({"log_file": Path("log")}, {"log_file": "log"}),
        (
            {"backend_configuration": {"": {"a": "1"}, "python": {"b": "2"}}},
            {"backend_config": ("a=1", "python,b=2")},
        ),
        (
            {
                "rate_limiter_mode": RateLimitMode.EXEC_COUNT,
                "rate_limiter_resources": [
                    RateLimiterResource("gpu memory", 2),
                    RateLimiterResource("R", 1, 0),
                ],
            },
            {"rate_limit": "execution_count", "rate_limit_resource": ("gpu memory:2", "R:1:0")},
        ),
        (
            {"host_policies": {"cpu": {"cpu-cores": "0-1", "numa-node": 0}}},
            {"host_policy": ("cpu,cpu-cores=0-1", "cpu,numa-node=0")},
        ),
        (
            {"cache_config": {"redis": {"host": "h", "port": 6379}}},
            {"cache_config": ("redis,host=h", "redis,port=6379")},
        ),
        (
            {"metrics_configuration": {"": {"counter_latencies": "false"}}},
            {"metrics_config": ("counter_latencies=false",)},
        ),
    ],
)
def test_what_options_mean(options: dict[str, Any], settings: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = settings_of(Options(**(REPOSITORY | options)))
    assert {name: getattr(found, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"server_id": 1}, "option server_id must be of type str, got 1"),
        ({"model_repository": 1}, "option model_repository must hold paths, got 1"),
        ({"exit_timeout": "long"}, "option exit_timeout must be of type int, got 'long'"),
        ({"model_control_mode": "explicit"}, "must be of type ModelControlMode"),
    ],
)
def test_options_of_the_wrong_type(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        settings_of(Options(**(REPOSITORY | options)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model_repository": None}, "model_repository must name a directory"),
        ({"model_repository": []}, "model_repository must name a directory"),
        ({"startup_models": ["a"]}, "startup_models needs model_control_mode"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        settings_of(Options(**(REPOSITORY | options)))


def test_options_without_effect_warn_once() -> None:
    options = Options(
        **REPOSITORY,  # type: ignore[arg-type]
        model_namespacing=True,
        min_supported_compute_capability=7,
    )
    with pytest.warns(UserWarning, match="options without effect") as found:
        settings_of(options)
    assert [str(warning.message) for warning in found] == [
        "options without effect here: min_supported_compute_capability, model_namespacing"
    ]
    assert "server_id" not in NO_EFFECT


def test_an_unknown_option() -> None:
    with pytest.raises(TypeError, match="colour"):
        Options(colour="blue")  # type: ignore[call-arg]
