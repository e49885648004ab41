"""PyTorch models, as Triton's `pytorch` backend serves them. This module imports no torch."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from microkernel import (
    BackendType,
    CommandType,
    RegisterBackend,
    RegisterCommand,
    RegisterOptions,
    hookimpl,
    option,
)
from microkernel_torchscript.describing import described_labels
from microkernel_torchscript.kinds import hosting, recognise


@dataclass(frozen=True, slots=True)
class Settings:
    """The plug-in's table in `plugins.toml`."""

    inter_op_threads: int = option(
        1,
        about="Threads for branches that a model runs in parallel, where the model's parameter "
        "INTER_OP_THREAD_COUNT does not say; one number per worker.",
    )


_CUDA_LIBRARIES = ("libtorch_cuda.so", "torch_cuda.dll")


def knows_gpus() -> bool:
    """Whether the torch that is installed was built for CUDA; one for the CPU alone serves on the
    CPU, whatever GPUs the host has. It is not imported."""
    spec = find_spec("torch")
    folders = [] if spec is None else spec.submodule_search_locations or []
    return any(Path(f, "lib", name).exists() for f in folders for name in _CUDA_LIBRARIES)


@hookimpl
def register_options(register: RegisterOptions) -> None:
    register(Settings)


@hookimpl
def register_backends(register: RegisterBackend) -> None:
    register(
        BackendType(
            name="pytorch",
            platform="pytorch_libtorch",
            filenames=("model.pt", "model.pt2"),
            factory="microkernel_torchscript.backend:PyTorchBackend",
            recognise=recognise,
            hosting=hosting,
            labels=described_labels,
            preload=("torch",),
            # Threads that spin at barriers starve each other on a busy host.
            environment={"OMP_WAIT_POLICY": "passive"},
            requires=("torch",),
            extra="torchscript",
            gpu=knows_gpus(),
        )
    )


@hookimpl
def register_commands(register: RegisterCommand) -> None:
    register(
        CommandType(
            "export",
            "microkernel_torchscript.exporting.command:export",
            "Make a model file of a PyTorch module that serves with no configuration.",
            requires=("torch",),
            extra="torchscript",
        )
    )
    register(
        CommandType(
            "tune",
            "microkernel_torchscript.tuning.command:tune",
            "Find out how a TorchScript model runs fastest here.",
            requires=("torch",),
            extra="torchscript",
        )
    )
