"""The parameters of Triton's LibTorch runtime: how they are read and what the log says."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra 'torchscript'")

import torch
from torch import nn

from microkernel import InvalidArgument, ModelConfig, ModelInput, ModelOutput, ModelParameter
from microkernel_torchscript.backend import PyTorchBackend
from microkernel_torchscript.options import Options, described, parse_options

Save = Callable[..., Path]
Serve = Callable[..., Any]

CONFIG = ModelConfig(
    name="m",
    input=(ModelInput("x", "TYPE_FP32", dims=(4,)),),
    output=(ModelOutput("y__0", "TYPE_FP32", dims=(4,)),),
)


class Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def parameters(**texts: str) -> ModelConfig:
    return replace(CONFIG, parameters={key: ModelParameter(text) for key, text in texts.items()})


BOOLEANS: list[tuple[str, Callable[[bool], Options]]] = [
    ("DISABLE_OPTIMIZED_EXECUTION", lambda v: Options(optimized_execution=not v)),
    ("INFERENCE_MODE", lambda v: Options(inference_mode=v)),
    ("DISABLE_CUDNN", lambda v: Options(cudnn=not v)),
    ("ENABLE_WEIGHT_SHARING", lambda v: Options(weight_sharing=v)),
    ("ENABLE_CACHE_CLEANING", lambda v: Options(cache_cleaning=v)),
    ("ENABLE_JIT_PROFILING", lambda v: Options(jit_profiling=v)),
    ("ENABLE_JIT_EXECUTOR", lambda v: Options(jit_executor=v)),
    ("ENABLE_TENSOR_FUSER", lambda v: Options(tensor_fuser=v)),
    ("WARMUP", lambda v: Options(warmup=v)),
]


@pytest.mark.parametrize(("key", "expected"), BOOLEANS)
@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("ON", True), ("1", True), ("false", False), ("Off", False), ("0", False)],
)
def test_every_boolean_is_read(
    key: str, expected: Callable[[bool], Options], text: str, value: bool
) -> None:
    read = parse_options(parameters(**{key: text}))
    assert replace(read, notices=()) == expected(value)


@pytest.mark.parametrize("key", [key for key, _ in BOOLEANS])
def test_what_is_no_boolean_is_refused_in_tritons_words(key: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^failed to convert 'yes' to boolean$"):
        parse_options(parameters(**{key: "yes"}))


@pytest.mark.parametrize("key", ["INTRA_OP_THREAD_COUNT", "INTER_OP_THREAD_COUNT"])
@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("all", r"failed to convert 'all' to integral number$"),
        ("", r"failed to convert '' to integral number$"),
        ("99999999999", r"failed to convert '99999999999' to integral number: .* at most 1024$"),
        ("1025", r"failed to convert '1025' to integral number: parameter IN.* at most 1024$"),
    ],
)
def test_what_is_no_number_is_refused_in_tritons_words(key: str, text: str, refusal: str) -> None:
    with pytest.raises(InvalidArgument, match=refusal):
        parse_options(parameters(**{key: text}))


ALWAYS = [
    "Optimized execution is enabled for model instance 'm'",
    "Cache Cleaning is disabled for model instance 'm'",
    "Inference Mode is enabled for model instance 'm'",
    "cuDNN is enabled for model instance 'm'",
]


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (Options(), ALWAYS),
        (
            Options(False, True, False, False),
            [
                "Optimized execution is disabled for model instance 'm'",
                "Cache Cleaning is enabled for model instance 'm'",
                "Inference Mode is disabled for model instance 'm'",
                "cuDNN is disabled for model instance 'm'",
            ],
        ),
        (
            Options(tensor_fuser=True, weight_sharing=False, intra_op_threads=3),
            [
                *ALWAYS,
                "Tensor fuser is enabled for model instance 'm'",
                "Weight sharing is disabled for model instance 'm'",
                "Intra op thread count is set to 3 for model instance 'm'",
            ],
        ),
        (
            Options(jit_profiling=False, jit_executor=True, inter_op_threads=2),
            [
                *ALWAYS,
                "Jit profiling is disabled for model instance 'm'",
                "Jit executor is enabled for model instance 'm'",
                "Inter op thread count is set to 2 for model instance 'm'",
            ],
        ),
    ],
)
def test_the_log_says_what_triton_says(options: Options, lines: list[str]) -> None:
    assert list(described("m", options)) == lines


def test_the_lines_come_once_for_all_instances(
    tmp_path: Path, save_module: Save, host: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = parameters(ENABLE_JIT_PROFILING="true")
    model = PyTorchBackend().load(config, save_module(Double(), tmp_path))
    host(model), host(model)
    told = [r.getMessage() for r in caplog.records if r.getMessage().endswith("instance 'm'")]
    assert told == [*ALWAYS, "Jit profiling is enabled for model instance 'm'"]


@pytest.mark.parametrize(
    ("texts", "notice"),
    [
        ({"ENABLE_NVFUSER": "whatever"}, "torch no longer has nvFuser"),
        ({"MODULE_METHOD_NAME": "score"}, "the method is always 'forward'"),
        ({"ENABLE_TENSOR_FUSER": "false"}, "makes small models on a CPU slower"),
        ({"ENABLE_TENSOR_FUSER": "true"}, ""),
        ({"ENABLE_WEIGHT_SHARING": "true", "DISABLE_CUDNN": "true"}, ""),
    ],
)
def test_what_changes_nothing_is_said_once(
    tmp_path: Path,
    save_module: Save,
    caplog: pytest.LogCaptureFixture,
    texts: dict[str, str],
    notice: str,
) -> None:
    PyTorchBackend().load(parameters(**texts), save_module(Double(), tmp_path)).unload()
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == bool(notice)
    assert all(notice in text for text in warned)
