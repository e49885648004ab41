"""Settings of torch that a model's parameters change, each where it belongs: in a thread, around a
module's first calls, or in the process."""

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from microkernel_torchscript.options import Options
from microkernel_torchscript.source import Forward

logger = logging.getLogger(__name__)

FIRST_CALLS = 3
"""Calls of a module after which TorchScript compiles nothing more: it profiles in the first and
optimises in the second."""

Flags: TypeAlias = tuple[bool | None, ...]
"""A model's flags of TorchScript, None for one that is left as it is found."""


def enter_modes(modes: contextlib.ExitStack, options: Options) -> None:
    """Enter the calling thread's modes, once: entering them per call costs as much as a small
    model."""
    modes.enter_context(torch.inference_mode() if options.inference_mode else torch.no_grad())
    optimized = torch.jit.optimized_execution  # type: ignore[attr-defined]  # not annotated
    modes.enter_context(optimized(options.optimized_execution))


def set_threads(count: int) -> None:
    """Give the calling thread its number of threads within an operation; others keep theirs."""
    # A thread takes the number that was set last by any thread when it first asks for it.
    torch.get_num_threads()
    torch.set_num_threads(count)


@contextlib.contextmanager
def compiling(options: Options) -> Iterator[None]:
    """Let the process have the model's flags of TorchScript; afterwards they are as they were
    found. A module keeps those that were set in its first calls.

    Models with equal flags, as most that set none, do not wait for each other, however long their
    calls take; others wait until nobody needs the flags that are set.
    """
    flags = (options.jit_executor, options.jit_profiling, options.tensor_fuser)
    _IN_FORCE.enter(flags)
    try:
        yield
    finally:
        _IN_FORCE.leave()


class _InForce:
    """The flags that the process has, and how many need them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._flags: Flags = ()
        self._users = 0
        self._found = contextlib.ExitStack()

    def enter(self, flags: Flags) -> None:
        """Set the flags, once nobody needs others."""
        with self._changed:
            self._changed.wait_for(lambda: not self._users or self._flags == flags)
            if not self._users:
                self._set(flags)
            self._users += 1

    def leave(self) -> None:
        """The flags are not needed any more; the last who says so restores what was found."""
        with self._changed:
            self._users -= 1
            if not self._users:
                self._found.close()
                self._changed.notify_all()

    def _set(self, flags: Flags) -> None:
        for flag, wanted in zip(_SETTERS, flags, strict=True):
            if wanted is not None:
                self._found.callback(flag, flag(wanted))
        self._flags = flags


def _set_tensor_fuser(on: bool) -> bool:
    before: bool = torch._C._jit_texpr_fuser_enabled()  # noqa: SLF001
    torch._C._jit_set_texpr_fuser_enabled(on)  # noqa: SLF001
    return before


_SETTERS: tuple[Callable[[bool], bool], ...] = (
    torch._C._jit_set_profiling_executor,  # noqa: SLF001 - torch has no public way
    torch._C._jit_set_profiling_mode,  # noqa: SLF001
    _set_tensor_fuser,
)
"""What sets each of the flags; it gives what the flag was before."""

_IN_FORCE = _InForce()


class FirstCalls:
    """A callable that has not been warmed: its first calls run under the flags of its model, and
    the others as they are."""

    def __init__(self, forward: Forward, options: Options) -> None:
        self._forward, self._options = forward, options
        self._left = FIRST_CALLS

    def __call__(self, *arguments: Any) -> Any:
        """Call it; a call that raises does not count."""
        if not self._left:
            return self._forward(*arguments)
        with compiling(self._options):
            result = self._forward(*arguments)
        self._left -= 1
        return result


class _Cudnn:
    """Whether the process uses cuDNN: as the first of the models that it hosts wants it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a model may be collected while another one is loaded
        self._wishes: list[_Wish] = []
        self._found = True

    def claim(self, wish: "_Wish") -> "_Wish":
        """Add a wish; the one that is heeded."""
        with self._lock:
            if not self._wishes:
                self._found = torch.backends.cudnn.enabled
                torch.backends.cudnn.enabled = wish.wanted
            self._wishes = [*self._wishes, wish]
            return self._wishes[0]

    def release(self, wish: "_Wish") -> None:
        with self._lock:
            self._wishes = [other for other in self._wishes if other is not wish]
            wanted = self._wishes[0].wanted if self._wishes else self._found
            torch.backends.cudnn.enabled = wanted


@dataclass(frozen=True, slots=True, eq=False)
class _Wish:
    model: str
    wanted: bool


_CUDNN = _Cudnn()


def claim_cudnn(owner: object, name: str, *, wanted: bool) -> Callable[[], object]:
    """Say whether a model wants cuDNN, a setting of the process. The first model that the process
    hosts decides; another that wants it otherwise is told so in a warning.

    To be called when the model is unloaded is what this returns: the next model decides then, and
    after the last the setting is as it was. The end of the `owner` does the same.
    """
    wish = _Wish(name, wanted)
    heeded = _CUDNN.claim(wish)
    if heeded.wanted is not wanted:
        logger.warning(
            "model '%s' wants cuDNN %s, but it is %s in this process for model '%s', which came "
            "first; a model that needs it otherwise needs its own worker",
            name,
            _state(wanted),
            _state(heeded.wanted),
            heeded.model,
        )
    finalizer = weakref.finalize(owner, _CUDNN.release, wish)
    finalizer.atexit = False
    return finalizer


def _state(on: bool) -> str:
    return "enabled" if on else "disabled"
