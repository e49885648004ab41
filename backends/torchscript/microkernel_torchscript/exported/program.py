"""Programs of `torch.export` as the source of instances."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from microkernel import Internal, ModelConfig, Placement
from microkernel_torchscript.compiling.parameters import CompileOptions, parse_compile_options
from microkernel_torchscript.compiling.policy import compiled
from microkernel_torchscript.digests import check_digest
from microkernel_torchscript.exported.archive import check_exists
from microkernel_torchscript.exported.leaf_completion import complete_leaves
from microkernel_torchscript.exported.leaf_plans import plan_leaf_inputs, plan_leaf_outputs
from microkernel_torchscript.exported.leaf_results import apart
from microkernel_torchscript.exported.program_file import load_program
from microkernel_torchscript.exported.program_leaves import (
    place_weights,
    program_devices,
    program_inputs,
    program_outputs,
)
from microkernel_torchscript.failures import headline
from microkernel_torchscript.source import Forward, Source


class ProgramSource(Source):
    """A `.pt2` that `torch.export.save` wrote. It is run operator by operator, or compiled where
    the model has the parameter TORCH_COMPILE_OPTIONAL_PARAMETERS.

    Instances share the weights, except those that the program itself changes. With `mapped` worker
    processes do as well, as `load_program` describes.
    """

    def __init__(self, config: ModelConfig, path: Path, *, mapped: bool = False) -> None:
        """Load the file and check the configuration against what the program tells."""
        self._name, self._path, self._mapped = config.name, path, mapped
        self._compiling = parse_compile_options(config)
        self.compiles = self._compiling.written and not self._compiling.disabled
        check_exists(config.name, path)
        check_digest(config.name, path)
        first = self._load()
        self.inputs = plan_leaf_inputs(config, program_inputs(first), writes=_writes(first))
        self.outputs = plan_leaf_outputs(config, program_outputs(first))
        self._lock = threading.Lock()
        self._unused = [first]
        self._programs: dict[torch.device | None, ExportedProgram] = {}

    def forward(self, placement: Placement, device: torch.device | None) -> Forward:
        """See `Source.forward`. Tensors come and go in flattening order."""
        program = self._on(device)
        module: Any = program.module()
        if _writes(program):
            for name in program.graph_signature.buffers:
                _own(module, name)
        forward = _runner(self._name, module, program.call_spec.in_spec, self._compiling)
        return forward if device is not None else _sending(forward, program_devices(program))

    def close(self) -> None:
        """Forget the program."""
        self._unused.clear()
        self._programs.clear()

    def _on(self, device: torch.device | None) -> ExportedProgram:
        """The program on a device, one for all instances there: the one that was loaded for the
        checks, or the file once more, since moving a program changes it."""
        with self._lock:
            if device not in self._programs:
                program = self._unused.pop() if self._unused else self._load()
                self._programs[device] = _moved(self._name, program, device)
            return self._programs[device]

    def _load(self) -> ExportedProgram:
        return load_program(self._name, self._path, mapped=self._mapped)


def complete_program(config: ModelConfig, path: Path) -> ModelConfig:
    """Fill in the inputs and outputs that a configuration leaves out, all of which a program tells;
    see `complete_leaves`."""
    program = load_program(config.name, path, mapped=True)
    return complete_leaves(config, program_inputs(program), program_outputs(program))


def _runner(name: str, module: Any, spec: Any, compiling: CompileOptions) -> Forward:
    """A callable on tensors in flattening order, which gives them in that order."""

    def forward(*leaves: Any) -> tuple[Any, ...]:
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        result = module(*args, **kwargs)
        return apart(pytree.tree_leaves(result), leaves)

    return compiled(name, forward, compiling) if compiling.written else forward


def _writes(program: ExportedProgram) -> bool:
    """Whether anything in the program may write to a buffer or an argument."""
    if program.graph_signature.buffers_to_mutate:
        return True
    graphs = [
        part.graph for part in program.graph_module.modules() if isinstance(part, GraphModule)
    ]
    targets = {node.target for graph in graphs for node in graph.nodes}
    return any(isinstance(t, OpOverload) and t._schema.is_mutable for t in targets)  # noqa: SLF001


def _own(module: torch.nn.Module, name: str) -> None:
    """Give an instance a buffer of its own."""
    owner, _, last = name.rpartition(".")
    part = module.get_submodule(owner)
    setattr(part, last, part.get_buffer(last).clone())


def _sending(forward: Forward, devices: Sequence[torch.device | None]) -> Forward:
    """The same with arguments on the host, which it takes on the devices it was exported for."""
    if all(device is None or device.type == "cpu" for device in devices):
        return forward

    def sending(*leaves: Any) -> Any:
        pairs = zip(leaves, devices, strict=True)
        return forward(*(leaf if device is None else leaf.to(device) for leaf, device in pairs))

    return sending


def _moved(name: str, program: ExportedProgram, device: torch.device | None) -> ExportedProgram:
    """The program on a device, or with None on those that it was exported for, which its graph
    names; its weights were loaded to the host."""
    if device is not None and all(value.device == device for value in _tensors(program)):
        return program
    from torch.export.passes import move_to_device_pass  # noqa: PLC0415 - rarely needed

    try:
        if device is None:
            place_weights(program)
            return program
        return move_to_device_pass(program, device)
    except Exception as error:  # noqa: BLE001 - torch raises several kinds for a lacking device
        where = device or "its device"
        raise Internal(
            f"failed to load model '{name}': it cannot go to '{where}': {headline(error)}"
        ) from None


def _tensors(program: ExportedProgram) -> list[torch.Tensor]:
    made = [node.meta.get("val") for node in program.graph.nodes]
    weights = [*program.state_dict.values(), *program.constants.values()]
    return [value for value in (*made, *weights) if isinstance(value, torch.Tensor)]
