"""Handing a module to `torch.compile`, and what happens where that does not work.

Triton compiles without being asked, and so does this wherever a compiler is found. Where none is,
a model that did not ask for one runs as it is; one that asked is refused when it is loaded.
"""

import logging
import os
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from microkernel import Internal
from microkernel_torchscript.compiling.parameters import INDUCTOR, PARAMETER, CompileOptions

logger = logging.getLogger(__name__)

Varying: TypeAlias = Sequence[tuple[int, Sequence[int]]]
"""Positions of arguments, each with the axes of that tensor whose size differs between calls."""

_TURNS_OFF = ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE")
_CURE = "install g++ and the headers of Python"


class CompileFailed(Internal):
    """The compiler that a model asks for cannot compile it: the fault is the model's or the
    host's, not that of a request."""


class Compiled(ABC):
    """What runs a module compiled. `failure` is the last one of the compiler that the model asks
    for."""

    failure: CompileFailed | None = None

    @abstractmethod
    def __call__(self, *arguments: Any) -> Any:
        """The result of the module."""


def compiled(
    name: str, forward: Callable[..., Any], options: CompileOptions, varying: Varying = ()
) -> Callable[..., Any]:
    """What runs a module with `torch.compile`; `forward` itself where the options turn that off.

    Nothing is compiled before the first calls. Without options of the model `name`, a host that
    cannot compile leaves `forward` as it is, with a warning. Raises InvalidArgument for options
    that torch does not know, and CompileFailed where the compiler asked for is not there.
    """
    logger.debug(
        "'torch.compile' optional parameter(s) for '%s': %s", name, dict(options.arguments)
    )
    if options.disabled or turned_off():
        return forward
    from microkernel_torchscript.compiling.running import (  # noqa: PLC0415 - imports torch's compilers
        CompiledForward,
        check_names,
    )

    check_names(name, options)
    missing = missing_compiler() if options.backend == INDUCTOR else ""
    if missing and options.written:
        raise CompileFailed(
            f"failed to load model '{name}': {missing}, which 'torch.compile' needs; {_CURE}, or "
            f'set the parameter {PARAMETER} to {{"backend": "eager"}} or {{"disable": true}}'
        )
    if missing:
        logger.warning(
            "model '%s' runs uncompiled: %s, which 'torch.compile' needs; %s, or set the parameter "
            '%s to {"disable": true} to have it so',
            name,
            missing,
            _CURE,
            PARAMETER,
        )
        return forward
    marked = () if options.arguments.get("dynamic") is not None else varying
    return CompiledForward(name, forward, options, marked)


def missing_compiler() -> str:
    """What is missing on this host for Inductor to compile, "" for nothing."""
    from torch._inductor import cpp_builder  # noqa: PLC0415 - takes a second, and seldom needed

    try:
        cpp_builder.get_cpp_compiler()
    except Exception:  # noqa: BLE001 - torch has had several classes for this
        return f"there is no C++ compiler ({os.environ.get('CXX', 'g++')})"
    folder = Path(sysconfig.get_path("include"))
    return "" if (folder / "Python.h").exists() else f"there is no 'Python.h' in '{folder}'"


def turned_off() -> bool:
    """Whether an environment variable of torch turns compiling off. Torch reads them as well, but
    asking it imports much."""
    return any(os.environ.get(name) == "1" for name in _TURNS_OFF)
