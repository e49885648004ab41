"""Devices that are written into the code of a TorchScript file.

`torch.jit.trace` keeps the device that a tensor was made on as a constant, so that a traced model
makes its tensors there wherever it runs. `map_location` moves weights, and not these.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from microkernel import InvalidArgument

logger = logging.getLogger(__name__)

Load: TypeAlias = Callable[[], torch.jit.ScriptModule]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done about baked devices: the one that this host lacks (`missing`), the GPU in
    whose place the instance's is to stand (`replaced`), the one that the code may stumble over
    (`doubtful`); empty for none."""

    missing: str = ""
    replaced: str = ""
    doubtful: str = ""


def baked_devices(graph: Any) -> dict[str, str]:
    """The devices that a graph names wherever it runs, each with the operation that uses it first.
    What stands in a branch is left out: it may be there for another device."""
    found: dict[str, str] = {}
    for node in graph.nodes():
        for value in node.inputs():
            constant = value.node()
            if constant.kind() == "prim::Constant" and str(value.type()) == "Device":
                found.setdefault(constant.s("value"), node.kind())
    return found


def holds_tensors(graph: Any) -> bool:
    """Whether a graph has tensors among its constants, as a frozen module has its weights, which
    move to another device only while the file is loaded."""
    constants = graph.findAllNodes("prim::Constant")
    return any(node.output().type().kind() == "TensorType" for node in constants)


def judge(baked: Mapping[str, str], device: torch.device | None, gpus: int) -> Verdict:
    """What to do about the devices for an instance on one (None: where its weights are saved), on a
    host with that many GPUs."""
    known = [torch.device(text) for text in baked]
    cuda = [one for one in known if one.type == "cuda"]
    missing = [one for one in cuda if (one.index or 0) >= gpus]
    if device is not None and device.type == "cuda":
        other = [one for one in cuda if str(one) != "cuda"]  # which is whatever GPU is current
        if len(other) == 1 and other[0] != device:
            return Verdict(replaced=str(other[0]))
        doubtful = [one for one in known if one.type == "cpu"]
    else:
        doubtful = [] if device is None else cuda
    if missing:
        return Verdict(missing=str(missing[0]))
    return Verdict(doubtful=str(doubtful[0]) if doubtful else "")


def check_devices(name: str, module: torch.jit.ScriptModule) -> None:
    """Raises InvalidArgument where the code of a module names a device that is not there."""
    baked = baked_devices(module.inlined_graph)
    _check_there(name, baked, judge(baked, None, torch.cuda.device_count()))


def fitted(
    name: str, module: torch.jit.ScriptModule, device: torch.device | None, load: Load
) -> torch.jit.ScriptModule:
    """The module, or one from `load` whose code names the GPU of the instance in place of the one
    it was traced on. Raises InvalidArgument where it names a device that is not there."""
    baked = baked_devices(module.inlined_graph)
    if not baked:
        return module
    verdict = judge(baked, device, torch.cuda.device_count())
    _check_there(name, baked, verdict)
    if verdict.replaced:
        # From its file once more: what has run, or was only looked at inlined, is compiled already.
        module = load()
        count = replace_device(module, verdict.replaced, str(device))
        logger.info(
            "model '%s': %s stands in its code in place of %s, where it was traced (%d times)",
            *(name, device, verdict.replaced, count),
        )
    elif verdict.doubtful:
        logger.warning(
            "model '%s': its code names the device %s (%s), and an instance is on %s; where that "
            "fails, %s",
            *(name, verdict.doubtful, baked[verdict.doubtful], device, _cure(str(device))),
        )
    return module


def replace_device(module: torch.jit.ScriptModule, old: str, new: str) -> int:
    """Let the code of a module that has not run name another device; how often it does."""
    count = 0
    for _, part in module.named_modules():
        for method in part._c._method_names():  # noqa: SLF001 - torch has no public way
            graph = part._c._get_method(method).graph  # noqa: SLF001
            for node in graph.findAllNodes("prim::Constant"):
                if str(node.output().type()) == "Device" and node.s("value") == old:
                    node.s_("value", new)
                    count += 1
    return count


def _check_there(name: str, baked: Mapping[str, str], verdict: Verdict) -> None:
    if verdict.missing:
        raise InvalidArgument(
            f"unable to load model '{name}': its code names the device {verdict.missing} "
            f"({baked[verdict.missing]}), which this host lacks; "
            f"{_cure('a device that is there')}"
        )


def _cure(where: str) -> str:
    return f"export the model with torch.jit.script, or trace it on {where}"
