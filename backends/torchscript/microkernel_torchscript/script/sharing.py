"""The modules of a version's instances on one device: shared, or each its own."""

import copy
import logging
from collections.abc import Callable

import torch

from microkernel_torchscript.script.state import kept_state
from microkernel_torchscript.source import COLD, Ready, Warm, Warmth

logger = logging.getLogger(__name__)

_OPAQUE = "equal calls gave different results"


class Modules:
    """Gives the instances of one device their modules. The file is read once, and the first calls
    are made once: copies of a module share its compiled code.

    Copies that share their weights are given only of modules that keep nothing from one call for
    the next. Not for several threads at once.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], torch.jit.ScriptModule],
        pristine: torch.jit.ScriptModule,
        *,
        sharing: bool,
    ) -> None:
        """`pristine` is the module as it was saved, and `load` reads it from its file once more."""
        self._name, self._load, self._sharing = name, load, sharing
        self._pristine = pristine
        self._state = kept_state(self._pristine)
        self._given = 0
        self._warmth: Warmth = COLD
        self._tried = False

    def take(self, warm: Warm, *, last: bool) -> Ready:
        """A module for one more instance, the `last` one that will be asked for, or not. The first
        that may be warmed is, and the others are as warm as it."""
        warmth = COLD if self._tried else self._warmed(warm)
        if self._given == 0 and self._state and self._sharing:
            logger.warning(
                "model '%s': ENABLE_WEIGHT_SHARING is not heeded, because the module keeps state: "
                "%s; each instance has its own copy",
                self._name,
                self._state,
            )
        module = self._next(last=last)
        self._given += 1
        if not warmth.is_warm and self._warmth.is_warm:
            warm.touch((self._copy(module) if self._state else module).forward)
        return Ready(module.forward, self._warmth if warmth is COLD else warmth)

    def _warmed(self, warm: Warm) -> Warmth:
        """Make the first calls, with a copy where they would leave something behind."""
        trial = self._copy(self._pristine) if self._state else self._pristine
        warmth = warm.first_calls(trial.forward)
        if warmth is COLD:
            return warmth
        if warmth.keeps_state and not self._state:
            self._state, self._pristine = _OPAQUE, self._load()
            warmth = warm.first_calls(self._copy(self._pristine).forward)
        self._tried, self._warmth = True, warmth
        return warmth

    def _next(self, *, last: bool) -> torch.jit.ScriptModule:
        if self._state:
            return self._pristine if last else self._copy(self._pristine)
        if self._given == 0:
            return self._pristine
        if self._sharing:
            logger.info("Reusing TorchScript model for instance '%s'", self._name)
            shared: torch.jit.ScriptModule = copy.copy(self._pristine)
            return shared
        return self._copy(self._pristine)

    def _copy(self, module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
        """The module with weights of its own. What cannot be copied is read once more."""
        try:
            own: torch.jit.ScriptModule = copy.deepcopy(module)
        except RuntimeError:
            return self._load()
        return own
