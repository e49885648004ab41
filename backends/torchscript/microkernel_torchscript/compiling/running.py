"""A module under `torch.compile`. This module imports torch's compilers, which takes seconds."""

import difflib
import inspect
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._dynamo import exc, list_backends, maybe_mark_dynamic
from torch._inductor import config as inductor_config
from torch._inductor import list_mode_options, list_options

from microkernel_torchscript.compiling.parameters import (
    INDUCTOR,
    PARAMETER,
    CompileOptions,
    refused,
)
from microkernel_torchscript.compiling.policy import Compiled, CompileFailed, Varying

logger = logging.getLogger(__name__)


class CompiledForward(Compiled):
    """Runs a compiled module. What the compiler cannot follow is run as it is, unless the model's
    options ask for a compiler: then CompileFailed says why, and stays in `failure`."""

    def __init__(
        self, name: str, plain: Callable[..., Any], options: CompileOptions, varying: Varying
    ) -> None:
        """Raises InvalidArgument for options that torch refuses."""
        _stay_one_process()
        self._name, self._plain, self._required = name, plain, options.written
        self._varying = varying
        try:
            self._run: Callable[..., Any] = torch.compile(plain, **options.arguments)
        except Exception as error:  # noqa: BLE001 - each option is checked in its own way
            raise refused(name, str(error).partition(", known options")[0]) from None
        self._limit_told = False

    def __call__(self, *arguments: Any) -> Any:
        """The result of the module."""
        for position, axes in self._varying:
            if position < len(arguments) and isinstance(arguments[position], torch.Tensor):
                _mark(arguments[position], axes)
        try:
            return self._run(*arguments)
        except Exception as error:
            if not _is_of_compiler(error):
                raise
            return self._without(error, arguments)

    def _without(self, error: Exception, arguments: Sequence[Any]) -> Any:
        """The result of the module as it is, after the compiler gave up."""
        if isinstance(error, exc.TorchRuntimeError):
            # The module itself fails on these arguments; only it says why in plain words.
            return self._plain(*arguments)
        if isinstance(error, exc.FailOnRecompileLimitHit):
            self._tell_limit()
            return self._plain(*arguments)
        text = _first_lines(error)
        if self._required:
            self.failure = CompileFailed(
                f"model '{self._name}' cannot be compiled as parameter {PARAMETER} asks: {text}"
            )
            raise self.failure from error
        logger.warning("model '%s' runs uncompiled: 'torch.compile' failed: %s", self._name, text)
        self._run, self._varying = self._plain, ()
        return self._plain(*arguments)

    def _tell_limit(self) -> None:
        if self._limit_told:
            return
        self._limit_told = True
        logger.warning(
            "model '%s' has been compiled for as many shapes as 'torch.compile' allows; calls with "
            'further ones run uncompiled; {"dynamic": true} or a larger "recompile_limit" in the '
            "parameter %s helps",
            self._name,
            PARAMETER,
        )


def _mark(tensor: torch.Tensor, axes: Sequence[int]) -> None:
    """Have the first compilation cover every size of these axes, for each further compilation would
    keep a client waiting. A size of 1 is compiled for on its own all the same."""
    for axis in axes:
        if axis < tensor.dim():
            maybe_mark_dynamic(tensor, axis)


def _is_of_compiler(error: Exception) -> bool:
    kinds = (exc.TorchDynamoException, exc.FailOnRecompileLimitHit)
    return isinstance(error, kinds)


def _first_lines(error: Exception) -> str:
    """What went wrong, without the advice that follows it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = lines[:2] or [type(error).__name__]
    return " ".join(line.removesuffix(".") for line in kept)


def check_names(name: str, options: CompileOptions) -> None:
    """InvalidArgument for a key, a backend, a mode or an option that this torch does not have."""
    known = inspect.signature(torch.compile).parameters
    for key in options.arguments:
        if key not in known:
            raise refused(name, f"torch {torch.__version__} has no '{key}'")
    backends = list_backends(exclude_tags=())
    if options.backend not in backends:
        raise refused(
            name,
            f"unknown backend '{options.backend}'; the usual ones are "
            f"{', '.join(list_backends())}, 'eager' and 'aot_eager'",
        )
    if options.backend == INDUCTOR:
        _check_inductor(name, options)


def _check_inductor(name: str, options: CompileOptions) -> None:
    mode, settings = options.arguments.get("mode"), options.arguments.get("options") or {}
    modes = list(list_mode_options())
    if mode is not None and mode not in modes:
        raise refused(name, f"unknown mode '{mode}'; the modes are {', '.join(modes)}")
    known = list_options()
    for key in settings:
        if key.replace("-", "_") not in known:
            near = difflib.get_close_matches(key, known, 3)
            hint = f"; did you mean {' or '.join(near)}" if near else ""
            raise refused(name, f"unknown option '{key}' of Inductor{hint}")


def _stay_one_process() -> None:
    """Inductor compiles in this process: helpers of its own would outlive a worker that is ended,
    and count as processes of the server. A number in the environment stands."""
    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        inductor_config.compile_threads = 1
    # A request whose shapes do not fit must not fill the log with tracebacks.
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
